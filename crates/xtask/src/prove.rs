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
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(root)
        .args(["test", "--workspace", "--lib", "--bins", "--tests", "--", "--include-ignored"])
        .args(&args.filters)
        .env("FUSED_LORA_TEST_DEPTH", "proof")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "not everything is proven: see above");
    Ok(())
}
