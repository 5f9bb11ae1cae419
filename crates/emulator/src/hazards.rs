//! What a GPU could run at the same time or in another order, although it must not.
//!
//! The emulator runs one launch after the other, so it never shows such a race. It is found from the order that streams,
//! events and waits impose, and from the memory that each launch accessed: of every allocation the part from the first
//! such byte to the last.

use std::collections::{BTreeMap, HashMap};

use crate::clock::{Place, WorkPlace};
use crate::machine::{Accessed, AccessedRange};

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

/// How strictly unordered accesses of the same memory are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Only atomic read-modify-writes must be ordered: kernels that draw from one counter at the same time may never end.
    Updates,
    /// A write must be ordered with every other access.
    Writes,
}

/// An access that was noted.
#[derive(Debug)]
struct Noted {
    name: String,
    place: WorkPlace,
    range: AccessedRange,
}

/// The stream of work and, if a graph was replayed, the stream of its capture. Work of one branch runs in the
/// order in which it was issued, so that only its latest accesses matter.
type Branch = (usize, Option<usize>);

/// The latest accesses of one kind of one allocation by each branch.
#[derive(Debug, Default)]
struct Latest(BTreeMap<Branch, Vec<Noted>>);

/// Accesses of one branch that are remembered. Those before them are forgotten: a few parts of an allocation are written
/// in turn, and then again.
const REMEMBERED: usize = 16;

impl Latest {
    fn unordered(&self, range: &AccessedRange, place: &WorkPlace) -> Option<&Noted> {
        let overlaps = |noted: &&Noted| noted.range.from < range.to && range.from < noted.range.to;
        self.0.values().flatten().filter(overlaps).find(|noted| !noted.place.is_before(place))
    }

    fn note(&mut self, branch: Branch, noted: Noted) {
        let all = self.0.entry(branch).or_default();
        let inside = |other: &Noted| noted.range.from <= other.range.from && other.range.to <= noted.range.to;
        all.retain(|other| !inside(other));
        if all.len() == REMEMBERED {
            all.remove(0);
        }
        all.push(noted);
    }
}

/// The latest accesses of one allocation.
#[derive(Debug, Default)]
struct Allocation {
    updates: Latest,
    writes: Latest,
    reads: Latest,
}

/// Remembers what work on one device accessed, and finds work that is not ordered as it must be.
#[derive(Debug)]
pub struct Hazards {
    strictness: Strictness,
    allocations: HashMap<u64, Allocation>,
    /// For each branch, what its work has written since the last operation that waited for all work before it, with the
    /// writer's name. Dependent launches do not wait, so all of these may overlap.
    chains: HashMap<Branch, HashMap<u64, String>>,
}

impl Hazards {
    /// Nothing has been accessed yet.
    pub fn new(strictness: Strictness) -> Self {
        Self { strictness, allocations: HashMap::new(), chains: HashMap::new() }
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
        self.allocations.remove(&allocation);
        self.chains.values_mut().for_each(|chain| drop(chain.remove(&allocation)));
    }

    /// Later work of the stream comes behind all work before this call, even if it is dependent: the host has waited for the
    /// stream, or a graph begins.
    pub fn waits(&mut self, stream: usize) {
        self.chains.retain(|branch, _| branch.0 != stream);
    }

    fn note_accesses(&mut self, work: &Work<'_>) -> Result<(), String> {
        let &Work { name, stream, place, accessed, .. } = work;
        let mut refused = Ok(());
        let mut judge = |others: &Latest, range: &AccessedRange, what: &str| {
            if let Some(Noted { name: other, .. }) = others.unordered(range, place) {
                let at = range.allocation;
                refused =
                    Err(format!("{what} and are not ordered: {other}, then {name}, both on the allocation at {at:#x}"));
            }
        };
        let strict =
            |list: &'_ Vec<AccessedRange>| if self.strictness == Strictness::Writes { list.clone() } else { vec![] };
        let (written, read) = (strict(&accessed.written), strict(&accessed.read));
        for range in &accessed.updated {
            let allocation = self.allocations.entry(range.allocation).or_default();
            judge(&allocation.updates, range, "launches of two streams share memory that they update atomically");
        }
        for range in &written {
            let allocation = self.allocations.entry(range.allocation).or_default();
            judge(&allocation.writes, range, "two operations write the same memory");
            judge(&allocation.reads, range, "one operation reads what another one writes");
        }
        for range in &read {
            let allocation = self.allocations.entry(range.allocation).or_default();
            judge(&allocation.writes, range, "one operation reads what another one writes");
        }
        let branch = (stream, place.captured.as_ref().map(Place::stream));
        let mut note = |ranges: &[AccessedRange], of: fn(&mut Allocation) -> &mut Latest| {
            for &range in ranges {
                let noted = Noted { name: name.to_owned(), place: place.clone(), range };
                of(self.allocations.entry(range.allocation).or_default()).note(branch, noted);
            }
        };
        note(&accessed.updated, |allocation| &mut allocation.updates);
        note(&written, |allocation| &mut allocation.writes);
        note(&read, |allocation| &mut allocation.reads);
        refused
    }

    /// Work that is launched dependent must not read through the non-coherent path what its chain wrote: such a read may
    /// see what was there before.
    fn note_chain(&mut self, work: &Work<'_>) -> Result<(), String> {
        let branch = (work.stream, work.place.captured.as_ref().map(Place::stream));
        let chain = self.chains.entry(branch).or_default();
        if !work.dependent {
            chain.clear();
        }
        let read = &work.accessed.read_as_constant;
        let stale = read.iter().find_map(|range| Some((range.allocation, chain.get(&range.allocation)?)));
        let refused = stale.map_or(Ok(()), |(address, writer)| {
            Err(format!(
                "it is launched dependent and reads the allocation at {address:#x} through the non-coherent path, which \
                 {writer} wrote before, since the last launch that waited for all work before it"
            ))
        });
        chain.extend(work.accessed.written.iter().map(|range| (range.allocation, work.name.to_owned())));
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn range(from: u64, to: u64) -> AccessedRange {
        AccessedRange { allocation: 0x100, from, to }
    }

    /// The clock of a stream behind another clock, after one more operation.
    fn place(clock: &mut Clock, stream: usize) -> WorkPlace {
        clock.tick(stream);
        WorkPlace { issued: Place::new(stream, clock), captured: None }
    }

    fn write(hazards: &mut Hazards, stream: usize, place: &WorkPlace, from: u64, to: u64) -> Result<(), String> {
        let accessed = Accessed { written: vec![range(from, to)], ..Accessed::default() };
        hazards.note(&Work { name: "writer", stream, place, dependent: false, accessed: &accessed })
    }

    fn read(hazards: &mut Hazards, stream: usize, place: &WorkPlace, from: u64, to: u64) -> Result<(), String> {
        let accessed = Accessed { read: vec![range(from, to)], ..Accessed::default() };
        hazards.note(&Work { name: "reader", stream, place, dependent: false, accessed: &accessed })
    }

    #[test]
    fn unordered_work_may_share_what_nobody_writes_and_write_what_nobody_shares() {
        let mut hazards = Hazards::new(Strictness::Writes);
        let (mut one, mut two) = (Clock::default(), Clock::default());
        assert_eq!(read(&mut hazards, 1, &place(&mut one, 1), 0x100, 0x200), Ok(()));
        assert_eq!(read(&mut hazards, 2, &place(&mut two, 2), 0x100, 0x200), Ok(()));
        assert_eq!(write(&mut hazards, 1, &place(&mut one, 1), 0x200, 0x300), Ok(()));
        assert_eq!(write(&mut hazards, 2, &place(&mut two, 2), 0x300, 0x400), Ok(()));
        let unordered = write(&mut hazards, 2, &place(&mut two, 2), 0x2ff, 0x301).unwrap_err();
        assert!(unordered.contains("write the same memory"), "{unordered}");
        let unordered = write(&mut hazards, 1, &place(&mut one, 1), 0x1ff, 0x200).unwrap_err();
        assert!(unordered.contains("reads what another"), "{unordered}");
    }

    #[test]
    fn a_wait_orders() {
        let mut hazards = Hazards::new(Strictness::Writes);
        let (mut one, mut two) = (Clock::default(), Clock::default());
        assert_eq!(write(&mut hazards, 1, &place(&mut one, 1), 0x100, 0x200), Ok(()));
        assert_eq!(write(&mut hazards, 1, &place(&mut one, 1), 0x180, 0x280), Ok(()));
        two.merge(&one);
        assert_eq!(read(&mut hazards, 2, &place(&mut two, 2), 0x100, 0x280), Ok(()));
        assert!(write(&mut hazards, 1, &place(&mut one, 1), 0x100, 0x101).is_err(), "before the read of the other");
    }
}
