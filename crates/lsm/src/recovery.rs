//! What opening and verifying a directory share: is it all there, and does it belong together?
//!
//! Manifest, tables and log are three histories of one store, and each proves something about the
//! others. A copy of one of them that was put back from an earlier time shows by that:
//!
//! | this is older than the rest | what contradicts it |
//! |---|---|
//! | log | the manifest knows up to where the log was durable |
//! | manifest | the log has let go of entries, or the directory of tables, that it needs |
//! | table | the manifest holds the salt of its checksums |
//!
//! Nothing here changes a file, so that a directory that is refused is left as it was found.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;

use atoll_env::Env;

use crate::error::{Error, Result};
use crate::log::{GroupId, LaneCut, LaneSummary, Log, LogOptions, Recovery, Replayed, Rest};
use crate::version::manifest::Contents;
use crate::version::{Applied, Flushed, Paths};

/// Compares the directories with the manifest. Returns the files that no manifest names: an
/// interrupted flush, compaction or replacement left them, and they may be removed.
///
/// A live table that is missing or of another length is an error.
pub(crate) async fn inspect(env: &Env, paths: &Paths, manifest: &Contents) -> Result<Vec<PathBuf>> {
    let (strays, problems) = compare(env, paths, manifest).await?;
    problems.into_iter().next().map_or(Ok(strays), Err)
}

/// Does what [`inspect`] does, and returns every missing or damaged table.
pub(crate) async fn compare(
    env: &Env,
    paths: &Paths,
    manifest: &Contents,
) -> Result<(Vec<PathBuf>, Vec<Error>)> {
    let version = &manifest.state.version;
    let (mut strays, mut problems) = (Vec::new(), Vec::new());
    let mut present = BTreeSet::new();
    for entry in list(env, paths.tables()).await? {
        let Some(id) = entry.name.strip_suffix(".sst").and_then(|n| n.parse::<u64>().ok()) else {
            continue;
        };
        let Some((_, handle)) = version.tables().find(|(_, t)| t.desc.id == id) else {
            strays.push(paths.tables().join(entry.name));
            continue;
        };
        present.insert(id);
        let size = handle.desc.size;
        if entry.len != size {
            let what = format!("the file has {} bytes, not {size}", entry.len);
            problems.push(Error::corruption(&paths.table(id), entry.len.min(size), what));
        }
    }
    for (_, handle) in version.tables().filter(|(_, t)| !present.contains(&t.desc.id)) {
        problems.push(Error::corruption(&paths.table(handle.desc.id), 0, "the file is missing"));
    }
    compare_values(env, paths, manifest, &mut strays, &mut problems).await?;
    for entry in list(env, paths.root.clone()).await? {
        let other = entry.name.strip_prefix("manifest-").and_then(|n| n.parse::<u64>().ok());
        if other.is_some_and(|id| id != manifest.id()) {
            strays.push(paths.root.join(entry.name));
        }
    }
    Ok((strays, problems))
}

/// Compares the directory of value files, which older databases do not have.
async fn compare_values(
    env: &Env,
    paths: &Paths,
    manifest: &Contents,
    strays: &mut Vec<PathBuf>,
    problems: &mut Vec<Error>,
) -> Result<()> {
    let version = &manifest.state.version;
    let mut present = BTreeSet::new();
    let entries = match env.disk.list(&paths.values()).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|e| Error::io("listing", &paths.values(), e))?,
    };
    for entry in entries {
        let Some(id) = entry.name.strip_suffix(".val").and_then(|n| n.parse::<u64>().ok()) else {
            continue;
        };
        let Some(file) = version.value_file(id) else {
            strays.push(paths.values().join(entry.name));
            continue;
        };
        present.insert(id);
        let size = file.handle.desc.size;
        if entry.len != size {
            let what = format!("the value file has {} bytes, not {size}", entry.len);
            let offset = entry.len.min(size);
            problems.push(Error::corruption(&paths.values_file(id), offset, what));
        }
    }
    let ids = version.values.iter().map(|file| file.handle.desc.id);
    for id in ids.filter(|id| !present.contains(id)) {
        problems.push(Error::corruption(&paths.values_file(id), 0, "the file is missing"));
    }
    Ok(())
}

async fn list(env: &Env, dir: PathBuf) -> Result<Vec<atoll_env::disk::DirEntry>> {
    match env.disk.list(&dir).await {
        Ok(entries) => Ok(entries),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::corruption(&dir, 0, "the directory is missing"))
        }
        Err(e) => Err(Error::io("listing", &dir, e)),
    }
}

/// The entries of the log that are not in tables yet, held against what the manifest says.
pub(crate) struct Replay {
    recovery: Recovery,
    log: PathBuf,
    /// Per group, the index of the last entry that is in tables or was visited.
    applied: Applied,
}

impl Replay {
    /// Verifies the log.
    pub(crate) async fn open(
        env: &Env,
        paths: &Paths,
        options: LogOptions,
        flushed: &Flushed,
    ) -> Result<Replay> {
        let log = paths.log();
        let segments = list(env, log.clone()).await?;
        if !segments.iter().any(|e| e.name.ends_with(".log")) {
            return Err(Error::corruption(&log, 0, "the log's segments are missing"));
        }
        let recovery = Log::open(env, &log, options, flushed.position).await?;
        let applied = flushed.applied.clone();
        for group in recovery.groups() {
            let applied = applied.get(&group.group).copied().unwrap_or(0);
            if group.first > applied + 1 {
                return Err(Error::corruption(
                    &log,
                    0,
                    format!(
                        "the log has let go of entries up to {}, because they were in tables, but \
                         the manifest knows of tables up to entry {applied}: it is from an earlier \
                         time",
                        group.first - 1
                    ),
                ));
            }
        }
        Ok(Replay { recovery, log, applied })
    }

    /// Returns, per group, the index of the last entry that is in tables or was visited.
    pub(crate) fn applied(&self) -> Applied {
        self.applied.clone()
    }

    /// Shows every entry that is not in tables to `visit`, in the order of the log, with
    /// what was applied before it.
    pub(crate) async fn visit(
        &mut self,
        mut visit: impl FnMut(Replayed<'_>, &Applied) -> Result<()>,
    ) -> Result<()> {
        let all = |entry: Replayed<'_>, applied: &Applied| {
            visit(entry, applied).map(ControlFlow::Continue)
        };
        self.visit_while(all).await.map(drop)
    }

    /// Shows entries as [`Replay::visit`] does, up to the first that is not taken. Returns what is to be
    /// read again then, from that one on, and what was applied before it. For this replay it was visited.
    pub(crate) async fn visit_while(
        &mut self,
        mut visit: impl FnMut(Replayed<'_>, &Applied) -> Result<ControlFlow<()>>,
    ) -> Result<Option<(Rest, Applied)>> {
        while let Some(entry) = self.recovery.next_entry().await? {
            let (group, index) = (entry.id.group, entry.id.index);
            let applied = self.applied.get(&group).copied().unwrap_or(0);
            if index <= applied {
                continue;
            }
            if index != applied + 1 {
                let what = format!(
                    "at lane position {} entry {} follows entry {applied}: those between are \
                     missing",
                    entry.position, entry.id
                );
                return Err(Error::corruption(&self.log, 0, what));
            }
            let taken = visit(entry, &self.applied)?;
            let rest = taken.is_break().then(|| (self.recovery.rest(), self.applied.clone()));
            self.applied.insert(group, index);
            if rest.is_some() {
                return Ok(rest);
            }
        }
        Ok(None)
    }

    /// Takes the entries from the last one on that was visited for visited, if none of the group is missing.
    /// Otherwise they have to be visited to say which.
    pub(crate) fn skip_to_end(&mut self, group: GroupId) -> bool {
        let applied = self.applied.get(&group).copied().unwrap_or(0);
        let last =
            self.recovery.groups().find(|summary| summary.group == group).map(|s| s.next - 1);
        let Some(last) = last.filter(|_| self.recovery.is_unbroken(group, applied)) else {
            return false;
        };
        self.applied.insert(group, last);
        true
    }

    /// Returns the log as far as it counts, for a copy.
    pub(crate) fn cut(&self) -> LaneCut {
        self.recovery.cut()
    }

    /// Returns what was found in the log.
    pub(crate) fn summary(&self) -> LaneSummary {
        self.recovery.summary()
    }

    /// Opens the log for writing.
    pub(crate) async fn finish(self) -> Result<Log> {
        let mut log = self.recovery.finish().await?;
        // A log that was cut by a repair may end before what is in tables: entries go on behind
        // that.
        for (&group, &applied) in &self.applied {
            if log.group(group).map_or(1, |g| g.next) <= applied {
                log.release(group, applied + 1)?;
            }
        }
        Ok(log)
    }
}
