//! The shape of a GPT-2: `config.json`, or one of the four published sizes by name.

use std::path::Path;

use fused_lora::lora::Activation;
use fused_lora_peft::Fields;
use serde_json::Value;

use crate::config_fields;
use crate::error::Result;

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
    /// [`Error::Io`](crate::Error::Io); [`Error::Checkpoint`](crate::Error::Checkpoint) for a file that is not a JSON
    /// object, and for a field that is missing, out of range, or asks for unsupported mathematics.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_fields(&Fields::read(path)?)
    }

    pub(crate) fn from_fields(fields: &Fields) -> Result<Self> {
        config_fields::check(fields)?;
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
            layer_norm_epsilon: epsilon(fields, "layer_norm_epsilon")?,
            activation: match fields.get("activation_function").map_or(Some("gelu_new"), Value::as_str) {
                Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluNew,
                Some("relu") => Activation::Relu,
                _ => {
                    let expected = "expected gelu_new, gelu_pytorch_tanh or relu";
                    return Err(fields.refuse("activation_function", expected).into());
                }
            },
            scale_attention: fields.flag("scale_attn_weights", true)?,
            scale_attention_by_layer: fields.flag("scale_attn_by_inverse_layer_idx", false)?,
        };
        if !config.d_model.is_multiple_of(config.heads) {
            let what = format!("which does not divide n_embd = {}", config.d_model);
            return Err(fields.refuse("n_head", &what).into());
        }
        Ok(config)
    }

    /// Width of a head.
    pub fn head_size(&self) -> usize {
        self.d_model / self.heads
    }

    /// The factor of attention scores in layer `layer`.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let width = if self.scale_attention { (self.head_size() as f32).sqrt() } else { 1.0 };
        let depth = if self.scale_attention_by_layer { (layer + 1) as f32 } else { 1.0 };
        1.0 / (width * depth)
    }

    /// Number of parameters of the model, with the tied lm_head counted once.
    pub fn parameters(&self) -> usize {
        let d = self.d_model;
        let block = 2 * 2 * d + (d * 3 * d + 3 * d) + (d * d + d) + (d * self.d_ff + self.d_ff) + (self.d_ff * d + d);
        (self.vocabulary + self.positions) * d + self.layers * block + 2 * d
    }
}

fn epsilon(fields: &Fields, field: &str) -> Result<f32> {
    match fields.get(field) {
        None => Ok(1e-5),
        Some(value) => value
            .as_f64()
            .map(|v| v as f32)
            .filter(|v| *v > 0.0 && *v < 1.0)
            .ok_or_else(|| fields.refuse(field, "expected a number between 0 and 1").into()),
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
