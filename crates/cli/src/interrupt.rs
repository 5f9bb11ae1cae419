//! Ctrl-C and other requests to end: temporary files are removed, then the process dies by the signal.

use anyhow::{Context, Result};

/// Starts a thread that waits for SIGINT, SIGTERM and SIGHUP. On the first of them it removes what results grow in and
/// lets the signal have its usual effect, so that a shell sees 130, 143 or 129. A signal that this process was started
/// to ignore, as under `nohup`, is ignored.
#[cfg(unix)]
pub(crate) fn remove_temporary_files_when_ended() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let ignored = ignored_signals();
    let handled = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = signal_hook::iterator::Signals::new(handled).context("cannot wait for signals")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            // Held until the process is gone: no thread can make or rename a file any more, nor fail and report it.
            let _removed = fused_lora_gpt2::remove_staged();
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            std::process::exit(128 + signal);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start the thread of signals")?;
    Ok(())
}

/// On other systems a temporary file is left behind.
#[cfg(not(unix))]
pub(crate) fn remove_temporary_files_when_ended() -> Result<()> {
    Ok(())
}

/// The set of signals that are ignored, signal n as bit n - 1; empty where the system does not tell.
#[cfg(unix)]
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
