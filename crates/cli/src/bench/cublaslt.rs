//! cuBLASLt, NVIDIA's library of matrix products, loaded at run time where it is installed.

use std::ffi::c_void;
use std::ptr::null_mut;

use anyhow::{Context, Result, bail, ensure};
use cudarc::cublaslt::{result, sys};
use fused_lora::device::{Device, DeviceBuffer, Stream};
use fused_lora::lora::Layout;
use fused_lora::{ComputePath, DType};

use super::launch_timer::{launches, timed};

/// The largest workspace that an algorithm may use, in bytes: as much as PyTorch gives cuBLASLt on a Hopper GPU.
const WORKSPACE_BYTES: usize = 32 << 20;
/// How many of the algorithms that the library recommends are timed.
const MAX_ALGORITHMS: usize = 8;
/// An algorithm is timed in this many rounds, of which the fastest counts, of about this many microseconds each.
const SEARCH_ROUNDS: usize = 3;
const SEARCH_US: f64 = 2_000.0;

/// The loaded library, and the workspace that all its products share.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: DeviceBuffer<u8>,
    pub(super) version: usize,
}

impl CublasLt {
    /// # Errors
    /// If the library is not installed or does not start.
    pub(super) fn load(stream: &Stream) -> Result<Self> {
        // SAFETY: loading it runs no code with requirements on its caller.
        ensure!(unsafe { sys::is_culib_present() }, "libcublasLt is not installed");
        let handle = result::create_handle().context("cublasLtCreate")?;
        let workspace = DeviceBuffer::zeros(stream, WORKSPACE_BYTES)?;
        // SAFETY: the library is loaded.
        Ok(Self { handle, workspace, version: unsafe { sys::cublasLtGetVersion() } })
    }

    /// Prepares `y = alpha·product + beta·y` of `[m, k, n]`, with the algorithm whose index `fastest` returns.
    pub(super) fn product(
        &self,
        (dtype, path): (DType, ComputePath),
        shape: [usize; 3],
        kind: ProductKind,
        [alpha, beta]: [f32; 2],
        fastest_algorithm: impl FnOnce(&mut Product<'_>, usize) -> Result<usize>,
    ) -> Result<Product<'_>> {
        let data_type = match dtype {
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let [transpose_w, transpose_x] = kind.transposed();
        let [w, x, y] = kind.stored(shape);
        let sums = if kind == ProductKind::Gradient { sys::cudaDataType_t::CUDA_R_32F } else { data_type };
        let matrix = |data_type, [rows, cols]: [usize; 2]| {
            result::create_matrix_layout(data_type, rows as u64, cols as u64, rows as i64)
                .context("cublasLtMatrixLayoutCreate")
        };
        let compute = compute_type(path);
        let description =
            result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).context("cublasLtMatmulDescCreate")?;
        let mut product = Product {
            library: self,
            description,
            layouts: [matrix(data_type, w)?, matrix(data_type, x)?, matrix(sums, y)?],
            algorithms: vec![],
            chosen: 0,
            factors: [alpha, beta],
        };
        product.set_transposed(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, transpose_w)?;
        product.set_transposed(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, transpose_x)?;
        product.find_algorithms()?;
        let candidates = product.algorithms.len();
        product.chosen = fastest_algorithm(&mut product, candidates)?;
        Ok(product)
    }
}

/// Which matrices a product multiplies. All are stored row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProductKind {
    /// A layer, of x `[m, k]` and W: `x·Wᵀ` with W `[n, k]` (out-in), or `x·W` with W `[k, n]` (in-out).
    Layer(Layout),
    /// A gradient: `xᵀ·W` of x `[k, m]` and W `[k, n]`, stored as `f32`.
    Gradient,
}

impl ProductKind {
    /// Rows and columns of W, x and y as the library sees them. It stores matrices column by column, so our y `[m, n]`
    /// is its `[n, m] = op(W)·op(x)`.
    pub(super) fn stored(self, [m, k, n]: [usize; 3]) -> [[usize; 2]; 3] {
        let [transpose_w, transpose_x] = self.transposed();
        let w = if transpose_w { [k, n] } else { [n, k] };
        let x = if transpose_x { [m, k] } else { [k, m] };
        [w, x, [n, m]]
    }

    /// Whether the library transposes W and x before it multiplies.
    pub(super) fn transposed(self) -> [bool; 2] {
        match self {
            Self::Layer(layout) => [layout == Layout::OutIn, false],
            Self::Gradient => [false, true],
        }
    }
}

/// The type that products are computed in. For f32 operands it is f32, unless TF32 was asked for.
fn compute_type(path: ComputePath) -> sys::cublasComputeType_t {
    match path {
        ComputePath::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: made by `load`, and products borrow it.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// One prepared product.
pub(super) struct Product<'a> {
    library: &'a CublasLt,
    description: sys::cublasLtMatmulDesc_t,
    /// W, x, y.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
    /// Index of the algorithm that `issue` uses.
    pub(super) chosen: usize,
    factors: [f32; 2],
}

impl Product<'_> {
    fn set_transposed(&mut self, attribute: sys::cublasLtMatmulDescAttributes_t, transposed: bool) -> Result<()> {
        let operation: i32 = transposed.into();
        // SAFETY: the description lives, and the attribute is an integer of this size.
        unsafe {
            let value = (&raw const operation).cast::<c_void>();
            result::set_matmul_desc_attribute(self.description, attribute, value, size_of::<i32>())
        }
        .context("cublasLtMatmulDescSetAttribute")
    }

    fn find_algorithms(&mut self) -> Result<()> {
        let preference = result::create_matmul_pref().context("cublasLtMatmulPreferenceCreate")?;
        let limit = WORKSPACE_BYTES;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let [w, x, y] = self.layouts;
        let mut found = 0;
        // SAFETY: zero bits are a valid value of this plain struct.
        let mut results: [sys::cublasLtMatmulHeuristicResult_t; MAX_ALGORITHMS] = unsafe { std::mem::zeroed() };
        // SAFETY: all descriptors live; the attribute is an integer of this size; the array has as many places as told.
        let status = unsafe {
            let value = (&raw const limit).cast::<c_void>();
            result::set_matmul_pref_attribute(preference, attribute, value, size_of::<usize>())
                .and_then(|()| {
                    let (handle, out) = (self.library.handle, results.as_mut_ptr());
                    let wanted = MAX_ALGORITHMS as i32;
                    sys::cublasLtMatmulAlgoGetHeuristic(
                        handle,
                        self.description,
                        w,
                        x,
                        y,
                        y,
                        preference,
                        wanted,
                        out,
                        &mut found,
                    )
                    .result()
                })
                .and_then(|()| result::destroy_matmul_pref(preference))
        };
        status.context("cublasLtMatmulAlgoGetHeuristic")?;
        let found = results.iter().take(usize::try_from(found).unwrap_or(0));
        let usable = found.filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        self.algorithms = usable.map(|result| result.algo).collect();
        if self.algorithms.is_empty() {
            bail!("cuBLASLt has no algorithm for this product");
        }
        Ok(())
    }

    /// Issues the product. W, x and y are given by their device addresses.
    ///
    /// # Safety
    /// The addresses must be those of packed matrices of the product's shapes, on the stream's device.
    pub(super) unsafe fn issue(&self, stream: &Stream, [w, x, y]: [u64; 3]) -> fused_lora::Result<()> {
        let [w_layout, x_layout, y_layout] = self.layouts;
        let [alpha, beta] = &self.factors;
        // SAFETY: all descriptors live; the addresses are the caller's promise; the stream lives.
        unsafe {
            result::matmul(
                self.library.handle,
                self.description,
                std::ptr::from_ref(alpha).cast(),
                std::ptr::from_ref(beta).cast(),
                w as *const c_void,
                w_layout,
                x as *const c_void,
                x_layout,
                y as *const c_void,
                y_layout,
                y as *mut c_void,
                y_layout,
                self.algorithms.get(self.chosen).map_or(null_mut(), |algorithm| (&raw const *algorithm).cast_mut()),
                self.library.workspace.as_slice().address() as *mut c_void,
                WORKSPACE_BYTES,
                stream.as_raw().cast(),
            )
        }
        .map_err(|error| {
            fused_lora::Error::Driver(fused_lora::DriverError::Refused {
                operation: "cublasLtMatmul",
                code: error.0 as u32,
                reason: error.to_string(),
            })
        })
    }
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `CublasLt::product`, destroyed once.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// The index of the fastest of `candidates` algorithms. Each is timed over all copies of the operands, with cold
/// caches, as in the measurement itself.
pub(super) fn fastest_algorithm(
    product: &mut Product<'_>,
    candidates: usize,
    device: &Device,
    stream: &Stream,
    copies: usize,
    issue: impl Fn(&Product<'_>, &Stream, usize) -> fused_lora::Result<()>,
) -> Result<usize> {
    let mut best = (f64::INFINITY, 0);
    for candidate in 0..candidates {
        product.chosen = candidate;
        let round = |launches: usize| {
            let us =
                timed(device, stream, || (0..launches).try_for_each(|launch| issue(product, stream, launch % copies)))?;
            anyhow::Ok(us / launches as f64)
        };
        // The first round loads the kernel; the second tells how long a launch takes.
        round(copies)?;
        let launches = launches(copies, round(copies)?, SEARCH_US);
        for _ in 0..SEARCH_ROUNDS {
            let us = round(launches)?;
            if us < best.0 {
                best = (us, candidate);
            }
        }
    }
    Ok(best.1)
}
