//! PEFT's folders, seen from outside.

mod common;
mod fields;
mod refusals;
