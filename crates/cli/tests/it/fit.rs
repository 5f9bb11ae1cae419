//! Methods that do not fit a model: a default method is left out with the reason; a requested method is an error.

use crate::common::{fail, golden, json, succeed, text};

/// Arguments for the golden model: two layers of 64 features, an MLP of 256 features, 40 positions.
fn table1<'a>(model: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    [&["table1", "--model", model, "--trials", "2", "--threads", "1"], extra].concat()
}

/// The lines `METHOD is left out: REASON` of a column.
fn left_out<'a>(out: &'a str, column: &str) -> Vec<&'a str> {
    out.lines().filter_map(|line| line.strip_prefix(column)?.strip_prefix(": ")).collect()
}

fn methods(json: &serde_json::Value) -> Vec<&str> {
    json["rows"].as_array().unwrap().iter().map(|row| row["method"].as_str().unwrap()).collect()
}

const LORAS: [&str; 5] = ["none", "lora-merged", "lora-fused", "lora-sequential", "lora-dense-delta"];

#[test]
fn a_small_model_is_measured_with_the_methods_that_fit_it() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("t.json");
    let model = golden("model");
    let out = succeed(&table1(&model, &["--columns", "1x8", "--json", text(&path)]));
    let wide = |method: &str, width: &str| {
        format!(
            "{method} is left out: adapters of 11,000,000 parameters are {width} wide on this model, wider than its MLP of 256 \
             features; --params sets another number of parameters"
        )
    };
    let long = |method: &str, tokens: usize| {
        format!("{method} is left out: 8 tokens after a prefix of {tokens} need more than the model's 40 positions")
    };
    assert_eq!(
        left_out(&out, "1 x 8"),
        [
            wide("adapter-h", "21,317"),
            wide("adapter-l", "42,634"),
            wide("adapter-p", "42,635"),
            long("prefix-layer", 42_969),
            long("prefix-embedding", 64),
            long("lora-prefix", 42_969),
        ]
    );
    assert_eq!(methods(&json(&path)), LORAS);
    assert!(out.contains("| lora-dense-delta |"), "{out}");
}

#[test]
fn each_column_has_the_methods_that_fit_it() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("t.json");
    let model = golden("model");
    let out = succeed(&table1(&model, &["--columns", "1x20,1x40", "--params", "5k", "--json", text(&path)]));
    let [short, full] = ["1 x 20", "1 x 40"]
        .map(|column| left_out(&out, column).iter().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>());
    assert_eq!(short, ["prefix-embedding"]);
    assert_eq!(full, ["prefix-layer", "prefix-embedding", "lora-prefix"]);
    let adapters = ["adapter-h", "adapter-l", "adapter-p"];
    let [of_short, of_full] = [[&LORAS[..], &adapters, &["prefix-layer", "lora-prefix"]], [&LORAS, &adapters, &[]]];
    assert_eq!(methods(&json(&path)), [of_short.concat(), of_full.concat()].concat());

    let out = succeed(&table1(&model, &["--columns", "1x8", "--params", "200", "--rank", "513"]));
    let lines = left_out(&out, "1 x 8");
    assert_eq!(lines.len(), 4 + 3 + 3, "{out}");
    for line in [
        "lora-fused is left out: rank 513 is not supported, expected 1 to 512",
        "adapter-l is left out: the narrowest adapters on this model have 642 parameters, more than the 200 of --params",
        "prefix-layer is left out: a single prefix token on this model has 256 parameters, more than the 200 of --params",
    ] {
        assert!(lines.contains(&line), "no '{line}': {out}");
    }
}

#[test]
fn a_requested_method_must_fit() {
    let model = golden("model");
    for (extra, expected) in [
        (
            &["--columns", "1x8", "--methods", "none,prefix-embedding"][..],
            "prefix-embedding: 8 tokens after a prefix of 64 need more than the model's 40 positions",
        ),
        (
            &["--columns", "1x8", "--methods", "adapter-h"],
            "adapter-h: adapters of 11,000,000 parameters are 21,317 wide",
        ),
        (&["--columns", "1x8", "--methods", "adapter-p", "--params", "200"], "adapter-p: the narrowest adapters"),
        (&["--columns", "1x8", "--methods", "lora-prefix:513"], "lora-prefix:513: rank 513 is not supported"),
        // Without the base model there is nothing to compare with.
        (&["--columns", "1x41"], "none: 41 tokens after a prefix of 0 need more than the model's 40 positions"),
    ] {
        let error = fail(&table1(&model, extra), 1);
        assert!(error.contains(expected), "{extra:?}: {error}");
    }
    // A method with an explicit size is measured as it is.
    succeed(&table1(&model, &["--columns", "1x8", "--methods", "adapter-h:300,prefix-embedding:32"]));
}

#[test]
fn a_sweep_leaves_out_methods_that_do_not_fit() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("sweep.json");
    let model = golden("model");
    let fixed = ["sweep", "--model", &model, "--sequences", "8", "--batches", "1,2", "--trials", "1", "--threads", "1"];
    let sweep = |extra: &[&'static str]| [&fixed[..], &["--json", text(&path)], extra].concat();
    let out = succeed(&sweep(&["--ranks", "0,600"]));
    for method in ["lora-fused", "lora-sequential"] {
        let line =
            format!("{method} is left out at 8 tokens and r 600: rank 600 is not supported, expected 1 to 512\n");
        assert_eq!(out.matches(&line).count(), 1, "{out}");
    }
    let rows = json(&path)["rows"].clone();
    assert_eq!(rows.as_array().unwrap().len(), 2 * (4 + 2));
    // Methods that were left out are not measured when the sweep is called again.
    succeed(&sweep(&["--ranks", "0,600"]));
    assert_eq!(json(&path)["rows"], rows);

    let rank = fail(&sweep(&["--ranks", "600", "--methods", "lora-fused"]), 1);
    assert!(rank.contains("lora-fused: rank 600 is not supported"), "{rank}");
    let positions = fail(&["sweep", "--model", &model, "--sequences", "8,41"], 1);
    assert!(positions.contains("41 tokens after a prefix of 0"), "{positions}");
}
