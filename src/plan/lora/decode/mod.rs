//! The plan of one layer for 1 to 16 tokens. The kernels are kernels/lora/decode_*.cu.
//!
//! Of the adapters a plan depends only on the ranks. Without adapters it is the plan of the base product.

mod matrix;

use crate::abi;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::launch::LaunchShape;
use crate::plan::lora::tiles::{self, DecodeTile};
use crate::plan::problem::{ComputePath, FACTOR_BYTES, LayerProblem};
use crate::plan::workspace::WorkspaceLayout;

/// The most tokens of one launch.
pub const MAX_TOKENS: usize = abi::LORA_DECODE_MAX_TOKENS as usize;

/// How one launch of `lora_decode` runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodePlan {
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Tokens that a CTA computes. It is a property of the kernel and may exceed the tokens of the layer.
    pub tile_tokens: u32,
    /// Columns of y that a CTA computes.
    pub tile_columns: u32,
    /// CUDA cores: threads that share a row of W0 `[out, in]`, or adjacent threads that read one row of W0 `[in, out]`
    /// together. MMA: threads of the warps that store their sums in shared memory at the same time.
    pub row_threads: u32,
    /// The stride between the sums of two tokens in shared memory, in floats.
    pub sums_stride: u32,
    /// Split-K: CTAs that share a tile of y; 1 without a split.
    pub splits: u32,
    /// Split-K: values of K per CTA.
    pub split_depth: u32,
    /// Rows of A that one ticket stands for.
    pub shrink_rows: u32,
    /// The largest rank, rounded up to whole 16-byte chunks of elements: the row stride of T in shared memory, in
    /// floats.
    pub widest_rank: u32,
    /// The workspace that the launch needs.
    pub workspace: WorkspaceLayout,
    /// The least global memory traffic, in bytes: W0, A, B and x read once, y written once.
    pub floor_bytes: usize,
}

/// The fewest tokens for MMA. For fewer, CUDA cores are faster: most of the 16 rows of an MMA would be empty.
const MIN_MATRIX_TOKENS: usize = 5;

/// Bytes of dynamic shared memory that a CTA may have on every device without a kernel attribute.
const PORTABLE_SHARED_BYTES: u32 = 48 << 10;

/// The most columns of a tile for W0 `[out, in]` on CUDA cores. With more, a CTA's partial sums would leave no room for
/// a second CTA on the SM.
const MAX_TILE_COLUMNS: usize = 64;

impl DecodePlan {
    /// Plans y of a layer.
    ///
    /// With [`ComputePath::Tf32`] the plan uses the f32 kernels: for so few tokens the time is that of reading W0.
    ///
    /// # Errors
    /// [`Error::TooManyTokens`], [`Error::TooManySegments`], [`Error::RankOutOfRange`], [`Error::EmptyOperand`],
    /// [`Error::NoMatrixInstructions`].
    pub fn new(problem: &LayerProblem<'_>) -> Result<Self> {
        let &LayerProblem { tokens, d_in, d_out, layout, dtype, multiprocessors, .. } = problem;
        if tokens > MAX_TOKENS {
            return Err(Error::TooManyTokens { tokens, max: MAX_TOKENS });
        }
        problem.validate()?;
        let misaligned = (!problem.in_chunks()).then_some("rows do not all start and end at multiples of 16 bytes");
        match (problem.path, problem.matrix_obstacle().or(misaligned)) {
            (ComputePath::Auto, None) if tokens >= MIN_MATRIX_TOKENS => {
                Ok(Self::matrix(problem, &matrix::choose(tokens, d_in, d_out, layout, multiprocessors)))
            }
            (ComputePath::Auto | ComputePath::CudaCores, _) => Ok(Self::cuda_cores(problem)),
            (ComputePath::Matrix, None) => {
                Ok(Self::matrix(problem, &matrix::choose(tokens, d_in, d_out, layout, multiprocessors)))
            }
            (ComputePath::Matrix, Some(reason)) => Err(Error::NoMatrixInstructions { dtype, reason }),
            (ComputePath::Tf32, _) => match problem.matrix_obstacle() {
                Some(reason) => Err(Error::NoMatrixInstructions { dtype, reason }),
                None => Ok(Self::cuda_cores(problem)),
            },
        }
    }

    fn cuda_cores(problem: &LayerProblem<'_>) -> Self {
        let &LayerProblem { tokens, d_in, d_out, layout, dtype, multiprocessors, .. } = problem;
        let elements = 16 / dtype.size();
        let tile = cores_tile(problem);
        let (family, row_threads, columns, parts) = match layout {
            Layout::OutIn => {
                let row_threads = out_in_row_threads(d_in.div_ceil(elements), tile.threads);
                let min_columns = tile.threads / row_threads;
                let columns = d_out.div_ceil(multiprocessors.max(1)).clamp(min_columns, MAX_TILE_COLUMNS);
                ("rows", row_threads, columns.min(d_out), row_threads / 32)
            }
            Layout::InOut => {
                let row_threads = in_out_row_threads(d_out.div_ceil(elements), multiprocessors);
                let columns = (row_threads * elements).min(d_out.next_multiple_of(elements));
                ("columns", row_threads, columns, tile.threads / 32)
            }
        };
        let (_, variant) = tile.name.rsplit_once('_').expect("layout_type_variant");
        let kernel = format!("lora_decode_{family}_{dtype}_{variant}");
        let tile = DecodeTile { columns, ..tile };
        let plan = Self::with_tile(kernel, problem, &tile, [1, d_in], tokens.div_ceil(tile.tokens), parts);
        Self { row_threads: row_threads as u32, ..plan }
    }

    fn matrix(problem: &LayerProblem<'_>, tiling: &matrix::Tiling) -> Self {
        let matrix::Tiling { tile, splits, split_depth } = *tiling;
        let dtype = problem.dtype;
        let kernel = match problem.layout {
            Layout::OutIn => format!("lora_decode_rows_mma_{dtype}_n{}", tile.columns / 8),
            Layout::InOut => format!("lora_decode_columns_mma_{dtype}"),
        };
        let plan = |parts| Self::with_tile(kernel.clone(), problem, &tile, [splits, split_depth], 1, parts);
        // All warps store their sums at the same time if shared memory has room for them, else they take turns.
        let mut parts = tile.threads / 32;
        while parts > 1 && plan(parts).launch.shared_bytes > PORTABLE_SHARED_BYTES {
            parts /= 2;
        }
        Self { row_threads: 32 * parts as u32, ..plan(parts) }
    }

    /// The plan for a tile whose columns are set, without `row_threads`. `token_groups` is the number of tiles along
    /// the tokens, `parts` the number of partial sums of each output in shared memory.
    fn with_tile(
        kernel: String,
        problem: &LayerProblem<'_>,
        tile: &DecodeTile,
        [splits, split_depth]: [usize; 2],
        token_groups: usize,
        parts: usize,
    ) -> Self {
        let &LayerProblem { tokens, d_in, d_out, dtype, ranks, .. } = problem;
        let widest_rank = ranks.iter().max().copied().unwrap_or(0).next_multiple_of(16 / dtype.size());
        let sums_stride = sums_stride(tile);
        let max_shrink_rows = if tile.aligned { abi::LORA_SHRINK_ROWS as usize } else { 1 };
        // Floats of shared memory: the warps' partial sums of T; then T, and the partial sums of the tile.
        let shrink_values = (tile.threads / 32) * max_shrink_rows * tile.ticket_tokens;
        let sums = tile.tokens * (widest_rank + parts * sums_stride);
        let shared_bytes = FACTOR_BYTES + 2 * 8 + 4 * (shrink_values + sums);
        let grid = [d_out.div_ceil(tile.columns), splits, token_groups];
        let ctas: usize = grid.iter().product();
        let total_rank: usize = ranks.iter().sum();
        let weights = d_in * d_out + total_rank * d_in + total_rank * d_out;
        let tickets = total_rank * tokens.div_ceil(tile.ticket_tokens);
        let (arrivals, partial) = if splits == 1 { (0, 0) } else { (grid[0], ctas * tile.tokens * tile.columns) };
        Self {
            launch: LaunchShape {
                kernel,
                grid: grid.map(|n| n as u32),
                threads: tile.threads as u32,
                shared_bytes: shared_bytes as u32,
                cluster: 1,
            },
            tile_tokens: tile.tokens as u32,
            tile_columns: tile.columns as u32,
            row_threads: 0,
            sums_stride: sums_stride as u32,
            splits: splits as u32,
            split_depth: split_depth as u32,
            // A ticket stands for several rows only if there are more rows than CTAs.
            shrink_rows: tickets.div_ceil(ctas).clamp(1, max_shrink_rows) as u32,
            widest_rank: widest_rank as u32,
            workspace: WorkspaceLayout {
                t_words: tokens * total_rank,
                arrivals,
                partial,
                ..WorkspaceLayout::default()
            },
            floor_bytes: (weights + tokens * (d_in + d_out)) * dtype.size(),
        }
    }
}

/// The stride between the sums of two tokens in shared memory, in floats. With it a warp stores 8 columns of 4 tokens,
/// or 4 columns of 8 tokens, without bank conflicts.
fn sums_stride(tile: &DecodeTile) -> usize {
    let offset = if tile.tokens == 8 { 4 } else { 8 };
    (tile.columns + 31 - offset) / 32 * 32 + offset
}

/// The tile of the kernel on CUDA cores. Its columns are 0: the plan chooses them.
fn cores_tile(problem: &LayerProblem<'_>) -> DecodeTile {
    let is_f32 = problem.dtype == DType::F32;
    match (problem.layout, is_f32, problem.in_chunks(), problem.tokens) {
        (Layout::OutIn, true, false, _) => tiles::ROWS_F32_ANY,
        (Layout::OutIn, true, true, 1) => tiles::ROWS_F32_T1,
        (Layout::OutIn, true, true, 2) => tiles::ROWS_F32_T2,
        (Layout::OutIn, true, true, ..5) => tiles::ROWS_F32_T4,
        (Layout::OutIn, true, true, _) => tiles::ROWS_F32_T8,
        (Layout::OutIn, false, false, _) => tiles::ROWS_16BIT_ANY,
        (Layout::OutIn, false, true, 1) => tiles::ROWS_16BIT_T1,
        (Layout::OutIn, false, true, 2) => tiles::ROWS_16BIT_T2,
        (Layout::OutIn, false, true, _) => tiles::ROWS_16BIT_T4,
        (Layout::InOut, true, false, _) => tiles::COLUMNS_F32_ANY,
        (Layout::InOut, true, true, 1) => tiles::COLUMNS_F32_T1,
        (Layout::InOut, true, true, 2) => tiles::COLUMNS_F32_T2,
        (Layout::InOut, true, true, ..5) => tiles::COLUMNS_F32_T4,
        (Layout::InOut, true, true, _) => tiles::COLUMNS_F32_T8,
        (Layout::InOut, false, false, _) => tiles::COLUMNS_16BIT_ANY,
        (Layout::InOut, false, true, 1) => tiles::COLUMNS_16BIT_T1,
        (Layout::InOut, false, true, 2) => tiles::COLUMNS_16BIT_T2,
        (Layout::InOut, false, true, _) => tiles::COLUMNS_16BIT_T4,
    }
}

/// W0 `[out, in]`: the number of threads that share a row of `chunks` 16-byte chunks. They read it one chunk per thread
/// at a time, so in the last pass some may be idle. The result is the largest of 512, 256, 128, 64 and 32, up to the
/// CTA's `threads`, that keeps at least nine tenths of the threads busy on average, or else the one that keeps the
/// largest part of them busy.
fn out_in_row_threads(chunks: usize, threads: usize) -> usize {
    let busy = |width: usize| chunks as f64 / chunks.next_multiple_of(width) as f64;
    let widths = || [512, 256, 128, 64, 32].into_iter().filter(move |&width| width <= threads);
    let busiest = || widths().max_by(|&a, &b| busy(a).total_cmp(&busy(b)));
    widths().find(|&width| busy(width) >= 0.9).or_else(busiest).unwrap_or(32)
}

/// W0 `[in, out]`: the number of adjacent threads that read one row of a tile, a 16-byte chunk each, if a row of W0 has
/// `chunks` chunks. The result is 8 or 4 if at least half of the SMs then have a tile, else 2. The SMs share the memory
/// bandwidth, so equal tiles on most SMs are as fast as tiles on all.
fn in_out_row_threads(chunks: usize, multiprocessors: usize) -> usize {
    [8, 4].into_iter().find(|lanes| chunks.div_ceil(*lanes) >= multiprocessors / 2).unwrap_or(2)
}

impl std::fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: 1 launch, grid {:?} of {} threads, tiles of {} x {}, {} threads a row, K in {} splits of {}, {} B \
             shared, workspace {} B, floor {} B",
            self.launch.kernel,
            self.launch.grid,
            self.launch.threads,
            self.tile_tokens,
            self.tile_columns,
            self.row_threads,
            self.splits,
            self.split_depth,
            self.launch.shared_bytes,
            self.workspace.bytes(),
            self.floor_bytes,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(tokens: usize, d_in: usize, d_out: usize, layout: Layout) -> LayerProblem<'static> {
        LayerProblem {
            tokens,
            d_in,
            d_out,
            layout,
            dtype: DType::Bf16,
            ranks: &[16],
            aligned: true,
            multiprocessors: 132,
            compute_capability: (9, 0),
            path: ComputePath::Auto,
        }
    }

    #[test]
    fn tiles_cover_the_output_once() {
        for layout in [Layout::OutIn, Layout::InOut] {
            for d_out in [1, 7, 8, 33, 768, 1024, 3072, 4096, 11008, 50257] {
                for tokens in 1..=MAX_TOKENS {
                    let plan = DecodePlan::new(&problem(tokens, 4096, d_out, layout)).unwrap();
                    let tiles = plan.launch.grid[0] as usize;
                    assert!(tiles * plan.tile_columns as usize >= d_out, "{plan}");
                    assert!((tiles - 1) * (plan.tile_columns as usize) < d_out, "{plan}");
                    assert!(plan.launch.shared_bytes <= 48 << 10, "{plan}");
                }
            }
        }
    }

    #[test]
    fn mma_is_used_where_the_device_and_the_operands_allow_it() {
        let kernel = |p| DecodePlan::new(&p).map(|plan| plan.launch.kernel);
        let base = problem(5, 64, 64, Layout::InOut);
        let turing = (7, 5);
        assert_eq!(kernel(base.clone()).unwrap(), "lora_decode_columns_mma_bf16");
        assert_eq!(
            kernel(LayerProblem { compute_capability: turing, ..base.clone() }).unwrap(),
            "lora_decode_columns_bf16_t4"
        );
        assert_eq!(
            kernel(LayerProblem { compute_capability: turing, dtype: DType::F16, ..base.clone() }).unwrap(),
            "lora_decode_columns_mma_f16"
        );
        for refused in [
            LayerProblem { compute_capability: turing, ..base.clone() },
            LayerProblem { dtype: DType::F32, ..base.clone() },
            LayerProblem { aligned: false, ..base.clone() },
        ] {
            assert!(matches!(
                kernel(LayerProblem { path: ComputePath::Matrix, ..refused }),
                Err(Error::NoMatrixInstructions { .. })
            ));
        }
        assert_eq!(
            kernel(LayerProblem { path: ComputePath::CudaCores, ..base }).unwrap(),
            "lora_decode_columns_bf16_t4"
        );
    }

    #[test]
    fn shared_memory_stays_portable() {
        for layout in [Layout::OutIn, Layout::InOut] {
            for tokens in [1, 2, 4, 16] {
                let plan =
                    DecodePlan::new(&LayerProblem { ranks: &[512], ..problem(tokens, 4096, 11008, layout) }).unwrap();
                assert!(plan.launch.shared_bytes <= PORTABLE_SHARED_BYTES, "{plan}");
            }
        }
    }

    #[test]
    fn a_row_keeps_its_threads_busy() {
        assert_eq!(out_in_row_threads(512, 512), 512);
        assert_eq!(out_in_row_threads(128, 512), 128);
        assert_eq!(out_in_row_threads(384, 512), 128);
        assert_eq!(out_in_row_threads(1, 512), 32);
    }

    #[test]
    fn each_limit_has_its_error() {
        let base = problem(1, 64, 64, Layout::OutIn);
        let error = |p| DecodePlan::new(&p).unwrap_err();
        assert_eq!(error(LayerProblem { tokens: 17, ..base.clone() }), Error::TooManyTokens { tokens: 17, max: 16 });
        assert_eq!(
            error(LayerProblem { ranks: &[1; 17], ..base.clone() }),
            Error::TooManySegments { segments: 17, max: 16 }
        );
        assert_eq!(
            error(LayerProblem { ranks: &[4, 513], ..base.clone() }),
            Error::RankOutOfRange { rank: 513, max: 512 }
        );
        assert_eq!(error(LayerProblem { d_in: 0, ..base }), Error::EmptyOperand { operand: "x", shape: [1, 0] });
    }
}
