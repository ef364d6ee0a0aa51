//! Engines together: what their shards say to each other travels over links.
//!
//! ```text
//!   core 0        core 1                          core 0
//!   stores ---+   stores                          stores
//!             |     |   Carrier (any core)
//!             +-----+--> queue --> Post (core 0) --> Link ===== Link --> Post --> Core::arrived
//!                                     ^                                      \--> Core::asked
//!                                     +----------- answers ------------------/
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`post`] | a [`Carrier`](atoll_kv::Carrier) over a [`Link`](atoll_link::Link) |
//!
//! # Invariants
//! - Packets and questions that a core gives away to an engine arrive in that order, the former with gaps.
//! - A question that never left this machine is told apart from one whose answer is lost.
//!
//! What is not here yet: who belongs to the database. The engines are named when a node is opened.

pub mod post;

pub use post::{Place, Post, PostOptions};
