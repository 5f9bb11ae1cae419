//! `cargo xtask prove`: the tests again, with everything that can show a fault.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose names contain one of these
    filters: Vec<String>,
}

/// Runs the tests of all crates under every schedule, with every moment of completion, in the plain, race and sanitizer
/// builds, and the bugs that are planted.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let mut test = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let test = to_the_proof(test.current_dir(root).args(["test", "--workspace"])).args(&args.filters);
    let status = test.status().context("cannot run cargo")?;
    ensure!(status.success(), "not everything is proven: see above");
    Ok(())
}

/// Gives `cargo test` the depth of the proof. What follows are filters.
pub(crate) fn to_the_proof(test: &mut Command) -> &mut Command {
    test.args(["--lib", "--bins", "--tests", "--", "--include-ignored"]).env("FUSED_LORA_TEST_DEPTH", "proof")
}
