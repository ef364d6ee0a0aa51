//! What a store holds is a function of its log: brought back from what the disk has, it must be the
//! same store.
//!
//! ```text
//!   quiet:         the newest version of every key, of all stores
//!   power cut, another number of cores
//!   served again:  the same
//! ```
//!
//! Readers of keys see lost values; this sees what no command shows: metadata, parts of objects, a
//! version that came back from the dead, or one that recovery applied twice. The other half, that an
//! entry is the same whenever it is applied, is stated by whoever applies it
//! ([`atoll_env::always_same`]). With several replicas both compare engines instead of lives.
//!
//! Time has to stand still for it: nobody writes, what had a deadline is reaped and what was dropped
//! is reclaimed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use atoll_encoding::hash::hash64;
use atoll_env::random::Prng;
use atoll_env::sim::CrashMode;
use atoll_lsm::Durability;
use atoll_lsm::driven::{Direction, Tree};
use atoll_mvcc::keys::tree::Area;

use super::client::Connection;
use super::run::{RECOVERY_MAX, start_server};
use super::world::World;

/// After the last command, until deadlines have come and dropped databases are gone.
const UNTIL_QUIET: Duration = Duration::from_secs(15);
/// So many that no shard is left out.
const KEYS: u32 = 200;
/// How often so long: each look at what was dropped works off a part of it.
const LOOKS: usize = 20;
/// Rows that a failure names.
const TOLD_MAX: usize = 30;

/// Cuts the power of a server that has nothing to do, and compares what is there before and after.
///
/// # Errors
/// Something is there only before, or only after.
pub async fn compare(world: &Rc<World>, prng: &mut Prng) -> Result<(), String> {
    let clock = world.judge.env().clock;
    clock.sleep(UNTIL_QUIET).await;
    for _ in 0..LOOKS {
        if !rows(world).await?.keys().any(|key| is_dropped(key)) {
            break;
        }
        clock.sleep(UNTIL_QUIET).await;
    }
    // What the server does by itself (reaping, reclaiming) is not synced and done again if it is
    // lost. A synced write into each shard makes durable whatever its log has.
    let lost = "the connection is lost at the end";
    let mut connection = Connection::open(&world.judge.env(), world.address()).await.ok_or(lost)?;
    for number in 0..KEYS {
        connection.ask(&["SET", &format!("mirror:{number}"), "1"]).await?.ok_or(lost)?;
    }
    let before = rows(world).await?;
    if let Some(key) = before.keys().find(|key| is_dropped(key)) {
        // Where the clock has jumped back, time stands still for up to an hour, and so does reclaim.
        return match world.jumps {
            true => Ok(()),
            false => Err(format!("a dropped database is not reclaimed: {}", key.escape_ascii())),
        };
    }
    // What is promised less than a power cut's survival only has to survive the process.
    world.server.crash_with(match world.durability {
        Durability::Synced => CrashMode::DropAll,
        _ => CrashMode::KeepAll,
    });
    clock.sleep(Duration::from_millis(1 + prng.below(500))).await;
    world.server.restart();
    start_server(world, 1 + prng.index(2));
    if !world.wait(RECOVERY_MAX, |world| world.serves.get()).await {
        return Err("the server does not serve a minute after the last power cut".to_owned());
    }
    let after = rows(world).await?;
    match differences(&before, &after) {
        none if none.is_empty() => Ok(()),
        some => Err(format!("the stores are not what they were before a power cut:{some}")),
    }
}

/// Returns whether a row says that something was dropped and is not reclaimed.
fn is_dropped(key: &[u8]) -> bool {
    const NOTE: &[u8] = b"keyspaces/dropped/";
    key.windows(NOTE.len()).any(|part| part == NOTE)
}

/// What stores hold: rows with stamp and hash of the value. After a split or a restart a row may lie
/// in another store, so it does not matter in which one it is.
type Rows = BTreeMap<Vec<u8>, (u64, u64)>;

/// Tells the first rows that are not the same.
fn differences(before: &Rows, after: &Rows) -> String {
    let gone = before.iter().filter(|(key, row)| after.get(*key) != Some(row));
    let new = after.iter().filter(|(key, row)| before.get(*key) != Some(row));
    let told = gone.map(|row| ("only before", row)).chain(new.map(|row| ("only after", row)));
    let mut text = String::new();
    for (when, (key, (stamp, hash))) in told.take(TOLD_MAX) {
        let key = key.escape_ascii();
        let _ = write!(text, "\n  {when}: {key} at {stamp}, value {hash:016x}");
    }
    text
}

/// Reads what is visible of all stores.
async fn rows(world: &World) -> Result<Rows, String> {
    let trees = world.engine.borrow().as_ref().map(|engine| engine.trees());
    let trees = trees.ok_or("the server is gone at the end")?;
    let mut rows = Rows::new();
    for (_, tree) in trees {
        for area in [Area::Data, Area::Sub] {
            let read = read_area(&tree, area, &mut rows).await;
            read.map_err(|e| format!("a store cannot be read: {e}"))?;
        }
    }
    Ok(rows)
}

async fn read_area(tree: &Tree, area: Area, rows: &mut Rows) -> atoll_lsm::Result<()> {
    let (start, end) = ([area as u8], [area as u8 + 1]);
    let mut cursor = tree.scan_versions(&start, &end, u64::MAX, Direction::Forward);
    while let Some(row) = cursor.next().await? {
        let value = row.value().await?;
        rows.insert(row.key().to_vec(), (row.stamp(), value.map_or(0, |value| hash64(&value))));
    }
    Ok(())
}
