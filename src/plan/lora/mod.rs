//! Plans of a linear layer with its adapters: forward pass, backward pass, merge.
//!
//! | folder or file | what it plans |
//! |---|---|
//! | `tiles.rs` | the table of tiles that the kernels are compiled for |
//! | `choice.rs` | [`Plan`]: y on a decode kernel or on a forward kernel |
//! | `decode/` | `lora_decode_*`: y of 1 to 16 tokens |
//! | `forward/` | `lora_forward_*`: y of any number of tokens |
//! | `dx.rs` | `lora_dx_*`: dx, the gradient of the layer's input, and Q |
//! | `gradients/` | `lora_gradients_*`: dA, dB and the bias's gradient |
//! | `backward.rs` | [`BackwardPlan`]: the launch of dx and that of the other gradients |
//! | `merge.rs` | `lora_merge_*`: adapters folded into W0 |

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
