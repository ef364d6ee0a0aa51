//! The program from outside: a process, its command line, its ports, and signals.

#![expect(clippy::unwrap_used, reason = "a test helper fails its test by panicking")]
#![expect(clippy::disallowed_methods, reason = "these tests watch a real process in real time")]

mod backup;
mod bad_input;
mod harness;
mod kill;
mod rest;
mod session;
mod shards;
mod stock;
