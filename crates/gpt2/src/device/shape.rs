//! The shape of a pass on a device.

/// The shape that a pass is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassShape {
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// The capacity of the [`Cache`](super::Cache) whose keys and values the pass reads, and to which it appends its
    /// own. Without a cache, tokens attend only to this pass's tokens and to the adapters' prefix.
    pub cache: Option<usize>,
    /// Whether the tokens continue sequences in the cache, so that no prefix vectors precede them.
    pub continues: bool,
    /// Whether logits are computed as well.
    pub logits: bool,
    /// Whether a launch may begin before the preceding one has ended (programmatic dependent launch, from compute
    /// capability 9.0 on).
    pub dependent: bool,
}

impl PassShape {
    /// A pass over whole sequences that computes logits.
    pub fn whole(sequences: usize, tokens: usize) -> Self {
        Self { sequences, tokens, cache: None, continues: false, logits: true, dependent: false }
    }
}
