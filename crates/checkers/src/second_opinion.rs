//! A second opinion on list-append histories: the crate `adya`, which somebody else wrote after the
//! same papers and compared with Elle.
//!
//! It is young, so it is never the only judge; [`crate::list_append`] is ours. Where both look at
//! a history, each bug of either has to be made twice to stay hidden. It measures its own effort
//! with a clock, which can only cut short how it names an anomaly, not whether it finds one.

use adya::history::{History as Recorded, Interner, Mop, Op, OpType, ReadValue, Scalar};
use adya::{Opts, Valid, Workload};

use crate::history::{History, Outcome};
use crate::list_append::{Level, Micro, Reads, Txn};
use crate::verdict::{Checked, Failure, Verdict, Violation};

/// Asks whether a history keeps a level.
///
/// # Errors
/// It does not; or no dependencies could be inferred from it, which is [`Failure::Unknown`].
pub fn judge(history: &History<Txn, Reads>, level: Level) -> Verdict {
    let model = match level {
        Level::ReadCommitted => "read-committed",
        Level::SnapshotIsolation => "snapshot-isolation",
        Level::Serializable => "serializable",
        Level::SessionSerializable => "strong-session-serializable",
        Level::StrongSnapshotIsolation => "strong-snapshot-isolation",
        Level::StrictSerializable => "strict-serializable",
    };
    let opts = Opts { models: vec![model.into()], ..Opts::default() };
    let report = adya::check(&translate(history), Workload::ListAppend, &opts);
    match report.valid {
        Valid::True => Ok(Checked { calls: history.acknowledged(), explored: 0 }),
        Valid::Unknown => Err(Failure::Unknown { explored: 0 }),
        Valid::False => {
            let anomalies = report.anomalies.values().flatten();
            let explanation = anomalies.map(|anomaly| anomaly.explanation.clone()).collect();
            let anomaly = report.anomaly_types.join(", ");
            Err(Failure::Violation(Violation { anomaly, explanation, calls: Vec::new() }))
        }
    }
}

fn translate(history: &History<Txn, Reads>) -> Recorded {
    let mut interner = Interner::default();
    let mut number = |n: u64| interner.intern(Scalar::Int(n as i64));
    let mut ops: Vec<(u32, Op)> = Vec::with_capacity(2 * history.calls().len());
    for call in history.calls() {
        let mut lists = call.outcome.ok().map(|reads| reads.0.iter());
        let mut asked = Vec::new();
        let mut told = Vec::new();
        for micro in &call.op.0 {
            match *micro {
                Micro::Append { key, value } => {
                    let append = Mop::Append { key: number(key), value: number(value) };
                    asked.push(append.clone());
                    told.push(append);
                }
                Micro::Read { key } => {
                    let key = number(key);
                    let list = lists.as_mut().and_then(Iterator::next);
                    let value = list.map_or(ReadValue::Nil, |list| {
                        ReadValue::List(list.iter().map(|value| number(*value)).collect())
                    });
                    asked.push(Mop::Read { key, value: ReadValue::Nil });
                    told.push(Mop::Read { key, value });
                }
            }
        }
        let kind = match call.outcome {
            Outcome::Ok(_) => OpType::Ok,
            Outcome::Fail => OpType::Fail,
            Outcome::Info => OpType::Info,
        };
        let op = |position: u32, kind, value, nanos: u64| {
            let (index, process) = (u64::from(position), Some(i64::from(call.process.0)));
            (position, Op { index, kind, process, value, time: Some(nanos as i64) })
        };
        ops.push(op(call.invoked.position, OpType::Invoke, asked, call.invoked.nanos));
        ops.push(op(call.ended.position, kind, told, call.ended.nanos));
    }
    ops.sort_by_key(|(position, _)| *position);
    Recorded::from_ops(ops.into_iter().map(|(_, op)| op).collect(), interner)
}
