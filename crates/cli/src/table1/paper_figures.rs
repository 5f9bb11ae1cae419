//! The figures of the paper's Table 1: GPT-2 medium on a Quadro RTX 8000.
//!
//! `crates/xtask` includes this file as well, so it uses nothing of this crate.

/// A column of the paper's table. Times are mean and standard deviation of 100 trials, in ms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PaperColumn {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    /// |Θ| as printed, and the widths at which Adapter^H and Adapter^L have so many parameters.
    pub(crate) parameters: usize,
    pub(crate) houlsby_width: usize,
    pub(crate) lin_width: usize,
    /// Fine-tuning and LoRA, which is merged.
    pub(crate) base: (f64, f64),
    pub(crate) lin: (f64, f64),
    pub(crate) houlsby: (f64, f64),
}

/// All columns, from the smallest batch to the largest.
pub(crate) const PAPER: [PaperColumn; 3] = [
    PaperColumn {
        batch: 1,
        tokens: 128,
        parameters: 11_000_000,
        houlsby_width: 112,
        lin_width: 224,
        base: (19.8, 2.7),
        lin: (23.9, 2.1),
        houlsby: (25.8, 2.2),
    },
    PaperColumn {
        batch: 16,
        tokens: 256,
        parameters: 11_000_000,
        houlsby_width: 112,
        lin_width: 224,
        base: (338.0, 0.6),
        lin: (354.8, 0.5),
        houlsby: (366.3, 0.5),
    },
    PaperColumn {
        batch: 32,
        tokens: 512,
        parameters: 500_000,
        houlsby_width: 5,
        lin_width: 9,
        base: (1449.4, 0.8),
        lin: (1482.0, 1.0),
        houlsby: (1492.2, 1.0),
    },
];
