//! How keys lie in a store.
//!
//! ```text
//!   storage key   [slot u16 big-endian][user key]                          -> metadata record
//!   sub-records   [slot u16][length of the user key u16][user key][generation u64][sub-key]
//!                 -> bytes; numbers are big-endian
//! ```
//!
//! The slot is Redis Cluster's: CRC-16/XMODEM of the key modulo 16384, or of what lies between the
//! first `{` and the next `}` if that is not empty. It spreads keys over shards, and it is what a
//! SCAN cursor counts in. Sub-records lie apart from the records, so that visits of keys do not
//! meet them; those of one generation are a range. The record is described in
//! [`object`](crate::object).

/// Number of slots.
pub const SLOTS: u16 = 16_384;
/// Longest user key, in bytes: a record of a transaction carries the key with each zero byte doubled,
/// and has to fit the engine's 64 KiB.
pub const MAX_KEY: usize = 32 * 1024 - 64;
/// Longest string.
pub const MAX_STRING: usize = 512 << 20;
/// Longest string in one record: the engine's longest value less what lies around the string.
pub const MAX_WHOLE: usize = MAX_STRING - 64;

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

/// Makes the storage key of a sub-record of the key with this storage key. With an empty sub-key
/// it is what all those of the generation start with, and nothing else does.
pub fn sub_key(storage_key: &[u8], generation: u64, sub_key: &[u8]) -> Vec<u8> {
    let (slot, user_key) = storage_key.split_at(storage_key.len().min(2));
    let mut key = Vec::with_capacity(storage_key.len() + 2 + 8 + sub_key.len());
    key.extend_from_slice(slot);
    // Keys are shorter than 2^16 bytes.
    key.extend_from_slice(&(user_key.len() as u16).to_be_bytes());
    key.extend_from_slice(user_key);
    key.extend_from_slice(&generation.to_be_bytes());
    key.extend_from_slice(sub_key);
    key
}

/// Returns the end of the range of keys that start with a prefix that [`sub_key`] made: generations
/// stay below the highest number, so that there is one.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    for byte in end.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    end
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
