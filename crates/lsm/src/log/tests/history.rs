//! A lane driven step by step on the simulator, beside a history that knows what it must hold.
//!
//! The history keeps what every prefix of the steps looks like. After a crash the lane must look
//! like one of these prefixes, none shorter than what was synced (or written, if only the process
//! died). Equality with a prefix is all there is to check: it says that nothing synced is missing,
//! that there is no hole, and that nothing overwritten or released comes back.

use std::collections::BTreeMap;
use std::path::Path;

use atoll_env::Env;
use atoll_env::random::Prng;
use parking_lot::Mutex;

use super::support::{CAPACITY, id, options};
use crate::log::*;

/// Where the lane is.
pub(super) const DIR: &str = "/store/log";

/// What a group looks like. Payloads follow from the id, so they are not kept.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    first: u64,
    next: u64,
    state: GroupState,
    /// Term, position and payload length by index.
    entries: BTreeMap<u64, (u64, u64, usize)>,
}

type Groups = BTreeMap<u64, Expected>;

/// What was done to a lane.
#[derive(Default)]
struct History {
    /// What the lane looks like after each change.
    prefixes: Vec<Groups>,
    /// Changes handed to the kernel.
    written: usize,
    /// Changes that are durable.
    synced: usize,
    /// Highest term a group was given; outlives released entries and lost ones.
    terms: BTreeMap<u64, u64>,
}

/// A thing to do to a lane.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Append an entry in this term, so many below the next index, with so long a payload.
    Append {
        group: u64,
        back: u64,
        term: u64,
        len: usize,
    },
    /// Record term, vote and commit index.
    State {
        group: u64,
        term: u64,
        commit: u64,
    },
    /// Release all entries but the last so many.
    Release {
        group: u64,
        keep: u64,
    },
    Write,
    Sync,
    /// Copy forward so many bytes.
    Copy(u64),
    Reclaim,
    Prepare,
    /// Close and open again.
    Reopen,
}

/// A lane's history, and the way to go on with it. Outlives crashes.
pub(super) struct Driver {
    history: Mutex<History>,
}

/// How the lane was interrupted: what may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// What was not synced.
    Unsynced,
    /// What was not handed to the kernel.
    Unwritten,
}

impl Driver {
    pub fn new() -> Driver {
        let history = History { prefixes: vec![Groups::new()], ..History::default() };
        Driver { history: Mutex::new(history) }
    }

    /// Opens the lane and compares it with the history, which then goes on from what was found.
    pub async fn open(&self, env: &Env, lost: Lost) -> Result<Log> {
        make_store(env).await;
        let mut recovery = Log::open(env, Path::new(DIR), options(), 0).await?;
        let mut found = Groups::new();
        for g in recovery.groups() {
            let entries = BTreeMap::new();
            let expected = Expected { first: g.first, next: g.next, state: g.state, entries };
            found.insert(g.group, expected);
        }
        let mut before = 0;
        while let Some(entry) = recovery.next_entry().await? {
            assert!(entry.position > before, "replay is in the order of the first append");
            before = entry.position;
            assert_eq!(entry.payload, payload(entry.id, entry.payload.len()), "{}", entry.id);
            let group = found.get_mut(&entry.id.group).expect("groups come first");
            let last = group.entries.last_key_value().map(|(&last, _)| last);
            assert!(last.is_none_or(|last| last < entry.id.index), "{} in order", entry.id);
            let value = (entry.id.term, entry.position, entry.payload.len());
            group.entries.insert(entry.id.index, value);
        }
        let log = recovery.finish().await?;
        for (&group, expected) in found.iter().filter(|(g, _)| (options().indexed)(**g)) {
            let read = log.entries(group, expected.first..expected.next).await?;
            let read = read.iter().map(|e| (e.id.index, (e.id.term, e.position, e.payload.len())));
            assert_eq!(read.collect::<BTreeMap<_, _>>(), expected.entries, "group {group}");
        }
        self.accept(&found, lost);
        Ok(log)
    }

    fn accept(&self, found: &Groups, lost: Lost) {
        let mut history = self.history.lock();
        let least = if lost == Lost::Unsynced { history.synced } else { history.written };
        // A group of which nothing is left in the lane looks like one that never was.
        let quiet = |groups: &Groups| {
            let mut groups = groups.clone();
            groups.retain(|_, g| g.next > 1 || g.state != GroupState::default());
            groups
        };
        let found = quiet(found);
        let matching =
            (0..history.prefixes.len()).rev().find(|&k| quiet(&history.prefixes[k]) == found);
        match matching {
            Some(k) if k >= least => {
                history.prefixes.truncate(k + 1);
                (history.written, history.synced) = (k, k);
            }
            Some(k) => panic!("the lane is at change {k}, but {least} are acknowledged"),
            None => panic!(
                "the lane is no prefix of its history: found {found:?}, acknowledged {:?}, last \
                 {:?}",
                history.prefixes[least],
                history.prefixes.last()
            ),
        }
    }

    /// Does the steps. An error leaves the history as it is.
    pub async fn run(&self, env: &Env, mut log: Log, steps: &[Step]) -> Result<Log> {
        for &step in steps {
            match step {
                Step::Append { group, back, term, len } => {
                    self.append(&mut log, group, back, term, len)?
                }
                Step::State { group, term, commit } => {
                    let state = GroupState { term, vote: term % 3, commit };
                    log.set_state(group, state)?;
                    self.change(group, |g| g.state = state);
                }
                Step::Release { group, keep } => {
                    let next = self.expected(group).next;
                    let first = next.saturating_sub(keep).max(1);
                    log.release(group, first)?;
                    self.change(group, |g| {
                        g.first = g.first.max(first);
                        g.entries = g.entries.split_off(&g.first);
                    });
                }
                Step::Write => {
                    log.write(FRAME_WRITE).await?;
                    let mut history = self.history.lock();
                    history.written = history.prefixes.len() - 1;
                }
                Step::Sync => {
                    log.sync().await?;
                    self.all_synced();
                }
                Step::Copy(limit) => _ = log.copy_forward(limit).await?,
                Step::Reclaim => {
                    if log.reclaim().await? > 0 {
                        self.all_synced();
                    }
                }
                Step::Prepare => log.prepare_next().await?,
                Step::Reopen => {
                    drop(log);
                    log = self.open(env, Lost::Unwritten).await?;
                }
            }
        }
        Ok(log)
    }

    fn append(&self, log: &mut Log, group: u64, back: u64, term: u64, len: usize) -> Result<()> {
        let expected = self.expected(group);
        let index = expected.next.saturating_sub(back).max(expected.first);
        let before = expected.entries.get(&(index - 1)).map(|&(term, ..)| term);
        let highest = *self.history.lock().terms.entry(group).or_default();
        let term = term.max(before.unwrap_or(highest));
        self.history.lock().terms.insert(group, term.max(highest));
        let id = id(group, index, term);
        let bytes = payload(id, len);
        let (a, b) = bytes.split_at(len / 3);
        let position = log.append(id, &[a, b])?;
        self.change(group, |g| {
            g.entries.split_off(&index);
            g.entries.insert(index, (id.term, position, len));
            g.next = index + 1;
        });
        Ok(())
    }

    fn all_synced(&self) {
        let mut history = self.history.lock();
        (history.written, history.synced) =
            (history.prefixes.len() - 1, history.prefixes.len() - 1);
    }

    fn expected(&self, group: u64) -> Expected {
        let history = self.history.lock();
        let last = history.prefixes.last().expect("the empty prefix is there");
        last.get(&group).cloned().unwrap_or(Expected {
            first: 1,
            next: 1,
            state: GroupState::default(),
            entries: BTreeMap::new(),
        })
    }

    fn change(&self, group: u64, change: impl FnOnce(&mut Expected)) {
        let mut expected = self.expected(group);
        change(&mut expected);
        let mut history = self.history.lock();
        let mut groups = history.prefixes.last().expect("the empty prefix is there").clone();
        groups.insert(group, expected);
        history.prefixes.push(groups);
    }
}

/// Makes the directory above the lane, as its owner does.
pub(super) async fn make_store(env: &Env) {
    // Fails under an injected fault; the lane's own calls show that soon enough.
    if env.disk.create_dir(Path::new("/store")).await.is_ok() {
        _ = env.disk.sync_dir(FRAME_SYNC, Path::new("/")).await;
    }
}

/// The payload of an entry: its own name over and over.
fn payload(id: EntryId, len: usize) -> Vec<u8> {
    id.to_string().bytes().chain([b'/']).cycle().take(len).collect()
}

/// A random step that a careful owner could take.
pub(super) fn random_step(prng: &mut Prng) -> Step {
    let group = [0, 5, 10, 11][prng.index(4)];
    match prng.below(100) {
        0..45 => {
            let back = if group == 0 || prng.chance(0.8) { 0 } else { prng.range(1..4) };
            let len = match prng.below(10) {
                0 => prng.below(3 * CAPACITY),
                1..4 => prng.below(4000),
                _ => prng.below(300),
            };
            Step::Append { group, back, term: prng.range(1..9), len: len as usize }
        }
        45..52 => Step::State { group, term: prng.range(1..9), commit: prng.below(50) },
        52..60 => Step::Release { group, keep: prng.below(4) },
        60..70 => Step::Write,
        70..82 => Step::Sync,
        82..88 => Step::Copy(prng.range(1..20_000)),
        88..94 => Step::Reclaim,
        94..97 => Step::Prepare,
        _ => Step::Reopen,
    }
}
