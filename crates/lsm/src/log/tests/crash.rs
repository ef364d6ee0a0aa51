//! Power cuts, failures and full disks at every I/O, on the simulator.

use std::path::Path;

use atoll_env::random::Prng;
use atoll_env::sim::{
    CrashMode, CrashTiming, DiskOptions, Fault, FaultKind, Node, OpKind, Outcome, Sim,
};

use super::history::{DIR, Driver, Lost, Step, make_store, random_step};
use super::support::{CAPACITY, id, options};
use crate::log::*;

/// Several groups append, a suffix is overwritten by a higher term, commits follow later, idle
/// entries are copied forward, released ones cut, segments recycled: the seam as consensus uses it.
fn consensus_script() -> Vec<Step> {
    let append = |group, term, len| Step::Append { group, back: 0, term, len };
    let mut steps = vec![
        Step::State { group: 11, term: 1, commit: 0 },
        append(11, 1, 300),
        append(5, 1, 200),
        Step::Sync,
        append(10, 1, 3000),
        append(10, 1, 3000),
        append(0, 1, 5000),
        Step::Write,
        append(10, 1, 3000),
        Step::Sync,
        Step::Prepare,
        // A new leader: two entries of term 1 go, one of term 2 takes their place.
        Step::State { group: 10, term: 2, commit: 1 },
        Step::Append { group: 10, back: 2, term: 2, len: 700 },
        Step::Sync,
        Step::State { group: 10, term: 2, commit: 2 },
        // An entry of several fragments, over a segment's border.
        append(0, 1, 20_000),
        Step::Write,
        append(10, 2, 100),
        Step::Sync,
        Step::Release { group: 10, keep: 1 },
        Step::Release { group: 0, keep: 0 },
        Step::Copy(1000),
        Step::Reclaim,
        Step::Copy(100_000),
        Step::Reclaim,
        append(10, 3, 9000),
        Step::Append { group: 10, back: 1, term: 4, len: 20 },
        Step::Sync,
    ];
    for round in 0..3 {
        steps.extend([
            append(0, 1, 6000),
            Step::Prepare,
            append(5, 1, 6000),
            Step::Sync,
            append(0, 1, 10),
            Step::Write,
            Step::Release { group: 0, keep: round },
            Step::Release { group: 5, keep: 1 },
            Step::Copy(100_000),
            Step::Reclaim,
        ]);
    }
    steps.extend([Step::Reopen, append(11, 9, 50), Step::Sync, append(11, 9, 50), Step::Write]);
    steps
}

/// Opens the lane and does the steps, until they are done or the power goes.
fn run(sim: &Sim, node: &Node, driver: &Driver, lost: Lost, steps: &[Step]) -> Outcome<Result<()>> {
    let env = node.env();
    sim.block_on(node, async move {
        let log = driver.open(&env, lost).await?;
        driver.run(&env, log, steps).await.map(|_| ())
    })
}

/// What follows every recovery: the lane can be written, and nothing is lost by that.
const AFTERWARDS: &[Step] = &[
    Step::Append { group: 10, back: 1, term: 20, len: 900 },
    Step::Append { group: 0, back: 0, term: 20, len: 10 },
    Step::Sync,
    Step::Append { group: 5, back: 0, term: 20, len: 10 },
    Step::Copy(100_000),
    Step::Reclaim,
    Step::Reopen,
];

#[test]
fn a_crash_at_every_io_leaves_a_prefix_with_all_that_was_synced() {
    let script = consensus_script();
    let mut crashes = 0;
    for seed in 0..3 {
        for n in 0.. {
            let sim = Sim::new(seed);
            let node = sim.node("a");
            let driver = Driver::new();
            node.disk().crash_at(n, CrashTiming::Any);
            if let Outcome::Done(result) = run(&sim, &node, &driver, Lost::Unsynced, &script) {
                result.unwrap();
                break;
            }
            crashes += 1;
            // Once more inside of the recovery, at a place that moves with the first one.
            node.restart();
            let started = node.disk().mutations();
            node.disk().crash_at(started + n % 13, CrashTiming::Any);
            let second = run(&sim, &node, &driver, Lost::Unsynced, AFTERWARDS);
            if matches!(second, Outcome::Crashed) {
                node.restart();
            }
            node.disk().cancel_crash();
            run(&sim, &node, &driver, Lost::Unsynced, AFTERWARDS).done().unwrap();
        }
    }
    assert!(crashes > 300, "{crashes} crash points");
}

#[test]
fn random_histories_with_power_cuts_and_kills_keep_what_they_must() {
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let node = sim.node("a");
        let driver = Driver::new();
        let mut prng = Prng::new(seed);
        let mut lost = Lost::Unwritten;
        for _ in 0..6 {
            let steps: Vec<Step> = (0..40).map(|_| random_step(&mut prng)).collect();
            let until = node.disk().mutations() + prng.below(200);
            node.disk().crash_at(until, CrashTiming::Any);
            match run(&sim, &node, &driver, lost, &steps) {
                Outcome::Done(result) => {
                    result.unwrap();
                    let power = prng.chance(0.5);
                    node.crash_with(if power { CrashMode::Random } else { CrashMode::KeepAll });
                    lost = if power { Lost::Unsynced } else { Lost::Unwritten };
                }
                Outcome::Crashed => lost = Lost::Unsynced,
            }
            node.restart();
        }
        run(&sim, &node, &driver, lost, &[]).done().unwrap();
    }
}

#[test]
fn a_failure_of_every_io_loses_nothing_that_was_acknowledged() {
    let script = consensus_script();
    let kinds = [FaultKind::Error, FaultKind::NoSpace, FaultKind::Short, FaultKind::SyncLoses];
    for (seed, sticky) in [(1, false), (2, true)] {
        for n in 0.. {
            let kind = kinds[n as usize % kinds.len()];
            let sim = Sim::new(seed);
            let node = sim.node("a");
            let driver = Driver::new();
            node.disk().fail_nth(n, kind, sticky);
            let result = run(&sim, &node, &driver, Lost::Unsynced, &script).done();
            if node.disk().fault_hits() == 0 {
                result.unwrap();
                assert!(n > 100, "{n} operations");
                break;
            }
            if let Err(error) = result {
                assert!(!error.is_corruption(), "operation {n}, {kind:?}: {error}");
            }
            node.disk().clear_faults();
            run(&sim, &node, &driver, Lost::Unsynced, &[]).done().unwrap();
            // What this recovery accepted is durable, whatever the failed sync left behind.
            node.crash_with(CrashMode::DropAll);
            node.restart();
            run(&sim, &node, &driver, Lost::Unsynced, AFTERWARDS).done().unwrap();
        }
    }
}

#[test]
fn a_failed_write_or_sync_stops_the_log_with_the_first_cause() {
    for op in [OpKind::Write, OpKind::Sync] {
        let sim = Sim::new(1);
        let node = sim.node("a");
        let env = node.env();
        let disk = node.disk();
        let stopped = sim.block_on(&node, async {
            let recovery = Log::open(&env, DIR.as_ref(), options(), 0).await?;
            let mut log = recovery.finish().await?;
            log.append(id(0, 1, 1), &[b"a"])?;
            disk.inject(Fault::new(FaultKind::NoSpace).on(op).site("frame write"));
            disk.inject(Fault::new(FaultKind::NoSpace).on(op).site("frame sync"));
            let first = log.sync().await.unwrap_err().to_string();
            for again in [
                log.sync().await.unwrap_err(),
                log.append(id(0, 2, 1), &[b"b"]).unwrap_err(),
                log.release(0, 2).unwrap_err(),
                log.reclaim().await.unwrap_err(),
                log.copy_forward(1).await.unwrap_err(),
                log.reserve([1]).await.unwrap_err(),
            ] {
                assert!(matches!(again, Error::Stopped(_)));
                assert_eq!(again.to_string(), first);
            }
            Ok::<_, Error>(first)
        });
        assert!(stopped.done().unwrap().contains("failed"));
    }
}

#[test]
fn a_full_disk_refuses_before_staging_and_goes_on_when_space_returns() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    let env = node.env();
    let disk = node.disk();
    let done = sim.block_on(&node, async {
        let recovery = Log::open(&env, DIR.as_ref(), options(), 0).await?;
        let mut log = recovery.finish().await?;
        disk.set_options(DiskOptions { capacity: Some(2 * CAPACITY), ..disk.options() });
        let mut index = 0;
        let full = loop {
            if let Err(full) = log.reserve([1900, 1900]).await {
                break full;
            }
            for _ in 0..2 {
                index += 1;
                log.append(id(0, index, 1), &[&[1; 1900]])?;
            }
            log.sync().await?;
        };
        assert!(matches!(full, Error::NoSpace(_)), "{full}");
        assert!(index > 8, "two segments were filled");
        // Without a reserve the entry is staged, and stays so.
        log.append(id(0, index + 1, 1), &[&[2; 9000]])?;
        assert!(matches!(log.sync().await, Err(Error::NoSpace(_))));
        assert!(log.stats().staged_bytes >= 9000);
        drop(log);
        // The lane opens, and can be read, while the disk is still full.
        let mut recovery = Log::open(&env, DIR.as_ref(), options(), 0).await?;
        let mut replayed = 0;
        while recovery.next_entry().await?.is_some() {
            replayed += 1;
        }
        assert_eq!(replayed, index);
        let mut log = recovery.finish().await?;
        assert!(matches!(log.prepare_next().await, Err(Error::NoSpace(_))));
        log.append(id(0, index + 1, 1), &[&[2; 9000]])?;
        assert!(matches!(log.sync().await, Err(Error::NoSpace(_))));
        disk.set_options(DiskOptions { capacity: None, ..disk.options() });
        log.sync().await?;
        assert_eq!(log.stats().staged_bytes, 0);
        drop(log);
        let recovery = Log::open(&env, DIR.as_ref(), options(), 0).await?;
        let group = recovery.groups().next().expect("group 0 is there");
        assert_eq!(group.next, index + 2);
        Ok::<_, Error>(())
    });
    done.done().unwrap();
}

#[test]
fn a_bit_that_flips_on_the_way_from_the_disk_never_cuts_the_lane() {
    let script = [
        Step::Append { group: 0, back: 0, term: 1, len: 9000 },
        Step::Append { group: 10, back: 0, term: 1, len: 9000 },
        Step::Sync,
        Step::Append { group: 10, back: 0, term: 1, len: 300 },
        Step::Sync,
    ];
    let (mut unharmed, mut refused) = (0, 0);
    for n in 0.. {
        let sim = Sim::new(n);
        let node = sim.node("a");
        let driver = Driver::new();
        run(&sim, &node, &driver, Lost::Unsynced, &script).done().unwrap();
        let fault = Fault::new(FaultKind::Flip).path("/store/log/");
        node.disk().inject(fault.skip(n / 10));
        let result = run(&sim, &node, &driver, Lost::Unsynced, &[]).done();
        if node.disk().fault_hits() == 0 {
            break;
        }
        match result {
            Ok(()) => unharmed += 1,
            Err(error) => {
                assert!(error.is_corruption(), "{error}");
                refused += 1;
            }
        }
        run(&sim, &node, &driver, Lost::Unsynced, AFTERWARDS).done().unwrap();
    }
    assert!(unharmed > 10 && refused > 10, "{unharmed} unharmed, {refused} refused");
}

#[test]
fn a_flipped_bit_leaves_the_entries_or_a_prefix_or_a_named_corruption() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    let env = node.env();
    let synced = sim.block_on(&node, async {
        make_store(&env).await;
        let mut log = Log::open(&env, DIR.as_ref(), options(), 0).await?.finish().await?;
        let mut synced = 0;
        for index in 1..=6 {
            log.append(id(0, index, 1), &[&[index as u8; 40]])?;
            if index == 2 || index == 4 {
                log.sync().await?;
                synced = log.synced();
            }
        }
        log.write(FRAME_WRITE).await?;
        Ok::<_, Error>(synced)
    });
    let synced = synced.done().unwrap();
    let whole = node.disk().snapshot();
    let read = || {
        let read = sim.block_on(&node, async {
            let mut recovery = Log::open(&env, DIR.as_ref(), options(), synced).await?;
            let mut entries = Vec::new();
            while let Some(e) = recovery.next_entry().await? {
                entries.push((e.id, e.position, e.payload.to_vec()));
            }
            recovery.finish().await.map(|_| entries)
        });
        read.done()
    };
    let good = read().unwrap();
    assert_eq!(good.len(), 6);

    let path = format!("{DIR}/0000000001.log");
    // The segment header, the three blocks with frames, and some of what no frame uses.
    let places = (0..100).chain(4096..4400).chain(8192..8500).chain(12288..12600);
    let (mut cut, mut refused, mut unharmed) = (0, 0, 0);
    for (offset, bit) in places.flat_map(|offset| (0..8).map(move |bit| (offset, bit))) {
        node.disk().restore(&whole);
        assert!(node.disk().corrupt(&path, offset, bit));
        match read() {
            Ok(entries) => {
                assert!(entries.len() >= 4, "byte {offset} lost what was synced");
                assert_eq!(entries, good[..entries.len()], "byte {offset} changed an entry");
                *(if entries.len() < 6 { &mut cut } else { &mut unharmed }) += 1;
            }
            Err(Error::Corruption { file, offset: place, .. }) => {
                assert_eq!(file.as_path(), Path::new(&path));
                assert!(place <= offset, "byte {offset} is named as {place}");
                refused += 1;
            }
            Err(other) => panic!("byte {offset}: {other}"),
        }
    }
    // Frames of 104 bytes: two of them unsynced, four synced, and the segment header.
    assert_eq!((cut, refused), (8 * 208, 8 * (416 + 80)), "{unharmed} unharmed");
}
