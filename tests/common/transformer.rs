//! LayerNorm and the embedding on a rig: rows uploaded, launched, read back, and how far from float64 they may be.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::abi::{LoraEmbedding, LoraLayerNorm};
use fused_lora::plan::transformer::RowPlan;
use fused_lora::{DType, Element};

use super::rig::{Call, Failure, Rig, Uploads};
use super::{Buffer, Rng};

/// LayerNorm's parameters, behind `shift` elements that are none.
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

    /// What a row is to become, and by how much an element may be off.
    ///
    /// With u = 2⁻²⁴ and X = max|x|, in the order of kernels/transformer/row.h:
    ///
    /// - A thread's mean of at most 32 values is a sum and a division: off by at most 33uX. Combining two means rounds the
    ///   distance (at most 2X), its share and the result: 5uX, counted as 7. With L levels, one a block of 8192, five of lanes
    ///   and three of warps, the mean is off by at most E = (33 + 7L)uX.
    /// - Squares around a wrong mean are too large by its error squared, and each is rounded up to 36 times on its way:
    ///   relative. Combining adds w·δ², w at most the smaller count and δ off by 2E; by Cauchy and Schwarz all levels together
    ///   are off by 4E·√(var·L/2) + 2E²L after the division by the width, and by 9u a level of themselves.
    /// - The factor 1/√(variance + ε) is monotone in the variance, so its error is that at the interval's lower end, and six
    ///   roundings of its own. The rest is a difference, a product and a sum.
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

    /// Whether rows of y are LayerNorm of those of x: NaN where a row of x has one, and nowhere else.
    pub fn agrees<T: Element>(&self, x: &Buffer<T>, y: &Buffer<T>) -> Result<(), String> {
        for row in 0..x.rows {
            let exact: Vec<f64> = x.view().row(row).iter().map(|v| f64::from(v.to_f32())).collect();
            let got = y.view().row(row);
            if exact.iter().any(|v| v.is_nan()) {
                match got.iter().position(|v| !v.to_f32().is_nan()) {
                    Some(column) => return Err(format!("[{row}, {column}] is no NaN")),
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

/// y = LayerNorm(x), with as many SMs in mind; rows of y are `gap` elements apart.
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

/// Tables, and which of their rows are wanted.
pub struct Embedded<T> {
    pub tokens: Buffer<T>,
    pub extra: Option<Buffer<T>>,
    pub positions: Buffer<T>,
    pub ids: Vec<u32>,
    pub places: Vec<u32>,
}

impl<T: Element> Embedded<T> {
    /// Tables of 11 tokens, 3 more vectors and 7 positions; rows of both tables, and, of more than six, one beyond each.
    pub fn random(rng: &mut Rng, rows: usize, width: usize, gap: usize, has_extra: bool) -> Self {
        let mut table = |rows| Buffer::random(rng, rows, width, gap);
        let (tokens, extra, positions) = (table(11), has_extra.then(|| table(3)), table(7));
        let known = if has_extra { 14 } else { 11 };
        let mut ids: Vec<u32> = (0..rows as u32).map(|i| (known - 1 + 5 * i) % known).collect();
        let mut places: Vec<u32> = (0..rows as u32).map(|i| (6 + 3 * i) % 7).collect();
        if rows > 6 {
            (ids[1], ids[4], places[2], places[5]) = (known, u32::MAX, 7, u32::MAX);
        }
        Self { tokens, extra, positions, ids, places }
    }

    /// x, to the bit: the sum in f32, rounded to the type, or a row of NaN.
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

    /// Whether x is what it should be.
    pub fn agrees(&self, x: &Buffer<T>) -> Result<(), String> {
        for (row, expected) in self.expected().iter().enumerate() {
            let got = x.view().row(row);
            let right = match expected {
                Some(expected) => got == &expected[..],
                None => got.iter().all(|v| v.to_f32().is_nan()),
            };
            if !right {
                return Err(format!("row {row} is {got:?}, not {expected:?}"));
            }
        }
        Ok(())
    }
}

/// x and, with a norm, y of as many SMs in mind; their rows are `gap` elements apart.
pub fn embed<T: Element>(
    rig: &Rig,
    input: &Embedded<T>,
    norm: Option<&Norm>,
    multiprocessors: usize,
    gap: usize,
) -> Result<(Buffer<T>, Buffer<T>), Failure> {
    let (rows, width) = (input.ids.len(), input.tokens.cols);
    let plan = RowPlan::embedding(rows, width, T::DTYPE, multiprocessors).unwrap();
    let mut uploads = Uploads::new(rig);
    let [mut x, mut y] = [(); 2].map(|()| Buffer::<T>::poisoned(rows, width, gap));
    let [x_at, y_at] = [&x, &y].map(|buffer| uploads.add(&buffer.data));
    let [weight, bias] = norm.map_or([std::ptr::null(); 2], |norm| norm.addresses(&mut uploads));
    let [ids, places] = [&input.ids, &input.places].map(|vector| uploads.add(vector));
    let params = LoraEmbedding {
        tokens: uploads.add(&input.tokens.data) as *const _,
        extra: input.extra.as_ref().map_or(0, |extra| uploads.add(&extra.data)) as *const _,
        positions: uploads.add(&input.positions.data) as *const _,
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
