//! Plans of the CPU backend: the tiles of a call and its workspace, computed without side effects.

use crate::dtype::DType;

/// The input of a plan: the shapes and types of one product with its low-rank terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Rows of x.
    pub(crate) tokens: usize,
    /// K, the dimension that the base product sums over.
    pub(crate) depth: usize,
    /// Columns of the output.
    pub(crate) columns: usize,
    /// Columns of T: the ranks of all terms, added.
    pub(crate) total_rank: usize,
    /// K of the shrink, the largest of all terms; 0 without terms.
    pub(crate) widest_shrink: usize,
    /// The largest rank of a term; 0 without terms.
    pub(crate) largest_rank: usize,
    /// Whether the weight is contiguous along the output columns.
    pub(crate) unit_columns: bool,
    /// The type in which the weight and the factors are stored.
    pub(crate) weight: DType,
    /// The type in which x and the output are stored.
    pub(crate) activation: DType,
    /// Threads of the pool.
    pub(crate) threads: usize,
}

impl Problem {
    /// An estimate of the microseconds that one thread takes.
    fn single_thread_us(&self) -> usize {
        let &Self { tokens, depth, columns, total_rank, .. } = self;
        let elements = depth.saturating_mul(columns).saturating_add(total_rank.saturating_mul(depth + columns));
        let bytes = elements.saturating_mul(self.weight.size());
        (bytes / BYTES_PER_US).saturating_add(elements.saturating_mul(tokens) / MULTIPLY_ADDS_PER_US)
    }
}

/// How the CPU backend runs one product.
///
/// Threads take tickets in increasing order. The first [`shrink_tiles`](Self::shrink_tiles) tickets stand for rows of T
/// = x·Aᵀ, each of the others for one tile of the output. A thread that computes a tile waits for T after the tile's
/// base product; the threads that it waits for hold lower tickets and do not wait. A small product runs on the calling
/// thread alone, without tickets but with the same tiles, so its bits are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(crate) problem: Problem,
    /// Output rows of a tile.
    pub(crate) tile_tokens: usize,
    /// Output columns of a tile.
    pub(crate) tile_columns: usize,
    /// Rows of T that one ticket computes.
    pub(crate) shrink_tokens: usize,
    /// Values of K in a panel: the part of the weight that is widened or transposed at a time.
    pub(crate) panel_depth: usize,
    /// Whether the product reads the weight in place instead of a panel.
    pub(crate) direct: bool,
    /// Whether panels transpose the weight, so that its output columns are contiguous.
    pub(crate) transpose: bool,
    /// Whether the calling thread computes everything, because waking other threads would take longer than they save.
    pub(crate) single_threaded: bool,
}

/// Values of K in a panel. A panel of 512 x 128 `f32` is 256 KiB, which stays in a core's L2 cache.
const PANEL_DEPTH: usize = 512;
/// The fewest tokens for which panels transpose the weight. From this number on, transposing a panel once takes less
/// time than reading it with a stride for every few tokens.
const TRANSPOSE_FROM_TOKENS: usize = 12;
/// Rows of T per ticket. They are few enough that two threads share the 128 tokens of the smallest case in the paper.
const SHRINK_TOKENS: usize = 64;

/// The longest time, in microseconds, of a product that runs on the calling thread alone. Waking the pool's threads and
/// waiting for them takes about 20 µs, and two threads save half of the product's time at best.
const SINGLE_THREADED_US: usize = 25;
/// Bytes of uncached weights that one thread reads per microsecond. Fitted, as the next figure, to layers of 64 x 64 to
/// 512 x 512 with 1 to 64 tokens.
const BYTES_PER_US: usize = 4_000;
/// Multiply-adds that one thread computes per microsecond.
const MULTIPLY_ADDS_PER_US: usize = 40_000;

impl Plan {
    pub(crate) fn new(problem: &Problem) -> Self {
        let &Problem { tokens, columns, threads, unit_columns, .. } = problem;
        let transpose = !unit_columns && tokens >= TRANSPOSE_FROM_TOKENS;
        let direct = problem.weight == DType::F32 && !transpose;
        let (tile_tokens, tile_columns) = if tokens < 48 {
            // The time is that of reading the weight. Wide tiles read long contiguous runs of it; four tiles per thread
            // balance the threads.
            let per_thread = columns.div_ceil(4 * threads.max(1)).next_multiple_of(64);
            (tokens.max(1), per_thread.clamp(64, 512))
        } else {
            (tokens.min(256), if tokens <= 128 { 128 } else { 256 })
        };
        Self {
            problem: problem.clone(),
            tile_tokens,
            tile_columns: tile_columns.min(columns.max(1)),
            shrink_tokens: SHRINK_TOKENS.min(tokens.max(1)),
            panel_depth: PANEL_DEPTH,
            direct,
            transpose,
            single_threaded: threads <= 1 || problem.single_thread_us() <= SINGLE_THREADED_US,
        }
    }

    /// The largest number of threads that a call runs on.
    pub(crate) fn workers(&self) -> usize {
        if self.single_threaded { 1 } else { self.problem.threads }
    }

    /// `f32` elements of workspace that the call needs.
    pub fn workspace_len(&self) -> usize {
        self.widened_len() + self.t_len() + self.workers() * self.scratch_len()
    }

    /// Number of tickets for rows of T. Their threads also widen the same rows of x, if x is not stored as `f32`.
    pub fn shrink_tiles(&self) -> usize {
        if self.problem.total_rank == 0 && self.problem.activation == DType::F32 {
            0
        } else {
            self.problem.tokens.div_ceil(self.shrink_tokens)
        }
    }

    /// Number of tickets for tiles of the output.
    pub fn output_tiles(&self) -> usize {
        self.row_tiles() * self.problem.columns.div_ceil(self.tile_columns)
    }

    /// Tiles along the rows of the output.
    pub(crate) fn row_tiles(&self) -> usize {
        self.problem.tokens.div_ceil(self.tile_tokens)
    }

    /// Elements of the copy of x in `f32`; 0 if x is stored as `f32`.
    pub(crate) fn widened_len(&self) -> usize {
        if self.problem.activation == DType::F32 { 0 } else { self.problem.tokens * self.problem.depth }
    }

    /// Elements of T.
    pub(crate) fn t_len(&self) -> usize {
        self.problem.tokens * self.problem.total_rank
    }

    /// `f32` elements of each thread's scratch memory: a tile, a panel of the weight, an operand of the low-rank
    /// products.
    pub(crate) fn scratch_len(&self) -> usize {
        self.tile_len() + self.panel_len() + self.operand_len()
    }

    pub(crate) fn tile_len(&self) -> usize {
        self.tile_tokens * self.tile_columns
    }

    pub(crate) fn panel_len(&self) -> usize {
        if self.direct { 0 } else { self.panel_depth * self.tile_columns }
    }

    pub(crate) fn operand_len(&self) -> usize {
        let shrink = self.problem.widest_shrink.min(self.panel_depth);
        self.problem.largest_rank * shrink.max(self.tile_columns)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let p = &self.problem;
        write!(
            f,
            "cpu: {}x{}x{} (tokens x K x columns), rank {}, weight {} read {}, x {}, {} tiles of {}x{} after {} \
             shrink tiles of {} tokens, {}, workspace {} KiB",
            p.tokens,
            p.depth,
            p.columns,
            p.total_rank,
            p.weight,
            match (self.direct, self.transpose) {
                (true, _) => "in place",
                (false, false) => "through widened panels",
                (false, true) => "through transposed panels",
            },
            p.activation,
            self.output_tiles(),
            self.tile_tokens,
            self.tile_columns,
            self.shrink_tiles(),
            self.shrink_tokens,
            match self.single_threaded {
                true => "the calling thread alone".to_owned(),
                false => format!("{} threads", p.threads),
            },
            self.workspace_len() * size_of::<f32>() / 1024,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(tokens: usize, columns: usize) -> Problem {
        Problem {
            tokens,
            depth: 1024,
            columns,
            total_rank: 8,
            widest_shrink: 1024,
            largest_rank: 4,
            unit_columns: true,
            weight: DType::F32,
            activation: DType::F32,
            threads: 2,
        }
    }

    #[test]
    fn tiles_cover_the_output_for_every_token_count() {
        for tokens in [0, 1, 2, 15, 16, 47, 48, 127, 128, 129, 255, 257, 4096] {
            for columns in [1, 63, 64, 65, 1000, 3072, 50257] {
                let plan = Plan::new(&problem(tokens, columns));
                assert!(plan.row_tiles() * plan.tile_tokens >= tokens, "{plan}");
                assert!(plan.output_tiles() * plan.tile_len() >= tokens * columns, "{plan}");
                assert!(plan.shrink_tiles() * plan.shrink_tokens >= tokens, "{plan}");
            }
        }
    }

    #[test]
    fn small_products_run_on_the_calling_thread() {
        let square = |tokens, d| Plan::new(&Problem { depth: d, widest_shrink: d, ..problem(tokens, d) });
        for (tokens, d) in [(0, 8), (1, 1), (1, 16), (1, 64), (16, 64), (64, 64), (1, 128), (4, 128)] {
            let plan = square(tokens, d);
            assert!(plan.single_threaded && plan.workspace_len() == plan.t_len() + plan.scratch_len(), "{plan}");
            assert!(plan.to_string().contains("the calling thread alone"), "{plan}");
        }
        for (tokens, d) in [(1, 256), (16, 256), (128, 128), (1, 1024), (4096, 64), (usize::MAX, 1)] {
            let plan = Problem { depth: d, widest_shrink: d, ..problem(tokens, d) };
            assert!(plan.single_thread_us() > SINGLE_THREADED_US, "{plan:?}");
        }
        assert!(!square(1, 256).single_threaded && square(1, 256).to_string().contains("2 threads"));
        // With one thread there is no other to wake. The tiles are the same as those of a pool.
        let alone = Plan::new(&Problem { threads: 1, ..problem(128, 1024) });
        assert!(alone.single_threaded);
        assert_eq!(square(1, 64).tile_columns, 64);
    }

    #[test]
    fn f32_with_unit_columns_is_read_in_place() {
        assert!(Plan::new(&problem(128, 1024)).direct);
        assert!(!Plan::new(&Problem { weight: DType::Bf16, ..problem(128, 1024) }).direct);
        assert!(!Plan::new(&Problem { unit_columns: false, ..problem(128, 1024) }).direct);
        assert!(Plan::new(&Problem { unit_columns: false, ..problem(1, 1024) }).direct);
    }

    #[test]
    fn a_base_layer_in_f32_has_no_shrink_tiles() {
        assert_eq!(Plan::new(&Problem { total_rank: 0, ..problem(128, 1024) }).shrink_tiles(), 0);
        assert_eq!(Plan::new(&Problem { total_rank: 0, activation: DType::F16, ..problem(128, 8) }).shrink_tiles(), 2);
    }
}
