//! A linear layer with its adapters: forward, backward, merged.
//!
//! | folder or file | kernels |
//! |---|---|
//! | `tiles.rs` | the tiles that all of them are compiled for |
//! | `choice.rs` | [`Plan`]: a decode or a forward kernel |
//! | `decode/` | `decode_*`: 1 to 16 tokens |
//! | `forward/` | `forward_*`: any number of tokens |
//! | `dx.rs` | `dx_*`: the gradient of the layer's input |
//! | `gradients/` | `gradients_*`: dA, dB and the bias's gradient |
//! | `backward.rs` | [`BackwardPlan`]: the last two together |
//! | `merge.rs` | `merge`: adapters into W0 |

pub(crate) mod backward;
pub(crate) mod choice;
pub(crate) mod decode;
pub(crate) mod dx;
pub(crate) mod forward;
pub(crate) mod gradients;
pub(crate) mod merge;
pub(crate) mod product;
pub(crate) mod tiles;

pub use backward::{BackwardPlan, BackwardProblem};
pub use choice::Plan;
pub use decode::{DecodePlan, MAX_TOKENS};
pub use forward::ForwardPlan;
pub use gradients::{GradientsPlan, GradientsProblem, GradientsSegment};
pub use merge::MergePlan;
pub use product::Product;
