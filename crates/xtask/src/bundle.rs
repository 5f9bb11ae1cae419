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
    /// Make machine code for this target only, sm_90a for an H100 or H200; may be repeated
    #[arg(long)]
    target: Vec<String>,
}

/// Small enough to be sent along with a job.
const MOST_BYTES: u64 = 40 << 20;

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let out = root.join(&args.out);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot replace {}", out.display()))?;
    }
    for folder in ["bin", "images"] {
        fs::create_dir_all(out.join(folder)).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let build = Build::new(root, args)?;
    let command = build.programs("build", "3", &["--package", "fused-lora-cli"])?;
    // The compiler would take three times as long over tests that are optimised as far, and they wait for the GPU.
    let library = build.programs("test", "1", &["--no-run", "--package", "fused-lora", "--test", "it"])?;
    let model = build.programs("test", "1", &["--no-run", "--package", "fused-lora-gpt2", "--test", "it"])?;
    for (programs, name, to) in
        [(command, "fused-lora", "fused-lora"), (library, "it", "tests"), (model, "it", "gpt2-tests")]
    {
        let found = programs.iter().find(|(target, _)| target == name);
        let (_, program) = found.with_context(|| format!("cargo built no {name}"))?;
        fs::copy(program, out.join("bin").join(to)).with_context(|| format!("cannot copy {}", program.display()))?;
    }
    let images = copy_images(&build.images, &out.join("images"))?;
    fs::copy(root.join("scripts/gpu.sh"), out.join("run.sh")).context("cannot copy scripts/gpu.sh")?;
    copy_folder(&root.join("tests/golden"), &out.join("golden"))?;
    fs::write(out.join("COMMIT"), commit(root)).context("cannot write COMMIT")?;

    let bytes = size(&out)?;
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    println!("{}: {mebibytes:.1} MiB, machine code in {images} files, started by run.sh", out.display());
    ensure!(bytes <= MOST_BYTES, "larger than {} MiB", MOST_BYTES >> 20);
    Ok(())
}

/// How cargo is run: with the kernels' machine code and their tests, which all programs find in one folder of files.
struct Build<'a> {
    root: &'a Path,
    nvcc: PathBuf,
    targets: String,
    folder: PathBuf,
    images: PathBuf,
}

impl<'a> Build<'a> {
    fn new(root: &'a Path, args: &Args) -> Result<Self> {
        // A folder of its own: other builds go without the machine code.
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let folder = target.join("for-bundle");
        let targets = args.target.join(" ");
        // Of each choice of targets, so that no image of another is taken along.
        let images =
            folder.join("images").join(if targets.is_empty() { "all".to_owned() } else { args.target.join("-") });
        fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
        Ok(Self { root, nvcc: Toolchain::find(root)?.nvcc().to_path_buf(), targets, folder, images })
    }

    /// The programs that a command of cargo makes at an optimisation level, by name.
    fn programs(&self, command: &str, level: &str, flags: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(self.root).arg(command).arg("--release").args(flags);
        cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
        cargo.env("CARGO_TARGET_DIR", &self.folder).env("CARGO_PROFILE_RELEASE_STRIP", "true");
        cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", level);
        cargo.env("FUSED_LORA_NVCC", &self.nvcc).env("FUSED_LORA_TEST_KERNELS", "1");
        cargo.env("FUSED_LORA_IMAGES", &self.images);
        match self.targets.as_str() {
            "" => cargo.env_remove("FUSED_LORA_TARGETS"),
            targets => cargo.env("FUSED_LORA_TARGETS", targets),
        };
        let output = cargo.output().context("cannot run cargo")?;
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
}

/// Copies machine code, not what the build notes beside it; how many files there are.
fn copy_images(from: &Path, to: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "fatbin") {
            let name = path.file_name().unwrap_or_default();
            fs::copy(&path, to.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
            count += 1;
        }
    }
    Ok(count)
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
