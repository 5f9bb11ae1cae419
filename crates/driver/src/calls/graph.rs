//! Graphs: captured work that is issued again as a whole.

use std::sync::Arc;

use crate::entry::{driver_functions, put};
use crate::rules::Rule;
use crate::state::{State, in_context};
use crate::work::Work;

driver_functions! {
    /// Makes an executable graph of a captured one, which stays.
    fn cuGraphInstantiateWithFlags(executable: *mut usize, graph: usize, flags: u64) {
        in_context(|state, device| {
            Rule::NoFlags.expect(flags == 0, || format!("The flags are {flags:#x}."))?;
            let nodes = Arc::clone(&state.graphs.get(graph, device)?.nodes);
            let handle = state.executables.insert(State::new_graph(device, nodes));
            // SAFETY: the caller's promise.
            unsafe { put(executable, handle) }
        })
    }

    /// Moves an executable graph to the device before its first launch.
    fn cuGraphUpload(executable: usize, stream: usize) {
        in_context(|state, device| {
            state.executables.get(executable, device)?;
            state.issue_graph(executable, stream, device, Work::Wait)
        })
    }

    /// Issues an executable graph to a stream, behind its earlier launches on any stream.
    fn cuGraphLaunch(executable: usize, stream: usize) {
        in_context(|state, device| {
            let nodes = Arc::clone(&state.executables.get(executable, device)?.nodes);
            state.issue_graph(executable, stream, device, Work::Replay(nodes))
        })
    }

    /// Destroys an executable graph. Launches of it that were issued still run.
    fn cuGraphExecDestroy(executable: usize) {
        in_context(|state, device| {
            // What was issued uses the graph's memory, which the caller may free from now on: `cuMemFree` waits.
            state.executables.remove(executable, device).map(drop)
        })
    }

    /// Destroys a captured graph. Executable graphs made from it stay.
    fn cuGraphDestroy(graph: usize) {
        in_context(|state, device| state.graphs.remove(graph, device).map(drop))
    }
}
