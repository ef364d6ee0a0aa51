//! The edge: values that the leader has decided on and that are not applied yet.
//!
//! A command is evaluated over the newest value of its keys, wherever that is:
//!
//! ```text
//!   applied state (tree)  |  entries in flight, by number      |  the open entry
//!   ... a=1 b=7           |  41: a=2        42: a=3  c=9       |  a=4
//!                         |  proposed, with a timestamp        |  gets its timestamp when closed
//! ```
//!
//! Whoever uses a value of the edge is answered when the entry that carries *his own* effect is
//! applied: if that entry commits, so did every one before it (a log is a prefix), and if the
//! leader is lost, all of them are unknown together. So 800 increments of one key in flight cost
//! one sync, not 800.
//!
//! A key written many times while an entry is open is one version in it: the entry is one
//! transaction with one timestamp, and nobody can read between its parts.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use atoll_encoding::hash::HashMap;
use atoll_mvcc::request::Span;
use atoll_mvcc::{Timestamp, Value};
use smallvec::SmallVec;

/// A key that several places hold.
pub type SharedKey = Rc<[u8]>;

/// Number of an entry in the order of closing, counted from the start of a leadership.
pub type EntrySeq = u64;

/// What of a key's stored value matters to counts and to the expiry index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Presence {
    /// A value is stored, expired or not.
    pub exists: bool,
    /// Its deadline, in milliseconds of the Unix epoch.
    pub deadline_ms: Option<u64>,
}

impl Presence {
    /// Looks at a stored value.
    pub fn of(value: Option<&[u8]>) -> Presence {
        // A value that does not decode is there all the same; who reads it will say so.
        let deadline_ms = value.and_then(|v| Value::decode(v).ok()).and_then(|v| v.deadline_ms);
        Presence { exists: value.is_some(), deadline_ms }
    }
}

/// A value of the edge.
#[derive(Clone, Debug)]
pub struct EdgeValue {
    /// The stored bytes, `None` for a removed key.
    pub value: Option<Rc<[u8]>>,
    /// The entry that carries it.
    pub entry: EntrySeq,
    /// Its timestamp, once its entry is closed.
    pub stamp: Option<Timestamp>,
    /// It is a resolved intent: its transaction may have been acknowledged already, so a reader
    /// may not look past it.
    pub resolved: bool,
}

/// What the open entry holds of a key.
struct OpenValue {
    value: Option<Rc<[u8]>>,
    /// What was there before the entry.
    before: Presence,
}

#[derive(Default)]
struct KeyEdge {
    open: Option<OpenValue>,
    /// Oldest first; one, mostly.
    pending: SmallVec<[EdgeValue; 1]>,
}

/// A key's change in a closed entry.
pub struct Change {
    /// Which key.
    pub key: SharedKey,
    /// The stored bytes, `None` for a removed key.
    pub value: Option<Rc<[u8]>>,
    /// What was there before the entry.
    pub before: Presence,
}

/// All values that are not applied.
#[derive(Default)]
pub struct Edge {
    keys: HashMap<SharedKey, KeyEdge>,
    /// Keys of the open entry, in the order of their first write.
    open: Vec<SharedKey>,
    /// Entries in flight, oldest first, with their keys.
    in_flight: VecDeque<(EntrySeq, Vec<SharedKey>)>,
}

impl Edge {
    /// Returns whether nothing is open and nothing in flight.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the newest value of a key, `None` if the applied state has it.
    pub fn newest(&self, key: &[u8], open_entry: EntrySeq) -> Option<EdgeValue> {
        let edge = self.keys.get(key)?;
        if let Some(open) = &edge.open {
            let value = open.value.clone();
            return Some(EdgeValue { value, entry: open_entry, stamp: None, resolved: false });
        }
        edge.pending.last().cloned()
    }

    /// Returns the entry that a reader of `key` at `at` has to wait for: the newest in flight whose
    /// value he would see.
    pub fn awaited_at(&self, key: &[u8], at: Timestamp) -> Option<EntrySeq> {
        let pending = &self.keys.get(key)?.pending;
        pending.iter().rev().find(|v| v.stamp.is_some_and(|stamp| stamp <= at)).map(|v| v.entry)
    }

    /// Like [`Edge::awaited_at`] for all keys of a range.
    pub fn awaited_in(&self, span: &Span, at: Timestamp) -> Option<EntrySeq> {
        let within = self.keys.iter().filter(|(key, _)| span.contains(key));
        within.filter_map(|(key, _)| self.awaited_at(key, at)).max()
    }

    /// Returns the newest entry with a value of `key`, the open one included.
    pub fn entry_of(&self, key: &[u8], open_entry: EntrySeq) -> Option<EntrySeq> {
        self.newest(key, open_entry).map(|v| v.entry)
    }

    /// Returns the least key of a range that has a value here, if there is one.
    pub fn touches(&self, span: &Span) -> Option<&SharedKey> {
        self.keys.keys().filter(|key| span.contains(key)).min()
    }

    /// Returns the entry of a resolved intent of this key in flight.
    pub fn resolved(&self, key: &[u8]) -> Option<EntrySeq> {
        let pending = &self.keys.get(key)?.pending;
        pending.iter().rev().find(|v| v.resolved).map(|v| v.entry)
    }

    /// Writes a value in the open entry; `before` is what the key held until now and counts only
    /// the first time.
    pub fn put(&mut self, key: impl Into<SharedKey>, value: Option<Rc<[u8]>>, before: Presence) {
        let key = key.into();
        let edge = self.keys.entry(key.clone()).or_default();
        match &mut edge.open {
            Some(open) => open.value = value,
            open => {
                *open = Some(OpenValue { value, before });
                self.open.push(key);
            }
        }
    }

    /// Notes a version whose timestamp is known, in the entry `entry` that is open.
    pub fn put_resolved(
        &mut self,
        key: impl Into<SharedKey>,
        value: Option<Rc<[u8]>>,
        stamp: Timestamp,
        entry: EntrySeq,
    ) {
        let key = key.into();
        let edge = self.keys.entry(key.clone()).or_default();
        edge.pending.push(EdgeValue { value, entry, stamp: Some(stamp), resolved: true });
        self.note(entry, vec![key]);
    }

    /// Notes keys that an entry in flight holds.
    fn note(&mut self, entry: EntrySeq, mut keys: Vec<SharedKey>) {
        match self.in_flight.back_mut() {
            Some((last, noted)) if *last == entry => noted.append(&mut keys),
            _ => self.in_flight.push_back((entry, keys)),
        }
    }

    /// Returns whether the open entry writes a key.
    pub fn is_open(&self, key: &[u8]) -> bool {
        self.keys.get(key).is_some_and(|edge| edge.open.is_some())
    }

    /// Returns how many keys the open entry writes.
    pub fn open_len(&self) -> usize {
        self.open.len()
    }

    /// Returns the keys of the open entry.
    pub fn open_keys(&self) -> &[SharedKey] {
        &self.open
    }

    /// Closes the open entry under `stamp`; returns its changes in the order of their first write.
    pub fn close(&mut self, entry: EntrySeq, stamp: Timestamp) -> Vec<Change> {
        let keys = std::mem::take(&mut self.open);
        let mut changes = Vec::with_capacity(keys.len());
        for key in &keys {
            let Some(edge) = self.keys.get_mut(key) else { continue };
            let Some(open) = edge.open.take() else { continue };
            let value = open.value.clone();
            edge.pending.push(EdgeValue { value, entry, stamp: Some(stamp), resolved: false });
            changes.push(Change { key: key.clone(), value: open.value, before: open.before });
        }
        if !keys.is_empty() {
            self.note(entry, keys);
        }
        changes
    }

    /// Forgets what entries up to `entry` hold: the applied state has it.
    pub fn applied(&mut self, entry: EntrySeq) {
        while self.in_flight.front().is_some_and(|(oldest, _)| *oldest <= entry) {
            let Some((oldest, keys)) = self.in_flight.pop_front() else { return };
            for key in keys {
                let Entry::Occupied(mut edge) = self.keys.entry(key) else { continue };
                edge.get_mut().pending.retain(|v| v.entry > oldest);
                if edge.get().pending.is_empty() && edge.get().open.is_none() {
                    edge.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_mvcc::Epoch;

    fn ts(n: u64) -> Timestamp {
        Timestamp::commit_at(Epoch(n))
    }

    fn some(text: &str) -> Option<Rc<[u8]>> {
        Some(Rc::from(text.as_bytes()))
    }

    #[test]
    fn the_newest_value_is_the_open_one_then_the_last_in_flight() {
        let mut edge = Edge::default();
        edge.put(b"a".to_vec(), some("1"), Presence::default());
        edge.put(b"a".to_vec(), some("2"), Presence { exists: true, deadline_ms: None });
        let changes = edge.close(1, ts(1));
        assert_eq!(changes.len(), 1, "two writes of one entry are one change");
        assert_eq!(changes[0].value, some("2"));
        assert_eq!(changes[0].before, Presence::default(), "what was there before the entry");
        edge.put(b"a".to_vec(), None, Presence { exists: true, deadline_ms: None });
        let newest = edge.newest(b"a", 2).unwrap();
        assert_eq!((newest.value, newest.entry, newest.stamp), (None, 2, None));
        edge.close(2, ts(2));
        assert_eq!(edge.awaited_at(b"a", ts(1)), Some(1), "a reader at 1 does not see entry 2");
        assert_eq!(edge.awaited_at(b"a", ts(3)), Some(2));
        edge.applied(1);
        assert_eq!(edge.awaited_at(b"a", ts(1)), None);
        edge.applied(2);
        assert!(edge.is_empty());
    }

    #[test]
    fn an_open_write_behind_one_in_flight_outlives_its_application() {
        let mut edge = Edge::default();
        edge.put(b"k".to_vec(), some("1"), Presence::default());
        edge.close(1, ts(1));
        edge.put(b"k".to_vec(), some("2"), Presence { exists: true, deadline_ms: None });
        edge.applied(1);
        assert_eq!(edge.newest(b"k", 2).unwrap().value, some("2"));
        let span = Span { start: b"a".to_vec(), end: b"z".to_vec() };
        assert_eq!(edge.touches(&span), Some(&SharedKey::from(&b"k"[..])));
        assert_eq!(edge.awaited_in(&span, ts(9)), None, "the open entry has no timestamp yet");
    }

    #[test]
    fn a_resolved_intent_keeps_its_own_timestamp() {
        let mut edge = Edge::default();
        edge.put_resolved(b"k".to_vec(), some("v"), ts(5), 3);
        assert_eq!(edge.resolved(b"k"), Some(3));
        assert_eq!(edge.newest(b"k", 3).unwrap().stamp, Some(ts(5)));
        edge.put(b"k".to_vec(), some("w"), Presence { exists: true, deadline_ms: None });
        edge.close(3, ts(6));
        edge.applied(3);
        assert!(edge.is_empty());
    }
}
