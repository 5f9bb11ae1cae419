//! Streams and their capture.

use std::ffi::c_void;

use crate::capture::{self, Status};
use crate::device::DEFAULT_STREAM;
use crate::entry::{driver_functions, put};
use crate::rules::{Outcome, Rule};
use crate::state::{Recorded, State, in_context, initialised};
use crate::work::Work;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;

/// `CUstreamCaptureStatus`, and the capture's number.
fn status_of(state: &mut State, stream: usize, device: usize) -> Outcome<(u32, u64)> {
    if stream == DEFAULT_STREAM {
        let ordered = state.blocking_streams(device);
        Rule::NoImplicitCapture.expect(!state.captures.any_of(&ordered), || "It is asked for its status.".into())?;
    } else {
        state.streams.get(stream, device)?;
    }
    Ok(match state.captures.status(stream) {
        Status::None => (0, 0),
        Status::Active(id) => (1, id),
        Status::Invalidated(id) => (2, id),
    })
}

driver_functions! {
    /// Makes a stream.
    fn cuStreamCreate(stream: *mut usize, flags: u32) {
        in_context(|state, device| {
            Rule::StreamFlags.expect(flags <= NON_BLOCKING, || format!("The flags are {flags:#x}."))?;
            let handle = state.new_stream(device, flags != NON_BLOCKING);
            // SAFETY: the caller's promise.
            unsafe { put(stream, handle) }
        })
    }

    /// Destroys a stream, whose work still runs.
    fn cuStreamDestroy_v2(stream: usize) {
        in_context(|state, device| {
            let is_at_rest = state.captures.status(stream) == Status::None;
            state.streams.get(stream, device)?;
            Rule::StreamAtRest.expect(is_at_rest, || format!("Stream {stream:#x}."))?;
            if state.streams.remove(stream, device)?.is_blocking {
                state.destroyed_blocking.push((device, stream));
            }
            Ok(())
        })
    }

    /// Waits until all work of the stream has run.
    fn cuStreamSynchronize(stream: usize) {
        in_context(|state, device| {
            state.captures.expect_safe()?;
            state.await_stream(stream, device)
        })
    }

    /// Makes the stream's later work wait for an event.
    fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) {
        in_context(|state, device| {
            Rule::NoFlags.expect(flags == 0, || format!("The flags are {flags:#x}."))?;
            let recorded = state.events.get(event, device)?.recorded.clone();
            let ordered = state.ordered_with(stream, device)?;
            match recorded {
                // The driver waits for nothing then. Here, that is a mistake.
                Recorded::Never => Rule::RecordedEvent.broken(format!("Event {event:#x} was never recorded.")),
                Recorded::InCapture(captured) => state.captures.wait_for_captured(stream, device, &captured),
                Recorded::At { operation, clock, .. } => {
                    state.captures.wait_for_uncaptured(stream)?;
                    let host = state.host.clone();
                    state.device(device).issue(&ordered, Some((operation, &clock)), &host, Work::Wait);
                    Ok(())
                }
            }
        })
    }

    /// Whether the stream is being captured.
    fn cuStreamIsCapturing(stream: usize, status: *mut u32) {
        in_context(|state, device| {
            let (found, _) = status_of(state, stream, device)?;
            // SAFETY: the caller's promise.
            unsafe { put(status, found) }
        })
    }

    /// Whether the stream is being captured, and the capture's number. The other results are not given.
    fn cuStreamGetCaptureInfo_v2(
        stream: usize,
        status: *mut u32,
        id: *mut u64,
        graph: *mut c_void,
        dependencies: *mut c_void,
        count: *mut c_void,
    ) {
        in_context(|state, device| {
            let (found, number) = status_of(state, stream, device)?;
            let asks = !(graph.is_null() && dependencies.is_null() && count.is_null());
            Rule::KnownAttribute.expect(!asks, || "The captured graph and its nodes.".into())?;
            // SAFETY: the caller's promise.
            unsafe {
                put(status, found)?;
                if found != 0 && !id.is_null() { put(id, number) } else { Ok(()) }
            }
        })
    }

    /// Begins a capture of the stream.
    fn cuStreamBeginCapture_v2(stream: usize, mode: u32) {
        in_context(|state, device| {
            if stream != DEFAULT_STREAM {
                state.streams.get(stream, device)?;
            }
            state.captures.begin(stream, device, mode)
        })
    }

    /// Ends a capture.
    fn cuStreamEndCapture(stream: usize, graph: *mut usize) {
        in_context(|state, device| {
            // SAFETY: the caller's promise. Without a graph the result is null.
            unsafe { put(graph, 0) }?;
            if stream != DEFAULT_STREAM {
                state.streams.get(stream, device)?;
            }
            let nodes = state.captures.end(stream)?;
            let handle = state.graphs.insert(State::new_graph(device, nodes.into()));
            // SAFETY: the caller's promise.
            unsafe { put(graph, handle) }
        })
    }

    /// Exchanges the calling thread's mode, by which captures forbid it some calls.
    fn cuThreadExchangeStreamCaptureMode(mode: *mut u32) {
        initialised(|_| {
            Rule::ResultPointer.expect(!mode.is_null() && mode.is_aligned(), || format!("{mode:p} is."))?;
            // SAFETY: the caller's promise.
            let new = unsafe { mode.read() };
            Rule::CaptureMode.expect(new <= capture::RELAXED, || format!("The mode is {new}."))?;
            // SAFETY: as above.
            unsafe { mode.write(capture::exchange_mode(new)) };
            Ok(())
        })
    }
}
