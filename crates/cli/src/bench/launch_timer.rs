//! Times launches on a device. They go through copies of their operands in turn, so that each finds the caches cold.

use std::cell::{Cell, RefCell};

use anyhow::Result;
use fused_lora::device::{Device, Event, Graph, Stream};

/// Between two uses of a copy of a weight, launches access this many times the size of the L2 cache.
pub(super) const L2_MULTIPLE: usize = 3;

/// The launches of a round, if they are short. Events resolve half a microsecond, and a graph takes some microseconds
/// to start: divided by the launches of a round, both must be small.
const MAX_LAUNCHES: usize = 96;
/// Microseconds of a round from which fewer launches are enough.
const ROUND_US: f64 = 10_000.0;

/// How many launches of `us` microseconds make a round; a multiple of `copies`.
pub(super) fn launches(copies: usize, us: f64, round_us: f64) -> usize {
    let wanted = (round_us / us).ceil().clamp(1.0, MAX_LAUNCHES as f64) as usize;
    copies * wanted.div_ceil(copies)
}

/// Microseconds that the device takes for what `work` issues.
pub(super) fn timed(
    device: &Device,
    stream: &Stream,
    work: impl FnOnce() -> fused_lora::Result<()>,
) -> fused_lora::Result<f64> {
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    start.record(stream)?;
    work()?;
    end.record(stream)?;
    Ok(f64::from(start.milliseconds_to(&end)?) * 1e3)
}

/// Issues the launches of a variant for one copy of the operands.
pub(super) type IssueFn<'a> = Box<dyn Fn(&Stream, usize) -> fused_lora::Result<()> + 'a>;

/// Times the launches of one variant, issued one by one or replayed from a graph.
pub(super) struct LaunchTimer<'a> {
    issue: IssueFn<'a>,
    copies: usize,
    /// Launches of a round; `None` before the first measurement.
    launches: Cell<Option<usize>>,
    graph: RefCell<Option<Graph>>,
}

impl<'a> LaunchTimer<'a> {
    pub(super) fn new(copies: usize, issue: IssueFn<'a>) -> Self {
        Self { issue, copies, launches: Cell::default(), graph: RefCell::default() }
    }

    /// The launches of a round, from a measurement at the first call.
    pub(super) fn launches(&self, device: &Device, stream: &Stream) -> Result<usize> {
        if let Some(launches) = self.launches.get() {
            return Ok(launches);
        }
        // The very first launch loads the kernel.
        self.issue_round(stream, self.copies)?;
        let us = timed(device, stream, || self.issue_round(stream, self.copies))? / self.copies as f64;
        let launches = launches(self.copies, us, ROUND_US);
        self.launches.set(Some(launches));
        Ok(launches)
    }

    fn issue_round(&self, stream: &Stream, launches: usize) -> fused_lora::Result<()> {
        (0..launches).try_for_each(|launch| (self.issue)(stream, launch % self.copies))
    }

    /// Microseconds a launch, averaged over a round.
    pub(super) fn time(&self, device: &Device, stream: &Stream, replayed: bool) -> Result<f64> {
        let launches = self.launches(device, stream)?;
        let us = if replayed {
            let mut graph = self.graph.borrow_mut();
            let graph = match &mut *graph {
                Some(graph) => graph,
                none => none.insert(Graph::capture(stream, |stream| self.issue_round(stream, launches))?),
            };
            timed(device, stream, || graph.replay(stream))?
        } else {
            timed(device, stream, || self.issue_round(stream, launches))?
        };
        Ok(us / launches as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_bounded_by_launches_and_by_time() {
        assert_eq!(launches(5, 8.0, ROUND_US), 100);
        assert_eq!(launches(75, 3.0, ROUND_US), 150);
        assert_eq!(launches(2, 200.0, ROUND_US), 50);
        assert_eq!(launches(2, 3000.0, ROUND_US), 4);
        assert_eq!(launches(2, 1e6, ROUND_US), 2);
        // A measured time of 0 does not make a round infinite.
        assert_eq!(launches(2, 0.0, ROUND_US), 96);
    }
}
