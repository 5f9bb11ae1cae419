//! What a pass on a device is planned for.

/// What a pass is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassShape {
    /// Sequences side by side.
    pub sequences: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Keys that each sequence of the [`Cache`](super::Cache) has room for, which the pass reads and adds its own to; without one, only this
    /// pass's tokens and the adapters' prefix are seen.
    pub cache: Option<usize>,
    /// Whether the tokens follow others that are in the cache: then no prefix vectors come in front of them.
    pub continues: bool,
    /// Whether logits are computed, too.
    pub logits: bool,
    /// Whether a launch may begin before the one ahead has ended (programmatic dependent launch, from compute capability 9.0
    /// on).
    pub dependent: bool,
}

impl PassShape {
    /// A pass over whole sequences, to the logits.
    pub fn whole(sequences: usize, tokens: usize) -> Self {
        Self { sequences, tokens, cache: None, continues: false, logits: true, dependent: false }
    }
}
