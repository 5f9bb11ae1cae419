//! The safe decode call: against the reference, in graphs, and each way in which it can be refused.
#![allow(clippy::unwrap_used)]

use crate::common::device::{OnDevice, device, shape, stream};
use crate::common::forward::on_the_way_out;
use crate::common::rig::on_gpu;
use crate::common::small::{D_IN, D_OUT, RANK, Small};
use crate::common::{Buffer, RandomLayer, Rng, Shape, steps};
use fused_lora::WorkspaceLayout;
use fused_lora::device::{
    Decode, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceMatrixMut, DeviceResidual, DeviceSegment, DeviceSlice, Graph,
    Stream, Workspace,
};
use fused_lora::lora::{Activation, Layout};
use fused_lora::plan::lora::MAX_TOKENS;
use fused_lora::{Element, Error, Result, reference};
use half::{bf16, f16};

/// Plans, launches, and holds the result against the reference.
fn check<T: Element>(seed: u64, shape: &Shape, activation: Activation, residual: bool) {
    let stream = stream();
    let mut rng = Rng(seed);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let x = Buffer::<T>::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
    let added = residual.then(|| Buffer::<T>::random(&mut rng, shape.tokens, shape.d_out, shape.gap));
    let segments = random.segments();
    let expected = reference::forward(&random.layer(&segments), x.view());
    let expected = on_the_way_out(expected, &random, activation, added.as_ref());
    let mut on_device = OnDevice::new(&stream, &random, &x, activation, added.as_ref());
    let y = on_device.with(|layer, x, residual, y| {
        let decode = Decode::new(stream.device(), layer, shape.tokens).unwrap();
        let mut workspace = Workspace::new(&stream, decode.workspace()).unwrap();
        decode.launch(&stream, layer, x, residual, y, &mut workspace)
    });
    let y = y.map(|()| on_device.y(&stream)).unwrap();
    expected.assert_close(y.view(), steps(shape), &format!("seed {seed}, {shape:?}, {}", T::DTYPE));
    y.assert_gaps_untouched();
    if !on_gpu() {
        let counters = stream.device().take_counters().unwrap();
        assert!(counters.load_bytes > 0 && stream.device().take_counters().is_none());
    }
}

#[test]
fn decode_is_within_its_bounds() {
    for layout in [Layout::OutIn, Layout::InOut] {
        for tokens in [1, 3, 8, MAX_TOKENS] {
            check::<f32>(71, &shape(tokens, layout), Activation::Identity, false);
        }
        check::<f16>(72, &shape(2, layout), Activation::Relu, true);
        check::<bf16>(73, &shape(5, layout), Activation::GeluNew, true);
        check::<bf16>(74, &Shape { d_in: 33, d_out: 41, gap: 3, ..shape(2, layout) }, Activation::Identity, true);
        check::<f32>(75, &Shape { segments: vec![], bias: false, ..shape(2, layout) }, Activation::Identity, false);
    }
}

#[test]
fn a_replayed_graph_gives_the_same_bits_and_swaps_nothing() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(81);
    let shape = shape(3, Layout::OutIn);
    let random = RandomLayer::<bf16>::new(&mut rng, &shape);
    let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
    let mut on_device = OnDevice::new(&stream, &random, &x, Activation::GeluNew, None);
    let (decode, mut workspace) = on_device.with(|layer, x, residual, y| {
        let decode = Decode::new(stream.device(), layer, shape.tokens)?;
        let mut workspace = Workspace::new(&stream, decode.workspace())?;
        decode.launch(&stream, layer, x, residual, y, &mut workspace)?;
        Ok::<_, Error>((decode, workspace))
    })?;
    let direct = on_device.y(&stream);
    let graph = on_device.with(|layer, x, residual, y| {
        Graph::capture(&stream, |stream| decode.launch(stream, layer, x, residual, y, &mut workspace))
    })?;
    drop(workspace);
    for _ in 0..3 {
        on_device.poison_y(&stream);
        graph.replay(&stream)?;
        let y = on_device.y(&stream);
        for row in 0..shape.tokens {
            assert_eq!(direct.view().row(row), y.view().row(row));
        }
    }
    // New values of x at the old address are what the graph reads.
    let other = Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
    on_device.upload_x(&stream, &other);
    graph.replay(&stream)?;
    assert_ne!(direct.view().row(0), on_device.y(&stream).view().row(0));
    Ok(())
}

#[test]
fn plans_share_a_workspace_one_after_the_other() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(82);
    let shapes = [
        shape(3, Layout::OutIn),
        Shape { segments: vec![(0, 40, 9)], ..shape(1, Layout::InOut) },
        Shape { segments: vec![], ..shape(2, Layout::OutIn) },
        Shape { segments: vec![(8, 32, 2)], ..shape(8, Layout::InOut) },
    ];
    let mut layers = vec![];
    for shape in &shapes {
        let random = RandomLayer::<f16>::new(&mut rng, shape);
        let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
        let mut layer = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        let decode = layer.with(|layer, _, _, _| Decode::new(stream.device(), layer, shape.tokens))?;
        layers.push((layer, decode));
    }
    let room = layers.iter().fold(WorkspaceLayout::default(), |room, (_, decode)| room.union(&decode.workspace()));
    let mut shared = Workspace::new(&stream, room)?;
    for round in 0..3 {
        for (layer, decode) in &mut layers {
            let mut own = Workspace::new(&stream, decode.workspace())?;
            let mut run = |workspace: &mut Workspace| -> Result<Buffer<f16>> {
                layer.poison_y(&stream);
                layer.with(|layer, x, residual, y| decode.launch(&stream, layer, x, residual, y, workspace))?;
                Ok(layer.y(&stream))
            };
            let (alone, together) = (run(&mut own)?, run(&mut shared)?);
            for row in 0..alone.rows {
                assert_eq!(alone.view().row(row), together.view().row(row), "round {round}, {}", decode.plan());
            }
        }
    }
    Ok(())
}

#[test]
fn a_residual_may_be_the_output_itself() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(91);
    let shape = shape(2, Layout::InOut);
    let random = RandomLayer::<f32>::new(&mut rng, &shape);
    let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, shape.gap);
    let added = Buffer::random(&mut rng, shape.tokens, shape.d_out, shape.gap);
    let run = |in_place: bool| -> Result<Buffer<f32>> {
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, Some(&added));
        if in_place {
            on_device.upload_y(&stream, &added);
        }
        on_device.with(|layer, x, residual, y| {
            let decode = Decode::new(stream.device(), layer, shape.tokens)?;
            let mut workspace = Workspace::new(&stream, decode.workspace())?;
            let residual = if in_place { DeviceResidual::InPlace } else { residual };
            decode.launch(&stream, layer, x, residual, y, &mut workspace)
        })?;
        Ok(on_device.y(&stream))
    };
    let (apart, in_place) = (run(false)?, run(true)?);
    for row in 0..shape.tokens {
        assert_eq!(apart.view().row(row), in_place.view().row(row));
    }
    Ok(())
}

#[test]
fn each_wrong_layer_has_its_error() {
    let (small, other) = (Small::<f32>::new(), Small::new());
    let device = small.stream.device();
    let good = small.segment();
    let refused = |segment: DeviceSegment<'_, f32>| {
        let segments = [segment];
        Decode::new(device, &small.layer(&segments), 1).unwrap_err()
    };
    let is_elsewhere =
        |error: Error, operand| assert!(matches!(error, Error::WrongDevice { operand: o, .. } if o == operand));
    is_elsewhere(refused(DeviceSegment { a: other.matrix(RANK, D_IN), ..good.clone() }), "A");
    is_elsewhere(refused(DeviceSegment { b: other.matrix(D_OUT, RANK), ..good.clone() }), "B");

    let cases = [
        (DeviceSegment { columns: 4..9, ..good.clone() }, Error::SegmentOutOfRange { start: 4, end: 9, d_out: D_OUT }),
        (DeviceSegment { columns: 4..4, ..good.clone() }, Error::SegmentOutOfRange { start: 4, end: 4, d_out: D_OUT }),
        (DeviceSegment { a: small.matrix(0, D_IN), ..good.clone() }, Error::RankOutOfRange { rank: 0, max: 512 }),
        (DeviceSegment { a: small.matrix(513, 1), ..good.clone() }, Error::RankOutOfRange { rank: 513, max: 512 }),
        (
            DeviceSegment { a: small.matrix(RANK, 9), ..good.clone() },
            Error::ShapeMismatch { operand: "A", expected: [RANK, D_IN], actual: [RANK, 9] },
        ),
        (
            DeviceSegment { b: small.matrix(D_OUT, 3), ..good.clone() },
            Error::ShapeMismatch { operand: "B", expected: [D_OUT, RANK], actual: [D_OUT, 3] },
        ),
        (DeviceSegment { scale: f32::INFINITY, ..good.clone() }, Error::ScaleNotFinite { scale: f32::INFINITY }),
        (
            DeviceSegment { a: small.raw(0x1002, RANK, D_IN), ..good.clone() },
            Error::Misaligned { operand: "A", address: 0x1002, alignment: 4 },
        ),
    ];
    for (segment, expected) in cases {
        assert_eq!(refused(segment), expected);
    }

    let layer = small.layer(&[]);
    let error = |layer: DeviceLora<'_, f32>, tokens| Decode::new(device, &layer, tokens).unwrap_err();
    let bias = Error::LengthMismatch { operand: "bias", expected: D_OUT, actual: 3 };
    assert_eq!(error(DeviceLora { bias: Some(small.data.slice(0..3)), ..layer }, 1), bias);
    is_elsewhere(error(DeviceLora { bias: Some(other.data.slice(0..D_OUT)), ..layer }, 1), "bias");
    is_elsewhere(error(DeviceLora { weight: other.matrix(D_OUT, D_IN), ..layer }, 1), "weight");
    assert_eq!(error(layer, 17), Error::TooManyTokens { tokens: 17, max: 16 });
    assert_eq!(error(layer, 0), Error::EmptyProblem { tokens: 0, d_in: D_IN, d_out: D_OUT });
    let many = vec![small.segment(); 17];
    assert_eq!(error(small.layer(&many), 1), Error::TooManySegments { segments: 17, max: 16 });
    let stride = 1 << 31;
    // SAFETY: the view is used for a call that is refused.
    let wide = unsafe { DeviceSlice::<f32>::from_raw(device, 0x1000, 2 * stride) };
    let wide = DeviceMatrix::with_stride(wide, 2, 8, stride).unwrap();
    let too_large = error(DeviceLora { weight: wide, bias: None, layout: Layout::InOut, ..layer }, 1);
    assert_eq!(too_large, Error::TooLarge { operand: "weight", value: stride });
}

#[test]
fn each_wrong_launch_has_its_error_and_launches_nothing() -> Result<()> {
    if on_gpu() {
        return Ok(()); // it takes two devices
    }
    let small = Small::<f32>::new();
    let mut y = DeviceBuffer::zeros(&small.stream, D_OUT)?;
    let y_address = y.address();
    let (other_stream, other) = (Stream::new(&device())?, Small::new());
    let segments = [small.segment()];
    let layer = small.layer(&segments);
    let decode = Decode::new(small.stream.device(), &layer, 1)?;
    let mut workspace = Workspace::new(&small.stream, decode.workspace())?;
    let x = small.matrix(1, D_IN);
    {
        let mut refused = |stream: &Stream, layer: &DeviceLora<'_, f32>, x, residual| {
            let y = DeviceMatrixMut::new(y.as_mut_slice(), 1, D_OUT).unwrap();
            decode.launch(stream, layer, x, residual, y, &mut workspace).unwrap_err()
        };
        let (here, none) = (&small.stream, DeviceResidual::None);
        let is_elsewhere =
            |error: Error, operand| assert!(matches!(error, Error::WrongDevice { operand: o, .. } if o == operand));
        is_elsewhere(refused(&other_stream, &layer, x, none), "stream");
        is_elsewhere(refused(here, &layer, other.matrix(1, D_IN), none), "x");
        is_elsewhere(refused(here, &layer, x, DeviceResidual::From(other.matrix(1, D_OUT))), "residual");
        let x_shape = Error::ShapeMismatch { operand: "x", expected: [1, D_IN], actual: [2, D_IN] };
        assert_eq!(refused(here, &layer, small.matrix(2, D_IN), none), x_shape);
        let wide = DeviceResidual::From(small.matrix(1, 9));
        let residual_shape = Error::ShapeMismatch { operand: "residual", expected: [1, D_OUT], actual: [1, 9] };
        assert_eq!(refused(here, &layer, x, wide), residual_shape);

        let crooked = DeviceMatrix::new(small.data.slice(1..D_IN + 1), 1, D_IN)?;
        let x_misaligned = Error::Misaligned { operand: "x", address: crooked.address(), alignment: 16 };
        assert_eq!(refused(here, &layer, crooked, none), x_misaligned);
        let crooked = DeviceMatrix::new(small.data.slice(1..D_OUT * D_IN + 1), D_OUT, D_IN)?;
        let weight_misaligned = Error::Misaligned { operand: "weight", address: crooked.address(), alignment: 16 };
        assert_eq!(refused(here, &DeviceLora { weight: crooked, ..layer }, x, none), weight_misaligned);

        let overlap = |other| Error::Overlap { output: "y", other };
        assert_eq!(refused(here, &layer, small.raw(y_address, 1, D_IN), none), overlap("x"));
        let residual = DeviceResidual::From(small.raw(y_address, 1, D_OUT));
        assert_eq!(refused(here, &layer, x, residual), overlap("residual"));
        let weight = small.raw(y_address, D_OUT, D_IN);
        assert_eq!(refused(here, &DeviceLora { weight, ..layer }, x, none), overlap("weight"));

        let bare = refused(here, &small.layer(&[]), x, none);
        assert!(matches!(bare, Error::PlanMismatch { .. }), "{bare:?}");
        let turned = DeviceLora { weight: small.matrix(D_IN, D_OUT), layout: Layout::InOut, ..layer };
        let turned = refused(here, &turned, x, none);
        assert!(turned.to_string().contains("InOut"), "{turned}");
    }
    let narrow = DeviceMatrixMut::new(y.as_mut_slice(), 1, 7)?;
    let refused = decode.launch(&small.stream, &layer, x, DeviceResidual::None, narrow, &mut workspace).unwrap_err();
    assert_eq!(refused, Error::ShapeMismatch { operand: "y", expected: [1, D_OUT], actual: [1, 7] });
    let required = decode.workspace();
    let available = WorkspaceLayout { t_words: required.t_words - 1, ..required };
    let mut tiny = Workspace::new(&small.stream, available)?;
    let mut with = |workspace: &mut Workspace| {
        let y = DeviceMatrixMut::new(y.as_mut_slice(), 1, D_OUT).unwrap();
        decode.launch(&small.stream, &layer, x, DeviceResidual::None, y, workspace)
    };
    assert_eq!(with(&mut tiny).unwrap_err(), Error::DeviceWorkspaceTooSmall { required, available });
    let mut elsewhere = Workspace::new(&other.stream, required)?;
    assert!(matches!(with(&mut elsewhere), Err(Error::WrongDevice { operand: "workspace", .. })));
    assert!(small.stream.device().take_counters().is_none(), "nothing was launched");
    with(&mut workspace)
}

#[test]
fn an_x_of_any_alignment_has_a_plan_of_its_own() -> Result<()> {
    let small = Small::<f32>::new();
    let segments = [small.segment()];
    let layer = small.layer(&segments);
    let decode = Decode::for_any_x(small.stream.device(), &layer, 1)?;
    assert!(decode.plan().launch.kernel.ends_with("_any"), "{}", decode.plan());
    let words = decode.workspace().bytes() / 8;
    let buffer = |len| DeviceBuffer::from_slice(&small.stream, &vec![u64::MAX; len]);
    let too_short = Workspace::in_buffer(&small.stream, buffer(words - 1)?, decode.workspace());
    assert!(matches!(too_short, Err(Error::BufferTooShort { .. })), "{too_short:?}");
    let mut workspace = Workspace::in_buffer(&small.stream, buffer(words)?, decode.workspace())?;
    let mut y = DeviceBuffer::from_slice(&small.stream, &[f32::NAN; D_OUT])?;
    let x = DeviceMatrix::new(small.data.slice(1..D_IN + 1), 1, D_IN)?;
    let out = DeviceMatrixMut::new(y.as_mut_slice(), 1, D_OUT)?;
    decode.launch(&small.stream, &layer, x, DeviceResidual::None, out, &mut workspace)?;
    assert_eq!(y.to_vec(&small.stream)?, [0.0; D_OUT]);
    Ok(())
}
