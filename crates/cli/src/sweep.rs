//! `sweep`: the paper's Figure 5, slow-down over batch size and rank for each sequence length.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fused_lora::Element;
use fused_lora::device::Device;
use fused_lora_gpt2::adapter::lora::Target;
use fused_lora_gpt2::{Model, Output};
use serde::{Deserialize, Serialize};

use crate::common::{Compute, ModelArgs, On, ResultFiles, parse_size, with_dtype};
use crate::environment::Run;
use crate::method::{Kind, Method, Sizes};
use crate::output::{emit, milliseconds, progress, table};
use crate::passes::{Engine, Mode, Setting as Pass};
use crate::plot;
use crate::setting::Setting;
use crate::stats::{Excess, median};
use crate::table1::Column;
use crate::trial::{Trials, interleave_timed};

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
    /// Methods to compare with the base model
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "METHOD,…",
        default_value = "adapter-h,adapter-l,lora-fused,lora-sequential"
    )]
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

/// One method at one batch size, sequence length and rank.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct Cell {
    pub(crate) method: String,
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) rank: usize,
    pub(crate) parameters: usize,
    pub(crate) trials: usize,
    pub(crate) median_ms: f64,
    pub(crate) none_median_ms: f64,
    pub(crate) slow_down_percent: f64,
    /// The 95 % interval; absent of a single trial.
    pub(crate) percent_low: Option<f64>,
    pub(crate) percent_high: Option<f64>,
}

#[derive(Serialize)]
struct Report<'a> {
    run: Run,
    setting: &'a Setting,
    rows: &'a [Cell],
}

impl Args {
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
    let groups: Vec<(Column, usize)> = args
        .sequences
        .iter()
        .flat_map(|&tokens| args.batches.iter().map(move |&batch| Column { batch, tokens }))
        .flat_map(|column| args.ranks.iter().map(move |&rank| (column, rank)))
        .collect();
    let bar = progress(groups.len() as u64, "sweep");
    for (column, rank) in groups {
        let done = |method: &Method| cells.iter().any(|c| same_cell(c, &method.to_string(), column, rank));
        if !args.methods.iter().all(done) {
            cells.retain(|c| !args.methods.iter().any(|m| same_cell(c, &m.to_string(), column, rank)));
            cells.extend(measure_group(args, &base, column, rank, &mut engine)?);
            args.files.write_so_far(|| Report { run: run.clone(), setting: &setting, rows: &cells }, &cells)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    emit(&print(&cells))?;
    args.files.write(|| Report { run: run.clone(), setting: &setting, rows: &cells }, &cells)?;
    if let Some(path) = &args.plot {
        plot::heat_maps(path, &args.model.model, &run, &cells)?;
    }
    Ok(())
}

fn same_cell(cell: &Cell, method: &str, column: Column, rank: usize) -> bool {
    cell.method == method && cell.batch == column.batch && cell.tokens == column.tokens && cell.rank == rank
}

fn measure_group<W: Element>(
    args: &Args,
    base: &Model<W>,
    column: Column,
    rank: usize,
    engine: &mut Engine<W>,
) -> Result<Vec<Cell>> {
    let none = Method { kind: Kind::None, drop: 0, size: None };
    let sizes = Sizes {
        targets: args.targets.clone(),
        rank,
        alpha: 32.0,
        parameters: 1,
        houlsby_width: None,
        lin_width: None,
        seed: args.model.seed,
    };
    let sized = |method: &Method| match rank {
        0 => none.clone(),
        _ => Method { size: Some(rank), ..method.clone() },
    };
    let contestants: Vec<_> = std::iter::once(none.clone()).chain(args.methods.iter().map(sized)).collect();
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
    Ok(args.methods.iter().enumerate().map(cell).collect())
}

fn print(cells: &[Cell]) -> String {
    let header = ["method", "batch", "tokens", "r", "|Θ|", "median ms", "none ms", "slower", "95 % interval"];
    let row = |c: &Cell| {
        let [slower, interval] = Excess::from_row(c.slow_down_percent, c.percent_low, c.percent_high).cells();
        vec![
            c.method.clone(),
            c.batch.to_string(),
            c.tokens.to_string(),
            c.rank.to_string(),
            crate::output::grouped(c.parameters),
            milliseconds(c.median_ms),
            milliseconds(c.none_median_ms),
            slower,
            interval,
        ]
    };
    table(&header, cells.iter().map(row))
}
