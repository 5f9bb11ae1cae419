//! The error type. Each error is one sentence that names the file, the key and what was expected.

use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use fused_lora_peft::one_line;

/// Why a model, an adapter or an input was refused.
///
/// Each error is displayed as one sentence that ends with its cause, if it has one; `source` is `None`, so that a
/// report that follows the chain of causes does not repeat it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's message.
        source: std::io::Error,
    },
    /// A checkpoint or a configuration is damaged, unsupported, or for another model.
    Checkpoint(fused_lora_peft::Error),
    /// A result cannot be written to the place requested.
    Unwritable {
        /// The file that was named.
        path: PathBuf,
        /// The kind of file that is there, or the operating system's message.
        reason: String,
    },
    /// A result would overwrite one of its inputs, or be written into one.
    OutputIsInput {
        /// The place that was named.
        path: PathBuf,
        /// The file or the folder that is read.
        input: PathBuf,
    },
    /// A tensor holds an infinity or a NaN, perhaps only after conversion.
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The type it was read as.
        dtype: fused_lora::DType,
    },
    /// A token id is outside the vocabulary.
    Token {
        /// The token id.
        token: u32,
        /// Which sequence.
        row: usize,
        /// The token's position in the sequence.
        position: usize,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The sequences of a batch differ in length, or there are no tokens.
    Batch {
        /// Which sequence.
        row: usize,
        /// The sequence's length.
        actual: usize,
        /// The first sequence's length.
        expected: usize,
    },
    /// The sequence needs more positions than the model or the cache has.
    TooManyPositions {
        /// Tokens of a sequence.
        tokens: usize,
        /// Prefix tokens in front of them.
        prefix: usize,
        /// Positions of the model or the cache.
        positions: usize,
    },
    /// A sequence is too short to have a next token to learn from.
    TooShort {
        /// Tokens of a sequence.
        tokens: usize,
    },
    /// The number of sequences differs from the one that training or a pass was set up for, or from the cache's.
    BatchSize {
        /// Sequences given.
        actual: usize,
        /// Sequences of a batch.
        expected: usize,
    },
    /// Training has no gradients for this kind of adapter.
    NotTrainable {
        /// The kind of adapter.
        what: &'static str,
    },
    /// There is no LoRA to train.
    NothingToTrain,
    /// A LoRA's shapes differ from those that training or a pass was set up for.
    OtherAdapters {
        /// Which projection.
        what: String,
        /// Ranks and columns of the first LoRA.
        expected: String,
        /// Ranks and columns of this one.
        actual: String,
    },
    /// A cache's size differs from the one that a pass was planned for.
    OtherCache {
        /// Keys that the pass was planned for; 0 for none.
        expected: usize,
        /// Keys that the cache has room for; 0 for none.
        actual: usize,
    },
    /// A pass cannot be replayed because it has not been captured.
    NotCaptured,
    /// Logits were requested from a pass that was planned without them.
    NoLogits,
    /// An adapter is not supported, or adapters cannot be active together.
    Combination(String),
    /// An adapter does not fit the model it is used with.
    OtherModel {
        /// The dimension that differs.
        what: &'static str,
        /// The model's number.
        expected: usize,
        /// The adapter's number.
        actual: usize,
    },
    /// A layer refused its operands.
    Layer {
        /// Which layer.
        what: String,
        /// Why.
        source: fused_lora::Error,
    },
}

impl Display for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Checkpoint(error) => error.fmt(f),
            Error::Unwritable { path, reason } => write!(f, "{}: cannot be written: {reason}", path.display()),
            Error::OutputIsInput { path, input } => {
                let [path, input] = [path, input].map(|path| path.display());
                write!(f, "{path}: cannot be written: it belongs to an input, {input}; name another place")
            }
            Error::NonFinite { path, key, dtype } => {
                write!(f, "{}: tensor '{}' holds a value that is not finite in {dtype}", path.display(), one_line(key))
            }
            Error::Token { token, row, position, vocabulary } => {
                write!(f, "token {token} at [{row}, {position}] is outside the vocabulary of {vocabulary}")
            }
            Error::Batch { row, actual, expected } => {
                let alike = "(all sequences of a batch alike, at least 1)";
                write!(f, "sequence {row} has {actual} tokens, expected {expected} {alike}")
            }
            Error::TooManyPositions { tokens, prefix, positions } => {
                write!(f, "{tokens} tokens after a prefix of {prefix} need more than the model's {positions} positions")
            }
            Error::TooShort { tokens } => {
                write!(f, "a sequence of {tokens} tokens has no next token to predict, expected at least 2")
            }
            Error::BatchSize { actual, expected } => write!(f, "{actual} sequences, expected {expected}"),
            Error::NotTrainable { what } => {
                write!(f, "only a LoRA can be trained, and {what} cannot be active meanwhile")
            }
            Error::NothingToTrain => f.write_str("there is no LoRA to train"),
            Error::OtherAdapters { what, expected, actual } => {
                write!(f, "{what} is adapted by {actual}, expected {expected}")
            }
            Error::OtherCache { expected, actual } => {
                write!(f, "the cache has room for {actual} keys a sequence, the pass was planned for {expected}")
            }
            Error::NotCaptured => f.write_str("the pass has not been captured"),
            Error::NoLogits => f.write_str("the pass was planned without logits"),
            Error::Combination(what) => f.write_str(what),
            Error::OtherModel { what, expected, actual } => {
                write!(f, "the adapter has {actual} {what}, the model {expected}")
            }
            Error::Layer { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<fused_lora_peft::Error> for Error {
    fn from(error: fused_lora_peft::Error) -> Self {
        match error {
            fused_lora_peft::Error::Io { path, cause } => Error::Io { path, source: cause },
            other => Error::Checkpoint(other),
        }
    }
}

impl From<fused_lora::Error> for Error {
    fn from(source: fused_lora::Error) -> Self {
        Error::Layer { what: "layer".into(), source }
    }
}

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
