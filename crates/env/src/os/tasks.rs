//! Tasks on the real machine: a thread of a cached pool per background task, a thread with a tokio
//! runtime per core, tokio's `LocalSet` for what stays on its core.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, mpsc};

use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::task::LocalSet;

use crate::os::io::Io;
use crate::os::pool::{self, Job, Pool};
use crate::os::uring;
use crate::task::{self, BoxFuture, CoreMain, LocalBoxFuture, Tasks};

pub(super) struct OsTasks {
    pool: Pool,
    io: Arc<Io>,
}

impl OsTasks {
    pub(super) fn new(io: Arc<Io>) -> OsTasks {
        OsTasks { pool: Pool::new("atoll-task", None), io }
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

    fn spawn_core(
        &self,
        index: usize,
        name: &'static str,
        pin: Option<usize>,
        make: CoreMain,
    ) -> io::Result<()> {
        // The thread says whether it could start before it runs anything.
        let io = self.io.clone();
        let (started, starts) = mpsc::sync_channel(1);
        let core = move || {
            let runtime = pin
                .map_or(Ok(()), pin_to)
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    _ = started.send(Err(error));
                    return;
                }
            };
            // Whoever started the core waits for this.
            _ = started.send(Ok(()));
            let main = async {
                let _ring = attach_ring(&io);
                make().await;
            };
            let run = AssertUnwindSafe(|| LocalSet::new().block_on(&runtime, main));
            if std::panic::catch_unwind(run).is_err() {
                pool::abort(name);
            }
        };
        std::thread::Builder::new().name(format!("{name}-{index}")).spawn(core)?;
        starts.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended at once")))
    }
}

/// Gives the calling core its ring. Without one its transfers go to threads.
fn attach_ring(io: &Arc<Io>) -> Option<uring::OfCore> {
    if !io.rings {
        return None;
    }
    match uring::attach(io) {
        Ok((ring, driver)) => {
            tokio::task::spawn_local(async move {
                let guard = AbortOnPanic { name: "ring" };
                driver.await;
                std::mem::forget(guard);
            });
            Some(ring)
        }
        Err(error) => {
            io.degrade("the io_uring of a core", &error.to_string());
            None
        }
    }
}

/// Keeps the calling thread on one CPU.
fn pin_to(cpu: usize) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no CPU {cpu}")));
    }
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).map_err(|error| {
        io::Error::new(error.kind(), format!("CPU {cpu} is not one this process may use: {error}"))
    })
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
