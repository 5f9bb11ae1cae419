//! On the CPU: fused against sequential, against bottleneck adapters and against the base layer alone; of training passes fused
//! against the base.

use anyhow::{Context, Result};
use fused_lora::cpu::{self, Accumulate, BottleneckBuffers, SegmentGradient, SequentialBuffers};
use fused_lora::lora::{Epilogue, LoraLinear};
use fused_lora::{Element, MatrixMut, MatrixRef};
use fused_lora_gpt2::Random;
use serde::Serialize;

use super::Args;
use super::adapter::ADAPTERS;
use super::case::Case;
use super::copies::copies;
use super::cpu_layers::{Layers, adapter_plans, weights};
use super::cpu_row::{Entry, Row, print, rows};
use super::overhead;
use crate::environment::{Run, available_memory, peak_memory};
use crate::output::{emit, progress};
use crate::trial::{Trials, interleave};

/// Bytes of weights that a round walks through, so that every call reads them from memory: three times the largest
/// last-level caches.
const COLD_BYTES: usize = 192 << 20;

/// Memory to count on where the system does not tell what is available.
const UNKNOWN_MEMORY: u64 = 4 << 30;

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    layout: String,
    backward: bool,
    /// Weights are copied until a round walks through so many bytes of them, as far as memory allows.
    cold_bytes: usize,
    rows: &'a [Row],
}

pub(super) fn measure<W: Element>(args: &Args, device: &str) -> Result<()> {
    let run = Run::new(device, W::DTYPE);
    emit(&format!("{}\n\n", run.summary()))?;
    let case = |tokens, (d_in, d_out), rank| Case { tokens, d_in, d_out, rank, layout: args.layout.into() };
    let layers: Vec<_> =
        args.shapes.iter().flat_map(|&shape| args.ranks.iter().map(move |&rank| (shape, rank))).collect();
    if args.explain {
        return layers.iter().try_for_each(|&(shape, rank)| explain::<W>(args, &case(1, shape, rank)));
    }
    // Before the first is measured it is known that all of them fit.
    let most = args.tokens.iter().copied().max().unwrap_or(1);
    let available = usize::try_from(available_memory().unwrap_or(UNKNOWN_MEMORY)).unwrap_or(usize::MAX);
    let fitting = |&(shape, rank): &((usize, usize), usize)| {
        let case = case(most, shape, rank);
        let copies = |footprint| copies(COLD_BYTES, 0, &footprint, available).with_context(|| case.to_string());
        // Plans are made from a layer: first of all there must be room for one.
        copies(weights::<W>(&case))?;
        copies(Layers::<W>::new(&case, 1, None)?.footprint(most, args.is_backward())?)
    };
    let copies = layers.iter().map(fitting).collect::<Result<Vec<_>>>()?;
    let mut measured = vec![];
    for (&(shape, rank), copies) in layers.iter().zip(copies) {
        let mut random = Random::new(0);
        let layers = Layers::<W>::new(&case(1, shape, rank), copies, Some(&mut random))?;
        for &tokens in &args.tokens {
            let measure = if args.is_backward() { measure_pass } else { measure_case };
            measured.extend(measure(&case(tokens, shape, rank), &layers, args.trials, &mut random)?);
        }
    }
    emit(&print(&measured))?;
    emit(&overhead::print(&measured.iter().map(Row::cell).collect::<Vec<_>>()))?;
    let run = Run { peak_memory_bytes: peak_memory(), ..run };
    let (layout, backward) = (format!("{:?}", args.layout), args.is_backward());
    args.files.write(|| Report { run, layout, backward, cold_bytes: COLD_BYTES, rows: &measured }, &measured)
}

/// How each call would run: the layer with LoRA, or the two products of a training pass, and the layers of every adapter.
fn explain<W: Element>(args: &Args, case: &Case) -> Result<()> {
    let layers = Layers::<W>::new(case, 1, None)?;
    for &tokens in &args.tokens {
        let plan = layers.with_layer(0, |layer| layer.plan_forward::<W>(tokens))?;
        emit(&format!("{plan}\n"))?;
        if args.is_backward() {
            let plan = layers.with_layer(0, |layer| layer.plan_backward::<W>(tokens))?;
            emit(&format!("dx: {plan}\n"))?;
            continue;
        }
        for (which, adapter) in case.adapters().iter().enumerate() {
            let [down, up] = layers.with_adapter(which, 0, |adapter| adapter_plans(adapter, tokens))?;
            let norm = if adapter.has_norm { "LayerNorm, " } else { "" };
            emit(&format!("{}, width {}: {norm}down {down}; up {up}\n", adapter.name, adapter.width))?;
        }
    }
    Ok(())
}

/// Who takes part in a forward call: the base, fused, sequential, and the adapters in their order.
fn entries<W: Element>(case: &Case) -> Vec<Entry> {
    let entry = |variant, adapted: bool| Entry {
        variant,
        width: None,
        parameters: if adapted { case.parameters() } else { 0 },
        bytes: case.bytes::<W>(adapted),
        flops: case.flops(adapted),
    };
    let mut entries = vec![entry("base", false), entry("fused", true), entry("sequential", true)];
    entries.extend(case.adapters().map(|adapter| Entry {
        variant: adapter.name,
        width: Some(adapter.width),
        parameters: adapter.parameters(),
        bytes: case.bytes::<W>(false) + adapter.bytes(size_of::<W>()),
        flops: case.flops(false) + adapter.flops(case.tokens),
    }));
    entries
}

fn measure_case<W: Element>(case: &Case, layers: &Layers<W>, trials: usize, random: &mut Random) -> Result<Vec<Row>> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let x = random.normal::<W>(tokens * d_in, 1.0)?;
    let mut y = vec![W::default(); tokens * d_out];
    let (mut sequential, mut bottleneck) = (SequentialBuffers::new(), BottleneckBuffers::new());
    let mut workspace = vec![0.0; layers.workspaces(tokens, false)?[0]];
    let entries = entries::<W>(case);
    let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}"));
    let times = interleave(entries.len(), Trials::Count(trials), &bar, |contestant| {
        (0..layers.copies).try_for_each(|copy| {
            let x = MatrixRef::new(&x, tokens, d_in)?;
            let mut y = MatrixMut::new(&mut y, tokens, d_out)?;
            layers.with_layer(copy, |layer| match contestant {
                1 => cpu::forward(layer, x, &mut y, &mut workspace),
                2 => cpu::forward_sequential(layer, x, &mut y, &Epilogue::default(), &mut sequential),
                _ => cpu::forward(&LoraLinear { segments: &[], ..*layer }, x, &mut y, &mut workspace),
            })?;
            match contestant.checked_sub(entries.len() - ADAPTERS) {
                Some(which) => {
                    layers.with_adapter(which, copy, |adapter| cpu::bottleneck(adapter, &mut y, &mut bottleneck))
                }
                None => Ok(()),
            }
        })
    })?;
    Ok(rows(case, &entries, &times, layers.copies))
}

/// y with T kept, then dx, dA and dB; of the base y and dx alone.
fn measure_pass<W: Element>(case: &Case, layers: &Layers<W>, trials: usize, random: &mut Random) -> Result<Vec<Row>> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let (x, dy) = (random.normal::<W>(tokens * d_in, 1.0)?, random.normal::<W>(tokens * d_out, 1.0)?);
    let [mut y, mut dx] = [d_out, d_in].map(|columns| vec![W::default(); tokens * columns]);
    let [mut t, mut da, mut db] = [tokens * rank, rank * d_in, d_out * rank].map(|n| vec![0.0; n]);
    let mut workspace = vec![0.0; layers.workspaces(tokens, true)?[0]];
    let entries = ["base", "fused"].map(|variant| {
        let adapted = variant == "fused";
        Entry {
            variant,
            width: None,
            parameters: if adapted { case.parameters() } else { 0 },
            bytes: pass_bytes::<W>(case, adapted),
            flops: case.pass_flops(adapted),
        }
    });
    let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}, both ways"));
    let times = interleave(entries.len(), Trials::Count(trials), &bar, |contestant| {
        let adapted = contestant > 0;
        let (x, dy) = (MatrixRef::new(&x, tokens, d_in)?, MatrixRef::new(&dy, tokens, d_out)?);
        // All copies forward, then all backward: as in a model, each weight is cold when its turn comes.
        for copy in 0..layers.copies {
            let mut y = MatrixMut::new(&mut y, tokens, d_out)?;
            let t = adapted.then_some(&mut t[..]);
            layers.with_layer(copy, |layer| {
                let layer = if adapted { *layer } else { LoraLinear { segments: &[], ..*layer } };
                cpu::forward_with(&layer, x, &mut y, &Epilogue::default(), t, &mut workspace)
            })?;
        }
        (0..layers.copies).try_for_each(|copy| {
            let mut dx = MatrixMut::new(&mut dx, tokens, d_in)?;
            let (da, db) = (MatrixMut::new(&mut da, rank, d_in)?, MatrixMut::new(&mut db, d_out, rank)?);
            let (mut gradients, accumulate) = ([SegmentGradient { da, db }], Accumulate::Overwrite);
            layers.with_layer(copy, |layer| {
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
    Ok(rows(case, &entries, &times, layers.copies))
}

/// Bytes that a training pass must move: every operand once forward and once backward, T and the gradients in `f32`.
fn pass_bytes<W>(case: &Case, adapted: bool) -> usize {
    let kept = if adapted { 2 * case.tokens * case.rank + case.parameters() } else { 0 };
    let read_again = if adapted { case.tokens * case.d_in } else { 0 };
    2 * case.bytes::<W>(adapted) + read_again * size_of::<W>() + kept * size_of::<f32>()
}
