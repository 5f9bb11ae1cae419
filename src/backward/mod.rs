//! How a GPU runs the backward pass of one layer: pure, printable, testable.
//!
//! A [`BackwardPlan`] is two launches: kernels/lora/dx_* ([`ForwardPlan::input_gradient`](crate::forward::ForwardPlan)), then
//! kernels/lora/gradients_*, of which a [`GradientsPlan`] says how they make dA and dB of all segments, and the bias's
//! gradient.

mod gradients;
mod plan;
mod tiles;

pub use gradients::{GradientsPlan, GradientsProblem, GradientsSegment};
pub use plan::{BackwardPlan, BackwardProblem};
