//! Judges.
pub mod history;
pub mod linear;
pub mod verdict;
pub use history::{Call, CallId, History, Moment, Outcome, Process, Recorder};
pub use verdict::{Checked, Failure, Verdict, Violation};
pub mod ranges;
pub mod graph;
pub mod list_append;
