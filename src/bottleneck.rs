//! Bottleneck adapters, a baseline for LoRA: after a layer, a down projection, an activation and an up projection,
//! whose result is added to the layer's output.
//!
//! - Adapter^H ([Houlsby et al. 2019](https://arxiv.org/abs/1902.00751)): `y += up·act(down·y + b) + b`.
//! - Adapter^L ([Lin et al. 2020](https://arxiv.org/abs/2004.03829)): `y += up·act(down·LayerNorm(y) + b) + b`.

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Activation, LoraLinear, Weight};

/// LayerNorm's parameters: `(x − mean)/√(variance + ε)·weight + bias`, with the biased variance (the mean of squares).
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// The weight, `[d]`, by which normalised elements are multiplied.
    pub weight: &'a [f32],
    /// The bias, `[d]`, which is added to the products.
    pub bias: &'a [f32],
    /// ε, which is added to the variance.
    pub epsilon: f32,
}

impl LayerNorm<'_> {
    /// Checks the vectors' lengths.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] for the first vector that is not `d` long.
    pub fn validate(&self, d: usize) -> Result<()> {
        for (operand, vector) in [("norm weight", self.weight), ("norm bias", self.bias)] {
            if vector.len() != d {
                return Err(Error::LengthMismatch { operand, expected: d, actual: vector.len() });
            }
        }
        Ok(())
    }
}

/// A bottleneck adapter: `up·act(down·norm(x) + down_bias) + up_bias`.
#[derive(Debug, Clone, Copy)]
pub struct Bottleneck<'a, W> {
    /// The LayerNorm of the input, of d features, in Adapter^L; `None` for Adapter^H.
    pub norm: Option<LayerNorm<'a>>,
    /// The down projection, from d features to `width` hidden features.
    pub down: Weight<'a, W>,
    /// The bias of the down projection, `[width]`.
    pub down_bias: Option<&'a [W]>,
    /// The up projection, from the hidden features to d features.
    pub up: Weight<'a, W>,
    /// The bias of the up projection, `[d]`.
    pub up_bias: Option<&'a [W]>,
    /// The activation of the hidden features, applied after the bias.
    pub activation: Activation,
}

impl<'a, W: Element> Bottleneck<'a, W> {
    /// Features d, the columns of x and of y.
    pub fn d(&self) -> usize {
        self.down.d_in()
    }

    /// Hidden features.
    pub fn width(&self) -> usize {
        self.down.d_out()
    }

    /// Checks that the shapes of all operands fit together.
    ///
    /// # Errors
    /// As [`LayerNorm::validate`]; [`Error::ShapeMismatch`] for the up projection, with its dimensions in storage
    /// order; [`Error::LengthMismatch`] for a bias.
    pub fn validate(&self) -> Result<()> {
        if let Some(norm) = &self.norm {
            norm.validate(self.d())?;
        }
        let expected = match self.up.layout {
            crate::lora::Layout::InOut => [self.width(), self.d()],
            crate::lora::Layout::OutIn => [self.d(), self.width()],
        };
        self.up.matrix.expect_shape("up", expected)?;
        let biases = [("down bias", self.down_bias, self.width()), ("up bias", self.up_bias, self.d())];
        for (operand, bias, expected) in biases {
            let actual = bias.map_or(expected, <[W]>::len);
            if actual != expected {
                return Err(Error::LengthMismatch { operand, expected, actual });
            }
        }
        Ok(())
    }

    /// Both projections, as layers that a backend runs one after the other.
    pub(crate) fn layers(&self) -> [LoraLinear<'a, W>; 2] {
        [LoraLinear::base(self.down, self.down_bias), LoraLinear::base(self.up, self.up_bias)]
    }
}

/// Trainable parameters of an adapter: `2·d·width + width + d`, and `2·d` more with a LayerNorm.
pub fn parameters(d: usize, width: usize, has_norm: bool) -> usize {
    2 * d * width + width + d + if has_norm { 2 * d } else { 0 }
}

/// The bottleneck width, at least 1, whose [`parameters`] for `d` features come closest to the number `parameters`.
pub fn width_for(d: usize, has_norm: bool, parameters: f64) -> usize {
    let d = d as f64;
    let without_width = if has_norm { 3.0 * d } else { d };
    ((parameters - without_width) / (2.0 * d + 1.0)).round().max(1.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MatrixRef;

    #[test]
    fn the_papers_budgets_have_the_papers_widths() {
        // Table 1's 11M: 48 adapters of Adapter^H and 24 of Adapter^L on GPT-2 medium.
        for (adapters, has_norm, width, total) in [(48, false, 112, 11_064_576), (24, true, 224, 11_089_152)] {
            assert_eq!(adapters * parameters(1024, width, has_norm), total);
            assert_eq!(width_for(1024, has_norm, total as f64 / f64::from(adapters as u32)), width);
        }
        for (d, has_norm, budget) in [(1, false, 1), (64, true, 512), (1024, false, 8192), (100_000, true, 400_004)] {
            let width = width_for(d, has_norm, budget as f64);
            let off = |width| parameters(d, width, has_norm).abs_diff(budget);
            assert!(width >= 1 && off(width) <= off(width + 1), "{d}, {budget}: {width}");
            assert!(width == 1 || off(width) <= off(width - 1), "{d}, {budget}: {width}");
        }
    }

    #[test]
    fn each_violated_precondition_has_its_error() {
        let (data, vector) = ([0.0f32; 64], [0.0f32; 64]);
        let weight = |rows, cols| Weight::in_out(MatrixRef::new(&data, rows, cols).unwrap());
        let norm = |weight, bias| Some(LayerNorm { weight: &vector[..weight], bias: &vector[..bias], epsilon: 1e-5 });
        let good = Bottleneck {
            norm: norm(6, 6),
            down: weight(6, 3),
            down_bias: Some(&data[..3]),
            up: weight(3, 6),
            up_bias: Some(&data[..6]),
            activation: Activation::Relu,
        };
        assert_eq!((good.validate(), good.d(), good.width()), (Ok(()), 6, 3));
        let length = |operand, expected, actual| Err(Error::LengthMismatch { operand, expected, actual });
        let shape = |expected, actual| Err(Error::ShapeMismatch { operand: "up", expected, actual });
        let cases = [
            (Bottleneck { norm: norm(5, 6), ..good }, length("norm weight", 6, 5)),
            (Bottleneck { norm: norm(6, 7), ..good }, length("norm bias", 6, 7)),
            (Bottleneck { up: weight(3, 5), ..good }, shape([3, 6], [3, 5])),
            (Bottleneck { up: Weight::out_in(weight(3, 6).matrix), ..good }, shape([6, 3], [3, 6])),
            (Bottleneck { down_bias: Some(&data[..6]), ..good }, length("down bias", 3, 6)),
            (Bottleneck { up_bias: Some(&data[..3]), ..good }, length("up bias", 6, 3)),
        ];
        for (bottleneck, expected) in cases {
            assert_eq!(bottleneck.validate(), expected);
        }
    }
}
