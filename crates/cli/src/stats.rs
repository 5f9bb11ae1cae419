//! Mean, median, and whether the times of two methods differ significantly.

use fused_lora_gpt2::Random;

/// Trials below which there is no interval. The smallest and the largest of n values hold the median with a probability of
/// 1 - 2^(1 - n): 97 % for 6 values, 94 % for 5. No interval from fewer values can hold it in 95 % of all cases.
const MIN_TRIALS: usize = 6;
/// Bootstrap resamples of a confidence interval.
const RESAMPLES: usize = 2000;

/// Mean.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sample standard deviation; 0 for a single value.
pub(crate) fn std_dev(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

/// Median; the mean of the two middle values of an even number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// How much longer one method takes than another, in per cent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Overhead {
    /// The difference of the medians.
    pub(crate) percent: f64,
    /// 95 % confidence interval; `None` for fewer than [`MIN_TRIALS`] trials.
    pub(crate) interval: Option<(f64, f64)>,
}

impl Overhead {
    /// Compares pairs of trials: trial i of one method ran soon after trial i of the other, so a machine that slows
    /// down slows both.
    ///
    /// The interval is from the 2.5th to the 97.5th percentile of the bootstrap: the statistic on resampled pairs of
    /// trials.
    pub(crate) fn of(method: &[f64], base: &[f64]) -> Self {
        let percent = |m: &[f64], b: &[f64]| 100.0 * (median(m) / median(b) - 1.0);
        let n = method.len().min(base.len());
        if n < MIN_TRIALS {
            return Self { percent: percent(method, base), interval: None };
        }
        let mut uniform = ResampleIndices::new(n);
        let mut resampled: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let picks: Vec<usize> = (0..n).map(|_| uniform.next()).collect();
                let pick = |from: &[f64]| picks.iter().map(|&i| from[i]).collect::<Vec<_>>();
                percent(&pick(method), &pick(base))
            })
            .collect();
        resampled.sort_by(f64::total_cmp);
        let at = |q: f64| resampled[((RESAMPLES - 1) as f64 * q).round() as usize];
        Self { percent: percent(method, base), interval: Some((at(0.025), at(0.975))) }
    }

    /// From the three fields that a row of results stores.
    pub(crate) fn from_row(percent: f64, low: Option<f64>, high: Option<f64>) -> Self {
        Self { percent, interval: low.zip(high) }
    }

    /// The lower end of the interval.
    pub(crate) fn low(&self) -> Option<f64> {
        self.interval.map(|(low, _)| low)
    }

    /// The upper end of the interval.
    pub(crate) fn high(&self) -> Option<f64> {
        self.interval.map(|(_, high)| high)
    }

    /// Whether the interval contains zero; false without an interval.
    pub(crate) fn is_insignificant(&self) -> bool {
        self.interval.is_some_and(|(low, high)| low <= 0.0 && high >= 0.0)
    }

    /// Two cells of a table: the difference (or "no difference", if it is insignificant) and the interval.
    pub(crate) fn cells(&self) -> [String; 2] {
        let over = if self.is_insignificant() { "no difference".to_owned() } else { format!("{:+.1} %", self.percent) };
        [over, self.interval.map_or("-".to_owned(), |(low, high)| format!("{low:+.1} to {high:+.1}"))]
    }
}

/// Reproducible pseudo-random indices below `n`.
struct ResampleIndices {
    values: Vec<f32>,
    next: usize,
    n: usize,
}

impl ResampleIndices {
    fn new(n: usize) -> Self {
        // The bits of normal numbers from a fixed seed are hashed to uniform indices.
        let values = Random::new(0x57A7).normal::<f32>(RESAMPLES * n.max(1), 1.0).map(|t| t.to_vec());
        Self { values: values.unwrap_or_default(), next: 0, n }
    }

    fn next(&mut self) -> usize {
        let bits = self.values.get(self.next).map_or(self.next as u32, |v| v.to_bits());
        self.next += 1;
        ((u64::from(bits.wrapping_mul(0x9E37_79B9)) * self.n as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_statistics() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(median(&[5.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!((std_dev(&[2.0, 4.0]) - 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(std_dev(&[2.0]), 0.0);
    }

    #[test]
    fn a_difference_is_distinguished_from_noise() {
        let noise = |i: usize| ((i * 7919) % 13) as f64 / 13.0;
        let base: Vec<f64> = (0..40).map(|i| 100.0 + noise(i)).collect();
        let same: Vec<f64> = (0..40).map(|i| 100.0 + noise(i + 5)).collect();
        let slower: Vec<f64> = (0..40).map(|i| 103.0 + noise(i + 5)).collect();
        assert!(Overhead::of(&same, &base).is_insignificant(), "{:?}", Overhead::of(&same, &base));
        let overhead = Overhead::of(&slower, &base);
        assert!(!overhead.is_insignificant());
        assert!((overhead.percent - 3.0).abs() < 0.5, "{overhead:?}");
        let (low, high) = overhead.interval.unwrap();
        assert!(low <= overhead.percent && overhead.percent <= high);
        assert_eq!(overhead.cells(), [format!("{:+.1} %", overhead.percent), format!("{low:+.1} to {high:+.1}")]);
        assert_eq!(Overhead::from_row(overhead.percent, overhead.low(), overhead.high()), overhead);
    }

    #[test]
    fn few_trials_have_no_interval() {
        let overhead = Overhead::of(&[103.0], &[100.0]);
        assert!(
            (overhead.percent - 3.0).abs() < 1e-9 && overhead.interval.is_none() && !overhead.is_insignificant(),
            "{overhead:?}"
        );
        assert_eq!(overhead.cells(), ["+3.0 %", "-"]);
        assert!(Overhead::of(&[103.0; 5], &[100.0; 5]).interval.is_none());
        assert!(Overhead::of(&[103.0; 6], &[100.0; 6]).interval.is_some());
    }

    #[test]
    fn picks_cover_the_range_evenly() {
        let mut uniform = ResampleIndices::new(10);
        let mut counts = [0; 10];
        (0..20_000).for_each(|_| counts[uniform.next()] += 1);
        assert!(counts.iter().all(|&c| (1800..2200).contains(&c)), "{counts:?}");
    }
}
