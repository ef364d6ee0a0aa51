//! The machine's clocks, and sleeping under any executor.
//!
//! Sleepers wait in one ordered map; a single thread sleeps until the first of them is due. A
//! sleeper that is dropped takes its entry along, so timeouts that did not fire leave nothing.

#![expect(clippy::disallowed_methods, reason = "this is what Clock::now and Clock::wall stand on")]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex};

use crate::time::{Clock, Instant, WallTime};

/// How long the timer thread stays without sleepers.
const IDLE: Duration = Duration::from_secs(10);

pub(super) struct OsClock {
    timer: Arc<Timer>,
}

struct Timer {
    origin: std::time::Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Who wakes when. The number tells sleepers of one nanosecond apart.
    sleepers: BTreeMap<(Instant, u64), Waker>,
    next_id: u64,
    running: bool,
}

impl OsClock {
    pub(super) fn new() -> OsClock {
        let origin = std::time::Instant::now();
        OsClock {
            timer: Arc::new(Timer { origin, state: Mutex::default(), changed: Condvar::new() }),
        }
    }
}

impl Clock for OsClock {
    fn now(&self) -> Instant {
        self.timer.now()
    }

    fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let deadline = self.now().after(duration);
        Box::pin(Sleep { timer: self.timer.clone(), deadline, id: None })
    }
}

struct Sleep {
    timer: Arc<Timer>,
    deadline: Instant,
    id: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.now() >= self.deadline {
            return Poll::Ready(());
        }
        let id = Timer::register(&self.timer, self.deadline, self.id, cx.waker());
        self.id = Some(id);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // Dropping a waker may drop a task and its sleepers: not under the lock.
            let waker = self.timer.state.lock().sleepers.remove(&(self.deadline, id));
            drop(waker);
        }
    }
}

impl Timer {
    fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn register(self: &Arc<Timer>, deadline: Instant, id: Option<u64>, waker: &Waker) -> u64 {
        // The waker of the last poll, which is dropped after the lock is released.
        let _replaced;
        let mut state = self.state.lock();
        let id = id.unwrap_or_else(|| {
            state.next_id += 1;
            state.next_id
        });
        _replaced = state.sleepers.insert((deadline, id), waker.clone());
        let is_first = state.sleepers.keys().next() == Some(&(deadline, id));
        if !state.running {
            let timer = self.clone();
            let started = std::thread::Builder::new()
                .name("atoll-timer".to_owned())
                .spawn(move || timer.run());
            match started {
                Ok(_) => state.running = true,
                Err(e) => panic!("cannot start the timer thread: {e}; raise the limit of threads"),
            }
        } else if is_first {
            self.changed.notify_one();
        }
        id
    }

    /// The life of the timer thread.
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            let now = self.now();
            let later = state.sleepers.split_off(&(Instant(now.0.saturating_add(1)), 0));
            let due = std::mem::replace(&mut state.sleepers, later);
            if !due.is_empty() {
                // A waker is foreign code, which may come back here: not under the lock.
                drop(state);
                due.into_values().for_each(Waker::wake);
                state = self.state.lock();
                continue;
            }
            match state.sleepers.keys().next() {
                Some((first, _)) => {
                    let wait = first.since(now);
                    self.changed.wait_for(&mut state, wait);
                }
                None => {
                    let timed_out = self.changed.wait_for(&mut state, IDLE).timed_out();
                    if timed_out && state.sleepers.is_empty() {
                        state.running = false;
                        return;
                    }
                }
            }
        }
    }
}
