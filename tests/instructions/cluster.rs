//! Tests of gpu/cluster.h, gpu/registers.h, and of multicast copies to several CTAs.

use super::Rng;
use super::rig::{Call, Tensor, in_every_configuration};

#[test]
pub fn words_of_other_ctas() {
    for size in [1u32, 2, 3, 8] {
        let threads = 2 * size * 64;
        let other = |thread: u32, by: u32| {
            let (cluster, rank) = (thread / 64 / size * size, thread / 64 % size);
            (cluster + (rank + by) % size) * 64
        };
        in_every_configuration(|rig| {
            let ranks = rig.output::<[u32; 2]>(threads as usize);
            let (words, floats) = (rig.output::<u32>(threads as usize), rig.output::<u32>(threads as usize));
            let chunks = rig.output::<u32>(2 * size as usize * 64);
            let outputs = [ranks.at(), words.at(), floats.at(), chunks.at()];
            let call = Call { grid: 2 * size, threads: 64, cluster: size, shared_bytes: 512, ..Call::default() };
            rig.launch("test_cluster_exchange", &Call { outputs: &outputs, ..call });
            let expected: Vec<[u32; 2]> = (0..threads).map(|t| [t / 64 % size, size]).collect();
            assert_eq!(rig.download(&ranks), expected);
            let expected: Vec<u32> = (0..threads).map(|t| 7 * (other(t, 1) + 63 - t % 64)).collect();
            assert_eq!(rig.download(&words), expected);
            let two_before = size - 2 % size;
            let expected: Vec<u32> = (0..threads).map(|t| 7 * (other(t, two_before) + t % 64)).collect();
            assert_eq!(rig.download(&floats), expected);
            // The kernel takes the chunks in reverse order.
            let expected: Vec<u32> = (0..threads).map(|t| 7 * (other(t, 1) + 60 - t % 64 / 4 * 4 + t % 4)).collect();
            assert_eq!(rig.download(&chunks), expected);
        });
    }
}

#[test]
pub fn arrivals_at_another_cta() {
    let rounds = 3u32;
    let sum = |lane: u32| (0..rounds).map(|round| (10 * round + 31 - lane) * (round + 1)).sum::<u32>();
    in_every_configuration(|rig| {
        for size in [2u32, 4] {
            let output = rig.output::<u32>(2 * size as usize * 32);
            let call = Call { grid: 2 * size, cluster: size, shared_bytes: 136, n: &[rounds], ..Call::default() };
            rig.launch("test_cluster_arrive", &Call { outputs: &[output.at()], ..call });
            let is_first = |thread: u32| (thread / 32).is_multiple_of(size);
            let expected: Vec<u32> = (0..2 * size * 32).map(|t| if is_first(t) { !0 } else { sum(t % 32) }).collect();
            assert_eq!(rig.download(&output), expected);
        }
    });
}

#[test]
pub fn one_fetch_for_two_ctas() {
    let rounds = 5;
    let mut rng = Rng(18);
    let data: Vec<u32> = (0..rounds * 16 * 32).map(|_| rng.draw() as u32).collect();
    // Each lane reads the chunks c with c % 32 = lane. Their order in shared memory is that of the tensor.
    let sum = |lane: usize, word: usize| {
        let mut sum = 0u32;
        for round in 0..rounds {
            for chunk in (lane..128).step_by(32) {
                let factor = (round + 1 + chunk / 64) as u32;
                sum = sum.wrapping_add(data[round * 512 + chunk * 4 + word].wrapping_mul(factor));
            }
        }
        sum
    };
    let expected: Vec<u32> = (0..4 * 128).map(|i| sum(i / 4 % 32, i % 4)).collect();
    in_every_configuration(|rig| {
        let (input, output) = (rig.upload(&data), rig.output::<u32>(4 * 128));
        let map = rig.tensor_map(&Tensor {
            address: input.at(),
            element_bytes: 2,
            dims: &[64, rounds as u64 * 16],
            strides: &[128],
            boxes: &[64, 8],
            swizzle: false,
        });
        let call = Call { grid: 4, threads: 64, cluster: 2, shared_bytes: 4096 + 32, ..Call::default() };
        let n = [rounds as u32];
        rig.launch("test_multicast_ring", &Call { maps: &[map], outputs: &[output.at()], n: &n, ..call });
        assert_eq!(rig.download(&output), expected);
    });
}

#[test]
pub fn registers_move_between_warpgroups() {
    let mut rng = Rng(19);
    let data: Vec<u32> = (0..384).map(|_| rng.draw() as u32).collect();
    let value = |thread: usize| {
        let held = |i: usize| data[(thread + i) % 384];
        let sum = if thread < 128 {
            data[thread].wrapping_mul(3)
        } else {
            (0..64).fold(0u32, |sum, i| sum.wrapping_add(held(i).wrapping_mul(held(63 - i) | 1)))
        };
        sum.wrapping_add(data[thread])
    };
    let expected: Vec<u32> = (0..384).map(value).collect();
    in_every_configuration(|rig| {
        let (input, output) = (rig.upload(&data), rig.output::<u32>(384));
        let call = Call { threads: 384, inputs: &[input.at()], outputs: &[output.at()], ..Call::default() };
        rig.launch("test_registers", &call);
        assert_eq!(rig.download(&output), expected);
    });
}
