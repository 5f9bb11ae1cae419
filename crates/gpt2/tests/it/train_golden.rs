//! Losses, gradients and AdamW steps against those that transformers, PEFT and torch compute in float64
//! (tests/golden/README.md).

use crate::common::{expected, golden, model, tokens};
use approx::{assert_abs_diff_eq, assert_relative_eq};
use fused_lora::device::{self, Device, DeviceBuffer, DeviceParameter, EmulatorConfig, Stream};
use fused_lora::optim::Factor;
use fused_lora_gpt2::adapter::lora::Projection;
use fused_lora_gpt2::train::{AdamW, FactorGradients, Optimizer, Training};
use fused_lora_gpt2::{Adapters, Model, peft};

fn adapters(name: &str, model: &Model<f32>) -> Adapters<f32> {
    Adapters { lora: Some(peft::load_lora(&golden(name), &model.config).unwrap()), ..Adapters::default() }
}

/// Every factor of a golden LoRA with its key in PEFT.
fn named(layers: &[[Vec<FactorGradients>; 4]]) -> Vec<(String, &[f32])> {
    let mut named = vec![];
    for (i, layer) in layers.iter().enumerate() {
        for projection in Projection::ALL {
            for factors in &layer[projection as usize] {
                let module = format!("base_model.model.transformer.h.{i}.{}", projection.name());
                named.push((format!("{module}.lora_A.weight"), &factors.a[..]));
                named.push((format!("{module}.lora_B.weight"), &factors.b[..]));
            }
        }
    }
    named
}

/// Of a tensor's largest gradient. An element is a sum over 48 tokens of products of two sums of up to 256 terms,
/// behind two layers: some hundred roundings of 2⁻²⁴ that partly cancel. Measured: at most 2.9e-6.
const LARGEST_TOLERANCE: f64 = 8e-6;
/// Of an element itself and of the tensor's root mean square: what would let a tensor with one large element be wrong
/// everywhere else is caught here. Measured: at most 1.1e-5, in a B of keys, whose gradients cancel; elsewhere 4e-6.
const ELEMENT_TOLERANCE: f64 = 3e-5;

fn assert_gradient(got: &[f32], key: &str) {
    let exact = expected(key);
    assert_eq!(got.len(), exact.len(), "{key}");
    let largest = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let mean_square = exact.iter().map(|v| v * v).sum::<f64>() / exact.len() as f64;
    let mut worst = (0.0f64, 0.0f64);
    for (i, (&got, exact)) in got.iter().zip(&exact).enumerate() {
        let error = (f64::from(got) - exact).abs();
        let (of_largest, of_element) = (error / largest, error / (exact.abs() + mean_square.sqrt()));
        // A NaN fails this comparison.
        let close = of_largest <= LARGEST_TOLERANCE && of_element <= ELEMENT_TOLERANCE;
        assert!(close, "{key}[{i}] is {got}, expected {exact}: off by {of_largest:e} and {of_element:e}");
        worst = (worst.0.max(of_largest), worst.1.max(of_element));
    }
    println!("{key}: {:.1e} of the largest, {:.1e} of an element", worst.0, worst.1);
}

#[test]
fn losses_and_gradients() {
    let model = model();
    let tokens = tokens();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    for (name, tensors) in [("lora-attn", 4), ("lora-all", 16)] {
        let adapters = adapters(name, &model);
        let mut training = Training::new(&model, &adapters, 2, 24).unwrap();
        let exact = expected(&format!("{name}.loss"))[0];
        // The second call must not depend on the first.
        for _ in 0..2 {
            let loss = training.loss_and_gradients(&adapters, &tokens).unwrap();
            assert_abs_diff_eq!(loss, exact, epsilon = 4e-6);
            assert_eq!(loss, training.loss(&adapters, &tokens).unwrap());
        }
        let gradients = named(&training.gradients().layers);
        assert_eq!(gradients.len(), tensors);
        for (key, got) in gradients {
            assert_gradient(got, &format!("{name}.grad.{key}"));
        }
    }
}

fn assert_trained(layer: usize, which: &str, got: &[f32]) {
    let module = format!("base_model.model.transformer.h.{layer}.attn.c_attn");
    let exact = expected(&format!("lora-attn.adamw.final.{module}.lora_{which}.weight"));
    assert_eq!(got.len(), exact.len());
    let mut worst = 0.0f64;
    for (got, exact) in got.iter().zip(&exact) {
        let error = (f64::from(*got) - exact).abs();
        // Factors change by up to 8e-2; the project requires 1e-4.
        assert!(error <= 4e-6, "layer {layer}, {which}: {got} {exact}");
        worst = worst.max(error);
    }
    println!("layer {layer}, {which}: off by {worst:.1e}");
}

const GOLDEN: AdamW =
    AdamW { lr: 1e-2, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01, lora_plus_ratio: 1.0, max_norm: None };

#[test]
fn eight_steps_of_adamw() {
    let model = model();
    let tokens = tokens();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let mut adapters = adapters("lora-attn", &model);
    let before = adapters.clone();
    let mut training = Training::new(&model, &adapters, 2, 24).unwrap();
    let mut optimizer = Optimizer::new(&adapters, GOLDEN).unwrap();
    let losses = expected("lora-attn.adamw.losses");
    assert_eq!(losses.len(), 8);
    for (i, exact) in losses.into_iter().enumerate() {
        let loss = training.loss_and_gradients(&adapters, &tokens).unwrap();
        println!("step {i}: loss off by {:.1e}", (loss - exact).abs());
        assert_abs_diff_eq!(loss, exact, epsilon = 1e-5);
        let step = optimizer.step(&mut adapters, training.gradients()).unwrap();
        assert_eq!((step.skipped, step.clipped_by), (None, 1.0));
    }
    assert_eq!(optimizer.steps(), 8);

    let lora = adapters.lora.unwrap();
    for (i, layer) in lora.layers.iter().enumerate() {
        let [factors] = &layer[Projection::Qkv as usize][..] else { panic!("one pair of factors") };
        assert_trained(i, "A", &factors.a);
        assert_trained(i, "B", &factors.b);
    }
    // A clone that shares the tensors is unchanged.
    let fresh = peft::load_lora::<f32>(&golden("lora-attn"), &model.config).unwrap();
    for (kept, fresh) in before.lora.unwrap().layers.iter().zip(&fresh.layers) {
        assert_eq!((&kept[0][0].a[..], &kept[0][0].b[..]), (&fresh[0][0].a[..], &fresh[0][0].b[..]));
    }
}

/// A factor and its state in device memory.
struct OnDevice {
    factor: Factor,
    gradient: DeviceBuffer<f32>,
    value: DeviceBuffer<f32>,
    first_moment: DeviceBuffer<f32>,
    second_moment: DeviceBuffer<f32>,
}

impl OnDevice {
    fn new(stream: &Stream, factor: Factor, value: &[f32]) -> Self {
        let zeros = || DeviceBuffer::zeros(stream, value.len()).unwrap();
        let value = DeviceBuffer::from_slice(stream, value).unwrap();
        Self { factor, gradient: zeros(), first_moment: zeros(), second_moment: zeros(), value }
    }

    fn view(&mut self) -> DeviceParameter<'_, f32> {
        DeviceParameter {
            factor: self.factor,
            gradient: self.gradient.as_slice(),
            value: self.value.as_mut_slice(),
            first_moment: self.first_moment.as_mut_slice(),
            second_moment: self.second_moment.as_mut_slice(),
            stored: None,
        }
    }
}

/// The same steps by the optimizer's kernel, with the gradients of training.
#[test]
fn eight_steps_of_adamw_on_a_device() {
    if crate::common::device::left_out() {
        return;
    }
    let stream = Stream::new(&Device::emulator(EmulatorConfig::default()).unwrap()).unwrap();
    let model = model();
    let tokens = tokens();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let mut adapters = adapters("lora-attn", &model);
    let mut training = Training::new(&model, &adapters, 2, 24).unwrap();
    let mut on_host = Optimizer::new(&adapters, GOLDEN).unwrap();
    let factors = adapters.lora.as_ref().unwrap().layers.iter().flatten().flatten();
    let mut tensors: Vec<OnDevice> = factors
        .flat_map(|f| [OnDevice::new(&stream, Factor::A, &f.a), OnDevice::new(&stream, Factor::B, &f.b)])
        .collect();
    let views: Vec<_> = tensors.iter_mut().map(OnDevice::view).collect();
    let mut on_device = device::Optimizer::new(&stream, GOLDEN, &views).unwrap();
    for _ in 0..8 {
        training.loss_and_gradients(&adapters, &tokens).unwrap();
        let gradients = training.gradients().iter().flat_map(|g| [&g.a, &g.b]);
        for (tensor, gradient) in tensors.iter_mut().zip(gradients) {
            tensor.gradient.upload(&stream, gradient).unwrap();
        }
        let mut views: Vec<_> = tensors.iter_mut().map(OnDevice::view).collect();
        on_device.step(&stream, &mut views).unwrap();
        let step = on_host.step(&mut adapters, training.gradients()).unwrap();
        let told = on_device.last_step(&stream).unwrap().unwrap();
        assert_relative_eq!(told.norm, step.norm, max_relative = 1e-12);
        assert_eq!(told.skipped, None);
    }
    assert_eq!(on_device.steps(&stream).unwrap(), 8);
    for (i, factors) in tensors.chunks(2).enumerate() {
        assert_trained(i, "A", &factors[0].value.to_vec(&stream).unwrap());
        assert_trained(i, "B", &factors[1].value.to_vec(&stream).unwrap());
    }
}
