//! PEFT checkpoints: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A field that changes the mathematics and is not supported here is refused by name, and so is a field that is not
//! known here and is set: a checkpoint computes what PEFT computes, or it does not load.

use std::collections::HashSet;
use std::path::Path;

use fused_lora::Element;
use regex::Regex;
use serde_json::Value;

use crate::adapter::Adapters;
use crate::adapter::lora::{Factors, Lora, Projection, check_rank};
use crate::adapter::prefix::Prefix;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Fields};
use crate::error::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Loads a LoRA or a prefix, whichever the folder holds.
///
/// # Errors
/// As [`load_lora`] and [`load_prefix`]; [`Error::Field`] for another `peft_type`.
pub fn load<W: Element>(folder: &Path, config: &Config) -> Result<Adapters<W>> {
    let fields = Fields::read(&folder.join(CONFIG))?;
    match fields.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => Ok(Adapters { lora: Some(load_lora(folder, config)?), ..Adapters::default() }),
        Some("PREFIX_TUNING") => Ok(Adapters { prefix: Some(load_prefix(folder, config)?), ..Adapters::default() }),
        _ => Err(fields.refuse("peft_type", "expected LORA or PREFIX_TUNING")),
    }
}

/// Fields of a LoRA configuration that are read here, or that do not change what the adapter computes at inference.
const LORA_FIELDS: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "bias",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "lora_dropout",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
    "megatron_config",
    "runtime_config",
    "ensure_weight_tying",
    "qalora_group_size",
    "kasa_config",
];

/// Loads a LoRA for a model of shape `config`.
///
/// Which projections are adapted is read from the tensors; the scale from `lora_alpha`, `r`, `use_rslora`,
/// `rank_pattern` and `alpha_pattern`.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`]; [`Error::Field`] for a field that is wrong, unsupported or at odds with the tensors;
/// [`Error::MissingTensor`], [`Error::UnknownTensor`], [`Error::Shape`], [`Error::Dtype`], [`Error::NonFinite`].
pub fn load_lora<W: Element>(folder: &Path, config: &Config) -> Result<Lora<W>> {
    let fields = Fields::read(&folder.join(CONFIG))?;
    if fields.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(fields.refuse("peft_type", "expected LORA"));
    }
    refuse_unknown(&fields, LORA_FIELDS)?;
    if fields.get("bias").is_some_and(|v| v != "none") {
        return Err(fields.refuse("bias", "expected none: trained biases are not supported"));
    }
    let scaling = Scaling::read(&fields)?;
    let file = Checkpoint::open(&folder.join(WEIGHTS))?;
    let module_prefix = module_prefix(&file);
    let mut lora = Lora::new(config);
    let mut read = HashSet::new();
    for (i, layer) in lora.layers.iter_mut().enumerate() {
        for projection in Projection::ALL {
            let module = format!("{module_prefix}h.{i}.{}", projection.name());
            let key = |which: &str| format!("base_model.model.{module}.{which}.weight");
            let (key_a, key_b) = (key("lora_A"), key("lora_B"));
            if file.shape(&key_a).is_none() && file.shape(&key_b).is_none() {
                continue;
            }
            let (d_in, d_out) = projection.shape(config);
            let (rank, scale) = scaling.of(&module, &fields)?;
            let a = file.floats(&key_a, &[rank, d_in])?;
            let b = file.floats(&key_b, &[d_out, rank])?;
            layer[projection as usize].push(Factors { columns: 0..d_out, a, b, rank, scale });
            read.extend([key_a, key_b]);
        }
    }
    let expected = || format!("lora_A and lora_B of a GPT-2 of {} layers", config.layers);
    if let Some(key) = file.keys().into_iter().find(|key| !read.contains(key)) {
        return Err(Error::UnknownTensor { path: file.path().into(), key, expected: expected() });
    }
    if read.is_empty() {
        let key = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight".into();
        return Err(Error::MissingTensor { path: file.path().into(), key, expected: expected() });
    }
    check_targets(&fields, &lora)?;
    Ok(lora)
}

/// The probability that `lora_dropout` of a LoRA's configuration says, 0 without one: to train the LoRA further with
/// [`Training::set_dropout`](crate::train::Training::set_dropout). At inference it means nothing, and loading does not read it.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`]; [`Error::Field`] if it is no number of at least 0 and less than 1.
pub fn lora_dropout(folder: &Path) -> Result<f64> {
    let fields = Fields::read(&folder.join(CONFIG))?;
    match fields.get("lora_dropout") {
        None | Some(Value::Null) => Ok(0.0),
        Some(value) => value
            .as_f64()
            .filter(|p| (0.0..1.0).contains(p))
            .ok_or_else(|| fields.refuse("lora_dropout", "expected a number of at least 0 and less than 1")),
    }
}

/// Adapters of a `GPT2LMHeadModel` name their modules from its `transformer` on, those of a `GPT2Model` do not.
fn module_prefix(file: &Checkpoint) -> &'static str {
    let has_transformer = file.keys().iter().any(|key| key.starts_with("base_model.model.transformer."));
    if has_transformer { "transformer." } else { "" }
}

/// A target module that nothing was adapted for is a checkpoint for another model.
fn check_targets<W: Element>(fields: &Fields, lora: &Lora<W>) -> Result<()> {
    let Some(Value::Array(targets)) = fields.get("target_modules") else { return Ok(()) };
    for target in targets.iter().filter_map(Value::as_str) {
        let adapted = Projection::ALL.into_iter().any(|projection| {
            let name = projection.name();
            lora.layers.iter().enumerate().any(|(i, layer)| {
                let full = format!("transformer.h.{i}.{name}");
                !layer[projection as usize].is_empty() && (full == target || full.ends_with(&format!(".{target}")))
            })
        });
        if !adapted {
            let expected = format!("but '{target}' adapts no projection: expected c_attn, c_proj or c_fc of GPT-2");
            return Err(fields.refuse("target_modules", &expected));
        }
    }
    Ok(())
}

/// Anything unknown that is switched on may change the mathematics.
fn refuse_unknown(fields: &Fields, known: &[&str]) -> Result<()> {
    for (field, value) in fields.iter() {
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::Bool(true) => false,
        };
        if !off && !known.contains(&field.as_str()) {
            return Err(fields.refuse(field, "which is not supported"));
        }
    }
    Ok(())
}

/// PEFT's rules for ranks and scales.
struct Scaling {
    rank: usize,
    alpha: f64,
    rank_stabilized: bool,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Scaling {
    fn read(fields: &Fields) -> Result<Self> {
        // Scales are kept as f32, and dividing by a rank makes none of them larger.
        let alpha = |value: &Value| value.as_f64().filter(|v| (*v as f32).is_finite());
        Ok(Self {
            rank: match fields.size("r")? {
                rank if rank > fused_lora::lora::MAX_RANK => {
                    return Err(fields.refuse("r", "expected a rank of at most 512"));
                }
                rank => rank,
            },
            alpha: fields
                .get("lora_alpha")
                .map_or(Some(8.0), alpha)
                .ok_or_else(|| fields.refuse("lora_alpha", "expected a finite number"))?,
            rank_stabilized: fields.flag("use_rslora", false)?,
            ranks: patterns(fields, "rank_pattern", "whole", |v| v.as_u64().map(|v| v as usize))?,
            alphas: patterns(fields, "alpha_pattern", "finite", alpha)?,
        })
    }

    /// Rank and scale of one module; the first pattern that matches wins.
    fn of(&self, module: &str, fields: &Fields) -> Result<(usize, f32)> {
        let rank = self.ranks.iter().find(|(p, _)| p.is_match(module)).map_or(self.rank, |p| p.1);
        check_rank(rank).map_err(|e| fields.refuse("rank_pattern", &e.to_string()))?;
        let alpha = self.alphas.iter().find(|(p, _)| p.is_match(module)).map_or(self.alpha, |p| p.1);
        let divisor = if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / divisor) as f32))
    }
}

/// A pattern matches a module whose name ends with it, behind a dot or as a whole.
fn patterns<T>(
    fields: &Fields,
    field: &str,
    kind: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Regex, T)>> {
    let map = match fields.get(field) {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(fields.refuse(field, "expected an object")),
    };
    map.iter()
        .map(|(pattern, value)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$"));
            let regex =
                regex.map_err(|_| fields.refuse(field, &format!("but '{pattern}' is not a regular expression")))?;
            let value = read(value)
                .ok_or_else(|| fields.refuse(field, &format!("but '{pattern}' maps to no {kind} number")))?;
            Ok((regex, value))
        })
        .collect()
}

/// Fields of a prefix configuration that are read here, or that do not change what the prefix computes.
const PREFIX_FIELDS: &[&str] = &[
    "peft_type",
    "num_virtual_tokens",
    "token_dim",
    "num_layers",
    "num_attention_heads",
    "num_transformer_submodules",
    "encoder_hidden_size",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "init_weights",
];

/// Loads a prefix (PEFT's `PREFIX_TUNING`) for a model of shape `config`.
///
/// # Errors
/// As [`load_lora`].
pub fn load_prefix(folder: &Path, config: &Config) -> Result<Prefix> {
    let fields = Fields::read(&folder.join(CONFIG))?;
    if fields.get("peft_type").and_then(Value::as_str) != Some("PREFIX_TUNING") {
        return Err(fields.refuse("peft_type", "expected PREFIX_TUNING"));
    }
    refuse_unknown(&fields, PREFIX_FIELDS)?;
    for (field, expected) in
        [("num_layers", config.layers), ("token_dim", config.d_model), ("num_attention_heads", config.heads)]
    {
        if fields.size(field)? != expected {
            return Err(fields.refuse(field, &format!("the model has {expected}")));
        }
    }
    let length = fields.size("num_virtual_tokens")?;
    let file = Checkpoint::open(&folder.join(WEIGHTS))?;
    let keys_values = file.floats::<f32>("prompt_embeddings", &[length, 2 * config.layers * config.d_model])?.to_vec();
    if let Some(key) = file.keys().into_iter().find(|key| key != "prompt_embeddings") {
        return Err(Error::UnknownTensor { path: file.path().into(), key, expected: "prompt_embeddings only".into() });
    }
    Ok(Prefix::Layer { length, keys_values, layers: config.layers })
}
