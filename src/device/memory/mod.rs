//! Device memory: who owns it, views of it, when it is given back.

pub(crate) mod buffer;
pub(crate) mod ledger;
pub(crate) mod matrix;
pub(crate) mod slice;
pub(crate) mod workspace;

pub use buffer::DeviceBuffer;
pub use matrix::{DeviceMatrix, DeviceMatrixMut};
pub use slice::{DeviceSlice, DeviceSliceMut};
pub use workspace::Workspace;
