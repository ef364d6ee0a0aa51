//! Segments: the files a lane is made of, how they come to be, and how they are used again.
//!
//! ```text
//!   K.new  --write zeros, header, sync--+
//!                                       +--rename, sync_dir-->  N.log  (a segment of the lane)
//!   K.spare --write header, sync--------+                         |
//!      ^                                                          | every entry in it released
//!      +-------------------------rename, sync_dir-----------------+
//! ```
//!
//! A file gets its segment name *after* its header was written and synced. Therefore no crash
//! leaves a `.log` file with a bad, an old or another segment's header: whatever of that kind is
//! found is corruption, and nothing has to be guessed. (The usual order, rename first and write the
//! header then, makes a damaged newest segment look like an unfinished one.)
//!
//! A new file is not only reserved but written once, so that no later commit changes its length or
//! turns unwritten extents into written ones, either of which costs a journal commit of the file
//! system. A recycled file keeps its old bytes: the new salt makes them unreadable as frames.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_encoding::Reader;
use atoll_encoding::checksum::{Place, seeded};
use atoll_env::disk::IoClass;
use atoll_env::{Disk, File, FileUse, IoBuf, IoTag, OpenMode};

use super::frame::BLOCK;
use super::mutant;
use crate::error::{Error, Result};

/// Site of the writes of a segment that did not exist before.
pub const SEGMENT_CREATE: IoTag = IoTag::new(IoClass::Log, "segment create");
/// Site of the writes and renames that turn an old segment into a new one.
pub const SEGMENT_REUSE: IoTag = IoTag::new(IoClass::Log, "segment reuse");
/// Site of the reads of recovery, verification and `entries`.
pub const LOG_READ: IoTag = IoTag::new(IoClass::Read, "log read");

/// Offset of the first frame: the header has the first block for itself.
pub(crate) const FIRST_FRAME: u64 = BLOCK;

const MAGIC: &[u8; 8] = b"ATOLLLOG";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 80;
/// Zeros are written in pieces of this many bytes.
const FILL: u64 = 1 << 20;

/// What the first block of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// The lane the segment belongs to.
    pub lane: u64,
    /// Number of the segment, one above that of the segment before; also its file name.
    pub number: u64,
    /// Lane position of the first byte of the file.
    pub base: u64,
    /// Length of the file in bytes; base plus capacity is the base of the next segment.
    pub capacity: u64,
    /// Random number drawn for this use of the file.
    pub salt: u64,
    /// How often the lane had been opened when the segment was made.
    pub epoch: u32,
    /// Where an earlier opening ended the lane, if this is the first segment it made.
    pub cut: Option<Cut>,
}

/// The statement that the lane up to a position was found good, and that whatever lies between
/// there and this segment does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// End of the last frame that counts.
    pub position: u64,
    /// Checksum of that frame.
    pub prev: u32,
}

impl SegmentHeader {
    /// Returns the lane position one past the segment.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.capacity)
    }

    /// Returns the seed of the checksum of the frame at `offset`.
    pub fn place(&self, offset: u64) -> Place {
        if mutant("no-salt") {
            return Place { file: 0, salt: 0, offset };
        }
        Place { file: self.number, salt: self.salt, offset }
    }

    pub(super) fn encode(&self) -> IoBuf {
        let mut block = IoBuf::zeroed(BLOCK as usize);
        let cut = self.cut.unwrap_or(Cut { position: 0, prev: 0 });
        block[..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let words = [self.lane, self.number, self.base, self.capacity, self.salt, cut.position];
        for (i, word) in words.into_iter().enumerate() {
            block[16 + 8 * i..24 + 8 * i].copy_from_slice(&word.to_le_bytes());
        }
        block[64..68].copy_from_slice(&self.epoch.to_le_bytes());
        block[68..72].copy_from_slice(&cut.prev.to_le_bytes());
        let checksum = header_checksum(&block[..HEADER_LEN]);
        block[12..16].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Decodes and verifies the first block of the file at `path`.
    pub(super) fn decode(block: &[u8], path: &Path) -> Result<SegmentHeader> {
        let malformed = |e: atoll_encoding::Malformed| {
            Error::corruption(path, e.offset as u64, format!("segment header: {e}"))
        };
        let mut reader = Reader::new(block);
        let magic = reader.take(8, "the magic of a log segment").map_err(malformed)?;
        let version = reader.u32("format version").map_err(malformed)?;
        let checksum = reader.u32("checksum").map_err(malformed)?;
        let mut word = || reader.u64("segment header").map_err(malformed);
        let (lane, number, base) = (word()?, word()?, word()?);
        let (capacity, salt, cut) = (word()?, word()?, word()?);
        let epoch = reader.u32("epoch").map_err(malformed)?;
        let prev = reader.u32("checksum before the cut").map_err(malformed)?;
        if magic != MAGIC || checksum != header_checksum(&block[..HEADER_LEN]) {
            return Err(Error::corruption(path, 0, "the segment header does not verify"));
        }
        // The checksum comes first: every version keeps magic, version and checksum where they
        // are, so a flipped bit is not taken for a newer program.
        if version != VERSION {
            return Err(Error::Foreign {
                path: path.to_owned(),
                what: format!(
                    "the log has format version {version}, this program reads {VERSION}; open it \
                     with the program that wrote it"
                ),
            });
        }
        if !capacity.is_multiple_of(BLOCK)
            || capacity < 2 * BLOCK
            || base.checked_add(capacity).is_none()
        {
            return Err(Error::corruption(
                path,
                32,
                format!("a segment of {capacity} bytes at lane position {base} cannot be"),
            ));
        }
        let cut = (cut != 0).then_some(Cut { position: cut, prev });
        Ok(SegmentHeader { lane, number, base, capacity, salt, epoch, cut })
    }
}

fn header_checksum(header: &[u8]) -> u32 {
    seeded(Place { file: 0, salt: 0, offset: 0 }, &[&header[..12], &header[16..]])
}

/// An open segment file with a verified header. Cheap to clone.
#[derive(Clone)]
pub(super) struct Segment {
    pub header: SegmentHeader,
    pub file: Arc<dyn File>,
    pub path: Arc<Path>,
}

/// The directory of a lane.
#[derive(Clone)]
pub(super) struct Directory {
    pub disk: Arc<dyn Disk>,
    pub path: PathBuf,
    /// Whether new segments are filled with zeroes ([`super::LogOptions::fill`]).
    pub fill: bool,
}

/// What is in the directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Numbers of the segments, ascending.
    pub segments: Vec<u64>,
    /// Numbers and lengths of the spares.
    pub spares: Vec<(u64, u64)>,
    /// Files whose creation a crash interrupted.
    pub unfinished: Vec<PathBuf>,
}

impl Directory {
    /// Returns the name of segment `number`.
    pub fn segment_path(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:010}.log"))
    }

    /// Returns the name of spare `number`.
    pub fn spare_path(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:010}.spare"))
    }

    /// Lists the directory; names that are none of the log's are left alone.
    pub async fn list(&self) -> Result<Listing> {
        let entries = self.disk.list(&self.path).await;
        let entries = entries.map_err(|e| Error::io("list", &self.path, e))?;
        let mut listing = Listing::default();
        for entry in entries.iter().filter(|e| !e.is_dir) {
            let Some((stem, extension)) = entry.name.split_once('.') else { continue };
            let Ok(number) = stem.parse::<u64>() else { continue };
            match extension {
                "log" => listing.segments.push(number),
                "spare" => listing.spares.push((number, entry.len)),
                "new" => listing.unfinished.push(self.path.join(&entry.name)),
                _ => {}
            }
        }
        listing.segments.sort_unstable();
        Ok(listing)
    }

    /// Opens segment `number` of `lane` and verifies what its first block says.
    pub async fn open_segment(&self, lane: u64, number: u64, mode: OpenMode) -> Result<Segment> {
        let path = self.segment_path(number);
        let file = self.disk.open_for(&path, mode, FileUse::Log).await;
        let file = file.map_err(|e| Error::io("open", &path, e))?;
        let len = file.len().await.map_err(|e| Error::io("measure", &path, e))?;
        if len < BLOCK {
            return Err(Error::corruption(&path, len, "the file ends inside the segment header"));
        }
        let block = file.read_at(LOG_READ, 0, IoBuf::zeroed(BLOCK as usize)).await;
        let block = block.map_err(|e| Error::io("read", &path, e))?;
        let header = SegmentHeader::decode(&block, &path)?;
        if header.lane != lane {
            return Err(Error::Foreign {
                path,
                what: format!(
                    "the segment belongs to store {}, not to store {lane}; put the file back where \
                     it came from",
                    header.lane
                ),
            });
        }
        if header.number != number {
            let what = format!("this is segment {} under another one's name", header.number);
            return Err(Error::corruption(&path, 24, what));
        }
        if len < header.capacity {
            let what = format!("the segment ends here, of {} bytes", header.capacity);
            return Err(Error::corruption(&path, len, what));
        }
        Ok(Segment { header, file, path: path.into() })
    }

    /// Returns the header of spare `number` from its life as a segment, or as one that was prepared
    /// and not used; `None` if there is none that verifies.
    pub async fn spare_header(&self, number: u64) -> Option<SegmentHeader> {
        let path = self.spare_path(number);
        let file = self.disk.open(&path, OpenMode::Read).await.ok()?;
        let block = file.read_at(LOG_READ, 0, IoBuf::zeroed(BLOCK as usize)).await.ok()?;
        SegmentHeader::decode(&block, &path).ok()
    }

    /// Makes the names in the directory durable. A failure is final: see [`Error::Stopped`].
    pub async fn sync(&self, tag: IoTag) -> Result<()> {
        if mutant("no-dir-sync") {
            return Ok(());
        }
        self.disk.sync_dir(tag, &self.path).await.map_err(|e| stopped(&self.path, &e))
    }

    /// Removes a file.
    pub async fn remove(&self, path: &Path) -> Result<()> {
        self.disk.remove(SEGMENT_REUSE, path).await.map_err(|e| Error::io("remove", path, e))
    }

    /// Renames a file. Not yet durable.
    pub async fn rename(&self, tag: IoTag, from: &Path, to: &Path) -> Result<()> {
        self.disk.rename(tag, from, to).await.map_err(|e| Error::io("rename", from, e))
    }
}

/// The error of a failed sync: nothing is known about the file any more.
pub(super) fn stopped(path: &Path, source: &std::io::Error) -> Error {
    Error::Stopped(format!("syncing {} failed: {source}", path.display()))
}

/// The making of a segment ahead of its use: the slow part, which needs nothing of the log and may
/// run on another task. [`super::Log::adopt`] takes the result.
///
/// Dropping it unfinished wastes at most one spare until the next opening.
pub struct Preparation {
    pub(super) directory: Directory,
    pub(super) header: SegmentHeader,
    /// The file to start from.
    pub(super) source: Source,
}

/// Where a segment's file comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The spare of this number.
    Spare(u64),
    /// A new file, under this number until it is done.
    New(u64),
}

/// A segment that is ready but for its name.
pub struct Prepared {
    pub(super) segment: Segment,
    pub(super) tag: IoTag,
}

impl Preparation {
    /// Writes the segment. `NoSpace` and `Io` may be tried again; after `Stopped` the log is to be
    /// treated as failed.
    pub async fn run(self) -> Result<Prepared> {
        match self.source {
            Source::Spare(number) => {
                let path = self.directory.spare_path(number);
                self.write(&path, OpenMode::ReadWrite, SEGMENT_REUSE).await
            }
            Source::New(number) => {
                let path = self.directory.path.join(format!("{number:010}.new"));
                let made = self.write(&path, OpenMode::CreateNew, SEGMENT_CREATE).await;
                if made.is_err() {
                    // Gives the space back; an error of the removal adds nothing to the first one,
                    // and the next opening removes what is left.
                    let _ = self.directory.remove(&path).await;
                }
                made
            }
        }
    }

    async fn write(&self, path: &Path, mode: OpenMode, tag: IoTag) -> Result<Prepared> {
        let fail = |doing| move |e| Error::io(doing, path, e);
        let file = self.directory.disk.open_for(path, mode, FileUse::Log).await;
        let file = file.map_err(fail("create"))?;
        if mode == OpenMode::CreateNew {
            let capacity = self.header.capacity;
            file.allocate(tag, capacity).await.map_err(fail("allocate"))?;
            let mut zeros = IoBuf::zeroed(FILL.min(capacity) as usize);
            let mut offset = if self.directory.fill { 0 } else { capacity };
            while offset < capacity {
                zeros.resize(FILL.min(capacity - offset) as usize);
                zeros = file.write_at(tag, offset, zeros).await.map_err(fail("fill"))?;
                offset += zeros.len() as u64;
            }
        }
        let header = self.header.encode();
        file.write_at(tag, 0, header).await.map_err(fail("write the header of"))?;
        file.sync(tag).await.map_err(|e| stopped(path, &e))?;
        Ok(Prepared { segment: Segment { header: self.header, file, path: path.into() }, tag })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_header_has_the_bytes_of_the_format_and_comes_back() {
        let header = SegmentHeader {
            lane: 7,
            number: 3,
            base: 0x8000,
            capacity: 0x4000,
            salt: 0x1122_3344_5566_7788,
            epoch: 2,
            cut: Some(Cut { position: 0x7654, prev: 0xaabb_ccdd }),
        };
        let block = header.encode();
        assert_eq!(block.len() as u64, BLOCK);
        let hex: String = block[..80].iter().map(|b| format!("{b:02x}")).collect();
        let expected = concat!(
            "41544f4c4c4c4f47", // magic
            "01000000a26a9917", // version, checksum
            "0700000000000000",
            "0300000000000000",
            "0080000000000000",
            "0040000000000000",
            "8877665544332211",
            "5476000000000000",
            "02000000ddccbbaa",
            "0000000000000000",
        );
        assert_eq!(hex, expected, "a change needs a new format version");
        let path = Path::new("0000000003.log");
        assert_eq!(SegmentHeader::decode(&block, path).unwrap(), header);
        for bit in 0..8 * HEADER_LEN {
            let mut flipped = block.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let refused = SegmentHeader::decode(&flipped, path).unwrap_err();
            assert!(refused.is_corruption(), "bit {bit}: {refused}");
        }
    }
}
