//! `bench`: timed on the CPU, counted on the emulator, and with `--explain`.

use crate::common::{fail, json, succeed, text};
use serde_json::Value;

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
        let rows = json(&path)["rows"].as_array().unwrap().clone();
        let names: Vec<_> = rows.iter().map(|row| row["variant"].as_str().unwrap()).collect();
        let adapters = ["adapter-h", "adapter-l", "adapter-h (paper)", "adapter-l (paper)"];
        let once = [&["base", "fused", "sequential"][..], &adapters].concat();
        assert_eq!(names, [&once[..], &once].concat());
        let size = if dtype == "f32" { 4 } else { 2 };
        assert_eq!(rows[0]["bytes"], (2048 * 2048 + 2 * 2048) * size);
        assert_eq!(rows[1]["bytes"], (2048 * 2048 + 2 * 2048 + 2 * 2 * 2048) * size);
        // Widths whose parameters are closest to LoRA's 8192, then the paper's widths.
        let of = |key: &str| rows[..7].iter().map(|row| row[key].as_u64()).collect::<Vec<_>>();
        assert_eq!(of("width"), [None, None, None, Some(1), Some(1), Some(112), Some(224)]);
        let counts = [0, 8192, 8192, 6145, 10_241, 460_912, 923_872].map(Some);
        assert_eq!(of("parameters"), counts);
        assert_eq!(rows[3]["bytes"], (2048 * 2048 + 2 * 2048 + 6145) * size);
        // LayerNorm's parameters are f32 in any case.
        assert_eq!(rows[4]["bytes"], (2048 * 2048 + 2 * 2048 + 10_241 - 4096) * size + 4096 * 4);
        for words in
            ["1 token:", "3 tokens:", "fused LoRA ", "Adapter^H with as many parameters ", "Adapter^L with the paper's"]
        {
            assert!(out.contains(words), "no {words}: {out}");
        }
    }
    let plan = succeed(&["bench", "--device", "cpu", "--explain", "--tokens", "128", "--shapes", "1024x1024"]);
    assert!(plan.contains("128x1024x1024") && plan.contains("read in place"), "{plan}");
    assert!(
        plan.contains("adapter-l, width 2: LayerNorm, down cpu: 128x1024x2 ") && plan.contains("up cpu: 128x2x1024 ")
    );
}

/// Weights are copied until no cache holds all copies. For a layer of one element that would be millions of copies.
#[test]
fn bench_times_small_and_thin_layers_within_memory() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("small.json");
    let fixed = ["bench", "--device", "cpu", "--tokens", "1", "--ranks", "1", "--trials", "1", "--json", text(&path)];
    for backward in [false, true] {
        let extra = if backward { vec!["--backward"] } else { vec![] };
        let out = succeed(&[&fixed[..], &["--shapes", "1x1,3x5,1x100000"], &extra].concat());
        let report = json(&path);
        for row in report["rows"].as_array().unwrap() {
            assert!((2..=16_384).contains(&row["copies"].as_u64().unwrap()), "{row}");
            // A single trial has no interval.
            assert!(row["percent_low"].is_null() && row["percent_high"].is_null(), "{row}");
        }
        assert!(!out.contains("no difference") && out.contains(" fused "), "{out}");
        let peak = report["run"]["peak_memory_bytes"].as_u64().unwrap();
        assert!(peak < 3 << 30, "{peak} bytes");
    }
    let error = fail(&["bench", "--device", "cpu", "--tokens", "1", "--shapes", "10000000x10000000"], 1);
    assert!(error.contains("1 x 10000000 -> 10000000, r 4") && error.contains("half of what is available"), "{error}");
}

#[test]
fn bench_on_the_emulator_counts_requested_bytes() {
    if crate::common::left_out() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("counted.json");
    let fixed = ["bench", "--device", "emulator", "--dtype", "bf16", "--layout", "out-in", "--shapes", "1024x512"];
    let out = succeed(&[&fixed[..], &["--tokens", "1,8", "--ranks", "4", "--json", text(&path)]].concat());
    assert!(out.contains("counted, not timed"), "{out}");
    let rows = json(&path)["rows"].as_array().unwrap().clone();
    let of = |i: usize, key: &str| rows[i][key].as_f64().unwrap();
    // After base and fused, the six launches of four adapters.
    let names: Vec<_> = rows.iter().take(8).map(|row| row["variant"].as_str().unwrap().to_owned()).collect();
    let [h, norm, l] = ["adapter-h", "adapter-l, LayerNorm", "adapter-l"];
    let paper = ["adapter-h (paper)", "adapter-l (paper), LayerNorm", "adapter-l (paper)"];
    assert_eq!(names, [&["base", "fused", h, norm, l][..], &paper].concat());
    assert_eq!(rows.len(), 2 * 8);
    // x, y, and the projections of an adapter of width 5.
    assert_eq!(of(2, "floor_bytes"), 2.0 * (2.0 * 5.0 * 512.0 + 2.0 * 512.0));
    let rows: Vec<_> = rows.into_iter().filter(|row| row["width"].is_null()).collect();
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
    assert_eq!(rows.len(), 8, "{out}");
    // wgmma instructions are not counted as matrix instructions of warps, so the kernel's name is checked.
    assert!(rows[1]["launch"].as_str().unwrap().contains("lora_forward_rows_wgmma_bf16_m64"), "{out}");
}

#[test]
fn bench_explains_how_a_gpu_would_run_each_call() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("plans.json");
    let fixed = ["bench", "--explain", "--layout", "out-in", "--shapes", "4096x4096", "--ranks", "16", "--json"];
    let explain = |extra: &[&str]| {
        let out = succeed(&[&fixed[..], &[text(&path)], extra].concat());
        let rows = json(&path)["rows"].as_array().unwrap().clone();
        // Rows of adapters are tested below.
        let rows: Vec<_> = rows.into_iter().filter(|row| row["width"].is_null()).collect();
        (out, rows)
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
    // T is written and read: 8 bytes an element for one token; for many tokens 2 bytes, and 4 in each of its 5 splits.
    let beyond = |i: usize| rows[i]["bytes"].as_u64().unwrap() - rows[i]["floor_bytes"].as_u64().unwrap();
    assert_eq!((beyond(0), beyond(1), beyond(5)), (0, 2 * 8 * 16, 2 * (2 + 5 * 4) * 4096 * 16));

    let small = ["--dtype", "f16", "--tokens", "4096", "--capability", "7.5", "--multiprocessors", "40"];
    let (out, rows) = explain(&small);
    assert!(out.contains("7.5 and 40 SMs"), "{out}");
    assert!(rows[1]["kernel"].as_str().unwrap().ends_with("_mma_f16_t64"), "{out}");
    // A case without a kernel is reported; the others are planned.
    let (out, rows) = explain(&["--dtype", "bf16", "--tokens", "1,4096", "--capability", "7.5"]);
    assert_eq!(rows.len() + out.matches("no matrix instructions").count(), 4, "{out}");
    // f32 operands are rounded only with --tf32, and only for more than 16 tokens.
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
fn bench_explains_the_launches_of_bottleneck_adapters() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("plans.json");
    let fixed =
        ["bench", "--explain", "--layout", "out-in", "--shapes", "1024x1024", "--tokens", "1", "--dtype", "bf16"];
    let out = succeed(&[&fixed[..], &["--ranks", "16", "--json", text(&path)]].concat());
    let rows = json(&path)["rows"].as_array().unwrap().clone();
    let of = |key: &str| rows[2..].iter().map(|row| row[key].clone()).collect::<Vec<_>>();
    let names = ["adapter-h", "adapter-l, LayerNorm", "adapter-l"];
    let paper = ["adapter-h (paper)", "adapter-l (paper), LayerNorm", "adapter-l (paper)"];
    assert_eq!(of("variant"), [names, paper].concat(), "{out}");
    assert_eq!(of("width"), [15, 14, 14, 112, 224, 224]);
    for (kernel, launches) in of("kernel").iter().zip(of("launches")) {
        let kernel = kernel.as_str().unwrap();
        assert!(kernel.starts_with("lora_adapter_") || kernel.starts_with("lora_layer_norm"), "{kernel}");
        assert_eq!(launches, 1);
    }
    assert_eq!(rows[5]["floor_bytes"], 2 * (2 * 112 * 1024 + 2 * 1024));
    // An adapter that is too wide for the kernel is reported by name.
    let out = succeed(&["bench", "--explain", "--tokens", "1", "--shapes", "4096x8", "--ranks", "4"]);
    assert!(out.contains("1 x 4096 -> 8, r 4, adapter-h: rank 965 is outside 1..=512"), "{out}");
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
    // y and dx move equally many bytes; the first launch saves T as well, and the last writes gradients in f32.
    let product = 2 * (d * d + 2 * tokens * d + 2 * r * d);
    assert_eq!([&rows[0]["floor_bytes"], &rows[1]["floor_bytes"]], [product + 2 * tokens * r, product]);
    assert_eq!(rows[2]["floor_bytes"], 2 * (2 * tokens * d + 2 * tokens * r) + 4 * 2 * r * d);
    // The preset implies --backward. Decode kernels do not save T, so few tokens run on the forward kernel.
    let (_, rows) = explain(&["--preset", "backward"]);
    assert_eq!(rows.len(), 3 * 3 * 2 * 3);
    let (out, rows) = explain(&["--preset", "backward", "--tokens", "1", "--shapes", "100x36", "--ranks", "4"]);
    assert!(rows[0]["kernel"].as_str().unwrap().contains("lora_forward_rows_mma_bf16_any"), "{out}");
    // A case without a kernel is reported once for each pass.
    let (out, rows) = explain(&["--backward", "--tokens", "128", "--ranks", "5000"]);
    assert_eq!((rows.len(), out.matches("5000").count() >= 2), (0, true), "{out}");
}

#[test]
fn bench_counts_both_launches_of_a_backward_pass() {
    if crate::common::left_out() {
        return;
    }
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
    // The counters are those of the right launch: the last writes only dA and dB.
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
