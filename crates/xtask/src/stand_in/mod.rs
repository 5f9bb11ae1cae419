//! `cargo xtask stand-in`: runs the programs of a bundle on the stand-in driver, and plants bugs in their driver calls.
//!
//! The programs are those that go to a GPU host, with the machine code that nvcc made; only the driver is another one
//! (`crates/driver`). Three parts:
//!
//! - **nvrtc**: the test that makes every driver call, in a build without machine code, on a device of another compute
//!   capability: NVRTC compiles its kernels;
//! - **bugs**: a test that makes every driver call, once for each bug of `bugs.rs`, which alters one call on its way, and
//!   once for each call that fails. Each bug must be caught, and each failure must be an error that names the call;
//! - **script**: `run.sh` of the bundle, to its end, with small sizes: with it the tests of all safe calls.

mod bugs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::toolchain::Toolchain;
use bugs::{BUGS, CALLS, EVERY_CALL, HostBug, Unseen, WORKLOAD};

/// What the driver prints about a call that it alters.
const ALTERED: &str = "stand-in driver: altered:";
/// The longest time that the workload may take. A bug that makes it wait for ever must not.
const LIMIT: Duration = Duration::from_secs(120);
/// Which of a function's calls fails: a run for each number, until the workload makes fewer calls.
const FAILING: [u32; 6] = [1, 2, 3, 5, 8, 13];
/// `CUDA_ERROR_UNKNOWN`.
const UNKNOWN: u32 = 999;
/// The device for which NVRTC compiles.
const OTHER_DEVICE: &str = "capability=8.6";
/// The exit status of a test program of which a test failed.
const TEST_FAILED: i32 = 101;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Nvrtc,
    Bugs,
    Script,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The bundle, made by `cargo xtask bundle --target sm_90a`
    #[arg(long, default_value = "target/bundle")]
    bundle: PathBuf,
    /// Only this part; may be repeated
    #[arg(long)]
    part: Vec<Part>,
    /// Only bugs whose alteration contains this text
    #[arg(long)]
    bug: Option<String>,
}

/// The programs of a bundle, and the folder with the stand-in driver.
struct StandIn {
    bundle: PathBuf,
    driver: PathBuf,
    cache: PathBuf,
}

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let bundle = root.join(&args.bundle);
    ensure!(bundle.join("bin/tests").is_file(), "no bundle in {}: run `cargo xtask bundle`", bundle.display());
    let stand_in = StandIn { bundle, driver: build_driver(root, &target)?, cache: target };
    println!("the stand-in driver is in {}", stand_in.driver.display());
    let runs = |part| args.part.is_empty() || args.part.contains(&part);
    if runs(Part::Nvrtc) {
        stand_in.nvrtc(root)?;
    }
    if runs(Part::Bugs) {
        stand_in.bugs(args.bug.as_deref())?;
    }
    if runs(Part::Script) {
        stand_in.script(&stand_in.driver.join("results"))?;
    }
    Ok(())
}

/// Builds the driver and puts it under the name that programs look for into a folder of its own: no other folder on a
/// loader's path may have it by chance.
fn build_driver(root: &Path, target: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let status = cargo.current_dir(root).args(["build", "--package", "fused-lora-driver"]).status();
    ensure!(status.context("cannot run cargo")?.success(), "the driver does not build");
    let folder = target.join("stand-in");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::copy(target.join("debug/libfused_lora_driver.so"), folder.join("libcuda.so.1"))
        .context("cannot copy the driver")?;
    Ok(folder)
}

impl StandIn {
    /// A program of the bundle on the stand-in driver.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bundle.join(name));
        command.env("LD_LIBRARY_PATH", &self.driver);
        command.env("FUSED_LORA_CACHE", &self.cache);
        command.env("FUSED_LORA_IMAGES", self.bundle.join("images"));
        command.env_remove("FUSED_LORA_DRIVER");
        command.env("FUSED_LORA_TEST_DEVICE", "cuda").env("FUSED_LORA_TEST_GOLDEN", self.bundle.join("golden"));
        command
    }

    fn nvrtc(&self, root: &Path) -> Result<()> {
        let nvcc = Toolchain::find(root)?.nvcc().to_path_buf();
        let nvrtc = nvcc.ancestors().nth(2).unwrap_or(root).join("lib/libnvrtc.so.13");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root).args(["test", "--package", "fused-lora", "--test", "it", "--", "--exact", EVERY_CALL]);
        cargo.env("LD_LIBRARY_PATH", &self.driver).env("FUSED_LORA_TEST_DEVICE", "cuda");
        cargo
            .env("FUSED_LORA_CACHE", &self.cache)
            .env("FUSED_LORA_NVRTC", nvrtc)
            .env("FUSED_LORA_DRIVER", OTHER_DEVICE);
        // What NVRTC has compiled before is removed, so that it compiles again.
        let compiled = || -> Result<Vec<PathBuf>> {
            let entries = fs::read_dir(&self.cache).with_context(|| self.cache.display().to_string())?;
            let paths = entries.flatten().map(|entry| entry.path());
            Ok(paths
                .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sm_86-")))
                .collect())
        };
        compiled()?.iter().try_for_each(fs::remove_file)?;
        let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && text.contains("test result: ok. 1 passed"), "with NVRTC:\n{text}");
        ensure!(!compiled()?.is_empty(), "NVRTC compiled nothing: the build has machine code of its own");
        Ok(())
    }

    /// Runs a test with an alteration; `None` if it does not end.
    fn altered(&self, test: &str, alteration: &str) -> Result<Option<Output>> {
        let output = tempfile::tempdir().context("no temporary folder")?;
        let file = |name: &str| fs::File::create(output.path().join(name)).context("cannot write a temporary file");
        let mut command = self.program("bin/tests");
        command.args(["--exact", test, "--nocapture"]).env("FUSED_LORA_DRIVER", alteration).env("RUST_BACKTRACE", "0");
        let mut child = command.stdout(file("out")?).stderr(file("err")?).spawn().context("cannot run bin/tests")?;
        let start = Instant::now();
        let status = loop {
            match child.try_wait().context("cannot wait for bin/tests")? {
                Some(status) => break status,
                None if start.elapsed() > LIMIT => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Ok(None);
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let read = |name: &str| fs::read(output.path().join(name)).context("cannot read the output");
        Ok(Some(Output { status, stdout: read("out")?, stderr: read("err")? }))
    }

    /// Whether the test passed, and what it printed.
    fn outcome(&self, test: &str, alteration: &str) -> Result<(bool, Option<i32>, String)> {
        let Some(output) = self.altered(test, alteration)? else {
            return Ok((false, None, format!("no end after {} s", LIMIT.as_secs())));
        };
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let passed = output.status.success() && text.contains("test result: ok. 1 passed");
        Ok((passed, output.status.code(), text.into_owned()))
    }

    fn bugs(&self, only: Option<&str>) -> Result<()> {
        let chosen = |text: &str| only.is_none_or(|only| text.contains(only));
        for test in WORKLOAD {
            let (passed, _, text) = self.outcome(test, "")?;
            ensure!(passed, "{test} fails without any bug:\n{text}");
        }
        let mut wrong = vec![];
        for HostBug { bug, alteration, test, caught_by } in BUGS.iter().filter(|bug| chosen(bug.alteration)) {
            let (passed, _, text) = self.outcome(test, alteration)?;
            let caught = !passed && text.contains(ALTERED) && text.contains(caught_by);
            println!("{} {alteration}: {bug}", if caught { "caught:" } else { "MISSED:" });
            if !caught {
                wrong.push(format!("{alteration} ({bug}) is not caught by '{caught_by}':\n{}", tail(&text)));
            }
        }
        for call in CALLS.iter().filter(|call| chosen(call.name)) {
            for number in FAILING {
                let alteration = format!("fail={}@{number}:{UNKNOWN}", call.name);
                let (passed, code, text) = self.outcome(EVERY_CALL, &alteration)?;
                let names_it = text.contains(&format!("from {}", call.name.trim_end_matches("_v2")));
                if !text.contains(&format!("{ALTERED} {}, call {number}", call.name)) {
                    if number == 1 {
                        wrong.push(format!("{} is not called", call.name));
                    }
                    break; // there were fewer calls
                }
                let unseen = call.unseen == Unseen::All || call.unseen == Unseen::ButTheFirst && number > 1;
                if !(unseen && passed || code == Some(TEST_FAILED) && names_it) {
                    wrong.push(format!("{alteration}: no error that names the call:\n{}", tail(&text)));
                }
            }
        }
        let tried = BUGS.iter().filter(|bug| chosen(bug.alteration)).count();
        let failing = CALLS.iter().filter(|call| chosen(call.name)).count();
        ensure!(tried + failing > 0, "no bug and no call has such a name");
        println!("{tried} bugs, {failing} functions that fail");
        if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n\n")) }
    }

    fn script(&self, results: &Path) -> Result<()> {
        let _ = fs::remove_dir_all(results);
        let mut script = Command::new("bash");
        let environment = self.program("run.sh");
        for (name, value) in environment.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        let status = script.arg(self.bundle.join("run.sh")).arg(results).env("SMALL", "1").status();
        ensure!(status.context("cannot run run.sh")?.success(), "run.sh: see above");
        let report = fs::read(results.join("report.json")).context("run.sh wrote no report.json")?;
        serde_json::from_slice::<serde_json::Value>(&report).context("report.json is no JSON")?;
        Ok(())
    }
}

/// The last lines of an output.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
