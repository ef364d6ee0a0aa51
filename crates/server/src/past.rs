//! The past: which timestamp is at most so and so old.
//!
//! Timestamps are numbers of the oracle's, not of a clock: it may run ahead, and a wall clock may
//! jump. So a core that is asked for the past notes one every ten milliseconds, with the moment at
//! which it was drawn. Whatever was answered before that moment lies below it; the oldest note that
//! is not older than the bound is the answer.
//!
//! Notes are taken only while somebody asks: at first, and after a pause, the past is the present.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::{Instant, task};
use atoll_kv::Core;
use atoll_mvcc::Timestamp;
use atoll_objects::ObjectProgram;

/// Between two notes.
const EVERY: Duration = Duration::from_millis(10);
/// Notes kept: a little less than versions of keys are.
const KEPT: Duration = Duration::from_secs(4);
/// Notes go on for so long after somebody has asked.
const INTEREST: Duration = Duration::from_secs(10);

/// What a core knows about the past.
#[derive(Clone, Default)]
pub(crate) struct Past(Rc<Notes>);

#[derive(Default)]
struct Notes {
    /// Oldest first.
    taken: RefCell<VecDeque<(Instant, Timestamp)>>,
    /// When somebody asked last.
    asked: Cell<Instant>,
    running: Cell<bool>,
}

impl Notes {
    fn take(&self, now: Instant, at: Timestamp) {
        let mut taken = self.taken.borrow_mut();
        taken.push_back((now, at));
        while taken.front().is_some_and(|(then, _)| now.since(*then) > KEPT) {
            taken.pop_front();
        }
    }

    fn oldest_within(&self, now: Instant, bound: Duration) -> Option<Timestamp> {
        let taken = self.taken.borrow();
        let first = taken.partition_point(|(then, _)| now.since(*then) > bound);
        taken.get(first).map(|(_, at)| *at)
    }
}

impl Past {
    /// Returns a timestamp below which lies everything that was answered more than `bound` ago.
    pub(crate) fn at(&self, core: &Core<ObjectProgram>, bound: Duration) -> Timestamp {
        let clock = &core.env().clock;
        let now = clock.now();
        self.0.asked.set(now);
        if !self.0.running.replace(true) {
            core.env().tasks.spawn_local("past", Box::pin(keep(self.0.clone(), core.clone())));
        }
        self.0.oldest_within(now, bound.min(KEPT)).unwrap_or_else(|| core.read_point())
    }
}

/// Takes notes until nobody is interested any more.
async fn keep(notes: Rc<Notes>, core: Core<ObjectProgram>) {
    let clock = core.env().clock.clone();
    loop {
        let now = clock.now();
        if now.since(notes.asked.get()) > INTEREST {
            break;
        }
        notes.take(now, core.read_point());
        clock.sleep(EVERY).await;
        task::yield_now().await;
    }
    notes.taken.borrow_mut().clear();
    notes.running.set(false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_mvcc::Epoch;

    #[test]
    fn the_past_is_the_oldest_note_within_the_bound() {
        let notes = Notes::default();
        let ms = |ms: u64| Instant(ms * 1_000_000);
        let ts = |n: u64| Timestamp::read_at(Epoch(n));
        assert_eq!(notes.oldest_within(ms(5), Duration::from_secs(1)), None, "nothing is known");
        for n in [100, 110, 120, 5_000] {
            notes.take(ms(n), ts(n));
        }
        let within = |now, bound| notes.oldest_within(ms(now), Duration::from_millis(bound));
        assert_eq!(within(5_001, 4_000), Some(ts(5_000)), "older notes are forgotten");
        assert_eq!(within(5_001, 1), Some(ts(5_000)));
        assert_eq!(within(5_002, 1), None, "a note that is too old is none");
    }
}
