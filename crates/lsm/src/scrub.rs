//! Scrubbing: all tables and value files are read now and then, so that rot is found while a good copy
//! still exists.
//!
//! What nobody reads rots unnoticed until a backup of before has been pruned. A scrub reads every byte of
//! every live file in the lowest class of I/O and at a bounded rate. It treats what it finds as a reader
//! would: a table goes into quarantine, the background work notes it in the manifest; a value file is
//! reported, since damage costs single values there.
//!
//! It goes file by file, each looked up when its turn comes. A pass takes hours; pinning one version
//! for it would keep every file that is merged away meanwhile.

use std::sync::Arc;
use std::time::Duration;

use atoll_env::block_on;
use atoll_env::sync::select_biased;

use crate::background::Background;
use crate::database::Database;
use crate::error::{Error, Result};
use crate::events::{CorruptionFound, Event};
use crate::pool::{HeapPool, Pool};
use crate::store::Store;
use crate::values;
use crate::verify::{VerifyReport, verify_table};

/// Tables are read past the cache, but opening one asks for it.
const CACHE: usize = 1 << 20;

impl Database {
    /// Reads and checks every live table and value file at the rate of [`Options::scrub_rate`], as the scheduled
    /// scrub does. What does not verify is in the report, a table in quarantine from then on; tables that are
    /// in quarantine already are left out. [`Database::verify`] does it as fast as it can.
    ///
    /// [`Options::scrub_rate`]: crate::Options::scrub_rate
    pub fn scrub(&self) -> Result<VerifyReport> {
        block_on(self.scrub_async())
    }

    /// Async twin of [`Database::scrub`].
    pub async fn scrub_async(&self) -> Result<VerifyReport> {
        self.check_open()?;
        pass(self.store()).await
    }
}

impl Background {
    /// Scrubs at every interval until the store stops.
    pub(crate) async fn scrub_loop(&self, interval: Duration) {
        while rest(&self.store, interval).await {
            // A disk that fails is tried again at the next interval; readers are told by themselves.
            let _ = pass(&self.store).await;
        }
    }
}

/// Reads every table and value file that is live when its turn comes.
async fn pass(store: &Arc<Store>) -> Result<VerifyReport> {
    let pool: Arc<dyn Pool> = Arc::new(HeapPool::new(CACHE));
    let mut report = VerifyReport::default();
    let (tables, values): (Vec<u64>, Vec<u64>) = {
        let version = &store.pin().0.version;
        let tables = version.tables().map(|(_, table)| table.desc.id).collect();
        (tables, version.values.iter().map(|file| file.handle.desc.id).collect())
    };
    for id in tables {
        let read = scrub_table(store, id, &pool, &mut report).await?;
        if !rest(store, time_of(store, read)).await {
            return Ok(report);
        }
    }
    for id in values {
        let read = scrub_values(store, id, &mut report).await?;
        if !rest(store, time_of(store, read)).await {
            break;
        }
    }
    Ok(report)
}

/// Reads a table if it is still there; returns the bytes read.
async fn scrub_table(
    store: &Arc<Store>,
    id: u64,
    pool: &Arc<dyn Pool>,
    report: &mut VerifyReport,
) -> Result<u64> {
    let version = store.pin().0.version.clone();
    let found = version.tables().map(|(_, table)| table).find(|table| table.desc.id == id).cloned();
    drop(version);
    let Some(handle) = found else { return Ok(0) };
    if handle.is_quarantined() {
        report.quarantined += 1;
        return Ok(0);
    }
    let size = handle.desc.size;
    let verified = verify_table(&store.options.env, &store.paths, &handle.desc, pool).await;
    store.stats.scrubbed(size, verified.is_err());
    match verified {
        Ok(verified) => {
            report.tables += 1;
            report.count(verified);
        }
        Err(e) if e.is_corruption() => {
            store.tables.suspect(&handle, &e);
            store.compaction_due.notify();
            report.quarantined += 1;
            report.problems.push(e);
        }
        Err(e) => return Err(e),
    }
    Ok(size)
}

/// Reads a value file if it is still there; returns the bytes read. Damage there costs single values, whose
/// readers are told: so it is told and nothing else.
async fn scrub_values(store: &Arc<Store>, id: u64, report: &mut VerifyReport) -> Result<u64> {
    let version = store.pin().0.version.clone();
    let found = version.value_file(id).map(|file| file.handle.clone());
    drop(version);
    let Some(handle) = found else { return Ok(0) };
    let desc = handle.desc;
    let path = store.paths.values_file(id);
    let verified = values::verify(&store.options.env, path, desc).await;
    store.stats.scrubbed(desc.size, verified.is_err());
    report.value_files += 1;
    match verified {
        Ok(verified) => {
            report.values += verified.records;
            report.value_bytes += verified.bytes;
        }
        Err(e) => {
            let Error::Corruption { file, offset, what } = e.clone() else { return Err(e) };
            let found = || Event::CorruptionFound(CorruptionFound { file, offset, what });
            store.events.tell(found);
            report.problems.push(e);
        }
    }
    Ok(desc.size)
}

/// Returns how long reading so many bytes takes at the store's rate.
fn time_of(store: &Store, bytes: u64) -> Duration {
    Duration::from_nanos(pause_nanos(bytes, store.options.scrub_rate.max(1)))
}

/// Returns how long reading `bytes` takes at `rate` bytes a second.
fn pause_nanos(bytes: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX)
}

/// Waits; returns false if the store stops meanwhile.
async fn rest(store: &Store, time: Duration) -> bool {
    let clock = &store.options.env.clock;
    let until = clock.now().after(time);
    loop {
        let relief = store.relief.listen();
        if store.is_stopping() {
            return false;
        }
        let now = clock.now();
        if now >= until {
            return true;
        }
        select_biased(clock.sleep(until.since(now)), relief).await;
    }
}
