//! Which of the project's performance goals the measured rows meet.

use serde::Serialize;

use super::row::{Ratio, Row};
use super::variant::{BASE, FUSED};

/// An upper bound on a ratio of times, for every cell (layer, tokens, rank and mode) that it applies to.
struct Goal {
    description: &'static str,
    variant: &'static str,
    applies: fn(&Row) -> bool,
    ratio: fn(&Row) -> Option<Ratio>,
    limit: f64,
    /// Products with W0 that the base computes: one in a forward call, two in a training pass.
    products: usize,
}

/// The goals of forward calls.
const FORWARD: [Goal; 3] = [
    Goal {
        description: "fused takes at most 1.03 x the time of cuBLASLt's base product",
        variant: FUSED,
        applies: |_| true,
        ratio: Row::against_cublaslt,
        limit: 1.03,
        products: 1,
    },
    Goal {
        description: "our base product runs at 0.97 x cuBLASLt's speed at least, 4096 tokens, 4096 -> 4096",
        variant: BASE,
        applies: |row| [row.tokens, row.d_in, row.d_out] == [4096; 3],
        ratio: Row::against_cublaslt,
        limit: 1.0 / 0.97,
        products: 1,
    },
    Goal {
        description: "fused is never slower than sequential",
        variant: FUSED,
        applies: |_| true,
        ratio: Row::against_sequential,
        limit: 1.0,
        products: 1,
    },
];

/// The goals of training passes.
const BACKWARD: [Goal; 2] = [
    Goal {
        description: "fused takes at most 1.10 x the time of frozen, 8192 tokens, 4096 -> 4096, r 16",
        variant: FUSED,
        applies: |row| [row.tokens, row.d_in, row.d_out, row.rank] == [8192, 4096, 4096, 16],
        ratio: Row::against_cublaslt,
        limit: 1.10,
        products: 2,
    },
    Goal {
        description: "fused is never slower than sequential",
        variant: FUSED,
        applies: |_| true,
        ratio: Row::against_sequential,
        limit: 1.0,
        products: 2,
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// No cell's interval lies entirely beyond the limit.
    Met,
    NotMet,
    /// No cell with more than one trial was measured.
    NotMeasured,
}

/// A cell whose interval lies beyond the limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Miss {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    rank: usize,
    mode: &'static str,
    ratio: f64,
    low: f64,
    high: f64,
    /// The ratio of its operations to those of the base, below which its time can hardly be.
    flops_over_base: f64,
}

/// The result for one goal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Verdict {
    goal: &'static str,
    outcome: Outcome,
    limit: f64,
    cells: usize,
    /// Cells whose interval lies below the limit.
    within: usize,
    /// Cells whose interval contains the limit.
    no_difference: usize,
    /// The largest ratio.
    worst: Option<f64>,
    missed: Vec<Miss>,
}

/// The verdicts on all goals of forward calls or, with `backward`, of training passes.
pub(super) fn verdicts(rows: &[Row], backward: bool) -> Vec<Verdict> {
    let goals = if backward { &BACKWARD[..] } else { &FORWARD };
    goals.iter().map(|goal| goal.verdict(rows)).collect()
}

impl Goal {
    fn verdict(&self, rows: &[Row]) -> Verdict {
        let about = rows.iter().filter(|row| row.variant == self.variant && (self.applies)(row));
        let cells: Vec<_> = about
            .filter_map(|row| {
                let ratio = (self.ratio)(row)?;
                Some((row, ratio.value, ratio.interval?))
            })
            .collect();
        let count =
            |holds: &dyn Fn(f64, f64) -> bool| cells.iter().filter(|(.., (low, high))| holds(*low, *high)).count();
        let missed: Vec<_> = cells.iter().filter(|(.., (low, _))| *low > self.limit).collect();
        Verdict {
            goal: self.description,
            outcome: match (cells.is_empty(), missed.is_empty()) {
                (true, _) => Outcome::NotMeasured,
                (_, true) => Outcome::Met,
                _ => Outcome::NotMet,
            },
            limit: self.limit,
            cells: cells.len(),
            within: count(&|_, high| high < self.limit),
            no_difference: count(&|low, high| low <= self.limit && high >= self.limit),
            worst: cells.iter().map(|(_, ratio, _)| *ratio).max_by(f64::total_cmp),
            missed: missed
                .into_iter()
                .map(|&(row, ratio, interval)| Miss::new(row, ratio, interval, self.products))
                .collect(),
        }
    }
}

impl Miss {
    fn new(row: &Row, ratio: f64, (low, high): (f64, f64), products: usize) -> Self {
        let &Row { tokens, d_in, d_out, rank, mode, flops, .. } = row;
        let flops_over_base = flops as f64 / (2 * products * tokens * d_in * d_out) as f64;
        Self { tokens, d_in, d_out, rank, mode, ratio, low, high, flops_over_base }
    }
}

impl std::fmt::Display for Miss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tokens, d_in, d_out, rank, mode, ratio, low, high, flops_over_base } = self;
        write!(f, "{d_in} -> {d_out}, {tokens} tokens, r {rank}, {mode}: {ratio:.3} x ({low:.3} to {high:.3})")?;
        match flops_over_base {
            ratio if *ratio > 1.0 => write!(f, ", with {ratio:.3} x the arithmetic of the base"),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { goal, outcome, limit, cells, within, no_difference, worst, missed } = self;
        let word = match outcome {
            Outcome::Met => "met",
            Outcome::NotMet => "NOT met",
            Outcome::NotMeasured => return write!(f, "{goal}: not measured"),
        };
        write!(f, "{goal}: {word}. Of {cells} cells {within} within {limit:.3} x")?;
        write!(f, ", {no_difference} no difference from it, {} beyond", missed.len())?;
        if let Some(worst) = worst {
            write!(f, "; at worst {worst:.3} x")?;
        }
        missed.iter().try_for_each(|miss| write!(f, "\n    {miss}"))
    }
}

/// The verdicts, one a line.
pub(super) fn print(verdicts: &[Verdict]) -> String {
    let lines: String = verdicts.iter().map(|verdict| format!("- {verdict}\n")).collect();
    format!("\nGoals, by ratios of times (in the same mode; 95 % intervals):\n{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::variant::CUBLASLT;

    const NONE: Option<[f64; 3]> = None;

    fn row(
        variant: &'static str,
        [tokens, d_in, d_out]: [usize; 3],
        cublaslt: Option<[f64; 3]>,
        sequential: Option<[f64; 3]>,
    ) -> Row {
        let (rank, part) = (64, |of: Option<[f64; 3]>, i: usize| of.map(|ratio| ratio[i]));
        Row {
            tokens,
            d_in,
            d_out,
            rank,
            variant,
            mode: "graph",
            over_cublaslt: part(cublaslt, 0),
            over_cublaslt_low: part(cublaslt, 1),
            over_cublaslt_high: part(cublaslt, 2),
            over_sequential: part(sequential, 0),
            over_sequential_low: part(sequential, 1),
            over_sequential_high: part(sequential, 2),
            flops: 2 * tokens * (d_in * d_out + if variant == FUSED { rank * (d_in + d_out) } else { 0 }),
            ..Row::default()
        }
    }

    fn outcomes(rows: &[Row]) -> Vec<Outcome> {
        verdicts(rows, false).iter().map(|verdict| verdict.outcome).collect()
    }

    #[test]
    fn all_goals_are_met_within_their_limits() {
        let large = [4096; 3];
        let rows = [
            row(BASE, large, Some([1.02, 1.01, 1.025]), Some([0.9, 0.89, 0.91])),
            row(FUSED, large, Some([1.02, 1.01, 1.025]), Some([0.95, 0.94, 0.96])),
            // No other variant and no other shape of the base counts.
            row(BASE, [128, 1024, 3072], Some([1.5, 1.4, 1.6]), Some([2.0, 1.9, 2.1])),
            row(CUBLASLT, large, Some([1.0; 3]), Some([2.0, 1.9, 2.1])),
        ];
        assert_eq!(outcomes(&rows), [Outcome::Met; 3]);
        let verdicts = verdicts(&rows, false);
        assert!(verdicts.iter().all(|verdict| verdict.cells == 1 && verdict.within == 1 && verdict.missed.is_empty()));
        assert!(print(&verdicts).contains("met. Of 1 cells 1 within 1.030 x, 0 no difference from it, 0 beyond"));
    }

    #[test]
    fn a_limit_inside_the_interval_is_met() {
        let rows = [
            row(FUSED, [128, 1024, 3072], Some([1.04, 1.02, 1.06]), Some([1.01, 0.99, 1.03])),
            row(FUSED, [512, 1024, 3072], Some([1.02, 1.00, 1.04]), Some([0.99, 0.97, 1.01])),
        ];
        let verdicts = verdicts(&rows, false);
        assert_eq!(outcomes(&rows), [Outcome::Met, Outcome::NotMeasured, Outcome::Met]);
        assert_eq!((verdicts[0].within, verdicts[0].no_difference, verdicts[0].worst), (0, 2, Some(1.04)));
        assert_eq!((verdicts[2].within, verdicts[2].no_difference), (0, 2));
    }

    #[test]
    fn only_cells_beyond_the_limit_are_listed() {
        let rows = [
            row(FUSED, [128, 1024, 3072], Some([1.2, 1.18, 1.22]), Some([1.05, 1.04, 1.06])),
            row(FUSED, [512, 1024, 3072], Some([1.01, 1.0, 1.02]), Some([0.9, 0.89, 0.91])),
            row(BASE, [4096; 3], Some([1.10, 1.08, 1.12]), NONE),
        ];
        assert_eq!(outcomes(&rows), [Outcome::NotMet; 3]);
        let text = print(&verdicts(&rows, false));
        let cell = "1024 -> 3072, 128 tokens, r 64, graph: ";
        assert!(text.contains(&format!("{cell}1.200 x (1.180 to 1.220), with 1.083 x the arithmetic of the base\n")));
        assert!(text.contains(&format!("{cell}1.050 x")) && !text.contains("512 tokens"), "{text}");
        assert!(text.contains("4096 -> 4096, 4096 tokens, r 64, graph: 1.100 x (1.080 to 1.120)\n"), "{text}");
    }

    #[test]
    fn a_single_trial_counts_as_not_measured() {
        let mut once = row(FUSED, [4096; 3], Some([1.2, 1.2, 1.2]), Some([1.1, 1.1, 1.1]));
        (once.over_cublaslt_low, once.over_cublaslt_high) = (None, None);
        (once.over_sequential_low, once.over_sequential_high) = (None, None);
        assert_eq!(outcomes(&[once]), [Outcome::NotMeasured; 3]);
    }

    #[test]
    fn nothing_is_claimed_without_a_measurement() {
        let text = print(&verdicts(&[row(FUSED, [1, 1024, 1024], NONE, NONE)], false));
        assert_eq!(text.matches("not measured").count(), 3, "{text}");
    }

    #[test]
    fn a_training_pass_has_goals_of_its_own() {
        let passes = |row: Row| Row { rank: 16, flops: 2 * row.flops, ..row };
        let large = [8192, 4096, 4096];
        let kept = passes(row(FUSED, large, Some([1.09, 1.08, 1.095]), Some([0.9, 0.89, 0.91])));
        assert!(verdicts(std::slice::from_ref(&kept), true).iter().all(|goal| goal.outcome == Outcome::Met));
        let missed = passes(row(FUSED, large, Some([1.2, 1.19, 1.21]), NONE));
        // Only the one shape and rank counts against frozen.
        let others = [Row { rank: 64, ..missed.clone() }, Row { tokens: 512, ..missed.clone() }];
        assert_eq!(verdicts(&others, true)[0].outcome, Outcome::NotMeasured);
        let verdicts = verdicts(&[missed], true);
        assert_eq!([verdicts[0].outcome, verdicts[1].outcome], [Outcome::NotMet, Outcome::NotMeasured]);
        assert!(print(&verdicts).contains("1.200 x (1.190 to 1.210), with 1.031 x the arithmetic of the base"));
    }
}
