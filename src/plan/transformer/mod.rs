//! Plans of the operations of GPT-2 other than linear layers: attention, LayerNorm, embedding.

pub(crate) mod attention;
pub(crate) mod rows;

pub use attention::{AttentionPlan, AttentionProblem, AttentionShape, MAX_HEAD_SIZE};
pub use rows::RowPlan;
