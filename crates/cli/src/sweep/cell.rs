//! A cell of a sweep, and the table of all cells.

use serde::{Deserialize, Serialize};

use crate::column::Column;
use crate::output::{milliseconds, table, with_commas};
use crate::stats::Overhead;

/// One method at one batch size, sequence length and rank.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct Cell {
    pub(crate) method: String,
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) rank: usize,
    pub(crate) parameters: usize,
    pub(crate) trials: usize,
    pub(crate) median_ms: f64,
    pub(crate) none_median_ms: f64,
    pub(crate) slow_down_percent: f64,
    /// The 95 % interval; absent for fewer than six trials.
    pub(crate) percent_low: Option<f64>,
    pub(crate) percent_high: Option<f64>,
}

pub(super) fn same_cell(cell: &Cell, method: &str, column: Column, rank: usize) -> bool {
    cell.method == method && cell.batch == column.batch && cell.tokens == column.tokens && cell.rank == rank
}

pub(super) fn print(cells: &[Cell]) -> String {
    let header = ["method", "batch", "tokens", "r", "|Θ|", "median ms", "none ms", "slower", "95 % interval"];
    let row = |c: &Cell| {
        let [slower, interval] = Overhead::from_row(c.slow_down_percent, c.percent_low, c.percent_high).cells();
        vec![
            c.method.clone(),
            c.batch.to_string(),
            c.tokens.to_string(),
            c.rank.to_string(),
            with_commas(c.parameters),
            milliseconds(c.median_ms),
            milliseconds(c.none_median_ms),
            slower,
            interval,
        ]
    };
    table(&header, cells.iter().map(row))
}
