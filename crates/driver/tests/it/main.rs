//! Tests of the driver's calls, made as a C program makes them.
//!
//! The driver's state is the process's, so each test runs in a process of its own ([`process`]).
#![allow(clippy::unwrap_used)]

mod alterations;
mod calls;
mod capture;
mod compiler;
mod cubin;
mod errors;
mod every_call;
mod image;
mod order;
mod process;
mod readme;
mod rules;
