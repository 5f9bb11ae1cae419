//! `bench` on the CPU. Forward calls: fused LoRA, sequential LoRA, bottleneck adapters and the base layer alone.
//! Training passes: fused LoRA and the base layer.

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
use super::cpu_layers::{LayerCopies, adapter_plans, weights};
use super::cpu_row::{Row, VariantInfo, print, rows};
use super::overhead;
use crate::environment::{Run, available_memory, peak_memory};
use crate::output::{emit, progress};
use crate::trial::{Trials, interleave};

/// Bytes of weights that a round goes through, so that every call reads its weights from memory: three times the size
/// of the largest last-level caches.
const COLD_BYTES: usize = 192 << 20;

/// Bytes of memory that are assumed to be available if the system does not tell.
const UNKNOWN_MEMORY: u64 = 4 << 30;

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    layout: String,
    backward: bool,
    /// Weights are copied until a round goes through this many bytes of them, as far as memory allows.
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
    // All cases must fit into memory, which is checked before the first is measured.
    let max_tokens = args.tokens.iter().copied().max().unwrap_or(1);
    let available = usize::try_from(available_memory().unwrap_or(UNKNOWN_MEMORY)).unwrap_or(usize::MAX);
    let checked_copies = |&(shape, rank): &((usize, usize), usize)| {
        let case = case(max_tokens, shape, rank);
        let copies = |footprint| copies(COLD_BYTES, 0, &footprint, available).with_context(|| case.to_string());
        // The footprint follows from plans, and a plan is made from a layer, so one copy must fit first.
        copies(weights::<W>(&case))?;
        copies(LayerCopies::<W>::new(&case, 1, None)?.footprint(max_tokens, args.is_backward())?)
    };
    let copies = layers.iter().map(checked_copies).collect::<Result<Vec<_>>>()?;
    let mut measured = vec![];
    for (&(shape, rank), copies) in layers.iter().zip(copies) {
        let mut random = Random::new(0);
        let layers = LayerCopies::<W>::new(&case(1, shape, rank), copies, Some(&mut random))?;
        for &tokens in &args.tokens {
            let measure = if args.is_backward() { measure_training_pass } else { measure_forward };
            measured.extend(measure(&case(tokens, shape, rank), &layers, args.trials, &mut random)?);
        }
    }
    emit(&print(&measured))?;
    emit(&overhead::print(&measured.iter().map(Row::cell).collect::<Vec<_>>()))?;
    let run = Run { peak_memory_bytes: peak_memory(), ..run };
    let (layout, backward) = (format!("{:?}", args.layout), args.is_backward());
    args.files.write(|| Report { run, layout, backward, cold_bytes: COLD_BYTES, rows: &measured }, &measured)
}

/// Prints how each call would run: the layer with LoRA and every adapter or, of a training pass, its two products.
fn explain<W: Element>(args: &Args, case: &Case) -> Result<()> {
    let layers = LayerCopies::<W>::new(case, 1, None)?;
    for &tokens in &args.tokens {
        let plan = layers.with_layer(0, |layer| layer.plan_forward::<W>(tokens))?;
        emit(&format!("{plan}\n"))?;
        if args.is_backward() {
            let plan = layers.with_layer(0, |layer| layer.plan_backward::<W>(tokens))?;
            emit(&format!("dx: {plan}\n"))?;
            continue;
        }
        for (index, adapter) in case.adapters().iter().enumerate() {
            let [down, up] = layers.with_adapter(index, 0, |adapter| adapter_plans(adapter, tokens))?;
            let norm = if adapter.has_norm { "LayerNorm, " } else { "" };
            emit(&format!("{}, width {}: {norm}down {down}; up {up}\n", adapter.name, adapter.width))?;
        }
    }
    Ok(())
}

/// The variants of a forward call: base, fused, sequential, and the adapters in the order of their names.
fn infos<W: Element>(case: &Case) -> Vec<VariantInfo> {
    let info = |variant, adapted: bool| VariantInfo {
        variant,
        width: None,
        parameters: if adapted { case.parameters() } else { 0 },
        bytes: case.bytes::<W>(adapted),
        flops: case.flops(adapted),
    };
    let mut infos = vec![info("base", false), info("fused", true), info("sequential", true)];
    infos.extend(case.adapters().map(|adapter| VariantInfo {
        variant: adapter.name,
        width: Some(adapter.width),
        parameters: adapter.parameters(),
        bytes: case.bytes::<W>(false) + adapter.bytes(size_of::<W>()),
        flops: case.flops(false) + adapter.flops(case.tokens),
    }));
    infos
}

fn measure_forward<W: Element>(
    case: &Case,
    layers: &LayerCopies<W>,
    trials: usize,
    random: &mut Random,
) -> Result<Vec<Row>> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let x = random.normal::<W>(tokens * d_in, 1.0)?;
    let mut y = vec![W::default(); tokens * d_out];
    let (mut sequential, mut bottleneck) = (SequentialBuffers::new(), BottleneckBuffers::new());
    let mut workspace = vec![0.0; layers.workspaces(tokens, false)?[0]];
    let infos = infos::<W>(case);
    let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}"));
    let times = interleave(infos.len(), Trials::Count(trials), &bar, |variant| {
        (0..layers.copies).try_for_each(|copy| {
            let x = MatrixRef::new(&x, tokens, d_in)?;
            let mut y = MatrixMut::new(&mut y, tokens, d_out)?;
            layers.with_layer(copy, |layer| match variant {
                1 => cpu::forward(layer, x, &mut y, &mut workspace),
                2 => cpu::forward_sequential(layer, x, &mut y, &Epilogue::default(), &mut sequential),
                _ => cpu::forward(&LoraLinear { segments: &[], ..*layer }, x, &mut y, &mut workspace),
            })?;
            match variant.checked_sub(infos.len() - ADAPTERS) {
                Some(index) => {
                    layers.with_adapter(index, copy, |adapter| cpu::bottleneck(adapter, &mut y, &mut bottleneck))
                }
                None => Ok(()),
            }
        })
    })?;
    Ok(rows(case, &infos, &times, layers.copies))
}

/// Times training passes: y with T saved, then dx, dA and dB; for the base layer only y and dx.
fn measure_training_pass<W: Element>(
    case: &Case,
    layers: &LayerCopies<W>,
    trials: usize,
    random: &mut Random,
) -> Result<Vec<Row>> {
    let Case { tokens, d_in, d_out, rank, .. } = *case;
    let (x, dy) = (random.normal::<W>(tokens * d_in, 1.0)?, random.normal::<W>(tokens * d_out, 1.0)?);
    let [mut y, mut dx] = [d_out, d_in].map(|columns| vec![W::default(); tokens * columns]);
    let [mut t, mut da, mut db] = [tokens * rank, rank * d_in, d_out * rank].map(|n| vec![0.0; n]);
    let mut workspace = vec![0.0; layers.workspaces(tokens, true)?[0]];
    let infos = ["base", "fused"].map(|variant| {
        let adapted = variant == "fused";
        VariantInfo {
            variant,
            width: None,
            parameters: if adapted { case.parameters() } else { 0 },
            bytes: training_bytes::<W>(case, adapted),
            flops: case.training_flops(adapted),
        }
    });
    let bar = progress(1, &format!("{tokens} x {d_in}->{d_out} r {rank}, both ways"));
    let times = interleave(infos.len(), Trials::Count(trials), &bar, |variant| {
        let adapted = variant > 0;
        let (x, dy) = (MatrixRef::new(&x, tokens, d_in)?, MatrixRef::new(&dy, tokens, d_out)?);
        // As in a model, all forward passes come before all backward passes, so each weight is read from memory.
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
    Ok(rows(case, &infos, &times, layers.copies))
}

/// Bytes that a training pass must move at least: every operand once forward and once backward. T and gradients are
/// `f32`.
fn training_bytes<W>(case: &Case, adapted: bool) -> usize {
    let saved = if adapted { 2 * case.tokens * case.rank + case.parameters() } else { 0 };
    let read_again = if adapted { case.tokens * case.d_in } else { 0 };
    2 * case.bytes::<W>(adapted) + read_again * size_of::<W>() + saved * size_of::<f32>()
}
