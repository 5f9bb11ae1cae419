//! Rules of all calls: when they are allowed, and the handles and pointers that they take.

use std::ptr::null_mut;

use fused_lora_driver::Rule;
use fused_lora_driver::calls::{context, module, stream as capture_calls};

use super::{CASE, Case};
use crate::calls::*;
use crate::cubin::{self, Kernel, POINTWISE};

/// Makes an object on the second device, and returns to the first.
fn elsewhere(make: impl FnOnce() -> usize) -> usize {
    ok(enter(retain(1)));
    let object = make();
    ok(enter(retain(0)));
    object
}

fn destroyed_stream() -> usize {
    let stream = stream();
    ok(destroy_stream(stream));
    stream
}

fn destroyed_event() -> usize {
    let event = event();
    ok(destroy_event(event));
    event
}

fn destroyed_executable() -> usize {
    let executable = executable(|_| ());
    ok(destroy_executable(executable));
    executable
}

fn destroyed_graph() -> usize {
    let graph = captured(|_| ());
    ok(destroy_graph(graph));
    graph
}

fn image() -> Vec<u64> {
    cubin::cubin((9, 0), &[POINTWISE])
}

fn module() -> usize {
    made(|module| load(module, image().as_ptr()))
}

pub(super) const CASES: &[Case] = &[
    Case {
        rule: Rule::Initialised,
        call: "cuDeviceGetCount",
        name: "count before cuInit",
        before: || (),
        broken: || call!(context::cuDeviceGetCount(&mut 0)),
        kept: || call!(context::cuDriverGetVersion(&mut 0)),
        ..CASE
    },
    Case {
        rule: Rule::NoInitFlags,
        call: "cuInit",
        name: "flags of cuInit",
        before: || (),
        broken: || call!(context::cuInit(1)),
        kept: || call!(context::cuInit(0)),
        ..CASE
    },
    Case {
        rule: Rule::ResultPointer,
        call: "cuDriverGetVersion",
        name: "version without a place",
        broken: || call!(context::cuDriverGetVersion(null_mut())),
        kept: || call!(context::cuDriverGetVersion(&mut 0)),
        ..CASE
    },
    Case {
        rule: Rule::ResultPointer,
        call: "cuDeviceGetCount",
        name: "count at an odd address",
        broken: || call!(context::cuDeviceGetCount([0i32; 2].as_mut_ptr().wrapping_byte_add(1))),
        kept: || call!(context::cuDeviceGetCount(&mut 0)),
        ..CASE
    },
    Case {
        rule: Rule::ResultPointer,
        call: "cuDeviceGetName",
        name: "name without a byte",
        broken: || call!(context::cuDeviceGetName([0; 8].as_mut_ptr(), 0, 0)),
        kept: || call!(context::cuDeviceGetName([0; 8].as_mut_ptr(), 8, 0)),
        ..CASE
    },
    Case {
        rule: Rule::ResultPointer,
        call: "cuCtxGetCurrent",
        name: "current context without a place",
        broken: || call!(context::cuCtxGetCurrent(null_mut())),
        kept: || call!(context::cuCtxGetCurrent(&mut 0)),
        ..CASE
    },
    Case {
        rule: Rule::Ordinal,
        call: "cuDeviceGet",
        name: "second device of one",
        broken: || call!(context::cuDeviceGet(&mut 0, 1)),
        kept: || call!(context::cuDeviceGet(&mut 0, 0)),
        ..CASE
    },
    Case {
        rule: Rule::Ordinal,
        call: "cuDevicePrimaryCtxRetain",
        name: "context of device -1",
        broken: || call!(context::cuDevicePrimaryCtxRetain(&mut 0, -1)),
        kept: || call!(context::cuDevicePrimaryCtxRetain(&mut 0, 0)),
        ..CASE
    },
    Case {
        rule: Rule::Ordinal,
        call: "cuDeviceTotalMem_v2",
        name: "memory of the second device of one",
        broken: || call!(context::cuDeviceTotalMem_v2(&mut 0, 1)),
        kept: || call!(context::cuDeviceTotalMem_v2(&mut 0, 0)),
        ..CASE
    },
    Case {
        rule: Rule::KnownAttribute,
        call: "cuDeviceGetAttribute",
        name: "attribute 999 of a device",
        broken: || call!(context::cuDeviceGetAttribute(&mut 0, 999, 0)),
        kept: || call!(context::cuDeviceGetAttribute(&mut 0, 75, 0)),
        ..CASE
    },
    Case {
        rule: Rule::KnownAttribute,
        call: "cuFuncGetAttribute",
        name: "attribute 999 of a function",
        broken: || attribute(&mut 0, 999, pointwise()),
        kept: || attribute(&mut 0, 4, pointwise()),
        ..CASE
    },
    Case {
        rule: Rule::KnownAttribute,
        call: "cuFuncSetAttribute",
        name: "registers are set",
        broken: || set_attribute(pointwise(), 4, 32),
        kept: || set_attribute(pointwise(), 8, 32),
        ..CASE
    },
    Case {
        rule: Rule::KnownAttribute,
        call: "cuStreamGetCaptureInfo_v2",
        name: "captured graph is asked for",
        broken: || {
            let mut graph: usize = 0;
            let graph = (&raw mut graph).cast();
            call!(capture_calls::cuStreamGetCaptureInfo_v2(stream(), &mut 0, &mut 0, graph, null_mut(), null_mut()))
        },
        kept: || capture_info(stream(), &mut 0, null_mut()),
        ..CASE
    },
    Case {
        rule: Rule::CurrentContext,
        call: "cuMemAlloc_v2",
        name: "allocation without a context",
        broken: || {
            ok(enter(0));
            allocate(&mut 0, 1)
        },
        kept: || allocate(&mut 0, 1),
        ..CASE
    },
    Case {
        rule: Rule::CurrentContext,
        call: "cuCtxSetCurrent",
        name: "context that is none",
        broken: || enter(0x1000),
        kept: || enter(retain(0)),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuStreamDestroy_v2",
        name: "stream destroyed twice",
        broken: || destroy_stream(destroyed_stream()),
        kept: || destroy_stream(stream()),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuStreamSynchronize",
        name: "wait for a destroyed stream",
        broken: || synchronize(destroyed_stream()),
        kept: || synchronize(stream()),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuStreamBeginCapture_v2",
        name: "capture of a destroyed stream",
        broken: || begin(destroyed_stream(), RELAXED),
        kept: || destroy_graph(captured(|_| ())),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuStreamIsCapturing",
        name: "status of an event",
        broken: || is_capturing(event(), &mut 0),
        kept: || is_capturing(stream(), &mut 0),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuEventDestroy_v2",
        name: "event destroyed twice",
        broken: || destroy_event(destroyed_event()),
        kept: || destroy_event(event()),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuEventRecord",
        name: "destroyed event is recorded",
        broken: || record(destroyed_event(), stream()),
        kept: || record(event(), stream()),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuGraphInstantiateWithFlags",
        name: "destroyed graph is instantiated",
        broken: || instantiate(&mut 0, destroyed_graph(), 0),
        kept: || instantiate(&mut 0, captured(|_| ()), 0),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuGraphDestroy",
        name: "graph destroyed twice",
        broken: || destroy_graph(destroyed_graph()),
        kept: || destroy_graph(captured(|_| ())),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuGraphUpload",
        name: "graph that is not executable is uploaded",
        broken: || upload_graph(captured(|_| ()), stream()),
        kept: || upload_graph(executable(|_| ()), stream()),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuGraphLaunch",
        name: "destroyed executable graph is launched",
        broken: || replay(destroyed_executable(), stream()),
        kept: || replay(executable(|_| ()), stream()),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuGraphExecDestroy",
        name: "executable graph destroyed twice",
        broken: || destroy_executable(destroyed_executable()),
        kept: || destroy_executable(executable(|_| ())),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuModuleGetFunction",
        name: "kernel of a stream",
        broken: || find(&mut 0, stream(), POINTWISE.name),
        kept: || find(&mut 0, module(), POINTWISE.name),
        ..CASE
    },
    Case {
        rule: Rule::LiveHandle,
        call: "cuFuncGetParamInfo",
        name: "parameter of a module",
        broken: || parameter(module(), 0, &mut 0, &mut 0),
        kept: || parameter(pointwise(), 0, &mut 0, null_mut()),
        ..CASE
    },
    Case {
        rule: Rule::ResultPointer,
        call: "cuModuleGetFunction",
        name: "kernel without a name",
        broken: || call!(module::cuModuleGetFunction(&mut 0, module(), std::ptr::null())),
        kept: || find(&mut 0, module(), POINTWISE.name),
        ..CASE
    },
    Case {
        rule: Rule::OwnContext,
        call: "cuStreamSynchronize",
        name: "wait for another device's stream",
        options: "devices=2",
        broken: || synchronize(elsewhere(stream)),
        kept: || synchronize(stream()),
        ..CASE
    },
    Case {
        rule: Rule::OwnContext,
        call: "cuStreamWaitEvent",
        name: "wait for another device's event",
        options: "devices=2",
        broken: || wait(stream(), elsewhere(|| recorded(stream()))),
        kept: || wait(stream(), recorded(stream())),
        ..CASE
    },
    Case {
        rule: Rule::OwnContext,
        call: "cuStreamEndCapture",
        name: "another device's capture is ended",
        options: "devices=2",
        broken: || {
            let other = elsewhere(|| {
                let stream = stream();
                ok(begin(stream, RELAXED));
                stream
            });
            end(other, &mut 0)
        },
        kept: || destroy_graph(captured(|_| ())),
        ..CASE
    },
    Case {
        rule: Rule::OwnContext,
        call: "cuLaunchKernelEx",
        name: "launch of another device's function",
        options: "devices=2",
        broken: || launch_on(memory(16), 4, stream()).issue(elsewhere(pointwise)),
        kept: || launch_on(memory(16), 4, stream()).issue(pointwise()),
        ..CASE
    },
    Case {
        rule: Rule::Image,
        call: "cuModuleLoadData",
        name: "image at an odd address",
        broken: || load(&mut 0, image().as_ptr().wrapping_byte_add(4)),
        kept: || load(&mut 0, image().as_ptr()),
        ..CASE
    },
    Case {
        rule: Rule::SameSources,
        call: "cuFuncLoad",
        name: "kernel of other parameters",
        broken: || load_function(function_of(&Kernel { parameters: &[(0, 40)], ..POINTWISE })),
        kept: || load_function(pointwise()),
        ..CASE
    },
];
