//! Timing methods against each other: interleaved, trial by trial.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

/// How many trials to run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trials {
    /// So many.
    Count(usize),
    /// As many as fit, within bounds.
    Within(Duration),
}

/// Bounds where a time is given: enough to tell noise, and the paper's own number.
const FEWEST: usize = 3;
const MOST: usize = 100;

/// Runs every contestant once untimed, then so many rounds of all of them, each round starting with another one.
/// Returns milliseconds, `[contestant][trial]`.
pub(crate) fn interleave<E>(
    contestants: usize,
    trials: Trials,
    bar: &ProgressBar,
    mut run: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Vec<f64>>, E> {
    interleave_timed(contestants, trials, bar, |contestant| {
        let start = Instant::now();
        run(contestant)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })
}

/// As [`interleave`], of contestants that know their own time, in whatever unit.
pub(crate) fn interleave_timed<E>(
    contestants: usize,
    trials: Trials,
    bar: &ProgressBar,
    mut run: impl FnMut(usize) -> Result<f64, E>,
) -> Result<Vec<Vec<f64>>, E> {
    let warm_up = Instant::now();
    for contestant in 0..contestants {
        run(contestant)?;
        bar.inc(1);
    }
    let trials = match trials {
        Trials::Count(count) => count,
        Trials::Within(time) => {
            let rounds = time.as_secs_f64() / warm_up.elapsed().as_secs_f64().max(1e-9);
            ((rounds - 1.0).max(0.0) as usize).clamp(FEWEST, MOST)
        }
    };
    bar.set_length((contestants * (trials + 1)) as u64);
    let mut times = vec![Vec::with_capacity(trials); contestants];
    for trial in 0..trials {
        for i in 0..contestants {
            // Whoever follows a slow method finds other things in the caches, so the order moves on.
            let contestant = (i + trial) % contestants;
            times[contestant].push(run(contestant)?);
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
    fn everyone_runs_equally_often_and_nobody_always_first() {
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
        assert_eq!(times.unwrap()[0].len(), FEWEST);
    }
}
