//! Tests of the command `fused-lora`.
#![allow(clippy::unwrap_used)]

mod bench;
mod checkpoints;
mod command;
mod common;
mod fit;
mod interrupted;
mod outputs;
