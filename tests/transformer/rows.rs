//! Checks LayerNorm and the embedding: the kernels against float64, element by element, and the errors of the device
//! module. By default a test runs in the race build, under one random schedule; `cargo xtask prove` runs it under
//! several schedules and in the plain, race and sanitizer builds.
#![allow(clippy::unwrap_used)]

use crate::common::device::device;
use crate::common::rig::{Rig, builds, on_gpu, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::transformer::{Embedded, Norm, embed, layer_norm};
use crate::common::{Buffer, Gaps, Operand, Rng, Unaligned};
use fused_lora::device::{
    DeviceBuffer, DeviceMatrix, DeviceMatrixMut, DeviceNorm, DeviceSlice, Embedding, EmbeddingInput, Graph, LayerNorm,
    Stream,
};
use fused_lora::{Element, Error, Result};
use fused_lora_emulator::{Completion, Schedule};
use half::{bf16, f16};

const SCHEDULES: [(Schedule, u32); 3] = [(Schedule::FirstIn, 8), (Schedule::LastIn, 1), (Schedule::Random(9), 3)];

/// Random rows, among them one far from zero, one of small values, one of equal values and one with a NaN.
fn rows<T: Element>(rng: &mut Rng, rows: usize, width: usize, gap: usize) -> Buffer<T> {
    let mut x = Buffer::<T>::random(rng, rows, width, gap);
    let stride = x.stride;
    for (row, values) in x.data.chunks_mut(stride).enumerate() {
        for value in &mut values[..width] {
            let was = f64::from(value.to_f32());
            *value = match row % 5 {
                1 => T::from_f64(100.0 + was),
                2 => T::from_f64(1e-3 * was),
                3 => T::from_f64(-0.75),
                _ => *value,
            };
        }
        if row == 4 {
            values[width / 2] = T::from_f64(f64::NAN);
        }
    }
    x
}

fn bits<T: Element>(buffer: &Buffer<T>) -> Vec<u32> {
    (0..buffer.rows).flat_map(|row| buffer.view().row(row).iter().map(|v| v.to_f32().to_bits())).collect()
}

/// Checks LayerNorm in the test's builds and under its schedules: results are within the bounds, nothing else is
/// written, and all runs give the same bits, which are returned.
fn check_layer_norm<T: Element>(shape: [usize; 2], multiprocessors: usize, gaps: [usize; 2], shift: usize) -> Vec<u32> {
    let [count, width] = shape;
    let mut rng = Rng(41 + width as u64);
    let x = rows::<T>(&mut rng, count, width, gaps[0]);
    let norm = Norm::random(&mut rng, width, shift);
    let mut first = None;
    for build in builds() {
        let rig = Rig::new(build);
        for &(schedule, resident) in schedules(&SCHEDULES) {
            rig.set_schedule(schedule, Completion::Late, resident);
            let what = format!("{} {shape:?}, gaps {gaps:?}, {build:?}, {schedule:?}", T::DTYPE);
            let y = layer_norm(&rig, &x, &norm, multiprocessors, gaps[1]).unwrap_or_else(|e| panic!("{what}: {e}"));
            norm.agrees(&x, &y).unwrap_or_else(|e| panic!("{what}: {e}"));
            y.assert_gaps_untouched();
            assert_eq!(*first.get_or_insert(bits(&y)), bits(&y), "{what}");
        }
    }
    first.unwrap()
}

#[test]
fn rows_are_normalized() {
    // A row of one element; several rows per CTA, with a last CTA that is not full; one row per CTA, a chunk for each
    // thread.
    check_layer_norm::<f32>([1, 1], 6, [0, 0], 0);
    check_layer_norm::<f16>([9, 40], 1, [0, 8], 0);
    check_layer_norm::<bf16>([7, 264], 3, [8, 0], 0);
    check_layer_norm::<f32>([5, 1024], 132, [0, 0], 0);
    // Rows of more than one block of 8192, with a partial last block.
    check_layer_norm::<f32>([3, 8200], 1, [0, 0], 0);
    check_layer_norm::<bf16>([2, 16392], 6, [0, 0], 0);
}

#[test]
fn any_width_and_alignment() {
    check_layer_norm::<f32>([6, 17], 6, [0, 3], 0);
    check_layer_norm::<f16>([6, 301], 1, [0, 0], 0);
    // Rows that start at multiples of 16 bytes and do not end at one.
    check_layer_norm::<bf16>([2, 8205], 1, [3, 3], 0);
    // Unaligned rows and unaligned parameters give the same bits as aligned ones.
    for width in [40, 296] {
        let aligned = check_layer_norm::<bf16>([6, width], 1, [0, 0], 0);
        for (gaps, shift) in [([1, 0], 0), ([0, 5], 0), ([0, 0], 1)] {
            assert!(check_layer_norm::<bf16>([6, width], 1, gaps, shift) == aligned, "{gaps:?} {shift}");
        }
    }
}

/// Checks the embedding in the same way; its y must also have the bits that a launch of LayerNorm gives for x.
fn check_embedding<T: Element>(shape: [usize; 2], multiprocessors: usize, gaps: Gaps, has_extra: bool, shift: usize) {
    let [count, width] = shape;
    let mut rng = Rng(51 + width as u64);
    let input = Embedded::<T>::random(&mut rng, count, width, gaps, has_extra);
    let norm = Norm::random(&mut rng, width, shift);
    let mut first = None;
    for build in builds() {
        let rig = Rig::new(build);
        for &(schedule, resident) in schedules(&SCHEDULES) {
            rig.set_schedule(schedule, Completion::Late, resident);
            let what = format!("{} {shape:?}, {gaps:?}, {build:?}, {schedule:?}", T::DTYPE);
            let (x, y) =
                embed(&rig, &input, Some(&norm), multiprocessors, gaps).unwrap_or_else(|e| panic!("{what}: {e}"));
            input.agrees(&x).and_then(|()| norm.agrees(&x, &y)).unwrap_or_else(|e| panic!("{what}: {e}"));
            x.assert_gaps_untouched();
            y.assert_gaps_untouched();
            if schedule == Schedule::FirstIn {
                let alone = layer_norm(&rig, &x, &norm, multiprocessors, 0).unwrap();
                assert_eq!(bits(&alone), bits(&y), "{what}");
                let (x, y) = embed(&rig, &input, None, multiprocessors, gaps).unwrap();
                input.agrees(&x).unwrap_or_else(|e| panic!("{what}, without LayerNorm: {e}"));
                assert!(y.data.iter().all(|v| v.to_f32().is_nan()), "{what}: y was written although no norm was given");
            }
            assert_eq!(*first.get_or_insert(bits(&y)), bits(&y), "{what}");
        }
    }
}

#[test]
fn tokens_are_embedded() {
    check_embedding::<f32>([1, 1], 6, Gaps::NONE, true, 0);
    check_embedding::<f16>([9, 40], 1, Gaps::NONE, true, 0);
    check_embedding::<bf16>([7, 264], 3, Gaps::CHUNKS, false, 0);
    check_embedding::<f32>([2, 8200], 1, Gaps::CHUNKS, true, 0);
    // Odd widths, unaligned rows and unaligned parameters.
    check_embedding::<f32>([7, 17], 1, Gaps::beyond(3), true, 0);
    check_embedding::<f16>([7, 301], 6, Gaps::CHUNKS, false, 0);
    check_embedding::<bf16>([2, 40], 6, Gaps::CHUNKS, true, 1);
    // One operand that is not aligned, all others are.
    for operand in [Operand::Tokens, Operand::Extra, Operand::Positions, Operand::X, Operand::Y] {
        for why in [Unaligned::Stride, Unaligned::Start] {
            check_embedding::<f16>([9, 40], 1, Gaps::with_unaligned(operand, why), true, 0);
        }
    }
}

/// All operands of a call of LayerNorm, in device memory.
struct OnDevice {
    stream: Stream,
    x: DeviceBuffer<f16>,
    y: DeviceBuffer<f16>,
    weight: DeviceBuffer<f32>,
    bias: DeviceBuffer<f32>,
}

const ROWS: usize = 4;
const WIDTH: usize = 24;

impl OnDevice {
    fn new() -> Result<Self> {
        let stream = Stream::new(&device())?;
        Ok(Self {
            x: DeviceBuffer::zeros(&stream, 2 * ROWS * WIDTH)?,
            y: DeviceBuffer::zeros(&stream, 2 * ROWS * WIDTH)?,
            weight: DeviceBuffer::zeros(&stream, WIDTH + 1)?,
            bias: DeviceBuffer::zeros(&stream, WIDTH + 1)?,
            stream,
        })
    }

    fn norm(&self) -> DeviceNorm<'_> {
        let [weight, bias] = [&self.weight, &self.bias].map(|vector| vector.as_slice().slice(0..WIDTH));
        DeviceNorm { weight, bias, epsilon: 1e-5 }
    }
}

fn matrix<T: Element>(slice: DeviceSlice<'_, T>, rows: usize, cols: usize) -> DeviceMatrix<'_, T> {
    DeviceMatrix::new(slice, rows, cols).unwrap()
}

#[test]
fn a_norm_that_does_not_fit_is_refused() -> Result<()> {
    let OnDevice { stream, x, mut y, weight, bias } = OnDevice::new()?;
    let launch = LayerNorm::<f16>::new(stream.device(), ROWS, WIDTH)?;
    assert_eq!(launch.kernel().name(), launch.plan().launch.kernel);
    let weight_view = weight.as_slice();
    let part = |range| weight_view.slice(range);
    let norm = DeviceNorm { weight: part(0..WIDTH), bias: bias.as_slice().slice(1..WIDTH + 1), epsilon: 1e-5 };
    let mut refused = |stream: &Stream, x: DeviceMatrix<'_, f16>, norm: &DeviceNorm<'_>, rows, cols| {
        let y = DeviceMatrixMut::with_stride(y.as_mut_slice(), rows, cols, WIDTH).unwrap();
        launch.launch(stream, x, norm, y).err()
    };
    let good = matrix(x.as_slice(), ROWS, WIDTH);
    assert_eq!(refused(&stream, good, &norm, ROWS, WIDTH), None);
    let mismatch = |operand, actual| Some(Error::ShapeMismatch { operand, expected: [ROWS, WIDTH], actual });
    assert_eq!(refused(&stream, matrix(x.as_slice(), 3, WIDTH), &norm, ROWS, WIDTH), mismatch("x", [3, WIDTH]));
    assert_eq!(refused(&stream, good, &norm, ROWS, WIDTH - 1), mismatch("y", [ROWS, WIDTH - 1]));
    let long = DeviceNorm { weight: part(0..WIDTH + 1), ..norm };
    let expected = Error::LengthMismatch { operand: "norm weight", expected: WIDTH, actual: WIDTH + 1 };
    assert_eq!(refused(&stream, good, &long, ROWS, WIDTH), Some(expected));
    let short = DeviceNorm { bias: part(0..1), ..norm };
    let expected = Error::LengthMismatch { operand: "norm bias", expected: WIDTH, actual: 1 };
    assert_eq!(refused(&stream, good, &short, ROWS, WIDTH), Some(expected));
    if !on_gpu() {
        let elsewhere = OnDevice::new()?;
        let is_wrong_device =
            |operand| move |error| matches!(error, Some(Error::WrongDevice { operand: o, .. }) if o == operand);
        assert!(is_wrong_device("norm weight")(refused(&stream, good, &elsewhere.norm(), ROWS, WIDTH)));
        let x = matrix(elsewhere.x.as_slice(), ROWS, WIDTH);
        assert!(is_wrong_device("x")(refused(&stream, x, &norm, ROWS, WIDTH)));
        assert!(is_wrong_device("stream")(refused(&elsewhere.stream, good, &norm, ROWS, WIDTH)));
    }
    // SAFETY: the call fails before the launch.
    let odd = unsafe { DeviceSlice::from_raw(stream.device(), x.as_slice().address() + 1, ROWS * WIDTH) };
    let error = refused(&stream, matrix(odd, ROWS, WIDTH), &norm, ROWS, WIDTH);
    assert!(matches!(error, Some(Error::Misaligned { operand: "x", alignment: 2, .. })), "{error:?}");

    let address = y.as_slice().address();
    // SAFETY: the call fails before the launch.
    let inside = unsafe { DeviceSlice::<f16>::from_raw(stream.device(), address + 2, ROWS * WIDTH) };
    let out = DeviceMatrixMut::new(y.as_mut_slice(), ROWS, WIDTH)?;
    let error = launch.launch(&stream, matrix(inside, ROWS, WIDTH), &norm, out);
    assert_eq!(error, Err(Error::Overlap { output: "y", other: "x" }));
    // SAFETY: the call fails before the launch.
    let inside = unsafe { DeviceSlice::<f32>::from_raw(stream.device(), address, WIDTH) };
    let out = DeviceMatrixMut::new(y.as_mut_slice(), ROWS, WIDTH)?;
    let error = launch.launch(&stream, good, &DeviceNorm { bias: inside, ..norm }, out);
    assert_eq!(error, Err(Error::Overlap { output: "y", other: "norm bias" }));
    let empty = LayerNorm::<f16>::new(stream.device(), 0, WIDTH).err();
    assert_eq!(empty, Some(Error::EmptyOperand { operand: "x", shape: [0, WIDTH] }));
    Ok(())
}

#[test]
fn an_embedding_that_does_not_fit_is_refused() -> Result<()> {
    let OnDevice { stream, x: mut rows, y: mut normed, weight, bias } = OnDevice::new()?;
    let launch = Embedding::<f16>::new(stream.device(), ROWS, WIDTH)?;
    let table = DeviceBuffer::<f16>::zeros(&stream, 8 * WIDTH)?;
    let numbers = DeviceBuffer::<u32>::zeros(&stream, ROWS + 1)?;
    let norm =
        DeviceNorm { weight: weight.as_slice().slice(0..WIDTH), bias: bias.as_slice().slice(0..WIDTH), epsilon: 1e-5 };
    let ids = numbers.as_slice().slice(0..ROWS);
    let eight = matrix(table.as_slice(), 8, WIDTH);
    let good = EmbeddingInput { tokens: eight, extra: Some(eight), positions: eight, ids, places: ids };
    let mut refused = |input: EmbeddingInput<'_, f16>, norm: &DeviceNorm<'_>| {
        let x = DeviceMatrixMut::new(rows.as_mut_slice(), ROWS, WIDTH).unwrap();
        let y = DeviceMatrixMut::new(normed.as_mut_slice(), ROWS, WIDTH).unwrap();
        launch.launch(&stream, &input, x, Some((norm, y))).err()
    };
    assert_eq!(refused(good, &norm), None);
    let narrow = matrix(table.as_slice(), 8, WIDTH - 1);
    let mismatch = |operand| Some(Error::ShapeMismatch { operand, expected: [8, WIDTH], actual: [8, WIDTH - 1] });
    assert_eq!(refused(EmbeddingInput { tokens: narrow, ..good }, &norm), mismatch("tokens"));
    assert_eq!(refused(EmbeddingInput { extra: Some(narrow), ..good }, &norm), mismatch("extra"));
    assert_eq!(refused(EmbeddingInput { positions: narrow, ..good }, &norm), mismatch("positions"));
    let length = |operand, actual| Some(Error::LengthMismatch { operand, expected: ROWS, actual });
    assert_eq!(refused(EmbeddingInput { ids: numbers.as_slice(), ..good }, &norm), length("ids", ROWS + 1));
    assert_eq!(refused(EmbeddingInput { places: ids.slice(0..1), ..good }, &norm), length("places", 1));
    let short = DeviceNorm { weight: norm.weight.slice(0..1), ..norm };
    let expected = Error::LengthMismatch { operand: "norm weight", expected: WIDTH, actual: 1 };
    assert_eq!(refused(good, &short), Some(expected));
    if !on_gpu() {
        let elsewhere = OnDevice::new()?;
        let error = refused(EmbeddingInput { extra: Some(matrix(elsewhere.x.as_slice(), 8, WIDTH)), ..good }, &norm);
        assert!(matches!(error, Some(Error::WrongDevice { operand: "extra", .. })), "{error:?}");
    }
    // SAFETY: the call fails before the launch.
    let odd = unsafe { DeviceSlice::<u32>::from_raw(stream.device(), numbers.as_slice().address() + 2, ROWS) };
    let error = refused(EmbeddingInput { places: odd, ..good }, &norm);
    assert!(matches!(error, Some(Error::Misaligned { operand: "places", alignment: 4, .. })), "{error:?}");

    let (x_at, y_at) = (rows.as_slice().address(), normed.as_slice().address());
    for (address, output) in [(x_at, "x"), (y_at, "y")] {
        // SAFETY: the call fails before the launch.
        let inside = unsafe { DeviceSlice::<f16>::from_raw(stream.device(), address, 8 * WIDTH) };
        let input = EmbeddingInput { positions: matrix(inside, 8, WIDTH), ..good };
        let x = DeviceMatrixMut::new(rows.as_mut_slice(), ROWS, WIDTH)?;
        let y = DeviceMatrixMut::new(normed.as_mut_slice(), ROWS, WIDTH)?;
        let error = launch.launch(&stream, &input, x, Some((&norm, y)));
        assert_eq!(error, Err(Error::Overlap { output, other: "positions" }));
    }
    let (x, y) = rows.as_mut_slice().split_at(ROWS * WIDTH / 2);
    let x = DeviceMatrixMut::new(x, ROWS / 2, WIDTH)?;
    let y = DeviceMatrixMut::new(y, ROWS / 2, WIDTH)?;
    let error = launch.launch(&stream, &good, x, Some((&norm, y)));
    let expected = Error::ShapeMismatch { operand: "x", expected: [ROWS, WIDTH], actual: [ROWS / 2, WIDTH] };
    assert_eq!(error, Err(expected));
    Ok(())
}

/// A captured graph is replayed with new ids, some of them beyond the tables.
#[test]
fn a_captured_embedding_reads_its_ids_anew() -> Result<()> {
    let stream = Stream::new(&device())?;
    let mut rng = Rng(8);
    let mut input = Embedded::<bf16>::random(&mut rng, 9, WIDTH, Gaps::NONE, true);
    let norm = Norm::random(&mut rng, WIDTH, 0);
    let upload = |data: &Buffer<bf16>| DeviceBuffer::from_slice(&stream, &data.data);
    let (tokens, extra) = (upload(&input.tokens)?, upload(input.extra.as_ref().unwrap())?);
    let positions = upload(&input.positions)?;
    let mut ids = DeviceBuffer::from_slice(&stream, &input.ids)?;
    let places = DeviceBuffer::from_slice(&stream, &input.places)?;
    let (weight, bias) =
        (DeviceBuffer::from_slice(&stream, &norm.weight)?, DeviceBuffer::from_slice(&stream, &norm.bias)?);
    let mut x = DeviceBuffer::<bf16>::zeros(&stream, 9 * WIDTH)?;
    let mut y = DeviceBuffer::<bf16>::zeros(&stream, 9 * WIDTH)?;
    let launch = Embedding::<bf16>::new(stream.device(), 9, WIDTH)?;
    let graph = Graph::capture(&stream, |stream| {
        let on_device = EmbeddingInput {
            tokens: matrix(tokens.as_slice(), 11, WIDTH),
            extra: Some(matrix(extra.as_slice(), 3, WIDTH)),
            positions: matrix(positions.as_slice(), 7, WIDTH),
            ids: ids.as_slice(),
            places: places.as_slice(),
        };
        let parameters = DeviceNorm { weight: weight.as_slice(), bias: bias.as_slice(), epsilon: norm.epsilon };
        let x = DeviceMatrixMut::new(x.as_mut_slice(), 9, WIDTH)?;
        let y = DeviceMatrixMut::new(y.as_mut_slice(), 9, WIDTH)?;
        launch.launch(stream, &on_device, x, Some((&parameters, y)))
    })?;
    for replay in 0..3 {
        input.ids.iter_mut().for_each(|id| *id = (id.wrapping_add(5 * replay)) % 17);
        ids.upload(&stream, &input.ids)?;
        graph.replay(&stream)?;
        let left = |buffer: &DeviceBuffer<bf16>| {
            let data = buffer.to_vec(&stream)?;
            Ok::<_, Error>(Buffer::contiguous(data, 9, WIDTH))
        };
        let (x, y) = (left(&x)?, left(&y)?);
        input.agrees(&x).and_then(|()| norm.agrees(&x, &y)).unwrap_or_else(|error| panic!("replay {replay}: {error}"));
    }
    Ok(())
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn sanitizers_find_nothing() {
    rerun_under_sanitizers(module_path!(), &["sanitizers_find_nothing", "refused", "captured"]);
}
