//! Events: points in a stream's work.

use std::sync::Arc;
use std::time::Instant;

use fused_lora_emulator::Clock;

use crate::entry::{driver_functions, put};
use crate::rules::{Outcome, Rule, refused};
use crate::state::{Recorded, State, in_context};
use crate::work::Work;

/// `CU_EVENT_BLOCKING_SYNC`.
const BLOCKING_SYNC: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: u32 = 600;

/// What the host may wait for.
fn recorded(state: &mut State, event: usize, device: usize) -> Outcome<(u64, Clock)> {
    match &state.events.get(event, device)?.recorded {
        Recorded::Never => Rule::RecordedEvent.broken(format!("Event {event:#x} was never recorded.")),
        Recorded::InCapture(_) => Rule::CapturedEvent.broken(format!("Event {event:#x} was recorded in a capture.")),
        Recorded::At { operation, clock, .. } => Ok((*operation, clock.clone())),
    }
}

fn time_of(state: &mut State, event: usize, device: usize) -> Outcome<Instant> {
    let (operation, _) = recorded(state, event, device)?;
    let event = state.events.get(event, device)?;
    Rule::TimedEvent.expect(event.is_timed, || "An event was created with CU_EVENT_DISABLE_TIMING.".into())?;
    let Recorded::At { time, .. } = event.recorded.clone() else { return refused(NOT_READY, "") };
    if !state.device(device).has_run(operation) {
        return refused(NOT_READY, "the work before the event has not run");
    }
    Ok(time.get().copied().unwrap_or_else(Instant::now))
}

driver_functions! {
    /// Makes an event.
    fn cuEventCreate(event: *mut usize, flags: u32) {
        in_context(|state, device| {
            let known = flags & !(BLOCKING_SYNC | DISABLE_TIMING) == 0;
            Rule::EventFlags.expect(known, || format!("The flags are {flags:#x}."))?;
            let handle = state.new_event(device, flags & DISABLE_TIMING == 0);
            // SAFETY: the caller's promise.
            unsafe { put(event, handle) }
        })
    }

    /// Destroys an event. What waits for it still does.
    fn cuEventDestroy_v2(event: usize) {
        in_context(|state, device| state.events.remove(event, device).map(drop))
    }

    /// Marks the work that was issued to the stream so far.
    fn cuEventRecord(event: usize, stream: usize) {
        in_context(|state, device| {
            state.events.get(event, device)?;
            state.ordered_with(stream, device)?;
            let recorded = match state.captures.record(stream)? {
                Some(captured) => Recorded::InCapture(captured),
                None => {
                    let time = Arc::default();
                    let issued = state.issue(stream, device, Work::Mark(Arc::clone(&time)))?;
                    let clock = state.device(device).clock(stream);
                    Recorded::At { operation: issued.unwrap_or_default(), clock, time }
                }
            };
            state.events.get(event, device)?.recorded = recorded;
            Ok(())
        })
    }

    /// Whether the work before the event has run. Every call lets the device run a little further.
    fn cuEventQuery(event: usize) {
        in_context(|state, device| {
            state.captures.expect_safe()?;
            let (operation, clock) = recorded(state, event, device)?;
            if !state.device(device).has_run(operation) {
                state.device(device).step();
                return refused(NOT_READY, "the work before the event has not run");
            }
            state.host.merge(&clock);
            Ok(())
        })
    }

    /// Waits until the work before the event has run.
    fn cuEventSynchronize(event: usize) {
        in_context(|state, device| {
            state.captures.expect_safe()?;
            let (operation, clock) = recorded(state, event, device)?;
            state.device(device).await_operation(operation);
            state.host.merge(&clock);
            Ok(())
        })
    }

    /// Milliseconds that the emulator took from one event to the other. They are no measurement of a GPU.
    fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) {
        in_context(|state, device| {
            let (start, end) = (time_of(state, start, device)?, time_of(state, end, device)?);
            let forwards = end.saturating_duration_since(start).as_secs_f32();
            // SAFETY: the caller's promise.
            unsafe { put(milliseconds, (forwards - start.saturating_duration_since(end).as_secs_f32()) * 1e3) }
        })
    }
}
