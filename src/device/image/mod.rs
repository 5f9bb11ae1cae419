//! The kernels that are built into this library, and which of them a device can run.

mod cache;
pub(crate) mod nvrtc;

use std::borrow::Cow;
use std::env;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::error::{Error, KernelError, Result};

pub use cache::folder as cache_folder;
pub use nvrtc::version as nvrtc_version;

/// A source file of kernels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    /// The file's path below kernels/.
    pub(crate) path: &'static str,
    pub(crate) text: &'static str,
    /// Full names of the file's kernels.
    pub(crate) kernels: &'static [&'static str],
    /// The targets that the file is written for, in nvcc's spelling: `sm_80`, `sm_90a`.
    pub(crate) targets: &'static [&'static str],
    /// Machine code for the targets that nvcc knew, and PTX.
    pub(crate) image: Image,
}

/// Where the machine code of a source file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)] // a build uses two of them at most
pub(crate) enum Image {
    /// There is none: NVRTC compiles the source.
    None,
    /// The machine code is in this library.
    BuiltIn(&'static [u8]),
    /// The machine code is in a file of this name, which several programs share.
    Beside(&'static str),
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// How the kernels were built into this library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuiltIn {
    /// Number of source files of kernels.
    pub files: usize,
    /// Number of source files that the build compiled; NVRTC compiles the others from their built-in sources.
    pub compiled: usize,
    /// The release of nvcc; `None` if there was none.
    pub nvcc: Option<&'static str>,
}

/// How the kernels were built into this library.
pub fn built_in() -> BuiltIn {
    BuiltIn { files: SOURCES.len(), compiled: SOURCES.iter().filter(|s| s.image != Image::None).count(), nvcc: NVCC }
}

/// The sources of all kernels of this library, for a machine of the emulator.
#[cfg(feature = "emulator")]
pub fn emulator_kernels() -> fused_lora_emulator::Kernels {
    static KERNELS: std::sync::LazyLock<fused_lora_emulator::Kernels> = std::sync::LazyLock::new(|| {
        let sources = SOURCES.iter().map(|source| (source.path, source.text));
        let source_of = |kernel: &str| source_of(kernel).map(|source| source.path.to_owned());
        fused_lora_emulator::Kernels::new(sources.chain(HEADERS.iter().copied()), source_of)
    });
    KERNELS.clone()
}

/// The source file that a kernel is in.
pub(crate) fn source_of(kernel: &str) -> Option<&'static Source> {
    SOURCES.iter().find(|source| source.kernels.contains(&kernel))
}

/// The compute capability of a target, and whether its code runs on that capability only (suffix `a`).
fn parse(target: &str) -> Option<((u32, u32), bool)> {
    let name = target.strip_prefix("sm_")?;
    let digits = name.trim_end_matches('a');
    let number: u32 = digits.parse().ok()?;
    Some(((number / 10, number % 10), digits != name))
}

/// The folder of images that are not built in: `$FUSED_LORA_IMAGES`, else `images` beside the program or beside its
/// folder.
fn image_folder() -> Option<PathBuf> {
    if let Some(folder) = env::var_os("FUSED_LORA_IMAGES") {
        return Some(folder.into());
    }
    let program = env::current_exe().ok()?;
    program.ancestors().skip(1).take(2).map(|folder| folder.join("images")).find(|folder| folder.is_dir())
}

/// The text of the source file that a kernel is in.
#[cfg(test)]
pub(crate) fn source_text(kernel: &str) -> Option<&'static str> {
    source_of(kernel).map(|source| source.text)
}

impl Source {
    /// The file's machine code, if the build compiled it.
    ///
    /// # Errors
    /// [`KernelError::UnreadableImage`] if the file that this build keeps it in cannot be read.
    pub(crate) fn machine_code(&self) -> Result<Option<Cow<'static, [u8]>>> {
        let name = match self.image {
            Image::None => return Ok(None),
            Image::BuiltIn(bytes) => return Ok(Some(bytes.into())),
            Image::Beside(name) => name,
        };
        let path = image_folder().unwrap_or_else(|| "images".into()).join(name);
        let failed = |error: std::io::Error| {
            Error::Kernel(KernelError::UnreadableImage { path: path.clone(), reason: error.to_string() })
        };
        std::fs::read(&path).map(|bytes| Some(bytes.into())).map_err(failed)
    }

    /// Whether the file is written for a device of this compute capability.
    pub(crate) fn supports(&self, capability: (u32, u32)) -> bool {
        let runs = |(target, alone): ((u32, u32), bool)| target == capability || (!alone && target <= capability);
        self.targets.iter().filter_map(|target| parse(target)).any(runs)
    }

    /// The compiler's name for this compute capability, such as `90a`.
    pub(crate) fn architecture(&self, capability: (u32, u32)) -> String {
        let alone = |target: &&str| parse(target) == Some((capability, true));
        let suffix = if self.targets.iter().any(alone) { "a" } else { "" };
        format!("{}{}{suffix}", capability.0, capability.1)
    }

    /// A digest of this file and of `words`, such as the compiler's options. It changes with every text that the
    /// compiler may read.
    pub(crate) fn digest(&self, words: &[&str]) -> String {
        let mut hash = Sha256::new();
        let headers = HEADERS.iter().flat_map(|(path, text)| [*path, *text]);
        for part in words.iter().copied().chain([self.path, self.text]).chain(headers) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        format!("{:x}", hash.finalize())
    }
}

/// Refuses a kernel that is not written for a device of this compute capability. Unknown kernels are accepted here.
pub(crate) fn expect_supported(kernel: &str, capability: (u32, u32)) -> Result<()> {
    match source_of(kernel) {
        Some(source) if !source.supports(capability) => Err(Error::Kernel(KernelError::Unsupported {
            kernel: kernel.to_owned(),
            capability,
            needs: source.targets.join(" "),
        })),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Source =
        Source { path: "a.cu", text: "", kernels: &[], targets: &["sm_80", "sm_90a", "sm_100"], image: Image::None };
    const HOPPER: Source = Source { targets: &["sm_90a"], ..BOTH };

    #[test]
    fn code_runs_on_later_devices_unless_it_is_bound_to_one() {
        for (capability, both, hopper) in
            [((7, 5), false, false), ((8, 0), true, false), ((8, 7), true, false), ((9, 0), true, true)]
        {
            assert_eq!((BOTH.supports(capability), HOPPER.supports(capability)), (both, hopper), "{capability:?}");
        }
        assert!(BOTH.supports((12, 1)) && !HOPPER.supports((10, 0)));
        assert_eq!(BOTH.architecture((9, 0)), "90a");
        assert_eq!(BOTH.architecture((10, 3)), "103");
    }

    #[test]
    fn every_kernel_is_in_one_file() {
        let mut names: Vec<&str> = SOURCES.iter().flat_map(|source| source.kernels).copied().collect();
        for source in SOURCES {
            assert!(!source.kernels.is_empty(), "{} has no line that begins with MACRO(name of a kernel", source.path);
            let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            assert!(source.kernels.iter().all(is_name), "{}: {:?}", source.path, source.kernels);
        }
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two kernels have one name: {names:?}");
        assert!(source_of("no_such_kernel").is_none());
        let of_forward = source_of("lora_forward_rows_wgmma_bf16_n256").map(|source| source.path);
        assert_eq!(of_forward, Some("lora/forward_wgmma_bf16.cu"));
    }

    #[test]
    fn a_digest_tells_words_apart() {
        assert_ne!(BOTH.digest(&["a", "b"]), BOTH.digest(&["ab"]));
        assert_eq!(BOTH.digest(&["a", "b"]), BOTH.digest(&["a", "b"]));
    }
}
