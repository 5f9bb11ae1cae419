//! The bottleneck adapters that LoRA is compared with: each is run after the layer that it adapts.

use fused_lora::bottleneck;

/// ε of Adapter^L's LayerNorm, the same as in GPT-2.
pub(super) const EPSILON: f32 = 1e-5;

/// How many bottleneck adapters are compared with one LoRA.
pub(super) const ADAPTERS: usize = 4;

/// Names of the adapters: Adapter^H and Adapter^L with as many parameters as the LoRA, then both with the paper's
/// width.
pub(super) const NAMES: [&str; ADAPTERS] = ["adapter-h", "adapter-l", "adapter-h (paper)", "adapter-l (paper)"];

/// The features of GPT-2 medium, and the widths at which Adapter^H and Adapter^L have 11M parameters on it, as in Table
/// 1 of the paper.
const PAPER_FEATURES: usize = 1024;
const PAPER_WIDTHS: [usize; 2] = [112, 224];

/// An adapter after a layer of `d` output features: `y += up·relu(down·y + b) + b`; Adapter^L has LayerNorm(y) in place
/// of the second y.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Adapter {
    pub(super) name: &'static str,
    pub(super) has_norm: bool,
    pub(super) d: usize,
    /// Hidden features.
    pub(super) width: usize,
}

impl Adapter {
    /// The adapters to compare with a LoRA of `rank` on a layer, in the order of [`NAMES`].
    ///
    /// The first two have the width whose number of parameters is closest to rank·(d_in + d_out), at least 1. The last
    /// two have the paper's widths for GPT-2 medium, 112 and 224, reduced in proportion if the layer has fewer than
    /// 1024 output features.
    pub(super) fn to_compare_with((d_in, d_out): (usize, usize), rank: usize) -> [Self; ADAPTERS] {
        let budget = rank as f64 * (d_in as f64 + d_out as f64);
        let lora_sized = |has_norm| bottleneck::width_for(d_out, has_norm, budget);
        let paper = |width: usize| {
            let features = d_out.min(PAPER_FEATURES);
            ((width * features) as f64 / PAPER_FEATURES as f64).round().max(1.0) as usize
        };
        let [houlsby, lin] = PAPER_WIDTHS;
        let widths = [lora_sized(false), lora_sized(true), paper(houlsby), paper(lin)];
        std::array::from_fn(|i| Self { name: NAMES[i], has_norm: i % 2 == 1, d: d_out, width: widths[i] })
    }

    /// The name of the launch of Adapter^L's LayerNorm in tables.
    pub(super) fn norm_name(&self) -> &'static str {
        if self.name == NAMES[3] { "adapter-l (paper), LayerNorm" } else { "adapter-l, LayerNorm" }
    }

    /// Trainable parameters, |Θ|.
    pub(super) fn parameters(&self) -> usize {
        bottleneck::parameters(self.d, self.width, self.has_norm)
    }

    /// Bytes of the adapter's parameters, which have `size` bytes each; those of LayerNorm are always `f32`.
    pub(super) fn bytes(&self, size: usize) -> usize {
        let norm = if self.has_norm { 2 * self.d } else { 0 };
        (self.parameters() - norm) * size + norm * size_of::<f32>()
    }

    /// Floating-point operations for `tokens` tokens.
    pub(super) fn flops(&self, tokens: usize) -> usize {
        4 * tokens * self.d * self.width
    }

    /// For each of the adapter's tensors (projections, biases, LayerNorm): its number of elements, and the bytes of an
    /// element.
    pub(super) fn operands(&self, size: usize) -> [(usize, usize); 6] {
        let norm = if self.has_norm { self.d } else { 0 };
        let projection = self.d.saturating_mul(self.width);
        [(projection, size), (self.width, size), (projection, size), (self.d, size), (norm, 4), (norm, 4)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_loras_parameters_or_the_papers_width() {
        let widths = |shape, rank| Adapter::to_compare_with(shape, rank).map(|adapter| adapter.width);
        assert_eq!(widths((1024, 1024), 4), [3, 2, 112, 224]);
        assert_eq!(widths((1024, 4096), 16), [9, 8, 112, 224]);
        assert_eq!(widths((4096, 1024), 16), [39, 38, 112, 224]);
        assert_eq!(widths((64, 64), 16), [15, 14, 7, 14]);
        // The width is never 0. A layer with many inputs and few outputs has a wide adapter, because its LoRA is large.
        assert_eq!(widths((1, 1), 1), [1, 1, 1, 1]);
        assert_eq!(widths((4096, 4), 1), [455, 454, 1, 1]);
        for adapter in Adapter::to_compare_with((4096, 4096), 64) {
            let off = adapter.parameters().abs_diff(64 * 2 * 4096);
            assert!(adapter.name.contains("paper") || off <= 4096, "{adapter:?}");
            let operands: usize = adapter.operands(2).iter().map(|(len, size)| len * size).sum();
            assert_eq!(operands, adapter.bytes(2), "{adapter:?}");
        }
    }

    #[test]
    fn an_adapter_on_every_sublayer_of_gpt2_medium_is_the_papers() {
        let [.., houlsby, lin] = Adapter::to_compare_with((1024, 1024), 4);
        assert_eq!([48 * houlsby.parameters(), 24 * lin.parameters()], [11_064_576, 11_089_152]);
        assert_eq!(houlsby.flops(1), 2 * 2 * 1024 * 112);
    }
}
