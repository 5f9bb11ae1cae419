//! The reference implementation, in float64: plain loops, written to be obviously right. Tests compare every element of
//! every backend's results with it.

use crate::dropout::Dropout;
use crate::dtype::{DType, Element};
use crate::lora::{Activation, Layout, LoraLinear};
use crate::matrix::MatrixRef;
use crate::optim::{AdamW, Factor};

/// A dense row-major float64 matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix64 {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// The `rows * cols` elements, row by row.
    pub data: Vec<f64>,
}

impl Matrix64 {
    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// A copy of a view, widened to float64.
    pub fn from_view<T: Element>(m: MatrixRef<'_, T>) -> Self {
        let data = (0..m.rows()).flat_map(|i| m.row(i)).map(|v| f64::from(v.to_f32())).collect();
        Self { rows: m.rows(), cols: m.cols(), data }
    }

    /// Element `[i, j]`.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.data[i * self.cols + j]
    }

    /// The transposed matrix.
    pub fn t(&self) -> Self {
        let mut out = Self::zeros(self.cols, self.rows);
        for i in 0..self.rows {
            for j in 0..self.cols {
                out.data[j * self.rows + i] = self.at(i, j);
            }
        }
        out
    }

    /// Every element's absolute value.
    pub fn abs(&self) -> Self {
        Self { data: self.data.iter().map(|v| v.abs()).collect(), ..*self }
    }

    /// The matrix product. Panics if the inner dimensions differ.
    pub fn matmul(&self, rhs: &Self) -> Self {
        assert_eq!(self.cols, rhs.rows);
        let mut out = Self::zeros(self.rows, rhs.cols);
        for i in 0..self.rows {
            for k in 0..self.cols {
                for j in 0..rhs.cols {
                    out.data[i * rhs.cols + j] += self.at(i, k) * rhs.at(k, j);
                }
            }
        }
        out
    }

    /// Columns `range`.
    pub fn columns(&self, range: std::ops::Range<usize>) -> Self {
        let data = (0..self.rows).flat_map(|i| range.clone().map(move |j| self.at(i, j))).collect();
        Self { rows: self.rows, cols: range.len(), data }
    }

    /// `self[:, start..] += factor · other`.
    pub fn add_at(&mut self, start: usize, factor: f64, other: &Self) {
        for i in 0..other.rows {
            for j in 0..other.cols {
                self.data[i * self.cols + start + j] += factor * other.at(i, j);
            }
        }
    }
}

/// A result and, for each element, the sum of the magnitudes of its terms. Rounding errors are proportional to that
/// sum.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The result, exact up to float64 rounding.
    pub value: Matrix64,
    /// For each element Σ|x||w| + |bias| + |s|·Σ(Σ|x||a|)|b|.
    pub magnitude: Matrix64,
    /// For each element the error that is allowed in addition: for the rounding of T in [`forward_through`], for the
    /// rounding of all operands in [`forward_in_tf32`]. Zeros if no intermediate value is rounded.
    pub slack: Matrix64,
}

impl Expected {
    fn new(value: Matrix64, magnitude: Matrix64) -> Self {
        let slack = Matrix64::zeros(value.rows, value.cols);
        Self { value, magnitude, slack }
    }

    /// The largest error allowed for element `index` of a result stored as `stored` after `steps` additions in `f32`:
    /// `u_out·|ref| + smallest step + c·(γ·Σ|·||·| + slack)`, with γ = steps·u / (1 − steps·u) and c = 2 for the
    /// low-rank term's two roundings.
    pub fn bound(&self, index: usize, stored: DType, steps: usize) -> f64 {
        const C: f64 = 2.0;
        let u = steps as f64 * DType::F32.unit_roundoff();
        let gamma = u / (1.0 - u);
        stored.unit_roundoff() * self.value.data[index].abs()
            + stored.smallest_step()
            + C * gamma * self.magnitude.data[index]
            + C * self.slack.data[index]
    }

    /// Asserts that every element of `got` is within its bound. A NaN always fails.
    pub fn assert_close<T: Element>(&self, got: MatrixRef<'_, T>, steps: usize, what: &str) {
        assert_eq!((got.rows(), got.cols()), (self.value.rows, self.value.cols), "{what}: shape");
        for i in 0..got.rows() {
            for (j, got) in got.row(i).iter().enumerate() {
                let index = i * self.value.cols + j;
                let (got, expected) = (f64::from(got.to_f32()), self.value.data[index]);
                let (error, bound) = ((got - expected).abs(), self.bound(index, T::DTYPE, steps));
                assert!(
                    error <= bound,
                    "{what}: [{i}, {j}] is {got}, expected {expected}: off by {error:e} > {bound:e}"
                );
            }
        }
    }
}

/// The activation's value at `x`.
pub fn activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::GeluNew => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}

/// The activation's derivative at `x`.
pub fn activation_derivative(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => 1.0,
        Activation::Relu => f64::from(x > 0.0),
        Activation::GeluNew => {
            let k = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (k * (x + 0.044715 * x.powi(3))).tanh();
            0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * k * (1.0 + 3.0 * 0.044715 * x * x)
        }
    }
}

/// The weight as `[d_in, d_out]`.
pub fn weight_in_out<W: Element>(layer: &LoraLinear<'_, W>) -> Matrix64 {
    let stored = Matrix64::from_view(layer.weight.matrix);
    match layer.weight.layout {
        Layout::InOut => stored,
        Layout::OutIn => stored.t(),
    }
}

/// x̂: x with dropped elements set to 0 and kept elements divided by 1 − p. The low-rank term of dx is masked in the
/// same way.
pub fn drop_out(x: &Matrix64, dropout: Option<&Dropout>) -> Matrix64 {
    let Some(dropout) = dropout else { return x.clone() };
    let value = |i| if dropout.keeps(i / x.cols, i % x.cols) { x.data[i] / (1.0 - dropout.p()) } else { 0.0 };
    Matrix64 { data: (0..x.data.len()).map(value).collect(), ..*x }
}

/// `y = x W0ᵀ + bias + s·(x Aᵀ) Bᵀ`.
pub fn forward<W: Element, X: Element>(layer: &LoraLinear<'_, W>, x: MatrixRef<'_, X>) -> Expected {
    forward_dropped(layer, x, None)
}

/// [`forward`] with dropout: `y = x W0ᵀ + bias + s·(x̂ Aᵀ) Bᵀ`.
pub fn forward_dropped<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    dropout: Option<&Dropout>,
) -> Expected {
    // Evaluated twice: with identities it is the result, with absolute values the magnitude.
    let evaluate = |f: &dyn Fn(Matrix64) -> Matrix64, s: &dyn Fn(f64) -> f64| {
        let x = f(Matrix64::from_view(x));
        let x_hat = drop_out(&x, dropout);
        let mut y = x.matmul(&f(weight_in_out(layer)));
        if let Some(bias) = layer.bias {
            for i in 0..y.rows {
                for (j, b) in bias.iter().enumerate() {
                    y.data[i * y.cols + j] += s(f64::from(b.to_f32()));
                }
            }
        }
        for segment in layer.segments {
            let t = x_hat.matmul(&f(Matrix64::from_view(segment.a)).t());
            let update = t.matmul(&f(Matrix64::from_view(segment.b)).t());
            y.add_at(segment.columns.start, s(f64::from(segment.scale)), &update);
        }
        y
    };
    Expected::new(evaluate(&|m| m, &|v| v), evaluate(&|m| m.abs(), &f64::abs))
}

/// [`forward_dropped`] with s·T rounded to `dtype` before the product with B. For that rounding each element may be off
/// by a further Σ(u·|s·T| + smallest step)·|B|.
pub fn forward_through<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    dropout: Option<&Dropout>,
    dtype: DType,
) -> Expected {
    let mut expected = forward_dropped(layer, x, dropout);
    let x_hat = drop_out(&Matrix64::from_view(x), dropout);
    for segment in layer.segments {
        let mut rounding = x_hat.matmul(&Matrix64::from_view(segment.a).t()).abs();
        let u = dtype.unit_roundoff() * f64::from(segment.scale).abs();
        rounding.data.iter_mut().for_each(|t| *t = u * *t + dtype.smallest_step());
        let slack = rounding.matmul(&Matrix64::from_view(segment.b).abs().t());
        expected.slack.add_at(segment.columns.start, 1.0, &slack);
    }
    expected
}

/// [`forward_through`] without dropout and with split-K: T is the sum of its splits, each over `split_depth` values of
/// K, and s times each split is rounded to `dtype` on its own.
pub fn forward_in_parts<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    dtype: DType,
    split_depth: usize,
) -> Expected {
    let mut expected = forward(layer, x);
    for segment in layer.segments {
        let u = dtype.unit_roundoff() * f64::from(segment.scale).abs();
        let b = Matrix64::from_view(segment.b).abs().t();
        for begin in (0..x.cols()).step_by(split_depth) {
            let split = begin..(begin + split_depth).min(x.cols());
            let [x, a] = [Matrix64::from_view(x.columns(split.clone())), Matrix64::from_view(segment.a.columns(split))];
            let mut rounding = x.matmul(&a.t()).abs();
            rounding.data.iter_mut().for_each(|t| *t = u * *t + dtype.smallest_step());
            expected.slack.add_at(segment.columns.start, 1.0, &rounding.matmul(&b));
        }
    }
    expected
}

/// The unit roundoff of TF32: half the distance from 1 to the next larger number of 10 fraction bits.
pub const TF32_ROUNDOFF: f64 = 1.0 / (1u64 << 11) as f64;

/// [`forward_dropped`] with the operands of every product (x, W0, A, s·T and B) rounded to TF32. For these roundings
/// each element may be off by a further `2u·(Σ|x||w| + |s|·Σ(Σ|x̂||a|)|b| + Σ|s·T||b|)` with u = 2⁻¹¹, and by 4u times
/// that for second-order errors.
pub fn forward_in_tf32<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    dropout: Option<&Dropout>,
) -> Expected {
    // s·T is stored as f32 before it is rounded.
    let mut expected = forward_through(layer, x, dropout, DType::F32);
    let x = Matrix64::from_view(x);
    let x_hat = drop_out(&x, dropout);
    // `Expected::bound` doubles the slack, which allows for both operands of a product.
    let u = TF32_ROUNDOFF * (1.0 + 4.0 * TF32_ROUNDOFF);
    expected.slack.add_at(0, u, &x.abs().matmul(&weight_in_out(layer).abs()));
    for segment in layer.segments {
        let (a, b) = (Matrix64::from_view(segment.a), Matrix64::from_view(segment.b));
        let mut t = x_hat.matmul(&a.t()).abs();
        t.add_at(0, 1.0, &x_hat.abs().matmul(&a.abs().t()));
        expected.slack.add_at(segment.columns.start, u * f64::from(segment.scale).abs(), &t.matmul(&b.abs().t()));
    }
    expected
}

/// T = x·Aᵀ.
pub fn low_rank_input<W: Element, X: Element>(a: MatrixRef<'_, W>, x: MatrixRef<'_, X>) -> Matrix64 {
    Matrix64::from_view(x).matmul(&Matrix64::from_view(a).t())
}

/// The gradients of one layer.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// dx, `[tokens, d_in]`.
    pub dx: Expected,
    /// dA of every segment, `[rank, d_in]` each.
    pub da: Vec<Expected>,
    /// dB of every segment, `[columns.len(), rank]` each.
    pub db: Vec<Expected>,
}

/// `dx = dy·W0 + s·(dy·B)·A`, `dA = s·(dy·B)ᵀ·x`, `dB = s·dyᵀ·(x·Aᵀ)`.
pub fn backward<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    dy: MatrixRef<'_, X>,
) -> Gradients {
    backward_dropped(layer, x, dy, None)
}

/// [`backward`] with dropout: x̂ replaces x in dA and dB, and `dx = dy·W0 + M ⊙ s·(dy·B)·A`. M is dropout's mask of x,
/// divided by 1 − p.
pub fn backward_dropped<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    dy: MatrixRef<'_, X>,
    dropout: Option<&Dropout>,
) -> Gradients {
    /// dx, and dA and dB of every segment.
    type Results = (Matrix64, Vec<Matrix64>, Vec<Matrix64>);
    let evaluate = |f: &dyn Fn(Matrix64) -> Matrix64, s: &dyn Fn(f64) -> f64| -> Results {
        let (x, dy) = (f(drop_out(&Matrix64::from_view(x), dropout)), f(Matrix64::from_view(dy)));
        let mut dx = dy.matmul(&f(weight_in_out(layer)).t());
        let (mut das, mut dbs) = (vec![], vec![]);
        for segment in layer.segments {
            let (a, b) = (f(Matrix64::from_view(segment.a)), f(Matrix64::from_view(segment.b)));
            let scale = s(f64::from(segment.scale));
            let dy = dy.columns(segment.columns.clone());
            let q = dy.matmul(&b);
            dx.add_at(0, scale, &drop_out(&q.matmul(&a), dropout));
            let mut da = Matrix64::zeros(a.rows, a.cols);
            da.add_at(0, scale, &q.t().matmul(&x));
            let mut db = Matrix64::zeros(b.rows, b.cols);
            db.add_at(0, scale, &dy.t().matmul(&x.matmul(&a.t())));
            das.push(da);
            dbs.push(db);
        }
        (dx, das, dbs)
    };
    let (value, magnitude) = (evaluate(&|m| m, &|v| v), evaluate(&|m| m.abs(), &f64::abs));
    let result = |(value, magnitude)| Expected::new(value, magnitude);
    Gradients {
        dx: result((value.0, magnitude.0)),
        da: value.1.into_iter().zip(magnitude.1).map(result).collect(),
        db: value.2.into_iter().zip(magnitude.2).map(result).collect(),
    }
}

/// `dx = dy·W0 + M ⊙ Σ Q·A` with Q = s·dy·B rounded to `dtype` before the product with A. For that rounding each
/// element may be off by a further M·Σ(u·|Q| + smallest step)·|A|. M is dropout's mask of x, divided by 1 − p.
pub fn input_gradient_through<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    dy: MatrixRef<'_, X>,
    dropout: Option<&Dropout>,
    dtype: DType,
) -> Expected {
    let evaluate = |f: &dyn Fn(Matrix64) -> Matrix64, s: &dyn Fn(f64) -> f64| {
        let dy = f(Matrix64::from_view(dy));
        let mut dx = dy.matmul(&f(weight_in_out(layer)).t());
        for segment in layer.segments {
            let q = dy.columns(segment.columns.clone()).matmul(&f(Matrix64::from_view(segment.b)));
            let update = drop_out(&q.matmul(&f(Matrix64::from_view(segment.a))), dropout);
            dx.add_at(0, s(f64::from(segment.scale)), &update);
        }
        dx
    };
    let mut expected = Expected::new(evaluate(&|m| m, &|v| v), evaluate(&|m| m.abs(), &f64::abs));
    for segment in layer.segments {
        let dy = Matrix64::from_view(dy).columns(segment.columns.clone());
        let mut rounding = dy.matmul(&Matrix64::from_view(segment.b)).abs();
        let u = dtype.unit_roundoff() * f64::from(segment.scale).abs();
        rounding.data.iter_mut().for_each(|q| *q = u * *q + dtype.smallest_step());
        expected.slack.add_at(0, 1.0, &drop_out(&rounding.matmul(&Matrix64::from_view(segment.a).abs()), dropout));
    }
    expected
}

/// `W0 + s·B·A` of every segment, in the weight's own layout.
pub fn merged_weight<W: Element>(layer: &LoraLinear<'_, W>) -> Matrix64 {
    let mut merged = weight_in_out(layer);
    for segment in layer.segments {
        let (a, b) = (Matrix64::from_view(segment.a), Matrix64::from_view(segment.b));
        merged.add_at(segment.columns.start, f64::from(segment.scale), &a.t().matmul(&b.t()));
    }
    match layer.weight.layout {
        Layout::InOut => merged,
        Layout::OutIn => merged.t(),
    }
}

/// A parameter and its moments. The three vectors have the same length.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW64 {
    /// Whether the parameter is A or B, which decides the learning rate.
    pub factor: Factor,
    /// The parameter p.
    pub value: Vec<f64>,
    /// The first moment m.
    pub first_moment: Vec<f64>,
    /// The second moment v.
    pub second_moment: Vec<f64>,
}

/// One step of AdamW on every parameter, number `step`, counted from 1: the norm of all gradients, clipping, weight
/// decay, moments, update. Returns the norm before clipping.
pub fn adamw(config: &AdamW, step: i32, parameters: &mut [AdamW64], gradients: &[Vec<f64>]) -> f64 {
    let norm = gradients.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    let clip = config.max_norm.map_or(1.0, |max| f64::min(1.0, max / (norm + 1e-6)));
    let (beta1, beta2) = config.betas;
    for (p, gradient) in parameters.iter_mut().zip(gradients) {
        let lr = if p.factor == Factor::B { config.lr * config.lora_plus_ratio } else { config.lr };
        for (i, g) in gradient.iter().enumerate() {
            let g = clip * g;
            p.value[i] -= lr * config.weight_decay * p.value[i];
            p.first_moment[i] = beta1 * p.first_moment[i] + (1.0 - beta1) * g;
            p.second_moment[i] = beta2 * p.second_moment[i] + (1.0 - beta2) * g * g;
            let m = p.first_moment[i] / (1.0 - beta1.powi(step));
            let v = p.second_moment[i] / (1.0 - beta2.powi(step));
            p.value[i] -= lr * m / (v.sqrt() + config.eps);
        }
    }
    norm
}
