//! The order of operations on several streams, as vector clocks.

use std::collections::BTreeMap;

/// For each stream, by a number of the caller's, how many of its operations are ordered before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clock(BTreeMap<usize, usize>);

impl Clock {
    /// Adds all that is ordered before `other`.
    pub fn merge(&mut self, other: &Self) {
        for (&stream, &count) in &other.0 {
            let own = self.0.entry(stream).or_default();
            *own = count.max(*own);
        }
    }

    /// Counts one more operation of a stream.
    pub fn tick(&mut self, stream: usize) {
        *self.0.entry(stream).or_default() += 1;
    }

    /// How many operations of a stream are ordered before.
    pub fn count(&self, stream: usize) -> usize {
        self.0.get(&stream).copied().unwrap_or_default()
    }
}

/// An operation's place in the order of operations.
#[derive(Debug, Clone)]
pub struct Place {
    stream: usize,
    count: usize,
    /// All operations before it, and itself.
    clock: Clock,
}

impl Place {
    /// The place of the operation that a stream's clock has counted last.
    pub fn new(stream: usize, clock: &Clock) -> Self {
        Self { stream, count: clock.count(stream), clock: clock.clone() }
    }

    pub(crate) fn stream(&self) -> usize {
        self.stream
    }

    fn is_before(&self, other: &Self) -> bool {
        other.clock.count(self.stream) >= self.count
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.stream, self.count) == (other.stream, other.count)
    }
}

/// The place of work on a device: that of the operation that was issued and, if this was a graph's replay, the place in
/// the graph's capture.
#[derive(Debug, Clone)]
pub struct WorkPlace {
    /// The operation that was issued to a stream.
    pub issued: Place,
    /// The place within the captured graph.
    pub captured: Option<Place>,
}

impl WorkPlace {
    /// Whether this work has ended before the other begins.
    pub fn is_before(&self, other: &Self) -> bool {
        match (&self.captured, &other.captured) {
            (Some(this), Some(other_captured)) if self.issued.is_same(&other.issued) => this.is_before(other_captured),
            _ => self.issued.is_before(&other.issued),
        }
    }
}
