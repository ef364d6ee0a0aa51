//! A node as its users see it: commands, transactions, splits, restarts, power cuts.

mod support;

use std::sync::Arc;
use std::time::Duration;

use atoll_env::sim::{CrashTiming, Outcome, Sim};
use atoll_kv::Core;
use atoll_mvcc::keys::RoutingKey;
use atoll_mvcc::request::Isolation;
use parking_lot::Mutex;
use support::{Call, Client, Reply, Toy, key, open, options, run_node};

#[test]
fn what_was_set_is_read_and_survives_a_restart() {
    let sim = Sim::new(1);
    let node = sim.node("n");
    for round in 0..3u64 {
        let outcome = sim.block_on(
            &node,
            open(options(node.env(), 1, 2), move |core| async move {
                let mut client = Client::new(&core, 1);
                if round > 0 {
                    assert_eq!(client.get("a").await, Some(round));
                }
                assert_eq!(client.call(Call::Add(key("a"), 1)).await, Reply::Number(round + 1));
                assert_eq!(client.call(Call::Set(key("b"), 7)).await, Reply::Done);
                assert_eq!(client.get("b").await, Some(7));
            }),
        );
        assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
    }
}

#[test]
fn increments_of_one_key_in_flight_share_their_entries() {
    let sim = Sim::new(2);
    let node = sim.node("n");
    let syncs = Arc::new(Mutex::new((0, 0)));
    let seen = syncs.clone();
    let disk = node.clone();
    let outcome = sim.block_on(
        &node,
        open(options(node.env(), 1, 1), move |core| {
            let (seen, disk) = (seen.clone(), disk.clone());
            async move {
                let before = disk.disk().mutations();
                let mut waiting = Vec::new();
                for n in 0..800 {
                    if core.call(Call::Add(key("hot"), 1), n % 50, n).is_none() {
                        waiting.push(n);
                    }
                }
                let mut replies = Vec::new();
                while replies.len() < waiting.len() {
                    core.replied().await;
                    core.take_replies(&mut replies);
                }
                let mut numbers: Vec<u64> = replies
                    .into_iter()
                    .map(|(_, reply)| match reply {
                        Reply::Number(n) => n,
                        other => panic!("{other:?}"),
                    })
                    .collect();
                numbers.sort_unstable();
                assert_eq!(numbers, (1..=800).collect::<Vec<_>>());
                *seen.lock() = (before, disk.disk().mutations());
            }
        }),
    );
    assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
    let (before, after) = *syncs.lock();
    assert!(after - before < 20, "{} disk operations for 800 increments", after - before);
}

#[test]
fn a_client_that_does_not_wait_sees_its_own_writes_whatever_it_read_between() {
    let sim = Sim::new(5);
    let node = sim.node("n");
    let outcome = sim.block_on(
        &node,
        open(options(node.env(), 1, 1), |core| async move {
            let (other, mine) = (1, 2);
            assert!(core.call(Call::Set(key("y"), 1), other, 1).is_none());
            // Its entry is on the way to the disk; the next one is open.
            core.env().clock.sleep(Duration::from_micros(1)).await;
            assert!(core.call(Call::Set(key("x"), 1), mine, 2).is_none());
            assert!(core.call(Call::Get(key("y")), mine, 3).is_none());
            let mut replies = Vec::new();
            while replies.len() < 2 {
                core.replied().await;
                core.take_replies(&mut replies);
            }
            // Answered with the first entry; the second is not applied.
            assert_eq!(replies, [(1, Reply::Done), (3, Reply::Number(1))]);
            assert!(
                core.call(Call::Get(key("x")), mine, 4).is_none(),
                "it waits for its own write"
            );
            while replies.len() < 4 {
                core.replied().await;
                core.take_replies(&mut replies);
            }
            assert_eq!(replies[2..], [(2, Reply::Done), (4, Reply::Number(1))]);
        }),
    );
    assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
}

#[test]
fn a_transaction_over_shards_of_two_cores_is_seen_whole_or_not_at_all() {
    let sim = Sim::new(3);
    let node = sim.node("n");
    let outcome = sim.block_on(
        &node,
        open(options(node.env(), 2, 4), |core| async move {
            if core.index() != 0 {
                support::until_stopped(&core).await;
                return;
            }
            let mut client = Client::new(&core, 1);
            for n in 0..8 {
                client.call(Call::Set(key(&format!("account{n}")), 100)).await;
            }
            for round in 0..40u64 {
                let coordinator = core.coordinator();
                let (from, to) = (round % 8, (round * 5 + 1) % 8);
                let moved = coordinator
                    .run(Isolation::Serializable, async |txn| {
                        let (a, b) = (key(&format!("account{from}")), key(&format!("account{to}")));
                        if a == b {
                            return Ok::<_, atoll_txn::Error>(());
                        }
                        let x = support::number(txn.get(&a).await?);
                        let y = support::number(txn.get(&b).await?);
                        txn.put(&a, &support::stored(x - 1)).await?;
                        txn.put(&b, &support::stored(y + 1)).await?;
                        Ok(())
                    })
                    .await;
                moved.unwrap();
                let mut sum = 0;
                let mut txn = core.begin(Isolation::Snapshot);
                for n in 0..8 {
                    sum += support::number(txn.get(&key(&format!("account{n}"))).await.unwrap());
                }
                assert_eq!(sum, 800, "round {round}");
            }
            support::stop_all(&core);
        }),
    );
    assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
}

#[test]
fn a_split_under_load_loses_nothing_and_stays_after_a_restart() {
    let sim = Sim::new(4);
    let node = sim.node("n");
    for round in 0..2u64 {
        let outcome = sim.block_on(
            &node,
            open(options(node.env(), 1, 1), move |core| async move {
                if round == 0 {
                    let loader = Client::new(&core, 2);
                    let load = support::spawn(&core, async move {
                        let mut loader = loader;
                        for n in 0..300u64 {
                            let name = format!("k{}", n % 100);
                            loader.call(Call::Add(key(&name), 1)).await;
                        }
                    });
                    for slot in [8_192, 4_096, 12_288] {
                        core.split_at(RoutingKey::Slot(slot)).await.unwrap();
                    }
                    load.await.unwrap();
                }
                let table = core.table();
                table.check().unwrap();
                assert_eq!(table.routes().len(), 4, "{table}");
                let mut client = Client::new(&core, 1);
                for n in 0..100 {
                    assert_eq!(client.get(&format!("k{n}")).await, Some(3), "k{n}");
                }
                let refused = core.split_at(RoutingKey::Slot(8_192)).await;
                assert!(refused.is_err(), "a shard cannot be cut at its own start");
            }),
        );
        assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
    }
}

/// What a client knows of its writes.
#[derive(Default)]
struct Known {
    /// The last sum that was acknowledged.
    acknowledged: u64,
    /// The last sum that was asked for.
    sent: u64,
    /// Numbers whose key was set and acknowledged.
    set: Vec<u64>,
}

/// Sends numbered writes until the power is cut.
fn load_until_cut(
    sim: &Sim,
    node: &atoll_env::sim::Node,
    cores: usize,
    progress: &Arc<Mutex<Known>>,
) {
    let shared = progress.clone();
    let run = open(options(node.env(), cores, 4), move |core: Core<Toy>| {
        let progress = shared.clone();
        async move {
            if core.index() != 0 {
                support::until_stopped(&core).await;
                return;
            }
            let mut client = Client::new(&core, 1);
            let before = client.get("count").await.unwrap_or(0);
            for n in before + 1..before + 200 {
                progress.lock().sent = n;
                assert_eq!(client.call(Call::Add(key("count"), 1)).await, Reply::Number(n));
                progress.lock().acknowledged = n;
                let set = Call::Set(key(&format!("n{n}")), n);
                assert_eq!(client.call(set).await, Reply::Done);
                progress.lock().set.push(n);
                if n % 50 == 0 {
                    let _ = core.split_at(RoutingKey::Slot((n * 61 % 16_384) as u16)).await;
                }
            }
            support::stop_all(&core);
        }
    });
    let outcome = sim.block_on(node, run);
    if let Outcome::Done(result) = outcome {
        result.expect("the run ends in order unless the power is cut");
    }
}

#[test]
fn a_power_cut_anywhere_leaves_every_acknowledged_write() {
    let mut cuts = 0;
    for seed in 0..60u64 {
        let sim = Sim::new(seed);
        let node = sim.node("n");
        let cores = 1 + (seed % 2) as usize;
        node.disk().crash_at(40 + seed * 7, CrashTiming::Any);
        let known: Arc<Mutex<Known>> = Arc::default();
        load_until_cut(&sim, &node, cores, &known);
        for _ in 0..2 {
            cuts += 1;
            node.disk().cancel_crash();
            node.restart();
            let results = known.clone();
            let outcome = sim.block_on(
                &node,
                open(options(node.env(), cores, 4), move |core| {
                    let results = results.clone();
                    async move {
                        if core.index() != 0 {
                            support::until_stopped(&core).await;
                            return;
                        }
                        let mut client = Client::new(&core, 1);
                        let count = client.get("count").await.unwrap_or(0);
                        let low = results.lock().acknowledged;
                        let high = results.lock().sent;
                        assert!((low..=high).contains(&count), "{count} of {low}..={high}");
                        let set = results.lock().set.clone();
                        for n in set {
                            assert_eq!(client.get(&format!("n{n}")).await, Some(n));
                        }
                        support::stop_all(&core);
                    }
                }),
            );
            assert!(matches!(outcome, Outcome::Done(Ok(()))), "seed {seed}: {outcome:?}");
            node.disk().crash_at(node.disk().mutations() + 30 + seed, CrashTiming::Any);
            load_until_cut(&sim, &node, cores, &known);
        }
    }
    assert!(cuts >= 100);
}

#[test]
fn the_real_disk_and_threads_serve_as_the_simulator_does() {
    let dir = tempfile::tempdir().unwrap();
    let env = atoll_env::os::env().unwrap();
    let path = dir.path().join("db");
    for round in 0..2u64 {
        let mut options = options(env.clone(), 2, 4);
        options.path = path.clone();
        run_node(options, move |core| async move {
            if core.index() != 0 {
                support::until_stopped(&core).await;
                return;
            }
            let mut client = Client::new(&core, 1);
            for n in 0..200u64 {
                let name = format!("k{n}");
                assert_eq!(client.call(Call::Add(key(&name), 1)).await, Reply::Number(round + 1));
            }
            support::stop_all(&core);
        });
    }
}
