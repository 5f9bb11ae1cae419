//! Tests of gpu/block.h.

use super::Rng;
use super::rig::{Call, in_every_configuration};

#[test]
fn values_move_from_thread_to_thread() {
    in_every_configuration(|rig| {
        let output = rig.output::<u32>(64);
        let call = Call { threads: 128, shared_bytes: 256, outputs: &[output.at()], n: &[9], ..Call::default() };
        rig.launch("test_block_rotate", &call);
        assert_eq!(rig.download(&output), (0..64).map(|i| (i + 64 - 9) % 64).collect::<Vec<u32>>());
    });
}

#[test]
fn a_condition_of_any_thread_is_known_to_all() {
    let mut rng = Rng(5);
    // Sparse bits: some are set in no thread, some in one, some in many.
    let words: Vec<u32> =
        (0..96).map(|_| (rng.draw() & rng.draw() & rng.draw() & rng.draw()) as u32 & 0x0fff_fff0).collect();
    let any = words.iter().fold(0, |any, word| any | word);
    in_every_configuration(|rig| {
        let (input, output) = (rig.upload(&words), rig.output::<u32>(96));
        let call = Call { threads: 96, inputs: &[input.at()], outputs: &[output.at()], ..Call::default() };
        rig.launch("test_block_or", &call);
        assert_eq!(rig.download(&output), [any; 96]);
    });
}

#[test]
fn named_barriers_between_writers_and_readers() {
    let rounds = 7u32;
    let mut sums = [0u32; 64];
    for round in 0..rounds {
        for (reader, sum) in sums.iter_mut().enumerate() {
            *sum = sum.wrapping_add(round * 100 + 31 - reader as u32 % 32);
        }
        let before = sums;
        for (reader, sum) in sums.iter_mut().enumerate() {
            *sum = sum.wrapping_add(before[63 - reader]);
        }
    }
    in_every_configuration(|rig| {
        let output = rig.output::<u32>(64);
        let call = Call { threads: 96, shared_bytes: 128 + 256, outputs: &[output.at()], ..Call::default() };
        rig.launch("test_block_named", &Call { n: &[rounds], ..call });
        assert_eq!(rig.download(&output), sums);
    });
}
