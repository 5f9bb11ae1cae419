//! Checks the attention kernels in the emulator against float64, element by element. By default a test runs in the race
//! build, under one random schedule; `cargo xtask prove` runs it under several schedules and in the plain, race and
//! sanitizer builds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::common::attention::{Attention, Case, Memory, Operands};
use crate::common::rig::{Rig, SCHEDULES, builds, fastest, on_gpu, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Gaps, Operand, Unaligned};
use fused_lora::plan::transformer::{AttentionPlan, AttentionShape};
use fused_lora::{ComputePath, Element};
use fused_lora_emulator::{Completion, Config};
use half::{bf16, f16};

/// Runs a case under the test's schedules: the result is within its bounds, the cache is as expected, nothing else is
/// written, and all runs give the same bits.
fn check<T: Element>(rig: &Rig, case: &Case) -> AttentionPlan {
    let operands = Operands::<T>::random(17, case);
    let attention = Attention::new(rig, &operands);
    let expected = operands.expected(&attention.plan);
    let mut first = None;
    for &(schedule, resident) in schedules(&SCHEDULES) {
        let what = format!("{}, {case:?}, {schedule:?}, {}", T::DTYPE, attention.plan);
        rig.set_schedule(schedule, Completion::Late, resident);
        let outputs = attention.run().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(operands.fault(&expected, &outputs), None, "{what}");
        outputs.out.assert_gaps_untouched();
        let bits = outputs.bits();
        assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "bits depend on the schedule: {what}");
    }
    attention.plan.clone()
}

/// Checks a case in the test's builds and in every type. Returns the kernels' names.
fn check_all_types(case: &Case) -> BTreeSet<String> {
    let mut kernels = BTreeSet::new();
    for build in builds() {
        let rig = Rig::new(build);
        kernels.insert(check::<f32>(&rig, case).launch.kernel);
        kernels.insert(check::<f16>(&rig, case).launch.kernel);
        kernels.insert(check::<bf16>(&rig, case).launch.kernel);
    }
    kernels
}

/// Plans for one SM, which few tiles fill: tiles have 64 queries.
fn in_wide_tiles(case: Case) -> Case {
    Case { multiprocessors: 1, ..case }
}

/// Plans for so many SMs that tiles have 16 queries.
fn in_narrow_tiles(case: Case) -> Case {
    Case { multiprocessors: 64, ..case }
}

#[test]
fn every_head_size_in_both_tiles() {
    let mut kernels = BTreeSet::new();
    // With head sizes from 96 on, the kernels on CUDA cores have smaller tiles of keys.
    for (tokens, head_size) in [(35, 16), (66, 64), (35, 88), (35, 128)] {
        kernels.extend(check_all_types(&in_wide_tiles(Case::new(1, tokens, 1, head_size))));
        kernels.extend(check_all_types(&in_narrow_tiles(Case::new(1, tokens, 1, head_size))));
    }
    assert_eq!(kernels.len(), 2 * (2 * 4 + 2), "{kernels:?}");
}

#[test]
fn rows_start_and_end_anywhere() {
    for (heads, head_size, beyond) in [(2, 33, 0), (1, 64, 3), (3, 1, 1), (1, 100, 4)] {
        check_all_types(&in_narrow_tiles(Case { gaps: Gaps::beyond(beyond), ..Case::new(2, 19, heads, head_size) }));
    }
    check_all_types(&in_wide_tiles(Case { gaps: Gaps::beyond(1), ..Case::new(1, 20, 2, 33).with_cache(40, &[7]) }));
}

/// One operand is not aligned and all others are, each in turn, by its stride and by its first row.
#[test]
fn one_operand_is_not_aligned() {
    let rig = Rig::new(fastest());
    for operand in [Operand::Qkv, Operand::Keys, Operand::Values, Operand::Y] {
        for why in [Unaligned::Stride, Unaligned::Start] {
            let gaps = Gaps::with_unaligned(operand, why);
            let prefill = in_narrow_tiles(Case { gaps, ..Case::new(2, 18, 1, 32).with_cache(47, &[9, 20]) });
            check::<f16>(&rig, &prefill);
            check::<f32>(&rig, &prefill);
            let decode = Case { gaps, ..Case::new(2, 1, 1, 32).with_cache(47, &[9, 20]) };
            check::<f16>(&rig, &decode);
            check::<f32>(&rig, &decode);
        }
    }
}

#[test]
fn queries_before_a_tile_s_end_and_after() {
    for tokens in [2, 16, 17] {
        check_all_types(&in_narrow_tiles(Case::new(2, tokens, 1, 24)));
    }
    check_all_types(&in_wide_tiles(Case::new(1, 129, 1, 24)));
}

#[test]
fn a_prefix_is_seen_by_every_sequence() {
    check_all_types(&in_narrow_tiles(Case::new(3, 18, 3, 24).with_prefix(37)));
    check_all_types(&in_wide_tiles(Case::new(2, 18, 1, 64).with_prefix(70)));
    check_all_types(&Case::new(3, 1, 2, 64).with_prefix(70));
}

#[test]
fn a_prefill_appends_to_a_cache_and_leaves_alone_what_has_no_room() {
    let lengths = [0, 3, 45, 29, 30, u32::MAX as usize];
    check_all_types(&in_narrow_tiles(Case::new(6, 18, 1, 32).with_cache(47, &lengths)));
    check_all_types(&in_wide_tiles(Case::new(2, 20, 1, 64).with_cache(130, &[100, 111])));
}

/// Caches that end everywhere in a tile of keys, which has up to 64.
#[test]
fn memories_of_every_length() {
    let lengths: Vec<usize> = (14..78).collect();
    check_all_types(&in_narrow_tiles(Case::new(64, 2, 1, 16).with_cache(80, &lengths)));
    check_all_types(&in_wide_tiles(Case::new(64, 2, 1, 16).with_cache(80, &lengths)));
    check_all_types(&Case { multiprocessors: 1, ..Case::new(64, 1, 1, 16).with_cache(80, &lengths) });
}

#[test]
fn a_decode_appends_to_a_cache_and_leaves_alone_what_has_no_room() {
    let lengths = [0, 1, 64, 255, 256, 300, 127, u32::MAX as usize];
    for (heads, head_size, beyond) in [(2, 64, 0), (1, 40, 0), (1, 128, 0), (2, 33, 1)] {
        let case = Case { gaps: Gaps::beyond(beyond), ..Case::new(8, 1, heads, head_size).with_cache(256, &lengths) };
        check_all_types(&Case { multiprocessors: 1, ..case.clone() });
        let shared = Case { multiprocessors: 24, ..case };
        check_all_types(&shared);
        assert!(shared.plan::<f16>((9, 0)).splits > 1);
    }
    check_all_types(&Case::new(1, 1, 2, 64));
}

#[test]
fn without_matrix_instructions() {
    let cores = |case: Case| Case { path: ComputePath::CudaCores, ..case };
    for build in builds() {
        let rig = Rig::new(build);
        for case in [in_narrow_tiles(Case::new(1, 35, 1, 64)), in_wide_tiles(Case::new(1, 35, 1, 128).with_prefix(3))] {
            let plan = check::<f16>(&rig, &cores(case.clone()));
            assert!(!plan.launch.kernel.contains("mma"), "{plan}");
            check::<bf16>(&rig, &cores(case));
        }
    }
}

#[test]
fn extreme_scores_do_not_overflow() {
    // Scores reach 24·200² / √24: their exponentials are far beyond f32's range, and most weights are 0.
    for case in [Case::new(1, 40, 1, 24), Case::new(1, 1, 1, 24).with_cache(90, &[80])] {
        for magnitude in [200.0, 1e-3] {
            check_all_types(&in_narrow_tiles(Case { magnitude, ..case.clone() }));
        }
        let mut negative = in_wide_tiles(case);
        negative.shape.scale = -3.0;
        check_all_types(&negative);
    }
}

/// Tokens decoded one at a time give the same results as together, within both bounds, and the same cache.
#[test]
fn decode_with_a_cache_is_prefill() {
    fn run<T: Element>() {
        let rig = Rig::new(fastest());
        let (tokens, capacity) = (21, 40);
        let prefill = in_narrow_tiles(Case::new(2, tokens, 2, 24).with_cache(capacity, &[3, 11]));
        let operands = Operands::<T>::random(3, &prefill);
        let whole = Attention::new(&rig, &operands);
        let expected = operands.expected(&whole.plan);
        let whole = whole.run().unwrap();
        let mut step = Operands::<T>::random(3, &Case::new(2, 1, 2, 24).with_cache(capacity, &[3, 11]));
        step.keys.data.copy_from_slice(&operands.keys.data);
        step.values.data.copy_from_slice(&operands.values.data);
        for token in 0..tokens {
            for sequence in 0..2 {
                let from = operands.qkv.view().row(sequence * tokens + token).to_vec();
                step.qkv.view_mut().row_mut(sequence).copy_from_slice(&from);
            }
            let outputs = Attention::new(&rig, &step).run().unwrap();
            for sequence in 0..2 {
                let row = sequence * tokens + token;
                let pairs = outputs.out.view().row(sequence).iter().zip(whole.out.view().row(row)).enumerate();
                for (column, (one, all)) in pairs.map(|(c, (a, b))| (c, (f64::from(a.to_f32()), f64::from(b.to_f32()))))
                {
                    let bound = 2.0 * expected.bound(row * 48 + column, T::DTYPE, tokens + capacity + 40);
                    assert!((one - all).abs() <= bound, "{}: [{row}, {column}] {one} {all}", T::DTYPE);
                }
            }
            step.keys.data.copy_from_slice(&outputs.keys.data);
            step.values.data.copy_from_slice(&outputs.values.data);
            if let Memory::Cache(lengths) = &mut step.case.memory {
                lengths.iter_mut().for_each(|length| *length += 1);
            }
        }
        let bytes = |data: &[T]| bytemuck::cast_slice::<T, u8>(data).to_vec();
        assert_eq!(bytes(&step.keys.data), bytes(&whole.keys.data));
        assert_eq!(bytes(&step.values.data), bytes(&whole.values.data));
    }
    run::<f32>();
    run::<bf16>();
}

/// A NaN in a query makes the result of that query NaN, and no other result.
#[test]
fn what_is_not_a_number_stays_with_its_query() {
    for build in builds() {
        let rig = Rig::new(build);
        let case = in_narrow_tiles(Case::new(1, 20, 1, 32));
        let mut operands = Operands::<f16>::random(5, &case);
        operands.qkv.view_mut().row_mut(7)[3] = f16::NAN;
        let outputs = Attention::new(&rig, &operands).run().unwrap();
        for row in 0..20 {
            let all_nan = outputs.out.view().row(row).iter().all(|x| x.is_nan());
            let no_nan = outputs.out.view().row(row).iter().all(|x| !x.is_nan());
            assert!(if row == 7 { all_nan } else { no_nan }, "row {row}");
        }
    }
}

/// A decode launch requests the floor's bytes, in whole chunks, and its splits' records.
#[test]
fn bytes_requested_are_the_floor() {
    if on_gpu() {
        return; // only the emulator counts
    }
    let config = Config { count_transactions: true, resident_ctas: 4, build: fastest(), ..Config::default() };
    let rig = Rig::with(config);
    let shape = AttentionShape { capacity: 600, ..Case::new(1, 1, 4, 64).shape };
    let case = Case { shape, gaps: Gaps::NONE, multiprocessors: 8, ..Case::new(1, 1, 4, 64).with_cache(600, &[599]) };
    let operands = Operands::<bf16>::random(1, &case);
    let attention = Attention::new(&rig, &operands);
    let counters = attention.run().unwrap().counters;
    let plan = &attention.plan;
    assert!(plan.splits > 1, "{plan}");
    let keys_and_values = 599 * 2 * 256 * 2 + 2 * 256 * 2;
    println!("{plan}: {counters:?}");
    assert_eq!(counters.once_bytes, keys_and_values, "each key and value once");
    assert_eq!(counters.once_bytes, 16 * counters.once_instructions, "16 bytes at a time");
    assert_eq!(counters.once_sectors, counters.once_ideal_sectors, "in whole sectors");
    // Records of 66 floats. Each of 128 threads reads of each record the largest score twice, the sum, and its own
    // column.
    let exchanged = 4 * u64::from(plan.splits) * 4 * (66 + 128 * 4);
    // Each CTA reads the query and the length; the token's own key and value are read again to be appended; the result.
    let rest = u64::from(plan.splits) * 4 * 128 * 20 + 6 * 512 + 4096;
    let most = keys_and_values + exchanged + rest;
    assert!(counters.requested_bytes() <= most, "{} of {most} bytes", counters.requested_bytes());
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &["bytes_requested"]);
}
