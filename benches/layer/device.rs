//! One layer on a device in bf16, with few tokens and many: base, fused LoRA, bottleneck adapters. Weights are not in a
//! cache.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use fused_lora::Result;
use fused_lora::device::{
    Adapter, Device, DeviceAdapter, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceMatrixMut, DeviceNorm, DeviceSegment,
    Event, Forward, LayerNorm, Stream, Workspace,
};
use fused_lora::lora::{Activation, Layout, Residual};
use half::bf16;

/// Tokens, d_in, d_out, rank.
pub(crate) type Shape = (usize, usize, usize, usize);

const DECODE: [Shape; 4] = [(1, 4096, 4096, 16), (1, 1024, 3072, 4), (4, 4096, 4096, 16), (16, 4096, 4096, 16)];

const FORWARD: [Shape; 5] =
    [(17, 4096, 4096, 16), (64, 4096, 4096, 16), (128, 1024, 3072, 4), (512, 4096, 4096, 16), (4096, 4096, 4096, 16)];

/// Smaller layers with as many tokens, because the emulator executes every product.
const FORWARD_COUNTED: [Shape; 4] =
    [(17, 1024, 1024, 16), (64, 1024, 512, 16), (128, 512, 512, 4), (512, 256, 512, 16)];

/// All copies of the weights together have this many times the size of the L2 cache.
pub(crate) const L2_MULTIPLE: usize = 3;

/// A fixed sequence of numbers in [-0.5, 0.5) whose bits vary like those of random numbers.
pub(crate) fn numbers(n: usize) -> Vec<bf16> {
    let number = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
    (0..n as u32).map(|i| bf16::from_f32(number(i))).collect()
}

pub(crate) struct Case {
    pub(crate) stream: Stream,
    pub(crate) shape: Shape,
    pub(crate) x: DeviceBuffer<bf16>,
    pub(crate) y: DeviceBuffer<bf16>,
    /// W0, A, B.
    pub(crate) copies: Vec<[DeviceBuffer<bf16>; 3]>,
}

impl Case {
    pub(crate) fn new(device: &Device, shape: Shape, copies: usize) -> Result<Self> {
        let (tokens, d_in, d_out, rank) = shape;
        let stream = Stream::new(device)?;
        let upload = |n| DeviceBuffer::from_slice(&stream, &numbers(n));
        let (x, y) = (upload(tokens * d_in)?, upload(tokens * d_out)?);
        let copy = |_| Ok([upload(d_in * d_out)?, upload(rank * d_in)?, upload(d_out * rank)?]);
        let copies = (0..copies).map(copy).collect::<Result<_>>()?;
        Ok(Self { stream, shape, x, y, copies })
    }

    pub(crate) fn with_layer<R>(
        &self,
        copy: usize,
        adapted: bool,
        work: impl FnOnce(&DeviceLora<'_, bf16>) -> R,
    ) -> Result<R> {
        let (_, d_in, d_out, rank) = self.shape;
        let [weight, a, b] = &self.copies[copy];
        let (a, b) = (DeviceMatrix::new(a.as_slice(), rank, d_in)?, DeviceMatrix::new(b.as_slice(), d_out, rank)?);
        let segments = [DeviceSegment { columns: 0..d_out, a, b, scale: 2.0 }];
        let (weight, layout) = (DeviceMatrix::new(weight.as_slice(), d_out, d_in)?, Layout::OutIn);
        let segments = if adapted { &segments[..] } else { &[] };
        Ok(work(&DeviceLora { weight, layout, bias: None, segments }))
    }

    fn plan(&self, device: &Device, adapted: bool) -> Result<Forward<bf16>> {
        self.with_layer(0, adapted, |layer| Forward::new(device, layer, self.shape.0))?
    }

    /// Issues launches, each with the next copy of the weights.
    fn launch(&mut self, plan: &Forward<bf16>, adapted: bool, workspace: &mut Workspace, launches: u64) -> Result<()> {
        let (tokens, d_in, d_out, _) = self.shape;
        let mut y = std::mem::replace(&mut self.y, DeviceBuffer::zeros(&self.stream, 0)?);
        for launch in 0..launches {
            let copy = (launch % self.copies.len() as u64) as usize;
            self.with_layer(copy, adapted, |layer| {
                let x = DeviceMatrix::new(self.x.as_slice(), tokens, d_in)?;
                let y = DeviceMatrixMut::new(y.as_mut_slice(), tokens, d_out)?;
                plan.launch(&self.stream, layer, x, y, workspace)
            })??;
        }
        self.y = y;
        Ok(())
    }
}

/// A planned bottleneck adapter that follows the base layer, with as many copies of its weights as the layer has.
struct AdaptedLayer {
    norm: Option<LayerNorm<bf16>>,
    adapter: Adapter<bf16>,
    width: usize,
    /// Down, up, both biases.
    copies: Vec<[DeviceBuffer<bf16>; 4]>,
    vector: DeviceBuffer<f32>,
    between: DeviceBuffer<bf16>,
}

impl AdaptedLayer {
    fn new(device: &Device, case: &Case, has_norm: bool, width: usize) -> Result<Self> {
        let (tokens, _, d, _) = case.shape;
        let upload = |n| DeviceBuffer::from_slice(&case.stream, &numbers(n));
        let copy = |_| Ok([upload(width * d)?, upload(d * width)?, upload(width)?, upload(d)?]);
        let copies = (0..case.copies.len()).map(copy).collect::<Result<Vec<_>>>()?;
        let adapter = Adapter::new(device, &view(&copies[0], d, width)?, tokens)?;
        let norm = has_norm.then(|| LayerNorm::new(device, tokens, d)).transpose()?;
        let vector = DeviceBuffer::from_slice(&case.stream, &vec![0.5; d])?;
        Ok(Self { norm, adapter, width, copies, vector, between: upload(tokens * d)? })
    }

    /// Issues calls of the layer and the adapter, each with the next copy of the weights.
    fn launch(&mut self, case: &mut Case, base: &Forward<bf16>, workspace: &mut Workspace, calls: u64) -> Result<()> {
        let (tokens, d_in, d, _) = case.shape;
        let mut y = std::mem::replace(&mut case.y, DeviceBuffer::zeros(&case.stream, 0)?);
        for call in 0..calls {
            let copy = (call % case.copies.len() as u64) as usize;
            let Self { norm, adapter, width, copies, vector, between } = self;
            // The adapter cannot write y over its input, so without a LayerNorm the layer writes to `between`.
            let layer_output = if norm.is_some() { &mut y } else { &mut *between };
            case.with_layer(copy, false, |layer| {
                let x = DeviceMatrix::new(case.x.as_slice(), tokens, d_in)?;
                let out = DeviceMatrixMut::new(layer_output.as_mut_slice(), tokens, d)?;
                base.launch(&case.stream, layer, x, out, workspace)
            })??;
            let (mut adds_input, mut residual) = (true, Residual::None);
            if let Some(norm) = norm {
                let vector = vector.as_slice();
                let parameters = DeviceNorm { weight: vector, bias: vector, epsilon: 1e-5 };
                let x = DeviceMatrix::new(y.as_slice(), tokens, d)?;
                norm.launch(&case.stream, x, &parameters, DeviceMatrixMut::new(between.as_mut_slice(), tokens, d)?)?;
                (adds_input, residual) = (false, Residual::InPlace);
            }
            let x = DeviceMatrix::new(between.as_slice(), tokens, d)?;
            let out = DeviceMatrixMut::new(y.as_mut_slice(), tokens, d)?;
            let view = view(&copies[copy], d, *width)?;
            adapter.launch(&case.stream, &view, x, adds_input, residual, out, workspace)?;
        }
        case.y = y;
        Ok(())
    }
}

fn view(copy: &[DeviceBuffer<bf16>; 4], d: usize, width: usize) -> Result<DeviceAdapter<'_, bf16>> {
    let [down, up, down_bias, up_bias] = copy;
    Ok(DeviceAdapter {
        down: DeviceMatrix::new(down.as_slice(), width, d)?,
        down_bias: Some(down_bias.as_slice()),
        up: DeviceMatrix::new(up.as_slice(), d, width)?,
        up_bias: Some(up_bias.as_slice()),
        activation: Activation::Relu,
    })
}

/// Times launches with the device's events.
pub(crate) fn time(c: &mut Criterion, device: &Device) -> Result<()> {
    group(c, device, "decode", &DECODE)?;
    group(c, device, "forward", &FORWARD)
}

/// Floating-point operations of a launch.
fn flops((tokens, d_in, d_out, rank): Shape, adapted: bool) -> u64 {
    let low_rank = if adapted { rank * (d_in + d_out) } else { 0 };
    (2 * tokens * (d_in * d_out + low_rank)) as u64
}

/// The benchmarks of a group. Throughput is in bytes for decode, in operations for the others.
fn group(c: &mut Criterion, device: &Device, name: &str, shapes: &[Shape]) -> Result<()> {
    let mut group = c.benchmark_group(name);
    for &shape in shapes {
        let (tokens, d_in, d_out, rank) = shape;
        let copies = (L2_MULTIPLE * device.properties().l2_bytes).div_ceil(2 * d_in * d_out).max(2);
        let mut case = Case::new(device, shape, copies)?;
        for (variant, adapted) in [("base", false), ("fused", true)] {
            let plan = case.plan(device, adapted)?;
            let mut workspace = Workspace::new(&case.stream, plan.workspace())?;
            group.throughput(match name {
                "decode" => Throughput::Bytes(plan.plan().floor_bytes() as u64),
                _ => Throughput::Elements(flops(shape, adapted)),
            });
            group.bench_function(id(shape, variant), |b| {
                b.iter_custom(|launches| {
                    timed(device, &mut case, |case| case.launch(&plan, adapted, &mut workspace, launches))
                });
            });
        }
        let base = case.plan(device, false)?;
        for (variant, has_norm, width) in crate::adapters((d_in, d_out), rank) {
            let mut adapted_layer = AdaptedLayer::new(device, &case, has_norm, width)?;
            let mut workspace =
                Workspace::new(&case.stream, base.workspace().union(&adapted_layer.adapter.workspace()))?;
            group.throughput(match name {
                "decode" => {
                    Throughput::Bytes((base.plan().floor_bytes() + adapted_layer.adapter.plan().floor_bytes) as u64)
                }
                _ => Throughput::Elements(flops(shape, false) + (4 * tokens * d_out * width) as u64),
            });
            group.bench_function(id(shape, variant), |b| {
                b.iter_custom(|calls| {
                    timed(device, &mut case, |case| adapted_layer.launch(case, &base, &mut workspace, calls))
                });
            });
        }
    }
    group.finish();
    Ok(())
}

fn id((tokens, d_in, d_out, rank): Shape, variant: &str) -> BenchmarkId {
    BenchmarkId::new(variant, format!("{tokens}x{d_in}->{d_out} r{rank}"))
}

/// The time that the device takes for what `work` issues.
fn timed(device: &Device, case: &mut Case, work: impl FnOnce(&mut Case) -> Result<()>) -> Duration {
    let timed = || {
        let (start, end) = (Event::new(device)?, Event::new(device)?);
        start.record(&case.stream)?;
        work(case)?;
        end.record(&case.stream)?;
        start.milliseconds_to(&end)
    };
    let milliseconds: f32 = timed().expect("the operands fit each other");
    Duration::from_secs_f64(f64::from(milliseconds) * 1e-3)
}

/// Prints the bytes that one launch of each variant requests.
pub(crate) fn count(device: &Device) -> Result<()> {
    let named = |name, shapes: &'static [Shape]| shapes.iter().map(move |&shape| (name, shape));
    for (group, shape) in named("decode", &DECODE).chain(named("forward", &FORWARD_COUNTED)) {
        let (tokens, d_in, d_out, rank) = shape;
        let mut case = Case::new(device, shape, 1)?;
        for (variant, adapted) in [("base", false), ("fused", true)] {
            let plan = case.plan(device, adapted)?;
            let mut workspace = Workspace::new(&case.stream, plan.workspace())?;
            case.launch(&plan, adapted, &mut workspace, 1)?;
            let counters = device.take_counters().unwrap_or_default();
            let (requested, floor) = (counters.requested_bytes(), plan.plan().floor_bytes());
            println!(
                "{group}/{variant}/{tokens}x{d_in}->{d_out} r{rank}: {requested} bytes requested, {:.4} of the floor",
                requested as f64 / floor as f64
            );
        }
        let base = case.plan(device, false)?;
        for (variant, has_norm, width) in crate::adapters((d_in, d_out), rank) {
            let mut adapted_layer = AdaptedLayer::new(device, &case, has_norm, width)?;
            let mut workspace =
                Workspace::new(&case.stream, base.workspace().union(&adapted_layer.adapter.workspace()))?;
            adapted_layer.launch(&mut case, &base, &mut workspace, 1)?;
            let counted = device.take_all_counters();
            let requested = counted.iter().map(|counters| counters.requested_bytes()).sum::<u64>();
            let norm = adapted_layer.norm.as_ref().map_or(0, |norm| norm.plan().floor_bytes);
            let floor = base.plan().floor_bytes() + norm + adapted_layer.adapter.plan().floor_bytes;
            println!(
                "{group}/{variant}/{tokens}x{d_in}->{d_out} r{rank}: {requested} bytes requested, {:.4} of the floor, {} \
                 launches",
                requested as f64 / floor as f64,
                counted.len()
            );
        }
    }
    Ok(())
}
