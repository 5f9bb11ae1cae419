//! Bugs planted in the kernels: each must be caught, by the check that is meant for it.
//!
//! A planted bug is a change of one place in one file. The file is compiled with it for the emulator, run over a few layers
//! under every schedule, and what ends it is compared with what should. A change whose original is no longer in the file
//! fails as well, so the list stays true.
#![allow(clippy::unwrap_used)]

mod adamw;
mod adapter;
mod attention;
#[path = "../common/mod.rs"]
mod common;
mod cuda_cores;
mod dropout;
mod dx;
mod forward;
mod forward_tf32;
mod forward_wgmma;
mod forward_wgmma_ride;
mod forward_wgmma_split;
mod gradients;
mod harness;
mod matrix;
mod merge;
mod slot;
mod transformer;

use std::process::Command;

use common::rig::Rig;
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
    forward_wgmma_ride::BUGS,
];

/// Set in the processes that do the work: the first bug, and the distance to the next. A process has room for the
/// thread-local data of some twenty machines only.
const SLICE: &str = "FUSED_LORA_TEST_PLANTED";
const SLICES: usize = 18;

/// In a process of its own: plants every `SLICES`-th bug from `first` on.
fn slice(first: usize) {
    let output = Command::new(std::env::current_exe().unwrap())
        .env(SLICE, first.to_string())
        .args(["--exact", "a_slice_of_the_bugs_is_caught", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "see above");
}

#[test]
fn a_slice_of_the_bugs_is_caught() {
    let Ok(first) = std::env::var(SLICE) else { return }; // the tests below start it where it has work to do
    let mut missed = vec![];
    for bug in TABLES.iter().copied().flatten().skip(first.parse().unwrap()).step_by(SLICES) {
        let caught = harness::run_variant(bug);
        println!("{}: {caught:?}", bug.name);
        if !bug.caught.contains(&caught) {
            missed.push(format!("{}: {caught:?} instead of {:?}", bug.name, bug.caught));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn planted_bugs_are_caught_even() {
    (0..SLICES).step_by(2).for_each(slice);
}

#[test]
fn planted_bugs_are_caught_odd() {
    (1..SLICES).step_by(2).for_each(slice);
}

#[test]
fn there_are_forty_of_them() {
    assert!(TABLES.iter().map(|table| table.len()).sum::<usize>() >= 40);
}

#[test]
fn kernels_without_a_bug_raise_no_alarm() {
    for build in [Build::Plain, Build::Race] {
        let rig = Rig::new(build);
        for scenario in Scenario::ALL {
            assert_eq!(scenario.run(&rig), Caught::Nothing, "{build:?}, {scenario:?}");
        }
    }
}
