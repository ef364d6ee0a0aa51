//! What the values tell: who wrote which, in which order, and the anomalies that show without a
//! cycle.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;

use atoll_encoding::hash::{HashMap, HashSet};

use super::report::{Anomaly, Kind};
use super::{Micro, Reads, Txn, steps};
use crate::history::{History, Outcome};
use crate::verdict::Failure;

/// The versions of a key.
#[derive(Debug, Default)]
pub struct Versions {
    /// Values in the order of their appends, as far as a read shows it.
    pub order: Vec<u64>,
    /// Who is known to have appended what no read shows: after all others.
    pub unseen: Vec<usize>,
}

/// A value: who appended it.
#[derive(Clone, Copy, Debug)]
struct Writer {
    call: usize,
    /// The transaction appended more to the key afterwards.
    intermediate: bool,
}

/// A history with its values looked up.
pub struct Index<'h> {
    pub history: &'h History<Txn, Reads>,
    writers: HashMap<(u64, u64), Writer>,
    pub versions: BTreeMap<u64, Versions>,
    /// By key and value: the place in [`Versions::order`].
    places: HashMap<(u64, u64), usize>,
    anomalies: Vec<Anomaly>,
}

impl<'h> Index<'h> {
    pub fn new(history: &'h History<Txn, Reads>) -> Result<Index<'h>, Failure> {
        let mut index = Index {
            history,
            writers: HashMap::default(),
            versions: BTreeMap::new(),
            places: HashMap::default(),
            anomalies: Vec::new(),
        };
        index.find_writers()?;
        index.find_orders();
        for at in 0..history.calls().len() {
            index.check_reads(at);
            index.check_itself(at);
        }
        index.check_updates();
        Ok(index)
    }

    /// Returns the anomalies that show without a cycle.
    pub fn anomalies(&self) -> Vec<Anomaly> {
        self.anomalies.clone()
    }

    /// Returns the place of a value in the order of its key.
    pub fn place(&self, key: u64, value: u64) -> Option<usize> {
        self.places.get(&(key, value)).copied()
    }

    /// Returns who appended a value, unless that is known to have failed.
    pub fn writer(&self, key: u64, value: u64) -> Option<usize> {
        let writer = self.writers.get(&(key, value)).map(|writer| writer.call);
        writer.filter(|call| !self.failed(*call))
    }

    fn failed(&self, call: usize) -> bool {
        matches!(self.history.calls()[call].outcome, Outcome::Fail)
    }

    fn report(&mut self, kind: Kind, calls: Vec<usize>, explanation: String) {
        self.anomalies.push(Anomaly { kind, calls, explanation });
    }

    fn find_writers(&mut self) -> Result<(), Failure> {
        for (at, call) in self.history.calls().iter().enumerate() {
            let mut last: HashMap<u64, u64> = HashMap::default();
            for micro in &call.op.0 {
                let Micro::Append { key, value } = *micro else { continue };
                let writer = Writer { call: at, intermediate: false };
                if self.writers.insert((key, value), writer).is_some() {
                    let reason = format!("value {value} is appended to key {key} more than once");
                    return Err(Failure::Malformed(reason));
                }
                if let Some(before) = last.insert(key, value)
                    && let Some(writer) = self.writers.get_mut(&(key, before))
                {
                    writer.intermediate = true;
                }
            }
            let reads =
                call.op.0.iter().filter(|micro| matches!(micro, Micro::Read { .. })).count();
            if let Outcome::Ok(lists) = &call.outcome
                && lists.0.len() != reads
            {
                let reason =
                    format!("transaction {at} has {reads} reads and {} lists", lists.0.len());
                return Err(Failure::Malformed(reason));
            }
        }
        Ok(())
    }

    /// Takes the order of each key from its longest read, which all others must be prefixes of.
    fn find_orders(&mut self) {
        let mut longest: BTreeMap<u64, (usize, &[u64])> = BTreeMap::new();
        let calls = self.history.calls();
        let reads = || {
            calls.iter().enumerate().flat_map(|(at, call)| {
                steps(call).filter_map(move |(micro, list)| match micro {
                    Micro::Read { key } => Some((at, key, list?)),
                    Micro::Append { .. } => None,
                })
            })
        };
        for (at, key, list) in reads() {
            let best = longest.entry(key).or_insert((at, list));
            if list.len() > best.1.len() {
                *best = (at, list);
            }
        }
        let mut incompatible: BTreeMap<u64, usize> = BTreeMap::new();
        for (at, key, list) in reads() {
            if !longest[&key].1.starts_with(list) {
                incompatible.entry(key).or_insert(at);
            }
        }
        for (key, at) in incompatible {
            let (other, list) = longest[&key];
            let explanation = format!(
                "  key {key} was read in two orders, neither a prefix of the other:\n  T{other} saw {list:?}, but\n  {}\n",
                self.show(at)
            );
            self.report(Kind::IncompatibleOrder, vec![at, other], explanation);
        }
        for (key, (_, list)) in longest {
            let versions = self.versions.entry(key).or_default();
            for value in list {
                if let Entry::Vacant(place) = self.places.entry((key, *value)) {
                    place.insert(versions.order.len());
                    versions.order.push(*value);
                }
            }
        }
        for (at, call) in calls.iter().enumerate() {
            let appends = || {
                call.op.0.iter().filter_map(|micro| match *micro {
                    Micro::Append { key, value } => Some((key, value)),
                    Micro::Read { .. } => None,
                })
            };
            // A transaction of which one append was seen has made them all.
            let happened = match call.outcome {
                Outcome::Ok(_) => true,
                Outcome::Info => appends().any(|append| self.places.contains_key(&append)),
                Outcome::Fail => false,
            };
            for (key, value) in appends().filter(|_| happened) {
                if !self.places.contains_key(&(key, value)) {
                    let unseen = &mut self.versions.entry(key).or_default().unseen;
                    if unseen.last() != Some(&at) {
                        unseen.push(at);
                    }
                }
            }
        }
    }

    /// Aborted, intermediate and invented values, and values that are there twice.
    fn check_reads(&mut self, at: usize) {
        for (micro, list) in steps(&self.history.calls()[at]) {
            let (Micro::Read { key }, Some(list)) = (micro, list) else { continue };
            let mut met = HashSet::default();
            for value in list {
                if !met.insert(*value) {
                    let text = format!("  value {value} is twice in\n  {}\n", self.show(at));
                    self.report(Kind::Duplicate, vec![at], text);
                }
                match self.writers.get(&(key, *value)).map(|writer| writer.call) {
                    None => {
                        let text =
                            format!("  nobody appended {value} to {key}\n  {}\n", self.show(at));
                        self.report(Kind::Invented, vec![at], text);
                    }
                    Some(writer) if self.failed(writer) => {
                        let text = format!(
                            "  value {value} of {key} is of a transaction that failed:\n  {}\n  {}\n",
                            self.show(writer),
                            self.show(at)
                        );
                        self.report(Kind::G1a, vec![writer, at], text);
                    }
                    Some(_) => {}
                }
            }
            let last = list.last().and_then(|value| self.writers.get(&(key, *value)).copied());
            if let Some(writer) = last.filter(|writer| writer.intermediate && writer.call != at) {
                let text = format!(
                    "  key {key} was read between two appends of one transaction:\n  {}\n  {}\n",
                    self.show(writer.call),
                    self.show(at)
                );
                self.report(Kind::G1b, vec![writer.call, at], text);
            }
        }
    }

    /// Transactions that contradict themselves.
    fn check_itself(&mut self, at: usize) {
        // By key: the list if it was read, and what the transaction appended since.
        let mut expected: HashMap<u64, (Option<&[u64]>, Vec<u64>)> = HashMap::default();
        for (micro, list) in steps(&self.history.calls()[at]) {
            match (micro, list) {
                (Micro::Append { key, value }, _) => {
                    expected.entry(key).or_default().1.push(value);
                }
                (Micro::Read { key }, Some(list)) => {
                    let (base, own) = expected.remove(&key).unwrap_or_default();
                    let right = match base {
                        Some(base) => {
                            list.strip_prefix(base).is_some_and(|rest| rest == own.as_slice())
                        }
                        None => list.ends_with(&own),
                    };
                    if !right {
                        let text = format!(
                            "  a read of {key} contradicts what the transaction read or appended before:\n  {}\n",
                            self.show(at)
                        );
                        self.report(Kind::Internal, vec![at], text);
                        return;
                    }
                    expected.insert(key, (Some(list), Vec::new()));
                }
                (Micro::Read { .. }, None) => return,
            }
        }
    }

    /// Transactions that read one version of a key and both appended to it.
    fn check_updates(&mut self) {
        let mut updates: BTreeMap<(u64, &[u64]), Vec<usize>> = BTreeMap::new();
        for (at, call) in self.history.calls().iter().enumerate() {
            let mut read: HashMap<u64, Option<&[u64]>> = HashMap::default();
            for (micro, list) in steps(call) {
                match (micro, list) {
                    (Micro::Read { key }, Some(list)) => {
                        read.entry(key).or_insert(Some(list));
                    }
                    // Only the first append counts, and only if a read came before.
                    (Micro::Append { key, .. }, _) => {
                        if let Some(list) = read.insert(key, None).flatten() {
                            updates.entry((key, list)).or_default().push(at);
                        }
                    }
                    (Micro::Read { .. }, None) => {}
                }
            }
        }
        for ((key, list), calls) in updates.into_iter().filter(|(_, calls)| calls.len() > 1) {
            let mut text = format!("  all of these read {key} as {list:?} and appended to it:\n");
            for at in &calls {
                text += &format!("  {}\n", self.show(*at));
            }
            self.report(Kind::LostUpdate, calls, text);
        }
    }

    /// Describes a transaction.
    pub fn show(&self, at: usize) -> String {
        format!("T{at} = {}", self.history.calls()[at])
    }
}
