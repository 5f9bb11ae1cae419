//! One layer on the CPU. Forward: base, fused LoRA, sequential LoRA, bottleneck adapters. Backward: base and fused
//! LoRA.

use criterion::{BenchmarkId, Criterion, Throughput};
use fused_lora::bottleneck::{Bottleneck, LayerNorm};
use fused_lora::cpu::{self, Accumulate, BottleneckBuffers, SegmentGradient, SequentialBuffers};
use fused_lora::lora::{Activation, Epilogue, LoraLinear, Segment, Weight};
use fused_lora::{MatrixMut, MatrixRef};

const CASES: [(usize, usize, usize, usize); 4] =
    [(1, 1024, 1024, 4), (1, 4096, 1024, 16), (128, 1024, 3072, 4), (128, 1024, 4096, 16)];

/// A fixed sequence of numbers in [-0.5, 0.5). Times do not depend on the values.
fn numbers(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

struct Operands {
    x: Vec<f32>,
    w: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Operands {
    fn new(tokens: usize, d_in: usize, d_out: usize, rank: usize) -> Self {
        let [x, w, a, b] = [tokens * d_in, d_in * d_out, rank * d_in, d_out * rank].map(numbers);
        Self { x, w, a, b }
    }

    fn segment(&self, d_in: usize, d_out: usize, rank: usize) -> fused_lora::Result<Segment<'_, f32>> {
        let (a, b) = (MatrixRef::new(&self.a, rank, d_in)?, MatrixRef::new(&self.b, d_out, rank)?);
        Ok(Segment { columns: 0..d_out, a, b, scale: 2.0 })
    }
}

/// The weights of a bottleneck adapter that follows the base layer.
struct AdapterWeights {
    width: usize,
    down: Vec<f32>,
    up: Vec<f32>,
    vector: Vec<f32>,
}

impl AdapterWeights {
    fn new(d: usize, width: usize) -> Self {
        let [down, up, vector] = [d * width, width * d, d.max(width)].map(numbers);
        Self { width, down, up, vector }
    }

    fn view(&self, d: usize, has_norm: bool) -> fused_lora::Result<Bottleneck<'_, f32>> {
        let vector = &self.vector[..d];
        Ok(Bottleneck {
            norm: has_norm.then_some(LayerNorm { weight: vector, bias: vector, epsilon: 1e-5 }),
            down: Weight::in_out(MatrixRef::new(&self.down, d, self.width)?),
            down_bias: Some(&self.vector[..self.width]),
            up: Weight::in_out(MatrixRef::new(&self.up, self.width, d)?),
            up_bias: Some(vector),
            activation: Activation::Relu,
        })
    }
}

pub(crate) fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward");
    for (tokens, d_in, d_out, rank) in CASES {
        let operands = Operands::new(tokens, d_in, d_out, rank);
        let run = || -> fused_lora::Result<()> {
            let segments = [operands.segment(d_in, d_out, rank)?];
            let weight = Weight::in_out(MatrixRef::new(&operands.w, d_in, d_out)?);
            let layer = LoraLinear { weight, bias: None, segments: &segments };
            let base = LoraLinear::base(weight, None);
            let x = MatrixRef::new(&operands.x, tokens, d_in)?;
            let mut y = vec![0.0; tokens * d_out];
            let mut y = MatrixMut::new(&mut y, tokens, d_out)?;
            let mut workspace = vec![0.0; layer.plan_forward::<f32>(tokens)?.workspace_len()];
            let mut buffers = SequentialBuffers::new();
            let id = |variant| BenchmarkId::new(variant, format!("{tokens}x{d_in}->{d_out} r{rank}"));
            group.throughput(Throughput::Elements((tokens * layer.flops_per_token()) as u64));
            group.bench_function(id("base"), |b| b.iter(|| cpu::forward(&base, x, &mut y, &mut workspace)));
            group.bench_function(id("fused"), |b| b.iter(|| cpu::forward(&layer, x, &mut y, &mut workspace)));
            let plain = Epilogue::default();
            group.bench_function(id("sequential"), |b| {
                b.iter(|| cpu::forward_sequential(&layer, x, &mut y, &plain, &mut buffers));
            });
            for (variant, has_norm, width) in crate::adapters((d_in, d_out), rank) {
                let adapted = AdapterWeights::new(d_out, width);
                let adapter = adapted.view(d_out, has_norm)?;
                let mut buffers = BottleneckBuffers::new();
                group.bench_function(id(variant), |b| {
                    b.iter(|| {
                        cpu::forward(&base, x, &mut y, &mut workspace)?;
                        cpu::bottleneck(&adapter, &mut y, &mut buffers)
                    });
                });
            }
            Ok(())
        };
        let mut run = run;
        run().expect("the operands fit each other");
    }
    group.finish();
}

pub(crate) fn backward(c: &mut Criterion) {
    let mut group = c.benchmark_group("backward");
    for (tokens, d_in, d_out, rank) in CASES {
        let operands = Operands::new(tokens, d_in, d_out, rank);
        let mut run = || -> fused_lora::Result<()> {
            let segments = [operands.segment(d_in, d_out, rank)?];
            let weight = Weight::in_out(MatrixRef::new(&operands.w, d_in, d_out)?);
            let layer = LoraLinear { weight, bias: None, segments: &segments };
            let frozen = LoraLinear::base(weight, None);
            let dy = numbers(tokens * d_out);
            let (x, dy) = (MatrixRef::new(&operands.x, tokens, d_in)?, MatrixRef::new(&dy, tokens, d_out)?);
            let t = vec![0.1; tokens * rank];
            let [mut dx, mut da, mut db] = [tokens * d_in, rank * d_in, d_out * rank].map(|n| vec![0.0; n]);
            let mut workspace = vec![0.0; cpu::backward_workspace_len::<f32, f32>(&layer, tokens)?];
            let mut dx = MatrixMut::new(&mut dx, tokens, d_in)?;
            let (da, db) = (MatrixMut::new(&mut da, rank, d_in)?, MatrixMut::new(&mut db, d_out, rank)?);
            let mut gradients = [SegmentGradient { da, db }];
            let id = |variant| BenchmarkId::new(variant, format!("{tokens}x{d_in}->{d_out} r{rank}"));
            let accumulate = Accumulate::Overwrite;
            group.bench_function(id("base (dx only)"), |b| {
                b.iter(|| cpu::backward(&frozen, x, dy, &[], Some(&mut dx), &mut [], accumulate, &mut workspace));
            });
            group.bench_function(id("fused (dx, dA, dB)"), |b| {
                b.iter(|| {
                    let gradients = &mut gradients;
                    cpu::backward(&layer, x, dy, &t, Some(&mut dx), gradients, accumulate, &mut workspace)
                });
            });
            Ok(())
        };
        run().expect("the operands fit each other");
    }
    group.finish();
}
