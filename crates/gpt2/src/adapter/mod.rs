//! The adapters of a frozen GPT-2.

pub mod bottleneck;
pub mod lora;
pub mod prefix;

use fused_lora::Element;

use crate::config::Config;
use crate::error::{Error, Result};
use bottleneck::Bottleneck;
use lora::Lora;
use prefix::Prefix;

/// How an unmerged LoRA is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoraMode {
    /// Fused into the base product's own pass.
    #[default]
    Fused,
    /// As in PEFT, by separate layers: base product, x·Aᵀ, T·Bᵀ, scaling, addition.
    Sequential,
    /// As in loralib's `MergedLinear`: every call computes the full matrix ΔW.
    DenseDelta,
}

/// The adapters active in a forward pass; by default none.
#[derive(Debug, Clone)]
pub struct Adapters<W> {
    /// Low-rank updates.
    pub lora: Option<Lora<W>>,
    /// How the LoRA is run.
    pub mode: LoraMode,
    /// Bottleneck adapters.
    pub bottleneck: Option<Bottleneck<W>>,
    /// Trainable tokens or keys and values.
    pub prefix: Option<Prefix>,
}

impl<W> Default for Adapters<W> {
    fn default() -> Self {
        Self { lora: None, mode: LoraMode::Fused, bottleneck: None, prefix: None }
    }
}

impl<W: Element> Adapters<W> {
    /// Trainable parameters, |Θ|.
    pub fn parameters(&self) -> usize {
        self.lora.as_ref().map_or(0, Lora::parameters)
            + self.bottleneck.as_ref().map_or(0, Bottleneck::parameters)
            + self.prefix.as_ref().map_or(0, Prefix::parameters)
    }

    /// Adds another set of adapters. LoRAs add up.
    ///
    /// # Errors
    /// [`Error::UnsupportedAdapters`] for a second prefix or a second set of bottleneck adapters,
    /// [`Error::ModelMismatch`] for a LoRA of another shape. After an error nothing was added.
    pub fn combine(&mut self, other: Self) -> Result<()> {
        let twice = |what: &str| Error::UnsupportedAdapters(format!("two {what} cannot be active together"));
        if other.bottleneck.is_some() && self.bottleneck.is_some() {
            return Err(twice("sets of bottleneck adapters"));
        }
        if other.prefix.is_some() && self.prefix.is_some() {
            return Err(twice("prefixes"));
        }
        match (&mut self.lora, other.lora) {
            (Some(mine), Some(theirs)) => mine.add(theirs)?,
            (mine @ None, theirs) => *mine = theirs,
            (Some(_), None) => {}
        }
        self.bottleneck = self.bottleneck.take().or(other.bottleneck);
        self.prefix = self.prefix.take().or(other.prefix);
        Ok(())
    }

    /// Checks that every adapter was made for a model of this shape.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`].
    pub fn check(&self, config: &Config) -> Result<()> {
        self.lora.as_ref().map_or(Ok(()), |a| a.check(config))?;
        self.bottleneck.as_ref().map_or(Ok(()), |a| a.check(config))?;
        self.prefix.as_ref().map_or(Ok(()), |a| a.check(config))
    }
}

/// Checks that a dimension agrees. `subject` says what was given, with its verb: `the LoRA has`.
pub(crate) fn expect_same(subject: &'static str, what: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::ModelMismatch { subject, what, expected, actual }) }
}
