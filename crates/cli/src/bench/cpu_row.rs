//! What was measured on the CPU: a line for each contestant.

use serde::Serialize;

use super::case::Case;
use super::overhead::Cell;
use crate::output::{grouped, table};
use crate::stats::{Excess, median};

#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) tokens: usize,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    /// Of LoRA; of a bottleneck adapter, that of the LoRA beside it.
    pub(super) rank: usize,
    /// base, fused, sequential, adapter-h, adapter-l, and those of the paper's size.
    pub(super) variant: &'static str,
    /// Hidden features of a bottleneck adapter.
    pub(super) width: Option<usize>,
    /// Trainable parameters, |Θ|.
    pub(super) parameters: usize,
    pub(super) median_us: f64,
    pub(super) percent_over_base: f64,
    /// Its 95 % interval; absent of a single trial, and of the base.
    pub(super) percent_low: Option<f64>,
    pub(super) percent_high: Option<f64>,
    /// That must move: every operand once.
    pub(super) bytes: usize,
    pub(super) gigabytes_per_second: f64,
    pub(super) gigaflops_per_second: f64,
    /// Of all weights, walked through in a round.
    pub(super) copies: usize,
}

/// What takes part, and what one call of it must move and compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) variant: &'static str,
    pub(super) width: Option<usize>,
    pub(super) parameters: usize,
    pub(super) bytes: usize,
    pub(super) flops: usize,
}

/// From milliseconds of a walk through all copies, `[entry][trial]`, the base first.
pub(super) fn rows(case: &Case, entries: &[Entry], times: &[Vec<f64>], copies: usize) -> Vec<Row> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let row = |(i, (entry, times_of)): (usize, (&Entry, &Vec<f64>))| {
        let excess = match i {
            0 => Excess { percent: 0.0, interval: None },
            _ => Excess::of(times_of, &times[0]),
        };
        let us = median(times_of) * 1e3 / copies as f64;
        Row {
            tokens,
            d_in,
            d_out,
            rank,
            variant: entry.variant,
            width: entry.width,
            parameters: entry.parameters,
            median_us: us,
            percent_over_base: excess.percent,
            percent_low: excess.low(),
            percent_high: excess.high(),
            bytes: entry.bytes,
            gigabytes_per_second: entry.bytes as f64 / us / 1e3,
            gigaflops_per_second: entry.flops as f64 / us / 1e3,
            copies,
        }
    };
    entries.iter().zip(times).enumerate().map(row).collect()
}

impl Row {
    /// What the summary at the end is made of.
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
            _ => Excess::from_row(r.percent_over_base, r.percent_low, r.percent_high).cells(),
        };
        vec![
            format!("{} -> {}", r.d_in, r.d_out),
            r.tokens.to_string(),
            r.rank.to_string(),
            r.variant.into(),
            grouped(r.parameters),
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
        let entry = |variant, bytes| Entry { variant, width: None, parameters: 0, bytes, flops: 2 * bytes };
        let entries = [entry("base", 8192), entry("fused", 9000)];
        // Ten copies a round: 20 µs and 25 µs a call.
        let rows_of = |trials: usize| rows(&case, &entries, &[vec![0.2; trials], vec![0.25; trials]], 10);
        let rows = rows_of(3);
        assert!((rows[0].median_us - 20.0).abs() < 1e-9 && (rows[1].percent_over_base - 25.0).abs() < 1e-9);
        assert!((rows[1].gigabytes_per_second - 0.36).abs() < 1e-9 && rows[1].copies == 10);
        assert!(rows[1].percent_low.is_some() && rows[0].percent_low.is_none());
        let once = rows_of(1);
        assert_eq!((once[1].percent_low, once[1].percent_high), (None, None));
        let text = print(&once);
        assert!(text.contains("+25.0 % |             - |") && !text.contains(" to "), "{text}");
    }
}
