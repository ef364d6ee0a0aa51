//! What a database ought to contain: named maps, and what a write does to them.
//!
//! The model is as dumb as it can be, because it is the judge. A keyspace that is dropped and
//! created again is another *incarnation* of its name: writes carry the incarnation they were made
//! for, and those that come too late go nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A value with its deadline, in milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The bytes.
    pub bytes: Arc<[u8]>,
    /// From when on it must not be seen.
    pub deadline: Option<u64>,
}

/// A change of one keyspace.
#[derive(Clone, Debug)]
pub enum Change {
    /// Sets a key.
    Put(Vec<u8>, Value),
    /// Appends to a key.
    Merge(Vec<u8>, Arc<[u8]>),
    /// Removes a key.
    Remove(Vec<u8>),
    /// Removes the keys from the first to before the second.
    RemoveRange(Vec<u8>, Vec<u8>),
    /// Removes every key.
    Clear,
}

/// What one log entry does.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Changes, each with the incarnation of the keyspace it is for.
    Batch(Vec<(u64, Change)>),
    /// A keyspace begins.
    Create {
        /// Its name.
        name: String,
        /// Its incarnation.
        incarnation: u64,
    },
    /// A keyspace ends, with those nested in it.
    Drop {
        /// Its name.
        name: String,
    },
}

/// A keyspace.
#[derive(Clone, Debug, Default)]
pub struct Space {
    /// Which of those that had the name.
    pub incarnation: u64,
    /// Its keys.
    pub keys: BTreeMap<Vec<u8>, Value>,
}

/// A database.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Keyspaces by name.
    pub spaces: BTreeMap<String, Space>,
}

impl State {
    /// Carries out an entry.
    pub fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Create { name, incarnation } => {
                let space = Space { incarnation: *incarnation, keys: BTreeMap::new() };
                self.spaces.insert(name.clone(), space);
            }
            Effect::Drop { name } => {
                let nested = format!("{name}/");
                self.spaces.retain(|other, _| other != name && !other.starts_with(&nested));
            }
            Effect::Batch(changes) => {
                for (incarnation, change) in changes {
                    let mut spaces = self.spaces.values_mut();
                    if let Some(space) = spaces.find(|s| s.incarnation == *incarnation) {
                        space.apply(change);
                    }
                }
            }
        }
    }
}

impl Space {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(key, value) => {
                self.keys.insert(key.clone(), value.clone());
            }
            Change::Merge(key, operand) => {
                let empty = || Value { bytes: Arc::default(), deadline: None };
                let value = self.keys.entry(key.clone()).or_insert_with(empty);
                value.bytes = [&value.bytes[..], &operand[..]].concat().into();
            }
            Change::Remove(key) => {
                self.keys.remove(key);
            }
            Change::RemoveRange(start, end) => {
                self.keys.retain(|key, _| key < start || key >= end);
            }
            Change::Clear => self.keys.clear(),
        }
    }
}

/// The wall clock while something was read, in milliseconds since the Unix epoch. A value whose
/// deadline falls inside may be seen or not.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Before the first read.
    pub from: u64,
    /// After the last one.
    pub to: u64,
}

impl Window {
    /// Returns whether a value must be seen (`Some(true)`), must not (`Some(false)`) or may.
    pub fn shows(self, value: &Value) -> Option<bool> {
        match value.deadline {
            Some(deadline) if deadline <= self.from => Some(false),
            Some(deadline) if deadline <= self.to => None,
            _ => Some(true),
        }
    }
}

/// A key with its value, as the engine returned them.
pub type Row = (Vec<u8>, Value);

/// Compares the rows of a scan with the keys they should be; `expected` runs in the scan's order.
/// Returns the first differences as text.
pub fn compare<'a>(
    expected: impl Iterator<Item = (&'a Vec<u8>, &'a Value)>,
    rows: &[Row],
    window: Window,
    backward: bool,
) -> Option<String> {
    let mut rows = rows.iter().peekable();
    let passed = |row: &[u8], key: &[u8]| if backward { row > key } else { row < key };
    for (key, value) in expected {
        if let Some((extra, found)) = rows.next_if(|(row, _)| passed(row, key)) {
            return Some(format!("{} = {} should not be there", show(extra), tell(found)));
        }
        match (rows.next_if(|(row, _)| row == key), window.shows(value)) {
            (Some((_, found)), _) if found != value => {
                return Some(format!("{} is {}, not {}", show(key), tell(found), tell(value)));
            }
            (Some(_), Some(false)) => {
                return Some(format!("{} = {} has expired and is there", show(key), tell(value)));
            }
            (None, Some(true)) => {
                return Some(format!("{} = {} is missing", show(key), tell(value)));
            }
            _ => {}
        }
    }
    let (extra, found) = rows.next()?;
    Some(format!("{} = {} should not be there", show(extra), tell(found)))
}

/// Describes a key.
pub fn show(key: &[u8]) -> String {
    format!("'{}'", key.escape_ascii())
}

/// Describes a value: values begin with the number of the write that made them.
pub fn tell(value: &Value) -> String {
    let tag: String = value.bytes.iter().take(12).map(|b| char::from(*b)).collect();
    let deadline = value.deadline.map(|d| format!(" until {d}")).unwrap_or_default();
    format!("\"{}\" ({} bytes{deadline})", tag.escape_default(), value.bytes.len())
}
