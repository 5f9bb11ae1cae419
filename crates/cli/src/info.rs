//! `info`: the devices, compilers and kernels that are available, and why others are not.

use std::fmt::Write;

use anyhow::Result;
use fused_lora::device::{self, Device, DeviceKind, Properties};

use crate::environment::{COMMIT, cpu_features, processor, total_memory};
use crate::output::emit;

/// Arguments of `info`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    let mut text = String::new();
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(text, "fused-lora {version}, commit {COMMIT}\n");
    let _ = writeln!(text, "cpu        {} ({} threads)", processor(), rayon::current_num_threads());
    let _ = writeln!(text, "           vector instructions: {}", cpu_features().join(" "));
    if let Some(bytes) = total_memory() {
        let _ = writeln!(text, "           {:.1} GiB of memory", bytes as f64 / (1u64 << 30) as f64);
    }
    let _ = writeln!(text, "           runs f32, f16 and bf16 weights, f32 arithmetic");
    describe_cuda(&mut text);
    describe_kernels(&mut text);
    let _ = match expect_emulator() {
        Ok(()) => writeln!(text, "emulator   available; a C++ compiler compiles a kernel when it is first launched"),
        Err(reason) => writeln!(text, "emulator   not available: {reason}"),
    };
    let _ = writeln!(text, "\n--device auto takes: cpu");
    emit(&text)
}

#[cfg(feature = "emulator")]
fn expect_emulator() -> fused_lora::Result<()> {
    Device::expect_emulator()
}

#[cfg(not(feature = "emulator"))]
fn expect_emulator() -> fused_lora::Result<()> {
    crate::common::Backend::Emulator.open().map(drop)
}

/// The GPUs and their properties, or why there are none.
fn describe_cuda(text: &mut String) {
    let count = match Device::cuda_count() {
        Ok(count) => count,
        Err(reason) => {
            let _ = writeln!(text, "cuda       not available: {reason}");
            return;
        }
    };
    for ordinal in 0..count {
        let _ = match Device::cuda_properties(ordinal) {
            Ok(properties) => writeln!(text, "cuda       {properties}\n{}", details(&properties)),
            Err(reason) => writeln!(text, "cuda       device {ordinal}: {reason}"),
        };
    }
}

/// The lines below a GPU's name.
fn details(properties: &Properties) -> String {
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    let (major, minor) = properties.compute_capability;
    let mut text = format!(
        "           compute capability {major}.{minor}, {} SMs, {:.1} GiB of memory, {} MiB of L2, {} KiB shared a block",
        properties.multiprocessors,
        gib(properties.memory_bytes),
        properties.l2_bytes >> 20,
        properties.shared_bytes_per_block >> 10,
    );
    if let DeviceKind::Cuda { driver_version: (major, minor), .. } = properties.kind {
        let _ = write!(text, "\n           driver for CUDA {major}.{minor}");
    }
    // Two transfers a clock. The clock is 0 if the driver does not tell it.
    let bandwidth = 2.0 * f64::from(properties.memory_clock_khz) * f64::from(properties.memory_bus_bits) / 8e6;
    if bandwidth > 0.0 {
        let _ = write!(text, ", {bandwidth:.0} GB/s of memory bandwidth by the memory clock");
    }
    text
}

/// Where the kernels' machine code comes from.
fn describe_kernels(text: &mut String) {
    let built_in = device::built_in();
    let _ = match built_in.nvcc {
        Some(nvcc) => writeln!(
            text,
            "kernels    {} of {} files built in as machine code by nvcc {nvcc}",
            built_in.compiled, built_in.files
        ),
        None => writeln!(text, "kernels    {} files built in as sources: the build found no nvcc", built_in.files),
    };
    let _ = match device::nvrtc_version() {
        Ok((major, minor)) => {
            writeln!(text, "           NVRTC {major}.{minor} compiles the others when they are first used")
        }
        Err(reason) => writeln!(text, "           no NVRTC to compile others: {reason}"),
    };
    let _ = match device::cache_folder() {
        Some(folder) => writeln!(text, "           cache: {}", folder.display()),
        None => writeln!(text, "           cache: none"),
    };
}
