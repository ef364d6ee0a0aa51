//! Judges.
pub mod history;
pub mod linear;
pub mod verdict;
pub use history::{Call, CallId, History, Moment, Outcome, Process, Recorder};
pub use verdict::{Checked, Failure, Verdict, Violation};
pub mod ranges;
pub mod graph;
pub mod list_append;
pub mod bank;
pub mod counts;
pub mod durable;
pub mod sessions;
#[cfg(feature = "adya")]
pub mod second_opinion;
