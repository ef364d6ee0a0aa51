//! Tests of the log lane: named cases on a real directory, histories on the simulator.

mod crash;
mod history;
mod recovery;
mod support;
