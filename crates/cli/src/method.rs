//! The methods of Table 1 by name, and how each is put on a model.

use anyhow::{Context, Result, ensure};
use fused_lora::Element;
use fused_lora::lora::MAX_RANK;
use fused_lora_gpt2::adapter::bottleneck::{self, Bottleneck};
use fused_lora_gpt2::adapter::lora::{Lora, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::{Adapters, Config, Error, LoraMode, Model};

use crate::common::On;
use crate::output::grouped;

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
    /// Checks that the method can be put on a model of this shape and run behind it: before any memory is taken for it.
    ///
    /// # Errors
    /// One sentence that says why not.
    pub(crate) fn check(&self, config: &Config, sizes: &Sizes, tokens: usize, on: On) -> Result<()> {
        ensure!(self.drop <= config.layers, "the model has only {} layers", config.layers);
        if let Some(rank) = self.rank(sizes) {
            ensure!((1..=MAX_RANK).contains(&rank), "rank {rank} is not supported, expected 1 to {MAX_RANK}");
        }
        if let Kind::Bottleneck(kind) = self.kind {
            self.check_width(config, sizes, kind, on)?;
        }
        let prefix = self.prefix_tokens(config, sizes)?;
        if tokens + prefix > config.positions {
            return Err(Error::TooManyPositions { tokens, prefix, positions: config.positions }.into());
        }
        Ok(())
    }

    fn check_width(&self, config: &Config, sizes: &Sizes, kind: bottleneck::Kind, on: On) -> Result<()> {
        let width = self.width(config, sizes, kind);
        // A width that was given is taken as it is; one that follows from a budget must still be a bottleneck.
        if self.size.or(sizes.paper_width(kind)).is_none() {
            let [least, budget] = [bottleneck::parameters_for(config, kind, 1), sizes.parameters].map(grouped);
            ensure!(
                bottleneck::parameters_for(config, kind, 1) <= sizes.parameters,
                "the narrowest adapters on this model have {least} parameters, more than the {budget} of --params"
            );
            ensure!(
                width <= config.d_ff,
                "adapters of {budget} parameters are {} wide on this model, wider than its MLP of {} features; --params \
                 sets another number",
                grouped(width),
                grouped(config.d_ff)
            );
        }
        ensure!(
            on == On::Cpu || width <= MAX_RANK,
            "adapters {width} wide have no kernel, expected at most {MAX_RANK} on a device"
        );
        Ok(())
    }

    /// LoRA's rank, if the method has a LoRA.
    fn rank(&self, sizes: &Sizes) -> Option<usize> {
        let has_lora = matches!(self.kind, Kind::LoraMerged | Kind::Lora(_) | Kind::LoraSlot | Kind::LoraPrefix);
        has_lora.then(|| self.size.unwrap_or(sizes.rank))
    }

    fn width(&self, config: &Config, sizes: &Sizes, kind: bottleneck::Kind) -> usize {
        let given = self.size.or(sizes.paper_width(kind));
        given.unwrap_or_else(|| bottleneck::width_for(config, kind, sizes.parameters))
    }

    /// Tokens in front of the input; 0 without a prefix.
    fn prefix_tokens(&self, config: &Config, sizes: &Sizes) -> Result<usize> {
        let own = match self.kind {
            Kind::PrefixEmbedding => return Ok(self.size.unwrap_or(EMBEDDING_TOKENS)),
            Kind::PrefixLayer => self.size,
            // Its size is the LoRA's rank.
            Kind::LoraPrefix => None,
            _ => return Ok(0),
        };
        let a_token = 2 * config.layers * config.d_model;
        if let Some(tokens) = own {
            return Ok(tokens);
        }
        ensure!(
            a_token <= sizes.parameters,
            "a single prefix token on this model has {} parameters, more than the {} of --params",
            grouped(a_token),
            grouped(sizes.parameters)
        );
        Ok((sizes.parameters as f64 / a_token as f64).round() as usize)
    }

    /// Makes the adapters, random, and merges them if the method asks for it.
    pub(crate) fn prepare<W: Element>(&self, base: &Model<W>, sizes: &Sizes) -> Result<Prepared<W>> {
        let config = &base.config;
        let mut adapters = Adapters::default();
        if let Some(rank) = self.rank(sizes) {
            let targets: Vec<_> = sizes.targets.iter().map(|&t| (t, rank)).collect();
            adapters.lora = Some(Lora::random(config, &targets, sizes.alpha, sizes.seed)?);
        }
        match self.kind {
            Kind::None | Kind::LoraMerged | Kind::LoraSlot => {}
            Kind::Lora(mode) => adapters.mode = mode,
            Kind::Bottleneck(kind) => {
                let width = self.width(config, sizes, kind);
                let mut bottleneck = Bottleneck::random(config, kind, width, sizes.seed)?;
                bottleneck.drop_lowest(self.drop);
                adapters.bottleneck = Some(bottleneck);
            }
            Kind::PrefixLayer | Kind::LoraPrefix => {
                let length = self.prefix_tokens(config, sizes)?;
                adapters.prefix = Some(Prefix::random_layer(config, length, sizes.seed)?);
            }
            Kind::PrefixEmbedding => {
                let length = self.prefix_tokens(config, sizes)?;
                adapters.prefix = Some(Prefix::random_embedding(config, length, sizes.seed)?);
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

/// The methods to measure, and those left out, with the reason why each does not fit.
pub(crate) struct Choice {
    pub(crate) methods: Vec<Method>,
    pub(crate) left_out: Vec<(Method, String)>,
}

impl Choice {
    /// `asked`, all of which must fit, or if that is empty those of `usual` that do.
    ///
    /// # Errors
    /// Why a method that was asked for, or the base model itself, does not fit.
    pub(crate) fn of(
        asked: &[Method],
        usual: impl IntoIterator<Item = Method>,
        fits: impl Fn(&Method) -> Result<()>,
    ) -> Result<Self> {
        let mut choice = Self { methods: asked.to_vec(), left_out: vec![] };
        for method in asked {
            fits(method).with_context(|| method.to_string())?;
        }
        for method in usual.into_iter().filter(|_| asked.is_empty()) {
            match fits(&method) {
                Ok(()) => choice.methods.push(method),
                Err(error) if method.kind == Kind::None => return Err(error.context("none")),
                Err(error) => choice.left_out.push((method, format!("{error:#}"))),
            }
        }
        Ok(choice)
    }
}

impl Sizes {
    fn paper_width(&self, kind: bottleneck::Kind) -> Option<usize> {
        match kind {
            bottleneck::Kind::Houlsby => self.houlsby_width,
            bottleneck::Kind::Lin => self.lin_width,
            bottleneck::Kind::Pfeiffer => None,
        }
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

    #[test]
    fn adapters_that_no_kernel_takes_do_not_fit_a_device() {
        let config = Config::named("gpt2").unwrap();
        let sizes = Sizes {
            targets: vec![Target::Q],
            rank: 4,
            alpha: 32.0,
            parameters: 11_000_000,
            houlsby_width: None,
            lin_width: None,
            seed: 0,
        };
        let check = |text: &str, on| {
            let method: Method = text.parse().unwrap();
            method.check(&config, &sizes, 128, on).map_err(|error| error.to_string())
        };
        assert_eq!(check("adapter-h", On::Cuda), Ok(()));
        assert_eq!(check("adapter-l", On::Cpu), Ok(()));
        let wide = check("adapter-l", On::Cuda).unwrap_err();
        assert_eq!(wide, "adapters 595 wide have no kernel, expected at most 512 on a device");
        assert!(check("adapter-h:513", On::Emulator).is_err());
        assert_eq!(check("adapter-h-drop13", On::Cpu), Err("the model has only 12 layers".to_owned()));
    }

    #[test]
    fn only_what_was_not_asked_for_is_left_out() {
        let methods = |text: &str| text.split(',').map(|m| m.parse().unwrap()).collect::<Vec<Method>>();
        let fits = |method: &Method| if method.size == Some(9) { Err(anyhow::anyhow!("too large")) } else { Ok(()) };
        let usual = || methods("none,lora-fused:9,adapter-h");
        let choice = Choice::of(&[], usual(), fits).unwrap();
        assert_eq!(choice.methods, methods("none,adapter-h"));
        assert_eq!(choice.left_out, [(methods("lora-fused:9").remove(0), "too large".to_owned())]);
        let choice = Choice::of(&methods("adapter-l"), usual(), fits).unwrap();
        assert_eq!((choice.methods, choice.left_out), (methods("adapter-l"), vec![]));
        let error = |asked: &[Method], fits: fn(&Method) -> Result<()>| {
            Choice::of(asked, usual(), fits).err().map(|error| format!("{error:#}"))
        };
        let never = |_: &Method| Err(anyhow::anyhow!("too large"));
        assert_eq!(error(&methods("lora-fused:9"), never).as_deref(), Some("lora-fused:9: too large"));
        assert_eq!(error(&[], never).as_deref(), Some("none: too large"));
    }
}
