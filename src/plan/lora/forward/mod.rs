//! How a GPU runs one layer for any number of tokens: pure, printable, testable.
//!
//! The kernels are kernels/lora/forward_* and, of the gradient of the layer's input, dx_*. A [`ForwardPlan`] says which of them, on what grid, with how much shared memory
//! and workspace; a [`Plan`] takes the decode kernels instead where those are faster. What a plan says of y's tiles does not
//! depend on the adapters, so that a column without one is bit for bit the base product's.

mod params;
pub(crate) mod split;
pub(crate) mod tiles;

use crate::abi;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::launch::LaunchShape;
use crate::plan::lora::product::Product;
use crate::plan::problem::{ComputePath, FACTOR_BYTES, LayerProblem};
use crate::plan::workspace::WorkspaceLayout;
use split::Tiling;
use tiles::{Ctas, FUSED_RANK};

/// How one launch of `lora_forward` or `lora_dx` runs. Of the latter, x is dy, the depth d_out, y is dx, T is Q.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardPlan {
    /// What is computed.
    pub product: Product,
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Rows of a tile, of y and of T.
    pub tile_rows: u32,
    /// Columns of a tile of y.
    pub tile_columns: u32,
    /// Depth of a stage.
    pub stage_depth: u32,
    /// Stages in flight or at work.
    pub stages: u32,
    /// Tiles of y from top to bottom, ...
    pub row_tiles: u32,
    /// ... and from left to right.
    pub column_tiles: u32,
    /// Tiles of T beside each other; none without an adapter.
    pub t_tiles: u32,
    /// Columns of the workspace's T: every rank in whole steps of 16.
    pub t_stride: u32,
    /// CTAs that share a tile's depth.
    pub splits: u32,
    /// Of the depth, what each of them takes.
    pub split_depth: u32,
    /// CTAs that share the depth of a tile of T.
    pub t_splits: u32,
    /// Of the depth, what each of them takes.
    pub t_split_depth: u32,
    /// Row tiles whose column tiles are taken together.
    pub raster_rows: u32,
    /// Whether the kernel takes [`LoraForwardTma`](abi::LoraForwardTma): x and W0 by tensor maps.
    pub tensor_maps: bool,
    /// What the launch needs of a workspace.
    pub workspace: WorkspaceLayout,
    /// Global bytes that must move at least: W0, A, B, x and y once.
    pub floor_bytes: usize,
    /// Multiplications and additions of the layer, adapters included.
    pub flops: u64,
}

/// Row tiles taken together: with 128 rows each, the x of so many and a few columns' weights stay in any L2.
const RASTER_ROWS: usize = 8;

/// The deepest part of a tile whose shrink is fused. With a deeper one tiles of T, which take some 5000 cycles from the start of
/// the launch to the flag's arrival, are ready before tiles of y need them, and A would only cost L2 bandwidth. A model, not a
/// measurement.
const FUSED_DEPTH: usize = 1024;
/// Rounds a rank up to what T has columns for.
fn padded(rank: usize) -> usize {
    rank.next_multiple_of(abi::LORA_FORWARD_RANK_STEP as usize)
}

impl ForwardPlan {
    /// # Errors
    /// [`Error::TooManySegments`], [`Error::RankOutOfRange`], [`Error::EmptyOperand`], [`Error::NoMatrixInstructions`],
    /// [`Error::TooLarge`] if the layer has more tiles than a launch can have CTAs.
    pub fn new(problem: &LayerProblem<'_>) -> Result<Self> {
        problem.validate()?;
        Self::of(Product::Output, problem)
    }

    /// A plan for launches that neither store T nor drop out. Where a cluster's CTAs share a tile's depth, at most 1024 of it each,
    /// and the ranks, each rounded up to 16, are at most 32 together, the shrink is fused into the main loop. Columns of y outside
    /// the segments have the same bits either way.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn serving(problem: &LayerProblem<'_>) -> Result<Self> {
        problem.validate()?;
        let mut tiling = split::choose(problem, tiles::of_problem(problem)?);
        let total: usize = problem.ranks.iter().map(|&rank| padded(rank)).sum();
        if (1..=FUSED_RANK).contains(&total)
            && tiling.split_depth <= FUSED_DEPTH
            && let Some(tile) = tiling.tile.with_fused_shrink()
        {
            tiling.tile = tile;
        }
        Self::with_tiling(Product::Output, problem, &tiling)
    }

    /// Of a valid problem whose inputs and layout are the product's, not the layer's.
    pub(crate) fn of(product: Product, problem: &LayerProblem<'_>) -> Result<Self> {
        Self::with_tiling(product, problem, &split::choose(problem, tiles::of_problem(problem)?))
    }

    pub(crate) fn with_tiling(product: Product, problem: &LayerProblem<'_>, tiling: &Tiling) -> Result<Self> {
        let &LayerProblem { tokens, d_out, layout, dtype, ranks, .. } = problem;
        let Tiling { tile, splits, split_depth } = *tiling;
        let along = match layout {
            Layout::OutIn => "rows_",
            Layout::InOut => "columns_",
        };
        let multiplied = match problem.path {
            ComputePath::Tf32 => "tf32".to_owned(),
            _ => dtype.to_string(),
        };
        let row_tiles = tile.row_tiles(tokens);
        let column_tiles = if product == Product::LowRankGradient { 0 } else { d_out.div_ceil(tile.shape.columns) };
        let t_stride: usize = ranks.iter().map(|&rank| padded(rank)).sum();
        // With a fused shrink T never leaves the registers.
        let stored_t = if tile.shape.fused_rank == 0 { t_stride } else { 0 };
        let t_tiles = stored_t.div_ceil(abi::LORA_FORWARD_T_COLUMNS as usize);
        let (t_splits, t_split_depth) =
            if tile.shape.fused_rank == 0 { split::t_splits(problem, tiling, row_tiles * t_tiles) } else { (1, 0) };
        let tasks = row_tiles * (t_tiles * t_splits + column_tiles * splits);
        if tasks > i32::MAX as usize {
            return Err(Error::TooLarge { operand: "y", value: tasks });
        }
        let ctas = match tile.ctas {
            Ctas::Persistent => tasks.min(problem.multiprocessors.max(1)),
            Ctas::Pairs => tasks.min(problem.multiprocessors.max(2) / 2 * 2),
            Ctas::One | Ctas::Cluster => tasks,
        };
        let ring = tile.shape.stages
            * (tile.shape.rows + tile.shape.columns + tile.shape.fused_rank)
            * tile.shape.depth
            * dtype.size();
        let shared = tile.extra_bytes + ring + FACTOR_BYTES;
        let shared_tiles = |tiles, splits, columns| {
            if splits == 1 { (0, 0) } else { (tiles, tiles * splits * tile.shape.rows * columns) }
        };
        let in_workspace = if tile.ctas == Ctas::Cluster { 1 } else { splits };
        let (y_arrivals, y_partial) = shared_tiles(row_tiles * column_tiles, in_workspace, tile.shape.columns);
        let (t_arrivals, t_partial) = shared_tiles(row_tiles * t_tiles, t_splits, abi::LORA_FORWARD_T_COLUMNS as usize);
        let (floor_bytes, flops) = product.cost(problem);
        Ok(Self {
            product,
            launch: LaunchShape {
                kernel: tile.kernel(product.kernels(), along, &multiplied),
                grid: [ctas as u32, 1, 1],
                threads: tile.shape.threads as u32,
                shared_bytes: shared as u32,
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
            tensor_maps: tile.ctas != Ctas::One,
            workspace: WorkspaceLayout {
                flags: row_tiles * t_tiles,
                arrivals: y_arrivals + t_arrivals,
                partial: y_partial + t_partial,
                t_bytes: tokens * stored_t * dtype.size(),
                ..WorkspaceLayout::default()
            },
            floor_bytes,
            flops,
        })
    }

    /// Arrival counters of tiles of y; those of T lie behind them.
    fn y_arrivals(&self) -> u32 {
        if self.splits == 1 || self.launch.cluster > 1 { 0 } else { self.row_tiles * self.column_tiles }
    }

    /// Partial sums of tiles of y, likewise.
    fn y_partial(&self) -> usize {
        self.y_arrivals() as usize * (self.splits * self.tile_rows * self.tile_columns) as usize
    }

    /// Partial sums that are left and gathered: of T only the columns that it has.
    pub(crate) fn partial_moved(&self) -> usize {
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
            (_, 1) => " for pairs of CTAs",
            _ => " a cluster",
        };
        write!(
            f,
            "{kernel}: 1 launch of {} CTAs of {threads} threads: {t_tiles} tiles of T in {t_splits} splits of \
             {t_split_depth}, {y_tiles} of y, {tile_rows} x {tile_columns}, in {splits} splits of {split_depth}{clusters}, \
             {stages} stages of {stage_depth}, rows taken {} at a time, {} B shared, workspace {} B, floor {} B, {:.3} GFLOP",
            grid[0],
            self.raster_rows,
            shared_bytes,
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
    fn many_tokens_take_large_tiles_and_few_split_the_depth() {
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
        // Clusters of more than a TPC's two SMs do not find room on all.
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
    fn low_ranks_are_fused_where_tiles_are_a_clusters() {
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
            assert_eq!(fused.t_stride, 32, "a place for each segment's columns in the registers");
            // Two CTAs an SM of 228 KiB, of which each takes 1 KiB more, or one.
            let ctas = if fused.tile_rows == 64 { 2 } else { 1 };
            assert!(ctas * (fused.launch.shared_bytes + 1024) <= 228 << 10, "{fused}");
            let three = serving(&LayerProblem { ranks: &[4, 4, 4], ..problem.clone() });
            assert_eq!(three, plan(&LayerProblem { ranks: &[4, 4, 4], ..problem.clone() }), "48 columns are too many");
            assert_eq!(serving(&LayerProblem { ranks: &[], ..problem.clone() }), base);
        }
        assert_eq!(serving(&H100), plan(&H100), "many tokens have tiles of T");
        let deep = LayerProblem { tokens: 64, ..H100 };
        assert_eq!(serving(&deep), plan(&deep), "so has a long depth");
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
    fn splits_cover_the_depth_once() {
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
