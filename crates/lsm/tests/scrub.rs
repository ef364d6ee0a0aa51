//! Scrubs: what rots unread is found, at a bounded rate.

#[expect(dead_code, reason = "only its options and its runner are of use here")]
mod support;

use std::time::Duration;

use atoll_env::sim::Sim;
use atoll_lsm::{Database, Durability, KeyspaceOptions, Options, WriteOptions};
use support::{dir, options, run};

const BUFFERED: WriteOptions = WriteOptions { durability: Some(Durability::Buffered) };

#[test]
fn a_table_that_nobody_reads_is_scrubbed_and_put_into_quarantine() {
    let sim = Sim::new(1);
    let node = sim.node("n");
    let env = node.env();
    run(&sim, &node, "scrub", async {
        let options = Options {
            scrub_interval: Some(Duration::from_secs(30)),
            scrub_rate: 4 << 10,
            ..options(env.clone())
        };
        let db = Database::builder(dir()).options(options).open_async().await.unwrap();
        let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
        for n in 0..400u32 {
            let value = format!("{n} ").repeat(30);
            ks.insert_async(n.to_be_bytes(), value, BUFFERED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        let (tables, bytes) = {
            let last = db.stats().levels[6];
            (last.tables, last.bytes)
        };
        assert!(tables > 1);
        // It takes the time that its rate says, and finds nothing.
        let began = env.clock.now();
        let report = db.scrub_async().await.unwrap();
        assert!(report.is_sound() && report.tables == tables as u64, "{report}");
        let took = env.clock.now().since(began);
        assert!(took >= Duration::from_secs(bytes / (4 << 10) - 1), "{took:?} for {bytes}");
        let before = db.stats();
        assert!(before.scrubbed_bytes >= bytes && before.scrub_problems == 0);
        let files = node.disk().files();
        let table = files.iter().find(|f| f.ends_with(".sst")).unwrap();
        node.disk().corrupt(table, 100, 1);
        let mut waited = 0;
        while db.stats().quarantined == 0 {
            env.clock.sleep(Duration::from_secs(1)).await;
            waited += 1;
            assert!(waited < 90, "the schedule does not find it");
        }
        assert_eq!(db.stats().scrub_problems, 1);
        assert!(ks.get_async(0u32.to_be_bytes()).await.unwrap_err().is_corruption());
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_database_is_closed_in_the_middle_of_a_scrub() {
    let sim = Sim::new(2);
    let node = sim.node("n");
    let env = node.env();
    run(&sim, &node, "scrub", async {
        let interval = Some(Duration::from_millis(1));
        let options = Options { scrub_interval: interval, scrub_rate: 1, ..options(env.clone()) };
        let db = Database::builder(dir()).options(options).open_async().await.unwrap();
        let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
        ks.insert_async("a", "1", BUFFERED).await.unwrap();
        db.flush_async().await.unwrap();
        env.clock.sleep(Duration::from_secs(1)).await;
        let began = env.clock.now();
        db.close_async().await.unwrap();
        assert!(env.clock.now().since(began) < Duration::from_secs(1));
    });
}

#[test]
fn a_value_file_that_nobody_reads_is_scrubbed_and_told_of() {
    let sim = Sim::new(3);
    let node = sim.node("n");
    let env = node.env();
    run(&sim, &node, "scrub", async {
        let options = Options { separate_above: Some(50), ..options(env.clone()) };
        let db = Database::builder(dir()).options(options).open_async().await.unwrap();
        let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
        for n in 0..20u32 {
            ks.insert_async(n.to_be_bytes(), [n as u8; 60], BUFFERED).await.unwrap();
        }
        db.flush_async().await.unwrap();
        let report = db.scrub_async().await.unwrap();
        assert!(report.is_sound() && report.value_files == 1 && report.values == 20, "{report}");
        let files = node.disk().files();
        let file = files.iter().find(|f| f.ends_with(".val")).unwrap();
        // In a stored value: the header and the record header have 60 bytes.
        node.disk().corrupt(file, 62, 1);
        let report = db.scrub_async().await.unwrap();
        assert!(report.problems.len() == 1 && report.problems[0].is_corruption(), "{report}");
        assert_eq!((db.stats().scrub_problems, db.stats().quarantined), (1, 0));
        assert!(ks.get_async(0u32.to_be_bytes()).await.unwrap_err().is_corruption());
        assert!(ks.get_async(1u32.to_be_bytes()).await.unwrap().is_some(), "one value is lost");
        db.close_async().await.unwrap();
    });
}
