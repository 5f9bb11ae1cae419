//! The driver's functions, by what they are about.

pub mod context;
pub mod error;
pub mod event;
pub mod graph;
pub mod launch;
pub mod memory;
pub mod module;
pub mod stream;
pub mod tensor_map;
