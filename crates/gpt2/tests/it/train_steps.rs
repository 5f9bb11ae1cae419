//! Training steps: the loss they reach, what they leave unchanged, and calls that are refused.

use crate::common::{config, golden, model};
use approx::assert_abs_diff_eq;
use fused_lora::Element;
use fused_lora_gpt2::adapter::bottleneck::{Bottleneck, Kind};
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::train::{AdamW, Optimizer, Skip, Training};
use fused_lora_gpt2::{Adapters, Config, Error, Forward, Model, merge_folder, peft};
use half::{bf16, f16};

const QKV: Target = Target::Whole(Projection::Qkv);
const MLP_OUT: Target = Target::Whole(Projection::MlpOut);

fn untrained<W: Element>(config: &Config, targets: &[(Target, usize)]) -> Adapters<W> {
    Adapters { lora: Some(Lora::untrained(config, targets, 16.0, 1).unwrap()), ..Adapters::default() }
}

/// Repeats a period of 5 tokens; every sequence starts at another position in it.
fn repeating(batch: usize, sequence: usize) -> Vec<Vec<u32>> {
    const PERIOD: [u32; 5] = [17, 3, 99, 42, 8];
    (0..batch).map(|b| (0..sequence).map(|t| PERIOD[(b + t) % 5]).collect()).collect()
}

fn slices(tokens: &[Vec<u32>]) -> Vec<&[u32]> {
    tokens.iter().map(Vec::as_slice).collect()
}

fn bits<W: Element>(adapters: &Adapters<W>) -> Vec<u32> {
    let factors = adapters.lora.as_ref().unwrap().layers.iter().flatten().flatten();
    factors.flat_map(|f| f.a.iter().chain(&f.b[..]).map(|v| v.to_f32().to_bits()).collect::<Vec<_>>()).collect()
}

/// Trains an untrained LoRA (B = 0) on the sequence. Returns the loss of each step, and the LoRA.
fn train<W: Element>(model: &Model<W>, config: AdamW, steps: usize) -> (Vec<f64>, Adapters<W>) {
    let mut adapters = untrained(&model.config, &[(QKV, 4), (MLP_OUT, 4)]);
    let mut training = Training::new(model, &adapters, 2, 24).unwrap();
    let mut optimizer = Optimizer::new(&adapters, config).unwrap();
    let tokens = repeating(2, 24);
    let losses = (0..steps).map(|_| {
        let loss = training.loss_and_gradients(&adapters, &slices(&tokens)).unwrap();
        let step = optimizer.step(&mut adapters, training.gradients()).unwrap();
        assert_eq!(step.skipped, None);
        loss
    });
    (losses.collect(), adapters)
}

#[test]
fn an_untrained_lora_leaves_the_model_as_it_is() {
    let model = model();
    let tokens = repeating(2, 24);
    let adapters = untrained(&model.config, &[(QKV, 4)]);
    let bare = Forward::new().logits(&model, &Adapters::default(), &slices(&tokens)).unwrap().to_vec();
    assert_eq!(Forward::new().logits(&model, &adapters, &slices(&tokens)).unwrap(), bare);
    let mut training = Training::new(&model, &adapters, 2, 24).unwrap();
    training.loss_and_gradients(&adapters, &slices(&tokens)).unwrap();
    // With B = 0, dA is 0 and dB is not.
    for factors in training.gradients().iter() {
        assert!(factors.a.iter().all(|g| *g == 0.0) && factors.b.iter().any(|g| *g != 0.0));
    }
}

/// The loss of training agrees with the loss computed from the forward pass's logits.
#[test]
fn the_loss_is_that_of_the_logits() {
    let model = model();
    let adapters =
        Adapters { lora: Some(peft::load_lora(&golden("lora-all"), &model.config).unwrap()), ..Adapters::default() };
    let (tokens, vocabulary) = (repeating(3, 20), model.config.vocabulary);
    let mut forward = Forward::new();
    let logits = forward.logits(&model, &adapters, &slices(&tokens)).unwrap();
    let mut expected = 0.0;
    for (b, sequence) in tokens.iter().enumerate() {
        for (t, &next) in sequence[1..].iter().enumerate() {
            let row = &logits[(b * 20 + t) * vocabulary..][..vocabulary];
            let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            expected += (sum.ln() - f64::from(row[next as usize])) / 57.0;
        }
    }
    let loss = Training::new(&model, &adapters, 3, 20).unwrap().loss(&adapters, &slices(&tokens)).unwrap();
    assert_abs_diff_eq!(loss, expected, epsilon = 2e-6);
}

#[test]
fn training_learns_in_every_type() {
    let plain = AdamW { lr: 1e-2, ..AdamW::default() };
    let (losses, adapters) = train(&model(), plain, 40);
    assert!(losses[0] > 5.0 && losses[39] < 0.02, "{losses:?}");
    // The forward pass runs with the trained factors.
    let tokens = repeating(1, 24);
    let model = model();
    let mut forward = Forward::new();
    let logits = forward.logits(&model, &adapters, &slices(&tokens)).unwrap();
    for (t, row) in logits.chunks(model.config.vocabulary).take(23).enumerate() {
        let best = (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j])).unwrap();
        assert_eq!(best as u32, tokens[0][t + 1], "after {t}");
    }

    let ratio = AdamW { lora_plus_ratio: 4.0, max_norm: Some(1.0), ..plain };
    let (faster, _) = train(&model, ratio, 20);
    assert!(faster[19] < losses[19], "{} {}", faster[19], losses[19]);

    fn narrow<W: Element>() {
        let place = tempfile::tempdir().unwrap();
        let rounded = place.path().join("rounded");
        merge_folder(&golden("model"), &[], &rounded, Some(W::DTYPE)).unwrap();
        // Steps are far smaller than the rounding of the stored type: without master copies most would be lost.
        let config = AdamW { lr: 5e-4, ..AdamW::default() };
        let wide = train(&Model::<f32>::load(&rounded).unwrap(), config, 60).0;
        let narrow = train(&Model::<W>::load(&rounded).unwrap(), config, 60).0;
        let fallen = (narrow[0] - narrow[59]) / (wide[0] - wide[59]);
        assert!((0.95..1.05).contains(&fallen), "{}: {fallen} of what f32 learns", W::DTYPE);
    }
    narrow::<f16>();
    narrow::<bf16>();
}

#[test]
fn a_skipped_step_changes_nothing() {
    let model = model();
    let mut adapters = untrained(&model.config, &[(QKV, 2)]);
    let mut training = Training::new(&model, &adapters, 1, 24).unwrap();
    let mut optimizer = Optimizer::new(&adapters, AdamW::default()).unwrap();
    training.loss_and_gradients(&adapters, &slices(&repeating(1, 24))).unwrap();
    let good = training.gradients().clone();
    let mut bad = good.clone();
    bad.layers[1][0][0].b[100] = f32::NAN;

    let mut undisturbed = (optimizer.clone(), adapters.clone());
    undisturbed.0.step(&mut undisturbed.1, &good).unwrap();
    let before = bits(&adapters);
    let step = optimizer.step(&mut adapters, &bad).unwrap();
    assert_eq!((step.skipped, optimizer.steps()), (Some(Skip::NonFinite), 0));
    assert_eq!(bits(&adapters), before);
    optimizer.step(&mut adapters, &good).unwrap();
    assert_eq!((bits(&adapters), optimizer.steps()), (bits(&undisturbed.1), 1));
}

#[track_caller]
fn refused<T>(result: fused_lora_gpt2::Result<T>, sentence: &str) {
    let Err(error) = result else { panic!("accepted, expected: {sentence}") };
    assert_eq!(error.to_string(), sentence);
}

#[test]
fn refused_setups() {
    let model = model();
    let good = untrained::<f32>(&model.config, &[(QKV, 2)]);
    let new = |adapters: &Adapters<f32>, batch, sequence| Training::new(&model, adapters, batch, sequence);
    let random = Bottleneck::random(&model.config, Kind::Houlsby, 4, 1).unwrap();
    let bottleneck = Adapters { bottleneck: Some(random), ..good.clone() };
    let prefix = Prefix::random_layer(&model.config, 2, 1).unwrap();
    let prefix = Adapters { prefix: Some(prefix), ..good.clone() };
    for (adapters, what) in [(&bottleneck, "bottleneck adapters"), (&prefix, "a prefix")] {
        let sentence = format!("only a LoRA can be trained, and {what} cannot be active during training");
        refused(new(adapters, 1, 8), &sentence);
        refused(Optimizer::new(adapters, AdamW::default()), &sentence);
    }
    refused(new(&Adapters::default(), 1, 8), "there is no LoRA to train");
    refused(new(&untrained(&model.config, &[]), 1, 8), "there is no LoRA to train");
    refused(
        new(&good, 0, 8),
        "sequence 0 has 0 tokens, expected 1 (all sequences of a batch must have the same number, at least 1)",
    );
    refused(new(&good, 1, 1), "a sequence of 1 tokens has no next token to predict, expected at least 2");
    refused(new(&good, 1, 0), "a sequence of 0 tokens has no next token to predict, expected at least 2");
    refused(new(&good, 1, 41), "41 tokens after a prefix of 0 need more than the model's 40 positions");
    let other = untrained(&Config { layers: 3, ..config() }, &[(QKV, 2)]);
    refused(new(&other, 1, 8), "the LoRA has 3 layers, expected 2");
    let config = AdamW { lr: -1.0, ..AdamW::default() };
    refused(
        Optimizer::new(&good, config),
        "AdamW: the optimizer's learning rate is -1, expected a finite number of at least 0",
    );
}

#[test]
fn refused_batches_and_adapters() {
    let model = model();
    let mut good = untrained::<f32>(&model.config, &[(QKV, 2)]);
    let mut training = Training::new(&model, &good, 2, 4).unwrap();
    let loss = training.loss_and_gradients(&good, &[&[1, 2, 3, 4], &[5, 6, 7, 8]]).unwrap();
    let gradients = training.gradients().clone();
    let cases: [(&[&[u32]], &str); 5] = [
        (&[&[1, 2, 3, 4]], "1 sequences, expected 2"),
        (&[], "0 sequences, expected 2"),
        (
            &[&[1, 2, 3, 4], &[1, 2, 3]],
            "sequence 1 has 3 tokens, expected 4 (all sequences of a batch must have the same number, at least 1)",
        ),
        (
            &[&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]],
            "sequence 0 has 5 tokens, expected 4 (all sequences of a batch must have the same number, at least 1)",
        ),
        (&[&[1, 2, 3, 4], &[1, 2, 3, 131]], "token 131 at [1, 3] is outside the vocabulary of 131"),
    ];
    for (tokens, sentence) in cases {
        refused(training.loss_and_gradients(&good, tokens), sentence);
        refused(training.loss(&good, tokens), sentence);
    }
    let wider = untrained(&model.config, &[(QKV, 3)]);
    let elsewhere = untrained(&model.config, &[(MLP_OUT, 2)]);
    let tokens: [&[u32]; 2] = [&[1, 2, 3, 4], &[5, 6, 7, 8]];
    let other = "h.0.attn.c_attn: the adapters have rank 3 on columns 0..192, expected rank 2 on columns 0..192";
    refused(training.loss_and_gradients(&wider, &tokens), other);
    let none = "h.0.attn.c_attn: the adapters have nothing, expected rank 2 on columns 0..192";
    refused(training.loss_and_gradients(&elsewhere, &tokens), none);
    let prefix = Adapters { prefix: Some(Prefix::random_layer(&model.config, 2, 1).unwrap()), ..good.clone() };
    refused(
        training.loss_and_gradients(&prefix, &tokens),
        "only a LoRA can be trained, and a prefix cannot be active during training",
    );
    // Refused calls left the gradients unchanged, and the next call succeeds.
    assert_eq!(training.gradients(), &gradients);
    assert_eq!(training.loss_and_gradients(&good, &tokens).unwrap(), loss);

    let mut optimizer = Optimizer::new(&good, AdamW::default()).unwrap();
    let before = bits(&good);
    refused(optimizer.step(&mut wider.clone(), &gradients), other);
    let mut short = gradients.clone();
    short.layers[1][0][0].a.pop();
    assert!(matches!(optimizer.step(&mut good, &short), Err(Error::AdapterMismatch { .. })));
    optimizer.config.eps = 0.0;
    assert!(matches!(optimizer.step(&mut good, &gradients), Err(Error::Layer { .. })));
    assert_eq!((bits(&good), optimizer.steps()), (before, 0));
}
