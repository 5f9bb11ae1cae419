//! How a GPU runs an operation: pure, printable, testable without one.
//!
//! A plan is made from the shapes and types of a call and a few facts about the device. It names the kernel, its grid, its shared memory
//! and what it needs of a workspace; [`device`](crate::device) launches what it says. The rooms are those of `kernels/` and of
//! [`device`](crate::device): [`lora`] the layer and its gradients, [`adapter`] bottleneck adapters, [`transformer`] what GPT-2 has beside
//! linear layers, [`optim`] AdamW. How the CPU runs a layer is [`cpu::Plan`](crate::cpu::Plan).

pub mod adapter;
pub(crate) mod launch;
pub mod lora;
pub mod optim;
pub(crate) mod problem;
pub mod transformer;
pub(crate) mod workspace;

pub use launch::LaunchShape;
pub use problem::{ComputePath, LayerProblem};
pub use workspace::WorkspaceLayout;
