//! SIGINT (Ctrl-C), SIGTERM and SIGHUP: temporary files are removed, then the signal ends the process.

use anyhow::{Context, Result};

/// Starts a thread that waits for SIGINT, SIGTERM and SIGHUP. At the first of them it removes the temporary files of
/// results and lets the signal end the process, so that a shell sees exit status 130, 143 or 129. A signal that was
/// ignored when the process started, as under `nohup`, stays ignored.
#[cfg(unix)]
pub(crate) fn remove_temporary_files_when_ended() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let ignored = ignored_signals();
    let handled = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = signal_hook::iterator::Signals::new(handled).context("cannot wait for signals")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            // Held until the process ends, so that no other thread makes, renames or reports a file in the meantime.
            let _removed = fused_lora_gpt2::remove_staged();
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            std::process::exit(128 + signal);
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .context("cannot start the thread that waits for signals")?;
    Ok(())
}

/// On other systems a temporary file is left behind.
#[cfg(not(unix))]
pub(crate) fn remove_temporary_files_when_ended() -> Result<()> {
    Ok(())
}

/// The ignored signals, signal n as bit n - 1; none if the system does not tell.
#[cfg(unix)]
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
