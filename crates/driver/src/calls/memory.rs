//! Device memory.

use std::ffi::c_void;

use crate::entry::{driver_functions, put};
use crate::rules::{Rule, refused};
use crate::state::in_context;
use crate::work::Work;

driver_functions! {
    /// Allocates memory at a multiple of 256 bytes. It is filled with NaN.
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        /// `CUDA_ERROR_OUT_OF_MEMORY`.
        const OUT_OF_MEMORY: u32 = 2;
        in_context(|state, device| {
            state.captures.expect_safe()?;
            Rule::SomeBytes.expect(bytes > 0, || "An allocation of nothing.".into())?;
            let room = state.options.memory;
            let held: usize = state.device(device).allocations.values().sum();
            let found = if bytes <= room.saturating_sub(held) { state.device(device).allocate(bytes) } else { None };
            let Some(found) = found else { return refused(OUT_OF_MEMORY, format!("{bytes} bytes, {held} are used")) };
            // SAFETY: the caller's promise.
            unsafe { put(address, found) }
        })
    }

    /// Waits for all work of the device, and frees memory.
    fn cuMemFree_v2(address: u64) {
        in_context(|state, device| {
            state.captures.expect_safe()?;
            let found = state.device(device).allocations.get(&address).copied();
            let Some(bytes) = found else { return Rule::WholeAllocation.broken(format!("{address:#x} is none.")) };
            let holder = state.holder_of(address, bytes);
            Rule::KeptForGraph.expect(holder.is_none(), || {
                format!("{} holds an address in the {bytes} bytes at {address:#x}.", holder.unwrap_or_default())
            })?;
            state.device(device).free(address);
            let all = state.device(device).clock_of_all();
            state.host.merge(&all);
            Ok(())
        })
    }

    /// Fills memory with a byte.
    fn cuMemsetD8Async(address: u64, byte: u8, count: usize, stream: usize) {
        in_context(|state, device| {
            Rule::SomeBytes.expect(count > 0, || "A fill of nothing.".into())?;
            state.device(device).expect_memory(address, count)?;
            state.issue(stream, device, Work::Fill { to: address, byte, bytes: count }).map(drop)
        })
    }

    /// Copies from the host, whose memory is read when the copy runs.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) {
        in_context(|state, device| {
            Rule::SomeBytes.expect(bytes > 0 && !from.is_null(), || format!("{bytes} bytes from {from:p}."))?;
            state.device(device).expect_memory(to, bytes)?;
            let from = from.expose_provenance();
            state.issue(stream, device, Work::Upload { from, to, bytes }).map(drop)
        })
    }

    /// Copies to the host, whose memory is written when the copy runs.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) {
        in_context(|state, device| {
            Rule::SomeBytes.expect(bytes > 0 && !to.is_null(), || format!("{bytes} bytes to {to:p}."))?;
            state.device(device).expect_memory(from, bytes)?;
            let to = to.expose_provenance();
            state.issue(stream, device, Work::Download { from, to, bytes }).map(drop)
        })
    }

    /// Copies within the device.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) {
        in_context(|state, device| {
            Rule::SomeBytes.expect(bytes > 0, || "A copy of nothing.".into())?;
            state.device(device).expect_memory(to, bytes)?;
            state.device(device).expect_memory(from, bytes)?;
            let apart = to.abs_diff(from) >= bytes as u64;
            Rule::DisjointCopy.expect(apart, || format!("{bytes} bytes from {from:#x} to {to:#x}."))?;
            state.issue(stream, device, Work::Copy { from, to, bytes }).map(drop)
        })
    }
}
