//! Pictures of fused-lora's measurements, as SVG that needs no fonts: [`bars`] for Table 1, [`heat_maps`] for Figure 5.
//! Each picture says what was measured, on which machine and when, so that it can be read on its own.

mod bars;
mod canvas;
mod heat;

pub use bars::{Bar, Panel, bars};
pub use heat::{HeatMap, HeatMaps, Slowdown, heat_maps};

/// Why a picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the picture cannot be drawn: {0}")]
pub struct Error(String);

/// The result of drawing.
pub type Result<T> = std::result::Result<T, Error>;

/// Whether an interval contains zero, so that there is no significant difference.
fn is_insignificant(interval: Option<(f64, f64)>) -> bool {
    interval.is_some_and(|(low, high)| low <= 0.0 && high >= 0.0)
}

/// `+2.5 to +4.2`; an empty text without an interval.
fn interval_text(interval: Option<(f64, f64)>) -> String {
    interval.map_or(String::new(), |(low, high)| format!("{low:+.1} to {high:+.1}"))
}
