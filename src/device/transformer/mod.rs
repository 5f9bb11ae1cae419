//! The operations of GPT-2 besides linear layers, on a device.

pub(crate) mod attention;
pub(crate) mod embedding;
pub(crate) mod layer_norm;
pub(crate) mod pointwise;

pub use attention::{Attention, AttentionMemory, AttentionOptions};
pub use embedding::{Embedding, EmbeddingInput};
pub use layer_norm::{DeviceNorm, LayerNorm};
pub use pointwise::Pointwise;
