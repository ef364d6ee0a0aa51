//! The life of a group with one voter, told step by step.

use bytes::Bytes;

use crate::consensus::*;

fn config() -> Config {
    Config::new(7, 1)
}

/// What a disk would keep.
#[derive(Clone, Default)]
struct Disk {
    state: GroupState,
    log: Vec<(u64, u64, Vec<u8>)>,
}

impl Disk {
    fn write(&mut self, effects: &Effects) {
        for entry in &effects.entries {
            self.log.retain(|&(index, ..)| index < entry.index());
            self.log.push((entry.index(), entry.term(), entry.log_parts().concat()));
        }
        self.state = effects.state.unwrap_or(self.state);
    }

    fn stored(&self, applied: u64) -> Stored {
        let (below, above): (Vec<_>, Vec<_>) =
            self.log.iter().cloned().partition(|&(index, ..)| index <= applied);
        let mut terms: Vec<(u64, u64)> = Vec::new();
        for (index, term, _) in below {
            if terms.last().is_none_or(|&(_, last)| last != term) {
                terms.push((index, term));
            }
        }
        if !terms.is_empty() {
            terms.insert(0, (0, 0));
        }
        let decode = |(index, term, bytes)| Entry::decode(index, term, Bytes::from(bytes)).unwrap();
        Stored {
            state: self.state,
            members: Members::of_voters([1]),
            applied,
            first: 1,
            terms,
            entries: above.into_iter().map(decode).collect(),
        }
    }
}

fn payloads(entries: &[Entry]) -> Vec<String> {
    let text = |entry: &Entry| String::from_utf8(entry.payload().to_vec()).unwrap();
    entries
        .iter()
        .map(|entry| format!("{} {:?} {}", entry.index(), entry.kind(), text(entry)))
        .collect()
}

#[test]
fn a_new_group_of_one_leads_at_once_and_commits_what_is_persisted_without_a_tick() {
    let stored = Stored::new_group(Members::of_voters([1]));
    let mut group = Consensus::restore(config(), stored).unwrap();
    assert!(group.is_leader());

    let first = group.ready().unwrap();
    assert_eq!(payloads(&first.entries), ["1 Empty "]);
    assert_eq!(first.state, Some(GroupState { term: 1, vote: 1, commit: 0 }));
    let leads = Leadership { role: Role::Leader, leader: Some(1), term: 1 };
    assert_eq!(first.leadership, Some(leads));
    assert!(first.must_sync && first.committed.is_empty() && first.messages.is_empty());
    assert!(group.ready().is_none());

    let proposed = group.propose("a".into()).unwrap();
    assert_eq!(proposed, Proposed { term: 1, index: 2 });
    let second = group.ready().unwrap();
    assert_eq!(payloads(&second.entries), ["2 Normal a"]);
    assert_eq!(second.state, None, "neither term nor vote changed");

    group.persisted(first.number);
    let done = group.ready().unwrap();
    assert_eq!(payloads(&done.committed), ["1 Empty "]);
    assert!(!done.must_sync && done.entries.is_empty() && done.state.is_none());
    group.persisted(second.number);
    let done = group.ready().unwrap();
    assert_eq!(payloads(&done.committed), ["2 Normal a"]);
    assert_eq!(group.status().commit, 2);
    group.applied(2);
    assert!(group.ready().is_none());
    assert_eq!(group.status().cached_bytes, 0, "nobody needs an applied entry");
}

#[test]
fn batches_in_flight_commit_in_order_and_a_later_one_confirms_the_earlier() {
    let stored = Stored::new_group(Members::of_voters([1]));
    let mut group = Consensus::restore(config(), stored).unwrap();
    let mut numbers = vec![group.ready().unwrap().number];
    for payload in ["a", "b", "c"] {
        group.propose(payload.into()).unwrap();
        let batch = group.ready().unwrap();
        assert_eq!(batch.entries.len(), 1);
        assert!(batch.committed.is_empty());
        numbers.push(batch.number);
    }
    assert_eq!(numbers, [1, 2, 3, 4]);
    group.persisted(3);
    let done = group.ready().unwrap();
    assert_eq!(payloads(&done.committed), ["1 Empty ", "2 Normal a", "3 Normal b"]);
    group.persisted(4);
    group.applied(1);
    assert_eq!(payloads(&group.ready().unwrap().committed), ["4 Normal c"]);
    group.applied(4);
    assert!(group.ready().is_none());
}

#[test]
fn a_crash_before_the_append_is_durable_forgets_it_and_after_it_keeps_it() {
    let mut disk = Disk::default();
    let stored = Stored::new_group(Members::of_voters([1]));
    let mut group = Consensus::restore(config(), stored).unwrap();
    disk.write(&group.ready().unwrap());
    group.persisted(1);
    group.propose("kept".into()).unwrap();
    let batch = group.ready().unwrap();
    assert_eq!(payloads(&batch.committed), ["1 Empty "]);
    disk.write(&batch);
    group.persisted(2);
    assert_eq!(payloads(&group.ready().unwrap().committed), ["2 Normal kept"]);
    group.applied(1);
    group.propose("lost".into()).unwrap();
    let lost = group.ready().unwrap();
    assert_eq!(payloads(&lost.entries), ["3 Normal lost"]);
    drop(group);

    // The state machine had stored entry 1; the commit index was never stored at all.
    let mut group = Consensus::restore(config(), disk.stored(1)).unwrap();
    assert!(group.is_leader());
    let batch = group.ready().unwrap();
    assert_eq!(payloads(&batch.entries), ["3 Empty "], "the index of what was lost is free");
    assert_eq!(batch.state.map(|state| state.term), Some(2));
    assert!(batch.committed.is_empty(), "an old term commits with the new one's first entry");
    disk.write(&batch);
    group.persisted(batch.number);
    assert_eq!(payloads(&group.ready().unwrap().committed), ["2 Normal kept", "3 Empty "]);
    group.applied(3);

    let group = Consensus::restore(config(), disk.stored(3)).unwrap();
    assert_eq!((group.term(), group.commit()), (3, 3));
}

#[test]
fn an_empty_log_behind_a_released_prefix_goes_on_where_it_ended() {
    let stored = Stored {
        state: GroupState { term: 4, vote: 1, commit: 0 },
        members: Members::of_voters([1]),
        applied: 90,
        first: 91,
        terms: vec![(90, 4)],
        entries: Vec::new(),
    };
    let mut group = Consensus::restore(config(), stored).unwrap();
    assert_eq!(payloads(&group.ready().unwrap().entries), ["91 Empty "]);
    assert_eq!((group.term(), group.commit()), (5, 90));
}

#[test]
fn a_proposal_beyond_the_limit_of_uncommitted_bytes_is_refused_until_some_commit() {
    let mut config = config();
    (config.message_bytes_max, config.uncommitted_bytes_max) = (100, 100);
    let stored = Stored::new_group(Members::of_voters([1]));
    let mut group = Consensus::restore(config, stored).unwrap();
    group.propose(vec![1; 60].into()).unwrap();
    assert_eq!(group.propose(vec![1; 60].into()), Err(Refused::TooMuch));
    let batch = group.ready().unwrap();
    group.persisted(batch.number);
    group.ready().unwrap();
    group.propose(vec![1; 60].into()).unwrap();
}

#[test]
fn a_read_of_the_only_voter_is_answered_at_once() {
    let stored = Stored::new_group(Members::of_voters([1]));
    let mut group = Consensus::restore(config(), stored).unwrap();
    assert_eq!(group.read_index(), Err(Refused::NotYet));
    let batch = group.ready().unwrap();
    group.persisted(batch.number);
    let id = group.read_index().unwrap();
    assert_eq!(group.ready().unwrap().reads, [ReadIndex { id, index: 1 }]);
}

#[test]
fn what_contradicts_itself_is_refused_before_anything_runs() {
    let entry = |index, term| Entry::new(index, term, false, "x".into());
    let good = || Stored {
        state: GroupState { term: 5, vote: 1, commit: 11 },
        members: Members::of_voters([1]),
        applied: 10,
        first: 4,
        terms: vec![(3, 1), (6, 2), (9, 4)],
        entries: vec![entry(11, 4), entry(12, 5)],
    };
    Consensus::restore(config(), good()).unwrap();
    type Damage = fn(&mut Stored);
    let damages: [(&str, Damage); 12] = [
        ("commit beyond the log", |s| s.state.commit = 13),
        ("term below an entry's", |s| s.state.term = 4),
        ("no first index", |s| s.first = 0),
        ("first index above the end", |s| s.first = 12),
        ("unknown terms", |s| s.terms.clear()),
        ("unknown term before the first", |s| s.terms = vec![(4, 1)]),
        ("terms that go back", |s| s.terms = vec![(3, 2), (6, 1)]),
        ("a term of what is not applied", |s| s.terms.push((11, 5))),
        ("a gap", |s| drop(s.entries.remove(0))),
        ("entries that go back", |s| s.entries.swap(0, 1)),
        ("no voters", |s| s.members = Members::default()),
        ("a voter twice", |s| s.members.voters = vec![1, 1]),
    ];
    for (name, damage) in damages {
        let mut stored = good();
        damage(&mut stored);
        let error = Consensus::restore(config(), stored).err().expect(name);
        assert!(matches!(error, RestoreError::Corruption(_)), "{name}: {error}");
    }
    let mut wrong = config();
    wrong.election_ticks = 1;
    assert!(matches!(Consensus::restore(wrong, good()).err(), Some(RestoreError::Config(_))));
}

#[test]
fn a_replica_does_not_lead_by_members_that_its_log_has_outgrown() {
    // It was the only voter when the state machine was stored. Then it took 2 and 3 in, and the
    // three of them left the joint state; its commit index was never stored.
    let join = members::encode_changes(&[Change::Promote(2), Change::Promote(3)]);
    let leave = members::encode_changes(&[]);
    let stored = |entries: Vec<Entry>| Stored {
        state: GroupState { term: 1, vote: 1, commit: 4 },
        members: Members { learners: vec![2, 3], ..Members::of_voters([1]) },
        applied: 4,
        first: 5,
        terms: vec![(4, 1)],
        entries,
    };
    let join = Entry::new(5, 1, true, join.into());
    let leave = Entry::new(6, 1, true, leave.into());

    let mut group = Consensus::restore(config(), stored(vec![join.clone(), leave])).unwrap();
    assert!(!group.is_leader());
    assert_eq!(group.commit(), 5, "a change is proposed when the one before it is applied");
    let batch = group.ready().unwrap();
    let members = group.apply_change(&batch.committed[0]).unwrap();
    assert_eq!((&members.voters[..], &members.outgoing[..]), (&[1, 2, 3][..], &[1][..]));
    group.applied(5);
    for _ in 0..100 {
        group.tick();
        while group.ready().is_some() {}
    }
    assert!(!group.is_leader(), "2 and 3 may have elected another");

    // Alone in the log, the change may not be committed, and then only the old members count.
    let group = Consensus::restore(config(), stored(vec![join])).unwrap();
    assert!(group.is_leader());
}

#[test]
fn the_only_voter_sends_nothing_in_a_term_that_is_not_durable() {
    let stored = Stored {
        members: Members { learners: vec![2], ..Members::of_voters([1]) },
        ..Stored::new_group(Members::of_voters([1]))
    };
    let mut group = Consensus::restore(config(), stored).unwrap();
    let first = group.ready().unwrap();
    assert!(group.is_leader() && first.state.is_some());
    group.propose("a".into()).unwrap();
    let second = group.ready().unwrap();
    assert!(first.messages.is_empty() && second.messages.is_empty());

    group.persisted(first.number);
    let kinds: Vec<MessageKind> =
        group.ready().unwrap().messages.iter().map(Message::kind).collect();
    assert!(kinds.contains(&MessageKind::Append), "its log may still be on the way: {kinds:?}");
}
