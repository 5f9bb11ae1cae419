//! The activations of an epilogue, on a row of `f32`, and their derivatives.

use rayon::prelude::*;

use super::vector::{exp, vectorized};
use crate::error::{Error, Result};
use crate::lora::Activation;

/// Elements that one task processes.
const CHUNK: usize = 1 << 14;

/// `y = act(x)`, with the same bits as in an epilogue. It keeps x, which [`activate_backward`] needs.
///
/// # Errors
/// [`Error::LengthMismatch`] unless `y` is as long as `x`.
pub fn activate(activation: Activation, x: &[f32], y: &mut [f32]) -> Result<()> {
    expect_length("y", x.len(), y.len())?;
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        y.copy_from_slice(x);
        apply(activation, y);
    });
    Ok(())
}

/// `dx = dy·act′(x)`, where `dx` holds dy before the call. At 0 the derivative of ReLU is 0, as in PyTorch.
///
/// # Errors
/// [`Error::LengthMismatch`] unless `dx` is as long as `x`.
pub fn activate_backward(activation: Activation, x: &[f32], dx: &mut [f32]) -> Result<()> {
    expect_length("dx", x.len(), dx.len())?;
    dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(dx, x)| apply_derivative(activation, x, dx));
    Ok(())
}

fn expect_length(operand: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::LengthMismatch { operand, expected, actual }) }
}

/// Applies `activation` in place.
pub(crate) fn apply(activation: Activation, row: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => vectorized(
            #[inline(always)]
            // Written so that a NaN passes through.
            || row.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
        ),
        Activation::GeluNew => vectorized(
            #[inline(always)]
            || row.iter_mut().for_each(|x| *x = gelu_new(*x)),
        ),
    }
}

fn apply_derivative(activation: Activation, x: &[f32], dx: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => vectorized(
            #[inline(always)]
            // If x is NaN, so is the gradient.
            || dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = if *x <= 0.0 { 0.0 } else { *dx + 0.0 * x }),
        ),
        Activation::GeluNew => vectorized(
            #[inline(always)]
            || dx.iter_mut().zip(x).for_each(|(dx, x)| *dx *= gelu_new_derivative(*x)),
        ),
    }
}

const MINUS_TWO_SQRT_2_OVER_PI: f32 = -1.595_769_2;

/// 0.5x(1 + tanh u) = x / (1 + e^(-2u)) with u = √(2/π)(x + 0.044715x³).
#[inline(always)]
fn gelu_new(x: f32) -> f32 {
    let minus_two_u = MINUS_TWO_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
    x / (1.0 + exp(minus_two_u))
}

/// σ + x·σ·(1 − σ)·2u′ with σ = 1 / (1 + e^(-2u)).
#[inline(always)]
fn gelu_new_derivative(x: f32) -> f32 {
    // Beyond ±16 the derivative is 1, or 0 to within 1e-34. Clamping x keeps x³ from overflowing.
    let x = if x > 16.0 { 16.0 } else { x };
    let x = if x < -16.0 { -16.0 } else { x };
    let square = x * x;
    let e = exp(MINUS_TWO_SQRT_2_OVER_PI * (x + 0.044715 * x * square));
    let sigma = 1.0 / (1.0 + e);
    sigma - x * (sigma * (e * sigma)) * (MINUS_TWO_SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * square))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn gelu_agrees_with_the_reference() {
        for i in -20_000..=20_000 {
            let x = i as f32 / 1000.0;
            let exact = reference::activation(Activation::GeluNew, f64::from(x));
            let got = f64::from(gelu_new(x));
            // Where tanh is near -1 the result is small and carries the error of e^(-2u).
            assert!(
                (got - exact).abs() <= 1e-6 * exact.abs() + 1e-6 * f64::from(x.abs()).min(1e-2),
                "{x}: {got} {exact}"
            );
        }
        assert!(gelu_new(f32::NAN).is_nan());
    }

    #[test]
    fn derivatives_agree_with_the_reference() {
        let x: Vec<f32> = (-20_000..=20_000).map(|i| i as f32 / 1000.0).collect();
        for activation in [Activation::Identity, Activation::Relu, Activation::GeluNew] {
            let mut dx = vec![-2.0; x.len()];
            activate_backward(activation, &x, &mut dx).unwrap();
            for (x, dx) in x.iter().zip(&dx) {
                let exact = -2.0 * reference::activation_derivative(activation, f64::from(*x));
                let error = (f64::from(*dx) - exact).abs();
                // Where the derivative passes through 0 its two terms cancel.
                assert!(error <= 1e-6 * exact.abs() + 2e-7, "{activation:?}'({x}): {dx} {exact}");
            }
        }
        assert_eq!(gelu_new_derivative(1e30), 1.0);
        assert!(gelu_new_derivative(-1e30).abs() < 1e-30);
        assert!(gelu_new_derivative(f32::NAN).is_nan());
        let mut dx = [1.0];
        activate_backward(Activation::Relu, &[f32::NAN], &mut dx).unwrap();
        assert!(dx[0].is_nan());
    }

    #[test]
    fn activate_has_the_bits_of_an_epilogue() {
        let x: Vec<f32> = (0..40_000).map(|i| (i % 977) as f32 / 100.0 - 5.0).collect();
        for activation in [Activation::Identity, Activation::Relu, Activation::GeluNew] {
            let mut y = vec![f32::NAN; x.len()];
            activate(activation, &x, &mut y).unwrap();
            let mut row = x.clone();
            apply(activation, &mut row);
            assert_eq!(y, row);
        }
        let short = Err(Error::LengthMismatch { operand: "y", expected: 40_000, actual: 3 });
        assert_eq!(activate(Activation::Relu, &x, &mut [0.0; 3]), short);
    }

    #[test]
    fn relu_keeps_nan() {
        let mut row = [-1.0, 0.0, 2.0, f32::NAN];
        apply(Activation::Relu, &mut row);
        assert_eq!(&row[..3], &[0.0, 0.0, 2.0]);
        assert!(row[3].is_nan());
    }
}
