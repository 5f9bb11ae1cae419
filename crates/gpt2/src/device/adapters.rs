//! Adapters in device memory.

use std::ops::Range;

use fused_lora::device::{
    DeviceAdapter, DeviceBuffer, DeviceFactors, DeviceMatrix, DeviceNorm, DeviceSegment, FactorSlot, SlotSegments,
    Stream,
};
use fused_lora::lora::{Activation, Segment};
use fused_lora::{Element, MatrixRef};

use super::weights::NormWeights;
use crate::adapter::bottleneck::{Adapter, Kind};
use crate::adapter::lora::{Lora, Projection};
use crate::adapter::prefix::Prefix;
use crate::adapter::{Adapters, LoraMode};
use crate::config::Config;
use crate::error::{Error, Result};

/// The adapters of a pass in device memory; a set without any is the base model.
#[derive(Debug)]
pub struct DeviceAdapters<W> {
    pub(super) mode: LoraMode,
    /// A and B of all layers.
    factors: DeviceFactors<W>,
    segments: Places,
    /// The slot from which passes take the factors, if the LoRA can be exchanged.
    slot: Option<FactorSlot<W>>,
    bottleneck: Option<(Kind, Vec<Vec<DeviceBottleneck<W>>>)>,
    prefix: Option<DevicePrefix<W>>,
    parameters: usize,
    bytes: usize,
}

/// A bottleneck adapter, both weights `[out, in]`.
#[derive(Debug)]
pub(super) struct DeviceBottleneck<W> {
    down: DeviceBuffer<W>,
    down_bias: DeviceBuffer<W>,
    up: DeviceBuffer<W>,
    up_bias: DeviceBuffer<W>,
    norm: Option<NormWeights>,
    width: usize,
    d_model: usize,
}

#[derive(Debug)]
enum DevicePrefix<W> {
    Embedding {
        length: usize,
        vectors: DeviceBuffer<W>,
    },
    /// For each layer its keys and its values, `[length, d_model]` each.
    Layer {
        length: usize,
        keys_values: Vec<[DeviceBuffer<W>; 2]>,
    },
}

impl<W: Element> DeviceAdapters<W> {
    /// Copies adapters to the stream's device. Prefixes are rounded to the model's type, which a device's attention
    /// reads.
    ///
    /// # Errors
    /// [`Error::OtherModel`]; [`Error::Layer`] if memory cannot be allocated, and for errors of the driver.
    pub fn upload(stream: &Stream, adapters: &Adapters<W>, config: &Config) -> Result<Self> {
        adapters.check(config)?;
        let (factors, segments) = match &adapters.lora {
            Some(lora) => upload_factors(stream, lora, adapters.mode)?,
            None => (DeviceFactors::upload(stream, &[])?, vec![]),
        };
        let bottleneck = adapters.bottleneck.as_ref().map(|bottleneck| {
            let layer = |all: &Vec<Adapter<W>>| -> Result<Vec<_>> {
                all.iter().map(|adapter| DeviceBottleneck::upload(stream, adapter)).collect()
            };
            Ok::<_, Error>((bottleneck.kind, bottleneck.layers.iter().map(layer).collect::<Result<_>>()?))
        });
        let prefix = adapters.prefix.as_ref().filter(|prefix| prefix.length() > 0);
        let prefix = prefix.map(|prefix| DevicePrefix::upload(stream, prefix, config)).transpose()?;
        let mut uploaded = Self {
            mode: adapters.mode,
            factors,
            segments,
            slot: None,
            bottleneck: bottleneck.transpose()?,
            prefix,
            parameters: adapters.parameters(),
            bytes: 0,
        };
        uploaded.bytes = uploaded.count_bytes();
        Ok(uploaded)
    }

    /// Makes the LoRA exchangeable, also in passes that are captured from now on: passes find the factors through a
    /// [`FactorSlot`], with two more loads per projection.
    ///
    /// # Errors
    /// [`Error::OtherAdapters`] unless the LoRA is fused; [`Error::Layer`] if memory cannot be allocated.
    pub fn swappable(mut self, stream: &Stream) -> Result<Self> {
        self.expect_fused()?;
        self.slot = Some(FactorSlot::new(stream, &self.factors).map_err(of_slot)?);
        Ok(self)
    }

    /// Issues the exchange of this LoRA's factors for another's, on the same columns with at most the same ranks and
    /// any scale. Passes issued or replayed on the stream afterwards run with the new factors, which stay in memory
    /// while they are used.
    ///
    /// # Errors
    /// [`Error::OtherAdapters`] unless this LoRA is [swappable](Self::swappable) and `other` is only a fused LoRA, of
    /// the same projections in every layer; [`Error::Layer`] for other columns or higher ranks.
    pub fn put(&mut self, stream: &Stream, other: &Self) -> Result<()> {
        other.expect_fused()?;
        if other.bottleneck.is_some() || other.prefix.is_some() {
            return Err(other_adapters("a LoRA alone", "one with other adapters"));
        }
        // Factors of the same shapes may belong to another projection or another layer.
        if self.segments != other.segments {
            return Err(other_adapters("a LoRA of the same projections in every layer", "one of others"));
        }
        self.expect_slot()?.put(stream, &other.factors).map_err(of_slot)
    }

    /// Issues the removal of the LoRA: passes issued or replayed on the stream afterwards are the base model's.
    ///
    /// # Errors
    /// [`Error::OtherAdapters`] unless the LoRA is [swappable](Self::swappable).
    pub fn clear(&mut self, stream: &Stream) -> Result<()> {
        self.expect_slot()?.clear(stream).map_err(of_slot)
    }

    fn expect_fused(&self) -> Result<()> {
        match self.mode {
            LoraMode::Fused => Ok(()),
            mode => Err(other_adapters("a fused LoRA", &format!("{mode:?}"))),
        }
    }

    fn expect_slot(&mut self) -> Result<&mut FactorSlot<W>> {
        self.slot.as_mut().ok_or_else(|| other_adapters("adapters that are swappable", "adapters that are not"))
    }

    /// Trainable parameters, |Θ|.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Bytes of device memory that the adapters take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn count_bytes(&self) -> usize {
        let bottleneck = |a: &DeviceBottleneck<W>| a.down.len() + a.down_bias.len() + a.up.len() + a.up_bias.len();
        let norm = |a: &DeviceBottleneck<W>| a.norm.as_ref().map_or(0, NormWeights::bytes);
        let adapters = || self.bottleneck.iter().flat_map(|(_, layers)| layers.iter().flatten());
        let prefix = match &self.prefix {
            None => 0,
            Some(DevicePrefix::Embedding { vectors, .. }) => vectors.len(),
            Some(DevicePrefix::Layer { keys_values, .. }) => keys_values.iter().flatten().map(DeviceBuffer::len).sum(),
        };
        self.factors.bytes()
            + (adapters().map(bottleneck).sum::<usize>() + prefix) * size_of::<W>()
            + adapters().map(norm).sum::<usize>()
    }

    /// The segments on one projection.
    pub(super) fn segments(&self, layer: usize, which: Projection) -> Vec<DeviceSegment<'_, W>> {
        self.places(layer, which).map(|index| self.factors.segment(index)).collect()
    }

    /// The segments on one projection through the slot, if there is one.
    pub(super) fn in_slot(&self, layer: usize, which: Projection) -> Option<SlotSegments<'_, W>> {
        let places = self.places(layer, which);
        self.slot.as_ref().filter(|_| !places.is_empty()).map(|slot| slot.segments(places))
    }

    fn places(&self, layer: usize, which: Projection) -> Range<usize> {
        self.segments.get(layer).map_or(0..0, |layer| layer[which as usize].clone())
    }

    /// The Houlsby adapter after the attention (0) or after the MLP (1) of a layer.
    pub(super) fn houlsby(&self, layer: usize, which: usize) -> Option<&DeviceBottleneck<W>> {
        match &self.bottleneck {
            Some((Kind::Houlsby, layers)) => layers[layer].get(which),
            _ => None,
        }
    }

    /// The adapter after a layer.
    pub(super) fn behind(&self, layer: usize) -> Option<&DeviceBottleneck<W>> {
        match &self.bottleneck {
            Some((Kind::Lin | Kind::Pfeiffer, layers)) => layers[layer].first(),
            _ => None,
        }
    }

    /// Prefix tokens.
    pub(super) fn prefix_length(&self) -> usize {
        match &self.prefix {
            None => 0,
            Some(DevicePrefix::Embedding { length, .. } | DevicePrefix::Layer { length, .. }) => *length,
        }
    }

    /// Prefix vectors in front of the input, `[length, d_model]`.
    pub(super) fn vectors(&self, d_model: usize) -> fused_lora::Result<Option<DeviceMatrix<'_, W>>> {
        match &self.prefix {
            Some(DevicePrefix::Embedding { length, vectors }) => {
                DeviceMatrix::new(vectors.as_slice(), *length, d_model).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Prefix keys and values of a layer, to which every sequence attends, `[length, d_model]` each.
    pub(super) fn prefix_of(&self, layer: usize) -> Option<&[DeviceBuffer<W>; 2]> {
        match &self.prefix {
            Some(DevicePrefix::Layer { keys_values, .. }) => keys_values.get(layer),
            _ => None,
        }
    }
}

/// The indices of each projection's segments, layer by layer.
type Places = Vec<[Range<usize>; 4]>;

/// Uploads a LoRA's factors, and returns the places of each projection's segments.
fn upload_factors<W: Element>(stream: &Stream, lora: &Lora<W>, mode: LoraMode) -> Result<(DeviceFactors<W>, Places)> {
    let (mut all, mut places) = (vec![], vec![]);
    for layer in 0..lora.layers.len() {
        let mut of_layer = [const { 0..0 }; 4];
        for which in Projection::ALL {
            let begin = all.len();
            all.extend(lora.segments(layer, which)?);
            of_layer[which as usize] = begin..all.len();
        }
        places.push(of_layer);
    }
    let padded: Vec<_> = if mode == LoraMode::Sequential { all.iter().map(Padded::new).collect() } else { vec![] };
    if mode == LoraMode::Sequential {
        all = padded.iter().map(Padded::view).collect::<fused_lora::Result<_>>()?;
    }
    Ok((DeviceFactors::upload(stream, &all)?, places))
}

/// A segment whose rank is padded with zeros. In separate products, B and T are read fastest if their rows are
/// multiples of 16 bytes. Fused factors are not padded.
struct Padded<W> {
    columns: Range<usize>,
    a: Vec<W>,
    b: Vec<W>,
    rank: usize,
    scale: f32,
}

impl<W: Element> Padded<W> {
    fn new(segment: &Segment<'_, W>) -> Self {
        let &Segment { ref columns, a, b, scale } = segment;
        let rank = segment.rank().next_multiple_of(16 / size_of::<W>());
        let rows = |matrix: MatrixRef<'_, W>, cols: usize| {
            let row = |i| matrix.row(i).iter().copied().chain(std::iter::repeat(W::zeroed())).take(cols);
            (0..matrix.rows()).flat_map(row).collect::<Vec<_>>()
        };
        let mut padded_a = rows(a, a.cols());
        padded_a.resize(rank * a.cols(), W::zeroed());
        Self { columns: columns.clone(), a: padded_a, b: rows(b, rank), rank, scale }
    }

    fn view(&self) -> fused_lora::Result<Segment<'_, W>> {
        let &Self { ref columns, ref a, ref b, rank, scale } = self;
        let (a, b) = (MatrixRef::new(a, rank, a.len() / rank)?, MatrixRef::new(b, columns.len(), rank)?);
        Ok(Segment { columns: columns.clone(), a, b, scale })
    }
}

fn other_adapters(expected: &str, actual: &str) -> Error {
    Error::OtherAdapters { what: "the slot".into(), expected: expected.into(), actual: actual.into() }
}

fn of_slot(source: fused_lora::Error) -> Error {
    Error::Layer { what: "the slot".into(), source }
}

impl<W: Element> DeviceBottleneck<W> {
    fn upload(stream: &Stream, adapter: &Adapter<W>) -> Result<Self> {
        let (down, up) = (&adapter.down, &adapter.up);
        Ok(Self {
            down: DeviceBuffer::from_slice(stream, &turned(&down.weight, down.d_in, down.d_out))?,
            down_bias: DeviceBuffer::from_slice(stream, &down.bias)?,
            up: DeviceBuffer::from_slice(stream, &turned(&up.weight, up.d_in, up.d_out))?,
            up_bias: DeviceBuffer::from_slice(stream, &up.bias)?,
            norm: adapter.norm.as_ref().map(|norm| NormWeights::upload(stream, norm)).transpose()?,
            width: down.d_out,
            d_model: down.d_in,
        })
    }

    pub(super) fn view(&self) -> fused_lora::Result<DeviceAdapter<'_, W>> {
        Ok(DeviceAdapter {
            down: DeviceMatrix::new(self.down.as_slice(), self.width, self.d_model)?,
            down_bias: Some(self.down_bias.as_slice()),
            up: DeviceMatrix::new(self.up.as_slice(), self.d_model, self.width)?,
            up_bias: Some(self.up_bias.as_slice()),
            activation: Activation::Relu,
        })
    }

    /// Adapter^L's own LayerNorm.
    pub(super) fn norm(&self, epsilon: f32) -> Option<DeviceNorm<'_>> {
        self.norm.as_ref().map(|norm| norm.view(epsilon))
    }
}

impl<W: Element> DevicePrefix<W> {
    fn upload(stream: &Stream, prefix: &Prefix, config: &Config) -> Result<Self> {
        let d = config.d_model;
        let narrow = |wide: &[f32]| {
            let mut narrow = vec![W::zeroed(); wide.len()];
            W::narrow(wide, &mut narrow);
            narrow
        };
        Ok(match prefix {
            Prefix::Embedding { length, vectors } => {
                Self::Embedding { length: *length, vectors: DeviceBuffer::from_slice(stream, &narrow(vectors))? }
            }
            Prefix::Layer { length, keys_values, .. } => {
                let slice = |which: usize| -> Result<DeviceBuffer<W>> {
                    let rows = keys_values.chunks_exact(2 * config.layers * d).map(|row| &row[which * d..][..d]);
                    Ok(DeviceBuffer::from_slice(stream, &narrow(&rows.collect::<Vec<_>>().concat()))?)
                };
                let layer = |layer: usize| -> Result<_> { Ok([slice(2 * layer)?, slice(2 * layer + 1)?]) };
                Self::Layer { length: *length, keys_values: (0..config.layers).map(layer).collect::<Result<_>>()? }
            }
        })
    }
}

/// A `[rows, cols]` matrix as `[cols, rows]`.
fn turned<W: Element>(matrix: &[W], rows: usize, cols: usize) -> Vec<W> {
    (0..rows * cols).map(|i| matrix[i % rows * cols + i / rows]).collect()
}
