//! Random weights, made in parallel from a seed. Element i of the nth tensor depends only on (seed, n, i), so the
//! number of threads changes no bit.

use fused_lora::cpu::vector::vectorized;
use fused_lora::{DType, Element};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Elements made by one task.
const CHUNK: usize = 1 << 16;

/// A source of random tensors.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    tensors: u64,
}

impl Random {
    /// A source whose tensors depend on `seed` and on the order of the calls.
    pub fn new(seed: u64) -> Self {
        Self { seed, tensors: 0 }
    }

    /// The next tensor: `len` elements of mean 0 and standard deviation `deviation`.
    ///
    /// Each element is the sum of four 16-bit numbers, which is close to normal (no element is further than 3.5
    /// deviations out) and can be computed as fast as memory is written.
    ///
    /// # Errors
    /// If the memory cannot be allocated.
    pub fn normal<T: Element>(&mut self, len: usize, deviation: f32) -> Result<Tensor<T>> {
        self.tensors += 1;
        let key = mix64(self.seed ^ mix64(self.tensors));
        // The sum of four uniform numbers of variance (2³² - 1)/12 each.
        let step = deviation / (4.0 * 4_294_967_295.0f64 / 12.0).sqrt() as f32;
        let fill = |out: &mut [T]| {
            out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
                let key = mix64(key ^ chunk as u64) as u32;
                if T::DTYPE == DType::F32 {
                    let out: &mut [f32] = bytemuck::cast_slice_mut(out);
                    return normal_chunk(out, key, step);
                }
                let mut wide = vec![0.0; out.len()];
                normal_chunk(&mut wide, key, step);
                T::narrow(&wide, out);
            });
        };
        Tensor::filled(len, fill).map_err(|source| Error::Io { path: "random weights".into(), source })
    }
}

fn normal_chunk(out: &mut [f32], key: u32, step: f32) {
    vectorized(
        #[inline(always)]
        || {
            for (i, out) in out.iter_mut().enumerate() {
                let a = mix32(key.wrapping_add(i as u32));
                let b = mix32(a ^ 0x9E37_79B9);
                let sum = (a & 0xFFFF) + (a >> 16) + (b & 0xFFFF) + (b >> 16);
                *out = (sum as i32 - 2 * 0xFFFF) as f32 * step;
            }
        },
    );
}

/// A bijection of 32-bit numbers that spreads every input bit over all output bits (constants by C. Wellons).
#[inline(always)]
fn mix32(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

/// The output function of splitmix64.
fn mix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let values = Random::new(1).normal::<f32>(1 << 20, 0.02).unwrap();
        let moment = |p: i32| values.iter().map(|&v| f64::from(v / 0.02).powi(p)).sum::<f64>() / values.len() as f64;
        assert_abs_diff_eq!(moment(1), 0.0, epsilon = 5e-3);
        assert_abs_diff_eq!(moment(2), 1.0, epsilon = 5e-3);
        assert_abs_diff_eq!(moment(3), 0.0, epsilon = 2e-2);
        // A sum of four uniform numbers has kurtosis 2.7.
        assert_abs_diff_eq!(moment(4), 2.7, epsilon = 2e-2);
        let neighbours = values.windows(2).map(|w| f64::from(w[0]) * f64::from(w[1])).sum::<f64>() / (0.02 * 0.02);
        assert_abs_diff_eq!(neighbours / values.len() as f64, 0.0, epsilon = 5e-3);
    }

    #[test]
    fn values_depend_on_the_seed_and_not_on_threads() {
        let make = |seed, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Random::new(seed).normal::<half::bf16>(200_000, 1.0).unwrap().to_vec())
        };
        assert_eq!(make(3, 1), make(3, 2));
        assert_ne!(make(3, 1), make(4, 1));
        let mut random = Random::new(3);
        assert_ne!(random.normal::<f32>(64, 1.0).unwrap()[..], random.normal::<f32>(64, 1.0).unwrap()[..]);
    }
}
