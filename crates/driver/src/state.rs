//! The state of the driver in this process.

use std::cell::Cell;
use std::sync::{LazyLock, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Instant;
use std::{env, sync::Arc};

use fused_lora_emulator::{Clock, Config, Machine, Schedule};

use crate::alter;
use crate::capture::{CapturedEvent, Captures};
use crate::device::{DEFAULT_STREAM, Device};
use crate::entry;
use crate::image::{Image, KernelImage};
use crate::objects::{Owned, Table, new_handle};
use crate::options::Options;
use crate::rules::{Outcome, Refusal, Rule, refused};
use crate::work::{Node, Work};

#[derive(Debug)]
pub(crate) struct Stream {
    device: usize,
    /// Whether it is ordered with the default stream.
    pub(crate) is_blocking: bool,
}

/// What an event marks.
#[derive(Debug, Clone)]
pub(crate) enum Recorded {
    Never,
    At { operation: u64, clock: Clock, time: Arc<OnceLock<Instant>> },
    InCapture(CapturedEvent),
}

#[derive(Debug)]
pub(crate) struct Event {
    device: usize,
    pub(crate) is_timed: bool,
    pub(crate) recorded: Recorded,
}

/// A captured graph, or an executable one.
#[derive(Debug)]
pub(crate) struct Graph<const EXECUTABLE: bool> {
    device: usize,
    pub(crate) nodes: Arc<[Node]>,
    /// The last upload or launch of an executable graph, and all that is ordered before the next one.
    last: Option<(u64, Clock)>,
}

#[derive(Debug)]
pub(crate) struct Module {
    device: usize,
    pub(crate) image: Image,
}

#[derive(Debug, Clone)]
pub(crate) struct Function {
    device: usize,
    pub(crate) module: usize,
    pub(crate) name: String,
    pub(crate) capability: (u32, u32),
    pub(crate) image: KernelImage,
    /// Bytes of dynamic shared memory that a launch may ask for.
    pub(crate) max_dynamic_shared: u32,
}

macro_rules! owned {
    ($($type:ty, $kind:literal;)*) => {
        $(impl Owned for $type {
            const KIND: &str = $kind;
            fn device(&self) -> usize {
                self.device
            }
        })*
    };
}

owned! {
    Stream, "stream";
    Event, "event";
    Graph<false>, "graph";
    Graph<true>, "executable graph";
    Module, "module";
    Function, "function";
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) options: Options,
    pub(crate) is_initialised: bool,
    /// For each device the handle of its primary context and, once that is retained, its state.
    contexts: Vec<(usize, Option<Device>)>,
    pub(crate) streams: Table<Stream>,
    /// Device and handle of the blocking streams that were destroyed: their work is still ordered with the default stream's.
    pub(crate) destroyed_blocking: Vec<(usize, usize)>,
    pub(crate) events: Table<Event>,
    pub(crate) graphs: Table<Graph<false>>,
    pub(crate) executables: Table<Graph<true>>,
    pub(crate) modules: Table<Module>,
    pub(crate) functions: Table<Function>,
    pub(crate) captures: Captures,
    /// All that the host has waited for.
    pub(crate) host: Clock,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The handle of the calling thread's context; 0 is none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

pub(crate) fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the options of `$FUSED_LORA_DRIVER`, once.
pub(crate) fn read_environment() {
    static READ: Once = Once::new();
    READ.call_once(|| {
        if let Err(wrong) = set_options(&env::var("FUSED_LORA_DRIVER").unwrap_or_default()) {
            eprintln!("stand-in driver: {wrong}");
            std::process::abort();
        }
    });
}

/// Changes the options that a text names, and replaces all alterations of calls.
pub(crate) fn set_options(text: &str) -> Result<(), String> {
    let alterations = lock().options.set(text)?;
    alter::replace(alterations);
    Ok(())
}

pub(crate) fn aborts() -> bool {
    lock().options.aborts
}

pub(crate) fn current() -> usize {
    CURRENT.get()
}

pub(crate) fn set_current(context: usize) {
    CURRENT.set(context);
}

/// Calls `body` with the state, after `cuInit`.
pub(crate) fn initialised<R>(body: impl FnOnce(&mut State) -> Outcome<R>) -> Outcome<R> {
    let mut state = lock();
    Rule::Initialised.expect(state.is_initialised, String::new)?;
    body(&mut state)
}

/// Calls `body` with the state and the number of the device whose context is current.
pub(crate) fn in_context<R>(body: impl FnOnce(&mut State, usize) -> Outcome<R>) -> Outcome<R> {
    initialised(|state| {
        let device = state.device_of(current())?;
        state.expect_not_lost(device)?;
        let result = body(state, device);
        entry::note_races(&mut state.device(device).races);
        let result = result?;
        state.expect_not_lost(device)?;
        Ok(result)
    })
}

impl State {
    /// The handle of a device's primary context, whose state is made at the first call.
    pub(crate) fn retain(&mut self, device: usize) -> Outcome<usize> {
        while self.contexts.len() < self.options.devices {
            self.contexts.push((new_handle(), None));
        }
        if self.contexts[device].1.is_none() {
            let Options { capability, multiprocessors, seed, .. } = self.options;
            let config = Config {
                schedule: Schedule::Random(seed),
                compute_capability: capability,
                multiprocessors,
                ..Config::default()
            };
            match Machine::new(config, &fused_lora::device::emulator_kernels()) {
                Ok(machine) => self.contexts[device].1 = Some(Device::new(device, machine, seed)),
                Err(error) => return refused(999, error.to_string()),
            }
        }
        Ok(self.contexts[device].0)
    }

    /// The number of the device whose context this is.
    pub(crate) fn device_of(&self, context: usize) -> Outcome<usize> {
        let found = self.contexts.iter().position(|(handle, device)| *handle == context && device.is_some());
        match found {
            Some(device) => Ok(device),
            None if context == 0 => Rule::CurrentContext.broken("None is."),
            None => Rule::CurrentContext.broken(format!("{context:#x} is no context.")),
        }
    }

    /// A device whose context has been retained, as every number from `in_context` is.
    pub(crate) fn device(&mut self, device: usize) -> &mut Device {
        self.contexts[device].1.as_mut().expect("the number is from in_context")
    }

    fn expect_not_lost(&mut self, device: usize) -> Outcome {
        match &self.device(device).lost {
            None => Ok(()),
            Some(lost) => {
                let (code, text, rule) = (lost.code, lost.text.clone(), lost.rule);
                Err(Refusal { code, text, rule })
            }
        }
    }

    pub(crate) fn new_stream(&mut self, device: usize, is_blocking: bool) -> usize {
        self.streams.insert(Stream { device, is_blocking })
    }

    pub(crate) fn new_event(&mut self, device: usize, is_timed: bool) -> usize {
        self.events.insert(Event { device, is_timed, recorded: Recorded::Never })
    }

    pub(crate) fn new_module(&mut self, device: usize, image: Image) -> usize {
        self.modules.insert(Module { device, image })
    }

    pub(crate) fn new_function(&mut self, device: usize, module: usize, name: &str) -> Outcome<usize> {
        /// `CUDA_ERROR_NOT_FOUND`.
        const NOT_FOUND: u32 = 500;
        /// Bytes of shared memory that a block gets without asking for more.
        const SHARED_BYTES: u32 = 48 << 10;
        let Module { image, .. } = self.modules.get(module, device)?;
        let capability = image.capability;
        let Some(image) = image.kernels.get(name).cloned() else {
            return refused(NOT_FOUND, format!("the module has no kernel '{name}'"));
        };
        let same = |function: &Function| function.module == module && function.name == name;
        if let Some(&handle) = self.functions.handles_of(same).first() {
            return Ok(handle);
        }
        let max_dynamic_shared = SHARED_BYTES.saturating_sub(image.static_shared_bytes);
        let name = name.to_owned();
        Ok(self.functions.insert(Function { device, module, name, capability, image, max_dynamic_shared }))
    }

    pub(crate) fn new_graph<const EXECUTABLE: bool>(device: usize, nodes: Arc<[Node]>) -> Graph<EXECUTABLE> {
        Graph { device, nodes, last: None }
    }

    /// Issues an executable graph's work behind its launches before, on whatever streams those were.
    pub(crate) fn issue_graph(&mut self, executable: usize, stream: usize, device: usize, work: Work) -> Outcome {
        let ordered = self.ordered_with(stream, device)?;
        let Some(work) = self.captures.add(stream, work)? else { return Ok(()) };
        let host = self.host.clone();
        let last = self.executables.get(executable, device)?.last.take();
        let on = self.device(device);
        let operation = on.issue(&ordered, last.as_ref().map(|(operation, clock)| (*operation, clock)), &host, work);
        let clock = on.clock(stream);
        self.executables.get(executable, device)?.last = Some((operation, clock));
        Ok(())
    }

    /// The streams that work on this stream comes behind: the stream itself and those that are ordered with it through the
    /// default stream.
    pub(crate) fn ordered_with(&mut self, stream: usize, device: usize) -> Outcome<Vec<usize>> {
        if stream != DEFAULT_STREAM {
            let is_blocking = self.streams.get(stream, device)?.is_blocking;
            return Ok(if is_blocking { vec![stream, DEFAULT_STREAM] } else { vec![stream] });
        }
        let mut all = self.blocking_streams(device);
        self.captures.expect_no_implicit(&all)?;
        all.insert(0, DEFAULT_STREAM);
        Ok(all)
    }

    /// The streams that are ordered with the default stream of their device.
    pub(crate) fn blocking_streams(&self, device: usize) -> Vec<usize> {
        let mut streams = self.streams.handles_of(|stream| stream.device == device && stream.is_blocking);
        streams.extend(self.destroyed_blocking.iter().filter(|(of, _)| *of == device).map(|(_, stream)| stream));
        streams
    }

    /// Issues work to a stream, or adds it to the stream's capture. Returns the operation if it was issued.
    pub(crate) fn issue(&mut self, stream: usize, device: usize, work: Work) -> Outcome<Option<u64>> {
        let ordered = self.ordered_with(stream, device)?;
        let Some(work) = self.captures.add(stream, work)? else { return Ok(None) };
        let host = self.host.clone();
        Ok(Some(self.device(device).issue(&ordered, None, &host, work)))
    }

    /// The host waits for a stream.
    pub(crate) fn await_stream(&mut self, stream: usize, device: usize) -> Outcome {
        self.ordered_with(stream, device)?;
        self.captures.expect_not_capturing(stream)?;
        if let Some(tail) = self.device(device).tail(stream) {
            self.device(device).await_operation(tail);
        }
        self.device(device).host_awaited(stream);
        let clock = self.device(device).clock(stream);
        self.host.merge(&clock);
        Ok(())
    }

    /// The graph, the executable graph or the running capture that holds an address of this allocation.
    pub(crate) fn holder_of(&self, start: u64, bytes: usize) -> Option<&'static str> {
        let range = start..start + bytes as u64;
        let holds =
            |nodes: &Arc<[Node]>| nodes.iter().any(|node| node.work.addresses().iter().any(|at| range.contains(at)));
        let in_graph = self.graphs.all().any(|graph| holds(&graph.nodes));
        let in_executable = self.executables.all().any(|graph| holds(&graph.nodes));
        let in_capture = self.captures.name_any(&range);
        let found = in_graph.then_some("A graph").or(in_executable.then_some("An executable graph"));
        found.or(in_capture.then_some("A capture"))
    }
}
