//! The activations of an epilogue, on a row of `f32`.

use super::vector::{exp, vectorized};
use crate::lora::Activation;

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

/// 0.5x(1 + tanh u) = x / (1 + e^(-2u)) with u = √(2/π)(x + 0.044715x³).
#[inline(always)]
fn gelu_new(x: f32) -> f32 {
    const MINUS_TWO_SQRT_2_OVER_PI: f32 = -1.595_769_2;
    let minus_two_u = MINUS_TWO_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
    x / (1.0 + exp(minus_two_u))
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
    fn relu_keeps_nan() {
        let mut row = [-1.0, 0.0, 2.0, f32::NAN];
        apply(Activation::Relu, &mut row);
        assert_eq!(&row[..3], &[0.0, 0.0, 2.0]);
        assert!(row[3].is_nan());
    }
}
