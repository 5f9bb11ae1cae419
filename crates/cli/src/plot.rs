//! Pictures: bars for Table 1, heat maps for Figure 5. SVG, no fonts needed.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::sweep::Cell;
use crate::table1::Row;

const FONT: &str = "sans-serif";

/// Writes what `draw` draws, whole or not at all.
fn write_svg(
    path: &Path,
    size: (u32, u32),
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Result<()>,
) -> Result<()> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(|e| anyhow!("cannot draw: {e}"))?;
        draw(&root)?;
        root.present().map_err(|e| anyhow!("cannot draw: {e}"))?;
    }
    Ok(fused_lora_gpt2::write_atomically(path, |file| file.write_all(svg.as_bytes()))?)
}

fn text(size: i32, horizontal: HPos) -> TextStyle<'static> {
    (FONT, size).into_font().into_text_style(&(1, 1)).pos(Pos::new(horizontal, VPos::Center))
}

/// Table 1 as horizontal bars of the median, one panel a column, with the deviation as a whisker.
pub(crate) fn bars(path: &Path, rows: &[Row]) -> Result<()> {
    const LABEL: i32 = 170;
    const BAR: i32 = 22;
    const WIDTH: i32 = 760;
    let mut panels: Vec<Vec<&Row>> = vec![];
    for row in rows {
        match panels.last_mut() {
            Some(panel) if panel[0].batch == row.batch && panel[0].tokens == row.tokens => panel.push(row),
            _ => panels.push(vec![row]),
        }
    }
    let height: i32 = panels.iter().map(|panel| 40 + BAR * panel.len() as i32).sum::<i32>() + 10;
    write_svg(path, (WIDTH as u32, height.max(50) as u32), |root| {
        let draw_error = |e| anyhow!("cannot draw: {e}");
        let mut top = 10;
        for panel in panels {
            let title = format!(
                "{} x {} (batch x tokens), median ms of {} trials",
                panel[0].batch, panel[0].tokens, panel[0].trials
            );
            root.draw(&Text::new(title, (10, top + 10), text(15, HPos::Left))).map_err(draw_error)?;
            top += 30;
            let longest = panel.iter().map(|r| r.median_ms + r.std_ms).fold(f64::MIN_POSITIVE, f64::max);
            let scale = f64::from(WIDTH - LABEL - 150) / longest;
            for row in panel {
                let middle = top + BAR / 2;
                let end = LABEL + (row.median_ms * scale) as i32;
                let color =
                    if row.method.starts_with("lora") { RGBColor(31, 119, 180) } else { RGBColor(150, 150, 150) };
                let name = Text::new(row.method.clone(), (LABEL - 8, middle), text(13, HPos::Right));
                root.draw(&name).map_err(draw_error)?;
                let bar = Rectangle::new([(LABEL, top + 3), (end, top + BAR - 3)], color.filled());
                root.draw(&bar).map_err(draw_error)?;
                let half = (row.std_ms * scale) as i32;
                let whisker = PathElement::new(vec![(end - half, middle), (end + half, middle)], BLACK);
                root.draw(&whisker).map_err(draw_error)?;
                let over = row.percent_over_none.map_or(String::new(), |p| format!(" ({p:+.1} %)"));
                let label = format!("{:.1}{over}", row.median_ms);
                root.draw(&Text::new(label, (end + half + 6, middle), text(12, HPos::Left))).map_err(draw_error)?;
                top += BAR;
            }
            top += 10;
        }
        Ok(())
    })
}

/// Figure 5: one panel a method and sequence length, batch to the right, rank upwards, colour the slow-down.
pub(crate) fn heat_map(path: &Path, cells: &[Cell]) -> Result<()> {
    const CELL: (i32, i32) = (64, 30);
    const MARGIN: (i32, i32) = (60, 60);
    let unique = |key: &dyn Fn(&Cell) -> usize| {
        let mut values: Vec<_> = cells.iter().map(key).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    let (sequences, batches, ranks) = (unique(&|c| c.tokens), unique(&|c| c.batch), unique(&|c| c.rank));
    let mut methods: Vec<&str> = vec![];
    for cell in cells {
        if !methods.contains(&cell.method.as_str()) {
            methods.push(&cell.method);
        }
    }
    let panel = (MARGIN.0 + CELL.0 * batches.len() as i32 + 20, MARGIN.1 + CELL.1 * ranks.len() as i32 + 30);
    let size = (panel.0 * sequences.len().max(1) as i32, panel.1 * methods.len().max(1) as i32);
    write_svg(path, (size.0 as u32, size.1 as u32), |root| {
        let draw_error = |e| anyhow!("cannot draw: {e}");
        for cell in cells {
            let find = |values: &[usize], value| values.iter().position(|v| *v == value).unwrap_or(0) as i32;
            let method = methods.iter().position(|m| *m == cell.method).unwrap_or(0) as i32;
            let origin = (panel.0 * find(&sequences, cell.tokens), panel.1 * method);
            let left = origin.0 + MARGIN.0 + CELL.0 * find(&batches, cell.batch);
            // Ranks grow upwards, as in the paper.
            let row = ranks.len() as i32 - 1 - find(&ranks, cell.rank);
            let top = origin.1 + MARGIN.1 + CELL.1 * row;
            let corners = [(left, top), (left + CELL.0, top + CELL.1)];
            root.draw(&Rectangle::new(corners, color(cell.slow_down_percent).filled())).map_err(draw_error)?;
            root.draw(&Rectangle::new(corners, WHITE)).map_err(draw_error)?;
            let label = format!("{:.1}", cell.slow_down_percent);
            let middle = (left + CELL.0 / 2, top + CELL.1 / 2);
            root.draw(&Text::new(label, middle, text(12, HPos::Center))).map_err(draw_error)?;
        }
        for (m, method) in methods.iter().enumerate() {
            for (s, tokens) in sequences.iter().enumerate() {
                let origin = (panel.0 * s as i32, panel.1 * m as i32);
                let title = format!("{method}, {tokens} tokens, % slower");
                root.draw(&Text::new(title, (origin.0 + 10, origin.1 + 20), text(14, HPos::Left)))
                    .map_err(draw_error)?;
                for (i, rank) in ranks.iter().rev().enumerate() {
                    let at = (origin.0 + MARGIN.0 - 8, origin.1 + MARGIN.1 + CELL.1 * i as i32 + CELL.1 / 2);
                    root.draw(&Text::new(format!("r {rank}"), at, text(12, HPos::Right))).map_err(draw_error)?;
                }
                for (i, batch) in batches.iter().enumerate() {
                    let at = (origin.0 + MARGIN.0 + CELL.0 * i as i32 + CELL.0 / 2, origin.1 + MARGIN.1 - 12);
                    root.draw(&Text::new(format!("batch {batch}"), at, text(12, HPos::Center))).map_err(draw_error)?;
                }
            }
        }
        Ok(())
    })
}

/// White at no slow-down, red at the paper's 35 % and beyond, blue where it was faster.
fn color(percent: f64) -> RGBColor {
    let strength = (percent.abs() / 35.0).min(1.0);
    let faded = (255.0 * (1.0 - 0.8 * strength)) as u8;
    if percent >= 0.0 { RGBColor(255, faded, faded) } else { RGBColor(faded, faded, 255) }
}
