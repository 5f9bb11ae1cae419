//! One transformer block with its adapters.

use fused_lora::cpu::vector;
use fused_lora::cpu::{self, BottleneckBuffers, SequentialBuffers};
use fused_lora::lora::{Activation, Epilogue, Residual};
use fused_lora::{Element, MatrixMut, MatrixRef};
use rayon::prelude::*;

use crate::adapter::bottleneck::{Adapter, Kind};
use crate::adapter::lora::Projection;
use crate::adapter::{Adapters, LoraMode};
use crate::attention;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::{Layer, Linear};
use crate::norm::layer_norm;

/// The activations of a block. All layers and calls reuse these buffers.
#[derive(Debug)]
pub(crate) struct Activations<W> {
    pub(crate) rows: usize,
    /// The residual stream, `[rows, d_model]`.
    pub(crate) x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    hidden: Vec<f32>,
    /// The output of a sublayer, if it is not added to `x` directly.
    update: Vec<f32>,
    bottleneck: BottleneckBuffers<f32>,
    workspace: Vec<f32>,
    sequential: SequentialBuffers<W, f32>,
}

impl<W: Element> Activations<W> {
    pub(crate) fn new() -> Self {
        Self {
            rows: 0,
            x: vec![],
            normed: vec![],
            qkv: vec![],
            attended: vec![],
            hidden: vec![],
            update: vec![],
            bottleneck: BottleneckBuffers::new(),
            workspace: vec![],
            sequential: SequentialBuffers::new(),
        }
    }

    /// Makes room for `rows` tokens.
    pub(crate) fn reserve(&mut self, config: &Config, adapters: &Adapters<W>, rows: usize) {
        self.rows = rows;
        let d = config.d_model;
        self.x.resize(rows * d, 0.0);
        self.normed.resize(rows * d, 0.0);
        self.qkv.resize(rows * 3 * d, 0.0);
        self.attended.resize(rows * d, 0.0);
        self.hidden.resize(rows * config.d_ff, 0.0);
        if adapters.bottleneck.is_some() || adapters.mode != LoraMode::Fused {
            self.update.resize(rows * d, 0.0);
        }
    }
}

/// The block's index in the model, the adapters and the sequence length.
#[derive(Clone, Copy)]
pub(crate) struct BlockContext<'a, W> {
    pub(crate) config: &'a Config,
    pub(crate) adapters: &'a Adapters<W>,
    pub(crate) index: usize,
    pub(crate) tokens: usize,
}

/// `x += c_proj(attn(ln_1 x)); x += c_proj(act(c_fc(ln_2 x)))`, with adapters.
pub(crate) fn run<W: Element>(
    layer: &Layer<W>,
    context: BlockContext<'_, W>,
    activations: &mut Activations<W>,
) -> Result<()> {
    let BlockContext { config, adapters, index, tokens } = context;
    let eps = config.layer_norm_epsilon;
    let a = activations;
    let bottleneck = adapters.bottleneck.as_ref().map(|b| (b.kind, &b.layers[index][..]));
    let houlsby = |sublayer: usize| match bottleneck {
        Some((Kind::Houlsby, adapters)) => adapters.get(sublayer),
        _ => None,
    };
    let plain = ProjectionOptions { activation: Activation::Identity, output: OutputMode::Overwrite };
    let mut runner = BlockRunner {
        layer,
        context,
        rows: a.rows,
        workspace: &mut a.workspace,
        sequential: &mut a.sequential,
        update: &mut a.update,
        bottleneck: &mut a.bottleneck,
    };

    layer_norm(&a.x, &layer.ln_1, eps, &mut a.normed)?;
    runner.projection(Projection::Qkv, &a.normed, &mut a.qkv, plain)?;
    let shape = attention::Shape {
        tokens,
        heads: config.heads,
        head_size: config.head_size(),
        scale: config.attention_scale(index),
    };
    let prefix = adapters.prefix.as_ref().and_then(|p| p.keys_values(index));
    attention::causal(&a.qkv, prefix, shape, &mut a.attended);
    runner.sublayer(Projection::AttnOut, &a.attended, &mut a.x, houlsby(0))?;

    layer_norm(&a.x, &layer.ln_2, eps, &mut a.normed)?;
    let activated = ProjectionOptions { activation: config.activation, output: OutputMode::Overwrite };
    runner.projection(Projection::Fc, &a.normed, &mut a.hidden, activated)?;
    runner.sublayer(Projection::MlpOut, &a.hidden, &mut a.x, houlsby(1))?;

    if let Some((Kind::Lin | Kind::Pfeiffer, [adapter])) = bottleneck {
        let input = match &adapter.norm {
            Some(norm) => {
                layer_norm(&a.x, norm, eps, &mut a.normed)?;
                &a.normed[..]
            }
            None => {
                a.normed.copy_from_slice(&a.x);
                &a.normed[..]
            }
        };
        runner.bottleneck(adapter, input, &mut a.x)?;
    }
    Ok(())
}

/// What a projection does with the contents of its output.
#[derive(Clone, Copy, PartialEq)]
enum OutputMode {
    Overwrite,
    Add,
}

#[derive(Clone, Copy)]
struct ProjectionOptions {
    activation: Activation,
    output: OutputMode,
}

impl ProjectionOptions {
    fn epilogue(self) -> Epilogue<MatrixRef<'static, f32>> {
        let residual = if self.output == OutputMode::Add { Residual::InPlace } else { Residual::None };
        Epilogue { activation: self.activation, residual }
    }
}

/// Runs the sublayers of a block.
struct BlockRunner<'a, W> {
    layer: &'a Layer<W>,
    context: BlockContext<'a, W>,
    rows: usize,
    workspace: &'a mut Vec<f32>,
    sequential: &'a mut SequentialBuffers<W, f32>,
    update: &'a mut [f32],
    bottleneck: &'a mut BottleneckBuffers<f32>,
}

impl<W: Element> BlockRunner<'_, W> {
    /// A projection with its LoRA, if it has one.
    fn projection(
        &mut self,
        projection: Projection,
        x: &[f32],
        y: &mut [f32],
        options: ProjectionOptions,
    ) -> Result<()> {
        let linear = &self.layer.projections[projection as usize];
        let index = self.context.index;
        let segments = match &self.context.adapters.lora {
            Some(lora) => lora.segments(index, projection)?,
            None => vec![],
        };
        let name = |source| Error::Layer { what: format!("h.{index}.{}", projection.name()), source };
        let mode = self.context.adapters.mode;
        if segments.is_empty() || mode == LoraMode::Fused {
            return fused(linear, &segments, self.rows, x, y, options, self.workspace).map_err(name);
        }
        // A LoRA that is not fused cannot add to y directly: it writes to `update` first.
        let overwriting = ProjectionOptions { output: OutputMode::Overwrite, ..options };
        let target = if options.output == OutputMode::Add { &mut *self.update } else { &mut *y };
        let layer = linear.layer(&segments)?;
        let x = MatrixRef::new(x, self.rows, linear.d_in)?;
        let mut out = MatrixMut::new(target, self.rows, linear.d_out)?;
        let run = match mode {
            LoraMode::DenseDelta => cpu::forward_dense_delta,
            _ => cpu::forward_sequential,
        };
        run(&layer, x, &mut out, &overwriting.epilogue(), self.sequential).map_err(name)?;
        if options.output == OutputMode::Add {
            add(y, self.update);
        }
        Ok(())
    }

    /// `x += projection(input)`; with a Houlsby adapter, `x += A(projection(input))`.
    fn sublayer(
        &mut self,
        projection: Projection,
        input: &[f32],
        x: &mut [f32],
        adapter: Option<&Adapter<W>>,
    ) -> Result<()> {
        let Some(adapter) = adapter else {
            let add_to_x = ProjectionOptions { activation: Activation::Identity, output: OutputMode::Add };
            return self.projection(projection, input, x, add_to_x);
        };
        // `update` is free: `projection` uses it only with OutputMode::Add.
        let mut output = std::mem::take(&mut self.update);
        let plain = ProjectionOptions { activation: Activation::Identity, output: OutputMode::Overwrite };
        self.projection(projection, input, output, plain)?;
        add(x, output);
        self.bottleneck(adapter, output, x)?;
        std::mem::swap(&mut self.update, &mut output);
        Ok(())
    }

    /// `x += Up(ReLU(Down input))`.
    fn bottleneck(&mut self, adapter: &Adapter<W>, input: &[f32], x: &mut [f32]) -> Result<()> {
        let (rows, d) = (self.rows, adapter.down.d_in);
        let mut add_to_x = || {
            let (input, mut x) = (MatrixRef::new(input, rows, d)?, MatrixMut::new(x, rows, d)?);
            cpu::bottleneck_onto(&adapter.view()?, input, &mut x, self.bottleneck)
        };
        add_to_x().map_err(|source| Error::Layer { what: format!("h.{}.adapter", self.context.index), source })
    }
}

fn fused<W: Element>(
    linear: &Linear<W>,
    segments: &[fused_lora::lora::Segment<'_, W>],
    rows: usize,
    x: &[f32],
    y: &mut [f32],
    options: ProjectionOptions,
    workspace: &mut Vec<f32>,
) -> fused_lora::Result<()> {
    let weight = fused_lora::lora::Weight::in_out(MatrixRef::new(&linear.weight, linear.d_in, linear.d_out)?);
    let layer = fused_lora::lora::LoraLinear { weight, bias: Some(&linear.bias), segments };
    let needed = layer.plan_forward::<f32>(rows)?.workspace_len();
    if workspace.len() < needed {
        workspace.resize(needed, 0.0);
    }
    let x = MatrixRef::new(x, rows, linear.d_in)?;
    let mut y = MatrixMut::new(y, rows, linear.d_out)?;
    cpu::forward_with(&layer, x, &mut y, &options.epilogue(), None, workspace)
}

/// Elements that one task of an element-wise pass processes.
const CHUNK: usize = 1 << 14;

fn add(x: &mut [f32], update: &[f32]) {
    x.par_chunks_mut(CHUNK).zip(update.par_chunks(CHUNK)).for_each(|(x, update)| vector::add(x, update));
}
