//! Shards from what a store has of them: the consensus group from log and tree, the leader from the
//! applied state.

use std::cell::RefCell;
use std::collections::BTreeMap;

use atoll_encoding::Reader;
use atoll_lsm::Error;
use atoll_lsm::driven::{Direction, Driver, Tree, Writes};
use atoll_lsm::log::GroupState;
use atoll_mvcc::keys::{Area, TreeKey, tree};
use atoll_mvcc::record::{Fence, TxnRecord};
use atoll_mvcc::{Epoch, Timestamp};
use atoll_shard::consensus::{self, Consensus, EntryKind, Members};
use atoll_shard::descriptor::{Descriptor, ShardId};
use atoll_shard::entry::{self, Payload};
use atoll_shard::intent::Intent;
use atoll_shard::leader::{Loaded, local_key};
use atoll_shard::{replica, state};

use crate::group::{Group, Logged, State};
use crate::node::Shared;
use crate::peers::Place;
use crate::program::Program;

/// Adds the record of a shard's members to an entry.
pub(super) fn put_members(writes: &mut Writes, shard: ShardId, members: &Members) {
    let (mut name, mut value) = (Vec::new(), Vec::new());
    tree::shard(&mut name, shard.0, state::MEMBERS);
    members.encode(&mut value);
    writes.insert(&name, &[&value]);
}

/// Returns an entry's writes that record a shard's members.
pub(super) fn members_record(shard: ShardId, members: &Members) -> Writes {
    let mut writes = Writes::new();
    put_members(&mut writes, shard, members);
    writes
}

/// Reads the members of a shard; `None` if they never changed.
async fn read_members(tree: &Tree, shard: ShardId) -> Result<Option<Members>, Error> {
    let mut name = Vec::new();
    tree::shard(&mut name, shard.0, state::MEMBERS);
    let Some(bytes) = tree.get(&name).await? else { return Ok(None) };
    let broken = |e| Error::Stopped(format!("the members of shard {shard} do not decode: {e}"));
    let mut reader = Reader::new(&bytes);
    let members = Members::decode(&mut reader).map_err(broken)?;
    reader.finish("nothing behind the members").map_err(broken)?;
    Ok(Some(members))
}

/// Reads what the leader of a shard keeps in memory.
pub(super) async fn load(tree: &Tree, descriptor: &Descriptor) -> Result<Loaded, Error> {
    let mut loaded = Loaded { horizon: Timestamp(tree.horizon()), ..Loaded::default() };
    let broken = |key: &[u8], e: atoll_encoding::Malformed| {
        Error::Stopped(format!(
            "a record of shard {} at \"{}\": {e}",
            descriptor.id,
            key.escape_ascii()
        ))
    };
    for area in [Area::Intent, Area::Record, Area::Fence] {
        // All keyspaces of the area in key order; those of other shards are passed by.
        let (start, end) = ([area as u8], [area as u8 + 1]);
        let mut cursor = tree.scan(&start, &end, Direction::Forward);
        while let Some(row) = cursor.next().await? {
            let key = TreeKey::decode(row.key()).map_err(|e| broken(row.key(), e))?;
            let mine = match &key {
                TreeKey::Intent(key) => descriptor.contains(key),
                TreeKey::Record { primary, .. } => descriptor.contains(primary),
                TreeKey::Fence { key, .. } => descriptor.contains(key),
                _ => false,
            };
            if !mine {
                continue;
            }
            let Some(value) = row.value().await? else { continue };
            let broken = |e| broken(row.key(), e);
            match key {
                TreeKey::Intent(key) => {
                    let intent = Intent::decode(&value).map_err(broken)?;
                    loaded.intents.push((key.to_vec(), intent));
                }
                TreeKey::Record { primary, txn } => {
                    let record = TxnRecord::decode(&value).map_err(broken)?;
                    // Of the moment only the epoch is kept: the last one of it stands for all.
                    let written = Timestamp::read_at(record.written);
                    loaded.records.push((txn, primary, record.state, written));
                }
                TreeKey::Fence { key, txn } => {
                    let fence = Fence::decode(&value).map_err(broken)?;
                    loaded.fences.push((key, txn, fence.start));
                }
                _ => {}
            }
        }
    }
    let mut start = Vec::new();
    tree::shard(&mut start, descriptor.id.0, b"");
    let mut end = Vec::new();
    tree::shard(&mut end, descriptor.id.0 + 1, b"");
    let mut cursor = tree.scan(&start, &end, Direction::Forward);
    while let Some(row) = cursor.next().await? {
        if let Ok(TreeKey::Shard { what, .. }) = TreeKey::decode(row.key())
            && let Some(keyspace) = state::counted(what)
        {
            let Some(value) = row.value().await? else { continue };
            let count = entry::decode_count(&value).map_err(|e| broken(row.key(), e))?;
            loaded.counts.insert(keyspace, count);
        }
    }
    let slots = descriptor.range.slots();
    if !slots.is_empty() {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        tree::data(&mut start, &local_key(slots.start, b""));
        tree::data(&mut end, &local_key(slots.start + 1, b""));
        let mut cursor = tree.scan_versions(&start, &end, u64::MAX, Direction::Forward);
        while let Some(row) = cursor.next().await? {
            if let Some(value) = row.value().await? {
                loaded.locals.push((row.key()[1..].to_vec(), value.to_vec()));
            }
        }
    }
    Ok(loaded)
}

/// Opens the consensus group of a shard from what the log has of it. Returns it with the highest
/// bound of the oracle that its log tells of.
pub(crate) async fn open_group<P: Program>(
    driver: &mut Driver,
    tree: &Tree,
    descriptor: Descriptor,
    shared: &Shared<P>,
) -> Result<(Group<P>, Epoch), Error> {
    let mut bound = Epoch(0);
    let shard = descriptor.id;
    let id = shard.0;
    let applied = driver.applied(id);
    let summary = driver.group(id);
    let Place { replica: me, founders } = shared.place();
    let changed = read_members(tree, shard).await?;
    let founded = changed.is_none();
    let members = changed.unwrap_or_else(|| Members::of_voters(founders));
    let alone = members.is_alone(me);
    let mut config = consensus::Config::new(id, me);
    config.rank = replica::rank(&members.voters, me, id);
    config.incarnation = driver.end();
    config.founded = founded;
    config.uncommitted_bytes_max = driver.arena_most() as u64 / 4;
    config.unapplied_bytes_max = driver.arena_most();
    config.cache_bytes = config.cache_bytes.min(driver.arena_most() / 64);
    if summary.is_none() {
        // It has never promised anybody anything.
        config.settle_ticks = 0;
    }
    let mut stored =
        consensus::Stored { members, applied, first: applied + 1, ..consensus::Stored::default() };
    let mut positions = BTreeMap::new();
    if let Some(summary) = summary {
        let GroupState { term, vote, commit } = summary.state;
        stored.state = consensus::GroupState { term, vote, commit };
        let next = summary.next;
        let term_of = |driver: &Driver, index| {
            driver.term(id, index).ok_or_else(|| {
                Error::Stopped(format!("shard {id}: the term of entry {index} is not known"))
            })
        };
        if alone {
            if applied > 0 {
                stored.terms.push((applied, term_of(driver, applied)?));
            }
        } else {
            // Others may still ask for what is applied here.
            stored.first = summary.first.min(applied + 1);
            driver.hold(id, stored.first)?;
            if stored.first == 1 {
                stored.terms.push((0, 0));
            }
            for index in (stored.first - 1).max(1)..=applied {
                let term = term_of(driver, index)?;
                if stored.terms.last().is_none_or(|(_, last)| *last != term) {
                    stored.terms.push((index, term));
                }
            }
        }
        if next > applied + 1 {
            for entry in driver.entries(id, applied + 1..next).await? {
                let (index, term) = (entry.id.index, entry.id.term);
                positions.insert(index, Logged { position: entry.position, arena: 0 });
                let broken = |e: atoll_encoding::Malformed| {
                    Error::Stopped(format!("shard {id}: entry {index} does not decode: {e}"))
                };
                let decoded =
                    consensus::Entry::decode(index, term, entry.payload).map_err(broken)?;
                if decoded.kind() == EntryKind::Normal {
                    let payload = Payload::decode(decoded.payload()).map_err(broken)?;
                    bound = bound.max(payload.bound.unwrap_or_default());
                }
                stored.entries.push(decoded);
            }
        }
    }
    let consensus = Consensus::restore(config, stored)
        .map_err(|e| Error::Stopped(format!("shard {id}: {e}")))?;
    let group = Group {
        id: shard,
        replica: me,
        consensus: RefCell::new(consensus),
        state: RefCell::new(State { positions, founded, ..State::new(descriptor, applied) }),
    };
    Ok((group, bound))
}
