//! Warnings and errors about folders whose files do not match their configuration.

use std::path::Path;

use crate::common::{fail, golden, run, succeed, text};

/// A copy of a golden folder.
fn copy(name: &str, place: &Path) {
    std::fs::create_dir(place).unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
    }
}

#[test]
fn warnings_are_one_line_each_on_stderr() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("logits.safetensors");
    let (model, adapter) = (golden("model"), golden("checkpoints/one-layer"));
    let output = run(&["logits", "--model", &model, "--adapter", &adapter, "--tokens", "1,2,3", "--out", text(&out)]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("warning: ") && said.contains("ignored, as in PEFT"), "{said}");
    // Other tensors in a file of tokens give a warning as well.
    let tokens = golden("checkpoints/expected.safetensors");
    let output = run(&["logits", "--model", &model, "--tokens", &tokens, "--out", text(&out)]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("expected.safetensors: only 'tokens' is read, not 'all-linear.logits', "), "{said}");
    assert!(said.contains(" more") && said.lines().count() == 1, "{said}");
}

#[test]
fn merge_says_what_it_leaves_out() {
    let place = tempfile::tempdir().unwrap();
    let (model, out) = (place.path().join("model"), place.path().join("merged"));
    copy("model", &model);
    std::fs::write(model.join("pytorch_model.bin"), "x").unwrap();
    let said = succeed(&["merge", "--model", text(&model), "--adapter", &golden("lora-attn"), "--out", text(&out)]);
    assert!(said.contains("left out \"pytorch_model.bin\": it holds weights without the merge"), "{said}");
    assert!(!out.join("pytorch_model.bin").exists() && out.join("model.safetensors").exists());
}

#[test]
fn errors_name_their_cause_once_and_are_short() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("logits.safetensors");
    let missing = place.path().join("missing");
    let logits = |more: &[&str]| {
        let all = [&["logits", "--out", text(&out), "--model"], more].concat();
        let said = fail(&all, 1);
        assert!(said.len() < 800, "{} bytes: {said}", said.len());
        said
    };
    let said = logits(&[text(&missing), "--tokens", "1"]);
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    let model = golden("model");
    let said = logits(&[&model, "--tokens", "1", "--adapter", text(&missing)]);
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    let many = vec!["131"; 20_000].join(",");
    assert!(logits(&[&model, "--tokens", &many]).contains("characters)"));
    assert!(logits(&[&model, "--tokens", &"x".repeat(20_000)]).contains("is not a token id"));
}
