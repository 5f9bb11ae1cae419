//! What the kernels and this library share, made from kernels/abi.h by `cargo xtask bindings`.
#![allow(missing_docs, non_camel_case_types, clippy::all)]

pub const LORA_MAX_SEGMENTS: _bindgen_ty_1 = 16;
pub const LORA_MAX_RANK: _bindgen_ty_1 = 512;
pub const LORA_DECODE_MAX_TOKENS: _bindgen_ty_1 = 16;
pub const LORA_SHRINK_ROWS: _bindgen_ty_1 = 4;
pub const LORA_FORWARD_RANK_STEP: _bindgen_ty_1 = 16;
pub const LORA_FORWARD_T_COLUMNS: _bindgen_ty_1 = 64;
pub type _bindgen_ty_1 = ::core::ffi::c_uint;
pub const LORA_IDENTITY: _bindgen_ty_2 = 0;
pub const LORA_RELU: _bindgen_ty_2 = 1;
pub const LORA_GELU_NEW: _bindgen_ty_2 = 2;
pub type _bindgen_ty_2 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraFactors {
    pub a: *const ::core::ffi::c_void,
    pub b: *const ::core::ffi::c_void,
    pub a_stride: u32,
    pub b_stride: u32,
    pub rank: u32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraFactors"][::core::mem::size_of::<LoraFactors>() - 32usize];
    ["Alignment of LoraFactors"][::core::mem::align_of::<LoraFactors>() - 8usize];
    ["Offset of field: LoraFactors::a"][::core::mem::offset_of!(LoraFactors, a) - 0usize];
    ["Offset of field: LoraFactors::b"][::core::mem::offset_of!(LoraFactors, b) - 8usize];
    ["Offset of field: LoraFactors::a_stride"][::core::mem::offset_of!(LoraFactors, a_stride) - 16usize];
    ["Offset of field: LoraFactors::b_stride"][::core::mem::offset_of!(LoraFactors, b_stride) - 20usize];
    ["Offset of field: LoraFactors::rank"][::core::mem::offset_of!(LoraFactors, rank) - 24usize];
    ["Offset of field: LoraFactors::scale"][::core::mem::offset_of!(LoraFactors, scale) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraSegment {
    pub factors: LoraFactors,
    pub begin: u32,
    pub end: u32,
    pub t_begin: u32,
    pub packed_begin: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraSegment"][::core::mem::size_of::<LoraSegment>() - 48usize];
    ["Alignment of LoraSegment"][::core::mem::align_of::<LoraSegment>() - 8usize];
    ["Offset of field: LoraSegment::factors"][::core::mem::offset_of!(LoraSegment, factors) - 0usize];
    ["Offset of field: LoraSegment::begin"][::core::mem::offset_of!(LoraSegment, begin) - 32usize];
    ["Offset of field: LoraSegment::end"][::core::mem::offset_of!(LoraSegment, end) - 36usize];
    ["Offset of field: LoraSegment::t_begin"][::core::mem::offset_of!(LoraSegment, t_begin) - 40usize];
    ["Offset of field: LoraSegment::packed_begin"][::core::mem::offset_of!(LoraSegment, packed_begin) - 44usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraDecode {
    pub x: *const ::core::ffi::c_void,
    pub weight: *const ::core::ffi::c_void,
    pub bias: *const ::core::ffi::c_void,
    pub residual: *const ::core::ffi::c_void,
    pub y: *mut ::core::ffi::c_void,
    pub ticket: *mut ::core::ffi::c_ulonglong,
    pub t: *mut ::core::ffi::c_ulonglong,
    pub partial: *mut f32,
    pub arrivals: *mut u32,
    pub slot: *const *const LoraFactors,
    pub tokens: u32,
    pub depth: u32,
    pub columns: u32,
    pub total_rank: u32,
    pub x_stride: u32,
    pub weight_stride: u32,
    pub y_stride: u32,
    pub residual_stride: u32,
    pub tile_columns: u32,
    pub row_threads: u32,
    pub splits: u32,
    pub split_depth: u32,
    pub shrink_rows: u32,
    pub widest_rank: u32,
    pub activation: u32,
    pub segment_count: u32,
    pub slot_begin: u32,
    pub sums_stride: u32,
    pub segments: [LoraSegment; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraDecode"][::core::mem::size_of::<LoraDecode>() - 920usize];
    ["Alignment of LoraDecode"][::core::mem::align_of::<LoraDecode>() - 8usize];
    ["Offset of field: LoraDecode::x"][::core::mem::offset_of!(LoraDecode, x) - 0usize];
    ["Offset of field: LoraDecode::weight"][::core::mem::offset_of!(LoraDecode, weight) - 8usize];
    ["Offset of field: LoraDecode::bias"][::core::mem::offset_of!(LoraDecode, bias) - 16usize];
    ["Offset of field: LoraDecode::residual"][::core::mem::offset_of!(LoraDecode, residual) - 24usize];
    ["Offset of field: LoraDecode::y"][::core::mem::offset_of!(LoraDecode, y) - 32usize];
    ["Offset of field: LoraDecode::ticket"][::core::mem::offset_of!(LoraDecode, ticket) - 40usize];
    ["Offset of field: LoraDecode::t"][::core::mem::offset_of!(LoraDecode, t) - 48usize];
    ["Offset of field: LoraDecode::partial"][::core::mem::offset_of!(LoraDecode, partial) - 56usize];
    ["Offset of field: LoraDecode::arrivals"][::core::mem::offset_of!(LoraDecode, arrivals) - 64usize];
    ["Offset of field: LoraDecode::slot"][::core::mem::offset_of!(LoraDecode, slot) - 72usize];
    ["Offset of field: LoraDecode::tokens"][::core::mem::offset_of!(LoraDecode, tokens) - 80usize];
    ["Offset of field: LoraDecode::depth"][::core::mem::offset_of!(LoraDecode, depth) - 84usize];
    ["Offset of field: LoraDecode::columns"][::core::mem::offset_of!(LoraDecode, columns) - 88usize];
    ["Offset of field: LoraDecode::total_rank"][::core::mem::offset_of!(LoraDecode, total_rank) - 92usize];
    ["Offset of field: LoraDecode::x_stride"][::core::mem::offset_of!(LoraDecode, x_stride) - 96usize];
    ["Offset of field: LoraDecode::weight_stride"][::core::mem::offset_of!(LoraDecode, weight_stride) - 100usize];
    ["Offset of field: LoraDecode::y_stride"][::core::mem::offset_of!(LoraDecode, y_stride) - 104usize];
    ["Offset of field: LoraDecode::residual_stride"][::core::mem::offset_of!(LoraDecode, residual_stride) - 108usize];
    ["Offset of field: LoraDecode::tile_columns"][::core::mem::offset_of!(LoraDecode, tile_columns) - 112usize];
    ["Offset of field: LoraDecode::row_threads"][::core::mem::offset_of!(LoraDecode, row_threads) - 116usize];
    ["Offset of field: LoraDecode::splits"][::core::mem::offset_of!(LoraDecode, splits) - 120usize];
    ["Offset of field: LoraDecode::split_depth"][::core::mem::offset_of!(LoraDecode, split_depth) - 124usize];
    ["Offset of field: LoraDecode::shrink_rows"][::core::mem::offset_of!(LoraDecode, shrink_rows) - 128usize];
    ["Offset of field: LoraDecode::widest_rank"][::core::mem::offset_of!(LoraDecode, widest_rank) - 132usize];
    ["Offset of field: LoraDecode::activation"][::core::mem::offset_of!(LoraDecode, activation) - 136usize];
    ["Offset of field: LoraDecode::segment_count"][::core::mem::offset_of!(LoraDecode, segment_count) - 140usize];
    ["Offset of field: LoraDecode::slot_begin"][::core::mem::offset_of!(LoraDecode, slot_begin) - 144usize];
    ["Offset of field: LoraDecode::sums_stride"][::core::mem::offset_of!(LoraDecode, sums_stride) - 148usize];
    ["Offset of field: LoraDecode::segments"][::core::mem::offset_of!(LoraDecode, segments) - 152usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraDropout {
    pub step: *const u32,
    pub seed_low: u32,
    pub seed_high: u32,
    pub layer: u32,
    pub offset: u32,
    pub threshold: u32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraDropout"][::core::mem::size_of::<LoraDropout>() - 32usize];
    ["Alignment of LoraDropout"][::core::mem::align_of::<LoraDropout>() - 8usize];
    ["Offset of field: LoraDropout::step"][::core::mem::offset_of!(LoraDropout, step) - 0usize];
    ["Offset of field: LoraDropout::seed_low"][::core::mem::offset_of!(LoraDropout, seed_low) - 8usize];
    ["Offset of field: LoraDropout::seed_high"][::core::mem::offset_of!(LoraDropout, seed_high) - 12usize];
    ["Offset of field: LoraDropout::layer"][::core::mem::offset_of!(LoraDropout, layer) - 16usize];
    ["Offset of field: LoraDropout::offset"][::core::mem::offset_of!(LoraDropout, offset) - 20usize];
    ["Offset of field: LoraDropout::threshold"][::core::mem::offset_of!(LoraDropout, threshold) - 24usize];
    ["Offset of field: LoraDropout::scale"][::core::mem::offset_of!(LoraDropout, scale) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraForward {
    pub x: *const ::core::ffi::c_void,
    pub weight: *const ::core::ffi::c_void,
    pub bias: *const ::core::ffi::c_void,
    pub residual: *const ::core::ffi::c_void,
    pub y: *mut ::core::ffi::c_void,
    pub t_out: *mut ::core::ffi::c_void,
    pub ticket: *mut ::core::ffi::c_ulonglong,
    pub t: *mut ::core::ffi::c_void,
    pub flags: *mut u32,
    pub partial: *mut f32,
    pub arrivals: *mut u32,
    pub t_partial: *mut f32,
    pub t_arrivals: *mut u32,
    pub slot: *const *const LoraFactors,
    pub dropout: LoraDropout,
    pub tokens: u32,
    pub depth: u32,
    pub columns: u32,
    pub x_stride: u32,
    pub weight_stride: u32,
    pub y_stride: u32,
    pub residual_stride: u32,
    pub t_stride: u32,
    pub t_out_stride: u32,
    pub row_tiles: u32,
    pub column_tiles: u32,
    pub t_tiles: u32,
    pub splits: u32,
    pub split_depth: u32,
    pub t_splits: u32,
    pub t_split_depth: u32,
    pub raster_rows: u32,
    pub activation: u32,
    pub segment_count: u32,
    pub slot_begin: u32,
    pub segments: [LoraSegment; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraForward"][::core::mem::size_of::<LoraForward>() - 992usize];
    ["Alignment of LoraForward"][::core::mem::align_of::<LoraForward>() - 8usize];
    ["Offset of field: LoraForward::x"][::core::mem::offset_of!(LoraForward, x) - 0usize];
    ["Offset of field: LoraForward::weight"][::core::mem::offset_of!(LoraForward, weight) - 8usize];
    ["Offset of field: LoraForward::bias"][::core::mem::offset_of!(LoraForward, bias) - 16usize];
    ["Offset of field: LoraForward::residual"][::core::mem::offset_of!(LoraForward, residual) - 24usize];
    ["Offset of field: LoraForward::y"][::core::mem::offset_of!(LoraForward, y) - 32usize];
    ["Offset of field: LoraForward::t_out"][::core::mem::offset_of!(LoraForward, t_out) - 40usize];
    ["Offset of field: LoraForward::ticket"][::core::mem::offset_of!(LoraForward, ticket) - 48usize];
    ["Offset of field: LoraForward::t"][::core::mem::offset_of!(LoraForward, t) - 56usize];
    ["Offset of field: LoraForward::flags"][::core::mem::offset_of!(LoraForward, flags) - 64usize];
    ["Offset of field: LoraForward::partial"][::core::mem::offset_of!(LoraForward, partial) - 72usize];
    ["Offset of field: LoraForward::arrivals"][::core::mem::offset_of!(LoraForward, arrivals) - 80usize];
    ["Offset of field: LoraForward::t_partial"][::core::mem::offset_of!(LoraForward, t_partial) - 88usize];
    ["Offset of field: LoraForward::t_arrivals"][::core::mem::offset_of!(LoraForward, t_arrivals) - 96usize];
    ["Offset of field: LoraForward::slot"][::core::mem::offset_of!(LoraForward, slot) - 104usize];
    ["Offset of field: LoraForward::dropout"][::core::mem::offset_of!(LoraForward, dropout) - 112usize];
    ["Offset of field: LoraForward::tokens"][::core::mem::offset_of!(LoraForward, tokens) - 144usize];
    ["Offset of field: LoraForward::depth"][::core::mem::offset_of!(LoraForward, depth) - 148usize];
    ["Offset of field: LoraForward::columns"][::core::mem::offset_of!(LoraForward, columns) - 152usize];
    ["Offset of field: LoraForward::x_stride"][::core::mem::offset_of!(LoraForward, x_stride) - 156usize];
    ["Offset of field: LoraForward::weight_stride"][::core::mem::offset_of!(LoraForward, weight_stride) - 160usize];
    ["Offset of field: LoraForward::y_stride"][::core::mem::offset_of!(LoraForward, y_stride) - 164usize];
    ["Offset of field: LoraForward::residual_stride"][::core::mem::offset_of!(LoraForward, residual_stride) - 168usize];
    ["Offset of field: LoraForward::t_stride"][::core::mem::offset_of!(LoraForward, t_stride) - 172usize];
    ["Offset of field: LoraForward::t_out_stride"][::core::mem::offset_of!(LoraForward, t_out_stride) - 176usize];
    ["Offset of field: LoraForward::row_tiles"][::core::mem::offset_of!(LoraForward, row_tiles) - 180usize];
    ["Offset of field: LoraForward::column_tiles"][::core::mem::offset_of!(LoraForward, column_tiles) - 184usize];
    ["Offset of field: LoraForward::t_tiles"][::core::mem::offset_of!(LoraForward, t_tiles) - 188usize];
    ["Offset of field: LoraForward::splits"][::core::mem::offset_of!(LoraForward, splits) - 192usize];
    ["Offset of field: LoraForward::split_depth"][::core::mem::offset_of!(LoraForward, split_depth) - 196usize];
    ["Offset of field: LoraForward::t_splits"][::core::mem::offset_of!(LoraForward, t_splits) - 200usize];
    ["Offset of field: LoraForward::t_split_depth"][::core::mem::offset_of!(LoraForward, t_split_depth) - 204usize];
    ["Offset of field: LoraForward::raster_rows"][::core::mem::offset_of!(LoraForward, raster_rows) - 208usize];
    ["Offset of field: LoraForward::activation"][::core::mem::offset_of!(LoraForward, activation) - 212usize];
    ["Offset of field: LoraForward::segment_count"][::core::mem::offset_of!(LoraForward, segment_count) - 216usize];
    ["Offset of field: LoraForward::slot_begin"][::core::mem::offset_of!(LoraForward, slot_begin) - 220usize];
    ["Offset of field: LoraForward::segments"][::core::mem::offset_of!(LoraForward, segments) - 224usize];
};
pub const LORA_MERGE_ROWS: _bindgen_ty_3 = 64;
pub const LORA_MERGE_CHUNKS: _bindgen_ty_3 = 16;
pub const LORA_MERGE_THREADS: _bindgen_ty_3 = 256;
pub type _bindgen_ty_3 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraMergeReport {
    pub largest_rounding: u32,
    pub largest_change: u32,
    pub not_finite: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraMergeReport"][::core::mem::size_of::<LoraMergeReport>() - 12usize];
    ["Alignment of LoraMergeReport"][::core::mem::align_of::<LoraMergeReport>() - 4usize];
    ["Offset of field: LoraMergeReport::largest_rounding"]
        [::core::mem::offset_of!(LoraMergeReport, largest_rounding) - 0usize];
    ["Offset of field: LoraMergeReport::largest_change"]
        [::core::mem::offset_of!(LoraMergeReport, largest_change) - 4usize];
    ["Offset of field: LoraMergeReport::not_finite"][::core::mem::offset_of!(LoraMergeReport, not_finite) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraMerge {
    pub source: *const ::core::ffi::c_void,
    pub weight: *mut ::core::ffi::c_void,
    pub report: *mut LoraMergeReport,
    pub rows: u32,
    pub columns: u32,
    pub source_stride: u32,
    pub weight_stride: u32,
    pub segment_count: u32,
    pub reserved: u32,
    pub segments: [LoraSegment; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraMerge"][::core::mem::size_of::<LoraMerge>() - 816usize];
    ["Alignment of LoraMerge"][::core::mem::align_of::<LoraMerge>() - 8usize];
    ["Offset of field: LoraMerge::source"][::core::mem::offset_of!(LoraMerge, source) - 0usize];
    ["Offset of field: LoraMerge::weight"][::core::mem::offset_of!(LoraMerge, weight) - 8usize];
    ["Offset of field: LoraMerge::report"][::core::mem::offset_of!(LoraMerge, report) - 16usize];
    ["Offset of field: LoraMerge::rows"][::core::mem::offset_of!(LoraMerge, rows) - 24usize];
    ["Offset of field: LoraMerge::columns"][::core::mem::offset_of!(LoraMerge, columns) - 28usize];
    ["Offset of field: LoraMerge::source_stride"][::core::mem::offset_of!(LoraMerge, source_stride) - 32usize];
    ["Offset of field: LoraMerge::weight_stride"][::core::mem::offset_of!(LoraMerge, weight_stride) - 36usize];
    ["Offset of field: LoraMerge::segment_count"][::core::mem::offset_of!(LoraMerge, segment_count) - 40usize];
    ["Offset of field: LoraMerge::reserved"][::core::mem::offset_of!(LoraMerge, reserved) - 44usize];
    ["Offset of field: LoraMerge::segments"][::core::mem::offset_of!(LoraMerge, segments) - 48usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraRead {
    pub from: *const ::core::ffi::c_void,
    pub sink: *mut u32,
    pub chunks: ::core::ffi::c_ulonglong,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraRead"][::core::mem::size_of::<LoraRead>() - 24usize];
    ["Alignment of LoraRead"][::core::mem::align_of::<LoraRead>() - 8usize];
    ["Offset of field: LoraRead::from"][::core::mem::offset_of!(LoraRead, from) - 0usize];
    ["Offset of field: LoraRead::sink"][::core::mem::offset_of!(LoraRead, sink) - 8usize];
    ["Offset of field: LoraRead::chunks"][::core::mem::offset_of!(LoraRead, chunks) - 16usize];
};
pub const LORA_READ_THREADS: _bindgen_ty_4 = 512;
pub const LORA_READ_UNROLL: _bindgen_ty_4 = 8;
pub type _bindgen_ty_4 = ::core::ffi::c_uint;
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone)]
pub struct TensorMap {
    pub opaque: [::core::ffi::c_ulonglong; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TensorMap"][::core::mem::size_of::<TensorMap>() - 128usize];
    ["Alignment of TensorMap"][::core::mem::align_of::<TensorMap>() - 128usize];
    ["Offset of field: TensorMap::opaque"][::core::mem::offset_of!(TensorMap, opaque) - 0usize];
};
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone)]
pub struct LoraForwardTma {
    pub x: TensorMap,
    pub weight: TensorMap,
    pub y: TensorMap,
    pub forward: LoraForward,
    pub y_mapped: u32,
    pub reserved: [u32; 7usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraForwardTma"][::core::mem::size_of::<LoraForwardTma>() - 1408usize];
    ["Alignment of LoraForwardTma"][::core::mem::align_of::<LoraForwardTma>() - 128usize];
    ["Offset of field: LoraForwardTma::x"][::core::mem::offset_of!(LoraForwardTma, x) - 0usize];
    ["Offset of field: LoraForwardTma::weight"][::core::mem::offset_of!(LoraForwardTma, weight) - 128usize];
    ["Offset of field: LoraForwardTma::y"][::core::mem::offset_of!(LoraForwardTma, y) - 256usize];
    ["Offset of field: LoraForwardTma::forward"][::core::mem::offset_of!(LoraForwardTma, forward) - 384usize];
    ["Offset of field: LoraForwardTma::y_mapped"][::core::mem::offset_of!(LoraForwardTma, y_mapped) - 1376usize];
    ["Offset of field: LoraForwardTma::reserved"][::core::mem::offset_of!(LoraForwardTma, reserved) - 1380usize];
};
pub const LORA_GRADIENTS_COLUMNS: _bindgen_ty_5 = 256;
pub const LORA_GRADIENTS_RANKS: _bindgen_ty_5 = 64;
pub const LORA_GRADIENTS_STAGES: _bindgen_ty_5 = 3;
pub const LORA_GRADIENTS_STAGE_BYTES: _bindgen_ty_5 = 64;
pub type _bindgen_ty_5 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraGradientsSegment {
    pub da: *mut f32,
    pub db: *mut f32,
    pub da_stride: u32,
    pub db_stride: u32,
    pub begin: u32,
    pub end: u32,
    pub rank: u32,
    pub t_begin: u32,
    pub packed_begin: u32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraGradientsSegment"][::core::mem::size_of::<LoraGradientsSegment>() - 48usize];
    ["Alignment of LoraGradientsSegment"][::core::mem::align_of::<LoraGradientsSegment>() - 8usize];
    ["Offset of field: LoraGradientsSegment::da"][::core::mem::offset_of!(LoraGradientsSegment, da) - 0usize];
    ["Offset of field: LoraGradientsSegment::db"][::core::mem::offset_of!(LoraGradientsSegment, db) - 8usize];
    ["Offset of field: LoraGradientsSegment::da_stride"]
        [::core::mem::offset_of!(LoraGradientsSegment, da_stride) - 16usize];
    ["Offset of field: LoraGradientsSegment::db_stride"]
        [::core::mem::offset_of!(LoraGradientsSegment, db_stride) - 20usize];
    ["Offset of field: LoraGradientsSegment::begin"][::core::mem::offset_of!(LoraGradientsSegment, begin) - 24usize];
    ["Offset of field: LoraGradientsSegment::end"][::core::mem::offset_of!(LoraGradientsSegment, end) - 28usize];
    ["Offset of field: LoraGradientsSegment::rank"][::core::mem::offset_of!(LoraGradientsSegment, rank) - 32usize];
    ["Offset of field: LoraGradientsSegment::t_begin"]
        [::core::mem::offset_of!(LoraGradientsSegment, t_begin) - 36usize];
    ["Offset of field: LoraGradientsSegment::packed_begin"]
        [::core::mem::offset_of!(LoraGradientsSegment, packed_begin) - 40usize];
    ["Offset of field: LoraGradientsSegment::scale"][::core::mem::offset_of!(LoraGradientsSegment, scale) - 44usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraGradients {
    pub x: *const ::core::ffi::c_void,
    pub dy: *const ::core::ffi::c_void,
    pub q: *const ::core::ffi::c_void,
    pub t: *const ::core::ffi::c_void,
    pub dbias: *mut f32,
    pub partial: *mut f32,
    pub arrivals: *mut u32,
    pub bias_partial: *mut f32,
    pub dropout: LoraDropout,
    pub tokens: u32,
    pub d_in: u32,
    pub d_out: u32,
    pub x_stride: u32,
    pub dy_stride: u32,
    pub q_stride: u32,
    pub t_stride: u32,
    pub a_panels: u32,
    pub a_blocks: u32,
    pub b_panels: u32,
    pub b_blocks: u32,
    pub splits: u32,
    pub split_tokens: u32,
    pub accumulate: u32,
    pub segment_count: u32,
    pub reserved: u32,
    pub segments: [LoraGradientsSegment; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraGradients"][::core::mem::size_of::<LoraGradients>() - 928usize];
    ["Alignment of LoraGradients"][::core::mem::align_of::<LoraGradients>() - 8usize];
    ["Offset of field: LoraGradients::x"][::core::mem::offset_of!(LoraGradients, x) - 0usize];
    ["Offset of field: LoraGradients::dy"][::core::mem::offset_of!(LoraGradients, dy) - 8usize];
    ["Offset of field: LoraGradients::q"][::core::mem::offset_of!(LoraGradients, q) - 16usize];
    ["Offset of field: LoraGradients::t"][::core::mem::offset_of!(LoraGradients, t) - 24usize];
    ["Offset of field: LoraGradients::dbias"][::core::mem::offset_of!(LoraGradients, dbias) - 32usize];
    ["Offset of field: LoraGradients::partial"][::core::mem::offset_of!(LoraGradients, partial) - 40usize];
    ["Offset of field: LoraGradients::arrivals"][::core::mem::offset_of!(LoraGradients, arrivals) - 48usize];
    ["Offset of field: LoraGradients::bias_partial"][::core::mem::offset_of!(LoraGradients, bias_partial) - 56usize];
    ["Offset of field: LoraGradients::dropout"][::core::mem::offset_of!(LoraGradients, dropout) - 64usize];
    ["Offset of field: LoraGradients::tokens"][::core::mem::offset_of!(LoraGradients, tokens) - 96usize];
    ["Offset of field: LoraGradients::d_in"][::core::mem::offset_of!(LoraGradients, d_in) - 100usize];
    ["Offset of field: LoraGradients::d_out"][::core::mem::offset_of!(LoraGradients, d_out) - 104usize];
    ["Offset of field: LoraGradients::x_stride"][::core::mem::offset_of!(LoraGradients, x_stride) - 108usize];
    ["Offset of field: LoraGradients::dy_stride"][::core::mem::offset_of!(LoraGradients, dy_stride) - 112usize];
    ["Offset of field: LoraGradients::q_stride"][::core::mem::offset_of!(LoraGradients, q_stride) - 116usize];
    ["Offset of field: LoraGradients::t_stride"][::core::mem::offset_of!(LoraGradients, t_stride) - 120usize];
    ["Offset of field: LoraGradients::a_panels"][::core::mem::offset_of!(LoraGradients, a_panels) - 124usize];
    ["Offset of field: LoraGradients::a_blocks"][::core::mem::offset_of!(LoraGradients, a_blocks) - 128usize];
    ["Offset of field: LoraGradients::b_panels"][::core::mem::offset_of!(LoraGradients, b_panels) - 132usize];
    ["Offset of field: LoraGradients::b_blocks"][::core::mem::offset_of!(LoraGradients, b_blocks) - 136usize];
    ["Offset of field: LoraGradients::splits"][::core::mem::offset_of!(LoraGradients, splits) - 140usize];
    ["Offset of field: LoraGradients::split_tokens"][::core::mem::offset_of!(LoraGradients, split_tokens) - 144usize];
    ["Offset of field: LoraGradients::accumulate"][::core::mem::offset_of!(LoraGradients, accumulate) - 148usize];
    ["Offset of field: LoraGradients::segment_count"][::core::mem::offset_of!(LoraGradients, segment_count) - 152usize];
    ["Offset of field: LoraGradients::reserved"][::core::mem::offset_of!(LoraGradients, reserved) - 156usize];
    ["Offset of field: LoraGradients::segments"][::core::mem::offset_of!(LoraGradients, segments) - 160usize];
};
pub const LORA_ADAMW_THREADS: _bindgen_ty_6 = 256;
pub const LORA_ADAMW_CTAS: _bindgen_ty_6 = 3;
pub const LORA_ADAMW_STEP: _bindgen_ty_6 = 2048;
pub type _bindgen_ty_6 = ::core::ffi::c_uint;
pub const LORA_ADAMW_TAKEN: _bindgen_ty_7 = 0;
pub const LORA_ADAMW_NON_FINITE: _bindgen_ty_7 = 1;
pub const LORA_ADAMW_TOO_LARGE: _bindgen_ty_7 = 2;
pub const LORA_ADAMW_LEARNING_RATE: _bindgen_ty_7 = 3;
pub type _bindgen_ty_7 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraAdamwChunk {
    pub gradient: *const f32,
    pub value: *mut f32,
    pub first_moment: *mut f32,
    pub second_moment: *mut f32,
    pub stored: *mut ::core::ffi::c_void,
    pub elements: u32,
    pub factor: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraAdamwChunk"][::core::mem::size_of::<LoraAdamwChunk>() - 48usize];
    ["Alignment of LoraAdamwChunk"][::core::mem::align_of::<LoraAdamwChunk>() - 8usize];
    ["Offset of field: LoraAdamwChunk::gradient"][::core::mem::offset_of!(LoraAdamwChunk, gradient) - 0usize];
    ["Offset of field: LoraAdamwChunk::value"][::core::mem::offset_of!(LoraAdamwChunk, value) - 8usize];
    ["Offset of field: LoraAdamwChunk::first_moment"][::core::mem::offset_of!(LoraAdamwChunk, first_moment) - 16usize];
    ["Offset of field: LoraAdamwChunk::second_moment"]
        [::core::mem::offset_of!(LoraAdamwChunk, second_moment) - 24usize];
    ["Offset of field: LoraAdamwChunk::stored"][::core::mem::offset_of!(LoraAdamwChunk, stored) - 32usize];
    ["Offset of field: LoraAdamwChunk::elements"][::core::mem::offset_of!(LoraAdamwChunk, elements) - 40usize];
    ["Offset of field: LoraAdamwChunk::factor"][::core::mem::offset_of!(LoraAdamwChunk, factor) - 44usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraAdamwReport {
    pub norm: f64,
    pub clipped_by: f64,
    pub steps: ::core::ffi::c_ulonglong,
    pub skipped: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraAdamwReport"][::core::mem::size_of::<LoraAdamwReport>() - 32usize];
    ["Alignment of LoraAdamwReport"][::core::mem::align_of::<LoraAdamwReport>() - 8usize];
    ["Offset of field: LoraAdamwReport::norm"][::core::mem::offset_of!(LoraAdamwReport, norm) - 0usize];
    ["Offset of field: LoraAdamwReport::clipped_by"][::core::mem::offset_of!(LoraAdamwReport, clipped_by) - 8usize];
    ["Offset of field: LoraAdamwReport::steps"][::core::mem::offset_of!(LoraAdamwReport, steps) - 16usize];
    ["Offset of field: LoraAdamwReport::skipped"][::core::mem::offset_of!(LoraAdamwReport, skipped) - 24usize];
    ["Offset of field: LoraAdamwReport::reserved"][::core::mem::offset_of!(LoraAdamwReport, reserved) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraAdamwState {
    pub ticket: ::core::ffi::c_ulonglong,
    pub decision: ::core::ffi::c_ulonglong,
    pub arrivals: u32,
    pub reserved: u32,
    pub reports: [LoraAdamwReport; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraAdamwState"][::core::mem::size_of::<LoraAdamwState>() - 88usize];
    ["Alignment of LoraAdamwState"][::core::mem::align_of::<LoraAdamwState>() - 8usize];
    ["Offset of field: LoraAdamwState::ticket"][::core::mem::offset_of!(LoraAdamwState, ticket) - 0usize];
    ["Offset of field: LoraAdamwState::decision"][::core::mem::offset_of!(LoraAdamwState, decision) - 8usize];
    ["Offset of field: LoraAdamwState::arrivals"][::core::mem::offset_of!(LoraAdamwState, arrivals) - 16usize];
    ["Offset of field: LoraAdamwState::reserved"][::core::mem::offset_of!(LoraAdamwState, reserved) - 20usize];
    ["Offset of field: LoraAdamwState::reports"][::core::mem::offset_of!(LoraAdamwState, reports) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraAdamw {
    pub chunks: *const LoraAdamwChunk,
    pub state: *mut LoraAdamwState,
    pub partial: *mut f64,
    pub lr_scale: *const f32,
    pub rates: [f64; 2usize],
    pub weight_decay: f64,
    pub betas: [f64; 2usize],
    pub max_norm: f64,
    pub norm_epsilon: f64,
    pub eps: f32,
    pub chunk_count: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraAdamw"][::core::mem::size_of::<LoraAdamw>() - 96usize];
    ["Alignment of LoraAdamw"][::core::mem::align_of::<LoraAdamw>() - 8usize];
    ["Offset of field: LoraAdamw::chunks"][::core::mem::offset_of!(LoraAdamw, chunks) - 0usize];
    ["Offset of field: LoraAdamw::state"][::core::mem::offset_of!(LoraAdamw, state) - 8usize];
    ["Offset of field: LoraAdamw::partial"][::core::mem::offset_of!(LoraAdamw, partial) - 16usize];
    ["Offset of field: LoraAdamw::lr_scale"][::core::mem::offset_of!(LoraAdamw, lr_scale) - 24usize];
    ["Offset of field: LoraAdamw::rates"][::core::mem::offset_of!(LoraAdamw, rates) - 32usize];
    ["Offset of field: LoraAdamw::weight_decay"][::core::mem::offset_of!(LoraAdamw, weight_decay) - 48usize];
    ["Offset of field: LoraAdamw::betas"][::core::mem::offset_of!(LoraAdamw, betas) - 56usize];
    ["Offset of field: LoraAdamw::max_norm"][::core::mem::offset_of!(LoraAdamw, max_norm) - 72usize];
    ["Offset of field: LoraAdamw::norm_epsilon"][::core::mem::offset_of!(LoraAdamw, norm_epsilon) - 80usize];
    ["Offset of field: LoraAdamw::eps"][::core::mem::offset_of!(LoraAdamw, eps) - 88usize];
    ["Offset of field: LoraAdamw::chunk_count"][::core::mem::offset_of!(LoraAdamw, chunk_count) - 92usize];
};
pub const LORA_ROW_THREADS: _bindgen_ty_8 = 256;
pub const LORA_ROW_ELEMENTS: _bindgen_ty_8 = 32;
pub type _bindgen_ty_8 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraLayerNorm {
    pub x: *const ::core::ffi::c_void,
    pub weight: *const f32,
    pub bias: *const f32,
    pub y: *mut ::core::ffi::c_void,
    pub rows: u32,
    pub width: u32,
    pub x_stride: u32,
    pub y_stride: u32,
    pub row_threads_log2: u32,
    pub epsilon: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraLayerNorm"][::core::mem::size_of::<LoraLayerNorm>() - 56usize];
    ["Alignment of LoraLayerNorm"][::core::mem::align_of::<LoraLayerNorm>() - 8usize];
    ["Offset of field: LoraLayerNorm::x"][::core::mem::offset_of!(LoraLayerNorm, x) - 0usize];
    ["Offset of field: LoraLayerNorm::weight"][::core::mem::offset_of!(LoraLayerNorm, weight) - 8usize];
    ["Offset of field: LoraLayerNorm::bias"][::core::mem::offset_of!(LoraLayerNorm, bias) - 16usize];
    ["Offset of field: LoraLayerNorm::y"][::core::mem::offset_of!(LoraLayerNorm, y) - 24usize];
    ["Offset of field: LoraLayerNorm::rows"][::core::mem::offset_of!(LoraLayerNorm, rows) - 32usize];
    ["Offset of field: LoraLayerNorm::width"][::core::mem::offset_of!(LoraLayerNorm, width) - 36usize];
    ["Offset of field: LoraLayerNorm::x_stride"][::core::mem::offset_of!(LoraLayerNorm, x_stride) - 40usize];
    ["Offset of field: LoraLayerNorm::y_stride"][::core::mem::offset_of!(LoraLayerNorm, y_stride) - 44usize];
    ["Offset of field: LoraLayerNorm::row_threads_log2"]
        [::core::mem::offset_of!(LoraLayerNorm, row_threads_log2) - 48usize];
    ["Offset of field: LoraLayerNorm::epsilon"][::core::mem::offset_of!(LoraLayerNorm, epsilon) - 52usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraEmbedding {
    pub tokens: *const ::core::ffi::c_void,
    pub extra: *const ::core::ffi::c_void,
    pub positions: *const ::core::ffi::c_void,
    pub ids: *const u32,
    pub places: *const u32,
    pub x: *mut ::core::ffi::c_void,
    pub weight: *const f32,
    pub bias: *const f32,
    pub y: *mut ::core::ffi::c_void,
    pub rows: u32,
    pub width: u32,
    pub vocabulary: u32,
    pub extra_rows: u32,
    pub position_rows: u32,
    pub tokens_stride: u32,
    pub extra_stride: u32,
    pub positions_stride: u32,
    pub x_stride: u32,
    pub y_stride: u32,
    pub row_threads_log2: u32,
    pub epsilon: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraEmbedding"][::core::mem::size_of::<LoraEmbedding>() - 120usize];
    ["Alignment of LoraEmbedding"][::core::mem::align_of::<LoraEmbedding>() - 8usize];
    ["Offset of field: LoraEmbedding::tokens"][::core::mem::offset_of!(LoraEmbedding, tokens) - 0usize];
    ["Offset of field: LoraEmbedding::extra"][::core::mem::offset_of!(LoraEmbedding, extra) - 8usize];
    ["Offset of field: LoraEmbedding::positions"][::core::mem::offset_of!(LoraEmbedding, positions) - 16usize];
    ["Offset of field: LoraEmbedding::ids"][::core::mem::offset_of!(LoraEmbedding, ids) - 24usize];
    ["Offset of field: LoraEmbedding::places"][::core::mem::offset_of!(LoraEmbedding, places) - 32usize];
    ["Offset of field: LoraEmbedding::x"][::core::mem::offset_of!(LoraEmbedding, x) - 40usize];
    ["Offset of field: LoraEmbedding::weight"][::core::mem::offset_of!(LoraEmbedding, weight) - 48usize];
    ["Offset of field: LoraEmbedding::bias"][::core::mem::offset_of!(LoraEmbedding, bias) - 56usize];
    ["Offset of field: LoraEmbedding::y"][::core::mem::offset_of!(LoraEmbedding, y) - 64usize];
    ["Offset of field: LoraEmbedding::rows"][::core::mem::offset_of!(LoraEmbedding, rows) - 72usize];
    ["Offset of field: LoraEmbedding::width"][::core::mem::offset_of!(LoraEmbedding, width) - 76usize];
    ["Offset of field: LoraEmbedding::vocabulary"][::core::mem::offset_of!(LoraEmbedding, vocabulary) - 80usize];
    ["Offset of field: LoraEmbedding::extra_rows"][::core::mem::offset_of!(LoraEmbedding, extra_rows) - 84usize];
    ["Offset of field: LoraEmbedding::position_rows"][::core::mem::offset_of!(LoraEmbedding, position_rows) - 88usize];
    ["Offset of field: LoraEmbedding::tokens_stride"][::core::mem::offset_of!(LoraEmbedding, tokens_stride) - 92usize];
    ["Offset of field: LoraEmbedding::extra_stride"][::core::mem::offset_of!(LoraEmbedding, extra_stride) - 96usize];
    ["Offset of field: LoraEmbedding::positions_stride"]
        [::core::mem::offset_of!(LoraEmbedding, positions_stride) - 100usize];
    ["Offset of field: LoraEmbedding::x_stride"][::core::mem::offset_of!(LoraEmbedding, x_stride) - 104usize];
    ["Offset of field: LoraEmbedding::y_stride"][::core::mem::offset_of!(LoraEmbedding, y_stride) - 108usize];
    ["Offset of field: LoraEmbedding::row_threads_log2"]
        [::core::mem::offset_of!(LoraEmbedding, row_threads_log2) - 112usize];
    ["Offset of field: LoraEmbedding::epsilon"][::core::mem::offset_of!(LoraEmbedding, epsilon) - 116usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraAdapter {
    pub forward: LoraForward,
    pub hidden_bias: *const ::core::ffi::c_void,
    pub hidden_activation: u32,
    pub adds_input: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraAdapter"][::core::mem::size_of::<LoraAdapter>() - 1008usize];
    ["Alignment of LoraAdapter"][::core::mem::align_of::<LoraAdapter>() - 8usize];
    ["Offset of field: LoraAdapter::forward"][::core::mem::offset_of!(LoraAdapter, forward) - 0usize];
    ["Offset of field: LoraAdapter::hidden_bias"][::core::mem::offset_of!(LoraAdapter, hidden_bias) - 992usize];
    ["Offset of field: LoraAdapter::hidden_activation"]
        [::core::mem::offset_of!(LoraAdapter, hidden_activation) - 1000usize];
    ["Offset of field: LoraAdapter::adds_input"][::core::mem::offset_of!(LoraAdapter, adds_input) - 1004usize];
};
pub const LORA_ATTENTION_THREADS: _bindgen_ty_9 = 128;
pub const LORA_ATTENTION_MAX_HEAD: _bindgen_ty_9 = 128;
pub const LORA_ATTENTION_MMA_KEYS: _bindgen_ty_9 = 64;
pub const LORA_ATTENTION_STAGES: _bindgen_ty_9 = 2;
pub const LORA_ATTENTION_STATS: _bindgen_ty_9 = 4;
pub type _bindgen_ty_9 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraAttention {
    pub qkv: *const ::core::ffi::c_void,
    pub out: *mut ::core::ffi::c_void,
    pub keys: *mut ::core::ffi::c_void,
    pub values: *mut ::core::ffi::c_void,
    pub lengths: *const u32,
    pub partial: *mut f32,
    pub arrivals: *mut u32,
    pub tokens: u32,
    pub heads: u32,
    pub head_size: u32,
    pub capacity: u32,
    pub qkv_stride: u32,
    pub out_stride: u32,
    pub keys_stride: u32,
    pub values_stride: u32,
    pub split_keys: u32,
    pub splits: u32,
    pub scale: f32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraAttention"][::core::mem::size_of::<LoraAttention>() - 104usize];
    ["Alignment of LoraAttention"][::core::mem::align_of::<LoraAttention>() - 8usize];
    ["Offset of field: LoraAttention::qkv"][::core::mem::offset_of!(LoraAttention, qkv) - 0usize];
    ["Offset of field: LoraAttention::out"][::core::mem::offset_of!(LoraAttention, out) - 8usize];
    ["Offset of field: LoraAttention::keys"][::core::mem::offset_of!(LoraAttention, keys) - 16usize];
    ["Offset of field: LoraAttention::values"][::core::mem::offset_of!(LoraAttention, values) - 24usize];
    ["Offset of field: LoraAttention::lengths"][::core::mem::offset_of!(LoraAttention, lengths) - 32usize];
    ["Offset of field: LoraAttention::partial"][::core::mem::offset_of!(LoraAttention, partial) - 40usize];
    ["Offset of field: LoraAttention::arrivals"][::core::mem::offset_of!(LoraAttention, arrivals) - 48usize];
    ["Offset of field: LoraAttention::tokens"][::core::mem::offset_of!(LoraAttention, tokens) - 56usize];
    ["Offset of field: LoraAttention::heads"][::core::mem::offset_of!(LoraAttention, heads) - 60usize];
    ["Offset of field: LoraAttention::head_size"][::core::mem::offset_of!(LoraAttention, head_size) - 64usize];
    ["Offset of field: LoraAttention::capacity"][::core::mem::offset_of!(LoraAttention, capacity) - 68usize];
    ["Offset of field: LoraAttention::qkv_stride"][::core::mem::offset_of!(LoraAttention, qkv_stride) - 72usize];
    ["Offset of field: LoraAttention::out_stride"][::core::mem::offset_of!(LoraAttention, out_stride) - 76usize];
    ["Offset of field: LoraAttention::keys_stride"][::core::mem::offset_of!(LoraAttention, keys_stride) - 80usize];
    ["Offset of field: LoraAttention::values_stride"][::core::mem::offset_of!(LoraAttention, values_stride) - 84usize];
    ["Offset of field: LoraAttention::split_keys"][::core::mem::offset_of!(LoraAttention, split_keys) - 88usize];
    ["Offset of field: LoraAttention::splits"][::core::mem::offset_of!(LoraAttention, splits) - 92usize];
    ["Offset of field: LoraAttention::scale"][::core::mem::offset_of!(LoraAttention, scale) - 96usize];
    ["Offset of field: LoraAttention::reserved"][::core::mem::offset_of!(LoraAttention, reserved) - 100usize];
};
pub const LORA_POINTWISE_THREADS: _bindgen_ty_10 = 128;
pub type _bindgen_ty_10 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraPointwise {
    pub y: *mut ::core::ffi::c_void,
    pub added: *const ::core::ffi::c_void,
    pub rows: u32,
    pub columns: u32,
    pub y_stride: u32,
    pub added_stride: u32,
    pub activation: u32,
    pub scale: f32,
    pub row_ctas: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraPointwise"][::core::mem::size_of::<LoraPointwise>() - 48usize];
    ["Alignment of LoraPointwise"][::core::mem::align_of::<LoraPointwise>() - 8usize];
    ["Offset of field: LoraPointwise::y"][::core::mem::offset_of!(LoraPointwise, y) - 0usize];
    ["Offset of field: LoraPointwise::added"][::core::mem::offset_of!(LoraPointwise, added) - 8usize];
    ["Offset of field: LoraPointwise::rows"][::core::mem::offset_of!(LoraPointwise, rows) - 16usize];
    ["Offset of field: LoraPointwise::columns"][::core::mem::offset_of!(LoraPointwise, columns) - 20usize];
    ["Offset of field: LoraPointwise::y_stride"][::core::mem::offset_of!(LoraPointwise, y_stride) - 24usize];
    ["Offset of field: LoraPointwise::added_stride"][::core::mem::offset_of!(LoraPointwise, added_stride) - 28usize];
    ["Offset of field: LoraPointwise::activation"][::core::mem::offset_of!(LoraPointwise, activation) - 32usize];
    ["Offset of field: LoraPointwise::scale"][::core::mem::offset_of!(LoraPointwise, scale) - 36usize];
    ["Offset of field: LoraPointwise::row_ctas"][::core::mem::offset_of!(LoraPointwise, row_ctas) - 40usize];
    ["Offset of field: LoraPointwise::reserved"][::core::mem::offset_of!(LoraPointwise, reserved) - 44usize];
};
pub const LORA_LADDER_THREADS: _bindgen_ty_11 = 256;
pub const LORA_LADDER_TOKENS: _bindgen_ty_11 = 4;
pub const LORA_LADDER_STAGES: _bindgen_ty_11 = 8;
pub type _bindgen_ty_11 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraLadder {
    pub x: *const f32,
    pub weight: *const f32,
    pub a: *const f32,
    pub b: *const f32,
    pub y: *mut f32,
    pub t: *mut f32,
    pub ticket: *mut ::core::ffi::c_ulonglong,
    pub flags: *mut u32,
    pub tokens: u32,
    pub depth: u32,
    pub columns: u32,
    pub rank: u32,
    pub x_stride: u32,
    pub weight_stride: u32,
    pub a_stride: u32,
    pub b_stride: u32,
    pub y_stride: u32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraLadder"][::core::mem::size_of::<LoraLadder>() - 104usize];
    ["Alignment of LoraLadder"][::core::mem::align_of::<LoraLadder>() - 8usize];
    ["Offset of field: LoraLadder::x"][::core::mem::offset_of!(LoraLadder, x) - 0usize];
    ["Offset of field: LoraLadder::weight"][::core::mem::offset_of!(LoraLadder, weight) - 8usize];
    ["Offset of field: LoraLadder::a"][::core::mem::offset_of!(LoraLadder, a) - 16usize];
    ["Offset of field: LoraLadder::b"][::core::mem::offset_of!(LoraLadder, b) - 24usize];
    ["Offset of field: LoraLadder::y"][::core::mem::offset_of!(LoraLadder, y) - 32usize];
    ["Offset of field: LoraLadder::t"][::core::mem::offset_of!(LoraLadder, t) - 40usize];
    ["Offset of field: LoraLadder::ticket"][::core::mem::offset_of!(LoraLadder, ticket) - 48usize];
    ["Offset of field: LoraLadder::flags"][::core::mem::offset_of!(LoraLadder, flags) - 56usize];
    ["Offset of field: LoraLadder::tokens"][::core::mem::offset_of!(LoraLadder, tokens) - 64usize];
    ["Offset of field: LoraLadder::depth"][::core::mem::offset_of!(LoraLadder, depth) - 68usize];
    ["Offset of field: LoraLadder::columns"][::core::mem::offset_of!(LoraLadder, columns) - 72usize];
    ["Offset of field: LoraLadder::rank"][::core::mem::offset_of!(LoraLadder, rank) - 76usize];
    ["Offset of field: LoraLadder::x_stride"][::core::mem::offset_of!(LoraLadder, x_stride) - 80usize];
    ["Offset of field: LoraLadder::weight_stride"][::core::mem::offset_of!(LoraLadder, weight_stride) - 84usize];
    ["Offset of field: LoraLadder::a_stride"][::core::mem::offset_of!(LoraLadder, a_stride) - 88usize];
    ["Offset of field: LoraLadder::b_stride"][::core::mem::offset_of!(LoraLadder, b_stride) - 92usize];
    ["Offset of field: LoraLadder::y_stride"][::core::mem::offset_of!(LoraLadder, y_stride) - 96usize];
    ["Offset of field: LoraLadder::scale"][::core::mem::offset_of!(LoraLadder, scale) - 100usize];
};
#[repr(C)]
#[repr(align(128))]
#[derive(Debug, Copy, Clone)]
pub struct LoraTest {
    pub maps: [TensorMap; 2usize],
    pub in_: [*const ::core::ffi::c_void; 4usize],
    pub out: [*mut ::core::ffi::c_void; 4usize],
    pub n: [u32; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraTest"][::core::mem::size_of::<LoraTest>() - 384usize];
    ["Alignment of LoraTest"][::core::mem::align_of::<LoraTest>() - 128usize];
    ["Offset of field: LoraTest::maps"][::core::mem::offset_of!(LoraTest, maps) - 0usize];
    ["Offset of field: LoraTest::in_"][::core::mem::offset_of!(LoraTest, in_) - 256usize];
    ["Offset of field: LoraTest::out"][::core::mem::offset_of!(LoraTest, out) - 288usize];
    ["Offset of field: LoraTest::n"][::core::mem::offset_of!(LoraTest, n) - 320usize];
};
