//! The circumstances of a result: commit, processor, threads, memory, date.

use serde::Serialize;

/// The commit this binary was built from.
pub(crate) const COMMIT: &str = env!("FUSED_LORA_COMMIT");

/// The circumstances of a run of a command.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) command: String,
    pub(crate) commit: &'static str,
    pub(crate) version: &'static str,
    pub(crate) date: String,
    pub(crate) device: String,
    pub(crate) processor: String,
    pub(crate) cpu_features: Vec<&'static str>,
    pub(crate) dtype: String,
    pub(crate) threads: usize,
    /// The largest resident set of the process so far; `None` if the system does not tell.
    pub(crate) peak_memory_bytes: Option<u64>,
}

impl Run {
    pub(crate) fn new(device: &str, dtype: fused_lora::DType) -> Self {
        Self {
            command: std::env::args()
                .map(|a| if a.contains(' ') { format!("'{a}'") } else { a })
                .collect::<Vec<_>>()
                .join(" "),
            commit: COMMIT,
            version: env!("CARGO_PKG_VERSION"),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            device: device.into(),
            processor: processor(),
            cpu_features: cpu_features(),
            dtype: dtype.to_string(),
            threads: rayon::current_num_threads(),
            peak_memory_bytes: peak_memory(),
        }
    }

    /// The date without the time.
    pub(crate) fn day(&self) -> &str {
        self.date.split('T').next().unwrap_or_default()
    }

    /// All of it in one line, for the head of a table.
    pub(crate) fn summary(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        format!(
            "{} ({}), {} thread{plural}, {}, commit {}",
            self.device, self.processor, self.threads, self.dtype, self.commit
        )
    }
}

/// The processor's name.
pub(crate) fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name").and_then(|l| l.split_once(':')));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// The processor's vector instructions that matter to the CPU backend.
pub(crate) fn cpu_features() -> Vec<&'static str> {
    let mut found = vec![];
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! check {
            ($($name:tt),*) => { $(if is_x86_feature_detected!($name) { found.push($name); })* };
        }
        check!("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16", "avx512fp16");
    }
    #[cfg(target_arch = "aarch64")]
    {
        found.push("neon");
    }
    found
}

/// The process's largest resident set in bytes.
pub(crate) fn peak_memory() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// Bytes of memory that this process can still get: what the machine has left, within the limit of the control group.
/// `None` if the system does not tell.
pub(crate) fn available_memory() -> Option<u64> {
    let machine = kibibytes("/proc/meminfo", "MemAvailable:")?;
    let group = |file: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    let left = group("memory.max").zip(group("memory.current")).map(|(most, used)| most.saturating_sub(used));
    Some(left.map_or(machine, |left| left.min(machine)))
}

/// The machine's memory in bytes.
pub(crate) fn total_memory() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemTotal:")
}

/// A line `KEY N kB` of a system file, in bytes.
fn kibibytes(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
