//! Each subcommand: its results, files and exit codes.

use std::path::Path;

use approx::assert_abs_diff_eq;

use crate::common::{fail, golden, json, succeed, text};
use fused_lora_gpt2::Checkpoint;

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
    // Two layers of 64 features: LoRA of rank 4 and 7 on q and v.
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
    if crate::common::left_out() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let json_path = place.path().join("t.json");
    let model = golden("model");
    let methods = "none,lora-merged,lora-fused,lora-slot,lora-sequential,adapter-h,adapter-l,prefix-layer:3";
    let fixed = ["table1", "--model", &model, "--device", "emulator", "--dtype", "bf16", "--params", "5k"];
    let fixed = [&fixed[..], &["--methods", methods, "--lm-head", "--dependent", "--json", text(&json_path)]].concat();
    for decode in [&["--columns", "2x5"][..], &["--columns", "2x9", "--decode", "--graph"]] {
        let out = succeed(&[&fixed[..], decode].concat());
        assert!(out.contains("launches") && out.contains("device MiB"), "{out}");
        let report = json(&json_path);
        let modes: &[&str] = if decode.len() == 2 { &["eager", "graph"] } else { &["graph"] };
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 8 * modes.len());
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row["issued"], modes[i % modes.len()]);
            assert_eq!(row["decode"], decode.len() > 2);
            // The launches of two layers, the embedding and lm_head. Sequential LoRA adds three launches for q and
            // three for v.
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
    let on_cpu =
        fail(&["table1", "--model", &model, "--columns", "1x2", "--methods", "lora-slot", "--device", "cpu"], 1);
    assert!(on_cpu.contains("lora-slot needs device memory"), "{on_cpu}");
}

#[test]
fn table1_counts_parameters_as_the_paper_does() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("t.json");
    // The full GPT-2 medium with two tokens.
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
fn a_stopped_sweep_continues() {
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
    assert!(out.contains("continuing after 8 cells"), "{out}");
    let second = json(&path)["rows"].as_array().unwrap().clone();
    assert_eq!(second.len(), 4 * 4);
    assert_eq!(second[..8], first[..], "cells measured before are kept as they were");
    assert!(std::fs::read_to_string(&svg).unwrap().contains("</svg>"));
    // A file of another setting is not continued.
    let other = sweep("1,2", &["--seed", "3"]);
    let error = fail(&other.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    assert!(error.contains("sweep.json"), "{error}");
}

fn logits(extra: &[&str], out: &Path) -> Vec<f32> {
    let model = golden("model");
    let tokens = golden("expected.safetensors");
    let fixed = ["logits", "--model", &model, "--tokens", &tokens, "--out", text(out)];
    succeed(&[&fixed, extra].concat());
    Checkpoint::open(out).unwrap().floats::<f32>("logits", &[2, 24, 131]).unwrap().to_vec()
}

/// A golden tensor, computed in float64.
fn expected(key: &str) -> Vec<f32> {
    let file = Checkpoint::open(golden("expected.safetensors").as_ref()).unwrap();
    file.raw(key).unwrap().2.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
}

#[test]
fn logits_agree_with_pytorch_for_every_adapter() {
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
        println!("{name} with {args:?}");
        assert_abs_diff_eq!(got[..], expected(&format!("{name}.logits"))[..], epsilon = 1e-4);
    }
    // On the CUDA kernels, in the emulator.
    let emulated = [(adapter("lora-all"), "lora-all"), (bottleneck("houlsby", "1"), "adapter-houlsby.drop1")];
    for (args, name) in emulated.into_iter().filter(|_| !crate::common::left_out()) {
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["--device", "emulator"]).collect();
        println!("{name} with {args:?}");
        assert_abs_diff_eq!(logits(&args, &out)[..], expected(&format!("{name}.logits"))[..], epsilon = 1e-4);
    }
    // With a prefix and a LoRA together, merging the LoRA does not change the logits.
    let both = [adapter("prefix"), adapter("lora-all")].concat();
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    let (fused, merged) = (logits(&both, &out), logits(&[&both[..], &["--merged"]].concat(), &out));
    assert_abs_diff_eq!(fused[..], merged[..], epsilon = 1e-4);
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
    assert_abs_diff_eq!(got[..], expected("lora-all.logits")[..], epsilon = 1e-4);
    assert!(fail(&merge, 1).contains("already exists"));
}

#[test]
fn failures_at_run_time_exit_with_1_and_name_the_cause() {
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
    assert!(
        logits(&["--tokens", "1", "--merged", "--adapter", &prefix])
            .contains("none of the --adapter folders holds a LoRA")
    );
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
    assert!(decode.contains("--decode needs a device for its KV cache"), "{decode}");
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
fn info_and_help_succeed() {
    let info = succeed(&["info"]);
    assert!(info.contains("cpu") && info.contains("cuda"), "{info}");
    for command in ["table1", "sweep", "bench", "logits", "merge"] {
        assert!(succeed(&[command, "--help"]).contains("Examples:"), "{command}");
    }
}
