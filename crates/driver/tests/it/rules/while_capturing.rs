//! Rules of other calls while a stream is being captured, and of what a capture leaves.

use fused_lora_driver::Rule;

use super::{CASE, Case};
use crate::calls::*;
use crate::cubin::{POINTWISE, cubin};

/// Calls `f` while this thread captures a stream, and ends the capture. The thread's mode is relaxed meanwhile if `relaxed`.
fn in_capture(relaxed: bool, f: impl FnOnce() -> u32) -> u32 {
    let stream = capturing_in(THREAD_LOCAL);
    if relaxed {
        ok(exchange_mode(RELAXED));
    }
    let code = f();
    if relaxed {
        ok(exchange_mode(GLOBAL));
        ok(end(stream, &mut 0));
    }
    code
}

/// An event that was recorded in a capture that has ended.
fn captured_event() -> usize {
    let event = event();
    ok(destroy_graph(captured(|stream| ok(record(event, stream)))));
    event
}

pub(super) const CASES: &[Case] = &[
    Case {
        rule: Rule::SafeInCapture,
        call: "cuMemAlloc_v2",
        name: "allocation in a capture",
        broken: || in_capture(false, || allocate(&mut 0, 1)),
        kept: || in_capture(true, || allocate(&mut 0, 1)),
        ..CASE
    },
    Case {
        rule: Rule::SafeInCapture,
        call: "cuMemFree_v2",
        name: "memory is freed while another thread captures",
        broken: || {
            let address = memory(1);
            in_thread(|| capturing_in(GLOBAL));
            free(address)
        },
        kept: || {
            let address = memory(1);
            in_thread(|| {
                let stream = capturing_in(THREAD_LOCAL);
                ok(in_thread(|| free(address)));
                end(stream, &mut 0)
            })
        },
        ..CASE
    },
    Case {
        rule: Rule::SafeInCapture,
        call: "cuModuleLoadData",
        name: "module loaded in a capture",
        broken: || in_capture(false, || load(&mut 0, cubin((9, 0), &[POINTWISE]).as_ptr())),
        kept: || in_capture(true, || load(&mut 0, cubin((9, 0), &[POINTWISE]).as_ptr())),
        ..CASE
    },
    Case {
        rule: Rule::SafeInCapture,
        call: "cuFuncLoad",
        name: "function loaded in a capture",
        broken: || {
            let function = pointwise();
            in_capture(false, || load_function(function))
        },
        kept: || {
            let function = pointwise();
            in_capture(true, || load_function(function))
        },
        ..CASE
    },
    Case {
        rule: Rule::SafeInCapture,
        call: "cuStreamSynchronize",
        name: "wait for another stream in a capture",
        broken: || in_capture(false, || synchronize(stream())),
        kept: || in_capture(true, || synchronize(stream())),
        ..CASE
    },
    Case {
        rule: Rule::SafeInCapture,
        call: "cuEventQuery",
        name: "event queried in a capture",
        broken: || {
            let event = recorded(stream());
            in_capture(false, || query(event))
        },
        kept: || {
            let event = recorded(stream());
            ok(await_event(event));
            in_capture(true, || query(event))
        },
        ..CASE
    },
    Case {
        rule: Rule::SafeInCapture,
        call: "cuEventSynchronize",
        name: "wait for an event in a capture",
        broken: || {
            let event = recorded(stream());
            in_capture(false, || await_event(event))
        },
        kept: || {
            let event = recorded(stream());
            in_capture(true, || await_event(event))
        },
        ..CASE
    },
    Case {
        rule: Rule::WaitOutsideCapture,
        call: "cuStreamSynchronize",
        name: "wait for a stream that is being captured",
        broken: || synchronize(capturing()),
        kept: || synchronize(stream()),
        ..CASE
    },
    Case {
        rule: Rule::NoImplicitCapture,
        call: "cuMemsetD8Async",
        name: "fill on the default stream while a blocking stream is being captured",
        broken: || {
            let address = memory(1);
            ok(begin(blocking_stream(), RELAXED));
            fill(address, 0, 1, DEFAULT)
        },
        kept: || {
            let (address, stream) = (memory(1), capturing());
            ok(fill(address, 0, 1, DEFAULT));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::NoImplicitCapture,
        call: "cuStreamIsCapturing",
        name: "status of the default stream while a blocking stream is being captured",
        broken: || {
            ok(begin(blocking_stream(), RELAXED));
            is_capturing(DEFAULT, &mut 0)
        },
        kept: || {
            let stream = capturing();
            ok(is_capturing(DEFAULT, &mut 0));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::NoImplicitCapture,
        call: "cuStreamGetCaptureInfo_v2",
        name: "capture of the default stream while a blocking stream is being captured",
        broken: || {
            ok(begin(blocking_stream(), RELAXED));
            capture_info(DEFAULT, &mut 0, &mut 0)
        },
        kept: || {
            let stream = capturing();
            ok(capture_info(DEFAULT, &mut 0, &mut 0));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::NoImplicitCapture,
        call: "cuEventRecord",
        name: "event recorded on the default stream while a blocking stream is being captured",
        broken: || {
            let event = event();
            ok(begin(blocking_stream(), RELAXED));
            record(event, DEFAULT)
        },
        kept: || {
            let (event, stream) = (event(), capturing());
            ok(record(event, DEFAULT));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::NoImplicitCapture,
        call: "cuStreamSynchronize",
        name: "wait for the default stream while a blocking stream is being captured",
        broken: || {
            ok(begin(blocking_stream(), RELAXED));
            synchronize(DEFAULT)
        },
        kept: || {
            let stream = capturing();
            ok(synchronize(DEFAULT));
            end(stream, &mut 0)
        },
        ..CASE
    },
    Case {
        rule: Rule::CapturedEvent,
        call: "cuEventElapsedTime",
        name: "time between captured events",
        broken: || elapsed(&mut 0.0, captured_event(), captured_event()),
        kept: || {
            let (start, end, stream) = (timed_event(), timed_event(), stream());
            ok(record(start, stream));
            ok(record(end, stream));
            ok(synchronize(stream));
            elapsed(&mut 0.0, start, end)
        },
        ..CASE
    },
    Case {
        rule: Rule::CaptureDevice,
        call: "cuMemcpyHtoDAsync_v2",
        name: "upload in a capture",
        broken: || {
            let address = memory(1);
            upload(address, &[1], capturing())
        },
        kept: || upload(memory(1), &[1], stream()),
        ..CASE
    },
    Case {
        rule: Rule::CaptureDevice,
        call: "cuMemcpyDtoHAsync_v2",
        name: "download in a capture",
        broken: || {
            let address = memory(1);
            download(&mut [0], address, capturing())
        },
        kept: || {
            let (mut byte, stream) = ([0], stream());
            ok(download(&mut byte, memory(1), stream));
            synchronize(stream)
        },
        ..CASE
    },
    Case {
        rule: Rule::StreamAtRest,
        call: "cuStreamDestroy_v2",
        name: "stream is destroyed in its capture",
        broken: || destroy_stream(capturing()),
        kept: || {
            let stream = capturing();
            ok(end(stream, &mut 0));
            destroy_stream(stream)
        },
        ..CASE
    },
    Case {
        rule: Rule::CapturedEvent,
        call: "cuEventQuery",
        name: "captured event is queried",
        broken: || query(captured_event()),
        kept: || {
            let (event, stream) = (captured_event(), stream());
            ok(record(event, stream));
            ok(synchronize(stream));
            query(event)
        },
        ..CASE
    },
    Case {
        rule: Rule::CapturedEvent,
        call: "cuEventSynchronize",
        name: "host waits for a captured event",
        broken: || await_event(captured_event()),
        kept: || await_event(recorded(stream())),
        ..CASE
    },
    Case {
        rule: Rule::CapturedEvent,
        call: "cuStreamWaitEvent",
        name: "stream waits for an event of a capture that has ended",
        broken: || wait(stream(), captured_event()),
        kept: || wait(stream(), recorded(stream())),
        ..CASE
    },
];
