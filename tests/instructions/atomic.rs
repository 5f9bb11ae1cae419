//! Tests of gpu/atomic.h.

use super::Rng;
use super::rig::{Call, in_every_configuration};

const CTAS: usize = 6;
const THREADS: usize = CTAS * 32;

#[test]
fn counters_give_each_thread_its_own_value() {
    let mut rng = Rng(2);
    let values: Vec<u32> = (0..THREADS).map(|_| rng.draw() as u32).collect();
    in_every_configuration(|rig| {
        let input = rig.upload(&values);
        let narrow = rig.upload(&[7u32; THREADS + 1]);
        let wide = rig.upload(&[u64::from(u32::MAX) - 10; THREADS + 1]);
        let largest = rig.upload(&[5u32; THREADS + 1]);
        let outputs = [narrow.at(), wide.at(), largest.at()];
        let call = Call { grid: CTAS as u32, inputs: &[input.at()], outputs: &outputs, ..Call::default() };
        rig.launch("test_atomic_counters", &call);

        let mut found = rig.download(&narrow);
        assert_eq!(found[0], 7 + 3 * THREADS as u32);
        found.sort_unstable();
        assert!(found.iter().enumerate().all(|(i, &value)| value == 7 + 3 * i as u32), "{found:?}");

        let mut found = rig.download(&wide);
        found.sort_unstable();
        let first = u64::from(u32::MAX) - 10;
        assert!(found.iter().enumerate().all(|(i, &value)| value == first + 3 * i as u64), "{found:?}");

        let found = rig.download(&largest);
        assert_eq!(found[0], *values.iter().max().unwrap());
        // In the order of the values that atomicMax returned, each thread got the largest value of all threads before
        // it.
        let mut order: Vec<usize> = (0..THREADS).collect();
        order.sort_by_key(|&i| (found[1 + i], values[i]));
        let mut largest_before = 5;
        for i in order {
            assert_eq!(found[1 + i], largest_before, "thread {i}");
            largest_before = largest_before.max(values[i]);
        }
    });
}

#[test]
fn an_acquire_makes_plain_writes_visible() {
    // The threads apply v -> 3 v + ticket in the order of their tickets.
    let expected: Vec<u32> = (0..32u32).map(|i| (0..CTAS as u32).fold(i, |v, ticket| 3 * v + ticket)).collect();
    in_every_configuration(|rig| {
        for wide in [false, true] {
            let words = rig.upload(&[0u64; 2]);
            let values = rig.upload(&super::counted(32));
            let kernel = if wide { "test_atomic_hand_on_u64" } else { "test_atomic_hand_on_u32" };
            let outputs = [words.at(), values.at()];
            rig.launch(kernel, &Call { grid: CTAS as u32, shared_bytes: 4, outputs: &outputs, ..Call::default() });
            assert_eq!(rig.download(&values), expected);
        }
    });
}

#[test]
fn the_last_arrival_sees_what_all_wrote() {
    let expected: Vec<u32> = (0..32).map(|i| (0..CTAS as u32).map(|cta| (cta * 32 + i) * 5 + 1).sum()).collect();
    in_every_configuration(|rig| {
        for kernel in ["test_atomic_last_u32", "test_atomic_last_u64"] {
            let counter = rig.upload(&[0u64]);
            let values = rig.output::<u32>(32 + THREADS);
            let outputs = [counter.at(), values.at()];
            rig.launch(kernel, &Call { grid: CTAS as u32, shared_bytes: 4, outputs: &outputs, ..Call::default() });
            assert_eq!(rig.download(&values)[..32], expected);
        }
    });
}

#[test]
fn words_that_carry_their_own_flag() {
    in_every_configuration(|rig| {
        let (tickets, wide, narrow) = (rig.upload(&[0u32]), rig.upload(&[0u64; 32]), rig.upload(&[0u32; 32]));
        let read = rig.output::<u32>(THREADS - 32);
        let outputs = [tickets.at(), wide.at(), narrow.at(), read.at()];
        let call = Call { grid: CTAS as u32, shared_bytes: 4, outputs: &outputs, ..Call::default() };
        rig.launch("test_atomic_words", &call);
        let expected: Vec<u32> = (0..THREADS as u32 - 32).map(|i| i % 32 * 2 + 100).collect();
        assert_eq!(rig.download(&read), expected);
    });
}
