//! Long strings are kept in parts; when one is gone, so is their space, whatever took it away.

use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashTiming, Sim};
use atoll_env::sync::timeout;
use atoll_lsm::driven::Direction;
use atoll_mvcc::keys::{PARTS, tree};
use atoll_resp::Value;

use crate::support::{Client, LoopNetwork, Trees, simple, start_open};

/// Longer than versions are kept, and than the pause between two looks.
const UNTIL_RECLAIMED: Duration = Duration::from_secs(9);

/// Counts the parts that are stored, of whatever object.
async fn parts(trees: &Trees) -> usize {
    let all = trees.lock().unwrap().clone();
    let (mut start, mut end) = (Vec::new(), Vec::new());
    tree::data(&mut start, &PARTS.to_be_bytes());
    tree::data(&mut end, &[0xff; 8]);
    let mut count = 0;
    for tree in all {
        let mut cursor = tree.scan_versions(&start, &end, u64::MAX, Direction::Forward);
        while let Some(row) = cursor.next().await.unwrap() {
            let keyspace = u32::from_be_bytes(row.key()[1..5].try_into().unwrap());
            count += usize::from(keyspace & PARTS != 0);
        }
    }
    count
}

/// Makes a long string that is kept in parts; false if the server is gone.
async fn make(client: &mut Client, key: &str) -> bool {
    let text = "0123456789abcdef".repeat(6_000);
    let made = client.ask(&["SETRANGE", key, "0", &text]).await;
    made == Some(Value::Int(text.len() as i64))
}

#[test]
fn the_space_of_a_long_string_comes_back_however_it_goes() {
    for seed in 0..4 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let (_running, trees) = start_open(&sim, &node, &network);
        let env: Env = clients.env();
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            assert!(make(&mut client, "keep").await);
            let of_one = parts(&trees).await;
            assert!(of_one > 5, "it is kept in parts");
            let ways: &[&[&str]] = &[
                &["DEL", "a"],
                &["UNLINK", "b"],
                &["GETDEL", "c"],
                &["SET", "d", "short"],
                &["PEXPIRE", "e", "100"],
                &["PEXPIRE", "f", "-1"],
                // Over another one, on other shards: its parts are copied and the old ones are dead.
                &["RENAME", "g", "h"],
                &["COPY", "i", "j", "REPLACE"],
                &["BITOP", "NOT", "k", "nothing"],
                &["MSET", "l", "1", "m", "2"],
                &["DEL", "h", "j", "i"],
                &["SET", "n", "v", "PX", "50"],
            ];
            for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"] {
                assert!(make(&mut client, key).await, "{key}");
            }
            assert_eq!(parts(&trees).await, 15 * of_one);
            for way in ways {
                let done = client.ask(way).await;
                assert!(!matches!(done, Some(Value::Error(_)) | None), "{way:?}: {done:?}");
            }
            // A transaction that makes one and drops it again.
            for args in [
                &["MULTI"][..],
                &["SETRANGE", "o", "200000", "x"],
                &["DEL", "o"],
                &["SETRANGE", "p", "200000", "x"],
                &["SET", "p", "short"],
                &["EXEC"],
            ] {
                client.ask(args).await;
            }
            env.clock.sleep(UNTIL_RECLAIMED).await;
            assert_eq!(parts(&trees).await, of_one, "seed {seed}: those of what is kept");
            assert_eq!(client.ask(&["STRLEN", "keep"]).await, Some(Value::Int(96_000)));
            let held = trees.lock().unwrap().clone();
            for tree in held {
                tree.flush().await.unwrap();
                tree.compact().await.unwrap();
            }
            let bytes: u64 =
                trees.lock().unwrap().iter().map(|tree| tree.stats().table_bytes()).sum();
            assert!(bytes < 200_000, "seed {seed}: {bytes} bytes for one string of 96,000");
        })
        .done();
    }
}

#[test]
fn a_power_cut_leaves_no_parts_that_nobody_names() {
    let mut crashes = 0;
    for n in 1..60 {
        let sim = Sim::new(n);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(n);
        let env: Env = clients.env();
        node.disk().crash_at(50 + 3 * n, CrashTiming::Any);
        let (_running, _) = start_open(&sim, &node, &network);
        sim.block_on(&clients, async {
            let story = async {
                let mut client = Client::connect(&env, &network).await;
                for round in 0..6 {
                    for key in ["a", "b", "c"] {
                        if !make(&mut client, key).await {
                            return;
                        }
                    }
                    let gone = match round % 3 {
                        0 => client.ask(&["DEL", "a", "b"]).await,
                        1 => client.ask(&["SET", "a", "short"]).await,
                        _ => client.ask(&["PEXPIRE", "b", "1"]).await,
                    };
                    if gone.is_none() {
                        return;
                    }
                    // Some cuts come while parts are removed.
                    env.clock.sleep(Duration::from_secs(2)).await;
                }
            };
            let _ = timeout(&*env.clock, Duration::from_secs(20), story).await;
        })
        .done();
        crashes += usize::from(!node.is_up());
        node.disk().cancel_crash();
        node.crash();
        node.restart();
        let (_running, trees) = start_open(&sim, &node, &network);
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            assert!(make(&mut client, "one").await);
            env.clock.sleep(UNTIL_RECLAIMED).await;
            let all = parts(&trees).await;
            let mut long = 0;
            for key in ["a", "b", "c", "one"] {
                let len = client.ask(&["STRLEN", key]).await;
                long += usize::from(len == Some(Value::Int(96_000)));
            }
            for key in ["a", "b", "c"] {
                assert_ne!(client.ask(&["DEL", key]).await, simple("OK"));
            }
            env.clock.sleep(UNTIL_RECLAIMED).await;
            let of_one = parts(&trees).await;
            assert!(of_one > 5, "crash at {n}");
            assert_eq!(all, long * of_one, "crash at {n}: {long} long strings");
        })
        .done();
    }
    assert!(crashes > 20, "only {crashes} runs crashed");
}
