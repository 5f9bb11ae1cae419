//! How many copies of a layer's operands are made so that every call finds the caches cold, and the memory that they
//! take.

/// The largest number of copies. That many calls take long enough to be timed; and a layer so small that it would need
/// more copies is read from a cache in practice, too.
const MAX_COPIES: usize = 1 << 14;
/// The largest total size of all copies, unless two copies alone are larger: filling memory takes longer than
/// measuring.
const MAX_TOTAL_BYTES: usize = 2 << 30;
/// Bytes of a cache line. Each operand of a copy starts at a multiple of it.
pub(super) const CACHE_LINE: usize = 64;

/// Memory that a case takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footprint {
    /// W0 of one copy.
    pub(super) weight: usize,
    /// All operands of one copy: W0, A, B, bottleneck adapters.
    pub(super) per_copy: usize,
    /// All that the copies share: x, y, gradients, temporaries, workspaces.
    pub(super) shared: usize,
}

/// The error that two copies do not fit into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge {
    required: usize,
    allowed: usize,
}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        write!(f, "two copies of the layer and its adapters take {} MiB", mib(self.required))?;
        write!(f, ", expected at most {} MiB (half of what is available)", mib(self.allowed))
    }
}

impl std::error::Error for TooLarge {}

/// Bytes of operands, given by number of elements and bytes of an element. No two share a cache line.
pub(super) fn bytes_of(operands: &[(usize, usize)]) -> usize {
    let bytes = |&(len, size): &(usize, usize)| {
        len.saturating_mul(size).saturating_add(CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE
    };
    operands.iter().map(bytes).fold(0, usize::saturating_add)
}

/// The number of copies, at least two, that make every call find its operands outside the caches: W0 of all copies and
/// `other_bytes`, which every call reads or writes as well, come to `cold_bytes` together. It is smaller if all would
/// not fit into 2 GiB, or into half of the `available` bytes of memory.
pub(super) fn copies(
    cold_bytes: usize,
    other_bytes: usize,
    footprint: &Footprint,
    available: usize,
) -> std::result::Result<usize, TooLarge> {
    let &Footprint { weight, per_copy, shared } = footprint;
    let allowed = available / 2;
    let required = shared.saturating_add(per_copy.max(1).saturating_mul(2));
    if required > allowed {
        return Err(TooLarge { required, allowed });
    }
    let copies_for_cold_cache = cold_bytes.saturating_sub(other_bytes).div_ceil(weight.max(1));
    let fitting = (allowed.min(MAX_TOTAL_BYTES.max(required)) - shared) / per_copy.max(1);
    Ok(copies_for_cold_cache.clamp(2, MAX_COPIES).min(fitting))
}

#[cfg(test)]
mod tests {
    use super::*;

    const L2_MULTIPLE: usize = 192 << 20;
    const AVAILABLE: usize = 16 << 30;

    /// A layer in f32 with LoRA of rank 16 and adapters of width 3 and 112.
    fn footprint(d_in: usize, d_out: usize) -> Footprint {
        let adapters = [3, 112].map(|width| (2 * d_out * width, 4));
        let weight = bytes_of(&[(d_in * d_out, 4)]);
        let per_copy = weight + bytes_of(&[(16 * d_in, 4), (16 * d_out, 4)]) + bytes_of(&adapters);
        Footprint { weight, per_copy, shared: bytes_of(&[(d_in, 4), (d_out, 4)]) }
    }

    #[test]
    fn all_memory_stays_within_its_bounds() {
        let shapes = [(1, 1), (3, 5), (64, 64), (1, 100_000), (100_000, 1), (4096, 4096), (16_384, 16_384)];
        for (d_in, d_out) in shapes {
            for available in [AVAILABLE, 4 << 30, 1 << 30] {
                let footprint = footprint(d_in, d_out);
                match copies(L2_MULTIPLE, 0, &footprint, available) {
                    Ok(copies) => {
                        let bytes = footprint.shared + copies * footprint.per_copy;
                        let most = (available / 2).min(MAX_TOTAL_BYTES.max(footprint.shared + 2 * footprint.per_copy));
                        assert!((2..=MAX_COPIES).contains(&copies) && bytes <= most, "{d_in} x {d_out}: {copies}");
                    }
                    Err(error) => {
                        assert_eq!(error.required, footprint.shared + 2 * footprint.per_copy, "{d_in} x {d_out}")
                    }
                }
            }
        }
        // 1 x 100000: the weight of 400 KB would need 504 copies, but each copy has 98 MB of factors and adapters.
        let wide = footprint(1, 100_000);
        assert_eq!(copies(L2_MULTIPLE, 0, &Footprint { per_copy: wide.weight, ..wide }, AVAILABLE), Ok(504));
        assert_eq!(copies(L2_MULTIPLE, 0, &wide, AVAILABLE), Ok(21));
        assert_eq!(copies(L2_MULTIPLE, 0, &wide, 2 << 30), Ok(10));
        assert_eq!(
            copies(L2_MULTIPLE, 0, &wide, 256 << 20).map_err(|error| error.to_string()),
            Err("two copies of the layer and its adapters take 189 MiB, expected at most 128 MiB (half of what is \
                 available)"
                .to_owned())
        );
    }

    #[test]
    fn small_layers_are_copied_a_bounded_number_of_times() {
        for (d_in, d_out) in [(1, 1), (3, 5), (16, 16)] {
            assert_eq!(copies(L2_MULTIPLE, 0, &footprint(d_in, d_out), AVAILABLE), Ok(MAX_COPIES));
        }
        // 64 x 64 in f32 is 16 KiB.
        assert_eq!(copies(L2_MULTIPLE, 0, &footprint(64, 64), AVAILABLE), Ok(12_288));
    }

    #[test]
    fn weights_are_copied_until_they_do_not_fit_the_cache() {
        const L2: usize = 50 << 20;
        let copies = |weight: usize, other_bytes| {
            copies(3 * L2, other_bytes, &Footprint { weight, per_copy: weight, shared: 0 }, usize::MAX).unwrap()
        };
        // First 4096 x 4096 in 2 bytes with one token; the third case has x and y that alone exceed the L2 cache.
        assert_eq!(copies(32 << 20, 16 << 10), 5);
        assert_eq!(copies(2 << 20, 0), 75);
        assert_eq!(copies(6 << 20, 128 << 20), 4);
        // 16384 tokens of 8192 x 8192.
        assert_eq!(copies(128 << 20, 512 << 20), 2);
    }

    #[test]
    fn sizes_beyond_memory_do_not_overflow() {
        let huge = Footprint { weight: usize::MAX, per_copy: usize::MAX, shared: usize::MAX };
        assert!(copies(L2_MULTIPLE, usize::MAX, &huge, usize::MAX).is_err());
        assert_eq!(bytes_of(&[(usize::MAX, 4), (1, 4)]), usize::MAX);
        assert_eq!(bytes_of(&[(1, 4), (17, 4), (0, 2)]), 64 + 128);
        assert!(copies(L2_MULTIPLE, 0, &Footprint { weight: 0, per_copy: 0, shared: 0 }, 0).is_err());
    }
}
