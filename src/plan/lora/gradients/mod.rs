//! The plan of one launch of `lora_gradients`.

mod problem;
mod tiles;

pub use problem::{GradientsProblem, GradientsSegment};

use crate::abi::{self, LoraGradients, LoraGradientsSegment};
use crate::dropout::NO_DROPOUT;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::launch::LaunchShape;
use crate::plan::problem::ComputePath;
use crate::plan::workspace::WorkspaceLayout;
use tiles::{BLOCK, PANEL, STEP};

/// How one launch of `lora_gradients` computes dA and dB of all segments, and the bias's gradient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GradientsPlan {
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Tokens in a stage.
    pub stage_tokens: u32,
    /// Stages of the ring in shared memory.
    pub stages: u32,
    /// dA: panels of 256 columns of x.
    pub a_panels: u32,
    /// dA: blocks of 64 columns of Q that each panel is multiplied with.
    pub a_blocks: u32,
    /// dB: panels of 256 columns of dy.
    pub b_panels: u32,
    /// dB: blocks of 64 columns of T that a panel is multiplied with, in the panel that has the most.
    pub b_blocks: u32,
    /// CTAs that share the tokens of a tile; 1 without a split.
    pub splits: u32,
    /// Tokens per CTA.
    pub split_tokens: u32,
    /// Columns of Q, in elements: the ranks, each rounded up to a multiple of 16, added.
    pub q_stride: u32,
    /// The workspace that the launch needs, including Q, which the launch of dx has stored.
    pub workspace: WorkspaceLayout,
    /// The least global memory traffic, in bytes: x, T, Q and the columns of dy that are needed read once, the
    /// gradients written once.
    pub floor_bytes: usize,
    /// Global memory traffic that the launch requests, in bytes: operands each time that they are read, partial sums
    /// written once and read once, gradients written once. If the launch accumulates, it also reads the gradients.
    pub moved_bytes: usize,
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
}

impl GradientsPlan {
    /// Plans the launch of dA, dB and the bias's gradient.
    ///
    /// # Errors
    /// [`Error::TooManySegments`], [`Error::RankOutOfRange`], [`Error::SegmentOutOfRange`], [`Error::EmptyOperand`],
    /// [`Error::NothingWanted`] if there is neither a segment nor a bias, [`Error::NoMatrixInstructions`], [`Error::TooLarge`] if there are
    /// more tiles than a launch can have CTAs.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the number of CTAs, the tokens and the ranks are checked; the other numbers are smaller"
    )]
    pub fn new(problem: &GradientsProblem<'_>) -> Result<Self> {
        let ranks: Vec<_> = problem.segments.iter().map(|segment| segment.rank).collect();
        let layer = problem.layer(&ranks);
        problem.validate(&layer)?;
        let &GradientsProblem { tokens, d_in, d_out, dtype, segments, bias, .. } = problem;
        let (family, multiply_adds_per_cycle) = match (layer.path, layer.matrix_obstacle(), dtype) {
            (ComputePath::Matrix, Some(reason), _) => return Err(Error::NoMatrixInstructions { dtype, reason }),
            (.., DType::F32) => ("", 100),
            (ComputePath::CudaCores, ..) | (_, Some(_), _) => ("", 40),
            _ => ("mma_", 1024),
        };

        let (a_tiles, b_tiles) = tiles::tiles(problem);
        let (a_panels, b_panels) = (d_in.div_ceil(PANEL), d_out.div_ceil(PANEL));
        let (a_blocks, b_blocks) = (a_tiles.len() / a_panels, b_tiles.iter().map(Vec::len).max().unwrap_or(0));
        let all_tiles = || a_tiles.iter().chain(b_tiles.iter().flatten()).copied();
        let widest = all_tiles().max_by_key(|tile| (tile.wide_read + tile.skinny_read, tile.block_columns));
        let widest = widest.ok_or(Error::NothingWanted)?;
        let (splits, split_tokens) = tiles::splits(problem, all_tiles().count(), widest, multiply_adds_per_cycle);
        let tiles = a_tiles.len() + b_panels * b_blocks;
        if tiles * splits > i32::MAX as usize || split_tokens > i32::MAX as usize {
            return Err(Error::TooLarge { operand: "dA and dB", value: (tiles * splits).max(split_tokens) });
        }

        let (size, split_tiles) = (dtype.size(), if splits == 1 { 0 } else { tiles });
        let q_stride: usize = ranks.iter().map(|rank| rank.next_multiple_of(STEP)).sum();
        let bias_partial = if bias && splits > 1 { b_panels * splits * PANEL } else { 0 };
        let total_rank: usize = ranks.iter().sum();
        let factors: usize = segments.iter().map(|segment| segment.rank * (d_in + segment.columns.len())).sum();
        let gradients = 4 * (factors + if bias { d_out } else { 0 });
        let x_columns = if segments.is_empty() { 0 } else { d_in };
        let dy_columns = if bias { d_out } else { problem.adapted_columns() };
        let columns_read: usize = all_tiles().map(|tile| tile.wide_read + tile.skinny_read).sum();
        let partial_sums: usize = all_tiles().map(|tile| tile.partial_sums()).sum();
        let partial_moved = if splits == 1 { 0 } else { 2 * splits * partial_sums };
        let stage_tokens = tiles::stage_tokens(dtype);
        Ok(Self {
            launch: LaunchShape {
                kernel: format!("lora_gradients_{family}{dtype}"),
                grid: [(tiles * splits) as u32, 1, 1],
                threads: abi::LORA_GRADIENTS_COLUMNS,
                shared_bytes: abi::LORA_GRADIENTS_STAGES * abi::LORA_GRADIENTS_STAGE_BYTES * (PANEL + BLOCK) as u32,
                cluster: 1,
            },
            stage_tokens: stage_tokens as u32,
            stages: abi::LORA_GRADIENTS_STAGES,
            a_panels: a_panels as u32,
            a_blocks: a_blocks as u32,
            b_panels: b_panels as u32,
            b_blocks: b_blocks as u32,
            splits: splits as u32,
            split_tokens: split_tokens as u32,
            q_stride: q_stride as u32,
            workspace: WorkspaceLayout {
                arrivals: split_tiles,
                partial: split_tiles * splits * PANEL * BLOCK + bias_partial,
                t_bytes: tokens * q_stride * size,
                ..WorkspaceLayout::default()
            },
            floor_bytes: tokens * (x_columns + dy_columns + 2 * total_rank) * size + gradients,
            moved_bytes: tokens * columns_read * size + 4 * partial_moved + gradients,
            flops: 2 * tokens as u64 * factors as u64 + if bias { (tokens * d_out) as u64 } else { 0 },
        })
    }

    /// Tiles of dA and of dB. Those of dB include the blocks in which a panel has nothing to compute.
    fn tiles(&self) -> [u32; 2] {
        [self.a_panels * self.a_blocks, self.b_panels * self.b_blocks]
    }

    /// The parameters of a launch that the plan decides: tiles and splits, the addresses of Q and of the workspace's
    /// other parts, and the first column of each segment in Q and T. The caller sets the others, which are null or 0
    /// here: x, dy, T and the bias's gradient, the sizes and strides, the dropout, whether to accumulate.
    ///
    /// `segments` are those of the planned layer, in the same order; their `t_begin` and `packed_begin` are replaced.
    /// `workspace` is the device address of a workspace whose `layout` [serves](WorkspaceLayout::serves) the plan.
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 segments of rank 512 at most")]
    pub fn params(&self, segments: &[LoraGradientsSegment], workspace: u64, layout: &WorkspaceLayout) -> LoraGradients {
        let mut table = [NO_SEGMENT; abi::LORA_MAX_SEGMENTS as usize];
        let (mut t_begin, mut packed_begin) = (0, 0);
        for (entry, segment) in table.iter_mut().zip(segments) {
            *entry = LoraGradientsSegment { t_begin, packed_begin, ..*segment };
            t_begin += segment.rank.next_multiple_of(abi::LORA_FORWARD_RANK_STEP);
            packed_begin += segment.rank;
        }
        let partial = workspace + layout.partial_offset() as u64;
        let tile_partial = self.workspace.arrivals * self.splits as usize * PANEL * BLOCK;
        LoraGradients {
            x: std::ptr::null(),
            dy: std::ptr::null(),
            q: (workspace + layout.t_tiles_offset() as u64) as *const _,
            t: std::ptr::null(),
            dbias: std::ptr::null_mut(),
            partial: partial as *mut _,
            arrivals: (workspace + layout.arrivals_offset() as u64) as *mut _,
            bias_partial: (partial + 4 * tile_partial as u64) as *mut _,
            dropout: NO_DROPOUT,
            tokens: 0,
            d_in: 0,
            d_out: 0,
            x_stride: 0,
            dy_stride: 0,
            q_stride: self.q_stride,
            t_stride: 0,
            a_panels: self.a_panels,
            a_blocks: self.a_blocks,
            b_panels: self.b_panels,
            b_blocks: self.b_blocks,
            splits: self.splits,
            split_tokens: self.split_tokens,
            accumulate: 0,
            segment_count: segments.len() as u32,
            reserved: 0,
            segments: table,
        }
    }
}

/// The entries of a table after the last segment. Kernels do not read them; if one did, the scale of NaN would show it.
const NO_SEGMENT: LoraGradientsSegment = LoraGradientsSegment {
    da: std::ptr::null_mut(),
    db: std::ptr::null_mut(),
    da_stride: 0,
    db_stride: 0,
    begin: 0,
    end: 0,
    rank: 0,
    t_begin: 0,
    packed_begin: 0,
    scale: f32::NAN,
};

impl std::fmt::Display for GradientsPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { launch: LaunchShape { kernel, grid, threads, shared_bytes, .. }, stages, stage_tokens, .. } = self;
        let (splits, split_tokens) = (self.splits, self.split_tokens);
        let [a_tiles, b_tiles] = self.tiles();
        write!(
            f,
            "{kernel}: 1 launch of {} CTAs of {threads} threads: {a_tiles} tiles of dA and {b_tiles} of dB, {PANEL} x \
             {BLOCK}, tokens in {splits} splits of {split_tokens}, {stages} stages of {stage_tokens} tokens, \
             {shared_bytes} B shared, workspace {} B, floor {} B, {} B moved, {:.3} GFLOP",
            grid[0],
            self.workspace.bytes(),
            self.floor_bytes,
            self.moved_bytes,
            self.flops as f64 / 1e9
        )
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn segment(columns: Range<usize>, rank: usize) -> GradientsSegment {
        GradientsSegment { columns, rank }
    }

    fn h100(segments: &[GradientsSegment]) -> GradientsProblem<'_> {
        GradientsProblem {
            tokens: 4096,
            d_in: 4096,
            d_out: 4096,
            dtype: DType::Bf16,
            segments,
            multiprocessors: 132,
            compute_capability: (9, 0),
            path: ComputePath::Auto,
            bias: false,
        }
    }

    fn plan(problem: &GradientsProblem<'_>) -> GradientsPlan {
        GradientsPlan::new(problem).expect("a plan")
    }

    #[test]
    fn a_large_layer_fills_the_device_and_moves_at_most_a_tenth_more_than_the_floor() {
        let whole = [segment(0..4096, 16)];
        let plan = plan(&h100(&whole));
        assert!(
            plan.launch.kernel == "lora_gradients_mma_bf16" && (120..=132).contains(&plan.launch.grid[0]),
            "{plan}"
        );
        let written = plan.floor_bytes + 4 * plan.launch.grid[0] as usize * PANEL * STEP;
        assert!(plan.moved_bytes as f64 <= 1.1 * written as f64, "{plan}");
        assert_eq!(plan.flops, 2 * 4096 * 16 * 8192);
    }

    #[test]
    fn splits_cover_the_tokens_once() {
        let whole = [segment(0..72, 4)];
        for tokens in [1, 17, 96, 129, 1000, 4096, 100_000] {
            for dtype in [DType::F32, DType::Bf16] {
                let plan = plan(&GradientsProblem { tokens, d_out: 72, dtype, ..h100(&whole) });
                let (splits, each) = (plan.splits as usize, plan.split_tokens as usize);
                assert!(splits * each >= tokens && (splits - 1) * each < tokens, "{plan}");
                assert_eq!(each % plan.stage_tokens as usize, 0);
                assert_eq!(plan.workspace.arrivals == 0, splits == 1);
            }
        }
    }

    #[test]
    fn panels_read_the_columns_of_their_segments() {
        // Four panels: one with the edge of a segment, one with two segments, one with none, and one of 100 columns
        // with a rank of five steps.
        let segments = [segment(10..300, 3), segment(290..300, 20), segment(800..868, 70)];
        let problem = GradientsProblem { tokens: 10, d_in: 8, d_out: 868, ..h100(&segments) };
        let plan_without = plan(&problem);
        assert_eq!((plan_without.a_blocks, plan_without.b_panels, plan_without.b_blocks), (2, 4, 2));
        assert_eq!(plan_without.q_stride, 16 + 32 + 80);
        let gradients = 4 * (3 * (8 + 290) + 20 * (8 + 10) + 70 * (8 + 68));
        let x = 2 * (8 + 64);
        // A chunk has 8 columns. The third panel reads none.
        let dy = (256 - 8 + 3) + (304 - 256 + 23) + (68 + 64 + 68 + 6);
        assert_eq!(plan_without.moved_bytes, 2 * 10 * (x + dy) + gradients);
        assert_eq!(plan_without.floor_bytes, 2 * 10 * (8 + 290 + 68 + 2 * 93) + gradients);

        let with = plan(&GradientsProblem { bias: true, ..problem });
        let dy = (256 + 3) + (256 + 23) + 256 + (100 + 64 + 68 + 6);
        assert_eq!(with.moved_bytes, 2 * 10 * (x + dy) + gradients + 4 * 868);
        assert_eq!(with.floor_bytes, 2 * 10 * (8 + 868 + 2 * 93) + gradients + 4 * 868);
    }

    #[test]
    fn a_bias_alone_is_a_plan_and_nothing_at_all_is_not() {
        let alone = plan(&GradientsProblem { bias: true, ..h100(&[]) });
        assert_eq!((alone.a_blocks, alone.b_blocks, alone.q_stride), (0, 1, 0));
        assert!(matches!(GradientsPlan::new(&h100(&[])), Err(Error::NothingWanted)));
        let many = vec![segment(0..1, 1); 17];
        assert!(matches!(GradientsPlan::new(&h100(&many)), Err(Error::TooManySegments { .. })));
        for (columns, rank) in [(5..5, 1), (4000..4097, 1), (0..8, 0), (0..8, 513)] {
            let refused = GradientsPlan::new(&h100(&[segment(columns.clone(), rank)]));
            match refused {
                Err(Error::RankOutOfRange { .. }) => assert!(rank == 0 || rank > 512),
                Err(Error::SegmentOutOfRange { start, end, .. }) => assert_eq!(start..end, columns),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_a_device_lacks_is_not_planned() {
        let whole = [segment(0..4096, 16)];
        let old = GradientsProblem { compute_capability: (7, 5), ..h100(&whole) };
        assert_eq!(plan(&old).launch.kernel, "lora_gradients_bf16");
        let asked = GradientsProblem { path: ComputePath::Matrix, ..old.clone() };
        assert!(matches!(GradientsPlan::new(&asked), Err(Error::NoMatrixInstructions { .. })));
        assert_eq!(plan(&GradientsProblem { dtype: DType::F16, ..old }).launch.kernel, "lora_gradients_mma_f16");
        assert_eq!(plan(&GradientsProblem { dtype: DType::F32, ..h100(&whole) }).launch.kernel, "lora_gradients_f32");
        let cores = GradientsProblem { path: ComputePath::CudaCores, ..h100(&whole) };
        assert_eq!(plan(&cores).launch.kernel, "lora_gradients_bf16");
    }

    #[test]
    fn segments_have_their_columns_in_q_and_t() {
        let segments = [segment(0..48, 3), segment(0..48, 17), segment(0..48, 16)];
        let plan = plan(&GradientsProblem { bias: true, d_out: 48, ..h100(&segments) });
        let table = [3, 17, 16].map(|rank| LoraGradientsSegment { rank, t_begin: 99, packed_begin: 99, ..NO_SEGMENT });
        let layout = WorkspaceLayout { flags: 5, ..plan.workspace };
        let params = plan.params(&table, 0x1000, &layout);
        let begins = params.segments.map(|segment| (segment.t_begin, segment.packed_begin));
        assert_eq!(begins[..4], [(0, 0), (16, 3), (48, 20), (0, 0)]);
        assert_eq!((params.segment_count, params.q_stride), (3, 64));
        assert_eq!(params.arrivals as u64, 0x1000 + 8 + 20, "after the flags of a forward kernel");
        let bias_partial = (params.bias_partial as u64 - params.partial as u64) as usize / 4;
        assert_eq!(plan.workspace.partial - bias_partial, plan.splits as usize * PANEL, "{plan}");
        assert_eq!(params.q as u64, 0x1000 + layout.t_tiles_offset() as u64);
    }
}
