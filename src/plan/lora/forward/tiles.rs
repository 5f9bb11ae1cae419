//! Which tiles a device and a type have, and what the cost model assumes of each.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::lora::tiles::{self, TileShape};
use crate::plan::problem::{ComputePath, LayerProblem};

/// A kernel's tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) shape: TileShape,
    /// What a kernel's name has before the type.
    pub(crate) family: &'static str,
    /// Products per cycle that an SM makes with it, for the model.
    pub(crate) rate: usize,
    /// CTAs that may split a tile's K.
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

    /// The kernel for a product, a layout of W0 ("rows" or "columns") and a type.
    pub(crate) fn kernel(&self, product: &str, layout: &str, multiplied: &str) -> String {
        let (_, suffix) = self.shape.name.rsplit_once('_').expect("family_tile");
        format!("{product}_{layout}{}{multiplied}_{suffix}", self.family)
    }

    /// Tiles from top to bottom, of which some may lie below the last token.
    pub(crate) fn row_tiles(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.shape.rows).next_multiple_of(if self.ctas == Ctas::Pairs { 2 } else { 1 })
    }
}

pub(crate) const T128: Tile =
    Tile { shape: tiles::MMA_T128, family: "mma_", rate: 1024, max_splits: 16, extra_bytes: 128, ctas: Ctas::One };
pub(crate) const T64: Tile = Tile { shape: tiles::MMA_T64, rate: 700, ..T128 };
pub(crate) const ANY: Tile = Tile { shape: tiles::MMA_ANY, ..T64 };
/// In TF32 a product costs twice as much, and as many values twice the bytes.
pub(crate) const TF32_T128: Tile = Tile { shape: tiles::MMA_TF32_T128, rate: 512, ..T128 };
pub(crate) const TF32_T64: Tile = Tile { shape: tiles::MMA_TF32_T64, rate: 350, ..T64 };
pub(crate) const TF32_ANY: Tile = Tile { shape: tiles::MMA_TF32_ANY, ..TF32_T64 };
pub(crate) const CORES_T128: Tile = Tile { shape: tiles::CORES_F32_T128, family: "", rate: 100, ..T128 };
pub(crate) const CORES_T64: Tile = Tile { shape: tiles::CORES_F32_T64, rate: 80, ..CORES_T128 };
pub(crate) const CORES_ANY: Tile = Tile { shape: tiles::CORES_F32_ANY, ..CORES_T64 };
/// What is left for bf16 on sm_75.
pub(crate) const CORES16_T64: Tile = Tile { shape: tiles::CORES_16BIT_T64, rate: 40, ..CORES_T64 };
pub(crate) const CORES16_ANY: Tile = Tile { shape: tiles::CORES_16BIT_ANY, ..CORES16_T64 };
pub(crate) const N256: Tile = Tile {
    shape: tiles::WGMMA_N256,
    family: "wgmma_",
    rate: 2000,
    max_splits: 1,
    // Panels of y, barriers, tickets.
    extra_bytes: 4 * 64 * 64 * 2 + 256,
    ctas: Ctas::Persistent,
};
pub(crate) const N256X2: Tile = Tile { shape: tiles::WGMMA_N256X2, ctas: Ctas::Pairs, ..N256 };
pub(crate) const N128: Tile = Tile { shape: tiles::WGMMA_N128, rate: 1600, ..N256 };
pub(crate) const M128N128: Tile =
    Tile { shape: tiles::WGMMA_M128N128, rate: 1500, max_splits: 8, extra_bytes: 128, ctas: Ctas::Cluster, ..N128 };
pub(crate) const M64N128: Tile = Tile { shape: tiles::WGMMA_M64N128, ..M128N128 };
pub(crate) const M64N64: Tile = Tile { shape: tiles::WGMMA_M64N64, rate: 1100, ..M64N128 };
pub(crate) const M128N128R: Tile = Tile { shape: tiles::WGMMA_M128N128R, ..M128N128 };
pub(crate) const M64N128R: Tile = Tile { shape: tiles::WGMMA_M64N128R, ..M64N128 };
pub(crate) const M64N64R: Tile = Tile { shape: tiles::WGMMA_M64N64R, ..M64N64 };
/// Columns of T that the kernels with a fused shrink have room for.
pub(crate) const FUSED_RANK: usize = M64N64R.shape.fused_rank;

/// Those that a problem may take, the largest first.
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
