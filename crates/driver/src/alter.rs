//! Calls that arrive otherwise than they were made: skipped, with another argument, or failing.
//!
//! Tests plant bugs in this way: what a caller with the bug would send arrives here, and must break a rule or a result.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// What is printed about a call that is altered.
const ALTERED: &str = "stand-in driver: altered:";

thread_local! {
    /// The number of the thread's current call among all calls of its function.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// One change of one function's calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alteration {
    call: String,
    /// The only call that is changed, counted from 1. `None`: all of them.
    only: Option<u64>,
    change: Change,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Skip,
    Fail(u32),
    Set(String, u64),
    Add(String, i64),
    Earlier(String, usize),
}

/// What becomes of a call.
pub(crate) enum Arrival {
    Runs,
    Skipped,
    Fails(u32),
}

impl Alteration {
    /// Reads `skip=CALL@N`, `fail=CALL@N:CODE`, `set=CALL@N.ARGUMENT:VALUE`, `add=…`, `earlier=…`.
    pub(crate) fn parse(name: &str, text: &str) -> Option<Self> {
        let (target, value) = match text.rsplit_once(':') {
            Some((target, value)) => (target, Some(value)),
            None => (text, None),
        };
        let (call, argument) = match target.split_once('.') {
            Some((call, argument)) => (call, Some(argument.to_owned())),
            None => (target, None),
        };
        let (call, only) = match call.split_once('@') {
            Some((call, number)) => (call, Some(number.parse().ok()?)),
            None => (call, None),
        };
        let change = match (name, argument, value) {
            ("skip", None, None) => Change::Skip,
            ("fail", None, Some(code)) => Change::Fail(code.parse().ok()?),
            ("set", Some(argument), Some(value)) => Change::Set(argument, value.parse().ok()?),
            ("add", Some(argument), Some(value)) => Change::Add(argument, value.parse().ok()?),
            ("earlier", Some(argument), Some(value)) => Change::Earlier(argument, value.parse().ok()?),
            _ => return None,
        };
        Some(Self { call: call.to_owned(), only, change })
    }
}

#[derive(Debug, Default)]
struct Alterations {
    all: Vec<Alteration>,
    /// How often each function was called, and the different values of the arguments that are replaced by earlier ones.
    calls: HashMap<&'static str, u64>,
    values: HashMap<(&'static str, String), Vec<u64>>,
}

fn alterations() -> MutexGuard<'static, Alterations> {
    static ALTERATIONS: LazyLock<Mutex<Alterations>> = LazyLock::new(Mutex::default);
    // Nothing that can panic runs under the lock.
    ALTERATIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces all alterations, and counts calls from here on.
pub(crate) fn replace(all: Vec<Alteration>) {
    *alterations() = Alterations { all, ..Alterations::default() };
}

/// Counts a call and changes its arguments.
pub(crate) fn arrive(call: &'static str, names: &[&str], words: &mut [u64]) -> Arrival {
    let mut alterations = alterations();
    if alterations.all.is_empty() {
        return Arrival::Runs;
    }
    let count = alterations.calls.entry(call).or_default();
    *count += 1;
    let count = *count;
    COUNT.set(count);
    let all = alterations.all.clone();
    for Alteration { only, change, .. } in all.iter().filter(|alteration| alteration.call == call) {
        let hits = only.is_none_or(|only| only == count);
        if hits {
            // For tests, which must know whether there was such a call.
            eprintln!("{ALTERED} {call}, call {count}");
        }
        match change {
            Change::Skip if hits => return Arrival::Skipped,
            Change::Fail(code) if hits => return Arrival::Fails(*code),
            Change::Set(argument, value) if hits => {
                each(names, words, argument, |word| *word = *value);
            }
            Change::Add(argument, value) if hits => {
                each(names, words, argument, |word| *word = word.wrapping_add_signed(*value));
            }
            Change::Earlier(argument, back) => each(names, words, argument, |word| {
                let values = alterations.values.entry((call, argument.clone())).or_default();
                if values.last() != Some(word) {
                    values.push(*word);
                }
                if let Some(earlier) = values.len().checked_sub(1 + back).filter(|_| hits) {
                    *word = values[earlier];
                }
            }),
            _ => {}
        }
    }
    Arrival::Runs
}

/// Changes a value that a call passes in a struct, by its name there. It does not count the call.
pub(crate) fn field(call: &'static str, name: &str, value: u64) -> u64 {
    let alterations = alterations();
    let count = COUNT.get();
    let mut value = value;
    for alteration in alterations.all.iter().filter(|a| a.call == call && a.only.is_none_or(|only| only == count)) {
        match &alteration.change {
            Change::Set(argument, to) if argument == name => value = *to,
            Change::Add(argument, by) if argument == name => value = value.wrapping_add_signed(*by),
            _ => {}
        }
    }
    value
}

fn each(names: &[&str], words: &mut [u64], argument: &str, mut change: impl FnMut(&mut u64)) {
    names.iter().zip(words).filter(|(name, _)| **name == argument).for_each(|(_, word)| change(word));
}

/// An argument of a driver call, as a number.
pub(crate) trait Word {
    fn to_word(self) -> u64;
    fn from_word(word: u64) -> Self;
}

macro_rules! words {
    ($($type:ty),*) => {
        $(impl Word for $type {
            fn to_word(self) -> u64 {
                self as u64
            }
            fn from_word(word: u64) -> Self {
                word as $type
            }
        })*
    };
}

words!(u8, i32, u32, u64, usize);

impl<T> Word for *mut T {
    fn to_word(self) -> u64 {
        self.expose_provenance() as u64
    }
    fn from_word(word: u64) -> Self {
        std::ptr::with_exposed_provenance_mut(word as usize)
    }
}

impl<T> Word for *const T {
    fn to_word(self) -> u64 {
        self.expose_provenance() as u64
    }
    fn from_word(word: u64) -> Self {
        std::ptr::with_exposed_provenance(word as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alteration_has_its_own_form() {
        let parsed = |name, text| Alteration::parse(name, text).map(|found| (found.call, found.only, found.change));
        let found = |only, change| Some(("cuInit".to_owned(), only, change));
        assert_eq!(parsed("skip", "cuInit@3"), found(Some(3), Change::Skip));
        assert_eq!(parsed("fail", "cuInit:100"), found(None, Change::Fail(100)));
        assert_eq!(parsed("set", "cuInit@1.flags:7"), found(Some(1), Change::Set("flags".into(), 7)));
        assert_eq!(parsed("add", "cuInit.flags:-7"), found(None, Change::Add("flags".into(), -7)));
        assert_eq!(parsed("earlier", "cuInit.flags:2"), found(None, Change::Earlier("flags".into(), 2)));
        for (name, text) in [
            ("skip", "cuInit:1"),
            ("skip", "cuInit@first"),
            ("fail", "cuInit"),
            ("fail", "cuInit.flags:1"),
            ("set", "cuInit:1"),
            ("set", "cuInit.flags:-1"),
            ("earlier", "cuInit.flags:-1"),
            ("repeat", "cuInit"),
        ] {
            assert_eq!(parsed(name, text), None, "{name}={text}");
        }
    }

    #[test]
    fn arguments_survive_as_words() {
        assert_eq!(i32::from_word((-5i32).to_word()), -5);
        assert_eq!(u32::from_word(u32::MAX.to_word()), u32::MAX);
        let value = 7u64;
        assert_eq!(<*const u64>::from_word((&raw const value).to_word()), &raw const value);
    }
}
