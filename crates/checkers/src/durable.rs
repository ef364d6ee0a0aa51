//! Durability: after the crash, is everything there that was acknowledged before it, and nothing
//! that should not be?
//!
//! The harness records what clients did up to the crash, lets the database recover, reads
//! everything, and asks. Only the *last* write of a key shows, so the question for each key is
//! which writes may have been the last:
//!
//! ```text
//!   set k 1   [----]
//!   set k 2           [-----]                      acknowledged after set 1 had ended: 1 is gone
//!   set k 3              [------ crash             unknown: may be the last, or never happened
//!   del k                 [---]                    beside set 2: may be the last
//!
//!   k may be 2, 3 or none
//! ```
//!
//! A write is possibly the last unless another, acknowledged one began after it had ended. Values
//! are unique per key, so the final value names its write. No search is needed: any number of
//! writes and unknown outcomes is judged in `n log n`. What this cannot see (reads in between that
//! fix an order) is for [`crate::linear`], with the final reads as further gets.
//!
//! An acknowledgement that does not promise to survive this crash (a weaker durability mode and a
//! power cut) is recorded as info: it may be there or not. For a mode that promises a *prefix*, the
//! writes of one process must be there up to one point; [`prefix`] checks that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::history::{Call, History, Outcome};
use crate::verdict::{Checked, Failure, Verdict, Violation};

/// A write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: u64,
    /// The new value, unique among those of the key, or `None` to remove it.
    pub value: Option<u64>,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "set {} {value}", self.key),
            None => write!(f, "del {}", self.key),
        }
    }
}

/// Checks that a database which started empty may look like `last`, all keys and values that it has
/// in the end.
///
/// # Errors
/// The first key, in order, whose final value is impossible.
pub fn registers(history: &History<Write, ()>, last: &BTreeMap<u64, u64>) -> Verdict {
    let writes = by_key(history);
    let mut checked = Checked::default();
    for (key, value) in last {
        if !writes.contains_key(key) {
            let anomaly = format!("key {key} has the value {value} and was never written");
            return violation(history, anomaly, &[]);
        }
    }
    for (key, writes) in &writes {
        let value = last.get(key).copied();
        may_be_last(history, *key, writes, value)?;
        checked.calls += writes.len();
    }
    Ok(checked)
}

fn may_be_last(
    history: &History<Write, ()>,
    key: u64,
    writes: &[usize],
    value: Option<u64>,
) -> Result<(), Failure> {
    let calls = history.calls();
    let acknowledged = |at: &&usize| matches!(calls[**at].outcome, Outcome::Ok(_));
    // Of the acknowledged writes, the one that began last outdates the most.
    let latest = writes.iter().filter(acknowledged).max_by_key(|at| calls[**at].invoked.position);
    let outdated = |at: usize| {
        latest.filter(|latest| calls[**latest].invoked.position > calls[at].deadline()).copied()
    };
    if value.is_none() && latest.is_none() {
        return Ok(());
    }
    let text = value.map_or("gone".to_owned(), |value| format!("{value}"));
    let mut why = None;
    for at in writes.iter().copied().filter(|at| calls[*at].op.value == value) {
        match (&calls[at].outcome, outdated(at)) {
            (Outcome::Fail, _) => {
                why = why
                    .or(Some((format!("key {key} is {text}, of a write that failed"), vec![at])));
            }
            (_, Some(latest)) => {
                why = Some((format!("lost write: key {key} is still {text}"), vec![at, latest]));
            }
            (_, None) => return Ok(()),
        }
    }
    match (why, value, latest) {
        (_, None, Some(latest)) => {
            violation(history, format!("lost write: key {key} is gone"), &[*latest])
        }
        (Some((anomaly, involved)), ..) => violation(history, anomaly, &involved),
        (None, None, None) => Ok(()),
        (None, Some(value), _) => {
            violation(history, format!("key {key} has {value}, which nobody wrote"), writes)
        }
    }
}

/// An element added to a collection that never loses any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add {
    /// The collection.
    pub key: u64,
    /// The element; nobody else adds it.
    pub element: u64,
}

impl fmt::Display for Add {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "add {} {}", self.key, self.element)
    }
}

/// Checks that collections (lists, sets, logs) hold in the end each acknowledged element, each
/// once, and none of which the addition failed or was never asked for.
///
/// # Errors
/// The first collection that does not.
pub fn elements(history: &History<Add, ()>, last: &BTreeMap<u64, Vec<u64>>) -> Verdict {
    let calls = history.calls();
    let mut known: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for (at, call) in calls.iter().enumerate() {
        if known.insert((call.op.key, call.op.element), at).is_some() {
            let Add { key, element } = call.op;
            return Err(Failure::Malformed(format!("{element} is added to {key} more than once")));
        }
    }
    let mut met = BTreeSet::new();
    for (key, elements) in last {
        for element in elements {
            let Some(at) = known.get(&(*key, *element)) else {
                return violation(history, format!("{element} in {key}, which nobody added"), &[]);
            };
            if matches!(calls[*at].outcome, Outcome::Fail) {
                let anomaly = format!("{element} in {key}, whose addition failed");
                return violation(history, anomaly, &[*at]);
            }
            if !met.insert((*key, *element)) {
                return violation(history, format!("{element} twice in {key}"), &[*at]);
            }
        }
    }
    for (element, at) in &known {
        if matches!(calls[*at].outcome, Outcome::Ok(_)) && !met.contains(element) {
            let (key, element) = element;
            return violation(history, format!("lost element: {element} of {key}"), &[*at]);
        }
    }
    Ok(Checked { calls: calls.len(), explored: 0 })
}

/// Checks that of each process the writes that are there are the first ones: nothing is missing
/// before something that survived. Each key is written once.
///
/// # Errors
/// The first process with a hole.
pub fn prefix(history: &History<Write, ()>, last: &BTreeMap<u64, u64>) -> Verdict {
    let calls = history.calls();
    if let Some(writes) = by_key(history).values().find(|writes| writes.len() > 1) {
        let reason = format!("key {} is written more than once", calls[writes[0]].op.key);
        return Err(Failure::Malformed(reason));
    }
    let mut missing: BTreeMap<u32, usize> = BTreeMap::new();
    for (at, call) in calls.iter().enumerate() {
        if matches!(call.outcome, Outcome::Fail) {
            continue;
        }
        if call.op.value.is_none() || call.op.value != last.get(&call.op.key).copied() {
            missing.entry(call.process.0).or_insert(at);
        } else if let Some(hole) = missing.get(&call.process.0) {
            let anomaly = format!("{} has a hole before what survived", call.process);
            return violation(history, anomaly, &[*hole, at]);
        }
    }
    Ok(Checked { calls: calls.len(), explored: 0 })
}

fn by_key(history: &History<Write, ()>) -> BTreeMap<u64, Vec<usize>> {
    let mut writes: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, call) in history.calls().iter().enumerate() {
        writes.entry(call.op.key).or_default().push(at);
    }
    writes
}

fn violation<T, O: fmt::Display>(
    history: &History<O, ()>,
    anomaly: String,
    involved: &[usize],
) -> Result<T, Failure> {
    let show = |call: &Call<O, ()>| {
        let end = match call.outcome {
            Outcome::Ok(()) => "acknowledged",
            Outcome::Fail => "failed",
            Outcome::Info => "unknown",
        };
        let (from, to) = (call.invoked.position, call.ended.position);
        format!("  {} [{from}..{to}] {} {end}\n", call.process, call.op)
    };
    let explanation = involved.iter().map(|at| show(&history.calls()[*at])).collect();
    Err(Failure::Violation(Violation { anomaly, explanation, calls: involved.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Recorder;

    /// Rounds of overlapping operations, each with its outcome.
    fn record<O: Copy>(rounds: &[&[(O, Outcome<()>)]]) -> History<O, ()> {
        let mut recorder = Recorder::new();
        for round in rounds {
            let open: Vec<_> = round
                .iter()
                .map(|(op, _)| {
                    let process = recorder.process();
                    recorder.invoke(process, 0, *op)
                })
                .collect();
            for (call, (_, outcome)) in open.into_iter().zip(*round) {
                recorder.end(call, 0, outcome.clone());
            }
        }
        recorder.finish(0)
    }

    const OK: Outcome<()> = Outcome::Ok(());

    fn set(value: u64) -> Write {
        Write { key: 1, value: Some(value) }
    }

    const DELETE: Write = Write { key: 1, value: None };

    fn anomaly(rounds: &[&[(Write, Outcome<()>)]], value: Option<u64>) -> Option<String> {
        let last = value.map(|value| (1, value)).into_iter().collect();
        let failure = registers(&record(rounds), &last).err()?;
        Some(failure.violation().expect("a violation").anomaly.clone())
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_or_outdated_is_lost() {
        let rounds: &[&[_]] = &[&[(set(1), OK)], &[(set(2), OK)]];
        assert_eq!(anomaly(rounds, Some(2)), None);
        assert_eq!(anomaly(rounds, Some(1)).as_deref(), Some("lost write: key 1 is still 1"));
        assert_eq!(anomaly(rounds, None).as_deref(), Some("lost write: key 1 is gone"));
    }

    #[test]
    fn writes_side_by_side_may_both_be_the_last() {
        let rounds: &[&[_]] = &[&[(set(1), OK)], &[(set(2), OK), (DELETE, OK)]];
        assert_eq!(anomaly(rounds, Some(2)), None);
        assert_eq!(anomaly(rounds, None), None);
        assert!(anomaly(rounds, Some(1)).is_some());
    }

    #[test]
    fn an_unknown_write_may_be_there_or_not() {
        let rounds: &[&[_]] = &[&[(set(1), OK)], &[(set(2), Outcome::Info)], &[(set(3), OK)]];
        assert_eq!(anomaly(rounds, Some(3)), None);
        assert_eq!(anomaly(rounds, Some(2)), None);
        assert!(anomaly(rounds, Some(1)).is_some());
        assert_eq!(anomaly(&[&[(set(1), Outcome::Info)]], None), None);
    }

    #[test]
    fn what_failed_or_was_never_written_must_not_be_there() {
        let rounds: &[&[_]] = &[&[(set(1), Outcome::Fail)]];
        assert_eq!(anomaly(rounds, None), None);
        assert_eq!(anomaly(rounds, Some(1)).as_deref(), Some("key 1 is 1, of a write that failed"));
        assert!(anomaly(rounds, Some(9)).is_some());
        assert_eq!(anomaly(&[&[(DELETE, Outcome::Fail)]], None), None);
        let last = BTreeMap::from([(7, 7)]);
        assert!(registers(&record(rounds), &last).is_err());
    }

    #[test]
    fn a_deleted_value_does_not_rise() {
        let rounds: &[&[_]] = &[&[(set(1), OK)], &[(DELETE, OK)]];
        assert_eq!(anomaly(rounds, None), None);
        assert!(anomaly(rounds, Some(1)).is_some());
    }

    #[test]
    fn collections_keep_what_was_acknowledged_once() {
        let add = |element| Add { key: 1, element };
        let history =
            record(&[&[(add(1), OK)], &[(add(2), Outcome::Info)], &[(add(3), Outcome::Fail)]]);
        let check = |elements_there: &[u64]| {
            elements(&history, &BTreeMap::from([(1, elements_there.to_vec())])).is_ok()
        };
        assert!(check(&[1]) && check(&[2, 1]));
        assert!(!check(&[2]), "lost");
        assert!(!check(&[1, 1]), "twice");
        assert!(!check(&[1, 3]), "failed");
        assert!(!check(&[1, 4]), "invented");
        assert!(elements(&history, &BTreeMap::new()).is_err());
    }

    #[test]
    fn a_prefix_has_no_holes() {
        let mut recorder = Recorder::new();
        let process = recorder.process();
        let call = recorder.invoke(process, 0, Write { key: 1, value: Some(1) });
        recorder.info(call, 0);
        let other = recorder.process();
        for key in 4..7 {
            let call = recorder.invoke(other, 0, Write { key, value: Some(key) });
            recorder.ok(call, 0, ());
        }
        let history = recorder.finish(0);
        let check = |keys: &[u64]| prefix(&history, &keys.iter().map(|k| (*k, *k)).collect());
        assert!(check(&[]).is_ok() && check(&[4, 5]).is_ok() && check(&[1, 4]).is_ok());
        assert!(check(&[5]).is_err() && check(&[4, 6]).is_err());
    }
}
