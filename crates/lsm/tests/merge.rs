//! Merge operators and compaction filters, through the API, in the simulator.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "this file has models of its own")]
mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sim::{CrashMode, Node, Sim};
use atoll_lsm::{
    Add, Append, Batch, Candidate, CompactionBegun, CompactionFilter, Database, Decision,
    Durability, Error, EventListener, FlushBegun, Keyspace, KeyspaceOptions, Max, MergeOperator,
    OPERAND_LEN_MAX, Options, Refusal, WriteOptions, verify_async,
};
use support::{dir, options, run};

const SYNCED: WriteOptions = WriteOptions { durability: None };

fn merged_by(operator: &str) -> KeyspaceOptions {
    KeyspaceOptions { merge_operator: Some(operator.to_owned()), ..KeyspaceOptions::default() }
}

async fn open_with(env: &Env, change: impl FnOnce(&mut Options)) -> Database {
    let mut options = options(env.clone());
    change(&mut options);
    Database::builder(dir()).options(options).open_async().await.unwrap()
}

async fn open(env: &Env, operator: &str) -> (Database, Keyspace) {
    let db = open_with(env, |_| {}).await;
    let ks = db.keyspace_async("k", merged_by(operator)).await.unwrap();
    (db, ks)
}

fn simulated(test: impl AsyncFnOnce(Env)) {
    let sim = Sim::new(11);
    let node = sim.node("db");
    let env = node.env();
    run(&sim, &node, "merge", test(env));
}

async fn text(ks: &Keyspace, key: &str) -> Option<String> {
    let value = ks.get_async(key).await.unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

/// Returns all rows, which must be the same from both ends and by point reads.
async fn rows(ks: &Keyspace) -> Vec<(String, String)> {
    let mut both = Vec::new();
    for backward in [false, true] {
        let mut rows = Vec::new();
        let mut cursor = ks.cursor::<&[u8]>(..);
        loop {
            let next = if backward { cursor.next_back().await } else { cursor.next().await };
            let Some(guard) = next.unwrap() else { break };
            let record = guard.record_async().await.unwrap();
            assert_eq!((guard.size(), guard.deadline()), (record.value.len(), record.deadline));
            let key = String::from_utf8(guard.key().to_vec()).unwrap();
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            assert_eq!(text(ks, &key).await.as_ref(), Some(&value));
            rows.push((key, value));
        }
        if backward {
            rows.reverse();
        }
        both.push(rows);
    }
    assert_eq!(both[0], both[1]);
    both.remove(0)
}

fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn operands_are_found_wherever_they_and_their_base_lie() {
    simulated(async |env| {
        let (db, ks) = open(&env, "atoll.append:2c").await;
        ks.insert_async("a", "1", SYNCED).await.unwrap();
        ks.insert_async("gone", "1", SYNCED).await.unwrap();
        ks.insert_async("range", "1", SYNCED).await.unwrap();
        db.compact_async().await.unwrap();
        for (n, key) in ["a", "gone", "range", "fresh"].into_iter().enumerate() {
            ks.merge_async(key, format!("x{n}"), SYNCED).await.unwrap();
        }
        db.flush_async().await.unwrap();
        ks.remove_async("gone", SYNCED).await.unwrap();
        ks.remove_range_async("range".."ranger", SYNCED).await.unwrap();
        db.flush_async().await.unwrap();
        for key in ["a", "gone", "range", "fresh"] {
            ks.merge_async(key, "y", SYNCED).await.unwrap();
            ks.merge_async(key, "z", SYNCED).await.unwrap();
        }
        let expected =
            pairs(&[("a", "1,x0,y,z"), ("fresh", "x3,y,z"), ("gone", "y,z"), ("range", "y,z")]);
        assert_eq!(rows(&ks).await, expected, "in memory and two levels");
        db.flush_async().await.unwrap();
        assert_eq!(rows(&ks).await, expected, "in tables");
        db.compact_async().await.unwrap();
        assert_eq!(rows(&ks).await, expected, "folded");
        assert_eq!(db.stats().levels[6].entries, 4 + 1, "one record a key, and the catalog's");
        drop(ks);
        db.close_async().await.unwrap();
        let (_db, ks) = open(&env, "ignored: it has one").await;
        assert_eq!(ks.options().merge_operator.as_deref(), Some("atoll.append:2c"));
        assert_eq!(rows(&ks).await, expected, "opened again");
    });
}

#[test]
fn a_snapshot_between_operands_sees_the_first_of_them() {
    simulated(async |env| {
        let (db, ks) = open(&env, "atoll.append:").await;
        let mut snapshots = Vec::new();
        for n in 0..12 {
            snapshots.push((db.snapshot(), text(&ks, "k").await));
            match n {
                4 => ks.remove_async("k", SYNCED).await.unwrap(),
                7 => ks.insert_async("k", "=", SYNCED).await.unwrap(),
                _ => ks.merge_async("k", format!("{n:x}"), SYNCED).await.unwrap(),
            }
            if n % 3 == 2 {
                db.flush_async().await.unwrap();
            }
        }
        assert_eq!(text(&ks, "k").await.as_deref(), Some("=89ab"));
        for round in 0..3 {
            for (n, (snapshot, then)) in snapshots.iter().enumerate() {
                let found = snapshot.get_async(&ks, "k").await.unwrap();
                let found = found.map(|v| String::from_utf8(v.to_vec()).unwrap());
                assert_eq!(&found, then, "snapshot {n} in round {round}");
                let mut cursor = snapshot.cursor::<&[u8]>(&ks, ..);
                let row = cursor.next_back().await.unwrap();
                let row = match row {
                    Some(guard) => Some(guard.value_async().await.unwrap()),
                    None => None,
                };
                assert_eq!(row.as_deref(), then.as_deref().map(str::as_bytes));
            }
            db.compact_async().await.unwrap();
            assert_eq!(text(&ks, "k").await.as_deref(), Some("=89ab"));
            let _ = snapshots.drain(..3);
        }
    });
}

#[test]
fn in_a_keyspace_with_a_time_to_live_each_operand_lives_that_long() {
    simulated(async |env| {
        let db = open_with(&env, |_| {}).await;
        let ttl = Some(Duration::from_secs(64));
        let options = KeyspaceOptions { ttl, ..merged_by("atoll.append:") };
        let ks = db.keyspace_async("k", options).await.unwrap();
        let forever = db.keyspace_async("f", merged_by("atoll.append:")).await.unwrap();
        forever.insert_for_async("k", "v", Duration::from_secs(5), SYNCED).await.unwrap();
        forever.merge_async("k", "w", SYNCED).await.unwrap();
        for n in 0..8 {
            ks.merge_async("k", n.to_string(), SYNCED).await.unwrap();
            env.clock.sleep(Duration::from_secs(10)).await;
            if n % 3 == 1 {
                db.compact_async().await.unwrap();
            }
        }
        // It is 80 s after the start: what was written before 16 s is gone.
        assert_eq!(text(&ks, "k").await.as_deref(), Some("234567"));
        let now = env.clock.wall().0;
        let deadline = ks.record_async("k").await.unwrap().unwrap().deadline.unwrap();
        assert!((now + 54_000..=now + 55_000).contains(&deadline), "that of the last operand");
        assert_eq!(text(&forever, "k").await.as_deref(), Some("w"));
        assert_eq!(forever.record_async("k").await.unwrap().unwrap().deadline, None);
        db.compact_async().await.unwrap();
        assert_eq!(text(&ks, "k").await.as_deref(), Some("234567"));
        env.clock.sleep(Duration::from_secs(56)).await;
        assert_eq!(rows(&ks).await, []);
        db.compact_async().await.unwrap();
        assert_eq!(db.stats().levels.iter().map(|l| l.entries).sum::<u64>(), 3, "all of it went");
    });
}

#[test]
fn long_bases_and_results_are_chunked_like_other_values() {
    simulated(async |env| {
        let (db, ks) = open(&env, "atoll.append:").await;
        let long = "v".repeat(1_200_000);
        ks.insert_async("long", &long, SYNCED).await.unwrap();
        ks.merge_async("long", "+1", SYNCED).await.unwrap();
        let snapshot = db.snapshot();
        let before = format!("{long}+1");
        let piece = "p".repeat(300_000);
        for _ in 0..5 {
            ks.merge_async("grown", &piece, SYNCED).await.unwrap();
        }
        ks.merge_async("long", "+2", SYNCED).await.unwrap();
        for round in ["in memory", "flushed", "compacted"] {
            let found = text(&ks, "long").await;
            assert!(found == Some(format!("{before}+2")), "{round}");
            assert!(text(&ks, "grown").await == Some(piece.repeat(5)), "{round}");
            let all = rows(&ks).await;
            assert_eq!(all.iter().map(|(k, _)| &k[..]).collect::<Vec<_>>(), ["grown", "long"]);
            match round {
                "in memory" => db.flush_async().await.unwrap(),
                _ => db.compact_async().await.unwrap(),
            }
            let found = snapshot.get_async(&ks, "long").await.unwrap().unwrap();
            assert!(found[..] == *before.as_bytes(), "behind {round}");
        }
        drop(snapshot);
        db.compact_async().await.unwrap();
        assert!(text(&ks, "long").await == Some(format!("{before}+2")));
        let entries = db.stats().levels[6].entries;
        assert_eq!(entries, 1 + 6 + 7, "two heads with 5 and 6 chunks, and the catalog");
    });
}

/// Appends; refuses `!`, panics at `#`, until it is mended.
struct Moody {
    mended: Arc<AtomicBool>,
}

impl MergeOperator for Moody {
    fn name(&self) -> &str {
        "moody"
    }

    fn full_merge(
        &self,
        _key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let mut all = existing.unwrap_or_default().to_vec();
        for operand in operands {
            match *operand {
                b"!" if !self.mended.load(Ordering::Relaxed) => return Err("bad mood".into()),
                b"#" if !self.mended.load(Ordering::Relaxed) => panic!("very bad mood"),
                word => all.extend_from_slice(word),
            }
        }
        Ok(Some(all))
    }

    fn check(&self, operand: &[u8]) -> Result<(), Refusal> {
        if operand.is_empty() { Err("nothing to append".into()) } else { Ok(()) }
    }
}

/// Jobs that began, and what was told of callbacks.
#[derive(Default)]
struct Told(Mutex<(usize, Vec<String>)>);

impl EventListener for Told {
    fn flush_begun(&self, _: &Path, _: &FlushBegun) {
        self.0.lock().unwrap().0 += 1;
    }

    fn compaction_begun(&self, _: &Path, _: &CompactionBegun) {
        self.0.lock().unwrap().0 += 1;
    }

    fn callback_failed(&self, _: &Path, why: &Error) {
        self.0.lock().unwrap().1.push(why.to_string());
    }
}

#[test]
fn an_operator_that_fails_or_is_missing_is_an_error_of_the_read_and_nothing_is_lost() {
    simulated(async |env| {
        let mended = Arc::new(AtomicBool::new(false));
        let moody = Moody { mended: mended.clone() };
        let told = Arc::new(Told::default());
        let listener = told.clone();
        let tune = |o: &mut Options| {
            o.merge_operators.push(Arc::new(moody));
            o.listener = Some(listener);
        };
        let db = open_with(&env, tune).await;
        let ks = db.keyspace_async("k", merged_by("moody")).await.unwrap();
        ks.insert_async("a", "1", SYNCED).await.unwrap();
        ks.insert_async("d", "4", SYNCED).await.unwrap();
        for (key, operand) in [("a", "!"), ("a", "2"), ("b", "#"), ("c", "3")] {
            ks.merge_async(key, operand, SYNCED).await.unwrap();
        }
        let refused = ks.merge_async("a", "", SYNCED).await.unwrap_err().to_string();
        assert!(refused.contains("nothing to append"), "{refused}");
        let long = vec![b'x'; OPERAND_LEN_MAX + 1];
        assert!(matches!(ks.merge_async("a", &long, SYNCED).await, Err(Error::InvalidInput(_))));
        let read = async |ks: &Keyspace, key: &str| match ks.get_async(key).await {
            Ok(value) => Ok(String::from_utf8(value.unwrap().to_vec()).unwrap()),
            Err(Error::InvalidInput(why)) => Err(why),
            Err(e) => panic!("{e}"),
        };
        for compacted in [false, true] {
            let why = read(&ks, "a").await.unwrap_err();
            assert!(why.contains("'moody' of keyspace 'k'") && why.contains("bad mood"), "{why}");
            let why = read(&ks, "b").await.unwrap_err();
            assert!(why.contains("panicked: very bad mood"), "{why}");
            assert_eq!(read(&ks, "c").await.unwrap(), "3");
            // A scan passes it; the value is what fails.
            let mut cursor = ks.cursor::<&[u8]>(..);
            let mut seen = Vec::new();
            while let Some(guard) = cursor.next().await.unwrap() {
                seen.push((guard.key()[0] as char, guard.value_async().await.is_ok()));
            }
            assert_eq!(seen, [('a', false), ('b', false), ('c', true), ('d', true)]);
            if !compacted {
                db.compact_async().await.unwrap();
                assert!(db.stats().callback_failures >= 2);
                assert!(db.stats().background_failure.unwrap().contains("bad mood"));
            }
        }
        let counted = db.stats().callback_failures;
        drop(ks);
        db.close_async().await.unwrap();
        let (jobs, failures) = std::mem::take(&mut *told.0.lock().unwrap());
        assert!(failures.iter().all(|why| why.contains("'moody'")) && !failures.is_empty());
        assert!(failures.len() <= jobs && failures.len() < counted as usize, "once a job");

        let db = open_with(&env, |_| {}).await;
        let ks = db.find_keyspace("k").unwrap();
        ks.merge_async("c", "5", SYNCED).await.unwrap();
        db.compact_async().await.unwrap();
        let why = read(&ks, "c").await.unwrap_err();
        assert!(
            why.contains("'k'") && why.contains("'moody'") && why.contains("register"),
            "{why}"
        );
        assert_eq!(read(&ks, "d").await.unwrap(), "4", "what needs no operator is read");
        let other = db.keyspace_async("other", merged_by("moody")).await;
        assert!(matches!(other, Err(Error::InvalidInput(_))), "nobody registered it");
        drop(ks);
        db.close_async().await.unwrap();

        mended.store(true, Ordering::Relaxed);
        let db = open_with(&env, |o| o.merge_operators.push(Arc::new(Moody { mended }))).await;
        let ks = db.find_keyspace("k").unwrap();
        assert_eq!(rows(&ks).await, pairs(&[("a", "1!2"), ("b", "#"), ("c", "35"), ("d", "4")]));
        let plain = db.keyspace_async("plain", KeyspaceOptions::default()).await.unwrap();
        let why = plain.merge_async("a", "1", SYNCED).await.unwrap_err().to_string();
        assert!(why.contains("'plain' has no merge operator"), "{why}");
        db.compact_async().await.unwrap();
        assert_eq!(db.stats().callback_failures, 0);
    });
}

#[test]
fn ready_made_operators_count_keep_the_largest_and_append() {
    simulated(async |env| {
        let db = open_with(&env, |_| {}).await;
        let count = db.keyspace_async("count", merged_by(Add::NAME)).await.unwrap();
        let largest = db.keyspace_async("largest", merged_by(Max::NAME)).await.unwrap();
        let list = Append::new(b", ");
        let list = db.keyspace_async("list", merged_by(list.name())).await.unwrap();
        for n in 1..=300u64 {
            let mut batch = Batch::new();
            batch.merge(&count, b"k", &n.to_le_bytes());
            batch.merge(&largest, b"k", format!("{:03}", n * 7 % 301).as_bytes());
            if n % 100 == 0 {
                batch.merge(&list, b"k", n.to_string().as_bytes());
            }
            db.write_async(batch, SYNCED).await.unwrap();
        }
        let sum = count.get_async("k").await.unwrap().unwrap();
        assert_eq!(u64::from_le_bytes(sum[..].try_into().unwrap()), 300 * 301 / 2);
        let most = (1..=300).map(|n| n * 7 % 301).max().unwrap();
        assert_eq!(text(&largest, "k").await, Some(most.to_string()));
        assert_eq!(text(&list, "k").await.as_deref(), Some("100, 200, 300"));
        let refused = count.merge_async("k", "1", SYNCED).await.unwrap_err().to_string();
        assert!(refused.contains("8 bytes"), "{refused}");
        let entries: u64 = db.stats().levels.iter().map(|l| l.entries).sum();
        assert!(entries < 60, "flushes and compactions fold: {entries} records left");
    });
}

#[test]
fn after_a_power_cut_a_counter_is_what_was_acknowledged_or_one_more() {
    for (seed, mode) in
        (0..24).map(|n| (n, [CrashMode::DropAll, CrashMode::KeepAll][n as usize % 2]))
    {
        let sim = Sim::new(seed);
        let node = sim.node("db");
        let mut acknowledged = 0u64;
        for life in 0..4 {
            let env = node.env();
            acknowledged = run(&sim, &node, "a life", count_on(&env, acknowledged, seed + life));
            node.crash_with(mode);
            node.restart();
        }
        check_counter(&sim, &node, acknowledged);
    }
}

async fn count_on(env: &Env, before: u64, seed: u64) -> u64 {
    let (db, ks) = open(env, Add::NAME).await;
    assert_eq!(counter(&ks).await, before, "every increment once");
    let mut sum = before;
    for n in 0..40 + seed * 7 % 50 {
        // Synced ones take what was buffered before along.
        let durability = if n % 5 == 4 { Durability::Synced } else { Durability::Buffered };
        let mut batch = Batch::new();
        batch.merge(&ks, b"n", &1u64.to_le_bytes());
        batch.insert(&ks, format!("filler-{n}").as_bytes(), &[7; 300]);
        batch.merge(&ks, b"n", &2u64.to_le_bytes());
        db.write_async(batch, WriteOptions::durability(durability)).await.unwrap();
        sum += 3;
        match (n + seed) % 17 {
            3 => db.flush_async().await.unwrap(),
            9 => db.compact_async().await.unwrap(),
            _ => {}
        }
    }
    db.sync_async().await.unwrap();
    sum
}

fn check_counter(sim: &Sim, node: &Node, expected: u64) {
    let env = node.env();
    run(sim, node, "the last look", async {
        let (_db, ks) = open(&env, Add::NAME).await;
        assert_eq!(counter(&ks).await, expected);
    });
}

async fn counter(ks: &Keyspace) -> u64 {
    let value = ks.get_async("n").await.unwrap();
    value.map_or(0, |value| u64::from_le_bytes(value[..].try_into().unwrap()))
}

// ---- over values in value files ----

async fn open_separated(env: &Env, tune: impl FnOnce(&mut Options)) -> (Database, Keyspace) {
    let db = open_with(env, |o| {
        o.separate_above = Some(48);
        o.value_file_size = 8 << 10;
        tune(o);
    });
    let db = db.await;
    let ks = db.keyspace_async("k", merged_by("atoll.append:")).await.unwrap();
    (db, ks)
}

/// A text of `len` bytes that LZ4 does not shorten much.
fn long(n: u32, len: usize) -> String {
    let mut bytes = vec![0; len];
    Prng::new(u64::from(n)).fill(&mut bytes);
    bytes.iter().map(|byte| char::from(b'!' + byte % 90)).collect()
}

#[test]
fn operands_are_merged_onto_values_in_value_files() {
    simulated(async |env| {
        // Keys whose base is long, is made long by what is merged, and stays short.
        let bases = |n: u32| long(n, [300, 40, 5][n as usize % 3]);
        let (db, ks) = open_separated(&env, |_| {}).await;
        for n in 0..60 {
            ks.insert_async(format!("k{n:02}"), bases(n), SYNCED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        assert!(db.stats().value_files > 0, "{:?}", db.stats());
        let expected = |words: &[&str]| -> Vec<(String, String)> {
            (0..60).map(|n| (format!("k{n:02}"), bases(n) + &words.concat())).collect()
        };
        let words = ["-plus one", "-plus two"];
        let mut snapshots = vec![(db.snapshot(), 0)];
        for (at, word) in words.iter().enumerate() {
            for n in 0..60 {
                ks.merge_async(format!("k{n:02}"), word, SYNCED).await.unwrap();
            }
            snapshots.push((db.snapshot(), at + 1));
        }
        for round in ["in memory", "flushed", "compacted under snapshots", "once more"] {
            assert_eq!(rows(&ks).await, expected(&words), "{round}");
            for (snapshot, seen) in &snapshots {
                let then = expected(&words[..*seen]);
                let mut cursor = snapshot.cursor::<&[u8]>(&ks, ..);
                for (key, value) in &then {
                    let (found, of) = cursor.next().await.unwrap().unwrap().into_inner().unwrap();
                    assert_eq!(
                        (&found[..], &of[..]),
                        (key.as_bytes(), value.as_bytes()),
                        "{round}"
                    );
                    let one = snapshot.get_async(&ks, key).await.unwrap();
                    assert_eq!(one.as_deref(), Some(value.as_bytes()), "{round}");
                }
            }
            let mut reader = ks.reader_async("k00").await.unwrap().unwrap();
            let whole = bases(0) + &words.concat();
            assert_eq!((reader.len(), reader.deadline()), (whole.len(), None));
            assert_eq!(reader.next_async().await.unwrap().as_deref(), Some(whole.as_bytes()));
            assert!(ks.contains_key_async("k00").await.unwrap());
            match round {
                "in memory" => db.flush_async().await.unwrap(),
                _ => db.compact_async().await.unwrap(),
            }
        }
        drop(snapshots);
        db.compact_async().await.unwrap();
        assert_eq!(rows(&ks).await, expected(&words));
        let stats = db.stats();
        assert_eq!(stats.levels[6].entries, 60 + 1, "one record a key, and the catalog's");
        // What was folded is long enough for a value file but for every third; old bases are garbage,
        // and went.
        let alive: usize = (0..60).filter(|n| n % 3 < 2).map(|n| bases(n).len() + 18 + 28).sum();
        assert_eq!(stats.value_live_bytes, alive as u64);
        let file_ends = 60 * stats.value_files as u64;
        assert!(stats.value_file_bytes - file_ends <= stats.value_live_bytes * 107 / 100);
        drop(ks);
        db.close_async().await.unwrap();
        let report = verify_async(&env, &dir(), &mut |_| {}).await.unwrap();
        assert!(report.is_sound(), "{:?}", report.problems);
        let (db, ks) = open_separated(&env, |_| {}).await;
        assert_eq!(rows(&ks).await, expected(&words), "opened again");
        drop(db);
    });
}

#[test]
fn a_long_base_in_value_files_is_folded_chunk_by_chunk_and_written_so() {
    simulated(async |env| {
        let (db, ks) = open_separated(&env, |o| o.value_file_size = 1 << 20).await;
        let base = long(7, 1_200_000);
        ks.insert_async("k", &base, SYNCED).await.unwrap();
        db.compact_async().await.unwrap();
        let before = db.stats().value_live_bytes;
        assert!(before > 1_000_000);
        ks.merge_async("k", "+1", SYNCED).await.unwrap();
        db.flush_async().await.unwrap();
        assert!(text(&ks, "k").await == Some(base.clone() + "+1"));
        db.compact_async().await.unwrap();
        assert!(text(&ks, "k").await == Some(base.clone() + "+1"));
        let stats = db.stats();
        assert_eq!(stats.levels[6].entries, 1 + 5 + 1, "a head with 5 chunks, and the catalog");
        assert!(stats.value_live_bytes > 1_000_000);
    });
}

#[test]
fn operands_over_a_base_that_cannot_be_read_wait_for_it() {
    let sim = Sim::new(17);
    let node = sim.node("db");
    let env = node.env();
    run(&sim, &node, "build", async {
        let (db, ks) = open_separated(&env, |_| {}).await;
        for n in 0..8 {
            ks.insert_async(format!("k{n}"), long(n, 200), SYNCED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();
    });
    let file = node.disk().files().into_iter().find(|file| file.ends_with(".val")).unwrap();
    let mut bytes = node.disk().read_file(&file).unwrap();
    // In the value of the first record.
    bytes[32 + 28 + 50] ^= 4;
    node.disk().write_file(&file, &bytes).unwrap();
    run(&sim, &node, "merge", async {
        let (db, ks) = open_separated(&env, |_| {}).await;
        for n in 0..8 {
            ks.merge_async(format!("k{n}"), "+1", SYNCED).await.unwrap();
            ks.merge_async(format!("k{n}"), "+2", SYNCED).await.unwrap();
        }
        db.flush_async().await.unwrap();
        for round in ["in level 0", "compacted", "written again"] {
            for n in 1..8 {
                let expected = long(n, 200) + "+1+2";
                assert_eq!(text(&ks, &format!("k{n}")).await, Some(expected), "{round}");
            }
            match (round, ks.get_async("k0").await) {
                ("written again", found) => {
                    assert_eq!(found.unwrap().as_deref(), Some(&b"new+3"[..]));
                }
                (_, Err(Error::Corruption { file: named, .. })) => {
                    assert_eq!(named.file_name(), Path::new(&file).file_name());
                }
                (_, other) => panic!("{round}: {other:?}"),
            }
            db.compact_async().await.unwrap();
            if round == "compacted" {
                assert_eq!(db.stats().callback_failures, 0, "it was not the operator");
                let entries = db.stats().levels.iter().map(|level| level.entries).sum::<u64>();
                assert_eq!(entries, 8 + 1 + 1, "its operands became one and wait");
                ks.insert_async("k0", "new", SYNCED).await.unwrap();
                ks.merge_async("k0", "+3", SYNCED).await.unwrap();
            }
        }
        assert_eq!(db.stats().levels[6].entries, 8 + 1);
        drop(ks);
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_merge_ends_the_stretch_that_a_scan_jumps_over() {
    simulated(async |env| {
        let (db, ks) = open_separated(&env, |_| {}).await;
        for n in 0..2000 {
            ks.insert_async(format!("q{n:04}"), "v", SYNCED).await.unwrap();
        }
        for n in 0..2000 {
            ks.remove_async(format!("q{n:04}"), SYNCED).await.unwrap();
        }
        let first = async || {
            let mut cursor = ks.cursor::<&[u8]>(..);
            cursor.next().await.unwrap().map(|guard| guard.key().to_vec())
        };
        // The first scan leaves no note for want of knowledge, the others may.
        for _ in 0..3 {
            assert_eq!(first().await, None);
            ks.insert_async("z", "v", SYNCED).await.unwrap();
            ks.remove_async("z", SYNCED).await.unwrap();
        }
        ks.merge_async("q1000", "+", SYNCED).await.unwrap();
        assert_eq!(first().await.as_deref(), Some(&b"q1000"[..]));
        drop(db);
    });
}

// ---- filters ----

/// Removes what begins with `r`, replaces what begins with `s`, panics at `p`.
struct Sieve {
    shown: Arc<AtomicUsize>,
}

impl CompactionFilter for Sieve {
    fn filter(&self, candidate: &Candidate<'_>) -> Decision {
        self.shown.fetch_add(1, Ordering::Relaxed);
        assert!((1..7).contains(&candidate.level));
        assert_eq!(
            candidate.value.map(<[u8]>::len),
            (candidate.len < 1 << 20).then_some(candidate.len)
        );
        match candidate.key.first() {
            Some(b'r') => Decision::Remove,
            Some(b's') => Decision::Replace(b"shortened".to_vec()),
            Some(b'b') => Decision::Replace(vec![0; 2 << 20]),
            Some(b'p') => panic!("asked to"),
            _ => Decision::Keep,
        }
    }
}

async fn open_sieved(env: &Env) -> (Database, Keyspace, Arc<AtomicUsize>) {
    let shown = Arc::new(AtomicUsize::new(0));
    let sieve = Sieve { shown: shown.clone() };
    let filter = ("k".to_owned(), Arc::new(sieve) as Arc<dyn CompactionFilter>);
    let tune = |o: &mut Options| {
        o.compaction_filters.push(filter);
        // Only when it is asked for.
        o.level0_tables = 100;
        o.level0_slowdown = 100;
    };
    let db = open_with(env, tune).await;
    let ks = db.keyspace_async("k", merged_by("atoll.append:")).await.unwrap();
    (db, ks, shown)
}

#[test]
fn a_filter_removes_replaces_and_keeps_what_is_compacted() {
    simulated(async |env| {
        let (db, ks, shown) = open_sieved(&env).await;
        let other = db.keyspace_async("other", KeyspaceOptions::default()).await.unwrap();
        for key in ["keep", "remove", "short", "panic", "big", "merged"] {
            ks.insert_async(key, "value", SYNCED).await.unwrap();
        }
        other.insert_async("remove", "value", SYNCED).await.unwrap();
        ks.insert_async("slong", "v".repeat(1_500_000), SYNCED).await.unwrap();
        let hour = Duration::from_secs(3600);
        ks.insert_for_async("short-lived", "value", hour, SYNCED).await.unwrap();
        let deadline = ks.record_async("short-lived").await.unwrap().unwrap().deadline;
        ks.remove_async("really gone", SYNCED).await.unwrap();
        ks.merge_async("merged", "+", SYNCED).await.unwrap();
        db.flush_async().await.unwrap();
        assert_eq!(shown.load(Ordering::Relaxed), 0, "a flush shows nothing");
        db.compact_async().await.unwrap();
        assert_eq!(
            shown.load(Ordering::Relaxed),
            7,
            "no tombstones, no operands, long values once"
        );
        let expected = [
            ("big", "value"),
            ("keep", "value"),
            ("merged", "value+"),
            ("panic", "value"),
            ("short", "shortened"),
            ("short-lived", "shortened"),
            ("slong", "shortened"),
        ];
        assert_eq!(rows(&ks).await, pairs(&expected));
        assert_eq!(ks.record_async("short-lived").await.unwrap().unwrap().deadline, deadline);
        assert_eq!(rows(&other).await, pairs(&[("remove", "value")]), "another keyspace's");
        assert_eq!(db.stats().callback_failures, 2);
        let why = db.stats().callback_failure.unwrap();
        assert!(why.contains("filter of keyspace 'k'"), "{why}");
        // Removed is removed, also where an older value lies below.
        ks.insert_async("zz", "1", SYNCED).await.unwrap();
        db.compact_async().await.unwrap();
        assert_eq!(text(&ks, "remove").await, None);
        drop((ks, other));
        db.close_async().await.unwrap();
        let (db, ks) = open(&env, "").await;
        assert_eq!(text(&ks, "remove").await, None);
        drop(db);
    });
}

/// Removes by key and length; looks at no value in a value file but those of keys with `look`.
struct ByKey {
    looked: Arc<AtomicUsize>,
}

impl CompactionFilter for ByKey {
    fn needs_value(&self, key: &[u8], len: usize) -> bool {
        key.starts_with(b"look") && len == 300
    }

    fn filter(&self, candidate: &Candidate<'_>) -> Decision {
        if candidate.len < 48 {
            assert_eq!(candidate.value, Some(&b"in the table"[..]));
        }
        if candidate.len != 300 {
            return Decision::Keep;
        }
        let looks = candidate.key.starts_with(b"look");
        assert_eq!(candidate.value.is_some(), looks);
        match candidate.value {
            Some(value) => {
                self.looked.fetch_add(1, Ordering::Relaxed);
                let grown = value.iter().chain(value[..100].iter().rev()).copied().collect();
                if value[0] == b'r' { Decision::Remove } else { Decision::Replace(grown) }
            }
            None if candidate.key.starts_with(b"drop") => Decision::Remove,
            None => Decision::Keep,
        }
    }
}

#[test]
fn a_filter_is_shown_values_in_value_files_if_it_needs_them() {
    simulated(async |env| {
        let looked = Arc::new(AtomicUsize::new(0));
        let filter = ByKey { looked: looked.clone() };
        let filter = ("k".to_owned(), Arc::new(filter) as Arc<dyn CompactionFilter>);
        let (db, ks) = open_separated(&env, |o| {
            o.compaction_filters.push(filter);
            o.level0_tables = 100;
            o.level0_slowdown = 100;
        })
        .await;
        let hour = Duration::from_secs(3600);
        for n in 0..10u32 {
            let value = |first: &str| first.to_owned() + &long(n, 299);
            ks.insert_async(format!("keep{n}"), value("k"), SYNCED).await.unwrap();
            ks.insert_async(format!("drop{n}"), value("k"), SYNCED).await.unwrap();
            ks.insert_async(format!("look{n}"), value("k"), SYNCED).await.unwrap();
            ks.insert_for_async(format!("look-brief{n}"), value("k"), hour, SYNCED).await.unwrap();
            ks.insert_async(format!("look-removed{n}"), value("r"), SYNCED).await.unwrap();
            ks.insert_async(format!("short{n}"), "in the table", SYNCED).await.unwrap();
        }
        let deadline = ks.record_async("look-brief3").await.unwrap().unwrap().deadline;
        db.compact_async().await.unwrap();
        assert_eq!(looked.load(Ordering::Relaxed), 30);
        let all = rows(&ks).await;
        assert_eq!(all.len(), 40);
        for (key, value) in &all {
            let len = match &key[..4] {
                "look" => 400,
                "keep" => 300,
                _ => 12,
            };
            assert_eq!(value.len(), len, "{key}");
        }
        assert_eq!(ks.record_async("look-brief3").await.unwrap().unwrap().deadline, deadline);
        let stats = db.stats();
        assert_eq!(
            stats.value_live_bytes,
            20 * 428 + 10 * 328,
            "what was replaced is separated, too"
        );
        assert_eq!(stats.callback_failures, 0);
        drop(ks);
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_snapshot_does_not_see_a_filter_at_work() {
    simulated(async |env| {
        let (db, ks, _) = open_sieved(&env).await;
        for n in 0..400 {
            ks.insert_async(format!("r{n:03}"), vec![b'v'; 100], SYNCED).await.unwrap();
        }
        let before = db.snapshot();
        let all = async |snapshot: &atoll_lsm::Snapshot| {
            let mut cursor = snapshot.cursor::<&[u8]>(&ks, ..);
            let mut keys = 0;
            while cursor.next().await.unwrap().is_some() {
                keys += 1;
            }
            for n in (0..400).step_by(57) {
                assert!(snapshot.get_async(&ks, format!("r{n:03}")).await.unwrap().is_some());
            }
            keys
        };
        db.compact_async().await.unwrap();
        assert_eq!(all(&before).await, 400, "it sees all, so nothing was shown");
        drop(before);
        // Snapshots that are opened while a compaction runs.
        let compaction = db.compact_async();
        let (mut taken, mut transactions) = (Vec::new(), Vec::new());
        let taking = async {
            for _ in 0..200 {
                taken.push(db.snapshot());
                transactions.push(db.optimistic_transaction());
                env.clock.sleep(Duration::from_micros(50)).await;
            }
        };
        let mut counted = Vec::new();
        futures_join(compaction, taking).await;
        for snapshot in &taken {
            let mut cursor = snapshot.cursor::<&[u8]>(&ks, ..);
            let mut keys = 0;
            while cursor.next().await.unwrap().is_some() {
                keys += 1;
            }
            counted.push(keys);
        }
        for transaction in &transactions {
            let mut cursor = transaction.cursor::<&[u8]>(&ks, ..);
            let mut keys = 0;
            while cursor.next().await.unwrap().is_some() {
                keys += 1;
            }
            counted.push(keys);
        }
        assert!(counted.iter().all(|keys| [0, 400].contains(keys)), "{counted:?}");
        assert_eq!(counted[0], 400, "the first was there before the filter");
        drop((taken, transactions));
        db.compact_async().await.unwrap();
        assert_eq!(rows(&ks).await, []);
    });
}

/// Runs two futures at once, to the end of both.
async fn futures_join(
    first: impl Future<Output = Result<(), Error>>,
    second: impl Future<Output = ()>,
) {
    let (mut first, mut second) = (Box::pin(first), Box::pin(second));
    let (mut done, mut also_done) = (false, false);
    std::future::poll_fn(|cx| {
        if !done && let std::task::Poll::Ready(result) = first.as_mut().poll(cx) {
            result.unwrap();
            done = true;
        }
        also_done = also_done || second.as_mut().poll(cx).is_ready();
        if done && also_done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
