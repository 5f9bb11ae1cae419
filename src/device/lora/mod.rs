//! A layer with its adapters in device memory, and the calls that run it forward and backward and merge it.

pub(crate) mod backward;
pub(crate) mod call;
pub(crate) mod decode;
pub(crate) mod dropout;
pub(crate) mod factors;
pub(crate) mod forward;
pub(crate) mod layer;
pub(crate) mod merge;
pub(crate) mod slot;

pub use backward::{Backward, BackwardInput, BackwardOptions, BackwardOutput, FactorGradient};
pub use dropout::DeviceDropout;
pub use factors::DeviceFactors;
pub use forward::{DeviceInput, DeviceOutput, Forward, ForwardOptions};
pub use layer::{DeviceLora, DeviceSegment};
pub use merge::{DeviceMergeReport, Merge, MergeReportBuffer};
pub use slot::{FactorSlot, SlotSegments};
