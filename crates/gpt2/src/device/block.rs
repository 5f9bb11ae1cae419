//! One transformer block on a device: plans its launches and issues them.

use std::ops::Range;

use fused_lora::Element;
use fused_lora::WorkspaceLayout;
use fused_lora::device::{
    Adapter, Attention, AttentionMemory, Device, DeviceMatrix, DeviceSlice, DeviceSliceMut, LayerNorm,
    MergeReportBuffer, Stream, Workspace,
};
use fused_lora::lora::{Activation, Residual};
use fused_lora::plan::transformer::AttentionShape;

use super::adapters::{DeviceAdapters, DeviceBottleneck};
use super::arena::{PartSizes, Parts, matrix, matrix_mut};
use super::cache::Cache;
use super::projection::{PlannedProjection, ProjectionCall, Scratch};
use super::shape::PassShape;
use super::weights::DeviceModel;
use crate::adapter::lora::Projection;
use crate::error::{Error, Result};

/// The planned launches of a block.
#[derive(Debug)]
pub(super) struct Block<W> {
    projections: [PlannedProjection<W>; 4],
    attention: Attention<W>,
    houlsby: [Option<Adapter<W>>; 2],
    /// The adapter after the whole block (Lin, Pfeiffer), and whether it has a LayerNorm.
    after_block: Option<Adapter<W>>,
    after_block_has_norm: bool,
}

/// The model, the adapters and the cache of a pass.
pub(super) struct PassInputs<'a, W> {
    pub(super) model: &'a DeviceModel<W>,
    pub(super) adapters: &'a DeviceAdapters<W>,
    /// The cache, and its sequences that the pass continues.
    pub(super) cache: Option<(&'a mut Cache<W>, Range<usize>)>,
}

/// The block's index, and what the blocks of a pass share.
pub(super) struct BlockContext<'a, W> {
    pub(super) index: usize,
    pub(super) sequences: usize,
    /// Rows of a sequence, prefix vectors included.
    pub(super) length: usize,
    pub(super) norm: &'a LayerNorm<W>,
    /// Keys that each sequence has in the cache.
    pub(super) lengths: DeviceSlice<'a, u32>,
}

impl<W: Element> Block<W> {
    pub(super) fn new(
        device: &Device,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        shape: &PassShape,
        index: usize,
        length: usize,
    ) -> Result<Self> {
        let config = model.config();
        let rows = shape.sequences * length;
        let plan = |projection: Projection| -> Result<PlannedProjection<W>> {
            let name = |source| Error::Layer { what: name(index, projection), source };
            let linear = model.layers[index].projection(projection);
            let segments = adapters.segments(index, projection);
            let activation = activation(config.activation, projection);
            PlannedProjection::new(device, linear, &segments, adapters.mode, activation, rows).map_err(name)
        };
        let [qkv, attn_out, fc, mlp_out] = Projection::ALL;
        let named = |source| Error::Layer { what: format!("h.{index}.attn"), source };
        let capacity =
            shape.cache.unwrap_or(adapters.prefix_keys_values(index).map_or(0, |[k, _]| k.len() / config.d_model));
        let attention = AttentionShape {
            sequences: shape.sequences,
            tokens: length,
            heads: config.heads,
            head_size: config.head_size(),
            capacity,
            scale: config.attention_scale(index),
        };
        let adapter = |bottleneck: Option<&DeviceBottleneck<W>>| -> Result<Option<Adapter<W>>> {
            let name = |source| Error::Layer { what: format!("h.{index}.adapter"), source };
            bottleneck.map(|b| Adapter::new(device, &b.view()?, rows)).transpose().map_err(name)
        };
        let block = Self {
            projections: [plan(qkv)?, plan(attn_out)?, plan(fc)?, plan(mlp_out)?],
            attention: Attention::new(device, &attention).map_err(named)?,
            houlsby: [adapter(adapters.houlsby(index, 0))?, adapter(adapters.houlsby(index, 1))?],
            after_block: adapter(adapters.after_block(index))?,
            after_block_has_norm: adapters.after_block(index).is_some_and(|b| b.norm(0.0).is_some()),
        };
        Ok(if shape.dependent { block.with_dependent_launches() } else { block })
    }

    fn with_dependent_launches(self) -> Self {
        Self {
            projections: self.projections.map(PlannedProjection::with_dependent_launches),
            attention: self.attention.with_dependent_launch(),
            houlsby: self.houlsby.map(|adapter| adapter.map(Adapter::with_dependent_launch)),
            after_block: self.after_block.map(Adapter::with_dependent_launch),
            after_block_has_norm: self.after_block_has_norm,
        }
    }

    /// The sizes of the arena's parts that only some blocks need.
    pub(super) fn sizes(
        &self,
        model: &DeviceModel<W>,
        adapters: &DeviceAdapters<W>,
        index: usize,
        rows: usize,
    ) -> Result<PartSizes> {
        let second_x = self.after_block.is_some() || self.houlsby.iter().any(Option::is_some);
        let mut sizes =
            PartSizes { second_x: if second_x { rows * model.config.d_model } else { 0 }, ..PartSizes::default() };
        for projection in Projection::ALL {
            let linear = model.layers[index].projection(projection);
            let segments = adapters.segments(index, projection);
            sizes = sizes.largest(&self.projections[projection as usize].sizes(linear, &segments, rows));
        }
        Ok(sizes)
    }

    pub(super) fn workspace(&self) -> WorkspaceLayout {
        let adapters = self.houlsby.iter().chain([&self.after_block]).flatten().map(Adapter::workspace);
        let projections = self.projections.iter().map(PlannedProjection::workspace);
        projections.chain(adapters).fold(self.attention.workspace(), |all, one| all.union(&one))
    }

    pub(super) fn launches(&self) -> usize {
        // The attention is one launch. There are two LayerNorms, and Adapter^L has one more.
        let adapters = self.houlsby.iter().chain([&self.after_block]).flatten().count();
        let norms = 2 + usize::from(self.after_block_has_norm);
        self.projections.iter().map(PlannedProjection::launches).sum::<usize>() + 1 + norms + adapters
    }

    /// `x += c_proj(attn(ln_1 x)); x += c_proj(act(c_fc(ln_2 x)))`, with adapters. `normed` holds `ln_1 x` at the
    /// start, and the next block's at the end.
    pub(super) fn issue(
        &self,
        stream: &Stream,
        inputs: &mut PassInputs<'_, W>,
        context: &BlockContext<'_, W>,
        parts: &mut Parts<'_, W>,
        report: &mut MergeReportBuffer,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let &BlockContext { index, sequences, length, norm, lengths } = context;
        let (model, adapters) = (inputs.model, inputs.adapters);
        let (config, layer) = (model.config(), &model.layers[index]);
        let (d, rows, epsilon) = (config.d_model, sequences * length, config.layer_norm_epsilon);
        let named = |what: &'static str| move |source| Error::Layer { what: format!("h.{index}.{what}"), source };
        let Parts { x, second_x, normed, qkv_or_hidden, t, low_rank_product, delta, zeros, .. } = parts;
        let mut scratch = Scratch { t, low_rank_product, delta, zeros, report, workspace };
        let projections = Projections { planned: &self.projections, stream, model, adapters, index };

        projections.launch(Projection::Qkv, matrix(normed, rows, d)?, false, qkv_or_hidden, &mut scratch)?;
        let (qkv, mut attended) = qkv_or_hidden.slice_mut(0..4 * rows * d).split_at(3 * rows * d);
        let memory = match (&mut inputs.cache, adapters.prefix_keys_values(index)) {
            (Some((cache, sequences)), _) => {
                let [keys, values] = cache.layer(index, sequences.clone())?;
                AttentionMemory::Cache { keys, values, lengths }
            }
            (None, Some([keys, values])) => AttentionMemory::Prefix {
                keys: DeviceMatrix::new(keys.as_slice(), keys.len() / d, d)?,
                values: DeviceMatrix::new(values.as_slice(), values.len() / d, d)?,
            },
            (None, None) => AttentionMemory::None,
        };
        let out = matrix_mut(&mut attended, rows, d)?;
        self.attention
            .launch(stream, matrix(&qkv, rows, 3 * d)?, memory, out, scratch.workspace)
            .map_err(named("attn"))?;

        let adapter = |sublayer: usize| self.houlsby[sublayer].as_ref().zip(adapters.houlsby(index, sublayer));
        let attended = matrix(&attended, rows, d)?;
        match adapter(0) {
            None => projections.launch(Projection::AttnOut, attended, true, x, &mut scratch)?,
            Some((planned, adapter)) => {
                projections.launch(Projection::AttnOut, attended, false, second_x, &mut scratch)?;
                let (s, x) = (matrix(second_x, rows, d)?, matrix_mut(x, rows, d)?);
                planned
                    .launch(stream, &adapter.view()?, s, true, Residual::InPlace, x, scratch.workspace)
                    .map_err(named("adapter_attn"))?;
            }
        }

        norm.launch(stream, matrix(x, rows, d)?, &layer.ln_2.view(epsilon), matrix_mut(normed, rows, d)?)
            .map_err(named("ln_2"))?;
        projections.launch(Projection::Fc, matrix(normed, rows, d)?, false, qkv_or_hidden, &mut scratch)?;
        let hidden = matrix(qkv_or_hidden, rows, config.d_ff)?;
        match adapter(1) {
            None => projections.launch(Projection::MlpOut, hidden, true, x, &mut scratch)?,
            Some((planned, adapter)) => {
                projections.launch(Projection::MlpOut, hidden, false, second_x, &mut scratch)?;
                let (s, x) = (matrix(second_x, rows, d)?, matrix_mut(x, rows, d)?);
                planned
                    .launch(stream, &adapter.view()?, s, true, Residual::InPlace, x, scratch.workspace)
                    .map_err(named("adapter_mlp"))?;
            }
        }

        if let Some((planned, adapter)) = self.after_block.as_ref().zip(adapters.after_block(index)) {
            let view = adapter.view()?;
            let launched = if let Some(own) = adapter.norm(epsilon) {
                norm.launch(stream, matrix(x, rows, d)?, &own, matrix_mut(normed, rows, d)?)?;
                let (input, x) = (matrix(normed, rows, d)?, matrix_mut(x, rows, d)?);
                planned.launch(stream, &view, input, false, Residual::InPlace, x, scratch.workspace)
            } else {
                let (input, y) = (matrix(x, rows, d)?, matrix_mut(second_x, rows, d)?);
                let launched = planned.launch(stream, &view, input, true, Residual::None, y, scratch.workspace);
                std::mem::swap(x, second_x);
                launched
            };
            launched.map_err(named("adapter"))?;
        }
        let next = model.layers.get(index + 1).map_or(&model.ln_f, |next| &next.ln_1);
        norm.launch(stream, matrix(x, rows, d)?, &next.view(epsilon), matrix_mut(normed, rows, d)?).map_err(named("ln"))
    }
}

/// Launches a block's projections.
struct Projections<'a, W> {
    planned: &'a [PlannedProjection<W>; 4],
    stream: &'a Stream,
    model: &'a DeviceModel<W>,
    adapters: &'a DeviceAdapters<W>,
    index: usize,
}

impl<W: Element> Projections<'_, W> {
    fn launch(
        &self,
        projection: Projection,
        input: DeviceMatrix<'_, W>,
        adds: bool,
        y: &mut DeviceSliceMut<'_, W>,
        scratch: &mut Scratch<'_, '_, W>,
    ) -> Result<()> {
        let &Self { planned, stream, model, adapters, index } = self;
        let linear = model.layers[index].projection(projection);
        let activation = activation(model.config.activation, projection);
        let (segments, slot) = (adapters.segments(index, projection), adapters.slot_segments(index, projection));
        let call = ProjectionCall { linear, segments: &segments, slot, activation, adds };
        let launched = planned[projection as usize].launch(stream, &call, input, y, scratch);
        launched.map_err(|source| Error::Layer { what: name(index, projection), source })
    }
}

fn activation(of_mlp: Activation, projection: Projection) -> Activation {
    if projection == Projection::Fc { of_mlp } else { Activation::Identity }
}

fn name(layer: usize, projection: Projection) -> String {
    format!("h.{layer}.{}", projection.name())
}
