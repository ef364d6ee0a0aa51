//! The file `ATOLL`: says that a directory is ours, of which format, and which one.
//!
//! ```text
//!   atoll-lsm 1 5f0c21e9a7b3d846 9d3c01aa\n      kind, format version, identity, crc32c (hex)
//! ```
//!
//! It is written last when a database is made. So a directory without it is empty, or one whose
//! making did not finish, or somebody else's; what it holds tells them apart.

use atoll_encoding::checksum::{Place, seeded};
use atoll_env::disk::{IoClass, IoTag};
use atoll_env::{Env, IoBuf, OpenMode};

use crate::error::{Error, Result};
use crate::version::Paths;
use crate::version::manifest::{read_file, sync_dir};

/// What the directory of a bare engine calls itself.
const KIND: &str = "atoll-lsm";
/// The version that this program writes and reads.
const FORMAT: u32 = 1;
const CREATE: IoTag = IoTag::new(IoClass::Flush, "create");

/// Reads the identity of the directory; `None` if a new database may be made there.
pub(crate) async fn read(env: &Env, paths: &Paths) -> Result<Option<u64>> {
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
                ["LOCK", "log", "tables", "CURRENT", "CURRENT.new", "ATOLL.new"].contains(&name)
                    || name.starts_with("manifest-")
            };
            if let Some(other) = entries.iter().find(|e| !ours(&e.name)) {
                return foreign(&format!(
                    "this is no AtollDB directory and not empty (it holds '{}'): choose an empty \
                     or a new one",
                    other.name
                ));
            }
            let tables = env.disk.list(&paths.tables()).await.unwrap_or_default();
            if !tables.is_empty() {
                return foreign(
                    "the file ATOLL is missing but there are tables: restore it from a backup",
                );
            }
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let text = String::from_utf8_lossy(&bytes);
    // The checksum comes first, so that a flipped bit is not taken for another program's version.
    let verified = text
        .trim_end()
        .rsplit_once(' ')
        .filter(|(body, sum)| text.ends_with('\n') && *sum == format!("{:08x}", sum_of(body)));
    if verified.is_none() {
        return Err(Error::corruption(&path, 0, "the identity does not verify"));
    }
    let mut words = text.trim_end().split(' ');
    let (kind, format) = (words.next().unwrap_or(""), words.next().and_then(|w| w.parse().ok()));
    match (kind, format) {
        (KIND, Some(FORMAT)) => {}
        (KIND, Some(newer)) if newer > FORMAT => {
            return foreign(&format!(
                "the directory has format {newer}, this program reads {FORMAT}: use a newer one"
            ));
        }
        (KIND, Some(old)) => {
            return foreign(&format!("format {old} of the directory is not known"));
        }
        _ => {
            return Err(Error::corruption(&path, 0, "the file does not say what the directory is"));
        }
    }
    let id = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
    id.map(Some).ok_or_else(|| Error::corruption(&path, 0, "the identity is not a number"))
}

/// Writes the identity of a new database, durably.
pub(crate) async fn write(env: &Env, paths: &Paths, id: u64) -> Result<()> {
    let (path, temp) = (paths.identity(), paths.root.join("ATOLL.new"));
    let body = body(id);
    let text = format!("{body} {:08x}\n", sum_of(&body));
    let context = |e| Error::io("writing", &temp, e);
    let disk = &env.disk;
    let _ = disk.remove(CREATE, &temp).await;
    let file = disk.open(&temp, OpenMode::CreateNew).await.map_err(context)?;
    file.write_at(CREATE, 0, IoBuf::from(text.as_bytes())).await.map_err(context)?;
    file.sync(CREATE).await.map_err(context)?;
    disk.rename(CREATE, &temp, &path).await.map_err(|e| Error::io("naming", &path, e))?;
    sync_dir(disk.as_ref(), CREATE, &paths.root).await
}

fn body(id: u64) -> String {
    format!("{KIND} {FORMAT} {id:016x}")
}

fn sum_of(body: &str) -> u32 {
    seeded(Place { file: 0, salt: 0, offset: 0 }, &[body.as_bytes()])
}
