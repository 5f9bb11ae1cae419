//! The methods of Table 1 by name, and the adapters that each adds to a model.

use anyhow::{Context, Result, ensure};
use fused_lora::Element;
use fused_lora::lora::MAX_RANK;
use fused_lora_gpt2::adapter::bottleneck::{self, Bottleneck};
use fused_lora_gpt2::adapter::lora::{Lora, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::{Adapters, Config, Error, LoraMode, Model};

use crate::common::Backend;
use crate::output::with_commas;

/// The names that `--methods` accepts.
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

/// Default length of prefix-embedding. With as many parameters as the other methods it would be longer than the model's
/// context.
const EMBEDDING_TOKENS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    None,
    LoraMerged,
    Lora(LoraMode),
    /// Fused, with factors in a slot, so that a captured graph can run with another adapter.
    LoraSlot,
    Bottleneck(bottleneck::Kind),
    PrefixLayer,
    PrefixEmbedding,
    LoraPrefix,
}

/// A method as given on the command line: `NAME[-dropN][:SIZE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Method {
    pub(crate) kind: Kind,
    /// AdapterDrop: in how many of the lowest layers adapters are left out.
    pub(crate) drop: usize,
    /// Rank, bottleneck width or prefix length, instead of the column's.
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

/// The sizes of adapters of methods without a size of their own.
#[derive(Debug, Clone)]
pub(crate) struct AdapterSizes {
    /// The projections that get a LoRA.
    pub(crate) targets: Vec<Target>,
    pub(crate) rank: usize,
    pub(crate) alpha: f32,
    /// Parameters of bottleneck adapters and prefix-layer.
    pub(crate) parameters: usize,
    /// The paper's widths for its numbers of parameters; rounding from one number does not give both.
    pub(crate) houlsby_width: Option<usize>,
    pub(crate) lin_width: Option<usize>,
    pub(crate) seed: u64,
}

/// A model with the adapters of a method.
pub(crate) struct Prepared<W> {
    pub(crate) method: Method,
    /// The base model (sharing its weights), or one with merged weights.
    pub(crate) model: Model<W>,
    pub(crate) adapters: Adapters<W>,
    /// |Θ|
    pub(crate) parameters: usize,
}

impl Method {
    /// Checks, before any memory is taken, that a model of this shape can have the method's adapters and run on this
    /// backend.
    ///
    /// # Errors
    /// One sentence that says why not.
    pub(crate) fn check(&self, config: &Config, sizes: &AdapterSizes, tokens: usize, backend: Backend) -> Result<()> {
        ensure!(self.drop <= config.layers, "the model has only {} layers", config.layers);
        if let Some(rank) = self.rank(sizes) {
            ensure!((1..=MAX_RANK).contains(&rank), "rank {rank} is not supported, expected 1 to {MAX_RANK}");
        }
        if let Kind::Bottleneck(kind) = self.kind {
            self.check_width(config, sizes, kind, backend)?;
        }
        let prefix = self.prefix_tokens(config, sizes)?;
        if tokens + prefix > config.positions {
            return Err(Error::TooManyPositions { tokens, prefix, positions: config.positions }.into());
        }
        Ok(())
    }

    fn check_width(
        &self,
        config: &Config,
        sizes: &AdapterSizes,
        kind: bottleneck::Kind,
        backend: Backend,
    ) -> Result<()> {
        let width = self.width(config, sizes, kind);
        // A given width is taken as it is. One computed from a number of parameters must still be a bottleneck.
        if self.size.or(sizes.paper_width(kind)).is_none() {
            let [least, budget] = [bottleneck::parameters_for(config, kind, 1), sizes.parameters].map(with_commas);
            ensure!(
                bottleneck::parameters_for(config, kind, 1) <= sizes.parameters,
                "the narrowest adapters on this model have {least} parameters, more than the {budget} of --params"
            );
            ensure!(
                width <= config.d_ff,
                "adapters of {budget} parameters are {} wide on this model, wider than its MLP of {} features; --params \
                 sets another number of parameters",
                with_commas(width),
                with_commas(config.d_ff)
            );
        }
        ensure!(
            backend == Backend::Cpu || width <= MAX_RANK,
            "no kernel runs adapters of width {width}, expected at most {MAX_RANK} on a device"
        );
        Ok(())
    }

    /// LoRA's rank, if the method has a LoRA.
    fn rank(&self, sizes: &AdapterSizes) -> Option<usize> {
        let has_lora = matches!(self.kind, Kind::LoraMerged | Kind::Lora(_) | Kind::LoraSlot | Kind::LoraPrefix);
        has_lora.then(|| self.size.unwrap_or(sizes.rank))
    }

    fn width(&self, config: &Config, sizes: &AdapterSizes, kind: bottleneck::Kind) -> usize {
        let given = self.size.or(sizes.paper_width(kind));
        given.unwrap_or_else(|| bottleneck::width_for(config, kind, sizes.parameters))
    }

    /// Length of the prefix in tokens; 0 without a prefix.
    fn prefix_tokens(&self, config: &Config, sizes: &AdapterSizes) -> Result<usize> {
        let given = match self.kind {
            Kind::PrefixEmbedding => return Ok(self.size.unwrap_or(EMBEDDING_TOKENS)),
            Kind::PrefixLayer => self.size,
            // The method's size is the LoRA's rank.
            Kind::LoraPrefix => None,
            _ => return Ok(0),
        };
        let parameters_per_token = 2 * config.layers * config.d_model;
        if let Some(tokens) = given {
            return Ok(tokens);
        }
        ensure!(
            parameters_per_token <= sizes.parameters,
            "a single prefix token on this model has {} parameters, more than the {} of --params",
            with_commas(parameters_per_token),
            with_commas(sizes.parameters)
        );
        Ok((sizes.parameters as f64 / parameters_per_token as f64).round() as usize)
    }

    /// Makes random adapters, and merges them if the method does.
    pub(crate) fn prepare<W: Element>(&self, base: &Model<W>, sizes: &AdapterSizes) -> Result<Prepared<W>> {
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

/// The methods to measure, and the default methods that do not fit, each with the reason.
pub(crate) struct MethodSelection {
    pub(crate) methods: Vec<Method>,
    pub(crate) left_out: Vec<(Method, String)>,
}

impl MethodSelection {
    /// The `requested` methods, all of which must fit; if there are none, those of the `defaults` that fit.
    ///
    /// # Errors
    /// Why a requested method, or the base model itself, does not fit.
    pub(crate) fn new(
        requested: &[Method],
        defaults: impl IntoIterator<Item = Method>,
        fits: impl Fn(&Method) -> Result<()>,
    ) -> Result<Self> {
        let mut selection = Self { methods: requested.to_vec(), left_out: vec![] };
        for method in requested {
            fits(method).with_context(|| method.to_string())?;
        }
        for method in defaults.into_iter().filter(|_| requested.is_empty()) {
            match fits(&method) {
                Ok(()) => selection.methods.push(method),
                Err(error) if method.kind == Kind::None => return Err(error.context("none")),
                Err(error) => selection.left_out.push((method, format!("{error:#}"))),
            }
        }
        Ok(selection)
    }
}

impl AdapterSizes {
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
        let sizes = AdapterSizes {
            targets: vec![Target::Q],
            rank: 4,
            alpha: 32.0,
            parameters: 11_000_000,
            houlsby_width: None,
            lin_width: None,
            seed: 0,
        };
        let check = |text: &str, backend| {
            let method: Method = text.parse().unwrap();
            method.check(&config, &sizes, 128, backend).map_err(|error| error.to_string())
        };
        assert_eq!(check("adapter-h", Backend::Cuda), Ok(()));
        assert_eq!(check("adapter-l", Backend::Cpu), Ok(()));
        let wide = check("adapter-l", Backend::Cuda).unwrap_err();
        assert_eq!(wide, "no kernel runs adapters of width 595, expected at most 512 on a device");
        assert!(check("adapter-h:513", Backend::Emulator).is_err());
        assert_eq!(check("adapter-h-drop13", Backend::Cpu), Err("the model has only 12 layers".to_owned()));
    }

    #[test]
    fn only_default_methods_are_left_out() {
        let methods = |text: &str| text.split(',').map(|m| m.parse().unwrap()).collect::<Vec<Method>>();
        let fits = |method: &Method| if method.size == Some(9) { Err(anyhow::anyhow!("too large")) } else { Ok(()) };
        let defaults = || methods("none,lora-fused:9,adapter-h");
        let selection = MethodSelection::new(&[], defaults(), fits).unwrap();
        assert_eq!(selection.methods, methods("none,adapter-h"));
        assert_eq!(selection.left_out, [(methods("lora-fused:9").remove(0), "too large".to_owned())]);
        let selection = MethodSelection::new(&methods("adapter-l"), defaults(), fits).unwrap();
        assert_eq!((selection.methods, selection.left_out), (methods("adapter-l"), vec![]));
        let error = |requested: &[Method], fits: fn(&Method) -> Result<()>| {
            MethodSelection::new(requested, defaults(), fits).err().map(|error| format!("{error:#}"))
        };
        let never = |_: &Method| Err(anyhow::anyhow!("too large"));
        assert_eq!(error(&methods("lora-fused:9"), never).as_deref(), Some("lora-fused:9: too large"));
        assert_eq!(error(&[], never).as_deref(), Some("none: too large"));
    }
}
