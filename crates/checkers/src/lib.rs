//! Judges.
pub mod history;
pub mod linear;
pub mod verdict;
pub use history::{Call, CallId, History, Moment, Outcome, Process, Recorder};
pub use verdict::{Checked, Failure, Verdict, Violation};
