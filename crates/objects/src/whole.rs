//! Whole databases: counting, flushing, exchanging, walking.

use std::ops::ControlFlow;
use std::time::Duration;

use atoll_env::sync::oneshot;
use atoll_kv::Core;
use atoll_mvcc::Value;
use atoll_mvcc::keys::{Placement, Range, RoutingKey, SLOTTED};
use atoll_mvcc::request::{Isolation, Key, Span};
use atoll_shard::leader::local_key;
use atoll_txn::{Error, ScanOptions, Unresolved};

use crate::databases::{self, DATABASES};
use crate::distributed::keyspaces;
use crate::program::ObjectProgram;
use crate::txn_tx::NodeTxn;

/// Between two looks at a transaction that is committing.
const A_MOMENT: Duration = Duration::from_millis(1);
/// Keys of one page of a walk.
const PAGE: usize = 512;
/// The keyspace of what the system keeps in order.
const SYSTEM: u32 = 1;

/// Keys of each database, and how many of them have a deadline.
pub type Counts = [(u64, u64); DATABASES];

/// Counts the keys of all databases: what is due is reaped first, then the shards are asked for
/// their counts. The cost does not depend on the number of keys.
///
/// # Errors
/// Those of a transaction.
pub async fn counts(core: &Core<ObjectProgram>) -> Result<Counts, Error> {
    let mut sums = [(0i64, 0i64); DATABASES];
    let mut receivers = Vec::new();
    for index in 0..core.cores() {
        let (sender, receiver) = oneshot::channel();
        core.on_core(index, move |core| {
            let core = core.clone();
            let task_core = core.clone();
            core.env().tasks.spawn_local(
                "count",
                Box::pin(async move {
                    task_core.reap_due().await;
                    let counted = match settle_intents(&task_core).await {
                        Ok(()) => shard_counts(&task_core).await,
                        Err(error) => Err(error),
                    };
                    let _ = sender.send(counted);
                }),
            );
        });
        receivers.push(receiver);
    }
    core.flush();
    for receiver in receivers {
        let counted = receiver.await.unwrap_or_else(|_| Ok(Default::default()))?;
        for (sum, (keys, expiring)) in sums.iter_mut().zip(counted) {
            sum.0 += keys;
            sum.1 += expiring;
        }
    }
    Ok(sums.map(|(keys, expiring)| (keys.max(0) as u64, expiring.max(0) as u64)))
}

/// Turns intents of transactions that are committed into versions, on this core's shards: such a
/// transaction may be acknowledged, and a key counts from its version on.
async fn settle_intents(core: &Core<ObjectProgram>) -> Result<(), Error> {
    // Whatever was acknowledged before now lies below.
    let now = core.read_point();
    loop {
        let mut intents = Vec::new();
        core.each_leader(|leader| intents.extend(leader.intents_below(now, PAGE)));
        if intents.is_empty() {
            return Ok(());
        }
        match core.coordinator().resolve(&intents).await {
            Err(Unresolved::Unavailable(why)) => return Err(Error::Unavailable(why)),
            Ok(_) => {}
            // It lives on, and is looked at again.
            Err(Unresolved::Alive(_)) => core.env().clock.sleep(A_MOMENT).await,
        }
    }
}

/// Returns the counts of this core's shards.
///
/// # Errors
/// Those of a transaction.
async fn shard_counts(core: &Core<ObjectProgram>) -> Result<[(i64, i64); DATABASES], Error> {
    let mut sums = [(0, 0); DATABASES];
    let mut firsts = Vec::new();
    core.each_leader(|leader| {
        let slots = leader.descriptor().range.slots();
        if !slots.is_empty() {
            firsts.push((leader.descriptor().id, slots.start));
        }
    });
    for (shard, first) in firsts {
        // Read as anybody reads them: a flush that is committed and not resolved yet counts.
        let mut txn = core.begin(Isolation::Snapshot);
        let keyspaces = keyspaces(core, &mut txn, first).await?;
        core.each_leader(|leader| {
            if leader.descriptor().id != shard {
                return;
            }
            for (sum, keyspace) in sums.iter_mut().zip(&keyspaces) {
                if let Some(count) = leader.counts().get(keyspace) {
                    sum.0 += count.keys;
                    sum.1 += count.expiring;
                }
            }
        });
    }
    Ok(sums)
}

/// A change of the map from databases to keyspaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Databases are emptied: each gets a fresh keyspace.
    Flush(Vec<usize>),
    /// Two databases are exchanged.
    Swap(usize, usize),
}

/// The map from databases to keyspaces.
pub(crate) type Map = [u32; DATABASES];

/// Changes databases, on all shards in one transaction.
///
/// # Errors
/// Those of a transaction.
pub async fn change(core: &Core<ObjectProgram>, changes: &[Change]) -> Result<(), Error> {
    let coordinator = core.coordinator();
    let done = coordinator.run(Isolation::Serializable, async |txn| {
        let before = keyspaces(core, txn, 0).await?;
        let mut after = before;
        for change in changes {
            plan(txn, &mut after, change).await?;
        }
        let shards = renumber(core, txn, &before, &after).await?;
        Ok::<_, Error>((after, shards))
    });
    let ((after, shards), _) = done.await?;
    settle(core, &after, shards).await
}

/// Changes a map as `change` says, and notes in the transaction what that uses up and leaves behind.
pub(crate) async fn plan(txn: &mut NodeTxn, map: &mut Map, change: &Change) -> Result<(), Error> {
    let dbs = match change {
        Change::Swap(a, b) => {
            map.swap(*a, *b);
            return Ok(());
        }
        Change::Flush(dbs) => dbs,
    };
    let counter = Placement::Ordered.key(SYSTEM, b"keyspaces/next");
    let next = txn.get(&counter).await?;
    let mut next = databases::keyspace(0, next.as_deref()).max(databases::FIRST_FRESH);
    for db in dbs {
        let dropped = std::mem::replace(&mut map[*db], next);
        next += 1;
        let mut name = b"keyspaces/dropped/".to_vec();
        name.extend_from_slice(&dropped.to_be_bytes());
        let name = Placement::Ordered.key(SYSTEM, &name);
        txn.put(&name, &Value { deadline_ms: None, payload: b"" }.encode()).await?;
    }
    txn.put(&counter, &databases::entry(next)).await
}

/// Writes what is different in the map on all shards. Returns how many there are.
pub(crate) async fn renumber(
    core: &Core<ObjectProgram>,
    txn: &mut NodeTxn,
    before: &Map,
    after: &Map,
) -> Result<usize, Error> {
    let table = core.table();
    let slots = table.routes().iter().map(|route| route.descriptor.range.slots());
    for first in slots.filter(|slots| !slots.is_empty()).map(|slots| slots.start) {
        for (db, (old, new)) in before.iter().zip(after).enumerate() {
            if old != new {
                let name = local_key(first, &databases::name(db));
                txn.put(&name, &databases::entry(*new)).await?;
            }
        }
    }
    Ok(table.routes().len())
}

/// Makes up for a split during a change that saw `shards` shards: the right half was left behind
/// with the old map. It gets the new one, until the shards stay as they are.
pub(crate) async fn settle(
    core: &Core<ObjectProgram>,
    after: &Map,
    mut shards: usize,
) -> Result<(), Error> {
    // No map has keyspace 0, so all of the map is written.
    const NONE: Map = [0; DATABASES];
    while core.table().routes().len() != shards {
        let coordinator = core.coordinator();
        let done = coordinator.run(Isolation::Serializable, async |txn| {
            keyspaces(core, txn, 0).await?;
            renumber(core, txn, &NONE, after).await
        });
        shards = done.await?.0;
    }
    Ok(())
}

/// A stored key on a walk: its user key and its deadline.
pub struct Walked<'a> {
    /// The slot and the user key, as they are ordered.
    pub place: &'a [u8],
    /// The deadline in milliseconds of the Unix epoch.
    pub deadline_ms: Option<u64>,
}

/// Visits the keys of a database in the order of slot and key, from `from` (slot and key) on, as
/// of one moment. The visitor says whether to go on.
///
/// # Errors
/// Those of a transaction.
pub async fn walk(
    core: &Core<ObjectProgram>,
    db: usize,
    from: &[u8],
    mut visitor: impl FnMut(Walked<'_>) -> ControlFlow<()>,
) -> Result<(), Error> {
    let mut txn = core.begin(Isolation::Snapshot);
    let keyspace = keyspaces(core, &mut txn, 0).await?[db];
    let Some(span) = whole_span(keyspace) else { return Ok(()) };
    let mut start: Key = keyspace.to_be_bytes().to_vec();
    start.extend_from_slice(from);
    let mut rest = Some(Span { start: start.max(span.start), end: span.end });
    while let Some(span) = rest {
        let page = txn.scan(span, ScanOptions { limit: PAGE, reverse: false }).await?;
        for (key, value) in &page.rows {
            let deadline_ms = Value::decode(value).ok().and_then(|value| value.deadline_ms);
            let walked = Walked { place: &key[4..], deadline_ms };
            if visitor(walked).is_break() {
                return Ok(());
            }
        }
        rest = page.more;
    }
    Ok(())
}

fn whole_span(keyspace: u32) -> Option<Span> {
    let slots = Range { start: RoutingKey::START, end: RoutingKey::End };
    debug_assert!(keyspace >= SLOTTED, "databases are placed by slot");
    slots.span(keyspace, Placement::Slots)
}

/// Has what dropped keyspaces held removed, once no reader can ask for it. Returns how many were.
///
/// # Errors
/// Those of a transaction.
pub async fn reclaim(core: &Core<ObjectProgram>) -> Result<usize, Error> {
    let prefix = Placement::Ordered.key(SYSTEM, b"keyspaces/dropped/");
    let mut end = prefix.clone();
    end.push(0xff);
    let horizon = core.horizon();
    let mut txn = core.coordinator().begin_at(horizon)?;
    let page = txn
        .scan(Span { start: prefix.clone(), end }, ScanOptions { limit: 64, reverse: false })
        .await?;
    drop(txn);
    let mut reclaimed = 0;
    for (name, _) in &page.rows {
        let Some(id) = name.get(prefix.len()..).and_then(|id| id.try_into().ok()) else { continue };
        let keyspace = u32::from_be_bytes(id);
        for index in 0..core.cores() {
            core.on_core(index, move |core| core.drop_keyspace(keyspace));
        }
        core.flush();
        core.coordinator()
            .run(Isolation::Serializable, async |txn| {
                txn.delete(name).await?;
                Ok::<_, Error>(())
            })
            .await?;
        reclaimed += 1;
    }
    Ok(reclaimed)
}
