//! Bugs planted in the kernels: each must be caught, by the check that is meant for it.
//!
//! A planted bug is a change of one place in one file. The file is compiled with it for the emulator, run over a few layers
//! under every schedule, and what ends it is compared with what should. A change whose original is no longer in the file
//! fails as well, so the list stays true.
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
mod matrix;
mod merge;
mod slot;
mod transformer;

use crate::common::code;
use crate::common::rig::Rig;
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

/// Plants every second bug from `first` on: two threads can share the work.
fn every_second(first: usize) {
    let mut missed = vec![];
    for bug in TABLES.iter().copied().flatten().skip(first).step_by(2) {
        let caught = harness::run_variant(bug);
        println!("{}: {caught:?}", bug.name);
        if !bug.caught.contains(&caught) {
            missed.push(format!("{}: {caught:?} instead of {:?}", bug.name, bug.caught));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn planted_bugs_are_caught_even() {
    every_second(0);
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn planted_bugs_are_caught_odd() {
    every_second(1);
}

/// Also where nothing is compiled.
#[test]
fn every_bug_has_its_place() {
    let kernels = emulator_kernels();
    let mut names = std::collections::BTreeSet::new();
    for bug in TABLES.iter().copied().flatten() {
        let text = kernels.text(bug.file).unwrap_or_else(|| panic!("there is no {}", bug.file));
        code::replace(text, bug.original, bug.planted).unwrap_or_else(|error| panic!("{}: {error}", bug.name));
        assert!(names.insert((bug.name, bug.file)), "{}, {}: twice", bug.name, bug.file);
    }
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn kernels_without_a_bug_raise_no_alarm() {
    for build in [Build::Plain, Build::Race] {
        let rig = Rig::new(build);
        for scenario in Scenario::ALL {
            assert_eq!(scenario.run(&rig), Caught::Nothing, "{build:?}, {scenario:?}");
        }
    }
}
