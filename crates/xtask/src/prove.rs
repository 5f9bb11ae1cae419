//! `cargo xtask prove`: runs the tests at the depth that finds most bugs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose names contain one of these
    filters: Vec<String>,
}

/// Runs the tests of all crates, ignored ones included. Tests of kernels run under all schedules in the plain and race
/// builds, and once in the sanitizer build; `tests/instructions` also varies when asynchronous operations complete;
/// every planted bug must be caught. tests/README.md has the table.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let mut test = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let test = at_proof_depth(test.current_dir(root).args(["test", "--workspace"])).args(&args.filters);
    let status = test.status().context("cannot run cargo")?;
    ensure!(status.success(), "some tests failed: see above");
    Ok(())
}

/// Makes `cargo test` run at full depth. Arguments added after this are filters.
pub(crate) fn at_proof_depth(test: &mut Command) -> &mut Command {
    test.args(["--lib", "--bins", "--tests", "--", "--include-ignored"]).env("FUSED_LORA_TEST_DEPTH", "proof")
}
