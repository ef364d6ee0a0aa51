//! The files of a backup: stored, checked, found again, removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use atoll_env::{Env, File, IoBuf, IoTag, OpenMode};

use super::generation::{Contents, Item, key_of, sum_of};
use super::{FILE, GENERATION, PRUNE, READ};
use crate::error::{Error, Result};
use crate::identity::sealed;
use crate::image::{PIECE, copy};
use crate::opening::sync_above;
use crate::version::manifest::{read_file, sync_dir};

const KIND: &str = "atoll-backup";
const FORMAT: u32 = 1;

/// A directory of backups that is open, and so locked.
pub(super) struct Shelf {
    pub(super) env: Env,
    root: PathBuf,
    _lock: Box<dyn Send + Sync>,
}

/// What was stored.
pub(super) struct Copied {
    pub(super) size: u64,
    pub(super) sums: Vec<u32>,
}

/// The generations that there are.
#[derive(Default)]
pub(super) struct Generations {
    /// The numbers of all, ascending.
    pub(super) numbers: Vec<u64>,
    /// Those whose file verifies, oldest first.
    pub(super) readable: Vec<Contents>,
    /// The others, with what is wrong.
    pub(super) unreadable: Vec<(u64, Error)>,
}

impl Generations {
    /// Returns the tables that are stored, by store, number and salt; of several copies the newest.
    pub(super) fn known(&self) -> BTreeMap<String, Item> {
        let items = self.readable.iter().flat_map(|contents| &contents.items);
        let tables =
            items.filter_map(|item| Some((key_of(&item.stored)?.to_owned(), item.clone())));
        tables.collect()
    }
}

impl Shelf {
    /// Opens a directory of backups, which is there.
    pub(super) async fn open(env: &Env, root: &Path) -> Result<Shelf> {
        match read_mark(env, root).await? {
            true => Shelf::locked(env, root).await,
            false => Err(Error::Foreign {
                path: root.to_owned(),
                what: "there is no backup here: name the directory that `atoll backup --to` was \
                       given"
                    .to_owned(),
            }),
        }
    }

    /// Opens a directory of backups, making it if the directory is missing or empty.
    pub(super) async fn open_or_make(env: &Env, root: &Path) -> Result<Shelf> {
        // Looked at before the lock file is made: somebody else's directory stays as it is.
        if read_mark(env, root).await? {
            return Shelf::locked(env, root).await;
        }
        let make_dir = async |path: PathBuf| {
            let context = |e| Error::io("making the directory", &path, e);
            env.disk.create_dir(&path).await.map_err(context)
        };
        make_dir(root.to_owned()).await?;
        let shelf = Shelf::locked(env, root).await?;
        for name in ["generations", "files"] {
            make_dir(root.join(name)).await?;
        }
        sync_above(env, root).await?;
        // What the mark says is there must be as durable as the mark.
        sync_dir(env.disk.as_ref(), GENERATION, root).await?;
        shelf
            .place(GENERATION, &mark(root), sealed(&format!("{KIND} {FORMAT}")).as_bytes())
            .await?;
        Ok(shelf)
    }

    async fn locked(env: &Env, root: &Path) -> Result<Shelf> {
        let lock = env.disk.lock(&root.join("LOCK")).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked(root.to_owned()),
            _ => Error::io("locking", root, e),
        })?;
        Ok(Shelf { env: env.clone(), root: root.to_owned(), _lock: lock })
    }

    /// Returns where a stored file is.
    pub(super) fn file(&self, stored: &str) -> PathBuf {
        self.root.join("files").join(stored)
    }

    fn generation(&self, number: u64) -> PathBuf {
        self.root.join("generations").join(format!("{number:08}"))
    }

    // ---- generations ----

    /// Reads all generations.
    pub(super) async fn generations(&self) -> Result<Generations> {
        let dir = self.root.join("generations");
        let entries = self.env.disk.list(&dir).await;
        let entries = entries.map_err(|e| Error::io("listing", &dir, e))?;
        // Other names are those of interrupted makings.
        let numbers: BTreeSet<u64> = entries.iter().filter_map(|e| e.name.parse().ok()).collect();
        let mut all = Generations::default();
        all.numbers.extend(&numbers);
        for number in numbers {
            let path = self.generation(number);
            let bytes = read_file(&self.env, &path).await?;
            match Contents::decode(&bytes, number, &path) {
                Ok(contents) => all.readable.push(contents),
                Err(e) if e.is_corruption() => all.unreadable.push((number, e)),
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// Returns the generation of that number, or the newest.
    pub(super) async fn choose(&self, number: Option<u64>) -> Result<Contents> {
        let mut all = self.generations().await?;
        let Some(number) = number.or(all.numbers.last().copied()) else {
            let what = format!("there is no generation in {}", self.root.display());
            return Err(Error::InvalidInput(what));
        };
        if let Some(at) = all.readable.iter().position(|contents| contents.number == number) {
            return Ok(all.readable.swap_remove(at));
        }
        if let Some((_, problem)) = all.unreadable.into_iter().find(|(of, _)| *of == number) {
            return Err(problem);
        }
        let there: Vec<String> = all.numbers.iter().map(u64::to_string).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Err(Error::InvalidInput(format!("there is no generation {number}, but {there}")))
    }

    /// Makes a generation count: everything it names is durable, then its file.
    pub(super) async fn publish(&self, contents: &Contents) -> Result<()> {
        self.sync_dir(GENERATION, "files").await?;
        let path = self.generation(contents.number);
        self.place(GENERATION, &path, contents.encode().as_bytes()).await
    }

    /// Removes all but the newest `keep` generations and what only they need.
    pub(super) async fn prune(&self, keep: usize) -> Result<(u64, u64)> {
        let all = self.generations().await?;
        let old = all.numbers.len().saturating_sub(keep);
        let (old, kept) = all.numbers.split_at(old);
        if let Some((_, problem)) = all.unreadable.into_iter().find(|(n, _)| kept.contains(n)) {
            return Err(problem);
        }
        let needed: BTreeSet<&str> = all
            .readable
            .iter()
            .filter(|contents| kept.contains(&contents.number))
            .flat_map(|contents| contents.items.iter().map(|item| &item.stored[..]))
            .collect();
        // A generation goes before its files: one that is there is whole.
        for &number in old {
            self.remove(&self.generation(number)).await?;
        }
        self.sync_dir(PRUNE, "generations").await?;
        let dir = self.root.join("files");
        let entries = self.env.disk.list(&dir).await;
        let entries = entries.map_err(|e| Error::io("listing", &dir, e))?;
        let mut files = 0;
        for entry in entries.iter().filter(|entry| !needed.contains(&entry.name[..])) {
            self.remove(&dir.join(&entry.name)).await?;
            files += 1;
        }
        self.sync_dir(PRUNE, "files").await?;
        Ok((old.len() as u64, files))
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        self.env.disk.remove(PRUNE, path).await.map_err(|e| Error::io("removing", path, e))
    }

    // ---- stored files ----

    /// Stores the first `len` bytes of `from`, which is at `path`, in the place of what is there.
    pub(super) async fn copy(
        &self,
        from: &dyn File,
        path: &Path,
        len: u64,
        stored: &str,
    ) -> Result<Copied> {
        let (to, temp) = (self.file(stored), self.file(&format!("{stored}.new")));
        self.clear(&temp).await;
        let mut sums = Vec::with_capacity(len.div_ceil(PIECE) as usize);
        let disk = self.env.disk.as_ref();
        let seen = |offset, bytes: &[u8]| sums.push(sum_of(offset, bytes));
        let copied = copy(disk, (READ, FILE), (from, path), &temp, (len, len), seen).await;
        if copied.is_err() {
            // Gives the space back; a generation does not name it.
            self.clear(&temp).await;
        }
        copied?;
        disk.rename(FILE, &temp, &to).await.map_err(|e| Error::io("naming", &to, e))?;
        Ok(Copied { size: len, sums })
    }

    /// Stores `bytes`.
    pub(super) async fn write(&self, bytes: &[u8], stored: &str) -> Result<Copied> {
        let (to, temp) = (self.file(stored), self.file(&format!("{stored}.new")));
        self.write_file(FILE, &temp, bytes).await?;
        let named = self.env.disk.rename(FILE, &temp, &to).await;
        named.map_err(|e| Error::io("naming", &to, e))?;
        let pieces = bytes.chunks(PIECE as usize).enumerate();
        let sums = pieces.map(|(n, piece)| sum_of(n as u64 * PIECE, piece)).collect();
        Ok(Copied { size: bytes.len() as u64, sums })
    }

    /// Checks that a stored file is there with its length.
    pub(super) async fn check_length(&self, item: &Item) -> Result<()> {
        self.open_stored(item).await.map(|_| ())
    }

    /// Reads a stored file and holds it against its checksums.
    pub(super) async fn check(&self, item: &Item) -> Result<()> {
        self.read(item, async |_, bytes| Ok(bytes)).await
    }

    /// Reads a stored file, each piece checked and then given to `take`, which gives the buffer back.
    pub(super) async fn read(
        &self,
        item: &Item,
        mut take: impl AsyncFnMut(u64, IoBuf) -> Result<IoBuf>,
    ) -> Result<()> {
        let file = self.open_stored(item).await?;
        let path = self.file(&item.stored);
        let mut buf = IoBuf::new();
        for (offset, sum) in (0..).step_by(PIECE as usize).zip(&item.sums) {
            buf.resize(PIECE.min(item.size - offset) as usize);
            let context = |e| Error::io("reading", &path, e);
            buf = file.read_at(READ, offset, buf).await.map_err(context)?;
            if sum_of(offset, &buf) != *sum {
                // A bit may have flipped on the way.
                buf = file.read_at(READ, offset, buf).await.map_err(context)?;
            }
            if sum_of(offset, &buf) != *sum {
                let end = offset + buf.len() as u64;
                let what = format!("the bytes from here to {end} do not verify ({})", item.target);
                return Err(Error::corruption(&path, offset, what));
            }
            buf = take(offset, buf).await?;
        }
        Ok(())
    }

    async fn open_stored(&self, item: &Item) -> Result<std::sync::Arc<dyn File>> {
        let path = self.file(&item.stored);
        let file = match self.env.disk.open(&path, OpenMode::Read).await {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let what = format!("the file is missing ({})", item.target);
                return Err(Error::corruption(&path, 0, what));
            }
            opened => opened.map_err(|e| Error::io("opening", &path, e))?,
        };
        let len = file.len().await.map_err(|e| Error::io("measuring", &path, e))?;
        if len != item.size {
            let what = format!("the file has {len} bytes, not {} ({})", item.size, item.target);
            return Err(Error::corruption(&path, len.min(item.size), what));
        }
        Ok(file)
    }

    // ---- files ----

    /// Puts `bytes` at `path` in one step, durably.
    async fn place(&self, tag: IoTag, path: &Path, bytes: &[u8]) -> Result<()> {
        let temp = path.with_extension("new");
        self.write_file(tag, &temp, bytes).await?;
        let named = self.env.disk.rename(tag, &temp, path).await;
        named.map_err(|e| Error::io("naming", path, e))?;
        let dir = path.parent().unwrap_or(&self.root);
        sync_dir(self.env.disk.as_ref(), tag, dir).await
    }

    async fn write_file(&self, tag: IoTag, path: &Path, bytes: &[u8]) -> Result<()> {
        self.clear(path).await;
        let context = |e| Error::io("writing", path, e);
        let file = self.env.disk.open(path, OpenMode::CreateNew).await.map_err(context)?;
        file.write_at(tag, 0, IoBuf::from(bytes)).await.map_err(context)?;
        file.sync(tag).await.map_err(context)
    }

    /// Removes what an interrupted making left.
    async fn clear(&self, path: &Path) {
        let _ = self.env.disk.remove(FILE, path).await;
    }

    async fn sync_dir(&self, tag: IoTag, name: &str) -> Result<()> {
        sync_dir(self.env.disk.as_ref(), tag, &self.root.join(name)).await
    }
}

fn mark(root: &Path) -> PathBuf {
    root.join("ATOLL-BACKUP")
}

/// Returns whether the directory is one of backups; one that is missing or empty is not yet.
async fn read_mark(env: &Env, root: &Path) -> Result<bool> {
    let path = mark(root);
    let foreign = |what: String| Err(Error::Foreign { path: root.to_owned(), what });
    let bytes = match read_file(env, &path).await {
        Ok(bytes) => bytes,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let entries = match env.disk.list(root).await {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                listed => listed.map_err(|e| Error::io("listing", root, e))?,
            };
            // What an interrupted making leaves.
            let ours = ["LOCK", "generations", "files", "ATOLL-BACKUP.new"];
            return match entries.iter().find(|entry| !ours.contains(&&entry.name[..])) {
                None => Ok(false),
                Some(other) => foreign(format!(
                    "this is no backup and not empty (it holds '{}'): name an empty or a new \
                     directory",
                    other.name
                )),
            };
        }
        Err(e) => return Err(e),
    };
    let text = String::from_utf8_lossy(&bytes);
    let body = text.trim_end().rsplit_once(' ').map(|(body, _)| body);
    let Some(body) = body.filter(|body| sealed(body) == text) else {
        return Err(Error::corruption(&path, 0, "the file does not verify"));
    };
    match body.split_once(' ') {
        Some((KIND, format)) if format == FORMAT.to_string() => Ok(true),
        Some((KIND, format)) => foreign(format!(
            "the backup has format {format}, this program reads {FORMAT}: use a newer one"
        )),
        _ => Err(Error::corruption(&path, 0, "the file does not say what the directory is")),
    }
}
