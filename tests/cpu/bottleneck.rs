//! Bottleneck adapters and LayerNorm on the CPU against float64, element by element.
#![allow(clippy::unwrap_used)]

use crate::common::adapter::{Added, RandomAdapter, Shape};
use crate::common::transformer::Norm;
use crate::common::{Buffer, Gaps, Rng};
use fused_lora::bottleneck::{Bottleneck, LayerNorm};
use fused_lora::cpu::{self, BottleneckBuffers};
use fused_lora::lora::{Activation, Layout, Weight};
use fused_lora::{Element, Error};
use half::{bf16, f16};

const EPSILON: f32 = 1e-5;

/// Random rows, one far from zero, one of small numbers, one of equal ones and one with a NaN.
fn rows<T: Element>(rng: &mut Rng, rows: usize, width: usize, gap: usize) -> Buffer<T> {
    let mut x = Buffer::<T>::random(rng, rows, width, gap);
    for row in 0..rows {
        for value in x.view_mut().row_mut(row) {
            let was = f64::from(value.to_f32());
            *value = T::from_f64([was, 100.0 + was, 1e-3 * was, -0.75, was][row % 5]);
        }
        if row == 4 {
            x.view_mut().row_mut(row)[width / 2] = T::from_f64(f64::NAN);
        }
    }
    x
}

fn check_norm<T: Element>(count: usize, width: usize, gap: usize) {
    let mut rng = Rng(17 + width as u64);
    let (x, norm) = (rows::<T>(&mut rng, count, width, gap), Norm::random(&mut rng, width, 0));
    let mut y = Buffer::<T>::poisoned(count, width, gap);
    let view = LayerNorm { weight: &norm.weight, bias: &norm.bias, epsilon: norm.epsilon };
    cpu::layer_norm(x.view(), &view, &mut y.view_mut()).unwrap();
    norm.agrees(&x, &y).unwrap_or_else(|e| panic!("{}, {count} x {width}, gap {gap}: {e}", T::DTYPE));
    y.assert_gaps_untouched();
}

#[test]
fn layer_norm_is_within_bounds() {
    // The last is shared among threads.
    for (count, width) in [(1, 1), (5, 3), (6, 16), (7, 100), (3, 1024), (40, 1000)] {
        for gap in [0, 3] {
            check_norm::<f32>(count, width, gap);
            check_norm::<f16>(count, width, gap);
            check_norm::<bf16>(count, width, gap);
        }
    }
}

/// A random adapter's view, its projections in one of two layouts.
fn with_view<T: Element, R>(
    random: &RandomAdapter<T>,
    layout: Layout,
    norm: Option<LayerNorm<'_>>,
    work: impl FnOnce(&Bottleneck<'_, T>) -> R,
) -> R {
    let turned = |m: &Buffer<T>| -> Buffer<T> {
        let mut out = Buffer::poisoned(m.cols, m.rows, 2);
        for i in 0..m.rows {
            for j in 0..m.cols {
                out.view_mut().row_mut(j)[i] = m.view().row(i)[j];
            }
        }
        out
    };
    let [down, up] = [&random.down, &random.up].map(turned);
    let weight = |stored, turned| match layout {
        Layout::OutIn => Weight::out_in(stored),
        Layout::InOut => Weight::in_out(turned),
    };
    let bias = random.shape.bias;
    work(&Bottleneck {
        norm,
        down: weight(random.down.view(), down.view()),
        down_bias: bias.then_some(&random.down_bias[..]),
        up: weight(random.up.view(), up.view()),
        up_bias: bias.then_some(&random.up_bias[..]),
        activation: random.shape.activation,
    })
}

fn check<T: Element>(tokens: usize, d: usize, width: usize, layout: Layout, bias: bool, gap: usize) {
    for activation in [Activation::Relu, Activation::GeluNew] {
        let (mut rng, multiprocessors, compute_capability) = (Rng(5 + d as u64), 1, None);
        let base = Shape {
            tokens,
            d,
            width,
            activation,
            bias,
            adds_input: false,
            residual: Added::InPlace,
            gaps: Gaps::beyond(gap),
            multiprocessors,
            compute_capability,
        };
        let what = format!("{}, {layout:?}, gap {gap}, {base:?}", T::DTYPE);
        let mut buffers = BottleneckBuffers::new();
        // Added to another matrix.
        let random = RandomAdapter::<T>::new(&mut rng, base);
        let copy = |of: &Buffer<T>| Buffer { data: of.data.clone(), ..*of };
        let mut y = copy(&random.residual);
        with_view(&random, layout, None, |view| {
            cpu::bottleneck_onto(view, random.x.view(), &mut y.view_mut(), &mut buffers).unwrap();
        });
        random.expected().assert_close(y.view(), random.steps(), &format!("onto, {what}"));
        y.assert_gaps_untouched();
        // Behind the layer that computed its input, with what was left in the buffers.
        let random = RandomAdapter { shape: Shape { adds_input: true, residual: Added::None, ..base }, ..random };
        let mut y = copy(&random.x);
        with_view(&random, layout, None, |view| cpu::bottleneck(view, &mut y.view_mut(), &mut buffers).unwrap());
        random.expected().assert_close(y.view(), random.steps(), &format!("behind, {what}"));
        y.assert_gaps_untouched();
    }
}

#[test]
fn adapters_are_within_bounds_for_every_shape_and_type() {
    for layout in [Layout::OutIn, Layout::InOut] {
        for (tokens, d, width) in [(1, 1, 1), (1, 64, 3), (3, 5, 9), (17, 130, 16), (70, 96, 40), (2, 40, 600)] {
            for (bias, gap) in [(true, 0), (false, 3)] {
                check::<f32>(tokens, d, width, layout, bias, gap);
                check::<f16>(tokens, d, width, layout, bias, gap);
                check::<bf16>(tokens, d, width, layout, bias, gap);
            }
        }
    }
}

/// Adapter^L is its LayerNorm and then the adapter of what that made, to the bit.
#[test]
fn an_adapter_with_a_norm_is_both_one_after_the_other() {
    let (tokens, d, width) = (5, 70, 12);
    let mut rng = Rng(3);
    let shape = Shape {
        tokens,
        d,
        width,
        activation: Activation::Relu,
        bias: true,
        adds_input: false,
        residual: Added::InPlace,
        gaps: Gaps::NONE,
        multiprocessors: 1,
        compute_capability: None,
    };
    let random = RandomAdapter::<bf16>::new(&mut rng, shape);
    let norm = Norm::random(&mut rng, d, 0);
    let norm = LayerNorm { weight: &norm.weight, bias: &norm.bias, epsilon: EPSILON };
    let mut buffers = BottleneckBuffers::new();
    let mut normed = Buffer::<bf16>::poisoned(tokens, d, 0);
    cpu::layer_norm(random.x.view(), &norm, &mut normed.view_mut()).unwrap();
    let run = |norm: Option<LayerNorm<'_>>, x: &Buffer<bf16>, buffers: &mut BottleneckBuffers<bf16>| {
        let mut y = Buffer { data: random.residual.data.clone(), ..random.residual };
        with_view(&random, Layout::InOut, norm, |view| {
            cpu::bottleneck_onto(view, x.view(), &mut y.view_mut(), buffers).unwrap();
        });
        y.data
    };
    let (together, apart) = (run(Some(norm), &random.x, &mut buffers), run(None, &normed, &mut buffers));
    assert_eq!(together, apart);
    assert_ne!(together, run(None, &random.x, &mut buffers), "the norm is not left out");

    let mut short = Buffer::<bf16>::poisoned(tokens, d - 1, 0);
    let refused =
        with_view(&random, Layout::InOut, None, |view| cpu::bottleneck(view, &mut short.view_mut(), &mut buffers));
    assert_eq!(refused, Err(Error::ShapeMismatch { operand: "x", expected: [tokens, d], actual: [tokens, d - 1] }));
}
