//! Tests of the driver's calls, made as a C program makes them.
//!
//! The driver's state is the process's, so each test runs in a process of its own ([`process`]).
#![allow(clippy::unwrap_used)]

mod calls;
mod compiler;
mod cubin;
mod image;
mod process;
mod rules;
