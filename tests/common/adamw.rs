//! AdamW steps on a rig: uploads tensors with gaps between them, launches the kernel and reads the results back.
#![allow(clippy::cast_possible_truncation)]

use std::mem::offset_of;

use bytemuck::NoUninit;
use fused_lora::Element;
use fused_lora::abi::LoraAdamwState;
use fused_lora::optim::{AdamW, Factor, Parameter, Step};
use fused_lora::plan::optim::{ParameterAddresses, STATE_WORDS, UpdatePlan, initial_state, read_state};
use fused_lora::reference::{self, AdamW64};
use fused_lora::{Result, cpu};
use fused_lora_emulator::Counters;

use super::Rng;
use super::rig::{BEFORE_THE_LAST_EPOCH, Call, Failure, Rig, Uploads};

/// A parameter: the LoRA factor that it is (A or B, for the learning rate), and its number of elements.
pub type Tensor = (Factor, usize);

/// Everything that a step changes: parameters, both moments and the stored copies of all tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct State<W> {
    pub values: Vec<Vec<f32>>,
    pub first: Vec<Vec<f32>>,
    pub second: Vec<Vec<f32>>,
    pub stored: Vec<Vec<W>>,
}

impl<W: Element> State<W> {
    pub fn random(rng: &mut Rng, tensors: &[Tensor]) -> Self {
        let zeros: Vec<Vec<f32>> = tensors.iter().map(|t| vec![0.0; t.1]).collect();
        let stored = tensors.iter().map(|t| vec![W::from_f64(f64::NAN); t.1]).collect();
        Self { values: draw(rng, tensors, 1.0), first: zeros.clone(), second: zeros, stored }
    }

    /// The same step on the CPU.
    pub fn step_on_cpu(
        &mut self,
        config: &AdamW,
        step: u64,
        tensors: &[Tensor],
        gradients: &[Vec<f32>],
    ) -> Result<Step> {
        let moments = self.first.iter_mut().zip(&mut self.second);
        let all = self.values.iter_mut().zip(&mut self.stored).zip(gradients).zip(moments).zip(tensors);
        let mut parameters: Vec<_> = all
            .map(|((((value, stored), gradient), (first, second)), &(factor, _))| Parameter {
                factor,
                gradient,
                value,
                first_moment: first,
                second_moment: second,
                stored: Some(&mut stored[..]),
            })
            .collect();
        cpu::adamw(config, step, &mut parameters)
    }

    /// All values as bits, so that they can be compared even if some are NaN.
    pub fn bits(&self) -> Vec<Vec<u32>> {
        let singles = self.values.iter().chain(&self.first).chain(&self.second);
        let singles = singles.map(|t| t.iter().map(|v| v.to_bits()).collect());
        singles.chain(self.stored.iter().map(|t| t.iter().map(|v| v.to_f32().to_bits()).collect())).collect()
    }

    /// Checks the state after `steps` steps: parameters and moments are within their error bounds of the reference, and
    /// each stored copy is its parameter rounded to the type.
    ///
    /// Bounds: a step rounds p twice, and its update, at most lr·(1 − β₁)/√(1 − β₂) for such gradients, has a relative
    /// error of a few u; with cancellation in m this is 16·lr·u in all. A moment's error is a few u of the largest
    /// gradient, `largest`.
    pub fn agrees(
        &self,
        exact: &[AdamW64],
        config: &AdamW,
        steps: usize,
        largest: f64,
        copies: bool,
    ) -> Result<(), String> {
        let u = steps as f64 * 2f64.powi(-24);
        for (i, exact) in exact.iter().enumerate() {
            let lr = config.rate(exact.factor);
            for j in 0..exact.value.len() {
                let near = |name: &str, got: f32, exact: f64, bound: f64| {
                    let error = (f64::from(got) - exact).abs();
                    if error <= bound {
                        Ok(())
                    } else {
                        Err(format!("{name}[{i}][{j}]: {got} {exact}, {error:e} > {bound:e}"))
                    }
                };
                let (value, m, v) = (exact.value[j], exact.first_moment[j], exact.second_moment[j]);
                near("p", self.values[i][j], value, u * (2.0 * (1.0 + value.abs()) + 16.0 * lr))?;
                near("m", self.first[i][j], m, 4.0 * u * largest)?;
                near("v", self.second[i][j], v, 4.0 * u * (v + largest * largest * (1.0 - config.betas.1)))?;
                let copy = W::from_f64(if copies { f64::from(self.values[i][j]) } else { f64::NAN });
                if copy.to_f32().to_bits() != self.stored[i][j].to_f32().to_bits() {
                    return Err(format!("stored[{i}][{j}] is {:?}, expected {copy:?}", self.stored[i][j]));
                }
            }
        }
        Ok(())
    }
}

/// Random values for all elements of the tensors, uniform in [-size, size).
pub fn draw(rng: &mut Rng, tensors: &[Tensor], size: f64) -> Vec<Vec<f32>> {
    tensors.iter().map(|t| (0..t.1).map(|_| (size * rng.uniform()) as f32).collect()).collect()
}

/// The state's parameters and moments in float64, for the reference.
pub fn exact<W>(state: &State<W>, tensors: &[Tensor]) -> Vec<AdamW64> {
    let wide = |t: &[f32]| -> Vec<f64> { t.iter().map(|&v| f64::from(v)).collect() };
    let all = state.values.iter().zip(&state.first).zip(&state.second).zip(tensors);
    all.map(|(((value, first), second), &(factor, _))| AdamW64 {
        factor,
        value: wide(value),
        first_moment: wide(first),
        second_moment: wide(second),
    })
    .collect()
}

/// One step of the reference. Returns the norm of all gradients.
pub fn step_exactly(config: &AdamW, step: usize, exact: &mut [AdamW64], gradients: &[Vec<f32>]) -> f64 {
    let wide: Vec<Vec<f64>> = gradients.iter().map(|t| t.iter().map(|&v| f64::from(v)).collect()).collect();
    reference::adamw(config, step as i32, exact, &wide)
}

/// How the tensors are laid out in memory and how the step is launched.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Offsets in elements from multiples of 256 bytes, of gradients, values, first moments, second moments and stored
    /// copies.
    pub shifts: [usize; 5],
    pub stored: bool,
    pub grid: Option<u32>,
    pub multiprocessors: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { shifts: [0; 5], stored: true, grid: None, multiprocessors: 2 }
    }
}

/// Parameters, gradients and the optimizer's state in a rig's memory.
pub struct OnRig<'m, W> {
    rig: &'m Rig,
    pub plan: UpdatePlan,
    tensors: Vec<Tensor>,
    options: Options,
    initial: State<W>,
    /// Addresses of gradients, values, first moments, second moments and stored copies.
    addresses: [u64; 5],
    table: u64,
    state: u64,
    partial: u64,
    lr_scale: u64,
    pub scaled: bool,
    uploads: Uploads<'m>,
}

/// The optimizer's state after no step, and before the launch with the last epoch.
fn state_without_steps() -> [u64; STATE_WORDS] {
    let mut words = initial_state(0);
    words[offset_of!(LoraAdamwState, ticket) / 8] = BEFORE_THE_LAST_EPOCH;
    words
}

/// The start of each tensor, `shift` elements after a multiple of 64 elements and after a gap; and the total length.
fn starts(tensors: &[Tensor], shift: usize) -> (Vec<usize>, usize) {
    let mut end = 0;
    let starts = tensors.iter().map(|&(_, len)| {
        let start = (end + 1usize).next_multiple_of(64) + shift;
        end = start + len;
        start
    });
    (starts.collect(), end + 3)
}

/// The tensors in one buffer, with NaN in the gaps between them.
fn spread<T: Element>(tensors: &[Tensor], shift: usize, from: &[Vec<T>]) -> Vec<T> {
    let (starts, end) = starts(tensors, shift);
    let mut all = vec![T::from_f64(f64::NAN); end];
    for (start, tensor) in starts.into_iter().zip(from) {
        all[start..start + tensor.len()].copy_from_slice(tensor);
    }
    all
}

impl<'m, W: Element + NoUninit> OnRig<'m, W> {
    pub fn new(rig: &'m Rig, tensors: &[Tensor], initial: &State<W>, options: Options) -> Self {
        let lengths: Vec<usize> = tensors.iter().map(|t| t.1).collect();
        let plan = UpdatePlan::new(&lengths, W::DTYPE, options.multiprocessors);
        let nothing: Vec<Vec<f32>> = tensors.iter().map(|t| vec![f32::NAN; t.1]).collect();
        let mut uploads = Uploads::new(rig);
        let stored = uploads.add(&spread(tensors, options.shifts[4], &initial.stored));
        let mut upload = |i: usize, from| uploads.add(&spread::<f32>(tensors, options.shifts[i], from));
        let addresses = [
            upload(0, &nothing),
            upload(1, &initial.values),
            upload(2, &initial.first),
            upload(3, &initial.second),
            stored,
        ];
        let starts = options.shifts.map(|shift| starts(tensors, shift).0);
        let mut lines = vec![];
        for (i, &(factor, len)) in tensors.iter().enumerate() {
            let at = |kind: usize, size: usize| addresses[kind] + (size * starts[kind][i]) as u64;
            let place = ParameterAddresses {
                factor,
                gradient: at(0, 4),
                value: at(1, 4),
                first_moment: at(2, 4),
                second_moment: at(3, 4),
                stored: if options.stored { at(4, W::DTYPE.size()) } else { 0 },
            };
            lines.extend(plan.lines(&place, len, W::DTYPE));
        }
        Self {
            rig,
            table: uploads.add(lines.as_flattened()),
            state: uploads.add(&state_without_steps()),
            partial: uploads.add(&vec![f64::NAN; plan.chunks]),
            lr_scale: uploads.add(&[f32::NAN]),
            scaled: false,
            plan,
            tensors: tensors.to_vec(),
            options,
            initial: initial.clone(),
            addresses,
            uploads,
        }
    }

    /// Makes the next steps multiply the learning rates by this factor, which the kernel reads from device memory.
    pub fn scale(&mut self, by: f32) {
        self.rig.write(self.lr_scale, &[by]);
        self.scaled = true;
    }

    pub fn set_gradients(&self, gradients: &[Vec<f32>]) {
        self.rig.write(self.addresses[0], &spread(&self.tensors, self.options.shifts[0], gradients));
    }

    /// Restores the initial state, with no steps taken. Leaves the gradients as they are.
    pub fn reset(&self) {
        let Self { rig, tensors, options: Options { shifts, .. }, addresses, initial, .. } = self;
        rig.write(addresses[1], &spread(tensors, shifts[1], &initial.values));
        rig.write(addresses[2], &spread(tensors, shifts[2], &initial.first));
        rig.write(addresses[3], &spread(tensors, shifts[3], &initial.second));
        rig.write(addresses[4], &spread(tensors, shifts[4], &initial.stored));
        rig.write(self.state, &state_without_steps());
    }

    /// Launches one step. Returns the number of steps taken, the kernel's report and the memory counters.
    pub fn step(&self, config: &AdamW) -> Result<(u64, Step, Counters), Failure> {
        let mut params = self.plan.params(config);
        params.chunks = self.table as *const _;
        params.state = self.state as *mut _;
        params.partial = self.partial as *mut _;
        params.lr_scale = if self.scaled { self.lr_scale as *const _ } else { std::ptr::null() };
        let grid = self.options.grid.map_or(self.plan.launch.grid, |x| [x, 1, 1]);
        let call = Call::new(&self.plan.launch.kernel, grid, self.plan.launch.threads, self.plan.launch.shared_bytes);
        let counters = self.rig.launch(&call, &params)?;
        let mut words = [0; STATE_WORDS];
        self.rig.read(self.state, &mut words);
        let (steps, step) = read_state(&words);
        let step = step.ok_or_else(|| Failure::Refused("no launch has left a report".to_owned()))?;
        Ok((steps, step, counters))
    }

    /// Reads the state back. Panics if something outside the tensors was written.
    pub fn read(&self) -> State<W> {
        let read = |kind: usize| self.gather::<f32>(kind);
        State { values: read(1), first: read(2), second: read(3), stored: self.gather::<W>(4) }
    }

    fn gather<T: Element>(&self, kind: usize) -> Vec<Vec<T>> {
        let (starts, end) = starts(&self.tensors, self.options.shifts[kind]);
        let mut all = vec![T::from_f64(0.0); end];
        self.rig.read(self.addresses[kind], &mut all);
        let tensors = self.tensors.iter().zip(starts);
        let found = tensors.map(|(&(_, len), start)| {
            let tensor = all[start..start + len].to_vec();
            all[start..start + len].fill(T::from_f64(f64::NAN));
            tensor
        });
        let found = found.collect();
        assert!(all.iter().all(|v| v.to_f32().is_nan()), "something between the tensors was written");
        found
    }
}
