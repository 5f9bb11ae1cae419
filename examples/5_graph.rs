//! An MLP with LoRA on a residual stream, `x ← x + W2·gelu(W1·x)`, captured once as a CUDA graph and replayed three
//! times, on a GPU or on the emulator of one. The result is compared with the CPU's.
//!
//!     cargo run --release --example 5_graph

mod shared;

use fused_lora::device::{DeviceLora, DeviceOutput, DeviceSegment, DeviceTensor, Forward, Graph, Stream, Workspace};
use fused_lora::lora::{Activation, Epilogue, Layout, LoraLinear, Residual, Segment, Weight};
use fused_lora::{MatrixMut, MatrixRef, Result, cpu};
use shared::{matrix, open_device, random};

const TOKENS: usize = 24;
const D: usize = 64;
const WIDE: usize = 256;
const RANK: usize = 4;
const SCALE: f32 = 0.5;
const REPLAYS: usize = 3;

/// W0 `[d_out, d_in]`, A and B of a layer.
fn numbers(seed: u64, d_in: usize, d_out: usize) -> [Vec<f32>; 3] {
    let small = |seed, len| random::<f32>(seed, len).into_iter().map(|value| 0.1 * value).collect();
    [small(seed, d_out * d_in), small(seed + 1, RANK * d_in), small(seed + 2, d_out * RANK)]
}

/// The calls' epilogues; `M` is a matrix of the CPU or of a device.
fn epilogues<M>() -> [Epilogue<M>; 2] {
    let activation = Activation::GeluNew;
    [Epilogue { activation, ..Epilogue::default() }, Epilogue { residual: Residual::InPlace, ..Epilogue::default() }]
}

fn on_cpu(
    [w0, a, b]: &[Vec<f32>; 3],
    x: MatrixRef<'_, f32>,
    y: &mut MatrixMut<'_, f32>,
    epilogue: &Epilogue<MatrixRef<'_, f32>>,
) -> Result<()> {
    let (d_in, d_out) = (x.cols(), y.cols());
    let segments = [Segment { columns: 0..d_out, a: matrix(a, RANK, d_in), b: matrix(b, d_out, RANK), scale: SCALE }];
    let layer = LoraLinear { weight: Weight::out_in(matrix(w0, d_out, d_in)), bias: None, segments: &segments };
    let mut workspace = vec![0.0; layer.plan_forward::<f32>(TOKENS)?.workspace_len()];
    cpu::forward_with(&layer, x, y, epilogue, None, &mut workspace)
}

pub(crate) fn main() -> Result<()> {
    let device = open_device()?;
    let stream = Stream::new(&device)?;
    let mut x = random::<f32>(1, TOKENS * D);
    let (up, down) = (numbers(10, D, WIDE), numbers(20, WIDE, D));
    let upload = |from: &[f32], rows, cols| DeviceTensor::from_slice(&stream, from, rows, cols);
    let on_up = [upload(&up[0], WIDE, D)?, upload(&up[1], RANK, D)?, upload(&up[2], WIDE, RANK)?];
    let on_down = [upload(&down[0], D, WIDE)?, upload(&down[1], RANK, WIDE)?, upload(&down[2], D, RANK)?];
    let segments = [(&on_up, WIDE), (&on_down, D)]
        .map(|([_, a, b], d_out)| [DeviceSegment { columns: 0..d_out, a: a.view(), b: b.view(), scale: SCALE }]);
    let layer = |weight, segments| DeviceLora { weight, layout: Layout::OutIn, bias: None, segments };
    let (up_layer, down_layer) = (layer(on_up[0].view(), &segments[0][..]), layer(on_down[0].view(), &segments[1][..]));

    let plans = [Forward::new(&device, &up_layer, TOKENS)?, Forward::new(&device, &down_layer, TOKENS)?];
    let mut workspace = Workspace::new(&stream, plans[0].workspace().union(&plans[1].workspace()))?;
    let mut on_x = DeviceTensor::from_slice(&stream, &x, TOKENS, D)?;
    let mut hidden = DeviceTensor::zeros(&stream, TOKENS, WIDE)?;
    let graph = Graph::capture(&stream, |stream| {
        let [gelu, onto_x] = epilogues();
        let output = DeviceOutput { epilogue: gelu, ..hidden.view_mut().into() };
        plans[0].launch(stream, &up_layer, on_x.view(), output, &mut workspace)?;
        let output = DeviceOutput { epilogue: onto_x, ..on_x.view_mut().into() };
        plans[1].launch(stream, &down_layer, hidden.view(), output, &mut workspace)
    })?;
    for _ in 0..REPLAYS {
        graph.replay(&stream)?;
    }
    let got = on_x.to_vec(&stream)?;

    let mut hidden = vec![0.0; TOKENS * WIDE];
    for _ in 0..REPLAYS {
        let [gelu, onto_x] = epilogues();
        on_cpu(&up, matrix(&x, TOKENS, D), &mut MatrixMut::new(&mut hidden, TOKENS, WIDE)?, &gelu)?;
        on_cpu(&down, matrix(&hidden, TOKENS, WIDE), &mut MatrixMut::new(&mut x, TOKENS, D)?, &onto_x)?;
    }
    let largest = x.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let error = got.iter().zip(&x).map(|(got, x)| (got - x).abs() / largest).fold(0.0, f32::max);
    println!(
        "on {}: {REPLAYS} replays of 2 launches differ from the CPU by {error:.1e} of the largest value",
        device.properties()
    );
    assert!(error < 1e-5);
    Ok(())
}
