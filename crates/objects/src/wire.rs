//! Calls and replies as bytes: commands on their way to a shard on another engine.
//!
//! ```text
//!   call    | version 1 | slot 2 | protocol | touch | durability | moment | work ...
//!   reply   | version 1 | kind | fields of the kind ...
//! ```
//!
//! Lengths, counts and numbers of databases are varints, everything longer than a byte is
//! little-endian (docs/formats/request.md). A command travels by its name and with all of its
//! arguments, the first of which is the name as its client wrote it.
//!
//! # What decoding proves
//! The program evaluates what was decoded as if its own front end had asked, so what that checks is
//! checked here: each command is one of named keys and takes so many arguments, databases exist,
//! watched keys are not too long, the slot exists and is that of one of the keys.
//!
//! # What it cannot prove
//! - That *all* keys are on the shard that has the slot. Evaluation does not ask either, so whoever
//!   takes calls from outside holds [`Call::keys`] against the range of the shard.
//! - That a moment was drawn from the oracle, and that a reply is one in the protocol asked for.

use std::fmt;

use atoll_encoding::{Malformed, Reader, varint};
use atoll_mvcc::Timestamp;
use atoll_mvcc::keys::{SLOTS, slot};
use atoll_redis::Durability;
use atoll_redis::layout::MAX_KEY;
use atoll_redis::store::DATABASES;
use atoll_redis::table::{Class, Command, Index};
use atoll_resp::request::MAX_REQUEST;
use atoll_resp::{OwnedRequest, Protocol, Request, Span};

use crate::call::{Call, Encoded, Item, Moment, Reply, Watched, Work};

/// Version of calls and replies alike.
const VERSION: u8 = 1;

/// Longest name of a command that is looked for: longer than any, short enough to be told.
const MAX_NAME: usize = 64;

// The numbers are on the wire: never change one.

const WORK_ONE: u8 = 1;
const WORK_UNIT: u8 = 2;
const WORK_VERSIONS: u8 = 3;

const PROTOCOL_RESP2: u8 = 2;
const PROTOCOL_RESP3: u8 = 3;

const DURABILITY_SYNCED: u8 = 1;
const DURABILITY_INTERVAL: u8 = 2;
const DURABILITY_BUFFERED: u8 = 3;

const MOMENT_NOW: u8 = 1;
const MOMENT_AT: u8 = 2;
const MOMENT_PAST: u8 = 3;

const REPLY_ONE: u8 = 1;
const REPLY_UNIT: u8 = 2;
const REPLY_CHANGED: u8 = 3;
const REPLY_VERSIONS: u8 = 4;
const REPLY_FAILED: u8 = 5;

/// Why a call of another engine is not evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// It is none, or of a newer version.
    Malformed(Malformed),
    /// This engine has no such command, or it does not take so many arguments, or not named keys:
    /// whoever asks is of another version.
    UnknownCommand {
        /// The full name.
        name: Box<[u8]>,
        /// How many arguments, the name included.
        args: usize,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Malformed(malformed) => malformed.fmt(f),
            CallError::UnknownCommand { name, args } => write!(
                f,
                "this engine does not know the command '{}' with {args} arguments; upgrade it",
                name.escape_ascii()
            ),
        }
    }
}

impl std::error::Error for CallError {}

impl From<Malformed> for CallError {
    fn from(malformed: Malformed) -> CallError {
        CallError::Malformed(malformed)
    }
}

impl Call {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Call { work, slot, protocol, touch, durability, moment } = self;
        out.push(VERSION);
        out.extend_from_slice(&slot.to_le_bytes());
        out.push(match protocol {
            Protocol::Resp2 => PROTOCOL_RESP2,
            Protocol::Resp3 => PROTOCOL_RESP3,
        });
        out.push(u8::from(*touch));
        out.push(match durability {
            Durability::Synced => DURABILITY_SYNCED,
            Durability::Interval => DURABILITY_INTERVAL,
            Durability::Buffered => DURABILITY_BUFFERED,
        });
        match moment {
            Moment::Now => out.push(MOMENT_NOW),
            Moment::At(at) => {
                out.push(MOMENT_AT);
                put_u64(out, at.0);
            }
            Moment::Past(at) => {
                out.push(MOMENT_PAST);
                put_u64(out, at.0);
            }
        }
        match work {
            Work::One(item) => {
                out.push(WORK_ONE);
                put_item(out, item);
            }
            Work::Unit { items, watched } => {
                out.push(WORK_UNIT);
                put_list(out, items, put_item);
                put_list(out, watched, |out, watched| {
                    varint::put(out, watched.db as u64);
                    varint::put_bytes(out, &watched.key);
                    put_u64(out, watched.version);
                });
            }
            Work::Versions { db, keys } => {
                out.push(WORK_VERSIONS);
                varint::put(out, *db as u64);
                put_list(out, keys, |out, key| varint::put_bytes(out, key));
            }
        }
    }

    /// Decodes a call that a program can evaluate, see [the module](crate::wire).
    ///
    /// # Errors
    /// The bytes are none, or of a newer version; a command is unknown.
    pub fn decode(bytes: &[u8], commands: &Index) -> Result<Call, CallError> {
        let input = &mut open(bytes, "version 1 of a call; a newer program may know it")?;
        let foreign = input.malformed("the slot of one of the keys, below 16384");
        let slot = u16::from_le_bytes(input.array("a slot")?);
        let protocol = protocol(input)?;
        let touch = flag(input)?;
        let durability = durability(input)?;
        let moment = moment(input)?;
        let work = work(input, commands)?;
        input.finish("the end of the call")?;
        let call = Call { work, slot, protocol, touch, durability, moment };
        if call.slot < SLOTS && has_slot(&call) { Ok(call) } else { Err(foreign.into()) }
    }
}

impl Reply {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        match self {
            Reply::One(reply) => {
                out.push(REPLY_ONE);
                varint::put_bytes(out, reply);
            }
            Reply::Unit(Some(replies)) => {
                out.push(REPLY_UNIT);
                put_list(out, replies, |out, reply| varint::put_bytes(out, reply));
            }
            Reply::Unit(None) => out.push(REPLY_CHANGED),
            Reply::Versions(versions) => {
                out.push(REPLY_VERSIONS);
                put_list(out, versions, |out, version| put_u64(out, *version));
            }
            Reply::Failed(error) => {
                out.push(REPLY_FAILED);
                varint::put_bytes(out, error);
            }
        }
    }

    /// Decodes a reply. Whether it fits what was asked is for whoever asked.
    ///
    /// # Errors
    /// The bytes are none, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Reply, Malformed> {
        let input = &mut open(bytes, "version 1 of a reply; a newer program may know it")?;
        let unknown = input.malformed("a known kind of reply");
        let encoded = |input: &mut Reader<'_>| Ok(input.bytes("an encoded reply")?.to_vec());
        let reply = match input.u8("a kind of reply")? {
            REPLY_ONE => Reply::One(Encoded::copy(input.bytes("an encoded reply")?)),
            REPLY_UNIT => Reply::Unit(Some(list(input, encoded)?)),
            REPLY_CHANGED => Reply::Unit(None),
            REPLY_VERSIONS => Reply::Versions(list(input, |input| input.u64("a version"))?),
            REPLY_FAILED => Reply::Failed(encoded(input)?),
            _ => return Err(unknown),
        };
        input.finish("the end of the reply")?;
        Ok(reply)
    }
}

// ---- writing ----

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_list<T>(out: &mut Vec<u8>, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    varint::put(out, list.len() as u64);
    list.iter().for_each(|element| put(out, element));
}

fn put_item(out: &mut Vec<u8>, item: &Item) {
    varint::put_bytes(out, item.command.name.as_bytes());
    varint::put(out, item.db as u64);
    let args = item.request.as_request().tail(0);
    varint::put(out, args.len() as u64);
    args.for_each(|arg| varint::put_bytes(out, arg));
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

fn flag(input: &mut Reader<'_>) -> Result<bool, Malformed> {
    let neither = input.malformed("a flag of 0 or 1");
    match input.u8("a flag")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(neither),
    }
}

/// Reads a list. No room is made for an announced number: each element has to be there, and takes a
/// byte at least.
fn list<T, E: From<Malformed>>(
    input: &mut Reader<'_>,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, E>,
) -> Result<Vec<T>, E> {
    let count = input.varint("how many follow")?;
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(read(input)?);
    }
    Ok(list)
}

fn protocol(input: &mut Reader<'_>) -> Result<Protocol, Malformed> {
    let unknown = input.malformed("a known protocol");
    match input.u8("a protocol")? {
        PROTOCOL_RESP2 => Ok(Protocol::Resp2),
        PROTOCOL_RESP3 => Ok(Protocol::Resp3),
        _ => Err(unknown),
    }
}

fn durability(input: &mut Reader<'_>) -> Result<Durability, Malformed> {
    let unknown = input.malformed("a known durability");
    match input.u8("a durability")? {
        DURABILITY_SYNCED => Ok(Durability::Synced),
        DURABILITY_INTERVAL => Ok(Durability::Interval),
        DURABILITY_BUFFERED => Ok(Durability::Buffered),
        _ => Err(unknown),
    }
}

fn moment(input: &mut Reader<'_>) -> Result<Moment, Malformed> {
    let unknown = input.malformed("a known moment");
    match input.u8("a moment")? {
        MOMENT_NOW => Ok(Moment::Now),
        MOMENT_AT => Ok(Moment::At(Timestamp(input.u64("a timestamp")?))),
        MOMENT_PAST => Ok(Moment::Past(Timestamp(input.u64("a timestamp")?))),
        _ => Err(unknown),
    }
}

fn work(input: &mut Reader<'_>, commands: &Index) -> Result<Work, CallError> {
    let unknown = input.malformed("a known kind of work");
    match input.u8("a kind of work")? {
        WORK_ONE => Ok(Work::One(item(input, commands)?)),
        WORK_UNIT => Ok(Work::Unit {
            items: list(input, |input| item(input, commands))?,
            watched: list(input, watched)?,
        }),
        WORK_VERSIONS => Ok(Work::Versions { db: database(input)?, keys: list(input, key)? }),
        _ => Err(unknown.into()),
    }
}

fn database(input: &mut Reader<'_>) -> Result<usize, Malformed> {
    let none = input.malformed("a database below 16");
    let db = usize::try_from(input.varint("a database")?).unwrap_or(usize::MAX);
    if db < DATABASES { Ok(db) } else { Err(none) }
}

fn key(input: &mut Reader<'_>) -> Result<Box<[u8]>, Malformed> {
    let too_long = input.malformed("a key that is not too long");
    let key = input.bytes("a key")?;
    if key.len() <= MAX_KEY { Ok(Box::from(key)) } else { Err(too_long) }
}

fn watched(input: &mut Reader<'_>) -> Result<Watched, Malformed> {
    Ok(Watched { db: database(input)?, key: key(input)?, version: input.u64("a version")? })
}

fn item(input: &mut Reader<'_>, commands: &Index) -> Result<Item, CallError> {
    let too_long = input.malformed("the name of a command");
    let name = input.bytes("the name of a command")?;
    if name.len() > MAX_NAME {
        return Err(too_long.into());
    }
    let db = database(input)?;
    let request = arguments(input)?;
    let args = request.as_request().len();
    // Clients may write names as they like; on the wire there is one way.
    let is_it = |command: &&Command| {
        command.name.as_bytes() == name && command.class == Class::Data && command.accepts(args)
    };
    match commands.find(name).filter(is_it) {
        Some(command) => Ok(Item { command, request, db }),
        None => Err(CallError::UnknownCommand { name: Box::from(name), args }),
    }
}

fn arguments(input: &mut Reader<'_>) -> Result<OwnedRequest, Malformed> {
    let too_long = input.malformed("arguments that are not longer than a request");
    let count = input.varint("how many arguments follow")?;
    let (mut behind, start) = (input.clone(), input.offset());
    // No room is made for an announced number here either.
    let mut spans = Vec::new();
    let mut end = 0;
    for _ in 0..count {
        let arg = input.bytes("an argument")?;
        end = input.offset() - start;
        if end > MAX_REQUEST {
            return Err(too_long);
        }
        spans.push(Span { start: (end - arg.len()) as u32, end: end as u32 });
    }
    // Copied once, in one piece, with the lengths between them.
    let bytes = behind.take(end, "the arguments")?;
    Ok(Request::new(bytes, &spans).to_owned())
}

/// Returns whether the slot is that of one of the keys, if there are any.
fn has_slot(call: &Call) -> bool {
    let keys = call.keys();
    keys.is_empty() || keys.into_iter().any(|key| slot(key) == call.slot)
}

#[cfg(test)]
mod tests;
