//! The kernels that are built into this library, and which of them a device can run.

mod cache;
pub(crate) mod nvrtc;

use std::borrow::Cow;
use std::env;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

pub use cache::folder as cache_folder;
pub use nvrtc::version as nvrtc_version;

/// A source file of kernels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    /// The file's path below kernels/.
    pub(crate) path: &'static str,
    pub(crate) text: &'static str,
    /// Names of the file's kernels, with `*` where a macro pastes a part of the name.
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

/// The source file that a kernel is in: the one whose pattern gives most of the kernel's name.
pub(crate) fn source_of(kernel: &str) -> Option<&'static Source> {
    let best = |source: &Source| source.kernels.iter().filter_map(|pattern| matched(pattern, kernel)).max();
    SOURCES.iter().filter(|source| best(source).is_some()).max_by_key(|source| best(source))
}

/// How many characters of a kernel's name a pattern gives, if it matches. Each `*` stands for at least one character.
fn matched(pattern: &str, kernel: &str) -> Option<usize> {
    let mut parts = pattern.split('*');
    let mut rest = kernel.strip_prefix(parts.next()?)?;
    let mut given = kernel.len() - rest.len();
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty().then_some(given + 1);
    }
    while let Some(part) = parts.next() {
        let from = rest.chars().next()?.len_utf8();
        let at = match parts.peek() {
            Some(_) => from + rest[from..].find(part)?,
            None => rest.len().checked_sub(part.len()).filter(|&at| at >= from && rest.ends_with(part))?,
        };
        rest = &rest[at + part.len()..];
        given += part.len();
    }
    Some(given)
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

impl Source {
    /// The file's machine code, if the build compiled it.
    ///
    /// # Errors
    /// [`Error::NoImage`] if the file that this build keeps it in cannot be read.
    pub(crate) fn machine_code(&self) -> Result<Option<Cow<'static, [u8]>>> {
        let name = match self.image {
            Image::None => return Ok(None),
            Image::BuiltIn(bytes) => return Ok(Some(bytes.into())),
            Image::Beside(name) => name,
        };
        let path = image_folder().unwrap_or_else(|| "images".into()).join(name);
        let failed = |error: std::io::Error| Error::NoImage { path: path.clone(), reason: error.to_string() };
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
        Some(source) if !source.supports(capability) => {
            Err(Error::Unsupported { kernel: kernel.to_owned(), capability, needs: source.targets.join(" ") })
        }
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
    fn a_kernel_is_found_in_the_file_that_names_it_best() {
        for source in SOURCES {
            assert!(!source.kernels.is_empty(), "{} names no kernel after GPU_KERNEL(", source.path);
            for pattern in source.kernels {
                let kernel = pattern.replace('*', "f32");
                let found = source_of(&kernel).unwrap();
                assert!(std::ptr::eq(found, source), "{kernel} of {} is taken for one of {}", source.path, found.path);
            }
        }
        assert!(source_of("no_such_kernel").is_none());
        for (kernel, path) in [
            ("lora_forward_rows_mma_f16_t128", "lora/forward_mma_f16_t128.cu"),
            ("lora_forward_columns_mma_f16_any", "lora/forward_mma_f16.cu"),
            ("lora_forward_columns_mma_bf16_t64", "lora/forward_mma_bf16.cu"),
            ("lora_forward_rows_wgmma_bf16_n256", "lora/forward_wgmma_bf16.cu"),
        ] {
            assert_eq!(source_of(kernel).map(|source| source.path), Some(path), "{kernel}");
        }
    }

    #[test]
    fn a_pattern_fits_with_something_for_each_star() {
        assert_eq!(matched("ab_*_c*", "ab_x_cd"), Some(5));
        assert_eq!(matched("ab_*_c", "ab_x_c_c"), Some(5));
        assert_eq!(matched("ab", "ab"), Some(3));
        for (pattern, kernel) in
            [("ab_*", "ab_"), ("ab_*_c", "ab__c"), ("ab", "abc"), ("ab_*_c*", "ab_x_c"), ("a*b", "ac")]
        {
            assert_eq!(matched(pattern, kernel), None, "{pattern} {kernel}");
        }
    }

    #[test]
    fn a_digest_tells_words_apart() {
        assert_ne!(BOTH.digest(&["a", "b"]), BOTH.digest(&["ab"]));
        assert_eq!(BOTH.digest(&["a", "b"]), BOTH.digest(&["a", "b"]));
    }
}
