//! Rules of memory, of work on it, and of events.

use std::ptr::{null, null_mut};

use fused_lora_driver::Rule;
use fused_lora_driver::calls::{event as event_calls, graph, memory as memory_calls, stream as stream_calls};

use super::{CASE, Case};
use crate::calls::*;

fn freed() -> u64 {
    let address = memory(512);
    ok(free(address));
    address
}

/// Two events that were recorded on a stream and have happened.
fn happened(event: impl Fn() -> usize) -> (usize, usize) {
    let (stream, start, end) = (stream(), event(), event());
    ok(record(start, stream));
    ok(record(end, stream));
    ok(synchronize(stream));
    (start, end)
}

/// A fill on one stream and another one on a second stream, with something between them.
fn two_fills(between: impl FnOnce(usize, usize)) -> u32 {
    let (address, one, two) = (memory(512), stream(), stream());
    ok(fill(address, 1, 512, one));
    between(one, two);
    ok(fill(address + 256, 2, 256, two));
    ok(synchronize(one));
    synchronize(two)
}

pub(super) const CASES: &[Case] = &[
    Case {
        rule: Rule::SomeBytes,
        call: "cuMemAlloc_v2",
        name: "allocation of nothing",
        broken: || allocate(&mut 0, 0),
        kept: || allocate(&mut 0, 1),
        ..CASE
    },
    Case {
        rule: Rule::ResultPointer,
        call: "cuMemAlloc_v2",
        name: "allocation without a place for its address",
        broken: || allocate(null_mut(), 1),
        kept: || allocate(&mut 0, 1),
        ..CASE
    },
    Case {
        rule: Rule::SomeBytes,
        call: "cuMemsetD8Async",
        name: "fill of nothing",
        broken: || fill(memory(1), 0, 0, stream()),
        kept: || fill(memory(1), 0, 1, stream()),
        ..CASE
    },
    Case {
        rule: Rule::SomeBytes,
        call: "cuMemcpyHtoDAsync_v2",
        name: "upload from null",
        broken: || call!(memory_calls::cuMemcpyHtoDAsync_v2(memory(1), null(), 1, stream())),
        kept: || upload(memory(1), &[1], stream()),
        ..CASE
    },
    Case {
        rule: Rule::SomeBytes,
        call: "cuMemcpyDtoHAsync_v2",
        name: "download of nothing",
        broken: || download(&mut [], memory(1), stream()),
        kept: || {
            let (mut byte, stream) = ([0], stream());
            ok(download(&mut byte, memory(1), stream));
            synchronize(stream)
        },
        ..CASE
    },
    Case {
        rule: Rule::LiveMemory,
        call: "cuMemsetD8Async",
        name: "fill one byte too long",
        broken: || fill(memory(512), 0, 513, stream()),
        kept: || fill(memory(512), 0, 512, stream()),
        ..CASE
    },
    Case {
        rule: Rule::LiveMemory,
        call: "cuMemcpyHtoDAsync_v2",
        name: "upload to freed memory",
        broken: || upload(freed(), &[1], stream()),
        kept: || upload(memory(512), &[1], stream()),
        ..CASE
    },
    Case {
        rule: Rule::LiveMemory,
        call: "cuMemcpyDtoHAsync_v2",
        name: "download from before an allocation",
        broken: || download(&mut [0], memory(512) - 1, stream()),
        kept: || {
            let (mut byte, stream) = ([0], stream());
            ok(download(&mut byte, memory(512), stream));
            synchronize(stream)
        },
        ..CASE
    },
    Case {
        rule: Rule::LiveMemory,
        call: "cuMemcpyDtoDAsync_v2",
        name: "copy from memory of another device",
        options: "devices=2",
        broken: || {
            ok(enter(retain(1)));
            let from = memory(512);
            ok(enter(retain(0)));
            copy(memory(512), from, 512, stream())
        },
        kept: || copy(memory(512), memory(512), 512, stream()),
        ..CASE
    },
    Case {
        rule: Rule::SomeBytes,
        call: "cuMemcpyDtoDAsync_v2",
        name: "copy of nothing",
        broken: || copy(memory(1), memory(1), 0, stream()),
        kept: || copy(memory(1), memory(1), 1, stream()),
        ..CASE
    },
    Case {
        rule: Rule::LiveMemory,
        call: "cuMemcpyDtoDAsync_v2",
        name: "copy to freed memory",
        broken: || {
            // Allocated first: later it could be at the freed address.
            let from = memory(512);
            copy(freed(), from, 512, stream())
        },
        kept: || copy(memory(512), memory(512), 512, stream()),
        ..CASE
    },
    Case {
        rule: Rule::DisjointCopy,
        call: "cuMemcpyDtoDAsync_v2",
        name: "copy to its own second half",
        broken: || {
            let address = memory(512);
            copy(address + 255, address, 256, stream())
        },
        kept: || {
            let address = memory(512);
            copy(address + 256, address, 256, stream())
        },
        ..CASE
    },
    Case {
        rule: Rule::WholeAllocation,
        call: "cuMemFree_v2",
        name: "second half of an allocation is freed",
        broken: || free(memory(512) + 256),
        kept: || free(memory(512)),
        ..CASE
    },
    Case {
        rule: Rule::WholeAllocation,
        call: "cuMemFree_v2",
        name: "memory freed twice",
        broken: || free(freed()),
        kept: || free(memory(512)),
        ..CASE
    },
    Case {
        rule: Rule::KeptForGraph,
        call: "cuMemFree_v2",
        name: "memory of a graph is freed",
        broken: || {
            let address = memory(512);
            executable(|stream| ok(fill(address, 1, 16, stream)));
            free(address)
        },
        kept: || {
            let address = memory(512);
            ok(destroy_executable(executable(|stream| ok(fill(address, 1, 16, stream)))));
            free(address)
        },
        ..CASE
    },
    Case {
        rule: Rule::Ordered,
        call: "cuStreamSynchronize",
        name: "two streams write the same memory",
        broken: || two_fills(|_, _| ()),
        kept: || two_fills(|one, two| ok(wait(two, recorded(one)))),
        ..CASE
    },
    Case {
        rule: Rule::Ordered,
        call: "cuEventSynchronize",
        name: "stream reads what another one writes",
        broken: || {
            let (address, one, two) = (memory(512), stream(), stream());
            ok(fill(address, 1, 512, one));
            ok(copy(memory(512), address, 512, two));
            ok(await_event(recorded(one)));
            await_event(recorded(two))
        },
        kept: || {
            let (address, one, two) = (memory(512), stream(), stream());
            ok(fill(address, 1, 512, one));
            ok(await_event(recorded(one)));
            ok(copy(memory(512), address, 512, two));
            await_event(recorded(two))
        },
        ..CASE
    },
    Case {
        rule: Rule::StreamFlags,
        call: "cuStreamCreate",
        name: "stream with flags 2",
        broken: || create_stream(&mut 0, 2),
        kept: || create_stream(&mut 0, 1),
        ..CASE
    },
    Case {
        rule: Rule::EventFlags,
        call: "cuEventCreate",
        name: "event between processes",
        broken: || create_event(&mut 0, 6),
        kept: || create_event(&mut 0, 3),
        ..CASE
    },
    Case {
        rule: Rule::NoFlags,
        call: "cuStreamWaitEvent",
        name: "wait with flags",
        broken: || call!(stream_calls::cuStreamWaitEvent(stream(), recorded(stream()), 1)),
        kept: || wait(stream(), recorded(stream())),
        ..CASE
    },
    Case {
        rule: Rule::NoFlags,
        call: "cuGraphInstantiateWithFlags",
        name: "graph instantiated with flags",
        broken: || call!(graph::cuGraphInstantiateWithFlags(&mut 0, captured(|_| ()), 1)),
        kept: || call!(graph::cuGraphInstantiateWithFlags(&mut 0, captured(|_| ()), 0)),
        ..CASE
    },
    Case {
        rule: Rule::RecordedEvent,
        call: "cuStreamWaitEvent",
        name: "stream waits for an event that was never recorded",
        broken: || wait(stream(), event()),
        kept: || wait(stream(), recorded(stream())),
        ..CASE
    },
    Case {
        rule: Rule::RecordedEvent,
        call: "cuEventSynchronize",
        name: "host waits for an event that was never recorded",
        broken: || await_event(event()),
        kept: || await_event(recorded(stream())),
        ..CASE
    },
    Case {
        rule: Rule::RecordedEvent,
        call: "cuEventQuery",
        name: "event that was never recorded is queried",
        broken: || query(event()),
        kept: || query(happened(event).0),
        ..CASE
    },
    Case {
        rule: Rule::RecordedEvent,
        call: "cuEventElapsedTime",
        name: "time to an event that was never recorded",
        broken: || elapsed(&mut 0.0, happened(timed_event).0, timed_event()),
        kept: || {
            let (start, end) = happened(timed_event);
            elapsed(&mut 0.0, start, end)
        },
        ..CASE
    },
    Case {
        rule: Rule::TimedEvent,
        call: "cuEventElapsedTime",
        name: "time between events without timing",
        broken: || {
            let (start, end) = happened(event);
            elapsed(&mut 0.0, start, end)
        },
        kept: || {
            let (start, end) = happened(timed_event);
            call!(event_calls::cuEventElapsedTime(&mut 0.0, start, end))
        },
        ..CASE
    },
];
