//! One layer, fused against base (on a CPU against sequential, too) and against a bottleneck adapter behind it: `cargo bench`, or
//! `cargo bench --bench layer -- --device cuda` for a GPU, `--device emulator` for what its kernels ask of memory.
//!
//! Criterion prints times; `fused-lora bench` prints ratios within one process.
#![allow(missing_docs)]

mod cpu;
mod device;
mod device_backward;

use std::process::{Command, ExitCode};

use criterion::Criterion;
use fused_lora::device::{Device, EmulatorConfig};

/// Where to run, for the process that Criterion's own arguments are left to.
const DEVICE: &str = "FUSED_LORA_BENCH_DEVICE";

/// The bottleneck adapters beside a LoRA of `rank`: name, whether it has a LayerNorm, width. Those of as many parameters, and
/// those of the widths that have the paper's 11M parameters on GPT-2 medium.
fn adapters((d_in, d_out): (usize, usize), rank: usize) -> [(&'static str, bool, usize); 4] {
    let as_many = |has_norm| fused_lora::bottleneck::width_for(d_out, has_norm, (rank * (d_in + d_out)) as f64);
    [
        ("adapter-h", false, as_many(false)),
        ("adapter-l", true, as_many(true)),
        ("adapter-h (paper)", false, 112),
        ("adapter-l (paper)", true, 224),
    ]
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--device") {
        return again_without(&arguments, at);
    }
    let criterion = || Criterion::default().configure_from_args();
    let device = std::env::var(DEVICE).unwrap_or_default();
    let ran = match device.as_str() {
        "" | "cpu" => {
            let mut criterion = criterion();
            cpu::forward(&mut criterion);
            cpu::backward(&mut criterion);
            criterion.final_summary();
            Ok(())
        }
        "cuda" => Device::cuda(0).and_then(|device| {
            let mut criterion = criterion();
            device::time(&mut criterion, &device)?;
            device_backward::time(&mut criterion, &device)?;
            criterion.final_summary();
            Ok(())
        }),
        "emulator" => {
            let counting =
                EmulatorConfig { count_transactions: true, multiprocessors: 132, ..EmulatorConfig::default() };
            Device::emulator(counting).and_then(|device| {
                device::count(&device)?;
                device_backward::count(&device)
            })
        }
        other => {
            eprintln!("--device {other}: expected cpu, cuda or emulator");
            return ExitCode::FAILURE;
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Criterion refuses arguments that are not its own.
fn again_without(arguments: &[String], at: usize) -> ExitCode {
    let rest = arguments.iter().enumerate().filter(|(i, _)| *i != at && *i != at + 1).map(|(_, argument)| argument);
    let device = arguments.get(at + 1).map_or("", String::as_str);
    let program = std::env::current_exe().expect("it is running");
    let status = Command::new(program).args(rest).env(DEVICE, device).status().expect("it has started before");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
