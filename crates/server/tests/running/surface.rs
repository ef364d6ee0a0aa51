//! What a client can ask the server as a whole, whichever core it is connected to; and what a
//! connection chooses for its reads and writes. In the simulator, with one core or two.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, DiskOptions, Fault, FaultKind, Node, OpKind, Sim};
use atoll_env::sync::timeout;
use atoll_redis::{Config, Durability};
use atoll_resp::Value;

use crate::support::{Client, LoopNetwork, bulk, error, simple, start, start_on_one_log};

/// Everything that a story happens in.
struct Stage {
    node: Node,
    env: Env,
    network: LoopNetwork,
}

impl Stage {
    async fn client(&self) -> Client {
        Client::connect(&self.env, &self.network).await
    }

    async fn sleep(&self, ms: u64) {
        self.env.clock.sleep(Duration::from_millis(ms)).await;
    }

    fn now_ms(&self) -> u64 {
        self.env.clock.now().0 / 1_000_000
    }

    /// Syncs take very long from now on.
    fn slow_syncs(&self) {
        self.node.disk().inject(Fault::new(FaultKind::Slow).on(OpKind::Sync).sticky());
    }
}

/// Plays a story with a server for some seeds: some have one core, some two.
fn play<F: Future<Output = ()>>(config: &Config, story: impl Fn(Stage) -> F) {
    for seed in 0..6 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let (_stop, _) = start(&sim, &node, &network, config.clone());
        let stage = Stage { node: node.clone(), env: clients.env(), network };
        sim.block_on(&clients, story(stage)).done();
    }
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::Bulk(bytes)) => String::from_utf8(bytes).unwrap(),
        other => panic!("a text was expected, not {other:?}"),
    }
}

#[test]
fn clients_of_all_cores_are_listed_and_killed() {
    play(&Config::default(), async |stage| {
        let mut clients = Vec::new();
        for number in 0..5 {
            let mut client = stage.client().await;
            let name = format!("client-{number}");
            assert_eq!(client.ask(&["CLIENT", "SETNAME", &name]).await, simple("OK"));
            clients.push(client);
        }
        for asker in [0, 1] {
            let list = text(clients[asker].ask(&["CLIENT", "LIST"]).await);
            let names: Vec<&str> =
                list.lines().map(|line| line.split(' ').nth(3).unwrap()).collect();
            let expected: Vec<String> = (0..5).map(|n| format!("name=client-{n}")).collect();
            assert_eq!(names, expected, "by id, and so in the order of their coming");
            let info = text(clients[asker].ask(&["INFO", "clients"]).await);
            assert!(info.contains("connected_clients:5\r\n"), "{info}");
        }
        let Some(Value::Int(id)) = clients[3].ask(&["CLIENT", "ID"]).await else { panic!("an id") };
        let kill = ["CLIENT", "KILL", "ID", &id.to_string()];
        assert_eq!(clients[0].ask(&kill).await, Some(Value::Int(1)));
        assert_eq!(clients[3].ask(&["PING"]).await, None, "closed");
        assert_eq!(clients[0].ask(&kill).await, Some(Value::Int(0)), "once");
        // Everybody else; the one who asks is spared.
        let killed = clients[1].ask(&["CLIENT", "KILL", "TYPE", "normal"]).await;
        assert_eq!(killed, Some(Value::Int(3)));
        assert_eq!(clients[1].ask(&["PING"]).await, simple("PONG"));
        assert_eq!(clients[0].ask(&["PING"]).await, None);
    });
}

#[test]
fn settings_statistics_and_slow_commands_are_the_servers_and_not_a_cores() {
    play(&Config::default(), async |stage| {
        let (mut one, mut two) = (stage.client().await, stage.client().await);
        for client in [&mut one, &mut two] {
            assert_eq!(client.ask(&["PING"]).await, simple("PONG"));
        }
        let set = ["CONFIG", "SET", "slowlog-log-slower-than", "0", "requirepass", "secret"];
        assert_eq!(one.ask(&set).await, simple("OK"));
        let mut three = stage.client().await;
        let mut four = stage.client().await;
        for stranger in [&mut three, &mut four] {
            let refused = error("NOAUTH Authentication required.");
            assert_eq!(stranger.ask(&["GET", "k"]).await, refused);
        }
        assert_eq!(two.ask(&["SLOWLOG", "RESET"]).await, simple("OK"));
        assert_eq!(one.ask(&["SET", "k", "v"]).await, simple("OK"));
        assert_eq!(two.ask(&["GET", "k"]).await, bulk("v"));
        let Some(Value::Array(entries)) = two.ask(&["SLOWLOG", "GET"]).await else {
            panic!("the slow log is an array")
        };
        let commands: Vec<Value> = entries
            .into_iter()
            .map(|entry| match entry {
                Value::Array(fields) => fields[3].clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        let words = |words: &[&str]| {
            Value::Array(words.iter().map(|word| Value::Bulk((*word).into())).collect())
        };
        assert!(commands.contains(&words(&["SET", "k", "v"])), "{commands:?}");
        assert!(commands.contains(&words(&["GET", "k"])), "{commands:?}");
        let stats = text(one.ask(&["INFO", "commandstats", "errorstats"]).await);
        assert!(stats.contains("cmdstat_get:calls=1,") && stats.contains("cmdstat_set:calls=1,"));
        assert!(stats.contains("errorstat_NOAUTH:count=2\r\n"), "{stats}");
        assert_eq!(two.ask(&["CONFIG", "RESETSTAT"]).await, simple("OK"));
        let stats = text(one.ask(&["INFO", "commandstats", "errorstats"]).await);
        assert!(!stats.contains("cmdstat_set") && !stats.contains("errorstat"), "{stats}");
    });
}

#[test]
fn a_scan_goes_on_at_any_connection() {
    play(&Config::default(), async |stage| {
        let mut clients = [stage.client().await, stage.client().await, stage.client().await];
        let mut bytes = Vec::new();
        for i in 0..200 {
            // Many keys of one slot among them: a cursor has to know where within it.
            let key = if i % 2 == 0 { format!("{{same}}{i}") } else { format!("key-{i}") };
            atoll_resp::request(&mut bytes, &["SET", &key, "v"]);
        }
        assert!(clients[0].send(&bytes).await);
        for _ in 0..200 {
            assert_eq!(clients[0].receive().await, simple("OK"));
        }
        let (mut cursor, mut found, mut turn) = ("0".to_owned(), Vec::new(), 0);
        loop {
            turn += 1;
            let scanned = clients[turn % 3].ask(&["SCAN", &cursor, "COUNT", "7"]).await;
            let Some(Value::Array(mut parts)) = scanned else { panic!("{scanned:?}") };
            let Some(Value::Array(keys)) = parts.pop() else { panic!("keys") };
            found.extend(keys.into_iter().map(|key| text(Some(key))));
            cursor = text(parts.pop());
            if cursor == "0" {
                break;
            }
        }
        let distinct: BTreeSet<&String> = found.iter().collect();
        assert_eq!((found.len(), distinct.len()), (200, 200), "each key once");
    });
}

#[test]
fn keys_count_as_soon_as_their_transaction_is_acknowledged() {
    play(&Config::default(), async |stage| {
        let mut client = stage.client().await;
        for round in 0..20 {
            assert_eq!(client.ask(&["FLUSHALL"]).await, simple("OK"));
            let mset = ["MSET", "a", "1", "b", "2", "c", "3", "d", "4"];
            assert_eq!(client.ask(&mset).await, simple("OK"));
            assert_eq!(client.ask(&["DBSIZE"]).await, Some(Value::Int(4)), "round {round}");
        }
    });
}

#[test]
fn a_pause_holds_commands_back_on_all_cores_until_it_ends() {
    play(&Config::default(), async |stage| {
        let (mut one, mut two) = (stage.client().await, stage.client().await);
        assert_eq!(two.ask(&["SET", "k", "v"]).await, simple("OK"));
        let began = stage.now_ms();
        assert_eq!(one.ask(&["CLIENT", "PAUSE", "700"]).await, simple("OK"));
        assert_eq!(two.ask(&["PING"]).await, simple("PONG"));
        let took = stage.now_ms() - began;
        assert!((700..900).contains(&took), "{took} ms");
        // Only what may write waits, and the end can be called from anywhere.
        assert_eq!(one.ask(&["CLIENT", "PAUSE", "60000", "WRITE"]).await, simple("OK"));
        assert_eq!(two.ask(&["GET", "k"]).await, bulk("v"));
        let mut queued = stage.client().await;
        for (args, answer) in
            [(&["MULTI"][..], "OK"), (&["GET", "k"], "QUEUED"), (&["ECHO", "x"], "QUEUED")]
        {
            assert_eq!(queued.ask(args).await, simple(answer));
        }
        assert!(matches!(queued.ask(&["EXEC"]).await, Some(Value::Array(_))), "it only reads");
        let began = stage.now_ms();
        let mut bytes = Vec::new();
        atoll_resp::request(&mut bytes, &["SET", "k", "w"]);
        atoll_resp::request(&mut bytes, &["GET", "k"]);
        assert!(two.send(&bytes).await);
        stage.sleep(3_000).await;
        assert_eq!(one.ask(&["GET", "k"]).await, bulk("v"), "not yet");
        assert_eq!(one.ask(&["CLIENT", "UNPAUSE"]).await, simple("OK"));
        assert_eq!(two.receive().await, simple("OK"));
        assert_eq!(two.receive().await, bulk("w"), "in its order");
        assert!(stage.now_ms() - began < 4_000);
    });
}

#[test]
fn debug_sleep_holds_one_connection_and_expiry_can_be_stopped() {
    play(&Config::default(), async |stage| {
        let (mut one, mut two) = (stage.client().await, stage.client().await);
        let began = stage.now_ms();
        let mut bytes = Vec::new();
        atoll_resp::request(&mut bytes, &["DEBUG", "SLEEP", "0.5"]);
        atoll_resp::request(&mut bytes, &["PING"]);
        assert!(one.send(&bytes).await);
        assert_eq!(two.ask(&["PING"]).await, simple("PONG"));
        assert!(stage.now_ms() - began < 400, "others go on");
        assert_eq!(one.receive().await, simple("OK"));
        assert!(stage.now_ms() - began >= 500);
        assert_eq!(one.receive().await, simple("PONG"));
        // Hidden at its deadline, removed when that is allowed again.
        let stop = ["DEBUG", "SET-ACTIVE-EXPIRE", "0"];
        assert_eq!(one.ask(&stop).await, simple("OK"));
        assert_eq!(two.ask(&["SET", "k", "v", "PX", "200"]).await, simple("OK"));
        stage.sleep(1_000).await;
        assert_eq!(two.ask(&["GET", "k"]).await, Some(Value::Null));
        let expired = async |client: &mut Client| {
            let stats = text(client.ask(&["INFO", "stats"]).await);
            stats.contains("expired_keys:1\r\n")
        };
        assert!(!expired(&mut one).await);
        assert_eq!(two.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "1"]).await, simple("OK"));
        stage.sleep(1_000).await;
        assert!(expired(&mut one).await);
    });
}

#[test]
fn a_strict_read_waits_for_what_is_in_flight_and_a_fast_one_does_not() {
    play(&Config::default(), async |stage| {
        let (mut writer, mut fast) = (stage.client().await, stage.client().await);
        let mut strict = stage.client().await;
        assert_eq!(strict.ask(&["CLIENT", "CONSISTENCY", "STRICT"]).await, simple("OK"));
        assert_eq!(writer.ask(&["MSET", "k", "old", "l", "old"]).await, simple("OK"));
        for client in [&mut fast, &mut strict] {
            assert_eq!(client.ask(&["GET", "k"]).await, bulk("old"));
        }
        // The background is done with the transaction: the next sync is of the write alone.
        stage.sleep(500).await;
        stage.slow_syncs();
        let mut bytes = Vec::new();
        atoll_resp::request(&mut bytes, &["SET", "k", "new"]);
        assert!(writer.send(&bytes).await);
        stage.sleep(5).await;
        // The write is logged and not synced: it may still be lost, so nobody may have seen it.
        assert_eq!(fast.ask(&["GET", "k"]).await, bulk("old"), "just before it");
        assert_eq!(strict.ask(&["GET", "k"]).await, bulk("new"), "after it, as it came later");
        assert_eq!(writer.receive().await, simple("OK"));
        // Over several shards too, and after one's own writes.
        let both = Some(Value::Array(vec![Value::Bulk("new".into()), Value::Bulk("old".into())]));
        assert_eq!(strict.ask(&["MGET", "k", "l"]).await, both);
        let mut bytes = Vec::new();
        for args in [&["SET", "k", "own"][..], &["GET", "k"], &["INCR", "n"], &["GET", "n"]] {
            atoll_resp::request(&mut bytes, args);
        }
        assert!(strict.send(&bytes).await);
        assert_eq!(strict.receive().await, simple("OK"));
        assert_eq!(strict.receive().await, bulk("own"));
        assert_eq!(strict.receive().await, Some(Value::Int(1)));
        assert_eq!(strict.receive().await, bulk("1"));
    });
}

#[test]
fn a_stale_read_is_within_its_bound_and_waits_for_nothing() {
    play(&Config::default(), async |stage| {
        let (mut writer, mut stale) = (stage.client().await, stage.client().await);
        let choose = ["CLIENT", "CONSISTENCY", "STALE", "1000"];
        assert_eq!(stale.ask(&choose).await, simple("OK"));
        assert_eq!(writer.ask(&["MSET", "k", "1", "l", "1"]).await, simple("OK"));
        let one = |text: &str| Value::Bulk(text.into());
        let pair = |k: &str, l: &str| Some(Value::Array(vec![one(k), one(l)]));
        // From the first question on the past is remembered.
        assert_eq!(stale.ask(&["GET", "k"]).await, bulk("1"));
        stage.sleep(1_500).await;
        assert_eq!(writer.ask(&["MSET", "k", "2", "l", "2"]).await, simple("OK"));
        assert_eq!(stale.ask(&["GET", "k"]).await, bulk("1"), "as it was a second ago");
        assert_eq!(stale.ask(&["MGET", "k", "l"]).await, pair("1", "1"), "both as of one moment");
        stage.sleep(1_100).await;
        assert_eq!(stale.ask(&["GET", "k"]).await, bulk("2"), "no older than a second");
        assert_eq!(stale.ask(&["MGET", "k", "l"]).await, pair("2", "2"));
        // Intents and locks of a transaction that takes long do not hold it up.
        stage.slow_syncs();
        let mut bytes = Vec::new();
        atoll_resp::request(&mut bytes, &["MSET", "k", "3", "l", "3"]);
        assert!(writer.send(&bytes).await);
        stage.sleep(5).await;
        let began = stage.now_ms();
        assert_eq!(stale.ask(&["GET", "k"]).await, bulk("2"));
        assert_eq!(stale.ask(&["MGET", "k", "l"]).await, pair("2", "2"));
        assert!(stage.now_ms() - began < 20, "it waited {} ms", stage.now_ms() - began);
        assert_eq!(writer.receive().await, simple("OK"));
        // What was flushed a second ago is gone.
        assert_eq!(writer.ask(&["FLUSHDB"]).await, simple("OK"));
        stage.sleep(1_100).await;
        assert_eq!(stale.ask(&["GET", "k"]).await, Some(Value::Null));
    });
}

#[test]
fn a_connections_durability_decides_what_its_writes_wait_for() {
    play(&Config::default(), async |stage| {
        let mut client = stage.client().await;
        stage.sleep(2_000).await;
        let took = async |client: &mut Client, key: &str| {
            let began = stage.now_ms();
            assert_eq!(client.ask(&["SET", key, "v"]).await, simple("OK"));
            stage.now_ms() - began
        };
        stage.slow_syncs();
        let synced = took(&mut client, "a").await;
        assert!(synced >= 10, "a sync takes {synced} ms");
        for mode in ["buffered", "interval"] {
            assert_eq!(client.ask(&["CLIENT", "DURABILITY", mode]).await, simple("OK"));
            let took = took(&mut client, mode).await;
            assert!(took < 5, "{mode} took {took} ms");
            // Another connection is not concerned.
            let mut other = stage.client().await;
            assert!(self::text(other.ask(&["CLIENT", "DURABILITY"]).await) == "synced");
            stage.sleep(3_000).await;
        }
        assert_eq!(client.ask(&["CLIENT", "DURABILITY", "DEFAULT"]).await, simple("OK"));
        assert!(took(&mut client, "b").await >= 10);
    });
}

#[test]
fn interval_survives_a_power_cut_two_seconds_later_and_synced_one_at_once() {
    let mut lost = [0, 0];
    for seed in 0..8 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let config = Config { durability: Durability::Buffered, ..Config::default() };
        let options = DiskOptions { crash_mode: CrashMode::DropAll, ..DiskOptions::default() };
        node.disk().set_options(options);
        let _running = start(&sim, &node, &network, config.clone());
        let env = clients.env();
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            // What is written first has two seconds, what comes last has none. The synced one comes
            // before these: a sync of its store takes along what was there.
            for (mode, key, then_ms) in [
                ("INTERVAL", "early", 2_000),
                ("SYNCED", "synced", 0),
                ("INTERVAL", "late", 0),
                ("BUFFERED", "buffered", 0),
            ] {
                assert_eq!(client.ask(&["CLIENT", "DURABILITY", mode]).await, simple("OK"));
                assert_eq!(client.ask(&["SET", key, "v"]).await, simple("OK"));
                env.clock.sleep(Duration::from_millis(then_ms)).await;
            }
        })
        .done();
        node.crash();
        node.restart();
        let _running = start(&sim, &node, &network, config);
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            for key in ["early", "synced"] {
                assert_eq!(client.ask(&["GET", key]).await, bulk("v"), "seed {seed}: {key}");
            }
            for (lost, key) in lost.iter_mut().zip(["late", "buffered"]) {
                *lost += usize::from(client.ask(&["GET", key]).await == Some(Value::Null));
            }
        })
        .done();
    }
    assert!(
        lost[0] > 0 && lost[1] > 0,
        "{lost:?}: the power cuts took nothing, so nothing was tried"
    );
}

#[test]
fn databases_that_a_synced_connection_flushes_and_exchanges_stay_so_whatever_the_server_promises() {
    for seed in 0..8 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let config = Config { durability: Durability::Buffered, ..Config::default() };
        let options = DiskOptions { crash_mode: CrashMode::DropAll, ..DiskOptions::default() };
        node.disk().set_options(options);
        let _running = start_on_one_log(&sim, &node, &network, config.clone());
        let env = clients.env();
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            client.ask(&["CLIENT", "DURABILITY", "SYNCED"]).await;
            for db in ["0", "1", "2"] {
                client.ask(&["SELECT", db]).await;
                assert_eq!(client.ask(&["SET", "k", db]).await, simple("OK"));
            }
            assert_eq!(client.ask(&["SWAPDB", "0", "1"]).await, simple("OK"));
            assert_eq!(client.ask(&["FLUSHDB"]).await, simple("OK"));
        })
        .done();
        node.crash();
        node.restart();
        let _running = start_on_one_log(&sim, &node, &network, config);
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            for (db, value) in [("0", bulk("1")), ("1", bulk("0")), ("2", Some(Value::Null))] {
                client.ask(&["SELECT", db]).await;
                assert_eq!(client.ask(&["GET", "k"]).await, value, "seed {seed}: database {db}");
            }
        })
        .done();
    }
}

/// What is watched in the turn that wrote it has no timestamp yet.
#[test]
fn a_key_watched_right_after_it_was_written_is_unchanged_until_somebody_writes_it() {
    play(&Config::default(), async |stage| {
        let (mut client, mut other) = (stage.client().await, stage.client().await);
        let requests = |words: &[&[&str]]| {
            let mut bytes = Vec::new();
            words.iter().for_each(|words| atoll_resp::request(&mut bytes, words));
            bytes
        };
        let watch: &[&[&str]] = &[&["SET", "k", "1"], &["WATCH", "k"]];
        let exec: &[&[&str]] = &[&["MULTI"], &["SET", "k", "2"], &["EXEC"]];
        assert!(client.send(&requests(&[watch, exec].concat())).await);
        for _ in 0..4 {
            client.receive().await;
        }
        let unchanged = client.receive().await;
        assert_eq!(unchanged, Some(Value::Array(vec![simple("OK").unwrap()])));
        // Written, watched, removed by another: that it was absent at some time is no excuse.
        assert!(client.send(&requests(watch)).await);
        for _ in 0..2 {
            client.receive().await;
        }
        other.ask(&["DEL", "k"]).await;
        assert!(client.send(&requests(exec)).await);
        for _ in 0..2 {
            client.receive().await;
        }
        let changed = client.receive().await;
        assert_eq!(changed, Some(Value::Null));
    });
}

#[test]
fn a_client_that_dies_in_a_transaction_leaves_nothing_behind() {
    play(&Config::default(), async |stage| {
        let mut other = stage.client().await;
        for round in 0..50 {
            let mut client = stage.client().await;
            let mut bytes = Vec::new();
            atoll_resp::request(&mut bytes, &["WATCH", "k"]);
            atoll_resp::request(&mut bytes, &["MULTI"]);
            atoll_resp::request(&mut bytes, &["SET", "k", "half"]);
            atoll_resp::request(&mut bytes, &["SET", "l", "half"]);
            if round % 2 == 0 {
                // Even the command that would end it comes in half.
                bytes.extend_from_slice(b"*1\r\n$4\r\nEX");
            }
            assert!(client.send(&bytes).await);
            drop(client);
        }
        stage.sleep(100).await;
        assert_eq!(other.ask(&["MGET", "k", "l"]).await, {
            Some(Value::Array(vec![Value::Null, Value::Null]))
        });
        let info = text(other.ask(&["INFO", "clients"]).await);
        assert!(info.contains("connected_clients:1\r\n"), "{info}");
        let list = text(other.ask(&["CLIENT", "LIST"]).await);
        assert_eq!(list.lines().count(), 1, "{list}");
    });
}

#[test]
fn a_transaction_left_open_holds_nobody_up() {
    play(&Config::default(), async |stage| {
        let (mut idle, mut other) = (stage.client().await, stage.client().await);
        for (args, answer) in [
            (&["WATCH", "k"][..], "OK"),
            (&["MULTI"], "OK"),
            (&["INCR", "k"], "QUEUED"),
            (&["INCR", "l"], "QUEUED"),
        ] {
            assert_eq!(idle.ask(args).await, simple(answer));
        }
        // Longer than versions are kept.
        for hour in 0..3 {
            stage.sleep(20_000).await;
            let asked = other.ask(&["INCR", "l"]).await;
            assert_eq!(asked, Some(Value::Int(hour + 1)));
        }
        let done = Some(Value::Array(vec![Value::Int(1), Value::Int(4)]));
        assert_eq!(idle.ask(&["EXEC"]).await, done);
    });
}

#[test]
fn a_pipeline_without_end_leaves_others_their_turns() {
    play(&Config::default(), async |stage| {
        let (mut endless, mut other) = (stage.client().await, stage.client().await);
        let mut bytes = Vec::new();
        for _ in 0..20_000 {
            atoll_resp::request(&mut bytes, &["INCR", "n"]);
        }
        // It reads nothing while it sends; the server stops reading from it at some point.
        let sending = timeout(&*stage.env.clock, Duration::from_secs(5), endless.send(&bytes));
        let _ = sending.await;
        let began = stage.now_ms();
        assert_eq!(other.ask(&["SET", "k", "v"]).await, simple("OK"));
        assert!(stage.now_ms() - began < 1_000, "{} ms", stage.now_ms() - began);
        let list = text(other.ask(&["CLIENT", "LIST"]).await);
        for line in list.lines() {
            let number = |name: &str| -> u64 {
                let field = line.split(' ').find_map(|field| field.strip_prefix(name));
                field.unwrap().parse().unwrap()
            };
            assert!(number("qbuf=") < 2 << 20 && number("omem=") < 4 << 20, "{line}");
        }
    });
}
