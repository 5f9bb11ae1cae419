//! The device layer: buffers, streams, events, graphs, and everything that can be refused without a GPU.
#![allow(clippy::unwrap_used)]

use std::ffi::c_void;

use crate::common::device::{device, stream};
use crate::common::rig::on_gpu;
use fused_lora::device::{
    Device, DeviceBuffer, DeviceKind, DeviceMatrix, DeviceMatrixMut, DeviceSlice, DeviceTensor, EmulatorConfig, Event,
    Graph, LaunchConfig, Merge, Pointwise, Stream, emulator_kernels,
};
use fused_lora::lora::Layout;
use fused_lora::{DriverError, Error, KernelError, LaunchError, Result};

#[test]
fn without_a_driver_there_is_a_typed_error() {
    use DriverError::{NoDevice, NotInstalled, TooOld};
    match Device::cuda(0) {
        Ok(device) => assert!(matches!(device.properties().kind, DeviceKind::Cuda { ordinal: 0, .. })),
        Err(error) => {
            assert!(matches!(error, Error::Driver(NotInstalled { .. } | TooOld { .. } | NoDevice { .. })), "{error:?}");
            assert_eq!(Device::cuda(0).unwrap_err(), error, "the second answer is the first");
            assert_eq!(Device::cuda_count().unwrap_err(), Device::cuda_properties(0).unwrap_err());
        }
    }
    assert!(Device::cuda(usize::MAX).is_err());
}

#[test]
fn a_device_is_its_clones_and_no_other() {
    if on_gpu() {
        return; // it takes two devices
    }
    let (one, other) = (device(), device());
    assert_eq!(one, one.clone());
    assert_ne!(one, other);
    assert!(one.properties().to_string().starts_with("emulator:"));
    assert_ne!(one.properties().to_string(), other.properties().to_string());
    assert_eq!(one.properties().multiprocessors, 6);
}

#[test]
fn tensors_keep_their_shape() -> Result<()> {
    let stream = stream();
    let host: Vec<u32> = (0..12).collect();
    let mut tensor = DeviceTensor::from_slice(&stream, &host, 3, 4)?;
    assert_eq!((tensor.view().rows(), tensor.view().cols(), tensor.view().row_stride()), (3, 4, 4));
    assert_eq!(tensor.to_vec(&stream)?, host);
    assert_eq!(tensor.view_mut().address(), tensor.view().address());
    assert_eq!(DeviceTensor::<u32>::zeros(&stream, 2, 3)?.to_vec(&stream)?, [0; 6]);
    for (rows, cols) in [(3, 3), (4, 4), (usize::MAX, 2)] {
        let error = DeviceTensor::from_slice(&stream, &host, rows, cols).unwrap_err();
        assert!(matches!(error, Error::LengthMismatch { actual: 12, .. }), "{error:?}");
    }
    assert!(matches!(
        DeviceTensor::<u32>::zeros(&stream, usize::MAX, 2),
        Err(Error::Driver(DriverError::OutOfMemory { .. }))
    ));
    Ok(())
}

#[test]
fn buffers_keep_what_is_put_into_them() -> Result<()> {
    let stream = stream();
    let host: Vec<u32> = (0..100).collect();
    let mut buffer = DeviceBuffer::from_slice(&stream, &host)?;
    assert_eq!((buffer.len(), buffer.is_empty()), (100, false));
    assert_eq!(buffer.to_vec(&stream)?, host);
    assert_eq!(buffer.slice(10..13).to_vec(&stream)?, [10, 11, 12]);
    assert_eq!(buffer.address() % 256, 0);
    assert_eq!(buffer.slice(3..9).slice(2..3).address(), buffer.address() + 20);

    let other = DeviceBuffer::<u32>::zeros(&stream, 2)?;
    buffer.as_mut_slice().slice_mut(4..6).copy_from(&stream, other.as_slice())?;
    buffer.as_mut_slice().slice_mut(8..9).fill(&stream, 0xff)?;
    assert_eq!(buffer.slice(3..10).to_vec(&stream)?, [3, 0, 0, 6, 7, u32::MAX, 9]);
    let (mut left, mut right) = buffer.as_mut_slice().split_at(50);
    left.upload(&stream, &[1; 50])?;
    right.upload(&stream, &[2; 50])?;
    assert_eq!(buffer.slice(49..51).to_vec(&stream)?, [1, 2]);

    let nothing = DeviceBuffer::<f64>::zeros(&stream, 0)?;
    assert!(nothing.is_empty() && nothing.to_vec(&stream)?.is_empty());
    Ok(())
}

#[test]
fn lengths_devices_and_overlaps_of_copies_are_checked() {
    if on_gpu() {
        return; // it takes two devices
    }
    let (here, elsewhere) = (stream(), stream());
    let mut buffer = DeviceBuffer::from_slice(&here, &[0u16; 8]).unwrap();
    let wrong_length = |actual| Error::LengthMismatch { operand: "the host's slice", expected: 8, actual };
    assert_eq!(buffer.upload(&here, &[0; 7]).unwrap_err(), wrong_length(7));
    assert_eq!(buffer.as_slice().download(&here, &mut [0; 9]).unwrap_err(), wrong_length(9));
    let name = |stream: &Stream| stream.device().properties().to_string();
    let wrong_device = |operand| Error::WrongDevice { operand, expected: name(&here), actual: name(&elsewhere) };
    assert_eq!(buffer.to_vec(&elsewhere).unwrap_err(), wrong_device("stream"));
    assert_eq!(buffer.upload(&elsewhere, &[0; 8]).unwrap_err(), wrong_device("stream"));
    assert_eq!(buffer.as_mut_slice().fill(&elsewhere, 0).unwrap_err(), wrong_device("stream"));
    let foreign = DeviceBuffer::from_slice(&elsewhere, &[0u16; 8]).unwrap();
    let copied = buffer.as_mut_slice().copy_from(&here, foreign.as_slice());
    assert_eq!(copied.unwrap_err(), wrong_device("the copy's source"));

    // SAFETY: the view is used for one call that is refused.
    let aliased = unsafe { DeviceSlice::<u16>::from_raw(here.device(), buffer.address() + 2, 7) };
    let refused = buffer.as_mut_slice().slice_mut(0..7).copy_from(&here, aliased).unwrap_err();
    assert_eq!(refused, Error::Overlap { output: "the copy's destination", other: "its source" });
    let too_much = DeviceBuffer::<u64>::zeros(&here, usize::MAX / 4).unwrap_err();
    assert_eq!(too_much, Error::Driver(DriverError::OutOfMemory { bytes: usize::MAX }));
    assert!(matches!(DeviceBuffer::<u8>::zeros(&here, 1 << 60), Err(Error::Driver(DriverError::OutOfMemory { .. }))));
}

#[test]
fn matrices_check_their_bounds() {
    let stream = stream();
    let mut buffer = DeviceBuffer::<f32>::zeros(&stream, 11).unwrap();
    assert!(DeviceMatrix::with_stride(buffer.as_slice(), 3, 3, 4).is_ok());
    let too_short = Error::BufferTooShort { rows: 3, cols: 4, row_stride: 4, required: 12, available: 11 };
    assert_eq!(DeviceMatrix::new(buffer.as_slice(), 3, 4).unwrap_err(), too_short);
    let overlapping = DeviceMatrix::with_stride(buffer.as_slice(), 3, 3, 2).unwrap_err();
    assert_eq!(overlapping, Error::RowsOverlap { cols: 3, row_stride: 2 });
    assert!(DeviceMatrix::new(buffer.slice(0..8), 2, 4).unwrap().is_aligned());
    assert!(!DeviceMatrix::new(buffer.slice(1..9), 2, 4).unwrap().is_aligned());
    assert!(!DeviceMatrix::new(buffer.slice(0..10), 2, 5).unwrap().is_aligned());
    let matrix = DeviceMatrixMut::with_stride(buffer.as_mut_slice(), 2, 4, 5).unwrap();
    assert_eq!((matrix.rows(), matrix.cols(), matrix.row_stride()), (2, 4, 5));
}

#[test]
fn events_order_and_time() -> Result<()> {
    let (here, elsewhere) = (stream(), stream());
    let (start, end) = (Event::new(here.device())?, Event::new(here.device())?);
    assert_eq!(start.milliseconds_to(&end).unwrap_err(), Error::EventNotRecorded);
    assert_eq!(here.wait(&start).unwrap_err(), Error::EventNotRecorded);
    assert_eq!(start.has_happened().unwrap_err(), Error::EventNotRecorded);
    assert_eq!(start.synchronize().unwrap_err(), Error::EventNotRecorded);
    start.record(&here)?;
    std::thread::sleep(std::time::Duration::from_millis(2));
    end.record(&here)?;
    end.synchronize()?;
    assert!(start.has_happened()? && end.has_happened()?);
    let passed = start.milliseconds_to(&end)?;
    assert!((2.0..1000.0).contains(&passed), "{passed} ms");
    let second = Stream::new(here.device())?;
    second.wait(&end)?;
    second.synchronize()?;
    if !on_gpu() {
        assert!(matches!(elsewhere.wait(&end), Err(Error::WrongDevice { operand: "event", .. })));
        assert!(matches!(end.record(&elsewhere), Err(Error::WrongDevice { operand: "stream", .. })));
    }
    Ok(())
}

#[test]
fn a_foreign_stream_is_borrowed() -> Result<()> {
    if on_gpu() {
        return Ok(()); // there a number is no stream
    }
    let device = device();
    // SAFETY: on the emulator any number names a stream.
    let foreign = unsafe { Stream::from_raw(&device, 0x1234 as *mut c_void) };
    assert_eq!(foreign.as_raw() as usize, 0x1234);
    let buffer = DeviceBuffer::from_slice(&foreign, &[1u8, 2, 3])?;
    assert_eq!(buffer.to_vec(&foreign)?, [1, 2, 3]);
    let mut target = DeviceBuffer::<u8>::zeros(&foreign, 3)?;
    let graph = Graph::capture(&foreign, |stream| target.as_mut_slice().copy_from(stream, buffer.as_slice()))?;
    assert_eq!(target.to_vec(&foreign)?, [0; 3], "captured, not done");
    graph.replay(&foreign)?;
    assert_eq!(target.to_vec(&foreign)?, [1, 2, 3]);
    Ok(())
}

#[test]
fn a_capture_refuses_what_waits_for_the_host_and_goes_on() -> Result<()> {
    let stream = stream();
    let mut buffer = DeviceBuffer::from_slice(&stream, &[1u8; 4])?;
    let refused = |result: Result<()>| assert!(matches!(result, Err(Error::CaptureRefused { .. })), "{result:?}");
    let graph = Graph::capture(&stream, |stream| {
        assert!(stream.is_capturing()?);
        refused(stream.synchronize());
        refused(buffer.upload(stream, &[2; 4]));
        refused(buffer.to_vec(stream).map(drop));
        refused(Graph::capture(stream, |_| Ok(())).map(drop));
        buffer.as_mut_slice().fill(stream, 7)
    })?;
    assert!(!stream.is_capturing()?);
    assert_eq!(buffer.to_vec(&stream)?, [1; 4]);
    graph.replay(&stream)?;
    assert_eq!(buffer.to_vec(&stream)?, [7; 4]);
    if !on_gpu() {
        let elsewhere = Stream::new(&device())?;
        assert!(matches!(graph.replay(&elsewhere), Err(Error::WrongDevice { .. })));
    }
    Ok(())
}

#[test]
fn a_capture_that_fails_leaves_nothing_behind() -> Result<()> {
    let stream = stream();
    let failed = Graph::capture(&stream, |_| Err(Error::EventNotRecorded));
    assert_eq!(failed.unwrap_err(), Error::EventNotRecorded);
    assert!(!stream.is_capturing()?);
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Graph::capture(&stream, |_| panic!("inside"))));
    assert!(panicked.is_err());
    assert!(!stream.is_capturing()?);
    stream.synchronize()
}

#[test]
fn other_streams_join_a_capture_and_must_be_waited_for() -> Result<()> {
    let origin = stream();
    let side = Stream::new(origin.device())?;
    let (fork, join) = (Event::new(origin.device())?, Event::new(origin.device())?);
    let mut a = DeviceBuffer::<u8>::zeros(&origin, 2)?;
    let (mut left, mut right) = a.as_mut_slice().split_at(1);
    let graph = Graph::capture(&origin, |origin| {
        fork.record(origin)?;
        side.wait(&fork)?;
        assert!(side.is_capturing()?);
        right.fill(&side, 2)?;
        left.fill(origin, 1)?;
        join.record(&side)?;
        origin.wait(&join)
    })?;
    graph.replay(&origin)?;
    assert_eq!(a.to_vec(&origin)?, [1, 2]);
    assert!(matches!(fork.milliseconds_to(&join), Err(Error::CaptureRefused { .. })));

    let unjoined = Graph::capture(&origin, |origin| {
        fork.record(origin)?;
        side.wait(&fork)?;
        a.as_mut_slice().fill(&side, 3)
    });
    assert!(matches!(unjoined, Err(Error::CaptureRefused { .. })), "{unjoined:?}");
    assert!(!side.is_capturing()?);
    fork.record(&origin)?;
    let from_outside = Graph::capture(&origin, |origin| origin.wait(&fork));
    assert!(matches!(from_outside, Err(Error::CaptureRefused { .. })), "{from_outside:?}");
    Ok(())
}

/// Whether the address is still an allocation's.
fn is_kept(device: &Device, address: u64) -> bool {
    device.machine().unwrap().is_allocated(address, 1)
}

#[test]
fn memory_of_a_graph_is_given_back_after_it() -> Result<()> {
    if on_gpu() {
        return Ok(()); // only the emulator tells
    }
    let stream = stream();
    let device = stream.device();
    let buffer = |byte: u8| DeviceBuffer::from_slice(&stream, &[byte; 64]);
    let (mut kept, early) = (buffer(1)?, buffer(2)?);
    let early_address = early.address();
    drop(early);
    assert!(!is_kept(device, early_address), "before any capture memory is given back at once");

    let kept_address = kept.address();
    let graph = Graph::capture(&stream, |stream| kept.as_mut_slice().fill(stream, 9))?;
    let later = buffer(3)?;
    let later_address = later.address();
    drop(later);
    assert!(!is_kept(device, later_address), "memory that no graph knows is given back at once");
    drop(kept);
    assert!(is_kept(device, kept_address));
    graph.replay(&stream)?;
    drop(graph);
    assert!(!is_kept(device, kept_address));
    Ok(())
}

#[test]
fn memory_dropped_inside_of_a_capture_is_kept_for_its_graph() -> Result<()> {
    if on_gpu() {
        return Ok(()); // only the emulator tells
    }
    let stream = stream();
    let mut address = 0;
    let graph = Graph::capture(&stream, |stream| {
        let mut inside = DeviceBuffer::<u8>::zeros(stream, 64)?;
        address = inside.address();
        inside.as_mut_slice().fill(stream, 1)
    })?;
    assert!(is_kept(stream.device(), address));
    graph.replay(&stream)?;
    drop(graph);
    assert!(!is_kept(stream.device(), address));
    Ok(())
}

#[test]
fn kernels_are_found_by_name_and_say_what_they_take() -> Result<()> {
    let stream = stream();
    let device = stream.device();
    let kernel = device.kernel("lora_decode_rows_f32_t1")?;
    assert_eq!((kernel.name(), kernel.device()), ("lora_decode_rows_f32_t1", device));
    assert_eq!(kernel.attributes().params_bytes, Some(size_of::<fused_lora::abi::LoraDecode>()));
    assert_eq!(kernel.attributes().max_threads, 512);
    assert!(kernel.resident_blocks(512, 16 << 10)? >= 1);
    assert!(kernel.resident_clusters(&LaunchConfig { cluster: 2, ..LaunchConfig::new([8, 1, 1], 512) })? >= 1);
    let bad = |result: Result<u32>| {
        assert!(matches!(result, Err(Error::Launch(LaunchError::LimitExceeded { .. }))), "{result:?}")
    };
    bad(kernel.resident_blocks(1024, 0));
    bad(kernel.resident_clusters(&LaunchConfig { cluster: 3, ..LaunchConfig::new([8, 1, 1], 512) }));
    let missing = device.kernel("lora_decode_sideways").unwrap_err();
    assert_eq!(missing, Error::Kernel(KernelError::NoSuchKernel { kernel: "lora_decode_sideways".to_owned() }));
    Ok(())
}

#[test]
fn what_has_no_elements_is_named() {
    let device = device();
    let empty = |operand, shape| Some(Error::EmptyOperand { operand, shape });
    assert_eq!(Merge::<f32>::new(&device, 0, 8, Layout::OutIn).err(), empty("weight", [0, 8]));
    assert_eq!(Pointwise::<f32>::new(&device, 8, 0).err(), empty("y", [8, 0]));
}

#[test]
fn every_kernel_of_the_emulator_runs_or_is_refused_by_capability() {
    if on_gpu() {
        return; // only the emulator tells
    }
    for capability in [(7, 5), (8, 0), (9, 0), (12, 0)] {
        let device = Device::emulator(EmulatorConfig { compute_capability: capability, ..EmulatorConfig::default() });
        let device = device.unwrap();
        let machine = device.machine().unwrap();
        for info in emulator_kernels().sources().flat_map(|source| machine.kernels_of(source).unwrap()) {
            match device.kernel(&info.name) {
                Ok(kernel) => assert_eq!(kernel.attributes().params_bytes, Some(info.params_bytes)),
                Err(Error::Kernel(KernelError::Unsupported { kernel, capability: refused, needs })) => {
                    assert_eq!((kernel.as_str(), refused), (info.name.as_str(), capability));
                    assert!(!needs.is_empty());
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_kernel_that_a_device_cannot_run_is_refused_by_its_targets() {
    if on_gpu() {
        return; // a GPU is what it is
    }
    let config = EmulatorConfig { compute_capability: (7, 5), ..EmulatorConfig::default() };
    let turing = Device::emulator(config).unwrap();
    let Err(Error::Kernel(KernelError::Unsupported { kernel, capability, needs })) =
        turing.kernel("lora_decode_columns_mma_bf16")
    else {
        panic!("sm_75 has no matrix instruction for bf16")
    };
    assert_eq!((kernel.as_str(), capability), ("lora_decode_columns_mma_bf16", (7, 5)));
    assert!(needs.starts_with("sm_80 "), "{needs}");
    assert!(turing.kernel("lora_decode_columns_mma_f16").is_ok());
}
