//! Commands on named keys: pure functions on a transaction.
//!
//! [`run`] is the only entrance: a call, a transaction, a buffer for the reply. It knows no
//! session and no server, so it runs wherever the keys are: in the executor's turn, in a shard, in
//! a transaction over several. Everything a reply depends on is in the [`DataCall`] or read from
//! the [`Tx`].

mod bitfield;
mod bits;
mod expire;
mod inspect;
mod keys;
mod lcs;
mod numbers;
mod strings;

use std::borrow::Cow;

use atoll_resp::{Protocol, ReplyWriter, Request};

use crate::error::{self, Outcome};
use crate::layout::{MAX_KEY, MAX_STRING, MAX_WHOLE};
use crate::object::{Kind, Meta, Object};
use crate::table::{Class, Command, Id};
use crate::text;
use crate::tx::{Looked, Tx};

use expire::Unit;

/// One execution of one command.
#[derive(Clone, Copy, Debug)]
pub struct DataCall<'a> {
    /// The command; its class is [`Class::Data`].
    pub command: &'static Command,
    /// Its arguments, the name first; their number fits the command's arity.
    pub request: Request<'a>,
    /// The protocol of the reply.
    pub protocol: Protocol,
    /// The selected database.
    pub db: usize,
    /// Whether reads count as such; CLIENT NO-TOUCH says no.
    pub touch: bool,
}

/// Executes a command. Appends its reply to `out`, or returns the error that replaces whatever was
/// appended.
///
/// # Errors
/// What the client is told instead of a reply. Nothing was written then.
pub async fn run<T: Tx>(call: &DataCall<'_>, tx: &mut T, out: &mut Vec<u8>) -> Outcome {
    debug_assert_eq!(call.command.class, Class::Data);
    let mut data = Data { call, tx, out };
    match call.command.id {
        Id::Append => data.append().await,
        Id::Bitcount => data.bitcount().await,
        Id::Bitfield => data.bitfield(true).await,
        Id::BitfieldRo => data.bitfield(false).await,
        Id::Bitop => data.bitop().await,
        Id::Bitpos => data.bitpos().await,
        Id::Copy => data.copy().await,
        Id::Decr => data.add(Some(-1)).await,
        Id::Decrby => data.decrby().await,
        Id::Del | Id::Unlink => data.del().await,
        Id::Exists => data.exists().await,
        Id::Expire => data.expire(Unit::Seconds).await,
        Id::Expireat => data.expire(Unit::UnixSeconds).await,
        Id::Expiretime => data.expiretime(1_000).await,
        Id::Get => data.get().await,
        Id::Getbit => data.getbit().await,
        Id::Getdel => data.getdel().await,
        Id::Getex => data.getex().await,
        Id::Getrange | Id::Substr => data.getrange().await,
        Id::Getset => data.getset().await,
        Id::Incr => data.add(Some(1)).await,
        Id::Incrby => data.incrby().await,
        Id::Incrbyfloat => data.incrbyfloat().await,
        Id::Lcs => data.lcs().await,
        Id::MemoryUsage => data.memory_usage().await,
        Id::Mget => data.mget().await,
        Id::Move => data.move_to_db().await,
        Id::Mset => data.mset().await,
        Id::Msetnx => data.msetnx().await,
        Id::ObjectEncoding => data.object_encoding().await,
        Id::ObjectFreq => data.object_freq().await,
        Id::ObjectIdletime => data.object_idletime().await,
        Id::ObjectMeta => data.object_meta().await,
        Id::ObjectRefcount => data.object_refcount().await,
        Id::Persist => data.persist().await,
        Id::Pexpire => data.expire(Unit::Milliseconds).await,
        Id::Pexpireat => data.expire(Unit::UnixMilliseconds).await,
        Id::Pexpiretime => data.expiretime(1).await,
        Id::Psetex => data.setex(Unit::Milliseconds).await,
        Id::Pttl => data.ttl(1).await,
        Id::Rename => data.rename(true).await,
        Id::Renamenx => data.rename(false).await,
        Id::Set => data.set().await,
        Id::Setbit => data.setbit().await,
        Id::Setex => data.setex(Unit::Seconds).await,
        Id::Setnx => data.setnx().await,
        Id::Setrange => data.setrange().await,
        Id::Strlen => data.strlen().await,
        Id::Touch => data.touch().await,
        Id::Ttl => data.ttl(1_000).await,
        Id::Type => data.type_of().await,
        _ => Err(error::MISROUTED),
    }
}

/// A command under way.
struct Data<'c, T> {
    call: &'c DataCall<'c>,
    tx: &'c mut T,
    out: &'c mut Vec<u8>,
}

impl<'c, T: Tx> Data<'c, T> {
    /// Returns an argument that the arity check has proved to be there.
    fn arg(&self, index: usize) -> &'c [u8] {
        self.call.request.get(index).unwrap_or(&[])
    }

    /// Returns the number of arguments, the name included.
    fn args(&self) -> usize {
        self.call.request.len()
    }

    /// Returns an argument as an integer.
    fn int_arg(&self, index: usize) -> Outcome<i64> {
        atoll_resp::number::parse_i64(self.arg(index)).ok_or(error::NOT_AN_INTEGER)
    }

    /// Returns whether an argument is this word, whatever its case.
    fn is(&self, index: usize, word: &str) -> bool {
        self.arg(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Returns a key's name, which may be too long to be one.
    fn key(&self, index: usize) -> Outcome<&'c [u8]> {
        check_key(self.arg(index))
    }

    /// Returns the arguments from `first` on as keys.
    fn keys(&self, first: usize) -> Outcome<impl Iterator<Item = &'c [u8]> + Clone + use<'c, T>> {
        let keys = self.call.request.tail(first);
        keys.clone().try_for_each(|key| check_key(key).map(|_| ()))?;
        Ok(keys)
    }

    /// Returns a writer for the client's protocol.
    fn reply(&mut self) -> ReplyWriter<'_> {
        ReplyWriter::new(self.out, self.call.protocol)
    }

    /// Reads a key.
    async fn peek(&mut self, key: &[u8]) -> Outcome<Option<Object<T::Value>>> {
        self.tx.get(self.call.db, key).await.map_err(|error| error::unreadable(&error))
    }

    async fn peek_in(&mut self, db: usize, key: &[u8]) -> Outcome<Option<Object<T::Value>>> {
        self.tx.get(db, key).await.map_err(|error| error::unreadable(&error))
    }

    /// Reads a key, and counts whether it was there, as commands that only read do.
    async fn lookup(&mut self, key: &[u8]) -> Outcome<Option<Object<T::Value>>> {
        match self.tx.get(self.call.db, key).await {
            Ok(found) => {
                self.note(key, found.is_some());
                Ok(found)
            }
            Err(error) => Err(error::unreadable(&error)),
        }
    }

    /// Tells that the key was looked for.
    fn note(&mut self, key: &[u8], found: bool) {
        let looked = match found {
            true if self.call.touch => Looked::Read,
            true => Looked::Glimpsed,
            false => Looked::Missed,
        };
        self.tx.looked_up(self.call.db, key, looked);
    }

    /// Reads a key and counts whether it was there, without counting as a reader.
    async fn glimpse(&mut self, key: &[u8]) -> Outcome<Option<Object<T::Value>>> {
        let found = self.peek(key).await?;
        let looked = if found.is_some() { Looked::Glimpsed } else { Looked::Missed };
        self.tx.looked_up(self.call.db, key, looked);
        Ok(found)
    }

    /// Reads a key that has to hold a string.
    async fn lookup_string(&mut self, key: &[u8]) -> Outcome<Option<Object<T::Value>>> {
        self.lookup(key).await?.map(as_string).transpose()
    }

    /// As [`Self::lookup_string`], for commands that write.
    async fn peek_string(&mut self, key: &[u8]) -> Outcome<Option<Object<T::Value>>> {
        self.peek(key).await?.map(as_string).transpose()
    }

    /// Returns the bytes of a string.
    async fn whole<'o>(
        &mut self,
        key: &[u8],
        object: &'o Object<T::Value>,
    ) -> Outcome<Cow<'o, [u8]>> {
        if object.meta.generation.is_none() {
            return Ok(Cow::Borrowed(object.payload()));
        }
        let len = text::len(object);
        let mut joined = Vec::with_capacity(len);
        let join = &mut |piece: &[u8]| joined.extend_from_slice(piece);
        let read = text::pieces(self.tx, self.call.db, key, object, 0..len, join).await;
        read.map_err(|error| error::unreadable(&error))?;
        Ok(Cow::Owned(joined))
    }

    /// Replies with a string.
    async fn reply_string(&mut self, key: &[u8], object: &Object<T::Value>) -> Outcome {
        if object.meta.generation.is_none() {
            self.reply().bulk(object.payload());
            return Ok(());
        }
        self.reply_range(key, object, 0..text::len(object)).await
    }

    /// Replies with a part of a string.
    async fn reply_range(
        &mut self,
        key: &[u8],
        object: &Object<T::Value>,
        range: std::ops::Range<usize>,
    ) -> Outcome {
        let Data { call, tx, out } = self;
        ReplyWriter::new(out, call.protocol).bulk_header(range.len());
        let copy = &mut |piece: &[u8]| out.extend_from_slice(piece);
        let read = text::pieces(*tx, call.db, key, object, range, copy).await;
        read.map_err(|error| error::unreadable(&error))?;
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Replies with a string or with null.
    async fn reply_optional(&mut self, key: &[u8], object: &Option<Object<T::Value>>) -> Outcome {
        match object {
            Some(object) => self.reply_string(key, object).await,
            None => {
                self.reply().null();
                Ok(())
            }
        }
    }

    /// Prepares to overwrite a key whatever it holds; returns the metadata of the string that will
    /// be there. It keeps the time it was created at if the transaction can tell it.
    async fn claim(&mut self, key: &[u8]) -> Outcome<Meta> {
        let claimed = self.tx.claim(self.call.db, key).await;
        let created_us = claimed.map_err(|error| error::unreadable(&error))?;
        let now = self.tx.epoch_us();
        Ok(renew(created_us, now))
    }

    /// Returns the metadata of a string that overwrites what was read.
    fn successor(&self, found: Option<&Object<T::Value>>) -> Meta {
        renew(found.map(|found| found.meta.created_us), self.tx.epoch_us())
    }

    /// Writes a key. One whose deadline is due is removed instead: it would be absent anyway.
    fn put(&mut self, key: &[u8], meta: &Meta, payload: &[u8]) {
        self.put_in(self.call.db, key, meta, payload);
    }

    fn put_in(&mut self, db: usize, key: &[u8], meta: &Meta, payload: &[u8]) {
        match meta.deadline_ms {
            Some(deadline_ms) if deadline_ms <= self.tx.now_ms() => self.tx.remove(db, key),
            _ => self.tx.put(db, key, meta, payload),
        }
    }

    /// Writes a key that was read, with another deadline.
    fn put_deadline(
        &mut self,
        key: &[u8],
        object: &Object<T::Value>,
        deadline_ms: Option<u64>,
    ) -> Outcome {
        if object.meta.kind == Kind::Unknown {
            return Err(error::UNKNOWN_KIND);
        }
        let updated_us = self.tx.epoch_us().max(object.meta.created_us);
        let meta = Meta { deadline_ms, updated_us, ..object.meta };
        self.put(key, &meta, object.payload());
        Ok(())
    }
}

/// Returns the metadata of a string written at `now_us` over what was created at `created_us`.
fn renew(created_us: Option<u64>, now_us: u64) -> Meta {
    // A clock that was set back does not make a key younger than it is.
    let created_us = created_us.unwrap_or(now_us);
    Meta { created_us, updated_us: now_us.max(created_us), ..Meta::string(now_us) }
}

fn check_key(key: &[u8]) -> Outcome<&[u8]> {
    if key.len() > MAX_KEY { Err(error::key_too_long(key.len())) } else { Ok(key) }
}

/// Checks that a string of this length can be stored whole.
fn check_len(len: usize) -> Outcome {
    if len > MAX_WHOLE { Err(error::TOO_LONG) } else { Ok(()) }
}

/// Checks that a string may become this long by changes of its parts.
fn check_edited_len(len: usize) -> Outcome {
    if len > MAX_STRING { Err(error::TOO_LONG) } else { Ok(()) }
}

fn as_string<V>(object: Object<V>) -> Outcome<Object<V>> {
    match object.meta.kind {
        Kind::String => Ok(object),
        Kind::Unknown => Err(error::UNKNOWN_KIND),
    }
}
