//! The command as a user runs it.
#![allow(clippy::unwrap_used)]

mod bench;
mod checkpoints;
mod command;
mod common;
mod interrupted;
mod outputs;
