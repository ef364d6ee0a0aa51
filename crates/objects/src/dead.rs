//! Dead generations: the parts of objects that are gone or hold something else now.
//!
//! An object kept in parts names a generation, and its parts carry it. Deleting, overwriting or
//! expiring such an object is one write whatever its size: the record goes, and in the same entry or
//! transaction a note is left at the object's slot that says which generation is dead. When the
//! horizon has passed the note, no reader can meet a record that names the generation; its parts are
//! one range delete then.
//!
//! ```text
//!   note:   keyspace of notes u32 | slot u16 | keyspace of the object u32 | generation u64 | user key
//! ```

use atoll_kv::Core;
use atoll_lsm::Error;
use atoll_mvcc::Value;
use atoll_mvcc::keys::{PARTS, SLOTTED, slot};
use atoll_mvcc::request::{Key, Span};

use crate::databases;
use crate::program::ObjectProgram;

/// The keyspace of notes: below those of databases, beside the shards' own values.
const NOTES: u32 = SLOTTED + 8;
/// Bytes of a note's key before the user key.
const HEAD: usize = 4 + 2 + 4 + 8;

/// Returns the key of the note that a generation of an object is dead.
pub(crate) fn note(keyspace: u32, user_key: &[u8], generation: u64) -> Key {
    let mut key = Vec::with_capacity(HEAD + user_key.len());
    key.extend_from_slice(&NOTES.to_be_bytes());
    key.extend_from_slice(&slot(user_key).to_be_bytes());
    key.extend_from_slice(&keyspace.to_be_bytes());
    key.extend_from_slice(&generation.to_be_bytes());
    key.extend_from_slice(user_key);
    key
}

/// Returns what is stored under a note.
pub(crate) fn value() -> Vec<u8> {
    Value { deadline_ms: None, payload: b"" }.encode()
}

/// Returns the keyspace and the user key of a stored object, `None` if the key is something else's.
pub(crate) fn object(key: &[u8]) -> Option<(u32, &[u8])> {
    let keyspace = u32::from_be_bytes(key.get(..4)?.try_into().ok()?);
    let is_object = keyspace > NOTES && keyspace & SLOTTED != 0 && keyspace & PARTS == 0;
    is_object.then_some((keyspace, key.get(6..)?))
}

/// Returns the parts that a note is about.
fn parts(note: &[u8]) -> Option<Span> {
    let keyspace = u32::from_be_bytes(note.get(6..10)?.try_into().ok()?);
    let generation = u64::from_be_bytes(note.get(10..HEAD)?.try_into().ok()?);
    let start = databases::part_prefix(keyspace, note.get(HEAD..)?, generation);
    // The generation is the end of the prefix, and the next one has parts of its own.
    let end = databases::part_prefix(keyspace, note.get(HEAD..)?, generation.checked_add(1)?);
    Some(Span { start, end })
}

/// Has the parts of dead generations removed from this core's shards. Returns of how many.
///
/// # Errors
/// A store cannot be read.
pub async fn reclaim(core: &Core<ObjectProgram>) -> Result<usize, Error> {
    core.reclaim(NOTES, parts).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_about_the_parts_of_its_generation_and_of_no_other() {
        let keyspace = databases::keyspace(3, None);
        let span = parts(&note(keyspace, b"{a}b", 7)).unwrap();
        let part = |generation, sub: &[u8]| databases::part_key(keyspace, b"{a}b", generation, sub);
        assert!(span.contains(&part(7, b"")) && span.contains(&part(7, &[0xff; 9])));
        assert!(!span.contains(&part(8, b"")) && !span.contains(&part(6, &[0xff; 9])));
        assert!(!span.contains(&databases::part_key(keyspace, b"{a}bc", 7, b"")));
        let mut key = Vec::new();
        databases::put_key(&mut key, keyspace, b"{a}b");
        assert_eq!(object(&key), Some((keyspace, &b"{a}b"[..])));
        assert_eq!(object(&note(keyspace, b"{a}b", 7)), None);
        assert_eq!(object(&part(7, b"")), None);
        assert_eq!(note(keyspace, b"{a}b", 7)[4..6], key[4..6], "on the same shard");
    }
}
