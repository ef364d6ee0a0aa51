//! Threads that are kept while there is work: one kind for disk operations, one for tasks.
//!
//! A thread is started when work arrives and none is idle, up to the pool's limit, and ends after
//! [`IDLE`] without work. A bounded pool serves urgent work (a commit or a client waits) before
//! background work and lets the latter hold at most half of its threads, so that a slow compaction
//! write cannot stand before a log sync.

use std::collections::VecDeque;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// A piece of work; its name is in the message if it panics.
pub(super) struct Job {
    pub(super) name: &'static str,
    pub(super) background: bool,
    pub(super) run: Box<dyn FnOnce() + Send>,
}

/// A set of threads. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    thread_name: &'static str,
    /// `None` when every piece of work gets a thread: a task may run for the life of the process.
    max_threads: Option<usize>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    urgent: VecDeque<Job>,
    background: VecDeque<Job>,
    threads: usize,
    idle: usize,
    background_running: usize,
}

impl Pool {
    /// Returns a pool that starts at most `max_threads` threads.
    pub(super) fn new(thread_name: &'static str, max_threads: Option<usize>) -> Pool {
        let (state, work) = (Mutex::default(), Condvar::new());
        Pool { shared: Arc::new(Shared { thread_name, max_threads, state, work }) }
    }

    /// Hands `job` to a thread. On an error it was dropped: no thread could be started, and none
    /// will come free.
    pub(super) fn submit(&self, job: Job) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let queued = state.urgent.len() + state.background.len();
        let room = self.shared.max_threads.is_none_or(|max| state.threads < max);
        if state.idle <= queued && room {
            // Started under the lock, so that a thread which cannot be started is known before the
            // job is queued behind it.
            match self.start_thread() {
                Ok(()) => state.threads += 1,
                Err(e) if self.shared.max_threads.is_none() || state.threads == 0 => return Err(e),
                Err(_) => {} // the threads that run will come to it
            }
        }
        if job.background {
            state.background.push_back(job);
        } else {
            state.urgent.push_back(job);
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        std::thread::Builder::new()
            .name(self.shared.thread_name.to_owned())
            .spawn(move || shared.work())?;
        Ok(())
    }
}

impl Shared {
    /// The life of one thread.
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = self.take(&mut state) {
                let background = job.background;
                drop(state);
                run_or_abort(job);
                state = self.state.lock();
                state.background_running -= usize::from(background);
                continue;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            // Work may have been queued between the timeout and the lock.
            if timed_out && state.urgent.is_empty() && state.background.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    fn take(&self, state: &mut State) -> Option<Job> {
        if let Some(job) = state.urgent.pop_front() {
            return Some(job);
        }
        if self.max_threads.is_some_and(|max| state.background_running >= max.div_ceil(2)) {
            return None;
        }
        let job = state.background.pop_front()?;
        state.background_running += 1;
        Some(job)
    }
}

fn run_or_abort(job: Job) {
    let name = job.name;
    // The panic hook has printed what and where; the name says whose work is lost.
    if std::panic::catch_unwind(AssertUnwindSafe(job.run)).is_err() {
        abort(name);
    }
}

/// Ends the process after a panic in `name`.
pub(super) fn abort(name: &str) -> ! {
    eprintln!("fatal: '{name}' panicked, its state cannot be trusted: aborting");
    std::process::abort()
}
