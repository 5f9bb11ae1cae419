//! The choice of a tile and of the split of K for the forward kernels, by a model of their cost.

use crate::plan::lora::forward::tiles::{Schedule, Tile};
use crate::plan::lora::tiles::TileShape;
use crate::plan::problem::LayerProblem;

/// A tile, and the split of its K.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiling {
    pub(crate) tile: Tile,
    /// CTAs that share a y tile; 1 without a split.
    pub(crate) splits: usize,
    /// Values of K per CTA.
    pub(crate) split_depth: usize,
}

impl Tile {
    /// The tiling with at most `wanted` splits. Every split but the last has K of whole stages, and none is empty.
    fn with_splits(self, d_in: usize, wanted: usize) -> Tiling {
        let split_depth = d_in.div_ceil(wanted).next_multiple_of(self.shape.depth);
        Tiling { tile: self, splits: d_in.div_ceil(split_depth), split_depth }
    }
}

impl Tiling {
    /// CTAs per cluster; 1 without clusters.
    pub(crate) fn cluster(&self) -> usize {
        match self.tile.schedule {
            Schedule::OneTask | Schedule::Persistent => 1,
            Schedule::PersistentPairs => 2,
            Schedule::ClusterSplitK => self.splits,
        }
    }
}

/// The tile and the split of K that the model finds cheapest. They do not depend on the ranks, so that the columns of y
/// without an adapter have the same bits as in the base product.
pub(crate) fn choose(problem: &LayerProblem<'_>, tiles: &[Tile]) -> Tiling {
    let d_in = problem.d_in;
    let candidates = tiles.iter().flat_map(|&tile| {
        // A split has K for at least one stage in a cluster, and for twice the ring elsewhere.
        let min_split_depth = match tile.schedule {
            Schedule::ClusterSplitK => tile.shape.depth,
            _ => 2 * tile.shape.stages * tile.shape.depth,
        };
        let max_splits = (d_in / min_split_depth).clamp(1, tile.max_splits);
        let tilings = (1..=max_splits).map(move |wanted| tile.with_splits(d_in, wanted));
        tilings.filter(move |tiling| tile.schedule != Schedule::ClusterSplitK || tiling.splits.is_power_of_two())
    });
    candidates.min_by_key(|tiling| cost(tiling, problem)).unwrap_or_else(|| tiles[0].with_splits(d_in, 1))
}

/// Split-K of T: the CTAs that share a T tile, and the values of K of each.
///
/// Every y tile waits for T, so there are enough splits to give every SM a CTA; but each split has K for at least the
/// whole ring. Where clusters split K of y, a cluster that takes the ticket of a T tile computes one split per CTA. So
/// the number of splits is a multiple of the cluster's size, splits may be shorter than the ring, and the last may be
/// empty.
pub(crate) fn t_splits(problem: &LayerProblem<'_>, tiling: &Tiling, t_tiles: usize) -> (usize, usize) {
    let tile = &tiling.tile;
    let cluster = if tile.schedule == Schedule::ClusterSplitK { tiling.splits } else { 1 };
    let wanted = problem.multiprocessors.div_ceil(t_tiles.max(1));
    let max_splits = (problem.d_in / (tile.shape.stages * tile.shape.depth)).clamp(1, MAX_T_SPLITS);
    let wanted = (wanted.clamp(1, max_splits) / cluster * cluster).max(cluster);
    let Tiling { splits, split_depth, .. } = tile.with_splits(problem.d_in, wanted);
    (splits.next_multiple_of(cluster), split_depth)
}

/// The most splits of a T tile. The CTA that finishes last adds the partial sums of all of them.
const MAX_T_SPLITS: usize = 32;

/// SMs on which clusters of this tiling can be resident, a rough estimate. Clusters of two CTAs can use every SM, since
/// a TPC has two. A larger cluster must lie within one GPC, and GPCs have different numbers of SMs: on an H100 clusters
/// of four CTAs reach 116 to 128 of the 132 SMs, clusters of eight 112 to 120. `cuOccupancyMaxActiveClusters` returns
/// the number for a device.
fn sms_for_clusters(tiling: &Tiling, multiprocessors: usize) -> usize {
    if tiling.cluster() > 2 { (multiprocessors * 7 / 8).max(1) } else { multiprocessors }
}

/// Cycles of the SM that has the most work. This is a model, not a measurement:
///
/// - an SM multiplies at the tile's rate and at the same time fetches operands from L2 at 40 bytes per cycle, so the
///   slower of the two counts;
/// - filling and draining the ring takes 3000 cycles;
/// - with split-K through the workspace, each CTA stores its partial sums at 16 bytes per cycle, and the last one reads
///   those of all splits at the same rate;
/// - with split-K in a cluster, a CTA reads the partial sums of other CTAs at 32 bytes per cycle, and the barriers of
///   the cluster take 1000 cycles.
fn cost(tiling: &Tiling, problem: &LayerProblem<'_>) -> usize {
    let Tile { shape: TileShape { rows, columns, .. }, rate, .. } = tiling.tile;
    let tiles = tiling.tile.row_tiles(problem.tokens) * problem.d_out.div_ceil(columns);
    let ctas_per_sm = (tiles * tiling.splits).div_ceil(sms_for_clusters(tiling, problem.multiprocessors.max(1)));
    let multiply = rows * columns * tiling.split_depth / rate;
    let fetched = rows + if tiling.tile.schedule == Schedule::PersistentPairs { columns / 2 } else { columns };
    let fetch = fetched * tiling.split_depth * problem.dtype.size() / 40;
    let partial_bytes = rows * columns * 4;
    let (exchange, add_splits) = match tiling.tile.schedule {
        _ if tiling.splits == 1 => (0, 0),
        Schedule::ClusterSplitK => (partial_bytes / 32, 1000),
        _ => (partial_bytes / 16, partial_bytes / 16 * tiling.splits),
    };
    ctas_per_sm * (multiply.max(fetch) + exchange) + add_splits + 3000
}
