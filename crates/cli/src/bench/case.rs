//! One case of the benchmark: the shape of a layer, the rank of its LoRA, a number of tokens.

use fused_lora::lora::Layout;

use super::adapter::{ADAPTERS, Adapter};

/// The scale α/r of every LoRA.
pub(super) const SCALE: f32 = 2.0;

/// One case of the benchmark.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) tokens: usize,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    pub(super) rank: usize,
    pub(super) layout: Layout,
}

impl Case {
    /// The bottleneck adapters that its LoRA is compared with.
    pub(super) fn adapters(&self) -> [Adapter; ADAPTERS] {
        Adapter::to_compare_with((self.d_in, self.d_out), self.rank)
    }

    /// LoRA's trainable parameters, |Θ|.
    pub(super) fn parameters(&self) -> usize {
        self.rank * (self.d_in + self.d_out)
    }

    /// Elements of W0, A and B.
    pub(super) fn operands(&self) -> [usize; 3] {
        let product = usize::saturating_mul;
        [product(self.d_in, self.d_out), product(self.rank, self.d_in), product(self.d_out, self.rank)]
    }

    /// Bytes that a call must move at least: every operand once. `adapted`: with LoRA.
    pub(super) fn bytes<T>(&self, adapted: bool) -> usize {
        let low_rank = if adapted { self.parameters() } else { 0 };
        (self.d_in * self.d_out + self.tokens * (self.d_in + self.d_out) + low_rank) * size_of::<T>()
    }

    /// Floating-point operations of a forward call. `adapted`: with LoRA.
    pub(super) fn flops(&self, adapted: bool) -> usize {
        let low_rank = if adapted { self.parameters() } else { 0 };
        2 * self.tokens * (self.d_in * self.d_out + low_rank)
    }

    /// Bytes of T, which the forward pass saves for the backward pass.
    pub(super) fn saved_t_bytes<T>(&self) -> usize {
        self.tokens * self.rank * size_of::<T>()
    }

    /// Floating-point operations of a training pass: y, dx and, with LoRA, dA and dB.
    pub(super) fn training_flops(&self, adapted: bool) -> usize {
        let factors = if adapted { 2 * self.tokens * self.parameters() } else { 0 };
        2 * self.flops(adapted) + factors
    }

    /// Rows and columns of the weight as stored.
    pub(super) fn stored(&self) -> [usize; 2] {
        match self.layout {
            Layout::InOut => [self.d_in, self.d_out],
            Layout::OutIn => [self.d_out, self.d_in],
        }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} -> {}, r {}", self.tokens, self.d_in, self.d_out, self.rank)
    }
}
