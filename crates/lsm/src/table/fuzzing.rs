//! The table's decoders with a door for bytes from anywhere. See [`crate::fuzzing`].

use atoll_encoding::checksum::Place;

use super::block::{BlockView, Cursor};
use super::codec::{BlockKind, SEAL_LEN, unseal};
use super::footer::{FOOTER_LEN, Footer};
use super::index::{TopIndex, data_block, locate};
use super::properties::{Properties, range_tombstones};
use super::{BLOCK_MAX, filter};
use crate::key::{InternalKey, Kind, Trailer};
use crate::pool::{Block, HeapPool, Pool};

/// Walks a block in both directions, and looks for what it found.
pub(crate) fn block(bytes: &[u8]) {
    let Ok(view) = BlockView::new(bytes) else { return };
    for n in 0..view.restarts() {
        let _ = data_block(view, n);
    }
    let pool = HeapPool::new(1 << 20);
    let mut frame = pool.frame(bytes.len());
    frame.copy_from_slice(bytes);
    let mut cursor = Cursor::default();
    if cursor.enter(Block::from(frame)).is_err() || cursor.first().is_err() {
        return;
    }
    let mut forward = 0u64;
    while cursor.valid() {
        forward += 1;
        let key = cursor.key();
        let _ = view.find(key);
        let _ = locate(view, key);
        if !cursor.step() && cursor.next_interval().is_err() {
            return;
        }
    }
    let mut backward = 0;
    let mut sound = cursor.last().is_ok();
    while sound && cursor.valid() {
        backward += 1;
        sound = cursor.step_back() || cursor.previous_interval().is_ok();
    }
    assert!(!sound || forward == backward, "{forward} records forward, {backward} backward");
    let target = InternalKey::new(&bytes[..bytes.len().min(8)], Trailer::NEWEST);
    let _ = cursor.seek(target).and_then(|_| cursor.seek_for_prev(target));
}

/// Unpacks a block as it is on disk, behind a seal that verifies.
pub(crate) fn sealed(bytes: &[u8]) {
    let Some((stored, seal)) = bytes.split_last_chunk::<6>() else { return };
    let kinds = [BlockKind::Data, BlockKind::Filter, BlockKind::Properties];
    let place = Place { file: 1, salt: 2, offset: 3 };
    let sum = atoll_encoding::checksum::seeded(place, &[stored, seal]);
    let sealed = [stored, seal, &sum.to_le_bytes()].concat();
    let pool = HeapPool::new(1 << 20);
    for kind in kinds {
        if let Ok(frame) = unseal(&pool, place, kind, &sealed) {
            assert!(frame.len() <= BLOCK_MAX && sealed.len() >= SEAL_LEN);
        }
        let _ = unseal(&pool, place, kind, bytes);
    }
}

/// Decodes what an open table keeps in memory.
pub(crate) fn metadata(bytes: &[u8]) {
    if let Ok(properties) = Properties::decode(bytes) {
        assert_eq!(Properties::decode(&properties.encode()), Ok(properties));
    }
    if let Ok(top) = TopIndex::decode(bytes) {
        for n in 0..top.len() {
            let found = top.locate(top.separator(n));
            assert!(found.is_none_or(|found| found > n), "a separator is exclusive");
        }
    }
    let _ = range_tombstones(bytes);
    let _ = filter::may_contain(bytes, 0x1234_5678_9abc_def0);
    if let Some(footer) = bytes.first_chunk::<FOOTER_LEN>() {
        let _ = Footer::decode(footer, 1, 2, 1 << 20);
    }
}

/// A block to start from.
pub(crate) fn sample_block() -> Vec<u8> {
    let mut builder = super::block::BlockBuilder::new(4);
    for n in 0..30u32 {
        let key = format!("key {:04}", n / 2);
        let kind = if n % 3 == 0 { Kind::VersionedValue } else { Kind::Value };
        let trailer = Trailer::new(100 - u64::from(n), kind);
        builder.add(InternalKey::new(key.as_bytes(), trailer), &vec![n as u8; n as usize + 8]);
    }
    builder.finish().to_vec()
}

/// Properties to start from.
pub(crate) fn sample_properties() -> Vec<u8> {
    let properties = Properties {
        entries: 9,
        smallest: b"a".to_vec(),
        largest: b"zz".to_vec(),
        ..Properties::default()
    };
    properties.encode()
}
