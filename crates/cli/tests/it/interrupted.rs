//! A command that a signal ends leaves no temporary and no half-written files, and its exit status is that of the
//! signal.
//!
//! A FIFO in the place of an input file stops the command at a known point: it waits there until the test writes to the
//! FIFO.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{contents, copy_of, fifo, golden, json, succeed, text};
use fused_lora_gpt2::write_tensors;
use rustix::process::{Pid, Signal, kill_process};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// The signals that end the command. Ignored signals are inherited, so they are left out: `nohup cargo test` ignores
/// SIGHUP.
fn signals() -> impl Iterator<Item = Signal> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let is_ignored = move |signal: &Signal| mask.unwrap_or(0) >> (signal.as_raw() - 1) & 1 == 1;
    [Signal::INT, Signal::TERM, Signal::HUP].into_iter().filter(move |signal| !is_ignored(signal))
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fused-lora"));
    command.args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for the command to be ended by the signal, without any output.
fn assert_ended_by(child: Child, signal: Signal) {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(signal.as_raw()), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Polls until `look` returns something; fails after a minute.
fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "nothing appeared within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A temporary file or folder of the command in a folder.
fn temporary(folder: &Path) -> Option<PathBuf> {
    let name = contents(folder).into_iter().find(|name| name.starts_with(".fused-lora-"))?;
    Some(folder.join(name))
}

/// A model folder whose config.json is a FIFO, and the configuration to write to it.
fn waiting_model(place: &Path) -> (PathBuf, Vec<u8>) {
    let model = copy_of("model", place);
    let config = model.join("config.json");
    let text = std::fs::read(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    fifo(&config);
    (model, text)
}

/// Opens a FIFO for writing as soon as the command opens it for reading.
fn writer(fifo: &Path) -> File {
    // Without this flag, `open` would wait for ever if the command has ended.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    wait_for(|| File::options().write(true).custom_flags(flags).open(fifo).ok())
}

/// Writes to a FIFO as soon as the command opens it.
fn feed(fifo: &Path, bytes: &[u8]) {
    writer(fifo).write_all(bytes).unwrap();
}

#[test]
fn an_interrupted_merge_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let (model, config) = waiting_model(place.path());
    let results = place.path().join("results");
    std::fs::create_dir(&results).unwrap();
    let (out, adapter) = (results.join("merged"), golden("lora-all"));
    let merge = ["merge", "--model", text(&model), "--adapter", &adapter, "--out", text(&out)];
    for signal in signals() {
        // First the signal comes before anything is computed; the temporary folder is still empty.
        let child = start(&merge);
        wait_for(|| temporary(&results));
        send(&child, signal);
        assert_ended_by(child, signal);
        assert!(contents(&results).is_empty(), "{signal:?}: {:?}", contents(&results));

        // Then it comes when the weights are written and the configuration is not.
        let child = start(&merge);
        feed(&model.join("config.json"), &config);
        wait_for(|| temporary(&results).filter(|folder| folder.join("model.safetensors").exists()));
        send(&child, signal);
        assert_ended_by(child, signal);
        assert!(contents(&results).is_empty(), "{signal:?}: {:?}", contents(&results));
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let place = tempfile::tempdir().unwrap();
    let (model, config) = waiting_model(place.path());
    let (out, adapter) = (place.path().join("merged"), golden("lora-all"));
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_fused-lora"), "merge"]);
    command.args(["--model", text(&model), "--adapter", &adapter, "--out", text(&out)]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    wait_for(|| temporary(place.path()));
    send(&child, Signal::HUP);
    // The command goes on after the signal. It reads config.json twice, before and after the weights are written.
    feed(&model.join("config.json"), &config);
    wait_for(|| temporary(place.path()).filter(|folder| folder.join("model.safetensors").exists()));
    feed(&model.join("config.json"), &config);
    assert!(child.wait().unwrap().success());
    assert_eq!(contents(place.path()), ["merged", "model"]);
}

#[test]
fn interrupted_before_writing_logits_keeps_the_old_file() {
    let place = tempfile::tempdir().unwrap();
    let (model, _) = waiting_model(place.path());
    let out = place.path().join("logits");
    std::fs::write(&out, "old").unwrap();
    for signal in signals() {
        let child = start(&["logits", "--model", text(&model), "--tokens", "1", "--out", text(&out)]);
        // Returns when the command has opened config.json.
        let _config = writer(&model.join("config.json"));
        send(&child, signal);
        assert_ended_by(child, signal);
        assert_eq!(contents(place.path()), ["logits", "model"]);
        assert_eq!(std::fs::read(&out).unwrap(), b"old");
    }
}

/// A model of one narrow layer with a large vocabulary, whose logits are fast to compute and slow to write.
fn wide_model(folder: &Path, vocabulary: usize) {
    let (d, positions) = (4, 1024);
    let config = serde_json::json!({
        "model_type": "gpt2", "n_layer": 1, "n_embd": d, "n_head": 1, "vocab_size": vocabulary, "n_positions": positions,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes = HashMap::from([("wte.weight".to_owned(), vec![vocabulary, d])]);
    shapes.insert("wpe.weight".into(), vec![positions, d]);
    for (name, d_in, d_out) in
        [("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d)]
    {
        shapes.insert(format!("h.0.{name}.weight"), vec![d_in, d_out]);
        shapes.insert(format!("h.0.{name}.bias"), vec![d_out]);
    }
    for norm in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
        shapes.insert(format!("{norm}.weight"), vec![d]);
        shapes.insert(format!("{norm}.bias"), vec![d]);
    }
    let zeros = vec![0; 4 * vocabulary.max(positions) * d];
    let view = |shape: &Vec<usize>| {
        let bytes = &zeros[..4 * shape.iter().product::<usize>()];
        TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()
    };
    let tensors: BTreeMap<_, _> = shapes.iter().map(|(key, shape)| (key.clone(), view(shape))).collect();
    write_tensors(&folder.join("model.safetensors"), &tensors, None).unwrap();
}

#[test]
fn interrupted_while_writing_logits_leaves_nothing() {
    let (vocabulary, tokens) = (50_000, 600);
    let place = tempfile::tempdir().unwrap();
    let [model, results] = ["model", "results"].map(|name| place.path().join(name));
    std::fs::create_dir(&model).unwrap();
    std::fs::create_dir(&results).unwrap();
    wide_model(&model, vocabulary);
    let ids = vec!["1"; tokens].join(",");
    let out = results.join("logits");
    for signal in signals() {
        // If the signal comes after the file was written, the result must be complete, and the test tries again.
        let was_caught = (0..20).any(|_| {
            let mut child = start(&["logits", "--model", text(&model), "--tokens", &ids, "--out", text(&out)]);
            let is_growing = || temporary(&results).is_some_and(|file| file.metadata().is_ok_and(|m| m.len() > 0));
            wait_for(|| (is_growing() || out.exists() || child_is_done(&child)).then_some(()));
            // Sending a signal to a process that has ended but was not waited for is not an error.
            send(&child, signal);
            let status = child.wait().unwrap();
            let left = contents(&results);
            if status.signal() == Some(signal.as_raw()) && left.is_empty() {
                return true;
            }
            assert_eq!(left, ["logits"], "{status:?}");
            assert!(std::fs::metadata(&out).unwrap().len() > 4 * (vocabulary * tokens) as u64, "half-written");
            std::fs::remove_file(&out).unwrap();
            false
        });
        assert!(was_caught, "{signal:?} never came while the file was being written");
    }
}

/// Whether a child has ended but was not waited for (a zombie).
fn child_is_done(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[test]
fn an_interrupted_sweep_keeps_complete_cells_and_continues() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("sweep.json");
    let model = golden("model");
    let ranks = (1..=40).map(|rank| rank.to_string()).collect::<Vec<_>>().join(",");
    let sweep = |ranks: &str| -> Vec<String> {
        let fixed =
            ["sweep", "--model", &model, "--sequences", "8", "--batches", "1", "--threads", "1", "--trials", "300"];
        let rest = ["--methods", "lora-fused", "--ranks", ranks, "--json", text(&path)];
        fixed.iter().chain(&rest).map(|arg| (*arg).to_owned()).collect()
    };
    let mut measured = 0;
    for signal in signals() {
        let all = sweep(&ranks);
        let child = start(&all.iter().map(String::as_str).collect::<Vec<_>>());
        wait_for(|| path.exists().then(|| json(&path)["rows"].as_array().unwrap().len()).filter(|n| *n > measured));
        send(&child, signal);
        assert_ended_by(child, signal);
        assert_eq!(contents(place.path()), ["sweep.json"]);
        measured = json(&path)["rows"].as_array().unwrap().len();
        assert!(measured < 40, "it was ended before the end");
    }
    let some = sweep("1,2");
    let out = succeed(&some.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(out.contains(&format!("continuing after {measured} cells")), "{out}");
}
