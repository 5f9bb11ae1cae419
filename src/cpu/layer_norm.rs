//! LayerNorm of rows, with the biased variance and ε added to it before the root. A row is read twice, for its mean and
//! for its variance, and stays in cache meanwhile.

use super::shared::{SMALL, SharedSlice};
use super::vector::{sum, vectorized};
use crate::bottleneck::LayerNorm;
use crate::dtype::Element;
use crate::error::Result;
use crate::matrix::{MatrixMut, MatrixRef};
use rayon::prelude::*;

/// `y = (x − mean)/√(variance + ε)·weight + bias` for every row of x and y, `[rows, d]`, computed in `f32` for every
/// storage type.
///
/// Sums always run in 16 lanes, so results are the same bits from run to run.
///
/// # Errors
/// As [`LayerNorm::validate`]; [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for y.
pub fn layer_norm<X: Element>(x: MatrixRef<'_, X>, norm: &LayerNorm<'_>, y: &mut MatrixMut<'_, X>) -> Result<()> {
    let (rows, d, stride) = (x.rows(), x.cols(), y.row_stride());
    norm.validate(d)?;
    y.expect_shape("y", [rows, d])?;
    if rows == 0 || d == 0 {
        return Ok(());
    }
    let out = SharedSlice::new(y.data_mut());
    let normalize_rows = |from: usize, to: usize| {
        let mut wide = vec![0.0; if X::as_f32(x.row(from)).is_some() { 0 } else { 2 * d }];
        for row in from..to {
            // SAFETY: every row is normalised once, by one task.
            let y = unsafe { out.get_mut(row * stride..row * stride + d) };
            normalize(x.row(row), norm, y, &mut wide);
        }
    };
    let task_rows = (SMALL / d).max(1);
    if rows <= task_rows {
        normalize_rows(0, rows);
    } else {
        let tasks = (0..rows.div_ceil(task_rows)).into_par_iter();
        tasks.for_each(|task| normalize_rows(task * task_rows, ((task + 1) * task_rows).min(rows)));
    }
    Ok(())
}

/// Normalises one row. `wide` has room for x and y in `f32` if they are stored in another type.
fn normalize<X: Element>(x: &[X], norm: &LayerNorm<'_>, y: &mut [X], wide: &mut [f32]) {
    let (wide_x, wide_y) = wide.split_at_mut(wide.len() / 2);
    let x = match X::as_f32(x) {
        Some(x) => x,
        None => {
            X::widen(x, wide_x);
            &*wide_x
        }
    };
    if X::DTYPE == crate::DType::F32
        && let Ok(y) = bytemuck::try_cast_slice_mut::<X, f32>(y)
    {
        return normalize_f32(x, norm, y);
    }
    normalize_f32(x, norm, wide_y);
    X::narrow(wide_y, y);
}

fn normalize_f32(x: &[f32], norm: &LayerNorm<'_>, y: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            let d = x.len() as f32;
            let mean = sum(x, |v| v) / d;
            let variance = sum(x, |v| (v - mean) * (v - mean)) / d;
            let inverse = 1.0 / (variance + norm.epsilon).sqrt();
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(norm.weight).zip(norm.bias) {
                *y = (x - mean) * inverse * w + b;
            }
        },
    );
}
