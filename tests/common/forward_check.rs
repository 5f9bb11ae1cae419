//! Checks a layer's forward launch against float64 under every schedule, and that columns without an adapter are those
//! of the base product.

use fused_lora::dropout::Dropout;
use fused_lora::plan::lora::ForwardPlan;
use fused_lora::reference::{self, Matrix64};
use fused_lora::{ComputePath, DType, Element};
use fused_lora_emulator::Completion;

use super::decode::Options;
use super::forward::{Forward, Outputs, expected, expected_in_parts, expected_in_tf32};
use super::rig::{Rig, SCHEDULES, schedules};
use super::{Buffer, Operand, RandomLayer, Rng, Shape, steps};

/// The compute capabilities to plan for: one whose kernels use mma.sync, and one whose kernels use wgmma.
pub const CAPABILITIES: [(u32, u32); 2] = [(8, 0), (9, 0)];

pub fn options<T>(multiprocessors: usize, capability: (u32, u32)) -> Options<'static, T> {
    let compute_capability = Some(capability);
    Options { multiprocessors, path: ComputePath::Matrix, compute_capability, ..Options::default() }
}

/// Runs a shape under the test's schedules: each result is within its bounds, and all have the same bits.
pub fn check<T: Element>(rig: &Rig, seed: u64, shape: &Shape, options: &Options<'_, T>, residual: bool) -> ForwardPlan {
    let mut rng = Rng(seed);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let x = shape.random::<T>(&mut rng, Operand::X, shape.tokens, shape.d_in);
    let added = residual.then(|| shape.random::<T>(&mut rng, Operand::Residual, shape.tokens, shape.d_out));
    let in_tf32 = options.path == ComputePath::Tf32;
    // If factors are in a slot, T has more columns than the adapter has.
    let t_out = options.slot.is_none() && !options.serving;
    let options = Options { residual: added.as_ref(), t_out, ..*options };
    let forward = Forward::new(rig, &random, &x, &options);
    let expected = if options.serving {
        expected_in_parts(&random, &x, options.activation, added.as_ref(), forward.plan.split_depth)
    } else {
        let expected = if in_tf32 { expected_in_tf32::<T> } else { expected::<T> };
        expected(&random, &x, options.activation, added.as_ref(), options.dropout.as_ref())
    };
    let mut first: Option<Outputs<T>> = None;
    for &(schedule, resident) in schedules(&SCHEDULES) {
        let what = format!("{}, seed {seed}, {shape:?}, {schedule:?}, {}", T::DTYPE, forward.plan);
        rig.set_schedule(schedule, Completion::Late, resident);
        let outputs = forward.run().unwrap_or_else(|error| panic!("{what}: {error}"));
        expected.assert_close(outputs.y.view(), steps(shape), &what);
        outputs.y.assert_gaps_untouched();
        if let Some(first) = &first {
            for row in 0..shape.tokens {
                assert_eq!(first.y.view().row(row), outputs.y.view().row(row), "row {row} depends: {what}");
                let same = !options.t_out || first.t.view().row(row) == outputs.t.view().row(row);
                assert!(same, "row {row} of T depends: {what}");
            }
        } else if options.t_out {
            assert_eq!(t_fault(&random, &x, options.dropout.as_ref(), &outputs.t, in_tf32), None, "{what}");
        }
        first.get_or_insert(outputs);
    }
    forward.plan.clone()
}

/// Checks T as the backward pass gets it: the segments' columns one after the other, without scale and padding. Returns what
/// is wrong.
pub fn t_fault<T: Element>(
    random: &RandomLayer<T>,
    x: &Buffer<T>,
    dropout: Option<&Dropout>,
    t: &Buffer<T>,
    in_tf32: bool,
) -> Option<String> {
    // TF32 rounds both operands of T's products.
    let rounded = if in_tf32 { 2.01 * reference::TF32_ROUNDOFF } else { 0.0 };
    let x = reference::drop_out(&Matrix64::from_view(x.view()), dropout);
    let mut begin = 0;
    for (a, ..) in &random.factors {
        let a = Matrix64::from_view(a.view());
        let (value, magnitude) = (x.matmul(&a.t()), x.abs().matmul(&a.abs().t()));
        for row in 0..t.rows {
            for j in 0..a.rows {
                let (got, exact) = (f64::from(t.view().row(row)[begin + j].to_f32()), value.at(row, j));
                let gamma = 2.0 * (x.cols + 4) as f64 * DType::F32.unit_roundoff();
                let bound = T::DTYPE.unit_roundoff() * exact.abs() * 1.01
                    + T::DTYPE.smallest_step()
                    + (gamma + rounded) * magnitude.at(row, j);
                let error = (got - exact).abs();
                if error.is_nan() || error > bound {
                    return Some(format!("T[{row}, {begin} + {j}] is {got}, expected {exact}"));
                }
            }
        }
        begin += a.rows;
    }
    (!t.gaps_untouched()).then(|| "a gap after a row of T was written".to_owned())
}

/// Checks the columns outside a shape's one segment. With `scale` squared as its factor, T may overflow,
/// which must not change these columns.
pub fn check_columns_without_an_adapter<T: Element>(rig: &Rig, shape: &Shape, scale: f32, options: &Options<'_, T>) {
    let (begin, end, _) = shape.segments[0];
    let mut rng = Rng(51);
    let mut random = RandomLayer::<T>::new(&mut rng, shape);
    random.factors[0].2 *= scale * scale;
    let x = Buffer::random(&mut rng, shape.tokens, shape.d_in, 0);
    let fused = Forward::new(rig, &random, &x, options).run().unwrap().y;
    let base = Forward::new(rig, &random, &x, &Options { base_only: true, ..*options }).run().unwrap().y;
    for row in 0..shape.tokens {
        let (fused, base) = (fused.view(), base.view());
        assert_eq!(fused.row(row)[..begin], base.row(row)[..begin]);
        assert_eq!(fused.row(row)[end..], base.row(row)[end..]);
        assert_ne!(fused.row(row)[begin..end], base.row(row)[begin..end]);
    }
}
