//! What GPT-2 has beside linear layers, in device memory.

pub(crate) mod attention;
pub(crate) mod embedding;
pub(crate) mod layer_norm;
pub(crate) mod pointwise;

pub use attention::{Attention, AttentionMemory};
pub use embedding::{Embedding, EmbeddingInput};
pub use layer_norm::{DeviceNorm, LayerNorm};
pub use pointwise::Pointwise;
