//! The file `ATOLL`: says that a directory is ours, of which format, and which one.
//!
//! ```text
//!   atoll-lsm 1 5f0c21e9a7b3d846 9d3c01aa\n      kind, format version, identity, crc32c (hex)
//! ```
//!
//! The kind says who may open it: an embedded database applies what its log holds, the owner of a
//! store decides that himself. Taken for the other kind, entries would be applied that were never
//! committed, or not at all.
//!
//! It is written last when a database is made. So a directory without it is empty, or one whose
//! making did not finish, or somebody else's, or one that has lost the file; what it holds tells them
//! apart. An unfinished making is begun anew, which removes its files: where there is a table or a
//! frame, opening refuses.

use std::path::Path;

use atoll_encoding::checksum::{Place, seeded};
use atoll_env::disk::{DirEntry, IoClass, IoTag};
use atoll_env::{Env, IoBuf, OpenMode};

use crate::error::{Error, Result};
use crate::log::FIRST_FRAME;
use crate::version::Paths;
use crate::version::manifest::{read_file, sync_dir};

/// Whose directory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A [`Database`](crate::Database).
    Database,
    /// The store of an owner who drives log and tree ([`crate::driven`]).
    Store,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Database, Kind::Store];

    /// Returns what the directory calls itself.
    fn name(self) -> &'static str {
        match self {
            Kind::Database => "atoll-lsm",
            Kind::Store => "atoll-store",
        }
    }
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) kind: Kind,
    /// A random number.
    pub(crate) id: u64,
}

/// The version that this program writes and reads.
const FORMAT: u32 = 1;
const CREATE: IoTag = IoTag::new(IoClass::Flush, "create");
/// Capacity of the segment that a making leaves: the smallest there can be.
pub(crate) const FIRST_SEGMENT: u64 = 16 << 10;

/// Reads the identity of the directory; `None` if a new database may be made there.
pub(crate) async fn read(env: &Env, paths: &Paths) -> Result<Option<Identity>> {
    let path = paths.identity();
    let foreign =
        |what: &str| Err(Error::Foreign { path: paths.root.clone(), what: what.to_owned() });
    let bytes = match read_file(env, &path).await {
        Ok(bytes) => bytes,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let entries = env
                .disk
                .list(&paths.root)
                .await
                .map_err(|e| Error::io("listing", &paths.root, e))?;
            // A lock, and what an interrupted making leaves.
            let ours = |name: &str| {
                ["LOCK", "log", "tables", "values", "CURRENT", "CURRENT.new", "ATOLL.new"]
                    .contains(&name)
                    || name.starts_with("manifest-")
            };
            if let Some(other) = entries.iter().find(|e| !ours(&e.name)) {
                return foreign(&format!(
                    "this is no AtollDB directory and not empty (it holds '{}'): choose an empty \
                     or a new one",
                    other.name
                ));
            }
            if !list(env, &paths.tables()).await?.is_empty() {
                return foreign(
                    "the file ATOLL is missing but there are tables: restore it from a backup",
                );
            }
            if log_was_used(env, &paths.log()).await? {
                return foreign(
                    "the file ATOLL is missing but the log is not empty: restore it from a backup",
                );
            }
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    match decode(&bytes) {
        Ok(identity) => Ok(Some(identity)),
        Err(Unreadable::Corrupt(what)) => Err(Error::corruption(&path, 0, what)),
        Err(Unreadable::Foreign(what)) => foreign(&what),
    }
}

/// Returns whether there is more in the log than a making leaves, which is one short segment without
/// frames: its first segment is replaced by the first opening, behind the identity.
async fn log_was_used(env: &Env, log: &Path) -> Result<bool> {
    let mut segments = list(env, log).await?;
    segments.retain(|entry| entry.name.ends_with(".log"));
    let [only] = &segments[..] else { return Ok(!segments.is_empty()) };
    if only.len > FIRST_SEGMENT {
        return Ok(true);
    }
    let bytes = read_file(env, &log.join(&only.name)).await?;
    // A frame has no zero header; a new segment is zeros behind its own.
    Ok(bytes.iter().skip(FIRST_FRAME as usize).any(|byte| *byte != 0))
}

/// Lists a directory; one that is not there is empty.
async fn list(env: &Env, dir: &Path) -> Result<Vec<DirEntry>> {
    match env.disk.list(dir).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|e| Error::io("listing", dir, e)),
    }
}

/// Why the content of the file says nothing.
pub(crate) enum Unreadable {
    Corrupt(&'static str),
    Foreign(String),
}

/// Decodes the content of the file.
pub(crate) fn decode(bytes: &[u8]) -> Result<Identity, Unreadable> {
    let text = String::from_utf8_lossy(bytes);
    // The checksum comes first, so that a flipped bit is not taken for another program's version.
    let verified = text
        .trim_end()
        .rsplit_once(' ')
        .filter(|(body, sum)| text.ends_with('\n') && *sum == format!("{:08x}", sum_of(body)));
    if verified.is_none() {
        return Err(Unreadable::Corrupt("the identity does not verify"));
    }
    let mut words = text.trim_end().split(' ');
    let name = words.next().unwrap_or("");
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    let kind = match (kind, words.next().and_then(|w| w.parse().ok())) {
        (Some(kind), Some(FORMAT)) => kind,
        (Some(_), Some(newer)) if newer > FORMAT => {
            return Err(Unreadable::Foreign(format!(
                "the directory has format {newer}, this program reads {FORMAT}: use a newer one"
            )));
        }
        (Some(_), Some(old)) => {
            let what = format!("format {old} of the directory is not known");
            return Err(Unreadable::Foreign(what));
        }
        _ => return Err(Unreadable::Corrupt("the file does not say what the directory is")),
    };
    let id = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
    let id = id.ok_or(Unreadable::Corrupt("the identity is not a number"))?;
    Ok(Identity { kind, id })
}

/// Returns the content of the file that says `identity`.
pub(crate) fn encode(Identity { kind, id }: Identity) -> String {
    sealed(&format!("{} {FORMAT} {id:016x}", kind.name()))
}

/// Returns `body` with its checksum behind it.
pub(crate) fn sealed(body: &str) -> String {
    format!("{body} {:08x}\n", sum_of(body))
}

/// Reads the identity as [`read`] does, and refuses a directory of another kind.
pub(crate) async fn read_as(env: &Env, paths: &Paths, wanted: Kind) -> Result<Option<u64>> {
    let Some(Identity { kind, id }) = read(env, paths).await? else { return Ok(None) };
    if kind == wanted {
        return Ok(Some(id));
    }
    let what = match kind {
        Kind::Store => {
            "this is the store of a server's shards (atoll-store) and no embedded database: open \
             it with the server"
        }
        Kind::Database => {
            "this is an embedded database (atoll-lsm) and no store of a server's shards: open it \
             as a database, or choose another directory"
        }
    };
    Err(Error::Foreign { path: paths.root.clone(), what: what.to_owned() })
}

/// Writes the identity of a new directory, durably.
pub(crate) async fn write(env: &Env, paths: &Paths, kind: Kind, id: u64) -> Result<()> {
    let (path, temp) = (paths.identity(), paths.root.join("ATOLL.new"));
    let text = encode(Identity { kind, id });
    let context = |e| Error::io("writing", &temp, e);
    let disk = &env.disk;
    let _ = disk.remove(CREATE, &temp).await;
    let file = disk.open(&temp, OpenMode::CreateNew).await.map_err(context)?;
    file.write_at(CREATE, 0, IoBuf::from(text.as_bytes())).await.map_err(context)?;
    file.sync(CREATE).await.map_err(context)?;
    disk.rename(CREATE, &temp, &path).await.map_err(|e| Error::io("naming", &path, e))?;
    sync_dir(disk.as_ref(), CREATE, &paths.root).await
}

fn sum_of(body: &str) -> u32 {
    seeded(Place { file: 0, salt: 0, offset: 0 }, &[body.as_bytes()])
}
