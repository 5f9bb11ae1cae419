//! The safe forward call: against the reference for any number of tokens, in graphs and on shared workspaces.
#![allow(clippy::unwrap_used)]

use crate::common::decode::LAYOUTS;
use crate::common::device::{OnDevice, TRAINING, shape, stream};
use crate::common::forward::{expected, on_the_way_out};
use crate::common::rig::on_gpu;
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, steps};
use fused_lora::device::{DeviceBuffer, DeviceMatrixMut, DeviceOutput, Forward, Graph, Workspace};
use fused_lora::lora::{Activation, Epilogue, Layout, Residual};
use fused_lora::plan::lora::MAX_TOKENS;
use fused_lora::plan::lora::Plan;
use fused_lora::reference;
use fused_lora::{DType, Element, Error, Result, WorkspaceLayout};
use half::{bf16, f16};

/// What is added to the product's output.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Added {
    Nothing,
    InPlace,
    Apart,
}

/// The same output, with its old contents as the residual.
fn in_place<T>(output: DeviceOutput<'_, T>) -> DeviceOutput<'_, T> {
    DeviceOutput { epilogue: Epilogue { residual: Residual::InPlace, ..output.epilogue }, ..output }
}

fn total_rank(shape: &Shape) -> usize {
    shape.segments.iter().map(|s| s.2).sum()
}

/// Plans, launches several times on one workspace, and holds each result against the reference.
fn check<T: Element>(seed: u64, shape: &Shape, activation: Activation, kind: Added) -> Plan {
    let stream = stream();
    let mut rng = Rng(seed);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let x = shape.random::<T>(&mut rng, Operand::X, shape.tokens, shape.d_in);
    let added = shape.random::<T>(&mut rng, Operand::Residual, shape.tokens, shape.d_out);
    let added = (kind != Added::Nothing).then_some(&added);
    let apart = added.filter(|_| kind == Added::Apart);
    let mut on_device = OnDevice::new(&stream, &random, &x, activation, apart);
    let forward = on_device.with(|layer, _, _| Forward::new(stream.device(), layer, shape.tokens)).unwrap();
    let expected = match forward.plan() {
        // T stays f32 in the decode kernels, so its rounding gives no slack.
        Plan::Decode(_) => {
            let segments = random.segments();
            on_the_way_out(reference::forward(&random.layer(&segments), x.view()), &random, activation, added)
        }
        Plan::Forward(_) => expected(&random, &x, activation, added, None),
    };
    let mut workspace = Workspace::new(&stream, forward.workspace()).unwrap();
    for launch in 0..3 {
        match added.filter(|_| kind == Added::InPlace) {
            Some(added) => on_device.upload_y(&stream, added),
            None => on_device.poison_y(&stream),
        }
        on_device
            .with(|layer, x, y| {
                let y = if kind == Added::InPlace { in_place(y) } else { y };
                forward.launch(&stream, layer, x, y, &mut workspace)
            })
            .unwrap();
        let y = on_device.y(&stream);
        let what = format!("launch {launch}, seed {seed}, {kind:?}, {shape:?}, {}", forward.plan());
        expected.assert_close(y.view(), steps(shape), &what);
        y.assert_gaps_untouched();
        if !on_gpu() {
            let counters = stream.device().take_counters().unwrap();
            assert!(counters.load_bytes > 0 && stream.device().take_counters().is_none(), "one launch: {what}");
        }
    }
    forward.plan().clone()
}

#[test]
fn one_call_for_any_number_of_tokens() {
    for layout in LAYOUTS {
        for tokens in [1, 3, 8, MAX_TOKENS, 17, 100] {
            let (decoded, seed) = (tokens <= MAX_TOKENS, tokens as u64);
            let plan = check::<bf16>(seed, &shape(tokens, layout), Activation::Identity, Added::Nothing);
            assert_eq!(matches!(plan, Plan::Decode(_)), decoded, "{plan}");
            check::<f16>(seed, &shape(tokens, layout), Activation::GeluNew, Added::Apart);
            check::<f16>(seed, &shape(tokens, layout), Activation::Relu, Added::InPlace);
        }
        let wide = Shape { d_in: 72, d_out: 264, segments: vec![(8, 200, 20)], ..shape(300, layout) };
        for plan in [
            check::<bf16>(7, &wide, Activation::GeluNew, Added::InPlace),
            check::<f16>(8, &wide, Activation::Identity, Added::Apart),
        ] {
            assert!(on_gpu() || matches!(&plan, Plan::Forward(plan) if plan.tensor_maps), "{plan}");
        }
        for tokens in [1, 3, 8, MAX_TOKENS] {
            check::<f32>(3, &shape(tokens, layout), Activation::Identity, Added::Nothing);
        }
        check::<f32>(3, &shape(MAX_TOKENS, layout), Activation::Identity, Added::Apart);
        check::<f16>(72, &shape(2, layout), Activation::Relu, Added::Apart);
        check::<bf16>(73, &shape(5, layout), Activation::GeluNew, Added::Apart);
        for tokens in [2, 20] {
            let odd = Shape { d_in: 33, d_out: 41, gaps: Gaps::beyond(3), ..shape(tokens, layout) };
            check::<bf16>(4, &odd, Activation::Identity, Added::Apart);
        }
        let base = Shape { segments: vec![], bias: false, ..shape(2, layout) };
        check::<f32>(75, &base, Activation::Identity, Added::Nothing);
        let base = Shape { segments: vec![], bias: false, ..shape(18, layout) };
        check::<bf16>(5, &base, Activation::Identity, Added::InPlace);
    }
}

/// T in its own buffer with gaps, for as many tokens as a decode kernel takes, and more.
#[test]
fn t_is_left_with_the_caller_who_asks_for_it() -> Result<()> {
    let stream = stream();
    for (tokens, layout) in [(1, Layout::OutIn), (MAX_TOKENS, Layout::InOut), (100, Layout::OutIn)] {
        let mut rng = Rng(11);
        let shape = Shape { segments: vec![(0, 16, 4), (24, 40, 17), (3, 9, 1)], ..shape(tokens, layout) };
        let random = RandomLayer::<bf16>::new(&mut rng, &shape);
        let x = shape.random(&mut rng, Operand::X, tokens, shape.d_in);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        let mut t = Buffer::<bf16>::poisoned(tokens, total_rank(&shape), 5);
        let mut on = DeviceBuffer::from_slice(&stream, &t.data)?;
        let mut kept = Buffer::poisoned(0, 0, 0);
        for keeps in [true, false] {
            on_device.poison_y(&stream);
            on_device.with(|layer, x, y| {
                let forward = Forward::with_options(stream.device(), layer, tokens, TRAINING)?;
                assert!(matches!(forward.plan(), Plan::Forward(_)), "{}", forward.plan());
                let mut workspace = Workspace::new(&stream, forward.workspace())?;
                let t = DeviceMatrixMut::with_stride(on.as_mut_slice(), tokens, t.cols, t.stride)?;
                let output = DeviceOutput { t: keeps.then_some(t), ..y };
                forward.launch(&stream, layer, x, output, &mut workspace)
            })?;
            let y = on_device.y(&stream);
            let what = format!("{tokens} tokens");
            expected(&random, &x, Activation::Identity, None, None).assert_close(y.view(), steps(&shape), &what);
            if keeps {
                kept = y;
                continue;
            }
            for row in 0..tokens {
                assert_eq!(kept.view().row(row), y.view().row(row), "y does not depend on who keeps T");
            }
        }
        t.data = on.to_vec(&stream)?;
        t.assert_gaps_untouched();
        let mut begin = 0;
        for (a, ..) in &random.factors {
            let exact = reference::low_rank_input(a.view(), x.view());
            for (row, j) in (0..tokens).flat_map(|row| (0..a.rows).map(move |j| (row, j))) {
                let (got, exact) = (f64::from(t.view().row(row)[begin + j].to_f32()), exact.at(row, j));
                let sums = 2.0 * shape.d_in as f64 * shape.d_in as f64 * DType::F32.unit_roundoff();
                assert!(
                    (got - exact).abs() <= 1.01 * DType::Bf16.unit_roundoff() * exact.abs() + sums,
                    "T[{row}, {}] is {got}, expected {exact}",
                    begin + j
                );
            }
            begin += a.rows;
        }
    }
    Ok(())
}

#[test]
fn a_replayed_graph_gives_the_same_bits() -> Result<()> {
    let stream = stream();
    for tokens in [3, 70] {
        let mut rng = Rng(81);
        let shape = Shape { d_in: 520, ..shape(tokens, Layout::OutIn) };
        let random = RandomLayer::<bf16>::new(&mut rng, &shape);
        let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::GeluNew, None);
        let (forward, mut workspace) = on_device.with(|layer, x, y| {
            let forward = Forward::new(stream.device(), layer, shape.tokens)?;
            let mut workspace = Workspace::new(&stream, forward.workspace())?;
            forward.launch(&stream, layer, x, y, &mut workspace)?;
            Ok::<_, Error>((forward, workspace))
        })?;
        let direct = on_device.y(&stream);
        let graph = on_device.with(|layer, x, y| {
            Graph::capture(&stream, |stream| forward.launch(stream, layer, x, y, &mut workspace))
        })?;
        drop(workspace);
        for _ in 0..3 {
            on_device.poison_y(&stream);
            graph.replay(&stream)?;
            let y = on_device.y(&stream);
            for row in 0..shape.tokens {
                assert_eq!(direct.view().row(row), y.view().row(row), "{}", forward.plan());
            }
        }
        // New values of x at the old address are what the graph reads.
        let other = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
        on_device.upload_x(&stream, &other);
        graph.replay(&stream)?;
        assert_ne!(direct.view().row(0), on_device.y(&stream).view().row(0));
    }
    Ok(())
}

/// Decode, forward, decode, on one workspace in which nothing is ever reset: what a launch leaves there, epochs, flags,
/// words, arrivals, must not be taken for the next one's. Every launch has an x of its own, so that T of another launch is
/// found out.
#[test]
fn decode_and_forward_take_turns_on_one_workspace() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(82);
    let shapes = [
        shape(3, Layout::OutIn),
        shape(40, Layout::OutIn),
        Shape { segments: vec![(0, 40, 9)], ..shape(16, Layout::InOut) },
        // One whose depth is shared, so that arrivals and partial sums are used as well.
        Shape { d_in: 1800, segments: vec![(8, 40, 20)], ..shape(17, Layout::InOut) },
        Shape { d_in: 1800, ..shape(8, Layout::OutIn) },
        Shape { segments: vec![], ..shape(130, Layout::OutIn) },
        shape(1, Layout::InOut),
        Shape { segments: vec![(0, 40, 9)], ..shape(1, Layout::InOut) },
        Shape { segments: vec![], ..shape(2, Layout::OutIn) },
        Shape { segments: vec![(8, 32, 2)], ..shape(8, Layout::InOut) },
    ];
    let mut layers = vec![];
    for shape in &shapes {
        let random = RandomLayer::<f16>::new(&mut rng, shape);
        let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        let forward = on_device.with(|layer, _, _| Forward::new(stream.device(), layer, shape.tokens))?;
        layers.push((random, on_device, forward));
    }
    let shares_depth = |plan: &Plan| plan.splits()[0] > 1;
    let decodes = |plan: &Plan| matches!(plan, Plan::Decode(_));
    assert!(layers.iter().any(|(.., f)| shares_depth(f.plan()) && !decodes(f.plan())), "no forward shares its depth");
    let room = layers.iter().fold(WorkspaceLayout::default(), |room, (.., f)| room.union(&f.workspace()));
    let mut shared = Workspace::new(&stream, room)?;
    for round in 0..3 {
        for (random, on_device, forward) in &mut layers {
            let shape = &random.shape;
            let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
            on_device.upload_x(&stream, &x);
            let mut run = |workspace: &mut Workspace| -> Result<Buffer<f16>> {
                on_device.poison_y(&stream);
                on_device.with(|layer, x, y| forward.launch(&stream, layer, x, y, workspace))?;
                Ok(on_device.y(&stream))
            };
            let mut own = Workspace::new(&stream, forward.workspace())?;
            let (alone, together) = (run(&mut own)?, run(&mut shared)?);
            let what = format!("round {round}, {}", forward.plan());
            expected(random, &x, Activation::Identity, None, None).assert_close(together.view(), steps(shape), &what);
            for row in 0..alone.rows {
                assert_eq!(alone.view().row(row), together.view().row(row), "row {row}, {what}");
            }
        }
    }
    Ok(())
}

/// One launch after the other with nothing in between, on a decode kernel and on a forward kernel.
#[test]
fn launches_in_a_row_need_nothing_in_between() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(83);
    let (few, many) = (shape(MAX_TOKENS, Layout::OutIn), shape(33, Layout::OutIn));
    let random = RandomLayer::<bf16>::new(&mut rng, &few);
    let wide = RandomLayer::<bf16>::new(&mut rng, &many);
    let x = [&few, &many].map(|shape| shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in));
    let mut first = OnDevice::new(&stream, &random, &x[0], Activation::Identity, None);
    let mut second = OnDevice::new(&stream, &wide, &x[1], Activation::Identity, None);
    let decode = first.with(|layer, _, _| Forward::new(stream.device(), layer, few.tokens))?;
    let forward = second.with(|layer, _, _| Forward::new(stream.device(), layer, many.tokens))?;
    for launches in 1..6 {
        let mut workspace = Workspace::new(&stream, decode.workspace().union(&forward.workspace()))?;
        first.poison_y(&stream);
        second.poison_y(&stream);
        for _ in 0..launches {
            first.with(|layer, x, y| decode.launch(&stream, layer, x, y, &mut workspace))?;
            second.with(|layer, x, y| forward.launch(&stream, layer, x, y, &mut workspace))?;
        }
        let what = format!("{launches} launches of each");
        for (random, x, on_device) in [(&random, &x[0], &first), (&wide, &x[1], &second)] {
            let y = on_device.y(&stream);
            expected(random, x, Activation::Identity, None, None).assert_close(y.view(), steps(&random.shape), &what);
        }
    }
    Ok(())
}

#[test]
fn a_residual_in_place_gives_the_bits_of_one_apart() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(91);
    for tokens in [2, 40] {
        let shape = shape(tokens, Layout::InOut);
        let random = RandomLayer::<f32>::new(&mut rng, &shape);
        let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
        let added = shape.random(&mut rng, Operand::Residual, shape.tokens, shape.d_out);
        let run = |is_in_place: bool| -> Result<Buffer<f32>> {
            let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, Some(&added));
            if is_in_place {
                on_device.upload_y(&stream, &added);
            }
            on_device.with(|layer, x, y| {
                let forward = Forward::new(stream.device(), layer, shape.tokens)?;
                let mut workspace = Workspace::new(&stream, forward.workspace())?;
                let y = if is_in_place { in_place(y) } else { y };
                forward.launch(&stream, layer, x, y, &mut workspace)
            })?;
            Ok(on_device.y(&stream))
        };
        let (apart, same) = (run(false)?, run(true)?);
        for row in 0..shape.tokens {
            assert_eq!(apart.view().row(row), same.view().row(row), "{tokens} tokens");
        }
    }
    Ok(())
}
