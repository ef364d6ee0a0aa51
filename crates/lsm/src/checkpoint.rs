//! Checkpoints: a second directory that holds the database as it was, made in moments.
//!
//! ```text
//!   db/tables/41.sst  <---- two names of one file ---->  copy/tables/41.sst
//!   db/manifest-7           a fresh one of the state      copy/manifest-1
//!   db/log/12.log           copied up to the synced end   copy/log/12.log
//! ```
//!
//! Tables never change, so the checkpoint names the same files; where the file system has no second
//! names, or it is another one, their bytes are copied. The manifest is written anew from the state
//! ([`Image`]) instead of copied up to an edit: it is shorter, and what is behind that edit in the
//! file need not be told from a torn end. A segment of the log is written again, so it is copied.
//!
//! The identity stays: it is in the header of every segment. A database and its checkpoint are then
//! like two that went different ways after a crash, and the salts of what each writes tell them apart.
//!
//! # After a crash
//! The file `ATOLL` comes last, when everything else is durable and was judged as opening would judge
//! it. A directory without it holds the file `UNFINISHED` from the first moment on, so nothing opens
//! it, not even as a new database.

use std::path::Path;

use atoll_env::disk::{IoClass, IoTag};
use atoll_env::{Env, block_on};

use crate::database::Database;
use crate::error::{Error, Result};
use crate::identity::{self, Kind};
use crate::image::{Image, Target, copy, judge};
use crate::mutants;
use crate::version::manifest::{encode_current, encode_first};

const NAMES: IoTag = IoTag::new(IoClass::Scrub, "checkpoint names");
const LINK: IoTag = IoTag::new(IoClass::Scrub, "checkpoint link");
const LOG: IoTag = IoTag::new(IoClass::Scrub, "checkpoint log");
const READ: IoTag = IoTag::new(IoClass::Scrub, "checkpoint read");

impl Database {
    /// Makes a directory `path` that opens as a database by itself and holds what this one does now:
    /// everything acknowledged before the call, and perhaps what is written during it. Costs a name for
    /// each table and a copy of the log, at most about what memtables hold. Writes go on meanwhile.
    ///
    /// ```
    /// # fn main() -> atoll_lsm::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// use atoll_lsm::{Database, KeyspaceOptions};
    ///
    /// let db = Database::builder(dir.path().join("db")).open()?;
    /// let users = db.keyspace("users", KeyspaceOptions::default())?;
    /// users.insert("ada", "1815")?;
    /// db.checkpoint(dir.path().join("monday"))?;
    /// users.remove("ada")?;
    ///
    /// let monday = Database::builder(dir.path().join("monday")).open()?;
    /// let users = monday.keyspace("users", KeyspaceOptions::default())?;
    /// assert_eq!(users.get("ada")?.as_deref(), Some(&b"1815"[..]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` if the directory holds a file. `NoSpace`, `Io`: what was made of it is removed.
    /// `Stopped` if the database is, or was closed meanwhile.
    pub fn checkpoint(&self, path: impl AsRef<Path>) -> Result<()> {
        block_on(self.checkpoint_async(path))
    }

    /// Async twin of [`Database::checkpoint`]. A future that is dropped leaves a directory that nothing
    /// opens; remove it.
    pub async fn checkpoint_async(&self, path: impl AsRef<Path>) -> Result<()> {
        let image = self.image().await?;
        write(&image, path.as_ref()).await
    }

    /// Takes an image of the present.
    pub(crate) async fn image(&self) -> Result<Image> {
        self.check_open()?;
        Image::of_store(self.store(), Kind::Database).await
    }
}

/// Makes the directory `path` from an image.
pub(crate) async fn write(image: &Image, path: &Path) -> Result<()> {
    let env = image.env.clone();
    let mut target = Target::begin(&env, path, NAMES).await?;
    let filled = fill(image, &mut target).await;
    if filled.is_err() {
        target.give_up().await;
    }
    filled
}

async fn fill(image: &Image, target: &mut Target<'_>) -> Result<()> {
    let (env, paths) = (target.env, target.paths.clone());
    for dir in [paths.log(), paths.tables(), paths.values()] {
        target.make_dir(&dir).await?;
    }
    let mut dirs = std::collections::BTreeSet::from([paths.log(), paths.tables(), paths.values()]);
    for shared in image.shared() {
        let from = image.paths.root.join(shared.dir).join(&shared.name);
        let to = paths.root.join(shared.dir).join(&shared.name);
        let dir = paths.root.join(shared.dir);
        if !dirs.contains(&dir) {
            target.make_dir(&dir).await?;
            dirs.insert(dir);
        }
        target.note(&to);
        link(env, &from, &to, shared.size).await?;
    }
    for part in &image.lane.parts {
        let name = part.path.file_name().unwrap_or_default();
        let to = paths.log().join(name);
        target.note(&to);
        if mutants::is("checkpoint-links-a-segment") {
            let context = |e| Error::io("linking", &part.path, e);
            env.disk.link(LINK, &part.path, &to).await.map_err(context)?;
            continue;
        }
        let (file, disk) = (part.file.as_ref(), env.disk.as_ref());
        let len = (part.len, part.capacity);
        copy(disk, (READ, LOG), (file, &part.path), &to, len, |_, _| {}).await?;
    }
    image.check_held()?;
    let manifest = encode_first(1, env.random.next_u64(), &image.state);
    target.write(&paths.manifest(1), &manifest, 0).await?;
    let current = encode_current("manifest-000001");
    target.write(&paths.current(), current.as_bytes(), 0).await?;
    for dir in dirs.iter().chain([&paths.root]) {
        target.sync_dir(dir).await?;
    }
    judge(env, &paths, image.identity.id).await?;
    let text = identity::encode(image.identity);
    target.finish(&[(paths.identity(), text.into_bytes())]).await
}

/// Gives a table one more name, or copies it where that cannot be.
async fn link(env: &Env, from: &Path, to: &Path, len: u64) -> Result<()> {
    use std::io::ErrorKind;
    let disk = env.disk.as_ref();
    match disk.link(LINK, from, to).await {
        Ok(()) => Ok(()),
        Err(e) => match e.kind() {
            // Another file system, one without such names, or too many of them.
            ErrorKind::CrossesDevices
            | ErrorKind::Unsupported
            | ErrorKind::PermissionDenied
            | ErrorKind::TooManyLinks => {
                let context = |e| Error::io("opening", from, e);
                let file = disk.open(from, atoll_env::OpenMode::Read).await.map_err(context)?;
                let tags = (READ, LINK);
                copy(disk, tags, (file.as_ref(), from), to, (len, len), |_, _| {}).await
            }
            _ => Err(Error::io("linking", from, e)),
        },
    }
}
