//! Repair: what can be done about damage when there is no good copy, and what it costs.
//!
//! Four things, in this order, on a stopped database:
//!
//! 1. *Release* (always): a table in quarantine that verifies again, because its file was restored,
//!    serves again. Nothing is lost.
//! 2. *Drop corrupt tables* (only if asked for): the version goes on without them, and their files
//!    are kept as `*.sst.corrupt`. What was in them is lost, **and older versions of the lost keys
//!    in deeper levels reappear, as do keys whose deletion was recorded in the lost table**. If
//!    the range covers the catalog (the keys that start with four zero bytes), names of keyspaces
//!    are lost with it.
//! 3. *Stand in for lost values* (only if asked for): a value file that is missing or cut short gets
//!    its length back, with zeroes. What stood there answers `Corruption`, as any single value does
//!    that does not verify, until its key is written again or deleted; keys, and values in tables and
//!    in what is left of the file, are served.
//! 4. *Cut the log* (only if asked for): at the first frame that does not verify, with everything
//!    behind it. A log whose frames are good but do not go on where the tables end (a segment is
//!    gone, or one history is older than the other) is set aside as a whole, as `*.log.corrupt`.
//!
//! Restoring a good copy of the damaged file is always better: it loses nothing.
//!
//! The manifest is replaced in one step, after the files were renamed. A repair that is interrupted
//! leaves a directory that is refused as before, and is run again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::disk::{IoClass, IoTag};
use atoll_env::{Env, IoBuf, OpenMode, block_on, os};

use crate::error::{Error, Result};
use crate::identity;
use crate::log::{self, CutReport, LogOptions, repair_cut};
use crate::pool::{HeapPool, Pool};
use crate::recovery::Replay;
use crate::values::{self, ValueDesc};
use crate::verify::{lock_existing, unfinished, verify_table};
use crate::version::manifest::{self, Manifest, State, sync_dir};
use crate::version::{Edit, Flushed, Garbage, Paths, Version};

const REPAIR: IoTag = IoTag::new(IoClass::Scrub, "repair");

/// Which losses a repair may cause. The default causes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairOptions {
    /// Cut the log at the first frame that does not verify. What was written behind it is lost.
    pub cut_log: bool,
    /// Go on without the tables that do not verify. What was in them is lost, and what they
    /// replaced or deleted may reappear.
    pub drop_corrupt_tables: bool,
    /// Go on although value files are missing or cut short. The values that stood there are lost.
    pub drop_lost_values: bool,
}

/// What a repair did.
#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// Tables that verify again and serve again.
    pub released: Vec<PathBuf>,
    /// Tables that do not verify and were dropped.
    pub dropped: Vec<DroppedTable>,
    /// Value files that got their length back, without what had been there.
    pub stood_in: Vec<Error>,
    /// Problems with tables and value files that were left as they are, because nobody asked to drop
    /// them. A single value that does not verify is no more than that: reads of its key say so until
    /// it is written again or deleted.
    pub remaining: Vec<Error>,
    /// What was cut off the log, if that was asked for. Its `problem` is `None` if the log is
    /// sound, and was left as it is.
    pub cut: Option<CutReport>,
}

/// A table that a repair took out of the database.
#[derive(Clone, Debug)]
pub struct DroppedTable {
    /// Where its file is now, `None` if it was missing.
    pub kept: Option<PathBuf>,
    /// Why it was dropped.
    pub problem: Error,
    /// Smallest key, with the 4-byte keyspace id in front.
    pub smallest: Vec<u8>,
    /// Largest key, with the 4-byte keyspace id in front.
    pub largest: Vec<u8>,
    /// Records it held.
    pub records: u64,
}

/// Repairs the stopped database at `path` as far as `options` allow. `progress` is given a line of
/// text now and then. Running it twice does nothing the second time.
///
/// # Errors
/// `Locked` if the database is running, `Foreign` if the directory is none of ours or of a newer
/// format. `Corruption` of ATOLL, CURRENT or the manifest: they cannot be repaired, restore them.
pub fn repair(
    path: impl AsRef<Path>,
    options: RepairOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<RepairReport> {
    let path = path.as_ref();
    let env = os::env().map_err(|e| Error::io("reaching the operating system for", path, e))?;
    block_on(repair_async(&env, path, options, progress))
}

/// Async twin of [`repair`], in the world `env`.
pub async fn repair_async(
    env: &Env,
    path: &Path,
    options: RepairOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<RepairReport> {
    let paths = Paths::new(path);
    let _lock = lock_existing(env, &paths).await?;
    let Some(identity) = identity::read(env, &paths).await? else {
        return Err(unfinished(&paths));
    };
    let garbage = Arc::new(Garbage::default());
    let contents = manifest::read(env, &paths, &garbage).await?;
    let flushed = contents.state.flushed.clone();
    let mut report = RepairReport::default();

    let pool: Arc<dyn Pool> = Arc::new(HeapPool::new(1 << 20));
    let mut edit = Edit::default();
    for (_, handle) in contents.state.version.tables() {
        let file = paths.table(handle.desc.id);
        progress(&format!("reading {}, {} bytes", file.display(), handle.desc.size));
        let problem = match verify_table(env, &paths, &handle.desc, &pool).await {
            Ok(_) if handle.is_quarantined() => {
                report.released.push(file);
                continue;
            }
            Ok(_) => continue,
            Err(e) if e.is_corruption() => e,
            Err(e) => return Err(e),
        };
        if !options.drop_corrupt_tables {
            report.remaining.push(problem);
            continue;
        }
        progress(&format!("dropping {}: {problem}", file.display()));
        let kept = set_aside(env, file).await?;
        edit.removed.push(handle.desc.id);
        report.dropped.push(DroppedTable {
            kept,
            problem,
            smallest: handle.desc.smallest.clone(),
            largest: handle.desc.largest.clone(),
            records: handle.desc.entries,
        });
    }
    let version =
        contents.state.version.after(&edit, &garbage).map_err(|what| {
            Error::Stopped(format!("an edit of the manifest does not fit: {what}"))
        })?;
    repair_values(env, &paths, &version, options, &mut report, progress).await?;
    // What only dropped tables pointed to is kept with them.
    for file in &contents.state.version.values {
        if version.value_file(file.handle.desc.id).is_none() {
            set_aside(env, paths.values_file(file.handle.desc.id)).await?;
        }
    }
    if !report.dropped.is_empty() || !report.released.is_empty() {
        progress("replacing the manifest");
        let released = |id| report.released.contains(&paths.table(id));
        for (_, handle) in contents.state.version.tables().filter(|(_, t)| released(t.desc.id)) {
            handle.release();
        }
        let (mut manifest, state) = Manifest::resume(env, &paths, contents).await?;
        manifest.replace(&State { version, ..state }).await?;
    }
    if options.cut_log {
        report.cut = Some(cut_log(env, &paths, identity.id, &flushed, progress).await?);
    }
    Ok(report)
}

/// Looks at the value files of `version`.
async fn repair_values(
    env: &Env,
    paths: &Paths,
    version: &Version,
    options: RepairOptions,
    report: &mut RepairReport,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    for file in &version.values {
        let desc = file.handle.desc;
        let path = paths.values_file(desc.id);
        progress(&format!("reading {}, {} bytes", path.display(), desc.size));
        let problem = match values::verify(env, path.clone(), desc).await {
            Ok(_) => continue,
            Err(e) if e.is_corruption() => e,
            Err(e) => return Err(e),
        };
        if options.drop_lost_values && stand_in(env, paths, desc).await? {
            progress(&format!("filling {} with zeroes: {problem}", path.display()));
            report.stood_in.push(problem);
        } else {
            report.remaining.push(problem);
        }
    }
    Ok(())
}

/// Gives a value file that is missing or of another length its length back; returns whether it was.
async fn stand_in(env: &Env, paths: &Paths, desc: ValueDesc) -> Result<bool> {
    let path = paths.values_file(desc.id);
    let context = |e| Error::io("filling up", &path, e);
    let old = match env.disk.open(&path, OpenMode::Read).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        other => Some(other.map_err(context)?),
    };
    let found = match &old {
        Some(file) => file.len().await.map_err(context)?,
        None => 0,
    };
    if old.is_some() && found == desc.size {
        return Ok(false);
    }
    env.disk.create_dir(&paths.values()).await.map_err(context)?;
    // Made aside, so that an interruption leaves the file as it was found.
    let aside = path.with_extension("val.new");
    let _ = env.disk.remove(REPAIR, &aside).await;
    let new = env.disk.open(&aside, OpenMode::CreateNew).await.map_err(context)?;
    let kept = found.min(desc.size);
    let mut at = 0;
    while let Some(old) = old.as_ref().filter(|_| at < kept) {
        let len = (kept - at).min(1 << 20);
        let read = old.read_at(REPAIR, at, IoBuf::zeroed(len as usize)).await.map_err(context)?;
        new.write_at(REPAIR, at, read).await.map_err(context)?;
        at += len;
    }
    if kept < desc.size {
        new.write_at(REPAIR, desc.size - 1, IoBuf::zeroed(1)).await.map_err(context)?;
    }
    new.sync(REPAIR).await.map_err(context)?;
    env.disk.rename(REPAIR, &aside, &path).await.map_err(context)?;
    sync_dir(env.disk.as_ref(), REPAIR, &paths.values()).await?;
    Ok(true)
}

/// Makes the log one that goes on where the tables end.
async fn cut_log(
    env: &Env,
    paths: &Paths,
    lane: u64,
    flushed: &Flushed,
    progress: &mut dyn FnMut(&str),
) -> Result<CutReport> {
    progress("reading the log");
    let (dir, options) = (paths.log(), LogOptions { lane, ..LogOptions::default() });
    env.disk.create_dir(&dir).await.map_err(|e| Error::io("making the directory", &dir, e))?;
    let durable = flushed.position.max(1);
    let nothing = CutReport { problem: None, end: 0, dropped_frames: 0, dropped_bytes: 0 };
    let report = match repair_cut(env, &dir, options, flushed.position).await {
        // What a cut does not mend shows again below.
        Err(e) if e.is_corruption() => nothing,
        other => other?,
    };
    let problem = match Replay::open(env, paths, options, flushed).await {
        Ok(mut replay) => replay.visit(|_, _| Ok(())).await,
        Err(e) => Err(e),
    };
    let problem = match problem {
        Ok(()) => return Ok(report),
        Err(e) if e.is_corruption() => e,
        Err(e) => return Err(e),
    };
    progress(&format!("setting the log aside: {problem}"));
    let found = log::verify(env, &dir, lane, |_, _, _| {}).await?;
    let entries = env.disk.list(&dir).await.map_err(|e| Error::io("listing", &dir, e))?;
    // The newest first: what an interruption leaves is refused by the next opening.
    for entry in entries.iter().rev().filter(|e| e.name.ends_with(".log")) {
        set_aside(env, dir.join(&entry.name)).await?;
    }
    let fresh = repair_cut(env, &dir, options, durable.max(found.end)).await?;
    Ok(CutReport {
        problem: report.problem.or(Some(problem)),
        end: fresh.end,
        dropped_frames: report.dropped_frames + found.frames,
        dropped_bytes: report.dropped_bytes + found.frame_bytes,
    })
}

/// Renames a file, so that it is neither read nor removed; `None` if it is missing.
async fn set_aside(env: &Env, from: PathBuf) -> Result<Option<PathBuf>> {
    let mut to = from.clone().into_os_string();
    to.push(".corrupt");
    let to = PathBuf::from(to);
    match env.disk.rename(REPAIR, &from, &to).await {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("renaming", &from, e)),
    }
    if let Some(dir) = from.parent() {
        sync_dir(env.disk.as_ref(), REPAIR, dir).await?;
    }
    Ok(Some(to))
}
