//! Slots: a captured layer runs with whatever adapter is in its slot, what is in a slot outlives its owners, and each way in
//! which factors can be refused.
#![allow(clippy::unwrap_used)]

use crate::common::device::{OnDevice, device};
use crate::common::forward::expected;
use crate::common::rig::on_gpu;
use crate::common::{Buffer, Gaps, RandomLayer, Rng, Shape, steps};
use fused_lora::device::{
    Device, DeviceBuffer, DeviceFactors, DeviceInput, Event, FactorSlot, Forward, Graph, Stream, Workspace,
};
use fused_lora::lora::{Activation, Layout};
use fused_lora::{Element, Error, MatrixRef, Result, lora};
use half::{bf16, f16};

const SEED: u64 = 17;

fn shape(tokens: usize, layout: Layout, ranks: [usize; 2]) -> Shape {
    let segments = vec![(0, 16, ranks[0]), (24, 40, ranks[1])];
    Shape { tokens, d_in: 64, d_out: 40, layout, segments, bias: true, gaps: Gaps::NONE }
}

/// A layer and the input of all of them: layers of one shape but for their ranks have the same weight.
fn layer<T: Element>(shape: &Shape) -> (RandomLayer<T>, Buffer<T>) {
    let random = RandomLayer::<T>::new(&mut Rng(SEED), shape);
    (random, Buffer::<T>::random(&mut Rng(SEED + 1), shape.tokens, shape.d_in, 0))
}

/// The factors of a layer, behind those of another one in the same adapter.
fn upload<T: Element>(stream: &Stream, random: &RandomLayer<T>) -> DeviceFactors<T> {
    let segments = random.segments();
    let other = lora::Segment { columns: 3..9, ..narrow(&segments[0]) };
    DeviceFactors::upload(stream, &[std::slice::from_ref(&other), &segments].concat()).unwrap()
}

/// Six columns of a segment.
fn narrow<'a, T: Element>(segment: &lora::Segment<'a, T>) -> lora::Segment<'a, T> {
    let (rank, b) = (segment.rank(), segment.b);
    let b = MatrixRef::new(b.data(), 6, rank).unwrap();
    lora::Segment { columns: 0..6, b, ..segment.clone() }
}

/// A layer that is captured with a slot.
struct Captured<T> {
    on_device: OnDevice<T>,
    stream: Stream,
    graph: Graph,
    slot: FactorSlot<T>,
    _workspace: Workspace,
}

impl<T: Element> Captured<T> {
    fn new(shape: &Shape) -> Self {
        let stream = Stream::new(&device()).unwrap();
        let (random, x) = layer::<T>(shape);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::GeluNew, None);
        let slot = FactorSlot::new(&stream, &upload(&stream, &random)).unwrap();
        let forward = on_device.with(|layer, _, _| Forward::new(stream.device(), layer, shape.tokens)).unwrap();
        let mut workspace = Workspace::new(&stream, forward.workspace()).unwrap();
        let graph = on_device.with(|layer, x, y| {
            let input = DeviceInput { slot: Some(slot.segments(1..3)), ..x.into() };
            Graph::capture(&stream, |stream| forward.launch(stream, layer, input, y, &mut workspace))
        });
        Self { on_device, stream, graph: graph.unwrap(), slot, _workspace: workspace }
    }

    fn replay(&mut self) -> Buffer<T> {
        self.on_device.poison_y(&self.stream);
        self.graph.replay(&self.stream).unwrap();
        self.on_device.y(&self.stream)
    }
}

/// What a layer gives with its own factors.
fn alone<T: Element>(shape: &Shape) -> Buffer<T> {
    let stream = Stream::new(&device()).unwrap();
    let (random, x) = layer::<T>(shape);
    let mut on_device = OnDevice::new(&stream, &random, &x, Activation::GeluNew, None);
    let forward = on_device.with(|layer, _, _| Forward::new(stream.device(), layer, shape.tokens)).unwrap();
    let mut workspace = Workspace::new(&stream, forward.workspace()).unwrap();
    on_device.with(|layer, x, y| forward.launch(&stream, layer, x, y, &mut workspace)).unwrap();
    on_device.y(&stream)
}

fn check<T: Element>(tokens: usize, layout: Layout, ranks: [usize; 2]) {
    let full = shape(tokens, layout, ranks);
    let mut captured = Captured::<T>::new(&full);
    assert_eq!(captured.replay().data, alone::<T>(&full).data, "the one that it was made with, bit for bit");
    for [first, second] in [[3, 5], [16, 1], [9, 2], ranks] {
        let lower = shape(tokens, layout, [first, second]);
        let (random, x) = layer::<T>(&lower);
        captured.slot.put(&captured.stream, &upload(&captured.stream, &random)).unwrap();
        let expected = expected(&random, &x, Activation::GeluNew, None, None);
        let what = format!("{}, {lower:?}", T::DTYPE);
        expected.assert_close(captured.replay().view(), steps(&full), &what);
    }
    captured.slot.clear(&captured.stream).unwrap();
    let base = Shape { segments: vec![], ..full };
    assert_eq!(captured.replay().data, alone::<T>(&base).data, "without an adapter, the base layer");
}

#[test]
fn a_captured_layer_runs_with_whatever_is_in_its_slot() {
    for layout in [Layout::OutIn, Layout::InOut] {
        for tokens in [1, 6, 33] {
            check::<f32>(tokens, layout, [20, 5]);
            check::<f16>(tokens, layout, [20, 5]);
            // Ranks whose shrink is fused into the main loop.
            check::<bf16>(tokens, layout, [16, 5]);
        }
    }
}

fn is_kept(device: &Device, address: u64) -> bool {
    device.machine().is_none_or(|machine| machine.is_allocated(address, 1))
}

/// Takes whatever memory was given back, and fills it with NaN.
fn overwrite(stream: &Stream) -> Vec<DeviceBuffer<f16>> {
    let nan = |len: usize| DeviceBuffer::from_slice(stream, &vec![f16::NAN; len]).unwrap();
    (0..64).map(|i| nan(64 << (i % 6))).collect()
}

#[test]
fn what_is_in_a_slot_outlives_its_owners() {
    let full = shape(1, Layout::OutIn, [8, 5]);
    let Captured { mut on_device, stream, graph, mut slot, _workspace } = Captured::<f16>::new(&full);
    let (random, x) = layer::<f16>(&shape(1, Layout::OutIn, [4, 5]));
    let [first, second] = [(); 2].map(|()| upload(&stream, &random));
    let [first_address, second_address] = [&first, &second].map(|factors| factors.segment(1).a.address());
    let expected = expected(&random, &x, Activation::GeluNew, None, None);
    let mut check = |what| {
        let _others = overwrite(&stream);
        on_device.poison_y(&stream);
        graph.replay(&stream).unwrap();
        expected.assert_close(on_device.y(&stream).view(), steps(&full), what);
    };

    slot.put(&stream, &first).unwrap();
    drop(first);
    check("its owner is gone");
    assert!(is_kept(stream.device(), first_address));
    slot.put(&stream, &second).unwrap();
    assert!(on_gpu() || !is_kept(stream.device(), first_address), "out of the slot, with no owner left");
    drop(second);
    drop(slot);
    check("the slot is gone, which the graph still reads");
    assert!(is_kept(stream.device(), second_address));
    drop(graph);
    assert!(on_gpu() || !is_kept(stream.device(), second_address), "nobody reads it any more");
}

/// The last one to be put in is in it, whatever its stream was waiting for.
#[test]
fn exchanges_happen_in_their_order() -> Result<()> {
    let full = shape(1, Layout::OutIn, [8, 5]);
    let mut captured = Captured::<f32>::new(&full);
    let [first, last] = [[8, 1], [2, 5]].map(|ranks| shape(1, Layout::OutIn, ranks));
    let other = Stream::new(captured.stream.device())?;
    captured.slot.put(&other, &upload(&other, &layer::<f32>(&first).0))?;
    captured.slot.put(&captured.stream, &upload(&other, &layer::<f32>(&last).0))?;
    let done = Event::new(other.device())?;
    done.record(&other)?;
    captured.stream.wait(&done)?;
    let (random, x) = layer::<f32>(&last);
    let expected = expected(&random, &x, Activation::GeluNew, None, None);
    expected.assert_close(captured.replay().view(), steps(&full), "the last one");
    Ok(())
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let full = shape(1, Layout::OutIn, [8, 5]);
    let mut captured = Captured::<f32>::new(&full);
    let before = captured.replay();
    let stream = Stream::new(captured.stream.device()).unwrap();
    let (random, x) = layer::<f32>(&full);
    let with = |segments: Vec<(usize, usize, usize)>, d_in| {
        let shape = Shape { segments, d_in, ..full.clone() };
        upload(&stream, &layer::<f32>(&shape).0)
    };
    let slot = &mut captured.slot;
    let refused = slot.put(&stream, &with(vec![(0, 16, 9), (24, 40, 5)], 64)).unwrap_err();
    assert!(matches!(refused, Error::SlotMismatch { segment: 0, .. }), "{refused}: a rank too high");
    assert_eq!(
        refused.to_string(),
        "segment 0: expected 64 inputs, columns 3..9, rank 8 or a lower rank, got 64 inputs, columns 3..9, rank 9"
    );
    let refused = slot.put(&stream, &with(vec![(0, 16, 8), (23, 40, 5)], 64)).unwrap_err();
    assert!(matches!(refused, Error::SlotMismatch { segment: 2, .. }), "{refused}: other columns");
    let refused = slot.put(&stream, &with(vec![(0, 16, 8), (24, 40, 5)], 60)).unwrap_err();
    assert!(matches!(refused, Error::SlotMismatch { segment: 0, .. }), "{refused}: another input");
    let refused = slot.put(&stream, &with(vec![(0, 16, 8)], 64)).unwrap_err();
    assert!(matches!(refused, Error::LengthMismatch { expected: 3, actual: 2, .. }), "{refused}: too few");
    let elsewhere = Stream::new(&Device::clone(&device())).unwrap();
    if !on_gpu() {
        let refused = slot.put(&stream, &upload(&elsewhere, &random)).unwrap_err();
        assert!(matches!(refused, Error::WrongDevice { operand: "factors", .. }), "{refused}");
        let refused = slot.put(&elsewhere, &upload(&stream, &random)).unwrap_err();
        assert!(matches!(refused, Error::WrongDevice { operand: "stream", .. }), "{refused}");
    }
    let factors = upload(&stream, &random);
    let refused = Graph::capture(&stream, |stream| slot.put(stream, &factors)).unwrap_err();
    assert!(matches!(refused, Error::CaptureRefused { .. }), "{refused}");

    let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
    let lower = shape(1, Layout::OutIn, [7, 5]);
    let mut lower = OnDevice::new(&stream, &layer::<f32>(&lower).0, &x, Activation::Identity, None);
    let launch = |on_device: &mut OnDevice<f32>, segments| {
        on_device.with(|layer, x, y| {
            let forward = Forward::new(stream.device(), layer, 1)?;
            let mut workspace = Workspace::new(&stream, forward.workspace())?;
            let input = DeviceInput { slot: Some(slot.segments(segments)), ..x.into() };
            forward.launch(&stream, layer, input, y, &mut workspace)
        })
    };
    let refused = launch(&mut lower, 1..3).unwrap_err();
    assert!(matches!(refused, Error::SlotMismatch { segment: 1, .. }), "{refused}: planned for lower ranks");
    let refused = launch(&mut on_device, 0..2).unwrap_err();
    assert!(matches!(refused, Error::SlotMismatch { segment: 0, .. }), "{refused}: another layer's");
    let refused = launch(&mut on_device, 0..3).unwrap_err();
    assert!(matches!(refused, Error::LengthMismatch { operand: "the slot's segments", .. }), "{refused}");
    launch(&mut on_device, 1..3).unwrap();
    assert_eq!(captured.replay().data, before.data, "what was refused changed nothing");
}

#[test]
fn factors_are_checked_before_they_are_copied() {
    let stream = Stream::new(&device()).unwrap();
    let (random, _) = layer::<f32>(&shape(1, Layout::OutIn, [8, 5]));
    let segments = random.segments();
    let refused = |change: fn(&mut lora::Segment<'_, f32>)| {
        let mut segment = segments[0].clone();
        change(&mut segment);
        DeviceFactors::upload(&stream, &[segments[1].clone(), segment]).unwrap_err()
    };
    assert!(matches!(refused(|s| s.scale = f32::INFINITY), Error::ScaleNotFinite { .. }));
    assert!(matches!(refused(|s| s.columns = 5..5), Error::SegmentOutOfRange { .. }));
    assert!(matches!(refused(|s| s.columns = 0..15), Error::ShapeMismatch { operand: "B", .. }));
    let none = DeviceFactors::<f32>::upload(&stream, &[]).unwrap();
    assert!(none.is_empty());
    let factors = DeviceFactors::upload(&stream, &segments).unwrap();
    assert_eq!((factors.len(), factors.bytes()), (2, 4 * 13 * (64 + 16) + 8 * (2 * 4 + 1)));
}
