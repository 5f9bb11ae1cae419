//! Tests of gpu/math.h, and of the conversions from and to f64.

use super::Rng;
use super::rig::{Call, in_every_build};

/// The error in units in the last place (ulp) of the exact result.
fn ulps(got: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if got == rounded || (got.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    let exponent = if rounded == 0.0 { -149 } else { (rounded.abs().to_bits() >> 23).max(1) as i32 - 150 };
    (f64::from(got) - exact).abs() / 2f64.powi(exponent)
}

fn inputs() -> Vec<[f32; 3]> {
    let mut rng = Rng(6);
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -126.5,
        -140.25,
        -149.0,
        -150.5,
        127.99,
        128.0,
        1e-5,
        -9.0,
        9.1,
        3e38,
    ];
    let mut all = vec![];
    for a in special {
        for b in special {
            all.push([a, b, 0.75]);
        }
    }
    for _ in 0..2000 {
        // Medium exponents, for which the functions are not constant.
        let mut draw = || f32::from_bits((rng.draw() as u32 & 0x807f_ffff) | ((100 + rng.below(40) as u32) << 23));
        all.push([draw(), draw(), draw()]);
    }
    all
}

#[test]
fn functions_of_floats() {
    let inputs = inputs();
    in_every_build(|rig| {
        let (input, output) = (rig.upload(&inputs), rig.output::<[f32; 8]>(inputs.len()));
        let n = [inputs.len() as u32];
        let call = Call { threads: 64, inputs: &[input.at()], outputs: &[output.at()], n: &n, ..Call::default() };
        rig.launch("test_math_floats", &call);
        for (&[a, b, c], got) in inputs.iter().zip(rig.download(&output)) {
            let x = f64::from(a);
            let same = |value: f32, expected: f32| {
                value == expected && value.is_sign_negative() == expected.is_sign_negative()
                    || value.is_nan() && expected.is_nan()
            };
            assert!(same(got[0], a.mul_add(b, c)), "fma({a}, {b}, {c}) = {}", got[0]);
            for (i, name, exact) in [(1, "tanh", x.tanh()), (2, "exp2", x.exp2()), (3, "rsqrt", 1.0 / x.sqrt())] {
                assert!(ulps(got[i], exact) <= 2.0, "{name}({a:e}) = {:e}, not {exact:e}", got[i]);
            }
            assert!(same(got[4], a.sqrt()), "sqrt({a:e}) = {:e}", got[4]);
            assert!(same(got[5], a.abs()), "abs({a:e}) = {:e}", got[5]);
            // The result for zeros of different signs is not specified.
            assert!(got[6] == a.min(b) || got[6].is_nan() && a.is_nan() && b.is_nan(), "min({a}, {b}) = {}", got[6]);
            assert!(got[7] == a.max(b) || got[7].is_nan() && a.is_nan() && b.is_nan(), "max({a}, {b}) = {}", got[7]);
        }
    });
}

#[test]
fn double_precision() {
    let mut inputs: Vec<f64> = inputs().into_iter().map(|[a, b, _]| f64::from(a) + 1e-9 * f64::from(b)).collect();
    // Ties between two f32, the values next to them, and values above or below f32's range.
    let tie = 1.0 + 2f64.powi(-24);
    inputs.extend([tie, tie.next_down(), tie.next_up(), 1.0 + 3.0 * 2f64.powi(-24), f64::MAX, 1e300, 3.5e38, 1e-320]);
    inputs.extend([2f64.powi(-150), 2f64.powi(-150).next_up(), -3.0 * 2f64.powi(-150), f64::MIN_POSITIVE, 2.0, 3.0]);
    in_every_build(|rig| {
        let (input, output) = (rig.upload(&inputs), rig.output::<[f64; 2]>(inputs.len()));
        let n = [inputs.len() as u32];
        let call = Call { threads: 64, inputs: &[input.at()], outputs: &[output.at()], n: &n, ..Call::default() };
        rig.launch("test_math_doubles", &call);
        let same = |got: f64, expected: f64| got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
        for (&value, [root, rounded]) in inputs.iter().zip(rig.download(&output)) {
            assert!(same(root, value.sqrt()), "sqrt({value:e}) = {root:e}");
            assert!(same(rounded, f64::from(value as f32)), "{value:e} rounded to {rounded:e}");
        }
    });
}

#[test]
fn functions_of_integers() {
    let mut rng = Rng(7);
    let edges = [0u32, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    let mut inputs: Vec<[u32; 2]> = edges.iter().flat_map(|&a| edges.map(|b| [a, b])).collect();
    inputs.extend((0..500).map(|_| [rng.draw() as u32, rng.draw() as u32]));
    in_every_build(|rig| {
        let (input, output) = (rig.upload(&inputs), rig.output::<[u32; 5]>(inputs.len()));
        let n = [inputs.len() as u32];
        let call = Call { threads: 64, inputs: &[input.at()], outputs: &[output.at()], n: &n, ..Call::default() };
        rig.launch("test_math_integers", &call);
        for (&[a, b], got) in inputs.iter().zip(rig.download(&output)) {
            let (least, most) = ((a as i32).min(b as i32) as u32, (a as i32).max(b as i32) as u32);
            let product = ((u64::from(a) * u64::from(b)) >> 32) as u32;
            assert_eq!(got, [a.min(b), a.max(b), least, most, product], "{a:#x}, {b:#x}");
        }
    });
}
