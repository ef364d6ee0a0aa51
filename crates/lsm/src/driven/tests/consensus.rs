//! The seam between log and tree, driven as consensus drives it.
//!
//! Three groups share the lane. Their entries are appended, overwritten by a later term, committed
//! later, applied later still, flushed, moved forward and let go - and the power is cut at every
//! single disk operation. Opened again, the log holds for each group what was synced, the tree holds
//! exactly the entries that it says are applied, and once the owner has applied what is committed, it
//! holds those and no others: never an entry that was not committed, never the overwritten one.

use std::sync::Arc;

use atoll_env::Env;
use atoll_env::sim::{CrashTiming, Node, Outcome, Sim};
use parking_lot::Mutex;

use super::{dir, options};
use crate::driven::{
    Direction, Driver, EntryId, GroupState, OpenOptions, Tree, Writes, open as open_store,
};
use crate::error::Result;
use crate::options::Options;
use crate::verify::verify_async;

const GROUPS: [u64; 3] = [10, 11, 12];
/// What the owner puts in front of the writes in an entry's payload.
const HEADER: &[u8] = b"entry:";

async fn open(env: &Env) -> Result<(Driver, Tree)> {
    let options = Options { memtable_size: 8 << 10, sealed_memtables_max: 1, ..options(env) };
    open_store(dir(), OpenOptions { options }).await
}

/// What the owner believes of a group.
#[derive(Clone, Debug, Default)]
struct Believed {
    /// Term and lane position of each entry, by index - 1.
    entries: Vec<(u64, u64)>,
    /// Every state that was set, and how many of them a completed sync made durable.
    states: Vec<GroupState>,
    durable_states: usize,
    /// Commit index and last index that a completed sync made durable.
    durable_commit: u64,
    durable_last: u64,
    applied: u64,
}

impl Believed {
    /// The state that was set last.
    fn state(&self) -> GroupState {
        self.states.last().copied().unwrap_or_default()
    }

    /// The states that may be there after a power cut: the last durable one, and later ones.
    fn possible_states(&self) -> &[GroupState] {
        &self.states[self.durable_states.saturating_sub(1)..]
    }
}

/// The owner's view of all groups, where the test can see it when the power is gone.
#[derive(Clone, Debug, Default)]
struct Owner([Believed; 3]);

type Shared = Arc<Mutex<Owner>>;

fn key(group: u64, index: u64) -> String {
    format!("{group}/{index:04}")
}

/// An entry's content: a version and a plain record that name it, and filler so that segments and
/// memtables fill up.
fn writes(group: u64, index: u64, term: u64) -> Writes {
    let mut writes = Writes::new();
    writes.insert_version(key(group, index).as_bytes(), index, &[b"term ", &[term as u8]]);
    writes.insert(format!("last {group}").as_bytes(), &[&index.to_le_bytes()]);
    writes.insert(format!("filler {group}").as_bytes(), &[&[7; 700]]);
    writes
}

impl Owner {
    fn append(&mut self, driver: &mut Driver, at: usize, index: u64, term: u64) -> Result<()> {
        let group = GROUPS[at];
        let writes = writes(group, index, term);
        let id = EntryId { group, index, term };
        let position = driver.append(id, &[HEADER, writes.bytes()])?;
        let known = &mut self.0[at];
        known.entries.truncate(index as usize - 1);
        known.entries.push((term, position));
        // What is durable of the old suffix no longer counts once it is overwritten.
        known.durable_last = known.durable_last.min(index - 1);
        Ok(())
    }

    fn commit(&mut self, driver: &mut Driver, at: usize, index: u64) -> Result<()> {
        let term = self.0[at].entries.last().map_or(0, |(term, _)| *term);
        self.set_state(driver, at, GroupState { commit: index, term, ..self.0[at].state() })
    }

    /// Votes in a term of which there is no entry yet.
    fn vote(&mut self, driver: &mut Driver, at: usize, term: u64) -> Result<()> {
        let vote = 1 + term % 5;
        self.set_state(driver, at, GroupState { term, vote, ..self.0[at].state() })
    }

    fn set_state(&mut self, driver: &mut Driver, at: usize, state: GroupState) -> Result<()> {
        self.0[at].states.push(state);
        driver.set_state(GROUPS[at], state)
    }

    fn synced(&mut self) {
        for known in &mut self.0 {
            known.durable_commit = known.state().commit;
            known.durable_states = known.states.len();
            known.durable_last = known.entries.len() as u64;
        }
    }

    async fn apply(&mut self, driver: &mut Driver, at: usize) -> Result<()> {
        let known = &mut self.0[at];
        while known.applied < known.durable_commit {
            let (index, (term, position)) =
                (known.applied + 1, known.entries[known.applied as usize]);
            let writes = writes(GROUPS[at], index, term);
            driver.apply(GROUPS[at], index, position, writes.bytes()).await?;
            known.applied = index;
        }
        Ok(())
    }
}

/// The script. It records in `shared` what the owner knows at every moment.
async fn script(env: &Env, shared: &Shared) -> Result<()> {
    let (mut driver, tree) = open(env).await?;
    let mut owner = Owner::default();
    let [a, b, c] = [0, 1, 2];
    for round in 0..16 {
        let base = round * 4;
        driver.reserve(8 << 10, &[1000; 6]).await?;
        // Term 1 or what follows: two entries that will stay, one that will not.
        for index in base + 1..=base + 3 {
            owner.append(&mut driver, a, index, 2 * round + 1)?;
        }
        owner.append(&mut driver, b, round + 1, round + 1)?;
        if round == 0 {
            owner.append(&mut driver, c, 1, 1)?;
            owner.append(&mut driver, c, 2, 1)?;
            owner.commit(&mut driver, c, 1)?;
        }
        owner.commit(&mut driver, a, base + 2)?;
        *shared.lock() = owner.clone();
        driver.sync().await?;
        owner.synced();
        *shared.lock() = owner.clone();
        owner.apply(&mut driver, a).await?;
        // A new leader overwrites the suffix; the old entry 3 was never committed.
        driver.reserve(4 << 10, &[1000; 4]).await?;
        owner.vote(&mut driver, a, 2 * round + 2)?;
        owner.append(&mut driver, a, base + 3, 2 * round + 2)?;
        owner.append(&mut driver, a, base + 4, 2 * round + 2)?;
        *shared.lock() = owner.clone();
        driver.write().await?;
        owner.commit(&mut driver, a, base + 4)?;
        // Group b commits rarely and lags in applying: its entries stay in the log meanwhile.
        if round % 4 == 3 {
            owner.commit(&mut driver, b, round + 1)?;
        }
        *shared.lock() = owner.clone();
        driver.sync().await?;
        owner.synced();
        *shared.lock() = owner.clone();
        owner.apply(&mut driver, a).await?;
        if round % 8 == 7 {
            owner.apply(&mut driver, b).await?;
            owner.apply(&mut driver, c).await?;
        }
        *shared.lock() = owner.clone();
        driver.chores().await?;
        if round % 3 == 2 {
            driver.attend(tree.flush()).await?;
            driver.chores().await?;
        }
        let lane = driver.log_stats();
        assert!(lane.segments <= 9, "round {round}: {lane:?}");
    }
    assert!(driver.log_stats().copied_bytes > 0, "group c's entries were moved forward");
    driver.close().await
}

/// Holds what the tree has of a group's entries against `1..=last`.
async fn holds(tree: &Tree, group: u64, last: u64, term_of: impl Fn(u64) -> u64) {
    for direction in [Direction::Forward, Direction::Backward] {
        let (start, end) = (format!("{group}/"), format!("{group}0"));
        let mut cursor = tree.scan_versions(start.as_bytes(), end.as_bytes(), u64::MAX, direction);
        let mut found = Vec::new();
        while let Some(row) = cursor.next().await.expect("reads") {
            let value = row.value().await.expect("reads").expect("a value");
            let index = row.stamp();
            assert_eq!(row.key(), key(group, index).as_bytes());
            assert_eq!(*value, [b"term ".as_slice(), &[term_of(index) as u8]].concat()[..]);
            found.push(index);
        }
        if direction == Direction::Backward {
            found.reverse();
        }
        assert_eq!(found, (1..=last).collect::<Vec<_>>(), "group {group}");
    }
    let newest = tree.get(format!("last {group}").as_bytes()).await.expect("reads");
    let newest = newest.map_or(0, |value| u64::from_le_bytes(value[..].try_into().expect("8")));
    assert_eq!(newest, last, "group {group}");
}

/// Opens after a crash and holds what is there against what the owner knew.
async fn check(env: &Env, known: &Owner) {
    // Before there is anything to know, the cut may have come in the middle of making the store.
    if known.0[0].durable_last > 0 {
        let report = verify_async(env, &dir(), &mut |_| {}).await.expect("there is a store");
        assert!(report.is_sound(), "{:?}", report.problems);
    }
    for round in 0..2 {
        let (mut driver, tree) = open(env).await.expect("a power cut leaves a store that opens");
        for (group, known) in GROUPS.into_iter().zip(&known.0) {
            let applied = driver.applied(group);
            let Some(summary) = driver.group(group) else {
                assert_eq!((known.durable_last, applied), (0, 0), "group {group} is gone");
                continue;
            };
            let commit = summary.state.commit;
            let applied_max = if round == 0 { known.applied } else { commit };
            let nothing = known.durable_states == 0 && summary.state == GroupState::default();
            assert!(
                (nothing || known.possible_states().contains(&summary.state))
                    && applied <= applied_max
                    && summary.first <= applied + 1
                    && summary.next > known.durable_last,
                "group {group}: {summary:?}, {applied} are applied, known is {known:?}"
            );
            // Of what is synced and not overwritten the term is certain.
            let term_of = |index: u64| known.entries[index as usize - 1].0;
            holds(&tree, group, applied, term_of).await;
            assert_eq!(
                driver.term(group, applied),
                (applied > 0).then(|| term_of(applied)),
                "group {group}: the term of what was applied last"
            );
            let entries = driver.entries(group, applied + 1..summary.next).await.expect("reads");
            assert_eq!(entries.len() as u64, summary.next - applied - 1);
            for (entry, index) in entries.iter().zip(applied + 1..) {
                let EntryId { index: found, term, .. } = entry.id;
                assert_eq!((found, driver.term(group, index)), (index, Some(term)));
                let writes = writes(group, index, term);
                assert_eq!(entry.payload, [HEADER, writes.bytes()].concat());
                assert!(index > known.durable_last || term == term_of(index), "{entry:?}");
                if index <= commit {
                    let payload = entry.payload.strip_prefix(HEADER).expect("as above");
                    driver.apply(group, index, entry.position, payload).await.expect("applies");
                }
            }
            holds(&tree, group, commit, term_of).await;
        }
        if round == 0 {
            driver.close().await.expect("closes");
        }
    }
}

fn run(seed: u64, crash_at: Option<u64>) -> (bool, Node, Sim, Owner) {
    let sim = Sim::new(seed);
    let node = sim.node("n");
    if let Some(n) = crash_at {
        node.disk().crash_at(n, CrashTiming::Any);
    }
    let shared = Shared::default();
    let env = node.env();
    let done = match sim.block_on(&node, script(&env, &shared)) {
        Outcome::Done(result) => {
            result.expect("the script meets no fault but the power cut");
            true
        }
        Outcome::Crashed => false,
    };
    // Another seed may need fewer operations than the crash was planned for.
    node.disk().cancel_crash();
    let known = shared.lock().clone();
    (done, node, sim, known)
}

#[test]
fn a_power_cut_anywhere_leaves_committed_entries_and_no_others() {
    let (done, node, ..) = run(1, None);
    assert!(done);
    let points = node.disk().mutations();
    assert!(points > 200, "{points} operations are too few to prove anything");
    for n in 0..points {
        let (done, node, sim, known) = run(n % 3, Some(n));
        if !done {
            node.restart();
        }
        let env = node.env();
        assert!(matches!(sim.block_on(&node, check(&env, &known)), Outcome::Done(())), "at {n}");
    }
}
