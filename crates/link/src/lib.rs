//! The transport between engines: framed TCP, three connections for each pair, bytes in and out.

pub mod bulk;
mod conn;
pub mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod handler;
pub mod handshake;
pub mod id;
mod link;
mod options;
mod outbox;
mod peer;
pub mod policy;
pub mod refusal;
pub mod rpc;
mod signal;
mod stats;

pub use bulk::{BulkError, Receiver, Sender};
pub use handler::{Handler, Peer};
pub use handshake::ClusterKey;
pub use id::{Class, ClusterId, EngineId, Role};
pub use link::{Dropped, Link};
pub use options::{Options, VERSIONS, Wrap};
pub use policy::off_loopback_requires;
pub use refusal::{Code, Refused};
pub use rpc::{CallError, Responder};
pub use stats::{PeerStats, Stats};
