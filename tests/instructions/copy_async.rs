//! Tests of gpu/copy_async.h.

use super::Rng;
use super::rig::{Call, in_every_configuration};

#[test]
pub fn parts_of_chunks_and_words() {
    let mut rng = Rng(16);
    let mut bytes = |n: usize| -> Vec<u8> { (0..n).map(|_| rng.draw() as u8).collect() };
    let (chunks, words) = (bytes(17 * 16), bytes(5 * 4));
    // The first i bytes of piece i, and at the end all of piece `whole`.
    let parts = |source: &[u8], width: usize, whole: usize| -> Vec<u8> {
        let part =
            |(i, piece): (usize, &[u8])| piece[..i].iter().copied().chain(vec![0; width - i]).collect::<Vec<_>>();
        let mut all: Vec<u8> = source.chunks(width).enumerate().flat_map(part).collect();
        all.extend(&source[whole * width..][..width]);
        all
    };
    in_every_configuration(|rig| {
        let (from_chunks, from_words) = (rig.upload(&chunks), rig.upload(&words));
        let (to_chunks, to_words) = (rig.output::<u8>(18 * 16), rig.output::<u8>(6 * 4));
        let inputs = [from_chunks.at(), from_words.at()];
        let outputs = [to_chunks.at(), to_words.at()];
        let call = Call { shared_bytes: 320, inputs: &inputs, outputs: &outputs, ..Call::default() };
        rig.launch("test_copy_async_part", &call);
        assert_eq!(rig.download(&to_chunks), parts(&chunks, 16, 3));
        assert_eq!(rig.download(&to_words), parts(&words, 4, 2));
    });
}

#[test]
pub fn a_ring_of_stages() {
    for rounds in [1, 2, 3, 8] {
        let mut rng = Rng(17);
        let data: Vec<u32> = (0..rounds * 128).map(|_| rng.draw() as u32).collect();
        let element = |i: usize| {
            let place = ((i / 4) ^ 1) * 4 + i % 4;
            let terms = (0..rounds).map(|round| data[round * 128 + place].wrapping_mul(round as u32 + 1));
            terms.fold(0u32, u32::wrapping_add)
        };
        let expected: Vec<u32> = (0..128).map(element).collect();
        in_every_configuration(|rig| {
            let (input, output) = (rig.upload(&data), rig.output::<u32>(128));
            let n = [rounds as u32];
            let call = Call { shared_bytes: 1536, inputs: &[input.at()], n: &n, ..Call::default() };
            rig.launch("test_copy_async_ring", &Call { outputs: &[output.at()], ..call });
            assert_eq!(rig.download(&output), expected, "{rounds} rounds");
        });
    }
}
