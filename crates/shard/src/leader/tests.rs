//! Corners of the leader, one at a time: schedules find them too, but do not say what is wrong.

use std::collections::VecDeque;
use std::sync::Arc;

use atoll_mvcc::keys::{Range, RoutingKey, SLOTTED};

use super::*;
use crate::descriptor::ShardId;
use crate::eval::{Ended, Eval, Interrupt, Sight};
use crate::proof::state::{Applied, Stored, View};

/// A leader, what it has proposed, and what is applied.
struct Rig {
    leader: Leader,
    applied: Applied,
    in_flight: VecDeque<(EntrySeq, Timestamp, Vec<u8>)>,
    /// The last epoch of the oracle.
    epoch: u64,
    ms: u64,
}

impl Rig {
    fn new() -> Rig {
        let descriptor = Descriptor { id: ShardId(1), range: Range::ALL, epoch: 1 };
        let applied = Applied::default();
        let leader = Leader::new(descriptor, Loaded::default(), Timestamp::ZERO, 0);
        Rig { leader, applied, in_flight: VecDeque::new(), epoch: 100, ms: 0 }
    }

    fn commit_point(&mut self) -> Timestamp {
        self.epoch += 1;
        Timestamp::commit_at(Epoch(self.epoch))
    }

    fn read_point(&mut self) -> Timestamp {
        self.epoch += 1;
        Timestamp::read_at(Epoch(self.epoch))
    }

    fn now(&self) -> Now {
        Now { epoch: Epoch(1), monotonic_ms: self.ms }
    }

    fn ask(&mut self, request: Request) -> Step {
        let now = self.now();
        let mut base = View { applied: &self.applied, misses: || false };
        self.leader.evaluate(&request, &mut base, now).expect("nothing misses here")
    }

    /// Runs a command that may write.
    fn run<R>(
        &mut self,
        command: impl FnOnce(&mut Eval<'_, View<'_, fn() -> bool>>) -> Result<R, Interrupt>,
    ) -> Result<(R, Ended), Interrupt> {
        let now = self.now();
        let mut base = View { applied: &self.applied, misses: (|| false) as fn() -> bool };
        let mut eval = Eval::new(&mut self.leader, &mut base, now, Sight::Edge);
        let reply = command(&mut eval)?;
        Ok((reply, eval.finish()?))
    }

    fn set(&mut self, name: &Key, value: Option<&[u8]>) -> Ended {
        let value = value.map(stored);
        let put = self.run(|eval| {
            eval.put(name, value);
            Ok(())
        });
        put.expect("nothing is in the way").1
    }

    fn close(&mut self) -> EntrySeq {
        let mut epoch = self.epoch;
        let fresh = || {
            epoch += 1;
            Epoch(epoch)
        };
        let closed = self.leader.close(fresh).expect("something is open");
        self.epoch = epoch;
        self.in_flight.push_back((closed.seq, closed.stamp, closed.payload()));
        closed.seq
    }

    fn apply(&mut self) {
        let (seq, stamp, payload) = self.in_flight.pop_front().expect("something is in flight");
        self.applied.apply(&payload).expect("entries apply");
        self.leader.applied(seq, stamp);
    }

    /// Closes and applies everything.
    fn settle(&mut self) {
        if self.leader.is_open() {
            self.close();
        }
        while !self.in_flight.is_empty() {
            self.apply();
        }
    }

    /// Another leader comes; what is not applied is lost.
    fn change_leader(&mut self) {
        let low_water = self.read_point();
        let (descriptor, horizon) = (self.leader.descriptor.clone(), self.leader.horizon);
        let loaded = self.applied.load(&descriptor, horizon);
        self.leader = Leader::new(descriptor, loaded, low_water, self.ms);
        self.in_flight.clear();
    }

    fn split(&mut self, at: RoutingKey) -> (Descriptor, Descriptor) {
        self.settle();
        let (left, right) = self.leader.descriptor.split(at, ShardId(2)).expect("it divides");
        let split = Split { left: left.clone(), right: right.clone() };
        let closed = self.leader.close_split(split, || Epoch(1_000));
        self.applied.apply(&closed.payload()).expect("entries apply");
        (left, right)
    }
}

fn key(name: &str) -> Key {
    [&7u32.to_be_bytes(), name.as_bytes()].concat()
}

fn stored(payload: &[u8]) -> Stored {
    let value = atoll_mvcc::Value { deadline_ms: None, payload };
    Stored::from(value.encode())
}

fn write(key: &Key, value: &[u8]) -> Write {
    Write { key: key.clone(), value: Some(stored(value).to_vec()) }
}

fn prewrite(txn: u128, key: &Key, read_ts: Option<Timestamp>, commit_ts: Timestamp) -> Request {
    Request::Prewrite {
        txn: TxnId(txn),
        isolation: Isolation::Serializable,
        read_ts,
        reads: Arc::default(),
        writes: vec![write(key, b"intent")],
        commit_ts,
        primary: key.clone(),
        record: None,
    }
}

fn stage(txn: u128, key: &Key, commit_ts: Timestamp) -> Request {
    let keys = [key.clone()].into();
    let isolation = Isolation::Serializable;
    match prewrite(txn, key, None, commit_ts) {
        Request::Prewrite { txn, read_ts, reads, writes, primary, .. } => Request::Prewrite {
            txn,
            isolation,
            read_ts,
            reads,
            writes,
            commit_ts,
            primary,
            record: Some(Record::Staged { commit_ts, isolation, keys }),
        },
        _ => unreachable!("a prewrite"),
    }
}

fn commit(txn: u128, key: &Key, reads: ReadSet, commit_ts: Timestamp) -> Request {
    Request::Commit {
        txn: TxnId(txn),
        isolation: Isolation::Serializable,
        read_ts: None,
        reads: reads.into(),
        writes: vec![write(key, b"committed")],
        commit_ts,
    }
}

fn finish(
    txn: u128,
    key: &Key,
    expect: Option<Timestamp>,
    outcome: Outcome,
    stamp: Timestamp,
) -> Request {
    let keys = Vec::new();
    Request::Finish { txn: TxnId(txn), primary: key.clone(), expect, outcome, stamp, keys }
}

fn status(txn: u128, key: &Key) -> Request {
    Request::Status { txn: TxnId(txn), primary: key.clone() }
}

fn lock(txn: u128, key: &Key) -> Request {
    Request::Lock { txn: TxnId(txn), keys: vec![key.clone()], exclusive: true }
}

fn probe(txn: u128, key: &Key, fence: Option<Timestamp>) -> Request {
    Request::Probe { txn: TxnId(txn), keys: vec![key.clone()], fence }
}

fn refused(refusal: Refusal) -> Step {
    Step::Answer(Response::Refused(refusal))
}

/// States in which a written value may be.
const OPEN: u8 = 0;
const IN_FLIGHT: u8 = 1;
const APPLIED: u8 = 2;

/// Writes a key and brings the write into a state.
fn written(state: u8) -> (Rig, Key) {
    let (mut rig, a) = (Rig::new(), key("a"));
    rig.set(&a, Some(b"1"));
    if state >= IN_FLIGHT {
        rig.close();
    }
    if state >= APPLIED {
        rig.apply();
    }
    (rig, a)
}

#[test]
fn a_blind_intent_lies_above_the_version_below_it_wherever_that_is() {
    for state in [OPEN, IN_FLIGHT, APPLIED] {
        let (mut rig, a) = written(state);
        // Its commit point is older than the version.
        let old = Timestamp::commit_at(Epoch(1));
        let step = rig.ask(prewrite(9, &a, None, old));
        if state == OPEN {
            assert_eq!(step, Step::CloseFirst, "the version has no timestamp yet");
            rig.close();
        }
        let step = if state == OPEN { rig.ask(prewrite(9, &a, None, old)) } else { step };
        let Step::AnswerWith(Response::Prewritten(min)) = step else { panic!("{step:?}") };
        assert!(min > rig.leader.edge_max(), "state {state}: {min}");
    }
}

#[test]
fn who_has_read_is_refused_by_a_newer_version_wherever_that_is() {
    for state in [OPEN, IN_FLIGHT, APPLIED] {
        let (mut rig, a) = written(state);
        let read_ts = Timestamp::read_at(Epoch(0));
        let commit_ts = rig.commit_point();
        let conflict = refused(Refusal::WriteConflict { key: a.clone() });
        assert_eq!(rig.ask(prewrite(9, &a, Some(read_ts), commit_ts)), conflict, "state {state}");
        assert_eq!(rig.leader.intents(), 0);
        let reads = ReadSet { keys: vec![a.clone()], ..ReadSet::default() };
        let validate = Request::Validate { txn: TxnId(9), reads, read_ts, at: commit_ts };
        let conflict = refused(Refusal::ReadConflict { key: a.clone() });
        assert_eq!(rig.ask(validate), conflict, "state {state}");
    }
}

#[test]
fn what_was_read_under_a_lock_is_what_is_there_or_the_commit_is_refused() {
    for state in [OPEN, IN_FLIGHT, APPLIED] {
        for is_written in [false, true] {
            let (mut rig, a) = written(APPLIED);
            let found = rig.applied.newest_ts(&a);
            let reads = ReadSet { locked: vec![(a.clone(), found)], ..ReadSet::default() };
            let target = if is_written { a.clone() } else { key("b") };
            // The lock is lost with its leader, and somebody else writes.
            rig.change_leader();
            rig.set(&a, Some(b"2"));
            if state >= IN_FLIGHT {
                rig.close();
            }
            if state >= APPLIED {
                rig.apply();
            }
            let commit_ts = rig.commit_point();
            let refusal = match is_written {
                true => Refusal::WriteConflict { key: a.clone() },
                false => Refusal::ReadConflict { key: a.clone() },
            };
            let step = rig.ask(commit(9, &target, reads, commit_ts));
            assert_eq!(step, refused(refusal), "state {state}, written: {is_written}");
        }
    }
    let (mut rig, a) = written(APPLIED);
    let found = rig.applied.newest_ts(&a);
    let reads = ReadSet { locked: vec![(a.clone(), found)], ..ReadSet::default() };
    let commit_ts = rig.commit_point();
    assert!(matches!(rig.ask(commit(9, &a, reads, commit_ts)), Step::AnswerWith(_)));
}

#[test]
pub(crate) fn what_was_read_under_a_lock_and_is_gone_has_changed() {
    for writes in [true, false] {
        let (mut rig, a) = written(APPLIED);
        let Step::Answer(Response::Values(found)) = rig.ask(lock(1, &a)) else { panic!("a lock") };
        let found = found[0].as_ref().expect("the key is there").ts;
        // The lock is lost, the key is removed, and so is its removal.
        rig.change_leader();
        rig.set(&a, None);
        rig.settle();
        let horizon = rig.read_point();
        rig.applied.collect(horizon);
        rig.leader.raise_horizon(horizon);
        let reads = ReadSet { locked: vec![(a.clone(), found)], ..ReadSet::default() };
        let commit_ts = rig.commit_point();
        let written = if writes { a.clone() } else { key("b") };
        let refusal = match writes {
            true => Refusal::WriteConflict { key: a.clone() },
            false => Refusal::ReadConflict { key: a.clone() },
        };
        assert_eq!(rig.ask(commit(1, &written, reads, commit_ts)), refused(refusal));
    }
}

#[test]
fn an_intent_waits_until_reads_of_the_open_entry_have_their_timestamp() {
    let (mut rig, a) = written(APPLIED);
    let b = key("b");
    let reads = ReadSet { keys: vec![a.clone()], ..ReadSet::default() };
    let commit_ts = rig.commit_point();
    assert!(matches!(rig.ask(commit(1, &b, reads, commit_ts)), Step::AnswerWith(_)));
    let old = Timestamp::commit_at(Epoch(2));
    assert_eq!(rig.ask(prewrite(2, &a, None, old)), Step::CloseFirst);
    rig.close();
    let stamp = rig.leader.edge_max();
    let step = rig.ask(prewrite(2, &a, None, old));
    let Step::AnswerWith(Response::Prewritten(min)) = step else { panic!("{step:?}") };
    assert!(min > stamp, "what was read at {stamp} may not change there: {min}");
}

#[test]
pub(crate) fn a_command_that_writes_keeps_what_it_read() {
    let (mut rig, a) = written(APPLIED);
    let command = rig.run(|eval| {
        eval.get(&a)?;
        eval.put(&key("b"), Some(stored(b"v")));
        Ok(())
    });
    command.expect("nothing is in the way");
    rig.close();
    let stamp = rig.leader.edge_max();
    let old = Timestamp::commit_at(Epoch(0));
    let step = rig.ask(prewrite(2, &a, None, old));
    let Step::AnswerWith(Response::Prewritten(min)) = step else { panic!("{step:?}") };
    assert!(min > stamp, "what was read at {stamp} may not change there: {min}");
}

#[test]
fn who_waits_for_a_lock_is_told_for_whom_and_leaves_the_queue_by_unlocking() {
    let (mut rig, a) = (Rig::new(), key("a"));
    let waits = |txn| Request::Waits { txn: TxnId(txn), keys: vec![key("a")] };
    let unlock = |txn| Request::Unlock { txn: TxnId(txn), keys: vec![key("a")] };
    assert!(matches!(rig.ask(lock(1, &a)), Step::Answer(Response::Values(_))));
    for txn in [2, 3] {
        assert_eq!(rig.ask(lock(txn, &a)), Step::AwaitLock);
    }
    let told =
        |txns: &[u128]| Step::Answer(Response::Waits(txns.iter().map(|txn| TxnId(*txn)).collect()));
    assert_eq!(rig.ask(waits(3)), told(&[1, 2]));
    let unlocks = rig.leader.unlocks();
    rig.ask(unlock(2));
    assert_ne!(rig.leader.unlocks(), unlocks, "whoever waits asks again");
    assert_eq!(rig.ask(waits(2)), told(&[]));
    assert_eq!(rig.ask(waits(3)), told(&[1]));
    rig.ask(unlock(1));
    assert!(matches!(rig.ask(lock(3, &a)), Step::Answer(Response::Values(_))));
    // Its coordinator is silent.
    rig.ms += ALIVE_MS + 1;
    assert_eq!(rig.leader.expire_locks(rig.now()), [TxnId(3)]);
    assert!(rig.leader.locks().is_empty());
}

#[test]
fn a_write_of_a_key_that_another_has_locked_is_refused_and_ends_its_own_locks() {
    let (mut rig, a, b) = (Rig::new(), key("a"), key("b"));
    rig.ask(lock(1, &a));
    rig.ask(lock(2, &b));
    let commit_ts = rig.commit_point();
    let conflict = refused(Refusal::WriteConflict { key: a.clone() });
    assert_eq!(rig.ask(prewrite(2, &a, None, commit_ts)), conflict);
    assert_eq!(rig.leader.locks().held(&b, TxnId(2)), Some(Mode::Exclusive));
    assert_eq!(rig.ask(commit(2, &a, ReadSet::default(), commit_ts)), conflict);
    assert_eq!(rig.leader.locks().held(&b, TxnId(2)), None, "it has ended");
    assert_eq!(rig.leader.locks().held(&a, TxnId(1)), Some(Mode::Exclusive));
}

#[test]
fn a_fence_keeps_its_intent_out_and_a_look_does_not() {
    let (mut rig, a, b) = (Rig::new(), key("a"), key("b"));
    let commit_ts = rig.commit_point();
    let fates = |fate| Response::Fates(vec![fate]);
    assert_eq!(rig.ask(probe(1, &a, None)), Step::Answer(fates(Fate::Missing)));
    assert!(matches!(rig.ask(prewrite(1, &a, None, commit_ts)), Step::AnswerWith(_)));
    let intent = fates(Fate::Intent { min_commit_ts: commit_ts });
    assert_eq!(rig.ask(probe(1, &a, Some(commit_ts))), Step::AnswerWith(intent.clone()));
    let entry = rig.close();
    assert_eq!(rig.ask(probe(1, &a, None)), Step::AnswerAt(entry, intent.clone()));
    rig.apply();
    assert_eq!(rig.ask(probe(1, &a, None)), Step::Answer(intent));
    let fenced = fates(Fate::Fenced);
    assert_eq!(rig.ask(probe(1, &b, Some(commit_ts))), Step::AnswerWith(fenced));
    for _ in 0..2 {
        assert_eq!(rig.ask(prewrite(1, &b, None, commit_ts)), refused(Refusal::Fenced));
        let other = rig.ask(prewrite(2, &b, None, commit_ts));
        assert!(matches!(other, Step::AnswerWith(_)), "it is against one transaction");
        rig.ask(Request::Resolve {
            txn: TxnId(2),
            keys: vec![b.clone()],
            outcome: Outcome::Aborted,
        });
        rig.settle();
        rig.change_leader();
    }
}

#[test]
pub(crate) fn of_those_who_change_a_record_the_first_wins_and_the_others_learn_it() {
    let (mut rig, a) = (Rig::new(), key("a"));
    let from = rig.commit_point();
    let to = rig.commit_point();
    let isolation = Isolation::Serializable;
    let staged = |commit_ts| Record::Staged { commit_ts, isolation, keys: [key("a")].into() };
    let restage = |from, to| Request::Restage { txn: TxnId(1), primary: key("a"), from, to };
    let aborts = |expect| finish(1, &key("a"), expect, Outcome::Aborted, from);
    let commits = |expect| finish(1, &key("a"), expect, Outcome::Committed(from), from);
    let later = rig.commit_point();
    let table: [(&str, Request, Request, Record); 7] = [
        ("restaged, once more from there", restage(from, to), restage(from, later), staged(to)),
        ("restaged, aborted", restage(from, to), aborts(Some(from)), staged(to)),
        ("restaged, committed", restage(from, to), commits(Some(from)), staged(to)),
        ("aborted, restaged", aborts(Some(from)), restage(from, to), Record::Aborted),
        ("aborted, committed", aborts(Some(from)), commits(Some(from)), Record::Aborted),
        ("committed, aborted", commits(Some(from)), aborts(Some(from)), Record::Committed(from)),
        ("restaged, as if there were none", restage(from, to), aborts(None), staged(to)),
    ];
    for (what, first, second, record) in table {
        let mut rig = Rig::new();
        assert!(matches!(rig.ask(stage(1, &a, from)), Step::AnswerWith(_)), "{what}");
        assert_eq!(rig.ask(first), Step::AnswerWith(Response::Done), "{what}");
        let entry = rig.leader.open_entry();
        assert_eq!(rig.ask(second.clone()), Step::AwaitEntry(entry), "{what}");
        rig.settle();
        let told = |record, alive| Step::Answer(Response::Record { record: Some(record), alive });
        assert_eq!(rig.ask(second.clone()), told(record.clone(), true), "{what}");
        rig.change_leader();
        let alive = matches!(record, Record::Staged { .. });
        assert_eq!(rig.ask(second), told(record, alive), "{what}, another leader");
    }
}

#[test]
fn intents_beside_the_record_go_in_the_entry_that_decides_it() {
    let (mut rig, a) = (Rig::new(), key("a"));
    let commit_ts = rig.commit_point();
    rig.ask(stage(1, &a, commit_ts));
    rig.settle();
    let outcome = Outcome::Committed(commit_ts);
    let Request::Finish { txn, primary, expect, stamp, .. } =
        finish(1, &a, Some(commit_ts), outcome, commit_ts)
    else {
        unreachable!("it was made just now");
    };
    let elsewhere = Request::Finish {
        txn,
        primary: primary.clone(),
        expect: Some(commit_ts.prev()),
        outcome,
        stamp,
        keys: vec![a.clone()],
    };
    assert!(matches!(rig.ask(elsewhere), Step::Answer(Response::Record { .. })));
    assert_eq!(rig.leader.obstacles().len(), 1, "what is not decided is not resolved");
    let keys = vec![a.clone()];
    let decide = Request::Finish { txn, primary, expect, outcome, stamp, keys };
    assert_eq!(rig.ask(decide), Step::AnswerWith(Response::Done));
    assert_eq!(rig.leader.obstacles(), []);
    // Lost with its entry, both are as they were.
    rig.change_leader();
    assert_eq!(rig.leader.obstacles().len(), 1);
    assert!(matches!(
        rig.ask(status(1, &a)),
        Step::Answer(Response::Record { record: Some(Record::Staged { .. }), .. })
    ));
}

#[test]
fn a_record_is_forgotten_only_if_it_says_committed() {
    let (mut rig, a) = (Rig::new(), key("a"));
    let commit_ts = rig.commit_point();
    let forget = Request::Forget { txns: vec![(TxnId(1), a.clone())] };
    rig.ask(finish(1, &a, None, Outcome::Aborted, commit_ts));
    rig.settle();
    assert_eq!(rig.ask(forget.clone()), Step::Answer(Response::Done));
    assert_eq!(rig.ask(stage(1, &a, commit_ts)), refused(Refusal::Fenced));
    let forget = Request::Forget { txns: vec![(TxnId(2), a.clone())] };
    rig.ask(finish(2, &a, None, Outcome::Committed(commit_ts), commit_ts));
    rig.settle();
    assert_eq!(rig.ask(forget), Step::AnswerWith(Response::Done));
    rig.settle();
    assert_eq!(rig.applied.leftovers(), [0, 1, 0]);
}

#[test]
fn a_commit_is_known_by_its_record_before_its_entry_is_closed() {
    let (mut rig, a) = (Rig::new(), key("a"));
    let commit_ts = rig.commit_point();
    let step = rig.ask(commit(1, &a, ReadSet::default(), commit_ts));
    assert!(matches!(step, Step::AnswerWith(Response::Committed(_))));
    // Its coordinator takes the answer for lost and has itself recovered.
    let entry = rig.leader.open_entry();
    let recover = finish(1, &a, None, Outcome::Aborted, commit_ts);
    assert_eq!(rig.ask(status(1, &a)), Step::AwaitEntry(entry));
    assert_eq!(rig.ask(recover.clone()), Step::AwaitEntry(entry));
    let again = rig.ask(commit(1, &a, ReadSet::default(), commit_ts));
    assert_eq!(again, Step::AnswerAt(entry, Response::Refused(Refusal::Fenced)));
    rig.settle();
    let ts = rig.applied.newest_ts(&a);
    let record = Some(Record::Committed(ts));
    assert_eq!(rig.ask(recover), Step::Answer(Response::Record { record, alive: false }));
}

#[test]
fn the_horizon_takes_what_has_ended_below_it_and_refuses_what_comes_late() {
    let mut rig = Rig::new();
    let keys: Vec<Key> = ["a", "b", "c", "d"].map(key).into();
    let old = rig.commit_point();
    rig.ask(finish(1, &keys[0], None, Outcome::Aborted, old));
    rig.ask(probe(2, &keys[1], Some(old)));
    rig.ask(commit(3, &keys[2], ReadSet::default(), old));
    rig.settle();
    let horizon = rig.read_point();
    let new = rig.commit_point();
    rig.ask(stage(4, &keys[3], new));
    rig.ask(probe(5, &keys[1], Some(new)));
    rig.settle();
    assert_eq!(rig.applied.leftovers(), [1, 3, 2]);
    rig.leader.raise_horizon(horizon);
    rig.settle();
    assert_eq!(rig.applied.leftovers(), [1, 1, 1], "what is younger, or staged, stays");
    // Their records and fences are gone, but they are stamped below the horizon.
    for _ in 0..2 {
        for (txn, key) in [(1, &keys[0]), (2, &keys[1])] {
            assert_eq!(rig.ask(stage(txn, key, old)), refused(Refusal::SnapshotTooOld));
        }
        let late = commit(3, &keys[2], ReadSet::default(), old);
        assert_eq!(rig.ask(late), refused(Refusal::SnapshotTooOld));
        let late = finish(1, &keys[0], None, Outcome::Committed(old), old);
        assert_eq!(rig.ask(late), refused(Refusal::SnapshotTooOld));
        let read = Request::Get { txn: None, keys: vec![keys[0].clone()], at: old };
        assert_eq!(rig.ask(read), refused(Refusal::SnapshotTooOld));
        rig.change_leader();
    }
}

#[test]
pub(crate) fn an_intent_holds_the_horizon_until_its_resolution_is_applied() {
    for outcome in [true, false] {
        let (mut rig, a) = (Rig::new(), key("a"));
        let commit_ts = rig.commit_point();
        rig.ask(stage(1, &a, commit_ts));
        rig.settle();
        assert_eq!(rig.leader.oldest_intent(), Some(commit_ts));
        let outcome = if outcome { Outcome::Committed(commit_ts) } else { Outcome::Aborted };
        rig.ask(Request::Resolve { txn: TxnId(1), keys: vec![a.clone()], outcome });
        assert_eq!(rig.leader.oldest_intent(), Some(commit_ts), "while it is decided on");
        rig.close();
        assert_eq!(rig.leader.oldest_intent(), Some(commit_ts), "while it is in flight");
        // With the leader it is lost; the intent is not.
        let applied = rig.applied.load(&rig.leader.descriptor, Timestamp::ZERO);
        assert_eq!(applied.intents.len(), 1);
        rig.apply();
        assert_eq!(rig.leader.oldest_intent(), None);
    }
}

#[test]
fn a_split_divides_intents_records_and_fences_by_their_keys() {
    let mut rig = Rig::new();
    let (a, z) = (key("a"), key("z"));
    let commit_ts = rig.commit_point();
    for (txn, key) in [(1, &a), (2, &z)] {
        rig.ask(stage(txn, key, commit_ts));
        rig.ask(probe(txn + 2, key, Some(commit_ts)));
    }
    let (left, right) = rig.split(RoutingKey::Ordered { keyspace: 7, key: b"m".to_vec() });
    for (half, txn, mine, other) in [(left, 1, &a, &z), (right, 2, &z, &a)] {
        let low_water = rig.read_point();
        let loaded = rig.applied.load(&half, Timestamp::ZERO);
        rig.leader = Leader::new(half, loaded, low_water, rig.ms);
        assert_eq!(rig.leader.obstacles().len(), 1);
        let fate = Fate::Intent { min_commit_ts: commit_ts };
        let fates = Step::Answer(Response::Fates(vec![fate]));
        assert_eq!(rig.ask(probe(txn, mine, None)), fates);
        let known = rig.ask(status(txn, mine));
        let is_staged = |step: &Step| {
            matches!(
                step,
                Step::Answer(Response::Record { record: Some(Record::Staged { .. }), alive: true })
            )
        };
        assert!(is_staged(&known), "{known:?}");
        let late = rig.commit_point();
        assert_eq!(rig.ask(prewrite(txn + 2, mine, None, late)), refused(Refusal::Fenced));
        assert_eq!(rig.ask(status(3 - txn, other)), Step::Answer(Response::NotMine));
    }
}

#[test]
pub(crate) fn the_right_half_inherits_own_values_as_writes_above_those_who_did_not_find_them() {
    let mut rig = Rig::new();
    rig.set(&local_key(0, b"n"), Some(b"map"));
    rig.set(&local_key(0, b"gone"), Some(b"x"));
    rig.settle();
    rig.set(&local_key(0, b"gone"), None);
    rig.settle();
    let inherited = local_key(8_192, b"n");
    // A transaction looks where there is nothing yet.
    let at = rig.read_point();
    let read = Request::Get { txn: None, keys: vec![inherited.clone()], at };
    assert_eq!(rig.ask(read), Step::Read);
    let (left, right) = rig.split(RoutingKey::Slot(8_192));
    assert!(rig.applied.newest_ts(&inherited) > at, "what was read at {at} has not changed");
    let loaded = [&left, &right].map(|half| rig.applied.load(half, Timestamp::ZERO));
    for (loaded, first_slot) in loaded.iter().zip([0, 8_192]) {
        assert_eq!(loaded.locals.len(), 2);
        let locals: BTreeMap<_, _> = loaded.locals.iter().cloned().collect();
        assert_eq!(locals[&local_key(first_slot, b"n")], stored(b"map").to_vec());
        let epoch = epoch_of(locals.get(&local_key(first_slot, EPOCH)).map(Vec::as_slice));
        assert_eq!(epoch, Some(left.epoch), "both halves say that the range has changed");
    }
    let keys: i64 = loaded.iter().flat_map(|loaded| loaded.counts.values()).map(|c| c.keys).sum();
    assert_eq!(keys, 4, "sums over shards are exact");
}

#[test]
fn only_keys_of_the_shards_first_slot_are_its_own_values() {
    let mut rig = Rig::new();
    let elsewhere = local_key(5, b"n");
    rig.set(&elsewhere, Some(b"not mine"));
    assert_eq!(rig.leader.local(b"n", false), Ok(None));
    rig.set(&local_key(0, b"n"), Some(b"mine"));
    let own = rig.leader.local(b"n", false).expect("nothing is in the way");
    assert_eq!(own, Some(stored(b"mine")));
}

#[test]
pub(crate) fn an_intent_on_an_own_value_lies_above_the_commands_that_read_it() {
    let (mut rig, own) = (Rig::new(), local_key(0, b"n"));
    let old = Timestamp::commit_at(Epoch(2));
    let name = [&(SLOTTED + 1).to_be_bytes()[..], &[0, 9], b"k"].concat();
    let command = rig.run(|eval| {
        assert_eq!(eval.local(b"n")?, None);
        eval.put(&name, Some(stored(b"v")));
        Ok(())
    });
    command.expect("nothing is in the way");
    assert_eq!(rig.ask(prewrite(1, &own, None, old)), Step::CloseFirst);
    rig.close();
    let stamp = rig.leader.edge_max();
    let step = rig.ask(prewrite(1, &own, None, old));
    let Step::AnswerWith(Response::Prewritten(min)) = step else { panic!("{step:?}") };
    assert!(min > stamp, "{min} is not above the command at {stamp}");
}

#[test]
fn who_sees_an_own_value_of_the_edge_is_answered_with_it() {
    let mut rig = Rig::new();
    rig.set(&local_key(0, b"n"), Some(b"map"));
    let open = rig.leader.open_entry();
    let (seen, ended) = rig.run(|eval| eval.local(b"n")).expect("nothing is in the way");
    assert_eq!((seen, ended.after), (Some(stored(b"map")), Some(open)));
    rig.close();
    let (_, ended) = rig.run(|eval| eval.local(b"n")).expect("nothing is in the way");
    assert_eq!(ended.after, Some(open));
    assert_eq!(
        rig.leader.local(b"n", true),
        Err(Step::AwaitEntry(open)),
        "the applied state has none"
    );
    rig.apply();
    assert_eq!(rig.leader.local(b"n", true), Ok(Some(stored(b"map"))));
}

#[test]
fn removing_what_the_edge_has_removed_is_answered_with_it() {
    let (mut rig, a) = written(APPLIED);
    rig.set(&a, None);
    let entry = rig.leader.open_entry();
    // The key is still there for everybody who reads the applied state.
    assert_eq!(rig.set(&a, None), Ended { wrote: false, after: Some(entry) });
    rig.close();
    assert_eq!(rig.set(&a, None), Ended { wrote: false, after: Some(entry) });
    rig.apply();
    let ended = rig.set(&a, None);
    assert!(!ended.wrote && ended.after.is_none_or(|after| after <= entry));
    // And it has read that the key is not there.
    let old = Timestamp::commit_at(Epoch(2));
    let step = rig.ask(prewrite(1, &a, None, old));
    let Step::AnswerWith(Response::Prewritten(min)) = step else { panic!("{step:?}") };
    assert!(min > rig.leader.edge_max());
}

#[test]
fn a_transaction_that_is_restaged_was_heard_of() {
    let (mut rig, a) = (Rig::new(), key("a"));
    let from = rig.commit_point();
    let to = rig.commit_point();
    rig.ask(stage(1, &a, from));
    rig.ms += ALIVE_MS;
    rig.ask(Request::Restage { txn: TxnId(1), primary: a.clone(), from, to });
    rig.settle();
    rig.ms += ALIVE_MS;
    rig.leader.expire_locks(rig.now());
    let step = rig.ask(status(1, &a));
    assert!(matches!(step, Step::Answer(Response::Record { alive: true, .. })), "{step:?}");
    rig.ms += 1;
    rig.leader.expire_locks(rig.now());
    let step = rig.ask(status(1, &a));
    assert!(matches!(step, Step::Answer(Response::Record { alive: false, .. })), "{step:?}");
    assert!(rig.leader.heard.is_empty(), "the silent are not remembered for ever");
}

#[test]
fn what_is_staged_without_writes_is_refused_rather_than_never_answered() {
    let (mut rig, a) = (Rig::new(), key("a"));
    let commit_ts = rig.commit_point();
    let Request::Prewrite { txn, isolation, read_ts, reads, primary, record, .. } =
        prewrite(1, &a, None, commit_ts)
    else {
        unreachable!("a prewrite")
    };
    let writes = Vec::new();
    let empty =
        Request::Prewrite { txn, isolation, read_ts, reads, writes, commit_ts, primary, record };
    assert!(matches!(rig.ask(empty), Step::Answer(Response::Unavailable(_))));
}

/// Evaluates a read of a key at a timestamp; returns the payload.
fn read_at(rig: &mut Rig, name: &Key, at: Timestamp) -> Result<Option<Vec<u8>>, Interrupt> {
    let now = rig.now();
    let mut base = View { applied: &rig.applied, misses: || false };
    let mut eval = Eval::new(&mut rig.leader, &mut base, now, Sight::At(at));
    let found = eval.version(name)?.and_then(|seen| seen.value);
    let payload = |bytes: &[u8]| {
        atoll_mvcc::Value::decode(bytes).map(|value| value.payload.to_vec()).unwrap_or_default()
    };
    let found = found.map(|bytes| payload(&bytes));
    let ended = eval.finish()?;
    assert_eq!(ended, Ended { wrote: false, after: None }, "a read is answered at once");
    Ok(found)
}

#[test]
fn a_command_that_reads_at_a_moment_waits_for_what_lies_below_and_for_nothing_above() {
    let mut rig = Rig::new();
    let k = key("k");
    rig.set(&k, Some(b"1"));
    rig.settle();
    let between = rig.read_point();
    rig.set(&k, Some(b"2"));
    // What is open gets its timestamp when it is closed: above the read, which it may not stop.
    assert_eq!(read_at(&mut rig, &k, between).unwrap(), Some(b"1".to_vec()));
    let entry = rig.close();
    let above = rig.in_flight.back().unwrap().1;
    assert!(above > between, "the entry that was open lies above the read");
    let after = rig.read_point().max(above);
    assert_eq!(
        read_at(&mut rig, &k, between).unwrap(),
        Some(b"1".to_vec()),
        "nor what is in flight"
    );
    let waits = Interrupt::Hindered(Step::AwaitEntry(entry));
    assert_eq!(read_at(&mut rig, &k, after).unwrap_err(), waits);
    rig.apply();
    assert_eq!(read_at(&mut rig, &k, after).unwrap(), Some(b"2".to_vec()));
    assert_eq!(read_at(&mut rig, &k, between).unwrap(), Some(b"1".to_vec()), "the past stays");
    // An intent is in the way of whoever would see its value, and of nobody else.
    let commit_ts = rig.commit_point();
    let before = commit_ts.prev();
    assert!(matches!(rig.ask(stage(1, &k, commit_ts)), Step::AnswerWith(Response::Prewritten(_))));
    rig.settle();
    assert_eq!(read_at(&mut rig, &k, before).unwrap(), Some(b"2".to_vec()));
    let late = rig.read_point();
    let blocked = read_at(&mut rig, &k, late).unwrap_err();
    assert!(matches!(blocked, Interrupt::Hindered(Step::Answer(Response::Blocked(_)))));
    // What lies below the horizon is not known any more.
    rig.leader.raise_horizon(before);
    assert_eq!(read_at(&mut rig, &k, between).unwrap_err(), Interrupt::TooOld);
}

#[test]
fn a_command_that_reads_at_a_moment_sees_the_shards_own_values_as_they_were_or_says_so() {
    let mut rig = Rig::new();
    let (slot, name) = (rig.leader.descriptor.range.slots().start, b"d0");
    let before = rig.read_point();
    let own = |rig: &mut Rig, at| {
        let now = rig.now();
        let mut base = View { applied: &rig.applied, misses: || false };
        let eval = Eval::new(&mut rig.leader, &mut base, now, Sight::At(at));
        eval.local(name).map(|value| value.is_some())
    };
    assert_eq!(own(&mut rig, before), Ok(false));
    // Whoever reads a key has read what its database is: a change comes above.
    assert_eq!(read_at(&mut rig, &key("k"), before).unwrap(), None);
    rig.set(&local_key(slot, name), Some(b"map"));
    assert_eq!(own(&mut rig, before), Err(Interrupt::TooOld), "it is being changed");
    let entry = rig.close();
    let after = rig.read_point();
    assert_eq!(own(&mut rig, after), Err(Interrupt::Hindered(Step::AwaitEntry(entry))));
    rig.apply();
    assert_eq!(own(&mut rig, after), Ok(true));
    assert_eq!(own(&mut rig, before), Err(Interrupt::TooOld));
}

#[test]
fn a_dead_range_goes_with_its_note_in_one_entry_and_once() {
    let mut rig = Rig::new();
    let (note, part, other) = (key("note"), key("p/1"), key("q/1"));
    for name in [&note, &part, &other] {
        rig.set(name, Some(b"v"));
    }
    rig.settle();
    let span = Span { start: key("p/"), end: key("p0") };
    let now = rig.now();
    assert!(rig.leader.remove_dead(&note, &span, now));
    assert!(!rig.leader.remove_dead(&note, &span, now), "it is on its way");
    rig.close();
    assert_eq!(rig.in_flight.len(), 1);
    rig.apply();
    let at = rig.read_point();
    for (name, left) in [(&note, false), (&part, false), (&other, true)] {
        assert_eq!(read_at(&mut rig, name, at).unwrap().is_some(), left);
    }
}
