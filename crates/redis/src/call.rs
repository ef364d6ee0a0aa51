//! One execution of one command: its arguments, its client, and what it may do to the keyspace.

use std::ops::Deref;
use std::rc::Rc;

use atoll_resp::{ReplyWriter, Request};

use crate::commands::strings::Unit;
use crate::error::{self, Outcome};
use crate::executor::Executor;
use crate::layout::{self, KIND_STRING};
use crate::session::Session;
use crate::store::Store;
use crate::table::{Command, Id};
use crate::writes::Staged;

/// Longest string: what a request may carry, less room for what storage adds to it.
pub(crate) const MAX_STRING: usize = (512 << 20) - 64;

/// A command under way.
pub(crate) struct Call<'a, S: Store> {
    pub executor: &'a mut Executor<S>,
    pub session: &'a mut Session,
    pub request: Request<'a>,
    pub command: &'static Command,
}

/// A live record.
pub(crate) struct Found<V> {
    pub bytes: Bytes<V>,
    pub deadline_ms: Option<u64>,
}

/// A record's bytes, wherever they lie.
pub(crate) enum Bytes<V> {
    Stored(V),
    Staged(Rc<Vec<u8>>),
}

impl<V: Deref<Target = [u8]>> Found<V> {
    /// Returns the record's bytes.
    pub fn record(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Stored(value) => value,
            Bytes::Staged(record) => record,
        }
    }

    /// Returns a string's value.
    pub fn string(&self) -> Outcome<&[u8]> {
        match self.record() {
            [KIND_STRING, value @ ..] => Ok(value),
            _ => Err(error::UNKNOWN_KIND),
        }
    }
}

impl<'a, S: Store> Call<'a, S> {
    /// Executes the command. An error replaces whatever it has replied.
    pub async fn run(mut self) -> Outcome {
        match self.command.id {
            Id::Append => self.append().await,
            Id::Auth => self.auth(),
            Id::ClientGetname => self.client_getname(),
            Id::ClientId => self.client_id(),
            Id::ClientInfo => self.client_info(),
            Id::ClientKill => self.client_kill(),
            Id::ClientList => self.client_list(),
            Id::ClientNoEvict => self.client_no_evict(),
            Id::ClientNoTouch => self.client_no_touch(),
            Id::ClientReply => self.client_reply(),
            Id::ClientSetinfo => self.client_setinfo(),
            Id::ClientSetname => self.client_setname(),
            Id::Command => self.command_all(),
            Id::CommandCount => self.command_count(),
            Id::CommandDocs => self.command_docs(),
            Id::CommandGetkeys => self.command_getkeys(),
            Id::CommandInfo => self.command_info(),
            Id::CommandList => self.command_list(),
            Id::ConfigGet => self.config_get(),
            Id::ConfigResetstat => self.config_resetstat(),
            Id::ConfigSet => self.config_set(),
            Id::ClientHelp | Id::CommandHelp | Id::ConfigHelp => self.help(),
            // Their arity demands a subcommand, which has a row of its own.
            Id::Client | Id::Config => Err(error::wrong_arity(self.command.name)),
            Id::Dbsize => self.dbsize().await,
            Id::Decr => self.add(Some(-1)).await,
            Id::Decrby => self.decrby().await,
            Id::Del | Id::Unlink => self.del().await,
            Id::Echo => self.echo(),
            Id::Exists => self.exists().await,
            Id::Expire => self.expire(1_000).await,
            Id::Flushall => self.flushall(),
            Id::Flushdb => self.flushdb(),
            Id::Get => self.get().await,
            Id::Getdel => self.getdel().await,
            Id::Getex => self.getex().await,
            Id::Hello => self.hello(),
            Id::Incr => self.add(Some(1)).await,
            Id::Incrby => self.incrby().await,
            Id::Info => self.info().await,
            Id::Keys => self.keys().await,
            Id::Mget => self.mget().await,
            Id::Mset => self.mset(),
            Id::Persist => self.persist().await,
            Id::Pexpire => self.expire(1).await,
            Id::Ping => self.ping(),
            Id::Psetex => self.setex(Unit::Milliseconds),
            Id::Pttl => self.ttl(1).await,
            Id::Quit => self.quit(),
            Id::Reset => self.reset(),
            Id::Scan => self.scan().await,
            Id::Select => self.select(),
            Id::Set => self.set().await,
            Id::Setex => self.setex(Unit::Seconds),
            Id::Setnx => self.setnx().await,
            Id::Strlen => self.strlen().await,
            Id::Ttl => self.ttl(1_000).await,
            Id::Type => self.type_of().await,
        }
    }

    /// Returns an argument that the arity check has proved to be there.
    pub fn arg(&self, index: usize) -> &'a [u8] {
        self.request.get(index).unwrap_or(&[])
    }

    /// Returns an argument as an integer.
    pub fn int_arg(&self, index: usize) -> Outcome<i64> {
        atoll_resp::number::parse_i64(self.arg(index)).ok_or(error::NOT_AN_INTEGER)
    }

    /// Returns whether an argument is this word, whatever its case.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.arg(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Returns a writer for the client's protocol.
    pub fn reply(&mut self) -> ReplyWriter<'_> {
        self.session.reply()
    }

    /// Reads a live record.
    pub async fn peek(&mut self, key: &[u8]) -> Outcome<Option<Found<S::Value>>> {
        self.executor.read(self.session.db, key).await
    }

    /// Reads a live record and counts whether it was there, as commands that only read do.
    pub async fn lookup(&mut self, key: &[u8]) -> Outcome<Option<Found<S::Value>>> {
        let found = self.peek(key).await?;
        let stats = &self.executor.stats;
        match &found {
            Some(_) => stats.keyspace_hits.add(1),
            None => stats.keyspace_misses.add(1),
        }
        Ok(found)
    }

    /// Checks that a key and a string of this length can be stored.
    pub fn check(&mut self, key: &[u8], len: usize) -> Outcome {
        if len > MAX_STRING {
            return Err(error::TOO_LONG);
        }
        self.executor.locate(key)
    }

    /// Stages a string. A deadline that is due removes the key instead: it would be absent anyway.
    pub fn put(&mut self, key: &[u8], value: &[u8], deadline_ms: Option<u64>) -> Outcome {
        self.check(key, value.len())?;
        self.stage(Rc::new(layout::string_record(value)), deadline_ms);
        Ok(())
    }

    /// Stages a record for the key under way.
    pub fn stage(&mut self, record: Rc<Vec<u8>>, deadline_ms: Option<u64>) {
        let staged = self.executor.is_live(deadline_ms).then_some(Staged { record, deadline_ms });
        let Executor { writes, key, dependent, .. } = &mut *self.executor;
        writes.put(self.session.db, key, staged);
        *dependent = true;
    }

    /// Stages the removal of a key.
    pub fn remove(&mut self, key: &[u8]) -> Outcome {
        self.executor.locate(key)?;
        let Executor { writes, key, dependent, .. } = &mut *self.executor;
        writes.put(self.session.db, key, None);
        *dependent = true;
        Ok(())
    }
}
