//! The lm_head and the mean cross entropy of the next token. Logits are computed for a block of rows at a time, because
//! those of all rows would be the largest buffer of a training step.

use fused_lora::cpu;
use fused_lora::cpu::vector::{exp, vectorized};
use fused_lora::lora::{LoraLinear, Weight};
use fused_lora::{Element, MatrixMut, MatrixRef};
use rayon::prelude::*;

use super::linear::{backward, grown};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::reduce::max;

/// The most rows whose logits are computed at a time.
const ROWS: usize = 128;

/// Buffers of the loss.
#[derive(Debug, Default)]
pub(super) struct Loss {
    logits: Vec<f32>,
    /// The token that each row should predict; `None` for the last row of a sequence.
    targets: Vec<Option<u32>>,
    losses: Vec<f64>,
}

impl Loss {
    /// Returns the mean of −log p(next token) over every row that has a next token, as transformers does. Computes the
    /// gradient with respect to `normed`, `[rows, d_model]`, if `d_normed` is given.
    pub(super) fn run<W: Element>(
        &mut self,
        model: &Model<W>,
        tokens: &[&[u32]],
        normed: &[f32],
        mut d_normed: Option<&mut [f32]>,
        workspace: &mut Vec<f32>,
    ) -> Result<f64> {
        let (d, vocabulary) = (model.config.d_model, model.config.vocabulary);
        self.targets.clear();
        for sequence in tokens {
            self.targets.extend(sequence.iter().skip(1).map(|&token| Some(token)));
            self.targets.push(None);
        }
        let rows = self.targets.len();
        let weight = 1.0 / (rows - tokens.len()) as f32;
        self.losses.resize(rows, 0.0);
        let lm_head = LoraLinear::base(Weight::out_in(MatrixRef::new(model.output_weight(), vocabulary, d)?), None);
        let name = |source| Error::Layer { what: "lm_head".into(), source };

        let parts = rows.div_ceil(ROWS);
        for part in 0..parts {
            // All parts have about the same size: the bits of a product of few rows would depend on the number of
            // threads.
            let (start, end) = (part * rows / parts, (part + 1) * rows / parts);
            let count = end - start;
            self.logits.resize(self.logits.len().max(count * vocabulary), 0.0);
            let logits = &mut self.logits[..count * vocabulary];
            let x = MatrixRef::new(&normed[start * d..end * d], count, d)?;
            let needed = lm_head.plan_forward::<f32>(count)?.workspace_len();
            let mut out = MatrixMut::new(logits, count, vocabulary)?;
            cpu::forward(&lm_head, x, &mut out, grown(workspace, needed)).map_err(name)?;

            let rows = logits.par_chunks_exact_mut(vocabulary).zip(&self.targets[start..end]);
            rows.zip(&mut self.losses[start..end]).for_each(|((row, target), loss)| match target {
                Some(target) => *loss = cross_entropy(row, *target as usize, weight),
                None => {
                    row.fill(0.0);
                    *loss = 0.0;
                }
            });
            if let Some(d_normed) = &mut d_normed {
                let dy = MatrixRef::new(logits, count, vocabulary)?;
                let mut dx = MatrixMut::new(&mut d_normed[start * d..end * d], count, d)?;
                backward(&lm_head, x, dy, &[], Some(&mut dx), &mut [], workspace).map_err(name)?;
            }
        }
        Ok(self.losses.iter().sum::<f64>() / (rows - tokens.len()) as f64)
    }
}

/// Returns −log softmax(row)\[target] and replaces the row by its gradient, `weight · (softmax(row) − onehot)`.
fn cross_entropy(row: &mut [f32], target: usize, weight: f32) -> f64 {
    const LANES: usize = 16;
    vectorized(
        #[inline(always)]
        || {
            let max = max(row);
            let below_largest = f64::from(max - row[target]);
            let mut lanes = [0.0f64; LANES];
            for block in row.chunks_mut(LANES) {
                for (lane, x) in lanes.iter_mut().zip(block) {
                    *x = exp(*x - max);
                    *lane += f64::from(*x);
                }
            }
            let sum: f64 = lanes.into_iter().sum();
            let factor = (f64::from(weight) / sum) as f32;
            row.iter_mut().for_each(|x| *x *= factor);
            row[target] -= weight;
            sum.ln() + below_largest
        },
    )
}
