//! AddressSanitizer must be loaded when a process starts, so a test starts its own program again.

use std::process::Command;

use super::rig::{SANITIZED, is_sanitized, on_gpu};

/// Runs the tests of a module again under AddressSanitizer and UndefinedBehaviorSanitizer, without those in `skip`.
pub fn rerun_under_sanitizers(module: &str, skip: &[&str]) {
    if is_sanitized() || on_gpu() {
        return; // this is the second process already; on a GPU, compute-sanitizer does this work
    }
    let preload = fused_lora_emulator::sanitizer_preload().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .env(SANITIZED, "1")
        .env("LD_PRELOAD", preload)
        .env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0")
        .arg(format!("{}::", module.trim_start_matches("it::")))
        .args(skip.iter().flat_map(|name| ["--skip", name]))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let ran = !text.contains("running 0 tests");
    assert!(output.status.success() && ran && text.contains("test result: ok"), "{text}");
}
