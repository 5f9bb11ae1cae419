//! The error type of the library.
//!
//! One variant for one violated precondition, on the CPU and on devices.

/// What a call was refused for. Everything that can be checked is checked before any memory is written.
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
    /// A scale (a segment's α/r, or that of attention's scores) is infinite or not a number.
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
    /// A hyperparameter of the optimizer, or the number of its step, is out of range.
    #[error("the optimizer's {name} is {value}, expected {expected}")]
    HyperparameterOutOfRange {
        /// Which one.
        name: &'static str,
        /// What was given.
        value: f64,
        /// What is accepted.
        expected: &'static str,
    },
    /// An optimizer on a device was given no parameters, or none that has elements.
    #[error("there is nothing to train: no parameter has an element")]
    NothingToTrain,
    /// The driver of the GPU is not installed, or does not start.
    #[error("no CUDA driver: {reason}; it comes with NVIDIA's driver package")]
    NoDriver {
        /// What was looked for, or what the driver said.
        reason: String,
    },
    /// The driver lacks a function that this library calls.
    #[error("the CUDA driver has no {symbol}; version 520 (CUDA 11.8) or later is needed")]
    DriverTooOld {
        /// The function.
        symbol: String,
    },
    /// The driver has no device of this number.
    #[error("there is no CUDA device {ordinal}, the driver finds {count}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A kernel failed on the device. Nothing can be done with it any more in this process.
    #[error("the device is lost: {reason}")]
    DeviceLost {
        /// What the driver says.
        reason: String,
    },
    /// The driver refused a call for a reason of its own.
    #[error("the CUDA driver refused {operation}: {reason}")]
    Driver {
        /// The driver's function.
        operation: &'static str,
        /// The driver's error number.
        code: u32,
        /// The driver's name and sentence for it.
        reason: String,
    },
    /// The device has no memory left.
    #[error("no room for {bytes} bytes of device memory")]
    OutOfDeviceMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// This cannot be captured in a graph.
    #[error("{operation} cannot be captured in a graph: {reason}")]
    CaptureRefused {
        /// What was asked for.
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
    /// An address is no multiple of what the operation needs.
    #[error("{operand} starts, or has rows, at {address:#x}, which is no multiple of {alignment} bytes")]
    Misaligned {
        /// Which operand.
        operand: &'static str,
        /// The first address that is not aligned.
        address: u64,
        /// What it should be a multiple of.
        alignment: usize,
    },
    /// An output shares memory with another operand.
    #[error("{output} and {other} overlap in device memory")]
    Overlap {
        /// The output.
        output: &'static str,
        /// What it overlaps.
        other: &'static str,
    },
    /// A dimension or stride is more than kernels count to.
    #[error("{operand} has a dimension or stride of {value}, kernels count to {}", i32::MAX)]
    TooLarge {
        /// Which operand.
        operand: &'static str,
        /// The dimension or stride.
        value: usize,
    },
    /// The workspace on a device is smaller than the plan asks for.
    #[error("the workspace has {available}, the plan needs {required}")]
    DeviceWorkspaceTooSmall {
        /// What the plan needs.
        required: crate::WorkspaceLayout,
        /// What the workspace has room for.
        available: crate::WorkspaceLayout,
    },
    /// A tensor cannot be copied by the copy engine as described.
    #[error("no tensor map: {reason}")]
    BadTensorMap {
        /// What is in the way.
        reason: String,
    },
    /// A layer differs from the one that a launch was planned for.
    #[error("the plan was made for {planned}, not for {actual}")]
    PlanMismatch {
        /// What the plan was made for.
        planned: String,
        /// What was given instead.
        actual: String,
    },
    /// Factors do not fit a slot, or a slot's the layer that is to run with them.
    #[error("segment {segment} leads from {actual}, where {expected} or less was expected")]
    SlotMismatch {
        /// Which segment of the slot.
        segment: usize,
        /// Inputs, columns and the highest rank.
        expected: String,
        /// Those of the factors.
        actual: String,
    },
    /// T or dropout was asked for of a launch that was not planned for training.
    #[error("the launch was not planned for {what}: plan it with ForwardOptions {{ training: true, .. }}")]
    TrainingNotPlanned {
        /// What was asked for.
        what: &'static str,
    },
    /// A result was asked for of a pass that was not planned for it.
    #[error("{output} was asked for, but the pass was planned without it")]
    OutputNotPlanned {
        /// The result.
        output: &'static str,
    },
    /// A pass was planned for a result that nobody took.
    #[error("there is no place for {output}, which the pass was planned for")]
    OutputMissing {
        /// The result.
        output: &'static str,
    },
    /// A dropout probability outside [0, 1).
    #[error("a dropout probability of {p} is not in [0, 1 - 2^-17)")]
    DropoutOutOfRange {
        /// The probability.
        p: f64,
    },
    /// The device cannot run this kernel.
    #[error("{kernel} does not run on compute capability {}.{}: it is written for {needs}", capability.0, capability.1)]
    Unsupported {
        /// The kernel.
        kernel: String,
        /// The device's compute capability.
        capability: (u32, u32),
        /// The targets that its source names.
        needs: String,
    },
    /// There is no kernel of this name.
    #[error("there is no kernel '{kernel}'")]
    NoSuchKernel {
        /// The name.
        kernel: String,
    },
    /// No machine code for the device is built in, and nothing is there that could make it.
    #[error(
        "{kernel} is not built in for compute capability {}.{}, and NVRTC is not there to compile it ({reason}): build with \
         nvcc in $PATH, $CUDA_HOME or $FUSED_LORA_NVCC, or install libnvrtc (named in $FUSED_LORA_NVRTC if it is not \
         found)",
        capability.0, capability.1
    )]
    NoKernelImage {
        /// The kernel.
        kernel: String,
        /// The device's compute capability.
        capability: (u32, u32),
        /// What became of looking for NVRTC.
        reason: String,
    },
    /// This build keeps its machine code in files, and one of them cannot be read.
    #[error(
        "cannot read {} ({reason}): this build's kernels lie in files, in a folder 'images' beside the program or named in \
         $FUSED_LORA_IMAGES", path.display()
    )]
    NoImage {
        /// Where the file was looked for.
        path: std::path::PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// NVRTC could not compile a kernel.
    #[error("NVRTC cannot compile {file} for {target}: {log}")]
    CompilationFailed {
        /// The source.
        file: String,
        /// The architecture.
        target: String,
        /// What the compiler said.
        log: String,
    },
    /// A launch that the device or the kernel does not take.
    #[error("{kernel} cannot be launched: {reason}")]
    BadLaunch {
        /// The kernel.
        kernel: String,
        /// What is wrong with the launch.
        reason: String,
    },
    /// The parameter struct has another size than the kernel's.
    #[error("{kernel} takes {expected} bytes of parameters, not {actual}")]
    WrongParameters {
        /// The kernel.
        kernel: String,
        /// Bytes of its parameter struct.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A head of attention has no columns, or more than kernels take.
    #[error("a head of {head_size} columns is outside 1..={max}")]
    HeadSizeOutOfRange {
        /// Columns of a head.
        head_size: usize,
        /// The most there may be.
        max: usize,
    },
    /// The emulator is not there.
    #[error("no emulator: {reason}")]
    NoEmulator {
        /// Why not.
        reason: String,
    },
    /// The emulator ended a kernel that did what it must not.
    #[error("{kernel}: {report}")]
    KernelFault {
        /// The kernel.
        kernel: String,
        /// What happened, where, and where all other threads were.
        report: String,
    },
}

/// The result of every fallible call of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;
