//! Versions against a model that forgets nothing.

use std::collections::BTreeMap;

use atoll_env::Env;
use atoll_env::random::Prng;

use super::{Owner, run};
use crate::batch::CHUNKED_ABOVE;
use crate::driven::{Direction, Stamp, Writes};

const GROUP: u64 = 7;

/// Every version of every key, by stamp.
#[derive(Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, BTreeMap<u64, Option<Vec<u8>>>>,
}

impl Model {
    fn wrote(&mut self, key: &[u8], stamp: u64, value: Option<&[u8]>) {
        let versions = self.keys.entry(key.to_vec()).or_default();
        versions.insert(stamp, value.map(<[u8]>::to_vec));
    }

    /// Returns the stamp and the value of what a read at `at` finds.
    fn read(&self, key: &[u8], at: u64) -> Option<(u64, Option<&[u8]>)> {
        let (&stamp, value) = self.keys.get(key)?.range(..=at).next_back()?;
        Some((stamp, value.as_deref()))
    }

    /// Returns the keys that are alive at `at`, with stamp and value.
    fn rows(&self, at: u64) -> Vec<(Vec<u8>, u64, Vec<u8>)> {
        let read = |key: &Vec<u8>| match self.read(key, at)? {
            (stamp, Some(value)) => Some((key.clone(), stamp, value.to_vec())),
            _ => None,
        };
        self.keys.keys().filter_map(read).collect()
    }
}

/// Holds what is read at `at` against the model. A tombstone that nobody needs may be gone.
async fn check(owner: &Owner, model: &Model, at: u64) {
    for key in model.keys.keys() {
        let found = owner.tree.get_version(key, at).await.unwrap();
        let found = found.as_ref().map(|v| (v.stamp, v.value.as_deref()));
        let expected = model.read(key, at);
        let gone = found.is_none() && expected.is_some_and(|(_, value)| value.is_none());
        assert!(found == expected || gone, "{key:?} at {at}: {found:?} for {expected:?}");
        assert!(owner.tree.get(key).await.unwrap().is_none(), "a version is no plain record");
    }
    let mut rows = model.rows(at);
    for direction in [Direction::Forward, Direction::Backward] {
        let mut cursor = owner.tree.scan_versions(b"", b"\xff", at, direction);
        let mut found = Vec::new();
        while let Some(row) = cursor.next().await.unwrap() {
            let value = row.value().await.unwrap().expect("no tombstones are asked for");
            assert_eq!(value.len(), row.value_len());
            found.push((row.key().to_vec(), row.stamp(), value.to_vec()));
        }
        let keys = |rows: &[(Vec<u8>, u64, Vec<u8>)]| -> Vec<(Vec<u8>, u64)> {
            rows.iter().map(|(key, stamp, _)| (key.clone(), *stamp)).collect()
        };
        assert_eq!(keys(&found), keys(&rows), "at {at}, {direction:?}");
        assert!(found == rows, "values at {at}, {direction:?}");
        rows.reverse();
    }
}

/// Writes for a while, checks, raises the horizon, and begins again.
async fn history(env: Env, seed: u64) {
    let mut prng = Prng::new(seed);
    let mut owner = Owner::open(&env).await.unwrap();
    let mut model = Model::default();
    let mut writes = Writes::new();
    let (mut stamp, mut horizon) = (10, 0);
    for round in 0..12 {
        for _ in 0..60 {
            writes.clear();
            stamp += 1 + prng.below(3);
            for _ in 0..1 + prng.below(6) {
                // Some keys are written all the time.
                let key = match prng.below(3) {
                    0 => b"hot".to_vec(),
                    _ => format!("key {:03}", prng.below(80)).into_bytes(),
                };
                if prng.below(4) == 0 {
                    writes.remove_version(&key, Stamp::LATER);
                    model.wrote(&key, stamp, None);
                    continue;
                }
                let long = prng.below(1500) == 0;
                let len = if long { CHUNKED_ABOVE + 1 } else { prng.index(90) };
                let mut value = vec![round as u8; len];
                value.extend_from_slice(&prng.next_u64().to_le_bytes());
                writes.insert_version(&key, Stamp::LATER, &[&value[..3], &value[3..]]);
                model.wrote(&key, stamp, Some(&value));
            }
            writes.set_stamp(stamp);
            owner.commit(GROUP, &writes).await.unwrap();
        }
        match prng.below(6) {
            0 => owner.flush().await.unwrap(),
            1 => owner.compact().await.unwrap(),
            2 => {
                owner.driver.close().await.unwrap();
                owner = Owner::open(&env).await.unwrap();
                owner.tree.set_horizon(horizon);
            }
            3 => {
                // The death of the process: what was written is there.
                drop(owner);
                env.clock.sleep(std::time::Duration::from_secs(5)).await;
                owner = Owner::open(&env).await.unwrap();
                owner.tree.set_horizon(horizon);
            }
            _ => {}
        }
        for _ in 0..6 {
            check(&owner, &model, horizon + prng.below(stamp - horizon + 2)).await;
        }
        for at in [horizon, stamp, u64::MAX] {
            check(&owner, &model, at).await;
        }
        if prng.below(2) == 0 {
            horizon += prng.below(stamp - horizon + 1);
            owner.tree.set_horizon(horizon);
        }
    }
    // With nothing to ask for but the present, one version of each key is all that stays.
    owner.tree.set_horizon(stamp);
    owner.compact().await.unwrap();
    check(&owner, &model, stamp).await;
    let live = model.rows(stamp).iter().map(|(_, _, value)| value.len()).collect::<Vec<_>>();
    let chunks: usize =
        live.iter().filter(|len| **len > CHUNKED_ABOVE).map(|len| len.div_ceil(256 << 10)).sum();
    let entries: u64 = owner.tree.stats().levels.iter().map(|level| level.entries).sum();
    assert_eq!(entries, (live.len() + chunks) as u64);
    owner.driver.close().await.unwrap();
}

#[test]
fn reads_at_every_stamp_above_the_horizon_find_what_was_written() {
    for seed in 0..12 {
        run(seed, async |env, _| history(env, seed).await);
    }
}

#[test]
fn a_key_with_many_versions_is_read_at_each_of_their_stamps_from_every_source() {
    run(1, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        let mut model = Model::default();
        let mut writes = Writes::new();
        let long = vec![7; CHUNKED_ABOVE + 5];
        for n in 0..900u64 {
            writes.clear();
            let short = n.to_le_bytes();
            let value = if n % 150 == 149 { &long[..] } else { &short };
            writes.insert_version(b"counter", 2 * n, &[value]);
            model.wrote(b"counter", 2 * n, Some(value));
            owner.commit(GROUP, &writes).await.unwrap();
            if n == 300 {
                owner.compact().await.unwrap();
            }
            if n == 600 {
                owner.flush().await.unwrap();
            }
        }
        let found = async |at: u64| {
            let found = owner.tree.get_version(b"counter", at).await.unwrap();
            found.map(|v| (v.stamp, v.value.map(|v| v.to_vec())))
        };
        for at in 0..1802 {
            let expected = model.read(b"counter", at).map(|(s, v)| (s, v.map(<[u8]>::to_vec)));
            assert!(found(at).await == expected, "at {at}");
        }
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn a_range_delete_takes_all_versions_and_plain_records_of_its_range() {
    run(2, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        let mut writes = Writes::new();
        for stamp in 1..=3 {
            for key in ["a", "b", "c", "d"] {
                writes.insert_version(key.as_bytes(), stamp, &[b"v"]);
            }
        }
        writes.insert(b"b plain", &[b"p"]);
        owner.commit(GROUP, &writes).await.unwrap();
        owner.flush().await.unwrap();
        writes.clear();
        writes.remove_range(b"b", b"d");
        writes.insert_version(b"c", 4, &[b"again"]);
        owner.commit(GROUP, &writes).await.unwrap();
        for step in 0..3 {
            for at in 1..=5 {
                for (key, there) in [("a", true), ("b", false), ("c", at >= 4), ("d", true)] {
                    let found = owner.tree.get_version(key.as_bytes(), at).await.unwrap();
                    assert_eq!(found.is_some(), there, "{key} at {at}, step {step}");
                }
            }
            assert_eq!(owner.tree.get(b"b plain").await.unwrap(), None);
            if step == 0 {
                owner.flush().await.unwrap();
            } else {
                owner.compact().await.unwrap();
            }
        }
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn versions_that_the_horizon_has_passed_leave_tables_that_nobody_writes_any_more() {
    run(3, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        let mut writes = Writes::new();
        for n in 0..1200u64 {
            writes.clear();
            let key = format!("key {:02}", n % 40);
            if n >= 1160 {
                writes.remove_version(key.as_bytes(), n);
            } else {
                writes.insert_version(key.as_bytes(), n, &[&[n as u8; 50]]);
            }
            owner.commit(GROUP, &writes).await.unwrap();
        }
        owner.compact().await.unwrap();
        let entries =
            |owner: &Owner| owner.tree.stats().levels.iter().map(|l| l.entries).sum::<u64>();
        assert_eq!(entries(&owner), 1200, "all of them can still be read");
        owner.tree.set_horizon(5000);
        let due = owner.driver.chores_due();
        for _ in 0..60 {
            let tick = env.clock.sleep(std::time::Duration::from_secs(1));
            atoll_env::sync::select_biased(due.notified(), tick).await;
            owner.driver.chores().await.unwrap();
        }
        assert_eq!(entries(&owner), 0);
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn versions_in_value_files_are_found_at_their_stamps_and_counted_where_they_lie() {
    run(9, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        let key = |n: u64| format!("key {n}").into_bytes();
        let value = |n: u64, stamp: u64| {
            let mut bytes = vec![0; if n == 0 { 5 } else { 250 }];
            atoll_env::random::Prng::new(n + 100 * stamp).fill(&mut bytes);
            bytes
        };
        for stamp in 1..=20 {
            let mut writes = Writes::new();
            for n in 0..10 {
                writes.insert_version(&key(n), stamp, &[&value(n, stamp)]);
            }
            owner.commit(1, &writes).await.unwrap();
        }
        owner.flush().await.unwrap();
        owner.compact().await.unwrap();
        // The second time the newest are in the record cache.
        for stamp in (1..=20).chain(1..=20) {
            for n in 0..10 {
                let found = owner.tree.get_version(&key(n), stamp).await.unwrap().unwrap();
                assert_eq!(found.stamp, stamp);
                assert!(found.value.unwrap() == value(n, stamp)[..], "key {n} at {stamp}");
            }
        }
        let records = owner.tree.stats().records;
        assert!(records.records == 10 && records.hits >= 10, "{records:?}");
        let mut surveyed = 0;
        owner.tree.survey(|_, bytes| surveyed += bytes);
        assert!(surveyed > 180 * 250, "{surveyed}");
        owner.tree.set_horizon(20);
        owner.compact().await.unwrap();
        let stats = owner.tree.stats();
        assert!(stats.value_live_bytes < 10 * 300, "{} live", stats.value_live_bytes);
        for n in 0..10 {
            let found = owner.tree.get_version(&key(n), 25).await.unwrap().unwrap();
            assert!(found.stamp == 20 && found.value.unwrap() == value(n, 20)[..], "key {n}");
        }
        let mut cursor = owner.tree.scan_versions(b"", b"z", 25, Direction::Backward);
        let mut n = 10;
        while let Some(row) = cursor.next().await.unwrap() {
            n -= 1;
            assert_eq!((row.key(), row.stamp()), (&key(n)[..], 20));
            assert_eq!(row.value_len(), value(n, 20).len());
            assert!(row.value().await.unwrap().unwrap() == value(n, 20)[..]);
        }
        assert_eq!(n, 0);
    });
}
