//! Unmerged LoRA at the cost of the base layer.
//!
//! A linear layer with a low-rank adapter (LoRA, Hu et al. 2021, arXiv 2106.09685) computes
//!
//! ```text
//! forward    y  = W0 x + bias + s·B(A x)                      s = α/r
//! backward   dx = W0ᵀ dy + s·Aᵀ(Bᵀ dy)    dA = s·(Bᵀ dy) xᵀ    dB = s·dy (A x)ᵀ
//! ```
//!
//! Run as separate layers, the two thin products cost far more than their arithmetic. Here they ride inside the base
//! product's own pass over its output, so an adapter that is never merged, and can be swapped by swapping two
//! pointers, costs what its bytes cost.
//!
//! - [`lora`] describes a layer: the weight in either layout, the bias, the low-rank segments.
//! - [`bottleneck`] describes a bottleneck adapter, which LoRA is measured against; [`dropout`] which elements of an adapter's input
//!   are dropped in training; [`optim`] a step of AdamW.
//! - [`plan`] says how a GPU runs each of them: which kernel, on what grid, with how much workspace. [`abi`] is what its kernels take.
//! - [`device`] runs them on a GPU, or on the emulator.
//! - [`cpu`] runs it: fused, as the sequential layers it is measured against, backward, merged.
//! - [`mod@reference`] is the naive float64 oracle that every backend is judged by.
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
pub use error::{Error, Result};
pub use matrix::{MatrixMut, MatrixRef};
pub use plan::{ComputePath, LayerProblem, WorkspaceLayout};

/// Compiles the README's example with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
