//! GPT-2 on the emulator of a GPU: every method against logits made in float64 (tests/golden/README.md), graphs, decoding with
//! a cache, launches counted, and what is refused.
#![allow(clippy::unwrap_used)]

mod common;

use common::{expected, golden, tokens};
use fused_lora::Element;
use fused_lora::device::{Device, EmulatorConfig, Stream};
use fused_lora_gpt2::adapter::bottleneck::{Bottleneck, Kind};
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::device::{Cache, DeviceAdapters, DeviceForward, DeviceModel, PassShape};
use fused_lora_gpt2::{Adapters, Config, Error, Forward, LoraMode, Model, merge_folder, peft};
use half::{bf16, f16};

fn on_gpu() -> bool {
    std::env::var("FUSED_LORA_TEST_DEVICE").is_ok_and(|device| device == "cuda")
}

/// A new emulated GPU.
fn emulated(compute_capability: (u32, u32)) -> Stream {
    let config = EmulatorConfig { multiprocessors: 6, compute_capability, ..EmulatorConfig::default() };
    Stream::new(&Device::emulator(config).unwrap()).unwrap()
}

fn stream() -> Stream {
    if on_gpu() { Stream::new(&Device::cuda(0).unwrap()).unwrap() } else { emulated((9, 0)) }
}

fn slices(tokens: &[Vec<u32>]) -> Vec<&[u32]> {
    tokens.iter().map(Vec::as_slice).collect()
}

/// The golden model, its weights rounded to `W`.
fn model<W: Element>() -> Model<W> {
    let place = tempfile::tempdir().unwrap();
    let rounded = place.path().join("rounded");
    merge_folder(&golden("model"), &[], &rounded, Some(W::DTYPE)).unwrap();
    Model::load(&rounded).unwrap()
}

fn lora<W: Element>(name: &str, config: &Config, mode: LoraMode) -> Adapters<W> {
    Adapters { lora: Some(peft::load_lora(&golden(name), config).unwrap()), mode, ..Adapters::default() }
}

fn bottleneck<W: Element>(kind: Kind, name: &str, config: &Config, drop: usize) -> Adapters<W> {
    let path = golden(&format!("adapter-{name}/adapter.safetensors"));
    let mut bottleneck = Bottleneck::load(&path, kind, config).unwrap();
    bottleneck.drop_lowest(drop);
    Adapters { bottleneck: Some(bottleneck), ..Adapters::default() }
}

/// A model and adapters on a device.
struct OnDevice<W> {
    stream: Stream,
    model: DeviceModel<W>,
    adapters: DeviceAdapters<W>,
}

impl<W: Element> OnDevice<W> {
    fn new(model: &Model<W>, adapters: &Adapters<W>) -> Self {
        Self::on(stream(), model, adapters)
    }

    fn on(stream: Stream, model: &Model<W>, adapters: &Adapters<W>) -> Self {
        let adapters = DeviceAdapters::upload(&stream, adapters, &model.config).unwrap();
        Self { model: DeviceModel::upload(&stream, model).unwrap(), stream, adapters }
    }

    fn forward(&self, shape: PassShape) -> DeviceForward<W> {
        DeviceForward::new(&self.stream, &self.model, &self.adapters, shape).unwrap()
    }

    fn set(&self, forward: &mut DeviceForward<W>, tokens: &[Vec<u32>], cache: Option<(&Cache<W>, usize)>) {
        forward.set_tokens(&self.stream, &self.model, &self.adapters, &slices(tokens), cache).unwrap();
    }

    fn run(&self, forward: &mut DeviceForward<W>, cache: Option<&mut Cache<W>>) -> Vec<f32> {
        forward.run(&self.stream, &self.model, &self.adapters, cache).unwrap();
        forward.logits(&self.stream, &self.model).unwrap()
    }

    fn logits(&self, tokens: &[Vec<u32>]) -> Vec<f32> {
        // The emulator looks whether launches wait for the one ahead.
        let mut forward =
            self.forward(PassShape { dependent: true, ..PassShape::whole(tokens.len(), tokens[0].len()) });
        self.set(&mut forward, tokens, None);
        self.run(&mut forward, None)
    }
}

/// Roundings that a logit may be off by, in parts of the largest logit. Weights are rounded once; an activation passes about ten
/// roundings on its way through a block; a LayerNorm divides what they add up to by the deviation; a LoRA beside its layer rounds its
/// sum twice more. Seen: at most 11.7 (bf16, `lora-all` in sequence), 2.4 and less without a LoRA.
const ROUNDINGS: f64 = 16.0;
/// And in f32, whose sums are made of more roundings than the activations pass. Seen: at most 2.3e-6.
const OF_SUMS: f64 = 6e-6;

fn assert_close<W: Element>(got: &[f32], exact: &[f64], what: &str) {
    assert_eq!(got.len(), exact.len(), "{what}");
    let largest = exact.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let worst = got.iter().zip(exact).map(|(&got, exact)| (f64::from(got) - exact).abs()).fold(0.0, |worst, error| {
        // A NaN is worse than everything.
        if error <= worst { worst } else { error }
    });
    let (of_largest, unit) = (worst / largest, W::DTYPE.unit_roundoff());
    println!("{}, {what}: {of_largest:.2e} of {largest:.2}, {:.1} u", W::DTYPE, of_largest / unit);
    assert!(of_largest <= ROUNDINGS * unit + OF_SUMS, "{}, {what}: off by {of_largest:e} of {largest}", W::DTYPE);
}

/// Against the golden logits, which are made of weights as they were before `W` rounded them.
fn check<W: Element>(model: &Model<W>, adapters: &Adapters<W>, key: &str) {
    let got = OnDevice::new(model, adapters).logits(&tokens());
    assert_close::<W>(&got, &expected(&format!("{key}.logits")), &format!("{key} {:?}", adapters.mode));
}

fn every_method<W: Element>() {
    let model = model::<W>();
    let config = &model.config;
    check(&model, &Adapters::default(), "base");
    for name in ["lora-attn", "lora-all"] {
        for mode in [LoraMode::Fused, LoraMode::Sequential, LoraMode::DenseDelta] {
            check(&model, &lora(name, config, mode), name);
        }
    }
    check(&model, &peft::load(&golden("prefix"), config).unwrap(), "prefix");
    for (kind, name) in [(Kind::Houlsby, "houlsby"), (Kind::Lin, "lin"), (Kind::Pfeiffer, "pfeiffer")] {
        for (drop, key) in [(0, format!("adapter-{name}")), (1, format!("adapter-{name}.drop1"))] {
            check(&model, &bottleneck(kind, name, config, drop), &key);
        }
    }
}

#[test]
fn every_method_in_f32() {
    every_method::<f32>();
}

#[test]
fn every_method_in_f16() {
    every_method::<f16>();
}

#[test]
fn every_method_in_bf16() {
    every_method::<bf16>();
}

/// On kernels of every generation: those without bf16 in their matrix instructions, those with mma.sync alone, those with wgmma.
#[test]
fn every_generation_of_gpus() {
    fn check<W: Element>() {
        let model = model::<W>();
        for compute_capability in [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)] {
            for name in ["lora-attn", "lora-all"] {
                let adapters = lora(name, &model.config, LoraMode::Fused);
                let got = OnDevice::on(emulated(compute_capability), &model, &adapters).logits(&tokens());
                let what = format!("{name} on {compute_capability:?}");
                assert_close::<W>(&got, &expected(&format!("{name}.logits")), &what);
            }
        }
    }
    if !on_gpu() {
        check::<f16>();
        check::<bf16>();
    }
}

#[test]
fn a_gpu_that_no_kernel_is_written_for_is_refused() {
    if on_gpu() {
        return;
    }
    let model = model::<f32>();
    let stream = emulated((7, 0));
    let adapters = DeviceAdapters::upload(&stream, &Adapters::default(), &model.config).unwrap();
    let uploaded = DeviceModel::upload(&stream, &model).unwrap();
    let refused = DeviceForward::new(&stream, &uploaded, &adapters, PassShape::whole(1, 3)).unwrap_err();
    let Error::Layer { what, source: fused_lora::Error::Unsupported { capability, .. } } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(*capability, (7, 0));
    assert!(what.starts_with("h.0."), "{refused}");
}

#[test]
fn a_prefix_in_front_of_the_input() {
    let model = model::<f32>();
    let prefix = Some(Prefix::random_embedding(&model.config, 5, 3).unwrap());
    let adapters = Adapters { prefix, ..lora("lora-attn", &model.config, LoraMode::Fused) };
    let tokens = tokens();
    let exact = Forward::new().logits(&model, &adapters, &slices(&tokens)).unwrap().to_vec();
    let exact: Vec<f64> = exact.into_iter().map(f64::from).collect();
    let on_device = OnDevice::new(&model, &adapters);
    assert_close::<f32>(&on_device.logits(&tokens), &exact, "prefix embedding");
    let mut forward = on_device.forward(PassShape { logits: false, ..PassShape::whole(tokens.len(), tokens[0].len()) });
    on_device.set(&mut forward, &tokens, None);
    forward.run(&on_device.stream, &on_device.model, &on_device.adapters, None).unwrap();
    let hidden = forward.hidden(&on_device.stream, &on_device.model).unwrap();
    let mut cpu = Forward::new();
    let exact = cpu.hidden(&model, &adapters, &slices(&tokens)).unwrap();
    let exact: Vec<f64> = exact.iter().map(|&value| f64::from(value)).collect();
    assert_close::<f32>(&hidden, &exact, "hidden state");
    let refused = forward.logits(&on_device.stream, &on_device.model);
    assert!(matches!(refused, Err(Error::NoLogits)));
}

#[test]
fn a_graph_replays_the_pass_for_other_tokens() {
    let model = model::<bf16>();
    let on_device = OnDevice::new(&model, &lora("lora-all", &model.config, LoraMode::Fused));
    let OnDevice { stream, model, adapters } = &on_device;
    let tokens = tokens();
    let mut others = tokens.clone();
    others.iter_mut().flatten().for_each(|token| *token = (*token + 7) % 131);
    let mut forward = on_device.forward(PassShape::whole(tokens.len(), tokens[0].len()));
    assert!(matches!(forward.replay(stream, None), Err(Error::NotCaptured)));
    forward.capture(stream, model, adapters, None).unwrap();
    let shape = PassShape { dependent: true, ..forward.shape() };
    let mut dependent = on_device.forward(shape);
    dependent.capture(stream, model, adapters, None).unwrap();
    for tokens in [&tokens, &others] {
        on_device.set(&mut forward, tokens, None);
        forward.replay(stream, None).unwrap();
        let replayed = forward.logits(stream, model).unwrap();
        assert_eq!(replayed, on_device.run(&mut forward, None));
        assert_eq!(replayed, on_device.logits(tokens), "launches that begin before the one ahead has ended");
        on_device.set(&mut dependent, tokens, None);
        dependent.replay(stream, None).unwrap();
        assert_eq!(replayed, dependent.logits(stream, model).unwrap(), "the same in a graph");
    }
    assert_ne!(on_device.logits(&tokens), on_device.logits(&others));
}

#[test]
fn a_captured_pass_runs_with_the_adapter_that_takes_the_others_place() {
    let model = model::<f16>();
    let random = |seed, ranks: [usize; 2], alpha| {
        let targets = [(Target::Q, ranks[0]), (Target::V, ranks[1])];
        let lora = Some(Lora::random(&model.config, &targets, alpha, seed).unwrap());
        Adapters { lora, ..Adapters::default() }
    };
    let tokens = tokens();
    let first = random(1, [4, 3], 8.0);
    let OnDevice { stream, model: on_device, adapters } = OnDevice::new(&model, &first);
    let upload = |adapters: &Adapters<f16>| DeviceAdapters::upload(&stream, adapters, on_device.config()).unwrap();
    let mut adapters = adapters.swappable(&stream).unwrap();
    for dependent in [false, true] {
        let shape = PassShape { dependent, ..PassShape::whole(tokens.len(), tokens[0].len()) };
        let mut forward = DeviceForward::new(&stream, &on_device, &adapters, shape).unwrap();
        forward.set_tokens(&stream, &on_device, &adapters, &slices(&tokens), None).unwrap();
        forward.capture(&stream, &on_device, &adapters, None).unwrap();
        let mut logits = || {
            forward.replay(&stream, None).unwrap();
            forward.logits(&stream, &on_device).unwrap()
        };
        // Of the same ranks the same bits as in a pass of its own; of lower ones, products with zeros beside.
        for other in [first.clone(), random(2, [4, 3], 2.0), random(3, [4, 3], 64.0)] {
            adapters.put(&stream, &upload(&other)).unwrap();
            assert_eq!(logits(), OnDevice::new(&model, &other).logits(&tokens));
        }
        let lower = random(4, [1, 2], 16.0);
        adapters.put(&stream, &upload(&lower)).unwrap();
        let exact = OnDevice::new(&model, &lower).logits(&tokens);
        let exact: Vec<f64> = exact.iter().map(|&value| f64::from(value)).collect();
        assert_close::<f16>(&logits(), &exact, "lower ranks");
        adapters.clear(&stream).unwrap();
        assert_eq!(logits(), OnDevice::new(&model, &Adapters::default()).logits(&tokens), "the base model");
    }

    let refused = adapters.put(&stream, &upload(&random(5, [5, 3], 8.0)));
    assert!(matches!(refused, Err(Error::Layer { source: fused_lora::Error::SlotMismatch { segment: 0, .. }, .. })));
    // Of the same shapes in the same order, but for other projections, or on another layer.
    let of = |target: Target, layer: usize| {
        let mut lora = Lora::random(&model.config, &[(target, 4)], 8.0, 6).unwrap();
        lora.layers.iter_mut().enumerate().filter(|(i, _)| *i != layer).for_each(|(_, all)| *all = Default::default());
        Adapters { lora: Some(lora), ..Adapters::default() }
    };
    let mut on_q = upload(&of(Target::Q, 0)).swappable(&stream).unwrap();
    on_q.put(&stream, &upload(&of(Target::Q, 0))).unwrap();
    for other in [of(Target::Whole(Projection::AttnOut), 0), of(Target::Q, 1)] {
        assert!(matches!(on_q.put(&stream, &upload(&other)), Err(Error::OtherAdapters { .. })));
    }
    let sequential = Adapters { mode: LoraMode::Sequential, ..first.clone() };
    assert!(matches!(adapters.put(&stream, &upload(&sequential)), Err(Error::OtherAdapters { .. })), "not fused");
    assert!(matches!(upload(&sequential).swappable(&stream), Err(Error::OtherAdapters { .. })), "not fused");
    assert!(matches!(upload(&first).put(&stream, &adapters), Err(Error::OtherAdapters { .. })), "not swappable");
}

/// The logits of every token, fed one by one behind a prompt, eagerly and from a graph.
fn decode<W: Element>(model: &Model<W>, adapters: &Adapters<W>, prompt: usize, first: usize) {
    let on_device = OnDevice::new(model, adapters);
    let OnDevice { stream, model, adapters } = &on_device;
    let tokens = tokens();
    let (batch, all) = (tokens.len(), tokens[0].len());
    let whole = on_device.logits(&tokens);
    let vocabulary = model.config().vocabulary;
    let of = |at: usize| -> Vec<f64> {
        (0..batch).flat_map(|b| &whole[(b * all + at) * vocabulary..][..vocabulary]).map(|&v| f64::from(v)).collect()
    };
    let part = |range: std::ops::Range<usize>| tokens.iter().map(|t| t[range.clone()].to_vec()).collect::<Vec<_>>();

    let mut cache = Cache::new(stream, model, first + batch, 40).unwrap();
    cache.start(stream, adapters).unwrap();
    let shape = PassShape { cache: Some(40), ..PassShape::whole(batch, prompt) };
    let mut prefill = on_device.forward(shape);
    on_device.set(&mut prefill, &part(0..prompt), Some((&cache, first)));
    let got = on_device.run(&mut prefill, Some(&mut cache));
    let exact: Vec<f64> =
        (0..batch).flat_map(|b| &whole[b * all * vocabulary..][..prompt * vocabulary]).map(|&v| f64::from(v)).collect();
    assert_close::<W>(&got, &exact, "prefill into a cache");

    let mut step = on_device.forward(PassShape { tokens: 1, continues: true, ..shape });
    for at in prompt..all {
        on_device.set(&mut step, &part(at..at + 1), Some((&cache, first)));
        if at == prompt {
            step.capture(stream, model, adapters, Some(&mut cache)).unwrap();
            assert_eq!(cache.lengths()[first..], vec![cache.lengths()[first]; batch], "a capture runs nothing");
        }
        let got = if at % 2 == 0 {
            step.replay(stream, Some(&mut cache)).unwrap();
            step.logits(stream, model).unwrap()
        } else {
            on_device.run(&mut step, Some(&mut cache))
        };
        assert_close::<W>(&got, &of(at), &format!("token {at}"));
    }
}

#[test]
fn decoding_with_a_cache_is_the_whole_pass() {
    let model = model::<f32>();
    decode(&model, &lora("lora-all", &model.config, LoraMode::Fused), 1, 0);
    let model = self::model::<bf16>();
    decode(&model, &lora("lora-attn", &model.config, LoraMode::Sequential), 5, 2);
}

#[test]
fn decoding_behind_prefixes() {
    let model = model::<f32>();
    decode(&model, &peft::load(&golden("prefix"), &model.config).unwrap(), 3, 1);
    let prefix = Some(Prefix::random_embedding(&model.config, 3, 3).unwrap());
    decode(&model, &Adapters { prefix, ..Adapters::default() }, 4, 0);
}

#[test]
fn sequences_of_one_batch_may_be_of_different_lengths() {
    let model = model::<f32>();
    let on_device = OnDevice::new(&model, &Adapters::default());
    let OnDevice { stream, model, adapters } = &on_device;
    let sequences: [&[u32]; 2] = [&[5, 9, 77, 3], &[130, 1]];
    let mut cache = Cache::new(stream, model, 2, 8).unwrap();
    cache.start(stream, adapters).unwrap();
    for (slot, sequence) in sequences.iter().enumerate() {
        let shape = PassShape { cache: Some(8), ..PassShape::whole(1, sequence.len()) };
        let mut prefill = on_device.forward(shape);
        on_device.set(&mut prefill, &[sequence.to_vec()], Some((&cache, slot)));
        on_device.run(&mut prefill, Some(&mut cache));
    }
    assert_eq!(cache.lengths(), [4, 2]);
    let shape = PassShape { sequences: 2, tokens: 1, cache: Some(8), continues: true, logits: true, dependent: true };
    let mut step = on_device.forward(shape);
    on_device.set(&mut step, &[vec![40], vec![41]], Some((&cache, 0)));
    let both = on_device.run(&mut step, Some(&mut cache));
    for (slot, (sequence, next)) in sequences.iter().zip([40, 41]).enumerate() {
        let whole = on_device.logits(&[sequence.iter().copied().chain([next]).collect()]);
        let vocabulary = model.config().vocabulary;
        let last: Vec<f64> = whole[sequence.len() * vocabulary..].iter().map(|&v| f64::from(v)).collect();
        assert_close::<f32>(&both[slot * vocabulary..][..vocabulary], &last, "a sequence of its own length");
    }
    assert_eq!(cache.lengths(), [5, 3]);
}

/// Launches of a block, and that the device ran as many in all as the pass says.
fn launches(adapters: &Adapters<f32>) -> usize {
    let model = model::<f32>();
    let on_device = OnDevice::new(&model, adapters);
    let mut forward = on_device.forward(PassShape::whole(1, 3));
    on_device.set(&mut forward, &[vec![1, 2, 3]], None);
    let device = on_device.stream.device();
    device.take_all_counters();
    on_device.run(&mut forward, None);
    // A GPU does not count them.
    assert!(device.machine().is_none() || device.take_all_counters().len() == forward.launches());
    forward.launches_per_layer()
}

#[test]
fn a_block_is_seven_launches_and_a_fused_lora_adds_none() {
    let config = model::<f32>().config;
    assert_eq!(launches(&Adapters::default()), 7);
    assert_eq!(launches(&lora("lora-attn", &config, LoraMode::Fused)), 7);
    assert_eq!(launches(&lora("lora-all", &config, LoraMode::Fused)), 7);
    let two = [(Target::Q, 4), (Target::V, 4)];
    let two = |mode| Adapters { lora: Some(Lora::random(&config, &two, 8.0, 1).unwrap()), mode, ..Adapters::default() };
    assert_eq!(launches(&two(LoraMode::Fused)), 7);
    assert_eq!(launches(&two(LoraMode::Sequential)), 7 + 6);
    assert_eq!(launches(&two(LoraMode::DenseDelta)), 7 + 2);
    assert_eq!(launches(&bottleneck(Kind::Houlsby, "houlsby", &config, 0)), 7 + 2);
    assert_eq!(launches(&bottleneck(Kind::Lin, "lin", &config, 0)), 7 + 2);
    assert_eq!(launches(&bottleneck(Kind::Pfeiffer, "pfeiffer", &config, 0)), 7 + 1);
}

/// Lost in the middle of a pass, of a capture and of a replay: the same typed error from then on, and only that device is gone.
#[test]
fn a_lost_device_is_a_typed_error_and_another_one_runs() {
    let model = model::<f32>();
    let adapters = lora("lora-attn", &model.config, LoraMode::Fused);
    let tokens = tokens();
    let exact = OnDevice::new(&model, &adapters).logits(&tokens);
    for when in ["eager", "capture", "replay"] {
        let OnDevice { stream, model: uploaded, adapters: own } = &OnDevice::new(&model, &adapters);
        if on_gpu() {
            return; // one is not lost that easily
        }
        let shape = PassShape::whole(tokens.len(), tokens[0].len());
        let mut forward = DeviceForward::new(stream, uploaded, own, shape).unwrap();
        forward.set_tokens(stream, uploaded, own, &slices(&tokens), None).unwrap();
        if when == "replay" {
            forward.capture(stream, uploaded, own, None).unwrap();
        }
        stream.device().lose_after(if when == "capture" { 0 } else { 5 });
        let is_lost = |result: Result<(), Error>| {
            let lost = matches!(&result, Err(Error::Layer { source: fused_lora::Error::DeviceLost { .. }, .. }));
            assert!(lost, "{when}: {result:?}");
        };
        is_lost(match when {
            "eager" => forward.run(stream, uploaded, own, None),
            "capture" => forward.capture(stream, uploaded, own, None),
            _ => forward.replay(stream, None),
        });
        is_lost(forward.run(stream, uploaded, own, None));
        is_lost(forward.logits(stream, uploaded).map(|_| ()));
        is_lost(DeviceForward::new(stream, uploaded, own, PassShape::whole(1, 3)).map(|_| ()));
        assert_eq!(OnDevice::new(&model, &adapters).logits(&tokens), exact, "another device");
    }
}

/// What a GPU has no rows of 16 bytes for: odd widths and vocabularies.
#[test]
fn odd_shapes() {
    let config =
        Config { d_model: 33, heads: 3, d_ff: 61, vocabulary: 37, positions: 9, layers: 1, ..model::<f32>().config };
    let model = Model::<f32>::random(&config, 4).unwrap();
    let targets = [(Target::Q, 3), (Target::Whole(Projection::Fc), 5), (Target::Whole(Projection::MlpOut), 1)];
    for mode in [LoraMode::Fused, LoraMode::Sequential, LoraMode::DenseDelta] {
        let adapters =
            Adapters { lora: Some(Lora::random(&config, &targets, 8.0, 5).unwrap()), mode, ..Adapters::default() };
        let tokens = vec![vec![3, 36, 0, 9, 20], vec![7, 7, 8, 1, 2]];
        let exact = Forward::new().logits(&model, &adapters, &slices(&tokens)).unwrap().to_vec();
        let exact: Vec<f64> = exact.into_iter().map(f64::from).collect();
        assert_close::<f32>(&OnDevice::new(&model, &adapters).logits(&tokens), &exact, &format!("odd, {mode:?}"));
    }
}

#[test]
fn what_cannot_be_run_is_refused_and_the_next_pass_runs() {
    let model = model::<f32>();
    let on_device = OnDevice::new(&model, &Adapters::default());
    let OnDevice { stream, model, adapters } = &on_device;
    let before = on_device.logits(&tokens());
    let planned = |shape| DeviceForward::new(stream, model, adapters, shape).map(|_| ());
    assert!(matches!(planned(PassShape::whole(0, 3)), Err(Error::Batch { .. })));
    assert!(matches!(planned(PassShape::whole(1, 41)), Err(Error::TooManyPositions { tokens: 41, positions: 40, .. })));
    assert!(matches!(Cache::new(stream, model, 1, 41), Err(Error::TooManyPositions { .. })));

    let shape = PassShape { cache: Some(6), ..PassShape::whole(2, 4) };
    let mut forward = on_device.forward(shape);
    let mut cache = Cache::new(stream, model, 2, 6).unwrap();
    let set = |forward: &mut DeviceForward<f32>, tokens: &[&[u32]], cache: Option<(&Cache<f32>, usize)>| {
        forward.set_tokens(stream, model, adapters, tokens, cache)
    };
    let good: [&[u32]; 2] = [&[1, 2, 3, 4], &[5, 6, 7, 8]];
    assert!(matches!(
        set(&mut forward, &good[..1], Some((&cache, 0))),
        Err(Error::BatchSize { actual: 1, expected: 2 })
    ));
    assert!(matches!(
        set(&mut forward, &[good[0], &[1, 2]], Some((&cache, 0))),
        Err(Error::Batch { row: 1, actual: 2, expected: 4 })
    ));
    assert!(matches!(
        set(&mut forward, &[good[0], &[1, 2, 131, 4]], Some((&cache, 0))),
        Err(Error::Token { token: 131, .. })
    ));
    assert!(matches!(set(&mut forward, &good, Some((&cache, 1))), Err(Error::BatchSize { actual: 3, expected: 2 })));
    cache.set_length(1, 3).unwrap();
    assert!(matches!(
        set(&mut forward, &good, Some((&cache, 0))),
        Err(Error::TooManyPositions { prefix: 3, positions: 6, .. })
    ));
    assert!(matches!(cache.set_length(2, 3), Err(Error::BatchSize { .. })));
    assert!(matches!(cache.set_length(0, 7), Err(Error::TooManyPositions { .. })));
    let other = &mut Cache::new(stream, model, 2, 7).unwrap();
    for cache in [None, Some(other)] {
        let refused = forward.run(stream, model, adapters, cache);
        assert!(matches!(refused, Err(Error::OtherCache { expected: 6, .. })));
    }
    assert!(matches!(set(&mut forward, &good, None), Err(Error::OtherCache { expected: 6, actual: 0 })));
    // Issued twice, tokens are in the cache once.
    cache.set_length(1, 0).unwrap();
    set(&mut forward, &good, Some((&cache, 0))).unwrap();
    for _ in 0..2 {
        forward.run(stream, model, adapters, Some(&mut cache)).unwrap();
        assert_eq!(cache.lengths(), [4, 4]);
    }
    // Captured for other sequences of the cache than those that the tokens continue.
    let mut cache = Cache::new(stream, model, 3, 6).unwrap();
    set(&mut forward, &good, Some((&cache, 1))).unwrap();
    forward.capture(stream, model, adapters, Some(&mut cache)).unwrap();
    forward.replay(stream, Some(&mut cache)).unwrap();
    assert_eq!(cache.lengths(), [0, 4, 4]);
    cache.set_length(1, 0).unwrap();
    forward.set_tokens(stream, model, adapters, &good, Some((&cache, 0))).unwrap();
    assert!(matches!(forward.replay(stream, Some(&mut cache)), Err(Error::NotCaptured)));
    // Another model.
    let small = Config { layers: 1, ..model.config().clone() };
    let small = DeviceModel::upload(stream, &Model::random(&small, 1).unwrap()).unwrap();
    let refused = forward.run(stream, &small, adapters, Some(&mut cache));
    assert!(matches!(refused, Err(Error::OtherModel { what: "layers", .. })));

    // More memory than there is.
    let huge = PassShape { logits: false, ..PassShape::whole(1 << 40, 40) };
    let refused = planned(huge).unwrap_err();
    assert!(matches!(refused, Error::Layer { .. }), "{refused}");
    assert_eq!(on_device.logits(&tokens()), before);
}
