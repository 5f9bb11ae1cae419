//! The backward pass of one layer on a device in bf16: dx, dA and dB of fused LoRA, and dx of the base. Weights are not
//! in a cache.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use fused_lora::Result;
use fused_lora::device::{
    Backward, BackwardInput, BackwardOutput, Device, DeviceBuffer, DeviceMatrix, DeviceMatrixMut, Event,
    FactorGradient, Workspace,
};
use fused_lora::lora::Accumulate;
use half::bf16;

use crate::device::{Case, L2_MULTIPLE, Shape, numbers};

const SHAPES: [Shape; 3] = [(512, 1024, 4096, 16), (512, 4096, 4096, 16), (4096, 4096, 4096, 16)];

/// Smaller layers, because the emulator executes every product.
const COUNTED: [Shape; 2] = [(128, 512, 512, 4), (512, 256, 512, 16)];

const VARIANTS: [(&str, bool); 2] = [("base (dx only)", false), ("fused (dx, dA, dB)", true)];

struct BackwardCase {
    case: Case,
    t: DeviceBuffer<bf16>,
    dx: DeviceBuffer<bf16>,
    da: DeviceBuffer<f32>,
    db: DeviceBuffer<f32>,
}

impl BackwardCase {
    /// `x` and `y` of the case are used as x and dy.
    fn new(device: &Device, shape: Shape, copies: usize) -> Result<Self> {
        let (tokens, d_in, d_out, rank) = shape;
        let case = Case::new(device, shape, copies)?;
        let t = DeviceBuffer::from_slice(&case.stream, &numbers(tokens * rank))?;
        let dx = DeviceBuffer::zeros(&case.stream, tokens * d_in)?;
        let [da, db] = [rank * d_in, d_out * rank].map(|len| DeviceBuffer::zeros(&case.stream, len));
        Ok(Self { t, dx, da: da?, db: db?, case })
    }

    fn plan(&self, device: &Device, adapted: bool) -> Result<Backward<bf16>> {
        let tokens = self.case.shape.0;
        self.case.with_layer(0, adapted, |layer| Backward::new(device, layer, tokens))?
    }

    /// Issues backward passes, each with the next copy of the weights.
    fn launch(&mut self, plan: &Backward<bf16>, adapted: bool, workspace: &mut Workspace, passes: u64) -> Result<()> {
        let Self { case, t, dx, da, db } = self;
        let (tokens, d_in, d_out, rank) = case.shape;
        let rank_of_t = if adapted { rank } else { 0 };
        for pass in 0..passes {
            let copy = (pass % case.copies.len() as u64) as usize;
            case.with_layer(copy, adapted, |layer| {
                let input = BackwardInput {
                    x: DeviceMatrix::new(case.x.as_slice(), tokens, d_in)?,
                    dy: DeviceMatrix::new(case.y.as_slice(), tokens, d_out)?,
                    t: DeviceMatrix::new(t.as_slice(), tokens, rank_of_t)?,
                    dropout: None,
                };
                let da = DeviceMatrixMut::new(da.as_mut_slice(), rank, d_in)?;
                let db = DeviceMatrixMut::new(db.as_mut_slice(), d_out, rank)?;
                let mut factors = [FactorGradient { da, db }];
                let mut output = BackwardOutput {
                    dx: Some(DeviceMatrixMut::new(dx.as_mut_slice(), tokens, d_in)?),
                    dx_accumulate: Accumulate::Overwrite,
                    factors: if adapted { &mut factors } else { &mut [] },
                    bias: None,
                    accumulate: Accumulate::Overwrite,
                };
                plan.launch(&case.stream, layer, &input, &mut output, workspace)
            })??;
        }
        Ok(())
    }
}

/// Times passes with the device's events.
pub(crate) fn time(c: &mut Criterion, device: &Device) -> Result<()> {
    let mut group = c.benchmark_group("backward");
    for shape in SHAPES {
        let (tokens, d_in, d_out, rank) = shape;
        let copies = (L2_MULTIPLE * device.properties().l2_bytes).div_ceil(2 * d_in * d_out).max(2);
        let mut pass = BackwardCase::new(device, shape, copies)?;
        for (variant, adapted) in VARIANTS {
            let plan = pass.plan(device, adapted)?;
            let mut workspace = Workspace::new(&pass.case.stream, plan.workspace())?;
            group.throughput(Throughput::Elements(plan.plan().flops()));
            group.bench_function(BenchmarkId::new(variant, format!("{tokens}x{d_in}->{d_out} r{rank}")), |b| {
                b.iter_custom(|passes| {
                    let mut timed = || {
                        let (start, end) = (Event::new(device)?, Event::new(device)?);
                        start.record(&pass.case.stream)?;
                        pass.launch(&plan, adapted, &mut workspace, passes)?;
                        end.record(&pass.case.stream)?;
                        start.milliseconds_to(&end)
                    };
                    let milliseconds: f32 = timed().expect("the operands fit each other");
                    Duration::from_secs_f64(f64::from(milliseconds) * 1e-3)
                });
            });
        }
    }
    group.finish();
    Ok(())
}

/// Prints the bytes that the launches of one pass of each variant request.
pub(crate) fn count(device: &Device) -> Result<()> {
    for shape in COUNTED {
        let (tokens, d_in, d_out, rank) = shape;
        let mut pass = BackwardCase::new(device, shape, 1)?;
        for (variant, adapted) in VARIANTS {
            let plan = pass.plan(device, adapted)?;
            let mut workspace = Workspace::new(&pass.case.stream, plan.workspace())?;
            device.take_all_counters();
            pass.launch(&plan, adapted, &mut workspace, 1)?;
            let counted = device.take_all_counters();
            let requested: Vec<_> = counted.iter().map(|counters| counters.requested_bytes()).collect();
            println!(
                "backward/{variant}/{tokens}x{d_in}->{d_out} r{rank}: {requested:?} bytes requested, {:.4} of the floor",
                requested.iter().sum::<u64>() as f64 / plan.plan().floor_bytes() as f64
            );
        }
    }
    Ok(())
}
