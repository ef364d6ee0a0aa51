//! The program of a shard: Redis's data commands.

use std::cell::{Cell, OnceCell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use atoll_kv::{Failure, Program};
use atoll_lsm::Durability;
use atoll_mvcc::keys::{Range, RoutingKey};
use atoll_redis::data::{self, DataCall};
use atoll_redis::object::Object;
use atoll_redis::table::{Command, Index};
use atoll_redis::task::{Here, Manner};
use atoll_redis::tx::Tx;
use atoll_redis::{LastReads, Stats};
use atoll_resp::{OwnedRequest, ReplyWriter};
use atoll_shard::eval::{Eval, Interrupt, Sight};
use atoll_shard::leader::{Base, Step};

use crate::call::{Call, Encoded, Item, Moment, Reply, Work, encode_text};
use crate::dead;
use crate::shard_tx::{ABSENT, Hearing, ShardTx, record};

/// Memory of a value's buffer that is kept.
const KEPT_VALUE: usize = 64 << 10;

/// Evaluates calls at shards. One per core.
pub struct ObjectProgram {
    stats: Arc<Stats>,
    last_reads: RefCell<LastReads>,
    generation: Cell<u64>,
    /// For a key and a value.
    buffers: RefCell<[Vec<u8>; 2]>,
    /// So many of the next transactions over shards lock their keys at once.
    wary: Cell<u32>,
    /// Commands by name, once another engine has sent one.
    commands: OnceCell<Index>,
}

impl ObjectProgram {
    /// Starts with the counters of the server.
    pub fn new(stats: Arc<Stats>) -> ObjectProgram {
        let last_reads = RefCell::new(LastReads::new());
        let (generation, wary) = (Cell::new(0), Cell::new(0));
        let (buffers, commands) = (RefCell::default(), OnceCell::new());
        ObjectProgram { stats, last_reads, generation, buffers, wary, commands }
    }

    /// Returns the counters that its commands write.
    pub(crate) fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Returns how many of the next transactions over shards lock their keys at once.
    pub(crate) fn wary(&self) -> &Cell<u32> {
        &self.wary
    }

    /// Runs something on the shard's state.
    fn on_shard<B: Base, T>(
        &self,
        eval: &mut Eval<'_, B>,
        body: impl AsyncFnOnce(&mut ShardTx<'_, '_, B>) -> T,
    ) -> Result<T, Interrupt> {
        let interrupt = Cell::new(None);
        let hearing = Hearing {
            stats: &self.stats,
            last_reads: &self.last_reads,
            generation: &self.generation,
        };
        let mut buffers = self.buffers.borrow_mut();
        let [key, value] = &mut *buffers;
        key.clear();
        let (interrupt_at, hearing, generations) = (&interrupt, &hearing, Vec::new());
        let mut tx = ShardTx { eval, interrupt: interrupt_at, hearing, key, value, generations };
        // A command on a shard's state ends at its first poll or is interrupted: there is nothing
        // else it could wait for.
        let polled = pin!(body(&mut tx)).poll(&mut Context::from_waker(Waker::noop()));
        if value.capacity() > KEPT_VALUE {
            *value = Vec::new();
        }
        match polled {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => Err(interrupt.take().unwrap_or(Interrupt::Miss)),
        }
    }

    fn one<B: Base>(
        &self,
        call: &Call,
        item: &Item,
        eval: &mut Eval<'_, B>,
    ) -> Result<Vec<u8>, Interrupt> {
        let data = DataCall {
            command: item.command,
            request: item.request.as_request(),
            protocol: call.protocol,
            db: item.db,
            touch: call.touch,
        };
        let mut out = Vec::new();
        self.append(&data, eval, &mut out)?;
        Ok(out)
    }

    /// Evaluates a command and appends its reply.
    fn append<B: Base>(
        &self,
        data: &DataCall<'_>,
        eval: &mut Eval<'_, B>,
        out: &mut Vec<u8>,
    ) -> Result<(), Interrupt> {
        let start = out.len();
        let ran = self.on_shard(eval, async |tx| data::run(data, tx, out).await)?;
        if let Err(error) = ran {
            out.truncate(start);
            ReplyWriter::new(out, data.protocol).error(error.text());
        }
        Ok(())
    }
}

/// A command in its client's input, with everything that it needs.
pub struct Ask<'a> {
    data: DataCall<'a>,
    slot: u16,
    durability: atoll_redis::Durability,
    moment: Moment,
    /// Where its reply goes, from `start` on.
    output: &'a mut Vec<u8>,
    start: usize,
    copy: Option<OwnedRequest>,
}

impl<'a> Ask<'a> {
    /// Takes a command whose keys are on one shard; `slot` is that of one of them.
    pub fn new(
        here: Here<'a>,
        manner: Manner,
        slot: u16,
        moment: Moment,
        output: &'a mut Vec<u8>,
    ) -> Ask<'a> {
        let Here { command, request, db } = here;
        let Manner { protocol, touch, durability, .. } = manner;
        let start = output.len();
        let data = DataCall { command, request, protocol, db, touch };
        Ask { data, slot, durability, moment, output, start, copy: None }
    }

    /// Returns the copy that was made of the command because it has to wait.
    pub fn into_copy(self) -> Option<OwnedRequest> {
        self.copy
    }
}

impl atoll_kv::Ask<ObjectProgram> for Ask<'_> {
    fn place(&self) -> RoutingKey<&[u8]> {
        RoutingKey::Slot(self.slot)
    }

    fn sight(&self) -> Sight {
        sight_of(self.data.command, self.moment)
    }

    fn durability(&self) -> Durability {
        promised(self.durability)
    }

    fn run<B: Base>(
        &mut self,
        program: &ObjectProgram,
        eval: &mut Eval<'_, B>,
    ) -> Result<(), Interrupt> {
        self.output.truncate(self.start);
        program.append(&self.data, eval, self.output)
    }

    fn reply(&mut self) -> Reply {
        let reply = Reply::One(Encoded::copy(&self.output[self.start..]));
        self.output.truncate(self.start);
        reply
    }

    fn call(&mut self) -> Call {
        self.output.truncate(self.start);
        let Ask { data, slot, durability, moment, .. } = *self;
        let DataCall { command, protocol, db, touch, .. } = data;
        let request = self.copy.get_or_insert_with(|| data.request.to_owned()).clone();
        let work = Work::One(Item { command, request, db });
        Call { work, slot, protocol, touch, durability, moment }
    }
}

/// Returns what a single command sees.
fn sight_of(command: &Command, moment: Moment) -> Sight {
    match moment {
        _ if command.flags.is_write() => Sight::Edge,
        Moment::Now => Sight::Applied,
        Moment::At(at) => Sight::At(at),
        Moment::Past(at) => Sight::Past(at),
    }
}

fn promised(durability: atoll_redis::Durability) -> Durability {
    match durability {
        atoll_redis::Durability::Synced => Durability::Synced,
        atoll_redis::Durability::Interval => Durability::Interval,
        atoll_redis::Durability::Buffered => Durability::Buffered,
    }
}

/// Returns whether a key whose version was `then` has not changed if it is `now`.
pub(crate) fn is_unchanged(then: u64, now: u64) -> bool {
    if now == u64::MAX || then == u64::MAX {
        return false;
    }
    match then & ABSENT {
        0 => then == now,
        // It was absent: it must be absent, and nothing may have come and gone meanwhile. A
        // deletion that is older may have been forgotten.
        _ => now & ABSENT != 0 && now <= then,
    }
}

impl Program for ObjectProgram {
    type Call = Call;
    type Reply = Reply;

    fn place<'c>(&self, call: &'c Call) -> RoutingKey<&'c [u8]> {
        RoutingKey::Slot(call.slot)
    }

    fn fits(&self, call: &Call, range: &Range) -> bool {
        call.fits(range)
    }

    fn sight(&self, call: &Call) -> Sight {
        let readonly = |item: &Item| item.command.flags.is_readonly();
        let (reads, moment) = match &call.work {
            Work::One(item) => return sight_of(item.command, call.moment),
            Work::Unit { items, watched } => {
                let reads = watched.is_empty() && items.iter().all(readonly);
                // A unit is compared with what is decided, not only with what is applied.
                (reads && call.moment != Moment::Now, call.moment)
            }
            Work::Versions { .. } => (false, Moment::Now),
        };
        match moment {
            _ if !reads => Sight::Edge,
            Moment::Now => Sight::Applied,
            Moment::At(at) => Sight::At(at),
            Moment::Past(at) => Sight::Past(at),
        }
    }

    fn durability(&self, call: &Call) -> Durability {
        promised(call.durability)
    }

    fn run<B: Base>(&self, call: &Call, eval: &mut Eval<'_, B>) -> Result<Reply, Interrupt> {
        match &call.work {
            Work::One(item) => Ok(Reply::One(self.one(call, item, eval)?.into())),
            Work::Unit { items, watched } => {
                for watched in watched {
                    let now = self.on_shard(eval, async |tx| {
                        tx.version(watched.db, &watched.key).await.unwrap_or(u64::MAX)
                    })?;
                    if !is_unchanged(watched.version, now) {
                        return Ok(Reply::Unit(None));
                    }
                }
                let mut replies = Vec::with_capacity(items.len());
                for item in items {
                    replies.push(self.one(call, item, eval)?);
                }
                Ok(Reply::Unit(Some(replies)))
            }
            Work::Versions { db, keys } => {
                let moment = atoll_mvcc::Timestamp::commit_at(eval.now().epoch).0;
                let mut versions = Vec::with_capacity(keys.len());
                for key in keys {
                    let version = self.on_shard(eval, async |tx| {
                        tx.version(*db, key).await.unwrap_or(u64::MAX)
                    })?;
                    if version == u64::MAX {
                        // It is of the open entry. What is watched has to have a name of its own, or
                        // nobody could tell it from what comes after it.
                        return Err(Interrupt::Hindered(Step::CloseFirst));
                    }
                    // What is absent is remembered with the moment at which it was.
                    versions.push(match version & ABSENT {
                        0 => version,
                        _ => version.max(ABSENT | moment),
                    });
                }
                Ok(Reply::Versions(versions))
            }
        }
    }

    fn reaped<B: Base>(&self, key: &[u8], value: &[u8], eval: &mut Eval<'_, B>) {
        let Some((keyspace, user_key)) = dead::object(key) else { return };
        self.stats.expired_keys.add(1);
        let (record, deadline_ms) = record(value);
        if let Some(generation) = Object::decode(record, deadline_ms).meta.generation {
            let note = dead::note(keyspace, user_key, generation);
            eval.put(&note, Some(Rc::from(dead::value())));
        }
    }

    fn turn_logged(&self, took: Duration) {
        self.stats.commits.record(took);
    }

    fn turn_failed(&self) {
        self.stats.commits_failed.add(1);
    }

    fn encode_call(&self, call: &Call, out: &mut Vec<u8>) {
        call.encode(out);
    }

    fn decode_call(&self, bytes: &[u8]) -> Result<Call, String> {
        Call::decode(bytes, self.commands.get_or_init(Index::new)).map_err(|e| e.to_string())
    }

    fn encode_reply(&self, reply: &Reply, out: &mut Vec<u8>) {
        reply.encode(out);
    }

    fn decode_reply(&self, bytes: &[u8]) -> Result<Reply, String> {
        Reply::decode(bytes).map_err(|e| e.to_string())
    }

    fn failed(&self, call: &Call, failure: &Failure) -> Reply {
        let text = match failure {
            Failure::Unknown => {
                "UNKNOWN the connection to the shard's log was lost before it said whether the \
                 write was kept: read the key to find out"
                    .to_owned()
            }
            // As Redis says it when it does not take writes; what is wrong is the server's.
            Failure::Unavailable(why) => format!("MISCONF {why}"),
            // What is wrong is the command.
            Failure::TooLarge(why) => format!("ERR {why}"),
        };
        Reply::Failed(encode_text(call.protocol, text.as_bytes()))
    }
}
