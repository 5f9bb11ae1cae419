//! How often a layer's operands are copied, so that every call finds the caches cold, and what memory that takes.

/// Copies at most. So many calls are long enough for a clock, and the operands of a layer that would need more are read from a
/// cache where it is used, too.
const MOST: usize = 1 << 14;
/// Bytes that all copies take together at most, where two do not need more. Filling memory takes longer than measuring.
const ENOUGH: usize = 2 << 30;
/// Operands of a copy start at multiples of a cache line, in bytes.
pub(super) const LINE: usize = 64;

/// Bytes of what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footprint {
    /// W0 of one copy, which is what the base layer reads.
    pub(super) weight: usize,
    /// All that one copy holds: W0, A, B, bottleneck adapters.
    pub(super) copy: usize,
    /// All that there is once: x, y, gradients, temporaries, workspaces.
    pub(super) once: usize,
}

/// Two copies do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge {
    needed: usize,
    allowed: usize,
}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        write!(f, "two copies of the layer and its adapters take {} MiB", mib(self.needed))?;
        write!(f, ", expected at most {} MiB (half of what is available)", mib(self.allowed))
    }
}

impl std::error::Error for TooLarge {}

/// Bytes of so many operands, each in lines of its own.
pub(super) fn bytes_of(operands: &[(usize, usize)]) -> usize {
    let bytes = |&(len, size): &(usize, usize)| len.saturating_mul(size).saturating_add(LINE - 1) / LINE * LINE;
    operands.iter().map(bytes).fold(0, usize::saturating_add)
}

/// Copies to walk through, at least two: until W0's of all copies, and `walked` bytes that every call reads and writes beside
/// them, are `cold` bytes together, so that no copy is still in a cache when its turn comes again; as many as fit,
/// with everything else, into 2 GiB and into half of the `available` bytes of memory.
pub(super) fn copies(
    cold: usize,
    walked: usize,
    footprint: &Footprint,
    available: usize,
) -> std::result::Result<usize, TooLarge> {
    let &Footprint { weight, copy, once } = footprint;
    let allowed = available / 2;
    let needed = once.saturating_add(copy.max(1).saturating_mul(2));
    if needed > allowed {
        return Err(TooLarge { needed, allowed });
    }
    let wanted = cold.saturating_sub(walked).div_ceil(weight.max(1));
    let fitting = (allowed.min(ENOUGH.max(needed)) - once) / copy.max(1);
    Ok(wanted.clamp(2, MOST).min(fitting))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLD: usize = 192 << 20;
    const AVAILABLE: usize = 16 << 30;

    /// A layer in f32 with LoRA of rank 16 and adapters of width 3 and 112.
    fn footprint(d_in: usize, d_out: usize) -> Footprint {
        let adapters = [3, 112].map(|width| (2 * d_out * width, 4));
        let weight = bytes_of(&[(d_in * d_out, 4)]);
        let copy = weight + bytes_of(&[(16 * d_in, 4), (16 * d_out, 4)]) + bytes_of(&adapters);
        Footprint { weight, copy, once: bytes_of(&[(d_in, 4), (d_out, 4)]) }
    }

    #[test]
    fn all_memory_stays_within_its_bounds() {
        let shapes = [(1, 1), (3, 5), (64, 64), (1, 100_000), (100_000, 1), (4096, 4096), (16_384, 16_384)];
        for (d_in, d_out) in shapes {
            for available in [AVAILABLE, 4 << 30, 1 << 30] {
                let footprint = footprint(d_in, d_out);
                match copies(COLD, 0, &footprint, available) {
                    Ok(copies) => {
                        let bytes = footprint.once + copies * footprint.copy;
                        let most = (available / 2).min(ENOUGH.max(footprint.once + 2 * footprint.copy));
                        assert!((2..=MOST).contains(&copies) && bytes <= most, "{d_in} x {d_out}: {copies}");
                    }
                    Err(error) => assert_eq!(error.needed, footprint.once + 2 * footprint.copy, "{d_in} x {d_out}"),
                }
            }
        }
        // 1 x 100000: a weight of 400 KB asks for 504 copies, each of which holds 98 MB of factors and adapters.
        let wide = footprint(1, 100_000);
        assert_eq!(copies(COLD, 0, &Footprint { copy: wide.weight, ..wide }, AVAILABLE), Ok(504));
        assert_eq!(copies(COLD, 0, &wide, AVAILABLE), Ok(21));
        assert_eq!(copies(COLD, 0, &wide, 2 << 30), Ok(10));
        assert_eq!(
            copies(COLD, 0, &wide, 256 << 20).map_err(|error| error.to_string()),
            Err("two copies of the layer and its adapters take 189 MiB, expected at most 128 MiB (half of what is \
                 available)"
                .to_owned())
        );
    }

    #[test]
    fn small_layers_are_copied_a_bounded_number_of_times() {
        for (d_in, d_out) in [(1, 1), (3, 5), (16, 16)] {
            assert_eq!(copies(COLD, 0, &footprint(d_in, d_out), AVAILABLE), Ok(MOST));
        }
        // 64 x 64 in f32 is 16 KiB.
        assert_eq!(copies(COLD, 0, &footprint(64, 64), AVAILABLE), Ok(12_288));
    }

    #[test]
    fn weights_are_copied_until_they_do_not_fit_the_cache() {
        const L2: usize = 50 << 20;
        let copies = |weight: usize, walked| {
            copies(3 * L2, walked, &Footprint { weight, copy: weight, once: 0 }, usize::MAX).unwrap()
        };
        // 4096 x 4096 in 2 bytes, one token; then tokens whose x and y alone push it out.
        assert_eq!(copies(32 << 20, 16 << 10), 5);
        assert_eq!(copies(2 << 20, 0), 75);
        assert_eq!(copies(6 << 20, 128 << 20), 4);
        // 16384 tokens of 8192 x 8192.
        assert_eq!(copies(128 << 20, 512 << 20), 2);
    }

    #[test]
    fn sizes_beyond_memory_do_not_overflow() {
        let huge = Footprint { weight: usize::MAX, copy: usize::MAX, once: usize::MAX };
        assert!(copies(COLD, usize::MAX, &huge, usize::MAX).is_err());
        assert_eq!(bytes_of(&[(usize::MAX, 4), (1, 4)]), usize::MAX);
        assert_eq!(bytes_of(&[(1, 4), (17, 4), (0, 2)]), 64 + 128);
        assert!(copies(COLD, 0, &Footprint { weight: 0, copy: 0, once: 0 }, 0).is_err());
    }
}
