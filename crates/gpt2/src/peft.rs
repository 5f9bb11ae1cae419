//! PEFT checkpoints for a GPT-2: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A checkpoint that loads computes what PEFT computes; any other is refused with the name of the field or tensor. What
//! PEFT ignores becomes a [warning](Lora::warnings). [`fused_lora_peft`] says how every field is read.

use std::path::Path;

use fused_lora::Element;
use fused_lora::lora::MAX_RANK;
use fused_lora_peft::{AdaptedModule, Adapter, Error as FileError, Kind, Model, Module, PeftType, PrefixModel};

use crate::adapter::Adapters;
use crate::adapter::lora::{Factors, Lora, Projection};
use crate::adapter::prefix::Prefix;
use crate::checkpoint::floats;
use crate::config::Config;
use crate::error::Result;

/// Loads a LoRA or a prefix, whichever the folder holds.
///
/// # Errors
/// As [`load_lora`] and [`load_prefix`]; [`Error::Checkpoint`](crate::Error::Checkpoint) for another `peft_type`.
pub fn load<W: Element>(folder: &Path, config: &Config) -> Result<Adapters<W>> {
    let adapter = Adapter::open(folder)?;
    Ok(match adapter.peft_type() {
        PeftType::Lora => Adapters { lora: Some(lora(&adapter, config)?), ..Adapters::default() },
        PeftType::PrefixTuning => Adapters { prefix: Some(prefix(&adapter, config)?), ..Adapters::default() },
    })
}

/// Loads a LoRA for a model of shape `config`.
///
/// As in PEFT, the configuration decides which projections are adapted; `lora_alpha`, `r`, `use_rslora`, `rank_pattern`
/// and `alpha_pattern` decide the ranks and scales.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::Checkpoint`](crate::Error::Checkpoint) for a field that is wrong,
/// unsupported or at odds with the tensors, and for a tensor that is missing, unknown, or of another shape or type;
/// [`Error::NonFinite`](crate::Error::NonFinite).
pub fn load_lora<W: Element>(folder: &Path, config: &Config) -> Result<Lora<W>> {
    lora(&Adapter::open(folder)?, config)
}

/// Loads a prefix (PEFT's `PREFIX_TUNING`) for a model of shape `config`.
///
/// # Errors
/// As [`load_lora`].
pub fn load_prefix(folder: &Path, config: &Config) -> Result<Prefix> {
    prefix(&Adapter::open(folder)?, config)
}

/// The probability in the field `lora_dropout` of a LoRA's configuration, 0 if there is none, to train the LoRA further
/// with [`Training::set_dropout`](crate::train::Training::set_dropout). Inference does not use it.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::Checkpoint`](crate::Error::Checkpoint) if the field is not a number of at
/// least 0 and less than 1.
pub fn lora_dropout(folder: &Path) -> Result<f64> {
    Ok(fused_lora_peft::lora_dropout(folder)?)
}

fn lora<W: Element>(adapter: &Adapter, config: &Config) -> Result<Lora<W>> {
    // Adapters of a `GPT2LMHeadModel` prefix their modules' names with `transformer.`, those of a `GPT2Model` do not.
    let has_transformer = adapter.weights().keys().any(|key| key.starts_with("base_model.model.transformer."));
    let root = if has_transformer { "transformer." } else { "" };
    let model = modules(config, root);
    let stored = adapter.lora(&model, MAX_RANK)?;
    let mut lora = Lora::new(config);
    for module in &stored.modules {
        let Some((layer, projection)) = parse_module(&module.name, root) else {
            return Err(unsupported(module, &model).into());
        };
        let (a, b) = (floats(&module.a)?, floats(&module.b)?);
        let columns = 0..projection.shape(config).1;
        lora.layers[layer][projection as usize].push(Factors { columns, a, b, rank: module.rank, scale: module.scale });
    }
    lora.warn(stored.warnings);
    Ok(lora)
}

fn prefix(adapter: &Adapter, config: &Config) -> Result<Prefix> {
    let model = PrefixModel { layers: config.layers, width: config.d_model, heads: config.heads };
    let stored = adapter.prefix(model)?;
    let keys_values = floats::<f32>(&stored.keys_values)?.to_vec();
    Ok(Prefix::Layer { length: stored.length, keys_values, layers: config.layers })
}

/// The error for a LoRA on lm_head, which PEFT supports and this crate does not.
fn unsupported(module: &AdaptedModule, model: &Model) -> FileError {
    let expected = format!("lora_A and lora_B of {}'s projections", model.description);
    FileError::UnknownTensor { path: module.a.path.clone(), key: module.a.key.clone(), expected }
}

/// The layer and the projection that a module's name stands for.
fn parse_module(module: &str, root: &str) -> Option<(usize, Projection)> {
    let (layer, projection) = module.strip_prefix(root)?.strip_prefix("h.")?.split_once('.')?;
    Some((layer.parse().ok()?, Projection::named(projection)?))
}

/// All modules of transformers' GPT-2 in the order of `named_modules`: of a `GPT2LMHeadModel` if `root` is not empty,
/// else of a `GPT2Model`.
fn modules(config: &Config, root: &str) -> Model {
    let mut modules = vec![];
    let mut push = |name: String, kind: Kind| modules.push(Module { name, kind });
    if let Some(transformer) = root.strip_suffix('.') {
        push(transformer.into(), Kind::Other);
    }
    for (name, kind) in [("wte", Kind::Embedding), ("wpe", Kind::Embedding), ("drop", Kind::Other), ("h", Kind::Other)]
    {
        push(format!("{root}{name}"), kind);
    }
    for layer in 0..config.layers {
        for name in BLOCK_MODULES {
            let kind = Projection::named(name).map_or(Kind::Other, |projection| {
                let (d_in, d_out) = projection.shape(config);
                Kind::Linear { d_in, d_out }
            });
            let dot = if name.is_empty() { "" } else { "." };
            push(format!("{root}h.{layer}{dot}{name}"), kind);
        }
    }
    push(format!("{root}ln_f"), Kind::Other);
    let output = (!root.is_empty()).then(|| "lm_head".to_owned());
    if let Some(head) = &output {
        push(head.clone(), Kind::Linear { d_in: config.d_model, d_out: config.vocabulary });
    }
    Model {
        description: format!("a GPT-2 of {} layers", config.layers),
        adaptable: "c_attn, c_proj or c_fc of GPT-2".into(),
        modules,
        output,
        default_targets: vec!["c_attn".into()],
    }
}

/// The modules of a block, the block itself first.
const BLOCK_MODULES: [&str; 13] = [
    "",
    "ln_1",
    "attn",
    "attn.c_attn",
    "attn.c_proj",
    "attn.attn_dropout",
    "attn.resid_dropout",
    "ln_2",
    "mlp",
    "mlp.c_fc",
    "mlp.c_proj",
    "mlp.act",
    "mlp.dropout",
];
