//! What is captured, what a capture forbids, and what replays do.

use fused_lora_driver::Rule;
use fused_lora_driver::calls::stream as exchange;

use crate::calls::*;
use crate::process::tests;

/// A byte of device memory, as a stream that is not captured finds it.
fn byte_at(address: u64) -> u8 {
    let (stream, mut byte) = (stream(), [0]);
    ok(download(&mut byte, address, stream));
    ok(synchronize(stream));
    byte[0]
}

/// Whether the stream is being captured, as `CUstreamCaptureStatus`, and its capture.
fn status_of(stream: usize) -> (u32, u64) {
    let (mut status, mut id) = (0, 0);
    ok(capture_info(stream, &mut status, &mut id));
    assert_eq!(made(|status| is_capturing(stream, status)), status);
    (status, id)
}

/// Makes another thread capture a stream in this mode, and this thread allocate. Returns the codes of the allocation and
/// of the end of the capture.
fn allocation_beside_a_capture_in(mode: u32) -> (u32, u32) {
    in_thread(|| {
        let stream = stream();
        ok(begin(stream, mode));
        let allocated = in_thread(|| allocate(&mut 0, 1));
        (allocated, end(stream, &mut 0))
    })
}

tests! {
    fn captured_work_runs_at_each_replay("") {
        start();
        let (address, stream) = (memory(2), stream());
        ok(fill(address, 0, 2, stream));
        ok(synchronize(stream));
        let graph = executable(|captured| {
            ok(fill(address, 7, 1, captured));
            ok(copy(address + 1, address, 1, captured));
        });
        assert_eq!((byte_at(address), byte_at(address + 1)), (0, 0), "before the first replay");
        for _ in 0..2 {
            ok(fill(address, 0, 2, stream));
            ok(replay(graph, stream));
            ok(synchronize(stream));
            assert_eq!((byte_at(address), byte_at(address + 1)), (7, 7));
        }
        ok(replay(graph, stream));
        ok(destroy_executable(graph));
        ok(synchronize(stream));
    }

    fn a_fork_that_joins_is_one_graph("") {
        start();
        let memory = memory(3);
        let graph = executable(|origin| {
            let branch = stream();
            ok(fill(memory, 7, 1, origin));
            ok(wait(branch, recorded(origin)));
            assert_eq!(status_of(branch), status_of(origin));
            ok(copy(memory + 1, memory, 1, branch));
            ok(wait(origin, recorded(branch)));
            ok(copy(memory + 2, memory + 1, 1, origin));
        });
        let stream = stream();
        ok(replay(graph, stream));
        ok(synchronize(stream));
        assert_eq!((byte_at(memory + 2), violations()), (7, 0));
    }

    fn branches_of_a_graph_may_race("") {
        start();
        let memory = memory(1);
        let graph = executable(|origin| {
            let branch = stream();
            ok(wait(branch, recorded(origin)));
            ok(fill(memory, 1, 1, branch));
            ok(fill(memory, 2, 1, origin));
            ok(wait(origin, recorded(branch)));
        });
        assert_eq!(violations(), 0, "captured work has not run");
        let stream = stream();
        ok(replay(graph, stream));
        ok(synchronize(stream));
        assert_eq!(violations(), 1);
    }

    fn a_replay_in_a_capture_becomes_a_part_of_it("") {
        start();
        let memory = memory(3);
        let inner = executable(|stream| ok(copy(memory + 1, memory, 1, stream)));
        let outer = executable(|stream| {
            ok(fill(memory, 7, 1, stream));
            ok(replay(inner, stream));
            ok(copy(memory + 2, memory + 1, 1, stream));
        });
        ok(destroy_executable(inner));
        let stream = stream();
        ok(replay(outer, stream));
        ok(synchronize(stream));
        assert_eq!((byte_at(memory + 2), violations()), (7, 0));
    }

    fn a_capture_keeps_the_memory_that_it_names("") {
        start();
        let (address, free_one) = (memory(16), memory(16));
        let graph = executable(|stream| {
            ok(fill(address, 1, 16, stream));
            ok(exchange_mode(RELAXED));
            assert_eq!(free(address), Rule::KeptForGraph.code());
            ok(free(free_one));
            ok(exchange_mode(GLOBAL));
        });
        let stream = stream();
        ok(replay(graph, stream));
        ok(synchronize(stream));
        assert_eq!((byte_at(address), violations()), (1, 1));
    }

    fn only_a_global_capture_of_another_thread_forbids("") {
        start();
        let (forbidden, invalid) = (Rule::SafeInCapture.code(), Rule::CaptureValid.code());
        assert_eq!(allocation_beside_a_capture_in(GLOBAL), (forbidden, invalid));
        assert_eq!(violations(), 1);
        assert_eq!(allocation_beside_a_capture_in(THREAD_LOCAL), (0, 0));
        assert_eq!(allocation_beside_a_capture_in(RELAXED), (0, 0));
        assert_eq!(violations(), 1);
    }

    fn a_thread_s_mode_decides_what_captures_forbid_it("") {
        start();
        let stream = stream();
        let mut mode = THREAD_LOCAL;
        let exchange = |mode: &mut u32| ok(call!(exchange::cuThreadExchangeStreamCaptureMode(mode)));
        exchange(&mut mode);
        assert_eq!(mode, GLOBAL, "a thread begins in the global mode");
        let other = in_thread(|| {
            let other = crate::calls::stream();
            ok(begin(other, GLOBAL));
            other
        });
        ok(allocate(&mut 0, 1));
        ok(begin(stream, RELAXED));
        ok(allocate(&mut 0, 1));
        ok(end(stream, &mut 0));
        exchange(&mut mode);
        assert_eq!(mode, THREAD_LOCAL);
        assert_eq!(allocate(&mut 0, 1), Rule::SafeInCapture.code());
        assert_eq!(status_of(other).0, 2, "the call has invalidated the other thread's capture");
    }

    fn captures_have_a_status_and_a_number("") {
        start();
        let stream = stream();
        assert_eq!(status_of(stream), (0, 0));
        ok(begin(stream, RELAXED));
        let (status, first) = status_of(stream);
        assert_eq!(status, 1);
        ok(end(stream, &mut 0));
        ok(begin(stream, RELAXED));
        assert_ne!(status_of(stream).1, first);
        let before = recorded(crate::calls::stream());
        assert_eq!(wait(stream, before), Rule::CaptureIsolated.code());
        assert_eq!(status_of(stream).0, 2);
        let mut graph = 1;
        assert_eq!(end(stream, &mut graph), Rule::CaptureValid.code());
        assert_eq!((graph, status_of(stream).0), (0, 0), "no graph, and the stream is at rest");
        ok(fill(memory(1), 0, 1, stream));
    }

    fn two_captures_that_meet_are_both_invalid("") {
        start();
        let (one, two) = (stream(), stream());
        ok(begin(one, RELAXED));
        ok(begin(two, RELAXED));
        assert_eq!(wait(two, recorded(one)), Rule::CapturesApart.code());
        assert_eq!((status_of(one).0, status_of(two).0), (2, 2));
    }

    fn the_default_stream_s_status_does_not_invalidate("") {
        start();
        let stream = blocking_stream();
        ok(begin(stream, RELAXED));
        assert_eq!(is_capturing(DEFAULT, &mut 0), Rule::NoImplicitCapture.code());
        assert_eq!(status_of(stream).0, 1);
        assert_eq!(synchronize(DEFAULT), Rule::NoImplicitCapture.code());
        assert_eq!(status_of(stream).0, 2);
    }
}
