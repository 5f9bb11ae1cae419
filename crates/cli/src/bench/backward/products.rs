//! A training pass as products of cuBLASLt: those of a frozen layer, and those of a layer with LoRA in the order in
//! which PEFT computes them.
//!
//! PEFT reads and writes y and dx again to scale, to add base and adapter, and to cast. Here alpha and beta of the
//! products do that, so `sequential` is faster than PEFT on the same library. dA and dB are stored as `f32`, as by our
//! kernels.

use anyhow::Result;
use fused_lora::Element;
use fused_lora::device::Stream;
use fused_lora::lora::Layout;

use super::Buffers;
use crate::bench::case::{Case, SCALE};
use crate::bench::comparison::Bench;
use crate::bench::cublaslt::{CublasLt, Product, ProductKind, fastest_algorithm};
use crate::bench::device::LayerCopy;

/// One product of a training pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// y = x·W0ᵀ
    Base,
    /// T = x·Aᵀ
    Shrink,
    /// y += s·T·Bᵀ
    Expand,
    /// dx = dy·W0
    BaseDx,
    /// Q = s·dy·B
    Q,
    /// dx += Q·A
    LowRankDx,
    /// dA = Qᵀ·x
    Da,
    /// dB = s·dyᵀ·T
    Db,
}

/// The products of a frozen layer.
pub(super) const FROZEN: [Step; 2] = [Step::Base, Step::BaseDx];
/// The products of a layer with LoRA, in an order in which each finds its operands computed.
pub(super) const SEQUENTIAL: [Step; 8] =
    [Step::Base, Step::Shrink, Step::Expand, Step::BaseDx, Step::Q, Step::LowRankDx, Step::Da, Step::Db];

impl Step {
    fn is_forward(self) -> bool {
        matches!(self, Step::Base | Step::Shrink | Step::Expand)
    }

    /// `[m, k, n]`, the kind of product, and `[alpha, beta]`.
    fn product(self, case: &Case) -> ([usize; 3], ProductKind, [f32; 2]) {
        let &Case { tokens, d_in, d_out, rank, layout } = case;
        let transposed = match layout {
            Layout::OutIn => Layout::InOut,
            Layout::InOut => Layout::OutIn,
        };
        // A is [rank, d_in] and B is [d_out, rank]: in the forward pass these are [n, k], in the backward pass [k, n].
        let (forward, backward) = (ProductKind::Layer(Layout::OutIn), ProductKind::Layer(Layout::InOut));
        match self {
            Step::Base => ([tokens, d_in, d_out], ProductKind::Layer(layout), [1.0, 0.0]),
            Step::Shrink => ([tokens, d_in, rank], forward, [1.0, 0.0]),
            Step::Expand => ([tokens, rank, d_out], forward, [SCALE, 1.0]),
            Step::BaseDx => ([tokens, d_out, d_in], ProductKind::Layer(transposed), [1.0, 0.0]),
            Step::Q => ([tokens, d_out, rank], backward, [SCALE, 0.0]),
            Step::LowRankDx => ([tokens, rank, d_in], backward, [1.0, 1.0]),
            Step::Da => ([rank, tokens, d_in], ProductKind::Gradient, [1.0, 0.0]),
            Step::Db => ([d_out, tokens, rank], ProductKind::Gradient, [SCALE, 0.0]),
        }
    }

    /// Device addresses of the operands that a [`Product`] calls W, x and y.
    fn operands<T: Element>(self, buffers: &Buffers<T>, copy: &LayerCopy<T>) -> [u64; 3] {
        let [w, a, b] = [&copy.weight, &copy.a, &copy.b].map(|buffer| buffer.as_slice().address());
        let Buffers { x, y, dy, dx, t, q, .. } = buffers;
        let [x, y, dy, dx, t, q] = [x, y, dy, dx, t, q].map(|buffer| buffer.as_slice().address());
        let [da, db] = [&buffers.da, &buffers.db].map(|buffer| buffer.as_slice().address());
        match self {
            Step::Base => [w, x, y],
            Step::Shrink => [a, x, t],
            Step::Expand => [b, t, y],
            Step::BaseDx => [w, dy, dx],
            Step::Q => [b, dy, q],
            Step::LowRankDx => [a, q, dx],
            Step::Da => [x, q, da],
            Step::Db => [t, dy, db],
        }
    }
}

/// All products of a case in the order of [`SEQUENTIAL`], and their operands.
pub(super) struct Products<'a, T> {
    products: Vec<(Step, Product<'a>)>,
    buffers: &'a Buffers<T>,
    copies: &'a [LayerCopy<T>],
}

impl<'a, T: Element> Products<'a, T> {
    /// Prepares all products, each with its fastest algorithm.
    pub(super) fn new(
        bench: &Bench<'_>,
        library: &'a CublasLt,
        case: &Case,
        buffers: &'a Buffers<T>,
        copies: &'a [LayerCopy<T>],
    ) -> Result<Self> {
        let &Bench { device, stream, path, .. } = bench;
        let prepared = SEQUENTIAL.map(|step| {
            let (shape, kind, factors) = step.product(case);
            let product = library.product((T::DTYPE, path), shape, kind, factors, |product, candidates| {
                // SAFETY: the operands are packed matrices of the product's shapes, which live.
                fastest_algorithm(product, candidates, device, stream, copies.len(), |product, stream, copy| unsafe {
                    product.issue(stream, step.operands(buffers, &copies[copy]))
                })
            });
            Ok((step, product?))
        });
        Ok(Self { products: prepared.into_iter().collect::<Result<_>>()?, buffers, copies })
    }

    /// Issues the products of `steps`. `copies` are the copies of the weights that the forward and the backward pass
    /// take.
    pub(super) fn issue(&self, stream: &Stream, steps: &[Step], copies: [usize; 2]) -> fused_lora::Result<()> {
        self.of(steps).try_for_each(|(step, product)| {
            let copy = &self.copies[copies[usize::from(!step.is_forward())]];
            // SAFETY: the operands are packed matrices of the product's shapes, which live.
            unsafe { product.issue(stream, step.operands(self.buffers, copy)) }
        })
    }

    /// The algorithms of the products of `steps`, for the table.
    pub(super) fn algorithms(&self, steps: &[Step]) -> String {
        let chosen: Vec<_> = self.of(steps).map(|(_, product)| product.chosen.to_string()).collect();
        format!("algorithms {}", chosen.join(", "))
    }

    fn of(&self, steps: &[Step]) -> impl Iterator<Item = &(Step, Product<'a>)> {
        self.products.iter().filter(|(step, _)| steps.contains(step))
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use std::collections::HashMap;

    use fused_lora::ComputePath;
    use fused_lora::device::{DeviceBuffer, Workspace};
    use fused_lora_gpt2::Random;

    use super::*;
    use crate::bench::backward::Plans;

    /// Computes what the library would compute, on matrices stored column by column.
    fn multiply(
        ([m, k, n], kind, [alpha, beta]): ([usize; 3], ProductKind, [f32; 2]),
        w: &[f32],
        x: &[f32],
        y: &mut [f32],
    ) {
        let ([transpose_w, transpose_x], [w_stored, x_stored, y_stored]) = (kind.transposed(), kind.stored([m, k, n]));
        let at = |m: &[f32], [stored, _]: [usize; 2], transposed, row: usize, column: usize| {
            let (row, column) = if transposed { (column, row) } else { (row, column) };
            assert!(row < stored);
            m[column * stored + row]
        };
        for (row, column) in (0..y_stored[0]).flat_map(|row| (0..y_stored[1]).map(move |column| (row, column))) {
            let terms = (0..k).map(|k| at(w, w_stored, transpose_w, row, k) * at(x, x_stored, transpose_x, k, column));
            let (sum, y) = (terms.sum::<f32>(), &mut y[column * y_stored[0] + row]);
            *y = alpha * sum + if beta == 0.0 { 0.0 } else { beta * *y };
        }
    }

    /// Computes the products without cuBLASLt, and compares the results with those of our kernels on the emulator.
    #[test]
    fn the_steps_of_sequential_are_a_training_pass() {
        let Some(device) = crate::common::emulator_for_tests() else { return };
        let stream = Stream::new(&device).unwrap();
        for layout in [Layout::OutIn, Layout::InOut] {
            let case = Case { tokens: 18, d_in: 24, d_out: 40, rank: 3, layout };
            let copy = LayerCopy::<f32>::upload(&case, 1, &stream, &mut Random::new(0)).unwrap().remove(0);
            let buffers = Buffers::<f32>::new(&stream, 18, (24, 40), 3).unwrap();
            let mut memory = HashMap::new();
            let Buffers { x, y, dy, dx, t, q, da, db } = &buffers;
            let address = |buffer: &DeviceBuffer<f32>| buffer.as_slice().address();
            for buffer in [x, y, dy, dx, t, q, da, db, &copy.weight, &copy.a, &copy.b] {
                memory.insert(address(buffer), buffer.to_vec(&stream).unwrap());
            }
            for step in SEQUENTIAL {
                let [w, x, y] = step.operands(&buffers, &copy);
                let mut out = memory[&y].clone();
                multiply(step.product(&case), &memory[&w], &memory[&x], &mut out);
                memory.insert(y, out);
            }
            let plans = Plans::new(&device, &case, &copy, true, ComputePath::Auto).unwrap();
            let mut workspace = Workspace::new(&stream, plans.workspace()).unwrap();
            plans.launch(&stream, &case, [&copy; 2], &buffers, &mut workspace).unwrap();
            for (name, buffer) in [("y", y), ("T", t), ("dx", dx), ("dA", da), ("dB", db)] {
                let (ours, theirs) = (buffer.to_vec(&stream).unwrap(), &memory[&address(buffer)]);
                assert!(ours.iter().any(|&value| value != 0.0), "{name}");
                for (ours, theirs) in ours.iter().zip(theirs) {
                    assert!(
                        (ours - theirs).abs() <= 1e-5 * (1.0 + theirs.abs()),
                        "{name}, {layout:?}: {ours}, {theirs}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_frozen_layer_has_the_products_of_its_weight() {
        let of_weight = |step: &Step| matches!(step, Step::Base | Step::BaseDx);
        assert_eq!(SEQUENTIAL.iter().copied().filter(of_weight).collect::<Vec<_>>(), FROZEN);
    }
}
