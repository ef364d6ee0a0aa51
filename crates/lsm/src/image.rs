//! Images: what a directory is at one moment, pinned for whoever copies it while the store goes on.
//!
//! ```text
//!            the store at the leader's turn           what an image holds of it
//!   tables   named by the version                     their handles: no file of them is removed
//!   manifest edits up to now                          the state they add up to
//!   log      synced up to position S                  its segments up to S, which are not recycled
//! ```
//!
//! A copy of an image is a directory as a power cut at that moment would have left it: recovery, which
//! is proven at every crash point, is all that opening it needs. Nothing is flushed for it, so it costs
//! no write of the tree, and what is in memory only is replayed from the copied log.
//!
//! # Why the parts fit together
//! The leader takes the image in a turn of his own. He syncs the log and notes its segments first, and
//! asks for the version after that. A flush that ends in between only covers entries that were applied,
//! hence logged, before the turn: the log reaches as far as the tables do. And segments are recycled
//! by the leader alone, after a flush that is in the manifest already: what the noted ones lack is in
//! the version's tables.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::{Disk, Env, File, IoBuf, IoTag, OpenMode};
use parking_lot::Mutex;

use crate::commit::{self, Work};
use crate::database::closed;
use crate::error::{Error, Result};
use crate::identity::{self, Identity, Kind};
use crate::log::{LaneCut, LogOptions};
use crate::opening::sync_above;
use crate::recovery::{Replay, inspect};
use crate::store::{Store, Writer};
use crate::values::ValueDesc;
use crate::verify::{lock_existing, unfinished};
use crate::version::manifest::{self, State, sync_dir};
use crate::version::{Garbage, Paths, TableDesc};

/// Bytes that are copied at once.
pub(crate) const PIECE: u64 = 1 << 20;
/// The file that says that a copy is not finished: a directory with it and without `ATOLL` is refused.
const UNFINISHED: &str = "UNFINISHED";

/// What a directory was at one moment. Files that it names stay until it is dropped.
pub struct Image {
    pub(crate) env: Env,
    pub(crate) paths: Paths,
    pub(crate) identity: Identity,
    pub(crate) state: State,
    pub(crate) lane: LaneCut,
    keeper: Keeper,
}

/// Who sees to it that the files stay.
enum Keeper {
    /// The store, as long as it is open.
    Store(Arc<Store>),
    /// Nobody writes: the lock of the directory.
    Lock(#[expect(dead_code, reason = "held, not read")] Box<dyn Send + Sync>),
}

/// What the leader notes for an image.
pub(crate) struct Moment {
    lane: LaneCut,
    state: State,
}

/// A file that never changes, so that a copy may be a second name of it.
pub(crate) struct Shared<'a> {
    /// Its directory below the root, and its name.
    pub(crate) dir: &'static str,
    pub(crate) name: String,
    /// What is in every checksum of it, and its length.
    pub(crate) id: u64,
    pub(crate) salt: u64,
    pub(crate) size: u64,
    pub(crate) content: Content<'a>,
}

/// What a shared file is.
pub(crate) enum Content<'a> {
    Table(&'a TableDesc),
    Values(ValueDesc),
}

impl Shared<'_> {
    /// Returns how the names of such files end.
    pub(crate) fn suffix(&self) -> &'static str {
        match self.content {
            Content::Table(_) => ".sst",
            Content::Values(_) => ".val",
        }
    }
}

impl Image {
    /// Takes an image of a running store, with everything that was acknowledged before the call.
    pub(crate) async fn of_store(store: &Arc<Store>, kind: Kind) -> Result<Image> {
        let slot = Arc::new(Mutex::new(None));
        commit::submit(store, Work::Image(slot.clone())).await?;
        let moment = slot.lock().take();
        let Moment { lane, state } = moment.ok_or_else(closed)?;
        Ok(Image {
            env: store.options.env.clone(),
            paths: store.paths.clone(),
            identity: Identity { kind, id: store.id },
            state,
            lane,
            keeper: Keeper::Store(store.clone()),
        })
    }

    /// Takes an image of a directory that nobody has open, and changes nothing in it. The directory is
    /// taken until the image is dropped.
    ///
    /// # Errors
    /// `Locked` if somebody has it open; `Foreign`, `Corruption` as opening it would answer.
    pub async fn of_stopped(env: &Env, path: &Path) -> Result<Image> {
        let paths = Paths::new(path);
        let lock = lock_existing(env, &paths).await?;
        let Some(identity) = identity::read(env, &paths).await? else {
            return Err(unfinished(&paths));
        };
        let contents = manifest::read(env, &paths, &Arc::new(Garbage::default())).await?;
        inspect(env, &paths, &contents).await?;
        let options = LogOptions { lane: identity.id, ..LogOptions::default() };
        let replay = Replay::open(env, &paths, options, &contents.state.flushed).await?;
        let lane = replay.cut();
        let keeper = Keeper::Lock(lock);
        Ok(Image { env: env.clone(), paths, identity, state: contents.state, lane, keeper })
    }

    /// Returns the files that may be shared. A further kind of immutable file is a further line here.
    pub(crate) fn shared(&self) -> impl Iterator<Item = Shared<'_>> {
        let version = &self.state.version;
        let tables = version.tables().map(|(_, handle)| Shared {
            dir: "tables",
            name: format!("{:08}.sst", handle.desc.id),
            id: handle.desc.id,
            salt: handle.desc.salt,
            size: handle.desc.size,
            content: Content::Table(&handle.desc),
        });
        let values = version.values.iter().map(|file| Shared {
            dir: "values",
            name: format!("{:08}.val", file.handle.desc.id),
            id: file.handle.desc.id,
            salt: file.handle.desc.salt,
            size: file.handle.desc.size,
            content: Content::Values(file.handle.desc),
        });
        tables.chain(values)
    }

    /// Fails if the directory was given back meanwhile: then somebody else may have changed the files.
    pub(crate) fn check_held(&self) -> Result<()> {
        match &self.keeper {
            Keeper::Store(store) if store.is_closed() => Err(closed()),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({})", self.paths.root.display())
    }
}

impl Store {
    /// Notes what the store is now, with everything that was staged before durable.
    pub(crate) async fn note_moment(&self, writer: &mut Writer) -> Result<Moment> {
        self.write_log(writer, true).await?;
        let lane = writer.log.cut();
        let state = self.catalog.enter().await.state.share();
        Ok(Moment { lane, state })
    }
}

// ---- copies ----

/// A directory that is being filled with a copy: nothing opens it before it is done.
pub(crate) struct Target<'e> {
    pub(crate) env: &'e Env,
    pub(crate) paths: Paths,
    tag: IoTag,
    /// Files made, oldest first, to be removed after a failure.
    made: Vec<PathBuf>,
}

impl<'e> Target<'e> {
    /// Begins a copy in the directory `path`, which is missing or holds no file.
    pub(crate) async fn begin(env: &'e Env, path: &Path, tag: IoTag) -> Result<Target<'e>> {
        let paths = Paths::new(path);
        if let Some(file) = any_file(env, path).await? {
            return Err(Error::InvalidInput(format!(
                "{} is not empty (it holds '{file}'): name a new or an empty directory",
                path.display()
            )));
        }
        let mut target = Target { env, paths, tag, made: Vec::new() };
        target.make_dir(path).await?;
        let marker = path.join(UNFINISHED);
        let context = |e| Error::io("writing", &marker, e);
        // Whoever makes it has the directory for himself.
        let file = env.disk.open(&marker, OpenMode::CreateNew).await.map_err(context)?;
        target.note(&marker);
        let marked = async {
            let text = &b"a copy that was not finished: remove the directory\n"[..];
            file.write_at(tag, 0, IoBuf::from(text)).await.map_err(context)?;
            file.sync(tag).await.map_err(context)?;
            target.sync_dir(path).await
        };
        match marked.await {
            Ok(()) => Ok(target),
            Err(e) => {
                target.give_up().await;
                Err(e)
            }
        }
    }

    pub(crate) async fn make_dir(&self, path: &Path) -> Result<()> {
        let context = |e| Error::io("making the directory", path, e);
        self.env.disk.create_dir(path).await.map_err(context)
    }

    pub(crate) async fn sync_dir(&self, path: &Path) -> Result<()> {
        sync_dir(self.env.disk.as_ref(), self.tag, path).await
    }

    /// Notes a file that is about to be made.
    pub(crate) fn note(&mut self, path: &Path) {
        self.made.push(path.to_owned());
    }

    /// Makes a file that holds `bytes`, durably but for its name; `length` is its length if that is more.
    pub(crate) async fn write(&mut self, path: &Path, bytes: &[u8], length: u64) -> Result<()> {
        self.note(path);
        let context = |e| Error::io("writing", path, e);
        let file = self.env.disk.open(path, OpenMode::CreateNew).await.map_err(context)?;
        file.write_at(self.tag, 0, IoBuf::from(bytes)).await.map_err(context)?;
        if length > bytes.len() as u64 {
            file.allocate(self.tag, length).await.map_err(context)?;
        }
        file.sync(self.tag).await.map_err(context)
    }

    /// Ends a copy whose files and directories are durable, and which was found in order. `last` are the
    /// files that make it count, each with its content, in the order in which they are made.
    pub(crate) async fn finish(&mut self, last: &[(PathBuf, Vec<u8>)]) -> Result<()> {
        let root = self.paths.root.clone();
        sync_above(self.env, &root).await?;
        for (path, bytes) in last {
            let temp = path.with_extension("new");
            self.write(&temp, bytes, 0).await?;
            self.note(path);
            let context = |e| Error::io("naming", path, e);
            self.env.disk.rename(self.tag, &temp, path).await.map_err(context)?;
            if let Some(dir) = path.parent() {
                self.sync_dir(dir).await?;
            }
        }
        // It counts now; a marker that stays behind means nothing beside `ATOLL`.
        let _ = self.env.disk.remove(self.tag, &root.join(UNFINISHED)).await;
        let _ = self.sync_dir(&root).await;
        Ok(())
    }

    /// Removes what was made, after a failure. Directories stay, and are empty.
    pub(crate) async fn give_up(self) {
        for path in self.made.iter().rev() {
            let _ = self.env.disk.remove(self.tag, path).await;
        }
        let _ = self.sync_dir(&self.paths.root).await;
    }
}

/// Judges the copy of an engine's directory as opening it would.
pub(crate) async fn judge(env: &Env, paths: &Paths, lane: u64) -> Result<()> {
    let contents = manifest::read(env, paths, &Arc::new(Garbage::default())).await?;
    inspect(env, paths, &contents).await?;
    let options = LogOptions { lane, ..LogOptions::default() };
    let mut replay = Replay::open(env, paths, options, &contents.state.flushed).await?;
    replay.visit(|_, _| Ok(())).await
}

/// Returns the name of a file in a directory or below it, if there is one. A lock is none.
async fn any_file(env: &Env, root: &Path) -> Result<Option<String>> {
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match env.disk.list(&dir).await {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("listing", &dir, e)),
        };
        for entry in entries {
            if entry.is_dir {
                dirs.push(dir.join(&entry.name));
            } else if entry.name != "LOCK" {
                return Ok(Some(entry.name));
            }
        }
    }
    Ok(None)
}

/// Copies the first `len` bytes of `from`, which is at `path`, into the new file `to` and makes them
/// durable; the file gets the length `length` if that is more. Shows each piece to `seen`.
pub(crate) async fn copy(
    disk: &dyn Disk,
    (read, write): (IoTag, IoTag),
    (from, path): (&dyn File, &Path),
    to: &Path,
    (len, length): (u64, u64),
    mut seen: impl FnMut(u64, &[u8]),
) -> Result<()> {
    let reading = |e| Error::io("reading", path, e);
    let writing = |e| Error::io("writing", to, e);
    let file = disk.open(to, OpenMode::CreateNew).await.map_err(writing)?;
    if length > len {
        file.allocate(write, length).await.map_err(writing)?;
    }
    let mut buf = IoBuf::new();
    let mut offset = 0;
    while offset < len {
        buf.resize(PIECE.min(len - offset) as usize);
        buf = from.read_at(read, offset, buf).await.map_err(reading)?;
        seen(offset, &buf);
        buf = file.write_at(write, offset, buf).await.map_err(writing)?;
        offset += buf.len() as u64;
    }
    file.sync(write).await.map_err(writing)
}
