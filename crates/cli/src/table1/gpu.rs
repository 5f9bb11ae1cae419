//! The GPU and its state when Table 1 was measured on it.

use fused_lora::device::{Device, DeviceKind};
use serde::Serialize;

use crate::passes::clocks;

/// A GPU and its clocks when Table 1 was measured on it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) compute_capability: String,
    pub(super) multiprocessors: u32,
    pub(super) l2_bytes: usize,
    pub(super) driver_cuda: String,
    pub(super) kernels: String,
    pub(super) clocks_before: Option<String>,
    pub(super) clocks_after: Option<String>,
}

impl Gpu {
    pub(super) fn of(device: &Device) -> Self {
        let properties = device.properties();
        let (major, minor) = properties.compute_capability;
        let driver_cuda = match properties.kind {
            DeviceKind::Cuda { driver_version: (major, minor), .. } => format!("{major}.{minor}"),
            _ => String::new(),
        };
        Self {
            name: properties.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: properties.multiprocessors,
            l2_bytes: properties.l2_bytes,
            driver_cuda,
            kernels: format!("{:?}", fused_lora::device::built_in()),
            clocks_before: clocks(),
            clocks_after: None,
        }
    }
}
