//! Table 1: the cost of each method over the base model as horizontal bars, one panel per measured column.

use plotters::prelude::{BLACK, RGBColor};

use crate::canvas::{Anchor, Canvas, GREY_TEXT, GRID, NO_DIFFERENCE, tick_text, ticks};
use crate::{Result, interval_text, is_insignificant};

const WIDTH: i32 = 860;
/// X positions in a panel: where method names end, where bars end, where numbers start.
const LABEL_END: i32 = 150;
const PLOT_END: i32 = 572;
const FIGURES_START: i32 = 602;
const BAR_HEIGHT: i32 = 24;
/// Height of a panel's title, subtitle, axis title and axis numbers.
const HEAD_HEIGHT: i32 = 78;
const LEGEND_HEIGHT: i32 = 80;
const LORA_COLOR: RGBColor = RGBColor(107, 174, 214);
const OTHER_COLOR: RGBColor = RGBColor(189, 189, 189);
const PAPER_COLOR: RGBColor = RGBColor(200, 0, 0);

/// One method.
#[derive(Debug, Clone)]
pub struct Bar {
    /// The method's name.
    pub method: String,
    /// The bar's length: per cent over the base model, or milliseconds if there is no base.
    pub value: f64,
    /// The 95 % interval of `value`, if there is one.
    pub interval: Option<(f64, f64)>,
    /// The paper's figure for the method, in the same unit.
    pub paper: Option<f64>,
    /// The time in milliseconds, as text.
    pub time: String,
}

/// One column of the table.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What was measured: batch, tokens, how.
    pub title: String,
    /// The machine and the date.
    pub subtitle: String,
    /// The meaning of the bars, with their unit.
    pub axis: String,
    /// Whether bars are differences in per cent.
    pub is_relative: bool,
    /// The bars from top to bottom.
    pub bars: Vec<Bar>,
}

/// An SVG with all panels from top to bottom and a legend.
///
/// # Errors
/// If the picture cannot be drawn.
pub fn bars(panels: &[Panel]) -> Result<String> {
    let height = |panel: &Panel| HEAD_HEIGHT + BAR_HEIGHT * panel.bars.len() as i32 + 22;
    Canvas::svg(WIDTH, panels.iter().map(height).sum::<i32>() + LEGEND_HEIGHT, |canvas| {
        let mut top = 0;
        for panel in panels {
            draw_panel(canvas, panel, top)?;
            top += height(panel);
        }
        draw_legend(canvas, panels, top + 4)
    })
}

fn draw_panel(canvas: &Canvas<'_>, panel: &Panel, top: i32) -> Result<()> {
    canvas.title(&panel.title, (12, top + 20), 14)?;
    canvas.text(&panel.subtitle, (12, top + 40), 11, Anchor::Left, GREY_TEXT)?;
    let ends = panel.bars.iter().flat_map(|bar| {
        let (low, high) = bar.interval.unwrap_or((bar.value, bar.value));
        [Some(bar.value), Some(low), Some(high), bar.paper]
    });
    let (mut low, mut high) = ends.flatten().fold((0.0, 0.0), |(low, high): (f64, f64), v| (low.min(v), high.max(v)));
    // The axis has a minimum length, so that small differences do not look large.
    if panel.is_relative {
        (low, high) = (low.min(-1.0), high.max(5.0));
    }
    let per_unit = f64::from(PLOT_END - LABEL_END) / (high - low).max(f64::MIN_POSITIVE);
    let x = |value: f64| LABEL_END + ((value - low) * per_unit).round() as i32;
    let (first, bottom) = (top + HEAD_HEIGHT, top + HEAD_HEIGHT + BAR_HEIGHT * panel.bars.len() as i32);

    let heads = if panel.is_relative { ["over none", "95 % interval"] } else { ["", ""] };
    let heads = [
        (heads[0], FIGURES_START, Anchor::Left),
        (heads[1], FIGURES_START + 92, Anchor::Left),
        ("median", WIDTH - 12, Anchor::Right),
    ];
    for (head, x, anchor) in heads {
        canvas.text(head, (x, first - 9), 10, anchor, GREY_TEXT)?;
    }
    let unit = if panel.is_relative { " %" } else { "" };
    canvas.text(&panel.axis, (LABEL_END, top + 57), 11, Anchor::Left, BLACK)?;
    for tick in ticks(low, high, 7) {
        canvas.line((x(tick), first - 2), (x(tick), bottom), 1, GRID)?;
        canvas.text(&format!("{}{unit}", tick_text(tick)), (x(tick), first - 9), 10, Anchor::Center, GREY_TEXT)?;
    }
    for (i, bar) in panel.bars.iter().enumerate() {
        let (y, middle) = (first + BAR_HEIGHT * i as i32, first + BAR_HEIGHT * i as i32 + BAR_HEIGHT / 2);
        let is_insignificant = panel.is_relative && is_insignificant(bar.interval);
        let color = match (is_insignificant, bar.method.starts_with("lora")) {
            (true, _) => NO_DIFFERENCE,
            (false, true) => LORA_COLOR,
            (false, false) => OTHER_COLOR,
        };
        let (zero, end) = (x(0.0), x(bar.value));
        let corners = [(zero.min(end), y + 4), (zero.max(end), y + BAR_HEIGHT - 4)];
        canvas.text(&bar.method, (LABEL_END - 10, middle), 12, Anchor::Right, BLACK)?;
        canvas.fill(corners, color)?;
        if is_insignificant {
            canvas.outline(corners, GREY_TEXT)?;
        }
        if let Some((low, high)) = bar.interval {
            canvas.whisker((x(low), x(high)), middle)?;
        }
        if let Some(paper) = bar.paper {
            canvas.line((x(paper), y + 2), (x(paper), y + BAR_HEIGHT - 2), 3, PAPER_COLOR)?;
        }
        draw_figures(canvas, panel, bar, is_insignificant, middle)?;
    }
    canvas.line((x(0.0), first - 2), (x(0.0), bottom), 1, BLACK)
}

/// Draws the numbers to the right of a bar.
fn draw_figures(canvas: &Canvas<'_>, panel: &Panel, bar: &Bar, is_insignificant: bool, middle: i32) -> Result<()> {
    let difference = match (panel.is_relative, is_insignificant) {
        (true, true) => "no difference".to_owned(),
        (true, false) => format!("{:+.1} %", bar.value),
        (false, _) => String::new(),
    };
    let color = if is_insignificant { GREY_TEXT } else { BLACK };
    canvas.text(&difference, (FIGURES_START, middle), 12, Anchor::Left, color)?;
    canvas.text(&interval_text(bar.interval), (FIGURES_START + 92, middle), 11, Anchor::Left, GREY_TEXT)?;
    canvas.text(&bar.time, (WIDTH - 12, middle), 12, Anchor::Right, BLACK)
}

/// Explains the colours and marks that the panels have.
fn draw_legend(canvas: &Canvas<'_>, panels: &[Panel], top: i32) -> Result<()> {
    canvas.line((12, top), (WIDTH - 12, top), 1, GRID)?;
    let (first, second, third) = (top + 18, top + 40, top + LEGEND_HEIGHT - 18);
    let sample = |x: i32, color: RGBColor| canvas.fill([(x, first - 7), (x + 22, first + 7)], color);
    let text = |at: (i32, i32), text: &str| canvas.text(text, at, 11, Anchor::Left, BLACK);
    sample(12, LORA_COLOR)?;
    text((40, first), "LoRA")?;
    sample(88, OTHER_COLOR)?;
    text((116, first), "other methods")?;
    if panels.iter().all(|panel| !panel.is_relative) {
        return canvas.text("Medians of interleaved trials.", (12, second), 11, Anchor::Left, GREY_TEXT);
    }
    sample(214, NO_DIFFERENCE)?;
    canvas.outline([(214, first - 7), (236, first + 7)], GREY_TEXT)?;
    text((242, first), "no difference: the interval contains zero")?;
    canvas.whisker((490, 516), first)?;
    text((524, first), "95 % interval (bootstrap)")?;
    let has_paper = panels.iter().flat_map(|panel| &panel.bars).any(|bar| bar.paper.is_some());
    if has_paper {
        canvas.line((23, second - 8), (23, second + 8), 3, PAPER_COLOR)?;
        text((40, second), "the paper's Table 1: GPT-2 medium on a Quadro RTX 8000, mean of 100 trials")?;
    }
    let words = "Differences are of medians of interleaved trials, against the base model without an adapter (none).";
    canvas.text(words, (12, if has_paper { third } else { second }), 11, Anchor::Left, GREY_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(bars: Vec<Bar>) -> Panel {
        Panel { title: "1 x 128".into(), subtitle: "a machine".into(), axis: "%".into(), is_relative: true, bars }
    }

    fn bar(method: &str, value: f64, interval: Option<(f64, f64)>, paper: Option<f64>) -> Bar {
        Bar { method: method.into(), value, interval, paper, time: "1 ms".into() }
    }

    #[test]
    fn a_picture_has_all_texts() {
        let all = [
            bar("lora-fused", 0.3, Some((-1.0, 1.5)), None),
            bar("adapter-h", 8.6, Some((7.3, 9.5)), Some(30.3)),
            bar("once", 8.6, None, None),
        ];
        let svg = bars(&[panel(all.to_vec())]).unwrap();
        for text in ["a machine", "adapter-h", "+8.6 %", "+7.3 to +9.5", "no difference", "Quadro RTX 8000", "1 ms"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("no difference\n").count(), 1, "one bar is no difference: {svg}");
        let without = bars(&[panel(all[..1].to_vec())]).unwrap();
        assert!(!without.contains("Quadro"), "a legend of the paper without its figures");
    }

    #[test]
    fn times_without_a_base_have_no_differences() {
        let times = Panel { is_relative: false, ..panel(vec![bar("lora-fused", 0.17, None, None)]) };
        let svg = bars(&[times]).unwrap();
        assert!(svg.contains("\n0.15\n") && !svg.contains("no difference") && !svg.contains("(none)"), "{svg}");
    }

    #[test]
    fn empty_panels_can_be_drawn() {
        assert!(bars(&[]).unwrap().contains("</svg>"));
        assert!(bars(&[panel(vec![])]).unwrap().contains("1 x 128"));
        assert!(!bars(&[panel(vec![bar("none", 0.0, None, None)])]).unwrap().contains("NaN"));
    }
}
