//! The two rules of every call: what comes before it.

use std::ptr::{null, null_mut};

use fused_lora_driver::Rule;
use fused_lora_driver::calls::{context, event, graph, launch, memory, module, stream, tensor_map};

use crate::calls::*;
use crate::process::tests;
use crate::readme;

/// A call of a function with zeros.
type Call = (&'static str, fn() -> u32);

macro_rules! calls {
    ($($module:ident::$name:ident($($argument:expr),*);)*) => {
        &[$((stringify!($name), || call!($module::$name($($argument),*)))),*]
    };
}

/// The calls that need no context.
const WITHOUT_CONTEXT: &[Call] = calls! {
    context::cuDeviceGetCount(null_mut());
    context::cuDeviceGet(null_mut(), 0);
    context::cuDeviceGetName(null_mut(), 0, 0);
    context::cuDeviceGetAttribute(null_mut(), 0, 0);
    context::cuDeviceTotalMem_v2(null_mut(), 0);
    context::cuDevicePrimaryCtxRetain(null_mut(), 0);
    context::cuCtxGetCurrent(null_mut());
    context::cuCtxSetCurrent(1);
    stream::cuThreadExchangeStreamCaptureMode(null_mut());
};

/// The calls in a context.
const IN_CONTEXT: &[Call] = calls! {
    memory::cuMemAlloc_v2(null_mut(), 0);
    memory::cuMemFree_v2(0);
    memory::cuMemsetD8Async(0, 0, 0, 0);
    memory::cuMemcpyHtoDAsync_v2(0, null(), 0, 0);
    memory::cuMemcpyDtoHAsync_v2(null_mut(), 0, 0, 0);
    memory::cuMemcpyDtoDAsync_v2(0, 0, 0, 0);
    stream::cuStreamCreate(null_mut(), 0);
    stream::cuStreamDestroy_v2(0);
    stream::cuStreamSynchronize(1);
    stream::cuStreamWaitEvent(0, 0, 0);
    stream::cuStreamIsCapturing(0, null_mut());
    stream::cuStreamGetCaptureInfo_v2(0, null_mut(), null_mut(), null_mut(), null_mut(), null_mut());
    stream::cuStreamBeginCapture_v2(0, 0);
    stream::cuStreamEndCapture(0, null_mut());
    event::cuEventCreate(null_mut(), 0);
    event::cuEventDestroy_v2(0);
    event::cuEventRecord(0, 0);
    event::cuEventQuery(0);
    event::cuEventSynchronize(0);
    event::cuEventElapsedTime(null_mut(), 0, 0);
    graph::cuGraphInstantiateWithFlags(null_mut(), 0, 0);
    graph::cuGraphUpload(0, 0);
    graph::cuGraphLaunch(0, 0);
    graph::cuGraphExecDestroy(0);
    graph::cuGraphDestroy(0);
    module::cuModuleLoadData(null_mut(), null());
    module::cuModuleGetFunction(null_mut(), 0, null());
    module::cuFuncLoad(0);
    module::cuFuncGetAttribute(null_mut(), 0, 0);
    module::cuFuncSetAttribute(0, 0, 0);
    module::cuFuncGetParamInfo(0, 0, null_mut(), null_mut());
    launch::cuLaunchKernelEx(null(), 0, null_mut(), null_mut());
    launch::cuOccupancyMaxActiveBlocksPerMultiprocessor(null_mut(), 0, 0, 0);
    launch::cuOccupancyMaxActiveClusters(null_mut(), 0, null());
    tensor_map::cuTensorMapEncodeTiled(
        null_mut(), 0, 0, null_mut(), null(), null(), null(), null(), 0, 0, 0, 0
    );
};

/// The calls that are allowed before `cuInit`.
const ALWAYS: [&str; 4] = ["cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"];

fn expect_rule(calls: &[Call], rule: Rule) {
    for (name, call) in calls {
        let code = call();
        assert_eq!(code, rule.code(), "{name}: {}", text_of(code));
        assert!(text_of(code).starts_with(&format!("{name}: {}: ", rule.name())), "{}", text_of(code));
    }
}

#[test]
fn no_function_is_missing_here() {
    let calls = WITHOUT_CONTEXT.iter().chain(IN_CONTEXT).map(|(name, _)| *name);
    let mut names: Vec<&str> = calls.chain(ALWAYS).collect();
    let mut functions = readme::functions();
    names.sort_unstable();
    functions.sort_unstable();
    assert_eq!(names, functions);
}

tests! {
    fn nothing_works_before_cu_init("") {
        expect_rule(WITHOUT_CONTEXT, Rule::Initialised);
        expect_rule(IN_CONTEXT, Rule::Initialised);
        ok(call!(context::cuDriverGetVersion(&mut 0)));
    }

    fn only_some_calls_work_without_a_context("") {
        ok(init());
        expect_rule(IN_CONTEXT, Rule::CurrentContext);
    }

    fn no_call_accepts_zeros_alone("") {
        start();
        for (name, call) in WITHOUT_CONTEXT.iter().chain(IN_CONTEXT) {
            let before = violations();
            let code = call();
            assert!(![0, 999].contains(&code), "{name}: {code}");
            assert_eq!(violations(), before + 1, "{name}: {}", text_of(code));
        }
    }
}
