//! How a layer is cut up for the kernels on matrix instructions.

use crate::lora::Layout;
use crate::plan::lora::tiles::{self, DecodeTile};

/// Values of k that a warp takes at a time.
const STEP: usize = 32;
/// The tiles for W0 `[out, in]`.
const ROW_TILES: [DecodeTile; 4] = [tiles::ROWS_MMA_N2, tiles::ROWS_MMA_N4, tiles::ROWS_MMA_N8, tiles::ROWS_MMA_N12];
/// The tile for W0 `[in, out]`.
const COLUMN_TILES: [DecodeTile; 1] = [tiles::COLUMNS_MMA];
/// CTAs that share a tile's depth at most.
const MAX_SPLITS: usize = 16;

/// A tiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiling {
    pub(crate) tile: DecodeTile,
    pub(crate) splits: usize,
    pub(crate) split_depth: usize,
}

/// The tiling that the model below finds cheapest.
pub(crate) fn choose(tokens: usize, d_in: usize, d_out: usize, layout: Layout, multiprocessors: usize) -> Tiling {
    let tiles: &[DecodeTile] = match layout {
        Layout::OutIn => &ROW_TILES,
        Layout::InOut => &COLUMN_TILES,
    };
    let candidates = tiles.iter().flat_map(|&tile| {
        // A split is worth a step of every warp at least.
        let most_splits = (d_in / (tile.threads / 32 * STEP)).clamp(1, MAX_SPLITS);
        (1..=most_splits).map(move |wanted| {
            let split_depth = d_in.div_ceil(wanted).next_multiple_of(STEP);
            Tiling { tile, splits: d_in.div_ceil(split_depth), split_depth }
        })
    });
    candidates.min_by_key(|tiling| cost(tiling, tokens, d_out, multiprocessors)).unwrap_or(Tiling {
        tile: tiles[0],
        splits: 1,
        split_depth: d_in.next_multiple_of(STEP),
    })
}

/// Half-bytes of memory traffic that the busiest place for a CTA sees. A model, not a measurement: a byte from L2 counts
/// as half of one from memory, and gathering the splits as 24 KiB.
fn cost(tiling: &Tiling, tokens: usize, d_out: usize, multiprocessors: usize) -> usize {
    let DecodeTile { tokens: rows, columns, ctas, .. } = tiling.tile;
    let slots = multiprocessors.max(1) * ctas;
    let waves = (d_out.div_ceil(columns) * tiling.splits).div_ceil(slots);
    let weight = columns.min(d_out) * tiling.split_depth * 2;
    let x = tokens * tiling.split_depth * 2;
    let gather = if tiling.splits > 1 { 2 * (24 << 10) + 2 * rows * columns * 4 } else { 0 };
    waves * (2 * weight + x + gather)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn big_layers_keep_the_sms_busy() {
        for (d_in, d_out) in [(4096, 4096), (4096, 11008), (11008, 4096), (4096, 1024), (1024, 4096), (4096, 50257)] {
            for layout in [Layout::OutIn, Layout::InOut] {
                let tiling = choose(16, d_in, d_out, layout, 132);
                let ctas = d_out.div_ceil(tiling.tile.columns) * tiling.splits;
                let slots = if layout == Layout::OutIn { 132 } else { 264 };
                let waves = ctas.div_ceil(slots);
                assert!(ctas * 10 >= waves * slots * 4, "{d_in} to {d_out}, {layout:?}: {tiling:?} is {ctas} CTAs");
            }
        }
    }

    #[test]
    fn splits_cover_the_depth_once() {
        for d_in in [8, 64, 520, 1024, 2056, 4096, 11008] {
            for layout in [Layout::OutIn, Layout::InOut] {
                for multiprocessors in [1, 6, 64, 132] {
                    let tiling = choose(5, d_in, 64, layout, multiprocessors);
                    assert!(
                        tiling.splits * tiling.split_depth >= d_in && (tiling.splits - 1) * tiling.split_depth < d_in
                    );
                    assert_eq!(tiling.split_depth % STEP, 0);
                }
            }
        }
    }
}
