//! Device time of work that walks through copies of its operands, so that each launch finds the caches cold.

use std::cell::RefCell;

use anyhow::Result;
use fused_lora::device::{Device, Event, Graph, Stream};

/// Launches of a round at least: an event is good to half a microsecond, and a graph takes some microseconds to start,
/// which is to be little of each launch's share.
const LAUNCHES: usize = 96;

/// A contestant: what it issues for one copy.
pub(super) type Issue<'a> = Box<dyn Fn(&Stream, usize) -> fused_lora::Result<()> + 'a>;

/// One contestant, issued launch by launch and replayed from a graph.
pub(super) struct Rotation<'a> {
    issue: Issue<'a>,
    launches: usize,
    copies: usize,
    graph: RefCell<Option<Graph>>,
}

impl<'a> Rotation<'a> {
    pub(super) fn new(copies: usize, issue: Issue<'a>) -> Self {
        Self { issue, launches: copies * LAUNCHES.div_ceil(copies), copies, graph: RefCell::default() }
    }

    fn round(&self, stream: &Stream) -> fused_lora::Result<()> {
        (0..self.launches).try_for_each(|launch| (self.issue)(stream, launch % self.copies))
    }

    /// Microseconds of a launch, over a round of them.
    pub(super) fn time(&self, device: &Device, stream: &Stream, replayed: bool) -> Result<f64> {
        let (start, end) = (Event::new(device)?, Event::new(device)?);
        if replayed {
            let mut graph = self.graph.borrow_mut();
            if graph.is_none() {
                *graph = Some(Graph::capture(stream, |stream| self.round(stream))?);
            }
            start.record(stream)?;
            if let Some(graph) = &*graph {
                graph.replay(stream)?;
            }
        } else {
            start.record(stream)?;
            self.round(stream)?;
        }
        end.record(stream)?;
        Ok(f64::from(start.milliseconds_to(&end)?) * 1e3 / self.launches as f64)
    }
}
