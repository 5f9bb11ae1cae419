//! A model's frozen weights in device memory: uploaded once, shared by every pass.

use fused_lora::Element;
use fused_lora::device::{Device, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceNorm, DeviceSegment, Stream};
use fused_lora::lora::Layout;

use crate::adapter::lora::Projection;
use crate::config::Config;
use crate::error::Result;
use crate::model::{Linear, Model, Norm};

/// A GPT-2 in device memory.
#[derive(Debug)]
pub struct DeviceModel<W> {
    pub(super) config: Config,
    pub(super) wte: DeviceBuffer<W>,
    /// The output layer; `None` if it is the token embedding.
    lm_head: Option<DeviceBuffer<W>>,
    pub(super) wpe: DeviceBuffer<W>,
    pub(super) layers: Vec<DeviceLayer<W>>,
    pub(super) ln_f: NormWeights,
}

#[derive(Debug)]
pub(super) struct DeviceLayer<W> {
    pub(super) ln_1: NormWeights,
    pub(super) ln_2: NormWeights,
    projections: [DeviceLinear<W>; 4],
}

/// LayerNorm's parameters.
#[derive(Debug)]
pub(super) struct NormWeights {
    weight: DeviceBuffer<f32>,
    bias: DeviceBuffer<f32>,
}

/// A projection, `[d_in, d_out]`.
#[derive(Debug)]
pub(super) struct DeviceLinear<W> {
    weight: DeviceBuffer<W>,
    bias: DeviceBuffer<W>,
    d_in: usize,
    d_out: usize,
}

impl<W: Element> DeviceModel<W> {
    /// Copies the weights to the stream's device; returns when the copies are done.
    ///
    /// # Errors
    /// [`Error::Layer`](crate::Error::Layer): [`OutOfMemory`](fused_lora::DriverError::OutOfMemory) if the
    /// weights do not fit, and errors of the driver.
    pub fn upload(stream: &Stream, model: &Model<W>) -> Result<Self> {
        let layer = |layer: &crate::model::Layer<W>| -> Result<DeviceLayer<W>> {
            let [qkv, attn_out, fc, mlp_out] = &layer.projections;
            let linear = |linear| DeviceLinear::upload(stream, linear);
            Ok(DeviceLayer {
                ln_1: NormWeights::upload(stream, &layer.ln_1)?,
                ln_2: NormWeights::upload(stream, &layer.ln_2)?,
                projections: [linear(qkv)?, linear(attn_out)?, linear(fc)?, linear(mlp_out)?],
            })
        };
        Ok(Self {
            config: model.config.clone(),
            wte: DeviceBuffer::from_slice(stream, &model.wte)?,
            lm_head: model.lm_head.as_ref().map(|head| DeviceBuffer::from_slice(stream, head)).transpose()?,
            wpe: DeviceBuffer::from_slice(stream, &model.wpe)?,
            layers: model.layers.iter().map(layer).collect::<Result<_>>()?,
            ln_f: NormWeights::upload(stream, &model.ln_f)?,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device that the model is on.
    pub fn device(&self) -> &Device {
        self.wte.device()
    }

    /// Bytes of device memory that the model takes.
    pub fn bytes(&self) -> usize {
        let linear = |l: &DeviceLinear<W>| (l.weight.len() + l.bias.len()) * size_of::<W>();
        let layer =
            |l: &DeviceLayer<W>| l.ln_1.bytes() + l.ln_2.bytes() + l.projections.iter().map(linear).sum::<usize>();
        let lm_head = self.lm_head.as_ref().map_or(0, DeviceBuffer::len);
        (self.wte.len() + self.wpe.len() + lm_head) * size_of::<W>()
            + self.ln_f.bytes()
            + self.layers.iter().map(layer).sum::<usize>()
    }

    /// The output layer, usually the token embedding: `[vocabulary, d_model]`, no bias.
    pub(super) fn lm_head(&self) -> fused_lora::Result<DeviceLora<'_, W>> {
        Ok(DeviceLora {
            weight: DeviceMatrix::new(
                self.lm_head.as_ref().unwrap_or(&self.wte).as_slice(),
                self.config.vocabulary,
                self.config.d_model,
            )?,
            layout: Layout::OutIn,
            bias: None,
            segments: &[],
        })
    }
}

impl<W: Element> DeviceLayer<W> {
    pub(super) fn projection(&self, projection: Projection) -> &DeviceLinear<W> {
        &self.projections[projection as usize]
    }
}

impl NormWeights {
    pub(super) fn upload(stream: &Stream, norm: &Norm) -> Result<Self> {
        Ok(Self {
            weight: DeviceBuffer::from_slice(stream, &norm.weight)?,
            bias: DeviceBuffer::from_slice(stream, &norm.bias)?,
        })
    }

    pub(super) fn view(&self, epsilon: f32) -> DeviceNorm<'_> {
        DeviceNorm { weight: self.weight.as_slice(), bias: self.bias.as_slice(), epsilon }
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.weight.len() + self.bias.len())
    }
}

impl<W: Element> DeviceLinear<W> {
    fn upload(stream: &Stream, linear: &Linear<W>) -> Result<Self> {
        Ok(Self {
            weight: DeviceBuffer::from_slice(stream, &linear.weight)?,
            bias: DeviceBuffer::from_slice(stream, &linear.bias)?,
            d_in: linear.d_in,
            d_out: linear.d_out,
        })
    }

    /// The layer with these segments on it.
    pub(super) fn layer<'a>(&'a self, segments: &'a [DeviceSegment<'a, W>]) -> fused_lora::Result<DeviceLora<'a, W>> {
        Ok(DeviceLora { weight: self.weight()?, layout: Layout::InOut, bias: Some(self.bias.as_slice()), segments })
    }

    pub(super) fn weight(&self) -> fused_lora::Result<DeviceMatrix<'_, W>> {
        DeviceMatrix::new(self.weight.as_slice(), self.d_in, self.d_out)
    }

    /// `(d_in, d_out)`.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.d_in, self.d_out)
    }
}
