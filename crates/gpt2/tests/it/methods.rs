//! Random models and adapters: different ways to compute the same logits must agree.

use fused_lora::lora::Activation;
use fused_lora_gpt2::adapter::bottleneck::{Bottleneck, Kind, parameters_for, width_for};
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::{Adapters, Config, Forward, Linear, LoraMode, Model, Norm, Random};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const POSITIONS: usize = 24;
const MAX_TOKENS: usize = 12;
/// The largest [`distance`] between the same sums in another order. It exceeds 1e-6 once in a few thousand cases, in
/// models that magnify rounding errors.
const REORDERED_TOLERANCE: f32 = 3e-5;
/// The largest [`distance`] between sums of other terms, such as merged weights, which have roundings of their own. It
/// exceeds 5e-6 as rarely.
const MERGED_TOLERANCE: f32 = 1e-4;
const TARGETS: [Target; 7] = [
    Target::Q,
    Target::K,
    Target::V,
    Target::Whole(Projection::Qkv),
    Target::Whole(Projection::AttnOut),
    Target::Whole(Projection::Fc),
    Target::Whole(Projection::MlpOut),
];

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

prop_compose! {
    fn configs()(
        layers in 1usize..=3,
        heads in 1usize..=4,
        head_size in select(&[4, 8, 12][..]),
        d_ff in 8usize..=70,
        vocabulary in 11usize..=60,
        activation in select(&[Activation::GeluNew, Activation::Relu][..]),
        scale_attention_by_layer in any::<bool>(),
    ) -> Config {
        let d_model = heads * head_size;
        // With as few as 4 features, variances near 0 are not rare, and rounding errors are divided by the root of
        // variance + ε.
        let layer_norm_epsilon = 1e-2;
        Config {
            layers, d_model, heads, d_ff, vocabulary, activation, scale_attention_by_layer,
            positions: POSITIONS, layer_norm_epsilon, scale_attention: true,
        }
    }
}

/// Batches of 1 to 3 sequences of 2 to 12 tokens.
fn batches(vocabulary: usize) -> impl Strategy<Value = Vec<Vec<u32>>> {
    (1usize..=3, 2..=MAX_TOKENS).prop_flat_map(move |(batch, tokens)| {
        let sequence = prop::collection::vec(0..vocabulary as u32, tokens);
        prop::collection::vec(sequence, batch)
    })
}

fn loras() -> impl Strategy<Value = Vec<(Target, usize)>> {
    subsequence(TARGETS.to_vec(), 1..=TARGETS.len())
        .prop_flat_map(|targets| targets.into_iter().map(|target| (Just(target), 1usize..=9)).collect::<Vec<_>>())
}

/// Adapters that a model can have in addition to a LoRA.
#[derive(Debug, Clone, Copy)]
enum FurtherAdapters {
    None,
    Bottleneck(Kind, usize),
    Embedding(usize),
    Layer(usize),
}

fn kinds() -> impl Strategy<Value = Kind> {
    select(&[Kind::Houlsby, Kind::Lin, Kind::Pfeiffer][..])
}

fn further_adapters() -> impl Strategy<Value = FurtherAdapters> {
    prop_oneof![
        Just(FurtherAdapters::None),
        (kinds(), 1usize..=9).prop_map(|(kind, width)| FurtherAdapters::Bottleneck(kind, width)),
        (1usize..=6).prop_map(FurtherAdapters::Embedding),
        (1usize..=6).prop_map(FurtherAdapters::Layer),
    ]
}

impl FurtherAdapters {
    fn adapters(self, config: &Config, seed: u64) -> Adapters<f32> {
        let (bottleneck, prefix) = match self {
            FurtherAdapters::None => (None, None),
            FurtherAdapters::Bottleneck(kind, width) => (Some(randomized_bottleneck(config, kind, width, seed)), None),
            FurtherAdapters::Embedding(length) => (None, Some(Prefix::random_embedding(config, length, seed).unwrap())),
            FurtherAdapters::Layer(length) => (None, Some(Prefix::random_layer(config, length, seed).unwrap())),
        };
        Adapters { bottleneck, prefix, ..Adapters::default() }
    }
}

/// Gives a layer larger weights and non-zero biases: with those of initialisation, a missing term could go unnoticed.
fn randomize(random: &mut Random, linear: &mut Linear<f32>) {
    linear.weight = random.normal(linear.weight.len(), 1.0 / (linear.d_in as f32).sqrt()).unwrap();
    linear.bias = random.normal(linear.bias.len(), 0.1).unwrap();
}

fn randomize_norm(random: &mut Random, norm: &mut Norm) {
    let d = norm.weight.len();
    norm.weight = random.normal::<f32>(d, 0.2).unwrap().iter().map(|v| 1.0 + v).collect();
    norm.bias = random.normal::<f32>(d, 0.2).unwrap().to_vec();
}

fn randomized_model(config: &Config, seed: u64) -> Model<f32> {
    let mut model = Model::random(config, seed).unwrap();
    let mut random = Random::new(seed ^ 1);
    model.wte = random.normal(model.wte.len(), 1.0).unwrap();
    model.wpe = random.normal(model.wpe.len(), 0.5).unwrap();
    for layer in &mut model.layers {
        layer.projections.iter_mut().for_each(|linear| randomize(&mut random, linear));
        randomize_norm(&mut random, &mut layer.ln_1);
        randomize_norm(&mut random, &mut layer.ln_2);
    }
    randomize_norm(&mut random, &mut model.ln_f);
    model
}

fn randomized_bottleneck(config: &Config, kind: Kind, width: usize, seed: u64) -> Bottleneck<f32> {
    let mut bottleneck = Bottleneck::random(config, kind, width, seed).unwrap();
    let mut random = Random::new(seed ^ 2);
    for adapter in bottleneck.layers.iter_mut().flatten() {
        randomize(&mut random, &mut adapter.down);
        randomize(&mut random, &mut adapter.up);
        adapter.norm.iter_mut().for_each(|norm| randomize_norm(&mut random, norm));
    }
    bottleneck
}

/// Runs all calls of a test on one `Forward`, so that a call that depends on old contents of a buffer is found.
struct Runner(Forward<f32>);

impl Runner {
    fn new() -> Self {
        Self(Forward::new())
    }

    fn logits(&mut self, model: &Model<f32>, adapters: &Adapters<f32>, tokens: &[Vec<u32>]) -> Vec<f32> {
        let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        self.0.logits(model, adapters, &tokens).unwrap().to_vec()
    }
}

/// max |a - b| / (1 + max |b|); infinite if a value is NaN. Terms of a logit cancel, so its rounding error is in
/// proportion to the largest logits and not to its own value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        values.fold(0.0, |worst: f32, v| if v.is_nan() { f32::INFINITY } else { worst.max(v.abs()) })
    };
    let off = largest(&mut a.iter().zip(b).map(|(a, b)| a - b));
    if off.is_finite() { off / (1.0 + largest(&mut b.iter().copied())) } else { off }
}

fn setups() -> impl Strategy<Value = (Config, Vec<Vec<u32>>, u64)> {
    configs().prop_flat_map(|config| (Just(config.clone()), batches(config.vocabulary), any::<u64>()))
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn every_way_of_running_a_lora_agrees(
        (config, tokens, seed) in setups(), targets in loras(), alpha in 4f32..24.0, further in further_adapters(),
    ) {
        let model = randomized_model(&config, seed);
        let lora = Lora::random(&config, &targets, alpha, seed).unwrap();
        let without = further.adapters(&config, seed);
        let with = |mode| Adapters { lora: Some(lora.clone()), mode, ..without.clone() };
        let mut runner = Runner::new();
        let base = runner.logits(&model, &without, &tokens);
        let merged = runner.logits(&model.merged(&lora).unwrap(), &without, &tokens);
        for mode in [LoraMode::Fused, LoraMode::Sequential, LoraMode::DenseDelta] {
            let off = distance(&runner.logits(&model, &with(mode), &tokens), &merged);
            prop_assert!(off <= MERGED_TOLERANCE, "{mode:?} is off by {off:e}");
        }
        // A LoRA on queries and keys changes only attention weights, perhaps little; any other must change the logits
        // visibly.
        let visible = targets.iter().any(|(target, _)| !matches!(target, Target::Q | Target::K));
        let effect = distance(&merged, &base);
        prop_assert!(effect > if visible { 1e-3 } else { 0.0 }, "the LoRA changes logits by {effect:e} only");
    }

    #[test]
    fn two_loras_add_up(
        (config, tokens, seed) in setups(), first in loras(), second in loras(), alpha in 4f32..24.0,
    ) {
        let model = randomized_model(&config, seed);
        let make = |targets: &[(Target, usize)], seed| Lora::random(&config, targets, alpha, seed).unwrap();
        let (first, second) = (make(&first, seed), make(&second, seed ^ 3));
        let mut adapters = Adapters { lora: Some(first.clone()), ..Adapters::default() };
        adapters.combine(Adapters { lora: Some(second.clone()), ..Adapters::default() }).unwrap();
        prop_assert_eq!(adapters.parameters(), first.parameters() + second.parameters());
        let merged = model.merged(&first).unwrap().merged(&second).unwrap();
        let mut runner = Runner::new();
        let expected = runner.logits(&merged, &Adapters::default(), &tokens);
        let off = distance(&runner.logits(&model, &adapters, &tokens), &expected);
        prop_assert!(off <= MERGED_TOLERANCE, "off by {off:e}");
    }

    #[test]
    fn prefix_vectors_are_tokens_in_front((config, tokens, seed) in setups(), length in 1usize..=8) {
        let model = randomized_model(&config, seed);
        let d = config.d_model;
        let prefix: Vec<u32> = (0..length).map(|i| ((seed >> i) % config.vocabulary as u64) as u32).collect();
        let vectors = prefix.iter().flat_map(|&id| model.wte[id as usize * d..][..d].to_vec()).collect();
        let adapters = Adapters { prefix: Some(Prefix::Embedding { length, vectors }), ..Adapters::default() };
        let mut runner = Runner::new();
        let got = runner.logits(&model, &adapters, &tokens);
        let joined: Vec<Vec<u32>> = tokens.iter().map(|sequence| [&prefix[..], sequence].concat()).collect();
        let all = runner.logits(&model, &Adapters::default(), &joined);
        let per_sequence = joined[0].len() * config.vocabulary;
        let real = all.chunks(per_sequence).flat_map(|logits| &logits[length * config.vocabulary..]);
        let off = distance(&got, &real.copied().collect::<Vec<_>>());
        prop_assert!(off <= REORDERED_TOLERANCE, "off by {off:e}");
        // Without the prefix the logits differ.
        prop_assert!(distance(&got, &runner.logits(&model, &Adapters::default(), &tokens)) > 1e-3);
    }

    #[test]
    fn sequences_of_a_batch_do_not_see_each_other(
        (config, tokens, seed) in setups(), targets in loras(), further in further_adapters(),
        mode in select(&[LoraMode::Fused, LoraMode::Sequential, LoraMode::DenseDelta][..]),
    ) {
        let model = randomized_model(&config, seed);
        let lora = Some(Lora::random(&config, &targets, 16.0, seed).unwrap());
        let adapters = Adapters { lora, mode, ..further.adapters(&config, seed) };
        let mut runner = Runner::new();
        let together = runner.logits(&model, &adapters, &tokens);
        let alone: Vec<f32> =
            tokens.iter().flat_map(|sequence| runner.logits(&model, &adapters, std::slice::from_ref(sequence))).collect();
        let off = distance(&together, &alone);
        prop_assert!(off <= REORDERED_TOLERANCE, "off by {off:e}");
    }

    /// Later tokens do not change the logits of earlier ones.
    #[test]
    fn attention_is_causal((config, tokens, seed) in setups(), further in further_adapters(), cut in 1..MAX_TOKENS) {
        let cut = cut.min(tokens[0].len() - 1);
        let model = randomized_model(&config, seed);
        let adapters = further.adapters(&config, seed);
        let mut runner = Runner::new();
        let whole = runner.logits(&model, &adapters, &tokens[..1]);
        let start = runner.logits(&model, &adapters, &[tokens[0][..cut].to_vec()]);
        let off = distance(&start, &whole[..start.len()]);
        prop_assert!(off <= REORDERED_TOLERANCE, "off by {off:e}");
    }

    #[test]
    fn adapters_dropped_from_every_layer_leave_the_base_model(
        (config, tokens, seed) in setups(), kind in kinds(), width in 1usize..=9,
    ) {
        let model = randomized_model(&config, seed);
        let mut bottleneck = randomized_bottleneck(&config, kind, width, seed);
        let mut runner = Runner::new();
        let base = runner.logits(&model, &Adapters::default(), &tokens);
        for dropped in 0..=config.layers {
            bottleneck.drop_lowest(dropped);
            let adapters = Adapters { bottleneck: Some(bottleneck.clone()), ..Adapters::default() };
            let got = runner.logits(&model, &adapters, &tokens);
            if dropped == config.layers {
                prop_assert_eq!(adapters.parameters(), 0);
                prop_assert_eq!(got, base.clone());
            } else {
                prop_assert!(distance(&got, &base) > 1e-3);
            }
        }
    }
}

#[test]
fn parameters_are_counted_before_adapters_are_made() {
    let config = Config::named("gpt2").unwrap();
    let config = Config { layers: 3, d_model: 24, heads: 3, d_ff: 40, ..config };
    for kind in [Kind::Houlsby, Kind::Lin, Kind::Pfeiffer] {
        for width in [1, 7] {
            let made = Bottleneck::<f32>::random(&config, kind, width, 0).unwrap().parameters();
            assert_eq!(parameters_for(&config, kind, width), made, "{kind:?} of width {width}");
            assert_eq!(width_for(&config, kind, made), width);
        }
    }
}
