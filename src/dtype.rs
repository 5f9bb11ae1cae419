//! The types in which weights and activations are stored. Arithmetic is `f32` for all of them.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::vectorized::vectorized;

/// The storage types of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: binary32 without the lower 16 bits.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// The unit roundoff u, the largest relative error of rounding to nearest: half the distance from 1 to the next
    /// larger number.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            DType::F32 => 1.0 / (1u64 << 24) as f64,
            DType::F16 => 1.0 / (1u64 << 11) as f64,
            DType::Bf16 => 1.0 / (1u64 << 8) as f64,
        }
    }

    /// The distance between adjacent subnormal numbers, which bounds the rounding error of results near zero.
    pub fn smallest_step(self) -> f64 {
        match self {
            DType::F32 => 2f64.powi(-149),
            DType::F16 => 2f64.powi(-24),
            DType::Bf16 => 2f64.powi(-133),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "f32" => Ok(DType::F32),
            "f16" => Ok(DType::F16),
            "bf16" => Ok(DType::Bf16),
            _ => Err(format!("unknown dtype '{s}', expected f32, f16 or bf16")),
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A type that weights and activations can be stored in.
pub trait Element: sealed::Sealed + bytemuck::Pod + Default + Send + Sync + std::fmt::Debug + PartialEq {
    /// The value of [`DType`] for this type.
    const DTYPE: DType;

    /// Converts to `f32`, which is exact.
    fn to_f32(self) -> f32;

    /// Rounds to nearest, ties to even, directly from double precision.
    fn from_f64(value: f64) -> Self;

    /// Converts a slice to `f32`, which is exact. Panics if the lengths differ.
    fn widen(src: &[Self], dst: &mut [f32]);

    /// Converts a slice from `f32`, rounded to nearest, ties to even. Panics if the lengths differ.
    fn narrow(src: &[f32], dst: &mut [Self]);

    /// The slice itself if its elements are `f32`, so that no copy is needed; otherwise `None`.
    fn as_f32(slice: &[Self]) -> Option<&[f32]>;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    fn to_f32(self) -> f32 {
        self
    }

    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn widen(src: &[Self], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }

    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.copy_from_slice(src);
    }

    fn as_f32(slice: &[Self]) -> Option<&[f32]> {
        Some(slice)
    }
}

macro_rules! half_element {
    ($type:ty, $dtype:expr, $widen:expr, $narrow:expr) => {
        impl Element for $type {
            const DTYPE: DType = $dtype;

            fn to_f32(self) -> f32 {
                <$type>::to_f32(self)
            }

            fn from_f64(value: f64) -> Self {
                <$type>::from_f32(round_to_odd(value))
            }

            fn widen(src: &[Self], dst: &mut [f32]) {
                $widen(src, dst);
            }

            fn narrow(src: &[f32], dst: &mut [Self]) {
                $narrow(src, dst);
            }

            fn as_f32(_: &[Self]) -> Option<&[f32]> {
                None
            }
        }
    };
}

/// Truncates an `f64` to `f32` and sets the lowest bit if the result is inexact (rounding to odd).
///
/// Rounding the result once more, to a type at least two bits narrower, gives the same as rounding the `f64` directly.
/// `half`'s own conversion rounds twice, since it rounds to `f32` first.
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || value.is_nan() {
        return nearest;
    }
    let away_from_zero = f64::from(nearest).abs() > value.abs();
    let truncated = nearest.to_bits() - u32::from(away_from_zero);
    f32::from_bits(truncated | 1)
}

half_element!(f16, DType::F16, <[f16] as HalfFloatSliceExt>::convert_to_f32_slice, |src, dst: &mut [f16]| dst
    .convert_from_f32_slice(src));
half_element!(bf16, DType::Bf16, widen_bf16, narrow_bf16);

/// Replaces `half`'s conversion of bf16, which is not vectorised, unlike that of f16.
fn widen_bf16(src: &[bf16], dst: &mut [f32]) {
    assert_eq!(src.len(), dst.len());
    vectorized(
        #[inline(always)]
        || dst.iter_mut().zip(src).for_each(|(d, s)| *d = f32::from_bits(u32::from(s.to_bits()) << 16)),
    );
}

fn narrow_bf16(src: &[f32], dst: &mut [bf16]) {
    assert_eq!(src.len(), dst.len());
    vectorized(
        #[inline(always)]
        || {
            for (d, s) in dst.iter_mut().zip(src) {
                let bits = s.to_bits();
                // Adding one less than half a unit of the last kept bit, and 1 more if that bit is odd, rounds to
                // nearest, ties to even.
                let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
                // Rounding a NaN could give infinity. So a NaN is truncated, and its quiet bit is set.
                let nan = bits >> 16 | 0x40;
                *d = bf16::from_bits(if s.is_nan() { nan } else { rounded } as u16);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_roundoff_is_half_of_epsilon() {
        assert_eq!(DType::F32.unit_roundoff(), f64::from(f32::EPSILON) / 2.0);
        assert_eq!(DType::F16.unit_roundoff(), f16::EPSILON.to_f64() / 2.0);
        assert_eq!(DType::Bf16.unit_roundoff(), bf16::EPSILON.to_f64() / 2.0);
    }

    #[test]
    fn names_parse_back() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert!("fp8".parse::<DType>().is_err());
    }

    #[test]
    fn bf16_slices_convert_as_single_numbers_do() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut wide = vec![0.0; all.len()];
        bf16::widen(&all, &mut wide);
        for (w, n) in wide.iter().zip(&all) {
            assert!(*w == n.to_f32() || w.is_nan() && n.is_nan(), "{n:?}");
        }
        // Every bf16, followed by low bits below the tie, at the tie and above it.
        for tail in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
            let wide: Vec<f32> = (0..=u16::MAX).map(|hi| f32::from_bits(u32::from(hi) << 16 | tail)).collect();
            let mut narrow = vec![bf16::ZERO; wide.len()];
            bf16::narrow(&wide, &mut narrow);
            for (n, w) in narrow.iter().zip(&wide) {
                let expected = bf16::from_f32(*w);
                assert!(*n == expected || n.is_nan() && expected.is_nan(), "{w:e}: {n} {expected}");
            }
        }
    }

    #[test]
    fn rounding_from_f64_happens_once() {
        // The sum of the midpoint of two f16 numbers and a difference too small for f32. Rounding to f32 first would
        // give the midpoint, and rounding that to f16 the even number, which is the wrong one.
        let above_tie = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(<f16 as Element>::from_f64(above_tie).to_f64(), 1.0 + 2f64.powi(-10));
        assert_eq!(<f16 as Element>::from_f64(-above_tie).to_f64(), -1.0 - 2f64.powi(-10));
        let below_tie = 1.0 + 2f64.powi(-8) - 2f64.powi(-40);
        assert_eq!(<bf16 as Element>::from_f64(below_tie).to_f64(), 1.0);
        assert_eq!(<bf16 as Element>::from_f64(1e300), bf16::INFINITY);
        assert_eq!(<f16 as Element>::from_f64(1e-300).to_f64(), 0.0);
        assert!(<f16 as Element>::from_f64(f64::NAN).is_nan());
    }
}
