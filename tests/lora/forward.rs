//! Checks the forward kernels in the emulator against the float64 reference, element by element. By default a test runs
//! in the race build, under one random schedule; `cargo xtask prove` runs it under several schedules and in the plain,
//! race and sanitizer builds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::common::decode::{LAYOUTS, Options};
use crate::common::forward::Forward;
use crate::common::forward_check::{CAPABILITIES, check, check_columns_without_an_adapter, options};
use crate::common::rig::{Rig, builds, fastest, on_gpu};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, Unaligned, shape};
use fused_lora::ComputePath;
use fused_lora::dropout::Dropout;
use fused_lora::lora::{Activation, Layout};
use fused_lora_emulator::{Build, Config};
use half::{bf16, f16};

/// Checks a shape in the test's builds and in every type, on CUDA cores and with every kind of matrix instructions that
/// kernels for the shape use. Returns the kernels' names.
fn check_all_kernels(shape: &Shape, seed: u64, multiprocessors: usize) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for build in builds() {
        let rig = Rig::new(build);
        let mut kernels = BTreeSet::new();
        for capability in CAPABILITIES.into_iter().filter(|&capability| capability <= rig.compute_capability()) {
            // If both capabilities give the same kernel, it runs once.
            if kernels
                .insert(check::<f16>(&rig, seed, shape, &options(multiprocessors, capability), false).launch.kernel)
            {
                check::<bf16>(&rig, seed, shape, &options(multiprocessors, capability), false);
            }
        }
        let path = ComputePath::CudaCores;
        let bits_32 = Options { path, ..options(multiprocessors, (8, 0)) };
        kernels.insert(check::<f32>(&rig, seed, shape, &bits_32, false).launch.kernel);
        let bits_16 = Options { path, ..options(multiprocessors, (8, 0)) };
        kernels.insert(check::<f16>(&rig, seed, shape, &bits_16, false).launch.kernel);
        let bits_16 = Options { path, ..options(multiprocessors, (8, 0)) };
        kernels.insert(check::<bf16>(&rig, seed, shape, &bits_16, false).launch.kernel);
        all.append(&mut kernels);
    }
    all
}

#[test]
fn every_token_count() {
    for layout in LAYOUTS {
        for tokens in [1, 17, 64, 127, 128, 129] {
            check_all_kernels(&shape(tokens, 72, 40, layout, &[(0, 40, 4)]), tokens as u64, 6);
        }
        // Groups of row tiles of which the last is lower, with two column tiles.
        check_all_kernels(&shape(600, 40, 72, layout, &[(8, 72, 4)]), 600, 6);
    }
}

#[test]
fn every_rank() {
    for layout in LAYOUTS {
        for rank in [1, 3, 8, 16, 17, 40, 64, 130, 512] {
            check_all_kernels(&shape(18, 72, 24, layout, &[(0, 24, rank)]), rank as u64, 6);
        }
    }
}

#[test]
fn every_tile() {
    let mut seen = BTreeSet::new();
    for layout in LAYOUTS {
        for (tokens, d_in, d_out) in [(128, 136, 128), (250, 72, 248), (127, 264, 120), (100, 72, 200)] {
            seen.extend(check_all_kernels(&shape(tokens, d_in, d_out, layout, &[(8, d_out, 20)]), 61, 1));
        }
        seen.extend(check_all_kernels(&shape(33, 520, 72, layout, &[(0, 72, 5)]), 62, 1));
        seen.extend(check_all_kernels(&shape(33, 65, 71, layout, &[(0, 71, 5)]), 63, 1));
    }
    for layout in ["rows", "columns"] {
        for kernel in [
            "mma_f16_t128",
            "mma_f16_t64",
            "mma_f16_any",
            "wgmma_f16_n128",
            "wgmma_f16_n256",
            "wgmma_f16_n256x2",
            "f32_t128",
            "f32_t64",
            "f32_any",
            "f16_t64",
            "f16_any",
            "bf16_t64",
            "bf16_any",
        ] {
            let name = format!("lora_forward_{layout}_{kernel}");
            assert!(seen.contains(&name), "{name} was not run: {seen:?}");
        }
    }
}

#[test]
fn odd_shapes_take_the_slow_path_and_stay_right() {
    for layout in LAYOUTS {
        for (tokens, d_in, d_out) in [(17, 1, 1), (19, 7, 5), (65, 65, 33), (70, 130, 67)] {
            check_all_kernels(&shape(tokens, d_in, d_out, layout, &[(0, d_out, 3)]), 11, 6);
            check_all_kernels(
                &Shape { gaps: Gaps::beyond(3), bias: false, ..shape(tokens, d_in, d_out, layout, &[]) },
                12,
                6,
            );
        }
    }
}

#[test]
fn shared_depths_are_summed_up_in_their_order() {
    for layout in LAYOUTS {
        for (tokens, d_in, d_out, segments) in
            [(17, 2056, 40, &[(0, 40, 16)][..]), (100, 1800, 72, &[(8, 30, 70), (40, 72, 3)]), (20, 4000, 8, &[])]
        {
            let shape = shape(tokens, d_in, d_out, layout, segments);
            for build in builds() {
                let rig = Rig::new(build);
                let plan =
                    check::<bf16>(&rig, 21, &shape, &Options { multiprocessors: 24, ..Options::default() }, true);
                assert!(plan.splits > 1 && plan.t_splits > 1, "{plan}");
            }
        }
        // Only K of T is split: y has enough tiles to fill the device.
        for capability in CAPABILITIES {
            for build in builds() {
                let rig = Rig::new(build);
                if rig.compute_capability() >= capability {
                    let shape = shape(100, 1096, 264, layout, &[(0, 264, 66), (7, 9, 1)]);
                    let options = Options { multiprocessors: 6, ..options(6, capability) };
                    let plan = check::<f16>(&rig, 22, &shape, &options, false);
                    assert!(plan.t_splits > 1, "{plan}");
                }
            }
        }
    }
}

/// Few tokens on wgmma: the CTAs of a cluster split K of a tile of y; the CTAs of any number of clusters split K of T.
#[test]
fn clusters_share_depths() {
    let mut seen = BTreeSet::new();
    for layout in LAYOUTS {
        for (tokens, d_in, d_out, segments, multiprocessors) in [
            // No split; more splits of T than steps of K; more steps of T than CTAs; two tiles in both dimensions.
            (33, 72, 72, &[(0, 72, 20)][..], 1),
            (17, 456, 40, &[(0, 40, 20)], 3),
            (33, 512, 40, &[(3, 30, 130), (20, 40, 90), (39, 40, 2)], 10),
            (33, 1000, 72, &[(5, 72, 5)], 5),
            (100, 1000, 72, &[(9, 70, 3), (60, 72, 70)], 3),
            (100, 1000, 72, &[], 5),
            (130, 136, 136, &[(0, 136, 5)], 10),
        ] {
            let shape = shape(tokens, d_in, d_out, layout, segments);
            for build in builds() {
                let rig = Rig::new(build);
                if rig.compute_capability() == (9, 0) {
                    let plan = check::<bf16>(&rig, 91, &shape, &options(multiprocessors, (9, 0)), true);
                    seen.insert(format!("{} {}", plan.launch.kernel.rsplit('_').next().unwrap(), plan.launch.cluster));
                }
            }
        }
    }
    for expected in ["m64n64 2", "m64n64 8", "m64n128 1", "m64n128 4", "m128n128 2", "m128n128 4"] {
        assert!(on_gpu() || seen.contains(expected), "{expected} was not run: {seen:?}");
    }
}

#[test]
fn segments_anywhere() {
    for layout in LAYOUTS {
        check_all_kernels(&shape(20, 64, 96, layout, &[(0, 32, 4), (64, 96, 7)]), 31, 6);
        check_all_kernels(&shape(20, 64, 96, layout, &[(0, 96, 5), (0, 96, 2), (17, 18, 1)]), 32, 6);
        check_all_kernels(&shape(20, 64, 200, layout, &[(3, 77, 33), (60, 131, 90), (190, 199, 2)]), 35, 1);
        check_all_kernels(&shape(20, 64, 48, layout, &[]), 33, 6);
        let many: Vec<_> = (0..16).map(|i| (3 * i, 3 * i + 3, 1 + i % 3)).collect();
        check_all_kernels(&shape(20, 64, 48, layout, &many), 34, 6);
    }
}

/// Adapters with the ranks that the launch is planned for, and with ranks lower by less than a step and by several
/// steps.
#[test]
fn factors_in_a_slot() {
    for build in builds() {
        let rig = Rig::new(build);
        for (layout, spare) in [(Layout::OutIn, 0), (Layout::InOut, 5), (Layout::OutIn, 70)] {
            let few = shape(20, 64, 96, layout, &[(0, 32, 4), (60, 96, 8)]);
            let many = shape(130, 72, 200, layout, &[(3, 77, 33), (60, 131, 16)]);
            for capability in CAPABILITIES.into_iter().filter(|&capability| capability <= rig.compute_capability()) {
                let slot = Some(spare);
                check::<f16>(&rig, 71, &few, &Options { slot, ..options(6, capability) }, false);
                check::<bf16>(&rig, 72, &many, &Options { slot, ..options(1, capability) }, false);
            }
            let cores = Options { slot: Some(spare), path: ComputePath::CudaCores, ..options(6, (8, 0)) };
            check::<f32>(&rig, 73, &few, &cores, false);
        }
    }
}

/// Every tile size with a fused shrink: ranks of one and of two matrix instructions, segments that end within an
/// instruction, tiles without an adapter, rings that wrap around, and factors in a slot.
#[test]
fn low_ranks_are_fused() {
    let mut seen = BTreeSet::new();
    for build in builds() {
        let rig = Rig::new(build);
        if rig.compute_capability() < (9, 0) {
            return;
        }
        for layout in LAYOUTS {
            for (tokens, d_in, d_out, segments, multiprocessors) in [
                (17, 64, 96, &[(0, 32, 4), (60, 96, 8)][..], 6),
                (20, 1000, 200, &[(3, 77, 3), (60, 140, 16)], 5),
                (62, 512, 40, &[(3, 30, 32)], 10),
                (100, 1000, 72, &[(9, 70, 20)], 3),
                (33, 520, 136, &[(0, 136, 1), (0, 136, 9)], 1),
            ] {
                let shape = shape(tokens, d_in, d_out, layout, segments);
                let options = Options { serving: true, ..options(multiprocessors, (9, 0)) };
                seen.insert(check::<f16>(&rig, 81, &shape, &options, true).launch.kernel);
                let options = Options { serving: true, slot: Some(0), ..self::options(multiprocessors, (9, 0)) };
                check::<bf16>(&rig, 82, &shape, &options, false);
            }
            let lower = shape(40, 136, 72, layout, &[(0, 40, 7), (32, 72, 1)]);
            check::<f16>(&rig, 83, &lower, &Options { serving: true, slot: Some(9), ..options(2, (9, 0)) }, false);
            let alone = shape(40, 136, 200, layout, &[(70, 141, 5)]);
            let options = Options { serving: true, ..options(2, (9, 0)) };
            // The scale is so large that T overflows.
            check_columns_without_an_adapter::<f16>(&rig, &alone, 1e4, &options);
        }
    }
    for kernel in ["m64n64r", "m64n128r", "m128n128r"] {
        for layout in ["rows", "columns"] {
            let found = seen.iter().any(|name| name.contains(layout) && name.ends_with(kernel));
            assert!(found, "{layout} of {kernel} were not run: {seen:?}");
        }
    }
}

#[test]
fn adapters_drop_out_and_the_base_does_not() {
    let dropout = Dropout::new(0.3, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(5).at(77);
    for layout in LAYOUTS {
        // K in whole blocks of the mask, other K, and split K; tiles with rows after the last token.
        for (tokens, d_in, d_out, multiprocessors) in
            [(130, 136, 264, 1), (70, 1096, 40, 6), (19, 67, 33, 6), (1, 40, 8, 1)]
        {
            let shape = shape(tokens, d_in, d_out, layout, &[(0, d_out, 9), (1, 5, 70)]);
            for build in builds() {
                let rig = Rig::new(build);
                for capability in CAPABILITIES.into_iter().filter(|&capability| capability <= rig.compute_capability())
                {
                    let options = Options { dropout: Some(dropout), ..options(multiprocessors, capability) };
                    check::<bf16>(&rig, 81, &shape, &options, false);
                }
                let path = ComputePath::CudaCores;
                let bits_32 = Options { dropout: Some(dropout), path, ..options(multiprocessors, (8, 0)) };
                check::<f32>(&rig, 82, &shape, &bits_32, false);
                let bits_16 = Options { dropout: Some(dropout), path, ..options(multiprocessors, (8, 0)) };
                check::<f16>(&rig, 83, &shape, &bits_16, false);
            }
        }
    }
}

#[test]
fn dropping_nothing_is_no_dropout() {
    let rig = Rig::new(fastest());
    let shape = shape(40, 72, 40, Layout::OutIn, &[(0, 40, 4)]);
    let mut rng = Rng(84);
    let random = RandomLayer::<bf16>::new(&mut rng, &shape);
    let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, 0);
    let [none, never, some] = [None, Some(0.0), Some(0.5)].map(|p| {
        let dropout = p.map(|p| Dropout::new(p, 9).unwrap());
        Forward::new(&rig, &random, &x, &Options { dropout, ..options(6, (8, 0)) }).run().unwrap().y.elements()
    });
    assert!(none == never && none != some);
}

#[test]
fn activation_and_residual_on_the_way_out() {
    for build in builds() {
        let rig = Rig::new(build);
        for layout in LAYOUTS {
            // Rows of y in whole chunks of 16 bytes, other rows, and rows whose last chunk ends in the gap.
            for (beyond, seed, d_out) in [(0, 41, 40), (3, 42, 40), (7, 43, 41)] {
                let shape = Shape { gaps: Gaps::beyond(beyond), ..shape(67, 64, d_out, layout, &[(8, 32, 4)]) };
                for activation in [Activation::Relu, Activation::GeluNew] {
                    for capability in CAPABILITIES {
                        let options = Options { activation, ..options(1, capability) };
                        check::<bf16>(&rig, seed, &shape, &options, seed % 2 == 0);
                    }
                    let cores = Options { activation, path: ComputePath::CudaCores, ..options(1, (8, 0)) };
                    check::<f32>(&rig, seed, &shape, &cores, true);
                }
            }
        }
    }
}

/// One operand is not aligned and all others are, each in turn: its stride with one layout, its first row with the other. x,
/// W0 and A decide the choice of kernel; of the others the kernels must test each by itself.
#[test]
fn one_operand_is_not_aligned() {
    use Operand::{A, B, Bias, Residual, T, Weight, X, Y};
    for build in builds() {
        let rig = Rig::new(build);
        for (layout, why) in LAYOUTS.into_iter().zip([Unaligned::Stride, Unaligned::Start]) {
            for operand in [X, Weight, A, B, Bias, T, Y, Residual] {
                let gaps = Gaps::with_unaligned(operand, if operand == Bias { Unaligned::Start } else { why });
                let shape = Shape { gaps, ..shape(20, 64, 200, layout, &[(3, 77, 16), (60, 200, 8)]) };
                let options = |multiprocessors, capability| Options {
                    activation: Activation::Relu,
                    ..options::<f16>(multiprocessors, capability)
                };
                let aligned = ![X, Weight, A].contains(&operand);
                let mut kernels = vec![("t64", check::<f16>(&rig, 11, &shape, &options(1, (8, 0)), true))];
                if rig.compute_capability() >= (9, 0) && aligned {
                    kernels.push(("n256", check::<f16>(&rig, 12, &shape, &options(1, (9, 0)), true)));
                    kernels.push(("m64n64", check::<f16>(&rig, 13, &shape, &options(9, (9, 0)), true)));
                    let serving = Options { serving: true, ..options(9, (9, 0)) };
                    kernels.push(("m64n64r", check::<f16>(&rig, 14, &shape, &serving, true)));
                }
                let cores = Options { path: ComputePath::CudaCores, ..self::options(1, (8, 0)) };
                kernels.push(("t64", check::<f32>(&rig, 15, &shape, &cores, true)));
                for (tile, plan) in kernels {
                    let tile = if aligned { tile } else { "any" };
                    assert!(plan.launch.kernel.ends_with(&format!("_{tile}")), "{operand:?}: {plan}");
                }
            }
        }
    }
}

#[test]
fn columns_without_an_adapter_are_the_base_product_bit_for_bit() {
    let rig = Rig::new(fastest());
    for layout in LAYOUTS {
        // With a scale of 1e30 T overflows, which must not change the columns outside the segment.
        for (scale, multiprocessors, capability, tokens) in [
            (1.0, 1, (8, 0), 70),
            (1e30, 1, (8, 0), 70),
            (1.0, 24, (8, 0), 70),
            (1.0, 1, (9, 0), 120),
            (1e30, 1, (9, 0), 120),
        ] {
            let shape = shape(tokens, 1800, 96, layout, &[(30, 61, 4)]);
            let options = options(multiprocessors, capability);
            check_columns_without_an_adapter::<bf16>(&rig, &shape, scale, &options);
        }
    }
}

/// Counts the bytes, matrix instructions and bank conflicts of a launch whose tiles are all full.
#[test]
fn products_of_the_adapters_are_counted() {
    if on_gpu() {
        return; // only the emulator counts
    }
    for layout in LAYOUTS {
        let count = |d_in: usize, rank: usize| {
            let segments = [(0, 128, rank)];
            let shape = Shape { bias: false, ..shape(128, d_in, 128, layout, &segments[..rank.min(1)]) };
            let mut rng = Rng(71);
            let random = RandomLayer::<bf16>::new(&mut rng, &shape);
            let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, 0);
            let rig = Rig::with(Config { count_transactions: true, build: Build::Race, ..Config::default() });
            let forward = Forward::new(&rig, &random, &x, &options(1, (8, 0)));
            assert!(forward.plan.launch.kernel.ends_with("t128"), "{}", forward.plan);
            forward.run().unwrap().counters
        };
        let (short, long) = (count(512, 16), count(1024, 16));
        assert_eq!(short.shared_conflicts, long.shared_conflicts, "bank conflicts grow with the depth: {layout:?}");
        let base = count(512, 0);
        // T adds 16 columns to the 128 of y, and its product with B adds one step of 16 to K.
        let per_step = 128 / 16 * (128 / 8);
        assert_eq!(base.mma_instructions, 512 / 16 * per_step);
        assert_eq!(short.mma_instructions - base.mma_instructions, 512 / 16 * per_step / 8 + per_step);
    }
}

#[test]
fn products_of_f32_have_no_bank_conflicts_in_their_main_loops() {
    if on_gpu() {
        return; // only the emulator counts
    }
    for (layout, path) in
        LAYOUTS.into_iter().flat_map(|layout| [(layout, ComputePath::CudaCores), (layout, ComputePath::Tf32)])
    {
        for tile in ["t128", "t64"] {
            let conflicts = [256, 512].map(|d_in| {
                let size = if tile == "t128" { 128 } else { 64 };
                // In TF32 both loops over K: y's and T's.
                let segments = [(0, size, 16)];
                let adapters = usize::from(path == ComputePath::Tf32);
                let shape = Shape { bias: false, ..shape(size, d_in, size, layout, &segments[..adapters]) };
                let mut rng = Rng(72);
                let random = RandomLayer::<f32>::new(&mut rng, &shape);
                let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, 0);
                let rig = Rig::with(Config { count_transactions: true, build: Build::Race, ..Config::default() });
                let options = Options { path, ..options(1, (8, 0)) };
                let forward = Forward::new(&rig, &random, &x, &options);
                assert!(forward.plan.launch.kernel.ends_with(tile), "{}", forward.plan);
                let counters = forward.run().unwrap().counters;
                if path == ComputePath::Tf32 {
                    // Instructions of 16 x 8 x 8: y's, T's, and those of the adapter's 16 more values of K.
                    let products = d_in * size + d_in * 16 + 16 * size;
                    assert_eq!(counters.mma_instructions, (size * products / (16 * 8 * 8)) as u64, "{}", forward.plan);
                }
                counters.shared_conflicts
            });
            assert_eq!(conflicts[0], conflicts[1], "bank conflicts grow with the depth: {layout:?}, {path:?}, {tile}");
        }
    }
}

/// AddressSanitizer must be loaded when a process starts, so this test starts the program again.
#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &["are_counted", "bank_conflicts"]);
}
