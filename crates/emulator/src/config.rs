//! The configuration of launches, and their counters.

/// Which of the kernels' three builds runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Build {
    /// No instrumentation: only the checks that `gpu::` functions make.
    #[default]
    Plain,
    /// Every memory access is checked by the race detector.
    Race,
    /// AddressSanitizer and UndefinedBehaviorSanitizer.
    Sanitize,
}

/// Which of the ready threads runs next, and in which order CTAs start. CUDA guarantees neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Schedule {
    /// The thread that has waited longest; CTAs in ascending order.
    #[default]
    FirstIn,
    /// The thread that became ready last; CTAs in descending order.
    LastIn,
    /// A random thread, drawn from this seed; CTAs in random order.
    Random(u64),
}

/// When an asynchronous copy or matrix product completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Completion {
    /// When a thread waits for it, after all other threads have run.
    #[default]
    Late,
    /// At once when it is issued.
    Eager,
    /// At a random moment between issue and wait, drawn from the schedule's seed.
    Random,
}

/// The GPU that is emulated and how its launches run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Which build of the kernels.
    pub build: Build,
    /// The order of threads and CTAs.
    pub schedule: Schedule,
    /// The completion of asynchronous operations.
    pub completion: Completion,
    /// How many CTAs are resident at the same time; others start when these end.
    pub resident_ctas: u32,
    /// The compute capability that the device reports. Plans choose kernels by it.
    pub compute_capability: (u32, u32),
    /// The number of SMs that the device reports. Plans choose grids by it.
    pub multiprocessors: u32,
    /// Whether to group accesses by warp instruction, to count sectors and bank conflicts in [`Counters`]. Takes time.
    pub count_transactions: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            build: Build::Plain,
            schedule: Schedule::FirstIn,
            completion: Completion::Late,
            resident_ctas: 8,
            compute_capability: (9, 0),
            multiprocessors: 8,
            count_transactions: false,
        }
    }
}

/// How one launch used the memory system and the tensor cores.
///
/// Bytes and instructions are counted per thread; sectors (32 bytes) are counted once per warp instruction, and only
/// with [`Config::count_transactions`]. The ideal sectors are as many as the same bytes would need if they were
/// contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Counters {
    pub load_bytes: u64,
    pub load_instructions: u64,
    pub load_sectors: u64,
    pub load_ideal_sectors: u64,
    /// Loads of what is read once (`gpu::load_constant_once`, `gpu::load_input_once`). They are counted in `load_*` as well.
    pub once_bytes: u64,
    pub once_instructions: u64,
    pub once_sectors: u64,
    pub once_ideal_sectors: u64,
    pub store_bytes: u64,
    pub store_instructions: u64,
    pub store_sectors: u64,
    pub store_ideal_sectors: u64,
    /// Atomic and other strong accesses: tickets, flags, and values that are polled.
    pub atomic_bytes: u64,
    pub atomic_instructions: u64,
    /// Bytes of global memory read or written by `cp.async` and TMA.
    pub async_bytes: u64,
    /// Bytes of global memory loaded at least once.
    pub distinct_load_bytes: u64,
    /// Bytes of global memory stored at least once.
    pub distinct_store_bytes: u64,
    /// Wavefronts of shared memory: each serves 128 bytes at most.
    pub shared_wavefronts: u64,
    /// The wavefronts that bank conflicts added.
    pub shared_conflicts: u64,
    pub mma_instructions: u64,
    pub wgmma_instructions: u64,
    pub mma_flops: u64,
    /// Switches from one thread to another.
    pub switches: u64,
    /// How often a thread was found spinning.
    pub spins: u64,
    /// Threads that waited for the preceding launch (`gpu::grid_dependency_wait`).
    pub dependency_waits: u64,
}

impl Counters {
    /// Global bytes that threads and copy engines requested.
    pub fn global_bytes(&self) -> u64 {
        self.load_bytes + self.store_bytes + self.atomic_bytes + self.async_bytes
    }

    /// Global bytes that warps requested, in whole sectors: a sector that several lanes access together counts once.
    /// Needs [`Config::count_transactions`].
    pub fn requested_bytes(&self) -> u64 {
        32 * (self.load_sectors + self.store_sectors) + self.atomic_bytes + self.async_bytes
    }
}

/// [`Config`] in the layout of `emu::Config` on the C++ side.
#[repr(C)]
pub(crate) struct RawConfig {
    schedule: u32,
    completion: u32,
    seed: u64,
    resident_ctas: u32,
    count_transactions: u32,
    shared_bytes_limit: u32,
    reserved: u32,
}

impl RawConfig {
    pub(crate) fn shared_bytes_limit(&self) -> u32 {
        self.shared_bytes_limit
    }
}

impl From<&Config> for RawConfig {
    fn from(config: &Config) -> Self {
        let (schedule, seed) = match config.schedule {
            Schedule::FirstIn => (0, 1),
            Schedule::LastIn => (1, 1),
            Schedule::Random(seed) => (2, seed),
        };
        let completion = match config.completion {
            Completion::Late => 0,
            Completion::Eager => 1,
            Completion::Random => 2,
        };
        Self {
            schedule,
            completion,
            seed,
            resident_ctas: config.resident_ctas,
            count_transactions: config.count_transactions.into(),
            shared_bytes_limit: 227 << 10,
            reserved: 0,
        }
    }
}
