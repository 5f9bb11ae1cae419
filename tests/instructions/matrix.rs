//! Tests of gpu/mma.h.

use half::{bf16, f16};

use super::Rng;
use super::rig::{Call, in_every_configuration};

/// The row, out of 96, whose address a lane passes in matrix.cu.
fn row_of_lane(lane: usize) -> usize {
    lane % 8 * 3 + lane / 8 * 24
}

/// Row and column of an element (0 or 1) in the register that lane `lane` holds of matrix `i`.
fn position_in_matrix(lane: usize, i: usize, element: usize, transposed: bool) -> (usize, usize) {
    let (row, column) = (lane / 4, 2 * (lane % 4) + element);
    let (row, column) = if transposed { (column, row) } else { (row, column) };
    (row_of_lane(8 * i + row), column)
}

#[test]
fn matrices_from_shared_memory() {
    let mut rng = Rng(11);
    let rows: Vec<[u16; 8]> = (0..96).map(|_| std::array::from_fn(|_| rng.draw() as u16)).collect();
    let mut expected = vec![];
    for transposed in [false, true] {
        for count in [1, 2, 4] {
            for lane in 0..32 {
                for i in 0..count {
                    let element = |e| {
                        let (row, column) = position_in_matrix(lane, i, e, transposed);
                        u32::from(rows[row][column])
                    };
                    expected.push(element(0) | element(1) << 16);
                }
            }
        }
    }
    in_every_configuration(|rig| {
        let (input, output) = (rig.upload(&rows), rig.output::<u32>(expected.len()));
        let call = Call { shared_bytes: 1536, inputs: &[input.at()], outputs: &[output.at()], ..Call::default() };
        rig.launch("test_matrix_load", &call);
        assert_eq!(rig.download(&output), expected);
    });
}

#[test]
fn matrices_to_shared_memory() {
    let mut rng = Rng(12);
    let registers: Vec<[u32; 4]> = (0..32).map(|_| std::array::from_fn(|_| rng.draw() as u32)).collect();
    let mut expected = vec![[0u16; 8]; 192];
    for transposed in [false, true] {
        for (lane, values) in registers.iter().enumerate() {
            for (i, value) in values.iter().enumerate() {
                for element in 0..2 {
                    let (row, column) = position_in_matrix(lane, i, element, transposed);
                    expected[96 * usize::from(transposed) + row][column] = (value >> (16 * element)) as u16;
                }
            }
        }
    }
    in_every_configuration(|rig| {
        let (input, output) = (rig.upload(&registers), rig.output::<[u16; 8]>(192));
        let call = Call { shared_bytes: 3072, inputs: &[input.at()], outputs: &[output.at()], ..Call::default() };
        rig.launch("test_matrix_store", &call);
        assert_eq!(rig.download(&output), expected);
    });
}

#[derive(Clone, Copy, PartialEq)]
enum Type {
    F16,
    Bf16,
    Tf32,
}

impl Type {
    fn kernel(self) -> &'static str {
        match self {
            Type::F16 => "test_matrix_multiply_f16",
            Type::Bf16 => "test_matrix_multiply_bf16",
            Type::Tf32 => "test_matrix_multiply_tf32",
        }
    }

    /// K of one instruction.
    fn k_values(self) -> usize {
        if self == Type::Tf32 { 8 } else { 16 }
    }

    fn bits(self, value: f64) -> u32 {
        match self {
            Type::F16 => f16::from_f64(value).to_bits().into(),
            Type::Bf16 => bf16::from_f64(value).to_bits().into(),
            // To nearest, ties away from zero. The values are far below the largest one, so this cannot overflow.
            Type::Tf32 => ((value as f32).to_bits() + 0x1000) & !0x1fff,
        }
    }

    /// The value of these bits.
    fn value(self, bits: u32) -> f64 {
        match self {
            Type::F16 => f16::from_bits(bits as u16).to_f64(),
            Type::Bf16 => bf16::from_bits(bits as u16).to_f64(),
            Type::Tf32 => f32::from_bits(bits).into(),
        }
    }

    /// Row and k of an element in register `i` of A.
    fn position_in_a(self, lane: usize, i: usize, element: usize) -> (usize, usize) {
        let row = lane / 4 + 8 * (i & 1);
        if self == Type::Tf32 { (row, lane % 4 + 4 * (i >> 1)) } else { (row, 2 * (lane % 4) + 8 * (i >> 1) + element) }
    }

    /// k and column of an element in register `i` of B.
    fn position_in_b(self, lane: usize, i: usize, element: usize) -> (usize, usize) {
        let k = if self == Type::Tf32 { lane % 4 + 4 * i } else { 2 * (lane % 4) + 8 * i + element };
        (k, lane / 4)
    }

    fn elements(self) -> usize {
        if self == Type::Tf32 { 1 } else { 2 }
    }
}

/// Checks products of random bits from `draw`, one for each warp: each element's error is at most 2⁻²² · Σ|a||b| ·
/// `slack`.
fn check(kind: Type, slack: f64, mut draw: impl FnMut() -> (u32, u32, f32)) {
    const WARPS: usize = 3;
    let k_values = kind.k_values();
    let mut a = vec![[[0u32; 16]; 16]; WARPS]; // row, k
    let mut b = vec![[[0u32; 8]; 16]; WARPS]; // k, column
    let mut c = vec![[[0f32; 8]; 16]; WARPS];
    for warp in 0..WARPS {
        for i in 0..16 {
            for j in 0..16 {
                let (left, right, sum) = draw();
                a[warp][i][j] = left;
                b[warp][i][j % 8] = right;
                c[warp][i][j % 8] = sum;
            }
        }
    }
    let (mut a_registers, mut b_registers, mut c_registers) = (vec![], vec![], vec![]);
    for warp in 0..WARPS {
        for lane in 0..32 {
            let word = |get: &dyn Fn(usize) -> u32| (0..kind.elements()).fold(0, |w, e| w | get(e) << (16 * e));
            for i in 0..4 {
                a_registers.push(word(&|e| {
                    let (row, k) = kind.position_in_a(lane, i, e);
                    a[warp][row][k]
                }));
                c_registers.push(c[warp][lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)]);
            }
            for i in 0..2 {
                b_registers.push(word(&|e| {
                    let (k, column) = kind.position_in_b(lane, i, e);
                    b[warp][k][column]
                }));
            }
        }
    }
    in_every_configuration(|rig| {
        let (left, right) = (rig.upload(&a_registers), rig.upload(&b_registers));
        let (sums, output) = (rig.upload(&c_registers), rig.output::<f32>(c_registers.len()));
        let inputs = [left.at(), right.at(), sums.at()];
        let call = Call { grid: WARPS as u32, inputs: &inputs, outputs: &[output.at()], ..Call::default() };
        rig.launch(kind.kernel(), &call);
        for (position_in_matrix, got) in rig.download(&output).into_iter().enumerate() {
            let (warp, lane, i) = (position_in_matrix / 128, position_in_matrix / 4 % 32, position_in_matrix % 4);
            let (row, column) = (lane / 4 + 8 * (i >> 1), 2 * (lane % 4) + (i & 1));
            let term = |k: usize| kind.value(a[warp][row][k]) * kind.value(b[warp][k][column]);
            let start = f64::from(c[warp][row][column]);
            let exact = start + (0..k_values).map(term).sum::<f64>();
            let magnitude = start.abs() + (0..k_values).map(|k| term(k).abs()).sum::<f64>();
            let error = (f64::from(got) - exact).abs();
            assert!(error <= slack * 2f64.powi(-22) * magnitude, "{row}, {column}: {got} instead of {exact}");
        }
    });
}

const TYPES: [Type; 3] = [Type::F16, Type::Bf16, Type::Tf32];

#[test]
fn products_of_small_integers_are_exact() {
    for kind in TYPES {
        let mut rng = Rng(13);
        let mut small = move || rng.below(17) as f64 - 8.0;
        check(kind, 0.0, move || (kind.bits(small()), kind.bits(small()), small() as f32 * 16.0));
    }
}

#[test]
fn products_of_any_numbers_are_close() {
    for kind in TYPES {
        let mut rng = Rng(14);
        let mut uniform = move || rng.uniform();
        check(kind, 16.0, move || (kind.bits(uniform()), kind.bits(uniform()), uniform() as f32));
    }
}

#[test]
fn a_tile_by_way_of_shared_memory() {
    let mut rng = Rng(15);
    let mut small = |n: usize| -> Vec<f64> { (0..n).map(|_| rng.below(9) as f64 - 4.0).collect() };
    let (a, b) = (small(16 * 32), small(32 * 8));
    let halves = |values: &[f64]| -> Vec<u16> { values.iter().map(|&v| f16::from_f64(v).to_bits()).collect() };
    let element = |i: usize| (0..32).map(|k| a[i / 8 * 32 + k] * b[k * 8 + i % 8]).sum::<f64>() as f32;
    let expected: Vec<f32> = (0..128).map(element).collect();
    in_every_configuration(|rig| {
        let (left, right) = (rig.upload(&halves(&a)), rig.upload(&halves(&b)));
        let output = rig.output::<f32>(128);
        let call = Call { shared_bytes: 1536, inputs: &[left.at(), right.at()], ..Call::default() };
        rig.launch("test_matrix_tile", &Call { outputs: &[output.at()], ..call });
        assert_eq!(rig.download(&output), expected);
    });
}
