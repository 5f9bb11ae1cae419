//! The command as a user runs it.

mod bench;
mod command;
mod common;
