//! `cargo xtask bundle`: a folder with all that a GPU host without Rust needs to test and time the kernels.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::toolchain::Toolchain;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write; its contents are replaced
    #[arg(long, default_value = "target/bundle")]
    out: PathBuf,
    /// Compile for this target only (sm_90a is an H100 or H200); may be repeated
    #[arg(long)]
    target: Vec<String>,
    /// Optimisation level of the command; with 1, what it does on a CPU is slower, and it builds twice as fast
    #[arg(long, default_value = "3", value_parser = ["1", "2", "3"])]
    opt_level: String,
}

/// The largest size of a bundle, small enough to be sent with a job.
const MAX_BYTES: u64 = 40 << 20;

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let out = root.join(&args.out);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot replace {}", out.display()))?;
    }
    for folder in ["bin", "images"] {
        fs::create_dir_all(out.join(folder)).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let build = BundleBuild::new(root, args)?;
    let command = build.programs("build", &args.opt_level, &["--package", "fused-lora-cli"])?;
    // Tests are built at level 1: level 3 would take three times as long to compile, and tests mostly wait for the GPU.
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
    println!("{}: {mebibytes:.1} MiB, machine code in {images} files; start it with run.sh", out.display());
    ensure!(bytes <= MAX_BYTES, "the bundle is larger than {} MiB", MAX_BYTES >> 20);
    Ok(())
}

/// Runs cargo so that all programs find the machine code of the kernels, test kernels included, in one folder.
struct BundleBuild<'a> {
    root: &'a Path,
    nvcc: PathBuf,
    targets: String,
    folder: PathBuf,
    images: PathBuf,
}

impl<'a> BundleBuild<'a> {
    fn new(root: &'a Path, args: &Args) -> Result<Self> {
        // A target folder of its own, because other builds do not compile machine code.
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let folder = target.join("for-bundle");
        let targets = args.target.join(" ");
        // A folder for each choice of targets, so that the bundle has no image of another target.
        let images =
            folder.join("images").join(if targets.is_empty() { "all".to_owned() } else { args.target.join("-") });
        fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
        Ok(Self { root, nvcc: Toolchain::find(root)?.nvcc().to_path_buf(), targets, folder, images })
    }

    /// The programs, by name, that a cargo command builds at this optimisation level.
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
            let message: Value = serde_json::from_slice(message).context("cannot read cargo's messages")?;
            if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
                programs.push((name.to_owned(), PathBuf::from(path)));
            }
        }
        Ok(programs)
    }
}

/// Copies the files of machine code, and returns how many there are.
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

/// The commit, with a `+` if the working tree differs from it.
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
