//! The plan of one layer for any number of tokens, of dx, and of a bottleneck adapter.
//!
//! The kernels are kernels/lora/forward_*, dx_* and kernels/adapter/adapter_*. A [`ForwardPlan`] holds the kernel, the
//! grid, the shared memory and the workspace. [`Plan`](super::Plan) uses a [`DecodePlan`](super::DecodePlan) instead
//! where that is faster. The tiles and splits of y do not depend on the adapters, so the columns of y without an
//! adapter have the same bits as in the base product.

mod params;
pub(crate) mod tiles;
pub(crate) mod tiling;

use crate::abi;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::launch::LaunchShape;
use crate::plan::lora::product::Product;
use crate::plan::problem::{ComputePath, FACTOR_BYTES, LayerProblem};
use crate::plan::workspace::WorkspaceLayout;
use tiles::{FUSED_RANK, Schedule};
use tiling::Tiling;

/// How one launch of `lora_forward`, `lora_dx` or `lora_adapter` runs.
///
/// In a plan of `lora_dx`, x is dy, K is d_out, y is dx and T is Q. In a plan of `lora_adapter`, T is the hidden
/// features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardPlan {
    /// The result that the launch computes.
    pub product: Product,
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Rows (tokens) of a tile. y tiles and T tiles have the same number.
    pub tile_rows: u32,
    /// Columns of a y tile.
    pub tile_columns: u32,
    /// Values of K in a stage.
    pub stage_depth: u32,
    /// Stages of the ring in shared memory.
    pub stages: u32,
    /// Tiles along the rows of y and of T: tokens / `tile_rows`, rounded up. Pairs of CTAs need an even number of them.
    pub row_tiles: u32,
    /// Tiles along the columns of y: d_out / `tile_columns`, rounded up; 0 if only Q is computed.
    pub column_tiles: u32,
    /// Tiles of 64 columns along the columns of T; 0 without segments and with a fused shrink.
    pub t_tiles: u32,
    /// Columns of T, in elements: the ranks, each rounded up to a multiple of 16, added.
    pub t_stride: u32,
    /// Split-K of y: CTAs that share a y tile; 1 without a split.
    pub splits: u32,
    /// Split-K of y: values of K per CTA.
    pub split_depth: u32,
    /// Split-K of T: CTAs that share a T tile; 1 without a split.
    pub t_splits: u32,
    /// Split-K of T: values of K per CTA.
    pub t_split_depth: u32,
    /// Row tiles of a group. CTAs compute all y tiles of a group before those of the next, so that x and W0 stay in L2.
    pub raster_rows: u32,
    /// Whether the kernel takes [`LoraForwardTma`](abi::LoraForwardTma), which has tensor maps for x, W0 and y.
    pub tensor_maps: bool,
    /// The workspace that the launch needs.
    pub workspace: WorkspaceLayout,
    /// The least global memory traffic, in bytes: W0, A, B and x read once, y written once.
    pub floor_bytes: usize,
    /// Floating-point operations, those of the adapters included; a multiply-add counts as two.
    pub flops: u64,
}

/// The most row tiles of a group: so few that their x, of 128 rows each, can stay in L2 together with the columns of W0
/// in use. In 16 bits x of 8 row tiles has 2 KiB per value of K, 8 MiB for K = 4096.
const RASTER_ROWS: usize = 8;

/// The largest `split_depth` for which the shrink is fused. With more, T is ready before the y tiles need it, since a T
/// tile takes some 5000 cycles from the start of the launch until its flag is visible; a fused shrink would then only
/// cost L2 bandwidth for A. This is from a model, not measured.
const MAX_FUSED_SPLIT_DEPTH: usize = 1024;

/// The columns of a segment in T: its rank, rounded up to a multiple of 16.
fn padded_rank(rank: usize) -> usize {
    rank.next_multiple_of(abi::LORA_FORWARD_RANK_STEP as usize)
}

impl ForwardPlan {
    /// Plans y of a layer. The launch can return T and can apply dropout.
    ///
    /// # Errors
    /// [`Error::TooManySegments`], [`Error::RankOutOfRange`], [`Error::EmptyOperand`], [`Error::NoMatrixInstructions`],
    /// [`Error::TooLarge`] if the layer has more tiles than a launch can have CTAs.
    pub fn new(problem: &LayerProblem<'_>) -> Result<Self> {
        problem.validate()?;
        Self::for_product(Product::Output, problem)
    }

    /// Plans y of a layer for launches that neither return T nor apply dropout.
    ///
    /// The plan fuses the shrink into the main loop if the CTAs of a cluster split K of a y tile, each has at most 1024
    /// values of K, and the ranks, each rounded up to a multiple of 16, are at most 32 together. Columns of y outside
    /// the segments have the same bits with and without the fusion.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn serving(problem: &LayerProblem<'_>) -> Result<Self> {
        problem.validate()?;
        let mut tiling = tiling::choose(problem, tiles::of_problem(problem)?);
        let t_columns: usize = problem.ranks.iter().map(|&rank| padded_rank(rank)).sum();
        if (1..=FUSED_RANK).contains(&t_columns)
            && tiling.split_depth <= MAX_FUSED_SPLIT_DEPTH
            && let Some(tile) = tiling.tile.with_fused_shrink()
        {
            tiling.tile = tile;
        }
        Self::with_tiling(Product::Output, problem, &tiling)
    }

    /// Plans a product on the tiling that the cost model finds cheapest. `problem` is valid, and it is that of the
    /// product: for dx it has the layer's d_out as `d_in`, and W0 transposed.
    pub(crate) fn for_product(product: Product, problem: &LayerProblem<'_>) -> Result<Self> {
        Self::with_tiling(product, problem, &tiling::choose(problem, tiles::of_problem(problem)?))
    }

    /// Plans a product on the given tiling. `problem` is as for [`for_product`](Self::for_product).
    pub(crate) fn with_tiling(product: Product, problem: &LayerProblem<'_>, tiling: &Tiling) -> Result<Self> {
        let &LayerProblem { tokens, d_out, layout, dtype, ranks, .. } = problem;
        let Tiling { tile, splits, split_depth } = *tiling;
        let layout_name = match layout {
            Layout::OutIn => "rows_",
            Layout::InOut => "columns_",
        };
        let type_name = match problem.path {
            ComputePath::Tf32 => "tf32".to_owned(),
            _ => dtype.to_string(),
        };
        let row_tiles = tile.row_tiles(tokens);
        let column_tiles = if product == Product::LowRankGradient { 0 } else { d_out.div_ceil(tile.shape.columns) };
        let t_stride: usize = ranks.iter().map(|&rank| padded_rank(rank)).sum();
        // With a fused shrink T stays in registers.
        let stored_t_columns = if tile.shape.fused_rank == 0 { t_stride } else { 0 };
        let t_tiles = stored_t_columns.div_ceil(abi::LORA_FORWARD_T_COLUMNS as usize);
        let (t_splits, t_split_depth) =
            if tile.shape.fused_rank == 0 { tiling::t_splits(problem, tiling, row_tiles * t_tiles) } else { (1, 0) };
        let tasks = row_tiles * (t_tiles * t_splits + column_tiles * splits);
        if tasks > i32::MAX as usize {
            return Err(Error::TooLarge { operand: "y", value: tasks });
        }
        let ctas = match tile.schedule {
            Schedule::Persistent => tasks.min(problem.multiprocessors.max(1)),
            Schedule::PersistentPairs => tasks.min(problem.multiprocessors.max(2) / 2 * 2),
            Schedule::OneTask | Schedule::ClusterSplitK => tasks,
        };
        let ring = tile.shape.stages
            * (tile.shape.rows + tile.shape.columns + tile.shape.fused_rank)
            * tile.shape.depth
            * dtype.size();
        let shared_bytes = tile.extra_bytes + ring + FACTOR_BYTES;
        // Arrival counters and partial sums in the workspace.
        let split_k_sizes = |tiles, splits, columns| {
            if splits == 1 { (0, 0) } else { (tiles, tiles * splits * tile.shape.rows * columns) }
        };
        // A cluster adds its partial sums of y in shared memory.
        let workspace_splits = if tile.schedule == Schedule::ClusterSplitK { 1 } else { splits };
        let (y_arrivals, y_partial) = split_k_sizes(row_tiles * column_tiles, workspace_splits, tile.shape.columns);
        let t_columns = abi::LORA_FORWARD_T_COLUMNS as usize;
        let (t_arrivals, t_partial) = split_k_sizes(row_tiles * t_tiles, t_splits, t_columns);
        let (floor_bytes, flops) = product.cost(problem);
        Ok(Self {
            product,
            launch: LaunchShape {
                kernel: tile.kernel(product.kernels(), layout_name, &type_name),
                grid: [ctas as u32, 1, 1],
                threads: tile.shape.threads as u32,
                shared_bytes: shared_bytes as u32,
                cluster: tiling.cluster() as u32,
            },
            tile_rows: tile.shape.rows as u32,
            tile_columns: tile.shape.columns as u32,
            stage_depth: tile.shape.depth as u32,
            stages: tile.shape.stages as u32,
            row_tiles: row_tiles as u32,
            column_tiles: column_tiles as u32,
            t_tiles: t_tiles as u32,
            t_stride: t_stride as u32,
            splits: splits as u32,
            split_depth: split_depth as u32,
            t_splits: t_splits as u32,
            t_split_depth: t_split_depth as u32,
            raster_rows: RASTER_ROWS.min(row_tiles) as u32,
            tensor_maps: tile.schedule != Schedule::OneTask,
            workspace: WorkspaceLayout {
                flags: row_tiles * t_tiles,
                arrivals: y_arrivals + t_arrivals,
                partial: y_partial + t_partial,
                t_bytes: tokens * stored_t_columns * dtype.size(),
                ..WorkspaceLayout::default()
            },
            floor_bytes,
            flops,
        })
    }

    /// Arrival counters of the y tiles. In the workspace those of the T tiles follow them.
    fn y_arrivals(&self) -> u32 {
        if self.splits == 1 || self.launch.cluster > 1 { 0 } else { self.row_tiles * self.column_tiles }
    }

    /// f32 partial sums of the y tiles. In the workspace those of the T tiles follow them.
    fn y_partial(&self) -> usize {
        self.y_arrivals() as usize * (self.splits * self.tile_rows * self.tile_columns) as usize
    }

    /// f32 partial sums that a launch stores and reads again. Those of T beyond its last column have a place in the
    /// workspace, but are not stored.
    pub(crate) fn stored_partial(&self) -> usize {
        let t_rows = if self.t_splits == 1 { 0 } else { (self.row_tiles * self.tile_rows * self.t_splits) as usize };
        self.y_partial() + t_rows * self.t_stride as usize
    }
}

impl std::fmt::Display for ForwardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let LaunchShape { kernel, grid, threads, shared_bytes, cluster } = &self.launch;
        let Self { tile_rows, tile_columns, stages, stage_depth, splits, split_depth, .. } = self;
        let (t_splits, t_split_depth) = (self.t_splits, self.t_split_depth);
        let (t_tiles, y_tiles) = (self.row_tiles * self.t_tiles, self.row_tiles * self.column_tiles);
        let clusters = match (cluster, splits) {
            (1, _) => "",
            (_, 1) => ", clusters of 2 CTAs",
            _ => ", one cluster a tile",
        };
        write!(
            f,
            "{kernel}: 1 launch of {} CTAs of {threads} threads{clusters}: {t_tiles} T tiles, K in {t_splits} splits \
             of {t_split_depth}; {y_tiles} y tiles of {tile_rows} x {tile_columns}, K in {splits} splits of \
             {split_depth}; {stages} stages of {stage_depth} of K, groups of {} row tiles, {shared_bytes} B shared, \
             workspace {} B, floor {} B, {:.3} GFLOP",
            grid[0],
            self.raster_rows,
            self.workspace.bytes(),
            self.floor_bytes,
            self.flops as f64 / 1e9
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    const H100: LayerProblem<'static> = LayerProblem {
        tokens: 4096,
        d_in: 4096,
        d_out: 4096,
        layout: Layout::OutIn,
        dtype: DType::Bf16,
        ranks: &[16],
        aligned: true,
        multiprocessors: 132,
        compute_capability: (9, 0),
        path: ComputePath::Auto,
    };

    fn plan(problem: &LayerProblem<'_>) -> ForwardPlan {
        ForwardPlan::new(problem).expect("a plan")
    }

    #[test]
    fn many_tokens_take_large_tiles_and_few_split_k() {
        let many = plan(&H100);
        assert!(
            many.launch.kernel.ends_with("wgmma_bf16_n256x2") && many.splits == 1 && many.launch.grid[0] == 132,
            "{many}"
        );
        let odd = plan(&LayerProblem { tokens: 7 * 128, multiprocessors: 3, ..H100 });
        assert!(odd.launch.kernel.ends_with("n256x2") && odd.row_tiles == 8 && odd.launch.grid[0] == 2, "{odd}");
        let many = plan(&LayerProblem { compute_capability: (8, 0), ..H100 });
        assert!(
            many.launch.kernel.ends_with("t128")
                && many.splits == 1
                && many.launch.grid[0] == 32 * (many.t_splits + 32),
            "{many}"
        );
        let few = plan(&LayerProblem { tokens: 64, ..H100 });
        assert!(few.launch.kernel.ends_with("m64n64") && few.launch.cluster == few.splits && few.splits == 2, "{few}");
        // The model lets clusters of more than two CTAs use 7/8 of the SMs.
        let four = plan(&LayerProblem { tokens: 128, d_in: 1024, d_out: 3072, ..H100 });
        assert!(four.launch.cluster == 4 && four.column_tiles * four.splits <= 132 * 7 / 8, "{four}");
        assert!(
            few.launch.grid[0].is_multiple_of(few.launch.cluster) && few.t_splits.is_multiple_of(few.launch.cluster),
            "{few}"
        );
        let few = plan(&LayerProblem { tokens: 64, compute_capability: (8, 0), ..H100 });
        assert!(few.launch.kernel.ends_with("t64") && few.splits > 1 && few.launch.cluster == 1, "{few}");
        let ctas = few.column_tiles * few.splits;
        assert!(ctas >= 128, "{few}");
    }

    #[test]
    fn the_shrink_of_low_ranks_is_fused_where_clusters_split_k() {
        let serving = |problem: &LayerProblem<'_>| ForwardPlan::serving(problem).expect("a plan");
        for tokens in [17, 64, 128] {
            let problem = LayerProblem { tokens, d_in: 1024, d_out: 3072, ranks: &[4, 16], ..H100 };
            let (fused, base) = (serving(&problem), plan(&LayerProblem { ranks: &[], ..problem.clone() }));
            assert_eq!(fused.launch.kernel, format!("{}r", base.launch.kernel));
            assert_eq!(
                (fused.launch.grid, fused.splits, fused.split_depth),
                (base.launch.grid, base.splits, base.split_depth)
            );
            assert_eq!((fused.t_tiles, fused.workspace), (0, base.workspace), "{fused}");
            assert_eq!(fused.t_stride, 32, "each segment has columns of its own in the registers");
            // An SM has 228 KiB. Each CTA takes 1 KiB beyond its dynamic shared memory.
            let ctas = if fused.tile_rows == 64 { 2 } else { 1 };
            assert!(ctas * (fused.launch.shared_bytes + 1024) <= 228 << 10, "{fused}");
            let three = serving(&LayerProblem { ranks: &[4, 4, 4], ..problem.clone() });
            assert_eq!(three, plan(&LayerProblem { ranks: &[4, 4, 4], ..problem.clone() }), "48 columns are too many");
            assert_eq!(serving(&LayerProblem { ranks: &[], ..problem.clone() }), base);
        }
        assert_eq!(serving(&H100), plan(&H100), "many tokens have T tiles");
        let deep = LayerProblem { tokens: 64, ..H100 };
        assert_eq!(serving(&deep), plan(&deep), "splits of more than 1024 of K have T tiles");
        let sm_80 = LayerProblem { tokens: 64, compute_capability: (8, 0), ..H100 };
        assert_eq!(serving(&sm_80), plan(&sm_80));
    }

    #[test]
    fn tiles_of_y_do_not_depend_on_the_adapters() {
        for tokens in [17, 100, 1000, 8192] {
            let sm_80 = LayerProblem { compute_capability: (8, 0), tokens, ..H100 };
            let [with, without] = [&[16, 512][..], &[]].map(|ranks| plan(&LayerProblem { ranks, ..sm_80.clone() }));
            assert_eq!(with.launch.kernel, without.launch.kernel);
            assert_eq!((with.splits, with.split_depth), (without.splits, without.split_depth));
            assert_eq!((with.row_tiles, with.column_tiles), (without.row_tiles, without.column_tiles));
            assert_eq!(without.launch.grid[0], without.row_tiles * without.column_tiles * without.splits);
            assert_eq!((with.t_tiles, without.t_tiles), (9, 0));
        }
    }

    #[test]
    fn splits_cover_k_once() {
        for d_in in [8, 64, 520, 1024, 4096, 11008] {
            for tokens in [17, 64, 129, 1000] {
                let plan = plan(&LayerProblem { tokens, d_in, d_out: 72, ..H100 });
                let (splits, depth) = (plan.splits as usize, plan.split_depth as usize);
                assert!(splits * depth >= d_in && (splits - 1) * depth < d_in, "{plan}");
            }
        }
    }

    #[test]
    fn what_a_device_lacks_is_not_planned() {
        let old = LayerProblem { compute_capability: (7, 5), ..H100 };
        assert!(plan(&old).launch.kernel.ends_with("rows_bf16_t64"));
        let asked = LayerProblem { path: ComputePath::Matrix, ..old.clone() };
        assert!(matches!(ForwardPlan::new(&asked), Err(Error::NoMatrixInstructions { .. })));
        assert!(plan(&LayerProblem { dtype: DType::F16, ..old }).launch.kernel.ends_with("t64"));
        let f32s = LayerProblem { dtype: DType::F32, path: ComputePath::Matrix, ..H100 };
        assert!(matches!(ForwardPlan::new(&f32s), Err(Error::NoMatrixInstructions { .. })));
    }

    #[test]
    fn f32_is_rounded_only_where_tf32_is_asked_for_by_name() {
        for compute_capability in [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)] {
            for path in [ComputePath::Auto, ComputePath::CudaCores] {
                let f32s = LayerProblem { dtype: DType::F32, path, compute_capability, ..H100 };
                assert!(plan(&f32s).launch.kernel.ends_with("rows_f32_t128"), "{}", plan(&f32s));
            }
        }
        let tf32 = LayerProblem { dtype: DType::F32, path: ComputePath::Tf32, ..H100 };
        for (tokens, aligned, name) in [(4096, true, "t128"), (17, true, "t64"), (4096, false, "any")] {
            let plan = plan(&LayerProblem { tokens, aligned, ..tf32.clone() });
            assert_eq!(plan.launch.kernel, format!("lora_forward_rows_mma_tf32_{name}"));
            assert_eq!((plan.launch.shared_bytes, plan.tensor_maps), (128 + 48 * 1024 + 512, false), "{plan}");
        }
        let refused = [
            LayerProblem { dtype: DType::F16, ..tf32.clone() },
            LayerProblem { dtype: DType::Bf16, ..tf32.clone() },
            LayerProblem { compute_capability: (7, 5), ..tf32 },
        ];
        for refused in refused {
            assert!(matches!(ForwardPlan::new(&refused), Err(Error::NoMatrixInstructions { .. })), "{refused:?}");
        }
    }
}
