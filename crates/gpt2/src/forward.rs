//! The forward pass of a whole model.

use fused_lora::lora::{LoraLinear, Weight};
use fused_lora::{Element, MatrixMut, MatrixRef, cpu};

use crate::adapter::Adapters;
use crate::adapter::prefix::Prefix;
use crate::block::{self, Activations, BlockContext};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::norm::layer_norm;

/// Runs forward passes, which share buffers.
#[derive(Debug)]
pub struct Forward<W> {
    activations: Activations<W>,
    normed: Vec<f32>,
    logits: Vec<f32>,
    workspace: Vec<f32>,
}

impl<W: Element> Default for Forward<W> {
    fn default() -> Self {
        Self::new()
    }
}

impl<W: Element> Forward<W> {
    /// Has no buffers yet. The first pass allocates them; later passes of the same shape allocate almost nothing.
    pub fn new() -> Self {
        Self { activations: Activations::new(), normed: vec![], logits: vec![], workspace: vec![] }
    }

    /// The last hidden state after ln_f, `[batch·tokens, d_model]`, without prefix vectors.
    ///
    /// # Errors
    /// [`Error::Batch`], [`Error::Token`], [`Error::TooManyPositions`], [`Error::ModelMismatch`].
    pub fn hidden(&mut self, model: &Model<W>, adapters: &Adapters<W>, tokens: &[&[u32]]) -> Result<&[f32]> {
        let config = &model.config;
        let d = config.d_model;
        check_tokens(model, adapters, tokens)?;
        let batch = tokens.len();
        let prefix_rows = match &adapters.prefix {
            Some(Prefix::Embedding { length, .. }) => *length,
            _ => 0,
        };
        let length = prefix_rows + tokens[0].len();
        self.activations.reserve(config, adapters, batch * length);
        embed(model, adapters, tokens, &mut self.activations.x);
        for (index, layer) in model.layers.iter().enumerate() {
            block::run(layer, BlockContext { config, adapters, index, tokens: length }, &mut self.activations)?;
        }
        if prefix_rows > 0 {
            for b in 0..batch {
                let from = (b * length + prefix_rows) * d..(b + 1) * length * d;
                self.activations.x.copy_within(from, b * (length - prefix_rows) * d);
            }
        }
        let rows = batch * tokens[0].len();
        self.normed.resize(rows * d, 0.0);
        layer_norm(&self.activations.x[..rows * d], &model.ln_f, config.layer_norm_epsilon, &mut self.normed)?;
        Ok(&self.normed)
    }

    /// The logits, `[batch·tokens, vocabulary]`: the last hidden state times [`Model::output_weight`].
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn logits(&mut self, model: &Model<W>, adapters: &Adapters<W>, tokens: &[&[u32]]) -> Result<&[f32]> {
        self.hidden(model, adapters, tokens)?;
        let (d, vocabulary) = (model.config.d_model, model.config.vocabulary);
        let rows = self.normed.len() / d;
        let lm_head = LoraLinear::base(Weight::out_in(MatrixRef::new(model.output_weight(), vocabulary, d)?), None);
        self.workspace.resize(lm_head.plan_forward::<f32>(rows)?.workspace_len(), 0.0);
        self.logits.resize(rows * vocabulary, 0.0);
        let mut logits = MatrixMut::new(&mut self.logits, rows, vocabulary)?;
        cpu::forward(&lm_head, MatrixRef::new(&self.normed, rows, d)?, &mut logits, &mut self.workspace)?;
        Ok(&self.logits)
    }
}

/// x = wte\[token] + wpe\[position], after the prefix vectors if there are any. `x` is `[batch·length, d_model]`.
pub(crate) fn embed<W: Element>(model: &Model<W>, adapters: &Adapters<W>, tokens: &[&[u32]], x: &mut [f32]) {
    let d = model.config.d_model;
    let length = x.len() / (tokens.len() * d);
    let start = adapters.prefix.as_ref().map_or(0, Prefix::length);
    let mut position = vec![0.0; d];
    for (sequence, out) in tokens.iter().zip(x.chunks_exact_mut(length * d)) {
        let prefix_rows = length - sequence.len();
        if let Some(Prefix::Embedding { vectors, .. }) = &adapters.prefix {
            out[..prefix_rows * d].copy_from_slice(vectors);
        }
        for (i, &token) in sequence.iter().enumerate() {
            W::widen(&model.wte[token as usize * d..][..d], &mut out[(prefix_rows + i) * d..][..d]);
        }
        // Prefix vectors have positions like tokens. A prefix of keys and values takes positions, but has no rows here.
        for (i, row) in out.chunks_exact_mut(d).enumerate() {
            W::widen(&model.wpe[(start - prefix_rows + i) * d..][..d], &mut position);
            cpu::vector::add(row, &position);
        }
    }
}

/// Checks that a model with these adapters can run these tokens.
pub(crate) fn check_tokens<W: Element>(model: &Model<W>, adapters: &Adapters<W>, tokens: &[&[u32]]) -> Result<()> {
    let config = &model.config;
    adapters.check(config)?;
    let expected = tokens.first().map_or(0, |t| t.len());
    if expected == 0 {
        return Err(Error::Batch { row: 0, actual: 0, expected: 1 });
    }
    for (row, sequence) in tokens.iter().enumerate() {
        if sequence.len() != expected {
            return Err(Error::Batch { row, actual: sequence.len(), expected });
        }
        for (position, &token) in sequence.iter().enumerate() {
            if token as usize >= config.vocabulary {
                return Err(Error::Token { token, row, position, vocabulary: config.vocabulary });
            }
        }
    }
    let prefix = adapters.prefix.as_ref().map_or(0, Prefix::length);
    if expected + prefix > config.positions {
        return Err(Error::TooManyPositions { tokens: expected, prefix, positions: config.positions });
    }
    Ok(())
}
