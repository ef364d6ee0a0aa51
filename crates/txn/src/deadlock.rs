//! Deadlocks: finding transactions that wait for each other's locks in a circle, across shards.
//!
//! ```text
//!    A holds a, wants b          edges, each reported by the one that waits:
//!    B holds b, wants c              A --> B --> C --> A
//!    C holds c, wants a          the youngest of the circle gives up
//! ```
//!
//! A transaction whose `Lock` is not answered soon asks that shard, again and again, whom it waits
//! for ([`Request::Waits`](atoll_mvcc::Request::Waits)), and reports the answer here. So only those
//! who wait do any work, and a circle is complete once its last member has reported.
//!
//! # Why a circle found is a circle
//! The edges were seen at different moments, and a circle of edges that never existed together
//! would abort a transaction for nothing; multi-key commands, which lock in key order and so are
//! never part of a true circle, must not fail. An edge that is seen twice stood all the time
//! between: whoever is in front of a waiter in a queue leaves it only by ending. So an edge counts
//! from the *answer* that showed it first to the *question* of the last answer that showed it still,
//! and a circle counts if one moment lies in all of its edges' intervals. A true circle never
//! dissolves by itself; its intervals grow until they overlap, after two reports of each member.
//!
//! Moments are numbers drawn from a counter under the lock, so no clock is involved.
//!
//! # Who gives up
//! The youngest: it has done the least, and a transaction that is run again keeps its age, so that
//! it becomes the oldest in the end. Wound-wait and wait-die need no search but abort transactions
//! that are in no circle at all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use atoll_env::Instant;
use atoll_env::sync::Notify;
use atoll_mvcc::TxnId;
use parking_lot::Mutex;

/// When a transaction was first begun; who is greater is younger.
pub(crate) type Age = (Instant, TxnId);

/// The search of one engine. All its coordinators share one.
#[derive(Default)]
pub struct Deadlocks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last moment drawn.
    moment: u64,
    waiting: BTreeMap<TxnId, Waiter>,
    /// Circles broken since the start.
    broken: u64,
}

struct Waiter {
    age: Age,
    edges: BTreeMap<TxnId, Edge>,
    /// It was told to give up.
    is_victim: bool,
    victim: Arc<Notify>,
}

/// That a transaction waits for another.
#[derive(Clone, Copy)]
struct Edge {
    /// The moment at which the first answer with it arrived.
    since: u64,
    /// The moment at which the last question was asked that was answered with it. Below `since`
    /// until it was seen twice.
    until: u64,
}

impl fmt::Debug for Deadlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Deadlocks({} waiting, {} broken)", state.waiting.len(), state.broken)
    }
}

impl Deadlocks {
    /// Returns a search in which nobody waits.
    pub fn new() -> Arc<Deadlocks> {
        Arc::default()
    }

    /// Returns how many circles were broken.
    pub fn broken(&self) -> u64 {
        self.state.lock().broken
    }

    /// Enters a transaction that waits for a lock; it is taken out when the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, txn: TxnId, age: Age) -> Waiting {
        let victim = Arc::new(Notify::new());
        let waiter =
            Waiter { age, edges: BTreeMap::new(), is_victim: false, victim: victim.clone() };
        self.state.lock().waiting.insert(txn, waiter);
        Waiting { deadlocks: self.clone(), txn, victim }
    }
}

/// A transaction that waits for a lock.
pub(crate) struct Waiting {
    deadlocks: Arc<Deadlocks>,
    txn: TxnId,
    victim: Arc<Notify>,
}

impl Waiting {
    /// Draws the moment of a question.
    pub(crate) fn ask(&self) -> u64 {
        let mut state = self.deadlocks.state.lock();
        state.moment += 1;
        state.moment
    }

    /// Reports the answer to a question of the moment `asked`: whom the transaction waits for. Tells
    /// the youngest of a circle, which may be this one, to give up.
    pub(crate) fn report(&self, asked: u64, blockers: &[TxnId]) {
        let mut state = self.deadlocks.state.lock();
        state.moment += 1;
        let now = state.moment;
        let Some(waiter) = state.waiting.get_mut(&self.txn) else { return };
        waiter.edges.retain(|to, _| blockers.contains(to));
        for to in blockers {
            let seen = |edge: &mut Edge| edge.until = asked;
            let edge = Edge { since: now, until: asked };
            waiter.edges.entry(*to).and_modify(seen).or_insert(edge);
        }
        let Some(circle) = circle(&state.waiting, self.txn) else { return };
        let age = |txn: &TxnId| state.waiting.get(txn).map(|waiter| waiter.age);
        let Some(youngest) = circle.iter().copied().max_by_key(age) else { return };
        if let Some(victim) = state.waiting.get_mut(&youngest) {
            victim.is_victim = true;
            victim.victim.notify();
            state.broken += 1;
        }
    }

    /// Waits until the transaction is told to give up.
    pub(crate) async fn chosen(&self) {
        self.victim.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.deadlocks.state.lock().waiting.remove(&self.txn);
    }
}

/// Finds a circle through `start` whose edges all stood at one moment and of which nobody gives up
/// already.
fn circle(waiting: &BTreeMap<TxnId, Waiter>, start: TxnId) -> Option<Vec<TxnId>> {
    // Depth first; a path carries the interval in which all of it stood.
    struct Step {
        txn: TxnId,
        depth: usize,
        since: u64,
        until: u64,
    }
    let mut path: Vec<TxnId> = Vec::new();
    let mut seen: Vec<TxnId> = Vec::new();
    let mut open = vec![Step { txn: start, depth: 0, since: 0, until: u64::MAX }];
    while let Some(step) = open.pop() {
        path.truncate(step.depth);
        if step.txn == start && step.depth > 0 {
            return Some(path);
        }
        if seen.contains(&step.txn) {
            continue;
        }
        seen.push(step.txn);
        let Some(waiter) = waiting.get(&step.txn) else { continue };
        if waiter.is_victim {
            continue;
        }
        path.push(step.txn);
        for (to, edge) in &waiter.edges {
            let (since, until) = (step.since.max(edge.since), step.until.min(edge.until));
            if since <= until {
                open.push(Step { txn: *to, depth: step.depth + 1, since, until });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_env::block_on;
    use atoll_env::sync::{Either, select_biased};
    use std::future::ready;

    fn is_chosen(waiting: &Waiting) -> bool {
        block_on(select_biased(waiting.chosen(), ready(()))) == Either::Left(())
    }

    fn sees(waiting: &Waiting, blockers: &[u128]) {
        let asked = waiting.ask();
        waiting.report(asked, &blockers.iter().map(|id| TxnId(*id)).collect::<Vec<_>>());
    }

    #[test]
    fn the_youngest_of_a_circle_gives_up_once_everybody_has_looked_twice() {
        let deadlocks = Deadlocks::new();
        let [a, b, c] = [1, 2, 3].map(|n| {
            deadlocks.enter(TxnId(u128::from(n)), (Instant(if n == 2 { 9 } else { n }), TxnId(0)))
        });
        for _ in 0..2 {
            assert_eq!(deadlocks.broken(), 0);
            sees(&a, &[2, 7]);
            sees(&b, &[3]);
            sees(&c, &[1]);
        }
        sees(&a, &[2, 7]);
        assert_eq!([&a, &b, &c].map(is_chosen), [false, true, false]);
        // It is asked once, however long it takes to leave.
        sees(&c, &[1]);
        assert_eq!(deadlocks.broken(), 1);
    }

    #[test]
    fn edges_that_never_stood_together_make_no_circle() {
        let deadlocks = Deadlocks::new();
        let a = deadlocks.enter(TxnId(1), (Instant(1), TxnId(1)));
        for _ in 0..3 {
            sees(&a, &[2]);
        }
        drop(a); // it got its lock, ended, and 2 waits for somebody else of the same kind
        let b = deadlocks.enter(TxnId(2), (Instant(2), TxnId(2)));
        for _ in 0..3 {
            sees(&b, &[1]);
        }
        // The first edge was seen only once since: it may be gone by now.
        let a = deadlocks.enter(TxnId(1), (Instant(1), TxnId(1)));
        sees(&a, &[2]);
        assert_eq!(deadlocks.broken(), 0);
        sees(&a, &[2]);
        sees(&b, &[1]);
        assert_eq!(deadlocks.broken(), 1);
    }
}
