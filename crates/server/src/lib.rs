//! The server: connections on cores, and the shards under the Redis surface.
//!
//! ```text
//!   listener: accepts, hands each connection to the core with the fewest
//!        |                                   |
//!   core 0                              core 1
//!   socket <-> connection task          ...
//!       pipe |
//!       floor: turns --> Front: sessions --> ShardBackend --> kv: shards of this core, or
//!                                                             over the rings those of another
//! ```
//!
//! A connection task only moves bytes between its socket and its pipe; the floor takes what all
//! clients have sent, has it executed, and hands out replies in the order of the requests. Nothing
//! is locked, and no command waits for another one's sync.
//!
//! # Invariants
//! - A reply enters a pipe only when what it tells is as durable as was asked for.
//! - A client that does not read its replies is not read from either, and executes nothing until
//!   it does; a client that sends without end is read only as fast as it is executed.
//! - A client cannot hold a connection by sending half a request for ever.
//! - Everything goes through [`atoll_env`]: the server runs in the simulator as it is.
//!
//! The crate does not know the commands (redis), the bytes of the protocol (resp), nor how pages
//! of metrics are served (http).

mod backend;
mod connection;
mod core;
pub mod metrics;
mod orders;
mod past;
mod server;

pub use orders::Operator;
pub use server::{Engine, Server, ServerError};
