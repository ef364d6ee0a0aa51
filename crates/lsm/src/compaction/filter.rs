//! Compaction filters: what a program says about values that a merge comes by.
//!
//! A filter removes or replaces values without a read or a write of its own, at the price that
//! nobody knows when. Readers must not see more of that than they have to:
//!
//! - A snapshot does not change. Values that an open snapshot sees are not shown to the filter, only
//!   those of the newest stripe; a snapshot that is opened while such a merge runs keeps the tables
//!   of its moment (`Store::open_snapshot`). RocksDB asks for every value and leaves snapshots to
//!   chance.
//! - What was removed stays so: a tombstone takes the value's place unless nothing lies below.
//!
//! A flush shows nothing: what is written twice in a row need not be judged. Neither does a merge
//! show tombstones, values that have expired, versions, operands, or values that operands are
//! folded onto.
//!
//! A value that stands in a value file has to be read to be shown, which is what value files spare
//! compaction: a filter that decides by key or length says so ([`CompactionFilter::needs_value`]). One
//! that cannot be read is not shown, and stays. A value above 1 MiB is shown by its length only: its
//! pieces are records that come behind, as many as are in half a gigabyte.

use crate::compaction::stream::deadline_of;
use crate::error::Error;
use crate::iter::scan::key_kind;
use crate::key::{InternalKey, Kind};
use crate::keyspace::About;
use crate::merge::{OPERAND_LEN_MAX, caught};
use crate::read::Stored;
use crate::slice::Slice;

/// A value that a compaction writes anew.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The level it is written into, 1 to 6.
    pub level: usize,
    /// Its key.
    pub key: &'a [u8],
    /// Its bytes; `None` if they are more than 1 MiB, or stand in a value file and were not asked for.
    pub value: Option<&'a [u8]>,
    /// Their number.
    pub len: usize,
    /// When it expires, in milliseconds since the Unix epoch, if ever.
    pub deadline: Option<u64>,
}

/// What becomes of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It stays.
    Keep,
    /// The key has no value any more.
    Remove,
    /// These bytes, at most 1 MiB, take its place, with its deadline.
    Replace(Vec<u8>),
}

/// Decides over the values of a keyspace, see [`Builder::compaction_filter`].
///
/// A value is shown at no certain time, any number of times, or never; not while an open snapshot
/// sees it. If the filter panics the value stays, and [`Stats`](crate::Stats) tells.
///
/// [`Builder::compaction_filter`]: crate::Builder::compaction_filter
pub trait CompactionFilter: Send + Sync + 'static {
    /// Returns whether the value of `key`, of `len` bytes, has to be read for the decision if it stands
    /// in a value file. The default says yes; each yes is a read of the disk.
    fn needs_value(&self, _key: &[u8], _len: usize) -> bool {
        true
    }

    /// Decides over one value. Called by background work only.
    fn filter(&self, candidate: &Candidate<'_>) -> Decision;
}

/// A value before its filter.
pub(crate) struct Subject<'a> {
    about: &'a About,
    filter: &'a dyn CompactionFilter,
    candidate: Candidate<'a>,
}

impl<'a> Subject<'a> {
    /// Returns what is to be shown of a record; `None` if nothing is. The value is missing yet.
    pub(crate) fn of(
        about: &'a About,
        level: usize,
        (key, bytes): (InternalKey<'a>, &Slice),
    ) -> Option<Subject<'a>> {
        let filter = about.filter.as_deref()?;
        let kind = key_kind(key.trailer);
        let shown = matches!(kind, Kind::Value | Kind::ExpiringValue | Kind::ChunkedValue);
        let stored = Stored { trailer: key.trailer, value: bytes.clone() };
        let (len, deadline) = (stored.len(), stored.deadline());
        let key = key.user_key.get(4..).unwrap_or_default();
        let candidate = Candidate { level, key, value: None, len, deadline };
        shown.then_some(Subject { about, filter, candidate })
    }

    /// Returns whether the filter needs a value that stands in a value file.
    pub(crate) fn needs_value(&self) -> Result<bool, Error> {
        let needs = || self.filter.needs_value(self.candidate.key, self.candidate.len);
        caught(needs).map_err(|why| self.failed(&why))
    }

    /// Asks the filter.
    pub(crate) fn decide(&self, value: Option<&[u8]>) -> Result<Decision, Error> {
        let candidate = Candidate { value, ..self.candidate };
        match caught(|| self.filter.filter(&candidate)) {
            Ok(Decision::Replace(with)) if with.len() > OPERAND_LEN_MAX => {
                let what = format!("it replaces it by {} bytes, more than 1 MiB", with.len());
                Err(self.failed(&what))
            }
            Ok(decision) => Ok(decision),
            Err(why) => Err(self.failed(&why)),
        }
    }

    fn failed(&self, why: &str) -> Error {
        Error::InvalidInput(format!(
            "the compaction filter of keyspace '{}' does not answer for key \"{}\": {why}; the value \
             was kept",
            self.about.name,
            self.candidate.key.escape_ascii()
        ))
    }
}

/// Returns kind and bytes of the record in which `value` takes the place of another.
pub(crate) fn replaced(kind: Kind, stored: &[u8], value: Vec<u8>) -> (Kind, Slice) {
    let deadline = if kind == Kind::Value { None } else { deadline_of(stored) };
    match deadline {
        None => (Kind::Value, Slice::from(value)),
        Some(deadline) => {
            let stored = [&deadline.to_le_bytes()[..], &value].concat();
            (Kind::ExpiringValue, Slice::from(stored))
        }
    }
}
