//! `sweep`: the paper's Figure 5, slow-down over batch size and rank for each sequence length.

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
use crate::common::{Compute, ModelArgs, On, ResultFiles, parse_size, with_dtype};
use crate::environment::Run;
use crate::method::{Choice, Kind, Method, Sizes};
use crate::output::{emit, progress};
use crate::passes::{Engine, Mode, Setting as Pass};
use crate::setting::Setting;
use crate::stats::{Excess, median};
use crate::trial::{Trials, interleave_timed};
use cell::{Cell, print, same_cell};

const EXAMPLES: &str = "\
Examples:
  fused-lora sweep
      128 tokens, batch 1, 2 and 4, ranks 10, 100 and 250, a few minutes
  fused-lora sweep --sequences 128,256,512 --batches 1,2,4,8,16,32 --json figure5.json --plot figure5.svg
      All of Figure 5. Hours on a CPU: stop it at any time, the same command goes on where it was. Cells of another
      model, build, machine or setting are never put into the same file";

/// Arguments of `sweep`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compute: Compute,
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
    /// Bottleneck widths and LoRA ranks; 0 measures the base model against itself, which shows the noise
    #[arg(long, value_delimiter = ',', default_value = "0,10,100,250")]
    ranks: Vec<usize>,
    /// Methods to compare with the base model [default: adapter-h,adapter-l,lora-fused,lora-sequential; what does not fit
    /// the model is left out]
    #[arg(long, value_delimiter = ',', value_name = "METHOD,…")]
    methods: Vec<Method>,
    /// What LoRA is put on
    #[arg(long, value_delimiter = ',', default_value = "q,v")]
    targets: Vec<Target>,
    /// On a device, issue passes launch by launch [default: each one captured graph]
    #[arg(long)]
    eager: bool,
    /// Timed passes a cell
    #[arg(long, default_value_t = 5, value_parser = parse_size)]
    trials: usize,
    /// Measure cells again that the --json file holds from an earlier run, and replace them
    #[arg(long)]
    restart: bool,
    /// Draw heat maps, one a method and sequence length
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    setting: &'a Setting,
    rows: &'a [Cell],
}

/// Cells that are measured together.
struct Group {
    column: Column,
    rank: usize,
    methods: Vec<Method>,
}

const NONE: Method = Method { kind: Kind::None, drop: 0, size: None };

/// The method as it is measured at a rank: at 0, the base model against itself.
fn sized(method: &Method, rank: usize) -> Method {
    if rank == 0 { NONE } else { Method { size: Some(rank), ..method.clone() } }
}

impl Args {
    /// All groups, and a line for each method that is left out somewhere because it does not fit.
    fn groups(&self, config: &Config, on: On) -> Result<(Vec<Group>, String)> {
        let (mut groups, mut left_out) = (vec![], String::new());
        for (&tokens, &batch) in self.sequences.iter().flat_map(|t| self.batches.iter().map(move |b| (t, b))) {
            for &rank in &self.ranks {
                let sizes = self.sizes(config, rank);
                NONE.check(config, &sizes, tokens, on)?;
                let fits = |method: &Method| sized(method, rank).check(config, &sizes, tokens, on);
                let choice = Choice::of(&self.methods, default_methods(), fits)?;
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

    fn sizes(&self, config: &Config, rank: usize) -> Sizes {
        Sizes {
            targets: self.targets.clone(),
            rank,
            alpha: 32.0,
            // Every method has its size from the rank; the prefix beside a LoRA is a single token.
            parameters: 2 * config.layers * config.d_model,
            houlsby_width: None,
            lin_width: None,
            seed: self.model.seed,
        }
    }

    fn mode(&self) -> Mode {
        if self.eager { Mode::Eager } else { Mode::Graph }
    }

    /// The device by name, and how passes reach it: cells of one sweep must agree in both.
    fn device_setting(&self, on: On) -> Result<String> {
        Ok(match on {
            On::Cuda => {
                format!("{}, {}", Device::cuda(0)?.properties().name, if self.eager { "eager" } else { "graph" })
            }
            _ => on.name().to_owned(),
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.files.check(args.plot.as_ref(), &[Path::new(&args.model.model)])?;
    let on = args.compute.start(&[On::Cpu, On::Cuda])?;
    with_dtype!(args.compute.dtype, measure(args, on))
}

fn measure<W: Element>(args: &Args, on: On) -> Result<()> {
    let run = Run::new(on.name(), W::DTYPE);
    let targets = format!("{:?}", args.targets);
    let model = (&*args.model.model, args.model.seed);
    let setting = Setting::new(&run, args.device_setting(on)?, model, targets, args.trials)?;
    let mut cells = match &args.files.json {
        Some(path) if !args.restart && path.exists() && Output::at(path)?.is_replaced() => {
            setting.earlier_cells(path)?
        }
        _ => vec![],
    };
    emit(&format!("{}, {}\n", args.model.model, run.summary()))?;
    if !cells.is_empty() {
        emit(&format!("going on after {} cells measured before\n", cells.len()))?;
    }
    let base = args.model.load::<W>()?;
    let mut engine = Engine::start(on, &base)?;
    let (groups, left_out) = args.groups(&base.config, on)?;
    emit(&left_out)?;
    let bar = progress(groups.len() as u64, "sweep");
    for Group { column, rank, methods } in groups {
        let done = |method: &Method| cells.iter().any(|c| same_cell(c, &method.to_string(), column, rank));
        if !methods.iter().all(done) {
            cells.retain(|c| !methods.iter().any(|m| same_cell(c, &m.to_string(), column, rank)));
            cells.extend(measure_group(args, &base, column, rank, &methods, &mut engine)?);
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
    engine: &mut Engine<W>,
) -> Result<Vec<Cell>> {
    let sizes = args.sizes(&base.config, rank);
    let contestants: Vec<_> = std::iter::once(NONE).chain(methods.iter().map(|m| sized(m, rank))).collect();
    let prepared: Vec<_> = contestants.iter().map(|m| m.prepare(base, &sizes)).collect::<Result<_>>()?;
    let bar = progress(1, &format!("{}x{} r {rank}", column.batch, column.tokens));
    let pass = Pass {
        column,
        decode: false,
        logits: false,
        dependent: false,
        modes: vec![args.mode()],
        seed: args.model.seed,
    };
    let mut contest = engine.contest(&prepared, &pass)?;
    let times =
        interleave_timed(prepared.len(), Trials::Count(args.trials), &bar, |i| contest.run(i).map(|time| time.ms))?;
    let cell = |(i, method): (usize, &Method)| {
        let (own, none) = (&times[i + 1], &times[0]);
        let excess = Excess::of(own, none);
        Cell {
            method: method.to_string(),
            batch: column.batch,
            tokens: column.tokens,
            rank,
            parameters: prepared[i + 1].parameters,
            trials: own.len(),
            median_ms: median(own),
            none_median_ms: median(none),
            slow_down_percent: excess.percent,
            percent_low: excess.low(),
            percent_high: excess.high(),
        }
    };
    Ok(methods.iter().enumerate().map(cell).collect())
}
