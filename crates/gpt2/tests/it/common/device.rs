//! The golden model and its adapters on a GPU, or on the emulator of one.

use fused_lora::Element;
use fused_lora::device::{Device, EmulatorConfig, Stream};
use fused_lora_gpt2::adapter::bottleneck::{Bottleneck, Kind};
use fused_lora_gpt2::device::{Cache, DeviceAdapters, DeviceForward, DeviceModel, PassShape};
use fused_lora_gpt2::{Adapters, Config, LoraMode, Model, merge_folder, peft};

use super::golden;

pub fn on_gpu() -> bool {
    std::env::var("FUSED_LORA_TEST_DEVICE").is_ok_and(|device| device == "cuda")
}

/// Whether there is no device, so that tests on it are left out. The first such call says so on the process's stderr,
/// because the test harness captures what `eprintln` prints.
pub fn left_out() -> bool {
    static REPORT: std::sync::Once = std::sync::Once::new();
    if on_gpu() {
        return false;
    }
    let Err(error) = fused_lora::device::Device::expect_emulator() else { return false };
    REPORT.call_once(|| {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "left out: all tests on the emulator of a GPU ({error})");
    });
    true
}

/// A new emulated GPU.
pub fn emulated(compute_capability: (u32, u32)) -> Stream {
    let config = EmulatorConfig { multiprocessors: 6, compute_capability, ..EmulatorConfig::default() };
    Stream::new(&Device::emulator(config).unwrap()).unwrap()
}

pub fn stream() -> Stream {
    if on_gpu() { Stream::new(&Device::cuda(0).unwrap()).unwrap() } else { emulated((9, 0)) }
}

pub fn slices(tokens: &[Vec<u32>]) -> Vec<&[u32]> {
    tokens.iter().map(Vec::as_slice).collect()
}

/// The golden model with its weights rounded to `W`.
pub fn model<W: Element>() -> Model<W> {
    let place = tempfile::tempdir().unwrap();
    let rounded = place.path().join("rounded");
    merge_folder(&golden("model"), &[], &rounded, Some(W::DTYPE)).unwrap();
    Model::load(&rounded).unwrap()
}

pub fn lora<W: Element>(name: &str, config: &Config, mode: LoraMode) -> Adapters<W> {
    Adapters { lora: Some(peft::load_lora(&golden(name), config).unwrap()), mode, ..Adapters::default() }
}

pub fn bottleneck<W: Element>(kind: Kind, name: &str, config: &Config, drop: usize) -> Adapters<W> {
    let path = golden(&format!("adapter-{name}/adapter.safetensors"));
    let mut bottleneck = Bottleneck::load(&path, kind, config).unwrap();
    bottleneck.drop_lowest(drop);
    Adapters { bottleneck: Some(bottleneck), ..Adapters::default() }
}

/// A model and adapters on a device.
pub struct OnDevice<W> {
    pub stream: Stream,
    pub model: DeviceModel<W>,
    pub adapters: DeviceAdapters<W>,
}

impl<W: Element> OnDevice<W> {
    pub fn new(model: &Model<W>, adapters: &Adapters<W>) -> Self {
        Self::on(stream(), model, adapters)
    }

    pub fn on(stream: Stream, model: &Model<W>, adapters: &Adapters<W>) -> Self {
        let adapters = DeviceAdapters::upload(&stream, adapters, &model.config).unwrap();
        Self { model: DeviceModel::upload(&stream, model).unwrap(), stream, adapters }
    }

    pub fn forward(&self, shape: PassShape) -> DeviceForward<W> {
        DeviceForward::new(&self.stream, &self.model, &self.adapters, shape).unwrap()
    }

    pub fn set(&self, forward: &mut DeviceForward<W>, tokens: &[Vec<u32>], cache: Option<(&Cache<W>, usize)>) {
        forward.set_tokens(&self.stream, &self.model, &self.adapters, &slices(tokens), cache).unwrap();
    }

    pub fn run(&self, forward: &mut DeviceForward<W>, cache: Option<&mut Cache<W>>) -> Vec<f32> {
        forward.run(&self.stream, &self.model, &self.adapters, cache).unwrap();
        forward.logits(&self.stream, &self.model).unwrap()
    }

    pub fn logits(&self, tokens: &[Vec<u32>]) -> Vec<f32> {
        // With dependent launches, the emulator checks that each waits for the preceding one.
        let mut forward =
            self.forward(PassShape { dependent: true, ..PassShape::whole(tokens.len(), tokens[0].len()) });
        self.set(&mut forward, tokens, None);
        self.run(&mut forward, None)
    }
}

/// The largest error of a logit, in roundings of the largest logit to `W`. Weights are rounded once, an activation
/// about ten times in a block, a sequential LoRA's sum twice more; a LayerNorm divides the sum of these errors by the
/// standard deviation. Measured: at most
/// 11.7 (bf16, sequential `lora-all`), and 2.4 without a LoRA.
const ROUNDINGS_TOLERANCE: f64 = 16.0;
/// The largest error in f32 relative to the largest logit, where the roundings of sums dominate. Measured: at most
/// 2.3e-6.
const F32_TOLERANCE: f64 = 6e-6;

pub fn assert_close<W: Element>(got: &[f32], exact: &[f64], what: &str) {
    assert_eq!(got.len(), exact.len(), "{what}");
    let largest = exact.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let worst = got.iter().zip(exact).map(|(&got, exact)| (f64::from(got) - exact).abs()).fold(0.0, |worst, error| {
        // A NaN counts as an infinite difference.
        if error <= worst { worst } else { error }
    });
    let (of_largest, unit) = (worst / largest, W::DTYPE.unit_roundoff());
    println!("{}, {what}: {of_largest:.2e} of {largest:.2}, {:.1} u", W::DTYPE, of_largest / unit);
    assert!(
        of_largest <= ROUNDINGS_TOLERANCE * unit + F32_TOLERANCE,
        "{}, {what}: off by {of_largest:e} of {largest}",
        W::DTYPE
    );
}
