//! Tests of gpu/warp.h.

use std::fmt::Debug;

use super::Rng;
use super::rig::{Array, Call, Rig, in_every_configuration};
use bytemuck::{AnyBitPattern, NoUninit};

/// The lanes that lane `lane` reads from in the eight shuffles of warp.cu.
fn sources(lane: usize) -> [usize; 8] {
    let down = |by: usize| if lane + by < 32 { lane + by } else { lane };
    let up = |by: usize| if lane >= by { lane - by } else { lane };
    let all = [(lane * 7 + 3) % 32, lane ^ 21, down(5), up(9)];
    let some = if lane.is_multiple_of(2) {
        [(lane + 10) % 32, lane ^ 6, down(4), up(2)]
    } else {
        [(lane + 20) % 32, lane ^ 16, down(2), up(8)]
    };
    std::array::from_fn(|i| if i < 4 { all[i] } else { some[i - 4] })
}

fn check<T: AnyBitPattern + NoUninit + PartialEq + Debug>(rig: &Rig, got: &Array<T>, values: &[T]) {
    let got = rig.download(got);
    for (thread, &_) in values.iter().enumerate() {
        let (warp, lane) = (thread / 32, thread % 32);
        for (i, source) in sources(lane).into_iter().enumerate() {
            assert_eq!(got[(warp * 8 + i) * 32 + lane], values[warp * 32 + source], "thread {thread}, shuffle {i}");
        }
    }
}

#[test]
fn shuffles_of_every_type() {
    let mut rng = Rng(3);
    // Random bits that are not NaN as floats, so that values can be compared.
    let values: Vec<u64> = (0..64).map(|_| rng.draw() & !0x4000_0000).collect();
    in_every_configuration(|rig| {
        let input = rig.upload(&values);
        let n = values.len() * 8;
        let (a, b, c, d) = (rig.output::<u32>(n), rig.output::<i32>(n), rig.output::<f32>(n), rig.output::<u64>(2 * n));
        let outputs = [a.at(), b.at(), c.at(), d.at()];
        let call = Call { threads: 64, inputs: &[input.at()], outputs: &outputs, ..Call::default() };
        rig.launch("test_warp_shuffles", &call);
        check(rig, &a, &values.iter().map(|&v| v as u32).collect::<Vec<_>>());
        check(rig, &b, &values.iter().map(|&v| v as i32).collect::<Vec<_>>());
        check(rig, &c, &values.iter().map(|&v| f32::from_bits(v as u32)).collect::<Vec<_>>());
        // The output has the bits of the u64 shuffles first, then those of the f64 shuffles, as if of two more warps.
        check(rig, &d, &values.repeat(2));
    });
}

#[test]
fn votes() {
    let mut rng = Rng(4);
    // Bit 0 is set in every lane, bit 1 in none, bit 2 in the first eight lanes, bit 3 in one lane, the others at
    // random.
    let word = |i: u64, random: u64| random << 4 | u64::from(i == 41) << 3 | u64::from(i % 32 < 8) << 2 | 1;
    let words: Vec<u32> = (0..64).map(|i| word(i, rng.draw()) as u32).collect();
    in_every_configuration(|rig| {
        let (input, output) = (rig.upload(&words), rig.output::<[u32; 6]>(64 * 32));
        let call = Call { threads: 64, inputs: &[input.at()], outputs: &[output.at()], ..Call::default() };
        rig.launch("test_warp_votes", &call);
        for (i, got) in rig.download(&output).into_iter().enumerate() {
            let (thread, bit) = (i / 32, i % 32);
            let lanes = &words[thread / 32 * 32..][..32];
            let ballot = lanes.iter().rev().fold(0u32, |votes, word| votes << 1 | (word >> bit & 1));
            let mut expected = [ballot, u32::from(ballot == !0), u32::from(ballot != 0), !0, !0, !0];
            if thread % 32 < 8 {
                let few = ballot & 0xff;
                expected[3..].copy_from_slice(&[few, u32::from(few == 0xff), u32::from(few != 0)]);
            }
            assert_eq!(got, expected, "thread {thread}, bit {bit}");
        }
    });
}

#[test]
fn a_warp_passes_words_through_shared_memory() {
    in_every_configuration(|rig| {
        let (sums, elected) = (rig.output::<u32>(64), rig.output::<u32>(128));
        let outputs = [sums.at(), elected.at()];
        rig.launch("test_warp_memory", &Call { threads: 64, shared_bytes: 256, outputs: &outputs, ..Call::default() });
        let next = |thread: u32| 10 * (thread / 32 * 32 + (thread + 1) % 32);
        let both = |thread: u32| next(thread) + if thread % 32 >= 16 { next(thread ^ 15) } else { 0 };
        assert_eq!(rig.download(&sums), (0..64).map(both).collect::<Vec<_>>());
        for warp in rig.download(&elected).chunks(32) {
            assert_eq!(warp.iter().sum::<u32>(), 1, "one lane is elected: {warp:?}");
        }
    });
}
