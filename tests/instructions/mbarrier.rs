//! Tests of gpu/mbarrier.h within a CTA.

use super::rig::{Call, in_every_configuration};

#[test]
pub fn writers_and_readers_over_a_ring() {
    for rounds in [1u32, 2, 7] {
        let sum = |reader: u32| (0..rounds).fold(0u32, |sum, i| 3 * sum + 100 * i + 31 - reader % 32);
        let expected: Vec<u32> = (0..64).map(sum).collect();
        in_every_configuration(|rig| {
            let (sums, tests) = (rig.output::<u32>(64), rig.output::<u32>(2));
            let outputs = [sums.at(), tests.at()];
            let call = Call { threads: 96, shared_bytes: 32 + 256, outputs: &outputs, ..Call::default() };
            rig.launch("test_mbarrier_ring", &Call { n: &[rounds], ..call });
            assert_eq!(rig.download(&sums), expected);
            assert_eq!(rig.download(&tests), [0, 1], "the phase before the first has parity 1, and is over");
        });
    }
}

#[test]
pub fn memory_that_is_a_barrier_again_and_again() {
    // Thread 0 sums the values that the others wrote; then they add the sums that it had.
    let round_sum = |round: u32| (1..64).map(|i| i * (round + 1)).sum::<u32>();
    let so_far: Vec<u32> = (0..3)
        .scan(0, |sum, round| {
            *sum += round_sum(round);
            Some(*sum)
        })
        .collect();
    let others: u32 = so_far.iter().sum();
    in_every_configuration(|rig| {
        let output = rig.output::<u32>(64);
        let call = Call { threads: 64, shared_bytes: 16 + 256, outputs: &[output.at()], ..Call::default() };
        rig.launch("test_mbarrier_again", &call);
        let got = rig.download(&output);
        assert_eq!(got[0], so_far[2]);
        assert!(got[1..].iter().all(|&sum| sum == others), "{got:?} instead of {others}");
    });
}
