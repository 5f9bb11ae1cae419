//! The optimizer's safe calls: against the CPU's steps, replayed from graphs, and each way in which they can be refused.
#![allow(clippy::unwrap_used)]

use crate::common::Rng;
use crate::common::adamw::{State, Tensor, draw};
use crate::common::device::{device, stream};
use crate::common::rig::on_gpu;
use approx::assert_relative_eq;
use bytemuck::Pod;
use fused_lora::device::{
    Device, DeviceBuffer, DeviceParameter, DeviceSlice, DeviceSliceMut, EmulatorConfig, Graph, Optimizer, Stream,
};
use fused_lora::optim::Factor::{A, B};
use fused_lora::optim::{AdamW, Skip};
use fused_lora::{Element, Error, Result};
use half::{bf16, f16};

/// One behind the other in one buffer, so that most start at no multiple of 16 bytes.
const TENSORS: [Tensor; 5] = [(A, 37), (B, 4100), (A, 1), (B, 0), (A, 2050)];
const CONFIG: AdamW =
    AdamW { lr: 1e-2, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.1, lora_plus_ratio: 4.0, max_norm: Some(1.0) };

/// All tensors of one kind, from one buffer.
fn cut<T: Pod>(buffer: &mut DeviceBuffer<T>) -> Vec<DeviceSliceMut<'_, T>> {
    let mut rest = Some(buffer.as_mut_slice());
    let tensors = TENSORS.iter().map(|&(_, len)| {
        let (tensor, behind) = rest.take().unwrap().split_at(len);
        rest = Some(behind);
        tensor
    });
    tensors.collect()
}

/// Parameters in device memory.
struct Model<W> {
    gradients: DeviceBuffer<f32>,
    values: DeviceBuffer<f32>,
    first: DeviceBuffer<f32>,
    second: DeviceBuffer<f32>,
    stored: DeviceBuffer<W>,
}

impl<W: Element> Model<W> {
    fn new(stream: &Stream, state: &State<W>) -> Self {
        let single = |from: &[Vec<f32>]| DeviceBuffer::from_slice(stream, &from.concat()).unwrap();
        Self {
            gradients: single(&TENSORS.map(|t| vec![f32::NAN; t.1])),
            values: single(&state.values),
            first: single(&state.first),
            second: single(&state.second),
            stored: DeviceBuffer::from_slice(stream, &state.stored.concat()).unwrap(),
        }
    }

    fn parameters(&mut self) -> Vec<DeviceParameter<'_, W>> {
        let Self { gradients, values, first, second, stored } = self;
        let mut begin = 0;
        let moments = cut(first).into_iter().zip(cut(second));
        let all = cut(values).into_iter().zip(moments).zip(cut(stored)).zip(TENSORS);
        let parameters = all.map(|(((value, (first_moment, second_moment)), stored), (factor, len))| {
            let gradient = gradients.slice(begin..begin + len);
            begin += len;
            DeviceParameter { factor, gradient, value, first_moment, second_moment, stored: Some(stored) }
        });
        parameters.collect()
    }

    fn set_gradients(&mut self, stream: &Stream, gradients: &[Vec<f32>]) {
        self.gradients.upload(stream, &gradients.concat()).unwrap();
    }

    /// Every bit of what steps change.
    fn bits(&self, stream: &Stream) -> Vec<u32> {
        let singles = [&self.values, &self.first, &self.second].map(|buffer| buffer.to_vec(stream).unwrap());
        let stored = self.stored.to_vec(stream).unwrap();
        let singles = singles.iter().flatten().map(|v| v.to_bits());
        singles.chain(stored.iter().map(|v| v.to_f32().to_bits())).collect()
    }
}

fn steps_agree_with_the_cpu<W: Element>() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(31);
    let mut on_cpu = State::<W>::random(&mut rng, &TENSORS);
    let mut model = Model::new(&stream, &on_cpu);
    let mut optimizer = Optimizer::new(&stream, CONFIG, &model.parameters())?;
    assert_eq!((optimizer.steps(&stream)?, optimizer.last_step(&stream)?), (0, None));
    for step in 1..=4 {
        // A schedule of the host's, for plain launches.
        optimizer.config.lr = CONFIG.lr / step as f64;
        let gradients = draw(&mut rng, &TENSORS, 1.0);
        model.set_gradients(&stream, &gradients);
        optimizer.step(&stream, &mut model.parameters())?;
        if !on_gpu() {
            let counters = stream.device().take_counters().unwrap();
            assert!(counters.load_bytes > 0 && stream.device().take_counters().is_none(), "one launch");
        }
        let expected = on_cpu.step_on_cpu(&optimizer.config, step, &TENSORS, &gradients)?;
        let told = optimizer.last_step(&stream)?.unwrap();
        assert_relative_eq!(told.norm, expected.norm, max_relative = 1e-12);
        assert_relative_eq!(told.clipped_by, expected.clipped_by, max_relative = 1e-12);
        assert_eq!((told.skipped, optimizer.steps(&stream)?), (None, step));
        let bound = |value: f32| step as f32 * f32::EPSILON * (value.abs() + 8.0 * 4.0 * CONFIG.lr as f32);
        let values = model.values.to_vec(&stream)?;
        for (i, (got, cpu)) in values.iter().zip(on_cpu.values.concat()).enumerate() {
            assert!((got - cpu).abs() <= bound(cpu), "step {step}, {i}: {got} {cpu}");
        }
        let stored = model.stored.to_vec(&stream)?;
        assert!(stored.iter().zip(&values).all(|(copy, value)| *copy == W::from_f64(f64::from(*value))));
    }
    let mut gradients = draw(&mut rng, &TENSORS, 1.0);
    gradients[4][2049] = f32::INFINITY;
    let before = model.bits(&stream);
    model.set_gradients(&stream, &gradients);
    optimizer.step(&stream, &mut model.parameters())?;
    assert_eq!(optimizer.last_step(&stream)?.unwrap().skipped, Some(Skip::NonFinite));
    assert_eq!((optimizer.steps(&stream)?, model.bits(&stream) == before), (4, true));
    Ok(())
}

#[test]
fn steps_of_every_type_agree_with_the_cpu() -> Result<()> {
    steps_agree_with_the_cpu::<f32>()?;
    steps_agree_with_the_cpu::<f16>()?;
    steps_agree_with_the_cpu::<bf16>()
}

/// Plain steps, and replays of one captured step after its buffers' views, the optimizer and the buffer of the schedule are
/// gone or in other hands.
#[test]
fn replays_of_a_captured_step_give_the_bits_of_plain_ones() -> Result<()> {
    let stream = stream();
    let mut rng = Rng(32);
    let state = State::<bf16>::random(&mut rng, &TENSORS);
    let (mut plain, mut replayed) = (Model::new(&stream, &state), Model::new(&stream, &state));
    let mut first = Optimizer::new(&stream, CONFIG, &plain.parameters())?;
    let mut second = Optimizer::new(&stream, CONFIG, &replayed.parameters())?;
    let mut scale = DeviceBuffer::from_slice(&stream, &[f32::NAN])?;
    let graph =
        Graph::capture(&stream, |stream| second.step_scaled(stream, &mut replayed.parameters(), scale.as_slice()))?;
    assert_eq!(second.last_step(&stream)?, None, "captured, not taken");
    for (step, by) in [1.0f32, 0.5, 0.25].into_iter().enumerate() {
        let mut gradients = draw(&mut rng, &TENSORS, 1.0);
        for bad in [true, false] {
            let good = gradients[1][7];
            if bad {
                gradients[1][7] = f32::NAN;
            }
            plain.set_gradients(&stream, &gradients);
            replayed.set_gradients(&stream, &gradients);
            scale.upload(&stream, &[by])?;
            first.step_scaled(&stream, &mut plain.parameters(), scale.as_slice())?;
            graph.replay(&stream)?;
            gradients[1][7] = good;
            let taken = step as u64 + u64::from(!bad);
            assert_eq!((first.steps(&stream)?, second.steps(&stream)?), (taken, taken));
            if !bad {
                assert_eq!(first.last_step(&stream)?, second.last_step(&stream)?);
            }
            assert!(plain.bits(&stream) == replayed.bits(&stream), "step {step}, {bad}");
        }
    }
    drop(second);
    graph.replay(&stream)?;
    first.step_scaled(&stream, &mut plain.parameters(), scale.as_slice())?;
    assert!(plain.bits(&stream) == replayed.bits(&stream), "without the optimizer");
    Ok(())
}

/// As many steps on a device of one SM and of twenty, and by an optimizer that goes on where another stopped.
#[test]
fn other_devices_and_later_optimizers_give_the_same_bits() -> Result<()> {
    let mut rng = Rng(33);
    let state = State::<f16>::random(&mut rng, &TENSORS);
    let gradients = [(); 4].map(|()| draw(&mut rng, &TENSORS, 1.0));
    let run = |device: &Device, resumes: bool| -> Result<Vec<u32>> {
        let stream = Stream::new(device)?;
        let mut model = Model::new(&stream, &state);
        let mut optimizer = Optimizer::new(&stream, CONFIG, &model.parameters())?;
        for (i, gradients) in gradients.iter().enumerate() {
            if resumes && i == 2 {
                optimizer = Optimizer::new(&stream, CONFIG, &model.parameters())?;
                optimizer.set_steps(&stream, 2)?;
                assert_eq!((optimizer.steps(&stream)?, optimizer.last_step(&stream)?), (2, None));
            }
            model.set_gradients(&stream, gradients);
            optimizer.step(&stream, &mut model.parameters())?;
        }
        assert_eq!(optimizer.steps(&stream)?, 4);
        Ok(model.bits(&stream))
    };
    let expected = run(&device(), false)?;
    assert!(run(&device(), true)? == expected, "resumed");
    if !on_gpu() {
        for multiprocessors in [1, 20] {
            let device = Device::emulator(EmulatorConfig { multiprocessors, ..EmulatorConfig::default() })?;
            assert!(run(&device, false)? == expected, "{multiprocessors} SMs");
        }
    }
    Ok(())
}

/// A view that nothing has checked, for calls that are refused.
fn raw<T: Pod>(device: &Device, address: u64, len: usize) -> DeviceSliceMut<'_, T> {
    // SAFETY: nothing is done with the memory.
    unsafe { DeviceSliceMut::from_raw(device, address, len) }
}

#[test]
fn what_cannot_be_planned_has_its_error() -> Result<()> {
    let (here, elsewhere) = (stream(), stream());
    let state = State::<f16>::random(&mut Rng(34), &TENSORS);
    let (mut model, mut other) = (Model::new(&here, &state), Model::new(&elsewhere, &state));
    let refused = |config, parameters: &[DeviceParameter<'_, f16>]| {
        Optimizer::new(&here, config, parameters).map(drop).unwrap_err()
    };
    let bad = AdamW { eps: 0.0, ..CONFIG };
    assert!(matches!(refused(bad, &model.parameters()), Error::HyperparameterOutOfRange { name: "epsilon", .. }));
    assert_eq!(refused(CONFIG, &[]), Error::NothingToTrain);
    assert_eq!(refused(CONFIG, &model.parameters()[3..4]), Error::NothingToTrain);
    let captured = Graph::capture(&here, |stream| Optimizer::new(stream, CONFIG, &model.parameters()).map(drop));
    assert!(matches!(captured, Err(Error::CaptureRefused { .. })), "{captured:?}");
    if !on_gpu() {
        let error = refused(CONFIG, &other.parameters());
        assert!(matches!(error, Error::WrongDevice { operand: "the gradient", .. }), "{error}");
        let mut mixed = model.parameters();
        mixed[1].stored = other.parameters()[1].stored.as_ref().map(|s| raw(elsewhere.device(), s.address(), s.len()));
        let error = refused(CONFIG, &mixed);
        assert!(matches!(error, Error::WrongDevice { operand: "the stored parameter", .. }), "{error}");
    }

    let [gradient, value] = [&model.gradients, &model.values].map(DeviceBuffer::address);
    let mut changed = |change: &dyn Fn(&mut DeviceParameter<'_, f16>)| {
        let mut parameters = model.parameters();
        change(&mut parameters[0]);
        refused(CONFIG, &parameters)
    };
    // Another of the first parameter's views: so many bytes further on, and so many elements.
    fn moved<'a, T: Pod>(of: &DeviceSliceMut<'a, T>, bytes: u64, len: usize) -> DeviceSliceMut<'a, T> {
        raw(of.device(), of.address() + bytes, len)
    }
    let short = |operand| Error::LengthMismatch { operand, expected: 37, actual: 36 };
    assert_eq!(changed(&|p| p.gradient = p.gradient.slice(0..36)), short("the gradient"));
    assert_eq!(changed(&|p| p.first_moment = moved(&p.first_moment, 0, 36)), short("the first moment"));
    assert_eq!(changed(&|p| p.second_moment = moved(&p.second_moment, 0, 36)), short("the second moment"));
    let copied =
        |p: &mut DeviceParameter<'_, f16>, bytes, len| p.stored = p.stored.as_ref().map(|s| moved(s, bytes, len));
    assert_eq!(changed(&|p| copied(p, 0, 36)), short("the stored parameter"));

    let misaligned = |error, at: &str, to| {
        assert!(
            matches!(&error, Error::Misaligned { operand, alignment, .. } if (*operand, *alignment) == (at, to)),
            "{error}"
        );
    };
    misaligned(changed(&|p| p.value = moved(&p.value, 2, 37)), "the value", 4);
    misaligned(changed(&|p| p.first_moment = moved(&p.first_moment, 1, 37)), "the first moment", 4);
    misaligned(changed(&|p| p.second_moment = moved(&p.second_moment, 2, 37)), "the second moment", 4);
    misaligned(changed(&|p| copied(p, 1, 37)), "the stored parameter", 2);

    let overlap = |output, other| Error::Overlap { output, other };
    let on_gradient = changed(&|p| p.value = raw(p.value.device(), gradient + 36 * 4, 37));
    assert_eq!(on_gradient, overlap("the value", "the gradient"));
    let on_value = changed(&|p| p.second_moment = raw(p.value.device(), value + 4, 37));
    assert_eq!(on_value, overlap("the second moment", "the value"));
    // One element into the next parameter's copy.
    assert_eq!(changed(&|p| copied(p, 2, 37)), overlap("the stored parameter", "the stored parameter"));
    Ok(())
}

#[test]
fn each_wrong_step_has_its_error_and_launches_nothing() -> Result<()> {
    if on_gpu() {
        return Ok(()); // it takes two devices
    }
    let (here, elsewhere) = (stream(), stream());
    let state = State::<f32>::random(&mut Rng(35), &TENSORS);
    let (mut model, mut copy) = (Model::new(&here, &state), Model::new(&here, &state));
    let mut optimizer = Optimizer::new(&here, CONFIG, &model.parameters())?;
    here.device().take_counters();

    let error = optimizer.step(&elsewhere, &mut model.parameters()).unwrap_err();
    assert!(matches!(error, Error::WrongDevice { operand: "stream", .. }), "{error}");
    let moved = optimizer.step(&here, &mut copy.parameters()).unwrap_err();
    assert!(matches!(moved, Error::PlanMismatch { .. }), "{moved}");
    let fewer = optimizer.step(&here, &mut model.parameters()[..4]).unwrap_err();
    let counted = |count| format!("{count} parameters");
    assert_eq!(fewer, Error::PlanMismatch { planned: counted(5), actual: counted(4) });
    for change in [
        |p: &mut DeviceParameter<'_, f32>| p.factor = B,
        |p: &mut DeviceParameter<'_, f32>| p.stored = None,
        |p: &mut DeviceParameter<'_, f32>| std::mem::swap(&mut p.first_moment, &mut p.second_moment),
    ] {
        let mut parameters = model.parameters();
        change(&mut parameters[0]);
        let error = optimizer.step(&here, &mut parameters).unwrap_err();
        assert!(matches!(error, Error::PlanMismatch { .. }), "{error}");
    }
    optimizer.config.betas.1 = 1.0;
    let error = optimizer.step(&here, &mut model.parameters()).unwrap_err();
    assert!(matches!(error, Error::HyperparameterOutOfRange { name: "beta 2", .. }), "{error}");
    optimizer.config = CONFIG;

    let scales = DeviceBuffer::from_slice(&here, &[1.0f32, 1.0])?;
    let foreign = DeviceBuffer::from_slice(&elsewhere, &[1.0f32])?;
    let inside = model.values.address();
    // SAFETY: the views are used for calls that are refused.
    let raw = |address| unsafe { DeviceSlice::<f32>::from_raw(here.device(), address, 1) };
    let operand = "the learning rates' scale";
    let mut scaled = |scale| optimizer.step_scaled(&here, &mut model.parameters(), scale).unwrap_err();
    assert_eq!(scaled(scales.as_slice()), Error::LengthMismatch { operand, expected: 1, actual: 2 });
    assert!(matches!(scaled(foreign.as_slice()), Error::WrongDevice { .. }));
    let odd = scales.address() + 1;
    assert_eq!(scaled(raw(odd)), Error::Misaligned { operand, address: odd, alignment: 4 });
    assert_eq!(scaled(raw(inside)), Error::Overlap { output: "the value", other: operand });
    assert!(here.device().take_counters().is_none(), "nothing was launched");
    assert_eq!(optimizer.last_step(&here)?, None);
    Ok(())
}
