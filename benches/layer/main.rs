//! One layer with fused LoRA, with bottleneck adapters, alone and, on a CPU, with sequential LoRA: `cargo bench`, or
//! `cargo bench --bench layer -- --device cuda` for a GPU. `--device emulator` counts the bytes that the CUDA kernels
//! request.
//!
//! Criterion prints times; `fused-lora bench` prints ratios within one process.
#![allow(missing_docs)]

mod cpu;
mod device;
mod device_backward;

use std::process::{Command, ExitCode};

use criterion::Criterion;
use fused_lora::device::{Device, EmulatorConfig};

/// The variable that names the device to the second process, which gets only the arguments that Criterion knows.
const DEVICE: &str = "FUSED_LORA_BENCH_DEVICE";

/// The bottleneck adapters that a LoRA of `rank` is compared with: name, whether it has a LayerNorm, width. Two have as
/// many parameters as the LoRA, and two have the paper's widths, which give 11M parameters on GPT-2 medium.
fn adapters((d_in, d_out): (usize, usize), rank: usize) -> [(&'static str, bool, usize); 4] {
    let lora_sized = |has_norm| fused_lora::bottleneck::width_for(d_out, has_norm, (rank * (d_in + d_out)) as f64);
    [
        ("adapter-h", false, lora_sized(false)),
        ("adapter-l", true, lora_sized(true)),
        ("adapter-h (paper)", false, 112),
        ("adapter-l (paper)", true, 224),
    ]
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--device") {
        return rerun_without(&arguments, at);
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

/// Starts this program again without `--device`, because Criterion refuses arguments that it does not know.
fn rerun_without(arguments: &[String], at: usize) -> ExitCode {
    let rest = arguments.iter().enumerate().filter(|(i, _)| *i != at && *i != at + 1).map(|(_, argument)| argument);
    let device = arguments.get(at + 1).map_or("", String::as_str);
    let program = std::env::current_exe().expect("it is running");
    let status = Command::new(program).args(rest).env(DEVICE, device).status().expect("it has started before");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
