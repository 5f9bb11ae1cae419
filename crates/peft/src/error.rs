//! Errors and warnings. Each is displayed as one sentence that names the file, the key and what was expected.

use std::path::PathBuf;

/// Why a file was refused.
///
/// The sentence of [`Error::Io`] ends with the operating system's message, so `source` is `None`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's message.
        cause: std::io::Error,
    },
    /// A file is not a JSON object.
    #[error("{}: not a JSON object: {}", path.display(), clause(reason))]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Where the syntax is wrong, or what the file is instead.
        reason: String,
    },
    /// A file is not a complete safetensors file: it is truncated, damaged, or of another kind.
    #[error("{}: not a complete safetensors file ({})", path.display(), clause(reason))]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// The parser's message, or what the file is instead.
        reason: String,
    },
    /// The weights are in a format that is not supported.
    #[error("{}: weights in the format {} are not supported: {remedy}", path.display(), one_line(format))]
    Format {
        /// The file.
        path: PathBuf,
        /// The file's extension.
        format: String,
        /// How to convert it.
        remedy: &'static str,
    },
    /// A configuration field has a value that is not supported.
    #[error("{}: field '{}' is {}, {}", path.display(), one_line(field), one_line(value), clause(expected))]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// The field's value.
        value: String,
        /// The values that are accepted.
        expected: String,
    },
    /// A tensor is missing.
    #[error("{}: tensor '{}' is missing, expected {}", path.display(), one_line(key), clause(expected))]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The shape or role of the tensor.
        expected: String,
    },
    /// A tensor does not belong to the model.
    #[error("{}: tensor '{}' does not belong to this model, expected {}", path.display(), one_line(key), clause(expected))]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The tensors that belong to the model.
        expected: String,
    },
    /// A tensor's shape differs from the model's.
    #[error("{}: tensor '{}' has shape {}, expected {}", path.display(), one_line(key), shape(actual), shape(expected))]
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
    #[error("{}: tensor '{}' is stored as {actual}, expected {expected}", path.display(), one_line(key))]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The types that are supported.
        expected: &'static str,
        /// The type found.
        actual: String,
    },
}

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A part of a file that was ignored, as PEFT or transformers ignores it. What was loaded computes the same as there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub path: PathBuf,
    /// One sentence. [`Display`](std::fmt::Display) escapes its control characters.
    pub message: String,
}

impl Warning {
    /// A warning about `path`.
    pub fn new(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), clause(&self.message))
    }
}

/// A name or value from a file, on one line and of bounded length. Control characters, such as line breaks and terminal
/// codes, are escaped.
pub fn one_line(text: &str) -> String {
    shortened(text, 120)
}

/// A part of an error's sentence, of bounded length.
fn clause(text: &str) -> String {
    shortened(text, 400)
}

fn shortened(text: &str, limit: usize) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let cut: String = text.chars().take(limit).map(shown).collect();
    match text.chars().count() {
        count if count > limit => format!("{cut}… ({count} characters)"),
        _ => cut,
    }
}

fn shape(shape: &[usize]) -> String {
    one_line(&format!("{shape:?}"))
}

/// The first few of many names: `'a', 'b', 'c' and 5 more`.
pub fn first_few<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 3;
    let mut text =
        names.iter().take(SHOWN).map(|name| format!("'{}'", one_line(name.as_ref()))).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
