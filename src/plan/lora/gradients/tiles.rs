//! Which tiles of the factors' gradients there are, what each reads, and how many CTAs share its tokens.

use std::ops::Range;

use crate::abi;
use crate::dtype::DType;
use crate::plan::lora::gradients::problem::GradientsProblem;

/// Columns of x or dy that a CTA owns.
pub(crate) const PANEL: usize = abi::LORA_GRADIENTS_COLUMNS as usize;
/// Columns of Q or T that they meet at a time.
pub(crate) const BLOCK: usize = abi::LORA_GRADIENTS_RANKS as usize;
/// Columns of a step: never of two segments.
pub(crate) const STEP: usize = abi::LORA_FORWARD_RANK_STEP as usize;

/// Columns of a panel that a warp owns.
const WARP: usize = 32;

/// One panel and one block, summed over all tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Columns of x or dy in the panel, ...
    pub(crate) panel: usize,
    /// ... and those that are read.
    pub(crate) wide: usize,
    /// Columns of Q or T that are read.
    pub(crate) skinny: usize,
    /// Columns that there are sums of, a step's all.
    pub(crate) kept: usize,
    /// Whether dy's own columns are summed up beside.
    pub(crate) adds_columns: bool,
}

impl Tile {
    /// Sums that a split leaves: of every warp that has a column.
    pub(crate) fn left(&self) -> usize {
        self.panel.next_multiple_of(WARP) * self.kept + if self.adds_columns { self.panel } else { 0 }
    }
}

/// The tiles of dA, and of dB those in which there is something to do: blocks of every panel.
pub(crate) fn tiles(problem: &GradientsProblem<'_>) -> (Vec<Tile>, Vec<Vec<Tile>>) {
    let all = steps(problem, 0..problem.d_out);
    let mut of_a = vec![];
    for panel in panels(problem.d_in) {
        of_a.extend(all.chunks(BLOCK / STEP).map(|steps| {
            let kept = STEP * steps.len();
            Tile { panel: panel.len(), wide: panel.len(), skinny: kept, kept, adds_columns: false }
        }));
    }
    let of_b = panels(problem.d_out).map(|panel| {
        let steps = steps(problem, panel.clone());
        let blocks = steps.chunks(BLOCK / STEP).enumerate().map(|(block, steps)| {
            let adds_columns = problem.bias && block == 0;
            let wide = if adds_columns { panel.len() } else { touched(problem, steps, &panel) };
            let skinny = steps.iter().map(|step| step.columns).sum();
            Tile { panel: panel.len(), wide, skinny, kept: STEP * steps.len(), adds_columns }
        });
        let mut blocks: Vec<_> = blocks.collect();
        if blocks.is_empty() && problem.bias {
            blocks.push(Tile { panel: panel.len(), wide: panel.len(), skinny: 0, kept: 0, adds_columns: true });
        }
        blocks
    });
    (of_a, of_b.collect())
}

fn panels(columns: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns.div_ceil(PANEL)).map(move |panel| panel * PANEL..((panel + 1) * PANEL).min(columns))
}

struct Step {
    segment: usize,
    /// Without those by which the rank is rounded up.
    columns: usize,
}

/// The steps of the segments that have columns among these.
fn steps(problem: &GradientsProblem<'_>, within: Range<usize>) -> Vec<Step> {
    let mut steps = vec![];
    for (segment, it) in problem.segments.iter().enumerate() {
        if it.columns.start < within.end && it.columns.end > within.start {
            steps.extend((0..it.rank).step_by(STEP).map(|first| Step { segment, columns: STEP.min(it.rank - first) }));
        }
    }
    steps
}

/// Columns of a panel in whole chunks of 16 bytes that hold one of these steps' segments.
fn touched(problem: &GradientsProblem<'_>, steps: &[Step], panel: &Range<usize>) -> usize {
    let chunk = 16 / problem.dtype.size();
    let holds = |first: usize| {
        steps
            .iter()
            .map(|step| &problem.segments[step.segment].columns)
            .any(|s| s.start < first + chunk && s.end > first)
    };
    panel.clone().step_by(chunk).filter(|&first| holds(first)).map(|first| chunk.min(panel.end - first)).sum()
}

/// Tokens of a stage.
pub(crate) fn stage_tokens(dtype: DType) -> usize {
    abi::LORA_GRADIENTS_STAGE_BYTES as usize / dtype.size()
}

/// How many CTAs share a tile's tokens, and the tokens of each: what costs the busiest SM the fewest cycles. A model, not a
/// measurement: 16 bytes a cycle for operands and for the sums that a split leaves and the last one gathers, products at the
/// kernel's rate, 3000 cycles to fill and drain.
pub(crate) fn splits(
    problem: &GradientsProblem<'_>,
    tiles: usize,
    widest: Tile,
    products_a_cycle: usize,
) -> (usize, usize) {
    let (tokens, size) = (problem.tokens, problem.dtype.size());
    let stage = stage_tokens(problem.dtype);
    // A split is worth as many steps as the ring has stages.
    let most = (tokens / (abi::LORA_GRADIENTS_STAGES as usize * stage)).clamp(1, MAX_SPLITS);
    let tiling = |wanted: usize| {
        let split_tokens = tokens.div_ceil(wanted).next_multiple_of(stage);
        (tokens.div_ceil(split_tokens), split_tokens)
    };
    let cost = |&(splits, split_tokens): &(usize, usize)| {
        let ctas_per_sm = (tiles * splits).div_ceil(problem.multiprocessors.max(1));
        let token = ((widest.wide + widest.skinny) * size / 16).max(widest.wide * widest.kept / products_a_cycle);
        let exchange = if splits > 1 { widest.left() * 4 / 16 } else { 0 };
        ctas_per_sm * (split_tokens * token + exchange) + splits * exchange + 3000
    };
    (1..=most).map(tiling).min_by_key(cost).unwrap_or((1, tokens.next_multiple_of(stage)))
}

/// The last of a tile's CTAs adds up as many parts.
const MAX_SPLITS: usize = 32;
