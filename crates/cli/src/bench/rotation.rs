//! Device time of work that walks through copies of its operands, so that each launch finds the caches cold.

use std::cell::{Cell, RefCell};

use anyhow::Result;
use fused_lora::device::{Device, Event, Graph, Stream};

/// What is touched between two uses of one copy of a weight is together so many times the L2 cache.
pub(super) const COLD: usize = 3;

/// Launches of a round at most: an event is good to half a microsecond, and a graph takes some microseconds to start, which
/// is to be little of each launch's share.
const LAUNCHES: usize = 96;
/// Fewer launches do where they take so long together.
const ROUND_US: f64 = 10_000.0;

/// Launches of `us` microseconds each that fill a round: all copies equally often.
pub(super) fn launches(copies: usize, us: f64, round_us: f64) -> usize {
    let wanted = (round_us / us).ceil().clamp(1.0, LAUNCHES as f64) as usize;
    copies * wanted.div_ceil(copies)
}

/// Microseconds that the device takes from before `work` to after it.
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

/// A contestant: what it issues for one copy.
pub(super) type Issue<'a> = Box<dyn Fn(&Stream, usize) -> fused_lora::Result<()> + 'a>;

/// One contestant, issued launch by launch and replayed from a graph.
pub(super) struct Rotation<'a> {
    issue: Issue<'a>,
    copies: usize,
    /// Of a round; unknown before the first.
    launches: Cell<Option<usize>>,
    graph: RefCell<Option<Graph>>,
}

impl<'a> Rotation<'a> {
    pub(super) fn new(copies: usize, issue: Issue<'a>) -> Self {
        Self { issue, copies, launches: Cell::default(), graph: RefCell::default() }
    }

    /// Launches of a round, from how long the first ones take.
    pub(super) fn launches(&self, device: &Device, stream: &Stream) -> Result<usize> {
        if let Some(launches) = self.launches.get() {
            return Ok(launches);
        }
        // The very first launch loads the kernel.
        self.issue_all(stream, self.copies)?;
        let us = timed(device, stream, || self.issue_all(stream, self.copies))? / self.copies as f64;
        let launches = launches(self.copies, us, ROUND_US);
        self.launches.set(Some(launches));
        Ok(launches)
    }

    fn issue_all(&self, stream: &Stream, launches: usize) -> fused_lora::Result<()> {
        (0..launches).try_for_each(|launch| (self.issue)(stream, launch % self.copies))
    }

    /// Microseconds of a launch, over a round of them.
    pub(super) fn time(&self, device: &Device, stream: &Stream, replayed: bool) -> Result<f64> {
        let launches = self.launches(device, stream)?;
        let us = if replayed {
            let mut graph = self.graph.borrow_mut();
            let graph = match &mut *graph {
                Some(graph) => graph,
                none => none.insert(Graph::capture(stream, |stream| self.issue_all(stream, launches))?),
            };
            timed(device, stream, || graph.replay(stream))?
        } else {
            timed(device, stream, || self.issue_all(stream, launches))?
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
        // A clock that saw nothing asks for no infinite round.
        assert_eq!(launches(2, 0.0, ROUND_US), 96);
    }
}
