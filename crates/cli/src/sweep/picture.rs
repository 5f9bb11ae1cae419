//! The sweep as heat maps.

use std::path::Path;

use anyhow::Result;
use fused_lora_picture::{HeatMap, HeatMaps, Slowdown};

use super::cell::Cell;
use crate::environment::Run;
use crate::plot::{name_of, write};

/// Draws Figure 5, a panel for each method and sequence length.
pub(super) fn draw(path: &Path, model: &str, run: &Run, cells: &[Cell]) -> Result<()> {
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
    write(path, &fused_lora_picture::heat_maps(&HeatMaps { title, subtitle, maps })?)
}
