//! The error type of the library: one variant for each violated precondition, on the CPU and on devices.

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
    /// A layer or batch has no elements, so there is nothing to launch.
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
    /// The driver of the GPU is not installed, or does not start.
    #[error("no CUDA driver: {reason}; it comes with NVIDIA's driver package")]
    NoDriver {
        /// The library that was not found, or the driver's message.
        reason: String,
    },
    /// The driver lacks a function that this library calls.
    #[error("the CUDA driver has no {symbol}; version 520 (CUDA 11.8) or later is needed")]
    DriverTooOld {
        /// The missing function.
        symbol: String,
    },
    /// The driver has no device with this number.
    #[error("there is no CUDA device {ordinal}, the driver finds {count}")]
    NoDevice {
        /// The number requested.
        ordinal: usize,
        /// How many devices the driver finds.
        count: usize,
    },
    /// A kernel failed. This process cannot use the device any more.
    #[error("the device is lost: {reason}")]
    DeviceLost {
        /// The driver's message.
        reason: String,
    },
    /// The driver refused a call for any other reason.
    #[error("the CUDA driver refused {operation}: {reason}")]
    Driver {
        /// The driver function that was called.
        operation: &'static str,
        /// The driver's error number.
        code: u32,
        /// The driver's name and description of the error.
        reason: String,
    },
    /// The device has no memory left.
    #[error("no room for {bytes} bytes of device memory")]
    OutOfDeviceMemory {
        /// Bytes requested.
        bytes: usize,
    },
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
    /// A dropout probability is outside [0, 1 − 2⁻¹⁷). From 1 − 2⁻¹⁷ on, it would be rounded to 1.
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
        /// The targets that the kernel is written for.
        needs: String,
    },
    /// There is no kernel of this name.
    #[error("there is no kernel '{kernel}'")]
    NoSuchKernel {
        /// The name requested.
        kernel: String,
    },
    /// No machine code for the device is built in, and NVRTC cannot compile it.
    #[error(
        "{kernel} is not built in for compute capability {}.{}, and NVRTC cannot compile it ({reason}): build with \
         nvcc in $PATH, $CUDA_HOME or $FUSED_LORA_NVCC, or install libnvrtc (set $FUSED_LORA_NVRTC to its path if it \
         is not found)",
        capability.0, capability.1
    )]
    NoKernelImage {
        /// The kernel.
        kernel: String,
        /// The device's compute capability.
        capability: (u32, u32),
        /// Why NVRTC cannot compile it.
        reason: String,
    },
    /// This build keeps its machine code in files, and one of them cannot be read.
    #[error(
        "cannot read {} ({reason}): this build loads its kernels from files in a folder 'images' beside the program or \
         in the folder that $FUSED_LORA_IMAGES names", path.display()
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
        /// The source file.
        file: String,
        /// The target architecture.
        target: String,
        /// The compiler's log.
        log: String,
    },
    /// A launch exceeds the limits of the device or of the kernel.
    #[error("{kernel} cannot be launched: {reason}")]
    BadLaunch {
        /// The kernel.
        kernel: String,
        /// What is wrong with the launch.
        reason: String,
    },
    /// The parameter struct given differs in size from the kernel's.
    #[error("{kernel} takes {expected} bytes of parameters, not {actual}")]
    WrongParameters {
        /// The kernel.
        kernel: String,
        /// Bytes of its parameter struct.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// An attention head has no columns, or more than the kernels support.
    #[error("a head of {head_size} columns is outside 1..={max}")]
    HeadSizeOutOfRange {
        /// Columns of a head.
        head_size: usize,
        /// The largest number supported.
        max: usize,
    },
    /// The emulator is not available.
    #[error("no emulator: {reason}")]
    NoEmulator {
        /// Why not.
        reason: String,
    },
    /// The emulator stopped a kernel because one of its checks failed.
    #[error("{kernel}: {report}")]
    KernelFault {
        /// The kernel.
        kernel: String,
        /// What happened and where, and the positions of all other threads.
        report: String,
    },
}

/// The result of every fallible call of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;
