//! Calls with wrong arguments: tokens, combinations of adapters, merges and writes. Each returns an error of one
//! sentence that says what was wrong and what was expected, and leaves no file behind.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{Folder, assert_refused, bottleneck, config, contents, displayed, golden, model};
use fused_lora::DType;
use fused_lora_gpt2::adapter::bottleneck::{Bottleneck, Kind};
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::{Adapters, Checkpoint, Config, Error, Forward, Model, merge_folder, peft, write_tensors};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

#[test]
fn token_ids_and_batches() {
    let cases: [(&[&[u32]], &str); 9] = [
        (&[&[0, 131, 2]], "token 131 at [0, 1] is outside the vocabulary of 131"),
        (&[&[0, 1], &[2, u32::MAX]], "token 4294967295 at [1, 1] is outside the vocabulary of 131"),
        (&[], "sequence 0 has 0 tokens, expected 1 "),
        (&[&[]], "sequence 0 has 0 tokens, expected 1 "),
        (&[&[], &[]], "sequence 0 has 0 tokens, expected 1 "),
        (&[&[], &[1]], "sequence 0 has 0 tokens, expected 1 "),
        (&[&[1, 2], &[1, 2, 3]], "sequence 1 has 3 tokens, expected 2 "),
        (&[&[1, 2, 3], &[1, 2, 3], &[1]], "sequence 2 has 1 tokens, expected 3 "),
        (&[&[1], &[]], "sequence 1 has 0 tokens, expected 1 "),
    ];
    let model = model();
    let mut forward = Forward::new();
    let before = forward.logits(&model, &Adapters::default(), &[&[130, 0]]).unwrap().to_vec();
    for (tokens, says) in cases {
        let parts = [says];
        assert_refused(forward.logits(&model, &Adapters::default(), tokens), says, &parts);
        assert_refused(forward.hidden(&model, &Adapters::default(), tokens), says, &parts);
    }
    // Refused calls leave the buffers that calls share unchanged.
    assert_eq!(forward.logits(&model, &Adapters::default(), &[&[130, 0]]).unwrap(), before);
}

#[test]
fn more_positions_than_the_model_has() {
    let (model, config) = (model(), config());
    let tokens = vec![1; config.positions + 1];
    let prefixes = [
        None,
        Some(Prefix::random_embedding(&config, 3, 1).unwrap()),
        Some(Prefix::random_layer(&config, 3, 1).unwrap()),
        Some(peft::load_prefix(&golden("prefix"), &config).unwrap()),
    ];
    for prefix in prefixes {
        let taken = prefix.as_ref().map_or(0, Prefix::length);
        let adapters = Adapters { prefix, ..Adapters::default() };
        let free = config.positions - taken;
        let most = Forward::new().logits(&model, &adapters, &[&tokens[..free]]).unwrap().len();
        assert_eq!(most, free * config.vocabulary, "all {free} positions can be used");
        let says = format!("{} tokens after a prefix of {taken} need more than the model's 40 positions", free + 1);
        assert_refused(Forward::new().logits(&model, &adapters, &[&tokens[..free + 1]]), &says, &[&says]);
    }
}

/// A prefix of no tokens has no effect.
#[test]
fn empty_prefixes() {
    let (model, config) = (model(), config());
    let run = |prefix| {
        let adapters = Adapters { prefix, ..Adapters::default() };
        Forward::new().logits(&model, &adapters, &[&[1, 2, 3]]).unwrap().to_vec()
    };
    assert_eq!(run(Some(Prefix::random_embedding(&config, 0, 1).unwrap())), run(None));
    assert_eq!(run(Some(Prefix::random_layer(&config, 0, 1).unwrap())), run(None));
}

#[test]
fn token_files() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("tokens.safetensors");
    let bytes = |ids: [i32; 2]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let cases = [
        (Dtype::I32, vec![1, 2], bytes([1, -1]), "field 'tokens' is -1, expected token ids of at least 0"),
        (Dtype::I64, vec![1, 1], bytes([0, 1]), "field 'tokens' is 4294967296, expected token ids"),
        (Dtype::F32, vec![1, 2], bytes([0, 0]), "is stored as F32, expected I64, I32 or U32"),
        (Dtype::I32, vec![2], bytes([0, 0]), "has shape [2], expected [1, 2]"),
        (Dtype::I32, vec![1, 1, 2], bytes([0, 0]), "has shape [1, 1, 2], expected [1, 2]"),
    ];
    for (dtype, shape, data, says) in cases {
        let view = TensorView::new(dtype, shape, &data).unwrap();
        write_tensors(&file, &BTreeMap::from([("tokens".to_string(), view)]), None).unwrap();
        let opened = Checkpoint::open(&file).unwrap();
        assert_refused(opened.token_ids("tokens"), says, &[&displayed(&file), "tokens", says]);
        assert_refused(opened.token_ids("ids"), says, &[&displayed(&file), "tensor 'ids' is missing, expected"]);
    }
}

#[test]
fn adapters_that_cannot_be_active_together() {
    let config = config();
    let prefix = || Adapters::<f32> {
        prefix: Some(peft::load_prefix(&golden("prefix"), &config).unwrap()),
        ..Adapters::default()
    };
    let bottleneck = |name: &str, kind| Adapters::<f32> {
        bottleneck: Some(bottleneck(&golden(&format!("adapter-{name}/adapter.safetensors")), kind).unwrap()),
        ..Adapters::default()
    };
    let mut adapters = prefix();
    assert_refused(adapters.combine(prefix()), "prefixes", &["two prefixes cannot be active together"]);
    adapters.combine(bottleneck("lin", Kind::Lin)).unwrap();
    for (name, kind) in [("lin", Kind::Lin), ("houlsby", Kind::Houlsby)] {
        let refused = adapters.combine(bottleneck(name, kind));
        assert_refused(refused, name, &["two sets of bottleneck adapters cannot be active together"]);
    }
    assert_eq!(adapters.bottleneck.unwrap().kind, Kind::Lin);
    assert!(adapters.prefix.is_some());
}

/// A refused combination changes nothing.
#[test]
fn a_refused_combination_adds_no_lora() {
    let config = config();
    let make = |seed| Adapters::<f32> {
        lora: Some(Lora::random(&config, &[(Target::Q, 2)], 4.0, seed).unwrap()),
        prefix: Some(Prefix::random_layer(&config, 2, seed).unwrap()),
        ..Adapters::default()
    };
    let mut adapters = make(1);
    let before = adapters.parameters();
    assert_refused(adapters.combine(make(2)), "LoRA and prefix", &["two prefixes"]);
    assert_eq!(adapters.parameters(), before);
}

#[test]
fn adapters_made_for_another_model() {
    let (model, config) = (model(), config());
    let others = [
        (Config { layers: 3, ..config.clone() }, "3 layers, expected 2"),
        (Config { d_model: 128, ..config.clone() }, ", expected "),
        (Config { d_ff: 128, ..config.clone() }, "128 MLP features, expected 256"),
    ];
    for (other, says) in &others {
        let lora = Lora::random(other, &[(Target::Whole(Projection::MlpOut), 4)], 8.0, 1).unwrap();
        let mut own = Lora::random(&config, &[(Target::Q, 4)], 8.0, 1).unwrap();
        assert_refused(own.add(lora.clone()), says, &[says]);
        assert_refused(model.merged(&lora), says, &[says]);
        let mut all = vec![Adapters { lora: Some(lora), ..Adapters::default() }];
        if other.d_ff == config.d_ff {
            for kind in [Kind::Houlsby, Kind::Lin, Kind::Pfeiffer] {
                let bottleneck = Some(Bottleneck::random(other, kind, 5, 1).unwrap());
                all.push(Adapters { bottleneck, ..Adapters::default() });
            }
            let prefix = Some(Prefix::random_layer(other, 2, 1).unwrap());
            all.push(Adapters { prefix, ..Adapters::default() });
        }
        if other.d_model != config.d_model {
            let prefix = Some(Prefix::random_embedding(other, 2, 1).unwrap());
            all.push(Adapters { prefix, ..Adapters::default() });
        }
        for adapters in all {
            let case = format!("{says}: {:?}", adapters.bottleneck.as_ref().map(|b| b.kind));
            assert_refused(adapters.check(&config), &case, &[says]);
            assert_refused(Forward::new().logits(&model, &adapters, &[&[1, 2]]), &case, &[says]);
        }
    }
}

#[test]
fn ranks_that_are_not_supported() {
    let config = config();
    for rank in [0, 513, usize::MAX] {
        let says = format!("rank {rank} is not supported, expected 1 to 512");
        assert_refused(Lora::<f32>::random(&config, &[(Target::V, rank)], 8.0, 1), &says, &[&says]);
    }
    let largest = Lora::<f32>::random(&config, &[(Target::V, 512)], 8.0, 1).unwrap();
    let adapters = Adapters { lora: Some(largest), ..Adapters::default() };
    Forward::new().logits(&model(), &adapters, &[&[1, 2]]).unwrap();
}

#[test]
fn merges_into_places_that_do_not_fit() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::create_dir(at("folder")).unwrap();
    std::fs::write(at("file"), "kept").unwrap();
    let (model, lora) = (golden("model"), golden("lora-all"));
    let cases = [
        ("folder", "it already exists"),
        ("file", "it already exists"),
        ("missing/merged", "No such file"),
        ("file/merged", "Not a directory"),
    ];
    for (name, says) in cases {
        let out = at(name);
        let error = assert_refused(merge_folder(&model, &[&lora], &out, None), name, &[&displayed(&out), says]);
        assert!(matches!(error, Error::Io { path, .. } if path == out), "{name}");
    }
    let missing = at("adapter");
    let refused = merge_folder(&model, &[&lora, &missing], &at("merged"), None);
    assert_refused(refused, "adapter", &[&displayed(&missing), "adapter_config.json", "No such file"]);
    let refused = merge_folder(&model, &[&golden("prefix")], &at("merged"), None);
    assert_refused(refused, "prefix", &[&displayed(&golden("prefix")), "field 'peft_type'", "expected LORA"]);

    let mut left = contents(place.path());
    left.sort();
    assert_eq!(left, ["file", "folder"]);
    assert_eq!(std::fs::read(at("file")).unwrap(), b"kept");
    assert_eq!(contents(&at("folder")), [""; 0]);
}

/// The result of a merge does not fit the type that it is stored in.
#[test]
fn merges_that_overflow() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("merged");
    let weights = golden("model/model.safetensors");
    let key = "transformer.h.0.attn.c_attn.weight";

    let lora = Folder::of("lora-attn");
    lora.set("lora_alpha", Some(json!(1e9)));
    let merge = |model: &Path, dtype| merge_folder(model, &[lora.path()], &out, dtype);
    let parts = [&displayed(&weights), key, "in f16"];
    assert_refused(merge(&golden("model"), Some(DType::F16)), "merged", &parts);
    assert_eq!(contents(place.path()), [""; 0]);

    // A tensor without an adapter that overflows when it is converted.
    let folder = Folder::of("model");
    folder.edit(|tensors| tensors.get_mut("transformer.wpe.weight").unwrap().set_last(7e4));
    lora.set("lora_alpha", Some(json!(8)));
    let parts = [&displayed(&folder.weights()), "tensor 'transformer.wpe.weight'", "not finite in f16"];
    assert_refused(merge(folder.path(), Some(DType::F16)), "converted", &parts);
    assert_eq!(contents(place.path()), [""; 0]);

    // The same two merges into a type that can hold the results.
    lora.set("lora_alpha", Some(json!(1e9)));
    merge(folder.path(), Some(DType::Bf16)).unwrap();
    assert_eq!(contents(place.path()), ["merged"]);

    // The same in memory.
    let rounded = place.path().join("rounded");
    merge_folder(&golden("model"), &[], &rounded, Some(DType::F16)).unwrap();
    let narrow = Model::<f16>::load(&rounded).unwrap();
    let huge = peft::load_lora(lora.path(), &narrow.config).unwrap();
    assert_refused(narrow.merged(&huge), "in memory", &["h.0.attn.c_attn", "in f16"]);
}

#[test]
fn writes_to_places_that_do_not_fit() {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("folder")).unwrap();
    let data = [0; 8];
    let tensors = || BTreeMap::from([("x".to_string(), TensorView::new(Dtype::F32, vec![2], &data).unwrap())]);
    for (name, says) in [("missing/x.safetensors", "No such file"), ("folder", "directory")] {
        let file = place.path().join(name);
        assert_refused(write_tensors(&file, &tensors(), None), name, &[&displayed(&file), says]);
        assert_eq!(contents(place.path()), ["folder"], "{name}");
    }
    // An existing file is replaced as a whole.
    let file = place.path().join("folder/x.safetensors");
    std::fs::write(&file, "old").unwrap();
    write_tensors(&file, &tensors(), None).unwrap();
    assert_eq!(Checkpoint::open(&file).unwrap().raw("x").unwrap(), (Dtype::F32, &[2][..], &data[..]));
    assert_eq!(contents(&place.path().join("folder")), ["x.safetensors"]);
}
