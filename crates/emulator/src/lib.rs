//! Runs the project's CUDA kernels on the CPU, and is stricter about them than hardware.
//!
//! The kernels include only `gpu/` headers; here the include path leads to host versions of these headers, in plain
//! C++, which call the [`Machine`]: an emulated GPU with memory, CTAs, warps and threads. Every CUDA thread is a fiber,
//! and all fibers run on one OS thread, so a launch with the same [`Schedule`] always runs the same way. Asynchronous
//! copies complete as late as their waits allow, unless configured otherwise. Bugs that hardware may not show end a
//! launch with a [`Fault`]: an address outside an allocation, shared memory read before it was written, lanes that
//! diverge before a shuffle, a barrier that not all threads reach, threads that wait for each other.
//!
//! A kernel can be compiled in three [`Build`]s. `Plain` is the fastest. `Race` checks every access against vector
//! clocks and reports unordered ones; it also counts the bank conflicts of ordinary accesses to shared memory.
//! `Sanitize` adds AddressSanitizer and UndefinedBehaviorSanitizer, and needs [`sanitizer_preload`] to be loaded before
//! the process starts.
//!
//! Building this crate compiles no C++. A machine is given [`Kernels`] as texts, and a source is compiled by g++ or
//! clang++ when one of its kernels is first used. The libraries are kept in `$FUSED_LORA_CACHE`, else in cargo's target
//! folder if the program lies in one, else in `~/.cache/fused-lora`, under names that depend on the compiler,
//! its flags and every source text.
//!
//! ```no_run
//! use fused_lora_emulator::{Config, Kernels, Machine};
//!
//! let text = "#include <gpu/block.h>\nstruct Params { int* at; };\nGPU_KERNEL(one, Params, 32, 1) { *params.at = 1; }";
//! let kernels = Kernels::new([("one.cu", text)], |_| Some("one.cu".to_owned()));
//! let machine = Machine::new(Config::default(), &kernels)?;
//! let address = machine.allocate(1024)?;
//! // SAFETY: the bytes lie in the allocation made above.
//! unsafe { machine.write(address, &[1, 2, 3]) };
//! # Ok::<(), fused_lora_emulator::Error>(())
//! ```

mod clock;
mod compiler;
mod config;
mod error;
mod hazards;
mod kernels;
mod library;
mod machine;
mod symbols;

pub use clock::{Clock, Place, WorkPlace};
pub use config::{Build, Completion, Config, Counters, Schedule};
pub use error::{Error, Fault};
pub use hazards::{Hazards, Strictness, Work};
pub use kernels::Kernels;
pub use library::{KernelInfo, expect_available, sanitizer_preload};
pub use machine::{Accessed, AccessedRange, Launch, Machine, TensorMap};
