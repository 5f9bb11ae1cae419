//! Where a launch keeps what its CTAs tell each other.

/// Sizes of a workspace's parts. In memory they lie in this order: the ticket counter's word, the words of T, the flags,
/// the arrival counters, the partial sums, the tiles of T.
///
/// The whole is zeroed once; every launch leaves it ready for the next, of a decode or a forward kernel. One workspace
/// serves any number of layers whose launches do not overlap, if each part is as large as the largest of theirs:
/// [`union`](Self::union).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkspaceLayout {
    /// Decode: 64-bit words of T, an element each, with the launch that wrote it.
    pub t_words: usize,
    /// Forward: 32-bit flags, one a tile of T.
    pub flags: usize,
    /// 32-bit counters: one a tile whose depth several CTAs share.
    pub arrivals: usize,
    /// f32 partial sums of such tiles.
    pub partial: usize,
    /// Forward: bytes of T, whose tiles the flags stand for.
    pub t_bytes: usize,
}

impl WorkspaceLayout {
    /// Bytes from the start to the words of T.
    pub const T_OFFSET: usize = 8;

    /// Bytes from the start to the flags.
    pub fn flags_offset(&self) -> usize {
        Self::T_OFFSET + 8 * self.t_words
    }

    /// Bytes from the start to the arrival counters.
    pub fn arrivals_offset(&self) -> usize {
        self.flags_offset() + 4 * self.flags
    }

    /// Bytes from the start to the partial sums, a multiple of 16.
    pub fn partial_offset(&self) -> usize {
        (self.arrivals_offset() + 4 * self.arrivals).next_multiple_of(16)
    }

    /// Bytes from the start to the tiles of T, a multiple of 16.
    pub fn t_tiles_offset(&self) -> usize {
        (self.partial_offset() + 4 * self.partial).next_multiple_of(16)
    }

    /// Bytes of the whole.
    pub fn bytes(&self) -> usize {
        self.t_tiles_offset() + self.t_bytes
    }

    /// The smallest workspace that serves both.
    pub fn union(&self, other: &Self) -> Self {
        Self {
            t_words: self.t_words.max(other.t_words),
            flags: self.flags.max(other.flags),
            arrivals: self.arrivals.max(other.arrivals),
            partial: self.partial.max(other.partial),
            t_bytes: self.t_bytes.max(other.t_bytes),
        }
    }

    /// Whether every part is as large as the other's.
    pub fn serves(&self, other: &Self) -> bool {
        self.union(other) == *self
    }
}

impl std::fmt::Display for WorkspaceLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { t_words, flags, arrivals, partial, t_bytes } = self;
        write!(f, "{t_words} words and {t_bytes} B of T, {flags} flags, {arrivals} arrivals, {partial} partial sums")
    }
}
