//! Tasks on the real machine: a thread of a cached pool per background task, tokio's `LocalSet`
//! for what stays on its core.

use crate::os::pool::{self, Job, Pool};
use crate::task::{self, BoxFuture, LocalBoxFuture, Tasks};

pub(super) struct OsTasks {
    pool: Pool,
}

impl OsTasks {
    pub(super) fn new() -> OsTasks {
        OsTasks { pool: Pool::new("atoll-task", None) }
    }
}

impl Tasks for OsTasks {
    fn spawn(&self, name: &'static str, task: BoxFuture) {
        let job = Job { name, background: false, run: Box::new(move || task::block_on(task)) };
        if let Err(error) = self.pool.submit(job) {
            // The caller relies on the work being done (a flush that frees memory), as on memory.
            panic!("cannot start a thread for '{name}': {error}; raise the limit of threads");
        }
    }

    fn spawn_local(&self, name: &'static str, task: LocalBoxFuture) {
        tokio::task::spawn_local(async move {
            let guard = AbortOnPanic { name };
            task.await;
            std::mem::forget(guard);
        });
    }

    #[expect(clippy::disallowed_methods, reason = "tmp")]
    fn spawn_core(
        &self,
        _index: usize,
        name: &'static str,
        _pin: Option<usize>,
        make: Box<dyn FnOnce() -> LocalBoxFuture + Send>,
    ) {
        std::thread::spawn(move || {
            let guard = AbortOnPanic { name };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("rt");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move { make().await });
            std::mem::forget(guard);
        });
    }
}

/// tokio keeps a panic for whoever joins the task, and nobody does.
struct AbortOnPanic {
    name: &'static str,
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        // Without a panic the task was only dropped with its runtime.
        if std::thread::panicking() {
            pool::abort(self.name);
        }
    }
}
