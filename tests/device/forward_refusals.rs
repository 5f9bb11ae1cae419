//! Each way in which the safe forward call can be refused: when it is planned, and when it is launched.
#![allow(clippy::unwrap_used)]

use crate::common::device::{TRAINING, device};
use crate::common::rig::on_gpu;
use crate::common::small::{D_IN, D_OUT, RANK, Small};
use fused_lora::device::{
    DeviceBuffer, DeviceLora, DeviceMatrix, DeviceMatrixMut, DeviceOutput, DeviceSegment, DeviceSlice, Forward,
    ForwardOptions, Stream, Workspace,
};
use fused_lora::lora::{Epilogue, Layout, Residual};
use fused_lora::plan::lora::MAX_TOKENS;
use fused_lora::{ComputePath, Element, Error, Result, WorkspaceLayout};
use half::f16;

/// A number of tokens that a forward kernel runs.
const TOKENS: usize = 17;
/// Numbers of tokens that a decode kernel and a forward kernel run.
const FEW_AND_MANY: [usize; 2] = [1, TOKENS];

fn added<M>(residual: Residual<M>) -> Epilogue<M> {
    Epilogue { residual, ..Epilogue::default() }
}

#[test]
fn each_wrong_layer_has_its_error() {
    FEW_AND_MANY.into_iter().for_each(each_wrong_layer);
}

fn each_wrong_layer(tokens: usize) {
    let (small, other) = (Small::<f32>::new(), Small::new());
    let device = small.stream.device();
    let good = small.segment();
    let refused = |segment: DeviceSegment<'_, f32>| {
        let segments = [segment];
        Forward::new(device, &small.layer(&segments), tokens).unwrap_err()
    };
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
    let error = |layer: DeviceLora<'_, f32>, tokens| Forward::new(device, &layer, tokens).unwrap_err();
    let bias = Error::LengthMismatch { operand: "bias", expected: D_OUT, actual: 3 };
    assert_eq!(error(DeviceLora { bias: Some(small.data.slice(0..3)), ..layer }, tokens), bias);
    // On a GPU, `other` is on the same device.
    if !on_gpu() {
        let is_elsewhere =
            |error: Error, operand| assert!(matches!(error, Error::WrongDevice { operand: o, .. } if o == operand));
        is_elsewhere(refused(DeviceSegment { a: other.matrix(RANK, D_IN), ..good.clone() }), "A");
        is_elsewhere(refused(DeviceSegment { b: other.matrix(D_OUT, RANK), ..good.clone() }), "B");
        is_elsewhere(error(DeviceLora { bias: Some(other.data.slice(0..D_OUT)), ..layer }, tokens), "bias");
        is_elsewhere(error(DeviceLora { weight: other.matrix(D_OUT, D_IN), ..layer }, tokens), "weight");
    }
    assert_eq!(error(layer, 0), Error::EmptyOperand { operand: "x", shape: [0, D_IN] });
    let many = vec![small.segment(); 17];
    assert_eq!(error(small.layer(&many), tokens), Error::TooManySegments { segments: 17, max: 16 });
    let stride = 1 << 31;
    // SAFETY: the view is used for a call that is refused.
    let wide = unsafe { DeviceSlice::<f32>::from_raw(device, 0x1000, 2 * stride) };
    let wide = DeviceMatrix::with_stride(wide, 2, 8, stride).unwrap();
    let too_large = error(DeviceLora { weight: wide, bias: None, layout: Layout::InOut, ..layer }, tokens);
    assert_eq!(too_large, Error::TooLarge { operand: "weight", value: stride });
}

#[test]
fn matrix_instructions_are_refused_for_a_misaligned_layer() {
    let small = Small::<f16>::new();
    let device = small.stream.device();
    let segments = [small.segment()];
    let layer = small.layer(&segments);
    let crooked = DeviceLora { weight: small.raw(small.data.address() + 2, D_OUT, D_IN), ..layer };
    let options = ForwardOptions { path: ComputePath::Matrix, ..ForwardOptions::default() };
    let refused = Forward::with_options(device, &crooked, 1, options).unwrap_err();
    assert!(matches!(refused, Error::NoMatrixInstructions { .. }), "{refused}");
}

#[test]
fn each_wrong_launch_has_its_error_and_launches_nothing() -> Result<()> {
    if on_gpu() {
        return Ok(()); // it takes two devices
    }
    FEW_AND_MANY.into_iter().try_for_each(each_wrong_launch)
}

fn each_wrong_launch(tokens: usize) -> Result<()> {
    let small = Small::<f32>::new();
    let mut y = DeviceBuffer::zeros(&small.stream, tokens * D_OUT)?;
    let y_address = y.address();
    let (other_stream, other) = (Stream::new(&device())?, Small::new());
    let segments = [small.segment()];
    let layer = small.layer(&segments);
    let forward = Forward::new(small.stream.device(), &layer, tokens)?;
    let mut workspace = Workspace::new(&small.stream, forward.workspace())?;
    let x = small.matrix(tokens, D_IN);
    {
        let mut refused = |stream: &Stream, layer: &DeviceLora<'_, f32>, x, residual| {
            let y = DeviceMatrixMut::new(y.as_mut_slice(), tokens, D_OUT).unwrap();
            let output = DeviceOutput { epilogue: added(residual), ..y.into() };
            forward.launch(stream, layer, x, output, &mut workspace).unwrap_err()
        };
        let (here, none) = (&small.stream, Residual::None);
        let is_elsewhere =
            |error: Error, operand| assert!(matches!(error, Error::WrongDevice { operand: o, .. } if o == operand));
        is_elsewhere(refused(&other_stream, &layer, x, none), "stream");
        is_elsewhere(refused(here, &layer, other.matrix(tokens, D_IN), none), "x");
        is_elsewhere(refused(here, &layer, x, Residual::From(other.matrix(tokens, D_OUT))), "residual");
        let x_shape = Error::ShapeMismatch { operand: "x", expected: [tokens, D_IN], actual: [tokens + 1, D_IN] };
        assert_eq!(refused(here, &layer, small.matrix(tokens + 1, D_IN), none), x_shape);
        let wide = Residual::From(small.matrix(tokens, 9));
        let residual_shape =
            Error::ShapeMismatch { operand: "residual", expected: [tokens, D_OUT], actual: [tokens, 9] };
        assert_eq!(refused(here, &layer, x, wide), residual_shape);

        let crooked = DeviceMatrix::new(small.data.slice(1..tokens * D_IN + 1), tokens, D_IN)?;
        let x_misaligned = Error::Misaligned { operand: "x", address: crooked.address(), alignment: 16 };
        assert_eq!(refused(here, &layer, crooked, none), x_misaligned);
        let crooked = DeviceMatrix::new(small.data.slice(1..D_OUT * D_IN + 1), D_OUT, D_IN)?;
        let weight_misaligned = Error::Misaligned { operand: "weight", address: crooked.address(), alignment: 16 };
        assert_eq!(refused(here, &DeviceLora { weight: crooked, ..layer }, x, none), weight_misaligned);

        let overlap = |other| Error::Overlap { output: "y", other };
        assert_eq!(refused(here, &layer, small.raw(y_address, tokens, D_IN), none), overlap("x"));
        let residual = Residual::From(small.raw(y_address, tokens, D_OUT));
        assert_eq!(refused(here, &layer, x, residual), overlap("residual"));
        let weight = small.raw(y_address, D_OUT, D_IN);
        assert_eq!(refused(here, &DeviceLora { weight, ..layer }, x, none), overlap("weight"));

        let bare = refused(here, &small.layer(&[]), x, none);
        assert!(matches!(bare, Error::PlanMismatch { .. }), "{bare:?}");
        let turned = DeviceLora { weight: small.matrix(D_IN, D_OUT), layout: Layout::InOut, ..layer };
        let turned = refused(here, &turned, x, none);
        assert!(turned.to_string().contains("InOut"), "{turned}");
    }
    let narrow = DeviceMatrixMut::new(y.as_mut_slice(), tokens, 7)?;
    let refused = forward.launch(&small.stream, &layer, x, narrow, &mut workspace).unwrap_err();
    assert_eq!(refused, Error::ShapeMismatch { operand: "y", expected: [tokens, D_OUT], actual: [tokens, 7] });
    let required = forward.workspace();
    let available = if tokens <= MAX_TOKENS {
        WorkspaceLayout { t_words: required.t_words - 1, ..required }
    } else {
        WorkspaceLayout { t_bytes: required.t_bytes - 1, ..required }
    };
    let mut tiny = Workspace::new(&small.stream, available)?;
    let mut with = |workspace: &mut Workspace| {
        let y = DeviceMatrixMut::new(y.as_mut_slice(), tokens, D_OUT).unwrap();
        forward.launch(&small.stream, &layer, x, y, workspace)
    };
    assert_eq!(with(&mut tiny).unwrap_err(), Error::DeviceWorkspaceTooSmall { required, available });
    let mut elsewhere = Workspace::new(&other.stream, required)?;
    assert!(matches!(with(&mut elsewhere), Err(Error::WrongDevice { operand: "workspace", .. })));
    assert!(small.stream.device().take_counters().is_none(), "nothing was launched");
    with(&mut workspace)
}

#[test]
fn each_wrong_launch_that_leaves_t_has_its_error() -> Result<()> {
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
    let (x, none) = (small.matrix(TOKENS, D_IN), Residual::None);
    {
        let mut refused = |stream: &Stream, layer: &DeviceLora<'_, f16>, x, residual| {
            let y = DeviceMatrixMut::new(y.as_mut_slice(), TOKENS, D_OUT).unwrap();
            let t = DeviceMatrixMut::new(t.as_mut_slice(), TOKENS, RANK).unwrap();
            let output = DeviceOutput { y, epilogue: added(residual), t: Some(t) };
            saving.launch(stream, layer, x, output, &mut workspace).unwrap_err()
        };
        let here = &small.stream;
        let is_elsewhere =
            |error: Error, operand| assert!(matches!(error, Error::WrongDevice { operand: o, .. } if o == operand));
        is_elsewhere(refused(&other.stream, &layer, x, none), "stream");
        is_elsewhere(refused(here, &layer, other.matrix(TOKENS, D_IN), none), "x");
        is_elsewhere(refused(here, &layer, x, Residual::From(other.matrix(TOKENS, D_OUT))), "residual");
        let short = Error::ShapeMismatch { operand: "x", expected: [TOKENS, D_IN], actual: [16, D_IN] };
        assert_eq!(refused(here, &layer, small.matrix(16, D_IN), none), short);
        let wide = Residual::From(small.matrix(TOKENS, 9));
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
            let residual = Residual::From(small.raw(address, TOKENS, D_OUT));
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
            let output = DeviceOutput { t: Some(t), ..y.into() };
            saving.launch(&small.stream, &layer, x, output, workspace).unwrap_err()
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
        // SAFETY: nothing else uses the memory.
        let mut placed = unsafe { Workspace::in_buffer(&small.stream, words, required) }?;
        let on_workspace = |other| Error::Overlap { output: "the workspace", other };
        assert_eq!(into(writable(here, inside, TOKENS, RANK), &mut placed), on_workspace("T"));
        let y = writable(here, inside, TOKENS, D_OUT);
        let refused = saving.launch(&small.stream, &layer, x, y, &mut placed).unwrap_err();
        assert_eq!(refused, on_workspace("y"));
        let y = writable(here, y_address, TOKENS, D_OUT);
        let inside = small.raw(inside, TOKENS, D_IN);
        let refused = saving.launch(&small.stream, &layer, inside, y, &mut placed).unwrap_err();
        assert_eq!(refused, on_workspace("x"));

        let y = writable(here, y_address, TOKENS, 7);
        let narrow = saving.launch(&small.stream, &layer, x, y, &mut workspace).unwrap_err();
        assert_eq!(narrow, Error::ShapeMismatch { operand: "y", expected: [TOKENS, D_OUT], actual: [TOKENS, 7] });
        let output = DeviceOutput {
            t: Some(writable(here, t_address, TOKENS, RANK)),
            ..writable(here, y_address, TOKENS, D_OUT).into()
        };
        let unplanned = plain.launch(&small.stream, &layer, x, output, &mut workspace).unwrap_err();
        assert_eq!(unplanned, Error::TrainingNotPlanned { what: "leaving T" });
    }

    let available = WorkspaceLayout { t_bytes: required.t_bytes - 1, ..required };
    let mut tiny = Workspace::new(&small.stream, available)?;
    let mut with = |workspace: &mut Workspace| {
        let y = DeviceMatrixMut::new(y.as_mut_slice(), TOKENS, D_OUT).unwrap();
        saving.launch(&small.stream, &layer, x, y, workspace)
    };
    assert_eq!(with(&mut tiny).unwrap_err(), Error::DeviceWorkspaceTooSmall { required, available });
    let mut elsewhere = Workspace::new(&other.stream, required)?;
    assert!(matches!(with(&mut elsewhere), Err(Error::WrongDevice { operand: "workspace", .. })));
    assert!(small.stream.device().take_counters().is_none(), "nothing was launched");
    with(&mut workspace)
}

#[test]
fn an_x_of_any_alignment_has_a_plan_of_its_own() -> Result<()> {
    unaligned::<f32>(1)?;
    unaligned::<f16>(TOKENS)
}

fn unaligned<T: Element>(tokens: usize) -> Result<()> {
    let small = Small::<T>::new();
    let segments = [small.segment()];
    let layer = small.layer(&segments);
    let options = ForwardOptions { unaligned_x: true, ..ForwardOptions::default() };
    let forward = Forward::with_options(small.stream.device(), &layer, tokens, options)?;
    assert!(forward.plan().launch().kernel.ends_with("_any"), "{}", forward.plan());
    let words = forward.workspace().bytes() / 8;
    let buffer = |len| DeviceBuffer::from_slice(&small.stream, &vec![u64::MAX; len]);
    // SAFETY: nothing else uses the memory.
    let too_short = unsafe { Workspace::in_buffer(&small.stream, buffer(words - 1)?, forward.workspace()) };
    assert!(matches!(too_short, Err(Error::BufferTooShort { .. })), "{too_short:?}");
    // SAFETY: nothing else uses the memory.
    let mut workspace = unsafe { Workspace::in_buffer(&small.stream, buffer(words)?, forward.workspace()) }?;
    let mut y = DeviceBuffer::from_slice(&small.stream, &vec![T::from_f64(f64::NAN); tokens * D_OUT])?;
    let x = DeviceMatrix::new(small.data.slice(1..tokens * D_IN + 1), tokens, D_IN)?;
    let out = DeviceMatrixMut::new(y.as_mut_slice(), tokens, D_OUT)?;
    forward.launch(&small.stream, &layer, x, out, &mut workspace)?;
    assert!(y.to_vec(&small.stream)?.iter().all(|y| y.to_f32() == 0.0));
    Ok(())
}
