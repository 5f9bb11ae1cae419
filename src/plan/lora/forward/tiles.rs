//! The forward kernels' tiles: their sizes, and which of them a device and a type have.
//!
//! The kernels are instantiated with the same sizes in kernels/lora/forward_*.cu and dx_*.cu.

use crate::abi;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::problem::{ComputePath, LayerProblem};

/// A kernel's tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    /// What the kernel's name has before the type, ...
    pub(crate) family: &'static str,
    /// ... and behind it.
    pub(crate) name: &'static str,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Depth of a stage.
    pub(crate) depth: usize,
    pub(crate) stages: usize,
    pub(crate) threads: usize,
    /// Rows of A in a stage beside W0, where the shrink is fused into the main loop.
    pub(crate) fused_rank: usize,
    /// Products a cycle that an SM makes with it, for the model.
    pub(crate) rate: usize,
    /// CTAs that may share a tile's depth.
    pub(crate) max_splits: usize,
    /// Shared memory beside the stages, in bytes.
    pub(crate) extra_bytes: usize,
    pub(crate) ctas: Ctas,
}

/// How a kernel's CTAs come to their tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ctas {
    /// One task each.
    One,
    /// One CTA an SM takes task after task.
    Persistent,
    /// The same in clusters of two, which have tiles one above the other and fetch half of W0's part each.
    Pairs,
    /// One task each; those that share a tile's depth are a cluster.
    Cluster,
}

impl Tile {
    /// The tile of the same size whose kernel fuses the shrink into the main loop, if there is one.
    pub(crate) fn with_fused_shrink(&self) -> Option<Tile> {
        [(M128N128, M128N128R), (M64N128, M64N128R), (M64N64, M64N64R)]
            .into_iter()
            .find_map(|(plain, fused)| (*self == plain).then_some(fused))
    }

    /// Tiles from top to bottom, of which some may lie below the last token.
    pub(crate) fn row_tiles(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.rows).next_multiple_of(if self.ctas == Ctas::Pairs { 2 } else { 1 })
    }
}

/// mma.sync, many tokens.
pub(crate) const T128: Tile = Tile {
    family: "mma_",
    name: "t128",
    rows: 128,
    columns: 128,
    depth: 32,
    stages: 3,
    threads: 256,
    fused_rank: 0,
    rate: 1024,
    max_splits: 16,
    extra_bytes: 128,
    ctas: Ctas::One,
};
/// mma.sync, few tokens, ...
pub(crate) const T64: Tile = Tile { name: "t64", rows: 64, columns: 64, depth: 64, threads: 128, rate: 700, ..T128 };
/// ... and rows that start anywhere.
pub(crate) const ANY: Tile = Tile { name: "any", ..T64 };
/// CUDA cores, f32.
pub(crate) const CORES_T128: Tile = Tile { family: "", depth: 16, rate: 100, ..T128 };
pub(crate) const CORES_T64: Tile = Tile { family: "", depth: 16, rate: 80, ..T64 };
pub(crate) const CORES_ANY: Tile = Tile { name: "any", ..CORES_T64 };
/// CUDA cores, 16 bits: what is left for bf16 on sm_75.
pub(crate) const CORES16_T64: Tile = Tile { depth: 32, rate: 40, ..CORES_T64 };
pub(crate) const CORES16_ANY: Tile = Tile { name: "any", ..CORES16_T64 };
/// mma.sync in TF32: products cost twice as much, and as many values twice the bytes.
pub(crate) const TF32_T128: Tile = Tile { depth: 16, rate: 512, ..T128 };
pub(crate) const TF32_T64: Tile = Tile { depth: 32, rate: 350, ..T64 };
pub(crate) const TF32_ANY: Tile = Tile { name: "any", ..TF32_T64 };
/// wgmma, many tokens.
pub(crate) const N256: Tile = Tile {
    family: "wgmma_",
    name: "n256",
    rows: 128,
    columns: 256,
    depth: 64,
    stages: 4,
    threads: abi::LORA_FORWARD_WGMMA_THREADS as usize,
    fused_rank: 0,
    rate: 2000,
    max_splits: 1,
    // The sums on their way out, barriers, drawn tickets.
    extra_bytes: 4 * 64 * 64 * 2 + 256,
    ctas: Ctas::Persistent,
};
pub(crate) const N256X2: Tile = Tile { name: "n256x2", ctas: Ctas::Pairs, ..N256 };
pub(crate) const N128: Tile = Tile { name: "n128", columns: 128, stages: 6, rate: 1600, ..N256 };
/// wgmma, few tokens: clusters share depths.
pub(crate) const M128N128: Tile =
    Tile { name: "m128n128", rate: 1500, max_splits: 8, extra_bytes: 128, ctas: Ctas::Cluster, ..N128 };
pub(crate) const M64N128: Tile = Tile { name: "m64n128", rows: 64, stages: 4, threads: 256, ..M128N128 };
pub(crate) const M64N64: Tile = Tile { name: "m64n64", columns: 64, stages: 6, rate: 1100, ..M64N128 };
/// The same with a fused shrink.
pub(crate) const FUSED_RANK: usize = abi::LORA_FORWARD_FUSED_RANK as usize;
pub(crate) const M128N128R: Tile = Tile { name: "m128n128r", fused_rank: FUSED_RANK, ..M128N128 };
pub(crate) const M64N128R: Tile = Tile { name: "m64n128r", fused_rank: FUSED_RANK, ..M64N128 };
pub(crate) const M64N64R: Tile = Tile { name: "m64n64r", stages: 5, fused_rank: FUSED_RANK, ..M64N64 };

/// Those that a problem may take, the largest first.
///
/// # Errors
/// [`Error::NoMatrixInstructions`].
pub(crate) fn of_problem(problem: &LayerProblem<'_>) -> Result<&'static [Tile]> {
    Ok(match (problem.path, problem.matrix_obstacle()) {
        (ComputePath::Auto | ComputePath::Matrix, None) => matrix_tiles(problem),
        (ComputePath::Tf32, None) if problem.aligned => &[TF32_T128, TF32_T64],
        (ComputePath::Tf32, None) => &[TF32_ANY],
        (ComputePath::Matrix | ComputePath::Tf32, Some(reason)) => {
            return Err(Error::NoMatrixInstructions { dtype: problem.dtype, reason });
        }
        (ComputePath::Auto | ComputePath::CudaCores, _) => match (problem.dtype, problem.aligned) {
            (DType::F32, true) => &[CORES_T128, CORES_T64],
            (DType::F32, false) => &[CORES_ANY],
            (_, true) => &[CORES16_T64],
            (_, false) => &[CORES16_ANY],
        },
    })
}

fn matrix_tiles(problem: &LayerProblem<'_>) -> &'static [Tile] {
    match (problem.aligned, problem.compute_capability) {
        (false, _) => &[ANY],
        (true, (..=7, _)) => &[T64],
        (true, (9, 0)) => &[N256X2, N256, N128, M128N128, M64N128, M64N64, T64],
        (true, _) => &[T128, T64],
    }
}
