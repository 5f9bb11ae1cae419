//! What the paper's Table 1 prints.

use crate::column::Column;
use crate::method::{Kind, Method};

/// What the paper prints for a column: mean and deviation in ms on a Quadro RTX 8000.
pub(super) struct Paper {
    pub(super) column: Column,
    /// The printed |Θ|, and the widths that make it for Adapter^H and Adapter^L.
    pub(super) parameters: usize,
    pub(super) houlsby_width: usize,
    pub(super) lin_width: usize,
    pub(super) base: (f64, f64),
    pub(super) lin: (f64, f64),
    pub(super) houlsby: (f64, f64),
}

pub(super) const PAPER: [Paper; 3] = [
    Paper {
        column: Column { batch: 1, tokens: 128 },
        parameters: 11_000_000,
        houlsby_width: 112,
        lin_width: 224,
        base: (19.8, 2.7),
        lin: (23.9, 2.1),
        houlsby: (25.8, 2.2),
    },
    Paper {
        column: Column { batch: 16, tokens: 256 },
        parameters: 11_000_000,
        houlsby_width: 112,
        lin_width: 224,
        base: (338.0, 0.6),
        lin: (354.8, 0.5),
        houlsby: (366.3, 0.5),
    },
    Paper {
        column: Column { batch: 32, tokens: 512 },
        parameters: 500_000,
        houlsby_width: 5,
        lin_width: 9,
        base: (1449.4, 0.8),
        lin: (1482.0, 1.0),
        houlsby: (1492.2, 1.0),
    },
];

impl Paper {
    pub(super) fn of(column: Column) -> Option<&'static Self> {
        PAPER.iter().find(|paper| paper.column == column)
    }

    pub(super) fn figure(&self, method: &Method) -> Option<(f64, f64)> {
        use fused_lora_gpt2::adapter::bottleneck::Kind as Bottleneck;
        match (method.kind, method.drop) {
            (Kind::None | Kind::LoraMerged, _) => Some(self.base),
            (Kind::Bottleneck(Bottleneck::Houlsby), 0) => Some(self.houlsby),
            (Kind::Bottleneck(Bottleneck::Lin), 0) => Some(self.lin),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_percentages_are_its_own() {
        let percent = |figure: (f64, f64), paper: &Paper| format!("{:+.1}", 100.0 * (figure.0 / paper.base.0 - 1.0));
        let printed = [("+20.7", "+30.3"), ("+5.0", "+8.4"), ("+2.2", "+3.0")];
        for (paper, (lin, houlsby)) in PAPER.iter().zip(printed) {
            assert_eq!((&*percent(paper.lin, paper), &*percent(paper.houlsby, paper)), (lin, houlsby));
        }
    }
}
