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
use crate::adapter::{Adapters, LoraMode, expect_same};
use crate::config::Config;
use crate::error::{Error, Result};

/// The adapters of a pass in device memory; with none of them, a pass runs the base model.
#[derive(Debug)]
pub struct DeviceAdapters<W> {
    pub(super) mode: LoraMode,
    /// A and B of all layers.
    factors: DeviceFactors<W>,
    segments: SegmentIndices,
    /// The slot from which passes take the factors, if the LoRA is swappable.
    slot: Option<FactorSlot<W>>,
    bottleneck: Option<(Kind, Vec<Vec<DeviceBottleneck<W>>>)>,
    prefix: Option<DevicePrefix<W>>,
    parameters: usize,
    bytes: usize,
    /// Layers and width of the model that the adapters are for.
    layers: usize,
    d_model: usize,
}

/// A bottleneck adapter. Both weights are stored `[out, in]`.
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
    /// Copies adapters to the stream's device. Prefixes are rounded to the model's type, because the attention kernels
    /// read keys and values of that type.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`]; [`Error::Layer`] if memory cannot be allocated, and for errors of the driver.
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
            layers: config.layers,
            d_model: config.d_model,
        };
        uploaded.bytes = uploaded.count_bytes();
        Ok(uploaded)
    }

    /// Makes the LoRA swappable, also in passes that are captured from now on: they find the factors through a
    /// [`FactorSlot`], with two more loads per projection.
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`] unless the LoRA is fused; [`Error::Layer`] if memory cannot be allocated.
    pub fn swappable(mut self, stream: &Stream) -> Result<Self> {
        self.expect_fused()?;
        self.slot = Some(FactorSlot::new(stream, &self.factors).map_err(slot_error)?);
        Ok(self)
    }

    /// Issues the replacement of this LoRA's factors by another's, on the same columns with at most the same ranks and
    /// any scale. Passes issued or replayed on the stream afterwards run with the new factors, which stay in memory
    /// while they are used.
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`] unless this LoRA is [swappable](Self::swappable) and `other` is a fused LoRA, of
    /// the same projections in every layer, without other adapters; [`Error::Layer`] for other columns or higher ranks.
    pub fn put(&mut self, stream: &Stream, other: &Self) -> Result<()> {
        other.expect_fused()?;
        if other.bottleneck.is_some() || other.prefix.is_some() {
            return Err(slot_mismatch("a LoRA alone", "a LoRA with other adapters"));
        }
        // Factors of the same shapes could still belong to another projection or layer.
        if self.segments != other.segments {
            return Err(slot_mismatch("a LoRA of the same projections in every layer", "a LoRA of other projections"));
        }
        self.expect_slot()?.put(stream, &other.factors).map_err(slot_error)
    }

    /// Issues the removal of the LoRA: passes issued or replayed on the stream afterwards run the base model.
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`] unless the LoRA is [swappable](Self::swappable).
    pub fn clear(&mut self, stream: &Stream) -> Result<()> {
        self.expect_slot()?.clear(stream).map_err(slot_error)
    }

    /// Checks that the adapters are for a model of this many layers and features.
    pub(super) fn expect_shape(&self, layers: usize, d_model: usize) -> Result<()> {
        let subject = "the model of the adapters has";
        expect_same(subject, "layers", layers, self.layers)?;
        expect_same(subject, "features", d_model, self.d_model)
    }

    fn expect_fused(&self) -> Result<()> {
        match self.mode {
            LoraMode::Fused => Ok(()),
            mode => Err(slot_mismatch("a fused LoRA", &format!("a LoRA in mode {mode:?}"))),
        }
    }

    fn expect_slot(&mut self) -> Result<&mut FactorSlot<W>> {
        self.slot.as_mut().ok_or_else(|| slot_mismatch("swappable adapters", "adapters that are not swappable"))
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
    pub(super) fn segments(&self, layer: usize, projection: Projection) -> Vec<DeviceSegment<'_, W>> {
        self.segment_range(layer, projection).map(|index| self.factors.segment(index)).collect()
    }

    /// The same segments, taken from the slot, if there is one.
    pub(super) fn slot_segments(&self, layer: usize, projection: Projection) -> Option<SlotSegments<'_, W>> {
        let segment_range = self.segment_range(layer, projection);
        self.slot.as_ref().filter(|_| !segment_range.is_empty()).map(|slot| slot.segments(segment_range))
    }

    fn segment_range(&self, layer: usize, projection: Projection) -> Range<usize> {
        self.segments.get(layer).map_or(0..0, |layer| layer[projection as usize].clone())
    }

    /// The Houlsby adapter after the attention (sublayer 0) or the MLP (1) of a layer.
    pub(super) fn houlsby(&self, layer: usize, sublayer: usize) -> Option<&DeviceBottleneck<W>> {
        match &self.bottleneck {
            Some((Kind::Houlsby, layers)) => layers[layer].get(sublayer),
            _ => None,
        }
    }

    /// The adapter after a whole block (Lin, Pfeiffer).
    pub(super) fn after_block(&self, layer: usize) -> Option<&DeviceBottleneck<W>> {
        match &self.bottleneck {
            Some((Kind::Lin | Kind::Pfeiffer, layers)) => layers[layer].first(),
            _ => None,
        }
    }

    /// Length of the prefix in tokens; 0 without a prefix.
    pub(super) fn prefix_length(&self) -> usize {
        match &self.prefix {
            None => 0,
            Some(DevicePrefix::Embedding { length, .. } | DevicePrefix::Layer { length, .. }) => *length,
        }
    }

    /// The vectors of a prefix-embedding, `[length, d_model]`.
    pub(super) fn prefix_vectors(&self, d_model: usize) -> fused_lora::Result<Option<DeviceMatrix<'_, W>>> {
        match &self.prefix {
            Some(DevicePrefix::Embedding { length, vectors }) => {
                DeviceMatrix::new(vectors.as_slice(), *length, d_model).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The keys and values that a prefix-layer has in this layer, `[length, d_model]` each.
    pub(super) fn prefix_keys_values(&self, layer: usize) -> Option<&[DeviceBuffer<W>; 2]> {
        match &self.prefix {
            Some(DevicePrefix::Layer { keys_values, .. }) => keys_values.get(layer),
            _ => None,
        }
    }
}

/// The indices of each projection's segments, layer by layer.
type SegmentIndices = Vec<[Range<usize>; 4]>;

/// Uploads a LoRA's factors. Returns them with the indices of each projection's segments.
fn upload_factors<W: Element>(
    stream: &Stream,
    lora: &Lora<W>,
    mode: LoraMode,
) -> Result<(DeviceFactors<W>, SegmentIndices)> {
    let (mut all, mut segment_range) = (vec![], vec![]);
    for layer in 0..lora.layers.len() {
        let mut of_layer = [const { 0..0 }; 4];
        for projection in Projection::ALL {
            let begin = all.len();
            all.extend(lora.segments(layer, projection)?);
            of_layer[projection as usize] = begin..all.len();
        }
        segment_range.push(of_layer);
    }
    let padded: Vec<_> = if mode == LoraMode::Sequential { all.iter().map(Padded::new).collect() } else { vec![] };
    if mode == LoraMode::Sequential {
        all = padded.iter().map(Padded::view).collect::<fused_lora::Result<_>>()?;
    }
    Ok((DeviceFactors::upload(stream, &all)?, segment_range))
}

/// A segment whose rank is padded with zeros, for sequential LoRA: its products read B and T fastest if rows are
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

fn slot_mismatch(expected: &str, actual: &str) -> Error {
    Error::AdapterMismatch { what: "the slot".into(), expected: expected.into(), actual: actual.into() }
}

fn slot_error(source: fused_lora::Error) -> Error {
    Error::Layer { what: "the slot".into(), source }
}

impl<W: Element> DeviceBottleneck<W> {
    fn upload(stream: &Stream, adapter: &Adapter<W>) -> Result<Self> {
        let (down, up) = (&adapter.down, &adapter.up);
        Ok(Self {
            down: DeviceBuffer::from_slice(stream, &transposed(&down.weight, down.d_in, down.d_out))?,
            down_bias: DeviceBuffer::from_slice(stream, &down.bias)?,
            up: DeviceBuffer::from_slice(stream, &transposed(&up.weight, up.d_in, up.d_out))?,
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
                let slice = |index: usize| -> Result<DeviceBuffer<W>> {
                    let rows = keys_values.chunks_exact(2 * config.layers * d).map(|row| &row[index * d..][..d]);
                    Ok(DeviceBuffer::from_slice(stream, &narrow(&rows.collect::<Vec<_>>().concat()))?)
                };
                let layer = |layer: usize| -> Result<_> { Ok([slice(2 * layer)?, slice(2 * layer + 1)?]) };
                Self::Layer { length: *length, keys_values: (0..config.layers).map(layer).collect::<Result<_>>()? }
            }
        })
    }
}

/// The transpose of a `[rows, cols]` matrix.
fn transposed<W: Element>(matrix: &[W], rows: usize, cols: usize) -> Vec<W> {
    (0..rows * cols).map(|i| matrix[i % rows * cols + i / rows]).collect()
}
