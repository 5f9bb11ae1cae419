//! How a layer is cut into tiles for the forward kernels, by a model of what a tile costs.

use crate::problem::LayerProblem;

/// A kernel's tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    /// What the kernel's name has before the type, ...
    pub(super) family: &'static str,
    /// ... and behind it.
    pub(super) name: &'static str,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Depth of a stage.
    pub(super) depth: usize,
    pub(super) stages: usize,
    pub(super) threads: usize,
    /// Products a cycle that an SM makes with it, for the model.
    pub(super) rate: usize,
    /// CTAs that may share a tile's depth.
    pub(super) max_splits: usize,
    /// Shared memory beside the stages, in bytes.
    pub(super) extra_bytes: usize,
    /// Whether one CTA an SM takes tile after tile, its operands fetched by tensor maps.
    pub(super) persistent: bool,
}

/// A tile and how many CTAs share its depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) tile: Tile,
    pub(super) splits: usize,
    pub(super) split_depth: usize,
}

impl Tile {
    fn splits(self, d_in: usize, wanted: usize) -> Cut {
        let split_depth = d_in.div_ceil(wanted).next_multiple_of(self.depth);
        Cut { tile: self, splits: d_in.div_ceil(split_depth), split_depth }
    }
}

/// The cheapest of the tiles and splits. It does not depend on the ranks: a column without an adapter is summed up as in
/// the base product.
pub(super) fn cut(problem: &LayerProblem<'_>, tiles: &[Tile]) -> Cut {
    let d_in = problem.d_in;
    let candidates = tiles.iter().flat_map(|&tile| {
        // A split is worth as many steps as the ring has stages, twice.
        let most = (d_in / (2 * tile.stages * tile.depth)).clamp(1, tile.max_splits);
        (1..=most).map(move |wanted| tile.splits(d_in, wanted))
    });
    candidates.min_by_key(|cut| cost(cut, problem)).unwrap_or_else(|| tiles[0].splits(d_in, 1))
}

/// Among how many CTAs, and by what depth each, tiles of T are shared: so many that every SM has one, since all tiles of y
/// wait for them, but none with less depth than the ring is long.
pub(super) fn t_splits(problem: &LayerProblem<'_>, tile: &Tile, t_tiles: usize) -> (usize, usize) {
    let wanted = problem.multiprocessors.div_ceil(t_tiles.max(1));
    let most = (problem.d_in / (tile.stages * tile.depth)).clamp(1, MAX_T_SPLITS);
    let Cut { splits, split_depth, .. } = tile.splits(problem.d_in, wanted.clamp(1, most));
    (splits, split_depth)
}

/// The last of a tile's CTAs adds up as many parts.
const MAX_T_SPLITS: usize = 32;

/// Cycles of the busiest SM. A model, not a measurement: products at the tile's rate, 3000 cycles to fill and drain, and
/// 16 bytes a cycle for what a split leaves and the last one gathers.
fn cost(cut: &Cut, problem: &LayerProblem<'_>) -> usize {
    let Tile { rows, columns, rate, .. } = cut.tile;
    let tiles = problem.tokens.div_ceil(rows) * problem.d_out.div_ceil(columns);
    let ctas_per_sm = (tiles * cut.splits).div_ceil(problem.multiprocessors.max(1));
    let products = rows * columns * cut.split_depth / rate;
    let exchange = if cut.splits > 1 { rows * columns * 4 / 16 } else { 0 };
    let gather = exchange * cut.splits;
    ctas_per_sm * (products + exchange) + gather + 3000
}
