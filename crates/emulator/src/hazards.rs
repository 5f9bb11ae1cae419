//! What a GPU could run at the same time or in another order, although it must not.
//!
//! The emulator runs one launch after the other, so it never shows such a race. It is found from the order that streams,
//! events and waits impose, and from the allocations that each launch accessed.

use std::collections::{BTreeMap, HashMap};

use crate::machine::Accessed;
use crate::order::WorkPlace;

/// Work that has run: a launch, a copy or a fill.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The kernel's name, or what else it was.
    pub name: &'a str,
    /// The stream that it was issued to, by a number of the caller's.
    pub stream: usize,
    /// Its place in the order of operations.
    pub place: &'a WorkPlace,
    /// Whether it may start before the work ahead in its stream has ended (programmatic dependent launch).
    pub dependent: bool,
    /// What it accessed.
    pub accessed: &'a Accessed,
}

#[derive(Debug)]
struct Noted {
    name: String,
    place: WorkPlace,
}

/// The latest accesses of one allocation, by stream: an earlier one of the same stream is ordered before them.
#[derive(Debug, Default)]
struct Latest {
    updates: BTreeMap<usize, Noted>,
    writes: BTreeMap<usize, Noted>,
    reads: BTreeMap<usize, Noted>,
}

/// How strictly unordered accesses of one allocation are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Only atomic read-modify-writes must be ordered: kernels that draw from one counter at the same time may never end.
    Updates,
    /// A write must be ordered with every other access.
    Writes,
}

/// Remembers what work on one device accessed, and finds work that is not ordered as it must be.
#[derive(Debug)]
pub struct Hazards {
    strictness: Strictness,
    latest: HashMap<u64, Latest>,
    /// For each stream, the allocations that its work has written since the last operation that waited for all work before
    /// it, with the writer's name. Dependent launches do not wait, so all of these may overlap.
    chains: HashMap<usize, HashMap<u64, String>>,
}

impl Hazards {
    /// Nothing has been accessed yet.
    pub fn new(strictness: Strictness) -> Self {
        Self { strictness, latest: HashMap::new(), chains: HashMap::new() }
    }

    /// Notes work in the order in which it ran.
    ///
    /// # Errors
    /// Why the work must not run as it was issued.
    pub fn note(&mut self, work: &Work<'_>) -> Result<(), String> {
        let unordered = self.note_accesses(work);
        let stale = self.note_chain(work);
        unordered.and(stale)
    }

    /// The allocation was freed: its address may be that of another one later.
    pub fn forget(&mut self, allocation: u64) {
        self.latest.remove(&allocation);
        self.chains.values_mut().for_each(|chain| drop(chain.remove(&allocation)));
    }

    /// The stream got an operation that waits for all work before it and reads nothing through the non-coherent path.
    pub fn waits(&mut self, stream: usize) {
        self.chains.remove(&stream);
    }

    fn note_accesses(&mut self, work: &Work<'_>) -> Result<(), String> {
        let Work { name, stream, place, accessed, .. } = *work;
        let mut refused = Ok(());
        let mut judge = |others: &BTreeMap<usize, Noted>, address: u64, how: &str| {
            for other in others.values().filter(|other| !other.place.is_before(place)) {
                let first = &other.name;
                refused = Err(format!("{how} and are not ordered: {first}, then {name}, both on the allocation at {address:#x}"));
            }
        };
        let strict = self.strictness == Strictness::Writes;
        for &address in &accessed.updated {
            judge(
                &self.latest.entry(address).or_default().updates,
                address,
                "launches of two streams share memory that they update atomically",
            );
        }
        for &address in accessed.written.iter().filter(|_| strict) {
            let latest = self.latest.entry(address).or_default();
            judge(&latest.writes, address, "two operations write the same memory");
            judge(&latest.reads, address, "one operation reads what another one writes");
        }
        for &address in accessed.read.iter().filter(|_| strict) {
            judge(&self.latest.entry(address).or_default().writes, address, "one operation reads what another one writes");
        }
        let mut note = |addresses: &[u64], of: fn(&mut Latest) -> &mut BTreeMap<usize, Noted>| {
            for &address in addresses {
                let noted = Noted { name: name.to_owned(), place: place.clone() };
                of(self.latest.entry(address).or_default()).insert(stream, noted);
            }
        };
        note(&accessed.updated, |latest| &mut latest.updates);
        if strict {
            note(&accessed.written, |latest| &mut latest.writes);
            note(&accessed.read, |latest| &mut latest.reads);
        }
        refused
    }

    /// Work that is launched dependent must not read through the non-coherent path what its chain wrote: such a read may
    /// see what was there before.
    fn note_chain(&mut self, work: &Work<'_>) -> Result<(), String> {
        let chain = self.chains.entry(work.stream).or_default();
        if !work.dependent {
            chain.clear();
        }
        let read = &work.accessed.read_as_constant;
        let stale = read.iter().find_map(|address| Some((address, chain.get(address)?)));
        let refused = stale.map_or(Ok(()), |(address, writer)| {
            Err(format!(
                "it is launched dependent and reads the allocation at {address:#x} through the non-coherent path, which \
                 {writer} wrote before, since the last launch that waited for all work before it"
            ))
        });
        chain.extend(work.accessed.written.iter().map(|&address| (address, work.name.to_owned())));
        refused
    }
}
