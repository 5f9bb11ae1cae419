//! Dropout on the CPU backend: against the float64 reference, one mask forward and backward, the same bits on any number
//! of threads, and the mask that the kernels make.
#![allow(clippy::unwrap_used)]

use crate::common::decode::LAYOUTS;
use crate::common::device::{OnDevice, device};
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, steps};
use fused_lora::cpu::{self, Accumulate, Input, SegmentGradient};
use fused_lora::device::{DeviceInput, Forward, ForwardOptions, Stream, Workspace};
use fused_lora::dropout::Dropout;
use fused_lora::lora::{Activation, Epilogue, Layout};
use fused_lora::reference::{self, Matrix64};
use fused_lora::{DType, Element};
use half::{bf16, f16};

/// More columns than a panel is deep, tiles that end in the middle of a mask's block, and ranks on either side of those
/// that a short product takes.
fn shape(tokens: usize, layout: Layout) -> Shape {
    let segments = vec![(0, 100, 4), (150, 300, 19), (90, 200, 1)];
    Shape { tokens, d_in: 533, d_out: 300, layout, segments, bias: true, gaps: Gaps::beyond(3) }
}

fn dropout() -> Dropout {
    Dropout::new(0.3, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(5).at(77)
}

/// A layer and what it is run on.
struct Case<W, X> {
    random: RandomLayer<W>,
    x: Buffer<X>,
    dy: Buffer<X>,
}

/// All that a forward pass and a backward pass leave.
struct Outputs<X> {
    y: Buffer<X>,
    t: Vec<f32>,
    dx: Buffer<X>,
    /// dA and dB of each segment.
    factors: Vec<(Buffer<f32>, Buffer<f32>)>,
}

impl<W: Element, X: Element> Case<W, X> {
    fn new(seed: u64, shape: &Shape) -> Self {
        let mut rng = Rng(seed);
        Self {
            random: RandomLayer::new(&mut rng, shape),
            x: shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in),
            dy: shape.random(&mut rng, Operand::Dy, shape.tokens, shape.d_out),
        }
    }

    /// dA and dB are added to `start`, or replace what is there.
    fn run(&self, dropout: Option<Dropout>, start: Option<f32>) -> Outputs<X> {
        let (shape, segments) = (&self.random.shape, self.random.segments());
        let layer = self.random.layer(&segments);
        let (tokens, input) = (shape.tokens, Input { x: self.x.view(), dropout });
        let filled = |rows, cols| {
            let mut buffer = shape.poisoned::<f32>(Operand::Da, rows, cols);
            (0..rows).for_each(|i| buffer.view_mut().row_mut(i).fill(start.unwrap_or(f32::NAN)));
            buffer
        };
        let mut out = Outputs {
            y: shape.poisoned(Operand::Y, tokens, shape.d_out),
            t: vec![f32::NAN; tokens * layer.total_rank()],
            dx: shape.poisoned(Operand::Y, tokens, shape.d_in),
            factors: segments
                .iter()
                .map(|s| (filled(s.rank(), shape.d_in), filled(s.columns.len(), s.rank())))
                .collect(),
        };
        let mut workspace = vec![f32::NAN; layer.plan_forward::<X>(tokens).unwrap().workspace_len()];
        let plain = Epilogue::default();
        cpu::forward_with(&layer, input, &mut out.y.view_mut(), &plain, Some(&mut out.t), &mut workspace).unwrap();
        let mut t = vec![f32::NAN; out.t.len()];
        cpu::low_rank_input(&layer, input, &mut t, &mut workspace).unwrap();
        assert_eq!(t, out.t, "T alone is T");

        let factors = out.factors.iter_mut();
        let mut gradients: Vec<_> =
            factors.map(|(da, db)| SegmentGradient { da: da.view_mut(), db: db.view_mut() }).collect();
        let mut workspace = vec![f32::NAN; cpu::backward_workspace_len::<W, X>(&layer, tokens).unwrap()];
        let accumulate = if start.is_some() { Accumulate::Add } else { Accumulate::Overwrite };
        let mut dx = out.dx.view_mut();
        cpu::backward(&layer, input, self.dy.view(), &out.t, Some(&mut dx), &mut gradients, accumulate, &mut workspace)
            .unwrap();
        out
    }

    fn check(&self, start: Option<f32>) {
        let (shape, segments, dropout) = (&self.random.shape, self.random.segments(), dropout());
        let layer = self.random.layer(&segments);
        let got = self.run(Some(dropout), start);
        let what = format!("{} weight, {} x, {start:?}, {shape:?}", W::DTYPE, X::DTYPE);

        let y = reference::forward_dropped(&layer, self.x.view(), Some(&dropout));
        y.assert_close(got.y.view(), steps(shape), &format!("y, {what}"));
        got.y.assert_gaps_untouched();
        self.check_t(&got.t, &what);

        let mut expected = reference::backward_dropped(&layer, self.x.view(), self.dy.view(), Some(&dropout));
        let steps = 2 * steps(shape);
        expected.dx.assert_close(got.dx.view(), steps, &format!("dx, {what}"));
        got.dx.assert_gaps_untouched();
        for judged in expected.da.iter_mut().chain(&mut expected.db) {
            let start = f64::from(start.unwrap_or(0.0));
            judged.value.data.iter_mut().for_each(|value| *value += start);
            judged.magnitude.data.iter_mut().for_each(|magnitude| *magnitude += start.abs());
        }
        for (i, (da, db)) in got.factors.iter().enumerate() {
            expected.da[i].assert_close(da.view(), steps, &format!("dA of segment {i}, {what}"));
            expected.db[i].assert_close(db.view(), steps, &format!("dB of segment {i}, {what}"));
            da.assert_gaps_untouched();
            db.assert_gaps_untouched();
        }
    }

    /// T holds 1/(1 − p), and nothing of s.
    fn check_t(&self, got: &[f32], what: &str) {
        let x_hat = reference::drop_out(&Matrix64::from_view(self.x.view()), Some(&dropout()));
        let ranks: usize = self.random.factors.iter().map(|(a, ..)| a.rows).sum();
        let mut column = 0;
        for (a, ..) in &self.random.factors {
            let a = Matrix64::from_view(a.view()).t();
            let (value, magnitude) = (x_hat.matmul(&a), x_hat.abs().matmul(&a.abs()));
            for (i, (value, magnitude)) in value.data.iter().zip(&magnitude.data).enumerate() {
                let got = f64::from(got[i / a.cols * ranks + column + i % a.cols]);
                let bound = 2.0 * (x_hat.cols + 2) as f64 * DType::F32.unit_roundoff() * magnitude;
                assert!((got - value).abs() <= bound, "T: {got}, expected {value}: {what}");
            }
            column += a.cols;
        }
    }
}

fn bits<X: Element>(buffer: &Buffer<X>) -> Vec<u32> {
    (0..buffer.rows)
        .flat_map(|i| buffer.view().row(i).iter().map(|v| v.to_f32().to_bits()).collect::<Vec<_>>())
        .collect()
}

fn assert_same<X: Element>(a: &Outputs<X>, b: &Outputs<X>, what: &str) {
    assert!(bits(&a.y) == bits(&b.y), "y: {what}");
    assert!(a.t == b.t, "T: {what}");
    assert!(bits(&a.dx) == bits(&b.dx), "dx: {what}");
    for (a, b) in a.factors.iter().zip(&b.factors) {
        assert!(bits(&a.0) == bits(&b.0) && bits(&a.1) == bits(&b.1), "dA, dB: {what}");
    }
}

#[test]
fn every_output_is_within_bounds_for_every_type() {
    for layout in LAYOUTS {
        for (tokens, start) in [(1, None), (17, Some(0.5)), (130, None), (300, Some(-2.0))] {
            let shape = shape(tokens, layout);
            Case::<f32, f32>::new(1, &shape).check(start);
            Case::<f16, f32>::new(2, &shape).check(start);
            Case::<bf16, f32>::new(3, &shape).check(start);
            Case::<f16, f16>::new(4, &shape).check(start);
            Case::<bf16, bf16>::new(5, &shape).check(start);
        }
    }
}

/// What the adapters add to y is linear in A, in B and in x, so ⟨dy, Δy⟩ = ⟨dA, A⟩ = ⟨dB, B⟩ = ⟨Δdx, x⟩ if all of them have
/// one mask.
#[test]
fn forward_and_backward_have_one_mask() {
    fn dot(a: &Matrix64, b: &Matrix64) -> f64 {
        a.data.iter().zip(&b.data).map(|(a, b)| a * b).sum()
    }
    fn less(a: &Buffer<f32>, b: &Buffer<f32>) -> Matrix64 {
        let mut difference = Matrix64::from_view(a.view());
        difference.add_at(0, -1.0, &Matrix64::from_view(b.view()));
        difference
    }
    for layout in LAYOUTS {
        let shape = shape(130, layout);
        let case = Case::<f32, f32>::new(6, &shape);
        let mut base = Case::<f32, f32>::new(6, &shape);
        base.random.factors.clear();
        let (got, plain) = (case.run(Some(dropout()), None), base.run(None, None));
        let expected = dot(&Matrix64::from_view(case.dy.view()), &less(&got.y, &plain.y));
        let factors = || case.random.factors.iter().zip(&got.factors);
        let [da, db] = [
            factors()
                .map(|((a, ..), (da, _))| dot(&Matrix64::from_view(a.view()), &Matrix64::from_view(da.view())))
                .sum(),
            factors()
                .map(|((_, b, _), (_, db))| dot(&Matrix64::from_view(b.view()), &Matrix64::from_view(db.view())))
                .sum(),
        ];
        let dx = dot(&less(&got.dx, &plain.dx), &Matrix64::from_view(case.x.view()));
        let size = Matrix64::from_view(case.dy.view()).abs();
        let tolerance = 1e-5 * dot(&size, &Matrix64::from_view(got.y.view()).abs());
        for (name, value) in [("A", da), ("B", db), ("x", dx)] {
            let error: f64 = value - expected;
            assert!(error.abs() <= tolerance, "{name}: {value}, expected {expected} ± {tolerance}, {layout:?}");
        }
        let other = case.run(Some(dropout().at(78)), None);
        let elsewhere = dot(&Matrix64::from_view(case.dy.view()), &less(&other.y, &plain.y));
        assert!((elsewhere - expected).abs() > 10.0 * tolerance, "another mask is told apart, {layout:?}");
    }
}

#[test]
fn threads_share_one_mask() {
    fn check<W: Element, X: Element>(layout: Layout) {
        let case = Case::<W, X>::new(7, &shape(130, layout));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.run(Some(dropout()), None))
        };
        let alone = on(1);
        for threads in [2, 5] {
            assert_same(&alone, &on(threads), &format!("{threads} threads, {layout:?}"));
        }
    }
    for layout in LAYOUTS {
        check::<f32, f32>(layout);
        check::<bf16, bf16>(layout);
    }
}

#[test]
fn a_probability_of_0_is_no_dropout_bit_for_bit() {
    for layout in LAYOUTS {
        for tokens in [1, 130] {
            let case = Case::<f32, f32>::new(8, &shape(tokens, layout));
            let (zero, none) = (case.run(Some(Dropout::new(0.0, 3).unwrap()), None), case.run(None, None));
            assert_same(&zero, &none, &format!("{tokens} tokens, {layout:?}"));
            assert!(bits(&none.y) != bits(&case.run(Some(dropout()), None).y), "dropout changes y");
        }
    }
}

#[test]
fn the_kernels_make_the_same_mask() {
    let stream = Stream::new(&device()).unwrap();
    for (tokens, layout) in [(1, Layout::OutIn), (40, Layout::InOut)] {
        let segments = vec![(0, 16, 4), (24, 40, 3)];
        let shape = Shape { tokens, d_in: 96, d_out: 40, layout, segments, bias: true, gaps: Gaps::CHUNKS };
        let case = Case::<f32, f32>::new(9, &shape);
        let mut on_device = OnDevice::new(&stream, &case.random, &case.x, Activation::Identity, None);
        let what = on_device.with(|layer, x, y| {
            let options = ForwardOptions { training: true, ..ForwardOptions::default() };
            let forward = Forward::with_options(stream.device(), layer, tokens, options).unwrap();
            let mut workspace = Workspace::new(&stream, forward.workspace()).unwrap();
            let input = DeviceInput { x, dropout: Some(dropout().into()), slot: None };
            forward.launch(&stream, layer, input, y, &mut workspace).unwrap();
            forward.plan().to_string()
        });
        let (y, here) = (on_device.y(&stream), case.run(Some(dropout()), None).y);
        let segments = case.random.segments();
        let layer = case.random.layer(&segments);
        let mut expected = reference::forward_through(&layer, case.x.view(), Some(&dropout()), DType::F32);
        expected.assert_close(y.view(), steps(&shape), &what);
        // The backends may be on either side of the reference.
        expected.value = Matrix64::from_view(here.view());
        expected.magnitude.data.iter_mut().chain(&mut expected.slack.data).for_each(|v| *v *= 2.0);
        expected.assert_close(y.view(), steps(&shape), &format!("as on the CPU, {what}"));
    }
}
