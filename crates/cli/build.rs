//! Puts the commit into the binary, so that every result names the code that produced it.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let folder = Path::new(&folder);
    println!("cargo:rerun-if-changed=build.rs");
    // cargo would run this at every build if the file did not exist.
    let log = git(folder, &["rev-parse", "--git-path", "logs/HEAD"]).map(|path| folder.join(path));
    if let Some(log) = log.filter(|log| log.exists()) {
        println!("cargo:rerun-if-changed={}", log.display());
    }
    let commit = packaged(folder).or_else(|| git(folder, &["rev-parse", "--short=12", "HEAD"]));
    println!("cargo:rustc-env=FUSED_LORA_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

/// The commit that cargo recorded in a package's archive.
fn packaged(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join(".cargo_vcs_info.json")).ok()?;
    let digits = text.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    digits.get(..12).map(str::to_owned)
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(folder).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
