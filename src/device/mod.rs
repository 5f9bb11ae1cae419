//! GPUs: memory, streams, events, graphs and kernels, on CUDA and on the emulator alike.
//!
//! A [`Device`] is either an NVIDIA GPU, through the driver API alone, or (with the feature `emulator`) the CPU running
//! the same kernel sources, with stricter checks than hardware. Everything here works on both. Nothing here panics if
//! there is no driver: [`Device::cuda`] returns [`DriverError::NotInstalled`](crate::DriverError::NotInstalled).
//!
//! - [`DeviceBuffer`] owns memory; [`DeviceSlice`], [`DeviceSliceMut`], [`DeviceMatrix`] and [`DeviceMatrixMut`] are
//!   views of it, or of memory that another library owns.
//! - [`Stream`] runs work in order, and may belong to another library; [`Event`] marks and times work; [`Graph`]
//!   replays work.
//! - [`Kernel`] is a kernel that was loaded by name; [`LaunchConfig`] says how it is launched.
//! - [`Forward`] runs a LoRA layer for any number of tokens in one launch, [`Backward`] computes its gradients in two;
//!   [`Merge`] folds adapters into a weight; [`Optimizer`] takes a training step on all of them.
//! - [`Adapter`] runs a bottleneck adapter, a baseline for LoRA.
//! - [`Embedding`] embeds tokens and positions, [`LayerNorm`] normalises rows, [`Attention`] attends to a prefix, to a
//!   cache of keys and values, and to a call's own tokens; [`Pointwise`] adds the output of a separate LoRA to a
//!   layer's.
//!
//! Memory may be dropped while a stream still uses it: it is freed when that work is done. The caller must order work
//! on *different* streams that accesses the same memory, with [`Stream::wait`]. Unordered work may read any values, but
//! nothing worse happens: launches, steps and replays that share a [`Workspace`], an [`Optimizer`] or a
//! [`MergeReportBuffer`] are put in order, whatever streams they are on, because kernels that updated its counters at
//! the same time might never end.

mod adapter;
mod backend;
mod cuda;
#[cfg(feature = "emulator")]
mod emulator;
mod image;
mod launch;
mod lora;
mod memory;
mod optim;
mod properties;
mod transformer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use backend::{Backend, LoadedKernel};
use launch::order::Captures;
use memory::ledger::Ledger;

use crate::error::{Error, Result};

pub use crate::plan::transformer::AttentionShape;
pub use adapter::{Adapter, DeviceAdapter};
#[cfg(feature = "emulator")]
pub use fused_lora_emulator::{Config as EmulatorConfig, Counters as LaunchCounters, Machine};
#[cfg(feature = "emulator")]
pub use image::emulator_kernels;
#[cfg(test)]
pub(crate) use image::source_text;
pub use image::{BuiltIn, built_in, cache_folder, nvrtc_version};
pub use launch::{Event, Graph, Kernel, KernelParams, LaunchConfig, Stream, Tensor};
pub use lora::{
    Backward, BackwardInput, BackwardOptions, BackwardOutput, DeviceDropout, DeviceFactors, DeviceInput, DeviceLora,
    DeviceMergeReport, DeviceOutput, DeviceSegment, FactorGradient, FactorSlot, Forward, ForwardOptions, Merge,
    MergeReportBuffer, SlotSegments,
};
pub use memory::{DeviceBuffer, DeviceMatrix, DeviceMatrixMut, DeviceSlice, DeviceSliceMut, DeviceTensor, Workspace};
pub use optim::{DeviceParameter, Optimizer};
pub use properties::{DeviceKind, KernelAttributes, Properties};
pub use transformer::{
    Attention, AttentionMemory, AttentionOptions, DeviceNorm, Embedding, EmbeddingInput, LayerNorm, Pointwise,
};

/// A GPU or the emulator. A clone is the same device.
#[derive(Debug, Clone)]
pub struct Device(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: Box<dyn Backend>,
    ledger: Ledger,
    captures: Captures,
    kernels: Mutex<HashMap<String, LoadedKernel>>,
}

impl Device {
    /// The CUDA device with this number, through its primary context. All calls with one number return the same device.
    ///
    /// # Errors
    /// [`Error::Driver`]: there is no driver, it is too old, it has no device of this number, or it refuses a call.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        static OPEN: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());
        // A panic under the lock cannot leave the list half changed.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, device)) = open.iter().find(|(number, _)| *number == ordinal) {
            return Ok(device.clone());
        }
        let device = Self::new(cuda::Cuda::open(ordinal)?);
        open.push((ordinal, device.clone()));
        Ok(device)
    }

    /// The number of CUDA devices.
    ///
    /// # Errors
    /// [`Error::Driver`]: there is no driver, it is too old, or it finds no GPU.
    pub fn cuda_count() -> Result<usize> {
        cuda::device_count()
    }

    /// The properties of a CUDA device, without opening it.
    ///
    /// # Errors
    /// As [`cuda`](Self::cuda).
    pub fn cuda_properties(ordinal: usize) -> Result<Properties> {
        cuda::properties(ordinal)
    }

    /// A new emulated GPU with its own memory. A C++ compiler, g++ or clang++, compiles each kernel when it is first
    /// loaded.
    ///
    /// # Errors
    /// [`Error::Driver`] without a C++ compiler: [`NoEmulator`](crate::DriverError::NoEmulator).
    #[cfg(feature = "emulator")]
    pub fn emulator(config: EmulatorConfig) -> Result<Self> {
        Ok(Self::new(emulator::Emulator::new(config)?))
    }

    /// Checks that this machine has what the emulator needs: Linux and a C++ compiler. Compiles nothing.
    ///
    /// # Errors
    /// [`Error::Driver`], which says what is missing: [`NoEmulator`](crate::DriverError::NoEmulator).
    #[cfg(feature = "emulator")]
    pub fn expect_emulator() -> Result<()> {
        Ok(fused_lora_emulator::expect_available()?)
    }

    fn new(backend: impl Backend + 'static) -> Self {
        Self(Arc::new(Inner {
            backend: Box::new(backend),
            ledger: Ledger::default(),
            captures: Captures::default(),
            kernels: Mutex::default(),
        }))
    }

    /// The device's properties.
    pub fn properties(&self) -> &Properties {
        self.0.backend.properties()
    }

    /// Takes the emulator's counters of the last launch. `None` if there was no launch since the last call, and on a
    /// GPU.
    #[cfg(feature = "emulator")]
    pub fn take_counters(&self) -> Option<LaunchCounters> {
        self.0.backend.take_counters().pop()
    }

    /// Takes the emulator's counters of all launches since the last call, in the order in which they ran, of at most 64
    /// launches. Empty on a GPU.
    #[cfg(feature = "emulator")]
    pub fn take_all_counters(&self) -> Vec<LaunchCounters> {
        self.0.backend.take_counters()
    }

    /// Makes an emulated GPU fail after this many further launches: every later call returns
    /// [`DeviceLost`](crate::DriverError::DeviceLost), as it does on a GPU after a kernel has failed. For tests; no
    /// effect on a GPU.
    #[cfg(feature = "emulator")]
    pub fn lose_after(&self, launches: u32) {
        self.0.backend.lose_after(launches);
    }

    /// The emulated machine, for example to change the schedule of its launches. `None` on a GPU.
    #[cfg(feature = "emulator")]
    pub fn machine(&self) -> Option<&Machine> {
        self.0.backend.machine()
    }

    fn backend(&self) -> &dyn Backend {
        &*self.0.backend
    }

    fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    fn captures(&self) -> &Captures {
        &self.0.captures
    }

    fn expect_same(&self, operand: &'static str, other: &Device) -> Result<()> {
        if self == other {
            return Ok(());
        }
        let (expected, actual) = (self.properties().to_string(), other.properties().to_string());
        Err(Error::WrongDevice { operand, expected, actual })
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Device {}
