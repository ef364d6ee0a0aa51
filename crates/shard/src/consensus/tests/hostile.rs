//! Messages that no honest replica sends: bytes cut and changed, and well-formed nonsense.

use bytes::Bytes;

use raft::eraftpb;

use super::cluster::{Random, seeds};
use crate::consensus::message::{CAMPAIGN_TRANSFER, KINDS};
use crate::consensus::read::read_entry;
use crate::consensus::*;

fn sample(random: &mut Random, kind: u8) -> Vec<u8> {
    let mut out = vec![1, kind];
    let mut put = |random: &mut Random, most: usize| {
        let value = match random.below(40) {
            0 => u64::MAX,
            1 => 1 << 60,
            _ => random.below(most) as u64,
        };
        atoll_encoding::varint::put(&mut out, value);
    };
    // Receiver, sender, term; then whatever the kind has.
    put(random, 2);
    put(random, 4);
    put(random, 6);
    for _ in 0..random.below(8) {
        put(random, 12);
    }
    match random.below(3) {
        0 => out.extend([1, 3, 4, b'a', b'b', b'c', b'd']),
        1 => out.extend([24; 25]),
        _ => {}
    }
    out
}

/// A message whose parts are plausible one by one.
fn nonsense(random: &mut Random) -> Message {
    let kind = KINDS[random.below(KINDS.len())].1;
    let mut m = eraftpb::Message { msg_type: kind, to: 1, ..Default::default() };
    let small = |random: &mut Random| match random.below(200) {
        0 => u64::MAX,
        1 => 1 << 60,
        _ => random.below(11) as u64,
    };
    m.from = 1 + random.below(5) as u64;
    m.term = if random.chance(95) { 2 + random.below(5) as u64 } else { small(random) };
    (m.log_term, m.index) = (random.below(5) as u64, small(random));
    (m.commit, m.commit_term) = (random.below(10) as u64, random.below(5) as u64);
    (m.reject, m.reject_hint) = (random.chance(40), small(random));
    let read = kind == eraftpb::MessageType::MsgReadIndex;
    match Message(m.clone()).kind() {
        MessageKind::Append => {
            let mut entries = Vec::new();
            for step in 1..=random.below(4) as u64 {
                let index = if random.chance(98) { m.index.wrapping_add(step) } else { 3 };
                let term = m.log_term.max(1) + u64::from(random.chance(20));
                let change = random.chance(20);
                let replica = 2 + random.below(4) as u64;
                let changes = [
                    Change::AddLearner(replica),
                    Change::Promote(replica),
                    Change::Demote(replica),
                    Change::Remove(replica),
                ];
                let some = &changes[..random.below(3)];
                let payload = if change { members::encode_changes(some) } else { vec![b'z'] };
                entries.push(Entry::new(index, term, change, payload.into()).0);
            }
            m.entries = entries.into();
        }
        MessageKind::Snapshot => {
            let voters = 1..1 + random.below(4) as u64;
            let mut members = Members::of_voters(voters);
            members.learners = if random.chance(50) { vec![4] } else { vec![] };
            let (index, term) = (small(random), 1 + random.below(4) as u64);
            m.set_snapshot(SnapshotMeta { index, term, members }.to_raft());
        }
        MessageKind::AskReadIndex | MessageKind::ReadIndex => {
            m.term = if read { 0 } else { m.term };
            let context = vec![3; if random.chance(90) { 24 } else { 0 }];
            m.entries = vec![read_entry(context.into())].into();
        }
        MessageKind::AskVote if random.chance(30) => m.context = CAMPAIGN_TRANSFER.into(),
        _ => {}
    }
    Message(m)
}

/// A follower with a log, or a leader, whose owner does its part now and then.
fn replica(random: &mut Random) -> Consensus {
    let entry = |index, term| Entry::new(index, term, false, "x".into());
    let stored = Stored {
        state: GroupState { term: 3, vote: 0, commit: 5 },
        members: Members { learners: vec![4], ..Members::of_voters([1, 2, 3]) },
        applied: 4,
        first: 3,
        terms: vec![(2, 1), (4, 2)],
        entries: vec![entry(5, 2), entry(6, 3), entry(7, 3)],
    };
    let stored = if random.chance(10) { Stored::blank() } else { stored };
    Consensus::restore(Config { settle_ticks: 0, ..Config::new(1, 1) }, stored).unwrap()
}

fn owner(random: &mut Random, replica: &mut Consensus, numbers: &mut Vec<u64>) {
    if random.chance(50) {
        while let Some(effects) = replica.ready() {
            numbers.push(effects.number);
            for entry in &effects.committed {
                if entry.kind() == EntryKind::Change && replica.apply_change(entry).is_err() {
                    return; // The real owner stops here.
                }
                replica.applied(entry.index());
            }
            for message in &effects.messages {
                message.encode(&mut Vec::new());
            }
        }
    }
    if random.chance(50)
        && let Some(number) = numbers.pop()
    {
        replica.persisted(number);
        numbers.clear();
    }
    if random.chance(10) {
        replica.tick();
    }
    if random.chance(3) {
        replica.campaign();
    }
    if random.chance(3) {
        // What is released is known by its terms no more.
        let applied = replica.status().applied;
        replica.released(applied.saturating_sub(random.below(3) as u64) + 1);
    }
    let _ = random.chance(5).then(|| replica.propose("y".into()));
    let _ = random.chance(3).then(|| replica.read_index());
    let _ = random.chance(2).then(|| replica.transfer(2));
}

#[test]
fn well_formed_nonsense_is_refused_or_survived() {
    let (mut stepped, mut refused, mut nonsensical) = (0, 0, 0);
    for seed in seeds(4000) {
        let mut random = Random(seed);
        let mut replica = replica(&mut random);
        let mut numbers = Vec::new();
        for _ in 0..60 {
            match replica.step(nonsense(&mut random)) {
                Ok(()) => stepped += 1,
                Err(Dropped::Nonsense(_)) => nonsensical += 1,
                Err(_) => refused += 1,
            }
            owner(&mut random, &mut replica, &mut numbers);
        }
    }
    let all = (stepped, refused, nonsensical);
    assert!(stepped > 1000 && refused > 1000 && nonsensical > 1000, "{all:?}");
}

fn samples() -> Vec<Vec<u8>> {
    let mut random = Random(2);
    let mut found: Vec<Vec<u8>> = Vec::new();
    for kind in 1..=12 {
        let mut of_kind = Vec::new();
        while of_kind.len() < 20 {
            let bytes = sample(&mut random, kind);
            if Message::decode(&Bytes::from(bytes.clone())).is_ok() {
                of_kind.push(bytes);
            } else if kind == MessageKind::Snapshot as u8 {
                // Too rare by chance: index, term, two voters, one learner, no joint state.
                let id = of_kind.len() as u8;
                of_kind.push(vec![1, kind, 1, 2, 3, 9, 3, 2, 1, 1 + id, 1, 90, 0, 0]);
            }
        }
        found.extend(of_kind);
    }
    found
}

#[test]
fn every_message_decodes_to_what_was_encoded_and_no_part_of_it_decodes() {
    for bytes in samples() {
        let message = Message::decode(&Bytes::from(bytes.clone())).unwrap();
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(Message::decode(&again.clone().into()).as_ref(), Ok(&message), "{message:?}");
        for cut in 0..again.len() {
            let part = Bytes::from(again[..cut].to_vec());
            assert!(Message::decode(&part).is_err(), "{message:?} cut at {cut}");
        }
        again.push(0);
        assert!(Message::decode(&again.into()).is_err(), "{message:?} and a byte");
    }
}

#[test]
fn changed_bytes_decode_to_a_message_that_keeps_its_bytes_or_not_at_all() {
    let mut random = Random(3);
    for bytes in samples() {
        for _ in 0..300 {
            let mut changed = bytes.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(changed.len());
                changed[at] = random.next() as u8;
            }
            crate::consensus::fuzzing::message(&changed);
            crate::consensus::fuzzing::entry(&changed);
        }
    }
}

#[test]
fn a_logged_entry_keeps_kind_and_payload_and_a_wrong_one_is_refused() {
    let changes = members::encode_changes(&[Change::AddLearner(300), Change::Remove(7)]);
    for (change, payload) in [(false, &b"abc"[..]), (false, b""), (true, &changes)] {
        let entry = Entry::new(4, 2, change, Bytes::copy_from_slice(payload));
        let logged = entry.log_parts().concat();
        assert_eq!(Entry::decode(4, 2, logged.clone()), Ok(entry));
    }
    let wrong: [&[u8]; 7] = [b"", &[0], &[4, 1], &[1], &[2, 7], &[3], &[3, 1, 1, 9, 1]];
    for bytes in wrong {
        assert!(Entry::decode(4, 2, bytes.to_vec()).is_err(), "{bytes:?}");
    }
}

/// The library would look for where the logs part below what it still has.
#[test]
fn an_append_after_an_entry_older_than_what_is_committed_is_refused() {
    let entry = |index, term| Entry::new(index, term, false, "x".into());
    let stored = Stored {
        state: GroupState { term: 3, vote: 0, commit: 5 },
        members: Members::of_voters([1, 2, 3]),
        applied: 4,
        first: 5,
        terms: vec![(4, 2)],
        entries: vec![entry(5, 2), entry(6, 3), entry(7, 3)],
    };
    let config = Config { settle_ticks: 0, ..Config::new(1, 1) };
    let mut replica = Consensus::restore(config, stored).unwrap();
    let append = eraftpb::Message {
        msg_type: eraftpb::MessageType::MsgAppend,
        to: 1,
        from: 2,
        term: 4,
        log_term: 1,
        index: 7,
        commit: 5,
        ..Default::default()
    };
    assert!(matches!(replica.step(Message(append)), Err(Dropped::Nonsense(_))));
}
