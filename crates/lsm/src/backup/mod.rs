//! Backups: a directory of generations that share what did not change.
//!
//! ```text
//!   <backup>/
//!     ATOLL-BACKUP                            what the directory is
//!     generations/00000001                    what was where at that moment, with checksums
//!     generations/00000002
//!     files/5f0c..-00000041-9d3c...sst        a table or value file, named by store, number and salt
//!     files/00000002-00003                    what only generation 2 has: manifests, logs
//! ```
//!
//! A *generation* is one moment of one or more stores ([`Image`]). Its file lists every file of the
//! directories it was taken of, the file of the backup that holds its bytes, and a checksum of each MiB.
//! Tables never change, so a later generation names the same stored file if it has the same table:
//! an incremental backup copies what is new. Which one it is, the salt decides, a random number that
//! every table draws: two tables of one number, of a database and of one restored from it, are two.
//!
//! # Invariants
//! - A generation's file is written last, when everything it names is durable, and by a rename. An
//!   interrupted backup leaves files that nothing names, and all earlier generations whole.
//! - A stored file never changes. One that does not verify is replaced by the same bytes, read from the
//!   source again: so the next backup heals the generations before it.
//! - Nothing is restored that does not verify, and nothing opens a directory whose restoring did not
//!   finish.
//!
//! # Rejected
//! *Hard links into the backup*: cheap, but rot would hit database and backup alike, and a backup
//! belongs on another disk. *A chain of differences*: restoring needs every link, pruning rewrites;
//! here each generation stands alone.
//!
//! The page is docs/formats/backup.md.

mod generation;
mod restore;
mod shelf;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::disk::{IoClass, IoTag};
use atoll_env::{Env, OpenMode, block_on, os};

pub use crate::image::Image;

use crate::database::Database;
use crate::error::{Error, Result};
use crate::identity;
use crate::image::Content;
use crate::pool::{HeapPool, Pool};
use crate::values;
use crate::verify::verify_table;
use crate::version::manifest::{encode_current, encode_first};
use generation::{Contents, Item};
use shelf::{Copied, Shelf};

/// Site of the writes of stored files.
const FILE: IoTag = IoTag::new(IoClass::Scrub, "backup file");
/// Site of the writes that make a generation count.
const GENERATION: IoTag = IoTag::new(IoClass::Scrub, "backup generation");
/// Site of the removal of old generations.
const PRUNE: IoTag = IoTag::new(IoClass::Scrub, "backup prune");
/// Site of the writes of a restored directory.
const RESTORE: IoTag = IoTag::new(IoClass::Scrub, "backup restore");
/// Site of the reads of all of them.
const READ: IoTag = IoTag::new(IoClass::Scrub, "backup read");

/// What a backup copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Mode {
    /// Only what no generation has; what one has is read and held against its checksums first. The
    /// default.
    #[default]
    Incremental,
    /// As `Incremental`, but what a generation has is taken to be there if its length is right: rot
    /// in it is found by [`Backups::verify`] only.
    Trusting,
    /// Everything: the generation shares no file with the ones before.
    Whole,
}

/// A generation of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number, from 1.
    pub number: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub made: u64,
    /// Files that it restores.
    pub files: u64,
    /// Their bytes in the backup.
    pub bytes: u64,
    /// Of these, files that were copied for it.
    pub new_files: u64,
    /// Their bytes.
    pub new_bytes: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Generation { number, files, bytes, new_files, new_bytes, .. } = self;
        write!(
            f,
            "generation {number}: {files} files of {bytes} bytes, of which {new_files} files of \
             {new_bytes} bytes are its own"
        )
    }
}

/// How far a backup, a restore or a verification is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is read now.
    pub file: &'a Path,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The generation that was made.
    pub generation: Generation,
    /// What was found damaged or missing in the backup and was copied again, each with file and
    /// offset: the generations before have it again, too.
    pub healed: Vec<Error>,
}

/// What a verification of a backup found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Generations that were read.
    pub generations: u64,
    /// Stored files that were read, each once.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Everything that is wrong, each with file and offset, and the numbers of the generations that
    /// cannot be restored for it.
    pub problems: Vec<(Error, Vec<u64>)>,
}

impl Verification {
    /// Returns whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verification { generations, files, bytes, problems } = self;
        let problems = problems.len();
        write!(f, "{generations} generations, {files} files of {bytes} bytes, {problems} problems")
    }
}

/// What a generation is made of: images of stores, and files beside them.
#[derive(Debug, Default)]
pub struct Source {
    images: Vec<(String, Image)>,
    files: Vec<(String, Vec<u8>)>,
}

impl Source {
    /// Returns a source without anything.
    pub fn new() -> Source {
        Source::default()
    }

    /// Adds a store that is restored into the directory `dir` of the target; into the target itself if
    /// that is empty.
    pub fn image(mut self, dir: impl Into<String>, image: Image) -> Source {
        self.images.push((dir.into(), image));
        self
    }

    /// Adds a small file of that name in the target, which is restored after everything else.
    pub fn file(mut self, name: impl Into<String>, bytes: Vec<u8>) -> Source {
        self.files.push((name.into(), bytes));
        self
    }
}

/// A directory of backups.
///
/// ```
/// # fn main() -> atoll_lsm::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// use atoll_lsm::backup::{Backups, Mode};
/// use atoll_lsm::{Database, KeyspaceOptions};
///
/// let db = Database::builder(dir.path().join("db")).open()?;
/// let users = db.keyspace("users", KeyspaceOptions::default())?;
/// users.insert("ada", "1815")?;
///
/// let backups = Backups::at(dir.path().join("backup"))?;
/// backups.take(&db, Mode::Incremental, &mut |_| {})?;
/// users.insert("alan", "1912")?;
/// let second = backups.take(&db, Mode::Incremental, &mut |_| {})?.generation;
/// assert!(backups.verify(&mut |_| {})?.is_sound());
///
/// backups.restore(Some(second.number), dir.path().join("again"), &mut |_| {})?;
/// let again = Database::builder(dir.path().join("again")).open()?;
/// let users = again.keyspace("users", KeyspaceOptions::default())?;
/// assert_eq!(users.get("alan")?.as_deref(), Some(&b"1912"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Backups {
    env: Env,
    root: PathBuf,
}

impl fmt::Debug for Backups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backups({})", self.root.display())
    }
}

type Watch<'p> = &'p mut dyn FnMut(Progress<'_>);

impl Backups {
    /// Names the directory `path`. It is made by the first backup.
    pub fn at(path: impl AsRef<Path>) -> Result<Backups> {
        let path = path.as_ref();
        let env = os::env().map_err(|e| Error::io("reaching the operating system for", path, e))?;
        Ok(Backups::in_env(&env, path))
    }

    /// Names a directory in the world `env`.
    pub fn in_env(env: &Env, path: impl Into<PathBuf>) -> Backups {
        Backups { env: env.clone(), root: path.into() }
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Takes a backup of a running database: a new generation with everything acknowledged before the
    /// call. Writes go on meanwhile.
    ///
    /// # Errors
    /// `Corruption` if a table of the database does not verify: a copy of it would be worth nothing,
    /// and the generations before stay. `Locked` if the backup is in use; `Foreign` if the directory
    /// is something else. `NoSpace`, `Io`: the generations before are whole.
    pub fn take(&self, db: &Database, mode: Mode, watch: Watch<'_>) -> Result<Report> {
        block_on(self.take_async(db, mode, watch))
    }

    /// Async twin of [`Backups::take`].
    pub async fn take_async(&self, db: &Database, mode: Mode, watch: Watch<'_>) -> Result<Report> {
        let source = Source::new().image("", db.image().await?);
        self.store_async(source, mode, watch).await
    }

    /// Makes a generation of images that were taken before.
    pub async fn store_async(
        &self,
        source: Source,
        mode: Mode,
        watch: Watch<'_>,
    ) -> Result<Report> {
        let shelf = Shelf::open_or_make(&self.env, &self.root).await?;
        let earlier = shelf.generations().await?;
        let number = earlier.numbers.iter().max().copied().unwrap_or(0) + 1;
        let mut making = Making {
            shelf: &shelf,
            number,
            mode,
            known: earlier.known(),
            contents: Contents::new(number, self.env.clock.wall().0),
            healed: Vec::new(),
            done: 0,
            total: source.images.iter().map(|(_, image)| image_bytes(image)).sum(),
            watch,
        };
        for (dir, image) in &source.images {
            making.store(dir, image).await?;
        }
        for (name, bytes) in &source.files {
            making.bytes(name.clone(), bytes).await?;
        }
        let Making { contents, healed, .. } = making;
        let images = source.images.iter();
        images.map(|(_, image)| image.check_held()).collect::<Result<Vec<()>>>()?;
        shelf.publish(&contents).await?;
        Ok(Report { generation: contents.about(), healed })
    }

    /// Returns the generations, oldest first.
    ///
    /// # Errors
    /// `Corruption` if one's own file does not verify: see [`Backups::verify`].
    pub fn generations(&self) -> Result<Vec<Generation>> {
        block_on(self.generations_async())
    }

    /// Async twin of [`Backups::generations`].
    pub async fn generations_async(&self) -> Result<Vec<Generation>> {
        let shelf = Shelf::open(&self.env, &self.root).await?;
        let all = shelf.generations().await?;
        if let Some((_, problem)) = all.unreadable.into_iter().next() {
            return Err(problem);
        }
        Ok(all.readable.iter().map(Contents::about).collect())
    }

    /// Reads every file of every generation and holds it against its checksums.
    pub fn verify(&self, watch: Watch<'_>) -> Result<Verification> {
        block_on(self.verify_async(watch))
    }

    /// Async twin of [`Backups::verify`].
    pub async fn verify_async(&self, watch: Watch<'_>) -> Result<Verification> {
        let shelf = Shelf::open(&self.env, &self.root).await?;
        let all = shelf.generations().await?;
        let mut found =
            Verification { generations: all.numbers.len() as u64, ..Verification::default() };
        for (number, problem) in all.unreadable {
            found.problems.push((problem, vec![number]));
        }
        let mut stored: BTreeMap<&str, (&Item, Vec<u64>)> = BTreeMap::new();
        for contents in &all.readable {
            for item in &contents.items {
                let (_, users) = stored.entry(&item.stored).or_insert((item, Vec::new()));
                users.push(contents.number);
            }
        }
        let total = stored.values().map(|(item, _)| item.size).sum();
        let mut done = 0;
        for (item, users) in stored.into_values() {
            let path = shelf.file(&item.stored);
            watch(Progress { file: &path, done, total });
            match shelf.check(item).await {
                Ok(()) => {}
                Err(e) if e.is_corruption() => found.problems.push((e, users)),
                Err(e) => return Err(e),
            }
            done += item.size;
            found.files += 1;
            found.bytes += item.size;
        }
        watch(Progress { file: &self.root, done, total });
        Ok(found)
    }

    /// Removes all but the `keep` newest generations, and the files that only they needed. Returns how
    /// many generations and files went.
    ///
    /// # Errors
    /// `InvalidInput` if none is to be kept. `Corruption` if a generation that is kept does not verify:
    /// which files it needs is not known.
    pub fn prune(&self, keep: usize) -> Result<(u64, u64)> {
        block_on(self.prune_async(keep))
    }

    /// Async twin of [`Backups::prune`].
    pub async fn prune_async(&self, keep: usize) -> Result<(u64, u64)> {
        if keep == 0 {
            return Err(Error::InvalidInput("keep at least one generation".to_owned()));
        }
        let shelf = Shelf::open(&self.env, &self.root).await?;
        shelf.prune(keep).await
    }

    /// Makes the directory `target`, missing or without a file, what it was in a generation; in the
    /// newest one if none is named. Returns its number.
    ///
    /// # Errors
    /// `InvalidInput` if there is no such generation, or the target holds something. `Corruption` names
    /// file and offset of what does not verify: what was restored before it is removed.
    pub fn restore(
        &self,
        number: Option<u64>,
        target: impl AsRef<Path>,
        watch: Watch<'_>,
    ) -> Result<u64> {
        block_on(self.restore_async(number, target, watch))
    }

    /// Async twin of [`Backups::restore`].
    pub async fn restore_async(
        &self,
        number: Option<u64>,
        target: impl AsRef<Path>,
        watch: Watch<'_>,
    ) -> Result<u64> {
        let shelf = Shelf::open(&self.env, &self.root).await?;
        let contents = shelf.choose(number).await?;
        restore::restore(&shelf, &contents, target.as_ref(), watch).await?;
        Ok(contents.number)
    }
}

/// A generation under way.
struct Making<'a> {
    shelf: &'a Shelf,
    number: u64,
    mode: Mode,
    /// Tables that generations have, by the name that store, number and salt give them.
    known: BTreeMap<String, Item>,
    contents: Contents,
    healed: Vec<Error>,
    done: u64,
    total: u64,
    watch: Watch<'a>,
}

impl Making<'_> {
    async fn store(&mut self, dir: &str, image: &Image) -> Result<()> {
        let place =
            |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        let pool: Arc<dyn Pool> = Arc::new(HeapPool::new(1 << 20));
        for shared in image.shared() {
            let from = image.paths.root.join(shared.dir).join(&shared.name);
            self.watch(&from);
            let key = generation::key(image.identity.id, shared.id, shared.salt);
            let target = place(&format!("{}/{}", shared.dir, shared.name));
            let size = shared.size;
            self.done += size;
            let damage = match self.known.get(&key).filter(|item| item.size == size) {
                Some(item) if self.mode != Mode::Whole => {
                    let checked = match self.mode {
                        Mode::Trusting => self.shelf.check_length(item).await,
                        _ => self.shelf.check(item).await,
                    };
                    match checked {
                        Ok(()) => {
                            let item = Item { target, ..item.clone() };
                            self.contents.add(item, false);
                            continue;
                        }
                        Err(e) if e.is_corruption() => Some((e, item.clone())),
                        Err(e) => return Err(e),
                    }
                }
                _ => None,
            };
            // A copy of what does not verify would take the place of a good one some day.
            match shared.content {
                Content::Table(desc) => {
                    verify_table(&image.env, &image.paths, desc, &pool).await?;
                }
                Content::Values(desc) => {
                    values::verify(&image.env, from.clone(), desc).await?;
                }
            }
            let stored = match (&damage, self.mode) {
                (Some((_, item)), _) => item.stored.clone(),
                (None, Mode::Whole) => format!("{key}-{:08}{}", self.number, shared.suffix()),
                (None, _) => format!("{key}{}", shared.suffix()),
            };
            let context = |e| Error::io("opening", &from, e);
            let file = image.env.disk.open(&from, OpenMode::Read).await.map_err(context)?;
            let copied = self.shelf.copy(file.as_ref(), &from, size, &stored).await?;
            if let Some((problem, item)) = damage {
                if item.sums != copied.sums {
                    let what = "the table verifies, and so did another one of its number and salt, \
                                which the backup had";
                    return Err(Error::corruption(&from, 0, what));
                }
                self.healed.push(problem);
            }
            self.add(target, stored, size, copied);
        }
        for part in &image.lane.parts {
            self.watch(&part.path);
            let name = part.path.file_name().unwrap_or_default().to_string_lossy();
            let stored = self.own_name();
            let copied = self.shelf.copy(part.file.as_ref(), &part.path, part.len, &stored).await?;
            self.done += part.len;
            self.add(place(&format!("log/{name}")), stored, part.capacity, copied);
        }
        let salt = image.env.random.next_u64();
        let manifest = encode_first(1, salt, &image.state);
        self.bytes(place("manifest-000001"), &manifest).await?;
        let current = encode_current("manifest-000001");
        self.bytes(place("CURRENT"), current.as_bytes()).await?;
        self.bytes(place("ATOLL"), identity::encode(image.identity).as_bytes()).await
    }

    /// Stores a small file.
    async fn bytes(&mut self, target: String, bytes: &[u8]) -> Result<()> {
        let stored = self.own_name();
        let copied = self.shelf.write(bytes, &stored).await?;
        self.add(target, stored, bytes.len() as u64, copied);
        Ok(())
    }

    fn add(&mut self, target: String, stored: String, length: u64, copied: Copied) {
        let Copied { size, sums } = copied;
        self.contents.add(Item { stored, target, size, length, sums }, true);
    }

    /// Returns the name of a stored file that only this generation has.
    fn own_name(&self) -> String {
        format!("{:08}-{:05}", self.number, self.contents.items.len())
    }

    fn watch(&mut self, file: &Path) {
        (self.watch)(Progress { file, done: self.done, total: self.total });
    }
}

fn image_bytes(image: &Image) -> u64 {
    let tables: u64 = image.shared().map(|shared| shared.size).sum();
    tables + image.lane.parts.iter().map(|part| part.len).sum::<u64>()
}
