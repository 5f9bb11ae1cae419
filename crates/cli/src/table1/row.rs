//! A row of the table: one method in one column.

use fused_lora::Element;
use serde::Serialize;

use super::paper_figures::PaperColumn;
use crate::column::Column;
use crate::method::{Kind, Prepared};
use crate::output::{milliseconds, table, with_commas};
use crate::passes::{Comparison, Mode};
use crate::stats::{Overhead, mean, median, std_dev};

/// One method in one column.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) method: String,
    /// How its launches are issued; absent on the CPU.
    pub(super) issued: Option<Mode>,
    pub(super) decode: bool,
    pub(super) batch: usize,
    pub(super) tokens: usize,
    pub(super) parameters: usize,
    pub(super) trials: usize,
    pub(super) mean_ms: f64,
    pub(super) std_ms: f64,
    pub(super) median_ms: f64,
    /// The time that the host takes to issue all launches.
    pub(super) host_median_ms: Option<f64>,
    pub(super) launches: Option<usize>,
    pub(super) launches_per_layer: Option<usize>,
    pub(super) device_bytes: Option<usize>,
    /// The difference of the medians from that of none; 0 for none itself, absent if none was not measured.
    pub(super) percent_over_none: Option<f64>,
    pub(super) percent_low: Option<f64>,
    pub(super) percent_high: Option<f64>,
    pub(super) paper_mean_ms: Option<f64>,
    pub(super) paper_std_ms: Option<f64>,
    pub(super) paper_percent_over_none: Option<f64>,
}

pub(super) fn rows_of<W: Element>(
    column: Column,
    decode: bool,
    prepared: &[Prepared<W>],
    comparison: &Comparison<'_, W>,
    times: &[Vec<f64>],
    host: &[Vec<f64>],
) -> Vec<Row> {
    let paper = PaperColumn::of(column).filter(|_| !decode);
    let none = prepared.iter().position(|p| p.method.kind == Kind::None);
    let row = |i: usize| {
        let (method, issued) = comparison.method_and_mode(i);
        let (p, times_of, static_costs) = (&prepared[method], &times[i], comparison.static_costs(i));
        // The base model in the same mode.
        let is_base = |&k: &usize| none.is_some_and(|none| comparison.method_and_mode(k) == (none, issued));
        let base = (0..times.len()).find(is_base);
        let overhead = base.map(|base| match i == base {
            true => Overhead { percent: 0.0, interval: Some((0.0, 0.0)) },
            false => Overhead::of(times_of, &times[base]),
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
            std_ms: std_dev(times_of),
            median_ms: median(times_of),
            // The first pass was the warm-up.
            host_median_ms: issued.map(|_| median(&host[i][1..])),
            launches: static_costs.map(|static_costs| static_costs.launches),
            launches_per_layer: static_costs.map(|static_costs| static_costs.launches_per_layer),
            device_bytes: static_costs.map(|static_costs| static_costs.device_bytes),
            percent_over_none: overhead.map(|e| e.percent),
            percent_low: overhead.and_then(|e| e.low()),
            percent_high: overhead.and_then(|e| e.high()),
            paper_mean_ms: figure.map(|f| f.0),
            paper_std_ms: figure.map(|f| f.1),
            paper_percent_over_none: figure.zip(paper).map(|(f, paper)| 100.0 * (f.0 / paper.base.0 - 1.0)),
        }
    };
    (0..times.len()).map(row).collect()
}

pub(super) fn print_column(decode: bool, column: Column, rows: &[Row]) -> String {
    let trials = rows.first().map_or(0, |r| r.trials);
    let what = if decode { "batch x context, one token each" } else { "batch x tokens" };
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
            let number = |n: Option<usize>| n.map_or_else(dash, with_commas);
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
        Some(percent) if row.method != "none" => Overhead::from_row(percent, row.percent_low, row.percent_high).cells(),
        _ => [dash(), dash()],
    };
    vec![
        row.method.clone(),
        with_commas(row.parameters),
        format!("{} ± {}", milliseconds(row.mean_ms), milliseconds(row.std_ms)),
        milliseconds(row.median_ms),
        over,
        interval,
    ]
}
