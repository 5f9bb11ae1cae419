//! Tensor maps, with the conditions of `cuTensorMapEncodeTiled` in the driver's documentation.

use std::ffi::c_void;

use fused_lora_emulator::TensorMap;

use crate::entry::driver_functions;
use crate::limits;
use crate::rules::{Outcome, Rule, refused};
use crate::state::in_context;

/// Bytes of an element of each `CUtensorMapDataType`; 0 for those that take no part here.
const ELEMENT_BYTES: [u32; 13] = [1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4];
/// The first and last floating-point types.
const FLOATS: std::ops::RangeInclusive<u32> = 6..=12;
/// `CU_TENSOR_MAP_SWIZZLE_128B`.
const SWIZZLE_128: u32 = 3;
/// The longest row with each `CUtensorMapSwizzle`: none, 32, 64 and 128 bytes, and three of 128 bytes in larger units.
const SPANS: [u64; 7] = [u64::MAX, 32, 64, 128, 128, 128, 128];

/// Dimensions, strides, the box and the element strides.
type Arrays<'a> = (&'a [u64], &'a [u64], &'a [u32], &'a [u32]);

/// The arrays of a description.
///
/// # Safety
/// Each is null or as long as the rank says; strides are one less.
unsafe fn arrays<'a>(
    rank: usize,
    dims: *const u64,
    strides: *const u64,
    boxes: *const u32,
    steps: *const u32,
) -> Outcome<Arrays<'a>> {
    let all = !dims.is_null() && (rank == 1 || !strides.is_null()) && !boxes.is_null() && !steps.is_null();
    Rule::MapRank.expect(all, || "An array is null.".into())?;
    // SAFETY: the caller's promise, and not null.
    unsafe {
        let strides = if rank == 1 { &[] } else { std::slice::from_raw_parts(strides, rank - 1) };
        let of_u32 = |from| std::slice::from_raw_parts(from, rank);
        Ok((std::slice::from_raw_parts(dims, rank), strides, of_u32(boxes), of_u32(steps)))
    }
}

driver_functions! {
    /// Encodes a tensor map. Its contents are this driver's own, as those of NVIDIA's are.
    fn cuTensorMapEncodeTiled(
        map: *mut c_void,
        data_type: u32,
        rank: u32,
        address: *mut c_void,
        dims: *const u64,
        strides: *const u64,
        boxes: *const u32,
        element_strides: *const u32,
        interleave: u32,
        swizzle: u32,
        promotion: u32,
        fill: u32,
    ) {
        in_context(|state, device| {
            Rule::MapDevice.expect(limits::of(state.options.capability).has_clusters, String::new)?;
            let place = !map.is_null() && map.align_offset(64) == 0;
            Rule::MapPlace.expect(place, || format!("{map:p} is none."))?;
            let bytes = ELEMENT_BYTES.get(data_type as usize).copied().unwrap_or_default();
            let known = bytes != 0 && fill <= 1 && (fill == 0 || FLOATS.contains(&data_type));
            Rule::MapElement.expect(known, || format!("Data type {data_type}, fill {fill}."))?;
            Rule::MapRank.expect((1..=5).contains(&rank), || format!("{rank} dimensions."))?;
            Rule::MapInterleave.expect(interleave == 0 && promotion <= 3, || {
                format!("Interleaved by {interleave}, promotion {promotion}.")
            })?;
            // SAFETY: the caller's promise.
            let (dims, strides, boxes, steps) = unsafe { arrays(rank as usize, dims, strides, boxes, element_strides) }?;
            let sizes = dims.iter().all(|size| (1..=1 << 32).contains(size));
            Rule::MapRank.expect(sizes, || format!("Dimensions {dims:?}."))?;

            let mut long = dims[0] * u64::from(bytes);
            for (stride, size) in strides.iter().zip(&dims[1..]) {
                let fits = stride.is_multiple_of(16) && *stride < 1 << 40 && *stride >= long;
                Rule::MapStride.expect(fits, || format!("Strides {strides:?} of dimensions {dims:?}."))?;
                long = long.saturating_add(stride.saturating_mul(size - 1));
            }
            let address = address.expose_provenance() as u64;
            Rule::MapAddress.expect(address.is_multiple_of(16), || format!("{address:#x}."))?;
            let held = state.device(device).expect_memory(address, long as usize).is_ok();
            Rule::MapAddress.expect(held, || format!("{long} bytes at {address:#x} do not."))?;

            let row = u64::from(boxes[0]) * u64::from(bytes);
            let whole = || boxes.iter().map(|&size| u64::from(size)).product::<u64>() * u64::from(bytes);
            let sizes = boxes.iter().all(|size| (1..=256).contains(size));
            let fits = sizes && row.is_multiple_of(16) && whole() <= 128 << 10;
            Rule::MapBox.expect(fits, || format!("A box of {boxes:?} elements of {bytes} bytes."))?;
            let fits = steps.iter().all(|step| (1..=8).contains(step));
            Rule::MapElementStride.expect(fits, || format!("{steps:?}."))?;
            let span = SPANS.get(swizzle as usize).copied().unwrap_or_default();
            Rule::MapSwizzle.expect(row <= span, || format!("A row of {row} bytes with swizzle {swizzle}."))?;
            let used = steps.iter().all(|&step| step == 1) && (swizzle == 0 || swizzle == SWIZZLE_128);
            if !used {
                return refused(999, "the emulator has no element strides and no other swizzle than that of 128 bytes");
            }

            let swizzle_128 = swizzle == SWIZZLE_128;
            let tensor = TensorMap { address, element_bytes: bytes, dims, strides, boxes, swizzle_128 };
            match state.device(device).machine.encode_tensor_map(&tensor) {
                Ok(words) => {
                    // SAFETY: the caller's promise that 128 bytes lie there; the alignment was checked.
                    unsafe { map.cast::<[u64; 16]>().write(words) };
                    Ok(())
                }
                Err(error) => refused(1, error.to_string()),
            }
        })
    }
}
