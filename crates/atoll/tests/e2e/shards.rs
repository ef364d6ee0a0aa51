//! The commands about shards, as an operator types them: while clients write, and on what they leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use redis::Commands;
use rustix::process::Signal;

use crate::harness::{Server, run};

/// Runs a command that must succeed; returns what it printed.
fn printed(args: &[&str]) -> String {
    let output = run(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn rows(table: &str) -> usize {
    table.lines().count() - 1
}

#[test]
fn shards_are_doubled_under_load_and_stay_so_in_the_stopped_directory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &["--stores", "2", "--cores", "2"]);
    let http = server.http.unwrap().to_string();
    let before = rows(&printed(&["shards", "--http", &http]));
    assert!(before.is_power_of_two(), "{before} shards at first");

    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (mut client, stop) = (server.client(), stop.clone());
            std::thread::spawn(move || {
                let mut written = 0u64;
                let mut slowest = std::time::Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let sum: u64 = client.incr(format!("k:{writer}:{}", written % 50), 1).unwrap();
                    slowest = slowest.max(begun.elapsed());
                    assert_eq!(sum, written / 50 + 1, "an increment is lost or doubled");
                    written += 1;
                }
                (written, slowest)
            })
        })
        .collect();
    for doubling in 1..=3 {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let said = printed(&["reshard", "double", "--http", &http]);
        let expected = before << (doubling - 1);
        assert_eq!(said, format!("{expected} shards were split\n"));
    }
    stop.store(true, Ordering::Relaxed);
    let mut total = 0;
    for writer in writers {
        let (written, slowest) = writer.join().unwrap();
        assert!(written > 0);
        total += written;
        println!("a writer's slowest command took {slowest:?} while shards were split");
    }
    assert_eq!(rows(&printed(&["shards", "--http", &http])), before * 8);
    let keys: u64 = redis::cmd("DBSIZE").query(&mut server.client()).unwrap();
    assert_eq!(keys, total.min(200), "every key once");

    assert!(server.stop(Signal::TERM).success());
    let directory = data.to_str().unwrap();
    let stopped = printed(&["shards", "--data", directory]);
    assert_eq!(rows(&stopped), before * 8, "{stopped}");
    let counted: u64 = stopped
        .lines()
        .skip(1)
        .map(|line| {
            // The range has a varying number of words; the keys are the sixth from the end.
            let words: Vec<&str> = line.split_whitespace().collect();
            words[words.len() - 6].parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(counted, keys, "{stopped}");

    let server = Server::start(&data, &[]);
    let http = server.http.unwrap().to_string();
    assert_eq!(rows(&printed(&["shards", "--http", &http])), before * 8);
    let sum: u64 = server.client().get::<_, u64>("k:0:0").unwrap();
    assert!(sum > 0);
}

#[test]
fn who_asks_for_shards_in_vain_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nothing");
    for (args, part) in [
        (&["shards", "--http", "127.0.0.1:1"][..], "check the address given with --http"),
        (&["shards", "--data", missing.to_str().unwrap()], "no data directory"),
        (&["reshard", "double", "--http", "127.0.0.1:1"], "check the address given with --http"),
    ] {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(said.contains(part) && said.lines().count() == 1, "{args:?}: {said}");
    }
    let server = Server::start(&dir.path().join("data"), &["--requirepass", "secret"]);
    let http = server.http.unwrap().to_string();
    let output = run(&["shards", "--http", &http]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("give it with --password"), "{said}");
    let table = printed(&["shards", "--http", &http, "--password", "secret"]);
    assert!(rows(&table) > 0);
}
