//! Range reads against inserts: were transactions over a handful of keys strictly serializable,
//! gaps included?
//!
//! A scan does not only see the rows that are there, it also sees that the others are not. A
//! database that guards the rows which a scan returned but not the gaps between them lets in
//! *phantoms*:
//!
//! ```text
//!   t1: scan [1, 9) -> {}    put 3
//!   t2: scan [1, 9) -> {}    put 5        each says that it came before the other
//! ```
//!
//! With a small universe of keys a scan is nothing but a read of each key in its range, with "none"
//! as an answer like any other. Then a transaction is one operation on one object, the whole small
//! database, and strict serializability is linearizability of that object: the search of
//! [`crate::linear::search`] decides it, exactly, with unknown outcomes, blind writes and deletes.
//! Keys that nobody ever wrote are none in every state, so the universe is what the history names.
//!
//! Values are unique; otherwise the search is slower but right. A universe of 4 to 64 keys, up to
//! some 20 clients, and at least one reading step in most transactions keep it fast. Keyspaces that
//! do not meet in one transaction should be checked apart.
//!
//! # Explanation
//! Prefixes of a right history and projections to fewer keys are right. So the history is cut at the
//! first contradiction, keys are left out as long as the rest is wrong, then transactions ([`crate::linear::explain`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use atoll_encoding::hash::HashMap;

use crate::history::{Call, History, Outcome};
use crate::linear::explain::{Names, first_contradiction, judge};
use crate::linear::search::{
    Found, Impossible, Model, Readers, Seen, Step as Stepped, Token, search, spread_state,
};
use crate::verdict::Verdict;

/// Branch points of a trial with fewer keys.
const TRIAL_BUDGET: u64 = 20_000;

/// A step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Reads a key: [`Answer::Value`].
    Get(u64),
    /// Reads the keys from the first to before the second, ascending: [`Answer::Rows`].
    Scan {
        /// First key.
        from: u64,
        /// Behind the last key.
        to: u64,
        /// Stops after so many rows.
        limit: Option<usize>,
    },
    /// Writes a key.
    Put(u64, u64),
    /// Removes a key.
    Delete(u64),
}

/// What a reading step was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Of a get: the value or none.
    Value(Option<u64>),
    /// Of a scan: keys with values.
    Rows(Vec<(u64, u64)>),
}

/// A transaction: its steps, carried out one after the other, its own writes visible to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Txn(pub Vec<Step>);

/// What a transaction was told: one answer per reading step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answers(pub Vec<Answer>);

impl fmt::Display for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            match step {
                Step::Get(key) => write!(f, "get {key}")?,
                Step::Scan { from, to, limit: None } => write!(f, "scan [{from}, {to})")?,
                Step::Scan { from, to, limit: Some(limit) } => {
                    write!(f, "scan [{from}, {to}) limit {limit}")?;
                }
                Step::Put(key, value) => write!(f, "put {key}={value}")?,
                Step::Delete(key) => write!(f, "del {key}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, answer) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            match answer {
                Answer::Value(Some(value)) => write!(f, "{value}")?,
                Answer::Value(None) => write!(f, "-")?,
                Answer::Rows(rows) => {
                    let rows: Vec<_> = rows.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    write!(f, "{{{}}}", rows.join(" "))?;
                }
            }
        }
        Ok(())
    }
}

/// Checks that the transactions were strictly serializable, spending up to `budget` branch points
/// ([`crate::linear::BUDGET`]).
///
/// # Errors
/// They were not, or the budget did not suffice.
pub fn check(history: &History<Txn, Answers>, budget: u64) -> Verdict {
    let members: Vec<usize> = (0..history.calls().len())
        .filter(|at| !matches!(history.calls()[*at].outcome, Outcome::Fail))
        .collect();
    let calls: Vec<_> = members.iter().map(|at| seen(&history.calls()[*at])).collect();
    let anomaly = "not strictly serializable".to_owned();
    let show = |at: usize| history.calls()[at].to_string();
    if !matches!(search::<Database>(&calls, budget), Ok(Found::None { .. })) {
        return judge::<Database>(&calls, budget, &Names { anomaly, calls: &members, show: &show });
    }
    let position = first_contradiction::<Database>(&calls).unwrap_or(u32::MAX);
    let shorter = cut(history.calls(), position);
    let (origins, fewer) = project(&shorter, &needed_keys(&shorter));
    let calls: Vec<_> = fewer.iter().map(seen).collect();
    judge::<Database>(&calls, budget, &Names { anomaly, calls: &origins, show: &show })
}

fn seen(call: &Call<Txn, Answers>) -> Seen<'_, Txn, Answers> {
    Seen {
        op: &call.op,
        result: call.outcome.ok(),
        process: call.process.0,
        invoked: call.invoked.position,
        returned: call.deadline(),
    }
}

/// Returns what had begun at a position; what had not ended then is unknown. Indexes stay.
fn cut(calls: &[Call<Txn, Answers>], position: u32) -> Vec<Call<Txn, Answers>> {
    let mut begun: Vec<_> =
        calls.iter().take_while(|call| call.invoked.position <= position).cloned().collect();
    for call in begun.iter_mut().filter(|call| call.ended.position > position) {
        if call.outcome.ok().is_some() {
            call.outcome = Outcome::Info;
        }
    }
    begun
}

/// Returns as few keys as possible to which the calls can be projected and still be wrong.
fn needed_keys(history: &[Call<Txn, Answers>]) -> BTreeSet<u64> {
    let written = history.iter().flat_map(|call| &call.op.0);
    let mut keys: BTreeSet<u64> = written
        .filter_map(|step| match step {
            Step::Put(key, _) | Step::Delete(key) | Step::Get(key) => Some(*key),
            Step::Scan { .. } => None,
        })
        .collect();
    for call in history {
        for answer in call.outcome.ok().iter().flat_map(|answers| &answers.0) {
            if let Answer::Rows(rows) = answer {
                keys.extend(rows.iter().map(|(key, _)| *key));
            }
        }
    }
    // Halves first, then smaller parts: most violations are about one or two keys.
    let mut size = keys.len().div_ceil(2);
    while size > 0 {
        let all: Vec<u64> = keys.iter().copied().collect();
        for chunk in all.chunks(size) {
            let fewer: BTreeSet<u64> =
                keys.iter().copied().filter(|key| !chunk.contains(key)).collect();
            let (_, calls) = project(history, &fewer);
            let calls: Vec<_> = calls.iter().map(seen).collect();
            if !matches!(
                search::<Database>(&calls, TRIAL_BUDGET),
                Ok(Found::Order { .. } | Found::OutOfBudget { .. })
            ) {
                keys = fewer;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    keys
}

/// Restricts calls to some keys; returns those that are left with their origins.
fn project(
    history: &[Call<Txn, Answers>],
    keys: &BTreeSet<u64>,
) -> (Vec<usize>, Vec<Call<Txn, Answers>>) {
    let mut origins = Vec::new();
    let mut calls = Vec::new();
    for (at, call) in history.iter().enumerate() {
        if matches!(call.outcome, Outcome::Fail) {
            continue;
        }
        let mut answers = call.outcome.ok().map(|answers| answers.0.iter());
        let mut steps = Vec::new();
        let mut kept = Vec::new();
        for step in &call.op.0 {
            let reads = matches!(step, Step::Get(_) | Step::Scan { .. });
            let answer = answers.as_mut().filter(|_| reads).and_then(Iterator::next);
            match (step, answer) {
                (Step::Get(key) | Step::Put(key, _) | Step::Delete(key), _) => {
                    if keys.contains(key) {
                        steps.push(step.clone());
                        kept.extend(answer.cloned());
                    }
                }
                (Step::Scan { from, to, limit }, Some(Answer::Rows(rows))) => {
                    let to = scanned_to(*to, *limit, rows);
                    if keys.range(*from..to.max(*from)).next().is_some() {
                        let rows = rows.iter().copied().filter(|(key, _)| keys.contains(key));
                        kept.push(Answer::Rows(rows.collect()));
                        steps.push(Step::Scan { from: *from, to, limit: None });
                    }
                }
                (Step::Scan { .. }, _) => {
                    steps.push(step.clone());
                    kept.extend(answer.cloned());
                }
            }
        }
        if !steps.is_empty() {
            origins.push(at);
            let outcome = match call.outcome {
                Outcome::Ok(_) => Outcome::Ok(Answers(kept)),
                Outcome::Fail | Outcome::Info => Outcome::Info,
            };
            calls.push(Call {
                process: call.process,
                op: Txn(steps),
                invoked: call.invoked,
                ended: call.ended,
                outcome,
            });
        }
    }
    (origins, calls)
}

/// Returns where a scan ended: at its bound, or behind the row that filled its limit.
fn scanned_to(to: u64, limit: Option<usize>, rows: &[(u64, u64)]) -> u64 {
    match (limit, rows.last()) {
        (Some(limit), Some((last, _))) if rows.len() >= limit => to.min(last.saturating_add(1)),
        _ => to,
    }
}

/// A transaction by what it saw of the state before it and what it left: key and value, as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Action {
    reads: Vec<(u32, Token)>,
    writes: Vec<(u32, Token)>,
}

/// The whole small database.
#[derive(Debug, Default)]
struct Database {
    /// By key: its value, or its token for none.
    state: Vec<Token>,
    /// Values that writes replaced, for taking them back.
    log: Vec<(u32, Token)>,
    fingerprint: u128,
    /// By token: it is brought about at most once.
    once: Vec<bool>,
}

/// Numbers for keys and for values of keys. The first tokens are "none", one for each key.
struct Numbers {
    keys: BTreeMap<u64, u32>,
    values: HashMap<(u32, u64), Token>,
}

impl Numbers {
    fn value(&mut self, key: u32, value: u64) -> Token {
        let next = (self.keys.len() + self.values.len()) as Token;
        *self.values.entry((key, value)).or_insert(next)
    }
}

impl Database {
    fn set(&mut self, key: u32, token: Token) {
        let hash = |token: Token| spread_state(u64::from(key) << 32 | u64::from(token));
        let old = std::mem::replace(&mut self.state[key as usize], token);
        self.fingerprint ^= hash(old) ^ hash(token);
    }
}

/// Translates a transaction, or says how it contradicts itself.
fn compile(txn: &Txn, answers: Option<&Answers>, numbers: &mut Numbers) -> Result<Action, String> {
    let mut reads: BTreeMap<u32, Token> = BTreeMap::new();
    let mut writes: BTreeMap<u32, Token> = BTreeMap::new();
    let mut answers_left = answers.map(|answers| answers.0.iter());
    for step in &txn.0 {
        let mut saw = |key: u32, token: Token| match writes.get(&key) {
            Some(own) if *own != token => Err("a transaction did not see its own write"),
            Some(_) => Ok(()),
            None if *reads.entry(key).or_insert(token) != token => {
                Err("a transaction read a key twice and differently")
            }
            None => Ok(()),
        };
        match step {
            Step::Put(key, value) => {
                let key = numbers.keys[key];
                writes.insert(key, numbers.value(key, *value));
            }
            Step::Delete(key) => {
                let key = numbers.keys[key];
                writes.insert(key, key);
            }
            Step::Get(key) => {
                let Some(answers) = &mut answers_left else { continue };
                let Some(Answer::Value(value)) = answers.next() else {
                    return Err("a get was answered by something else".into());
                };
                let key = numbers.keys[key];
                saw(key, value.map_or(key, |value| numbers.value(key, value)))?;
            }
            Step::Scan { from, to, limit } => {
                let Some(answers) = &mut answers_left else { continue };
                let Some(Answer::Rows(rows)) = answers.next() else {
                    return Err("a scan was answered by something else".into());
                };
                let ascending = rows.windows(2).all(|pair| pair[0].0 < pair[1].0);
                let inside = rows.iter().all(|(key, _)| (*from..*to).contains(key));
                if !ascending || !inside || limit.is_some_and(|limit| rows.len() > limit) {
                    return Err("a scan returned rows out of order, range or limit".into());
                }
                let to = scanned_to(*to, *limit, rows);
                let mut rows = rows.iter().peekable();
                let range: Vec<(u64, u32)> =
                    numbers.keys.range(*from..to.max(*from)).map(|(k, n)| (*k, *n)).collect();
                for (key, number) in range {
                    let row = rows.next_if(|row| row.0 == key);
                    saw(number, row.map_or(number, |row| numbers.value(number, row.1)))?;
                }
            }
        }
    }
    Ok(Action { reads: reads.into_iter().collect(), writes: writes.into_iter().collect() })
}

impl Model for Database {
    type Op = Txn;
    type Ret = Answers;
    type Action = Action;
    type Undo = usize;

    fn compile(calls: &[Seen<'_, Txn, Answers>]) -> Result<(Database, Vec<Action>), Impossible> {
        let mut keys = BTreeMap::new();
        for call in calls {
            for step in &call.op.0 {
                if let Step::Get(key) | Step::Put(key, _) | Step::Delete(key) = step {
                    keys.insert(*key, 0);
                }
            }
            for answer in call.result.iter().flat_map(|answers| &answers.0) {
                if let Answer::Rows(rows) = answer {
                    keys.extend(rows.iter().map(|(key, _)| (*key, 0)));
                }
            }
        }
        for (number, key) in keys.values_mut().enumerate() {
            *key = number as u32;
        }
        let mut numbers = Numbers { keys, values: HashMap::default() };
        let mut actions = Vec::with_capacity(calls.len());
        for (at, call) in calls.iter().enumerate() {
            let action = compile(call.op, call.result, &mut numbers)
                .map_err(|reason| Impossible { calls: vec![at], reason })?;
            actions.push(action);
        }
        let keys = numbers.keys.len();
        let mut made = vec![0u32; keys + numbers.values.len()];
        // Each key starts as none.
        made[..keys].fill(1);
        for (_, token) in actions.iter().flat_map(|action| &action.writes) {
            made[*token as usize] += 1;
        }
        let once = made.iter().map(|made| *made <= 1).collect();
        let state = (0..keys as Token).collect();
        Ok((Database { state, once, ..Database::default() }, actions))
    }

    fn observes(&self, action: &Action, visit: &mut dyn FnMut(Token)) {
        action.reads.iter().for_each(|(_, token)| visit(*token));
    }

    fn makes(&self, action: &Action, visit: &mut dyn FnMut(Token)) {
        action.writes.iter().for_each(|(_, token)| visit(*token));
    }

    fn matters(&self, action: &Action, readers: &Readers) -> bool {
        action.writes.iter().any(|(_, token)| readers.left(*token) > 0)
    }

    fn is_pure(&self, action: &Action) -> bool {
        action.writes.is_empty()
    }

    fn values_are_separate(&self) -> bool {
        true
    }

    fn step(&mut self, action: &Action, readers: &Readers) -> Option<Stepped<usize>> {
        let state = &self.state;
        if action.reads.iter().any(|(key, token)| state[*key as usize] != *token) {
            return None;
        }
        let leaves_needed = |(key, token): &(u32, Token)| {
            let old = state[*key as usize];
            old != *token && self.once[old as usize] && readers.left(old) > 0
        };
        if action.writes.iter().any(leaves_needed) {
            return None;
        }
        let undo = self.log.len();
        for (key, token) in &action.writes {
            let old = self.state[*key as usize];
            if old != *token {
                self.log.push((*key, old));
                self.set(*key, *token);
            }
        }
        Some(Stepped { undo, changed: self.log.len() > undo })
    }

    fn undo(&mut self, undo: usize) {
        while self.log.len() > undo {
            let Some((key, old)) = self.log.pop() else { return };
            self.set(key, old);
        }
    }

    fn fingerprint(&self) -> u128 {
        self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Recorder;
    use crate::linear::BUDGET;

    const ALL: Step = Step::Scan { from: 0, to: 10, limit: None };

    /// Runs transactions that all overlap, with their answers, after and before some that do not.
    fn judge_of(rounds: &[&[(&[Step], &[Answer])]]) -> Verdict {
        let mut recorder = Recorder::new();
        for round in rounds {
            let open: Vec<_> = round
                .iter()
                .map(|(steps, _)| {
                    let process = recorder.process();
                    recorder.invoke(process, 0, Txn(steps.to_vec()))
                })
                .collect();
            for (call, (_, answers)) in open.into_iter().zip(*round) {
                recorder.ok(call, 0, Answers(answers.to_vec()));
            }
        }
        check(&recorder.finish(0), BUDGET)
    }

    fn rows(rows: &[(u64, u64)]) -> Answer {
        Answer::Rows(rows.to_vec())
    }

    #[test]
    fn inserts_into_a_gap_that_both_have_scanned_are_a_violation() {
        let insert = |key, value| [ALL, Step::Put(key, value)];
        let (three, five) = (insert(3, 30), insert(5, 50));
        let none = [rows(&[])];
        let saw_three = [rows(&[(3, 30)])];
        assert!(judge_of(&[&[(&three, &none), (&five, &saw_three)]]).is_ok());
        let failure = judge_of(&[&[(&three, &none), (&five, &none)]]).expect_err("a phantom");
        assert_eq!(failure.violation().expect("a violation").calls, [0, 1]);
    }

    #[test]
    fn a_scan_that_misses_a_row_of_before_is_a_violation() {
        let put: &[Step] = &[Step::Put(1, 10), Step::Put(2, 20)];
        let noise: &[Step] = &[Step::Put(7, 70)];
        let scan: &[Step] = &[ALL];
        let complete: &[Answer] = &[rows(&[(1, 10), (2, 20), (7, 70)])];
        let torn: &[Answer] = &[rows(&[(1, 10), (7, 70)])];
        assert!(judge_of(&[&[(put, &[])], &[(noise, &[])], &[(scan, complete)]]).is_ok());
        let failure = judge_of(&[&[(put, &[])], &[(noise, &[])], &[(scan, torn)]]);
        let failure = failure.expect_err("half a transaction");
        assert_eq!(failure.violation().expect("a violation").calls, [0, 2]);
    }

    #[test]
    fn a_limited_scan_says_nothing_about_keys_behind_its_last_row() {
        let put: &[Step] = &[Step::Put(1, 10), Step::Put(2, 20)];
        let scan: &[Step] = &[Step::Scan { from: 0, to: 10, limit: Some(1) }];
        assert!(judge_of(&[&[(put, &[])], &[(scan, &[rows(&[(1, 10)])])]]).is_ok());
        assert!(judge_of(&[&[(put, &[])], &[(scan, &[rows(&[(2, 20)])])]]).is_err());
        assert!(judge_of(&[&[(put, &[])], &[(scan, &[rows(&[(1, 10), (2, 20)])])]]).is_err());
    }

    #[test]
    fn a_deleted_row_does_not_come_back() {
        let put: &[Step] = &[Step::Put(1, 10)];
        let delete: &[Step] = &[Step::Get(1), Step::Delete(1), Step::Get(1)];
        let saw: &[Answer] = &[Answer::Value(Some(10)), Answer::Value(None)];
        let scan: &[Step] = &[ALL];
        let before: &[&[(&[Step], &[Answer])]] = &[&[(put, &[])], &[(delete, saw)]];
        let with = |last: Answer| {
            let last = [last];
            let last: &[(&[Step], &[Answer])] = &[(scan, &last)];
            let rounds: Vec<_> = before.iter().copied().chain([last]).collect();
            judge_of(&rounds)
        };
        assert!(with(rows(&[])).is_ok());
        assert!(with(rows(&[(1, 10)])).is_err());
    }

    #[test]
    fn write_skew_through_gets_is_a_violation() {
        let one: &[Step] = &[Step::Get(1), Step::Put(2, 20)];
        let two: &[Step] = &[Step::Get(2), Step::Put(1, 10)];
        let none: &[Answer] = &[Answer::Value(None)];
        assert!(judge_of(&[&[(one, none), (two, &[Answer::Value(Some(20))])]]).is_ok());
        assert!(judge_of(&[&[(one, none), (two, none)]]).is_err());
    }

    #[test]
    fn a_transaction_that_contradicts_itself_is_a_violation() {
        let steps: &[Step] = &[Step::Put(1, 10), Step::Get(1)];
        let failure = judge_of(&[&[(steps, &[Answer::Value(None)])]]).expect_err("own write");
        assert!(failure.to_string().contains("did not see its own write"), "{failure}");
        let twice: &[Step] = &[Step::Get(1), ALL];
        let answers: &[Answer] = &[Answer::Value(None), rows(&[(1, 10)])];
        let put: &[Step] = &[Step::Put(1, 10)];
        assert!(judge_of(&[&[(put, &[]), (twice, answers)]]).is_err());
    }
}
