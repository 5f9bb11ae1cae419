//! Runs the project's CUDA kernels on the CPU, and is stricter about them than hardware.
//!
//! The kernels include only `gpu/` headers; here the include path leads to twins of these in plain C++. Every CUDA
//! thread is a fiber, all on one OS thread, so a launch runs the same way every time it is given the same
//! [`Schedule`]. Asynchronous copies complete as late as their waits allow, unless asked otherwise. What hardware lets
//! pass by luck ends a launch here with a [`Fault`]: an address outside an allocation, shared memory read before it was
//! written, lanes that diverge before a shuffle, a barrier that not everyone reaches, threads that wait for each other.
//!
//! Three [`Build`]s of the same kernels exist. `Plain` is the fastest. `Race` follows every access with vector clocks and
//! reports those that nothing orders; it also counts shared-memory bank conflicts. `Sanitize` adds AddressSanitizer and
//! UndefinedBehaviorSanitizer, and needs [`sanitizer_preload`] to be loaded before the process starts.
//!
//! ```
//! use fused_lora_emulator::{Build, Config, Machine};
//!
//! let machine = Machine::new(Config { build: Build::Plain, ..Config::default() })?;
//! let address = machine.allocate(1024)?;
//! // SAFETY: the bytes lie in the allocation made above.
//! unsafe { machine.write(address, &[1, 2, 3]) };
//! # Ok::<(), fused_lora_emulator::Error>(())
//! ```

mod config;
mod error;
mod library;
mod machine;
mod symbols;
mod variant;

pub use config::{Build, Completion, Config, Counters, Schedule};
pub use error::{Error, Fault};
pub use library::{compiler, kernel_sources, sanitizer_preload};
pub use machine::{KernelInfo, Launch, Machine, TensorMap};
pub use variant::compile_variant;
