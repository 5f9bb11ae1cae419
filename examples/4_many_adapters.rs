//! Many adapters on one layer, on a GPU or on the emulator of one. All of them stay in device memory; the launch reads
//! from a slot which one it uses, and an exchange copies 8 bytes.
//!
//!     cargo run --release --example 4_many_adapters

mod shared;

use fused_lora::device::{
    DeviceFactors, DeviceInput, DeviceLora, DeviceTensor, FactorSlot, Forward, Graph, Stream, Workspace,
};
use fused_lora::lora::{Layout, LoraLinear, Segment, Weight};
use fused_lora::{Result, reference};
use shared::{largest_error, matrix, open_device, random};

const TOKENS: usize = 4;
const D: usize = 64;
/// An adapter of a lower rank fits the same slot.
const RANKS: [usize; 3] = [8, 4, 8];

pub(crate) fn main() -> Result<()> {
    let device = open_device()?;
    let stream = Stream::new(&device)?;
    let (x, w0) = (random::<f32>(1, TOKENS * D), random::<f32>(2, D * D));
    let numbers =
        |(seed, rank): (u64, usize)| (random::<f32>(seed, rank * D), random::<f32>(seed + 10, D * rank), rank);
    let adapters: Vec<_> = (3..).zip(RANKS).map(numbers).collect();
    let segments = adapters.iter().map(|(a, b, rank)| Segment {
        columns: 0..D,
        a: matrix(a, *rank, D),
        b: matrix(b, D, *rank),
        scale: 16.0 / *rank as f32,
    });
    let segments: Vec<_> = segments.collect();
    let on_device = segments.iter().map(|segment| DeviceFactors::upload(&stream, std::slice::from_ref(segment)));
    let on_device = on_device.collect::<Result<Vec<_>>>()?;

    // The layer has the segments that the slot was made for. Launches take the factors from the slot.
    let mut slot = FactorSlot::new(&stream, &on_device[0])?;
    let on_x = DeviceTensor::from_slice(&stream, &x, TOKENS, D)?;
    let on_w0 = DeviceTensor::from_slice(&stream, &w0, D, D)?;
    let places = [on_device[0].segment(0)];
    let layer = DeviceLora { weight: on_w0.view(), layout: Layout::OutIn, bias: None, segments: &places };
    let forward = Forward::new(&device, &layer, TOKENS)?;
    let mut workspace = Workspace::new(&stream, forward.workspace())?;
    let mut y = DeviceTensor::zeros(&stream, TOKENS, D)?;
    let graph = Graph::capture(&stream, |stream| {
        let input = DeviceInput { slot: Some(slot.segments(0..1)), ..on_x.view().into() };
        forward.launch(stream, &layer, input, y.view_mut(), &mut workspace)
    })?;

    let mut worst = 0.0f64;
    for served in segments.iter().zip(&on_device).map(Some).chain([None]) {
        match served {
            Some((_, factors)) => slot.put(&stream, factors)?,
            None => slot.clear(&stream)?, // the base model
        }
        graph.replay(&stream)?;
        let segments: Vec<_> = served.iter().map(|(segment, _)| (*segment).clone()).collect();
        let layer = LoraLinear { weight: Weight::out_in(matrix(&w0, D, D)), bias: None, segments: &segments };
        let expected = reference::forward(&layer, matrix(&x, TOKENS, D));
        worst = worst.max(largest_error(&expected, &y.to_vec(&stream)?, D + 8 + 4));
    }
    println!(
        "on {}: {} adapters and the base layer through one slot and one graph; the largest error against float64 is \
         {worst:.3} of its bound",
        device.properties(),
        segments.len()
    );
    assert!(worst <= 1.0);
    Ok(())
}
