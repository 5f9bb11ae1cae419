//! The safe backward call: forward and backward against float64, the golden vectors and finite differences, in graphs, on
//! shared workspaces, and each way in which it can be refused.
#![allow(clippy::unwrap_used)]

use crate::common::backward::{Asked, Given, factors, input, random, run};
use crate::common::decode::LAYOUTS;
use crate::common::device::stream;
use crate::common::golden::Golden;
use crate::common::rig::on_gpu;
use crate::common::{Buffer, Gaps, RandomLayer, Shape, steps};
use approx::{assert_abs_diff_eq, assert_relative_eq};
use fused_lora::device::{
    Backward, BackwardInput, BackwardOptions, BackwardOutput, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceMatrixMut,
    DeviceSegment, DeviceSliceMut, FactorGradient, Graph, Stream, Workspace,
};
use fused_lora::dropout::Dropout;
use fused_lora::lora::{Accumulate, Layout};
use fused_lora::reference;
use fused_lora::{ComputePath, DType, Element, Error, Result, WorkspaceLayout};
use half::{bf16, f16};

fn shape(tokens: usize, layout: Layout) -> Shape {
    Shape {
        tokens,
        d_in: 72,
        d_out: 48,
        layout,
        segments: vec![(0, 16, 4), (24, 48, 17)],
        bias: false,
        gaps: Gaps::NONE,
    }
}

/// All results within their bounds.
fn check<T: Element>(seed: u64, shape: &Shape, asked: &Asked) -> Given<T> {
    let (random, x, dy) = random::<T>(seed, shape);
    let given = run(&stream(), &random, &x, &dy, asked).unwrap();
    let what = format!("seed {seed}, {shape:?}, {asked:?}, {}", T::DTYPE);
    let times = asked.times.max(1) as f64;
    if asked.options.dx && times == 1.0 {
        let dx = Buffer::contiguous(given.dx.clone(), shape.tokens, shape.d_in);
        input(&random, &dy, asked.dropout.as_ref()).assert_close(dx.view(), steps(shape), &what);
    }
    // T and Q are rounded once to the operands' type, everything else is f32.
    let relative = 1.01 * T::DTYPE.unit_roundoff() + 2.0 * (2 * steps(shape)) as f64 * DType::F32.unit_roundoff();
    for (i, (expected, got)) in factors(&random, &x, &dy, asked.dropout.as_ref()).iter().zip(&given.factors).enumerate()
    {
        for ((name, (exact, size)), got) in ["dA", "dB"].iter().zip(expected).zip(got) {
            for (at, &got) in got.iter().enumerate() {
                let (exact, bound) = (times * exact.data[at], times * relative * size.data[at] + 1e-30);
                let error = (f64::from(got) - exact).abs();
                assert!(error <= bound, "{name}[{at}] of segment {i} is {got}, expected {exact} ± {bound}: {what}");
            }
        }
    }
    if asked.options.bias {
        for (column, &got) in given.bias.iter().enumerate() {
            let values = (0..shape.tokens).map(|row| f64::from(dy.view().row(row)[column].to_f32()));
            let (exact, size) = values.fold((0.0, 0.0), |(sum, size): (f64, f64), v| (sum + v, size + v.abs()));
            let bound = 2.0 * shape.tokens as f64 * DType::F32.unit_roundoff() * times * size;
            assert!((f64::from(got) - times * exact).abs() <= bound, "column {column} of the bias's: {what}");
        }
    }
    given
}

#[test]
fn both_passes_of_a_layer() {
    for layout in LAYOUTS {
        for tokens in [1, 17, 100] {
            let given = check::<bf16>(tokens as u64, &shape(tokens, layout), &Asked::default());
            assert_eq!(given.launches, 2);
            check::<f16>(tokens as u64, &shape(tokens, layout), &Asked::default());
        }
        check::<f32>(5, &shape(40, layout), &Asked::default());
        let odd = Shape { d_in: 33, d_out: 41, segments: vec![(3, 41, 3)], gaps: Gaps::beyond(3), ..shape(20, layout) };
        check::<bf16>(6, &odd, &Asked::default());
        check::<f32>(7, &odd, &Asked::default());
        let wide = Shape { d_in: 264, d_out: 328, segments: vec![(0, 328, 20), (5, 9, 1)], ..shape(260, layout) };
        check::<bf16>(8, &wide, &Asked::default());
    }
}

#[test]
fn only_what_is_wanted() {
    let options =
        |dx, bias| Asked { options: BackwardOptions { dx, bias, ..BackwardOptions::default() }, ..Asked::default() };
    let shape = shape(40, Layout::OutIn);
    let bare = Shape { segments: vec![], ..shape.clone() };
    let all = check::<f16>(11, &shape, &options(true, true));
    let no_dx = check::<f16>(11, &shape, &options(false, false));
    assert!(all.factors == no_dx.factors && no_dx.launches == 2);
    let (only_dx, only_bias) =
        (check::<f16>(11, &bare, &options(true, false)), check::<f16>(11, &bare, &options(false, true)));
    assert_eq!([only_dx.launches, only_bias.launches], [1, 1]);
    assert_eq!(check::<f16>(11, &bare, &options(true, true)).launches, 2);
}

/// The emulator counts each launch of a call, in their order.
#[test]
fn each_launch_is_counted() {
    if on_gpu() {
        return;
    }
    let (random, x, dy) = random::<bf16>(14, &shape(40, Layout::OutIn));
    let stream = stream();
    run(&stream, &random, &x, &dy, &Asked::default()).unwrap();
    let counted = stream.device().take_all_counters();
    let stored: Vec<_> = counted.iter().map(|counters| counters.store_bytes).collect();
    // T and Q have 16 and 32 columns in the workspace; dA and dB of ranks 4 and 17 are f32.
    let (kept, gradients) = (2 * 40 * 48, 4 * (21 * 72 + 16 * 4 + 24 * 17));
    assert_eq!(stored, [2 * 40 * (48 + 21) + kept, 2 * 40 * 72 + kept, gradients]);
    assert!(stream.device().take_all_counters().is_empty() && stream.device().take_counters().is_none());
}

#[test]
fn gradients_add_up_over_micro_batches() {
    let asked =
        Asked { times: 3, options: BackwardOptions { bias: true, ..BackwardOptions::default() }, ..Asked::default() };
    let [once, thrice] = [1, 3].map(|times| check::<f32>(12, &shape(33, Layout::InOut), &Asked { times, ..asked }));
    for (once, thrice) in once.dx.iter().zip(&thrice.dx) {
        assert!((3.0 * once - thrice).abs() <= 1e-5 * (1.0 + once.abs()), "dx adds up, too: {once}, {thrice}");
    }
}

/// ⟨dy, ∂y⟩ of the adapters is ⟨dA, A⟩ and ⟨dB, B⟩ if, and only if, both passes have the same mask.
#[test]
fn forward_and_backward_drop_the_same() {
    for layout in LAYOUTS {
        let shape = Shape { segments: vec![(0, 48, 5)], ..shape(50, layout) };
        let (random, x, dy) = random::<f32>(13, &shape);
        let at = |offset| Some(Dropout::new(0.4, 77).unwrap().for_layer(2).at(offset));
        // Two ranks of a data-parallel run take offsets of their own.
        let [plain, first, second] =
            [None, at(1), at(2)].map(|dropout| check::<f32>(13, &shape, &Asked { dropout, ..Asked::default() }));
        assert!(first.factors != second.factors && first.dx != second.dx && first.y != second.y);
        let base = reference::forward(&random.layer(&[]), x.view()).value.data;
        for given in [plain, first, second] {
            let along = |gradient: &[f32], factor: &Buffer<f32>| -> f64 {
                gradient.iter().zip(&factor.data).map(|(g, f)| f64::from(*g) * f64::from(*f)).sum()
            };
            let out: f64 =
                given.y.iter().zip(&base).zip(&dy.data).map(|((y, b), dy)| (f64::from(*y) - b) * f64::from(*dy)).sum();
            let [da, db] =
                [along(&given.factors[0][0], &random.factors[0].0), along(&given.factors[0][1], &random.factors[0].1)];
            assert_relative_eq!(da, out, epsilon = 2e-4, max_relative = 2e-4);
            assert_relative_eq!(db, out, epsilon = 2e-4, max_relative = 2e-4);
        }
    }
}

#[test]
fn dropout_in_every_type() {
    let dropout = Some(Dropout::new(0.3, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(5).at(77));
    for layout in LAYOUTS {
        check::<bf16>(14, &shape(70, layout), &Asked { dropout, ..Asked::default() });
        let options = BackwardOptions { path: ComputePath::CudaCores, ..BackwardOptions::default() };
        check::<f16>(15, &shape(19, layout), &Asked { dropout, options, ..Asked::default() });
    }
}

/// `linear.*`: PyTorch's y, dx, dA and dB, in both layouts.
#[test]
fn golden_linear_layers_and_their_gradients() {
    let golden = Golden::open();
    for case in ["a", "b", "c"] {
        let key = |name: &str| format!("linear.{case}.{name}");
        let operand = |name: &str| golden.f32(&key(name));
        let [x, dy, bias] = ["x", "dy", "bias"].map(operand);
        let (tokens, d_in, d_out) = (x.rows, x.cols, dy.cols);
        let scale = (golden.f64(&key("alpha")).1[0] / operand("A").rows as f64) as f32;
        for layout in LAYOUTS {
            let (w, [a, b]) = (operand("W"), ["A", "B"].map(operand));
            let segments = vec![(0, d_out, a.rows)];
            let weight = match layout {
                Layout::OutIn => w,
                Layout::InOut => {
                    let data = (0..d_in * d_out).map(|i| w.data[i % d_out * d_in + i / d_out]).collect();
                    Buffer::contiguous(data, d_in, d_out)
                }
            };
            let shape = Shape { tokens, d_in, d_out, layout, segments, bias: true, gaps: Gaps::NONE };
            let layer = RandomLayer { shape, weight, bias: bias.data.clone(), factors: vec![(a, b, scale)] };
            let options = BackwardOptions { unaligned_dy: true, ..BackwardOptions::default() };
            let given = run(&stream(), &layer, &x, &dy, &Asked { options, ..Asked::default() }).unwrap();
            golden.assert_close(&given.y, &key("y"));
            golden.assert_close(&given.dx, &key("dx"));
            golden.assert_close(&given.factors[0][0], &key("dA"));
            golden.assert_close(&given.factors[0][1], &key("dB"));
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let shape = Shape { d_in: 12, d_out: 8, segments: vec![(0, 8, 3)], ..shape(5, Layout::OutIn) };
    let (random_layer, x, dy) = random::<f32>(16, &shape);
    let given = run(&stream(), &random_layer, &x, &dy, &Asked::default()).unwrap();
    let loss = |layer: &RandomLayer<f32>, x: &Buffer<f32>| -> f64 {
        let y = run(&stream(), layer, x, &dy, &Asked::default()).unwrap().y;
        y.iter().zip(&dy.data).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum()
    };
    let h = 1.0 / 64.0;
    type Nudge<'a> = &'a dyn Fn(&mut RandomLayer<f32>, &mut Buffer<f32>, f32);
    let slope = |nudge: Nudge<'_>| {
        let [up, down] = [h, -h].map(|h| {
            let (mut layer, mut x, _) = random::<f32>(16, &shape);
            nudge(&mut layer, &mut x, h);
            loss(&layer, &x)
        });
        (up - down) / (2.0 * f64::from(h))
    };
    let close = |slope: f64, got: f32| assert_abs_diff_eq!(slope, f64::from(got), epsilon = 2e-3);
    for i in [0, 7, 35] {
        close(slope(&|layer, _, h| layer.factors[0].0.data[i] += h), given.factors[0][0][i]);
        close(slope(&|_, x, h| x.data[i] += h), given.dx[i]);
    }
    for i in [0, 13, 23] {
        close(slope(&|layer, _, h| layer.factors[0].1.data[i] += h), given.factors[0][1][i]);
    }
}

#[test]
fn the_same_bits_again_and_from_a_graph() -> Result<()> {
    let stream = stream();
    let shape = shape(130, Layout::OutIn);
    let (layer, x, dy) = random::<bf16>(17, &shape);
    let asked = Asked { dropout: Some(Dropout::new(0.1, 3)?), ..Asked::default() };
    let first = run(&stream, &layer, &x, &dy, &asked)?;
    assert!(first == run(&stream, &layer, &x, &dy, &asked)?);
    // The same two launches, captured.
    let [weight, x, dy] = [&layer.weight, &x, &dy].map(|m| DeviceBuffer::from_slice(&stream, &m.data));
    let (weight, x, dy) = (weight?, x?, dy?);
    let [a, b] = [&layer.factors[0].0, &layer.factors[0].1].map(|m| DeviceBuffer::from_slice(&stream, &m.data));
    let (a, b) = (a?, b?);
    let segments = [DeviceSegment {
        columns: 0..16,
        a: DeviceMatrix::new(a.as_slice(), 4, 72)?,
        b: DeviceMatrix::new(b.as_slice(), 16, 4)?,
        scale: 2.0,
    }];
    let on_device = DeviceLora {
        weight: DeviceMatrix::new(weight.as_slice(), 48, 72)?,
        layout: Layout::OutIn,
        bias: None,
        segments: &segments,
    };
    let backward = Backward::new(stream.device(), &on_device, 130)?;
    let mut workspace = Workspace::new(&stream, backward.workspace())?;
    let t = DeviceBuffer::from_slice(&stream, &vec![bf16::ONE; 130 * 4])?;
    let mut outputs = [4 * 72, 16 * 4].map(|n| DeviceBuffer::<f32>::zeros(&stream, n).unwrap());
    let mut dx = DeviceBuffer::<bf16>::zeros(&stream, 130 * 72)?;
    let input = BackwardInput {
        x: DeviceMatrix::new(x.as_slice(), 130, 72)?,
        dy: DeviceMatrix::new(dy.as_slice(), 130, 48)?,
        t: DeviceMatrix::new(t.as_slice(), 130, 4)?,
        dropout: None,
    };
    let launch = |stream: &Stream,
                  dx: &mut DeviceBuffer<bf16>,
                  [da, db]: &mut [DeviceBuffer<f32>; 2],
                  workspace: &mut Workspace| {
        let mut factors = [FactorGradient {
            da: DeviceMatrixMut::new(da.as_mut_slice(), 4, 72)?,
            db: DeviceMatrixMut::new(db.as_mut_slice(), 16, 4)?,
        }];
        let mut output = BackwardOutput {
            dx: Some(DeviceMatrixMut::new(dx.as_mut_slice(), 130, 72)?),
            dx_accumulate: Accumulate::Overwrite,
            factors: &mut factors,
            bias: None,
            accumulate: Accumulate::Overwrite,
        };
        backward.launch(stream, &on_device, &input, &mut output, workspace)
    };
    launch(&stream, &mut dx, &mut outputs, &mut workspace)?;
    let graph = Graph::capture(&stream, |stream| launch(stream, &mut dx, &mut outputs, &mut workspace))?;
    let all = |stream: &Stream, dx: &DeviceBuffer<bf16>, outputs: &[DeviceBuffer<f32>; 2]| -> Result<_> {
        Ok((dx.to_vec(stream)?, outputs[0].to_vec(stream)?, outputs[1].to_vec(stream)?))
    };
    let direct = all(&stream, &dx, &outputs)?;
    for _ in 0..2 {
        dx.as_mut_slice().fill(&stream, 0xff)?;
        outputs.iter_mut().try_for_each(|output| output.as_mut_slice().fill(&stream, 0xff))?;
        graph.replay(&stream)?;
        assert!(direct == all(&stream, &dx, &outputs)?, "{}", backward.plan());
    }
    Ok(())
}

const TOKENS: usize = 17;
const D_IN: usize = 16;
const D_OUT: usize = 8;
const RANK: usize = 4;

/// A 16 to 8 layer of rank 4 whose pass is made wrong in one way at a time.
#[test]
fn each_wrong_pass_has_its_error_and_launches_nothing() -> Result<()> {
    if crate::common::rig::on_gpu() {
        return Ok(()); // it takes two devices
    }
    let (stream, other) = (stream(), stream());
    let [data, elsewhere] = [&stream, &other].map(|stream| DeviceBuffer::<f16>::zeros(stream, 1024).unwrap());
    let results = DeviceBuffer::<f32>::zeros(&stream, 1024)?;
    let matrix = |rows, cols| DeviceMatrix::new(data.as_slice(), rows, cols).unwrap();
    let segment = || DeviceSegment { columns: 0..D_OUT, a: matrix(RANK, D_IN), b: matrix(D_OUT, RANK), scale: 1.0 };
    let segments = [segment()];
    let (weight, layout) = (matrix(D_OUT, D_IN), Layout::OutIn);
    let layer = DeviceLora { weight, layout, bias: None, segments: &segments };
    let options = BackwardOptions { bias: true, ..BackwardOptions::default() };
    let backward = Backward::with_options(stream.device(), &layer, TOKENS, options)?;
    let required = backward.workspace();
    let mut workspace = Workspace::new(&stream, required)?;
    let input =
        BackwardInput { x: matrix(TOKENS, D_IN), dy: matrix(TOKENS, D_OUT), t: matrix(TOKENS, RANK), dropout: None };

    /// Where a pass's results go: addresses, or nothing.
    #[derive(Clone, Copy)]
    struct Places {
        dx: Option<u64>,
        da: u64,
        db: u64,
        da_rows: usize,
        segments: usize,
        bias: Option<u64>,
        bias_len: usize,
    }
    let at = |elements: u64| results.address() + 4 * elements;
    let good = Places {
        dx: Some(at(0)),
        da: at(256),
        db: at(384),
        da_rows: RANK,
        segments: 1,
        bias: Some(at(512)),
        bias_len: D_OUT,
    };
    let attempt =
        |layer: &DeviceLora<'_, f16>, input: &BackwardInput<'_, f16>, places: Places, workspace: &mut Workspace| {
            let device = stream.device();
            // SAFETY: the memory is `results`' or the call is refused.
            let floats = |address, n| unsafe { DeviceSliceMut::<f32>::from_raw(device, address, n) };
            let factor = || FactorGradient {
                da: DeviceMatrixMut::new(floats(places.da, places.da_rows * D_IN), places.da_rows, D_IN).unwrap(),
                db: DeviceMatrixMut::new(floats(places.db, D_OUT * RANK), D_OUT, RANK).unwrap(),
            };
            let mut factors: Vec<_> = (0..places.segments).map(|_| factor()).collect();
            // SAFETY: likewise.
            let dx = |address| unsafe { DeviceSliceMut::<f16>::from_raw(device, address, TOKENS * D_IN) };
            let mut output = BackwardOutput {
                dx: places.dx.map(|address| DeviceMatrixMut::new(dx(address), TOKENS, D_IN).unwrap()),
                dx_accumulate: Accumulate::Overwrite,
                factors: &mut factors,
                bias: places.bias.map(|address| floats(address, places.bias_len)),
                accumulate: Accumulate::Overwrite,
            };
            backward.launch(&stream, layer, input, &mut output, workspace)
        };
    let mut refused = |layer: &DeviceLora<'_, f16>, input: &BackwardInput<'_, f16>, places| {
        attempt(layer, input, places, &mut workspace).unwrap_err()
    };

    let short = |operand, expected, actual| Error::ShapeMismatch { operand, expected, actual };
    let wrong = BackwardInput { dy: matrix(16, D_OUT), ..input };
    assert_eq!(refused(&layer, &wrong, good), short("dy", [TOKENS, D_OUT], [16, D_OUT]));
    let wrong = BackwardInput { t: matrix(TOKENS, 3), ..input };
    assert_eq!(refused(&layer, &wrong, good), short("T", [TOKENS, RANK], [TOKENS, 3]));
    let wrong = BackwardInput { x: DeviceMatrix::new(elsewhere.as_slice(), TOKENS, D_IN)?, ..input };
    assert!(matches!(refused(&layer, &wrong, good), Error::WrongDevice { operand: "x", .. }));
    let crooked = DeviceMatrix::new(data.slice(1..TOKENS * D_OUT + 1), TOKENS, D_OUT)?;
    let misaligned = Error::Misaligned { operand: "dy", address: crooked.address(), alignment: 16 };
    assert_eq!(refused(&layer, &BackwardInput { dy: crooked, ..input }, good), misaligned);

    let (dx, bias) = ("dx", "the bias's gradient");
    assert_eq!(refused(&layer, &input, Places { dx: None, ..good }), Error::OutputMissing { output: dx });
    assert_eq!(refused(&layer, &input, Places { bias: None, ..good }), Error::OutputMissing { output: bias });
    let long = Error::LengthMismatch { operand: bias, expected: D_OUT, actual: 9 };
    assert_eq!(refused(&layer, &input, Places { bias_len: 9, ..good }), long);
    let none = Error::SegmentCountMismatch { expected: 1, actual: 0 };
    assert_eq!(refused(&layer, &input, Places { segments: 0, ..good }), none);
    assert_eq!(refused(&layer, &input, Places { da_rows: 3, ..good }), short("dA", [RANK, D_IN], [3, D_IN]));
    let odd = Error::Misaligned { operand: "dA", address: good.da + 2, alignment: 4 };
    assert_eq!(refused(&layer, &input, Places { da: good.da + 2, ..good }), odd);

    let overlap = |output, other| Error::Overlap { output, other };
    assert_eq!(refused(&layer, &input, Places { dx: Some(data.address()), ..good }), overlap("dx", "weight"));
    assert_eq!(refused(&layer, &input, Places { db: data.address(), ..good }), overlap("dB", "weight"));
    assert_eq!(refused(&layer, &input, Places { db: good.da, ..good }), overlap("dB", "dA"));
    assert_eq!(refused(&layer, &input, Places { dx: good.bias, ..good }), overlap("the bias's gradient", "dx"));

    let narrow = [DeviceSegment { columns: 0..7, b: matrix(7, RANK), ..segment() }];
    let narrow = DeviceLora { segments: &narrow, ..layer };
    assert!(matches!(refused(&narrow, &input, good), Error::PlanMismatch { .. }), "its columns are planned as well");
    let unplanned = Backward::with_options(stream.device(), &layer, TOKENS, BackwardOptions { dx: false, ..options })?;
    assert_eq!(unplanned.plan().input.as_ref().unwrap().column_tiles, 0);

    let available = WorkspaceLayout { t_bytes: required.t_bytes - 1, ..required };
    let mut tiny = Workspace::new(&stream, available)?;
    let too_small = Error::DeviceWorkspaceTooSmall { required, available };
    assert_eq!(attempt(&layer, &input, good, &mut tiny).unwrap_err(), too_small);
    assert!(stream.device().take_counters().is_none(), "nothing was launched");
    attempt(&layer, &input, good, &mut workspace)
}
