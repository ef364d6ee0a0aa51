//! A node as its users see it: commands, transactions, splits, restarts, power cuts.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::sim::{CrashMode, CrashTiming, Fault, FaultKind, OpKind, Outcome, Sim};
use atoll_env::sync::timeout;
use atoll_kv::Core;
use atoll_lsm::driven::{self, OpenOptions};
use atoll_mvcc::keys::{Placement, RoutingKey, SLOTTED, slot};
use atoll_mvcc::request::Isolation;
use parking_lot::Mutex;
use support::{Call, Client, Reply, Toy, key, open, options, run_node, stop_all, until_stopped};

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
                    .map(|(_, _, reply)| match reply {
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
            assert_eq!(replies, [(other, 1, Reply::Done), (mine, 3, Reply::Number(1))]);
            assert!(
                core.call(Call::Get(key("x")), mine, 4).is_none(),
                "it waits for its own write"
            );
            while replies.len() < 4 {
                core.replied().await;
                core.take_replies(&mut replies);
            }
            assert_eq!(replies[2..], [(mine, 2, Reply::Done), (mine, 4, Reply::Number(1))]);
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

/// A command that waits for a block of a table is elsewhere when its shard is split, and its key is the
/// new shard's then. What its client sent after it comes after it.
#[test]
fn commands_of_a_connection_keep_their_order_across_a_split() {
    let mut overtaken = 0;
    for seed in 0..12 {
        let sim = Sim::new(seed);
        let node = sim.node("n");
        let name = (0..).map(|n| format!("k{n}")).find(|k| slot(k.as_bytes()) >= 8_192).unwrap();
        for life in 0..2 {
            let (disk, name) = (node.clone(), name.clone());
            let waited = Arc::new(Mutex::new(false));
            let told = waited.clone();
            let script = move |core: Core<Toy>| {
                let (disk, name, told) = (disk.clone(), name.clone(), told.clone());
                async move {
                    let mut client = Client::new(&core, 1);
                    if life == 0 {
                        for n in 0..3_000 {
                            client.call(Call::Set(key(&format!("k{n}")), 1)).await;
                        }
                        return;
                    }
                    for _ in 0..3 {
                        let slow = Fault::new(FaultKind::Slow).on(OpKind::Read).path("tables");
                        disk.disk().inject(slow);
                    }
                    let lane = 7;
                    let mut replies = Vec::new();
                    let first = core.call(Call::Get(key(&name)), lane, 1);
                    assert_eq!(first, None, "nothing of a table is in memory yet");
                    let splitting = core.clone();
                    let split = support::spawn(&core, async move {
                        splitting.split_at(RoutingKey::Slot(8_192)).await.unwrap();
                    });
                    while core.table().routes().len() == 1 {
                        core.env().clock.sleep(Duration::from_micros(5)).await;
                    }
                    core.take_replies(&mut replies);
                    *told.lock() = replies.is_empty();
                    let second = core.call(Call::Set(key(&name), 5), lane, 2);
                    replies.extend(second.map(|reply| (lane, 2, reply)));
                    while replies.len() < 2 {
                        core.replied().await;
                        core.take_replies(&mut replies);
                    }
                    split.await.unwrap();
                    replies.sort_unstable_by_key(|(_, token, _)| *token);
                    let in_order = [(lane, 1, Reply::Number(1)), (lane, 2, Reply::Done)];
                    assert_eq!(replies, in_order, "seed {seed}");
                }
            };
            let outcome = sim.block_on(&node, open(options(node.env(), 1, 1), script));
            assert!(matches!(outcome, Outcome::Done(Ok(()))), "seed {seed}: {outcome:?}");
            overtaken += u32::from(*waited.lock());
        }
    }
    assert!(overtaken > 3, "only {overtaken} times was the shard split while the command waited");
}

#[test]
fn a_keyspace_is_not_said_to_be_dropped_by_a_shard_that_is_being_split() {
    let sim = Sim::new(13);
    let node = sim.node("n");
    let outcome = sim.block_on(
        &node,
        open(options(node.env(), 1, 1), move |core| async move {
            let (mut asked, mut refused) = (Vec::new(), 0);
            for n in 0..60u32 {
                let keyspace = SLOTTED + 100 + n;
                let mut txn = core.begin(Isolation::Serializable);
                txn.put(&Placement::Slots.key(keyspace, b"k"), &support::stored(1)).await.unwrap();
                txn.commit().await.unwrap();
                let own = core.clone();
                let splitting = support::spawn(&core, async move {
                    let slot = 1 + (n * 271 % 16_000) as u16;
                    own.split_at(RoutingKey::Slot(slot)).await.unwrap();
                });
                core.env().clock.sleep(Duration::from_micros(u64::from(n) * 20)).await;
                match core.drop_keyspace(keyspace) {
                    true => asked.push(keyspace),
                    false => refused += 1,
                }
                splitting.await.unwrap();
            }
            core.env().clock.sleep(Duration::from_secs(1)).await;
            for keyspace in asked {
                assert!(core.holds_nothing_of(keyspace).await.unwrap(), "{keyspace:x}");
            }
            assert!(refused > 0, "no shard was being split");
        }),
    );
    assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
}

#[test]
fn doubling_loses_no_write_and_delays_none_by_a_tenth_of_a_second() {
    let sim = Sim::new(11);
    let node = sim.node("n");
    let slowest: Arc<Mutex<u64>> = Arc::default();
    let measured = slowest.clone();
    let outcome = sim.block_on(
        &node,
        open(options(node.env(), 2, 4), move |core| {
            let measured = measured.clone();
            async move {
                if core.index() != 0 {
                    support::until_stopped(&core).await;
                    return;
                }
                let mut loads = Vec::new();
                for client in 0..6u64 {
                    let (own, measured) = (core.clone(), measured.clone());
                    let mut client = Client::new(&core, 2 + client);
                    loads.push(support::spawn(&core, async move {
                        for n in 0..1_000u64 {
                            let begun = own.env().clock.now();
                            client.call(Call::Add(key(&format!("k{}", n % 100)), 1)).await;
                            let took = own.env().clock.now().0 - begun.0;
                            let mut slowest = measured.lock();
                            *slowest = took.max(*slowest);
                        }
                    }));
                }
                for expected in [4, 8, 16] {
                    let (split, refusals) = core.reshard_double().await;
                    assert_eq!((split, refusals), (expected, Vec::new()));
                    core.env().clock.sleep(Duration::from_millis(50)).await;
                }
                for load in loads {
                    load.await.unwrap();
                }
                let reports = core.shards().await.unwrap();
                assert_eq!(reports.len(), 32);
                assert!(reports.iter().all(|report| report.serves && report.in_flight == 0));
                assert_eq!(reports.iter().map(|report| report.keys).sum::<u64>(), 100);
                let mut client = Client::new(&core, 1);
                for n in 0..100 {
                    assert_eq!(client.get(&format!("k{n}")).await, Some(60), "k{n}");
                }
                support::stop_all(&core);
            }
        }),
    );
    assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
    let slowest = Duration::from_nanos(*slowest.lock());
    assert!(slowest < Duration::from_millis(100), "a command took {slowest:?}");
}

#[test]
fn a_shard_that_has_grown_too_large_splits_itself_where_its_bytes_are() {
    let sim = Sim::new(12);
    let node = sim.node("n");
    let mut options = options(node.env(), 1, 1);
    options.shard_size = 64 << 10;
    options.engine.memtable_size = 32 << 10;
    options.engine.table_size = 32 << 10;
    options.engine.block_size = 512;
    let outcome = sim.block_on(
        &node,
        open(options, |core| async move {
            let mut client = Client::new(&core, 1);
            for n in 0..8_000u64 {
                client.call(Call::Set(key(&format!("key:{n}")), n)).await;
            }
            core.env().clock.sleep(Duration::from_secs(30)).await;
            let table = core.table();
            table.check().unwrap();
            assert!(table.routes().len() > 1, "nothing was split: {table}");
            for n in 0..8_000 {
                assert_eq!(client.get(&format!("key:{n}")).await, Some(n));
            }
        }),
    );
    assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
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

/// A life in which nobody asks for a sync leads a term all the same. If a power cut took the term
/// away, the next life would lead the same one, with other entries.
#[test]
fn a_term_is_led_once_even_if_nothing_else_was_to_survive() {
    let sim = Sim::new(11);
    let node = sim.node("n");
    let mut before = Vec::new();
    for life in 0..4 {
        let machine = node.clone();
        let run = open(options(node.env(), 1, 2), move |core: Core<Toy>| {
            let machine = machine.clone();
            async move {
                while !core.leads_all() {
                    core.env().clock.sleep(Duration::from_micros(50)).await;
                }
                machine.crash_with(CrashMode::DropAll);
            }
        });
        let _ = sim.block_on(&node, run);
        node.restart();
        let env = node.env();
        let read = async move {
            let options = OpenOptions { options: atoll_lsm::Options::new(env) };
            let store = Path::new("/data/db/store-0");
            let (driver, _) = driven::open(store, options).await.expect("a store that opens");
            let term = |group: driven::GroupSummary| (group.group, group.state.term);
            let terms: Vec<(u64, u64)> = driver.groups().map(term).collect();
            driver.close().await.expect("a store that closes");
            terms
        };
        let terms = sim.block_on(&node, read).done();
        assert_eq!(terms.len(), 2, "{terms:?}");
        let led = |(group, term): &(u64, u64)| {
            before.iter().all(|(of, led): &(u64, u64)| of != group || led < term)
        };
        assert!(terms.iter().all(led), "life {life}: {before:?}, then {terms:?}");
        before = terms;
    }
}

/// Transactions over two cores are cut off at many disk operations. Their intents then wait for a
/// reader, however long it takes, and the record that each leans on must wait with them: the core
/// that has the record learns from the other one what is still needed.
#[test]
fn a_record_outlives_every_restart_while_an_intent_of_another_core_leans_on_it() {
    let mut halves = 0;
    for cut in 0..60u64 {
        let sim = Sim::new(cut);
        let node = sim.node("n");
        node.disk().crash_at(60 + cut * 2, CrashTiming::Any);
        let acknowledged: Arc<Mutex<u64>> = Arc::default();
        let progress = acknowledged.clone();
        let writing = open(options(node.env(), 2, 4), move |core: Core<Toy>| {
            let progress = progress.clone();
            async move {
                if core.index() != 0 {
                    support::until_stopped(&core).await;
                    return;
                }
                for n in 1..100 {
                    let mut txn = core.begin(Isolation::Serializable);
                    for name in ["a", "b", "c", "d", "e", "f"] {
                        txn.put(&key(name), &support::stored(n)).await.unwrap();
                    }
                    txn.commit().await.unwrap();
                    *progress.lock() = n;
                }
                support::stop_all(&core);
            }
        });
        if matches!(sim.block_on(&node, writing), Outcome::Done(_)) {
            continue;
        }
        let low = *acknowledged.lock();
        for life in 0..3 {
            node.disk().cancel_crash();
            node.restart();
            let found: Arc<Mutex<Vec<u64>>> = Arc::default();
            let results = found.clone();
            let waiting = open(options(node.env(), 2, 4), move |core: Core<Toy>| {
                let results = results.clone();
                async move {
                    if core.index() != 0 {
                        support::until_stopped(&core).await;
                        return;
                    }
                    // Nobody reads in the first lives; the horizon moves on.
                    core.env().clock.sleep(Duration::from_secs(8)).await;
                    if life == 2 {
                        let mut client = Client::new(&core, 1);
                        for name in ["a", "b", "c", "d", "e", "f"] {
                            let found = client.get(name).await.unwrap_or(0);
                            results.lock().push(found);
                        }
                    }
                    support::stop_all(&core);
                }
            });
            let outcome = sim.block_on(&node, waiting);
            assert!(matches!(outcome, Outcome::Done(Ok(()))), "cut {cut}: {outcome:?}");
            let found = found.lock();
            if life == 2 {
                assert!(found.iter().all(|n| *n == found[0]), "cut {cut}: half is gone: {found:?}");
                assert!(
                    found[0] >= low,
                    "cut {cut}: {low} was acknowledged, {} is there",
                    found[0]
                );
                halves += 1;
            }
        }
    }
    assert!(halves > 30, "only {halves} runs were cut");
}

#[test]
fn a_clock_that_jumps_takes_no_record_away_that_an_intent_leans_on() {
    // Two keys, the first of them on the other core, and so the record.
    let of = |below: bool| {
        let mut names = (0..).map(|n| format!("k{n}"));
        let slot = |name: &str| u16::from_be_bytes([key(name)[4], key(name)[5]]);
        names.find(|name| (slot(name) < 8_192) == below).expect("names do not end")
    };
    let (low, high) = (of(true), of(false));
    for seed in 0..60u64 {
        let sim = Sim::new(seed);
        let node = sim.node("n");
        let (machine, names) = (node.clone(), [low.clone(), high.clone()]);
        let writing = open(options(node.env(), 2, 2), move |core: Core<Toy>| {
            let (machine, names) = (machine.clone(), names.clone());
            async move {
                if core.index() != 1 {
                    return support::until_stopped(&core).await;
                }
                let sleep = |ms| core.env().clock.sleep(Duration::from_millis(ms));
                sleep(1_000 + seed * 8).await;
                let mut txn = core.begin(Isolation::Serializable);
                for name in &names {
                    txn.put(&key(name), &support::stored(1)).await.unwrap();
                }
                txn.commit().await.unwrap();
                // Its own intent is resolved in memory and not on the disk.
                let hang = Fault::new(FaultKind::Hang).on(OpKind::Sync).path("store-1").sticky();
                machine.disk().inject(hang);
                machine.set_wall_offset_ms(3_600_000);
                sleep(450).await;
                let mut client = Client::new(&core, 9);
                let low = names[0].replace('k', "{k") + "}";
                let _ = timeout(&*core.env().clock, Duration::from_millis(100), async {
                    // Whatever the other core has logged survives.
                    client.call(Call::Set(key(&low), 7)).await
                })
                .await;
                machine.crash_with(CrashMode::DropAll);
                std::future::pending::<()>().await;
            }
        });
        assert!(matches!(sim.block_on(&node, writing), Outcome::Crashed));
        node.disk().clear_faults();
        node.restart();
        let names = [low.clone(), high.clone()];
        let reading = open(options(node.env(), 2, 2), move |core: Core<Toy>| {
            let names = names.clone();
            async move {
                if core.index() != 1 {
                    return support::until_stopped(&core).await;
                }
                let mut client = Client::new(&core, 1);
                for name in &names {
                    assert_eq!(client.get(name).await, Some(1), "seed {seed}: {name} is gone");
                }
                support::stop_all(&core);
            }
        });
        let outcome = sim.block_on(&node, reading);
        assert!(matches!(outcome, Outcome::Done(Ok(()))), "seed {seed}: {outcome:?}");
    }
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

#[test]
fn stores_that_are_missing_exchanged_or_without_their_directorys_identity_are_refused() {
    let sim = Sim::new(3);
    let node = sim.node("n");
    let start = |stores: u16| {
        let mut options = options(node.env(), usize::from(stores), 2);
        options.stores = stores;
        let outcome = sim.block_on(
            &node,
            open(options, |core: Core<Toy>| async move {
                if core.index() > 0 {
                    return until_stopped(&core).await;
                }
                let mut client = Client::new(&core, 1);
                for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
                    assert!(matches!(client.call(Call::Add(key(name), 1)).await, Reply::Number(_)));
                }
                stop_all(&core);
            }),
        );
        let Outcome::Done(result) = outcome else { panic!("nobody crashes it") };
        result.map_err(|e| e.to_string())
    };
    start(2).unwrap();
    let disk = node.disk();
    let files = || -> std::collections::BTreeMap<String, Vec<u8>> {
        let files = disk.files().into_iter();
        files.filter_map(|f| Some((f.clone(), disk.read_file(&f)?))).collect()
    };
    let sound = files();
    let of = |store: &str| -> Vec<String> {
        sound.keys().filter(|f| f.contains(store)).cloned().collect()
    };
    type Damage<'a> = Box<dyn Fn() + 'a>;
    let damage: [(&str, Damage<'_>); 4] = [
        ("ATOLL is missing", Box::new(|| disk.remove_file("/data/db/ATOLL").unwrap())),
        (
            "store-0/ATOLL",
            Box::new(|| {
                of("store-0").iter().for_each(|f| disk.remove_file(f).unwrap());
            }),
        ),
        (
            "not the one that was made here",
            Box::new(|| {
                for (a, b) in [("store-0", "store-1"), ("store-1", "store-0")] {
                    of(a).iter().for_each(|f| disk.remove_file(f).unwrap());
                    for file in of(b) {
                        disk.write_file(file.replace(b, a), &sound[&file]).unwrap();
                    }
                }
            }),
        ),
        (
            "not the one that was made here",
            Box::new(|| {
                of("store-0").iter().for_each(|f| disk.remove_file(f).unwrap());
                for file in of("store-1") {
                    disk.write_file(file.replace("store-1", "store-0"), &sound[&file]).unwrap();
                }
            }),
        ),
    ];
    for (says, damage) in damage {
        damage();
        let damaged = files();
        for stores in [1, 2] {
            let refusal = start(stores).unwrap_err();
            assert!(refusal.contains(says), "{refusal}");
            let left = files();
            let kept = damaged.iter().filter(|(f, _)| f.ends_with(".sst") || f.ends_with(".log"));
            for (file, bytes) in kept.filter(|(f, _)| sound.contains_key(*f)) {
                assert!(left.contains_key(file), "{says}: {file} of {} is gone", bytes.len());
            }
        }
        files().keys().for_each(|f| disk.remove_file(f).unwrap());
        sound.iter().for_each(|(f, bytes)| disk.write_file(f, bytes).unwrap());
        start(2).unwrap();
        files().keys().for_each(|f| disk.remove_file(f).unwrap());
        sound.iter().for_each(|(f, bytes)| disk.write_file(f, bytes).unwrap());
    }
}
