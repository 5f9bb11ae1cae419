//! Dropout of an adapter's input. The mask is computed from the seed and the element's position, so it is never stored.
//!
//! Element `[row, column]` of x gets 16 random bits of Philox4x32-10 (Salmon et al. 2011). The key is the seed; the
//! counter consists of the group of the column, the row, the layer and the offset. The forward pass, the backward pass
//! and a forward pass that activation checkpointing repeats compute the same mask, on every device.
//! kernels/tile/dropout.h computes it in CUDA.

use crate::abi::LoraDropout;
use crate::cpu::vector::vectorized;
use crate::error::{Error, Result};

/// The number of 16-bit values.
const RANGE: u32 = 1 << 16;

/// Dropout of one layer's input in one pass: T = x̂·Aᵀ with `x̂[i, k]` either 0 or `x[i, k]`/(1 − p). The base product
/// uses x itself.
///
/// All segments of a layer read the same x̂, as one adapter on a fused projection does in PEFT and loralib.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dropout {
    /// An element is dropped if its 16 random bits are less than this.
    threshold: u32,
    seed: u64,
    layer: u32,
    offset: u32,
}

impl Dropout {
    /// Drops with probability `p`, in [0, 1 − 2⁻¹⁷), rounded to a multiple of 2⁻¹⁶. With p = 0 nothing is dropped and
    /// no random numbers are computed.
    ///
    /// # Errors
    /// [`Error::DropoutOutOfRange`].
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in [0, 2^16) by the check")]
    pub fn new(p: f64, seed: u64) -> Result<Self> {
        let threshold = (p * f64::from(RANGE)).round();
        if !(0.0..1.0).contains(&p) || threshold >= f64::from(RANGE) {
            return Err(Error::DropoutOutOfRange { p });
        }
        Ok(Self { threshold: threshold as u32, seed, layer: 0, offset: 0 })
    }

    /// The same dropout for layer `layer`. Different layers have independent masks.
    #[must_use]
    pub fn for_layer(self, layer: u32) -> Self {
        Self { layer, ..self }
    }

    /// The same dropout for another pass. Every optimizer step, micro-batch and data-parallel rank needs an offset of
    /// its own. A forward pass and its backward pass have the same offset.
    #[must_use]
    pub fn at(self, offset: u32) -> Self {
        Self { offset, ..self }
    }

    /// The offset of the pass, as given to [`at`](Self::at).
    pub fn offset(&self) -> u32 {
        self.offset
    }

    /// The probability, rounded to a multiple of 2⁻¹⁶.
    pub fn p(&self) -> f64 {
        f64::from(self.threshold) / f64::from(RANGE)
    }

    /// 1/(1 − p), the factor by which sums over the kept elements are multiplied.
    #[expect(clippy::cast_precision_loss, reason = "17 bits")]
    pub fn keep_scale(&self) -> f32 {
        RANGE as f32 / (RANGE - self.threshold) as f32
    }

    /// Whether element `[row, column]` of x is kept.
    #[expect(clippy::cast_possible_truncation, reason = "rows and columns fit 32 bits")]
    pub fn keeps(&self, row: usize, column: usize) -> bool {
        let (block, quarter, pair) = (column / 32, column / 8 % 4, column % 8 / 2);
        let words = self.words(row as u32, (4 * block + pair) as u32);
        words[quarter] >> (16 * (column % 2)) & 0xFFFF >= self.threshold
    }

    /// Sets the dropped elements of `values`, x's row `row` from column `start` on, to 0. Kept elements are not scaled.
    #[expect(clippy::cast_possible_truncation, reason = "rows and columns fit 32 bits")]
    pub(crate) fn drop_row(&self, row: usize, start: usize, values: &mut [f32]) {
        let end = start + values.len();
        vectorized(
            #[inline(always)]
            || {
                for first in (start / SPAN * SPAN..end).step_by(SPAN) {
                    let groups = std::array::from_fn(|lane| (first / SPAN * LANES + lane) as u32);
                    let words = philox(
                        [groups, [row as u32; LANES], [self.layer; LANES], [self.offset; LANES]],
                        [self.seed as u32, (self.seed >> 32) as u32],
                    );
                    let mut kept = [0u32; SPAN];
                    for (quarter, words) in words.iter().enumerate() {
                        for (lane, word) in words.iter().enumerate() {
                            let column = 32 * (lane / 4) + 8 * quarter + 2 * (lane % 4);
                            for (half, bits) in [word & 0xFFFF, word >> 16].into_iter().enumerate() {
                                kept[column + half] = if bits >= self.threshold { u32::MAX } else { 0 };
                            }
                        }
                    }
                    let columns = first.max(start)..(first + SPAN).min(end);
                    let kept = &kept[columns.start - first..];
                    for (value, kept) in values[columns.start - start..columns.end - start].iter_mut().zip(kept) {
                        *value = f32::from_bits(value.to_bits() & kept);
                    }
                }
            },
        );
    }

    /// The random bits of eight columns of a row: four words, each for two columns.
    #[expect(clippy::cast_possible_truncation, reason = "a word in two halves")]
    fn words(&self, row: u32, group: u32) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox([[group], [row], [self.layer], [self.offset]], key).map(|[word]| word)
    }

    /// The kernels' parameter struct. `step` is the device address of a `u32` that the kernel adds to the offset, or 0.
    #[expect(clippy::cast_possible_truncation, reason = "a word in two halves")]
    pub fn params(&self, step: u64) -> LoraDropout {
        LoraDropout {
            step: step as *const _,
            seed_low: self.seed as u32,
            seed_high: (self.seed >> 32) as u32,
            layer: self.layer,
            offset: self.offset,
            threshold: self.threshold,
            scale: self.keep_scale(),
        }
    }
}

/// The parameters of a launch without dropout.
pub(crate) const NO_DROPOUT: LoraDropout =
    LoraDropout { step: std::ptr::null(), seed_low: 0, seed_high: 0, layer: 0, offset: 0, threshold: 0, scale: 1.0 };

/// Counters that [`Dropout::drop_row`] hashes at the same time, in the lanes of vector registers.
const LANES: usize = 8;
/// Columns whose bits come from these counters: each counter gives four words, a word the bits of two columns.
const SPAN: usize = 8 * LANES;

/// Philox4x32-10 of `N` counters with one key.
#[expect(clippy::cast_possible_truncation, reason = "words and their halves")]
#[inline(always)]
fn philox<const N: usize>(counters: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    let mut words = counters;
    for _ in 0..10 {
        let [w0, w1, w2, w3] = &mut words;
        for (((w0, w1), w2), w3) in w0.iter_mut().zip(w1).zip(w2).zip(w3) {
            let [first, second] = [0xD251_1F53 * u64::from(*w0), 0xCD9E_8D57 * u64::from(*w2)];
            *w0 = (second >> 32) as u32 ^ *w1 ^ key[0];
            *w2 = (first >> 32) as u32 ^ *w3 ^ key[1];
            *w1 = second as u32;
            *w3 = first as u32;
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    words
}

#[cfg(test)]
mod tests {
    use approx::{assert_abs_diff_eq, assert_ulps_eq};

    use super::*;

    /// The test vectors that Random123 publishes.
    #[test]
    fn philox_gives_the_known_answers() {
        let philox = |counter: [u32; 4], key| philox(counter.map(|word| [word]), key).map(|[word]| word);
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    fn kept(dropout: &Dropout, rows: usize, columns: usize) -> Vec<bool> {
        (0..rows).flat_map(|row| (0..columns).map(move |column| dropout.keeps(row, column))).collect()
    }

    #[test]
    fn a_row_is_dropped_as_its_elements_are() {
        let dropout = Dropout::new(0.4, 0x1234_5678_9ABC).unwrap().for_layer(3).at(9);
        for (start, len) in [(0, 1), (0, 64), (1, 64), (63, 2), (64, 200), (70, 31), (200, 0), (5, 500)] {
            for row in [0, 1, 77] {
                let mut values = vec![f32::NAN; len];
                dropout.drop_row(row, start, &mut values);
                for (i, value) in values.iter().enumerate() {
                    let kept = dropout.keeps(row, start + i);
                    assert!(if kept { value.is_nan() } else { *value == 0.0 }, "[{row}, {}]", start + i);
                }
            }
        }
    }

    #[test]
    fn elements_are_dropped_with_probability_p() {
        for p in [0.0, 0.05, 0.1, 0.5, 0.9] {
            let dropout = Dropout::new(p, 7).unwrap();
            assert_abs_diff_eq!(dropout.p(), p, epsilon = 1.0 / 131_072.0);
            let (rows, columns) = (128, 1000);
            let mask = kept(&dropout, rows, columns);
            let n = mask.len() as f64;
            let dropped = mask.iter().filter(|&&kept| !kept).count() as f64;
            let deviation = (n * p * (1.0 - p)).sqrt();
            assert!((dropped - n * dropout.p()).abs() <= 5.0 * deviation, "p = {p}: {dropped} of {n}");
            let exact = 1.0 / (1.0 - dropout.p());
            assert_ulps_eq!(dropout.keep_scale(), exact as f32, epsilon = 0.0, max_ulps = 1);
            // Elements at these distances in a row, and adjacent elements of a column, are dropped independently.
            for distance in [1, 2, 8, 16, 32, columns] {
                let pairs = mask.iter().zip(&mask[distance..]);
                let both = pairs.filter(|(a, b)| !**a && !**b).count() as f64;
                let (n, q) = ((mask.len() - distance) as f64, dropout.p() * dropout.p());
                assert!((both - n * q).abs() <= 6.0 * (n * q * (1.0 - q)).sqrt(), "p = {p}, {distance} apart: {both}");
            }
        }
    }

    #[test]
    fn seeds_layers_and_offsets_have_independent_masks() {
        let dropout = Dropout::new(0.5, 7).unwrap();
        let masks = [
            dropout,
            dropout.for_layer(1),
            dropout.at(1),
            dropout.at(2),
            Dropout::new(0.5, 8).unwrap(),
            Dropout::new(0.5, 7 << 32).unwrap(),
        ]
        .map(|dropout| kept(&dropout, 16, 256));
        for (i, a) in masks.iter().enumerate() {
            for b in &masks[..i] {
                let same = a.iter().zip(b).filter(|(a, b)| a == b).count() as f64;
                assert!((same - 2048.0).abs() <= 5.0 * 32.0, "{same} of 4096 alike");
            }
        }
        assert_eq!(kept(&dropout.at(3).for_layer(2), 4, 64), kept(&dropout.for_layer(2).at(3), 4, 64));
    }

    #[test]
    fn a_probability_is_at_least_0_and_less_than_1() {
        for p in [-0.1, 1.0, 1.5, 1.0 - 1e-9, f64::NAN, f64::INFINITY] {
            assert!(matches!(Dropout::new(p, 0), Err(Error::DropoutOutOfRange { .. })), "{p}");
        }
        assert_eq!(Dropout::new(0.0, 0).unwrap().keep_scale(), 1.0);
    }
}
