//! Arguments that several subcommands share: device, type and model.

use std::path::Path;

use anyhow::{Context, Result, bail};
use fused_lora::device::Device;
use fused_lora::{DType, Element};
use fused_lora_gpt2::{Config, Model};

use crate::output::warn;
pub(crate) use crate::results::ResultFiles;

/// Where and in which type to compute.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ComputeArgs {
    /// Device to compute on; auto takes a GPU if there is one and the command supports it
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceArg,
    /// Type that weights are stored in; arithmetic is f32 on a CPU
    #[arg(long, value_name = "f32|f16|bf16", default_value = "f32")]
    pub(crate) dtype: DType,
    /// Threads to compute with [default: one for each core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DeviceArg {
    /// A GPU if there is one and the command supports it, else the CPU
    Auto,
    Cpu,
    Cuda,
    /// The CUDA kernels, emulated on the CPU; they are counted, not timed
    Emulator,
}

/// What a command computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Cpu,
    Cuda,
    Emulator,
}

impl Backend {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
            Backend::Emulator => "emulator",
        }
    }
}

/// SMs of the emulated device: as many as an H100 or H200 has.
#[cfg(feature = "emulator")]
const MULTIPROCESSORS: u32 = 132;

impl Backend {
    /// Opens the device; an error for the CPU.
    pub(crate) fn open(self) -> fused_lora::Result<Device> {
        match self {
            Backend::Cpu => {
                Err(fused_lora::DriverError::NotInstalled { reason: "the CPU was asked for".to_owned() }.into())
            }
            Backend::Cuda => Device::cuda(0),
            #[cfg(feature = "emulator")]
            Backend::Emulator => Device::emulator(fused_lora::device::EmulatorConfig {
                multiprocessors: MULTIPROCESSORS,
                ..fused_lora::device::EmulatorConfig::default()
            }),
            #[cfg(not(feature = "emulator"))]
            Backend::Emulator => Err(fused_lora::Error::Driver(fused_lora::DriverError::NoEmulator {
                reason: "this build has none: build it with `--features emulator`".to_owned(),
            })),
        }
    }
}

impl ComputeArgs {
    /// Chooses among the devices that the command supports, and starts the thread pool.
    pub(crate) fn start(&self, supported: &[Backend]) -> Result<Backend> {
        let backend = match self.device {
            DeviceArg::Auto if supported.contains(&Backend::Cuda) && Device::cuda_count().is_ok_and(|n| n > 0) => {
                Backend::Cuda
            }
            DeviceArg::Auto | DeviceArg::Cpu => Backend::Cpu,
            DeviceArg::Cuda => Backend::Cuda,
            DeviceArg::Emulator => Backend::Emulator,
        };
        if !supported.contains(&backend) {
            let supported: Vec<_> = supported.iter().map(|backend| backend.name()).collect();
            bail!(
                "device '{}' is not available to this command, expected auto or {}",
                backend.name(),
                supported.join(" or ")
            );
        }
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
            pool.build_global().context("cannot start the threads")?;
        }
        Ok(backend)
    }

    /// Whether `--device cpu` was given.
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
    /// Seed of all random values
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

impl ModelArgs {
    /// Loads the model of a folder, or makes one of the named size with random weights.
    pub(crate) fn load<W: Element>(&self) -> Result<Model<W>> {
        let folder = Path::new(&self.model);
        if folder.is_dir() {
            let model = Model::load(folder)?;
            warn(model.warnings());
            return Ok(model);
        }
        match Config::named(&self.model) {
            Some(config) => Ok(Model::random(&config, self.seed)?),
            None => bail!("{}: neither a folder nor one of gpt2, gpt2-medium, gpt2-large, gpt2-xl", self.model),
        }
    }
}

/// Calls a function that is generic over the weights' type with the type that a [`DType`] names.
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

/// A whole number of at least 1.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(value) => Ok(value),
        Err(_) => Err(format!("'{text}' is not a whole number")),
    }
}

/// A number of parameters: `11064576`, `11M`, `0.5M`, `300k`.
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

/// A small emulated GPU for tests; `None` without a C++ compiler. The first such call says so on the process's stderr,
/// because the test harness captures what `eprintln` prints.
#[cfg(all(test, feature = "emulator"))]
pub(crate) fn emulator_for_tests() -> Option<Device> {
    use std::io::Write;

    use fused_lora::device::EmulatorConfig;

    static REPORT: std::sync::Once = std::sync::Once::new();
    if let Err(error) = Device::expect_emulator() {
        REPORT
            .call_once(|| drop(writeln!(std::io::stderr(), "left out: all tests on the emulator of a GPU ({error})")));
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
