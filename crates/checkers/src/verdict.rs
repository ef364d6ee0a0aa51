//! What a checker answers.
//!
//! A verdict is a `Result`, so that the careless way of using it is the safe one: `?` and `unwrap`
//! go on only after a proof. "I could not decide within my budget" is a failure like a violation
//! is, with another remedy: a larger budget, or a workload that says more.

use std::fmt;

/// The answer of a checker.
pub type Verdict = Result<Checked, Failure>;

/// A history was proven to be right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Calls whose results took part in the proof. A run that proves nothing has few.
    pub calls: usize,
    /// Steps that a search took, its measure of difficulty.
    pub explored: u64,
}

impl Checked {
    /// Adds the evidence of another proof.
    pub fn and(self, other: Checked) -> Checked {
        Checked { calls: self.calls + other.calls, explored: self.explored + other.explored }
    }
}

/// A history was not proven to be right, sorted by what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The database broke its promise: find the bug.
    Violation(Violation),
    /// The search gave up after so many steps: raise the budget, or make the workload easier to
    /// judge (fewer unknown outcomes on one key, unique values, more reads).
    Unknown {
        /// Steps taken.
        explored: u64,
    },
    /// The recording contradicts itself or the checker's rules (values that should be unique are
    /// not): mend the harness.
    Malformed(String),
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which, in a few words of the field: `not linearizable`, `G-single`, `lost write`.
    pub anomaly: String,
    /// The smallest explanation that was found, in several lines.
    pub explanation: String,
    /// The calls involved, as indexes into [`crate::History::calls`].
    pub calls: Vec<usize>,
}

impl Failure {
    /// Returns the violation, if it is one.
    pub fn violation(&self) -> Option<&Violation> {
        match self {
            Failure::Violation(violation) => Some(violation),
            Failure::Unknown { .. } | Failure::Malformed(_) => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Violation(violation) => violation.fmt(f),
            Failure::Unknown { explored } => write!(
                f,
                "not decided after {explored} steps: raise the budget of the checker or shorten the history"
            ),
            Failure::Malformed(reason) => {
                write!(f, "the history cannot be judged: {reason}; mend its recorder")
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.anomaly, self.explanation)
    }
}

impl std::error::Error for Failure {}
