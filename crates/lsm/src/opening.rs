//! Opening a directory: a new one is made, an old one recovered.
//!
//! What manifest and log hold is rebuilt the same way for both kinds of directory. They differ in
//! what becomes of the log's entries: those of an embedded database are its own batches, durable
//! means committed, and they are applied; those of a store belong to groups of an owner who alone
//! knows what is committed, and stay in the log until he applies them.
//!
//! # A log that memory has no room for
//! It was written with a larger budget. All of it is verified before anything is changed; what fits is
//! applied. The rest is applied when the background work has begun, as a writer's batches are:
//! memtables are sealed, flushed by the other task, and waited for.
//!
//! ```text
//!   log       |-- in tables --|----- fits into the budget -----|---------- rest ----------|
//!   verified   chain of frames, all entries there ........................................ the end is known
//!   opened                     applied ......................... nothing changed until here
//!   replayed                                                    applied, while others are flushed
//! ```
//!
//! Rejected: applying while the chain is followed, which would save reading the log twice. Only its end
//! tells which entries were overwritten, and that it is not to be refused.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::{Env, sometimes};
use parking_lot::Mutex;

use crate::commit::{self, Work};
use crate::error::{Error, Result};
use crate::events::{Events, FlushReason};
use crate::governor::{parts, record_part};
use crate::identity::{self, FIRST_SEGMENT, Kind};
use crate::iter::Direction;
use crate::iter::scan::{Bounds, Wanted};
use crate::keyspace::{CATALOG, Keyspaces, LAST_ID, decode_about, decode_last_id};
use crate::log::{EntryId, Log, LogOptions, Rest};
use crate::memtable::Memtable;
use crate::options::{Durability, Options};
use crate::pool;
use crate::records::Records;
use crate::recovery::{Replay, inspect};
use crate::store::{Catalog, GROUP, Parts, Sealed, Stamp, Store, Writer, arena_bytes, insert};
use crate::tables::Tables;
use crate::version::manifest::{self, Manifest, SWAP};
use crate::version::{Edit, Garbage, Paths};

/// An opened directory. Nothing runs in the background yet.
pub(crate) struct Opened {
    pub(crate) store: Arc<Store>,
    pub(crate) next_file: u64,
    /// Entries of the log that are still to be applied, see [`replay`].
    pub(crate) rest: Option<Rest>,
}

/// Opens the directory `path` of that kind, making it if it is missing or empty.
pub(crate) async fn open(path: PathBuf, options: Options, kind: Kind) -> Result<Opened> {
    options.check()?;
    let paths = Paths::new(path);
    let env = &options.env;
    let context = |e| Error::io("making the directory", &paths.root, e);
    env.disk.create_dir(&paths.root).await.map_err(context)?;
    // Looked at before the lock file is made: somebody else's directory stays as it is.
    identity::read_as(env, &paths, kind).await?;
    let lock = lock(env, &paths).await?;
    let id = match identity::read_as(env, &paths, kind).await? {
        Some(id) => id,
        None => make(env, &paths, kind).await?,
    };
    recover(options, paths, (kind, id), lock).await
}

/// Takes the directory for this process, until what is returned is dropped.
pub(crate) async fn lock(env: &Env, paths: &Paths) -> Result<Box<dyn Send + Sync>> {
    env.disk.lock(&paths.lock()).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => Error::Locked(paths.root.clone()),
        _ => Error::io("locking", &paths.lock(), e),
    })
}

/// Makes the files of a new database; the identity comes last.
async fn make(env: &Env, paths: &Paths, kind: Kind) -> Result<u64> {
    for dir in [paths.log(), paths.tables(), paths.values()] {
        env.disk.create_dir(&dir).await.map_err(|e| Error::io("making the directory", &dir, e))?;
    }
    // An earlier making that did not finish left nothing of value.
    for name in env.disk.list(&paths.log()).await.unwrap_or_default() {
        let path = paths.log().join(&name.name);
        let tag = SWAP;
        env.disk.remove(tag, &path).await.map_err(|e| Error::io("removing", &path, e))?;
    }
    let current = paths.current();
    match env.disk.remove(SWAP, &current).await {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("removing", &current, e)),
    }
    Manifest::create_first(env, paths).await?;
    let id = env.random.next_u64();
    // The smallest segment there can be, for the first opening to replace: so a directory that has
    // its identity has a log, and a log that is gone is noticed.
    let first = LogOptions { lane: id, segment_capacity: FIRST_SEGMENT, ..LogOptions::default() };
    Log::open(env, &paths.log(), first, 0).await?.finish().await?;
    sync_above(env, &paths.root).await?;
    identity::write(env, paths, kind, id).await?;
    Ok(id)
}

/// Makes the names of the directories above `root` durable: they may have been made with it.
pub(crate) async fn sync_above(env: &Env, root: &Path) -> Result<()> {
    for above in root.ancestors().skip(1) {
        // A name without a folder is in the working directory.
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match env.disk.sync_dir(SWAP, above).await {
            // Who may not read a directory did not make it.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => break,
            synced => synced.map_err(|e| Error::io("syncing the directory", above, e))?,
        }
    }
    Ok(())
}

/// Makes the folder of value files, which a directory from before there were any does not have.
async fn make_values_folder(env: &Env, paths: &Paths) -> Result<()> {
    let folder = paths.values();
    match env.disk.list(&folder).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        found => return found.map(drop).map_err(|e| Error::io("listing", &folder, e)),
    }
    let context = |e| Error::io("making the directory", &folder, e);
    env.disk.create_dir(&folder).await.map_err(context)?;
    manifest::sync_dir(env.disk.as_ref(), SWAP, &paths.root).await
}

/// Rebuilds the store from manifest and log.
///
/// Everything is read and verified before the first change, so that a directory that is refused is
/// left as it was found.
async fn recover(
    options: Options,
    paths: Paths,
    (kind, id): (Kind, u64),
    lock: Box<dyn Send + Sync>,
) -> Result<Opened> {
    let env = options.env.clone();
    let garbage = Arc::new(Garbage::default());
    let contents = manifest::read(&env, &paths, &garbage).await?;
    let strays = inspect(&env, &paths, &contents).await?;

    let log_options = LogOptions {
        lane: id,
        segment_capacity: options.segment_capacity(),
        fill: options.durability == Durability::Synced,
        // The owner of a store reads entries back; nobody else does.
        indexed: match kind {
            Kind::Database => |_| false,
            Kind::Store => |_| true,
        },
        ..LogOptions::default()
    };
    let flushed = &contents.state.flushed;
    let mut replay = Replay::open(&env, &paths, log_options, flushed).await?;
    let capacity = options.memtable_capacity();
    let (mut active, first) = Memtable::new(capacity);
    let mut memtables = vec![first];
    let mut sealed = VecDeque::new();
    let (mut sealed_bytes, mut largest) = (0, 0);
    let mut position = contents.state.flushed.position;
    let mut visible = position.saturating_sub(1);
    let mut rest = None;
    if kind == Kind::Database {
        rest = replay
            .visit_while(|entry, applied| {
                let needed = arena_bytes(entry.payload)?;
                if needed > active.free() {
                    let larger = Memtable::capacity_for(needed).max(capacity);
                    // One that is empty is in nobody's way, although its index takes memory.
                    let full = active.memtable().clone();
                    let bytes = if full.is_empty() { 0 } else { full.bytes_used() };
                    // One more than writers may have, who sealed at other places: what they left on a
                    // full disk can always be read.
                    largest = largest.max(bytes);
                    let most = options.memtable_share().max(largest) + capacity;
                    if bytes > 0 && sealed_bytes + bytes + larger > most {
                        return Ok(ControlFlow::Break(()));
                    }
                    let (next, memtable) = Memtable::new(larger);
                    active = next;
                    if full.is_empty() {
                        memtables.remove(0);
                    } else {
                        sealed_bytes += bytes;
                        sealed.push_back(Sealed {
                            memtable: full,
                            applied: applied.clone(),
                            position,
                            reason: FlushReason::Recovery,
                        });
                    }
                    memtables.insert(0, memtable);
                }
                visible = visible.max(insert(&mut active, entry.payload, entry.position)?);
                position = visible + 1;
                Ok(ControlFlow::Continue(()))
            })
            .await?;
    }
    let (rest, applied) = match rest {
        None => (None, replay.applied()),
        Some((rest, applied)) => {
            sometimes!(true, "a log is longer than the memory of its database");
            if !replay.skip_to_end(GROUP) {
                replay.visit(|entry, _| arena_bytes(entry.payload).map(drop)).await?;
            }
            (Some(rest), applied)
        }
    };

    make_values_folder(&env, &paths).await?;
    let (mut manifest, state) = Manifest::resume(&env, &paths, contents).await?;
    manifest.replace_above(options.manifest_size);
    if state.unproven {
        // A crash came between an ingest and what proves it (`ingest.rs`).
        let edit = Edit { next_file: state.next_file, ..Edit::default() };
        match manifest.append(SWAP, &edit, &state).await {
            Ok(()) | Err(Error::NoSpace(_)) => {}
            Err(e) => return Err(e),
        }
    }
    let log = replay.finish().await?;
    // A replacement that a crash interrupted is a stray, and the next one takes over its name.
    for path in strays.into_iter().filter(|path| path != manifest.path()) {
        env.disk.remove(SWAP, &path).await.map_err(|e| Error::io("removing", &path, e))?;
    }

    // An owner's entries are applied in the order of their groups, not in that of the lane, so tables
    // may have records above the position up to which everything is flushed. Before the first
    // application they must be seen as well: a store's bound and its shards are read then.
    let in_tables = state.version.tables().map(|(_, table)| table.desc.seqnos.1).max();
    visible = visible.max(in_tables.unwrap_or(0));

    let events = Arc::new(Events::new(options.listener.clone(), &paths.root));
    let cache = options.cache_capacity();
    let records = Arc::new(Records::new(record_part(cache, options.record_cache_percent)));
    let (_, blocks) = parts(&records, cache - records.fixed_bytes(), options.record_cache_percent);
    let pool = pool::open(options.pool, blocks);
    let tables = Tables::new(env.clone(), paths.clone(), pool, records).told_to(events.clone());
    let tables = Arc::new(tables);
    let next_file = state.next_file;
    let parts = Parts {
        version: Arc::new(state.version.share()),
        writer: Writer::new(log, active, applied, position),
        catalog: Catalog { manifest, state },
        options,
        paths,
        id,
        tables,
        events,
        garbage,
        memtables,
        sealed,
        visible,
        owned: kind == Kind::Store,
        lock,
    };
    Ok(Opened { store: Store::new(parts), next_file, rest })
}

/// What memory had no room for, on its way to the leader.
pub(crate) struct Behind {
    rest: Rest,
    keyspaces: Arc<Keyspaces>,
}

/// Applies the rest of the log, while the background work flushes. Nobody else has the store yet.
///
/// # Errors
/// `NoSpace` on a full disk, where a log that fits into memory could still be read; what kept a flush
/// from succeeding. The log has everything, and what was flushed until then stays.
pub(crate) async fn replay(
    store: &Arc<Store>,
    keyspaces: &Arc<Keyspaces>,
    rest: Rest,
) -> Result<()> {
    let behind = Behind { rest, keyspaces: keyspaces.clone() };
    commit::submit(store, Work::Replay(Mutex::new(Some(Box::new(behind))))).await?;
    keyspaces.renew(read_keyspaces(store).await?);
    Ok(())
}

impl Behind {
    /// Does what [`replay`] does, for the leader.
    pub(crate) async fn apply(mut self, store: &Store, writer: &mut Writer) -> Result<()> {
        while let Some(entry) = self.rest.next_entry().await? {
            let EntryId { group, index, .. } = entry.id;
            if writer.applied.get(&group).is_some_and(|applied| index <= *applied) {
                continue;
            }
            let needed = arena_bytes(entry.payload)?;
            if needed > writer.active.free() {
                // How a memtable is flushed depends on what is said of its keyspaces in it or before it.
                self.keyspaces.renew(read_keyspaces(store).await?);
                let capacity = store.memtable_for(needed);
                // Nobody writes who could be told that writers stall.
                let mut since = Some(store.clock().now());
                store.wait_until_admitted(writer, capacity, &mut since).await?;
                if needed > writer.active.free() {
                    store.seal(writer, capacity, FlushReason::Recovery).await?;
                }
            }
            let stamp = Stamp { group, index, position: entry.position };
            store.take_in(writer, stamp, entry.payload)?;
        }
        Ok(())
    }
}

/// Reads the names of the keyspaces.
pub(crate) async fn read_keyspaces(store: &Store) -> Result<Keyspaces> {
    let options = &store.options;
    let keyspaces =
        Keyspaces::new(options.merge_operators.clone(), options.compaction_filters.clone());
    keyspaces.keep_inline(CATALOG);
    let bounds =
        Bounds { start: CATALOG.to_be_bytes().to_vec(), end: (CATALOG + 1).to_be_bytes().to_vec() };
    let (view, snapshot) = store.pin_owned();
    let direction = Direction::Forward;
    let tables = Arc::new(store.tables.past_quarantine());
    let wanted = Wanted::Live(store.now());
    let mut scan = view.scan(&tables, direction, bounds, snapshot, wanted, None).await?;
    while let Some(entry) = scan.next().await? {
        let malformed = |e: atoll_encoding::Malformed| {
            Error::corruption(&store.paths.root, 0, format!("a keyspace record: {e}"))
        };
        let name = &entry.user_key[4..];
        if name == LAST_ID {
            keyspaces.skip_ids(decode_last_id(&entry.value).map_err(malformed)?);
        } else {
            keyspaces.add(decode_about(name, &entry.value).map_err(malformed)?);
        }
    }
    Ok(keyspaces)
}
