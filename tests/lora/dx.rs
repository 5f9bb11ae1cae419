//! Checks the kernels of dx and Q in the emulator against the float64 reference, element by element. By default a test
//! runs in the race build, under one random schedule; `cargo xtask prove` runs it under several schedules and in the
//! plain, race and sanitizer builds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::common::decode::{LAYOUTS, Options};
use crate::common::forward::Forward;
use crate::common::forward_check::{CAPABILITIES, options};
use crate::common::rig::{Rig, SCHEDULES, builds, fastest, is_sanitized, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, Unaligned, steps};
use fused_lora::dropout::Dropout;
use fused_lora::lora::Layout;
use fused_lora::plan::lora::ForwardPlan;
use fused_lora::reference::{self, Matrix64};
use fused_lora::{ComputePath, DType, Element};
use fused_lora_emulator::Completion;
use half::{bf16, f16};

/// How dx is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Dx {
    Written,
    Accumulated,
    NotWanted,
}

/// Runs a shape under the test's schedules: dx and Q are within their bounds, and all runs give the same bits.
fn check<T: Element>(rig: &Rig, seed: u64, shape: &Shape, options: &Options<'_, T>, kind: Dx) -> ForwardPlan {
    let mut rng = Rng(seed);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let dy = shape.random::<T>(&mut rng, Operand::X, shape.tokens, shape.d_out);
    let old = (kind == Dx::Accumulated).then(|| shape.random::<T>(&mut rng, Operand::Y, shape.tokens, shape.d_in));
    let segments = random.segments();
    let layer = random.layer(&segments);
    let mut expected = reference::input_gradient_through(&layer, dy.view(), options.dropout.as_ref(), T::DTYPE);
    if let Some(old) = &old {
        let old = Matrix64::from_view(old.view());
        expected.value.add_at(0, 1.0, &old);
        expected.magnitude.add_at(0, 1.0, &old.abs());
    }
    let options = Options { residual: old.as_ref(), ..*options };
    let launch = Forward::input_gradient(rig, &random, &dy, &options, kind != Dx::NotWanted);
    let mut first: Option<(Buffer<T>, Buffer<T>)> = None;
    // The sanitizers' findings depend less on the schedule than those of the other builds.
    let schedules = if is_sanitized() { &SCHEDULES[2..] } else { schedules(&SCHEDULES) };
    for &(schedule, resident) in schedules {
        let what = format!("{}, seed {seed}, {shape:?}, {schedule:?}, {}", T::DTYPE, launch.plan);
        rig.set_schedule(schedule, Completion::Late, resident);
        let dx = launch.run().unwrap_or_else(|error| panic!("{what}: {error}")).y;
        let q = launch.workspace_t();
        if kind == Dx::NotWanted {
            assert!(dx.data.iter().all(|value| value.to_f32().is_nan()), "dx was written: {what}");
        } else {
            expected.assert_close(dx.view(), steps(shape), &what);
            dx.assert_gaps_untouched();
        }
        if let Some((first_dx, first_q)) = &first {
            for row in 0..shape.tokens {
                assert!(
                    kind == Dx::NotWanted || first_dx.view().row(row) == dx.view().row(row),
                    "row {row} depends: {what}"
                );
                assert_eq!(first_q.view().row(row), q.view().row(row), "row {row} of Q depends: {what}");
            }
        } else {
            check_q(&random, &dy, &q, &what);
        }
        first.get_or_insert((dx, q));
    }
    launch.plan.clone()
}

/// Checks Q as the gradient kernels read it: s·dy·B, rounded; each segment has whole steps of columns, with zeros in
/// those by which its rank was rounded up.
fn check_q<T: Element>(random: &RandomLayer<T>, dy: &Buffer<T>, q: &Buffer<T>, what: &str) {
    let dy = Matrix64::from_view(dy.view());
    let mut begin = 0;
    for ((_, b, scale), &(from, to, rank)) in random.factors.iter().zip(&random.shape.segments) {
        let (b, dy, scale) = (Matrix64::from_view(b.view()), dy.columns(from..to), f64::from(*scale));
        let (value, magnitude) = (dy.matmul(&b), dy.abs().matmul(&b.abs()));
        for row in 0..q.rows {
            let got: Vec<f64> = q.view().row(row)[begin..].iter().map(|value| f64::from(value.to_f32())).collect();
            for (j, &got) in got[..rank].iter().enumerate() {
                let exact = scale * value.at(row, j);
                let gamma = 2.0 * (dy.cols + 4) as f64 * DType::F32.unit_roundoff();
                let bound = T::DTYPE.unit_roundoff() * exact.abs() * 1.01
                    + T::DTYPE.smallest_step()
                    + gamma * scale.abs() * magnitude.at(row, j);
                assert!((got - exact).abs() <= bound, "Q[{row}, {begin} + {j}] is {got}, expected {exact}: {what}");
            }
            let beyond = &got[rank..rank.next_multiple_of(16)];
            assert!(
                beyond.iter().all(|&got| got == 0.0),
                "row {row} from {begin} on, beyond rank {rank}: {beyond:?}, {what}"
            );
        }
        begin += rank.next_multiple_of(16);
    }
    assert_eq!(begin, q.cols);
}

fn shape(tokens: usize, d_in: usize, d_out: usize, layout: Layout, segments: &[(usize, usize, usize)]) -> Shape {
    Shape { bias: false, ..crate::common::shape(tokens, d_in, d_out, layout, segments) }
}

/// Checks a shape in the test's builds, on CUDA cores and with every kind of matrix instructions that kernels for the
/// shape use; `seed` selects f16 or bf16. Returns the kernels' names.
fn check_all_kernels_with(
    shape: &Shape,
    seed: u64,
    multiprocessors: usize,
    dropout: Option<Dropout>,
    kind: Dx,
) -> BTreeSet<String> {
    let mut kernels = BTreeSet::new();
    for build in builds() {
        let rig = Rig::new(build);
        for capability in CAPABILITIES.into_iter().filter(|&capability| capability <= rig.compute_capability()) {
            if seed.is_multiple_of(2) {
                let options = Options { dropout, ..options(multiprocessors, capability) };
                kernels.insert(check::<f16>(&rig, seed, shape, &options, kind).launch.kernel);
            } else {
                let options = Options { dropout, ..options(multiprocessors, capability) };
                kernels.insert(check::<bf16>(&rig, seed, shape, &options, kind).launch.kernel);
            }
        }
        let path = ComputePath::CudaCores;
        let bits_32 = Options { path, dropout, ..options(multiprocessors, (8, 0)) };
        kernels.insert(check::<f32>(&rig, seed, shape, &bits_32, kind).launch.kernel);
        if seed.is_multiple_of(2) {
            let bits_16 = Options { path, dropout, ..options(multiprocessors, (8, 0)) };
            kernels.insert(check::<bf16>(&rig, seed, shape, &bits_16, kind).launch.kernel);
        } else {
            let bits_16 = Options { path, dropout, ..options(multiprocessors, (8, 0)) };
            kernels.insert(check::<f16>(&rig, seed, shape, &bits_16, kind).launch.kernel);
        }
    }
    kernels
}

fn check_all_kernels(shape: &Shape, seed: u64, multiprocessors: usize) -> BTreeSet<String> {
    check_all_kernels_with(shape, seed, multiprocessors, None, Dx::Written)
}

#[test]
fn every_token_count() {
    for (i, tokens) in [1, 17, 64, 127, 129].into_iter().enumerate() {
        check_all_kernels(&shape(tokens, 40, 72, LAYOUTS[i % 2], &[(0, 72, 4)]), tokens as u64, 6);
    }
}

#[test]
fn every_rank() {
    for (i, rank) in [1, 3, 8, 16, 40, 64, 130, 512].into_iter().enumerate() {
        check_all_kernels(&shape(18, 24, 72, LAYOUTS[i % 2], &[(0, 72, rank)]), i as u64 / 2, 6);
    }
}

#[test]
fn every_tile() {
    let mut seen = BTreeSet::new();
    for layout in LAYOUTS {
        for (seed, tokens, d_in, d_out) in
            [(60, 128, 128, 136), (61, 250, 248, 72), (60, 33, 72, 264), (60, 33, 71, 65)]
        {
            seen.extend(check_all_kernels(&shape(tokens, d_in, d_out, layout, &[(8, d_out, 20)]), seed, 1));
            if tokens == 33 {
                seen.extend(check_all_kernels(&shape(20, d_in, d_out, layout, &[(0, d_out, 5)]), seed + 1, 1));
            }
        }
    }
    for layout in ["rows", "columns"] {
        for kernel in [
            "mma_f16_t128",
            "mma_f16_t64",
            "mma_f16_any",
            "mma_bf16_t128",
            "mma_bf16_t64",
            "mma_bf16_any",
            "wgmma_f16_n128",
            "wgmma_bf16_n256x2",
            "wgmma_bf16_m64n128",
            "f32_t128",
            "f32_t64",
            "f32_any",
            "f16_t64",
            "f16_any",
            "bf16_t64",
            "bf16_any",
        ] {
            let name = format!("lora_dx_{layout}_{kernel}");
            assert!(seen.contains(&name), "{name} was not run: {seen:?}");
        }
    }
}

#[test]
fn odd_shapes_take_the_slow_path_and_stay_right() {
    for (i, (tokens, d_in, d_out)) in [(17, 1, 1), (19, 5, 7), (70, 67, 130)].into_iter().enumerate() {
        for layout in LAYOUTS {
            check_all_kernels(&shape(tokens, d_in, d_out, layout, &[(0, d_out, 3)]), 10 + i as u64, 6);
        }
    }
    for layout in LAYOUTS {
        // Aligned rows of dy and W0 with unaligned rows of dx and A, and the reverse.
        check_all_kernels(&shape(20, 67, 64, layout, &[(3, 64, 8)]), 13, 6);
        check_all_kernels(&Shape { gaps: Gaps::beyond(3), ..shape(20, 64, 40, layout, &[(3, 37, 24)]) }, 14, 6);
    }
}

#[test]
fn segments_anywhere() {
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        // Segments within a step of K, overlapping ones, ones at odd columns, and one of a single column.
        check_all_kernels(&shape(20, 96, 200, layout, &[(3, 77, 33), (60, 131, 90), (190, 199, 2)]), 30 + i as u64, 1);
        check_all_kernels(&shape(20, 64, 96, layout, &[(0, 96, 5), (0, 96, 2), (17, 18, 1)]), 32 + i as u64, 6);
        let many: Vec<_> = (0..16).map(|i| (3 * i, 3 * i + 3, 1 + i % 3)).collect();
        check_all_kernels(&shape(20, 64, 48, layout, &many), 34 + i as u64, 6);
        // Adapters of the queries and values of a fused projection: steps of K, and whole splits, without a segment.
        check_all_kernels(&shape(20, 24, 1208, layout, &[(1190, 1208, 8)]), 36 + i as u64, 6);
    }
    check_all_kernels(&shape(70, 24, 600, Layout::OutIn, &[(0, 200, 8), (400, 600, 8)]), 38, 6);
}

#[test]
fn shared_depths_are_summed_up_in_their_order() {
    for (layout, tokens, d_in, d_out, segments) in [
        (Layout::OutIn, 17, 40, 2056, &[(0, 2056, 16)][..]),
        (Layout::InOut, 70, 40, 1800, &[(8, 930, 70), (940, 1733, 3)]),
    ] {
        let shape = shape(tokens, d_in, d_out, layout, segments);
        for build in builds() {
            let rig = Rig::new(build);
            let options = Options { multiprocessors: 24, ..Options::default() };
            let plan = check::<bf16>(&rig, 21, &shape, &options, Dx::Accumulated);
            assert!(plan.splits > 1 && plan.t_splits > 1, "{plan}");
        }
    }
    // Only K of Q is split: dx has enough tiles to fill the device.
    for (capability, layout) in CAPABILITIES.into_iter().zip(LAYOUTS) {
        for build in builds() {
            let rig = Rig::new(build);
            if rig.compute_capability() >= capability {
                let shape = shape(100, 264, 1096, layout, &[(0, 1096, 66), (7, 9, 1)]);
                let plan = check::<f16>(&rig, 22, &shape, &options(6, capability), Dx::Written);
                assert!(plan.t_splits > 1, "{plan}");
            }
        }
    }
}

#[test]
fn the_low_rank_term_drops_out_and_the_base_does_not() {
    let dropout = Some(Dropout::new(0.3, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(5).at(77));
    // Columns in whole blocks of the mask and others, split K, and tiles with rows after the last token.
    for (i, (tokens, d_in, d_out, multiprocessors)) in
        [(130, 264, 72, 1), (40, 40, 1096, 6), (19, 33, 67, 6), (70, 104, 40, 1), (1, 8, 40, 1)].into_iter().enumerate()
    {
        let shape = shape(tokens, d_in, d_out, LAYOUTS[i % 2], &[(0, d_out, 9), (1, 5, 70)]);
        check_all_kernels_with(&shape, 80 + i as u64, multiprocessors, dropout, Dx::Written);
    }
}

#[test]
fn dx_is_accumulated_in_place() {
    let dropout = Some(Dropout::new(0.5, 9).unwrap());
    for layout in LAYOUTS {
        // Rows of dx in whole chunks of 16 bytes, and others.
        for (beyond, seed) in [(0, 41), (3, 42)] {
            let shape = Shape { gaps: Gaps::beyond(beyond), ..shape(67, 40, 64, layout, &[(8, 32, 4)]) };
            check_all_kernels_with(&shape, seed, 1, dropout.filter(|_| beyond == 3), Dx::Accumulated);
        }
    }
}

/// One operand is not aligned and all others are, each in turn: its stride with one layout, its first row with the other. dy
/// and W0 decide the choice of kernel; of the others the kernels must test each by itself.
#[test]
fn one_operand_is_not_aligned() {
    use Operand::{A, B, Weight, X, Y};
    for (layout, why) in LAYOUTS.into_iter().zip([Unaligned::Stride, Unaligned::Start]) {
        for (seed, operand) in (90..).zip([X, Weight, A, B, Y]) {
            let gaps = Gaps::with_unaligned(operand, why);
            let shape = Shape { gaps, ..shape(20, 200, 64, layout, &[(3, 40, 16), (20, 64, 8)]) };
            let kernels = check_all_kernels_with(&shape, seed, 1, None, Dx::Accumulated);
            let any = [X, Weight].contains(&operand);
            assert!(kernels.iter().all(|kernel| kernel.ends_with("_any") == any), "{operand:?}: {kernels:?}");
        }
    }
}

#[test]
fn without_dx_there_is_q() {
    for layout in LAYOUTS {
        for (tokens, d_in, d_out, multiprocessors, seed) in [(130, 72, 136, 1, 51), (40, 64, 1096, 6, 52)] {
            let shape = shape(tokens, d_in, d_out, layout, &[(0, d_out, 9), (1, 5, 70)]);
            check_all_kernels_with(&shape, seed, multiprocessors, None, Dx::NotWanted);
        }
    }
}

/// Without an adapter, dx has the same bits as the forward kernel's result for the transposed layer.
#[test]
fn without_an_adapter_dx_is_the_base_product() {
    let rig = Rig::new(fastest());
    for (layout, transposed) in [(Layout::OutIn, Layout::InOut), (Layout::InOut, Layout::OutIn)] {
        for (tokens, multiprocessors, capability) in [(70, 1, (8, 0)), (70, 24, (8, 0)), (120, 1, (9, 0))] {
            let layer = shape(tokens, 96, 1800, layout, &[(30, 61, 4)]);
            let mut rng = Rng(53);
            let random = RandomLayer::<bf16>::new(&mut rng, &layer);
            let dy = Buffer::random(&mut rng, layer.tokens, layer.d_out, 0);
            let options = options(multiprocessors, capability);
            let base_only = Options { base_only: true, ..options };
            let run = |options| Forward::input_gradient(&rig, &random, &dy, options, true).run().unwrap().y.elements();
            let (fused, base) = (run(&options), run(&base_only));

            let mut other = RandomLayer::<bf16>::new(&mut rng, &shape(tokens, 1800, 96, transposed, &[]));
            other.weight.data.clone_from(&random.weight.data);
            let forward = Forward::new(&rig, &other, &dy, &base_only).run().unwrap().y.elements();
            assert!(base == forward && fused != base, "{layer:?}");
        }
    }
}

#[test]
fn what_is_dropped_is_the_base_product_bit_for_bit() {
    let rig = Rig::new(fastest());
    let dropout = Dropout::new(0.5, 9).unwrap();
    for capability in CAPABILITIES.into_iter().filter(|&capability| capability <= rig.compute_capability()) {
        let layer = shape(130, 264, 64, Layout::OutIn, &[(0, 64, 4)]);
        let mut rng = Rng(84);
        let random = RandomLayer::<bf16>::new(&mut rng, &layer);
        let dy = Buffer::random(&mut rng, layer.tokens, layer.d_out, 0);
        let run = |dropout, base_only| {
            let options = Options { dropout, base_only, ..options(1, capability) };
            Forward::input_gradient(&rig, &random, &dy, &options, true).run().unwrap().y
        };
        let (base, none, never) = (run(None, true), run(None, false), run(Some(Dropout::new(0.0, 9).unwrap()), false));
        assert!(none.elements() == never.elements());
        let some = run(Some(dropout), false);
        for row in 0..layer.tokens {
            for column in 0..layer.d_in {
                if !dropout.keeps(row, column) {
                    assert_eq!(some.view().row(row)[column], base.view().row(row)[column], "[{row}, {column}]");
                }
            }
        }
    }
}

/// Without dropout, this test's reference gives the same as the reference of the CPU's backward pass.
#[test]
fn the_references_agree() {
    let shape = shape(5, 12, 9, Layout::OutIn, &[(0, 9, 2), (3, 5, 3)]);
    let mut rng = Rng(3);
    let random = RandomLayer::<f32>::new(&mut rng, &shape);
    let (x, dy) = (Buffer::<f32>::random(&mut rng, 5, 12, 0), Buffer::<f32>::random(&mut rng, 5, 9, 0));
    let segments = random.segments();
    let layer = random.layer(&segments);
    let expected = reference::backward(&layer, x.view(), dy.view()).dx;
    let through = reference::input_gradient_through(&layer, dy.view(), None, DType::F32);
    assert_eq!((expected.value, expected.magnitude), (through.value, through.magnitude));
}

/// AddressSanitizer must be loaded when a process starts, so this test starts the program again.
#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &[]);
}
