//! `table1`: a forward pass with every method, beside the paper's figures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use fused_lora::Element;
use fused_lora::device::{Device, DeviceKind};
use fused_lora_gpt2::Random;
use fused_lora_gpt2::adapter::lora::Target;
use serde::Serialize;

use crate::common::{Compute, ModelArgs, On, ResultFiles, parse_budget, parse_size, with_dtype};
use crate::environment::{Run, peak_memory};
use crate::method::{Kind, Method, Prepared, Sizes};
use crate::output::{emit, grouped, milliseconds, progress, table};
use crate::passes::{Contest, Engine, Mode, Setting, clocks};
use crate::stats::{Excess, deviation, mean, median};
use crate::trial::{Trials, interleave_timed};
use crate::{method, plot};

const EXAMPLES: &str = "\
Examples:
  fused-lora table1
      GPT-2 medium with random weights, one sequence of 128 tokens, about two minutes
  fused-lora table1 --columns 1x128,16x256 --trials 20 --json table1.json --plot table1.svg
      Two of the paper's columns
  fused-lora table1 --model ./gpt2-medium --methods none,lora-fused,lora-fused:112,adapter-h-drop12
      Weights from a folder; LoRA at two ranks; Adapter^H without its lowest twelve layers
  fused-lora table1 --device cuda --dtype bf16 --trials 100
      On a GPU: every method issued launch by launch and as one graph
  fused-lora table1 --device cuda --dtype bf16 --graph --decode --columns 1x128,1x1024 --lm-head
      One token behind 127 and behind 1023 others, with a KV cache";

/// Arguments of `table1`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    files: ResultFiles,
    /// Columns, as batch x tokens; the paper has 1x128, 16x256 and 32x512
    #[arg(long, value_delimiter = ',', default_value = "1x128")]
    columns: Vec<Column>,
    /// Methods, as NAME[-dropN][:SIZE]: none, lora-merged, lora-fused, lora-slot (exchangeable under a graph, on a
    /// device), lora-sequential, lora-dense-delta, adapter-h, adapter-l, adapter-p, prefix-layer, prefix-embedding, lora-prefix. -dropN leaves out the adapters of the lowest N
    /// layers; SIZE is a rank, a bottleneck width or a prefix length
    #[arg(long, value_delimiter = ',', value_name = "METHOD,…", default_values_t = default_methods())]
    methods: Vec<Method>,
    /// Timed passes a method and column [default: as many as fit into --time]
    #[arg(long, value_parser = parse_size)]
    trials: Option<usize>,
    /// Seconds for all columns together, where --trials is not given
    #[arg(long, default_value_t = 100.0, value_parser = seconds)]
    time: f64,
    /// On a device, time passes issued launch by launch [default: both this and --graph]
    #[arg(long)]
    eager: bool,
    /// On a device, time passes that are one captured graph
    #[arg(long)]
    graph: bool,
    /// On a device, let launches begin before the one ahead has ended (programmatic dependent launch)
    #[arg(long)]
    dependent: bool,
    /// Time one token a sequence with a KV cache; a column's tokens are its context, itself included
    #[arg(long)]
    decode: bool,
    /// Time the logits too, not only the hidden states
    #[arg(long)]
    lm_head: bool,
    /// What LoRA is put on: q, k, v, c_attn, attn.c_proj, c_fc, mlp.c_proj
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

/// One column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
}

impl std::str::FromStr for Column {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (batch, tokens) =
            text.split_once('x').ok_or_else(|| format!("'{text}' is not BATCHxTOKENS, as in 1x128"))?;
        Ok(Self { batch: parse_size(batch)?, tokens: parse_size(tokens)? })
    }
}

/// What the paper prints for a column: mean and deviation in ms on a Quadro RTX 8000.
struct Paper {
    column: Column,
    /// The printed |Θ|, and the widths that make it for Adapter^H and Adapter^L.
    parameters: usize,
    houlsby_width: usize,
    lin_width: usize,
    base: (f64, f64),
    lin: (f64, f64),
    houlsby: (f64, f64),
}

const PAPER: [Paper; 3] = [
    Paper {
        column: Column { batch: 1, tokens: 128 },
        parameters: 11_000_000,
        houlsby_width: 112,
        lin_width: 224,
        base: (19.8, 2.7),
        lin: (23.9, 2.1),
        houlsby: (25.8, 2.2),
    },
    Paper {
        column: Column { batch: 16, tokens: 256 },
        parameters: 11_000_000,
        houlsby_width: 112,
        lin_width: 224,
        base: (338.0, 0.6),
        lin: (354.8, 0.5),
        houlsby: (366.3, 0.5),
    },
    Paper {
        column: Column { batch: 32, tokens: 512 },
        parameters: 500_000,
        houlsby_width: 5,
        lin_width: 9,
        base: (1449.4, 0.8),
        lin: (1482.0, 1.0),
        houlsby: (1492.2, 1.0),
    },
];

impl Paper {
    fn of(column: Column) -> Option<&'static Self> {
        PAPER.iter().find(|paper| paper.column == column)
    }

    fn figure(&self, method: &Method) -> Option<(f64, f64)> {
        use fused_lora_gpt2::adapter::bottleneck::Kind as Bottleneck;
        match (method.kind, method.drop) {
            (Kind::None | Kind::LoraMerged, _) => Some(self.base),
            (Kind::Bottleneck(Bottleneck::Houlsby), 0) => Some(self.houlsby),
            (Kind::Bottleneck(Bottleneck::Lin), 0) => Some(self.lin),
            _ => None,
        }
    }
}

/// One method in one column.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) method: String,
    /// How its launches reach the device; absent on the CPU.
    pub(crate) issued: Option<Mode>,
    pub(crate) decode: bool,
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) parameters: usize,
    pub(crate) trials: usize,
    pub(crate) mean_ms: f64,
    pub(crate) std_ms: f64,
    pub(crate) median_ms: f64,
    /// The host's own time until all was issued.
    pub(crate) host_median_ms: Option<f64>,
    pub(crate) launches: Option<usize>,
    pub(crate) launches_per_layer: Option<usize>,
    pub(crate) device_bytes: Option<usize>,
    /// Of the medians; 0 for none itself, absent where none was not measured.
    pub(crate) percent_over_none: Option<f64>,
    pub(crate) percent_low: Option<f64>,
    pub(crate) percent_high: Option<f64>,
    pub(crate) paper_mean_ms: Option<f64>,
    pub(crate) paper_std_ms: Option<f64>,
    pub(crate) paper_percent_over_none: Option<f64>,
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

/// What a GPU was when it was measured.
#[derive(Debug, Clone, Serialize)]
struct Gpu {
    name: String,
    compute_capability: String,
    multiprocessors: u32,
    l2_bytes: usize,
    driver_cuda: String,
    kernels: String,
    clocks_before: Option<String>,
    clocks_after: Option<String>,
}

impl Gpu {
    fn of(device: &Device) -> Self {
        let properties = device.properties();
        let (major, minor) = properties.compute_capability;
        let driver_cuda = match properties.kind {
            DeviceKind::Cuda { driver_version: (major, minor), .. } => format!("{major}.{minor}"),
            _ => String::new(),
        };
        Self {
            name: properties.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: properties.multiprocessors,
            l2_bytes: properties.l2_bytes,
            driver_cuda,
            kernels: format!("{:?}", fused_lora::device::built_in()),
            clocks_before: clocks(),
            clocks_after: None,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.files.check(args.plot.as_ref(), &[Path::new(&args.model.model)])?;
    let on = args.compute.start(&[On::Cpu, On::Cuda, On::Emulator])?;
    with_dtype!(args.compute.dtype, measure(args, on))
}

fn measure<W: Element>(args: &Args, on: On) -> Result<()> {
    let base = args.model.load::<W>()?;
    let run = Run::new(on.name(), W::DTYPE);
    let what = if args.lm_head { "logits" } else { "hidden states" };
    let pass = if args.decode { "one token with a KV cache" } else { "forward pass" };
    emit(&format!(
        "{}: {} parameters, {pass} to the {what}\n{}\n",
        args.model.model,
        grouped(base.parameters()),
        run.summary()
    ))?;
    let mut engine = Engine::start(on, &base)?;
    let mut gpu = engine.device().map(Gpu::of);
    if let Some(Gpu { name, multiprocessors, l2_bytes, clocks_before, .. }) = &gpu {
        let clocks = clocks_before.as_deref().unwrap_or("clocks unknown");
        emit(&format!("{name}, {multiprocessors} SMs, {} MiB of L2, {clocks}\n", l2_bytes >> 20))?;
    }
    emit("\n")?;
    let mut rows = vec![];
    for &column in &args.columns {
        let measured = measure_column(args, on, &base, column, &mut engine)?;
        emit(&print_column(args, column, &measured))?;
        rows.extend(measured);
        // What was measured so far outlives a job that is ended halfway.
        if let Some(gpu) = &mut gpu {
            gpu.clocks_after = clocks();
        }
        let report = report(args, &run, base.parameters(), gpu.as_ref(), &rows);
        args.files.write_so_far(report, &rows)?;
    }
    args.files.write(report(args, &run, base.parameters(), gpu.as_ref(), &rows), &rows)?;
    if let Some(path) = &args.plot {
        plot::bars(path, &args.model.model, what, &run, &rows)?;
    }
    Ok(())
}

/// What goes to the JSON file, made when it is written.
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
    on: On,
    base: &fused_lora_gpt2::Model<W>,
    column: Column,
    engine: &mut Engine<W>,
) -> Result<Vec<Row>> {
    let paper = Paper::of(column).filter(|_| !args.decode);
    let own_widths = args.params.is_none()
        && base.config == fused_lora_gpt2::Config::named("gpt2-medium").unwrap_or_else(|| base.config.clone());
    let sizes = Sizes {
        targets: args.targets.clone(),
        rank: args.rank,
        alpha: 32.0,
        parameters: args.params.or(paper.map(|p| p.parameters)).unwrap_or(PAPER[0].parameters),
        houlsby_width: paper.or(Some(&PAPER[0])).filter(|_| own_widths).map(|p| p.houlsby_width),
        lin_width: paper.or(Some(&PAPER[0])).filter(|_| own_widths).map(|p| p.lin_width),
        seed: args.model.seed,
    };
    let prepared: Vec<_> = args.methods.iter().map(|m| m.prepare(base, &sizes)).collect::<Result<_>>()?;
    let modes = match (args.eager, args.graph) {
        (true, false) => vec![Mode::Eager],
        (false, true) => vec![Mode::Graph],
        _ => vec![Mode::Eager, Mode::Graph],
    };
    let setting = Setting {
        column,
        decode: args.decode,
        logits: args.lm_head,
        dependent: args.dependent,
        modes,
        seed: args.model.seed,
    };
    let mut contest = engine.contest(&prepared, &setting)?;
    let trials = match args.trials {
        // The emulator's time says nothing.
        _ if on == On::Emulator => Trials::Count(1),
        Some(count) => Trials::Count(count),
        None => Trials::Within(Duration::from_secs_f64(args.time / args.columns.len() as f64)),
    };
    let bar = progress((2 * contest.len()) as u64, &format!("{}x{}", column.batch, column.tokens));
    let mut host = vec![vec![]; contest.len()];
    let times = interleave_timed(contest.len(), trials, &bar, |i| {
        let time = contest.run(i)?;
        host[i].push(time.host_ms);
        Ok::<_, anyhow::Error>(time.ms)
    })?;
    Ok(rows_of(column, args.decode, &prepared, &contest, &times, &host))
}

fn rows_of<W: Element>(
    column: Column,
    decode: bool,
    prepared: &[Prepared<W>],
    contest: &Contest<'_, W>,
    times: &[Vec<f64>],
    host: &[Vec<f64>],
) -> Vec<Row> {
    let paper = Paper::of(column).filter(|_| !decode);
    let none = prepared.iter().position(|p| p.method.kind == Kind::None);
    let row = |i: usize| {
        let (method, issued) = contest.of(i);
        let (p, times_of, facts) = (&prepared[method], &times[i], contest.facts(i));
        // Against the base model that was issued in the same way.
        let base = (0..times.len()).find(|&k| Some(contest.of(k).0) == none && contest.of(k).1 == issued);
        let excess = base.map(|base| match i == base {
            true => Excess { percent: 0.0, interval: Some((0.0, 0.0)) },
            false => Excess::of(times_of, &times[base]),
        });
        let figure = paper.and_then(|paper| paper.figure(&p.method));
        Row {
            method: p.method.to_string(),
            issued,
            decode,
            batch: column.batch,
            tokens: column.tokens,
            parameters: p.parameters,
            trials: times_of.len(),
            mean_ms: mean(times_of),
            std_ms: deviation(times_of),
            median_ms: median(times_of),
            // The first pass was the warm-up.
            host_median_ms: issued.map(|_| median(&host[i][1..])),
            launches: facts.map(|facts| facts.launches),
            launches_per_layer: facts.map(|facts| facts.launches_per_layer),
            device_bytes: facts.map(|facts| facts.device_bytes),
            percent_over_none: excess.map(|e| e.percent),
            percent_low: excess.and_then(|e| e.low()),
            percent_high: excess.and_then(|e| e.high()),
            paper_mean_ms: figure.map(|f| f.0),
            paper_std_ms: figure.map(|f| f.1),
            paper_percent_over_none: figure.zip(paper).map(|(f, paper)| 100.0 * (f.0 / paper.base.0 - 1.0)),
        }
    };
    (0..times.len()).map(row).collect()
}

/// Token ids for a whole column.
pub(crate) fn random_tokens(seed: u64, column: Column, vocabulary: usize) -> Result<Vec<u32>> {
    let noise = Random::new(seed ^ 0x70CE).normal::<f32>(column.batch * column.tokens, 1.0)?;
    Ok(noise.iter().map(|v| v.to_bits().wrapping_mul(0x9E37_79B9) % vocabulary as u32).collect())
}

fn print_column(args: &Args, column: Column, rows: &[Row]) -> String {
    let trials = rows.first().map_or(0, |r| r.trials);
    let what = if args.decode { "batch x context, one token each" } else { "batch x tokens" };
    let title = format!("{} x {} ({what}), {trials} trials\n", column.batch, column.tokens);
    let on_device = rows.iter().any(|row| row.issued.is_some());
    let mut header = vec!["method", "|Θ|", "mean ± std ms", "median ms", "over none", "95 % interval"];
    if on_device {
        header.splice(1..1, ["issued"]);
        header.extend(["host ms", "launches", "a layer", "device MiB"]);
    }
    header.extend(["paper ms", "paper over none"]);
    let cells = rows.iter().map(|row| {
        let mut cells = cells(row);
        if on_device {
            let issued = row.issued.map_or_else(dash, |mode| format!("{mode:?}").to_lowercase());
            cells.splice(1..1, [issued]);
            let number = |n: Option<usize>| n.map_or_else(dash, grouped);
            cells.extend([
                row.host_median_ms.map_or_else(dash, milliseconds),
                number(row.launches),
                number(row.launches_per_layer),
                number(row.device_bytes.map(|bytes| bytes.div_ceil(1 << 20))),
            ]);
        }
        cells.extend([
            row.paper_mean_ms.zip(row.paper_std_ms).map_or_else(dash, |(mean, std)| format!("{mean:.1} ± {std:.1}")),
            row.paper_percent_over_none.filter(|p| *p != 0.0).map_or_else(dash, |p| format!("{p:+.1} %")),
        ]);
        cells
    });
    title + &table(&header, cells) + "\n"
}

fn dash() -> String {
    "-".to_owned()
}

fn cells(row: &Row) -> Vec<String> {
    let [over, interval] = match row.percent_over_none {
        Some(percent) if row.method != "none" => Excess::from_row(percent, row.percent_low, row.percent_high).cells(),
        _ => [dash(), dash()],
    };
    vec![
        row.method.clone(),
        grouped(row.parameters),
        format!("{} ± {}", milliseconds(row.mean_ms), milliseconds(row.std_ms)),
        milliseconds(row.median_ms),
        over,
        interval,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_percentages_are_its_own() {
        let percent = |figure: (f64, f64), paper: &Paper| format!("{:+.1}", 100.0 * (figure.0 / paper.base.0 - 1.0));
        let printed = [("+20.7", "+30.3"), ("+5.0", "+8.4"), ("+2.2", "+3.0")];
        for (paper, (lin, houlsby)) in PAPER.iter().zip(printed) {
            assert_eq!((&*percent(paper.lin, paper), &*percent(paper.houlsby, paper)), (lin, houlsby));
        }
    }

    #[test]
    fn columns_parse() {
        assert_eq!("16x256".parse(), Ok(Column { batch: 16, tokens: 256 }));
        for bad in ["", "16", "x", "0x5", "5x0", "axb", "1x2x3"] {
            assert!(bad.parse::<Column>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_stay_inside_the_vocabulary() {
        let ids = random_tokens(1, Column { batch: 3, tokens: 700 }, 131).unwrap();
        assert_eq!(ids.len(), 2100);
        assert!(ids.iter().all(|&id| id < 131));
        assert!(ids.iter().collect::<std::collections::HashSet<_>>().len() > 120);
    }
}
