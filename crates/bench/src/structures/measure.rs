//! The workloads on one structure.

use rustix::time::{ClockId, clock_gettime};

use super::kinds::Structure;
use super::report::Figures;
use crate::Failure;
use crate::alloc::Counts;
use crate::data::{self, KEY_LEN, VALUE_LEN};
use crate::engines::Direction;

/// Different values: enough that not all come from the first cache, few enough that making them
/// is no part of an insert.
const VALUES: u64 = 1024;

/// Keys in the order they are used. They are made before the clock starts.
type Keys = Vec<[u8; KEY_LEN]>;

/// Runs all workloads on a structure of that many records.
pub fn of<S: Structure>(entries: u64) -> Result<Figures, Failure> {
    let values: Vec<_> = (0..VALUES).map(data::value).collect();
    let keys: Keys = (0..entries).map(data::ascending_key).collect();
    let (insert_ascending, structure) = fill::<S>(&keys, &values)?;
    drop((structure, keys));

    let keys: Keys = (0..entries).map(data::key).collect();
    let before = Counts::of_process();
    let (insert_random, structure) = fill::<S>(&keys, &values)?;
    let counts = Counts::of_process() - before;
    drop(keys);
    let per_entry = |n: u64| Some(n as f64 / entries as f64);

    let asked: Keys = (0..entries).map(|n| data::key(data::pick(0, n, entries))).collect();
    let (get_random, found) = timed(entries, || asked.iter().all(|key| structure.get(key)));
    if !found {
        return Err("a key that was inserted is missing".into());
    }
    let scan = |direction| match timed(entries, || structure.scan(direction)) {
        (_, None) => Ok(None),
        (nanos, Some(met)) if met == entries => Ok(Some(nanos)),
        (_, Some(met)) => Err(format!("a scan met {met} of {entries} records")),
    };
    Ok(Figures([
        Some(insert_ascending),
        Some(insert_random),
        Some(get_random),
        scan(Direction::Forward)?,
        scan(Direction::Reverse)?,
        per_entry(counts.live() + structure.mapped() as u64),
        per_entry(counts.allocations),
    ]))
}

/// Makes a structure of the keys, and returns it behind the nanoseconds of an insert.
fn fill<S: Structure>(keys: &Keys, values: &[[u8; VALUE_LEN]]) -> Result<(f64, S), Failure> {
    let (nanos, structure) = timed(keys.len() as u64, || {
        let mut structure = S::new(keys.len() as u64);
        for (key, value) in keys.iter().zip(values.iter().cycle()) {
            structure.insert(key, value)?;
        }
        Ok::<_, Failure>(structure)
    });
    Ok((nanos, structure?))
}

/// Returns what came of the work, behind the nanoseconds of processor time by operation. Not time on
/// the wall: a structure in memory waits for nobody, so that what passes besides is other programs'.
fn timed<T>(operations: u64, work: impl FnOnce() -> T) -> (f64, T) {
    let now = || clock_gettime(ClockId::ThreadCPUTime);
    let start = now();
    let done = work();
    let took = now() - start;
    ((took.tv_sec as f64 * 1e9 + took.tv_nsec as f64) / operations as f64, done)
}
