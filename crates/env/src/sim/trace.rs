//! What happened, as a rolling hash and, if asked for, as text.
//!
//! Every scheduling choice, disk operation, delivery and crash enters the hash with its virtual
//! time, so two runs have one hash only if they were the same run. The harness runs seeds twice in
//! different processes and compares: the cheapest proof that nothing outside the seed leaks in.

use xxhash_rust::xxh3;

use crate::random::mix;
use crate::time::Instant;

/// The record of one simulation.
#[derive(Default)]
pub(super) struct Trace {
    hash: u64,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Starts to keep lines.
    pub(super) fn keep_lines(&mut self) {
        self.lines.get_or_insert_default();
    }

    /// Takes the lines kept so far.
    pub(super) fn take_lines(&mut self) -> Vec<String> {
        self.lines.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Adds an event with its numbers; `text` is called only while lines are kept.
    pub(super) fn record(
        &mut self,
        now: Instant,
        node: &str,
        event: &'static str,
        numbers: &[u64],
        text: impl FnOnce() -> String,
    ) {
        let mut hash = xxh3::xxh3_64_with_seed(event.as_bytes(), self.hash ^ now.0);
        hash = xxh3::xxh3_64_with_seed(node.as_bytes(), hash);
        for number in numbers {
            hash = mix(hash ^ number);
        }
        self.hash = hash;
        self.events += 1;
        if let Some(lines) = &mut self.lines {
            let micros = now.0 / 1000;
            lines.push(format!("{micros:>10}us {node:<8} {event:<9} {}", text()));
        }
    }
}
