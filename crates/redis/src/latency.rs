//! The latency monitor: when things took longer than a threshold, by kind of thing.
//!
//! An event has at most [`SAMPLES`] samples, one per second: the worst of that second. Two events
//! are watched, by Redis's names: `command`, and `fast-command` for the commands whose table row
//! says that they are fast. Nothing is watched while `latency-monitor-threshold` is 0.

use std::collections::{BTreeMap, VecDeque};

/// Samples kept of an event.
const SAMPLES: usize = 160;

/// The worst of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Seconds of the Unix epoch.
    pub at_s: u64,
    pub ms: u64,
}

/// What is known about an event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Event {
    /// Oldest first.
    pub samples: VecDeque<Sample>,
    /// The worst since the last reset.
    pub worst_ms: u64,
}

/// All events that have happened, by name.
#[derive(Default)]
pub(crate) struct Latency {
    events: BTreeMap<&'static str, Event>,
}

impl Latency {
    /// Notes that an event took this long.
    pub fn note(&mut self, event: &'static str, at_s: u64, ms: u64) {
        let event = self.events.entry(event).or_default();
        event.worst_ms = event.worst_ms.max(ms);
        match event.samples.back_mut() {
            Some(last) if last.at_s == at_s => last.ms = last.ms.max(ms),
            _ => {
                if event.samples.len() == SAMPLES {
                    event.samples.pop_front();
                }
                event.samples.push_back(Sample { at_s, ms });
            }
        }
    }

    pub fn events(&self) -> impl ExactSizeIterator<Item = (&'static str, &Event)> {
        self.events.iter().map(|(name, event)| (*name, event))
    }

    pub fn event(&self, name: &[u8]) -> Option<&Event> {
        self.events.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, event)| event)
    }

    /// Forgets events that a filter names; returns how many.
    pub fn reset(&mut self, is_named: impl Fn(&str) -> bool) -> usize {
        let before = self.events.len();
        self.events.retain(|name, _| !is_named(name));
        before - self.events.len()
    }
}

impl Event {
    pub fn mean_ms(&self) -> u64 {
        let sum: u64 = self.samples.iter().map(|sample| sample.ms).sum();
        sum / (self.samples.len() as u64).max(1)
    }

    /// Draws the samples as Redis does: a column each, its height among four rows of characters,
    /// its age below.
    pub fn graph(&self, name: &str, now_s: u64) -> String {
        let most = self.samples.iter().map(|sample| sample.ms).max().unwrap_or(0);
        let least = self.samples.iter().map(|sample| sample.ms).min().unwrap_or(0);
        let mut text = format!(
            "{name} - high {most} ms, low {least} ms (all time high {} ms)\n",
            self.worst_ms
        );
        text.push_str(&"-".repeat(80));
        text.push('\n');
        const ROWS: u64 = 4;
        // Twelve heights: three characters in each row.
        let range = (most - least).max(1);
        let height = |sample: &Sample| (sample.ms - least) * (ROWS * 3 - 1) / range;
        for row in (0..ROWS).rev() {
            let line: String = self
                .samples
                .iter()
                .map(|sample| match height(sample).checked_sub(row * 3) {
                    None => ' ',
                    Some(0) => '_',
                    Some(1) => 'o',
                    Some(2) => '#',
                    Some(_) => '|',
                })
                .collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let ages: Vec<Vec<char>> =
            self.samples.iter().map(|sample| age(now_s.saturating_sub(sample.at_s))).collect();
        for row in 0..3 {
            let line: String =
                ages.iter().map(|age| age.get(row).copied().unwrap_or(' ')).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn age(seconds: u64) -> Vec<char> {
    let text = match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    };
    text.chars().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_one_sample_its_worst_and_old_samples_go() {
        let mut latency = Latency::default();
        latency.note("command", 7, 20);
        latency.note("command", 7, 50);
        latency.note("command", 7, 30);
        for at_s in 8..8 + SAMPLES as u64 {
            latency.note("command", at_s, 10);
        }
        let event = latency.event(b"command").unwrap();
        assert_eq!(event.samples.len(), SAMPLES);
        assert_eq!(event.samples[0], Sample { at_s: 8, ms: 10 }, "the worst one is forgotten");
        assert_eq!(event.worst_ms, 50, "but not how bad it was");
        assert_eq!(latency.reset(|name| name == "nothing"), 0);
        assert_eq!(latency.reset(|_| true), 1);
        assert!(latency.event(b"command").is_none());
    }

    #[test]
    fn a_graph_has_its_highest_column_where_it_was_slowest() {
        let mut latency = Latency::default();
        for (at_s, ms) in [(100, 10), (101, 100), (4000, 55)] {
            latency.note("command", at_s, ms);
        }
        let graph = latency.event(b"command").unwrap().graph("command", 4001);
        let lines: Vec<&str> = graph.lines().collect();
        assert_eq!(lines[0], "command - high 100 ms, low 10 ms (all time high 100 ms)");
        assert_eq!(lines[2], " #", "the top row");
        assert_eq!(lines[5], "_||", "the bottom row");
        assert_eq!(lines[6..], ["111", "hhs", ""]);
    }
}
