//! How a GPU runs the backward pass of one layer: pure, printable, testable.
//!
//! A [`GradientsPlan`] says how kernels/lora/gradients_* make dA and dB of all segments, and the bias's gradient, in one
//! launch.

mod gradients;
mod tiles;

pub use gradients::{GradientsPlan, GradientsProblem, GradientsSegment};
