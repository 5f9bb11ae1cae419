//! Dependent launches: what a launch may read that the launches before it wrote, which may still be running.
#![allow(clippy::unwrap_used)]

use crate::common::device::stream;
use crate::common::rig::on_gpu;
use fused_lora::device::{DeviceLora, DeviceMatrix, DeviceSegment, DeviceTensor, Forward, Merge, Stream, Workspace};
use fused_lora::lora::Layout;
use fused_lora::{Error, LaunchError, Result};
use half::bf16;

const D: usize = 64;
const RANK: usize = 8;

struct Layer {
    weight: DeviceTensor<bf16>,
    a: DeviceTensor<bf16>,
    b: DeviceTensor<bf16>,
}

impl Layer {
    fn new(stream: &Stream) -> Self {
        let tensor = |rows: usize, cols: usize| {
            DeviceTensor::from_slice(stream, &vec![bf16::from_f32(0.125); rows * cols], rows, cols).unwrap()
        };
        Self { weight: tensor(D, D), a: tensor(RANK, D), b: tensor(D, RANK) }
    }

    fn segment(&self) -> DeviceSegment<'_, bf16> {
        DeviceSegment { columns: 0..D, a: self.a.view(), b: self.b.view(), scale: 1.0 }
    }

    /// Launches the layer, dependent or not. The first use of a kernel compiles it, not the launch.
    fn run(
        &self,
        stream: &Stream,
        dependent: bool,
        x: DeviceMatrix<'_, bf16>,
        y: &mut DeviceTensor<bf16>,
        workspace: &mut Option<Workspace>,
    ) -> Result<()> {
        let segments = [self.segment()];
        let layer = DeviceLora { weight: self.weight.view(), layout: Layout::OutIn, bias: None, segments: &segments };
        let mut forward = Forward::new(stream.device(), &layer, x.rows())?;
        if dependent {
            forward = forward.with_dependent_launch();
        }
        let workspace = match workspace {
            Some(workspace) => workspace,
            None => workspace.insert(Workspace::new(stream, forward.workspace())?),
        };
        forward.launch(stream, &layer, x, y.view_mut(), workspace)
    }
}

fn refused(result: Result<()>) -> String {
    match result {
        Err(Error::Launch(LaunchError::Fault { report, .. })) => report,
        other => panic!("a fault was expected: {other:?}"),
    }
}

#[test]
fn activations_of_the_launch_ahead_are_read_by_the_coherent_path() {
    let stream = stream();
    let layers = [Layer::new(&stream), Layer::new(&stream)];
    for tokens in [1, 4, 9, 40] {
        let x = DeviceTensor::from_slice(&stream, &vec![bf16::ONE; tokens * D], tokens, D).unwrap();
        let [mut between, mut y, mut expected] = [(); 3].map(|()| DeviceTensor::zeros(&stream, tokens, D).unwrap());
        let mut workspace = None;
        layers[0].run(&stream, false, x.view(), &mut between, &mut workspace).unwrap();
        layers[1].run(&stream, true, between.view(), &mut y, &mut workspace).unwrap();
        // And two launches on, whose reads may overlap with both.
        layers[0].run(&stream, true, y.view(), &mut between, &mut workspace).unwrap();
        layers[1].run(&stream, true, between.view(), &mut expected, &mut workspace).unwrap();
        assert!(expected.to_vec(&stream).unwrap().iter().all(|value| value.to_f32() > 1.0), "{tokens} tokens");
    }
}

#[test]
fn weights_are_not_read_while_their_writer_may_run() {
    if on_gpu() {
        return; // a GPU does not tell
    }
    let stream = stream();
    let (mut layer, other) = (Layer::new(&stream), Layer::new(&stream));
    let x = DeviceTensor::from_slice(&stream, &[bf16::ONE; D], 1, D).unwrap();
    let mut y = DeviceTensor::zeros(&stream, 1, D).unwrap();
    let mut workspace = None;
    other.run(&stream, false, x.view(), &mut y, &mut workspace).unwrap();

    let merge = Merge::<bf16>::new(stream.device(), D, D, Layout::OutIn).unwrap();
    let mut report = fused_lora::device::MergeReportBuffer::new(&stream).unwrap();
    let mut merged = |layer: &mut Layer| {
        let (a, b) = (&layer.a, &layer.b);
        let segment = DeviceSegment { columns: 0..D, a: a.view(), b: b.view(), scale: 1.0 };
        merge.merge(&stream, layer.weight.view_mut(), &[segment], &mut report).unwrap();
    };
    merged(&mut layer);
    let report = refused(layer.run(&stream, true, x.view(), &mut y, &mut workspace));
    assert!(report.contains("lora_merge") && report.contains("non-coherent"), "{report}");

    // A dependent launch between them changes nothing, since it waits for nothing before its wait; another launch does.
    merged(&mut layer);
    other.run(&stream, true, x.view(), &mut y, &mut workspace).unwrap();
    refused(layer.run(&stream, true, x.view(), &mut y, &mut workspace));
    merged(&mut layer);
    other.run(&stream, false, x.view(), &mut y, &mut workspace).unwrap();
    layer.run(&stream, true, x.view(), &mut y, &mut workspace).unwrap();
}
