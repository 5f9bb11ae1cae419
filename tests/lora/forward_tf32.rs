//! Checks the forward kernels in TF32 in the emulator against the float64 reference, element by element. By default a
//! test runs in the race build, under one random schedule; `cargo xtask prove` runs it under several schedules and in
//! the plain, race and sanitizer builds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::common::decode::{LAYOUTS, Options};
use crate::common::forward::{Forward, expected};
use crate::common::forward_check::{check, check_columns_without_an_adapter, options};
use crate::common::rig::{Rig, builds, fastest};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Buffer, Gaps, RandomLayer, Rng, Shape, shape, steps};
use fused_lora::dropout::Dropout;
use fused_lora::lora::Activation;
use fused_lora::reference::{self, Matrix64};
use fused_lora::{ComputePath, DType};

/// Options that select the kernels in TF32.
fn tf32<T>(multiprocessors: usize) -> Options<'static, T> {
    Options { path: ComputePath::Tf32, ..options(multiprocessors, (8, 0)) }
}

#[test]
fn tf32_in_every_tile() {
    let mut seen = BTreeSet::new();
    let dropout = Dropout::new(0.3, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(5).at(77);
    for layout in LAYOUTS {
        let case = |multiprocessors, shape: Shape| (multiprocessors, shape);
        let cases = [
            // Large tiles, full and partial, and ranks above a step and above a tile of T.
            case(1, shape(128, 136, 128, layout, &[(0, 128, 16)])),
            case(1, shape(250, 72, 248, layout, &[(8, 248, 20), (100, 131, 70), (17, 18, 1)])),
            // Small tiles, split K, and one token.
            case(1, shape(33, 520, 72, layout, &[(0, 72, 5), (3, 35, 17)])),
            case(24, shape(17, 2056, 40, layout, &[(0, 40, 16)])),
            case(6, shape(1, 40, 24, layout, &[(0, 24, 1)])),
            // Unaligned rows; K = 1, where the error bound is that of the two operands' roundings.
            case(6, shape(33, 65, 71, layout, &[(0, 71, 5)])),
            case(6, Shape { gaps: Gaps::beyond(3), ..shape(19, 1, 45, layout, &[(2, 45, 3)]) }),
        ];
        for build in builds() {
            let rig = Rig::new(build);
            if rig.compute_capability() < (8, 0) {
                return; // this GPU has no TF32
            }
            for (seed, (multiprocessors, shape)) in (91..).zip(&cases) {
                let options = Options { dropout: (seed % 2 == 0).then_some(dropout), ..tf32(*multiprocessors) };
                let plan = check::<f32>(&rig, seed, shape, &options, seed % 3 == 0);
                assert_eq!(plan.splits > 1 && plan.t_splits > 1, *multiprocessors == 24, "{plan}");
                seen.insert(plan.launch.kernel);
            }
            for activation in [Activation::Relu, Activation::GeluNew] {
                let shape = Shape { gaps: Gaps::CHUNKS, ..shape(67, 64, 40, layout, &[(8, 32, 4)]) };
                check::<f32>(&rig, 98, &shape, &Options { activation, ..tf32(1) }, true);
            }
        }
    }
    let names = ["rows", "columns"]
        .map(|layout| ["t128", "t64", "any"].map(|tile| format!("lora_forward_{layout}_mma_tf32_{tile}")));
    assert_eq!(seen, names.into_iter().flatten().collect());
}

/// Kernels in f32 keep the error bound without TF32's term, kernels in TF32 exceed it. Operands that are exact in TF32
/// are not changed by the rounding.
#[test]
fn tf32_rounds_and_f32_does_not() {
    let rig = Rig::new(fastest());
    for layout in LAYOUTS {
        // K is so small that the errors of the sums are far smaller than those of rounding to TF32.
        let shape = Shape { bias: false, ..shape(20, 8, 24, layout, &[(0, 24, 4)]) };
        let mut rng = Rng(85);
        let mut random = RandomLayer::<f32>::new(&mut rng, &shape);
        let mut x = Buffer::random(&mut rng, shape.tokens, shape.d_in, 0);
        let plain = expected(&random, &x, Activation::Identity, None, None);
        let beyond = |path| {
            let options = Options { path, ..options(6, (8, 0)) };
            let y = Forward::new(&rig, &random, &x, &options).run().unwrap().y;
            let is_beyond = |(i, &got): (usize, &f32)| {
                let error = (f64::from(got) - plain.value.data[i]).abs();
                error > plain.bound(i, DType::F32, steps(&shape))
            };
            y.elements().iter().enumerate().filter(|&value| is_beyond(value)).count()
        };
        assert_eq!([ComputePath::Auto, ComputePath::CudaCores].map(beyond), [0, 0]);
        let elements = shape.tokens * shape.d_out;
        assert!(beyond(ComputePath::Tf32) > elements * 9 / 10, "{} of {elements}", beyond(ComputePath::Tf32));

        // With multiples of 1/8 every product and every sum is exact in f32.
        for values in [&mut x.data, &mut random.weight.data] {
            values.iter_mut().for_each(|value| *value = (*value * 8.0).round() / 8.0);
        }
        let exact = Matrix64::from_view(x.view()).matmul(&reference::weight_in_out(&random.layer(&[])));
        let base = Options { base_only: true, ..tf32(6) };
        let y = Forward::new(&rig, &random, &x, &base).run().unwrap().y;
        assert!(y.elements().iter().map(|&got| f64::from(got)).eq(exact.data), "{layout:?}");
    }
}

#[test]
fn columns_without_an_adapter_are_the_base_product_bit_for_bit_in_tf32() {
    let rig = Rig::new(fastest());
    for layout in LAYOUTS {
        for (scale, multiprocessors, tokens, d_out) in
            [(1.0, 1, 70, 96), (1e30, 1, 70, 96), (1.0, 24, 70, 96), (1e30, 1, 128, 128)]
        {
            let shape = shape(tokens, 520, d_out, layout, &[(30, 61, 4)]);
            let options = tf32(multiprocessors);
            check_columns_without_an_adapter::<f32>(&rig, &shape, scale, &options);
        }
    }
}

/// AddressSanitizer must be loaded when a process starts, so this test starts the program again.
#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &[]);
}
