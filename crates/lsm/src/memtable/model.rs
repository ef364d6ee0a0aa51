//! The list, its bytes and the index under the model checker: every interleaving of a writer and a reader
//! (with at most two preemptions each), and every value that the memory model lets a load see.
//!
//! `cargo xtask loom` runs it.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::index::{Index, Known};
use super::list::{HEAD, Inserted, List, Probe, Splice};
use crate::key::{InternalKey, Kind, SEQNO_MAX, Trailer};
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{check, leave_out};

/// Longer than the part of a key that lies in the node, so that comparing reads the bytes.
const LONG: &str = "a key that is longer than its prefix";

fn key(n: u64) -> Vec<u8> {
    format!("{LONG} {n}").into_bytes()
}

fn insert(splice: &mut Splice, list: &List, key: &[u8], seqno: u64) {
    let key = InternalKey::new(key, Trailer::new(seqno, Kind::Value));
    let value = [&seqno.to_le_bytes()[..], b""];
    let inserted = splice.insert(list, &Probe::new(key), value, usize::MAX);
    assert!(matches!(inserted, Inserted::New(_)));
}

/// A writer of two records, the later one before the earlier; a reader who seeks both, and walks.
fn write_and_read() {
    let (appender, list) = List::new(512);
    let (list, visible) = (Arc::new(list), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (list, visible) = (list.clone(), visible.clone());
        thread::spawn(move || {
            let mut splice = Splice::new(appender);
            for (seqno, n) in [(1, 7), (2, 3)] {
                insert(&mut splice, &list, &key(n), seqno);
                visible.store(seqno, Release);
            }
        })
    };
    let snapshot = visible.load(Acquire);
    for (seqno, n) in [(1, 7), (2, 3)] {
        let key = key(n);
        let probe = Probe::new(InternalKey::new(&key, Trailer::visible_at(SEQNO_MAX)));
        let node = list.seek(&probe);
        if node != HEAD && list.same_user_key(node, &probe) {
            assert_eq!(list.trailer(node), Trailer::new(seqno, Kind::Value));
            let (at, len) = list.value_at(node);
            assert_eq!(list.bytes().get(at, len), seqno.to_le_bytes());
        } else {
            assert!(snapshot < seqno, "what is visible is found");
        }
    }
    let mut node = list.next(HEAD);
    let mut before = Vec::new();
    while node != HEAD {
        let met = list.user_key(node).to_vec();
        assert!(met > before, "in order and whole");
        (before, node) = (met, list.next(node));
    }
    writer.join().unwrap();
}

#[test]
fn a_reader_meets_whole_records_and_all_that_are_visible() {
    check(2, write_and_read);
}

#[test]
#[should_panic]
fn a_link_that_is_seen_before_its_node_is_noticed() {
    leave_out("a node before its links");
    check(2, write_and_read);
}

/// A reader without a snapshot learns of a record by its link alone.
fn read_bytes() {
    let (mut appender, bytes) = super::arena::bytes(8);
    let reader = {
        let bytes = bytes.clone();
        thread::spawn(move || {
            let written = bytes.len();
            assert_eq!(bytes.get(0, written), &b"ab"[..written]);
        })
    };
    appender.append(&[b"a"]).unwrap();
    appender.append(&[b"b"]).unwrap();
    reader.join().unwrap();
}

#[test]
fn bytes_below_the_length_are_written_for_ever() {
    check(3, read_bytes);
}

#[test]
#[should_panic]
fn a_length_that_is_seen_before_its_bytes_is_noticed() {
    leave_out("bytes before their length");
    check(3, read_bytes);
}

/// Two keys of one block, one of which is written twice; nodes are complete once their mark is set.
fn note_and_find() {
    const HASH: u64 = 7 << 56 | 5;
    let index = Arc::new(Index::new(1024));
    // What a node holds: whose key, how new. It is written before the node is noted.
    let nodes: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
    let visible = Arc::new(AtomicU64::new(0));
    let holds = |nodes: &[AtomicU64], node: u32| nodes[node as usize].load(Relaxed);
    let writer = {
        let (index, nodes, visible) = (index.clone(), nodes.clone(), visible.clone());
        thread::spawn(move || {
            // Both keys have one tag: nodes tell them apart.
            for (node, key, seqno) in [(1, 10, 1), (2, 20, 2), (3, 10, 3)] {
                nodes[node].store(key + seqno, Relaxed);
                let is_its = |other: u32| holds(&nodes, other) / 10 == key / 10;
                let is_newer = |other: u32| holds(&nodes, other) > key + seqno;
                index.note(HASH, node as u32, is_its, is_newer);
                visible.store(seqno, Release);
            }
        })
    };
    let snapshot = visible.load(Acquire);
    for (key, first, newest) in [(10, 1, if snapshot == 3 { 3 } else { 1 }), (20, 2, 2)] {
        let found = index.find(HASH, |node| {
            let held = holds(&nodes, node);
            assert_ne!(held, 0, "a node is complete before it is noted");
            held / 10 == key / 10
        });
        match found {
            Known::Newest(node) => {
                let seqno = holds(&nodes, node) % 10;
                assert!(seqno >= newest || snapshot < first, "what is visible is the newest");
            }
            Known::Absent => assert!(snapshot < first, "what is visible is known"),
            Known::Unknown => panic!("the block has room"),
        }
    }
    writer.join().unwrap();
}

#[test]
fn the_index_knows_the_newest_of_what_is_visible_and_no_half_node() {
    check(2, note_and_find);
}

#[test]
#[should_panic]
fn a_slot_that_is_seen_before_its_node_is_noticed() {
    leave_out("a node before its slot");
    check(2, note_and_find);
}

#[test]
#[should_panic]
fn a_tag_that_is_seen_before_its_slot_is_noticed() {
    leave_out("a slot before its tag");
    check(2, note_and_find);
}
