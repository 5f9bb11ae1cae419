//! Prints tables, warnings and progress.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whether a result is written to stdout, so that tables go to stderr.
static STDOUT_HAS_RESULT: AtomicBool = AtomicBool::new(false);

/// From now on [`emit`] prints to stderr, because a result is written to stdout.
pub(crate) fn print_tables_to_stderr() {
    STDOUT_HAS_RESULT.store(true, Ordering::Relaxed);
}

/// Prints to stdout, or to stderr if a result is written to stdout. A closed pipe is not an error.
pub(crate) fn emit(text: &str) -> Result<()> {
    let print = |to: &mut dyn Write, name: &'static str| match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.with_context(|| format!("cannot write to {name}")),
    };
    match STDOUT_HAS_RESULT.load(Ordering::Relaxed) {
        true => print(&mut std::io::stderr().lock(), "stderr"),
        false => print(&mut std::io::stdout().lock(), "stdout"),
    }
}

/// Prints warnings to stderr, one a line.
pub(crate) fn warn<'a>(warnings: impl IntoIterator<Item = &'a fused_lora_gpt2::Warning>) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// A Markdown table with the first column aligned left and all others right.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

/// A progress bar with the remaining time, on stderr; hidden unless stderr is a terminal.
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

/// A time with four significant digits or so.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 100.0 => format!("{ms:.1}"),
        ms if ms >= 1.0 => format!("{ms:.2}"),
        ms => format!("{ms:.4}"),
    }
}

/// 1234567 as 1,234,567.
pub(crate) fn with_commas(n: usize) -> String {
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
            assert_eq!(with_commas(n), text);
        }
    }
}
