//! Folders as they are found in practice compute what PEFT and transformers compute (tests/golden/checkpoints.py), with
//! warnings about what was ignored.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::device::{OnDevice, assert_close, slices};
use crate::common::{Folder, Stored, Tensors, assert_refused, config, contents, displayed, golden, model};
use fused_lora::DType;
use fused_lora_gpt2::adapter::lora::Lora;
use fused_lora_gpt2::{Adapters, Checkpoint, Forward, Model, Warning, merge_folder, peft};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

fn expectations() -> Checkpoint {
    Checkpoint::open(&golden("checkpoints/expected.safetensors")).unwrap()
}

fn exact(name: &str) -> Vec<f64> {
    let file = expectations();
    let (dtype, _, bytes) = file.raw(&format!("{name}.logits")).unwrap();
    assert_eq!(dtype, Dtype::F64);
    bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

#[track_caller]
fn assert_computes(model: &Model<f32>, adapters: &Adapters<f32>, name: &str) {
    let tokens = expectations().token_ids("tokens").unwrap();
    let mut forward = Forward::new();
    let got = forward.logits(model, adapters, &slices(&tokens)).unwrap();
    let exact = exact(name);
    assert_eq!(got.len(), exact.len());
    for (got, exact) in got.iter().zip(exact) {
        assert!((f64::from(*got) - exact).abs() <= 1e-4, "{name}: {got} {exact}");
    }
}

/// Checks that there is one warning for each of `parts`, which contains it.
#[track_caller]
fn assert_warns(warnings: &[Warning], parts: &[&str], case: &str) {
    let said: Vec<String> = warnings.iter().map(Warning::to_string).collect();
    assert_eq!(said.len(), parts.len(), "{case}: {said:#?}");
    for (said, part) in said.iter().zip(parts) {
        assert!(said.contains(part), "{case}: expected '{part}' in: {said}");
        assert!(said.len() < 600 && said.lines().count() == 1, "{case}: {said}");
    }
}

#[test]
fn adapters_whose_configuration_and_tensors_disagree() {
    let model = model();
    let ignored = "of modules that adapter_config.json does not adapt: ignored, as in PEFT";
    let cases: &[(&str, &[&str])] = &[
        ("one-layer", &[ignored]),
        ("any-layer", &[ignored]),
        ("full-name", &[ignored]),
        ("expression", &[ignored]),
        ("all-linear", &[ignored]),
        ("excluded", &[ignored]),
        ("default-targets", &[ignored]),
        ("patterns", &[]),
        ("fewer-tensors", &["no tensors for 'transformer.h.0.attn.c_proj', 'transformer.h.0.mlp.c_fc'"]),
        ("bare-names", &[ignored]),
        ("pissa-converted", &[]),
    ];
    for (name, warnings) in cases {
        let lora = peft::load_lora(&golden(&format!("checkpoints/{name}")), &model.config).unwrap();
        assert_warns(lora.warnings(), warnings, name);
        assert_computes(&model, &Adapters { lora: Some(lora), ..Adapters::default() }, name);
    }
}

#[test]
fn a_prefix_that_was_trained_with_a_projection() {
    let adapters = peft::load(&golden("checkpoints/projected-prefix"), &config()).unwrap();
    assert_computes(&model(), &adapters, "projected-prefix");
}

#[test]
fn settings_that_adapt_other_modules() {
    let load = |folder: &Folder| peft::load_lora::<f32>(folder.path(), &config());
    let places = |lora: &Lora<f32>| -> Vec<(usize, usize)> {
        let layers = lora.layers.iter().enumerate();
        layers.flat_map(|(i, layer)| (0..4).filter(|&p| !layer[p].is_empty()).map(move |p| (i, p))).collect()
    };
    // The file has tensors for all projections; the fields decide which are used: 0 c_attn, 1 attn.c_proj, 2 c_fc, 3
    // mlp.c_proj.
    let cases = [
        (json!({"target_modules": ["attn.c_proj"]}), vec![(0, 1), (1, 1)]),
        (json!({"target_modules": ["c_attn", "nothing"]}), vec![(0, 0), (1, 0)]),
        (json!({"target_modules": ["c_attn"], "layers_to_transform": [1, 7, -1]}), vec![(1, 0)]),
        (json!({"target_modules": ["c_attn"], "layers_to_transform": []}), vec![(0, 0), (1, 0)]),
        (json!({"target_modules": ["c_attn"], "layers_to_transform": 1, "layers_pattern": ["x", "h"]}), vec![(1, 0)]),
        (json!({"target_modules": ["c_attn"], "layers_to_transform": 1, "layers_pattern": ""}), vec![(1, 0)]),
        (
            json!({"target_modules": "ALL-linear", "exclude_modules": ["c_proj", "h.1.mlp.c_fc"]}),
            vec![(0, 0), (0, 2), (1, 0)],
        ),
        (json!({"target_modules": r".*\.mlp\.c_.*", "exclude_modules": r".*h\.0\..*"}), vec![(1, 2), (1, 3)]),
    ];
    for (fields, expected) in cases {
        let folder = Folder::of("checkpoints/any-layer");
        folder.set("layers_to_transform", None);
        for (field, value) in fields.as_object().unwrap() {
            folder.set(field, Some(value.clone()));
        }
        let lora = load(&folder).unwrap_or_else(|e| panic!("{fields}: {e}"));
        assert_eq!(places(&lora), expected, "{fields}");
        assert!(!lora.warnings().is_empty(), "{fields}");
    }
}

#[test]
fn settings_that_peft_refuses_or_that_are_random() {
    let cases = [
        (json!({"layers_to_transform": null, "target_modules": "c_attn"}), "matches no projection"),
        (json!({"target_modules": []}), "matches no projection"),
        (json!({"target_modules": ["c_attn", 3]}), "expected a list of names"),
        (json!({"target_modules": true}), "expected a list of names"),
        (
            json!({"layers_to_transform": null, "target_modules": r".*attn"}),
            "adapts 'transformer.h.0.attn', a module that cannot be adapted",
        ),
        (json!({"layers_to_transform": null, "target_modules": ["ln_1"]}), "adapts 'transformer.h.0.ln_1'"),
        (json!({"target_modules": r".*c_(attn"}), "is not a regular expression"),
        (json!({"target_modules": r"\h+c_attn"}), r"is not a regular expression of Python's: it has \h"),
        (json!({"target_modules": "all-linear", "layers_to_transform": [0]}), "only if target_modules is a list"),
        (json!({"layers_to_transform": null, "layers_pattern": "h"}), "only together with layers_to_transform"),
        (json!({"layers_to_transform": [0.5]}), "expected a layer's number"),
        (json!({"layers_to_transform": 12}), "matches no projection that the other fields allow"),
        (json!({"layers_pattern": [1]}), "expected a name or a list of names"),
        (json!({"exclude_modules": {"c_attn": 1}}), "expected a list of names"),
        (json!({"exclude_modules": ["c_proj"]}), "matches no projection that the other fields allow"),
        (json!({"lora_dropout": 1.5}), "expected a number from 0 to 1"),
        (json!({"task_type": "SEQ_2_SEQ_LM"}), "expected CAUSAL_LM"),
        (json!({"task_type": "causal_lm"}), "expected CAUSAL_LM"),
    ];
    for (fields, says) in cases {
        let folder = Folder::of("checkpoints/any-layer");
        let mut named = String::new();
        for (field, value) in fields.as_object().unwrap() {
            folder.set(field, Some(value.clone()));
            named.clone_from(field);
        }
        let refused = peft::load_lora::<f32>(folder.path(), &config());
        assert_refused(refused, &fields.to_string(), &[&displayed(&folder.json()), says]);
    }
    // PEFT initialises missing tensors at random if B does not start at zero.
    for init in [json!(false), json!("orthogonal"), Value::Null] {
        let folder = Folder::of("checkpoints/fewer-tensors");
        folder.set("init_lora_weights", Some(init));
        let parts = ["field 'init_lora_weights'", "no tensors for 'transformer.h.0.attn.c_proj'", "at random"];
        assert_refused(peft::load_lora::<f32>(folder.path(), &config()), "random", &parts);
    }
}

#[test]
fn an_adapted_lm_head_is_refused() {
    let folder = Folder::of("checkpoints/any-layer");
    folder.set("target_modules", Some(json!(["c_proj", "lm_head"])));
    folder.set("layers_to_transform", None);
    let lora = peft::load_lora::<f32>(folder.path(), &config()).unwrap();
    assert!(lora.warnings()[1].to_string().contains("no tensors for 'lm_head'"), "{:?}", lora.warnings());
    let keys = ["A", "B"].map(|which| format!("base_model.model.lm_head.lora_{which}.weight"));
    folder.edit(|tensors| {
        tensors.insert(keys[0].clone(), Stored::f32(&[2, 64]));
        tensors.insert(keys[1].clone(), Stored::f32(&[131, 2]));
    });
    let parts = [&displayed(&folder.weights()), &keys[0][..], "does not belong to"];
    assert_refused(peft::load_lora::<f32>(folder.path(), &config()), "lm_head", &parts);
}

/// The golden model in `count` shards and an index.
fn shards(folder: &Folder, count: usize) {
    let tensors = folder.tensors();
    std::fs::remove_file(folder.weights()).unwrap();
    let mut parts = vec![Tensors::new(); count];
    let mut map = serde_json::Map::new();
    for (i, (key, tensor)) in tensors.into_iter().enumerate() {
        map.insert(key.clone(), json!(format!("model-{}-of-{count}.safetensors", i % count)));
        parts[i % count].insert(key, tensor);
    }
    for (i, part) in parts.iter().enumerate() {
        write(&folder.path().join(format!("model-{i}-of-{count}.safetensors")), part);
    }
    write_index(folder, &json!({"metadata": {"total_size": 1}, "weight_map": map}));
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(key, t)| (key, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn index(folder: &Folder) -> Value {
    serde_json::from_slice(&std::fs::read(folder.path().join("model.safetensors.index.json")).unwrap()).unwrap()
}

fn write_index(folder: &Folder, value: &Value) {
    std::fs::write(folder.path().join("model.safetensors.index.json"), value.to_string()).unwrap();
}

fn all_weights(model: &Model<f32>) -> BTreeMap<String, Vec<f32>> {
    let layers = model.layers.iter().enumerate();
    let projections = layers.flat_map(|(i, layer)| {
        layer.projections.iter().enumerate().map(move |(p, l)| (format!("{i}.{p}"), l.weight.to_vec()))
    });
    projections.chain([("wte".to_string(), model.wte.to_vec())]).collect()
}

#[test]
fn shards_are_read_and_merged() {
    let folder = Folder::of("model");
    shards(&folder, 3);
    let sharded = Model::<f32>::load(folder.path()).unwrap();
    assert_eq!(all_weights(&sharded), all_weights(&model()));

    let place = tempfile::tempdir().unwrap();
    let (whole, parts) = (place.path().join("whole"), place.path().join("parts"));
    merge_folder(&golden("model"), &[&golden("lora-all")], &whole, None).unwrap();
    let merged = merge_folder(folder.path(), &[&golden("lora-all")], &parts, None).unwrap();
    assert_eq!(merged.tensors.len(), 8);
    let left_out: Vec<&str> = merged.left_out.iter().map(|file| &file.name[..]).collect();
    let shard = |i: usize| format!("model-{i}-of-3.safetensors");
    assert_eq!(left_out, [&shard(0)[..], &shard(1), &shard(2), "model.safetensors.index.json"]);
    let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(bytes(&whole), bytes(&parts));
    let mut held = contents(&parts);
    held.sort();
    assert_eq!(held, ["config.json", "model.safetensors"]);
}

#[test]
fn an_index_that_contradicts_its_shards() {
    let key = "transformer.ln_f.bias";
    type Change = fn(&Folder);
    let cases: [(Change, &str); 6] = [
        (|f| write_index(f, &json!({"metadata": {}})), "field 'weight_map' is missing"),
        (
            |f| edit_index(f, |map| map["transformer.ln_f.bias"] = json!("../elsewhere.safetensors")),
            "in the same folder",
        ),
        (
            |f| edit_index(f, |map| map["transformer.ln_f.bias"] = json!(7)),
            "field 'weight_map.transformer.ln_f.bias' is 7",
        ),
        (
            |f| edit_index(f, |map| map["transformer.ln_f.bias"] = json!("lost.safetensors")),
            "lost.safetensors: No such file",
        ),
        (
            |f| edit_index(f, |map| drop(map.as_object_mut().unwrap().remove("transformer.ln_f.bias"))),
            "tensor 'transformer.ln_f.bias' does not belong to",
        ),
        (
            |f| edit_index(f, |map| map["transformer.extra"] = json!("model-0-of-2.safetensors")),
            "tensor 'transformer.extra' is missing",
        ),
    ];
    for (change, says) in cases {
        let folder = Folder::of("model");
        shards(&folder, 2);
        assert!(index(&folder)["weight_map"].get(key).is_some());
        change(&folder);
        assert_refused(Model::<f32>::load(folder.path()), says, &[&displayed(folder.path()), says]);
    }
}

fn edit_index(folder: &Folder, edit: impl FnOnce(&mut Value)) {
    let mut value = index(folder);
    edit(&mut value["weight_map"]);
    write_index(folder, &value);
}

/// The lm_head of tests/golden/checkpoints.py.
fn untied_head() -> Stored {
    let values = (0..131).flat_map(|row| (0..64).map(move |column| ((row * 7 + column * 13) % 17 - 8) as f32 / 16.0));
    Stored { dtype: Dtype::F32, shape: vec![131, 64], data: values.flat_map(f32::to_le_bytes).collect() }
}

#[test]
fn an_untied_lm_head_on_a_device() {
    if crate::common::device::left_out() {
        return;
    }
    let folder = Folder::of("model");
    folder.edit(|tensors| drop(tensors.insert("lm_head.weight".into(), untied_head())));
    let model = Model::<f32>::load(folder.path()).unwrap();
    let tokens = expectations().token_ids("tokens").unwrap();
    let got = OnDevice::new(&model, &Adapters::default()).logits(&tokens);
    assert_close::<f32>(&got, &exact("own-head"), "own-head");
}

#[test]
fn an_untied_lm_head() {
    let head = untied_head();
    for tied in [json!(true), json!(false)] {
        let folder = Folder::of("model");
        folder.edit(|tensors| drop(tensors.insert("lm_head.weight".into(), head.clone())));
        folder.set("tie_word_embeddings", Some(tied.clone()));
        let loaded = Model::<f32>::load(folder.path()).unwrap();
        assert_computes(&loaded, &Adapters::default(), "own-head");
        assert_eq!(loaded.parameters(), model().parameters() + 131 * 64);
        let says: &[&str] =
            if tied == json!(true) { &["lm_head.weight differs from wte.weight: it is used"] } else { &[] };
        assert_warns(loaded.warnings(), says, "own-head");

        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("merged");
        merge_folder(folder.path(), &[], &out, None).unwrap();
        assert_computes(&Model::load(&out).unwrap(), &Adapters::default(), "own-head");

        folder.edit(|tensors| drop(tensors.insert("lm_head.weight".into(), Stored::f32(&[130, 64]))));
        let parts = [&displayed(&folder.weights()), "tensor 'lm_head.weight' has shape [130, 64], expected [131, 64]"];
        assert_refused(Model::<f32>::load(folder.path()), "shape", &parts);
    }
    let folder = Folder::of("model");
    folder.set("tie_word_embeddings", Some(json!(false)));
    assert_refused(Model::<f32>::load(folder.path()), "no head", &["tensor 'lm_head.weight' is missing"]);
    folder.set("tie_word_embeddings", Some(Value::Null));
    assert_refused(Model::<f32>::load(folder.path()), "null", &["field 'tie_word_embeddings' is null"]);
    // A copy of the token embedding counts as tied, whatever the configuration says.
    for tied in [true, false] {
        let folder = Folder::of("model");
        folder.set("tie_word_embeddings", Some(json!(tied)));
        folder.edit(|tensors| drop(tensors.insert("lm_head.weight".into(), tensors["transformer.wte.weight"].clone())));
        let loaded = Model::<f32>::load(folder.path()).unwrap();
        assert!(loaded.lm_head.is_none() && loaded.warnings().is_empty());
    }
}

#[test]
fn files_that_a_merged_folder_leaves_out() {
    let folder = Folder::of("model");
    let stale = [
        "adapter_config.json",
        "adapter_model.bin",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "TF_MODEL.H5",
        "x.gguf",
    ];
    for name in stale.into_iter().chain(["vocab.json", "merges.txt"]) {
        std::fs::write(folder.path().join(name), "{}").unwrap();
    }
    std::fs::create_dir(folder.path().join("onnx")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("merged");
    let merged = merge_folder(folder.path(), &[&golden("lora-attn")], &out, None).unwrap();
    let mut held = contents(&out);
    held.sort();
    assert_eq!(held, ["config.json", "merges.txt", "model.safetensors", "vocab.json"]);
    let mut left_out: Vec<&str> = stale.into_iter().chain(["onnx"]).collect();
    left_out.sort_unstable();
    assert_eq!(merged.left_out.iter().map(|file| &file.name[..]).collect::<Vec<_>>(), left_out);
    assert!(merged.left_out.iter().all(|file| !file.reason.is_empty()));
    assert_warns(&merged.warnings, &["adapter_config.json: ignored: the folder is loaded as a model"], "merge");
}

#[test]
fn f64_becomes_f32_with_a_warning() {
    let folder = Folder::of("model");
    folder.edit(|tensors| {
        let narrow = tensors["transformer.wpe.weight"].clone();
        let wide = narrow.data.as_chunks().0.iter().flat_map(|b| f64::from(f32::from_le_bytes(*b)).to_le_bytes());
        let wide = Stored { dtype: Dtype::F64, shape: narrow.shape, data: wide.collect() };
        tensors.insert("transformer.wpe.weight".into(), wide);
    });
    folder.set("dtype", Some(json!("float64")));
    let place = tempfile::tempdir().unwrap();
    let merge = |name: &str, dtype| merge_folder(folder.path(), &[], &place.path().join(name), dtype).unwrap();
    assert_warns(&merge("as it is", None).warnings, &["tensors stored as F64 are stored as F32"], "F64");
    let config = std::fs::read_to_string(place.path().join("as it is/config.json")).unwrap();
    assert!(config.contains("\"dtype\": \"float32\""), "{config}");
    assert_warns(&merge("asked for", Some(DType::F32)).warnings, &[], "F32 asked for");
}
