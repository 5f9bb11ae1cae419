//! The gradients of a LoRA. The optimizer keeps its master copies and moments in the same type.

use std::ops::Range;

use fused_lora::Element;

use crate::adapter::expect_same;
use crate::adapter::lora::{Factors, Lora, Projection};
use crate::error::{Error, Result};

/// The gradients of one pair of factors, in `f32` for every storage type of the factors.
#[derive(Debug, Clone, PartialEq)]
pub struct FactorGradients {
    /// Output columns of the projection that the factors act on.
    pub columns: Range<usize>,
    /// The rank r.
    pub rank: usize,
    /// dA, `[rank, d_in]`.
    pub a: Vec<f32>,
    /// dB, `[columns.len(), rank]`.
    pub b: Vec<f32>,
}

/// The gradients of a whole LoRA.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// For each layer and each [`Projection`], one entry for each pair of the LoRA's factors.
    pub layers: Vec<[Vec<FactorGradients>; 4]>,
}

impl Gradients {
    /// Zeros of the shapes of `lora`.
    pub fn zeros<W: Element>(lora: &Lora<W>) -> Self {
        let zeros = |f: &Factors<W>| FactorGradients {
            columns: f.columns.clone(),
            rank: f.rank,
            a: vec![0.0; f.a.len()],
            b: vec![0.0; f.b.len()],
        };
        let layer = |layer: &[Vec<Factors<W>>; 4]| layer.each_ref().map(|factors| factors.iter().map(zeros).collect());
        Self { layers: lora.layers.iter().map(layer).collect() }
    }

    /// The gradients on one projection, in the order of the LoRA's factors. Panics if there is no such layer.
    pub fn factors(&self, layer: usize, projection: Projection) -> &[FactorGradients] {
        &self.layers[layer][projection as usize]
    }

    /// Every pair, layer by layer, in the order in which projections run.
    pub fn iter(&self) -> impl Iterator<Item = &FactorGradients> {
        self.layers.iter().flatten().flatten()
    }

    /// Every pair, mutable.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut FactorGradients> {
        self.layers.iter_mut().flatten().flatten()
    }

    /// Checks that the gradients have the shapes of `lora`.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`] for another number of layers, [`Error::AdapterMismatch`] for other columns or ranks.
    pub fn check<W: Element>(&self, lora: &Lora<W>) -> Result<()> {
        expect_same("the LoRA has", "layers", self.layers.len(), lora.layers.len())?;
        for (i, (mine, theirs)) in self.layers.iter().zip(&lora.layers).enumerate() {
            for projection in Projection::ALL {
                let (mine, theirs) = (&mine[projection as usize], &theirs[projection as usize]);
                let alike = |(g, f): (&FactorGradients, &Factors<W>)| {
                    g.columns == f.columns && g.rank == f.rank && g.a.len() == f.a.len() && g.b.len() == f.b.len()
                };
                if mine.len() != theirs.len() || !mine.iter().zip(theirs).all(alike) {
                    return Err(Error::AdapterMismatch {
                        what: format!("h.{i}.{}", projection.name()),
                        expected: list(mine.iter().map(|g| (g.rank, &g.columns))),
                        actual: list(theirs.iter().map(|f| (f.rank, &f.columns))),
                    });
                }
            }
        }
        Ok(())
    }
}

fn list<'a>(factors: impl Iterator<Item = (usize, &'a Range<usize>)>) -> String {
    let shown: Vec<String> = factors.map(|(rank, columns)| format!("rank {rank} on columns {columns:?}")).collect();
    if shown.is_empty() { "nothing".into() } else { shown.join(" and ") }
}
