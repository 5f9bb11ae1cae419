//! LoRA on a GPU, or on the emulator of one: a layer in bf16 for 8 tokens, in one launch.
//!
//!     cargo run --release --example 2_device_layer

mod shared;

use fused_lora::device::{DeviceLora, DeviceSegment, DeviceTensor, Forward, Stream, Workspace};
use fused_lora::lora::{Layout, LoraLinear, Segment, Weight};
use fused_lora::{Result, reference};
use half::bf16;
use shared::{largest_error, matrix, open_device, random};

const TOKENS: usize = 8;
const D_IN: usize = 128;
const D_OUT: usize = 96;
const RANK: usize = 4;
const SCALE: f32 = 16.0 / RANK as f32;

pub(crate) fn main() -> Result<()> {
    let (x, w0) = (random::<bf16>(1, TOKENS * D_IN), random::<bf16>(2, D_OUT * D_IN));
    let (a, b) = (random::<bf16>(3, RANK * D_IN), random::<bf16>(4, D_OUT * RANK));

    let device = open_device()?;
    let stream = Stream::new(&device)?;
    let upload = |from: &[bf16], rows, cols| DeviceTensor::from_slice(&stream, from, rows, cols);
    let (on_x, on_w0) = (upload(&x, TOKENS, D_IN)?, upload(&w0, D_OUT, D_IN)?);
    let (on_a, on_b) = (upload(&a, RANK, D_IN)?, upload(&b, D_OUT, RANK)?);
    let segments = [DeviceSegment { columns: 0..D_OUT, a: on_a.view(), b: on_b.view(), scale: SCALE }];
    let layer = DeviceLora { weight: on_w0.view(), layout: Layout::OutIn, bias: None, segments: &segments };

    // The plan and the workspace are kept from call to call; a call allocates nothing and does not wait.
    let forward = Forward::new(&device, &layer, TOKENS)?;
    let mut workspace = Workspace::new(&stream, forward.workspace())?;
    let mut y = DeviceTensor::zeros(&stream, TOKENS, D_OUT)?;
    forward.launch(&stream, &layer, on_x.view(), y.view_mut(), &mut workspace)?;
    let y = y.to_vec(&stream)?;

    let segments = [Segment { columns: 0..D_OUT, a: matrix(&a, RANK, D_IN), b: matrix(&b, D_OUT, RANK), scale: SCALE }];
    let weight = Weight::out_in(matrix(&w0, D_OUT, D_IN));
    let layer = LoraLinear { weight, bias: None, segments: &segments };
    let error = largest_error(&reference::forward(&layer, matrix(&x, TOKENS, D_IN)), &y, D_IN + RANK + 4);
    println!(
        "{} on {}: {TOKENS} tokens, {D_IN} to {D_OUT}, rank {RANK}; the largest error against float64 is {error:.2} of \
         its bound",
        forward.kernel().name(),
        device.properties()
    );
    assert!(error <= 1.0);
    Ok(())
}
