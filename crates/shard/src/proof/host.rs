//! A shard with everybody who waits, as its owner keeps it: only what happens in one step. Who
//! drives it, and what it is told about the world, is in `cluster`.

use std::collections::{BTreeMap, VecDeque};

use atoll_env::sync::oneshot;
use atoll_mvcc::request::{Key, Request, Response, Span, Write};
use atoll_mvcc::{Epoch, Timestamp, Value};
use atoll_txn::proof::{Fast, FastAnswer, Moment};

use crate::descriptor::Descriptor;
use crate::edge::EntrySeq;
use crate::entry::Closed;
use crate::eval::{Eval, Interrupt, Sight};
use crate::leader::{LOCAL, Leader, Loaded, Miss, Now, Step};
use crate::mutants;
use crate::proof::state::{Applied, Stored, View};

/// Commands of one client that are under way together.
pub(super) type Lane = u64;

/// What is to be done.
pub(super) enum Work {
    Request(Request),
    Fast(Fast),
}

/// Where an answer goes.
pub(super) enum ReplyTo {
    Request(oneshot::Sender<Response>),
    Fast(oneshot::Sender<FastAnswer>),
}

/// Something to be evaluated, until it is answered.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) reply_to: ReplyTo,
    pub(super) lane: Option<Lane>,
    /// A command that could write, as far as is known before it is run.
    pub(super) may_write: bool,
    pub(super) misses: u32,
}

/// When a command happened.
pub(super) enum When {
    At(Moment),
    /// At this place of the entry that was open.
    InEntry(u64),
}

/// An answer that may have to wait.
pub(super) enum Answer {
    Response(Response),
    Fast { when: When, values: Vec<Option<Vec<u8>>> },
}

/// Who waits for an entry to be applied.
pub(super) enum Waiter {
    Answered(Job, Answer),
    Again(Job),
}

/// A write that was evaluated.
pub(super) struct Logged {
    pub(super) order: u64,
    pub(super) key: Key,
    pub(super) value: Option<Stored>,
}

/// An entry in flight.
pub(super) struct Flight {
    pub(super) seq: EntrySeq,
    pub(super) stamp: Timestamp,
    pub(super) payload: Vec<u8>,
    pub(super) log: Vec<Logged>,
}

/// How one attempt at a job ended.
pub(super) enum Outcome {
    Answer(Answer),
    /// With the application of an entry.
    At(EntrySeq, Answer),
    /// The applied state is read, then it is answered.
    Read,
    CloseFirst,
    Interrupted(Interrupt),
}

/// See the module.
pub(super) struct Host {
    pub(super) descriptor: Descriptor,
    /// Its range, as keys say it.
    pub(super) span: Span,
    pub(super) leader: Leader,
    /// Below every version of this leadership.
    pub(super) low_water: Timestamp,
    /// Nothing is evaluated.
    pub(super) frozen: bool,
    pub(super) queue: VecDeque<Job>,
    pub(super) waiters: BTreeMap<EntrySeq, Vec<Waiter>>,
    pub(super) for_locks: Vec<Job>,
    pub(super) unlocks: u64,
    pub(super) stalled: BTreeMap<Lane, VecDeque<Job>>,
    /// The newest entry that an unanswered command of a lane waits for.
    pub(super) unanswered: BTreeMap<Lane, EntrySeq>,
    pub(super) in_flight: VecDeque<Flight>,
    /// What was evaluated for the open entry.
    log: Vec<Logged>,
    order: u64,
    /// Answers of commands whose place in the open entry is known: its timestamp is missing.
    pub(super) at_closing: Vec<(Job, Answer)>,
    /// The latest epoch that it has learnt of.
    pub(super) known: Epoch,
}

impl Host {
    pub(super) fn new(
        descriptor: Descriptor,
        span: Span,
        loaded: Loaded,
        low_water: Timestamp,
        ms: u64,
    ) -> Host {
        Host {
            leader: Leader::new(descriptor.clone(), loaded, low_water, ms),
            descriptor,
            span,
            low_water,
            frozen: false,
            queue: VecDeque::new(),
            waiters: BTreeMap::new(),
            for_locks: Vec::new(),
            unlocks: 0,
            stalled: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            in_flight: VecDeque::new(),
            log: Vec::new(),
            order: 0,
            at_closing: Vec::new(),
            known: Epoch(0),
        }
    }

    /// Makes the leader anew from the applied state.
    pub(super) fn lead(&mut self, loaded: Loaded, low_water: Timestamp, ms: u64) {
        let seq = self.leader.open_entry();
        self.leader = Leader::new(self.descriptor.clone(), loaded, low_water, ms);
        self.leader.resume_at(seq);
        self.low_water = low_water;
        self.unlocks = 0;
        self.in_flight.clear();
        self.log.clear();
        self.order = 0;
    }

    /// Closes the open entry, if it has effects.
    pub(super) fn close(&mut self, epoch: impl FnMut() -> Epoch) -> bool {
        let closed = self.leader.close(epoch);
        closed.map(|closed| self.propose(&closed)).is_some()
    }

    pub(super) fn propose(&mut self, closed: &Closed) {
        let (seq, stamp, payload) = (closed.seq, closed.stamp, closed.payload());
        let log = std::mem::take(&mut self.log);
        self.order = 0;
        self.in_flight.push_back(Flight { seq, stamp, payload, log });
    }

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// Tries a job.
    pub(super) fn evaluate(
        &mut self,
        job: &Job,
        applied: &Applied,
        misses: impl FnMut() -> bool,
        now: Now,
    ) -> Outcome {
        let mut view = View { applied, misses };
        match &job.work {
            Work::Request(request) => {
                let step = match self.leader.evaluate(request, &mut view, now) {
                    Ok(step) => step,
                    Err(Miss) => return Outcome::Interrupted(Interrupt::Miss),
                };
                match step {
                    Step::Answer(response) => Outcome::Answer(Answer::Response(response)),
                    Step::AnswerWith(response) => {
                        if let (Request::Commit { writes, .. }, Response::Committed(_)) =
                            (request, &response)
                        {
                            self.log_writes(writes);
                        }
                        Outcome::At(self.leader.open_entry(), Answer::Response(response))
                    }
                    Step::AnswerAt(entry, response) => {
                        Outcome::At(entry, Answer::Response(response))
                    }
                    Step::Read => Outcome::Read,
                    Step::CloseFirst => Outcome::CloseFirst,
                    step @ (Step::AwaitEntry(_) | Step::AwaitLock) => {
                        Outcome::Interrupted(Interrupt::Hindered(step))
                    }
                }
            }
            Work::Fast(fast) => {
                self.command(job, fast, &mut view, now).unwrap_or_else(Outcome::Interrupted)
            }
        }
    }

    fn log_writes(&mut self, writes: &[Write]) -> u64 {
        let order = self.next_order();
        for write in writes {
            let value = write.value.as_deref().map(Stored::from);
            self.log.push(Logged { order, key: write.key.clone(), value });
        }
        order
    }

    fn command<M: FnMut() -> bool>(
        &mut self,
        job: &Job,
        fast: &Fast,
        view: &mut View<'_, M>,
        now: Now,
    ) -> Result<Outcome, Interrupt> {
        let follows = job.lane.is_some_and(|lane| self.unanswered.contains_key(&lane));
        let sight = match fast.writes.is_empty() && !job.may_write && !follows {
            true => Sight::Applied,
            false => Sight::Edge,
        };
        let slots = self.descriptor.range.slots();
        let own = crate::leader::local_key(slots.start, b"");
        let is_own = |key: &Key| *key == own && key.starts_with(&LOCAL.to_be_bytes());
        // Where it happens, if it turns out that it writes nothing.
        let keys: Vec<&Key> =
            fast.reads.iter().chain(fast.writes.iter().map(|write| &write.key)).collect();
        let mut found = Timestamp::ZERO;
        for key in &keys {
            found = found.max(view.applied.newest_ts(key));
        }
        let edge: Vec<_> = keys.iter().filter_map(|key| self.leader.edge_value(key)).collect();
        let saw_open = sight == Sight::Edge && edge.iter().any(|value| value.stamp.is_none());
        let mut ts = Timestamp::commit_at(now.epoch).max(self.low_water);
        if sight == Sight::Edge {
            ts = ts.max(self.leader.edge_max());
            found = edge.iter().filter_map(|value| value.stamp).fold(found, Timestamp::max);
        } else {
            ts = ts.max(self.leader.applied_max());
            // Just below what it does not see.
            let missed = self
                .in_flight
                .iter()
                .filter(|flight| flight.log.iter().any(|logged| keys.contains(&&logged.key)));
            ts = missed.map(|flight| flight.stamp.prev()).fold(ts, Timestamp::min);
        }
        if fast.reads.iter().any(is_own) {
            // Who reads an own value says so nowhere: it lies below what is decided later.
            ts = ts.min(self.leader.edge_max());
        }
        let mut eval = Eval::new(&mut self.leader, view, now, sight);
        let mut values = Vec::with_capacity(fast.reads.len());
        for key in &fast.reads {
            let value = if is_own(key) {
                eval.local(b"")?.as_deref().map(payload)
            } else {
                let seen = eval.version(key)?;
                seen.and_then(|seen| seen.value).as_deref().map(payload)
            };
            values.push(value);
        }
        for write in &fast.writes {
            eval.put(&write.key, write.value.as_deref().map(Stored::from));
        }
        let ended = eval.finish()?;
        if ended.wrote {
            // Removing what was not there is no change.
            let is_open = |write: &&Write| {
                let edge = self.leader.edge_value(&write.key);
                write.value.is_some() || edge.is_some_and(|value| value.stamp.is_none())
            };
            let effective: Vec<Write> = fast.writes.iter().filter(is_open).cloned().collect();
            let order = self.log_writes(&effective);
            let answer = Answer::Fast { when: When::InEntry(order), values };
            return Ok(Outcome::At(self.leader.open_entry(), answer));
        }
        let when = match saw_open {
            true => When::InEntry(self.next_order()),
            false => When::At(Moment::end_of(ts.max(found))),
        };
        let answer = Answer::Fast { when, values };
        Ok(match ended.after.filter(|entry| *entry > self.leader.applied_entry()) {
            Some(entry) => Outcome::At(entry, answer),
            None => Outcome::Answer(answer),
        })
    }

    /// Takes everybody who waits; lanes whose first job is elsewhere (it reads, or it resolves an
    /// intent) stay stalled.
    pub(super) fn take_all(&mut self) -> Vec<Waiter> {
        let mut all: Vec<Waiter> =
            std::mem::take(&mut self.waiters).into_values().flatten().collect();
        all.extend(self.at_closing.drain(..).map(|(job, answer)| Waiter::Answered(job, answer)));
        all.extend(self.for_locks.drain(..).map(Waiter::Again));
        all.extend(self.queue.drain(..).map(Waiter::Again));
        let first = all.iter().filter_map(|waiter| match waiter {
            Waiter::Again(job) => job.lane,
            Waiter::Answered(..) => None,
        });
        let first: Vec<Lane> = first.collect();
        for behind in self.stalled.values_mut() {
            all.extend(behind.drain(..).map(Waiter::Again));
        }
        self.stalled.retain(|lane, _| !first.contains(lane));
        self.unanswered.clear();
        all
    }
}

/// Returns what clients call the value.
pub(super) fn payload(stored: &[u8]) -> Vec<u8> {
    let value = Value::decode(stored).expect("invariant: stored values decode");
    value.payload.to_vec()
}

/// Returns the stored form of a client's value. Some have a deadline, far away.
pub(super) fn stored(payload: &[u8]) -> Vec<u8> {
    let sum: u64 = payload.iter().map(|byte| u64::from(*byte)).sum();
    let deadline_ms = sum.is_multiple_of(3).then_some(9_000_000_000_000 + sum % 5);
    Value { deadline_ms, payload }.encode()
}

impl Answer {
    /// Returns the answer as it leaves, with the timestamp of its entry.
    pub(super) fn leave(self, job: Job, stamp: Timestamp) {
        match (job.reply_to, self) {
            (ReplyTo::Request(sender), Answer::Response(mut response)) => {
                if let Response::Committed(ts) = &mut response {
                    *ts = stamp;
                }
                drop(sender.send(response));
            }
            (ReplyTo::Fast(sender), Answer::Fast { when, values }) => {
                let at = match when {
                    When::At(at) => at,
                    When::InEntry(order) => Moment { ts: stamp, order },
                };
                drop(sender.send(FastAnswer::Done { at, values }));
            }
            _ => unreachable!("invariant: answers are paired with their questions"),
        }
    }
}

impl Job {
    /// Tells that nobody knows what became of it.
    pub(super) fn lost(self) {
        match self.reply_to {
            ReplyTo::Request(sender) => drop(sender.send(Response::Unknown)),
            ReplyTo::Fast(sender) => drop(sender.send(FastAnswer::Unknown)),
        }
    }

    /// Tells that nothing of it has happened.
    pub(super) fn refuse(self) {
        match self.reply_to {
            ReplyTo::Request(sender) => {
                drop(sender.send(Response::Unavailable("another leader is coming".into())));
            }
            ReplyTo::Fast(sender) => drop(sender.send(FastAnswer::NotNow)),
        }
    }
}

/// Returns the moment of an evaluation.
pub(super) fn now(known: Epoch, last: Epoch, monotonic_ms: u64) -> Now {
    let epoch = if mutants::is("fast-above-oracle") { last.after_us(3) } else { known };
    Now { epoch, monotonic_ms }
}
