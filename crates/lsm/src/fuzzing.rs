//! Every decoder of stored bytes behind one door, for the fuzz targets in `fuzz/` and for the small
//! runs of the same functions in this file's tests.
//!
//! Each function takes bytes from anywhere and panics if a decoder does, or if it contradicts
//! itself. Where a checksum would end every experiment at once, the function puts a right one.
//!
//! Not part of the API.

use std::path::Path;
use std::sync::Arc;

use crate::batch::{Records, arena_bytes_most};
use crate::keyspace::decode_about;
use crate::store::arena_bytes;
use crate::version::{Edit, Garbage, manifest};
use crate::{log, table};

/// A function that takes bytes from anywhere.
pub type Target = fn(&[u8]);

/// All of them, with the names of the fuzz targets.
pub const TARGETS: [(&str, Target); 9] = [
    ("batch", batch),
    ("manifest_edit", manifest_edit),
    ("manifest_file", manifest_file),
    ("log_header", log::fuzzing::headers),
    ("log_lane", log::fuzzing::lane),
    ("log_segment", log::fuzzing::segment),
    ("table_block", table::fuzzing::block),
    ("table_sealed", table::fuzzing::sealed),
    ("table_metadata", table::fuzzing::metadata),
];

/// Runs a target by name.
///
/// # Panics
/// There is none of that name, or the target found a mistake.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("the name of a target").1(bytes);
}

/// Decodes the payload of an entry, and a record of the catalog.
fn batch(bytes: &[u8]) {
    let _ = decode_about(b"name", bytes);
    let Ok(records) = Records::new(bytes) else { return };
    let (mut seqnos, mut len) = (0, 0);
    for record in records {
        let Ok(record) = record else { return };
        seqnos += record.seqnos();
        len += 1;
    }
    assert!(seqnos <= bytes.len() as u64, "{len} records of {} bytes take {seqnos}", bytes.len());
    assert!(arena_bytes(bytes).is_ok_and(|arena| arena <= arena_bytes_most(bytes.len())));
}

/// Decodes an edit of the manifest.
fn manifest_edit(bytes: &[u8]) {
    if let Ok(edit) = Edit::decode(bytes) {
        let mut again = Vec::new();
        edit.encode(&mut again);
        assert_eq!(Edit::decode(&again), Ok(edit));
    }
}

/// Adds up a manifest: as it is, and with the bytes as the payloads of edits that verify.
fn manifest_file(bytes: &[u8]) {
    let garbage = Arc::new(Garbage::default());
    let path = Path::new("manifest-000001");
    let _ = manifest::replay(path, 1, bytes, &garbage);
    let file = manifest::frame(1, bytes);
    if let Ok((_, edits, end)) = manifest::replay(path, 1, &file, &garbage) {
        assert!(edits > 0 && end <= file.len());
    }
}

#[cfg(test)]
mod tests {
    use atoll_env::random::Prng;

    use super::*;
    use crate::batch::Batch;
    use crate::version::edit::tests::desc;
    use crate::version::{Flushed, TableDesc};

    /// Runs a target on random bytes, and on mutations of `seeds`.
    fn smoke(name: &str, rounds: usize, seeds: &[Vec<u8>]) {
        let mut prng = Prng::new(name.len() as u64);
        seeds.iter().for_each(|seed| run(name, seed));
        for round in 0..rounds {
            let mut bytes: Vec<u8> = match prng.choose(seeds) {
                Some(seed) if round % 4 != 0 => seed.clone(),
                _ => (0..prng.below(200)).map(|_| prng.below(256) as u8).collect(),
            };
            for _ in 0..prng.below(4) {
                if bytes.is_empty() {
                    break;
                }
                let at = prng.index(bytes.len());
                match prng.below(5) {
                    0 => bytes[at] ^= 1 << prng.below(8),
                    1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][prng.index(5)],
                    2 => bytes.truncate(at),
                    3 => bytes.insert(at, prng.below(256) as u8),
                    _ => {
                        let from = prng.index(bytes.len());
                        let piece = bytes[from.min(at)..from.max(at)].to_vec();
                        bytes.splice(at..at, piece);
                    }
                }
            }
            run(name, &bytes);
        }
    }

    #[test]
    fn mutated_batches_are_refused_or_decode() {
        let mut batch = Batch::new();
        batch.insert_raw(7, b"key", b"value", None).insert_raw(7, b"", b"", Some(99));
        batch.remove_raw(8, b"gone").clear_raw(9);
        batch.insert_raw(1, b"long", &vec![7; 300], None);
        let mut payload = batch.into_payload().unwrap().bytes;
        payload.extend_from_slice(&[5, 1, b'k', 9, 0, 0, 0, 0, 0, 0, 0, 2, b'v', b'v']);
        payload.extend_from_slice(&[6, 1, b'k', 9, 0, 0, 0, 0, 0, 0, 0]);
        let about = vec![1, 5, 0, 0];
        smoke("batch", 20_000, &[payload, about]);
    }

    fn edits() -> Vec<Vec<u8>> {
        let first = Edit {
            added: vec![(0, desc(5, "a", "m")), (6, desc(6, "", "z")), (6, desc(7, "zz", "zzz"))],
            flushed: Some(Flushed { position: 1 << 40, applied: [(0, 17), (9, 2)].into() }),
            next_file: 301,
            ..Edit::default()
        };
        let second = Edit {
            added: vec![(0, TableDesc { passing: 2, passing_stamp: 9, ..desc(8, "a", "b") })],
            removed: vec![6],
            moved: vec![(5, 6)],
            quarantined: vec![7],
            ..Edit::default()
        };
        let encode = |edit: &Edit| {
            let mut bytes = Vec::new();
            edit.encode(&mut bytes);
            bytes
        };
        vec![encode(&first), encode(&second)]
    }

    #[test]
    fn mutated_edits_are_refused_or_decode() {
        smoke("manifest_edit", 20_000, &edits());
    }

    #[test]
    fn mutated_manifests_are_refused_or_add_up() {
        let payloads = edits().iter().fold(Vec::new(), |mut all, edit| {
            all.push(edit.len() as u8);
            all.extend_from_slice(edit);
            all
        });
        let file = manifest::frame(1, &payloads);
        smoke("manifest_file", 20_000, &[payloads, file]);
    }

    #[test]
    fn mutated_frames_make_lanes_that_are_refused_or_open() {
        let history: Vec<u8> = (1..=12u8).flat_map(|n| [0, n, 1, 0, 0, n, n, 40]).collect();
        let groups: Vec<u8> =
            (1..=6u8).flat_map(|n| [8, n, n, 0, 0, 0, n, 9, 2, n, 1, 0, 0, 0, n, 16]).collect();
        smoke("log_lane", 1_500, &[history, groups]);
        smoke("log_header", 5_000, &[vec![0; 4096], vec![1; 64]]);
        smoke("log_segment", 300, &[b"ATOLLLOG".repeat(1024)]);
    }

    #[test]
    fn mutated_blocks_of_tables_are_refused_or_decode() {
        let block = table::fuzzing::sample_block();
        smoke("table_block", 10_000, std::slice::from_ref(&block));
        smoke("table_sealed", 3_000, &[[&block[..], &[1, 0, 0, 0, 0, 0]].concat()]);
        smoke("table_metadata", 10_000, &[block, table::fuzzing::sample_properties()]);
    }
}
