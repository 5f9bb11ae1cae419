//! How a GPU computes causal attention: pure, printable.
//!
//! One launch for every head of a batch, with or without keys that were there before: a prefix that all sequences see, or a
//! cache. A single query a sequence is a decode, bound by reading its keys, which several CTAs share; more are a prefill.
//! The kernels are kernels/transformer/attention*.

use crate::abi::{self, LoraAttention};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::launch::LaunchShape;
use crate::plan::problem::{ComputePath, expect_elements};
use crate::plan::workspace::WorkspaceLayout;

/// The largest head.
pub const MAX_HEAD_SIZE: usize = abi::LORA_ATTENTION_MAX_HEAD as usize;

/// What a call computes, with d = heads·head_size: `out[s, i] = Σⱼ softmaxⱼ(scale·q[s, i]·k[s, j])·v[s, j]` over the keys
/// before this call's and its own up to j = i, head by head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Sequences of the batch.
    pub sequences: usize,
    /// Queries a sequence.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Columns of a head, 1 to [`MAX_HEAD_SIZE`].
    pub head_size: usize,
    /// Keys that may be there before this call's: the length of a prefix, or the rows of a cache for each sequence; 0 for
    /// neither.
    pub capacity: usize,
    /// What scores are multiplied by.
    pub scale: f32,
}

impl AttentionShape {
    /// Columns of q, k, v and the result: all heads.
    pub fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Rows of qkv and of the result.
    pub fn rows(&self) -> usize {
        self.sequences * self.tokens
    }

    fn validate(&self) -> Result<()> {
        let &Self { sequences, tokens, heads, head_size, capacity, scale } = self;
        if head_size == 0 || head_size > MAX_HEAD_SIZE {
            return Err(Error::HeadSizeOutOfRange { head_size, max: MAX_HEAD_SIZE });
        }
        let columns = heads.saturating_mul(3 * head_size);
        expect_elements("qkv", [sequences.saturating_mul(tokens), columns])?;
        if !scale.is_finite() {
            return Err(Error::ScaleNotFinite { scale });
        }
        for (operand, value) in [
            ("qkv", sequences.saturating_mul(tokens).max(columns)),
            ("a head's keys", capacity.saturating_add(tokens)),
            ("the heads of all sequences", sequences.saturating_mul(heads)),
            // A launch has at most 65535 tiles of 64 queries.
            ("a sequence's queries", tokens.saturating_mul(i32::MAX as usize / (64 * 65535))),
        ] {
            if value > i32::MAX as usize {
                return Err(Error::TooLarge { operand, value });
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for AttentionShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sequences, tokens, heads, head_size, capacity, scale } = self;
        write!(
            f,
            "{sequences}x{tokens} tokens, {heads} heads of {head_size}, up to {capacity} keys before, scale {scale}"
        )
    }
}

/// What an [`AttentionPlan`] is made from. How rows lie in memory is looked at when the kernel runs.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionProblem {
    /// What is computed.
    pub shape: AttentionShape,
    /// What everything is stored as.
    pub dtype: DType,
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Major and minor compute capability of the device.
    pub compute_capability: (u32, u32),
    /// What is to multiply in a prefill. A decode waits for memory: it is CUDA cores' whatever is asked.
    pub path: ComputePath,
}

impl AttentionProblem {
    /// Why matrix instructions cannot do it.
    fn matrix_obstacle(&self) -> Option<&'static str> {
        match self.dtype {
            DType::F32 => Some("they would round f32 to 19 bits"),
            DType::Bf16 if self.compute_capability < (8, 0) => {
                Some("the device has them from compute capability 8.0 on")
            }
            DType::F16 if self.compute_capability < (7, 5) => {
                Some("the device has them from compute capability 7.5 on")
            }
            _ => None,
        }
    }

    /// The dynamic shared memory that every device of this compute capability gives a CTA.
    fn shared_limit(&self) -> u32 {
        if self.compute_capability < (8, 0) { 64 << 10 } else { 99 << 10 }
    }
}

/// How one launch of `lora_attention` runs.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionPlan {
    /// What is computed.
    pub shape: AttentionShape,
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Columns that a head is padded to.
    pub padded_head: u32,
    /// Queries of a CTA.
    pub tile_queries: u32,
    /// CTAs that share a query's keys at most: those with nothing to do leave at once.
    pub splits: u32,
    /// Keys that each of them takes.
    pub split_keys: u32,
    /// What the launch needs of a workspace.
    pub workspace: WorkspaceLayout,
    /// Global bytes that must move at least, with as many keys as there may be: qkv, the memory and the result once.
    pub floor_bytes: usize,
    /// Multiplications and additions of both products, with as many keys as there may be.
    pub flops: u64,
}

/// Bytes of what a thread moves at a time.
const CHUNK: u32 = 16;
/// Keys that a lane of a decode has in flight.
const DECODE_KEYS: u32 = 4;
/// Splits of a decode at most: whoever arrives last reads all of their sums.
const MAX_SPLITS: u32 = 32;
/// CTAs of a decode that an SM is to have.
const DECODE_CTAS: usize = 4;

impl AttentionPlan {
    /// A decode for one token a sequence, else a prefill.
    ///
    /// # Errors
    /// [`Error::HeadSizeOutOfRange`], [`Error::EmptyOperand`], [`Error::ScaleNotFinite`], [`Error::TooLarge`] if kernels cannot
    /// count a dimension, [`Error::NoMatrixInstructions`] if they are asked for in vain.
    pub fn new(problem: &AttentionProblem) -> Result<Self> {
        let shape = problem.shape;
        shape.validate()?;
        let dtype = problem.dtype;
        let uses_matrix = match (problem.path, problem.matrix_obstacle()) {
            (ComputePath::Matrix, Some(reason)) => return Err(Error::NoMatrixInstructions { dtype, reason }),
            (ComputePath::Tf32, _) => {
                return Err(Error::NoMatrixInstructions { dtype, reason: "attention is never computed in TF32" });
            }
            (ComputePath::CudaCores, _) | (_, Some(_)) => false,
            _ => true,
        };
        let plan = if shape.tokens == 1 { Self::decode(problem) } else { Self::prefill(problem, uses_matrix) };
        Ok(plan)
    }

    #[expect(clippy::cast_possible_truncation, reason = "validated: all dimensions fit 31 bits")]
    fn prefill(problem: &AttentionProblem, uses_matrix: bool) -> Self {
        let AttentionProblem { shape, dtype, .. } = problem;
        let heads = shape.sequences * shape.heads;
        let padded = padded_head(shape.head_size, if uses_matrix { &[32, 64, 96, 128] } else { &[64, 128] });
        let shared_bytes = |queries| match uses_matrix {
            true => matrix_shared_bytes(padded),
            false => cores_shared_bytes(padded, queries, *dtype),
        };
        let fills_device = heads * shape.tokens.div_ceil(64) >= problem.multiprocessors;
        let fits = shared_bytes(64) <= problem.shared_limit();
        let many = shape.tokens.div_ceil(16) > 65535;
        let queries = if shape.tokens > 16 && fits && (fills_device || many) { 64 } else { 16 };
        let family = if uses_matrix { "mma_" } else { "" };
        Self {
            launch: launch(
                format!("lora_attention_prefill_{family}{dtype}_h{padded}_q{queries}"),
                [heads as u32, (shape.tokens as u32).div_ceil(queries), 1],
                shared_bytes(queries),
            ),
            padded_head: padded,
            tile_queries: queries,
            splits: 1,
            split_keys: (shape.capacity + shape.tokens) as u32,
            ..Self::of(problem)
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "validated: all dimensions fit 31 bits")]
    fn decode(problem: &AttentionProblem) -> Self {
        let AttentionProblem { shape, dtype, .. } = problem;
        let heads = shape.sequences * shape.heads;
        let padded = padded_head(shape.head_size, &[64, 128]);
        let groups = abi::LORA_ATTENTION_THREADS / (padded * dtype.size() as u32 / CHUNK);
        let step = groups * DECODE_KEYS;
        let keys = (shape.capacity + 1) as u32;
        let wanted = (problem.multiprocessors * DECODE_CTAS).div_ceil(heads) as u32;
        let split_keys = keys.div_ceil(wanted.clamp(1, MAX_SPLITS)).next_multiple_of(step);
        let splits = keys.div_ceil(split_keys);
        let record = padded + abi::LORA_ATTENTION_STATS;
        let workspace = match splits {
            1 => WorkspaceLayout::default(),
            _ => WorkspaceLayout {
                arrivals: heads,
                partial: heads * (splits * record) as usize,
                ..WorkspaceLayout::default()
            },
        };
        Self {
            launch: launch(
                format!("lora_attention_decode_{dtype}_h{padded}"),
                [heads as u32, splits, 1],
                groups * record * size_of::<f32>() as u32,
            ),
            padded_head: padded,
            splits,
            split_keys,
            workspace,
            ..Self::of(problem)
        }
    }

    /// What does not depend on how it is computed.
    fn of(problem: &AttentionProblem) -> Self {
        let shape = problem.shape;
        let AttentionShape { sequences, tokens, heads, capacity, .. } = shape;
        let (rows, width) = (shape.rows(), shape.width());
        let scores = sequences as u64 * heads as u64 * (tokens * capacity + tokens * (tokens + 1) / 2) as u64;
        Self {
            shape,
            launch: launch(String::new(), [0; 3], 0),
            padded_head: 0,
            tile_queries: 1,
            splits: 1,
            split_keys: 0,
            workspace: WorkspaceLayout::default(),
            floor_bytes: (4 * rows + 2 * sequences * capacity) * width * problem.dtype.size(),
            flops: 4 * scores * shape.head_size as u64,
        }
    }

    /// A launch's parameters as far as the plan decides them, with a workspace of this layout at this address. Operands and
    /// their strides are left null or zero, and there is no memory.
    #[expect(clippy::cast_possible_truncation, reason = "validated: all dimensions fit 31 bits")]
    pub fn params(&self, workspace: u64, layout: &WorkspaceLayout) -> LoraAttention {
        let AttentionShape { tokens, heads, head_size, scale, .. } = self.shape;
        LoraAttention {
            qkv: std::ptr::null(),
            out: std::ptr::null_mut(),
            keys: std::ptr::null_mut(),
            values: std::ptr::null_mut(),
            lengths: std::ptr::null(),
            partial: (workspace + layout.partial_offset() as u64) as *mut _,
            arrivals: (workspace + layout.arrivals_offset() as u64) as *mut _,
            tokens: tokens as u32,
            heads: heads as u32,
            head_size: head_size as u32,
            capacity: 0,
            qkv_stride: 0,
            out_stride: 0,
            keys_stride: 0,
            values_stride: 0,
            split_keys: self.split_keys,
            splits: self.splits,
            scale: (f64::from(scale) * std::f64::consts::LOG2_E) as f32,
            reserved: 0,
        }
    }
}

/// The smallest of these that a head fits.
#[expect(clippy::cast_possible_truncation, reason = "a head has at most 128 columns")]
fn padded_head(head_size: usize, sizes: &[u32]) -> u32 {
    sizes.iter().copied().find(|&size| head_size as u32 <= size).unwrap_or(abi::LORA_ATTENTION_MAX_HEAD)
}

/// The ring's stages of keys and values. Rows of 192 bytes lie as far apart as those of 256.
fn launch(kernel: String, grid: [u32; 3], shared_bytes: u32) -> LaunchShape {
    LaunchShape { kernel, grid, threads: abi::LORA_ATTENTION_THREADS, shared_bytes, cluster: 1 }
}

fn matrix_shared_bytes(padded: u32) -> u32 {
    let row_chunks = match padded {
        32 => 4,
        64 => 8,
        _ => 16,
    };
    abi::LORA_ATTENTION_STAGES * 2 * abi::LORA_ATTENTION_MMA_KEYS * row_chunks * CHUNK
}

/// The same, and the tile of queries with their weights.
#[expect(clippy::cast_possible_truncation, reason = "a size of 2 or 4")]
fn cores_shared_bytes(padded: u32, queries: u32, dtype: DType) -> u32 {
    let row = padded * dtype.size() as u32;
    let keys = if row > 256 { 16 } else { 32 };
    let weights = (keys / 4 + 1) * CHUNK;
    abi::LORA_ATTENTION_STAGES * 2 * keys * row + queries * (row + weights)
}

impl std::fmt::Display for AttentionPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {}, grid {:?} of {} threads, {} B shared, {} queries a CTA, {} splits of {} keys, {}, floor {} B, {} FLOP",
            self.launch.kernel,
            self.shape,
            self.launch.grid,
            self.launch.threads,
            self.launch.shared_bytes,
            self.tile_queries,
            self.splits,
            self.split_keys,
            self.workspace,
            self.floor_bytes,
            self.flops
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: AttentionShape =
        AttentionShape { sequences: 1, tokens: 128, heads: 16, head_size: 64, capacity: 0, scale: 0.125 };

    fn problem(shape: AttentionShape, dtype: DType) -> AttentionProblem {
        AttentionProblem { shape, dtype, multiprocessors: 132, compute_capability: (9, 0), path: ComputePath::Auto }
    }

    fn plan(shape: AttentionShape, dtype: DType) -> AttentionPlan {
        AttentionPlan::new(&problem(shape, dtype)).expect("a plan")
    }

    #[test]
    fn few_queries_are_spread_and_many_share_their_keys() {
        for (sequences, tokens, queries) in [(1, 128, 16), (16, 256, 64), (32, 512, 64), (256, 16, 16), (1, 2, 16)] {
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let plan = plan(AttentionShape { sequences, tokens, ..SHAPE }, dtype);
                assert_eq!(plan.tile_queries, queries, "{plan}");
                assert_eq!(plan.launch.kernel.contains("mma"), dtype != DType::F32, "{plan}");
                assert!(
                    plan.launch.grid[1] * queries >= tokens as u32
                        && (plan.launch.grid[1] - 1) * queries < tokens as u32
                );
            }
        }
        assert!(plan(SHAPE, DType::Bf16).launch.grid[0] * plan(SHAPE, DType::Bf16).launch.grid[1] >= 128);
    }

    #[test]
    fn splits_of_a_decode_cover_all_keys_and_fill_the_device() {
        for dtype in [DType::F32, DType::F16] {
            for capacity in [0, 1, 63, 64, 65, 1000, 1024, 100_000] {
                for sequences in [1, 4, 64] {
                    let plan = plan(AttentionShape { sequences, tokens: 1, capacity, ..SHAPE }, dtype);
                    let keys = capacity as u32 + 1;
                    assert!(plan.splits * plan.split_keys >= keys, "{plan}");
                    assert!((plan.splits - 1) * plan.split_keys < keys && plan.splits <= MAX_SPLITS, "{plan}");
                    assert_eq!(plan.workspace.arrivals > 0, plan.splits > 1, "{plan}");
                    assert_eq!(plan.workspace.t_bytes + plan.workspace.flags + plan.workspace.t_words, 0);
                }
            }
        }
        let plan = plan(AttentionShape { tokens: 1, capacity: 1024, ..SHAPE }, DType::Bf16);
        assert!(plan.launch.grid[0] * plan.launch.grid[1] >= 132, "{plan}");
    }

    #[test]
    fn every_head_has_a_kernel_and_room_on_every_device() {
        for head_size in 1..=MAX_HEAD_SIZE {
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                for (tokens, sequences) in [(1, 1), (64, 1), (64, 64)] {
                    for (compute_capability, limit) in [((7, 5), 64 << 10), ((8, 6), 99 << 10)] {
                        let shape = AttentionShape { tokens, sequences, head_size, ..SHAPE };
                        let problem = AttentionProblem { compute_capability, ..problem(shape, dtype) };
                        let plan = AttentionPlan::new(&problem).expect("a plan");
                        assert!(plan.padded_head as usize >= head_size && plan.launch.shared_bytes <= limit, "{plan}");
                        let matrix = tokens > 1 && (dtype == DType::F16 || dtype == DType::Bf16 && limit > 64 << 10);
                        assert_eq!(plan.launch.kernel.contains("mma"), matrix, "{plan}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_wrong_shape_is_refused_for_what_it_is() {
        let refused = |shape, dtype, path| AttentionPlan::new(&AttentionProblem { path, ..problem(shape, dtype) });
        let auto = |shape| refused(shape, DType::F16, ComputePath::Auto).expect_err("refused");
        for head_size in [0, 129] {
            let expected = Error::HeadSizeOutOfRange { head_size, max: 128 };
            assert_eq!(auto(AttentionShape { head_size, ..SHAPE }), expected);
        }
        for shape in [
            AttentionShape { sequences: 0, ..SHAPE },
            AttentionShape { tokens: 0, ..SHAPE },
            AttentionShape { heads: 0, ..SHAPE },
        ] {
            assert!(matches!(auto(shape), Error::EmptyOperand { .. }));
        }
        assert!(matches!(auto(AttentionShape { scale: f32::NAN, ..SHAPE }), Error::ScaleNotFinite { .. }));
        for (shape, operand) in [
            (AttentionShape { sequences: usize::MAX, ..SHAPE }, "qkv"),
            (AttentionShape { heads: 1 << 30, ..SHAPE }, "qkv"),
            (AttentionShape { capacity: usize::MAX, ..SHAPE }, "a head's keys"),
            (AttentionShape { sequences: 1 << 28, tokens: 1, ..SHAPE }, "the heads of all sequences"),
            (AttentionShape { tokens: 1 << 23, heads: 1, ..SHAPE }, "a sequence's queries"),
        ] {
            let error = auto(shape);
            assert!(matches!(error, Error::TooLarge { operand: named, .. } if named == operand), "{shape}: {error}");
        }
        for (dtype, path) in [(DType::F32, ComputePath::Matrix), (DType::F32, ComputePath::Tf32)] {
            assert!(matches!(refused(SHAPE, dtype, path), Err(Error::NoMatrixInstructions { .. })));
        }
    }

    #[test]
    fn a_plan_says_what_it_is() {
        let text = plan(SHAPE, DType::Bf16).to_string();
        assert!(text.starts_with("lora_attention_prefill_mma_bf16_h64_q16: 1x128 tokens, 16 heads of 64"), "{text}");
    }
}
