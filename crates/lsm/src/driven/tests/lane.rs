//! The log stays short.

use std::time::Duration;

use super::{Owner, options, run};
use crate::driven::{Driver, EntryId, GroupState, Writes};

/// The longest that the lane may get under the options of the tests: what fills three memtables, and
/// some segments under way.
const LANE_MAX: u64 = 3 * (16 << 10) + 6 * (16 << 10);

/// Writes 1 MiB in small entries, and looks at the length of the lane.
async fn keep_busy(owner: &mut Owner, sync: bool) {
    let mut writes = Writes::new();
    for n in 0..4000u64 {
        writes.clear();
        writes.insert_version(&(n % 50).to_be_bytes(), n, &[&[1; 200]]);
        owner.commit(1, &writes).await.unwrap();
        if sync {
            owner.driver.sync().await.unwrap();
        }
        owner.driver.chores().await.unwrap();
        let lane = owner.driver.log_stats();
        assert!(lane.segment_bytes <= LANE_MAX, "at {n}: {lane:?}");
    }
}

async fn append(driver: &mut Driver, index: u64) -> u64 {
    let id = EntryId { group: 9, index, term: 4 };
    let position = driver.append(id, &[b"not committed yet"]).unwrap();
    driver.write().await.unwrap();
    position
}

#[test]
fn groups_that_are_idle_never_pin_the_log() {
    run(1, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        let state = GroupState { term: 4, vote: 2, commit: 0 };
        owner.driver.set_state(9, state).unwrap();
        let idle = append(&mut owner.driver, 1).await;
        // Another one has applied what it has, and another knows nothing but a term.
        let mut writes = Writes::new();
        writes.insert(b"idle", &[b"since then"]);
        owner.commit(8, &writes).await.unwrap();
        owner.driver.set_state(7, GroupState { term: 6, vote: 1, commit: 0 }).unwrap();
        keep_busy(&mut owner, false).await;
        let stats = owner.driver.log_stats();
        assert!(stats.copied_bytes > 0 && stats.copied_bytes < stats.appended_bytes / 50);
        let check = async |driver: &Driver| {
            let entry = driver.entries(9, 1..2).await.unwrap().remove(0);
            assert_eq!((entry.position, &entry.payload[..]), (idle, &b"not committed yet"[..]));
            assert_eq!(driver.group(9).unwrap().state, state);
            assert_eq!(driver.group(7).unwrap().state.term, 6);
            assert_eq!((driver.applied(8), driver.term(8, 1)), (1, Some(1)));
        };
        check(&owner.driver).await;
        owner.driver.close().await.unwrap();
        // Opened by hand: nothing is applied.
        let options = crate::driven::OpenOptions { options: options(&env) };
        let (mut driver, tree) = crate::driven::open(super::dir(), options).await.unwrap();
        check(&driver).await;
        assert_eq!(driver.applied(9), 0);
        append(&mut driver, 2).await;
        assert_eq!(tree.get(b"idle").await.unwrap().as_deref(), Some(&b"since then"[..]));
        driver.close().await.unwrap();
    });
}

#[test]
fn entries_that_are_synced_one_by_one_take_a_block_each_and_the_log_stays_short_all_the_same() {
    run(2, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        keep_busy(&mut owner, true).await;
        let flushes = owner.tree.stats().flushes.count;
        assert!(flushes > 20, "the memtable was flushed before it was full: {flushes}");
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn an_owner_who_is_away_finds_his_chores_waiting() {
    run(3, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        let mut writes = Writes::new();
        let due = owner.driver.chores_due();
        writes.insert(b"k", &[&[1; 3000]]);
        for _ in 0..6 {
            owner.commit(1, &writes).await.unwrap();
        }
        // The memtable was full: its flush asks for a release.
        env.clock.sleep(Duration::from_secs(2)).await;
        due.notified().await;
        let first = owner.driver.group(1).unwrap().first;
        owner.driver.chores().await.unwrap();
        assert!(owner.driver.group(1).unwrap().first > first);
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn what_an_owner_holds_stays_in_the_log_after_its_flush_until_he_lets_it_go() {
    run(4, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        let mut writes = Writes::new();
        owner.driver.hold(1, 3).unwrap();
        for n in 0..200u64 {
            writes.clear();
            writes.insert(&n.to_be_bytes(), &[&[1; 400]]);
            owner.commit(1, &writes).await.unwrap();
        }
        owner.flush().await.unwrap();
        owner.driver.chores().await.unwrap();
        assert_eq!(owner.driver.group(1).unwrap().first, 3);
        assert_eq!(owner.driver.entries(1, 3..201).await.unwrap().len(), 198);
        let held = owner.driver.log_stats().segment_bytes;
        assert!(held > 80_000, "{held}");
        // Another group goes on behind it, and nothing is copied about: the hold is one of a stretch of the
        // lane.
        for n in 0..2_000u64 {
            writes.clear();
            writes.insert(&n.to_be_bytes(), &[&[1; 200]]);
            owner.commit(2, &writes).await.unwrap();
        }
        let lane = owner.driver.log_stats();
        assert!(lane.copied_bytes < lane.appended_bytes / 10, "{lane:?}");
        owner.driver.hold(1, 100).unwrap();
        assert_eq!(owner.driver.group(1).unwrap().first, 100);
        assert_eq!(owner.driver.entries(1, 100..201).await.unwrap().len(), 101);
        owner.driver.hold(1, u64::MAX).unwrap();
        for _ in 0..100 {
            owner.driver.chores().await.unwrap();
        }
        assert_eq!(owner.driver.group(1).unwrap().first, 201);
        let lane = owner.driver.log_stats();
        assert!(lane.segment_bytes <= LANE_MAX, "{lane:?}");
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn a_hold_that_makes_the_log_too_long_is_given_up() {
    run(5, async |env, _| {
        let options = crate::Options { held_log_max: 64 << 10, ..options(&env) };
        let mut owner = Owner::open_with(options).await.unwrap();
        let mut writes = Writes::new();
        owner.driver.hold(1, 1).unwrap();
        for n in 0..1_000u64 {
            writes.clear();
            writes.insert(&n.to_be_bytes(), &[&[1; 400]]);
            owner.commit(1, &writes).await.unwrap();
            owner.driver.chores().await.unwrap();
            let lane = owner.driver.log_stats().segment_bytes;
            assert!(lane <= LANE_MAX + (64 << 10) + (32 << 10), "at {n}: {lane}");
        }
        assert!(owner.driver.group(1).unwrap().first > 500);
        owner.driver.close().await.unwrap();
    });
}
