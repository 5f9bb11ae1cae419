//! LoRA on a GPT-2: low-rank factors on any of its projections, each with its own rank.

use std::ops::Range;

use fused_lora::lora::Segment;
use fused_lora::{Element, MatrixRef};
use fused_lora_peft::Warning;

use super::expect_same;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::tensor::Tensor;

/// The four projections of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Projection {
    /// `attn.c_attn`: queries, keys, values, fused.
    Qkv,
    /// `attn.c_proj`.
    AttnOut,
    /// `mlp.c_fc`.
    Fc,
    /// `mlp.c_proj`.
    MlpOut,
}

impl Projection {
    /// All projections in the order in which they run.
    pub const ALL: [Projection; 4] = [Projection::Qkv, Projection::AttnOut, Projection::Fc, Projection::MlpOut];

    /// The name inside a block, as in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Projection::Qkv => "attn.c_attn",
            Projection::AttnOut => "attn.c_proj",
            Projection::Fc => "mlp.c_fc",
            Projection::MlpOut => "mlp.c_proj",
        }
    }

    /// The projection with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// `(d_in, d_out)`.
    pub fn shape(self, config: &Config) -> (usize, usize) {
        let d = config.d_model;
        match self {
            Projection::Qkv => (d, 3 * d),
            Projection::AttnOut => (d, d),
            Projection::Fc => (d, config.d_ff),
            Projection::MlpOut => (config.d_ff, d),
        }
    }
}

/// The target of a LoRA: a projection, or the queries, keys or values of the fused qkv projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// A whole projection.
    Whole(Projection),
    /// The queries' columns of `attn.c_attn`.
    Q,
    /// The keys' columns of `attn.c_attn`.
    K,
    /// The values' columns of `attn.c_attn`.
    V,
}

impl Target {
    /// The projection that the target lies in.
    pub fn projection(self) -> Projection {
        match self {
            Target::Whole(projection) => projection,
            Target::Q | Target::K | Target::V => Projection::Qkv,
        }
    }

    /// The output columns that the target covers.
    pub fn columns(self, config: &Config) -> Range<usize> {
        let d = config.d_model;
        match self {
            Target::Whole(projection) => 0..projection.shape(config).1,
            Target::Q => 0..d,
            Target::K => d..2 * d,
            Target::V => 2 * d..3 * d,
        }
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "q" => Ok(Target::Q),
            "k" => Ok(Target::K),
            "v" => Ok(Target::V),
            "c_attn" => Ok(Target::Whole(Projection::Qkv)),
            "c_fc" => Ok(Target::Whole(Projection::Fc)),
            _ => Projection::named(name).map(Target::Whole).ok_or_else(|| {
                format!("unknown target '{name}', expected q, k, v, c_attn, attn.c_proj, c_fc or mlp.c_proj")
            }),
        }
    }
}

/// One pair of factors, and the columns that it adapts.
#[derive(Debug, Clone)]
pub struct Factors<W> {
    /// Output columns of the projection.
    pub columns: Range<usize>,
    /// A, `[rank, d_in]`.
    pub a: Tensor<W>,
    /// B, `[columns.len(), rank]`.
    pub b: Tensor<W>,
    /// The rank r.
    pub rank: usize,
    /// The scale s.
    pub scale: f32,
}

/// A LoRA adapter for a whole model.
#[derive(Debug, Clone)]
pub struct Lora<W> {
    /// The factors of each layer and, within it, of each [`Projection`].
    pub layers: Vec<[Vec<Factors<W>>; 4]>,
    d_model: usize,
    d_ff: usize,
    warnings: Vec<Warning>,
}

impl<W: Element> Lora<W> {
    /// A LoRA without factors, for a model of this shape.
    pub fn new(config: &Config) -> Self {
        let layers = (0..config.layers).map(|_| Default::default()).collect();
        Self { layers, d_model: config.d_model, d_ff: config.d_ff, warnings: vec![] }
    }

    /// Warnings about the folders that the LoRA was loaded from: what was ignored there, as PEFT ignores it.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    pub(crate) fn warn(&mut self, warnings: Vec<Warning>) {
        self.warnings.extend(warnings);
    }

    /// Random factors on every target of every layer, each with its rank. Both factors are non-zero, so the adapter has
    /// an effect.
    ///
    /// # Errors
    /// [`Error::UnsupportedAdapters`] for rank 0 or a rank above the largest supported; [`Error::Io`] if memory cannot
    /// be allocated.
    pub fn random(config: &Config, targets: &[(Target, usize)], alpha: f32, seed: u64) -> Result<Self> {
        Self::with_deviation(config, targets, alpha, seed, 0.02)
    }

    fn with_deviation(
        config: &Config,
        targets: &[(Target, usize)],
        alpha: f32,
        seed: u64,
        deviation_of_b: f32,
    ) -> Result<Self> {
        let mut lora = Self::new(config);
        let mut random = Random::new(seed ^ 0x10FA);
        for layer in &mut lora.layers {
            for &(target, rank) in targets {
                check_rank(rank)?;
                let columns = target.columns(config);
                let d_in = target.projection().shape(config).0;
                let a = random.normal(rank * d_in, 1.0 / (d_in as f32).sqrt())?;
                let b = random.normal(columns.len() * rank, deviation_of_b)?;
                let factors = Factors { columns, a, b, rank, scale: alpha / rank as f32 };
                layer[target.projection() as usize].push(factors);
            }
        }
        Ok(lora)
    }

    /// Factors at the start of training: A random, B zero, so that the model is unchanged at first.
    ///
    /// # Errors
    /// As [`random`](Self::random).
    pub fn untrained(config: &Config, targets: &[(Target, usize)], alpha: f32, seed: u64) -> Result<Self> {
        Self::with_deviation(config, targets, alpha, seed, 0.0)
    }

    /// Number of trainable parameters: r·(d_in + d_out) for each pair of factors.
    pub fn parameters(&self) -> usize {
        self.layers.iter().flatten().flatten().map(|f| f.a.len() + f.b.len()).sum()
    }

    /// The segments on one projection.
    ///
    /// # Errors
    /// If a factor's length does not match its rank and columns.
    pub fn segments(&self, layer: usize, projection: Projection) -> Result<Vec<Segment<'_, W>>> {
        let d_in = if projection == Projection::MlpOut { self.d_ff } else { self.d_model };
        self.layers[layer][projection as usize].iter().map(|factors| factors.segment(d_in)).collect()
    }

    /// Adds another LoRA's factors to this one's.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`] if they were made for different models.
    pub fn add(&mut self, other: Self) -> Result<()> {
        expect_same("the other LoRA has", "layers", self.layers.len(), other.layers.len())?;
        expect_same("the other LoRA has", "features", self.d_model, other.d_model)?;
        expect_same("the other LoRA has", "MLP features", self.d_ff, other.d_ff)?;
        for (mine, theirs) in self.layers.iter_mut().zip(other.layers) {
            for (mine, mut theirs) in mine.iter_mut().zip(theirs) {
                mine.append(&mut theirs);
            }
        }
        self.warnings.extend(other.warnings);
        Ok(())
    }

    /// Checks that the LoRA was made for a model of this shape.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`].
    pub fn check(&self, config: &Config) -> Result<()> {
        expect_same("the LoRA has", "layers", config.layers, self.layers.len())?;
        expect_same("the LoRA has", "features", config.d_model, self.d_model)?;
        expect_same("the LoRA has", "MLP features", config.d_ff, self.d_ff)
    }
}

impl<W: Element> Factors<W> {
    fn segment(&self, d_in: usize) -> Result<Segment<'_, W>> {
        let a = MatrixRef::new(&self.a, self.rank, d_in)?;
        let b = MatrixRef::new(&self.b, self.columns.len(), self.rank)?;
        Ok(Segment { columns: self.columns.clone(), a, b, scale: self.scale })
    }
}

/// Checks a rank.
///
/// # Errors
/// [`Error::UnsupportedAdapters`] unless the rank is supported.
pub(crate) fn check_rank(rank: usize) -> Result<()> {
    let max = fused_lora::lora::MAX_RANK;
    if (1..=max).contains(&rank) {
        Ok(())
    } else {
        Err(Error::UnsupportedAdapters(format!("rank {rank} is not supported, expected 1 to {max}")))
    }
}
