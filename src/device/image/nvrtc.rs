//! NVRTC, the CUDA compiler as a library: loaded when it is first needed, never linked.

use std::env;
use std::error::Error as _;
use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::OnceLock;

use libloading::Library;

use crate::device::image::cache;
use crate::device::image::{HEADERS, Source};
use crate::error::{Error, KernelError, Result};

type Program = *mut c_void;
type Text = *const c_char;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The compiler's functions, with the signatures of nvrtc.h.
struct Nvrtc {
    create: unsafe extern "C" fn(*mut Program, Text, Text, c_int, *const Text, *const Text) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const Text) -> c_int,
    log: (Size, Get),
    cubin: (Size, Get),
    ptx: (Size, Get),
    /// Major and minor version.
    version: (c_int, c_int),
    /// The architectures that it compiles for: 75, 80 and so on.
    architectures: Vec<c_int>,
    /// Keeps the functions above loaded.
    _libraries: Vec<Library>,
}

const NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};

/// The files that may be NVRTC, best first: `$FUSED_LORA_NVRTC` alone if it is set; otherwise the names that the
/// system's loader looks up, then files in `$CUDA_HOME` and `$CUDA_PATH`.
fn candidates() -> Vec<OsString> {
    if let Some(path) = env::var_os("FUSED_LORA_NVRTC") {
        return vec![path];
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let folders = homes.flat_map(|home| ["lib64", "lib", "bin"].map(|folder| Path::new(&home).join(folder)));
    let installed = folders.flat_map(|folder| NAMES.iter().map(move |name| folder.join(name).into_os_string()));
    NAMES.iter().map(OsString::from).chain(installed).collect()
}

/// The first of the candidates that can be loaded, with the library that it needs. If there is none, the reason why the
/// first candidate cannot be loaded.
fn open(candidates: &[OsString]) -> Result<Vec<Library>, String> {
    let mut reason = None;
    for candidate in candidates {
        // SAFETY: NVRTC runs no code on loading that has requirements on its caller.
        match unsafe { Library::new(candidate) } {
            Ok(library) => return Ok(builtins(Path::new(candidate)).into_iter().chain([library]).collect()),
            Err(error) => {
                // The system's own message, which names the file, is the error's source.
                reason = reason.or_else(|| Some(error.source().map_or(error.to_string(), ToString::to_string)));
            }
        }
    }
    Err(reason.unwrap_or_default())
}

/// A second library, which NVRTC loads by its bare name when it compiles. If NVRTC is outside the system's folders, the
/// system finds that library only if it is already loaded.
fn builtins(nvrtc: &Path) -> Option<Library> {
    let entries = nvrtc.parent()?.read_dir().ok()?;
    let is_it = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so") || name.starts_with("nvrtc-builtins64")
    };
    let path = entries.flatten().map(|entry| entry.path()).find(|path| is_it(path))?;
    // SAFETY: as NVRTC itself.
    unsafe { Library::new(path) }.ok()
}

impl Nvrtc {
    fn load(candidates: &[OsString]) -> Result<Self, String> {
        let libraries = open(candidates)?;
        let library = libraries.last().ok_or_else(String::new)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type inferred for each function is that of nvrtc.h.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(|error| error.to_string())?
            };
        }
        let get_version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = function!("nvrtcVersion");
        let count: unsafe extern "C" fn(*mut c_int) -> c_int = function!("nvrtcGetNumSupportedArchs");
        let list: unsafe extern "C" fn(*mut c_int) -> c_int = function!("nvrtcGetSupportedArchs");
        let (mut version, mut n) = ((0, 0), 0);
        // SAFETY: the pointers are to live integers.
        let mut status = unsafe { get_version(&mut version.0, &mut version.1) | count(&mut n) };
        let mut architectures = vec![0; usize::try_from(n).unwrap_or(0)];
        // SAFETY: the list has as many places as the library said.
        status |= unsafe { list(architectures.as_mut_ptr()) };
        if status != 0 {
            return Err("NVRTC does not report its version and architectures".to_owned());
        }
        Ok(Self {
            create: function!("nvrtcCreateProgram"),
            destroy: function!("nvrtcDestroyProgram"),
            compile: function!("nvrtcCompileProgram"),
            log: (function!("nvrtcGetProgramLogSize"), function!("nvrtcGetProgramLog")),
            cubin: (function!("nvrtcGetCUBINSize"), function!("nvrtcGetCUBIN")),
            ptx: (function!("nvrtcGetPTXSize"), function!("nvrtcGetPTX")),
            version,
            architectures,
            _libraries: libraries,
        })
    }

    fn get() -> Result<&'static Self, String> {
        static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
        NVRTC.get_or_init(|| Self::load(&candidates())).as_ref().map_err(Clone::clone)
    }

    /// The target for a device: its own machine code, or, if the compiler is older than the device, the highest PTX
    /// version below it, which the driver compiles further.
    fn target(&self, source: &Source, capability: (u32, u32)) -> Option<String> {
        let number = (10 * capability.0 + capability.1).cast_signed();
        if self.architectures.contains(&number) {
            return Some(format!("sm_{}", source.architecture(capability)));
        }
        let below = self.architectures.iter().filter(|&&architecture| architecture < number).max()?;
        Some(format!("compute_{below}"))
    }

    fn compile(&self, source: &Source, target: &str) -> Result<Vec<u8>> {
        let failed = |log: String| {
            Error::Kernel(KernelError::CompilationFailed {
                file: source.path.to_owned(),
                target: target.to_owned(),
                log,
            })
        };
        let c_string = |text: &str| CString::new(text).map_err(|_| failed("a source contains a zero byte".to_owned()));
        let (text, path) = (c_string(source.text)?, c_string(source.path)?);
        let names = HEADERS.iter().map(|(name, _)| c_string(name)).collect::<Result<Vec<_>>>()?;
        let headers = HEADERS.iter().map(|(_, text)| c_string(text)).collect::<Result<Vec<_>>>()?;
        let options = options(target).iter().map(|option| c_string(option)).collect::<Result<Vec<_>>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<_>>();
        let (names, headers, options) = (pointers(&names), pointers(&headers), pointers(&options));

        let mut program = Guard { nvrtc: self, raw: null_mut() };
        let count = |list: &[Text]| c_int::try_from(list.len()).unwrap_or(c_int::MAX);
        // SAFETY: all strings end with a zero byte and outlive the program; the lists are as long as their counts say.
        let status = unsafe {
            let (headers, names_count) = (headers.as_ptr(), count(&names));
            (self.create)(&mut program.raw, text.as_ptr(), path.as_ptr(), names_count, headers, names.as_ptr())
        };
        if status != 0 {
            return Err(failed(format!("nvrtcCreateProgram returned {status}")));
        }
        // SAFETY: the program was created above; the options end with a zero byte and are as many as the count says.
        let status = unsafe { (self.compile)(program.raw, count(&options), options.as_ptr()) };
        if status != 0 {
            let log = program.read(self.log).unwrap_or_default();
            let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
            return Err(failed(format!("nvrtcCompileProgram returned {status}\n{}", log.trim())));
        }
        let code = if target.starts_with("sm_") { self.cubin } else { self.ptx };
        program.read(code).ok_or_else(|| failed("the compiler made no code".to_owned()))
    }
}

/// A program of NVRTC, destroyed on drop.
struct Guard<'a> {
    nvrtc: &'a Nvrtc,
    raw: Program,
}

impl Guard<'_> {
    fn read(&self, (size, get): (Size, Get)) -> Option<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program was created; the pointer is to a live integer.
        if unsafe { size(self.raw, &mut bytes) } != 0 || bytes == 0 {
            return None;
        }
        let mut data = vec![0u8; bytes];
        // SAFETY: the program was created; the memory is as long as the library said.
        (unsafe { get(self.raw, data.as_mut_ptr().cast()) } == 0).then_some(data)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: it was created, and is destroyed once.
            let _ = unsafe { (self.nvrtc.destroy)(&mut self.raw) };
        }
    }
}

fn options(target: &str) -> [String; 2] {
    [format!("--gpu-architecture={target}"), "--std=c++17".to_owned()]
}

/// Major and minor version of the NVRTC that compiles kernels.
///
/// # Errors
/// The message of the system's loader if there is no NVRTC.
pub fn version() -> Result<(u32, u32), String> {
    let (major, minor) = Nvrtc::get()?.version;
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

/// The machine code of a source file for a device, or PTX if the compiler is older than the device: from the cache, or
/// newly compiled.
///
/// # Errors
/// [`KernelError::NoImage`] without NVRTC, [`KernelError::CompilationFailed`].
pub(crate) fn image(source: &Source, kernel: &str, capability: (u32, u32)) -> Result<Vec<u8>> {
    let missing =
        |reason: String| Error::Kernel(KernelError::NoImage { kernel: kernel.to_owned(), capability, reason });
    let nvrtc = Nvrtc::get().map_err(missing)?;
    let (major, minor) = nvrtc.version;
    let too_new = || missing(format!("NVRTC {major}.{minor} compiles only for later devices"));
    let target = nvrtc.target(source, capability).ok_or_else(too_new)?;
    cached(nvrtc, source, &target, cache::folder().as_deref())
}

fn cached(nvrtc: &Nvrtc, source: &Source, target: &str, folder: Option<&Path>) -> Result<Vec<u8>> {
    let version = format!("NVRTC {}.{}", nvrtc.version.0, nvrtc.version.1);
    let options = options(target);
    let words: Vec<&str> = options.iter().map(String::as_str).chain([version.as_str()]).collect();
    let name = format!("{target}-{}", source.digest(&words));
    if let Some(code) = folder.and_then(|folder| cache::load(folder, &name)) {
        return Ok(code);
    }
    let code = nvrtc.compile(source, target)?;
    if let Some(folder) = folder {
        // If the cache cannot be written, the next process compiles again, which is slower but not wrong.
        let _ = cache::store(folder, &name, &code);
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::device::image::{HEADERS, SOURCES};

    /// The NVRTC of this machine, or the one that scripts/cuda.sh installs.
    fn nvrtc() -> Option<Nvrtc> {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cuda/lib").read_dir();
        let installed = python.into_iter().flatten().flatten();
        let installed = installed.map(|folder| folder.path().join("site-packages/nvidia/cu13/lib/libnvrtc.so.13"));
        let candidates: Vec<_> = candidates().into_iter().chain(installed.map(|path| path.into_os_string())).collect();
        let found = Nvrtc::load(&candidates);
        if let Err(reason) = &found {
            println!("skipped, there is no NVRTC: {reason}");
        }
        found.ok()
    }

    fn expect_code(nvrtc: &Nvrtc, source: &Source, target: &str) {
        let code = nvrtc.compile(source, target).unwrap_or_else(|error| panic!("{error}"));
        let is_machine_code = code.starts_with(b"\x7fELF");
        assert_eq!(is_machine_code, target.starts_with("sm_"), "{} for {target}", source.path);
        // The code has the kernels' own names, by which they are looked up.
        for kernel in source.kernels {
            let found = code.windows(kernel.len()).any(|window| window == kernel.as_bytes());
            assert!(found, "{kernel} of {}", source.path);
        }
    }

    /// The headers that a text includes, directly and through others.
    fn headers_of(text: &str) -> BTreeSet<&'static str> {
        let (mut found, mut texts) = (BTreeSet::new(), vec![text]);
        while let Some(text) = texts.pop() {
            for &(name, header) in HEADERS {
                if text.contains(&format!("#include <{name}>")) && found.insert(name) {
                    texts.push(header);
                }
            }
        }
        found
    }

    /// Sources that together include every header. The other sources instantiate the same headers for other types.
    fn sample() -> Vec<&'static Source> {
        let only_for_tests = |path: &str| path.starts_with("test/") || path.starts_with("ladder/");
        let mut left: Vec<_> = SOURCES.iter().filter(|s| !only_for_tests(s.path)).collect();
        // The sources with the fewest kernels for each header come first: time goes to kernels.
        left.sort_by_key(|source| 1000 * source.kernels.len() / headers_of(source.text).len().max(1));
        let mut covered = BTreeSet::new();
        left.retain(|source| {
            let headers = headers_of(source.text);
            let adds = !headers.is_subset(&covered);
            covered.extend(headers);
            adds
        });
        let sample = left;
        let missing: Vec<_> =
            HEADERS.iter().filter(|(name, _)| !covered.contains(name) && !only_for_tests(name)).collect();
        assert!(missing.len() < 4, "{missing:?}");
        sample
    }

    /// To PTX: `cargo xtask sass` checks the machine code of all sources and targets, which the same ptxas makes.
    #[test]
    fn every_header_compiles_from_memory() {
        let Some(nvrtc) = &nvrtc() else { return };
        std::thread::scope(|scope| {
            for source in sample() {
                scope.spawn(move || expect_code(nvrtc, source, "compute_90a"));
            }
        });
    }

    #[test]
    fn a_device_gets_machine_code_of_its_own() {
        let Some(nvrtc) = &nvrtc() else { return };
        let source = SOURCES.iter().filter(|source| source.supports((7, 5))).min_by_key(|source| source.kernels.len());
        for capability in [(7, 5), (8, 6), (9, 0)] {
            let target = nvrtc.target(source.unwrap(), capability).unwrap();
            assert!(target.starts_with("sm_"), "{target}");
            expect_code(nvrtc, source.unwrap(), &target);
        }
    }

    #[test]
    fn a_device_that_the_compiler_does_not_know_gets_ptx() {
        let Some(nvrtc) = nvrtc() else { return };
        let source = &SOURCES[0];
        assert_eq!(nvrtc.target(source, (9, 0)).as_deref(), Some("sm_90a"));
        assert_eq!(nvrtc.target(source, (1, 0)), None);
        let target = nvrtc.target(source, (99, 0)).unwrap();
        assert!(target.starts_with("compute_"), "{target}");
        let ptx = nvrtc.compile(source, &target).unwrap();
        assert!(ptx.windows(8).any(|window| window == b".version") && ptx.last() == Some(&0));
    }

    #[test]
    fn what_does_not_compile_says_where() {
        let Some(nvrtc) = nvrtc() else { return };
        let source = Source { text: "#include <abi.h>\n__global__ void k() { nonsense }\n", ..SOURCES[0] };
        let Err(Error::Kernel(KernelError::CompilationFailed { file, target, log })) = nvrtc.compile(&source, "sm_80")
        else {
            panic!("it compiled")
        };
        assert_eq!((file.as_str(), target.as_str()), (source.path, "sm_80"));
        assert!(log.contains("nonsense") && log.contains("(2)"), "{log}");
    }

    #[test]
    fn what_is_cached_is_not_compiled_again_unless_it_is_damaged() {
        let Some(nvrtc) = nvrtc() else { return };
        let folder = tempfile::tempdir().unwrap();
        let source = Source { text: "extern \"C\" __global__ void k() {}\n", ..SOURCES[0] };
        let get = || cached(&nvrtc, &source, "sm_80", Some(folder.path())).unwrap();
        let code = get();
        let file = folder.path().read_dir().unwrap().next().unwrap().unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("sm_80-"), "{name}");

        cache::store(folder.path(), &name, b"taken from the cache").unwrap();
        assert_eq!(get(), b"taken from the cache");
        std::fs::write(&file, b"damaged").unwrap();
        assert_eq!(get(), code);
        assert_eq!(cache::load(folder.path(), &name), Some(code.clone()));
        assert_eq!(cached(&nvrtc, &source, "sm_80", None).unwrap(), code);
    }

    #[test]
    fn without_the_library_there_is_a_reason() {
        assert!(Nvrtc::load(&[OsString::from("/nowhere/libnvrtc.so")]).is_err_and(|reason| reason.contains("nowhere")));
        assert!(Nvrtc::load(&[]).is_err());
    }
}
