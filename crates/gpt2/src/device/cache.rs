//! The KV cache: keys and values of earlier tokens.

use std::ops::Range;

use fused_lora::Element;
use fused_lora::device::{DeviceBuffer, DeviceMatrixMut, Stream};

use super::adapters::DeviceAdapters;
use super::weights::DeviceModel;
use crate::config::Config;
use crate::error::{Error, Result};

/// The keys and values of some sequences, in all layers of a model.
///
/// A cache is valid only for the adapters that it was started with, because its keys and values depend on them.
#[derive(Debug)]
pub struct Cache<W> {
    capacity: usize,
    d_model: usize,
    /// For each layer its keys and its values, `[sequences·capacity, d_model]` each.
    layers: Vec<[DeviceBuffer<W>; 2]>,
    /// Keys of each sequence, prefix included.
    lengths: Vec<usize>,
}

impl<W: Element> Cache<W> {
    /// A cache with room for `capacity` keys of each of `sequences` sequences, including those of a prefix.
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

    /// Removes all tokens. Every sequence then begins with the adapters' prefix keys and values, if there are any.
    ///
    /// # Errors
    /// [`Error::TooManyPositions`] if there is no room for the prefix; [`Error::OtherModel`]; errors of the driver.
    pub fn start(&mut self, stream: &Stream, adapters: &DeviceAdapters<W>) -> Result<()> {
        self.lengths.fill(0);
        let (d, capacity) = (self.d_model, self.capacity);
        for (layer, own) in self.layers.iter_mut().enumerate() {
            let Some(prefix) = adapters.prefix_of(layer) else { return Ok(()) };
            let length = prefix[0].len() / d;
            if length > capacity {
                return Err(Error::TooManyPositions { tokens: 0, prefix: length, positions: capacity });
            }
            for (own, prefix) in own.iter_mut().zip(prefix) {
                for sequence in 0..self.lengths.len() {
                    let from = sequence * capacity * d;
                    own.as_mut_slice().slice_mut(from..from + prefix.len()).copy_from(stream, prefix.as_slice())?;
                }
            }
            self.lengths.fill(length);
        }
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

    /// Sets the number of keys of a sequence: fewer, to continue from an earlier token, or more, for measurements, with
    /// arbitrary contents.
    ///
    /// # Errors
    /// [`Error::TooManyPositions`] beyond the capacity; [`Error::BatchSize`] for a sequence that does not exist.
    pub fn set_length(&mut self, sequence: usize, length: usize) -> Result<()> {
        let sequences = self.lengths.len();
        if length > self.capacity {
            return Err(Error::TooManyPositions { tokens: length, prefix: 0, positions: self.capacity });
        }
        let place = self.lengths.get_mut(sequence);
        *place.ok_or(Error::BatchSize { actual: sequence + 1, expected: sequences })? = length;
        Ok(())
    }

    /// Bytes of device memory that the cache takes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(|buffer| buffer.len() * size_of::<W>()).sum()
    }

    /// A layer's keys and values of some sequences.
    pub(super) fn layer(
        &mut self,
        layer: usize,
        sequences: Range<usize>,
    ) -> fused_lora::Result<[DeviceMatrixMut<'_, W>; 2]> {
        let (d, capacity) = (self.d_model, self.capacity);
        let rows = sequences.len() * capacity;
        let elements = sequences.start * capacity * d..sequences.end * capacity * d;
        let [keys, values] = &mut self.layers[layer];
        let [keys, values] = [keys, values].map(|buffer| part(buffer, elements.clone(), rows, d));
        Ok([keys?, values?])
    }
}

fn part<W: Element>(
    buffer: &mut DeviceBuffer<W>,
    elements: Range<usize>,
    rows: usize,
    cols: usize,
) -> fused_lora::Result<DeviceMatrixMut<'_, W>> {
    let (_, rest) = buffer.as_mut_slice().split_at(elements.start);
    DeviceMatrixMut::new(rest.split_at(elements.len()).0, rows, cols)
}
