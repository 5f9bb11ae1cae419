//! `cargo xtask bindings`: generates src/abi.rs from kernels/abi.h.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use clap::Args as ClapArgs;

/// Options of `cargo xtask bindings`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Fail if the committed file is out of date, and do not change it.
    #[arg(long)]
    check: bool,
}

const HEAD: &str = "//! What the kernels and this library share, made from kernels/abi.h by `cargo xtask bindings`.\n\
                    #![allow(missing_docs, non_camel_case_types, clippy::all)]\n";

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let target = root.join("src/abi.rs");
    let generated = generate(root)?;
    if args.check {
        let committed = fs::read_to_string(&target).with_context(|| format!("cannot read {}", target.display()))?;
        ensure!(committed == generated, "src/abi.rs is out of date: run `cargo xtask bindings`");
        return Ok(());
    }
    fs::write(&target, generated).with_context(|| format!("cannot write {}", target.display()))
}

fn generate(root: &Path) -> Result<String> {
    if env::var_os("LIBCLANG_PATH").is_none()
        && let Some(folder) = installed(root)
    {
        // SAFETY: no other thread runs yet.
        unsafe { env::set_var("LIBCLANG_PATH", folder) };
    }
    let bindings = bindgen::Builder::default()
        // The header is included by another one, because libclang warns about `#pragma once` in a main file.
        .header_contents("main.h", &format!("#include {:?}", root.join("kernels/abi.h")))
        // As for NVRTC: then abi.h includes no other header.
        .clang_args(["-x", "c", "-std=c11", "-D__CUDACC_RTC__"])
        .allowlist_type("Lora.*")
        .allowlist_var("LORA_.*")
        .use_core()
        .prepend_enum_name(false)
        .disable_header_comment()
        .generate_comments(false)
        .generate()
        .context("bindgen failed; libclang comes with scripts/cuda.sh, or is named by LIBCLANG_PATH")?;
    format(&format!("{HEAD}\n{bindings}"), root)
}

/// Where scripts/cuda.sh puts libclang.
fn installed(root: &Path) -> Option<PathBuf> {
    let entries = root.join(".cuda/lib").read_dir().ok()?;
    let folders = entries.flatten().map(|entry| entry.path().join("site-packages/clang/native"));
    folders.into_iter().find(|folder| folder.is_dir())
}

/// Formats a source as `cargo fmt` does.
fn format(source: &str, root: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("abi.rs");
    fs::write(&file, source)?;
    let status = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(root.join("rustfmt.toml"))
        .arg(&file)
        .status()
        .context("cannot run rustfmt")?;
    ensure!(status.success(), "rustfmt failed");
    Ok(fs::read_to_string(&file)?)
}
