//! The seam between log and tree, driven as consensus will drive it.
//!
//! Two consensus groups share the lane with the database's own group. Their entries are appended,
//! overwritten by a later term, committed later, applied later still, flushed, copied forward and
//! let go - and the power is cut at every single disk operation. What is found afterwards must be,
//! for each group, exactly the entries up to some commit index between the last one known durable
//! and the last one written: never an entry that was not committed, never the overwritten one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use atoll_env::Env;
use atoll_env::sim::{CrashTiming, Node, Outcome, Sim};

use parking_lot::Mutex;

use crate::batch::Batch;
use crate::commit::{self, Step, Work};
use crate::database::Database;
use crate::error::Result;
use crate::keyspace::user_key;
use crate::log::{EntryId, FRAME_WRITE, GroupState};
use crate::options::Options;
use crate::store::{Stamp, Store, Writer};

/// The groups, and the raw keyspace that their entries write.
const GROUPS: [u64; 2] = [10, 11];
const KEYSPACE: u32 = 1 << 20;

fn options(env: Env) -> Options {
    Options {
        memory: 4 << 20,
        memtable_size: 16 << 10,
        log_segment_size: 16 << 10,
        ..Options::new(env)
    }
}

async fn open(env: &Env) -> Result<Database> {
    Database::builder(PathBuf::from("/data/db")).options(options(env.clone())).open_async().await
}

/// A consensus client: what it believes of each group.
#[derive(Clone, Debug, Default)]
struct Client {
    /// Term of each entry, by index - 1.
    terms: Vec<u64>,
    /// Lane position of each entry, by index - 1.
    positions: Vec<u64>,
    commit: u64,
    /// Last commit index that a completed sync made durable.
    durable_commit: u64,
    applied: u64,
}

/// The clients of both groups, and the steps they take.
#[derive(Clone, Debug, Default)]
struct Clients(BTreeMap<u64, Client>);

/// An entry's content: its own key, and filler so that segments and memtables fill up.
fn payload(group: u64, index: u64, term: u64) -> Vec<u8> {
    let mut batch = Batch::new();
    let key = format!("{group}/{index:04}");
    batch.insert_raw(KEYSPACE, key.as_bytes(), format!("term {term}").as_bytes(), None);
    batch.insert_raw(KEYSPACE, format!("filler {group}").as_bytes(), &[7; 700], None);
    batch.into_payload().expect("short keys").bytes
}

impl Clients {
    fn of(&mut self, group: u64) -> &mut Client {
        self.0.entry(group).or_default()
    }

    fn append(&mut self, w: &mut Writer, group: u64, index: u64, term: u64) -> Result<()> {
        let position =
            w.log.append(EntryId { group, index, term }, &[&payload(group, index, term)])?;
        let client = self.of(group);
        client.terms.truncate(index as usize - 1);
        client.positions.truncate(index as usize - 1);
        client.terms.push(term);
        client.positions.push(position);
        Ok(())
    }

    fn commit(&mut self, w: &mut Writer, group: u64, index: u64) -> Result<()> {
        let client = self.of(group);
        client.commit = index;
        let term = client.terms.last().copied().unwrap_or(0);
        w.log.set_state(group, GroupState { term, vote: 3, commit: index })
    }

    async fn sync(&mut self, w: &mut Writer) -> Result<()> {
        w.log.sync().await?;
        self.0.values_mut().for_each(|c| c.durable_commit = c.commit);
        Ok(())
    }

    /// Applies what is committed and not applied yet. Its commit is durable, so that the tree never
    /// holds what the log does not know to be committed.
    async fn apply(&mut self, store: &Store, w: &mut Writer, group: u64) -> Result<()> {
        let client = self.of(group);
        while client.applied < client.durable_commit {
            let at = client.applied as usize;
            let (index, term) = (client.applied + 1, client.terms[at]);
            let stamp = Stamp { group, index, position: client.positions[at] };
            store.apply(w, stamp, &payload(group, index, term)).await?;
            client.applied = index;
        }
        Ok(())
    }
}

/// What is known, where the test can see it when the power is gone.
type Shared = Arc<Mutex<Clients>>;

/// The script. It records in `clients` what it knows at every moment.
async fn script(env: &Env, clients: &Shared) -> Result<()> {
    let db = open(env).await?;
    let store: &Arc<Store> = &db.inner().store;
    for round in 0..6 {
        let shared = clients.clone();
        let step: Step = Box::new(move |s, w| Box::pin(lead(s, w, round, shared)));
        commit::submit(store, Work::Drive(Mutex::new(Some(step)))).await?;
        db.flush_async().await?;
        // What idle groups need moves to the front, so that segments can be recycled.
        let step: Step = Box::new(|_, w| {
            Box::pin(async move {
                w.log.copy_forward(1 << 20).await?;
                w.log.sync().await?;
                w.log.reclaim().await.map(|_| ())
            })
        });
        commit::submit(store, Work::Drive(Mutex::new(Some(step)))).await?;
    }
    db.close_async().await
}

/// One round of the script, by whoever leads the lane.
async fn lead(store: &Store, w: &mut Writer, round: u64, clients: Shared) -> Result<()> {
    let [a, b] = GROUPS;
    let mut known = clients.lock().clone();
    let base = round * 4;
    // Term 1 or what follows: two entries that will stay, one that will not.
    for index in base + 1..=base + 3 {
        known.append(w, a, index, 2 * round + 1)?;
    }
    known.append(w, b, round + 1, round + 1)?;
    known.commit(w, a, base + 2)?;
    *clients.lock() = known.clone();
    known.sync(w).await?;
    *clients.lock() = known.clone();
    known.apply(store, w, a).await?;
    // A new leader overwrites the suffix; the old entry 3 was never committed.
    known.append(w, a, base + 3, 2 * round + 2)?;
    known.append(w, a, base + 4, 2 * round + 2)?;
    w.log.write(FRAME_WRITE).await?;
    known.commit(w, a, base + 4)?;
    *clients.lock() = known.clone();
    known.sync(w).await?;
    *clients.lock() = known.clone();
    // Group b commits rarely and lags in applying: its entries stay in the log meanwhile.
    if round % 3 == 2 {
        known.commit(w, b, round + 1)?;
        *clients.lock() = known.clone();
        known.sync(w).await?;
    }
    known.apply(store, w, a).await?;
    if round == 5 {
        known.apply(store, w, b).await?;
    }
    *clients.lock() = known;
    Ok(())
}

/// Opens after a crash and holds what is there against what the clients know.
async fn check(env: &Env, clients: &Clients) {
    let db = open(env).await.expect("a power cut leaves a database that opens");
    let inner = db.inner();
    let (view, seqno) = inner.store.pin_owned();
    for (group, client) in &clients.0 {
        let mut found = 0;
        for (at, term) in client.terms.iter().enumerate() {
            let key = user_key(KEYSPACE, format!("{group}/{:04}", at + 1).as_bytes());
            let hit = view.get(&inner.store.tables, &key, seqno, 0).await.expect("reads");
            let Some(hit) = hit else { break };
            let expected = format!("term {term}");
            assert_eq!(*hit.value, *expected.as_bytes(), "group {group} entry {}", at + 1);
            found += 1;
        }
        let next = user_key(KEYSPACE, format!("{group}/{:04}", found + 1).as_bytes());
        let beyond = view.get(&inner.store.tables, &next, seqno, 0).await.expect("reads");
        assert!(beyond.is_none(), "group {group}: an entry behind the last one");
        let (durable, last) = (client.durable_commit, client.commit);
        assert!(
            (durable..=last).contains(&found),
            "group {group}: {found} entries, committed are {durable} to {last}: {client:?}"
        );
    }
    db.close_async().await.expect("closes");
}

fn run(seed: u64, crash_at: Option<u64>) -> (bool, Node, Sim, Clients) {
    let sim = Sim::new(seed);
    let node = sim.node("n");
    if let Some(n) = crash_at {
        node.disk().crash_at(n, CrashTiming::Any);
    }
    let clients = Shared::default();
    let env = node.env();
    let outcome = sim.block_on(&node, script(&env, &clients));
    let done = match outcome {
        Outcome::Done(result) => {
            result.expect("the script meets no fault but the power cut");
            true
        }
        Outcome::Crashed => false,
    };
    // Another seed may need fewer operations than the crash was planned for.
    node.disk().cancel_crash();
    let known = clients.lock().clone();
    (done, node, sim, known)
}

#[test]
fn a_power_cut_anywhere_leaves_committed_entries_and_no_others() {
    let (done, node, ..) = run(1, None);
    assert!(done);
    let points = node.disk().mutations();
    assert!(points > 100, "{points} operations are too few to prove anything");
    for n in 0..points {
        let (done, node, sim, clients) = run(n % 3, Some(n));
        if !done {
            node.restart();
        }
        let env = node.env();
        assert!(matches!(sim.block_on(&node, check(&env, &clients)), Outcome::Done(())), "at {n}");
    }
}
