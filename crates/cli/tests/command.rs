//! The command as a user runs it: results, files, exit codes.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use fused_lora_gpt2::Checkpoint;
use serde_json::Value;

fn golden(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name).display().to_string()
}

fn run(args: &[&str]) -> Output {
    Command::cargo_bin("fused-lora").unwrap().args(args).output().unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One sentence on stderr, the exit code given, no panic.
fn fail(args: &[&str], code: i32) -> String {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{stderr}");
    if code == 1 {
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
    stderr
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn table1_reports_every_method() {
    let place = tempfile::tempdir().unwrap();
    let [json_path, csv, svg] = ["t.json", "t.csv", "t.svg"].map(|name| place.path().join(name));
    let model = golden("model");
    let out = succeed(&[
        "table1",
        "--model",
        &model,
        "--columns",
        "1x8,2x16",
        "--trials",
        "3",
        "--params",
        "5k",
        "--threads",
        "1",
        "--methods",
        "none,lora-merged,lora-fused,lora-sequential,lora-dense-delta,adapter-h,adapter-l,adapter-p,prefix-layer,\
         prefix-embedding:4,lora-prefix,adapter-h-drop1,adapter-l-drop1,adapter-p-drop1,lora-fused:7",
        "--json",
        text(&json_path),
        "--csv",
        text(&csv),
        "--plot",
        text(&svg),
    ]);
    assert!(out.contains("adapter-h-drop1") && out.contains("2 x 16 (batch x tokens), 3 trials"), "{out}");
    let report = json(&json_path);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 30);
    for row in rows {
        for field in ["batch", "tokens", "parameters", "trials", "mean_ms", "std_ms", "median_ms", "percent_over_none"]
        {
            assert!(row[field].is_number(), "{field} in {row}");
        }
        assert!(row["median_ms"].as_f64().unwrap() > 0.0);
        let is_base = row["method"] == "none";
        assert_eq!(row["parameters"] == 0, is_base, "{row}");
    }
    // Two layers, 64 wide: LoRA of rank 4 and 7 on q and v.
    let parameters = |method: &str| rows.iter().find(|r| r["method"] == method).unwrap()["parameters"].clone();
    assert_eq!(parameters("lora-fused"), 2 * 2 * 2 * 64 * 4);
    assert_eq!(parameters("lora-fused:7"), 2 * 2 * 2 * 64 * 7);
    assert_eq!(parameters("prefix-embedding:4"), 4 * 64);
    assert_eq!(report["run"]["dtype"], "f32");
    assert_eq!(report["run"]["threads"], 1);
    assert!(std::fs::read_to_string(&csv).unwrap().lines().count() == 31);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("</svg>"));
}

#[test]
fn table1_counts_launches_on_the_emulator() {
    let place = tempfile::tempdir().unwrap();
    let json_path = place.path().join("t.json");
    let model = golden("model");
    let methods = "none,lora-merged,lora-fused,lora-sequential,adapter-h,adapter-l,prefix-layer:3";
    let fixed = ["table1", "--model", &model, "--device", "emulator", "--dtype", "bf16", "--params", "5k"];
    let fixed = [&fixed[..], &["--methods", methods, "--lm-head", "--dependent", "--json", text(&json_path)]].concat();
    for decode in [&["--columns", "2x5"][..], &["--columns", "2x9", "--decode", "--graph"]] {
        let out = succeed(&[&fixed[..], decode].concat());
        assert!(out.contains("launches") && out.contains("device MiB"), "{out}");
        let report = json(&json_path);
        let modes: &[&str] = if decode.len() == 2 { &["eager", "graph"] } else { &["graph"] };
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 7 * modes.len());
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row["issued"], modes[i % modes.len()]);
            assert_eq!(row["decode"], decode.len() > 2);
            // Two layers, the embedding, lm_head; a sequential LoRA on q and on v is three launches each.
            let per_layer = match row["method"].as_str().unwrap() {
                "lora-sequential" => 7 + 6,
                "adapter-h" | "adapter-l" => 7 + 2,
                _ => 7,
            };
            assert_eq!(row["launches_per_layer"], per_layer, "{row}");
            assert_eq!(row["launches"], 2 * per_layer + 2, "{row}");
            assert!(row["device_bytes"].as_u64().unwrap() > 200_000, "{row}");
            assert!(row["host_median_ms"].is_number(), "{row}");
        }
        assert_eq!(report["gpu"]["multiprocessors"], 132);
    }
}

#[test]
fn table1_counts_parameters_as_the_paper_does() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("t.json");
    // GPT-2 medium in full, on two tokens.
    succeed(&[
        "table1",
        "--columns",
        "1x2",
        "--trials",
        "1",
        "--dtype",
        "bf16",
        "--json",
        text(&path),
        "--methods",
        "lora-fused,adapter-h,adapter-l,adapter-h:5,adapter-l:9",
    ]);
    let report = json(&path);
    assert_eq!(report["model_parameters"], 354_823_168);
    let counts: Vec<u64> =
        report["rows"].as_array().unwrap().iter().map(|r| r["parameters"].as_u64().unwrap()).collect();
    assert_eq!(counts, [393_216, 11_064_576, 11_089_152, 540_912, 516_312]);
}

#[test]
fn a_stopped_sweep_goes_on() {
    let place = tempfile::tempdir().unwrap();
    let [path, svg] = ["sweep.json", "sweep.svg"].map(|name| place.path().join(name));
    let model = golden("model");
    let sweep = |batches: &str, extra: &[&str]| -> Vec<String> {
        let fixed =
            ["sweep", "--model", &model, "--sequences", "8", "--ranks", "0,3", "--trials", "2", "--threads", "1"];
        let own = ["--batches", batches, "--json", text(&path), "--plot", text(&svg)];
        fixed.iter().chain(&own).chain(extra).map(|s| (*s).to_owned()).collect()
    };
    let call = |args: Vec<String>| succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    call(sweep("1", &[]));
    let first = json(&path)["rows"].as_array().unwrap().clone();
    assert_eq!(first.len(), 2 * 4);
    let out = call(sweep("1,2", &[]));
    assert!(out.contains("going on after 8 cells"), "{out}");
    let second = json(&path)["rows"].as_array().unwrap().clone();
    assert_eq!(second.len(), 4 * 4);
    assert_eq!(second[..8], first[..], "cells measured before are kept as they were");
    assert!(std::fs::read_to_string(&svg).unwrap().contains("</svg>"));
    // Another setting is another experiment.
    let other = sweep("1,2", &["--seed", "3"]);
    let error = fail(&other.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    assert!(error.contains("sweep.json"), "{error}");
}

#[test]
fn bench_compares_fused_with_sequential_and_base() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("bench.json");
    for (dtype, layout) in [("f32", "in-out"), ("bf16", "out-in")] {
        let out = succeed(&[
            "bench",
            "--device",
            "cpu",
            "--tokens",
            "1,3",
            "--shapes",
            "2048x2048",
            "--ranks",
            "2",
            "--trials",
            "2",
            "--dtype",
            dtype,
            "--layout",
            layout,
            "--json",
            text(&path),
        ]);
        assert!(out.contains("sequential"), "{out}");
        let rows = json(&path)["rows"].as_array().unwrap().clone();
        assert_eq!(rows.len(), 6);
        let size = if dtype == "f32" { 4 } else { 2 };
        assert_eq!(rows[0]["bytes"], (2048 * 2048 + 2 * 2048) * size);
        assert_eq!(rows[1]["bytes"], (2048 * 2048 + 2 * 2048 + 2 * 2 * 2048) * size);
    }
    let plan = succeed(&["bench", "--device", "cpu", "--explain", "--tokens", "128", "--shapes", "1024x1024"]);
    assert!(plan.contains("128x1024x1024") && plan.contains("read in place"), "{plan}");
}

#[test]
fn bench_on_the_emulator_counts_what_the_kernels_ask_of_memory() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("counted.json");
    let fixed = ["bench", "--device", "emulator", "--dtype", "bf16", "--layout", "out-in", "--shapes", "1024x512"];
    let out = succeed(&[&fixed[..], &["--tokens", "1,8", "--ranks", "4", "--json", text(&path)]].concat());
    assert!(out.contains("counted, not timed"), "{out}");
    let rows = json(&path)["rows"].as_array().unwrap().clone();
    let of = |i: usize, key: &str| rows[i][key].as_f64().unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(of(0, "floor_bytes"), 2.0 * (1024.0 * 512.0 + 1024.0 + 512.0));
    assert_eq!(of(1, "floor_bytes") - of(0, "floor_bytes"), 2.0 * 4.0 * (1024.0 + 512.0));
    for row in &rows {
        assert_eq!(
            (row["weight_bytes_per_load"].as_f64(), row["weight_sectors_over_ideal"].as_f64()),
            (Some(16.0), Some(1.0))
        );
        assert_eq!(row["distinct_bytes"], row["floor_bytes"], "{row:?}");
    }
    assert_eq!(of(1, "matrix_instructions"), 0.0, "one token is multiplied on CUDA cores");
    assert!(of(3, "matrix_instructions") > 0.0, "eight on matrix instructions");
    let out = succeed(&[&fixed[..], &["--tokens", "20", "--ranks", "4", "--json", text(&path)]].concat());
    let rows = json(&path)["rows"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 2, "{out}");
    // The products of warpgroups are not counted among the matrix instructions of warps.
    assert!(rows[1]["launch"].as_str().unwrap().contains("lora_forward_rows_wgmma_bf16_m64"), "{out}");
}

#[test]
fn bench_explains_how_a_gpu_would_run_each_call() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("plans.json");
    let fixed = ["bench", "--explain", "--layout", "out-in", "--shapes", "4096x4096", "--ranks", "16", "--json"];
    let explain = |extra: &[&str]| {
        let out = succeed(&[&fixed[..], &[text(&path)], extra].concat());
        (out, json(&path)["rows"].as_array().unwrap().clone())
    };
    let (out, rows) = explain(&["--dtype", "bf16", "--tokens", "1,64,4096", "--device", "cuda"]);
    assert!(out.contains("9.0 and 132 SMs: bf16, out-in"), "{out}");
    for word in ["kernel", "tile", "stages", "grid", "splits", "launches", "workspace B", "bytes", "floor B"] {
        assert!(out.contains(word), "no {word}: {out}");
    }
    assert_eq!(rows.len(), 3 * 2);
    for (row, kernel) in rows.iter().step_by(2).zip(["lora_decode_rows_bf16_t1", "lora_forward_rows_", "lora_forward_"])
    {
        assert!(row["kernel"].as_str().unwrap().starts_with(kernel), "{row}");
        assert_eq!(row["launches"], 1);
    }
    assert_eq!(rows[0]["floor_bytes"], 2 * (4096 * 4096 + 2 * 4096));
    assert_eq!(rows[1]["floor_bytes"], 2 * (4096 * 4096 + 17 * 2 * 4096));
    // T is written and read: 8 bytes a word for one token, 2 for many, and there 4 in each of its 5 splits.
    let beyond = |i: usize| rows[i]["bytes"].as_u64().unwrap() - rows[i]["floor_bytes"].as_u64().unwrap();
    assert_eq!((beyond(0), beyond(1), beyond(5)), (0, 2 * 8 * 16, 2 * (2 + 5 * 4) * 4096 * 16));

    let small = ["--dtype", "f16", "--tokens", "4096", "--capability", "7.5", "--multiprocessors", "40"];
    let (out, rows) = explain(&small);
    assert!(out.contains("7.5 and 40 SMs"), "{out}");
    assert!(rows[1]["kernel"].as_str().unwrap().ends_with("_mma_f16_t64"), "{out}");
    // What has no kernel is said, and the rest is planned.
    let (out, rows) = explain(&["--dtype", "bf16", "--tokens", "1,4096", "--capability", "7.5"]);
    assert_eq!(rows.len() + out.matches("no matrix instructions").count(), 4, "{out}");
    // f32 is rounded only by name, and only where there are many tokens.
    let kernels = |rows: &[Value]| -> Vec<String> {
        rows.iter().step_by(2).map(|row| row["kernel"].as_str().unwrap().to_owned()).collect()
    };
    let (_, rows) = explain(&["--tokens", "16,4096"]);
    assert_eq!(kernels(&rows), ["lora_decode_rows_f32_t8", "lora_forward_rows_f32_t128"]);
    let (out, rows) = explain(&["--tokens", "16,4096", "--tf32"]);
    assert_eq!(kernels(&rows), ["lora_decode_rows_f32_t8", "lora_forward_rows_mma_tf32_t128"]);
    assert!(out.contains("f32 in tf32, out-in"), "{out}");
    fail(&["bench", "--explain", "--tf32", "--dtype", "bf16"], 1);
    fail(&["bench", "--device", "cpu", "--tf32"], 1);
    fail(&["bench", "--explain", "--capability", "nine"], 2);
    fail(&["bench", "--multiprocessors", "40"], 2);
}

#[test]
fn bench_explains_the_launches_of_a_training_pass() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("plans.json");
    let fixed = ["bench", "--explain", "--layout", "out-in", "--dtype", "bf16", "--json", text(&path)];
    let explain = |extra: &[&str]| {
        let out = succeed(&[&fixed[..], extra].concat());
        (out, json(&path)["rows"].as_array().unwrap().clone())
    };
    let (tokens, d, r) = (8192, 4096, 16);
    let (out, rows) = explain(&["--backward", "--tokens", "8192", "--shapes", "4096x4096", "--ranks", "16"]);
    let names: Vec<_> = rows.iter().map(|row| row["variant"].as_str().unwrap()).collect();
    assert_eq!(names, ["forward, T kept", "dx", "dA, dB"], "{out}");
    for (row, kernel) in rows.iter().zip(["lora_forward_rows_wgmma", "lora_dx_columns_wgmma", "lora_gradients_mma"]) {
        assert!(row["kernel"].as_str().unwrap().starts_with(kernel), "{row}");
        assert_eq!(row["launches"], 1);
        assert!(row["bytes"].as_u64() > row["floor_bytes"].as_u64(), "{row}");
    }
    // y and dx read and write as much; T is kept by the one, and f32 gradients are written last.
    let product = 2 * (d * d + 2 * tokens * d + 2 * r * d);
    assert_eq!([&rows[0]["floor_bytes"], &rows[1]["floor_bytes"]], [product + 2 * tokens * r, product]);
    assert_eq!(rows[2]["floor_bytes"], 2 * (2 * tokens * d + 2 * tokens * r) + 4 * 2 * r * d);
    // The preset asks for training passes by itself; few tokens are not decoded, since T is kept.
    let (_, rows) = explain(&["--preset", "backward"]);
    assert_eq!(rows.len(), 3 * 3 * 2 * 3);
    let (out, rows) = explain(&["--preset", "backward", "--tokens", "1", "--shapes", "100x36", "--ranks", "4"]);
    assert!(rows[0]["kernel"].as_str().unwrap().contains("lora_forward_rows_mma_bf16_any"), "{out}");
    // What has no kernel is said, once for each pass.
    let (out, rows) = explain(&["--backward", "--tokens", "128", "--ranks", "5000"]);
    assert_eq!((rows.len(), out.matches("5000").count() >= 2), (0, true), "{out}");
}

#[test]
fn bench_counts_both_launches_of_a_backward_pass() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("counted.json");
    let fixed = ["bench", "--backward", "--device", "emulator", "--dtype", "bf16", "--layout", "out-in"];
    let case = ["--shapes", "256x128", "--tokens", "48", "--ranks", "4", "--json", text(&path)];
    let out = succeed(&[&fixed[..], &case].concat());
    let rows = json(&path)["rows"].as_array().unwrap().clone();
    let names: Vec<_> = rows.iter().map(|row| row["variant"].as_str().unwrap()).collect();
    assert_eq!(names, ["forward, T kept", "dx", "dA, dB", "backward"], "{out}");
    let of = |i: usize, key: &str| rows[i][key].as_u64().unwrap();
    for key in ["floor_bytes", "requested_bytes", "distinct_bytes"] {
        assert_eq!(of(1, key) + of(2, key), of(3, key), "{key}: {out}");
    }
    for (i, row) in rows.iter().enumerate() {
        let (floor, requested) = (of(i, "floor_bytes"), of(i, "requested_bytes"));
        assert!(requested >= floor && requested < 8 * floor, "{row}");
        let over = row["requested_over_floor"].as_f64().unwrap();
        assert!((over - requested as f64 / floor as f64).abs() < 1e-9, "{row}");
    }
    // Whose counters are whose: only the second launch has dA and dB to write.
    assert!(
        of(0, "distinct_bytes") > 2 * (256 * 128 + 48 * (256 + 128))
            && of(2, "distinct_bytes") < of(1, "distinct_bytes")
    );
}

#[test]
fn bench_times_training_passes_on_the_cpu() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("passes.json");
    let fixed = ["bench", "--backward", "--device", "cpu", "--shapes", "1024x2048", "--tokens", "3", "--ranks", "2"];
    succeed(&[&fixed[..], &["--trials", "1", "--json", text(&path)]].concat());
    let rows = json(&path)["rows"].as_array().unwrap().clone();
    let names: Vec<_> = rows.iter().map(|row| row["variant"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "fused"]);
    let base = 2 * (1024 * 2048 + 3 * (1024 + 2048)) * 4;
    let adapter = 2 * 2 * (1024 + 2048) * 4 + 3 * 1024 * 4 + (2 * 3 * 2 + 2 * (1024 + 2048)) * 4;
    assert_eq!([&rows[0]["bytes"], &rows[1]["bytes"]], [base, base + adapter]);
    assert!(rows.iter().all(|row| row["median_us"].as_f64().unwrap() > 0.0));
    let plan = succeed(&[&fixed[..], &["--explain"]].concat());
    assert!(plan.contains("3x1024x2048") && plan.contains("dx: cpu: 3x2048x1024"), "{plan}");
}

fn logits(extra: &[&str], out: &Path) -> Vec<f32> {
    let model = golden("model");
    let tokens = golden("expected.safetensors");
    let fixed = ["logits", "--model", &model, "--tokens", &tokens, "--out", text(out)];
    succeed(&[&fixed, extra].concat());
    Checkpoint::open(out).unwrap().floats::<f32>("logits", &[2, 24, 131]).unwrap().to_vec()
}

fn expected(key: &str) -> Vec<f64> {
    let file = Checkpoint::open(golden("expected.safetensors").as_ref()).unwrap();
    file.raw(key).unwrap().2.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

#[test]
fn logits_are_pytorchs_for_every_adapter() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("logits.safetensors");
    let adapter = |name: &str| vec!["--adapter".to_owned(), golden(name)];
    let bottleneck = |kind: &str, drop: &str| {
        let file = golden(&format!("adapter-{kind}/adapter.safetensors"));
        ["--bottleneck", &file, "--kind", kind, "--drop-adapters", drop].map(str::to_owned).to_vec()
    };
    let with = |mut args: Vec<String>, flag: &str| {
        args.push(flag.to_owned());
        args
    };
    let cases = [
        (vec![], "base"),
        (adapter("lora-attn"), "lora-attn"),
        (with(adapter("lora-all"), "--merged"), "lora-all"),
        (with(adapter("lora-all"), "--unfused"), "lora-all"),
        (adapter("prefix"), "prefix"),
        (bottleneck("houlsby", "0"), "adapter-houlsby"),
        (bottleneck("lin", "1"), "adapter-lin.drop1"),
        (bottleneck("pfeiffer", "0"), "adapter-pfeiffer"),
    ];
    for (args, name) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let got = logits(&args, &out);
        let expected = expected(&format!("{name}.logits"));
        let close = |(got, exact): (&f32, &f64)| (f64::from(*got) - exact).abs() <= 1e-4;
        assert!(got.iter().zip(&expected).all(close), "{name} with {args:?}");
    }
    // On the kernels, in the emulator of a GPU.
    for (args, name) in [(adapter("lora-all"), "lora-all"), (bottleneck("houlsby", "1"), "adapter-houlsby.drop1")] {
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["--device", "emulator"]).collect();
        let expected = expected(&format!("{name}.logits"));
        let close = |(got, exact): (&f32, &f64)| (f64::from(*got) - exact).abs() <= 1e-4;
        assert!(logits(&args, &out).iter().zip(&expected).all(close), "{name} with {args:?}");
    }
    // A prefix and a LoRA together, the LoRA merged or not, are the same model.
    let both = [adapter("prefix"), adapter("lora-all")].concat();
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    let (fused, merged) = (logits(&both, &out), logits(&[&both[..], &["--merged"]].concat(), &out));
    assert!(fused.iter().zip(&merged).all(|(a, b)| (a - b).abs() <= 1e-4));
}

#[test]
fn a_merged_folder_gives_the_adapters_logits() {
    let place = tempfile::tempdir().unwrap();
    let merged = place.path().join("merged");
    let [model, adapter] = [golden("model"), golden("lora-all")];
    let merge = ["merge", "--model", &model, "--adapter", &adapter, "--out", text(&merged)];
    let report = succeed(&merge);
    assert!(report.contains("transformer.h.1.mlp.c_proj.weight") && report.contains("8 tensors merged"), "{report}");
    let out = place.path().join("logits.safetensors");
    let tokens = golden("expected.safetensors");
    succeed(&["logits", "--model", text(&merged), "--tokens", &tokens, "--out", text(&out)]);
    let got = Checkpoint::open(&out).unwrap().floats::<f32>("logits", &[2, 24, 131]).unwrap();
    assert!(got.iter().zip(expected("lora-all.logits")).all(|(g, e)| (f64::from(*g) - e).abs() <= 1e-4));
    assert!(fail(&merge, 1).contains("exists already"));
}

#[test]
fn failures_at_run_time_exit_with_1_and_name_what_is_wrong() {
    let place = tempfile::tempdir().unwrap();
    let [out, missing] = ["out.safetensors", "missing/out.safetensors"].map(|name| place.path().join(name));
    let [model, prefix, houlsby] = [golden("model"), golden("prefix"), golden("adapter-houlsby/adapter.safetensors")];
    let logits = |extra: &[&str]| {
        let fixed = ["logits", "--model", &model, "--out", text(&out)];
        fail(&[&fixed, extra].concat(), 1)
    };
    assert!(logits(&["--tokens", "1,2,131"]).contains("token 131 at [0, 2] is outside the vocabulary of 131"));
    assert!(logits(&["--tokens", "1,2;3"]).contains("sequence 1 has 1 tokens, expected 2"));
    assert!(logits(&["--tokens", "1,x"]).contains("'x' is not a token id"));
    assert!(logits(&["--tokens", ""]).contains("is not a token id"));
    assert!(logits(&["--tokens", "1", "--adapter", "nowhere"]).contains("nowhere/adapter_config.json"));
    assert!(logits(&["--tokens", "1", "--adapter", &model]).contains("adapter_config.json"));
    assert!(logits(&["--tokens", "1", "--merged", "--adapter", &prefix]).contains("no --adapter holds a LoRA"));
    let twice = ["--tokens", "1", "--adapter", &prefix, "--adapter", &prefix];
    assert!(logits(&twice).contains("two prefixes"));
    let wrong_kind = ["--tokens", "1", "--bottleneck", &houlsby, "--kind", "lin"];
    assert!(logits(&wrong_kind).contains("adapter"));
    let too_many = ["--tokens", "1", "--bottleneck", &houlsby, "--kind", "houlsby", "--drop-adapters", "3"];
    assert!(logits(&too_many).contains("only 2 layers"));
    let long = vec!["1"; 41].join(",");
    assert!(logits(&["--tokens", &long]).contains("40 positions"));
    assert!(!out.exists(), "nothing is written by a failure");

    let unwritable = fail(&["logits", "--model", &model, "--tokens", "1", "--out", text(&missing)], 1);
    assert!(unwritable.contains("missing/out.safetensors") && unwritable.contains("cannot be written"));
    assert!(fail(&["table1", "--model", "nowhere"], 1).contains("nowhere"));
    let device = fail(&["sweep", "--model", &model, "--device", "emulator"], 1);
    assert!(
        device.contains("device 'emulator' is not available to this command, expected auto or cpu or cuda"),
        "{device}"
    );
    let decode = fail(&["table1", "--model", &model, "--columns", "1x4", "--decode", "--device", "cpu"], 1);
    assert!(decode.contains("--decode keeps keys and values on a device"), "{decode}");
    let positions = fail(&["table1", "--model", &model, "--columns", "1x41", "--methods", "none"], 1);
    assert!(positions.contains("40 positions"), "{positions}");
    let dropped = fail(&["table1", "--model", &model, "--columns", "1x4", "--methods", "adapter-h-drop3"], 1);
    assert!(dropped.contains("only 2 layers"), "{dropped}");
    let rank = fail(&["table1", "--model", &model, "--columns", "1x4", "--methods", "lora-fused:513"], 1);
    assert!(rank.contains("513"), "{rank}");
    let leftovers: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn bad_usage_exits_with_2() {
    for args in [
        &["nonsense"][..],
        &["table1", "--columns", "1by8"],
        &["table1", "--methods", "lora"],
        &["table1", "--trials", "0"],
        &["table1", "--targets", "q_proj"],
        &["table1", "--dtype", "fp8"],
        &["table1", "--threads", "0"],
        &["bench", "--shapes", "12"],
        &["logits", "--tokens", "1"],
        &["logits", "--model", "m", "--tokens", "1", "--out", "o", "--kind", "lin"],
        &["merge", "--model", "m", "--out", "o"],
    ] {
        fail(args, 2);
    }
}

#[test]
fn info_and_help_answer() {
    let info = succeed(&["info"]);
    assert!(info.contains("cpu") && info.contains("cuda"), "{info}");
    for command in ["table1", "sweep", "bench", "logits", "merge"] {
        assert!(succeed(&[command, "--help"]).contains("Examples:"), "{command}");
    }
}
