//! Times several variants in interleaved trials.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

/// How many trials to run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trials {
    /// This many.
    Count(usize),
    /// As many as fit into a time, within bounds.
    Within(Duration),
}

/// Bounds on the number of trials if a time is given: enough for an interval, and as many as in the paper.
const MIN_TRIALS: usize = 3;
const MAX_TRIALS: usize = 100;

/// Runs every variant once untimed, then in rounds, each of which starts with another variant. Returns milliseconds,
/// `[variant][trial]`.
pub(crate) fn interleave<E>(
    variants: usize,
    trials: Trials,
    bar: &ProgressBar,
    mut run: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Vec<f64>>, E> {
    interleave_timed(variants, trials, bar, |variant| {
        let start = Instant::now();
        run(variant)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })
}

/// As [`interleave`], for variants that return their own time, in any unit.
pub(crate) fn interleave_timed<E>(
    variants: usize,
    trials: Trials,
    bar: &ProgressBar,
    mut run: impl FnMut(usize) -> Result<f64, E>,
) -> Result<Vec<Vec<f64>>, E> {
    let warm_up = Instant::now();
    for variant in 0..variants {
        run(variant)?;
        bar.inc(1);
    }
    let trials = match trials {
        Trials::Count(count) => count,
        Trials::Within(time) => {
            let rounds = time.as_secs_f64() / warm_up.elapsed().as_secs_f64().max(1e-9);
            ((rounds - 1.0).max(0.0) as usize).clamp(MIN_TRIALS, MAX_TRIALS)
        }
    };
    bar.set_length((variants * (trials + 1)) as u64);
    let mut times = vec![Vec::with_capacity(trials); variants];
    for trial in 0..trials {
        for i in 0..variants {
            // The order rotates, because the caches depend on which variant ran before.
            let variant = (i + trial) % variants;
            times[variant].push(run(variant)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_runs_equally_often_and_the_first_changes() {
        let mut order = vec![];
        let times = interleave(3, Trials::Count(3), &ProgressBar::hidden(), |i| {
            order.push(i);
            Ok::<_, ()>(())
        });
        assert!(times.unwrap().iter().all(|t| t.len() == 3));
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1]);
    }

    #[test]
    fn little_time_still_gives_a_few_trials() {
        let times = interleave(1, Trials::Within(Duration::ZERO), &ProgressBar::hidden(), |_| Ok::<_, ()>(()));
        assert_eq!(times.unwrap()[0].len(), MIN_TRIALS);
    }
}
