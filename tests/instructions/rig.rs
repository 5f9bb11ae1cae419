//! Where a test's kernels run: today the emulator, in every build and order. Nothing else in these tests knows it.

use std::cell::RefCell;
use std::fs;
use std::marker::PhantomData;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytemuck::{AnyBitPattern, NoUninit};
use fused_lora::abi::{self, LoraTest};
use fused_lora_emulator::{Build, Completion, Config, Launch, Machine, Schedule, compile_variant};

/// Set in the process that [`everything_again_under_the_sanitizers`] starts.
const SANITIZED: &str = "FUSED_LORA_TEST_SANITIZED";

/// Threads in three orders, and CTAs two, four or many at a time: a cluster's have to run side by side.
const SCHEDULES: [(Schedule, u32); 3] = [(Schedule::FirstIn, 64), (Schedule::LastIn, 2), (Schedule::Random(0xBEEF), 4)];
const COMPLETIONS: [Completion; 3] = [Completion::Late, Completion::Eager, Completion::Random];

/// A device and what was allocated on it during a test.
pub struct Rig {
    machine: Machine,
    allocations: RefCell<Vec<u64>>,
}

/// Elements in device memory.
pub struct Array<T> {
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

/// A tensor in device memory and the boxes that are copied of it; dimensions from the contiguous one on.
pub struct Tensor<'a> {
    pub address: u64,
    pub element_bytes: u32,
    pub dims: &'a [u64],
    /// In bytes, of every dimension but the first.
    pub strides: &'a [u64],
    pub boxes: &'a [u32],
    pub swizzle: bool,
}

/// What a launch gets beside its kernel.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub grid: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    pub cluster: u32,
    pub maps: &'a [abi::TensorMap],
    pub inputs: &'a [u64],
    pub outputs: &'a [u64],
    pub n: &'a [u32],
}

impl Default for Call<'_> {
    fn default() -> Self {
        Self { grid: 1, threads: 32, shared_bytes: 0, cluster: 1, maps: &[], inputs: &[], outputs: &[], n: &[] }
    }
}

/// Whether this is the process in which everything runs under the sanitizers.
pub fn sanitized() -> bool {
    std::env::var_os(SANITIZED).is_some()
}

fn builds() -> Vec<Build> {
    if sanitized() { vec![Build::Sanitize] } else { vec![Build::Plain, Build::Race] }
}

thread_local! {
    /// A source of kernels/test and the version of it that this thread's tests run.
    static PLANTED: RefCell<Option<(PathBuf, String)>> = const { RefCell::new(None) };
}

fn machine(config: Config) -> Machine {
    let Some((source, text)) = PLANTED.with_borrow(Clone::clone) else {
        return Machine::new(config).unwrap();
    };
    // A library that is loaded stays so under its name: each gets a folder of its own.
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("test")).unwrap();
    fs::write(folder.path().join(&source), text).unwrap();
    let library = compile_variant(config.build, &source, folder.path()).unwrap();
    // SAFETY: made a line above from the machine and the project's kernels.
    unsafe { Machine::from_library(&library, config) }.unwrap()
}

/// Whether `test` fails with one place of kernels/test/`file` changed.
pub fn fails_with(file: &str, original: &str, planted: &str, test: fn()) -> bool {
    let source = Path::new("test").join(file);
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let text = fs::read_to_string(kernels.join(&source)).unwrap();
    assert_eq!(text.matches(original).count(), 1, "'{original}' is in {file} once no more");
    PLANTED.set(Some((source, text.replace(original, planted))));
    let failed = catch_unwind(test).is_err();
    PLANTED.set(None);
    failed
}

fn each_build(test: impl Fn(&Rig)) {
    for build in builds() {
        println!("{build:?}");
        let machine = machine(Config { build, ..Config::default() });
        test(&Rig { machine, allocations: RefCell::default() });
    }
}

/// Runs a test wherever and in whatever order its kernels may run.
pub fn everywhere(test: impl Fn(&Rig)) {
    each_build(|rig| {
        for (schedule, resident) in SCHEDULES {
            for completion in COMPLETIONS {
                println!("  {schedule:?}, {resident} CTAs at a time, {completion:?}");
                rig.machine.set_schedule(schedule, completion);
                rig.machine.set_resident_ctas(resident);
                test(rig);
                rig.free_all();
            }
        }
    });
}

/// Runs a test of functions that neither wait nor are waited for, whose order does not matter.
pub fn once(test: impl Fn(&Rig)) {
    each_build(|rig| {
        test(rig);
        rig.free_all();
    });
}

impl Rig {
    pub fn upload<T: NoUninit>(&self, data: &[T]) -> Array<T> {
        let array = self.output(data.len());
        // SAFETY: the allocation is this long, and nobody else knows it.
        unsafe { self.machine.write(array.address, bytemuck::cast_slice(data)) };
        array
    }

    /// An array of which every bit is set: NaN as any type of float.
    pub fn output<T>(&self, len: usize) -> Array<T> {
        let address = self.machine.allocate(len * size_of::<T>()).unwrap();
        self.allocations.borrow_mut().push(address);
        Array { address, len, elements: PhantomData }
    }

    pub fn download<T: AnyBitPattern + NoUninit>(&self, array: &Array<T>) -> Vec<T> {
        let mut data = vec![T::zeroed(); array.len];
        // SAFETY: the allocation is this long, and no launch runs.
        unsafe { self.machine.read(array.address, bytemuck::cast_slice_mut(&mut data)) };
        data
    }

    pub fn tensor_map(&self, tensor: &Tensor<'_>) -> abi::TensorMap {
        let map = fused_lora_emulator::TensorMap {
            address: tensor.address,
            element_bytes: tensor.element_bytes,
            dims: tensor.dims,
            strides: tensor.strides,
            boxes: tensor.boxes,
            swizzle_128: tensor.swizzle,
        };
        abi::TensorMap { opaque: self.machine.encode_tensor_map(&map).unwrap() }
    }

    /// Runs a kernel to its end; a fault is the test's failure.
    pub fn launch(&self, kernel: &str, call: &Call<'_>) {
        fn filled<T: Copy, const N: usize>(values: &[T], rest: T) -> [T; N] {
            let mut all = [rest; N];
            all[..values.len()].copy_from_slice(values);
            all
        }
        let pointers = |addresses: &[u64]| filled::<u64, 4>(addresses, 0);
        let params = LoraTest {
            maps: filled(call.maps, abi::TensorMap { opaque: [0; 16] }),
            in_: pointers(call.inputs).map(|address| address as *const _),
            out: pointers(call.outputs).map(|address| address as *mut _),
            n: filled(call.n, 0),
        };
        // SAFETY: plain data, every byte of which is a field's.
        let params = unsafe { std::slice::from_raw_parts((&raw const params).cast::<u8>(), size_of::<LoraTest>()) };
        let launch = Launch {
            kernel,
            grid: [call.grid, 1, 1],
            block: call.threads,
            shared_bytes: call.shared_bytes,
            cluster: call.cluster,
            params,
        };
        // SAFETY: the parameters are the kernel's struct, with addresses of this rig's allocations.
        if let Err(error) = unsafe { self.machine.launch(&launch) } {
            panic!("{error}");
        }
    }

    fn free_all(&self) {
        for address in self.allocations.take() {
            // SAFETY: allocated by `output`, and no launch runs.
            unsafe { self.machine.free(address) };
        }
    }
}

impl<T> Array<T> {
    /// Its device address.
    pub fn at(&self) -> u64 {
        self.address
    }
}

/// AddressSanitizer has to be in a process from its start, so this one starts itself again.
#[test]
fn everything_again_under_the_sanitizers() {
    if sanitized() {
        return; // this is the second process
    }
    let preload = fused_lora_emulator::sanitizer_preload().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .env(SANITIZED, "1")
        .env("LD_PRELOAD", preload)
        .env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("test result: ok"), "{text}");
}
