//! The environment: everything the database may ask of the world outside it.
//!
//! Time, randomness, disk, network and tasks come in through [`Env`], a bundle of trait objects.
//! Two worlds implement it:
//!
//! ```text
//!            lsm, redis, server, ...          (plain state machines and async functions)
//!                       |
//!                      Env  = clock + random + disk + network + tasks
//!                  +----+-----+
//!                 os          sim
//!      threads, pread,        one thread, virtual time, a seed,
//!      fdatasync, sockets     a disk that tears, loses and lies
//! ```
//!
//! # Invariants
//! - Code above this crate never names a clock, a file, a socket or a thread (`clippy.toml` holds
//!   the list); therefore a seed of the simulator names exactly one execution.
//! - An [`IoFuture`] owns its buffer: dropping it never leaves the kernel or a helper thread
//!   writing into freed memory (and io_uring can take the place of threads without a new API).
//! - Cores share nothing that is locked: they send each other messages ([`mesh`]).
//! - On a thread inside [`task::block_on`] the real disk answers at the first poll, by a blocking
//!   call; elsewhere it hands the operation to its threads and wakes the task. One code path above
//!   serves both (ARCHITECTURE.md, one engine code).
//!
//! This crate knows nothing of databases.

pub mod buf;
pub mod disk;
pub mod mesh;
pub mod net;
pub mod os;
pub mod probe;
pub mod random;
pub mod ring;
pub mod sim;
pub mod sync;
pub mod task;
pub mod throttle;
pub mod time;

use std::sync::Arc;

pub use buf::IoBuf;
pub use disk::{Disk, File, FileUse, IoClass, IoFuture, IoTag, OpenMode};
pub use random::Random;
pub use task::{Tasks, block_on};
pub use time::{Clock, Instant, WallTime};

/// The world, as one node sees it. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// Monotonic and wall time, and sleeping.
    pub clock: Arc<dyn Clock>,
    /// Seeds for generators; never used for cryptographic secrets.
    pub random: Arc<dyn Random>,
    /// Files and directories.
    pub disk: Arc<dyn Disk>,
    /// Listeners and streams.
    pub network: Arc<dyn net::Network>,
    /// Background and core-local tasks.
    pub tasks: Arc<dyn Tasks>,
}
