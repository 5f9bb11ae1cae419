//! Tests of gpu/convert.h against the `half` crate.

use half::{bf16, f16};

use super::Rng;
use super::rig::{Call, in_every_build};

fn same(got: f32, expected: f32) -> bool {
    got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan()
}

#[test]
fn every_value_of_16_bits_to_f32() {
    in_every_build(|rig| {
        let (halves, brains) = (rig.output::<f32>(65536), rig.output::<f32>(65536));
        let outputs = [halves.at(), brains.at()];
        rig.launch("test_convert_widen", &Call { threads: 64, outputs: &outputs, ..Call::default() });
        let all = rig.download(&halves).into_iter().zip(rig.download(&brains));
        for (pattern, (from_f16, from_bf16)) in (0u16..=0xffff).zip(all) {
            assert!(same(from_f16, f16::from_bits(pattern).to_f32()), "f16 {pattern:#06x}: {from_f16:e}");
            assert!(same(from_bf16, bf16::from_bits(pattern).to_f32()), "bf16 {pattern:#06x}: {from_bf16:e}");
        }
    });
}

/// Every value of either type, the ties between neighbours, the values next to the ties, special values, and random
/// ones.
fn patterns() -> Vec<u32> {
    let mut all = vec![0, 1, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff, 0x007f_ffff, 0x0080_0000];
    for pattern in (0u16..0x7c01).step_by(3) {
        let here = f16::from_bits(pattern).to_f64();
        let next = if pattern < 0x7bff { f16::from_bits(pattern + 1).to_f64() } else { 65536.0 };
        let tie = (((here + next) / 2.0) as f32).to_bits();
        all.extend([(here as f32).to_bits(), tie - 1, tie, tie + 1]);
    }
    for upper in (0u32..0x7f81).step_by(5) {
        all.extend([upper << 16, upper << 16 | 0x7fff, upper << 16 | 0x8000, upper << 16 | 0x8001]);
    }
    let mut rng = Rng(8);
    all.extend((0..4000).map(|_| rng.draw() as u32 >> 1));
    all.iter().flat_map(|&bits| [bits, bits | 0x8000_0000]).collect()
}

fn is_f16_of(bits: u16, value: f32) -> bool {
    if value.is_nan() { f16::from_bits(bits).is_nan() } else { bits == f16::from_f32(value).to_bits() }
}

fn is_bf16_of(bits: u16, value: f32) -> bool {
    if value.is_nan() { bf16::from_bits(bits).is_nan() } else { bits == bf16::from_f32(value).to_bits() }
}

#[test]
fn f32_rounds_to_the_nearest() {
    let patterns = patterns();
    in_every_build(|rig| {
        let len = patterns.len();
        let input = rig.upload(&patterns);
        let (single, halves, brains) = (rig.output::<u32>(len), rig.output::<u32>(len), rig.output::<u32>(len));
        let storage = rig.output::<u32>(len);
        let outputs = [single.at(), halves.at(), brains.at(), storage.at()];
        let n = [len as u32];
        let call = Call { threads: 64, inputs: &[input.at()], outputs: &outputs, n: &n, ..Call::default() };
        rig.launch("test_convert_narrow", &call);
        let (single, halves, brains) = (rig.download(&single), rig.download(&halves), rig.download(&brains));
        assert_eq!(rig.download(&storage), patterns);
        for i in 0..len {
            let (value, next) = (f32::from_bits(patterns[i]), f32::from_bits(patterns[(i + 1) % len]));
            let upper = |word: u32| (word >> 16) as u16;
            assert!(is_f16_of(single[i] as u16, value), "{value:e} to f16: {:#x}", single[i] as u16);
            assert!(is_bf16_of(upper(single[i]), value), "{value:e} to bf16: {:#x}", upper(single[i]));
            assert!(is_f16_of(halves[i] as u16, value) && is_f16_of(upper(halves[i]), next), "{value:e}, {next:e}");
            assert!(is_bf16_of(brains[i] as u16, value) && is_bf16_of(upper(brains[i]), next), "{value:e}, {next:e}");
        }
    });
}

/// Rounds an f32 to the nearest value with 10 fraction bits, ties away from zero, in double precision.
fn nearest_tf32(value: f32) -> f32 {
    let (value, sign) = (f64::from(value.abs()), 1f32.copysign(value));
    // Subnormal numbers are rounded with the exponent of the smallest normal number.
    let step = 2f64.powi((value.log2().floor() as i32).max(-126) - 10);
    let rounded = (value / step + 0.5).floor() * step;
    // 2^128 is beyond f32's range and becomes infinity.
    sign * rounded as f32
}

#[test]
fn f32_rounds_to_the_nearest_tf32() {
    let mut patterns = patterns();
    // Ties between neighbours, and the values next to them.
    let mut rng = Rng(16);
    patterns.extend((0..4000).map(|i| (rng.draw() as u32 & !0x1fff) + 0x0fff + i % 3));
    in_every_build(|rig| {
        let (input, output) = (rig.upload(&patterns), rig.output::<u32>(patterns.len()));
        let n = [patterns.len() as u32];
        let call = Call { threads: 64, inputs: &[input.at()], outputs: &[output.at()], n: &n, ..Call::default() };
        rig.launch("test_convert_tf32", &call);
        for (&pattern, got) in patterns.iter().zip(rig.download(&output)) {
            let value = f32::from_bits(pattern);
            let expected = match value {
                _ if value == 0.0 || value.is_infinite() => pattern,
                // A NaN keeps only the bits that the matrix instruction reads.
                _ if value.is_nan() => pattern & !0x1fff,
                _ => nearest_tf32(value).to_bits(),
            };
            assert_eq!(got, expected, "{value:e}, {pattern:#x}, is {got:#x}");
        }
    });
}

#[test]
fn chunks_unpack_in_the_order_of_addresses() {
    let mut rng = Rng(9);
    // Exponents that give neither infinities nor NaN in either type.
    let words: Vec<u32> = (0..40).map(|_| rng.draw() as u32 & 0xbfff_bfff).collect();
    in_every_build(|rig| {
        let input = rig.upload(&words);
        let (a, b, c) = (rig.output::<f32>(80), rig.output::<f32>(160), rig.output::<f32>(160));
        let outputs = [a.at(), b.at(), c.at()];
        let n = [10];
        let inputs = [input.at(); 3];
        let call = Call { threads: 64, inputs: &inputs, outputs: &outputs, n: &n, ..Call::default() };
        rig.launch("test_convert_chunks", &call);
        let halves: Vec<u16> = words.iter().flat_map(|&word| [word as u16, (word >> 16) as u16]).collect();
        // The kernel stores a chunk's values twice: as unpacked, and as packed again.
        let twice = |values: Vec<f32>, elements: usize| -> Vec<u32> {
            values.chunks(elements).flat_map(|chunk| chunk.repeat(2)).map(f32::to_bits).collect()
        };
        let bits = |values: Vec<f32>| -> Vec<u32> { values.into_iter().map(f32::to_bits).collect() };
        assert_eq!(bits(rig.download(&a)), twice(words.iter().map(|&w| f32::from_bits(w)).collect(), 4));
        let expected = halves.iter().map(|&h| f16::from_bits(h).to_f32()).collect();
        assert_eq!(bits(rig.download(&b)), twice(expected, 8));
        let expected = halves.iter().map(|&h| bf16::from_bits(h).to_f32()).collect();
        assert_eq!(bits(rig.download(&c)), twice(expected, 8));
    });
}

#[test]
fn bytes_of_two_words() {
    let mut rng = Rng(10);
    let triples: Vec<[u32; 3]> =
        (0..600).map(|_| [rng.draw() as u32, rng.draw() as u32, rng.draw() as u32 & 0x7777]).collect();
    in_every_build(|rig| {
        let (input, output) = (rig.upload(&triples), rig.output::<u32>(triples.len()));
        let n = [triples.len() as u32];
        let call = Call { threads: 64, inputs: &[input.at()], outputs: &[output.at()], n: &n, ..Call::default() };
        rig.launch("test_convert_bytes", &call);
        for (&[a, b, selector], got) in triples.iter().zip(rig.download(&output)) {
            let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
            let expected = std::array::from_fn(|i| bytes[(selector >> (4 * i)) as usize & 7]);
            assert_eq!(got, u32::from_le_bytes(expected), "{a:#x}, {b:#x}, {selector:#x}");
        }
    });
}
