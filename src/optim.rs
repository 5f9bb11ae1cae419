//! The definition of an AdamW step on the factors of many adapters. This module checks the operands; a backend computes
//! the step.
//!
//! With g a parameter's clipped gradient, lr the learning rate of its factor and t the step, counted from 1:
//!
//! ```text
//! p ← p·(1 − lr·λ)
//! m ← β₁·m + (1 − β₁)·g
//! v ← β₂·v + (1 − β₂)·g²
//! p ← p − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! This is `torch.optim.AdamW` with one group of parameters for A and one for B, after
//! `torch.nn.utils.clip_grad_norm_`.

use crate::dtype::Element;
use crate::error::{Error, Result};

/// Added to the norm before `max_norm` is divided by the norm, as in PyTorch.
pub(crate) const NORM_EPSILON: f64 = 1e-6;

/// The hyperparameters of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// The learning rate of A. At least 0.
    pub lr: f64,
    /// β₁ and β₂, the decay rates of the moments. At least 0, below 1.
    pub betas: (f64, f64),
    /// ε, added to the root of the second moment. Above 0, also when rounded to `f32`.
    pub eps: f64,
    /// λ of the decoupled weight decay: a step shrinks parameters by lr·λ. At least 0.
    pub weight_decay: f64,
    /// LoRA+: the learning rate of B divided by that of A. Above 0; 1 trains both at the same rate.
    pub lora_plus_ratio: f64,
    /// The largest L2 norm of all gradients together. If the norm is larger, all gradients are scaled down to this
    /// norm. Above 0; `None` for no clipping.
    pub max_norm: Option<f64>,
}

impl Default for AdamW {
    /// PyTorch's defaults: lr 1e-3, betas 0.9 and 0.999, ε 1e-8, weight decay 0.01, no LoRA+, no clipping.
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01, lora_plus_ratio: 1.0, max_norm: None }
    }
}

/// Which factor of a low-rank product a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Factor {
    /// The factor A, `[rank, d_in]`.
    A,
    /// The factor B, `[d_out, rank]`.
    B,
}

/// The operands of one trained tensor. All slices have the same length.
#[derive(Debug)]
pub struct Parameter<'a, W> {
    /// Whether the tensor is A or B, which decides the learning rate.
    pub factor: Factor,
    /// The gradient, before clipping.
    pub gradient: &'a [f32],
    /// The master copy of the parameter, in `f32` for every type `W` of the layer.
    pub value: &'a mut [f32],
    /// The first moment m; zeros before the first step.
    pub first_moment: &'a mut [f32],
    /// The second moment v; zeros before the first step.
    pub second_moment: &'a mut [f32],
    /// The copy that the layer reads. The step stores the new value in it, rounded to `W`.
    pub stored: Option<&'a mut [W]>,
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The L2 norm of all gradients before clipping; not finite if any gradient is not.
    pub norm: f64,
    /// The factor that clipping multiplied the gradients by; 1 if nothing was clipped.
    pub clipped_by: f64,
    /// Why the step was skipped; `None` if it was taken.
    pub skipped: Option<Skip>,
}

/// Why a step was skipped, which leaves parameters and moments unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// A gradient is infinite or NaN.
    NonFinite,
    /// The square of a gradient could overflow the second moment, which would then stay infinite.
    TooLarge,
    /// The learning-rate scale read from device memory makes a rate negative, or not a finite `f32`.
    LearningRate,
}

/// A step's constants for one factor, computed in double precision and rounded once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coefficients {
    /// 1 − lr·λ
    pub(crate) decay: f32,
    /// β₁ and 1 − β₁
    pub(crate) first: [f32; 2],
    /// β₂ and 1 − β₂
    pub(crate) second: [f32; 2],
    /// lr/(1 − β₁ᵗ)
    pub(crate) rate: f32,
    /// 1/√(1 − β₂ᵗ)
    pub(crate) root: f32,
    /// ε
    pub(crate) eps: f32,
}

impl AdamW {
    /// Checks every hyperparameter.
    ///
    /// # Errors
    /// [`Error::HyperparameterOutOfRange`] for the first that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let unit = 0.0..1.0;
        let fits = |product: f64| (product as f32).is_finite();
        let decay = self.lr.max(self.rate(Factor::B)) * self.weight_decay;
        let checks = [
            ("learning rate", self.lr, self.lr >= 0.0, "a finite number of at least 0"),
            ("beta 1", self.betas.0, unit.contains(&self.betas.0), "a number from 0, below 1"),
            ("beta 2", self.betas.1, unit.contains(&self.betas.1), "a number from 0, below 1"),
            ("epsilon", self.eps, self.eps as f32 > 0.0, "a finite f32 above 0"),
            (
                "weight decay",
                self.weight_decay,
                self.weight_decay >= 0.0 && fits(decay),
                "a finite number of at least 0",
            ),
            (
                "LoRA+ ratio",
                self.lora_plus_ratio,
                self.lora_plus_ratio > 0.0 && fits(self.rate(Factor::B)),
                "a finite number above 0",
            ),
            (
                "largest norm",
                self.max_norm.unwrap_or(1.0),
                self.max_norm.is_none_or(|n| n > 0.0),
                "a finite number above 0",
            ),
        ];
        for (name, value, in_range, expected) in checks {
            if !in_range || !(value as f32).is_finite() {
                return Err(Error::HyperparameterOutOfRange { name, value, expected });
            }
        }
        Ok(())
    }

    /// The learning rate of `factor`.
    pub fn rate(&self, factor: Factor) -> f64 {
        match factor {
            Factor::A => self.lr,
            Factor::B => self.lr * self.lora_plus_ratio,
        }
    }

    /// Decides by which factor a step clips gradients of this norm, and whether it is skipped.
    pub(crate) fn decide(&self, norm: f64) -> Step {
        let clipped_by = self.max_norm.map_or(1.0, |max| (max / (norm + NORM_EPSILON)).min(1.0));
        // No element of a gradient is larger than the norm of all gradients.
        let largest = norm * clipped_by;
        let skipped = if !norm.is_finite() {
            Some(Skip::NonFinite)
        } else if largest * largest > f64::from(f32::MAX) {
            Some(Skip::TooLarge)
        } else {
            None
        };
        Step { norm, clipped_by: if skipped.is_some() { 1.0 } else { clipped_by }, skipped }
    }

    /// The constants of step number `step` for one factor.
    pub(crate) fn coefficients(&self, step: u64, factor: Factor) -> Coefficients {
        let (beta1, beta2) = self.betas;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let lr = self.rate(factor);
        Coefficients {
            decay: (1.0 - lr * self.weight_decay) as f32,
            first: [beta1 as f32, (1.0 - beta1) as f32],
            second: [beta2 as f32, (1.0 - beta2) as f32],
            rate: (lr / correction(beta1)) as f32,
            root: (1.0 / correction(beta2).sqrt()) as f32,
            eps: self.eps as f32,
        }
    }
}

/// Checks a step's operands before anything is written.
pub(crate) fn validate<W: Element>(config: &AdamW, step: u64, parameters: &[Parameter<'_, W>]) -> Result<()> {
    config.validate()?;
    if step == 0 {
        return Err(Error::HyperparameterOutOfRange { name: "step", value: 0.0, expected: "a count from 1" });
    }
    for p in parameters {
        let lengths = [
            ("the gradient", p.gradient.len()),
            ("the first moment", p.first_moment.len()),
            ("the second moment", p.second_moment.len()),
            ("the stored parameter", p.stored.as_ref().map_or(p.value.len(), |s| s.len())),
        ];
        expect_lengths(p.value.len(), lengths)?;
    }
    Ok(())
}

/// Checks that a parameter's operands have as many elements as its value.
pub(crate) fn expect_lengths(expected: usize, lengths: [(&'static str, usize); 4]) -> Result<()> {
    let differs = lengths.into_iter().find(|&(_, actual)| actual != expected);
    differs.map_or(Ok(()), |(operand, actual)| Err(Error::LengthMismatch { operand, expected, actual }))
}
