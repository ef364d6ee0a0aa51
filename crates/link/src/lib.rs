//! The transport between engines: framed TCP, three connections for each pair, bytes in and out.
//!
//! ```text
//!        owner (consensus, shards, ...)                       the same on another engine
//!   send   call   open_stream    Handler                                  |
//!     |      |        |             ^                                     |
//!   +-v------v--------v-------------|---+                                 |
//!   | Link                              |     raft  ------------------>   |
//!   |   peers: one Conn of each class   |     rpc   ------------------>  Link
//!   |   Conn = Outbox + Driver (a task) |     bulk  ------------------>   |
//!   +-----------------------------------+
//!     frame, handshake, outbox, peer: pure                 env: sockets, clock, tasks
//! ```
//!
//! ```
//! use std::net::SocketAddr;
//! use std::rc::Rc;
//! use std::time::Duration;
//!
//! use atoll_env::sim::Sim;
//! use atoll_link::{ClusterId, EngineId, Handler, Link, Options, Receiver, Responder};
//! use bytes::Bytes;
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     fn raft(&self, _: EngineId, _: Bytes) {}
//!     fn request(&self, _: EngineId, request: Bytes, responder: Responder) {
//!         responder.answer(request);
//!     }
//!     fn stream(&self, _: EngineId, _: Bytes, _: Receiver) {}
//! }
//!
//! let sim = Sim::new(42);
//! let nodes = [sim.node("a"), sim.node("b")];
//! let links = [0, 1].map(|n| {
//!     let node = &nodes[n];
//!     let listen = SocketAddr::new(node.ip(), 7380);
//!     let options = Options::new(EngineId(n as u128 + 1), ClusterId(7), 1, listen);
//!     sim.block_on(node, Link::open(node.env(), options, Rc::new(Echo))).done().unwrap()
//! });
//! let (env, [a, b]) = (nodes[0].env(), links);
//! let answer = sim.block_on(&nodes[0], async {
//!     a.set_peer(EngineId(2), b.address());
//!     env.clock.sleep(Duration::from_secs(1)).await;
//!     let deadline = env.clock.now().after(Duration::from_secs(1));
//!     a.call(EngineId(2), Bytes::from_static(b"hello"), deadline).await
//! });
//! assert_eq!(answer.done(), Ok(Bytes::from_static(b"hello")));
//! ```
//!
//! A pair of engines has a connection of each [`Class`], because what they carry must not wait for
//! each other: *raft* is small, ordered and better dropped than late; *rpc* is many questions with
//! deadlines; *bulk* is as much as the reader takes. On one connection a snapshot would stand before
//! a heartbeat, and an election would follow.
//!
//! | module | subject |
//! |---|---|
//! | [`frame`] | the frame, pure: header, checksum, incremental decoder |
//! | [`handshake`] | who is there, and the proof of it, pure |
//! | [`refusal`] | why two engines do not talk: a sentence for each side |
//! | `peer` | which connection of two stays, pure |
//! | `outbox` | what waits to be written, pure |
//! | `conn` | one connection: what waits on it, and the task that moves its bytes |
//! | [`rpc`], [`bulk`] | calls with deadlines; streams with credit |
//! | `link` | listening, dialling, the face of it all |
//! | [`handler`] | what the owner does with what arrives |
//! | [`policy`] | what an address asks for before engines may listen there |
//! | `tls` | TLS around the stream of a connection, with the feature of that name |
//! | `stats` | what is counted, for each peer and class |
//!
//! # Invariants
//! - One thread, no locks: a link belongs to a core, its tasks run there, and nothing of it is borrowed
//!   while its owner runs.
//! - On *raft* messages arrive in the order in which they were sent, with gaps, over any number of
//!   connections. [`Link::send`] never waits.
//! - An [`CallError::NotSent`] call was seen by nobody. What is not known is called so.
//! - Memory is bounded in every direction by [`Options`], whatever a peer does: queues count bytes,
//!   calls and streams are counted for the peer and not for its connection, readers grant credit, and
//!   nothing is allocated because a length was announced.
//! - Nothing that a peer says of itself has an effect before its proof was verified.
//! - No side stops reading because it cannot write.
//!
//! # What was considered
//! - *gRPC*: a tenth of a millisecond for each small call, windows that need tuning, and no way into
//!   the simulator. *QUIC*: packets and their encryption in user space, for networks that lose more
//!   than a rack's does. The seam for both is here: the owner sees frames of neither.
//! - *One connection with priorities*: what is in the kernel's buffer cannot be overtaken.
//! - *Waiting in `send`*: a leader would wait for its slowest follower. Consensus sends again anyway.
//! - *No reading while answers wait*: two sides that both do it wait for ever.
//! - *Payloads as slices of the read buffer*: see [`frame`].
//!
//! # What it does not know
//! Consensus, shards, SQL, what a request means, where engines are (the owner sets and forgets peers),
//! and which version of which record is in a payload. Whether it is encrypted: [`Options::wrap`] is where
//! a stream of bytes becomes another one, by its role, and where the owner puts `tls`; who may do without
//! it, [`policy`] says. The owner reads files, makes certificates, and exchanges them while it runs.
//!
//! The format is described in docs/formats/link.md.

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
#[cfg(feature = "tls")]
pub mod tls;

pub use bulk::{BulkError, Receiver, Sender};
pub use handler::{Handler, Peer};
pub use handshake::ClusterKey;
pub use id::{Class, ClusterId, EngineId, Role};
pub use link::{Dropped, Link};
pub use options::{Check, Options, VERSIONS, Wrap, Wrapped};
pub use policy::off_loopback_requires;
pub use refusal::{Code, Refused};
pub use rpc::{CallError, Responder};
pub use stats::{PeerStats, Stats};
