//! Bottleneck adapters: Adapter^H (Houlsby 2019), Adapter^L (Lin 2020), Pfeiffer, and AdapterDrop for all three.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use fused_lora::lora::{Activation, Weight};
use fused_lora::{Element, MatrixRef, bottleneck};
use fused_lora_peft::Error as FileError;

use super::expect_same;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::{Linear, Norm};
use crate::random::Random;
use crate::tensor::Tensor;

/// The positions of a block's adapters. `A(s) = s + Up(ReLU(Down s))`, with biases in both projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Two adapters: `x += A(attn(ln_1 x)); x += A(mlp(ln_2 x))`.
    Houlsby,
    /// One adapter after the block, with its own LayerNorm: `x += Up(ReLU(Down(LN x)))`.
    Lin,
    /// One adapter after the block: `x = A(x)`.
    Pfeiffer,
}

impl Kind {
    /// The names of a block's adapters in tensors' keys.
    fn names(self) -> &'static [&'static str] {
        match self {
            Kind::Houlsby => &["adapter_attn", "adapter_mlp"],
            Kind::Lin | Kind::Pfeiffer => &["adapter"],
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "houlsby" => Ok(Kind::Houlsby),
            "lin" => Ok(Kind::Lin),
            "pfeiffer" => Ok(Kind::Pfeiffer),
            _ => Err(format!("unknown kind '{name}', expected houlsby, lin or pfeiffer")),
        }
    }
}

/// One adapter. The weights are stored `[in, out]`, which the CPU backend reads fastest.
#[derive(Debug, Clone)]
pub struct Adapter<W> {
    /// The down projection, `[d_model, width]`.
    pub down: Linear<W>,
    /// The up projection, `[width, d_model]`.
    pub up: Linear<W>,
    /// Adapter^L's own LayerNorm.
    pub norm: Option<Norm>,
}

/// The adapters of a whole model.
#[derive(Debug, Clone)]
pub struct Bottleneck<W> {
    /// The positions of the adapters.
    pub kind: Kind,
    /// The adapters of each layer; empty for layers whose adapters were dropped.
    pub layers: Vec<Vec<Adapter<W>>>,
}

impl<W: Element> Adapter<W> {
    /// Both projections as the library's type, without the LayerNorm, which the block runs with the model's ε.
    pub(crate) fn view(&self) -> fused_lora::Result<fused_lora::bottleneck::Bottleneck<'_, W>> {
        fn weight<W: Element>(linear: &Linear<W>) -> fused_lora::Result<Weight<'_, W>> {
            Ok(Weight::in_out(MatrixRef::new(&linear.weight, linear.d_in, linear.d_out)?))
        }
        Ok(fused_lora::bottleneck::Bottleneck {
            norm: None,
            down: weight(&self.down)?,
            down_bias: Some(&self.down.bias),
            up: weight(&self.up)?,
            up_bias: Some(&self.up.bias),
            activation: Activation::Relu,
        })
    }
}

impl<W: Element> Bottleneck<W> {
    /// Random adapters of bottleneck width `width`, close to the identity, as at the start of training.
    ///
    /// # Errors
    /// [`Error::Io`] if memory cannot be allocated.
    pub fn random(config: &Config, kind: Kind, width: usize, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed ^ 0xB077);
        let mut adapter = || -> Result<Adapter<W>> {
            Ok(Adapter {
                down: Linear::random(&mut random, config.d_model, width, 1e-3)?,
                up: Linear::random(&mut random, width, config.d_model, 1e-3)?,
                norm: (kind == Kind::Lin).then(|| Norm::identity(config.d_model)),
            })
        };
        let layers = (0..config.layers).map(|_| kind.names().iter().map(|_| adapter()).collect());
        Ok(Self { kind, layers: layers.collect::<Result<_>>()? })
    }

    /// Loads a file of `h.{i}.adapter[_attn|_mlp].{down,up}.{weight,bias}` and, for Adapter^L, `.ln.{weight,bias}`.
    /// A layer with no keys has no adapter.
    ///
    /// # Errors
    /// As [`Checkpoint::floats`]; [`Error::Checkpoint`] for a key of another kind or model.
    pub fn load(path: &Path, kind: Kind, config: &Config) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let d = config.d_model;
        let read = RefCell::new(HashSet::new());
        let adapter = |layer: usize, name: &str| -> Result<Adapter<W>> {
            let key = |what: &str| format!("h.{layer}.{name}.{what}");
            let width = match file.shape(&key("down.weight")) {
                Some(&[width, _]) => width,
                _ => 1,
            };
            // A width of 0 is an error of the shape check below.
            let width = width.max(1);
            let floats = |what: &str, shape: &[usize]| {
                let key = key(what);
                let tensor = file.floats::<W>(&key, shape);
                read.borrow_mut().insert(key);
                tensor
            };
            let wide =
                |what: &str| -> Result<Vec<f32>> { Ok(floats(what, &[d])?.iter().map(|v| v.to_f32()).collect()) };
            let linear = |what: &str, d_in: usize, d_out: usize| -> Result<Linear<W>> {
                let stored = floats(&format!("{what}.weight"), &[d_out, d_in])?;
                let bias = floats(&format!("{what}.bias"), &[d_out])?;
                let transposed = Tensor::filled(d_in * d_out, |out| {
                    for (i, row) in out.chunks_exact_mut(d_out).enumerate() {
                        row.iter_mut().enumerate().for_each(|(j, v)| *v = stored[j * d_in + i]);
                    }
                });
                let weight = transposed.map_err(|source| Error::Io { path: path.into(), source })?;
                Ok(Linear { weight, bias, d_in, d_out })
            };
            let norm = match kind {
                Kind::Lin => Some(Norm { weight: wide("ln.weight")?, bias: wide("ln.bias")? }),
                Kind::Houlsby | Kind::Pfeiffer => None,
            };
            Ok(Adapter { down: linear("down", d, width)?, up: linear("up", width, d)?, norm })
        };
        let keys = file.keys();
        let layers = (0..config.layers)
            .map(|i| {
                let start = format!("h.{i}.");
                if !keys.iter().any(|k| k.starts_with(&start)) {
                    return Ok(vec![]);
                }
                kind.names().iter().map(|name| adapter(i, name)).collect()
            })
            .collect::<Result<Vec<_>>>()?;
        let expected = format!("{kind:?} adapters of a GPT-2 of {} layers", config.layers);
        let unknown = keys.iter().find(|key| !read.borrow().contains(*key)).cloned();
        if let Some(key) = unknown {
            return Err(FileError::UnknownTensor { path: path.into(), key, expected }.into());
        }
        if keys.is_empty() {
            let key = format!("h.0.{}.down.weight", kind.names()[0]);
            return Err(FileError::MissingTensor { path: path.into(), key, expected }.into());
        }
        Ok(Self { kind, layers })
    }

    /// AdapterDrop (Rücklé 2020): removes the adapters of the lowest `n` layers.
    pub fn drop_lowest(&mut self, n: usize) {
        self.layers.iter_mut().take(n).for_each(Vec::clear);
    }

    /// Number of trainable parameters: `2·d·r + r + d` per adapter, `2·d` per LayerNorm.
    pub fn parameters(&self) -> usize {
        let linear = |l: &Linear<W>| l.weight.len() + l.bias.len();
        let norm = |n: &Norm| n.weight.len() + n.bias.len();
        self.layers.iter().flatten().map(|a| linear(&a.down) + linear(&a.up) + a.norm.as_ref().map_or(0, norm)).sum()
    }

    /// The largest bottleneck width.
    pub fn width(&self) -> usize {
        self.layers.iter().flatten().map(|a| a.down.d_out).max().unwrap_or(0)
    }

    /// Checks that the adapters were made for a model of this shape.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`].
    pub fn check(&self, config: &Config) -> Result<()> {
        expect_same("the bottleneck adapters have", "layers", config.layers, self.layers.len())?;
        self.layers
            .iter()
            .flatten()
            .try_for_each(|a| expect_same("the bottleneck adapters have", "features", config.d_model, a.down.d_in))
    }
}

/// Number of trainable parameters of adapters of this width in every block, as [`Bottleneck::parameters`] counts them.
pub fn parameters_for(config: &Config, kind: Kind, width: usize) -> usize {
    let d = config.d_model;
    let norm = if kind == Kind::Lin { 2 * d } else { 0 };
    config.layers * kind.names().len() * (2 * d * width + width + d + norm)
}

/// The bottleneck width, at least 1, whose parameter count comes closest to `parameters`.
pub fn width_for(config: &Config, kind: Kind, parameters: usize) -> usize {
    let adapters = (config.layers * kind.names().len()) as f64;
    bottleneck::width_for(config.d_model, kind == Kind::Lin, parameters as f64 / adapters)
}
