//! The emulator's state of streams, events and graphs: the order of operations and the rules of stream capture, without a
//! GPU.
//!
//! Every stream has a vector clock: the number of operations of each stream that it is ordered after. So has the host,
//! from the operations that it has waited for; what is issued later inherits its clock.
//!
//! A capture begins on one stream. Another stream joins the capture by waiting for one of its events, and the first
//! stream must wait for the other in turn before the capture ends. Within a capture the streams have clocks of their
//! own. A replay is one operation of the stream that it is issued to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use fused_lora_emulator::{Clock, Place};

use crate::device::backend::Handle;
use crate::device::launch::config::LaunchConfig;
use crate::error::{Error, Result};

/// Work that can be captured.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Fill { address: u64, byte: u8, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
    Launch { kernel: Handle, config: LaunchConfig, params: Vec<u8> },
}

/// An operation of a graph, and its place in the capture.
#[derive(Debug, Clone)]
pub(crate) struct Captured {
    pub(crate) operation: Operation,
    pub(crate) place: Place,
}

#[derive(Debug)]
struct Capture {
    origin: Handle,
    /// The operations in the order in which they were issued, which satisfies all waits.
    operations: Vec<Captured>,
    clocks: HashMap<Handle, Clock>,
}

#[derive(Debug, Clone)]
enum Recorded {
    At { time: Instant, clock: Clock },
    InCapture { id: usize, clock: Clock },
}

/// The state of all streams of one machine.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// The handle given out last. Handles are never reused, and 0 is the default stream.
    last_handle: usize,
    captures: BTreeMap<usize, Capture>,
    clocks: HashMap<Handle, Clock>,
    host: Clock,
    events: HashMap<Handle, Recorded>,
    graphs: HashMap<Handle, Arc<[Captured]>>,
}

fn refused(operation: &'static str, reason: &str) -> Error {
    Error::CaptureRefused { operation, reason: reason.to_owned() }
}

impl Streams {
    pub(crate) fn new_handle(&mut self) -> Handle {
        self.last_handle += 1;
        Handle(self.last_handle)
    }

    pub(crate) fn capture_of(&self, stream: Handle) -> Option<usize> {
        self.captures.iter().find(|(_, capture)| capture.clocks.contains_key(&stream)).map(|(id, _)| *id)
    }

    pub(crate) fn is_capturing(&self, stream: Handle) -> bool {
        self.capture_of(stream).is_some()
    }

    /// Adds an operation to the stream's capture, or returns it if the stream is not being captured.
    pub(crate) fn capture(&mut self, stream: Handle, operation: Operation) -> Option<Operation> {
        let Some(capture) = self.capture_of(stream).and_then(|id| self.captures.get_mut(&id)) else {
            return Some(operation);
        };
        let clock = capture.clocks.entry(stream).or_default();
        clock.tick(stream.0);
        capture.operations.push(Captured { operation, place: Place::new(stream.0, clock) });
        None
    }

    /// The clock of a stream that is not being captured.
    fn clock(&mut self, stream: Handle) -> &mut Clock {
        let clock = self.clocks.entry(stream).or_default();
        clock.merge(&self.host);
        clock
    }

    /// Counts one more operation of a stream that is not being captured, and returns its place.
    pub(crate) fn tick(&mut self, stream: Handle) -> Place {
        let clock = self.clock(stream);
        clock.tick(stream.0);
        Place::new(stream.0, clock)
    }

    /// The host has waited for a stream.
    pub(crate) fn host_awaits(&mut self, stream: Handle) {
        if let Some(clock) = self.clocks.get(&stream) {
            self.host.merge(clock);
        }
    }

    /// The host has waited for an event.
    pub(crate) fn host_awaits_event(&mut self, event: Handle) {
        if let Some(Recorded::At { clock, .. }) = self.events.get(&event) {
            self.host.merge(clock);
        }
    }

    pub(crate) fn forget_stream(&mut self, stream: Handle) {
        self.abandon(stream);
        self.clocks.remove(&stream);
    }

    pub(crate) fn begin(&mut self, stream: Handle) {
        let id = self.new_handle().0;
        let clocks = HashMap::from([(stream, Clock::default())]);
        self.captures.insert(id, Capture { origin: stream, operations: vec![], clocks });
    }

    /// Ends the stream's capture, also if it fails.
    pub(crate) fn end(&mut self, stream: Handle) -> Result<Handle> {
        let id =
            self.capture_of(stream).ok_or_else(|| refused("ending a capture", "the stream is not being captured"))?;
        let capture = self.captures.remove(&id).ok_or_else(|| refused("ending a capture", "it has ended"))?;
        if capture.origin != stream {
            return Err(refused("ending a capture", "it began on another stream"));
        }
        let known = &capture.clocks[&stream];
        let joined = |(other, clock): (&Handle, &Clock)| known.count(other.0) >= clock.count(other.0);
        if !capture.clocks.iter().all(joined) {
            return Err(refused("ending a capture", "a stream that joined it has not been waited for"));
        }
        let graph = self.new_handle();
        self.graphs.insert(graph, capture.operations.into());
        Ok(graph)
    }

    pub(crate) fn abandon(&mut self, stream: Handle) {
        if let Some(id) = self.capture_of(stream) {
            self.captures.remove(&id);
        }
    }

    pub(crate) fn record(&mut self, event: Handle, stream: Handle) {
        let recorded = match self.capture_of(stream) {
            Some(id) => Recorded::InCapture { id, clock: self.captures[&id].clocks[&stream].clone() },
            None => Recorded::At { time: Instant::now(), clock: self.clock(stream).clone() },
        };
        self.events.insert(event, recorded);
    }

    pub(crate) fn wait(&mut self, stream: Handle, event: Handle) -> Result<()> {
        let own = self.capture_of(stream);
        match self.events.get(&event) {
            Some(Recorded::InCapture { id, clock }) if own.is_none_or(|own| own == *id) => {
                let Some(capture) = self.captures.get_mut(id) else {
                    return Err(refused("waiting for an event", "its capture has ended"));
                };
                capture.clocks.entry(stream).or_default().merge(clock);
                Ok(())
            }
            Some(Recorded::InCapture { .. }) => Err(refused("waiting for an event", "it belongs to another capture")),
            _ if own.is_some() => Err(refused("waiting for an event", "it was recorded outside of the capture")),
            Some(Recorded::At { clock, .. }) => {
                self.clocks.entry(stream).or_default().merge(clock);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn elapsed(&self, start: Handle, end: Handle) -> Result<f32> {
        match (self.events.get(&start), self.events.get(&end)) {
            (Some(Recorded::At { time: start, .. }), Some(Recorded::At { time: end, .. })) => {
                let forwards = end.saturating_duration_since(*start).as_secs_f32();
                Ok((forwards - start.saturating_duration_since(*end).as_secs_f32()) * 1e3)
            }
            (Some(_), Some(_)) => Err(refused("timing", "an event was recorded inside of a capture")),
            _ => Err(Error::EventNotRecorded),
        }
    }

    pub(crate) fn graph(&self, graph: Handle) -> Arc<[Captured]> {
        self.graphs[&graph].clone()
    }

    pub(crate) fn forget_event(&mut self, event: Handle) {
        self.events.remove(&event);
    }

    pub(crate) fn forget_graph(&mut self, graph: Handle) {
        self.graphs.remove(&graph);
    }
}
