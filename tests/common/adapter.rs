//! A bottleneck adapter's launch on a rig: uploads buffers, fills in the kernel's parameters from the plan; and the
//! float64 reference.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::abi::{LoraAdapter, LoraFactors, LoraForward, LoraSegment};
use fused_lora::lora::Activation;
use fused_lora::plan::adapter::AdapterProblem;
use fused_lora::plan::lora::ForwardPlan;
use fused_lora::reference::{self, Expected, Matrix64};
use fused_lora::{ComputePath, DType, Element};

use super::decode::{activation_code, aligned};
use super::forward::STEEPEST;
use super::rig::{Call, Failure, Rig, Uploads};
use super::{Buffer, Gaps, Operand, Rng};

/// Shape and options of an adapter, of its input and of the launch.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub tokens: usize,
    pub d: usize,
    pub width: usize,
    pub activation: Activation,
    pub bias: bool,
    pub adds_input: bool,
    pub residual: Added,
    pub gaps: Gaps,
    pub multiprocessors: usize,
    /// The compute capability to plan for, if not the rig's.
    pub compute_capability: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Added {
    None,
    InPlace,
    Apart,
}

/// An adapter with random weights, input and residual.
pub struct RandomAdapter<T> {
    pub shape: Shape,
    pub down: Buffer<T>,
    pub down_bias: Vec<T>,
    pub up: Buffer<T>,
    pub up_bias: Vec<T>,
    pub x: Buffer<T>,
    pub residual: Buffer<T>,
}

impl<T: Element> RandomAdapter<T> {
    pub fn new(rng: &mut Rng, shape: Shape) -> Self {
        let Shape { tokens, d, width, gaps, .. } = shape;
        let mut vector = |len| (0..len).map(|_| T::from_f64(rng.uniform())).collect();
        let (down_bias, up_bias) = (vector(width), vector(d));
        let mut matrix = |operand, rows, cols| Buffer::random_operand(rng, rows, cols, gaps, operand);
        let (down, up) = (matrix(Operand::A, width, d), matrix(Operand::B, d, width));
        let (x, residual) = (matrix(Operand::X, tokens, d), matrix(Operand::Residual, tokens, d));
        Self { shape, down, down_bias, up, up_bias, x, residual }
    }

    /// The reference's y, with the magnitudes that its error bound is proportional to.
    ///
    /// The hidden values h = act(v) have three errors: that of v, γ·(Σ|x||down| + |bias|), times the activation's
    /// largest slope; the activation's own, at most 16u·|v|, since tanh may cancel all of v; and the rounding of h to
    /// the type, u_T·|h|. The product with |up| carries them into y: the first is part of the magnitude, the other two
    /// are added as slack.
    pub fn expected(&self) -> Expected {
        let Shape { width, d, activation, bias, adds_input, residual, .. } = self.shape;
        let add_bias = |matrix: &mut Matrix64, values: &[T], of: &dyn Fn(f64) -> f64| {
            let columns = matrix.cols;
            for (i, value) in matrix.data.iter_mut().enumerate().filter(|_| bias) {
                *value += of(f64::from(values[i % columns].to_f32()));
            }
        };
        let (x, down) = (Matrix64::from_view(self.x.view()), Matrix64::from_view(self.down.view()));
        let up = Matrix64::from_view(self.up.view()).t();
        let (mut before, mut before_magnitude) = (x.matmul(&down.t()), x.abs().matmul(&down.abs().t()));
        add_bias(&mut before, &self.down_bias, &|b| b);
        add_bias(&mut before_magnitude, &self.down_bias, &f64::abs);
        let hidden =
            Matrix64 { data: before.data.iter().map(|&v| reference::activation(activation, v)).collect(), ..before };
        let mut hidden_slack = Matrix64::zeros(x.rows, width);
        for (slack, (h, v)) in hidden_slack.data.iter_mut().zip(hidden.data.iter().zip(&before.data)) {
            let activated =
                if activation == Activation::GeluNew { 16.0 * DType::F32.unit_roundoff() * v.abs() } else { 0.0 };
            *slack = T::DTYPE.unit_roundoff() * h.abs() + T::DTYPE.smallest_step() + activated;
        }
        let steepest = if activation == Activation::GeluNew { STEEPEST } else { 1.0 };
        before_magnitude.data.iter_mut().for_each(|m| *m *= steepest);
        let (mut value, mut magnitude) = (hidden.matmul(&up), before_magnitude.matmul(&up.abs()));
        add_bias(&mut value, &self.up_bias, &|b| b);
        add_bias(&mut magnitude, &self.up_bias, &f64::abs);
        let added = [adds_input.then_some(&self.x), (residual != Added::None).then_some(&self.residual)];
        for added in added.into_iter().flatten() {
            let added = Matrix64::from_view(added.view());
            value.add_at(0, 1.0, &added);
            magnitude.add_at(0, 1.0, &added.abs());
        }
        assert_eq!(value.cols, d);
        Expected { value, magnitude, slack: hidden_slack.matmul(&up.abs()) }
    }

    /// Additions in the longest chain of y: both products, the biases and the residual.
    pub fn steps(&self) -> usize {
        self.shape.d + self.shape.width + 8
    }
}

/// An adapter on a device, to be launched any number of times.
pub struct OnRig<'m, T> {
    rig: &'m Rig,
    pub plan: ForwardPlan,
    params: LoraAdapter,
    uploads: Uploads<'m>,
    y_like: Buffer<T>,
}

impl<'m, T: Element> OnRig<'m, T> {
    pub fn new(rig: &'m Rig, random: &RandomAdapter<T>, path: ComputePath) -> Self {
        let Shape { tokens, d, width, activation, bias, adds_input, gaps, .. } = random.shape;
        let plan = ForwardPlan::adapter(&AdapterProblem {
            tokens,
            d,
            width,
            dtype: T::DTYPE,
            aligned: aligned(&random.x) && aligned(&random.down),
            multiprocessors: random.shape.multiprocessors,
            compute_capability: random.shape.compute_capability.unwrap_or_else(|| rig.compute_capability()),
            path,
        })
        .unwrap();
        let mut uploads = Uploads::new(rig);
        let workspace = uploads.add_workspace(&plan.workspace);
        let segment = LoraSegment {
            factors: LoraFactors {
                a: uploads.place(&random.down) as *const _,
                b: uploads.place(&random.up) as *const _,
                a_stride: random.down.stride as u32,
                b_stride: random.up.stride as u32,
                rank: width as u32,
                scale: 1.0,
            },
            begin: 0,
            end: d as u32,
            t_begin: 0,
            packed_begin: 0,
        };
        let y_like = match random.shape.residual {
            Added::InPlace => Buffer { data: random.residual.data.clone(), ..random.residual },
            Added::None | Added::Apart => Buffer::poisoned_operand(tokens, d, gaps, Operand::Y),
        };
        let y = uploads.place(&y_like);
        let residual = match random.shape.residual {
            Added::None => 0,
            Added::InPlace => y,
            Added::Apart => uploads.place(&random.residual),
        };
        let mut vector =
            |values: &[T]| if bias { uploads.add_behind(gaps.before_first(Operand::Bias), values) } else { 0 };
        let biases = [vector(&random.down_bias), vector(&random.up_bias)];
        let forward = LoraForward {
            x: uploads.place(&random.x) as *const _,
            bias: biases[1] as *const _,
            residual: residual as *const _,
            y: y as *mut _,
            tokens: tokens as u32,
            depth: d as u32,
            columns: d as u32,
            x_stride: random.x.stride as u32,
            y_stride: y_like.stride as u32,
            residual_stride: random.residual.stride as u32,
            ..plan.params(&[segment], workspace, &plan.workspace)
        };
        let params = LoraAdapter {
            forward,
            hidden_bias: biases[0] as *const _,
            hidden_activation: activation_code(activation),
            adds_input: adds_input.into(),
        };
        Self { rig, plan, params, uploads, y_like }
    }

    /// Fills the outputs with NaN, launches, and returns y.
    pub fn run(&self) -> Result<Buffer<T>, Failure> {
        let mut y = Buffer { data: self.y_like.data.clone(), ..self.y_like };
        self.rig.write(self.params.forward.y as u64, &y.data);
        // A kernel that reads hidden values of the previous launch gets NaN.
        self.rig.write(self.params.forward.t as u64, &vec![0xffu8; self.plan.workspace.t_bytes]);
        let call = Call::new(
            &self.plan.launch.kernel,
            self.plan.launch.grid,
            self.plan.launch.threads,
            self.plan.launch.shared_bytes,
        );
        self.rig.launch(&call, &self.params)?;
        self.rig.read(self.params.forward.y as u64, &mut y.data);
        Ok(y)
    }
}
