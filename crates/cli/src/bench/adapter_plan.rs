//! How a bottleneck adapter is launched behind a layer on a device.

use fused_lora::device::{Adapter, Device, DeviceBuffer, DeviceMatrix, LayerNorm, Stream, Workspace};
use fused_lora::lora::Residual;
use fused_lora::{Element, WorkspaceLayout};

use super::device::{AdapterCopy, place};

/// The launches behind the layer's own: the adapter's one, and before it Adapter^L's LayerNorm.
pub(super) struct AdapterPlan<T> {
    pub(super) norm: Option<LayerNorm<T>>,
    pub(super) adapter: Adapter<T>,
}

impl<T: Element> AdapterPlan<T> {
    pub(super) fn new(device: &Device, copy: &AdapterCopy<T>, tokens: usize) -> fused_lora::Result<Self> {
        let norm = copy.adapter.has_norm.then(|| LayerNorm::new(device, tokens, copy.adapter.d)).transpose()?;
        Ok(Self { norm, adapter: Adapter::new(device, &copy.view()?, tokens)? })
    }

    pub(super) fn workspace(&self) -> WorkspaceLayout {
        self.adapter.workspace()
    }

    /// Behind the layer's own launch, in order: what tables call each, the bytes that it must move, how it is launched.
    #[cfg(feature = "emulator")]
    pub(super) fn launches(&self, adapter: &super::adapter::Adapter) -> Vec<(&'static str, usize, String)> {
        let norm = self.norm.as_ref().map(|norm| {
            let plan = norm.plan();
            (adapter.norm_name(), plan.floor_bytes, plan.launch.kernel.clone())
        });
        let plan = self.adapter.plan();
        norm.into_iter().chain([(adapter.name, plan.floor_bytes, plan.to_string())]).collect()
    }

    /// Where the layer writes to, y or a buffer beside it. An adapter cannot overwrite its own input, which other CTAs still
    /// read. Behind a LayerNorm its input is another one, and it adds onto y in place.
    pub(super) fn written_by_the_layer<'b>(
        &self,
        y: &'b DeviceBuffer<T>,
        between: &'b DeviceBuffer<T>,
    ) -> &'b DeviceBuffer<T> {
        if self.norm.is_some() { y } else { between }
    }

    /// Issues the launches behind the layer. Both buffers have room for so many rows.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        copy: &AdapterCopy<T>,
        tokens: usize,
        y: &DeviceBuffer<T>,
        between: &DeviceBuffer<T>,
        workspace: &mut Workspace,
    ) -> fused_lora::Result<()> {
        let d = copy.adapter.d;
        let (mut adds_input, mut residual) = (true, Residual::None);
        if let (Some(planned), Some(norm)) = (&self.norm, copy.norm()) {
            let x = DeviceMatrix::new(y.slice(0..tokens * d), tokens, d)?;
            planned.launch(stream, x, &norm, place(between, tokens, d)?)?;
            (adds_input, residual) = (false, Residual::InPlace);
        }
        let x = DeviceMatrix::new(between.slice(0..tokens * d), tokens, d)?;
        self.adapter.launch(stream, &copy.view()?, x, adds_input, residual, place(y, tokens, d)?, workspace)
    }
}

impl<T: Element> std::fmt::Display for AdapterPlan<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(norm) = &self.norm {
            write!(f, "{}; ", norm.plan().launch.kernel)?;
        }
        write!(f, "{}", self.adapter.plan())
    }
}
