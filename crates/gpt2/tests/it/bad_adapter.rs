//! A damaged or unsupported adapter, or one for another model, is an error of one sentence that names the file, the key
//! and what was expected. An adapter that PEFT reads gets the scales that PEFT gives it.

use std::path::Path;

use crate::common::{Fault, Folder, Stored, Tensors, assert_refused, bottleneck, config, displayed, golden, model};
use fused_lora_gpt2::adapter::bottleneck::Kind;
use fused_lora_gpt2::adapter::lora::{Lora, Projection};
use fused_lora_gpt2::{Adapters, Result, peft};
use half::f16;
use serde_json::{Value, json};

fn load(folder: &Folder) -> Result<Lora<f32>> {
    peft::load_lora(folder.path(), &config())
}

/// The golden folder of an adapter, and the function that loads it.
type Loader = fn(&Path) -> Result<()>;
const ADAPTERS: [(&str, Loader); 6] = [
    ("lora-all", |folder| peft::load::<f32>(folder, &config()).map(drop)),
    ("lora-attn", |folder| peft::load_lora::<f32>(folder, &config()).map(drop)),
    ("prefix", |folder| peft::load::<f32>(folder, &config()).map(drop)),
    ("adapter-houlsby", |folder| bottleneck(&folder.join("adapter.safetensors"), Kind::Houlsby).map(drop)),
    ("adapter-lin", |folder| bottleneck(&folder.join("adapter.safetensors"), Kind::Lin).map(drop)),
    ("adapter-pfeiffer", |folder| bottleneck(&folder.join("adapter.safetensors"), Kind::Pfeiffer).map(drop)),
];

#[test]
fn missing_and_damaged_files() {
    let place = tempfile::tempdir().unwrap();
    let nowhere = place.path().join("nowhere");
    for (name, load) in ADAPTERS {
        assert_refused(load(&nowhere), name, &[&displayed(&nowhere), "No such file"]);
        let mut files = vec![Folder::of(name).weights()];
        if !name.starts_with("adapter-") {
            let folder = Folder::of(name);
            std::fs::write(folder.json(), "{").unwrap();
            assert_refused(load(folder.path()), name, &[&displayed(&folder.json()), "not a JSON object"]);
            files.push(folder.json());
        }
        for file in files {
            let folder = Folder::of(name);
            let file = folder.path().join(file.file_name().unwrap());
            std::fs::remove_file(&file).unwrap();
            assert_refused(load(folder.path()), name, &[&displayed(&file), "No such file"]);
        }
        let whole = std::fs::read(Folder::of(name).weights()).unwrap();
        for len in (0..whole.len()).step_by(211).chain([whole.len() - 1]) {
            let folder = Folder::of(name);
            std::fs::write(folder.weights(), &whole[..len]).unwrap();
            let parts = [&displayed(&folder.weights()), "not a complete safetensors file"];
            assert_refused(load(folder.path()), &format!("{name}, {len} bytes"), &parts);
        }
        let folder = Folder::of(name);
        std::fs::write(folder.weights(), [whole, vec![0]].concat()).unwrap();
        assert_refused(load(folder.path()), name, &[&displayed(&folder.weights()), "not a complete safetensors file"]);
    }
}

#[test]
fn every_tensor_with_every_fault() {
    for (name, load) in ADAPTERS {
        let original = Folder::of(name).tensors();
        load(&golden(name)).unwrap();
        for key in original.keys() {
            for fault in Fault::ALL {
                let folder = Folder::of(name);
                let mut tensors = original.clone();
                fault.apply(&mut tensors, key);
                folder.write(&tensors);
                // An adapter's width is read from down.weight. If that is wrong, the error may name another tensor.
                let named = match key.strip_suffix("down.weight") {
                    Some(adapter) if fault == Fault::WrongShape || fault == Fault::Missing => adapter,
                    _ => key,
                };
                let parts = [&displayed(&folder.weights()), &format!("tensor '{named}"), fault.expected_message()];
                assert_refused(load(folder.path()), &format!("{name} {key} {fault:?}"), &parts);
            }
        }
    }
}

#[test]
fn unknown_tensors() {
    let lora = "base_model.model.transformer.";
    let strangers = [
        ("lora-attn", format!("{lora}h.0.attn.q_proj.lora_A.weight"), "expected lora_A and lora_B"),
        ("lora-attn", format!("{lora}h.2.attn.c_attn.lora_A.weight"), "expected lora_A and lora_B"),
        ("lora-attn", format!("{lora}h.+1.attn.c_attn.lora_A.weight"), "expected lora_A and lora_B"),
        ("lora-attn", format!("{lora}h.0.attn.c_attn.lora_A.default.weight"), "expected lora_A and lora_B"),
        ("lora-attn", format!("{lora}h.0.attn.c_attn.lora_B.bias"), "expected lora_A and lora_B"),
        ("lora-attn", format!("{lora}h.0.attn.c_attn.lora_magnitude_vector"), "expected lora_A and lora_B"),
        ("lora-attn", format!("{lora}wte.lora_embedding_A"), "expected lora_A and lora_B"),
        ("lora-attn", "base_model.model.lm_head.weight".into(), "expected lora_A and lora_B"),
        // The other keys start with `transformer`, so this one would never be read.
        ("lora-attn", "base_model.model.h.0.attn.c_attn.lora_A.weight".into(), "expected lora_A and lora_B"),
        ("prefix", "embedding".into(), "expected prompt_embeddings only"),
        ("adapter-houlsby", "h.2.adapter_attn.down.weight".into(), "expected Houlsby adapters of a GPT-2 of 2 layers"),
        ("adapter-houlsby", "h.0.adapter_mlp.ln.weight".into(), "expected Houlsby adapters"),
        ("adapter-lin", "h.0.adapter.ln.scale".into(), "expected Lin adapters"),
        ("adapter-pfeiffer", "h.0.adapter.down.scale".into(), "expected Pfeiffer adapters"),
        ("adapter-pfeiffer", "h.0.adapter_attn.down.weight".into(), "expected Pfeiffer adapters"),
    ];
    for (name, key, expected) in strangers {
        let folder = Folder::of(name);
        folder.edit(|tensors| drop(tensors.insert(key.clone(), Stored::f32(&[4, 64]))));
        let load = ADAPTERS.iter().find(|(n, _)| *n == name).unwrap().1;
        let says = format!("tensor '{key}' does not belong to this model, {expected}");
        assert_refused(load(folder.path()), &key, &[&displayed(&folder.weights()), &says]);
    }
}

#[test]
fn no_tensors_at_all() {
    let cases = [
        "h.0.attn.c_attn.lora_A.weight",
        "h.0.attn.c_attn.lora_A.weight",
        "prompt_embeddings",
        "h.0.adapter_attn.",
        "h.0.adapter.",
        "h.0.adapter.",
    ];
    for ((name, load), key) in ADAPTERS.into_iter().zip(cases) {
        let folder = Folder::of(name);
        folder.write(&Tensors::new());
        let parts = [&displayed(&folder.weights()), key, "is missing, expected"];
        assert_refused(load(folder.path()), name, &parts);
    }
}

/// Adapters for a model with more layers, or with wider ones.
#[test]
fn made_for_another_model() {
    for (name, load) in ADAPTERS {
        let folder = Folder::of(name);
        let tensors = folder.tensors();
        let wider = tensors.into_iter().map(|(key, t)| {
            let shape: Vec<usize> = t.shape.iter().map(|&n| if n % 64 == 0 { n / 64 * 80 } else { n }).collect();
            (key, Stored::f32(&shape))
        });
        folder.write(&wider.collect());
        assert_refused(load(folder.path()), name, &[&displayed(&folder.weights()), "has shape", "expected ["]);

        let deeper = Folder::of(name);
        if name == "prefix" {
            deeper.set("num_layers", Some(json!(3)));
            let parts = [&displayed(&deeper.json()), "field 'num_layers' is 3", "expected 2, as the model has"];
            assert_refused(load(deeper.path()), name, &parts);
            continue;
        }
        deeper.edit(|tensors| {
            let third = tensors.clone().into_iter().filter(|(key, _)| key.contains("h.1."));
            tensors.extend(third.map(|(key, t)| (key.replace("h.1.", "h.2."), t)));
        });
        let parts = [&displayed(&deeper.weights()), "h.2.", "does not belong to", "GPT-2 of 2 layers"];
        assert_refused(load(deeper.path()), name, &parts);
    }
}

#[test]
fn lora_settings() {
    let cases = [
        ("peft_type", json!("IA3"), "expected LORA"),
        ("peft_type", json!("lora"), "expected LORA"),
        ("peft_type", Value::Null, "expected LORA"),
        ("r", json!(0), "expected a whole number of at least 1"),
        ("r", json!(-4), "expected a whole number of at least 1"),
        ("r", json!("4"), "expected a whole number of at least 1"),
        ("r", json!(513), "at most 512"),
        ("lora_alpha", json!("8"), "expected a finite number"),
        ("lora_alpha", Value::Null, "expected a finite number"),
        // Finite, but infinite after the division by r in f32.
        ("lora_alpha", json!(1e40), "expected a finite number"),
        ("alpha_pattern", json!({"c_attn": 1e40}), "the value of 'c_attn' is not a finite number"),
        ("use_rslora", json!("true"), "expected true or false"),
        ("use_dora", json!(true), "not supported"),
        ("bias", json!("all"), "expected none"),
        ("bias", json!("lora_only"), "expected none"),
        ("lora_bias", json!(true), "not supported"),
        ("modules_to_save", json!(["lm_head"]), "not supported"),
        ("layer_replication", json!([[0, 2], [1, 2]]), "not supported"),
        ("trainable_token_indices", json!([3]), "not supported"),
        ("target_parameters", json!(["h.0.mlp.w"]), "not supported"),
        ("use_qalora", json!(true), "not supported"),
        ("use_something_new", json!(true), "not supported"),
        ("something_config", json!({"x": 1}), "not supported"),
        ("something_strength", json!(0.5), "not supported"),
        ("something_kind", json!("a"), "not supported"),
        ("something_kind", json!("two\nlines"), r"two\nlines"),
        ("target_modules", json!(["two\nlines"]), r"'two\nlines' matches no projection"),
        ("rank_pattern", json!({"(\n": 4}), r"'(\n' is not a regular expression"),
        ("target_modules", json!(["k_proj", "q_proj"]), "'k_proj', 'q_proj' matches no projection: expected c_attn"),
        ("rank_pattern", json!({"c_attn": "4"}), "the value of 'c_attn' is not a whole number"),
        ("rank_pattern", json!({"c_attn": -4}), "the value of 'c_attn' is not a whole number"),
        ("rank_pattern", json!({"c_attn": 0}), "expected 1 to 512"),
        ("rank_pattern", json!({"c_attn": 513}), "expected 1 to 512"),
        ("rank_pattern", json!({"c_(attn": 4}), "'c_(attn' is not a regular expression"),
        ("rank_pattern", json!(["c_attn"]), "expected an object"),
        ("alpha_pattern", json!({"c_attn": [8]}), "the value of 'c_attn' is not a finite number"),
        ("alpha_pattern", json!({"*": 8}), "'*' is not a regular expression"),
        ("alpha_pattern", json!(8), "expected an object"),
    ];
    for (field, value, expected_message) in cases {
        let folder = Folder::of("lora-attn");
        folder.set(field, Some(value.clone()));
        let case = format!("{field}: {value}");
        let says = format!("field '{field}' is ");
        assert_refused(load(&folder), &case, &[&displayed(&folder.json()), &says, expected_message]);
    }
    for field in ["peft_type", "r"] {
        let folder = Folder::of("lora-attn");
        folder.set(field, None);
        let says = format!("field '{field}' is missing, expected");
        assert_refused(load(&folder), field, &[&displayed(&folder.json()), &says]);
    }
    // A rank that contradicts the tensors is found at the first tensor.
    let folder = Folder::of("lora-attn");
    folder.set("r", Some(json!(5)));
    let key = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight";
    assert_refused(load(&folder), "r: 5", &[&displayed(&folder.weights()), key, "[4, 64], expected [5, 64]"]);
}

#[test]
fn dropout_is_read_to_continue_training() {
    let folder = Folder::of("lora-attn");
    for (value, expected) in [(Some(json!(0.1)), 0.1), (Some(json!(0)), 0.0), (Some(Value::Null), 0.0), (None, 0.0)] {
        folder.set("lora_dropout", value);
        assert_eq!(peft::lora_dropout(folder.path()).unwrap(), expected);
    }
    for value in [json!(1.0), json!(-0.1), json!("0.1"), json!(true)] {
        folder.set("lora_dropout", Some(value.clone()));
        let parts = [&displayed(&folder.json()), &format!("'lora_dropout' is {value}"), "at least 0 and less than 1"];
        assert_refused(peft::lora_dropout(folder.path()), &value.to_string(), &parts);
    }
}

#[test]
fn lora_settings_without_effect() {
    let expected = load(&Folder::of("lora-attn")).unwrap();
    let cases = [
        ("lora_dropout", json!(0.1)),
        ("task_type", json!("SEQ_CLS")),
        ("task_type", Value::Null),
        ("inference_mode", json!(false)),
        ("init_lora_weights", json!("gaussian")),
        ("base_model_name_or_path", json!("openai-community/gpt2")),
        ("peft_version", json!("0.3.0")),
        ("fan_in_fan_out", json!(false)),
        ("layers_to_transform", json!([0, 1])),
        ("target_modules", json!("all-linear")),
        ("use_something_new", json!(false)),
        ("something_config", json!({})),
        ("something_new", Value::Null),
    ];
    for (field, value) in cases {
        let folder = Folder::of("lora-attn");
        folder.set(field, Some(value));
        let lora = load(&folder).unwrap_or_else(|e| panic!("{field}: {e}"));
        let all =
            |lora: &Lora<f32>| lora.layers.iter().map(|l| (l[0][0].scale, l[0][0].a.to_vec())).collect::<Vec<_>>();
        assert_eq!(all(&lora), all(&expected), "{field}");
    }
}

#[test]
fn prefix_settings() {
    let cases = [
        ("num_layers", json!(12), "expected 2, as the model has"),
        ("token_dim", json!(768), "expected 64, as the model has"),
        ("num_attention_heads", json!(12), "expected 4, as the model has"),
        ("num_layers", Value::Null, "expected a whole number"),
        ("num_virtual_tokens", json!(0), "expected a whole number"),
        ("num_virtual_tokens", json!("4"), "expected a whole number"),
        ("prefix_projection", json!("yes"), "expected true or false"),
        ("modules_to_save", json!(["score"]), "not supported"),
        ("something_new", json!(true), "not supported"),
        ("peft_type", json!("PROMPT_TUNING"), "expected"),
        ("peft_type", json!(7), "expected"),
    ];
    for (field, value, expected_message) in cases {
        let folder = Folder::of("prefix");
        folder.set(field, Some(value.clone()));
        let says = format!("field '{field}' is {value}, ");
        let parts = [&displayed(&folder.json()), says.as_str(), expected_message];
        assert_refused(peft::load_prefix(folder.path(), &config()), &says, &parts);
        assert_refused(peft::load::<f32>(folder.path(), &config()), &says, &parts);
    }
    for length in [3, 5, 1u64 << 31] {
        let folder = Folder::of("prefix");
        folder.set("num_virtual_tokens", Some(json!(length)));
        let says = format!("'prompt_embeddings' has shape [4, 256], expected [{length}, 256]");
        let result = peft::load_prefix(folder.path(), &config());
        assert_refused(result, "length", &[&displayed(&folder.weights()), &says]);
    }
    // Each loader accepts only its own kind of adapter.
    let parts = [&displayed(&golden("lora-attn/adapter_config.json")), "peft_type", "LORA", "expected PREFIX_TUNING"];
    assert_refused(peft::load_prefix(&golden("lora-attn"), &config()), "LoRA as a prefix", &parts);
    let parts = [&displayed(&golden("prefix/adapter_config.json")), "peft_type", "PREFIX_TUNING", "expected LORA"];
    assert_refused(peft::load_lora::<f32>(&golden("prefix"), &config()), "prefix as a LoRA", &parts);
}

#[test]
fn bottleneck_adapters_of_another_kind() {
    let cases = [
        ("houlsby", Kind::Lin, "h.0.adapter."),
        ("houlsby", Kind::Pfeiffer, "h.0.adapter."),
        ("lin", Kind::Pfeiffer, "h.0.adapter.ln."),
        ("lin", Kind::Houlsby, "h.0.adapter_attn."),
        ("pfeiffer", Kind::Houlsby, "h.0.adapter_attn."),
        ("pfeiffer", Kind::Lin, "h.0.adapter.ln."),
    ];
    for (name, kind, key) in cases {
        let file = golden(&format!("adapter-{name}/adapter.safetensors"));
        let parts = [&displayed(&file), &format!("tensor '{key}"), "expected"];
        assert_refused(bottleneck(&file, kind), &format!("{name} as {kind:?}"), &parts);
    }
}

/// An adapter's values must be finite in the type of the model.
#[test]
fn adapter_values_too_large_for_the_type_asked_for() {
    let folder = Folder::of("lora-attn");
    let key = "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight";
    folder.edit(|tensors| tensors.get_mut(key).unwrap().set_last(1e5));
    load(&folder).unwrap();
    let narrow = peft::load_lora::<f16>(folder.path(), &config());
    assert_refused(narrow, "f16", &[&displayed(&folder.weights()), key, "not finite in f16"]);
}

/// Gives the tensors these ranks, and returns `(rank, scale)` of each projection of each layer.
fn scales(ranks: [[usize; 4]; 2], fields: &[(&str, Value)], module_prefix: &str) -> Vec<Vec<(usize, f32)>> {
    let folder = Folder::of("lora-all");
    for (field, value) in [("rank_pattern", json!({})), ("alpha_pattern", json!({})), ("use_rslora", json!(false))] {
        folder.set(field, Some(value));
    }
    fields.iter().for_each(|(field, value)| folder.set(field, Some(value.clone())));
    let mut tensors = Tensors::new();
    for (i, ranks) in ranks.iter().enumerate() {
        for (projection, &rank) in Projection::ALL.into_iter().zip(ranks) {
            let (d_in, d_out) = projection.shape(&config());
            let module = format!("base_model.model.{module_prefix}h.{i}.{}", projection.name());
            tensors.insert(format!("{module}.lora_A.weight"), Stored::f32(&[rank, d_in]));
            tensors.insert(format!("{module}.lora_B.weight"), Stored::f32(&[d_out, rank]));
        }
    }
    folder.write(&tensors);
    let lora = load(&folder).unwrap();
    lora.check(&config()).unwrap();
    let adapters = Adapters { lora: Some(lora.clone()), ..Adapters::default() };
    fused_lora_gpt2::Forward::new().logits(&model(), &adapters, &[&[1, 2]]).unwrap();
    lora.layers.iter().map(|layer| layer.iter().map(|f| (f[0].rank, f[0].scale)).collect()).collect()
}

/// The folder has r = 4 and lora_alpha = 8; patterns override them.
#[test]
fn ranks_and_scales_agree_with_peft() {
    let plain = [[4; 4]; 2];
    for module_prefix in ["transformer.", ""] {
        let scales = |ranks, fields: &[(&str, Value)]| scales(ranks, fields, module_prefix);
        assert_eq!(scales(plain, &[]), [[(4, 2.0); 4]; 2]);
        assert_eq!(scales(plain, &[("use_rslora", json!(true))]), [[(4, 4.0); 4]; 2]);
        assert_eq!(scales([[7; 4]; 2], &[("r", json!(7))])[0][0], (7, (8.0f64 / 7.0) as f32));
        let stabilized = scales([[7; 4]; 2], &[("r", json!(7)), ("use_rslora", json!(true))]);
        assert_eq!(stabilized[1][3], (7, (8.0 / 7f64.sqrt()) as f32));

        // The first matching pattern in the file counts, not the longest, the last, or the first in alphabetical order.
        let wide_first = ("rank_pattern", json!({"c_attn": 2, "h.0.attn.c_attn": 1}));
        let ranks = [[2, 4, 4, 4]; 2];
        assert_eq!(scales(ranks, &[wide_first]), [[(2, 4.0), (4, 2.0), (4, 2.0), (4, 2.0)]; 2]);
        let narrow_first = ("rank_pattern", json!({"h.0.attn.c_attn": 1, "c_attn": 2}));
        let got = scales([[1, 4, 4, 4], [2, 4, 4, 4]], &[narrow_first]);
        assert_eq!((got[0][0], got[1][0]), ((1, 8.0), (2, 4.0)));

        // Patterns are regular expressions for the whole name, or for what follows a dot: `fc` does not match `c_fc`.
        let alphas = json!({"fc": 1, "attn": 1, r"h\.1\..*": 16, "mlp.c_proj": 24, "c_(proj|fc)": 2.5});
        let expected = [[(4, 2.0), (4, 0.625), (4, 0.625), (4, 6.0)], [(4, 4.0); 4]];
        assert_eq!(scales(plain, &[("alpha_pattern", alphas)]), expected);

        // Both patterns and rsLoRA together.
        let fields =
            [("rank_pattern", json!({"c_fc": 9})), ("alpha_pattern", json!({"c_fc": 6})), ("use_rslora", json!(true))];
        let expected = [[(4, 4.0), (4, 4.0), (9, 2.0), (4, 4.0)]; 2];
        assert_eq!(scales([[4, 4, 9, 4]; 2], &fields), expected);
    }
}
