//! AdamW against the float64 reference, and what a step must leave alone.
#![allow(clippy::unwrap_used)]

use crate::common::Rng;
use crate::common::adamw::{State, draw, exact, step_exactly};
use approx::assert_relative_eq;
use fused_lora::optim::{AdamW, Factor, Skip, Step};
use fused_lora::{Element, Error};
use half::{bf16, f16};

/// Two adapters' factors; the second is longer than what one task takes.
const TENSORS: [(Factor, usize); 4] = [(Factor::A, 37), (Factor::B, 64), (Factor::A, 40_000), (Factor::B, 1)];

/// Some steps beside the reference. Each adds two roundings of p and a relative error of a few u to an update of at
/// most lr·(1 − β₁)/√(1 − β₂) for these gradients, plus what cancels in m: 16·lr·u in all.
fn check<W: Element>(config: AdamW, sizes: &[f64]) {
    let mut rng = Rng(5);
    let mut state = State::<W>::random(&mut rng, &TENSORS);
    let mut exact = exact(&state, &TENSORS);
    let mut worst = 0.0f64;
    for (i, &size) in sizes.iter().enumerate() {
        let gradients = draw(&mut rng, &TENSORS, size);
        let outcome = state.step_on_cpu(&config, i as u64 + 1, &TENSORS, &gradients).unwrap();
        let norm = step_exactly(&config, i + 1, &mut exact, &gradients);
        assert_relative_eq!(outcome.norm, norm, max_relative = 1e-12);
        assert_eq!(outcome.skipped, None);
        let u = (i + 1) as f64 * 2f64.powi(-24);
        for ((values, stored), exact) in state.values.iter().zip(&state.stored).zip(&exact) {
            let lr = config.rate(exact.factor);
            for ((value, stored), exact) in values.iter().zip(stored).zip(&exact.value) {
                let (error, bound) = ((f64::from(*value) - exact).abs(), u * (2.0 * (1.0 + exact.abs()) + 16.0 * lr));
                assert!(error <= bound, "step {i}: {value} {exact}, off by {error:e} > {bound:e}, {config:?}");
                worst = worst.max(error / bound);
                assert_eq!(*stored, W::from_f64(f64::from(*value)), "the stored copy is the rounded value");
            }
        }
    }
    // A bound that nothing comes near would let mistakes pass.
    assert!(worst > 0.02, "the bound is loose: {worst}");
}

#[test]
fn steps_agree_with_the_reference() {
    let plain = AdamW { lr: 1e-2, ..AdamW::default() };
    check::<f32>(plain, &[1.0; 20]);
    check::<f16>(AdamW { lora_plus_ratio: 16.0, ..plain }, &[1.0; 8]);
    check::<bf16>(AdamW { weight_decay: 0.0, ..plain }, &[1.0; 8]);
    check::<f32>(AdamW { max_norm: Some(1.0), ..plain }, &[1.0, 1e3, 1e-4, 1.0]);
    check::<f32>(AdamW { betas: (0.0, 0.0), ..plain }, &[1.0; 4]);
    check::<f32>(AdamW { betas: (0.5, 0.9), eps: 1e-3, weight_decay: 1.0, ..plain }, &[1.0, 1e-5, 10.0]);
}

/// The first step of AdamW moves every parameter by its learning rate, whatever the gradient: m̂ = g, v̂ = g².
#[test]
fn bias_correction_and_the_ratio_of_lora_plus() {
    let config = AdamW { lr: 1e-3, weight_decay: 0.0, lora_plus_ratio: 16.0, ..AdamW::default() };
    let mut rng = Rng(6);
    let mut state = State::<f32>::random(&mut rng, &TENSORS);
    let before = state.values.clone();
    let gradients: Vec<Vec<f32>> = TENSORS.iter().map(|t| vec![3.0; t.1]).collect();
    state.step_on_cpu(&config, 1, &TENSORS, &gradients).unwrap();
    for ((before, after), (factor, _)) in before.iter().zip(&state.values).zip(TENSORS) {
        let lr = if factor == Factor::A { 1e-3 } else { 16e-3 };
        assert!(before.iter().zip(after).all(|(b, a)| (b - a - lr).abs() < 2e-7), "{factor:?}");
    }
}

/// With no gradient the decay is all that happens, by lr·λ of the parameter and not through the moments.
#[test]
fn weight_decay_is_decoupled() {
    let config = AdamW { lr: 0.5, weight_decay: 0.5, lora_plus_ratio: 0.5, ..AdamW::default() };
    let mut state = State::<f32>::random(&mut Rng(7), &TENSORS);
    let before = state.values.clone();
    let zeros: Vec<Vec<f32>> = TENSORS.iter().map(|t| vec![0.0; t.1]).collect();
    let outcome = state.step_on_cpu(&config, 1, &TENSORS, &zeros).unwrap();
    assert_eq!(outcome, Step { norm: 0.0, clipped_by: 1.0, skipped: None });
    for ((before, after), (factor, _)) in before.iter().zip(&state.values).zip(TENSORS) {
        let keeps = if factor == Factor::A { 0.75 } else { 0.875 };
        assert!(before.iter().zip(after).all(|(b, a)| keeps * b == *a), "{factor:?}");
    }
    assert!(state.first.iter().chain(&state.second).flatten().all(|m| *m == 0.0));
}

#[test]
fn clipping_takes_the_norm_of_all_gradients() {
    let config = AdamW { max_norm: Some(0.5), ..AdamW::default() };
    let mut gradients: Vec<Vec<f32>> = TENSORS.iter().map(|t| vec![0.0; t.1]).collect();
    (gradients[0][3], gradients[2][39_999]) = (3.0, -4.0);
    let mut state = State::<f32>::random(&mut Rng(8), &TENSORS);
    let outcome = state.step_on_cpu(&config, 1, &TENSORS, &gradients).unwrap();
    assert_eq!(outcome.norm, 5.0);
    assert_relative_eq!(outcome.clipped_by, 0.1, max_relative = 1e-5);
    // m = 0.1·g after one step.
    assert_relative_eq!(state.first[0][3], 0.03, max_relative = 1e-6);
    assert_relative_eq!(state.first[2][39_999], -0.04, max_relative = 1e-6);

    let below = AdamW { max_norm: Some(5.1), ..config };
    assert_eq!(state.step_on_cpu(&below, 2, &TENSORS, &gradients).unwrap().clipped_by, 1.0);
}

#[test]
fn a_step_without_finite_gradients_changes_nothing() {
    let mut rng = Rng(9);
    let mut state = State::<bf16>::random(&mut rng, &TENSORS);
    state.step_on_cpu(&AdamW::default(), 1, &TENSORS, &draw(&mut rng, &TENSORS, 1.0)).unwrap();
    let before = state.bits();
    for (bad, skip) in [
        (f32::NAN, Skip::NonFinite),
        (f32::INFINITY, Skip::NonFinite),
        (f32::NEG_INFINITY, Skip::NonFinite),
        (2e19, Skip::TooLarge),
        (-f32::MAX, Skip::TooLarge),
    ] {
        for (tensor, at) in [(0, 0), (2, 16_384), (2, 39_999), (3, 0)] {
            let mut gradients = draw(&mut rng, &TENSORS, 1.0);
            gradients[tensor][at] = bad;
            let outcome = state.step_on_cpu(&AdamW::default(), 2, &TENSORS, &gradients).unwrap();
            assert_eq!((outcome.skipped, outcome.clipped_by), (Some(skip), 1.0), "{bad} at {tensor}, {at}");
            assert_eq!(outcome.norm.is_finite(), bad.is_finite());
            assert!(state.bits() == before, "{bad} at {tensor}, {at}");
        }
    }
    // Clipping brings what is only large back into range.
    let mut gradients = draw(&mut rng, &TENSORS, 1.0);
    gradients[1][5] = 1e30;
    let outcome =
        state.step_on_cpu(&AdamW { max_norm: Some(1.0), ..AdamW::default() }, 2, &TENSORS, &gradients).unwrap();
    assert_eq!(outcome.skipped, None);
    assert!(state.values.iter().chain(&state.second).flatten().all(|v| v.is_finite()));
}

#[test]
fn threads_do_not_change_a_bit() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut rng = Rng(10);
            let mut state = State::<f16>::random(&mut rng, &TENSORS);
            let config = AdamW { max_norm: Some(1.0), ..AdamW::default() };
            let norms: Vec<u64> = (1..=3)
                .map(|step| {
                    state.step_on_cpu(&config, step, &TENSORS, &draw(&mut rng, &TENSORS, 1.0)).unwrap().norm.to_bits()
                })
                .collect();
            (state.bits(), norms)
        })
    };
    assert!(run(1) == run(2) && run(2) == run(3));
}

#[test]
fn each_violated_precondition_has_its_error() {
    let good = AdamW::default();
    let cases = [
        ("learning rate", AdamW { lr: -1e-3, ..good }),
        ("learning rate", AdamW { lr: f64::NAN, ..good }),
        ("learning rate", AdamW { lr: 1e300, ..good }),
        ("beta 1", AdamW { betas: (1.0, 0.9), ..good }),
        ("beta 2", AdamW { betas: (0.9, -0.1), ..good }),
        ("beta 2", AdamW { betas: (0.9, f64::NAN), ..good }),
        ("epsilon", AdamW { eps: 0.0, ..good }),
        ("epsilon", AdamW { eps: 1e-60, ..good }),
        ("weight decay", AdamW { weight_decay: f64::INFINITY, ..good }),
        ("LoRA+ ratio", AdamW { lora_plus_ratio: 0.0, ..good }),
        ("LoRA+ ratio", AdamW { lr: 1e10, lora_plus_ratio: 1e30, weight_decay: 0.0, ..good }),
        ("weight decay", AdamW { lr: 1e20, weight_decay: 1e20, ..good }),
        ("largest norm", AdamW { max_norm: Some(0.0), ..good }),
        ("largest norm", AdamW { max_norm: Some(f64::INFINITY), ..good }),
    ];
    let mut state = State::<f32>::random(&mut Rng(11), &TENSORS);
    let mut gradients = draw(&mut Rng(12), &TENSORS, 1.0);
    let before = state.bits();
    for (expected, config) in cases {
        match state.step_on_cpu(&config, 1, &TENSORS, &gradients) {
            Err(Error::HyperparameterOutOfRange { name, .. }) => assert_eq!(name, expected),
            other => panic!("{config:?}: {other:?}"),
        }
    }
    let zeroth = state.step_on_cpu(&good, 0, &TENSORS, &gradients);
    assert!(matches!(zeroth, Err(Error::HyperparameterOutOfRange { name: "step", .. })), "{zeroth:?}");
    gradients[1].pop();
    let short = Error::LengthMismatch { operand: "the gradient", expected: 64, actual: 63 };
    assert_eq!(state.step_on_cpu(&good, 1, &TENSORS, &gradients), Err(short));
    assert!(state.bits() == before, "a refused step wrote something");
}
