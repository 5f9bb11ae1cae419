//! The files that a command writes its results to: looked at before any work, then written whole.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fused_lora_gpt2::Output;
use serde::Serialize;

use crate::output::leave_stdout;

/// Files that results are written to, besides the table on the terminal.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ResultFiles {
    /// Write all results and how they were made to a JSON file; to /dev/stdout, and the table goes to stderr
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the table to a CSV file
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
}

impl ResultFiles {
    /// Fails now rather than after an hour if a file, `plot` included, cannot be written, is written twice or is one of
    /// `inputs`, files and folders that the command reads.
    pub(crate) fn check(&self, plot: Option<&PathBuf>, inputs: &[&Path]) -> Result<()> {
        let outputs = [("--json", self.json.as_ref()), ("--csv", self.csv.as_ref()), ("--plot", plot)];
        let named = outputs.into_iter().filter_map(|(option, path)| Some((option, path?.as_path())));
        check_outputs(&named.collect::<Vec<_>>(), inputs)
    }

    /// Writes those that were asked for; `report` is what goes to the JSON file.
    pub(crate) fn write<J: Serialize, R: Serialize>(&self, report: impl FnOnce() -> J, rows: &[R]) -> Result<()> {
        self.write_where(|_| true, report, rows)
    }

    /// As [`ResultFiles::write`], of what is there before the end: only to files, which the next call replaces. A device
    /// or a FIFO would receive one result after the other.
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

/// Looks at what the options name before any work: each must be a place that can be written to, none may be named twice,
/// none may be a file that is read. `inputs` are files and folders. Where one is standard output, tables go to stderr.
pub(crate) fn check_outputs(named: &[(&'static str, &Path)], inputs: &[&Path]) -> Result<()> {
    let mut outputs: Vec<(&str, Output)> = vec![];
    for &(option, path) in named {
        let output = Output::at(path)?;
        for input in inputs {
            output.refuse_input(input)?;
        }
        if let Some((other, _)) = outputs.iter().find(|(_, earlier)| earlier.is_same(&output)) {
            bail!("{option} {}: {other} names the same file, expected another one", path.display());
        }
        outputs.push((option, output));
    }
    if outputs.iter().any(|(_, output)| output.is_stdout()) {
        leave_stdout();
    }
    Ok(())
}
