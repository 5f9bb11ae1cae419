//! A merge on a rig: uploads buffers, launches, and reads the results back.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::Element;
use fused_lora::abi::{LoraMerge, LoraMergeReport};
use fused_lora::lora::Layout;
use fused_lora::plan::lora::MergePlan;

use super::decode::segment_table;
use super::rig::{Call, Failure, Rig, Uploads};
use super::{Buffer, Operand, RandomLayer};

/// The weight after a merge, and the kernel's report.
pub struct Merged<T> {
    pub weight: Buffer<T>,
    pub largest_rounding: f32,
    pub largest_change: f32,
    pub not_finite: u32,
}

/// Adds `sign` times the low-rank products of the layer's segments to `weight`, in place or into a buffer filled with
/// NaN. Without `with_segments` the launch only copies.
pub fn run<T: Element>(
    rig: &Rig,
    layer: &RandomLayer<T>,
    weight: &Buffer<T>,
    sign: f32,
    in_place: bool,
    with_segments: bool,
) -> Result<Merged<T>, Failure> {
    let plan = MergePlan::new(weight.rows, weight.cols, layer.shape.layout, T::DTYPE);
    let mut uploads = Uploads::new(rig);
    let segments = if with_segments { &layer.shape.segments[..] } else { &[] };
    let mut table = segment_table(segments, &layer.factors[..segments.len()], None, &mut uploads).segments;
    table.iter_mut().for_each(|segment| segment.factors.scale *= sign);
    let report = uploads.add(&[0.0f32; 3]);
    let source = uploads.place(weight);
    let mut out = if in_place {
        Buffer { data: vec![T::from_f64(f64::NAN); weight.data.len()], ..*weight }
    } else {
        layer.shape.poisoned::<T>(Operand::Y, weight.rows, weight.cols)
    };
    let target = if in_place { source } else { uploads.place(&out) };
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
    let call = Call::new(&plan.launch.kernel, plan.launch.grid, plan.launch.threads, plan.launch.shared_bytes);
    let mut told = [0.0f32; 3];
    let ended = rig.launch(&call, &params);
    rig.read(target, &mut out.data);
    rig.read(report, &mut told);
    ended?;
    Ok(Merged { weight: out, largest_rounding: told[0], largest_change: told[1], not_finite: told[2].to_bits() })
}

/// Rows and columns of a weight in this layout.
pub fn stored(layout: Layout, d_in: usize, d_out: usize) -> (usize, usize) {
    match layout {
        Layout::OutIn => (d_out, d_in),
        Layout::InOut => (d_in, d_out),
    }
}
