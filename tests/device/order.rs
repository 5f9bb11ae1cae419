//! Memory that launches update atomically: whatever streams and graphs share it, the launches are put in order. The emulator
//! fails a launch that is not.
#![allow(clippy::unwrap_used)]

use crate::common::device::{OnDevice, device, shape};
use crate::common::forward::expected;
use crate::common::rig::on_gpu;
use crate::common::{Buffer, Gaps, Operand, RandomLayer, Rng, Shape, steps};
use fused_lora::device::{
    Adapter, Attention, AttentionMemory, Backward, BackwardInput, BackwardOutput, Device, DeviceAdapter, DeviceBuffer,
    DeviceMatrix, DeviceMatrixMut, DeviceParameter, DeviceSegment, Event, FactorGradient, Forward, Graph, Merge,
    MergeReportBuffer, Optimizer, Stream, Workspace,
};
use fused_lora::lora::{Accumulate, Activation, Layout, Residual};
use fused_lora::optim::{AdamW, Factor};
use fused_lora::plan::transformer::AttentionShape;
use fused_lora::{DriverError, Error, LaunchError, Result, WorkspaceLayout};

/// Launches, two streams in turn; then the host waits for both.
fn alternate(device: &Device, mut launch: impl FnMut(&Stream) -> Result<()>) -> Result<()> {
    let streams = [Stream::new(device)?, Stream::new(device)?];
    for _ in 0..8 {
        streams.iter().try_for_each(&mut launch)?;
    }
    streams.iter().try_for_each(Stream::synchronize)
}

/// A layer with its input and its output, and its forward launch.
struct Layer {
    stream: Stream,
    shape: Shape,
    random: RandomLayer<f32>,
    x: Buffer<f32>,
    on_device: OnDevice<f32>,
    forward: Forward<f32>,
}

impl Layer {
    fn new(stream: Stream, tokens: usize) -> Self {
        let shape = shape(tokens, Layout::OutIn);
        let mut rng = Rng(tokens as u64);
        let random = RandomLayer::new(&mut rng, &shape);
        let x = shape.random(&mut rng, Operand::X, tokens, shape.d_in);
        let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
        let forward = on_device.with(|layer, _, _| Forward::new(stream.device(), layer, tokens)).unwrap();
        on_device.poison_y(&stream);
        stream.synchronize().unwrap();
        Self { stream, shape, random, x, on_device, forward }
    }

    fn workspace(&self) -> Workspace {
        Workspace::new(&self.stream, self.forward.workspace()).unwrap()
    }

    fn launch(&mut self, stream: &Stream, workspace: &mut Workspace) -> Result<()> {
        self.on_device.with(|layer, x, y| self.forward.launch(stream, layer, x, y, workspace))
    }

    fn capture(&mut self, workspace: &mut Workspace) -> Result<Graph> {
        let stream = Stream::new(self.stream.device())?;
        Graph::capture(&stream, |stream| self.launch(stream, workspace))
    }

    /// Checks y, once the launches have run.
    fn check(&self) {
        let expected = expected(&self.random, &self.x, Activation::Identity, None, None);
        let y = self.on_device.y(&self.stream);
        expected.assert_close(y.view(), steps(&self.shape), &self.forward.plan().to_string());
    }
}

fn layer(tokens: usize) -> Layer {
    Layer::new(Stream::new(&device()).unwrap(), tokens)
}

/// A layer for few tokens and a layer for many, on one device, with a workspace for both.
fn layers() -> ([Layer; 2], Workspace) {
    let device = device();
    let layers = [2, 70].map(|tokens| Layer::new(Stream::new(&device).unwrap(), tokens));
    let room = layers[0].forward.workspace().union(&layers[1].forward.workspace());
    let workspace = Workspace::new(&layers[0].stream, room).unwrap();
    (layers, workspace)
}

#[test]
fn forward_launches_of_two_streams() -> Result<()> {
    for tokens in [1, 7, 16, 40, 200] {
        let mut layer = layer(tokens);
        let mut workspace = layer.workspace();
        alternate(&layer.stream.device().clone(), |stream| layer.launch(stream, &mut workspace))?;
        layer.check();
    }
    let ([mut few, mut many], mut workspace) = layers();
    alternate(&few.stream.device().clone(), |stream| {
        few.launch(stream, &mut workspace)?;
        many.launch(stream, &mut workspace)
    })?;
    few.check();
    many.check();
    Ok(())
}

#[test]
fn a_reset_between_launches_of_two_streams() -> Result<()> {
    let mut layer = layer(3);
    let mut workspace = layer.workspace();
    alternate(&layer.stream.device().clone(), |stream| {
        layer.launch(stream, &mut workspace)?;
        workspace.reset(&layer.stream)
    })?;
    layer.stream.synchronize()?;
    layer.check();
    Ok(())
}

#[test]
fn backward_launches_of_two_streams() -> Result<()> {
    let stream = Stream::new(&device())?;
    let (tokens, d_in, d_out, rank) = (40, 72, 48, 5);
    let shape = Shape {
        tokens,
        d_in,
        d_out,
        layout: Layout::OutIn,
        segments: vec![(0, d_out, rank)],
        bias: false,
        gaps: Gaps::NONE,
    };
    let random = RandomLayer::<f32>::new(&mut Rng(3), &shape);
    let x = Buffer::random(&mut Rng(4), tokens, d_in, 0);
    let mut on_device = OnDevice::new(&stream, &random, &x, Activation::Identity, None);
    let zeros = |len| DeviceBuffer::<f32>::zeros(&stream, len);
    let (dy, t) = (DeviceBuffer::from_slice(&stream, &vec![1.0f32; tokens * d_out])?, zeros(tokens * rank)?);
    let (mut dx, mut da, mut db) = (zeros(tokens * d_in)?, zeros(rank * d_in)?, zeros(d_out * rank)?);
    let mut results = vec![];
    on_device.with(|layer, x, _| {
        let backward = Backward::new(stream.device(), layer, tokens)?;
        assert_eq!(backward.plan().launches(), 2);
        let mut workspace = Workspace::new(&stream, backward.workspace())?;
        let (dy, t) =
            (DeviceMatrix::new(dy.as_slice(), tokens, d_out)?, DeviceMatrix::new(t.as_slice(), tokens, rank)?);
        let input = BackwardInput { x, dy, t, dropout: None };
        let mut launch = |stream: &Stream| {
            let mut factors = [FactorGradient {
                da: DeviceMatrixMut::new(da.as_mut_slice(), rank, d_in)?,
                db: DeviceMatrixMut::new(db.as_mut_slice(), d_out, rank)?,
            }];
            let mut output = BackwardOutput {
                dx: Some(DeviceMatrixMut::new(dx.as_mut_slice(), tokens, d_in)?),
                dx_accumulate: Accumulate::Overwrite,
                factors: &mut factors,
                bias: None,
                accumulate: Accumulate::Overwrite,
            };
            backward.launch(stream, layer, &input, &mut output, &mut workspace)
        };
        launch(&stream)?;
        alternate(stream.device(), &mut launch)?;
        results.push(dx.to_vec(&stream)?);
        results.push(da.to_vec(&stream)?);
        Ok::<_, Error>(())
    })?;
    assert!(results.iter().flatten().all(|v| v.is_finite()) && results[0].iter().any(|&v| v != 0.0));
    Ok(())
}

#[test]
fn adapter_launches_of_two_streams() -> Result<()> {
    let stream = Stream::new(&device())?;
    let (tokens, d, width) = (40, 64, 17);
    let ones = |len| DeviceBuffer::from_slice(&stream, &vec![1.0f32; len]);
    let (down, up, x, mut y) = (ones(width * d)?, ones(d * width)?, ones(tokens * d)?, ones(tokens * d)?);
    let adapter = DeviceAdapter {
        down: DeviceMatrix::new(down.as_slice(), width, d)?,
        down_bias: None,
        up: DeviceMatrix::new(up.as_slice(), d, width)?,
        up_bias: None,
        activation: Activation::Relu,
    };
    let call = Adapter::new(stream.device(), &adapter, tokens)?;
    let mut workspace = Workspace::new(&stream, call.workspace())?;
    alternate(stream.device(), |stream| {
        let x = DeviceMatrix::new(x.as_slice(), tokens, d)?;
        let y = DeviceMatrixMut::new(y.as_mut_slice(), tokens, d)?;
        call.launch(stream, &adapter, x, false, Residual::None, y, &mut workspace)
    })?;
    assert_eq!(y.to_vec(&stream)?, vec![(d * width) as f32; tokens * d]);
    Ok(())
}

#[test]
fn attention_launches_of_two_streams() -> Result<()> {
    let stream = Stream::new(&device())?;
    let shape = AttentionShape { sequences: 2, tokens: 1, heads: 1, head_size: 8, capacity: 200, scale: 0.5 };
    let attention = Attention::<f32>::new(stream.device(), &shape)?;
    assert!(attention.plan().splits > 1, "{}", attention.plan());
    let mut workspace = Workspace::new(&stream, attention.workspace())?;
    let (qkv, lengths) = (vec![1.0f32; 2 * 24], [150u32, 199]);
    let (qkv, lengths) = (DeviceBuffer::from_slice(&stream, &qkv)?, DeviceBuffer::from_slice(&stream, &lengths)?);
    let ones = || DeviceBuffer::from_slice(&stream, &vec![1.0f32; 2 * 200 * 8]);
    let (mut keys, mut values) = (ones()?, ones()?);
    let mut out = DeviceBuffer::<f32>::zeros(&stream, 2 * 8)?;
    alternate(stream.device(), |stream| {
        let memory = AttentionMemory::Cache {
            keys: DeviceMatrixMut::new(keys.as_mut_slice(), 2 * 200, 8)?,
            values: DeviceMatrixMut::new(values.as_mut_slice(), 2 * 200, 8)?,
            lengths: lengths.as_slice(),
        };
        let qkv = DeviceMatrix::new(qkv.as_slice(), 2, 24)?;
        let out = DeviceMatrixMut::new(out.as_mut_slice(), 2, 8)?;
        attention.launch(stream, qkv, memory, out, &mut workspace)
    })?;
    assert!(out.to_vec(&stream)?.iter().all(|v| (v - 1.0).abs() < 1e-5));
    Ok(())
}

#[test]
fn optimizer_steps_of_two_streams_and_of_graphs() -> Result<()> {
    let stream = Stream::new(&device())?;
    const LEN: usize = 9000;
    let buffer = |value| DeviceBuffer::from_slice(&stream, &vec![value; LEN]);
    let (gradient, mut value, mut first, mut second) = (buffer(1.0f32)?, buffer(1.0)?, buffer(0.0)?, buffer(0.0)?);
    let mut parameters = [DeviceParameter::<f32> {
        factor: Factor::A,
        gradient: gradient.as_slice(),
        value: value.as_mut_slice(),
        first_moment: first.as_mut_slice(),
        second_moment: second.as_mut_slice(),
        stored: None,
    }];
    let mut optimizer = Optimizer::new(&stream, AdamW { max_norm: Some(1.0), ..AdamW::default() }, &parameters)?;
    alternate(stream.device(), |stream| optimizer.step(stream, &mut parameters))?;
    assert_eq!(optimizer.steps(&stream)?, 16);
    let graph = Graph::capture(&stream, |stream| optimizer.step(stream, &mut parameters))?;
    alternate(stream.device(), |stream| {
        graph.replay(stream)?;
        optimizer.step(stream, &mut parameters)
    })?;
    assert_eq!(optimizer.steps(&stream)?, 48);

    // The host reads what the last step has left, whatever stream it ran on.
    let other = Stream::new(stream.device())?;
    optimizer.step(&other, &mut parameters)?;
    assert_eq!(optimizer.steps(&stream)?, 49);
    optimizer.step(&other, &mut parameters)?;
    optimizer.set_steps(&stream, 7)?;
    optimizer.step(&other, &mut parameters)?;
    assert_eq!(optimizer.steps(&stream)?, 8);
    Ok(())
}

#[test]
fn merges_of_two_streams() -> Result<()> {
    let stream = Stream::new(&device())?;
    let (rows, cols, rank) = (48, 64, 3);
    let ones = |len| DeviceBuffer::from_slice(&stream, &vec![1.0f32; len]);
    let (source, a, b) = (ones(rows * cols)?, ones(rank * cols)?, ones(rows * rank)?);
    let mut weight = ones(rows * cols)?;
    let segment = DeviceSegment {
        columns: 0..rows,
        a: DeviceMatrix::new(a.as_slice(), rank, cols)?,
        b: DeviceMatrix::new(b.as_slice(), rows, rank)?,
        scale: 0.5,
    };
    let merge = Merge::<f32>::new(stream.device(), rows, cols, Layout::OutIn)?;
    let mut report = MergeReportBuffer::new(&stream)?;
    alternate(stream.device(), |stream| {
        let source = DeviceMatrix::new(source.as_slice(), rows, cols)?;
        let weight = DeviceMatrixMut::new(weight.as_mut_slice(), rows, cols)?;
        merge.merge_into(stream, source, weight, std::slice::from_ref(&segment), &mut report)
    })?;
    assert_eq!(report.read(&stream)?.largest_change, 1.5);
    assert_eq!(weight.to_vec(&stream)?, vec![2.5; rows * cols]);
    Ok(())
}

#[test]
fn graphs_that_share_a_workspace() -> Result<()> {
    let ([mut few, mut many], mut workspace) = layers();
    let device = few.stream.device().clone();
    let graphs = [few.capture(&mut workspace)?, many.capture(&mut workspace)?];
    let streams = [Stream::new(&device)?, Stream::new(&device)?];
    for _ in 0..4 {
        graphs[0].replay(&streams[0])?;
        graphs[1].replay(&streams[1])?;
    }
    // One graph on two streams; a graph of graphs.
    alternate(&device, |stream| graphs[0].replay(stream))?;
    let both = Graph::capture(&few.stream, |stream| graphs.iter().try_for_each(|graph| graph.replay(stream)))?;
    alternate(&device, |stream| {
        both.replay(stream)?;
        graphs[1].replay(&streams[0])
    })?;
    drop(workspace);
    alternate(&device, |stream| both.replay(stream))?;
    streams[0].synchronize()?;
    few.check();
    many.check();
    Ok(())
}

#[test]
fn a_graph_of_several_workspaces() -> Result<()> {
    let ([mut few, mut many], _) = layers();
    let device = few.stream.device().clone();
    let (mut first, mut second) = (few.workspace(), many.workspace());
    let graph = Graph::capture(&Stream::new(&device)?, |stream| {
        few.launch(stream, &mut first)?;
        many.launch(stream, &mut second)
    })?;
    let other = Stream::new(&device)?;
    alternate(&device, |stream| {
        few.launch(&other, &mut first)?;
        graph.replay(stream)?;
        many.launch(&other, &mut second)
    })?;
    other.synchronize()?;
    few.check();
    many.check();
    Ok(())
}

#[test]
fn a_graph_and_launches_that_share_a_workspace() -> Result<()> {
    let ([mut few, mut many], mut workspace) = layers();
    let device = few.stream.device().clone();
    let graph = few.capture(&mut workspace)?;
    let eager = Stream::new(&device)?;
    alternate(&device, |stream| {
        many.launch(&eager, &mut workspace)?;
        graph.replay(stream)
    })?;
    eager.synchronize()?;
    few.check();
    many.check();
    Ok(())
}

/// Captures launches on two streams, which the caller's events only fork and join.
fn forked(layers: &mut [Layer; 2], workspace: &mut Workspace) -> Result<Graph> {
    let device = layers[0].stream.device().clone();
    let (origin, side) = (Stream::new(&device)?, Stream::new(&device)?);
    let (fork, join) = (Event::new(&device)?, Event::new(&device)?);
    Graph::capture(&origin, |origin| {
        fork.record(origin)?;
        side.wait(&fork)?;
        for _ in 0..2 {
            layers[0].launch(origin, workspace)?;
            layers[1].launch(&side, workspace)?;
        }
        join.record(&side)?;
        origin.wait(&join)
    })
}

#[test]
fn a_capture_on_two_streams_that_share_a_workspace() -> Result<()> {
    let (mut layers, mut workspace) = layers();
    let graph = forked(&mut layers, &mut workspace)?;
    alternate(&layers[0].stream.device().clone(), |stream| graph.replay(stream))?;
    layers.iter().for_each(Layer::check);
    Ok(())
}

#[test]
fn a_stream_that_was_dropped_is_waited_for() -> Result<()> {
    let mut layer = layer(5);
    let mut workspace = layer.workspace();
    for _ in 0..4 {
        let stream = Stream::new(layer.stream.device())?;
        layer.launch(&stream, &mut workspace)?;
    }
    let graph = layer.capture(&mut workspace)?;
    graph.replay(&Stream::new(layer.stream.device())?)?;
    let stream = Stream::new(layer.stream.device())?;
    layer.launch(&stream, &mut workspace)?;
    stream.synchronize()?;
    layer.check();
    Ok(())
}

/// What was issued to a stream before it began or joined a capture can be waited for during the capture.
#[test]
fn a_stream_that_is_being_captured_is_waited_for() -> Result<()> {
    let device = device();
    // Each with its own y, since nothing puts launches with different workspaces in order.
    let mut layers = [0, 1].map(|_| Layer::new(Stream::new(&device).unwrap(), 5));
    let (origin, side) = (Stream::new(&device)?, Stream::new(&device)?);
    let (fork, join) = (Event::new(&device)?, Event::new(&device)?);
    let mut workspaces = [layers[0].workspace(), layers[1].workspace()];
    let eager = Stream::new(&device)?;
    for _ in 0..2 {
        layers[0].launch(&origin, &mut workspaces[0])?;
        layers[1].launch(&side, &mut workspaces[1])?;
        let graph = Graph::capture(&origin, |origin| {
            fork.record(origin)?;
            side.wait(&fork)?;
            for (layer, workspace) in layers.iter_mut().zip(&mut workspaces) {
                layer.launch(&eager, workspace)?;
                assert!(!eager.is_capturing()?);
                layer.launch(origin, workspace)?;
                layer.launch(&side, workspace)?;
            }
            join.record(&side)?;
            origin.wait(&join)
        })?;
        graph.replay(&side)?;
    }
    eager.synchronize()?;
    side.synchronize()?;
    layers.iter().for_each(Layer::check);
    Ok(())
}

#[test]
fn two_captures_at_a_time_do_not_wait_for_each_other() -> Result<()> {
    let mut layer = layer(5);
    let device = layer.stream.device().clone();
    let streams = [Stream::new(&device)?, Stream::new(&device)?];
    let mut workspace = layer.workspace();
    let mut inner = None;
    let outer = Graph::capture(&streams[0], |stream| {
        layer.launch(stream, &mut workspace)?;
        inner = Some(Graph::capture(&streams[1], |stream| layer.launch(stream, &mut workspace))?);
        layer.launch(stream, &mut workspace)
    })?;
    let graphs = [outer, inner.unwrap()];
    for _ in 0..3 {
        graphs[0].replay(&streams[0])?;
        graphs[1].replay(&streams[1])?;
    }
    // A capture that fails leaves no trace.
    let failed = Graph::capture(&streams[0], |stream| {
        layer.launch(stream, &mut workspace)?;
        Err(Error::EventNotRecorded)
    });
    assert_eq!(failed.unwrap_err(), Error::EventNotRecorded);
    alternate(&device, |stream| layer.launch(stream, &mut workspace))?;
    layer.check();
    Ok(())
}

#[test]
fn threads_that_replay_graphs_of_one_workspace() -> Result<()> {
    let ([mut few, mut many], mut workspace) = layers();
    let device = few.stream.device().clone();
    let graphs = [few.capture(&mut workspace)?, many.capture(&mut workspace)?];
    std::thread::scope(|scope| {
        for graph in graphs {
            let device = device.clone();
            scope.spawn(move || {
                let stream = Stream::new(&device).unwrap();
                (0..20).for_each(|_| graph.replay(&stream).unwrap());
                stream.synchronize().unwrap();
            });
        }
    });
    few.check();
    many.check();
    Ok(())
}

/// Two workspaces in one place, against the contract of `from_raw`, have no order but the caller's.
#[test]
fn the_emulator_fails_launches_that_are_not_ordered() -> Result<()> {
    if on_gpu() {
        return Ok(());
    }
    let mut layer = layer(5);
    let device = layer.stream.device().clone();
    let len = layer.forward.workspace().bytes().div_ceil(8);
    let memory = DeviceBuffer::<u64>::zeros(&layer.stream, len)?;
    // SAFETY: on the emulator no two launches run at the same time, so any order does.
    let place = || unsafe { DeviceBuffer::from_raw(&device, memory.address(), len) };
    let mut workspaces =
        // SAFETY: as above; that both use one memory is what this test is about.
        [(), ()].map(|()| unsafe { Workspace::in_buffer(&layer.stream, place(), layer.forward.workspace()) }.unwrap());
    layer.stream.synchronize()?;
    let streams = [Stream::new(&device)?, Stream::new(&device)?];
    layer.launch(&streams[0], &mut workspaces[0])?;
    let fault = layer.launch(&streams[1], &mut workspaces[1]).unwrap_err();
    let Error::Launch(LaunchError::Fault { kernel, report }) = &fault else { panic!("{fault}") };
    assert!(report.contains("not ordered") && report.matches(kernel).count() == 2, "{report}");

    // Each way in which the caller can order them.
    let event = Event::new(&device)?;
    event.record(&streams[1])?;
    streams[0].wait(&event)?;
    layer.launch(&streams[0], &mut workspaces[0])?;
    streams[0].synchronize()?;
    layer.launch(&streams[1], &mut workspaces[1])?;
    event.record(&streams[1])?;
    event.synchronize()?;
    layer.launch(&streams[0], &mut workspaces[0])?;
    event.record(&streams[0])?;
    assert!(event.has_happened()?);
    layer.launch(&streams[1], &mut workspaces[1])?;
    memory.slice(0..1).to_vec(&streams[1])?;
    layer.launch(&streams[0], &mut workspaces[0])?;

    // In a graph, and between graphs.
    let graphs: Vec<_> = workspaces.iter_mut().map(|workspace| layer.capture(workspace).unwrap()).collect();
    graphs[0].replay(&streams[0])?;
    let fault = graphs[1].replay(&streams[1]).unwrap_err();
    assert!(matches!(fault, Error::Launch(LaunchError::Fault { .. })), "{fault}");
    Ok(())
}

#[test]
fn workspaces_in_odd_places_or_captures_are_refused() -> Result<()> {
    let stream = Stream::new(&device())?;
    let layout = WorkspaceLayout { t_words: 4, ..WorkspaceLayout::default() };
    let words = DeviceBuffer::<u64>::zeros(&stream, 32)?;
    // SAFETY: a part of the buffer above, which nothing else uses.
    let odd = unsafe { DeviceBuffer::from_raw(stream.device(), words.address() + 8, 31) };
    // SAFETY: nothing else uses the memory.
    let refused = unsafe { Workspace::in_buffer(&stream, odd, layout) }.unwrap_err();
    let address = words.address() + 8;
    assert_eq!(refused, Error::Misaligned { operand: "the workspace", address, alignment: 16 });
    // SAFETY: likewise.
    let even = unsafe { DeviceBuffer::from_raw(stream.device(), words.address() + 16, 30) };
    // SAFETY: as above.
    assert!(unsafe { Workspace::in_buffer(&stream, even, layout) }.is_ok());
    let inside = Graph::capture(&stream, |stream| Workspace::new(stream, layout).map(drop)).unwrap_err();
    assert!(matches!(inside, Error::CaptureRefused { operation: "making a workspace", .. }), "{inside}");
    Ok(())
}

#[test]
fn a_lost_device_launches_nothing_out_of_order() -> Result<()> {
    if on_gpu() {
        return Ok(());
    }
    let mut layer = layer(5);
    let mut workspace = layer.workspace();
    let graph = layer.capture(&mut workspace)?;
    let stream = Stream::new(layer.stream.device())?;
    layer.stream.device().lose_after(0);
    for error in [layer.launch(&stream, &mut workspace), graph.replay(&stream), workspace.reset(&stream)] {
        assert!(matches!(error, Err(Error::Driver(DriverError::DeviceLost { .. }))), "{error:?}");
    }
    Ok(())
}
