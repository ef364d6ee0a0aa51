//! Judges of what concurrent clients of a database saw.
//!
//! ```text
//!   clients under faults                 checkers
//!   invoke, ok, fail, info --Recorder--> History --expand--> a view --check--> Verdict
//!                                                                               Ok(Checked)
//!                                                                               Err(Violation)
//!                                                                               Err(Unknown)
//!                                                                               Err(Malformed)
//! ```
//!
//! A checker knows nothing of the database: no clock, no I/O, no shards. It gets the calls that
//! clients made with their results and real-time order, and says whether a right database could
//! have given these results. If not, it shows the few calls that contradict each other. Every
//! checker is deterministic ([`second_opinion`] measures time, but its verdict does not hang on
//! it).
//!
//! | question | checker | decides |
//! |---|---|---|
//! | Did each key behave as if commands ran one by one? | [`linear`]: register, counter, list | exactly, by a bounded search |
//! | Were transactions serializable, in real-time order? | [`list_append`], six levels | exactly, from what reads show of the order of writes |
//! | The same, asked of somebody else | [`second_opinion`] (feature `adya`) | as above |
//! | Do scans see gaps as well as rows? | [`ranges`] | exactly, by a bounded search |
//! | Does every snapshot show whole transactions? | [`bank`] | necessary condition |
//! | Are counts exact? | [`counts`] | by interval: exact where writers do not meet |
//! | Do sessions go back? Are reads too old? | [`sessions`] | exactly |
//! | Is what was acknowledged there after a crash? | [`durable`] | by last writes; prefixes; elements |
//!
//! A verdict is a `Result`: "not decided" is a failure to be dealt with, never a success.
//!
//! # How to use it
//! Record one rich history; expand it into the views that the checkers want; finish with reads of
//! everything when all is quiet. Count [`Checked::calls`] and [`list_append::Report::edges`]: a run
//! in which nothing was acknowledged passes every checker. Give unique values, and do not let a
//! process go on after an unknown outcome ([`history`]).
//!
//! # Figures
//! Processor time for histories of 10,000 calls by 10 clients, 1 % of unknown outcome, on one core
//! of a small virtual machine (`--example speed`): the slowest of 3 seeds, for a right history, and
//! for one broken in any of eight ways, explanation included.
//!
//! | checker | right | broken |
//! |---|---|---|
//! | register, 4 keys | < 5 ms | 310 ms |
//! | register, 4 keys, 50 clients | 10 ms | 569 ms |
//! | counter, 3 keys | 5 ms | 261 ms |
//! | list, 4 keys | 16 ms | 256 ms |
//! | list-append | 100 ms | 445 ms |
//! | the same by `adya` | 203 ms | 478 ms |
//! | ranges, 10 keys | 48 ms | 466 ms |
//! | ranges, 10 keys, 20 clients | 192 ms | 1238 ms |
//! | bank | < 5 ms | < 5 ms |
//! | counts | < 5 ms | < 5 ms |
//! | sessions | 12 ms | < 5 ms |
//! | durable | < 5 ms | < 5 ms |
//!
//! # Negative controls
//! A database in memory with clients that interleave gives right histories, all of which must pass,
//! and is broken in eight ways, each of which must be caught (`tests/random`; 200 calls by 6
//! clients, 30 % of the operations concerned done wrong). Runs of 40 in which it was, in brackets
//! the first:
//!
//! | checker | stale read | lost update | write skew | phantom | torn read | dirty read | lost ack | duplicate |
//! |---|---|---|---|---|---|---|---|---|
//! | register | 38 (1) | 39 (1) | - | - | - | 18 (3) | 40 (1) | 26 (2) |
//! | counter | 40 (1) | 40 (1) | - | - | - | 21 (2) | 40 (1) | 40 (1) |
//! | list | 40 (1) | 40 (1) | - | - | - | 23 (2) | 40 (1) | 40 (1) |
//! | list-append | 40 (1) | 40 (1) | 18 (3) | 1 (30) | 24 (2) | 32 (2) | 40 (1) | 40 (1) |
//! | ranges | 40 (1) | 40 (1) | 30 (1) | 16 (1) | 20 (1) | 31 (1) | 40 (1) | 34 (1) |
//! | bank | - | 40 (1) | - | - | 40 (1) | 28 (1) | - | - |
//! | counts | 37 (1) | - | - | - | - | 5 (7) | 36 (2) | 11 (7) |
//! | sessions | 40 (1) | 22 (1) | - | - | - | 19 (2) | 40 (1) | - |
//! | durable | - | - | - | - | - | 2 (17) | 40 (1) | 1 (3) |
//!
//! A dash is a mutant that the checker cannot see or its workload cannot show: no single key shows
//! write skew, a bank does not miss whole transfers, final values do not show what was read before,
//! and lists that never go have no gaps.
//!
//! 500 right runs pass each checker. The searches are compared with trying every order on 50,000
//! small histories, the verdicts on lists with those of `adya` at each of six levels on right,
//! broken and tampered histories.

pub mod bank;
pub mod counts;
pub mod durable;
pub mod graph;
pub mod history;
pub mod linear;
pub mod list_append;
pub mod ranges;
#[cfg(feature = "adya")]
pub mod second_opinion;
pub mod sessions;
pub mod verdict;

pub use history::{Call, CallId, History, Moment, Outcome, Process, Recorder};
pub use verdict::{Checked, Failure, Verdict, Violation};
