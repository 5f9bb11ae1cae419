//! Bugs planted in the kernels: each must be caught by the check that is meant for it.
//!
//! A planted bug is a replacement in one file of the kernels. The changed kernels are compiled for the emulator and run
//! on a few layers under every schedule; the fault or the wrong result must be the expected one. A replacement whose
//! original code is no longer in the file fails as well, so the list stays up to date.
#![allow(clippy::unwrap_used)]

mod adamw;
mod adapter;
mod attention;
mod cuda_cores;
mod dropout;
mod dx;
mod forward;
mod forward_tf32;
mod forward_wgmma;
mod forward_wgmma_fused;
mod forward_wgmma_split;
mod gradients;
mod harness;
mod ladder;
mod layers;
mod matrix;
mod merge;
mod slot;
mod transformer;

use crate::common::code;
use fused_lora::device::emulator_kernels;
use fused_lora_emulator::Build;
use harness::{Bug, Caught, Scenario};

const TABLES: &[&[Bug]] = &[
    cuda_cores::BUGS,
    matrix::BUGS,
    merge::BUGS,
    forward::BUGS,
    forward_wgmma::BUGS,
    forward_wgmma_split::BUGS,
    dropout::BUGS,
    gradients::BUGS,
    adamw::BUGS,
    forward_tf32::BUGS,
    dx::BUGS,
    attention::BUGS,
    transformer::BUGS,
    adapter::BUGS,
    slot::BUGS,
    forward_wgmma_fused::BUGS,
    ladder::BUGS,
];

/// Checks every second bug, beginning with number `first`, so that two tests share the work on two threads.
fn check_every_second(first: usize) {
    let mut missed = vec![];
    for bug in TABLES.iter().copied().flatten().skip(first).step_by(2) {
        let caught = harness::run_with_bug(bug);
        println!("{}: {caught:?}", bug.name);
        if !bug.caught.contains(&caught) {
            missed.push(format!("{}: {caught:?}, expected {:?}", bug.name, bug.caught));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn planted_bugs_are_caught_even() {
    check_every_second(0);
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn planted_bugs_are_caught_odd() {
    check_every_second(1);
}

/// Checks without compiling that the original code of each bug occurs once in its file, and that names are unique.
#[test]
fn every_bug_has_its_place() {
    let kernels = emulator_kernels();
    let mut names = std::collections::BTreeSet::new();
    for bug in TABLES.iter().copied().flatten() {
        let text = kernels.text(bug.file).unwrap_or_else(|| panic!("there is no file {}", bug.file));
        code::replace(text, bug.original, bug.planted).unwrap_or_else(|error| panic!("{}: {error}", bug.name));
        assert!(names.insert((bug.name, bug.file)), "two bugs have the name '{}' and the file {}", bug.name, bug.file);
    }
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn kernels_without_a_bug_raise_no_alarm() {
    for build in [Build::Plain, Build::Race] {
        for scenario in Scenario::ALL {
            assert_eq!(harness::run_unchanged(scenario, build), Caught::Nothing, "{build:?}, {scenario:?}");
        }
    }
}

/// A scenario of which a launch is refused fails; it does not count as a bug that was caught. Here the source of the base
/// product, with which the fused kernels' columns without an adapter are compared, has no kernels.
#[test]
#[ignore = "part of the proof: cargo xtask prove"]
#[should_panic(expected = "there is no kernel")]
fn a_refused_launch_is_no_caught_bug() {
    let base = "lora/forward_wgmma_split_f16.cu".to_owned();
    harness::run_variant(Scenario::ForwardWgmmaFused, Build::Plain, &base, String::new(), "no base product");
}
