//! The tiles that can run a problem, and the figures that the cost model uses for each.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::lora::tiles::{self, TileShape};
use crate::plan::problem::{ComputePath, LayerProblem};

/// A tile, with what the plans must know of the kernels that are compiled for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) shape: TileShape,
    /// The part of the kernels' names before the type: `mma_`, `wgmma_`, or nothing for CUDA cores.
    pub(crate) family: &'static str,
    /// Multiply-adds per cycle and SM that the cost model assumes.
    pub(crate) rate: usize,
    /// The most CTAs that may share a y tile (split-K).
    pub(crate) max_splits: usize,
    /// Bytes of shared memory in addition to the ring and the table of factors.
    pub(crate) extra_bytes: usize,
    /// Which CTA computes which tasks. A task is a tile, or one split of it.
    pub(crate) schedule: Schedule,
}

/// Which CTA of a launch computes which tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// Each CTA computes one task.
    OneTask,
    /// One CTA per SM computes task after task.
    Persistent,
    /// Like [`Persistent`](Self::Persistent), in clusters of two CTAs. Their tiles are one above the other and use the
    /// same columns of W0, of which each CTA fetches half for both.
    PersistentPairs,
    /// Each CTA computes one task. The CTAs that split K of a y tile are one cluster.
    ClusterSplitK,
}

impl Tile {
    /// The tile of the same size whose kernel fuses the shrink into the main loop, if there is one.
    pub(crate) fn with_fused_shrink(&self) -> Option<Tile> {
        [(M128N128, M128N128R), (M64N128, M64N128R), (M64N64, M64N64R)]
            .into_iter()
            .find_map(|(plain, fused)| (*self == plain).then_some(fused))
    }

    /// The kernel's name for a product, a layout of W0 (`rows_`, `columns_` or nothing) and a type.
    pub(crate) fn kernel(&self, product: &str, layout: &str, type_name: &str) -> String {
        let (_, suffix) = self.shape.name.rsplit_once('_').expect("family_tile");
        format!("{product}_{layout}{}{type_name}_{suffix}", self.family)
    }

    /// Tiles along the rows. For pairs of CTAs the number is even, so the last tile may have no token.
    pub(crate) fn row_tiles(&self, tokens: usize) -> usize {
        let multiple = if self.schedule == Schedule::PersistentPairs { 2 } else { 1 };
        tokens.div_ceil(self.shape.rows).next_multiple_of(multiple)
    }
}

pub(crate) const T128: Tile = Tile {
    shape: tiles::MMA_T128,
    family: "mma_",
    rate: 1024,
    max_splits: 16,
    extra_bytes: 128,
    schedule: Schedule::OneTask,
};
pub(crate) const T64: Tile = Tile { shape: tiles::MMA_T64, rate: 700, ..T128 };
pub(crate) const ANY: Tile = Tile { shape: tiles::MMA_ANY, ..T64 };
/// In TF32 an MMA has half the rate of f16, and a value has twice the bytes.
pub(crate) const TF32_T128: Tile = Tile { shape: tiles::MMA_TF32_T128, rate: 512, ..T128 };
pub(crate) const TF32_T64: Tile = Tile { shape: tiles::MMA_TF32_T64, rate: 350, ..T64 };
pub(crate) const TF32_ANY: Tile = Tile { shape: tiles::MMA_TF32_ANY, ..TF32_T64 };
pub(crate) const CORES_T128: Tile = Tile { shape: tiles::CORES_F32_T128, family: "", rate: 100, ..T128 };
pub(crate) const CORES_T64: Tile = Tile { shape: tiles::CORES_F32_T64, rate: 80, ..CORES_T128 };
pub(crate) const CORES_ANY: Tile = Tile { shape: tiles::CORES_F32_ANY, ..CORES_T64 };
/// CUDA cores for 16-bit types: bf16 on sm_75, which has no MMA for it, or either type if CUDA cores are asked for.
pub(crate) const CORES16_T64: Tile = Tile { shape: tiles::CORES_16BIT_T64, rate: 40, ..CORES_T64 };
pub(crate) const CORES16_ANY: Tile = Tile { shape: tiles::CORES_16BIT_ANY, ..CORES16_T64 };
pub(crate) const N256: Tile = Tile {
    shape: tiles::WGMMA_N256,
    family: "wgmma_",
    rate: 2000,
    max_splits: 1,
    // Four 64 × 64 panels of y in 16 bits; mbarriers and tickets.
    extra_bytes: 4 * 64 * 64 * 2 + 256,
    schedule: Schedule::Persistent,
};
pub(crate) const N256X2: Tile = Tile { shape: tiles::WGMMA_N256X2, schedule: Schedule::PersistentPairs, ..N256 };
pub(crate) const N128: Tile = Tile { shape: tiles::WGMMA_N128, rate: 1600, ..N256 };
pub(crate) const M128N128: Tile = Tile {
    shape: tiles::WGMMA_M128N128,
    rate: 1500,
    max_splits: 8,
    extra_bytes: 128,
    schedule: Schedule::ClusterSplitK,
    ..N128
};
pub(crate) const M64N128: Tile = Tile { shape: tiles::WGMMA_M64N128, ..M128N128 };
pub(crate) const M64N64: Tile = Tile { shape: tiles::WGMMA_M64N64, rate: 1100, ..M64N128 };
pub(crate) const M128N128R: Tile = Tile { shape: tiles::WGMMA_M128N128R, ..M128N128 };
pub(crate) const M64N128R: Tile = Tile { shape: tiles::WGMMA_M64N128R, ..M64N128 };
pub(crate) const M64N64R: Tile = Tile { shape: tiles::WGMMA_M64N64R, ..M64N64 };
/// The most columns of T that the kernels with a fused shrink compute.
pub(crate) const FUSED_RANK: usize = M64N64R.shape.fused_rank;

/// The tiles that can run a problem, the largest first.
///
/// # Errors
/// [`Error::NoMatrixInstructions`].
pub(crate) fn of_problem(problem: &LayerProblem<'_>) -> Result<&'static [Tile]> {
    Ok(match (problem.path, problem.matrix_obstacle()) {
        (ComputePath::Auto | ComputePath::Matrix, None) => matrix_tiles(problem),
        (ComputePath::Tf32, None) if problem.in_chunks() => &[TF32_T128, TF32_T64],
        (ComputePath::Tf32, None) => &[TF32_ANY],
        (ComputePath::Matrix | ComputePath::Tf32, Some(reason)) => {
            return Err(Error::NoMatrixInstructions { dtype: problem.dtype, reason });
        }
        (ComputePath::Auto | ComputePath::CudaCores, _) => match (problem.dtype, problem.in_chunks()) {
            (DType::F32, true) => &[CORES_T128, CORES_T64],
            (DType::F32, false) => &[CORES_ANY],
            (_, true) => &[CORES16_T64],
            (_, false) => &[CORES16_ANY],
        },
    })
}

fn matrix_tiles(problem: &LayerProblem<'_>) -> &'static [Tile] {
    match (problem.in_chunks(), problem.compute_capability) {
        (false, _) => &[ANY],
        (true, (..=7, _)) => &[T64],
        (true, (9, 0)) => &[N256X2, N256, N128, M128N128, M64N128, M64N64, T64],
        (true, _) => &[T128, T64],
    }
}
