//! The real half: threads, blocking system calls, the machine's clock and sockets.
//!
//! ```text
//!  Clock    monotonic and wall time of the machine; one timer thread serves all sleepers
//!  Disk     a ring of each core (io_uring), blocking calls under block_on, else a few I/O threads
//!  Network  tokio's sockets (the only place that names a runtime, beside spawn_local)
//!  Tasks    background work on cached threads, each under block_on; core-local work on tokio
//!  Random   the kernel's generator
//! ```
//!
//! Beside the environment there is [`memory`]: regions for whoever manages memory of his own.
//!
//! Every thread is started by the first work that needs it and ends after ten idle seconds, so an
//! environment that is made and dropped leaves nothing behind.
//!
//! A panic on any of these threads or tasks aborts the process: after it, memory that other tasks
//! share may be half changed, and a database that goes on serving from it is worse than one that
//! restarts from its log.

mod clock;
mod disk;
mod io;
pub mod memory;
mod net;
mod pool;
mod tasks;
#[cfg(test)]
mod tests;
mod transfer;
mod uring;
mod write_back;

use std::sync::Arc;

pub use io::{Backend, DirectIo, IoOptions, Report};

use crate::Env;
use crate::random::Random;

/// Returns the machine's own environment.
///
/// # Errors
/// The kernel's random generator cannot be read.
pub fn env() -> std::io::Result<Env> {
    env_with(IoOptions::default())
}

/// Returns the machine's own environment, with a disk that is used in a given way.
///
/// # Errors
/// The kernel's random generator cannot be read, or rings are insisted on and cannot be had.
pub fn env_with(options: IoOptions) -> std::io::Result<Env> {
    let clock = Arc::new(clock::OsClock::new());
    let io = Arc::new(io::Io::new(options, clock.clone())?);
    Ok(Env {
        clock,
        random: Arc::new(OsRandom::new()?),
        disk: Arc::new(disk::OsDisk::new(io.clone())),
        network: Arc::new(net::OsNetwork),
        tasks: Arc::new(tasks::OsTasks::new(io)),
    })
}

/// Random bits of a generator keyed by the kernel: seeds are asked for rarely, but a caller has
/// nowhere to report a failing system call to, so it is made once, at the start.
struct OsRandom {
    prng: parking_lot::Mutex<crate::random::Prng>,
}

impl OsRandom {
    fn new() -> std::io::Result<OsRandom> {
        let mut seed = [0; 8];
        let mut filled = 0;
        while filled < seed.len() {
            match rustix::rand::getrandom(
                &mut seed[filled..],
                rustix::rand::GetRandomFlags::empty(),
            ) {
                Ok(n) => filled += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let prng = crate::random::Prng::new(u64::from_le_bytes(seed));
        Ok(OsRandom { prng: parking_lot::Mutex::new(prng) })
    }
}

impl Random for OsRandom {
    fn next_u64(&self) -> u64 {
        self.prng.lock().next_u64()
    }
}
