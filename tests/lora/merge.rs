//! Checks the merge kernels in the emulator against float64, element by element, in place and from a kept original. By
//! default a test runs in the race build, under one random schedule; `cargo xtask prove` runs it under several
//! schedules and in the plain, race and sanitizer builds.
#![allow(clippy::unwrap_used)]

use crate::common::decode::LAYOUTS;
use crate::common::merge::{Merged, fault, run, stored};
use crate::common::rig::{Rig, builds, fastest, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, Unaligned};
use approx::assert_abs_diff_eq;
use fused_lora::lora::Layout;
use fused_lora::{DType, Element, reference};
use fused_lora_emulator::{Build, Completion, Schedule};
use half::{bf16, f16};

const SCHEDULES: [(Schedule, u32); 3] = [(Schedule::FirstIn, 8), (Schedule::LastIn, 1), (Schedule::Random(9), 3)];

fn shape(d_in: usize, d_out: usize, layout: Layout, segments: &[(usize, usize, usize)], beyond: usize) -> Shape {
    Shape { bias: false, gaps: Gaps::beyond(beyond), ..crate::common::shape(1, d_in, d_out, layout, segments) }
}

/// Half a unit in the last place (ulp) of a value of this magnitude.
fn half_ulp(dtype: DType, magnitude: f64) -> f64 {
    let (digits, smallest) = match dtype {
        DType::F32 => (24, -149),
        DType::F16 => (11, -24),
        DType::Bf16 => (8, -133),
    };
    let exponent = if magnitude > 0.0 { magnitude.log2().floor() as i32 + 1 - digits } else { smallest };
    0.5 * 2f64.powi(exponent.max(smallest))
}

/// Asserts that every element is within its bound of float64, and that weight and report have the bits that the host's f32
/// gives.
fn assert_correct<T: Element>(layer: &RandomLayer<T>, before: &Buffer<T>, sign: f32, merged: &Merged<T>, what: &str) {
    let shape = &layer.shape;
    let rank: usize = shape.segments.iter().map(|s| s.2).sum();
    for row in 0..before.rows {
        for column in 0..before.cols {
            let (input, output) = match shape.layout {
                Layout::OutIn => (column, row),
                Layout::InOut => (row, column),
            };
            let (mut delta, mut magnitude) = (0.0, 0.0);
            for (&(begin, end, rank), (a, b, scale)) in shape.segments.iter().zip(&layer.factors) {
                if !(begin..end).contains(&output) {
                    continue;
                }
                for l in 0..rank {
                    let term = f64::from(sign * scale)
                        * f64::from(b.view().row(output - begin)[l].to_f32())
                        * f64::from(a.view().row(l)[input].to_f32());
                    delta += term;
                    magnitude += term.abs();
                }
            }
            let old = before.view().row(row)[column];
            let got = f64::from(merged.weight.view().row(row)[column].to_f32());
            let exact = f64::from(old.to_f32()) + delta;
            let sums = f64::from(f32::EPSILON) * (rank + 3) as f64 * (magnitude + exact.abs());
            let bound = if magnitude == 0.0 { 0.0 } else { half_ulp(T::DTYPE, exact.abs() + sums) + sums };
            assert!((got - exact).abs() <= bound, "[{row}, {column}] is {got}, not {exact} ± {bound:e}: {what}");
        }
    }
    assert_eq!(fault(layer, before, sign, true, true, merged), None, "{what}");
}

fn check<T: Element>(build: Build, shape: &Shape) {
    let rig = Rig::new(build);
    let mut rng = Rng(shape.d_in as u64 * 31 + shape.d_out as u64);
    let layer = RandomLayer::<T>::new(&mut rng, shape);
    for &(schedule, resident) in schedules(&SCHEDULES) {
        rig.set_schedule(schedule, Completion::Late, resident);
        let what = format!("{shape:?}, {}, {schedule:?}", T::DTYPE);
        let merged = run(&rig, &layer, &layer.weight, 1.0, true, true).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_correct(&layer, &layer.weight, 1.0, &merged, &what);
        let undone = run(&rig, &layer, &merged.weight, -1.0, true, true).unwrap();
        assert_correct(&layer, &merged.weight, -1.0, &undone, &what);
        // From a kept original into another buffer, and a copy of the original back, without segments.
        let aside = run(&rig, &layer, &layer.weight, 1.0, false, true).unwrap();
        let restored = run(&rig, &layer, &layer.weight, 1.0, false, false).unwrap();
        for row in 0..layer.weight.rows {
            assert_eq!(aside.weight.view().row(row), merged.weight.view().row(row), "{what}");
            assert_eq!(restored.weight.view().row(row), layer.weight.view().row(row), "{what}");
        }
        assert_eq!(fault(&layer, &layer.weight, 1.0, false, true, &aside), None, "aside, {what}");
        assert_eq!(fault(&layer, &layer.weight, 1.0, false, false, &restored), None, "restored, {what}");
    }
}

fn every_type(shape: &Shape) {
    for build in builds() {
        check::<f32>(build, shape);
        check::<f16>(build, shape);
        check::<bf16>(build, shape);
    }
}

#[test]
fn one_segment() {
    for layout in LAYOUTS {
        every_type(&shape(136, 72, layout, &[(0, 72, 4)], 0));
        every_type(&shape(8, 8, layout, &[(0, 8, 1)], 0));
    }
}

#[test]
fn ranks_beyond_a_panel() {
    for layout in LAYOUTS {
        every_type(&shape(40, 24, layout, &[(0, 24, 33)], 0));
        check::<f32>(fastest(), &shape(16, 16, layout, &[(0, 16, 512)], 0));
    }
}

#[test]
fn several_segments_leave_the_rest_untouched() {
    for layout in LAYOUTS {
        every_type(&shape(64, 200, layout, &[(0, 24, 3), (133, 200, 5), (140, 150, 2)], 0));
        every_type(&shape(200, 64, layout, &[(3, 5, 2)], 0));
    }
}

#[test]
fn odd_shapes() {
    for layout in LAYOUTS {
        every_type(&shape(1, 1, layout, &[(0, 1, 1)], 0));
        every_type(&shape(67, 35, layout, &[(0, 35, 3)], 3));
    }
}

/// One operand is not aligned and all others are, each in turn: its stride with one layout, its first row with the other.
#[test]
fn one_operand_is_not_aligned() {
    for (layout, why) in LAYOUTS.into_iter().zip([Unaligned::Stride, Unaligned::Start]) {
        for operand in [Operand::Weight, Operand::Y, Operand::A, Operand::B] {
            let shape = Shape { gaps: Gaps::with_unaligned(operand, why), ..shape(72, 40, layout, &[(3, 40, 8)], 0) };
            check::<f16>(fastest(), &shape);
            check::<f32>(fastest(), &shape);
        }
    }
}

#[test]
fn an_overflow_is_counted() {
    let rig = Rig::new(fastest());
    for layout in LAYOUTS {
        let shape = shape(16, 16, layout, &[(0, 16, 1)], 0);
        let mut layer = RandomLayer::<f16>::new(&mut Rng(5), &shape);
        let (rows, columns) = stored(layout, 16, 16);
        assert_eq!((rows, columns), (layer.weight.rows, layer.weight.cols));
        for (a, b, scale) in &mut layer.factors {
            a.data.fill(f16::from_f32(256.0));
            b.data.fill(f16::from_f32(0.0));
            b.view_mut().row_mut(7)[0] = f16::from_f32(256.0);
            *scale = 1.0;
        }
        let merged = run(&rig, &layer, &layer.weight, 1.0, true, true).unwrap();
        assert_eq!(merged.not_finite, 16, "a row of the product is 65536");
    }
}

#[test]
fn the_oracle_agrees_with_the_layer_s() {
    for layout in LAYOUTS {
        let shape = shape(24, 16, layout, &[(4, 12, 3)], 0);
        let layer = RandomLayer::<f32>::new(&mut Rng(6), &shape);
        let segments = layer.segments();
        let expected = reference::merged_weight(&layer.layer(&segments));
        let merged = run(&Rig::new(fastest()), &layer, &layer.weight, 1.0, true, true).unwrap();
        for row in 0..merged.weight.rows {
            for (column, got) in merged.weight.view().row(row).iter().enumerate() {
                assert_abs_diff_eq!(f64::from(*got), expected.at(row, column), epsilon = 1e-5);
            }
        }
    }
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    rerun_under_sanitizers(module_path!(), &[]);
}
