//! A short program that takes every way into a device, and results that show when one of them went wrong.
//!
//! On the stand-in driver (`crates/driver`), `cargo xtask stand-in` alters one call of this program at a time.
#![allow(clippy::unwrap_used)]

use crate::common::device::{OnDevice, device};
use crate::common::forward::expected;
use crate::common::rig::on_gpu;
use crate::common::{Buffer, Gaps, RandomLayer, Rng, Shape, steps};
use fused_lora::device::{Device, DeviceBuffer, Event, Forward, Graph, LaunchConfig, Stream, Workspace};
use fused_lora::lora::{Activation, Layout};
use fused_lora::{Element, Error, Result};
use half::bf16;

/// A layer, its launch, and a workspace for it.
struct Layer<T> {
    shape: Shape,
    random: RandomLayer<T>,
    x: Buffer<T>,
    on_device: OnDevice<T>,
    forward: Forward<T>,
    workspace: Workspace,
}

impl<T: Element> Layer<T> {
    fn new(stream: &Stream, tokens: usize, d_in: usize, d_out: usize, seed: u64) -> Result<Self> {
        let segments = vec![(0, d_out, 8)];
        let shape = Shape { tokens, d_in, d_out, layout: Layout::OutIn, segments, bias: true, gaps: Gaps::NONE };
        let mut rng = Rng(seed);
        let random = RandomLayer::new(&mut rng, &shape);
        let x = Buffer::random(&mut rng, tokens, d_in, 0);
        let mut on_device = OnDevice::new(stream, &random, &x, Activation::Identity, None);
        let forward = on_device.with(|layer, _, _| Forward::new(stream.device(), layer, tokens))?;
        let forward = forward.with_dependent_launch();
        let workspace = Workspace::new(stream, forward.workspace())?;
        Ok(Self { shape, random, x, on_device, forward, workspace })
    }

    fn launch(&mut self, stream: &Stream) -> Result<()> {
        let Self { on_device, forward, workspace, .. } = self;
        on_device.with(|layer, x, y| forward.launch(stream, layer, x, y, workspace))
    }

    /// The launch's output, copied after it on the same stream.
    fn check(&mut self, stream: &Stream) {
        let expected = expected(&self.random, &self.x, Activation::Identity, None, None);
        let y = self.on_device.y(stream);
        expected.assert_close(y.view(), steps(&self.shape), &self.forward.plan().to_string());
        self.on_device.poison_y(stream);
    }
}

fn wait_for(event: &Event) -> Result<()> {
    while !event.has_happened()? {
        std::thread::yield_now();
    }
    Ok(())
}

fn memory(here: &Stream, there: &Stream) -> Result<()> {
    let mut bytes = DeviceBuffer::<u8>::zeros(here, 99)?;
    let numbers: Vec<u8> = (0..99).collect();
    let from = DeviceBuffer::from_slice(here, &numbers)?;
    bytes.as_mut_slice().fill(here, 200)?;
    bytes.as_mut_slice().slice_mut(3..50).copy_from(here, from.slice(20..67))?;
    // The other stream sees it by an event.
    let copied = Event::new(here.device())?;
    copied.record(here)?;
    there.wait(&copied)?;
    let mut other = DeviceBuffer::<u8>::zeros(there, 99)?;
    other.as_mut_slice().copy_from(there, bytes.as_slice())?;
    let got = other.to_vec(there)?;
    assert_eq!((got[2], &got[3..50], got[50]), (200, &numbers[20..67], 200));
    // Now the host waits for `there` before `here` writes.
    other.as_mut_slice().fill(there, 9)?;
    let filled = Event::new(here.device())?;
    filled.record(there)?;
    wait_for(&filled)?;
    other.as_mut_slice().fill(here, 10)?;
    here.synchronize()?;
    // Dropped while the stream still works on them.
    other.as_mut_slice().fill(there, 1)?;
    drop((bytes, from, other));
    there.synchronize()
}

/// The operation that a capture refused, if it did.
fn refused_operation(captured: &Result<Graph>) -> Option<&'static str> {
    match captured {
        Err(Error::CaptureRefused { operation, .. }) => Some(operation),
        _ => None,
    }
}

/// A graph of both layers on two streams, replayed twice with other launches around it.
fn graph(here: &Stream, there: &Stream, few: &mut Layer<f32>, many: &mut Layer<bf16>) -> Result<()> {
    let (fork, join) = (Event::new(here.device())?, Event::new(here.device())?);
    let graph = Graph::capture(here, |here| {
        fork.record(here)?;
        there.wait(&fork)?;
        assert!(there.is_capturing()?);
        few.launch(here)?;
        many.launch(there)?;
        // A kernel that is loaded inside of a capture is loaded at once.
        here.device().kernel("lora_read")?;
        join.record(there)?;
        here.wait(&join)
    })?;
    assert!(!here.is_capturing()? && !there.is_capturing()?);
    for _ in 0..2 {
        graph.replay(here)?;
        few.check(here);
        many.check(here);
    }
    many.launch(there)?;
    there.synchronize()?;
    many.check(here);
    // A capture whose work fails is abandoned, and its stream goes on.
    let failed = Graph::capture(here, |here| {
        few.launch(here)?;
        here.synchronize()
    });
    assert_eq!(refused_operation(&failed), Some("synchronising"), "{failed:?}");
    assert!(!here.is_capturing()?);
    few.launch(here)?;
    few.check(here);
    Ok(())
}

/// Another library captures a stream of its own in the mode that forbids the most.
#[test]
fn another_thread_may_capture_in_the_global_mode() -> Result<()> {
    const GLOBAL: u32 = 0;
    if !on_gpu() {
        return Ok(());
    }
    let device = device();
    let (here, there, foreign) = (Stream::new(&device)?, Stream::new(&device)?, Stream::new(&device)?);
    let stream = foreign.as_raw().expose_provenance();
    // SAFETY: the driver was loaded under this name by the device above; the types are those of cuda.h.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }.unwrap();
    // SAFETY: as above.
    let (begin, end, set_current, get_current) = unsafe {
        let begin = library.get::<unsafe extern "C" fn(usize, u32) -> u32>(b"cuStreamBeginCapture_v2").unwrap();
        let end = library.get::<unsafe extern "C" fn(usize, *mut usize) -> u32>(b"cuStreamEndCapture").unwrap();
        let set = library.get::<unsafe extern "C" fn(usize) -> u32>(b"cuCtxSetCurrent").unwrap();
        (begin, end, set, library.get::<unsafe extern "C" fn(*mut usize) -> u32>(b"cuCtxGetCurrent").unwrap())
    };
    let (mut context, mut retained) = (1, 0);
    // SAFETY: the type is that of cuda.h; the pointers are to live handles, the device is the first.
    unsafe {
        assert_eq!(get_current(&mut context), 0);
        assert_eq!(context, 0, "this library leaves no context current");
        let retain = library.get::<unsafe extern "C" fn(*mut usize, i32) -> u32>(b"cuDevicePrimaryCtxRetain").unwrap();
        assert_eq!(retain(&mut retained, 0), 0);
    }
    let (begun, may_begin) = std::sync::mpsc::channel();
    let (done, may_end) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (begin, end, set_current) = (&begin, &end, &set_current);
        let other = scope.spawn(move || {
            // SAFETY: the context is retained, the stream lives, and the pointer is to a live handle.
            unsafe {
                assert_eq!((set_current(retained), begin(stream, GLOBAL)), (0, 0));
                begun.send(()).unwrap();
                // Returns when the sender is dropped, by a panic too.
                let _ = may_end.recv();
                let mut graph = 0;
                (end(stream, &mut graph), graph)
            }
        });
        may_begin.recv().unwrap();
        let worked = memory(&here, &there).and_then(|()| {
            let mut few = Layer::<f32>::new(&here, 2, 64, 40, 3)?;
            let event = Event::new(&device)?;
            few.launch(&here)?;
            event.record(&here)?;
            wait_for(&event)?;
            event.synchronize()?;
            few.check(&here);
            Ok(())
        });
        drop(done);
        let (code, graph) = other.join().unwrap();
        assert!(code == 0 && graph != 0, "the other's capture is still valid: {code}");
        worked
    })
}

fn residency(few: &Layer<f32>, many: &Layer<bf16>) -> Result<()> {
    for (kernel, launch) in
        [(few.forward.kernel(), few.forward.plan().launch()), (many.forward.kernel(), many.forward.plan().launch())]
    {
        assert!(kernel.attributes().max_threads >= launch.threads);
        assert!(kernel.resident_blocks(launch.threads, launch.shared_bytes)? >= 1);
        let (cluster, shared_bytes) = (launch.cluster, launch.shared_bytes);
        let config = LaunchConfig { cluster, shared_bytes, ..LaunchConfig::new(launch.grid, launch.threads) };
        assert!(kernel.resident_clusters(&config)? >= 1);
    }
    Ok(())
}

#[test]
fn one_program_makes_every_call() -> Result<()> {
    let device = device();
    if on_gpu() {
        assert!(Device::cuda_count()? >= 1);
        assert_eq!(Device::cuda_properties(0)?, *device.properties());
    }
    let (here, there) = (Stream::new(&device)?, Stream::new(&device)?);
    memory(&here, &there)?;

    let (start, end) = (Event::new(&device)?, Event::new(&device)?);
    start.record(&here)?;
    let mut few = Layer::<f32>::new(&here, 3, 64, 40, 1)?;
    // On Hopper: tensor maps, and clusters that share the sum over d_in.
    let mut many = Layer::<bf16>::new(&here, 70, 512, 64, 2)?;
    if device.properties().compute_capability == (9, 0) {
        let launch = many.forward.plan().launch();
        assert!(launch.cluster > 1 && launch.shared_bytes > 48 << 10, "{launch:?}");
    }
    // The layers were uploaded on `here`, and are used on both streams from now on.
    here.synchronize()?;
    for _ in 0..2 {
        few.launch(&here)?;
        many.launch(&here)?;
    }
    end.record(&here)?;
    wait_for(&end)?;
    assert!(start.has_happened()? && start.milliseconds_to(&end)? >= 0.0);
    end.synchronize()?;
    few.check(&here);
    many.check(&here);

    // One workspace on two streams: the library puts the launches in order.
    few.launch(&there)?;
    few.launch(&here)?;
    few.launch(&there)?;
    few.check(&there);

    graph(&here, &there, &mut few, &mut many)?;
    residency(&few, &many)?;
    device.kernel("no_such_kernel").unwrap_err();
    Ok(())
}
