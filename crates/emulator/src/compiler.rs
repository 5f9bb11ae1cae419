//! The C++ compiler and the libraries that it makes: one for the machine, and one for each source of kernels.
//!
//! A library's name is the digest of all that it was made from, so it is never out of date. If two processes need the
//! same library at once, a lock file beside it lets only one of them compile it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::Build;
use crate::error::Error;
use crate::kernels::{CPP_SOURCES, Hash, Kernels};

/// This file's text. It says how libraries are made, so it is part of their digests.
const COMPILER_SOURCE: &str = include_str!("compiler.rs");

/// Arithmetic must be IEEE and as written, so the compiler may not fuse multiplications and additions.
const COMMON: [&str; 6] = ["-std=c++17", "-fPIC", "-ffp-contract=off", "-g1", "-Wall", "-Wno-unknown-pragmas"];
const SANITIZERS: [&str; 3] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=vptr"];

pub(crate) struct Compiler {
    program: OsString,
    version: String,
    is_clang: bool,
    /// The folder in which libraries and their sources are kept.
    folder: PathBuf,
}

impl Build {
    fn name(self) -> &'static str {
        match self {
            Build::Plain => "plain",
            Build::Race => "race",
            Build::Sanitize => "sanitize",
        }
    }

    fn machine_flags(self) -> Vec<&'static str> {
        match self {
            Build::Plain => vec!["-O2"],
            Build::Race => vec!["-O2", "-DEMU_RACE"],
            Build::Sanitize => [&["-O1"], &SANITIZERS[..]].concat(),
        }
    }

    fn kernel_flags(self, is_clang: bool) -> Vec<&'static str> {
        match self {
            // With more optimisation, compiling takes longer than all tests' kernels save in running.
            Build::Plain => vec!["-O1"],
            // The race detector needs no calls at every function's entry and exit.
            Build::Race if is_clang => {
                vec!["-O1", "-DEMU_RACE", "-fsanitize=thread", "-mllvm", "-tsan-instrument-func-entry-exit=0"]
            }
            Build::Race => {
                vec!["-O1", "-DEMU_RACE", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]
            }
            // Optimising the sanitizers' code would take most of a compilation, and would remove accesses before they
            // are checked.
            Build::Sanitize => [&["-O0"], &SANITIZERS[..]].concat(),
        }
    }
}

impl Compiler {
    /// The compiler that `$CXX` names, else g++, else clang++. The search runs once.
    pub(crate) fn get() -> Result<&'static Self, Error> {
        static FOUND: OnceLock<Result<Compiler, Error>> = OnceLock::new();
        FOUND.get_or_init(Self::find).as_ref().map_err(Clone::clone)
    }

    fn find() -> Result<Self, Error> {
        if !cfg!(target_os = "linux") {
            return Err(Error::Unavailable { reason: "it runs on Linux only".to_owned() });
        }
        let named = std::env::var_os("CXX").filter(|name| !name.is_empty());
        let candidates = named.into_iter().chain(["g++".into(), "clang++".into()]);
        let ask = |program: OsString| {
            let output = Command::new(&program).arg("--version").output().ok()?;
            let version = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some((program, version))
        };
        let (program, version) = candidates.into_iter().find_map(ask).ok_or_else(|| Error::Unavailable {
            reason: "it needs a C++ compiler: install g++ or clang++, or name one in $CXX".to_owned(),
        })?;
        let is_clang = version.contains("clang");
        let folder = cache_folder().join("emulator");
        Ok(Self { program, version, is_clang, folder })
    }

    /// The path of a build's machine, which is compiled if need be.
    pub(crate) fn machine(&self, build: Build) -> Result<PathBuf, Error> {
        let flags = build.machine_flags();
        let mut hash = Hash::default();
        [COMPILER_SOURCE, &self.version, &flags.join(" "), &further_flags().join(" ")]
            .into_iter()
            .for_each(|word| hash.add(word));
        CPP_SOURCES.iter().filter(|(path, _)| path.starts_with("machine/")).for_each(|(path, text)| {
            hash.add(path);
            hash.add(text);
        });
        let library = self.library(build, "machine", &hash.name());
        self.make(&library, |to| {
            let sources = self.machine_sources()?;
            let mut command = self.command(&flags);
            // All source files are compiled as one unit: apart, each would spend most of its time on the standard
            // library's headers.
            let units: String = CPP_SOURCES
                .iter()
                .filter(|(path, _)| path.ends_with(".cpp"))
                .map(|(path, _)| format!("#include \"{path}\"\n"))
                .collect();
            let all = to.with_extension("cpp");
            fs::write(&all, units)?;
            command.arg("-I").arg(&sources).arg(&all);
            let soname = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            command.arg("-Wno-subobject-linkage");
            command.args(["-Wl,-Bsymbolic-functions", &format!("-Wl,-soname,{soname}"), "-ldl"]);
            let made = self.run(command, to);
            let _ = fs::remove_file(all);
            made
        })?;
        Ok(library)
    }

    /// The path of the library with the kernels of one source, linked to the machine of a build; compiled if need be.
    pub(crate) fn kernels(&self, build: Build, kernels: &Kernels, source: &str) -> Result<PathBuf, Error> {
        let machine = self.machine(build)?;
        let mut flags = build.kernel_flags(self.is_clang);
        if kernels.changed().next().is_some() {
            // Kernels with a planted bug run once. The bug may leave code unused, so warnings do not matter.
            flags.extend(["-O0", "-w"]);
        }
        // The machine's name covers the compiler and the machine; the flags and the texts are added to it.
        let digest = kernels.digest(source, &[&flags.join(" "), &machine.to_string_lossy()]);
        let library = self.library(build, &source.trim_end_matches(".cu").replace('/', "-"), &digest);
        self.make(&library, |to| {
            let machine_sources = self.machine_sources()?;
            let originals = self.staged("kernels", kernels.originals())?;
            let mut command = self.command(&flags);
            command.arg("-fvisibility=hidden");
            let mut file = originals.join(source);
            if kernels.changed().next().is_some() {
                let changed = self.staged("changed", kernels.changed())?;
                command.arg("-I").arg(&changed);
                file = Some(changed.join(source)).filter(|path| path.exists()).unwrap_or(file);
            }
            // The folder host/ comes first, so that <gpu/...> includes its headers instead of kernels/gpu.
            command.arg("-I").arg(machine_sources.join("host")).arg("-I").arg(machine_sources);
            command.arg("-I").arg(originals).args(["-x", "c++", "-c"]).arg(file);
            let object = to.with_extension("o");
            self.run(command, &object)?;
            // The race build calls the machine's own __tsan functions, so the compiler's runtime library must not be
            // linked.
            let mut link = self.command(&flags);
            link.arg("-fno-sanitize=thread").arg(&object).arg(&machine).arg("-Wl,-rpath,$ORIGIN");
            let linked = self.run(link, to);
            let _ = fs::remove_file(object);
            linked
        })?;
        Ok(library)
    }

    /// The library that `LD_PRELOAD` must name in a process that runs the sanitizers' build.
    pub(crate) fn sanitizer_preload(&self) -> Option<PathBuf> {
        let runtime = match self.is_clang {
            true => format!("libclang_rt.asan-{}.so", std::env::consts::ARCH),
            false => "libasan.so".to_owned(),
        };
        let output = Command::new(&self.program).arg(format!("-print-file-name={runtime}")).output().ok()?;
        Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())).filter(|path| path.is_absolute())
    }

    fn library(&self, build: Build, name: &str, digest: &str) -> PathBuf {
        self.folder.join(build.name()).join(format!("{name}-{digest}.so"))
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(COMMON).args(flags).args(further_flags()).arg("-shared");
        // With GNU unique symbols, two builds of the machine in one process would share static variables.
        if !self.is_clang {
            command.arg("-fno-gnu-unique");
        } else if flags.contains(&SANITIZERS[0]) {
            command.arg("-shared-libsan");
        }
        command
    }

    fn run(&self, mut command: Command, to: &Path) -> io::Result<()> {
        let output = command.arg("-o").arg(to).output()?;
        if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr))) }
    }

    /// Makes a file unless it exists. `make` writes it under a temporary name; then it is renamed.
    fn make(&self, file: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
        let made = || {
            if file.exists() {
                return Ok(());
            }
            fs::create_dir_all(file.parent().unwrap_or(file))?;
            let lock_path = file.with_extension("lock");
            let lock = File::create(&lock_path)?;
            lock.lock()?;
            if file.exists() {
                return Ok(());
            }
            let temporary = unique(file);
            let made = make(&temporary).and_then(|()| fs::rename(&temporary, file));
            if made.is_err() {
                let _ = fs::remove_file(&temporary);
            }
            made
        };
        made().map_err(|error| Error::Load { reason: format!("{}: {error}", file.display()) })
    }

    fn machine_sources(&self) -> io::Result<PathBuf> {
        self.staged("machine", CPP_SOURCES.iter().copied())
    }

    /// A folder that holds these files; it is made at the first call.
    fn staged<'a>(&self, name: &str, files: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> io::Result<PathBuf> {
        let mut hash = Hash::default();
        files.clone().for_each(|(path, text)| {
            hash.add(path);
            hash.add(text);
        });
        let folder = self.folder.join("sources").join(format!("{name}-{}", hash.name()));
        if folder.exists() {
            return Ok(folder);
        }
        let temporary = unique(&folder);
        for (path, text) in files {
            let file = temporary.join(path);
            fs::create_dir_all(file.parent().unwrap_or(&temporary))?;
            fs::write(file, text)?;
        }
        // The rename fails if another process was first; its folder then holds the same files.
        if fs::rename(&temporary, &folder).is_err() {
            fs::remove_dir_all(&temporary)?;
        }
        Ok(folder)
    }
}

/// Further compiler flags from `$FUSED_LORA_CXXFLAGS`, such as `-Werror` while working on kernels.
fn further_flags() -> Vec<String> {
    let flags = std::env::var("FUSED_LORA_CXXFLAGS").unwrap_or_default();
    flags.split_whitespace().map(str::to_owned).collect()
}

/// A name beside `path` that no other process or thread uses.
fn unique(path: &Path) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!("{name}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// `$FUSED_LORA_CACHE`, else cargo's target folder if this program lies in one, else `fused-lora` in the user's cache
/// folder.
fn cache_folder() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let in_target = || {
        let program = std::env::current_exe().ok()?;
        program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists()).map(Path::to_path_buf)
    };
    let of_user = || named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")));
    named("FUSED_LORA_CACHE")
        .or_else(in_target)
        .or_else(|| of_user().map(|folder| folder.join("fused-lora")))
        .unwrap_or_else(|| std::env::temp_dir().join("fused-lora"))
}
