//! Finds and calls the CUDA compiler and the disassembler.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The architectures that the kernels are compiled for. The suffix of sm_90a allows wgmma and setmaxnreg.
pub(crate) const TARGETS: [&str; 7] = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];

/// The target of this name, or an error that lists all targets.
pub(crate) fn target(name: &str) -> Result<&'static str> {
    let found = TARGETS.into_iter().find(|target| *target == name);
    found.with_context(|| format!("no target `{name}`: there are {}", TARGETS.join(" ")))
}

/// nvcc and cuobjdump.
#[derive(Debug)]
pub(crate) struct Toolchain {
    nvcc: PathBuf,
    cuobjdump: PathBuf,
}

impl Toolchain {
    /// The compiler that `$NVCC` names; else the first one in `$PATH`, in `$CUDA_HOME`, or in the repository's `.cuda`.
    pub(crate) fn find(root: &Path) -> Result<Self> {
        let nvcc = match env::var_os("NVCC") {
            Some(path) => {
                let path = PathBuf::from(path);
                ensure!(path.is_file(), "$NVCC is {}, which is not a file", path.display());
                path
            }
            None => search_folders(root)
                .map(|folder| folder.join("nvcc"))
                .find(|path| path.is_file())
                .context("no nvcc in $PATH, $CUDA_HOME or .cuda: run scripts/cuda.sh, or name one in $NVCC")?,
        };
        // The disassembler is next to the real file, not next to a link such as /usr/bin/nvcc.
        let real = nvcc.canonicalize().with_context(|| format!("cannot resolve {}", nvcc.display()))?;
        let cuobjdump = real
            .parent()
            .map(Path::to_path_buf)
            .into_iter()
            .chain(search_folders(root))
            .map(|folder| folder.join("cuobjdump"))
            .find(|path| path.is_file())
            .with_context(|| format!("no cuobjdump beside {}: run scripts/cuda.sh", real.display()))?;
        Ok(Self { nvcc, cuobjdump })
    }

    /// The compiler's path.
    pub(crate) fn nvcc(&self) -> &Path {
        &self.nvcc
    }

    /// Compiles one source for one target into `cubin`; returns what ptxas reports about resources. Warnings are
    /// errors.
    pub(crate) fn compile(&self, root: &Path, source: &Path, target: &str, cubin: &Path) -> Result<String> {
        let mut command = Command::new(&self.nvcc);
        command
            .args(["-std=c++17", "-O3", "--resource-usage", "--Werror", "all-warnings", "-cubin", "-arch", target])
            .arg("-I")
            .arg(root.join("kernels"))
            .arg("-o")
            .arg(cubin)
            .arg(source);
        let output = run(&mut command)?;
        // Depending on its version, nvcc prints the report of ptxas to stdout or to stderr.
        Ok(output.stdout + &output.stderr)
    }

    /// The machine code of a cubin as text.
    pub(crate) fn disassemble(&self, cubin: &Path) -> Result<String> {
        Ok(run(Command::new(&self.cuobjdump).arg("-sass").arg(cubin))?.stdout)
    }
}

/// Folders that may have the CUDA tools, in the order of preference.
fn search_folders(root: &Path) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.extend(homes.map(|home| Path::new(&home).join("bin")));
    folders.extend(installed(root));
    folders.into_iter()
}

/// Where scripts/cuda.sh installs the tools; the path contains a Python version.
fn installed(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = root.join(".cuda/lib").read_dir() else { return vec![] };
    let mut folders: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path().join("site-packages/nvidia/cu13/bin")).collect();
    folders.sort();
    folders
}

struct Output {
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Result<Output> {
    let program = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("command")).to_owned();
    let program = program.to_string_lossy();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{program} failed:\n{stdout}{stderr}");
    }
    Ok(Output { stdout, stderr })
}
