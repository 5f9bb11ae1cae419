//! Kernels with a change in them, compiled and linked like the crate's own: how the checks themselves are tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::Build;
use crate::error::Error;

/// Compiles `source` (a path below the kernels' folder) with files in `overlay` standing in for those of the same relative
/// path, or a source that is in `overlay` alone, and links it to the machine. Returns the library for
/// [`Machine::from_library`](crate::Machine::from_library).
///
/// # Errors
/// [`Error::Unavailable`] without a compiler, [`Error::Load`] with the compiler's words if it refuses.
pub fn compile_variant(build: Build, source: &Path, overlay: &Path) -> Result<PathBuf, Error> {
    let (compiler, kernels) = crate::compiler().zip(crate::kernel_sources()).ok_or(Error::Unavailable)?;
    let library = crate::library::path(build).ok_or(Error::Unavailable)?;
    let folder = library.parent().ok_or(Error::Unavailable)?;
    let failed = |error: std::io::Error| Error::Load(error.to_string());
    // Compiled as build.rs compiled the kernels, but for the overlay and, since a variant runs once, the optimisation. A
    // source of the overlay alone takes the flags of another kernel, which are the same.
    let own = source.with_extension("flags").to_string_lossy().replace('/', "-");
    let known = if folder.join(&own).exists() { own } else { "lora-decode_rows.flags".to_owned() };
    let flags = fs::read_to_string(folder.join(known)).map_err(failed)?;
    let mutated = overlay.join(source);
    let file = if mutated.exists() { mutated } else { kernels.join(source) };
    let object = overlay.join("variant.o");
    let mut command = Command::new(compiler);
    command
        .arg("-I")
        .arg(overlay)
        .args(flags.lines())
        .args(["-O0", "-x", "c++", "-c"])
        .arg(&file)
        .arg("-o")
        .arg(&object);
    run(&mut command)?;
    let mut link = Command::new(compiler);
    let variant = overlay.join("libvariant.so");
    link.arg("-shared").arg("-o").arg(&variant).arg(&object);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("machine-") && name.ends_with(".o") {
            link.arg(path);
        }
    }
    link.args(flags.lines().filter(|flag| flag.starts_with("-fsanitize=address"))).arg("-ldl");
    run(&mut link)?;
    Ok(variant)
}

fn run(command: &mut Command) -> Result<(), Error> {
    let output = command.output().map_err(|error| Error::Load(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Error::Load(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}
