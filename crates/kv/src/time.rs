//! Time: where an engine's timestamps come from.
//!
//! ```text
//!   one engine         the counter of its oracle, shared by its cores
//!
//!   several engines    whoever leads the root shard has the oracle
//!                        counter  <  bound, which a majority has in its log
//!                        under a lease, looked at after each allocation
//!                      all others ask it: one question in flight per core, for all who wait
//! ```
//!
//! A timestamp that means *now* has to be drawn from the oracle after the question came. Much does not need
//! that: a shard derives the timestamps of its own entries from those it has seen, and a command's moment
//! is whatever this engine was *given* last, by anybody ([`Timekeeper::known`]), which is asked for anew
//! every few milliseconds while there is work. So a command on one shard never waits for the oracle, and a
//! root shard without a leader stops only transactions and new leaderships.
//!
//! # Invariants
//! - No epoch is given twice, and each is above every one that was given before it was asked for. A new
//!   leader of the root shard starts above the bound that its log has, and the old one gave nothing out
//!   above it, nor after its lease.
//! - What is known was given. A moment above the oracle would be read at twice, with a commit in between.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_encoding::{Malformed, Reader, varint};
use atoll_env::sometimes;
use atoll_env::sync::{oneshot, timeout};
use atoll_mvcc::{Epoch, Oracle, Timestamp};
use atoll_shard::replica::EngineId;
use atoll_txn::Unavailable;

use crate::core::Inner;
use crate::program::Program;

/// How far the bound lies ahead of what was given, in microseconds. The next oracle starts there, so by as
/// much deadlines may come early when the root shard has lost its leader.
const AHEAD_US: u64 = 250_000;
/// A new bound is asked for when less than this is left of the last one.
const RENEW_US: u64 = 125_000;
/// How long an answer of the oracle is waited for before it is asked again, maybe elsewhere.
const ANSWER_TIME: Duration = Duration::from_millis(300);
/// How long one who needs a timestamp waits for one.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);
/// Most epochs asked for at once.
const EPOCHS_MAX: u64 = 1 << 16;

/// The time of an engine. Shared by its cores.
pub(crate) struct Timekeeper {
    /// The last epoch that was given, by this engine or to it.
    oracle: Oracle,
    /// The engine shares its oracle with others.
    shared: bool,
    /// Until when this engine may give epochs, in its own monotonic microseconds; 0 if it may not.
    until: AtomicU64,
    /// Up to which.
    bound: AtomicU64,
    /// The engine that has the oracle, plus one; 0 if it is not known.
    holder: AtomicU64,
    /// Somebody wanted an epoch of this engine since a bound was last asked for.
    wanted: AtomicBool,
}

impl Timekeeper {
    pub(crate) fn new(shared: bool, start: Epoch) -> Timekeeper {
        Timekeeper {
            oracle: Oracle::new(start),
            shared,
            until: AtomicU64::new(0),
            bound: AtomicU64::new(0),
            holder: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
        }
    }

    /// Returns the last epoch that this engine knows to be given.
    pub(crate) fn known(&self) -> Epoch {
        self.oracle.last()
    }

    /// Returns whether the oracle is shared with other engines.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Gives epochs in a row, if that is for this engine to do; returns the first. `now_us` is asked when
    /// that is done.
    pub(crate) fn give(
        &self,
        wall: Epoch,
        count: u64,
        now_us: impl FnOnce() -> u64,
    ) -> Option<Epoch> {
        if !self.shared {
            return self.oracle.epochs_within(wall, count, Epoch::MAX);
        }
        // Before anything else, so that the last epoch stays one that was given.
        if !self.holds() {
            return None;
        }
        self.wanted.store(true, Ordering::Relaxed);
        let bound = Epoch(self.bound.load(Ordering::Acquire));
        let first = self.oracle.epochs_within(wall, count, bound)?;
        (now_us() < self.until.load(Ordering::Acquire)).then_some(first)
    }

    /// Notes that epochs up to this one were given.
    pub(crate) fn learn(&self, epoch: Epoch) {
        self.oracle.raise(epoch);
    }

    /// Notes that another engine knows an epoch to be given. Not for whoever gives them: its own come from
    /// below its bound, and it knows all that were.
    pub(crate) fn learn_of(&self, epoch: Epoch) {
        if self.shared && !self.holds() {
            self.learn(epoch);
        }
    }

    /// Lets this engine give epochs up to `bound` until its lease ends.
    pub(crate) fn reign(&self, bound: Epoch, until_us: u64) {
        self.bound.store(bound.0, Ordering::Release);
        self.until.store(until_us, Ordering::Release);
    }

    /// Returns whether it is for this engine to give epochs.
    fn holds(&self) -> bool {
        self.until.load(Ordering::Acquire) > 0
    }

    /// Ends that.
    pub(crate) fn abdicate(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// Returns the bound to ask the root shard for, if the last one is `bound` and there is need of
    /// another. As long as nobody wants an epoch there is none: an idle database writes nothing.
    pub(crate) fn next_bound(&self, wall: Epoch, bound: Epoch) -> Option<Epoch> {
        let last = self.known().max(wall);
        let runs_out = bound < last.after_us(RENEW_US);
        (runs_out && self.wanted.swap(false, Ordering::Relaxed)).then(|| last.after_us(AHEAD_US))
    }

    pub(crate) fn set_holder(&self, engine: Option<EngineId>) {
        let holder = engine.map_or(0, |engine| u64::from(engine.0) + 1);
        self.holder.store(holder, Ordering::Release);
    }

    fn holder(&self) -> Option<EngineId> {
        let holder = self.holder.load(Ordering::Acquire);
        holder.checked_sub(1).map(|engine| EngineId(engine as u32))
    }
}

/// Those of one core who wait for an epoch.
#[derive(Default)]
pub(crate) struct Asking {
    waiting: RefCell<Vec<oneshot::Sender<Result<Epoch, Unavailable>>>>,
    busy: Cell<bool>,
    /// A shard had need of an epoch that it could not wait for.
    spare: Cell<Option<Epoch>>,
    /// One is on its way.
    spare_asked: Cell<bool>,
}

impl<P: Program> Inner<P> {
    /// Draws an epoch that nobody else has, if the oracle is here.
    pub(crate) fn try_epoch(&self) -> Option<Epoch> {
        self.time.give(self.wall_epoch(), 1, || self.now_us())
    }

    /// Draws an epoch that nobody else has, above every one that was drawn before the call.
    ///
    /// # Errors
    /// The oracle could not be reached in time.
    pub(crate) async fn epoch(self: &Rc<Self>) -> Result<Epoch, Unavailable> {
        if let Some(epoch) = self.try_epoch() {
            return Ok(epoch);
        }
        let (sender, receiver) = oneshot::channel();
        self.asking.waiting.borrow_mut().push(sender);
        if !self.asking.busy.replace(true) {
            let inner = self.clone();
            self.spawn("oracle", async move { inner.ask_oracle().await });
        }
        let stopped = || Unavailable("the engine has stopped".to_owned());
        receiver.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Asks for all who wait, again and again. Who comes while a question is under way waits for the
    /// next: the answer to this one may be older than he is.
    async fn ask_oracle(self: Rc<Self>) {
        loop {
            let waiting = std::mem::take(&mut *self.asking.waiting.borrow_mut());
            if waiting.is_empty() {
                self.asking.busy.set(false);
                return;
            }
            sometimes!(waiting.len() > 1, "several who wait share a question to the oracle");
            let given = self.epochs(waiting.len() as u64).await;
            for (n, waiter) in waiting.into_iter().enumerate() {
                let epoch = given.clone().map(|first| Epoch(first.0 + n as u64));
                let _ = waiter.send(epoch);
            }
        }
    }

    async fn epochs(&self, count: u64) -> Result<Epoch, Unavailable> {
        let deadline = self.env.clock.now().after(PATIENCE);
        let cluster = self.shared.options.cluster.as_ref();
        loop {
            if let Some(first) = self.time.give(self.wall_epoch(), count, || self.now_us()) {
                return Ok(first);
            }
            if let (Some(cluster), Some(holder)) = (cluster, self.time.holder())
                && holder != cluster.engine
            {
                let answer = cluster.carrier.ask(holder, ask_for(count));
                if let Ok(Ok(answer)) = timeout(&*self.env.clock, ANSWER_TIME, answer).await
                    && let Ok(Some(first)) = answered(&answer)
                {
                    self.time.learn(Epoch(first.0 + count - 1));
                    return Ok(first);
                }
            }
            if self.stopping.get() || self.env.clock.now() >= deadline {
                return Err(Unavailable(
                    "no engine gives timestamps: the root shard has no leader that a majority of its \
                     replicas can be reached from; try again"
                        .to_owned(),
                ));
            }
            self.env.clock.sleep(PAUSE).await;
        }
    }

    /// Answers another engine's question for epochs.
    pub(crate) fn answer_epochs(&self, count: u64) -> Vec<u8> {
        let count = count.clamp(1, EPOCHS_MAX);
        let first = self.time.give(self.wall_epoch(), count, || self.now_us());
        let mut answer = vec![u8::from(first.is_some())];
        varint::put(&mut answer, first.map_or(0, |first| first.0));
        answer
    }

    /// Returns an epoch for an entry that cannot be closed without one, if there is one above `above`;
    /// asks for it if not.
    pub(crate) fn spare_epoch(self: &Rc<Self>, above: Timestamp) -> Option<Epoch> {
        let spare = self.try_epoch().or(self.asking.spare.take());
        if let Some(epoch) = spare.filter(|epoch| Timestamp::commit_at(*epoch) > above) {
            return Some(epoch);
        }
        sometimes!(true, "an entry waits for an epoch");
        if !self.asking.spare_asked.replace(true) {
            let inner = self.clone();
            self.spawn("spare epoch", async move {
                // Whoever holds the oracle has one at once, and it may not do: not without a pause.
                inner.env.clock.sleep(PAUSE).await;
                let drawn = inner.epoch().await;
                inner.asking.spare_asked.set(false);
                inner.asking.spare.set(drawn.ok());
                for host in inner.stores.borrow().values() {
                    host.retry();
                }
            });
        }
        None
    }

    /// Draws an epoch every now and then, so that what is known here is not old.
    pub(crate) async fn keep_time(core: std::rc::Weak<Inner<P>>) {
        /// Between two questions of a busy core.
        const BUSY: Duration = Duration::from_millis(5);
        /// Rounds of an idle one between two of its.
        const IDLE: u32 = 200;
        let mut idle = 0;
        loop {
            let Some(clock) = core.upgrade().map(|core| core.env.clock.clone()) else { return };
            clock.sleep(BUSY).await;
            let Some(core) = core.upgrade() else { return };
            if core.stopping.get() {
                return;
            }
            idle += 1;
            if core.used_time.take() || idle >= IDLE {
                idle = 0;
                // Whoever holds the oracle draws one whenever it evaluates something.
                if !core.time.holds() {
                    let _ = core.epoch().await;
                }
            }
        }
    }
}

/// Returns the question for epochs in a row.
fn ask_for(count: u64) -> Vec<u8> {
    let mut question = vec![crate::peers::EPOCHS];
    varint::put(&mut question, count);
    question
}

/// Reads the answer: the first of them, `None` if the engine does not have the oracle.
fn answered(answer: &[u8]) -> Result<Option<Epoch>, Malformed> {
    let mut reader = Reader::new(answer);
    let given = reader.u8("whether epochs were given")?;
    let first = Epoch(reader.varint("an epoch")?);
    reader.finish("nothing behind an epoch")?;
    Ok((given == 1 && first <= Epoch::MAX).then_some(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_given_under_the_lease_and_up_to_the_bound_only() {
        let time = Timekeeper::new(true, Epoch(100));
        let give = |now_us: u64| time.give(Epoch(0), 1, || now_us);
        assert_eq!(give(0), None, "nobody has made it the oracle");
        time.reign(Epoch(103), 1_000);
        assert_eq!(give(999), Some(Epoch(101)));
        assert_eq!(give(1_000), None, "the lease ended while it was drawn");
        assert_eq!(give(0), Some(Epoch(103)));
        assert_eq!(give(0), None, "the bound is reached");
        assert_eq!(time.known(), Epoch(103));
        time.reign(Epoch(200), 2_000);
        time.abdicate();
        assert_eq!(give(0), None);
        time.learn(Epoch(150));
        assert_eq!(time.known(), Epoch(150));
    }

    #[test]
    fn a_bound_is_renewed_before_it_is_reached_if_somebody_wants_epochs() {
        let time = Timekeeper::new(true, Epoch(0));
        let wall = Epoch(10_000_000);
        assert_eq!(time.next_bound(wall, Epoch(0)), None, "nobody has asked");
        time.reign(Epoch(0), 1);
        assert_eq!(time.give(wall, 1, || 0), None);
        assert_eq!(time.next_bound(wall, Epoch(10_125_000)), None, "there is enough left");
        assert_eq!(time.next_bound(wall, Epoch(10_124_999)), Some(Epoch(10_250_000)));
        assert_eq!(time.next_bound(wall, Epoch(0)), None, "it is on its way");
        // What was given may run ahead of the clock.
        time.learn(Epoch(12_000_000));
        assert_eq!(time.give(wall, 1, || 0), None);
        assert_eq!(time.next_bound(wall, Epoch(12_100_000)), Some(Epoch(12_250_000)));
    }

    #[test]
    fn an_engine_by_itself_always_has_an_epoch() {
        let time = Timekeeper::new(false, Epoch(5));
        assert_eq!(time.give(Epoch(0), 1, || u64::MAX), Some(Epoch(6)));
        assert_eq!(time.give(Epoch(9), 2, || u64::MAX), Some(Epoch(9)));
        assert_eq!(time.known(), Epoch(10));
    }
}
