//! Error messages: each cause is named once, and long texts are cut.

use std::fmt::Write;

/// The most characters of an error message, and of a line that clap prints.
const MAX_CHARS: usize = 1000;

/// An error and its causes in one line. A cause whose text the line already contains is not repeated.
pub(crate) fn error_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            let _ = write!(text, ": {cause}");
        }
    }
    shortened(&text.replace('\n', " "), MAX_CHARS)
}

/// Clap's message about wrong usage with over-long lines cut, without colours; `None` if no line is too long.
pub(crate) fn usage_error(error: &clap::Error) -> Option<String> {
    let text = error.to_string();
    let is_long = text.lines().any(|line| line.chars().count() > MAX_CHARS);
    (error.use_stderr() && is_long).then(|| {
        let lines = text.lines().map(|line| shortened(line, MAX_CHARS));
        lines.fold(String::new(), |all, line| all + &line + "\n")
    })
}

/// The beginning and the end of a text that is longer than `longest` characters, and how much is missing between them.
fn shortened(text: &str, max_chars: usize) -> String {
    let length = text.chars().count();
    if length <= max_chars {
        return text.to_owned();
    }
    let (first, last) = (max_chars * 2 / 3, max_chars / 4);
    let begin: String = text.chars().take(first).collect();
    let end: String = text.chars().skip(length - last).collect();
    format!("{begin} … ({} characters) … {end}", length - first - last)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_cause_is_named_once() {
        let io = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let doubled = fused_lora_gpt2::Error::Io { path: "config.json".into(), source: io() };
        assert_eq!(error_line(&doubled.into()), format!("config.json: {}", io()));
        let added = Err::<(), _>(io()).context("model").unwrap_err();
        assert_eq!(error_line(&added), format!("model: {}", io()));
    }

    #[test]
    fn a_message_is_one_short_line() {
        let name = "ä".repeat(50_000);
        let text = error_line(&anyhow!("{name}: cannot be read\nat all"));
        assert!(text.chars().count() < 1100, "{}", text.len());
        assert!(text.starts_with("ää") && text.ends_with("cannot be read at all"), "{text}");
        assert!(text.contains("characters) …"), "{text}");
        assert_eq!(shortened("short", 5), "short");
    }
}
