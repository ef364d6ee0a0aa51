//! Keyspaces on a node in the simulator: catalog, transactions, drops, space.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::{CrashTiming, Outcome as Ended, Sim};
use atoll_env::sync::{Notify, oneshot};
use atoll_env::{Env, Instant};
use atoll_kv::{Core, Node, NodeOptions};
use atoll_lsm::driven::{Direction, Tree};
use parking_lot::Mutex;

use crate::{
    Action, Batch, Client, Compare, Done, Error, Expiry, Hall, Isolation, KeyRange, Keyspace, Kind,
    Mute, Options, Relation, Row, Test, ids,
};

fn options(env: Env, cores: usize) -> NodeOptions {
    let mut options = NodeOptions::new(env, "/data/db");
    options.cores = cores;
    options.stores = 2;
    options.shards = 4;
    options.memory = 16 << 20;
    options.engine.memtable_size = 256 << 10;
    options.engine.log_segment_size = 256 << 10;
    options.retention_us = 1_000_000;
    options
}

/// Opens a node and runs `test` as a client of it; the trees of its stores are handed along.
async fn with_node<F>(options: NodeOptions, test: impl FnOnce(Client, Vec<Tree>) -> F)
where
    F: Future<Output = ()>,
{
    let hall: Arc<Hall> = Arc::default();
    let (open, ended): (Arc<Notify>, Arc<Notify>) = (Arc::default(), Arc::default());
    let over = Arc::new(Mutex::new(false));
    let trees: Arc<Mutex<Vec<Tree>>> = Arc::default();
    let cores = options.cores;
    let serving = Arc::new(Mutex::new(0));
    let node = {
        let (hall, open, over, trees) = (hall.clone(), open.clone(), over.clone(), trees.clone());
        let serving = serving.clone();
        Node::start(
            options,
            |_| Mute,
            move |core: Core<Mute>| {
                let (hall, open, over) = (hall.clone(), open.clone(), over.clone());
                let (trees, serving) = (trees.clone(), serving.clone());
                Box::pin(async move {
                    trees.lock().extend(core.trees().into_iter().map(|(_, tree)| tree));
                    let door = hall.open(&core);
                    *serving.lock() += 1;
                    open.notify();
                    let mut ticks = 0u64;
                    while !*over.lock() {
                        core.env().clock.sleep(Duration::from_millis(5)).await;
                        ticks += 1;
                        if core.index() == 0 && ticks.is_multiple_of(50) {
                            ids::reclaim(&core).await.expect("reclaim");
                        }
                    }
                    door.close().await;
                })
            },
        )
        .await
        .expect("a node that starts")
    };
    while *serving.lock() < cores {
        open.notified().await;
    }
    let found = trees.lock().clone();
    test(hall.client(), found).await;
    *over.lock() = true;
    ended.notify();
    node.wait().await.expect("a node that ends in order");
}

fn simulate<F: Future<Output = ()>>(seed: u64, run: impl FnOnce(Env) -> F) {
    let sim = Sim::new(seed);
    let node = sim.node("n");
    let outcome = sim.block_on(&node, run(node.env()));
    assert!(matches!(outcome, Ended::Done(())), "{outcome:?}");
}

fn hashed(n: u16) -> Options {
    Options { kind: Kind::hashed(n).unwrap(), ttl: None }
}

async fn create(client: &Client, name: &str, options: Options) -> Keyspace {
    client.create_keyspace(name, options).await.unwrap().0
}

async fn names(client: &Client) -> Vec<String> {
    let (infos, more) = client.keyspaces(KeyRange::all(), 1_000).await.unwrap();
    assert!(!more);
    infos.into_iter().map(|info| info.name).collect()
}

async fn put(client: &Client, keyspace: &Keyspace, key: &[u8], value: &[u8]) -> u64 {
    let mut txn = client.begin(Isolation::Serializable);
    txn.put(keyspace, key, value, Expiry::Default).await.unwrap();
    txn.commit().await.unwrap()
}

async fn get(client: &Client, keyspace: &Keyspace, key: &[u8]) -> Option<Vec<u8>> {
    let mut txn = client.begin(Isolation::Snapshot);
    txn.get(keyspace, key).await.unwrap().map(|found| found.value)
}

#[test]
fn keyspaces_are_created_found_listed_and_kept_over_a_restart() {
    let sim = Sim::new(1);
    let node = sim.node("n");
    for round in 0..2 {
        let run = with_node(options(node.env(), 2), |client, _| async move {
            if round == 0 {
                let (users, is_new) =
                    client.create_keyspace("users", Options::default()).await.unwrap();
                assert!(is_new && users.info().id >= ids::FIRST_ORDERED);
                let (again, is_new) =
                    client.create_keyspace("users", Options::default()).await.unwrap();
                assert!(!is_new && again == users);
                create(&client, "users/sessions", hashed(16)).await;
                let ttl = Some(Duration::from_secs(60));
                create(&client, "cache", Options { ttl, ..hashed(4) }).await;
                let other = client.create_keyspace("users", hashed(2)).await;
                assert!(matches!(other, Err(Error::Exists { .. })), "{other:?}");
                for name in ["", "a//b", "/"] {
                    let refused = client.create_keyspace(name, Options::default()).await;
                    assert!(matches!(refused, Err(Error::InvalidInput(_))), "{name}");
                }
                put(&client, &users, b"ada", b"1815").await;
            }
            assert_eq!(names(&client).await, ["cache", "users", "users/sessions"]);
            let cache = client.keyspace("cache").await.unwrap();
            assert_eq!(cache.options().kind, Kind::hashed(4).unwrap());
            assert_eq!(cache.options().ttl, Some(Duration::from_secs(60)));
            assert!(cache.info().created_ms > 0);
            let missing = client.keyspace("user").await;
            assert_eq!(missing, Err(Error::NotFound("user".to_owned())));
            let users = client.keyspace("users").await.unwrap();
            assert_eq!(get(&client, &users, b"ada").await.as_deref(), Some(&b"1815"[..]));
            assert_eq!(client.count(&users).await, Ok(1));
        });
        assert!(matches!(sim.block_on(&node, run), Ended::Done(())));
    }
}

#[test]
fn a_dropped_family_is_gone_for_its_handles_and_its_ids_are_not_used_again() {
    simulate(2, |env| {
        with_node(options(env, 2), |client, _| async move {
            for name in ["a", "a/b", "a/b/c", "ab", "b"] {
                let keyspace = create(&client, name, hashed(4)).await;
                put(&client, &keyspace, b"k", name.as_bytes()).await;
            }
            let child = client.keyspace("a/b").await.unwrap();
            let mut reader = client.begin(Isolation::Snapshot);
            assert!(reader.get(&child, b"k").await.unwrap().is_some());
            let mut writer = client.begin(Isolation::Serializable);
            writer.put(&child, b"k", b"late", Expiry::Default).await.unwrap();
            // An operation that waits, so that the write has arrived.
            writer.get(&child, b"other").await.unwrap();

            assert_eq!(client.drop_keyspace("a").await.unwrap(), ["a", "a/b", "a/b/c"]);
            assert_eq!(names(&client).await, ["ab", "b"]);
            assert_eq!(writer.commit().await, Err(Error::Dropped("a/b".to_owned())));
            assert_eq!(reader.get(&child, b"k").await, Err(Error::Dropped("a/b".to_owned())));
            assert_eq!(client.drop_keyspace("a").await, Err(Error::NotFound("a".to_owned())));

            let again = create(&client, "a/b", hashed(4)).await;
            assert!(again.info().id > child.info().id);
            assert_eq!(get(&client, &again, b"k").await, None, "as new");
            let ab = client.keyspace("ab").await.unwrap();
            assert_eq!(get(&client, &ab, b"k").await.as_deref(), Some(&b"ab"[..]));
        })
    });
}

/// Counts the versions of a keyspace in all stores.
async fn stored(trees: &[Tree], id: u32) -> usize {
    let start = [&b"D"[..], &id.to_be_bytes()].concat();
    let end = [&b"D"[..], &(id + 1).to_be_bytes()].concat();
    let mut count = 0;
    for tree in trees {
        let mut cursor = tree.scan_all_versions(&start, &end, u64::MAX, Direction::Forward);
        while cursor.next().await.unwrap().is_some() {
            count += 1;
        }
    }
    count
}

#[test]
fn the_space_of_a_dropped_keyspace_comes_back_once_nobody_can_read_it() {
    simulate(3, |env| {
        let clock = env.clock.clone();
        with_node(options(env, 2), |client, trees| async move {
            for options in [Options::default(), hashed(8)] {
                let keyspace = create(&client, "big", options).await;
                for n in 0..50u32 {
                    put(&client, &keyspace, &n.to_be_bytes(), &[7; 100]).await;
                }
                let id = keyspace.info().id;
                let mut reader = client.begin(Isolation::Snapshot);
                let other = create(&client, "other", Options::default()).await;
                reader.get(&other, b"").await.unwrap();
                client.drop_keyspace("big").await.unwrap();
                clock.sleep(Duration::from_secs(4)).await;
                assert_eq!(stored(&trees, id).await, 50, "a reader of the time before is open");
                drop(reader);
                clock.sleep(Duration::from_secs(6)).await;
                assert_eq!(stored(&trees, id).await, 0);
                assert_eq!(stored(&trees, other.info().id).await, 0);
            }
        })
    });
}

#[test]
fn a_scan_of_a_hashed_keyspace_equals_that_of_an_ordered_one() {
    simulate(4, |env| {
        with_node(options(env, 2), |client, _| async move {
            let kinds = [Options::default(), hashed(1), hashed(16)];
            let mut keyspaces = Vec::new();
            for (n, options) in kinds.into_iter().enumerate() {
                keyspaces.push(create(&client, &format!("k{n}"), options).await);
            }
            let mut prng = Prng::new(4);
            let mut key = move || -> Vec<u8> {
                (0..prng.index(4)).map(|_| [0, 1, b'a', 0xff][prng.index(4)]).collect()
            };
            let mut writer = client.begin(Isolation::Serializable);
            for n in 0..150u32 {
                let key = key();
                for keyspace in &keyspaces {
                    writer.put(keyspace, &key, &n.to_be_bytes(), Expiry::Default).await.unwrap();
                }
            }
            writer.commit().await.unwrap();
            let mut txn = client.begin(Isolation::Serializable);
            // Own writes take part: some over stored values, some new, some deletions.
            for n in 0..30u32 {
                let key = key();
                for keyspace in &keyspaces {
                    if n % 3 == 0 {
                        txn.delete(keyspace, &key).await.unwrap();
                    } else {
                        let value = (1_000 + n).to_be_bytes();
                        txn.put(keyspace, &key, &value, Expiry::Default).await.unwrap();
                    }
                }
            }
            for round in 0..60 {
                let (a, b) = (key(), key());
                let range = match round % 3 {
                    0 => KeyRange::all(),
                    1 => KeyRange::prefix(&a),
                    _ => KeyRange { start: a, end: Some(b) },
                };
                let (reverse, limit) = (round % 2 == 0, [1, 7, 1_000][round % 3]);
                let mut found: Vec<Vec<Row>> = Vec::new();
                for keyspace in &keyspaces {
                    let mut all: Vec<Row> = Vec::new();
                    let mut rest = range.clone();
                    loop {
                        let page = txn.scan(keyspace, rest.clone(), reverse, limit).await.unwrap();
                        assert!(page.rows.len() <= limit);
                        assert!(!page.more || page.rows.len() == limit);
                        let last = page.rows.last().map(|row| row.key.clone());
                        all.extend(page.rows);
                        match last {
                            Some(last) if page.more => rest = rest.rest(&last, reverse),
                            _ => break,
                        }
                    }
                    found.push(all);
                }
                let in_order = |rows: &[Row]| {
                    rows.windows(2).all(|pair| (pair[0].key < pair[1].key) != reverse)
                };
                assert!(in_order(&found[0]), "{round}");
                assert!(found[0].iter().all(|row| range.contains(&row.key)), "{round}");
                assert!(found.iter().all(|rows| *rows == found[0]), "round {round}");
                assert!(round != 0 || found[0].len() > 40, "{}", found[0].len());
            }
        })
    });
}

#[test]
fn a_value_is_absent_from_its_deadline_on() {
    simulate(5, |env| {
        let clock = env.clock.clone();
        with_node(options(env, 1), |client, _| async move {
            let ttl = Some(Duration::from_secs(2));
            let cache = create(&client, "cache", Options { ttl, ..hashed(4) }).await;
            let mut txn = client.begin(Isolation::Serializable);
            for (key, expiry) in [
                (&b"default"[..], Expiry::Default),
                (b"never", Expiry::Never),
                (b"later", Expiry::After(Duration::from_secs(5))),
            ] {
                txn.put(&cache, key, b"x", expiry).await.unwrap();
            }
            txn.commit().await.unwrap();
            let keys = async || {
                let mut txn = client.begin(Isolation::Snapshot);
                let page = txn.scan(&cache, KeyRange::all(), false, 10).await.unwrap();
                let keys = page.rows.into_iter().map(|row| String::from_utf8(row.key).unwrap());
                keys.collect::<Vec<_>>()
            };
            assert_eq!(keys().await, ["default", "later", "never"]);
            clock.sleep(Duration::from_secs(3)).await;
            assert_eq!(keys().await, ["later", "never"]);
            assert_eq!(get(&client, &cache, b"default").await, None);
            assert_eq!(client.count(&cache).await, Ok(2), "what is due is reaped and not counted");
            clock.sleep(Duration::from_secs(3)).await;
            assert_eq!(keys().await, ["never"]);
        })
    });
}

#[test]
fn a_batch_compares_and_writes_in_one_step() {
    simulate(6, |env| {
        with_node(options(env, 2), |client, _| async move {
            let keyspace = create(&client, "k", hashed(16)).await;
            let put = |key: &str, value: &str| Action::Put {
                keyspace: keyspace.clone(),
                key: key.into(),
                value: value.into(),
                expiry: Expiry::Default,
            };
            let get = |key: &str| Action::Get { keyspace: keyspace.clone(), key: key.into() };
            let compare =
                |key: &str, test| Compare { keyspace: keyspace.clone(), key: key.into(), test };
            let create = Batch {
                compare: vec![compare("a", Test::Exists(false))],
                success: vec![put("a", "1"), put("b", "2"), get("a")],
                failure: vec![get("a"), get("b")],
            };
            let first = client.batch(create.clone()).await.unwrap();
            assert!(first.succeeded);
            let Done::Got(Some(own)) = &first.results[2] else { panic!("{first:?}") };
            assert_eq!((own.value.as_slice(), own.version), (&b"1"[..], None));
            let second = client.batch(create).await.unwrap();
            assert!(!second.succeeded);
            for (result, value) in second.results.iter().zip([b"1", b"2"]) {
                let Done::Got(Some(found)) = result else { panic!("{second:?}") };
                assert_eq!(found.value, value);
                assert_eq!(found.version, Some(first.version), "both are of one moment");
            }
            let update = |version| Batch {
                compare: vec![compare("a", Test::Version(Relation::Equal, version))],
                success: vec![Action::Delete { keyspace: keyspace.clone(), key: b"a".to_vec() }],
                failure: Vec::new(),
            };
            assert!(!client.batch(update(first.version + 1)).await.unwrap().succeeded);
            let deleted = client.batch(update(first.version)).await.unwrap();
            assert!(deleted.succeeded && deleted.version > first.version);
            assert_eq!(deleted.results, [Done::Deleted(true)]);
            assert!(client.batch(update(0)).await.unwrap().results == [Done::Deleted(false)]);
        })
    });
}

#[test]
fn what_an_early_write_met_is_told_later_and_nothing_is_committed() {
    simulate(7, |env| {
        with_node(options(env, 1), |client, _| async move {
            let keyspace = create(&client, "k", Options::default()).await;
            let long = vec![b'x'; 40_000];
            let mut txn = client.begin(Isolation::Serializable);
            txn.put(&keyspace, b"a", b"1", Expiry::Default).await.unwrap();
            txn.put(&keyspace, &long, b"1", Expiry::Default).await.unwrap();
            let told = txn.get(&keyspace, b"a").await;
            assert!(matches!(told, Err(Error::InvalidInput(_))), "{told:?}");
            assert!(matches!(txn.commit().await, Err(Error::InvalidInput(_))));
            assert_eq!(get(&client, &keyspace, b"a").await, None);

            // One that reads only is told at once.
            let mut stale = client.begin(Isolation::BoundedStale(Duration::from_secs(1)));
            let told = stale.put(&keyspace, b"a", b"1", Expiry::Default).await;
            assert!(matches!(told, Err(Error::InvalidInput(_))), "{told:?}");
        })
    });
}

#[test]
fn savepoints_take_back_what_was_written_since() {
    simulate(8, |env| {
        with_node(options(env, 1), |client, _| async move {
            let keyspace = create(&client, "k", hashed(2)).await;
            let mut txn = client.begin(Isolation::Serializable);
            txn.put(&keyspace, b"a", b"1", Expiry::Default).await.unwrap();
            let first = txn.savepoint().unwrap();
            txn.put(&keyspace, b"a", b"2", Expiry::Default).await.unwrap();
            let second = txn.savepoint().unwrap();
            txn.put(&keyspace, b"b", b"3", Expiry::Default).await.unwrap();
            txn.rollback_to(second).await.unwrap();
            assert_eq!(txn.get(&keyspace, b"b").await.unwrap(), None);
            txn.rollback_to(first).await.unwrap();
            assert!(matches!(txn.rollback_to(second).await, Err(Error::InvalidInput(_))));
            txn.commit().await.unwrap();
            assert_eq!(get(&client, &keyspace, b"a").await.as_deref(), Some(&b"1"[..]));
            assert_eq!(get(&client, &keyspace, b"b").await, None);
        })
    });
}

#[test]
fn a_stale_read_sees_the_past_and_not_more_of_it_than_allowed() {
    simulate(9, |env| {
        let clock = env.clock.clone();
        with_node(options(env, 2), |client, _| async move {
            let keyspace = create(&client, "k", Options::default()).await;
            put(&client, &keyspace, b"a", b"old").await;
            clock.sleep(Duration::from_millis(600)).await;
            put(&client, &keyspace, b"a", b"new").await;
            let read = async |most| {
                let mut txn = client.begin(Isolation::BoundedStale(Duration::from_millis(most)));
                txn.get(&keyspace, b"a").await.unwrap().unwrap().value
            };
            assert_eq!(read(500).await, b"old");
            clock.sleep(Duration::from_millis(100)).await;
            assert_eq!(read(50).await, b"new");
        })
    });
}

/// What is known of keyspaces outside of the database.
#[derive(Default)]
struct Known {
    /// By name, the id of what was acknowledged to be there; `None`: to be gone.
    acknowledged: BTreeMap<String, Option<u32>>,
    /// Names whose creation or drop was asked for and not acknowledged.
    asked: BTreeSet<String>,
    /// Every id that was ever seen, with its name and the time it was created.
    ids: BTreeMap<u32, (String, u64)>,
}

impl Known {
    fn see(&mut self, keyspace: &Keyspace) {
        let of = (keyspace.name().to_owned(), keyspace.info().created_ms);
        let before = self.ids.entry(keyspace.info().id).or_insert_with(|| of.clone());
        assert_eq!(*before, of, "an id was given twice");
    }
}

#[test]
fn a_power_cut_at_any_moment_leaves_every_keyspace_whole_or_gone_and_no_id_twice() {
    let mut cuts = 0;
    for seed in 0..40u64 {
        let sim = Sim::new(seed);
        let node = sim.node("n");
        let known: Arc<Mutex<Known>> = Arc::default();
        for life in 0..4u64 {
            let before = node.disk().mutations();
            if life < 3 {
                node.disk().crash_at(before + 30 + (seed * 13 + life * 29) % 160, CrashTiming::Any);
            }
            let shared = known.clone();
            let cores = 1 + (seed % 2) as usize;
            let run = with_node(options(node.env(), cores), |client, _| async move {
                check_known(&client, &shared).await;
                for n in 0..12u64 {
                    let name = format!("k{}/{}", n % 3, (seed + n + life) % 4);
                    let options = if n % 2 == 0 { hashed(4) } else { Options::default() };
                    shared.lock().asked.insert(name.clone());
                    match client.create_keyspace(&name, options).await {
                        Ok((keyspace, _)) => {
                            put(&client, &keyspace, b"k", name.as_bytes()).await;
                            let mut known = shared.lock();
                            known.see(&keyspace);
                            known.acknowledged.insert(name.clone(), Some(keyspace.info().id));
                            known.asked.remove(&name);
                        }
                        Err(Error::Exists { .. }) => {
                            client.drop_keyspace(&name).await.unwrap();
                            let mut known = shared.lock();
                            known.acknowledged.insert(name.clone(), None);
                            known.asked.remove(&name);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            match sim.block_on(&node, run) {
                Ended::Crashed => {
                    cuts += 1;
                    node.restart();
                }
                Ended::Done(()) => _ = node.disk().cancel_crash(),
            }
        }
    }
    assert!(cuts >= 60, "{cuts} power cuts");
}

async fn check_known(client: &Client, known: &Mutex<Known>) {
    let names: BTreeSet<String> = names(client).await.into_iter().collect();
    let (acknowledged, asked) = {
        let known = known.lock();
        (known.acknowledged.clone(), known.asked.clone())
    };
    for (name, id) in acknowledged.iter().filter(|(name, _)| !asked.contains(*name)) {
        assert_eq!(names.contains(name), id.is_some(), "{name}");
        let Some(id) = id else { continue };
        let keyspace = client.keyspace(name).await.unwrap();
        assert_eq!(keyspace.info().id, *id, "{name}");
        assert_eq!(get(client, &keyspace, b"k").await.as_deref(), Some(name.as_bytes()));
    }
    for name in names.iter().filter(|name| asked.contains(*name)) {
        let keyspace = client.keyspace(name).await.unwrap();
        known.lock().see(&keyspace);
        let value = get(client, &keyspace, b"k").await;
        assert!(value.is_none_or(|value| value == name.as_bytes()), "of another keyspace");
        known.lock().acknowledged.insert(name.clone(), None);
    }
}

#[test]
fn no_commit_that_begins_after_a_drop_is_acknowledged_and_nothing_is_left_of_those_before() {
    let (mut committed, mut refused) = (0, 0);
    for seed in 0..8 {
        let counts: Arc<Mutex<(u32, u32)>> = Arc::default();
        let shared = counts.clone();
        simulate(seed, |env| {
            let (clock, tasks) = (env.clock.clone(), env.tasks.clone());
            with_node(options(env, 2), |client, trees| async move {
                // Ids that were given, and when the drop of one was acknowledged.
                let ids: Arc<Mutex<BTreeSet<u32>>> = Arc::default();
                let dropped: Arc<Mutex<BTreeMap<u32, Instant>>> = Arc::default();
                let mut writers = Vec::new();
                for writer in 0..4u64 {
                    let (ended, ends) = oneshot::channel();
                    writers.push(ends);
                    let (client, clock, shared) = (client.clone(), clock.clone(), shared.clone());
                    let (ids, dropped) = (ids.clone(), dropped.clone());
                    let mut prng = Prng::new(seed * 10 + writer);
                    let work = async move {
                        for _ in 0..30 {
                            let made = client.create_keyspace("race/x", hashed(4)).await;
                            let Ok((keyspace, _)) = made else { continue };
                            let id = keyspace.info().id;
                            ids.lock().insert(id);
                            let mut txn = client.begin(Isolation::Serializable);
                            for _ in 0..3 {
                                let key = [prng.below(200) as u8];
                                let _ = txn.put(&keyspace, &key, b"x", Expiry::Default).await;
                            }
                            clock.sleep(Duration::from_micros(prng.below(4_000))).await;
                            let began = clock.now();
                            match txn.commit().await {
                                Ok(_) => {
                                    shared.lock().0 += 1;
                                    let gone = dropped.lock().get(&id).copied();
                                    assert!(gone.is_none_or(|gone| gone >= began), "{gone:?}");
                                }
                                Err(Error::Dropped(_)) => shared.lock().1 += 1,
                                Err(Error::Conflict(_)) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                        let _ = ended.send(());
                    };
                    tasks.spawn("writer", Box::pin(work));
                }
                for _ in 0..25 {
                    clock.sleep(Duration::from_millis(3)).await;
                    let Ok(Some(before)) = client.find_keyspace("race/x").await else { continue };
                    if client.drop_keyspace("race").await.is_ok() {
                        dropped.lock().insert(before.info().id, clock.now());
                    }
                }
                for writer in writers {
                    writer.await.unwrap();
                }
                let _ = client.drop_keyspace("race").await;
                clock.sleep(Duration::from_secs(8)).await;
                let ids = ids.lock().clone();
                assert!(ids.len() > 3, "{ids:?}");
                for id in ids {
                    assert_eq!(stored(&trees, id).await, 0, "keyspace {id}");
                }
            })
        });
        let counts = *counts.lock();
        committed += counts.0;
        refused += counts.1;
    }
    assert!(committed > 50 && refused > 20, "{committed} committed, {refused} refused");
}
