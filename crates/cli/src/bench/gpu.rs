//! `bench` on a GPU, of forward calls or training passes: fused LoRA, the base layer by our kernels and by cuBLASLt,
//! sequential LoRA by cuBLASLt, bottleneck adapters, and a kernel that only reads the weight.

use anyhow::{Context, Result};
use fused_lora::device::{Device, DeviceKind, Forward, ForwardOptions, Properties, Stream};
use fused_lora::{Element, Error};
use fused_lora_gpt2::Random;
use serde::Serialize;

use super::Args;
use super::backward::{Buffers, Plans};
use super::case::Case;
use super::comparison::{Activations, Bench};
use super::copies::{Footprint, copies};
use super::cublaslt::CublasLt;
use super::device::{AdapterCopy, LayerCopy, footprint};
use super::goals::{self, Verdict, verdicts};
use super::launch_timer::L2_MULTIPLE;
use super::overhead;
use super::preset::Preset;
use super::row::{Row, print};
use crate::environment::Run;
use crate::output::emit;

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    gpu: String,
    compute_capability: String,
    multiprocessors: u32,
    l2_bytes: usize,
    driver_cuda: String,
    /// The library's version, or why it is missing.
    cublaslt: String,
    kernels: String,
    layout: String,
    preset: Option<Preset>,
    backward: bool,
    times_l2: usize,
    goals: &'a [Verdict],
    rows: &'a [Row],
}

pub(super) fn measure<T: Element>(args: &Args) -> Result<()> {
    let device = Device::cuda(0)?;
    let stream = Stream::new(&device)?;
    let cublaslt = CublasLt::load(&stream);
    let run = Run { dtype: args.arithmetic(), ..Run::new("cuda", T::DTYPE) };
    let properties = device.properties();
    let library = match &cublaslt {
        Ok(library) => format!("cuBLASLt {}", library.version),
        Err(reason) => format!("no cuBLASLt: {reason:#}"),
    };
    emit(&format!("{}\n{properties}, {} SMs, {library}\n\n", run.summary(), properties.multiprocessors))?;
    let bench = Bench {
        device: &device,
        stream: &stream,
        cublaslt: cublaslt.as_ref().ok(),
        path: args.path(),
        trials: args.trials,
    };
    let mut rows = vec![];
    for &shape in &args.shapes {
        let from = rows.len();
        if args.is_backward() {
            measure_training::<T>(args, &bench, shape, &mut rows)?;
        } else {
            measure_forward::<T>(args, &bench, shape, &mut rows)?;
        }
        // Written after every shape, so that an interrupted run leaves its results.
        emit(&format!("{}\n", print(&rows[from..])))?;
        save(args, &rows, &run, properties, &library, false)?;
    }
    emit(&overhead::print(&rows.iter().map(Row::cell).collect::<Vec<_>>()))?;
    save(args, &rows, &run, properties, &library, true)?;
    emit(&goals::print(&verdicts(&rows, args.is_backward())))
}

/// Times forward calls for all ranks and numbers of tokens of one layer.
fn measure_forward<T: Element>(
    args: &Args,
    bench: &Bench<'_>,
    shape: (usize, usize),
    rows: &mut Vec<Row>,
) -> Result<()> {
    let &Bench { device, stream, path, .. } = bench;
    let options = ForwardOptions { path, ..ForwardOptions::default() };
    let (d_in, d_out) = shape;
    let case = |tokens, rank| Case { tokens, d_in, d_out, rank, layout: args.layout.into() };
    let max_tokens = args.tokens.iter().copied().max().unwrap_or(1);
    // x, y, and the buffer between a layer and an adapter. Workspaces fit into the half of memory that stays free.
    let shared = max_tokens * (d_in + 2 * d_out) * size_of::<T>();
    let activations = Activations::<T>::new(stream, max_tokens, shape)?;
    for &rank in &args.ranks {
        let wanted = |tokens| {
            let case = case(tokens, rank);
            cold_copies::<T>(device, &case, &footprint::<T>(&case, true, shared))
        };
        let max_copies =
            args.tokens.iter().try_fold(0, |max_copies, &tokens| anyhow::Ok(max_copies.max(wanted(tokens)?)))?;
        let mut random = Random::new(0);
        let copies = LayerCopy::<T>::upload(&case(1, rank), max_copies, stream, &mut random)?;
        let adapters = AdapterCopy::<T>::upload(&case(1, rank), max_copies, stream, &mut random)?;
        for &tokens in &args.tokens {
            let (wanted, case) = (wanted(tokens)?, case(tokens, rank));
            let plan = |adapted| {
                copies[0].with_layer(&case, adapted, |layer| Forward::with_options(device, layer, tokens, options))
            };
            match plan(false).and_then(|base| Ok([base, plan(true)?])) {
                Ok(plans) => rows.extend(bench.case(&case, &copies[..wanted], &adapters, &activations, &plans)?),
                Err(error @ Error::NoMatrixInstructions { .. }) => {
                    emit(&format!("{tokens} x {d_in} -> {d_out}, r {rank}: {error}\n"))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Times training passes for all ranks and numbers of tokens of one layer.
fn measure_training<T: Element>(
    args: &Args,
    bench: &Bench<'_>,
    shape: (usize, usize),
    rows: &mut Vec<Row>,
) -> Result<()> {
    let &Bench { device, stream, path, .. } = bench;
    let (d_in, d_out) = shape;
    let case = |tokens, rank| Case { tokens, d_in, d_out, rank, layout: args.layout.into() };
    let max_tokens = args.tokens.iter().copied().max().unwrap_or(1);
    let rank = args.ranks.iter().copied().max().unwrap_or(1);
    let buffers = Buffers::<T>::new(stream, max_tokens, shape, rank)?;
    // x, y, dy and dx.
    let shared = 2 * max_tokens * (d_in + d_out) * size_of::<T>();
    for &rank in &args.ranks {
        // The forward and the backward pass take copies that are half a round apart.
        let wanted = |tokens| {
            let (case, one) = (case(tokens, rank), footprint::<T>(&case(tokens, rank), false, shared));
            let pair = Footprint { per_copy: 2 * one.per_copy, ..one };
            anyhow::Ok(2 * cold_copies::<T>(device, &case, &pair)?)
        };
        let max_copies =
            args.tokens.iter().try_fold(0, |max_copies, &tokens| anyhow::Ok(max_copies.max(wanted(tokens)?)))?;
        let copies = LayerCopy::<T>::upload(&case(1, rank), max_copies, stream, &mut Random::new(0))?;
        for &tokens in &args.tokens {
            let (wanted, case) = (wanted(tokens)?, case(tokens, rank));
            let plans = |adapted| Plans::new(device, &case, &copies[0], adapted, path);
            match plans(false).and_then(|frozen| Ok([frozen, plans(true)?])) {
                Ok(plans) => rows.extend(bench.passes(&case, &copies[..wanted], &buffers, &plans)?),
                Err(error @ Error::NoMatrixInstructions { .. }) => {
                    emit(&format!("{tokens} x {d_in} -> {d_out}, r {rank}: {error}\n"))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// The number of copies of a layer. All launches share x and y, which displace weights from the cache as other copies
/// do.
fn cold_copies<T>(device: &Device, case: &Case, footprint: &Footprint) -> Result<usize> {
    let properties = device.properties();
    let activation_bytes = case.tokens * (case.d_in + case.d_out) * size_of::<T>();
    copies(L2_MULTIPLE * properties.l2_bytes, activation_bytes, footprint, properties.memory_bytes)
        .with_context(|| case.to_string())
}

/// Writes the results. Unless it `is_last`, only to regular files, which the next call replaces.
fn save(args: &Args, rows: &[Row], run: &Run, properties: &Properties, cublaslt: &str, is_last: bool) -> Result<()> {
    let (major, minor) = properties.compute_capability;
    let goals = verdicts(rows, args.is_backward());
    let report = || Report {
        run: run.clone(),
        gpu: properties.name.clone(),
        compute_capability: format!("{major}.{minor}"),
        multiprocessors: properties.multiprocessors,
        l2_bytes: properties.l2_bytes,
        driver_cuda: match properties.kind {
            DeviceKind::Cuda { driver_version: (major, minor), .. } => format!("{major}.{minor}"),
            _ => String::new(),
        },
        cublaslt: cublaslt.to_owned(),
        kernels: format!("{:?}", fused_lora::device::built_in()),
        layout: format!("{:?}", args.layout),
        preset: args.preset,
        backward: args.is_backward(),
        times_l2: L2_MULTIPLE,
        goals: &goals,
        rows,
    };
    if is_last { args.files.write(report, rows) } else { args.files.write_so_far(report, rows) }
}
