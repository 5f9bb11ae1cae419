//! On the CPU: fused against sequential against the base layer alone; of training passes fused against the base.

use anyhow::Result;
use fused_lora::cpu::{self, Accumulate, SegmentGradient, SequentialBuffers};
use fused_lora::lora::{Epilogue, Layout, LoraLinear, Segment, Weight};
use fused_lora::{Element, MatrixMut, MatrixRef};
use fused_lora_gpt2::{Random, Tensor};
use serde::Serialize;

use super::Args;
use crate::environment::Run;
use crate::output::{emit, progress, table};
use crate::stats::{Excess, median};
use crate::trial::{Trials, interleave};

/// Bytes of weights that a round walks through, so that every call reads them from memory: three times the largest
/// last-level caches.
const COLD_BYTES: usize = 192 << 20;

#[derive(Debug, Serialize)]
struct Row {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    rank: usize,
    variant: &'static str,
    median_us: f64,
    percent_over_base: f64,
    percent_low: f64,
    percent_high: f64,
    bytes: usize,
    gigabytes_per_second: f64,
    gigaflops_per_second: f64,
}

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    layout: String,
    weight_copies_bytes: usize,
    rows: &'a [Row],
}

/// One copy of a layer's weights.
struct Copy<W> {
    weight: Tensor<W>,
    a: Tensor<W>,
    b: Tensor<W>,
}

struct Case {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    rank: usize,
    layout: Layout,
}

impl Case {
    fn with_layer<W: Element, R>(
        &self,
        copy: &Copy<W>,
        f: impl FnOnce(&LoraLinear<'_, W>) -> fused_lora::Result<R>,
    ) -> fused_lora::Result<R> {
        let (rows, cols) = match self.layout {
            Layout::InOut => (self.d_in, self.d_out),
            Layout::OutIn => (self.d_out, self.d_in),
        };
        let segments = [Segment {
            columns: 0..self.d_out,
            a: MatrixRef::new(&copy.a, self.rank, self.d_in)?,
            b: MatrixRef::new(&copy.b, self.d_out, self.rank)?,
            scale: 2.0,
        }];
        let weight = Weight::new(MatrixRef::new(&copy.weight, rows, cols)?, self.layout);
        f(&LoraLinear { weight, bias: None, segments: &segments })
    }

    /// Bytes that must move: every operand once.
    fn bytes<W: Element>(&self, adapted: bool) -> usize {
        let low_rank = if adapted { self.rank * (self.d_in + self.d_out) } else { 0 };
        (self.d_in * self.d_out + self.tokens * (self.d_in + self.d_out) + low_rank) * size_of::<W>()
    }

    fn flops(&self, adapted: bool) -> usize {
        let low_rank = if adapted { self.rank * (self.d_in + self.d_out) } else { 0 };
        2 * self.tokens * (self.d_in * self.d_out + low_rank)
    }

    /// Bytes that a training pass must move: every operand once forward and once backward, T and the gradients in `f32`.
    fn pass_bytes<W: Element>(&self, adapted: bool) -> usize {
        let kept = if adapted { 2 * self.tokens * self.rank + self.rank * (self.d_in + self.d_out) } else { 0 };
        let read_again = if adapted { self.tokens * self.d_in } else { 0 };
        2 * self.bytes::<W>(adapted) + read_again * size_of::<W>() + kept * size_of::<f32>()
    }

    /// y, dx and, of an adapter, dA and dB.
    fn pass_flops(&self, adapted: bool) -> usize {
        let factors = if adapted { 2 * self.tokens * self.rank * (self.d_in + self.d_out) } else { 0 };
        2 * self.flops(adapted) + factors
    }
}

const VARIANTS: [&str; 3] = ["base", "fused", "sequential"];
/// Of a training pass: the base has y and dx, fused T, dA and dB as well.
const PASSES: [&str; 2] = ["base", "fused"];

pub(super) fn measure<W: Element>(args: &Args, device: &str) -> Result<()> {
    let run = Run::new(device, W::DTYPE);
    let layout = args.layout.into();
    emit(&format!("{}\n\n", run.summary()))?;
    let mut rows = vec![];
    for &(d_in, d_out) in &args.shapes {
        for &rank in &args.ranks {
            let case = |tokens| Case { tokens, d_in, d_out, rank, layout };
            if args.explain {
                let copy = random_copy::<W>(&case(1), &mut Random::new(0))?;
                for &tokens in &args.tokens {
                    let plan = case(tokens).with_layer(&copy, |layer| layer.plan_forward::<W>(tokens))?;
                    emit(&format!("{plan}\n"))?;
                    if args.is_backward() {
                        let plan = case(tokens).with_layer(&copy, |layer| layer.plan_backward::<W>(tokens))?;
                        emit(&format!("dx: {plan}\n"))?;
                    }
                }
                continue;
            }
            let mut random = Random::new(0);
            let copies = COLD_BYTES.div_ceil(d_in * d_out * size_of::<W>()).max(2);
            let copies: Vec<_> = (0..copies).map(|_| random_copy::<W>(&case(1), &mut random)).collect::<Result<_>>()?;
            for &tokens in &args.tokens {
                let measure = if args.is_backward() { measure_pass } else { measure_case };
                rows.extend(measure(&case(tokens), &copies, args.trials, &mut random)?);
            }
        }
    }
    if args.explain {
        return Ok(());
    }
    emit(&print(&rows))?;
    let layout = format!("{:?}", args.layout);
    args.files.write(|| Report { run, layout, weight_copies_bytes: COLD_BYTES, rows: &rows }, &rows)
}

fn random_copy<W: Element>(case: &Case, random: &mut Random) -> Result<Copy<W>> {
    Ok(Copy {
        weight: random.normal(case.d_in * case.d_out, 0.02)?,
        a: random.normal(case.rank * case.d_in, 0.02)?,
        b: random.normal(case.d_out * case.rank, 0.02)?,
    })
}

fn measure_case<W: Element>(case: &Case, copies: &[Copy<W>], trials: usize, random: &mut Random) -> Result<Vec<Row>> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let x = random.normal::<W>(tokens * d_in, 1.0)?;
    let mut y = vec![W::default(); tokens * d_out];
    let mut buffers = SequentialBuffers::new();
    let needed = case.with_layer(&copies[0], |layer| layer.plan_forward::<W>(tokens))?.workspace_len();
    let mut workspace = vec![0.0; needed];
    let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}"));
    let times = interleave(VARIANTS.len(), Trials::Count(trials), &bar, |variant| {
        copies.iter().try_for_each(|copy| {
            let x = MatrixRef::new(&x, tokens, d_in)?;
            let mut y = MatrixMut::new(&mut y, tokens, d_out)?;
            case.with_layer(copy, |layer| match VARIANTS[variant] {
                "base" => cpu::forward(&LoraLinear { segments: &[], ..*layer }, x, &mut y, &mut workspace),
                "fused" => cpu::forward(layer, x, &mut y, &mut workspace),
                _ => cpu::forward_sequential(layer, x, &mut y, &Epilogue::default(), &mut buffers),
            })
        })
    })?;
    let cost = |adapted| (case.bytes::<W>(adapted), case.flops(adapted));
    Ok(rows(case, &VARIANTS, &times, copies.len(), cost))
}

/// y with T kept, then dx, dA and dB.
fn measure_pass<W: Element>(case: &Case, copies: &[Copy<W>], trials: usize, random: &mut Random) -> Result<Vec<Row>> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let (x, dy) = (random.normal::<W>(tokens * d_in, 1.0)?, random.normal::<W>(tokens * d_out, 1.0)?);
    let [mut y, mut dx] = [d_out, d_in].map(|columns| vec![W::default(); tokens * columns]);
    let [mut t, mut da, mut db] = [tokens * rank, rank * d_in, d_out * rank].map(|n| vec![0.0; n]);
    let needed = case.with_layer(&copies[0], |layer| {
        let forward = layer.plan_forward::<W>(tokens)?.workspace_len();
        Ok(forward.max(cpu::backward_workspace_len::<W, W>(layer, tokens)?))
    })?;
    let mut workspace = vec![0.0; needed];
    let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}, both ways"));
    let times = interleave(PASSES.len(), Trials::Count(trials), &bar, |variant| {
        let adapted = variant > 0;
        let (x, dy) = (MatrixRef::new(&x, tokens, d_in)?, MatrixRef::new(&dy, tokens, d_out)?);
        // All copies forward, then all backward: as in a model, each weight is cold when its turn comes.
        for copy in copies {
            let mut y = MatrixMut::new(&mut y, tokens, d_out)?;
            let t = adapted.then_some(&mut t[..]);
            case.with_layer(copy, |layer| {
                let layer = if adapted { *layer } else { LoraLinear { segments: &[], ..*layer } };
                cpu::forward_with(&layer, x, &mut y, &Epilogue::default(), t, &mut workspace)
            })?;
        }
        copies.iter().try_for_each(|copy| {
            let mut dx = MatrixMut::new(&mut dx, tokens, d_in)?;
            let (da, db) = (MatrixMut::new(&mut da, rank, d_in)?, MatrixMut::new(&mut db, d_out, rank)?);
            let (mut gradients, accumulate) = ([SegmentGradient { da, db }], Accumulate::Overwrite);
            case.with_layer(copy, |layer| {
                let frozen = LoraLinear { segments: &[], ..*layer };
                let dx = Some(&mut dx);
                if adapted {
                    cpu::backward(layer, x, dy, &t, dx, &mut gradients, accumulate, &mut workspace)
                } else {
                    cpu::backward(&frozen, x, dy, &[], dx, &mut [], accumulate, &mut workspace)
                }
            })
        })
    })?;
    let cost = |adapted| (case.pass_bytes::<W>(adapted), case.pass_flops(adapted));
    Ok(rows(case, &PASSES, &times, copies.len(), cost))
}

/// From milliseconds of a walk through all copies, `[variant][trial]`, the base first, and bytes and products of one call,
/// with an adapter and without.
fn rows(
    case: &Case,
    variants: &[&'static str],
    times: &[Vec<f64>],
    copies: usize,
    cost: impl Fn(bool) -> (usize, usize),
) -> Vec<Row> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let row = |(i, times_of): (usize, &Vec<f64>)| {
        let excess = Excess::of(times_of, &times[0]);
        let (percent_over_base, interval) = if i == 0 { (0.0, (0.0, 0.0)) } else { (excess.percent, excess.interval) };
        let us = median(times_of) * 1e3 / copies as f64;
        let (bytes, flops) = cost(i > 0);
        Row {
            tokens,
            d_in,
            d_out,
            rank,
            variant: variants[i],
            median_us: us,
            percent_over_base,
            percent_low: interval.0,
            percent_high: interval.1,
            bytes,
            gigabytes_per_second: bytes as f64 / us / 1e3,
            gigaflops_per_second: flops as f64 / us / 1e3,
        }
    };
    times.iter().enumerate().map(row).collect()
}

fn print(rows: &[Row]) -> String {
    let header =
        ["layer", "tokens", "r", "variant", "median µs", "over base", "95 % interval", "MB", "GB/s", "GFLOP/s"];
    let cells = rows.iter().map(|r| {
        let excess = Excess { percent: r.percent_over_base, interval: (r.percent_low, r.percent_high) };
        let (over, interval) = match r.variant {
            "base" => ("-".into(), "-".into()),
            _ if excess.is_noise() => {
                ("no difference".into(), format!("{:+.1} to {:+.1}", r.percent_low, r.percent_high))
            }
            _ => (format!("{:+.1} %", r.percent_over_base), format!("{:+.1} to {:+.1}", r.percent_low, r.percent_high)),
        };
        vec![
            format!("{} -> {}", r.d_in, r.d_out),
            r.tokens.to_string(),
            r.rank.to_string(),
            r.variant.into(),
            format!("{:.1}", r.median_us),
            over,
            interval,
            format!("{:.2}", r.bytes as f64 / 1e6),
            format!("{:.1}", r.gigabytes_per_second),
            format!("{:.1}", r.gigaflops_per_second),
        ]
    });
    table(&header, cells)
}
