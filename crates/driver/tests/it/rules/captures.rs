//! Rules of beginning, joining and ending a capture.

use std::ptr::null_mut;

use fused_lora_driver::Rule;
use fused_lora_driver::calls::stream as stream_calls;

use super::{CASE, Case};
use crate::calls::*;

/// A stream that has joined the capture of another one.
fn joined_to(origin: usize) -> usize {
    let branch = stream();
    ok(wait(branch, recorded(origin)));
    branch
}

/// A stream whose capture is not valid any more.
fn invalidated() -> usize {
    let stream = capturing();
    assert_eq!(wait(stream, recorded(crate::calls::stream())), Rule::CaptureIsolated.code());
    stream
}

pub(super) const CASES: &[Case] = &[
    Case {
        rule: Rule::CaptureStream,
        call: "cuStreamBeginCapture_v2",
        name: "capture of the default stream",
        broken: || begin(DEFAULT, RELAXED),
        kept: || end(capturing(), &mut 0),
        ..CASE
    },
    Case {
        rule: Rule::CaptureOnce,
        call: "cuStreamBeginCapture_v2",
        name: "capture begun twice",
        broken: || begin(capturing(), RELAXED),
        kept: || {
            let stream = capturing();
            ok(end(stream, &mut 0));
            ok(begin(stream, RELAXED));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::CaptureMode,
        call: "cuStreamBeginCapture_v2",
        name: "capture in mode 3",
        broken: || begin(stream(), 3),
        kept: || end(capturing_in(2), &mut 0),
        ..CASE
    },
    Case {
        rule: Rule::CaptureMode,
        call: "cuThreadExchangeStreamCaptureMode",
        name: "thread in mode 3",
        broken: || exchange_mode(3),
        kept: || exchange_mode(0),
        ..CASE
    },
    Case {
        rule: Rule::ResultPointer,
        call: "cuThreadExchangeStreamCaptureMode",
        name: "mode at null",
        broken: || call!(stream_calls::cuThreadExchangeStreamCaptureMode(null_mut())),
        kept: || call!(stream_calls::cuThreadExchangeStreamCaptureMode(&mut 0)),
        ..CASE
    },
    Case {
        rule: Rule::CaptureRunning,
        call: "cuStreamEndCapture",
        name: "capture ended without a beginning",
        broken: || end(stream(), &mut 0),
        kept: || end(capturing(), &mut 0),
        ..CASE
    },
    Case {
        rule: Rule::CaptureOrigin,
        call: "cuStreamEndCapture",
        name: "capture ended on a stream that joined it",
        broken: || end(joined_to(capturing()), &mut 0),
        kept: || {
            let stream = capturing();
            joined_to(stream);
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::CaptureThread,
        call: "cuStreamEndCapture",
        name: "capture ended on another thread",
        broken: || end(in_thread(|| capturing_in(THREAD_LOCAL)), &mut 0),
        kept: || end(in_thread(capturing), &mut 0),
        ..CASE
    },
    Case {
        rule: Rule::CaptureJoined,
        call: "cuStreamEndCapture",
        name: "branch is not waited for",
        broken: || {
            let (address, stream) = (memory(1), capturing());
            ok(fill(address, 0, 1, joined_to(stream)));
            end(stream, &mut 0)
        },
        kept: || {
            let (address, stream) = (memory(1), capturing());
            let branch = joined_to(stream);
            ok(fill(address, 0, 1, branch));
            ok(wait(stream, recorded(branch)));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::CaptureIsolated,
        call: "cuStreamWaitEvent",
        name: "capture waits for work outside",
        broken: || {
            let before = recorded(stream());
            wait(capturing(), before)
        },
        kept: || {
            let stream = capturing();
            ok(wait(stream, recorded(stream)));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::CapturesApart,
        call: "cuStreamWaitEvent",
        name: "capture waits for another one",
        broken: || wait(capturing(), recorded(capturing())),
        kept: || {
            let stream = capturing();
            ok(wait(stream, recorded(stream)));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::CaptureValid,
        call: "cuMemsetD8Async",
        name: "invalid capture is used",
        broken: || {
            let address = memory(1);
            fill(address, 0, 1, invalidated())
        },
        kept: || {
            let (address, stream) = (memory(1), capturing());
            ok(fill(address, 0, 1, stream));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::CaptureValid,
        call: "cuEventRecord",
        name: "event recorded in an invalid capture",
        broken: || record(event(), invalidated()),
        kept: || {
            let stream = capturing();
            ok(record(event(), stream));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::CaptureValid,
        call: "cuStreamEndCapture",
        name: "invalid capture is ended",
        broken: || end(invalidated(), &mut 0),
        kept: || end(capturing(), &mut 0),
        ..CASE
    },
    Case {
        rule: Rule::CaptureValid,
        call: "cuStreamWaitEvent",
        name: "invalid capture is joined",
        broken: || {
            let (stream, event) = (capturing(), event());
            ok(record(event, stream));
            assert_eq!(wait(stream, recorded(crate::calls::stream())), Rule::CaptureIsolated.code());
            wait(crate::calls::stream(), event)
        },
        kept: || {
            let stream = capturing();
            joined_to(stream);
            end(stream, &mut 0)
        },
        ..CASE
    },
];
