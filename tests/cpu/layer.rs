//! The layer against the float64 reference, element by element: every layout, type, shape and stride.
#![allow(clippy::unwrap_used)]

use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, shape, steps};
use approx::assert_abs_diff_eq;
use fused_lora::cpu::{self, Accumulate, SegmentGradient, SequentialBuffers};
use fused_lora::lora::{Activation, Epilogue, Layout, Residual};
use fused_lora::{Element, Error, reference};
use half::{bf16, f16};
use proptest::prelude::*;

fn shapes() -> Vec<Shape> {
    let mut shapes = vec![];
    for layout in [Layout::OutIn, Layout::InOut] {
        for tokens in [1, 2, 5, 11, 12, 16, 17, 47, 48, 64, 127, 128, 129, 300] {
            shapes.push(shape(tokens, 65, 130, layout, &[(0, 130, 3)]));
        }
        for rank in [1, 2, 4, 8, 16, 17, 40, 64, 130, 512] {
            shapes.push(shape(33, 70, 90, layout, &[(0, 90, rank)]));
        }
        // Small layers, which run on the calling thread; one and two tokens meet B as it is stored.
        for rank in [1, 2, 4, 8, 9, 15, 16, 17] {
            shapes.push(shape(1, 64, 64, layout, &[(0, 64, rank)]));
            shapes.push(shape(2, 16, 33, layout, &[(3, 30, rank), (0, 33, 1)]));
            shapes.push(shape(4, 5, 1, layout, &[(0, 1, rank)]));
        }
        shapes.push(shape(40, 600, 1100, layout, &[]));
        shapes.push(shape(130, 1030, 384, layout, &[(0, 128, 4), (256, 384, 7)]));
        shapes.push(shape(7, 96, 300, layout, &[(0, 300, 5), (0, 300, 2), (17, 18, 1)]));
        shapes.push(shape(3, 1, 1, layout, &[(0, 1, 1)]));
        shapes.push(shape(0, 8, 8, layout, &[(0, 8, 2)]));
    }
    let gapped: Vec<_> =
        shapes.iter().step_by(5).map(|s| Shape { gaps: Gaps::beyond(3), bias: false, ..s.clone() }).collect();
    shapes.into_iter().chain(gapped).collect()
}

fn check_forward<W: Element, X: Element>(seed: u64, shape: &Shape) {
    let mut rng = Rng(seed);
    let random = RandomLayer::<W>::new(&mut rng, shape);
    let segments = random.segments();
    let layer = random.layer(&segments);
    let x = shape.random::<X>(&mut rng, Operand::X, shape.tokens, shape.d_in);
    let expected = reference::forward(&layer, x.view());
    let plan = layer.plan_forward::<X>(shape.tokens).unwrap();
    let what = format!("{} weight, {} x, seed {seed}, {shape:?}, {plan}", W::DTYPE, X::DTYPE);

    let mut y = shape.poisoned::<X>(Operand::Y, shape.tokens, shape.d_out);
    let mut workspace = vec![f32::NAN; plan.workspace_len()];
    let mut t = vec![f32::NAN; shape.tokens * layer.total_rank()];
    let epilogue = Epilogue::default();
    cpu::forward_with(&layer, x.view(), &mut y.view_mut(), &epilogue, Some(&mut t), &mut workspace).unwrap();
    expected.assert_close(y.view(), steps(shape), &format!("fused, {what}"));
    y.assert_gaps_untouched();
    assert!(t.iter().all(|t| t.is_finite()), "T was not written out: {what}");

    let mut again = shape.poisoned::<X>(Operand::Y, shape.tokens, shape.d_out);
    cpu::forward(&layer, x.view(), &mut again.view_mut(), &mut workspace).unwrap();
    for i in 0..shape.tokens {
        assert_eq!(y.view().row(i), again.view().row(i), "row {i} differs between two runs: {what}");
    }

    if X::DTYPE == fused_lora::DType::F32 {
        let mut buffers = SequentialBuffers::new();
        let mut sequential = shape.poisoned::<X>(Operand::Y, shape.tokens, shape.d_out);
        cpu::forward_sequential(&layer, x.view(), &mut sequential.view_mut(), &epilogue, &mut buffers).unwrap();
        expected.assert_close(sequential.view(), steps(shape), &format!("sequential, {what}"));
        sequential.assert_gaps_untouched();
        if W::DTYPE == fused_lora::DType::F32 {
            let mut dense = shape.poisoned::<X>(Operand::Y, shape.tokens, shape.d_out);
            cpu::forward_dense_delta(&layer, x.view(), &mut dense.view_mut(), &epilogue, &mut buffers).unwrap();
            expected.assert_close(dense.view(), steps(shape), &format!("dense delta, {what}"));
        }
    }
}

#[test]
fn buffers_of_a_larger_layer_serve_a_smaller_one() {
    let mut buffers = SequentialBuffers::<f32, f32>::new();
    for (tokens, d_in, d_out) in [(40, 200, 300), (3, 64, 64), (20, 130, 65)] {
        let shape = shape(tokens, d_in, d_out, Layout::InOut, &[(0, d_out, 3)]);
        let mut rng = Rng(41);
        let random = RandomLayer::<f32>::new(&mut rng, &shape);
        let segments = random.segments();
        let layer = random.layer(&segments);
        let x = Buffer::<f32>::random(&mut rng, tokens, d_in, 0);
        let expected = reference::forward(&layer, x.view());
        for run in [cpu::forward_sequential::<f32, f32>, cpu::forward_dense_delta] {
            let mut y = Buffer::<f32>::poisoned(tokens, d_out, 0);
            run(&layer, x.view(), &mut y.view_mut(), &Epilogue::default(), &mut buffers).unwrap();
            expected.assert_close(y.view(), steps(&shape), "reused buffers");
        }
    }
}

#[test]
fn forward_is_within_bounds_for_every_shape_and_type() {
    for (seed, shape) in shapes().iter().enumerate() {
        let seed = seed as u64;
        check_forward::<f32, f32>(seed, shape);
        check_forward::<f16, f32>(seed, shape);
        check_forward::<bf16, f32>(seed, shape);
        check_forward::<f16, f16>(seed, shape);
        check_forward::<bf16, bf16>(seed, shape);
    }
}

fn check_backward<W: Element, X: Element>(seed: u64, shape: &Shape) {
    let mut rng = Rng(seed);
    let random = RandomLayer::<W>::new(&mut rng, shape);
    let segments = random.segments();
    let layer = random.layer(&segments);
    let x = shape.random::<X>(&mut rng, Operand::X, shape.tokens, shape.d_in);
    let dy = shape.random::<X>(&mut rng, Operand::Dy, shape.tokens, shape.d_out);
    let expected = reference::backward(&layer, x.view(), dy.view());
    let what = format!("{} weight, {} x, seed {seed}, {shape:?}", W::DTYPE, X::DTYPE);
    let steps = 2 * steps(shape);

    let mut t = vec![f32::NAN; shape.tokens * layer.total_rank()];
    let mut workspace = vec![f32::NAN; layer.plan_forward::<X>(shape.tokens).unwrap().workspace_len()];
    cpu::low_rank_input(&layer, x.view(), &mut t, &mut workspace).unwrap();
    let mut workspace = vec![f32::NAN; cpu::backward_workspace_len::<W, X>(&layer, shape.tokens).unwrap()];

    let start = 0.5f32;
    for (accumulate, with_dx) in [(Accumulate::Overwrite, true), (Accumulate::Add, false)] {
        let initial = if accumulate == Accumulate::Add { f64::from(start) } else { f64::NAN };
        let filled = |rows, cols| {
            let mut buffer = shape.poisoned::<f32>(Operand::Da, rows, cols);
            for i in 0..rows {
                buffer.view_mut().row_mut(i).fill(initial as f32);
            }
            buffer
        };
        let mut buffers: Vec<_> =
            segments.iter().map(|s| (filled(s.rank(), shape.d_in), filled(s.columns.len(), s.rank()))).collect();
        let mut gradients: Vec<_> =
            buffers.iter_mut().map(|(da, db)| SegmentGradient { da: da.view_mut(), db: db.view_mut() }).collect();
        let mut dx = shape.poisoned::<X>(Operand::Y, shape.tokens, shape.d_in);
        let mut dx_view = dx.view_mut();
        let dx_argument = with_dx.then_some(&mut dx_view);
        cpu::backward(&layer, x.view(), dy.view(), &t, dx_argument, &mut gradients, accumulate, &mut workspace)
            .unwrap();
        if with_dx {
            expected.dx.assert_close(dx.view(), steps, &format!("dx, {what}"));
            dx.assert_gaps_untouched();
        }
        for (i, (da, db)) in buffers.iter().enumerate() {
            for (name, got, judged) in [("dA", da, &expected.da[i]), ("dB", db, &expected.db[i])] {
                let mut judged = judged.clone();
                if accumulate == Accumulate::Add {
                    judged.value.data.iter_mut().for_each(|v| *v += initial);
                    judged.magnitude.data.iter_mut().for_each(|v| *v += initial);
                }
                judged.assert_close(got.view(), steps, &format!("{name} of segment {i}, {accumulate:?}, {what}"));
                got.assert_gaps_untouched();
            }
        }
    }
}

#[test]
fn backward_is_within_bounds_for_every_shape_and_type() {
    for (seed, shape) in shapes().iter().enumerate() {
        let seed = 1000 + seed as u64;
        check_backward::<f32, f32>(seed, shape);
        check_backward::<bf16, f32>(seed, shape);
        check_backward::<f16, f16>(seed, shape);
    }
}

fn check_merge<W: Element>(seed: u64, shape: &Shape) {
    let mut rng = Rng(seed);
    let mut random = RandomLayer::<W>::new(&mut rng, shape);
    let original = Buffer { data: random.weight.data.clone(), ..random.weight };
    let what = format!("{}, seed {seed}, {shape:?}", W::DTYPE);
    let expected = {
        let segments = random.segments();
        reference::merged_weight(&random.layer(&segments))
    };
    let factors = std::mem::take(&mut random.factors);
    let segments: Vec<_> = factors
        .iter()
        .zip(&shape.segments)
        .map(|((a, b, scale), &(start, end, _))| fused_lora::lora::Segment {
            columns: start..end,
            a: a.view(),
            b: b.view(),
            scale: *scale,
        })
        .collect();
    let mut weight = Buffer { data: original.data.clone(), ..original };
    let report = cpu::merge(&mut weight.view_mut(), shape.layout, &segments).unwrap();
    let mut worst = 0.0f64;
    for i in 0..weight.rows {
        for j in 0..weight.cols {
            let (got, exact) = (f64::from(weight.view().row(i)[j].to_f32()), expected.at(i, j));
            // One rounding: half a unit in the last place, plus float64's own error in the sum.
            let bound = W::DTYPE.unit_roundoff() * exact.abs() + W::DTYPE.smallest_step() + 1e-12;
            assert!((got - exact).abs() <= bound, "[{i}, {j}] {got} {exact}: {what}");
            worst = worst.max((got - exact).abs());
        }
    }
    assert_abs_diff_eq!(report.largest_rounding, worst, epsilon = 1e-12);
    weight.assert_gaps_untouched();

    let kept = original.view();
    cpu::unmerge(&mut weight.view_mut(), shape.layout, &segments, Some(kept)).unwrap();
    for i in 0..weight.rows {
        assert_eq!(weight.view().row(i), original.view().row(i), "unmerge with the original kept is exact: {what}");
    }
    cpu::merge(&mut weight.view_mut(), shape.layout, &segments).unwrap();
    cpu::unmerge(&mut weight.view_mut(), shape.layout, &segments, None).unwrap();
    for i in 0..weight.rows {
        for j in 0..weight.cols {
            let (got, was) = (weight.view().row(i)[j].to_f32(), original.view().row(i)[j].to_f32());
            let bound = 2.0 * W::DTYPE.unit_roundoff() * (f64::from(was).abs() + report.largest_change + 1e-30);
            assert!(f64::from(got - was).abs() <= 2.0 * bound, "[{i}, {j}] {got} {was}: {what}");
        }
    }
}

#[test]
fn merge_rounds_once_and_unmerge_restores() {
    for (seed, shape) in shapes().iter().enumerate() {
        check_merge::<f32>(seed as u64, shape);
        check_merge::<f16>(seed as u64, shape);
        check_merge::<bf16>(seed as u64, shape);
    }
}

#[test]
fn a_merge_that_overflows_writes_nothing() {
    let shape = Shape { gaps: Gaps::NONE, ..shape(1, 40, 70, Layout::InOut, &[(0, 70, 2)]) };
    let mut random = RandomLayer::<f16>::new(&mut Rng(5), &shape);
    random.weight.data[39 * 70 + 69] = f16::MAX;
    random.factors[0].0.data[39] = f16::ONE;
    random.factors[0].0.data[79] = f16::ONE;
    random.factors[0].1.data[138] = f16::ONE;
    random.factors[0].1.data[139] = f16::ONE;
    random.factors[0].2 = 1000.0;
    let mut weight = Buffer { data: random.weight.data.clone(), ..random.weight };
    let before = weight.data.clone();
    let (a, b, scale) = &random.factors[0];
    let segment = fused_lora::lora::Segment { columns: 0..70, a: a.view(), b: b.view(), scale: *scale };
    let error = cpu::merge(&mut weight.view_mut(), Layout::InOut, &[segment]).unwrap_err();
    assert!(matches!(error, Error::NonFiniteMerge { row: 39, column: 69, .. }), "{error}");
    assert_eq!(weight.data, before);
}

#[test]
fn the_epilogue_is_activation_then_residual() {
    for layout in [Layout::OutIn, Layout::InOut] {
        for tokens in [1, 50] {
            let shape = shape(tokens, 64, 300, layout, &[(100, 200, 4)]);
            let mut rng = Rng(77);
            let random = RandomLayer::<f32>::new(&mut rng, &shape);
            let segments = random.segments();
            let layer = random.layer(&segments);
            let x = Buffer::<f32>::random(&mut rng, tokens, 64, 0);
            let residual = Buffer::<f32>::random(&mut rng, tokens, 300, 5);
            let plain = reference::forward(&layer, x.view());
            let mut workspace = vec![f32::NAN; layer.plan_forward::<f32>(tokens).unwrap().workspace_len()];
            for activation in [Activation::Identity, Activation::Relu, Activation::GeluNew] {
                let mut expected = plain.clone();
                for (i, value) in expected.value.data.iter_mut().enumerate() {
                    let residual = residual.view().row(i / 300)[i % 300];
                    *value = reference::activation(activation, *value) + f64::from(residual);
                    expected.magnitude.data[i] = 2.0 * expected.magnitude.data[i] + f64::from(residual).abs();
                }
                let from = Epilogue { activation, residual: Residual::From(residual.view()) };
                let in_place = Epilogue { activation, residual: Residual::InPlace };
                let mut outputs = vec![Buffer::<f32>::poisoned(tokens, 300, 0)];
                cpu::forward_with(&layer, x.view(), &mut outputs[0].view_mut(), &from, None, &mut workspace).unwrap();
                let copy = || Buffer { data: residual.data.clone(), ..residual };
                let mut y = copy();
                cpu::forward_with(&layer, x.view(), &mut y.view_mut(), &in_place, None, &mut workspace).unwrap();
                outputs.push(y);
                let mut buffers = SequentialBuffers::new();
                let mut y = copy();
                cpu::forward_sequential(&layer, x.view(), &mut y.view_mut(), &in_place, &mut buffers).unwrap();
                outputs.push(y);
                let mut y = Buffer::<f32>::poisoned(tokens, 300, 0);
                cpu::forward_dense_delta(&layer, x.view(), &mut y.view_mut(), &from, &mut buffers).unwrap();
                outputs.push(y);
                for (i, y) in outputs.iter().enumerate() {
                    expected.assert_close(y.view(), steps(&shape), &format!("{activation:?}, variant {i}, {layout:?}"));
                }
            }
        }
    }
}

#[test]
fn columns_without_a_segment_are_the_base_product_bit_for_bit() {
    for tokens in [1, 20, 128] {
        let shape = shape(tokens, 256, 384, Layout::InOut, &[(0, 128, 4), (256, 384, 4)]);
        let mut rng = Rng(3);
        let random = RandomLayer::<f32>::new(&mut rng, &shape);
        let segments = random.segments();
        let x = Buffer::<f32>::random(&mut rng, tokens, 256, 0);
        let run = |segments| {
            let layer = random.layer(segments);
            let mut y = Buffer::<f32>::poisoned(tokens, 384, 0);
            let mut workspace = vec![0.0; layer.plan_forward::<f32>(tokens).unwrap().workspace_len()];
            cpu::forward(&layer, x.view(), &mut y.view_mut(), &mut workspace).unwrap();
            y
        };
        let (base, adapted) = (run(&[]), run(&segments));
        for i in 0..tokens {
            assert_eq!(base.view().row(i)[128..256], adapted.view().row(i)[128..256]);
            assert_ne!(base.view().row(i)[..128], adapted.view().row(i)[..128]);
        }
    }
}

#[test]
fn wrong_operands_are_refused_before_anything_is_written() {
    let shape = shape(4, 16, 24, Layout::OutIn, &[(0, 24, 2)]);
    let random = RandomLayer::<f32>::new(&mut Rng(9), &shape);
    let segments = random.segments();
    let layer = random.layer(&segments);
    let data = vec![0.0f32; 4096];
    let x = |rows, cols| fused_lora::MatrixRef::new(&data, rows, cols).unwrap();
    let mut workspace = vec![0.0; layer.plan_forward::<f32>(4).unwrap().workspace_len()];
    let needed = workspace.len();
    let mut y = Buffer::<f32>::poisoned(4, 24, 0);

    let wrong_x = cpu::forward(&layer, x(4, 15), &mut y.view_mut(), &mut workspace).unwrap_err();
    assert_eq!(wrong_x, Error::ShapeMismatch { operand: "x", expected: [4, 16], actual: [4, 15] });
    let wrong_y = cpu::forward(&layer, x(5, 16), &mut y.view_mut(), &mut workspace).unwrap_err();
    assert_eq!(wrong_y, Error::ShapeMismatch { operand: "y", expected: [5, 24], actual: [4, 24] });
    let short = cpu::forward(&layer, x(4, 16), &mut y.view_mut(), &mut workspace[1..]).unwrap_err();
    assert_eq!(short, Error::WorkspaceTooSmall { required: needed, available: needed - 1 });
    let mut t = vec![0.0; 7];
    let epilogue = Epilogue::default();
    let wrong_t =
        cpu::forward_with(&layer, x(4, 16), &mut y.view_mut(), &epilogue, Some(&mut t), &mut workspace).unwrap_err();
    assert_eq!(wrong_t, Error::LengthMismatch { operand: "T", expected: 8, actual: 7 });
    let none = cpu::backward(&layer, x(4, 16), x(4, 24), &data[..8], None, &mut [], Accumulate::Add, &mut []);
    assert_eq!(none.unwrap_err(), Error::SegmentCountMismatch { expected: 1, actual: 0 });
    assert!(y.data.iter().all(|v| v.is_nan()));
}

fn any_shape() -> impl Strategy<Value = Shape> {
    (1usize..150, 1usize..160, 1usize..200, any::<bool>(), any::<bool>(), 0usize..5).prop_flat_map(
        |(tokens, d_in, d_out, transposed, bias, gap)| {
            let segment = (0..d_out, 1..=d_out, 1usize..40)
                .prop_map(move |(start, len, rank)| (start, (start + len).min(d_out), rank));
            proptest::collection::vec(segment, 0..4).prop_map(move |segments| Shape {
                tokens,
                d_in,
                d_out,
                layout: if transposed { Layout::OutIn } else { Layout::InOut },
                segments,
                bias,
                gaps: Gaps::beyond(gap),
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layer_is_within_bounds(shape in any_shape(), seed in any::<u64>()) {
        check_forward::<f32, f32>(seed, &shape);
        check_forward::<f16, f16>(seed, &shape);
        check_backward::<f32, f32>(seed, &shape);
        check_merge::<bf16>(seed, &shape);
    }
}
