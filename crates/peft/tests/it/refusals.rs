//! Errors about files of a wrong kind say what the file is. Each is one sentence of bounded length that names its cause
//! once.

use std::error::Error as _;

use crate::common::{Folder, load};
use fused_lora_peft::{Checkpoint, Error};
use serde_json::{Value, json};

#[track_caller]
fn assert_says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "expected '{part}' in: {text}");
    }
    assert!(text.len() < 1000 && text.lines().count() == 1, "{} bytes: {text}", text.len());
    assert!(error.source().is_none(), "a report that follows the causes would say one twice: {text}");
}

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 548105171\n";
const PAGE: &[u8] = b"\n<!DOCTYPE html>\n<html class=\"\"><head><title>Sign in</title></head></html>\n";

#[test]
fn downloads_that_went_wrong() {
    let cases: [(&[u8], &str); 6] = [
        (POINTER, "it is a Git LFS pointer, not the file that it stands for: fetch the file with `git lfs pull`"),
        (PAGE, "it is an HTML page"),
        (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "it is an XML document"),
        (b"PK\x03\x04pytorch", "it is a ZIP archive, as PyTorch's .bin and .pt files are"),
        (b"\x80\x02}q\x00", "it is a Python pickle"),
        (b"\x1f\x8b\x08\x00", "it is compressed with gzip"),
    ];
    for (bytes, says) in cases {
        let folder = Folder::lora();
        std::fs::write(folder.weights(), bytes).unwrap();
        let weights = folder.weights().display().to_string();
        assert_says(&load(&folder).unwrap_err(), &[&weights, "not a complete safetensors file (", says]);
        let folder = Folder::lora();
        std::fs::write(folder.config(), bytes).unwrap();
        let config = folder.config().display().to_string();
        assert_says(&load(&folder).unwrap_err(), &[&config, "not a JSON object: ", says]);
    }
}

#[test]
fn byte_order_marks_and_other_files_that_are_no_json() {
    let json = std::fs::read(Folder::lora().config()).unwrap();
    let wide = |order: fn(u16) -> [u8; 2]| {
        std::iter::once(0xFEFF).chain(json.iter().map(|&b| u16::from(b))).flat_map(order).collect()
    };
    let cases: [(Vec<u8>, &str); 5] = [
        ([b"\xEF\xBB\xBF", &json[..]].concat(), "it starts with a byte order mark (BOM)"),
        (wide(u16::to_le_bytes), "it is UTF-16"),
        (wide(u16::to_be_bytes), "it is UTF-16"),
        (vec![], "it is empty"),
        (b"[1, 2]".to_vec(), "expected a map"),
    ];
    for (bytes, says) in cases {
        let folder = Folder::lora();
        std::fs::write(folder.config(), bytes).unwrap();
        assert_says(&load(&folder).unwrap_err(), &["adapter_config.json: not a JSON object: ", says]);
    }
}

#[test]
fn pickles_are_refused_with_the_way_to_convert_them() {
    let folder = Folder::lora();
    std::fs::rename(folder.weights(), folder.path().join("adapter_model.bin")).unwrap();
    assert_says(
        &load(&folder).unwrap_err(),
        &[
            "adapter_model.bin",
            "weights in the format .bin are not supported",
            "load it with PEFT",
            "safe_serialization=True",
        ],
    );
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"] {
        let place = tempfile::tempdir().unwrap();
        assert_says(&Checkpoint::of_model(place.path()).unwrap_err(), &["model.safetensors: No such file"]);
        std::fs::write(place.path().join(name), "x").unwrap();
        assert_says(
            &Checkpoint::of_model(place.path()).unwrap_err(),
            &[name, "are not supported: load it with transformers"],
        );
    }
}

#[test]
fn causes_are_named_once() {
    let folder = Folder::lora();
    std::fs::remove_file(folder.config()).unwrap();
    let error = load(&folder).unwrap_err();
    assert_says(&error, &["adapter_config.json: No such file"]);
    assert_eq!(error.to_string().matches("No such file").count(), 1);
    // A folder where a file should be.
    std::fs::create_dir(folder.config()).unwrap();
    assert_says(&load(&folder).unwrap_err(), &["adapter_config.json: Is a directory"]);
}

#[test]
fn long_names_and_values_are_cut() {
    let long = "x".repeat(50_000);
    let cases: [(&str, Value); 6] = [
        ("something", json!(long)),
        (&long, json!(1)),
        ("rank_pattern", json!({&long[..]: "x"})),
        ("rank_pattern", json!({format!("({long}"): 2})),
        ("target_modules", json!([&long, &long, &long, &long])),
        ("target_modules", json!(vec!["y"; 9000])),
    ];
    for (field, value) in cases {
        let folder = Folder::lora();
        folder.set(field, value);
        assert_says(&load(&folder).unwrap_err(), &["adapter_config.json", "characters)"]);
    }
    let folder = Folder::lora();
    let header = json!({long: {"dtype": "F32", "shape": vec![1; 20_000], "data_offsets": [0, 4]}}).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    std::fs::write(folder.weights(), bytes).unwrap();
    assert_says(&load(&folder).unwrap_err(), &["adapter_model.safetensors: tensor '"]);
}
