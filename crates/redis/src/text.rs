//! Strings in storage: whole in their record, or in fragments.
//!
//! ```text
//!   record of a short string    header | bytes
//!   record of a long one        header with a generation | length u64
//!     sub-record 0              bytes 0 .. 4096
//!     sub-record 7              bytes 28672 .. 32768, or the first of them
//!     (1 to 6 are not there: zeros)
//! ```
//!
//! A string is written whole. It goes into fragments when a command changes a part of it and it is
//! longer than [`WHOLE_MAX`] then: from that moment on SETBIT, SETRANGE and APPEND write the
//! fragments they touch and the short record, whatever the string's length. Zeros at the end of a
//! fragment are not kept, so a bitmap with one bit far out takes one fragment. Writing the key as a
//! whole (SET) makes it whole again.
//!
//! Fragmenting every long string was rejected: a value that is only ever set and got is one record
//! to write and one to read.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::{Deref, Range};

use crate::layout::MAX_STRING;
use crate::object::{Meta, Object};
use crate::store::StoreError;
use crate::tx::Tx;

/// Bytes of a string in one fragment.
pub(crate) const FRAGMENT: usize = 4096;
/// Longest string that stays whole when a part of it is changed.
pub(crate) const WHOLE_MAX: usize = 4 * FRAGMENT;

static ZEROS: [u8; FRAGMENT] = [0; FRAGMENT];

/// Returns the length of a string.
pub(crate) fn len<V: Deref<Target = [u8]>>(object: &Object<V>) -> usize {
    if object.meta.generation.is_none() {
        return object.payload().len();
    }
    let len = object.payload().first_chunk().map_or(0, |len| u64::from_le_bytes(*len));
    usize::try_from(len).map_or(MAX_STRING, |len| len.min(MAX_STRING))
}

/// Shows a range of a string, which lies inside it, piece by piece.
pub(crate) async fn pieces<T: Tx>(
    tx: &mut T,
    db: usize,
    key: &[u8],
    object: &Object<T::Value>,
    range: Range<usize>,
    show: &mut impl FnMut(&[u8]),
) -> Result<(), StoreError> {
    let Some(generation) = object.meta.generation else {
        show(object.payload().get(range).unwrap_or(&[]));
        return Ok(());
    };
    let mut at = range.start;
    while at < range.end {
        let (index, from) = (at / FRAGMENT, at % FRAGMENT);
        let to = FRAGMENT.min(from + range.end - at);
        let fragment = tx.sub_get(db, key, generation, &sub_key(index)).await?;
        let stored = fragment.as_deref().unwrap_or(&[]);
        let stored = stored.get(from..).unwrap_or(&[]);
        let stored = stored.get(..to - from).unwrap_or(stored);
        if !stored.is_empty() {
            show(stored);
        }
        if stored.len() < to - from {
            show(&ZEROS[..to - from - stored.len()]);
        }
        at += to - from;
    }
    Ok(())
}

/// All fragments of a string, on their way to another key.
pub(crate) struct Fragments<V>(Vec<(usize, V)>);

impl<V: Deref<Target = [u8]> + Clone> Fragments<V> {
    /// Reads the fragments of a string, none if it is whole.
    pub async fn read<T: Tx<Value = V>>(
        tx: &mut T,
        object: &Object<V>,
        (db, key): (usize, &[u8]),
    ) -> Result<Fragments<V>, StoreError> {
        let mut fragments = Vec::new();
        if let Some(generation) = object.meta.generation {
            for index in 0..len(object).div_ceil(FRAGMENT) {
                let fragment = tx.sub_get(db, key, generation, &sub_key(index)).await?;
                fragments.extend(fragment.map(|fragment| (index, fragment)));
            }
        }
        Ok(Fragments(fragments))
    }

    /// Writes them under a key that was put with this generation.
    pub fn write<T: Tx>(&self, tx: &mut T, (db, key): (usize, &[u8]), generation: u64) {
        for (index, fragment) in &self.0 {
            tx.sub_put(db, key, generation, &sub_key(*index), fragment);
        }
    }
}

fn sub_key(index: usize) -> [u8; 4] {
    // Strings are shorter than 2^32 fragments.
    (index as u32).to_be_bytes()
}

/// A string being changed in parts. Reads as it goes; writes when it is finished.
pub(crate) struct Editor {
    meta: Meta,
    len: usize,
    body: Body,
}

enum Body {
    Whole(Vec<u8>),
    Fragments {
        generation: u64,
        /// Nothing of the generation is stored yet.
        fresh: bool,
        /// The fragments that were changed, without zeros at their end or with some.
        changed: BTreeMap<usize, Vec<u8>>,
    },
}

impl Editor {
    /// Opens a string, or an empty one with this metadata, that will have `new_len` bytes or
    /// remain longer than that. What is added is zeros.
    pub fn open<T: Tx>(
        tx: &mut T,
        found: Option<&Object<T::Value>>,
        meta: Meta,
        new_len: usize,
    ) -> Editor {
        let stored = found.map_or(&[][..], |object| object.payload());
        let len = found.map_or(0, len).max(new_len);
        let generation = found.and_then(|object| object.meta.generation);
        let body = match generation {
            Some(generation) => {
                Body::Fragments { generation, fresh: false, changed: BTreeMap::new() }
            }
            None if len <= WHOLE_MAX => {
                let mut whole = Vec::with_capacity(len);
                whole.extend_from_slice(stored);
                whole.resize(len, 0);
                Body::Whole(whole)
            }
            None => {
                let parts = stored.chunks(FRAGMENT).map(<[u8]>::to_vec).enumerate();
                let generation = tx.new_generation();
                Body::Fragments { generation, fresh: true, changed: parts.collect() }
            }
        };
        Editor { meta, len, body }
    }

    /// Reads into `buf`; what lies behind the end is zeros.
    pub async fn read<T: Tx>(
        &self,
        tx: &mut T,
        (db, key): (usize, &[u8]),
        offset: usize,
        buf: &mut [u8],
    ) -> Result<(), StoreError> {
        buf.fill(0);
        match &self.body {
            Body::Whole(whole) => copy_part(whole, offset, buf),
            Body::Fragments { generation, fresh, changed } => {
                let mut at = 0;
                while at < buf.len() {
                    let (index, from) = ((offset + at) / FRAGMENT, (offset + at) % FRAGMENT);
                    let part = (FRAGMENT - from).min(buf.len() - at);
                    let target = &mut buf[at..at + part];
                    if let Some(fragment) = changed.get(&index) {
                        copy_part(fragment, from, target);
                    } else if !fresh
                        && let Some(stored) =
                            tx.sub_get(db, key, *generation, &sub_key(index)).await?
                    {
                        copy_part(&stored, from, target);
                    }
                    at += part;
                }
            }
        }
        Ok(())
    }

    /// Writes bytes, which end inside the length.
    pub async fn write<T: Tx>(
        &mut self,
        tx: &mut T,
        (db, key): (usize, &[u8]),
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        debug_assert!(offset + bytes.len() <= self.len);
        match &mut self.body {
            Body::Whole(whole) => whole[offset..offset + bytes.len()].copy_from_slice(bytes),
            Body::Fragments { generation, fresh, changed } => {
                let mut at = 0;
                while at < bytes.len() {
                    let (index, from) = ((offset + at) / FRAGMENT, (offset + at) % FRAGMENT);
                    let part = (FRAGMENT - from).min(bytes.len() - at);
                    let fragment = match changed.entry(index) {
                        Entry::Occupied(entry) => entry.into_mut(),
                        Entry::Vacant(entry) => {
                            let mut fragment = Vec::new();
                            if !*fresh && part < FRAGMENT {
                                let key_of = sub_key(index);
                                let stored = tx.sub_get(db, key, *generation, &key_of).await?;
                                fragment.extend_from_slice(stored.as_deref().unwrap_or(&[]));
                            }
                            entry.insert(fragment)
                        }
                    };
                    if fragment.len() < from + part {
                        fragment.resize(from + part, 0);
                    }
                    fragment[from..from + part].copy_from_slice(&bytes[at..at + part]);
                    at += part;
                }
            }
        }
        Ok(())
    }

    /// Puts the string.
    pub fn finish<T: Tx>(self, tx: &mut T, db: usize, key: &[u8]) {
        let Editor { meta, len, body } = self;
        match body {
            Body::Whole(whole) => tx.put(db, key, &meta, &whole),
            Body::Fragments { generation, fresh, changed } => {
                let meta = Meta { generation: Some(generation), ..meta };
                tx.put(db, key, &meta, &(len as u64).to_le_bytes());
                for (index, fragment) in changed {
                    let kept = fragment.iter().rposition(|&byte| byte != 0).map_or(0, |i| i + 1);
                    // One that became all zeros has to hide what is stored.
                    if kept > 0 || !fresh {
                        tx.sub_put(db, key, generation, &sub_key(index), &fragment[..kept]);
                    }
                }
            }
        }
    }
}

/// Copies from `source` at `offset` into `target`, as much as there is.
fn copy_part(source: &[u8], offset: usize, target: &mut [u8]) {
    let source = source.get(offset..).unwrap_or(&[]);
    let len = source.len().min(target.len());
    target[..len].copy_from_slice(&source[..len]);
}
