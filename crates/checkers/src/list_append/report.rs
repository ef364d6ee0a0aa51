//! Anomalies by name, the levels that they rule out, and the search for cycles.

use std::fmt::{self, Write};

use super::values::Index;
use super::{Micro, steps};
use crate::graph::kind::{PROCESS, REALTIME, RW, WR, WW};
use crate::graph::{Graph, Hop, Rw, Walk};
use crate::verdict::{Checked, Failure, Violation};

/// Edges looked at while looking for examples; a second or less.
const EFFORT: usize = 5_000_000;
/// Edges tried as the start of an example, to find a short one.
const TRIES: usize = 64;

/// The shape of a cycle, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// Only writes: dirty writes.
    G0,
    /// Writes and reads: circular information flow.
    G1c,
    /// One anti-dependency: read skew.
    GSingle,
    /// Several anti-dependencies, no two in a row: long fork.
    GNonadjacent,
    /// Two anti-dependencies in a row: write skew.
    G2,
}

/// The order that a cycle contradicts besides the dependencies of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Order {
    /// None.
    Data,
    /// That of a process.
    Process,
    /// That of real time.
    Realtime,
}

/// An anomaly by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Aborted read: a value of a transaction that failed.
    G1a,
    /// Intermediate read: a list between two appends of one transaction.
    G1b,
    /// A value that nobody appended.
    Invented,
    /// A value that was appended once and is there twice.
    Duplicate,
    /// Two reads of which neither is a prefix of the other.
    IncompatibleOrder,
    /// A transaction that contradicts its own reads and appends.
    Internal,
    /// Two transactions that read one version of a key and both appended to it.
    LostUpdate,
    /// A cycle.
    Cycle(Shape, Order),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shape, order) = match self {
            Kind::G1a => return f.write_str("G1a (aborted read)"),
            Kind::G1b => return f.write_str("G1b (intermediate read)"),
            Kind::Invented => return f.write_str("invented value"),
            Kind::Duplicate => return f.write_str("duplicate value"),
            Kind::IncompatibleOrder => return f.write_str("incompatible order"),
            Kind::Internal => return f.write_str("internal contradiction"),
            Kind::LostUpdate => return f.write_str("lost update"),
            Kind::Cycle(shape, order) => (shape, order),
        };
        f.write_str(match shape {
            Shape::G0 => "G0",
            Shape::G1c => "G1c",
            Shape::GSingle => "G-single",
            Shape::GNonadjacent => "G-nonadjacent",
            Shape::G2 => "G2",
        })?;
        f.write_str(match order {
            Order::Data => "",
            Order::Process => "-process",
            Order::Realtime => "-realtime",
        })
    }
}

/// A level of isolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// No dirty, aborted or intermediate reads.
    ReadCommitted,
    /// Reads of one moment, the first committer wins.
    SnapshotIsolation,
    /// As if one after the other.
    Serializable,
    /// As if one after the other, each process in its order.
    SessionSerializable,
    /// Snapshot isolation in which a snapshot is of the moment in which the transaction began.
    StrongSnapshotIsolation,
    /// As if one after the other, in real-time order.
    StrictSerializable,
}

impl Level {
    /// All of them.
    pub const ALL: [Level; 6] = [
        Level::ReadCommitted,
        Level::SnapshotIsolation,
        Level::Serializable,
        Level::SessionSerializable,
        Level::StrongSnapshotIsolation,
        Level::StrictSerializable,
    ];

    /// Returns whether the level rules an anomaly out.
    pub fn rules_out(self, kind: Kind) -> bool {
        let (shape, order) = match kind {
            Kind::G1a | Kind::G1b | Kind::Invented | Kind::Duplicate | Kind::IncompatibleOrder => {
                return true;
            }
            Kind::Internal | Kind::LostUpdate => return self != Level::ReadCommitted,
            Kind::Cycle(shape, order) => (shape, order),
        };
        let worst_shape = match self {
            Level::ReadCommitted => Shape::G1c,
            Level::SnapshotIsolation | Level::StrongSnapshotIsolation => Shape::GNonadjacent,
            Level::Serializable | Level::SessionSerializable | Level::StrictSerializable => {
                Shape::G2
            }
        };
        let counts = match order {
            Order::Data => true,
            Order::Process => self == Level::SessionSerializable,
            Order::Realtime => {
                matches!(self, Level::StrongSnapshotIsolation | Level::StrictSerializable)
            }
        };
        shape <= worst_shape && counts
    }
}

/// An anomaly with its example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// Its name.
    pub kind: Kind,
    /// The transactions of the example, as indexes into the history's calls.
    pub calls: Vec<usize>,
    /// The example in several lines.
    pub explanation: String,
}

/// What was found in a history.
#[derive(Clone, Debug)]
pub struct Report {
    /// Anomalies; of cycles one example of each kind.
    pub anomalies: Vec<Anomaly>,
    /// Transactions that were acknowledged.
    pub transactions: usize,
    /// Edges that were inferred: a run that proves nothing has few.
    pub edges: usize,
}

impl Report {
    /// Says whether a level was kept.
    ///
    /// # Errors
    /// The worst of the anomalies that the level rules out.
    pub fn at(&self, level: Level) -> Result<Checked, Failure> {
        let worst =
            self.anomalies.iter().filter(|a| level.rules_out(a.kind)).min_by_key(|a| a.kind);
        match worst {
            None => Ok(Checked { calls: self.transactions, explored: self.edges as u64 }),
            Some(anomaly) => Err(Failure::Violation(Violation {
                anomaly: anomaly.kind.to_string(),
                explanation: anomaly.explanation.clone(),
                calls: anomaly.calls.clone(),
            })),
        }
    }

    /// Returns the names of what was found, sorted and each once.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.anomalies.iter().map(|anomaly| anomaly.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}

/// Finds one cycle of each kind that there is.
pub fn cycles(index: &Index<'_>, graph: &Graph) -> Vec<Anomaly> {
    let mut found: Vec<Anomaly> = Vec::new();
    let all = WW | WR | RW | PROCESS | REALTIME;
    if !graph.components(all).cyclic() {
        return found;
    }
    let mut effort = EFFORT;
    for (order, extra) in [(Order::Data, 0), (Order::Process, PROCESS), (Order::Realtime, REALTIME)]
    {
        let shapes = shapes(graph, extra, &mut effort);
        for (shape, cycle) in shapes {
            // A cycle that needs the extra order only is news; one that does not was found before.
            let known = |a: &Anomaly| a.kind == Kind::Cycle(shape, Order::Data);
            if !found.iter().any(known) {
                found.push(explain(index, Kind::Cycle(shape, order), &cycle));
            }
        }
    }
    found
}

/// Finds a cycle of each shape that there is, using `extra` edges like those of data.
///
/// That there is one is known from the components; where the effort does not suffice for an
/// example, one of its edges stands for the cycle.
fn shapes(graph: &Graph, extra: u8, effort: &mut usize) -> Vec<(Shape, Vec<Hop>)> {
    let mut found = Vec::new();
    let mut add = |shape: Shape, edges: &[Hop], walk: Walk, effort: &mut usize| {
        if let Some(edge) = edges.first() {
            let cycle = shortest(graph, edges, walk, effort).unwrap_or_else(|| vec![*edge]);
            found.push((shape, cycle));
        }
    };
    let writes = WW | extra;
    let components = graph.components(writes);
    let edges = within(graph, writes, |from, to| components.together(from, to));
    add(Shape::G0, &edges, Walk { others: writes, rw: Rw::Never }, effort);

    let flows = WW | WR | extra;
    let without_rw = Walk { others: flows, rw: Rw::Never };
    let components = graph.components(flows);
    let edges = within(graph, WR, |from, to| components.together(from, to));
    add(Shape::G1c, &edges, without_rw, effort);

    // The copy of a vertex that was entered by an rw has an odd number.
    let copies = graph.nonadjacent_components(flows);
    let apart = |from: u32, to: u32| copies.together(2 * from, 2 * to + 1);
    let edges = within(graph, RW, apart);
    let single = shortest(graph, &edges, without_rw, effort);
    if single.is_none() {
        let walk = Walk { others: flows, rw: Rw::NotInARow };
        add(Shape::GNonadjacent, &edges, walk, effort);
    }

    // Any cycle through an rw that is on no cycle of the shapes above has two of them in a row.
    let components = graph.components(flows | RW);
    let edges = within(graph, RW, |from, to| components.together(from, to) && !apart(from, to));
    add(Shape::G2, &edges, Walk { others: flows, rw: Rw::Always }, effort);
    found.extend(single.map(|cycle| (Shape::GSingle, cycle)));
    found
}

/// Returns the edges of a kind whose ends satisfy `both`, as that kind.
fn within(graph: &Graph, kinds: u8, both: impl Fn(u32, u32) -> bool) -> Vec<Hop> {
    graph
        .all(kinds)
        .filter(|(from, edge)| both(*from, edge.to))
        .map(|(from, edge)| {
            let kinds = edge.kinds & kinds;
            Hop { from, to: edge.to, kind: kinds & kinds.wrapping_neg() }
        })
        .collect()
}

/// Returns the shortest of some cycles that start with one of `edges`.
fn shortest(graph: &Graph, edges: &[Hop], walk: Walk, effort: &mut usize) -> Option<Vec<Hop>> {
    let mut best: Option<Vec<Hop>> = None;
    for (tries, edge) in edges.iter().enumerate() {
        if best.is_some() && tries >= TRIES {
            break;
        }
        if let Some(cycle) = graph.way_back(*edge, walk, effort)
            && best.as_ref().is_none_or(|best| cycle.len() < best.len())
        {
            best = Some(cycle);
        }
    }
    best
}

fn explain(index: &Index<'_>, kind: Kind, cycle: &[Hop]) -> Anomaly {
    let mut text = String::new();
    for hop in cycle {
        let _ = writeln!(text, "  {}", index.show(hop.from as usize));
    }
    for hop in cycle {
        let _ = writeln!(text, "  T{} before T{}: {}", hop.from, hop.to, reason(index, *hop));
    }
    Anomaly { kind, calls: cycle.iter().map(|hop| hop.from as usize).collect(), explanation: text }
}

/// Says why one transaction comes before another.
fn reason(index: &Index<'_>, hop: Hop) -> String {
    let [from, to] = [hop.from, hop.to].map(|at| &index.history.calls()[at as usize]);
    match hop.kind {
        PROCESS => return format!("{} ran one after the other", from.process),
        REALTIME => {
            let (ended, invoked) = (from.ended.position, to.invoked.position);
            return format!("it ended at {ended}, before the other began at {invoked}");
        }
        _ => {}
    }
    let place = |key: u64, value: u64| index.place(key, value).unwrap_or(usize::MAX);
    let appended = || {
        to.op.0.iter().filter_map(|micro| match micro {
            Micro::Append { key, value } => Some((*key, *value)),
            Micro::Read { .. } => None,
        })
    };
    match hop.kind {
        WW => {
            for (key, value) in appended() {
                for micro in &from.op.0 {
                    if let Micro::Append { key: other, value: before } = *micro
                        && other == key
                        && place(key, before) < place(key, value)
                    {
                        return format!("it appended {before} to {key} before {value}");
                    }
                }
            }
        }
        WR => {
            for (micro, list) in steps(to) {
                if let (Micro::Read { key }, Some([.., last])) = (micro, list)
                    && index.writer(key, *last) == Some(hop.from as usize)
                {
                    return format!("the other saw its {last} at the end of {key}");
                }
            }
        }
        _ => {
            for (micro, list) in steps(from) {
                if let (Micro::Read { key }, Some(list)) = (micro, list)
                    && let Some((_, value)) =
                        appended().find(|(k, value)| *k == key && !list.contains(value))
                {
                    return format!("it read {key} without the other's {value}");
                }
            }
        }
    }
    "by a chain of versions".to_owned()
}
