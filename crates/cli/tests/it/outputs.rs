//! Result files: devices and FIFOs are written to directly, regular files are replaced as a whole, inputs are never
//! written to. The tests make their own device nodes, so a bug cannot replace the machine's /dev/null.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{contents, copy_of, fail, fifo, golden, json, run, succeed, text};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::Value;

const TABLE1: [&str; 9] =
    ["table1", "--columns", "1x3,1x4", "--trials", "2", "--threads", "1", "--methods", "none,lora-fused"];
const SWEEP: [&str; 13] = [
    "sweep",
    "--sequences",
    "3",
    "--batches",
    "1",
    "--ranks",
    "1,2",
    "--trials",
    "2",
    "--methods",
    "lora-fused",
    "--threads",
    "1",
];
const EXPLAIN: [&str; 8] = ["bench", "--explain", "--tokens", "1", "--shapes", "64x64", "--ranks", "2"];

/// Arguments with the golden model.
fn on_model(args: &[&str], extra: &[&str]) -> Vec<String> {
    let model = golden("model");
    args.iter().chain(&["--model", &model]).chain(extra).map(|arg| (*arg).to_owned()).collect()
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_device_stays_a_device() {
    let place = tempfile::tempdir().unwrap();
    let [null, link] = ["null", "link"].map(|name| place.path().join(name));
    // Only root can make device nodes, and only root could replace one.
    if !is_root() {
        return;
    }
    mknodat(CWD, &null, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3)).unwrap();
    symlink("null", &link).unwrap();
    let before = null.metadata().unwrap();
    let logits = ["logits", "--tokens", "1,2"];
    for path in [text(&null), text(&link)] {
        let runs = [
            EXPLAIN.iter().chain(&["--json", path, "--csv", path]).map(|arg| (*arg).to_owned()).collect(),
            on_model(&TABLE1, &["--json", path, "--csv", path, "--plot", path]),
            on_model(&SWEEP, &["--json", path, "--csv", path, "--plot", path]),
            on_model(&logits, &["--out", path]),
        ];
        for args in &runs {
            let out = succeed(&strs(args));
            assert!(!out.is_empty(), "the table stays on stdout: {args:?}");
            let after = null.symlink_metadata().unwrap();
            assert!(after.file_type().is_char_device(), "{args:?}");
            assert_eq!((after.rdev(), after.ino(), after.mode()), (before.rdev(), before.ino(), before.mode()));
            assert!(link.is_symlink() && contents(place.path()) == ["link", "null"], "{args:?}");
        }
        let adapter = golden("lora-all");
        let merge = on_model(&["merge"], &["--adapter", &adapter, "--out", path]);
        assert!(fail(&strs(&merge), 1).contains("already exists"));
    }
}

#[test]
fn a_fifo_gets_the_whole_result_once() {
    let place = tempfile::tempdir().unwrap();
    let [pipe, file] = ["pipe", "file"].map(|name| place.path().join(name));
    fifo(&pipe);
    let through = |args: &[&str], option: &str| {
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        // A command that opened the FIFO twice would wait for a second reader; the timeout makes that a failure.
        let mut command = assert_cmd::Command::cargo_bin("fused-lora").unwrap();
        let limit = std::time::Duration::from_secs(120);
        command.args(on_model(args, &[option, text(&pipe)])).timeout(limit).assert().success();
        assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo());
        reader.join().unwrap()
    };
    // A regular file is written after every column and cell, but a FIFO only at the end.
    let report: Value = serde_json::from_slice(&through(&TABLE1, "--json")).unwrap();
    assert_eq!(report["rows"].as_array().unwrap().len(), 4);
    let report: Value = serde_json::from_slice(&through(&SWEEP, "--json")).unwrap();
    assert_eq!(report["rows"].as_array().unwrap().len(), 2);
    assert_eq!(String::from_utf8(through(&TABLE1, "--csv")).unwrap().lines().count(), 5);
    assert!(String::from_utf8(through(&SWEEP, "--plot")).unwrap().ends_with("</svg>\n"));
    let logits = ["logits", "--tokens", "1,2"];
    succeed(&strs(&on_model(&logits, &["--out", text(&file)])));
    assert_eq!(through(&logits, "--out"), std::fs::read(&file).unwrap());
    assert_eq!(contents(place.path()), ["file", "pipe"]);
}

#[test]
fn stdout_holds_nothing_but_the_result() {
    for option in ["--json", "--csv", "--plot"] {
        let output = run(&strs(&on_model(&TABLE1, &[option, "/dev/stdout"])));
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success() && err.contains("| method"), "{err}");
        match option {
            "--json" => assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["rows"].as_array().unwrap().len(), 4),
            "--csv" => assert!(out.starts_with("method,") && out.lines().count() == 5, "{out}"),
            _ => assert!(out.starts_with("<svg") && out.ends_with("</svg>\n"), "{out}"),
        }
    }
    let twice = on_model(&TABLE1, &["--json", "/dev/stdout", "--csv", "/proc/self/fd/1"]);
    assert!(fail(&strs(&twice), 1).contains("--json names the same file"));
}

/// With stdout redirected by `> file` or `>> file`, a result that is written to /dev/stdout or to the same file by name
/// behaves as other output would.
#[test]
fn a_redirected_stdout_is_written_through() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("out");
    for name in ["/dev/stdout", text(&file)] {
        std::fs::write(&file, "before\n").unwrap();
        let inode = file.metadata().unwrap().ino();
        let stdout = OpenOptions::new().append(true).open(&file).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fused-lora"));
        let status = command.args(on_model(&TABLE1, &["--json", name])).stdout(stdout).stderr(Stdio::null()).status();
        assert!(status.unwrap().success());
        let written = std::fs::read_to_string(&file).unwrap();
        let report: Value = serde_json::from_str(written.strip_prefix("before\n").unwrap()).unwrap();
        assert_eq!(report["rows"].as_array().unwrap().len(), 4);
        assert_eq!(file.metadata().unwrap().ino(), inode, "{name}");
    }
    // Another file descriptor.
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3>\"$0\"; exec \"$@\"", text(&file), env!("CARGO_BIN_EXE_fused-lora")]);
    let output = command.args(on_model(&TABLE1, &["--json", "/dev/fd/3"])).output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"/"), "{output:?}");
    assert_eq!(json(&file)["rows"].as_array().unwrap().len(), 4);
    assert_eq!(contents(place.path()), ["out"]);
}

#[test]
fn symbolic_links_are_followed_and_stay() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::create_dir(at("folder")).unwrap();
    std::fs::write(at("folder/target"), "old").unwrap();
    symlink("folder/target", at("link")).unwrap();
    symlink(at("link"), at("chain")).unwrap();
    symlink("folder/new", at("dangling")).unwrap();
    for (name, target) in [("link", "folder/target"), ("chain", "folder/target"), ("dangling", "folder/new")] {
        std::fs::write(at("folder/target"), "old").unwrap();
        succeed(&strs(&on_model(&TABLE1, &["--json", text(&at(name))])));
        assert!(at(name).is_symlink() && at(target).symlink_metadata().unwrap().is_file(), "{name}");
        assert_eq!(json(&at(target))["rows"].as_array().unwrap().len(), 4, "{name}");
    }
    symlink("loop", at("loop")).unwrap();
    assert!(fail(&strs(&on_model(&TABLE1, &["--json", text(&at("loop"))])), 1).contains("cannot be written"));
    let through = at("folder/target").join("x");
    assert!(fail(&strs(&on_model(&TABLE1, &["--json", text(&through)])), 1).contains("cannot be written"));
    assert_eq!(contents(place.path()), ["chain", "dangling", "folder", "link", "loop"]);
    assert_eq!(contents(&at("folder")), ["new", "target"]);
}

/// Runs the command under a umask.
fn under(umask: &str, args: &[String]) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_fused-lora")]).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn modes_and_owners_are_kept_and_new_files_follow_the_umask() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let mode = |name: &str| at(name).metadata().unwrap().mode() & 0o7777;
    let adapter = golden("lora-all");
    for (umask, file, folder) in [("022", 0o644, 0o755), ("027", 0o640, 0o750), ("077", 0o600, 0o700)] {
        let [new, merged] = ["new", "merged"].map(|name| format!("{name}-{umask}"));
        under(umask, &on_model(&TABLE1, &["--json", text(&at(&new))]));
        under(umask, &on_model(&["merge"], &["--adapter", &adapter, "--out", text(&at(&merged))]));
        let got = [mode(&new), mode(&merged)];
        assert_eq!(got, [file, folder], "{umask}: {:o} {:o}", got[0], got[1]);
        for name in ["config.json", "model.safetensors"] {
            assert_eq!(mode(&format!("{merged}/{name}")), file, "{umask}, {name}");
        }
    }
    for kept in [0o600, 0o664, 0o666, 0o755] {
        std::fs::write(at("old"), "old").unwrap();
        std::fs::set_permissions(at("old"), Permissions::from_mode(kept)).unwrap();
        under("022", &on_model(&TABLE1, &["--json", text(&at("old"))]));
        assert_eq!(mode("old"), kept);
        assert!(json(&at("old"))["rows"].is_array());
    }
    if is_root() {
        std::os::unix::fs::chown(at("old"), Some(1234), Some(2345)).unwrap();
        under("022", &on_model(&TABLE1, &["--json", text(&at("old"))]));
        let metadata = at("old").metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 2345));
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn an_input_is_never_an_output() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let (model, adapter) = (copy_of("model", place.path()), copy_of("lora-all", place.path()));
    let weights = model.join("model.safetensors");
    symlink(&weights, at("link")).unwrap();
    std::fs::hard_link(&weights, at("hard")).unwrap();
    std::fs::copy(golden("expected.safetensors"), at("tokens")).unwrap();
    let before = [bytes(&weights), bytes(&model.join("config.json")), bytes(&at("tokens"))];

    let factors = adapter.join("adapter_model.safetensors");
    let outputs = [weights.clone(), at("link"), at("hard"), model.join("config.json"), factors, at("tokens")];
    let tokens = at("tokens");
    for out in &outputs {
        let adapted = ["logits", "--model", text(&model), "--adapter", text(&adapter)];
        let rest = ["--tokens", text(&tokens), "--out", text(out)];
        let error = fail(&[&adapted[..], &rest].concat(), 1);
        assert!(error.contains("belongs to an input") && error.contains(text(out)), "{error}");
    }
    for option in ["--json", "--csv", "--plot"] {
        for command in [&TABLE1[..], &SWEEP] {
            let error = fail(&[command, &["--model", text(&model), option, text(&at("hard"))]].concat(), 1);
            assert!(error.contains("belongs to an input"), "{error}");
        }
    }
    for out in [model.join("merged"), adapter.join("merged")] {
        let error = fail(&["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&out)], 1);
        assert!(error.contains("belongs to an input"), "{error}");
    }
    assert_eq!([bytes(&weights), bytes(&model.join("config.json")), bytes(&at("tokens"))], before);
    assert_eq!(contents(&model), contents(Path::new(&golden("model"))));

    // Two results may not have the same file, whatever its names and whether it exists.
    std::fs::create_dir(at("results")).unwrap();
    symlink("results/new", at("alias")).unwrap();
    let [new, alias] = [at("results/new"), at("alias")];
    for (a, b) in [(&new, &new), (&new, &alias), (&alias, &new)] {
        let error = fail(&strs(&on_model(&TABLE1, &["--json", text(a), "--csv", text(b)])), 1);
        assert!(error.contains("--csv") && error.contains("--json names the same file"), "{error}");
    }
    assert!(contents(&at("results")).is_empty(), "refused before anything is written");
    File::create(&new).unwrap();
    fail(&strs(&on_model(&TABLE1, &["--plot", text(&alias), "--csv", text(&new)])), 1);
}

#[test]
fn a_sweep_never_mixes_cells() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("sweep.json");
    let model = copy_of("model", place.path());
    let fixed = [&SWEEP[..], &["--model", text(&model), "--json", text(&path)]].concat();
    let sweep = |extra: &[&str]| succeed(&[&fixed[..], extra].concat());
    sweep(&[]);
    let first = bytes(&path);
    assert!(sweep(&[]).contains("continuing after 2 cells"));

    let refused = |extra: &[&str], says: &str| {
        let before = bytes(&path);
        let error = fail(&[&fixed[..], extra].concat(), 1);
        assert!(error.contains(says) && error.contains("--restart"), "{error}");
        assert_eq!(bytes(&path), before);
    };
    refused(&["--dtype", "bf16"], "dtype f32 there, bf16 now");
    refused(&["--seed", "3"], "seed 0 there, 3 now");
    refused(&["--targets", "q"], "targets");
    // Circumstances that no option sets are changed in the file.
    for (field, name) in [("commit", "commit"), ("build", "build"), ("processor", "processor"), ("cores", "cores")] {
        let mut report: Value = serde_json::from_slice(&first).unwrap();
        report["setting"][field] = "other".into();
        std::fs::write(&path, report.to_string()).unwrap();
        refused(&[], &format!("{name} other there"));
    }
    // Another model at the same path.
    std::fs::write(&path, &first).unwrap();
    let config = model.join("config.json");
    let edited = std::fs::read_to_string(&config).unwrap().replacen('{', "{ ", 1);
    std::fs::write(&config, edited).unwrap();
    refused(&[], "model sha256:");
    let out = sweep(&["--restart"]);
    assert!(!out.contains("continuing"), "{out}");
    assert_eq!(json(&path)["rows"].as_array().unwrap().len(), 2);
    // A file that is not a sweep's result is refused; an empty one, as mktemp makes it, is not.
    std::fs::write(&path, "{}").unwrap();
    refused(&[], "is not the result of a sweep");
    std::fs::write(&path, "").unwrap();
    sweep(&[]);
}

#[test]
fn errors_are_short_and_name_their_cause_once() {
    let huge = "x".repeat(100_000);
    let tokens = vec!["7"; 40_000].join(",");
    let model = golden("model");
    let name = "n".repeat(200);
    let cases: [(&[&str], i32); 8] = [
        (&["table1", "--model", &huge], 1),
        (&["logits", "--model", &huge, "--tokens", "1", "--out", "o"], 1),
        (&["logits", "--model", &model, "--tokens", "1", "--out", &huge], 1),
        (&["logits", "--model", &model, "--tokens", &huge, "--out", "/nowhere/o"], 1),
        (&["logits", "--model", &model, "--tokens", &tokens, "--out", &name], 1),
        (&["table1", "--trials", &huge], 2),
        (&["table1", "--methods", &huge], 2),
        (&[&huge], 2),
    ];
    for (args, code) in cases {
        let error = fail(args, code);
        assert!(error.len() < 5000, "{} bytes", error.len());
    }
    assert!(!Path::new(&name).exists());
    let error = fail(&["logits", "--model", "nowhere", "--tokens", "1", "--out", "/nowhere/o"], 1);
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("o");
    let error = fail(&["logits", "--model", "nowhere", "--tokens", "1", "--out", text(&out)], 1);
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
}
