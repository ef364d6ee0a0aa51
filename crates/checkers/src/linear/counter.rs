//! A counter: it starts at 0, is added to and read. The model for many increments in flight at
//! once, each of which must have an answer of its own.

use std::fmt;

use super::search::{Impossible, Model, Readers, Seen, Step, Token, spread_state};

/// What a client asks of a counter; both answer its value afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CounterOp {
    /// INCR, DECR, INCRBY, DECRBY.
    Add(i64),
    /// Reads.
    Get,
}

impl fmt::Display for CounterOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CounterOp::Add(by) => write!(f, "add {by}"),
            CounterOp::Get => write!(f, "get"),
        }
    }
}

/// The counter of one key.
#[derive(Debug)]
pub struct Counter {
    value: i64,
}

impl Model for Counter {
    type Op = CounterOp;
    type Ret = i64;
    type Action = (CounterOp, Option<i64>);
    type Undo = i64;

    fn compile(
        calls: &[Seen<'_, CounterOp, i64>],
    ) -> Result<(Counter, Vec<Self::Action>), Impossible> {
        let actions = calls.iter().map(|call| (*call.op, call.result.copied())).collect();
        Ok((Counter { value: 0 }, actions))
    }

    // A counter may come back to a value, so no state is needed for good.
    fn observes(&self, _: &Self::Action, _: &mut dyn FnMut(Token)) {}

    fn makes(&self, _: &Self::Action, _: &mut dyn FnMut(Token)) {}

    fn matters(&self, action: &Self::Action, _: &Readers) -> bool {
        matches!(action, (CounterOp::Add(_), _))
    }

    fn is_pure(&self, action: &Self::Action) -> bool {
        matches!(action, (CounterOp::Get | CounterOp::Add(0), _))
    }

    fn values_are_separate(&self) -> bool {
        false
    }

    fn step(&mut self, action: &Self::Action, _: &Readers) -> Option<Step<i64>> {
        let undo = self.value;
        let by = match action.0 {
            CounterOp::Add(by) => by,
            CounterOp::Get => 0,
        };
        let next = undo.checked_add(by)?;
        action.1.is_none_or(|result| result == next).then(|| {
            self.value = next;
            Step { undo, changed: next != undo }
        })
    }

    fn undo(&mut self, undo: i64) {
        self.value = undo;
    }

    fn fingerprint(&self) -> u128 {
        spread_state(self.value as u64)
    }
}
