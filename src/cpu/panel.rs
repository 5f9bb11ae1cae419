//! Panels: blocks of an operand, widened to `f32`, and transposed if the product needs the other order.

use super::operand::Operand;
use super::vector::vectorized;
use crate::dropout::Dropout;
use crate::dtype::Element;

/// Edge of the square blocks in which a panel is transposed: 16 rows of 16 `f32` are 16 cache lines of source and of
/// destination.
const EDGE: usize = 16;

/// Copies `src`, widened, into `dst` as a contiguous row-major `[rows, cols]` matrix.
pub(crate) fn load_rows<'d, T: Element>(src: Operand<'_, T>, dst: &'d mut [f32]) -> Operand<'d, f32> {
    let (rows, cols) = (src.rows(), src.cols());
    let dst = &mut dst[..rows * cols];
    if src.col_stride() == 1 {
        for (i, out) in dst.chunks_exact_mut(cols.max(1)).enumerate() {
            T::widen(&src.data()[i * src.row_stride()..][..cols], out);
        }
    } else {
        transpose(src, dst);
    }
    Operand::new(dst, rows, cols, cols, 1)
}

/// [`load_rows`] with dropped elements set to 0 and kept elements not scaled. `src` is the block of a layer's input
/// that starts at `[row, column]`.
pub(crate) fn load_dropped<'d, T: Element>(
    src: Operand<'_, T>,
    dropout: &Dropout,
    [row, column]: [usize; 2],
    dst: &'d mut [f32],
) -> Operand<'d, f32> {
    let (rows, cols) = (src.rows(), src.cols());
    load_rows(src, dst);
    for (i, values) in dst[..rows * cols].chunks_exact_mut(cols.max(1)).enumerate() {
        dropout.drop_row(row + i, column, values);
    }
    Operand::new(dst, rows, cols, cols, 1)
}

/// Copies `src`, widened, in its storage order, so that reads have stride 1.
pub(crate) fn load_as_stored<'d, T: Element>(src: Operand<'_, T>, dst: &'d mut [f32]) -> Operand<'d, f32> {
    if src.col_stride() == 1 { load_rows(src, dst) } else { load_rows(src.t(), dst).t() }
}

/// Transposes the storage order: `dst[i, j] = src[i, j]`, with `src` contiguous along i and `dst` contiguous along j.
fn transpose<T: Element>(src: Operand<'_, T>, dst: &mut [f32]) {
    let (rows, cols, stride) = (src.rows(), src.cols(), src.col_stride());
    let data = src.data();
    vectorized(
        #[inline(always)]
        || {
            for i0 in (0..rows).step_by(EDGE) {
                for j0 in (0..cols).step_by(EDGE) {
                    let (height, width) = (EDGE.min(rows - i0), EDGE.min(cols - j0));
                    if height == EDGE && width == EDGE && src.row_stride() == 1 {
                        let mut block = [[0.0f32; EDGE]; EDGE];
                        for (j, line) in block.iter_mut().enumerate() {
                            for (to, from) in line.iter_mut().zip(&data[(j0 + j) * stride + i0..][..EDGE]) {
                                *to = from.to_f32();
                            }
                        }
                        for i in 0..EDGE {
                            let out = &mut dst[(i0 + i) * cols + j0..][..EDGE];
                            for j in 0..EDGE {
                                out[j] = block[j][i];
                            }
                        }
                    } else {
                        for i in i0..i0 + height {
                            for j in j0..j0 + width {
                                dst[i * cols + j] = data[i * src.row_stride() + j * stride].to_f32();
                            }
                        }
                    }
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn transposing_moves_every_element() {
        for (rows, cols) in [(1, 1), (16, 16), (17, 33), (5, 40), (48, 3)] {
            let src: Vec<f16> = (0..rows * cols).map(|i| f16::from_f32(i as f32)).collect();
            let stored = Operand::new(&src, cols, rows, rows, 1);
            let mut buffer = vec![f32::NAN; rows * cols];
            let panel = load_rows(stored.t(), &mut buffer);
            assert_eq!((panel.rows(), panel.cols()), (rows, cols));
            for i in 0..rows {
                for j in 0..cols {
                    assert_eq!(panel.data()[i * cols + j], (j * rows + i) as f32, "{rows}x{cols} [{i}, {j}]");
                }
            }
        }
    }
}
