//! The library's integration tests, a module for each subject: `cargo test --test it decode::` runs one.
//!
//! They are one program because building a program of its own for each would take longer than running them.
#![allow(missing_docs)]

mod common;

mod adamw;
mod adapter;
mod attention;
mod bottleneck;
mod decode;
mod device;
mod device_adamw;
mod device_attention;
mod device_backward;
mod device_decode;
mod device_forward;
mod device_options;
mod device_slot;
mod driver;
mod dropout;
mod dx;
mod forward;
mod forward_tf32;
mod golden;
mod gradients;
mod instructions;
mod layer;
mod merge;
mod optim;
mod planted;
mod transformer;
