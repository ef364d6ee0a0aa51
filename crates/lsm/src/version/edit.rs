//! Edits: what changes from one version to the next, and their encoding in the manifest.
//!
//! An edit is a list of tagged fields, so that a later version of the format can add one; an
//! unknown tag is refused, because a field that is not understood may be a table that is not read.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_encoding::{Malformed, Reader, varint};

use crate::key::{SEQNO_MAX, SeqNo};
use crate::values::ValueDesc;
use crate::version::LEVELS;

/// What the version knows of a table without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableDesc {
    /// File number; part of every checksum in the file.
    pub(crate) id: u64,
    /// Random number in the file's checksums: a stale file of the same number does not verify.
    pub(crate) salt: u64,
    /// What the sequence numbers in the file are relative to; 0 unless it was written before its place
    /// in the order of writes was known.
    pub(crate) base: SeqNo,
    /// File length in bytes.
    pub(crate) size: u64,
    /// Smallest user key, range tombstones included.
    pub(crate) smallest: Vec<u8>,
    /// Largest user key, or the end of the last range tombstone.
    pub(crate) largest: Vec<u8>,
    /// Whether `largest` is the (exclusive) end of a range tombstone.
    pub(crate) largest_exclusive: bool,
    /// Smallest and largest sequence number.
    pub(crate) seqnos: (SeqNo, SeqNo),
    /// Records, point and range tombstones included.
    pub(crate) entries: u64,
    /// Point tombstones.
    pub(crate) tombstones: u64,
    /// Range tombstones.
    pub(crate) range_tombstones: u64,
    /// Records with a deadline.
    pub(crate) expiring: u64,
    /// Latest deadline among them, 0 without any.
    pub(crate) deadline_max: u64,
    /// Versions, their chunks included, that are dead weight once the horizon has passed
    /// `passing_stamp`: tombstones, and what is older than another version in the table.
    pub(crate) passing: u64,
    /// 0 without any.
    pub(crate) passing_stamp: u64,
    /// Bytes of records in value files that the table points to, by file, ascending.
    pub(crate) values: Arc<[(u64, u64)]>,
    /// Point tombstones that lie side by side, see `compaction/weight.rs`.
    pub(crate) dense: u64,
    /// When half of the records have expired, about; 0 if they never do.
    pub(crate) half_expired: u64,
}

impl TableDesc {
    /// Returns whether the table's range ends after `user_key` begins: it holds or could hold
    /// keys at or above it.
    pub(crate) fn ends_at_or_after(&self, user_key: &[u8]) -> bool {
        if self.largest_exclusive {
            self.largest.as_slice() > user_key
        } else {
            self.largest.as_slice() >= user_key
        }
    }

    /// Returns whether the table overlaps one that starts at `smallest`.
    pub(crate) fn ends_after(&self, smallest: &[u8]) -> bool {
        self.ends_at_or_after(smallest)
    }

    /// Returns whether the two key ranges meet.
    pub(crate) fn overlaps(&self, other: &TableDesc) -> bool {
        self.ends_at_or_after(&other.smallest) && other.ends_at_or_after(&self.smallest)
    }

    /// Returns whether every key of the table lies in `[start, end)`.
    pub(crate) fn within(&self, start: &[u8], end: &[u8]) -> bool {
        let ends_before = if self.largest_exclusive {
            self.largest.as_slice() <= end
        } else {
            self.largest.as_slice() < end
        };
        start <= self.smallest.as_slice() && ends_before
    }

    /// Returns the bytes in value files that the table points to.
    pub(crate) fn value_bytes(&self) -> u64 {
        self.values.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Returns the tag under which it is encoded.
    fn tag(&self) -> u8 {
        match (self.values.is_empty(), self.passing) {
            _ if self.dense > 0 || self.half_expired > 0 => ADD_WEIGHED,
            (false, _) => ADD_VALUES,
            (true, 0) => ADD,
            (true, _) => ADD_PASSING,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for n in [self.id, self.salt, self.size] {
            varint::put(out, n);
        }
        varint::put_bytes(out, &self.smallest);
        varint::put_bytes(out, &self.largest);
        out.push(u8::from(self.largest_exclusive));
        for n in [
            self.seqnos.0,
            self.seqnos.1,
            self.entries,
            self.tombstones,
            self.range_tombstones,
            self.expiring,
            self.deadline_max,
        ] {
            varint::put(out, n);
        }
        let tag = self.tag();
        if tag != ADD {
            varint::put(out, self.passing);
            varint::put(out, self.passing_stamp);
        }
        if matches!(tag, ADD_VALUES | ADD_WEIGHED) {
            varint::put(out, self.values.len() as u64);
            for (file, bytes) in self.values.iter() {
                varint::put(out, *file);
                varint::put(out, *bytes);
            }
        }
        if tag == ADD_WEIGHED {
            varint::put(out, self.dense);
            varint::put(out, self.half_expired);
        }
    }

    /// Decodes a description, which under `tag` ends with passing versions, or with these and what
    /// it points to in value files, or with all that and its dead weight.
    fn decode(r: &mut Reader<'_>, tag: u8) -> Result<TableDesc, Malformed> {
        let passing = tag != ADD;
        let (id, salt, size) =
            (r.varint("a table number")?, r.varint("a salt")?, r.varint("a table size")?);
        let smallest = r.bytes("a smallest key")?.to_vec();
        let largest = r.bytes("a largest key")?.to_vec();
        let largest_exclusive = r.u8("a bound kind")? != 0;
        let mut next = || r.varint("a table count");
        let mut desc = TableDesc {
            id,
            salt,
            base: 0,
            size,
            smallest,
            largest,
            largest_exclusive,
            seqnos: (next()?, next()?),
            entries: next()?,
            tombstones: next()?,
            range_tombstones: next()?,
            expiring: next()?,
            deadline_max: next()?,
            passing: if passing { next()? } else { 0 },
            passing_stamp: if passing { next()? } else { 0 },
            values: Arc::default(),
            dense: 0,
            half_expired: 0,
        };
        if matches!(tag, ADD_VALUES | ADD_WEIGHED) {
            let mut values: Vec<(u64, u64)> = Vec::new();
            for _ in 0..next()? {
                let (file, bytes) = (r.varint("a value file")?, r.varint("a number of bytes")?);
                if values.last().is_some_and(|(before, _)| *before >= file) {
                    return Err(r.malformed("value files that ascend"));
                }
                values.push((file, bytes));
            }
            desc.values = values.into();
        }
        if tag == ADD_WEIGHED {
            desc.dense = r.varint("a number of tombstones")?;
            desc.half_expired = r.varint("a deadline")?;
        }
        // One description has one encoding.
        if desc.tag() == tag { Ok(desc) } else { Err(r.malformed("a table under its own tag")) }
    }
}

/// Per group, the index of an entry: how far somebody got in each log.
pub(crate) type Applied = BTreeMap<u64, u64>;

/// How far the tables have caught up with the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// One above the largest sequence number in tables: the log was durable up to here.
    pub(crate) position: u64,
    /// Per group, the index of the last entry that is in tables.
    pub(crate) applied: Applied,
}

impl Flushed {
    /// Takes in what was reached before: nothing is taken back.
    pub(crate) fn raise(&mut self, before: &Flushed) {
        self.position = self.position.max(before.position);
        for (&group, &index) in &before.applied {
            let reached = self.applied.entry(group).or_default();
            *reached = index.max(*reached);
        }
    }
}

/// The difference of two versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// New tables with their level.
    pub(crate) added: Vec<(u8, TableDesc)>,
    /// Tables that are gone.
    pub(crate) removed: Vec<u64>,
    /// Tables that change level as they are.
    pub(crate) moved: Vec<(u64, u8)>,
    /// Tables whose bytes did not verify.
    pub(crate) quarantined: Vec<u64>,
    /// New value files. One goes when no table points to it any more.
    pub(crate) values: Vec<ValueDesc>,
    /// New progress, if this is a flush.
    pub(crate) flushed: Option<Flushed>,
    /// File numbers below this one are taken.
    pub(crate) next_file: u64,
}

const ADD: u8 = 1;
const REMOVE: u8 = 2;
const MOVE: u8 = 3;
const QUARANTINE: u8 = 4;
const FLUSHED: u8 = 5;
const NEXT_FILE: u8 = 6;
/// As `ADD`, for a table with passing versions.
const ADD_PASSING: u8 = 7;
/// As `ADD_PASSING`, for a table that points into value files.
const ADD_VALUES: u8 = 8;
const VALUE_FILE: u8 = 9;
/// As `ADD_VALUES`, with or without such, for a table whose dead weight was counted and is some.
const ADD_WEIGHED: u8 = 10;
/// What the sequence numbers in a table that the edit adds are relative to, if not 0.
const BASE: u8 = 12;

impl Edit {
    /// Appends the encoding.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for (level, desc) in &self.added {
            out.extend_from_slice(&[desc.tag(), *level]);
            desc.encode(out);
            if desc.base > 0 {
                out.push(BASE);
                varint::put(out, desc.id);
                varint::put(out, desc.base);
            }
        }
        for id in &self.removed {
            out.push(REMOVE);
            varint::put(out, *id);
        }
        for (id, level) in &self.moved {
            out.extend_from_slice(&[MOVE, *level]);
            varint::put(out, *id);
        }
        for id in &self.quarantined {
            out.push(QUARANTINE);
            varint::put(out, *id);
        }
        for file in &self.values {
            out.push(VALUE_FILE);
            varint::put(out, file.id);
            varint::put(out, file.salt);
            varint::put(out, file.size);
        }
        if let Some(flushed) = &self.flushed {
            out.push(FLUSHED);
            varint::put(out, flushed.position);
            varint::put(out, flushed.applied.len() as u64);
            for (group, index) in &flushed.applied {
                varint::put(out, *group);
                varint::put(out, *index);
            }
        }
        out.push(NEXT_FILE);
        varint::put(out, self.next_file);
    }

    /// Decodes a whole edit.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Edit, Malformed> {
        let mut r = Reader::new(bytes);
        let mut edit = Edit::default();
        let level = |r: &mut Reader<'_>| {
            let wrong = r.malformed("a level below 7");
            let level = r.u8("a level")?;
            if usize::from(level) < LEVELS { Ok(level) } else { Err(wrong) }
        };
        while !r.is_empty() {
            let unknown = r.malformed("a known field");
            match r.u8("a field")? {
                tag @ (ADD | ADD_PASSING | ADD_VALUES | ADD_WEIGHED) => {
                    let level = level(&mut r)?;
                    edit.added.push((level, TableDesc::decode(&mut r, tag)?));
                }
                VALUE_FILE => edit.values.push(ValueDesc {
                    id: r.varint("a value file's number")?,
                    salt: r.varint("a salt")?,
                    size: r.varint("a value file's size")?,
                }),
                REMOVE => edit.removed.push(r.varint("a table number")?),
                MOVE => {
                    let level = level(&mut r)?;
                    edit.moved.push((r.varint("a table number")?, level));
                }
                QUARANTINE => edit.quarantined.push(r.varint("a table number")?),
                FLUSHED => {
                    let mut flushed =
                        Flushed { position: r.varint("a position")?, applied: BTreeMap::new() };
                    for _ in 0..r.varint("a group count")? {
                        flushed.applied.insert(r.varint("a group")?, r.varint("an index")?);
                    }
                    edit.flushed = Some(flushed);
                }
                BASE => {
                    let (id, base) = (r.varint("a table number")?, r.varint("a base")?);
                    let none = r.malformed("the base of a table that is added before it");
                    let mut added = edit.added.iter_mut().map(|(_, desc)| desc);
                    let desc = added.find(|d| d.id == id && d.base == 0).ok_or(none)?;
                    if base == 0 || base > SEQNO_MAX {
                        return Err(r.malformed("a base that is a sequence number"));
                    }
                    desc.base = base;
                }
                NEXT_FILE => edit.next_file = r.varint("a file number")?,
                _ => return Err(unknown),
            }
        }
        Ok(edit)
    }
}

/// A table to start from.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn sample_desc(id: u64, smallest: &str, largest: &str) -> TableDesc {
    TableDesc {
        id,
        salt: id * 7,
        base: 0,
        size: 1000,
        smallest: smallest.into(),
        largest: largest.into(),
        largest_exclusive: false,
        seqnos: (1, 9),
        entries: 10,
        tombstones: 0,
        range_tombstones: 0,
        expiring: 0,
        deadline_max: 0,
        passing: 0,
        passing_stamp: 0,
        values: Arc::default(),
        dense: 0,
        half_expired: 0,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::sample_desc as desc;
    use super::*;

    #[test]
    fn an_edit_round_trips_and_no_cut_of_it_panics() {
        let passing = TableDesc { passing: 3, passing_stamp: 1 << 60, ..desc(7, "zz", "zzz") };
        let based = TableDesc { base: 1 << 50, ..desc(8, "y", "yy") };
        let edit = Edit {
            added: vec![
                (0, desc(5, "a", "m")),
                (6, desc(6, "", "z")),
                (6, passing),
                (5, based),
                (
                    6,
                    TableDesc {
                        values: [(9, 70), (300, 1 << 33)].into(),
                        ..desc(9, "zzz0", "zzz1")
                    },
                ),
                (1, TableDesc { dense: 70, ..desc(10, "b", "c") }),
                (2, TableDesc { half_expired: 1 << 41, ..desc(11, "b", "c") }),
            ],
            values: vec![ValueDesc { id: 9, salt: 1 << 63, size: 500 }],
            removed: vec![1, 300],
            moved: vec![(4, 3)],
            quarantined: vec![2],
            flushed: Some(Flushed { position: 1 << 40, applied: [(0, 17), (9, 2)].into() }),
            next_file: 301,
        };
        let mut bytes = Vec::new();
        edit.encode(&mut bytes);
        assert_eq!(Edit::decode(&bytes).unwrap(), edit);
        for len in 0..bytes.len() {
            let cut = Edit::decode(&bytes[..len]);
            assert!(cut.map_or(true, |e| e != edit));
        }
        assert!(Edit::decode(&[ADD, 7]).is_err(), "a level that does not exist");
        assert!(Edit::decode(&[99]).is_err(), "a field of a later version");
    }

    #[test]
    fn an_exclusive_end_touches_its_neighbour_without_overlap() {
        let mut left = desc(1, "a", "m");
        let right = desc(2, "m", "z");
        assert!(left.overlaps(&right));
        left.largest_exclusive = true;
        assert!(!left.overlaps(&right) && !right.overlaps(&left));
        assert!(left.within(b"a", b"m") && !right.within(b"a", b"z"));
    }
}
