//! Attention on a device: random operands, the launch from its plan, and the float64 reference.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::abi::LoraAttention;
use fused_lora::plan::transformer::{AttentionPlan, AttentionProblem, AttentionShape};
use fused_lora::reference::{Expected, Matrix64};
use fused_lora::{ComputePath, DType, Element};
use fused_lora_emulator::Counters;

use super::rig::{Call, Failure, Rig, Uploads};
use super::{Buffer, Gaps, Operand, Rng};

/// The keys and values that queries see besides those of their own tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Memory {
    None,
    Prefix,
    /// A KV cache, with the filled rows of each sequence.
    Cache(Vec<usize>),
}

/// The shape and options of a call.
#[derive(Debug, Clone)]
pub struct Case {
    pub shape: AttentionShape,
    pub memory: Memory,
    pub gaps: Gaps,
    /// The largest magnitude of queries and keys.
    pub magnitude: f64,
    pub multiprocessors: usize,
    pub path: ComputePath,
}

impl Case {
    pub fn new(sequences: usize, tokens: usize, heads: usize, head_size: usize) -> Self {
        let scale = 1.0 / (head_size as f32).sqrt();
        Self {
            shape: AttentionShape { sequences, tokens, heads, head_size, capacity: 0, scale },
            memory: Memory::None,
            gaps: Gaps::CHUNKS,
            magnitude: 2.0,
            multiprocessors: 6,
            path: ComputePath::Auto,
        }
    }

    pub fn with_prefix(mut self, length: usize) -> Self {
        self.shape.capacity = length;
        self.memory = Memory::Prefix;
        self
    }

    pub fn with_cache(mut self, capacity: usize, lengths: &[usize]) -> Self {
        self.shape.capacity = capacity;
        self.memory = Memory::Cache(lengths.to_vec());
        self
    }

    /// The keys before the sequence's own tokens, or `None` if the cache has no room left for these.
    pub fn past(&self, sequence: usize) -> Option<usize> {
        match &self.memory {
            Memory::None => Some(0),
            Memory::Prefix => Some(self.shape.capacity),
            Memory::Cache(lengths) => {
                let length = lengths[sequence];
                (length + self.shape.tokens <= self.shape.capacity).then_some(length)
            }
        }
    }

    /// The row of the cache or prefix that holds a key of a sequence.
    fn memory_row(&self, sequence: usize, key: usize) -> usize {
        if self.memory == Memory::Prefix { key } else { sequence * self.shape.capacity + key }
    }

    /// The result's memory before a launch.
    pub fn poisoned_out<T: Element>(&self) -> Buffer<T> {
        Buffer::poisoned_operand(self.shape.rows(), self.shape.width(), self.gaps, Operand::Y)
    }

    pub fn plan<T: Element>(&self, compute_capability: (u32, u32)) -> AttentionPlan {
        let &Self { shape, multiprocessors, path, .. } = self;
        let problem = AttentionProblem { shape, dtype: T::DTYPE, multiprocessors, compute_capability, path };
        AttentionPlan::new(&problem).unwrap()
    }
}

/// The operands of a launch.
pub struct Operands<T> {
    pub case: Case,
    pub qkv: Buffer<T>,
    pub keys: Buffer<T>,
    pub values: Buffer<T>,
}

impl<T: Element> Operands<T> {
    /// Random operands, with NaN wherever the kernel must not read: in the gaps, and in a cache after its filled rows.
    pub fn random(seed: u64, case: &Case) -> Self {
        let mut rng = Rng(seed);
        let (shape, gaps) = (&case.shape, case.gaps);
        let d = shape.width();
        let mut qkv = Buffer::random_operand(&mut rng, shape.rows(), 3 * d, gaps, Operand::Qkv);
        let rows = match &case.memory {
            Memory::None => 0,
            Memory::Prefix => shape.capacity,
            Memory::Cache(lengths) => lengths.len() * shape.capacity,
        };
        let mut keys = Buffer::random_operand(&mut rng, rows, d, gaps, Operand::Keys);
        let mut values = Buffer::random_operand(&mut rng, rows, d, gaps, Operand::Values);
        let enlarge = |values: &mut [T]| {
            values.iter_mut().for_each(|x| *x = T::from_f64(f64::from(x.to_f32()) * case.magnitude));
        };
        (0..qkv.rows).for_each(|row| enlarge(&mut qkv.view_mut().row_mut(row)[..2 * d]));
        (0..rows).for_each(|row| enlarge(keys.view_mut().row_mut(row)));
        if let Memory::Cache(lengths) = &case.memory {
            let nan = T::from_f64(f64::NAN);
            for (sequence, &length) in lengths.iter().enumerate() {
                for key in length..shape.capacity {
                    let row = case.memory_row(sequence, key);
                    keys.view_mut().row_mut(row).fill(nan);
                    values.view_mut().row_mut(row).fill(nan);
                }
            }
        }
        Self { case: case.clone(), qkv, keys, values }
    }

    /// The query (part 0), key (part 1) or value (part 2) with index `key` of a sequence that has `past` keys before
    /// its own.
    fn row(&self, part: usize, sequence: usize, past: usize, key: usize, head: usize) -> Vec<f64> {
        let AttentionShape { tokens, head_size, .. } = self.case.shape;
        let columns = head * head_size..(head + 1) * head_size;
        let wide = |row: &[T]| row.iter().map(|x| f64::from(x.to_f32())).collect();
        if key < past {
            let memory = if part == 1 { &self.keys } else { &self.values };
            return wide(&memory.view().row(self.case.memory_row(sequence, key))[columns]);
        }
        let d = self.case.shape.width();
        wide(&self.qkv.view().row(sequence * tokens + key - past)[part * d..][columns])
    }

    /// The reference's result with its error bounds; NaN for sequences whose cache has no room.
    ///
    /// The error of a query's score s is at most e = scale·γ(head_size + 4)·Σ|q||k| + 4u·(|s| + max|s|) + steps·4u: the
    /// dot product with its scale, the subtraction of the running maximum (all these differences together are at most
    /// twice the range of the scores), and a few units for each power of two. If the exponents of a softmax have errors
    /// up to e, the error of a weight p is at most p·(e^(2·max e) - 1). The error of the result is then at most Σ p|v|
    /// times this, times γ of the sums over keys; where weights are rounded to the type, u_T·Σ p|v| and the type's
    /// smallest step times Σ|v| are added.
    pub fn expected(&self, plan: &AttentionPlan) -> Expected {
        let AttentionShape { sequences, tokens, heads, head_size, scale, .. } = self.case.shape;
        let (rows, d) = (self.case.shape.rows(), self.case.shape.width());
        let [mut value, mut magnitude, mut slack] = [(); 3].map(|()| Matrix64::zeros(rows, d));
        let (u, scale) = (DType::F32.unit_roundoff(), f64::from(scale));
        let rounds_weights = plan.launch.kernel.contains("mma");
        for sequence in 0..sequences {
            let Some(past) = self.case.past(sequence) else {
                value.data[sequence * tokens * d..(sequence + 1) * tokens * d].fill(f64::NAN);
                continue;
            };
            for head in 0..heads {
                let of = |part, key| self.row(part, sequence, past, key, head);
                let keys: Vec<_> = (0..past + tokens).map(|key| of(1, key)).collect();
                let values: Vec<_> = (0..past + tokens).map(|key| of(2, key)).collect();
                for token in 0..tokens {
                    let query = of(0, past + token);
                    let seen = past + token + 1;
                    let dot = |key: &Vec<f64>| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
                    let sizes = |key: &Vec<f64>| query.iter().zip(key).map(|(q, k)| (q * k).abs()).sum::<f64>();
                    let scores: Vec<_> = keys[..seen].iter().map(|key| scale * dot(key)).collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let range = scores.iter().map(|s| s.abs()).fold(0.0, f64::max);
                    let size = keys[..seen].iter().map(sizes).fold(0.0, f64::max);
                    let off = (head_size + 4) as f64 * u * scale.abs() * size + 8.0 * u * range + seen as f64 * 4.0 * u;
                    let weights: Vec<_> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for column in 0..head_size {
                        let at = (sequence * tokens + token) * d + head * head_size + column;
                        for (weight, value_row) in weights.iter().zip(&values) {
                            let p = weight / total;
                            value.data[at] += p * value_row[column];
                            magnitude.data[at] += p * value_row[column].abs();
                            if rounds_weights {
                                slack.data[at] += 0.5 * T::DTYPE.smallest_step() * value_row[column].abs();
                            }
                        }
                        let rounding = if rounds_weights { T::DTYPE.unit_roundoff() } else { 0.0 };
                        slack.data[at] += 0.5 * ((2.0 * off).exp_m1() + rounding) * magnitude.data[at];
                    }
                }
            }
        }
        Expected { value, magnitude, slack }
    }

    /// The cache expected after the launch: the call's own keys and values appended to the filled rows.
    fn appended(&self) -> [Buffer<T>; 2] {
        let copy = |b: &Buffer<T>| Buffer { data: b.data.clone(), ..*b };
        let mut after = [copy(&self.keys), copy(&self.values)];
        if let Memory::Cache(lengths) = &self.case.memory {
            let (tokens, d) = (self.case.shape.tokens, self.case.shape.width());
            for sequence in 0..lengths.len() {
                let Some(past) = self.case.past(sequence) else { continue };
                for token in 0..tokens {
                    let row = self.case.memory_row(sequence, past + token);
                    for (part, cache) in after.iter_mut().enumerate() {
                        let from = &self.qkv.view().row(sequence * tokens + token)[(part + 1) * d..(part + 2) * d];
                        cache.view_mut().row_mut(row).copy_from_slice(from);
                    }
                }
            }
        }
        after
    }

    /// Checks the outputs; the error names the first wrong element.
    pub fn fault(&self, expected: &Expected, outputs: &Outputs<T>) -> Option<String> {
        let d = self.case.shape.width();
        let steps = self.case.shape.capacity + self.case.shape.tokens + 40;
        for row in 0..outputs.out.rows {
            for (column, got) in outputs.out.view().row(row).iter().enumerate() {
                let at = row * d + column;
                let (got, exact) = (f64::from(got.to_f32()), expected.value.data[at]);
                let (error, bound) = ((got - exact).abs(), expected.bound(at, T::DTYPE, steps));
                // This form of the comparison fails for NaN.
                let is_close = if exact.is_nan() { got.is_nan() } else { error <= bound };
                if !is_close {
                    return Some(format!("[{row}, {column}] is {got}, not {exact}: off by {error:e} > {bound:e}"));
                }
            }
        }
        let bytes = |buffer: &Buffer<T>| bytemuck::cast_slice::<T, u8>(&buffer.data).to_vec();
        let after = self.appended();
        for (name, got, after) in [("keys", &outputs.keys, &after[0]), ("values", &outputs.values, &after[1])] {
            if bytes(got) != bytes(after) {
                return Some(format!("the cache's {name} are not as they were with the call's own behind"));
            }
        }
        None
    }
}

/// The outputs of a launch.
pub struct Outputs<T> {
    pub out: Buffer<T>,
    pub keys: Buffer<T>,
    pub values: Buffer<T>,
    pub counters: Counters,
}

impl<T: Element> Outputs<T> {
    /// The bits of the result, gaps included.
    pub fn bits(&self) -> Vec<u8> {
        bytemuck::cast_slice(&self.out.data).to_vec()
    }
}

/// A call that can be launched any number of times.
pub struct Attention<'m, T> {
    rig: &'m Rig,
    operands: &'m Operands<T>,
    pub plan: AttentionPlan,
    params: LoraAttention,
    uploads: Uploads<'m>,
}

impl<'m, T: Element> Attention<'m, T> {
    pub fn new(rig: &'m Rig, operands: &'m Operands<T>) -> Self {
        Self::planned(rig, operands, operands.case.plan::<T>(rig.compute_capability()))
    }

    pub fn planned(rig: &'m Rig, operands: &'m Operands<T>, plan: AttentionPlan) -> Self {
        let Operands { case, qkv, keys, values } = operands;
        let mut uploads = Uploads::new(rig);
        let workspace = uploads.add(&vec![0.0f32; plan.workspace.bytes().div_ceil(4)]);
        let mut params = plan.params(workspace, &plan.workspace);
        params.qkv = uploads.place(qkv) as *const _;
        params.qkv_stride = qkv.stride as u32;
        let out = case.poisoned_out::<T>();
        params.out = uploads.place(&out) as *mut _;
        params.out_stride = out.stride as u32;
        if case.memory != Memory::None {
            params.keys = uploads.place(keys) as *mut _;
            params.values = uploads.place(values) as *mut _;
            params.keys_stride = keys.stride as u32;
            params.values_stride = values.stride as u32;
            params.capacity = case.shape.capacity as u32;
        }
        if let Memory::Cache(lengths) = &case.memory {
            let lengths: Vec<_> = lengths.iter().map(|&length| length as u32).collect();
            params.lengths = uploads.add(&lengths) as *const _;
        }
        Self { rig, operands, plan, params, uploads }
    }

    /// Restores the initial contents of the outputs, launches, and returns the outputs.
    pub fn run(&self) -> Result<Outputs<T>, Failure> {
        let Operands { case, keys, values, .. } = self.operands;
        let mut out = case.poisoned_out::<T>();
        for sequence in (0..case.shape.sequences).filter(|&s| case.past(s).is_none()) {
            // Elements that the kernel must set to NaN are not NaN before the launch.
            let rows = sequence * case.shape.tokens..(sequence + 1) * case.shape.tokens;
            rows.for_each(|row| out.view_mut().row_mut(row).fill(T::default()));
        }
        self.rig.write(self.params.out as u64, &out.data);
        if case.memory != Memory::None {
            self.rig.write(self.params.keys as u64, &keys.data);
            self.rig.write(self.params.values as u64, &values.data);
        }
        if self.plan.workspace.partial > 0 {
            // A kernel that reads the previous launch's partial sums gets NaN.
            self.rig.write(self.params.partial as u64, &vec![f32::NAN; self.plan.workspace.partial]);
        }
        let call = Call::new(
            &self.plan.launch.kernel,
            self.plan.launch.grid,
            self.plan.launch.threads,
            self.plan.launch.shared_bytes,
        );
        let counters = self.rig.launch(&call, &self.params)?;
        self.rig.read(self.params.out as u64, &mut out.data);
        let mut memory = [keys, values].map(|b| Buffer { data: b.data.clone(), ..*b });
        if case.memory != Memory::None {
            self.rig.read(self.params.keys as u64, &mut memory[0].data);
            self.rig.read(self.params.values as u64, &mut memory[1].data);
        }
        let [keys, values] = memory;
        Ok(Outputs { out, keys, values, counters })
    }
}
