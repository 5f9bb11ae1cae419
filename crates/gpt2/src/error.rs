//! The error type. Each error is displayed as one sentence that names the file, the key and what was expected.

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
    /// A result cannot be written to the requested path.
    Unwritable {
        /// The requested path.
        path: PathBuf,
        /// Why not: the kind of file that is there, or the operating system's message.
        reason: String,
    },
    /// A result would overwrite one of its inputs, or be written into one.
    OutputIsInput {
        /// The requested path.
        path: PathBuf,
        /// The file or folder that is read.
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
        /// The sequence's index in the batch.
        row: usize,
        /// The token's position in the sequence.
        position: usize,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The sequences of a batch differ in length, or there are no tokens.
    Batch {
        /// The sequence's index in the batch.
        row: usize,
        /// The sequence's length.
        actual: usize,
        /// The first sequence's length.
        expected: usize,
    },
    /// A sequence needs more positions than the model has.
    TooManyPositions {
        /// Tokens of a sequence.
        tokens: usize,
        /// Prefix tokens in front of them.
        prefix: usize,
        /// Positions of the model.
        positions: usize,
    },
    /// A sequence needs more keys than the cache has room for.
    CacheFull {
        /// Tokens to add to a sequence.
        tokens: usize,
        /// Keys that are in front of them: those of a prefix and of earlier tokens.
        keys: usize,
        /// Keys that the cache has room for, a sequence.
        capacity: usize,
    },
    /// A sequence is too short to have a next token to learn from.
    TooShort {
        /// Tokens of a sequence.
        tokens: usize,
    },
    /// The number of sequences is not the one that training, a pass or a cache was set up for.
    BatchSize {
        /// Sequences given.
        actual: usize,
        /// Sequences that were set up.
        expected: usize,
    },
    /// Training has no gradients for this kind of adapter.
    NotTrainable {
        /// The kind of adapter.
        what: &'static str,
    },
    /// There is no LoRA to train.
    NothingToTrain,
    /// A LoRA has other projections, ranks or columns than the one that training or a slot was set up for.
    AdapterMismatch {
        /// The projection.
        what: String,
        /// What was set up.
        expected: String,
        /// What was given.
        actual: String,
    },
    /// A cache has another capacity than the one that the pass was planned for.
    CacheMismatch {
        /// Keys that the pass was planned for; 0 for none.
        expected: usize,
        /// Keys that the cache has room for; 0 for none.
        actual: usize,
    },
    /// A pass cannot be replayed because it has not been captured.
    NotCaptured,
    /// Logits were requested from a pass that was planned without them.
    NoLogits,
    /// An adapter is not supported, or these adapters cannot be active together.
    UnsupportedAdapters(String),
    /// An adapter, a model or gradients have another shape than the model or the LoRA that they are used with.
    ModelMismatch {
        /// What was given, with its verb: `the LoRA has`.
        subject: &'static str,
        /// The dimension that differs.
        what: &'static str,
        /// The number of the model or the LoRA.
        expected: usize,
        /// The number of what was given.
        actual: usize,
    },
    /// A layer failed: its operands do not fit, or the driver returned an error.
    Layer {
        /// The layer.
        what: String,
        /// The cause.
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
                write!(f, "{path}: cannot be written: it belongs to an input, {input}; name another path")
            }
            Error::NonFinite { path, key, dtype } => {
                write!(f, "{}: tensor '{}' holds a value that is not finite in {dtype}", path.display(), one_line(key))
            }
            Error::Token { token, row, position, vocabulary } => {
                write!(f, "token {token} at [{row}, {position}] is outside the vocabulary of {vocabulary}")
            }
            Error::Batch { row, actual, expected } => {
                let alike = "(all sequences of a batch must have the same number, at least 1)";
                write!(f, "sequence {row} has {actual} tokens, expected {expected} {alike}")
            }
            Error::TooManyPositions { tokens, prefix, positions } => {
                write!(f, "{tokens} tokens after a prefix of {prefix} need more than the model's {positions} positions")
            }
            Error::CacheFull { tokens, keys, capacity } => {
                write!(f, "{tokens} tokens after {keys} keys need more than the cache's {capacity} keys a sequence")
            }
            Error::TooShort { tokens } => {
                write!(f, "a sequence of {tokens} tokens has no next token to predict, expected at least 2")
            }
            Error::BatchSize { actual, expected } => write!(f, "{actual} sequences, expected {expected}"),
            Error::NotTrainable { what } => {
                write!(f, "only a LoRA can be trained, and {what} cannot be active during training")
            }
            Error::NothingToTrain => f.write_str("there is no LoRA to train"),
            Error::AdapterMismatch { what, expected, actual } => {
                write!(f, "{what}: the adapters have {actual}, expected {expected}")
            }
            Error::CacheMismatch { expected, actual } => {
                write!(f, "the cache has room for {actual} keys a sequence, but the pass was planned for {expected}")
            }
            Error::NotCaptured => f.write_str("the pass has not been captured"),
            Error::NoLogits => f.write_str("the pass was planned without logits"),
            Error::UnsupportedAdapters(what) => f.write_str(what),
            Error::ModelMismatch { subject, what, expected, actual } => {
                write!(f, "{subject} {actual} {what}, expected {expected}")
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
