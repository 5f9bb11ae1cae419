//! Every field of PEFT's configurations is in a table, and fields that are not in a table are not ignored silently.

use crate::common::{Folder, load, model, prefix_model};
use fused_lora_peft::{Adapter, Lora, Rule, is_false, tables};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// The fields of PEFT 0.21.2's `LoraConfig`, those of its base classes included.
const LORA_CONFIG: [&str; 42] = [
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "modules_to_save",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "megatron_config",
    "megatron_core",
    "trainable_token_indices",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "use_dora",
    "velora_config",
    "alora_invocation_tokens",
    "use_qalora",
    "qalora_group_size",
    "monteclora_config",
    "layer_replication",
    "runtime_config",
    "lora_bias",
    "target_parameters",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "ensure_weight_tying",
];

/// The fields of PEFT 0.21.2's `PrefixTuningConfig`.
const PREFIX_CONFIG: [&str; 16] = [
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "num_virtual_tokens",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
    "modules_to_save",
    "init_weights",
    "encoder_hidden_size",
    "prefix_projection",
];

/// The fields of which no value changes what an adapter computes, according to PEFT's source.
const HARMLESS: [&str; 16] = [
    "fan_in_fan_out",
    "inference_mode",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "runtime_config",
    "loftq_config",
    "corda_config",
    "lora_ga_config",
    "eva_config",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
    "encoder_hidden_size",
    "init_weights",
];

#[test]
fn the_tables_hold_every_field_of_pefts_with_a_reason() {
    for (table, fields) in [(tables::LORA, &LORA_CONFIG[..]), (tables::PREFIX, &PREFIX_CONFIG[..])] {
        let mut listed: Vec<&str> = table.iter().map(|field| field.name).collect();
        let mut fields = fields.to_vec();
        listed.sort_unstable();
        fields.sort_unstable();
        assert_eq!(listed, fields);
        for field in table {
            assert!(field.reason.len() > 5, "{}", field.name);
            assert_eq!(field.rule == Rule::Harmless, HARMLESS.contains(&field.name), "{}", field.name);
        }
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let words = ["pissa", "olora", "gaussian", "none", "all", "CAUSAL_LM", "up", "down", "LORA", "all-linear", ".*up"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2..70i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(words.to_vec()).prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("[a-z]{1,6}", inner), 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A module's name, rank, scale, A and B.
type Computed = (String, usize, f32, Vec<f32>, Vec<f32>);

fn computed(lora: &Lora) -> Vec<Computed> {
    let module = |m: &fused_lora_peft::AdaptedModule| {
        (m.name.clone(), m.rank, m.scale, m.a.to_f32().unwrap(), m.b.to_f32().unwrap())
    };
    lora.modules.iter().map(module).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_field_of_a_lora_is_ignored_silently(
        name in prop_oneof![
            4 => select(LORA_CONFIG.map(String::from).to_vec()),
            1 => "[a-z]{3,10}_[a-z]{3,10}",
        ],
        value in any_value(),
    ) {
        let folder = Folder::lora();
        let before = computed(&load(&folder).unwrap());
        folder.set(&name, value.clone());
        let Ok(lora) = load(&folder) else { return Ok(()) };
        match tables::LORA.iter().find(|field| field.name == name).map(|field| field.rule) {
            // Other tests check whether values are read correctly.
            Some(Rule::Read) => {}
            Some(Rule::Harmless) => {
                prop_assert!(HARMLESS.contains(&&name[..]));
                prop_assert_eq!(computed(&lora), before, "{}: {}", name, value);
            }
            Some(Rule::MustBeNull) => prop_assert!(value.is_null(), "{name}: {value}"),
            Some(Rule::MustBeFalse) | None => {
                prop_assert!(is_false(&value), "{name}: {value}");
                prop_assert_eq!(computed(&lora), before, "{}: {}", name, value);
            }
        }
    }

    #[test]
    fn no_field_of_a_prefix_is_ignored_silently(
        name in prop_oneof![
            4 => select(PREFIX_CONFIG.map(String::from).to_vec()),
            1 => "[a-z]{3,10}_[a-z]{3,10}",
        ],
        value in any_value(),
    ) {
        let folder = Folder::prefix();
        let load = |folder: &Folder| Adapter::open(folder.path())?.prefix(prefix_model());
        let before = load(&folder).unwrap().keys_values.to_f32().unwrap();
        folder.set(&name, value.clone());
        let Ok(prefix) = load(&folder) else { return Ok(()) };
        prop_assert_eq!(prefix.keys_values.to_f32().unwrap(), before, "{}: {}", name, value);
        let listed = tables::PREFIX.iter().any(|field| field.name == name && field.rule != Rule::MustBeFalse);
        prop_assert!(listed || is_false(&value), "{name}: {value}");
    }
}

#[test]
fn every_field_that_changes_the_mathematics_is_refused_by_name() {
    let on = [
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layer_replication", json!([[0, 2]])),
        ("target_parameters", json!(["w"])),
        ("alora_invocation_tokens", json!([1])),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({})),
        ("arrow_config", json!({})),
        ("megatron_config", json!({"x": 1})),
        ("trainable_token_indices", json!([])),
        ("kasa_config", json!({})),
        ("monteclora_config", json!({})),
        ("velora_config", json!({})),
    ];
    for field in tables::LORA.iter().filter(|field| matches!(field.rule, Rule::MustBeFalse | Rule::MustBeNull)) {
        let Some((_, value)) = on.iter().find(|(name, _)| *name == field.name) else { panic!("{}", field.name) };
        let folder = Folder::lora();
        folder.set(field.name, value.clone());
        let error = load(&folder).unwrap_err().to_string();
        let says =
            format!("adapter_config.json: field '{}' is {value}, which is not supported: {}", field.name, field.reason);
        assert!(error.ends_with(&says), "{error}");
    }
}

/// Each value has the effect that it has in `PeftModel.from_pretrained`, on a complete folder.
#[test]
fn every_initialisation() {
    let folder = Folder::lora();
    let before = computed(&load(&folder).unwrap());
    for same in [
        json!(true),
        json!(false),
        Value::Null,
        json!("gaussian"),
        json!("Gaussian"),
        json!("eva"),
        json!("orthogonal"),
        json!("mica"),
    ] {
        folder.set("init_lora_weights", same);
        assert_eq!(computed(&load(&folder).unwrap()), before);
    }
    let changing = ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga"];
    for init in changing {
        folder.set("init_lora_weights", json!(init));
        let error = load(&folder).unwrap_err().to_string();
        let says = format!("field 'init_lora_weights' is \"{init}\", which changes the base weights");
        assert!(error.contains(&says) && error.contains("convert it with PEFT's"), "{error}");
        assert!(error.len() < 600, "{error}");
    }
    for unknown in [json!("kaiming"), json!(""), json!(1), json!(["pissa"]), json!("EVA")] {
        folder.set("init_lora_weights", unknown.clone());
        let error = load(&folder).unwrap_err().to_string();
        assert!(error.contains("expected true, false, gaussian, eva, orthogonal or mica"), "{unknown}: {error}");
    }
}

#[test]
fn ranks_and_scales_of_individual_modules() {
    let folder = Folder::lora();
    folder.set("use_rslora", json!(true));
    folder.set("lora_alpha", json!(6));
    folder.set("alpha_pattern", json!({r"(?<!\.)up": 1, r".*(?<=mlp)\.up": 10, "up": 3, "gone": 2}));
    let lora = load(&folder).unwrap();
    let scales: Vec<f32> = lora.modules.iter().map(|module| module.scale).collect();
    // The first key matches `up` only if no dot is before it. In `mlp.up` there is one, so the key matches nothing.
    assert_eq!(scales, [(10.0 / 2f64.sqrt()) as f32, (6.0 / 2f64.sqrt()) as f32]);
    let said = lora.warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].ends_with(r"alpha_pattern has '(?<!\.)up', 'gone', which matches no adapted module"), "{said:?}");

    folder.set("rank_pattern", json!({"up": 3}));
    let error = load(&folder).unwrap_err().to_string();
    assert!(
        error.ends_with("tensor 'base_model.model.mlp.up.lora_A.weight' has shape [2, 8], expected [3, 8]"),
        "{error}"
    );
    folder.set("rank_pattern", json!({r"\h": 3}));
    let error = load(&folder).unwrap_err().to_string();
    assert!(error.contains(r"but '\h' is not a regular expression of Python's: it has \h"), "{error}");
    assert_eq!(model().modules.len(), 4);
}
