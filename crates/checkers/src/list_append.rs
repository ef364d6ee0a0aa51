//! Isolation of transactions that append to lists and read them: which anomalies does a history
//! show, and which levels does that rule out?
//!
//! # The idea (Kingsbury and Alvaro, Elle, VLDB 2020)
//! Transactions append unique values to lists and read whole lists. A list carries its own past:
//!
//! ```text
//!   a read of k     [ 7, 3, 9 ]      the versions of k were [], [7], [7 3], [7 3 9], ...
//! ```
//!
//! so the longest read of a key gives the order of its versions, and the unique values say which
//! transaction made each. That is all that Adya's dependencies need:
//!
//! | edge | from | to |
//! |---|---|---|
//! | `ww` | who appended a value | who appended the next |
//! | `wr` | who appended a value | who read a list that ends with it |
//! | `rw` | who read a list | who appended the next value |
//! | process | a transaction | the next of its process |
//! | realtime | a transaction that ended | one that began afterwards |
//!
//! Appends that were acknowledged and seen by no read come after the longest read; so do not those
//! of unknown outcome: they may not have happened at all. A cycle is an anomaly, its shape says
//! which ([`crate::graph`]); some anomalies show without cycles.
//!
//! # Levels
//! A level is the set of anomalies that it rules out:
//!
//! | level | rules out |
//! |---|---|
//! | read committed | G0, G1a, G1b, G1c, and values that are lost, doubled or from nowhere |
//! | snapshot isolation | also G-single, G-nonadjacent, lost updates, transactions that contradict themselves |
//! | serializable | also G2 |
//! | session serializable | also cycles with process edges |
//! | strong snapshot isolation | as snapshot isolation, also with realtime edges |
//! | strict serializable | all, also with realtime edges |
//!
//! Whether a level is kept is decided exactly and in linear time, given the dependencies; only the
//! naming of an anomaly is a bounded search. What is not inferred is not seen: a key that is never
//! read gives no order to its appends.
//!
//! # Workload
//! Few hot keys, so that transactions meet, which are given up after some 30 appends, so that reads
//! stay short; 1 to 4 steps each, half of them reads. Read every key at the end, when all is quiet:
//! that is what shows lost appends.

mod edges;
mod report;
mod values;

use std::fmt;

pub use report::{Anomaly, Kind, Level, Order, Report, Shape};

use crate::history::{Call, History, Outcome};
use crate::verdict::Failure;

/// A step of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Micro {
    /// Appends a value to a key. No other step of the history appends it to this key.
    Append {
        /// The key.
        key: u64,
        /// The value.
        value: u64,
    },
    /// Reads the whole list of a key.
    Read {
        /// The key.
        key: u64,
    },
}

/// A transaction: its steps in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn(pub Vec<Micro>);

/// What a transaction was told: a list for each of its reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reads(pub Vec<Vec<u64>>);

impl fmt::Display for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, micro) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            match micro {
                Micro::Append { key, value } => write!(f, "append {key} {value}")?,
                Micro::Read { key } => write!(f, "read {key}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists: Vec<String> = self.0.iter().map(|list| format!("{list:?}")).collect();
        f.write_str(&lists.join(", "))
    }
}

/// Finds the anomalies of a history; [`Report::at`] says whether a level is kept.
///
/// # Errors
/// [`Failure::Malformed`]: a value is appended twice to a key, or a transaction has not one list
/// for each of its reads.
pub fn analyze(history: &History<Txn, Reads>) -> Result<Report, Failure> {
    let index = values::Index::new(history)?;
    let mut anomalies = index.anomalies();
    let graph = edges::graph(&index);
    anomalies.extend(report::cycles(&index, &graph));
    Ok(Report { anomalies, transactions: history.acknowledged(), edges: graph.edges() })
}

/// Returns the steps of a transaction, reads with what they saw; `None` where that is unknown.
fn steps(call: &Call<Txn, Reads>) -> impl Iterator<Item = (Micro, Option<&[u64]>)> {
    let mut lists = match &call.outcome {
        Outcome::Ok(reads) => reads.0.as_slice(),
        Outcome::Fail | Outcome::Info => &[],
    }
    .iter();
    call.op.0.iter().map(move |micro| {
        let list = match micro {
            Micro::Append { .. } => None,
            Micro::Read { .. } => lists.next().map(Vec::as_slice),
        };
        (*micro, list)
    })
}

#[cfg(test)]
mod tests;
