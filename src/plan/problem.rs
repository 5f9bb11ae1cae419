//! The input of a layer's plan: shapes, types, and facts about the device.

use crate::abi;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::{Layout, MAX_RANK};

/// Bytes of shared memory in which a CTA of a layer's kernel keeps the table of factors (kernels/lora/factors.h).
pub(crate) const FACTOR_BYTES: usize = abi::LORA_MAX_SEGMENTS as usize * size_of::<abi::LoraFactors>();

/// The instructions that compute matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputePath {
    /// MMA instructions (tensor cores) where the device has them for the type and they are faster, else CUDA cores.
    #[default]
    Auto,
    /// CUDA cores.
    CudaCores,
    /// MMA instructions on the operands as they are stored, or an error. It is an error for f32, which they would
    /// round.
    Matrix,
    /// For f32 storage: MMA instructions in TF32 where they are faster. They round the operands of every product (x,
    /// W0, A, T, B) to nearest, to 10 fraction bits, and add in f32. The relative error of a product of two operands is
    /// at most 2·2⁻¹¹. It is an error for other types and below compute capability 8.0. [`Auto`](Self::Auto) never uses
    /// TF32.
    Tf32,
}

/// The input of a layer's plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProblem<'a> {
    /// Rows of x and y.
    pub tokens: usize,
    /// Columns of x, the layer's input features.
    pub d_in: usize,
    /// Columns of y, the layer's output features.
    pub d_out: usize,
    /// The storage order of W0.
    pub layout: Layout,
    /// The type in which x, W0, A, B and y are stored.
    pub dtype: DType,
    /// The rank of each segment.
    pub ranks: &'a [usize],
    /// Whether all rows of x, W0 and every A start at multiples of 16 bytes, and those of W0 and every A end there. Where
    /// `d_in` elements of x are not whole chunks of 16 bytes, the plan is made as for rows of any alignment.
    pub aligned: bool,
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Compute capability of the device, major and minor.
    pub compute_capability: (u32, u32),
    /// The instructions to use.
    pub path: ComputePath,
}

/// Refuses an operand without elements.
pub(crate) fn expect_elements(operand: &'static str, shape: [usize; 2]) -> Result<()> {
    if shape.contains(&0) { Err(Error::EmptyOperand { operand, shape }) } else { Ok(()) }
}

impl LayerProblem<'_> {
    /// Whether a kernel may read rows of x, W0 and A in chunks of 16 bytes. The last chunk of a row of x must not reach
    /// beyond the row: behind it is another caller's memory, or a NaN, which times a zero of W0 is NaN.
    pub(crate) fn in_chunks(&self) -> bool {
        self.aligned && (self.d_in * self.dtype.size()).is_multiple_of(16)
    }

    /// Why MMA instructions cannot compute this layer; `None` if they can.
    pub(crate) fn matrix_obstacle(&self) -> Option<&'static str> {
        match self.dtype {
            DType::F32 if self.path != ComputePath::Tf32 => Some("they would round f32 to 19 bits"),
            DType::F16 | DType::Bf16 if self.path == ComputePath::Tf32 => Some("TF32 is a way to multiply f32"),
            DType::F32 if self.compute_capability < (8, 0) => {
                Some("the device has them from compute capability 8.0 on")
            }
            DType::Bf16 if self.compute_capability < (8, 0) => {
                Some("the device has them from compute capability 8.0 on")
            }
            DType::F16 if self.compute_capability < (7, 5) => {
                Some("the device has them from compute capability 7.5 on")
            }
            _ => None,
        }
    }

    /// Checks what every kernel needs: no dimension is 0, and neither the segments nor a rank exceed their maximum.
    pub(crate) fn validate(&self) -> Result<()> {
        let &Self { tokens, d_in, d_out, ranks, .. } = self;
        for (operand, shape) in [("x", [tokens, d_in]), ("y", [tokens, d_out])] {
            expect_elements(operand, shape)?;
        }
        let max_segments = abi::LORA_MAX_SEGMENTS as usize;
        if ranks.len() > max_segments {
            return Err(Error::TooManySegments { segments: ranks.len(), max: max_segments });
        }
        match ranks.iter().find(|&&rank| rank == 0 || rank > MAX_RANK) {
            Some(&rank) => Err(Error::RankOutOfRange { rank, max: MAX_RANK }),
            None => Ok(()),
        }
    }

    /// The least global memory traffic, in bytes: W0, A, B and x read once, y written once.
    pub(crate) fn floor_bytes(&self) -> usize {
        let &Self { tokens, d_in, d_out, ranks, dtype, .. } = self;
        let total_rank: usize = ranks.iter().sum();
        (d_in * d_out + (total_rank + tokens) * (d_in + d_out)) * dtype.size()
    }
}
