//! The parameters of a launch of [`Forward`](crate::device::Forward) on a decode kernel, for 1 to 16 tokens.

use crate::WorkspaceLayout;
use crate::abi::LoraDecode;
use crate::device::lora::call::Operands;
use crate::device::lora::layer::{activation_code, segment_table};
use crate::dtype::Element;
use crate::plan::lora::decode::DecodePlan;

/// The parameters of a launch whose operands were checked.
#[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
pub(crate) fn params<T: Element>(plan: &DecodePlan, operands: &Operands<'_, T>) -> LoraDecode {
    let &Operands { layer, x, slot, y, epilogue, workspace, .. } = operands;
    let (slot, slot_begin) = slot.map_or((0, 0), |slot| slot.params());
    let added = operands.added();
    let (segments, total_rank) = segment_table(layer.segments, 1.0);
    LoraDecode {
        x: x.address() as *const _,
        weight: layer.weight.address() as *const _,
        bias: layer.bias.map_or(std::ptr::null(), |bias| bias.address() as *const _),
        residual: added.map_or(std::ptr::null(), |added| added.address() as *const _),
        y: y.address() as *mut _,
        ticket: workspace.address() as *mut _,
        t: (workspace.address() + WorkspaceLayout::T_OFFSET as u64) as *mut _,
        partial: (workspace.address() + workspace.layout().partial_offset() as u64) as *mut _,
        arrivals: (workspace.address() + workspace.layout().arrivals_offset() as u64) as *mut _,
        slot: slot as *const _,
        tokens: x.rows() as u32,
        depth: x.cols() as u32,
        columns: y.cols() as u32,
        total_rank,
        x_stride: x.row_stride() as u32,
        weight_stride: layer.weight.row_stride() as u32,
        y_stride: y.row_stride() as u32,
        residual_stride: added.map_or(0, |added| added.row_stride() as u32),
        tile_columns: plan.tile_columns,
        row_threads: plan.row_threads,
        splits: plan.splits,
        split_depth: plan.split_depth,
        shrink_rows: plan.shrink_rows,
        widest_rank: plan.widest_rank,
        activation: activation_code(epilogue.activation),
        segment_count: layer.segments.len() as u32,
        slot_begin,
        sums_stride: plan.sums_stride,
        segments,
    }
}
