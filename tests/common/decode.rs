//! A layer's decode launch: uploads buffers and fills in the kernel's parameters from the plan.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::abi::{self, LoraDecode, LoraFactors, LoraSegment};
use fused_lora::dropout::Dropout;
use fused_lora::lora::{Activation, Layout};
use fused_lora::plan::lora::DecodePlan;
use fused_lora::{ComputePath, DType, Element, LayerProblem, WorkspaceLayout};
use fused_lora_emulator::Counters;

use super::rig::{Call, Failure, Rig, Uploads};
use super::{Buffer, Operand, RandomLayer};

/// Options of a launch.
pub struct Options<'a, T> {
    pub activation: Activation,
    pub residual: Option<&'a Buffer<T>>,
    pub multiprocessors: usize,
    pub path: ComputePath,
    /// Computes the base product only, without the segments.
    pub base_only: bool,
    /// The compute capability to plan for, if not the rig's.
    pub compute_capability: Option<(u32, u32)>,
    /// Reads A and B through a slot; the ranks that the launch is planned for are higher by this than the adapter's.
    pub slot: Option<usize>,
    /// Forward only: T is not stored, so that the shrink of low ranks may be fused.
    pub serving: bool,
    /// Forward only: the caller gets T.
    pub t_out: bool,
    /// Forward only: the dropout of x in the product T = x·Aᵀ.
    pub dropout: Option<Dropout>,
}

impl<T> Default for Options<'_, T> {
    fn default() -> Self {
        Self {
            activation: Activation::Identity,
            residual: None,
            multiprocessors: 6,
            path: ComputePath::Auto,
            base_only: false,
            compute_capability: None,
            slot: None,
            serving: false,
            t_out: false,
            dropout: None,
        }
    }
}

/// A layer on a device that can be launched any number of times.
pub struct Decode<'m, T> {
    rig: &'m Rig,
    pub plan: DecodePlan,
    params: LoraDecode,
    uploads: Uploads<'m>,
    y: u64,
    y_like: Buffer<T>,
}

/// The kernels' code of an activation.
pub fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Identity => abi::LORA_IDENTITY,
        Activation::Relu => abi::LORA_RELU,
        Activation::GeluNew => abi::LORA_GELU_NEW,
    }
}

pub fn aligned<T>(buffer: &Buffer<T>) -> bool {
    let elements = 16 / size_of::<T>();
    [buffer.cols, buffer.stride, buffer.shift].iter().all(|length| length.is_multiple_of(elements))
}

/// The segments' factors on the device, the sum of their ranks, and the slot's address if they are read through one.
pub struct SegmentTable {
    pub segments: [LoraSegment; abi::LORA_MAX_SEGMENTS as usize],
    pub total_rank: u32,
    pub slot: u64,
    pub slot_begin: u32,
}

/// Uploads the factors. With a `slot` the segments themselves have no factors, and their ranks are higher by this
/// number.
pub fn segment_table<T: Element>(
    segments: &[(usize, usize, usize)],
    factors: &[(Buffer<T>, Buffer<T>, f32)],
    slot: Option<usize>,
    uploads: &mut Uploads<'_>,
) -> SegmentTable {
    let mut table = [LoraSegment::NONE; abi::LORA_MAX_SEGMENTS as usize];
    let mut t_begin = 0;
    // The slot begins with another layer's factors, which must not be read.
    let mut in_slot = vec![[0u64; 4]; 2];
    for (place, (&(begin, end, rank), (a, b, scale))) in table.iter_mut().zip(segments.iter().zip(factors)) {
        *place = LoraSegment {
            factors: LoraFactors {
                a: uploads.place(a) as *const _,
                b: uploads.place(b) as *const _,
                a_stride: a.stride as u32,
                b_stride: b.stride as u32,
                rank: rank as u32,
                scale: *scale,
            },
            begin: begin as u32,
            end: end as u32,
            t_begin,
            packed_begin: 0,
        };
        if let Some(spare) = slot {
            let LoraFactors { a, b, a_stride, b_stride, rank, scale } = place.factors;
            let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
            in_slot.push([a as u64, b as u64, pair(a_stride, b_stride), pair(rank, scale.to_bits())]);
            place.factors = LoraFactors { rank: rank + spare as u32, ..LoraSegment::NONE.factors };
        }
        t_begin += place.factors.rank;
    }
    let mut word = || {
        let records = uploads.add(&in_slot);
        uploads.add(&[records])
    };
    SegmentTable { segments: table, total_rank: t_begin, slot: slot.map_or(0, |_| word()), slot_begin: 2 }
}

impl<'m, T: Element> Decode<'m, T> {
    pub fn new(rig: &'m Rig, random: &RandomLayer<T>, x: &Buffer<T>, options: &Options<'_, T>) -> Self {
        let shape = &random.shape;
        let segments: &[(usize, usize, usize)] = if options.base_only { &[] } else { &shape.segments };
        let ranks: Vec<usize> = segments.iter().map(|s| s.2 + options.slot.unwrap_or(0)).collect();
        let factors = &random.factors[..segments.len()];
        let all_aligned = aligned(x) && aligned(&random.weight) && factors.iter().all(|(a, ..)| aligned(a));
        let plan = DecodePlan::new(&LayerProblem {
            tokens: shape.tokens,
            d_in: shape.d_in,
            d_out: shape.d_out,
            layout: shape.layout,
            dtype: T::DTYPE,
            ranks: &ranks,
            aligned: all_aligned,
            multiprocessors: options.multiprocessors,
            compute_capability: rig.compute_capability(),
            path: options.path,
        })
        .unwrap();

        let mut uploads = Uploads::new(rig);
        let table = segment_table(segments, factors, options.slot, &mut uploads);
        let workspace = uploads.add_workspace(&plan.workspace);
        let y_like = shape.poisoned::<T>(Operand::Y, shape.tokens, shape.d_out);
        let y = uploads.place(&y_like);
        let params = LoraDecode {
            x: uploads.place(x) as *const _,
            weight: uploads.place(&random.weight) as *const _,
            bias: if shape.bias {
                uploads.add_behind(shape.gaps.before_first(Operand::Bias), &random.bias) as *const _
            } else {
                std::ptr::null()
            },
            residual: options.residual.map_or(std::ptr::null(), |r| uploads.place(r) as *const _),
            y: y as *mut _,
            ticket: workspace as *mut _,
            t: (workspace + WorkspaceLayout::T_OFFSET as u64) as *mut _,
            partial: (workspace + plan.workspace.partial_offset() as u64) as *mut _,
            arrivals: (workspace + plan.workspace.arrivals_offset() as u64) as *mut _,
            slot: table.slot as *const _,
            tokens: shape.tokens as u32,
            depth: shape.d_in as u32,
            columns: shape.d_out as u32,
            total_rank: table.total_rank,
            x_stride: x.stride as u32,
            weight_stride: random.weight.stride as u32,
            y_stride: y_like.stride as u32,
            residual_stride: options.residual.map_or(0, |r| r.stride as u32),
            tile_columns: plan.tile_columns,
            row_threads: plan.row_threads,
            splits: plan.splits,
            split_depth: plan.split_depth,
            shrink_rows: plan.shrink_rows,
            widest_rank: plan.widest_rank,
            activation: activation_code(options.activation),
            segment_count: segments.len() as u32,
            slot_begin: table.slot_begin,
            sums_stride: plan.sums_stride,
            segments: table.segments,
        };
        Self { rig, plan, params, uploads, y, y_like }
    }

    /// Fills y with NaN, launches, and returns y.
    pub fn run(&self) -> Result<(Buffer<T>, Counters), Failure> {
        let mut y = Buffer::<T> { data: self.y_like.data.clone(), ..self.y_like };
        self.rig.write(self.y, &y.data);
        self.poison_t();
        let call = Call::new(
            &self.plan.launch.kernel,
            self.plan.launch.grid,
            self.plan.launch.threads,
            self.plan.launch.shared_bytes,
        );
        let counters = self.rig.launch(&call, &self.params)?;
        self.rig.read(self.y, &mut y.data);
        Ok((y, counters))
    }
}

impl<T> Decode<'_, T> {
    /// Clears the words of T: what they are where launches of other plans used the workspace until now.
    pub fn clear_words(&self) {
        if self.plan.workspace.t_words != 0 {
            self.rig.write(self.params.t as u64, &vec![0u64; self.plan.workspace.t_words]);
        }
    }

    /// Sets the values that the previous launch left in T to NaN and keeps their epochs, so that a kernel that reads a
    /// value of the previous launch gets NaN.
    fn poison_t(&self) {
        let mut words = vec![0u64; self.plan.workspace.t_words];
        let address = self.params.t as u64;
        if words.is_empty() {
            return;
        }
        self.rig.read(address, &mut words);
        words.iter_mut().for_each(|word| *word |= 0xffff_ffff);
        self.rig.write(address, &words);
    }
}

/// The number of elements in a chunk of 16 bytes.
pub fn chunk(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Both layouts.
pub const LAYOUTS: [Layout; 2] = [Layout::OutIn, Layout::InOut];
