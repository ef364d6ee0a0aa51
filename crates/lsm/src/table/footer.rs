//! The footer: the last 64 bytes of a table, from which everything else is found.
//!
//! ```text
//!    0            8            12           16             24          32
//!   +------------+------------+------------+--------------+-----------+
//!   | properties | properties | top index  | top index    | table id  |
//!   | offset u64 | len u32    | len u32    | offset u64   | u64       |
//!   +------------+------------+------------+--------------+-----------+
//!    32           40           48           52             56          64
//!   +------------+------------+------------+--------------+-----------+
//!   | salt       | file size  | version    | crc32c       | magic     |
//!   | u64        | u64        | u32        | u32          | 8 bytes   |
//!   +------------+------------+------------+--------------+-----------+
//! ```
//!
//! Length, magic, version, checksum and its scope are the same in all versions, so that a newer
//! table is told from a damaged one.

use atoll_encoding::checksum::{Place, seeded};

use super::Handle;

pub(super) const FOOTER_LEN: usize = 64;
pub(super) const MAGIC: [u8; 8] = *b"AtollTbl";
/// The version this program writes, and the newest it reads. It reads all before it.
pub(super) const VERSION: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) properties: Handle,
    pub(super) top_index: Handle,
    pub(super) table: u64,
    pub(super) salt: u64,
    pub(super) size: u64,
}

/// Why bytes are not the footer of the table that was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FooterError {
    /// They do not verify.
    Bad(&'static str),
    /// They verify, and are of a version that this program does not know.
    Newer(u32),
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..8].copy_from_slice(&self.properties.offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.properties.len.to_le_bytes());
        out[12..16].copy_from_slice(&self.top_index.len.to_le_bytes());
        out[16..24].copy_from_slice(&self.top_index.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.table.to_le_bytes());
        out[32..40].copy_from_slice(&self.salt.to_le_bytes());
        out[40..48].copy_from_slice(&self.size.to_le_bytes());
        out[48..52].copy_from_slice(&VERSION.to_le_bytes());
        out[56..].copy_from_slice(&MAGIC);
        let crc = checksum(&out, self.table, self.salt, self.size);
        out[52..56].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes the footer of the table `table` with `salt` and `size`.
    pub(super) fn decode(
        bytes: &[u8; FOOTER_LEN],
        table: u64,
        salt: u64,
        size: u64,
    ) -> Result<Footer, FooterError> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[56..] != MAGIC {
            return Err(FooterError::Bad("it does not end like a table"));
        }
        if u32_at(52) != checksum(bytes, table, salt, size) {
            let other = u64_at(24) != table || u64_at(32) != salt;
            return Err(FooterError::Bad(if other {
                "it is another table, or an earlier one with this id"
            } else {
                "checksum mismatch in footer"
            }));
        }
        match u32_at(48) {
            1..=VERSION => {}
            newer if newer > VERSION => return Err(FooterError::Newer(newer)),
            _ => return Err(FooterError::Bad("the footer has no known version")),
        }
        let footer = Footer {
            properties: Handle { offset: u64_at(0), len: u32_at(8) },
            top_index: Handle { offset: u64_at(16), len: u32_at(12) },
            table: u64_at(24),
            salt: u64_at(32),
            size: u64_at(40),
        };
        if (footer.table, footer.salt, footer.size) != (table, salt, size) {
            return Err(FooterError::Bad("the footer names another table"));
        }
        Ok(footer)
    }
}

fn checksum(footer: &[u8; FOOTER_LEN], table: u64, salt: u64, size: u64) -> u32 {
    let offset = size.saturating_sub(FOOTER_LEN as u64);
    seeded(Place { file: table, salt, offset }, &[&footer[..52], &footer[56..]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOOTER: Footer = Footer {
        properties: Handle { offset: 1 << 40, len: 300 },
        top_index: Handle { offset: 77, len: 1 << 20 },
        table: 9,
        salt: 0x1234_5678_9abc_def0,
        size: 1 << 41,
    };

    fn decode(bytes: &[u8; FOOTER_LEN]) -> Result<Footer, FooterError> {
        Footer::decode(bytes, FOOTER.table, FOOTER.salt, FOOTER.size)
    }

    #[test]
    fn a_footer_round_trips_and_every_bit_flip_is_damage_not_a_newer_version() {
        let bytes = FOOTER.encode();
        assert_eq!(decode(&bytes), Ok(FOOTER));
        for bit in 0..FOOTER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&bad), Err(FooterError::Bad(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_called_newer() {
        let mut bytes = FOOTER.encode();
        bytes[48] = VERSION as u8 + 1;
        let crc = checksum(&bytes, FOOTER.table, FOOTER.salt, FOOTER.size);
        bytes[52..56].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes), Err(FooterError::Newer(VERSION + 1)));
    }

    #[test]
    fn another_table_salt_or_size_is_refused() {
        let bytes = FOOTER.encode();
        let Footer { table, salt, size, .. } = FOOTER;
        for (t, sa, si) in
            [(table + 1, salt, size), (table, salt + 1, size), (table, salt, size + 1)]
        {
            assert!(matches!(Footer::decode(&bytes, t, sa, si), Err(FooterError::Bad(_))));
        }
    }
}
