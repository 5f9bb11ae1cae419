//! What GPT-2 has beside linear layers.

pub(crate) mod attention;
pub(crate) mod rows;

pub use attention::{AttentionPlan, AttentionProblem, AttentionShape, MAX_HEAD_SIZE};
pub use rows::RowPlan;
