//! On a GPU: fused against base, ours and cuBLASLt's, against sequential, against a plain read of the weight; calls or
//! training passes.

use anyhow::{Context, Result};
use fused_lora::device::{Device, DeviceKind, Forward, ForwardOptions, Properties, Stream};
use fused_lora::{Element, Error};
use fused_lora_gpt2::Random;
use serde::Serialize;

use super::Args;
use super::backward::{Buffers, Plans};
use super::case::Case;
use super::contest::{Activations, Bench};
use super::copies::{Footprint, copies};
use super::cublaslt::CublasLt;
use super::device::{AdapterCopy, Copy, footprint};
use super::overhead;
use super::preset::Preset;
use super::rotation::COLD;
use super::row::{Row, print};
use super::summary::{self, Verdict, verdicts};
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
    /// Its version, or why it is missing.
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
            passes::<T>(args, &bench, shape, &mut rows)?;
        } else {
            layer::<T>(args, &bench, shape, &mut rows)?;
        }
        // What was measured so far outlives a job that is ended halfway.
        emit(&format!("{}\n", print(&rows[from..])))?;
        save(args, &rows, &run, properties, &library, false)?;
    }
    emit(&overhead::print(&rows.iter().map(Row::cell).collect::<Vec<_>>()))?;
    save(args, &rows, &run, properties, &library, true)?;
    emit(&summary::print(&verdicts(&rows, args.is_backward())))
}

/// All ranks and tokens of one layer.
fn layer<T: Element>(args: &Args, bench: &Bench<'_>, shape: (usize, usize), rows: &mut Vec<Row>) -> Result<()> {
    let &Bench { device, stream, path, .. } = bench;
    let options = ForwardOptions { path, ..ForwardOptions::default() };
    let (d_in, d_out) = shape;
    let case = |tokens, rank| Case { tokens, d_in, d_out, rank, layout: args.layout.into() };
    let most_tokens = args.tokens.iter().copied().max().unwrap_or(1);
    // x, y and what lies between a layer and an adapter; workspaces are smaller than the half that stays free.
    let once = most_tokens * (d_in + 2 * d_out) * size_of::<T>();
    let activations = Activations::<T>::new(stream, most_tokens, shape)?;
    for &rank in &args.ranks {
        let wanted = |tokens| {
            let case = case(tokens, rank);
            cold_copies::<T>(device, &case, &footprint::<T>(&case, true, once))
        };
        let most = args.tokens.iter().try_fold(0, |most, &tokens| anyhow::Ok(most.max(wanted(tokens)?)))?;
        let mut random = Random::new(0);
        let copies = Copy::<T>::several(&case(1, rank), most, stream, &mut random)?;
        let adapters = AdapterCopy::<T>::several(&case(1, rank), most, stream, &mut random)?;
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

/// The same of training passes.
fn passes<T: Element>(args: &Args, bench: &Bench<'_>, shape: (usize, usize), rows: &mut Vec<Row>) -> Result<()> {
    let &Bench { device, stream, path, .. } = bench;
    let (d_in, d_out) = shape;
    let case = |tokens, rank| Case { tokens, d_in, d_out, rank, layout: args.layout.into() };
    let most_tokens = args.tokens.iter().copied().max().unwrap_or(1);
    let rank = args.ranks.iter().copied().max().unwrap_or(1);
    let buffers = Buffers::<T>::new(stream, most_tokens, shape, rank)?;
    // x, y, dy and dx.
    let once = 2 * most_tokens * (d_in + d_out) * size_of::<T>();
    for &rank in &args.ranks {
        // A pass reads its two weights half a round apart.
        let wanted = |tokens| {
            let (case, one) = (case(tokens, rank), footprint::<T>(&case(tokens, rank), false, once));
            let pair = Footprint { copy: 2 * one.copy, ..one };
            anyhow::Ok(2 * cold_copies::<T>(device, &case, &pair)?)
        };
        let most = args.tokens.iter().try_fold(0, |most, &tokens| anyhow::Ok(most.max(wanted(tokens)?)))?;
        let copies = Copy::<T>::several(&case(1, rank), most, stream, &mut Random::new(0))?;
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

/// Copies of a layer to walk through. x and y are the same in every launch and push a weight
/// out of the cache as well as other weights do.
fn cold_copies<T>(device: &Device, case: &Case, footprint: &Footprint) -> Result<usize> {
    let properties = device.properties();
    let walked = case.tokens * (case.d_in + case.d_out) * size_of::<T>();
    copies(COLD * properties.l2_bytes, walked, footprint, properties.memory_bytes).with_context(|| case.to_string())
}

/// Writes what was measured; before it `is_last`, only to files, which the next call replaces.
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
        times_l2: COLD,
        goals: &goals,
        rows,
    };
    if is_last { args.files.write(report, rows) } else { args.files.write_so_far(report, rows) }
}
