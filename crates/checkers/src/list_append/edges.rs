//! From values to dependencies.
//!
//! Vertices are the calls of the history that did not fail; those of unknown outcome take part by
//! what others saw of them.

use std::collections::VecDeque;

use atoll_encoding::hash::HashMap;

use super::values::Index;
use super::{Micro, steps};
use crate::graph::Graph;
use crate::graph::kind::{PROCESS, REALTIME, RW, WR, WW};
use crate::history::Outcome;

/// Builds the graph of a history.
pub fn graph(index: &Index<'_>) -> Graph {
    let mut edges = Vec::new();
    write_edges(index, &mut edges);
    read_edges(index, &mut edges);
    process_edges(index, &mut edges);
    realtime_edges(index, &mut edges);
    Graph::new(index.history.calls().len(), edges)
}

/// Appends in the order of versions. Who appended what nobody saw comes after all versions.
fn write_edges(index: &Index<'_>, edges: &mut Vec<(u32, u32, u8)>) {
    for (key, versions) in &index.versions {
        let mut last = None;
        for value in &versions.order {
            // A value of a failed transaction or of nobody is an anomaly of its own; the order of
            // its neighbours is not in doubt.
            let Some(writer) = index.writer(*key, *value) else { continue };
            if let Some(last) = last {
                edges.push((last, writer as u32, WW));
            }
            last = Some(writer as u32);
        }
        if let Some(last) = last {
            edges.extend(versions.unseen.iter().map(|unseen| (last, *unseen as u32, WW)));
        }
    }
}

/// Reads: after the version they saw, before the next.
fn read_edges(index: &Index<'_>, edges: &mut Vec<(u32, u32, u8)>) {
    for (at, call) in index.history.calls().iter().enumerate() {
        let reader = at as u32;
        for (micro, list) in steps(call) {
            let (Micro::Read { key }, Some(list)) = (micro, list) else { continue };
            let versions = &index.versions[&key];
            let next = match list.last() {
                None => 0,
                Some(last) => {
                    if let Some(writer) = index.writer(key, *last) {
                        edges.push((writer as u32, reader, WR));
                    }
                    match index.place(key, *last) {
                        Some(place) => place + 1,
                        // Of an order that contradicts the longest: reported, not followed.
                        None => continue,
                    }
                }
            };
            let mut later = versions.order[next..].iter();
            match later.find_map(|value| index.writer(key, *value)) {
                Some(writer) => edges.push((reader, writer as u32, RW)),
                None => edges.extend(versions.unseen.iter().map(|to| (reader, *to as u32, RW))),
            }
        }
    }
}

fn process_edges(index: &Index<'_>, edges: &mut Vec<(u32, u32, u8)>) {
    let mut last: HashMap<u32, u32> = HashMap::default();
    for (at, call) in index.history.calls().iter().enumerate() {
        if matches!(call.outcome, Outcome::Ok(_))
            && let Some(before) = last.insert(call.process.0, at as u32)
        {
            edges.push((before, at as u32, PROCESS));
        }
    }
}

/// Who ended before others began. All such pairs would be quadratic, so only those are made which
/// do not follow from others: each transaction follows the *frontier* of its invocation, the ended
/// ones that no ended one follows.
fn realtime_edges(index: &Index<'_>, edges: &mut Vec<(u32, u32, u8)>) {
    let calls = index.history.calls();
    let alive = |at: &usize| !matches!(calls[*at].outcome, Outcome::Fail);
    let invocations =
        (0..calls.len()).filter(alive).map(|at| (calls[at].invoked.position, at, true));
    let ends = (0..calls.len())
        .filter(|at| matches!(calls[*at].outcome, Outcome::Ok(_)))
        .map(|at| (calls[at].ended.position, at, false));
    let mut events: Vec<_> = invocations.chain(ends).collect();
    events.sort_unstable();

    // Ended transactions by the position of their end. One leaves the frontier when a transaction
    // ends that was invoked after it had ended: then it is implied.
    let mut frontier: VecDeque<(u32, usize)> = VecDeque::new();
    for (position, at, begins) in events {
        if begins {
            edges.extend(frontier.iter().map(|(_, from)| (*from as u32, at as u32, REALTIME)));
        } else {
            let invoked = calls[at].invoked.position;
            while frontier.front().is_some_and(|(ended, _)| *ended < invoked) {
                frontier.pop_front();
            }
            frontier.push_back((position, at));
        }
    }
}
