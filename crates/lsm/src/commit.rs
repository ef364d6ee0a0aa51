//! Group commit: how concurrent writers share one log write and one sync.
//!
//! The obvious way, a lock around "append, sync, apply", makes every writer pay a sync of its own.
//! Instead writers queue their batches, and one of them, the *leader*, takes everything that is
//! queued and carries it through the steps together:
//!
//! ```text
//!   writers   enqueue ---------------- wait ----------------------------> answered
//!   leader    take all | append frames | write | sync | apply | publish | answer | hand over
//! ```
//!
//! While a leader syncs, the next group gathers behind it: the group's size follows the disk's
//! latency by itself. When it is done it hands the lead to the first of those who wait.
//!
//! # Rules
//! - Appending, syncing, applying and publishing follow the log's order; there is at most one
//!   leader, so the writing half of the store needs no lock.
//! - A batch is applied, and so becomes visible, only after it is as durable as its writer asked.
//!   In a group the strictest member decides.
//! - A batch is applied to one memtable: rotation falls between two entries.
//! - A leader is never cancelled half-way: a caller inside `block_on` leads on its own thread, for
//!   anybody else a task leads.
//! - A store with an owner ([`crate::driven`]) has him for its leader, for good: work waits in the
//!   queue until he looks, and nobody else ever leads.
//! - A batch with a condition (an optimistic transaction's) is decided when its turn to be staged
//!   has come: what is before it in the group counts, what is behind it does not.
//! - A failed write or sync of the log stops the store: nobody is told that a write succeeded, or
//!   that it did not, when its fate depends on what the disk kept.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};

use atoll_env::sync::Notify;
use atoll_env::task;

use crate::batch::Payload;
use crate::database::closed;
use crate::error::Result;
use crate::image::Moment;
use crate::ingest::Turn;
use crate::log::Prepared;
use crate::mutants;
use crate::opening::Behind;
use crate::options::Durability;
use crate::store::Store;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::transaction::validation::Condition;
use crate::version::Applied;

/// What the leader is asked to do.
pub(crate) enum Work {
    /// Log, apply and publish a batch, if the condition holds.
    Write { payload: Payload, durability: Durability, condition: Option<Arc<Condition>> },
    /// Nothing: when it is answered, what was queued before is visible.
    Barrier,
    /// Sync what was logged so far.
    Sync,
    /// Seal the active memtable unless it is empty.
    Seal,
    /// Entries up to these indexes are in tables: let the log forget them.
    Release { applied: Applied },
    /// Make the log's next segment, to learn whether there is space again.
    Probe,
    /// Nothing after this group: the log is given up.
    End,
    /// A step of a client that drives log and tree itself, as consensus will.
    #[cfg(test)]
    #[cfg_attr(atoll_loom, expect(dead_code, reason = "the tests that use it are left out"))]
    Drive(parking_lot::Mutex<Option<Step>>),
    /// Let nothing be written while tables that were ingested get their place.
    Ingest(parking_lot::Mutex<Option<Turn>>),
    /// Note what the store is, for a copy of it.
    Image(Arc<parking_lot::Mutex<Option<Moment>>>),
    /// Apply what memory had no room for when the log was read. In a box: it is large, and works are many.
    Replay(parking_lot::Mutex<Option<Box<Behind>>>),
    /// Take the log's next segment, which was made aside.
    Adopt(parking_lot::Mutex<Option<Result<Prepared>>>),
}

impl Work {
    /// Returns whether the log may have become shorter, or could now be.
    pub(crate) fn shortens_log(&self) -> bool {
        matches!(self, Work::Release { .. })
    }
}

/// What a client that drives log and tree itself does while it leads.
#[cfg(test)]
pub(crate) type Step = Box<
    dyn for<'w> FnOnce(
            &'w Store,
            &'w mut crate::store::Writer,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send + 'w>>
        + Send,
>;

/// Who waits for the work, and what for.
pub(crate) struct Ticket {
    state: Mutex<TicketState>,
    /// Whether the waiter is a thread that may take the lead.
    can_lead: bool,
}

enum TicketState {
    Waiting(Option<Waker>),
    /// The waiter is to lead.
    Lead,
    Done(Result<()>),
    /// Nobody waits any more.
    Abandoned,
}

impl Ticket {
    fn set(&self, next: TicketState) {
        let before = std::mem::replace(&mut *self.state.lock(), next);
        if let TicketState::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }

    /// Calls the waiter to lead; returns whether there is still one.
    fn call_to_lead(&self) -> bool {
        let mut state = self.state.lock();
        if matches!(*state, TicketState::Abandoned) {
            return false;
        }
        let before = std::mem::replace(&mut *state, TicketState::Lead);
        drop(state);
        if let TicketState::Waiting(Some(waker)) = before {
            waker.wake();
        }
        true
    }

    /// Answers the waiter.
    pub(crate) fn answer(&self, result: Result<()>) {
        self.set(TicketState::Done(result));
    }

    /// Waits for the answer; `None` is the call to lead.
    async fn wait(&self) -> Option<Result<()>> {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            match &mut *state {
                TicketState::Done(result) => Poll::Ready(Some(result.clone())),
                TicketState::Lead => {
                    *state = TicketState::Waiting(None);
                    Poll::Ready(None)
                }
                TicketState::Abandoned => Poll::Pending,
                TicketState::Waiting(waker) => {
                    if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                        *waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Work and its waiter.
pub(crate) struct Request {
    pub(crate) work: Work,
    pub(crate) ticket: Arc<Ticket>,
}

/// Work that waits for a leader.
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    /// Whether something waits, for an owner who looks often.
    waits: AtomicBool,
    /// Raised whenever something comes in for the owner.
    pub(crate) due: Arc<Notify>,
}

struct QueueState {
    waiting: VecDeque<Request>,
    leader: Leader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leader {
    /// Whoever comes next leads.
    Nobody,
    /// Somebody leads, and hands over.
    Somebody,
    /// The owner.
    Owner,
    /// The owner is gone.
    Gone,
}

impl Queue {
    /// Makes an empty queue; with an owner for leader, if it is `owned`.
    pub(crate) fn new(owned: bool) -> Queue {
        let leader = if owned { Leader::Owner } else { Leader::Nobody };
        let state = Mutex::new(QueueState { waiting: VecDeque::new(), leader });
        Queue { state, waits: AtomicBool::new(false), due: Arc::new(Notify::new()) }
    }

    /// Takes everything that waits for the owner.
    pub(crate) fn take_all(&self) -> VecDeque<Request> {
        if !self.waits.load(Ordering::Acquire) {
            return VecDeque::new();
        }
        let mut state = self.state.lock();
        self.waits.store(false, Ordering::Relaxed);
        std::mem::take(&mut state.waiting)
    }

    /// The owner goes: all that waits, and all that comes, is answered that the store was closed.
    pub(crate) fn owner_goes(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.leader = Leader::Gone;
            std::mem::take(&mut state.waiting)
        };
        waiting.iter().for_each(|request| request.ticket.answer(Err(closed())));
    }

    /// Takes the next group: what waits, in order, up to `bytes_max` of memory but at least one
    /// request. A group is applied without waiting for memory, so it must not be large.
    fn take(&self, bytes_max: usize) -> VecDeque<Request> {
        let mut state = self.state.lock();
        let mut bytes = 0;
        let within = |request: &&Request| {
            if let Work::Write { payload, .. } = &request.work {
                bytes += payload.arena;
            }
            bytes <= bytes_max
        };
        let count = state.waiting.iter().take_while(within).count().max(1);
        if count >= state.waiting.len() {
            return std::mem::take(&mut state.waiting);
        }
        state.waiting.drain(..count).collect()
    }
}

/// What is led: the store, or what stands for it in the model checker's tests.
pub(crate) trait Led: Send + Sync + Sized + 'static {
    /// Returns the queue of what waits for a leader.
    fn queue(&self) -> &Queue;

    /// Returns the memory that a group may take.
    fn group_bytes_max(&self) -> usize;

    /// Returns whether the calling thread may lead.
    fn may_lead(&self) -> bool;

    /// Carries a group through and answers it.
    fn carry(self: &Arc<Self>, group: VecDeque<Request>) -> impl Future<Output = ()> + Send;

    /// Has a task lead.
    fn spawn(&self, leader: Pin<Box<dyn Future<Output = ()> + Send>>);
}

impl Led for Store {
    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn group_bytes_max(&self) -> usize {
        Store::group_bytes_max(self)
    }

    fn may_lead(&self) -> bool {
        task::may_block()
    }

    fn carry(self: &Arc<Self>, group: VecDeque<Request>) -> impl Future<Output = ()> + Send {
        self.commit(group)
    }

    fn spawn(&self, leader: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.options.env.tasks.spawn("group commit", leader);
    }
}

/// Hands `work` to the next group and waits for its answer.
pub(crate) async fn submit<L: Led>(store: &Arc<L>, work: Work) -> Result<()> {
    let can_lead = store.may_lead();
    let (ticket, lead) = enqueue(store, work, can_lead);
    if lead {
        if can_lead {
            lead_once(store).await;
        } else {
            spawn_leader(store);
        }
    }
    let waiter = Waiter { store, ticket };
    loop {
        match waiter.ticket.wait().await {
            Some(answer) => return answer,
            None => lead_once(store).await,
        }
    }
}

/// A waiter whose future may be dropped: a call to lead that it does not hear any more is passed
/// on, or nobody would lead ever again.
struct Waiter<'s, L: Led> {
    store: &'s Arc<L>,
    ticket: Arc<Ticket>,
}

impl<L: Led> Drop for Waiter<'_, L> {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.ticket.state.lock(), TicketState::Abandoned);
        if matches!(state, TicketState::Lead) && !mutants::is("lead-not-passed-on") {
            spawn_leader(self.store);
        }
    }
}

/// Hands `work` to the next group; nobody waits for its answer. For the flush, which must go on
/// while a leader waits for it to free memory.
pub(crate) fn post<L: Led>(store: &Arc<L>, work: Work) {
    let (_, lead) = enqueue(store, work, false);
    if lead {
        spawn_leader(store);
    }
}

/// Puts `work` into the queue; says whether somebody has to lead.
fn enqueue<L: Led>(store: &Arc<L>, work: Work, can_lead: bool) -> (Arc<Ticket>, bool) {
    let ticket = Arc::new(Ticket { state: Mutex::new(TicketState::Waiting(None)), can_lead });
    let mut queue = store.queue().state.lock();
    if queue.leader == Leader::Gone {
        ticket.answer(Err(closed()));
        return (ticket, false);
    }
    queue.waiting.push_back(Request { work, ticket: ticket.clone() });
    if queue.leader == Leader::Owner {
        store.queue().waits.store(true, Ordering::Release);
        drop(queue);
        store.queue().due.notify();
        return (ticket, false);
    }
    (ticket, std::mem::replace(&mut queue.leader, Leader::Somebody) == Leader::Nobody)
}

/// Leads one group on the calling thread, then hands over.
async fn lead_once<L: Led>(store: &Arc<L>) {
    store.carry(store.queue().take(store.group_bytes_max())).await;
    let next = {
        let mut queue = store.queue().state.lock();
        match queue.waiting.front() {
            None => {
                if mutants::is("leader-leaves-unlocked") {
                    drop(queue);
                    queue = store.queue().state.lock();
                }
                queue.leader = Leader::Nobody;
                return;
            }
            Some(request) => request.ticket.clone(),
        }
    };
    if !(next.can_lead && next.call_to_lead()) {
        spawn_leader(store);
    }
}

/// Leads groups in a task of its own for as long as there are any.
fn spawn_leader<L: Led>(store: &Arc<L>) {
    let leader = store.clone();
    store.spawn(Box::pin(async move {
        loop {
            leader.carry(leader.queue().take(leader.group_bytes_max())).await;
            let mut queue = leader.queue().state.lock();
            if queue.waiting.is_empty() {
                queue.leader = Leader::Nobody;
                return;
            }
        }
    }));
}

#[cfg(all(test, atoll_loom))]
mod model;

#[cfg(test)]
#[cfg(not(atoll_loom))]
mod tests {
    use std::pin::pin;
    use std::task::Context;
    use std::time::Duration;

    use atoll_env::block_on;
    use atoll_env::sync::{Either, oneshot, select_biased};

    use super::*;
    use crate::database::Database;

    #[test]
    fn a_call_to_lead_that_nobody_hears_any_more_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::builder(dir.path().join("db")).open().unwrap();
        let store = db.store();
        block_on(async {
            let (go_on, wait) = oneshot::channel::<()>();
            let step: Step = Box::new(|_, _| {
                Box::pin(async move {
                    let _ = wait.await;
                    Ok(())
                })
            });
            let mut cx = Context::from_waker(Waker::noop());
            let mut leader = pin!(submit(store, Work::Drive(parking_lot::Mutex::new(Some(step)))));
            assert!(leader.as_mut().poll(&mut cx).is_pending());
            let mut next = Box::pin(submit(store, Work::Sync));
            assert!(next.as_mut().poll(&mut cx).is_pending());
            go_on.send(()).unwrap();
            assert!(leader.as_mut().poll(&mut cx).is_ready(), "the lead is handed over");
            drop(next);
            let limit = store.options.env.clock.sleep(Duration::from_secs(10));
            let answer = select_biased(submit(store, Work::Sync), limit).await;
            assert!(matches!(answer, Either::Left(Ok(()))), "nobody leads");
        });
        db.close().unwrap();
    }
}
