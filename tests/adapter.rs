//! Bottleneck adapters: the kernels against float64 element by element, under several schedules, in the plain, race and
//! sanitizer builds; and what the device layer takes and refuses.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use crate::common::adapter::{Added, OnRig, RandomAdapter, Shape};
use crate::common::device::device;
use crate::common::rig::{Rig, SCHEDULES, builds, on_gpu, schedules};
use crate::common::sanitize::rerun_under_sanitizers;
use crate::common::{Buffer, Gaps, Operand, Rng, Unaligned};
use fused_lora::device::{
    Adapter, DeviceAdapter, DeviceBuffer, DeviceMatrix, DeviceMatrixMut, DeviceSlice, Stream, Workspace,
};
use fused_lora::lora::Activation::{self, GeluNew, Identity, Relu};
use fused_lora::lora::Residual;
use fused_lora::{ComputePath, Element, Error, Result, WorkspaceLayout};
use fused_lora_emulator::Completion;
use half::{bf16, f16};

/// With biases, its input and a residual of their own added.
fn shape(tokens: usize, d: usize, width: usize, activation: Activation) -> Shape {
    Shape {
        tokens,
        d,
        width,
        activation,
        bias: true,
        adds_input: true,
        residual: Added::Apart,
        gaps: Gaps::CHUNKS,
        multiprocessors: 1,
        compute_capability: None,
    }
}

/// Runs a shape under every build and schedule: each result within its bounds, and all of them the same bits.
fn check<T: Element>(shape: Shape, path: ComputePath) -> String {
    let mut rng = Rng(17 + shape.d as u64);
    let random = RandomAdapter::<T>::new(&mut rng, shape);
    let expected = random.expected();
    let mut first: Option<Buffer<T>> = None;
    let mut kernel = String::new();
    for build in builds() {
        let rig = Rig::new(build);
        let on_rig = OnRig::new(&rig, &random, path);
        kernel.clone_from(&on_rig.plan.launch.kernel);
        for &(schedule, resident) in schedules(&SCHEDULES) {
            rig.set_schedule(schedule, Completion::Late, resident);
            let what = format!("{shape:?}, {build:?}, {schedule:?}, {}", on_rig.plan);
            let y = on_rig.run().unwrap_or_else(|error| panic!("{what}: {error}"));
            expected.assert_close(y.view(), random.steps(), &what);
            y.assert_gaps_untouched();
            if let Some(first) = &first {
                let same = (0..shape.tokens).all(|row| first.view().row(row) == y.view().row(row));
                assert!(same, "other bits: {what}");
            }
            first.get_or_insert(y);
        }
    }
    kernel
}

#[test]
fn adapters_of_every_kind_agree_with_the_reference() {
    use ComputePath::{Auto, CudaCores};
    let mut seen = BTreeSet::new();
    // One token, one hidden column; two row tiles, two tiles of what is hidden, its last step in part; shared depths.
    seen.insert(check::<f32>(shape(1, 24, 1, Identity), Auto));
    seen.insert(check::<f32>(shape(66, 72, 70, GeluNew), Auto));
    seen.insert(check::<f16>(Shape { multiprocessors: 8, ..shape(17, 520, 20, Relu) }, Auto));
    seen.insert(check::<f16>(shape(3, 40, 8, GeluNew), CudaCores));
    seen.insert(check::<bf16>(shape(70, 136, 17, GeluNew), Auto));
    seen.insert(check::<bf16>(shape(2, 24, 5, Relu), CudaCores));
    // One operand that is not aligned, all others are: its stride or its first row.
    for operand in [Operand::X, Operand::A, Operand::B, Operand::Y, Operand::Residual, Operand::Bias] {
        let gaps = |why| Gaps::with_unaligned(operand, why);
        check::<f16>(Shape { gaps: gaps(Unaligned::Start), ..shape(20, 40, 8, Relu) }, Auto);
        check::<f32>(Shape { gaps: gaps(Unaligned::Stride), ..shape(20, 40, 8, Relu) }, Auto);
    }
    // Odd rows, of odd lengths.
    seen.insert(check::<f32>(shape(5, 33, 3, Relu), Auto));
    seen.insert(check::<f16>(Shape { gaps: Gaps::beyond(3), ..shape(18, 65, 19, GeluNew) }, Auto));
    seen.insert(check::<f16>(shape(1, 1, 1, Identity), CudaCores));
    seen.insert(check::<bf16>(Shape { gaps: Gaps::beyond(1), ..shape(2, 48, 16, Identity) }, Auto));
    seen.insert(check::<bf16>(shape(1, 9, 2, Relu), CudaCores));
    if on_gpu() {
        return; // which may lack instructions that Auto takes where they are
    }
    let types = ["f32", "f16", "bf16", "mma_f16", "mma_bf16"];
    let names = types.map(|name| ["any", "t64"].map(|tile| format!("lora_adapter_{name}_{tile}")));
    assert_eq!(seen, names.into_iter().flatten().collect());
}

#[test]
fn addends_are_added_as_asked() {
    for bias in [false, true] {
        for adds_input in [false, true] {
            for residual in [Added::None, Added::InPlace, Added::Apart] {
                let shape = Shape { bias, adds_input, residual, gaps: Gaps::CHUNKS, ..shape(2, 40, 6, Relu) };
                check::<f16>(shape, ComputePath::Auto);
            }
        }
    }
}

/// An adapter in device memory, for rows of D.
struct OnDevice {
    stream: Stream,
    down: DeviceBuffer<f16>,
    up: DeviceBuffer<f16>,
    down_bias: DeviceBuffer<f16>,
    up_bias: DeviceBuffer<f16>,
    x: DeviceBuffer<f16>,
    y: DeviceBuffer<f16>,
}

const TOKENS: usize = 5;
const D: usize = 40;
const WIDTH: usize = 6;

impl OnDevice {
    /// With room for x to start anywhere.
    fn new(random: &RandomAdapter<f16>) -> Result<Self> {
        Self::on(Stream::new(&device())?, random)
    }

    fn on(stream: Stream, random: &RandomAdapter<f16>) -> Result<Self> {
        let upload = |data: &[f16]| DeviceBuffer::from_slice(&stream, data);
        let padded: Vec<f16> = random.x.data.iter().copied().chain([f16::NAN]).collect();
        Ok(Self {
            down: upload(&random.down.data)?,
            up: upload(&random.up.data)?,
            down_bias: upload(&random.down_bias)?,
            up_bias: upload(&random.up_bias)?,
            x: upload(&padded)?,
            y: upload(&random.residual.data)?,
            stream,
        })
    }

    fn adapter(&self) -> DeviceAdapter<'_, f16> {
        DeviceAdapter {
            down: matrix(self.down.as_slice(), WIDTH, D),
            down_bias: Some(self.down_bias.as_slice()),
            up: matrix(self.up.as_slice(), D, WIDTH),
            up_bias: Some(self.up_bias.as_slice()),
            activation: GeluNew,
        }
    }
}

fn matrix<T: Element>(slice: DeviceSlice<'_, T>, rows: usize, cols: usize) -> DeviceMatrix<'_, T> {
    DeviceMatrix::new(slice, rows, cols).unwrap()
}

fn random() -> RandomAdapter<f16> {
    let shape = Shape { residual: Added::InPlace, gaps: Gaps::NONE, ..shape(TOKENS, D, WIDTH, GeluNew) };
    RandomAdapter::new(&mut Rng(33), shape)
}

/// One plan, and one workspace that a larger layer could share, for x at a multiple of 16 bytes and elsewhere.
#[test]
fn x_may_start_anywhere() -> Result<()> {
    let random = random();
    let mut on = OnDevice::new(&random)?;
    let shifted: Vec<f16> = [f16::NAN].into_iter().chain(random.x.data.iter().copied()).collect();
    let mut left = vec![];
    let launch = Adapter::new(on.stream.device(), &on.adapter(), TOKENS)?;
    assert_eq!(launch.kernel().name(), launch.plan().launch.kernel);
    assert!(launch.plan().launch.kernel.ends_with("t64"), "{}", launch.plan());
    let layout = launch.workspace().union(&WorkspaceLayout { t_words: 77, flags: 9, ..WorkspaceLayout::default() });
    let mut workspace = Workspace::new(&on.stream, layout)?;
    for begin in [0, 1] {
        on.y.upload(&on.stream, &random.residual.data)?;
        if begin == 1 {
            on.x.upload(&on.stream, &shifted)?;
        }
        let mut y = std::mem::replace(&mut on.y, DeviceBuffer::zeros(&on.stream, 1)?);
        let x = matrix(on.x.as_slice().slice(begin..begin + TOKENS * D), TOKENS, D);
        let out = DeviceMatrixMut::new(y.as_mut_slice(), TOKENS, D)?;
        launch.launch(&on.stream, &on.adapter(), x, true, Residual::InPlace, out, &mut workspace)?;
        let got = Buffer::contiguous(y.to_vec(&on.stream)?, TOKENS, D);
        random.expected().assert_close(got.view(), random.steps(), "on a device");
        left.push(got.data);
        on.y = y;
    }
    assert!(left[0] == left[1], "an x that starts elsewhere gives other bits");
    Ok(())
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() -> Result<()> {
    let random = random();
    let (on, other) = (OnDevice::new(&random)?, OnDevice::new(&random)?);
    let (stream, device) = (&on.stream, on.stream.device());
    let mut y = DeviceBuffer::<f16>::zeros(stream, TOKENS * D)?;
    let good = on.adapter();
    let launch = Adapter::new(device, &good, TOKENS)?;
    let mut workspace = Workspace::new(stream, launch.workspace())?;
    let x = matrix(on.x.as_slice().slice(0..TOKENS * D), TOKENS, D);
    let mut refused =
        |adapter: &DeviceAdapter<'_, f16>, x, residual: Residual<DeviceMatrix<'_, f16>>, workspace: &mut Workspace| {
            let out = DeviceMatrixMut::new(y.as_mut_slice(), TOKENS, D).unwrap();
            launch.launch(stream, adapter, x, false, residual, out, workspace).err()
        };
    let none = Residual::None;
    assert_eq!(refused(&good, x, none, &mut workspace), None);
    let length = |operand, expected, actual| Some(Error::LengthMismatch { operand, expected, actual });
    let short = DeviceAdapter { down_bias: Some(on.up_bias.as_slice()), ..good };
    assert_eq!(refused(&short, x, none, &mut workspace), length("down bias", WIDTH, D));
    let short = DeviceAdapter { up_bias: Some(on.down_bias.as_slice()), ..good };
    assert_eq!(refused(&short, x, none, &mut workspace), length("up bias", D, WIDTH));
    let mismatch = |operand, expected, actual| Some(Error::ShapeMismatch { operand, expected, actual });
    let turned = DeviceAdapter { up: matrix(on.up.as_slice(), WIDTH, D), ..good };
    assert_eq!(refused(&turned, x, none, &mut workspace), mismatch("up", [D, WIDTH], [WIDTH, D]));
    let few = matrix(on.x.as_slice(), TOKENS - 1, D);
    assert_eq!(refused(&good, few, none, &mut workspace), mismatch("x", [TOKENS, D], [TOKENS - 1, D]));
    let from = Residual::From(few);
    assert_eq!(refused(&good, x, from, &mut workspace), mismatch("residual", [TOKENS, D], [TOKENS - 1, D]));
    let narrow = DeviceAdapter {
        down: matrix(on.down.as_slice(), WIDTH - 1, D),
        up: matrix(on.up.as_slice(), D, WIDTH - 1),
        down_bias: None,
        ..good
    };
    let error = refused(&narrow, x, none, &mut workspace);
    assert!(matches!(error, Some(Error::PlanMismatch { .. })), "{error:?}");
    let foreign = DeviceAdapter { down: other.adapter().down, ..good };
    if !on_gpu() {
        let error = refused(&foreign, x, none, &mut workspace);
        assert!(matches!(error, Some(Error::WrongDevice { operand: "down", .. })), "{error:?}");
    }
    // SAFETY: nothing is launched.
    let odd = unsafe { DeviceSlice::<f16>::from_raw(device, on.x.as_slice().address() + 1, TOKENS * D) };
    let error = refused(&good, matrix(odd, TOKENS, D), none, &mut workspace);
    assert!(matches!(error, Some(Error::Misaligned { operand: "x", alignment: 2, .. })), "{error:?}");
    let mut small = Workspace::new(stream, WorkspaceLayout::default())?;
    let error = refused(&good, x, none, &mut small);
    assert!(matches!(error, Some(Error::DeviceWorkspaceTooSmall { .. })), "{error:?}");

    let address = y.as_slice().address();
    // SAFETY: nothing is launched: the calls are refused.
    let inside = unsafe { DeviceSlice::<f16>::from_raw(device, address, TOKENS * D) };
    let same = matrix(inside, TOKENS, D);
    for (operand, adapter, x, residual) in [
        ("x", good, same, none),
        ("residual", good, x, Residual::From(same)),
        ("up bias", DeviceAdapter { up_bias: Some(inside.slice(0..D)), ..good }, x, none),
    ] {
        let out = DeviceMatrixMut::new(y.as_mut_slice(), TOKENS, D)?;
        let error = launch.launch(stream, &adapter, x, false, residual, out, &mut workspace);
        assert_eq!(error, Err(Error::Overlap { output: "y", other: operand }));
    }
    let empty = Adapter::new(device, &good, 0).err();
    assert_eq!(empty, Some(Error::EmptyOperand { operand: "x", shape: [0, D] }));
    Ok(())
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn sanitizers_find_nothing() {
    rerun_under_sanitizers(module_path!(), &["sanitizers_find_nothing", "refused", "anywhere"]);
}
