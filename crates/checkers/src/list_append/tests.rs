//! Every anomaly by hand.

use super::*;
use crate::history::Recorder;
use Level::{
    ReadCommitted, Serializable, SessionSerializable, SnapshotIsolation, StrictSerializable,
    StrongSnapshotIsolation,
};

/// Parses `"a x1 r x[1 2]"`: appends 1 to key x, reads key x. Keys are letters.
fn txn(text: &str) -> (Txn, Reads) {
    let (mut micros, mut lists) = (Vec::new(), Vec::new());
    for word in text.split_whitespace() {
        let key = u64::from(word.as_bytes()[0]);
        let rest = &word[1..];
        match rest.strip_prefix('[') {
            None => micros.push(Micro::Append { key, value: rest.parse().expect("a value") }),
            Some(list) => {
                let values = list.trim_end_matches(']').split(',').filter(|v| !v.is_empty());
                lists.push(values.map(|v| v.parse().expect("a value")).collect());
                micros.push(Micro::Read { key });
            }
        }
    }
    (Txn(micros), Reads(lists))
}

/// Rounds of transactions; those of a round overlap, rounds follow each other. `!` marks one that
/// failed, `?` one of unknown outcome, a digit and a colon its process.
fn report(rounds: &[&[&str]]) -> Report {
    let mut recorder = Recorder::new();
    let fixed: Vec<_> = (0..10).map(|_| recorder.process()).collect();
    for round in rounds {
        let mut open = Vec::new();
        for text in *round {
            let (process, text) = match text.split_once(':') {
                Some((number, text)) => (fixed[number.parse::<usize>().expect("a digit")], text),
                None => (recorder.process(), *text),
            };
            let (mark, text) = match text.as_bytes()[0] {
                mark @ (b'!' | b'?') => (mark, &text[1..]),
                _ => (b' ', text),
            };
            let (txn, reads) = txn(text);
            open.push((recorder.invoke(process, 0, txn), mark, reads));
        }
        for (call, mark, reads) in open {
            match mark {
                b'!' => recorder.fail(call, 0),
                b'?' => recorder.info(call, 0),
                _ => recorder.ok(call, 0, reads),
            }
        }
    }
    analyze(&recorder.finish(0)).expect("well formed")
}

/// The levels that a report does not rule out.
fn kept(report: &Report) -> Vec<Level> {
    Level::ALL.into_iter().filter(|level| report.at(*level).is_ok()).collect()
}

fn cycle(shape: Shape) -> Vec<Kind> {
    vec![Kind::Cycle(shape, Order::Data)]
}

#[test]
fn a_serial_history_is_strictly_serializable() {
    let report = report(&[&["x1 y2"], &["x[1] y3", "z[]"], &["y[2,3] x4"], &["x[1,4]"]]);
    assert_eq!(report.kinds(), []);
    assert_eq!(kept(&report), Level::ALL);
    assert!(report.edges > 5);
}

#[test]
fn g0_two_transactions_overwrite_each_other_in_both_orders() {
    let report = report(&[&["x1 y1", "x2 y2"], &["x[1,2]", "y[2,1]"]]);
    assert!(report.kinds().contains(&Kind::Cycle(Shape::G0, Order::Data)), "{report:?}");
    assert_eq!(kept(&report), []);
}

#[test]
fn g1a_a_value_of_a_failed_transaction() {
    let report = report(&[&["!x1", "x[1]"]]);
    assert_eq!(report.kinds(), [Kind::G1a]);
    assert_eq!(kept(&report), []);
}

#[test]
fn g1b_a_list_between_two_appends_of_one_transaction() {
    let report = report(&[&["x1 x2", "x[1]"], &["x[1,2]"]]);
    assert!(report.kinds().contains(&Kind::G1b));
    assert_eq!(kept(&report), []);
}

#[test]
fn g1c_two_transactions_see_each_other() {
    let report = report(&[&["x1 y[2]", "y2 x[1]"]]);
    assert_eq!(report.kinds(), cycle(Shape::G1c));
    assert_eq!(kept(&report), []);
    let text = report.at(ReadCommitted).expect_err("a cycle").to_string();
    assert!(text.contains("T0 before T1: the other saw its 1 at the end of 120"), "{text}");
}

#[test]
fn g_single_a_reader_sees_half_of_a_transaction() {
    let report = report(&[&["x1 y1", "x[1] y[]"]]);
    assert_eq!(report.kinds(), cycle(Shape::GSingle));
    assert_eq!(kept(&report), [ReadCommitted]);
}

#[test]
fn g_nonadjacent_two_readers_see_two_writes_in_both_orders() {
    let report = report(&[&["x1", "y1", "x[1] y[]", "x[] y[1]"]]);
    assert_eq!(report.kinds(), cycle(Shape::GNonadjacent));
    assert_eq!(kept(&report), [ReadCommitted]);
}

#[test]
fn g2_write_skew_is_allowed_by_snapshot_isolation_only() {
    let report = report(&[&["x[] y1", "y[] x1"]]);
    assert_eq!(report.kinds(), cycle(Shape::G2));
    assert_eq!(kept(&report), [ReadCommitted, SnapshotIsolation, StrongSnapshotIsolation]);
}

#[test]
fn lost_update_two_transactions_build_on_one_version() {
    let report = report(&[&["x[] x1", "x[] x2"], &["x[1,2]"]]);
    assert!(report.kinds().contains(&Kind::LostUpdate));
    assert_eq!(kept(&report), [ReadCommitted]);
}

#[test]
fn realtime_a_stale_read_is_serializable_and_not_strictly() {
    let report = report(&[&["1:x1"], &["2:x[]"]]);
    assert_eq!(report.kinds(), [Kind::Cycle(Shape::GSingle, Order::Realtime)]);
    assert_eq!(
        kept(&report),
        [ReadCommitted, SnapshotIsolation, Serializable, SessionSerializable]
    );
}

#[test]
fn realtime_a_lost_append_shows_in_a_later_read() {
    let report = report(&[&["x1"], &["x2"], &["x[1]"]]);
    assert!(report.at(Serializable).is_ok());
    assert!(report.at(StrictSerializable).is_err());
}

#[test]
fn process_a_session_that_does_not_see_its_own_append() {
    let report = report(&[&["1:x1"], &["1:x[]"]]);
    assert!(report.at(Serializable).is_ok());
    assert!(report.at(SessionSerializable).is_err());
    assert!(report.at(StrictSerializable).is_err());
}

#[test]
fn incompatible_orders_duplicates_inventions_and_contradictions() {
    let orders = report(&[&["x1", "x2", "x3"], &["x[1,2]", "x[2,1,3]"]]);
    assert!(orders.kinds().contains(&Kind::IncompatibleOrder));
    let duplicate = report(&[&["x1"], &["x[1,1]"]]);
    assert_eq!(duplicate.kinds(), [Kind::Duplicate]);
    let invented = report(&[&["x1"], &["x[1,9]"]]);
    assert_eq!(invented.kinds(), [Kind::Invented]);
    let own = report(&[&["x1 x[]"]]);
    assert!(own.kinds().contains(&Kind::Internal));
    let twice = report(&[&["x1", "x[] x[1]"]]);
    assert!(twice.kinds().contains(&Kind::Internal));
    assert_eq!(kept(&twice), [ReadCommitted]);
}

#[test]
fn unknown_transactions_count_by_what_others_saw() {
    assert_eq!(report(&[&["?x1"], &["x[]"], &["x[1]"]]).kinds(), []);
    assert_eq!(report(&[&["?x1"], &["x[]"], &["x[]"]]).kinds(), []);
    assert!(report(&[&["?x1"], &["x[1]"], &["x[]"]]).at(StrictSerializable).is_err());
    assert!(report(&[&["?x1 y1", "x[1] y[]"]]).at(SnapshotIsolation).is_err());
}

#[test]
fn a_history_that_breaks_the_rules_of_the_workload_is_malformed() {
    let mut recorder = Recorder::new();
    let process = recorder.process();
    for _ in 0..2 {
        let call = recorder.invoke(process, 0, Txn(vec![Micro::Append { key: 1, value: 1 }]));
        recorder.ok(call, 0, Reads(vec![]));
    }
    let failure = analyze(&recorder.finish(0)).expect_err("appended twice");
    assert!(matches!(failure, Failure::Malformed(_)));
}
