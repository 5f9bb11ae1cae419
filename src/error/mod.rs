//! The error type of the library: one variant for each violated precondition, on the CPU and on devices, and a type each
//! for what the driver says, for loading a kernel and for launching it.

mod driver;
mod kernel;
mod launch;

pub use driver::DriverError;
pub use kernel::KernelError;
pub use launch::LaunchError;

/// Why a call failed. Everything that can be checked is checked before any memory is written.
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
        /// Elements from the first to the last of the matrix.
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
    /// A scale (a segment's α/r, or that of attention scores) is infinite or NaN.
    #[error("a scale is {scale}, expected a finite number")]
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
    /// More tokens than the decode kernels accept in one launch.
    #[error("{tokens} tokens, the decode kernels take at most {max}")]
    TooManyTokens {
        /// Rows of x.
        tokens: usize,
        /// The largest number accepted.
        max: usize,
    },
    /// More low-rank segments than a launch's parameter struct holds.
    #[error("{segments} low-rank segments, a launch holds at most {max}")]
    TooManySegments {
        /// Segments of the layer.
        segments: usize,
        /// The largest number accepted.
        max: usize,
    },
    /// Matrix instructions were requested, but the device or the element type does not allow them.
    #[error("no matrix instructions for this {dtype} layer: {reason}")]
    NoMatrixInstructions {
        /// The element type of the layer.
        dtype: crate::DType,
        /// Why they cannot be used.
        reason: &'static str,
    },
    /// An operand has no elements, so there is nothing to launch.
    #[error("nothing to compute: {operand} is {}x{}", shape[0], shape[1])]
    EmptyOperand {
        /// Which operand.
        operand: &'static str,
        /// Its rows and columns, at least one of which is 0.
        shape: [usize; 2],
    },
    /// A backward pass was planned without any output.
    #[error("nothing to compute: the layer has no adapter, and neither dx nor the bias's gradient is wanted")]
    NothingWanted,
    /// The number of gradient buffers differs from the number of segments.
    #[error("{actual} gradient buffers for {expected} segments")]
    SegmentCountMismatch {
        /// Segments of the layer.
        expected: usize,
        /// Buffers given.
        actual: usize,
    },
    /// A hyperparameter of the optimizer, or the step number, is out of range.
    #[error("the optimizer's {name} is {value}, expected {expected}")]
    HyperparameterOutOfRange {
        /// The hyperparameter's name.
        name: &'static str,
        /// The value given.
        value: f64,
        /// The values accepted.
        expected: &'static str,
    },
    /// An optimizer on a device was given no parameters, or only empty ones.
    #[error("there is nothing to train: no parameter has an element")]
    NothingToTrain,
    /// An operation cannot be captured in a graph.
    #[error("{operation} cannot be captured in a graph: {reason}")]
    CaptureRefused {
        /// The operation.
        operation: &'static str,
        /// Why not.
        reason: String,
    },
    /// An event was used before it was recorded.
    #[error("the event has not been recorded")]
    EventNotRecorded,
    /// An operand belongs to another device than the operation.
    #[error("{operand} is on {actual}, the operation on {expected}")]
    WrongDevice {
        /// Which operand.
        operand: &'static str,
        /// The operation's device.
        expected: String,
        /// The operand's device.
        actual: String,
    },
    /// An operand's address, or that of one of its rows, is not aligned as the operation needs.
    #[error("{operand} starts or has a row at {address:#x}, which is not a multiple of {alignment} bytes")]
    Misaligned {
        /// Which operand.
        operand: &'static str,
        /// The first address that is not aligned.
        address: u64,
        /// The required alignment, in bytes.
        alignment: usize,
    },
    /// An output shares memory with another operand.
    #[error("{output} and {other} overlap in device memory")]
    Overlap {
        /// The output.
        output: &'static str,
        /// The operand that it overlaps.
        other: &'static str,
    },
    /// A dimension or stride exceeds the 31 bits that kernels support.
    #[error("{operand} has a dimension or stride of {value}, the kernels support at most {}", i32::MAX)]
    TooLarge {
        /// Which operand.
        operand: &'static str,
        /// The dimension or stride.
        value: usize,
    },
    /// The workspace on a device is smaller than the plan asks for.
    #[error("the workspace has {available}, the plan needs {required}")]
    DeviceWorkspaceTooSmall {
        /// The layout that the plan needs.
        required: crate::WorkspaceLayout,
        /// The layout of the workspace given.
        available: crate::WorkspaceLayout,
    },
    /// No tensor map can be encoded for a tensor.
    #[error("cannot encode a tensor map: {reason}")]
    BadTensorMap {
        /// Which rule the tensor or the device violates.
        reason: String,
    },
    /// The operands of a call differ from those that it was planned for.
    #[error("the plan was made for {planned}, not for {actual}")]
    PlanMismatch {
        /// The layer, adapter or parameter that the plan was made for.
        planned: String,
        /// The one that was given.
        actual: String,
    },
    /// Factors do not fit a slot, or a slot does not fit the layer that is to read its factors.
    #[error("segment {segment}: expected {expected} or a lower rank, got {actual}")]
    SlotMismatch {
        /// Which segment of the slot.
        segment: usize,
        /// The inputs, columns and highest rank that fit.
        expected: String,
        /// The inputs, columns and rank that were given.
        actual: String,
    },
    /// T or dropout was requested from a launch that was not planned for training.
    #[error("the launch was not planned for {what}: plan it with ForwardOptions {{ training: true, .. }}")]
    TrainingNotPlanned {
        /// The feature requested.
        what: &'static str,
    },
    /// A buffer was given for an output that the pass was not planned to compute.
    #[error("a buffer for {output} was given, but the pass was planned without it")]
    OutputNotPlanned {
        /// The output.
        output: &'static str,
    },
    /// No buffer was given for an output that the pass was planned to compute.
    #[error("the pass was planned to compute {output}, but no buffer for it was given")]
    OutputMissing {
        /// The output.
        output: &'static str,
    },
    /// A dropout probability is below 0, or at least 1 − 2⁻¹⁷, so that it would be rounded to 1.
    #[error("a dropout probability of {p}, expected at least 0 and less than 1 - 2^-17, which would be rounded to 1")]
    DropoutOutOfRange {
        /// The probability.
        p: f64,
    },
    /// An attention head has no columns, or more than the kernels support.
    #[error("a head of {head_size} columns is outside 1..={max}")]
    HeadSizeOutOfRange {
        /// Columns of a head.
        head_size: usize,
        /// The largest number supported.
        max: usize,
    },
    /// The device cannot be opened, or its driver refuses a call.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A kernel cannot be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A kernel cannot be launched as asked, or its launch failed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// The result of every fallible call of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_nested_error_says_its_cause_once() {
        let driver = DriverError::NoDevice { ordinal: 3, count: 1 };
        let kernel = KernelError::NoSuchKernel { kernel: "k".to_owned() };
        let launch = LaunchError::WrongParameters { kernel: "k".to_owned(), expected: 8, actual: 4 };
        let texts = [driver.to_string(), kernel.to_string(), launch.to_string()];
        for (error, text) in [Error::from(driver), kernel.into(), launch.into()].into_iter().zip(texts) {
            assert_eq!(error.to_string(), text);
            assert!(error.source().is_none(), "{error}");
        }
    }
}
