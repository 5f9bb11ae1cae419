//! How a layer is cut into tiles for the forward kernels, by a model of what a tile costs.

use crate::plan::lora::forward::tiles::{Ctas, Tile};
use crate::plan::lora::tiles::TileShape;
use crate::plan::problem::LayerProblem;

/// A tile and how many CTAs share its depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiling {
    pub(crate) tile: Tile,
    pub(crate) splits: usize,
    pub(crate) split_depth: usize,
}

impl Tile {
    fn splits(self, d_in: usize, wanted: usize) -> Tiling {
        let split_depth = d_in.div_ceil(wanted).next_multiple_of(self.shape.depth);
        Tiling { tile: self, splits: d_in.div_ceil(split_depth), split_depth }
    }
}

impl Tiling {
    /// CTAs of a cluster.
    pub(crate) fn cluster(&self) -> usize {
        match self.tile.ctas {
            Ctas::One | Ctas::Persistent => 1,
            Ctas::Pairs => 2,
            Ctas::Cluster => self.splits,
        }
    }
}

/// The cheapest of the tiles and splits. It does not depend on the ranks: a column without an adapter is summed up as in
/// the base product.
pub(crate) fn choose(problem: &LayerProblem<'_>, tiles: &[Tile]) -> Tiling {
    let d_in = problem.d_in;
    let candidates = tiles.iter().flat_map(|&tile| {
        // A split is worth as many steps as the ring has stages, twice.
        let least = match tile.ctas {
            Ctas::Cluster => tile.shape.depth,
            _ => 2 * tile.shape.stages * tile.shape.depth,
        };
        let most = (d_in / least).clamp(1, tile.max_splits);
        let tilings = (1..=most).map(move |wanted| tile.splits(d_in, wanted));
        tilings.filter(move |tiling| tile.ctas != Ctas::Cluster || tiling.splits.is_power_of_two())
    });
    candidates.min_by_key(|tiling| cost(tiling, problem)).unwrap_or_else(|| tiles[0].splits(d_in, 1))
}

/// Among how many CTAs, and by what depth each, tiles of T are shared: so many that every SM has one, since all tiles of y
/// wait for them, but none with less depth than the ring is long. Where tiles of y are a cluster's each, all CTAs of a
/// cluster that has drawn a tile of T get a split of it, the last ones maybe an empty one.
pub(crate) fn t_splits(problem: &LayerProblem<'_>, tiling: &Tiling, t_tiles: usize) -> (usize, usize) {
    let tile = &tiling.tile;
    let cluster = if tile.ctas == Ctas::Cluster { tiling.splits } else { 1 };
    let wanted = problem.multiprocessors.div_ceil(t_tiles.max(1));
    let most = (problem.d_in / (tile.shape.stages * tile.shape.depth)).clamp(1, MAX_T_SPLITS);
    let wanted = (wanted.clamp(1, most) / cluster * cluster).max(cluster);
    let Tiling { splits, split_depth, .. } = tile.splits(problem.d_in, wanted);
    (splits.next_multiple_of(cluster), split_depth)
}

/// The last of a tile's CTAs adds up as many parts.
const MAX_T_SPLITS: usize = 32;

/// SMs that clusters of this size find places on: all, if two CTAs are the SMs of one TPC; else not all, since a cluster lives
/// within a GPC and those have any number of SMs. On an H100 it is 116 to 128 of 132 for four CTAs, 112 to 120 for eight
/// (`cuOccupancyMaxActiveClusters` knows it for a device).
fn within_reach(tiling: &Tiling, multiprocessors: usize) -> usize {
    if tiling.cluster() > 2 { (multiprocessors * 7 / 8).max(1) } else { multiprocessors }
}

/// Cycles of the busiest SM. A model, not a measurement: products at the tile's rate or operands at 40 bytes a cycle from
/// L2, whatever takes longer; 3000 cycles to fill and drain; 16 bytes a cycle for what a split leaves and the last one
/// gathers, or, within a cluster, 32 bytes a cycle for the sums of others, and 1000 cycles for its barriers.
fn cost(tiling: &Tiling, problem: &LayerProblem<'_>) -> usize {
    let Tile { shape: TileShape { rows, columns, .. }, rate, .. } = tiling.tile;
    let tiles = tiling.tile.row_tiles(problem.tokens) * problem.d_out.div_ceil(columns);
    let ctas_per_sm = (tiles * tiling.splits).div_ceil(within_reach(tiling, problem.multiprocessors.max(1)));
    let products = rows * columns * tiling.split_depth / rate;
    let fetched = rows + if tiling.tile.ctas == Ctas::Pairs { columns / 2 } else { columns };
    let operands = fetched * tiling.split_depth * problem.dtype.size() / 40;
    let sums = rows * columns * 4;
    let (exchange, gather) = match tiling.tile.ctas {
        _ if tiling.splits == 1 => (0, 0),
        Ctas::Cluster => (sums / 32, 1000),
        _ => (sums / 16, sums / 16 * tiling.splits),
    };
    ctas_per_sm * (products.max(operands) + exchange) + gather + 3000
}
