//! `table1`: times a forward pass with every method, next to the paper's figures.

mod gpu;
mod paper;
mod paper_figures;
mod picture;
mod row;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use fused_lora::Element;
use fused_lora_gpt2::adapter::lora::Target;
use serde::Serialize;

use crate::column::Column;
use crate::common::{Backend, ComputeArgs, ModelArgs, ResultFiles, parse_budget, parse_size, with_dtype};
use crate::environment::{Run, peak_memory};
use crate::method::{self, AdapterSizes, Kind, Method, MethodSelection};
use crate::output::{emit, progress, with_commas};
use crate::passes::{Executor, Mode, PassConfig, clocks};
use crate::trial::{Trials, interleave_timed};
use gpu::Gpu;
use paper_figures::{PAPER, PaperColumn};
use row::{Row, print_column, rows_of};

const EXAMPLES: &str = "\
Examples:
  fused-lora table1
      GPT-2 medium with random weights, one sequence of 128 tokens, about two minutes
  fused-lora table1 --columns 1x128,16x256 --trials 20 --json table1.json --plot table1.svg
      Two of the paper's columns
  fused-lora table1 --model ./gpt2-medium --methods none,lora-fused,lora-fused:112,adapter-h-drop12
      Weights from a folder; LoRA at two ranks; Adapter^H without its lowest twelve layers
  fused-lora table1 --device cuda --dtype bf16 --trials 100
      On a GPU: every method issued launch by launch and as one CUDA graph
  fused-lora table1 --device cuda --dtype bf16 --graph --decode --columns 1x128,1x1024 --lm-head
      One token after 127 and after 1023 others, with a KV cache";

/// Arguments of `table1`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    files: ResultFiles,
    /// Columns, as batch x tokens; the paper has 1x128, 16x256 and 32x512
    #[arg(long, value_delimiter = ',', default_value = "1x128")]
    columns: Vec<Column>,
    /// Methods, as NAME[-dropN][:SIZE]: none, lora-merged, lora-fused, lora-slot (on a device, with adapters that can
    /// be swapped under a captured graph), lora-sequential, lora-dense-delta, adapter-h, adapter-l, adapter-p,
    /// prefix-layer, prefix-embedding, lora-prefix. -dropN leaves out the adapters of the lowest N layers; SIZE is a
    /// rank, a bottleneck width or a prefix length [default: all but lora-slot, without those that do not fit the model
    /// or the column]
    #[arg(long, value_delimiter = ',', value_name = "METHOD,…")]
    methods: Vec<Method>,
    /// Timed passes of each method in each column [default: as many as fit into --time]
    #[arg(long, value_parser = parse_size)]
    trials: Option<usize>,
    /// Seconds for all columns together, if --trials is not given
    #[arg(long, default_value_t = 100.0, value_parser = seconds)]
    time: f64,
    /// On a device, time passes that are issued launch by launch [default: time both this and --graph]
    #[arg(long)]
    eager: bool,
    /// On a device, time passes that are replayed from one captured graph
    #[arg(long)]
    graph: bool,
    /// On a device, let a launch begin before the preceding one has ended (programmatic dependent launch)
    #[arg(long)]
    dependent: bool,
    /// Time one token of each sequence with a KV cache; the column's tokens are its context and itself
    #[arg(long)]
    decode: bool,
    /// Compute logits in each pass, not only hidden states
    #[arg(long)]
    lm_head: bool,
    /// Projections that get a LoRA: q, k, v, c_attn, attn.c_proj, c_fc, mlp.c_proj
    #[arg(long, value_delimiter = ',', default_value = "q,v")]
    targets: Vec<Target>,
    /// LoRA's rank
    #[arg(long, default_value_t = 4, value_parser = parse_size)]
    rank: usize,
    /// Parameters of bottleneck adapters and prefix-layer, such as 11M [default: the paper's for the column]
    #[arg(long, value_parser = parse_budget)]
    params: Option<usize>,
    /// Draw the table as a bar chart
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

fn default_methods() -> Vec<Method> {
    let kinds = method::NAMES.iter().map(|&(_, kind)| kind).filter(|&kind| kind != Kind::LoraSlot);
    kinds.map(|kind| Method { kind, drop: 0, size: None }).collect()
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0).ok_or_else(|| format!("'{text}' is not a time"))
}

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    model: &'a str,
    model_parameters: usize,
    lm_head: bool,
    gpu: Option<Gpu>,
    rows: &'a [Row],
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.files.check(args.plot.as_ref(), &[Path::new(&args.model.model)])?;
    let backend = args.compute.start(&[Backend::Cpu, Backend::Cuda, Backend::Emulator])?;
    with_dtype!(args.compute.dtype, measure(args, backend))
}

fn measure<W: Element>(args: &Args, backend: Backend) -> Result<()> {
    let base = args.model.load::<W>()?;
    let run = Run::new(backend.name(), W::DTYPE);
    let what = if args.lm_head { "logits" } else { "hidden states" };
    let pass = if args.decode { "one token with a KV cache" } else { "forward pass" };
    emit(&format!(
        "{}: {} parameters, {pass} to the {what}\n{}\n",
        args.model.model,
        with_commas(base.parameters()),
        run.summary()
    ))?;
    let mut executor = Executor::start(backend, &base)?;
    let mut gpu = executor.device().map(Gpu::of);
    if let Some(Gpu { name, multiprocessors, l2_bytes, clocks_before, .. }) = &gpu {
        let clocks = clocks_before.as_deref().unwrap_or("clocks unknown");
        emit(&format!("{name}, {multiprocessors} SMs, {} MiB of L2, {clocks}\n", l2_bytes >> 20))?;
    }
    emit("\n")?;
    let mut rows = vec![];
    for &column in &args.columns {
        let measured = measure_column(args, backend, &base, column, &mut executor)?;
        emit(&print_column(args.decode, column, &measured))?;
        rows.extend(measured);
        // Written after every column, so that an interrupted run leaves its results.
        if let Some(gpu) = &mut gpu {
            gpu.clocks_after = clocks();
        }
        let report = report(args, &run, base.parameters(), gpu.as_ref(), &rows);
        args.files.write_so_far(report, &rows)?;
    }
    args.files.write(report(args, &run, base.parameters(), gpu.as_ref(), &rows), &rows)?;
    if let Some(path) = &args.plot {
        picture::draw(path, &args.model.model, what, &run, &rows)?;
    }
    Ok(())
}

/// The content of the JSON file, as a function that is called when it is written.
fn report<'a>(
    args: &'a Args,
    run: &'a Run,
    model_parameters: usize,
    gpu: Option<&'a Gpu>,
    rows: &'a [Row],
) -> impl FnOnce() -> Report<'a> {
    move || {
        let run = Run { peak_memory_bytes: peak_memory(), ..run.clone() };
        Report { run, model: &args.model.model, model_parameters, lm_head: args.lm_head, gpu: gpu.cloned(), rows }
    }
}

fn measure_column<W: Element>(
    args: &Args,
    backend: Backend,
    base: &fused_lora_gpt2::Model<W>,
    column: Column,
    executor: &mut Executor<W>,
) -> Result<Vec<Row>> {
    let paper = PaperColumn::of(column).filter(|_| !args.decode);
    let own_widths = args.params.is_none()
        && base.config == fused_lora_gpt2::Config::named("gpt2-medium").unwrap_or_else(|| base.config.clone());
    let sizes = AdapterSizes {
        targets: args.targets.clone(),
        rank: args.rank,
        alpha: 32.0,
        parameters: args.params.or(paper.map(|p| p.parameters)).unwrap_or(PAPER[0].parameters),
        houlsby_width: paper.or(Some(&PAPER[0])).filter(|_| own_widths).map(|p| p.houlsby_width),
        lin_width: paper.or(Some(&PAPER[0])).filter(|_| own_widths).map(|p| p.lin_width),
        seed: args.model.seed,
    };
    let fits = |method: &Method| method.check(&base.config, &sizes, column.tokens, backend);
    let MethodSelection { methods, left_out } = MethodSelection::new(&args.methods, default_methods(), fits)?;
    for (method, reason) in left_out {
        emit(&format!("{} x {}: {method} is left out: {reason}\n", column.batch, column.tokens))?;
    }
    let prepared: Vec<_> = methods.iter().map(|m| m.prepare(base, &sizes)).collect::<Result<_>>()?;
    let modes = match (args.eager, args.graph) {
        (true, false) => vec![Mode::Eager],
        (false, true) => vec![Mode::Graph],
        _ => vec![Mode::Eager, Mode::Graph],
    };
    let config = PassConfig {
        column,
        decode: args.decode,
        logits: args.lm_head,
        dependent: args.dependent,
        modes,
        seed: args.model.seed,
    };
    let mut comparison = executor.compare(&prepared, &config)?;
    let trials = match args.trials {
        // Times on the emulator mean nothing.
        _ if backend == Backend::Emulator => Trials::Count(1),
        Some(count) => Trials::Count(count),
        None => Trials::Within(Duration::from_secs_f64(args.time / args.columns.len() as f64)),
    };
    let bar = progress((2 * comparison.len()) as u64, &format!("{}x{}", column.batch, column.tokens));
    let mut host = vec![vec![]; comparison.len()];
    let times = interleave_timed(comparison.len(), trials, &bar, |i| {
        let time = comparison.run(i)?;
        host[i].push(time.host_ms);
        Ok::<_, anyhow::Error>(time.ms)
    })?;
    Ok(rows_of(column, args.decode, &prepared, &comparison, &times, &host))
}
