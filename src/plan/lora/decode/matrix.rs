//! The choice of a tile and of the split of K for the decode kernels with MMA, by a model of their cost.

use crate::lora::Layout;
use crate::plan::lora::tiles::{self, DecodeTile};

/// Values of K that a warp multiplies in one step.
const STEP: usize = 32;
/// The tiles for W0 `[out, in]`.
const OUT_IN_TILES: [DecodeTile; 4] = [tiles::ROWS_MMA_N2, tiles::ROWS_MMA_N4, tiles::ROWS_MMA_N8, tiles::ROWS_MMA_N12];
/// The tile for W0 `[in, out]`.
const IN_OUT_TILES: [DecodeTile; 1] = [tiles::COLUMNS_MMA];
/// The most CTAs that share a tile (split-K).
const MAX_SPLITS: usize = 16;

/// A tile, and the split of its K.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiling {
    pub(crate) tile: DecodeTile,
    /// CTAs that share a tile of y; 1 without a split.
    pub(crate) splits: usize,
    /// Values of K per CTA.
    pub(crate) split_depth: usize,
}

/// The tiling that [`cost`] finds cheapest.
pub(crate) fn choose(tokens: usize, d_in: usize, d_out: usize, layout: Layout, multiprocessors: usize) -> Tiling {
    let tiles: &[DecodeTile] = match layout {
        Layout::OutIn => &OUT_IN_TILES,
        Layout::InOut => &IN_OUT_TILES,
    };
    let candidates = tiles.iter().flat_map(|&tile| {
        // A split has K for at least one step of every warp.
        let max_splits = (d_in / (tile.threads / 32 * STEP)).clamp(1, MAX_SPLITS);
        (1..=max_splits).map(move |wanted| {
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

/// Memory traffic of the CTAs that run one after another in the same place of an SM, in half-bytes: a byte from global
/// memory counts as 2, a byte from L2 as 1. This is a model, not a measurement. W0 comes from global memory and x from
/// L2. A split counts 24 KiB of global memory for the exchange, and the f32 sums of its tile.
fn cost(tiling: &Tiling, tokens: usize, d_out: usize, multiprocessors: usize) -> usize {
    let DecodeTile { tokens: rows, columns, ctas, .. } = tiling.tile;
    let resident_ctas = multiprocessors.max(1) * ctas;
    let waves = (d_out.div_ceil(columns) * tiling.splits).div_ceil(resident_ctas);
    let weight_bytes = columns.min(d_out) * tiling.split_depth * 2;
    let x_bytes = tokens * tiling.split_depth * 2;
    let exchange = if tiling.splits > 1 { 2 * (24 << 10) + 2 * rows * columns * 4 } else { 0 };
    waves * (2 * weight_bytes + x_bytes + exchange)
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
                let resident_ctas = if layout == Layout::OutIn { 132 } else { 264 };
                let waves = ctas.div_ceil(resident_ctas);
                assert!(
                    ctas * 10 >= waves * resident_ctas * 4,
                    "{d_in} to {d_out}, {layout:?}: {tiling:?} is {ctas} CTAs"
                );
            }
        }
    }

    #[test]
    fn splits_cover_k_once() {
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
