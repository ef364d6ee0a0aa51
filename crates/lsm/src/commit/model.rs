//! The queue and the hand-over of the lead under the model checker: writers on threads that may lead, on
//! threads that may not, and such as go away.
//!
//! A lost call to lead or a lost answer ends as a deadlock, which the checker reports. `cargo xtask loom`
//! runs it.

use std::pin::pin;
use std::task::Context;

use loom::future::block_on;
use loom::sync::Arc as Shared;
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::thread;

use super::*;
use crate::sync::{check, failure_without};

/// Stands for the store: it answers, and sees to it that only one leads.
struct Counter {
    queue: Queue,
    may_lead: bool,
    leads: AtomicBool,
    answered: Shared<AtomicUsize>,
}

impl Led for Counter {
    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn group_bytes_max(&self) -> usize {
        0
    }

    fn may_lead(&self) -> bool {
        self.may_lead
    }

    async fn carry(self: &Arc<Self>, group: VecDeque<Request>) {
        assert!(!group.is_empty(), "somebody leads for somebody");
        assert!(!self.leads.swap(true, Ordering::AcqRel), "one leads at a time");
        self.answered.fetch_add(group.len(), Ordering::Relaxed);
        // Who is answered may lead at once.
        self.leads.store(false, Ordering::Release);
        group.iter().for_each(|request| request.ticket.answer(Ok(())));
    }

    fn spawn(&self, leader: Pin<Box<dyn Future<Output = ()> + Send>>) {
        thread::spawn(move || block_on(leader));
    }
}

/// Has `writers` threads submit at once, one of which goes away before its answer if `leaves` says so.
fn story(writers: usize, may_lead: bool, leaves: bool) {
    let answered = Shared::new(AtomicUsize::new(0));
    let counter = Arc::new(Counter {
        queue: Queue::new(false),
        may_lead,
        leads: AtomicBool::new(false),
        answered: answered.clone(),
    });
    let threads: Vec<_> = (1..writers)
        .map(|number| {
            let counter = counter.clone();
            thread::spawn(move || {
                if leaves && number == 1 {
                    let mut cx = Context::from_waker(Waker::noop());
                    let _ = pin!(submit(&counter, Work::Sync)).poll(&mut cx);
                } else {
                    block_on(submit(&counter, Work::Sync)).unwrap();
                }
            })
        })
        .collect();
    block_on(submit(&counter, Work::Sync)).unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // After those who left nobody leads for ever, and nobody waits for ever.
    block_on(submit(&counter, Work::Sync)).unwrap();
    let count = answered.load(Ordering::Relaxed);
    assert!(count == writers + 1 || leaves && count == writers, "each is answered once: {count}");
}

#[test]
fn every_writer_is_answered_once_when_threads_lead() {
    check(3, || story(3, true, false));
}

#[test]
fn every_writer_is_answered_once_when_a_task_leads() {
    check(2, || story(2, false, false));
}

#[test]
fn a_writer_who_goes_away_takes_no_lead_with_him() {
    check(3, || story(3, true, true));
}

#[test]
fn a_lead_that_is_not_passed_on_and_a_leader_that_leaves_in_two_steps_are_noticed() {
    for (rule, name) in [
        ("lead-not-passed-on", "a_writer_who_goes_away_takes_no_lead_with_him"),
        ("leader-leaves-unlocked", "every_writer_is_answered_once_when_threads_lead"),
    ] {
        let said = failure_without(rule, &format!("commit::model::{name}"));
        assert!(said.is_some_and(|said| said.contains("deadlock")), "{rule}");
    }
}
