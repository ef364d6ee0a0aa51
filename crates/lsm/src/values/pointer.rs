//! Where a separated value stands.

use atoll_encoding::{Malformed, Reader};

use crate::key::Trailer;

/// Bytes of a pointer.
const POINTER_LEN: usize = 28;

/// Points at a record of a value file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// Number of the value file.
    pub(crate) file: u64,
    /// Where its record begins.
    pub(crate) offset: u64,
    /// Bytes of the record in the file, its header included.
    pub(crate) size: u32,
    /// Bytes of the value.
    pub(crate) len: u32,
    /// Checksum of the record.
    pub(crate) check: u32,
}

impl Pointer {
    /// Returns the encoding.
    pub(crate) fn encode(&self) -> [u8; POINTER_LEN] {
        let mut bytes = [0; POINTER_LEN];
        bytes[..8].copy_from_slice(&self.file.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.size.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.len.to_le_bytes());
        bytes[24..].copy_from_slice(&self.check.to_le_bytes());
        bytes
    }

    /// Returns the pointer in a table's record; `None` if its value stands in it, or makes no sense.
    pub(crate) fn of(trailer: Trailer, bytes: &[u8]) -> Option<Pointer> {
        let kind = trailer.kind().filter(|_| trailer.is_separated())?;
        Pointer::decode(bytes, kind.head_len()).ok()
    }

    /// Decodes the pointer at the end of a separated record's bytes, behind a head of `head` bytes.
    pub(crate) fn decode(bytes: &[u8], head: usize) -> Result<Pointer, Malformed> {
        let mut r = Reader::new(bytes);
        r.take(head, "a deadline or stamp")?;
        let pointer = Pointer {
            file: r.u64("a value file's number")?,
            offset: r.u64("an offset")?,
            size: r.u32("a record's size")?,
            len: r.u32("a value's length")?,
            check: r.u32("a checksum")?,
        };
        r.finish("the end of a pointer")?;
        Ok(pointer)
    }
}
