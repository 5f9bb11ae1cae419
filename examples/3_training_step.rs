//! A training step on a GPU, or on the emulator of one: forward pass, backward pass and AdamW for the loss
//! `½·Σ(y − target)²`. dA and dB are compared with float64, and the loss must fall.
//!
//!     cargo run --release --example 3_training_step

mod shared;

use fused_lora::device::{
    Backward, BackwardInput, BackwardOptions, BackwardOutput, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceMatrixMut,
    DeviceOutput, DeviceParameter, DeviceSegment, DeviceTensor, FactorGradient, Forward, ForwardOptions, Optimizer,
    Stream, Workspace,
};
use fused_lora::lora::{Accumulate, Layout, LoraLinear, Segment, Weight};
use fused_lora::optim::{AdamW, Factor};
use fused_lora::{Result, reference};
use shared::{largest_error, matrix, open_device, random};

const TOKENS: usize = 32;
const D: usize = 64;
const RANK: usize = 4;
const SCALE: f32 = 2.0;

/// A factor and what its training takes. An f32 layer reads the value that the optimizer updates.
struct Trained {
    value: DeviceBuffer<f32>,
    gradient: DeviceBuffer<f32>,
    moments: [DeviceBuffer<f32>; 2],
}

fn trained(stream: &Stream, value: &[f32]) -> Result<Trained> {
    let zeros = || DeviceBuffer::zeros(stream, value.len());
    let value = DeviceBuffer::from_slice(stream, value)?;
    Ok(Trained { value, gradient: zeros()?, moments: [zeros()?, zeros()?] })
}

fn parameter(Trained { value, gradient, moments }: &mut Trained, factor: Factor) -> DeviceParameter<'_, f32> {
    let [first_moment, second_moment] = moments.each_mut().map(DeviceBuffer::as_mut_slice);
    let (value, gradient) = (value.as_mut_slice(), gradient.as_slice());
    DeviceParameter { factor, gradient, value, first_moment, second_moment, stored: None }
}

fn segment<'a>(a: &'a DeviceBuffer<f32>, b: &'a DeviceBuffer<f32>) -> Result<DeviceSegment<'a, f32>> {
    let (a, b) = (DeviceMatrix::new(a.as_slice(), RANK, D)?, DeviceMatrix::new(b.as_slice(), D, RANK)?);
    Ok(DeviceSegment { columns: 0..D, a, b, scale: SCALE })
}

pub(crate) fn main() -> Result<()> {
    let device = open_device()?;
    let stream = Stream::new(&device)?;
    let [x, target] = [1, 2].map(|seed| random::<f32>(seed, TOKENS * D));
    let (w0, a, b) = (random::<f32>(3, D * D), random::<f32>(4, RANK * D), random::<f32>(5, D * RANK));
    let on_x = DeviceTensor::from_slice(&stream, &x, TOKENS, D)?;
    let on_w0 = DeviceTensor::from_slice(&stream, &w0, D, D)?;
    let (mut on_a, mut on_b) = (trained(&stream, &a)?, trained(&stream, &b)?);
    let (mut y, mut t) = (DeviceTensor::zeros(&stream, TOKENS, D)?, DeviceTensor::zeros(&stream, TOKENS, RANK)?);

    // Forward pass. It leaves T = x Aᵀ, which dB is made from.
    let segments = [segment(&on_a.value, &on_b.value)?];
    let layer = DeviceLora { weight: on_w0.view(), layout: Layout::OutIn, bias: None, segments: &segments };
    let options = ForwardOptions { training: true, ..ForwardOptions::default() };
    let forward = Forward::with_options(&device, &layer, TOKENS, options)?;
    let options = BackwardOptions { dx: false, ..BackwardOptions::default() };
    let backward = Backward::with_options(&device, &layer, TOKENS, options)?;
    let mut workspace = Workspace::new(&stream, forward.workspace().union(&backward.workspace()))?;
    let output = DeviceOutput { t: Some(t.view_mut()), ..y.view_mut().into() };
    forward.launch(&stream, &layer, on_x.view(), output, &mut workspace)?;
    let difference = |y: &[f32]| y.iter().zip(&target).map(|(y, target)| y - target).collect::<Vec<f32>>();
    let dy = difference(&y.to_vec(&stream)?);

    // Backward pass.
    let on_dy = DeviceTensor::from_slice(&stream, &dy, TOKENS, D)?;
    let input = BackwardInput { x: on_x.view(), dy: on_dy.view(), t: t.view(), dropout: None };
    let da = DeviceMatrixMut::new(on_a.gradient.as_mut_slice(), RANK, D)?;
    let db = DeviceMatrixMut::new(on_b.gradient.as_mut_slice(), D, RANK)?;
    let mut output = BackwardOutput {
        dx: None,
        dx_accumulate: Accumulate::Overwrite,
        factors: &mut [FactorGradient { da, db }],
        bias: None,
        accumulate: Accumulate::Overwrite,
    };
    backward.launch(&stream, &layer, &input, &mut output, &mut workspace)?;

    // The step, and the loss after it.
    let parameters = &mut [parameter(&mut on_a, Factor::A), parameter(&mut on_b, Factor::B)];
    let mut optimizer = Optimizer::new(&stream, AdamW { lr: 0.02, ..AdamW::default() }, parameters)?;
    optimizer.step(&stream, parameters)?;
    let segments = [segment(&on_a.value, &on_b.value)?];
    let layer = DeviceLora { segments: &segments, weight: on_w0.view(), layout: Layout::OutIn, bias: None };
    forward.launch(&stream, &layer, on_x.view(), y.view_mut(), &mut workspace)?;
    let [before, after] =
        [dy.clone(), difference(&y.to_vec(&stream)?)].map(|dy| dy.iter().map(|dy| dy * dy / 2.0).sum());
    let (before, after): (f32, f32) = (before, after);

    let segments = [Segment { columns: 0..D, a: matrix(&a, RANK, D), b: matrix(&b, D, RANK), scale: SCALE }];
    let layer = LoraLinear { weight: Weight::out_in(matrix(&w0, D, D)), bias: None, segments: &segments };
    let expected = reference::backward(&layer, matrix(&x, TOKENS, D), matrix(&dy, TOKENS, D));
    let steps = D + RANK + 4;
    let da = largest_error(&expected.da[0], &on_a.gradient.to_vec(&stream)?, steps);
    let db = largest_error(&expected.db[0], &on_b.gradient.to_vec(&stream)?, steps);
    println!(
        "on {}: the loss fell from {before:.0} to {after:.0}; the largest error against float64 is {da:.3} of its bound in dA, \
         {db:.3} in dB",
        device.properties()
    );
    assert!(da <= 1.0 && db <= 1.0 && after < before);
    Ok(())
}
