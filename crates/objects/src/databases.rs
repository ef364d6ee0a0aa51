//! Database numbers and the keyspaces behind them.
//!
//! ```text
//!   SELECT 3  ->  local value "d" 03 of the shard  ->  keyspace id   (19 + SLOTTED if never changed)
//! ```
//!
//! Every shard with slots has the whole map among its own values (`atoll_shard::leader::LOCAL`).
//! FLUSHDB points a number at a fresh id, SWAPDB exchanges two, each in one transaction over all
//! shards; what the old id held is removed later, by range.

use atoll_mvcc::Value;
use atoll_mvcc::keys::{PARTS, Placement, SLOTTED};

/// Number of databases.
pub const DATABASES: usize = 16;
/// Keyspace of database 0 as long as nothing was flushed.
const FIRST: u32 = SLOTTED + 16;

/// Returns the name of a database's entry in the map.
pub fn name(db: usize) -> [u8; 2] {
    [b'd', db as u8]
}

/// Returns the keyspace of a database, given its entry in the map.
pub fn keyspace(db: usize, entry: Option<&[u8]>) -> u32 {
    let id = entry.and_then(|bytes| Value::decode(bytes).ok()).and_then(|value| {
        let bytes: [u8; 4] = value.payload.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    });
    id.unwrap_or(FIRST + db as u32)
}

/// Returns the entry that maps a database to a keyspace.
pub fn entry(keyspace: u32) -> Vec<u8> {
    Value { deadline_ms: None, payload: &keyspace.to_le_bytes() }.encode()
}

/// Replaces `out` by the key of a user key.
pub fn put_key(out: &mut Vec<u8>, keyspace: u32, user_key: &[u8]) {
    out.clear();
    Placement::Slots.put_key(out, keyspace, user_key);
}

/// Returns the key of a user key.
pub fn key(keyspace: u32, user_key: &[u8]) -> Vec<u8> {
    Placement::Slots.key(keyspace, user_key)
}

/// Returns the key of a part of an object: in the keyspace of parts, at the object's slot.
pub fn part_key(keyspace: u32, user_key: &[u8], generation: u64, sub_key: &[u8]) -> Vec<u8> {
    let mut out = part_prefix(keyspace, user_key, generation);
    out.extend_from_slice(sub_key);
    out
}

/// Returns the beginning of the keys of all parts of an object in one of its lives.
pub fn part_prefix(keyspace: u32, user_key: &[u8], generation: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 + 2 + user_key.len() + 8 + 8);
    let slot = atoll_mvcc::keys::slot(user_key);
    out.extend_from_slice(&(keyspace | PARTS).to_be_bytes());
    out.extend_from_slice(&slot.to_be_bytes());
    out.extend_from_slice(&(user_key.len() as u16).to_be_bytes());
    out.extend_from_slice(user_key);
    out.extend_from_slice(&generation.to_be_bytes());
    out
}

/// Returns the user key in a key.
pub fn user_key(key: &[u8]) -> &[u8] {
    key.get(6..).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_has_its_own_keyspace_until_the_map_says_otherwise() {
        assert_ne!(keyspace(0, None), keyspace(1, None));
        assert_eq!(keyspace(3, Some(&entry(77))), 77);
        assert!(keyspace(15, None) < atoll_keyspaces::ids::FIRST_SLOTTED);
    }

    #[test]
    fn parts_lie_at_the_slot_of_their_object_and_no_object_owns_anothers() {
        let (mut key, part) = (Vec::new(), part_key(FIRST, b"{a}b", 7, b"1"));
        put_key(&mut key, FIRST, b"{a}b");
        assert_eq!(key[4..6], part[4..6]);
        assert_eq!(user_key(&key), b"{a}b");
        assert!(!part_key(FIRST, b"{a}bc", 7, b"").starts_with(&part_prefix(FIRST, b"{a}b", 7)));
    }
}
