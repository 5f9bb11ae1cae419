//! Plans: how a GPU runs an operation. A plan is computed without side effects, can be printed, and needs no GPU.
//!
//! A plan is made from the shapes and types of a call and a few facts about the device. It holds the kernel's name, the
//! grid, the shared memory, and the layout of the workspace; [`device`](crate::device) issues the launch. The modules
//! are named as the folders of `kernels/` and the modules of [`device`](crate::device): [`lora`] plans a layer and its
//! gradients, [`adapter`] bottleneck adapters, [`transformer`] the other operations of GPT-2, [`optim`] AdamW. The CPU
//! backend has a plan of its own, [`cpu::Plan`](crate::cpu::Plan).

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
