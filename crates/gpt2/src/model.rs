//! The frozen weights of a model, loaded from a folder or random.

use std::path::Path;

use fused_lora::Element;
use fused_lora::bottleneck::LayerNorm;
use fused_lora::lora::{LoraLinear, Segment, Weight};
use fused_lora_peft::{Error as FileError, Fields, Warning};

use crate::adapter::lora::{Lora, Projection};
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::config_fields;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::tensor::Tensor;

/// A projection, stored `[d_in, d_out]` as GPT-2's `Conv1D` is.
#[derive(Debug, Clone)]
pub struct Linear<W> {
    /// The weight, `[d_in, d_out]`.
    pub weight: Tensor<W>,
    /// The bias, `[d_out]`.
    pub bias: Tensor<W>,
    /// Input features.
    pub d_in: usize,
    /// Output features.
    pub d_out: usize,
}

impl<W: Element> Linear<W> {
    /// The layer with the LoRA segments `segments`.
    ///
    /// # Errors
    /// As [`fused_lora::MatrixRef::new`], but never for a layer that this crate made.
    pub fn layer<'a>(&'a self, segments: &'a [Segment<'a, W>]) -> Result<LoraLinear<'a, W>> {
        let weight = Weight::in_out(fused_lora::MatrixRef::new(&self.weight, self.d_in, self.d_out)?);
        Ok(LoraLinear { weight, bias: Some(&self.bias), segments })
    }

    pub(crate) fn random(random: &mut Random, d_in: usize, d_out: usize, deviation: f32) -> Result<Self> {
        let weight = random.normal(d_in * d_out, deviation)?;
        Ok(Self { weight, bias: random.normal(d_out, 0.0)?, d_in, d_out })
    }
}

/// LayerNorm's parameters, widened to `f32` once.
#[derive(Debug, Clone)]
pub struct Norm {
    /// The weight, `[d_model]`.
    pub weight: Vec<f32>,
    /// The bias, `[d_model]`.
    pub bias: Vec<f32>,
}

impl Norm {
    pub(crate) fn identity(d: usize) -> Self {
        Self { weight: vec![1.0; d], bias: vec![0.0; d] }
    }

    pub(crate) fn view(&self, epsilon: f32) -> LayerNorm<'_> {
        LayerNorm { weight: &self.weight, bias: &self.bias, epsilon }
    }
}

/// One transformer block.
#[derive(Debug, Clone)]
pub struct Layer<W> {
    /// The LayerNorm before the attention.
    pub ln_1: Norm,
    /// The LayerNorm before the MLP.
    pub ln_2: Norm,
    /// The projections c_attn, attn.c_proj, c_fc and mlp.c_proj, in the order of [`Projection`].
    pub projections: [Linear<W>; 4],
}

/// A GPT-2.
#[derive(Debug, Clone)]
pub struct Model<W> {
    /// The model's shape.
    pub config: Config,
    /// Token embedding, `[vocabulary, d_model]`.
    pub wte: Tensor<W>,
    /// The output layer, `[vocabulary, d_model]`; `None` if it is the token embedding.
    pub lm_head: Option<Tensor<W>>,
    /// Position embedding, `[positions, d_model]`.
    pub wpe: Tensor<W>,
    /// The blocks.
    pub layers: Vec<Layer<W>>,
    /// The LayerNorm after the last block.
    pub ln_f: Norm,
    pub(crate) warnings: Vec<Warning>,
}

impl<W: Element> Model<W> {
    /// Loads `config.json` and `model.safetensors`, or its shards, from `folder`. Weights stored as `W` stay in the
    /// mapped file.
    ///
    /// # Errors
    /// As [`Config::read`], [`Checkpoint::of_model`], [`Checkpoint::floats`]; [`Error::Checkpoint`] for a tensor that
    /// does not belong to the model.
    pub fn load(folder: &Path) -> Result<Self> {
        let fields = Fields::read(&folder.join("config.json"))?;
        let config = Config::from_fields(&fields)?;
        let file = Checkpoint::of_model(folder)?;
        let prefix = key_prefix(&file);
        check_keys(&file, prefix, &config)?;
        let mut warnings: Vec<Warning> = config_fields::warnings(&fields).into_iter().collect();
        let adapter = folder.join("adapter_config.json");
        if adapter.exists() {
            let message = "ignored: the folder is loaded as a model; transformers would load the adapter and the model that \
                           this file names";
            warnings.push(Warning::new(adapter, message));
        }
        let floats = |key: String, shape: &[usize]| file.floats::<W>(&format!("{prefix}{key}"), shape);
        let norm = |key: String| -> Result<Norm> {
            let wide = |what| {
                let narrow = floats(format!("{key}.{what}"), &[config.d_model])?;
                Ok::<_, Error>(narrow.iter().map(|v| v.to_f32()).collect())
            };
            Ok(Norm { weight: wide("weight")?, bias: wide("bias")? })
        };
        let layer = |i: usize| -> Result<Layer<W>> {
            let linear = |projection: Projection| -> Result<Linear<W>> {
                let (d_in, d_out) = projection.shape(&config);
                let key = format!("h.{i}.{}", projection.name());
                let weight = floats(format!("{key}.weight"), &[d_in, d_out])?;
                Ok(Linear { weight, bias: floats(format!("{key}.bias"), &[d_out])?, d_in, d_out })
            };
            let [qkv, attn_out, fc, mlp_out] = Projection::ALL;
            Ok(Layer {
                ln_1: norm(format!("h.{i}.ln_1"))?,
                ln_2: norm(format!("h.{i}.ln_2"))?,
                projections: [linear(qkv)?, linear(attn_out)?, linear(fc)?, linear(mlp_out)?],
            })
        };
        let wte = floats("wte.weight".into(), &[config.vocabulary, config.d_model])?;
        Ok(Self {
            lm_head: lm_head(&file, &fields, prefix, &config, &mut warnings)?,
            wte,
            wpe: floats("wpe.weight".into(), &[config.positions, config.d_model])?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            ln_f: norm("ln_f".into())?,
            config,
            warnings,
        })
    }

    /// Random weights, initialised like GPT-2 before training: standard deviation 0.02, divided by √(2·layers) in
    /// projections onto the residual stream; biases 0, LayerNorm weights 1.
    ///
    /// # Errors
    /// [`Error::Io`] if the memory cannot be allocated.
    pub fn random(config: &Config, seed: u64) -> Result<Self> {
        const DEVIATION: f32 = 0.02;
        let onto_residual = DEVIATION / (2.0 * config.layers as f32).sqrt();
        let mut random = Random::new(seed);
        let d = config.d_model;
        let layers = (0..config.layers).map(|_| {
            let mut linear = |projection: Projection| {
                let (d_in, d_out) = projection.shape(config);
                let deviation = match projection {
                    Projection::Qkv | Projection::Fc => DEVIATION,
                    Projection::AttnOut | Projection::MlpOut => onto_residual,
                };
                Linear::random(&mut random, d_in, d_out, deviation)
            };
            let [qkv, attn_out, fc, mlp_out] = Projection::ALL;
            Ok(Layer {
                ln_1: Norm::identity(d),
                ln_2: Norm::identity(d),
                projections: [linear(qkv)?, linear(attn_out)?, linear(fc)?, linear(mlp_out)?],
            })
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            wte: random.normal(config.vocabulary * d, DEVIATION)?,
            lm_head: None,
            wpe: random.normal(config.positions * d, DEVIATION)?,
            ln_f: Norm::identity(d),
            config: config.clone(),
            warnings: vec![],
        })
    }

    /// Warnings about the folder that the model was loaded from: what was ignored there, as transformers ignores it.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The weight of the output layer, `[vocabulary, d_model]`.
    pub fn output_weight(&self) -> &Tensor<W> {
        self.lm_head.as_ref().unwrap_or(&self.wte)
    }

    /// Number of parameters. An lm_head that is the token embedding is counted once.
    pub fn parameters(&self) -> usize {
        self.config.parameters() + self.lm_head.as_ref().map_or(0, |head| head.len())
    }

    /// The model with `lora` merged into copies of the weights that it adapts; all other weights are shared.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`]; [`Error::Layer`] if a result is not finite; [`Error::Io`] if memory cannot be
    /// allocated.
    pub fn merged(&self, lora: &Lora<W>) -> Result<Self> {
        lora.check(&self.config)?;
        let mut model = self.clone();
        for (i, layer) in model.layers.iter_mut().enumerate() {
            for projection in Projection::ALL {
                let linear = &mut layer.projections[projection as usize];
                let segments = lora.segments(i, projection)?;
                if segments.is_empty() {
                    continue;
                }
                let (d_in, d_out) = (linear.d_in, linear.d_out);
                let mut merged = Ok(Default::default());
                let weight = Tensor::filled(linear.weight.len(), |out| {
                    out.copy_from_slice(&linear.weight);
                    merged = fused_lora::MatrixMut::new(out, d_in, d_out).and_then(|mut weight| {
                        fused_lora::cpu::merge(&mut weight, fused_lora::lora::Layout::InOut, &segments)
                    });
                })
                .map_err(|source| Error::Io { path: "merged weights".into(), source })?;
                merged.map_err(|source| Error::Layer { what: format!("h.{i}.{}", projection.name()), source })?;
                linear.weight = weight;
            }
        }
        Ok(model)
    }
}

const LM_HEAD: &str = "lm_head.weight";

/// The output layer if it is not the token embedding, by the rules of transformers 5: the configuration ties the two,
/// unless the checkpoint holds both and they differ.
fn lm_head<W: Element>(
    file: &Checkpoint,
    fields: &Fields,
    prefix: &str,
    config: &Config,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Tensor<W>>> {
    let tied = fields.flag("tie_word_embeddings", true)?;
    if tied && file.shape(LM_HEAD).is_none() {
        return Ok(None);
    }
    let head = file.floats::<W>(LM_HEAD, &[config.vocabulary, config.d_model])?;
    if file.raw(LM_HEAD)? == file.raw(&format!("{prefix}wte.weight"))? {
        return Ok(None);
    }
    if tied {
        let message = "tie_word_embeddings is true, but lm_head.weight differs from wte.weight: it is used, as in \
                       transformers 5 (transformers 4 ignores it)";
        warnings.push(Warning::new(fields.path(), message));
    }
    Ok(Some(head))
}

/// The prefix of the tensors' names: `transformer.` in checkpoints that were saved from a whole `GPT2LMHeadModel`,
/// otherwise none.
pub(crate) fn key_prefix(file: &Checkpoint) -> &'static str {
    let has_transformer = file.keys().iter().any(|key| key.starts_with("transformer."));
    if has_transformer { "transformer." } else { "" }
}

/// Refuses unknown tensors by name: a tensor that is not read would change what the model computes.
fn check_keys(file: &Checkpoint, prefix: &str, config: &Config) -> Result<()> {
    for key in file.keys() {
        // A key without the prefix that the other keys have would never be read.
        let name = key.strip_prefix(prefix).unwrap_or_default();
        // The causal masks of old checkpoints, and lm_head, which is read separately.
        if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || key == LM_HEAD {
            continue;
        }
        let known = match name.strip_prefix("h.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => {
                let parameter = rest.strip_suffix(".weight").or(rest.strip_suffix(".bias"));
                layer.parse().is_ok_and(|i: usize| i < config.layers && i.to_string() == layer)
                    && parameter.is_some_and(|p| ["ln_1", "ln_2"].contains(&p) || Projection::named(p).is_some())
            }
            None => ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"].contains(&name),
        };
        if !known {
            let expected = format!("a GPT-2 of {} layers", config.layers);
            return Err(FileError::UnknownTensor { path: file.path_of(&key).into(), key, expected }.into());
        }
    }
    Ok(())
}
