//! A server's directory that an earlier program wrote, byte for byte: it opens, holds what it held, and
//! goes on.
//!
//! `tests/formats/server-1.txt` has two stores of format 1 with five shards, one of which came from a
//! split: strings of every kind in several databases, keyspaces by name of both kinds, transactions over
//! shards; in tables, and in the logs only. It ends with a power cut.
//!
//! What the file says is never changed: a program that cannot read it any more has broken somebody's
//! data. When the format gets a new version, or a new thing to say, a file is added:
//!
//! ```sh
//! ATOLL_FIXTURES=crates/server/tests/formats cargo test -p atoll-server --test running formats -- --ignored
//! ```
//!
//! writes it if it is not there yet. Its lines are a file's name and length, then rows of 32 bytes
//! behind their offset, as in the fixtures of `atoll-lsm`; rows of zeros are left out, and so are spare
//! segments and locks, which mean nothing.

use std::fmt::Write;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, Node, Sim};
use atoll_env::sync::{oneshot, timeout};
use atoll_keyspaces::{Expiry, Isolation, KeyRange, Kind, Options};
use atoll_kv::{NodeOptions, RoutingKey, ShardReport, shards_of_stopped};
use atoll_redis::{Config, Identity};
use atoll_resp::Value;
use atoll_server::{Engine, Server};

use crate::support::{Client, LoopNetwork, address, bulk};

const ROW: usize = 32;
const DATA: &str = "data";
/// The first moment of the year 2100, in milliseconds: a deadline that nobody sees pass.
const FAR: &str = "4102444800000";
/// Where a shard was split, within one of those that a new directory has.
const SPLIT: u16 = 5_000;

// ---- fixtures as text ----

/// Writes down the files of the node's directory.
fn write_down(node: &Node) -> String {
    let mut text = String::new();
    for path in node.disk().files() {
        if path.ends_with(".spare") || path.ends_with("LOCK") {
            continue;
        }
        let bytes = node.disk().read_file(&path).unwrap();
        writeln!(text, "file {path} {}", bytes.len()).unwrap();
        let rows = bytes.chunks(ROW).enumerate();
        for (row, bytes) in rows.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{:08x} {hex}", row * ROW).unwrap();
        }
    }
    text
}

/// Puts the files of a fixture on the node's disk.
fn put_down(text: &str, node: &Node) {
    let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        if first == "file" {
            let (name, len) = rest.split_once(' ').unwrap();
            files.push((name, vec![0; len.parse().unwrap()]));
            continue;
        }
        let at = usize::from_str_radix(first, 16).unwrap();
        let byte = |n: usize| u8::from_str_radix(&rest[n..n + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..rest.len()).step_by(2).map(byte).collect();
        files.last_mut().unwrap().1[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    for (name, bytes) in files {
        node.disk().write_file(name, &bytes).unwrap();
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/server-1.txt")
}

// ---- a server on the directory ----

struct Served {
    env: Env,
    network: LoopNetwork,
    engine: Arc<Engine>,
    door: oneshot::Sender<()>,
    closed: oneshot::Receiver<()>,
}

impl Served {
    /// Opens the directory, or makes it, and listens.
    async fn start(env: Env, cores: usize) -> Served {
        let network = LoopNetwork::new(1);
        let env = Env { network: Arc::new(network.clone()), ..env };
        let mut options = NodeOptions::new(env.clone(), DATA);
        options.cores = cores;
        options.stores = 2;
        options.memory = 16 << 20;
        options.engine.log_segment_size = 128 << 10;
        let identity =
            Identity { version: "test", process_id: 1, run_id: 1, measure: None, allocator: "" };
        let engine = Engine::start(options, Config::default(), identity).await.unwrap();
        let server = Server::bind(&engine, address()).await.unwrap();
        let (door, shut) = oneshot::channel();
        let (end, closed) = oneshot::channel();
        let serving = async move {
            let shut = async {
                let _ = shut.await;
            };
            server.run(shut).await;
            let _ = end.send(());
        };
        env.tasks.spawn_local("server", Box::pin(serving));
        Served { env, network, engine: Arc::new(engine), door, closed }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.env, &self.network).await
    }

    async fn stop(self) {
        let _ = self.door.send(());
        let _ = self.closed.await;
        self.engine.end().await.unwrap();
    }
}

/// Runs something on a node, within its time.
fn run<T>(sim: &Sim, node: &Node, what: &str, future: impl Future<Output = T>) -> T {
    let env = node.env();
    let limited = timeout(&*env.clock, Duration::from_secs(600), future);
    sim.block_on(node, limited).done().unwrap_or_else(|_| panic!("{what}: no end"))
}

/// Sends commands one after the other and wants none of them refused.
async fn all(client: &mut Client, commands: &[&[&str]]) {
    for command in commands {
        let reply = client.ask(command).await;
        assert!(!matches!(reply, None | Some(Value::Error(_))), "{command:?}: {reply:?}");
    }
}

// ---- what it holds ----

fn shop(n: u32) -> (String, String) {
    (format!("item-{n:03}"), format!("{n} of them"))
}

async fn make(env: Env) {
    let served = Served::start(env, 1).await;
    let mut client = served.client().await;
    let keyspaces = served.engine.client();
    for n in 0..20 {
        all(&mut client, &[&["SET", &format!("plain:{n}"), &format!("value {n}")]]).await;
    }
    all(
        &mut client,
        &[
            &["SET", "far", "until 2100", "PXAT", FAR],
            &["SET", "short", "gone soon", "PX", "50"],
            // One byte in each of the fragments at its ends; those between are not there.
            &["SETRANGE", "long", "40000", "end"],
            &["SETBIT", "long", "7", "1"],
            &["INCRBY", "counter", "41"],
            &["SET", "doomed", "x"],
            &["SELECT", "3"],
            &["SET", "of three", "3"],
            &["SELECT", "5"],
            &["SET", "flushed", "5"],
            &["FLUSHDB"],
            &["SELECT", "0"],
        ],
    )
    .await;
    let hashed = Options { kind: Kind::hashed(4).unwrap(), ttl: None };
    let expiring = Options { kind: Kind::Ordered, ttl: Some(Duration::from_secs(4_000_000_000)) };
    for (name, options) in
        [("shop/ordered", Options::default()), ("shop/hashed", hashed), ("shop/expiring", expiring)]
    {
        let (keyspace, new) = keyspaces.create_keyspace(name, options).await.unwrap();
        assert!(new);
        let mut tx = keyspaces.begin(Isolation::Serializable);
        for (key, value) in (0..6).map(shop) {
            tx.put(&keyspace, key.as_bytes(), value.as_bytes(), Expiry::Default).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    keyspaces.create_keyspace("dropped", Options::default()).await.unwrap();
    // Tables, and what they say is changed behind them.
    for (_, tree) in served.engine.trees() {
        tree.flush().await.unwrap();
    }
    served.engine.operator().split_at(RoutingKey::Slot(SPLIT)).await.unwrap();
    keyspaces.drop_keyspace("dropped").await.unwrap();
    all(
        &mut client,
        &[
            &["DEL", "doomed"],
            &["INCR", "counter"],
            &["RENAME", "plain:0", "renamed"],
            &["SWAPDB", "3", "4"],
            &["MULTI"],
            &["SET", "plain:1", "of a transaction"],
            &["SET", "plain:2", "of a transaction"],
            &["SET", "plain:3", "of a transaction"],
            &["EXEC"],
            &["MSET", "plain:4", "of an MSET", "plain:5", "of an MSET"],
        ],
    )
    .await;
    // Intents are resolved, deadlines pass, space of what was dropped comes back.
    served.env.clock.sleep(Duration::from_secs(8)).await;
    all(&mut client, &[&["APPEND", "plain:6", ", and more"]]).await;
}

fn value_of(n: u32) -> String {
    match n {
        1..=3 => "of a transaction".to_owned(),
        4 | 5 => "of an MSET".to_owned(),
        6 => "value 6, and more".to_owned(),
        _ => format!("value {n}"),
    }
}

/// The shards cover everything once, and are those that there were.
fn check_shards(shards: &[ShardReport]) {
    let starts: Vec<_> = shards.iter().map(|shard| shard.range.0.clone()).collect();
    assert_eq!(shards.len(), 5, "{shards:?}");
    assert_eq!(starts[0], RoutingKey::Slot(0));
    assert!(starts.contains(&RoutingKey::Slot(SPLIT)), "{starts:?}");
    assert!(shards.windows(2).all(|pair| pair[0].range.1 == pair[1].range.0), "{shards:?}");
    assert_eq!(shards[4].range.1, RoutingKey::End);
    for store in 0..2 {
        assert!(shards.iter().any(|shard| shard.store == store), "{shards:?}");
    }
}

async fn check(served: &Served) {
    let mut client = served.client().await;
    check_shards(&served.engine.operator().shards().await.unwrap());
    for n in 1..20 {
        assert_eq!(client.ask(&["GET", &format!("plain:{n}")]).await, bulk(&value_of(n)), "{n}");
    }
    assert_eq!(client.ask(&["GET", "renamed"]).await, bulk("value 0"));
    assert_eq!(client.ask(&["GET", "far"]).await, bulk("until 2100"));
    let far = FAR.parse().unwrap();
    assert_eq!(client.ask(&["PEXPIRETIME", "far"]).await, Some(Value::Int(far)));
    for absent in ["plain:0", "short", "doomed", "of three", "flushed"] {
        assert_eq!(client.ask(&["GET", absent]).await, Some(Value::Null), "{absent}");
    }
    assert_eq!(client.ask(&["STRLEN", "long"]).await, Some(Value::Int(40_003)));
    assert_eq!(client.ask(&["GETRANGE", "long", "40000", "-1"]).await, bulk("end"));
    assert_eq!(client.ask(&["GETBIT", "long", "7"]).await, Some(Value::Int(1)));
    assert_eq!(client.ask(&["BITCOUNT", "long", "0", "39999"]).await, Some(Value::Int(1)));
    let Some(Value::Array(meta)) = client.ask(&["OBJECT", "META", "long"]).await else {
        panic!("a key has metadata")
    };
    assert!(meta.contains(&Value::Bulk("generation".into())), "{meta:?}");
    // 19 plain ones, the renamed one, far, long, counter.
    assert_eq!(client.ask(&["DBSIZE"]).await, Some(Value::Int(23)));
    assert_eq!(client.ask(&["GET", "counter"]).await, bulk("42"));
    for (db, keys) in [("3", 0), ("4", 1), ("5", 0)] {
        all(&mut client, &[&["SELECT", db]]).await;
        assert_eq!(client.ask(&["DBSIZE"]).await, Some(Value::Int(keys)), "database {db}");
    }
    all(&mut client, &[&["SELECT", "4"]]).await;
    assert_eq!(client.ask(&["GET", "of three"]).await, bulk("3"));

    let keyspaces = served.engine.client();
    let (names, _) = keyspaces.keyspaces(KeyRange::all(), 100).await.unwrap();
    let names: Vec<_> = names.into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["shop/expiring", "shop/hashed", "shop/ordered"]);
    for name in names {
        let keyspace = keyspaces.keyspace(&name).await.unwrap();
        let mut tx = keyspaces.begin(Isolation::Serializable);
        let rows = tx.scan(&keyspace, KeyRange::all(), false, 100).await.unwrap().rows;
        assert!(rows.iter().all(|row| row.deadline_ms.is_some() == name.ends_with("expiring")));
        let rows: Vec<_> = rows.into_iter().map(|row| (row.key, row.value)).collect();
        let expected = (0..6).map(shop).map(|(k, v)| (k.into_bytes(), v.into_bytes()));
        assert_eq!(rows, expected.collect::<Vec<_>>(), "{name}");
        assert_eq!(keyspaces.count(&keyspace).await.unwrap(), 6, "{name}");
    }
}

/// Writes in every way, and takes it back.
async fn write(served: &Served) {
    let mut client = served.client().await;
    all(
        &mut client,
        &[
            &["MSET", "new:a", "1", "new:b", "2", "new:c", "3", "new:d", "4"],
            &["SETRANGE", "long", "100", "middle"],
        ],
    )
    .await;
    assert_eq!(client.ask(&["INCR", "counter"]).await, Some(Value::Int(43)));
    assert_eq!(client.ask(&["DBSIZE"]).await, Some(Value::Int(27)));
    assert_eq!(client.ask(&["GETRANGE", "long", "99", "106"]).await, bulk("\0middle\0"));
    all(
        &mut client,
        &[
            &["DECR", "counter"],
            &["DEL", "new:a", "new:b", "new:c", "new:d"],
            &["SETRANGE", "long", "100", "\0\0\0\0\0\0"],
        ],
    )
    .await;
    let keyspaces = served.engine.client();
    let (fresh, _) = keyspaces.create_keyspace("fresh", Options::default()).await.unwrap();
    let mut tx = keyspaces.begin(Isolation::Serializable);
    tx.put(&fresh, b"a", b"1", Expiry::Default).await.unwrap();
    tx.commit().await.unwrap();
    // The ids of those that were dropped are not given again: this one would not be empty.
    assert_eq!(keyspaces.count(&fresh).await.unwrap(), 1);
    keyspaces.drop_keyspace("fresh").await.unwrap();
    for (_, tree) in served.engine.trees() {
        tree.compact().await.unwrap();
    }
}

#[test]
fn a_directory_of_format_1_holds_what_it_held_and_goes_on() {
    for cores in [1, 2] {
        let sim = Sim::new(9);
        let node = sim.node("reader");
        put_down(&std::fs::read_to_string(fixture()).unwrap(), &node);
        for what in ["as it was written", "after it was written to", "after it was closed"] {
            let what = format!("{cores} cores, {what}");
            run(&sim, &node, &what, async {
                let served = Served::start(node.env(), cores).await;
                check(&served).await;
                write(&served).await;
                check(&served).await;
                if what.ends_with("written to") {
                    served.stop().await;
                    check_shards(&shards_of_stopped(&node.env(), Path::new(DATA)).await.unwrap());
                }
            });
            if !what.ends_with("written to") {
                node.crash_with(CrashMode::DropAll);
                node.restart();
            }
        }
    }
}

#[test]
#[ignore = "writes the fixture"]
#[expect(clippy::disallowed_methods, reason = "a fixture is a file of the repository")]
fn the_fixture_is_written_if_it_is_missing() {
    let folder = PathBuf::from(std::env::var_os("ATOLL_FIXTURES").unwrap());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let path = folder.join("server-1.txt");
    if path.exists() {
        return;
    }
    let sim = Sim::new(1);
    let node = sim.node("writer");
    run(&sim, &node, "the fixture", make(node.env()));
    node.crash_with(CrashMode::DropAll);
    std::fs::write(path, write_down(&node)).unwrap();
}
