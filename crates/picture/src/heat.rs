//! Figure 5: slow-down over batch size and rank, one panel per method and sequence length.

use plotters::prelude::{RGBColor, WHITE};

use crate::canvas::{Anchor, Canvas, GREY_TEXT, NO_DIFFERENCE, readable_on};
use crate::{Result, interval_text, is_insignificant};

const CELL_SIZE: (i32, i32) = (92, 40);
/// Margins of a panel around its cells: left, above, right, below.
const LEFT: i32 = 64;
const ABOVE: i32 = 34;
const RIGHT: i32 = 14;
const BELOW: i32 = 46;
const HEAD_HEIGHT: i32 = 56;
const SCALE_WIDTH: i32 = 140;
/// The end of the paper's colour scale, in per cent.
const SCALE_MAX_PERCENT: f64 = 35.0;

/// One cell.
#[derive(Debug, Clone)]
pub struct Slowdown {
    /// Sequences of a batch.
    pub batch: usize,
    /// LoRA's rank or the bottleneck's width.
    pub rank: usize,
    /// Slow-down in per cent over the base model.
    pub percent: f64,
    /// The 95 % interval of `percent`, if there is one.
    pub interval: Option<(f64, f64)>,
}

/// One method at one sequence length.
#[derive(Debug, Clone)]
pub struct HeatMap {
    /// The method's name.
    pub method: String,
    /// The sequence length.
    pub tokens: usize,
    /// The cells, in any order.
    pub cells: Vec<Slowdown>,
}

/// All heat maps of a sweep.
#[derive(Debug, Clone)]
pub struct HeatMaps {
    /// What was measured.
    pub title: String,
    /// The machine and the date.
    pub subtitle: String,
    /// The heat maps, drawn with one row per method and one column per sequence length.
    pub maps: Vec<HeatMap>,
}

fn unique<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// An SVG with one panel per method and sequence length, all with the same batches and ranks, and a scale of colours.
///
/// # Errors
/// If the picture cannot be drawn.
pub fn heat_maps(all: &HeatMaps) -> Result<String> {
    let cells = || all.maps.iter().flat_map(|map| &map.cells);
    let (batches, ranks) = (unique(cells().map(|c| c.batch)), unique(cells().map(|c| c.rank)));
    let sequences = unique(all.maps.iter().map(|map| map.tokens));
    let mut methods: Vec<&str> = vec![];
    for map in &all.maps {
        if !methods.contains(&map.method.as_str()) {
            methods.push(&map.method);
        }
    }
    let panel_width = LEFT + CELL_SIZE.0 * batches.len() as i32 + RIGHT;
    let panel_height = ABOVE + CELL_SIZE.1 * ranks.len() as i32 + BELOW;
    let panels = (panel_width * sequences.len() as i32, panel_height * methods.len() as i32);
    let width = (panels.0 + SCALE_WIDTH).max(760);
    Canvas::svg(width, HEAD_HEIGHT + panels.1.max(260) + 30, |canvas| {
        canvas.title(&all.title, (12, 20), 14)?;
        canvas.text(&all.subtitle, (12, 40), 11, Anchor::Left, GREY_TEXT)?;
        for map in &all.maps {
            let column = sequences.iter().position(|tokens| *tokens == map.tokens).unwrap_or(0) as i32;
            let row = methods.iter().position(|method| *method == map.method).unwrap_or(0) as i32;
            draw_map(canvas, map, (panel_width * column, HEAD_HEIGHT + panel_height * row), &batches, &ranks)?;
        }
        draw_scale(canvas, (panels.0 + 18, HEAD_HEIGHT + ABOVE))?;
        let words = "Per cent of the base model's median time, below it the bootstrap's 95 % interval; \
                     no difference: the interval contains zero.";
        canvas.text(words, (12, HEAD_HEIGHT + panels.1.max(260) + 10), 11, Anchor::Left, GREY_TEXT)
    })
}

fn draw_map(canvas: &Canvas<'_>, map: &HeatMap, origin: (i32, i32), batches: &[usize], ranks: &[usize]) -> Result<()> {
    let black = RGBColor(0, 0, 0);
    let (left, top) = (origin.0 + LEFT, origin.1 + ABOVE);
    let (across, down) = (CELL_SIZE.0 * batches.len() as i32, CELL_SIZE.1 * ranks.len() as i32);
    canvas.title(&format!("{}, {} tokens", map.method, map.tokens), (left, top - 14), 13)?;
    for (i, batch) in batches.iter().enumerate() {
        let x = left + CELL_SIZE.0 * i as i32 + CELL_SIZE.0 / 2;
        canvas.text(&batch.to_string(), (x, top + down + 11), 12, Anchor::Center, black)?;
    }
    canvas.text("batch size", (left + across / 2, top + down + 28), 11, Anchor::Center, GREY_TEXT)?;
    for (i, rank) in ranks.iter().rev().enumerate() {
        let y = top + CELL_SIZE.1 * i as i32 + CELL_SIZE.1 / 2;
        canvas.text(&rank.to_string(), (left - 8, y), 12, Anchor::Right, black)?;
    }
    canvas.upwards("rank or width r", (left - 48, top + down / 2), 11)?;
    for cell in &map.cells {
        let index_of = |values: &[usize], value| values.iter().position(|v| *v == value).unwrap_or(0) as i32;
        // Ranks grow upwards, as in the paper.
        let row = ranks.len() as i32 - 1 - index_of(ranks, cell.rank);
        let corner = (left + CELL_SIZE.0 * index_of(batches, cell.batch), top + CELL_SIZE.1 * row);
        draw_cell(canvas, cell, corner)?;
    }
    canvas.outline([(left, top), (left + across, top + down)], GREY_TEXT)
}

fn draw_cell(canvas: &Canvas<'_>, cell: &Slowdown, (x, y): (i32, i32)) -> Result<()> {
    let is_insignificant = is_insignificant(cell.interval);
    let background = if is_insignificant { NO_DIFFERENCE } else { color(cell.percent) };
    let text = readable_on(background);
    let corners = [(x, y), (x + CELL_SIZE.0, y + CELL_SIZE.1)];
    canvas.fill(corners, background)?;
    canvas.outline(corners, WHITE)?;
    let middle = x + CELL_SIZE.0 / 2;
    let percent = format!("{:+.1} %", cell.percent);
    let first = if is_insignificant { "no difference" } else { &percent };
    let line = if cell.interval.is_some() { y + 14 } else { y + CELL_SIZE.1 / 2 };
    canvas.text(first, (middle, line), 12, Anchor::Center, text)?;
    canvas.text(&interval_text(cell.interval), (middle, y + 30), 10, Anchor::Center, text)
}

/// Draws the colour scale with its numbers.
fn draw_scale(canvas: &Canvas<'_>, (x, y): (i32, i32)) -> Result<()> {
    const STEP: i32 = 4;
    let black = RGBColor(0, 0, 0);
    let values = || (-10..=35).rev();
    for (i, percent) in values().enumerate() {
        let top = y + STEP * i as i32;
        // Each band overlaps the next by one pixel, so that no gap is visible.
        canvas.fill([(x, top), (x + 18, top + STEP + 1)], color(f64::from(percent)))?;
    }
    for (i, percent) in values().enumerate().filter(|(_, percent)| percent % 10 == 0 || *percent == 35) {
        let label = match percent {
            35 => "+35 % and more".to_owned(),
            -10 => "-10 %".to_owned(),
            0 => "0".to_owned(),
            percent => format!("{percent:+} %"),
        };
        canvas.text(&label, (x + 24, y + STEP * i as i32 + STEP / 2), 10, Anchor::Left, black)?;
    }
    canvas.outline([(x, y), (x + 18, y + STEP * 46)], GREY_TEXT)?;
    canvas.text("slower than none", (x, y - 14), 11, Anchor::Left, black)?;
    let sample = y + STEP * 46 + 14;
    canvas.fill([(x, sample), (x + 18, sample + 14)], NO_DIFFERENCE)?;
    canvas.outline([(x, sample), (x + 18, sample + 14)], GREY_TEXT)?;
    canvas.text("no difference", (x + 24, sample + 7), 10, Anchor::Left, black)
}

/// White for no slow-down, dark red for 35 % and more (the end of the paper's scale), blue for a method that was
/// faster.
fn color(percent: f64) -> RGBColor {
    let strength = (percent.abs() / SCALE_MAX_PERCENT).min(1.0);
    let end = if percent >= 0.0 { (165.0, 15.0, 21.0) } else { (8.0, 81.0, 156.0) };
    let mix = |to: f64| (255.0 + (to - 255.0) * strength).round() as u8;
    RGBColor(mix(end.0), mix(end.1), mix(end.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(method: &str, percent: f64, interval: Option<(f64, f64)>) -> HeatMap {
        let cells = vec![Slowdown { batch: 2, rank: 10, percent, interval }];
        HeatMap { method: method.into(), tokens: 128, cells }
    }

    #[test]
    fn a_picture_has_all_texts() {
        let maps = vec![map("adapter-h", 40.0, Some((38.0, 41.5))), map("lora-fused", 0.2, Some((-0.5, 1.0)))];
        let svg = heat_maps(&HeatMaps { title: "Figure 5".into(), subtitle: "a machine".into(), maps }).unwrap();
        for text in ["a machine", "adapter-h, 128 tokens", "batch size", "rank or width r", "+40.0 %", "+38.0 to +41.5"]
        {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("no difference\n").count(), 2, "one cell and the scale");
        assert!(svg.contains("#FFFFFF\">\n+40.0 %"), "white on the darkest red: {svg}");
    }

    #[test]
    fn no_maps_can_be_drawn() {
        let empty = HeatMaps { title: "t".into(), subtitle: "s".into(), maps: vec![] };
        assert!(heat_maps(&empty).unwrap().contains("</svg>"));
    }

    #[test]
    fn text_is_readable_on_the_whole_scale() {
        assert_eq!(color(0.0), WHITE);
        assert_eq!(color(400.0), color(35.0));
        assert_eq!(readable_on(color(35.0)), WHITE);
        assert_eq!(readable_on(color(5.0)), RGBColor(0, 0, 0));
    }
}
