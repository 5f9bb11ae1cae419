//! Where a test's kernels run: the emulator in every build and order, or a GPU (tests/common/rig.rs).

use std::cell::RefCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytemuck::{AnyBitPattern, NoUninit};
use fused_lora::abi::{self, LoraTest};
use fused_lora::device::emulator_kernels;
use fused_lora_emulator::{Build, Completion, Config, Machine, Schedule};

use crate::common::rig::{self, Failure, builds, on_gpu, proving, schedules};

/// Threads in three orders, and CTAs two, four or many at a time: a cluster's have to run side by side.
const SCHEDULES: [(Schedule, u32); 3] = [(Schedule::FirstIn, 64), (Schedule::LastIn, 2), (Schedule::Random(0xBEEF), 4)];
const COMPLETIONS: [Completion; 3] = [Completion::Late, Completion::Eager, Completion::Random];

/// A device and what was allocated on it during a test.
pub struct Rig {
    device: rig::Rig,
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

/// Whether a bug can be planted here: what finds it is in the emulator's other builds.
pub fn can_plant() -> bool {
    !on_gpu() && !builds().contains(&Build::Sanitize)
}

/// The GPU at hand does not have what a kernel is made of: the rest of its test is left out.
struct Missing;

thread_local! {
    /// A source of kernels/test and the version of it that this thread's tests run.
    static PLANTED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

fn device(build: Build) -> rig::Rig {
    let Some((source, text)) = PLANTED.with_borrow(Clone::clone) else {
        return rig::Rig::new(build);
    };
    let kernels = emulator_kernels().with_file(&source, text);
    rig::Rig::emulator(Machine::new(Config { build, ..Config::default() }, &kernels).unwrap())
}

/// What `test` fails with when one place of kernels/test/`file` is changed.
pub fn failure_with(file: &str, original: &str, planted: &str, test: fn()) -> Option<String> {
    let source = format!("test/{file}");
    let kernels = emulator_kernels();
    let text = crate::common::code::replace(kernels.text(&source).unwrap(), original, planted);
    PLANTED.set(Some((source, text.unwrap_or_else(|error| panic!("{file}: {error}")))));
    let failed = catch_unwind(test);
    PLANTED.set(None);
    let text = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| String::new(), |text| (*text).to_owned()),
    };
    failed.err().map(text)
}

fn each_build(test: impl Fn(&Rig)) {
    for build in builds() {
        println!("{build:?}");
        let rig = Rig { device: device(build), allocations: RefCell::default() };
        match catch_unwind(AssertUnwindSafe(|| test(&rig))) {
            Err(panic) if panic.is::<Missing>() => println!("left out: this GPU does not have it"),
            Err(panic) => resume_unwind(panic),
            Ok(()) => {}
        }
    }
}

/// Runs a test wherever and in whatever order its kernels may run.
pub fn everywhere(test: impl Fn(&Rig)) {
    each_build(|rig| {
        for &(schedule, resident) in schedules(&SCHEDULES) {
            for &completion in if proving() { &COMPLETIONS[..] } else { &COMPLETIONS[2..] } {
                println!("  {schedule:?}, {resident} CTAs at a time, {completion:?}");
                rig.device.set_schedule(schedule, completion, resident);
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
        let array = self.array(data.len());
        self.device.write(array.address, data);
        array
    }

    /// An array of which every bit is set: NaN as any type of float.
    pub fn output<T>(&self, len: usize) -> Array<T> {
        let array = self.array(len);
        self.device.write(array.address, &vec![0xffu8; len * size_of::<T>()]);
        array
    }

    fn array<T>(&self, len: usize) -> Array<T> {
        let address = self.device.allocate(len * size_of::<T>());
        self.allocations.borrow_mut().push(address);
        Array { address, len, elements: PhantomData }
    }

    pub fn download<T: AnyBitPattern + NoUninit>(&self, array: &Array<T>) -> Vec<T> {
        let mut data = vec![T::zeroed(); array.len];
        self.device.read(array.address, &mut data);
        data
    }

    pub fn tensor_map(&self, tensor: &Tensor<'_>) -> abi::TensorMap {
        let Tensor { address, element_bytes, dims, strides, boxes, swizzle: swizzle_128 } = *tensor;
        let tensor = fused_lora::device::Tensor { address, element_bytes, dims, strides, boxes, swizzle_128 };
        match self.device.tensor_map(&tensor) {
            Err(_) if self.device.compute_capability() < (9, 0) => resume_unwind(Box::new(Missing)),
            map => map.unwrap(),
        }
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
        let call = rig::Call {
            kernel,
            grid: [call.grid, 1, 1],
            threads: call.threads,
            shared_bytes: call.shared_bytes,
            cluster: call.cluster,
        };
        match self.device.launch(&call, &params) {
            Err(Failure::Unsupported) => resume_unwind(Box::new(Missing)),
            Err(failure) => panic!("{failure}"),
            Ok(_) => {}
        }
    }

    fn free_all(&self) {
        for address in self.allocations.take() {
            self.device.free(address);
        }
    }
}

impl<T> Array<T> {
    /// Its device address.
    pub fn at(&self) -> u64 {
        self.address
    }
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    crate::common::sanitize::rerun_under_sanitizers("instructions", &[]);
}
