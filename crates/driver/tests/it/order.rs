//! When work runs, and in which order.

use std::collections::HashSet;

use crate::calls::*;
use crate::process::tests;

const NOT_READY: u32 = 600;

/// Enters the context of another device, whose work runs in an order of this seed.
fn enter_with_seed(device: i32, seed: i32) {
    set(&format!("seed={seed}"));
    ok(enter(retain(device)));
}

/// How many of eight downloads on a second stream have been made when all of the first stream's have.
fn downloads_beside_a_wait() -> usize {
    let (address, one, two) = (memory(8), stream(), stream());
    ok(fill(address, 1, 8, one));
    ok(synchronize(one));
    let (mut here, mut there) = ([0; 8], [0; 8]);
    for at in 0..8 {
        ok(download(&mut here[at..=at], address, one));
        ok(download(&mut there[at..=at], address, two));
    }
    ok(synchronize(one));
    assert_eq!(here, [1; 8]);
    let made = there.iter().filter(|byte| **byte == 1).count();
    ok(synchronize(two));
    assert_eq!(there, [1; 8]);
    made
}

/// Whether a download on the default stream has been made when a later fill on another stream has run.
fn default_stream_comes_first(other: usize) -> bool {
    let (address, mut byte) = (memory(512), [0]);
    ok(fill(address, 7, 512, DEFAULT));
    ok(synchronize(DEFAULT));
    ok(download(&mut byte, address, DEFAULT));
    ok(fill(memory(1), 0, 1, other));
    ok(synchronize(other));
    let made = byte == [7];
    ok(synchronize(DEFAULT));
    made
}

tests! {
    fn copies_are_made_when_they_are_waited_for("") {
        start();
        let (address, stream) = (memory(4), stream());
        let (mut from, mut to) = ([1u8; 4], [9u8; 4]);
        ok(upload(address, &from, stream));
        ok(download(&mut to, address, stream));
        assert_eq!(to, [9; 4], "before the wait");
        from[3] = 2;
        ok(synchronize(stream));
        assert_eq!(to, [1, 1, 1, 2], "the host's memory is read when the copy is made");
        assert_eq!(from[3], 2);
    }

    fn the_order_of_two_streams_depends_on_the_seed("devices=8") {
        ok(init());
        let mut made = vec![];
        for device in 0..8 {
            enter_with_seed(device, device / 2);
            made.push(downloads_beside_a_wait());
        }
        assert!(made.chunks(2).all(|pair| pair[0] == pair[1]), "the same seed, the same order: {made:?}");
        assert!(made.iter().collect::<HashSet<_>>().len() > 1, "{made:?}");
    }

    fn the_default_stream_is_ordered_with_blocking_streams_only("devices=8") {
        ok(init());
        let mut others = HashSet::new();
        for device in 0..8 {
            enter_with_seed(device, device);
            assert!(default_stream_comes_first(blocking_stream()));
            others.insert(default_stream_comes_first(stream()));
        }
        assert!(others.contains(&false), "no seed lets the other stream run first");
        assert_eq!(violations(), 0);
    }

    fn work_of_blocking_and_default_stream_is_no_race("") {
        start();
        let (address, blocking, other) = (memory(512), blocking_stream(), stream());
        ok(fill(address, 1, 512, blocking));
        ok(fill(address, 2, 512, DEFAULT));
        ok(fill(address, 3, 512, blocking));
        ok(synchronize(blocking));
        assert_eq!(violations(), 0);
        ok(fill(address, 4, 512, DEFAULT));
        ok(fill(address, 5, 512, other));
        ok(synchronize(DEFAULT));
        ok(synchronize(other));
        assert_eq!(violations(), 1);
    }

    fn work_of_a_destroyed_stream_stays_ordered_with_the_default_stream("") {
        start();
        let (address, blocking) = (memory(16), blocking_stream());
        ok(fill(address, 1, 16, blocking));
        ok(destroy_stream(blocking));
        ok(fill(address, 2, 16, DEFAULT));
        let mut bytes = [0; 16];
        ok(download(&mut bytes, address, DEFAULT));
        ok(synchronize(DEFAULT));
        assert_eq!((bytes, violations()), ([2; 16], 0));
    }

    fn a_wait_for_one_device_orders_nothing_on_another("devices=2") {
        ok(init());
        let contexts = [retain(0), retain(1)];
        let [here, there] = contexts.map(|context| {
            ok(enter(context));
            memory(1)
        });
        ok(fill(there, 1, 1, DEFAULT));
        // The fill runs, and the host does not know it.
        assert_eq!(query(recorded(DEFAULT)), NOT_READY);
        ok(enter(contexts[0]));
        for _ in 0..3 {
            ok(fill(here, 1, 1, DEFAULT));
        }
        ok(synchronize(DEFAULT));
        ok(enter(contexts[1]));
        let other = stream();
        ok(fill(there, 1, 1, other));
        ok(synchronize(DEFAULT));
        ok(synchronize(other));
        assert_eq!(violations(), 1, "both devices' default streams have the handle 0");
    }

    fn an_event_happens_by_and_by("") {
        start();
        let (address, stream, start, end) = (memory(16), stream(), timed_event(), timed_event());
        ok(record(start, stream));
        for _ in 0..4 {
            ok(fill(address, 1, 16, stream));
        }
        ok(record(end, stream));
        assert_eq!(elapsed(&mut 0.0, start, end), NOT_READY);
        assert_eq!(query(end), NOT_READY);
        let asked = (1..100).find(|_| query(end) == 0).expect("the event happens");
        assert!(asked > 3, "{asked} queries let four fills run");
        let forth = made(|time| elapsed(time, start, end));
        let back = made(|time| elapsed(time, end, start));
        assert!(forth >= 0.0 && back == -forth, "{forth} {back}");
        assert_eq!(violations(), 0);
    }

    fn a_wait_for_an_event_orders_two_streams("") {
        start();
        let (from, to, one, two) = (memory(256), memory(256), stream(), stream());
        ok(fill(from, 5, 256, one));
        let event = recorded(one);
        ok(wait(two, event));
        ok(destroy_event(event));
        ok(copy(to, from, 256, two));
        ok(destroy_stream(one));
        let mut bytes = [0; 256];
        ok(download(&mut bytes, to, two));
        ok(synchronize(two));
        assert_eq!((bytes, violations()), ([5; 256], 0));
    }

    fn memory_is_freed_after_all_work("") {
        start();
        let (address, mut bytes) = (memory(2), [0; 2]);
        let (one, two) = (stream(), stream());
        ok(download(&mut bytes[..1], address, one));
        ok(download(&mut bytes[1..], address + 1, two));
        ok(free(address));
        assert_eq!(bytes, [0xff; 2], "new memory is filled with NaN");
    }

    fn launches_of_one_executable_graph_are_ordered("") {
        start();
        let (address, one, two) = (memory(16), stream(), stream());
        let graph = executable(|stream| ok(fill(address, 1, 16, stream)));
        ok(upload_graph(graph, one));
        for _ in 0..4 {
            ok(replay(graph, one));
            ok(replay(graph, two));
        }
        ok(synchronize(one));
        ok(synchronize(two));
        assert_eq!(violations(), 0);
        let other = executable(|stream| ok(fill(address, 1, 16, stream)));
        ok(replay(graph, one));
        ok(replay(other, two));
        ok(synchronize(one));
        ok(synchronize(two));
        assert_eq!(violations(), 1, "two executable graphs run side by side");
    }

    fn a_launch_has_its_own_copy_of_its_parameters("") {
        start();
        let (address, stream, function) = (memory(16), stream(), pointwise());
        let values = [-1.0f32, 2.0, -3.0, 4.0].map(f32::to_le_bytes).concat();
        ok(upload(address, &values, stream));
        let mut launch = launch_on(address, 4, stream);
        ok(launch.issue(function));
        launch.attributes.push(DEPENDENT);
        ok(launch.issue(function));
        launch.parameters.y = std::ptr::null_mut();
        let mut found = [0; 16];
        ok(download(&mut found, address, stream));
        ok(synchronize(stream));
        let expected = [0.0f32, 2.0, 0.0, 4.0].map(f32::to_le_bytes).concat();
        assert_eq!(found, expected[..]);
    }
}
