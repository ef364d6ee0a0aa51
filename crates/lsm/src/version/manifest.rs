//! The manifest: a log of edits from which the live tables are rebuilt.
//!
//! ```text
//!   CURRENT          "manifest-000003 <crc32c of the name, hex>\n"
//!   manifest-000003  +--------+-------+-------+-------+
//!                    | header | edit  | edit  | ...   |     the first edit is the whole state
//!                    +--------+-------+-------+-------+
//!   edit             | magic u32 | length u32 | checksum u32 | payload |
//! ```
//!
//! An edit is synced before it takes effect; only then may the files it removes go. A file that
//! has grown to several times its first edit is replaced: the new one is written and synced, its
//! name is synced, then `CURRENT` is replaced by a rename and the directory synced again.
//!
//! # Recovery
//! A bad edit that nothing valid follows is the torn end of an append that was never acknowledged,
//! and is dropped. (Were it an acknowledged one that rotted, the tables it removed are gone or the
//! log starts after the flush that is now missing: both are found when the files are opened.) A
//! bad edit with a valid one behind it is corruption.
//!
//! The page on the format is docs/formats/manifest.md.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_encoding::checksum::{Place, seeded};
use atoll_env::disk::{IoClass, IoTag};
use atoll_env::{Disk, Env, File, IoBuf, OpenMode};

use crate::error::{Error, Result};
use crate::header::FileKind;
use crate::mutants;
use crate::version::{Edit, Flushed, Garbage, Paths, Version, misfit};

const HEADER: FileKind = FileKind { magic: b"ATOLLMAN", version: 1, name: "manifest" };
const HEADER_LEN: usize = crate::header::LEN;
const EDIT_MAGIC: u32 = 0x7469_6445;
/// Length below which a manifest is not replaced, if nothing else is said.
const REPLACE_ABOVE: u64 = 1 << 20;
const EDIT_HEADER_LEN: usize = 12;

/// Site of the append of an edit by a flush.
pub(crate) const FLUSH_INSTALL: IoTag = IoTag::new(IoClass::Flush, "flush install");
/// Site of the append of an edit by a compaction.
pub(crate) const COMPACTION_INSTALL: IoTag = IoTag::new(IoClass::Compaction, "compaction install");
/// Site of the append of an edit by an ingest.
pub(crate) const INGEST_INSTALL: IoTag = IoTag::new(IoClass::Compaction, "ingest install");
/// Site of the replacement of the file.
pub(crate) const SWAP: IoTag = IoTag::new(IoClass::Flush, "manifest swap");

/// The state that the edits so far add up to.
pub(crate) struct State {
    pub(crate) version: Version,
    pub(crate) flushed: Flushed,
    pub(crate) next_file: u64,
    /// The last edit added ingested tables, and nothing but an edit behind it could tell that it is
    /// missing.
    pub(crate) unproven: bool,
}

impl State {
    fn empty() -> State {
        State {
            version: Version::empty(),
            flushed: Flushed::default(),
            next_file: 1,
            unproven: false,
        }
    }

    /// Returns another state of the same tables.
    pub(crate) fn share(&self) -> State {
        let (version, flushed) = (self.version.share(), self.flushed.clone());
        State { version, flushed, ..*self }
    }

    fn apply(&mut self, edit: &Edit, garbage: &Arc<Garbage>) -> Result<(), String> {
        self.version = self.version.after(edit, garbage)?;
        if let Some(flushed) = &edit.flushed {
            self.flushed = flushed.clone();
        }
        self.next_file = self.next_file.max(edit.next_file);
        self.unproven = edit.added.iter().any(|(_, desc)| desc.base > 0);
        Ok(())
    }
}

/// The open manifest.
pub(crate) struct Manifest {
    env: Env,
    paths: Paths,
    file: Arc<dyn File>,
    path: PathBuf,
    id: u64,
    salt: u64,
    /// Where the next edit goes.
    end: u64,
    /// Length below which the file is never replaced.
    replace_above: u64,
    /// Length at which it is replaced; 0 until the first edit is appended.
    replace_at: u64,
    /// Set by a failed sync: nothing may be appended any more.
    failed: bool,
}

/// What was read of a manifest. Nothing was changed for it.
pub(crate) struct Contents {
    pub(crate) path: PathBuf,
    /// The state that the edits add up to.
    pub(crate) state: State,
    /// Number of edits.
    pub(crate) edits: u64,
    id: u64,
    salt: u64,
    bytes: IoBuf,
    /// Where the last good edit ends.
    end: usize,
}

impl Contents {
    /// Returns the file's number.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

/// Reads and verifies the manifest that `CURRENT` names.
pub(crate) async fn read(env: &Env, paths: &Paths, garbage: &Arc<Garbage>) -> Result<Contents> {
    let Some(id) = read_current(env, paths).await? else {
        return Err(Error::corruption(&paths.current(), 0, "the file is missing"));
    };
    let path = paths.manifest(id);
    let bytes = match read_file(env, &path).await {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::corruption(&path, 0, "the file is missing, and CURRENT names it"));
        }
        other => other?,
    };
    let (state, edits, end) = replay(&path, id, &bytes, garbage)?;
    let salt = HEADER.decode(&path, id, &bytes)?;
    Ok(Contents { path, state, edits, id, salt, bytes, end })
}

/// Adds up the edits of manifest `id`; returns their number and where the last one ends, too.
pub(crate) fn replay(
    path: &Path,
    id: u64,
    bytes: &[u8],
    garbage: &Arc<Garbage>,
) -> Result<(State, u64, usize)> {
    let salt = HEADER.decode(path, id, bytes)?;
    let (mut state, mut edits, mut end) = (State::empty(), 0, HEADER_LEN);
    while let Some((payload, next)) = edit_at(bytes, id, salt, end) {
        let edit = Edit::decode(payload)
            .map_err(|e| Error::corruption(path, end as u64, e.to_string()))?;
        state.apply(&edit, garbage).map_err(|what| misfit(path, end as u64, what))?;
        edits += 1;
        end = next;
    }
    if edits == 0 {
        return Err(Error::corruption(path, end as u64, "the first edit does not verify"));
    }
    let mut behind = end + 1..bytes.len();
    if let Some(later) = behind.find(|&at| edit_at(bytes, id, salt, at).is_some()) {
        return Err(Error::corruption(
            path,
            end as u64,
            format!("an edit does not verify, but a later one at offset {later} does"),
        ));
    }
    Ok((state, edits, end))
}

impl Manifest {
    /// Makes the manifest of a new database.
    pub(crate) async fn create_first(env: &Env, paths: &Paths) -> Result<()> {
        Manifest::create(env, paths, 1, &snapshot_edit(&State::empty())).await.map(|_| ())
    }

    /// Opens for writing what was read. On return it is durable.
    ///
    /// It may have come from the page cache, perhaps after a sync that failed: a kernel that
    /// dropped dirty pages and calls them clean would let the next sync succeed and store nothing.
    /// So the same bytes are written again in place, where a power cut changes nothing.
    pub(crate) async fn resume(
        env: &Env,
        paths: &Paths,
        contents: Contents,
    ) -> Result<(Manifest, State)> {
        let Contents { path, state, id, salt, bytes, end, .. } = contents;
        let context = |e| Error::io("opening", &path, e);
        let file = env.disk.open(&path, OpenMode::ReadWrite).await.map_err(context)?;
        let torn = end < bytes.len();
        let mut manifest = Manifest {
            env: env.clone(),
            paths: paths.clone(),
            file,
            path: path.clone(),
            id,
            salt,
            end: end as u64,
            replace_above: REPLACE_ABOVE,
            replace_at: 0,
            failed: false,
        };
        if torn {
            // Behind a torn end the file is not appended to: its bytes could be taken for an edit
            // of the new history. A fresh file starts from the state that was read.
            manifest.replace(&state).await?;
        } else {
            manifest.file.write_at(SWAP, 0, bytes).await.map_err(context)?;
            manifest.file.sync(SWAP).await.map_err(context)?;
            sync_dir(env.disk.as_ref(), SWAP, &paths.root).await?;
        }
        Ok((manifest, state))
    }

    /// Returns the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the length below which the file is never replaced.
    pub(crate) fn replace_above(&mut self, len: u64) {
        self.replace_above = len;
    }

    /// Appends `edit` durably. `state` is the state before it, for a replacement of the file.
    ///
    /// After `NoSpace` nothing happened and the call may be repeated.
    pub(crate) async fn append(&mut self, tag: IoTag, edit: &Edit, state: &State) -> Result<()> {
        if self.failed {
            return Err(Error::Stopped("an earlier write of the manifest failed".to_owned()));
        }
        if self.end >= self.replace_at && self.replace_at != 0 {
            self.replace(state).await?;
        }
        let mut payload = Vec::new();
        edit.encode(&mut payload);
        let bytes = encode_edit(self.id, self.salt, self.end, &payload);
        let len = bytes.len() as u64;
        let context = |e| Error::io("appending to", &self.path, e);
        self.file.write_at(tag, self.end, IoBuf::from(&bytes[..])).await.map_err(context)?;
        if let Err(e) = self.file.sync(tag).await {
            self.failed = true;
            return Err(Error::Stopped(format!("syncing {} failed: {e}", self.path.display())));
        }
        if self.replace_at == 0 {
            self.replace_at = self.replace_above.max(4 * self.end);
        }
        self.end += len;
        Ok(())
    }

    /// Goes on in a new file that starts with `state`. Atomic: after a failure the old one counts.
    pub(crate) async fn replace(&mut self, state: &State) -> Result<()> {
        let next =
            Manifest::create(&self.env, &self.paths, self.id + 1, &snapshot_edit(state)).await?;
        let old = std::mem::replace(self, next);
        self.replace_above = old.replace_above;
        // Only tidiness hangs on the removal: a left-over is removed at the next open.
        let _ = self.env.disk.remove(SWAP, &old.path).await;
        Ok(())
    }

    async fn create(env: &Env, paths: &Paths, id: u64, first: &Edit) -> Result<Manifest> {
        let path = paths.manifest(id);
        let salt = env.random.next_u64();
        let bytes = encode_file(id, salt, first);

        let disk = &env.disk;
        let context = |e| Error::io("writing", &path, e);
        // A crash or a full disk may have left an unfinished one under this number.
        let _ = disk.remove(SWAP, &path).await;
        let file = disk.open(&path, OpenMode::CreateNew).await.map_err(context)?;
        file.write_at(SWAP, 0, IoBuf::from(&bytes[..])).await.map_err(context)?;
        file.sync(SWAP).await.map_err(context)?;
        sync_dir(disk.as_ref(), SWAP, &paths.root).await?;
        write_current(env, paths, id).await?;
        let end = bytes.len() as u64;
        Ok(Manifest {
            env: env.clone(),
            paths: paths.clone(),
            file,
            path,
            id,
            salt,
            end,
            replace_above: REPLACE_ABOVE,
            replace_at: 0,
            failed: false,
        })
    }
}

/// Returns the edit that makes `state` from nothing.
fn snapshot_edit(state: &State) -> Edit {
    let tables = || state.version.tables();
    Edit {
        added: tables().map(|(level, t)| (level as u8, t.desc.clone())).collect(),
        quarantined: tables().filter(|(_, t)| t.is_quarantined()).map(|(_, t)| t.desc.id).collect(),
        values: state.version.values.iter().map(|f| f.handle.desc).collect(),
        flushed: Some(state.flushed.clone()),
        next_file: state.next_file,
        ..Edit::default()
    }
}

/// Returns manifest `id` of a directory that holds the files of `state`.
pub(crate) fn encode_first(id: u64, salt: u64, state: &State) -> Vec<u8> {
    encode_file(id, salt, &snapshot_edit(state))
}

/// Returns manifest `id` with a single edit.
fn encode_file(id: u64, salt: u64, first: &Edit) -> Vec<u8> {
    let mut payload = Vec::new();
    first.encode(&mut payload);
    let mut bytes = HEADER.encode(id, salt);
    bytes.extend_from_slice(&encode_edit(id, salt, HEADER_LEN as u64, &payload));
    bytes
}

fn encode_edit(id: u64, salt: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(EDIT_HEADER_LEN + payload.len());
    bytes.extend_from_slice(&EDIT_MAGIC.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let sum = seeded(Place { file: id, salt, offset }, &[&bytes, payload]);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Returns manifest `id` with edits whose payloads are pieces of `bytes`, each behind its length.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn frame(id: u64, mut bytes: &[u8]) -> Vec<u8> {
    let mut file = HEADER.encode(id, 77);
    while let Some((&len, rest)) = bytes.split_first() {
        let (payload, rest) = rest.split_at(usize::from(len).min(rest.len()));
        let edit = encode_edit(id, 77, file.len() as u64, payload);
        file.extend_from_slice(&edit);
        bytes = rest;
    }
    file
}

/// Returns the payload of a valid edit at `offset` and the offset behind it.
fn edit_at(bytes: &[u8], id: u64, salt: u64, offset: usize) -> Option<(&[u8], usize)> {
    let header = bytes.get(offset..offset + EDIT_HEADER_LEN)?;
    if header[..4] != EDIT_MAGIC.to_le_bytes() {
        return None;
    }
    let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    let end = (offset + EDIT_HEADER_LEN).checked_add(len)?;
    let payload = bytes.get(offset + EDIT_HEADER_LEN..end)?;
    let sum = seeded(Place { file: id, salt, offset: offset as u64 }, &[&header[..8], payload]);
    (header[8..] == sum.to_le_bytes()).then_some((payload, end))
}

/// Returns the number of the manifest that `CURRENT` names, or `None` if there is no `CURRENT`.
pub(crate) async fn read_current(env: &Env, paths: &Paths) -> Result<Option<u64>> {
    let path = paths.current();
    let bytes = match read_file(env, &path).await {
        Ok(bytes) => bytes,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let id = decode_current(&bytes);
    id.map(Some).ok_or_else(|| Error::corruption(&path, 0, "it does not name a manifest"))
}

/// Returns the number of the manifest that the content of `CURRENT` names.
pub(crate) fn decode_current(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (name, sum) = text.strip_suffix('\n')?.split_once(' ')?;
    let verified = sum == format!("{:08x}", name_sum(name));
    verified.then(|| name.strip_prefix("manifest-")?.parse().ok()).flatten()
}

/// Returns the content of `CURRENT` that says `name`.
pub(crate) fn encode_current(name: &str) -> String {
    format!("{name} {:08x}\n", name_sum(name))
}

async fn write_current(env: &Env, paths: &Paths, id: u64) -> Result<()> {
    let (path, temp) = (paths.current(), paths.root.join("CURRENT.new"));
    let text = encode_current(&format!("manifest-{id:06}"));
    let disk = &env.disk;
    let context = |e| Error::io("writing", &temp, e);
    let _ = disk.remove(SWAP, &temp).await;
    let file = disk.open(&temp, OpenMode::CreateNew).await.map_err(context)?;
    file.write_at(SWAP, 0, IoBuf::from(text.as_bytes())).await.map_err(context)?;
    file.sync(SWAP).await.map_err(context)?;
    disk.rename(SWAP, &temp, &path).await.map_err(|e| Error::io("replacing", &path, e))?;
    // The new manifest counts now, perhaps only until the next power cut: whatever the reason, this
    // is no failure after which the old one goes on.
    sync_dir(disk.as_ref(), SWAP, &paths.root).await.map_err(|e| match e {
        Error::NoSpace(what) => Error::Stopped(format!("the manifest was half replaced: {what}")),
        other => other,
    })
}

fn name_sum(name: &str) -> u32 {
    seeded(Place { file: 0, salt: 0, offset: 0 }, &[name.as_bytes()])
}

/// Makes the names in a directory durable.
pub(crate) async fn sync_dir(disk: &dyn Disk, tag: IoTag, path: &Path) -> Result<()> {
    if mutants::is("no-dir-sync") {
        return Ok(());
    }
    disk.sync_dir(tag, path).await.map_err(|e| Error::io("syncing the directory", path, e))
}

/// Reads a whole file.
pub(crate) async fn read_file(env: &Env, path: &Path) -> Result<IoBuf> {
    const READ: IoTag = IoTag::new(IoClass::Read, "open");
    let context = |e| Error::io("reading", path, e);
    let file = env.disk.open(path, OpenMode::Read).await.map_err(context)?;
    let len = file.len().await.map_err(context)?;
    let len =
        usize::try_from(len).map_err(|_| Error::corruption(path, 0, "the file is too long"))?;
    file.read_at(READ, 0, IoBuf::zeroed(len)).await.map_err(context)
}
