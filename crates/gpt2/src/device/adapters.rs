//! Adapters in device memory.

use std::ops::Range;

use fused_lora::Element;
use fused_lora::device::{DeviceAdapter, DeviceBuffer, DeviceMatrix, DeviceNorm, DeviceSegment, Stream};
use fused_lora::lora::Activation;

use super::weights::NormWeights;
use crate::adapter::bottleneck::{Adapter, Kind};
use crate::adapter::lora::{Factors, Projection};
use crate::adapter::prefix::Prefix;
use crate::adapter::{Adapters, LoraMode};
use crate::config::Config;
use crate::error::{Error, Result};

/// The adapters of a pass in device memory; a set without any is the base model.
#[derive(Debug)]
pub struct DeviceAdapters<W> {
    pub(super) mode: LoraMode,
    lora: Vec<[Vec<DeviceFactors>; 4]>,
    /// A and B of all layers, so that another adapter takes their place in one copy.
    factors: DeviceBuffer<W>,
    bottleneck: Option<(Kind, Vec<Vec<DeviceBottleneck<W>>>)>,
    prefix: Option<DevicePrefix<W>>,
    parameters: usize,
    bytes: usize,
}

/// One pair of factors: where they act, and where they lie in the buffer of all.
#[derive(Debug, Clone, PartialEq)]
struct DeviceFactors {
    columns: Range<usize>,
    a: Range<usize>,
    b: Range<usize>,
    rank: usize,
    scale: f32,
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
    /// Copies adapters to the stream's device. Prefixes are rounded to the model's type: on a device attention reads that.
    ///
    /// # Errors
    /// [`Error::OtherModel`]; [`Error::Layer`] without memory, and for what the
    /// driver refuses.
    pub fn upload(stream: &Stream, adapters: &Adapters<W>, config: &Config) -> Result<Self> {
        adapters.check(config)?;
        let mut factors = vec![];
        let mut gather = |all: &Vec<Factors<W>>| -> Vec<_> {
            all.iter().map(|one| DeviceFactors::gather(one, adapters.mode, &mut factors)).collect()
        };
        let lora = adapters.lora.iter().flat_map(|lora| &lora.layers);
        let lora =
            lora.map(|[qkv, attn_out, fc, mlp_out]| [gather(qkv), gather(attn_out), gather(fc), gather(mlp_out)]);
        let lora = lora.collect();
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
            lora,
            factors: DeviceBuffer::from_slice(stream, &factors)?,
            bottleneck: bottleneck.transpose()?,
            prefix,
            parameters: adapters.parameters(),
            bytes: 0,
        };
        uploaded.bytes = uploaded.count_bytes();
        Ok(uploaded)
    }

    /// Puts another LoRA of the same shapes in the place of this one, in one copy on the device: whatever was captured with these
    /// adapters runs with the other's factors from then on. Scales are part of a capture, so they must be the same.
    ///
    /// # Errors
    /// [`Error::OtherAdapters`] for other columns, ranks, scales, or way of running; what the driver refuses.
    pub fn take_factors(&mut self, stream: &Stream, from: &Self) -> Result<()> {
        if self.mode != from.mode || self.lora != from.lora {
            let shape = |adapters: &Self| {
                let all = adapters.lora.iter().flatten().flatten();
                let (pairs, ranks) = all.fold((0, 0), |(pairs, ranks), one| (pairs + 1, ranks + one.rank));
                format!("{pairs} pairs of factors of {ranks} ranks in all, {:?}", adapters.mode)
            };
            let (expected, actual) = (shape(self), shape(from));
            return Err(Error::OtherAdapters { what: "the model".into(), expected, actual });
        }
        self.factors.as_mut_slice().copy_from(stream, from.factors.as_slice())?;
        Ok(())
    }

    /// Trainable parameters, |Θ|.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Device memory that they take.
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
        (self.factors.len() + adapters().map(bottleneck).sum::<usize>() + prefix) * size_of::<W>()
            + adapters().map(norm).sum::<usize>()
    }

    /// The segments on one projection.
    pub(super) fn segments(&self, layer: usize, which: Projection) -> fused_lora::Result<Vec<DeviceSegment<'_, W>>> {
        match self.lora.get(layer) {
            Some(layer) => layer[which as usize].iter().map(|one| one.view(&self.factors)).collect(),
            None => Ok(vec![]),
        }
    }

    /// What sits behind the attention (0) and behind the MLP (1) of a layer.
    pub(super) fn houlsby(&self, layer: usize, which: usize) -> Option<&DeviceBottleneck<W>> {
        match &self.bottleneck {
            Some((Kind::Houlsby, layers)) => layers[layer].get(which),
            _ => None,
        }
    }

    /// What sits behind a layer.
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

    /// Vectors in front of the input, `[length, d_model]`.
    pub(super) fn vectors(&self, d_model: usize) -> fused_lora::Result<Option<DeviceMatrix<'_, W>>> {
        match &self.prefix {
            Some(DevicePrefix::Embedding { length, vectors }) => {
                DeviceMatrix::new(vectors.as_slice(), *length, d_model).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Keys and values of a layer that every sequence sees, `[length, d_model]` each.
    pub(super) fn prefix_of(&self, layer: usize) -> Option<&[DeviceBuffer<W>; 2]> {
        match &self.prefix {
            Some(DevicePrefix::Layer { keys_values, .. }) => keys_values.get(layer),
            _ => None,
        }
    }
}

impl DeviceFactors {
    /// Adds one pair to the buffer of all. Products of their own read B and T fastest if their rows are whole 16 bytes: for
    /// those, ranks are rounded up with zeros. Fused, the factors stay as they are.
    fn gather<W: Element>(factors: &Factors<W>, mode: LoraMode, all: &mut Vec<W>) -> Self {
        let chunk = 16 / size_of::<W>();
        let rank = factors.rank.next_multiple_of(if mode == LoraMode::Sequential { chunk } else { 1 });
        let d_in = factors.a.len() / factors.rank.max(1);
        let mut place = |elements: usize| {
            let begin = all.len().next_multiple_of(chunk);
            all.resize(begin + elements, W::zeroed());
            begin..begin + elements
        };
        let (a, b) = (place(rank * d_in), place(factors.columns.len() * rank));
        all[a.clone()][..factors.a.len()].copy_from_slice(&factors.a);
        for (to, from) in all[b.clone()].chunks_exact_mut(rank).zip(factors.b.chunks_exact(factors.rank)) {
            to[..factors.rank].copy_from_slice(from);
        }
        Self { columns: factors.columns.clone(), a, b, rank, scale: factors.scale }
    }

    fn view<'a, W: Element>(&self, all: &'a DeviceBuffer<W>) -> fused_lora::Result<DeviceSegment<'a, W>> {
        let rank = self.rank;
        Ok(DeviceSegment {
            columns: self.columns.clone(),
            a: DeviceMatrix::new(all.slice(self.a.clone()), rank, self.a.len() / rank.max(1))?,
            b: DeviceMatrix::new(all.slice(self.b.clone()), self.columns.len(), rank)?,
            scale: self.scale,
        })
    }
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
