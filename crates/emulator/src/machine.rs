//! One emulated GPU.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::sync::{Mutex, PoisonError};

use crate::config::{Completion, Config, Counters, RawConfig, Schedule};
use crate::error::{Error, Fault};
use crate::kernels::Kernels;
use crate::library::{KernelInfo, MachineApi, RawLaunch, RawMachine};
use crate::symbols;

/// A launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Name of the kernel.
    pub kernel: &'a str,
    /// CTAs in each direction.
    pub grid: [u32; 3],
    /// Threads of a CTA.
    pub block: u32,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: u32,
    /// CTAs of a cluster; 1 for no cluster.
    pub cluster: u32,
    /// The parameter struct, byte for byte.
    pub params: &'a [u8],
}

/// The part of an allocation of global memory that work accessed in some way: from the first such byte to the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AccessedRange {
    /// The allocation's address.
    pub allocation: u64,
    /// The address of the first byte.
    pub from: u64,
    /// The address behind the last byte.
    pub to: u64,
}

/// What a launch accessed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accessed {
    /// Where it made atomic read-modify-writes.
    pub updated: Vec<AccessedRange>,
    /// What it wrote in any way.
    pub written: Vec<AccessedRange>,
    /// What it read in any way.
    pub read: Vec<AccessedRange>,
    /// What it read through the non-coherent path (`gpu::load_constant`, `gpu::load_constant_once`).
    pub read_as_constant: Vec<AccessedRange>,
}

/// A tensor in global memory, and the shape of the boxes that are copied from or to it. The contiguous dimension comes
/// first.
#[derive(Debug, Clone, Copy)]
pub struct TensorMap<'a> {
    /// The address of the first element; a multiple of 16.
    pub address: u64,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Elements in each dimension.
    pub dims: &'a [u64],
    /// Strides in bytes of every dimension but the first.
    pub strides: &'a [u64],
    /// Elements of a box in each dimension.
    pub boxes: &'a [u32],
    /// Whether boxes are stored in shared memory with the 128-byte swizzle.
    pub swizzle_128: bool,
}

/// An emulated GPU with its own memory. Launches on one machine run one after the other; several machines may run at
/// the same time on several OS threads.
pub struct Machine {
    api: &'static MachineApi,
    raw: Mutex<Raw>,
    config: Mutex<Config>,
    kernels: Kernels,
    /// The kernels of all sources that have been compiled so far.
    loaded: Mutex<HashMap<String, KernelInfo>>,
}

struct Raw(*mut RawMachine);

// SAFETY: the C++ machine keeps all its state in the object, and thread-local pointers only while a launch runs.
unsafe impl Send for Raw {}

/// Reports are truncated to this length.
const REPORT_BYTES: usize = 16 << 10;

impl Machine {
    /// A machine with empty memory that can launch `kernels`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a C++ compiler, [`Error::SanitizerNotPreloaded`], [`Error::Load`].
    pub fn new(config: Config, kernels: &Kernels) -> Result<Self, Error> {
        let api = MachineApi::of(config.build)?;
        // SAFETY: an entry point of the loaded machine.
        let raw = Raw(unsafe { (api.create)() });
        Ok(Self {
            api,
            raw: Mutex::new(raw),
            config: Mutex::new(config),
            kernels: kernels.clone(),
            loaded: Mutex::default(),
        })
    }

    /// The configuration of the next launch.
    pub fn config(&self) -> Config {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the order in which the following launches run.
    pub fn set_schedule(&self, schedule: Schedule, completion: Completion) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        config.schedule = schedule;
        config.completion = completion;
    }

    /// Changes how many CTAs are resident at the same time in the following launches.
    pub fn set_resident_ctas(&self, resident_ctas: u32) {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).resident_ctas = resident_ctas;
    }

    /// A kernel, whose source is compiled if need be.
    ///
    /// # Errors
    /// [`Error::NoSuchKernel`]; [`Error::Load`] with the compiler's message if it refuses the source.
    pub fn kernel(&self, name: &str) -> Result<KernelInfo, Error> {
        if let Some(info) = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(info.clone());
        }
        let missing = || Error::NoSuchKernel(name.to_owned());
        let source = self.kernels.source_of(name).ok_or_else(missing)?;
        let infos = self.api.kernels_of(&self.kernels, &source)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.extend(infos.into_iter().map(|info| (info.name.clone(), info)));
        loaded.get(name).cloned().ok_or_else(missing)
    }

    /// All kernels of a source, which is compiled if need be.
    ///
    /// # Errors
    /// As [`kernel`](Self::kernel).
    pub fn kernels_of(&self, source: &str) -> Result<Vec<KernelInfo>, Error> {
        self.api.kernels_of(&self.kernels, source)
    }

    fn with_raw<R>(&self, f: impl FnOnce(*mut RawMachine) -> R) -> R {
        f(self.raw.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Memory for `bytes` bytes, 256-byte aligned and filled with NaN.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(&self, bytes: usize) -> Result<u64, Error> {
        // SAFETY: the machine lives, and the lock is held.
        let address = self.with_raw(|raw| unsafe { (self.api.allocate)(raw, bytes.max(1)) });
        if address.is_null() { Err(Error::OutOfMemory { bytes }) } else { Ok(address as u64) }
    }

    /// Frees memory that [`allocate`](Self::allocate) returned.
    ///
    /// # Safety
    /// Nothing may use the memory any more.
    pub unsafe fn free(&self, address: u64) {
        // SAFETY: the machine lives, and the lock is held; an address that does not begin an allocation is refused.
        let known = self.with_raw(|raw| unsafe { (self.api.release)(raw, address as *mut _) });
        debug_assert!(known != 0, "{address:#x} is not an allocation");
    }

    /// Whether all of these bytes lie in one allocation.
    pub fn is_allocated(&self, address: u64, bytes: usize) -> bool {
        // SAFETY: the machine lives, and the lock is held; the address is only compared.
        self.with_raw(|raw| unsafe { (self.api.accessible)(raw, address as *const _, bytes) != 0 })
    }

    fn check(&self, address: u64, bytes: usize) {
        assert!(self.is_allocated(address, bytes), "{bytes} bytes at {address:#x} do not lie in one allocation");
    }

    /// Copies bytes from the host. Panics if the range does not lie in one allocation.
    ///
    /// # Safety
    /// No other thread may use these bytes meanwhile.
    pub unsafe fn write(&self, address: u64, bytes: &[u8]) {
        self.check(address, bytes.len());
        // SAFETY: checked above to lie in an allocation, which is host memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    }

    /// Copies bytes to the host. Panics if the range does not lie in one allocation.
    ///
    /// # Safety
    /// As [`write`](Self::write).
    pub unsafe fn read(&self, address: u64, bytes: &mut [u8]) {
        self.check(address, bytes.len());
        // SAFETY: checked above to lie in an allocation, which is host memory.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Sets `len` bytes to `byte`. Panics if the range does not lie in one allocation.
    ///
    /// # Safety
    /// As [`write`](Self::write).
    pub unsafe fn fill(&self, address: u64, byte: u8, len: usize) {
        self.check(address, len);
        // SAFETY: checked above to lie in an allocation, which is host memory.
        unsafe { std::ptr::write_bytes(address as *mut u8, byte, len) };
    }

    /// Copies within the machine. Panics if either range does not lie in one allocation.
    ///
    /// # Safety
    /// As [`write`](Self::write).
    pub unsafe fn copy(&self, from: u64, to: u64, len: usize) {
        self.check(from, len);
        self.check(to, len);
        // SAFETY: checked above to lie in allocations, which are host memory.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) };
    }

    /// Encodes a tensor map, as the driver's `cuTensorMapEncodeTiled` does, into the 128 bytes that kernels get.
    ///
    /// # Errors
    /// [`Error::BadTensorMap`] with the rule that the driver would enforce.
    pub fn encode_tensor_map(&self, tensor: &TensorMap<'_>) -> Result<[u64; 16], Error> {
        #[repr(align(128))]
        struct Aligned([u64; 16]);
        let mut map = Aligned([0; 16]);
        let bad = |reason: &str| Error::BadTensorMap { reason: reason.to_owned() };
        let rank = tensor.dims.len();
        if !(1..=5).contains(&rank) || tensor.boxes.len() != rank || tensor.strides.len() + 1 != rank {
            return Err(bad("a tensor must have 1 to 5 dimensions, its box as many, and one stride fewer"));
        }
        let mut report = [0u8; 256];
        // SAFETY: the arrays are as long as the rank says, checked above; the map is 128 bytes at a multiple of 128.
        let code = unsafe {
            (self.api.encode_tensor_map)(
                map.0.as_mut_ptr().cast(),
                tensor.element_bytes,
                rank as u32,
                tensor.address,
                tensor.dims.as_ptr(),
                tensor.strides.as_ptr(),
                tensor.boxes.as_ptr(),
                if tensor.swizzle_128 { 3 } else { 0 },
                report.as_mut_ptr().cast(),
                report.len(),
            )
        };
        if code == 0 {
            return Ok(map.0);
        }
        Err(bad(&CStr::from_bytes_until_nul(&report).map(CStr::to_string_lossy).unwrap_or_default()))
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Error::NoSuchKernel`], [`Error::WrongParameters`], [`Error::BadLaunch`] before the kernel starts,
    /// [`Error::Fault`] if one of the emulator's checks fails.
    ///
    /// # Safety
    /// The parameters must be the kernel's struct, with addresses that the kernel may access as it does. `gpu::`
    /// functions check the addresses that they get; accesses through plain pointers are checked in the race build only.
    pub unsafe fn launch(&self, launch: &Launch<'_>) -> Result<Counters, Error> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.launch_and_list(launch) }.map(|(counters, _)| counters)
    }

    /// As [`launch`](Self::launch). Also returns what the launch accessed.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    pub unsafe fn launch_and_list(&self, launch: &Launch<'_>) -> Result<(Counters, Accessed), Error> {
        let kernel = || launch.kernel.to_owned();
        let info = self.kernel(launch.kernel)?;
        if info.params_bytes != launch.params.len() {
            let (expected, actual) = (info.params_bytes, launch.params.len());
            return Err(Error::WrongParameters { kernel: kernel(), expected, actual });
        }
        let config = self.config();
        let raw_config = RawConfig::from(&config);
        if let Some(reason) = launch_error(launch, &info, &raw_config) {
            return Err(Error::BadLaunch { kernel: kernel(), reason });
        }
        let request = RawLaunch {
            kernel: info.index,
            grid: launch.grid,
            threads: launch.block,
            shared_bytes: launch.shared_bytes,
            cluster: launch.cluster,
            params_bytes: launch.params.len() as u32,
            params: launch.params.as_ptr().cast(),
        };
        let mut counters = Counters::default();
        let mut report = vec![0u8; REPORT_BYTES];
        let mut accessed = [const { Vec::new() }; 4];
        // SAFETY: all pointers outlive the call, the sizes are theirs, and the lock is held.
        let code = self.with_raw(|raw| unsafe {
            let text = report.as_mut_ptr().cast::<c_char>();
            let code = (self.api.launch)(raw, &request, &raw_config, &mut counters, text, report.len());
            for (how, list) in (0..).zip(&mut accessed) {
                list.resize((self.api.accessed)(raw, how, std::ptr::null_mut(), 0), AccessedRange::default());
                (self.api.accessed)(raw, how, list.as_mut_ptr(), list.len());
            }
            code
        });
        if code == 0 {
            let [updated, written, read, read_as_constant] = accessed;
            return Ok((counters, Accessed { updated, written, read, read_as_constant }));
        }
        let text = CStr::from_bytes_until_nul(&report).map(CStr::to_string_lossy).unwrap_or_default();
        Err(Error::Fault { kernel: kernel(), fault: Fault::from_code(code), report: symbols::resolve(&text, self.api) })
    }
}

/// Why no GPU accepts this launch of the kernel; `None` if GPUs do.
fn launch_error(launch: &Launch<'_>, kernel: &KernelInfo, config: &RawConfig) -> Option<String> {
    let ctas = launch.grid.iter().try_fold(1u32, |product, &n| product.checked_mul(n));
    if launch.params.len() > 4096 {
        Some(format!("{} bytes of parameters (limit 4096)", launch.params.len()))
    } else if launch.block == 0 || launch.block > kernel.max_threads {
        Some(format!("{} threads per CTA (limit {})", launch.block, kernel.max_threads))
    } else if ctas.is_none_or(|n| n == 0) {
        Some(format!("a grid of {:?} CTAs", launch.grid))
    } else if launch.cluster == 0 || launch.cluster > 8 || !launch.grid[0].is_multiple_of(launch.cluster) {
        Some(format!("clusters of {} CTAs in a grid of {:?}", launch.cluster, launch.grid))
    } else if launch.shared_bytes > config.shared_bytes_limit() {
        Some(format!("{} bytes of shared memory (limit {})", launch.shared_bytes, config.shared_bytes_limit()))
    } else {
        None
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: the machine was made by `create`, and nothing can use it any more.
        self.with_raw(|raw| unsafe { (self.api.destroy)(raw) });
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("config", &self.config()).finish_non_exhaustive()
    }
}
