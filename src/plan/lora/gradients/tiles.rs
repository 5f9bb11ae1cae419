//! The tiles of dA and dB, the columns that each reads, and the number of CTAs that share the tokens of a tile.
//!
//! dA and dB are products of a wide operand (x or dy) and a skinny one (Q or T), summed over tokens:
//! kernels/lora/gradients.h.

use std::ops::Range;

use crate::abi;
use crate::dtype::DType;
use crate::plan::lora::gradients::problem::GradientsProblem;

/// Columns of a panel: the columns of x or dy that a CTA owns.
pub(crate) const PANEL: usize = abi::LORA_GRADIENTS_COLUMNS as usize;
/// Columns of a block: the columns of Q or T that a CTA owns, at most.
pub(crate) const BLOCK: usize = abi::LORA_GRADIENTS_RANKS as usize;
/// Columns of Q or T in a step. All columns of a step belong to one segment.
pub(crate) const STEP: usize = abi::LORA_FORWARD_RANK_STEP as usize;

/// Columns of a panel that a warp owns.
const WARP_COLUMNS: usize = 32;

/// The product of one panel and one block, summed over all tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Columns of the panel.
    pub(crate) panel_columns: usize,
    /// Columns of the panel that are read.
    pub(crate) wide_read: usize,
    /// Columns of the block that are read.
    pub(crate) skinny_read: usize,
    /// Columns of the block for which the CTA has sums: its steps, 16 columns each.
    pub(crate) block_columns: usize,
    /// Whether the CTA also adds the columns of dy, for the bias's gradient.
    pub(crate) sums_dy: bool,
}

impl Tile {
    /// f32 partial sums that a split stores: those of every warp that has a column of the panel.
    pub(crate) fn partial_sums(&self) -> usize {
        let product = self.panel_columns.next_multiple_of(WARP_COLUMNS) * self.block_columns;
        product + if self.sums_dy { self.panel_columns } else { 0 }
    }
}

/// The tiles of dA, and for each panel of dy the tiles of dB that have anything to compute.
pub(crate) fn tiles(problem: &GradientsProblem<'_>) -> (Vec<Tile>, Vec<Vec<Tile>>) {
    let all_steps = steps(problem, 0..problem.d_out);
    let mut a_tiles = vec![];
    for panel in panels(problem.d_in) {
        let panel_columns = panel.len();
        a_tiles.extend(all_steps.chunks(BLOCK / STEP).map(|steps| {
            let block_columns = STEP * steps.len();
            Tile { panel_columns, wide_read: panel_columns, skinny_read: block_columns, block_columns, sums_dy: false }
        }));
    }
    let b_tiles = panels(problem.d_out).map(|panel| {
        let panel_columns = panel.len();
        let steps = steps(problem, panel.clone());
        let blocks = steps.chunks(BLOCK / STEP).enumerate().map(|(block, steps)| {
            let sums_dy = problem.bias && block == 0;
            let wide_read = if sums_dy { panel_columns } else { columns_read(problem, steps, &panel) };
            let skinny_read = steps.iter().map(|step| step.columns).sum();
            Tile { panel_columns, wide_read, skinny_read, block_columns: STEP * steps.len(), sums_dy }
        });
        let mut blocks: Vec<_> = blocks.collect();
        if blocks.is_empty() && problem.bias {
            let (wide_read, skinny_read, block_columns) = (panel_columns, 0, 0);
            blocks.push(Tile { panel_columns, wide_read, skinny_read, block_columns, sums_dy: true });
        }
        blocks
    });
    (a_tiles, b_tiles.collect())
}

fn panels(columns: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns.div_ceil(PANEL)).map(move |panel| panel * PANEL..((panel + 1) * PANEL).min(columns))
}

/// Up to 16 columns of Q or T, all of one segment.
struct Step {
    /// Index of the segment.
    segment: usize,
    /// Columns of the segment in this step, without those that round its rank up.
    columns: usize,
}

/// The steps of the segments that overlap the columns `range` of dy.
fn steps(problem: &GradientsProblem<'_>, range: Range<usize>) -> Vec<Step> {
    let mut steps = vec![];
    for (segment, it) in problem.segments.iter().enumerate() {
        if it.columns.start < range.end && it.columns.end > range.start {
            steps.extend((0..it.rank).step_by(STEP).map(|first| Step { segment, columns: STEP.min(it.rank - first) }));
        }
    }
    steps
}

/// The columns of a panel of dy that a CTA with these steps reads: all 16-byte chunks that overlap a segment of the
/// steps.
fn columns_read(problem: &GradientsProblem<'_>, steps: &[Step], panel: &Range<usize>) -> usize {
    let chunk = 16 / problem.dtype.size();
    let overlaps_a_segment = |first: usize| {
        steps
            .iter()
            .map(|step| &problem.segments[step.segment].columns)
            .any(|s| s.start < first + chunk && s.end > first)
    };
    let chunks = panel.clone().step_by(chunk).filter(|&first| overlaps_a_segment(first));
    chunks.map(|first| chunk.min(panel.end - first)).sum()
}

/// Tokens in a stage.
pub(crate) fn stage_tokens(dtype: DType) -> usize {
    abi::LORA_GRADIENTS_STAGE_BYTES as usize / dtype.size()
}

/// The number of CTAs that share the tokens of a tile, and the tokens per CTA: those for which the SM with the most
/// work needs the fewest cycles. This is a model, not a measurement:
///
/// - an SM reads operands at 16 bytes per cycle and at the same time computes `multiply_adds_per_cycle`, so the slower
///   of the two counts;
/// - filling and draining the ring takes 3000 cycles;
/// - with splits, each CTA stores its partial sums at 16 bytes per cycle, and the last one reads those of all splits at
///   the same rate.
pub(crate) fn splits(
    problem: &GradientsProblem<'_>,
    tiles: usize,
    widest: Tile,
    multiply_adds_per_cycle: usize,
) -> (usize, usize) {
    let (tokens, size) = (problem.tokens, problem.dtype.size());
    let stage = stage_tokens(problem.dtype);
    // A split has tokens for at least the whole ring.
    let max_splits = (tokens / (abi::LORA_GRADIENTS_STAGES as usize * stage)).clamp(1, MAX_SPLITS);
    let tiling = |wanted: usize| {
        let split_tokens = tokens.div_ceil(wanted).next_multiple_of(stage);
        (tokens.div_ceil(split_tokens), split_tokens)
    };
    let cost = |&(splits, split_tokens): &(usize, usize)| {
        let ctas_per_sm = (tiles * splits).div_ceil(problem.multiprocessors.max(1));
        let read = (widest.wide_read + widest.skinny_read) * size / 16;
        let multiply = widest.wide_read * widest.block_columns / multiply_adds_per_cycle;
        let exchange = if splits > 1 { widest.partial_sums() * 4 / 16 } else { 0 };
        ctas_per_sm * (split_tokens * read.max(multiply) + exchange) + splits * exchange + 3000
    };
    (1..=max_splits).map(tiling).min_by_key(cost).unwrap_or((1, tokens.next_multiple_of(stage)))
}

/// The most splits of a tile. The CTA that finishes last adds the partial sums of all of them.
const MAX_SPLITS: usize = 32;
