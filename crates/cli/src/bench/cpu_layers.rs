//! The copies of a layer on the CPU. All copies of one operand are in one allocation.

use anyhow::Result;
use fused_lora::bottleneck::{Bottleneck, LayerNorm};
use fused_lora::cpu;
use fused_lora::lora::{Activation, LoraLinear, Segment, Weight};
use fused_lora::{Element, MatrixRef};
use fused_lora_gpt2::{Random, Tensor};

use super::adapter::{Adapter, EPSILON};
use super::case::{Case, SCALE};
use super::copies::{CACHE_LINE, Footprint, bytes_of};

/// All copies of one operand in one allocation, each starting at a cache line. Separate allocations would take a page
/// each.
struct OperandCopies<T> {
    data: Tensor<T>,
    len: usize,
    stride: usize,
}

impl<T: Element> OperandCopies<T> {
    /// Random values; without `random` zeros, whose memory the system does not provide until it is written.
    fn new(random: Option<&mut Random>, len: usize, copies: usize) -> Result<Self> {
        let stride = len.next_multiple_of(CACHE_LINE / size_of::<T>());
        let data = match random {
            Some(random) => random.normal(copies * stride, 0.02)?,
            None => Tensor::filled(copies * stride, |_| ())?,
        };
        Ok(Self { data, len, stride })
    }

    fn copy(&self, copy: usize) -> &[T] {
        &self.data[copy * self.stride..][..self.len]
    }
}

/// All copies of one bottleneck adapter.
struct AdapterCopies<W> {
    adapter: Adapter,
    down: OperandCopies<W>,
    down_bias: OperandCopies<W>,
    up: OperandCopies<W>,
    up_bias: OperandCopies<W>,
    norm: Option<[OperandCopies<f32>; 2]>,
}

/// All copies of a layer, of its LoRA and of the bottleneck adapters.
pub(super) struct LayerCopies<W> {
    case: Case,
    pub(super) copies: usize,
    weight: OperandCopies<W>,
    a: OperandCopies<W>,
    b: OperandCopies<W>,
    adapters: Vec<AdapterCopies<W>>,
}

impl<W: Element> LayerCopies<W> {
    /// Random weights; without `random` zeros, which are enough for plans.
    pub(super) fn new(case: &Case, copies: usize, mut random: Option<&mut Random>) -> Result<Self> {
        let mut operand = |len| OperandCopies::<W>::new(random.as_deref_mut(), len, copies);
        let [weight, a, b] = case.operands();
        let (weight, a, b) = (operand(weight)?, operand(a)?, operand(b)?);
        let mut adapters = vec![];
        for adapter in case.adapters() {
            let [down, down_bias, up, up_bias, ..] = adapter.operands(size_of::<W>()).map(|(len, _)| len);
            let (down, down_bias, up, up_bias) = (operand(down)?, operand(down_bias)?, operand(up)?, operand(up_bias)?);
            adapters.push(AdapterCopies { adapter, down, down_bias, up, up_bias, norm: None });
        }
        for copies_of in adapters.iter_mut().filter(|copies_of| copies_of.adapter.has_norm) {
            let mut vector = || OperandCopies::new(random.as_deref_mut(), copies_of.adapter.d, copies);
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
            a: MatrixRef::new(self.a.copy(copy), rank, d_in)?,
            b: MatrixRef::new(self.b.copy(copy), d_out, rank)?,
            scale: SCALE,
        }];
        let weight = Weight { matrix: MatrixRef::new(self.weight.copy(copy), rows, cols)?, layout };
        work(&LoraLinear { weight, bias: None, segments: &segments })
    }

    /// One of the bottleneck adapters. Its projections are stored in the layer's layout.
    pub(super) fn with_adapter<R>(
        &self,
        index: usize,
        copy: usize,
        work: impl FnOnce(&Bottleneck<'_, W>) -> fused_lora::Result<R>,
    ) -> fused_lora::Result<R> {
        let copies = &self.adapters[index];
        let Adapter { d, width, .. } = copies.adapter;
        let weight = |data, d_in, d_out| {
            let [rows, cols] = Case { d_in, d_out, ..self.case }.stored();
            MatrixRef::new(data, rows, cols).map(|matrix| Weight { matrix, layout: self.case.layout })
        };
        work(&Bottleneck {
            norm: copies.norm.as_ref().map(|[weight, bias]| LayerNorm {
                weight: weight.copy(copy),
                bias: bias.copy(copy),
                epsilon: EPSILON,
            }),
            down: weight(copies.down.copy(copy), d, width)?,
            down_bias: Some(copies.down_bias.copy(copy)),
            up: weight(copies.up.copy(copy), width, d)?,
            up_bias: Some(copies.up_bias.copy(copy)),
            activation: Activation::Relu,
        })
    }

    /// Elements of workspace that suffice for the layer with and without LoRA (with `backward`, for its backward pass
    /// as well), and for every adapter.
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
        for index in 0..self.adapters.len() {
            let plans = self.with_adapter(index, 0, |adapter| adapter_plans(adapter, tokens))?;
            adapters = plans.iter().map(|plan| plan.workspace_len()).fold(adapters, usize::max);
        }
        Ok([layer, adapters])
    }

    /// The memory of a copy, and what calls of `tokens` tokens take in addition.
    pub(super) fn footprint(&self, tokens: usize, backward: bool) -> fused_lora::Result<Footprint> {
        let (size, Case { d_in, d_out, rank, .. }) = (size_of::<W>(), self.case);
        let widest = self.adapters.iter().map(|copies| copies.adapter.width).max().unwrap_or(0);
        let [layer, adapter] = self.workspaces(tokens, backward)?;
        let [x, y] = [d_in, d_out].map(|columns| (tokens.saturating_mul(columns), size));
        let shared = match backward {
            // x, y, dy, dx, T, dA, dB.
            true => bytes_of(&[x, y, y, x, (tokens * rank, 4), (rank * d_in, 4), (d_out * rank, 4), (layer, 4)]),
            // x, y; of sequential its workspace, T in two types and its update; of an adapter normalised y, hidden
            // features, workspace.
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
        Ok(Footprint { shared, ..weights::<W>(&self.case) })
    }
}

/// The memory of the weights of a copy.
pub(super) fn weights<W>(case: &Case) -> Footprint {
    let size = size_of::<W>();
    let [weight, a, b] = case.operands().map(|len| bytes_of(&[(len, size)]));
    let adapters = case.adapters().map(|adapter| bytes_of(&adapter.operands(size)));
    let per_copy = [weight, a, b].into_iter().chain(adapters).fold(0, usize::saturating_add);
    Footprint { weight, per_copy, shared: 0 }
}

/// The plans of an adapter's two layers.
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
        let layers = LayerCopies::<bf16>::new(&case, 7, Some(&mut Random::new(1))).unwrap();
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
        assert!(
            places.windows(2).all(|pair| pair[1] - pair[0] == CACHE_LINE) && places[0] % CACHE_LINE == 0,
            "{places:?}"
        );
        for (index, adapter) in case.adapters().iter().enumerate() {
            layers
                .with_adapter(index, 6, |view| {
                    assert_eq!((view.d(), view.width(), view.norm.is_some()), (5, adapter.width, adapter.has_norm));
                    view.validate()
                })
                .unwrap();
        }
    }

    #[test]
    fn a_footprint_is_what_is_allocated() {
        let case = Case { tokens: 1, d_in: 64, d_out: 64, rank: 4, layout: Layout::InOut };
        let layers = LayerCopies::<f32>::new(&case, 3, None).unwrap();
        let footprint = layers.footprint(16, false).unwrap();
        let adapters = &layers.adapters;
        let own = |copies: &AdapterCopies<f32>| {
            let norm = copies.norm.as_ref().map_or(0, |norm| norm.iter().map(|v| v.data.len()).sum());
            let parts = [&copies.down, &copies.down_bias, &copies.up, &copies.up_bias];
            norm + parts.iter().map(|part| part.data.len()).sum::<usize>()
        };
        let elements = [&layers.weight, &layers.a, &layers.b].iter().map(|part| part.data.len()).sum::<usize>();
        let elements = elements + adapters.iter().map(own).sum::<usize>();
        assert_eq!((3 * footprint.per_copy, footprint.weight), (4 * elements, 4 * 64 * 64));
        // x, y, sequential's update and an adapter's normalised y take 4 KiB each; the others are smaller.
        assert!((16 << 10..64 << 10).contains(&footprint.shared), "{footprint:?}");
        assert!(layers.footprint(16, true).unwrap().shared > 4 * 4 * 16 * 64);
    }
}
