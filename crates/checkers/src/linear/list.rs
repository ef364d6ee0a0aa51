//! A list that only grows: appends of unique values, and reads of the whole.
//!
//! Any two reads of such a list must agree: one is a prefix of the other. The longest read then
//! tells the order of the appends up to its length, so the state is one number, how many were made:
//!
//! ```text
//!   longest read   [ 7, 3, 9 ]
//!   state           0  1  2  3  4 ...     beyond it nobody saw anything: any order will do
//! ```

use std::fmt;

use atoll_encoding::hash::HashSet;

use super::search::{Impossible, Model, Readers, Seen, Step, Token, spread_state};

/// What a client asks of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListOp {
    /// Appends a value that nobody else appends.
    Append(u64),
    /// Reads the whole list.
    Read,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListRet {
    /// An append is done.
    Done,
    /// An append is done and the list has this length.
    Length(usize),
    /// The list.
    Values(Vec<u64>),
}

impl fmt::Display for ListOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListOp::Append(value) => write!(f, "append {value}"),
            ListOp::Read => write!(f, "read"),
        }
    }
}

impl fmt::Display for ListRet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListRet::Done => write!(f, "done"),
            ListRet::Length(length) => write!(f, "length {length}"),
            ListRet::Values(values) => write!(f, "{values:?}"),
        }
    }
}

/// An operation with its result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Appended; the length afterwards, if it was told.
    Append {
        /// What.
        value: u64,
        /// Elements afterwards.
        length: Option<u32>,
    },
    /// Saw this many elements; `None` for a read without answer.
    Read(Option<u32>),
}

/// The list of one key.
#[derive(Debug)]
pub struct List {
    longest: Vec<u64>,
    /// Values that a read showed.
    seen: HashSet<u64>,
    /// Some append was told the length: then appends that no read showed count too.
    lengths_told: bool,
    length: u32,
}

impl Model for List {
    type Op = ListOp;
    type Ret = ListRet;
    type Action = Action;
    type Undo = u32;

    fn compile(calls: &[Seen<'_, ListOp, ListRet>]) -> Result<(List, Vec<Action>), Impossible> {
        let values = |at: usize| match calls[at].result {
            Some(ListRet::Values(values)) => values.as_slice(),
            _ => &[],
        };
        let longest = (0..calls.len()).max_by_key(|at| values(*at).len()).unwrap_or(0);
        let mut actions = Vec::with_capacity(calls.len());
        for (at, call) in calls.iter().enumerate() {
            actions.push(match (call.op, call.result) {
                (ListOp::Append(value), None | Some(ListRet::Done)) => {
                    Action::Append { value: *value, length: None }
                }
                (ListOp::Append(value), Some(ListRet::Length(length))) => {
                    Action::Append { value: *value, length: u32::try_from(*length).ok() }
                }
                (ListOp::Read, None) => Action::Read(None),
                (ListOp::Read, Some(ListRet::Values(values_here))) => {
                    if !values(longest).starts_with(values_here) {
                        let reason = "neither of two reads is a prefix of the other".to_owned();
                        return Err(Impossible { calls: vec![at, longest], reason });
                    }
                    Action::Read(Some(values_here.len() as u32))
                }
                (op, result) => {
                    let reason = format!("{op} cannot answer {result:?}");
                    return Err(Impossible { calls: vec![at], reason });
                }
            });
        }
        let longest = if calls.is_empty() { Vec::new() } else { values(longest).to_vec() };
        let seen = longest.iter().copied().collect();
        let lengths_told =
            actions.iter().any(|action| matches!(action, Action::Append { length: Some(_), .. }));
        Ok((List { longest, seen, lengths_told, length: 0 }, actions))
    }

    fn observes(&self, action: &Action, visit: &mut dyn FnMut(Token)) {
        if let Action::Read(Some(length)) = action {
            visit(*length);
        }
    }

    fn makes(&self, _: &Action, _: &mut dyn FnMut(Token)) {}

    fn matters(&self, action: &Action, _: &Readers) -> bool {
        match action {
            Action::Append { value, .. } => self.lengths_told || self.seen.contains(value),
            Action::Read(_) => false,
        }
    }

    fn is_pure(&self, action: &Action) -> bool {
        matches!(action, Action::Read(_))
    }

    // A shorter list is not the list without one append: no append can be left out.
    fn values_are_separate(&self) -> bool {
        false
    }

    fn step(&mut self, action: &Action, readers: &Readers) -> Option<Step<u32>> {
        let undo = self.length;
        match *action {
            Action::Read(seen) => {
                seen.is_none_or(|seen| seen == undo).then_some(Step { undo, changed: false })
            }
            Action::Append { value, length } => {
                let right_value = self.longest.get(undo as usize).is_none_or(|v| *v == value);
                let right_length = length.is_none_or(|length| length == undo + 1);
                if !right_value || !right_length || readers.left(undo) > 0 {
                    return None;
                }
                self.length += 1;
                Some(Step { undo, changed: true })
            }
        }
    }

    fn undo(&mut self, undo: u32) {
        self.length = undo;
    }

    fn fingerprint(&self) -> u128 {
        spread_state(u64::from(self.length))
    }
}
