//! `cargo xtask bundle`: what a GPU host without Rust needs to test and time the kernels, in one folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::toolchain::Toolchain;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write; what is in it is replaced
    #[arg(long, default_value = "target/bundle")]
    out: PathBuf,
}

/// The tests that run on a GPU as well as on the emulator.
const TESTS: [&str; 19] = [
    "instructions",
    "decode",
    "forward",
    "forward_tf32",
    "dx",
    "gradients",
    "merge",
    "adamw",
    "device",
    "device_decode",
    "device_forward",
    "device_backward",
    "device_options",
    "device_slot",
    "device_adamw",
    "attention",
    "device_attention",
    "transformer",
    "adapter",
];
/// The same of fused-lora-gpt2.
const MODEL_TESTS: [&str; 2] = ["on_device", "on_device_serving"];

/// Small enough to be sent along with a job.
const MOST_BYTES: u64 = 40 << 20;

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let toolchain = Toolchain::find(root)?;
    let out = root.join(&args.out);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot replace {}", out.display()))?;
    }
    fs::create_dir_all(out.join("bin")).with_context(|| format!("cannot make {}", out.display()))?;

    let features = ["--release", "--package", "fused-lora-cli", "--no-default-features"];
    let mut programs = built(root, &toolchain, "build", &features)?;
    for (package, tests) in [("fused-lora", &TESTS[..]), ("fused-lora-gpt2", &MODEL_TESTS)] {
        let tests = tests.iter().flat_map(|test| ["--test", test]);
        let flags: Vec<&str> = ["--release", "--package", package, "--no-run"].into_iter().chain(tests).collect();
        programs.extend(built(root, &toolchain, "test", &flags)?);
    }
    for name in ["fused-lora"].iter().chain(&TESTS).chain(&MODEL_TESTS) {
        let found = programs.iter().find(|(target, _)| target == name);
        let (_, program) = found.with_context(|| format!("cargo built no {name}"))?;
        fs::copy(program, out.join("bin").join(name)).with_context(|| format!("cannot copy {}", program.display()))?;
    }
    fs::copy(root.join("scripts/gpu.sh"), out.join("run.sh")).context("cannot copy scripts/gpu.sh")?;
    copy_folder(&root.join("tests/golden"), &out.join("golden"))?;
    fs::write(out.join("COMMIT"), commit(root)).context("cannot write COMMIT")?;

    let bytes = size(&out)?;
    println!("{}: {:.1} MiB, started by run.sh", out.display(), bytes as f64 / f64::from(1 << 20));
    ensure!(bytes <= MOST_BYTES, "larger than {} MiB", MOST_BYTES >> 20);
    Ok(())
}

/// Runs cargo with the kernels' machine code and their tests built in, and gives the programs it made, by name.
fn built(root: &Path, toolchain: &Toolchain, command: &str, flags: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // A folder of its own: other builds go without the machine code.
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("for-bundle");
    let output = Command::new(cargo)
        .current_dir(root)
        .arg(command)
        .args(flags)
        .arg("--message-format=json-render-diagnostics")
        .env("CARGO_TARGET_DIR", target)
        .env("FUSED_LORA_NVCC", toolchain.nvcc())
        .env("FUSED_LORA_TEST_KERNELS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo {command} failed");
    let messages = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let mut programs = vec![];
    for message in messages {
        let message: Value = serde_json::from_slice(message).context("cannot read what cargo says")?;
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            programs.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(programs)
}

/// The commit, with a `+` where the tree differs from it.
fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain"]).is_some_and(|files| !files.is_empty());
    format!("{}{}\n", git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".into()), if changed { "+" } else { "" })
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&path, &copy)?;
        } else {
            fs::copy(&path, &copy).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
