//! The report's picture: the cost of each method over the base model next to the paper's figure, a panel for each
//! measured column.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use fused_lora_picture::{Bar, Panel};

use crate::results::{Results, Row};

/// An SVG of horizontal bars.
pub(crate) fn bars(all: &BTreeMap<PathBuf, Results>) -> Result<String> {
    let panels: Vec<Panel> = all.values().flat_map(panels_of).collect();
    Ok(fused_lora_picture::bars(&panels)?)
}

/// The columns in which a method was compared with the base model.
fn panels_of(results: &Results) -> Vec<Panel> {
    let compared = |column: &Vec<&Row>| column.iter().any(|row| row.percent_over_none.is_some_and(|p| p != 0.0));
    results.columns().iter().filter(|column| compared(column)).map(|column| panel(results, column)).collect()
}

fn panel(results: &Results, column: &[&Row]) -> Panel {
    let Results { run, model, lm_head, .. } = results;
    let Row { batch, tokens, decode, issued, trials, .. } = column[0];
    let what = if *lm_head { "logits" } else { "hidden states" };
    let length = if *decode { "context, one token each" } else { "tokens" };
    let issued = issued.as_ref().map_or(String::new(), |issued| format!(", {issued}"));
    let none = column.iter().find(|row| row.method == "none");
    let base = none.map_or(String::new(), |none| format!(" ({:.1} ms)", none.median_ms));
    let day = run.date.split('T').next().unwrap_or_default();
    let bar = |row: &&&Row| {
        Some(Bar {
            method: row.method.clone(),
            value: row.percent_over_none?,
            interval: row.percent_low.zip(row.percent_high),
            paper: row.paper_percent_over_none.filter(|percent| *percent != 0.0),
            time: format!("{:.1} ms", row.median_ms),
        })
    };
    Panel {
        title: format!("{model}: forward pass, batch {batch}, {tokens} {length}{issued}, to the {what}"),
        subtitle: format!(
            "{}, {} threads, {}, commit {}, {trials} trials, {day}",
            results.device(),
            run.threads,
            run.dtype,
            run.commit
        ),
        axis: format!("median time over none{base}"),
        is_relative: true,
        bars: column.iter().filter(|row| row.method != "none").filter_map(|row| bar(&row)).collect(),
    }
}
