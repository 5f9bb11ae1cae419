//! The report's picture: what each method costs over the base model, every measured column a panel, the paper's figure a line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::table1::{Results, Row};

const LABEL: i32 = 170;
const BAR: i32 = 20;
const WIDTH: i32 = 760;
const OURS: RGBColor = RGBColor(31, 119, 180);
const OTHERS: RGBColor = RGBColor(150, 150, 150);

/// An SVG of horizontal bars.
pub(crate) fn bars(all: &BTreeMap<PathBuf, Results>) -> Result<String> {
    let panels: Vec<(String, Vec<&Row>)> = all.values().flat_map(panels_of).collect();
    let height = panels.iter().map(|(_, rows)| 40 + BAR * rows.len() as i32).sum::<i32>() + 10;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH as u32, height.max(50) as u32)).into_drawing_area();
        draw(&root, &panels).map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(svg)
}

fn panels_of(results: &Results) -> Vec<(String, Vec<&Row>)> {
    let panel = |column: &Vec<&Row>| {
        let Row { batch, tokens, decode, issued, .. } = column[0].clone();
        let what = if decode { "context" } else { "tokens" };
        let issued = issued.map_or(String::new(), |issued| format!(", {issued}"));
        let dtype = &results.run.dtype;
        let title = format!("{}, {dtype}: batch {batch}, {what} {tokens}{issued}: % over none", results.device());
        title
    };
    let compared =
        |column: Vec<_>| column.into_iter().filter(|row: &&Row| row.percent_over_none.is_some_and(|p| p != 0.0));
    results.columns().into_iter().map(|column| (panel(&column), compared(column).collect())).collect()
}

type Drawn<T> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

fn draw(root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, panels: &[(String, Vec<&Row>)]) -> Drawn<()> {
    let text = |size: i32, horizontal: HPos| {
        ("sans-serif", size).into_font().into_text_style(&(1, 1)).pos(Pos::new(horizontal, VPos::Center))
    };
    root.fill(&WHITE)?;
    let mut top = 10;
    for (title, rows) in panels {
        root.draw(&Text::new(title.clone(), (10, top + 10), text(14, HPos::Left)))?;
        top += 30;
        let largest = rows.iter().flat_map(|row| [row.percent_over_none, row.paper_percent_over_none]).flatten();
        let largest = largest.map(f64::abs).fold(1.0, f64::max);
        let negative = rows.iter().any(|row| row.percent_over_none.is_some_and(|p| p < 0.0));
        let room = f64::from(WIDTH - LABEL - 80);
        let (zero, scale) = if negative { (LABEL + (room / 6.0) as i32, room * 5.0 / 6.0) } else { (LABEL, room) };
        let at = |percent: f64| zero + (percent / largest * scale) as i32;
        for row in rows {
            let (percent, middle) = (row.percent_over_none.unwrap_or(0.0), top + BAR / 2);
            root.draw(&Text::new(row.method.clone(), (LABEL - 8, middle), text(12, HPos::Right)))?;
            let color = if row.method.starts_with("lora") { OURS } else { OTHERS };
            let end = at(percent.max(-largest / 5.0));
            root.draw(&Rectangle::new([(zero.min(end), top + 3), (zero.max(end), top + BAR - 3)], color.filled()))?;
            if let Some(paper) = row.paper_percent_over_none.filter(|p| *p != 0.0) {
                root.draw(&PathElement::new(vec![(at(paper), top + 1), (at(paper), top + BAR - 1)], RED))?;
            }
            root.draw(&Text::new(format!("{percent:+.1}"), (zero.max(end) + 6, middle), text(11, HPos::Left)))?;
            top += BAR;
        }
        top += 10;
    }
    root.present()
}
