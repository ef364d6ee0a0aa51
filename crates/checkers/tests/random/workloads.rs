//! What the clients of the toy database do: one workload per checker.

use atoll_checkers::linear::{CounterOp, Keyed, ListOp, ListRet, RegisterOp, RegisterRet};
use atoll_checkers::{bank, counts, durable, list_append, ranges, sessions};
use atoll_env::random::Prng;

use crate::toy::{State, Workload};

/// Registers under all commands, on few keys.
pub struct Registers;

impl Workload for Registers {
    type Op = Keyed<u64, RegisterOp>;
    type Ret = RegisterRet;

    fn draw(&self, prng: &mut Prng, unique: u64) -> Self::Op {
        let value = unique as i64;
        let op = match prng.below(12) {
            0..5 => RegisterOp::Get,
            5..8 => RegisterOp::Set(value),
            8 => RegisterOp::GetSet(value),
            9 => RegisterOp::SetIfAbsent(value),
            10 => RegisterOp::Delete,
            _ => {
                let expected = Some(value - 1 - prng.below(8) as i64);
                RegisterOp::CompareAndSet { expected, new: value }
            }
        };
        Keyed { key: prng.below(4), op }
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> RegisterRet {
        let old = state.get(&op.key).map(|values| values[0] as i64);
        let new = match op.op {
            RegisterOp::Get => None,
            RegisterOp::Set(value) | RegisterOp::GetSet(value) => Some(value),
            RegisterOp::SetIfAbsent(value) => old.is_none().then_some(value),
            RegisterOp::CompareAndSet { expected, new } => (old == expected).then_some(new),
            RegisterOp::Add(by) => Some(old.unwrap_or(0) + by),
            RegisterOp::Delete => {
                state.remove(&op.key);
                None
            }
        };
        if let Some(new) = new {
            state.insert(op.key, vec![new as u64]);
        }
        match op.op {
            RegisterOp::Get | RegisterOp::GetSet(_) => RegisterRet::Value(old),
            RegisterOp::Set(_) => RegisterRet::Done,
            RegisterOp::Delete => RegisterRet::Applied(old.is_some()),
            RegisterOp::SetIfAbsent(_) | RegisterOp::CompareAndSet { .. } => {
                RegisterRet::Applied(new.is_some())
            }
            RegisterOp::Add(by) => RegisterRet::Number(old.unwrap_or(0) + by),
        }
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        match op.op {
            RegisterOp::Get => (vec![op.key], vec![]),
            _ => (vec![op.key], vec![op.key]),
        }
    }
}

/// Counters.
pub struct Counters;

impl Workload for Counters {
    type Op = Keyed<u64, CounterOp>;
    type Ret = i64;

    fn draw(&self, prng: &mut Prng, _: u64) -> Self::Op {
        let op = match prng.below(4) {
            0 => CounterOp::Get,
            1 => CounterOp::Add(-1),
            _ => CounterOp::Add(1 + prng.below(2) as i64),
        };
        Keyed { key: prng.below(3), op }
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> i64 {
        let value = state.get(&op.key).map_or(0, |values| values[0] as i64);
        match op.op {
            CounterOp::Get => value,
            CounterOp::Add(by) => {
                state.insert(op.key, vec![(value + by) as u64]);
                value + by
            }
        }
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        match op.op {
            CounterOp::Get => (vec![op.key], vec![]),
            CounterOp::Add(_) => (vec![op.key], vec![op.key]),
        }
    }
}

/// Lists that only grow.
pub struct Lists;

impl Workload for Lists {
    type Op = Keyed<u64, ListOp>;
    type Ret = ListRet;

    fn draw(&self, prng: &mut Prng, unique: u64) -> Self::Op {
        let op = if prng.chance(0.4) { ListOp::Read } else { ListOp::Append(unique) };
        Keyed { key: prng.below(4), op }
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> ListRet {
        match op.op {
            ListOp::Append(value) => {
                let list = state.entry(op.key).or_default();
                list.push(value);
                if op.key == 0 { ListRet::Length(list.len()) } else { ListRet::Done }
            }
            ListOp::Read => ListRet::Values(state.get(&op.key).cloned().unwrap_or_default()),
        }
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        match op.op {
            ListOp::Read => (vec![op.key], vec![]),
            ListOp::Append(_) => (vec![op.key], vec![op.key]),
        }
    }
}

/// Transactions that append to lists and read them. Keys are given up after a while.
pub struct Appends;

impl Workload for Appends {
    type Op = list_append::Txn;
    type Ret = list_append::Reads;

    fn draw(&self, prng: &mut Prng, unique: u64) -> Self::Op {
        let steps = 1 + prng.below(4);
        let reads_only = prng.chance(0.3);
        let micros = (0..steps).map(|step| {
            let key = unique / 100 * 4 + prng.below(6);
            if reads_only || prng.chance(0.5) {
                list_append::Micro::Read { key }
            } else {
                list_append::Micro::Append { key, value: unique * 10 + step }
            }
        });
        list_append::Txn(micros.collect())
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> list_append::Reads {
        let mut reads = Vec::new();
        for micro in &op.0 {
            match *micro {
                list_append::Micro::Append { key, value } => {
                    state.entry(key).or_default().push(value);
                }
                list_append::Micro::Read { key } => {
                    reads.push(state.get(&key).cloned().unwrap_or_default());
                }
            }
        }
        list_append::Reads(reads)
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for micro in &op.0 {
            match *micro {
                list_append::Micro::Append { key, .. } => writes.push(key),
                list_append::Micro::Read { key } => reads.push(key),
            }
        }
        (reads, writes)
    }
}

/// Transactions that scan, read and write a few keys.
pub struct Ranges;

const UNIVERSE: u64 = 10;

impl Workload for Ranges {
    type Op = ranges::Txn;
    type Ret = ranges::Answers;

    fn draw(&self, prng: &mut Prng, unique: u64) -> Self::Op {
        use ranges::Step;
        let mut steps = Vec::new();
        let from = prng.below(UNIVERSE);
        let limit = prng.chance(0.2).then_some(2);
        let to = from + 1 + prng.below(UNIVERSE - from);
        match prng.below(10) {
            0..6 => steps.push(Step::Scan { from, to, limit }),
            6..9 => steps.push(Step::Get(from)),
            _ => {}
        }
        let writes = if prng.chance(0.3) { 0 } else { 1 + prng.below(2) };
        for step in 0..writes {
            let key = prng.below(UNIVERSE);
            steps.push(match prng.chance(0.4) {
                true => Step::Delete(key),
                false => Step::Put(key, unique * 10 + step),
            });
        }
        if steps.is_empty() {
            steps.push(Step::Scan { from: 0, to: UNIVERSE, limit: None });
        }
        ranges::Txn(steps)
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> ranges::Answers {
        use ranges::{Answer, Step};
        let mut answers = Vec::new();
        for step in &op.0 {
            match *step {
                Step::Get(key) => answers.push(Answer::Value(state.get(&key).map(|v| v[0]))),
                Step::Scan { from, to, limit } => {
                    let rows = state.range(from..to).map(|(key, values)| (*key, values[0]));
                    answers.push(Answer::Rows(rows.take(limit.unwrap_or(usize::MAX)).collect()));
                }
                Step::Put(key, value) => {
                    state.insert(key, vec![value]);
                }
                Step::Delete(key) => {
                    state.remove(&key);
                }
            }
        }
        ranges::Answers(answers)
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        use ranges::Step;
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for step in &op.0 {
            match *step {
                Step::Get(key) => reads.push(key),
                Step::Scan { from, to, .. } => reads.extend(from..to),
                Step::Put(key, _) | Step::Delete(key) => writes.push(key),
            }
        }
        (reads, writes)
    }
}

/// A bank of six accounts with 100 each.
pub struct Bank;

pub const BANK: bank::Bank = bank::Bank { accounts: 6, total: 600, negative: true };

/// Balances, printable.
#[derive(Clone)]
pub struct Shown(pub bank::Balances);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Workload for Bank {
    type Op = bank::Op;
    type Ret = Shown;

    fn draw(&self, prng: &mut Prng, _: u64) -> Self::Op {
        let from = prng.below(6);
        let to = (from + 1 + prng.below(5)) % 6;
        match prng.chance(0.4) {
            true => bank::Op::Snapshot,
            false => bank::Op::Transfer { from, to, amount: 1 + prng.below(9) as i64 },
        }
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> Shown {
        match *op {
            bank::Op::Snapshot => {
                Shown(state.iter().map(|(key, values)| (*key, values[0] as i64)).collect())
            }
            bank::Op::Transfer { from, to, amount } => {
                for (account, by) in [(from, -amount), (to, amount)] {
                    if let Some(values) = state.get_mut(&account) {
                        values[0] = (values[0] as i64 + by) as u64;
                    }
                }
                Shown(Vec::new())
            }
        }
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        match *op {
            bank::Op::Snapshot => ((0..6).collect(), vec![]),
            bank::Op::Transfer { from, to, .. } => (vec![from, to], vec![from, to]),
        }
    }

    fn start(&self) -> State {
        (0..6).map(|account| (account, vec![100])).collect()
    }
}

/// Puts, deletes and counts of keys.
pub struct Counts;

impl Workload for Counts {
    type Op = counts::Op;
    type Ret = u64;

    fn draw(&self, prng: &mut Prng, _: u64) -> Self::Op {
        let key = prng.below(30);
        match prng.below(20) {
            0..9 => counts::Op::Put(key),
            9..14 => counts::Op::Delete(key),
            14 => counts::Op::Clear,
            _ => counts::Op::Count,
        }
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> u64 {
        match *op {
            counts::Op::Put(key) => {
                state.insert(key, vec![1]);
            }
            counts::Op::Delete(key) => {
                state.remove(&key);
            }
            counts::Op::Clear => state.clear(),
            counts::Op::Count => {}
        }
        state.len() as u64
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        match *op {
            counts::Op::Put(key) | counts::Op::Delete(key) => (vec![], vec![key]),
            counts::Op::Clear => (vec![], (0..30).collect()),
            counts::Op::Count => ((0..30).collect(), vec![]),
        }
    }
}

/// Writes whose last values are checked.
pub struct Writes;

/// Nothing, printable.
#[derive(Clone)]
pub struct Nothing;

impl std::fmt::Display for Nothing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("done")
    }
}

impl Workload for Writes {
    type Op = durable::Write;
    type Ret = Nothing;

    fn draw(&self, prng: &mut Prng, unique: u64) -> Self::Op {
        durable::Write { key: prng.below(20), value: prng.chance(0.8).then_some(unique) }
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> Nothing {
        match op.value {
            Some(value) => state.insert(op.key, vec![value]),
            None => state.remove(&op.key),
        };
        Nothing
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        (vec![], vec![op.key])
    }
}

/// Sessions that read keys, each with one session that writes it. The toy has no versions to
/// choose from, so sessions are made of calls afterwards: see the test.
pub struct Versions;

impl Workload for Versions {
    type Op = sessions::Op;
    type Ret = u64;

    fn draw(&self, prng: &mut Prng, unique: u64) -> Self::Op {
        let write = prng.chance(0.3).then_some(unique);
        sessions::Op { session: prng.below(4), key: prng.below(3), write }
    }

    fn apply(&self, state: &mut State, op: &Self::Op) -> u64 {
        if let Some(version) = op.write {
            // Writers of a key overlap here; the highest version stands, as if they had not.
            let values = state.entry(op.key).or_insert_with(|| vec![0]);
            values[0] = values[0].max(version);
        }
        state.get(&op.key).map_or(0, |values| values[0])
    }

    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>) {
        if op.write.is_some() { (vec![], vec![op.key]) } else { (vec![op.key], vec![]) }
    }
}
