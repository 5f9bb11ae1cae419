//! `bench` on the emulator: counts the bytes that each launch requests, instead of timing it.

use anyhow::Result;
use fused_lora::device::{
    Device, DeviceBuffer, DeviceMatrix, DeviceMatrixMut, EmulatorConfig, Forward, ForwardOptions, LaunchCounters,
    Stream, Workspace,
};
use fused_lora::{Element, Error};
use fused_lora_gpt2::Random;
use serde::Serialize;

use super::Args;
use super::adapter_plan::AdapterPlan;
use super::backward::{Buffers, Plans};
use super::case::Case;
use super::device::{AdapterCopy, LayerCopy};
use super::variant::{BACKWARD, DX, FACTOR_GRADIENTS, FORWARD};
use crate::environment::Run;
use crate::output::{emit, table, with_commas};

/// SMs of the device that launches are planned for: an H100 or H200.
const MULTIPROCESSORS: u32 = 132;
/// The variant with LoRA.
const FUSED: &str = "fused";

#[derive(Debug, Serialize)]
struct Row {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    rank: usize,
    variant: &'static str,
    /// Hidden features of a bottleneck adapter.
    width: Option<usize>,
    /// Trainable parameters, |Θ|.
    parameters: usize,
    floor_bytes: usize,
    requested_bytes: u64,
    requested_over_floor: f64,
    distinct_bytes: u64,
    weight_loads: u64,
    weight_bytes_per_load: f64,
    weight_sectors_over_ideal: f64,
    matrix_instructions: u64,
    launch: String,
}

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    multiprocessors: u32,
    layout: String,
    rows: &'a [Row],
}

pub(super) fn measure<T: Element>(args: &Args) -> Result<()> {
    let config =
        EmulatorConfig { multiprocessors: MULTIPROCESSORS, count_transactions: true, ..EmulatorConfig::default() };
    let device = Device::emulator(config)?;
    let stream = Stream::new(&device)?;
    let run = Run { dtype: args.arithmetic(), ..Run::new("emulator", T::DTYPE) };
    let options = ForwardOptions { path: args.path(), ..ForwardOptions::default() };
    emit(&format!(
        "{}\n{}, planned for {MULTIPROCESSORS} SMs: counted, not timed\n\n",
        run.summary(),
        device.properties()
    ))?;
    let mut rows = vec![];
    for &(d_in, d_out) in &args.shapes {
        for &rank in &args.ranks {
            let case = Case { tokens: 1, d_in, d_out, rank, layout: args.layout.into() };
            let mut random = Random::new(0);
            let copy = LayerCopy::<T>::upload(&case, 1, &stream, &mut random)?.remove(0);
            let adapters = AdapterCopy::<T>::upload(&case, 1, &stream, &mut random)?;
            for &tokens in &args.tokens {
                if args.is_backward() {
                    let case = Case { tokens, ..case };
                    match Plans::new(&device, &case, &copy, true, args.path()) {
                        Ok(plans) => rows.extend(count_training_pass(&stream, &case, &copy, &plans)?),
                        Err(error @ Error::NoMatrixInstructions { .. }) => {
                            emit(&format!("{tokens} x {d_in} -> {d_out}, r {rank}: {error}\n"))?
                        }
                        Err(error) => return Err(error.into()),
                    }
                    continue;
                }
                for (variant, adapted) in [("base", false), (FUSED, true)] {
                    let case = Case { tokens, ..case };
                    let forward =
                        copy.with_layer(&case, adapted, |layer| Forward::with_options(&device, layer, tokens, options));
                    match forward {
                        Ok(forward) => rows.push(count(&stream, &case, &copy, variant, &forward)?),
                        Err(error @ Error::NoMatrixInstructions { .. }) => {
                            emit(&format!("{tokens} x {d_in} -> {d_out}, r {rank}, {variant}: {error}\n"))?
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                for adapter in adapters.iter().flatten() {
                    let case = Case { tokens, ..case };
                    match AdapterPlan::new(&device, adapter, tokens) {
                        Ok(plan) => rows.extend(count_adapter(&stream, &case, adapter, &plan)?),
                        Err(error @ (Error::NoMatrixInstructions { .. } | Error::RankOutOfRange { .. })) => {
                            emit(&format!("{case}, {}: {error}\n", adapter.adapter.name))?;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }
    emit(&print(&rows))?;
    let layout = format!("{:?}", args.layout);
    args.files.write(|| Report { run, multiprocessors: MULTIPROCESSORS, layout, rows: &rows }, &rows)
}

fn count<T: Element>(
    stream: &Stream,
    case: &Case,
    copy: &LayerCopy<T>,
    variant: &'static str,
    forward: &Forward<T>,
) -> Result<Row> {
    let &Case { tokens, d_in, d_out, .. } = case;
    let x = DeviceBuffer::from_slice(stream, &Random::new(1).normal::<T>(tokens * d_in, 1.0)?)?;
    let mut y = DeviceBuffer::<T>::zeros(stream, tokens * d_out)?;
    copy.with_layer(case, variant == FUSED, |layer| {
        let mut workspace = Workspace::new(stream, forward.workspace())?;
        let x = DeviceMatrix::new(x.as_slice(), tokens, d_in)?;
        let y = DeviceMatrixMut::new(y.as_mut_slice(), tokens, d_out)?;
        forward.launch(stream, layer, x, y, &mut workspace)
    })?;
    let counters = stream.device().take_counters().unwrap_or_default();
    let plan = forward.plan();
    Ok(Row::of(case, variant, plan.floor_bytes(), &counters, plan.to_string()))
}

/// The launches of a bottleneck adapter; they come after the launch of the base layer.
fn count_adapter<T: Element>(
    stream: &Stream,
    case: &Case,
    copy: &AdapterCopy<T>,
    plan: &AdapterPlan<T>,
) -> Result<Vec<Row>> {
    let len = case.tokens * case.d_out;
    let values = Random::new(2).normal::<T>(len, 1.0)?;
    let (y, between) = (DeviceBuffer::from_slice(stream, &values)?, DeviceBuffer::from_slice(stream, &values)?);
    let mut workspace = Workspace::new(stream, plan.workspace())?;
    plan.launch(stream, copy, case.tokens, &y, &between, &mut workspace)?;
    let counted = stream.device().take_all_counters();
    let rows = plan.launches(&copy.adapter).into_iter().zip(&counted);
    Ok(rows
        .map(|((variant, floor, launch), counters)| {
            let (width, parameters) = (Some(copy.adapter.width), copy.adapter.parameters());
            Row { width, parameters, ..Row::of(case, variant, floor, counters, launch) }
        })
        .collect())
}

/// Counts a training pass: a row for each launch, and one for both launches of the backward pass together.
fn count_training_pass<T: Element>(
    stream: &Stream,
    case: &Case,
    copy: &LayerCopy<T>,
    plans: &Plans<T>,
) -> Result<Vec<Row>> {
    let buffers = Buffers::new(stream, case.tokens, (case.d_in, case.d_out), case.rank)?;
    let mut workspace = Workspace::new(stream, plans.workspace())?;
    plans.launch(stream, case, [copy; 2], &buffers, &mut workspace)?;
    let (forward, backward) = (plans.forward.plan(), plans.backward.plan());
    let mut planned = vec![(FORWARD, plans.forward_floor_bytes(case), forward.to_string())];
    planned.extend(backward.input.as_ref().map(|plan| (DX, plan.floor_bytes, plan.to_string())));
    planned.extend(backward.gradients.as_ref().map(|plan| (FACTOR_GRADIENTS, plan.floor_bytes, plan.to_string())));
    let counted = stream.device().take_all_counters();
    let launches = planned.into_iter().zip(&counted);
    let mut rows: Vec<_> =
        launches.map(|((variant, floor, launch), counters)| Row::of(case, variant, floor, counters, launch)).collect();
    let sum = |of: fn(&Row) -> u64| rows.iter().skip(1).map(of).sum::<u64>();
    let (floor_bytes, requested_bytes) = (backward.floor_bytes(), sum(|row| row.requested_bytes));
    let together = Row {
        requested_bytes,
        requested_over_floor: requested_bytes as f64 / floor_bytes as f64,
        distinct_bytes: sum(|row| row.distinct_bytes),
        matrix_instructions: sum(|row| row.matrix_instructions),
        ..Row::of(case, BACKWARD, floor_bytes, &LaunchCounters::default(), backward.to_string())
    };
    rows.push(together);
    Ok(rows)
}

impl Row {
    fn of(case: &Case, variant: &'static str, floor_bytes: usize, counters: &LaunchCounters, launch: String) -> Self {
        let &Case { tokens, d_in, d_out, rank, .. } = case;
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        Self {
            tokens,
            d_in,
            d_out,
            rank,
            variant,
            width: None,
            parameters: if variant == "base" { 0 } else { case.parameters() },
            floor_bytes,
            requested_bytes: counters.requested_bytes(),
            requested_over_floor: counters.requested_bytes() as f64 / floor_bytes as f64,
            distinct_bytes: counters.distinct_load_bytes + counters.distinct_store_bytes,
            weight_loads: counters.once_instructions,
            weight_bytes_per_load: ratio(counters.once_bytes, counters.once_instructions),
            weight_sectors_over_ideal: ratio(counters.once_sectors, counters.once_ideal_sectors),
            matrix_instructions: counters.mma_instructions,
            launch,
        }
    }
}

fn print(rows: &[Row]) -> String {
    let header = [
        "layer",
        "tokens",
        "r",
        "variant",
        "|Θ|",
        "floor B",
        "requested B",
        "over floor",
        "distinct B",
        "B a weight load",
        "sectors over ideal",
        "mma",
    ];
    // Loads of weights are counted where they are marked as read once (gpu::load_once), in the decode kernels.
    let of_weight = |r: &Row, text: String| if r.weight_loads == 0 { "-".into() } else { text };
    let cells = rows.iter().map(|r| {
        vec![
            format!("{} -> {}", r.d_in, r.d_out),
            r.tokens.to_string(),
            r.rank.to_string(),
            r.variant.into(),
            with_commas(r.parameters),
            with_commas(r.floor_bytes),
            with_commas(usize::try_from(r.requested_bytes).unwrap_or(usize::MAX)),
            format!("{:.4}", r.requested_over_floor),
            with_commas(usize::try_from(r.distinct_bytes).unwrap_or(usize::MAX)),
            of_weight(r, format!("{:.0}", r.weight_bytes_per_load)),
            of_weight(r, format!("{:.3}", r.weight_sectors_over_ideal)),
            with_commas(usize::try_from(r.matrix_instructions).unwrap_or(usize::MAX)),
        ]
    });
    table(&header, cells)
}
