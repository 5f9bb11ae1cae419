//! A wrong model folder is an error of one sentence that names the file, the key and what was expected.

use crate::common::{Fault, Folder, Stored, assert_refused, contents, displayed, golden, model};
use fused_lora_gpt2::{Adapters, Forward, Model, Result, merge_folder};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};

fn load(folder: &Folder) -> Result<Model<f32>> {
    Model::load(folder.path())
}

/// Checks that loading and merging refuse the folder, and that merging leaves no file behind.
#[track_caller]
fn assert_unusable(folder: &Folder, case: &str, parts: &[&str]) {
    assert_refused(load(folder), case, parts);
    let place = tempfile::tempdir().unwrap();
    let merged = merge_folder(folder.path(), &[&golden("lora-all")], &place.path().join("merged"), None);
    assert_refused(merged, &format!("{case}, merging"), parts);
    assert_eq!(contents(place.path()), [""; 0], "{case}: leftovers");
}

#[test]
fn missing_files() {
    let place = tempfile::tempdir().unwrap();
    let nowhere = place.path().join("nowhere");
    assert_refused(Model::<f32>::load(&nowhere), "no folder", &[&displayed(&nowhere), "config.json", "No such file"]);
    for name in ["config.json", "model.safetensors"] {
        let folder = Folder::of("model");
        let file = folder.path().join(name);
        std::fs::remove_file(&file).unwrap();
        assert_unusable(&folder, name, &[&displayed(&file), "No such file"]);
    }
}

#[test]
fn config_that_is_not_json() {
    let texts: [&[u8]; 8] = [b"", b"{", b"[]", b"null", b"\"gpt2\"", b"{\"n_layer\": 2,}", b"\xff\xfe{}", b"{} {}"];
    for text in texts {
        let folder = Folder::of("model");
        std::fs::write(folder.json(), text).unwrap();
        let case = String::from_utf8_lossy(text);
        assert_unusable(&folder, &case, &[&displayed(&folder.json()), "not a JSON object"]);
    }
}

#[test]
fn sizes_that_are_not_positive_numbers() {
    let bad = [
        None,
        Some(Value::Null),
        Some(json!(0)),
        Some(json!(-1)),
        Some(json!("2")),
        Some(json!(1.5)),
        Some(json!(true)),
        Some(json!([2])),
        Some(json!({})),
        Some(json!(u64::MAX)),
        Some(json!(1e300)),
    ];
    for field in ["n_layer", "n_embd", "n_head", "vocab_size", "n_positions", "n_inner"] {
        for value in &bad {
            // Without n_inner the MLP has 4·n_embd features.
            if field == "n_inner" && matches!(value, None | Some(Value::Null)) {
                continue;
            }
            let folder = Folder::of("model");
            folder.set(field, value.clone());
            let shown = value.as_ref().map_or("missing".into(), Value::to_string);
            let says = format!("field '{field}' is {shown}, expected a whole number of at least 1");
            assert_unusable(&folder, &says, &[&displayed(&folder.json()), &says, "at most 2147483648"]);
        }
    }
}

/// Sizes that contradict the tensors: the error names the tensor, and no memory of that size is allocated.
#[test]
fn sizes_of_another_model() {
    let largest = 1u64 << 31;
    let cases = [
        ("n_layer", 1, "transformer.h.1."),
        ("n_layer", 3, "transformer.h.2.ln_1.weight"),
        ("n_layer", largest, "transformer.h.2.ln_1.weight"),
        ("n_embd", 68, "transformer.wte.weight"),
        ("n_embd", largest, "transformer.wte.weight"),
        ("vocab_size", 130, "transformer.wte.weight"),
        ("vocab_size", largest, "transformer.wte.weight"),
        ("n_positions", 41, "transformer.wpe.weight"),
        ("n_positions", largest, "transformer.wpe.weight"),
        ("n_inner", 255, "transformer.h.0.mlp.c_fc.weight"),
        ("n_inner", largest, "transformer.h.0.mlp.c_fc.weight"),
    ];
    for (field, value, key) in cases {
        let folder = Folder::of("model");
        folder.set(field, Some(json!(value)));
        assert_unusable(&folder, &format!("{field} {value}"), &[&displayed(&folder.weights()), key, "expected"]);
    }
}

#[test]
fn settings_that_are_not_supported() {
    let cases = [
        ("activation_function", json!("gelu"), "expected gelu_new"),
        ("activation_function", json!("silu"), "expected gelu_new"),
        ("activation_function", json!(3), "expected gelu_new"),
        ("add_cross_attention", json!(true), "not supported"),
        ("add_cross_attention", json!("yes"), "expected true or false"),
        ("tie_word_embeddings", json!(0), "expected true or false"),
        ("scale_attn_weights", json!("true"), "expected true or false"),
        ("scale_attn_by_inverse_layer_idx", json!(1), "expected true or false"),
        ("n_head", json!(5), "does not divide n_embd = 64"),
        ("model_type", json!("llama"), "expected gpt2"),
        ("model_type", json!(["gpt2"]), "expected gpt2"),
        ("layer_norm_epsilon", json!(0), "between 0 and 1"),
        ("layer_norm_epsilon", json!(-1e-5), "between 0 and 1"),
        ("layer_norm_epsilon", json!("1e-5"), "between 0 and 1"),
        ("layer_norm_epsilon", json!(1), "between 0 and 1"),
        // Positive in double precision, but 0 in f32.
        ("layer_norm_epsilon", json!(2f64.powi(-160)), "between 0 and 1"),
    ];
    for (field, value, expected_message) in cases {
        let folder = Folder::of("model");
        folder.set(field, Some(value.clone()));
        let says = format!("field '{field}' is {value}, ");
        assert_unusable(&folder, &says, &[&displayed(&folder.json()), &says, expected_message]);
    }
}

#[test]
fn settings_without_effect() {
    for field in ["model_type", "activation_function", "layer_norm_epsilon", "n_inner", "tie_word_embeddings"] {
        let folder = Folder::of("model");
        folder.set(field, None);
        folder.set("use_cache", Some(json!("perhaps")));
        assert_eq!(load(&folder).unwrap().config, model().config, "without {field}");
    }
}

#[test]
fn weights_that_are_not_a_complete_file() {
    let whole = std::fs::read(golden("model/model.safetensors")).unwrap();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut cut: Vec<usize> = (0..=9).collect();
    cut.extend([header_end - 1, header_end, header_end + 1, whole.len() - 1]);
    cut.extend((10..whole.len()).step_by(9973));
    let mut damaged: Vec<(String, Vec<u8>)> =
        cut.into_iter().map(|len| (format!("{len} bytes"), whole[..len].to_vec())).collect();
    for extra in [1, 8, 4096] {
        damaged.push((format!("{extra} more bytes"), [&whole[..], &vec![0; extra]].concat()));
    }
    for header_len in [0, 1, 100_000_000, 100_000_001, u64::MAX - 7, u64::MAX] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&header_len.to_le_bytes());
        damaged.push((format!("a header of {header_len}"), bytes));
    }
    damaged.push(("text".into(), b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec()));
    for (case, bytes) in damaged {
        let folder = Folder::of("model");
        std::fs::write(folder.weights(), bytes).unwrap();
        assert_unusable(&folder, &case, &[&displayed(&folder.weights()), "not a complete safetensors file"]);
    }
}

#[test]
fn every_tensor_with_every_fault() {
    let original = Folder::of("model").tensors();
    for key in original.keys() {
        for fault in Fault::ALL {
            let folder = Folder::of("model");
            let mut tensors = original.clone();
            fault.apply(&mut tensors, key);
            folder.write(&tensors);
            let named = format!("tensor '{key}'");
            let parts = [&displayed(&folder.weights()), &named, fault.expected_message()];
            assert_unusable(&folder, &format!("{key} {fault:?}"), &parts);
        }
    }
}

#[test]
fn values_too_large_for_the_type_asked_for() {
    let folder = Folder::of("model");
    let key = "transformer.h.1.mlp.c_fc.weight";
    folder.edit(|tensors| tensors.get_mut(key).unwrap().set_last(70_000.0));
    load(&folder).unwrap();
    Model::<bf16>::load(folder.path()).unwrap();
    let narrow = Model::<f16>::load(folder.path());
    assert_refused(narrow, "f16", &[&displayed(&folder.weights()), key, "not finite in f16"]);

    folder.edit(|tensors| {
        let data = [1e39f64; 192].iter().flat_map(|v| v.to_le_bytes()).collect();
        let wide = Stored { dtype: Dtype::F64, shape: vec![192], data };
        tensors.insert("transformer.h.0.attn.c_attn.bias".into(), wide);
    });
    assert_unusable(&folder, "f64", &["transformer.h.0.attn.c_attn.bias", "not finite in f32"]);
}

#[test]
fn unknown_tensors() {
    let strangers = [
        "transformer.h.2.ln_1.weight",
        "transformer.h.01.ln_1.weight",
        "transformer.h.+1.ln_1.weight",
        "transformer.h.-1.ln_1.weight",
        "transformer.h.0.ln_3.weight",
        "transformer.h.0.attn.c_attn.scale",
        "transformer.h.0.attn.q_proj.weight",
        "transformer.h.0.crossattention.c_attn.weight",
        "transformer.wte.bias",
        "score.weight",
        // The other keys start with `transformer`, so these would never be read.
        "wte.weight",
        "h.0.ln_1.weight",
        "",
        "a key\nof two lines",
    ];
    for key in strangers {
        let folder = Folder::of("model");
        folder.edit(|tensors| drop(tensors.insert(key.into(), Stored::f32(&[64]))));
        let shown = key.escape_debug();
        let says = format!("tensor '{shown}' does not belong to this model, expected a GPT-2 of 2 layers");
        assert_unusable(&folder, key, &[&displayed(&folder.weights()), &says]);
    }
}

/// Masks of old checkpoints, a copy of the tied lm_head, and keys without the prefix `transformer.`.
#[test]
fn harmless_differences_between_published_checkpoints() {
    let expected = Forward::new().logits(&model(), &Adapters::default(), &[&[1, 2, 3]]).unwrap().to_vec();
    let folder = Folder::of("model");
    folder.edit(|tensors| {
        let mask = Stored { dtype: Dtype::U8, shape: vec![1, 1, 40, 40], data: vec![1; 1600] };
        tensors.insert("transformer.h.0.attn.bias".into(), mask);
        tensors.insert("transformer.h.0.attn.masked_bias".into(), Stored::f32(&[1]));
        let lm_head = tensors["transformer.wte.weight"].clone();
        tensors.insert("lm_head.weight".into(), lm_head);
    });
    let with_extras = load(&folder).unwrap();
    folder.edit(|tensors| {
        let renamed = std::mem::take(tensors).into_iter();
        *tensors = renamed.map(|(k, t)| (k.trim_start_matches("transformer.").to_string(), t)).collect();
    });
    assert!(folder.tensors().contains_key("h.0.ln_1.weight"));
    for model in [with_extras, load(&folder).unwrap()] {
        assert_eq!(Forward::new().logits(&model, &Adapters::default(), &[&[1, 2, 3]]).unwrap(), expected);
    }
}
