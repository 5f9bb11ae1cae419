//! Checks the gradient kernels in the emulator against float64, element by element. By default a test runs in the race
//! build, under one random schedule; `cargo xtask prove` runs it under several schedules and in the plain, race and
//! sanitizer builds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::common::gradients::{Case, Gradients, Operands};
use crate::common::rig::{Rig, SCHEDULES, builds, fastest, on_gpu, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Gaps, Operand, Unaligned};
use fused_lora::dropout::Dropout;
use fused_lora::plan::lora::GradientsPlan;
use fused_lora::{ComputePath, Element};
use fused_lora_emulator::{Build, Completion, Config};
use half::{bf16, f16};

/// Runs a case under the test's schedules: each gradient is within its bounds, nothing else is written, and all runs
/// give the same bits.
fn check<T: Element>(rig: &Rig, case: &Case) -> GradientsPlan {
    let operands = Operands::<T>::random(17, case);
    let expected = operands.expected();
    let gradients = Gradients::new(rig, &operands);
    let mut first = None;
    for &(schedule, resident) in schedules(&SCHEDULES) {
        let what = format!("{}, {case:?}, {schedule:?}, {}", T::DTYPE, gradients.plan);
        rig.set_schedule(schedule, Completion::Late, resident);
        let outputs = gradients.run().unwrap_or_else(|error| panic!("{what}: {error}"));
        for (i, (got, expected)) in outputs.gradients.iter().zip(&expected).enumerate() {
            expected.assert_close(got.view(), operands.steps(), &format!("output {i} of {what}"));
            if !case.accumulate {
                got.assert_gaps_untouched();
            }
        }
        let bits = outputs.bits();
        assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "bits depend on the schedule: {what}");
    }
    gradients.plan.clone()
}

/// Checks a case in the test's builds and in every type, with matrix instructions and on CUDA cores. Returns the last
/// plan and the kernels' names.
fn check_all_kernels(case: &Case) -> (GradientsPlan, BTreeSet<String>) {
    let cores = Case { path: ComputePath::CudaCores, ..case.clone() };
    let mut kernels = BTreeSet::new();
    for build in builds() {
        let rig = Rig::new(build);
        kernels.insert(check::<f16>(&rig, case).launch.kernel);
        kernels.insert(check::<bf16>(&rig, case).launch.kernel);
        kernels.insert(check::<f32>(&rig, case).launch.kernel);
        kernels.insert(check::<f16>(&rig, &cores).launch.kernel);
    }
    let plan = check::<bf16>(&Rig::new(fastest()), &cores);
    kernels.insert(plan.launch.kernel.clone());
    (plan, kernels)
}

#[test]
fn every_token_count() {
    for tokens in [1, 17, 64, 129] {
        let (plan, kernels) =
            check_all_kernels(&Case { bias: tokens == 129, ..Case::new(tokens, 72, 40, &[(0, 40, 4)]) });
        assert_eq!(plan.splits, 1, "{plan}");
        assert_eq!(kernels.len(), 5, "{kernels:?}");
    }
}

#[test]
fn tokens_are_shared_and_summed_up_in_their_order() {
    let segments = [(3, 40, 40), (0, 40, 30)];
    let (plan, _) = check_all_kernels(&Case { bias: true, multiprocessors: 24, ..Case::new(1000, 72, 40, &segments) });
    assert!(plan.splits > 2 && plan.a_blocks == 2 && plan.b_blocks == 2, "{plan}");
}

#[test]
fn every_rank() {
    // Rows of T in multiples of 16 bytes, in multiples of 4 bytes, and others.
    for rank in [1, 3, 8, 16, 40, 130] {
        check_all_kernels(&Case::new(18, 40, 24, &[(0, 24, rank)]));
    }
    let rig = Rig::new(fastest());
    check::<bf16>(&rig, &Case::new(18, 40, 24, &[(0, 24, 512)]));
    check::<f32>(&rig, &Case::new(18, 40, 24, &[(0, 24, 512)]));
}

#[test]
fn rows_start_and_end_anywhere() {
    for (tokens, d_in, d_out, beyond) in
        [(17, 1, 1, 0), (19, 7, 5, 1), (33, 66, 34, 2), (33, 261, 259, 3), (33, 75, 77, 5)]
    {
        check_all_kernels(&Case {
            gaps: Gaps::beyond(beyond),
            bias: beyond == 3,
            ..Case::new(tokens, d_in, d_out, &[(0, d_out, 3)])
        });
    }
}

/// One operand is not aligned and all others are, each in turn, by its stride and by its first row.
#[test]
fn one_operand_is_not_aligned() {
    use Operand::{Da, Db, Dbias, Dy, T, X};
    let rig = Rig::new(fastest());
    for operand in [X, Dy, T, Da, Db, Dbias] {
        for (why, accumulate) in [(Unaligned::Stride, false), (Unaligned::Start, true)] {
            let gaps = Gaps::with_unaligned(operand, why);
            let case = Case { gaps, bias: true, accumulate, ..Case::new(33, 72, 40, &[(0, 40, 16), (8, 24, 8)]) };
            check::<f16>(&rig, &case);
            check::<f32>(&rig, &case);
        }
    }
}

#[test]
fn segments_anywhere() {
    // Segments within a panel, across panels and overlapping; panels without a segment; more columns of T than a block
    // has.
    check_all_kernels(&Case::new(20, 24, 300, &[(0, 7, 4), (9, 17, 20), (251, 258, 7)]));
    check_all_kernels(&Case { bias: true, ..Case::new(20, 24, 800, &[(3, 290, 33), (260, 270, 90), (17, 18, 1)]) });
    let many: Vec<_> = (0..16).map(|i| (3 * i, 3 * i + 3, 1 + i % 3)).collect();
    check_all_kernels(&Case::new(20, 24, 48, &many));
}

#[test]
fn the_mask_of_the_forward_pass_is_made_again() {
    let dropout = Dropout::new(0.3, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(5).at(77);
    // Columns beyond a panel, tokens that are no multiple of a stage, and tokens split over CTAs.
    for (tokens, d_in, multiprocessors) in [(19, 300, 1), (1, 40, 1), (400, 67, 24)] {
        let segments = [(0, 8, 9), (1, 5, 7)];
        let case = Case { dropout: Some(dropout), multiprocessors, ..Case::new(tokens, d_in, 8, &segments) };
        let (plan, _) = check_all_kernels(&case);
        assert_eq!(plan.splits > 1, tokens == 400, "{plan}");
    }
}

#[test]
fn gradients_are_added_up() {
    for (tokens, multiprocessors) in [(70, 1), (400, 24)] {
        let case = Case::new(tokens, 40, 72, &[(8, 30, 17), (20, 70, 3)]);
        let (plan, _) =
            check_all_kernels(&Case { accumulate: true, bias: true, gaps: Gaps::beyond(3), multiprocessors, ..case });
        assert_eq!(plan.splits > 1, tokens == 400, "{plan}");
    }
}

#[test]
fn a_bias_needs_no_adapter() {
    for (tokens, multiprocessors) in [(70, 1), (400, 24)] {
        let (plan, _) = check_all_kernels(&Case { bias: true, multiprocessors, ..Case::new(tokens, 8, 300, &[]) });
        assert_eq!(plan.splits > 1, tokens == 400, "{plan}");
    }
}

/// A launch requests the bytes that the plan states, at most 1.1 times the floor and the workspace's sums.
#[test]
fn bytes_are_counted() {
    if on_gpu() {
        return; // only the emulator counts
    }
    let rig = Rig::new(fastest());
    let large = Case { multiprocessors: 8, ..Case::new(2048, 512, 512, &[(0, 512, 16)]) };
    let some_columns =
        Case { multiprocessors: 1, ..Case::new(100, 300, 600, &[(10, 40, 4), (30, 300, 20), (310, 320, 65)]) };
    for case in
        [&large, &Case { bias: true, ..large.clone() }, &some_columns, &Case { bias: true, ..some_columns.clone() }]
    {
        let operands = Operands::<bf16>::random(18, case);
        let gradients = Gradients::new(&rig, &operands);
        let counters = gradients.run().unwrap().counters;
        let plan = &gradients.plan;
        let bytes = (counters.global_bytes() - counters.atomic_bytes) as usize;
        assert_eq!(bytes, plan.moved_bytes, "{plan}");
        if case.tokens == large.tokens {
            assert!(plan.splits > 1, "{plan}");
            // The partial sums stored in the workspace: the columns of one step.
            let once =
                plan.floor_bytes + counters.store_bytes as usize - 4 * (16 * 1024 + if case.bias { 512 } else { 0 });
            let ratio = bytes as f64 / once as f64;
            println!("{plan}: {ratio:.3} of the floor");
            assert!(ratio <= 1.1, "{ratio}: {plan}");
        }
    }
}

#[test]
fn bank_conflicts_do_not_grow_with_the_tokens() {
    if on_gpu() {
        return; // only the emulator counts
    }
    fn conflicts<T: Element>(tokens: usize, bias: bool) -> u64 {
        let rig = Rig::with(Config { count_transactions: true, build: Build::Race, ..Config::default() });
        let case = Case { multiprocessors: 1, bias, ..Case::new(tokens, 256, 256, &[(0, 256, 64)]) };
        let operands = Operands::<T>::random(19, &case);
        Gradients::new(&rig, &operands).run().unwrap().counters.shared_conflicts
    }
    for bias in [false, true] {
        assert_eq!(conflicts::<bf16>(64, bias), conflicts::<bf16>(128, bias), "bias {bias}");
        assert_eq!(conflicts::<f32>(64, bias), conflicts::<f32>(128, bias), "f32, bias {bias}");
    }
}

/// AddressSanitizer must be loaded when a process starts, so this test starts the program again.
#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &["are_counted", "bank_conflicts", "tokens_are_shared"]);
}
