//! cuBLASLt: the vendor's matrix product, loaded at run time where it is installed.

use std::ffi::c_void;
use std::ptr::null_mut;

use anyhow::{Context, Result, bail, ensure};
use cudarc::cublaslt::{result, sys};
use fused_lora::device::{Device, DeviceBuffer, Stream};
use fused_lora::lora::Layout;
use fused_lora::{ComputePath, DType};

use super::rotation::{launches, timed};

/// Bytes that an algorithm may ask for: what torch gives it on a Hopper GPU.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Algorithms of the library's own choice that are timed against each other.
const CHOICES: usize = 8;
/// Each by the best of so many rounds, of about so many microseconds.
const SEARCHES: usize = 3;
const SEARCH_US: f64 = 2_000.0;

/// The library, and the workspace of its products.
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

    /// Prepares `y = alpha·product + beta·y` of rows, depth and columns, with the algorithm that `fastest` finds to be so.
    pub(super) fn product(
        &self,
        (dtype, path): (DType, ComputePath),
        shape: [usize; 3],
        form: Form,
        [alpha, beta]: [f32; 2],
        fastest: impl FnOnce(&mut Product<'_>, usize) -> Result<usize>,
    ) -> Result<Product<'_>> {
        let kind = match dtype {
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let [turns_w, turns_x] = form.turned();
        let [w, x, y] = form.stored(shape);
        let sums = if form == Form::Gradient { sys::cudaDataType_t::CUDA_R_32F } else { kind };
        let matrix = |kind, [rows, cols]: [usize; 2]| {
            result::create_matrix_layout(kind, rows as u64, cols as u64, rows as i64)
                .context("cublasLtMatrixLayoutCreate")
        };
        let compute = compute_type(path);
        let description =
            result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).context("cublasLtMatmulDescCreate")?;
        let mut product = Product {
            library: self,
            description,
            layouts: [matrix(kind, w)?, matrix(kind, x)?, matrix(sums, y)?],
            algorithms: vec![],
            chosen: 0,
            factors: [alpha, beta],
        };
        product.set_turned(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, turns_w)?;
        product.set_turned(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, turns_x)?;
        product.find_algorithms()?;
        let choices = product.algorithms.len();
        product.chosen = fastest(&mut product, choices)?;
        Ok(product)
    }
}

/// What is multiplied, all of it stored by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// x `[rows, depth]` by W: `x·Wᵀ` (W `[columns, depth]`, out-in) or `x·W` (`[depth, columns]`, in-out).
    Layer(Layout),
    /// A gradient: `xᵀ·W` of x `[depth, rows]` and W `[depth, columns]`, its sums stored as `f32`.
    Gradient,
}

impl Form {
    /// Rows and columns of W, x and y to the library, which stores by columns: row-major y `[rows, columns]` is its
    /// `[columns, rows] = op(W)·op(x)`.
    pub(super) fn stored(self, [rows, depth, columns]: [usize; 3]) -> [[usize; 2]; 3] {
        let [turns_w, turns_x] = self.turned();
        let w = if turns_w { [depth, columns] } else { [columns, depth] };
        let x = if turns_x { [rows, depth] } else { [depth, rows] };
        [w, x, [columns, rows]]
    }

    /// Whether the library turns W and x before it multiplies.
    pub(super) fn turned(self) -> [bool; 2] {
        match self {
            Self::Layer(layout) => [layout == Layout::OutIn, false],
            Self::Gradient => [false, true],
        }
    }
}

/// What products are computed in. Of f32 they are true f32 unless TF32 was asked for by name.
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
    pub(super) chosen: usize,
    factors: [f32; 2],
}

impl Product<'_> {
    fn set_turned(&mut self, attribute: sys::cublasLtMatmulDescAttributes_t, turned: bool) -> Result<()> {
        let operation: i32 = turned.into();
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
        let mut results: [sys::cublasLtMatmulHeuristicResult_t; CHOICES] = unsafe { std::mem::zeroed() };
        // SAFETY: all descriptors live; the attribute is an integer of this size; the array has as many places as told.
        let status = unsafe {
            let value = (&raw const limit).cast::<c_void>();
            result::set_matmul_pref_attribute(preference, attribute, value, size_of::<usize>())
                .and_then(|()| {
                    let (handle, out) = (self.library.handle, results.as_mut_ptr());
                    let wanted = CHOICES as i32;
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

    /// Issues the product: device addresses of W, x and y.
    ///
    /// # Safety
    /// The addresses are those of matrices of the shapes the product was prepared for, packed, on the stream's device.
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

/// Of `choices` algorithms the one whose round through all copies of the operands takes least: with cold caches, as it
/// will be measured.
pub(super) fn fastest(
    product: &mut Product<'_>,
    choices: usize,
    device: &Device,
    stream: &Stream,
    copies: usize,
    issue: impl Fn(&Product<'_>, &Stream, usize) -> fused_lora::Result<()>,
) -> Result<usize> {
    let mut best = (f64::INFINITY, 0);
    for choice in 0..choices {
        product.chosen = choice;
        let round = |launches: usize| {
            let us =
                timed(device, stream, || (0..launches).try_for_each(|launch| issue(product, stream, launch % copies)))?;
            anyhow::Ok(us / launches as f64)
        };
        // The first one loads the kernel, the second one says how long it takes.
        round(copies)?;
        let launches = launches(copies, round(copies)?, SEARCH_US);
        for _ in 0..SEARCHES {
            let us = round(launches)?;
            if us < best.0 {
                best = (us, choice);
            }
        }
    }
    Ok(best.1)
}
