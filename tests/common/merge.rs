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

/// What the kernel must leave, bit for bit: the same operations in the same order, on the host.
///
/// Products are added to an f32 sum by fma, in the order of the segments and of their ranks; the scale is multiplied into the
/// factor that runs along the weight's rows. The sum is added to the weight in f32 and rounded to its type once. The rounding
/// error that the report has is that of both roundings together, computed in f32.
fn model<T: Element>(
    layer: &RandomLayer<T>,
    before: &Buffer<T>,
    sign: f32,
    in_place: bool,
    with_segments: bool,
) -> Merged<T> {
    let by_rows = layer.shape.layout == Layout::OutIn;
    let segments = if with_segments { &layer.shape.segments[..] } else { &[] };
    let mut weight = Buffer { data: before.data.clone(), ..*before };
    let (mut largest_rounding, mut largest_change, mut not_finite) = (0.0f32, 0.0f32, 0);
    for row in 0..before.rows {
        for column in 0..before.cols {
            let (input, output) = if by_rows { (column, row) } else { (row, column) };
            let (mut sum, mut covered) = (0.0f32, !in_place);
            for (&(begin, end, rank), (a, b, scale)) in segments.iter().zip(&layer.factors) {
                if !(begin..end).contains(&output) {
                    continue;
                }
                covered = true;
                for l in 0..rank {
                    let (a, b) = (a.view().row(l)[input].to_f32(), b.view().row(output - begin)[l].to_f32());
                    let (along_rows, across) = if by_rows { (b, a) } else { (a, b) };
                    sum = (scale * sign * along_rows).mul_add(across, sum);
                }
            }
            if !covered {
                continue;
            }
            let old = before.view().row(row)[column].to_f32();
            let after = old + sum;
            let stored = T::from_f64(f64::from(after));
            weight.view_mut().row_mut(row)[column] = stored;
            let stored = stored.to_f32();
            if stored.is_finite() {
                let of_sum = after - old;
                let of_old = after - of_sum;
                let rounding = ((after - stored) + ((old - of_old) + (sum - of_sum))).abs();
                (largest_rounding, largest_change) = (largest_rounding.max(rounding), largest_change.max(sum.abs()));
            } else {
                not_finite += 1;
            }
        }
    }
    Merged { weight, largest_rounding, largest_change, not_finite }
}

/// What of a merge is not as the host computes it.
pub fn fault<T: Element>(
    layer: &RandomLayer<T>,
    before: &Buffer<T>,
    sign: f32,
    in_place: bool,
    with_segments: bool,
    merged: &Merged<T>,
) -> Option<String> {
    let expected = model(layer, before, sign, in_place, with_segments);
    for row in 0..before.rows {
        for (column, (got, expected)) in
            merged.weight.view().row(row).iter().zip(expected.weight.view().row(row)).enumerate()
        {
            if got.to_f32().to_bits() != expected.to_f32().to_bits() {
                return Some(format!("[{row}, {column}] is {got:?}, expected {expected:?}"));
            }
        }
    }
    let report = |of: &Merged<T>| (of.largest_rounding.to_bits(), of.largest_change.to_bits(), of.not_finite);
    if report(merged) != report(&expected) {
        let told = |of: &Merged<T>| format!("{:e}, {:e}, {}", of.largest_rounding, of.largest_change, of.not_finite);
        return Some(format!("the report is {}, expected {}", told(merged), told(&expected)));
    }
    (!merged.weight.gaps_untouched()).then(|| "a gap after a row was written".to_owned())
}

/// Rows and columns of a weight in this layout.
pub fn stored(layout: Layout, d_in: usize, d_out: usize) -> (usize, usize) {
    match layout {
        Layout::OutIn => (d_out, d_in),
        Layout::InOut => (d_in, d_out),
    }
}
