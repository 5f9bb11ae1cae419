//! Unmerged LoRA at the cost of the base layer.
//!
//! A linear layer with a low-rank adapter (LoRA, Hu et al. 2021, arXiv 2106.09685) computes
//!
//! ```text
//! forward    y  = W0 x + bias + s·B(A x)                      s = α/r
//! backward   dx = W0ᵀ dy + s·Aᵀ(Bᵀ dy)    dA = s·(Bᵀ dy) xᵀ    dB = s·dy (A x)ᵀ
//! ```
//!
//! Run as separate layers, the two low-rank products cost far more than their arithmetic. Here they are fused into the
//! base product's own pass over its output, so an unmerged adapter costs no more than the transfer of its bytes, and is
//! swapped by changing two pointers.
//!
//! - [`lora`] describes a layer: the weight in either layout, the bias, the low-rank segments.
//! - [`bottleneck`] describes a bottleneck adapter, a baseline for LoRA; [`dropout`] the dropout of an adapter's input;
//!   [`optim`] a step of AdamW.
//! - [`plan`] chooses how a GPU runs each of them: kernel, grid and workspace. [`abi`] holds the kernels' parameter
//!   structs.
//! - [`device`] runs them on a GPU or on the emulator.
//! - [`cpu`] runs them on the CPU: fused, as separate layers for comparison, backward, merged.
//! - [`mod@reference`] is the naive float64 reference that every backend is tested against.
//!
//! ```
//! use fused_lora::{cpu, lora::{LoraLinear, Segment, Weight}, MatrixMut, MatrixRef};
//!
//! let (tokens, d_in, d_out, rank) = (3, 8, 6, 2);
//! let (x, w0) = (vec![1.0f32; tokens * d_in], vec![0.5f32; d_out * d_in]);
//! let (a, b) = (vec![0.25f32; rank * d_in], vec![1.0f32; d_out * rank]);
//!
//! let segment = Segment {
//!     columns: 0..d_out,
//!     a: MatrixRef::new(&a, rank, d_in)?,
//!     b: MatrixRef::new(&b, d_out, rank)?,
//!     scale: 16.0 / rank as f32,
//! };
//! let layer = LoraLinear { weight: Weight::out_in(MatrixRef::new(&w0, d_out, d_in)?), bias: None, segments: &[segment] };
//!
//! let mut workspace = vec![0.0; layer.plan_forward::<f32>(tokens)?.workspace_len()];
//! let mut y = vec![0.0; tokens * d_out];
//! cpu::forward(&layer, MatrixRef::new(&x, tokens, d_in)?, &mut MatrixMut::new(&mut y, tokens, d_out)?, &mut workspace)?;
//! assert_eq!(y[0], 8.0 * 0.5 + 8.0 * (8.0 * 0.25 * 2.0));
//! # Ok::<(), fused_lora::Error>(())
//! ```

pub mod abi;
pub mod bottleneck;
pub mod cpu;
pub mod device;
pub mod dropout;
mod dtype;
mod error;
pub mod lora;
mod matrix;
pub mod optim;
pub mod plan;
pub mod reference;
mod vectorized;

pub use dtype::{DType, Element};
pub use error::{DriverError, Error, KernelError, LaunchError, Result};
pub use matrix::{MatrixMut, MatrixRef};
pub use plan::{ComputePath, LayerProblem, WorkspaceLayout};

/// Compiles the README's examples with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
