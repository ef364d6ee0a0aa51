//! The fast lane: a command of one shard, evaluated in one step.
//!
//! ```text
//!   reads   own staged writes -> edge -> applied state          (a command that writes)
//!           applied state only                                  (a command that only reads)
//!   writes  staged here; into the open entry when the command has ended
//! ```
//!
//! A command either ends, and then all it wrote is in the open entry, or it is interrupted (a block
//! is not in memory, an intent is in the way) and has changed nothing: it is run again from its
//! start. So a command is a plain function of the shard's state at one moment, however long its
//! reads took.
//!
//! A command that only reads is served from the applied state and answered at once, without waiting
//! for what is in flight: it is serialised just before the oldest entry in flight. Only if its
//! client has an unanswered write on this shard it reads the edge, and is answered with it.
//!
//! A command that only reads can be given a timestamp instead. Then it reads as a transaction does
//! that began there: it waits for entries and intents at or below the timestamp and for nothing else.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;

use atoll_mvcc::request::{Refusal, Response};
use atoll_mvcc::{Timestamp, Value};
use smallvec::SmallVec;

use crate::edge::{Change, EntrySeq, Presence, SharedKey};
use crate::leader::{Base, Leader, Miss, Now, Step};
use crate::mutants;

/// Which state a command sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// What is applied: for commands that only read.
    Applied,
    /// What is decided: for commands that may write.
    Edge,
    /// What was true at a timestamp that the oracle gave after the command came: for commands that
    /// only read. They wait for what is in flight at or below it.
    At(Timestamp),
    /// What was true at an earlier timestamp; likewise.
    Past(Timestamp),
}

impl Sight {
    /// Returns the timestamp that the command reads at, if it was given one.
    fn moment(self) -> Option<Timestamp> {
        match self {
            Sight::At(at) | Sight::Past(at) => Some(at),
            Sight::Applied | Sight::Edge => None,
        }
    }
}

/// Why a command has to be run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Something is not in memory.
    Miss,
    /// Something is in the way.
    Hindered(Step),
    /// What was true at the given timestamp is not known any more; what is true now is.
    TooOld,
}

impl From<Miss> for Interrupt {
    fn from(_: Miss) -> Interrupt {
        Interrupt::Miss
    }
}

/// Returns what stands in the way of a read at a given timestamp.
fn interrupt(step: Step) -> Interrupt {
    match step {
        Step::Answer(Response::Refused(Refusal::SnapshotTooOld)) => Interrupt::TooOld,
        step => Interrupt::Hindered(step),
    }
}

/// Bytes of a value, wherever they lie.
#[derive(Clone, Debug)]
pub enum Bytes<V> {
    /// In the applied state.
    Stored(V),
    /// At the edge, or staged by the command itself.
    Edge(Rc<[u8]>),
}

impl<V: Deref<Target = [u8]>> Deref for Bytes<V> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Stored(value) => value,
            Bytes::Edge(value) => value,
        }
    }
}

/// A key's newest version, as a command sees it.
#[derive(Clone, Debug)]
pub struct Seen<V> {
    /// Since when; `None` if its entry has no timestamp yet.
    pub ts: Option<Timestamp>,
    /// The stored bytes, `None` for a removed key.
    pub value: Option<Bytes<V>>,
}

struct Staged {
    key: SharedKey,
    value: Option<Rc<[u8]>>,
    /// What the key held before the command, if that was read.
    before: Option<Presence>,
}

/// A command under way.
pub struct Eval<'a, B: Base> {
    leader: &'a mut Leader,
    base: &'a mut B,
    now: Now,
    sight: Sight,
    staged: SmallVec<[Staged; 1]>,
    /// Keys read and what they held.
    read: SmallVec<[(SharedKey, Presence); 1]>,
    /// The newest entry whose effect was seen.
    after: Cell<Option<EntrySeq>>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether it wrote.
    pub wrote: bool,
    /// The entry with whose application it is answered; `None`: at once.
    pub after: Option<EntrySeq>,
}

impl<'a, B: Base> Eval<'a, B> {
    /// Starts a command.
    pub fn new(leader: &'a mut Leader, base: &'a mut B, now: Now, sight: Sight) -> Eval<'a, B> {
        let (staged, read) = (SmallVec::new(), SmallVec::new());
        // Whether a key is expired is decided at the moment that is looked at.
        let now = match sight.moment() {
            Some(at) => Now { epoch: at.epoch(), ..now },
            None => now,
        };
        Eval { leader, base, now, sight, staged, read, after: Cell::new(None) }
    }

    /// Returns the moment of the command.
    pub fn now(&self) -> Now {
        self.now
    }

    /// Returns the leader, for what a command may ask beside values.
    pub fn leader(&self) -> &Leader {
        self.leader
    }

    /// Returns one of the shard's own values, stored form.
    pub fn local(&self, name: &[u8]) -> Result<Option<Rc<[u8]>>, Interrupt> {
        if let Some(at) = self.sight.moment() {
            return self.leader.local_at(name, at).map_err(interrupt);
        }
        let applied = self.sight == Sight::Applied;
        let value = self.leader.local(name, applied).map_err(Interrupt::Hindered)?;
        if !applied && !mutants::is("locals-at-once") {
            self.saw(self.leader.local_entry(name));
        }
        Ok(value)
    }

    /// Notes that something was seen that this entry carries.
    fn saw(&self, entry: Option<EntrySeq>) {
        self.after.set(self.after.get().max(entry));
    }

    /// Returns the newest version of a key, expired or not.
    pub fn version(&mut self, key: &[u8]) -> Result<Option<Seen<B::Value>>, Interrupt> {
        if let Some(staged) = self.staged.iter().rev().find(|s| *s.key == *key) {
            let value = staged.value.clone().map(Bytes::Edge);
            return Ok(Some(Seen { ts: None, value }));
        }
        if let Some(at) = self.sight.moment() {
            self.leader.read_at_moment(key, at).map_err(interrupt)?;
            let found = self.base.version(key, at)?;
            return Ok(found.map(|f| Seen { ts: Some(f.ts), value: f.value.map(Bytes::Stored) }));
        }
        if self.sight == Sight::Applied {
            if let Some(step) = self.leader.read_applied(key, self.now) {
                return Err(Interrupt::Hindered(step));
            }
            return self.applied(key);
        }
        if !self.leader.is_unhindered()
            && let Some(step) = self.leader.hindrance(key, true)
        {
            return Err(Interrupt::Hindered(step));
        }
        let seen = match self.leader.edge_value(key) {
            Some(edge) => {
                self.saw(Some(edge.entry));
                Some(Seen { ts: edge.stamp, value: edge.value.map(Bytes::Edge) })
            }
            None => self.applied(key)?,
        };
        let presence = Presence::of(seen.as_ref().and_then(|s| s.value.as_deref()));
        self.read.push((SharedKey::from(key), presence));
        Ok(seen)
    }

    fn applied(&mut self, key: &[u8]) -> Result<Option<Seen<B::Value>>, Interrupt> {
        let found = self.base.version(key, Timestamp::MAX)?;
        Ok(found.map(|f| Seen { ts: Some(f.ts), value: f.value.map(Bytes::Stored) }))
    }

    /// Returns the stored bytes of a key that is there and not expired.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Bytes<B::Value>>, Interrupt> {
        let now_ms = self.now.epoch.unix_ms();
        let value = self.version(key)?.and_then(|seen| seen.value);
        Ok(value.filter(|v| !Value::decode(v).is_ok_and(|v| v.is_expired(now_ms))))
    }

    /// Writes a value, `None` to remove the key.
    pub fn put(&mut self, key: &[u8], value: Option<Rc<[u8]>>) {
        debug_assert!(self.sight == Sight::Edge, "a command that only reads does not write");
        if let Some(staged) = self.staged.iter_mut().rev().find(|s| *s.key == *key) {
            staged.value = value;
            return;
        }
        let staged = match self.read.iter().find(|(read, _)| **read == *key) {
            Some((key, before)) => Staged { key: key.clone(), value, before: Some(*before) },
            None => Staged { key: SharedKey::from(key), value, before: None },
        };
        self.staged.push(staged);
    }

    /// Ends the command: what it wrote goes into the open entry.
    pub fn finish(self) -> Result<Ended, Interrupt> {
        let Eval { leader, base, now, staged, mut read, after, .. } = self;
        let mut after = after.into_inner();
        let mut changes: SmallVec<[Change; 1]> = SmallVec::new();
        for Staged { key, value, before } in staged {
            let before = match before {
                Some(before) => before,
                None => {
                    if let Some(step) = leader.hindrance(&key, true) {
                        return Err(Interrupt::Hindered(step));
                    }
                    leader.presence(&key, base)?
                }
            };
            // Removing what is not there is no change: it has read that the key is not there.
            if value.is_some() || before.exists {
                changes.push(Change { key, value, before });
            } else if !mutants::is("no-delete-at-once") {
                after = after.max(leader.edge_value(&key).map(|edge| edge.entry));
                read.push((key, before));
            }
        }
        if changes.is_empty() {
            // It is serialised behind the newest entry that it saw.
            read.iter().for_each(|(key, _)| leader.read_edge(key, after, now));
            let after = after.filter(|_| !mutants::is("read-the-edge-at-once"));
            return Ok(Ended { wrote: false, after });
        }
        for (key, _) in &read {
            if !changes.iter().any(|change| change.key == *key) {
                leader.read_with_entry(key);
            }
        }
        for Change { key, value, before } in changes {
            leader.put(key, value, before, now);
        }
        Ok(Ended { wrote: true, after: Some(leader.open_entry()) })
    }
}
