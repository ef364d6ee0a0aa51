//! The record cache's protocol under the model checker: readers who fill, a flush, a quarantine.
//!
//! Tables are a number that the view holds; what the cache answers must be the number of the reader's own
//! view. `cargo xtask loom` runs it.

use loom::sync::{Arc, Mutex};
use loom::thread;

use super::*;
use crate::key::SEQNO_MAX;
use crate::sync::{check, leave_out};

const KEY: &[u8] = b"k";

/// A view: its epoch, and the sequence number of the newest record of the key in its tables.
type View = Mutex<(u64, SeqNo)>;

/// Reads the key as a point read does that no memtable answers.
fn read(records: &Records, view: &View) {
    let hash = hash64(KEY);
    let (epoch, in_tables) = *view.lock().unwrap();
    let reader = Reader { epoch, snapshot: SEQNO_MAX };
    match records.get(KEY, hash, reader) {
        Some((trailer, _)) => assert_eq!(trailer.seqno(), in_tables, "what the view's tables hold"),
        None => records.fill(KEY, hash, epoch, Trailer::new(in_tables, Kind::Value), b""),
    }
}

/// Brings a newer record into tables.
fn flush(records: &Records, view: &View) {
    let change = records.begin_change();
    change.forget(KEY);
    {
        let mut view = view.lock().unwrap();
        change.installed();
        *view = (records.epoch(), view.1 + 1);
    }
    drop(change);
}

/// A reader beside a flush, who reads again afterwards.
fn read_beside_a_flush() {
    let records = Arc::new(Records::of(1, CAPACITY_MIN));
    let view = Arc::new(View::new((0, 1)));
    let reader = {
        let (records, view) = (records.clone(), view.clone());
        thread::spawn(move || {
            read(&records, &view);
            read(&records, &view);
        })
    };
    flush(&records, &view);
    reader.join().unwrap();
    read(&records, &view);
    read(&records, &view);
}

#[test]
fn no_reader_is_answered_what_his_tables_contradict() {
    check(3, read_beside_a_flush);
}

#[test]
#[should_panic]
fn a_flush_that_forgets_nothing_is_noticed() {
    leave_out("record-cache-not-invalidated");
    check(3, read_beside_a_flush);
}

#[test]
#[should_panic]
fn a_fill_that_comes_late_is_noticed() {
    leave_out("record-cache-late-fill");
    check(3, read_beside_a_flush);
}

#[test]
fn two_changes_at_once_and_a_quarantine_do_not_let_each_other_s_readers_fill() {
    check(2, || {
        let records = Arc::new(Records::of(1, CAPACITY_MIN));
        let view = Arc::new(View::new((0, 1)));
        let ingest = {
            let (records, view) = (records.clone(), view.clone());
            thread::spawn(move || flush(&records, &view))
        };
        let reader = {
            let (records, view) = (records.clone(), view.clone());
            thread::spawn(move || read(&records, &view))
        };
        records.distrust();
        reader.join().unwrap();
        ingest.join().unwrap();
        read(&records, &view);
        read(&records, &view);
    });
}
