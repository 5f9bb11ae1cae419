//! The plans of LayerNorm and of the embedding. The kernels are in kernels/transformer/{layer_norm,embedding}.h. In
//! both a row is held in the registers of one or more warps (kernels/transformer/row.h).

use crate::abi;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::launch::LaunchShape;
use crate::plan::problem::expect_elements;

/// Threads of a warp.
const WARP: usize = 32;
/// The most warps of a CTA.
const MAX_WARPS: usize = abi::LORA_ROW_THREADS as usize / WARP;
/// Warps per SM that saturate the memory bandwidth. If there are few rows, each is spread over more warps until an SM
/// has this many.
const BUSY_WARPS: usize = 16;
/// Bytes that a warp stores in shared memory: the number of its values, their mean, and the sum of their squared
/// distances from it.
const MOMENTS_BYTES: usize = 3 * size_of::<f32>();

/// How one launch of `lora_layer_norm` or `lora_embedding` runs. It needs no workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPlan {
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Threads that share a row, a power of two. It decides the order in which a row's values are added; the bits of
    /// the result depend on nothing else in the plan.
    pub row_threads: u32,
    /// The least global memory traffic, in bytes. LayerNorm reads x and writes y. The embedding reads a token's row and
    /// a position's row and writes x and y; y is counted even if the call has no LayerNorm.
    pub floor_bytes: usize,
}

impl RowPlan {
    /// Plans LayerNorm of x `[rows, width]`.
    ///
    /// # Errors
    /// [`Error::EmptyOperand`]; [`Error::TooLarge`] for more rows than a launch can have CTAs.
    pub fn layer_norm(rows: usize, width: usize, dtype: DType, multiprocessors: usize) -> Result<Self> {
        Self::new("lora_layer_norm", 2, [rows, width], dtype, multiprocessors)
    }

    /// Plans the embedding of `rows` tokens as x `[rows, width]`, with or without a LayerNorm of x.
    ///
    /// # Errors
    /// As [`layer_norm`](Self::layer_norm).
    pub fn embedding(rows: usize, width: usize, dtype: DType, multiprocessors: usize) -> Result<Self> {
        Self::new("lora_embedding", 4, [rows, width], dtype, multiprocessors)
    }

    /// `row_moves` is the number of rows that are read or written for each row of x.
    #[expect(clippy::cast_possible_truncation, reason = "checked: fewer rows than 2^31, at most 256 threads")]
    fn new(
        kernel: &str,
        row_moves: usize,
        [rows, width]: [usize; 2],
        dtype: DType,
        multiprocessors: usize,
    ) -> Result<Self> {
        expect_elements("x", [rows, width])?;
        for value in [rows, width] {
            if value > i32::MAX as usize {
                return Err(Error::TooLarge { operand: "x", value });
            }
        }
        let elements = 16 / dtype.size();
        let chunks = width.div_ceil(elements);
        let warp_chunks = WARP * abi::LORA_ROW_ELEMENTS as usize / elements;
        let hold_the_row = |warps: usize| warps * warp_chunks >= chunks;
        let are_enough = |warps: usize| warps * WARP >= chunks || rows * warps >= multiprocessors * BUSY_WARPS;
        let mut warps = 1;
        while warps < MAX_WARPS && !(hold_the_row(warps) && are_enough(warps)) {
            warps *= 2;
        }
        // A CTA has several rows only if every SM still has a CTA.
        let mut cta_rows = 1;
        while 2 * cta_rows * warps <= MAX_WARPS && rows >= 2 * cta_rows * multiprocessors {
            cta_rows *= 2;
        }
        Ok(Self {
            launch: LaunchShape {
                kernel: format!("{kernel}_{dtype}"),
                grid: [rows.div_ceil(cta_rows) as u32, 1, 1],
                threads: (cta_rows * warps * WARP) as u32,
                shared_bytes: (MAX_WARPS * MOMENTS_BYTES) as u32,
                cluster: 1,
            },
            row_threads: (warps * WARP) as u32,
            floor_bytes: row_moves * rows * width * dtype.size(),
        })
    }
}

impl std::fmt::Display for RowPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { launch: LaunchShape { kernel, grid, threads, .. }, row_threads, floor_bytes } = self;
        write!(
            f,
            "{kernel}: 1 launch of {} CTAs of {threads} threads, {row_threads} a row, floor {floor_bytes} B",
            grid[0]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CTAs, threads per CTA, threads per row.
    fn launch_shape(rows: usize, width: usize, dtype: DType) -> (u32, u32, u32) {
        let plan = RowPlan::layer_norm(rows, width, dtype, 132).expect("a plan");
        (plan.launch.grid[0], plan.launch.threads, plan.row_threads)
    }

    #[test]
    fn few_rows_are_spread_over_the_device_and_many_held_by_few_warps() {
        assert_eq!(launch_shape(128, 1024, DType::F16), (128, 128, 128));
        assert_eq!(launch_shape(128, 1024, DType::F32), (128, 256, 256));
        assert_eq!(launch_shape(1, 1024, DType::Bf16), (1, 128, 128));
        assert_eq!(launch_shape(16384, 1024, DType::Bf16), (2048, 256, 32));
        assert_eq!(launch_shape(1, 1, DType::F32), (1, 32, 32));
        assert_eq!(launch_shape(300, 40, DType::F32), (150, 64, 32));
    }

    #[test]
    fn rows_of_8192_elements_are_held_in_registers() {
        assert_eq!(launch_shape(5000, 8192, DType::F32), (5000, 256, 256));
        assert_eq!(launch_shape(5000, 4096, DType::Bf16), (2500, 256, 128));
        assert_eq!(launch_shape(5000, 1 << 20, DType::Bf16), (5000, 256, 256), "wider rows are processed in blocks");
    }

    #[test]
    fn nothing_and_too_much_are_not_planned() {
        let empty = Error::EmptyOperand { operand: "x", shape: [0, 8] };
        assert_eq!(RowPlan::embedding(0, 8, DType::F32, 1), Err(empty));
        let wide = RowPlan::layer_norm(1, 1 << 31, DType::F32, 1);
        assert_eq!(wide, Err(Error::TooLarge { operand: "x", value: 1 << 31 }));
    }

    #[test]
    fn a_plan_tells_what_it_does() {
        let text = RowPlan::embedding(128, 1024, DType::F16, 132).expect("a plan").to_string();
        let expected = "lora_embedding_f16: 1 launch of 128 CTAs of 128 threads, 128 a row, floor 1048576 B";
        assert_eq!(text, expected);
    }
}
