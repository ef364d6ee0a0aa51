//! The executor and the promises of the simulated disk.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::disk::{File, IoClass, IoTag, OpenMode};
use crate::mesh::mesh;
use crate::sim::{
    CrashMode, CrashTiming, DiskFaults, DiskOptions, Fault, FaultKind, Node, OpKind, Outcome, Sim,
};
use crate::sync::{Elapsed, oneshot, timeout};
use crate::task::{LocalBoxFuture, yield_now};
use crate::{Env, IoBuf};

const TAG: IoTag = IoTag::new(IoClass::Log, "test");

async fn create(env: &Env, path: &str) -> io::Result<Arc<dyn File>> {
    env.disk.open(Path::new(path), OpenMode::CreateNew).await
}

async fn write(file: &Arc<dyn File>, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_at(TAG, offset, IoBuf::from(bytes)).await.map(drop)
}

async fn read(file: &Arc<dyn File>, len: usize) -> io::Result<Vec<u8>> {
    file.read_at(TAG, 0, IoBuf::zeroed(len)).await.map(|buf| buf.to_vec())
}

/// Makes a node and hands it to `test`, with its controls.
fn with_node<T>(seed: u64, test: impl FnOnce(&Sim, &Node, Env) -> T) -> (Sim, Node, T) {
    let sim = Sim::new(seed);
    let node = sim.node("a");
    let output = test(&sim, &node, node.env());
    (sim, node, output)
}

/// Runs `work` on a fresh node.
fn on_node<F: Future>(seed: u64, work: impl FnOnce(Env) -> F) -> (Sim, Node, F::Output) {
    with_node(seed, |sim, node, env| sim.block_on(node, work(env)).done())
}

mod executor {
    use super::*;

    #[test]
    fn a_paused_node_does_nothing_and_its_time_goes_on() {
        let sim = Sim::new(1);
        let (frozen, other) = (sim.node("frozen"), sim.node("other"));
        let ticks = Rc::new(RefCell::new(Vec::new()));
        let (seen, clock) = (ticks.clone(), frozen.env().clock);
        let watched = other.env();
        sim.block_on(&other, async {
            frozen.env().tasks.spawn_local(
                "tick",
                Box::pin(async move {
                    loop {
                        clock.sleep(Duration::from_millis(100)).await;
                        seen.borrow_mut().push(clock.now().0 / 1_000_000);
                    }
                }),
            );
            watched.clock.sleep(Duration::from_millis(250)).await;
            frozen.pause(Duration::from_secs(2));
            watched.clock.sleep(Duration::from_millis(2200)).await;
        })
        .done();
        assert_eq!(*ticks.borrow(), [100, 200, 2250, 2350]);
    }

    #[test]
    fn sleepers_wake_in_the_order_of_virtual_time() {
        let (sim, _, order) = on_node(1, |env| async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            for hours in [3u64, 1, 2] {
                let (order, clock) = (order.clone(), env.clock.clone());
                let task = async move {
                    clock.sleep(Duration::from_secs(hours * 3600)).await;
                    order.borrow_mut().push(hours);
                };
                env.tasks.spawn_local("sleeper", Box::pin(task));
            }
            env.clock.sleep(Duration::from_secs(4 * 3600)).await;
            order.take()
        });
        assert_eq!(order, [1, 2, 3]);
        assert_eq!(sim.now().0 / 1_000_000_000, 4 * 3600);
    }

    #[test]
    fn a_core_is_a_task_that_goes_with_its_node() {
        with_node(1, |sim, node, env| {
            let made = Arc::new(AtomicUsize::new(0));
            sim.block_on(node, async {
                for (index, mut port) in mesh::<u32>(2, 1).into_iter().enumerate() {
                    let made = made.clone();
                    let make = move || {
                        made.fetch_add(1, Ordering::Relaxed);
                        let stays_on_its_core = Rc::new(made);
                        Box::pin(async move {
                            port.send(1 - index, 7);
                            port.arrived().await;
                            assert_eq!(port.drain(|_, n| assert_eq!(n, 7)), 1);
                            port.arrived().await; // for ever
                            drop(stays_on_its_core);
                        }) as LocalBoxFuture
                    };
                    env.tasks.spawn_core(index, "core", Some(index), Box::new(make)).unwrap();
                }
                assert_eq!(made.load(Ordering::Relaxed), 0, "made by its own first poll");
                env.clock.sleep(Duration::from_secs(1)).await;
            })
            .done();
            assert_eq!((made.load(Ordering::Relaxed), Arc::strong_count(&made)), (2, 3));
            node.crash();
            sim.advance(Duration::from_secs(1));
            assert_eq!(Arc::strong_count(&made), 1);
        });
    }

    #[test]
    fn the_seed_decides_the_order_of_ready_tasks() {
        let order = |seed| {
            on_node(seed, |env| async move {
                let order = Rc::new(RefCell::new(Vec::new()));
                for n in 0..6 {
                    let order = order.clone();
                    let task = async move {
                        yield_now().await;
                        order.borrow_mut().push(n);
                    };
                    env.tasks.spawn_local("racer", Box::pin(task));
                }
                env.clock.sleep(Duration::from_secs(1)).await;
                order.take()
            })
            .2
        };
        assert_eq!(order(1), order(1));
        let orders: std::collections::BTreeSet<Vec<u32>> = (0..50).map(order).collect();
        assert!(orders.len() > 40, "{} orders of 720", orders.len());
    }

    #[test]
    fn a_deadlock_names_who_waits() {
        let sim = Sim::new(1);
        let node = sim.node("a");
        let env = node.env();
        let (sender, receiver) = oneshot::channel::<()>();
        let flush = async move {
            std::future::pending::<()>().await;
            drop(sender);
        };
        env.tasks.spawn("flush", Box::pin(flush));
        let deadlock = sim.try_block_on(&node, receiver).unwrap_err();
        assert_eq!(deadlock.waiting, ["flush (a)", "main (a)"]);
    }

    #[test]
    fn a_crash_drops_the_tasks_and_silences_old_handles() {
        struct Dropped(Rc<RefCell<u32>>, Env);
        impl Drop for Dropped {
            fn drop(&mut self) {
                *self.0.borrow_mut() += 1;
                self.1.tasks.spawn("from the grave", Box::pin(async { panic!("it runs") }));
            }
        }
        let sim = Sim::new(1);
        let (node, other) = (sim.node("a"), sim.node("b"));
        let env = node.env();
        let drops = Rc::new(RefCell::new(0));
        let crasher = node.clone();
        let outcome = sim.block_on(&node, async {
            let guard = Dropped(drops.clone(), env.clone());
            let sleeper = async move {
                guard.1.clock.sleep(Duration::from_secs(1)).await;
                drop(guard);
            };
            env.tasks.spawn_local("sleeper", Box::pin(sleeper));
            yield_now().await;
            crasher.crash();
            yield_now().await;
            unreachable!("a crashed node computes nothing");
        });
        assert_eq!(outcome, Outcome::<()>::Crashed);
        assert_eq!(*drops.borrow(), 1);
        node.restart();
        // The old environment never answers, the new one does.
        let old = async { env.disk.list(Path::new("/")).await };
        let clock = other.env().clock;
        let answer = sim.block_on(&other, timeout(&*clock, Duration::from_secs(9), old)).done();
        assert_eq!(answer.unwrap_err(), Elapsed);
        let env = node.env();
        let listed = sim.block_on(&node, async { env.disk.list(Path::new("/")).await }).done();
        assert_eq!(listed.unwrap(), []);
    }

    #[test]
    fn time_passes_by_advance_and_wall_clocks_differ() {
        let sim = Sim::new(1);
        let node = sim.node("a");
        let env = node.env();
        let (ticks, clock) = (Arc::new(std::sync::atomic::AtomicU32::new(0)), env.clock.clone());
        let counter = ticks.clone();
        let ticker = async move {
            loop {
                clock.sleep(Duration::from_secs(1)).await;
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        };
        env.tasks.spawn("ticker", Box::pin(ticker));
        sim.advance(Duration::from_millis(9500));
        assert_eq!(ticks.load(std::sync::atomic::Ordering::Relaxed), 9);
        assert_eq!(sim.now().0, 9_500_000_000);
        let before = env.clock.wall().0;
        node.set_wall_offset_ms(-5000);
        assert_eq!(env.clock.wall().0, before - 5000);
    }

    #[test]
    fn a_spinning_task_still_sees_its_event() {
        let (_, _, spins) = on_node(1, |env| async move {
            let mut sleep = env.clock.sleep(Duration::from_micros(50));
            let mut spins = 0;
            while futures_poll(&mut sleep).await.is_none() {
                spins += 1;
                yield_now().await;
            }
            spins
        });
        assert!((1..1000).contains(&spins), "{spins}");
    }

    /// Polls once.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut future = std::pin::Pin::new(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }
}

mod crashes {
    use super::*;

    /// What files hold after `work` and a crash, over many seeds.
    fn survivors<F: Future>(work: impl Fn(Env) -> F, path: &str) -> Vec<Option<Vec<u8>>> {
        let after = |seed| {
            let (_sim, node, _) = on_node(seed, &work);
            node.crash();
            node.disk().read_file(path)
        };
        (0..100).map(after).collect()
    }

    #[test]
    fn what_was_synced_under_a_synced_name_survives() {
        let work = |env: Env| async move {
            env.disk.create_dir(Path::new("/db")).await.unwrap();
            env.disk.sync_dir(TAG, Path::new("/")).await.unwrap();
            let file = create(&env, "/db/log").await.unwrap();
            write(&file, 0, b"kept").await.unwrap();
            file.sync(TAG).await.unwrap();
            env.disk.sync_dir(TAG, Path::new("/db")).await.unwrap();
            write(&file, 2000, b"maybe").await.unwrap();
        };
        let survivors = survivors(work, "/db/log");
        assert!(survivors.iter().all(|s| s.as_ref().is_some_and(|s| s.starts_with(b"kept"))));
        let longer = survivors.iter().flatten().filter(|s| s.ends_with(b"maybe")).count();
        assert!((10..90).contains(&longer), "{longer}");
    }

    #[test]
    fn a_synced_file_may_vanish_until_its_directory_is_synced() {
        let work = |env: Env| async move {
            let file = create(&env, "/file").await.unwrap();
            write(&file, 0, b"content").await.unwrap();
            file.sync(TAG).await.unwrap();
        };
        let survivors = survivors(work, "/file");
        let found = survivors.iter().flatten().count();
        assert!((20..80).contains(&found), "{found}");
        assert!(survivors.iter().flatten().all(|s| s == b"content"));
    }

    #[test]
    fn a_rename_happens_or_not_and_a_removed_file_may_be_back() {
        let work = |env: Env| async move {
            for (name, content) in [("/current", b"old"), ("/new", b"new"), ("/gone", b"rip")] {
                let file = create(&env, name).await.unwrap();
                write(&file, 0, content).await.unwrap();
                file.sync(TAG).await.unwrap();
            }
            env.disk.sync_dir(TAG, Path::new("/")).await.unwrap();
            env.disk.rename(TAG, Path::new("/new"), Path::new("/current")).await.unwrap();
            env.disk.remove(TAG, Path::new("/gone")).await.unwrap();
        };
        let mut states = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let (_sim, node, ()) = on_node(seed, work);
            node.crash();
            let current = node.disk().read_file("/current").unwrap();
            let new_is_there = node.disk().read_file("/new").is_some();
            assert_eq!(new_is_there, current == b"old", "the rename is torn");
            states.insert((current, node.disk().read_file("/gone").is_some()));
        }
        assert_eq!(states.len(), 4);
    }

    #[test]
    fn a_killed_process_loses_nothing_and_the_worst_power_cut_everything() {
        for (mode, expected) in
            [(CrashMode::KeepAll, Some(&b"content"[..])), (CrashMode::DropAll, None)]
        {
            let (_sim, node, ()) = on_node(1, |env| async move {
                let file = create(&env, "/file").await.unwrap();
                write(&file, 0, b"content").await.unwrap();
            });
            node.crash_with(mode);
            assert_eq!(node.disk().read_file("/file").as_deref(), expected);
        }
    }

    #[test]
    fn a_planned_crash_hits_its_operation_before_during_or_after() {
        for timing in [CrashTiming::Before, CrashTiming::During, CrashTiming::After] {
            let mut written = std::collections::BTreeSet::new();
            for seed in 0..40 {
                let sim = Sim::new(seed);
                let node = sim.node("a");
                node.disk().set_options(DiskOptions {
                    crash_mode: CrashMode::KeepAll,
                    ..DiskOptions::default()
                });
                node.disk().crash_at(1, timing);
                let env = node.env();
                let outcome = sim.block_on(&node, async {
                    let file = create(&env, "/file").await.unwrap();
                    write(&file, 0, b"content").await.unwrap();
                });
                assert_eq!(outcome, Outcome::Crashed);
                assert_eq!(node.disk().mutations(), 2);
                let point = node.disk().last_crash().unwrap();
                assert_eq!((point.mutation, point.timing, point.site), (1, timing, "test"));
                written.insert(node.disk().read_file("/file").unwrap().len());
            }
            match timing {
                CrashTiming::Before => assert_eq!(Vec::from_iter(written), [0]),
                CrashTiming::After => assert_eq!(Vec::from_iter(written), [7]),
                _ => assert!(written.len() > 4, "{written:?}"),
            }
        }
    }

    #[test]
    fn a_snapshot_brings_the_disk_back_even_in_another_simulation() {
        let (_sim, node, ()) = on_node(1, |env| async move {
            let file = create(&env, "/file").await.unwrap();
            write(&file, 0, b"first").await.unwrap();
        });
        let snapshot = node.disk().snapshot();
        node.disk().write_file("/file", b"second").unwrap();
        let sim = Sim::new(2);
        let copy = sim.node("copy");
        copy.disk().restore(&snapshot);
        assert_eq!(copy.disk().read_file("/file").unwrap(), b"first");
        copy.crash_with(CrashMode::DropAll);
        assert_eq!(
            copy.disk().files(),
            Vec::<String>::new(),
            "it was not durable, nor is the copy"
        );
        node.disk().restore(&snapshot);
        assert_eq!(node.disk().read_file("/file").unwrap(), b"first");
    }

    #[test]
    fn a_lock_excludes_until_its_guard_or_its_node_is_gone() {
        let (sim, node, ()) = on_node(1, |env| async move {
            let path = Path::new("/LOCK");
            let guard = env.disk.lock(path).await.unwrap();
            let second = env.disk.lock(path).await.err().unwrap();
            assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
            drop(guard);
            let guard = env.disk.lock(path).await.unwrap();
            std::mem::forget(guard);
        });
        node.crash();
        node.restart();
        let env = node.env();
        let guard = sim.block_on(&node, async { env.disk.lock(Path::new("/LOCK")).await }).done();
        assert!(guard.is_ok());
    }
}

mod operations {
    use super::*;

    #[test]
    fn overlapping_writes_land_in_either_order() {
        let left = |seed| {
            let (_sim, node, ()) = on_node(seed, |env| async move {
                let file = create(&env, "/file").await.unwrap();
                let (mut a, mut b) = (
                    file.write_at(TAG, 0, IoBuf::from(&b"first"[..])),
                    file.write_at(TAG, 0, IoBuf::from(&b"again"[..])),
                );
                let (mut a_done, mut b_done) = (false, false);
                std::future::poll_fn(|cx| {
                    a_done = a_done || a.as_mut().poll(cx).is_ready();
                    b_done = b_done || b.as_mut().poll(cx).is_ready();
                    if a_done && b_done { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            });
            node.disk().read_file("/file").unwrap()
        };
        let outcomes: std::collections::BTreeSet<Vec<u8>> = (0..50).map(left).collect();
        assert_eq!(Vec::from_iter(outcomes), [b"again".to_vec(), b"first".to_vec()]);
    }

    #[test]
    fn an_operation_that_was_submitted_has_its_effect_though_nobody_waits() {
        for seed in 0..20 {
            let (sim, node, ()) = on_node(seed, |env| async move {
                let file = create(&env, "/file").await.unwrap();
                let mut write = file.write_at(TAG, 0, IoBuf::from(&b"x"[..]));
                std::future::poll_fn(|cx| {
                    assert!(write.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
            });
            sim.advance(Duration::from_secs(1));
            assert_eq!(node.disk().read_file("/file").unwrap(), b"x");
        }
    }

    #[test]
    fn a_removed_file_lives_on_in_its_handles_and_then_frees_its_space() {
        let (_sim, node, ()) = with_node(1, |sim, node, env| {
            sim.block_on(node, async {
                let file = create(&env, "/file").await.unwrap();
                write(&file, 0, b"content").await.unwrap();
                env.disk.remove(TAG, Path::new("/file")).await.unwrap();
                env.disk.sync_dir(TAG, Path::new("/")).await.unwrap();
                assert_eq!(read(&file, 7).await.unwrap(), b"content");
                assert_eq!(node.disk().space(), 4096);
            })
            .done();
        });
        assert_eq!(node.disk().space(), 0);
    }
}

mod faults {
    use super::*;

    #[test]
    fn a_disk_that_lies_about_syncs_loses_what_it_confirmed() {
        let (_sim, node, ()) = with_node(1, |sim, node, env| {
            node.disk().write_file("/file", b"old").unwrap();
            node.disk().inject(Fault::new(FaultKind::Lost).on(OpKind::Sync).sticky());
            sim.block_on(node, async {
                let file = env.disk.open(Path::new("/file"), OpenMode::ReadWrite).await.unwrap();
                write(&file, 0, b"new").await.unwrap();
                file.sync(TAG).await.unwrap();
            })
            .done();
        });
        node.crash_with(CrashMode::DropAll);
        assert_eq!(node.disk().read_file("/file").unwrap(), b"old");
    }

    #[test]
    fn a_failed_sync_throws_the_pages_away_and_the_next_one_succeeds() {
        with_node(1, |sim, node, env| {
            node.disk().write_file("/file", b"old").unwrap();
            node.disk().inject(Fault::new(FaultKind::SyncLoses).on(OpKind::Sync));
            sim.block_on(node, async {
                let file = env.disk.open(Path::new("/file"), OpenMode::ReadWrite).await.unwrap();
                write(&file, 0, b"new").await.unwrap();
                let error = file.sync(TAG).await.unwrap_err();
                assert_eq!(error.raw_os_error(), Some(5));
                file.sync(TAG).await.unwrap();
                assert_eq!(read(&file, 3).await.unwrap(), b"old");
            })
            .done();
        });
    }

    #[test]
    fn the_nth_operation_fails_once_or_forever() {
        for sticky in [false, true] {
            let (_sim, node, results) = with_node(1, |sim, node, env| {
                node.disk().fail_nth(2, FaultKind::Error, sticky);
                sim.block_on(node, async {
                    let file = create(&env, "/file").await.unwrap();
                    let mut results = Vec::new();
                    for _ in 0..4 {
                        results.push(write(&file, 0, b"x").await.is_ok());
                    }
                    results
                })
                .done()
            });
            assert_eq!(results, [true, false, !sticky, !sticky]);
            assert_eq!(node.disk().fault_hits(), if sticky { 3 } else { 1 });
            assert_eq!((node.disk().ops(), node.disk().sites()["test"]), (5, 4));
        }
    }

    #[test]
    fn writes_are_lost_misdirected_or_cut_short() {
        let content = |kind| {
            let (_sim, node, result) = with_node(3, |sim, node, env| {
                node.disk().write_file("/file", &[b'.'; 2048]).unwrap();
                node.disk().inject(Fault::new(kind).path("file").site("test"));
                sim.block_on(node, async {
                    let path = Path::new("/file");
                    let file = env.disk.open(path, OpenMode::ReadWrite).await.unwrap();
                    write(&file, 0, &[b'x'; 512]).await
                })
                .done()
            });
            (result.is_ok(), node.disk().read_file("/file").unwrap())
        };
        let (ok, lost) = content(FaultKind::Lost);
        assert!(ok && lost.iter().all(|b| *b == b'.'));
        let (ok, misdirected) = content(FaultKind::Misdirected);
        assert!(ok && misdirected.iter().filter(|b| **b == b'x').count() == 512);
        let (ok, short) = content(FaultKind::Short);
        assert!(!ok && (1..512).contains(&short.iter().filter(|b| **b == b'x').count()));
        let (ok, none) = content(FaultKind::Error);
        assert!(!ok && none.iter().all(|b| *b == b'.'));
    }

    #[test]
    fn a_full_disk_refuses_to_grow_and_lets_overwrite() {
        let (_sim, node, ()) = with_node(1, |sim, node, env| {
            node.disk()
                .set_options(DiskOptions { capacity: Some(3 * 4096), ..DiskOptions::default() });
            sim.block_on(node, async {
                let file = create(&env, "/file").await.unwrap();
                file.allocate(TAG, 2 * 4096).await.unwrap();
                let full = file.allocate(TAG, 4 * 4096).await.unwrap_err();
                assert_eq!(full.kind(), io::ErrorKind::StorageFull);
                assert_eq!(file.len().await.unwrap(), 2 * 4096);
                write(&file, 0, &[1; 2 * 4096]).await.unwrap();
                write(&file, 2 * 4096, &[1; 4096]).await.unwrap();
                let full = write(&file, 3 * 4096, b"x").await.unwrap_err();
                assert_eq!(full.kind(), io::ErrorKind::StorageFull);
                write(&file, 0, &[2; 3 * 4096]).await.unwrap();
                env.disk.remove(TAG, Path::new("/file")).await.unwrap();
                drop(file);
                let file = create(&env, "/file").await.unwrap();
                file.allocate(TAG, 3 * 4096).await.unwrap();
            })
            .done();
        });
        assert_eq!(node.disk().space(), 3 * 4096);
    }

    #[test]
    fn rot_and_flips_change_one_bit() {
        let (_sim, node, (flipped, sound)) = with_node(1, |sim, node, env| {
            node.disk().write_file("/dir/file", &[0; 100]).unwrap();
            let faults = DiskFaults { read_flip: 1.0, ..DiskFaults::default() };
            let options = DiskOptions { faults, ..DiskOptions::default() };
            node.disk().set_options(options);
            sim.block_on(node, async {
                let path = Path::new("/dir/file");
                let file = env.disk.open(path, OpenMode::Read).await.unwrap();
                let flipped = read(&file, 100).await.unwrap();
                node.disk().set_options(DiskOptions::default());
                (flipped, read(&file, 100).await.unwrap())
            })
            .done()
        });
        let ones = |bytes: &[u8]| bytes.iter().map(|b| b.count_ones()).sum::<u32>();
        assert_eq!((ones(&flipped), ones(&sound)), (1, 0));
        assert!(node.disk().corrupt("/dir/file", 7, 3));
        assert_eq!(node.disk().read_file("/dir/file").unwrap()[7], 8);
        assert!(!node.disk().corrupt("/dir/file", 100, 0));
    }

    #[test]
    fn a_hanging_operation_is_caught_by_a_timeout() {
        with_node(1, |sim, node, env| {
            node.disk().inject(Fault::new(FaultKind::Hang).on(OpKind::List));
            sim.block_on(node, async {
                let list = env.disk.list(Path::new("/"));
                let result = timeout(&*env.clock, Duration::from_secs(60), list).await;
                assert_eq!(result.unwrap_err(), Elapsed);
                env.disk.list(Path::new("/")).await.unwrap();
            })
            .done();
        });
    }
}
