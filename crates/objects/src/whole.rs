//! Whole databases: counting, flushing, exchanging, walking.

use std::ops::Bound;
use std::time::Duration;

use atoll_env::sometimes;
use atoll_env::sync::oneshot;
use atoll_keyspaces::ids::{self, Class};
use atoll_kv::{Core, Table};
use atoll_mvcc::Value;
use atoll_mvcc::keys::{Placement, Range, RoutingKey, SLOTTED};
use atoll_mvcc::request::{Isolation, Key, Span};
use atoll_redis::Durability;
use atoll_redis::store::Visitor;
use atoll_shard::leader::{EPOCH, epoch_of, local_key};
use atoll_txn::{Error, ScanOptions, Unavailable};

use crate::databases::{self, DATABASES};
use crate::distributed::keyspaces;
use crate::program::ObjectProgram;
use crate::txn_tx::NodeTxn;

/// Keys of one page of a walk.
const PAGE: usize = 512;
/// How long shards that are being split are waited for.
const SPLIT_TIME_MAX: Duration = Duration::from_secs(5);

/// Keys of each database, and how many of them have a deadline.
pub type Counts = [(u64, u64); DATABASES];

/// Counts the keys of all databases: what is due is reaped first, intents of transactions that may have
/// been acknowledged are resolved, then the shards are asked for their counts. The cost does not depend on
/// the number of keys.
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
                    let counted = match task_core.settle_intents().await {
                        Ok(()) => shard_counts(&task_core).await,
                        Err(why) => Err(Error::Unavailable(Unavailable(why))),
                    };
                    let _ = sender.send(counted);
                }),
            );
        });
        receivers.push(receiver);
    }
    core.flush();
    for receiver in receivers {
        // A core that has ended does not answer; its keys are not none for that.
        let counted = receiver.await.unwrap_or_else(|_| Err(stopping()))?;
        for (sum, (keys, expiring)) in sums.iter_mut().zip(counted) {
            sum.0 += keys;
            sum.1 += expiring;
        }
    }
    Ok(sums.map(|(keys, expiring)| (keys.max(0) as u64, expiring.max(0) as u64)))
}

fn stopping() -> Error {
    Error::Unavailable(Unavailable("the engine stops".to_owned()))
}

/// Returns the counts of this core's shards. They are of the same shards, whatever is split
/// meanwhile: a half that was not there at first has counts of its own soon.
///
/// # Errors
/// Those of a transaction.
async fn shard_counts(core: &Core<ObjectProgram>) -> Result<[(i64, i64); DATABASES], Error> {
    let deadline = core.env().clock.now().after(SPLIT_TIME_MAX);
    loop {
        let version = core.table().version();
        if core.leads_all()
            && let Some(sums) = sum_of_leaders(core).await?
            && core.table().version() == version
        {
            return Ok(sums);
        }
        if core.env().clock.now() >= deadline {
            return Err(stopping());
        }
        core.env().clock.sleep(Duration::from_millis(1)).await;
    }
}

/// Adds up what the leaders of this core count; `None` if one of them went away meanwhile.
async fn sum_of_leaders(
    core: &Core<ObjectProgram>,
) -> Result<Option<[(i64, i64); DATABASES]>, Error> {
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
        let keyspaces = keyspaces(core, &mut txn, first, 0..DATABASES).await?;
        let mut is_there = false;
        core.each_leader(|leader| {
            if leader.descriptor().id != shard {
                return;
            }
            is_there = true;
            for (sum, keyspace) in sums.iter_mut().zip(&keyspaces) {
                if let Some(count) = leader.counts().get(keyspace) {
                    sum.0 += count.keys;
                    sum.1 += count.expiring;
                }
            }
        });
        if !is_there {
            return Ok(None);
        }
    }
    Ok(Some(sums))
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

/// Changes databases, on all shards in one transaction, which survives what `durability` says.
///
/// # Errors
/// Those of a transaction.
pub async fn change(
    core: &Core<ObjectProgram>,
    changes: &[Change],
    durability: Durability,
) -> Result<(), Error> {
    let coordinator = core.coordinator();
    let done = coordinator.run(Isolation::Serializable, async |txn| {
        txn.set_lasting(durability == Durability::Synced);
        let before = keyspaces(core, txn, 0, 0..DATABASES).await?;
        let mut after = before;
        for change in changes {
            plan(txn, &mut after, change).await?;
        }
        renumber(core, txn, &before, &after).await
    });
    done.await.map(|_| ())
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
    for db in dbs {
        let fresh = ids::draw(txn, Class::Slotted).await?;
        ids::give_back(txn, std::mem::replace(&mut map[*db], fresh)).await?;
    }
    Ok(())
}

/// Writes what is different in the map on all shards. That they are all is read in the transaction
/// too, shard by shard, so a split before its commit makes it begin again.
pub(crate) async fn renumber(
    core: &Core<ObjectProgram>,
    txn: &mut NodeTxn,
    before: &Map,
    after: &Map,
) -> Result<(), Error> {
    let deadline = core.env().clock.now().after(SPLIT_TIME_MAX);
    let table = loop {
        let table = core.table();
        if knows_all_splits(&table, txn).await? {
            break table;
        }
        sometimes!(true, "a transaction over all shards meets a split");
        if core.env().clock.now() >= deadline {
            return Err(stopping());
        }
        core.env().clock.sleep(Duration::from_millis(1)).await;
    };
    for first in first_slots(&table) {
        for (db, (old, new)) in before.iter().zip(after).enumerate() {
            if old != new {
                let name = local_key(first.0, &databases::name(db));
                txn.put(&name, &databases::entry(*new)).await?;
            }
        }
    }
    Ok(())
}

/// Returns the shards with slots: their first ones, and their epochs.
fn first_slots(table: &Table) -> impl Iterator<Item = (u16, u64)> + '_ {
    let routes = table.routes().iter();
    let slots = routes.map(|route| (route.descriptor.range.slots(), route.descriptor.epoch));
    slots.filter(|(slots, _)| !slots.is_empty()).map(|(slots, epoch)| (slots.start, epoch))
}

/// Returns whether a table has every split that the transaction sees. A later one is in what it
/// reads here, and fails its commit.
async fn knows_all_splits(table: &Table, txn: &mut NodeTxn) -> Result<bool, Error> {
    for (first, epoch) in first_slots(table) {
        let seen = txn.get(&local_key(first, EPOCH)).await?;
        if epoch_of(seen.as_deref()).is_some_and(|seen| seen > epoch) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Visits the keys of a database in the order of slot and key, as of one moment (see
/// [`Keyspaces::visit`](atoll_redis::tx::Keyspaces::visit)).
///
/// # Errors
/// Those of a transaction.
pub async fn walk(
    core: &Core<ObjectProgram>,
    db: usize,
    from: Bound<&[u8]>,
    visitor: Visitor<'_>,
) -> Result<(), Error> {
    let mut txn = core.begin(Isolation::Snapshot);
    let keyspace = keyspaces(core, &mut txn, 0, [db]).await?[db];
    walk_in(&mut txn, keyspace, from, visitor).await
}

/// Visits the keys of a keyspace as a transaction sees them.
pub(crate) async fn walk_in(
    txn: &mut NodeTxn,
    keyspace: u32,
    from: Bound<&[u8]>,
    visitor: Visitor<'_>,
) -> Result<(), Error> {
    let Some(span) = whole_span(keyspace) else { return Ok(()) };
    let (place, behind) = match from {
        Bound::Unbounded => (&[][..], None),
        Bound::Included(place) => (place, None),
        Bound::Excluded(place) => (place, Some(place)),
    };
    let mut start: Key = keyspace.to_be_bytes().to_vec();
    start.extend_from_slice(place);
    let mut rest = Some(Span { start: start.max(span.start), end: span.end });
    while let Some(span) = rest {
        let page = txn.scan(span, ScanOptions { limit: PAGE, reverse: false }).await?;
        for (key, value) in &page.rows {
            let deadline_ms = Value::decode(value).ok().and_then(|value| value.deadline_ms);
            // The slot and the user key, as they are ordered.
            let place = &key[4..];
            if behind != Some(place) && visitor(place, deadline_ms).is_break() {
                return Ok(());
            }
        }
        rest = page.more;
    }
    Ok(())
}

/// Returns where the keys of a database are.
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
    let reclaimed = ids::reclaim(core).await?;
    sometimes!(reclaimed > 0, "a dropped database is reclaimed");
    Ok(reclaimed)
}
