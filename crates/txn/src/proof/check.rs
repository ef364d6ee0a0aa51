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
//! | the same per key, also after those of the same client that were not told yet | the fast lane |
//! | one write of a key per moment, a value is there once | all writes |
//!
//! What was written and overwritten at the same timestamp was there for nobody but the commands in
//! between; the order of moments has a place for it.
//!
//! # Removals of what is not there
//! A command of the fast lane that removes an absent key changes nothing: it has *read* that the key
//! is absent, and is checked as a reader. Removals carry no value that would say whose they are, so
//! whether one of a command took effect is found out: it did if there is a removal of the key at its
//! moment that no transaction has claimed. (A command that changes nothing happens just behind the
//! newest thing it saw. If that is the removal by a transaction, the two have one moment, and the
//! removal is the transaction's: one write has one owner. Nothing is excused by that: as a reader
//! the command must find the key absent at its moment, and comes after everybody told before.)

use std::collections::{BTreeMap, BTreeSet};

use atoll_mvcc::request::{Isolation, Key, Span};

use super::journal::{Entry, Journal, Kind, Own, Read, Told, Value};
use super::{Moment, Written};

/// Looks for something that cannot be.
///
/// # Errors
/// It is there; the sentence says what.
pub fn check(journal: &Journal, history: &BTreeMap<Key, Vec<Written>>) -> Result<(), String> {
    if let Some(wrong) = journal.wrongs().into_iter().next() {
        return Err(wrong);
    }
    let mut entries = journal.entries();
    let history = History::new(history)?;
    // Transactions first: they have a value each, so what they removed is known.
    let mut removed = Removed::new();
    for fast in [false, true] {
        let of_this_kind = |(_, entry): &(usize, &mut Entry)| (entry.kind == Kind::Fast) == fast;
        for (number, entry) in entries.iter_mut().enumerate().filter(of_this_kind) {
            history
                .settle(entry, &removed)
                .map_err(|what| format!("{what}: transaction {number} {entry:?}"))?;
            if let Some(at) = entry.committed().filter(|_| !fast) {
                let removals = entry.writes.iter().filter(|(_, value)| value.is_none());
                removed.extend(removals.map(|(key, _)| (key.clone(), at)));
            }
        }
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
    fn committed(&self) -> Option<Moment> {
        self.moment.filter(|_| matches!(self.told, Told::Committed(_)))
    }

    fn is_serializable(&self) -> bool {
        matches!(self.kind, Kind::Ordinary(Isolation::Serializable) | Kind::Fast)
    }
}

/// What transactions have removed, and when.
type Removed = BTreeSet<(Key, Moment)>;

struct History {
    /// Ascending.
    written: BTreeMap<Key, Vec<Written>>,
    /// Where each value is.
    values: BTreeMap<Value, (Key, Moment)>,
}

impl History {
    fn new(written: &BTreeMap<Key, Vec<Written>>) -> Result<History, String> {
        let mut written = written.clone();
        let mut values = BTreeMap::new();
        for (key, of_key) in &mut written {
            of_key.sort_by_key(|write| write.at);
            if of_key.windows(2).any(|pair| pair[0].at == pair[1].at) {
                return Err(format!("two writes at one moment: {key:?} {of_key:?}"));
            }
            for write in of_key.iter() {
                if let Some(value) = &write.value
                    && let Some(before) = values.insert(value.clone(), (key.clone(), write.at))
                {
                    return Err(format!("a write happened twice: {before:?}, {key:?} {write:?}"));
                }
            }
        }
        Ok(History { written, values })
    }

    fn has_at(&self, key: &Key, at: Moment, value: &Option<Value>) -> bool {
        let of_key = self.written.get(key).into_iter().flatten();
        of_key.into_iter().any(|write| write.at == at && write.value == *value)
    }

    /// Returns the value of a key at a moment, what happens then included.
    fn at(&self, key: &[u8], at: Moment) -> Option<&Value> {
        let of_key = self.written.get(key)?;
        of_key.iter().rev().find(|write| write.at <= at)?.value.as_ref()
    }

    /// Returns the value of a key just before a moment.
    fn before(&self, key: &[u8], at: Moment) -> Option<&Value> {
        let of_key = self.written.get(key)?;
        of_key.iter().rev().find(|write| write.at < at)?.value.as_ref()
    }

    /// Checks that all or nothing of a transaction is there, as told; finds out what was not told.
    fn settle(&self, entry: &mut Entry, removed: &Removed) -> Result<(), String> {
        let is_fast = entry.kind == Kind::Fast;
        let found: Vec<Moment> = entry
            .writes
            .values()
            .filter_map(|value| Some(self.values.get(value.as_ref()?)?.1))
            .collect();
        let all_at = |at: Moment| {
            entry.writes.iter().all(|(key, value)| {
                // A command that removes what is not there leaves no trace.
                let was_absent = is_fast && value.is_none() && self.before(key, at).is_none();
                was_absent || self.has_at(key, at, value)
            })
        };
        match &entry.told {
            Told::Committed(ts) => {
                let told = entry.moment;
                let at = told.or(found.first().copied()).unwrap_or(Moment::end_of(*ts));
                if at.ts != *ts || !all_at(at) {
                    return Err("told committed, but not all of it is there".into());
                }
                entry.moment = Some(at);
                if is_fast {
                    self.tell_reads(entry, at, removed);
                }
            }
            Told::Aborted(_) | Told::GivenUp => {
                if !found.is_empty() {
                    return Err("told aborted, but it is there".into());
                }
            }
            Told::Nothing | Told::Unknown(_) | Told::Lost => {
                let Some(&at) = found.first() else { return Ok(()) };
                if !all_at(at) {
                    return Err("a part of it is there".into());
                }
                entry.moment = Some(at);
                entry.told = Told::Committed(at.ts);
                entry.end = None;
                if is_fast {
                    self.tell_reads(entry, at, removed);
                }
            }
        }
        Ok(())
    }

    /// Makes removals of what was not there what they are: reads.
    fn tell_reads(&self, entry: &mut Entry, at: Moment, removed: &Removed) {
        let Entry { writes, reads, .. } = entry;
        writes.retain(|key, value| {
            let is_anothers = value.is_none() && removed.contains(&(key.clone(), at));
            let wrote = self.has_at(key, at, value) && !is_anothers;
            if !wrote {
                reads.push(Read::Key { at: at.ts, key: key.clone(), value: None });
            }
            wrote
        });
    }

    /// Checks that every write is somebody's.
    fn check_owners(&self, entries: &[Entry]) -> Result<(), String> {
        for (key, of_key) in &self.written {
            for write in of_key {
                let is_owner = |entry: &Entry| {
                    let wrote = entry.writes.get(key) == Some(&write.value);
                    // Removals cannot be told from each other: one whose end nobody knows may be it.
                    let unknown = matches!(entry.told, Told::Lost | Told::Nothing);
                    let may_be = entry.kind == Kind::Fast && unknown && write.value.is_none();
                    wrote && (entry.committed() == Some(write.at) || may_be)
                };
                if !entries.iter().any(is_owner) {
                    return Err(format!("nobody committed {key:?} {write:?}"));
                }
            }
        }
        Ok(())
    }

    fn check_reads(&self, entry: &Entry) -> Result<(), String> {
        // What a serializable transaction read must hold just before its own writes.
        let commit = entry.committed().filter(|_| entry.is_serializable());
        let held = |key: &Key, at: Moment| {
            if entry.writes.contains_key(key) { self.before(key, at) } else { self.at(key, at) }
        };
        for read in &entry.reads {
            match read {
                Read::Key { at, key, value } => {
                    let at = Moment::end_of(*at);
                    if entry.kind != Kind::Fast && self.at(key, at) != value.as_ref() {
                        return Err(format!("a read is not of its moment: {read:?}"));
                    }
                    if let Some(at) = commit
                        && held(key, at) != value.as_ref()
                    {
                        return Err(format!("a read does not hold at the commit: {read:?}"));
                    }
                }
                Read::Scan { at, .. } => {
                    let at = Moment::end_of(*at);
                    if !self.scan_holds(read, |key| self.at(key, at)) {
                        return Err(format!("a scan is not of its moment: {read:?}"));
                    }
                    if let Some(at) = commit
                        && !self.scan_holds(read, |key| held(key, at))
                    {
                        return Err(format!("a scan does not hold at the commit: {read:?}"));
                    }
                }
                Read::Locked { key, value } => {
                    let matters = commit.is_some() || entry.writes.contains_key(key);
                    if matters
                        && let Some(at) = entry.committed()
                        && held(key, at) != value.as_ref()
                    {
                        return Err(format!("an update was lost: {read:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns whether a scan finds what it found, in this state.
    fn scan_holds<'a>(&'a self, read: &Read, state: impl Fn(&Key) -> Option<&'a Value>) -> bool {
        let Read::Scan { span, reverse, rows, complete, own, .. } = read else { return true };
        let mut expected = self.rows(span, own, state);
        if *reverse {
            expected.reverse();
        }
        if *complete { *rows == expected } else { expected.starts_with(rows) }
    }

    fn rows<'a>(
        &'a self,
        span: &Span,
        own: &Own,
        state: impl Fn(&Key) -> Option<&'a Value>,
    ) -> Vec<(Key, Value)> {
        let inside = span.start.clone()..span.end.clone();
        let stored = self.written.range(inside.clone()).map(|(key, _)| key);
        let mut keys: Vec<&Key> = stored.chain(own.range(inside).map(|(key, _)| key)).collect();
        keys.sort_unstable();
        keys.dedup();
        let value = |key: &Key| match own.get(key) {
            Some(value) => value.clone(),
            None => state(key).cloned(),
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

/// Checks that `b` comes after `a` if it began after `a` was told, or is a later command of the same
/// client, and that snapshots do not overwrite each other.
fn check_pair(a: &Entry, b: &Entry) -> Result<(), String> {
    let Some(moment) = a.committed() else { return Ok(()) };
    let follows = match (a.place, b.place) {
        (Some((of, before)), Some((client, number))) => of == client && before < number,
        _ => false,
    };
    if follows || a.end.is_some_and(|end| end < b.start) {
        let in_oracle_order = a.kind != Kind::Fast && b.kind != Kind::Fast;
        let writes = !a.writes.is_empty();
        for read in &b.reads {
            let (at, shares) = match read {
                Read::Key { at, key, .. } => (*at, a.writes.contains_key(key)),
                Read::Scan { at, .. } => (*at, a.writes.keys().any(|key| looked_at(read, key))),
                Read::Locked { .. } => continue,
            };
            let at = if b.kind == Kind::Fast { b.moment } else { Some(Moment::end_of(at)) };
            let late = b.committed().filter(|_| b.is_serializable()).max(at);
            let Some(late) = late else { continue };
            if b.kind != Kind::Stale && writes && (in_oracle_order || shares) && moment > late {
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
            let matters = (in_oracle_order && has_moment) || shares_write || shares_read;
            let behind = if in_oracle_order { moment.ts >= later.ts } else { moment >= later };
            if matters && behind {
                return Err("it began after the other was told, and comes before it".into());
            }
        }
    }
    let is_snapshot = |entry: &Entry| entry.kind == Kind::Ordinary(Isolation::Snapshot);
    if is_snapshot(a)
        && is_snapshot(b)
        && let (Some(other), Some(a_read), Some(b_read)) = (b.committed(), a.read_ts, b.read_ts)
        && a.writes.keys().any(|key| b.writes.contains_key(key))
        && a_read < other.ts
        && b_read < moment.ts
    {
        return Err("two snapshots that overlap wrote one key".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Histories by hand: what the order of moments leaves to interpretation.

    use super::*;
    use atoll_mvcc::{Epoch, Timestamp};

    fn at(n: u64) -> Timestamp {
        Timestamp::commit_at(Epoch(n))
    }

    fn key() -> Key {
        super::super::Layout::Ordered.key(0)
    }

    /// What a key holds in the course of time.
    fn history(of_key: &[(u64, Option<&str>)]) -> BTreeMap<Key, Vec<Written>> {
        let written = of_key.iter().map(|(n, value)| Written {
            at: Moment::end_of(at(*n)),
            value: value.map(|v| v.as_bytes().to_vec()),
        });
        BTreeMap::from([(key(), written.collect())])
    }

    fn write(journal: &Journal, kind: Kind, value: Option<&str>, told: Timestamp) {
        let entry = journal.begin(kind);
        journal.with(entry, |entry| {
            entry.writes.insert(key(), value.map(|v| v.as_bytes().to_vec()));
            entry.moment = (kind == Kind::Fast).then_some(Moment::end_of(told));
        });
        journal.tell(entry, Told::Committed(told));
    }

    const ORDINARY: Kind = Kind::Ordinary(Isolation::Serializable);

    fn found(journal: &Journal, of_key: &[(u64, Option<&str>)]) -> String {
        check(journal, &history(of_key)).unwrap_err()
    }

    #[test]
    fn a_command_that_removes_what_a_transaction_removed_just_before_is_a_reader() {
        let journal = Journal::default();
        write(&journal, ORDINARY, Some("v"), at(1));
        write(&journal, ORDINARY, None, at(2));
        // Told the moment of the newest thing it saw: that the key is not there.
        write(&journal, Kind::Fast, None, at(2));
        check(&journal, &history(&[(1, Some("v")), (2, None)])).unwrap();
        // The removal is still its own where no transaction claims it.
        let journal = Journal::default();
        write(&journal, ORDINARY, Some("v"), at(1));
        write(&journal, Kind::Fast, None, at(2));
        check(&journal, &history(&[(1, Some("v")), (2, None)])).unwrap();
    }

    #[test]
    fn as_a_reader_it_must_find_the_key_absent() {
        for (moment, sentence) in [
            (1, "a read does not hold at the commit"),
            (2, "told committed, but not all of it is there"),
        ] {
            let journal = Journal::default();
            write(&journal, ORDINARY, Some("v"), at(1));
            write(&journal, Kind::Fast, None, at(moment));
            let wrong = found(&journal, &[(1, Some("v"))]);
            assert!(wrong.starts_with(sentence), "{wrong}");
        }
    }

    #[test]
    fn as_a_reader_it_comes_after_everybody_told_before() {
        let journal = Journal::default();
        write(&journal, ORDINARY, Some("v"), at(1));
        write(&journal, ORDINARY, None, at(2));
        write(&journal, ORDINARY, Some("w"), at(3));
        write(&journal, Kind::Fast, None, at(2));
        let wrong = found(&journal, &[(1, Some("v")), (2, None), (3, Some("w"))]);
        assert!(
            wrong.starts_with("a read of something older than what was told before"),
            "{wrong}"
        );
    }

    #[test]
    fn a_removal_that_is_nobodys_is_wrong() {
        let journal = Journal::default();
        write(&journal, ORDINARY, Some("v"), at(1));
        write(&journal, Kind::Fast, None, at(2));
        let wrong = found(&journal, &[(1, Some("v")), (2, None), (3, None)]);
        assert!(wrong.starts_with("nobody committed"), "{wrong}");
    }
}
