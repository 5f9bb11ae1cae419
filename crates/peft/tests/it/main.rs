//! PEFT's folders, seen from outside.
#![allow(clippy::unwrap_used)]

mod common;
mod fields;
mod refusals;
