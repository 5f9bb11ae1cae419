//! Drivers that are there and of no use: stubs, compiled here, that a second process finds before any real one.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;

use fused_lora::device::Device;
use fused_lora::{DriverError, Error};

/// Set in the second process: what it expects.
const EXPECTED: &str = "FUSED_LORA_TEST_DRIVER";

/// The driver functions that the library calls, from its own list.
fn functions() -> Vec<&'static str> {
    let source = include_str!("../../src/device/cuda/driver.rs");
    let list = source.split("\ndriver_functions! {").nth(1).unwrap().split("\n}").next().unwrap();
    let names: Vec<_> = list.lines().filter_map(|line| line.trim().strip_suffix(';')?.split_once('(')).collect();
    let mut names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
    // One of them goes over several lines.
    names.extend([
        "cuLaunchKernelEx",
        "cuGetErrorName",
        "cuGetErrorString",
        "cuEventElapsedTime",
        "cuStreamGetCaptureInfo_v2",
    ]);
    assert!(names.len() > 40 && names.iter().all(|name| name.starts_with("cu")), "{names:?}");
    names
}

/// A driver whose functions all answer the same number.
fn compile(folder: &Path, functions: &[&str], answer: u32) {
    let bodies: Vec<String> =
        functions.iter().map(|name| format!("int {name}(void) {{ return {answer}; }}\n")).collect();
    std::fs::write(folder.join("driver.c"), bodies.concat()).unwrap();
    let library = folder.join("libcuda.so.1");
    let output = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(folder.join("driver.c")).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `in_the_second_process` with that driver.
fn with_driver(functions: &[&str], answer: u32, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    compile(folder.path(), functions, answer);
    // Where a linker that knows only the toolkit would look first.
    std::fs::write(folder.path().join("libcuda.so"), "not a library").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .env(EXPECTED, expected)
        .env("LD_LIBRARY_PATH", folder.path())
        .args(["--exact", "device::driver::in_the_second_process"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("test result: ok. 1 passed"), "{text}");
}

#[test]
fn in_the_second_process() {
    let Ok(expected) = std::env::var(EXPECTED) else { return };
    for answer in [Device::cuda(0).map(drop), Device::cuda_count().map(drop), Device::cuda_properties(0).map(drop)] {
        let error = answer.unwrap_err();
        let kind = match &error {
            Error::Driver(DriverError::TooOld { symbol }) => format!("too old: {symbol}"),
            Error::Driver(DriverError::NotInstalled { reason }) => format!("no driver: {reason}"),
            Error::Driver(DriverError::NoDevice { ordinal, count }) => format!("device {ordinal} of {count}"),
            other => format!("{other:?}"),
        };
        assert_eq!(kind, expected, "{error}");
    }
    if expected.starts_with("device") {
        assert_eq!(Device::cuda(3).unwrap_err(), Error::Driver(DriverError::NoDevice { ordinal: 3, count: 0 }));
    }
}

#[test]
fn a_driver_that_lacks_a_function_is_too_old() {
    let all = functions();
    for missing in ["cuLaunchKernelEx", "cuGetErrorName", "cuEventElapsedTime"] {
        let others: Vec<_> = all.iter().copied().filter(|name| *name != missing).collect();
        with_driver(&others, 0, &format!("too old: {missing}"));
    }
}

#[test]
fn a_driver_without_a_device_says_so() {
    with_driver(&functions(), 100, "device 0 of 0");
}

#[test]
fn a_stub_of_the_toolkit_is_no_driver() {
    with_driver(&functions(), 34, "no driver: CUDA error 34 () from cuInit");
}

#[test]
fn an_error_that_the_bindings_do_not_know_is_a_number() {
    with_driver(&functions(), 123_456, "no driver: CUDA error 123456 () from cuInit");
}
