//! Verification: every byte of a stopped database is read and held against everything known of it.
//!
//! ```text
//!   ATOLL -> CURRENT -> manifest -+-> every live table: each block, the order, the counts
//!                                 +-> log: the chain of frames, and that it goes on where
//!                                          the tables end
//! ```
//!
//! It goes on after a problem, because who has a damaged directory wants to know all of the damage
//! before restoring or repairing anything, and it changes nothing: the lock apart it opens files
//! for reading only.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::{Env, block_on, os};

use crate::batch::Records;
use crate::database::Database;
use crate::error::{Error, Result};
use crate::identity::{self, Identity, Kind};
use crate::log::LogOptions;
use crate::opening::lock;
use crate::pool::{HeapPool, Pool};
use crate::recovery::{Replay, compare};
use crate::table::{Expected, Table, Verified};
use crate::values::{self, ValueDesc};
use crate::version::manifest::{self, Contents};
use crate::version::{Flushed, Garbage, Paths, TableDesc};

/// Tables are read past the cache, but opening one asks for it.
const CACHE: usize = 1 << 20;

/// What a verification read, and what it found wrong.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Live tables.
    pub tables: u64,
    /// Of these, tables in quarantine: reads of their range are refused.
    pub quarantined: u64,
    /// Bytes of the tables that verified.
    pub table_bytes: u64,
    /// Data blocks in them.
    pub data_blocks: u64,
    /// Records in them.
    pub records: u64,
    /// Live value files.
    pub value_files: u64,
    /// Bytes of the value files that verified.
    pub value_bytes: u64,
    /// Values in them, those that nobody points to any more included.
    pub values: u64,
    /// Edits of the manifest.
    pub manifest_edits: u64,
    /// Segments of the log.
    pub log_segments: u64,
    /// Frames of the log.
    pub log_frames: u64,
    /// Bytes of them, headers and padding included.
    pub log_bytes: u64,
    /// Entries of the log that are not in tables yet.
    pub log_entries: u64,
    /// Files that the next opening removes: an interrupted flush, compaction or replacement left
    /// them. They are no problem.
    pub leftovers: Vec<PathBuf>,
    /// Everything that is wrong, each with file and offset. Empty if the database is sound.
    pub problems: Vec<Error>,
}

impl VerifyReport {
    /// Returns whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn count(&mut self, table: Verified) {
        self.table_bytes += table.bytes;
        self.data_blocks += table.data_blocks;
        self.records += table.entries;
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tables with {} records in {} blocks ({} bytes), {} values in {} value files \
             ({} bytes), {} log frames in {} segments \
             ({} bytes), {} problems",
            self.tables,
            self.records,
            self.data_blocks,
            self.table_bytes,
            self.values,
            self.value_files,
            self.value_bytes,
            self.log_frames,
            self.log_segments,
            self.log_bytes,
            self.problems.len()
        )
    }
}

/// Reads and checks everything in the stopped database at `path`, and changes nothing. `progress`
/// is given a line of text now and then.
///
/// # Errors
/// `Locked` if the database is running, `Foreign` if the directory is none of ours or of a newer
/// format, `Io` if the disk fails. What does not verify is no error of the call but in the report.
pub fn verify(path: impl AsRef<Path>, progress: &mut dyn FnMut(&str)) -> Result<VerifyReport> {
    let path = path.as_ref();
    let env = os::env().map_err(|e| Error::io("reaching the operating system for", path, e))?;
    block_on(verify_async(&env, path, progress))
}

/// Async twin of [`verify`], in the world `env`.
pub async fn verify_async(
    env: &Env,
    path: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<VerifyReport> {
    let paths = Paths::new(path);
    let _lock = lock_existing(env, &paths).await?;
    let mut report = VerifyReport::default();
    let identity = match note(identity::read(env, &paths).await, &mut report)? {
        Some(None) => return Err(unfinished(&paths)),
        read => read.flatten(),
    };
    let garbage = Arc::new(Garbage::default());
    progress("reading the manifest");
    let contents = note(manifest::read(env, &paths, &garbage).await, &mut report)?;
    if let Some(contents) = &contents {
        verify_tables(env, &paths, contents, &mut report, progress).await?;
    } else {
        progress("the tables cannot be checked without the manifest");
    }
    match identity {
        Some(identity) => {
            let flushed = contents.map(|c| c.state.flushed);
            verify_log(env, &paths, identity, flushed, &mut report, progress).await?;
        }
        None => progress("the log cannot be checked without the identity in ATOLL"),
    }
    Ok(report)
}

/// Takes the lock of a directory that holds a database, and makes no file elsewhere.
pub(crate) async fn lock_existing(env: &Env, paths: &Paths) -> Result<Box<dyn Send + Sync>> {
    let entries = match env.disk.list(&paths.root).await {
        Ok(entries) => entries,
        Err(e) => return Err(Error::io("listing", &paths.root, e)),
    };
    if !entries.iter().any(|e| ["ATOLL", "CURRENT", "tables", "log"].contains(&e.name.as_str())) {
        let what = "there is no AtollDB database here: name its directory".to_owned();
        return Err(Error::Foreign { path: paths.root.clone(), what });
    }
    lock(env, paths).await
}

/// Says that there is no database yet.
pub(crate) fn unfinished(paths: &Paths) -> Error {
    let what = "the making of this database did not finish: open it instead".to_owned();
    Error::Foreign { path: paths.root.clone(), what }
}

/// Puts a corruption into the report; other errors end the verification.
fn note<T>(result: Result<T>, report: &mut VerifyReport) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.is_corruption() => {
            report.problems.push(e);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

async fn verify_tables(
    env: &Env,
    paths: &Paths,
    contents: &Contents,
    report: &mut VerifyReport,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    report.manifest_edits = contents.edits;
    let Some((leftovers, problems)) = note(compare(env, paths, contents).await, report)? else {
        return Ok(());
    };
    report.leftovers = leftovers;
    let pool: Arc<dyn Pool> = Arc::new(HeapPool::new(CACHE));
    for (_, handle) in contents.state.version.tables() {
        report.tables += 1;
        report.quarantined += u64::from(handle.is_quarantined());
        let path = paths.table(handle.desc.id);
        let known =
            problems.iter().find(|e| matches!(e, Error::Corruption { file, .. } if *file == path));
        if let Some(problem) = known {
            report.problems.push(problem.clone());
            continue;
        }
        progress(&format!("reading {}, {} bytes", path.display(), handle.desc.size));
        let verified = verify_table(env, paths, &handle.desc, &pool).await;
        let Some(verified) = note(verified, report)? else { continue };
        report.count(verified);
        if handle.is_quarantined() {
            let what = "the table verifies, but is in quarantine since it once did not: `atoll \
                        repair` takes it out";
            report.problems.push(Error::corruption(&path, 0, what));
        }
    }
    for file in &contents.state.version.values {
        let path = paths.values_file(file.handle.desc.id);
        let known =
            problems.iter().find(|e| matches!(e, Error::Corruption { file, .. } if *file == path));
        if let Some(problem) = known {
            report.value_files += 1;
            report.problems.push(problem.clone());
            continue;
        }
        verify_values(env, &path, file.handle.desc, report, progress).await?;
    }
    Ok(())
}

/// Reads a whole value file.
async fn verify_values(
    env: &Env,
    path: &Path,
    desc: ValueDesc,
    report: &mut VerifyReport,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    report.value_files += 1;
    progress(&format!("reading {}, {} bytes", path.display(), desc.size));
    let verified = values::verify(env, path.to_owned(), desc).await;
    if let Some(verified) = note(verified, report)? {
        report.values += verified.records;
        report.value_bytes += verified.bytes;
    }
    Ok(())
}

/// Reads a whole table and holds it against what the manifest says of it.
pub(crate) async fn verify_table(
    env: &Env,
    paths: &Paths,
    desc: &TableDesc,
    pool: &Arc<dyn Pool>,
) -> Result<Verified> {
    let path = paths.table(desc.id);
    let expected = Expected { size: desc.size, salt: desc.salt, base: desc.base };
    let table = match Table::open(env.disk.as_ref(), &path, desc.id, expected, pool.clone()).await {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::corruption(&path, 0, "the file is missing"));
        }
        other => other?,
    };
    let verified = table.verify().await?;
    let p = table.properties();
    if (p.smallest.as_slice(), p.largest.as_slice()) != (&desc.smallest[..], &desc.largest[..])
        || (p.seqno_min + desc.base, p.seqno_max + desc.base) != desc.seqnos
        || p.range_tombstones != desc.range_tombstones
        || verified.values[..] != desc.values[..]
    {
        let what = "the manifest describes other contents than the table has";
        return Err(Error::corruption(&path, 0, what));
    }
    Ok(verified)
}

async fn verify_log(
    env: &Env,
    paths: &Paths,
    Identity { kind, id: lane }: Identity,
    flushed: Option<Flushed>,
    report: &mut VerifyReport,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    progress("reading the log");
    let options = LogOptions { lane, ..LogOptions::default() };
    let Some(flushed) = flushed else {
        // Without the manifest only the frames can be judged.
        let frames = crate::log::verify(env, &paths.log(), lane, |_, _, _| {}).await;
        if let Some(summary) = note(frames, report)? {
            report.log_segments = summary.segments as u64;
            report.log_frames = summary.frames;
            report.log_bytes = summary.frame_bytes;
        }
        return Ok(());
    };
    let Some(mut replay) = note(Replay::open(env, paths, options, &flushed).await, report)? else {
        return Ok(());
    };
    let summary = replay.summary();
    report.log_segments = summary.segments as u64;
    report.log_frames = summary.frames;
    report.log_bytes = summary.frame_bytes;
    let mut entries = 0;
    let log = paths.log();
    let visited = replay
        .visit(|entry, _| {
            entries += 1;
            if kind == Kind::Store {
                // What is in it is the owner's business.
                return Ok(());
            }
            let malformed = |e| {
                let what = format!("the entry at lane position {}: {e}", entry.position);
                Error::corruption(&log, 0, what)
            };
            for record in Records::new(entry.payload).map_err(malformed)? {
                record.map_err(malformed)?;
            }
            Ok(())
        })
        .await;
    note(visited, report)?;
    report.log_entries = entries;
    Ok(())
}

impl Database {
    /// Reads and checks every live table of the running database. A table that does not verify is
    /// put into quarantine. The log is checked when the database is opened, or by
    /// [`verify`] once it is closed.
    pub fn verify(&self, progress: &mut dyn FnMut(&str)) -> Result<VerifyReport> {
        block_on(self.verify_async(progress))
    }

    /// Async twin of [`Database::verify`].
    pub async fn verify_async(&self, progress: &mut dyn FnMut(&str)) -> Result<VerifyReport> {
        let store = self.store();
        let mut report = VerifyReport::default();
        let (view, _) = store.pin_owned();
        let pool: Arc<dyn Pool> = Arc::new(HeapPool::new(CACHE));
        for (_, handle) in view.version.tables() {
            report.tables += 1;
            let path = store.paths.table(handle.desc.id);
            progress(&format!("reading {}, {} bytes", path.display(), handle.desc.size));
            let verified = verify_table(self.env(), &store.paths, &handle.desc, &pool).await;
            if let Err(e) = &verified {
                store.tables.suspect(handle, e);
            }
            report.quarantined += u64::from(handle.is_quarantined());
            if let Some(verified) = note(verified, &mut report)? {
                report.count(verified);
            }
        }
        for file in &view.version.values {
            let path = store.paths.values_file(file.handle.desc.id);
            verify_values(self.env(), &path, file.handle.desc, &mut report, progress).await?;
        }
        store.compaction_due.notify();
        Ok(report)
    }
}
