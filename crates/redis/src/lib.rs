//! The Redis surface: sessions and commands, without sockets and without a storage engine.
//!
//! ```text
//!   bytes of each client --> Session --> Request --> command table --+--> the session's own
//!                                                                    |
//!                       named keys: a pure function on a Tx  <-------+
//!                       whole databases: a function on Keyspaces <---+
//!                                          |  read and stage
//!                                          v
//!   bytes to each client <-- replies <-- Turn = Writes over a Store, committed at its end
//! ```
//!
//! **Three classes of commands** ([`table::Class`]). Session commands need a connection and the
//! server around it. Data commands ([`data`]) are pure functions on a transaction ([`tx::Tx`]) that
//! run wherever the keys are. Keyspace commands concern whole databases ([`tx::Keyspaces`]).
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

mod commands;
pub mod config;
pub mod cursors;
pub mod data;
mod decimal;
mod error;
mod executor;
mod front;
pub mod glob;
pub mod keyspace;
mod last_reads;
mod latency;
pub mod layout;
pub mod object;
mod server;
mod session;
mod shared;
mod slowlog;
pub mod stats;
pub mod store;
pub mod table;
pub mod task;
mod text;
mod turn;
pub mod tx;
mod unit;
mod writes;

pub use config::Config;
pub use error::{CommandError, Outcome};
pub use executor::{Commit, Executor, Progress, Request};
pub use front::{Completed, Front};
pub use last_reads::LastReads;
pub use server::{Identity, Usage};
pub use session::{ClientId, MAX_OUTPUT};
pub use shared::Shared;
pub use stats::Stats;
pub use store::{Durability, Record, Store, StoreError};
pub use writes::{Changes, Numbering, Staged, Writes};
