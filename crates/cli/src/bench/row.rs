//! The results on a GPU: one row for each variant and mode.

use serde::Serialize;

use super::case::Case;
use super::overhead::Cell;
use super::variant::{BASE, CUBLASLT, FROZEN, FROZEN_OURS, MODES, SEQUENTIAL};
use crate::output::{table, with_commas};
use crate::stats::{Overhead, median};

#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Row {
    pub(super) tokens: usize,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    pub(super) rank: usize,
    pub(super) variant: &'static str,
    /// Hidden features of a bottleneck adapter.
    pub(super) width: Option<usize>,
    /// Trainable parameters, |Θ|.
    pub(super) parameters: usize,
    pub(super) mode: &'static str,
    pub(super) median_us: f64,
    pub(super) fastest_us: f64,
    pub(super) slowest_us: f64,
    /// Over the faster of the two base products (ours, cuBLASLt's), or of the two frozen passes, in the same mode.
    pub(super) percent_over_base: f64,
    /// The 95 % interval; absent for fewer than six trials.
    pub(super) percent_low: Option<f64>,
    pub(super) percent_high: Option<f64>,
    /// The ratio of the time to that of cuBLASLt's base product, or of its frozen pass, in the same mode; with its 95 %
    /// interval, absent for fewer than six trials.
    pub(super) over_cublaslt: Option<f64>,
    pub(super) over_cublaslt_low: Option<f64>,
    pub(super) over_cublaslt_high: Option<f64>,
    /// The ratio to the time of sequential, likewise.
    pub(super) over_sequential: Option<f64>,
    pub(super) over_sequential_low: Option<f64>,
    pub(super) over_sequential_high: Option<f64>,
    pub(super) bytes: usize,
    pub(super) gigabytes_per_second: f64,
    pub(super) flops: usize,
    pub(super) teraflops_per_second: f64,
    /// Launches of a trial.
    pub(super) launches: usize,
    pub(super) launch: String,
}

/// A variant: the size of its adapter, the bytes and operations that a call needs at least, the launches of a trial,
/// its plan.
#[derive(Debug, Clone, Default)]
pub(super) struct VariantInfo {
    pub(super) name: &'static str,
    pub(super) width: Option<usize>,
    pub(super) parameters: usize,
    pub(super) bytes: usize,
    pub(super) flops: usize,
    pub(super) launches: usize,
    pub(super) launch: String,
}

/// The ratio of two times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    pub(super) value: f64,
    /// The 95 % interval; `None` for fewer than six trials.
    pub(super) interval: Option<(f64, f64)>,
}

impl Ratio {
    fn of(overhead: Overhead) -> Self {
        let ratio = |percent: f64| 1.0 + percent / 100.0;
        Self {
            value: ratio(overhead.percent),
            interval: overhead.interval.map(|(low, high)| (ratio(low), ratio(high))),
        }
    }

    fn from_row(value: Option<f64>, low: Option<f64>, high: Option<f64>) -> Option<Self> {
        Some(Self { value: value?, interval: low.zip(high) })
    }

    fn low(&self) -> Option<f64> {
        self.interval.map(|(low, _)| low)
    }

    fn high(&self) -> Option<f64> {
        self.interval.map(|(_, high)| high)
    }

    /// Whether the interval contains 1, so that neither is significantly slower.
    pub(super) fn is_insignificant(&self) -> bool {
        self.interval.is_some_and(|(low, high)| low <= 1.0 && high >= 1.0)
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.interval {
            Some((low, high)) if self.is_insignificant() => write!(f, "no difference ({low:.3} to {high:.3})"),
            Some((low, high)) => write!(f, "{:.3} ({low:.3} to {high:.3})", self.value),
            None => write!(f, "{:.3}", self.value),
        }
    }
}

impl Row {
    /// What [`super::overhead`] needs of the row.
    pub(super) fn cell(&self) -> Cell {
        let &Self { tokens, mode, variant, percent_over_base, .. } = self;
        Cell { tokens, mode: Some(mode), variant, percent_over_base }
    }

    pub(super) fn against_cublaslt(&self) -> Option<Ratio> {
        Ratio::from_row(self.over_cublaslt, self.over_cublaslt_low, self.over_cublaslt_high)
    }

    pub(super) fn against_sequential(&self) -> Option<Ratio> {
        Ratio::from_row(self.over_sequential, self.over_sequential_low, self.over_sequential_high)
    }
}

/// The rows of one case. `times` are microseconds a launch, `[variant and mode][trial]`.
pub(super) fn rows(case: &Case, infos: &[VariantInfo], times: &[Vec<f64>]) -> Vec<Row> {
    let of = |name: &str, mode: usize| {
        let at = infos.iter().position(|info| info.name == name)?;
        times.get(at * MODES.len() + mode)
    };
    let row = |(i, us): (usize, &Vec<f64>)| {
        let (info, mode) = (&infos[i / MODES.len()], i % MODES.len());
        let bases = [BASE, CUBLASLT, FROZEN_OURS, FROZEN].iter().filter_map(|name| of(name, mode));
        let faster_base = bases.min_by(|a, b| median(a).total_cmp(&median(b)));
        let base = faster_base.map_or(Overhead { percent: 0.0, interval: None }, |base| Overhead::of(us, base));
        let over = |name| of(name, mode).map(|other| Ratio::of(Overhead::of(us, other)));
        let (cublaslt, sequential) = (over(CUBLASLT).or_else(|| over(FROZEN)), over(SEQUENTIAL));
        Row {
            tokens: case.tokens,
            d_in: case.d_in,
            d_out: case.d_out,
            rank: case.rank,
            variant: info.name,
            width: info.width,
            parameters: info.parameters,
            mode: MODES[mode],
            median_us: median(us),
            fastest_us: us.iter().copied().fold(f64::INFINITY, f64::min),
            slowest_us: us.iter().copied().fold(0.0, f64::max),
            percent_over_base: base.percent,
            percent_low: base.low(),
            percent_high: base.high(),
            over_cublaslt: cublaslt.map(|ratio| ratio.value),
            over_cublaslt_low: cublaslt.and_then(|ratio| ratio.low()),
            over_cublaslt_high: cublaslt.and_then(|ratio| ratio.high()),
            over_sequential: sequential.map(|ratio| ratio.value),
            over_sequential_low: sequential.and_then(|ratio| ratio.low()),
            over_sequential_high: sequential.and_then(|ratio| ratio.high()),
            bytes: info.bytes,
            gigabytes_per_second: info.bytes as f64 / median(us) / 1e3,
            flops: info.flops,
            teraflops_per_second: info.flops as f64 / median(us) / 1e6,
            launches: info.launches,
            launch: info.launch.clone(),
        }
    };
    times.iter().enumerate().map(row).collect()
}

pub(super) fn print(rows: &[Row]) -> String {
    let header = [
        "layer",
        "tokens",
        "r",
        "variant",
        "|Θ|",
        "mode",
        "median µs",
        "over base",
        "95 % interval",
        "x cuBLASLt (95 %)",
        "x sequential (95 %)",
        "MB",
        "GB/s",
        "TFLOP/s",
    ];
    let ratio = |of: Option<Ratio>, is_itself: bool| match of {
        Some(ratio) if !is_itself => ratio.to_string(),
        _ => "-".into(),
    };
    let cells = rows.iter().map(|r| {
        let [over, interval] = Overhead::from_row(r.percent_over_base, r.percent_low, r.percent_high).cells();
        vec![
            format!("{} -> {}", r.d_in, r.d_out),
            r.tokens.to_string(),
            r.rank.to_string(),
            r.variant.into(),
            with_commas(r.parameters),
            r.mode.into(),
            format!("{:.2}", r.median_us),
            over,
            interval,
            ratio(r.against_cublaslt(), [CUBLASLT, FROZEN].contains(&r.variant)),
            ratio(r.against_sequential(), r.variant == SEQUENTIAL),
            format!("{:.2}", r.bytes as f64 / 1e6),
            format!("{:.0}", r.gigabytes_per_second),
            if r.flops == 0 { "-".into() } else { format!("{:.2}", r.teraflops_per_second) },
        ]
    });
    table(&header, cells)
}

#[cfg(test)]
mod tests {
    use fused_lora::lora::Layout;

    use super::*;
    use crate::bench::variant::FUSED;

    const CASE: Case = Case { tokens: 512, d_in: 4096, d_out: 1024, rank: 16, layout: Layout::OutIn };

    fn info(name: &'static str, adapted: bool) -> VariantInfo {
        let (bytes, flops) = (CASE.bytes::<half::bf16>(adapted), CASE.flops(adapted));
        VariantInfo { name, bytes, flops, launches: 96, ..VariantInfo::default() }
    }

    /// Nine trials that differ by less than one per cent.
    fn about(us: f64) -> Vec<f64> {
        (0..9).map(|i| us * (1.0 + f64::from(i * 4 % 9) * 1e-3)).collect()
    }

    #[test]
    fn a_row_knows_its_arithmetic_and_its_ratios_in_its_mode() {
        let infos = [info(BASE, false), info(FUSED, true), info(CUBLASLT, false), info(SEQUENTIAL, true)];
        let us = [21.0, 22.0, 20.0, 26.0];
        let times: Vec<_> = us.iter().flat_map(|&us| [about(us + 2.0), about(us)]).collect();
        let rows = rows(&CASE, &infos, &times);
        assert_eq!(rows.len(), 8);
        let fused = &rows[3];
        assert_eq!((fused.variant, fused.mode, fused.tokens, fused.rank), (FUSED, "graph", 512, 16));
        assert_eq!(fused.flops, 2 * 512 * (4096 * 1024 + 16 * (4096 + 1024)));
        assert!((fused.teraflops_per_second - fused.flops as f64 / fused.median_us * 1e-6).abs() < 1e-9);
        let close = |ratio: Option<Ratio>, value: f64| {
            let ratio = ratio.unwrap();
            let (low, high) = ratio.interval.unwrap();
            assert!((ratio.value - value).abs() < 1e-9 && low <= ratio.value, "{ratio:?}");
            assert!(ratio.value <= high && !ratio.is_insignificant(), "{ratio:?}");
        };
        close(fused.against_cublaslt(), 1.1);
        close(fused.against_sequential(), 22.0 / 26.0);
        close(rows[2].against_cublaslt(), 24.0 / 22.0);
        close(rows[7].against_cublaslt(), 1.3);
        assert!((fused.percent_over_base - 10.0).abs() < 1e-6);
        let table = print(&rows);
        assert!(table.contains("TFLOP/s") && table.contains("1.100 (") && table.contains("no difference"), "{table}");
    }

    #[test]
    fn without_cublaslt_there_are_no_ratios_to_it() {
        let rows = rows(&CASE, &[info(BASE, false), info(FUSED, true)], &[21.0, 21.0, 22.0, 22.0].map(about));
        assert!(rows.iter().all(|row| row.against_cublaslt().is_none() && row.against_sequential().is_none()));
        assert!(rows[2].percent_over_base > 4.0);
        assert!(print(&rows).contains(" - "));
    }

    #[test]
    fn one_trial_has_ratios_without_an_interval() {
        let infos = [info(BASE, false), info(FUSED, true), info(CUBLASLT, false), info(SEQUENTIAL, true)];
        let times: Vec<_> = [21.0, 21.0, 22.0, 22.0, 20.0, 20.0, 26.0, 26.0].map(|us| vec![us]).into();
        let rows = rows(&CASE, &infos, &times);
        let fused = &rows[3];
        assert_eq!((fused.percent_low, fused.percent_high), (None, None));
        assert_eq!(fused.against_cublaslt().unwrap().to_string(), "1.100");
        assert!(!print(&rows).contains(" to ") && !print(&rows).contains("no difference"), "{}", print(&rows));
    }
}
