//! Where a decode launch keeps what its CTAs tell each other.

/// Sizes of a workspace's parts. In memory they lie in this order: the ticket counter's word, the words of T, the arrival
/// counters, the partial sums.
///
/// The whole is zeroed once; every launch leaves it ready for the next. One workspace serves any number of layers whose
/// launches do not overlap, if each part is as large as the largest of theirs: [`union`](Self::union).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkspaceLayout {
    /// 64-bit words of T: an element each, with the launch that wrote it.
    pub t_words: usize,
    /// 32-bit counters: one a tile whose depth several CTAs share.
    pub arrivals: usize,
    /// f32 partial sums of such tiles.
    pub partial: usize,
}

impl WorkspaceLayout {
    /// Bytes from the start to the words of T.
    pub const T_OFFSET: usize = 8;

    /// Bytes from the start to the arrival counters.
    pub fn arrivals_offset(&self) -> usize {
        Self::T_OFFSET + 8 * self.t_words
    }

    /// Bytes from the start to the partial sums, a multiple of 16.
    pub fn partial_offset(&self) -> usize {
        (self.arrivals_offset() + 4 * self.arrivals).next_multiple_of(16)
    }

    /// Bytes of the whole.
    pub fn bytes(&self) -> usize {
        self.partial_offset() + 4 * self.partial
    }

    /// The smallest workspace that serves both.
    pub fn union(&self, other: &Self) -> Self {
        Self {
            t_words: self.t_words.max(other.t_words),
            arrivals: self.arrivals.max(other.arrivals),
            partial: self.partial.max(other.partial),
        }
    }

    /// Whether every part is as large as the other's.
    pub fn serves(&self, other: &Self) -> bool {
        self.union(other) == *self
    }
}

impl std::fmt::Display for WorkspaceLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} words of T, {} arrivals, {} partial sums", self.t_words, self.arrivals, self.partial)
    }
}
