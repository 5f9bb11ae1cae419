//! Layers on the CPU, each operand of all copies in one piece of memory.

use anyhow::Result;
use fused_lora::bottleneck::{Bottleneck, LayerNorm};
use fused_lora::cpu;
use fused_lora::lora::{Activation, LoraLinear, Segment, Weight};
use fused_lora::{Element, MatrixRef};
use fused_lora_gpt2::{Random, Tensor};

use super::adapter::{Adapter, EPSILON};
use super::case::{Case, SCALE};
use super::copies::{Footprint, LINE, bytes_of};

/// One operand of all copies, one behind the other, each from a cache line on: an allocation of its own would take a page.
struct Copies<T> {
    data: Tensor<T>,
    len: usize,
    stride: usize,
}

impl<T: Element> Copies<T> {
    /// Random values, or zeros that no memory is touched for.
    fn new(random: Option<&mut Random>, len: usize, copies: usize) -> Result<Self> {
        let stride = len.next_multiple_of(LINE / size_of::<T>());
        let data = match random {
            Some(random) => random.normal(copies * stride, 0.02)?,
            None => Tensor::filled(copies * stride, |_| ())?,
        };
        Ok(Self { data, len, stride })
    }

    fn of(&self, copy: usize) -> &[T] {
        &self.data[copy * self.stride..][..self.len]
    }
}

/// All copies of one bottleneck adapter.
struct AdapterCopies<W> {
    adapter: Adapter,
    down: Copies<W>,
    down_bias: Copies<W>,
    up: Copies<W>,
    up_bias: Copies<W>,
    norm: Option<[Copies<f32>; 2]>,
}

/// All copies of a layer, of its LoRA and of the adapters beside that.
pub(super) struct Layers<W> {
    case: Case,
    pub(super) copies: usize,
    weight: Copies<W>,
    a: Copies<W>,
    b: Copies<W>,
    adapters: Vec<AdapterCopies<W>>,
}

impl<W: Element> Layers<W> {
    /// Random weights; without `random`, zeros to plan with.
    pub(super) fn new(case: &Case, copies: usize, mut random: Option<&mut Random>) -> Result<Self> {
        let mut operand = |len| Copies::<W>::new(random.as_deref_mut(), len, copies);
        let [weight, a, b] = case.operands();
        let (weight, a, b) = (operand(weight)?, operand(a)?, operand(b)?);
        let mut adapters = vec![];
        for adapter in case.adapters() {
            let [down, down_bias, up, up_bias, ..] = adapter.operands(size_of::<W>()).map(|(len, _)| len);
            let (down, down_bias, up, up_bias) = (operand(down)?, operand(down_bias)?, operand(up)?, operand(up_bias)?);
            adapters.push(AdapterCopies { adapter, down, down_bias, up, up_bias, norm: None });
        }
        for copies_of in adapters.iter_mut().filter(|copies_of| copies_of.adapter.has_norm) {
            let mut vector = || Copies::new(random.as_deref_mut(), copies_of.adapter.d, copies);
            copies_of.norm = Some([vector()?, vector()?]);
        }
        Ok(Self { case: *case, copies, weight, a, b, adapters })
    }

    /// The layer with its LoRA.
    pub(super) fn with_layer<R>(
        &self,
        copy: usize,
        work: impl FnOnce(&LoraLinear<'_, W>) -> fused_lora::Result<R>,
    ) -> fused_lora::Result<R> {
        let Case { d_in, d_out, rank, layout, .. } = self.case;
        let [rows, cols] = self.case.stored();
        let segments = [Segment {
            columns: 0..d_out,
            a: MatrixRef::new(self.a.of(copy), rank, d_in)?,
            b: MatrixRef::new(self.b.of(copy), d_out, rank)?,
            scale: SCALE,
        }];
        let weight = Weight { matrix: MatrixRef::new(self.weight.of(copy), rows, cols)?, layout };
        work(&LoraLinear { weight, bias: None, segments: &segments })
    }

    /// One of the adapters beside it; its projections are stored in the layer's layout.
    pub(super) fn with_adapter<R>(
        &self,
        which: usize,
        copy: usize,
        work: impl FnOnce(&Bottleneck<'_, W>) -> fused_lora::Result<R>,
    ) -> fused_lora::Result<R> {
        let copies = &self.adapters[which];
        let Adapter { d, width, .. } = copies.adapter;
        let weight = |data, d_in, d_out| {
            let [rows, cols] = Case { d_in, d_out, ..self.case }.stored();
            MatrixRef::new(data, rows, cols).map(|matrix| Weight { matrix, layout: self.case.layout })
        };
        work(&Bottleneck {
            norm: copies.norm.as_ref().map(|[weight, bias]| LayerNorm {
                weight: weight.of(copy),
                bias: bias.of(copy),
                epsilon: EPSILON,
            }),
            down: weight(copies.down.of(copy), d, width)?,
            down_bias: Some(copies.down_bias.of(copy)),
            up: weight(copies.up.of(copy), width, d)?,
            up_bias: Some(copies.up_bias.of(copy)),
            activation: Activation::Relu,
        })
    }

    /// `f32` elements of workspace: of fused and base, both ways if asked for, and of an adapter's two layers.
    pub(super) fn workspaces(&self, tokens: usize, backward: bool) -> fused_lora::Result<[usize; 2]> {
        let layer = self.with_layer(0, |layer| {
            let base = LoraLinear { segments: &[], ..*layer };
            let mut len = layer.plan_forward::<W>(tokens)?.workspace_len();
            len = len.max(base.plan_forward::<W>(tokens)?.workspace_len());
            if backward {
                len = len.max(cpu::backward_workspace_len::<W, W>(layer, tokens)?);
                len = len.max(cpu::backward_workspace_len::<W, W>(&base, tokens)?);
            }
            Ok(len)
        })?;
        let mut adapters = 0;
        for which in 0..self.adapters.len() {
            let plans = self.with_adapter(which, 0, |adapter| adapter_plans(adapter, tokens))?;
            adapters = plans.iter().map(|plan| plan.workspace_len()).fold(adapters, usize::max);
        }
        Ok([layer, adapters])
    }

    /// What a copy takes, and what calls of so many tokens take beside.
    pub(super) fn footprint(&self, tokens: usize, backward: bool) -> fused_lora::Result<Footprint> {
        let (size, Case { d_in, d_out, rank, .. }) = (size_of::<W>(), self.case);
        let widest = self.adapters.iter().map(|copies| copies.adapter.width).max().unwrap_or(0);
        let [layer, adapter] = self.workspaces(tokens, backward)?;
        let [x, y] = [d_in, d_out].map(|columns| (tokens.saturating_mul(columns), size));
        let once = match backward {
            // x, y, dy, dx, T, dA, dB.
            true => bytes_of(&[x, y, y, x, (tokens * rank, 4), (rank * d_in, 4), (d_out * rank, 4), (layer, 4)]),
            // x, y; sequential's T twice, its update and workspace; an adapter's normalised y and hidden features.
            false => bytes_of(&[
                x,
                y,
                (layer, 4),
                (tokens * rank, 4 + size),
                y,
                (layer, 4),
                y,
                (tokens * widest, size),
                (adapter, 4),
            ]),
        };
        Ok(Footprint { once, ..weights::<W>(&self.case) })
    }
}

/// What the weights of a copy take alone.
pub(super) fn weights<W>(case: &Case) -> Footprint {
    let size = size_of::<W>();
    let [weight, a, b] = case.operands().map(|len| bytes_of(&[(len, size)]));
    let adapters = case.adapters().map(|adapter| bytes_of(&adapter.operands(size)));
    let copy = [weight, a, b].into_iter().chain(adapters).fold(0, usize::saturating_add);
    Footprint { weight, copy, once: 0 }
}

/// How an adapter's two layers run.
pub(super) fn adapter_plans<W: Element>(
    adapter: &Bottleneck<'_, W>,
    tokens: usize,
) -> fused_lora::Result<[fused_lora::cpu::Plan; 2]> {
    let plan = |weight, bias| LoraLinear::base(weight, bias).plan_forward::<W>(tokens);
    Ok([plan(adapter.down, adapter.down_bias)?, plan(adapter.up, adapter.up_bias)?])
}

#[cfg(test)]
mod tests {
    use fused_lora::lora::Layout;
    use half::bf16;

    use super::*;

    #[test]
    fn copies_are_packed_and_apart() {
        let case = Case { tokens: 1, d_in: 3, d_out: 5, rank: 2, layout: Layout::OutIn };
        let layers = Layers::<bf16>::new(&case, 7, Some(&mut Random::new(1))).unwrap();
        let places: Vec<_> = (0..7)
            .map(|copy| {
                layers
                    .with_layer(copy, |layer| {
                        assert_eq!((layer.d_in(), layer.d_out(), layer.total_rank()), (3, 5, 2));
                        Ok(layer.weight.matrix.data().as_ptr() as usize)
                    })
                    .unwrap()
            })
            .collect();
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] == LINE) && places[0] % LINE == 0, "{places:?}");
        for (which, adapter) in case.adapters().iter().enumerate() {
            layers
                .with_adapter(which, 6, |view| {
                    assert_eq!((view.d(), view.width(), view.norm.is_some()), (5, adapter.width, adapter.has_norm));
                    view.validate()
                })
                .unwrap();
        }
    }

    #[test]
    fn a_footprint_is_what_is_allocated() {
        let case = Case { tokens: 1, d_in: 64, d_out: 64, rank: 4, layout: Layout::InOut };
        let layers = Layers::<f32>::new(&case, 3, None).unwrap();
        let footprint = layers.footprint(16, false).unwrap();
        let adapters = &layers.adapters;
        let own = |copies: &AdapterCopies<f32>| {
            let norm = copies.norm.as_ref().map_or(0, |norm| norm.iter().map(|v| v.data.len()).sum());
            let parts = [&copies.down, &copies.down_bias, &copies.up, &copies.up_bias];
            norm + parts.iter().map(|part| part.data.len()).sum::<usize>()
        };
        let elements = [&layers.weight, &layers.a, &layers.b].iter().map(|part| part.data.len()).sum::<usize>();
        let elements = elements + adapters.iter().map(own).sum::<usize>();
        assert_eq!((3 * footprint.copy, footprint.weight), (4 * elements, 4 * 64 * 64));
        // x, y, sequential's update, an adapter's normalised y: 16 KiB; the rest is smaller.
        assert!((16 << 10..64 << 10).contains(&footprint.once), "{footprint:?}");
        assert!(layers.footprint(16, true).unwrap().once > 4 * 4 * 16 * 64);
    }
}
