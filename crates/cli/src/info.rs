//! `info`: what there is to compute with, and what to install to get more.

use std::fmt::Write;

use anyhow::Result;

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
    let _ = match cuda_driver() {
        Ok((version, devices)) => writeln!(
            text,
            "cuda       driver for CUDA {}.{}, {devices} device(s); this build has no CUDA kernels yet",
            version / 1000,
            version % 1000 / 10
        ),
        Err(reason) => {
            writeln!(text, "cuda       not available: {reason}\n           needs an NVIDIA GPU and its driver")
        }
    };
    let _ = writeln!(text, "\n--device auto takes: cpu");
    emit(&text)
}

/// The driver's CUDA version and how many devices it finds.
fn cuda_driver() -> Result<(i32, i32), String> {
    const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    // SAFETY: the driver library runs no code on loading that has requirements on its caller.
    let library = unsafe { libloading::Library::new(LIBRARY) }.map_err(|_| format!("no {LIBRARY}"))?;
    let call = |name: &str, code: i32| if code == 0 { Ok(()) } else { Err(format!("{name} answered {code}")) };
    let (mut version, mut devices) = (0i32, 0i32);
    // SAFETY: the signatures are those of cuda.h: `CUresult cuInit(unsigned)`, `CUresult cuDriverGetVersion(int *)`,
    // `CUresult cuDeviceGetCount(int *)`; the pointers are to live integers.
    unsafe {
        let init = library.get::<unsafe extern "C" fn(u32) -> i32>(b"cuInit").map_err(|e| e.to_string())?;
        call("cuInit", init(0))?;
        let get_version = library.get::<unsafe extern "C" fn(*mut i32) -> i32>(b"cuDriverGetVersion");
        call("cuDriverGetVersion", get_version.map_err(|e| e.to_string())?(&mut version))?;
        let get_count = library.get::<unsafe extern "C" fn(*mut i32) -> i32>(b"cuDeviceGetCount");
        call("cuDeviceGetCount", get_count.map_err(|e| e.to_string())?(&mut devices))?;
    }
    Ok((version, devices))
}
