//! The library's integration tests, a module for each subject: `cargo test --test it lora::decode::` runs one.
//!
//! They are one program because building a program of its own for each would take longer than running them.
#![allow(missing_docs)]

mod common;

mod adapter;
mod cpu;
mod device;
mod examples;
mod golden;
mod instructions;
mod ladder;
mod lora;
mod optim;
mod planted;
mod transformer;
