//! A core's shards, as its front end asks them.
//!
//! ```text
//!   simple task   --> kv::Core::call --> reply at once, or by token
//!   any other     --> a task of this core: a transaction over shards, a walk over a database
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::random::Random;
use atoll_env::sync::oneshot;
use atoll_kv::{Core, Lane, Signal, Tried};
use atoll_mvcc::keys::{RoutingKey, slot};
use atoll_objects::call::encode_error;
use atoll_objects::distributed::Step;
use atoll_objects::whole::Change;
use atoll_objects::{Ask, Call, Moment, ObjectProgram, Reply, Work, distributed, inside, whole};
use atoll_redis::data::DataCall;
use atoll_redis::keyspace;
use atoll_redis::store::{DATABASES, Visitor};
use atoll_redis::task::{
    Answer, Backend, Consistency, Done, Here, Item, Manner, Question, Started, Task, Watched,
};
use atoll_redis::tx::{Counts, Keyspaces};
use atoll_redis::{Completed, StoreError};

use crate::past::Past;
use crate::server::{House, Visit};

/// Tokens of calls that a task of this core waits for.
const INNER: u64 = 1 << 62;

/// What tasks and the front end share.
pub(crate) struct Tasks {
    core: Core<ObjectProgram>,
    /// Outcomes that the front end has not taken.
    done: RefCell<Vec<Completed>>,
    /// A buffer for replies.
    replies: RefCell<Vec<(Lane, u64, Reply)>>,
    /// There are some.
    pub(crate) signal: Rc<Signal>,
    inner: RefCell<BTreeMap<u64, oneshot::Sender<Reply>>>,
    next_inner: Cell<u64>,
    house: Arc<House>,
    past: Past,
}

/// A core's shards.
pub(crate) struct ShardBackend {
    tasks: Rc<Tasks>,
}

impl ShardBackend {
    pub(crate) fn new(
        core: Core<ObjectProgram>,
        signal: Rc<Signal>,
        house: Arc<House>,
    ) -> ShardBackend {
        let tasks = Tasks {
            core,
            done: RefCell::default(),
            replies: RefCell::default(),
            signal,
            inner: RefCell::default(),
            next_inner: Cell::new(INNER),
            house,
            past: Past::default(),
        };
        ShardBackend { tasks: Rc::new(tasks) }
    }

    pub(crate) fn tasks(&self) -> &Rc<Tasks> {
        &self.tasks
    }

    /// Returns how much memory the stores hold: caches, memtables.
    pub(crate) fn store_bytes(&self) -> u64 {
        let stats = self.tasks.core.store_stats();
        let bytes = |s: &atoll_lsm::Stats| s.memtable_bytes + s.cache.bytes + s.records.bytes;
        stats.iter().map(|(_, s)| bytes(s)).sum()
    }
}

impl Backend for ShardBackend {
    fn is_simple(&self, task: &Task) -> bool {
        let whole = match task {
            Task::One(item) => item.is_whole(),
            Task::Unit { items, .. } => items.iter().any(Item::is_whole),
            Task::Versions { .. } => false,
            Task::Counts | Task::Ask(_) => return true,
            Task::Sleep(_) => return false,
        };
        !whole && self.tasks.one_shard(task.keys().into_iter()).is_some()
    }

    fn start(&mut self, task: Task, manner: Manner, lane: u64, token: u64) -> Option<Done> {
        let asks = matches!(task, Task::Counts | Task::Ask(_));
        if let Task::Ask(_) = task
            && self.tasks.core.cores() == 1
        {
            return Some(Done::Answers(Vec::new()));
        }
        let simple = self.is_simple(&task) && !asks;
        if !simple {
            let tasks = self.tasks.clone();
            let running = async move {
                let done = tasks.run(task, manner).await;
                tasks.done.borrow_mut().push((lane, token, done));
                tasks.signal.raise();
            };
            self.tasks.core.env().tasks.spawn_local("task", Box::pin(running));
            return None;
        }
        let slot = self.tasks.one_shard(task.keys().into_iter())?;
        let moment = self.tasks.moment(manner.consistency);
        let call = call(task, manner, slot, moment)?;
        self.tasks.core.call(call, lane, token).map(done)
    }

    fn start_here(
        &mut self,
        here: Here<'_>,
        manner: Manner,
        lane: u64,
        token: u64,
        output: &mut Vec<u8>,
    ) -> Started {
        let Some(slot) = self.tasks.one_shard(here.keys()) else { return Started::Spread };
        let moment = self.tasks.moment(manner.consistency);
        let mut ask = Ask::new(here, manner, slot, moment, output);
        match self.tasks.core.try_here(&mut ask, lane, token) {
            Tried::Answered => Started::Answered,
            Tried::Reply(reply) => Started::Done(done(reply)),
            Tried::Waits => match ask.into_copy() {
                Some(copy) => Started::Waits(copy),
                // What waits was copied.
                None => Started::Waits(here.request.to_owned()),
            },
        }
    }

    fn refresh(&mut self) {
        self.tasks.core.refresh();
    }

    fn set_active_expire(&mut self, on: bool) {
        self.tasks.core.set_reaping(on);
    }
}

/// Makes a call of a simple task.
fn call(task: Task, manner: Manner, slot: u16, moment: Moment) -> Option<Call> {
    let work = match task {
        Task::One(item) => Work::One(item),
        Task::Unit { items, watched } => Work::Unit { items, watched },
        Task::Versions { db, keys } => Work::Versions { db, keys },
        Task::Counts | Task::Ask(_) | Task::Sleep(_) => return None,
    };
    let Manner { protocol, touch, durability, .. } = manner;
    Some(Call { work, slot, protocol, touch, durability, moment })
}

/// Returns what a reply is to the front end.
fn done(reply: Reply) -> Done {
    match reply {
        Reply::One(reply) => Done::One(reply),
        Reply::Unit(replies) => Done::Unit(replies),
        Reply::Versions(versions) => Done::Versions(versions),
        Reply::Failed(error) => Done::Failed(error),
    }
}

impl Tasks {
    /// Moves outcomes that have come into `taken`.
    pub(crate) fn take_done(&self, taken: &mut Vec<Completed>) {
        let mut replies = self.replies.borrow_mut();
        self.core.take_replies(&mut replies);
        for (lane, token, reply) in replies.drain(..) {
            if token & INNER == 0 {
                taken.push((lane, token, done(reply)));
            } else if let Some(waiting) = self.inner.borrow_mut().remove(&token) {
                let _ = waiting.send(reply);
            }
        }
        taken.append(&mut self.done.borrow_mut());
    }

    /// Returns the slot of the keys if one shard has them all.
    fn one_shard<'k>(&self, mut keys: impl Iterator<Item = &'k [u8]>) -> Option<u16> {
        let Some(first) = keys.next().map(slot) else { return Some(0) };
        let Some(second) = keys.next() else { return Some(first) };
        let table = self.core.table();
        let range = &table.find(RoutingKey::Slot(first)).descriptor.range;
        let mut rest = std::iter::once(second).chain(keys);
        rest.all(|key| range.contains(RoutingKey::Slot(slot(key)))).then_some(first)
    }

    /// Has a call evaluated and waits for it.
    async fn call(&self, call: Call) -> Reply {
        let token = self.next_inner.get();
        self.next_inner.set(token + 1);
        let (sender, receiver) = oneshot::channel();
        let protocol = call.protocol;
        self.inner.borrow_mut().insert(token, sender);
        self.core.refresh();
        if let Some(reply) = self.core.call(call, token, token) {
            self.inner.borrow_mut().remove(&token);
            return reply;
        }
        self.core.flush();
        let lost = || {
            let text = b"ERR the server stops";
            Reply::Failed(atoll_objects::call::encode_text(protocol, text))
        };
        receiver.await.unwrap_or_else(|_| lost())
    }

    /// Executes a task that is not simple.
    async fn run(&self, task: Task, manner: Manner) -> Done {
        match task {
            Task::One(item) if item.is_whole() => match self.whole(&item, manner).await {
                Ok(reply) => Done::One(reply.into()),
                Err(error) => Done::Failed(error),
            },
            Task::One(item) => {
                let reply = match item.command.flags.is_readonly() {
                    true => self.read(&[&item], manner).await,
                    false => self.spread(&[Step::Keys(item)], &[], manner).await,
                };
                match reply {
                    Reply::Unit(Some(mut replies)) => {
                        Done::One(replies.pop().unwrap_or_default().into())
                    }
                    other => done(other),
                }
            }
            Task::Unit { items, watched }
                if watched.is_empty() && items.iter().all(only_reads_keys) =>
            {
                let items: Vec<&Item> = items.iter().collect();
                done(self.read(&items, manner).await)
            }
            Task::Unit { items, watched } => match self.steps(&items, manner).await {
                Some(steps) => done(self.spread(&steps, &watched, manner).await),
                None => self.sequence(items, watched, manner).await,
            },
            Task::Versions { db, keys } => {
                let mut versions = Vec::with_capacity(keys.len());
                for key in keys {
                    let slot = slot(&key);
                    let task = Task::Versions { db, keys: vec![key] };
                    let Some(call) = call(task, manner, slot, Moment::Now) else { continue };
                    match self.call(call).await {
                        Reply::Versions(found) => versions.extend(found),
                        other => return done(other),
                    }
                }
                Done::Versions(versions)
            }
            Task::Counts => {
                let counts = match whole::counts(&self.core).await {
                    Ok(counts) => counts,
                    Err(error) => {
                        return Done::Failed(distributed::explain(manner.protocol, &error));
                    }
                };
                let mut all = Box::new([Counts::default(); DATABASES]);
                for (of, (keys, expiring)) in all.iter_mut().zip(counts) {
                    *of = Counts { keys, expiring, mean_ttl_ms: 0 };
                }
                Done::Counts(all)
            }
            Task::Ask(question) => Done::Answers(self.ask(question).await),
            Task::Sleep(time) => {
                self.core.env().clock.sleep(time).await;
                Done::Slept
            }
        }
    }

    /// Asks the front ends of the other cores.
    async fn ask(&self, question: Question) -> Vec<Answer> {
        let mut asked = Vec::new();
        for (index, (floor, _)) in self.house.floors.iter().enumerate() {
            if index != self.core.index() {
                let (sender, receiver) = oneshot::channel();
                let _ = floor.send(Visit::Question(question.clone(), sender));
                asked.push(receiver);
            }
        }
        let mut answers = Vec::with_capacity(asked.len());
        for receiver in asked {
            // A core that has ended has no clients.
            answers.extend(receiver.await.ok());
        }
        answers
    }

    /// Returns the steps of a transaction; `None` if a command asks about a database that is too
    /// large to be walked over in one.
    async fn steps(&self, items: &[Item], manner: Manner) -> Option<Vec<Step>> {
        let mut steps = Vec::with_capacity(items.len());
        let mut asked = BTreeSet::new();
        for item in items {
            if !item.is_whole() {
                steps.push(Step::Keys(item.clone()));
                continue;
            }
            let mut databases = Whole { core: &self.core, after: Vec::new(), refuses: true };
            let mut reply = Vec::new();
            let call = data_call(item, manner);
            let outcome =
                keyspace::run(&call, &mut databases, self.house.shared.cursors(), &mut reply).await;
            if !databases.refuses {
                // A page of a scan is small, whatever it is a page of.
                if item.command.name != "scan" {
                    asked.insert(item.db);
                }
                steps.push(Step::Question(item.clone()));
                continue;
            }
            if let Err(error) = outcome {
                reply = encode_error(manner.protocol, &error);
            }
            steps.push(Step::Databases { changes: databases.after, reply });
        }
        let too_large = match asked.is_empty() {
            true => false,
            false => inside::is_too_large(&self.core, asked.into_iter()).await.unwrap_or(true),
        };
        (!too_large).then_some(steps)
    }

    async fn spread(&self, items: &[Step], watched: &[Watched], manner: Manner) -> Reply {
        let cursors = self.house.shared.cursors();
        distributed::run(&self.core, items, watched, cursors, &manner).await
    }

    /// Runs commands that only read, all as of one moment.
    async fn read(&self, items: &[&Item], manner: Manner) -> Reply {
        let at = match self.moment(manner.consistency) {
            Moment::Past(at) | Moment::At(at) => at,
            // Whatever was answered before now is seen.
            Moment::Now => self.core.read_point(),
        };
        distributed::read(&self.core, items, at, manner.protocol, manner.touch).await
    }

    /// Returns as of when a command is to be answered that comes now.
    fn moment(&self, consistency: Consistency) -> Moment {
        match consistency {
            Consistency::Fast => Moment::Now,
            Consistency::Strict => Moment::At(self.core.read_point()),
            Consistency::Stale { ms } => {
                Moment::Past(self.past.at(&self.core, Duration::from_millis(ms)))
            }
        }
    }

    /// Executes a unit that asks what is in large databases: one command after the other.
    async fn sequence(&self, items: Vec<Item>, watched: Vec<Watched>, manner: Manner) -> Done {
        if !watched.is_empty() {
            match self.spread(&[], &watched, manner).await {
                Reply::Unit(Some(_)) => {}
                other => return done(other),
            }
        }
        let mut replies = Vec::with_capacity(items.len());
        for item in items {
            let one = if item.is_whole() {
                self.whole(&item, manner).await
            } else {
                match self.spread(&[Step::Keys(item)], &[], manner).await {
                    Reply::Unit(Some(mut one)) => Ok(one.pop().unwrap_or_default()),
                    Reply::Failed(error) => Err(error),
                    _ => Ok(Vec::new()),
                }
            };
            replies.push(one.unwrap_or_else(|error| error));
        }
        Done::Unit(Some(replies))
    }

    /// Executes a command on whole databases.
    async fn whole(&self, item: &Item, manner: Manner) -> Result<Vec<u8>, Vec<u8>> {
        self.core.refresh();
        let call = data_call(item, manner);
        let mut keyspaces = Whole { core: &self.core, after: Vec::new(), refuses: false };
        let mut out = Vec::new();
        let outcome =
            keyspace::run(&call, &mut keyspaces, self.house.shared.cursors(), &mut out).await;
        if let Err(error) = outcome {
            return Err(encode_error(manner.protocol, &error));
        }
        if !keyspaces.after.is_empty() {
            let changed = whole::change(&self.core, &keyspaces.after, manner.durability).await;
            changed.map_err(|error| distributed::explain(manner.protocol, &error))?;
        }
        Ok(out)
    }
}

fn only_reads_keys(item: &Item) -> bool {
    item.command.flags.is_readonly() && !item.is_whole()
}

fn data_call(item: &Item, manner: Manner) -> DataCall<'_> {
    DataCall {
        command: item.command,
        request: item.request.as_request(),
        protocol: manner.protocol,
        db: item.db,
        touch: manner.touch,
    }
}

/// The databases as wholes.
struct Whole<'c> {
    core: &'c Core<ObjectProgram>,
    /// What is to be changed when the command has had its say.
    after: Vec<Change>,
    /// Whether questions are refused. One that was clears it.
    refuses: bool,
}

impl Whole<'_> {
    fn answers(&mut self) -> Result<(), StoreError> {
        if std::mem::take(&mut self.refuses) {
            return Err(StoreError("a question in a step of a transaction".into()));
        }
        Ok(())
    }
}

impl Keyspaces for Whole<'_> {
    fn now_ms(&self) -> u64 {
        self.core.now().epoch.unix_ms()
    }

    async fn visit(
        &mut self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> Result<(), StoreError> {
        self.answers()?;
        let visited = whole::walk(self.core, db, from, visitor).await;
        visited.map_err(|error| StoreError(error.to_string()))
    }

    async fn count(&mut self, db: usize) -> Result<Counts, StoreError> {
        self.answers()?;
        let counts = whole::counts(self.core).await;
        let (keys, expiring) = counts.map_err(|error| StoreError(error.to_string()))?[db];
        Ok(Counts { keys, expiring, mean_ttl_ms: 0 })
    }

    fn flush(&mut self, db: usize) {
        if let Some(Change::Flush(dbs)) = self.after.last_mut() {
            return dbs.push(db);
        }
        self.after.push(Change::Flush(vec![db]));
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.after.push(Change::Swap(a, b));
    }

    fn random_below(&mut self, bound: u64) -> u64 {
        let random: &dyn Random = &*self.core.env().random;
        random.next_u64() % bound.max(1)
    }
}
