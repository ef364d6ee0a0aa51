//! The checks: is there an order in which all of this is right?
//!
//! Timestamps claim to be that order; so each claim is checked at its timestamp, against the
//! versions that are there in the end.
//!
//! | check | for whom |
//! |---|---|
//! | all of its writes are there, at one timestamp, or none | everybody |
//! | told committed: all, at the timestamp told; told aborted: none | everybody |
//! | every read found the state of its moment, ranges included | everybody, also who aborted |
//! | every read still held at the commit | serializable |
//! | what was read under a lock and written was the version just below | everybody |
//! | of two that overlap one writes a key | snapshot |
//! | who begins after another was told comes after it | all but stale reads and the fast lane |
//! | the same per key | the fast lane |
//! | a key has one version per timestamp, a value is there once | versions |

use std::collections::BTreeMap;

use atoll_mvcc::Timestamp;
use atoll_mvcc::request::{Isolation, Key, Span, Version};

use super::journal::{Entry, Journal, Kind, Own, Read, Told, Value};

/// Looks for something that cannot be.
///
/// # Errors
/// It is there; the sentence says what.
pub fn check(journal: &Journal, versions: &BTreeMap<Key, Vec<Version>>) -> Result<(), String> {
    if let Some(wrong) = journal.wrongs().into_iter().next() {
        return Err(wrong);
    }
    let mut entries = journal.entries();
    let history = History::new(versions)?;
    for (number, entry) in entries.iter_mut().enumerate() {
        history.settle(entry).map_err(|what| format!("{what}: transaction {number} {entry:?}"))?;
    }
    history.check_owners(&entries)?;
    for (number, entry) in entries.iter().enumerate() {
        history
            .check_reads(entry)
            .map_err(|what| format!("{what}: transaction {number} {entry:?}"))?;
    }
    for (number, a) in entries.iter().enumerate() {
        for (other, b) in entries.iter().enumerate() {
            if number != other {
                check_pair(a, b).map_err(|what| {
                    format!("{what}: transactions {number} {a:?} and {other} {b:?}")
                })?;
            }
        }
    }
    Ok(())
}

impl Entry {
    /// Returns when it committed, if it did, as was told or found out.
    fn committed(&self) -> Option<Timestamp> {
        match self.told {
            Told::Committed(ts) => Some(ts),
            _ => None,
        }
    }

    fn is_serializable(&self) -> bool {
        matches!(self.kind, Kind::Ordinary(Isolation::Serializable) | Kind::Fast)
    }
}

struct History {
    /// Ascending.
    versions: BTreeMap<Key, Vec<Version>>,
    /// Where each value is.
    values: BTreeMap<Value, (Key, Timestamp)>,
}

impl History {
    fn new(versions: &BTreeMap<Key, Vec<Version>>) -> Result<History, String> {
        let mut versions = versions.clone();
        let mut values = BTreeMap::new();
        for (key, of_key) in &mut versions {
            of_key.sort_by_key(|version| version.ts);
            if of_key.windows(2).any(|pair| pair[0].ts == pair[1].ts) {
                return Err(format!("two versions at one timestamp: {key:?} {of_key:?}"));
            }
            for version in of_key.iter() {
                if let Some(value) = &version.value
                    && let Some(before) = values.insert(value.clone(), (key.clone(), version.ts))
                {
                    return Err(format!("a write happened twice: {before:?}, {key:?} {version:?}"));
                }
            }
        }
        Ok(History { versions, values })
    }

    fn has_at(&self, key: &Key, ts: Timestamp, value: &Option<Value>) -> bool {
        let of_key = self.versions.get(key).into_iter().flatten();
        of_key.into_iter().any(|version| version.ts == ts && version.value == *value)
    }

    fn at(&self, key: &[u8], at: Timestamp) -> Option<&Value> {
        let of_key = self.versions.get(key)?;
        of_key.iter().rev().find(|version| version.ts <= at)?.value.as_ref()
    }

    /// Checks that all or nothing of a transaction is there, as told; finds out what was not told.
    fn settle(&self, entry: &mut Entry) -> Result<(), String> {
        if entry.writes.is_empty() {
            return Ok(());
        }
        let found: Vec<Timestamp> = entry
            .writes
            .values()
            .filter_map(|value| Some(self.values.get(value.as_ref()?)?.1))
            .collect();
        match &entry.told {
            Told::Committed(ts) => {
                if !entry.writes.iter().all(|(key, value)| self.has_at(key, *ts, value)) {
                    return Err("told committed, but not all of it is there".into());
                }
            }
            Told::Aborted(_) | Told::GivenUp => {
                if !found.is_empty() {
                    return Err("told aborted, but it is there".into());
                }
            }
            Told::Nothing | Told::Unknown(_) | Told::Lost => {
                let Some(ts) = found.first() else { return Ok(()) };
                if !entry.writes.iter().all(|(key, value)| self.has_at(key, *ts, value)) {
                    return Err("a part of it is there".into());
                }
                entry.told = Told::Committed(*ts);
                entry.end = None;
            }
        }
        Ok(())
    }

    /// Checks that every version is somebody's.
    fn check_owners(&self, entries: &[Entry]) -> Result<(), String> {
        for (key, of_key) in &self.versions {
            for version in of_key {
                let is_owner = |entry: &Entry| {
                    entry.committed() == Some(version.ts)
                        && entry.writes.get(key) == Some(&version.value)
                };
                if !entries.iter().any(is_owner) {
                    return Err(format!("nobody committed {key:?} {version:?}"));
                }
            }
        }
        Ok(())
    }

    fn check_reads(&self, entry: &Entry) -> Result<(), String> {
        // What a serializable transaction read must hold just before its own writes.
        let commit = entry.committed().filter(|_| entry.is_serializable());
        let before = |key: &Key| {
            let ts = entry.committed()?;
            Some(if entry.writes.contains_key(key) { ts.prev() } else { ts })
        };
        for read in &entry.reads {
            match read {
                Read::Key { at, key, value } => {
                    if entry.kind != Kind::Fast && self.at(key, *at) != value.as_ref() {
                        return Err(format!("a read is not of its moment: {read:?}"));
                    }
                    if commit.is_some()
                        && let Some(ts) = before(key)
                        && self.at(key, ts) != value.as_ref()
                    {
                        return Err(format!("a read does not hold at the commit: {read:?}"));
                    }
                }
                Read::Scan { at, .. } => {
                    if !self.scan_holds(read, |_| *at) {
                        return Err(format!("a scan is not of its moment: {read:?}"));
                    }
                    if let Some(ts) = commit
                        && !self.scan_holds(read, |key| before(key).unwrap_or(ts))
                    {
                        return Err(format!("a scan does not hold at the commit: {read:?}"));
                    }
                }
                Read::Locked { key, value } => {
                    let matters = commit.is_some() || entry.writes.contains_key(key);
                    if matters
                        && let Some(ts) = before(key)
                        && self.at(key, ts) != value.as_ref()
                    {
                        return Err(format!("an update was lost: {read:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns whether a scan finds what it found, with each key at its moment.
    fn scan_holds(&self, read: &Read, at: impl Fn(&Key) -> Timestamp) -> bool {
        let Read::Scan { span, reverse, rows, complete, own, .. } = read else { return true };
        let mut expected = self.rows(span, own, at);
        if *reverse {
            expected.reverse();
        }
        if *complete { *rows == expected } else { expected.starts_with(rows) }
    }

    fn rows(&self, span: &Span, own: &Own, at: impl Fn(&Key) -> Timestamp) -> Vec<(Key, Value)> {
        let inside = span.start.clone()..span.end.clone();
        let stored = self.versions.range(inside.clone()).map(|(key, _)| key);
        let mut keys: Vec<&Key> = stored.chain(own.range(inside).map(|(key, _)| key)).collect();
        keys.sort_unstable();
        keys.dedup();
        let value = |key: &Key| match own.get(key) {
            Some(value) => value.clone(),
            None => self.at(key, at(key)).cloned(),
        };
        keys.into_iter().filter_map(|key| Some((key.clone(), value(key)?))).collect()
    }
}

/// Returns whether a scan came as far as `key`.
fn looked_at(read: &Read, key: &Key) -> bool {
    let Read::Scan { span, reverse, rows, complete, .. } = read else { return false };
    let before_the_end =
        |(last, _): &(Key, Value)| if *reverse { key >= last } else { key <= last };
    span.contains(key) && (*complete || rows.last().is_some_and(before_the_end))
}

/// Checks that `b` comes after `a` if it began after `a` was told, and that snapshots do not
/// overwrite each other.
fn check_pair(a: &Entry, b: &Entry) -> Result<(), String> {
    let (Some(ts), Some(end)) = (a.committed(), a.end) else { return Ok(()) };
    if end < b.start {
        let in_oracle_order = a.kind != Kind::Fast && b.kind != Kind::Fast;
        let writes = !a.writes.is_empty();
        for read in &b.reads {
            let (at, shares) = match read {
                Read::Key { at, key, .. } => (*at, a.writes.contains_key(key)),
                Read::Scan { at, .. } => (*at, a.writes.keys().any(|key| looked_at(read, key))),
                Read::Locked { .. } => continue,
            };
            let late = b.committed().filter(|_| b.is_serializable()).unwrap_or(at).max(at);
            if b.kind != Kind::Stale && writes && (in_oracle_order || shares) && ts > late {
                return Err("a read of something older than what was told before".into());
            }
        }
        if let Some(later) = b.committed().filter(|_| !b.writes.is_empty()) {
            let shares_write = a.writes.keys().any(|key| b.writes.contains_key(key));
            let shares_read = a.is_serializable()
                && a.reads.iter().any(|read| match read {
                    Read::Key { key, .. } | Read::Locked { key, .. } => b.writes.contains_key(key),
                    Read::Scan { .. } => b.writes.keys().any(|key| looked_at(read, key)),
                });
            let has_moment = a.kind != Kind::Stale && (writes || !a.reads.is_empty());
            if ((in_oracle_order && has_moment) || shares_write || shares_read) && ts >= later {
                return Err("it began after the other was told, and comes before it".into());
            }
        }
    }
    let is_snapshot = |entry: &Entry| entry.kind == Kind::Ordinary(Isolation::Snapshot);
    if is_snapshot(a)
        && is_snapshot(b)
        && let (Some(other), Some(a_read), Some(b_read)) = (b.committed(), a.read_ts, b.read_ts)
        && a.writes.keys().any(|key| b.writes.contains_key(key))
        && a_read < other
        && b_read < ts
    {
        return Err("two snapshots that overlap wrote one key".into());
    }
    Ok(())
}
