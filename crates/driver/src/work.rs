//! Work that is issued to streams: what it does, and the memory that it names.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fused_lora_emulator::Place;

/// One launch, with its own copy of the parameters.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) kernel: String,
    pub(crate) grid: [u32; 3],
    pub(crate) block: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) cluster: u32,
    /// Whether it may start before the work ahead has ended.
    pub(crate) dependent: bool,
    pub(crate) parameters: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// Does nothing: waits for an event.
    Wait,
    /// Notes the time at which it was reached: when it was issued, unless it had to wait.
    Mark(Arc<OnceLock<Instant>>),
    Fill {
        to: u64,
        byte: u8,
        bytes: usize,
    },
    Copy {
        from: u64,
        to: u64,
        bytes: usize,
    },
    /// From an address of the host, which is read when the work runs.
    Upload {
        from: usize,
        to: u64,
        bytes: usize,
    },
    /// To an address of the host, which is written when the work runs.
    Download {
        from: u64,
        to: usize,
        bytes: usize,
    },
    Launch(Arc<Launch>),
    Replay(Arc<[Node]>),
}

/// Work in a graph.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) work: Work,
    /// The nodes before it.
    pub(crate) after: Vec<usize>,
    /// Its place in the order of the capture.
    pub(crate) place: Place,
}

impl Work {
    /// The work's name in messages.
    pub(crate) fn name(&self) -> &str {
        match self {
            Work::Wait => "a wait for an event",
            Work::Mark(_) => "an event",
            Work::Fill { .. } => "cuMemsetD8Async",
            Work::Copy { .. } => "cuMemcpyDtoDAsync_v2",
            Work::Upload { .. } => "cuMemcpyHtoDAsync_v2",
            Work::Download { .. } => "cuMemcpyDtoHAsync_v2",
            Work::Launch(launch) => &launch.kernel,
            Work::Replay(_) => "a graph",
        }
    }

    /// Addresses that may be device memory: those of copies and fills, and every aligned word of a launch's parameters.
    pub(crate) fn addresses(&self) -> Vec<u64> {
        match self {
            Work::Wait | Work::Mark(_) => vec![],
            Work::Fill { to, .. } | Work::Upload { to, .. } => vec![*to],
            Work::Copy { from, to, .. } => vec![*from, *to],
            Work::Download { from, .. } => vec![*from],
            Work::Launch(launch) => {
                let words = launch.parameters.chunks_exact(8);
                words.filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?))).collect()
            }
            Work::Replay(nodes) => nodes.iter().flat_map(|node| node.work.addresses()).collect(),
        }
    }
}
