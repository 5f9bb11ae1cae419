//! The safe forward call with options: the path, dropout with an offset on the host and on the device.
#![allow(clippy::unwrap_used)]

use crate::common::device::{OnDevice, TRAINING, shape, stream};
use crate::common::forward::{expected, expected_in_tf32};
use crate::common::{Operand, RandomLayer, Rng, steps};
use fused_lora::device::{
    DeviceBuffer, DeviceDropout, DeviceInput, DeviceSlice, Forward, ForwardOptions, Graph, Workspace,
};
use fused_lora::dropout::Dropout;
use fused_lora::lora::{Activation, Layout};
use fused_lora::plan::lora::MAX_TOKENS;
use fused_lora::{ComputePath, DType, Error, Result};
use half::bf16;

#[test]
fn a_path_is_taken_as_asked() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(6);
    let shape = shape(MAX_TOKENS, Layout::OutIn);
    let random = RandomLayer::<bf16>::new(&mut rng, &shape);
    let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
    let expected = expected(&random, &x, Activation::Identity, None, None);
    for path in [ComputePath::CudaCores, ComputePath::Matrix] {
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        let kernel = on_device.with(|layer, x, y| {
            let options = ForwardOptions { path, ..ForwardOptions::default() };
            let forward = Forward::with_options(stream.device(), layer, shape.tokens, options)?;
            let mut workspace = Workspace::new(&stream, forward.workspace())?;
            forward.launch(&stream, layer, x, y, &mut workspace)?;
            assert_eq!(forward.kernel().name(), forward.plan().launch().kernel);
            Ok::<_, Error>(forward.kernel().name().to_owned())
        })?;
        assert_eq!(kernel.contains("mma"), path == ComputePath::Matrix, "{kernel}");
        expected.assert_close(on_device.y(&stream).view(), steps(&shape), &kernel);
    }
    Ok(())
}

#[test]
fn tf32_is_taken_by_name_and_for_f32_alone() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(7);
    let options = ForwardOptions { path: ComputePath::Tf32, ..ForwardOptions::default() };
    for (tokens, name) in [(MAX_TOKENS, "lora_decode_rows_f32"), (40, "lora_forward_rows_mma_tf32")] {
        let shape = shape(tokens, Layout::OutIn);
        let random = RandomLayer::<f32>::new(&mut rng, &shape);
        let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
        let expected = expected_in_tf32(&random, &x, Activation::Identity, None, None);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        on_device.with(|layer, x, y| {
            let forward = Forward::with_options(stream.device(), layer, shape.tokens, options)?;
            assert!(forward.kernel().name().starts_with(name), "{}", forward.plan());
            let mut workspace = Workspace::new(&stream, forward.workspace())?;
            forward.launch(&stream, layer, x, y, &mut workspace)
        })?;
        expected.assert_close(on_device.y(&stream).view(), steps(&shape), name);

        let random = RandomLayer::<bf16>::new(&mut rng, &shape);
        let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
        let refused = OnDevice::new(&stream, &random, &x, Activation::Identity, None)
            .with(|layer, _, _| Forward::with_options(stream.device(), layer, shape.tokens, options).unwrap_err());
        assert!(matches!(refused, Error::NoMatrixInstructions { dtype: DType::Bf16, .. }), "{refused}");
    }
    Ok(())
}

/// Launches with an offset from the host, then in a graph whose replays count on the device.
#[test]
fn each_pass_drops_out_anew() -> Result<()> {
    let dropout = Dropout::new(0.5, 0xFEED_F00D_0123).unwrap().for_layer(2);
    for (tokens, layout) in [(1, Layout::OutIn), (100, Layout::InOut), (300, Layout::OutIn)] {
        let stream = stream();
        let mut rng = Rng(21);
        let shape = shape(tokens, layout);
        let random = RandomLayer::<bf16>::new(&mut rng, &shape);
        let x = shape.random(&mut rng, Operand::X, tokens, shape.d_in);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        let (forward, mut workspace) = on_device.with(|layer, _, _| {
            let forward = Forward::with_options(stream.device(), layer, tokens, TRAINING)?;
            let workspace = Workspace::new(&stream, forward.workspace())?;
            Ok::<_, Error>((forward, workspace))
        })?;
        let holds = |on_device: &OnDevice<bf16>, offset| {
            let dropout = dropout.at(offset);
            let expected = expected(&random, &x, Activation::Identity, None, Some(&dropout));
            let what = format!("offset {offset}, {}", forward.plan());
            expected.assert_close(on_device.y(&stream).view(), steps(&shape), &what);
        };
        for offset in [0, 7] {
            on_device.poison_y(&stream);
            on_device.with(|layer, x, y| {
                let input = DeviceInput { x, dropout: Some(dropout.at(offset).into()), slot: None };
                forward.launch(&stream, layer, input, y, &mut workspace)
            })?;
            holds(&on_device, offset);
        }
        let mut step = DeviceBuffer::from_slice(&stream, &[0u32])?;
        let graph = on_device.with(|layer, x, y| {
            let dropout = DeviceDropout { dropout: dropout.at(40), step: Some(step.as_slice()) };
            let input = DeviceInput { x, dropout: Some(dropout), slot: None };
            Graph::capture(&stream, |_| forward.launch(&stream, layer, input, y, &mut workspace))
        })?;
        for replay in [0, 1, 2] {
            step.upload(&stream, &[replay])?;
            on_device.poison_y(&stream);
            graph.replay(&stream)?;
            holds(&on_device, 40 + replay);
        }
    }
    Ok(())
}

#[test]
fn dropout_is_refused_where_it_was_not_planned_or_its_step_is_wrong() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(22);
    let shape = shape(MAX_TOKENS, Layout::OutIn);
    let random = RandomLayer::<bf16>::new(&mut rng, &shape);
    let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
    let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
    let steps = DeviceBuffer::from_slice(&stream, &[0u32, 0])?;
    let dropout = Dropout::new(0.1, 1)?;
    let mut refused = |options, step: Option<DeviceSlice<'_, u32>>| {
        on_device
            .with(|layer, x, y| {
                let forward = Forward::with_options(stream.device(), layer, shape.tokens, options)?;
                let mut workspace = Workspace::new(&stream, forward.workspace())?;
                let input = DeviceInput { x, dropout: Some(DeviceDropout { dropout, step }), slot: None };
                forward.launch(&stream, layer, input, y, &mut workspace)
            })
            .unwrap_err()
    };
    assert_eq!(refused(ForwardOptions::default(), None), Error::TrainingNotPlanned { what: "dropout" });
    let two = Error::LengthMismatch { operand: "dropout step", expected: 1, actual: 2 };
    assert_eq!(refused(TRAINING, Some(steps.as_slice())), two);
    Ok(())
}
