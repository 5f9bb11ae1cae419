//! Pictures: bars for Table 1, heat maps for Figure 5.

use std::path::Path;

use anyhow::Result;
use fused_lora_gpt2::write_atomically;
use fused_lora_picture::{Bar, HeatMap, HeatMaps, Panel, Slowdown};

use crate::environment::Run;
use crate::output::milliseconds;
use crate::sweep::Cell;
use crate::table1::Row;

/// Table 1: per cent over none with its interval, one panel a column and way of issuing; milliseconds where none was not
/// measured.
pub(crate) fn bars(path: &Path, model: &str, what: &str, run: &Run, rows: &[Row]) -> Result<()> {
    let key = |row: &Row| (row.batch, row.tokens, row.decode, row.issued);
    let mut columns: Vec<Vec<&Row>> = vec![];
    for row in rows {
        match columns.iter_mut().find(|column| key(column[0]) == key(row)) {
            Some(column) => column.push(row),
            None => columns.push(vec![row]),
        }
    }
    let panels: Vec<Panel> = columns.iter().map(|column| panel(column, model, what, run)).collect();
    let svg = fused_lora_picture::bars(&panels)?;
    Ok(write_atomically(path, |file| file.write_all(svg.as_bytes()))?)
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

/// Figure 5: one panel a method and sequence length.
pub(crate) fn heat_maps(path: &Path, model: &str, run: &Run, cells: &[Cell]) -> Result<()> {
    let mut maps: Vec<HeatMap> = vec![];
    for cell in cells {
        let slowdown = Slowdown {
            batch: cell.batch,
            rank: cell.rank,
            percent: cell.slow_down_percent,
            interval: cell.percent_low.zip(cell.percent_high),
        };
        match maps.iter_mut().find(|map| map.method == cell.method && map.tokens == cell.tokens) {
            Some(map) => map.cells.push(slowdown),
            None => maps.push(HeatMap { method: cell.method.clone(), tokens: cell.tokens, cells: vec![slowdown] }),
        }
    }
    let title = format!("{}: slow-down of a forward pass, as in the paper's Figure 5", name_of(model));
    let trials = cells.first().map_or(String::new(), |cell| format!(", {} trials", cell.trials));
    let subtitle = format!("{}{trials}, {}", run.summary(), run.day());
    let svg = fused_lora_picture::heat_maps(&HeatMaps { title, subtitle, maps })?;
    Ok(write_atomically(path, |file| file.write_all(svg.as_bytes()))?)
}

/// The last part of a model's path, as long as there is room for it.
fn name_of(model: &str) -> String {
    let name = Path::new(model).file_name().map_or(model.into(), |name| name.to_string_lossy());
    match name.chars().count() {
        0..=40 => name.into_owned(),
        _ => name.chars().take(39).chain(['…']).collect(),
    }
}
