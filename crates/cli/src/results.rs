//! The files that a command writes its results to. They are checked before any work.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fused_lora_gpt2::Output;
use serde::Serialize;

use crate::output::print_tables_to_stderr;

/// Files that results are written to, besides the table on the terminal.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ResultFiles {
    /// Write all results and their circumstances to a JSON file; if it is /dev/stdout, the table goes to stderr
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the table to a CSV file
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
}

impl ResultFiles {
    /// Checks, before the work, that every file (`plot` included) can be written, that no file is named twice, and that
    /// none is among `inputs`, the files and folders that the command reads.
    pub(crate) fn check(&self, plot: Option<&PathBuf>, inputs: &[&Path]) -> Result<()> {
        let outputs = [("--json", self.json.as_ref()), ("--csv", self.csv.as_ref()), ("--plot", plot)];
        let named = outputs.into_iter().filter_map(|(option, path)| Some((option, path?.as_path())));
        check_outputs(&named.collect::<Vec<_>>(), inputs)
    }

    /// Writes the files that were asked for. `report` makes the content of the JSON file.
    pub(crate) fn write<J: Serialize, R: Serialize>(&self, report: impl FnOnce() -> J, rows: &[R]) -> Result<()> {
        self.write_where(|_| true, report, rows)
    }

    /// As [`ResultFiles::write`], for results that are not complete. Writes to regular files only, which the next call
    /// replaces; a device or a FIFO would receive every result one after the other.
    pub(crate) fn write_so_far<J: Serialize, R: Serialize>(
        &self,
        report: impl FnOnce() -> J,
        rows: &[R],
    ) -> Result<()> {
        self.write_where(Output::is_replaced, report, rows)
    }

    fn write_where<J: Serialize, R: Serialize>(
        &self,
        is_written: impl Fn(&Output) -> bool,
        report: impl FnOnce() -> J,
        rows: &[R],
    ) -> Result<()> {
        let output = |path: &Option<PathBuf>| path.as_deref().map(Output::at).transpose();
        if let Some(output) = output(&self.json)?.filter(&is_written) {
            let text = serde_json::to_string_pretty(&report()).context("cannot write the results as JSON")?;
            output.write(|file| writeln!(file, "{text}"))?;
        }
        if let Some(output) = output(&self.csv)?.filter(&is_written) {
            let bytes = csv_of(rows)?;
            output.write(|file| file.write_all(&bytes))?;
        }
        Ok(())
    }
}

/// A header, then one line a row.
fn csv_of<R: Serialize>(rows: &[R]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(vec![]);
    for row in rows {
        writer.serialize(row).context("cannot write the results as CSV")?;
    }
    writer.into_inner().map_err(|e| anyhow::anyhow!("cannot write the results as CSV: {e}"))
}

/// Checks the files that options name, before any work: each must be writable, none may be named twice, and none may be
/// among `inputs`, which are files and folders. If one of them is stdout, tables go to stderr from now on.
pub(crate) fn check_outputs(named: &[(&'static str, &Path)], inputs: &[&Path]) -> Result<()> {
    let mut outputs: Vec<(&str, Output)> = vec![];
    for &(option, path) in named {
        let output = Output::at(path)?;
        for input in inputs {
            output.refuse_input(input)?;
        }
        if let Some((other, _)) = outputs.iter().find(|(_, earlier)| earlier.is_same(&output)) {
            bail!("{option} {}: {other} names the same file, expected a different one", path.display());
        }
        outputs.push((option, output));
    }
    if outputs.iter().any(|(_, output)| output.is_stdout()) {
        print_tables_to_stderr();
    }
    Ok(())
}
