//! What a node tells when its disk fails: everybody who waits is answered, and what is answered holds.

mod support;

use std::sync::Arc;
use std::time::Duration;

use atoll_env::sim::{Fault, FaultKind, OpKind, Outcome, Sim};
use atoll_env::sync::timeout;
use atoll_kv::{Core, Failure};
use atoll_mvcc::keys::RoutingKey;
use parking_lot::Mutex;
use support::{Call, Client, Reply, Toy, key, open, options};

/// A time in which everything has ended that ends at all.
const LONG: Duration = Duration::from_secs(60);

/// Adds to keys of its own until a turn is refused; returns the sums that were acknowledged.
async fn add_until_refused(core: &Core<Toy>, lane: u64) -> Vec<u64> {
    let mut client = Client::new(core, lane);
    let mut sums = vec![0; 50];
    for n in 0.. {
        let at = n % sums.len();
        match client.call(Call::Add(key(&format!("{lane}:{at}")), 1)).await {
            Reply::Number(sum) => sums[at] = sum,
            Reply::Failed(Failure::Unavailable(_)) => return sums,
            other => panic!("{other:?}"),
        }
    }
    unreachable!("the disk is full some time")
}

#[test]
fn a_split_on_a_full_disk_is_refused_and_what_is_acknowledged_later_holds() {
    for seed in 0..8u64 {
        let sim = Sim::new(seed);
        let node = sim.node("n");
        let disk = node.clone();
        let script = move |core: Core<Toy>| {
            let disk = disk.clone();
            async move {
                disk.disk().inject(Fault::new(FaultKind::NoSpace).on(OpKind::Create).sticky());
                let before = add_until_refused(&core, 1).await;
                // Half of the time something was decided that is logged before the split.
                if seed % 2 == 0 {
                    assert!(core.call(Call::Set(key("open"), 1), 7, 1).is_none());
                }
                let split =
                    timeout(&*core.env().clock, LONG, core.split_at(RoutingKey::Slot(8_192)));
                let refused = split.await.expect("a split is answered");
                disk.disk().clear_faults();
                assert!(refused.is_err(), "nothing can be logged");
                core.env().clock.sleep(Duration::from_secs(5)).await;
                // Many at once, so that one is always evaluated while an entry is on its way.
                let mut ends = Vec::new();
                for lane in 2..12 {
                    let client = Client::new(&core, lane);
                    ends.push(support::spawn(&core, async move {
                        let mut client = client;
                        for n in 1..=40u64 {
                            let name = format!("{lane}:0");
                            let sum = client.call(Call::Add(key(&name), 1)).await;
                            assert_eq!(sum, Reply::Number(n), "lane {lane}");
                        }
                    }));
                }
                for end in ends {
                    end.await.unwrap();
                }
                let mut client = Client::new(&core, 1);
                for lane in 2..12 {
                    assert_eq!(client.get(&format!("{lane}:0")).await, Some(40), "lane {lane}");
                }
                for (at, sum) in before.iter().enumerate() {
                    let sum = (*sum > 0).then_some(*sum);
                    assert_eq!(client.get(&format!("1:{at}")).await, sum, "key {at}");
                }
                core.split_at(RoutingKey::Slot(8_192)).await.expect("there is room again");
            }
        };
        let outcome = sim.block_on(&node, open(options(node.env(), 1, 1), script));
        assert!(matches!(outcome, Outcome::Done(Ok(()))), "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_split_of_a_store_that_has_stopped_is_answered() {
    let sim = Sim::new(1);
    let node = sim.node("n");
    let disk = node.clone();
    let script = move |core: Core<Toy>| {
        let disk = disk.clone();
        async move {
            let mut client = Client::new(&core, 1);
            assert_eq!(client.call(Call::Set(key("a"), 1)).await, Reply::Done);
            disk.disk().inject(Fault::new(FaultKind::SyncLoses).on(OpKind::Sync).sticky());
            // One that is under way when the store stops, one that comes later.
            assert!(core.call(Call::Set(key("a"), 2), 2, 1).is_none());
            for when in ["before", "after"] {
                let split =
                    timeout(&*core.env().clock, LONG, core.split_at(RoutingKey::Slot(8_192)));
                let refused = split.await.unwrap_or_else(|_| panic!("{when}: it is answered"));
                assert!(refused.is_err(), "{when}");
            }
            let failed = client.call(Call::Set(key("a"), 3)).await;
            assert!(matches!(failed, Reply::Failed(Failure::Unavailable(_))), "{failed:?}");
        }
    };
    let outcome = sim.block_on(&node, open(options(node.env(), 1, 1), script));
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

#[test]
fn a_start_whose_disk_fails_ends_with_the_reason_or_serves() {
    let (mut failed, mut served) = (0, 0);
    let faults = [(OpKind::Sync, FaultKind::SyncLoses), (OpKind::Write, FaultKind::Error)];
    for (n, (op, fault)) in (0..40).flat_map(|n| faults.map(|fault| (n, fault))) {
        let sim = Sim::new(n);
        let node = sim.node("n");
        let load = |core: Core<Toy>| async move {
            let mut client = Client::new(&core, 1);
            for n in 0..20 {
                client.call(Call::Set(key(&format!("k{n}")), n)).await;
            }
        };
        let outcome = sim.block_on(&node, open(options(node.env(), 1, 2), load));
        assert!(matches!(outcome, Outcome::Done(Ok(()))), "{outcome:?}");
        node.disk().inject(Fault::new(fault).on(op).skip(n).sticky());
        let ran = Arc::new(Mutex::new(false));
        let flag = ran.clone();
        let script = move |_: Core<Toy>| {
            let flag = flag.clone();
            async move { *flag.lock() = true }
        };
        let outcome = sim.block_on(&node, open(options(node.env(), 1, 2), script));
        let Outcome::Done(result) = outcome else { panic!("{op:?} {n}: {outcome:?}") };
        match (*ran.lock(), result) {
            (true, _) => served += 1,
            (false, Err(_)) => failed += 1,
            (false, Ok(())) => panic!("{op:?} {n}: it has not served, and does not say why"),
        }
    }
    assert!(failed > 0 && served > 0, "{failed} failed, {served} served");
}
