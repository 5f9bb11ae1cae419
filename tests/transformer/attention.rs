//! The attention kernels in the emulator: against float64 element by element, under several schedules, in the plain, race
//! and sanitizer builds.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::common::attention::{Attention, Case, Memory, Operands};
use crate::common::rig::{Rig, SCHEDULES, builds, fastest, on_gpu, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use fused_lora::plan::transformer::{AttentionPlan, AttentionShape};
use fused_lora::{ComputePath, Element};
use fused_lora_emulator::{Completion, Config};
use half::{bf16, f16};

/// Runs a case under every schedule: the result within its bounds, the cache as it is to be, nothing else written, and always
/// the same bits.
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

/// In every build and type; the kernels' names.
fn every_type(case: &Case) -> BTreeSet<String> {
    let mut kernels = BTreeSet::new();
    for build in builds() {
        let rig = Rig::new(build);
        kernels.insert(check::<f32>(&rig, case).launch.kernel);
        kernels.insert(check::<f16>(&rig, case).launch.kernel);
        kernels.insert(check::<bf16>(&rig, case).launch.kernel);
    }
    kernels
}

/// One SM: few queries are enough to fill the device, so tiles have 64 of them.
fn wide(case: Case) -> Case {
    Case { multiprocessors: 1, ..case }
}

/// Enough of them that tiles have 16 queries.
fn narrow(case: Case) -> Case {
    Case { multiprocessors: 64, ..case }
}

#[test]
fn every_head_size_in_both_tiles() {
    let mut kernels = BTreeSet::new();
    // 96 columns and more have keys in smaller tiles on CUDA cores.
    for (tokens, head_size) in [(35, 16), (66, 64), (35, 88), (35, 128)] {
        kernels.extend(every_type(&wide(Case::new(1, tokens, 1, head_size))));
        kernels.extend(every_type(&narrow(Case::new(1, tokens, 1, head_size))));
    }
    assert_eq!(kernels.len(), 2 * (2 * 4 + 2), "{kernels:?}");
}

#[test]
fn rows_start_and_end_anywhere() {
    for (heads, head_size, gap) in [(2, 33, 0), (1, 64, 3), (3, 1, 1), (1, 100, 4)] {
        every_type(&narrow(Case { gap, ..Case::new(2, 19, heads, head_size) }));
    }
    every_type(&wide(Case { gap: 1, ..Case::new(1, 20, 2, 33).with_cache(40, &[7]) }));
}

#[test]
fn queries_before_a_tile_s_end_and_after() {
    for tokens in [2, 16, 17] {
        every_type(&narrow(Case::new(2, tokens, 1, 24)));
    }
    every_type(&wide(Case::new(1, 129, 1, 24)));
}

#[test]
fn a_prefix_is_seen_by_every_sequence() {
    every_type(&narrow(Case { gap: 8, ..Case::new(2, 18, 2, 24).with_prefix(5) }));
    every_type(&wide(Case::new(2, 18, 1, 64).with_prefix(70)));
    every_type(&Case::new(3, 1, 2, 64).with_prefix(70));
}

#[test]
fn a_prefill_appends_to_a_cache_and_leaves_alone_what_has_no_room() {
    let lengths = [0, 3, 45, 29, 30, u32::MAX as usize];
    every_type(&narrow(Case { gap: 8, ..Case::new(6, 18, 1, 32).with_cache(47, &lengths) }));
    every_type(&wide(Case::new(2, 20, 1, 64).with_cache(130, &[100, 111])));
}

#[test]
fn a_decode_appends_to_a_cache_and_leaves_alone_what_has_no_room() {
    let lengths = [0, 1, 64, 255, 256, 300, 127, u32::MAX as usize];
    for (heads, head_size, gap) in [(2, 64, 0), (1, 40, 8), (1, 128, 0), (2, 33, 1)] {
        let case = Case { gap, ..Case::new(8, 1, heads, head_size).with_cache(256, &lengths) };
        every_type(&Case { multiprocessors: 1, ..case.clone() });
        let shared = Case { multiprocessors: 24, ..case };
        every_type(&shared);
        assert!(shared.plan::<f16>((9, 0)).splits > 1);
    }
    every_type(&Case::new(1, 1, 2, 64));
}

#[test]
fn without_matrix_instructions() {
    let cores = |case: Case| Case { path: ComputePath::CudaCores, ..case };
    for build in builds() {
        let rig = Rig::new(build);
        for case in [narrow(Case::new(1, 35, 1, 64)), wide(Case::new(1, 35, 1, 128).with_prefix(3))] {
            let plan = check::<f16>(&rig, &cores(case.clone()));
            assert!(!plan.launch.kernel.contains("mma"), "{plan}");
            check::<bf16>(&rig, &cores(case));
        }
    }
}

#[test]
fn extreme_scores_do_not_overflow() {
    // Scores up to 24·200² / √24: e to their power is far beyond f32, and most weights are 0.
    for case in [Case::new(1, 40, 1, 24), Case::new(1, 1, 1, 24).with_cache(90, &[80])] {
        for magnitude in [200.0, 1e-3] {
            every_type(&narrow(Case { magnitude, ..case.clone() }));
        }
        let mut negative = wide(case);
        negative.shape.scale = -3.0;
        every_type(&negative);
    }
}

/// The same tokens one at a time: the same results within both bounds, and the same cache.
#[test]
fn decode_with_a_cache_is_prefill() {
    fn run<T: Element>() {
        let rig = Rig::new(fastest());
        let (tokens, capacity) = (21, 40);
        let prefill = narrow(Case::new(2, tokens, 2, 24).with_cache(capacity, &[3, 11]));
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

/// A score that is no number makes its query's result one that is not, and no other's.
#[test]
fn what_is_not_a_number_stays_with_its_query() {
    for build in builds() {
        let rig = Rig::new(build);
        let case = narrow(Case::new(1, 20, 1, 32));
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

/// A decode asks for the floor and its splits' records, in whole chunks.
#[test]
fn bytes_requested_are_the_floor() {
    if on_gpu() {
        return; // only the emulator counts
    }
    let config = Config { count_transactions: true, resident_ctas: 4, build: fastest(), ..Config::default() };
    let rig = Rig::with(config);
    let shape = AttentionShape { capacity: 600, ..Case::new(1, 1, 4, 64).shape };
    let case = Case { shape, multiprocessors: 8, ..Case::new(1, 1, 4, 64).with_cache(600, &[599]) };
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
    // Records of 66 floats, read by 128 threads: for each part its largest score twice, its sum, and their column.
    let exchanged = 4 * u64::from(plan.splits) * 4 * (66 + 128 * 4);
    // The query and the length once a CTA, the own key and value once more to be appended, and the result.
    let rest = u64::from(plan.splits) * 4 * 128 * 20 + 6 * 512 + 4096;
    let most = keys_and_values + exchanged + rest;
    assert!(counters.requested_bytes() <= most, "{} of {most} bytes", counters.requested_bytes());
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &["bytes_requested"]);
}
