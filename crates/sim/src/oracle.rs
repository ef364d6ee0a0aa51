//! The oracle: what was submitted, what was promised, and whether a database may look as it does.
//!
//! The engine commits in the order in which writes were submitted (its queue is first in, first
//! out, and the log one lane), and the driver knows that order, because a write enters the queue at
//! the first poll of its future. So what may survive is one of N+1 states, one per *prefix* of the
//! submitted entries:
//!
//! ```text
//!   entries    0    1    2    3    4    5    6    7
//!                        |floor                   |submitted
//!              must be there |  may be there, but only up to one point  |
//! ```
//!
//! The *floor* is what was promised: after a power cut everything up to the last entry that was
//! answered as `synced`, or lay before a finished sync, flush or close, or was answered as
//! `interval` long enough ago; after the death of the process everything that was answered. A state
//! that is none of the prefixes from the floor on has lost a promise, has a hole, shows half a
//! batch, or has something risen from the dead; values are unique, so no two mistakes cancel.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Instant;
use atoll_lsm::Durability;

use crate::model::{Effect, Row, State, Window, compare};

/// Beyond the interval, how long a sync under [`Durability::Interval`] may take in a simulation
/// where a flush can be in the way.
const SYNC_SLACK: Duration = Duration::from_secs(5);

/// What was done to a database, and what was answered. A clone goes its own way.
#[derive(Clone, Default)]
pub struct Oracle {
    /// What is there for certain since the last check.
    base: State,
    entries: Vec<Entry>,
    /// Entries that survive a power cut.
    durable: usize,
    /// Entries that survive the death of the process.
    answered: usize,
    incarnations: u64,
    sync_interval: Duration,
    /// Rounds of the bulk keyspace.
    bulk: Rounds,
    /// Copies of the database that were begun since the last check.
    copies: Vec<Copy>,
    begun_copies: usize,
    /// The newest generation of the backup that is known.
    generations: u64,
}

/// Ingested rounds that were begun, and how many of them were answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rounds {
    /// The last one that was begun.
    pub begun: u64,
    /// The last one that was answered.
    pub answered: u64,
}

/// A checkpoint or a backup, and what it may hold.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Its number.
    pub number: usize,
    /// Whether it is a backup.
    pub is_backup: bool,
    /// The generation of an answered backup.
    pub generation: Option<u64>,
    /// Entries that were answered before it was begun.
    lowest: usize,
    /// Entries that were submitted when it was answered; `None` if it was not.
    highest: Option<usize>,
    /// Rounds likewise: the last that was answered before, the last that was begun when it was answered.
    rounds: Rounds,
}

impl Copy {
    /// Returns whether it was answered: then it is there.
    pub fn is_answered(&self) -> bool {
        self.highest.is_some()
    }
}

#[derive(Clone)]
struct Entry {
    effect: Rc<Effect>,
    /// What was durable when it was submitted: its frame is a proof of that.
    proves: usize,
    interval_since: Option<Instant>,
}

/// What a scan of everything returned.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Rows by keyspace.
    pub spaces: BTreeMap<String, Vec<Row>>,
    /// When it was read.
    pub window: Window,
    /// What the bulk keyspace holds.
    pub bulk: Bulk,
}

/// The content of the keyspace that is filled by ingests: for each of its keys the number of the round
/// and whether that was only a write before it.
#[derive(Clone, Debug, Default)]
pub struct Bulk(pub Vec<Option<(u64, bool)>>);

impl Bulk {
    /// Returns the round that is there: all of it, but for keys that were written before a later one.
    ///
    /// # Errors
    /// A part of a round is there, or one that was answered is not.
    pub fn round(&self, rounds: Rounds) -> Result<u64, String> {
        let ingested = |entry: &Option<(u64, bool)>| match entry {
            Some((_, true)) => None,
            Some((round, false)) => Some(*round),
            None => Some(0),
        };
        let mut all = self.0.iter().filter_map(ingested);
        // Where every key was written before a later round, which one is below cannot be seen.
        let round = all.next().unwrap_or(rounds.answered);
        let wrong = |what: &str| Err(format!("the bulk keyspace {what}, {rounds:?}: {:?}", self.0));
        if all.any(|other| other != round) {
            return wrong("holds a part of a round");
        }
        if !(rounds.answered..=rounds.begun).contains(&round) {
            return wrong("holds another round than may be");
        }
        let below = |entry: &Option<(u64, bool)>| matches!(entry, Some((of, true)) if *of <= round || *of > rounds.begun);
        if self.0.iter().any(below) {
            return wrong("shows what its round has replaced");
        }
        Ok(round)
    }
}

impl Oracle {
    /// Returns the oracle of an empty database.
    pub fn new(sync_interval: Duration) -> Oracle {
        Oracle { sync_interval, ..Oracle::default() }
    }

    /// Draws the number of an incarnation.
    pub fn draw_incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }

    /// Notes an entry at the moment in which it enters the engine's queue; returns its number.
    pub fn submit(&mut self, effect: Effect) -> usize {
        let effect = Rc::new(effect);
        self.entries.push(Entry { effect, proves: self.durable, interval_since: None });
        self.entries.len() - 1
    }

    /// Takes back the last entry: it was refused before it was queued.
    pub fn refuse(&mut self, number: usize) {
        if let Some(entry) = self.entries.get_mut(number) {
            entry.effect = Rc::new(Effect::Batch(Vec::new()));
        }
    }

    /// Notes that an entry was answered with success.
    pub fn answer(&mut self, number: usize, durability: Durability, now: Instant) {
        self.answered = self.answered.max(number + 1);
        match durability {
            Durability::Synced => self.durable = self.durable.max(number + 1),
            Durability::Interval => {
                if let Some(entry) = self.entries.get_mut(number) {
                    entry.interval_since = Some(now);
                }
            }
            Durability::Buffered => {}
        }
    }

    /// Returns how many entries were submitted.
    pub fn submitted(&self) -> usize {
        self.entries.len()
    }

    /// Returns how many entries are answered for: every reader sees them.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// Notes that the first `count` entries were made durable.
    pub fn synced(&mut self, count: usize) {
        self.answered = self.answered.max(count);
        self.durable = self.durable.max(count);
    }

    // ---- rounds ----

    /// Begins a round of the bulk keyspace; returns its number.
    pub fn begin_round(&mut self) -> u64 {
        self.bulk.begun += 1;
        self.bulk.begun
    }

    /// Notes that a round was ingested.
    pub fn end_round(&mut self, round: u64) {
        self.bulk.answered = self.bulk.answered.max(round);
    }

    /// Returns the rounds so far.
    pub fn rounds(&self) -> Rounds {
        self.bulk
    }

    // ---- copies ----

    /// Begins a copy; returns its number.
    pub fn begin_copy(&mut self, is_backup: bool) -> usize {
        self.begun_copies += 1;
        let (number, lowest, rounds) = (self.begun_copies, self.answered, self.bulk);
        let copy = Copy { number, is_backup, generation: None, lowest, highest: None, rounds };
        self.copies.push(copy);
        number
    }

    /// Notes that a copy was made.
    pub fn end_copy(&mut self, number: usize, generation: Option<u64>) {
        let (highest, begun) = (self.entries.len(), self.bulk.begun);
        if let Some(copy) = self.copies.iter_mut().find(|copy| copy.number == number) {
            (copy.highest, copy.generation) = (Some(highest), generation);
            copy.rounds.begun = begun;
        }
        self.note_generation(generation.unwrap_or(0));
    }

    /// Notes that a generation of the backup is there.
    pub fn note_generation(&mut self, generation: u64) {
        self.generations = self.generations.max(generation);
    }

    /// Returns the newest generation that is known.
    pub fn generations(&self) -> u64 {
        self.generations
    }

    /// Forgets a copy that was refused.
    pub fn refuse_copy(&mut self, number: usize) {
        self.copies.retain(|copy| copy.number != number);
    }

    /// Returns the copies begun since the last check.
    pub fn copies(&self) -> &[Copy] {
        &self.copies
    }

    /// Returns the oracle of a disk on which only the database itself is looked at.
    pub fn without_copies(&self) -> Oracle {
        Oracle { copies: Vec::new(), ..self.clone() }
    }

    /// Checks that `seen` is what a copy may hold.
    ///
    /// # Errors
    /// It is not; the text says how.
    pub fn allows(&self, copy: &Copy, seen: &Seen) -> Result<(), String> {
        let highest = copy.highest.unwrap_or(self.entries.len());
        self.find(seen, copy.lowest, highest)?;
        let begun = if copy.highest.is_some() { copy.rounds.begun } else { self.bulk.begun };
        seen.bulk.round(Rounds { begun, ..copy.rounds }).map(|_| ())
    }

    /// Returns how many entries must have survived, after a power cut or the death of the process.
    pub fn floor(&self, power_cut: bool, now: Instant) -> usize {
        if !power_cut {
            return self.answered;
        }
        let patience = self.sync_interval + SYNC_SLACK;
        let old = |e: &Entry| e.interval_since.is_some_and(|t| t.after(patience) <= now);
        let by_interval = self.entries.iter().rposition(old).map_or(0, |at| at + 1);
        self.durable.max(by_interval)
    }

    /// Returns the floor that holds although a stored byte rotted, given that `survived` entries
    /// were there before: what a surviving frame proves to have been durable must be there or
    /// refused, but of the last frames nobody knows that they ever were.
    pub fn floor_despite_rot(&self, survived: usize) -> usize {
        self.entries[..survived].iter().map(|e| e.proves).max().unwrap_or(0)
    }

    /// Returns the number of a prefix, from `floor` on and up to `ceiling`, that `seen` shows.
    ///
    /// # Errors
    /// There is none; the text says what is nearest and how it differs.
    pub fn find(&self, seen: &Seen, floor: usize, ceiling: usize) -> Result<usize, String> {
        let mut state = self.base.clone();
        let mut reasons = Vec::new();
        for prefix in 0..=self.entries.len() {
            if prefix > 0 {
                state.apply(&self.entries[prefix - 1].effect);
            }
            match differs(&state, seen) {
                None if (floor..=ceiling).contains(&prefix) => return Ok(prefix),
                None => reasons.push(format!("it equals prefix {prefix}, outside of the range")),
                Some(why) if prefix == floor || prefix == ceiling => {
                    reasons.push(format!("against prefix {prefix}: {why}"));
                }
                Some(_) => {}
            }
        }
        Err(format!(
            "the content is no prefix from {floor} to {ceiling} of the {} entries submitted since \
             the last check ({} durable, {} answered): {}",
            self.entries.len(),
            self.durable,
            self.answered,
            reasons.join("; ")
        ))
    }

    /// Checks that one of the prefixes from `lowest` to `highest` shows no difference.
    ///
    /// # Errors
    /// All do; the text is the last one's difference.
    pub fn explain(
        &self,
        lowest: usize,
        highest: usize,
        difference: impl Fn(&State) -> Option<String>,
    ) -> Result<(), String> {
        let mut state = self.base.clone();
        let mut last = String::new();
        for prefix in 0..=highest.min(self.entries.len()) {
            if prefix > 0 {
                state.apply(&self.entries[prefix - 1].effect);
            }
            if prefix >= lowest {
                match difference(&state) {
                    None => return Ok(()),
                    Some(why) => last = why,
                }
            }
        }
        Err(format!("no prefix from {lowest} to {highest} explains it; the last one: {last}"))
    }

    /// Forgets the entries behind `prefix`, which are lost, and makes the rest the base. `round` is there.
    pub fn settle(&mut self, prefix: usize, round: u64) {
        self.bulk.answered = round;
        self.copies.clear();
        for entry in self.entries.drain(..).take(prefix) {
            self.base.apply(&entry.effect);
        }
        (self.durable, self.answered) = (0, 0);
    }

    /// Returns the state since the last check.
    pub fn base(&self) -> &State {
        &self.base
    }
}

/// Returns the first difference.
fn differs(state: &State, seen: &Seen) -> Option<String> {
    if !state.spaces.keys().eq(seen.spaces.keys()) {
        let (expected, found) = (state.spaces.keys(), seen.spaces.keys());
        return Some(format!(
            "the keyspaces are {:?}, not {:?}",
            found.collect::<Vec<_>>(),
            expected.collect::<Vec<_>>()
        ));
    }
    seen.spaces.iter().find_map(|(name, rows)| {
        let why = compare(state.spaces.get(name)?.keys.iter(), rows, seen.window, false)?;
        Some(format!("in '{name}' {why}"))
    })
}
