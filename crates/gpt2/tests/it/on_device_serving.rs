//! GPT-2 on the emulator of a GPU in serving: decoding with a cache, swapping adapters under a captured graph, calls
//! that are refused, and lost devices.

use crate::common::device::{OnDevice, assert_close, emulated, left_out, lora, model, on_gpu, slices};
use crate::common::{golden, tokens};
use fused_lora::{DriverError, Element, Error as LayerError, KernelError};
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::device::{Cache, DeviceAdapters, DeviceForward, DeviceModel, PassShape};
use fused_lora_gpt2::{Adapters, Config, Error, LoraMode, Model, peft};
use half::{bf16, f16};

/// Feeds tokens one by one after a prompt, launch by launch and from a graph, and checks the logits of each.
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
fn decoding_with_a_cache_agrees_with_a_whole_pass() {
    if left_out() {
        return;
    }
    let model = model::<f32>();
    decode(&model, &lora("lora-all", &model.config, LoraMode::Fused), 1, 0);
    let model = self::model::<bf16>();
    decode(&model, &lora("lora-attn", &model.config, LoraMode::Sequential), 5, 2);
}

#[test]
fn decoding_with_prefixes() {
    if left_out() {
        return;
    }
    let model = model::<f32>();
    decode(&model, &peft::load(&golden("prefix"), &model.config).unwrap(), 3, 1);
    let prefix = Some(Prefix::random_embedding(&model.config, 3, 3).unwrap());
    decode(&model, &Adapters { prefix, ..Adapters::default() }, 4, 0);
}

#[test]
fn sequences_of_one_batch_may_be_of_different_lengths() {
    if left_out() {
        return;
    }
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

#[test]
fn a_captured_pass_runs_with_the_swapped_adapter() {
    if left_out() {
        return;
    }
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
        // With the same ranks, bits are those of a pass of its own. Lower ranks are padded with zeros, so bits may
        // differ.
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
    // Factors of the same shapes in the same order, but of other projections or another layer.
    let of = |target: Target, layer: usize| {
        let mut lora = Lora::random(&model.config, &[(target, 4)], 8.0, 6).unwrap();
        lora.layers.iter_mut().enumerate().filter(|(i, _)| *i != layer).for_each(|(_, all)| *all = Default::default());
        Adapters { lora: Some(lora), ..Adapters::default() }
    };
    let mut on_q = upload(&of(Target::Q, 0)).swappable(&stream).unwrap();
    on_q.put(&stream, &upload(&of(Target::Q, 0))).unwrap();
    for other in [of(Target::Whole(Projection::AttnOut), 0), of(Target::Q, 1)] {
        assert!(matches!(on_q.put(&stream, &upload(&other)), Err(Error::AdapterMismatch { .. })));
    }
    let sequential = Adapters { mode: LoraMode::Sequential, ..first.clone() };
    assert!(matches!(adapters.put(&stream, &upload(&sequential)), Err(Error::AdapterMismatch { .. })), "not fused");
    assert!(matches!(upload(&sequential).swappable(&stream), Err(Error::AdapterMismatch { .. })), "not fused");
    assert!(matches!(upload(&first).put(&stream, &adapters), Err(Error::AdapterMismatch { .. })), "not swappable");
}

#[test]
fn a_gpu_that_no_kernel_is_written_for_is_refused() {
    if left_out() {
        return;
    }
    if on_gpu() {
        return;
    }
    let model = model::<f32>();
    let stream = emulated((7, 0));
    let adapters = DeviceAdapters::upload(&stream, &Adapters::default(), &model.config).unwrap();
    let uploaded = DeviceModel::upload(&stream, &model).unwrap();
    let refused = DeviceForward::new(&stream, &uploaded, &adapters, PassShape::whole(1, 3)).unwrap_err();
    let Error::Layer { what, source: LayerError::Kernel(KernelError::Unsupported { capability, .. }) } = &refused
    else {
        panic!("{refused}");
    };
    assert_eq!(*capability, (7, 0));
    assert!(what.starts_with("h.0."), "{refused}");
}

/// A device is lost during a pass, a capture or a replay: every later call on it is the same typed error, and another
/// device runs.
#[test]
fn a_lost_device_is_a_typed_error_and_another_one_runs() {
    if left_out() {
        return;
    }
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
            let lost =
                matches!(&result, Err(Error::Layer { source: LayerError::Driver(DriverError::DeviceLost { .. }), .. }));
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

#[test]
fn refused_calls_leave_the_next_pass_unchanged() {
    if left_out() {
        return;
    }
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
        Err(Error::CacheFull { tokens: 4, keys: 3, capacity: 6 })
    ));
    assert!(matches!(cache.set_length(2, 3), Err(Error::BatchSize { .. })));
    assert!(matches!(cache.set_length(0, 7), Err(Error::CacheFull { keys: 0, capacity: 6, .. })));
    let full = planned(PassShape { cache: Some(3), ..PassShape::whole(1, 4) }).unwrap_err();
    assert_eq!(full.to_string(), "4 tokens after 0 keys need more than the cache's 3 keys a sequence");
    let other = &mut Cache::new(stream, model, 2, 7).unwrap();
    for cache in [None, Some(other)] {
        let refused = forward.run(stream, model, adapters, cache);
        assert!(matches!(refused, Err(Error::CacheMismatch { expected: 6, .. })));
    }
    assert!(matches!(set(&mut forward, &good, None), Err(Error::CacheMismatch { expected: 6, actual: 0 })));
    // A pass that is issued twice adds its tokens to the cache once.
    cache.set_length(1, 0).unwrap();
    set(&mut forward, &good, Some((&cache, 0))).unwrap();
    for _ in 0..2 {
        forward.run(stream, model, adapters, Some(&mut cache)).unwrap();
        assert_eq!(cache.lengths(), [4, 4]);
    }
    // The graph was captured for other sequences of the cache than those that the tokens continue.
    let mut cache = Cache::new(stream, model, 3, 6).unwrap();
    set(&mut forward, &good, Some((&cache, 1))).unwrap();
    forward.capture(stream, model, adapters, Some(&mut cache)).unwrap();
    forward.replay(stream, Some(&mut cache)).unwrap();
    assert_eq!(cache.lengths(), [0, 4, 4]);
    cache.set_length(1, 0).unwrap();
    forward.set_tokens(stream, model, adapters, &good, Some((&cache, 0))).unwrap();
    assert!(matches!(forward.replay(stream, Some(&mut cache)), Err(Error::NotCaptured)));
    // A model of another shape than planned.
    let small = Config { layers: 1, ..model.config().clone() };
    let small = DeviceModel::upload(stream, &Model::random(&small, 1).unwrap()).unwrap();
    let refused = forward.run(stream, &small, adapters, Some(&mut cache));
    assert!(matches!(refused, Err(Error::ModelMismatch { what: "layers", .. })));

    // A prefix that is longer than the cache has room for, and adapters of another model: the cache stays as it was.
    let start = |cache: &mut Cache<f32>, config: &Config, length| {
        let prefix = Some(Prefix::random_layer(config, length, 1).unwrap());
        let adapters = Adapters { prefix, ..Adapters::default() };
        cache.start(stream, &DeviceAdapters::upload(stream, &adapters, config).unwrap())
    };
    let (config, lengths) = (model.config().clone(), cache.lengths().to_vec());
    assert!(matches!(start(&mut cache, &config, 7), Err(Error::CacheFull { tokens: 0, keys: 7, capacity: 6 })));
    let others = [
        (Config { layers: 1, ..config.clone() }, "the model of the adapters has 1 layers, expected 2"),
        (Config { layers: 3, ..config.clone() }, "the model of the adapters has 3 layers, expected 2"),
        (Config { d_model: 128, ..config.clone() }, "the model of the adapters has 128 features, expected 64"),
    ];
    for (other, says) in &others {
        // A prefix of no tokens copies nothing, but its model is checked as well.
        for length in [0, 2] {
            let refused = start(&mut cache, other, length).unwrap_err();
            assert!(matches!(refused, Error::ModelMismatch { .. }) && refused.to_string() == *says, "{refused}");
        }
    }
    assert_eq!(cache.lengths(), lengths);
    start(&mut cache, &config, 2).unwrap();
    assert_eq!(cache.lengths(), [2, 2, 2]);

    // A pass that needs more memory than there is.
    let huge = PassShape { logits: false, ..PassShape::whole(1 << 40, 40) };
    let refused = planned(huge).unwrap_err();
    assert!(matches!(refused, Error::Layer { .. }), "{refused}");
    assert_eq!(on_device.logits(&tokens()), before);
}
