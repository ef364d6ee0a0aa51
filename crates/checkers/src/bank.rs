//! The bank: money moves between accounts and is never made or destroyed.
//!
//! Transfers take from one account and give to another in one transaction; snapshots read all
//! accounts in one transaction. Whatever the order of transfers, each snapshot has the same sum. A
//! sum that differs shows half a transfer (read skew, a torn commit, half a batch after a crash),
//! one that was lost on one side or applied twice on one side. Nothing need be known about the
//! order, so histories of any length and any number of unknown outcomes are judged.
//!
//! A transfer that is lost or applied twice *as a whole* keeps the sum: that is the business of
//! [`crate::linear`] and [`crate::list_append`].

use std::fmt;

use crate::history::{History, Outcome};
use crate::verdict::{Checked, Failure, Verdict, Violation};

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Moves money.
    Transfer {
        /// The account it is taken from.
        from: u64,
        /// The account it is given to.
        to: u64,
        /// How much.
        amount: i64,
    },
    /// Reads all accounts: a list of accounts with balances.
    Snapshot,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Transfer { from, to, amount } => write!(f, "transfer {amount} from {from} to {to}"),
            Op::Snapshot => f.write_str("snapshot"),
        }
    }
}

/// The balances of a snapshot by account; empty for a transfer.
pub type Balances = Vec<(u64, i64)>;

/// The bank's rules.
#[derive(Clone, Copy, Debug)]
pub struct Bank {
    /// How many accounts each snapshot must show.
    pub accounts: usize,
    /// The sum of all balances.
    pub total: i64,
    /// Whether balances may be below zero.
    pub negative: bool,
}

/// Checks every snapshot of a history.
///
/// # Errors
/// The first one that breaks the rules.
pub fn check(history: &History<Op, Balances>, bank: Bank) -> Verdict {
    let mut checked = Checked::default();
    for (at, call) in history.calls().iter().enumerate() {
        let (Op::Snapshot, Outcome::Ok(balances)) = (call.op, &call.outcome) else { continue };
        let broken = |anomaly: String| {
            let from =
                format!("{} [{}..{}]", call.process, call.invoked.position, call.ended.position);
            let explanation = format!("  snapshot of {from}: {balances:?}\n");
            Err(Failure::Violation(Violation { anomaly, explanation, calls: vec![at] }))
        };
        let mut accounts: Vec<u64> = balances.iter().map(|(account, _)| *account).collect();
        accounts.sort_unstable();
        accounts.dedup();
        if accounts.len() != bank.accounts || balances.len() != bank.accounts {
            let (rows, expected) = (balances.len(), bank.accounts);
            return broken(format!("a snapshot of {rows} rows, not of {expected} accounts"));
        }
        let total: i128 = balances.iter().map(|(_, balance)| i128::from(*balance)).sum();
        if total != i128::from(bank.total) {
            return broken(format!("the sum is {total}, not {}", bank.total));
        }
        let below = balances.iter().find(|(_, balance)| *balance < 0);
        if let Some((account, balance)) = below.filter(|_| !bank.negative) {
            return broken(format!("account {account} has {balance}"));
        }
        checked.calls += 1;
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Recorder;

    fn judge(balances: &[(u64, i64)], negative: bool) -> Verdict {
        let mut recorder = Recorder::new();
        let process = recorder.process();
        let transfer = recorder.invoke(process, 0, Op::Transfer { from: 1, to: 2, amount: 5 });
        recorder.ok(transfer, 0, vec![]);
        let snapshot = recorder.invoke(process, 0, Op::Snapshot);
        recorder.ok(snapshot, 0, balances.to_vec());
        check(&recorder.finish(0), Bank { accounts: 2, total: 20, negative })
    }

    #[test]
    fn a_sum_that_differs_is_a_violation() {
        assert_eq!(judge(&[(1, 5), (2, 15)], false), Ok(Checked { calls: 1, explored: 0 }));
        assert!(judge(&[(1, 10), (2, 15)], false).is_err());
    }

    #[test]
    fn accounts_that_are_missing_or_there_twice_are_a_violation() {
        assert!(judge(&[(1, 20)], false).is_err());
        assert!(judge(&[(1, 10), (1, 10)], false).is_err());
        assert!(judge(&[(1, 10), (2, 10), (2, 0)], false).is_err());
    }

    #[test]
    fn debts_are_a_violation_where_they_are_forbidden() {
        assert!(judge(&[(1, -5), (2, 25)], false).is_err());
        assert!(judge(&[(1, -5), (2, 25)], true).is_ok());
    }
}
