//! Element-wise passes, compiled for the widest vector instructions of the machine that runs them.

use crate::dtype::Element;
pub use crate::vectorized::vectorized;

/// eˣ with a relative error below 2⁻²² for |x| ≤ 87. Inputs outside are clamped to that range; a NaN stays a NaN.
///
/// x = n·ln 2 + f with n an integer, so eˣ = 2ⁿ·eᶠ, |f| ≤ ln 2 / 2, and eᶠ is its Taylor polynomial of degree 7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding 1.5·2²³ and subtracting it again rounds to an integer. After the addition, that integer is in the lowest
    /// bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 87.0 { 87.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first with few bits, so that its product with n is exact.
    let f = n * -0.693_359_4 + clamped;
    let f = n * 2.121_944_4e-4 + f;
    let mut p = 1.0 / 5040.0;
    p = p * f + 1.0 / 720.0;
    p = p * f + 1.0 / 120.0;
    p = p * f + 1.0 / 24.0;
    p = p * f + 1.0 / 6.0;
    p = p * f + 0.5;
    p = p * f + 1.0;
    p = p * f + 1.0;
    let two_to_n = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    p * two_to_n
}

/// Partial sums of a sum, which the compiler keeps in vector registers.
const LANES: usize = 16;

/// Σ f(v) in 16 lanes on every machine, so that the rounding of a sum depends on its length alone.
#[inline(always)]
pub fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &v) in lanes.iter_mut().zip(block) {
            *lane += f(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += f(v);
    }
    lanes.into_iter().sum()
}

/// `dst[i] += src[i]`. Panics if the lengths differ.
pub fn add(dst: &mut [f32], src: &[f32]) {
    assert_eq!(dst.len(), src.len());
    vectorized(
        #[inline(always)]
        || dst.iter_mut().zip(src).for_each(|(d, s)| *d += s),
    );
}

/// `dst[i] += factor · src[i]`. Panics if the lengths differ.
pub fn add_scaled(dst: &mut [f32], src: &[f32], factor: f32) {
    assert_eq!(dst.len(), src.len());
    vectorized(
        #[inline(always)]
        || dst.iter_mut().zip(src).for_each(|(d, s)| *d += factor * s),
    );
}

/// `dst[i] *= factor`.
pub fn scale(dst: &mut [f32], factor: f32) {
    vectorized(
        #[inline(always)]
        || dst.iter_mut().for_each(|d| *d *= factor),
    );
}

/// Whether every element is finite.
pub fn all_finite<T: Element>(values: &[T]) -> bool {
    let finite = |chunk: &[f32]| {
        vectorized(
            #[inline(always)]
            || {
                // Summing 0·x, which is 0 or NaN, keeps the loop free of branches.
                let mut lanes = [0.0f32; 16];
                for block in chunk.chunks(16) {
                    for (lane, x) in lanes.iter_mut().zip(block) {
                        *lane += 0.0 * x;
                    }
                }
                lanes.iter().all(|lane| *lane == 0.0)
            },
        )
    };
    if let Some(values) = T::as_f32(values) {
        return finite(values);
    }
    let mut wide = [0.0f32; 1024];
    values.chunks(wide.len()).all(|chunk| {
        let wide = &mut wide[..chunk.len()];
        T::widen(chunk, wide);
        finite(wide)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound() {
        let worst = (-87_000..=87_000)
            .map(|i| {
                let x = i as f32 / 1000.0;
                let exact = f64::from(x).exp();
                (f64::from(exp(x)) - exact).abs() / exact
            })
            .fold(0.0, f64::max);
        assert!(worst < 2f64.powi(-22), "{worst:e}");
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
    }

    #[test]
    fn every_non_finite_element_is_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 15, 16, 1023, 1024, 2999] {
                let mut values = vec![1.0f32; 3000];
                assert!(all_finite(&values));
                values[at] = bad;
                assert!(!all_finite(&values), "{bad} at {at}");
                let halves: Vec<half::bf16> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
                assert!(!all_finite(&halves), "{bad} at {at} in bf16");
            }
        }
        assert!(all_finite::<f32>(&[]));
        assert!(all_finite(&[f32::MAX, f32::MIN]));
    }
}
