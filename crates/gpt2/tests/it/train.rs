//! Training on shapes without golden vectors: gradients against finite differences, and properties that gradients must
//! have.

use approx::assert_abs_diff_eq;
use fused_lora::Element;
use fused_lora::dropout::Dropout;
use fused_lora::lora::Activation;
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::train::{Gradients, Training};
use fused_lora_gpt2::{Adapters, Config, LoraMode, Model, Random, Tensor};
use half::bf16;

fn config() -> Config {
    Config {
        layers: 3,
        d_model: 24,
        heads: 3,
        d_ff: 40,
        vocabulary: 57,
        positions: 80,
        layer_norm_epsilon: 1e-5,
        activation: Activation::GeluNew,
        scale_attention: true,
        scale_attention_by_layer: false,
    }
}

/// A random model with weights so large that all of them affect the loss.
fn model<W: Element>(config: &Config) -> Model<W> {
    let mut model = Model::random(config, 3).unwrap();
    let mut random = Random::new(4);
    for layer in &mut model.layers {
        for linear in &mut layer.projections {
            linear.weight = random.normal(linear.weight.len(), 0.3).unwrap();
            linear.bias = random.normal(linear.bias.len(), 0.1).unwrap();
        }
        for norm in [&mut layer.ln_1, &mut layer.ln_2] {
            let [weight, bias] = [0.2, 0.1].map(|deviation| random.normal::<f32>(config.d_model, deviation).unwrap());
            norm.weight = weight.iter().map(|w| 1.0 + w).collect();
            norm.bias = bias.to_vec();
        }
    }
    model.wte = random.normal(model.wte.len(), 0.3).unwrap();
    model.wpe = random.normal(model.wpe.len(), 0.3).unwrap();
    model
}

const FC: Target = Target::Whole(Projection::Fc);
const ATTN_OUT: Target = Target::Whole(Projection::AttnOut);
const MLP_OUT: Target = Target::Whole(Projection::MlpOut);

/// LoRAs of different ranks on parts of the fused projection, two of them on one part, with both factors far from zero.
fn lora_on_all_projections<W: Element>(config: &Config) -> Adapters<W> {
    let targets = [(Target::Q, 3), (Target::V, 5), (ATTN_OUT, 1), (FC, 2), (MLP_OUT, 4), (Target::K, 1), (FC, 17)];
    lora_on(config, &targets)
}

fn lora_on<W: Element>(config: &Config, targets: &[(Target, usize)]) -> Adapters<W> {
    let mut lora = Lora::random(config, targets, 2.0, 5).unwrap();
    let mut random = Random::new(6);
    for factors in lora.layers.iter_mut().flatten().flatten() {
        factors.b = random.normal(factors.b.len(), 0.3).unwrap();
    }
    Adapters { lora: Some(lora), ..Adapters::default() }
}

fn tokens(config: &Config, batch: usize, sequence: usize) -> Vec<Vec<u32>> {
    let token = |b: usize, t: usize| (b * 31 + t * t * 7 + t * 3) % config.vocabulary;
    (0..batch).map(|b| (0..sequence).map(|t| token(b, t) as u32).collect()).collect()
}

fn slices(tokens: &[Vec<u32>]) -> Vec<&[u32]> {
    tokens.iter().map(Vec::as_slice).collect()
}

fn gradients<W: Element>(model: &Model<W>, adapters: &Adapters<W>, batch: usize, sequence: usize) -> (f64, Gradients) {
    gradients_with_dropout(model, adapters, batch, sequence, None)
}

fn gradients_with_dropout<W: Element>(
    model: &Model<W>,
    adapters: &Adapters<W>,
    batch: usize,
    sequence: usize,
    dropout: Option<Dropout>,
) -> (f64, Gradients) {
    let tokens = tokens(&model.config, batch, sequence);
    let mut training = Training::new(model, adapters, batch, sequence).unwrap();
    training.set_dropout(dropout);
    let loss = training.loss_and_gradients(adapters, &slices(&tokens)).unwrap();
    (loss, training.gradients().clone())
}

/// The adapters with every factor changed by `step` times its direction.
fn moved_adapters(adapters: &Adapters<f32>, directions: &[Vec<f32>], step: f32) -> Adapters<f32> {
    let mut adapters = adapters.clone();
    let mut directions = directions.iter();
    for factors in adapters.lora.as_mut().unwrap().layers.iter_mut().flatten().flatten() {
        for tensor in [&mut factors.a, &mut factors.b] {
            for (value, direction) in tensor.make_mut().unwrap().iter_mut().zip(directions.next().unwrap()) {
                *value += step * direction;
            }
        }
    }
    adapters
}

/// The slope of the loss by finite differences, (−f(2h) + 8f(h) − 8f(−h) + f(−2h)) / 12h. Its error is of order h⁴,
/// plus the rounding of the loss over h.
fn slope(
    model: &Model<f32>,
    adapters: &Adapters<f32>,
    dropout: Option<Dropout>,
    directions: &[Vec<f32>],
    h: f32,
    tokens: &[&[u32]],
) -> f64 {
    let mut training = Training::new(model, adapters, tokens.len(), tokens[0].len()).unwrap();
    let mut loss = |step: f32| {
        let moved_adapters = moved_adapters(adapters, directions, step);
        if dropout.is_none() {
            return training.loss(&moved_adapters, tokens).unwrap();
        }
        // `loss` runs without dropout.
        training.set_dropout(dropout);
        training.loss_and_gradients(&moved_adapters, tokens).unwrap()
    };
    (loss(-2.0 * h) - 8.0 * loss(-h) + 8.0 * loss(h) - loss(2.0 * h)) / (12.0 * f64::from(h))
}

/// Checks each tensor's gradient along a random direction, which involves all its elements, and along one axis. `noise`
/// bounds the rounding of the loss over `h`; `kinks` bounds the effect of ReLUs that switch within `h`, in units of the
/// root mean square of the tensor's gradient.
fn check_slopes(config: &Config, dropout: Option<Dropout>, h: f32, noise: f64, kinks: f64) {
    let (model, adapters) = (model(config), lora_on_all_projections(config));
    let (_, gradients) = gradients_with_dropout(&model, &adapters, 2, 40, dropout);
    let tokens = tokens(config, 2, 40);
    let flat: Vec<&[f32]> = gradients.iter().flat_map(|g| [&g.a[..], &g.b[..]]).collect();
    let mut random = Random::new(7);
    for (i, gradient) in flat.iter().enumerate() {
        let len = gradient.len();
        let dense = random.normal::<f32>(len, 1.0 / (len as f32).sqrt()).unwrap().to_vec();
        let mut axis = vec![0.0; len];
        axis[i * 13 % len] = 1.0;
        let size = (gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / len as f64).sqrt();
        for direction in [dense, axis] {
            let exact: f64 = direction.iter().zip(*gradient).map(|(d, g)| f64::from(*d) * f64::from(*g)).sum();
            let mut directions: Vec<Vec<f32>> = flat.iter().map(|g| vec![0.0; g.len()]).collect();
            directions[i] = direction;
            let got = slope(&model, &adapters, dropout, &directions, h, &slices(&tokens));
            let bound = noise + kinks * size;
            assert!(
                (got - exact).abs() <= bound,
                "tensor {i}: {got:e}, expected {exact:e} within {bound:e}, {config:?}"
            );
            // The bound must be small compared with the gradients.
            assert!(size > 4.0 * bound, "tensor {i}: {size:e} {bound:e}");
        }
    }
}

#[test]
fn gradients_are_slopes_of_the_loss() {
    check_slopes(&config(), None, 2e-2, 2e-5, 0.0);
    check_slopes(&Config { scale_attention: false, heads: 1, layers: 1, ..config() }, None, 1e-2, 4e-5, 0.0);
    check_slopes(&Config { scale_attention_by_layer: true, d_ff: 33, ..config() }, None, 2e-2, 2e-5, 0.0);
    check_slopes(&Config { activation: Activation::Relu, ..config() }, None, 2e-3, 1e-4, 0.1);
}

#[test]
fn gradients_under_dropout_are_slopes_of_the_loss_with_the_same_mask() {
    let dropout = Dropout::new(0.3, 11).unwrap().at(6);
    check_slopes(&Config { layers: 2, ..config() }, Some(dropout), 1e-2, 4e-5, 0.0);
}

#[test]
fn each_step_has_its_own_mask_and_evaluation_has_none() {
    let config = config();
    let (model, adapters) = (model::<f32>(&config), lora_on_all_projections(&config));
    let tokens = tokens(&config, 2, 30);
    let dropout = Dropout::new(0.25, 9).unwrap().at(3);
    let plain = gradients(&model, &adapters, 2, 30);
    let mut training = Training::new(&model, &adapters, 2, 30).unwrap();
    training.set_dropout(Some(dropout));
    let mut losses = vec![plain.0];
    for step in 3..6 {
        assert_eq!(training.dropout(), Some(dropout.at(step)));
        assert_eq!(training.loss(&adapters, &slices(&tokens)).unwrap(), plain.0, "evaluation drops nothing");
        let loss = training.loss_and_gradients(&adapters, &slices(&tokens)).unwrap();
        // A run that continues from here has the same masks.
        let again = gradients_with_dropout(&model, &adapters, 2, 30, Some(dropout.at(step)));
        assert_eq!((loss, training.gradients()), (again.0, &again.1));
        assert!(!losses.contains(&loss), "step {step} has a mask of its own");
        losses.push(loss);
    }
    // A failed call does not advance the dropout.
    training.loss_and_gradients(&adapters, &[]).unwrap_err();
    assert_eq!(training.dropout(), Some(dropout.at(6)));

    // A layer number in the dropout is replaced.
    let numbered = gradients_with_dropout(&model, &adapters, 2, 30, Some(dropout.for_layer(9)));
    assert_eq!(numbered, gradients_with_dropout(&model, &adapters, 2, 30, Some(dropout)));

    let zero = gradients_with_dropout(&model, &adapters, 2, 30, Some(Dropout::new(0.0, 9).unwrap()));
    assert_eq!(zero, plain);
}

/// The backward pass ends at the lowest adapter. Adding factors of scale 0 down to the first layer changes where it
/// ends, and must not change the bits of the other gradients.
#[test]
fn gradients_do_not_depend_on_where_the_pass_ends() {
    let config = config();
    let model = model(&config);
    let all = [(Target::Whole(Projection::Qkv), 3), (ATTN_OUT, 1), (FC, 2), (MLP_OUT, 4)];
    let all: Adapters<f32> = lora_on(&config, &all);
    for lowest in 0..4 * config.layers {
        let (mut cut, mut whole) = (all.clone(), all.clone());
        for place in 0..lowest {
            cut.lora.as_mut().unwrap().layers[place / 4][place % 4].clear();
            whole.lora.as_mut().unwrap().layers[place / 4][place % 4][0].scale = 0.0;
        }
        let (cut, whole) = (gradients(&model, &cut, 2, 30), gradients(&model, &whole, 2, 30));
        assert_eq!(cut.0, whole.0);
        for place in 0..4 * config.layers {
            let (cut, whole) = (&cut.1.layers[place / 4][place % 4], &whole.1.layers[place / 4][place % 4]);
            if place < lowest {
                assert!(cut.is_empty() && whole[0].a.iter().chain(&whole[0].b).all(|g| *g == 0.0));
            } else {
                assert!(cut == whole && cut[0].b.iter().any(|g| *g != 0.0), "{place} with {lowest} the lowest");
            }
        }
    }
}

/// Sequences are independent, and the loss of a batch is their mean, also if logits are computed in several parts.
#[test]
fn a_batch_is_the_mean_of_its_sequences() {
    let config = config();
    let (model, adapters) = (model::<f32>(&config), lora_on_all_projections(&config));
    let (loss, batch) = gradients(&model, &adapters, 4, 70);
    let mut one = Training::new(&model, &adapters, 1, 70).unwrap();
    let (mut losses, mut mean) = (0.0, Gradients::zeros(adapters.lora.as_ref().unwrap()));
    for sequence in tokens(&config, 4, 70) {
        losses += one.loss_and_gradients(&adapters, &[&sequence]).unwrap() / 4.0;
        for (mean, one) in mean.iter_mut().zip(one.gradients().iter()) {
            mean.a.iter_mut().zip(&one.a).for_each(|(m, g)| *m += g / 4.0);
            mean.b.iter_mut().zip(&one.b).for_each(|(m, g)| *m += g / 4.0);
        }
    }
    assert_abs_diff_eq!(loss, losses, epsilon = 1e-6);
    for (batch, mean) in batch.iter().zip(mean.iter()) {
        for (batch, mean) in [(&batch.a, &mean.a), (&batch.b, &mean.b)] {
            let largest = mean.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            assert_abs_diff_eq!(batch[..], mean[..], epsilon = 1e-5 * largest);
        }
    }
}

#[test]
fn the_same_bits_from_run_to_run_and_on_any_number_of_threads() {
    let config = config();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (model, adapters) = (model::<f32>(&config), lora_on_all_projections(&config));
            gradients(&model, &adapters, 3, 50)
        })
    };
    let first = run(2);
    for threads in [1, 2, 2, 3, 5] {
        let again = run(threads);
        assert_eq!(first.0.to_bits(), again.0.to_bits());
        assert!(first.1 == again.1, "{threads} threads");
    }
}

#[test]
fn a_batch_does_not_depend_on_the_batch_before() {
    let config = config();
    let (model, adapters) = (model::<f32>(&config), lora_on_all_projections(&config));
    let mut training = Training::new(&model, &adapters, 2, 30).unwrap();
    let other: Vec<Vec<u32>> =
        tokens(&config, 2, 30).iter().map(|s| s.iter().map(|t| (t + 5) % 57).collect()).collect();
    training.loss_and_gradients(&adapters, &slices(&other)).unwrap();
    let loss = training.loss_and_gradients(&adapters, &slices(&tokens(&config, 2, 30))).unwrap();
    let fresh = gradients(&model, &adapters, 2, 30);
    assert_eq!((loss, training.gradients()), (fresh.0, &fresh.1));
    // Other adapters of the same shapes may be used.
    let mut others = adapters.clone();
    others.mode = LoraMode::Sequential;
    training.loss_and_gradients(&others, &slices(&tokens(&config, 2, 30))).unwrap();
    assert_eq!(training.gradients(), &fresh.1);
}

/// Weights stored in 16 bits give the gradients of the same weights in `f32`, up to rounding.
#[test]
fn weights_stored_in_16_bits() {
    let config = config();
    let (narrow, adapters) = (model::<bf16>(&config), lora_on_all_projections::<bf16>(&config));
    let wide = |t: &Tensor<bf16>| Tensor::from_slice(&t.iter().map(|v| v.to_f32()).collect::<Vec<f32>>()).unwrap();
    let mut model = model::<f32>(&config);
    (model.wte, model.wpe) = (wide(&narrow.wte), wide(&narrow.wpe));
    for (to, from) in model.layers.iter_mut().zip(&narrow.layers) {
        for (to, from) in to.projections.iter_mut().zip(&from.projections) {
            (to.weight, to.bias) = (wide(&from.weight), wide(&from.bias));
        }
    }
    let mut same = lora_on_all_projections::<f32>(&config);
    let factors = same.lora.as_mut().unwrap().layers.iter_mut().flatten().flatten();
    for (to, from) in factors.zip(adapters.lora.as_ref().unwrap().layers.iter().flatten().flatten()) {
        (to.a, to.b) = (wide(&from.a), wide(&from.b));
    }
    let (loss, got) = gradients(&narrow, &adapters, 2, 30);
    let (expected_loss, expected) = gradients(&model, &same, 2, 30);
    assert_abs_diff_eq!(loss, expected_loss, epsilon = 1e-6);
    for (got, expected) in got.iter().zip(expected.iter()) {
        for (got, expected) in [(&got.a, &expected.a), (&got.b, &expected.b)] {
            let largest = expected.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            assert_abs_diff_eq!(got[..], expected[..], epsilon = 2e-5 * largest);
        }
    }
}
