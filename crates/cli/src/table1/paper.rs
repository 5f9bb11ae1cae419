//! The column of the paper's Table 1 that belongs to a measured one.

use super::paper_figures::{PAPER, PaperColumn};
use crate::column::Column;
use crate::method::{Kind, Method};

impl PaperColumn {
    /// The paper's figures for this column, if it has them.
    pub(super) fn of(column: Column) -> Option<&'static Self> {
        PAPER.iter().find(|paper| (paper.batch, paper.tokens) == (column.batch, column.tokens))
    }

    /// The paper's mean and deviation for this method, if it has them.
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
    fn the_times_give_the_percentages_that_the_paper_prints() {
        let percent =
            |figure: (f64, f64), paper: &PaperColumn| format!("{:+.1}", 100.0 * (figure.0 / paper.base.0 - 1.0));
        let printed = [("+20.7", "+30.3"), ("+5.0", "+8.4"), ("+2.2", "+3.0")];
        for (paper, (lin, houlsby)) in PAPER.iter().zip(printed) {
            assert_eq!((&*percent(paper.lin, paper), &*percent(paper.houlsby, paper)), (lin, houlsby));
        }
    }
}
