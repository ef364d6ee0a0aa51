//! The server core: connections, turns, and the engine under the Redis surface.
//!
//! ```text
//!   listener --> acceptor ----- arrivals ----+
//!                                            v
//!   socket <--> connection task <- pipe -> core: ready clients -> turn -> commit -> replies
//!   socket <--> connection task <- pipe ->   |
//!                                            v
//!                                     Executor over EngineStore over atoll-lsm
//! ```
//!
//! One thread owns one store. A connection task only moves bytes between its socket and its
//! pipe; the core takes what all clients have sent, executes it in order, commits
//! once, and gives the replies back. Nothing is locked, and no command waits for another one's
//! sync: those that arrive while a turn is being synced are the next turn.
//!
//! # Invariants
//! - A reply enters a pipe only after the commit of its turn.
//! - A client that does not read its replies is not read from either, and executes nothing until
//!   it does; a client that sends without end is read only as fast as it is executed.
//! - A client cannot hold a connection by sending half a request for ever.
//! - Everything goes through [`atoll_env`]: the server runs in the simulator as it is.
//!
//! The crate does not know the commands (redis), the bytes of the protocol (resp), nor how pages
//! of metrics are served (http).

mod connection;
mod core;
pub mod metrics;
mod server;
mod signal;
mod store;

pub use server::{Server, ServerError};
pub use store::EngineStore;
