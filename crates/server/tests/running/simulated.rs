//! The server in the simulator: virtual time, a disk that crashes, streams that are cut anywhere.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{Client, LoopNetwork, bulk, error, simple, spawn, start, start_on_one_log};
use atoll_env::sim::{CrashTiming, Fault, FaultKind, OpKind, Sim};
use atoll_env::sync::{queue, timeout};
use atoll_redis::{Config, Durability};
use atoll_resp::Value;

#[test]
fn each_client_gets_its_replies_in_the_order_it_asked() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let (_stop, _) = start(&sim, &node, &network, Config::default());
        let env = clients.env();
        sim.block_on(&clients, async {
            let mut open = Vec::new();
            for _ in 0..5 {
                open.push(Client::connect(&env, &network).await);
            }
            for (number, client) in open.iter_mut().enumerate() {
                let mut bytes = Vec::new();
                for i in 0..50 {
                    atoll_resp::request(
                        &mut bytes,
                        &["APPEND", &format!("log:{number}"), &format!("{i},")],
                    );
                    atoll_resp::request(&mut bytes, &["INCR", "shared"]);
                }
                assert!(client.send(&bytes).await);
            }
            let mut counts = Vec::new();
            for client in &mut open {
                let mut len = 0;
                for i in 0..50 {
                    len += format!("{i},").len() as i64;
                    assert_eq!(client.receive().await, Some(Value::Int(len)), "seed {seed}");
                    let Some(Value::Int(count)) = client.receive().await else {
                        panic!("seed {seed}: INCR answers a number")
                    };
                    counts.push(count);
                }
            }
            counts.sort_unstable();
            assert_eq!(counts, (1..=250).collect::<Vec<_>>(), "seed {seed}: each number once");
        })
        .done();
    }
}

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut_at_any_disk_operation() {
    let mut crashes = 0;
    for n in 1..200 {
        let sim = Sim::new(n);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(n);
        let env = clients.env();
        node.disk().crash_at(n, CrashTiming::Any);
        let _running = start(&sim, &node, &network, Config::default());
        // The server may be gone before it listens.
        let acknowledged = sim
            .block_on(&clients, async {
                let mut acknowledged = BTreeMap::new();
                let connecting = Client::connect(&env, &network);
                let limit = Duration::from_secs(5);
                let Ok(mut client) = timeout(&*env.clock, limit, connecting).await else {
                    return acknowledged;
                };
                for round in 0..8 {
                    let mut bytes = Vec::new();
                    for key in 0..4 {
                        let (key, value) = (format!("{key}:{round}"), format!("{round}"));
                        atoll_resp::request(&mut bytes, &["SET", &key, &value]);
                    }
                    atoll_resp::request(&mut bytes, &["INCR", "rounds"]);
                    if !client.send(&bytes).await {
                        return acknowledged;
                    }
                    for key in 0..4 {
                        if client.receive().await != simple("OK") {
                            return acknowledged;
                        }
                        acknowledged.insert(format!("{key}:{round}"), format!("{round}"));
                    }
                    match client.receive().await {
                        Some(Value::Int(rounds)) => {
                            acknowledged.insert("rounds".to_owned(), rounds.to_string());
                        }
                        _ => return acknowledged,
                    }
                }
                acknowledged
            })
            .done();
        crashes += usize::from(!node.is_up());
        node.disk().cancel_crash();
        node.crash();
        node.restart();
        let _running = start(&sim, &node, &network, Config::default());
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            for (key, value) in &acknowledged {
                let found = client.ask(&["GET", key]).await;
                if key == "rounds" {
                    // One more round may have been committed without its answer.
                    let more = (value.parse::<i64>().unwrap() + 1).to_string();
                    assert!([bulk(value), bulk(&more)].contains(&found), "crash at {n}: {found:?}");
                } else {
                    assert_eq!(found, bulk(value), "crash at {n}: {key}");
                }
            }
        })
        .done();
    }
    assert!(crashes > 30, "only {crashes} runs crashed: the disk operations are not reached");
}

#[test]
fn a_transaction_is_there_wholly_or_not_after_a_power_cut_at_any_disk_operation() {
    let mut crashes = 0;
    for n in 1..150 {
        let sim = Sim::new(n);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(n);
        let env = clients.env();
        node.disk().crash_at(40 + n, CrashTiming::Any);
        let _running = start(&sim, &node, &network, Config::default());
        // Each round sets a bit in another fragment, counts, and exchanges the databases.
        let acknowledged = sim
            .block_on(&clients, async {
                let connecting = Client::connect(&env, &network);
                let limit = Duration::from_secs(5);
                let Ok(mut client) = timeout(&*env.clock, limit, connecting).await else {
                    return 0;
                };
                for round in 0..8 {
                    let bit = (200_000 + 40_000 * round).to_string();
                    for (args, answer) in [
                        (&["MULTI"][..], "OK"),
                        (&["SETBIT", "bits", &bit, "1"], "QUEUED"),
                        (&["INCR", "count"], "QUEUED"),
                        (&["SWAPDB", "0", "1"], "QUEUED"),
                    ] {
                        if client.ask(args).await != simple(answer) {
                            return round;
                        }
                    }
                    if !matches!(client.ask(&["EXEC"]).await, Some(Value::Array(_))) {
                        return round;
                    }
                }
                8
            })
            .done();
        crashes += usize::from(!node.is_up());
        node.disk().cancel_crash();
        node.crash();
        node.restart();
        let _running = start(&sim, &node, &network, Config::default());
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            let mut rounds = Vec::new();
            for db in ["0", "1"] {
                client.ask(&["SELECT", db]).await;
                let count = match client.ask(&["GET", "count"]).await {
                    Some(Value::Bulk(count)) => String::from_utf8(count).unwrap().parse().unwrap(),
                    Some(Value::Null) => 0,
                    other => panic!("crash at {n}: {other:?}"),
                };
                let bits = client.ask(&["BITCOUNT", "bits"]).await;
                assert_eq!(bits, Some(Value::Int(count)), "crash at {n}");
                rounds.push(count);
            }
            let total: i64 = rounds.iter().sum();
            assert!(
                (acknowledged..=acknowledged + 1).contains(&total),
                "crash at {n}: {acknowledged} acknowledged, {rounds:?} found"
            );
            // The rounds alternate; the database of the last one is number 1 now.
            assert_eq!(rounds, [total / 2, total - total / 2], "crash at {n}");
        })
        .done();
    }
    assert!(crashes > 30, "only {crashes} runs crashed: the disk operations are not reached");
}

#[test]
fn a_transaction_that_may_be_lost_is_lost_wholly_where_its_shards_share_a_log() {
    const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let (mut crashes, mut lost) = (0, 0);
    for n in 1..200 {
        let sim = Sim::new(n);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(n);
        let env = clients.env();
        node.disk().crash_at(40 + n, CrashTiming::Any);
        let config = || Config { durability: Durability::Buffered, ..Config::default() };
        let _running = start_on_one_log(&sim, &node, &network, config());
        // Each round gives all keys its number, once by MSET, once by MULTI with a read in it.
        let acknowledged = sim
            .block_on(&clients, async {
                let connecting = Client::connect(&env, &network);
                let limit = Duration::from_secs(5);
                let Ok(mut client) = timeout(&*env.clock, limit, connecting).await else {
                    return 0;
                };
                for round in 1..60i64 {
                    let number = round.to_string();
                    if round % 2 == 0 {
                        let pairs = KEYS.iter().flat_map(|key| [*key, &number]);
                        let args: Vec<&str> = ["MSET"].into_iter().chain(pairs).collect();
                        if client.ask(&args).await != simple("OK") {
                            return round - 1;
                        }
                        continue;
                    }
                    client.ask(&["MULTI"]).await;
                    for key in KEYS {
                        client.ask(&["INCRBY", key, "0"]).await;
                        client.ask(&["SET", key, &number]).await;
                    }
                    if !matches!(client.ask(&["EXEC"]).await, Some(Value::Array(_))) {
                        return round - 1;
                    }
                }
                59
            })
            .done();
        crashes += usize::from(!node.is_up());
        node.disk().cancel_crash();
        node.crash();
        node.restart();
        let _running = start_on_one_log(&sim, &node, &network, config());
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            let args: Vec<&str> = ["MGET"].into_iter().chain(KEYS).collect();
            let Some(Value::Array(found)) = client.ask(&args).await else {
                panic!("crash at {n}: MGET is not answered");
            };
            assert!(found.iter().all(|value| *value == found[0]), "crash at {n}: {found:?}");
            let round = match &found[0] {
                Value::Bulk(number) => std::str::from_utf8(number).unwrap().parse().unwrap(),
                _ => 0,
            };
            assert!(round <= acknowledged + 1, "crash at {n}: {round} of {acknowledged}");
            lost += usize::from(round < acknowledged);
        })
        .done();
    }
    assert!(crashes > 30, "only {crashes} runs crashed: the disk operations are not reached");
    assert!(lost > 30, "only {lost} runs lost something: it was synced, and nothing is shown");
}

#[test]
fn questions_about_databases_inside_of_multi_see_what_came_before_them() {
    let sim = Sim::new(5);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(5);
    let _running = start(&sim, &node, &network, Config::default());
    let env = clients.env();
    sim.block_on(&clients, async {
        let mut client = Client::connect(&env, &network).await;
        assert_eq!(client.ask(&["MSET", "a", "1", "b", "2", "c", "3"]).await, simple("OK"));
        let commands: &[(&[&str], Value)] = &[
            (&["DBSIZE"], Value::Int(3)),
            (&["SET", "d", "4", "PX", "60000"], Value::Simple(b"OK".to_vec())),
            (&["DBSIZE"], Value::Int(4)),
            (&["DEL", "a", "b"], Value::Int(2)),
            (&["SET", "a", "5"], Value::Simple(b"OK".to_vec())),
            (&["DEL", "a"], Value::Int(1)),
            (&["DBSIZE"], Value::Int(2)),
            (&["DEL", "c"], Value::Int(1)),
            (&["KEYS", "*"], Value::Array(vec![Value::Bulk(b"d".to_vec())])),
            (&["RANDOMKEY"], Value::Bulk(b"d".to_vec())),
            (&["KEYS", "[ab"], Value::Array(Vec::new())),
            (
                &["SCAN", "0", "COUNT", "100"],
                Value::Array(vec![
                    Value::Bulk(b"0".to_vec()),
                    Value::Array(vec![Value::Bulk(b"d".to_vec())]),
                ]),
            ),
            (&["SWAPDB", "0", "1"], Value::Simple(b"OK".to_vec())),
            (&["DBSIZE"], Value::Int(0)),
            (&["SET", "e", "6"], Value::Simple(b"OK".to_vec())),
            (&["DBSIZE"], Value::Int(1)),
            (&["FLUSHDB"], Value::Simple(b"OK".to_vec())),
            (&["DBSIZE"], Value::Int(0)),
            (&["RANDOMKEY"], Value::Null),
        ];
        client.ask(&["MULTI"]).await;
        for (args, _) in commands {
            assert_eq!(client.ask(args).await, simple("QUEUED"), "{args:?}");
        }
        let Some(Value::Array(replies)) = client.ask(&["EXEC"]).await else { panic!("no replies") };
        for ((args, expected), reply) in commands.iter().zip(&replies) {
            assert_eq!(reply, expected, "{args:?}");
        }
        assert_eq!(client.ask(&["DBSIZE"]).await, Some(Value::Int(0)));
        client.ask(&["SELECT", "1"]).await;
        assert_eq!(client.ask(&["DBSIZE"]).await, Some(Value::Int(1)));
        // One whose watched key has changed answers no question.
        client.ask(&["WATCH", "d"]).await;
        client.ask(&["SET", "d", "other"]).await;
        client.ask(&["MULTI"]).await;
        client.ask(&["DBSIZE"]).await;
        assert_eq!(client.ask(&["EXEC"]).await, Some(Value::Null));
    })
    .done();
}

#[test]
fn counting_and_adding_a_key_in_one_transaction_never_counts_the_same_twice() {
    const CLIENTS: usize = 5;
    const ROUNDS: usize = 8;
    for seed in 0..6 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let _running = start(&sim, &node, &network, Config::default());
        let env = clients.env();
        let counted = sim
            .block_on(&clients, async {
                let (sender, mut counted) = queue();
                for number in 0..CLIENTS {
                    let (env, network, sender) = (env.clone(), network.clone(), sender.clone());
                    let tasks = env.tasks.clone();
                    let adding = async move {
                        let mut client = Client::connect(&env, &network).await;
                        for round in 0..ROUNDS {
                            let key = format!("{number}:{round}");
                            client.ask(&["MULTI"]).await;
                            client.ask(&["DBSIZE"]).await;
                            client.ask(&["SET", &key, "x"]).await;
                            client.ask(&["KEYS", "*"]).await;
                            let Some(Value::Array(replies)) = client.ask(&["EXEC"]).await else {
                                panic!("seed {seed}: EXEC is refused");
                            };
                            let (Value::Int(before), Value::Array(keys)) =
                                (&replies[0], &replies[2])
                            else {
                                panic!("seed {seed}: {replies:?}");
                            };
                            assert_eq!(keys.len() as i64, before + 1, "seed {seed}");
                            let _ = sender.send(*before);
                        }
                    };
                    tasks.spawn_local("adds", Box::pin(adding));
                }
                let mut all = Vec::new();
                while all.len() < CLIENTS * ROUNDS {
                    all.push(counted.recv().await.expect("the clients go on"));
                }
                all
            })
            .done();
        let mut counted: Vec<i64> = counted;
        counted.sort_unstable();
        let expected: Vec<i64> = (0..(CLIENTS * ROUNDS) as i64).collect();
        assert_eq!(counted, expected, "seed {seed}");
    }
}

#[test]
fn when_a_sync_fails_no_write_is_acknowledged_any_more() {
    let sim = Sim::new(1);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(1);
    let (_stop, _) = start(&sim, &node, &network, Config::default());
    let env = clients.env();
    sim.block_on(&clients, async {
        let mut client = Client::connect(&env, &network).await;
        assert_eq!(client.ask(&["SET", "k", "old"]).await, simple("OK"));
        node.disk().inject(Fault::new(FaultKind::SyncLoses).on(OpKind::Sync).sticky());
        // The first is in the log's hands when it fails; the second is not even taken.
        for code in [&b"UNKNOWN "[..], b"MISCONF "] {
            let Some(Value::Error(text)) = client.ask(&["SET", "k", "new"]).await else {
                panic!("a write that is not on the disk is an error")
            };
            assert!(text.starts_with(code), "{}", text.escape_ascii());
        }
        assert_eq!(client.ask(&["PING"]).await, simple("PONG"));
    })
    .done();
}

#[test]
fn half_a_request_is_not_waited_for_longer_than_thirty_seconds() {
    let sim = Sim::new(2);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(2);
    let (_stop, _) = start(&sim, &node, &network, Config::default());
    let env = clients.env();
    sim.block_on(&clients, async {
        let (mut slow, mut idle) =
            (Client::connect(&env, &network).await, Client::connect(&env, &network).await);
        assert_eq!(idle.ask(&["PING"]).await, simple("PONG"));
        assert_eq!(slow.ask(&["PING"]).await, simple("PONG"));
        // A byte now and then does not help.
        for byte in b"*2\r\n$3\r\nGE" {
            assert!(slow.send(&[*byte]).await);
            env.clock.sleep(Duration::from_secs(2)).await;
        }
        let waiting = timeout(&*env.clock, Duration::from_secs(9), slow.receive()).await;
        assert!(waiting.is_err(), "still within its time");
        let late = "ERR the request did not arrive in time; send it again";
        assert_eq!(slow.receive().await, error(late));
        assert_eq!(slow.receive().await, None, "and closed");
        env.clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(idle.ask(&["PING"]).await, simple("PONG"), "silence alone is allowed");
    })
    .done();
}

#[test]
fn strangers_have_ten_seconds_and_idle_clients_as_long_as_configured() {
    let sim = Sim::new(3);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(3);
    let config = Config { requirepass: b"secret".to_vec(), timeout_s: 60, ..Config::default() };
    let (_stop, _) = start(&sim, &node, &network, config);
    let env = clients.env();
    sim.block_on(&clients, async {
        let (mut stranger, mut client) =
            (Client::connect(&env, &network).await, Client::connect(&env, &network).await);
        assert_eq!(client.ask(&["AUTH", "secret"]).await, simple("OK"));
        assert_eq!(stranger.receive().await, error("NOAUTH no authentication within 10 seconds"));
        assert_eq!(stranger.receive().await, None);
        env.clock.sleep(Duration::from_secs(40)).await;
        assert_eq!(client.ask(&["PING"]).await, simple("PONG"));
        env.clock.sleep(Duration::from_secs(62)).await;
        assert_eq!(client.ask(&["PING"]).await, None);
    })
    .done();
}

#[test]
fn one_connection_too_many_is_told_so() {
    let sim = Sim::new(4);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(4);
    let (_stop, _) = start(&sim, &node, &network, Config { maxclients: 2, ..Config::default() });
    let env = clients.env();
    sim.block_on(&clients, async {
        let mut first = Client::connect(&env, &network).await;
        let mut second = Client::connect(&env, &network).await;
        assert_eq!(first.ask(&["PING"]).await, simple("PONG"));
        assert_eq!(second.ask(&["CLIENT", "ID"]).await, Some(Value::Int(2)));
        let mut third = Client::connect(&env, &network).await;
        assert_eq!(third.receive().await, error("ERR max number of clients reached"));
        assert_eq!(third.receive().await, None);
        drop(third);
        // A place that is given up is free again.
        assert_eq!(first.ask(&["CLIENT", "KILL", "ID", "2"]).await, Some(Value::Int(1)));
        assert_eq!(second.receive().await, None);
        drop(second);
        env.clock.sleep(Duration::from_secs(1)).await;
        let mut fourth = Client::connect(&env, &network).await;
        assert_eq!(fourth.ask(&["PING"]).await, simple("PONG"));
    })
    .done();
}

#[test]
fn a_client_that_does_not_read_is_not_served_until_it_does() {
    let sim = Sim::new(5);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(5);
    let (_stop, _) = start(&sim, &node, &network, Config::default());
    let env = clients.env();
    sim.block_on(&clients, async {
        let mut greedy = Client::connect(&env, &network).await;
        let mut modest = Client::connect(&env, &network).await;
        let value = "v".repeat(100_000);
        assert_eq!(greedy.ask(&["SET", "k", &value]).await, simple("OK"));
        let mut requests = Vec::new();
        for _ in 0..200 {
            atoll_resp::request(&mut requests, &["GET", "k"]);
        }
        assert!(greedy.send(&requests).await);
        env.clock.sleep(Duration::from_secs(1)).await;
        // 20 MB were asked for; what the server holds for it is near the soft limit.
        let Some(Value::Bulk(info)) = modest.ask(&["INFO", "commandstats"]).await else {
            panic!("INFO answers a text")
        };
        let info = String::from_utf8(info).unwrap();
        let calls = info.split("cmdstat_get:calls=").nth(1).unwrap().split(',').next().unwrap();
        assert!(calls.parse::<u32>().unwrap() < 40, "{calls} of 200 executed");
        for _ in 0..200 {
            assert_eq!(greedy.receive().await, bulk(&value));
        }
    })
    .done();
}

#[test]
fn a_client_that_closes_its_side_gets_its_replies_first() {
    let sim = Sim::new(6);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(6);
    let (_stop, _) = start(&sim, &node, &network, Config::default());
    let env = clients.env();
    sim.block_on(&clients, async {
        let mut client = Client::connect(&env, &network).await;
        assert!(client.send(b"SET k v\r\nGET k\r\nGET half").await);
        client.finish().await;
        assert_eq!(client.receive().await, simple("OK"));
        assert_eq!(client.receive().await, bulk("v"));
        assert_eq!(client.receive().await, None);
    })
    .done();
}

#[test]
fn a_stop_does_not_wait_for_clients_that_only_stay_connected() {
    let sim = Sim::new(7);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(7);
    let (stop, ended) = start(&sim, &node, &network, Config::default());
    let env = clients.env();
    sim.block_on(&clients, async {
        let mut client = Client::connect(&env, &network).await;
        assert_eq!(client.ask(&["PING"]).await, simple("PONG"));
        let asked = env.clock.now();
        let _ = stop.send(());
        ended.await.expect("the server ends");
        let took = env.clock.now().since(asked);
        assert!(took < Duration::from_secs(2), "it took {took:?}");
        assert_eq!(client.receive().await, None);
    })
    .done();
}

#[test]
fn a_stop_executes_what_has_arrived_and_closes() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let (stop, ended) = start(&sim, &node, &network, Config::default());
        let env = clients.env();
        let (replies, restarted) = sim
            .block_on(&clients, async {
                let mut client = Client::connect(&env, &network).await;
                assert_eq!(client.ask(&["PING"]).await, simple("PONG"));
                let mut bytes = Vec::new();
                for _ in 0..300 {
                    atoll_resp::request(&mut bytes, &["INCR", "n"]);
                }
                assert!(client.send(&bytes).await);
                let _ = stop.send(());
                let mut replies = 0;
                while let Some(reply) = client.receive().await {
                    replies += 1;
                    assert_eq!(reply, Value::Int(replies));
                }
                ended.await.expect("the server ends");
                assert!(network.open(crate::support::address()).is_err(), "nobody listens");
                let _running = spawn(&node, &network, Config::default());
                let mut client = Client::connect(&env, &network).await;
                (replies, client.ask(&["GET", "n"]).await)
            })
            .done();
        let expected = if replies == 0 { Some(Value::Null) } else { bulk(&replies.to_string()) };
        assert_eq!(restarted, expected, "seed {seed}: executed means answered, and the reverse");
    }
}
