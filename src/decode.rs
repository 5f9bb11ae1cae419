//! How a GPU runs one layer for 1 to 16 tokens: pure, printable, testable.
//!
//! The kernels are kernels/lora/decode_*.cu. A plan says which of them, on what grid, with how much shared memory and
//! workspace. Nothing in it depends on the adapters but the ranks: with none it is the base product's plan.

use crate::abi;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::{Layout, MAX_RANK};

/// What a plan is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeProblem<'a> {
    /// Rows of x, at most [`MAX_TOKENS`].
    pub tokens: usize,
    /// Input features.
    pub d_in: usize,
    /// Output features.
    pub d_out: usize,
    /// How W0 lies in memory.
    pub layout: Layout,
    /// What everything is stored as.
    pub dtype: DType,
    /// The segments' ranks.
    pub ranks: &'a [usize],
    /// Whether all rows of x, W0 and every A start at multiples of 16 bytes.
    pub aligned: bool,
    /// SMs of the device.
    pub multiprocessors: usize,
}

/// Tokens of one launch at most.
pub const MAX_TOKENS: usize = abi::LORA_DECODE_MAX_TOKENS as usize;

/// How one launch of `lora_decode` runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodePlan {
    /// Name of the kernel.
    pub kernel: String,
    /// CTAs: tiles of output columns, splits of the depth, groups of tokens.
    pub grid: [u32; 3],
    /// Threads of a CTA.
    pub threads: u32,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: u32,
    /// Output columns of a CTA.
    pub tile_columns: u32,
    /// Threads that share a row of W0 (`[out, in]`) or a run of one (`[in, out]`).
    pub row_threads: u32,
    /// Rows of A that one ticket stands for.
    pub shrink_rows: u32,
    /// The widest segment's rank in whole chunks of 16 bytes.
    pub widest_rank: u32,
    /// 64-bit words of T in the workspace, behind the ticket counter's one.
    pub t_words: usize,
    /// Global bytes that must move at least: W0, A, B, x and y once.
    pub floor_bytes: usize,
}

/// More columns than this and a CTA's partial sums crowd out a second CTA.
const MAX_TILE_ROWS: usize = 64;

impl DecodePlan {
    /// # Errors
    /// [`Error::TooManyTokens`], [`Error::TooManySegments`], [`Error::RankOutOfRange`], [`Error::EmptyProblem`].
    pub fn new(problem: &DecodeProblem<'_>) -> Result<Self> {
        let &DecodeProblem { tokens, d_in, d_out, layout, dtype, ranks, aligned, multiprocessors } = problem;
        if tokens > MAX_TOKENS {
            return Err(Error::TooManyTokens { tokens, max: MAX_TOKENS });
        }
        if tokens == 0 || d_in == 0 || d_out == 0 {
            return Err(Error::EmptyProblem { tokens, d_in, d_out });
        }
        let max_segments = abi::LORA_MAX_SEGMENTS as usize;
        if ranks.len() > max_segments {
            return Err(Error::TooManySegments { segments: ranks.len(), max: max_segments });
        }
        if let Some(&rank) = ranks.iter().find(|&&rank| rank == 0 || rank > MAX_RANK) {
            return Err(Error::RankOutOfRange { rank, max: MAX_RANK });
        }
        let elements = 16 / dtype.size();
        let threads = abi::LORA_DECODE_THREADS as usize;
        let (variant, group) = match (aligned, tokens) {
            (false, _) => ("any", 1),
            (true, 1) => ("t1", 1),
            (true, 2) => ("t2", 2),
            (true, 5..) if dtype == DType::F32 => ("t8", 8),
            (true, _) => ("t4", 4),
        };
        let (family, row_threads, tile_columns, parts) = match layout {
            Layout::OutIn => {
                let row_threads = row_threads(d_in.div_ceil(elements), threads);
                let tile = d_out.div_ceil(multiprocessors.max(1)).clamp(threads / row_threads, MAX_TILE_ROWS);
                ("rows", row_threads, tile.min(d_out), row_threads / 32)
            }
            Layout::InOut => {
                let lanes = run_lanes(d_out.div_ceil(elements), multiprocessors);
                ("columns", lanes, (lanes * elements).min(d_out.next_multiple_of(elements)), threads / 32)
            }
        };
        let widest_rank = ranks.iter().max().copied().unwrap_or(0).next_multiple_of(elements);
        let stride = (tile_columns + 23) / 32 * 32 + 8;
        let most_shrink_rows = if aligned { abi::LORA_SHRINK_ROWS as usize } else { 1 };
        let shrink_values = (threads / 32) * most_shrink_rows * group;
        let shared = 2 * 8 + 4 * (shrink_values + group * widest_rank + parts * group * stride);
        let grid = [d_out.div_ceil(tile_columns), 1, tokens.div_ceil(group)];
        let total_rank: usize = ranks.iter().sum();
        let weights = d_in * d_out + total_rank * d_in + total_rank * d_out;
        Ok(Self {
            kernel: format!("lora_decode_{family}_{dtype}_{variant}"),
            grid: grid.map(|n| n as u32),
            threads: threads as u32,
            shared_bytes: shared as u32,
            tile_columns: tile_columns as u32,
            row_threads: row_threads as u32,
            // Several rows a ticket only where there are more rows than CTAs to draw for them.
            shrink_rows: total_rank.div_ceil(grid[0] * grid[2]).clamp(1, most_shrink_rows) as u32,
            widest_rank: widest_rank as u32,
            t_words: tokens * total_rank,
            floor_bytes: (weights + tokens * (d_in + d_out)) * dtype.size(),
        })
    }

    /// Bytes of workspace: the ticket counter and T. Zeroed once; every launch leaves it ready for the next.
    pub fn workspace_bytes(&self) -> usize {
        8 * (1 + self.t_words)
    }
}

/// The widest share of the CTA that a row of so many chunks keeps busy to nine tenths, else the busiest.
fn row_threads(chunks: usize, threads: usize) -> usize {
    let busy = |width: usize| chunks as f64 / chunks.next_multiple_of(width) as f64;
    let widths = || [512, 256, 128, 64, 32].into_iter().filter(move |&width| width <= threads);
    let best = || widths().max_by(|&a, &b| busy(a).total_cmp(&busy(b)));
    widths().find(|&width| busy(width) >= 0.9).or_else(best).unwrap_or(32)
}

/// Neighbouring lanes that read one run of a row: as wide as leaves half of the SMs a tile. Memory bandwidth is shared, so
/// equal tiles on most SMs do as well as tiles on all.
fn run_lanes(chunks: usize, multiprocessors: usize) -> usize {
    [8, 4].into_iter().find(|lanes| chunks.div_ceil(*lanes) >= multiprocessors / 2).unwrap_or(2)
}

impl std::fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: grid {:?} of {} threads, tiles of {} columns, {} threads a row, {} B shared, workspace {} B, floor {} B",
            self.kernel,
            self.grid,
            self.threads,
            self.tile_columns,
            self.row_threads,
            self.shared_bytes,
            self.workspace_bytes(),
            self.floor_bytes,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(tokens: usize, d_in: usize, d_out: usize, layout: Layout) -> DecodeProblem<'static> {
        DecodeProblem {
            tokens,
            d_in,
            d_out,
            layout,
            dtype: DType::Bf16,
            ranks: &[16],
            aligned: true,
            multiprocessors: 132,
        }
    }

    #[test]
    fn tiles_cover_the_output_once() {
        for layout in [Layout::OutIn, Layout::InOut] {
            for d_out in [1, 7, 8, 33, 768, 1024, 3072, 4096, 11008, 50257] {
                for tokens in 1..=MAX_TOKENS {
                    let plan = DecodePlan::new(&problem(tokens, 4096, d_out, layout)).unwrap();
                    let tiles = plan.grid[0] as usize;
                    assert!(tiles * plan.tile_columns as usize >= d_out, "{plan}");
                    assert!((tiles - 1) * (plan.tile_columns as usize) < d_out, "{plan}");
                    assert!(plan.shared_bytes <= 48 << 10, "{plan}");
                }
            }
        }
    }

    #[test]
    fn a_row_keeps_its_threads_busy() {
        assert_eq!(row_threads(512, 512), 512);
        assert_eq!(row_threads(128, 512), 128);
        assert_eq!(row_threads(384, 512), 128);
        assert_eq!(row_threads(1, 512), 32);
    }

    #[test]
    fn each_limit_has_its_error() {
        let base = problem(1, 64, 64, Layout::OutIn);
        let error = |p| DecodePlan::new(&p).unwrap_err();
        assert_eq!(error(DecodeProblem { tokens: 17, ..base.clone() }), Error::TooManyTokens { tokens: 17, max: 16 });
        assert_eq!(
            error(DecodeProblem { ranks: &[1; 17], ..base.clone() }),
            Error::TooManySegments { segments: 17, max: 16 }
        );
        assert_eq!(
            error(DecodeProblem { ranks: &[4, 513], ..base.clone() }),
            Error::RankOutOfRange { rank: 513, max: 512 }
        );
        assert_eq!(error(DecodeProblem { d_in: 0, ..base }), Error::EmptyProblem { tokens: 1, d_in: 0, d_out: 64 });
    }
}
