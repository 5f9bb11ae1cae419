//! `cargo xtask report`: docs/table1.md and its picture, from the results that are committed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde::Deserialize;

use crate::picture;

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail if the committed files are not what the results give
    #[arg(long)]
    check: bool,
}

/// The paper's columns in its order: batch x tokens, |Θ|, and in ms with their deviations Fine-Tune/LoRA, Adapter^L, Adapter^H.
const PAPER: [Paper; 3] = [
    Paper { column: "32 x 512", parameters: "0.5M", times: [(1449.4, 0.8), (1482.0, 1.0), (1492.2, 1.0)] },
    Paper { column: "16 x 256", parameters: "11M", times: [(338.0, 0.6), (354.8, 0.5), (366.3, 0.5)] },
    Paper { column: "1 x 128", parameters: "11M", times: [(19.8, 2.7), (23.9, 2.1), (25.8, 2.2)] },
];

struct Paper {
    column: &'static str,
    parameters: &'static str,
    times: [(f64, f64); 3],
}

/// A file that `fused-lora table1 --json` wrote: what the report needs of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Results {
    pub(crate) run: Run,
    pub(crate) model: String,
    pub(crate) lm_head: bool,
    #[serde(default)]
    gpu: Option<Gpu>,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Run {
    command: String,
    pub(crate) commit: String,
    pub(crate) date: String,
    device: String,
    processor: String,
    pub(crate) dtype: String,
    pub(crate) threads: usize,
}

#[derive(Debug, Deserialize)]
struct Gpu {
    name: String,
    driver_cuda: String,
    l2_bytes: usize,
    clocks_before: Option<String>,
    clocks_after: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Row {
    pub(crate) method: String,
    #[serde(default)]
    pub(crate) issued: Option<String>,
    #[serde(default)]
    pub(crate) decode: bool,
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    parameters: usize,
    pub(crate) trials: usize,
    mean_ms: f64,
    std_ms: f64,
    pub(crate) median_ms: f64,
    #[serde(default)]
    host_median_ms: Option<f64>,
    #[serde(default)]
    launches: Option<usize>,
    #[serde(default)]
    launches_per_layer: Option<usize>,
    #[serde(default)]
    device_bytes: Option<usize>,
    pub(crate) percent_over_none: Option<f64>,
    pub(crate) percent_low: Option<f64>,
    pub(crate) percent_high: Option<f64>,
    pub(crate) paper_percent_over_none: Option<f64>,
}

impl Results {
    /// What ran it.
    pub(crate) fn device(&self) -> &str {
        self.gpu.as_ref().map_or(&self.run.processor, |gpu| &gpu.name)
    }

    /// Rows of one column that were issued in one way, in their order.
    pub(crate) fn columns(&self) -> Vec<Vec<&Row>> {
        let mut columns: Vec<Vec<&Row>> = vec![];
        for row in &self.rows {
            let key = |row: &Row| (row.decode, row.batch, row.tokens, row.issued.clone());
            match columns.iter_mut().find(|column| key(column[0]) == key(row)) {
                Some(column) => column.push(row),
                None => columns.push(vec![row]),
            }
        }
        columns
    }
}

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let all = read(&root.join("results"))?;
    let files = [("docs/table1.md", text(&all)), ("docs/table1.svg", picture::bars(&all)?)];
    for (name, contents) in files {
        let path = root.join(name);
        if args.check {
            let committed = std::fs::read_to_string(&path).with_context(|| format!("{name} cannot be read"))?;
            ensure!(committed == contents, "{name} is not what results/ gives: run `cargo xtask report`");
        } else {
            std::fs::write(&path, contents).with_context(|| format!("{name} cannot be written"))?;
            println!("{name}");
        }
    }
    Ok(())
}

/// Every `table1*.json` of every folder, by its path below results/.
fn read(results: &Path) -> Result<BTreeMap<PathBuf, Results>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![results.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.starts_with("table1") && name.ends_with(".json") {
                let file = std::fs::read(&path).with_context(|| path.display().to_string())?;
                let parsed: Results = serde_json::from_slice(&file).with_context(|| path.display().to_string())?;
                if parsed.rows.is_empty() {
                    bail!("{}: has no rows", path.display());
                }
                found.insert(path.strip_prefix(results)?.to_path_buf(), parsed);
            }
        }
    }
    ensure!(!found.is_empty(), "there are no results");
    Ok(found)
}

fn text(all: &BTreeMap<PathBuf, Results>) -> String {
    let mut out = String::from(
        "# Table 1\n\n\
         Made by `cargo xtask report` from the JSON under results/: do not edit.\n\n\
         ## The paper's\n\n\
         One forward pass of GPT-2 medium in ms, mean and deviation of 100 trials, on a Quadro RTX 8000. LoRA has the base model's time\n\
         there because it was merged; precision and whether logits count are not stated.\n\n",
    );
    let header = ["batch x tokens", "|Θ|", "Fine-Tune/LoRA", "Adapter^L", "Adapter^H"];
    let rows = PAPER.iter().map(|&Paper { column, parameters, times }| {
        let base = times[0].0;
        let time = |(mean, deviation): (f64, f64)| match 100.0 * (mean / base - 1.0) {
            0.0 => format!("{mean:.1} ± {deviation:.1}"),
            percent => format!("{mean:.1} ± {deviation:.1} ({percent:+.1} %)"),
        };
        let [lora, lin, houlsby] = times.map(time);
        vec![column.to_owned(), parameters.to_owned(), lora, lin, houlsby]
    });
    out += &table(&header, rows);
    let on_gpu: Vec<&str> = all.values().filter(|results| results.gpu.is_some()).map(Results::device).collect();
    let _ = match on_gpu.first() {
        None => writeln!(
            out,
            "\n## Ours\n\nMeasured so far: on CPUs only. **Nothing has been measured on a GPU yet**, so the question of what unmerged LoRA \
             costs there\nis open. Every method runs on the emulator of one, where launches are counted ([performance.md](performance.md)).\n"
        ),
        Some(name) => writeln!(out, "\n## Ours\n\nMeasured on {name} among others; each file says how.\n"),
    };
    out += "Over none: of the medians, with the bootstrap's 95 % interval of interleaved trials; a difference whose interval has zero in it is \
            none.\n\n![percent over the base model](table1.svg)\n";
    for (path, results) in all {
        section(&mut out, path, results);
    }
    out
}

fn section(out: &mut String, path: &Path, results: &Results) {
    let Results { run, model, lm_head, gpu, .. } = results;
    let Run { command, commit, date, device, dtype, threads, .. } = run;
    let what = if *lm_head { "logits" } else { "hidden states" };
    let _ = writeln!(out, "\n### {}, {dtype}, to the {what}\n", results.device());
    let name = path.display();
    let _ =
        writeln!(out, "[{name}](../results/{name}): {model}, {device}, {threads} threads, commit {commit}, {date}.");
    if let Some(Gpu { driver_cuda, l2_bytes, clocks_before, clocks_after, .. }) = gpu {
        let clock = |clock: &Option<String>| clock.clone().unwrap_or_else(|| "unknown".to_owned());
        let (before, after) = (clock(clocks_before), clock(clocks_after));
        let l2 = l2_bytes >> 20;
        let _ =
            writeln!(out, "Driver for CUDA {driver_cuda}, {l2} MiB of L2; clocks {before} before, {after} afterwards.");
    }
    let _ = writeln!(out, "`{command}`");
    for column in results.columns() {
        let Row { decode, batch, tokens, issued, trials, .. } = column[0];
        let what = if *decode { "one token each, context" } else { "tokens" };
        let issued = issued.as_ref().map_or(String::new(), |issued| format!(", {issued}"));
        let _ = writeln!(out, "\nBatch {batch}, {what} {tokens}{issued}, {trials} trials:\n");
        let on_device = column[0].launches.is_some();
        let mut header = vec!["method", "|Θ|", "mean ± std ms", "median ms", "over none", "95 % interval", "paper"];
        if on_device {
            header.extend(["host ms", "launches", "a layer", "device MiB"]);
        }
        *out += &table(&header, column.iter().map(|row| cells(row, on_device)));
    }
}

fn cells(row: &Row, on_device: bool) -> Vec<String> {
    let dash = || "-".to_owned();
    let percent = |percent: Option<f64>| percent.filter(|p| *p != 0.0).map_or_else(dash, |p| format!("{p:+.1} %"));
    let over = match (row.percent_over_none, row.percent_low, row.percent_high) {
        (Some(_), Some(low), Some(high)) if low == high => [dash(), dash()],
        (Some(over), Some(low), Some(high)) => {
            let text = if low <= 0.0 && high >= 0.0 { "none".to_owned() } else { percent(Some(over)) };
            [text, format!("{low:+.1} to {high:+.1}")]
        }
        _ => [dash(), dash()],
    };
    let [over, interval] = over;
    let mut cells = vec![
        row.method.clone(),
        row.parameters.to_string(),
        format!("{:.3} ± {:.3}", row.mean_ms, row.std_ms),
        format!("{:.3}", row.median_ms),
        over,
        interval,
        percent(row.paper_percent_over_none),
    ];
    if on_device {
        let number = |n: Option<usize>| n.map_or_else(dash, |n| n.to_string());
        cells.extend([
            row.host_median_ms.map_or_else(dash, |ms| format!("{ms:.3}")),
            number(row.launches),
            number(row.launches_per_layer),
            number(row.device_bytes.map(|bytes| bytes.div_ceil(1 << 20))),
        ]);
    }
    cells
}

/// A Markdown table, numbers to the right.
fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    format!("{table}\n")
}
