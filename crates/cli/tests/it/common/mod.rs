//! Runs the command, and prepares its files.
#![allow(unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

pub fn golden(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).display().to_string()
}

pub fn run(args: &[&str]) -> Output {
    Command::cargo_bin("fused-lora").unwrap().args(args).output().unwrap()
}

pub fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with this exit code, with one line on stderr and no panic; returns stderr.
pub fn fail(args: &[&str], code: i32) -> String {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{stderr}");
    if code == 1 {
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
    stderr
}

/// Whether there is no emulator, so that tests on it are left out. The first such call says so on the process's stderr,
/// because the test harness captures what `eprintln` prints.
pub fn left_out() -> bool {
    static REPORT: std::sync::Once = std::sync::Once::new();
    let Err(error) = fused_lora::device::Device::expect_emulator() else { return false };
    REPORT.call_once(|| {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "left out: all tests on the emulator of a GPU ({error})");
    });
    true
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of a golden folder's files.
pub fn copy_of(name: &str, to: &Path) -> PathBuf {
    let folder = to.join(name);
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// A new FIFO.
pub fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

/// The sorted names of a folder's entries.
pub fn contents(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}
