//! The names of the variants that are compared on a GPU.

/// The base product, by our kernels and by cuBLASLt.
pub(in crate::bench) const BASE: &str = "base";
pub(in crate::bench) const CUBLASLT: &str = "base (cuBLASLt)";
/// The layer with LoRA, in one launch of ours and in three products of cuBLASLt.
pub(in crate::bench) const FUSED: &str = "fused";
pub(in crate::bench) const SEQUENTIAL: &str = "sequential (cuBLASLt)";
/// In training, the two products of a layer without LoRA, by our kernels and by cuBLASLt.
pub(in crate::bench) const FROZEN_OURS: &str = "frozen (ours)";
pub(in crate::bench) const FROZEN: &str = "frozen";
/// The launches of a training pass: y with T saved, dx, dA and dB; and the last two together.
pub(in crate::bench) const FORWARD: &str = "forward, T kept";
pub(in crate::bench) const DX: &str = "dx";
pub(in crate::bench) const FACTOR_GRADIENTS: &str = "dA, dB";
pub(in crate::bench) const BACKWARD: &str = "backward";
/// A kernel that only reads the weight.
pub(in crate::bench) const READ: &str = "read";

/// How launches are issued: one by one, or as one graph.
pub(in crate::bench) const MODES: [&str; 2] = ["plain", "graph"];
