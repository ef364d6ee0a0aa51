//! One engine under random faults: the real server, clients that speak RESP, and judges.
//!
//! ```text
//!   seed --> clients ---- RESP over a network that cuts and delays ----> server (sessions, objects,
//!              |                                                         txn, shard, kv, lsm)
//!              v                                                              ^
//!           history --> checkers            nemesis: power cuts, pauses, jumps, full disks
//! ```
//!
//! The server is the one that ships, down to the log; only the machine below it is simulated. Eight
//! clients ([`load`]) use it for a simulated minute while the [`faults`] happen to it, three more from
//! inside of its process ([`ranges`]). What they asked and were told is the history, of which each
//! checker gets its view ([`judge`]). At the end everything
//! is read once more, so that what was acknowledged and is gone is noticed, and the stores are
//! compared with what they are after one more power cut ([`mirror`]).
//!
//! A seed names one execution. A failure prints its seed; `cargo xtask sim --seed N --trace` runs it
//! again and prints every event.
//!
//! # What it cannot see
//! Time between two polls does not pass, so a race between threads of one process is not among the
//! executions; the rings between cores have a model checker of their own (`cargo xtask loom`).

pub mod campaign;
pub mod client;
pub mod faults;
pub mod judge;
pub mod load;
pub mod mirror;
pub mod mutants;
pub mod op;
pub mod ranges;
pub mod run;
pub mod world;
