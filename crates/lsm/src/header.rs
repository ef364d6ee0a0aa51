//! The first 32 bytes of manifests and value files: what the file is, and the salt of its checksums.
//!
//! ```text
//!   0        8             12         20         28
//!   | magic  | version u32 | file u64 | salt u64 | crc32c of the bytes before, seeded with file |
//! ```
//!
//! Every version of a format keeps these fields where they are. The checksum is judged before the
//! version, so that a flipped bit is not taken for a newer format.

use std::path::Path;

use atoll_encoding::checksum::{Place, seeded};

use crate::error::{Error, Result};

/// Bytes of a header.
pub(crate) const LEN: usize = 32;

/// A kind of file with such a header.
pub(crate) struct FileKind {
    pub(crate) magic: &'static [u8; 8],
    /// The format version that is written, and the only one that is read.
    pub(crate) version: u32,
    /// As messages call it.
    pub(crate) name: &'static str,
}

impl FileKind {
    /// Returns the header of file number `id`.
    pub(crate) fn encode(&self, id: u64, salt: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend_from_slice(self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(&salt.to_le_bytes());
        bytes.extend_from_slice(&sum(id, &bytes).to_le_bytes());
        bytes
    }

    /// Returns the salt in the header that `bytes`, of the file `path` with number `id`, begin with.
    pub(crate) fn decode(&self, path: &Path, id: u64, bytes: &[u8]) -> Result<u64> {
        let Some(header) = bytes.first_chunk::<LEN>() else {
            return Err(Error::corruption(path, 0, "the header is cut short"));
        };
        if !header.starts_with(self.magic) {
            let what = format!("this is no {}: the magic bytes differ", self.name);
            return Err(Error::corruption(path, 0, what));
        }
        let (fields, found) = header.split_at(LEN - 4);
        if found != sum(id, fields).to_le_bytes() {
            return Err(Error::corruption(path, 0, "the header does not verify"));
        }
        let mut version = [0; 4];
        version.copy_from_slice(&header[8..12]);
        let version = u32::from_le_bytes(version);
        if version != self.version {
            return Err(Error::Foreign {
                path: path.to_owned(),
                what: format!(
                    "the {} has format version {version}, this program reads {}: use a newer one",
                    self.name, self.version
                ),
            });
        }
        let mut salt = [0; 8];
        salt.copy_from_slice(&header[20..28]);
        Ok(u64::from_le_bytes(salt))
    }
}

fn sum(id: u64, fields: &[u8]) -> u32 {
    seeded(Place { file: id, salt: 0, offset: 0 }, &[fields])
}
