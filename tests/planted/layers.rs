//! Runs of layers that the scenarios are made of: launches under every schedule, compared with the reference.

use fused_lora::dropout::Dropout;
use fused_lora::lora::{Activation, Layout};
use fused_lora::reference::{self, Expected, Matrix64};
use fused_lora::{ComputePath, Element};
use half::f16;

use super::harness::{Caught, first_of, outcome_of};
use crate::common::decode::{Decode, Options};
use crate::common::forward::{Forward, expected, expected_in_parts, expected_in_tf32, on_the_way_out};
use crate::common::forward_check::t_fault;
use crate::common::ladder::{Ladder, Step};
use crate::common::rig::{Failure, Rig};
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, Unaligned, merge, shape, steps};

pub(super) fn decode_on_cuda_cores(rig: &Rig, layout: Layout) -> Caught {
    let odd_b = Gaps::with_unaligned(Operand::B, Unaligned::Stride);
    first_of([
        &|| decode_and_finish(rig, &shape(2, 64, 44, layout, &[(0, 44, 5), (0, 44, 9)])),
        &|| decode_and_finish(rig, &Shape { gaps: odd_b, ..shape(2, 64, 44, layout, &[(0, 44, 8)]) }),
        &|| decode_and_finish(rig, &shape(1, 2048 + 256, 64, layout, &[(0, 64, 12)])),
    ])
}

/// Runs a layer with an activation and a residual.
fn decode_and_finish(rig: &Rig, shape: &Shape) -> Caught {
    let added = residual::<f32>(shape);
    let activation = Activation::GeluNew;
    decode_with(rig, shape, &Options { activation, residual: Some(&added), multiprocessors: 3, ..Options::default() })
}

pub(super) fn decode<T: Element>(rig: &Rig, shape: &Shape, multiprocessors: usize) -> Caught {
    decode_with::<T>(rig, shape, &Options { multiprocessors, ..Options::default() })
}

pub(super) fn decode_with<T: Element>(rig: &Rig, shape: &Shape, options: &Options<'_, T>) -> Caught {
    let (random, x) = random_layer::<T>(shape);
    let segments = random.segments();
    let expected = reference::forward(&random.layer(&segments), x.view());
    let expected = on_the_way_out(expected, &random, options.activation, options.residual);
    let decode = Decode::new(rig, &random, &x, options);
    compare_with_reference(rig, shape, &expected, || decode.run().map(|(y, _)| y))
}

fn random_layer<T: Element>(shape: &Shape) -> (RandomLayer<T>, Buffer<T>) {
    let mut rng = Rng(7);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let x = shape.random::<T>(&mut rng, Operand::X, shape.tokens, shape.d_in);
    (random, x)
}

fn residual<T: Element>(shape: &Shape) -> Buffer<T> {
    shape.random(&mut Rng(10), Operand::Residual, shape.tokens, shape.d_out)
}

/// One operand is not aligned and all others are, each in turn; without those whose alignment decides the choice of kernel.
pub(super) fn forward_with_one_unaligned<T: Element>(rig: &Rig, shape: &Shape, capability: (u32, u32)) -> Caught {
    let unaligned = [
        (Operand::B, Unaligned::Stride),
        (Operand::Bias, Unaligned::Start),
        (Operand::Y, Unaligned::Stride),
        (Operand::Residual, Unaligned::Start),
    ];
    let caught = unaligned.map(|(operand, why)| {
        forward::<T>(rig, &Shape { gaps: Gaps::with_unaligned(operand, why), ..shape.clone() }, 1, capability)
    });
    caught.into_iter().find(|&caught| caught != Caught::Nothing).unwrap_or(Caught::Nothing)
}

/// Runs a layer on a workspace whose flags are zeros before each launch, since launches of other plans used it until then.
pub(super) fn forward_after_other_plans(rig: &Rig, shape: &Shape, capability: (u32, u32)) -> Caught {
    let (random, x) = random_layer::<f16>(shape);
    let compute_capability = Some(capability);
    let options = Options { multiprocessors: 1, compute_capability, ..Options::default() };
    let expected = expected(&random, &x, Activation::Identity, None, None);
    let forward = Forward::new(rig, &random, &x, &options);
    compare_with_reference(rig, shape, &expected, || {
        forward.clear_flags();
        forward.run().map(|outputs| outputs.y)
    })
}

pub(super) fn forward<T: Element>(rig: &Rig, shape: &Shape, multiprocessors: usize, capability: (u32, u32)) -> Caught {
    let options = Options { multiprocessors, compute_capability: Some(capability), ..Options::default() };
    forward_with::<T>(rig, shape, &options)
}

pub(super) fn forward_with_dropout<T: Element>(
    rig: &Rig,
    shape: &Shape,
    multiprocessors: usize,
    capability: (u32, u32),
) -> Caught {
    let dropout = Dropout::new(0.4, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(3).at(5);
    let compute_capability = Some(capability);
    let options = Options { multiprocessors, compute_capability, dropout: Some(dropout), ..Options::default() };
    forward_with::<T>(rig, shape, &options)
}

/// Three CTAs, the last with warps without a column; five tickets; a ring that goes round.
pub(super) fn ladder(rig: &Rig, step: Step) -> Caught {
    let shape = Shape { bias: false, ..shape(3, 1156, 20, Layout::OutIn, &[(0, 20, 33)]) };
    let (random, x) = random_layer::<f32>(&shape);
    let segments = random.segments();
    let expected = reference::forward(&random.layer(&segments), x.view());
    let ladder = Ladder::new(rig, step, &random, &x);
    compare_with_reference(rig, &shape, &expected, || ladder.run().map(|(y, _)| y))
}

/// Runs a layer whose factors are in a slot.
pub(super) fn forward_with_slot(rig: &Rig, shape: &Shape, capability: (u32, u32)) -> Caught {
    let (random, x) = random_layer::<f16>(shape);
    let segments = random.segments();
    let expected = reference::forward_through(&random.layer(&segments), x.view(), None, f16::DTYPE);
    let compute_capability = Some(capability);
    let options = Options { slot: Some(20), multiprocessors: 1, compute_capability, ..Options::default() };
    let forward = Forward::new(rig, &random, &x, &options);
    compare_with_reference(rig, shape, &expected, || forward.run().map(|outputs| outputs.y))
}

/// Runs a layer whose shrink is fused, with an activation and a residual.
pub(super) fn forward_with_fused_shrink(rig: &Rig, shape: &Shape, multiprocessors: usize) -> Caught {
    let (random, x) = random_layer::<f16>(shape);
    let added = residual::<f16>(shape);
    let options = Options {
        activation: Activation::GeluNew,
        residual: Some(&added),
        serving: true,
        multiprocessors,
        compute_capability: Some((9, 0)),
        ..Options::default()
    };
    let forward = Forward::new(rig, &random, &x, &options);
    assert!(forward.plan.launch.kernel.ends_with('r'), "{}", forward.plan);
    let expected = expected_in_parts(&random, &x, options.activation, options.residual, forward.plan.split_depth);
    let caught = compare_with_reference(rig, shape, &expected, || forward.run().map(|outputs| outputs.y));
    if caught != Caught::Nothing {
        return caught;
    }
    check_columns_without_an_adapter(rig, shape, &random, &x, &forward, &options)
}

pub(super) fn tf32(rig: &Rig, shape: &Shape) -> Caught {
    let options = Options { path: ComputePath::Tf32, multiprocessors: 1, ..Options::default() };
    forward_with::<f32>(rig, shape, &options)
}

/// Runs a layer with an activation and a residual, checks T, and that the columns without an adapter are those of the base
/// product.
fn forward_with<T: Element>(rig: &Rig, shape: &Shape, options: &Options<'_, T>) -> Caught {
    let (random, x) = random_layer::<T>(shape);
    let added = residual::<T>(shape);
    let options = Options { activation: Activation::GeluNew, residual: Some(&added), t_out: true, ..*options };
    let (dropout, in_tf32) = (options.dropout.as_ref(), options.path == ComputePath::Tf32);
    let of_path = if in_tf32 { expected_in_tf32::<T> } else { expected::<T> };
    let expected = of_path(&random, &x, options.activation, options.residual, dropout);
    let forward = Forward::new(rig, &random, &x, &options);
    let caught = outcome_of(rig, || {
        let outputs = forward.run()?;
        let right =
            is_close(shape, &expected, &outputs.y) && t_fault(&random, &x, dropout, &outputs.t, in_tf32).is_none();
        Ok((right, (outputs.y.elements(), outputs.t.elements())))
    });
    if caught != Caught::Nothing {
        return caught;
    }
    check_columns_without_an_adapter(rig, shape, &random, &x, &forward, &options)
}

/// Checks that columns without an adapter are those of the base product.
fn check_columns_without_an_adapter<T: Element>(
    rig: &Rig,
    shape: &Shape,
    random: &RandomLayer<T>,
    x: &Buffer<T>,
    forward: &Forward<'_, T>,
    options: &Options<'_, T>,
) -> Caught {
    let base = Forward::new(rig, random, x, &Options { base_only: true, ..*options });
    let (fused, base) = match (forward.run(), base.run()) {
        (Ok(fused), Ok(base)) => (fused, base),
        (Err(Failure::Fault(fault, _)), _) | (_, Err(Failure::Fault(fault, _))) => return Caught::By(fault),
        // A launch that is refused says nothing about the bug.
        (Err(refused), _) | (_, Err(refused)) => panic!("{refused}"),
    };
    let outside = |column: &usize| !shape.segments.iter().any(|&(begin, end, _)| (begin..end).contains(column));
    let same = (0..shape.tokens).all(|row| {
        let (fused, base) = (fused.y.view(), base.y.view());
        (0..shape.d_out).filter(outside).all(|column| fused.row(row)[column] == base.row(row)[column])
    });
    if same { Caught::Nothing } else { Caught::WrongResult }
}

/// Runs the launch of a layer's dx. With dropout it is added to what is there.
pub(super) fn dx<T: Element>(
    rig: &Rig,
    shape: &Shape,
    multiprocessors: usize,
    capability: (u32, u32),
    drops: bool,
) -> Caught {
    let (random, _) = random_layer::<T>(shape);
    let dy = shape.random::<T>(&mut Rng(9), Operand::X, shape.tokens, shape.d_out);
    let old = shape.random::<T>(&mut Rng(11), Operand::Y, shape.tokens, shape.d_in);
    let residual = drops.then_some(&old);
    let dropout = drops.then(|| Dropout::new(0.4, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(3).at(5));
    let segments = random.segments();
    let layer = random.layer(&segments);
    let mut expected = reference::input_gradient_through(&layer, dy.view(), dropout.as_ref(), T::DTYPE);
    if let Some(old) = residual {
        let old = Matrix64::from_view(old.view());
        expected.value.add_at(0, 1.0, &old);
        expected.magnitude.add_at(0, 1.0, &old.abs());
    }
    let compute_capability = Some(capability);
    let options = Options { multiprocessors, compute_capability, dropout, residual, ..Options::default() };
    let launch = Forward::input_gradient(rig, &random, &dy, &options, true);
    compare_with_reference(rig, shape, &expected, || launch.run().map(|outputs| outputs.y))
}

/// Runs the launch of dx with one operand that is not aligned, A or B in turn.
pub(super) fn dx_with_one_unaligned<T: Element>(rig: &Rig, shape: &Shape, capability: (u32, u32)) -> Caught {
    let run = |operand| {
        let gaps = Gaps::with_unaligned(operand, Unaligned::Stride);
        dx::<T>(rig, &Shape { gaps, ..shape.clone() }, 1, capability, true)
    };
    first_of([&|| run(Operand::A), &|| run(Operand::B)])
}

/// Compares a launch's result with the reference under every schedule.
fn compare_with_reference<T: Element>(
    rig: &Rig,
    shape: &Shape,
    expected: &Expected,
    run: impl Fn() -> Result<Buffer<T>, Failure>,
) -> Caught {
    outcome_of(rig, || {
        let y = run()?;
        Ok((is_close(shape, expected, &y), y.elements()))
    })
}

/// Whether every element is within its bound and nothing is written between rows.
fn is_close<T: Element>(shape: &Shape, expected: &Expected, y: &Buffer<T>) -> bool {
    let near = |(i, got): (usize, &T)| {
        (f64::from(got.to_f32()) - expected.value.data[i]).abs() <= expected.bound(i, T::DTYPE, steps(shape))
    };
    y.elements().iter().enumerate().all(near) && y.gaps_untouched()
}

pub(super) fn merge_layers(rig: &Rig, layout: Layout) -> Caught {
    let odd_target = Gaps::with_unaligned(Operand::Y, Unaligned::Stride);
    first_of([
        &|| merge_layer(rig, &shape(1, 72, 200, layout, &[(3, 70, 40), (133, 200, 5)]), true),
        &|| merge_layer(rig, &shape(1, 35, 67, layout, &[(0, 67, 3)]), true),
        &|| merge_layer(rig, &Shape { gaps: odd_target, ..shape(1, 72, 64, layout, &[(0, 40, 5)]) }, false),
    ])
}

fn merge_layer(rig: &Rig, shape: &Shape, in_place: bool) -> Caught {
    let mut random = RandomLayer::<f32>::new(&mut Rng(8), shape);
    // Adding 0 to -0.0 changes its sign.
    random.weight.data.iter_mut().step_by(5).filter(|w| !w.is_nan()).for_each(|w| *w = -0.0);
    outcome_of(rig, || {
        let merged = merge::run(rig, &random, &random.weight, 1.0, in_place, true)?;
        // Each element has one order of additions. It changes neither the bits nor the report.
        Ok((merge::fault(&random, &random.weight, 1.0, in_place, true, &merged).is_none(), ()))
    })
}
