//! A layer's forward launch: uploads buffers and fills in the kernel's parameters from the plan.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::abi::{LoraForward, LoraForwardTma, TensorMap};
use fused_lora::device::Tensor;
use fused_lora::dropout::Dropout;
use fused_lora::lora::Activation;
use fused_lora::plan::lora::{ForwardPlan, Product};
use fused_lora::reference::{self, Expected};
use fused_lora::{Element, LayerProblem};
use fused_lora_emulator::Counters;

use super::decode::{Options, activation_code, aligned, segment_table};
use super::rig::{Call, Failure, Rig, Uploads};
use super::{Buffer, Operand, RandomLayer};

/// The largest slope of all activations: GELU's 1.129, rounded up.
pub const STEEPEST: f64 = 1.13;

/// The reference's result of a layer whose T is rounded to the operands' type.
pub fn expected<T: Element>(
    random: &RandomLayer<T>,
    x: &Buffer<T>,
    activation: Activation,
    added: Option<&Buffer<T>>,
    dropout: Option<&Dropout>,
) -> Expected {
    let segments = random.segments();
    let expected = reference::forward_through(&random.layer(&segments), x.view(), dropout, T::DTYPE);
    on_the_way_out(expected, random, activation, added)
}

/// The same with a fused shrink, whose T is a sum of parts over this many values of k, each rounded.
pub fn expected_in_parts<T: Element>(
    random: &RandomLayer<T>,
    x: &Buffer<T>,
    activation: Activation,
    added: Option<&Buffer<T>>,
    split_depth: u32,
) -> Expected {
    let segments = random.segments();
    let expected = reference::forward_in_parts(&random.layer(&segments), x.view(), T::DTYPE, split_depth as usize);
    on_the_way_out(expected, random, activation, added)
}

/// The same with the operands of every product rounded to TF32.
pub fn expected_in_tf32<T: Element>(
    random: &RandomLayer<T>,
    x: &Buffer<T>,
    activation: Activation,
    added: Option<&Buffer<T>>,
    dropout: Option<&Dropout>,
) -> Expected {
    let segments = random.segments();
    let mut expected = reference::forward_in_tf32(&random.layer(&segments), x.view(), dropout);
    if activation == Activation::GeluNew {
        expected.slack.data.iter_mut().for_each(|slack| *slack *= STEEPEST);
    }
    on_the_way_out(expected, random, activation, added)
}

/// Applies the activation and adds the residual to a layer's expected output.
pub fn on_the_way_out<T: Element>(
    mut expected: Expected,
    random: &RandomLayer<T>,
    activation: Activation,
    added: Option<&Buffer<T>>,
) -> Expected {
    for (i, value) in expected.value.data.iter_mut().enumerate() {
        *value = reference::activation(activation, *value);
        if let Some(added) = added {
            let (row, column) = (i / random.shape.d_out, i % random.shape.d_out);
            let addend = f64::from(added.view().row(row)[column].to_f32());
            *value += addend;
            expected.magnitude.data[i] += addend.abs();
        }
    }
    expected
}

/// The ranks of the segments that the launch is planned for.
fn ranks<T>(random: &RandomLayer<T>, options: &Options<'_, T>) -> Vec<usize> {
    if options.base_only {
        vec![]
    } else {
        random.shape.segments.iter().map(|s| s.2 + options.slot.unwrap_or(0)).collect()
    }
}

fn problem<'a, T: Element>(
    rig: &Rig,
    random: &RandomLayer<T>,
    options: &Options<'_, T>,
    ranks: &'a [usize],
    aligned: bool,
) -> LayerProblem<'a> {
    let shape = &random.shape;
    LayerProblem {
        tokens: shape.tokens,
        d_in: shape.d_in,
        d_out: shape.d_out,
        layout: shape.layout,
        dtype: T::DTYPE,
        ranks,
        aligned,
        multiprocessors: options.multiprocessors,
        compute_capability: options.compute_capability.unwrap_or_else(|| rig.compute_capability()),
        path: options.path,
    }
}

/// A layer on a device that can be launched any number of times.
pub struct Forward<'m, T> {
    rig: &'m Rig,
    pub plan: ForwardPlan,
    params: LoraForward,
    tma: Option<LoraForwardTma>,
    uploads: Uploads<'m>,
    y_like: Buffer<T>,
    t_like: Buffer<T>,
}

/// The outputs of a launch.
pub struct Outputs<T> {
    pub y: Buffer<T>,
    /// T of all segments, side by side.
    pub t: Buffer<T>,
    pub counters: Counters,
}

impl<'m, T: Element> Forward<'m, T> {
    pub fn new(rig: &'m Rig, random: &RandomLayer<T>, x: &Buffer<T>, options: &Options<'_, T>) -> Self {
        let shape = &random.shape;
        let factors_aligned = options.base_only || random.factors.iter().all(|(a, ..)| aligned(a));
        let ranks = ranks(random, options);
        let problem = problem(rig, random, options, &ranks, aligned(x) && aligned(&random.weight) && factors_aligned);
        let plan = if options.serving { ForwardPlan::serving(&problem) } else { ForwardPlan::new(&problem) }.unwrap();
        let y = shape.poisoned(Operand::Y, shape.tokens, shape.d_out);
        Self::with_plan(rig, plan, random, x, y, options)
    }

    /// The launch of dx: `x` is dy, and a value to add to is already in dx's buffer.
    pub fn input_gradient(
        rig: &'m Rig,
        random: &RandomLayer<T>,
        dy: &Buffer<T>,
        options: &Options<'_, T>,
        wants_dx: bool,
    ) -> Self {
        let shape = &random.shape;
        let ranks = ranks(random, options);
        let problem = problem(rig, random, options, &ranks, aligned(dy) && aligned(&random.weight));
        let plan = ForwardPlan::input_gradient(&problem, wants_dx).unwrap();
        let dx = match options.residual {
            Some(old) => Buffer { data: old.data.clone(), ..*old },
            None => shape.poisoned(Operand::Y, shape.tokens, shape.d_in),
        };
        Self::with_plan(rig, plan, random, dy, dx, options)
    }

    fn with_plan(
        rig: &'m Rig,
        plan: ForwardPlan,
        random: &RandomLayer<T>,
        x: &Buffer<T>,
        y_like: Buffer<T>,
        options: &Options<'_, T>,
    ) -> Self {
        let shape = &random.shape;
        let is_forward = plan.product == Product::Output;
        let segments: &[(usize, usize, usize)] = if options.base_only { &[] } else { &shape.segments };
        let factors = &random.factors[..segments.len()];
        let mut uploads = Uploads::new(rig);
        let table = segment_table(segments, factors, options.slot, &mut uploads);
        let workspace = uploads.add_workspace(&plan.workspace);
        let t_like = shape.poisoned::<T>(Operand::T, shape.tokens, table.total_rank as usize);
        let y = uploads.place(&y_like);
        let residual = match options.residual {
            None => 0,
            Some(residual) if is_forward => uploads.place(residual),
            Some(_) => y,
        };
        let has_bias = shape.bias && is_forward;
        let params = LoraForward {
            x: uploads.place(x) as *const _,
            weight: uploads.place(&random.weight) as *const _,
            bias: if has_bias {
                uploads.add_behind(shape.gaps.before_first(Operand::Bias), &random.bias) as *const _
            } else {
                std::ptr::null()
            },
            residual: residual as *const _,
            y: y as *mut _,
            t_out: if options.t_out { uploads.place(&t_like) as *mut _ } else { std::ptr::null_mut() },
            tokens: shape.tokens as u32,
            depth: x.cols as u32,
            columns: y_like.cols as u32,
            x_stride: x.stride as u32,
            weight_stride: random.weight.stride as u32,
            y_stride: y_like.stride as u32,
            residual_stride: options.residual.map_or(0, |r| r.stride as u32),
            t_out_stride: t_like.stride as u32,
            activation: activation_code(options.activation),
            slot: table.slot as *const _,
            slot_begin: table.slot_begin,
            ..plan.params(&table.segments[..segments.len()], workspace, &plan.workspace)
        };
        let dropout = options.dropout.map_or(params.dropout, |dropout| dropout.params(0));
        let params = LoraForward { dropout, ..params };
        let tma = plan.tensor_maps.then(|| {
            let map = |address: *const _, rows, cols, stride, boxes| {
                let tensor = Tensor {
                    address: address as u64,
                    element_bytes: 2,
                    dims: &[cols as u64, rows as u64],
                    strides: &[2 * stride as u64],
                    boxes,
                    swizzle_128: true,
                };
                rig.tensor_map(&tensor).unwrap()
            };
            let weight = &random.weight;
            let [x_box, weight_box, y_box] = plan.boxes(shape.layout);
            let y_mapped = y_like.stride.is_multiple_of(8) && y_like.shift == 0;
            LoraForwardTma {
                x: map(params.x, x.rows, x.cols, x.stride, &x_box),
                weight: map(params.weight, weight.rows, weight.cols, weight.stride, &weight_box),
                y: if y_mapped {
                    map(params.y.cast_const(), y_like.rows, y_like.cols, y_like.stride, &y_box)
                } else {
                    TensorMap { opaque: [0; 16] }
                },
                forward: params,
                y_mapped: y_mapped.into(),
                reserved: [0; 7],
            }
        });
        Self { rig, plan, params, tma, uploads, y_like, t_like }
    }

    /// T as the last launch left it in the workspace: s·T, each segment's rank rounded up to whole steps.
    pub fn workspace_t(&self) -> Buffer<T> {
        let mut t = Buffer::poisoned(self.y_like.rows, self.plan.t_stride as usize, 0);
        if !t.data.is_empty() {
            self.rig.read(self.params.t as u64, &mut t.data);
        }
        t
    }

    /// Clears the flags of T: what they are where launches of other plans used the workspace until now.
    pub fn clear_flags(&self) {
        if !self.params.flags.is_null() {
            self.rig.write(self.params.flags as u64, &vec![0u32; self.plan.workspace.flags]);
        }
    }

    /// Fills the outputs with NaN, launches, and returns the outputs.
    pub fn run(&self) -> Result<Outputs<T>, Failure> {
        let poisoned = |like: &Buffer<T>| Buffer { data: like.data.clone(), ..*like };
        let (mut y, mut t) = (poisoned(&self.y_like), poisoned(&self.t_like));
        self.rig.write(self.params.y as u64, &y.data);
        // A kernel that reads T of the previous launch gets NaN.
        self.rig.write(self.params.t as u64, &vec![0xffu8; self.plan.workspace.t_bytes]);
        if !self.params.t_out.is_null() {
            self.rig.write(self.params.t_out as u64, &t.data);
        }
        let call = Call::new(
            &self.plan.launch.kernel,
            self.plan.launch.grid,
            self.plan.launch.threads,
            self.plan.launch.shared_bytes,
        );
        let call = Call { cluster: self.plan.launch.cluster, ..call };
        let counters = match &self.tma {
            Some(params) => self.rig.launch(&call, params)?,
            None => self.rig.launch(&call, &self.params)?,
        };
        self.rig.read(self.params.y as u64, &mut y.data);
        if !self.params.t_out.is_null() {
            self.rig.read(self.params.t_out as u64, &mut t.data);
        }
        Ok(Outputs { y, t, counters })
    }
}
