//! Ownership of device memory, and when it is freed.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::Device;
use crate::error::Result;

/// The memory that graphs may still use.
///
/// A captured graph holds addresses, not buffers. So memory that existed when a graph was captured is freed only after
/// the graph, and no graph can access memory that has been allocated again.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts allocations and captures.
    clock: u64,
    /// The time of capture of each living graph.
    graphs: BTreeSet<u64>,
    /// Captures that have begun and not ended.
    capturing: usize,
    /// Memory whose buffer was dropped, but that a graph may still use.
    orphans: Vec<Orphan>,
}

#[derive(Debug)]
struct Orphan {
    born: u64,
    address: u64,
    #[expect(dead_code, reason = "dropped with it")]
    kept: Option<KeepAlive>,
}

/// An object that must live as long as some memory, because that memory points to it.
pub(crate) type KeepAlive = Arc<dyn Debug + Send + Sync>;

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn is_captured(&self, born: u64) -> bool {
        self.capturing > 0 || self.graphs.last().is_some_and(|&captured| captured > born)
    }

    /// Removes and returns the orphans that no graph can use any more.
    fn sweep(&mut self) -> Vec<Orphan> {
        let orphans = std::mem::take(&mut self.orphans);
        let (kept, free) = orphans.into_iter().partition(|orphan| self.is_captured(orphan.born));
        self.orphans = kept;
        free
    }
}

impl Ledger {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of one device.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) device: Device,
    /// 0 for an allocation of no bytes.
    pub(crate) address: u64,
    born: u64,
    /// The object that the contents point to.
    pub(crate) kept: Option<KeepAlive>,
}

impl Allocation {
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<Self> {
        let address = if bytes == 0 { 0 } else { device.backend().allocate(bytes)? };
        let born = device.ledger().state().tick();
        Ok(Self { device: device.clone(), address, born, kept: None })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.address == 0 {
            return;
        }
        let mut state = self.device.ledger().state();
        let orphan = Orphan { born: self.born, address: self.address, kept: self.kept.take() };
        if state.is_captured(self.born) {
            state.orphans.push(orphan);
        } else {
            drop(state);
            free(&self.device, [orphan]);
        }
    }
}

fn free(device: &Device, orphans: impl IntoIterator<Item = Orphan>) {
    for orphan in orphans {
        // SAFETY: the address came from `allocate`, its buffer was dropped, and no graph uses it.
        unsafe { device.backend().free(orphan.address) };
        // The object that the memory pointed to is dropped only now; it may own memory itself.
    }
}

/// A capture in progress. While this value lives, no memory is freed.
#[derive(Debug)]
pub(crate) struct Capturing {
    device: Device,
}

impl Capturing {
    pub(crate) fn new(device: &Device) -> Self {
        device.ledger().state().capturing += 1;
        Self { device: device.clone() }
    }

    /// Records that the capture has become a graph.
    pub(crate) fn into_captured(self) -> Captured {
        let mut state = self.device.ledger().state();
        let at = state.tick();
        state.graphs.insert(at);
        drop(state);
        Captured { device: self.device.clone(), at }
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        let mut state = self.device.ledger().state();
        state.capturing -= 1;
        let orphans = state.sweep();
        drop(state);
        free(&self.device, orphans);
    }
}

/// Keeps the memory alive that a graph may use.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) device: Device,
    at: u64,
}

impl Drop for Captured {
    fn drop(&mut self) {
        let mut state = self.device.ledger().state();
        state.graphs.remove(&self.at);
        let orphans = state.sweep();
        drop(state);
        free(&self.device, orphans);
    }
}
