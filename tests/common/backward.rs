//! A layer's forward and backward pass through the safe API of the device module, and the float64 reference.

use fused_lora::device::{
    Backward, BackwardInput, BackwardOptions, BackwardOutput, DeviceBuffer, DeviceDropout, DeviceInput,
    DeviceMatrixMut, DeviceOutput, FactorGradient, Forward, ForwardOptions, Stream, Workspace,
};
use fused_lora::dropout::Dropout;
use fused_lora::lora::Accumulate;
use fused_lora::lora::Activation;
use fused_lora::reference::{self, Expected, Matrix64};
use fused_lora::{Element, Result};

use super::device::{Matrix, OnDevice};
use super::{Buffer, Operand, RandomLayer, Rng};

/// What a pass has to compute, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    pub dropout: Option<Dropout>,
    pub options: BackwardOptions,
    /// The number of backward passes; from the second one on they add to the gradients.
    pub times: usize,
}

/// The results of a pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Given<T> {
    pub y: Vec<T>,
    /// Empty if dx was not asked for. The same holds for the bias's gradient.
    pub dx: Vec<T>,
    /// dA and dB of every segment, in row-major order.
    pub factors: Vec<[Vec<f32>; 2]>,
    pub bias: Vec<f32>,
    pub launches: usize,
}

/// Buffers for the gradients, in device memory.
struct Places {
    factors: Vec<[DeviceBuffer<f32>; 2]>,
    shapes: Vec<[[usize; 2]; 2]>,
}

impl Places {
    fn new<T>(stream: &Stream, random: &RandomLayer<T>) -> Result<Self> {
        let shape = &random.shape;
        let shapes: Vec<_> =
            shape.segments.iter().map(|&(start, end, rank)| [[rank, shape.d_in], [end - start, rank]]).collect();
        let poisoned = |[rows, cols]: [usize; 2]| DeviceBuffer::from_slice(stream, &vec![f32::NAN; rows * cols]);
        let factors = shapes.iter().map(|&[a, b]| Ok([poisoned(a)?, poisoned(b)?])).collect::<Result<_>>()?;
        Ok(Self { factors, shapes })
    }

    fn views(&mut self) -> Vec<FactorGradient<'_>> {
        let view = |buffer, [rows, cols]: [usize; 2]| DeviceMatrixMut::new(buffer, rows, cols).unwrap();
        let pairs = self.factors.iter_mut().zip(&self.shapes);
        pairs
            .map(|([da, db], &[a, b])| FactorGradient {
                da: view(da.as_mut_slice(), a),
                db: view(db.as_mut_slice(), b),
            })
            .collect()
    }
}

/// Runs a forward pass, then as many backward passes as asked for, with one workspace.
pub fn run<T: Element>(
    stream: &Stream,
    random: &RandomLayer<T>,
    x: &Buffer<T>,
    dy: &Buffer<T>,
    asked: &Asked,
) -> Result<Given<T>> {
    let shape = &random.shape;
    let (tokens, rank) = (shape.tokens, shape.segments.iter().map(|s| s.2).sum::<usize>());
    let poisoned = |n: usize| DeviceBuffer::from_slice(stream, &vec![T::from_f64(f64::NAN); n]);
    let (mut t, mut dx) = (poisoned(tokens * rank)?, poisoned(tokens * shape.d_in)?);
    let mut bias = DeviceBuffer::from_slice(stream, &vec![f32::NAN; shape.d_out])?;
    let (mut places, dy) = (Places::new(stream, random)?, Matrix::new(stream, dy));
    let mut on_device = OnDevice::new(stream, random, x, Activation::Identity, None);
    let dropout = asked.dropout.map(DeviceDropout::from);
    let launches = on_device.with(|layer, x, y| {
        let path = asked.options.path;
        let options = ForwardOptions { training: true, path, unaligned_x: asked.options.unaligned_dy };
        let forward = Forward::with_options(stream.device(), layer, tokens, options)?;
        let backward = Backward::with_options(stream.device(), layer, tokens, asked.options)?;
        let mut workspace = Workspace::new(stream, forward.workspace().union(&backward.workspace()))?;
        let output = DeviceOutput { t: Some(DeviceMatrixMut::new(t.as_mut_slice(), tokens, rank)?), ..y };
        forward.launch(stream, layer, DeviceInput { x, dropout, slot: None }, output, &mut workspace)?;
        let t = DeviceMatrixMut::new(t.as_mut_slice(), tokens, rank)?;
        let input = BackwardInput { x, dy: dy.view(), t: t.as_ref(), dropout };
        for time in 0..asked.times.max(1) {
            let accumulate = if time == 0 { Accumulate::Overwrite } else { Accumulate::Add };
            let dx = DeviceMatrixMut::new(dx.as_mut_slice(), tokens, shape.d_in)?;
            let mut output = BackwardOutput {
                dx: asked.options.dx.then_some(dx),
                dx_accumulate: accumulate,
                factors: &mut places.views(),
                bias: asked.options.bias.then_some(bias.as_mut_slice()),
                accumulate,
            };
            backward.launch(stream, layer, &input, &mut output, &mut workspace)?;
        }
        Ok::<_, fused_lora::Error>(backward.plan().launches())
    })?;
    let factors = places.factors.iter().map(|[da, db]| Ok([da.to_vec(stream)?, db.to_vec(stream)?]));
    Ok(Given {
        y: on_device.y(stream).data,
        dx: if asked.options.dx { dx.to_vec(stream)? } else { vec![] },
        factors: factors.collect::<Result<_>>()?,
        bias: if asked.options.bias { bias.to_vec(stream)? } else { vec![] },
        launches,
    })
}

/// A random layer, its input x and the output's gradient dy.
pub fn random<T: Element>(seed: u64, shape: &super::Shape) -> (RandomLayer<T>, Buffer<T>, Buffer<T>) {
    let mut rng = Rng(seed);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let x = shape.random(&mut rng, Operand::X, shape.tokens, shape.d_in);
    let dy = shape.random(&mut rng, Operand::Dy, shape.tokens, shape.d_out);
    (random, x, dy)
}

/// dA and dB of every segment in float64, with the error that rounding T and Q to the operands' type may add.
pub fn factors<T: Element>(
    random: &RandomLayer<T>,
    x: &Buffer<T>,
    dy: &Buffer<T>,
    dropout: Option<&Dropout>,
) -> Vec<[(Matrix64, Matrix64); 2]> {
    let x = reference::drop_out(&Matrix64::from_view(x.view()), dropout);
    let dy = Matrix64::from_view(dy.view());
    let pairs = random.shape.segments.iter().zip(&random.factors);
    let of = pairs.map(|(&(start, end, _), (a, b, scale))| {
        let evaluate = |f: &dyn Fn(&Matrix64) -> Matrix64, scale: f64| {
            let (a, b) = (f(&Matrix64::from_view(a.view())), f(&Matrix64::from_view(b.view())));
            let (x, dy) = (f(&x), f(&dy.columns(start..end)));
            let scaled = |m: Matrix64| {
                let mut scaled = Matrix64::zeros(m.rows, m.cols);
                scaled.add_at(0, scale, &m);
                scaled
            };
            [scaled(dy.matmul(&b).t().matmul(&x)), scaled(dy.t().matmul(&x.matmul(&a.t())))]
        };
        let ([da, db], [da_size, db_size]) =
            (evaluate(&Matrix64::clone, (*scale).into()), evaluate(&Matrix64::abs, scale.abs().into()));
        [(da, da_size), (db, db_size)]
    });
    of.collect()
}

/// The reference's dx in float64.
pub fn input<T: Element>(random: &RandomLayer<T>, dy: &Buffer<T>, dropout: Option<&Dropout>) -> Expected {
    let segments = random.segments();
    reference::input_gradient_through(&random.layer(&segments), dy.view(), dropout, T::DTYPE)
}
