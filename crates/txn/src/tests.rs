//! Scenes: one thing at a time, on reference shards in calm weather.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sim::{Node, Sim};
use atoll_mvcc::TxnId;
use atoll_mvcc::request::{Isolation, Key, Request, Response, Span};

use crate::proof::{Cluster, ReferenceCluster, ReferenceShards, Weather};
use crate::{
    Abort, Coordinator, Deadlocks, Error, LocalOracle, Options, ScanOptions, ShardRef, Shards,
};

const CALM: Weather = Weather { network_us: 50, apply_us: 100, tail: 0.0, breaks: 0.0, late_us: 0 };

type Txns = Coordinator<Watched, LocalOracle>;

/// Shards that write down what they are asked, and can be switched off.
#[derive(Clone)]
struct Watched {
    shards: ReferenceShards,
    asked: Rc<RefCell<Vec<&'static str>>>,
    /// Questions of this kind are not answered.
    mute: Rc<RefCell<Option<&'static str>>>,
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::Get { .. } => "Get",
        Request::Scan { .. } => "Scan",
        Request::Lock { .. } => "Lock",
        Request::Unlock { .. } => "Unlock",
        Request::Waits { .. } => "Waits",
        Request::Commit { .. } => "Commit",
        Request::Validate { .. } => "Validate",
        Request::Prewrite { .. } => "Prewrite",
        Request::Restage { .. } => "Restage",
        Request::Finish { .. } => "Finish",
        Request::Status { .. } => "Status",
        Request::Probe { .. } => "Probe",
        Request::Resolve { .. } => "Resolve",
        Request::Forget { .. } => "Forget",
        Request::Heartbeat { .. } => "Heartbeat",
    }
}

impl Shards for Watched {
    fn shard_of(&self, key: &[u8]) -> ShardRef {
        self.shards.shard_of(key)
    }

    fn pieces(&self, span: &Span) -> Vec<(ShardRef, Span)> {
        self.shards.pieces(span)
    }

    async fn send(&self, request: Request) -> Response {
        let kind = kind(&request);
        if *self.mute.borrow() == Some(kind) {
            return Response::Unavailable("it was told to be silent".into());
        }
        self.asked.borrow_mut().push(kind);
        self.shards.send(request).await
    }
}

struct Rig {
    cluster: ReferenceCluster,
    oracle: LocalOracle,
    deadlocks: std::sync::Arc<Deadlocks>,
    ground: Env,
}

impl Rig {
    /// Starts a coordinator on a node.
    fn coordinator(&self, node: &Node, options: Options) -> (Txns, Watched) {
        let shards =
            Watched { shards: self.cluster.shards(), asked: Rc::default(), mute: Rc::default() };
        let env = node.env();
        let (coordinator, background) = Coordinator::new(
            shards.clone(),
            self.oracle.clone(),
            &env,
            self.deadlocks.clone(),
            options,
        );
        env.tasks.spawn_local("background", Box::pin(background.run()));
        (coordinator, shards)
    }

    async fn sleep_ms(&self, ms: u64) {
        self.ground.clock.sleep(Duration::from_millis(ms)).await;
    }
}

/// Runs a scene with shards [a, h), [h, p), [p, ..) and two nodes.
fn scene(play: impl AsyncFnOnce(Rig, Node, Node)) {
    let sim = Sim::new(7);
    let ground = sim.node("shards");
    let (one, two) = (sim.node("one"), sim.node("two"));
    sim.block_on(&ground, async {
        let env = ground.env();
        let oracle = LocalOracle::new(env.clock.clone());
        let starts: Vec<Key> = ["a", "h", "p"].map(|key| key.as_bytes().to_vec()).into();
        let cluster = ReferenceCluster::new(&env, &oracle, &starts, Prng::new(1), CALM);
        let rig = Rig { cluster, oracle, deadlocks: Deadlocks::new(), ground: env };
        play(rig, one, two).await;
    })
    .done();
}

fn text(value: Option<Vec<u8>>) -> Option<String> {
    value.map(|value| String::from_utf8(value).unwrap())
}

const ALL: ScanOptions = ScanOptions { limit: usize::MAX, reverse: false };

#[test]
fn one_shard_commits_in_one_request() {
    scene(async |rig, one, _| {
        let (txns, watched) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Serializable);
        assert_eq!(txn.get(b"a").await.unwrap(), None);
        txn.put(b"b", b"1").await.unwrap();
        let ts = txn.commit().await.unwrap();
        assert_eq!(*watched.asked.borrow(), ["Get", "Commit"]);
        let mut txn = txns.begin(Isolation::Serializable);
        assert_eq!(text(txn.get(b"b").await.unwrap()), Some("1".into()));
        assert!(txn.commit().await.unwrap() > ts);
    });
}

#[test]
fn the_answer_leaves_at_the_commit_point_and_the_rest_is_done_behind_it() {
    scene(async |rig, one, two| {
        let (txns, watched) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Serializable);
        txn.get(b"z").await.unwrap();
        txn.put(b"a", b"1").await.unwrap();
        txn.put(b"h", b"2").await.unwrap();
        let ts = txn.commit().await.unwrap();
        assert_eq!(*watched.asked.borrow(), ["Get", "Validate", "Prewrite", "Prewrite"]);
        assert_eq!(rig.cluster.intents().len(), 2);
        // Its coordinator dies with the answer on its way: it is committed all the same.
        one.crash();
        let (others, _) = rig.coordinator(&two, Options::default());
        let mut txn = others.begin(Isolation::Snapshot);
        assert_eq!(text(txn.get(b"h").await.unwrap()), Some("2".into()));
        assert_eq!(text(txn.get(b"a").await.unwrap()), Some("1".into()));
        assert!(txn.read_ts().unwrap() > ts);
        assert_eq!(rig.cluster.intents(), []);
    });
}

#[test]
fn the_background_leaves_neither_intent_nor_record() {
    scene(async |rig, one, _| {
        let (txns, watched) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Snapshot);
        for key in ["a", "h", "p"] {
            txn.put(key.as_bytes(), b"1").await.unwrap();
        }
        txn.commit().await.unwrap();
        watched.asked.borrow_mut().clear();
        rig.sleep_ms(50).await;
        assert_eq!(*watched.asked.borrow(), ["Finish", "Resolve", "Resolve"]);
        assert_eq!(rig.cluster.intents(), []);
        assert_eq!(txns.oldest_read(), None);
        // Its record goes with others, at leisure.
        rig.sleep_ms(1_050).await;
        assert_eq!(watched.asked.borrow()[3..], ["Forget"]);
    });
}

#[test]
fn what_a_transaction_writes_itself_does_not_push_it() {
    scene(async |rig, one, _| {
        let (txns, watched) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Serializable);
        txn.lock_all(&["a", "h"], true).await.unwrap();
        txn.put(b"a", b"1").await.unwrap();
        txn.put(b"h", b"2").await.unwrap();
        txn.commit().await.unwrap();
        assert_eq!(*watched.asked.borrow(), ["Lock", "Lock", "Prewrite", "Prewrite"]);
        assert_eq!(txns.stats().pushed.get(), 0);
    });
}

#[test]
fn very_many_keys_commit_by_a_record_of_their_own() {
    scene(async |rig, one, two| {
        let (txns, watched) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Serializable);
        for n in 0..5_000u32 {
            let key = [if n % 2 == 0 { b'a' } else { b'q' }, (n >> 8) as u8, n as u8];
            txn.put(&key, b"x").await.unwrap();
        }
        txn.commit().await.unwrap();
        assert_eq!(*watched.asked.borrow(), ["Prewrite", "Prewrite", "Finish"]);
        assert_eq!(txns.stats().two_rounds.get(), 1);
        one.crash();
        let (others, _) = rig.coordinator(&two, Options::default());
        let mut txn = others.begin(Isolation::Serializable);
        let span = Span { start: b"a".to_vec(), end: b"z".to_vec() };
        assert_eq!(txn.scan(span, ALL).await.unwrap().rows.len(), 5_000);
    });
}

#[test]
fn a_dropped_transaction_gives_its_locks_back() {
    scene(async |rig, one, _| {
        let (txns, _) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Serializable);
        txn.lock_all(&["a", "z"], true).await.unwrap();
        drop(txn);
        let before = rig.ground.clock.now();
        let mut txn = txns.begin(Isolation::Serializable);
        txn.lock_all(&["a", "z"], true).await.unwrap();
        assert!(rig.ground.clock.now().since(before) < Duration::from_millis(20));
    });
}

#[test]
fn an_idle_transaction_is_ended_and_says_so() {
    scene(async |rig, one, _| {
        let options = Options { idle: Duration::from_secs(5), ..Options::default() };
        let (txns, _) = rig.coordinator(&one, options);
        let mut txn = txns.begin(Isolation::Serializable);
        txn.get_for_update(b"a").await.unwrap();
        rig.sleep_ms(3_900).await;
        txn.get(b"b").await.unwrap();
        rig.sleep_ms(3_900).await;
        txn.get(b"b").await.unwrap();
        assert!(txns.oldest_read().is_some());
        rig.sleep_ms(6_500).await;
        let error = txn.get(b"b").await.unwrap_err();
        assert_eq!(error, Error::Aborted(Abort::Idle(Duration::from_secs(5))));
        assert_eq!(error.to_string(), "the transaction was aborted: it did nothing for 5 s");
        assert_eq!(txns.oldest_read(), None);
        let before = rig.ground.clock.now();
        txns.begin(Isolation::Serializable).get_for_update(b"a").await.unwrap();
        assert!(rig.ground.clock.now().since(before) < Duration::from_millis(20));
    });
}

#[test]
fn locks_of_the_living_are_kept_and_those_of_the_dead_are_not() {
    scene(async |rig, one, two| {
        let (txns, _) = rig.coordinator(&one, Options::default());
        let (others, _) = rig.coordinator(&two, Options::default());
        let mut txn = txns.begin(Isolation::Serializable);
        txn.get_for_update(b"a").await.unwrap();
        let waits = others.begin(Isolation::Serializable).get_for_update(b"a").await;
        assert_eq!(waits, Err(Error::Aborted(Abort::LockTimeout(b"a".to_vec()))));
        let before = rig.ground.clock.now();
        one.crash();
        others.begin(Isolation::Serializable).get_for_update(b"a").await.unwrap();
        let waited = rig.ground.clock.now().since(before);
        assert!(waited > Duration::from_secs(1) && waited < Duration::from_secs(4), "{waited:?}");
    });
}

#[test]
fn a_deadlock_over_two_shards_is_broken_at_once_and_the_younger_gives_up() {
    scene(async |rig, one, two| {
        let (older, _) = rig.coordinator(&one, Options::default());
        let (younger, _) = rig.coordinator(&two, Options::default());
        let mut a = older.begin(Isolation::Serializable);
        rig.sleep_ms(1).await;
        let mut b = younger.begin(Isolation::Serializable);
        a.get_for_update(b"a").await.unwrap();
        b.get_for_update(b"z").await.unwrap();
        let before = rig.ground.clock.now();
        let b = async {
            let lost = b.get_for_update(b"a").await;
            (lost, rig.ground.clock.now().since(before))
        };
        let (a, (b, after)) = crate::join::join(a.get_for_update(b"z"), b).await;
        assert_eq!(a, Ok(None));
        assert_eq!(b, Err(Error::Aborted(Abort::Deadlock)));
        assert!(after < Duration::from_millis(150), "{after:?}");
        assert_eq!(rig.deadlocks.broken(), 1);
    });
}

#[test]
fn counters_counted_by_many_at_once_are_exact() {
    for isolation in [Isolation::Serializable, Isolation::Snapshot, Isolation::ReadCommitted] {
        scene(async |rig, one, two| {
            let (first, _) = rig.coordinator(&one, Options::default());
            let (second, _) = rig.coordinator(&two, Options::default());
            let count = async |txns: Txns| {
                for _ in 0..10 {
                    txns.run(isolation, async |txn| {
                        for key in [b"a", b"z"] {
                            let n = if isolation == Isolation::ReadCommitted {
                                txn.get_for_update(key).await?
                            } else {
                                txn.get(key).await?
                            };
                            let n = n.map_or(0, |n| n[0]) + 1;
                            txn.put(key, &[n]).await?;
                        }
                        Ok::<(), Error>(())
                    })
                    .await
                    .unwrap();
                }
            };
            let tasks = [&first, &first, &second, &second].map(|txns| count(txns.clone()));
            crate::join::join_all(tasks).await;
            let mut txn = first.begin(Isolation::Serializable);
            let values = txn.multi_get(&["a", "z"]).await.unwrap();
            assert_eq!(values, [Some(vec![40]), Some(vec![40])], "{isolation:?}");
        });
    }
}

#[test]
fn a_lock_that_shows_something_newer_moves_the_moment_or_ends_the_transaction() {
    scene(async |rig, one, _| {
        let (txns, _) = rig.coordinator(&one, Options::default());
        let set = async |key: &[u8], value: &[u8]| {
            let mut txn = txns.begin(Isolation::Snapshot);
            txn.put(key, value).await.unwrap();
            txn.commit().await.unwrap();
        };
        // What was read before still holds: the moment moves, and both are seen as of one moment.
        let mut txn = txns.begin(Isolation::Serializable);
        txn.get(b"b").await.unwrap();
        let before = txn.read_ts();
        set(b"a", b"1").await;
        assert_eq!(text(txn.get_for_update(b"a").await.unwrap()), Some("1".into()));
        assert!(txn.read_ts() > before);
        txn.put(b"a", b"2").await.unwrap();
        txn.commit().await.unwrap();
        // It does not hold any more.
        let mut txn = txns.begin(Isolation::Serializable);
        txn.get(b"b").await.unwrap();
        set(b"b", b"1").await;
        set(b"a", b"3").await;
        let error = txn.get_for_update(b"a").await.unwrap_err();
        assert_eq!(error, Error::Aborted(Abort::ReadConflict(b"b".to_vec())));
        assert!(error.is_retryable());
        // A snapshot does not remember what it read.
        let mut txn = txns.begin(Isolation::Snapshot);
        txn.get(b"b").await.unwrap();
        set(b"a", b"4").await;
        let error = txn.get_for_update(b"a").await.unwrap_err();
        assert_eq!(error, Error::Aborted(Abort::WriteConflict(b"a".to_vec())));
        // It has read nothing: its moment is still free.
        let mut txn = txns.begin(Isolation::Snapshot);
        txn.get_for_update(b"a").await.unwrap();
        set(b"b", b"5").await;
        assert_eq!(text(txn.get(b"b").await.unwrap()), Some("5".into()));
    });
}

#[test]
fn read_committed_sees_what_is_committed_when_each_statement_begins() {
    scene(async |rig, one, _| {
        let (txns, _) = rig.coordinator(&one, Options::default());
        let set = async |value: &[u8]| {
            let mut txn = txns.begin(Isolation::Snapshot);
            txn.put(b"a", value).await.unwrap();
            txn.commit().await.unwrap();
        };
        let mut txn = txns.begin(Isolation::ReadCommitted);
        let mut snapshot = txns.begin(Isolation::Snapshot);
        for expected in [None, Some("1"), Some("2")] {
            assert_eq!(text(txn.get(b"a").await.unwrap()).as_deref(), expected);
            assert_eq!(snapshot.get(b"a").await.unwrap(), None);
            set(if expected.is_none() { b"1" } else { b"2" }).await;
        }
        txn.begin_statement();
        txn.get(b"z").await.unwrap();
        set(b"3").await;
        assert_eq!(text(txn.get(b"a").await.unwrap()).as_deref(), Some("2"));
        txn.begin_statement();
        assert_eq!(text(txn.get(b"a").await.unwrap()).as_deref(), Some("3"));
    });
}

#[test]
fn a_scan_merges_own_writes_in_both_directions_and_goes_on_where_it_stopped() {
    scene(async |rig, one, _| {
        let (txns, _) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Snapshot);
        for key in ["b", "d", "i", "k", "q", "s"] {
            txn.put(key.as_bytes(), b"old").await.unwrap();
        }
        txn.commit().await.unwrap();
        let mut txn = txns.begin(Isolation::Serializable);
        txn.put(b"a", b"new").await.unwrap();
        txn.put(b"d", b"new").await.unwrap();
        txn.delete(b"i").await.unwrap();
        txn.delete(b"k").await.unwrap();
        txn.put(b"z", b"new").await.unwrap();
        let expected = ["a", "b", "d", "q", "s", "z"];
        for reverse in [false, true] {
            for limit in 1..8 {
                let mut left = Some(Span { start: b"a".to_vec(), end: b"zz".to_vec() });
                let mut keys = Vec::new();
                while let Some(span) = left {
                    let page = txn.scan(span, ScanOptions { limit, reverse }).await.unwrap();
                    assert!(page.rows.len() == limit || page.more.is_none());
                    keys.extend(page.rows.into_iter().map(|(k, _)| String::from_utf8(k).unwrap()));
                    left = page.more;
                }
                if reverse {
                    keys.reverse();
                }
                assert_eq!(keys, expected, "limit {limit} reverse {reverse}");
            }
        }
    });
}

#[test]
fn what_would_be_too_large_is_refused_and_the_rest_can_be_committed() {
    scene(async |rig, one, _| {
        let options = Options { write_bytes_max: 100, write_keys_max: 3, ..Options::default() };
        let (txns, _) = rig.coordinator(&one, options);
        let mut txn = txns.begin(Isolation::Serializable);
        txn.put(b"a", &[0; 50]).await.unwrap();
        let error = txn.put(b"b", &[0; 60]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the transaction is too large: it writes more than 100 bytes; split it into smaller ones"
        );
        txn.put(b"b", b"").await.unwrap();
        txn.put(b"c", b"").await.unwrap();
        assert!(matches!(txn.put(b"d", b"").await, Err(Error::TooLarge { .. })));
        txn.put(b"a", &[0; 97]).await.unwrap();
        txn.commit().await.unwrap();
    });
}

#[test]
fn a_read_at_a_moment_sees_the_past_and_neither_writes_nor_looks_into_the_future() {
    scene(async |rig, one, _| {
        let (txns, _) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Serializable);
        txn.put(b"a", b"1").await.unwrap();
        let first = txn.commit().await.unwrap();
        let mut txn = txns.begin(Isolation::Serializable);
        txn.put(b"a", b"2").await.unwrap();
        txn.commit().await.unwrap();
        let mut txn = txns.begin_at(first).unwrap();
        assert_eq!(text(txn.get(b"a").await.unwrap()), Some("1".into()));
        assert!(matches!(txn.put(b"a", b"").await, Err(Error::Misuse(_))));
        assert!(matches!(txn.get_for_update(b"a").await, Err(Error::Misuse(_))));
        assert_eq!(txn.commit().await, Ok(first));
        let future = atoll_mvcc::Timestamp(first.0 + (1 << 40));
        assert!(matches!(txns.begin_at(future), Err(Error::Misuse(_))));
        rig.cluster.set_safepoint(first);
        let too_old = txns.begin_at(first.prev()).unwrap().get(b"a").await.unwrap_err();
        assert_eq!(too_old, Error::Aborted(Abort::SnapshotTooOld));
        assert!(!too_old.is_retryable());
    });
}

#[test]
fn an_outcome_that_nobody_can_tell_in_time_can_be_asked_for_later() {
    scene(async |rig, one, _| {
        let (txns, watched) = rig.coordinator(&one, Options::default());
        let mut txn = txns.begin(Isolation::Serializable);
        // A refused prewrite: somebody else has locked what it writes.
        let mut other = txns.begin(Isolation::Serializable);
        other.get_for_update(b"z").await.unwrap();
        txn.put(b"a", b"1").await.unwrap();
        txn.put(b"z", b"1").await.unwrap();
        *watched.mute.borrow_mut() = Some("Finish");
        let Err(Error::Unknown(doubt)) = txn.commit().await else {
            panic!("the record could not be written, so nobody can know");
        };
        assert_eq!(doubt.primary, b"a");
        *watched.mute.borrow_mut() = None;
        assert_eq!(txns.settle(&doubt).await, Ok(None));
        rig.sleep_ms(2_000).await;
        assert_eq!(rig.cluster.intents(), []);
        assert_eq!(txns.stats().unknown.get(), 1);
    });
}

#[test]
fn shards_that_do_not_serve_are_told_apart_from_an_abort() {
    scene(async |rig, one, _| {
        let (txns, watched) = rig.coordinator(&one, Options::default());
        *watched.mute.borrow_mut() = Some("Get");
        let mut txn = txns.begin(Isolation::Serializable);
        let error = txn.get(b"a").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the database could not serve in time: it was told to be silent; try again"
        );
        // The transaction is as it was.
        *watched.mute.borrow_mut() = None;
        assert_eq!(txn.get(b"a").await, Ok(None));
        *watched.mute.borrow_mut() = Some("Commit");
        txn.put(b"a", b"1").await.unwrap();
        let error = txn.commit().await.unwrap_err();
        assert!(matches!(error, Error::Aborted(Abort::Unavailable(_))), "{error}");
    });
}

#[test]
fn transactions_can_go_from_thread_to_thread_if_their_shards_can() {
    #[derive(Clone)]
    struct Nowhere;
    impl Shards for Nowhere {
        fn shard_of(&self, _: &[u8]) -> ShardRef {
            ShardRef { id: 0, epoch: 0 }
        }
        fn pieces(&self, _: &Span) -> Vec<(ShardRef, Span)> {
            Vec::new()
        }
        async fn send(&self, _: Request) -> Response {
            Response::NotMine
        }
    }
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let sim = Sim::new(1);
    let env = sim.node("a").env();
    let oracle = LocalOracle::new(env.clock.clone());
    let (coordinator, background) =
        Coordinator::new(Nowhere, oracle, &env, Deadlocks::new(), Options::default());
    drop(is_send(background.run()));
    let mut txn = is_send(coordinator.begin(Isolation::Serializable));
    assert_ne!(txn.id(), TxnId(0));
    drop(is_send(txn.get(b"a")));
    drop(is_send(txn.commit()));
}
