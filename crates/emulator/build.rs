//! Compiles the machine and the project's kernels with the C++ compiler, three times over.
//!
//! `plain` runs fast, `race` has every access of a kernel reported to the race detector, `sanitize` has
//! AddressSanitizer and UndefinedBehaviorSanitizer. An object is compiled again only if something it was made of
//! changed. Without a C++ compiler the crate still builds, and says at run time that there is no emulator.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{env, fs, io, thread};

const BUILDS: [(&str, &[&str], &[&str]); 3] = [
    // Name, flags of the machine, further flags of the kernels.
    ("plain", &["-O2"], &[]),
    ("race", &["-O2", "-DEMU_RACE"], &["-O1", "-fsanitize=thread"]),
    ("sanitize", &["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=vptr"], &[]),
];

/// Calls at every function's entry and exit would say nothing that the race detector asks.
const GCC_RACE: [&str; 2] = ["--param", "tsan-instrument-func-entry-exit=0"];
const CLANG_RACE: [&str; 2] = ["-mllvm", "-tsan-instrument-func-entry-exit=0"];

/// The kernels see IEEE arithmetic as they wrote it: no fused operation that they did not ask for.
const COMMON: [&str; 7] =
    ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-g1", "-Wall", "-Wno-unknown-pragmas"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = root.join("../../kernels").canonicalize().expect("the kernels lie beside the crates");
    let cpp = root.join("cpp");
    println!("cargo:rerun-if-changed={}", kernels.display());
    println!("cargo:rerun-if-changed={}", cpp.display());
    println!("cargo:rerun-if-env-changed=CXX");

    let compiler = env::var("CXX").into_iter().chain(["g++".into(), "clang++".into()]).find(|c| version(c).is_some());
    let compiler = match compiler {
        Some(compiler) if cfg!(target_os = "linux") => compiler,
        _ => {
            println!("cargo:warning=no C++ compiler (g++ or clang++): the emulator will not be available");
            for (build, ..) in BUILDS {
                println!("cargo:rustc-env=EMULATOR_{}=", build.to_uppercase());
            }
            println!("cargo:rustc-env=EMULATOR_PRELOAD=");
            println!("cargo:rustc-env=EMULATOR_COMPILER=");
            println!("cargo:rustc-env=EMULATOR_KERNELS=");
            return;
        }
    };

    let is_clang = version(&compiler).is_some_and(|text| text.contains("clang"));
    let mut jobs = Vec::new();
    let mut libraries = Vec::new();
    for (build, machine_flags, kernel_flags) in BUILDS {
        let folder = out.join(build);
        fs::create_dir_all(&folder).expect("OUT_DIR can be written to");
        let mut objects = Vec::new();
        for source in sources(&cpp.join("machine"), "cpp") {
            let object = object_path(&folder, &cpp, &source);
            objects.push(object.clone());
            let flags: Vec<&str> = machine_flags.to_vec();
            jobs.push(Job::new(&compiler, &flags, &cpp, &kernels, &source, object));
        }
        for source in sources(&kernels, "cu") {
            let object = object_path(&folder, &kernels, &source);
            objects.push(object.clone());
            let mut flags: Vec<&str> = machine_flags.iter().chain(kernel_flags).copied().collect();
            if build == "race" {
                flags.extend(if is_clang { CLANG_RACE } else { GCC_RACE });
            }
            jobs.push(Job::new(&compiler, &flags, &cpp, &kernels, &source, object));
        }
        libraries.push((build, machine_flags, folder.join(format!("libfused_lora_emulator_{build}.so")), objects));
    }
    run_all(jobs);
    for (build, flags, library, objects) in libraries {
        let sanitizers = flags.iter().copied().filter(|f| f.starts_with("-fsanitize"));
        // The sanitizers' own library is in the process before ours: it is preloaded.
        let shared = (is_clang && build == "sanitize").then_some("-shared-libsan");
        let newest = objects.iter().map(|o| modified(o)).max().flatten();
        if modified(&library).is_none() || modified(&library) < newest {
            run(Command::new(&compiler)
                .arg("-shared")
                .arg("-o")
                .arg(&library)
                .args(&objects)
                .args(sanitizers.chain(shared))
                .arg("-ldl"));
        }
        println!("cargo:rustc-env=EMULATOR_{}={}", build.to_uppercase(), library.display());
    }
    let runtime = match env::var("CARGO_CFG_TARGET_ARCH") {
        Ok(arch) if is_clang => format!("libclang_rt.asan-{arch}.so"),
        _ => "libasan.so".into(),
    };
    let preload =
        Command::new(&compiler).arg(format!("-print-file-name={runtime}")).output().expect("the compiler ran before");
    println!("cargo:rustc-env=EMULATOR_PRELOAD={}", String::from_utf8_lossy(&preload.stdout).trim());
    println!("cargo:rustc-env=EMULATOR_COMPILER={compiler}");
    println!("cargo:rustc-env=EMULATOR_KERNELS={}", kernels.display());
}

fn version(compiler: &str) -> Option<String> {
    let output = Command::new(compiler).arg("--version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is part of the package") {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn object_path(folder: &Path, base: &Path, source: &Path) -> PathBuf {
    let name = source.strip_prefix(base).expect("it was found there").with_extension("o");
    folder.join(name.to_string_lossy().replace('/', "-"))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

struct Job {
    command: Command,
    text: String,
    object: PathBuf,
}

impl Job {
    fn new(compiler: &str, flags: &[&str], cpp: &Path, kernels: &Path, source: &Path, object: PathBuf) -> Self {
        let mut command = Command::new(compiler);
        command.args(COMMON).args(flags);
        // The twins come first, so that <gpu/...> means them.
        command.arg("-I").arg(cpp.join("twin")).arg("-I").arg(cpp).arg("-I").arg(kernels);
        command.args(["-MMD", "-MF"]).arg(object.with_extension("d"));
        command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&object);
        let text = format!("{command:?}");
        // For variants of this source: what it was compiled with, a flag a line.
        let flags: Vec<String> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let flags = flags.split(|flag| flag == "-MMD").next().map(|flags| flags.join("\n")).unwrap_or_default();
        fs::write(object.with_extension("flags"), flags).expect("OUT_DIR can be written to");
        Self { command, text, object }
    }

    /// Whether the object was made by this very command from files that have not changed since.
    fn is_fresh(&self) -> bool {
        let Some(made) = modified(&self.object) else { return false };
        let same_command = fs::read_to_string(self.object.with_extension("command")).is_ok_and(|t| t == self.text);
        let Ok(dependencies) = fs::read_to_string(self.object.with_extension("d")) else { return false };
        let files = dependencies.replace("\\\n", " ");
        let files = files.split_once(": ").map_or("", |(_, files)| files);
        same_command && files.split_whitespace().all(|file| modified(Path::new(file)).is_some_and(|t| t < made))
    }

    fn run(mut self) -> io::Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        run(&mut self.command);
        fs::write(self.object.with_extension("command"), self.text)
    }
}

fn run_all(jobs: Vec<Job>) {
    let workers = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
    let queue = std::sync::Mutex::new(jobs);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let job = queue.lock().expect("no worker panics while it holds the lock").pop();
                    let Some(job) = job else { break };
                    job.run().expect("OUT_DIR can be written to");
                }
            });
        }
    });
}

fn run(command: &mut Command) {
    let output = command.output().expect("the compiler ran before");
    let errors = String::from_utf8_lossy(&output.stderr);
    for line in errors.lines() {
        println!("cargo:warning={line}");
    }
    assert!(output.status.success(), "{command:?} failed:\n{errors}");
}
