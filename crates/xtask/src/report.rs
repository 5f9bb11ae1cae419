//! `cargo xtask report`: writes docs/table1.md and its picture from the committed results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};

use crate::picture;
use crate::results::{Gpu, Results, Row, Run, read};

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail if the committed files differ from what the results give
    #[arg(long)]
    check: bool,
}

#[path = "../../cli/src/table1/paper_figures.rs"]
#[allow(dead_code, reason = "only the command uses the adapters' widths")]
mod paper_figures;

use paper_figures::{PAPER, PaperColumn};

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let all = read(&root.join("results"))?;
    let files = [("docs/table1.md", text(&all)), ("docs/table1.svg", picture::bars(&all)?)];
    for (name, contents) in files {
        let path = root.join(name);
        if args.check {
            let committed = std::fs::read_to_string(&path).with_context(|| format!("{name} cannot be read"))?;
            ensure!(committed == contents, "{name} differs from what results/ gives: run `cargo xtask report`");
        } else {
            std::fs::write(&path, contents).with_context(|| format!("{name} cannot be written"))?;
            println!("{name}");
        }
    }
    Ok(())
}

fn text(all: &BTreeMap<PathBuf, Results>) -> String {
    let mut out = String::from(
        "# Table 1\n\n\
         Made by `cargo xtask report` from the JSON under results/: do not edit.\n\n\
         ## The paper's table\n\n\
         One forward pass of GPT-2 medium in ms, mean and deviation of 100 trials, on a Quadro RTX 8000. LoRA has the base model's time\n\
         because it was merged. The paper does not say the precision, and whether logits are included.\n\n",
    );
    let header = ["batch x tokens", "|Θ|", "Fine-Tune/LoRA", "Adapter^L", "Adapter^H"];
    // The paper's order is from the largest batch to the smallest.
    let rows = PAPER.iter().rev().map(|&PaperColumn { batch, tokens, parameters, base, lin, houlsby, .. }| {
        let time = |(mean, deviation): (f64, f64)| match 100.0 * (mean / base.0 - 1.0) {
            0.0 => format!("{mean:.1} ± {deviation:.1}"),
            percent => format!("{mean:.1} ± {deviation:.1} ({percent:+.1} %)"),
        };
        let column = format!("{batch} x {tokens}");
        vec![column, format!("{}M", parameters as f64 / 1e6), time(base), time(lin), time(houlsby)]
    });
    out += &table(&header, rows);
    let on_gpu: Vec<&str> = all.values().filter(|results| results.gpu.is_some()).map(Results::device).collect();
    let _ = match on_gpu.first() {
        None => writeln!(
            out,
            "\n## Our measurements\n\nMeasured so far on CPUs only. **Nothing has been measured on a GPU yet**, so it is not known what unmerged LoRA \
             costs there.\nEvery method runs on the emulator, which counts launches ([performance.md](performance.md)).\n"
        ),
        Some(name) => writeln!(out, "\n## Our measurements\n\nMeasured on {name} and others; each file says how.\n"),
    };
    out += "\"Over none\" is the difference of the medians, with the bootstrap's 95 % interval from interleaved trials. The table\n\
            says \"no difference\" if the interval contains zero.\n\n\
            ![percent over the base model](table1.svg)\n";
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
            let text = if low <= 0.0 && high >= 0.0 { "no difference".to_owned() } else { percent(Some(over)) };
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

/// A Markdown table with all columns but the first aligned right.
fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    format!("{table}\n")
}
