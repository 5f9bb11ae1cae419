//! The shape of a GPT-2: `config.json`, or one of the four published sizes by name.

use std::path::Path;

use fused_lora::lora::Activation;
use serde_json::Value;

use crate::error::{Error, Result};

/// Hyperparameters, as in Hugging Face's `GPT2Config`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Attention heads; divides `d_model`.
    pub heads: usize,
    /// Width of the MLP.
    pub d_ff: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// The longest sequence, prefix included.
    pub positions: usize,
    /// ε inside LayerNorm's square root.
    pub layer_norm_epsilon: f32,
    /// The MLP's activation.
    pub activation: Activation,
    /// Whether scores are divided by √(d_model / heads).
    pub scale_attention: bool,
    /// Whether scores of layer i are divided by i + 1 as well.
    pub scale_attention_by_layer: bool,
}

impl Config {
    /// One of the published sizes: `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`.
    pub fn named(name: &str) -> Option<Self> {
        let (layers, d_model, heads) = match name {
            "gpt2" | "gpt2-small" => (12, 768, 12),
            "gpt2-medium" => (24, 1024, 16),
            "gpt2-large" => (36, 1280, 20),
            "gpt2-xl" => (48, 1600, 25),
            _ => return None,
        };
        Some(Self {
            layers,
            d_model,
            heads,
            d_ff: 4 * d_model,
            vocabulary: 50257,
            positions: 1024,
            layer_norm_epsilon: 1e-5,
            activation: Activation::GeluNew,
            scale_attention: true,
            scale_attention_by_layer: false,
        })
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`]; [`Error::Field`] for a field that is missing, out of range, or changes the
    /// mathematics in a way that is not supported.
    pub fn read(path: &Path) -> Result<Self> {
        let fields = Fields::read(path)?;
        let config = Self {
            layers: fields.size("n_layer")?,
            d_model: fields.size("n_embd")?,
            heads: fields.size("n_head")?,
            d_ff: match fields.get("n_inner") {
                None | Some(Value::Null) => fields.size("n_embd")?.saturating_mul(4),
                Some(_) => fields.size("n_inner")?,
            },
            vocabulary: fields.size("vocab_size")?,
            positions: fields.size("n_positions")?,
            layer_norm_epsilon: fields.epsilon("layer_norm_epsilon")?,
            activation: match fields.get("activation_function").map_or(Some("gelu_new"), Value::as_str) {
                Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluNew,
                Some("relu") => Activation::Relu,
                _ => return Err(fields.refuse("activation_function", "expected gelu_new, gelu_pytorch_tanh or relu")),
            },
            scale_attention: fields.flag("scale_attn_weights", true)?,
            scale_attention_by_layer: fields.flag("scale_attn_by_inverse_layer_idx", false)?,
        };
        if fields.get("model_type").is_some_and(|t| t != "gpt2") {
            return Err(fields.refuse("model_type", "expected gpt2"));
        }
        if fields.flag("add_cross_attention", false)? {
            return Err(fields.refuse("add_cross_attention", "which is not supported"));
        }
        if !fields.flag("tie_word_embeddings", true)? {
            return Err(fields.refuse("tie_word_embeddings", "and an lm_head of its own is not supported"));
        }
        if !config.d_model.is_multiple_of(config.heads) {
            return Err(fields.refuse("n_head", &format!("which does not divide n_embd = {}", config.d_model)));
        }
        Ok(config)
    }

    /// Width of a head.
    pub fn head_size(&self) -> usize {
        self.d_model / self.heads
    }

    /// What scores are multiplied by in layer `layer`.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let width = if self.scale_attention { (self.head_size() as f32).sqrt() } else { 1.0 };
        let depth = if self.scale_attention_by_layer { (layer + 1) as f32 } else { 1.0 };
        1.0 / (width * depth)
    }

    /// Parameters of the model, the tied lm_head counted once.
    pub fn parameters(&self) -> usize {
        let d = self.d_model;
        let block = 2 * 2 * d + (d * 3 * d + 3 * d) + (d * d + d) + (d * self.d_ff + self.d_ff) + (self.d_ff * d + d);
        (self.vocabulary + self.positions) * d + self.layers * block + 2 * d
    }
}

/// A JSON object whose complaints name the file and the field.
pub(crate) struct Fields {
    path: std::path::PathBuf,
    map: serde_json::Map<String, Value>,
}

impl Fields {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let map = serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.into(), source })?;
        Ok(Self { path: path.into(), map })
    }

    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    pub(crate) fn refuse(&self, field: &str, expected: &str) -> Error {
        let value = self.map.get(field).map_or("missing".into(), Value::to_string);
        Error::Field { path: self.path.clone(), field: field.into(), value, expected: expected.into() }
    }

    /// A whole number from 1 to 2³¹.
    pub(crate) fn size(&self, field: &str) -> Result<usize> {
        let value = self.get(field).and_then(Value::as_u64).filter(|v| (1..=1 << 31).contains(v));
        value
            .map(|v| v as usize)
            .ok_or_else(|| self.refuse(field, "expected a whole number of at least 1 and at most 2147483648"))
    }

    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(field, "expected true or false")),
        }
    }

    fn epsilon(&self, field: &str) -> Result<f32> {
        match self.get(field) {
            None => Ok(1e-5),
            Some(value) => value
                .as_f64()
                .map(|v| v as f32)
                .filter(|v| *v > 0.0 && *v < 1.0)
                .ok_or_else(|| self.refuse(field, "expected a number between 0 and 1")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medium_has_the_published_parameter_count() {
        assert_eq!(Config::named("gpt2-medium").unwrap().parameters(), 354_823_168);
    }

    #[test]
    fn heads_are_64_wide_in_all_published_sizes() {
        for name in ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] {
            assert_eq!(Config::named(name).unwrap().head_size(), 64, "{name}");
        }
        assert_eq!(Config::named("gpt3"), None);
    }
}
