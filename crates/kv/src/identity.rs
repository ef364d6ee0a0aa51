//! The file `ATOLL` of a whole database's directory: what it is, and what was fixed when it was made.
//!
//! ```text
//!   atoll 1 5f0c21e9a7b3d846 stores=2 shards=4 ids=07c5...,b1e9... 9d3c01aa\n
//!   kind, format version, identity, number of stores, shards at creation, which stores, crc32c (hex)
//!
//!   data/ATOLL   data/LOCK   data/store-0/   data/store-1/   ...
//! ```
//!
//! It is written last when a database is made, so a directory without it is empty, or one whose
//! making did not finish, or somebody else's, or one that has lost it. It names the identity of each
//! store, so that none is missed, exchanged or copied unnoticed. The page is docs/formats/directory.md.

use std::path::{Path, PathBuf};

use atoll_encoding::checksum::{Place, seeded};
use atoll_env::disk::{IoClass, IoTag};
use atoll_env::{Env, IoBuf, OpenMode};
use atoll_lsm::{Error, Result};

const KIND: &str = "atoll";
const FORMAT: u32 = 1;
/// What the directory of a bare engine says it is; also that of the server before stores.
const ENGINE: &str = "atoll-lsm";
/// How the names of stores begin.
const STORE: &str = "store-";
const CREATE: IoTag = IoTag::new(IoClass::Flush, "create");
/// Longest identity there can be.
const LEN_MAX: u64 = 4096;

/// What a directory says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A number of its own.
    pub id: u64,
    /// How many stores it has.
    pub stores: u16,
    /// With how many shards it was made.
    pub shards: u16,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) identity: Identity,
    /// The identity of each store; empty in directories of the first programs, which did not say.
    pub(crate) ids: Vec<u64>,
}

/// Returns the directory of a store.
pub(crate) fn store_path(root: &Path, store: usize) -> PathBuf {
    root.join(format!("{STORE}{store}"))
}

/// Refuses a store that is not there: it would be made anew, and what was in it be missing.
pub(crate) async fn must_exist(env: &Env, store: &Path) -> Result<()> {
    let path = store.join("ATOLL");
    match env.disk.open(&path, OpenMode::Read).await {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::corruption(&path, 0, "the file or its store is missing"))
        }
        Err(e) => Err(Error::io("opening", &path, e)),
    }
}

/// Reads what the directory of a stopped server says about itself, and checks that its stores are
/// there; returns their directories.
///
/// # Errors
/// `Foreign` if it is none, or of another format; `Corruption` if it does not verify or a store is
/// missing.
pub async fn stores(env: &Env, root: &Path) -> Result<Vec<PathBuf>> {
    let Some(Found { identity, .. }) = read(env, root).await? else {
        let what = "the file ATOLL is missing: restore it from a backup, or start the server to go \
                    on with a making that did not finish";
        return Err(Error::Foreign { path: root.to_owned(), what: what.to_owned() });
    };
    let stores: Vec<_> =
        (0..usize::from(identity.stores)).map(|store| store_path(root, store)).collect();
    for store in &stores {
        must_exist(env, store).await?;
    }
    Ok(stores)
}

/// Takes the lock of a stopped server's directory until what is returned is dropped.
///
/// # Errors
/// `Locked` if a server has it.
pub async fn lock_stopped(env: &Env, root: &Path) -> Result<Box<dyn Send + Sync>> {
    crate::node::lock(env, root).await
}

/// Returns the content of the directory's `ATOLL`, after reading it as [`stores`] does: a copy of the
/// stores needs it to count.
pub async fn bytes(env: &Env, root: &Path) -> Result<Vec<u8>> {
    let Some(found) = read(env, root).await? else {
        let what = "the file ATOLL is missing: restore it from a backup".to_owned();
        return Err(Error::Foreign { path: root.to_owned(), what });
    };
    Ok(encode(&found).into_bytes())
}

/// Returns the stores that are there, whatever the directory says.
pub(crate) async fn stores_found(env: &Env, root: &Path) -> Result<Vec<PathBuf>> {
    let entries = env.disk.list(root).await.map_err(|e| Error::io("listing", root, e))?;
    let stores = entries.iter().filter(|entry| entry.is_dir && entry.name.starts_with(STORE));
    Ok(stores.map(|entry| root.join(&entry.name)).collect())
}

/// Reads the identity of a directory; `None` if a new database may be made there.
///
/// # Errors
/// `Foreign` if it is somebody else's or another format, `Corruption` if it does not verify.
pub(crate) async fn read(env: &Env, root: &Path) -> Result<Option<Found>> {
    let path = root.join("ATOLL");
    let foreign = |what: String| Err(Error::Foreign { path: root.to_owned(), what });
    let file = match env.disk.open(&path, OpenMode::Read).await {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let entries = match env.disk.list(root).await {
                Ok(entries) => entries,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(Error::io("listing", root, e)),
            };
            let ours =
                |name: &str| name == "LOCK" || name == "ATOLL.new" || name.starts_with(STORE);
            if let Some(other) = entries.iter().find(|e| !ours(&e.name)) {
                return foreign(format!(
                    "this is no AtollDB directory and not empty (it holds '{}'): choose an empty \
                     or a new one",
                    other.name
                ));
            }
            return Ok(None);
        }
        Err(e) => return Err(Error::io("opening", &path, e)),
    };
    let context = |e| Error::io("reading", &path, e);
    let len = file.len().await.map_err(context)?.min(LEN_MAX);
    let mut buf = IoBuf::new();
    buf.resize(len as usize);
    let bytes = file.read_at(CREATE, 0, buf).await.map_err(context)?;
    parse(&bytes, root, &path)
}

fn parse(bytes: &[u8], root: &Path, path: &Path) -> Result<Option<Found>> {
    let text = String::from_utf8_lossy(bytes);
    let foreign = |what: String| Err(Error::Foreign { path: root.to_owned(), what });
    // The checksum comes first, so that a flipped bit is not taken for another program's version.
    let verified = text
        .trim_end()
        .rsplit_once(' ')
        .filter(|(body, sum)| text.ends_with('\n') && *sum == format!("{:08x}", sum_of(body)));
    if verified.is_none() {
        return Err(Error::corruption(path, 0, "the identity does not verify"));
    }
    let mut words = text.trim_end().split(' ');
    let (kind, format) = (words.next().unwrap_or(""), words.next().and_then(|w| w.parse().ok()));
    match (kind, format) {
        (KIND, Some(FORMAT)) => {}
        (KIND, Some(newer)) if newer > FORMAT => {
            return foreign(format!(
                "the directory has format {newer}, this program reads {FORMAT}: use a newer one"
            ));
        }
        (ENGINE, _) => {
            return foreign(
                "this is the directory of a bare storage engine (format atoll-lsm), or of an \
                 AtollDB server from before shards: open it with the engine library or that \
                 server, and choose a new directory here"
                    .to_owned(),
            );
        }
        ("atoll-store", _) => {
            return foreign(
                "this is one store of a database: name the directory above it".to_owned(),
            );
        }
        _ => {
            return Err(Error::corruption(path, 0, "the file does not say what the directory is"));
        }
    }
    let broken = || Error::corruption(path, 0, "the identity is incomplete");
    let id = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()).ok_or_else(broken)?;
    let mut number = |name: &str| {
        let word = words.next().and_then(|w| w.strip_prefix(name));
        word.and_then(|w| w.parse::<u16>().ok()).filter(|n| n.is_power_of_two()).ok_or_else(broken)
    };
    let stores = number("stores=")?;
    let shards = number("shards=")?;
    let ids = match words.next().and_then(|word| word.strip_prefix("ids=")) {
        None => Vec::new(),
        Some(ids) => {
            let ids = ids.split(',').map(|id| u64::from_str_radix(id, 16).map_err(|_| broken()));
            ids.collect::<Result<Vec<_>>>()?
        }
    };
    if !ids.is_empty() && ids.len() != usize::from(stores) {
        return Err(broken());
    }
    Ok(Some(Found { identity: Identity { id, stores, shards }, ids }))
}

/// Writes the identity of a new database, durably.
pub(crate) async fn write(env: &Env, root: &Path, found: &Found) -> Result<()> {
    let (path, temp) = (root.join("ATOLL"), root.join("ATOLL.new"));
    let text = encode(found);
    let context = |e| Error::io("writing", &temp, e);
    let disk = &env.disk;
    // Left by a making that did not finish.
    let _ = disk.remove(CREATE, &temp).await;
    let file = disk.open(&temp, OpenMode::CreateNew).await.map_err(context)?;
    file.write_at(CREATE, 0, IoBuf::from(text.as_bytes())).await.map_err(context)?;
    file.sync(CREATE).await.map_err(context)?;
    disk.rename(CREATE, &temp, &path).await.map_err(|e| Error::io("naming", &path, e))?;
    disk.sync_dir(CREATE, root).await.map_err(|e| Error::io("syncing the directory", root, e))
}

fn encode(Found { identity, ids }: &Found) -> String {
    let Identity { id, stores, shards } = identity;
    let mut body = format!("{KIND} {FORMAT} {id:016x} stores={stores} shards={shards}");
    if !ids.is_empty() {
        let ids: Vec<_> = ids.iter().map(|id| format!("{id:016x}")).collect();
        body.push_str(&format!(" ids={}", ids.join(",")));
    }
    format!("{body} {:08x}\n", sum_of(&body))
}

fn sum_of(body: &str) -> u32 {
    seeded(Place { file: 0, salt: 0, offset: 0 }, &[body.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_env::sim::{Outcome, Sim};

    fn with_disk<T>(body: impl AsyncFnOnce(Env) -> T) -> T {
        let sim = Sim::new(1);
        let node = sim.node("n");
        match sim.block_on(&node, body(node.env())) {
            Outcome::Done(output) => output,
            Outcome::Crashed => unreachable!("no crash was planned"),
        }
    }

    #[test]
    fn what_was_written_is_read_and_every_flipped_bit_is_noticed() {
        with_disk(async |env| {
            let root = Path::new("/data/db");
            env.disk.create_dir(root).await.unwrap();
            assert!(matches!(read(&env, root).await, Ok(None)));
            let identity = Identity { id: 77, stores: 2, shards: 8 };
            let found = Found { identity, ids: vec![5, u64::MAX] };
            write(&env, root, &found).await.unwrap();
            assert_eq!(read(&env, root).await.unwrap(), Some(found.clone()));
            let path = root.join("ATOLL");
            // Without the ids, as the first programs wrote it.
            let first = Found { ids: Vec::new(), ..found.clone() };
            for found in [found, first] {
                let text = encode(&found);
                assert_eq!(parse(text.as_bytes(), root, &path).unwrap(), Some(found));
                for bit in 0..text.len() * 8 {
                    let mut bytes = text.clone().into_bytes();
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    assert!(parse(&bytes, root, &path).is_err(), "bit {bit}");
                }
            }
        });
    }

    #[test]
    fn others_directories_are_refused_by_name() {
        let root = Path::new("/data/db");
        for (body, says) in [
            ("atoll 2 0000000000000001 stores=1 shards=1", "format 2"),
            ("atoll-lsm 1 0000000000000001", "bare storage engine"),
            ("atoll-store 1 0000000000000001", "one store of a database"),
        ] {
            let text = format!("{body} {:08x}\n", sum_of(body));
            let refused = parse(text.as_bytes(), root, &root.join("ATOLL")).unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }
}
