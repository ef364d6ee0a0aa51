//! What a store holds is a function of its log: brought back from what the disk has, it must be the
//! same store.
//!
//! ```text
//!   quiet, at T:   hash of all versions visible at T, of all stores
//!   power cut, or another number of cores
//!   served again:  the same hash at T
//! ```
//!
//! Readers of keys see lost values; this sees what no command shows: metadata, parts of objects, a
//! version that came back from the dead, or one that recovery applied twice. The other half, that an
//! entry is the same whenever it is applied, is stated by whoever applies it
//! ([`atoll_env::always_same`]). With several replicas both compare engines instead of lives.
//!
//! Time has to stand still for it: nobody writes, what had a deadline is reaped and what was dropped
//! is reclaimed.

use std::rc::Rc;
use std::time::Duration;

use atoll_encoding::hash::hash64;
use atoll_env::random::Prng;
use atoll_env::sim::CrashMode;
use atoll_lsm::Durability;
use atoll_lsm::driven::{Direction, Tree};
use atoll_mvcc::keys::tree::Area;

use super::run::{RECOVERY_MAX, start_server};
use super::world::World;

/// After the last command, until deadlines have come and dropped databases are gone.
const UNTIL_QUIET: Duration = Duration::from_secs(15);

/// Cuts the power of a server that has nothing to do, and compares what is there before and after.
///
/// # Errors
/// Something is there only before, or only after.
pub async fn compare(world: &Rc<World>, prng: &mut Prng) -> Result<(), String> {
    let clock = world.judge.env().clock;
    clock.sleep(UNTIL_QUIET).await;
    let before = hash(world, u64::MAX).await?;
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
    let after = hash(world, u64::MAX).await?;
    match before == after {
        true => Ok(()),
        false => Err(format!(
            "the stores are not what they were before a power cut: {before:?} then, {after:?} now"
        )),
    }
}

/// The sum of the hashes of all rows, so that it does not matter which store has them, and their
/// number.
async fn hash(world: &World, at: u64) -> Result<(u64, u64), String> {
    let trees = world.engine.borrow().as_ref().map(|engine| engine.trees());
    let trees = trees.ok_or("the server is gone at the end")?;
    let (mut sum, mut rows) = (0u64, 0);
    for (_, tree) in trees {
        for area in [Area::Data, Area::Sub] {
            let of_area = hash_area(&tree, area, at).await;
            let (hash, count) = of_area.map_err(|e| format!("a store cannot be read: {e}"))?;
            sum = sum.wrapping_add(hash);
            rows += count;
        }
    }
    Ok((sum, rows))
}

async fn hash_area(tree: &Tree, area: Area, at: u64) -> atoll_lsm::Result<(u64, u64)> {
    let (start, end) = ([area as u8], [area as u8 + 1]);
    let mut cursor = tree.scan_versions(&start, &end, at, Direction::Forward);
    let (mut sum, mut rows) = (0u64, 0);
    let mut row_bytes = Vec::new();
    while let Some(row) = cursor.next().await? {
        row_bytes.clear();
        row_bytes.extend_from_slice(&(row.key().len() as u64).to_le_bytes());
        row_bytes.extend_from_slice(row.key());
        row_bytes.extend_from_slice(&row.stamp().to_le_bytes());
        if let Some(value) = row.value().await? {
            row_bytes.extend_from_slice(&value);
        }
        sum = sum.wrapping_add(hash64(&row_bytes));
        rows += 1;
    }
    Ok((sum, rows))
}
