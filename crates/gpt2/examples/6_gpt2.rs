//! A small random GPT-2 with two LoRAs on a GPU, or on the emulator of one: a pass captured once as a CUDA graph, and
//! replayed with either LoRA. The logits are compared with the CPU's.
//!
//!     cargo run --release --package fused-lora-gpt2 --example 6_gpt2

use fused_lora::device::{Device, EmulatorConfig, Stream};
use fused_lora::lora::Activation;
use fused_lora::{DriverError, Error};
use fused_lora_gpt2::adapter::lora::{Lora, Projection, Target};
use fused_lora_gpt2::device::{DeviceAdapters, DeviceForward, DeviceModel, PassShape};
use fused_lora_gpt2::{Adapters, Config, Forward, Model, Result};

/// The first GPU, or the emulator of one where there is no driver or no GPU.
fn open_device() -> fused_lora::Result<Device> {
    use DriverError::{NoDevice, NotInstalled, TooOld};
    match Device::cuda(0) {
        Err(Error::Driver(NotInstalled { .. } | TooOld { .. } | NoDevice { .. })) => {
            Device::emulator(EmulatorConfig::default())
        }
        opened => opened,
    }
}

pub(crate) fn main() -> Result<()> {
    let config = Config {
        layers: 2,
        d_model: 64,
        heads: 4,
        d_ff: 256,
        vocabulary: 96,
        positions: 32,
        layer_norm_epsilon: 1e-5,
        activation: Activation::GeluNew,
        scale_attention: true,
        scale_attention_by_layer: false,
    };
    let model = Model::<f32>::random(&config, 1)?;
    let targets = [(Target::Whole(Projection::Qkv), 8), (Target::Whole(Projection::MlpOut), 4)];
    let lora = |seed| -> Result<Adapters<f32>> {
        Ok(Adapters { lora: Some(Lora::random(&config, &targets, 16.0, seed)?), ..Adapters::default() })
    };
    let loras = [lora(2)?, lora(3)?];
    let tokens: [&[u32]; 2] = [&[3, 14, 15, 9, 26, 53], &[58, 9, 79, 32, 38, 46]];

    let stream = Stream::new(&open_device()?)?;
    let on_device = DeviceModel::upload(&stream, &model)?;
    let mut served = DeviceAdapters::upload(&stream, &loras[0], &config)?.swappable(&stream)?;
    let mut pass = DeviceForward::new(&stream, &on_device, &served, PassShape::whole(tokens.len(), tokens[0].len()))?;
    pass.set_tokens(&stream, &on_device, &served, &tokens, None)?;
    pass.capture(&stream, &on_device, &served, None)?;

    let (mut cpu, mut worst) = (Forward::new(), 0.0f32);
    for lora in &loras {
        served.put(&stream, &DeviceAdapters::upload(&stream, lora, &config)?)?;
        pass.replay(&stream, None)?;
        let got = pass.logits(&stream, &on_device)?;
        let expected = cpu.logits(&model, lora, &tokens)?;
        let largest = expected.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
        let errors = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs() / largest);
        worst = errors.fold(worst, |worst, error| if error <= worst { worst } else { error });
    }
    println!(
        "on {}: {} LoRAs in one captured pass of {} launches; logits differ from the CPU's by {worst:.1e} of the largest",
        stream.device().properties(),
        loras.len(),
        pass.launches()
    );
    assert!(worst < 1e-4);
    Ok(())
}
