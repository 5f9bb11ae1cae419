//! The results on the CPU: one row for each variant.

use serde::Serialize;

use super::case::Case;
use super::overhead::Cell;
use crate::output::{table, with_commas};
use crate::stats::{Overhead, median};

#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) tokens: usize,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    /// The rank of LoRA; for a bottleneck adapter, the rank of the LoRA that it is compared with.
    pub(super) rank: usize,
    /// base, fused, sequential, adapter-h, adapter-l, or one of the latter two with the paper's width.
    pub(super) variant: &'static str,
    /// Hidden features of a bottleneck adapter.
    pub(super) width: Option<usize>,
    /// Trainable parameters, |Θ|.
    pub(super) parameters: usize,
    pub(super) median_us: f64,
    pub(super) percent_over_base: f64,
    /// The 95 % interval; absent for fewer than six trials and for the base.
    pub(super) percent_low: Option<f64>,
    pub(super) percent_high: Option<f64>,
    /// Bytes that must move at least: every operand once.
    pub(super) bytes: usize,
    pub(super) gigabytes_per_second: f64,
    pub(super) gigaflops_per_second: f64,
    /// Copies of the weights; a round goes through all of them.
    pub(super) copies: usize,
}

/// A variant, and the bytes and operations that one call of it needs at least.
#[derive(Debug, Clone, Copy)]
pub(super) struct VariantInfo {
    pub(super) variant: &'static str,
    pub(super) width: Option<usize>,
    pub(super) parameters: usize,
    pub(super) bytes: usize,
    pub(super) flops: usize,
}

/// The rows of a case. `times` are milliseconds of a round through all copies, `[variant][trial]`; the first variant is
/// the base.
pub(super) fn rows(case: &Case, infos: &[VariantInfo], times: &[Vec<f64>], copies: usize) -> Vec<Row> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let row = |(i, (info, times_of)): (usize, (&VariantInfo, &Vec<f64>))| {
        let overhead = match i {
            0 => Overhead { percent: 0.0, interval: None },
            _ => Overhead::of(times_of, &times[0]),
        };
        let us = median(times_of) * 1e3 / copies as f64;
        Row {
            tokens,
            d_in,
            d_out,
            rank,
            variant: info.variant,
            width: info.width,
            parameters: info.parameters,
            median_us: us,
            percent_over_base: overhead.percent,
            percent_low: overhead.low(),
            percent_high: overhead.high(),
            bytes: info.bytes,
            gigabytes_per_second: info.bytes as f64 / us / 1e3,
            gigaflops_per_second: info.flops as f64 / us / 1e3,
            copies,
        }
    };
    infos.iter().zip(times).enumerate().map(row).collect()
}

impl Row {
    /// What [`super::overhead`] needs of the row.
    pub(super) fn cell(&self) -> Cell {
        let &Self { tokens, variant, percent_over_base, .. } = self;
        Cell { tokens, mode: None, variant, percent_over_base }
    }
}

pub(super) fn print(rows: &[Row]) -> String {
    let header =
        ["layer", "tokens", "r", "variant", "|Θ|", "median µs", "over base", "95 % interval", "MB", "GB/s", "GFLOP/s"];
    let cells = rows.iter().map(|r| {
        let [over, interval] = match r.variant {
            "base" => ["-".into(), "-".into()],
            _ => Overhead::from_row(r.percent_over_base, r.percent_low, r.percent_high).cells(),
        };
        vec![
            format!("{} -> {}", r.d_in, r.d_out),
            r.tokens.to_string(),
            r.rank.to_string(),
            r.variant.into(),
            with_commas(r.parameters),
            if r.median_us < 10.0 { format!("{:.2}", r.median_us) } else { format!("{:.1}", r.median_us) },
            over,
            interval,
            format!("{:.2}", r.bytes as f64 / 1e6),
            format!("{:.1}", r.gigabytes_per_second),
            format!("{:.1}", r.gigaflops_per_second),
        ]
    });
    table(&header, cells)
}

#[cfg(test)]
mod tests {
    use fused_lora::lora::Layout;

    use super::*;

    #[test]
    fn rows_are_compared_with_the_first_and_one_trial_has_no_interval() {
        let case = Case { tokens: 2, d_in: 64, d_out: 32, rank: 4, layout: Layout::InOut };
        let info = |variant, bytes| VariantInfo { variant, width: None, parameters: 0, bytes, flops: 2 * bytes };
        let infos = [info("base", 8192), info("fused", 9000)];
        // Ten copies a round: 20 µs and 25 µs a call.
        let rows_of = |trials: usize| rows(&case, &infos, &[vec![0.2; trials], vec![0.25; trials]], 10);
        let rows = rows_of(6);
        assert!((rows[0].median_us - 20.0).abs() < 1e-9 && (rows[1].percent_over_base - 25.0).abs() < 1e-9);
        assert!((rows[1].gigabytes_per_second - 0.36).abs() < 1e-9 && rows[1].copies == 10);
        assert!(rows[1].percent_low.is_some() && rows[0].percent_low.is_none());
        let once = rows_of(1);
        assert_eq!((once[1].percent_low, once[1].percent_high), (None, None));
        let text = print(&once);
        assert!(text.contains("+25.0 % |             - |") && !text.contains(" to "), "{text}");
    }
}
