//! What a core does about its shards from time to time: reaping, the horizon, lost locks.
//!
//! - **Reaping.** A key whose deadline has passed is absent for every command at once; that its
//!   space comes back is this task's work. It looks into the expiry index of each store and has the
//!   keys removed by ordinary entries, each conditional on the deadline that was seen.
//! - **Horizon.** Versions that no reader can ask for any more may go: the horizon is what was the
//!   present a retention ago, or earlier if a reader, a transaction or an intent is older. Each core
//!   publishes the oldest moment it needs, and what comes needs no older one than the present; the
//!   horizon is below all of them.
//! - **Sizes.** Shards that have grown too large are split ([`crate::survey`]).
//! - **Locks** of transactions that nobody was heard of for three seconds are given back.

use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_env::sometimes;
use atoll_lsm::driven::Direction;
use atoll_mvcc::keys::{TreeKey, tree};
use atoll_mvcc::{Epoch, Timestamp};

use crate::core::{Core, Inner};
use crate::program::Program;
use crate::store::StoreHost;
use crate::survey::PERIOD;

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(100);
/// What consensus counts time in.
const TICK: Duration = Duration::from_millis(50);
/// Rounds between two looks at the horizon.
const HORIZON_ROUNDS: u64 = 5;
/// Rounds between two looks at the sizes of shards.
const SURVEY_ROUNDS: u64 = (PERIOD.as_millis() / PAUSE.as_millis()) as u64;
/// Keys reaped per round and store: expiry must not crowd out clients.
const REAP_MAX: usize = 2_000;

/// Cares until the core is gone or stops.
pub(crate) async fn run<P: Program>(core: Weak<Inner<P>>) {
    let mut round = 0;
    loop {
        let clock = match core.upgrade() {
            Some(core) => core.env.clock.clone(),
            None => return,
        };
        clock.sleep(PAUSE).await;
        let Some(core) = core.upgrade() else { return };
        if core.stopping.get() {
            return;
        }
        core.refresh();
        let hosts: Vec<_> = core.stores.borrow().values().cloned().collect();
        if core.shared.reaping.load(Ordering::Relaxed) {
            for host in &hosts {
                reap(&core, host, REAP_MAX).await;
            }
        }
        expire_locks(&core);
        if round % HORIZON_ROUNDS == 0 {
            raise_horizon(&core);
        }
        if round % SURVEY_ROUNDS == SURVEY_ROUNDS - 1 {
            core.measure_loads(PERIOD.as_secs_f64());
            Core(core.clone()).split_large().await;
        }
        round += 1;
    }
}

/// Tells the stores that time passes, if their shards have replicas elsewhere: until all are closed, since
/// one that closes gives its leaderships away first.
pub(crate) async fn tick<P: Program>(core: Weak<Inner<P>>) {
    loop {
        let Some(clock) = core.upgrade().map(|core| core.env.clock.clone()) else { return };
        clock.sleep(TICK).await;
        let Some(core) = core.upgrade() else { return };
        if core.open_stores.get() == 0 {
            return;
        }
        for host in core.stores.borrow().values() {
            host.ticked.set(true);
            host.signal.raise();
        }
    }
}

/// Has keys removed whose deadlines are due, up to `limit`; returns how many were due.
pub(crate) async fn reap<P: Program>(
    core: &Rc<Inner<P>>,
    host: &Rc<StoreHost<P>>,
    limit: usize,
) -> usize {
    let now_ms = core.now().epoch.unix_ms();
    let (start, end) = tree::expiry_before(now_ms.saturating_add(1));
    let mut cursor = host.tree.scan(&start, &end, Direction::Forward);
    let mut due = 0;
    while due < limit {
        // An index that cannot be read says so to whoever reads keys.
        let Ok(Some(row)) = cursor.next().await else { break };
        if let Ok(TreeKey::Expiry { deadline_ms, key }) = TreeKey::decode(row.key()) {
            if !core.leads(key) {
                // Whoever leads its shard has the same index.
                continue;
            }
            sometimes!(true, "a key is reaped at its deadline");
            core.reap(key.to_vec(), deadline_ms);
        }
        due += 1;
    }
    due
}

fn expire_locks<P: Program>(core: &Rc<Inner<P>>) {
    let now = core.now();
    for (host, group) in core.all_groups() {
        let dead = {
            let mut state = group.state.borrow_mut();
            state.leader.as_mut().map(|leader| leader.expire_locks(now)).unwrap_or_default()
        };
        sometimes!(!dead.is_empty(), "locks of a silent transaction are given back");
        if !dead.is_empty() {
            host.give_up_locks(core, &group, |txn, _| dead.contains(&txn));
            host.wake_lock_waiters(core, &group);
        }
    }
}

fn raise_horizon<P: Program>(core: &Rc<Inner<P>>) {
    let shared = &core.shared;
    // What begins after this, reads or commits, does so above what the oracle has given by now. Said
    // beside what there is, it makes a floor good for as long as it stands: however late this core
    // publishes the next one, and however far clocks jump or machines sleep meanwhile, no other core
    // drops the record of a transaction that this one has begun since and not cleaned up.
    let given = Timestamp::commit_at(core.time.known());
    let floor = core.floor().min(given);
    shared.floors[core.index].store(floor.0, Ordering::Release);
    let retention = shared.options.retention_us;
    let past = Epoch(core.time.known().0.saturating_sub(retention));
    let floors = shared.floors.iter().map(|floor| floor.load(Ordering::Acquire));
    let oldest = floors.min().unwrap_or(u64::MAX);
    let horizon = Timestamp::commit_at(past).min(Timestamp(oldest).prev());
    for (host, group) in core.all_groups() {
        let mut state = group.state.borrow_mut();
        if let Some(leader) = &mut state.leader {
            leader.raise_horizon(horizon);
            host.relist(&group, &mut state);
        }
    }
    for host in core.stores.borrow().values() {
        host.tree.set_horizon(horizon.0);
    }
}
