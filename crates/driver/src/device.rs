//! A device: its memory, its streams' work, and the order in which that work runs.
//!
//! Work runs only while the caller waits: whenever something is waited for, a random one of the operations that may run next
//! does so, on any stream, until the one that is waited for has run. What nobody waits for may run late or early.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use fused_lora_emulator::{
    self as emulator, Accessed, AccessedRange, Clock, Hazards, Machine, Place, Strictness, WorkPlace,
};

use crate::rules::{Outcome, Rule};
use crate::work::{Launch, Node, Work};

/// `CUDA_ERROR_ILLEGAL_ADDRESS`.
const ILLEGAL_ADDRESS: u32 = 700;
/// `CUDA_ERROR_LAUNCH_TIMEOUT`.
const TIMEOUT: u32 = 702;
/// `CUDA_ERROR_MISALIGNED_ADDRESS`.
const MISALIGNED: u32 = 716;
/// `CUDA_ERROR_LAUNCH_FAILED`.
const LAUNCH_FAILED: u32 = 719;
/// The default stream.
pub(crate) const DEFAULT_STREAM: usize = 0;

/// An operation that has been issued and has not run.
#[derive(Debug)]
struct Pending {
    stream: usize,
    after: Vec<u64>,
    work: Work,
    place: Place,
}

/// A small generator of random numbers (xorshift64).
#[derive(Debug, Clone, Copy)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

/// An error after which every call in the context returns the same.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    pub(crate) code: u32,
    pub(crate) text: String,
    pub(crate) rule: Option<Rule>,
}

#[derive(Debug)]
pub(crate) struct Device {
    /// The device's number.
    number: usize,
    pub(crate) machine: Machine,
    /// Bytes of each live allocation, by its address.
    pub(crate) allocations: BTreeMap<u64, usize>,
    pub(crate) lost: Option<Lost>,
    /// Messages about work that was not ordered as it must be, until a call tells them.
    pub(crate) races: Vec<String>,
    hazards: Hazards,
    pending: BTreeMap<u64, Pending>,
    last: u64,
    /// The latest operation of each stream.
    tails: HashMap<usize, u64>,
    clocks: HashMap<usize, Clock>,
    random: Random,
}

impl Device {
    pub(crate) fn new(number: usize, machine: Machine, seed: u64) -> Self {
        Self {
            number,
            machine,
            allocations: BTreeMap::new(),
            lost: None,
            races: vec![],
            hazards: Hazards::new(Strictness::Writes),
            pending: BTreeMap::new(),
            last: 0,
            tails: HashMap::new(),
            clocks: HashMap::new(),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        }
    }

    /// The allocation that holds an address: its start and its bytes.
    pub(crate) fn allocation_of(&self, address: u64) -> Option<(u64, usize)> {
        let (&start, &bytes) = self.allocations.range(..=address).next_back()?;
        (address < start + bytes as u64).then_some((start, bytes))
    }

    /// The range as an access; none if it is not allocated.
    fn range(&self, from: u64, bytes: usize) -> Vec<AccessedRange> {
        let found = self.allocation_of(from);
        found.map(|(allocation, _)| AccessedRange { allocation, from, to: from + bytes as u64 }).into_iter().collect()
    }

    /// Expects a range to lie in one live allocation.
    pub(crate) fn expect_memory(&self, address: u64, bytes: usize) -> Outcome {
        let held = self.allocation_of(address).map(|(start, all)| start + all as u64);
        Rule::LiveMemory.expect(held.is_some_and(|end| bytes as u64 <= end - address), || {
            format!("{bytes} bytes at {address:#x} do not.")
        })
    }

    /// Issues work behind all that was issued to these streams, the first of which is its own, and behind an operation.
    /// `host` is what the host has waited for.
    pub(crate) fn issue(&mut self, streams: &[usize], behind: Option<(u64, &Clock)>, host: &Clock, work: Work) -> u64 {
        let stream = streams[0];
        let mut clock = host.clone();
        for other in streams {
            if let Some(of_other) = self.clocks.get(other) {
                clock.merge(of_other);
            }
        }
        if let Some((_, of_event)) = behind {
            clock.merge(of_event);
        }
        let name = self.name_in_clocks(stream);
        clock.tick(name);
        let tails = streams.iter().filter_map(|other| self.tails.get(other).copied());
        let after = tails.chain(behind.map(|(operation, _)| operation)).filter(|id| self.pending.contains_key(id));
        let after: Vec<u64> = after.collect();
        if let (Work::Mark(time), true) = (&work, after.is_empty()) {
            time.get_or_init(Instant::now);
        }
        self.last += 1;
        self.pending.insert(self.last, Pending { stream, after, work, place: Place::new(name, &clock) });
        self.tails.insert(stream, self.last);
        self.clocks.insert(stream, clock);
        self.last
    }

    /// What clocks call a stream. The default streams of all devices have one handle, and the host's clock is of all devices.
    fn name_in_clocks(&self, stream: usize) -> usize {
        if stream == DEFAULT_STREAM { usize::MAX - self.number } else { stream }
    }

    /// The latest operation of a stream.
    pub(crate) fn tail(&self, stream: usize) -> Option<u64> {
        self.tails.get(&stream).copied()
    }

    /// All that is ordered before the stream's next operation.
    pub(crate) fn clock(&self, stream: usize) -> Clock {
        self.clocks.get(&stream).cloned().unwrap_or_default()
    }

    /// All that any stream has done.
    pub(crate) fn clock_of_all(&self) -> Clock {
        let mut all = Clock::default();
        self.clocks.values().for_each(|clock| all.merge(clock));
        all
    }

    pub(crate) fn has_run(&self, operation: u64) -> bool {
        !self.pending.contains_key(&operation)
    }

    /// Runs until this operation has run.
    pub(crate) fn await_operation(&mut self, operation: u64) {
        while !self.has_run(operation) {
            self.step();
        }
    }

    /// The host has waited for a stream.
    pub(crate) fn host_awaited(&mut self, stream: usize) {
        self.hazards.waits(stream);
    }

    /// Runs all that has been issued.
    pub(crate) fn await_all(&mut self) {
        while !self.pending.is_empty() {
            self.step();
        }
    }

    /// Runs one of the operations that may run next.
    pub(crate) fn step(&mut self) {
        let ready = |(&id, operation): (&u64, &Pending)| {
            operation.after.iter().all(|before| !self.pending.contains_key(before)).then_some(id)
        };
        let ready: Vec<u64> = self.pending.iter().filter_map(ready).collect();
        let Some(&id) = ready.get(self.random.below(ready.len())) else { return };
        let Some(operation) = self.pending.remove(&id) else { return };
        let place = WorkPlace { issued: operation.place.clone(), captured: None };
        if let Err(lost) = self.perform(operation.stream, &operation.work, &place) {
            self.lost = Some(lost);
            self.pending.clear();
        }
    }

    fn perform(&mut self, stream: usize, work: &Work, place: &WorkPlace) -> Result<(), Lost> {
        match work {
            Work::Wait => Ok(()),
            Work::Mark(time) => {
                time.get_or_init(Instant::now);
                Ok(())
            }
            &Work::Fill { to, byte, bytes } => {
                let accessed = Accessed { written: self.range(to, bytes), ..Accessed::default() };
                self.note(stream, work, place, &accessed);
                self.check(work, to, bytes)?;
                // SAFETY: checked to be allocated; the device is locked, so nothing else runs.
                unsafe { self.machine.fill(to, byte, bytes) };
                Ok(())
            }
            &Work::Copy { from, to, bytes } => {
                let (written, read) = (self.range(to, bytes), self.range(from, bytes));
                let accessed = Accessed { written, read, ..Accessed::default() };
                self.note(stream, work, place, &accessed);
                self.check(work, from, bytes)?;
                self.check(work, to, bytes)?;
                // SAFETY: as above.
                unsafe { self.machine.copy(from, to, bytes) };
                Ok(())
            }
            &Work::Upload { from, to, bytes } => {
                let accessed = Accessed { written: self.range(to, bytes), ..Accessed::default() };
                self.note(stream, work, place, &accessed);
                self.check(work, to, bytes)?;
                let from: *const u8 = std::ptr::with_exposed_provenance(from);
                // SAFETY: as above; the caller of the driver keeps the host's memory until it has waited for the copy.
                unsafe { self.machine.write(to, std::slice::from_raw_parts(from, bytes)) };
                Ok(())
            }
            &Work::Download { from, to, bytes } => {
                let accessed = Accessed { read: self.range(from, bytes), ..Accessed::default() };
                self.note(stream, work, place, &accessed);
                self.check(work, from, bytes)?;
                let to: *mut u8 = std::ptr::with_exposed_provenance_mut(to);
                // SAFETY: as above.
                unsafe { self.machine.read(from, std::slice::from_raw_parts_mut(to, bytes)) };
                Ok(())
            }
            Work::Launch(launch) => self.launch(stream, work, launch, place),
            Work::Replay(nodes) => self.replay(stream, nodes, &place.issued),
        }
    }

    /// Memory that work uses must still be allocated when it runs. `cuMemFree` waits for all work, so only a graph or a
    /// capture can name memory that is gone.
    fn check(&self, work: &Work, address: u64, bytes: usize) -> Result<(), Lost> {
        self.expect_memory(address, bytes).map_err(|refusal| Lost {
            code: ILLEGAL_ADDRESS,
            text: format!("{}: {}", work.name(), refusal.text),
            rule: refusal.rule,
        })
    }

    fn note(&mut self, stream: usize, work: &Work, place: &WorkPlace, accessed: &Accessed) {
        let dependent = matches!(work, Work::Launch(launch) if launch.dependent);
        let work = emulator::Work { name: work.name(), stream, place, dependent, accessed };
        if let Err(report) = self.hazards.note(&work) {
            self.races.push(format!("{}: {report}.", work.name));
        }
    }

    fn launch(&mut self, stream: usize, work: &Work, launch: &Launch, place: &WorkPlace) -> Result<(), Lost> {
        let Launch { kernel, grid, block, shared_bytes, cluster, dependent, parameters } = launch;
        let request = emulator::Launch {
            kernel,
            grid: *grid,
            block: *block,
            shared_bytes: *shared_bytes,
            cluster: *cluster,
            params: parameters,
        };
        let lost = |code, text| Lost { code, text, rule: None };
        // SAFETY: the caller of the driver promises that the parameters are the kernel's; their size was checked.
        let (counters, accessed) = unsafe { self.machine.launch_and_list(&request) }.map_err(|error| match error {
            emulator::Error::Fault { fault, .. } => lost(code_of(fault), error.to_string()),
            other => lost(LAUNCH_FAILED, other.to_string()),
        })?;
        let threads = grid.iter().map(|&ctas| u64::from(ctas)).product::<u64>() * u64::from(*block);
        if *dependent && counters.dependency_waits != threads {
            let waits = counters.dependency_waits;
            return Err(lost(
                LAUNCH_FAILED,
                format!("{kernel}: launched dependent, and {waits} of {threads} threads wait"),
            ));
        }
        self.note(stream, work, place, &accessed);
        Ok(())
    }

    fn replay(&mut self, stream: usize, nodes: &[Node], issued: &Place) -> Result<(), Lost> {
        // The launches of a graph may overlap with each other, not with the work before the graph.
        self.hazards.waits(stream);
        let mut left: Vec<usize> = (0..nodes.len()).collect();
        while !left.is_empty() {
            let ready = |&(_, node): &(usize, &usize)| !nodes[*node].after.iter().any(|before| left.contains(before));
            let ready: Vec<usize> = left.iter().enumerate().filter(ready).map(|(at, _)| at).collect();
            let node = left.remove(ready[self.random.below(ready.len())]);
            let place = WorkPlace { issued: issued.clone(), captured: Some(nodes[node].place.clone()) };
            self.perform(stream, &nodes[node].work, &place)?;
        }
        Ok(())
    }

    /// Makes an allocation.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Option<u64> {
        let address = self.machine.allocate(bytes).ok()?;
        self.allocations.insert(address, bytes);
        Some(address)
    }

    /// Frees an allocation, which must be one, after all work has run.
    pub(crate) fn free(&mut self, address: u64) {
        self.await_all();
        self.hazards.forget(address);
        self.allocations.remove(&address);
        // SAFETY: no work is left that could use it.
        unsafe { self.machine.free(address) };
    }
}

/// The driver's number of the error that a GPU would most likely report for a fault of the emulator.
fn code_of(fault: emulator::Fault) -> u32 {
    match fault {
        emulator::Fault::OutOfBounds => ILLEGAL_ADDRESS,
        emulator::Fault::Misaligned => MISALIGNED,
        emulator::Fault::Deadlock | emulator::Fault::Livelock => TIMEOUT,
        _ => LAUNCH_FAILED,
    }
}
