//! Times a training pass on a GPU: fused LoRA, a frozen layer by our kernels and by cuBLASLt, and sequential LoRA.

use std::cell::RefCell;

use anyhow::Result;
use fused_lora::Element;
use fused_lora::device::{Stream, Workspace};

use super::products::{FROZEN as FROZEN_STEPS, Products, SEQUENTIAL as SEQUENTIAL_STEPS, Step};
use super::{Buffers, Plans};
use crate::bench::case::Case;
use crate::bench::comparison::{Bench, Variant};
use crate::bench::device::LayerCopy;
use crate::bench::launch_timer::{IssueFn, LaunchTimer};
use crate::bench::row::{Row, VariantInfo};
use crate::bench::variant::{FROZEN, FROZEN_OURS, FUSED, SEQUENTIAL};

impl Bench<'_> {
    /// Times all variants on one case. `plans` are those of the frozen layer and of the layer with LoRA.
    pub(in crate::bench) fn passes<T: Element>(
        &self,
        case: &Case,
        copies: &[LayerCopy<T>],
        buffers: &Buffers<T>,
        plans: &[Plans<T>; 2],
    ) -> Result<Vec<Row>> {
        let [frozen, fused] = plans;
        let variant = |name, launch, issue| {
            let is_frozen = [FROZEN, FROZEN_OURS].contains(&name);
            // Sequential has the same lower bound of bytes as fused.
            let bytes = if is_frozen { frozen } else { fused }.floor_bytes(case);
            let parameters = if is_frozen { 0 } else { case.parameters() };
            let flops = case.training_flops(!is_frozen);
            let info = VariantInfo { name, width: None, parameters, bytes, flops, launches: 0, launch };
            Variant { info, launch_timer: LaunchTimer::new(copies.len(), issue) }
        };
        let with_our_kernels = |name, plans| {
            let issue = self.our_pass(case, copies, buffers, plans)?;
            anyhow::Ok(variant(name, plans.to_string(), issue))
        };
        let products = self.cublaslt.map(|library| Products::new(self, library, case, buffers, copies)).transpose()?;
        let mut variants = vec![with_our_kernels(FROZEN_OURS, frozen)?, with_our_kernels(FUSED, fused)?];
        if let Some(products) = &products {
            let with_cublaslt = |name, steps: &'static [Step]| {
                let issue =
                    move |stream: &Stream, copy| products.issue(stream, steps, copies_of_passes(copies.len(), copy));
                variant(name, products.algorithms(steps), Box::new(issue))
            };
            variants.extend([with_cublaslt(FROZEN, &FROZEN_STEPS), with_cublaslt(SEQUENTIAL, &SEQUENTIAL_STEPS)]);
        }
        self.time(case, copies.len(), variants)
    }

    fn our_pass<'a, T: Element>(
        &self,
        case: &'a Case,
        copies: &'a [LayerCopy<T>],
        buffers: &'a Buffers<T>,
        plans: &'a Plans<T>,
    ) -> Result<IssueFn<'a>> {
        let workspace = RefCell::new(Workspace::new(self.stream, plans.workspace())?);
        Ok(Box::new(move |stream, copy| {
            let weights = copies_of_passes(copies.len(), copy).map(|copy| &copies[copy]);
            plans.launch(stream, case, weights, buffers, &mut workspace.borrow_mut())
        }))
    }
}

/// The copies of the weights that the forward and the backward pass take. In a model the passes of all other layers lie
/// between the two; here the backward pass takes the copy half a round ahead, so its weight is not in a cache either.
fn copies_of_passes(copies: usize, copy: usize) -> [usize; 2] {
    [copy, (copy + copies / 2) % copies]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_used_again_only_after_many_others() {
        for copies in [4, 6, 36] {
            let uses: Vec<_> = (0..2 * copies).flat_map(|launch| copies_of_passes(copies, launch % copies)).collect();
            for copy in 0..copies {
                let at: Vec<_> = (0..uses.len()).filter(|&i| uses[i] == copy).collect();
                assert_eq!(at.len(), 4, "two passes each way");
                // Between two uses of a copy, both passes go through half of the other copies.
                assert!(at.windows(2).all(|uses| uses[1] - uses[0] >= copies - 1), "{copies} copies, {copy}: {at:?}");
            }
        }
    }
}

#[cfg(all(test, feature = "emulator"))]
mod emulated {
    use fused_lora::ComputePath;
    use fused_lora::lora::Layout;
    use fused_lora_gpt2::Random;
    use half::bf16;

    use super::*;
    use crate::bench::variant::MODES;

    /// Runs our variants on the emulator, launch by launch and as a graph. Its times mean nothing, but the rest is as
    /// on a GPU.
    #[test]
    fn passes_are_timed_in_both_modes() {
        let Some(device) = crate::common::emulator_for_tests() else { return };
        let stream = Stream::new(&device).unwrap();
        let path = ComputePath::Auto;
        let bench = Bench { device: &device, stream: &stream, cublaslt: None, path, trials: 3 };
        for layout in [Layout::OutIn, Layout::InOut] {
            // Rows of 36 elements of dy are not a multiple of 16 bytes.
            let case = Case { tokens: 20, d_in: 64, d_out: 36, rank: 4, layout };
            let copies = LayerCopy::<bf16>::upload(&case, 4, &stream, &mut Random::new(0)).unwrap();
            let buffers = Buffers::new(&stream, 24, (64, 36), 5).unwrap();
            let plans = [false, true].map(|adapted| Plans::new(&device, &case, &copies[0], adapted, path).unwrap());
            let rows = bench.passes(&case, &copies, &buffers, &plans).unwrap();
            let ran: Vec<_> = rows.iter().map(|row| (row.variant, row.mode)).collect();
            let both = |name| MODES.map(|mode| (name, mode));
            assert_eq!(ran, [both(FROZEN_OURS), both(FUSED)].concat());
            for (row, products) in rows.iter().zip([2 * 64 * 36, 2 * 64 * 36, 2 * 64 * 36 + 3 * 4 * 100]) {
                assert_eq!(row.flops, 2 * 20 * products, "{row:?}");
                assert!(row.launches >= 4 && row.over_cublaslt.is_none() && row.bytes > 2 * 2 * 64 * 36, "{row:?}");
            }
            for written in [&buffers.y, &buffers.dx, &buffers.t] {
                assert!(written.to_vec(&stream).unwrap().iter().any(|&value| value != bf16::ZERO));
            }
            for written in [&buffers.da, &buffers.db] {
                assert!(written.to_vec(&stream).unwrap().iter().any(|&value| value != 0.0));
            }
        }
    }
}
