//! Reading everything a database shows, in every way it can be read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_lsm::{Cursor, Database, Error, Keyspace};

use crate::model::{Row, Space, Value, Window, compare, show, tell};
use crate::oracle::{Oracle, Seen};

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
        oracle.settle(survived);
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
    for name in db.keyspaces() {
        let Some(keyspace) = db.find_keyspace(&name) else {
            return Err(Trouble::Wrong(format!("'{name}' is listed and not found")));
        };
        let rows = rows(keyspace.cursor::<&[u8]>(..), false).await;
        spaces.insert(name.clone(), rows.map_err(doing(format!("scanning '{name}'")))?);
    }
    Ok(Seen { spaces, window: Window { from, to: env.clock.wall().0 } })
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
