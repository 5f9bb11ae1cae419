//! Dropout of a launch, whose offset may lie in device memory.

use crate::abi::LoraDropout;
use crate::device::Device;
use crate::device::lora::layer::expect_vector;
use crate::device::memory::matrix::Extent;
use crate::device::memory::slice::DeviceSlice;
use crate::dropout::Dropout;
use crate::error::Result;

/// A dropout, and optionally a step counter in device memory.
#[derive(Debug, Clone, Copy)]
pub struct DeviceDropout<'a> {
    /// The dropout, known when the launch is issued.
    pub dropout: Dropout,
    /// One number on the device, added to the dropout's offset when the launch runs, so that replays of a captured
    /// graph can use different masks.
    pub step: Option<DeviceSlice<'a, u32>>,
}

impl DeviceDropout<'_> {
    /// Checks the step, and returns its name and its memory if there is one.
    pub(crate) fn validate(&self, device: &Device) -> Result<Option<(&'static str, Extent)>> {
        let Some(step) = &self.step else { return Ok(None) };
        let operand = "dropout step";
        Ok(Some((operand, expect_vector(device, operand, step, 1)?)))
    }

    /// The kernels' parameter struct.
    pub(crate) fn params(&self) -> LoraDropout {
        self.dropout.params(self.step.map_or(0, |step| step.address()))
    }
}

impl From<Dropout> for DeviceDropout<'_> {
    fn from(dropout: Dropout) -> Self {
        Self { dropout, step: None }
    }
}
