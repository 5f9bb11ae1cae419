//! GPT-2 on the emulator of a GPU: the logits of every method against those computed in float64
//! (tests/golden/README.md), for every generation of GPUs; graphs; the number of launches.

use crate::common::device::{OnDevice, assert_close, bottleneck, emulated, left_out, lora, model, on_gpu, slices};
use crate::common::{expected, golden, tokens};
use fused_lora::Element;
use fused_lora_gpt2::adapter::bottleneck::Kind;
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::adapter::prefix::Prefix;
use fused_lora_gpt2::device::PassShape;
use fused_lora_gpt2::{Adapters, Config, Error, Forward, LoraMode, Model, peft};
use half::{bf16, f16};

/// Checks the logits against the golden ones, which were computed with unrounded weights.
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
    if left_out() {
        return;
    }
    every_method::<f32>();
}

#[test]
fn every_method_in_f16() {
    if left_out() {
        return;
    }
    every_method::<f16>();
}

#[test]
fn every_method_in_bf16() {
    if left_out() {
        return;
    }
    every_method::<bf16>();
}

/// Runs the kernels of every generation of GPUs: without bf16 matrix instructions, with mma.sync only, with wgmma.
#[test]
fn every_generation_of_gpus() {
    if left_out() {
        return;
    }
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
fn a_prefix_in_front_of_the_input() {
    if left_out() {
        return;
    }
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
    if left_out() {
        return;
    }
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

/// The launches of a block. Checks that the device ran as many kernels as the pass says.
fn launches(adapters: &Adapters<f32>) -> usize {
    let model = model::<f32>();
    let on_device = OnDevice::new(&model, adapters);
    let mut forward = on_device.forward(PassShape::whole(1, 3));
    on_device.set(&mut forward, &[vec![1, 2, 3]], None);
    let device = on_device.stream.device();
    device.take_all_counters();
    on_device.run(&mut forward, None);
    // Only the emulator counts launches.
    assert!(device.machine().is_none() || device.take_all_counters().len() == forward.launches());
    forward.launches_per_layer()
}

#[test]
fn a_block_is_seven_launches_and_a_fused_lora_adds_none() {
    if left_out() {
        return;
    }
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

/// Odd widths and vocabularies, whose rows are not multiples of 16 bytes.
#[test]
fn odd_shapes() {
    if left_out() {
        return;
    }
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
