//! What takes part in a contest on a GPU, by name.

/// The two base products, ours and the vendor's.
pub(in crate::bench) const BASE: &str = "base";
pub(in crate::bench) const CUBLASLT: &str = "base (cuBLASLt)";
/// The layer with its adapter, in one launch and in three products of the vendor's.
pub(in crate::bench) const FUSED: &str = "fused";
pub(in crate::bench) const SEQUENTIAL: &str = "sequential (cuBLASLt)";
/// Of a training pass: the two products of a layer without an adapter, ours and the vendor's.
pub(in crate::bench) const FROZEN_OURS: &str = "frozen (ours)";
pub(in crate::bench) const FROZEN: &str = "frozen";
/// The launches of a training pass: y with T kept, dx, dA and dB; and the last two together.
pub(in crate::bench) const FORWARD: &str = "forward, T kept";
pub(in crate::bench) const INPUT: &str = "dx";
pub(in crate::bench) const GRADIENTS: &str = "dA, dB";
pub(in crate::bench) const BACKWARD: &str = "backward";
/// A plain read of the weight.
pub(in crate::bench) const READ: &str = "read";

/// Issued launch by launch, and replayed from a graph.
pub(in crate::bench) const MODES: [&str; 2] = ["plain", "graph"];
