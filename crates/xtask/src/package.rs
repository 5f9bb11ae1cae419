//! `cargo xtask package`: builds and tests the crates from the archives that users get.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

use anyhow::{Context, Result, ensure};

use crate::prove;

/// The crates with `publish = false`.
const UNPUBLISHED: [&str; 2] = ["xtask", "fused-lora-driver"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Package uncommitted changes, too
    #[arg(long)]
    allow_dirty: bool,
    /// Run the tests to the depth of `cargo xtask prove`
    #[arg(long)]
    proof: bool,
}

/// Makes the archives of all crates that are published, unpacks them in a folder from which nothing of this checkout
/// can be reached, and runs their tests.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let archives = target.join("package");
    if archives.exists() {
        fs::remove_dir_all(&archives).with_context(|| format!("cannot empty {}", archives.display()))?;
    }
    let mut package = cargo(root);
    package.args(["package", "--workspace", "--no-verify"]);
    for name in UNPUBLISHED {
        package.args(["--exclude", name]);
    }
    run_command(package.args(args.allow_dirty.then_some("--allow-dirty")))?;

    let unpacked = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut names = vec![];
    for entry in fs::read_dir(&archives).with_context(|| format!("cannot read {}", archives.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "crate") {
            // Every archive has the same old times. With them cargo would take an earlier archive's build for this one's.
            run_command(Command::new("tar").arg("-xzmf").arg(&path).arg("-C").arg(unpacked.path()))?;
            names.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    ensure!(!names.is_empty(), "cargo made no archive");
    names.sort();
    fs::write(unpacked.path().join("Cargo.toml"), workspace(root, &names)?).context("cannot write the workspace")?;
    // The same versions of dependencies as in this checkout.
    fs::copy(root.join("Cargo.lock"), unpacked.path().join("Cargo.lock")).context("cannot copy Cargo.lock")?;
    println!("from their archives: {}", names.join(", "));
    let test = || {
        let mut test = cargo(unpacked.path());
        // The same target folder, in which dependencies are built already.
        test.args(["test", "--workspace", "--all-features"]).env("CARGO_TARGET_DIR", &target);
        test
    };
    if args.proof {
        run_command(prove::at_proof_depth(&mut test()))?;
        return run_command(test().arg("--doc"));
    }
    run_command(&mut test())
}

/// The manifest of a workspace of the unpacked crates, in which each replaces its namesake of crates.io, with this
/// workspace's profiles.
fn workspace(root: &Path, names: &[String]) -> Result<String> {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let mut text = String::from("[workspace]\nresolver = \"3\"\nmembers = [");
    names.iter().for_each(|name| text += &format!("{name:?}, "));
    text += "]\n\n[patch.crates-io]\n";
    for name in names {
        let (crate_name, _) = name.rsplit_once('-').with_context(|| format!("{name} has no version"))?;
        text += &format!("{crate_name} = {{ path = {name:?} }}\n");
    }
    let mut in_profile = false;
    for line in manifest.lines() {
        in_profile = if line.starts_with('[') { line.starts_with("[profile.") } else { in_profile };
        if in_profile {
            text += line;
            text.push('\n');
        }
    }
    Ok(text)
}

fn cargo(folder: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The variable is that of this program, not of the cargo that is started.
    command.current_dir(folder).env_remove("CARGO_MANIFEST_DIR");
    command
}

fn run_command(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", CommandLine(command)))?;
    ensure!(status.success(), "{} failed", CommandLine(command));
    Ok(())
}

struct CommandLine<'a>(&'a Command);

impl fmt::Display for CommandLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.get_program().display())?;
        self.0.get_args().try_for_each(|argument| write!(f, " {}", argument.display()))
    }
}
