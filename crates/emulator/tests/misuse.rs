//! Kernels that each break one rule, with the fault and the report that must end each of them; and that every check of
//! the emulator has such a kernel.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use fused_lora::abi::{self, LoraTest};
use fused_lora::device::emulator_kernels;
use fused_lora_emulator::{Build, Completion, Config, Error, Fault, Launch, Machine, Schedule, TensorMap};

/// A kernel of misuse/*.cu and the fault that must end it.
struct Case {
    kernel: &'static str,
    builds: &'static [Build],
    fault: Fault,
    /// A part of the report's format string, which the last test of this file looks up in the sources.
    text: &'static str,
    threads: u32,
    cluster: u32,
}

const ALL: &[Build] = &[Build::Plain, Build::Race];
const PLAIN: &[Build] = &[Build::Plain];
const RACE: &[Build] = &[Build::Race];

const fn case(kernel: &'static str, builds: &'static [Build], fault: Fault, text: &'static str) -> Case {
    Case { kernel, builds, fault, text, threads: 128, cluster: 1 }
}

const fn of_two(kernel: &'static str, builds: &'static [Build], fault: Fault, text: &'static str) -> Case {
    Case { cluster: 2, ..case(kernel, builds, fault, text) }
}

const THREADS: &[Case] = &[
    case("load_misaligned", ALL, Fault::Misaligned, " of %u bytes at %p"),
    case("load_outside", ALL, Fault::OutOfBounds, ", outside every allocation of "),
    case("store_outside", ALL, Fault::OutOfBounds, ", outside every allocation of "),
    case("atomic_outside", ALL, Fault::OutOfBounds, ", outside every allocation of "),
    case("plain_store_outside", RACE, Fault::OutOfBounds, " bytes outside every allocation, at "),
    case("dependency_ignored", ALL, Fault::Race, "grid_dependency_wait after "),
    case("division_by_zero", PLAIN, Fault::Crash, "integer division by zero, or with a result out of range"),
    case("null", PLAIN, Fault::Crash, "segmentation fault at "),
    case("shared_outside", ALL, Fault::OutOfBounds, ", outside every allocation of "),
    case("shared_too_much", ALL, Fault::Resources, " bytes of shared memory, the launch gave "),
    case("shared_aligned_too_much", ALL, Fault::Resources, "shared memory aligned to "),
    case("shared_too_many_pieces", ALL, Fault::Resources, " bytes of shared memory in so many arrays"),
    case("address_of_global", ALL, Fault::OutOfBounds, ", which is not in the cluster's shared memory"),
    case("shared_uninitialised", RACE, Fault::Uninitialised, " is read before anything wrote it"),
    case("read_after_write", RACE, Fault::Race, "read after an unordered write"),
    case("write_after_write", RACE, Fault::Race, " memory at 0x"),
    case("write_after_read", RACE, Fault::Race, "write after an unordered read"),
    case("relaxed_flag", RACE, Fault::Race, "read after an unordered write"),
    case("barrier_counts", ALL, Fault::Barrier, " threads here and "),
    case("barrier_number", ALL, Fault::Barrier, " does not exist; a CTA has barriers 0 to 15"),
    case("barrier_part_of_a_warp", ALL, Fault::Barrier, " threads are not whole warps"),
    case("barrier_of_too_many", ALL, Fault::Barrier, " threads in a CTA of "),
    case("barrier_not_reached", ALL, Fault::Deadlock, "no thread can run: every thread waits for another"),
    case(
        "flag_never_set",
        ALL,
        Fault::Livelock,
        "every remaining thread spins on a value that no thread can change any more",
    ),
    case("shuffle_not_a_member", ALL, Fault::Collective, "the calling lane is not in the mask "),
    case("shuffle_exited", ALL, Fault::Collective, " names lanes that have exited or do not exist (live lanes: "),
    case("shuffle_from_outside", ALL, Fault::Collective, ", which is not among members "),
    case("warp_diverged", ALL, Fault::Collective, ": the warp has diverged"),
    case("warp_at_two_places", ALL, Fault::Collective, "lanes of one warp are at different instructions, "),
    Case {
        threads: 64,
        ..case("registers_of_half_a_group", ALL, Fault::Collective, " in a CTA whose threads are not whole warpgroups")
    },
    case("registers_decrease_to_more", ALL, Fault::Resources, "decrease_registers to "),
    case("registers_increase_to_less", ALL, Fault::Resources, "increase_registers to "),
    case("registers_over_budget", ALL, Fault::Deadlock, "no thread can run: every thread waits for another"),
];

const COPIES: &[Case] = &[
    case("copy_longer_than_wide", ALL, Fault::OutOfBounds, "copy_async of %u bytes to a destination of %u"),
    case("copy_from_misaligned", ALL, Fault::Misaligned, "copy_async of %u bytes from %p"),
    case("copy_to_misaligned", ALL, Fault::Misaligned, ", which is not a multiple of "),
    case("copy_from_outside", ALL, Fault::OutOfBounds, ", outside every allocation of global memory"),
    case("copy_to_outside", ALL, Fault::OutOfBounds, ", outside every array in shared memory"),
    case("copy_not_waited_for", ALL, Fault::InFlight, "a thread exits without having waited for its copy_async groups"),
    case(
        "copy_read_early",
        ALL,
        Fault::InFlight,
        " of shared memory, the destination of a copy that has not completed",
    ),
    case(
        "copy_read_early_plainly",
        RACE,
        Fault::InFlight,
        " of shared memory, the destination of a copy that has not completed",
    ),
    case("copy_overwritten", PLAIN, Fault::InFlight, ", was written before the copy completed"),
    case(
        "copy_overwritten",
        RACE,
        Fault::InFlight,
        " of shared memory, the destination of a copy that has not completed",
    ),
    case(
        "copy_source_changed",
        PLAIN,
        Fault::InFlight,
        "copy_async: its source in global memory changed before it completed",
    ),
    case("copy_source_changed", RACE, Fault::Race, "write after an unordered read"),
    case("copy_without_barrier", RACE, Fault::Race, "read after an unordered write"),
    case("mbarrier_uninitialised", ALL, Fault::Barrier, ": no mbarrier was initialised there, or it was invalidated"),
    case("mbarrier_invalidated", ALL, Fault::Barrier, ": no mbarrier was initialised there, or it was invalidated"),
    case("mbarrier_overwritten", PLAIN, Fault::Barrier, ": the mbarrier has been overwritten"),
    case("mbarrier_of_none", ALL, Fault::Barrier, "mbarrier_init for "),
    case("mbarrier_twice", ALL, Fault::Barrier, ", where an mbarrier is already"),
    case("mbarrier_misaligned", ALL, Fault::Misaligned, ", which is not a multiple of "),
    case("mbarrier_parity", ALL, Fault::Barrier, " is neither 0 nor 1"),
    case("mbarrier_wrong_phase", ALL, Fault::Deadlock, "no thread can run: every thread waits for another"),
    case("mbarrier_invalidated_under_waiters", ALL, Fault::Barrier, ": threads are waiting there"),
    case("mbarrier_too_many_arrivals", ALL, Fault::Barrier, ": there was an arrival too many"),
    case("mbarrier_overtaken", ALL, Fault::Barrier, " threads that waited for phase "),
    case("mbarrier_arrivals_over_bytes", ALL, Fault::Barrier, " arrivals of the phase have been made already"),
    case("mbarrier_bytes_over_the_count", ALL, Fault::Barrier, " bytes are more than an mbarrier can count"),
    case("tma_without_init_fence", ALL, Fault::Proxy, ": no fence_mbarrier_init since the mbarrier at "),
    case("tma_fewer_bytes_expected", ALL, Fault::Barrier, ": more bytes arrived than the mbarrier's phase expects"),
    case(
        "tma_no_bytes_expected",
        ALL,
        Fault::Barrier,
        "completed before the copy did: the copy's bytes were not expected",
    ),
    case("tma_more_bytes_expected", ALL, Fault::Deadlock, "no thread can run: every thread waits for another"),
    case("tma_box_misaligned", ALL, Fault::Misaligned, ", which is not a multiple of "),
    case("tma_box_misaligned_without_swizzle", ALL, Fault::Misaligned, ", which is not a multiple of "),
    case("tma_map_of_another_rank", ALL, Fault::Descriptor, ": the copy has "),
    case("tma_map_on_the_stack", ALL, Fault::Descriptor, "is neither a parameter of the kernel nor in global memory"),
    case("tma_map_misaligned", ALL, Fault::Descriptor, " is not at a multiple of 64 bytes"),
    case("tma_no_map", ALL, Fault::Descriptor, ": these 128 bytes are not an encoded tensor map"),
    case("tma_tensor_outside", ALL, Fault::OutOfBounds, ": the tensor's rows do not lie in global memory"),
    case("tma_read_early", ALL, Fault::InFlight, " of shared memory, the destination of a copy that has not completed"),
    case(
        "tma_two_at_one_place",
        ALL,
        Fault::InFlight,
        " of shared memory, the destination of a copy that has not completed",
    ),
    case("tma_source_changed", PLAIN, Fault::InFlight, ": its source in global memory changed before it completed"),
    case("tma_source_changed", RACE, Fault::Race, "write after an unordered read"),
    case("tma_not_waited_for", ALL, Fault::InFlight, " copies use its shared memory"),
    case(
        "tma_over_plain_writes",
        ALL,
        Fault::Proxy,
        " of shared memory without fence_proxy_async_shared since they were written",
    ),
    case("tma_of_another_threads_writes", RACE, Fault::Proxy, " of a CTA wrote, with no proxy fence between"),
    case("tma_store_without_fence", ALL, Fault::Proxy, "without fence_proxy_async_shared since they were written"),
    case("tma_store_not_waited_for", ALL, Fault::InFlight, "until its bulk stores have read shared memory"),
    case("tma_store_source_changed", PLAIN, Fault::InFlight, "in shared memory was overwritten before it was read"),
    case("tma_store_source_changed", RACE, Fault::Race, "write after an unordered read"),
    case("tma_store_read_early", RACE, Fault::Race, "read after an unordered write"),
];

const PRODUCTS: &[Case] = &[
    case("ldmatrix_misaligned", ALL, Fault::Misaligned, ", which is not a multiple of "),
    case("ldmatrix_outside", ALL, Fault::OutOfBounds, ", outside every array in shared memory"),
    case("mma_without_a_lane", ALL, Fault::Collective, " names lanes that have exited or do not exist (live lanes: "),
    case("mma_not_rounded", ALL, Fault::Operand, " was not rounded by to_tf32"),
    Case {
        threads: 64,
        ..case("wgmma_of_two_warps", ALL, Fault::Collective, "of the warpgroup has exited or does not exist")
    },
    case("wgmma_after_an_exit", ALL, Fault::Collective, "of the warpgroup has exited or does not exist"),
    case("wgmma_at_two_places", ALL, Fault::Collective, "threads of one warpgroup are at different instructions, "),
    case("wgmma_of_different_operands", ALL, Fault::Collective, " has other operands than thread 0"),
    case("wgmma_without_proxy_fence", ALL, Fault::Proxy, "without fence_proxy_async_shared since they were written"),
    case("wgmma_without_fence", ALL, Fault::Proxy, "wgmma: no wgmma_fence since accumulators of thread "),
    case("wgmma_second_without_fence", ALL, Fault::Proxy, "no wgmma_fence since accumulators of thread "),
    case("wgmma_registers_without_fence", ALL, Fault::Proxy, "wgmma: no wgmma_fence since registers of A in thread "),
    case("wgmma_accumulators_written", ALL, Fault::InFlight, " were written before wgmma_wait"),
    case("wgmma_registers_written", ALL, Fault::InFlight, "wgmma: registers of A were overwritten in thread "),
    case("wgmma_operand_written", PLAIN, Fault::InFlight, "was overwritten before the product completed"),
    case("wgmma_operand_written", RACE, Fault::Race, "write after an unordered read"),
    case(
        "wgmma_fence_operands_early",
        ALL,
        Fault::InFlight,
        "wgmma_fence_operands of accumulators that have not been waited for",
    ),
    case("wgmma_overlapping", ALL, Fault::InFlight, "wgmma: accumulators overlap those of another product"),
    case("wgmma_not_waited_for", ALL, Fault::InFlight, "a thread exits without having waited for its wgmma products"),
    case("wgmma_different_waits", ALL, Fault::Collective, "wgmma_wait for different numbers of groups"),
    case("wgmma_descriptor_unswizzled", ALL, Fault::Descriptor, " is not for the 128-byte swizzle with base offset 0"),
    case("wgmma_descriptor_within_a_pattern", ALL, Fault::Descriptor, " starts inside a 1024-byte swizzle pattern"),
    case("wgmma_descriptor_over_a_row", ALL, Fault::Descriptor, " extends beyond a 128-byte row"),
    case("wgmma_descriptor_stride", ALL, Fault::Descriptor, ", not multiples of 1024"),
    case("wgmma_descriptor_leads_outside", ALL, Fault::OutOfBounds, "wgmma: a descriptor leads outside every array"),
    case("wgmma_descriptor_odd", ALL, Fault::Descriptor, " must be multiples of 16 below 2^18"),
    case(
        "wgmma_descriptor_far",
        ALL,
        Fault::Resources,
        "wgmma_descriptor: with so many arrays in shared memory, address ",
    ),
];

const CLUSTERS: &[Case] = &[
    of_two("cluster_arrive_twice", ALL, Fault::Barrier, "cluster_arrive twice without cluster_wait between"),
    of_two("cluster_wait_alone", ALL, Fault::Barrier, "cluster_wait without cluster_arrive before"),
    of_two("cluster_exit_between", ALL, Fault::Barrier, "a thread exits between cluster_arrive and cluster_wait"),
    of_two("cluster_rank_not_there", ALL, Fault::OutOfBounds, "map_shared to rank "),
    of_two("cluster_mapped_twice", ALL, Fault::OutOfBounds, "map_shared of shared address "),
    of_two("cluster_load_misaligned", ALL, Fault::Misaligned, "load_cluster at shared address "),
    of_two("cluster_store_misaligned", ALL, Fault::Misaligned, "store_cluster at shared address "),
    of_two("cluster_load_outside", ALL, Fault::OutOfBounds, ", outside every array in shared memory"),
    of_two("cluster_store_early", RACE, Fault::OutOfBounds, ": CTA %u of the cluster is not known to have started"),
    of_two(
        "cluster_exit_early",
        RACE,
        Fault::OutOfBounds,
        "and another CTA's access to its shared memory is not ordered",
    ),
    of_two("cluster_load_unordered", RACE, Fault::Race, "write after an unordered read"),
    of_two("cluster_instruction_of_another_cta", ALL, Fault::OutOfBounds, ", which is not the CTA's own"),
    of_two("cluster_arrival_misaligned", ALL, Fault::Misaligned, "%s at shared address "),
    of_two("cluster_multicast_beyond", ALL, Fault::OutOfBounds, " of a cluster of "),
    of_two("cluster_descriptor_of_another_cta", ALL, Fault::Descriptor, "wgmma_descriptor of shared address "),
];

/// The checks that no kernel fails in the time that a test may take.
const WITHOUT_KERNEL: [&str; 1] =
    ["a thread has more synchronisation events than its clock in the race detector can count"];

fn machine(build: Build, source: &str) -> Machine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/misuse");
    let mut kernels = emulator_kernels();
    for file in [source, "misuse.h"] {
        kernels = kernels.with_file(file, fs::read_to_string(folder.join(file)).unwrap());
    }
    let kernels = kernels.with_source_of({
        let source = source.to_owned();
        move |_| Some(source.clone())
    });
    Machine::new(Config { build, ..Config::default() }, &kernels).unwrap()
}

/// Runs a kernel with the parameters that misuse.h describes. Returns what it wrote to `out[0]`, or the error.
fn run(machine: &Machine, case: &Case) -> Result<Vec<u32>, Error> {
    const WORDS: usize = 4096;
    let [input, output] = [0; 2].map(|_| machine.allocate(4 * WORDS).unwrap());
    // SAFETY: the allocation is this long, and no launch runs.
    unsafe { machine.fill(input, 0, 4 * WORDS) };
    let (row, plane) = (&[128][..], &[128, 1024][..]);
    let map = |dims: &[u64], strides: &[u64], boxes: &[u32], swizzle_128| {
        let tensor = TensorMap { address: input, element_bytes: 2, dims, strides, boxes, swizzle_128 };
        abi::TensorMap { opaque: machine.encode_tensor_map(&tensor).unwrap() }
    };
    let too_large = machine.allocate(128).unwrap();
    // SAFETY: as above; the map is 128 bytes of plain data.
    unsafe {
        let map = map(&[64, 256], row, &[64, 8], true).opaque.map(u64::to_le_bytes);
        machine.write(too_large, map.as_flattened());
    }
    let params = LoraTest {
        maps: [map(&[64, 64], row, &[64, 8], true), map(&[64, 8, 8], plane, &[64, 8, 1], false)],
        in_: [input, too_large, 0, 0].map(|address| address as *const _),
        out: [output, 0, 0, 0].map(|address| address as *mut _),
        n: [0; 16],
    };
    // SAFETY: plain data, every byte of which is a field's.
    let params = unsafe { std::slice::from_raw_parts((&raw const params).cast::<u8>(), size_of::<LoraTest>()) };
    let launch = Launch {
        kernel: &format!("misuse_{}", case.kernel),
        grid: [case.cluster, 1, 1],
        block: case.threads,
        shared_bytes: 64 << 10,
        cluster: case.cluster,
        params,
    };
    // SAFETY: the addresses are those of allocations; outside them the kernels access only the red zones around them.
    let result = unsafe { machine.launch(&launch) };
    let mut words = vec![0u8; 4 * WORDS];
    // SAFETY: as above.
    unsafe { machine.read(output, &mut words) };
    for address in [input, output, too_large] {
        // SAFETY: allocated above, and no launch runs.
        unsafe { machine.free(address) };
    }
    result.map(|_| words.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect())
}

/// Whether the report holds the fixed parts of a format string, in their order.
fn matches_format(report: &str, format: &str) -> bool {
    let mut rest = report;
    format.split('%').enumerate().all(|(i, part)| {
        // A conversion such as `%u` is a per cent sign followed by letters and digits.
        let part = if i == 0 { part } else { part.trim_start_matches(|c: char| c.is_ascii_alphanumeric()) };
        let found = rest.find(part).map(|at| &rest[at + part.len()..]);
        rest = found.unwrap_or_default();
        found.is_some()
    })
}

fn check_cases(source: &str, cases: &[Case]) {
    let mut unexpected = vec![];
    for &build in ALL {
        let machine = machine(build, source);
        for case in cases.iter().filter(|case| case.builds.contains(&build)) {
            if case.kernel == "division_by_zero" && !cfg!(target_arch = "x86_64") {
                continue; // on other processors the division gives some value, as on a GPU
            }
            for schedule in [Schedule::FirstIn, Schedule::LastIn, Schedule::Random(1), Schedule::Random(2)] {
                machine.set_schedule(schedule, Completion::Late);
                let outcome = run(&machine, case);
                let expected = match &outcome {
                    // In another order the kernel may break another rule first.
                    Err(Error::Fault { fault, report, .. }) => {
                        schedule != Schedule::FirstIn || *fault == case.fault && matches_format(report, case.text)
                    }
                    _ => false,
                };
                if !expected {
                    unexpected.push(format!(
                        "{build:?}, {schedule:?}, {}: {:?}",
                        case.kernel,
                        outcome.map(|_| "passed")
                    ));
                }
            }
        }
    }
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

#[test]
fn misuse_of_memory_barriers_and_warps() {
    check_cases("threads.cu", THREADS);
}

#[test]
fn misuse_of_copies() {
    check_cases("copies.cu", COPIES);
}

#[test]
fn misuse_of_matrix_instructions() {
    check_cases("products.cu", PRODUCTS);
}

#[test]
fn misuse_of_clusters() {
    check_cases("clusters.cu", CLUSTERS);
}

#[test]
fn accumulators_are_nan_before_the_wait() {
    let machine = machine(Build::Plain, "products.cu");
    for completion in [Completion::Late, Completion::Eager, Completion::Random] {
        machine.set_schedule(Schedule::FirstIn, completion);
        let words = run(&machine, &case("wgmma_correct", PLAIN, Fault::Crash, "")).unwrap();
        assert!(words[..128].iter().all(|&word| f32::from_bits(word).is_nan()), "{:?}", &words[..128]);
        assert!(words[128..256].iter().all(|&word| f32::from_bits(word) == 16.0), "{:?}", &words[128..256]);
    }
}

/// The format strings of all checks of the machine.
fn check_formats() -> Vec<String> {
    let mut found = vec![];
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp/machine")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for (start, _) in text.match_indices("fail(Fault::") {
            let call = &text[start..];
            let Some(first) = call.find('"') else { continue };
            // C++ joins adjacent string literals, so all literals that only white space separates are read.
            let mut pieces = call[first..].split('"').skip(1);
            let mut format = pieces.next().unwrap().to_owned();
            while pieces.next().is_some_and(|between| between.trim().is_empty()) {
                format += pieces.next().unwrap_or_default();
            }
            found.push(format);
        }
    }
    found
}

#[test]
fn every_check_has_a_kernel() {
    let formats = check_formats();
    assert!(formats.len() > 70, "found only {} checks in the sources", formats.len());
    let cases: Vec<&Case> = [THREADS, COPIES, PRODUCTS, CLUSTERS].into_iter().flatten().collect();
    let missing: Vec<&String> = formats
        .iter()
        .filter(|format| !cases.iter().any(|case| format.contains(case.text)))
        .filter(|format| !WITHOUT_KERNEL.contains(&format.as_str()))
        .collect();
    assert!(missing.is_empty(), "no kernel fails these checks: {missing:#?}");
}
