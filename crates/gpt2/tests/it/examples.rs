//! The example on a device, run as it is. It checks its own result.

use crate::common::device::left_out;

#[path = "../../examples/6_gpt2.rs"]
mod gpt2;

#[test]
fn gpt2_on_a_device() {
    if !left_out() {
        gpt2::main().unwrap();
    }
}
