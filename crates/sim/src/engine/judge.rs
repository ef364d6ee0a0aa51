//! One history, many judges: each gets its view of what was asked and answered.

use std::collections::BTreeSet;
use std::fmt;

use atoll_checkers::linear::{
    BUDGET, Counter, CounterOp, Keyed, Register, RegisterOp, RegisterRet,
};
use atoll_checkers::list_append::{Level, Reads, Txn, analyze};
use atoll_checkers::ranges::Answers;
use atoll_checkers::{Checked, Failure, History, Outcome, bank, counts, linear, second_opinion};

use super::op::{ACCOUNTS, Op, Ret};
use super::ranges::{Ranged, Universe};

/// How long a key may be seen after its deadline, in nanoseconds: the server's clock runs behind
/// the moment of an answer by its travel, and stands still while the machine is paused.
const LATE_NANOS: u64 = 1_000_000_000;
/// How much of its time a key may miss: the server allocates time ahead by so much.
const EARLY_NANOS: u64 = 300_000_000;

type Whole = History<Op, Ret>;

/// Judges a history.
///
/// # Errors
/// The first broken promise, with its explanation; or that one could not be decided.
pub fn judge(history: &Whole, jumps: bool) -> Result<Checked, String> {
    let mut sum = Checked::default();
    sum = sum.and(named("registers", linear::check::<Register, _>(&registers(history), BUDGET))?);
    sum = sum.and(named("counters", linear::check::<Counter, _>(&counters(history), BUDGET))?);
    sum = sum.and(named("deadlines", linear::check::<Register, _>(&fleeting(history), BUDGET))?);
    let appends = lists(history);
    let lists = analyze(&appends).and_then(|report| report.at(Level::StrictSerializable));
    sum = sum.and(named("lists", lists)?);
    // Another's judgement of the same calls. It proves nothing more, and of too few calls it has none.
    match second_opinion::judge(&appends, Level::StrictSerializable) {
        Ok(_) | Err(Failure::Unknown { .. }) => {}
        verdict => drop(named("lists, by adya", verdict)?),
    }
    let rules = bank::Bank { accounts: ACCOUNTS as usize, total: 0, negative: true };
    sum = sum.and(named("bank", bank::check(&transfers(history), rules))?);
    sum = sum.and(named("counts", counts::check(&counting(history)))?);
    if !jumps {
        deadlines(history)?;
    }
    Ok(sum)
}

/// Judges the transactions on ranges, each universe on its own.
///
/// # Errors
/// As [`judge`].
pub fn ranges(
    history: &History<Ranged, Answers>,
    universes: &BTreeSet<Universe>,
) -> Result<Checked, String> {
    let mut sum = Checked::default();
    for universe in universes {
        let own = history.select(|call| call.op.universe == *universe);
        let own = own.expand(|call| [(call.op.txn.clone(), call.outcome.clone())]);
        sum = sum.and(named("ranges", atoll_checkers::ranges::check(&own, BUDGET))?);
    }
    Ok(sum)
}

fn named(of: &str, verdict: Result<Checked, Failure>) -> Result<Checked, String> {
    verdict.map_err(|failure| match failure {
        Failure::Violation(violation) => {
            format!("{of}: {}\n{}", violation.anomaly, violation.explanation)
        }
        Failure::Unknown { explored } => format!("{of}: not decided after {explored} steps"),
        Failure::Malformed(what) => format!("{of}: the harness is wrong: {what}"),
    })
}

/// Translates an outcome whose results are of one kind.
fn outcome<S>(of: &Outcome<Ret>, translate: impl FnOnce(&Ret) -> Option<S>) -> Outcome<S> {
    match of {
        Outcome::Ok(ret) => match translate(ret) {
            Some(ret) => Outcome::Ok(ret),
            None => unreachable!("decoded as the operation's own kind"),
        },
        Outcome::Fail => Outcome::Fail,
        Outcome::Info => Outcome::Info,
    }
}

/// A key of a family, as an explanation shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Name(char, u64);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

fn registers(history: &Whole) -> History<Keyed<Name, RegisterOp>, RegisterRet> {
    let name = |key: &u64| Name('r', *key);
    history.expand(|call| {
        let plain = |ret: &Ret| match ret {
            Ret::Register(ret) => Some(*ret),
            _ => None,
        };
        match &call.op {
            Op::Register(key, op) => {
                vec![(Keyed { key: name(key), op: *op }, outcome(&call.outcome, plain))]
            }
            Op::SetMany(pairs) => {
                let done = outcome(&call.outcome, |_| Some(RegisterRet::Done));
                let set = |(key, value): &(u64, i64)| {
                    (Keyed { key: name(key), op: RegisterOp::Set(*value) }, done.clone())
                };
                pairs.iter().map(set).collect()
            }
            Op::GetMany(keys) => {
                let get = |(at, key)| {
                    let of_key = |ret: &Ret| match ret {
                        Ret::Many(values) => Some(RegisterRet::Value(values[at])),
                        _ => None,
                    };
                    let op = RegisterOp::Get;
                    (Keyed { key: name(key), op }, outcome(&call.outcome, of_key))
                };
                keys.iter().enumerate().map(get).collect()
            }
            _ => Vec::new(),
        }
    })
}

fn counters(history: &Whole) -> History<Keyed<Name, CounterOp>, i64> {
    history.expand(|call| match &call.op {
        Op::Counter(key, op) => {
            let value = |ret: &Ret| match ret {
                Ret::Counter(value) => Some(*value),
                _ => None,
            };
            vec![(Keyed { key: Name('c', *key), op: *op }, outcome(&call.outcome, value))]
        }
        _ => Vec::new(),
    })
}

/// Keys with deadlines as registers that somebody deletes at an unknown moment: what has gone does
/// not come back.
fn fleeting(history: &Whole) -> History<Keyed<Name, RegisterOp>, RegisterRet> {
    history.expand(|call| {
        let (key, op) = match &call.op {
            Op::SetFleeting(key, _) => (key, RegisterOp::Set(1)),
            Op::Vanish(key) => (key, RegisterOp::Delete),
            Op::GetFleeting(key) => (key, RegisterOp::Get),
            _ => return Vec::new(),
        };
        let ret = |ret: &Ret| match ret {
            Ret::Register(ret) => Some(*ret),
            _ => None,
        };
        vec![(Keyed { key: Name('f', *key), op }, outcome(&call.outcome, ret))]
    })
}

fn lists(history: &Whole) -> History<Txn, Reads> {
    history.expand(|call| match &call.op {
        Op::Lists(txn) => {
            let reads = |ret: &Ret| match ret {
                Ret::Lists(reads) => Some(reads.clone()),
                _ => None,
            };
            vec![(txn.clone(), outcome(&call.outcome, reads))]
        }
        _ => Vec::new(),
    })
}

fn transfers(history: &Whole) -> History<bank::Op, bank::Balances> {
    history.expand(|call| match &call.op {
        Op::Transfer { from, to, amount } => {
            let op = bank::Op::Transfer { from: *from, to: *to, amount: *amount };
            vec![(op, outcome(&call.outcome, |_| Some(Vec::new())))]
        }
        Op::Balances => {
            let balances = |ret: &Ret| match ret {
                Ret::Balances(balances) => Some(balances.clone()),
                _ => None,
            };
            vec![(bank::Op::Snapshot, outcome(&call.outcome, balances))]
        }
        _ => Vec::new(),
    })
}

fn counting(history: &Whole) -> History<counts::Op, u64> {
    history.expand(|call| {
        let ops = match &call.op {
            Op::Put(key) => vec![counts::Op::Put(*key)],
            Op::PutMany(keys) => keys.iter().copied().map(counts::Op::Put).collect(),
            Op::Remove(key) => vec![counts::Op::Delete(*key)],
            Op::Clear => vec![counts::Op::Clear],
            Op::Count => vec![counts::Op::Count],
            _ => return Vec::new(),
        };
        let count = |ret: &Ret| match ret {
            Ret::Count(count) => Some(*count),
            _ => Some(0),
        };
        let one = |op| (op, outcome(&call.outcome, count));
        ops.into_iter().map(one).collect()
    })
}

/// Checks that keys live for their time and not longer. Only where clocks do not jump.
fn deadlines(history: &Whole) -> Result<(), String> {
    let calls = history.calls();
    for get in calls {
        let (Op::GetFleeting(key), Some(Ret::Register(RegisterRet::Value(seen)))) =
            (&get.op, get.outcome.ok())
        else {
            continue;
        };
        let set = calls.iter().find(|call| matches!(&call.op, Op::SetFleeting(k, _) if k == key));
        let Some(set) = set.filter(|set| set.outcome.ok().is_some()) else { continue };
        let Op::SetFleeting(_, ms) = &set.op else { continue };
        let span = ms * 1_000_000;
        if seen.is_some() && get.invoked.nanos > set.ended.nanos + span + LATE_NANOS {
            return Err(format!("deadlines: f:{key} outlives its deadline\n  {set}\n  {get}"));
        }
        if seen.is_none() && get.ended.nanos + EARLY_NANOS < set.invoked.nanos + span {
            return Err(format!(
                "deadlines: f:{key} is gone before its deadline\n  {set}\n  {get}"
            ));
        }
    }
    Ok(())
}
