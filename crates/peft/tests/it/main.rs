//! Tests of the public interface on small PEFT folders.
#![allow(clippy::unwrap_used)]

mod common;
mod fields;
mod refusals;
