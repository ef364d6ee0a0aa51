//! Requests and responses as bytes: what an engine asks of a shard on another one.
//!
//! ```text
//!   request    | version 1 | kind | fields of the kind ...
//!   response   | version 1 | kind | fields of the kind ...
//! ```
//!
//! Lengths and counts are varints, timestamps 8 bytes and transactions 16, little-endian; an option is
//! a byte, and its value if that is 1 (docs/formats/request.md). What a message is for, a checksum,
//! and how long it may be belong to whoever carries it.
//!
//! # What decoding proves
//! A shard evaluates what was decoded as if its own engine had asked, so what it takes for granted is
//! checked here: there is a key to find the shard by; every key has a place and fits into the tree;
//! every range begins before it ends and lies in one keyspace; writes, the keys of a lock and of a
//! staged record, and what was read under a lock ascend without repetition, because they are
//! searched by halves and counted one by one.
//!
//! # What it cannot prove
//! - That the keys are the shard's: the shard says `NotMine`.
//! - That a timestamp was drawn from the oracle. One from the far future would be believed, and
//!   nothing could be written below it: whoever takes requests from outside knows the time.
//! - That a response fits the request: as many values as keys, rows inside of the range. Whoever
//!   asked knows that.

use std::sync::Arc;

use atoll_encoding::{Malformed, Reader, varint};

use crate::keys::{MAX_KEY, RoutingKey, SLOTS, is_slotted, place_of};
use crate::record::{isolation, isolation_number};
use crate::request::{
    Fate, Key, Obstacle, Outcome, ReadSet, Record, Refusal, Request, Response, Span, TxnId,
    Version, Write,
};
use crate::timestamp::Timestamp;

/// Version of requests and responses alike.
const VERSION: u8 = 1;

/// Kinds of requests. The numbers are on the wire: never change one.
mod asks {
    pub(super) const GET: u8 = 1;
    pub(super) const SCAN: u8 = 2;
    pub(super) const LOCK: u8 = 3;
    pub(super) const UNLOCK: u8 = 4;
    pub(super) const WAITS: u8 = 5;
    pub(super) const COMMIT: u8 = 6;
    pub(super) const VALIDATE: u8 = 7;
    pub(super) const PREWRITE: u8 = 8;
    pub(super) const RESTAGE: u8 = 9;
    pub(super) const FINISH: u8 = 10;
    pub(super) const STATUS: u8 = 11;
    pub(super) const PROBE: u8 = 12;
    pub(super) const RESOLVE: u8 = 13;
    pub(super) const FORGET: u8 = 14;
    pub(super) const HEARTBEAT: u8 = 15;
}

/// Kinds of responses. The numbers are on the wire: never change one.
mod answers {
    pub(super) const VALUES: u8 = 1;
    pub(super) const ROWS: u8 = 2;
    pub(super) const BLOCKED: u8 = 3;
    pub(super) const COMMITTED: u8 = 4;
    pub(super) const PREWRITTEN: u8 = 5;
    pub(super) const DONE: u8 = 6;
    pub(super) const RECORD: u8 = 7;
    pub(super) const FATES: u8 = 8;
    pub(super) const WAITS: u8 = 9;
    pub(super) const REFUSED: u8 = 10;
    pub(super) const NOT_MINE: u8 = 11;
    pub(super) const UNKNOWN: u8 = 12;
    pub(super) const UNAVAILABLE: u8 = 13;
}

/// Kinds of what stands inside of them. The numbers are on the wire: never change one.
mod parts {
    pub(super) const RECORD_STAGED: u8 = 1;
    pub(super) const RECORD_COMMITTED: u8 = 2;
    pub(super) const RECORD_ABORTED: u8 = 3;

    pub(super) const OUTCOME_COMMITTED: u8 = 1;
    pub(super) const OUTCOME_ABORTED: u8 = 2;

    pub(super) const REFUSED_WRITE_CONFLICT: u8 = 1;
    pub(super) const REFUSED_READ_CONFLICT: u8 = 2;
    pub(super) const REFUSED_FENCED: u8 = 3;
    pub(super) const REFUSED_DEADLOCK: u8 = 4;
    pub(super) const REFUSED_SNAPSHOT_TOO_OLD: u8 = 5;
    pub(super) const REFUSED_TOO_LARGE: u8 = 6;

    pub(super) const FATE_INTENT: u8 = 1;
    pub(super) const FATE_VERSION: u8 = 2;
    pub(super) const FATE_FENCED: u8 = 3;
    pub(super) const FATE_MISSING: u8 = 4;
}

impl Request {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        match self {
            Request::Get { txn, keys, at } => {
                out.push(asks::GET);
                put_option(out, *txn, put_txn);
                put_keys(out, keys);
                put_ts(out, *at);
            }
            Request::Scan { txn, span, at, limit, reverse } => {
                out.push(asks::SCAN);
                put_option(out, *txn, put_txn);
                put_span(out, span);
                put_ts(out, *at);
                varint::put(out, *limit as u64);
                out.push(u8::from(*reverse));
            }
            Request::Lock { txn, keys, exclusive } => {
                out.push(asks::LOCK);
                put_txn(out, *txn);
                put_keys(out, keys);
                out.push(u8::from(*exclusive));
            }
            Request::Unlock { txn, keys } => {
                out.push(asks::UNLOCK);
                put_txn(out, *txn);
                put_keys(out, keys);
            }
            Request::Waits { txn, keys } => {
                out.push(asks::WAITS);
                put_txn(out, *txn);
                put_keys(out, keys);
            }
            Request::Commit { txn, isolation, read_ts, reads, writes, commit_ts } => {
                out.push(asks::COMMIT);
                put_txn(out, *txn);
                out.push(isolation_number(*isolation));
                put_option(out, *read_ts, put_ts);
                put_reads(out, reads);
                put_list(out, writes, put_write);
                put_ts(out, *commit_ts);
            }
            Request::Validate { txn, reads, read_ts, at } => {
                out.push(asks::VALIDATE);
                put_txn(out, *txn);
                put_reads(out, reads);
                put_ts(out, *read_ts);
                put_ts(out, *at);
            }
            Request::Prewrite {
                txn,
                isolation,
                read_ts,
                reads,
                writes,
                commit_ts,
                primary,
                record,
            } => {
                out.push(asks::PREWRITE);
                put_txn(out, *txn);
                out.push(isolation_number(*isolation));
                put_option(out, *read_ts, put_ts);
                put_reads(out, reads);
                put_list(out, writes, put_write);
                put_ts(out, *commit_ts);
                varint::put_bytes(out, primary);
                put_option(out, record.as_ref(), put_record);
            }
            Request::Restage { txn, primary, from, to } => {
                out.push(asks::RESTAGE);
                put_txn(out, *txn);
                varint::put_bytes(out, primary);
                put_ts(out, *from);
                put_ts(out, *to);
            }
            Request::Finish { txn, primary, expect, outcome, stamp, keys } => {
                out.push(asks::FINISH);
                put_txn(out, *txn);
                varint::put_bytes(out, primary);
                put_option(out, *expect, put_ts);
                put_outcome(out, *outcome);
                put_ts(out, *stamp);
                put_keys(out, keys);
            }
            Request::Status { txn, primary } => {
                out.push(asks::STATUS);
                put_txn(out, *txn);
                varint::put_bytes(out, primary);
            }
            Request::Probe { txn, keys, fence } => {
                out.push(asks::PROBE);
                put_txn(out, *txn);
                put_keys(out, keys);
                put_option(out, *fence, put_ts);
            }
            Request::Resolve { txn, keys, outcome } => {
                out.push(asks::RESOLVE);
                put_txn(out, *txn);
                put_keys(out, keys);
                put_outcome(out, *outcome);
            }
            Request::Forget { txns } => {
                out.push(asks::FORGET);
                put_list(out, txns, |out, (txn, primary)| {
                    put_txn(out, *txn);
                    varint::put_bytes(out, primary);
                });
            }
            Request::Heartbeat { txn, key } => {
                out.push(asks::HEARTBEAT);
                put_txn(out, *txn);
                varint::put_bytes(out, key);
            }
        }
    }

    /// Decodes a request that a shard can evaluate, see [the module](crate::wire).
    ///
    /// # Errors
    /// The bytes are none, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Request, Malformed> {
        let input = &mut open(bytes, "version 1 of a request; a newer program may know it")?;
        let unknown = input.malformed("a known kind of request");
        let request = match input.u8("a kind of request")? {
            asks::GET => {
                Request::Get { txn: option(input, txn)?, keys: some_keys(input)?, at: ts(input)? }
            }
            asks::SCAN => Request::Scan {
                txn: option(input, txn)?,
                span: span(input)?,
                at: ts(input)?,
                // Where numbers are shorter, more than can be counted is no limit either.
                limit: usize::try_from(input.varint("a limit")?).unwrap_or(usize::MAX),
                reverse: flag(input)?,
            },
            asks::LOCK => Request::Lock {
                txn: txn(input)?,
                keys: some(input, "a key that is to be locked", ascending_keys)?,
                exclusive: flag(input)?,
            },
            asks::UNLOCK => Request::Unlock { txn: txn(input)?, keys: some_keys(input)? },
            asks::WAITS => Request::Waits { txn: txn(input)?, keys: some_keys(input)? },
            asks::COMMIT => Request::Commit {
                txn: txn(input)?,
                isolation: isolation(input)?,
                read_ts: option(input, ts)?,
                reads: Arc::new(reads(input)?),
                writes: some(input, "a write", writes)?,
                commit_ts: ts(input)?,
            },
            asks::VALIDATE => {
                let txn = txn(input)?;
                let nothing = input.malformed("something that was read");
                let reads = reads(input)?;
                if reads.is_empty() {
                    return Err(nothing);
                }
                Request::Validate { txn, reads, read_ts: ts(input)?, at: ts(input)? }
            }
            asks::PREWRITE => Request::Prewrite {
                txn: txn(input)?,
                isolation: isolation(input)?,
                read_ts: option(input, ts)?,
                reads: Arc::new(reads(input)?),
                writes: some(input, "a write", writes)?,
                commit_ts: ts(input)?,
                primary: key(input)?,
                record: option(input, record)?,
            },
            asks::RESTAGE => Request::Restage {
                txn: txn(input)?,
                primary: key(input)?,
                from: ts(input)?,
                to: ts(input)?,
            },
            asks::FINISH => Request::Finish {
                txn: txn(input)?,
                primary: key(input)?,
                expect: option(input, ts)?,
                outcome: outcome(input)?,
                stamp: ts(input)?,
                keys: list(input, key)?,
            },
            asks::STATUS => Request::Status { txn: txn(input)?, primary: key(input)? },
            asks::PROBE => Request::Probe {
                txn: txn(input)?,
                keys: some_keys(input)?,
                fence: option(input, ts)?,
            },
            asks::RESOLVE => Request::Resolve {
                txn: txn(input)?,
                keys: some_keys(input)?,
                outcome: outcome(input)?,
            },
            asks::FORGET => {
                let txns =
                    |input: &mut Reader<'_>| list(input, |input| Ok((txn(input)?, key(input)?)));
                Request::Forget { txns: some(input, "a transaction", txns)? }
            }
            asks::HEARTBEAT => Request::Heartbeat { txn: txn(input)?, key: key(input)? },
            _ => return Err(unknown),
        };
        input.finish("the end of the request")?;
        Ok(request)
    }
}

impl Response {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        match self {
            Response::Values(values) => {
                out.push(answers::VALUES);
                put_list(out, values, |out, value| put_option(out, value.as_ref(), put_version));
            }
            Response::Rows { rows, more } => {
                out.push(answers::ROWS);
                put_list(out, rows, |out, (key, version)| {
                    varint::put_bytes(out, key);
                    put_version(out, version);
                });
                put_option(out, more.as_deref(), varint::put_bytes);
            }
            Response::Blocked(obstacles) => {
                out.push(answers::BLOCKED);
                put_list(out, obstacles, |out, obstacle| {
                    varint::put_bytes(out, &obstacle.key);
                    put_txn(out, obstacle.txn);
                    varint::put_bytes(out, &obstacle.primary);
                    put_ts(out, obstacle.min_commit_ts);
                });
            }
            Response::Committed(ts) => {
                out.push(answers::COMMITTED);
                put_ts(out, *ts);
            }
            Response::Prewritten(ts) => {
                out.push(answers::PREWRITTEN);
                put_ts(out, *ts);
            }
            Response::Done => out.push(answers::DONE),
            Response::Record { record, alive } => {
                out.push(answers::RECORD);
                put_option(out, record.as_ref(), put_record);
                out.push(u8::from(*alive));
            }
            Response::Fates(fates) => {
                out.push(answers::FATES);
                put_list(out, fates, put_fate);
            }
            Response::Waits(txns) => {
                out.push(answers::WAITS);
                put_list(out, txns, |out, txn| put_txn(out, *txn));
            }
            Response::Refused(refusal) => {
                out.push(answers::REFUSED);
                put_refusal(out, refusal);
            }
            Response::NotMine => out.push(answers::NOT_MINE),
            Response::Unknown => out.push(answers::UNKNOWN),
            Response::Unavailable(why) => {
                out.push(answers::UNAVAILABLE);
                varint::put_bytes(out, why.as_bytes());
            }
        }
    }

    /// Decodes a response. Whether it fits what was asked is for whoever asked.
    ///
    /// # Errors
    /// The bytes are none, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Response, Malformed> {
        let input = &mut open(bytes, "version 1 of a response; a newer program may know it")?;
        let unknown = input.malformed("a known kind of response");
        let response = match input.u8("a kind of response")? {
            answers::VALUES => Response::Values(list(input, |input| option(input, version))?),
            answers::ROWS => Response::Rows {
                rows: list(input, |input| Ok((key(input)?, version(input)?)))?,
                more: option(input, key)?,
            },
            // Whoever is blocked by nothing would ask again at once, for ever.
            answers::BLOCKED => {
                Response::Blocked(some(input, "an obstacle", |input| list(input, obstacle))?)
            }
            answers::COMMITTED => Response::Committed(ts(input)?),
            answers::PREWRITTEN => Response::Prewritten(ts(input)?),
            answers::DONE => Response::Done,
            answers::RECORD => {
                Response::Record { record: option(input, record)?, alive: flag(input)? }
            }
            answers::FATES => Response::Fates(list(input, fate)?),
            answers::WAITS => Response::Waits(list(input, txn)?),
            answers::REFUSED => Response::Refused(refusal(input)?),
            answers::NOT_MINE => Response::NotMine,
            answers::UNKNOWN => Response::Unknown,
            answers::UNAVAILABLE => Response::Unavailable(sentence(input)?),
            _ => return Err(unknown),
        };
        input.finish("the end of the response")?;
        Ok(response)
    }
}

// ---- writing ----

fn put_ts(out: &mut Vec<u8>, ts: Timestamp) {
    out.extend_from_slice(&ts.0.to_le_bytes());
}

fn put_txn(out: &mut Vec<u8>, txn: TxnId) {
    out.extend_from_slice(&txn.0.to_le_bytes());
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn put_list<T>(out: &mut Vec<u8>, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    varint::put(out, list.len() as u64);
    list.iter().for_each(|element| put(out, element));
}

fn put_keys(out: &mut Vec<u8>, keys: &[Key]) {
    put_list(out, keys, |out, key| varint::put_bytes(out, key));
}

fn put_span(out: &mut Vec<u8>, span: &Span) {
    varint::put_bytes(out, &span.start);
    varint::put_bytes(out, &span.end);
}

fn put_value(out: &mut Vec<u8>, value: Option<&[u8]>) {
    put_option(out, value, varint::put_bytes);
}

fn put_write(out: &mut Vec<u8>, write: &Write) {
    varint::put_bytes(out, &write.key);
    put_value(out, write.value.as_deref());
}

fn put_version(out: &mut Vec<u8>, version: &Version) {
    put_ts(out, version.ts);
    put_value(out, version.value.as_deref());
}

fn put_reads(out: &mut Vec<u8>, reads: &ReadSet) {
    put_keys(out, &reads.keys);
    put_list(out, &reads.spans, put_span);
    put_list(out, &reads.locked, |out, (key, found)| {
        varint::put_bytes(out, key);
        put_ts(out, *found);
    });
}

fn put_record(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Staged { commit_ts, isolation, keys } => {
            out.push(parts::RECORD_STAGED);
            put_ts(out, *commit_ts);
            out.push(isolation_number(*isolation));
            put_keys(out, keys);
        }
        Record::Committed(ts) => {
            out.push(parts::RECORD_COMMITTED);
            put_ts(out, *ts);
        }
        Record::Aborted => out.push(parts::RECORD_ABORTED),
    }
}

fn put_outcome(out: &mut Vec<u8>, outcome: Outcome) {
    match outcome {
        Outcome::Committed(ts) => {
            out.push(parts::OUTCOME_COMMITTED);
            put_ts(out, ts);
        }
        Outcome::Aborted => out.push(parts::OUTCOME_ABORTED),
    }
}

fn put_fate(out: &mut Vec<u8>, fate: &Fate) {
    match *fate {
        Fate::Intent { min_commit_ts } => {
            out.push(parts::FATE_INTENT);
            put_ts(out, min_commit_ts);
        }
        Fate::Version { ts } => {
            out.push(parts::FATE_VERSION);
            put_ts(out, ts);
        }
        Fate::Fenced => out.push(parts::FATE_FENCED),
        Fate::Missing => out.push(parts::FATE_MISSING),
    }
}

fn put_refusal(out: &mut Vec<u8>, refusal: &Refusal) {
    match refusal {
        Refusal::WriteConflict { key } => {
            out.push(parts::REFUSED_WRITE_CONFLICT);
            varint::put_bytes(out, key);
        }
        Refusal::ReadConflict { key } => {
            out.push(parts::REFUSED_READ_CONFLICT);
            varint::put_bytes(out, key);
        }
        Refusal::Fenced => out.push(parts::REFUSED_FENCED),
        Refusal::Deadlock => out.push(parts::REFUSED_DEADLOCK),
        Refusal::SnapshotTooOld => out.push(parts::REFUSED_SNAPSHOT_TOO_OLD),
        Refusal::TooLarge(why) => {
            out.push(parts::REFUSED_TOO_LARGE);
            varint::put_bytes(out, why.as_bytes());
        }
    }
}

// ---- reading ----

/// Checks the version.
fn open<'a>(bytes: &'a [u8], expected: &'static str) -> Result<Reader<'a>, Malformed> {
    let mut input = Reader::new(bytes);
    match input.u8("a format version")? {
        VERSION => Ok(input),
        _ => Err(Malformed { offset: 0, expected }),
    }
}

fn ts(input: &mut Reader<'_>) -> Result<Timestamp, Malformed> {
    Ok(Timestamp(input.u64("a timestamp")?))
}

fn txn(input: &mut Reader<'_>) -> Result<TxnId, Malformed> {
    Ok(TxnId(u128::from_le_bytes(input.array("a transaction")?)))
}

fn flag(input: &mut Reader<'_>) -> Result<bool, Malformed> {
    let neither = input.malformed("a flag of 0 or 1");
    match input.u8("a flag")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(neither),
    }
}

fn sentence(input: &mut Reader<'_>) -> Result<String, Malformed> {
    let garbled = input.malformed("a sentence in UTF-8");
    let bytes = input.bytes("a sentence")?;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| garbled)
}

fn option<T>(
    input: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    if flag(input)? { read(input).map(Some) } else { Ok(None) }
}

/// Reads a list. No room is made for an announced number: each element has to be there, and takes a
/// byte at least.
fn list<T>(
    input: &mut Reader<'_>,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = input.varint("how many follow")?;
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(read(input)?);
    }
    Ok(list)
}

/// Reads a list as [`list`] does, whose elements ascend by a key, each at most once.
fn ascending<T>(
    input: &mut Reader<'_>,
    expected: &'static str,
    read: impl Fn(&mut Reader<'_>) -> Result<T, Malformed>,
    by: impl Fn(&T) -> &Key,
) -> Result<Vec<T>, Malformed> {
    let count = input.varint("how many follow")?;
    let mut list: Vec<T> = Vec::new();
    for _ in 0..count {
        let unordered = input.malformed(expected);
        let element = read(input)?;
        if list.last().is_some_and(|last| by(last) >= by(&element)) {
            return Err(unordered);
        }
        list.push(element);
    }
    Ok(list)
}

/// Reads a list that is not empty.
fn some<T>(
    input: &mut Reader<'_>,
    expected: &'static str,
    read: impl FnOnce(&mut Reader<'_>) -> Result<Vec<T>, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let empty = input.malformed(expected);
    let list = read(input)?;
    if list.is_empty() { Err(empty) } else { Ok(list) }
}

/// Reads a key: it has a place, and a name in the tree.
fn key(input: &mut Reader<'_>) -> Result<Key, Malformed> {
    let none = input.malformed("a key with a place, not too long for the tree");
    let key = input.bytes("a key")?;
    if has_place(key) && key.len() <= MAX_KEY { Ok(key.to_vec()) } else { Err(none) }
}

fn has_place(key: &[u8]) -> bool {
    match place_of(key) {
        Some(RoutingKey::Slot(slot)) => slot < SLOTS,
        Some(RoutingKey::Ordered { .. } | RoutingKey::End) => true,
        None => false,
    }
}

fn some_keys(input: &mut Reader<'_>) -> Result<Vec<Key>, Malformed> {
    some(input, "a key", |input| list(input, key))
}

fn ascending_keys(input: &mut Reader<'_>) -> Result<Vec<Key>, Malformed> {
    ascending(input, "a key above the one before", key, |key| key)
}

/// Reads a range as routing cuts them: it is not empty and lies in one keyspace.
fn span(input: &mut Reader<'_>) -> Result<Span, Malformed> {
    let none = input.malformed("a range of keys of one keyspace, its start before its end");
    let start = input.bytes("the start of a range")?;
    let end = input.bytes("the end of a range")?;
    let is_range = has_place(start) && start < end && ends_in_keyspace(start, end);
    if is_range { Ok(Span { start: start.to_vec(), end: end.to_vec() }) } else { Err(none) }
}

/// Returns whether the end of a range lies in the keyspace of its start, or is where the next begins.
fn ends_in_keyspace(start: &[u8], end: &[u8]) -> bool {
    let head = |bytes: &[u8]| bytes.first_chunk::<4>().map(|id| u32::from_be_bytes(*id));
    let (Some(of), Some(ends_in)) = (head(start), head(end)) else { return false };
    if of != ends_in {
        return of.checked_add(1) == Some(ends_in) && end.len() == 4;
    }
    // Behind the last slot there is an end, but no key.
    let slot = end.get(4..6).map(|slot| u16::from_be_bytes([slot[0], slot[1]]));
    !is_slotted(of) || slot.is_some_and(|slot| slot <= SLOTS)
}

fn value(input: &mut Reader<'_>) -> Result<Option<Vec<u8>>, Malformed> {
    option(input, |input| Ok(input.bytes("a value")?.to_vec()))
}

fn version(input: &mut Reader<'_>) -> Result<Version, Malformed> {
    Ok(Version { ts: ts(input)?, value: value(input)? })
}

fn writes(input: &mut Reader<'_>) -> Result<Vec<Write>, Malformed> {
    let write = |input: &mut Reader<'_>| Ok(Write { key: key(input)?, value: value(input)? });
    ascending(input, "a write above the one before", write, |write| &write.key)
}

fn reads(input: &mut Reader<'_>) -> Result<ReadSet, Malformed> {
    let found = |input: &mut Reader<'_>| Ok((key(input)?, ts(input)?));
    Ok(ReadSet {
        keys: list(input, key)?,
        spans: list(input, span)?,
        locked: ascending(input, "a locked key above the one before", found, |(key, _)| key)?,
    })
}

fn record(input: &mut Reader<'_>) -> Result<Record, Malformed> {
    let unknown = input.malformed("a known kind of record");
    match input.u8("a kind of record")? {
        parts::RECORD_STAGED => Ok(Record::Staged {
            commit_ts: ts(input)?,
            isolation: isolation(input)?,
            // One without keys would count as committed: each of its intents is in place.
            keys: some(input, "a key of a staged record", ascending_keys)?.into(),
        }),
        parts::RECORD_COMMITTED => Ok(Record::Committed(ts(input)?)),
        parts::RECORD_ABORTED => Ok(Record::Aborted),
        _ => Err(unknown),
    }
}

fn outcome(input: &mut Reader<'_>) -> Result<Outcome, Malformed> {
    let unknown = input.malformed("a known outcome");
    match input.u8("an outcome")? {
        parts::OUTCOME_COMMITTED => Ok(Outcome::Committed(ts(input)?)),
        parts::OUTCOME_ABORTED => Ok(Outcome::Aborted),
        _ => Err(unknown),
    }
}

fn obstacle(input: &mut Reader<'_>) -> Result<Obstacle, Malformed> {
    Ok(Obstacle {
        key: key(input)?,
        txn: txn(input)?,
        primary: key(input)?,
        min_commit_ts: ts(input)?,
    })
}

fn fate(input: &mut Reader<'_>) -> Result<Fate, Malformed> {
    let unknown = input.malformed("a known fate");
    match input.u8("a fate")? {
        parts::FATE_INTENT => Ok(Fate::Intent { min_commit_ts: ts(input)? }),
        parts::FATE_VERSION => Ok(Fate::Version { ts: ts(input)? }),
        parts::FATE_FENCED => Ok(Fate::Fenced),
        parts::FATE_MISSING => Ok(Fate::Missing),
        _ => Err(unknown),
    }
}

fn refusal(input: &mut Reader<'_>) -> Result<Refusal, Malformed> {
    let unknown = input.malformed("a known refusal");
    // A conflict names a key or the start of a range, for people: it is asked for nowhere.
    let named = |input: &mut Reader<'_>| Ok(input.bytes("a key or the start of a range")?.to_vec());
    match input.u8("a refusal")? {
        parts::REFUSED_WRITE_CONFLICT => Ok(Refusal::WriteConflict { key: named(input)? }),
        parts::REFUSED_READ_CONFLICT => Ok(Refusal::ReadConflict { key: named(input)? }),
        parts::REFUSED_FENCED => Ok(Refusal::Fenced),
        parts::REFUSED_DEADLOCK => Ok(Refusal::Deadlock),
        parts::REFUSED_SNAPSHOT_TOO_OLD => Ok(Refusal::SnapshotTooOld),
        parts::REFUSED_TOO_LARGE => Ok(Refusal::TooLarge(sentence(input)?)),
        _ => Err(unknown),
    }
}

#[cfg(test)]
mod tests;
