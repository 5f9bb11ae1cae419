//! A merge on the emulator: buffers uploaded, launched, read back.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::Element;
use fused_lora::abi::{LoraMerge, LoraMergeReport};
use fused_lora::lora::Layout;
use fused_lora::merge::MergePlan;
use fused_lora_emulator::{Error, Launch, Machine};

use super::decode::{segment_table, upload};
use super::{Buffer, RandomLayer};

/// What a merge left and told.
pub struct Merged<T> {
    pub weight: Buffer<T>,
    pub largest_rounding: f32,
    pub largest_change: f32,
    pub not_finite: u32,
}

/// Merges `sign` times the layer's segments into `weight`, or into a poisoned copy if `in_place` is not set. With
/// `segments_of` cut to none it is a copy.
pub fn run<T: Element>(
    machine: &Machine,
    layer: &RandomLayer<T>,
    weight: &Buffer<T>,
    sign: f32,
    in_place: bool,
    with_segments: bool,
) -> Result<Merged<T>, Error> {
    let plan = MergePlan::new(weight.rows, weight.cols, layer.shape.layout, T::DTYPE);
    let mut keep = vec![];
    let segments = if with_segments { &layer.shape.segments[..] } else { &[] };
    let (mut table, _) = segment_table(machine, segments, &layer.factors[..segments.len()], &mut keep);
    table.iter_mut().for_each(|segment| segment.scale *= sign);
    let report = upload(machine, &[0.0f32; 3], &mut keep);
    let source = upload(machine, &weight.data, &mut keep);
    let gap = weight.stride - weight.cols;
    let mut out = Buffer::<T>::poisoned(weight.rows, weight.cols, gap);
    let target = if in_place { source } else { upload(machine, &out.data, &mut keep) };
    let params = LoraMerge {
        source: source as *const _,
        weight: target as *mut _,
        report: report as *mut LoraMergeReport,
        rows: weight.rows as u32,
        columns: weight.cols as u32,
        source_stride: weight.stride as u32,
        weight_stride: out.stride as u32,
        segment_count: segments.len() as u32,
        reserved: 0,
        segments: table,
    };
    // SAFETY: the struct is plain data without padding that is read.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const params).cast::<u8>(), size_of::<LoraMerge>()) };
    let launch = Launch {
        kernel: &plan.kernel,
        grid: plan.grid,
        block: plan.threads,
        shared_bytes: plan.shared_bytes,
        cluster: 1,
        params: bytes,
    };
    let mut told = [0.0f32; 3];
    // SAFETY: the parameters point to allocations of the sizes that the shape says; no other launch runs.
    let ended = unsafe {
        let ended = machine.launch(&launch);
        machine.read(target, bytemuck::cast_slice_mut(&mut out.data));
        machine.read(report, bytemuck::cast_slice_mut(&mut told));
        keep.iter().for_each(|&address| machine.free(address));
        ended
    };
    ended?;
    Ok(Merged { weight: out, largest_rounding: told[0], largest_change: told[1], not_finite: told[2].to_bits() })
}

/// The layout's rows and columns.
pub fn stored(layout: Layout, d_in: usize, d_out: usize) -> (usize, usize) {
    match layout {
        Layout::OutIn => (d_out, d_in),
        Layout::InOut => (d_in, d_out),
    }
}
