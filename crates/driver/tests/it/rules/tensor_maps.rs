//! Rules of tensor maps.

use fused_lora_driver::Rule;
use fused_lora_driver::calls::tensor_map;

use super::{CASE, Case};
use crate::calls::*;

const MAP: Case = Case { call: "cuTensorMapEncodeTiled", kept: || tensor().encode(), ..CASE };

/// Where a tensor map may lie.
#[repr(align(64))]
struct Place(#[expect(dead_code, reason = "the driver writes it")] [u8; 128]);

fn code_of(change: impl FnOnce(&mut Tensor)) -> u32 {
    let mut tensor = tensor();
    change(&mut tensor);
    tensor.encode()
}

pub(super) const CASES: &[Case] = &[
    Case {
        rule: Rule::MapPlace,
        name: "map at an odd multiple of 32",
        broken: || code_of(|tensor| tensor.shift = 4),
        kept: || code_of(|tensor| tensor.shift = 8),
        ..MAP
    },
    Case {
        rule: Rule::MapDevice,
        name: "tensor map before compute capability 9.0",
        broken: || {
            set("capability=8.9");
            tensor().encode()
        },
        ..MAP
    },
    Case { rule: Rule::MapElement, name: "packed elements", broken: || code_of(|tensor| tensor.data_type = 13), ..MAP },
    Case {
        rule: Rule::MapElement,
        name: "integers filled with NaN",
        broken: || code_of(|tensor| (tensor.data_type, tensor.fill) = (2, 1)),
        kept: || code_of(|tensor| (tensor.data_type, tensor.fill) = (7, 1)),
        ..MAP
    },
    Case { rule: Rule::MapRank, name: "no dimension", broken: || code_of(|tensor| tensor.rank = 0), ..MAP },
    Case {
        rule: Rule::MapRank,
        name: "dimensions at null",
        broken: || {
            let (mut map, tensor) = (Place([0; 128]), tensor());
            call!(tensor_map::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                tensor.data_type,
                tensor.rank,
                std::ptr::with_exposed_provenance_mut(tensor.address as usize),
                std::ptr::null(),
                tensor.strides.as_ptr(),
                tensor.boxes.as_ptr(),
                tensor.steps.as_ptr(),
                0,
                0,
                0,
                0
            ))
        },
        ..MAP
    },
    Case { rule: Rule::MapRank, name: "dimension of no element", broken: || code_of(|t| t.dims[1] = 0), ..MAP },
    Case {
        rule: Rule::MapRank,
        name: "dimension of more than 2^32 elements",
        broken: || code_of(|tensor| tensor.dims[1] = (1 << 32) + 1),
        ..MAP
    },
    Case {
        rule: Rule::MapAddress,
        name: "tensor at an odd multiple of 8",
        broken: || code_of(|tensor| (tensor.address, tensor.dims[1]) = (tensor.address + 8, 8)),
        kept: || code_of(|tensor| (tensor.address, tensor.dims[1]) = (tensor.address + 16, 8)),
        ..MAP
    },
    Case {
        rule: Rule::MapAddress,
        name: "tensor longer than its memory",
        broken: || code_of(|tensor| tensor.dims[1] = 17),
        kept: || code_of(|tensor| tensor.dims[1] = 16),
        ..MAP
    },
    Case {
        rule: Rule::MapAddress,
        name: "tensor longer than 2^64 bytes",
        broken: || {
            code_of(|tensor| {
                tensor.rank = 3;
                tensor.dims = vec![32, 1 << 32, 1 << 32];
                tensor.strides = vec![128, (1 << 40) - 16];
                (tensor.boxes, tensor.steps) = (vec![32, 1, 1], vec![1; 3]);
            })
        },
        ..MAP
    },
    Case {
        rule: Rule::MapStride,
        name: "stride of an odd multiple of 8",
        broken: || code_of(|tensor| (tensor.strides[0], tensor.dims[1]) = (136, 8)),
        kept: || code_of(|tensor| (tensor.strides[0], tensor.dims[1]) = (144, 8)),
        ..MAP
    },
    Case {
        rule: Rule::MapStride,
        name: "rows that overlap",
        broken: || code_of(|tensor| tensor.strides[0] = 112),
        ..MAP
    },
    Case {
        rule: Rule::MapBox,
        name: "box of 257 rows",
        broken: || code_of(|tensor| tensor.boxes[1] = 257),
        kept: || code_of(|tensor| tensor.boxes[1] = 256),
        ..MAP
    },
    Case { rule: Rule::MapBox, name: "box with a row of 8 bytes", broken: || code_of(|t| t.boxes[0] = 2), ..MAP },
    Case {
        rule: Rule::MapBox,
        name: "box of 2^64 elements",
        broken: || {
            code_of(|tensor| {
                tensor.rank = 3;
                tensor.dims = vec![32, 4, 4];
                tensor.strides = vec![128, 512];
                (tensor.boxes, tensor.steps) = (vec![u32::MAX; 3], vec![1; 3]);
            })
        },
        ..MAP
    },
    Case { rule: Rule::MapElementStride, name: "element stride 9", broken: || code_of(|t| t.steps[1] = 9), ..MAP },
    Case {
        rule: Rule::MapSwizzle,
        name: "row longer than the swizzle",
        broken: || code_of(|tensor| tensor.swizzle = 2),
        kept: || code_of(|tensor| tensor.swizzle = 3),
        ..MAP
    },
    Case { rule: Rule::MapInterleave, name: "interleaved map", broken: || code_of(|t| t.interleave = 1), ..MAP },
    Case { rule: Rule::MapInterleave, name: "promotion 4", broken: || code_of(|t| t.promotion = 4), ..MAP },
];
