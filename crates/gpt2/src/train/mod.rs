//! Training a LoRA on a frozen GPT-2: the loss, the gradients of every A and B, and AdamW.
//!
//! ```no_run
//! use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
//! use fused_lora_gpt2::train::{AdamW, Optimizer, Training};
//! use fused_lora_gpt2::{Adapters, Model};
//!
//! # fn main() -> Result<(), fused_lora_gpt2::Error> {
//! # let batches: Vec<Vec<Vec<u32>>> = vec![];
//! let model = Model::<f32>::load("gpt2".as_ref())?;
//! let lora = Lora::untrained(&model.config, &[(Target::Whole(Projection::Qkv), 8)], 16.0, 0)?;
//! let mut adapters = Adapters { lora: Some(lora), ..Adapters::default() };
//! let mut training = Training::new(&model, &adapters, 4, 256)?;
//! let mut optimizer = Optimizer::new(&adapters, AdamW { lr: 2e-4, max_norm: Some(1.0), ..AdamW::default() })?;
//! for batch in &batches {
//!     let tokens: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
//!     let loss = training.loss_and_gradients(&adapters, &tokens)?;
//!     let step = optimizer.step(&mut adapters, training.gradients())?;
//!     println!("loss {loss:.4}, gradient norm {:.3}", step.norm);
//! }
//! # Ok(()) }
//! ```

mod attention;
mod block;
mod gradients;
mod linear;
mod loss;
mod optimizer;

use fused_lora::Element;
use fused_lora::dropout::Dropout;

use crate::adapter::Adapters;
use crate::adapter::lora::{Lora, Projection};
use crate::error::{Error, Result};
use crate::forward::{check_tokens, embed};
use crate::model::Model;
use crate::norm::{layer_norm, layer_norm_backward};
use block::{Saved, Scratch};
use linear::BlockContext;
use loss::Loss;

pub use fused_lora::optim::{AdamW, Skip, Step};
pub use gradients::{FactorGradients, Gradients};
pub use optimizer::Optimizer;

/// Forward and backward passes over batches of one shape, with their buffers: about (6·d_model + d_ff) `f32` per token
/// for each layer from the lowest adapted one on, and the logits of 128 tokens.
///
/// Sums run in a fixed order. Results are the same bits from run to run on a rayon pool of the same size and, from 48
/// tokens per batch on, of any size.
#[derive(Debug)]
pub struct Training<'m, W> {
    model: &'m Model<W>,
    batch: usize,
    sequence: usize,
    /// The lowest layer with an adapter, and the first projection in it that has one.
    lowest: (usize, Projection),
    /// The saved activations of each layer from the lowest adapted one on.
    saved: Vec<Saved>,
    scratch: Scratch,
    /// The residual stream, `[rows, d_model]`.
    x: Vec<f32>,
    dx: Vec<f32>,
    /// The output of ln_f.
    normed: Vec<f32>,
    d_normed: Vec<f32>,
    loss: Loss,
    gradients: Gradients,
    /// The dropout of the next call that computes gradients.
    dropout: Option<Dropout>,
}

impl<'m, W: Element> Training<'m, W> {
    /// Sets up training of `adapters`, or others of the same shapes, on batches of `batch` sequences of `sequence`
    /// tokens.
    ///
    /// # Errors
    /// [`Error::NotTrainable`] if there is an adapter that is not a LoRA, [`Error::NothingToTrain`] without a LoRA,
    /// [`Error::ModelMismatch`], [`Error::Batch`] for no sequence, [`Error::TooShort`], [`Error::TooManyPositions`].
    pub fn new(model: &'m Model<W>, adapters: &Adapters<W>, batch: usize, sequence: usize) -> Result<Self> {
        let config = &model.config;
        let lora = trainable(adapters)?;
        adapters.check(config)?;
        let lowest = lowest(lora).ok_or(Error::NothingToTrain)?;
        if batch == 0 {
            return Err(Error::Batch { row: 0, actual: 0, expected: 1 });
        }
        if sequence < 2 {
            return Err(Error::TooShort { tokens: sequence });
        }
        if sequence > config.positions {
            return Err(Error::TooManyPositions { tokens: sequence, prefix: 0, positions: config.positions });
        }
        let rows = batch * sequence;
        let zeros = || vec![0.0; rows * config.d_model];
        Ok(Self {
            model,
            batch,
            sequence,
            lowest,
            saved: (lowest.0..config.layers).map(|i| Saved::new(config, lora, i, rows)).collect(),
            scratch: Scratch::new(config, rows),
            x: zeros(),
            dx: zeros(),
            normed: zeros(),
            d_normed: zeros(),
            loss: Loss::default(),
            gradients: Gradients::zeros(lora),
            dropout: None,
        })
    }

    /// Sets the dropout of the LoRA's input for all later calls that compute gradients, as PEFT's `lora_dropout` does
    /// in training. Each successful call of [`loss_and_gradients`](Self::loss_and_gradients) increases the
    /// offset by one. Each projection of each layer has its own mask, which its factors share; a
    /// layer number in `dropout` is replaced. Processes that train on parts of one batch need different seeds.
    pub fn set_dropout(&mut self, dropout: Option<Dropout>) {
        self.dropout = dropout;
    }

    /// The dropout of the next call that computes gradients. Save it to continue a run later.
    pub fn dropout(&self) -> Option<Dropout> {
        self.dropout
    }

    /// Returns the mean cross entropy of every sequence's tokens but the first, each predicted from the tokens before
    /// it. Computes the gradients of every A and B, which replace those of the previous call. LoRA runs fused, whatever
    /// the adapters' mode.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::BatchSize`] or [`Error::Batch`] if the number of sequences or tokens differs
    /// from `new`'s, [`Error::Token`], [`Error::AdapterMismatch`]. A loss that is not finite is returned as it is.
    pub fn loss_and_gradients(&mut self, adapters: &Adapters<W>, tokens: &[&[u32]]) -> Result<f64> {
        let lora = self.forward(adapters, tokens, self.dropout)?;
        let (model, config) = (self.model, &self.model.config);
        let workspace = &mut self.scratch.workspace;
        let loss = self.loss.run(model, tokens, &self.normed, Some(&mut self.d_normed), workspace)?;

        self.dx.fill(0.0);
        layer_norm_backward(&self.x, &model.ln_f, config.layer_norm_epsilon, &mut self.d_normed, &mut self.dx);
        let (first, projection) = self.lowest;
        for index in (first..config.layers).rev() {
            let lowest = (index == first).then_some(projection);
            let (saved, gradients) = (&self.saved[index - first], &mut self.gradients.layers[index]);
            let rows = self.x.len() / config.d_model;
            let context = BlockContext { dropout: self.dropout, ..context(model, lora, index, rows, self.sequence) };
            block::backward(context, saved, &mut self.scratch, lowest, gradients, &mut self.dx)?;
        }
        self.dropout = self.dropout.map(|dropout| dropout.at(dropout.offset().wrapping_add(1)));
        Ok(loss)
    }

    /// Computes only the loss, without dropout, for evaluation. Gradients are unchanged.
    ///
    /// # Errors
    /// As [`loss_and_gradients`](Self::loss_and_gradients).
    pub fn loss(&mut self, adapters: &Adapters<W>, tokens: &[&[u32]]) -> Result<f64> {
        self.forward(adapters, tokens, None)?;
        self.loss.run(self.model, tokens, &self.normed, None, &mut self.scratch.workspace)
    }

    /// The gradients of the last [`loss_and_gradients`](Self::loss_and_gradients); zeros before the first.
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Runs the model up to and including ln_f, and saves what the backward pass reads.
    fn forward<'a>(
        &mut self,
        adapters: &'a Adapters<W>,
        tokens: &[&[u32]],
        dropout: Option<Dropout>,
    ) -> Result<&'a Lora<W>> {
        let (model, config) = (self.model, &self.model.config);
        let lora = trainable(adapters)?;
        self.gradients.check(lora)?;
        if tokens.len() != self.batch {
            return Err(Error::BatchSize { actual: tokens.len(), expected: self.batch });
        }
        for (row, sequence) in tokens.iter().enumerate() {
            if sequence.len() != self.sequence {
                return Err(Error::Batch { row, actual: sequence.len(), expected: self.sequence });
            }
        }
        check_tokens(model, adapters, tokens)?;
        embed(model, adapters, tokens, &mut self.x);
        let first = self.lowest.0;
        for index in 0..config.layers {
            // Layers below the lowest adapted one save nothing; they use that layer's buffers as scratch memory.
            let saved = &mut self.saved[index.saturating_sub(first)];
            let rows = self.x.len() / config.d_model;
            let context = BlockContext { dropout, ..context(model, lora, index, rows, self.sequence) };
            block::forward(context, saved, &mut self.scratch, &mut self.x)?;
        }
        layer_norm(&self.x, &model.ln_f, config.layer_norm_epsilon, &mut self.normed)?;
        Ok(lora)
    }
}

fn context<'a, W>(
    model: &'a Model<W>,
    lora: &'a Lora<W>,
    index: usize,
    rows: usize,
    sequence: usize,
) -> BlockContext<'a, W> {
    BlockContext { config: &model.config, layer: &model.layers[index], lora, index, rows, sequence, dropout: None }
}

/// The LoRA, if it is the only adapter.
fn trainable<W>(adapters: &Adapters<W>) -> Result<&Lora<W>> {
    if adapters.bottleneck.is_some() {
        return Err(Error::NotTrainable { what: "bottleneck adapters" });
    }
    if adapters.prefix.is_some() {
        return Err(Error::NotTrainable { what: "a prefix" });
    }
    adapters.lora.as_ref().ok_or(Error::NothingToTrain)
}

fn lowest<W>(lora: &Lora<W>) -> Option<(usize, Projection)> {
    let places = (0..lora.layers.len()).flat_map(|i| Projection::ALL.map(|projection| (i, projection)));
    places.into_iter().find(|&(i, projection)| !lora.layers[i][projection as usize].is_empty())
}
