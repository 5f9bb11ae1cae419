//! Drawing functions that both pictures use: text, lines, boxes, colours.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::{Error, Result};

pub(crate) const GREY_TEXT: RGBColor = RGBColor(85, 85, 85);
pub(crate) const GRID: RGBColor = RGBColor(222, 222, 222);
/// The colour of a difference that is indistinguishable from zero.
pub(crate) const NO_DIFFERENCE: RGBColor = RGBColor(238, 238, 238);

/// Which point of a text is placed at a position: its left end, its centre or its right end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    Left,
    Center,
    Right,
}

/// A white picture, measured in pixels from its upper left corner.
pub(crate) struct Canvas<'a>(DrawingArea<SVGBackend<'a>, Shift>);

impl Canvas<'_> {
    /// The SVG of what `draw` draws.
    pub(crate) fn svg(width: i32, height: i32, draw: impl FnOnce(&Canvas<'_>) -> Result<()>) -> Result<String> {
        let mut svg = String::new();
        {
            let size = (width.max(1) as u32, height.max(1) as u32);
            let canvas = Canvas(SVGBackend::with_string(&mut svg, size).into_drawing_area());
            canvas.0.fill(&WHITE).map_err(error)?;
            draw(&canvas)?;
            canvas.0.present().map_err(error)?;
        }
        Ok(svg)
    }

    /// A line of text, `size` pixels high, centred vertically at `at`.
    pub(crate) fn text(&self, text: &str, at: (i32, i32), size: i32, anchor: Anchor, color: RGBColor) -> Result<()> {
        self.styled(text, at, size, anchor, color, FontStyle::Normal, FontTransform::None)
    }

    pub(crate) fn title(&self, text: &str, at: (i32, i32), size: i32) -> Result<()> {
        self.styled(text, at, size, Anchor::Left, BLACK, FontStyle::Bold, FontTransform::None)
    }

    /// Text that runs upwards, centred at `at`.
    pub(crate) fn upwards(&self, text: &str, at: (i32, i32), size: i32) -> Result<()> {
        self.styled(text, at, size, Anchor::Center, BLACK, FontStyle::Normal, FontTransform::Rotate270)
    }

    #[expect(clippy::too_many_arguments, reason = "all properties of a text")]
    fn styled(
        &self,
        text: &str,
        at: (i32, i32),
        size: i32,
        anchor: Anchor,
        color: RGBColor,
        style: FontStyle,
        transform: FontTransform,
    ) -> Result<()> {
        let horizontal = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Center => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        // The backend divides a size by this to get the font size.
        let size = f64::from(size) * 1.24;
        let font = ("sans-serif", size).into_font().style(style).transform(transform);
        let style = font.color(&color).pos(Pos::new(horizontal, VPos::Center));
        self.0.draw(&Text::new(text.to_owned(), at, style)).map_err(error)
    }

    /// A filled box from one corner to the other.
    pub(crate) fn fill(&self, corners: [(i32, i32); 2], color: RGBColor) -> Result<()> {
        self.0.draw(&Rectangle::new(corners, color.filled())).map_err(error)
    }

    /// The outline of a box.
    pub(crate) fn outline(&self, corners: [(i32, i32); 2], color: RGBColor) -> Result<()> {
        self.0.draw(&Rectangle::new(corners, color.stroke_width(1))).map_err(error)
    }

    /// A straight line of a width in pixels.
    pub(crate) fn line(&self, from: (i32, i32), to: (i32, i32), width: u32, color: RGBColor) -> Result<()> {
        self.0.draw(&PathElement::new(vec![from, to], color.stroke_width(width))).map_err(error)
    }

    /// An interval as a horizontal whisker with caps.
    pub(crate) fn whisker(&self, (from, to): (i32, i32), middle: i32) -> Result<()> {
        self.line((from, middle), (to, middle), 1, BLACK)?;
        [from, to].into_iter().try_for_each(|x| self.line((x, middle - 3), (x, middle + 3), 1, BLACK))
    }
}

fn error(error: impl std::fmt::Display) -> Error {
    Error(error.to_string())
}

/// Black or white, whichever has more contrast on a colour (WCAG 2's relative luminance).
pub(crate) fn readable_on(color: RGBColor) -> RGBColor {
    if luminance(color) > 0.179 { BLACK } else { WHITE }
}

fn luminance(RGBColor(red, green, blue): RGBColor) -> f64 {
    let linear = |channel: u8| match f64::from(channel) / 255.0 {
        c if c <= 0.04045 => c / 12.92,
        c => ((c + 0.055) / 1.055).powf(2.4),
    };
    0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)
}

/// At most `max` + 1 round numbers from `low` to `high`, including zero if it lies between.
pub(crate) fn ticks(low: f64, high: f64, max: usize) -> Vec<f64> {
    let span = (high - low).max(1e-9);
    let magnitude = 10f64.powf((span / max as f64).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
    let step = step.into_iter().find(|step| span / step <= max as f64).unwrap_or(span);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|tick| *tick <= high + 1e-9 * span).collect()
}

/// The text of a tick, without rounding errors.
pub(crate) fn tick_text(tick: f64) -> String {
    let rounded = (tick * 1e6).round() / 1e6;
    format!("{}", rounded + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_readable_on_every_colour() {
        for color in [WHITE, BLACK, RGBColor(178, 24, 43), RGBColor(253, 219, 199), RGBColor(33, 102, 172)] {
            let (a, b) = (luminance(color), luminance(readable_on(color)));
            let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
            assert!(contrast >= 4.5, "{color:?}: {contrast}");
        }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 35.0, 7), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0]);
        assert_eq!(ticks(-3.0, 7.0, 6), [-2.0, 0.0, 2.0, 4.0, 6.0]);
        assert!(ticks(0.0, 1e-12, 6).contains(&0.0));
        assert_eq!(
            ticks(-0.1, 0.3, 7).into_iter().map(tick_text).collect::<Vec<_>>(),
            ["-0.1", "0", "0.1", "0.2", "0.3"]
        );
        assert!(ticks(-1e6, 3e7, 8).len() <= 9);
    }
}
