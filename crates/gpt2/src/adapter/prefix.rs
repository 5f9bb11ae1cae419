//! Prefix tuning: trainable tokens in front of the input, or trainable keys and values in every layer.

use std::ops::Range;

use super::expect_same;
use crate::config::Config;
use crate::error::Result;
use crate::random::Random;

/// A trained prefix. It is always `f32`: it is small, and the attention that reads it computes in `f32`.
#[derive(Debug, Clone)]
pub enum Prefix {
    /// Prefix-embedding: vectors in front of the token embeddings, `[length, d_model]`. Real tokens attend to them as
    /// to any earlier token, and start at position `length`.
    Embedding {
        /// Number of prefix tokens.
        length: usize,
        /// The vectors, `[length, d_model]`.
        vectors: Vec<f32>,
    },
    /// Prefix-layer, PEFT's `PREFIX_TUNING`: keys and values in every layer, `[length, 2·layers, d_model]`.
    /// Slice 2i holds layer i's keys, 2i + 1 its values. Real tokens start at position `length`.
    Layer {
        /// Number of prefix tokens.
        length: usize,
        /// The keys and values, `[length, 2·layers, d_model]`.
        keys_values: Vec<f32>,
        /// Layers of the model.
        layers: usize,
    },
}

impl Prefix {
    /// Random trainable tokens in front of the input.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if memory cannot be allocated.
    pub fn random_embedding(config: &Config, length: usize, seed: u64) -> Result<Self> {
        let vectors = Random::new(seed ^ 0x93EF).normal::<f32>(length * config.d_model, 0.02)?.to_vec();
        Ok(Prefix::Embedding { length, vectors })
    }

    /// Random keys and values in every layer.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if memory cannot be allocated.
    pub fn random_layer(config: &Config, length: usize, seed: u64) -> Result<Self> {
        let elements = length * 2 * config.layers * config.d_model;
        let keys_values = Random::new(seed ^ 0x93EF).normal::<f32>(elements, 0.5)?.to_vec();
        Ok(Prefix::Layer { length, keys_values, layers: config.layers })
    }

    /// Number of prefix tokens.
    pub fn length(&self) -> usize {
        match self {
            Prefix::Embedding { length, .. } | Prefix::Layer { length, .. } => *length,
        }
    }

    /// Number of trainable parameters: `d·l` in front of the input, `2·layers·d·l` as keys and values.
    pub fn parameters(&self) -> usize {
        match self {
            Prefix::Embedding { vectors, .. } => vectors.len(),
            Prefix::Layer { keys_values, .. } => keys_values.len(),
        }
    }

    /// The keys and values of one layer.
    pub(crate) fn keys_values(&self, layer: usize) -> Option<KeysValues<'_>> {
        match self {
            Prefix::Embedding { .. } | Prefix::Layer { length: 0, .. } => None,
            Prefix::Layer { length, keys_values, layers } => {
                let stride = keys_values.len() / length;
                let d = stride / (2 * layers);
                Some(KeysValues { data: keys_values, length: *length, stride, key: 2 * layer * d })
            }
        }
    }

    /// Checks that the prefix was made for a model of this shape.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`](crate::Error::ModelMismatch).
    pub fn check(&self, config: &Config) -> Result<()> {
        match self {
            Prefix::Embedding { length, vectors } => {
                expect_same("the prefix has", "elements", length * config.d_model, vectors.len())
            }
            Prefix::Layer { length, keys_values, layers } => {
                expect_same("the prefix has", "layers", config.layers, *layers)?;
                expect_same("the prefix has", "elements", length * 2 * layers * config.d_model, keys_values.len())
            }
        }
    }
}

/// One layer's keys and values in a prefix.
#[derive(Clone, Copy)]
pub(crate) struct KeysValues<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) length: usize,
    /// Elements from one prefix token to the next.
    pub(crate) stride: usize,
    /// The index of the first token's keys; its values start `d_model` elements later.
    pub(crate) key: usize,
}

impl KeysValues<'_> {
    /// From these columns of the first token's keys and values on; the next token's are `stride` elements later.
    pub(crate) fn head(&self, columns: Range<usize>) -> &[f32] {
        &self.data[self.key + columns.start..]
    }
}
