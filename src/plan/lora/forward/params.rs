//! What of a launch's parameters a plan decides.

use crate::abi::{self, LoraFactors, LoraForward, LoraSegment};
use crate::dropout::NO_DROPOUT;
use crate::lora::Layout;
use crate::plan::lora::forward::{ForwardPlan, padded};
use crate::plan::workspace::WorkspaceLayout;

/// Columns of a box of W0 `[in, out]` and of y: with 16-bit types what the 128 bytes of a swizzled row hold.
const BOX_COLUMNS: u32 = 64;
/// Rows of a box of y: a warpgroup's.
const BOX_ROWS: u32 = 64;

impl LoraSegment {
    /// What stands in a table behind the last segment: never read, and NaN if it is.
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
    /// Of a plan with [`tensor_maps`](Self::tensor_maps), the boxes of x, of W0 and of y that the copy engine moves:
    /// elements along a row, rows. `layout` is the layer's.
    pub fn boxes(&self, layout: Layout) -> [[u32; 2]; 3] {
        let sharing = if self.splits == 1 { self.launch.cluster } else { 1 };
        let weight = match self.product.layout(layout) {
            Layout::OutIn => [self.stage_depth, self.tile_columns / sharing],
            Layout::InOut => [BOX_COLUMNS, self.stage_depth],
        };
        [[self.stage_depth, self.tile_rows], weight, [BOX_COLUMNS, BOX_ROWS]]
    }

    /// A launch's parameters as far as the plan decides them: the cut into tiles, the workspace's parts, and each segment's
    /// place in T. What the caller knows is left null or zero: the operands, their sizes and strides, the activation.
    ///
    /// The segments are those of the planned layer, in its order; their `t_begin` and `packed_begin` may be anything.
    /// `workspace` is the address of a workspace of the layout `room`, which [serves](WorkspaceLayout::serves) the plan.
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 segments of rank 512 at most")]
    pub fn params(&self, segments: &[LoraSegment], workspace: u64, room: &WorkspaceLayout) -> LoraForward {
        let mut table = [LoraSegment::NONE; abi::LORA_MAX_SEGMENTS as usize];
        let (mut t_begin, mut packed_begin) = (0, 0);
        for (place, segment) in table.iter_mut().zip(segments) {
            *place = LoraSegment { t_begin, packed_begin, ..*segment };
            t_begin += padded(segment.factors.rank as usize) as u32;
            packed_begin += segment.factors.rank;
        }
        let partial = workspace + room.partial_offset() as u64;
        let arrivals = workspace + room.arrivals_offset() as u64;
        LoraForward {
            x: std::ptr::null(),
            weight: std::ptr::null(),
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            y: std::ptr::null_mut(),
            t_out: std::ptr::null_mut(),
            ticket: workspace as *mut _,
            t: (workspace + room.t_tiles_offset() as u64) as *mut _,
            flags: (workspace + room.flags_offset() as u64) as *mut _,
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
    fn segments_have_their_places_in_both_ts() {
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
        let room = WorkspaceLayout { t_words: 5, ..plan.workspace };
        let params = plan.params(&segments, 0x1000, &room);
        let places = params.segments.map(|segment| (segment.t_begin, segment.packed_begin));
        assert_eq!(places[..4], [(0, 0), (16, 3), (48, 20), (0, 0)]);
        assert_eq!((params.segment_count, params.t_stride), (3, 64));
        assert_eq!(params.flags as u64, 0x1000 + 8 + 40, "behind the words of T of a decode kernel");
    }
}
