//! A safe call of the kernels of the `gemm` crates: it checks bounds first.
//!
//! It calls the crates for `f32` and `f64` directly. The crate `gemm` would also compile kernels for complex numbers,
//! which is half of the time that this library's dependencies take to build.

use gemm_common::Parallelism;

use super::operand::Operand;

/// Whether a product overwrites its destination or is added to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale<T> {
    /// `dst = factor · lhs·rhs`; the old contents are never read.
    Overwrite(T),
    /// `dst += factor · lhs·rhs`.
    Add(T),
}

/// A floating-point type that the `gemm` crates support.
pub trait Float: sealed::Float {}
impl Float for f32 {}
impl Float for f64 {}

/// A kernel of the `gemm` crates. Its parameters: m, n, k; dst with its column stride, its row stride, and whether it
/// is read; lhs and rhs with their column and row strides; the factors of dst and of the product; three flags for
/// complex conjugation; the parallelism.
type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

mod sealed {
    use super::Kernel;

    pub trait Float: Copy + 'static {
        const ZERO: Self;
        const ONE: Self;
        /// The fastest kernel for this processor.
        fn kernel() -> Kernel<Self>;
    }
    impl Float for f32 {
        const ZERO: f32 = 0.0;
        const ONE: f32 = 1.0;
        fn kernel() -> Kernel<f32> {
            gemm_f32::gemm::f32::get_gemm_fn()
        }
    }
    impl Float for f64 {
        const ZERO: f64 = 0.0;
        const ONE: f64 = 1.0;
        fn kernel() -> Kernel<f64> {
            gemm_f64::gemm::f64::get_gemm_fn()
        }
    }
}

/// `dst (=|+=) factor · lhs·rhs` on the calling thread; `dst` is row-major `[lhs.rows(), rhs.cols()]` with rows
/// `dst_stride` elements apart. Panics if the shapes do not fit.
pub fn gemm_into<T: Float>(
    dst: &mut [T],
    dst_stride: usize,
    lhs: Operand<'_, T>,
    rhs: Operand<'_, T>,
    scale: Scale<T>,
) {
    let (m, n, k) = (lhs.rows(), rhs.cols(), lhs.cols());
    assert_eq!(k, rhs.rows(), "inner dimensions differ");
    if m == 0 || n == 0 {
        return;
    }
    assert!(dst_stride >= n && (m - 1) * dst_stride + n <= dst.len(), "the destination is too small");
    let (read_dst, factor) = match scale {
        Scale::Overwrite(factor) => (false, factor),
        Scale::Add(factor) => (true, factor),
    };
    // The kernels are made for column-major destinations. A row-major product is computed as the product of the
    // transposes.
    let (m, n, dst_col, dst_row, lhs, rhs) =
        if dst_stride > 1 { (n, m, dst_stride, 1, rhs.t(), lhs.t()) } else { (m, n, 1, dst_stride, lhs, rhs) };
    // SAFETY: the assertions above and the invariant of `Operand` keep every access inside the three slices; `dst` is
    // borrowed mutably, so it overlaps neither operand.
    unsafe {
        T::kernel()(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            dst_col as isize,
            dst_row as isize,
            read_dst,
            lhs.data().as_ptr(),
            lhs.col_stride() as isize,
            lhs.row_stride() as isize,
            rhs.data().as_ptr(),
            rhs.col_stride() as isize,
            rhs.row_stride() as isize,
            if read_dst { T::ONE } else { T::ZERO },
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwrite_never_reads_and_add_does() {
        let (lhs, rhs) = ([1.0f32, 2.0], [3.0f32, 4.0]);
        let l = Operand::new(&lhs, 1, 2, 2, 1);
        let r = Operand::new(&rhs, 2, 1, 1, 1);
        let mut dst = [f32::NAN];
        gemm_into(&mut dst, 1, l, r, Scale::Overwrite(2.0));
        assert_eq!(dst, [22.0]);
        gemm_into(&mut dst, 1, l, r, Scale::Add(-1.0));
        assert_eq!(dst, [11.0]);
    }

    #[test]
    #[should_panic(expected = "too small")]
    fn a_short_destination_is_refused() {
        let data = [0.0f32; 4];
        let op = Operand::new(&data, 2, 2, 2, 1);
        gemm_into(&mut [0.0; 3], 2, op, op, Scale::Overwrite(1.0));
    }
}
