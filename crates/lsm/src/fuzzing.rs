//! Every decoder of stored bytes behind one door, for the fuzz targets in `fuzz/` and for the small
//! runs of the same functions in this file's tests.
//!
//! Each function takes bytes from anywhere and panics if a decoder does, or if it contradicts
//! itself. Where a checksum would end every experiment at once, the function puts a right one.
//!
//! Not part of the API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::random::Prng;

use crate::batch::{Batch, Records, arena_bytes_most};
use crate::identity::{self, Unreadable};
use crate::iter::scan::is_dead;
use crate::key::{Kind, Trailer, stamp_of};
use crate::keyspace::{decode_about, decode_last_id, encode_about, encode_last_id};
use crate::options::{KeyspaceOptions, ValuePlacement};
use crate::read::{Chunked, Stored};
use crate::slice::Slice;
use crate::store::arena_bytes;
use crate::values::ValueDesc;
use crate::version::edit::sample_desc;
use crate::version::{Edit, Flushed, Garbage, TableDesc, manifest};
use crate::{log, table, values};

/// A function that takes bytes from anywhere.
pub type Target = fn(&[u8]);

/// All of them, with the names of the fuzz targets.
pub const TARGETS: [(&str, Target); 15] = [
    ("identity", identity),
    ("current", current),
    ("batch", batch),
    ("keyspace_record", keyspace_record),
    ("stored_value", stored_value),
    ("manifest_edit", manifest_edit),
    ("manifest_file", manifest_file),
    ("log_header", log::fuzzing::headers),
    ("log_lane", log::fuzzing::lane),
    ("log_segment", log::fuzzing::segment),
    ("table_block", table::fuzzing::block),
    ("table_sealed", table::fuzzing::sealed),
    ("table_metadata", table::fuzzing::metadata),
    ("value_file", values::fuzzing::file),
    ("value_pointer", values::fuzzing::pointer),
];

/// Runs a target by name.
///
/// # Panics
/// There is none of that name, or the target found a mistake.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("the name of a target").1(bytes);
}

/// Decodes the file `ATOLL`: as it is, and with a right checksum behind it.
fn identity(bytes: &[u8]) {
    let _ = identity::decode(bytes);
    let sealed = identity::sealed(&String::from_utf8_lossy(bytes));
    match identity::decode(sealed.as_bytes()) {
        Ok(identity) => {
            let again = identity::decode(identity::encode(identity).as_bytes());
            assert!(again.is_ok_and(|again| again == identity));
        }
        Err(Unreadable::Corrupt(what)) => assert!(!what.is_empty()),
        Err(Unreadable::Foreign(what)) => assert!(what.contains("format")),
    }
}

/// Decodes the file `CURRENT`: as it is, and with a right checksum behind it.
fn current(bytes: &[u8]) {
    let _ = manifest::decode_current(bytes);
    let sealed = manifest::encode_current(&String::from_utf8_lossy(bytes));
    if let Some(id) = manifest::decode_current(sealed.as_bytes()) {
        let again = manifest::encode_current(&format!("manifest-{id:06}"));
        assert_eq!(manifest::decode_current(again.as_bytes()), Some(id));
    }
}

/// Decodes both records of the catalog of keyspaces.
fn keyspace_record(bytes: &[u8]) {
    let (name, value) = bytes.split_at(bytes.len().min(3));
    for (name, value) in [(name, value), (&b"name"[..], bytes)] {
        if let Ok(about) = decode_about(name, value) {
            let again = decode_about(name, &encode_about(about.id, &about.options));
            assert!(again.is_ok_and(|a| (a.id, a.options) == (about.id, about.options)));
        }
    }
    if let Ok(id) = decode_last_id(bytes) {
        assert_eq!(decode_last_id(&encode_last_id(id)), Ok(id));
    }
}

/// Takes the bytes for a stored value of every kind: deadlines, stamps and the heads of values in
/// chunks stand in front of it.
fn stored_value(bytes: &[u8]) {
    let _ = stamp_of(bytes);
    if let Some(head) = Chunked::decode(bytes) {
        assert!(head.chunks as usize <= head.len, "{} chunks of {} bytes", head.chunks, head.len);
    }
    for kind in (0..=u8::MAX).filter_map(Kind::from_u8) {
        let stored = Stored { trailer: Trailer::new(1, kind), value: Slice::from(bytes) };
        let len = stored.len();
        assert!(len <= bytes.len() || Chunked::decode(bytes).is_some_and(|head| head.len == len));
        match stored.deadline() {
            Some(deadline) => assert!(is_dead(kind, bytes, deadline)),
            None => assert_eq!(is_dead(kind, bytes, 0), is_dead(kind, bytes, u64::MAX)),
        }
    }
}

/// Decodes the payload of an entry.
fn batch(bytes: &[u8]) {
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

/// Returns bytes that a target knows, to start mutations from.
pub fn samples(name: &str) -> Vec<Vec<u8>> {
    match name {
        "batch" => vec![sample_batch()],
        "identity" => ["atoll-lsm 1 5f0c21e9a7b3d846", "atoll-store 1 07", "atoll-lsm 9 x"]
            .map(|body| body.as_bytes().to_vec())
            .to_vec(),
        "current" => vec![b"manifest-000003".to_vec(), b"manifest-1234567".to_vec()],
        "keyspace_record" => {
            let ttl = Some(Duration::from_secs(9));
            let plain = KeyspaceOptions {
                ttl,
                filter_prefix_len: 3,
                values: ValuePlacement::MergeBack { above: 600, up_to: 4096 },
                merge_operator: None,
            };
            let merge_operator = Some("mine".to_owned());
            let merged = KeyspaceOptions { merge_operator, ..plain.clone() };
            let about = |options| [&b"abc"[..], &encode_about(300, options)].concat();
            vec![about(&plain), about(&merged), encode_last_id(300)]
        }
        "stored_value" => {
            let mut head = 77u64.to_le_bytes().to_vec();
            head.extend_from_slice(&(3u64 << 20).to_le_bytes());
            head.extend_from_slice(&12u32.to_le_bytes());
            assert!(Chunked::decode(&head).is_some());
            vec![head, b"12345678".to_vec()]
        }
        "manifest_edit" => edits(),
        "manifest_file" => {
            let payloads = edits().iter().fold(Vec::new(), |mut all, edit| {
                all.push(edit.len() as u8);
                all.extend_from_slice(edit);
                all
            });
            let file = manifest::frame(1, &payloads);
            vec![payloads, file]
        }
        "log_lane" => {
            let history: Vec<u8> = (1..=12u8).flat_map(|n| [0, n, 1, 0, 0, n, n, 40]).collect();
            let groups: Vec<u8> =
                (1..=6u8).flat_map(|n| [8, n, n, 0, 0, 0, n, 9, 2, n, 1, 0, 0, 0, n, 16]).collect();
            vec![history, groups]
        }
        "log_header" => vec![vec![0; 4096], vec![1; 64]],
        "log_segment" => vec![b"ATOLLLOG".repeat(1024)],
        "table_block" => vec![table::fuzzing::sample_block()],
        "table_sealed" => {
            vec![[&table::fuzzing::sample_block()[..], &[1, 0, 0, 0, 0, 0]].concat()]
        }
        "value_file" => values::fuzzing::sample_files().to_vec(),
        "value_pointer" => vec![values::fuzzing::sample_pointer()],
        "table_metadata" => {
            vec![table::fuzzing::sample_block(), table::fuzzing::sample_properties()]
        }
        _ => Vec::new(),
    }
}

fn sample_batch() -> Vec<u8> {
    let mut batch = Batch::new();
    batch.insert_raw(7, b"key", b"value", None).insert_raw(7, b"", b"", Some(99));
    batch.remove_raw(8, b"gone").clear_raw(9);
    batch.insert_raw(1, b"long", &[7; 300], None);
    batch.merge_raw(1, b"n", b"+1", None).merge_raw(1, b"n", b"", Some(99));
    let mut payload = batch.into_payload().map(|payload| payload.bytes).unwrap_or_default();
    payload.extend_from_slice(&[5, 1, b'k', 9, 0, 0, 0, 0, 0, 0, 0, 2, b'v', b'v']);
    payload.extend_from_slice(&[6, 1, b'k', 9, 0, 0, 0, 0, 0, 0, 0]);
    payload
}

fn edits() -> Vec<Vec<u8>> {
    let first = Edit {
        added: vec![
            (0, sample_desc(5, "a", "m")),
            (6, sample_desc(6, "", "z")),
            (6, sample_desc(7, "zz", "zzz")),
        ],
        flushed: Some(Flushed { position: 1 << 40, applied: [(0, 17), (9, 2)].into() }),
        next_file: 301,
        ..Edit::default()
    };
    let second = Edit {
        added: vec![
            (0, TableDesc { passing: 2, passing_stamp: 9, ..sample_desc(8, "a", "b") }),
            (1, TableDesc { values: vec![(9, 70)].into(), ..sample_desc(10, "a", "b") }),
            (2, TableDesc { dense: 70, half_expired: 1 << 41, ..sample_desc(11, "b", "c") }),
        ],
        values: vec![ValueDesc { id: 9, salt: 1 << 63, size: 500 }],
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

/// Changes bytes as a disk, a cut or a foreign writer might: bits, bytes, the ends of ranges, lengths,
/// cuts, and pieces of its own or of `other` in another place.
pub fn mutate(prng: &mut Prng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + prng.below(4) {
        if bytes.is_empty() {
            bytes.push(prng.below(256) as u8);
        }
        let at = prng.index(bytes.len());
        match prng.below(9) {
            0 => bytes[at] ^= 1 << prng.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][prng.index(5)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, prng.below(256) as u8),
            4 => bytes[at] = bytes[at].wrapping_add([1, 0xff][prng.index(2)]),
            5 => {
                let width = [2, 4, 8][prng.index(3)];
                let edge = [0, 1, bytes.len() as u64, 1 << 31, u64::MAX - 1, u64::MAX];
                let number = edge[prng.index(edge.len())].to_le_bytes();
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            6 => {
                let end = at + prng.index(bytes.len() - at + 1);
                bytes.drain(at..end);
            }
            7 if !other.is_empty() => {
                let from = prng.index(other.len());
                let end = from + prng.index((other.len() - from).min(64) + 1);
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            _ => {
                let from = prng.index(bytes.len());
                let piece = bytes[from.min(at)..from.max(at)].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a target on random bytes, and on mutations of its samples.
    fn smoke(name: &str, rounds: usize) {
        let mut prng = Prng::new(name.len() as u64);
        let samples = samples(name);
        samples.iter().for_each(|sample| run(name, sample));
        for round in 0..rounds {
            let mut bytes: Vec<u8> = match prng.choose(&samples) {
                Some(sample) if round % 4 != 0 => sample.clone(),
                _ => (0..prng.below(200)).map(|_| prng.below(256) as u8).collect(),
            };
            mutate(&mut prng, &mut bytes, samples.last().map_or(b"", |sample| sample));
            run(name, &bytes);
        }
    }

    #[test]
    fn what_is_mutated_is_refused_or_decodes() {
        for (name, _) in TARGETS {
            assert!(!samples(name).is_empty(), "{name}");
            let rounds = match name {
                "log_segment" => 300,
                "log_lane" | "value_file" => 1_500,
                "log_header" | "table_sealed" => 5_000,
                _ => 20_000,
            };
            smoke(name, rounds);
        }
    }

    #[test]
    fn every_target_has_a_file_that_is_built_under_its_name() {
        let manifest = include_str!("../../../fuzz/Cargo.toml");
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
            let file = std::fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs")));
            assert!(file.is_ok_and(|text| text.contains(&format!("run(\"{name}\""))), "{name}");
        }
    }
}
