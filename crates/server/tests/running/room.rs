//! More than fits into memory at once: what is too large by itself is refused, everything else is taken.
//! And what a server tells of itself: counts of keys, turns, where it listens.

use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{Fault, FaultKind, Node, OpKind, Sim};
use atoll_env::sync::{oneshot, timeout};
use atoll_redis::Config;
use atoll_resp::Value;

use crate::support::{Client, LoopNetwork, bulk, simple, start};

/// What a store of the tests may take at once: it has 8 MiB of memory, 1 MiB of it for a memtable.
const ROOM: usize = 7 << 20;

/// Lets syncs take so long that everything gathers meanwhile which many clients can send.
fn slow_syncs(node: &Node) {
    node.disk().inject(Fault::new(FaultKind::Slow).on(OpKind::Sync).sticky());
}

/// Connects, sends a pipeline and returns where its replies come.
async fn converse(
    env: &Env,
    network: &LoopNetwork,
    commands: &[&[&str]],
) -> oneshot::Receiver<Vec<Value>> {
    let mut client = Client::connect(env, network).await;
    let mut bytes = Vec::new();
    commands.iter().for_each(|command| atoll_resp::request(&mut bytes, command));
    let count = commands.len();
    let (done, replies) = oneshot::channel();
    let conversation = async move {
        assert!(client.send(&bytes).await);
        let mut replies = Vec::new();
        for _ in 0..count {
            replies.push(client.receive().await.expect("the server stays"));
        }
        let _ = done.send(replies);
    };
    env.tasks.spawn_local("client", Box::pin(conversation));
    replies
}

fn number(value: &Value) -> i64 {
    let Value::Int(number) = value else { panic!("a number is not {value:?}") };
    *number
}

/// Returns a field of INFO.
async fn info(client: &mut Client, section: &str, field: &str) -> String {
    let Some(Value::Bulk(text)) = client.ask(&["INFO", section]).await else {
        panic!("INFO is text")
    };
    let text = String::from_utf8(text.to_vec()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{field}: {text}")).to_owned()
}

#[test]
fn more_than_fits_into_memory_is_taken_turn_by_turn() {
    for seed in 0..4 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let (_stop, _) = start(&sim, &node, &network, Config::default());
        let env = clients.env();
        let value = "v".repeat(700_000);
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            slow_syncs(&node);
            let mut open = Vec::new();
            for n in 0..20 {
                // One shard has them all.
                let set = ["SET", &format!("{{t}}{n}"), &value];
                open.push(converse(&env, &network, &[&set, &["INCR", "{t}count"]]).await);
            }
            let mut counts = Vec::new();
            for replies in open {
                let replies = replies.await.unwrap();
                assert_eq!(Some(&replies[0]), simple("OK").as_ref(), "seed {seed}");
                counts.push(number(&replies[1]));
            }
            counts.sort_unstable();
            assert_eq!(counts, (1..=20).collect::<Vec<_>>(), "seed {seed}");
            for n in 0..20 {
                let len = client.ask(&["STRLEN", &format!("{{t}}{n}")]).await;
                assert_eq!(len, Some(Value::Int(700_000)), "seed {seed}");
            }
        })
        .done();
    }
}

#[test]
fn a_value_that_does_not_fit_is_refused_and_what_came_with_it_is_not() {
    for seed in 0..6 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let (_stop, _) = start(&sim, &node, &network, Config::default());
        let env = clients.env();
        let large = "v".repeat(ROOM + 1000);
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            assert_eq!(client.ask(&["SET", "{t}large", "old"]).await, simple("OK"));
            slow_syncs(&node);
            let commands: [&[&str]; 4] = [
                &["INCR", "{t}count"],
                &["SET", "{t}large", &large],
                &["GET", "{t}large"],
                &["INCR", "{t}count"],
            ];
            let mut open = Vec::new();
            for _ in 0..5 {
                open.push(converse(&env, &network, &commands).await);
            }
            let mut counts = Vec::new();
            for replies in open {
                let replies = timeout(&*env.clock, Duration::from_secs(60), replies).await;
                let replies = replies.expect("everybody is answered").unwrap();
                let Value::Error(text) = &replies[1] else { panic!("seed {seed}: it is refused") };
                let text = String::from_utf8_lossy(text);
                assert!(text.starts_with("ERR ") && text.contains("the limit is"), "{text}");
                assert_eq!(Some(&replies[2]), bulk("old").as_ref(), "seed {seed}");
                let both = [number(&replies[0]), number(&replies[3])];
                assert!(both[0] < both[1], "seed {seed}: {both:?}");
                counts.extend(both);
            }
            counts.sort_unstable();
            assert_eq!(counts, (1..=10).collect::<Vec<_>>(), "seed {seed}");
            assert_eq!(client.ask(&["GET", "{t}count"]).await, bulk("10"));
            // A command was wrong; the disk was not.
            assert_eq!(info(&mut client, "persistence", "aof_last_write_status").await, "ok");
        })
        .done();
    }
}

#[test]
fn a_transaction_that_does_not_fit_is_refused_at_once_and_changes_nothing() {
    for seed in 0..4 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let (_stop, _) = start(&sim, &node, &network, Config::default());
        let env = clients.env();
        let large = "v".repeat(ROOM + 1000);
        sim.block_on(&clients, async {
            let mut client = Client::connect(&env, &network).await;
            let keys = ["a", "b", "c", "d"];
            let pairs = keys.iter().flat_map(|key| [*key, "old"]);
            let args: Vec<&str> = ["MSET"].into_iter().chain(pairs).collect();
            assert_eq!(client.ask(&args).await, simple("OK"));
            let refused = |reply: Option<Value>| {
                let Some(Value::Error(text)) = reply else { panic!("seed {seed}: {reply:?}") };
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(text.starts_with("ERR ") && text.contains("the limit is"), "{text}");
            };
            let began = env.clock.now();
            // Over several shards: the small ones wait for nobody, the large one has no room.
            refused(client.ask(&["MSET", "a", "new", "b", &large, "c", "new", "d", "new"]).await);
            client.ask(&["MULTI"]).await;
            client.ask(&["SET", "a", "new"]).await;
            client.ask(&["SET", "b", "new"]).await;
            client.ask(&["SET", "c", &large]).await;
            client.ask(&["DEL", "d"]).await;
            refused(client.ask(&["EXEC"]).await);
            let took = env.clock.now().since(began);
            assert!(took < Duration::from_secs(5), "seed {seed}: {took:?}");
            let args: Vec<&str> = ["MGET"].into_iter().chain(keys).collect();
            let old = Value::Bulk(b"old".to_vec());
            assert_eq!(client.ask(&args).await, Some(Value::Array(vec![old; 4])), "seed {seed}");
            assert_eq!(client.ask(&["MSET", "a", "1", "b", "2"]).await, simple("OK"));
        })
        .done();
    }
}

#[test]
fn turns_are_counted_and_timed_and_so_are_those_that_fail() {
    let sim = Sim::new(1);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(1);
    let (_stop, _) = start(&sim, &node, &network, Config::default());
    let env = clients.env();
    sim.block_on(&clients, async {
        let mut client = Client::connect(&env, &network).await;
        let commits = async |client: &mut Client| -> u64 {
            info(client, "stats", "commits").await.parse().unwrap()
        };
        let before = commits(&mut client).await;
        for n in 0..5 {
            assert_eq!(client.ask(&["SET", &format!("k{n}"), "v"]).await, simple("OK"));
        }
        let after = commits(&mut client).await;
        assert!(after >= before + 5, "{before}, {after}: one waited for the other");
        assert_eq!(client.ask(&["GET", "k1"]).await, bulk("v"));
        assert_eq!(info(&mut client, "stats", "commits_failed").await, "0");
        node.disk().inject(Fault::new(FaultKind::SyncLoses).on(OpKind::Sync).sticky());
        let failed = client.ask(&["SET", "k1", "w"]).await;
        assert!(matches!(failed, Some(Value::Error(_))), "{failed:?}");
        assert_ne!(info(&mut client, "stats", "commits_failed").await, "0");
        assert_eq!(info(&mut client, "persistence", "aof_last_write_status").await, "err");
    })
    .done();
}

#[test]
fn the_port_that_was_bound_is_shown() {
    let sim = Sim::new(1);
    let (node, clients) = (sim.node("server"), sim.node("clients"));
    let network = LoopNetwork::new(1);
    let config = Config { port: 1, bind: "nowhere".to_owned(), ..Config::default() };
    let (_stop, _) = start(&sim, &node, &network, config);
    let env = clients.env();
    sim.block_on(&clients, async {
        let mut client = Client::connect(&env, &network).await;
        let shown = |name: &str, value: &str| {
            Some(Value::Array(vec![bulk(name).unwrap(), bulk(value).unwrap()]))
        };
        assert_eq!(client.ask(&["CONFIG", "GET", "port"]).await, shown("port", "7379"));
        assert_eq!(client.ask(&["CONFIG", "GET", "bind"]).await, shown("bind", "10.0.0.1"));
        assert_eq!(info(&mut client, "server", "tcp_port").await, "7379");
    })
    .done();
}

#[test]
fn keys_of_an_acknowledged_transaction_are_counted_at_once() {
    for seed in 0..10 {
        let sim = Sim::new(seed);
        let (node, clients) = (sim.node("server"), sim.node("clients"));
        let network = LoopNetwork::new(seed);
        let (_stop, _) = start(&sim, &node, &network, Config::default());
        let env = clients.env();
        sim.block_on(&clients, async {
            // One writes on all shards, the other counts.
            let mut writer = Client::connect(&env, &network).await;
            let mut counter = Client::connect(&env, &network).await;
            for round in 1..=8 {
                let names: Vec<String> = (0..6).map(|n| format!("{round}:{n}")).collect();
                let mut command = vec!["MSET"];
                names.iter().for_each(|name| command.extend([name.as_str(), "v"]));
                assert_eq!(writer.ask(&command).await, simple("OK"));
                let count = counter.ask(&["DBSIZE"]).await;
                assert_eq!(count, Some(Value::Int(6 * round)), "seed {seed}");
                let keyspace = info(&mut counter, "keyspace", "db0").await;
                assert!(keyspace.starts_with(&format!("keys={},", 6 * round)), "{keyspace}");
            }
        })
        .done();
    }
}
