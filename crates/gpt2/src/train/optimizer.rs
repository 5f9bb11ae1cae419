//! AdamW on a LoRA: `f32` master copies and moments of every factor, for every storage type of the factors.

use fused_lora::optim::{AdamW, Factor, Parameter, Step};
use fused_lora::{Element, cpu};

use super::gradients::Gradients;
use super::trainable;
use crate::adapter::Adapters;
use crate::error::{Error, Result};

/// AdamW with its state.
#[derive(Debug, Clone)]
pub struct Optimizer {
    /// The hyperparameters; a learning-rate schedule may change them between steps.
    pub config: AdamW,
    steps: u64,
    /// The master copies and the moments, each of the gradients' shapes.
    values: Gradients,
    first_moments: Gradients,
    second_moments: Gradients,
}

impl Optimizer {
    /// An optimizer for this LoRA: the master copies are its factors, and all moments are zero.
    ///
    /// # Errors
    /// [`Error::NotTrainable`], [`Error::NothingToTrain`]; [`Error::Layer`] for a hyperparameter out of range.
    pub fn new<W: Element>(adapters: &Adapters<W>, config: AdamW) -> Result<Self> {
        config.validate().map_err(refused)?;
        let lora = trainable(adapters)?;
        let zeros = Gradients::zeros(lora);
        let mut values = zeros.clone();
        for (value, factors) in values.iter_mut().zip(lora.layers.iter().flatten().flatten()) {
            W::widen(&factors.a, &mut value.a);
            W::widen(&factors.b, &mut value.b);
        }
        Ok(Self { config, steps: 0, values, first_moments: zeros.clone(), second_moments: zeros })
    }

    /// One step on every A and B. The step updates the master copies and writes them to the LoRA, rounded to its type.
    /// Factors in `adapters` are overwritten, so it should be the LoRA that the optimizer was made for. Shared tensors
    /// are copied first.
    ///
    /// A skipped step (see [`Step::skipped`]) changes nothing.
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`] or [`Error::ModelMismatch`] if the LoRA or the gradients have other shapes;
    /// [`Error::NotTrainable`], [`Error::NothingToTrain`]; [`Error::Layer`] for a hyperparameter out of range;
    /// [`Error::Io`] if memory cannot be allocated.
    pub fn step<W: Element>(&mut self, adapters: &mut Adapters<W>, gradients: &Gradients) -> Result<Step> {
        trainable(adapters)?;
        let lora = adapters.lora.as_mut().ok_or(Error::NothingToTrain)?;
        self.values.check(lora)?;
        gradients.check(lora)?;
        let mut parameters = vec![];
        let state = self.values.iter_mut().zip(self.first_moments.iter_mut()).zip(self.second_moments.iter_mut());
        let factors = lora.layers.iter_mut().flatten().flatten();
        for ((factors, gradient), ((value, first), second)) in factors.zip(gradients.iter()).zip(state) {
            let io = |source| Error::Io { path: "trained factors".into(), source };
            parameters.push(Parameter {
                factor: Factor::A,
                gradient: &gradient.a,
                value: &mut value.a,
                first_moment: &mut first.a,
                second_moment: &mut second.a,
                stored: Some(factors.a.make_mut().map_err(io)?),
            });
            parameters.push(Parameter {
                factor: Factor::B,
                gradient: &gradient.b,
                value: &mut value.b,
                first_moment: &mut first.b,
                second_moment: &mut second.b,
                stored: Some(factors.b.make_mut().map_err(io)?),
            });
        }
        let step = cpu::adamw(&self.config, self.steps + 1, &mut parameters).map_err(refused)?;
        self.steps += u64::from(step.skipped.is_none());
        Ok(step)
    }

    /// Steps taken, skipped ones not counted.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

fn refused(source: fused_lora::Error) -> Error {
    Error::Layer { what: "AdamW".into(), source }
}
