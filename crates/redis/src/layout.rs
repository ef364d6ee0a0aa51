//! How keys and values lie in a store.
//!
//! ```text
//!   storage key   [slot u16 big-endian][user key]
//!   record        [kind u8][payload]                 kind 1 = string, payload = its bytes
//! ```
//!
//! The slot is Redis Cluster's: CRC-16/XMODEM of the key modulo 16384, or of what lies between the
//! first `{` and the next `}` if that is not empty. It spreads keys over shards later, and it is
//! what a SCAN cursor counts in. The kind byte leaves room for the other types and for metadata.

/// Number of slots.
pub const SLOTS: u16 = 16_384;
/// Longest user key, in bytes: the engine's 64 KiB less what lies around the key.
pub const MAX_KEY: usize = 65_536 - 64;
/// The kind byte of a string.
pub const KIND_STRING: u8 = 1;

/// Returns the slot of a key.
pub fn slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key).unwrap_or(key)) % SLOTS
}

/// Replaces `out` by the storage key of `key`.
pub fn storage_key(out: &mut Vec<u8>, key: &[u8]) {
    out.clear();
    out.extend_from_slice(&slot(key).to_be_bytes());
    out.extend_from_slice(key);
}

/// Returns the user key in a storage key.
pub fn user_key(storage_key: &[u8]) -> &[u8] {
    storage_key.get(2..).unwrap_or(&[])
}

/// Returns a string's record.
pub fn string_record(value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(1 + value.len());
    record.push(KIND_STRING);
    record.extend_from_slice(value);
    record
}

/// Returns what of a key is hashed, if it has a tag.
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|&b| b == b'{')?;
    let tag = &key[open + 1..];
    let close = tag.iter().position(|&b| b == b'}')?;
    if close == 0 { None } else { Some(&tag[..close]) }
}

/// CRC-16/XMODEM: polynomial 0x1021, start 0, not reflected.
fn crc16(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = (i as u16) << 8;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31c3, "the check value of CRC-16/XMODEM");
        for (key, expected) in [
            ("foo", 12_182),
            ("bar", 5_061),
            ("{user1000}.following", slot(b"user1000")),
            ("foo{}{bar}", crc16(b"foo{}{bar}") % SLOTS),
            ("foo{{bar}}zap", slot(b"{bar")),
            ("foo{bar}{zap}", slot(b"bar")),
            ("{", crc16(b"{") % SLOTS),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }
}
