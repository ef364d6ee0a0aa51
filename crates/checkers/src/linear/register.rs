//! A register: one value or none, as a Redis string under the commands that read and replace it.
//!
//! Values are numbers, best unique ones: then a value that was overwritten does not come back, the
//! search refuses wrong orders at once, and no two mistakes cancel out. That a value occurs twice is
//! allowed, as a client that repeats a write makes it, and only slower to judge.

use std::fmt;

use atoll_encoding::hash::HashMap;

use super::search::{Impossible, Model, Readers, Seen, Step, Token, spread_state};

/// What a client asks of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegisterOp {
    /// Reads: answers [`RegisterRet::Value`].
    Get,
    /// Writes: answers [`RegisterRet::Done`].
    Set(i64),
    /// Removes: answers [`RegisterRet::Done`], or [`RegisterRet::Applied`] with whether a value was
    /// there.
    Delete,
    /// Writes if the value is the expected one: answers [`RegisterRet::Applied`].
    CompareAndSet {
        /// `None`: expects that there is no value.
        expected: Option<i64>,
        /// Written.
        new: i64,
    },
    /// Writes, and answers the value before: [`RegisterRet::Value`].
    GetSet(i64),
    /// Writes if there is no value: answers [`RegisterRet::Applied`].
    SetIfAbsent(i64),
    /// Adds to the value, none being 0, and answers the sum: [`RegisterRet::Number`].
    Add(i64),
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegisterRet {
    /// It is done.
    Done,
    /// The value, or none.
    Value(Option<i64>),
    /// Whether it changed anything.
    Applied(bool),
    /// The new number.
    Number(i64),
}

impl fmt::Display for RegisterOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegisterOp::Get => write!(f, "get"),
            RegisterOp::Set(value) => write!(f, "set {value}"),
            RegisterOp::Delete => write!(f, "del"),
            RegisterOp::CompareAndSet { expected: Some(old), new } => write!(f, "cas {old} {new}"),
            RegisterOp::CompareAndSet { expected: None, new } => write!(f, "cas - {new}"),
            RegisterOp::GetSet(value) => write!(f, "getset {value}"),
            RegisterOp::SetIfAbsent(value) => write!(f, "setnx {value}"),
            RegisterOp::Add(by) => write!(f, "add {by}"),
        }
    }
}

impl fmt::Display for RegisterRet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegisterRet::Done => write!(f, "done"),
            RegisterRet::Value(Some(value)) => write!(f, "{value}"),
            RegisterRet::Value(None) => write!(f, "-"),
            RegisterRet::Applied(applied) => write!(f, "{applied}"),
            RegisterRet::Number(number) => write!(f, "{number}"),
        }
    }
}

/// A value by its number; [`ABSENT`] is none.
type Value = Token;

const ABSENT: Value = 0;

/// An operation with its result; `None` where the result is unknown or says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Saw a value.
    Read(Value),
    /// Wrote one.
    Write(Value),
    /// Removed it; whether one was there.
    Delete(Option<bool>),
    /// Compared and wrote.
    Cas {
        /// Must be there.
        expected: Value,
        /// Is written.
        new: Value,
        /// Whether it was.
        applied: Option<bool>,
    },
    /// Saw a value and wrote another.
    Swap {
        /// Seen.
        old: Option<Value>,
        /// Written.
        new: Value,
    },
    /// Added.
    Add {
        /// The summand.
        by: i64,
        /// The sum.
        sum: Option<i64>,
    },
}

/// The register of one key; starts without a value.
#[derive(Debug)]
pub struct Register {
    state: Value,
    /// Numbers of values, and values by number.
    numbers: HashMap<i64, Value>,
    values: Vec<i64>,
    /// By value: it is brought about at most once, so that it does not come back.
    once: Vec<bool>,
    /// By value: a compare-and-set of unknown outcome waits for it.
    expected: Vec<bool>,
    /// Some result depends on what a value is not: then even values that nobody saw matter.
    any_value_matters: bool,
}

impl Register {
    fn number(&mut self, value: i64) -> Value {
        if let Some(number) = self.numbers.get(&value) {
            return *number;
        }
        let number = self.values.len() as Value;
        self.values.push(value);
        self.numbers.insert(value, number);
        number
    }

    fn number_or_absent(&mut self, value: Option<i64>) -> Value {
        value.map_or(ABSENT, |value| self.number(value))
    }

    fn action(&mut self, op: &RegisterOp, result: Option<&RegisterRet>) -> Option<Action> {
        use RegisterRet::{Applied, Done, Number, Value};
        Some(match (*op, result.copied()) {
            // Of a read that was not answered nothing is known, and it does nothing.
            (RegisterOp::Get, None) => Action::Read(ABSENT),
            (RegisterOp::Get, Some(Value(value))) => Action::Read(self.number_or_absent(value)),
            (RegisterOp::Set(value), None | Some(Done)) => Action::Write(self.number(value)),
            (RegisterOp::Delete, None | Some(Done)) => Action::Delete(None),
            (RegisterOp::Delete, Some(Applied(was))) => Action::Delete(Some(was)),
            (RegisterOp::CompareAndSet { expected, new }, None | Some(Applied(_))) => {
                let expected = self.number_or_absent(expected);
                Action::Cas { expected, new: self.number(new), applied: applied(result) }
            }
            (RegisterOp::SetIfAbsent(new), None | Some(Applied(_))) => {
                let new = self.number(new);
                Action::Cas { expected: ABSENT, new, applied: applied(result) }
            }
            (RegisterOp::GetSet(new), None) => Action::Swap { old: None, new: self.number(new) },
            (RegisterOp::GetSet(new), Some(Value(old))) => {
                let old = Some(self.number_or_absent(old));
                Action::Swap { old, new: self.number(new) }
            }
            (RegisterOp::Add(by), None) => Action::Add { by, sum: None },
            (RegisterOp::Add(by), Some(Number(sum))) => {
                self.number(sum);
                sum.checked_sub(by).map(|before| self.number(before));
                Action::Add { by, sum: Some(sum) }
            }
            _ => return None,
        })
    }

    fn value(&self, state: Value) -> i64 {
        if state == ABSENT { 0 } else { self.values[state as usize] }
    }
}

fn applied(result: Option<&RegisterRet>) -> Option<bool> {
    match result {
        Some(RegisterRet::Applied(applied)) => Some(*applied),
        _ => None,
    }
}

impl Model for Register {
    type Op = RegisterOp;
    type Ret = RegisterRet;
    type Action = Action;
    type Undo = Value;

    fn compile(
        calls: &[Seen<'_, RegisterOp, RegisterRet>],
    ) -> Result<(Register, Vec<Action>), Impossible> {
        let mut register = Register {
            state: ABSENT,
            numbers: HashMap::default(),
            values: vec![0],
            once: Vec::new(),
            expected: Vec::new(),
            any_value_matters: false,
        };
        let mut actions = Vec::with_capacity(calls.len());
        for (at, call) in calls.iter().enumerate() {
            let action = register.action(call.op, call.result).ok_or_else(|| Impossible {
                calls: vec![at],
                reason: format!("{} cannot answer {:?}", call.op, call.result),
            })?;
            actions.push(action);
        }

        let mut made = vec![0u32; register.values.len()];
        register.expected = vec![false; register.values.len()];
        let mut sums_unknown = false;
        for action in &actions {
            if let Action::Cas { expected, applied: None, .. } = action {
                register.expected[*expected as usize] = true;
            }
            register.makes(action, &mut |value| made[value as usize] += 1);
            sums_unknown |= matches!(action, Action::Add { sum: None, .. });
            register.any_value_matters |= matches!(
                action,
                Action::Cas { applied: Some(false), .. }
                    | Action::Delete(Some(true))
                    | Action::Add { .. }
            );
        }
        // The first state is one way in which there is no value.
        made[ABSENT as usize] += 1;
        register.once = made.iter().map(|made| *made <= 1 && !sums_unknown).collect();
        Ok((register, actions))
    }

    fn observes(&self, action: &Action, visit: &mut dyn FnMut(Token)) {
        match action {
            Action::Read(value)
            | Action::Swap { old: Some(value), .. }
            | Action::Cas { expected: value, applied: Some(true), .. } => visit(*value),
            Action::Delete(Some(false)) => visit(ABSENT),
            Action::Add { by, sum: Some(sum) } => {
                // 0 may have been no value.
                let before = sum.checked_sub(*by).filter(|before| *before != 0);
                if let Some(before) = before.and_then(|before| self.numbers.get(&before)) {
                    visit(*before);
                }
            }
            Action::Write(_)
            | Action::Delete(_)
            | Action::Cas { .. }
            | Action::Swap { .. }
            | Action::Add { .. } => {}
        }
    }

    fn makes(&self, action: &Action, visit: &mut dyn FnMut(Token)) {
        match action {
            Action::Write(new) | Action::Swap { new, .. } => visit(*new),
            Action::Cas { new, applied, .. } if *applied != Some(false) => visit(*new),
            Action::Delete(was) if *was != Some(false) => visit(ABSENT),
            Action::Add { sum: Some(sum), .. } => {
                if let Some(sum) = self.numbers.get(sum) {
                    visit(*sum);
                }
            }
            Action::Read(_) | Action::Cas { .. } | Action::Delete(_) | Action::Add { .. } => {}
        }
    }

    fn matters(&self, action: &Action, readers: &Readers) -> bool {
        match action {
            Action::Read(_) => false,
            Action::Write(new) | Action::Swap { new, .. } | Action::Cas { new, .. } => {
                self.any_value_matters || self.expected[*new as usize] || readers.left(*new) > 0
            }
            Action::Delete(_) | Action::Add { .. } => true,
        }
    }

    fn is_pure(&self, action: &Action) -> bool {
        matches!(
            action,
            Action::Read(_)
                | Action::Delete(Some(false))
                | Action::Cas { applied: Some(false), .. }
        )
    }

    fn values_are_separate(&self) -> bool {
        !self.any_value_matters
    }

    fn step(&mut self, action: &Action, readers: &Readers) -> Option<Step<Value>> {
        let undo = self.state;
        let next = match *action {
            Action::Read(value) => (value == undo).then_some(undo)?,
            Action::Write(new) => new,
            Action::Delete(was) => {
                was.is_none_or(|was| was == (undo != ABSENT)).then_some(ABSENT)?
            }
            Action::Cas { expected, new, applied } => {
                let applies = undo == expected;
                applied.is_none_or(|applied| applied == applies).then_some(())?;
                if applies { new } else { undo }
            }
            Action::Swap { old, new } => old.is_none_or(|old| old == undo).then_some(new)?,
            Action::Add { by, sum } => {
                let total = self.value(undo).checked_add(by)?;
                sum.is_none_or(|sum| sum == total).then_some(())?;
                self.number(total)
            }
        };
        if next != undo && self.once.get(undo as usize) == Some(&true) && readers.left(undo) > 0 {
            return None;
        }
        self.state = next;
        Some(Step { undo, changed: next != undo })
    }

    fn undo(&mut self, undo: Value) {
        self.state = undo;
    }

    fn fingerprint(&self) -> u128 {
        spread_state(u64::from(self.state))
    }
}
