//! Linearizability of single keys: did every key behave as if commands were executed one by one,
//! each at some moment between its invocation and its reply?
//!
//! Linearizability is *local*: a history is linearizable if and only if its part about each key is
//! (Herlihy and Wing 1990, theorem 1). So the history is cut by key and each part is searched for
//! an order on its own ([`search`]), by the model of what the key is: a [`Register`], a
//! [`Counter`] or a [`List`].
//!
//! A command of unknown outcome (info) may be put anywhere after its invocation, or left out.
//!
//! # Explanation
//! A violation is shown as few commands as possible ([`explain`]): those that cannot be ordered,
//! whatever the others did.
//!
//! # Workloads that can be judged
//! Use unique values. Spread the load over keys, or start new keys as the run goes on: the price of
//! a search grows with the unknown outcomes and blind writes that are open at once on one key. Read
//! often: a write that nobody reads proves nothing.

mod counter;
pub mod explain;
mod list;
mod register;
pub mod search;

use std::collections::BTreeMap;
use std::fmt;

pub use counter::{Counter, CounterOp};
pub use list::{List, ListOp, ListRet};
pub use register::{Register, RegisterOp, RegisterRet};
pub use search::Model;

use crate::history::{History, Outcome};
use crate::verdict::{Checked, Verdict};
use explain::{Names, judge};
use search::Seen;

/// A budget for one key that takes at most a few seconds and 100 MiB.
pub const BUDGET: u64 = 2_000_000;

/// A command on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyed<K, O> {
    /// The key.
    pub key: K,
    /// What was asked of it.
    pub op: O,
}

impl<K: fmt::Display, O: fmt::Display> fmt::Display for Keyed<K, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.op)
    }
}

/// Checks that every key of a history was linearizable, spending up to `budget` branch points on
/// each key ([`BUDGET`]).
///
/// ```
/// use atoll_checkers::history::Recorder;
/// use atoll_checkers::linear::{BUDGET, Keyed, Register, RegisterOp, RegisterRet, check};
///
/// let mut recorder = Recorder::new();
/// let (a, b) = (recorder.process(), recorder.process());
/// let set = recorder.invoke(a, 0, Keyed { key: "k", op: RegisterOp::Set(7) });
/// recorder.ok(set, 1, RegisterRet::Done);
/// let get = recorder.invoke(b, 2, Keyed { key: "k", op: RegisterOp::Get });
/// recorder.ok(get, 3, RegisterRet::Value(None));
/// let failure = check::<Register, _>(&recorder.finish(4), BUDGET).unwrap_err();
/// assert_eq!(failure.violation().unwrap().anomaly, "not linearizable: k");
/// ```
///
/// # Errors
/// A key was not, or the budget did not suffice for one.
pub fn check<M, K>(history: &History<Keyed<K, M::Op>, M::Ret>, budget: u64) -> Verdict
where
    M: Model,
    M::Op: fmt::Display,
    M::Ret: fmt::Display,
    K: Ord + fmt::Display,
{
    let mut keys: BTreeMap<&K, Vec<usize>> = BTreeMap::new();
    for (at, call) in history.calls().iter().enumerate() {
        if !matches!(call.outcome, Outcome::Fail) {
            keys.entry(&call.op.key).or_default().push(at);
        }
    }
    let mut checked = Checked::default();
    let mut unknown = None;
    for (key, members) in keys {
        let calls: Vec<_> = members.iter().map(|at| seen(history, *at)).collect();
        let names = Names {
            anomaly: format!("not linearizable: {key}"),
            calls: &members,
            show: &|at| history.calls()[at].to_string(),
        };
        match judge::<M>(&calls, budget, &names) {
            Ok(more) => checked = checked.and(more),
            // Another key may have a violation to show, which says more.
            Err(failure) if failure.violation().is_none() => unknown = Some(failure),
            Err(failure) => return Err(failure),
        }
    }
    unknown.map_or(Ok(checked), Err)
}

fn seen<K, O, R>(history: &History<Keyed<K, O>, R>, at: usize) -> Seen<'_, O, R> {
    let call = &history.calls()[at];
    Seen {
        op: &call.op.op,
        result: call.outcome.ok(),
        process: call.process.0,
        invoked: call.invoked.position,
        returned: call.deadline(),
    }
}

#[cfg(test)]
mod tests;
