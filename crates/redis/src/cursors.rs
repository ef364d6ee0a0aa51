//! SCAN cursors: 64 bits that say where to go on, and survive being forgotten.
//!
//! ```text
//!   bit 63 62 | 61 ............ 48 | 47 .......................... 0
//!      0      | slot               | id of an entry, 0 = start of the slot
//! ```
//!
//! An entry remembers the exact key to continue after. The table is bounded; a cursor whose entry
//! is gone (pushed out, or given by an earlier process) starts its slot again: SCAN may return a
//! key twice, it may not miss one that was there all the time. Ids start at a random number, so
//! that an old cursor does not meet an entry of another scan.
//!
//! Encoding the key in the cursor was rejected: clients parse cursors as 64-bit numbers.

use std::collections::VecDeque;
use std::ops::Bound;

use crate::layout::{self, SLOTS};

/// Entries remembered.
const CAPACITY: usize = 16 * 1024;
const ID_BITS: u32 = 48;
const ID_MASK: u64 = (1 << ID_BITS) - 1;

/// The table of positions of scans under way.
pub struct Cursors {
    /// Id of the first entry; entries have consecutive ids.
    first: u64,
    entries: VecDeque<Entry>,
}

struct Entry {
    db: usize,
    storage_key: Box<[u8]>,
}

impl Cursors {
    /// Starts an empty table whose ids start somewhere given by `random`.
    pub fn new(random: u64) -> Cursors {
        // The upper half of the ids stays free for a process's lifetime of scans.
        Cursors { first: (random & (ID_MASK >> 1)) + 1, entries: VecDeque::new() }
    }

    /// Replaces `key` by the storage key to go on from.
    pub fn resume(&self, cursor: u64, db: usize, key: &mut Vec<u8>) -> Bound<()> {
        let slot = (cursor >> ID_BITS) as u16;
        let index = (cursor & ID_MASK).checked_sub(self.first);
        let entry = index.and_then(|index| self.entries.get(usize::try_from(index).ok()?));
        key.clear();
        let mine =
            |entry: &&Entry| entry.db == db && entry.storage_key.starts_with(&slot.to_be_bytes());
        if let Some(entry) = entry.filter(mine) {
            key.extend_from_slice(&entry.storage_key);
            return Bound::Excluded(());
        }
        key.extend_from_slice(&slot.to_be_bytes());
        Bound::Included(())
    }

    /// Remembers to go on after `storage_key`; returns the cursor.
    pub fn save(&mut self, db: usize, storage_key: &[u8]) -> u64 {
        if self.entries.len() == CAPACITY {
            self.entries.pop_front();
            self.first += 1;
        }
        let id = self.first + self.entries.len() as u64;
        if id > ID_MASK {
            self.entries.clear();
            self.first = 1;
            return self.save(db, storage_key);
        }
        self.entries.push_back(Entry { db, storage_key: storage_key.into() });
        let slot = match storage_key {
            [high, low, ..] => u16::from_be_bytes([*high, *low]) % SLOTS,
            _ => layout::slot(&[]),
        };
        u64::from(slot) << ID_BITS | id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Vec<u8> {
        let mut key = Vec::new();
        layout::storage_key(&mut key, text.as_bytes());
        key
    }

    #[test]
    fn a_cursor_goes_on_after_its_key_and_a_forgotten_one_starts_its_slot_again() {
        let mut cursors = Cursors::new(u64::MAX);
        let cursor = cursors.save(3, &key("foo"));
        assert_eq!(cursor >> 48, 12_182);
        let mut resumed = Vec::new();
        assert_eq!(cursors.resume(cursor, 3, &mut resumed), Bound::Excluded(()));
        assert_eq!(resumed, key("foo"));
        let slot = 12_182u16.to_be_bytes();
        assert_eq!(cursors.resume(cursor, 4, &mut resumed), Bound::Included(()));
        assert_eq!(resumed, slot, "of another database");
        for i in 0..CAPACITY {
            cursors.save(3, &key(&i.to_string()));
        }
        assert_eq!(cursors.resume(cursor, 3, &mut resumed), Bound::Included(()));
        assert_eq!(resumed, slot, "pushed out");
        assert_eq!(cursors.resume(0, 3, &mut resumed), Bound::Included(()));
        assert_eq!(resumed, [0, 0]);
    }

    #[test]
    fn ids_that_run_out_start_again() {
        let mut cursors = Cursors { first: ID_MASK, entries: VecDeque::new() };
        assert_eq!(cursors.save(0, &key("a")) & ID_MASK, ID_MASK);
        let cursor = cursors.save(0, &key("b"));
        assert_eq!(cursor & ID_MASK, 1);
        assert_eq!(cursors.resume(cursor, 0, &mut Vec::new()), Bound::Excluded(()));
    }
}
