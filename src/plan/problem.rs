//! What a GPU plan is made from.

use crate::abi;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::{Layout, MAX_RANK};

/// Shared memory of a CTA that takes part in a layer: the factors of every segment (kernels/lora/factors.h).
pub(crate) const FACTOR_BYTES: usize = abi::LORA_MAX_SEGMENTS as usize * size_of::<abi::LoraFactors>();

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputePath {
    /// Matrix instructions where the device has them for the type and they are faster, else CUDA cores.
    #[default]
    Auto,
    /// CUDA cores.
    CudaCores,
    /// Matrix instructions that round nothing but what is stored, or an error: not for f32.
    Matrix,
    /// For f32 storage, leave to multiply in TF32, where that is faster: the operands of every product (x, W0, A, T, B) rounded to
    /// 10 fraction bits, to nearest, sums in f32. Up to 2·2⁻¹¹ of every product is lost. An error for other types and below compute
    /// capability 8.0. Never what [`Auto`](Self::Auto) takes.
    Tf32,
}

/// What a plan is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProblem<'a> {
    /// Rows of x.
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
    /// Whether all rows of x, W0 and every A start at multiples of 16 bytes, and those of W0 and every A end there. Where
    /// `d_in` elements of x are not whole chunks of 16 bytes, the plan is made as for rows of any alignment.
    pub aligned: bool,
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Major and minor compute capability of the device.
    pub compute_capability: (u32, u32),
    /// What is to multiply.
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

    /// Why matrix instructions cannot do it.
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

    /// What every plan asks for.
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

    /// Global bytes that must move at least: W0, A, B, x and y once.
    pub(crate) fn floor_bytes(&self) -> usize {
        let &Self { tokens, d_in, d_out, ranks, dtype, .. } = self;
        let total_rank: usize = ranks.iter().sum();
        (d_in * d_out + (total_rank + tokens) * (d_in + d_out)) * dtype.size()
    }
}
