//! Handles: what a caller holds, and whether it still may.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::rules::{Outcome, Rule};

/// A new handle. Handles are never used again, and nothing lies at their addresses.
pub(crate) fn new_handle() -> usize {
    /// Below all addresses that a process has on Linux, and no small number.
    const FIRST: usize = 0x0d01_0000;
    static LAST: AtomicUsize = AtomicUsize::new(FIRST);
    LAST.fetch_add(64, Ordering::Relaxed)
}

/// Something that belongs to one device's context.
pub(crate) trait Owned {
    const KIND: &str;
    fn device(&self) -> usize;
}

/// All objects of one kind.
#[derive(Debug)]
pub(crate) struct Table<T> {
    live: HashMap<usize, T>,
    dead: HashSet<usize>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { live: HashMap::new(), dead: HashSet::new() }
    }
}

impl<T: Owned> Table<T> {
    pub(crate) fn insert(&mut self, object: T) -> usize {
        let handle = new_handle();
        self.live.insert(handle, object);
        handle
    }

    /// An object of the current context.
    pub(crate) fn get(&mut self, handle: usize, device: usize) -> Outcome<&mut T> {
        let dead = self.dead.contains(&handle);
        match self.live.get_mut(&handle) {
            Some(object) if object.device() == device => Ok(object),
            Some(object) => Rule::OwnContext.broken(format!(
                "The {} {handle:#x} belongs to device {}, and the context of device {device} is current.",
                T::KIND,
                object.device()
            )),
            None if dead => Rule::LiveHandle.broken(format!("The {} {handle:#x} has been destroyed.", T::KIND)),
            None => Rule::LiveHandle.broken(format!("{handle:#x} is no {}.", T::KIND)),
        }
    }

    /// Removes an object of the current context.
    pub(crate) fn remove(&mut self, handle: usize, device: usize) -> Outcome<T> {
        self.get(handle, device)?;
        self.dead.insert(handle);
        self.live.remove(&handle).map_or_else(|| Rule::LiveHandle.broken(""), Ok)
    }

    /// The handles of the objects of which something holds, smallest first.
    pub(crate) fn handles_of(&self, holds: impl Fn(&T) -> bool) -> Vec<usize> {
        let mut handles: Vec<_> = self.live.iter().filter(|(_, object)| holds(object)).map(|(at, _)| *at).collect();
        handles.sort_unstable();
        handles
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.live.values()
    }
}
