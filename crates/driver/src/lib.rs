//! A library with the symbols of the CUDA driver, `libcuda.so.1`, that runs the project's kernels in the emulator.
//!
//! A program that finds it in the place of NVIDIA's (`LD_LIBRARY_PATH`) takes the same path as on a GPU: the same calls, the
//! same machine code in its modules. From the machine code this library reads what the driver must know of a kernel; it runs
//! the kernel's source of the same name. Every call is held to the [rules](Rule) of the driver's documentation, and to some
//! that NVIDIA's driver does not enforce.
//!
//! `options.rs` has what a process may ask for, `README.md` what this proves and what it cannot.

mod alter;
pub mod calls;
mod capture;
mod device;
mod entry;
mod image;
mod limits;
mod objects;
mod options;
mod rules;
mod state;
mod work;

pub use rules::Rule;
