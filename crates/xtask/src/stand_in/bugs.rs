//! Bugs of a program that calls the driver, as alterations of its calls (`crates/driver/src/options.rs`), and the driver
//! functions whose failures are tried.

pub(super) const EVERY_CALL: &str = "device::every_call::one_program_makes_every_call";
const OTHER_THREAD: &str = "device::every_call::another_thread_may_capture_in_the_global_mode";

/// The tests that are run with bugs. Each must pass without one.
pub(super) const WORKLOAD: [&str; 2] = [EVERY_CALL, OTHER_THREAD];

/// A bug of the host's code.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostBug {
    /// What the host does wrong.
    pub(super) bug: &'static str,
    /// The calls that a host with this bug would make, as a change of those that it makes.
    pub(super) alteration: &'static str,
    pub(super) test: &'static str,
    /// A text of the output: the rule, or how the result shows it. If it is empty, any failure will do: what happens depends on
    /// the kernel.
    pub(super) caught_by: &'static str,
}

const fn bug(bug: &'static str, alteration: &'static str, caught_by: &'static str) -> HostBug {
    HostBug { bug, alteration, test: EVERY_CALL, caught_by }
}

/// A panic of the test: a wrong result, or an error where there should be none.
const WRONG_RESULT: &str = "panicked";
/// A fault of the emulator.
const FAULT: &str = "DeviceLost";

pub(super) const BUGS: &[HostBug] = &[
    // --- contexts and handles ---
    bug("cuInit gets flags", "set=cuInit.flags:1", "NoInitFlags"),
    bug("a device that is not there is asked for", "set=cuDeviceGet.ordinal:5", "Ordinal"),
    bug("an attribute's number is wrong", "set=cuDeviceGetAttribute.attribute:9999", "KnownAttribute"),
    bug("no context is retained", "skip=cuDevicePrimaryCtxRetain", "CurrentContext"),
    bug("no context is made current", "skip=cuCtxSetCurrent", "CurrentContext"),
    bug("a number that is no context is made current", "set=cuCtxSetCurrent@1.context:64", "CurrentContext"),
    bug("an event is destroyed twice", "earlier=cuEventDestroy_v2.event:1", "has been destroyed"),
    bug("a stream is destroyed twice", "earlier=cuStreamDestroy_v2.stream:1", "has been destroyed"),
    bug("a number that is no stream is given", "set=cuEventRecord.stream:7", "LiveHandle"),
    bug("no event is given", "set=cuEventQuery.event:0", "LiveHandle"),
    // --- memory ---
    bug("an allocation is a byte too short", "add=cuMemAlloc_v2.bytes:-1", "LiveMemory"),
    bug("memory is freed twice", "earlier=cuMemFree_v2.address:1", "WholeAllocation"),
    bug("a part of an allocation is freed", "add=cuMemFree_v2.address:256", "WholeAllocation"),
    bug("a fill is a byte too long", "add=cuMemsetD8Async.count:1", "LiveMemory"),
    bug("an upload is a byte too long", "add=cuMemcpyHtoDAsync_v2.bytes:1", "LiveMemory"),
    bug("a download is a byte too long", "add=cuMemcpyDtoHAsync_v2.bytes:1", "LiveMemory"),
    bug("a copy is too long", "add=cuMemcpyDtoDAsync_v2.bytes:80", "LiveMemory"),
    bug("a copy goes to null", "set=cuMemcpyDtoDAsync_v2.to:0", "LiveMemory"),
    bug("an upload is forgotten", "skip=cuMemcpyHtoDAsync_v2@1", WRONG_RESULT),
    bug("a download is not waited for", "skip=cuStreamSynchronize", WRONG_RESULT),
    bug("memory is not zeroed", "skip=cuMemsetD8Async", WRONG_RESULT),
    // --- streams and events ---
    bug("a stream's flags are wrong", "set=cuStreamCreate.flags:2", "StreamFlags"),
    bug("an event's flags are wrong", "set=cuEventCreate.flags:8", "EventFlags"),
    bug("an event that is timed was created without timing", "set=cuEventCreate.flags:2", "TimedEvent"),
    bug("an event is not recorded", "skip=cuEventRecord@1", "RecordedEvent"),
    bug("a stream does not wait for another one", "skip=cuStreamWaitEvent@1", "Ordered"),
    bug("a wait has flags", "set=cuStreamWaitEvent.flags:4", "NoFlags"),
    bug("an event is taken as done without a query", "skip=cuEventQuery", "Ordered"),
    // --- captures and graphs ---
    bug("a capture's mode is wrong", "set=cuStreamBeginCapture_v2.mode:7", "CaptureMode"),
    bug("a capture is not begun", "skip=cuStreamBeginCapture_v2", "CaptureRunning"),
    bug("a capture is not ended", "skip=cuStreamEndCapture@1", "LiveHandle"),
    bug("a captured graph is not destroyed", "skip=cuGraphDestroy", "KeptForGraph"),
    bug("an executable graph is not destroyed", "skip=cuGraphExecDestroy", "KeptForGraph"),
    bug("a graph is instantiated with flags", "set=cuGraphInstantiateWithFlags.flags:1", "NoFlags"),
    bug("a graph is not launched", "skip=cuGraphLaunch", WRONG_RESULT),
    bug(
        "code is loaded in a capture without the relaxed mode",
        "skip=cuThreadExchangeStreamCaptureMode",
        "SafeInCapture",
    ),
    HostBug {
        bug: "an event is queried while another thread captures in the global mode",
        alteration: "skip=cuThreadExchangeStreamCaptureMode",
        test: OTHER_THREAD,
        caught_by: "SafeInCapture",
    },
    // --- modules and functions ---
    bug("an image is not aligned", "add=cuModuleLoadData.image:4", "Image"),
    bug("a function is not looked up", "skip=cuModuleGetFunction", "LiveHandle"),
    bug("an attribute of a function has a wrong number", "set=cuFuncGetAttribute.attribute:77", "KnownAttribute"),
    bug("large shared memory is not asked for", "skip=cuFuncSetAttribute", "SharedLimit"),
    bug("more shared memory is asked for than there is", "add=cuFuncSetAttribute.value:1", "FunctionLimit"),
    bug(
        "the occupancy of a block that is too large is asked for",
        "set=cuOccupancyMaxActiveBlocksPerMultiprocessor.block:2048",
        "BlockSize",
    ),
    // --- launches ---
    bug("the function before is launched", "earlier=cuLaunchKernelEx.function:1", ""),
    bug("a launch has less shared memory than planned", "add=cuLaunchKernelEx.sharedMemBytes:-512", FAULT),
    bug("a launch has more shared memory than allowed", "add=cuLaunchKernelEx.sharedMemBytes:200000", "SharedLimit"),
    bug("a cluster does not divide the grid", "add=cuLaunchKernelEx.clusterDimX:3", "ClusterSize"),
    bug("the cluster's attribute is left out", "set=cuLaunchKernelEx.numAttrs:0", ""),
    bug("a launch's attribute has a wrong number", "set=cuLaunchKernelEx.attribute:2", "LaunchAttribute"),
    bug("a block has too few threads", "add=cuLaunchKernelEx.blockDimX:-32", ""),
    bug("a block has too many threads", "add=cuLaunchKernelEx.blockDimX:1024", "BlockSize"),
    bug("a grid is empty", "set=cuLaunchKernelEx.gridDimX:0", "GridSize"),
    bug("a launch gets no parameters", "set=cuLaunchKernelEx.params:0", "LaunchParameters"),
    bug("nothing is launched", "skip=cuLaunchKernelEx", WRONG_RESULT),
    // --- tensor maps ---
    bug("a tensor map is not encoded", "skip=cuTensorMapEncodeTiled", FAULT),
    bug("a tensor map's address is not aligned", "add=cuTensorMapEncodeTiled.address:8", "MapAddress"),
    bug("a tensor map has no dimensions", "set=cuTensorMapEncodeTiled.rank:0", "MapRank"),
    bug("a tensor map's data type is wrong", "set=cuTensorMapEncodeTiled.data_type:40", "MapElement"),
    bug("a tensor map is not swizzled", "set=cuTensorMapEncodeTiled.swizzle:0", ""),
    bug("a tensor map's rows are too long for its swizzle", "set=cuTensorMapEncodeTiled.swizzle:1", "MapSwizzle"),
];

/// The failures of a function that the caller may ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unseen {
    None,
    /// All but the first: later calls undo something when a guard is dropped, which cannot return an error.
    ButTheFirst,
    /// What the call destroys is gone in any case, or nothing depends on what it tells.
    All,
}

/// A driver function that is made to fail.
#[derive(Debug, Clone, Copy)]
pub(super) struct FailingCall {
    pub(super) name: &'static str,
    /// Which failures the caller may not notice.
    pub(super) unseen: Unseen,
}

const fn fails(name: &'static str) -> FailingCall {
    FailingCall { name, unseen: Unseen::None }
}

const fn undoes(name: &'static str) -> FailingCall {
    FailingCall { name, unseen: Unseen::ButTheFirst }
}

const fn fails_unseen(name: &'static str) -> FailingCall {
    FailingCall { name, unseen: Unseen::All }
}

pub(super) const CALLS: &[FailingCall] = &[
    fails("cuInit"),
    fails("cuDriverGetVersion"),
    fails("cuDeviceGetCount"),
    fails("cuDeviceGet"),
    fails("cuDeviceGetName"),
    fails("cuDeviceGetAttribute"),
    fails("cuDeviceTotalMem_v2"),
    fails("cuDevicePrimaryCtxRetain"),
    fails("cuCtxGetCurrent"),
    undoes("cuCtxSetCurrent"),
    fails("cuMemAlloc_v2"),
    fails_unseen("cuMemFree_v2"),
    fails("cuMemsetD8Async"),
    fails("cuMemcpyHtoDAsync_v2"),
    fails("cuMemcpyDtoHAsync_v2"),
    fails("cuMemcpyDtoDAsync_v2"),
    fails("cuStreamCreate"),
    fails_unseen("cuStreamDestroy_v2"),
    fails("cuStreamSynchronize"),
    fails("cuStreamWaitEvent"),
    fails("cuStreamIsCapturing"),
    fails("cuStreamGetCaptureInfo_v2"),
    fails("cuStreamBeginCapture_v2"),
    undoes("cuStreamEndCapture"),
    undoes("cuThreadExchangeStreamCaptureMode"),
    fails("cuEventCreate"),
    fails_unseen("cuEventDestroy_v2"),
    fails("cuEventRecord"),
    fails("cuEventQuery"),
    fails("cuEventSynchronize"),
    fails("cuEventElapsedTime"),
    fails("cuGraphInstantiateWithFlags"),
    fails("cuGraphUpload"),
    fails("cuGraphLaunch"),
    fails_unseen("cuGraphExecDestroy"),
    fails_unseen("cuGraphDestroy"),
    fails("cuModuleLoadData"),
    fails("cuModuleGetFunction"),
    fails("cuFuncLoad"),
    fails("cuFuncGetAttribute"),
    fails("cuFuncSetAttribute"),
    fails_unseen("cuFuncGetParamInfo"),
    fails("cuOccupancyMaxActiveBlocksPerMultiprocessor"),
    fails("cuOccupancyMaxActiveClusters"),
    fails("cuLaunchKernelEx"),
    fails("cuTensorMapEncodeTiled"),
];
