//! GPT-2 with every adaptation method that the LoRA paper's Table 1 compares, on the kernels of `fused-lora`.
//!
//! ```no_run
//! use fused_lora_gpt2::{Adapters, Forward, Model, peft};
//!
//! # fn main() -> Result<(), fused_lora_gpt2::Error> {
//! let model = Model::<f32>::load("gpt2-medium".as_ref())?;
//! let lora = peft::load_lora("my-adapter".as_ref(), &model.config)?;
//! for warning in model.warnings().iter().chain(lora.warnings()) {
//!     eprintln!("{warning}");
//! }
//! let adapters = Adapters { lora: Some(lora), ..Adapters::default() };
//! let mut forward = Forward::new();
//! let logits = forward.logits(&model, &adapters, &[&[15496, 995]])?;
//! # let _ = logits; Ok(()) }
//! ```

pub mod adapter;
mod attention;
mod block;
mod checkpoint;
mod config;
pub mod config_fields;
pub mod device;
mod error;
mod forward;
mod merge;
mod model;
mod norm;
mod output;
pub mod peft;
mod random;
mod reduce;
mod tensor;
pub mod train;

pub use adapter::{Adapters, LoraMode};
pub use checkpoint::{Checkpoint, write_tensors};
pub use config::Config;
pub use error::{Error, Result};
pub use forward::Forward;
pub use fused_lora_peft::Warning;
pub use merge::{LeftOut, Merged, MergedTensor, merge_folder};
pub use model::{Layer, Linear, Model, Norm};
pub use output::{Output, StagedRemoved, remove_staged, write_atomically};
pub use random::Random;
pub use tensor::Tensor;
