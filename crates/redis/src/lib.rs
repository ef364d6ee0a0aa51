//! The Redis surface: sessions and commands, without sockets and without a storage engine.
//!
//! ```text
//!   bytes of each client --> Session --> Request --> command table --> Call --+
//!                                                                             |  reads and stages
//!   bytes to each client <-- Session <-- replies, once the turn is committed  v
//!                                                     Executor = Writes of the turn over a Store
//! ```
//!
//! **A turn.** The owner hands the bytes of all clients that have some to one [`Executor`], which
//! executes their commands one after the other. Writes are staged in memory, in [`Writes`]; reads
//! look there first, so a command sees what the turn did before it. Then the turn's writes are one
//! atomic batch for the [`Store`], synced once, and only then the replies leave.
//!
//! # Invariants
//! - No reply that depends on a write leaves before the write is as durable as the mode promises.
//!   When the commit fails, every reply that wrote or saw a staged write becomes an error instead.
//! - A command takes effect wholly or not at all, and in the order it was sent on its connection.
//! - A key is absent for every command once its deadline is at or before the turn's time, which is
//!   read once per turn; storage reclaims its space later.
//! - A client can make the server hold at most its input limit and its output limit.
//!
//! Syncing each command's write was rejected: on a disk that takes 4 ms for it, fifty clients
//! would share 250 writes a second; with turns they share 250 turns.
//!
//! The crate does not know where bytes come from (server: sockets; tests: strings; the simulator:
//! simulated sockets), nor what lies under the [`Store`]. Golden scripts of every command are in
//! `tests/scripts`.

mod call;
mod commands;
pub mod config;
mod cursors;
mod error;
mod executor;
pub mod glob;
pub mod layout;
mod session;
pub mod stats;
pub mod store;
pub mod table;
mod writes;

pub use config::Config;
pub use executor::{Commit, Executor, Identity, Progress, Request};
pub use session::{ClientId, MAX_OUTPUT};
pub use stats::Stats;
pub use store::{Durability, Record, Store, StoreError};
pub use writes::{Changes, Staged, Writes};
