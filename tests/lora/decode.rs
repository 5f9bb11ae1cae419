//! Checks the decode kernels in the emulator against the float64 reference, element by element. By default a test runs
//! in the race build, under one random schedule; `cargo xtask prove` runs it under several schedules and in the plain,
//! race and sanitizer builds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::common::decode::{Decode, LAYOUTS, Options};
use crate::common::forward::on_the_way_out;
use crate::common::rig::{Rig, SCHEDULES, builds, fastest, on_gpu, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, Unaligned, shape, steps};
use fused_lora::lora::{Activation, Layout};
use fused_lora::plan::lora::DecodePlan;
use fused_lora::{ComputePath, Element, reference};
use fused_lora_emulator::{Build, Completion, Config};
use half::{bf16, f16};

/// Runs a shape under the test's schedules: each result is within its bounds, and all have the same bits.
fn check<T: Element>(rig: &Rig, seed: u64, shape: &Shape, activation: Activation, residual: bool) {
    check_with::<T>(rig, seed, shape, &Options { activation, ..Options::default() }, residual);
}

fn check_with<T: Element>(rig: &Rig, seed: u64, shape: &Shape, options: &Options<'_, T>, residual: bool) -> DecodePlan {
    let mut rng = Rng(seed);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let x = shape.random::<T>(&mut rng, Operand::X, shape.tokens, shape.d_in);
    let added = residual.then(|| shape.random::<T>(&mut rng, Operand::Residual, shape.tokens, shape.d_out));
    let segments = random.segments();
    let expected = reference::forward(&random.layer(&segments), x.view());
    let expected = on_the_way_out(expected, &random, options.activation, added.as_ref());
    let options = Options { residual: added.as_ref(), ..*options };
    let decode = Decode::new(rig, &random, &x, &options);
    let mut first: Option<Buffer<T>> = None;
    for &(schedule, resident) in schedules(&SCHEDULES) {
        let what = format!("{}, seed {seed}, {shape:?}, {schedule:?}, {}", T::DTYPE, decode.plan);
        rig.set_schedule(schedule, Completion::Late, resident);
        let (y, _) = decode.run().unwrap_or_else(|error| panic!("{what}: {error}"));
        expected.assert_close(y.view(), steps(shape), &what);
        y.assert_gaps_untouched();
        if let Some(first) = &first {
            for row in 0..shape.tokens {
                assert_eq!(first.view().row(row), y.view().row(row), "row {row} depends on the schedule: {what}");
            }
        }
        first.get_or_insert(y);
    }
    decode.plan.clone()
}

fn check_all_types(shape: &Shape, seed: u64) {
    for build in builds() {
        let rig = Rig::new(build);
        check::<f32>(&rig, seed, shape, Activation::Identity, false);
        check::<f16>(&rig, seed, shape, Activation::Identity, false);
        check::<bf16>(&rig, seed, shape, Activation::Identity, false);
    }
}

#[test]
fn every_token_count() {
    for layout in LAYOUTS {
        for tokens in 1..=16 {
            check_all_types(&shape(tokens, 64, 40, layout, &[(0, 40, 4)]), tokens as u64);
        }
    }
}

#[test]
fn every_rank() {
    for layout in LAYOUTS {
        for rank in [1, 2, 3, 8, 16, 17, 40, 64, 130, 512] {
            check_all_types(&shape(2, 72, 24, layout, &[(0, 24, rank)]), rank as u64);
        }
    }
}

#[test]
fn odd_shapes_take_the_slow_path_and_stay_right() {
    for layout in LAYOUTS {
        for (tokens, d_in, d_out) in [(1, 1, 1), (1, 7, 5), (3, 65, 33), (5, 130, 17), (16, 33, 70)] {
            check_all_types(&shape(tokens, d_in, d_out, layout, &[(0, d_out, 3)]), 11);
            check_all_types(
                &Shape { gaps: Gaps::beyond(3), bias: false, ..shape(tokens, d_in, d_out, layout, &[]) },
                12,
            );
        }
    }
}

#[test]
fn long_rows_go_over_several_panels() {
    for layout in LAYOUTS {
        // More chunks than threads, and a last panel with work for a part of the CTA's threads only.
        check_all_types(&shape(1, 4096 + 520, 16, layout, &[(0, 16, 2)]), 21);
        check_all_types(&shape(4, 1096, 48, layout, &[(0, 48, 5)]), 22);
    }
}

fn matrix_options<T>(multiprocessors: usize) -> Options<'static, T> {
    Options { multiprocessors, path: ComputePath::Matrix, ..Options::default() }
}

/// Up to 16 tokens in f16 and bf16: every tile width, K split over CTAs, K that ends within a warp's step, and ranks so
/// high that shared memory has room for the sums of a part of the warps only, which then take turns.
#[test]
fn matrix_instructions_in_every_tiling() {
    let mut seen = BTreeSet::new();
    let mut run = |tokens, d_in, d_out, layout, multiprocessors, rank| {
        let shape = shape(tokens, d_in, d_out, layout, &[(8, d_out, rank)]);
        for build in builds() {
            let rig = Rig::new(build);
            let f16_plan = check_with::<f16>(&rig, 51, &shape, &matrix_options(multiprocessors), false);
            check_with::<bf16>(&rig, 52, &shape, &matrix_options(multiprocessors), false);
            seen.insert((f16_plan.launch.kernel, f16_plan.splits > 1, f16_plan.row_threads < f16_plan.launch.threads));
        }
    };
    for (tokens, d_in, d_out, multiprocessors, rank) in [
        (5, 72, 16, 1, 3),
        (7, 136, 24, 1, 8),
        (16, 200, 72, 1, 5),
        (9, 40, 104, 1, 40),
        (6, 4104, 24, 8, 2),
        (16, 1032, 72, 6, 512),
        (1, 64, 200, 2, 4),
    ] {
        run(tokens, d_in, d_out, Layout::OutIn, multiprocessors, rank);
    }
    for (tokens, d_in, d_out, multiprocessors, rank) in
        [(5, 72, 16, 1, 3), (16, 1032, 72, 6, 8), (11, 600, 136, 3, 512), (2, 64, 64, 1, 7)]
    {
        run(tokens, d_in, d_out, Layout::InOut, multiprocessors, rank);
    }
    for kernel in ["rows_mma_f16_n2", "rows_mma_f16_n4", "rows_mma_f16_n8", "rows_mma_f16_n12", "columns_mma_f16"] {
        assert!(seen.iter().any(|(name, ..)| name.ends_with(kernel)), "{kernel} was not run: {seen:?}");
    }
    for rows in ["rows", "columns"] {
        assert!(
            seen.iter().any(|(name, split, _)| name.contains(rows) && *split),
            "no {rows} kernel split K: {seen:?}"
        );
        assert!(
            seen.iter().any(|(name, _, turns)| name.contains(rows) && *turns),
            "no {rows} kernel's warps took turns: {seen:?}"
        );
    }
}

#[test]
fn segments_anywhere() {
    for layout in LAYOUTS {
        check_all_types(&shape(1, 64, 96, layout, &[(0, 32, 4), (64, 96, 7)]), 31);
        check_all_types(&shape(2, 64, 96, layout, &[(0, 96, 5), (0, 96, 2), (17, 18, 1)]), 32);
        check_all_types(&shape(3, 64, 48, layout, &[]), 33);
        let many: Vec<_> = (0..16).map(|i| (3 * i, 3 * i + 3, 1 + i % 3)).collect();
        check_all_types(&shape(1, 64, 48, layout, &many), 34);
    }
}

/// Adapters with the ranks that the launch is planned for, and with ranks lower by less than a step and by several
/// steps.
#[test]
fn factors_in_a_slot() {
    fn check<T: Element>(rig: &Rig, shape: &Shape) {
        for (spare, path) in [(0, ComputePath::CudaCores), (30, ComputePath::CudaCores), (5, ComputePath::Auto)] {
            check_with::<T>(rig, 41, shape, &Options { slot: Some(spare), path, ..Options::default() }, false);
        }
    }
    for build in builds() {
        let rig = Rig::new(build);
        for layout in LAYOUTS {
            check::<f32>(&rig, &shape(1, 64, 96, layout, &[(0, 32, 4), (64, 96, 7)]));
            check::<f16>(&rig, &shape(6, 72, 96, layout, &[(0, 32, 9), (60, 96, 8)]));
            check::<bf16>(&rig, &shape(3, 65, 33, layout, &[(0, 33, 3)]));
        }
    }
}

#[test]
fn activation_and_residual_on_the_way_out() {
    for build in builds() {
        let rig = Rig::new(build);
        for layout in LAYOUTS {
            let shape = Shape { gaps: Gaps::CHUNKS, ..shape(3, 64, 40, layout, &[(8, 32, 4)]) };
            check::<f32>(&rig, 41, &shape, Activation::Relu, true);
            check::<f32>(&rig, 42, &shape, Activation::GeluNew, true);
            check::<bf16>(&rig, 43, &shape, Activation::GeluNew, true);
            check::<f16>(&rig, 44, &shape, Activation::Relu, false);
        }
    }
}

/// One operand is not aligned and all others are, each in turn: its stride with one layout, its first row with the other. x,
/// W0 and A decide the choice of kernel; of the others the kernels must test each by itself.
#[test]
fn one_operand_is_not_aligned() {
    use Operand::{A, B, Bias, Residual, Weight, X, Y};
    for build in builds() {
        let rig = Rig::new(build);
        for (layout, why) in LAYOUTS.into_iter().zip([Unaligned::Stride, Unaligned::Start]) {
            for operand in [X, Weight, A, B, Bias, Y, Residual] {
                let gaps = Gaps::with_unaligned(operand, if operand == Bias { Unaligned::Start } else { why });
                let shape = Shape { gaps, ..shape(6, 72, 48, layout, &[(3, 40, 16), (20, 48, 8)]) };
                let plans = [
                    check_with::<f16>(&rig, 55, &shape, &Options::default(), true),
                    check_with::<f32>(&rig, 56, &shape, &Options::default(), true),
                ];
                assert_eq!(plans[0].launch.kernel.contains("mma"), ![X, Weight, A].contains(&operand));
                for plan in plans {
                    let any = plan.launch.kernel.ends_with("_any");
                    assert_eq!(any, [X, Weight, A].contains(&operand), "{operand:?}: {plan}");
                }
            }
        }
    }
}

#[test]
fn columns_without_an_adapter_are_the_base_product_bit_for_bit() {
    let rig = Rig::new(fastest());
    for layout in LAYOUTS {
        let shape = shape(2, 200, 96, layout, &[(32, 64, 4)]);
        let mut rng = Rng(51);
        let random = RandomLayer::<bf16>::new(&mut rng, &shape);
        let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, 0);
        let fused = Decode::new(&rig, &random, &x, &Options::default()).run().unwrap().0;
        let base_only = Options { base_only: true, ..Options::default() };
        let base = Decode::new(&rig, &random, &x, &base_only).run().unwrap().0;
        for row in 0..shape.tokens {
            let (fused, base) = (fused.view(), base.view());
            assert_eq!(fused.row(row)[..32], base.row(row)[..32]);
            assert_eq!(fused.row(row)[64..], base.row(row)[64..]);
            assert_ne!(fused.row(row)[32..64], base.row(row)[32..64]);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let rig = Rig::new(fastest());
    for layout in LAYOUTS {
        let shape = shape(4, 200, 96, layout, &[(0, 96, 4)]);
        let mut rng = Rng(52);
        let random = RandomLayer::<bf16>::new(&mut rng, &shape);
        let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, 0);
        let together = Decode::new(&rig, &random, &x, &Options::default()).run().unwrap().0;
        for token in 0..shape.tokens {
            let alone = RandomLayer { shape: Shape { tokens: 1, ..shape.clone() }, ..clone_of(&random) };
            let mut x1 = Buffer::<bf16>::poisoned(1, shape.d_in, 0);
            x1.data.copy_from_slice(x.view().row(token));
            let y = Decode::new(&rig, &alone, &x1, &Options::default()).run().unwrap().0;
            assert_eq!(y.view().row(0), together.view().row(token), "token {token}, {layout:?}");
        }
    }
}

fn clone_of<T: Element>(layer: &RandomLayer<T>) -> RandomLayer<T> {
    let copy = |b: &Buffer<T>| Buffer { data: b.data.clone(), ..*b };
    RandomLayer {
        shape: layer.shape.clone(),
        weight: copy(&layer.weight),
        bias: layer.bias.clone(),
        factors: layer.factors.iter().map(|(a, b, scale)| (copy(a), copy(b), *scale)).collect(),
    }
}

/// A launch reads every operand once, in whole chunks of 16 bytes and whole sectors.
#[test]
fn bytes_requested_are_the_floor() {
    if on_gpu() {
        return; // only the emulator counts
    }
    // Every CTA reads x, so x's share grows with the number of SMs (132 SMs: 1.033 of the floor).
    for layout in LAYOUTS {
        let shape = Shape { bias: false, gaps: Gaps::NONE, ..shape(1, 4096, 4096, layout, &[(0, 4096, 16)]) };
        let mut rng = Rng(61);
        let random = RandomLayer::<bf16>::new(&mut rng, &shape);
        let x = Buffer::random(&mut rng, 1, shape.d_in, 0);
        let config = Config { count_transactions: true, resident_ctas: 4, build: fastest(), ..Config::default() };
        let rig = Rig::with(config);
        let decode = Decode::new(&rig, &random, &x, &Options { multiprocessors: 64, ..Options::default() });
        let (_, counters) = decode.run().unwrap();
        let ratio = counters.requested_bytes() as f64 / decode.plan.floor_bytes as f64;
        println!("{}: {ratio:.4} of the floor requested, {counters:?}", decode.plan);
        assert!(ratio <= 1.02, "{ratio} of the floor: {counters:?}");
        assert_eq!(counters.distinct_load_bytes + counters.distinct_store_bytes, decode.plan.floor_bytes as u64);
        assert_eq!(counters.once_bytes, 16 * counters.once_instructions, "weights are read 16 bytes at a time");
        assert_eq!(counters.once_sectors, counters.once_ideal_sectors, "weights are read in whole sectors");
    }
}

/// The bank conflicts of one launch, counted over all accesses to shared memory; the loads of weights; the kernel.
fn conflicts<T: Element>(tokens: usize, d_in: usize, layout: Layout) -> (u64, u64, String) {
    let shape = shape(tokens, d_in, 64, layout, &[(0, 64, 8)]);
    let mut rng = Rng(71);
    let random = RandomLayer::<T>::new(&mut rng, &shape);
    let x = Buffer::random(&mut rng, tokens, d_in, 0);
    let config = Config { count_transactions: true, build: Build::Race, ..Config::default() };
    let rig = Rig::with(config);
    let options = Options { multiprocessors: 1, ..Options::default() };
    let decode = Decode::new(&rig, &random, &x, &options);
    let (_, counters) = decode.run().unwrap();
    (counters.shared_conflicts, counters.once_instructions, decode.plan.launch.kernel.clone())
}

/// If the main loop had bank conflicts, their number would grow with the loop's length.
#[test]
fn main_loops_have_no_bank_conflicts() {
    if on_gpu() {
        return; // only the emulator counts
    }
    fn check<T: Element>(tokens: usize, layout: Layout) {
        let [(short, loads, kernel), (long, more_loads, same)] =
            [4096, 8192].map(|d_in| conflicts::<T>(tokens, d_in, layout));
        assert_eq!(kernel, same);
        assert!(more_loads > loads + loads / 2, "{kernel}: {loads} and {more_loads} weight loads");
        assert_eq!(short, long, "{kernel}: bank conflicts grow with the depth");
    }
    for layout in LAYOUTS {
        for tokens in [1, 2, 4, 8] {
            check::<f32>(tokens, layout);
            check::<bf16>(tokens, layout);
        }
    }
}

/// AddressSanitizer must be loaded when a process starts, so this test starts the program again.
#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &["bytes_requested", "bank_conflicts"]);
}
