//! AdamW on the CPU: a pass over the gradients for their norm, then a pass over gradients, parameters and moments for
//! the update.

use rayon::prelude::*;

use super::vector::vectorized;
use crate::dtype::Element;
use crate::error::Result;
use crate::optim::{AdamW, Coefficients, Parameter, Step, validate};

/// Elements that one task processes. The norm is summed chunk by chunk, so the chunk size determines its rounding.
const CHUNK: usize = 1 << 14;
/// Partial sums in which the squares of a chunk are added.
const LANES: usize = 16;

/// Carries out step number `step`, counted from 1, on all `parameters` at once.
///
/// A skipped step (see [`Step::skipped`]) writes nothing, and the next step has the same number. Results are the same
/// bits from run to run, on any number of threads.
///
/// # Errors
/// [`Error::HyperparameterOutOfRange`](crate::Error::HyperparameterOutOfRange), also for a step of 0;
/// [`Error::LengthMismatch`](crate::Error::LengthMismatch) for a parameter whose slices differ.
pub fn adamw<W: Element>(config: &AdamW, step: u64, parameters: &mut [Parameter<'_, W>]) -> Result<Step> {
    validate(config, step, parameters)?;
    let outcome = config.decide(norm(parameters));
    if outcome.skipped.is_some() {
        return Ok(outcome);
    }
    let clip = outcome.clipped_by as f32;
    parameters.par_iter_mut().for_each(|p| {
        let c = config.coefficients(step, p.factor);
        let moments = p.first_moment.par_chunks_mut(CHUNK).zip(p.second_moment.par_chunks_mut(CHUNK));
        let values = p.value.par_chunks_mut(CHUNK).zip(p.gradient.par_chunks(CHUNK));
        values.zip(moments).for_each(|((value, gradient), (m, v))| update(&c, clip, gradient, value, m, v));
        if let Some(stored) = &mut p.stored {
            stored.par_chunks_mut(CHUNK).zip(p.value.par_chunks(CHUNK)).for_each(|(to, from)| W::narrow(from, to));
        }
    });
    Ok(outcome)
}

/// The L2 norm of all gradients. Squares of `f32` are exact in double precision and their sum stays finite, so the norm
/// is finite if and only if every gradient is.
fn norm<W>(parameters: &[Parameter<'_, W>]) -> f64 {
    let chunks: Vec<&[f32]> = parameters.iter().flat_map(|p| p.gradient.chunks(CHUNK)).collect();
    let squares: Vec<f64> = chunks.into_par_iter().map(sum_of_squares).collect();
    squares.into_iter().sum::<f64>().sqrt()
}

fn sum_of_squares(values: &[f32]) -> f64 {
    vectorized(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; LANES];
            let (blocks, rest) = values.as_chunks::<LANES>();
            for block in blocks {
                for (lane, &x) in lanes.iter_mut().zip(block) {
                    *lane += f64::from(x) * f64::from(x);
                }
            }
            for (lane, &x) in lanes.iter_mut().zip(rest) {
                *lane += f64::from(x) * f64::from(x);
            }
            lanes.into_iter().sum()
        },
    )
}

fn update(c: &Coefficients, clip: f32, gradient: &[f32], value: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    let c = *c;
    vectorized(
        #[inline(always)]
        || {
            for (((p, g), m), v) in value.iter_mut().zip(gradient).zip(m).zip(v) {
                let g = clip * g;
                *m = c.first[0] * *m + c.first[1] * g;
                *v = c.second[0] * *v + c.second[1] * (g * g);
                *p = c.decay * *p - c.rate * (*m / (v.sqrt() * c.root + c.eps));
            }
        },
    );
}
