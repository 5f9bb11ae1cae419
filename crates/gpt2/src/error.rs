//! The error type: one sentence that names the file, the key and what was expected.

use std::path::PathBuf;

/// Why a model, an adapter or an input was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A result cannot be written where it was asked for.
    #[error("{}: cannot be written: {reason}", path.display())]
    Unwritable {
        /// The file that was named.
        path: PathBuf,
        /// What is there, or what the operating system said.
        reason: String,
    },
    /// A result would be written to, or into, what it is made from.
    #[error("{}: cannot be written: it belongs to an input, {}; name another place", path.display(), input.display())]
    OutputIsInput {
        /// The place that was named.
        path: PathBuf,
        /// The file or the folder that is read.
        input: PathBuf,
    },
    /// A file is not the JSON it should be.
    #[error("{}: not the JSON expected: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file is not valid safetensors: truncated, or its header is damaged.
    #[error("{}: not a whole safetensors file ({})", path.display(), one_line(reason))]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A configuration field has a value that is not supported.
    #[error("{}: field '{}' is {}, {}", path.display(), one_line(field), one_line(value), one_line(expected))]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it holds.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// A tensor is missing.
    #[error("{}: tensor '{key}' is missing, expected {expected}", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// Its shape or role.
        expected: String,
    },
    /// A tensor that the model has no place for.
    #[error("{}: tensor '{}' has no place in this model, expected {expected}", path.display(), one_line(key))]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// What there are places for.
        expected: String,
    },
    /// A tensor has another shape than the model.
    #[error("{}: tensor '{key}' has shape {actual:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The shape that fits.
        expected: Vec<usize>,
        /// The shape found.
        actual: Vec<usize>,
    },
    /// A tensor is stored in a type that is not supported.
    #[error("{}: tensor '{key}' is stored as {actual}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// Types that are read.
        expected: &'static str,
        /// The type found.
        actual: String,
    },
    /// A tensor holds an infinity or a NaN, perhaps only after conversion.
    #[error("{}: tensor '{key}' holds a value that is not finite in {dtype}", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The type it was read as.
        dtype: fused_lora::DType,
    },
    /// A token id is outside the vocabulary.
    #[error("token {token} at [{row}, {position}] is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token id.
        token: u32,
        /// Which sequence.
        row: usize,
        /// Where in it.
        position: usize,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// Sequences of different lengths in one batch, or no tokens at all.
    #[error("sequence {row} has {actual} tokens, expected {expected} (all sequences of a batch alike, at least 1)")]
    Batch {
        /// Which sequence.
        row: usize,
        /// Its length.
        actual: usize,
        /// The first sequence's length.
        expected: usize,
    },
    /// More positions than the model was built for.
    #[error("{tokens} tokens after a prefix of {prefix} need more than the model's {positions} positions")]
    TooManyPositions {
        /// Tokens of a sequence.
        tokens: usize,
        /// Prefix tokens in front of them.
        prefix: usize,
        /// Positions of the model.
        positions: usize,
    },
    /// A sequence without a next token to learn from.
    #[error("a sequence of {tokens} tokens has no next token to predict, expected at least 2")]
    TooShort {
        /// Tokens of a sequence.
        tokens: usize,
    },
    /// Another number of sequences than training or a pass was set up for, or than a cache has.
    #[error("{actual} sequences, expected {expected}")]
    BatchSize {
        /// Sequences given.
        actual: usize,
        /// Sequences of a batch.
        expected: usize,
    },
    /// An adapter that training has no gradients for.
    #[error("only a LoRA can be trained, and {what} cannot be active meanwhile")]
    NotTrainable {
        /// The kind of adapter.
        what: &'static str,
    },
    /// Training without a LoRA.
    #[error("there is no LoRA to train")]
    NothingToTrain,
    /// A LoRA of other shapes than training or a pass was set up for.
    #[error("{what} is adapted by {actual}, expected {expected}")]
    OtherAdapters {
        /// Which projection.
        what: String,
        /// Ranks and columns of the first LoRA.
        expected: String,
        /// Ranks and columns of this one.
        actual: String,
    },
    /// A cache of another size than a pass was planned for.
    #[error("the cache has room for {actual} keys a sequence, the pass was planned for {expected}")]
    OtherCache {
        /// Keys that the pass was planned for; 0 for none.
        expected: usize,
        /// Keys that the cache has room for; 0 for none.
        actual: usize,
    },
    /// A pass was to be replayed that was never captured.
    #[error("the pass has not been captured")]
    NotCaptured,
    /// Logits of a pass that was planned without.
    #[error("the pass was planned without logits")]
    NoLogits,
    /// Two adapters that cannot be active together.
    #[error("{0}")]
    Combination(String),
    /// An adapter does not fit the model it is used with.
    #[error("the adapter has {actual} {what}, the model {expected}")]
    OtherModel {
        /// What was counted.
        what: &'static str,
        /// What the model has.
        expected: usize,
        /// What the adapter has.
        actual: usize,
    },
    /// A layer refused its operands.
    #[error("{what}: {source}")]
    Layer {
        /// Which layer.
        what: String,
        /// Why.
        source: fused_lora::Error,
    },
}

impl From<fused_lora::Error> for Error {
    fn from(source: fused_lora::Error) -> Self {
        Error::Layer { what: "layer".into(), source }
    }
}

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The most characters of a name or value from a file that an error shows.
const LONGEST: usize = 1000;

/// Names that come from a file may hold line breaks and terminal codes: those are shown escaped. What is too long to read
/// is cut.
fn one_line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let begin: String = text.chars().take(LONGEST).map(shown).collect();
    match text.chars().count().saturating_sub(LONGEST) {
        0 => begin,
        more => format!("{begin}… ({more} characters more)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_file_is_short_and_on_one_line() {
        assert_eq!(one_line("a\nb\u{1b}"), "a\\nb\\u{1b}");
        let error = Error::Field {
            path: "config.json".into(),
            field: "n_layer".into(),
            value: "9".repeat(1 << 20),
            expected: "expected a whole number".into(),
        };
        let text = error.to_string();
        assert!(text.len() < 1200 && text.ends_with("characters more), expected a whole number"), "{text}");
    }
}
