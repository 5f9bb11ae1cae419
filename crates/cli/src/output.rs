//! Tables on the terminal, JSON and CSV files, progress on stderr.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// Prints to stdout. A reader that went away is not an error.
pub(crate) fn emit(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}

/// Prints what was passed over to stderr, one line each.
pub(crate) fn warn<'a>(warnings: impl IntoIterator<Item = &'a fused_lora_gpt2::Warning>) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// A Markdown table, the first column to the left, numbers to the right.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

/// Writes pretty JSON, whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write the results as JSON")?;
    Ok(fused_lora_gpt2::write_atomically(path, |file| writeln!(file, "{text}"))?)
}

/// Writes one line a row, whole or not at all.
pub(crate) fn write_csv<R: Serialize>(path: &Path, rows: &[R]) -> Result<()> {
    let mut writer = csv::Writer::from_writer(vec![]);
    for row in rows {
        writer.serialize(row).context("cannot write the results as CSV")?;
    }
    let bytes = writer.into_inner().map_err(|e| anyhow::anyhow!("cannot write the results as CSV: {e}"))?;
    Ok(fused_lora_gpt2::write_atomically(path, |file| file.write_all(&bytes))?)
}

/// A bar with the time left, on stderr, where that is a terminal.
pub(crate) fn progress(steps: u64, what: &str) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(steps), target);
    let style = ProgressStyle::with_template("{msg:24} [{bar:32}] {pos}/{len}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// A time with as many digits as say something.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 100.0 => format!("{ms:.1}"),
        ms if ms >= 1.0 => format!("{ms:.2}"),
        ms => format!("{ms:.4}"),
    }
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (11_064_576, "11,064,576")] {
            assert_eq!(grouped(n), text);
        }
    }
}
