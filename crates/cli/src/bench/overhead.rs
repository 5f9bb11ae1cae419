//! The last lines of the output: what each way to adapt a layer costs over the base layer.

use super::adapter::NAMES;
use super::variant::FUSED;
use crate::stats::median;

/// One measured cell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub(super) tokens: usize,
    /// How it was launched (plain or graph), on a GPU.
    pub(super) mode: Option<&'static str>,
    pub(super) variant: &'static str,
    pub(super) percent_over_base: f64,
}

/// The name of a variant in these lines; `None` for variants that are not listed, such as the base.
fn display_name(variant: &str) -> Option<&'static str> {
    let [houlsby, lin, paper_houlsby, paper_lin] = NAMES;
    let names = [
        (FUSED, "fused LoRA"),
        ("sequential", "sequential LoRA"),
        (houlsby, "Adapter^H with as many parameters"),
        (lin, "Adapter^L with as many parameters"),
        (paper_houlsby, "Adapter^H with the paper's width"),
        (paper_lin, "Adapter^L with the paper's width"),
    ];
    let variant = variant.strip_suffix(" (cuBLASLt)").unwrap_or(variant);
    names.into_iter().find(|(name, _)| *name == variant).map(|(_, name)| name)
}

/// A paragraph for each number of tokens and mode: for every variant the median overhead of its cells, the smallest and
/// the largest.
pub(super) fn print(cells: &[Cell]) -> String {
    let mut groups: Vec<(usize, Option<&str>)> = vec![];
    for cell in cells.iter().filter(|cell| display_name(cell.variant).is_some()) {
        if !groups.contains(&(cell.tokens, cell.mode)) {
            groups.push((cell.tokens, cell.mode));
        }
    }
    groups.sort_by_key(|&(tokens, _)| tokens);
    let mut text = String::new();
    for (tokens, mode) in groups {
        let here: Vec<_> = cells.iter().filter(|cell| (cell.tokens, cell.mode) == (tokens, mode)).collect();
        let mut variants: Vec<&str> = vec![];
        for cell in &here {
            if display_name(cell.variant).is_some() && !variants.contains(&cell.variant) {
                variants.push(cell.variant);
            }
        }
        let plural = if tokens == 1 { "" } else { "s" };
        let mode = mode.map_or(String::new(), |mode| format!(", {mode}"));
        text += &format!("\nOver the base layer, {tokens} token{plural}{mode}:\n");
        for variant in variants {
            let of = here.iter().filter(|cell| cell.variant == variant);
            let percents: Vec<f64> = of.map(|cell| cell.percent_over_base).collect();
            let (middle, name) = (median(&percents), display_name(variant).unwrap_or_default());
            text += &format!("- {name} {middle:+.1} %");
            if percents.len() > 1 {
                let least = percents.iter().copied().fold(f64::INFINITY, f64::min);
                let most = percents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                text += &format!(", median of {} layers and ranks ({least:+.1} to {most:+.1})", percents.len());
            }
            text += "\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_its_line_and_the_base_has_none() {
        let cell = |tokens, mode, variant, percent_over_base| Cell { tokens, mode, variant, percent_over_base };
        let cells = [
            cell(16, None, "fused", 2.0),
            cell(1, None, "base", 0.0),
            cell(1, None, "fused", 1.25),
            cell(1, None, "sequential", 3.6),
            cell(1, None, "adapter-h", 8.64),
            cell(1, None, "adapter-l (paper)", 20.0),
            cell(1, None, "fused", -0.5),
            cell(1, None, "fused", 3.0),
        ];
        let text = "\nOver the base layer, 1 token:\n\
                    - fused LoRA +1.2 %, median of 3 layers and ranks (-0.5 to +3.0)\n\
                    - sequential LoRA +3.6 %\n\
                    - Adapter^H with as many parameters +8.6 %\n\
                    - Adapter^L with the paper's width +20.0 %\n\
                    \nOver the base layer, 16 tokens:\n\
                    - fused LoRA +2.0 %\n";
        assert_eq!(print(&cells), text);
        let modes = [cell(1, Some("graph"), "sequential (cuBLASLt)", 4.0), cell(1, Some("plain"), "fused", 1.0)];
        let text = print(&modes);
        assert!(text.contains("1 token, graph:\n- sequential LoRA +4.0 %\n"), "{text}");
        assert!(text.contains("1 token, plain:\n- fused LoRA +1.0 %\n"), "{text}");
        assert_eq!(print(&[cell(1, None, "base", 0.0)]), "");
    }
}
