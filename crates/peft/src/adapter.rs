//! An adapter folder, as PEFT's `save_pretrained` writes it.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::fields::Fields;

const CONFIG: &str = "adapter_config.json";

/// The kind of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeftType {
    /// `LORA`: see [`Adapter::lora`].
    Lora,
    /// `PREFIX_TUNING`: see [`Adapter::prefix`].
    PrefixTuning,
}

/// An adapter's folder: `adapter_config.json` and `adapter_model.safetensors`.
#[derive(Debug)]
pub struct Adapter {
    fields: Fields,
    weights: Checkpoint,
    peft_type: PeftType,
}

impl Adapter {
    /// Opens a folder.
    ///
    /// # Errors
    /// As [`Fields::read`] and [`Checkpoint::of_adapter`]; [`Error::Field`](crate::Error::Field) for a `peft_type` that
    /// is not supported.
    pub fn open(folder: &Path) -> Result<Self> {
        let fields = Fields::read(&folder.join(CONFIG))?;
        let peft_type = match fields.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => PeftType::Lora,
            Some("PREFIX_TUNING") => PeftType::PrefixTuning,
            _ => return Err(fields.refuse("peft_type", "expected LORA or PREFIX_TUNING")),
        };
        Ok(Self { fields, weights: Checkpoint::of_adapter(folder)?, peft_type })
    }

    /// The adapter's kind.
    pub fn peft_type(&self) -> PeftType {
        self.peft_type
    }

    /// The adapter's configuration.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The adapter's tensors, under the keys that PEFT gives them.
    pub fn weights(&self) -> &Checkpoint {
        &self.weights
    }
}

/// The probability in the field `lora_dropout` of a LoRA's configuration, for further training; 0 if there is none.
///
/// # Errors
/// As [`Fields::read`]; [`Error::Field`](crate::Error::Field) if the field is not a number of at least 0 and less than
/// 1.
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
