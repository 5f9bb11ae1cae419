//! The safe attention call: against the reference, with a cache in a replayed graph, and each way in which it can be refused.
#![allow(clippy::unwrap_used)]

use crate::common::attention::{Case, Memory, Operands, Outputs};
use crate::common::device::device;
use crate::common::rig::on_gpu;
use crate::common::{Buffer, Gaps, Operand, Rng};
use fused_lora::device::{
    Attention, AttentionMemory, AttentionOptions, DeviceBuffer, DeviceMatrix, DeviceMatrixMut, DeviceSlice,
    DeviceSliceMut, Graph, Stream, Workspace,
};
use fused_lora::plan::transformer::AttentionShape;
use fused_lora::{ComputePath, Element, Error, Result, WorkspaceLayout};
use half::{bf16, f16};

/// A case's operands in device memory.
struct OnDevice<T> {
    case: Case,
    qkv: DeviceBuffer<T>,
    keys: DeviceBuffer<T>,
    values: DeviceBuffer<T>,
    lengths: DeviceBuffer<u32>,
    out: DeviceBuffer<T>,
    /// Of qkv, keys, values and out.
    strides: [usize; 4],
}

impl<T: Element> OnDevice<T> {
    fn new(stream: &Stream, operands: &Operands<T>) -> Self {
        let case = &operands.case;
        let out = case.poisoned_out::<T>();
        let upload = |data: &[T]| DeviceBuffer::from_slice(stream, data).unwrap();
        let lengths = match &case.memory {
            Memory::Cache(lengths) => lengths.iter().map(|&length| u32::try_from(length).unwrap()).collect(),
            _ => vec![],
        };
        Self {
            case: case.clone(),
            qkv: upload(&operands.qkv.data),
            keys: upload(&operands.keys.data),
            values: upload(&operands.values.data),
            lengths: DeviceBuffer::from_slice(stream, &lengths).unwrap(),
            out: upload(&out.data),
            strides: [&operands.qkv, &operands.keys, &operands.values, &out].map(|buffer| buffer.stride),
        }
    }

    fn launch(&mut self, stream: &Stream, attention: &Attention<T>, workspace: &mut Workspace) -> Result<()> {
        let (shape, [of_qkv, of_keys, of_values, of_out]) = (&self.case.shape, self.strides);
        let (rows, d) = (shape.rows(), shape.width());
        let qkv = DeviceMatrix::with_stride(self.qkv.as_slice(), rows, 3 * d, of_qkv)?;
        let out = DeviceMatrixMut::with_stride(self.out.as_mut_slice(), rows, d, of_out)?;
        let memory = match &self.case.memory {
            Memory::None => AttentionMemory::None,
            Memory::Prefix => AttentionMemory::Prefix {
                keys: DeviceMatrix::with_stride(self.keys.as_slice(), shape.capacity, d, of_keys)?,
                values: DeviceMatrix::with_stride(self.values.as_slice(), shape.capacity, d, of_values)?,
            },
            Memory::Cache(lengths) => AttentionMemory::Cache {
                keys: DeviceMatrixMut::with_stride(
                    self.keys.as_mut_slice(),
                    lengths.len() * shape.capacity,
                    d,
                    of_keys,
                )?,
                values: DeviceMatrixMut::with_stride(
                    self.values.as_mut_slice(),
                    lengths.len() * shape.capacity,
                    d,
                    of_values,
                )?,
                lengths: self.lengths.as_slice(),
            },
        };
        attention.launch(stream, qkv, memory, out, workspace)
    }

    /// What a launch of these operands has left.
    fn outputs(&self, stream: &Stream, operands: &Operands<T>) -> Outputs<T> {
        let like = |b: &Buffer<T>, data: &DeviceBuffer<T>| Buffer { data: data.to_vec(stream).unwrap(), ..*b };
        let out = self.case.poisoned_out::<T>();
        Outputs {
            out: like(&out, &self.out),
            keys: like(&operands.keys, &self.keys),
            values: like(&operands.values, &self.values),
            counters: Default::default(),
        }
    }
}

fn check<T: Element>(case: Case, path: ComputePath) {
    let stream = Stream::new(&device()).unwrap();
    let operands = Operands::<T>::random(11, &case);
    let attention = Attention::<T>::with_options(stream.device(), &case.shape, AttentionOptions { path }).unwrap();
    assert_eq!(attention.kernel().name(), attention.plan().launch.kernel);
    let mut workspace = Workspace::new(&stream, attention.workspace()).unwrap();
    let mut on_device = OnDevice::new(&stream, &operands);
    on_device.launch(&stream, &attention, &mut workspace).unwrap();
    let outputs = on_device.outputs(&stream, &operands);
    let fault = operands.fault(&operands.expected(attention.plan()), &outputs);
    assert_eq!(fault, None, "{}, {case:?}, {}", T::DTYPE, attention.plan());
    outputs.out.assert_gaps_untouched();
}

#[test]
fn attention_is_within_its_bounds() {
    check::<f32>(Case { gaps: Gaps::beyond(4), ..Case::new(2, 9, 2, 24) }, ComputePath::Auto);
    check::<f16>(Case::new(2, 9, 2, 24).with_prefix(5), ComputePath::Matrix);
    check::<bf16>(Case::new(2, 9, 2, 24).with_cache(30, &[4, 21]), ComputePath::Auto);
    check::<bf16>(Case::new(2, 9, 2, 24).with_cache(30, &[4, 21]), ComputePath::CudaCores);
    check::<bf16>(Case::new(2, 1, 2, 24).with_cache(300, &[4, 299]), ComputePath::Auto);
    // A plan for a memory serves a call without one.
    let mut alone = Case::new(1, 3, 2, 24);
    alone.shape.capacity = 10;
    check::<f32>(alone, ComputePath::Auto);
}

/// One graph, captured once, decodes on: the lengths that it reads are the device's.
#[test]
fn a_replayed_graph_reads_the_lengths_anew() -> Result<()> {
    let stream = Stream::new(&device())?;
    let mut operands = Operands::<f32>::random(12, &Case::new(2, 1, 2, 24).with_cache(100, &[3, 97]));
    let attention = Attention::<f32>::new(stream.device(), &operands.case.shape)?;
    assert!(attention.plan().splits > 1, "{}", attention.plan());
    let mut workspace = Workspace::new(&stream, attention.workspace())?;
    let mut on_device = OnDevice::new(&stream, &operands);
    let graph = Graph::capture(&stream, |stream| on_device.launch(stream, &attention, &mut workspace))?;
    drop(workspace);
    // At last the second sequence has no room: its results become NaN, its cache stays.
    for step in 0..4 {
        operands.qkv = Buffer::random_operand(&mut Rng(step), 2, 3 * 48, operands.case.gaps, Operand::Qkv);
        let Memory::Cache(lengths) = &operands.case.memory else { unreachable!() };
        let on_host: Vec<_> = lengths.iter().map(|&length| u32::try_from(length).unwrap()).collect();
        on_device.qkv.upload(&stream, &operands.qkv.data)?;
        on_device.lengths.upload(&stream, &on_host)?;
        graph.replay(&stream)?;
        let outputs = on_device.outputs(&stream, &operands);
        let fault = operands.fault(&operands.expected(attention.plan()), &outputs);
        assert_eq!(fault, None, "step {step}");
        operands.keys.data.copy_from_slice(&outputs.keys.data);
        operands.values.data.copy_from_slice(&outputs.values.data);
        if let Memory::Cache(lengths) = &mut operands.case.memory {
            lengths.iter_mut().for_each(|length| *length += 1);
        }
    }
    Ok(())
}

#[test]
fn plans_share_a_workspace_one_after_the_other() -> Result<()> {
    let stream = Stream::new(&device())?;
    let cases = [
        Case::new(2, 1, 2, 24).with_cache(200, &[150, 199]),
        Case::new(1, 20, 1, 64),
        Case::new(1, 1, 3, 128).with_prefix(90),
    ];
    let mut calls = vec![];
    for case in &cases {
        let operands = Operands::<f16>::random(13, case);
        let attention = Attention::<f16>::new(stream.device(), &case.shape)?;
        calls.push((OnDevice::new(&stream, &operands), operands, attention));
    }
    let room = calls.iter().fold(WorkspaceLayout::default(), |room, (.., a)| room.union(&a.workspace()));
    let mut shared = Workspace::new(&stream, room)?;
    for round in 0..2 {
        for (on_device, operands, attention) in &mut calls {
            on_device.out.as_mut_slice().fill(&stream, 0xff)?;
            on_device.launch(&stream, attention, &mut shared)?;
            let outputs = on_device.outputs(&stream, operands);
            let fault = operands.fault(&operands.expected(attention.plan()), &outputs);
            assert_eq!(fault, None, "round {round}, {}", attention.plan());
        }
    }
    Ok(())
}

/// Two sequences of one token with one head of 8 columns and a cache of 100 rows each, to be made wrong in one way at a time.
const SHAPE: AttentionShape =
    AttentionShape { sequences: 2, tokens: 1, heads: 1, head_size: 8, capacity: 100, scale: 0.5 };

/// What a call is to be refused for: memory of one device, of which views are made.
struct Small {
    stream: Stream,
    data: DeviceBuffer<f32>,
    lengths: DeviceBuffer<u32>,
}

impl Small {
    fn new() -> Self {
        let stream = Stream::new(&device()).unwrap();
        let data = DeviceBuffer::zeros(&stream, 8192).unwrap();
        let lengths = DeviceBuffer::zeros(&stream, 16).unwrap();
        Self { stream, data, lengths }
    }

    /// Rows from an element on, unchecked: views may overlap, for calls that are refused.
    fn at(&self, first: usize, rows: usize, cols: usize) -> DeviceMatrix<'_, f32> {
        self.raw(self.data.as_slice().address() + 4 * first as u64, rows, cols)
    }

    fn raw(&self, address: u64, rows: usize, cols: usize) -> DeviceMatrix<'_, f32> {
        // SAFETY: calls with overlapping views are refused, others do not touch what lies outside the buffer.
        let data = unsafe { DeviceSlice::from_raw(self.stream.device(), address, rows * cols) };
        DeviceMatrix::new(data, rows, cols).unwrap()
    }
}

/// The views of a call, all of which are apart and right.
#[derive(Clone, Copy)]
struct Call<'a> {
    qkv: DeviceMatrix<'a, f32>,
    keys: DeviceMatrix<'a, f32>,
    values: DeviceMatrix<'a, f32>,
    lengths: DeviceSlice<'a, u32>,
    out: DeviceMatrix<'a, f32>,
}

impl<'a> Call<'a> {
    fn good(small: &'a Small) -> Self {
        Self {
            qkv: small.at(0, 2, 24),
            keys: small.at(1000, 200, 8),
            values: small.at(3000, 200, 8),
            lengths: small.lengths.as_slice().slice(0..2),
            out: small.at(100, 2, 8),
        }
    }

    fn launch(&self, stream: &Stream, attention: &Attention<f32>, workspace: &mut Workspace) -> Result<()> {
        let mutable = |view: DeviceMatrix<'a, f32>| {
            // SAFETY: calls with overlapping views are refused.
            let data = unsafe { DeviceSliceMut::from_raw(view.device(), view.address(), view.rows() * view.cols()) };
            DeviceMatrixMut::new(data, view.rows(), view.cols()).unwrap()
        };
        let (keys, values) = (mutable(self.keys), mutable(self.values));
        let memory = AttentionMemory::Cache { keys, values, lengths: self.lengths };
        attention.launch(stream, self.qkv, memory, mutable(self.out), workspace)
    }
}

#[test]
fn each_wrong_launch_has_its_error_and_launches_nothing() -> Result<()> {
    if on_gpu() {
        return Ok(()); // it takes two devices
    }
    let (small, other) = (Small::new(), Small::new());
    let here = &small.stream;
    let attention = Attention::<f32>::new(here.device(), &SHAPE)?;
    let required = attention.workspace();
    assert!(required.arrivals > 0 && required.partial > 0);
    let mut workspace = Workspace::new(here, required)?;
    let (good, elsewhere) = (Call::good(&small), Call::good(&other));
    let refused = |call: Call<'_>, workspace: &mut Workspace| call.launch(here, &attention, workspace).unwrap_err();

    let is_elsewhere =
        |error: Error, operand| assert!(matches!(error, Error::WrongDevice { operand: o, .. } if o == operand));
    is_elsewhere(good.launch(&other.stream, &attention, &mut workspace).unwrap_err(), "stream");
    is_elsewhere(refused(Call { qkv: elsewhere.qkv, ..good }, &mut workspace), "qkv");
    is_elsewhere(refused(Call { keys: elsewhere.keys, ..good }, &mut workspace), "keys");
    is_elsewhere(refused(Call { values: elsewhere.values, ..good }, &mut workspace), "values");
    is_elsewhere(refused(Call { lengths: elsewhere.lengths, ..good }, &mut workspace), "lengths");
    is_elsewhere(refused(Call { out: elsewhere.out, ..good }, &mut workspace), "out");
    is_elsewhere(refused(good, &mut Workspace::new(&other.stream, required)?), "workspace");

    let shape = |operand, expected, actual| Error::ShapeMismatch { operand, expected, actual };
    for (call, error) in [
        (Call { qkv: small.at(0, 2, 23), ..good }, shape("qkv", [2, 24], [2, 23])),
        (Call { keys: small.at(1000, 100, 8), ..good }, shape("keys", [200, 8], [100, 8])),
        (Call { values: small.at(3000, 200, 7), ..good }, shape("values", [200, 8], [200, 7])),
        (Call { out: small.at(100, 1, 8), ..good }, shape("out", [2, 8], [1, 8])),
        (
            Call { lengths: small.lengths.as_slice().slice(0..1), ..good },
            Error::LengthMismatch { operand: "lengths", expected: 2, actual: 1 },
        ),
        (
            Call { qkv: small.raw(0x1002, 2, 24), ..good },
            Error::Misaligned { operand: "qkv", address: 0x1002, alignment: 4 },
        ),
    ] {
        assert_eq!(refused(call, &mut workspace), error);
    }

    let overlap = |output, other| Error::Overlap { output, other };
    // SAFETY: calls with overlapping views are refused.
    let inside = |view: DeviceMatrix<'_, f32>| unsafe { DeviceSlice::from_raw(here.device(), view.address(), 2) };
    for (call, error) in [
        (Call { out: small.at(40, 2, 8), ..good }, overlap("out", "qkv")),
        (Call { keys: small.at(20, 200, 8), ..good }, overlap("out", "keys")),
        (Call { out: small.at(3100, 2, 8), ..good }, overlap("out", "values")),
        (Call { qkv: small.at(2500, 2, 24), ..good }, overlap("keys", "qkv")),
        (Call { qkv: small.at(3500, 2, 24), ..good }, overlap("values", "qkv")),
        (Call { values: small.at(2599, 200, 8), ..good }, overlap("keys", "values")),
        (Call { lengths: inside(good.out), ..good }, overlap("out", "lengths")),
        (Call { lengths: inside(good.keys), ..good }, overlap("keys", "lengths")),
    ] {
        assert_eq!(refused(call, &mut workspace), error);
    }
    for available in [
        WorkspaceLayout { partial: required.partial - 1, ..required },
        WorkspaceLayout { arrivals: required.arrivals - 1, ..required },
    ] {
        let error = refused(good, &mut Workspace::new(here, available)?);
        assert_eq!(error, Error::DeviceWorkspaceTooSmall { required, available });
    }
    assert!(here.device().take_counters().is_none(), "nothing was launched");
    good.launch(here, &attention, &mut workspace)
}

#[test]
fn each_wrong_shape_has_its_error() {
    let device = device();
    let refused = |shape| Attention::<f32>::new(&device, &shape).unwrap_err();
    let head = Error::HeadSizeOutOfRange { head_size: 129, max: 128 };
    assert_eq!(refused(AttentionShape { head_size: 129, ..SHAPE }), head);
    assert_eq!(
        refused(AttentionShape { sequences: 0, ..SHAPE }),
        Error::EmptyOperand { operand: "qkv", shape: [0, 24] }
    );
    let options = AttentionOptions { path: ComputePath::Matrix };
    let matrix = Attention::<f32>::with_options(&device, &AttentionShape { tokens: 4, ..SHAPE }, options);
    assert!(matches!(matrix, Err(Error::NoMatrixInstructions { .. })));
}
