//! The core's end of the way from other threads: what clients ask arrives here and runs as tasks of
//! the core.
//!
//! ```text
//!   Client --- queue ---> core 0: take the next question, run it as a task
//!          \-- queue ---> core 1: the same
//!   Session -- queue of its own ---> the task of one transaction, question after question
//! ```
//!
//! One queue per core, a lock for the length of a push: what it costs is small beside waking a
//! thread, and the rings between cores stay theirs alone.
//!
//! # The end
//! A core that ends drops its tasks, and with them transactions half-way. So [`Door::close`] first
//! refuses what is new and waits for what was begun; only a commit that does not end in time is told
//! to be unknown.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::sync::{Either, QueueReceiver, QueueSender, oneshot, queue, select_biased};
use atoll_kv::{Core, Program, Signal};
use atoll_mvcc::{Epoch, Timestamp, request};
use atoll_txn::Doubt;
use parking_lot::Mutex;

use crate::batch::{self, Batch, Outcome};
use crate::catalog::{self, Info, Options};
use crate::client::{Client, Isolation};
use crate::error::{Error, Result};
use crate::range::KeyRange;
use crate::registry::{Keyspace, Registry};
use crate::work::{CoreTxn, Expiry, Found, Limits, Rows, Used, Work, enter};

/// Longest wait for what was begun when a core ends: a commit gives up after ten seconds.
const CLOSE_MAX: Duration = Duration::from_secs(12);
/// How long a count waits for shards that are being split.
const SPLIT_TIME_MAX: Duration = Duration::from_secs(5);
/// Most that a bounded-stale read may be behind: safely inside of what is retained.
const STALE_MAX: Duration = Duration::from_millis(2_500);

/// Gives an answer.
pub(crate) type Answer<T> = oneshot::Sender<Result<T>>;

/// What a client asks.
pub(crate) enum Ask {
    Batch(Batch, Answer<Outcome>),
    /// A transaction whose operations come over a queue of its own, which may have some already.
    Begin(Isolation, QueueReceiver<Op>),
    Settle(Doubt, Answer<Option<u64>>),
    Find(String, Answer<Option<Keyspace>>),
    /// Create it, or find it with the same options.
    Create(String, Options, Answer<(Keyspace, bool)>),
    Drop(String, Answer<Vec<String>>),
    List(KeyRange, usize, Answer<(Vec<Info>, bool)>),
    /// The keys that the shards of this core count in a keyspace.
    Count(u32, Answer<i64>),
}

/// One operation of a session.
pub(crate) enum Op {
    Get {
        keyspace: Keyspace,
        key: Vec<u8>,
        lock: bool,
        answer: Answer<Option<Found>>,
    },
    /// Without an answer it is told of by a later operation what was wrong.
    Put {
        keyspace: Keyspace,
        key: Vec<u8>,
        value: Vec<u8>,
        expiry: Expiry,
        answer: Option<Answer<()>>,
    },
    Delete {
        keyspace: Keyspace,
        key: Vec<u8>,
        answer: Option<Answer<()>>,
    },
    Scan {
        keyspace: Keyspace,
        range: KeyRange,
        reverse: bool,
        limits: Limits,
        answer: Answer<Rows>,
    },
    /// Marks a place, which gets the next number.
    Savepoint,
    RollbackTo(usize, Answer<()>),
    Commit(Answer<u64>),
}

/// What clients and cores share. One for each open directory.
#[derive(Default)]
pub struct Hall {
    registry: Arc<Registry>,
    doors: Mutex<BTreeMap<usize, QueueSender<Ask>>>,
}

impl Hall {
    /// Returns a hall that no core has opened yet.
    pub fn new() -> Hall {
        Hall::default()
    }

    /// Opens a core to clients. To be called on the core, once its shards serve.
    pub fn open<P: Program>(&self, core: &Core<P>) -> Door {
        let (sender, asks) = queue();
        self.doors.lock().insert(core.index(), sender);
        let running = Rc::new(Running::default());
        let desk =
            Desk { core: core.clone(), registry: self.registry.clone(), running: running.clone() };
        spawn(core, "asks", desk.serve(asks));
        Door { running, clock: core.env().clock.clone() }
    }

    /// Returns a client of all cores that have opened so far.
    pub fn client(&self) -> Client {
        let doors = self.doors.lock().values().cloned().collect();
        Client::new(self.registry.clone(), doors)
    }
}

/// What is going on at a core.
#[derive(Default)]
struct Running {
    count: Cell<usize>,
    closing: Cell<bool>,
    ended: Signal,
}

impl Running {
    fn begin(self: &Rc<Self>) -> Going {
        self.count.set(self.count.get() + 1);
        Going(self.clone())
    }
}

/// Something is going on.
struct Going(Rc<Running>);

impl Drop for Going {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.ended.raise();
    }
}

/// A core that is open to clients.
pub struct Door {
    running: Rc<Running>,
    clock: Arc<dyn atoll_env::Clock>,
}

impl Door {
    /// Refuses what is new and waits for what was begun. To be called before the core ends.
    pub async fn close(self) {
        self.running.closing.set(true);
        let ended = async {
            while self.running.count.get() > 0 {
                self.running.ended.raised().await;
            }
        };
        if let Either::Right(()) = select_biased(ended, self.clock.sleep(CLOSE_MAX)).await {
            // Those who still wait are told that they cannot know.
        }
    }
}

fn spawn<P: Program>(core: &Core<P>, name: &'static str, task: impl Future<Output = ()> + 'static) {
    core.env().tasks.spawn_local(name, Box::pin(task));
}

/// Where a core takes questions.
struct Desk<P: Program> {
    core: Core<P>,
    registry: Arc<Registry>,
    running: Rc<Running>,
}

impl<P: Program> Clone for Desk<P> {
    fn clone(&self) -> Desk<P> {
        Desk {
            core: self.core.clone(),
            registry: self.registry.clone(),
            running: self.running.clone(),
        }
    }
}

impl<P: Program> Desk<P> {
    async fn serve(self, mut asks: QueueReceiver<Ask>) {
        while let Some(ask) = asks.recv().await {
            if self.running.closing.get() {
                // Its answer is dropped with it, which says the same.
                continue;
            }
            if let Ask::Begin(isolation, ops) = ask {
                spawn(&self.core, "session", self.clone().session(isolation, ops));
                continue;
            }
            let (desk, going) = (self.clone(), self.running.begin());
            spawn(&self.core, "ask", async move {
                desk.answer(ask).await;
                drop(going);
            });
        }
    }

    async fn answer(&self, ask: Ask) {
        // Who has gone meanwhile is not told.
        match ask {
            Ask::Begin(..) => {}
            Ask::Batch(batch, answer) => {
                let _ = answer.send(batch::run(&self.core, &batch).await);
            }
            Ask::Settle(doubt, answer) => {
                let settled = self.core.coordinator().settle(&doubt).await;
                let _ = answer.send(settled.map(|ts| ts.map(|ts| ts.0)).map_err(Error::from));
            }
            Ask::Find(name, answer) => {
                let _ = answer.send(self.find(&name).await);
            }
            Ask::Create(name, options, answer) => {
                let _ = answer.send(self.create(&name, options).await);
            }
            Ask::Drop(name, answer) => {
                let _ = answer.send(self.drop(&name).await);
            }
            Ask::List(names, limit, answer) => {
                let mut txn = self.core.begin(request::Isolation::Snapshot);
                let _ = answer.send(catalog::list(&mut txn, &names, limit).await);
            }
            Ask::Count(id, answer) => {
                let _ = answer.send(self.count(id).await);
            }
        }
    }

    /// Counts the keys of a keyspace in this core's shards. A shard whose leader is made anew (it is
    /// split) does not count for a moment; its keys are not none for that.
    async fn count(&self, id: u32) -> Result<i64> {
        self.core.reap_due().await;
        let clock = &self.core.env().clock;
        let deadline = clock.now().after(SPLIT_TIME_MAX);
        while !self.core.leads_all() {
            if self.running.closing.get() || clock.now() >= deadline {
                return Err(Error::Unavailable("a shard does not serve".to_owned()));
            }
            clock.sleep(Duration::from_millis(1)).await;
        }
        // A transaction is acknowledged before its intents are counted.
        self.core.settle_intents().await.map_err(Error::Unavailable)?;
        let mut keys = 0;
        self.core.each_leader(|leader| {
            keys += leader.counts().get(&id).map_or(0, |count| count.keys);
        });
        Ok(keys)
    }

    // ---- the catalog ----

    async fn find(&self, name: &str) -> Result<Option<Keyspace>> {
        let look = async || {
            let mut txn = self.core.begin(request::Isolation::Snapshot);
            catalog::find(&mut txn, name).await
        };
        self.registry.find(name, look).await
    }

    async fn create(&self, name: &str, options: Options) -> Result<(Keyspace, bool)> {
        catalog::check_name(name)?;
        self.core.refresh();
        let now_ms = self.core.now().epoch.unix_ms();
        let coordinator = self.core.coordinator();
        let created = coordinator.run(request::Isolation::Serializable, async |txn| {
            catalog::create(txn, name, options, now_ms).await
        });
        let ((_, is_new), _) = created.await?;
        // Found as anybody finds it: it may be dropped again by now.
        match self.find(name).await? {
            Some(keyspace) if keyspace.options() == options => Ok((keyspace, is_new)),
            _ => Err(Error::Conflict(format!("keyspace '{name}' was dropped as it was created"))),
        }
    }

    async fn drop(&self, name: &str) -> Result<Vec<String>> {
        catalog::check_name(name)?;
        let closing = self.registry.close(name).await;
        let coordinator = self.core.coordinator();
        let dropped = coordinator
            .run(request::Isolation::Serializable, async |txn| catalog::drop(txn, name).await);
        match dropped.await {
            Ok((names, _)) if names.is_empty() => {
                closing.keep();
                Err(Error::NotFound(name.to_owned()))
            }
            Ok((names, _)) => Ok(names),
            Err(error) => {
                if !matches!(error, Error::Unknown(_)) {
                    closing.keep();
                }
                Err(error)
            }
        }
    }

    // ---- sessions ----

    /// Runs the operations of one transaction until it ends, or its session is gone.
    async fn session(self, isolation: Isolation, mut ops: QueueReceiver<Op>) {
        let mut txn = self.begin(isolation);
        let mut used = Used::new();
        let mut savepoints = Vec::new();
        // What a write that nobody waited for has met.
        let mut failed: Option<Error> = None;
        while let Some(op) = ops.recv().await {
            let _going = self.running.begin();
            let mut open = match (&mut txn, &failed) {
                (Ok(txn), None) => Work { core: &self.core, txn, used: &mut used },
                (Err(error), _) => {
                    refuse(op, error);
                    continue;
                }
                (Ok(_), Some(error)) => {
                    refuse(op, error);
                    continue;
                }
            };
            match op {
                Op::Get { keyspace, key, lock, answer } => {
                    let _ = answer.send(open.get(&keyspace, &key, lock).await);
                }
                Op::Put { keyspace, key, value, expiry, answer } => {
                    let done = open.put(&keyspace, &key, &value, expiry).await;
                    failed = tell(answer, done);
                }
                Op::Delete { keyspace, key, answer } => {
                    let done = open.delete(&keyspace, &key).await;
                    failed = tell(answer, done);
                }
                Op::Scan { keyspace, range, reverse, limits, answer } => {
                    let _ = answer.send(open.scan(&keyspace, &range, reverse, limits).await);
                }
                Op::Savepoint => savepoints.push(open.txn.savepoint()),
                Op::RollbackTo(number, answer) => {
                    let back = match savepoints.get(number) {
                        Some(savepoint) => open.txn.rollback_to(*savepoint).map_err(Error::from),
                        None => Err(Error::InvalidInput(
                            "the savepoint is not of this transaction".to_owned(),
                        )),
                    };
                    let _ = answer.send(back);
                }
                Op::Commit(answer) => {
                    if self.running.closing.get() {
                        let _ = answer.send(Err(Error::Closed));
                    } else if let Ok(txn) = txn {
                        let _ = answer.send(commit(txn, &used).await);
                    }
                    return;
                }
            }
        }
    }

    fn begin(&self, isolation: Isolation) -> Result<CoreTxn<P>> {
        let isolation = match isolation {
            Isolation::Serializable => request::Isolation::Serializable,
            Isolation::Snapshot => request::Isolation::Snapshot,
            Isolation::ReadCommitted => request::Isolation::ReadCommitted,
            Isolation::BoundedStale(most) => {
                let back_us = u64::try_from(most.min(STALE_MAX).as_micros()).unwrap_or(u64::MAX);
                // An epoch of the present makes it a moment that everybody knows to be past.
                self.core.refresh();
                let at = Epoch(self.core.now().epoch.0.saturating_sub(back_us));
                return Ok(self.core.coordinator().begin_at(Timestamp::read_at(at))?);
            }
        };
        Ok(self.core.begin(isolation))
    }
}

async fn commit<P: Program>(txn: CoreTxn<P>, used: &Used) -> Result<u64> {
    let _entered = enter(used)?;
    Ok(txn.commit().await?.0)
}

/// Answers a write if somebody waits for it; returns what nobody was told.
fn tell(answer: Option<Answer<()>>, done: Result<()>) -> Option<Error> {
    match answer {
        Some(answer) => {
            let _ = answer.send(done);
            None
        }
        None => done.err(),
    }
}

/// Answers an operation of a transaction that has failed.
fn refuse(op: Op, error: &Error) {
    let error = error.clone();
    match op {
        Op::Get { answer, .. } => _ = answer.send(Err(error)),
        Op::Put { answer, .. } | Op::Delete { answer, .. } => {
            if let Some(answer) = answer {
                let _ = answer.send(Err(error));
            }
        }
        Op::Scan { answer, .. } => _ = answer.send(Err(error)),
        Op::Savepoint => {}
        Op::RollbackTo(_, answer) => _ = answer.send(Err(error)),
        Op::Commit(answer) => _ = answer.send(Err(error)),
    }
}
