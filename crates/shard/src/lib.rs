//! A block-shard: a range of keys with a log of its own.
//!
//! ```text
//!   requests, commands                                         answers
//!        |                                                        ^
//!     Leader: evaluates over the edge  --> entry --> log --> applied
//!        |                                            |
//!      Edge: decided, not applied                  Consensus: which entries count, in which order
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`leader`] | what a leader decides: transactions, locks, intents, timestamps |
//! | [`eval`] | one command of one shard, evaluated in one step |
//! | [`edge`] | values that are decided and not applied |
//! | [`entry`] | what is logged |
//! | [`consensus`] | the order of entries that the replicas of a shard agree on |
//! | [`lease`] | until when a leader may answer reads by itself |
//! | [`replica`] | names of replicas, and where they are |
//! | [`envelope`] | their messages on the way between engines |
//! | [`descriptor`] | which keys are whose |
//!
//! Everything here is a plain state machine: no I/O, no clock, no threads, no randomness. Who owns
//! a shard drives it: gives it requests, logs its entries, tells it what is applied.

pub mod consensus;
pub mod descriptor;
pub mod edge;
pub mod entry;
pub mod envelope;
pub mod eval;
pub mod intent;
pub mod leader;
pub mod lease;
pub mod mutants;
#[cfg(test)]
mod proof;
pub mod replica;
pub mod state;
