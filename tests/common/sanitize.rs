//! Which builds of the kernels this process can run: the sanitizers' needs a process of its own.

use std::process::Command;

use fused_lora_emulator::Build;

/// Set in the process that the sanitizer's test starts.
const SANITIZED: &str = "FUSED_LORA_TEST_SANITIZED";

pub fn builds() -> Vec<Build> {
    if std::env::var_os(SANITIZED).is_some() { vec![Build::Sanitize] } else { vec![Build::Plain, Build::Race] }
}

/// Runs this test binary again, without the tests named, under AddressSanitizer and UndefinedBehaviorSanitizer.
pub fn rerun_under_sanitizers(skip: &[&str]) {
    if std::env::var_os(SANITIZED).is_some() {
        return; // this is the second process
    }
    let preload = fused_lora_emulator::sanitizer_preload().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .env(SANITIZED, "1")
        .env("LD_PRELOAD", preload)
        .env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0")
        .args(skip.iter().flat_map(|name| ["--skip", name]))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("test result: ok"), "{text}");
}
