//! A layer's gradients on a device: random operands, the launch from its plan, and the float64 reference.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::Element;
use fused_lora::abi::{LoraGradients, LoraGradientsSegment};
use fused_lora::dropout::Dropout;
use fused_lora::plan::lora::{GradientsPlan, GradientsProblem, GradientsSegment};
use fused_lora::reference::{self, Expected, Matrix64};
use fused_lora::{ComputePath, DType};
use fused_lora_emulator::Counters;

use super::rig::{Call, Failure, Rig, Uploads};
use super::{Buffer, Gaps, Operand, Rng};

/// The shape of a layer, and the gradients to compute.
#[derive(Debug, Clone)]
pub struct Case {
    pub tokens: usize,
    pub d_in: usize,
    pub d_out: usize,
    /// First column, one past the last, rank.
    pub segments: Vec<(usize, usize, usize)>,
    /// The gaps of every operand but Q.
    pub gaps: Gaps,
    pub bias: bool,
    pub accumulate: bool,
    pub dropout: Option<Dropout>,
    pub multiprocessors: usize,
    pub path: ComputePath,
}

impl Case {
    pub fn new(tokens: usize, d_in: usize, d_out: usize, segments: &[(usize, usize, usize)]) -> Self {
        Self {
            tokens,
            d_in,
            d_out,
            segments: segments.to_vec(),
            gaps: Gaps::CHUNKS,
            bias: false,
            accumulate: false,
            dropout: None,
            multiprocessors: 6,
            path: ComputePath::Matrix,
        }
    }

    /// The first column of each segment in Q, and Q's total number of columns.
    fn q_places(&self) -> Vec<usize> {
        let ends = self.segments.iter().scan(0, |end, s| {
            *end += s.2.next_multiple_of(16);
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }
}

/// dA and dB of every segment, then the bias's gradient as one row if asked for.
pub struct Outputs {
    pub gradients: Vec<Buffer<f32>>,
    pub counters: Counters,
}

impl Outputs {
    /// The bits of all gradients, gaps included.
    pub fn bits(&self) -> Vec<u32> {
        self.gradients.iter().flat_map(|gradient| gradient.data.iter().map(|value| value.to_bits())).collect()
    }
}

/// The operands of a launch, and the initial contents of its outputs.
pub struct Operands<T> {
    pub case: Case,
    x: Buffer<T>,
    dy: Buffer<T>,
    q: Buffer<T>,
    t: Buffer<T>,
    scales: Vec<f32>,
    before: Vec<Buffer<f32>>,
}

impl<T: Element> Operands<T> {
    /// Random operands, with NaN wherever the kernel must not read: in gaps, in the columns of Q by which ranks are
    /// rounded up, in columns of dy without a segment (unless the bias's gradient sums them), and in gradients that are
    /// overwritten.
    pub fn random(seed: u64, case: &Case) -> Self {
        let &Case { tokens, d_in, d_out, ref segments, gaps, bias, accumulate, .. } = case;
        let mut rng = Rng(seed);
        let x = Buffer::random_operand(&mut rng, tokens, d_in, gaps, Operand::X);
        let mut dy = Buffer::random_operand(&mut rng, tokens, d_out, gaps, Operand::Dy);
        let places = case.q_places();
        let mut q = Buffer::random(&mut rng, tokens, places[segments.len()], 0);
        let t = Buffer::random_operand(&mut rng, tokens, segments.iter().map(|s| s.2).sum(), gaps, Operand::T);
        let nan = T::from_f64(f64::NAN);
        for row in 0..tokens {
            for (&(.., rank), place) in segments.iter().zip(places.windows(2)) {
                q.view_mut().row_mut(row)[place[0] + rank..place[1]].fill(nan);
            }
            for column in (0..d_out).filter(|c| !bias && !segments.iter().any(|s| (s.0..s.1).contains(c))) {
                dy.view_mut().row_mut(row)[column] = nan;
            }
        }
        let scales = segments.iter().map(|s| (4.0 * rng.uniform() / s.2 as f64) as f32).collect();
        let mut output = |operand, rows, cols| match accumulate {
            true => Buffer::random_operand(&mut rng, rows, cols, gaps, operand),
            false => Buffer::poisoned_operand(rows, cols, gaps, operand),
        };
        let mut before = vec![];
        for &(begin, end, rank) in segments {
            before.extend([output(Operand::Da, rank, d_in), output(Operand::Db, end - begin, rank)]);
        }
        if bias {
            before.push(output(Operand::Dbias, 1, d_out));
        }
        Self { case: case.clone(), x, dy, q, t, scales, before }
    }

    /// The reference's results, in the order of the launch's outputs.
    pub fn expected(&self) -> Vec<Expected> {
        let x = reference::drop_out(&Matrix64::from_view(self.x.view()), self.case.dropout.as_ref());
        let (dy, q, t) = [&self.dy, &self.q, &self.t].map(|m| Matrix64::from_view(m.view())).into();
        let judge = |scale: f64, left: &Matrix64, right: &Matrix64, before: &Buffer<f32>| {
            let (mut value, mut magnitude) =
                (Matrix64::zeros(left.cols, right.cols), Matrix64::zeros(left.cols, right.cols));
            value.add_at(0, scale, &left.t().matmul(right));
            magnitude.add_at(0, scale.abs(), &left.abs().t().matmul(&right.abs()));
            if self.case.accumulate {
                let before = Matrix64::from_view(before.view());
                value.add_at(0, 1.0, &before);
                magnitude.add_at(0, 1.0, &before.abs());
            }
            let slack = Matrix64::zeros(value.rows, value.cols);
            Expected { value, magnitude, slack }
        };
        let mut expected = vec![];
        let mut packed = 0;
        for (i, (&(begin, end, rank), place)) in self.case.segments.iter().zip(self.case.q_places()).enumerate() {
            let scale = f64::from(self.scales[i]);
            expected.push(judge(1.0, &q.columns(place..place + rank), &x, &self.before[2 * i]));
            expected.push(judge(
                scale,
                &dy.columns(begin..end),
                &t.columns(packed..packed + rank),
                &self.before[2 * i + 1],
            ));
            packed += rank;
        }
        if self.case.bias {
            let ones = Matrix64 { rows: self.case.tokens, cols: 1, data: vec![1.0; self.case.tokens] };
            expected.push(judge(1.0, &ones, &dy, &self.before[expected.len()]));
        }
        expected
    }

    /// Additions in the longest chain of a sum.
    pub fn steps(&self) -> usize {
        self.case.tokens + 40
    }
}

/// The gradient launch of a layer, which can be repeated any number of times.
pub struct Gradients<'m> {
    rig: &'m Rig,
    pub plan: GradientsPlan,
    params: LoraGradients,
    uploads: Uploads<'m>,
    before: Vec<Buffer<f32>>,
    places: Vec<u64>,
}

impl<'m> Gradients<'m> {
    pub fn new<T: Element>(rig: &'m Rig, operands: &Operands<T>) -> Self {
        let Operands { case, x, dy, q, t, scales, before } = operands;
        let segments: Vec<_> =
            case.segments.iter().map(|&(begin, end, rank)| GradientsSegment { columns: begin..end, rank }).collect();
        let plan = GradientsPlan::new(&GradientsProblem {
            tokens: case.tokens,
            d_in: case.d_in,
            d_out: case.d_out,
            dtype: T::DTYPE,
            segments: &segments,
            multiprocessors: case.multiprocessors,
            compute_capability: rig.compute_capability(),
            path: if T::DTYPE == DType::F32 { ComputePath::CudaCores } else { case.path },
            bias: case.bias,
        })
        .unwrap();

        let mut uploads = Uploads::new(rig);
        let workspace = uploads.add(&vec![0.0f32; plan.workspace.bytes().div_ceil(4)]);
        let places: Vec<u64> = before.iter().map(|output| uploads.place(output)).collect();
        let table: Vec<_> = (0..segments.len())
            .map(|i| LoraGradientsSegment {
                da: places[2 * i] as *mut _,
                db: places[2 * i + 1] as *mut _,
                da_stride: before[2 * i].stride as u32,
                db_stride: before[2 * i + 1].stride as u32,
                begin: segments[i].columns.start as u32,
                end: segments[i].columns.end as u32,
                rank: segments[i].rank as u32,
                t_begin: 0,
                packed_begin: 0,
                scale: scales[i],
            })
            .collect();
        let params = plan.params(&table, workspace, &plan.workspace);
        let params = LoraGradients {
            x: uploads.place(x) as *const _,
            dy: uploads.place(dy) as *const _,
            t: uploads.place(t) as *const _,
            dbias: if case.bias { places[2 * segments.len()] as *mut _ } else { std::ptr::null_mut() },
            dropout: case.dropout.map_or(params.dropout, |dropout| dropout.params(0)),
            tokens: case.tokens as u32,
            d_in: case.d_in as u32,
            d_out: case.d_out as u32,
            x_stride: x.stride as u32,
            dy_stride: dy.stride as u32,
            t_stride: t.stride as u32,
            accumulate: u32::from(case.accumulate),
            ..params
        };
        assert_eq!(q.stride, plan.q_stride as usize);
        rig.write(params.q as u64, &q.data);
        let before = before.iter().map(|b| Buffer { data: b.data.clone(), ..*b }).collect();
        Self { rig, plan, params, uploads, before, places }
    }

    /// Restores the initial contents of the outputs, launches, and returns the outputs.
    pub fn run(&self) -> Result<Outputs, Failure> {
        for (output, &place) in self.before.iter().zip(&self.places) {
            self.rig.write(place, &output.data);
        }
        // A kernel that reads the previous launch's partial sums gets NaN.
        self.rig.write(self.params.partial as u64, &vec![f32::NAN; self.plan.workspace.partial]);
        let call = Call::new(
            &self.plan.launch.kernel,
            self.plan.launch.grid,
            self.plan.launch.threads,
            self.plan.launch.shared_bytes,
        );
        let counters = self.rig.launch(&call, &self.params)?;
        let read = |(output, &place): (&Buffer<f32>, &u64)| {
            let mut output = Buffer { data: output.data.clone(), ..*output };
            self.rig.read(place, &mut output.data);
            output
        };
        Ok(Outputs { gradients: self.before.iter().zip(&self.places).map(read).collect(), counters })
    }
}
