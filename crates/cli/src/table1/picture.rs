//! The table as a bar chart.

use std::path::Path;

use anyhow::Result;
use fused_lora_picture::{Bar, Panel};

use super::row::Row;
use crate::environment::Run;
use crate::output::milliseconds;
use crate::plot::{name_of, write};

/// Draws Table 1: per cent over none with its interval, a panel for each column and mode; or milliseconds, if none was
/// not measured.
pub(super) fn draw(path: &Path, model: &str, what: &str, run: &Run, rows: &[Row]) -> Result<()> {
    let key = |row: &Row| (row.batch, row.tokens, row.decode, row.issued);
    let mut columns: Vec<Vec<&Row>> = vec![];
    for row in rows {
        match columns.iter_mut().find(|column| key(column[0]) == key(row)) {
            Some(column) => column.push(row),
            None => columns.push(vec![row]),
        }
    }
    let panels: Vec<Panel> = columns.iter().map(|column| panel(column, model, what, run)).collect();
    write(path, &fused_lora_picture::bars(&panels)?)
}

fn panel(column: &[&Row], model: &str, what: &str, run: &Run) -> Panel {
    let Row { batch, tokens, decode, issued, trials, .. } = column[0];
    let issued = issued.map_or(String::new(), |mode| format!(", {mode:?}").to_lowercase());
    let length = if *decode { "context, one token each" } else { "tokens" };
    let base = column.iter().find(|row| row.method == "none");
    let is_relative = column.iter().any(|row| row.percent_over_none.is_some());
    let axis = match base {
        Some(none) => format!("median time over none ({} ms)", milliseconds(none.median_ms)),
        None => "median time in ms".to_owned(),
    };
    let bar = |row: &&&Row| Bar {
        method: row.method.clone(),
        value: row.percent_over_none.unwrap_or(row.median_ms),
        interval: row.percent_low.zip(row.percent_high),
        paper: if is_relative { row.paper_percent_over_none.filter(|p| *p != 0.0) } else { row.paper_mean_ms },
        time: format!("{} ms", milliseconds(row.median_ms)),
    };
    Panel {
        title: format!("{}: forward pass, batch {batch}, {tokens} {length}{issued}, to the {what}", name_of(model)),
        subtitle: format!("{}, {trials} trials, {}", run.summary(), run.day()),
        axis,
        is_relative,
        bars: column.iter().filter(|row| !is_relative || row.method != "none").map(|row| bar(&row)).collect(),
    }
}
