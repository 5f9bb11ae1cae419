//! Prefixes (PEFT's `PREFIX_TUNING`): keys and values that every layer attends to before those of the tokens.

use serde_json::Value;

use crate::adapter::Adapter;
use crate::checkpoint::Tensor;
use crate::error::{Error, Result};
use crate::{lora, tables};

/// The shape of the model that a prefix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixModel {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of a token's keys, all heads together.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
}

/// A prefix.
#[derive(Debug, Clone)]
pub struct Prefix {
    /// Number of prefix tokens.
    pub length: usize,
    /// `[length, 2·layers·width]`: a token's slice 2i holds layer i's keys, 2i + 1 its values.
    pub keys_values: Tensor,
}

impl Adapter {
    /// The prefix, for a model of this shape.
    ///
    /// PEFT saves the output of the prefix projection and loads it without the projection, so `prefix_projection` may
    /// have either value.
    ///
    /// # Errors
    /// As [`Adapter::lora`].
    pub fn prefix(&self, model: PrefixModel) -> Result<Prefix> {
        const KEY: &str = "prompt_embeddings";
        let fields = self.fields();
        if fields.get("peft_type").and_then(Value::as_str) != Some("PREFIX_TUNING") {
            return Err(fields.refuse("peft_type", "expected PREFIX_TUNING"));
        }
        fields.check(tables::PREFIX)?;
        for (field, expected) in
            [("num_layers", model.layers), ("token_dim", model.width), ("num_attention_heads", model.heads)]
        {
            if fields.size(field)? != expected {
                return Err(fields.refuse(field, &format!("expected {expected}, as the model has")));
            }
        }
        // Without a task type, PEFT runs the model without the prefix.
        if fields.get("task_type").is_none_or(Value::is_null) {
            return Err(
                fields.refuse("task_type", "but PEFT applies a prefix only with a task type: expected CAUSAL_LM")
            );
        }
        lora::check_task(fields, &["CAUSAL_LM", "FEATURE_EXTRACTION"])?;
        if fields.get("num_transformer_submodules").is_some_and(|v| !v.is_null() && v.as_u64() != Some(1)) {
            return Err(fields.refuse("num_transformer_submodules", "expected 1"));
        }
        fields.flag("prefix_projection", false)?;
        let length = fields.size("num_virtual_tokens")?;
        let keys_values = self.weights().floats(KEY, &[length, 2 * model.layers * model.width])?;
        if let Some(key) = self.weights().keys().find(|key| *key != KEY) {
            let expected = "prompt_embeddings only".into();
            return Err(Error::UnknownTensor { path: self.weights().path().into(), key: key.into(), expected });
        }
        Ok(Prefix { length, keys_values })
    }
}
