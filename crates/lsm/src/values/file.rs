//! One value file: written front to end, read record by record, verified as a whole.
//!
//! ```text
//!   header   | "ATOLLVAL" | version u32 | file u64 | salt u64 | crc u32 |                     32
//!   record   | crc u32 | stored len u32 | value len u32 | seqno << 8 + codec u64 | hash u64 | stored bytes
//!   ...
//!   footer   | "ATOLLEND" | records u64 | end of the last u64 | crc u32 |                     28
//! ```
//!
//! Each checksum is seeded with file number, salt and offset. A record names its key by a hash and its
//! write by the sequence number. A value that LZ4 shrinks by an eighth is stored packed; records of one
//! flush or merge stand in key order.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_encoding::checksum::{Place, seeded};
use atoll_encoding::hash::hash64;
use atoll_env::disk::IoClass;
use atoll_env::{Disk, Env, File, FileUse, IoBuf, IoTag, OpenMode};
use lz4_flex::block::CompressTable;

use super::{Ahead, Pointer, ValueDesc};
use crate::error::{Error, Result};
use crate::header::FileKind;
use crate::key::SeqNo;
use crate::mutants;
use crate::pieces::{Pieces, Subject};
use crate::slice::Slice;
use crate::table::VALUE_MAX;
use crate::table::codec::{LZ4, RATIO_MAX, RAW, pack_lz4};

const HEADER: FileKind = FileKind { magic: b"ATOLLVAL", version: 1, name: "value file" };
const END: &[u8; 8] = b"ATOLLEND";
pub(super) const HEADER_LEN: usize = crate::header::LEN;
pub(super) const FOOTER_LEN: usize = 28;
const RECORD_HEADER: usize = 28;
/// Bytes that a verification reads at once.
const WINDOW: usize = 1 << 20;

/// Writes one value file.
pub(super) struct ValueWriter {
    output: Pieces,
    id: u64,
    salt: u64,
    records: u64,
    compress: bool,
    lz4: CompressTable,
    packed: Vec<u8>,
}

impl ValueWriter {
    /// Creates the file `path`, which must not exist. `salt` is random.
    pub(super) async fn create(
        disk: &dyn Disk,
        path: &Path,
        (id, salt): (u64, u64),
        compress: bool,
        (subject, class): (Subject, IoClass),
    ) -> Result<ValueWriter> {
        let file = disk.open_for(path, OpenMode::CreateNew, FileUse::Table).await;
        let file = file.map_err(|e| Error::io("creating value file", path, e))?;
        let mut output = Pieces::new(file, path, subject, class);
        output.append(&HEADER.encode(id, salt));
        let (lz4, packed) = (CompressTable::default(), Vec::new());
        Ok(ValueWriter { output, id, salt, records: 0, compress, lz4, packed })
    }

    /// Adds a value and returns where it is. Fills memory only.
    pub(super) fn add(&mut self, user_key: &[u8], seqno: SeqNo, value: &[u8]) -> Pointer {
        let mut packed = std::mem::take(&mut self.packed);
        let codec = if self.compress { pack_lz4(value, &mut packed, &mut self.lz4) } else { RAW };
        let bytes = if codec == LZ4 { &packed[..] } else { value };
        let pointer = self.put(user_key, seqno, codec, bytes, value.len());
        self.packed = packed;
        pointer
    }

    /// Adds a value as another file stored it.
    pub(super) fn add_stored(&mut self, user_key: &[u8], seqno: SeqNo, stored: &Stored) -> Pointer {
        self.put(user_key, seqno, stored.codec, stored.bytes(), stored.len)
    }

    fn put(
        &mut self,
        user_key: &[u8],
        seqno: SeqNo,
        codec: u8,
        bytes: &[u8],
        len: usize,
    ) -> Pointer {
        let offset = self.output.end();
        let mut header = [0; RECORD_HEADER];
        header[4..8].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        header[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        header[12..20].copy_from_slice(&(seqno << 8 | u64::from(codec)).to_le_bytes());
        header[20..].copy_from_slice(&hash64(user_key).to_le_bytes());
        let place = Place { file: self.id, salt: self.salt, offset };
        let check = seeded(place, &[&header[4..], bytes]);
        header[..4].copy_from_slice(&check.to_le_bytes());
        self.output.append(&header);
        self.output.append(bytes);
        self.records += 1;
        let size = (RECORD_HEADER + bytes.len()) as u32;
        Pointer { file: self.id, offset, size, len: len as u32, check }
    }

    /// Returns the bytes that are in the file, or will be.
    pub(super) fn size(&self) -> u64 {
        self.output.end()
    }

    /// Returns whether a piece waits to be written.
    pub(super) fn is_full(&self) -> bool {
        self.output.is_full()
    }

    /// Writes the complete pieces.
    pub(super) async fn write_out(&mut self) -> Result<()> {
        self.output.write_out().await
    }

    /// Completes the file and syncs it. Its name is durable once the directory is synced.
    pub(super) async fn finish(mut self) -> Result<ValueDesc> {
        let (id, salt, end) = (self.id, self.salt, self.output.end());
        self.output.append(&encode_footer(id, salt, self.records, end));
        let size = self.output.end();
        self.output.finish().await?;
        Ok(ValueDesc { id, salt, size })
    }
}

/// A record as it was read and verified.
pub(crate) struct Stored {
    codec: u8,
    /// Length of the value.
    len: usize,
    /// The whole record.
    record: Slice,
}

impl Stored {
    fn bytes(&self) -> &[u8] {
        self.record.get(RECORD_HEADER..).unwrap_or_default()
    }

    /// Returns the value, without copying it if it is stored as it is, or says what is wrong.
    pub(crate) fn into_value(self) -> Result<Slice, String> {
        if self.codec == RAW && self.bytes().len() == self.len {
            return Ok(self.record.after(RECORD_HEADER));
        }
        let mut value = vec![0; self.len];
        self.unpack(&mut value)?;
        Ok(Slice::from(value))
    }

    /// Fills `value`, which is as long as the value is, or says what is wrong.
    pub(crate) fn unpack(&self, value: &mut [u8]) -> Result<(), String> {
        if value.len() != self.len {
            return Err(format!("a value of {} bytes, not {}", self.len, value.len()));
        }
        let bytes = self.bytes();
        let unpacked = match self.codec {
            RAW if bytes.len() == value.len() => {
                value.copy_from_slice(bytes);
                Some(value.len())
            }
            LZ4 => lz4_flex::block::decompress_into(bytes, value).ok(),
            _ => None,
        };
        match unpacked {
            Some(len) if len == value.len() => Ok(()),
            _ => Err(format!("a value that does not unpack to {} bytes", value.len())),
        }
    }
}

/// An open value file.
pub(crate) struct ValueFile {
    path: PathBuf,
    desc: ValueDesc,
    file: Arc<dyn File>,
}

impl ValueFile {
    /// Opens the file and checks that it is the one that is meant.
    pub(super) async fn open(env: &Env, path: PathBuf, desc: ValueDesc) -> Result<ValueFile> {
        let file = match env.disk.open_for(&path, OpenMode::Read, FileUse::Table).await {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::corruption(&path, 0, "the file is missing"));
            }
            Err(e) => return Err(Error::io("opening value file", &path, e)),
        };
        let found = file.len().await.map_err(|e| Error::io("opening value file", &path, e))?;
        if found != desc.size || desc.size < (HEADER_LEN + FOOTER_LEN) as u64 {
            let what = format!("the value file has {found} bytes, not {}", desc.size);
            return Err(Error::corruption(&path, found.min(desc.size), what));
        }
        let this = ValueFile { path, desc, file };
        let header = this.read_at(0..HEADER_LEN as u64, IoClass::Read).await?;
        if HEADER.decode(&this.path, desc.id, &header)? != desc.salt {
            return Err(this.corruption(0, "the header is that of another value file"));
        }
        Ok(this)
    }

    /// Reads and verifies the record that `pointer`, in the record of `user_key`, points to; once
    /// more if it does not verify, since a bit may have flipped on the way.
    pub(super) async fn read(
        &self,
        user_key: &[u8],
        seqno: SeqNo,
        pointer: Pointer,
        class: IoClass,
    ) -> Result<Stored> {
        let range = self.range(pointer)?;
        let expected = (pointer, seqno << 8, hash64(user_key));
        let record = Slice::from(self.read_at(range.clone(), class).await?);
        match self.judge(record, expected) {
            Ok(stored) => Ok(stored),
            Err(_) => self
                .judge(self.read_at(range, class).await?.into(), expected)
                .map_err(|what| self.corruption(pointer.offset, what)),
        }
    }

    /// Does what [`ValueFile::read`] does, for a scan.
    pub(super) async fn read_ahead(
        &self,
        user_key: &[u8],
        seqno: SeqNo,
        pointer: Pointer,
        ahead: &Ahead,
        class: IoClass,
    ) -> Result<Stored> {
        let range = self.range(pointer)?;
        let record = match ahead.get(pointer.file, &range) {
            Some(record) => record,
            None => {
                let all = HEADER_LEN as u64..self.desc.size - FOOTER_LEN as u64;
                let piece = ahead.piece(pointer.file, &range, all);
                let Ok(bytes) = self.read_at(piece.clone(), class).await else {
                    // What cannot be read may be a neighbour.
                    return self.read(user_key, seqno, pointer, class).await;
                };
                let at = (range.start - piece.start) as usize;
                let len = (range.end - range.start) as usize;
                Slice::new(ahead.put(pointer.file, range, piece.start, bytes), at..at + len)
            }
        };
        match self.judge(record, (pointer, seqno << 8, hash64(user_key))) {
            Ok(stored) => Ok(stored),
            // Read on its own it may verify.
            Err(_) => self.read(user_key, seqno, pointer, class).await,
        }
    }

    /// Holds a record against the pointer that led to it, the sequence number (shifted) and the hash
    /// of its key.
    fn judge(
        &self,
        record: Slice,
        (pointer, seqno, hash): (Pointer, u64, u64),
    ) -> Result<Stored, String> {
        let place = Place { file: self.desc.id, salt: self.desc.salt, offset: pointer.offset };
        let Header { check, stored, len, tag, hash: found } =
            Header::decode(&record).ok_or("a record that is cut short")?;
        if !mutants::is("pointer-without-checksum") {
            if check != pointer.check || check != seeded(place, &[&record[4..]]) {
                return Err("checksum mismatch in a value".to_owned());
            }
            if (tag & !0xff, found) != (seqno, hash) {
                return Err("the value of another key or write".to_owned());
            }
        }
        if record.len() - RECORD_HEADER != stored || len != pointer.len as usize {
            return Err("a value of another length".to_owned());
        }
        Ok(Stored { codec: tag as u8, len, record })
    }

    /// Returns where the record of a pointer lies, checked against the file.
    fn range(&self, pointer: Pointer) -> Result<std::ops::Range<u64>> {
        let end = pointer.offset.saturating_add(u64::from(pointer.size));
        let fits = pointer.offset >= HEADER_LEN as u64
            && end <= self.desc.size - FOOTER_LEN as u64
            && (RECORD_HEADER..=RECORD_HEADER + VALUE_MAX).contains(&(pointer.size as usize))
            && pointer.len as usize <= VALUE_MAX
            && pointer.len as usize <= (pointer.size as usize).saturating_mul(RATIO_MAX);
        if !fits {
            let what = format!("a pointer to {} bytes that do not lie in the file", pointer.size);
            return Err(self.corruption(pointer.offset, what));
        }
        Ok(pointer.offset..end)
    }

    async fn read_at(&self, range: std::ops::Range<u64>, class: IoClass) -> Result<IoBuf> {
        let buf = IoBuf::zeroed((range.end - range.start) as usize);
        let read = self.file.read_at(IoTag::new(class, "value read"), range.start, buf).await;
        read.map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                self.corruption(range.start, "the file ends before the manifest said")
            }
            _ => Error::io("reading value file", &self.path, e),
        })
    }

    pub(super) fn corruption(&self, offset: u64, what: impl Into<String>) -> Error {
        Error::corruption(&self.path, offset, what)
    }
}

/// A record's header.
struct Header {
    check: u32,
    /// Bytes behind the header.
    stored: usize,
    len: usize,
    /// Sequence number and codec.
    tag: u64,
    hash: u64,
}

impl Header {
    fn decode(record: &[u8]) -> Option<Header> {
        let mut r = atoll_encoding::Reader::new(record);
        Some(Header {
            check: r.u32("a checksum").ok()?,
            stored: r.u32("a stored length").ok()? as usize,
            len: r.u32("a value's length").ok()? as usize,
            tag: r.u64("a sequence number").ok()?,
            hash: r.u64("a key's hash").ok()?,
        })
    }
}

/// What a verification read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// Reads a whole file and checks every byte of it.
pub(crate) async fn verify(env: &Env, path: PathBuf, desc: ValueDesc) -> Result<Verified> {
    let file = ValueFile::open(env, path, desc).await?;
    let end = desc.size - FOOTER_LEN as u64;
    let mut at = HEADER_LEN as u64;
    let mut records = 0;
    let mut window = (at, IoBuf::new());
    while at < end {
        let header = file.ahead(&mut window, at, RECORD_HEADER, end).await?;
        let header = header.and_then(Header::decode);
        let header = header.ok_or_else(|| file.corruption(at, "a record that is cut short"))?;
        let size = RECORD_HEADER + header.stored;
        let whole = header.stored <= VALUE_MAX && header.len <= VALUE_MAX;
        let record = if whole { file.ahead(&mut window, at, size, end).await? } else { None };
        let record = record.ok_or_else(|| file.corruption(at, "a record that is cut short"))?;
        let place = Place { file: desc.id, salt: desc.salt, offset: at };
        if header.check != seeded(place, &[&record[4..]]) {
            return Err(file.corruption(at, "checksum mismatch in a value"));
        }
        let stored =
            Stored { codec: header.tag as u8, len: header.len, record: Slice::from(record) };
        let mut value = vec![0; header.len];
        stored.unpack(&mut value).map_err(|what| file.corruption(at, what))?;
        at += size as u64;
        records += 1;
    }
    let footer = file.read_at(end..desc.size, IoClass::Scrub).await?;
    if footer[..] != encode_footer(desc.id, desc.salt, records, end)[..] {
        return Err(file.corruption(end, "the footer does not describe the file"));
    }
    Ok(Verified { records, bytes: desc.size })
}

impl ValueFile {
    /// Returns `len` bytes at `at`, which are read in large pieces; `None` if they reach beyond `end`.
    async fn ahead<'w>(
        &self,
        window: &'w mut (u64, IoBuf),
        at: u64,
        len: usize,
        end: u64,
    ) -> Result<Option<&'w [u8]>> {
        if at + len as u64 > end {
            return Ok(None);
        }
        let inside = |w: &(u64, IoBuf)| at >= w.0 && at + len as u64 <= w.0 + w.1.len() as u64;
        if !inside(window) {
            let to = (at + len.max(WINDOW) as u64).min(end);
            *window = (at, self.read_at(at..to, IoClass::Scrub).await?);
        }
        let from = (at - window.0) as usize;
        Ok(window.1.get(from..from + len))
    }
}

fn encode_footer(id: u64, salt: u64, records: u64, end: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FOOTER_LEN);
    bytes.extend_from_slice(END);
    bytes.extend_from_slice(&records.to_le_bytes());
    bytes.extend_from_slice(&end.to_le_bytes());
    let sum = seeded(Place { file: id, salt, offset: end }, &[&bytes]);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}
