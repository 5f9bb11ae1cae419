//! Embeds the kernels in the library: always their sources and, if nvcc is found, their machine code for every target.
//! It also makes Rust constants of the tiles in kernels/lora/tiles.h, from which the plans choose.
//!
//! The script uses the nvcc that `$FUSED_LORA_NVCC` names (empty: none), else that of `$CUDA_HOME` or `$CUDA_PATH`,
//! else the first in `$PATH`. Without nvcc the build succeeds as well, and NVRTC compiles a kernel when it is first
//! used. A source is compiled again only if it, a header that it includes, the flags or nvcc have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use sha2::{Digest, Sha256};

/// Folders of kernels/ whose kernels only tests launch.
const ONLY_FOR_TESTS: [&str; 2] = ["test", "ladder"];

/// The GPU architectures that the kernels are compiled for. `cargo xtask sass` checks the machine code of each.
const TARGETS: [&str; 7] = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];

/// The variable that names the targets to compile machine code for, separated by spaces; without it all are compiled.
const TARGETS_VARIABLE: &str = "FUSED_LORA_TARGETS";
/// The variable that names a folder for the machine code, one file per source. With it the machine code is not
/// embedded, and several programs can share the folder.
const IMAGES_VARIABLE: &str = "FUSED_LORA_IMAGES";

/// Compression makes a fatbin a third as large. The driver decompresses the parts that it loads.
const FLAGS: [&str; 6] =
    ["-std=c++17", "-O3", "--resource-usage", "--Werror", "all-warnings", "-Xfatbin=-compress-all"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = root.join("kernels");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", kernels.display());
    for name in [TARGETS_VARIABLE, IMAGES_VARIABLE, "FUSED_LORA_NVCC", "CUDA_HOME", "CUDA_PATH", "DOCS_RS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }

    println!("cargo:rerun-if-env-changed=FUSED_LORA_TEST_KERNELS");
    // The kernels that only tests launch: the emulator compiles them from their sources; tests on a GPU need machine
    // code.
    let compile_tests = env::var_os("FUSED_LORA_TEST_KERNELS").is_some();
    let texts = read_sources(&kernels, compile_tests || env::var_os("CARGO_FEATURE_EMULATOR").is_some());
    let nvcc = Nvcc::find();
    let images = env::var_os(IMAGES_VARIABLE).map(PathBuf::from);
    let mut table = String::from("pub(super) static SOURCES: &[Source] = &[\n");
    // In a shared folder a second build of this package finds the machine code of the first.
    let fatbin_folder = images.as_ref().unwrap_or(&out);
    let fatbin = |path: &str, text: &str| {
        let nvcc = nvcc.as_ref().filter(|_| compile_tests || !is_only_for_tests(path))?;
        let wanted: Vec<&str> = targets(path, text).into_iter().filter(|target| is_wanted(target)).collect();
        nvcc.fatbin(&kernels, fatbin_folder, path, &wanted, &texts)
    };
    for (path, text, fatbin) in compile_all(&texts, fatbin) {
        let targets = targets(path, text);
        let image = match (fatbin, &images) {
            (None, _) => "Image::None".to_owned(),
            (Some(file), None) => format!("Image::BuiltIn(include_bytes!({file:?}))"),
            (Some(file), Some(_)) => {
                let name = file.file_name().expect("it is a file").to_string_lossy().into_owned();
                format!("Image::Beside({name:?})")
            }
        };
        let names = kernel_names(text);
        let _ = writeln!(
            table,
            "    Source {{ path: {path:?}, text: include_str!({:?}), kernels: &{names:?}, targets: &{targets:?}, \
             image: {image} }},",
            kernels.join(path),
        );
    }
    table.push_str("];\n\npub(super) static HEADERS: &[(&str, &str)] = &[\n");
    for path in texts.keys().filter(|path| path.ends_with(".h")) {
        let _ = writeln!(table, "    ({path:?}, include_str!({:?})),", kernels.join(path));
    }
    let version = nvcc.as_ref().map(|nvcc| &nvcc.version);
    let _ = write!(table, "];\n\npub(super) const NVCC: Option<&str> = {version:?};\n");
    fs::write(out.join("images.rs"), table).expect("OUT_DIR can be written to");
    fs::write(out.join("tiles.rs"), tile_constants(&texts["lora/tiles.h"])).expect("OUT_DIR can be written to");
}

/// The path, the text and the fatbin of every source, sorted by path. Threads compile several sources at the same time.
fn compile_all(
    texts: &BTreeMap<String, String>,
    fatbin: impl Fn(&str, &str) -> Option<PathBuf> + Sync,
) -> Vec<(&String, &String, Option<PathBuf>)> {
    let sources: Vec<_> = texts.iter().filter(|(path, _)| path.ends_with(".cu")).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = vec![];
        while let Some((path, text)) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((*path, *text, fatbin(path, text)));
        }
        done
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs()).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a source does not compile")).collect()
    });
    done.sort_by_key(|(path, ..)| *path);
    done
}

/// The number of jobs that cargo lets this script run at the same time.
fn jobs() -> usize {
    env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1)
}

/// Whether a file or folder, given by its path below kernels/, is one of [`ONLY_FOR_TESTS`] or lies in one.
fn is_only_for_tests(path: &str) -> bool {
    ONLY_FOR_TESTS.contains(&path.split('/').next().unwrap_or_default())
}

/// The texts of the sources and headers below kernels/, by their paths there; those that are only for tests if
/// `with_tests`.
fn read_sources(kernels: &Path, with_tests: bool) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![kernels.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("kernels/ is part of the package") {
            let path = entry.expect("kernels/ can be read").path();
            let name = path.strip_prefix(kernels).expect("it was found there").to_string_lossy().replace('\\', "/");
            if path.is_dir() && (with_tests || !is_only_for_tests(&name)) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "cu" || extension == "h") {
                let text = fs::read_to_string(&path).expect("sources are text");
                found.insert(name, text);
            }
        }
    }
    found
}

/// Whether the user wants machine code for a target.
fn is_wanted(target: &str) -> bool {
    let Ok(wanted) = env::var(TARGETS_VARIABLE) else { return true };
    let unknown = wanted.split_whitespace().find(|name| !TARGETS.contains(name));
    assert!(unknown.is_none(), "${TARGETS_VARIABLE} names {unknown:?}, expected some of {TARGETS:?}");
    wanted.split_whitespace().any(|name| name == target)
}

/// The targets that a source names in a line `// targets: ...`; all targets without such a line.
fn targets(path: &str, text: &str) -> Vec<&'static str> {
    let Some(list) = text.lines().find_map(|line| line.trim_start().strip_prefix("// targets:")) else {
        return TARGETS.to_vec();
    };
    let known = |name: &str| TARGETS.into_iter().find(|target| *target == name);
    list.split_whitespace().map(|name| known(name).unwrap_or_else(|| panic!("{path}: no target {name}"))).collect()
}

/// The full names of a source's kernels: the first argument of each macro call at the beginning of a line.
fn kernel_names(text: &str) -> Vec<&str> {
    let calls = text.lines().filter_map(|line| line.split_once('('));
    let kernels =
        calls.filter(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
    kernels.filter_map(|(_, arguments)| arguments.split([',', ')']).next()).map(str::trim).collect()
}

/// The lines of kernels/lora/tiles.h as Rust constants. If the macro has the parameters NAME, ROWS and ALIGNED,
/// `LORA_TILE(name, 128, true)` becomes
/// `pub(crate) const NAME: TileShape = TileShape { name: "name", rows: 128, aligned: true };`.
fn tile_constants(text: &str) -> String {
    let mut constants = String::new();
    for (name, of) in [("LORA_TILE", "TileShape"), ("LORA_DECODE_TILE", "DecodeTile")] {
        let rows: Vec<Vec<&str>> = arguments(text, &format!("\n{name}(")).collect();
        let fields = arguments(text, &format!("\n#define {name}(")).next().expect("tiles.h defines its macros");
        for row in &rows {
            assert_eq!(row.len(), fields.len(), "kernels/lora/tiles.h: {row:?}");
            let _ = write!(constants, "pub(crate) const {}: {of} = {of} {{ name: {:?}", row[0].to_uppercase(), row[0]);
            for (field, value) in fields.iter().zip(row).skip(1) {
                let _ = write!(constants, ", {}: {value}", field.to_lowercase());
            }
            constants.push_str(" };\n");
        }
        let all: Vec<String> = rows.iter().map(|row| row[0].to_uppercase()).collect();
        let _ = writeln!(constants, "#[cfg(test)]\npub(crate) const {name}S: &[{of}] = &[{}];", all.join(", "));
    }
    constants
}

/// For each occurrence of `before`, the comma-separated arguments between it and the next closing bracket.
fn arguments<'a>(text: &'a str, before: &str) -> impl Iterator<Item = Vec<&'a str>> + use<'a> {
    let ends = text.match_indices(before).map(|(at, _)| at + before.len()).collect::<Vec<_>>();
    let lists = ends.into_iter().filter_map(|at| text[at..].split_once(')'));
    lists.map(|(list, _)| list.split(',').map(str::trim).collect())
}

struct Nvcc {
    path: PathBuf,
    /// The CUDA release, such as `12.8`.
    version: String,
    /// The architectures that this nvcc can compile for, such as `sm_90`.
    architectures: BTreeSet<String>,
    /// Whether `$FUSED_LORA_NVCC` names this nvcc. Then a failure of it fails the build.
    required: bool,
}

impl Nvcc {
    /// The nvcc to use; `None` if there is none, or on docs.rs.
    fn find() -> Option<Self> {
        if env::var_os("DOCS_RS").is_some() {
            return None;
        }
        let Some(name) = env::var_os("FUSED_LORA_NVCC") else {
            let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
            let folders = homes.map(|home| Path::new(&home).join("bin"));
            let path = env::var_os("PATH").unwrap_or_default();
            let mut folders = folders.chain(env::split_paths(&path));
            let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
            return folders.find_map(|folder| Self::open(folder.join(&program), false));
        };
        if name.is_empty() {
            return None;
        }
        let nvcc = Self::open(PathBuf::from(&name), true);
        Some(nvcc.unwrap_or_else(|| panic!("$FUSED_LORA_NVCC is {name:?}, which does not run as nvcc")))
    }

    /// Asks a program for its version and architectures; `None` if it does not answer as nvcc does.
    fn open(path: PathBuf, required: bool) -> Option<Self> {
        let ask = |argument: &str| {
            let output = Command::new(&path).arg(argument).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let version = ask("--version")?;
        let version = version.split("release ").nth(1)?.split(',').next()?.to_owned();
        let architectures = ask("--list-gpu-code")?.split_whitespace().map(str::to_owned).collect();
        Some(Self { path, version, architectures, required })
    }

    /// Compiles one source to a fatbin: machine code for those of `targets` that this nvcc knows, and PTX of the
    /// highest of them whose PTX later devices can run. `None` if nvcc fails, with a warning, or if it knows none of
    /// the targets.
    fn fatbin(
        &self,
        kernels: &Path,
        out: &Path,
        source: &str,
        targets: &[&str],
        texts: &BTreeMap<String, String>,
    ) -> Option<PathBuf> {
        // nvcc lists only sm_90, but compiles for sm_90a as well.
        let is_known = |target: &&str| self.architectures.contains(target.trim_end_matches('a'));
        let known: Vec<&str> = targets.iter().copied().filter(is_known).collect();
        // PTX of an architecture with a suffix (sm_90a) runs on no later one.
        let portable = known.iter().rfind(|target| target.ends_with(|c: char| c.is_ascii_digit()));
        let mut flags: Vec<String> = FLAGS.map(str::to_owned).to_vec();
        let mut generate = |target: &str, code: &str| {
            let number = target.trim_start_matches("sm_");
            flags.push(format!("-gencode=arch=compute_{number},code={code}_{number}"));
        };
        known.iter().for_each(|target| generate(target, "sm"));
        portable.iter().for_each(|target| generate(target, "compute"));
        if known.is_empty() {
            return None;
        }

        let stem = out.join(source.replace('/', "-"));
        let (fatbin, stamp) = (stem.with_extension("fatbin"), stem.with_extension("stamp"));
        let digest = self.digest(&flags, source, texts);
        if fatbin.is_file() && fs::read_to_string(&stamp).is_ok_and(|text| text == digest) {
            return Some(fatbin);
        }
        let _ = fs::remove_file(&stamp);
        let mut command = Command::new(&self.path);
        command.arg("--fatbin").args(&flags).arg("-I").arg(kernels).arg("-o").arg(&fatbin);
        let output = command.arg(kernels.join(source)).output().expect("nvcc has run before");
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(!self.required, "nvcc cannot compile {source}:\n{text}");
            let first = text.lines().find(|line| line.contains("error")).unwrap_or("no reason given");
            println!("cargo:warning=nvcc {} cannot compile {source}, so NVRTC will: {first}", self.version);
            return None;
        }
        // The report of ptxas on registers and spills, which `cargo xtask sass --compiled` reads.
        fs::write(stem.with_extension("ptxas"), [output.stdout, output.stderr].concat())
            .and_then(|()| fs::write(&stamp, digest))
            .expect("OUT_DIR can be written to");
        Some(fatbin)
    }

    /// A hash of everything that the fatbin of a source depends on.
    fn digest(&self, flags: &[String], source: &str, texts: &BTreeMap<String, String>) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(&self.path.to_string_lossy());
        add(&self.version);
        flags.iter().for_each(|flag| add(flag));
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![source.to_owned()]);
        while let Some(path) = waiting.pop() {
            let Some(text) = texts.get(&path).filter(|_| seen.insert(path.clone())) else { continue };
            add(&path);
            add(text);
            waiting.extend(includes(text).map(str::to_owned));
        }
        format!("{:x}", hash.finalize())
    }
}

/// The files that a source includes, as it writes them: paths below kernels/, or headers of the compiler.
fn includes(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("#include <"));
    lines.filter_map(|rest| rest.split_once('>')).map(|(path, _)| path)
}
