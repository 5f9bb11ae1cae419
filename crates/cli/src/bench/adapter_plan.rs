//! The launches of a bottleneck adapter after a layer on a device.

use fused_lora::device::{Adapter, Device, DeviceBuffer, DeviceMatrix, LayerNorm, Stream, Workspace};
use fused_lora::lora::Residual;
use fused_lora::{Element, WorkspaceLayout};

use super::device::{AdapterCopy, output_view};

/// The launches that follow the layer's: Adapter^L's LayerNorm, then the adapter itself.
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

    /// The launches that follow the layer's, in order: name in tables, bytes that it must move at least, plan.
    #[cfg(feature = "emulator")]
    pub(super) fn launches(&self, adapter: &super::adapter::Adapter) -> Vec<(&'static str, usize, String)> {
        let norm = self.norm.as_ref().map(|norm| {
            let plan = norm.plan();
            (adapter.norm_name(), plan.floor_bytes, plan.launch.kernel.clone())
        });
        let plan = self.adapter.plan();
        norm.into_iter().chain([(adapter.name, plan.floor_bytes, plan.to_string())]).collect()
    }

    /// The buffer that the layer writes to. Without a LayerNorm it is `between`, the adapter's input: the adapter
    /// cannot write y over its input, which other CTAs still read. With one, the layer writes y, LayerNorm writes
    /// `between`, and the adapter adds to y in place.
    pub(super) fn layer_output<'b>(&self, y: &'b DeviceBuffer<T>, between: &'b DeviceBuffer<T>) -> &'b DeviceBuffer<T> {
        if self.norm.is_some() { y } else { between }
    }

    /// Issues the launches that follow the layer's. Both buffers have room for `tokens` rows.
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
            planned.launch(stream, x, &norm, output_view(between, tokens, d)?)?;
            (adds_input, residual) = (false, Residual::InPlace);
        }
        let x = DeviceMatrix::new(between.slice(0..tokens * d), tokens, d)?;
        self.adapter.launch(stream, &copy.view()?, x, adds_input, residual, output_view(y, tokens, d)?, workspace)
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
