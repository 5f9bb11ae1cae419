//! Every field of GPT-2's config.json is read, refused, or in a table that says why it can be ignored; others give a
//! warning.

use crate::common::{Folder, assert_refused, config};
use fused_lora_gpt2::Model;
use fused_lora_gpt2::config_fields::FIELDS;
use fused_lora_peft::{Rule, is_false};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..200i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_field_is_ignored_silently(
        name in prop_oneof![
            select(FIELDS.iter().map(|field| field.name.to_string()).collect::<Vec<_>>()),
            "[a-z]{3,10}_[a-z]{3,10}",
        ],
        value in any_value(),
    ) {
        let folder = Folder::of("model");
        folder.set(&name, Some(value.clone()));
        let Ok(model) = Model::<f32>::load(folder.path()) else { return Ok(()) };
        let said = model.warnings().iter().any(|warning| warning.to_string().contains(&format!("'{name}'")));
        match FIELDS.iter().find(|field| field.name == name) {
            None => prop_assert!(said || is_false(&value), "{name}: {value}"),
            Some(field) => {
                prop_assert!(field.reason.len() > 10 || field.rule == Rule::Read, "{name}");
                prop_assert!(field.rule != Rule::MustBeFalse || is_false(&value), "{name}: {value}");
                if field.rule == Rule::Harmless {
                    prop_assert_eq!(model.config, config(), "{}: {}", name, value);
                }
            }
        }
    }
}

#[test]
fn fields_that_change_the_mathematics() {
    let cases = [
        ("quantization_config", json!({"quant_method": "bitsandbytes"}), "the weights are quantized"),
        ("pruned_heads", json!({"0": [1]}), "removes these heads"),
        ("auto_map", json!({"AutoModel": "x.Y"}), "its own code"),
        ("is_causal", json!(false), "attention to later tokens"),
        ("is_causal", Value::Null, "expected true or false"),
        ("scale_attn_weights", Value::Null, "expected true or false"),
        ("hidden_size", json!(128), "but n_embd, of which it is an alias, is 64"),
        ("num_hidden_layers", json!(1), "but n_layer, of which it is an alias, is 2"),
    ];
    for (field, value, says) in cases {
        let folder = Folder::of("model");
        folder.set(field, Some(value));
        assert_refused(Model::<f32>::load(folder.path()), field, &[&format!("field '{field}'"), says]);
    }
    let folder = Folder::of("model");
    folder.set("rotary_dim", Some(json!(64)));
    let said = Model::<f32>::load(folder.path()).unwrap().warnings()[0].to_string();
    assert!(said.ends_with("config.json: 'rotary_dim' set, which GPT-2 does not read"), "{said}");
}
