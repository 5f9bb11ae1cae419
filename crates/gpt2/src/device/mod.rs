//! GPT-2 on a GPU or on the emulator: every adaptation method of the CPU backend, on the hand-written kernels.
//!
//! A block takes seven launches: qkv, attention, its output projection, a LayerNorm, the two products of the MLP, and
//! the next block's LayerNorm. A fused LoRA adds none. All activations lie in one allocation. A pass allocates nothing
//! and does not wait, so it can be captured in one graph.
//!
//! ```
//! use fused_lora::device::{Device, Stream};
//! use fused_lora_gpt2::device::{DeviceAdapters, DeviceForward, DeviceModel, PassShape};
//! use fused_lora_gpt2::{Adapters, Model};
//!
//! fn logits(device: &Device, model: &Model<f32>, adapters: &Adapters<f32>, tokens: &[&[u32]]) -> fused_lora_gpt2::Result<Vec<f32>> {
//!     let stream = Stream::new(device)?;
//!     let adapters = DeviceAdapters::upload(&stream, adapters, &model.config)?;
//!     let model = DeviceModel::upload(&stream, model)?;
//!     let mut forward = DeviceForward::new(&stream, &model, &adapters, PassShape::whole(tokens.len(), tokens[0].len()))?;
//!     forward.set_tokens(&stream, &model, &adapters, tokens, None)?;
//!     forward.run(&stream, &model, &adapters, None)?;
//!     forward.logits(&stream, &model)
//! }
//! ```

mod adapters;
mod arena;
mod block;
mod cache;
mod forward;
mod projection;
mod shape;
mod weights;

pub use adapters::DeviceAdapters;
pub use cache::Cache;
pub use forward::DeviceForward;
pub use shape::PassShape;
pub use weights::DeviceModel;
