//! The parameters of a launch that the plan decides, and the boxes of its tensor maps.

use crate::abi::{self, LoraFactors, LoraForward, LoraSegment};
use crate::dropout::NO_DROPOUT;
use crate::lora::Layout;
use crate::plan::lora::forward::{ForwardPlan, padded_rank};
use crate::plan::workspace::WorkspaceLayout;

/// Columns of a box of W0 `[in, out]` and of a box of y: the 16-bit elements in the 128 bytes of a swizzled row.
const BOX_COLUMNS: u32 = 64;
/// Rows of a box of y: the rows that one consumer warpgroup stores.
const BOX_ROWS: u32 = 64;

impl LoraSegment {
    /// The entries of a table after the last segment. Kernels do not read them; if one did, the scale of NaN would show
    /// it.
    pub const NONE: Self = Self {
        factors: LoraFactors {
            a: std::ptr::null(),
            b: std::ptr::null(),
            a_stride: 0,
            b_stride: 0,
            rank: 0,
            scale: f32::NAN,
        },
        begin: 0,
        end: 0,
        t_begin: 0,
        packed_begin: 0,
    };
}

impl ForwardPlan {
    /// The boxes that TMA copies of x, of W0 and of y: for each `[elements of a row, rows]`. The plan has
    /// [`tensor_maps`](Self::tensor_maps); `layout` is that of the layer.
    pub fn boxes(&self, layout: Layout) -> [[u32; 2]; 3] {
        let sharing = if self.splits == 1 { self.launch.cluster } else { 1 };
        let weight = match self.product.layout(layout) {
            Layout::OutIn => [self.stage_depth, self.tile_columns / sharing],
            Layout::InOut => [BOX_COLUMNS, self.stage_depth],
        };
        [[self.stage_depth, self.tile_rows], weight, [BOX_COLUMNS, BOX_ROWS]]
    }

    /// The parameters of a launch that the plan decides: tiles and splits, the addresses of the workspace's parts, and
    /// the first column of each segment in T. The caller sets the others, which are null or 0 here: the operands, their
    /// sizes and strides, the activation, the slot, the dropout.
    ///
    /// `segments` are those of the planned layer, in the same order; their `t_begin` and `packed_begin` are replaced.
    /// `workspace` is the device address of a workspace whose `layout` [serves](WorkspaceLayout::serves) the plan.
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 segments of rank 512 at most")]
    pub fn params(&self, segments: &[LoraSegment], workspace: u64, layout: &WorkspaceLayout) -> LoraForward {
        let mut table = [LoraSegment::NONE; abi::LORA_MAX_SEGMENTS as usize];
        let (mut t_begin, mut packed_begin) = (0, 0);
        for (entry, segment) in table.iter_mut().zip(segments) {
            *entry = LoraSegment { t_begin, packed_begin, ..*segment };
            t_begin += padded_rank(segment.factors.rank as usize) as u32;
            packed_begin += segment.factors.rank;
        }
        let partial = workspace + layout.partial_offset() as u64;
        let arrivals = workspace + layout.arrivals_offset() as u64;
        LoraForward {
            x: std::ptr::null(),
            weight: std::ptr::null(),
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            y: std::ptr::null_mut(),
            t_out: std::ptr::null_mut(),
            ticket: workspace as *mut _,
            t: (workspace + layout.t_tiles_offset() as u64) as *mut _,
            flags: (workspace + layout.flags_offset() as u64) as *mut _,
            partial: partial as *mut _,
            arrivals: arrivals as *mut _,
            t_partial: (partial + 4 * self.y_partial() as u64) as *mut _,
            t_arrivals: (arrivals + 4 * u64::from(self.y_arrivals())) as *mut _,
            slot: std::ptr::null(),
            dropout: NO_DROPOUT,
            tokens: 0,
            depth: 0,
            columns: 0,
            x_stride: 0,
            weight_stride: 0,
            y_stride: 0,
            residual_stride: 0,
            t_stride: self.t_stride,
            t_out_stride: 0,
            row_tiles: self.row_tiles,
            column_tiles: self.column_tiles,
            t_tiles: self.t_tiles,
            splits: self.splits,
            split_depth: self.split_depth,
            t_splits: self.t_splits,
            t_split_depth: self.t_split_depth,
            raster_rows: self.raster_rows,
            activation: abi::LORA_IDENTITY,
            segment_count: segments.len() as u32,
            slot_begin: 0,
            segments: table,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::plan::problem::{ComputePath, LayerProblem};

    #[test]
    fn segments_have_their_columns_in_the_padded_t_and_in_the_packed_t() {
        let plan = ForwardPlan::new(&LayerProblem {
            tokens: 100,
            d_in: 64,
            d_out: 48,
            layout: Layout::OutIn,
            dtype: DType::Bf16,
            ranks: &[3, 17, 16],
            aligned: true,
            multiprocessors: 132,
            compute_capability: (9, 0),
            path: ComputePath::Auto,
        })
        .expect("a plan");
        let factors = |rank| LoraFactors { rank, ..LoraSegment::NONE.factors };
        let segments = [3, 17, 16].map(|rank| LoraSegment {
            factors: factors(rank),
            t_begin: 99,
            packed_begin: 99,
            ..LoraSegment::NONE
        });
        let layout = WorkspaceLayout { t_words: 5, ..plan.workspace };
        let params = plan.params(&segments, 0x1000, &layout);
        let begins = params.segments.map(|segment| (segment.t_begin, segment.packed_begin));
        assert_eq!(begins[..4], [(0, 0), (16, 3), (48, 20), (0, 0)]);
        assert_eq!((params.segment_count, params.t_stride), (3, 64));
        assert_eq!(params.flags as u64, 0x1000 + 8 + 40, "after the words of T of a decode kernel");
    }
}
