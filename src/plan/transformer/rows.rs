//! How a GPU runs LayerNorm and the embedding: pure, printable.
//!
//! The kernels are kernels/transformer/{layer_norm,embedding}.h; in both, warps hold rows (kernels/transformer/row.h).

use crate::abi;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::plan::launch::LaunchShape;
use crate::plan::problem::expect_elements;

/// Threads of a warp.
const WARP: usize = 32;
/// Warps of a CTA at most.
const MAX_WARPS: usize = abi::LORA_ROW_THREADS as usize / WARP;
/// Warps that keep an SM's share of the memory busy: few rows are spread over more warps each until there are as many.
const BUSY_WARPS: usize = 16;
/// What a warp leaves in shared memory: the number, the mean and the squares of its values.
const MOMENTS_BYTES: usize = 3 * size_of::<f32>();

/// How one launch of `lora_layer_norm` or `lora_embedding` runs. It needs no workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPlan {
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Threads that share a row, a power of two: so the sums of a row are cut, and nothing else of the plan matters to them.
    pub row_threads: u32,
    /// Global bytes that must move: rows in and out, of an embedding with its LayerNorm.
    pub floor_bytes: usize,
}

impl RowPlan {
    /// LayerNorm of `rows` rows of `width` elements.
    ///
    /// # Errors
    /// [`Error::EmptyOperand`]; [`Error::TooLarge`] for more rows than a launch can have CTAs.
    pub fn layer_norm(rows: usize, width: usize, dtype: DType, multiprocessors: usize) -> Result<Self> {
        Self::new("lora_layer_norm", 2, [rows, width], dtype, multiprocessors)
    }

    /// The embedding of `rows` tokens of `width` elements, with LayerNorm or without.
    ///
    /// # Errors
    /// As [`layer_norm`](Self::layer_norm).
    pub fn embedding(rows: usize, width: usize, dtype: DType, multiprocessors: usize) -> Result<Self> {
        Self::new("lora_embedding", 4, [rows, width], dtype, multiprocessors)
    }

    #[expect(clippy::cast_possible_truncation, reason = "checked: fewer rows than 2^31, at most 256 threads")]
    fn new(
        kernel: &str,
        moves: usize,
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
        let held_by_warp = WARP * abi::LORA_ROW_ELEMENTS as usize / elements;
        let holds = |warps: usize| warps * held_by_warp >= chunks;
        let is_busy = |warps: usize| warps * WARP >= chunks || rows * warps >= multiprocessors * BUSY_WARPS;
        let mut warps = 1;
        while warps < MAX_WARPS && !(holds(warps) && is_busy(warps)) {
            warps *= 2;
        }
        // Rows share a CTA only if every SM has one all the same.
        let mut rows_of_cta = 1;
        while 2 * rows_of_cta * warps <= MAX_WARPS && rows >= 2 * rows_of_cta * multiprocessors {
            rows_of_cta *= 2;
        }
        Ok(Self {
            launch: LaunchShape {
                kernel: format!("{kernel}_{dtype}"),
                grid: [rows.div_ceil(rows_of_cta) as u32, 1, 1],
                threads: (rows_of_cta * warps * WARP) as u32,
                shared_bytes: (MAX_WARPS * MOMENTS_BYTES) as u32,
                cluster: 1,
            },
            row_threads: (warps * WARP) as u32,
            floor_bytes: moves * rows * width * dtype.size(),
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

    fn cut(rows: usize, width: usize, dtype: DType) -> (u32, u32, u32) {
        let plan = RowPlan::layer_norm(rows, width, dtype, 132).expect("a plan");
        (plan.launch.grid[0], plan.launch.threads, plan.row_threads)
    }

    #[test]
    fn few_rows_are_spread_over_the_device_and_many_held_by_few_warps() {
        assert_eq!(cut(128, 1024, DType::F16), (128, 128, 128));
        assert_eq!(cut(128, 1024, DType::F32), (128, 256, 256));
        assert_eq!(cut(1, 1024, DType::Bf16), (1, 128, 128));
        assert_eq!(cut(16384, 1024, DType::Bf16), (2048, 256, 32));
        assert_eq!(cut(1, 1, DType::F32), (1, 32, 32));
        assert_eq!(cut(300, 40, DType::F32), (150, 64, 32));
    }

    #[test]
    fn rows_of_8192_are_held() {
        assert_eq!(cut(5000, 8192, DType::F32), (5000, 256, 256));
        assert_eq!(cut(5000, 4096, DType::Bf16), (2500, 256, 128));
        assert_eq!(cut(5000, 1 << 20, DType::Bf16), (5000, 256, 256), "wider ones in blocks");
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
