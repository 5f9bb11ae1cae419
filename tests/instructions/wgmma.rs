//! Tests of gpu/wgmma.h, and of a tile's whole path: TMA, wgmma, and the copy back.

use half::{bf16, f16};

use super::Rng;
use super::rig::{Array, Call, Rig, Tensor, in_every_configuration};

const ROWS: usize = 64;
const K: usize = 64;

/// A matrix of 16-bit values in row-major order, as it is passed to a kernel.
struct Stored {
    rows: usize,
    columns: usize,
    bits: Vec<u16>,
}

/// The shape, types and operand layouts of a kernel in wgmma.cu.
#[derive(Debug, Clone, Copy)]
struct Product {
    name: &'static str,
    columns: usize,
    is_bf16: bool,
    a_k_major: bool,
    b_k_major: bool,
    a_in_registers: bool,
}

impl Product {
    /// Parses the name of a kernel.
    fn named(name: &'static str) -> Self {
        let mut parts = name.split('_');
        let is_bf16 = parts.next() == Some("bf16");
        let columns = parts.next().unwrap().parse().unwrap();
        let [a, b] = *parts.next().unwrap().as_bytes() else { panic!("two letters") };
        Self { name, columns, is_bf16, a_k_major: a != b'm', b_k_major: b == b'k', a_in_registers: a == b'r' }
    }

    fn bits(self, value: f64) -> u16 {
        if self.is_bf16 { bf16::from_f64(value).to_bits() } else { f16::from_f64(value).to_bits() }
    }

    fn value(self, bits: u16) -> f64 {
        if self.is_bf16 { bf16::from_bits(bits).to_f64() } else { f16::from_bits(bits).to_f64() }
    }

    /// `width` × `K` values, stored K-major or MN-major.
    fn stored(self, width: usize, k_major: bool, values: &[f64]) -> Stored {
        let (rows, columns) = if k_major { (width, K) } else { (K, width) };
        let at = |row: usize, column: usize| if k_major { row * K + column } else { column * K + row };
        let place = |i: usize| values[at(i / columns, i % columns)];
        Stored { rows, columns, bits: (0..rows * columns).map(|i| self.bits(place(i))).collect() }
    }

    /// Multiplies a [64, 64] and b [columns, 64], both with k last: without and with accumulation, with copies by
    /// threads and by TMA. `slack` is that of `assert_close`.
    fn check(self, a: &[f64], b: &[f64], d: &[f32], slack: f64) {
        let round = |values: &[f64]| -> Vec<f64> { values.iter().map(|&v| self.value(self.bits(v))).collect() };
        let (exact_a, exact_b) = (round(a), round(b));
        let stored_a = self.stored(ROWS, self.a_k_major, a);
        let stored_b = self.stored(self.columns, self.b_k_major, b);
        in_every_configuration(|rig| {
            let (left, right, start) = (rig.upload(&stored_a.bits), rig.upload(&stored_b.bits), rig.upload(d));
            let maps = [map(rig, &left, &stored_a), map(rig, &right, &stored_b)];
            for (accumulate, by_copy_engine) in [(0, 0), (1, 0), (1, 1)] {
                let output = rig.output::<f32>(ROWS * self.columns);
                let kernel = format!("test_wgmma_{}", self.name);
                let panels = if self.b_k_major { self.columns } else { self.columns.div_ceil(64) * 64 };
                let tile_a = if self.a_in_registers { 0 } else { 8192 };
                rig.launch(
                    &kernel,
                    &Call {
                        threads: 128,
                        shared_bytes: (tile_a + panels * 128 + 16) as u32,
                        maps: &maps,
                        inputs: &[left.at(), right.at(), start.at()],
                        outputs: &[output.at()],
                        n: &[accumulate, by_copy_engine],
                        ..Call::default()
                    },
                );
                let d = d.iter().map(|&d| f64::from(accumulate) * f64::from(d)).collect::<Vec<_>>();
                assert_close(&rig.download(&output), &exact_a, &exact_b, &d, K, slack, self.name);
            }
        });
    }
}

/// Asserts that got [m, n] is a [m, k] · b [n, k]ᵀ + d: each element's error is at most `slack` · 2⁻²² · Σ|a||b|.
fn assert_close(got: &[f32], a: &[f64], b: &[f64], d: &[f64], depth: usize, slack: f64, what: &str) {
    let columns = b.len() / depth;
    for (i, &got) in got.iter().enumerate() {
        let (row, column) = (&a[i / columns * depth..][..depth], &b[i % columns * depth..][..depth]);
        let terms = || row.iter().zip(column).map(|(a, b)| a * b);
        let exact = d[i] + terms().sum::<f64>();
        let magnitude = d[i].abs() + terms().map(f64::abs).sum::<f64>();
        let error = (f64::from(got) - exact).abs();
        let place = (i / columns, i % columns);
        assert!(error <= slack * 2f64.powi(-22) * magnitude, "{what}: {got} instead of {exact} at {place:?}");
    }
}

/// A tensor map of swizzled boxes, 64 columns wide and with all rows.
fn map(rig: &Rig, array: &Array<u16>, stored: &Stored) -> fused_lora::abi::TensorMap {
    // No kernel copies boxes of a matrix that is narrower than 64 columns.
    rig.tensor_map(&Tensor {
        address: array.at(),
        element_bytes: 2,
        dims: &[stored.columns as u64, stored.rows as u64],
        strides: &[2 * stored.columns as u64],
        boxes: &[64, stored.rows as u32],
        swizzle: true,
    })
}

fn small_integers(rng: &mut Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.below(9) as f64 - 4.0).collect()
}

const PRODUCTS: [&str; 19] = [
    "bf16_8_kk",
    "bf16_16_kk",
    "f16_64_kk",
    "bf16_96_kk",
    "bf16_128_kk",
    "f16_256_kk",
    "bf16_64_km",
    "f16_128_km",
    "bf16_256_km",
    "bf16_96_km",
    "f16_16_mk",
    "bf16_64_mk",
    "bf16_64_mm",
    "f16_128_mm",
    "bf16_8_rk",
    "f16_96_rk",
    "bf16_128_rk",
    "f16_64_rm",
    "bf16_256_rm",
];

#[test]
pub fn products_of_small_integers_are_exact() {
    for (seed, name) in (30..).zip(PRODUCTS) {
        let product = Product::named(name);
        let mut rng = Rng(seed);
        let (a, b) = (small_integers(&mut rng, ROWS * K), small_integers(&mut rng, product.columns * K));
        let d: Vec<f32> = small_integers(&mut rng, ROWS * product.columns).iter().map(|&d| d as f32).collect();
        product.check(&a, &b, &d, 0.0);
    }
}

#[test]
pub fn products_of_any_numbers_are_close() {
    for (seed, name) in [(60, "bf16_96_kk"), (61, "f16_128_mm"), (62, "bf16_128_rk")] {
        let product = Product::named(name);
        let mut rng = Rng(seed);
        let mut uniform = |n: usize| -> Vec<f64> { (0..n).map(|_| rng.uniform()).collect() };
        let (a, b) = (uniform(ROWS * K), uniform(product.columns * K));
        let d: Vec<f32> = uniform(ROWS * product.columns).iter().map(|&d| d as f32).collect();
        product.check(&a, &b, &d, 64.0);
    }
}

fn bf16_bits(values: &[f64]) -> Vec<u16> {
    values.iter().map(|&v| bf16::from_f64(v).to_bits()).collect()
}

#[test]
pub fn a_tile_goes_through_tma_wgmma_and_back() {
    for rounds in [1usize, 2, 5] {
        let depth = 64 * rounds;
        let mut rng = Rng(70);
        let (a, b) = (small_integers(&mut rng, 128 * depth), small_integers(&mut rng, 64 * depth));
        let product = |i: usize| -> f64 {
            let (row, column) = (&a[i / 64 * depth..][..depth], &b[i % 64 * depth..][..depth]);
            row.iter().zip(column).map(|(a, b)| a * b).sum()
        };
        let expected = bf16_bits(&(0..128 * 64).map(product).collect::<Vec<_>>());
        in_every_configuration(|rig| {
            let (left, right, output) =
                (rig.upload(&bf16_bits(&a)), rig.upload(&bf16_bits(&b)), rig.output::<u16>(128 * 64));
            let map = |address, rows: u64, columns: usize| {
                rig.tensor_map(&Tensor {
                    address,
                    element_bytes: 2,
                    dims: &[columns as u64, rows],
                    strides: &[2 * columns as u64],
                    boxes: &[64, 64],
                    swizzle: true,
                })
            };
            let maps = [map(left.at(), 128, depth), map(right.at(), 64, depth)];
            let target = rig.upload(&map(output.at(), 128, 64).opaque);
            rig.launch(
                "test_wgmma_ring",
                &Call {
                    threads: 384,
                    shared_bytes: 3 * 3 * 8192 + 2 * 8192 + 48,
                    maps: &maps,
                    inputs: &[target.at()],
                    n: &[rounds as u32],
                    ..Call::default()
                },
            );
            assert!(rig.download(&output) == expected, "{rounds} tiles deep");
        });
    }
}

#[test]
pub fn a_group_is_waited_for_while_another_runs() {
    let mut rng = Rng(71);
    let (a, b) = (small_integers(&mut rng, ROWS * K), small_integers(&mut rng, ROWS * K));
    in_every_configuration(|rig| {
        let (left, right) = (rig.upload(&bf16_bits(&a)), rig.upload(&bf16_bits(&b)));
        let (first, second) = (rig.output::<f32>(64 * 64), rig.output::<f32>(64 * 64));
        let outputs = [first.at(), second.at()];
        let call = Call { threads: 128, shared_bytes: 2 * 8192, outputs: &outputs, ..Call::default() };
        rig.launch("test_wgmma_groups", &Call { inputs: &[left.at(), right.at()], ..call });
        let zero = [0.0; 64 * 64];
        assert_close(&rig.download(&first), &a, &b, &zero, K, 0.0, "first");
        assert_close(&rig.download(&second), &b, &a, &zero, K, 0.0, "second");
    });
}
