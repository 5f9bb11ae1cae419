//! `sweep`: the paper's Figure 5, the slow-down by batch size and rank for each sequence length.

mod cell;
mod picture;

use std::path::{Path, PathBuf};

use anyhow::Result;
use fused_lora::Element;
use fused_lora::device::Device;
use fused_lora_gpt2::adapter::lora::Target;
use fused_lora_gpt2::{Config, Model, Output};
use serde::Serialize;

use crate::column::Column;
use crate::common::{Backend, ComputeArgs, ModelArgs, ResultFiles, parse_size, with_dtype};
use crate::environment::Run;
use crate::method::{AdapterSizes, Kind, Method, MethodSelection};
use crate::output::{emit, progress};
use crate::passes::{Executor, Mode, PassConfig};
use crate::setting::SweepSetting;
use crate::stats::{Overhead, median};
use crate::trial::{Trials, interleave_timed};
use cell::{Cell, print, same_cell};

const EXAMPLES: &str = "\
Examples:
  fused-lora sweep
      128 tokens, batch 1, 2 and 4, ranks 10, 100 and 250, a few minutes
  fused-lora sweep --sequences 128,256,512 --batches 1,2,4,8,16,32 --json figure5.json --plot figure5.svg
      All of Figure 5. This takes hours on a CPU. It can be stopped at any time; the same command then continues.
      One file never holds cells of different models, builds, machines or settings";

/// Arguments of `sweep`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    files: ResultFiles,
    /// Sequence lengths; the paper has 128, 256 and 512
    #[arg(long, value_delimiter = ',', default_value = "128", value_parser = parse_size)]
    sequences: Vec<usize>,
    /// Batch sizes; the paper has 1 to 32
    #[arg(long, value_delimiter = ',', default_value = "1,2,4", value_parser = parse_size)]
    batches: Vec<usize>,
    /// Bottleneck widths and LoRA ranks; 0 compares the base model with itself, which shows the noise
    #[arg(long, value_delimiter = ',', default_value = "0,10,100,250")]
    ranks: Vec<usize>,
    /// Methods to compare with the base model [default: adapter-h,adapter-l,lora-fused,lora-sequential, without those
    /// that do not fit the model]
    #[arg(long, value_delimiter = ',', value_name = "METHOD,…")]
    methods: Vec<Method>,
    /// Projections that get a LoRA
    #[arg(long, value_delimiter = ',', default_value = "q,v")]
    targets: Vec<Target>,
    /// On a device, issue a pass launch by launch [default: as one captured graph]
    #[arg(long)]
    eager: bool,
    /// Timed passes a cell
    #[arg(long, default_value_t = 5, value_parser = parse_size)]
    trials: usize,
    /// Measure all cells again, and replace those that the --json file holds from an earlier run
    #[arg(long)]
    restart: bool,
    /// Draw a heat map for each method and sequence length
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    setting: &'a SweepSetting,
    rows: &'a [Cell],
}

/// Cells that are measured together.
struct Group {
    column: Column,
    rank: usize,
    methods: Vec<Method>,
}

const NONE: Method = Method { kind: Kind::None, drop: 0, size: None };

/// The method with this rank as its size; at rank 0, the base model.
fn at_rank(method: &Method, rank: usize) -> Method {
    if rank == 0 { NONE } else { Method { size: Some(rank), ..method.clone() } }
}

impl Args {
    /// All groups, and a line for each method and rank that does not fit the model.
    fn groups(&self, config: &Config, backend: Backend) -> Result<(Vec<Group>, String)> {
        let (mut groups, mut left_out) = (vec![], String::new());
        for (&tokens, &batch) in self.sequences.iter().flat_map(|t| self.batches.iter().map(move |b| (t, b))) {
            for &rank in &self.ranks {
                let sizes = self.sizes(config, rank);
                NONE.check(config, &sizes, tokens, backend)?;
                let fits = |method: &Method| at_rank(method, rank).check(config, &sizes, tokens, backend);
                let choice = MethodSelection::new(&self.methods, default_methods(), fits)?;
                for (method, reason) in choice.left_out {
                    let line = format!("{method} is left out at {tokens} tokens and r {rank}: {reason}\n");
                    // Once for all batch sizes.
                    left_out += if left_out.contains(&line) { "" } else { &line };
                }
                groups.push(Group { column: Column { batch, tokens }, rank, methods: choice.methods });
            }
        }
        Ok((groups, left_out))
    }

    fn sizes(&self, config: &Config, rank: usize) -> AdapterSizes {
        AdapterSizes {
            targets: self.targets.clone(),
            rank,
            alpha: 32.0,
            // The rank is every method's size, but not that of the prefix of lora-prefix, which gets the parameters of
            // one token.
            parameters: 2 * config.layers * config.d_model,
            houlsby_width: None,
            lin_width: None,
            seed: self.model.seed,
        }
    }

    fn mode(&self) -> Mode {
        if self.eager { Mode::Eager } else { Mode::Graph }
    }

    /// The name of the device and how passes are issued to it. All cells of a sweep must agree in both.
    fn device_setting(&self, backend: Backend) -> Result<String> {
        Ok(match backend {
            Backend::Cuda => {
                format!("{}, {}", Device::cuda(0)?.properties().name, if self.eager { "eager" } else { "graph" })
            }
            _ => backend.name().to_owned(),
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.files.check(args.plot.as_ref(), &[Path::new(&args.model.model)])?;
    let backend = args.compute.start(&[Backend::Cpu, Backend::Cuda])?;
    with_dtype!(args.compute.dtype, measure(args, backend))
}

fn measure<W: Element>(args: &Args, backend: Backend) -> Result<()> {
    let run = Run::new(backend.name(), W::DTYPE);
    let targets = format!("{:?}", args.targets);
    let model = (&*args.model.model, args.model.seed);
    let setting = SweepSetting::new(&run, args.device_setting(backend)?, model, targets, args.trials)?;
    let mut cells = match &args.files.json {
        Some(path) if !args.restart && path.exists() && Output::at(path)?.is_replaced() => {
            setting.earlier_cells(path)?
        }
        _ => vec![],
    };
    emit(&format!("{}, {}\n", args.model.model, run.summary()))?;
    if !cells.is_empty() {
        emit(&format!("continuing after {} cells measured before\n", cells.len()))?;
    }
    let base = args.model.load::<W>()?;
    let mut executor = Executor::start(backend, &base)?;
    let (groups, left_out) = args.groups(&base.config, backend)?;
    emit(&left_out)?;
    let bar = progress(groups.len() as u64, "sweep");
    for Group { column, rank, methods } in groups {
        let done = |method: &Method| cells.iter().any(|c| same_cell(c, &method.to_string(), column, rank));
        if !methods.iter().all(done) {
            cells.retain(|c| !methods.iter().any(|m| same_cell(c, &m.to_string(), column, rank)));
            cells.extend(measure_group(args, &base, column, rank, &methods, &mut executor)?);
            args.files.write_so_far(|| Report { run: run.clone(), setting: &setting, rows: &cells }, &cells)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    emit(&print(&cells))?;
    args.files.write(|| Report { run: run.clone(), setting: &setting, rows: &cells }, &cells)?;
    if let Some(path) = &args.plot {
        picture::draw(path, &args.model.model, &run, &cells)?;
    }
    Ok(())
}

fn default_methods() -> Vec<Method> {
    use fused_lora_gpt2::{LoraMode, adapter::bottleneck::Kind as Bottleneck};
    let kinds = [Bottleneck::Houlsby, Bottleneck::Lin].map(Kind::Bottleneck);
    let kinds = kinds.into_iter().chain([LoraMode::Fused, LoraMode::Sequential].map(Kind::Lora));
    kinds.map(|kind| Method { kind, drop: 0, size: None }).collect()
}

fn measure_group<W: Element>(
    args: &Args,
    base: &Model<W>,
    column: Column,
    rank: usize,
    methods: &[Method],
    executor: &mut Executor<W>,
) -> Result<Vec<Cell>> {
    let sizes = args.sizes(&base.config, rank);
    let variants: Vec<_> = std::iter::once(NONE).chain(methods.iter().map(|m| at_rank(m, rank))).collect();
    let prepared: Vec<_> = variants.iter().map(|m| m.prepare(base, &sizes)).collect::<Result<_>>()?;
    let bar = progress(1, &format!("{}x{} r {rank}", column.batch, column.tokens));
    let pass = PassConfig {
        column,
        decode: false,
        logits: false,
        dependent: false,
        modes: vec![args.mode()],
        seed: args.model.seed,
    };
    let mut comparison = executor.compare(&prepared, &pass)?;
    let times =
        interleave_timed(prepared.len(), Trials::Count(args.trials), &bar, |i| comparison.run(i).map(|time| time.ms))?;
    let cell = |(i, method): (usize, &Method)| {
        let (own, none) = (&times[i + 1], &times[0]);
        let overhead = Overhead::of(own, none);
        Cell {
            method: method.to_string(),
            batch: column.batch,
            tokens: column.tokens,
            rank,
            parameters: prepared[i + 1].parameters,
            trials: own.len(),
            median_ms: median(own),
            none_median_ms: median(none),
            slow_down_percent: overhead.percent,
            percent_low: overhead.low(),
            percent_high: overhead.high(),
        }
    };
    Ok(methods.iter().enumerate().map(cell).collect())
}
