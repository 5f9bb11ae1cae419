//! Errors that break no rule, errors that stay, and what the driver says about them.

use std::ffi::c_char;
use std::ptr::null;

use fused_lora_driver::Rule;
use fused_lora_driver::calls::{context, error};

use crate::calls::*;
use crate::process::{self, tests};

const OUT_OF_MEMORY: u32 = 2;
const ILLEGAL_ADDRESS: u32 = 700;
const MISALIGNED: u32 = 716;

tests! {
    fn an_illegal_address_is_found_at_the_wait_and_stays("devices=2") {
        start();
        let (address, stream, function, event) = (memory(16), stream(), pointwise(), event());
        let graph = executable(|_| ());
        // One float behind the allocation.
        ok(launch_on(address + 256, 4, stream).issue(function));
        ok(record(event, stream));
        let code = synchronize(stream);
        assert_eq!(code, ILLEGAL_ADDRESS);
        assert!(text_of(code).starts_with("cuStreamSynchronize: "), "{}", text_of(code));
        assert!(text_of(code).contains("lora_pointwise_f32"), "{}", text_of(code));
        let later = [
            synchronize(stream),
            query(event),
            await_event(event),
            allocate(&mut 0, 1),
            free(address),
            fill(address, 0, 1, stream),
            create_stream(&mut 0, 0),
            destroy_stream(stream),
            destroy_event(event),
            begin(stream, RELAXED),
            replay(graph, stream),
            destroy_executable(graph),
            load_function(function),
            launch_on(address, 4, stream).issue(function),
        ];
        assert!(later.iter().all(|&code| code == ILLEGAL_ADDRESS), "{later:?}");
        assert_eq!(violations(), 0, "what a kernel does is no call");
        ok(enter(retain(1)));
        ok(fill(memory(16), 0, 16, DEFAULT));
        ok(synchronize(DEFAULT));
        ok(enter(retain(0)));
        assert_eq!(synchronize(DEFAULT), ILLEGAL_ADDRESS);
    }

    fn a_misaligned_address_is_another_error("") {
        start();
        let stream = stream();
        ok(launch_on(memory(32) + 2, 4, stream).issue(pointwise()));
        assert_eq!(synchronize(stream), MISALIGNED);
    }

    fn memory_runs_out_at_the_limit("memory=4096") {
        start();
        assert_eq!(made(|bytes| call!(context::cuDeviceTotalMem_v2(bytes, 0))), 4096);
        assert_eq!(allocate(&mut 0, 4097), OUT_OF_MEMORY);
        let (all_but_one, one) = (memory(4095), memory(1));
        assert_eq!(allocate(&mut 0, 1), OUT_OF_MEMORY);
        ok(free(all_but_one));
        assert_eq!(allocate(&mut 0, 4096), OUT_OF_MEMORY);
        ok(free(one));
        ok(allocate(&mut 0, 4096));
        assert_eq!(violations(), 0);
    }

    fn without_a_device_cu_init_fails("devices=0") {
        assert_eq!(init(), 100);
        assert_eq!(violations(), 0);
    }

    fn a_text_is_of_the_thread_s_last_error_with_this_number("") {
        start();
        assert_eq!(allocate(&mut 0, 0), 1);
        assert!(text_of(1).starts_with("cuMemAlloc_v2: SomeBytes: "), "{}", text_of(1));
        assert_eq!(in_thread(|| text_of(1)), "CUDA_ERROR_INVALID_VALUE");
        assert_eq!(text_of(700), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(destroy_stream(0x1234), 400);
        assert_eq!(text_of(1), "CUDA_ERROR_INVALID_VALUE", "another error has come since");
    }

    fn unknown_numbers_have_neither_name_nor_text("") {
        for unknown in [77, u32::MAX] {
            let mut text: *const c_char = c"before".as_ptr();
            assert_eq!(call!(error::cuGetErrorName(unknown, &mut text)), 1);
            assert_eq!(text, null());
            text = c"before".as_ptr();
            assert_eq!(call!(error::cuGetErrorString(unknown, &mut text)), 1);
            assert_eq!(text, null());
        }
        assert_eq!(call!(error::cuGetErrorName(1, std::ptr::null_mut())), 1);
        for rule in Rule::ALL {
            let mut text = null();
            assert_eq!(call!(error::cuGetErrorName(rule.code(), &mut text)), 0, "{rule:?}");
        }
    }

    fn what_the_emulator_cannot_do_is_an_error("") {
        start();
        let launch = Launch { block: [16, 8, 1], ..launch_on(memory(16), 4, stream()) };
        assert_eq!(launch.issue(pointwise()), 999);
        let map = Tensor { swizzle: 4, ..tensor() };
        assert_eq!(map.encode(), 999);
        assert_eq!(violations(), 0, "a GPU does this");
    }

    fn a_device_says_what_it_is("capability=8.6 multiprocessors=3 devices=2") {
        start();
        let attribute = |number| made(|value| call!(context::cuDeviceGetAttribute(value, number, 1)));
        assert_eq!([75, 76, 16].map(attribute), [8, 6, 3]);
        assert_eq!(made(|count| call!(context::cuDeviceGetCount(count))), 2);
        let mut name = [1; 9];
        ok(call!(context::cuDeviceGetName(name.as_mut_ptr(), 9, 0)));
        assert_eq!(name.map(|letter: c_char| letter as u8), *b"stand-in\0");
        assert_eq!(made(|current| call!(context::cuCtxGetCurrent(current))), retain(0));
        ok(enter(0));
        assert_eq!(made(|current| call!(context::cuCtxGetCurrent(current))), 0);
    }
}

/// Without `violations=return`, a broken rule ends the process, and says which.
#[test]
fn a_broken_rule_ends_the_process() {
    let test = concat!(module_path!(), "::a_broken_rule_ends_the_process");
    let ended = process::run(test, "", "violations=abort", || {
        start();
        allocate(&mut 0, 0);
    });
    let text = ended.unwrap_err();
    assert!(text.contains("stand-in driver: cuMemAlloc_v2: SomeBytes: "), "{text}");
}

#[test]
fn a_rule_that_may_be_left_to_the_driver_does_not_end_the_process() {
    let test = concat!(module_path!(), "::a_rule_that_may_be_left_to_the_driver_does_not_end_the_process");
    let passed = process::run(test, "", "violations=abort", || {
        ok(init());
        assert_eq!(call!(context::cuDeviceGet(&mut 0, 1)), Rule::Ordinal.code());
    });
    passed.unwrap();
}

#[test]
fn an_unknown_option_ends_the_process() {
    let test = concat!(module_path!(), "::an_unknown_option_ends_the_process");
    let ended = process::run(test, "", "colour=red", || assert_eq!(init(), 0));
    let text = ended.unwrap_err();
    assert!(text.contains("'colour=red' is no option"), "{text}");
}
