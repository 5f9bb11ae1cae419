//! The methods of Table 1 by name, and how each is put on a model.

use anyhow::{Result, bail};
use fused_lora::Element;
use fused_lora_gpt2::adapter::bottleneck::{self, Bottleneck};
use fused_lora_gpt2::adapter::lora::{Lora, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::{Adapters, Config, LoraMode, Model};

/// Every name `--methods` accepts, with what it stands for.
pub(crate) const NAMES: &[(&str, Kind)] = &[
    ("none", Kind::None),
    ("lora-merged", Kind::LoraMerged),
    ("lora-fused", Kind::Lora(LoraMode::Fused)),
    ("lora-slot", Kind::LoraSlot),
    ("lora-sequential", Kind::Lora(LoraMode::Sequential)),
    ("lora-dense-delta", Kind::Lora(LoraMode::DenseDelta)),
    ("adapter-h", Kind::Bottleneck(bottleneck::Kind::Houlsby)),
    ("adapter-l", Kind::Bottleneck(bottleneck::Kind::Lin)),
    ("adapter-p", Kind::Bottleneck(bottleneck::Kind::Pfeiffer)),
    ("prefix-layer", Kind::PrefixLayer),
    ("prefix-embedding", Kind::PrefixEmbedding),
    ("lora-prefix", Kind::LoraPrefix),
];

/// Prefix tokens of prefix-embedding where no size is given: its budget would need more tokens than there are positions.
const EMBEDDING_TOKENS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    None,
    LoraMerged,
    Lora(LoraMode),
    /// Fused, with factors that launches find in a slot, so that another adapter can take their place under a graph.
    LoraSlot,
    Bottleneck(bottleneck::Kind),
    PrefixLayer,
    PrefixEmbedding,
    LoraPrefix,
}

/// A method, perhaps with layers dropped and a size of its own: `NAME[-dropN][:SIZE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Method {
    pub(crate) kind: Kind,
    /// AdapterDrop: adapters of the lowest so many layers are left out.
    pub(crate) drop: usize,
    /// Rank, bottleneck width or prefix length, instead of what the column asks for.
    pub(crate) size: Option<usize>,
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) = match text.split_once(':') {
            Some((name, size)) => (name, Some(crate::common::parse_size(size)?)),
            None => (text, None),
        };
        let (name, drop) = match name.split_once("-drop") {
            Some((name, n)) => (name, crate::common::parse_size(n)?),
            None => (name, 0),
        };
        let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        let Some(kind) = known else {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            return Err(format!("unknown method '{name}', expected one of {}", names.join(", ")));
        };
        if drop > 0 && !matches!(kind, Kind::Bottleneck(_)) {
            return Err(format!("'{name}' has no adapters to drop, only adapter-h, adapter-l and adapter-p do"));
        }
        if size.is_some() && kind == Kind::None {
            return Err("'none' has no size".into());
        }
        Ok(Self { kind, drop, size })
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = NAMES.iter().find(|(_, kind)| *kind == self.kind).map_or("?", |(name, _)| *name);
        f.write_str(name)?;
        if self.drop > 0 {
            write!(f, "-drop{}", self.drop)?;
        }
        self.size.map_or(Ok(()), |size| write!(f, ":{size}"))
    }
}

/// How large adapters are where a method does not say.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// LoRA's targets and their rank.
    pub(crate) targets: Vec<Target>,
    pub(crate) rank: usize,
    pub(crate) alpha: f32,
    /// The budget for bottleneck adapters and prefix-layer.
    pub(crate) parameters: usize,
    /// The paper's own widths for its budgets, which no single number rounds to.
    pub(crate) houlsby_width: Option<usize>,
    pub(crate) lin_width: Option<usize>,
    pub(crate) seed: u64,
}

/// A method put on a model.
pub(crate) struct Prepared<W> {
    pub(crate) method: Method,
    /// The base model (sharing its weights), or one with merged weights.
    pub(crate) model: Model<W>,
    pub(crate) adapters: Adapters<W>,
    /// |Θ|
    pub(crate) parameters: usize,
}

impl Method {
    /// Makes the adapters, random, and merges them if the method asks for it.
    pub(crate) fn prepare<W: Element>(&self, base: &Model<W>, sizes: &Sizes) -> Result<Prepared<W>> {
        let config = &base.config;
        if self.drop > config.layers {
            bail!("{self}: the model has only {} layers", config.layers);
        }
        let lora = || -> Result<Lora<W>> {
            let rank = self.size.unwrap_or(sizes.rank);
            let targets: Vec<_> = sizes.targets.iter().map(|&t| (t, rank)).collect();
            Ok(Lora::random(config, &targets, sizes.alpha, sizes.seed)?)
        };
        let prefix_layer = |size: Option<usize>| -> Result<Prefix> {
            let per_token = 2 * config.layers * config.d_model;
            let length = size.unwrap_or((sizes.parameters as f64 / per_token as f64).round().max(1.0) as usize);
            Ok(Prefix::random_layer(config, length, sizes.seed)?)
        };
        let mut adapters = Adapters::default();
        match self.kind {
            Kind::None => {}
            Kind::LoraMerged | Kind::LoraSlot => adapters.lora = Some(lora()?),
            Kind::Lora(mode) => (adapters.lora, adapters.mode) = (Some(lora()?), mode),
            Kind::Bottleneck(kind) => {
                let width = self.size.unwrap_or_else(|| sizes.width(config, kind));
                let mut bottleneck = Bottleneck::random(config, kind, width, sizes.seed)?;
                bottleneck.drop_lowest(self.drop);
                adapters.bottleneck = Some(bottleneck);
            }
            Kind::PrefixLayer => adapters.prefix = Some(prefix_layer(self.size)?),
            Kind::PrefixEmbedding => {
                let length = self.size.unwrap_or(EMBEDDING_TOKENS);
                adapters.prefix = Some(Prefix::random_embedding(config, length, sizes.seed)?);
            }
            Kind::LoraPrefix => {
                (adapters.lora, adapters.prefix) = (Some(lora()?), Some(prefix_layer(None)?));
            }
        }
        let parameters = adapters.parameters();
        let model = match (self.kind, adapters.lora.take()) {
            (Kind::LoraMerged, Some(lora)) => base.merged(&lora)?,
            (_, lora) => {
                adapters.lora = lora;
                base.clone()
            }
        };
        Ok(Prepared { method: self.clone(), model, adapters, parameters })
    }
}

impl Sizes {
    fn width(&self, config: &Config, kind: bottleneck::Kind) -> usize {
        let paper = match kind {
            bottleneck::Kind::Houlsby => self.houlsby_width,
            bottleneck::Kind::Lin => self.lin_width,
            bottleneck::Kind::Pfeiffer => None,
        };
        paper.unwrap_or_else(|| bottleneck::width_for(config, kind, self.parameters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for text in ["none", "lora-fused:112", "adapter-h-drop12", "adapter-l-drop3:8", "prefix-layer", "lora-prefix:2"]
        {
            assert_eq!(text.parse::<Method>().map(|m| m.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "lora", "adapter-h-drop", "adapter-h:0", "lora-fused-drop1", "none:3", "adapter-h-dropx:1"] {
            assert!(text.parse::<Method>().is_err(), "{text}");
        }
    }
}
