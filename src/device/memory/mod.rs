//! Device memory: owners, views, and when it is freed.

pub(crate) mod buffer;
pub(crate) mod ledger;
pub(crate) mod matrix;
pub(crate) mod slice;
mod tensor;
pub(crate) mod workspace;

pub use buffer::DeviceBuffer;
pub use matrix::{DeviceMatrix, DeviceMatrixMut};
pub use slice::{DeviceSlice, DeviceSliceMut};
pub use tensor::DeviceTensor;
pub use workspace::Workspace;
