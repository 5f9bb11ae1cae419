//! The plan of causal attention. The kernels are kernels/transformer/attention*.
//!
//! One launch computes all heads of a batch. The queries see their own call's keys and optionally earlier keys: a
//! prefix that all sequences share, or a cache of each sequence. A call with one query per sequence is a decode, whose
//! time is that of reading the keys and values; several CTAs can share the keys of a head. A call with more queries is
//! a prefill.

use crate::abi::{self, LoraAttention};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::launch::LaunchShape;
use crate::plan::problem::{ComputePath, expect_elements};
use crate::plan::workspace::WorkspaceLayout;

/// The most columns of a head.
pub const MAX_HEAD_SIZE: usize = abi::LORA_ATTENTION_MAX_HEAD as usize;

/// The shape of a call: `out[s, i] = Σⱼ softmaxⱼ(scale·q[s, i]·k[s, j])·v[s, j]` for each head of each sequence s. The
/// keys j are the earlier ones and those of the call up to query i.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Sequences of the batch.
    pub sequences: usize,
    /// Queries per sequence.
    pub tokens: usize,
    /// Heads of a sequence.
    pub heads: usize,
    /// Columns of a head, 1 to [`MAX_HEAD_SIZE`].
    pub head_size: usize,
    /// The most earlier keys of a sequence: the length of the prefix, or the rows of the cache that each sequence has;
    /// 0 without either.
    pub capacity: usize,
    /// The factor of the scores q·k.
    pub scale: f32,
}

impl AttentionShape {
    /// Columns of q, of k, of v and of the result: `heads * head_size`.
    pub fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Rows of qkv and of the result: `sequences * tokens`.
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
            // The grid has at most 65535 tiles of 64 queries.
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

/// The input of an [`AttentionPlan`]. The kernels test the alignment of rows when they run, so the plan does not depend
/// on it.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionProblem {
    /// The shape of the call.
    pub shape: AttentionShape,
    /// The type in which qkv, the earlier keys and values, and the result are stored.
    pub dtype: DType,
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Compute capability of the device, major and minor.
    pub compute_capability: (u32, u32),
    /// The instructions to use for a prefill. A decode always uses CUDA cores, since its time is that of reading
    /// memory.
    pub path: ComputePath,
}

impl AttentionProblem {
    /// Why MMA instructions cannot compute this call; `None` if they can.
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

    /// Bytes of dynamic shared memory that a CTA may have on every device of this compute capability or a later one.
    fn shared_limit(&self) -> u32 {
        if self.compute_capability < (8, 0) { 64 << 10 } else { 99 << 10 }
    }
}

/// How one launch of `lora_attention` runs.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionPlan {
    /// The shape of the call.
    pub shape: AttentionShape,
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Columns of a head in the kernel, which pads `head_size` with zeros.
    pub padded_head: u32,
    /// Queries that a CTA computes.
    pub tile_queries: u32,
    /// CTAs that share the keys of one head of one sequence when all `capacity` keys exist. With fewer keys, the CTAs
    /// without keys exit at once.
    pub splits: u32,
    /// Keys per CTA.
    pub split_keys: u32,
    /// The workspace that the launch needs.
    pub workspace: WorkspaceLayout,
    /// The least global memory traffic, in bytes: qkv and `capacity` earlier keys and values of each sequence read
    /// once, the result written once.
    pub floor_bytes: usize,
    /// Floating-point operations of q·kᵀ and of the product with v, with `capacity` earlier keys; a multiply-add counts
    /// as two.
    pub flops: u64,
}

/// Bytes of a chunk, which a thread loads or stores with one instruction.
const CHUNK: u32 = 16;
/// Decode: keys that a lane has in flight.
const DECODE_KEYS: u32 = 4;
/// Decode: the most splits. The CTA that finishes last reads the records of all of them.
const MAX_SPLITS: u32 = 32;
/// Decode: CTAs per SM that the splits aim for.
const DECODE_CTAS_PER_SM: usize = 4;

impl AttentionPlan {
    /// Plans a decode for one query per sequence, else a prefill.
    ///
    /// # Errors
    /// [`Error::HeadSizeOutOfRange`], [`Error::EmptyOperand`], [`Error::ScaleNotFinite`], [`Error::TooLarge`] if a
    /// dimension exceeds 31 bits, [`Error::NoMatrixInstructions`] if `path` asks for MMA that the device or the type
    /// does not allow.
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
        // The second dimension of a grid is at most 65535.
        let exceeds_grid = shape.tokens.div_ceil(16) > 65535;
        let queries = if shape.tokens > 16 && fits && (fills_device || exceeds_grid) { 64 } else { 16 };
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
            ..Self::without_kernel(problem)
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "validated: all dimensions fit 31 bits")]
    fn decode(problem: &AttentionProblem) -> Self {
        let AttentionProblem { shape, dtype, .. } = problem;
        let heads = shape.sequences * shape.heads;
        let padded = padded_head(shape.head_size, &[64, 128]);
        // A group of lanes shares a key, one chunk per lane.
        let groups = abi::LORA_ATTENTION_THREADS / (padded * dtype.size() as u32 / CHUNK);
        let step = groups * DECODE_KEYS;
        let keys = (shape.capacity + 1) as u32;
        let wanted = (problem.multiprocessors * DECODE_CTAS_PER_SM).div_ceil(heads) as u32;
        let split_keys = keys.div_ceil(wanted.clamp(1, MAX_SPLITS)).next_multiple_of(step);
        let splits = keys.div_ceil(split_keys);
        // Floats of a partial result: the sums of values, the largest score, the sum of weights.
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
            ..Self::without_kernel(problem)
        }
    }

    /// The fields that do not depend on the kernel; the others are to be replaced.
    fn without_kernel(problem: &AttentionProblem) -> Self {
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

    /// The parameters of a launch that the plan decides. `workspace` is the device address of a workspace of this
    /// `layout`. The caller sets the operands and their strides, which are null or 0 here, and the earlier keys and
    /// values, if there are any.
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

/// The smallest of these sizes that a head fits.
#[expect(clippy::cast_possible_truncation, reason = "a head has at most 128 columns")]
fn padded_head(head_size: usize, sizes: &[u32]) -> u32 {
    sizes.iter().copied().find(|&size| head_size as u32 <= size).unwrap_or(abi::LORA_ATTENTION_MAX_HEAD)
}

fn launch(kernel: String, grid: [u32; 3], shared_bytes: u32) -> LaunchShape {
    LaunchShape { kernel, grid, threads: abi::LORA_ATTENTION_THREADS, shared_bytes, cluster: 1 }
}

/// Prefill with MMA: shared memory of the ring, whose stages hold keys and values. The row stride of a head of 96, 192
/// bytes, is rounded up to 256.
fn matrix_shared_bytes(padded: u32) -> u32 {
    let row_chunks = match padded {
        32 => 4,
        64 => 8,
        _ => 16,
    };
    abi::LORA_ATTENTION_STAGES * 2 * abi::LORA_ATTENTION_MMA_KEYS * row_chunks * CHUNK
}

/// Prefill on CUDA cores: shared memory of the ring, of the tile of queries and of their weights.
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
            "{}: {}, grid {:?} of {} threads, {} B shared, {} queries per CTA, {} splits of {} keys, {}, floor {} B, \
             {} FLOP",
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
    fn few_queries_have_small_tiles_and_many_have_large_ones() {
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
    fn every_head_size_has_a_kernel_that_fits_shared_memory_on_every_device() {
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
    fn each_wrong_shape_has_its_error() {
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
