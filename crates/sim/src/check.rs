//! Reading everything a database shows, in every way it can be read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_lsm::backup::Backups;
use atoll_lsm::{Cursor, Database, Error, Keyspace, Options};

use crate::model::{Row, Space, Value, Window, compare, show, tell};
use crate::oracle::{Bulk, Oracle, Seen};

/// Where backups are.
pub const BACKUP: &str = "data/backup";
/// The keyspace that is filled by ingests.
pub const BULK: &str = "bulk";
/// How many keys it has.
pub const BULK_KEYS: usize = 40;

/// Returns where a checkpoint is.
pub fn copy_path(number: usize) -> String {
    format!("data/copy-{number}")
}

/// Returns a key of the bulk keyspace.
pub fn bulk_key(number: usize) -> String {
    format!("bulk-{number:04}")
}

/// Returns a value of it: of a round, or of a write `before` it.
pub fn bulk_value(round: u64, before: bool) -> Vec<u8> {
    format!("{round} {before} {}", "x".repeat(200)).into_bytes()
}

fn bulk_number(key: &[u8]) -> Option<usize> {
    std::str::from_utf8(key).ok()?.strip_prefix("bulk-")?.parse().ok()
}

fn bulk_content(value: &[u8]) -> Option<(u64, bool)> {
    let mut words = std::str::from_utf8(value).ok()?.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Something that must not happen.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The engine answered with an error.
    Engine {
        /// What it was asked for.
        doing: String,
        /// Its answer.
        error: Error,
    },
    /// The engine gave a wrong answer, or none.
    Wrong(String),
}

impl Trouble {
    /// Returns whether the engine refused to answer because of what it found on the disk.
    pub fn is_refusal(&self) -> bool {
        let Trouble::Engine { error, .. } = self else { return false };
        matches!(error, Error::Corruption { .. } | Error::Foreign { .. })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Engine { doing, error } => write!(f, "{doing}: {error}"),
            Trouble::Wrong(what) => f.write_str(what),
        }
    }
}

/// Names what was being done when the engine answered with an error.
pub fn doing(what: impl Into<String>) -> impl FnOnce(Error) -> Trouble {
    let doing = what.into();
    move |error| Trouble::Engine { doing, error }
}

/// Checks that `db` shows a state the oracle allows, with at least `floor` entries, and that all
/// ways of reading agree on it; the state becomes the oracle's base. Returns how many entries
/// survived.
pub async fn check(
    db: &Database,
    env: &Env,
    oracle: &RefCell<Oracle>,
    floor: usize,
    prng: &mut Prng,
) -> Result<usize, Trouble> {
    let seen = see(db, env).await?;
    let survived = {
        let mut oracle = oracle.borrow_mut();
        let survived = oracle.find(&seen, floor, oracle.submitted()).map_err(Trouble::Wrong)?;
        let round = seen.bulk.round(oracle.rounds()).map_err(Trouble::Wrong)?;
        oracle.settle(survived, round);
        survived
    };
    let base = oracle.borrow().base().clone();
    for (name, space) in &base.spaces {
        let Some(keyspace) = db.find_keyspace(name) else {
            return Err(Trouble::Wrong(format!("'{name}' is listed and not found")));
        };
        agree(&keyspace, env, space, prng).await?;
    }
    Ok(survived)
}

/// Scans everything.
pub async fn see(db: &Database, env: &Env) -> Result<Seen, Trouble> {
    let from = env.clock.wall().0;
    let mut spaces = BTreeMap::new();
    for name in db.keyspaces().into_iter().filter(|name| name != BULK) {
        let Some(keyspace) = db.find_keyspace(&name) else {
            return Err(Trouble::Wrong(format!("'{name}' is listed and not found")));
        };
        let rows = rows(keyspace.cursor::<&[u8]>(..), false).await;
        spaces.insert(name.clone(), rows.map_err(doing(format!("scanning '{name}'")))?);
    }
    let window = Window { from, to: env.clock.wall().0 };
    Ok(Seen { spaces, window, bulk: see_bulk(db).await? })
}

/// Reads the keyspace that is filled by ingests.
async fn see_bulk(db: &Database) -> Result<Bulk, Trouble> {
    let mut bulk = Bulk(vec![None; BULK_KEYS]);
    let Some(keyspace) = db.find_keyspace(BULK) else { return Ok(bulk) };
    let found = rows(keyspace.cursor::<&[u8]>(..), false).await;
    for (key, value) in found.map_err(doing("scanning the bulk keyspace"))? {
        let place = bulk_number(&key).and_then(|number| bulk.0.get_mut(number));
        let (Some(place), Some(content)) = (place, bulk_content(&value.bytes)) else {
            return Err(Trouble::Wrong(format!("the bulk keyspace has a row {}", show(&key))));
        };
        *place = Some(content);
    }
    Ok(bulk)
}

/// Checks the copies of the database that were begun since the last check: one that was answered is
/// there and holds what it should; another one is so too, or nothing opens it.
pub async fn check_copies(
    env: &Env,
    oracle: &RefCell<Oracle>,
    options: impl Fn() -> Options,
    life: u64,
) -> Result<(), Trouble> {
    let copies = oracle.borrow().copies().to_vec();
    let backups = Backups::in_env(env, BACKUP);
    let mut generations = Vec::new();
    if copies.iter().any(|copy| copy.is_backup) {
        let there = backups.generations_async().await;
        generations = match there {
            // The first one was not finished.
            Err(Error::Foreign { .. }) => Vec::new(),
            there => there.map_err(doing("listing the backups"))?,
        };
        if !generations.is_empty() {
            let found = backups.verify_async(&mut |_| {}).await;
            let found = found.map_err(doing("verifying the backups"))?;
            if let Some((problem, _)) = found.problems.first() {
                return Err(Trouble::Wrong(format!("a backup is damaged: {problem}")));
            }
        }
    }
    for copy in &copies {
        let number = copy.number;
        let path = if copy.is_backup {
            // One that was not answered is there if it is one more than are known.
            let known = oracle.borrow().generations();
            let unknown = generations.last().map(|g| g.number).filter(|newest| *newest > known);
            let Some(generation) = copy.generation.or(unknown) else { continue };
            if !generations.iter().any(|there| there.number == generation) {
                return Err(Trouble::Wrong(format!("generation {generation} is gone")));
            }
            let path = format!("data/restored-{number}-{life}");
            let restored = backups.restore_async(Some(generation), &path, &mut |_| {}).await;
            restored.map_err(doing("restoring a backup"))?;
            path
        } else {
            copy_path(number)
        };
        let opened = Database::builder(&path).options(options()).open_async();
        let entries = env.disk.list(Path::new(&path)).await.unwrap_or_default();
        if entries.is_empty() && !copy.is_answered() {
            continue;
        }
        let whole = entries.iter().any(|entry| entry.name == "ATOLL");
        if !whole && !copy.is_answered() {
            let files = entries.iter().any(|entry| !entry.is_dir);
            match opened.await {
                Err(Error::Foreign { .. }) => continue,
                // Not even its first file was made.
                Ok(db) if !files => {
                    db.close_async().await.map_err(doing("closing an empty copy"))?;
                    continue;
                }
                _ => return Err(Trouble::Wrong(format!("half of a copy opens: {path}"))),
            }
        }
        let db = opened.await.map_err(doing(format!("opening the copy {path}")))?;
        let seen = see(&db, env).await?;
        let allowed = oracle.borrow().allows(copy, &seen);
        allowed.map_err(|why| Trouble::Wrong(format!("the copy {path}: {why}")))?;
        db.close_async().await.map_err(doing("closing a copy"))?;
    }
    if let Some(newest) = generations.last() {
        oracle.borrow_mut().note_generation(newest.number);
    }
    Ok(())
}

/// Reads what is left of a cursor, from its back if asked for.
pub async fn rows(mut cursor: Cursor, backward: bool) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    loop {
        let next = if backward { cursor.next_back().await? } else { cursor.next().await? };
        let Some(guard) = next else { return Ok(rows) };
        let record = guard.record_async().await?;
        if guard.size() != record.value.len() {
            return Err(Error::Stopped(format!("{} has another size", show(guard.key()))));
        }
        let value = Value { bytes: record.value.to_vec().into(), deadline: record.deadline };
        rows.push((guard.key().to_vec(), value));
    }
}

/// Checks that every way of reading a keyspace gives what `space` holds.
async fn agree(
    keyspace: &Keyspace,
    env: &Env,
    space: &Space,
    prng: &mut Prng,
) -> Result<(), Trouble> {
    let name = keyspace.name().to_owned();
    let now = || env.clock.wall().0;
    let wrong = |how: &str, why: String| Err(Trouble::Wrong(format!("{how} of '{name}': {why}")));
    let failed = |how: &str| doing(format!("{how} of '{name}'"));

    let from = now();
    let found =
        rows(keyspace.cursor::<&[u8]>(..), true).await.map_err(failed("a backward scan"))?;
    let window = Window { from, to: now() };
    if let Some(why) = compare(space.keys.iter().rev(), &found, window, true) {
        return wrong("a backward scan", why);
    }

    // All keys and neighbours that may not be there.
    let mut keys: Vec<Vec<u8>> = space.keys.keys().cloned().collect();
    keys.extend((0..4).map(|n| format!("k{}/{}", n % 2, prng.below(10)).into_bytes()));
    let from = now();
    let values = keyspace.multi_get_async(&keys).await.map_err(failed("a multi_get"))?;
    let window = Window { from, to: now() };
    for (key, found) in keys.iter().zip(&values) {
        let found = found.as_ref().map(|v| &v[..]);
        if let Some(why) = differs(space.keys.get(key), found, window) {
            return wrong("a multi_get", format!("{} {why}", show(key)));
        }
    }
    for key in (0..3).filter_map(|_| prng.choose(&keys)) {
        let from = now();
        let found = keyspace.get_async(key).await.map_err(failed("a get"))?;
        let window = Window { from, to: now() };
        if let Some(why) = differs(space.keys.get(key), found.as_deref(), window) {
            return wrong("a get", format!("{} {why}", show(key)));
        }
    }

    let mut bounds =
        [prng.choose(&keys), prng.choose(&keys)].map(|k| k.cloned().unwrap_or_default());
    bounds.sort();
    let [start, end] = bounds;
    let from = now();
    let backward = prng.chance(0.5);
    let cursor = keyspace.cursor::<&[u8]>(&start[..]..&end[..]);
    let found = rows(cursor, backward).await.map_err(failed("a range scan"))?;
    let window = Window { from, to: now() };
    let inside = || space.keys.range(start.clone()..end.clone());
    let why = match backward {
        true => compare(inside().rev(), &found, window, true),
        false => compare(inside(), &found, window, false),
    };
    if let Some(why) = why {
        return wrong(&format!("a scan from {} to {}", show(&start), show(&end)), why);
    }

    let prefix = format!("k{}", prng.below(4)).into_bytes();
    let from = now();
    let found =
        rows(keyspace.prefix_cursor(&prefix), false).await.map_err(failed("a prefix scan"))?;
    let window = Window { from, to: now() };
    let inside = space.keys.iter().filter(|(key, _)| key.starts_with(&prefix));
    match compare(inside, &found, window, false) {
        Some(why) => wrong(&format!("a scan of prefix {}", show(&prefix)), why),
        None => Ok(()),
    }
}

/// Returns how an answer differs from what is expected.
fn differs(expected: Option<&Value>, found: Option<&[u8]>, window: Window) -> Option<String> {
    let shown = expected.map_or(Some(false), |value| window.shows(value));
    match (expected, found) {
        (Some(value), Some(found)) if found != &value.bytes[..] => {
            let found = Value { bytes: found.into(), deadline: None };
            Some(format!("is {}, not {}", tell(&found), tell(value)))
        }
        (Some(value), Some(_)) if shown == Some(false) => {
            Some(format!("has expired and is there: {}", tell(value)))
        }
        (None, Some(found)) => {
            let found = Value { bytes: found.into(), deadline: None };
            Some(format!("should not be there: {}", tell(&found)))
        }
        (Some(value), None) if shown == Some(true) => Some(format!("is missing: {}", tell(value))),
        _ => None,
    }
}
