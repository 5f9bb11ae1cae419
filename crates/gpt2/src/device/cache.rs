//! The KV cache: keys and values of earlier tokens.

use std::ops::Range;

use fused_lora::Element;
use fused_lora::device::{DeviceBuffer, DeviceMatrixMut, Stream};

use super::adapters::DeviceAdapters;
use super::weights::DeviceModel;
use crate::config::Config;
use crate::error::{Error, Result};

/// The keys and values of a batch of sequences, in all layers of a model.
///
/// A cache is valid only for the adapters that it was started with, because its keys and values depend on them.
#[derive(Debug)]
pub struct Cache<W> {
    capacity: usize,
    d_model: usize,
    /// For each layer its keys and its values, `[sequences·capacity, d_model]` each.
    layers: Vec<[DeviceBuffer<W>; 2]>,
    /// The number of keys of each sequence, those of a prefix included.
    lengths: Vec<usize>,
}

impl<W: Element> Cache<W> {
    /// A cache of `sequences` sequences with room for `capacity` keys each, those of a prefix included.
    ///
    /// # Errors
    /// [`Error::TooManyPositions`] if the model has fewer positions; [`Error::Layer`] if memory cannot be allocated,
    /// and for errors of the driver.
    pub fn new(stream: &Stream, model: &DeviceModel<W>, sequences: usize, capacity: usize) -> Result<Self> {
        let Config { positions, d_model, layers, .. } = *model.config();
        if capacity > positions {
            return Err(Error::TooManyPositions { tokens: capacity, prefix: 0, positions });
        }
        let zeros = || DeviceBuffer::zeros(stream, sequences * capacity * d_model);
        let layers = (0..layers).map(|_| Ok([zeros()?, zeros()?])).collect::<Result<_>>()?;
        Ok(Self { capacity, d_model, layers, lengths: vec![0; sequences] })
    }

    /// Empties every sequence, and copies the adapters' prefix keys and values, if there are any, to its start.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`] for adapters of a model with another number of layers or features than the cache's;
    /// [`Error::CacheFull`] if there is no room for the prefix; errors of the driver. After one of the first two the
    /// cache is unchanged.
    pub fn start(&mut self, stream: &Stream, adapters: &DeviceAdapters<W>) -> Result<()> {
        let (d, capacity) = (self.d_model, self.capacity);
        adapters.expect_shape(self.layers.len(), d)?;
        let length = adapters.prefix_keys_values(0).map_or(0, |[keys, _]| keys.len() / d);
        if length > capacity {
            return Err(Error::CacheFull { tokens: 0, keys: length, capacity });
        }
        self.lengths.fill(0);
        for (layer, own) in self.layers.iter_mut().enumerate() {
            let Some(prefix) = adapters.prefix_keys_values(layer) else { continue };
            for (own, prefix) in own.iter_mut().zip(prefix) {
                for sequence in 0..self.lengths.len() {
                    let from = sequence * capacity * d;
                    own.as_mut_slice().slice_mut(from..from + prefix.len()).copy_from(stream, prefix.as_slice())?;
                }
            }
        }
        self.lengths.fill(length);
        Ok(())
    }

    /// Number of keys of each sequence, prefix included.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Number of keys that each sequence has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the number of keys of a sequence: a smaller one to continue from an earlier token, or for measurements a
    /// larger one, with arbitrary keys and values.
    ///
    /// # Errors
    /// [`Error::CacheFull`] beyond the capacity; [`Error::BatchSize`] for a sequence that does not exist.
    pub fn set_length(&mut self, sequence: usize, length: usize) -> Result<()> {
        let sequences = self.lengths.len();
        if length > self.capacity {
            return Err(Error::CacheFull { tokens: length, keys: 0, capacity: self.capacity });
        }
        let current = self.lengths.get_mut(sequence);
        *current.ok_or(Error::BatchSize { actual: sequence + 1, expected: sequences })? = length;
        Ok(())
    }

    /// Bytes of device memory that the cache takes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(|buffer| buffer.len() * size_of::<W>()).sum()
    }

    /// A layer's keys and values of these sequences.
    pub(super) fn layer(
        &mut self,
        layer: usize,
        sequences: Range<usize>,
    ) -> fused_lora::Result<[DeviceMatrixMut<'_, W>; 2]> {
        let (d, capacity) = (self.d_model, self.capacity);
        let rows = sequences.len() * capacity;
        let elements = sequences.start * capacity * d..sequences.end * capacity * d;
        let [keys, values] = &mut self.layers[layer];
        let [keys, values] = [keys, values].map(|buffer| rows_of(buffer, elements.clone(), rows, d));
        Ok([keys?, values?])
    }
}

fn rows_of<W: Element>(
    buffer: &mut DeviceBuffer<W>,
    elements: Range<usize>,
    rows: usize,
    cols: usize,
) -> fused_lora::Result<DeviceMatrixMut<'_, W>> {
    let (_, rest) = buffer.as_mut_slice().split_at(elements.start);
    DeviceMatrixMut::new(rest.split_at(elements.len()).0, rows, cols)
}
