//! One transformer block in training: the activations that are saved, the forward pass and the backward pass.

use fused_lora::lora::Residual;
use fused_lora::{Element, cpu};

use super::attention as attention_backward;
use super::gradients::FactorGradients;
use super::linear::BlockContext;
use crate::adapter::lora::{Lora, Projection};
use crate::attention;
use crate::config::Config;
use crate::error::Result;
use crate::norm::{layer_norm, layer_norm_backward};

/// Activations of a block that the backward pass reads. Outputs of element-wise operations are recomputed instead.
#[derive(Debug)]
pub(super) struct Saved {
    /// The residual stream before the attention, `[rows, d_model]`.
    before_attention: Vec<f32>,
    /// Queries, keys and values, `[rows, 3·d_model]`.
    qkv: Vec<f32>,
    /// The attention's output, `[rows, d_model]`.
    attended: Vec<f32>,
    /// The residual stream before the MLP, `[rows, d_model]`.
    before_mlp: Vec<f32>,
    /// The input of the activation, `[rows, d_ff]`.
    hidden: Vec<f32>,
    /// T = x·Aᵀ of each projection, `[rows, total_rank]`.
    t: [Vec<f32>; 4],
}

impl Saved {
    pub(super) fn new<W: Element>(config: &Config, lora: &Lora<W>, index: usize, rows: usize) -> Self {
        let (d, zeros) = (config.d_model, |columns: usize| vec![0.0; rows * columns]);
        Self {
            before_attention: zeros(d),
            qkv: zeros(3 * d),
            attended: zeros(d),
            before_mlp: zeros(d),
            hidden: zeros(config.d_ff),
            t: lora.layers[index].each_ref().map(|factors| zeros(factors.iter().map(|f| f.rank).sum())),
        }
    }
}

/// Buffers that all blocks share.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The output of a LayerNorm, `[rows, d_model]`.
    normed: Vec<f32>,
    /// The output of the activation, `[rows, d_ff]`.
    activated: Vec<f32>,
    /// The gradient of the output of a LayerNorm or of the attention, `[rows, d_model]`.
    d_narrow: Vec<f32>,
    /// The gradient of `activated`, `[rows, d_ff]`.
    d_activated: Vec<f32>,
    /// The gradient of queries, keys and values, `[rows, 3·d_model]`.
    d_qkv: Vec<f32>,
    attention: attention_backward::Buffers,
    pub(super) workspace: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(config: &Config, rows: usize) -> Self {
        let (d, zeros) = (config.d_model, |columns: usize| vec![0.0; rows * columns]);
        Self {
            normed: zeros(d),
            activated: zeros(config.d_ff),
            d_narrow: zeros(d),
            d_activated: zeros(config.d_ff),
            d_qkv: zeros(3 * d),
            attention: Default::default(),
            workspace: vec![],
        }
    }
}

fn shape<W>(context: &BlockContext<'_, W>) -> attention::Shape {
    attention::Shape {
        tokens: context.sequence,
        heads: context.config.heads,
        head_size: context.config.head_size(),
        scale: context.config.attention_scale(context.index),
    }
}

/// `x += c_proj(attn(ln_1 x)); x += c_proj(act(c_fc(ln_2 x)))`.
pub(super) fn forward<W: Element>(
    context: BlockContext<'_, W>,
    saved: &mut Saved,
    scratch: &mut Scratch,
    x: &mut [f32],
) -> Result<()> {
    let eps = context.config.layer_norm_epsilon;
    let Scratch { normed, activated, workspace, .. } = scratch;
    let [t_qkv, t_attn_out, t_fc, t_mlp_out] = &mut saved.t;

    saved.before_attention.copy_from_slice(x);
    layer_norm(x, &context.layer.ln_1, eps, normed)?;
    context.forward(Projection::Qkv, normed, &mut saved.qkv, Residual::None, t_qkv, workspace)?;
    attention::causal(&saved.qkv, None, shape(&context), &mut saved.attended);
    context.forward(Projection::AttnOut, &saved.attended, x, Residual::InPlace, t_attn_out, workspace)?;

    saved.before_mlp.copy_from_slice(x);
    layer_norm(x, &context.layer.ln_2, eps, normed)?;
    context.forward(Projection::Fc, normed, &mut saved.hidden, Residual::None, t_fc, workspace)?;
    cpu::activate(context.config.activation, &saved.hidden, activated)?;
    context.forward(Projection::MlpOut, activated, x, Residual::InPlace, t_mlp_out, workspace)
}

/// Computes all dA and dB, and replaces the gradient of the block's output, in `dx`, by that of its input. The pass
/// ends at the projection `lowest`, if it is given, because nothing before it is trained.
pub(super) fn backward<W: Element>(
    context: BlockContext<'_, W>,
    saved: &Saved,
    scratch: &mut Scratch,
    lowest: Option<Projection>,
    gradients: &mut [Vec<FactorGradients>; 4],
    dx: &mut [f32],
) -> Result<()> {
    let eps = context.config.layer_norm_epsilon;
    let Scratch { normed, activated, d_narrow, d_activated, d_qkv, attention, workspace } = scratch;
    let [g_qkv, g_attn_out, g_fc, g_mlp_out] = gradients;
    let [t_qkv, t_attn_out, t_fc, t_mlp_out] = &saved.t;
    let continues_below = |projection| lowest != Some(projection);

    cpu::activate(context.config.activation, &saved.hidden, activated)?;
    let below = continues_below(Projection::MlpOut).then_some(&mut d_activated[..]);
    context.backward(Projection::MlpOut, activated, dx, t_mlp_out, below, g_mlp_out, workspace)?;
    if !continues_below(Projection::MlpOut) {
        return Ok(());
    }
    cpu::activate_backward(context.config.activation, &saved.hidden, d_activated)?;
    layer_norm(&saved.before_mlp, &context.layer.ln_2, eps, normed)?;
    let below = continues_below(Projection::Fc).then_some(&mut d_narrow[..]);
    context.backward(Projection::Fc, normed, d_activated, t_fc, below, g_fc, workspace)?;
    if !continues_below(Projection::Fc) {
        return Ok(());
    }
    layer_norm_backward(&saved.before_mlp, &context.layer.ln_2, eps, d_narrow, dx);

    let below = continues_below(Projection::AttnOut).then_some(&mut d_narrow[..]);
    context.backward(Projection::AttnOut, &saved.attended, dx, t_attn_out, below, g_attn_out, workspace)?;
    if !continues_below(Projection::AttnOut) {
        return Ok(());
    }
    attention_backward::backward(&saved.qkv, d_narrow, shape(&context), attention, d_qkv);
    layer_norm(&saved.before_attention, &context.layer.ln_1, eps, normed)?;
    let below = continues_below(Projection::Qkv).then_some(&mut d_narrow[..]);
    context.backward(Projection::Qkv, normed, d_qkv, t_qkv, below, g_qkv, workspace)?;
    if continues_below(Projection::Qkv) {
        layer_norm_backward(&saved.before_attention, &context.layer.ln_1, eps, d_narrow, dx);
    }
    Ok(())
}
