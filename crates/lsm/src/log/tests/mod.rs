//! Tests of the log lane.

mod recovery;
mod support;
