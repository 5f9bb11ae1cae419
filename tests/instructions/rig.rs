//! Runs the kernels of kernels/test on a rig of tests/common/rig.rs. The proof runs them in every build, under every
//! schedule and with every moment at which asynchronous copies complete.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytemuck::{AnyBitPattern, NoUninit};
use fused_lora::abi::{self, LoraTest};
use fused_lora::device::emulator_kernels;
use fused_lora_emulator::{Build, Completion, Config, Machine, Schedule};

use crate::common::rig::{self, Failure, builds, on_gpu, proving, schedules};

/// Three orders of threads, with two, four or 64 CTAs resident at a time: the CTAs of a cluster must be resident
/// together.
const SCHEDULES: [(Schedule, u32); 3] = [(Schedule::FirstIn, 64), (Schedule::LastIn, 2), (Schedule::Random(0xBEEF), 4)];
const COMPLETIONS: [Completion; 3] = [Completion::Late, Completion::Eager, Completion::Random];

/// A device and the memory that was allocated on it during a test.
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

/// A tensor in device memory, and the size of the boxes that TMA copies. The contiguous dimension comes first.
pub struct Tensor<'a> {
    pub address: u64,
    pub element_bytes: u32,
    pub dims: &'a [u64],
    /// In bytes, for every dimension but the first.
    pub strides: &'a [u64],
    pub boxes: &'a [u32],
    pub swizzle: bool,
}

/// The arguments of a launch.
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

/// Whether this process can test planted bugs: only the emulator's plain and race builds have the checks that find
/// them.
pub fn can_plant() -> bool {
    !on_gpu() && !builds().contains(&Build::Sanitize)
}

/// The payload of the panic that ends a test on a GPU without the instructions that the test's kernel uses.
struct MissingInstructions;

thread_local! {
    /// A source of kernels/test and the changed text of it that this thread's tests compile.
    static PLANTED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

fn device(build: Build) -> rig::Rig {
    let Some((source, text)) = PLANTED.with_borrow(Clone::clone) else {
        return rig::Rig::new(build);
    };
    let kernels = emulator_kernels().with_file(&source, text);
    rig::Rig::emulator(Machine::new(Config { build, ..Config::default() }, &kernels).unwrap())
}

/// The message with which `test` fails after `original` was replaced in kernels/test/`file`.
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

fn for_each_build(test: impl Fn(&Rig)) {
    for build in builds() {
        println!("{build:?}");
        let rig = Rig { device: device(build), allocations: RefCell::default() };
        match catch_unwind(AssertUnwindSafe(|| test(&rig))) {
            Err(panic) if panic.is::<MissingInstructions>() => {
                println!("skipped: this GPU lacks the kernel's instructions")
            }
            Err(panic) => resume_unwind(panic),
            Ok(()) => {}
        }
    }
}

/// Runs a test in every build, under every schedule and with every completion that the tests' depth asks for.
pub fn in_every_configuration(test: impl Fn(&Rig)) {
    for_each_build(|rig| {
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

/// Runs a test under one schedule, for functions that do not synchronise threads.
pub fn in_every_build(test: impl Fn(&Rig)) {
    for_each_build(|rig| {
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

    /// An array with all bits set, which is NaN in every floating-point type.
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
            Err(_) if self.device.compute_capability() < (9, 0) => resume_unwind(Box::new(MissingInstructions)),
            map => map.unwrap(),
        }
    }

    /// Launches a kernel and waits for its end. A fault fails the test.
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
            Err(Failure::Unsupported) => resume_unwind(Box::new(MissingInstructions)),
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
    /// The array's device address.
    pub fn at(&self) -> u64 {
        self.address
    }
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn everything_again_under_the_sanitizers() {
    crate::common::sanitize::rerun_under_sanitizers("instructions", &[]);
}
