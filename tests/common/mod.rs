//! Random layers for the integration tests. Every buffer has its own stride and ends with its last row's last element; gaps
//! and outputs are filled with NaN.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod adamw;
pub mod adapter;
pub mod attention;
pub mod backward;
pub mod code;
pub mod decode;
pub mod device;
pub mod forward;
pub mod forward_check;
pub mod gaps;
pub mod golden;
pub mod gradients;
pub mod ladder;
pub mod merge;
pub mod rig;
pub mod sanitize;
pub mod small;
pub mod transformer;

use fused_lora::lora::{Layout, LoraLinear, Segment, Weight};
use fused_lora::{Element, MatrixMut, MatrixRef};

pub use gaps::{Gaps, Operand, Unaligned};

/// The generator splitmix64: random enough for tests. Failure messages name the seed, which reproduces the values.
pub struct Rng(pub u64);

impl Rng {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }
}

/// A matrix with NaN in the gaps between its rows. Nothing follows its last element, so that an access behind it is a fault of
/// the emulator.
#[derive(Debug, Clone)]
pub struct Buffer<T> {
    pub data: Vec<T>,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
    /// Elements of NaN that precede the first one in a device's memory, so that rows are not aligned.
    pub shift: usize,
}

impl<T: Element> Buffer<T> {
    pub fn random(rng: &mut Rng, rows: usize, cols: usize, gap: usize) -> Self {
        let mut buffer = Self::poisoned(rows, cols, gap);
        buffer.randomize(rng);
        buffer
    }

    pub fn poisoned(rows: usize, cols: usize, gap: usize) -> Self {
        let stride = cols + gap;
        let len = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        Self { data: vec![T::from_f64(f64::NAN); len], rows, cols, stride, shift: 0 }
    }

    /// A matrix whose rows follow each other.
    pub fn contiguous(data: Vec<T>, rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, stride: cols, shift: 0 }
    }

    /// An operand's matrix of random values.
    pub fn random_operand(rng: &mut Rng, rows: usize, cols: usize, gaps: Gaps, operand: Operand) -> Self {
        let mut buffer = Self::poisoned_operand(rows, cols, gaps, operand);
        buffer.randomize(rng);
        buffer
    }

    /// An operand's matrix of NaN.
    pub fn poisoned_operand(rows: usize, cols: usize, gaps: Gaps, operand: Operand) -> Self {
        let shift = gaps.before_first(operand);
        Self { shift, ..Self::poisoned(rows, cols, gaps.between_rows(operand, cols)) }
    }

    fn randomize(&mut self, rng: &mut Rng) {
        for i in 0..self.rows {
            for value in self.view_mut().row_mut(i) {
                *value = T::from_f64(rng.uniform());
            }
        }
    }

    pub fn view(&self) -> MatrixRef<'_, T> {
        MatrixRef::with_stride(&self.data, self.rows, self.cols, self.stride).unwrap()
    }

    pub fn view_mut(&mut self) -> MatrixMut<'_, T> {
        MatrixMut::with_stride(&mut self.data, self.rows, self.cols, self.stride).unwrap()
    }

    /// The elements row by row, without the gaps.
    pub fn elements(&self) -> Vec<T> {
        (0..self.rows).flat_map(|row| self.view().row(row).to_vec()).collect()
    }

    /// Whether the gaps between rows hold NaN still.
    pub fn gaps_untouched(&self) -> bool {
        let mut gaps = self.data.chunks(self.stride.max(1)).flat_map(|row| &row[self.cols..]);
        gaps.all(|gap| gap.to_f32().is_nan())
    }

    /// Asserts that the gaps between rows were not written.
    pub fn assert_gaps_untouched(&self) {
        assert!(self.gaps_untouched(), "a gap after a row was written");
    }
}

/// The shape of a random layer.
#[derive(Debug, Clone)]
pub struct Shape {
    pub tokens: usize,
    pub d_in: usize,
    pub d_out: usize,
    pub layout: Layout,
    /// First column, one past the last, rank.
    pub segments: Vec<(usize, usize, usize)>,
    pub bias: bool,
    pub gaps: Gaps,
}

impl Shape {
    /// A random matrix as an operand of this shape's layer.
    pub fn random<T: Element>(&self, rng: &mut Rng, operand: Operand, rows: usize, cols: usize) -> Buffer<T> {
        Buffer::random_operand(rng, rows, cols, self.gaps, operand)
    }

    /// A matrix of NaN as an operand of this shape's layer.
    pub fn poisoned<T: Element>(&self, operand: Operand, rows: usize, cols: usize) -> Buffer<T> {
        Buffer::poisoned_operand(rows, cols, self.gaps, operand)
    }
}

/// A shape with a bias, and with aligned rows if their lengths allow it.
pub fn shape(tokens: usize, d_in: usize, d_out: usize, layout: Layout, segments: &[(usize, usize, usize)]) -> Shape {
    Shape { tokens, d_in, d_out, layout, segments: segments.to_vec(), bias: true, gaps: Gaps::CHUNKS }
}

/// A layer with random weights.
pub struct RandomLayer<W> {
    pub shape: Shape,
    pub weight: Buffer<W>,
    pub bias: Vec<W>,
    pub factors: Vec<(Buffer<W>, Buffer<W>, f32)>,
}

impl<W: Element> RandomLayer<W> {
    pub fn new(rng: &mut Rng, shape: &Shape) -> Self {
        let (rows, cols) = match shape.layout {
            Layout::OutIn => (shape.d_out, shape.d_in),
            Layout::InOut => (shape.d_in, shape.d_out),
        };
        let weight = shape.random(rng, Operand::Weight, rows, cols);
        let bias = (0..shape.d_out).map(|_| W::from_f64(rng.uniform())).collect();
        let factors = shape
            .segments
            .iter()
            .map(|&(start, end, rank)| {
                let a = shape.random(rng, Operand::A, rank, shape.d_in);
                let b = shape.random(rng, Operand::B, end - start, rank);
                (a, b, (4.0 * rng.uniform() / rank as f64) as f32)
            })
            .collect();
        Self { shape: shape.clone(), weight, bias, factors }
    }

    pub fn segments(&self) -> Vec<Segment<'_, W>> {
        let pairs = self.factors.iter().zip(&self.shape.segments);
        pairs
            .map(|((a, b, scale), &(start, end, _))| Segment {
                columns: start..end,
                a: a.view(),
                b: b.view(),
                scale: *scale,
            })
            .collect()
    }

    pub fn layer<'a>(&'a self, segments: &'a [Segment<'a, W>]) -> LoraLinear<'a, W> {
        LoraLinear {
            weight: Weight { matrix: self.weight.view(), layout: self.shape.layout },
            bias: self.shape.bias.then_some(&self.bias[..]),
            segments,
        }
    }
}

/// Additions in the longest chain of a layer's output: the n of γ(n) in the error bound.
pub fn steps(shape: &Shape) -> usize {
    let rank = shape.segments.iter().map(|s| s.2).sum::<usize>();
    shape.d_in.max(shape.d_out).max(shape.tokens) + rank + 4
}
