//! LayerNorm and the embedding on a rig: uploads rows, launches, reads the results back, and bounds their errors.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::abi::{LoraEmbedding, LoraLayerNorm};
use fused_lora::plan::transformer::RowPlan;
use fused_lora::{DType, Element};

use super::rig::{Call, Failure, Rig, Uploads};
use super::{Buffer, Gaps, Operand, Rng};

/// LayerNorm's parameters. Both vectors begin with `shift` elements of NaN that do not belong to them.
pub struct Norm {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub epsilon: f32,
    pub shift: usize,
}

impl Norm {
    pub fn random(rng: &mut Rng, width: usize, shift: usize) -> Self {
        let none = std::iter::repeat_n(f32::NAN, shift);
        let mut draw = || none.clone().chain((0..width).map(|_| rng.uniform() as f32)).collect();
        Self { weight: draw(), bias: draw(), epsilon: 1e-5, shift }
    }

    /// The reference's result of a row: each element with its error bound.
    ///
    /// With u = 2⁻²⁴ and X = max|x|, in the order of kernels/transformer/row.h:
    ///
    /// - A thread's mean of at most 32 values is a sum and a division, with an error of at most 33uX. Combining two means rounds
    ///   their distance (at most 2X), the share of it and the result: 5uX, counted as 7. With L levels (one for each block of
    ///   8192, five of lanes and three of warps) the error of the mean is at most E = (33 + 7L)uX.
    /// - The sum of squares around a wrong mean is too large by the square of the mean's error, and each square is rounded up
    ///   to 36 times, a relative error. Combining two sums adds w·δ², where w is at most the smaller count and δ has an error of
    ///   2E. By the Cauchy-Schwarz inequality the error of all levels together, divided by the width, is at most
    ///   4E·√(var·L/2) + 2E²L, plus a relative error of 9u for each level.
    /// - The factor 1/√(variance + ε) is monotone in the variance, so its error is largest at the lower end of the variance's
    ///   interval; six roundings of its own are added. The rest is a difference, a product and a sum.
    pub fn expected(&self, x: &[f64], stored: DType) -> Vec<(f64, f64)> {
        let u = DType::F32.unit_roundoff();
        let width = x.len() as f64;
        let mean = x.iter().sum::<f64>() / width;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width;
        let largest = x.iter().fold(0.0f64, |largest, v| largest.max(v.abs()));
        let levels = 8.0 + (width / 8192.0).ceil();
        let mean_off = (33.0 + 7.0 * levels) * u * largest;
        let crossed = 4.0 * mean_off * (variance * levels / 2.0).sqrt();
        let shifted = crossed + 2.0 * mean_off.powi(2) * levels + (33.0 * u * largest).powi(2);
        let variance_off = shifted + (36.0 + 9.0 * levels) * u * (variance + shifted);
        let epsilon = f64::from(self.epsilon);
        let factor = 1.0 / (variance + epsilon).sqrt();
        let steepest = 1.0 / ((variance - variance_off).max(0.0) + epsilon).sqrt();
        let factor_off = steepest - factor + 6.0 * u * steepest;
        let parameters = self.weight[self.shift..].iter().zip(&self.bias[self.shift..]);
        x.iter()
            .zip(parameters)
            .map(|(v, (&weight, &bias))| {
                let (apart, weight, bias) = (v - mean, f64::from(weight), f64::from(bias));
                let apart_off = mean_off + u * (apart.abs() + mean_off);
                let off = weight.abs() * (apart.abs() * factor_off + apart_off * (factor + factor_off));
                let largest = weight.abs() * (apart.abs() + apart_off) * (factor + factor_off) + bias.abs();
                let (y, off) = (apart * factor * weight + bias, off + 2.0 * u * largest);
                (y, off + stored.unit_roundoff() * (y.abs() + off) + stored.smallest_step())
            })
            .collect()
    }

    /// Checks that each row of y is LayerNorm of the row of x. A row of x with a NaN must give a row of NaN.
    pub fn agrees<T: Element>(&self, x: &Buffer<T>, y: &Buffer<T>) -> Result<(), String> {
        for row in 0..x.rows {
            let exact: Vec<f64> = x.view().row(row).iter().map(|v| f64::from(v.to_f32())).collect();
            let got = y.view().row(row);
            if exact.iter().any(|v| v.is_nan()) {
                match got.iter().position(|v| !v.to_f32().is_nan()) {
                    Some(column) => return Err(format!("[{row}, {column}] is not NaN")),
                    None => continue,
                }
            }
            for (column, (&(expected, bound), got)) in self.expected(&exact, T::DTYPE).iter().zip(got).enumerate() {
                let error = (f64::from(got.to_f32()) - expected).abs();
                if error.is_nan() || error > bound {
                    return Err(format!(
                        "[{row}, {column}] is {got:?}, expected {expected}: off by {error:e} > {bound:e}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn addresses(&self, uploads: &mut Uploads<'_>) -> [*const f32; 2] {
        [&self.weight, &self.bias].map(|vector| (uploads.add(vector) + 4 * self.shift as u64) as *const f32)
    }
}

fn launch<T: Element, P: fused_lora::device::KernelParams>(
    rig: &Rig,
    plan: &RowPlan,
    params: &P,
    outputs: &mut [(u64, &mut Buffer<T>)],
) -> Result<(), Failure> {
    let call = Call::new(&plan.launch.kernel, plan.launch.grid, plan.launch.threads, plan.launch.shared_bytes);
    let ended = rig.launch(&call, params);
    outputs.iter_mut().for_each(|(address, output)| rig.read(*address, &mut output.data));
    ended.map(drop)
}

/// y = LayerNorm(x), planned for this many SMs. Rows of y have `gap` elements between them.
pub fn layer_norm<T: Element>(
    rig: &Rig,
    x: &Buffer<T>,
    norm: &Norm,
    multiprocessors: usize,
    gap: usize,
) -> Result<Buffer<T>, Failure> {
    let plan = RowPlan::layer_norm(x.rows, x.cols, T::DTYPE, multiprocessors).unwrap();
    let mut uploads = Uploads::new(rig);
    let mut y = Buffer::<T>::poisoned(x.rows, x.cols, gap);
    let [weight, bias] = norm.addresses(&mut uploads);
    let at = uploads.add(&y.data);
    let params = LoraLayerNorm {
        x: uploads.add(&x.data) as *const _,
        weight,
        bias,
        y: at as *mut _,
        rows: x.rows as u32,
        width: x.cols as u32,
        x_stride: x.stride as u32,
        y_stride: y.stride as u32,
        row_threads_log2: plan.row_threads.ilog2(),
        epsilon: norm.epsilon,
    };
    launch(rig, &plan, &params, &mut [(at, &mut y)])?;
    Ok(y)
}

/// The tables of an embedding, and the rows to look up in them.
pub struct Embedded<T> {
    pub tokens: Buffer<T>,
    pub extra: Option<Buffer<T>>,
    pub positions: Buffer<T>,
    pub ids: Vec<u32>,
    pub places: Vec<u32>,
}

impl<T: Element> Embedded<T> {
    /// Tables of 11 tokens, 3 extra vectors and 7 positions. With more than six rows, two ids and two positions are
    /// beyond the tables.
    pub fn random(rng: &mut Rng, rows: usize, width: usize, gaps: Gaps, has_extra: bool) -> Self {
        let mut table = |operand, rows| Buffer::random_operand(rng, rows, width, gaps, operand);
        let tokens = table(Operand::Tokens, 11);
        let extra = has_extra.then(|| table(Operand::Extra, 3));
        let positions = table(Operand::Positions, 7);
        let known = if has_extra { 14 } else { 11 };
        let mut ids: Vec<u32> = (0..rows as u32).map(|i| (known - 1 + 5 * i) % known).collect();
        let mut places: Vec<u32> = (0..rows as u32).map(|i| (6 + 3 * i) % 7).collect();
        if rows > 6 {
            (ids[1], ids[4], places[2], places[5]) = (known, u32::MAX, 7, u32::MAX);
        }
        Self { tokens, extra, positions, ids, places }
    }

    /// The exact bits of x: the sum in f32 rounded to the type; `None` stands for a row of NaN.
    pub fn expected(&self) -> Vec<Option<Vec<T>>> {
        let row_of = |id: u32| {
            let index = id as usize;
            let beyond = index.checked_sub(self.tokens.rows);
            match (beyond, &self.extra) {
                (None, _) => Some(self.tokens.view().row(index)),
                (Some(beyond), Some(extra)) if beyond < extra.rows => Some(extra.view().row(beyond)),
                _ => None,
            }
        };
        let place_of = |place: u32| ((place as usize) < 7).then(|| self.positions.view().row(place as usize));
        let sum = |(a, b): (&T, &T)| T::from_f64(f64::from(a.to_f32() + b.to_f32()));
        let rows = self.ids.iter().zip(&self.places);
        rows.map(|(&id, &place)| Some(row_of(id)?.iter().zip(place_of(place)?).map(sum).collect())).collect()
    }

    /// Checks that x has the expected bits.
    pub fn agrees(&self, x: &Buffer<T>) -> Result<(), String> {
        for (row, expected) in self.expected().iter().enumerate() {
            let got = x.view().row(row);
            let right = match expected {
                Some(expected) => got == &expected[..],
                None => got.iter().all(|v| v.to_f32().is_nan()),
            };
            if !right {
                return Err(format!("row {row} is {got:?}, expected {expected:?}"));
            }
        }
        Ok(())
    }
}

/// x and, with a norm, y = LayerNorm(x), planned for this many SMs.
pub fn embed<T: Element>(
    rig: &Rig,
    input: &Embedded<T>,
    norm: Option<&Norm>,
    multiprocessors: usize,
    gaps: Gaps,
) -> Result<(Buffer<T>, Buffer<T>), Failure> {
    let (rows, width) = (input.ids.len(), input.tokens.cols);
    let plan = RowPlan::embedding(rows, width, T::DTYPE, multiprocessors).unwrap();
    let mut uploads = Uploads::new(rig);
    let [mut x, mut y] =
        [Operand::X, Operand::Y].map(|operand| Buffer::<T>::poisoned_operand(rows, width, gaps, operand));
    let [x_at, y_at] = [&x, &y].map(|buffer| uploads.place(buffer));
    let [weight, bias] = norm.map_or([std::ptr::null(); 2], |norm| norm.addresses(&mut uploads));
    let [ids, places] = [&input.ids, &input.places].map(|vector| uploads.add(vector));
    let params = LoraEmbedding {
        tokens: uploads.place(&input.tokens) as *const _,
        extra: input.extra.as_ref().map_or(0, |extra| uploads.place(extra)) as *const _,
        positions: uploads.place(&input.positions) as *const _,
        ids: ids as *const _,
        places: places as *const _,
        x: x_at as *mut _,
        weight,
        bias,
        y: if norm.is_some() { y_at as *mut _ } else { std::ptr::null_mut() },
        rows: rows as u32,
        width: width as u32,
        vocabulary: input.tokens.rows as u32,
        extra_rows: input.extra.as_ref().map_or(0, |extra| extra.rows as u32),
        position_rows: input.positions.rows as u32,
        tokens_stride: input.tokens.stride as u32,
        extra_stride: input.extra.as_ref().map_or(0, |extra| extra.stride as u32),
        positions_stride: input.positions.stride as u32,
        x_stride: x.stride as u32,
        y_stride: y.stride as u32,
        row_threads_log2: plan.row_threads.ilog2(),
        epsilon: norm.map_or(0.0, |norm| norm.epsilon),
    };
    launch(rig, &plan, &params, &mut [(x_at, &mut x), (y_at, &mut y)])?;
    Ok((x, y))
}
