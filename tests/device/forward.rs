//! The safe forward call: against the reference for any number of tokens, in graphs, on shared workspaces, and each way in
//! which it can be refused.
#![allow(clippy::unwrap_used)]

use crate::common::decode::LAYOUTS;
use crate::common::device::{OnDevice, TRAINING, shape, stream};
use crate::common::forward::expected;
use crate::common::rig::on_gpu;
use crate::common::small::{D_IN, D_OUT, RANK, Small};
use crate::common::{Buffer, RandomLayer, Rng, Shape, steps};
use fused_lora::device::{
    Decode, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceMatrixMut, DeviceOutput, DeviceResidual, DeviceSegment,
    Forward, ForwardOptions, Graph, Stream, Workspace,
};
use fused_lora::lora::{Activation, Layout};
use fused_lora::plan::lora::MAX_TOKENS;
use fused_lora::plan::lora::Plan;
use fused_lora::reference;
use fused_lora::{ComputePath, DType, Element, Error, Result, WorkspaceLayout};
use half::{bf16, f16};

/// What is added to the product's output.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Added {
    Nothing,
    InPlace,
    Apart,
}

fn total_rank(shape: &Shape) -> usize {
    shape.segments.iter().map(|s| s.2).sum()
}

/// Plans, launches several times on one workspace, and holds each result against the reference.
fn check<T: Element>(seed: u64, shape: &Shape, activation: Activation, kind: Added) -> Plan {
    let stream = stream();
    let mut rng = Rng(seed);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let x = Buffer::<T>::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
    let added = Buffer::<T>::random(&mut rng, shape.tokens, shape.d_out, shape.gap);
    let added = (kind != Added::Nothing).then_some(&added);
    let expected = expected(&random, &x, activation, added, None);
    let apart = added.filter(|_| kind == Added::Apart);
    let mut on_device = OnDevice::new(&stream, &random, &x, activation, apart);
    let forward = on_device.with(|layer, _, _, _| Forward::new(stream.device(), layer, shape.tokens)).unwrap();
    let mut workspace = Workspace::new(&stream, forward.workspace()).unwrap();
    for launch in 0..3 {
        match added.filter(|_| kind == Added::InPlace) {
            Some(added) => on_device.upload_y(&stream, added),
            None => on_device.poison_y(&stream),
        }
        on_device
            .with(|layer, x, residual, y| {
                let residual = if kind == Added::InPlace { DeviceResidual::InPlace } else { residual };
                forward.launch(&stream, layer, x, residual, y, &mut workspace)
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
        for tokens in [1, MAX_TOKENS, 17, 100] {
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
        check::<f32>(3, &shape(MAX_TOKENS, layout), Activation::Identity, Added::Apart);
        check::<bf16>(
            4,
            &Shape { d_in: 33, d_out: 41, gap: 3, ..shape(20, layout) },
            Activation::Identity,
            Added::Apart,
        );
        check::<bf16>(
            5,
            &Shape { segments: vec![], bias: false, ..shape(18, layout) },
            Activation::Identity,
            Added::InPlace,
        );
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
        let x = Buffer::random(&mut rng, tokens, shape.d_in, shape.gap);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        let mut t = Buffer::<bf16>::poisoned(tokens, total_rank(&shape), 5);
        let mut on = DeviceBuffer::from_slice(&stream, &t.data)?;
        let mut kept = Buffer::poisoned(0, 0, 0);
        for keeps in [true, false] {
            on_device.poison_y(&stream);
            on_device.with(|layer, x, residual, y| {
                let forward = Forward::with_options(stream.device(), layer, tokens, TRAINING)?;
                assert!(matches!(forward.plan(), Plan::Forward(_)), "{}", forward.plan());
                let mut workspace = Workspace::new(&stream, forward.workspace())?;
                let t = DeviceMatrixMut::with_stride(on.as_mut_slice(), tokens, t.cols, t.stride)?;
                let output = DeviceOutput { y, t: keeps.then_some(t) };
                forward.launch(&stream, layer, x, residual, output, &mut workspace)
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
        let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::GeluNew, None);
        let (forward, mut workspace) = on_device.with(|layer, x, residual, y| {
            let forward = Forward::new(stream.device(), layer, shape.tokens)?;
            let mut workspace = Workspace::new(&stream, forward.workspace())?;
            forward.launch(&stream, layer, x, residual, y, &mut workspace)?;
            Ok::<_, Error>((forward, workspace))
        })?;
        let direct = on_device.y(&stream);
        let graph = on_device.with(|layer, x, residual, y| {
            Graph::capture(&stream, |stream| forward.launch(stream, layer, x, residual, y, &mut workspace))
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
        let other = Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
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
    ];
    let mut layers = vec![];
    for shape in &shapes {
        let random = RandomLayer::<f16>::new(&mut rng, shape);
        let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        let forward = on_device.with(|layer, _, _, _| Forward::new(stream.device(), layer, shape.tokens))?;
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
            let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
            on_device.upload_x(&stream, &x);
            let mut run = |workspace: &mut Workspace| -> Result<Buffer<f16>> {
                on_device.poison_y(&stream);
                on_device.with(|layer, x, residual, y| forward.launch(&stream, layer, x, residual, y, workspace))?;
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

/// One launch after the other with nothing in between, planned by either type.
#[test]
fn launches_in_a_row_need_nothing_in_between() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(83);
    let (few, many) = (shape(MAX_TOKENS, Layout::OutIn), shape(33, Layout::OutIn));
    let random = RandomLayer::<bf16>::new(&mut rng, &few);
    let wide = RandomLayer::<bf16>::new(&mut rng, &many);
    let x = [&few, &many].map(|shape| Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap));
    let mut first = OnDevice::new(&stream, &random, &x[0], Activation::Identity, None);
    let mut second = OnDevice::new(&stream, &wide, &x[1], Activation::Identity, None);
    let decode = first.with(|layer, _, _, _| Decode::new(stream.device(), layer, few.tokens))?;
    let forward = second.with(|layer, _, _, _| Forward::new(stream.device(), layer, many.tokens))?;
    for launches in 1..6 {
        let mut workspace = Workspace::new(&stream, decode.workspace().union(&forward.workspace()))?;
        first.poison_y(&stream);
        second.poison_y(&stream);
        for _ in 0..launches {
            first.with(|layer, x, residual, y| decode.launch(&stream, layer, x, residual, y, &mut workspace))?;
            second.with(|layer, x, residual, y| forward.launch(&stream, layer, x, residual, y, &mut workspace))?;
        }
        let what = format!("{launches} launches of each");
        for (random, x, on_device) in [(&random, &x[0], &first), (&wide, &x[1], &second)] {
            let y = on_device.y(&stream);
            expected(random, x, Activation::Identity, None, None).assert_close(y.view(), steps(&random.shape), &what);
        }
    }
    Ok(())
}

const TOKENS: usize = 17;

#[test]
fn what_cannot_be_planned_has_its_error() {
    let (small, other) = (Small::<f16>::new(), Small::new());
    let device = small.stream.device();
    let segments = [small.segment()];
    let layer = small.layer(&segments);
    let error = |layer: &DeviceLora<'_, f16>, tokens| Forward::new(device, layer, tokens).unwrap_err();
    assert_eq!(error(&layer, 0), Error::EmptyProblem { tokens: 0, d_in: D_IN, d_out: D_OUT });
    let elsewhere = error(&DeviceLora { weight: other.matrix(D_OUT, D_IN), ..layer }, TOKENS);
    assert!(matches!(elsewhere, Error::WrongDevice { operand: "weight", .. }), "{elsewhere}");
    let many = vec![small.segment(); 17];
    assert_eq!(error(&small.layer(&many), TOKENS), Error::TooManySegments { segments: 17, max: 16 });
    let infinite = [DeviceSegment { scale: f32::INFINITY, ..small.segment() }];
    assert_eq!(error(&small.layer(&infinite), TOKENS), Error::ScaleNotFinite { scale: f32::INFINITY });
    let path = ComputePath::Matrix;
    let crooked = DeviceLora { weight: small.raw(small.data.address() + 2, D_OUT, D_IN), ..layer };
    let options = ForwardOptions { path, ..ForwardOptions::default() };
    let refused = Forward::with_options(device, &crooked, 1, options).unwrap_err();
    assert!(matches!(refused, Error::NoMatrixInstructions { .. }), "{refused}");
}

#[test]
fn each_wrong_launch_has_its_error_and_launches_nothing() -> Result<()> {
    if on_gpu() {
        return Ok(()); // it takes two devices
    }
    let (small, other) = (Small::<f16>::new(), Small::new());
    let mut y = DeviceBuffer::<f16>::zeros(&small.stream, TOKENS * D_OUT)?;
    let mut t = DeviceBuffer::<f16>::zeros(&small.stream, TOKENS * RANK)?;
    let (y_address, t_address) = (y.address(), t.address());
    let segments = [small.segment()];
    let layer = small.layer(&segments);
    let plain = Forward::new(small.stream.device(), &layer, TOKENS)?;
    let saving = Forward::with_options(small.stream.device(), &layer, TOKENS, TRAINING)?;
    let mut workspace = Workspace::new(&small.stream, saving.workspace())?;
    let (x, none) = (small.matrix(TOKENS, D_IN), DeviceResidual::None);
    {
        let mut refused = |stream: &Stream, layer: &DeviceLora<'_, f16>, x, residual| {
            let y = DeviceMatrixMut::new(y.as_mut_slice(), TOKENS, D_OUT).unwrap();
            let t = DeviceMatrixMut::new(t.as_mut_slice(), TOKENS, RANK).unwrap();
            saving.launch(stream, layer, x, residual, DeviceOutput { y, t: Some(t) }, &mut workspace).unwrap_err()
        };
        let here = &small.stream;
        let is_elsewhere =
            |error: Error, operand| assert!(matches!(error, Error::WrongDevice { operand: o, .. } if o == operand));
        is_elsewhere(refused(&other.stream, &layer, x, none), "stream");
        is_elsewhere(refused(here, &layer, other.matrix(TOKENS, D_IN), none), "x");
        is_elsewhere(refused(here, &layer, x, DeviceResidual::From(other.matrix(TOKENS, D_OUT))), "residual");
        let short = Error::ShapeMismatch { operand: "x", expected: [TOKENS, D_IN], actual: [16, D_IN] };
        assert_eq!(refused(here, &layer, small.matrix(16, D_IN), none), short);
        let wide = DeviceResidual::From(small.matrix(TOKENS, 9));
        let wide_error = Error::ShapeMismatch { operand: "residual", expected: [TOKENS, D_OUT], actual: [TOKENS, 9] };
        assert_eq!(refused(here, &layer, x, wide), wide_error);
        let crooked = DeviceMatrix::new(small.data.slice(1..TOKENS * D_IN + 1), TOKENS, D_IN)?;
        let misaligned = |operand, address| Error::Misaligned { operand, address, alignment: 16 };
        assert_eq!(refused(here, &layer, crooked, none), misaligned("x", crooked.address()));
        let crooked = DeviceMatrix::new(small.data.slice(1..D_OUT * D_IN + 1), D_OUT, D_IN)?;
        let refusal = refused(here, &DeviceLora { weight: crooked, ..layer }, x, none);
        assert_eq!(refusal, misaligned("weight", crooked.address()));

        for (output, address) in [("y", y_address), ("T", t_address)] {
            let overlap = |other| Error::Overlap { output, other };
            assert_eq!(refused(here, &layer, small.raw(address, TOKENS, D_IN), none), overlap("x"));
            let residual = DeviceResidual::From(small.raw(address, TOKENS, D_OUT));
            assert_eq!(refused(here, &layer, x, residual), overlap("residual"));
            let weight = small.raw(address, D_OUT, D_IN);
            assert_eq!(refused(here, &DeviceLora { weight, ..layer }, x, none), overlap("weight"));
            for (operand, segment) in [
                ("A", DeviceSegment { a: small.raw(address, RANK, D_IN), ..small.segment() }),
                ("B", DeviceSegment { b: small.raw(address, D_OUT, RANK), ..small.segment() }),
            ] {
                assert_eq!(refused(here, &small.layer(&[segment]), x, none), overlap(operand));
            }
        }
        let bare = refused(here, &small.layer(&[]), x, none);
        assert!(matches!(bare, Error::PlanMismatch { .. }), "{bare:?}");
    }

    let other_t = DeviceBuffer::<f16>::zeros(&other.stream, TOKENS * RANK)?;
    let required = saving.workspace();
    {
        // SAFETY: the views are used for calls that are refused.
        let writable = |device, address, rows, cols| unsafe {
            let data = fused_lora::device::DeviceSliceMut::<f16>::from_raw(device, address, rows * cols);
            DeviceMatrixMut::new(data, rows, cols).unwrap()
        };
        let here = small.stream.device();
        let into = |t, workspace: &mut Workspace| {
            let y = writable(here, y_address, TOKENS, D_OUT);
            saving.launch(&small.stream, &layer, x, none, DeviceOutput { y, t: Some(t) }, workspace).unwrap_err()
        };
        let wide = Error::ShapeMismatch { operand: "T", expected: [TOKENS, RANK], actual: [TOKENS, 3] };
        assert_eq!(into(writable(here, t_address, TOKENS, 3), &mut workspace), wide);
        let elsewhere = into(writable(other_t.device(), other_t.address(), TOKENS, RANK), &mut workspace);
        assert!(matches!(elsewhere, Error::WrongDevice { operand: "T", .. }), "{elsewhere}");
        let odd = into(writable(here, t_address + 1, TOKENS, RANK), &mut workspace);
        assert_eq!(odd, Error::Misaligned { operand: "T", address: t_address + 1, alignment: 2 });
        let on_y = into(writable(here, y_address, TOKENS, RANK), &mut workspace);
        assert_eq!(on_y, Error::Overlap { output: "y", other: "T" });

        let words = DeviceBuffer::<u64>::zeros(&small.stream, required.bytes().div_ceil(8))?;
        let inside = words.address();
        let mut placed = Workspace::in_buffer(&small.stream, words, required)?;
        let on_workspace = |other| Error::Overlap { output: "the workspace", other };
        assert_eq!(into(writable(here, inside, TOKENS, RANK), &mut placed), on_workspace("T"));
        let y = writable(here, inside, TOKENS, D_OUT);
        let refused = saving.launch(&small.stream, &layer, x, none, y, &mut placed).unwrap_err();
        assert_eq!(refused, on_workspace("y"));
        let y = writable(here, y_address, TOKENS, D_OUT);
        let inside = small.raw(inside, TOKENS, D_IN);
        let refused = saving.launch(&small.stream, &layer, inside, none, y, &mut placed).unwrap_err();
        assert_eq!(refused, on_workspace("x"));

        let y = writable(here, y_address, TOKENS, 7);
        let narrow = saving.launch(&small.stream, &layer, x, none, y, &mut workspace).unwrap_err();
        assert_eq!(narrow, Error::ShapeMismatch { operand: "y", expected: [TOKENS, D_OUT], actual: [TOKENS, 7] });
        let output = DeviceOutput {
            y: writable(here, y_address, TOKENS, D_OUT),
            t: Some(writable(here, t_address, TOKENS, RANK)),
        };
        let unplanned = plain.launch(&small.stream, &layer, x, none, output, &mut workspace).unwrap_err();
        assert_eq!(unplanned, Error::TrainingNotPlanned { what: "leaving T" });
    }

    let available = WorkspaceLayout { t_bytes: required.t_bytes - 1, ..required };
    let mut tiny = Workspace::new(&small.stream, available)?;
    let mut with = |workspace: &mut Workspace| {
        let y = DeviceMatrixMut::new(y.as_mut_slice(), TOKENS, D_OUT).unwrap();
        saving.launch(&small.stream, &layer, x, none, y, workspace)
    };
    assert_eq!(with(&mut tiny).unwrap_err(), Error::DeviceWorkspaceTooSmall { required, available });
    let mut elsewhere = Workspace::new(&other.stream, required)?;
    assert!(matches!(with(&mut elsewhere), Err(Error::WrongDevice { operand: "workspace", .. })));
    assert!(small.stream.device().take_counters().is_none(), "nothing was launched");
    with(&mut workspace)
}

#[test]
fn an_x_of_any_alignment_has_a_plan_of_its_own() -> Result<()> {
    let small = Small::<f16>::new();
    let segments = [small.segment()];
    let layer = small.layer(&segments);
    let options = ForwardOptions { any_x: true, ..ForwardOptions::default() };
    let forward = Forward::with_options(small.stream.device(), &layer, TOKENS, options)?;
    assert!(forward.plan().launch().kernel.ends_with("_any"), "{}", forward.plan());
    let mut workspace = Workspace::new(&small.stream, forward.workspace())?;
    let mut y = DeviceBuffer::from_slice(&small.stream, &[f16::NAN; TOKENS * D_OUT])?;
    let x = DeviceMatrix::new(small.data.slice(1..TOKENS * D_IN + 1), TOKENS, D_IN)?;
    let out = DeviceMatrixMut::new(y.as_mut_slice(), TOKENS, D_OUT)?;
    forward.launch(&small.stream, &layer, x, DeviceResidual::None, out, &mut workspace)?;
    assert_eq!(y.to_vec(&small.stream)?, [f16::ZERO; TOKENS * D_OUT]);
    Ok(())
}
