//! The layout of a workspace: device memory through which the CTAs of a launch pass values to other CTAs.

/// The sizes of a workspace's parts. They lie in memory in this order: one 64-bit ticket counter, the words of T, the
/// flags, the arrival counters, the partial sums, the T tiles.
///
/// A workspace is zeroed once. Every launch leaves it ready for the next, whether that runs a decode kernel or a
/// forward kernel. One workspace serves any number of layers whose launches do not overlap in time, if each part is as
/// large as the largest plan needs: [`union`](Self::union).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkspaceLayout {
    /// Decode kernels: 64-bit words, one for each element of T. The lower half is the value in f32, the upper half the
    /// epoch of the launch that stored it.
    pub t_words: usize,
    /// Forward and dx kernels: 32-bit flags, one for each T tile. It is the epoch of the launch that stored the tile.
    pub flags: usize,
    /// 32-bit counters, one for each tile that several CTAs share: the CTAs that have stored their partial sums.
    pub arrivals: usize,
    /// f32 partial sums of the tiles that several CTAs share.
    pub partial: usize,
    /// Forward, dx and gradient kernels: bytes of s·T or Q, which forward and dx compute tile by tile.
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

    /// Bytes of the whole workspace.
    pub fn bytes(&self) -> usize {
        self.t_tiles_offset() + self.t_bytes
    }

    /// The smallest workspace that serves the plans of both layouts.
    pub fn union(&self, other: &Self) -> Self {
        Self {
            t_words: self.t_words.max(other.t_words),
            flags: self.flags.max(other.flags),
            arrivals: self.arrivals.max(other.arrivals),
            partial: self.partial.max(other.partial),
            t_bytes: self.t_bytes.max(other.t_bytes),
        }
    }

    /// Whether a workspace of this layout serves a plan that needs `other`: whether each part is at least as large.
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
