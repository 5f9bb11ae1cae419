//! Stream capture: which streams belong to a capture, what was captured, and what a capture forbids.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::thread::{self, ThreadId};

use fused_lora_emulator::{Clock, Place};

use crate::device::DEFAULT_STREAM;
use crate::rules::{Outcome, Rule};
use crate::work::{Node, Work};

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`, which a thread begins with.
pub(crate) const GLOBAL: u32 = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
pub(crate) const RELAXED: u32 = 2;

thread_local! {
    /// The calling thread's mode, by which it is forbidden calls that a capture could not contain.
    static MODE: Cell<u32> = const { Cell::new(GLOBAL) };
}

/// Exchanges the calling thread's mode.
pub(crate) fn exchange_mode(mode: u32) -> u32 {
    MODE.replace(mode)
}

/// One stream's part in a capture.
#[derive(Debug, Default)]
struct Branch {
    /// The latest nodes: the next one comes behind them.
    ends: BTreeSet<usize>,
    clock: Clock,
}

#[derive(Debug)]
struct Capture {
    device: usize,
    origin: usize,
    mode: u32,
    thread: ThreadId,
    nodes: Vec<Node>,
    branches: HashMap<usize, Branch>,
    is_valid: bool,
}

/// The state of an event that was recorded in a capture.
#[derive(Debug, Clone)]
pub(crate) struct CapturedEvent {
    capture: u64,
    ends: BTreeSet<usize>,
    clock: Clock,
}

/// All captures that have begun and not ended.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    running: BTreeMap<u64, Capture>,
    last: u64,
}

/// Whether a stream is being captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    None,
    Active(u64),
    Invalidated(u64),
}

impl Captures {
    pub(crate) fn status(&self, stream: usize) -> Status {
        let found = self.running.iter().find(|(_, capture)| capture.branches.contains_key(&stream));
        match found {
            None => Status::None,
            Some((&id, capture)) if capture.is_valid => Status::Active(id),
            Some((&id, _)) => Status::Invalidated(id),
        }
    }

    /// Whether the stream is being captured; an error if a call has made its capture useless.
    fn valid(&mut self, stream: usize) -> Outcome<Option<&mut Capture>> {
        match self.status(stream) {
            Status::None => Ok(None),
            Status::Active(id) => Ok(self.running.get_mut(&id)),
            Status::Invalidated(_) => Rule::CaptureValid.broken(format!("The capture of stream {stream:#x} is not.")),
        }
    }

    fn invalidate(&mut self, is_affected: impl Fn(&Capture) -> bool) {
        self.running.values_mut().filter(|capture| is_affected(capture)).for_each(|capture| capture.is_valid = false);
    }

    /// Makes the capture of a stream useless, if there is one.
    pub(crate) fn invalidate_of(&mut self, stream: usize) {
        self.invalidate(|capture| capture.branches.contains_key(&stream));
    }

    /// Whether work that was captured so far names one of these addresses.
    pub(crate) fn name_any(&self, range: &Range<u64>) -> bool {
        let nodes = self.running.values().flat_map(|capture| &capture.nodes);
        nodes.flat_map(|node| node.work.addresses()).any(|address| range.contains(&address))
    }

    /// Whether any stream of `streams` is being captured.
    pub(crate) fn any_of(&self, streams: &[usize]) -> bool {
        streams.iter().any(|&stream| self.status(stream) != Status::None)
    }

    /// Refuses the default stream while one of these, which are ordered with it, is being captured.
    pub(crate) fn expect_no_implicit(&mut self, ordered: &[usize]) -> Outcome {
        if !self.any_of(ordered) {
            return Ok(());
        }
        self.invalidate(|capture| ordered.iter().any(|stream| capture.branches.contains_key(stream)));
        Rule::NoImplicitCapture.broken("")
    }

    /// Refuses a call that captures forbid, and invalidates them.
    pub(crate) fn expect_safe(&mut self) -> Outcome {
        let (mode, this) = (MODE.get(), thread::current().id());
        let forbids = |capture: &Capture| match mode {
            RELAXED => false,
            _ if capture.thread == this => capture.mode != RELAXED,
            _ => mode == GLOBAL && capture.mode == GLOBAL,
        };
        if !self.running.values().any(forbids) {
            return Ok(());
        }
        let whose = if self.running.values().any(|c| forbids(c) && c.thread == this) { "this" } else { "another" };
        self.invalidate(forbids);
        Rule::SafeInCapture.broken(format!("A capture of {whose} thread runs."))
    }

    /// Refuses that the host waits for a stream that is being captured.
    pub(crate) fn expect_not_capturing(&mut self, stream: usize) -> Outcome {
        if self.status(stream) == Status::None {
            return Ok(());
        }
        self.invalidate(|capture| capture.branches.contains_key(&stream));
        Rule::WaitOutsideCapture.broken(format!("Stream {stream:#x} is being captured."))
    }

    pub(crate) fn begin(&mut self, stream: usize, device: usize, mode: u32) -> Outcome {
        Rule::CaptureStream.expect(stream != DEFAULT_STREAM, String::new)?;
        Rule::CaptureMode.expect(mode <= RELAXED, || format!("The mode is {mode}."))?;
        Rule::CaptureOnce.expect(self.status(stream) == Status::None, String::new)?;
        self.last += 1;
        let capture = Capture {
            device,
            origin: stream,
            mode,
            thread: thread::current().id(),
            nodes: vec![],
            branches: HashMap::from([(stream, Branch::default())]),
            is_valid: true,
        };
        self.running.insert(self.last, capture);
        Ok(())
    }

    /// Ends a capture and returns what it captured.
    pub(crate) fn end(&mut self, stream: usize) -> Outcome<Vec<Node>> {
        let (Status::Active(id) | Status::Invalidated(id)) = self.status(stream) else {
            return Rule::CaptureRunning.broken(format!("Stream {stream:#x} is not being captured."));
        };
        let running = &self.running[&id];
        Rule::CaptureOrigin.expect(running.origin == stream, || format!("It began on {:#x}.", running.origin))?;
        let here = running.mode == RELAXED || running.thread == thread::current().id();
        Rule::CaptureThread.expect(here, String::new)?;
        let Some(capture) = self.running.remove(&id) else { return Ok(vec![]) };
        Rule::CaptureValid.expect(capture.is_valid, || "A call before made the capture useless.".into())?;
        let known = &capture.branches[&stream].clock;
        let left = capture.branches.iter().find(|(other, branch)| branch.clock.count(**other) > known.count(**other));
        match left {
            Some((other, _)) => Rule::CaptureJoined.broken(format!("Stream {other:#x} was not waited for.")),
            None => Ok(capture.nodes),
        }
    }

    /// Adds work to the stream's capture. Returns it if the stream is not being captured.
    pub(crate) fn add(&mut self, stream: usize, work: Work) -> Outcome<Option<Work>> {
        let Some(capture) = self.valid(stream)? else { return Ok(Some(work)) };
        if matches!(work, Work::Upload { .. } | Work::Download { .. }) {
            capture.is_valid = false;
            return Rule::CaptureDevice.broken(format!("{} on stream {stream:#x}.", work.name()));
        }
        let nodes = match work {
            // A graph that is replayed in a capture becomes a part of it.
            Work::Replay(nodes) => nodes.to_vec(),
            work => vec![Node { work, after: vec![], place: Place::new(stream, &Clock::default()) }],
        };
        let branch = capture.branches.entry(stream).or_default();
        let first = capture.nodes.len();
        for node in nodes {
            branch.clock.tick(stream);
            let inner = node.after.iter().map(|before| first + before);
            let after = inner.chain(branch.ends.iter().copied().filter(|&end| end < first)).collect();
            capture.nodes.push(Node { work: node.work, after, place: Place::new(stream, &branch.clock) });
        }
        if capture.nodes.len() > first {
            branch.ends = (first..capture.nodes.len()).collect();
        }
        Ok(None)
    }

    /// What an event that is recorded on the stream marks, if the stream is being captured.
    pub(crate) fn record(&mut self, stream: usize) -> Outcome<Option<CapturedEvent>> {
        let Status::Active(id) = self.status(stream) else { return self.valid(stream).map(|_| None) };
        let branch = &self.running[&id].branches[&stream];
        Ok(Some(CapturedEvent { capture: id, ends: branch.ends.clone(), clock: branch.clock.clone() }))
    }

    /// A stream waits for an event that was recorded outside of captures, which no stream of a capture may.
    pub(crate) fn wait_for_uncaptured(&mut self, stream: usize) -> Outcome {
        let Some(capture) = self.valid(stream)? else { return Ok(()) };
        capture.is_valid = false;
        Rule::CaptureIsolated.broken(format!("Stream {stream:#x} waits for an event that was recorded before."))
    }

    /// A stream of a device waits for an event that was recorded in a capture, and joins that capture.
    pub(crate) fn wait_for_captured(&mut self, stream: usize, device: usize, event: &CapturedEvent) -> Outcome {
        let own = self.status(stream);
        let Some(capture) = self.running.get_mut(&event.capture) else {
            return Rule::CapturedEvent.broken("The event's capture has ended.");
        };
        if let Status::Active(id) | Status::Invalidated(id) = own
            && id != event.capture
        {
            capture.is_valid = false;
            self.invalidate(|capture| capture.branches.contains_key(&stream));
            return Rule::CapturesApart.broken("");
        }
        Rule::CaptureValid.expect(capture.is_valid, || "The event's capture is not.".into())?;
        Rule::CaptureStream.expect(stream != DEFAULT_STREAM, String::new)?;
        Rule::OwnContext.expect(capture.device == device, String::new)?;
        let branch = capture.branches.entry(stream).or_default();
        branch.ends.extend(&event.ends);
        branch.clock.merge(&event.clock);
        Ok(())
    }
}
