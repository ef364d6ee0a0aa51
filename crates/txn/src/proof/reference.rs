//! The reference shard: the shard's half of the protocol, as simple as it can be and still true.
//!
//! ```text
//!   request --> evaluated over the edge --> effects --+--> edge        (at once)
//!                                                     +--> in flight --+--> applied, answers leave
//!                                                                      +--> lost with the leader,
//!                                                                           answers: Unknown
//! ```
//!
//! *Applied* is what the log says. *Edge* is applied plus what is in flight: what new requests are
//! evaluated over. A leader change keeps a prefix of what is in flight, drops the rest, the locks
//! and `max_read`, and sets the low water. Reads look at the applied state and wait for writes in
//! flight at or below their moment.
//!
//! Only maps in memory: no log, no versions dropped, no splits while something is in flight. What
//! it leaves out, the real shard is to be held against by the same schedules (`proof::Cluster`).
//!
//! | mutant | the rule it removes |
//! |---|---|
//! | `no-low-water` | a new leader writes above every read that the old one served |
//! | `reads-do-not-raise` | a read raises `max_read` |
//! | `scans-raise-rows` | a scan raises the range, not only the rows found in it |
//! | `reads-do-not-wait` | a read waits for writes in flight at or below its moment |
//! | `answer-before-apply` | what an answer tells is in the log when it leaves |
//! | `no-commit-record` | a one-shard commit leaves a record in the log |
//! | `record-in-memory` | that record survives the leader |
//! | `records-dropped-early` | `Aborted` records and fences stay until the safepoint has passed |
//! | `old-stamps-accepted` | what is stamped below the safepoint is refused |
//! | `record-not-checked` | a prewrite is refused if its transaction has a record |
//! | `fast-reads-do-not-raise` | a fast read raises `max_read` |
//! | `fast-above-oracle` | a fast command uses only epochs that the oracle has given out |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use atoll_env::Instant;
use atoll_env::sync::oneshot;
use atoll_mvcc::request::{
    Fate, Isolation, Key, Obstacle, Outcome, ReadSet, Record, Refusal, Request, Response, Span,
    Version, Write,
};
use atoll_mvcc::{Timestamp, TxnId};

use super::Moment;
use crate::LocalOracle;
use crate::mutants;

/// A transaction that is silent for so long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(3);

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Response>;

/// A command of the fast lane: one shard, no oracle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fast {
    /// Keys read.
    pub reads: Vec<Key>,
    /// Keys written.
    pub writes: Vec<Write>,
}

/// What a fast command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FastAnswer {
    /// It happened at this moment and read this.
    Done {
        /// When.
        at: Moment,
        /// The values of the keys read.
        values: Vec<Option<Vec<u8>>>,
    },
    /// Intents are in the way.
    Blocked(Vec<Obstacle>),
    /// Nothing was done.
    NotNow,
    /// It may have been done.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Intent {
    txn: TxnId,
    primary: Key,
    min_commit_ts: Timestamp,
    value: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct StoredRecord {
    primary: Key,
    record: Record,
    /// It stays until the safepoint has passed this; `None`: until it is forgotten.
    until: Option<Timestamp>,
}

#[derive(Clone, Default)]
struct State {
    versions: BTreeMap<Key, Vec<Version>>,
    intents: BTreeMap<Key, Intent>,
    records: BTreeMap<TxnId, StoredRecord>,
    fences: BTreeMap<(TxnId, Key), Timestamp>,
}

enum Effect {
    Version(Key, Version),
    Intent(Key, Intent),
    NoIntent(Key),
    Record(TxnId, StoredRecord),
    NoRecord(TxnId),
    Fence(TxnId, Key, Timestamp),
}

impl State {
    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Version(key, version) => {
                let versions = self.versions.entry(key.clone()).or_default();
                versions.push(version.clone());
            }
            Effect::Intent(key, intent) => {
                self.intents.insert(key.clone(), intent.clone());
            }
            Effect::NoIntent(key) => {
                self.intents.remove(key);
            }
            Effect::Record(txn, record) => {
                self.records.insert(*txn, record.clone());
            }
            Effect::NoRecord(txn) => {
                self.records.remove(txn);
            }
            Effect::Fence(txn, key, until) => {
                self.fences.insert((*txn, key.clone()), *until);
            }
        }
    }

    fn newest(&self, key: &[u8]) -> Option<&Version> {
        self.versions.get(key)?.iter().max_by_key(|version| version.ts)
    }

    fn newest_ts(&self, key: &[u8]) -> Timestamp {
        self.newest(key).map_or(Timestamp::ZERO, |version| version.ts)
    }

    fn at(&self, key: &[u8], at: Timestamp) -> Option<Version> {
        let versions = self.versions.get(key)?.iter().filter(|version| version.ts <= at);
        versions.max_by_key(|version| version.ts).cloned()
    }

    /// Returns a version in `(above, upto]`, if there is one.
    fn has_between(&self, key: &[u8], above: Timestamp, upto: Timestamp) -> bool {
        let versions = self.versions.get(key).into_iter().flatten();
        versions.into_iter().any(|version| version.ts > above && version.ts <= upto)
    }
}

struct Flight {
    effects: Vec<Effect>,
    answers: Vec<(Sender, Answer)>,
}

enum Sender {
    Request(Reply),
    Fast(oneshot::Sender<FastAnswer>),
}

enum Answer {
    Request(Response),
    Fast(FastAnswer),
}

fn send(sender: Sender, answer: Answer) {
    // Whoever asked may be dead.
    match (sender, answer) {
        (Sender::Request(reply), Answer::Request(response)) => drop(reply.send(response)),
        (Sender::Fast(reply), Answer::Fast(answer)) => drop(reply.send(answer)),
        _ => unreachable!("invariant: answers are paired with their questions"),
    }
}

#[derive(Default)]
struct MaxRead {
    keys: BTreeMap<Key, Timestamp>,
    spans: Vec<(Span, Timestamp)>,
    low_water: Timestamp,
}

impl MaxRead {
    fn raise(&mut self, key: &[u8], at: Timestamp) {
        let ts = self.keys.entry(key.to_vec()).or_default();
        *ts = at.max(*ts);
    }

    fn raise_span(&mut self, span: &Span, at: Timestamp) {
        match self.spans.iter_mut().find(|(other, _)| other == span) {
            Some((_, ts)) => *ts = at.max(*ts),
            None => self.spans.push((span.clone(), at)),
        }
    }

    fn get(&self, key: &[u8]) -> Timestamp {
        let spans = self.spans.iter().filter(|(span, _)| span.contains(key)).map(|(_, ts)| *ts);
        let key = self.keys.get(key).copied().unwrap_or_default();
        spans.chain([key, self.low_water]).max().unwrap_or_default()
    }
}

/// A `Lock` that is not answered yet.
struct Queued {
    txn: TxnId,
    keys: Vec<Key>,
    /// Locks up to here are taken.
    taken: usize,
    exclusive: bool,
    reply: Reply,
}

/// A shard with its leader.
pub(super) struct Shard {
    pub(super) span: Span,
    oracle: LocalOracle,
    applied: State,
    edge: State,
    flight: VecDeque<Flight>,
    /// Reads and fast commands that wait for something in flight.
    parked: Vec<Parked>,
    max_read: MaxRead,
    /// Holders of each key's lock, and whether exclusive.
    locks: BTreeMap<Key, BTreeMap<TxnId, bool>>,
    queue: VecDeque<Queued>,
    heard: BTreeMap<TxnId, Instant>,
    leads_since: Instant,
    safepoint: Timestamp,
    /// An epoch that the leader knows of (fast lane).
    known: Timestamp,
    /// Highest commit timestamp applied.
    highest: Timestamp,
}

enum Parked {
    Request(Request, Reply),
    Fast(Fast, oneshot::Sender<FastAnswer>),
}

impl Shard {
    pub(super) fn new(span: Span, oracle: LocalOracle) -> Shard {
        Shard {
            span,
            oracle,
            applied: State::default(),
            edge: State::default(),
            flight: VecDeque::new(),
            parked: Vec::new(),
            max_read: MaxRead::default(),
            locks: BTreeMap::new(),
            queue: VecDeque::new(),
            heard: BTreeMap::new(),
            leads_since: Instant::default(),
            safepoint: Timestamp::ZERO,
            known: Timestamp::ZERO,
            highest: Timestamp::ZERO,
        }
    }

    /// Returns whether something is in flight.
    pub(super) fn has_flight(&self) -> bool {
        !self.flight.is_empty()
    }

    pub(super) fn intents(&self) -> Vec<Obstacle> {
        let obstacle = |(key, intent): (&Key, &Intent)| Obstacle {
            key: key.clone(),
            txn: intent.txn,
            primary: intent.primary.clone(),
            min_commit_ts: intent.min_commit_ts,
        };
        self.edge.intents.iter().map(obstacle).collect()
    }

    pub(super) fn versions(&self) -> &BTreeMap<Key, Vec<Version>> {
        &self.applied.versions
    }

    /// Learns an epoch, for the fast lane.
    pub(super) fn learn(&mut self, known: Timestamp) {
        self.known = known;
    }

    /// Applies the oldest entry in flight; its answers leave.
    pub(super) fn apply_one(&mut self, now: Instant) {
        let Some(flight) = self.flight.pop_front() else { return };
        for effect in &flight.effects {
            self.applied.apply(effect);
            if let Effect::Version(_, version) = effect {
                self.highest = self.highest.max(version.ts);
            }
        }
        for (sender, answer) in flight.answers {
            send(sender, answer);
        }
        for parked in std::mem::take(&mut self.parked) {
            self.resume(parked, now);
        }
        self.serve_queue(now);
    }

    fn resume(&mut self, parked: Parked, now: Instant) {
        match parked {
            Parked::Request(request, reply) => self.handle(request, reply, now),
            Parked::Fast(fast, reply) => self.fast(fast, reply, now),
        }
    }

    /// Another leader takes over, who has the first `keep` entries of what is in flight.
    pub(super) fn change_leader(&mut self, keep: usize, now: Instant) {
        for _ in 0..keep.min(self.flight.len()) {
            self.apply_one(now);
        }
        for flight in std::mem::take(&mut self.flight) {
            for (sender, _) in flight.answers {
                let unknown = match sender {
                    Sender::Request(_) => Answer::Request(Response::Unknown),
                    Sender::Fast(_) => Answer::Fast(FastAnswer::Unknown),
                };
                send(sender, unknown);
            }
        }
        self.edge = self.applied.clone();
        self.forget_memory(now);
        for parked in std::mem::take(&mut self.parked) {
            self.resume(parked, now);
        }
    }

    fn forget_memory(&mut self, now: Instant) {
        if mutants::is("record-in-memory") {
            let is_commit = |record: &StoredRecord| {
                matches!(record.record, Record::Committed(_)) && record.until.is_some()
            };
            self.applied.records.retain(|_, record| !is_commit(record));
            self.edge.records.retain(|_, record| !is_commit(record));
        }
        let low_water = Timestamp::read_at(self.oracle.next_epoch());
        let low_water = if mutants::is("no-low-water") { Timestamp::ZERO } else { low_water };
        self.max_read = MaxRead { low_water, ..MaxRead::default() };
        self.locks.clear();
        self.heard.clear();
        self.leads_since = now;
        for queued in std::mem::take(&mut self.queue) {
            drop(queued.reply.send(Response::Unknown));
        }
    }

    /// Gives the upper part of its range to a new shard. Nothing may be in flight.
    pub(super) fn split(&mut self, at: &Key, now: Instant) -> Shard {
        assert!(self.flight.is_empty(), "invariant: a split comes after all that is in flight");
        let mut upper = Shard::new(
            Span { start: at.clone(), end: std::mem::replace(&mut self.span.end, at.clone()) },
            self.oracle.clone(),
        );
        let state = &mut self.applied;
        upper.applied.versions = state.versions.split_off(at);
        upper.applied.intents = state.intents.split_off(at);
        let records = std::mem::take(&mut state.records);
        let (lower, higher) = records.into_iter().partition(|(_, record)| record.primary < *at);
        (state.records, upper.applied.records) = (lower, higher);
        let fences = std::mem::take(&mut state.fences);
        let (lower, higher) = fences.into_iter().partition(|((_, key), _)| key < at);
        (state.fences, upper.applied.fences) = (lower, higher);
        upper.edge = upper.applied.clone();
        self.edge = self.applied.clone();
        (upper.safepoint, upper.known, upper.highest) = (self.safepoint, self.known, self.highest);
        upper.forget_memory(now);
        // Locks of the lower part stay. Who waits for one of the upper part asks again.
        self.locks.split_off(at);
        let (stay, go): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|q| q.keys.iter().all(|k| k < at));
        self.queue = stay;
        for queued in go {
            drop(queued.reply.send(Response::NotMine));
        }
        self.serve_queue(now);
        upper
    }

    /// The safepoint moves: what is stamped below is refused from now on.
    pub(super) fn set_safepoint(&mut self, safepoint: Timestamp) {
        self.safepoint = self.safepoint.max(safepoint);
    }

    /// Drops what was kept for late comers. All intents below the safepoint are resolved.
    pub(super) fn collect(&mut self) {
        let safepoint = self.safepoint;
        let early = mutants::is("records-dropped-early");
        let passed = |until: Timestamp| until <= safepoint || early;
        let stays = |record: &StoredRecord| match (&record.record, record.until) {
            (Record::Staged { .. }, _) | (Record::Aborted, None) => true,
            (Record::Aborted, Some(until)) => !passed(until),
            (Record::Committed(_), Some(until)) => until > safepoint,
            (Record::Committed(ts), None) => *ts > safepoint,
        };
        // Through the log, in a real shard; nothing in flight depends on what goes.
        for state in [&mut self.applied, &mut self.edge] {
            state.records.retain(|_, record| stays(record));
            state.fences.retain(|_, until| !passed(*until));
        }
    }

    /// Drops the locks of the dead.
    pub(super) fn tick(&mut self, now: Instant) {
        let heard = &self.heard;
        let alive = |txn: &TxnId| heard.get(txn).is_some_and(|at| now.since(*at) < DEAD_AFTER);
        for holders in self.locks.values_mut() {
            holders.retain(|txn, _| alive(txn));
        }
        self.locks.retain(|_, holders| !holders.is_empty());
        self.queue.retain(|queued| alive(&queued.txn));
        self.serve_queue(now);
    }

    fn propose(&mut self, effects: Vec<Effect>, sender: Sender, answer: Answer) {
        for effect in &effects {
            self.edge.apply(effect);
        }
        if mutants::is("answer-before-apply") {
            send(sender, answer);
            self.flight.push_back(Flight { effects, answers: Vec::new() });
        } else {
            self.flight.push_back(Flight { effects, answers: vec![(sender, answer)] });
        }
    }

    /// Answers what is true of the edge once all of it is applied.
    fn answer_when_applied(&mut self, reply: Reply, response: Response) {
        match self.flight.back_mut() {
            Some(last) => {
                last.answers.push((Sender::Request(reply), Answer::Request(response)));
            }
            None => drop(reply.send(response)),
        }
    }

    fn owns(&self, request: &Request) -> bool {
        let has = |key: &[u8]| self.span.contains(key);
        let has_all = |keys: &[Key]| keys.iter().all(|key| has(key));
        let has_span = |span: &Span| span.start >= self.span.start && span.end <= self.span.end;
        let has_reads = |reads: &ReadSet| {
            has_all(&reads.keys)
                && reads.spans.iter().all(has_span)
                && reads.locked.iter().all(|(key, _)| has(key))
        };
        let has_writes = |writes: &[Write]| writes.iter().all(|write| has(&write.key));
        match request {
            Request::Get { keys, .. }
            | Request::Lock { keys, .. }
            | Request::Unlock { keys, .. }
            | Request::Waits { keys, .. }
            | Request::Probe { keys, .. }
            | Request::Resolve { keys, .. } => has_all(keys),
            Request::Scan { span, .. } => has_span(span),
            Request::Commit { reads, writes, .. } | Request::Prewrite { reads, writes, .. } => {
                has_reads(reads) && has_writes(writes)
            }
            Request::Validate { reads, .. } => has_reads(reads),
            Request::Restage { primary, .. } | Request::Status { primary, .. } => has(primary),
            Request::Finish { primary, keys, .. } => has(primary) && has_all(keys),
            Request::Forget { txns } => txns.iter().all(|(_, primary)| has(primary)),
            Request::Heartbeat { key, .. } => has(key),
        }
    }

    /// Evaluates a request. The answer leaves when it may.
    pub(super) fn handle(&mut self, request: Request, reply: Reply, now: Instant) {
        if !self.owns(&request) {
            drop(reply.send(Response::NotMine));
            return;
        }
        match request {
            Request::Get { .. } | Request::Scan { .. } => self.read(request, reply),
            Request::Lock { txn, keys, exclusive } => {
                self.heard.insert(txn, now);
                self.queue.push_back(Queued { txn, keys, taken: 0, exclusive, reply });
                self.serve_queue(now);
            }
            Request::Unlock { txn, keys } => {
                for key in &keys {
                    self.unlock(txn, key);
                }
                self.queue.retain(|q| q.txn != txn || !q.keys.iter().any(|k| keys.contains(k)));
                drop(reply.send(Response::Done));
                self.serve_queue(now);
            }
            Request::Waits { txn, keys } => {
                let blockers = self.blockers(txn, &keys);
                drop(reply.send(Response::Waits(blockers)));
            }
            Request::Commit { txn, isolation, read_ts, reads, writes, commit_ts } => {
                let response =
                    self.commit(txn, isolation, read_ts, &reads, &writes, commit_ts, reply);
                let ends = !matches!(response, Some((Response::Blocked(_), _)));
                if let Some((response, reply)) = response {
                    drop(reply.send(response));
                }
                if ends {
                    for holders in self.locks.values_mut() {
                        holders.remove(&txn);
                    }
                    self.serve_queue(now);
                }
            }
            Request::Validate { txn, reads, read_ts, at } => {
                let response = match self.check_reads(txn, &reads, read_ts, at) {
                    Err(response) => response,
                    Ok(()) => {
                        self.raise(&reads, &[], at);
                        Response::Done
                    }
                };
                drop(reply.send(response));
            }
            Request::Prewrite {
                txn,
                isolation,
                read_ts,
                reads,
                writes,
                commit_ts,
                primary,
                record,
            } => {
                if record.is_some() {
                    self.heard.insert(txn, now);
                }
                let shape = (isolation, read_ts, commit_ts);
                self.prewrite(txn, shape, &reads, writes, primary, record, reply);
            }
            Request::Restage { txn, primary, from, to } => {
                self.heard.insert(txn, now);
                match self.edge.records.get(&txn).map(|stored| &stored.record) {
                    Some(Record::Staged { commit_ts, isolation, keys }) if *commit_ts == from => {
                        let record = Record::Staged {
                            commit_ts: to,
                            isolation: *isolation,
                            keys: keys.clone(),
                        };
                        let stored = StoredRecord { primary, record, until: None };
                        self.propose(
                            vec![Effect::Record(txn, stored)],
                            Sender::Request(reply),
                            Answer::Request(Response::Done),
                        );
                    }
                    _ => self.tell_record(txn, reply, now),
                }
            }
            Request::Finish { txn, primary, expect, outcome, stamp, keys } => {
                let stands = match self.edge.records.get(&txn).map(|stored| &stored.record) {
                    Some(Record::Staged { commit_ts, .. }) => expect == Some(*commit_ts),
                    Some(_) => false,
                    None => expect.is_none(),
                };
                if !stands {
                    self.tell_record(txn, reply, now);
                    return;
                }
                let (record, until) = match outcome {
                    Outcome::Committed(ts) => (Record::Committed(ts), None),
                    Outcome::Aborted => (Record::Aborted, Some(stamp)),
                };
                let stored = StoredRecord { primary, record, until };
                let mut effects = vec![Effect::Record(txn, stored)];
                effects.extend(self.resolve(txn, keys, outcome));
                self.propose(effects, Sender::Request(reply), Answer::Request(Response::Done));
                self.serve_queue(now);
            }
            Request::Status { txn, .. } => self.tell_record(txn, reply, now),
            Request::Probe { txn, keys, fence } => {
                let mut effects = Vec::new();
                let fates = keys.into_iter().map(|key| match self.edge.intents.get(&key) {
                    Some(intent) if intent.txn == txn => {
                        Fate::Intent { min_commit_ts: intent.min_commit_ts }
                    }
                    _ => match fence {
                        Some(until) => {
                            effects.push(Effect::Fence(txn, key, until));
                            Fate::Fenced
                        }
                        None => Fate::Missing,
                    },
                });
                let fates = Response::Fates(fates.collect());
                if effects.is_empty() {
                    self.answer_when_applied(reply, fates);
                } else {
                    self.propose(effects, Sender::Request(reply), Answer::Request(fates));
                }
            }
            Request::Resolve { txn, keys, outcome } => {
                let effects = self.resolve(txn, keys, outcome);
                if effects.is_empty() {
                    self.answer_when_applied(reply, Response::Done);
                } else {
                    self.propose(effects, Sender::Request(reply), Answer::Request(Response::Done));
                }
                self.serve_queue(now);
            }
            Request::Forget { txns } => {
                let effects = txns.into_iter().map(|(txn, _)| Effect::NoRecord(txn)).collect();
                self.propose(effects, Sender::Request(reply), Answer::Request(Response::Done));
            }
            Request::Heartbeat { txn, .. } => {
                self.heard.insert(txn, now);
                drop(reply.send(Response::Done));
            }
        }
    }

    /// Gives locks back and returns what makes versions of intents, or removes them.
    fn resolve(&mut self, txn: TxnId, keys: Vec<Key>, outcome: Outcome) -> Vec<Effect> {
        let mut effects = Vec::new();
        for key in keys {
            self.unlock(txn, &key);
            match self.edge.intents.get(&key) {
                Some(intent) if intent.txn == txn => {
                    if let Outcome::Committed(ts) = outcome {
                        let version = Version { ts, value: intent.value.clone() };
                        effects.push(Effect::Version(key.clone(), version));
                    }
                    effects.push(Effect::NoIntent(key));
                }
                _ => {}
            }
        }
        effects
    }

    fn tell_record(&mut self, txn: TxnId, reply: Reply, now: Instant) {
        let record = self.edge.records.get(&txn).map(|stored| stored.record.clone());
        let heard = self.heard.get(&txn).copied();
        // A new leader gives everybody time to be heard of.
        let heard = heard.or(record.is_some().then_some(self.leads_since));
        let alive = heard.is_some_and(|at| now.since(at) < DEAD_AFTER);
        self.answer_when_applied(reply, Response::Record { record, alive });
    }

    // ---- reads ----

    fn read(&mut self, request: Request, reply: Reply) {
        let raises = !mutants::is("reads-do-not-raise");
        let (txn, at) = match &request {
            Request::Get { txn, at, .. } | Request::Scan { txn, at, .. } => (*txn, *at),
            _ => unreachable!("invariant: only reads come here"),
        };
        if at < self.safepoint {
            drop(reply.send(Response::Refused(Refusal::SnapshotTooOld)));
            return;
        }
        let (keys, limit, reverse) = match &request {
            Request::Get { keys, .. } => {
                for key in keys.iter().filter(|_| raises) {
                    self.max_read.raise(key, at);
                }
                (keys.clone(), usize::MAX, false)
            }
            Request::Scan { span, limit, reverse, .. } => {
                if raises && !mutants::is("scans-raise-rows") {
                    self.max_read.raise_span(span, at);
                }
                (self.keys_in(span), *limit, *reverse)
            }
            _ => unreachable!("invariant: only reads come here"),
        };
        if !mutants::is("reads-do-not-wait") && keys.iter().any(|key| self.in_flight(key, txn, at))
        {
            self.parked.push(Parked::Request(request, reply));
            return;
        }
        let obstacles = self.obstacles(&self.applied, txn, keys.iter(), at);
        if !obstacles.is_empty() {
            drop(reply.send(Response::Blocked(obstacles)));
            return;
        }
        let response = if matches!(request, Request::Get { .. }) {
            Response::Values(keys.iter().map(|key| self.applied.at(key, at)).collect())
        } else {
            let found = keys.into_iter().filter_map(|key| {
                let version = self.applied.at(&key, at)?;
                version.value.is_some().then_some((key, version))
            });
            let mut rows: Vec<(Key, Version)> = found.collect();
            if reverse {
                rows.reverse();
            }
            let more = (rows.len() > limit).then(|| rows[limit - 1].0.clone());
            rows.truncate(limit);
            if raises && mutants::is("scans-raise-rows") {
                rows.iter().for_each(|(key, _)| self.max_read.raise(key, at));
            }
            Response::Rows { rows, more }
        };
        drop(reply.send(response));
    }

    /// Returns all keys of a range that have, or will have, anything.
    fn keys_in(&self, span: &Span) -> Vec<Key> {
        let inside = span.start.clone()..span.end.clone();
        let versions = self.edge.versions.range(inside.clone()).map(|(key, _)| key);
        let intents = self.edge.intents.range(inside.clone()).map(|(key, _)| key);
        let applied = self.applied.intents.range(inside.clone()).map(|(key, _)| key);
        let keys: BTreeSet<Key> = versions.chain(intents).chain(applied).cloned().collect();
        keys.into_iter().collect()
    }

    /// Returns whether something that a reader at `at` would see is written but not applied.
    fn in_flight(&self, key: &[u8], txn: Option<TxnId>, at: Timestamp) -> bool {
        self.flight.iter().flat_map(|flight| &flight.effects).any(|effect| match effect {
            Effect::Version(of, version) => of == key && version.ts <= at,
            Effect::Intent(of, intent) => {
                of == key && intent.min_commit_ts <= at && Some(intent.txn) != txn
            }
            _ => false,
        })
    }

    fn obstacles<'a>(
        &self,
        state: &State,
        txn: Option<TxnId>,
        keys: impl Iterator<Item = &'a Key>,
        upto: Timestamp,
    ) -> Vec<Obstacle> {
        let obstacle = |key: &Key| {
            let intent = state.intents.get(key)?;
            let theirs = Some(intent.txn) != txn && intent.min_commit_ts <= upto;
            theirs.then(|| Obstacle {
                key: key.clone(),
                txn: intent.txn,
                primary: intent.primary.clone(),
                min_commit_ts: intent.min_commit_ts,
            })
        };
        keys.filter_map(obstacle).collect()
    }

    /// Makes reads hold up to `at`. A key that is written as well is kept by the write.
    fn raise(&mut self, reads: &ReadSet, writes: &[Write], at: Timestamp) {
        for key in reads.keys.iter().chain(reads.locked.iter().map(|(key, _)| key)) {
            if writes.iter().all(|write| write.key != *key) {
                self.max_read.raise(key, at);
            }
        }
        for span in &reads.spans {
            self.max_read.raise_span(span, at);
        }
    }

    /// Checks that reads hold up to `at`, over the edge.
    fn check_reads(
        &self,
        txn: TxnId,
        reads: &ReadSet,
        read_ts: Timestamp,
        at: Timestamp,
    ) -> Result<(), Response> {
        let in_spans = reads.spans.iter().flat_map(|span| self.keys_in(span));
        let keys: Vec<(Key, Timestamp)> = (reads.keys.iter().cloned().chain(in_spans))
            .map(|key| (key, read_ts))
            .chain(reads.locked.iter().cloned())
            .collect();
        for (key, above) in &keys {
            if self.edge.has_between(key, *above, at) {
                return Err(Response::Refused(Refusal::ReadConflict { key: key.clone() }));
            }
        }
        let keys = keys.iter().map(|(key, _)| key);
        let obstacles = self.obstacles(&self.edge, Some(txn), keys, at);
        if obstacles.is_empty() { Ok(()) } else { Err(Response::Blocked(obstacles)) }
    }

    // ---- writes ----

    /// Checks what is to be written; returns the timestamp for it.
    fn check_writes(
        &mut self,
        txn: TxnId,
        read_ts: Option<Timestamp>,
        reads: &ReadSet,
        writes: &[Write],
        commit_ts: Timestamp,
    ) -> Result<Timestamp, Response> {
        if commit_ts <= self.safepoint && !mutants::is("old-stamps-accepted") {
            return Err(Response::Refused(Refusal::SnapshotTooOld));
        }
        let keys = writes.iter().map(|write| &write.key);
        let obstacles = self.obstacles(&self.edge, Some(txn), keys, Timestamp::MAX);
        if !obstacles.is_empty() {
            return Err(Response::Blocked(obstacles));
        }
        let mut ts = commit_ts;
        for Write { key, .. } in writes {
            let conflict = || Response::Refused(Refusal::WriteConflict { key: key.clone() });
            if self.edge.fences.contains_key(&(txn, key.clone())) {
                return Err(Response::Refused(Refusal::Fenced));
            }
            if self.locks.get(key).is_some_and(|holders| holders.keys().any(|other| *other != txn))
            {
                return Err(conflict());
            }
            let newest = self.edge.newest_ts(key);
            let locked = reads.locked.iter().find(|(of, _)| of == key).map(|(_, found)| *found);
            let seen = locked.or(read_ts).unwrap_or(Timestamp::MAX);
            if newest > seen {
                return Err(conflict());
            }
            for below in [self.max_read.get(key), newest] {
                if below >= ts {
                    ts = self.above(below);
                }
            }
        }
        Ok(ts)
    }

    fn above(&self, below: Timestamp) -> Timestamp {
        below.next().unwrap_or_else(|| Timestamp::commit_at(self.oracle.next_epoch()))
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a request")]
    fn commit(
        &mut self,
        txn: TxnId,
        isolation: Isolation,
        read_ts: Option<Timestamp>,
        reads: &ReadSet,
        writes: &[Write],
        commit_ts: Timestamp,
        reply: Reply,
    ) -> Option<(Response, Reply)> {
        if self.edge.records.contains_key(&txn) {
            return Some((Response::Refused(Refusal::Fenced), reply));
        }
        let ts = match self.check_writes(txn, read_ts, reads, writes, commit_ts) {
            Ok(ts) => ts,
            Err(response) => return Some((response, reply)),
        };
        if isolation == Isolation::Serializable {
            if let Err(response) = self.check_reads(txn, reads, read_ts.unwrap_or(ts), ts) {
                return Some((response, reply));
            }
            self.raise(reads, writes, ts);
        }
        let version = |write: &Write| {
            Effect::Version(write.key.clone(), Version { ts, value: write.value.clone() })
        };
        let mut effects: Vec<Effect> = writes.iter().map(version).collect();
        if !mutants::is("no-commit-record") {
            let stored = StoredRecord {
                primary: writes[0].key.clone(),
                record: Record::Committed(ts),
                until: Some(ts),
            };
            effects.push(Effect::Record(txn, stored));
        }
        self.propose(effects, Sender::Request(reply), Answer::Request(Response::Committed(ts)));
        None
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a request")]
    fn prewrite(
        &mut self,
        txn: TxnId,
        (isolation, read_ts, commit_ts): (Isolation, Option<Timestamp>, Timestamp),
        reads: &ReadSet,
        writes: Vec<Write>,
        primary: Key,
        record: Option<Record>,
        reply: Reply,
    ) {
        let decided = record.is_some() && self.edge.records.contains_key(&txn);
        if decided && !mutants::is("record-not-checked") {
            drop(reply.send(Response::Refused(Refusal::Fenced)));
            return;
        }
        let checked =
            self.check_writes(txn, read_ts, reads, &writes, commit_ts).and_then(|min_commit_ts| {
                if isolation == Isolation::Serializable {
                    let read_ts = read_ts.unwrap_or(commit_ts);
                    self.check_reads(txn, reads, read_ts, commit_ts)?;
                    self.raise(reads, &writes, commit_ts);
                }
                Ok(min_commit_ts)
            });
        let min_commit_ts = match checked {
            Ok(ts) => ts,
            Err(response) => return drop(reply.send(response)),
        };
        let intent = |write: Write| {
            let primary = primary.clone();
            Effect::Intent(write.key, Intent { txn, primary, min_commit_ts, value: write.value })
        };
        let mut effects: Vec<Effect> = writes.into_iter().map(intent).collect();
        if let Some(record) = record {
            let stored = StoredRecord { primary, record, until: None };
            effects.push(Effect::Record(txn, stored));
        }
        let response = Response::Prewritten(min_commit_ts);
        self.propose(effects, Sender::Request(reply), Answer::Request(response));
    }

    // ---- locks ----

    fn unlock(&mut self, txn: TxnId, key: &[u8]) {
        if let Some(holders) = self.locks.get_mut(key) {
            holders.remove(&txn);
        }
    }

    fn is_free(&self, key: &[u8], txn: TxnId, exclusive: bool) -> bool {
        let holders = self.locks.get(key).into_iter().flatten();
        holders.into_iter().all(|(of, theirs)| *of == txn || !(exclusive || *theirs))
    }

    /// Lets everybody in the queue go as far as possible, first come first served.
    fn serve_queue(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.queue.len() {
            let Queued { txn, exclusive, .. } = self.queue[at];
            while let Some(key) = self.queue[at].keys.get(self.queue[at].taken).cloned() {
                let holds = self.locks.get(&key).is_some_and(|holders| holders.contains_key(&txn));
                // Whoever holds it already, and wants it for itself, goes before those who wait.
                let behind = |q: &Queued| q.txn != txn && q.keys.get(q.taken) == Some(&key);
                if !self.is_free(&key, txn, exclusive)
                    || (!holds && self.queue.iter().take(at).any(behind))
                {
                    break;
                }
                *self.locks.entry(key).or_default().entry(txn).or_default() |= exclusive;
                self.queue[at].taken += 1;
            }
            let done = self.queue[at].taken == self.queue[at].keys.len();
            if !done {
                at += 1;
                continue;
            }
            let keys = &self.queue[at].keys;
            let obstacles = self.obstacles(&self.edge, Some(txn), keys.iter(), Timestamp::MAX);
            if obstacles.is_empty()
                && keys.iter().any(|key| self.in_flight(key, Some(txn), Timestamp::MAX))
            {
                // It is looked at again when something is applied.
                at += 1;
                continue;
            }
            let Some(queued) = self.queue.remove(at) else { break };
            let response = if obstacles.is_empty() {
                let newest = |key: &Key| self.applied.newest(key).cloned();
                Response::Values(queued.keys.iter().map(newest).collect())
            } else {
                Response::Blocked(obstacles)
            };
            self.heard.insert(txn, now);
            drop(queued.reply.send(response));
        }
    }

    fn blockers(&self, txn: TxnId, keys: &[Key]) -> Vec<TxnId> {
        let mut blockers = BTreeSet::new();
        for (at, queued) in self.queue.iter().enumerate() {
            let Some(key) = queued.keys.get(queued.taken) else { continue };
            if queued.txn != txn || !keys.contains(key) {
                continue;
            }
            for (of, theirs) in self.locks.get(key).into_iter().flatten() {
                if *of != txn && (*theirs || queued.exclusive) {
                    blockers.insert(*of);
                }
            }
            let ahead = self.queue.iter().take(at).filter(|q| q.keys.get(q.taken) == Some(key));
            blockers.extend(ahead.map(|q| q.txn).filter(|other| *other != txn));
        }
        blockers.into_iter().collect()
    }

    // ---- the fast lane ----

    /// Evaluates a fast command.
    pub(super) fn fast(&mut self, fast: Fast, reply: oneshot::Sender<FastAnswer>, now: Instant) {
        let keys = || fast.reads.iter().chain(fast.writes.iter().map(|write| &write.key));
        let _ = now;
        if !keys().all(|key| self.span.contains(key)) {
            drop(reply.send(FastAnswer::NotNow));
            return;
        }
        let obstacles = self.obstacles(&self.applied, None, keys(), Timestamp::MAX);
        if !obstacles.is_empty() {
            drop(reply.send(FastAnswer::Blocked(obstacles)));
            return;
        }
        // Simpler than the leading edge: it waits for everything in flight on its keys.
        if keys().any(|key| self.in_flight(key, None, Timestamp::MAX)) {
            self.parked.push(Parked::Fast(fast, reply));
            return;
        }
        let is_locked =
            |write: &Write| self.locks.get(&write.key).is_some_and(|holders| !holders.is_empty());
        if fast.writes.iter().any(is_locked) {
            drop(reply.send(FastAnswer::NotNow));
            return;
        }
        let known = if mutants::is("fast-above-oracle") {
            Timestamp::commit_at(self.oracle.last().after_us(3))
        } else {
            self.known
        };
        let mut ts = known.max(self.highest);
        if !fast.writes.is_empty() {
            ts = self.above(ts);
            for write in &fast.writes {
                let below = self.max_read.get(&write.key).max(self.edge.newest_ts(&write.key));
                if below >= ts {
                    ts = self.above(below);
                }
            }
        }
        let mut values = Vec::with_capacity(fast.reads.len());
        for key in &fast.reads {
            if !mutants::is("fast-reads-do-not-raise") {
                self.max_read.raise(key, ts);
            }
            values.push(self.edge.at(key, ts).and_then(|version| version.value));
        }
        let answer = FastAnswer::Done { at: Moment::end_of(ts), values };
        if fast.writes.is_empty() {
            drop(reply.send(answer));
            return;
        }
        let version = |write: Write| Effect::Version(write.key, Version { ts, value: write.value });
        let effects = fast.writes.into_iter().map(version).collect();
        self.propose(effects, Sender::Fast(reply), Answer::Fast(answer));
    }
}
