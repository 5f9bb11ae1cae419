//! The command as a user runs it.

mod bench;
mod checkpoints;
mod command;
mod common;
mod interrupted;
mod outputs;
