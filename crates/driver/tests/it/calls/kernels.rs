//! Calls about modules, functions, launches and tensor maps.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{CUlaunchAttribute, CUlaunchConfig};
use fused_lora::abi::{self, LoraPointwise};
use fused_lora_driver::calls::{launch, module, tensor_map};

use super::{call, made, memory};
use crate::cubin::{self, Kernel, POINTWISE};

pub(crate) fn load(module: *mut usize, image: *const u64) -> u32 {
    call!(module::cuModuleLoadData(module, image.cast()))
}

pub(crate) fn find(function: *mut usize, module: usize, name: &str) -> u32 {
    let name = CString::new(name).unwrap();
    call!(module::cuModuleGetFunction(function, module, name.as_ptr()))
}

pub(crate) fn load_function(function: usize) -> u32 {
    call!(module::cuFuncLoad(function))
}

/// A kernel as a cubin for compute capability 9.0 describes it.
pub(crate) fn function_of(kernel: &Kernel) -> usize {
    let image = cubin::cubin((9, 0), std::slice::from_ref(kernel));
    let module = made(|module| load(module, image.as_ptr()));
    made(|function| find(function, module, kernel.name))
}

pub(crate) fn pointwise() -> usize {
    function_of(&POINTWISE)
}

pub(crate) fn attribute(value: *mut i32, attribute: u32, function: usize) -> u32 {
    call!(module::cuFuncGetAttribute(value, attribute, function))
}

pub(crate) fn set_attribute(function: usize, attribute: u32, value: i32) -> u32 {
    call!(module::cuFuncSetAttribute(function, attribute, value))
}

pub(crate) fn parameter(function: usize, index: usize, offset: *mut usize, bytes: *mut usize) -> u32 {
    call!(module::cuFuncGetParamInfo(function, index, offset, bytes))
}

/// A launch of a pointwise kernel.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) on: usize,
    pub(crate) attributes: Vec<[u32; 5]>,
    pub(crate) parameters: LoraPointwise,
}

/// One block that sets its floats, no more than 512, to 0 where they are negative.
pub(crate) fn launch_on(y: u64, columns: u32, on: usize) -> Launch {
    let parameters = LoraPointwise {
        y: std::ptr::with_exposed_provenance_mut(y as usize),
        added: std::ptr::null(),
        rows: 1,
        columns,
        y_stride: columns,
        added_stride: 0,
        activation: abi::LORA_RELU,
        scale: 0.0,
        row_ctas: 1,
        reserved: 0,
    };
    Launch {
        grid: [1; 3],
        block: [abi::LORA_POINTWISE_THREADS, 1, 1],
        shared_bytes: 0,
        on,
        attributes: vec![],
        parameters,
    }
}

/// The words of an attribute: its number, padding and value.
pub(crate) fn clusters_of(blocks: u32) -> [u32; 5] {
    [4, 0, blocks, 1, 1]
}

pub(crate) const DEPENDENT: [u32; 5] = [6, 0, 1, 0, 0];

impl Launch {
    /// Calls `f` with the configuration, whose attributes live meanwhile.
    pub(crate) fn with_config(&self, f: impl FnOnce(*const CUlaunchConfig) -> u32) -> u32 {
        /// A `CUlaunchAttribute` as words, since a number may be none of the enum's.
        #[repr(align(8))]
        struct Attribute([u32; size_of::<CUlaunchAttribute>() / 4]);
        let attribute = |words: &[u32; 5]| {
            let mut attribute = Attribute([0; size_of::<CUlaunchAttribute>() / 4]);
            attribute.0[..5].copy_from_slice(words);
            attribute
        };
        let mut attributes: Vec<Attribute> = self.attributes.iter().map(attribute).collect();
        let config = CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block[0],
            blockDimY: self.block[1],
            blockDimZ: self.block[2],
            sharedMemBytes: self.shared_bytes,
            hStream: std::ptr::with_exposed_provenance_mut(self.on),
            attrs: attributes.as_mut_ptr().cast(),
            numAttrs: attributes.len() as u32,
        };
        f(&config)
    }

    pub(crate) fn issue(&self, function: usize) -> u32 {
        let mut parameters = [(&raw const self.parameters).cast_mut().cast::<c_void>()];
        self.with_config(|config| issue(config, function, parameters.as_mut_ptr(), null_mut()))
    }

    pub(crate) fn max_active_clusters(&self, function: usize) -> u32 {
        self.with_config(|config| call!(launch::cuOccupancyMaxActiveClusters(&mut 0, function, config)))
    }
}

pub(crate) fn issue(
    config: *const CUlaunchConfig,
    function: usize,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    call!(launch::cuLaunchKernelEx(config, function, parameters, extra))
}

pub(crate) fn max_active_blocks(function: usize, block: i32, shared: usize) -> u32 {
    call!(launch::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut 0, function, block, shared))
}

/// The arguments of `cuTensorMapEncodeTiled`.
#[derive(Clone)]
pub(crate) struct Tensor {
    /// By how many words the map's place is behind a multiple of 128 bytes.
    pub(crate) shift: usize,
    pub(crate) data_type: u32,
    pub(crate) rank: u32,
    pub(crate) address: u64,
    pub(crate) dims: Vec<u64>,
    pub(crate) strides: Vec<u64>,
    pub(crate) boxes: Vec<u32>,
    pub(crate) steps: Vec<u32>,
    pub(crate) interleave: u32,
    pub(crate) swizzle: u32,
    pub(crate) promotion: u32,
    pub(crate) fill: u32,
}

/// 16 rows of 32 floats in memory of its own.
pub(crate) fn tensor() -> Tensor {
    Tensor {
        shift: 0,
        data_type: 7,
        rank: 2,
        address: memory(16 * 128),
        dims: vec![32, 16],
        strides: vec![128],
        boxes: vec![32, 16],
        steps: vec![1, 1],
        interleave: 0,
        swizzle: 3,
        promotion: 3,
        fill: 0,
    }
}

impl Tensor {
    pub(crate) fn encode(&self) -> u32 {
        #[repr(align(128))]
        struct Maps([u64; 32]);
        let mut maps = Maps([0; 32]);
        call!(tensor_map::cuTensorMapEncodeTiled(
            maps.0[self.shift..].as_mut_ptr().cast(),
            self.data_type,
            self.rank,
            std::ptr::with_exposed_provenance_mut(self.address as usize),
            self.dims.as_ptr(),
            self.strides.as_ptr(),
            self.boxes.as_ptr(),
            self.steps.as_ptr(),
            self.interleave,
            self.swizzle,
            self.promotion,
            self.fill,
        ))
    }
}
