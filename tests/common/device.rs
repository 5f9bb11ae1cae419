//! A random layer in device memory.

use std::ops::Range;

use fused_lora::device::{
    Device, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceMatrixMut, DeviceOutput, DeviceSegment, EmulatorConfig,
    ForwardOptions, Stream,
};
use fused_lora::lora::{Activation, Epilogue, Layout, Residual};
use fused_lora::{ComputePath, Element};

use super::rig::on_gpu;
use super::{Buffer, Gaps, Operand, RandomLayer, Shape};

/// A new emulated GPU of six SMs at each call, or the real GPU if tests run on one.
pub fn device() -> Device {
    if on_gpu() {
        return Device::cuda(0).unwrap();
    }
    Device::emulator(EmulatorConfig { multiprocessors: 6, ..EmulatorConfig::default() }).unwrap()
}

/// A stream of a `device()`.
pub fn stream() -> Stream {
    Stream::new(&device()).unwrap()
}

/// Options of launches for training: the caller may get T, and dropout may be on.
pub const TRAINING: ForwardOptions = ForwardOptions { path: ComputePath::Auto, unaligned_x: false, training: true };

/// The shape of a layer with gaps between its rows and between its segments.
pub fn shape(tokens: usize, layout: Layout) -> Shape {
    Shape { gaps: Gaps::CHUNKS, ..super::shape(tokens, 64, 40, layout, &[(0, 16, 4), (24, 40, 3)]) }
}

/// A matrix in device memory.
pub struct Matrix<T> {
    buffer: DeviceBuffer<T>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<T: Element> Matrix<T> {
    pub fn new(stream: &Stream, from: &Buffer<T>) -> Self {
        assert_eq!(from.shift, 0, "a buffer of its own is aligned");
        let buffer = DeviceBuffer::from_slice(stream, &from.data).unwrap();
        Self { buffer, rows: from.rows, cols: from.cols, stride: from.stride }
    }

    pub fn view(&self) -> DeviceMatrix<'_, T> {
        DeviceMatrix::with_stride(self.buffer.as_slice(), self.rows, self.cols, self.stride).unwrap()
    }
}

/// A low-rank segment in device memory.
struct Factors<T> {
    columns: Range<usize>,
    a: Matrix<T>,
    b: Matrix<T>,
    scale: f32,
}

impl<T: Element> Factors<T> {
    fn view(&self) -> DeviceSegment<'_, T> {
        DeviceSegment { columns: self.columns.clone(), a: self.a.view(), b: self.b.view(), scale: self.scale }
    }
}

/// A layer, its input and its output in device memory.
pub struct OnDevice<T> {
    layout: Layout,
    activation: Activation,
    weight: Matrix<T>,
    bias: Option<DeviceBuffer<T>>,
    factors: Vec<Factors<T>>,
    x: Matrix<T>,
    residual: Option<Matrix<T>>,
    y: Matrix<T>,
}

impl<T: Element> OnDevice<T> {
    pub fn new(
        stream: &Stream,
        random: &RandomLayer<T>,
        x: &Buffer<T>,
        activation: Activation,
        residual: Option<&Buffer<T>>,
    ) -> Self {
        let shape = &random.shape;
        let factors = shape.segments.iter().zip(&random.factors);
        let factors = factors.map(|(&(start, end, _), (a, b, scale))| Factors {
            columns: start..end,
            a: Matrix::new(stream, a),
            b: Matrix::new(stream, b),
            scale: *scale,
        });
        Self {
            layout: shape.layout,
            activation,
            weight: Matrix::new(stream, &random.weight),
            bias: shape.bias.then(|| DeviceBuffer::from_slice(stream, &random.bias).unwrap()),
            factors: factors.collect(),
            x: Matrix::new(stream, x),
            residual: residual.map(|residual| Matrix::new(stream, residual)),
            y: Matrix::new(stream, &shape.poisoned(Operand::Y, shape.tokens, shape.d_out)),
        }
    }

    /// Calls `work` with views of the layer, its input and its output.
    pub fn with<R>(
        &mut self,
        work: impl FnOnce(&DeviceLora<'_, T>, DeviceMatrix<'_, T>, DeviceOutput<'_, T>) -> R,
    ) -> R {
        let segments: Vec<_> = self.factors.iter().map(Factors::view).collect();
        let layer = DeviceLora {
            weight: self.weight.view(),
            layout: self.layout,
            bias: self.bias.as_ref().map(DeviceBuffer::as_slice),
            segments: &segments,
        };
        let residual = self.residual.as_ref().map_or(Residual::None, |r| Residual::From(r.view()));
        let epilogue = Epilogue { activation: self.activation, residual };
        let Matrix { buffer, rows, cols, stride } = &mut self.y;
        let y = DeviceMatrixMut::with_stride(buffer.as_mut_slice(), *rows, *cols, *stride).unwrap();
        work(&layer, self.x.view(), DeviceOutput { epilogue, ..y.into() })
    }

    /// The output, copied to the host.
    pub fn y(&self, stream: &Stream) -> Buffer<T> {
        let Matrix { buffer, rows, cols, stride } = &self.y;
        Buffer { data: buffer.to_vec(stream).unwrap(), rows: *rows, cols: *cols, stride: *stride, shift: 0 }
    }

    pub fn poison_y(&mut self, stream: &Stream) {
        self.y.buffer.as_mut_slice().fill(stream, 0xff).unwrap();
    }

    pub fn upload_y(&mut self, stream: &Stream, from: &Buffer<T>) {
        let mut y = Buffer::poisoned(self.y.rows, self.y.cols, self.y.stride - self.y.cols);
        (0..y.rows).for_each(|row| y.view_mut().row_mut(row).copy_from_slice(from.view().row(row)));
        self.y.buffer.upload(stream, &y.data).unwrap();
    }

    pub fn upload_x(&mut self, stream: &Stream, from: &Buffer<T>) {
        self.x.buffer.upload(stream, &from.data).unwrap();
    }
}
