//! Rows that end anywhere: no kernel reads behind the last element of a row of x or dy, where NaN or nothing is.
#![allow(clippy::unwrap_used)]

use crate::common::rig::{on_gpu, proving};
use fused_lora::Element;
use fused_lora::device::{
    Backward, BackwardInput, BackwardOutput, Device, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceSegment,
    DeviceTensor, EmulatorConfig, FactorGradient, Forward, Stream, Workspace,
};
use fused_lora::lora::{Accumulate, Layout};
use half::{bf16, f16};

const RANK: usize = 8;

fn devices() -> Vec<Device> {
    if on_gpu() {
        return vec![Device::cuda(0).unwrap()];
    }
    let emulator = |compute_capability| {
        let config = EmulatorConfig { compute_capability, multiprocessors: 6, ..EmulatorConfig::default() };
        Device::emulator(config).unwrap()
    };
    vec![emulator((7, 5)), emulator((8, 0)), emulator((9, 0))]
}

/// Rows of ones at multiples of 16 bytes, with NaN between them, and nothing behind the last.
fn ones_between_nans<T: Element>(stream: &Stream, rows: usize, cols: usize) -> (DeviceBuffer<T>, usize) {
    let stride = cols.next_multiple_of(16 / size_of::<T>());
    let one = |i: usize| T::from_f64(if i % stride < cols { 1.0 } else { f64::NAN });
    let values: Vec<T> = (0..(rows - 1) * stride + cols).map(one).collect();
    (DeviceBuffer::from_slice(stream, &values).unwrap(), stride)
}

/// A layer of ones, with an adapter of ones over all columns or without.
struct Ones<T> {
    weight: DeviceTensor<T>,
    a: DeviceTensor<T>,
    b: DeviceTensor<T>,
    layout: Layout,
}

impl<T: Element> Ones<T> {
    fn new(stream: &Stream, d_in: usize, d_out: usize, layout: Layout) -> Self {
        let ones = |rows: usize, cols: usize| {
            DeviceTensor::from_slice(stream, &vec![T::from_f64(1.0); rows * cols], rows, cols).unwrap()
        };
        let weight = match layout {
            Layout::OutIn => ones(d_out, d_in),
            Layout::InOut => ones(d_in, d_out),
        };
        Self { weight, a: ones(RANK, d_in), b: ones(d_out, RANK), layout }
    }

    fn with<R>(&self, adapted: bool, use_layer: impl FnOnce(&DeviceLora<'_, T>) -> R) -> R {
        let columns = 0..self.b.view().rows();
        let segment = DeviceSegment { columns, a: self.a.view(), b: self.b.view(), scale: 1.0 / RANK as f32 };
        let segments = if adapted { vec![segment] } else { vec![] };
        use_layer(&DeviceLora { weight: self.weight.view(), layout: self.layout, bias: None, segments: &segments })
    }
}

fn forward<T: Element>(device: &Device, tokens: usize, d_in: usize, d_out: usize, layout: Layout, adapted: bool) {
    let stream = Stream::new(device).unwrap();
    let ones = Ones::<T>::new(&stream, d_in, d_out, layout);
    let (x, stride) = ones_between_nans::<T>(&stream, tokens, d_in);
    let x = DeviceMatrix::with_stride(x.as_slice(), tokens, d_in, stride).unwrap();
    let mut y = DeviceTensor::zeros(&stream, tokens, d_out).unwrap();
    let kernel = ones.with(adapted, |layer| {
        let forward = Forward::new(device, layer, tokens).unwrap();
        let mut workspace = Workspace::new(&stream, forward.workspace()).unwrap();
        forward.launch(&stream, layer, x, y.view_mut(), &mut workspace).unwrap();
        forward.kernel().name().to_owned()
    });
    let expected = if adapted { 2 * d_in } else { d_in } as f32;
    let wrong = y.to_vec(&stream).unwrap().into_iter().find(|value| value.to_f32() != expected);
    assert!(wrong.is_none(), "{kernel}, {tokens} tokens, {d_in} to {d_out}: {wrong:?} instead of {expected}");
}

fn backward<T: Element>(device: &Device, tokens: usize, d_in: usize, d_out: usize, layout: Layout, adapted: bool) {
    let stream = Stream::new(device).unwrap();
    let ones = Ones::<T>::new(&stream, d_in, d_out, layout);
    let (dy, dy_stride) = ones_between_nans::<T>(&stream, tokens, d_out);
    let (x, x_stride) = ones_between_nans::<T>(&stream, tokens, d_in);
    let (t, t_stride) = ones_between_nans::<T>(&stream, tokens, RANK);
    let ranks = if adapted { RANK } else { 0 };
    let mut dx = DeviceTensor::<T>::zeros(&stream, tokens, d_in).unwrap();
    let mut da = DeviceTensor::<f32>::zeros(&stream, RANK, d_in).unwrap();
    let mut db = DeviceTensor::<f32>::zeros(&stream, d_out, RANK).unwrap();
    let input = BackwardInput {
        x: DeviceMatrix::with_stride(x.as_slice(), tokens, d_in, x_stride).unwrap(),
        dy: DeviceMatrix::with_stride(dy.as_slice(), tokens, d_out, dy_stride).unwrap(),
        t: DeviceMatrix::with_stride(t.as_slice(), tokens, ranks, t_stride).unwrap(),
        dropout: None,
    };
    let kernels = ones.with(adapted, |layer| {
        let backward = Backward::new(device, layer, tokens).unwrap();
        let mut workspace = Workspace::new(&stream, backward.workspace()).unwrap();
        let mut factors = vec![];
        if adapted {
            factors.push(FactorGradient { da: da.view_mut(), db: db.view_mut() });
        }
        let mut output = BackwardOutput {
            dx: Some(dx.view_mut()),
            dx_accumulate: Accumulate::Overwrite,
            factors: &mut factors,
            bias: None,
            accumulate: Accumulate::Overwrite,
        };
        backward.launch(&stream, layer, &input, &mut output, &mut workspace).unwrap();
        format!("{:?}", backward.plan().input.as_ref().map(|plan| &plan.launch.kernel))
    });
    let case = format!("{kernels}, {tokens} tokens, {d_in} to {d_out}");
    let expected = if adapted { 2 * d_out } else { d_out } as f32;
    let wrong = dx.to_vec(&stream).unwrap().into_iter().find(|value| value.to_f32() != expected);
    assert!(wrong.is_none(), "{case}: dx has {wrong:?} instead of {expected}");
    if adapted {
        // dA = s·Σ (dy B) x, dB = s·Σ dy T, of ones.
        let (of_a, of_b) = ((tokens * d_out) as f32 / RANK as f32, tokens as f32 / RANK as f32);
        assert!(da.to_vec(&stream).unwrap().into_iter().all(|value| value == of_a), "{case}: dA is not {of_a}");
        assert!(db.to_vec(&stream).unwrap().into_iter().all(|value| value == of_b), "{case}: dB is not {of_b}");
    }
}

/// Remainders of d_in and d_out modulo a chunk, in the proof all of them; both layouts, with and without an adapter.
fn rows_end_anywhere<T: Element>() {
    let chunk = 16 / size_of::<T>();
    let ends: Vec<usize> = if proving() { (1..=chunk).collect() } else { vec![1, chunk - 1] };
    for device in devices() {
        for (layout, &end) in
            [Layout::OutIn, Layout::InOut].into_iter().flat_map(|layout| ends.iter().map(move |end| (layout, end)))
        {
            for (d_in, d_out) in [(16 + end, 32), (32, 16 + end)] {
                for adapted in [false, true] {
                    for tokens in [1, 3, 8, 20] {
                        forward::<T>(&device, tokens, d_in, d_out, layout, adapted);
                    }
                    backward::<T>(&device, 20, d_in, d_out, layout, adapted);
                }
            }
        }
    }
}

#[test]
fn f32_rows_end_anywhere() {
    rows_end_anywhere::<f32>();
}

#[test]
fn f16_rows_end_anywhere() {
    rows_end_anywhere::<f16>();
}

#[test]
fn bf16_rows_end_anywhere() {
    rows_end_anywhere::<bf16>();
}
