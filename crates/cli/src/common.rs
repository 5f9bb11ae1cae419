//! What subcommands share: where to compute, on what model, in which type.

use std::path::Path;

use anyhow::{Context, Result, bail};
use fused_lora::device::Device;
use fused_lora::{DType, Element};
use fused_lora_gpt2::{Config, Model};

use crate::output::warn;
pub(crate) use crate::results::ResultFiles;

/// Where and in which type to compute.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Compute {
    /// Device to compute on: auto takes the best there is
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceArg,
    /// Type that weights are stored in; arithmetic is f32 on a CPU
    #[arg(long, value_name = "f32|f16|bf16", default_value = "f32")]
    pub(crate) dtype: DType,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DeviceArg {
    /// A GPU if there is one and the command runs on it, else the CPU
    Auto,
    Cpu,
    Cuda,
    /// The GPU's kernels on the CPU, counted instead of timed
    Emulator,
}

/// What a command computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Cpu,
    Cuda,
    Emulator,
}

impl On {
    /// As the command line spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            On::Cpu => "cpu",
            On::Cuda => "cuda",
            On::Emulator => "emulator",
        }
    }
}

/// SMs of the device that the emulator's launches are planned for: an H100 or H200.
#[cfg(feature = "emulator")]
const MULTIPROCESSORS: u32 = 132;

impl On {
    /// The device; an error for the CPU, which is none.
    pub(crate) fn open(self) -> fused_lora::Result<Device> {
        match self {
            On::Cpu => Err(fused_lora::DriverError::NotInstalled { reason: "the CPU was asked for".to_owned() }.into()),
            On::Cuda => Device::cuda(0),
            #[cfg(feature = "emulator")]
            On::Emulator => Device::emulator(fused_lora::device::EmulatorConfig {
                multiprocessors: MULTIPROCESSORS,
                ..fused_lora::device::EmulatorConfig::default()
            }),
            #[cfg(not(feature = "emulator"))]
            On::Emulator => Err(fused_lora::Error::Driver(fused_lora::DriverError::NoEmulator {
                reason: "this build has none: build it with `--features emulator`".to_owned(),
            })),
        }
    }
}

impl Compute {
    /// Resolves the device among those that the command runs on, and starts the thread pool.
    pub(crate) fn start(&self, able: &[On]) -> Result<On> {
        let on = match self.device {
            DeviceArg::Auto if able.contains(&On::Cuda) && Device::cuda_count().is_ok_and(|n| n > 0) => On::Cuda,
            DeviceArg::Auto | DeviceArg::Cpu => On::Cpu,
            DeviceArg::Cuda => On::Cuda,
            DeviceArg::Emulator => On::Emulator,
        };
        if !able.contains(&on) {
            let able: Vec<_> = able.iter().map(|on| on.name()).collect();
            bail!("device '{}' is not available to this command, expected auto or {}", on.name(), able.join(" or "));
        }
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
            pool.build_global().context("cannot start the threads")?;
        }
        Ok(on)
    }

    /// Whether the CPU was asked for by name.
    pub(crate) fn asks_for_cpu(&self) -> bool {
        self.device == DeviceArg::Cpu
    }
}

/// The model to time.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// A model folder (config.json, model.safetensors), or gpt2, gpt2-medium, gpt2-large, gpt2-xl for random weights
    #[arg(long, value_name = "DIR|NAME", default_value = "gpt2-medium")]
    pub(crate) model: String,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

impl ModelArgs {
    /// Loads the folder, or makes random weights of the named size.
    pub(crate) fn load<W: Element>(&self) -> Result<Model<W>> {
        let folder = Path::new(&self.model);
        if folder.is_dir() {
            let model = Model::load(folder)?;
            warn(model.warnings());
            return Ok(model);
        }
        match Config::named(&self.model) {
            Some(config) => Ok(Model::random(&config, self.seed)?),
            None => bail!("{}: not a folder, and not one of gpt2, gpt2-medium, gpt2-large, gpt2-xl", self.model),
        }
    }
}

/// Calls a function that is generic over the weights' type with the type a [`DType`] names.
macro_rules! with_dtype {
    ($dtype:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $dtype {
            fused_lora::DType::F32 => $function::<f32>($($argument),*),
            fused_lora::DType::F16 => $function::<half::f16>($($argument),*),
            fused_lora::DType::Bf16 => $function::<half::bf16>($($argument),*),
        }
    };
}
pub(crate) use with_dtype;

/// `a,b,c` of whole numbers.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(value) => Ok(value),
        Err(_) => Err(format!("'{text}' is not a whole number")),
    }
}

/// A parameter budget: `11064576`, `11M`, `0.5M`, `300k`.
pub(crate) fn parse_budget(text: &str) -> Result<usize, String> {
    let (number, unit) = match text.to_ascii_lowercase() {
        t if t.ends_with('m') => (t.trim_end_matches('m').to_owned(), 1e6),
        t if t.ends_with('k') => (t.trim_end_matches('k').to_owned(), 1e3),
        t => (t, 1.0),
    };
    match number.parse::<f64>() {
        Ok(value) if value > 0.0 && value * unit < 1e12 => Ok((value * unit).round() as usize),
        _ => Err(format!("'{text}' is not a number of parameters such as 393216, 11M or 0.5M")),
    }
}

/// A small emulated GPU for tests. `None` without a C++ compiler, which is said once on the process's own error stream: the
/// test harness keeps what tests print.
#[cfg(all(test, feature = "emulator"))]
pub(crate) fn emulator_for_tests() -> Option<Device> {
    use std::io::Write;

    use fused_lora::device::EmulatorConfig;

    static SAY: std::sync::Once = std::sync::Once::new();
    if let Err(error) = Device::expect_emulator() {
        SAY.call_once(|| drop(writeln!(std::io::stderr(), "left out: all tests on the emulator of a GPU ({error})")));
        return None;
    }
    let config = EmulatorConfig { multiprocessors: 4, ..EmulatorConfig::default() };
    Some(Device::emulator(config).expect("there is a compiler"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets() {
        assert_eq!(parse_budget("11M"), Ok(11_000_000));
        assert_eq!(parse_budget("0.5m"), Ok(500_000));
        assert_eq!(parse_budget("393216"), Ok(393_216));
        for bad in ["", "M", "-1", "0", "nan", "1e99M", "eleven"] {
            assert!(parse_budget(bad).is_err(), "{bad}");
        }
    }
}
