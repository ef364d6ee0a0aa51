//! A lane in a temporary directory, and tools to damage it.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use atoll_env::{Env, block_on};

use crate::log::*;

/// The smallest segments, so that every test crosses their borders.
pub(super) const CAPACITY: u64 = 16 << 10;

pub(super) fn options() -> LogOptions {
    LogOptions {
        lane: 7,
        segment_capacity: CAPACITY,
        spares_max: 2,
        fill: true,
        indexed: |g| g >= 10,
    }
}

pub(super) fn id(group: u64, index: u64, term: u64) -> EntryId {
    EntryId { group, index, term }
}

/// Entries in replay order.
pub(super) type Entries = Vec<(EntryId, u64, Vec<u8>)>;

/// A directory with a lane.
pub(super) struct Lane {
    pub env: Env,
    dir: tempfile::TempDir,
}

impl Lane {
    pub fn new() -> Lane {
        Lane { env: atoll_env::os::env().unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Opens the lane and returns what it replays.
    pub fn try_open(&self, known_durable: u64) -> Result<(Log, Entries)> {
        block_on(async {
            let mut recovery = Log::open(&self.env, &self.path(), options(), known_durable).await?;
            let mut entries = Vec::new();
            while let Some(e) = recovery.next_entry().await? {
                entries.push((e.id, e.position, e.payload.to_vec()));
            }
            Ok((recovery.finish().await?, entries))
        })
    }

    pub fn open(&self) -> (Log, Entries) {
        self.try_open(0).unwrap()
    }

    /// Opens the lane and returns the ids it replays.
    pub fn replayed(&self) -> Vec<EntryId> {
        self.open().1.into_iter().map(|(id, ..)| id).collect()
    }

    /// Returns the error of opening.
    pub fn refused(&self, known_durable: u64) -> Error {
        self.try_open(known_durable).map(|_| ()).expect_err("the lane is damaged")
    }

    pub fn segment(&self, number: u64) -> PathBuf {
        self.path().join(format!("{number:010}.log"))
    }

    /// Returns every file of the lane.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = block_on(self.env.disk.list(&self.path())).unwrap();
        let paths = entries.into_iter().map(|e| self.path().join(e.name));
        paths.map(|path| (path.clone(), read(&path))).collect()
    }

    /// Replaces every file of the lane.
    pub fn restore(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        for path in self.files().into_keys() {
            block_on(self.env.disk.remove(FRAME_WRITE, &path)).unwrap();
        }
        for (path, bytes) in files {
            write(path, 0, bytes);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "tests tamper with files behind the engine's back")]
fn open(path: &Path) -> std::fs::File {
    let mut how = std::fs::OpenOptions::new();
    how.read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Returns a file's bytes.
pub(super) fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    open(path).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Overwrites bytes of a file.
pub(super) fn write(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = open(path);
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Flips a bit of a file.
pub(super) fn flip(path: &Path, offset: u64, bit: u8) {
    let byte = read(path)[offset as usize];
    write(path, offset, &[byte ^ 1 << bit]);
}
