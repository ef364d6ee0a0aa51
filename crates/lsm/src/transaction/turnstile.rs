//! The turnstile: many writers pass at a time, or one transaction is alone.
//!
//! ```text
//!   plain writes, optimistic commits    take a pass, write, give it back
//!   a single-writer transaction         locks, waits until no pass is out, works, unlocks
//! ```
//!
//! A pass costs two additions on one word while nobody wants to be alone. Those who want to be line
//! up and take turns in the order in which they came; before the next one locks, the writers that
//! waited for the last one pass, so neither kind starves the other.
//!
//! A write whose future is dropped gives its pass back while its batch may still wait for a leader.
//! So whoever locked sends something through the commit queue before he looks at the data
//! ([`Work::Barrier`](crate::commit::Work::Barrier)): what was queued earlier is visible then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::Event;
use parking_lot::Mutex;

use crate::database::closed;
use crate::error::Result;

/// In [`Turnstile::state`]: it is locked.
const LOCKED: usize = 1;
/// One pass.
const PASS: usize = 2;

/// Lets many writers pass or one transaction be alone.
#[derive(Default)]
pub(crate) struct Turnstile {
    /// The passes that are out and whether it is locked.
    state: AtomicUsize,
    line: Mutex<Line>,
    /// Something changed for those who wait.
    changed: Event,
}

#[derive(Default)]
struct Line {
    /// Who wants to be alone, by number.
    alone: VecDeque<u64>,
    next: u64,
    /// Writers that wait for a pass.
    writers: usize,
    closed: bool,
}

impl Turnstile {
    /// Takes a pass; waits while somebody is alone.
    pub(crate) async fn pass(&self) -> Result<Pass<'_>> {
        if let Some(pass) = self.try_pass() {
            return Ok(pass);
        }
        let _waits = WaitingWriter::new(self);
        loop {
            let changed = self.changed.listen();
            if self.line.lock().closed {
                return Err(closed());
            }
            // Looked at first: trying would wake the others who wait, and they this one.
            if self.state.load(Ordering::Acquire) & LOCKED == 0
                && let Some(pass) = self.try_pass()
            {
                return Ok(pass);
            }
            changed.await;
        }
    }

    /// Takes a pass that outlives whoever asked for it.
    pub(crate) async fn pass_owned(self: &Arc<Self>) -> Result<OwnedPass> {
        let _pass = self.pass().await?;
        // Nobody is alone as long as one is out, so another one may go out.
        self.state.fetch_add(PASS, Ordering::AcqRel);
        Ok(OwnedPass(self.clone()))
    }

    fn give_back(&self) {
        if self.state.fetch_sub(PASS, Ordering::AcqRel) == PASS | LOCKED {
            self.wake();
        }
    }

    fn try_pass(&self) -> Option<Pass<'_>> {
        let pass = Pass(self);
        (self.state.fetch_add(PASS, Ordering::AcqRel) & LOCKED == 0).then_some(pass)
    }

    /// Waits for the turn to be alone, and until nobody else writes.
    pub(crate) async fn be_alone(self: &Arc<Self>) -> Result<Alone> {
        let number = {
            let mut line = self.line.lock();
            let number = line.next;
            line.next += 1;
            line.alone.push_back(number);
            number
        };
        let place = Place { turnstile: self, number };
        loop {
            let changed = self.changed.listen();
            {
                let line = self.line.lock();
                if line.closed {
                    return Err(closed());
                }
                let unlocked = self.state.load(Ordering::Acquire) & LOCKED == 0;
                if unlocked && line.writers == 0 && line.alone.front() == Some(&number) {
                    self.state.fetch_or(LOCKED, Ordering::AcqRel);
                    break;
                }
            }
            changed.await;
        }
        let alone = Alone(self.clone());
        drop(place);
        loop {
            let changed = self.changed.listen();
            if self.state.load(Ordering::Acquire) == LOCKED {
                return Ok(alone);
            }
            changed.await;
        }
    }

    /// Sends away all who wait, and all who will have to.
    pub(crate) fn close(&self) {
        self.line.lock().closed = true;
        self.wake();
    }

    fn wake(&self) {
        self.changed.notify(usize::MAX);
    }
}

/// Leave to write. Dropped when the write was answered.
pub(crate) struct Pass<'t>(&'t Turnstile);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// A [`Pass`] that is handed on with the write.
pub(crate) struct OwnedPass(Arc<Turnstile>);

impl Drop for OwnedPass {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// Nobody else writes as long as it lives.
pub(crate) struct Alone(Arc<Turnstile>);

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.state.fetch_and(!LOCKED, Ordering::AcqRel);
        self.0.wake();
    }
}

/// A place in the line, given up when it is dropped.
struct Place<'t> {
    turnstile: &'t Turnstile,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turnstile.line.lock().alone.retain(|number| *number != self.number);
        self.turnstile.wake();
    }
}

/// A writer that waits for a pass.
struct WaitingWriter<'t>(&'t Turnstile);

impl WaitingWriter<'_> {
    fn new(turnstile: &Turnstile) -> WaitingWriter<'_> {
        turnstile.line.lock().writers += 1;
        WaitingWriter(turnstile)
    }
}

impl Drop for WaitingWriter<'_> {
    fn drop(&mut self) {
        self.0.line.lock().writers -= 1;
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Waker};

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn who_wants_to_be_alone_waits_for_passes_and_is_waited_for() {
        let turnstile = Arc::new(Turnstile::default());
        let first = poll(pin!(turnstile.pass())).unwrap().unwrap();
        let second = poll(pin!(turnstile.pass())).unwrap().unwrap();
        let mut alone = Box::pin(turnstile.be_alone());
        assert!(poll(alone.as_mut()).is_none());
        let mut late = Box::pin(turnstile.pass());
        assert!(poll(late.as_mut()).is_none(), "a writer overtakes who waits to be alone");
        drop(first);
        assert!(poll(alone.as_mut()).is_none());
        drop(second);
        let alone = poll(alone.as_mut()).unwrap().unwrap();
        assert!(poll(late.as_mut()).is_none());
        drop(alone);
        assert!(poll(late.as_mut()).unwrap().is_ok());
    }

    #[test]
    fn turns_are_taken_in_order_with_the_writers_who_waited_in_between() {
        let turnstile = Arc::new(Turnstile::default());
        let first = poll(pin!(turnstile.be_alone())).unwrap().unwrap();
        let (mut second, mut third) =
            (Box::pin(turnstile.be_alone()), Box::pin(turnstile.be_alone()));
        assert!(poll(third.as_mut()).is_none() && poll(second.as_mut()).is_none());
        let mut writer = Box::pin(turnstile.pass());
        assert!(poll(writer.as_mut()).is_none());
        drop(first);
        assert!(poll(third.as_mut()).is_none(), "the writer goes first");
        drop(poll(writer.as_mut()).unwrap().unwrap());
        assert!(poll(second.as_mut()).is_none(), "the third was polled first and came first");
        let third = poll(third.as_mut()).unwrap().unwrap();
        drop(third);
        assert!(poll(second.as_mut()).unwrap().is_ok());
    }

    #[test]
    fn who_goes_away_is_in_nobodys_way() {
        let turnstile = Arc::new(Turnstile::default());
        let pass = poll(pin!(turnstile.pass())).unwrap().unwrap();
        let mut given_up = Box::pin(turnstile.be_alone());
        assert!(poll(given_up.as_mut()).is_none());
        drop(given_up);
        assert!(poll(pin!(turnstile.pass())).is_some(), "locked by nobody");
        drop(pass);
        let alone = poll(pin!(turnstile.be_alone())).unwrap().unwrap();
        let mut writer = Box::pin(turnstile.pass());
        assert!(poll(writer.as_mut()).is_none());
        drop(writer);
        drop(alone);
        assert!(poll(pin!(turnstile.be_alone())).unwrap().is_ok());
    }

    #[test]
    fn closing_sends_everybody_away() {
        let turnstile = Arc::new(Turnstile::default());
        let alone = poll(pin!(turnstile.be_alone())).unwrap().unwrap();
        let (mut writer, mut other) = (Box::pin(turnstile.pass()), Box::pin(turnstile.be_alone()));
        assert!(poll(writer.as_mut()).is_none() && poll(other.as_mut()).is_none());
        turnstile.close();
        assert!(poll(writer.as_mut()).unwrap().is_err());
        assert!(poll(other.as_mut()).unwrap().is_err());
        drop(alone);
    }
}
