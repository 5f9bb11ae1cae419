//! Calls that arrive otherwise than they were made.

use std::ffi::CString;

use fused_lora_driver::Rule;
use fused_lora_driver::calls::{context, error};

use crate::calls::*;
use crate::process::tests;

/// The bytes of device memory.
fn bytes_at<const N: usize>(address: u64) -> [u8; N] {
    let (stream, mut bytes) = (stream(), [0; N]);
    ok(download(&mut bytes, address, stream));
    ok(synchronize(stream));
    bytes
}

fn filled(address: u64, byte: u8, bytes: usize) {
    ok(fill(address, byte, bytes, DEFAULT));
    ok(synchronize(DEFAULT));
}

tests! {
    fn a_call_fails("fail=cuMemAlloc_v2@2:2 fail=cuCtxGetCurrent:46") {
        start();
        let mut address = 0;
        ok(allocate(&mut address, 1));
        let before = address;
        assert_eq!(allocate(&mut address, 1), 2);
        assert_eq!(address, before, "a call that fails writes nothing");
        assert!(text_of(2).starts_with("cuMemAlloc_v2: "), "{}", text_of(2));
        ok(allocate(&mut address, 1));
        for _ in 0..2 {
            assert_eq!(call!(context::cuCtxGetCurrent(&mut 0)), 46);
        }
        assert_eq!(violations(), 0);
    }

    fn a_call_is_skipped("skip=cuMemsetD8Async@2") {
        start();
        let address = memory(1);
        filled(address, 1, 1);
        filled(address, 2, 1);
        assert_eq!(bytes_at(address), [1]);
        filled(address, 3, 1);
        assert_eq!(bytes_at(address), [3]);
    }

    fn an_argument_is_set_or_added_to("set=cuMemsetD8Async@1.byte:5 add=cuMemsetD8Async@2.address:-1") {
        start();
        let address = memory(3);
        filled(address, 1, 3);
        assert_eq!(bytes_at(address), [5; 3]);
        filled(address + 2, 2, 1);
        assert_eq!(bytes_at(address), [5, 2, 5]);
        filled(address, 1, 3);
        assert_eq!(bytes_at(address), [1; 3]);
    }

    fn an_argument_is_an_earlier_one("earlier=cuMemcpyDtoDAsync_v2@4.from:2") {
        start();
        let (from, to) = (memory(3), memory(4));
        for at in 0..3 {
            filled(from + at, at as u8, 1);
        }
        // The third copy repeats the second one's value, which counts once.
        for (at, source) in [0, 1, 1, 2].into_iter().enumerate() {
            ok(copy(to + at as u64, from + source, 1, DEFAULT));
        }
        ok(synchronize(DEFAULT));
        assert_eq!(bytes_at(to), [0, 1, 1, 0]);
    }

    fn a_launch_s_configuration_is_altered("set=cuLaunchKernelEx@1.gridDimX:0 add=cuLaunchKernelEx@2.sharedMemBytes:65536") {
        start();
        let (launch, function) = (launch_on(memory(16), 4, stream()), pointwise());
        assert_eq!(launch.issue(function), 1);
        assert!(text_of(1).contains(Rule::GridSize.name()), "{}", text_of(1));
        assert_eq!(launch.issue(function), 1);
        assert!(text_of(1).contains(Rule::SharedLimit.name()), "{}", text_of(1));
        ok(launch.issue(function));
    }

    fn alterations_are_replaced_and_options_stay("memory=1000 fail=cuMemAlloc_v2:2") {
        start();
        assert_eq!(allocate(&mut 0, 1), 2);
        set("");
        ok(allocate(&mut 0, 1));
        assert_eq!(allocate(&mut 0, 1000), 2, "the memory is still 1000 bytes");
        set("skip=cuMemAlloc_v2@2");
        let mut address = 0;
        ok(allocate(&mut address, 1));
        assert_ne!(address, 0, "calls are counted from the change on");
        let mut address = 0;
        ok(allocate(&mut address, 1));
        assert_eq!(address, 0);
        let wrong = CString::new("colour=red").unwrap();
        assert_eq!(call!(error::fused_lora_driver_set(wrong.as_ptr())), 1);
    }
}
