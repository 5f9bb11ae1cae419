//! What the driver reads from images of a real compiler, beside what the compiler's own tools say.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::calls::*;
use crate::image::{attributes_of, parameters_of};
use crate::process;

/// Compute capability, and the name of its target.
const TARGETS: [(&str, &str); 5] =
    [("7.5", "sm_75"), ("8.0", "sm_80"), ("9.0", "sm_90a"), ("10.0", "sm_100"), ("12.0", "sm_120")];
/// How nvcc may be told to pack images.
const FORMS: [(&str, &str); 3] =
    [("default", "--std=c++17"), ("compressed", "--compress-mode=size"), ("plain", "--no-compress")];

/// What a kernel takes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kernel {
    registers: usize,
    /// Bytes of a thread's frame in local memory.
    stack: usize,
    shared: usize,
    /// Threads of the largest block.
    threads: usize,
    parameters: Vec<(usize, usize)>,
}

/// The folder of nvcc and its tools, where scripts/cuda.sh installs them.
fn tools() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cuda/lib");
    let folders = fs::read_dir(lib).ok()?.flatten().map(|entry| entry.path().join("site-packages/nvidia/cu13/bin"));
    folders.filter(|bin| bin.join("nvcc").exists() && bin.join("cuobjdump").exists()).max()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The numbers behind a word in a text, decimal or hexadecimal.
fn number_behind(text: &str, word: &str) -> Option<usize> {
    let rest = text.split_once(word)?.1.trim_start_matches([' ', ':', '\t']);
    let digits = rest.split_whitespace().next()?;
    digits.strip_prefix("0x").map_or_else(|| digits.parse().ok(), |hex| usize::from_str_radix(hex, 16).ok())
}

/// What cuobjdump says of a cubin's kernels.
fn said_by_cuobjdump(bin: &Path, cubin: &Path) -> BTreeMap<String, Kernel> {
    let cuobjdump = |option: &str| run(Command::new(bin.join("cuobjdump")).arg(option).arg(cubin));
    let (usage, elf) = (cuobjdump("--dump-resource-usage"), cuobjdump("-elf"));
    let mut kernels: BTreeMap<String, Kernel> = BTreeMap::new();
    for of_function in usage.split(" Function ").skip(1) {
        let name = of_function.split(':').next().unwrap().to_owned();
        let number = |word| number_behind(of_function, word).unwrap();
        let (registers, stack, shared) = (number("REG:"), number("STACK:"), number("SHARED:"));
        kernels.insert(name, Kernel { registers, stack, shared, threads: 1024, parameters: vec![] });
    }
    for section in elf.split("\n.nv.info.").skip(1) {
        let (name, records) = section.split_once('\n').unwrap();
        // The list of sections begins with the same words, and no kernel's name is followed by numbers.
        let Some(kernel) = kernels.get_mut(name.trim()) else { continue };
        for record in records.split("\n.").next().unwrap().split("Attribute:").skip(1) {
            match record.split_whitespace().next().unwrap() {
                "EIATTR_KPARAM_INFO" => {
                    let number = |word| number_behind(record, word).unwrap();
                    kernel.parameters.push((number("Offset"), number("Size")));
                }
                "EIATTR_MAX_THREADS" => kernel.threads = number_behind(record, "Value").unwrap(),
                _ => {}
            }
        }
        kernel.parameters.sort_unstable();
    }
    kernels
}

/// What the driver says of an image's kernels.
fn said_by_driver(image: &Path, names: &[String]) -> BTreeMap<String, Kernel> {
    let bytes = fs::read(image).unwrap();
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut padded = [0; 8];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(padded);
    }
    let module = made(|module| load(module, words.as_ptr()));
    let kernel = |name: &String| {
        let function = made(|function| find(function, module, name));
        let [threads, shared, stack, registers, ..] = attributes_of(function).map(|value| value as usize);
        (name.clone(), Kernel { registers, stack, shared, threads, parameters: parameters_of(function) })
    };
    names.iter().map(kernel).collect()
}

fn compile(bin: &Path, folder: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/kernels.cu");
    let mut sizes = BTreeMap::new();
    for (form, option) in FORMS {
        let fatbin = folder.join(form).with_extension("fatbin");
        let mut nvcc = Command::new(bin.join("nvcc"));
        nvcc.args(["-fatbin", option, "-o"]).arg(&fatbin).arg(&source);
        for (_, target) in TARGETS {
            let architecture = target.replace("sm", "compute");
            nvcc.arg("-gencode").arg(format!("arch={architecture},code={target}"));
        }
        run(&mut nvcc);
        sizes.insert(form, fs::metadata(fatbin).unwrap().len());
    }
    assert!(2 * sizes["compressed"] < sizes["plain"], "{sizes:?}");
    let extract = ["-xelf", "all", "plain.fatbin"];
    run(Command::new(bin.join("cuobjdump")).args(extract).current_dir(folder));
}

#[test]
fn the_driver_reads_what_the_compiler_wrote() {
    let test = concat!(module_path!(), "::the_driver_reads_what_the_compiler_wrote");
    let Some(bin) = tools() else {
        println!("skipped: there is no nvcc; scripts/cuda.sh installs it");
        return;
    };
    // The compiler's files, which the processes of the targets read.
    let folder = match process::case_of(test) {
        Some(case) => PathBuf::from(case.split_once(' ').unwrap().1),
        None => tempfile::tempdir().unwrap().keep(),
    };
    if process::case_of(test).is_none() {
        compile(&bin, &folder);
    }
    for (at, (capability, target)) in TARGETS.iter().enumerate() {
        let case = format!("{target} {}", folder.display());
        let check = || {
            start();
            let cubin = folder.join(format!("plain.{}.{target}.cubin", at + 1));
            let expected = said_by_cuobjdump(&bin, &cubin);
            let names: Vec<String> = expected.keys().cloned().collect();
            assert_eq!(names, ["bounded", "nothing", "several", "wide"]);
            assert_eq!(expected["bounded"].threads, 192);
            assert_eq!(expected["several"].parameters, [(0, 8), (8, 1), (16, 8), (24, 4)]);
            let fatbins = FORMS.map(|(form, _)| folder.join(form).with_extension("fatbin"));
            for image in fatbins.iter().chain([&cubin]) {
                assert_eq!(said_by_driver(image, &names), expected, "{}", image.display());
            }
        };
        if process::case_of(test).is_none_or(|chosen| chosen == case) {
            process::run(test, &case, &format!("capability={capability}"), check).unwrap();
        }
    }
    if process::case_of(test).is_none() {
        fs::remove_dir_all(folder).unwrap();
    }
}
