//! The error type of the library.

/// What a call was refused for. Everything is checked before any memory is written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A matrix has the wrong shape for its role in the operation.
    #[error("{operand} is {}x{}, expected {}x{}", actual[0], actual[1], expected[0], expected[1])]
    ShapeMismatch {
        /// Which operand.
        operand: &'static str,
        /// Rows and columns that the operation needs.
        expected: [usize; 2],
        /// Rows and columns that were given.
        actual: [usize; 2],
    },
    /// A vector has the wrong length for its role in the operation.
    #[error("{operand} has {actual} elements, expected {expected}")]
    LengthMismatch {
        /// Which operand.
        operand: &'static str,
        /// Elements that the operation needs.
        expected: usize,
        /// Elements that were given.
        actual: usize,
    },
    /// A row stride is smaller than the number of columns, so rows would overlap.
    #[error("row stride {row_stride} is smaller than the {cols} columns of a row")]
    RowsOverlap {
        /// Columns of the matrix.
        cols: usize,
        /// The stride given, in elements.
        row_stride: usize,
    },
    /// A buffer ends before the last element of the matrix it should hold.
    #[error("a {rows}x{cols} matrix of row stride {row_stride} needs {required} elements, the buffer has {available}")]
    BufferTooShort {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Distance between rows, in elements.
        row_stride: usize,
        /// Elements that such a matrix spans.
        required: usize,
        /// Elements of the buffer.
        available: usize,
    },
    /// A low-rank segment has a rank outside 1 to [`MAX_RANK`](crate::lora::MAX_RANK).
    #[error("rank {rank} is outside 1..={max}")]
    RankOutOfRange {
        /// The rank given.
        rank: usize,
        /// The largest rank supported.
        max: usize,
    },
    /// A low-rank segment does not lie inside the layer's output columns, or is empty.
    #[error("segment columns {start}..{end} do not lie in the layer's 0..{d_out}, or are empty")]
    SegmentOutOfRange {
        /// First column of the segment.
        start: usize,
        /// One past its last column.
        end: usize,
        /// Output columns of the layer.
        d_out: usize,
    },
    /// A scale (α/r) is infinite or not a number.
    #[error("the scale of a segment is {scale}, expected a finite number")]
    ScaleNotFinite {
        /// The scale given.
        scale: f32,
    },
    /// The workspace is smaller than the plan asks for.
    #[error("the workspace has {available} elements, the plan needs {required}")]
    WorkspaceTooSmall {
        /// `f32` elements that the plan needs.
        required: usize,
        /// `f32` elements that were given.
        available: usize,
    },
    /// A merge would store an infinity or a NaN.
    #[error("element [{row}, {column}] of the merged weight would be {value} in {dtype}")]
    NonFiniteMerge {
        /// Row in the weight's own layout.
        row: usize,
        /// Column in the weight's own layout.
        column: usize,
        /// The value before rounding.
        value: f64,
        /// The type it would be rounded to.
        dtype: crate::DType,
    },
    /// More tokens than the decode kernels take in one launch.
    #[error("{tokens} tokens, the decode kernels take at most {max}")]
    TooManyTokens {
        /// Rows of x.
        tokens: usize,
        /// The most there may be.
        max: usize,
    },
    /// More low-rank segments than a launch's parameters hold.
    #[error("{segments} low-rank segments, a launch holds at most {max}")]
    TooManySegments {
        /// Segments of the layer.
        segments: usize,
        /// The most there may be.
        max: usize,
    },
    /// Matrix instructions were asked for where there are none.
    #[error("no matrix instructions for this {dtype} layer: {reason}")]
    NoMatrixInstructions {
        /// What everything is stored as.
        dtype: crate::DType,
        /// What is in the way.
        reason: &'static str,
    },
    /// A layer or batch without elements has nothing to launch.
    #[error("nothing to compute: {tokens} tokens of a {d_in} to {d_out} layer")]
    EmptyProblem {
        /// Rows of x.
        tokens: usize,
        /// Input features.
        d_in: usize,
        /// Output features.
        d_out: usize,
    },
    /// The number of gradient buffers differs from the number of segments.
    #[error("{actual} gradient buffers for {expected} segments")]
    SegmentCountMismatch {
        /// Segments of the layer.
        expected: usize,
        /// Buffers given.
        actual: usize,
    },
}

/// The result of every fallible call of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;
