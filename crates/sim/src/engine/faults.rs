//! The nemesis: what happens to the machine of the server, drawn by the seed.
//!
//! | class | what happens |
//! |---|---|
//! | power cut | at a drawn disk operation, before, in the middle of or after it |
//! | nested power cut | once more while the server recovers |
//! | kill | the process dies, what it gave to the kernel stays |
//! | restart | stopped in order and started again, with another number of cores |
//! | pause | no task of the machine runs for up to three seconds |
//! | clock jump | the wall clock jumps by up to an hour, in either direction |
//! | reset | connections are reset |
//! | partition | clients cannot reach the server for a while |
//! | split | a shard is split at a drawn place |
//! | doubling | every shard is split at its midpoint |
//! | slow disk | every disk operation takes up to fifty times as long |
//! | full disk | no space is left for a while |
//! | failed sync | a sync fails and its pages are gone; the process is killed soon after |
//!
//! A server that promises less than `synced` survives the death of its process, so its power is
//! never cut: the process is killed in its place.

use std::rc::Rc;
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::{CrashMode, CrashTiming, DiskOptions, Fault, FaultKind, OpKind, Sim};
use atoll_env::sync::timeout;
use atoll_lsm::Durability;
use atoll_mvcc::keys::{RoutingKey, SLOTS};

use super::run::start_server;
use super::world::World;

/// Between two faults at most.
const CALM_MAX_MS: u64 = 5_000;
/// A disk operation at which the power is cut comes within so many.
const OPERATIONS_AHEAD: u64 = 40;
/// How long a split is waited for.
const SPLIT_MAX: Duration = Duration::from_secs(2);
/// Shards that are not doubled any more: each costs time at every start.
const SHARDS_MAX: usize = 32;
/// How long a power cut that was planned is waited for: an idle server does nothing.
const CUT_WITHIN: Duration = Duration::from_secs(2);

/// Makes trouble until the run is over.
pub async fn trouble(world: Rc<World>, sim: Rc<Sim>, mut prng: Prng) {
    let clock = world.judge.env().clock;
    let normal = world.server.disk().options();
    while world.busy.get() {
        let calm = 200 + prng.below(CALM_MAX_MS);
        clock.sleep(Duration::from_millis(calm)).await;
        if !world.busy.get() {
            break;
        }
        match prng.below(24) {
            20..=22 => split(&world, &mut prng).await,
            23 => double(&world).await,
            0..=4 => power_cut(&world, &mut prng).await,
            5..=6 => {
                world.fault("kill");
                world.server.crash_with(CrashMode::KeepAll);
                come_back(&world, &mut prng).await;
            }
            7 => restart(&world, &mut prng).await,
            8..=9 => {
                world.fault("pause");
                world.server.pause(Duration::from_millis(1 + prng.below(3_000)));
            }
            10..=11 => jump(&world, &mut prng),
            12..=13 => {
                world.fault("reset");
                for client in &world.clients {
                    if prng.chance(0.5) {
                        sim.reset_links(client, &world.server);
                    }
                }
            }
            14..=15 => {
                world.fault("partition");
                for client in &world.clients {
                    sim.cut_link(client, &world.server);
                }
                clock.sleep(Duration::from_millis(prng.below(4_000))).await;
                for client in &world.clients {
                    sim.heal_link(client, &world.server);
                }
            }
            16..=17 => {
                world.fault("slow disk");
                let by = 2 + prng.below(48) as u32;
                let slower = |d: &std::ops::Range<Duration>| d.start * by..d.end * by;
                world.server.disk().set_options(DiskOptions {
                    latency: slower(&normal.latency),
                    sync_latency: slower(&normal.sync_latency),
                    ..normal.clone()
                });
                clock.sleep(Duration::from_millis(prng.below(2_000))).await;
                world.server.disk().set_options(normal.clone());
            }
            18 => {
                world.fault("full disk");
                let capacity = Some(world.server.disk().space() + prng.below(64 << 10));
                world.server.disk().set_options(DiskOptions { capacity, ..normal.clone() });
                clock.sleep(Duration::from_millis(prng.below(4_000))).await;
                world.server.disk().set_options(normal.clone());
            }
            // In the weaker modes the pages may have been acknowledged: such a loss is the disk's.
            _ if world.durability == Durability::Synced => failed_sync(&world, &mut prng).await,
            _ => {}
        }
    }
}

/// What a crash may leave behind, by what the server promises.
fn crash_mode(world: &World, prng: &mut Prng) -> CrashMode {
    if world.durability != Durability::Synced {
        return CrashMode::KeepAll;
    }
    match prng.below(10) {
        0 => CrashMode::KeepAll,
        1..=2 => CrashMode::DropAll,
        _ => CrashMode::Random,
    }
}

/// Cuts the power at a drawn disk operation.
async fn power_cut(world: &Rc<World>, prng: &mut Prng) {
    let disk = world.server.disk();
    let before = disk.options();
    let crash_mode = crash_mode(world, prng);
    disk.set_options(DiskOptions { crash_mode, ..before.clone() });
    disk.crash_at(disk.mutations() + prng.below(OPERATIONS_AHEAD), CrashTiming::Any);
    if !world.wait(CUT_WITHIN, |world| !world.server.is_up()).await {
        disk.cancel_crash();
        world.server.crash();
    }
    world.fault("power cut");
    disk.set_options(before);
    come_back(world, prng).await;
}

/// Starts the server again, now and then with a power cut while it recovers.
async fn come_back(world: &Rc<World>, prng: &mut Prng) {
    let clock = world.judge.env().clock;
    clock.sleep(Duration::from_millis(1 + prng.below(1_500))).await;
    world.server.restart();
    let mut nested = 0;
    while nested < 3 && prng.chance(0.3) {
        nested += 1;
        let disk = world.server.disk();
        let before = disk.options();
        let crash_mode = crash_mode(world, prng);
        disk.set_options(DiskOptions { crash_mode, ..before.clone() });
        disk.crash_at(disk.mutations() + prng.below(OPERATIONS_AHEAD), CrashTiming::Any);
        start_server(world, 1 + prng.index(2));
        let serves = |world: &World| !world.server.is_up() || world.serves.get();
        world.wait(CUT_WITHIN, serves).await;
        if world.server.is_up() {
            disk.cancel_crash();
            world.server.crash();
        }
        disk.set_options(before);
        world.fault("nested power cut");
        world.server.restart();
    }
    start_server(world, 1 + prng.index(2));
}

/// Stops the server in order and starts it with another number of cores.
async fn restart(world: &Rc<World>, prng: &mut Prng) {
    let Some(stop) = world.stop.borrow_mut().take() else { return };
    world.fault("restart");
    let _ = stop.send(());
    let life = world.lives.get();
    let ended = |world: &World| !world.serves.get() && world.stop.borrow().is_none();
    world.wait(Duration::from_secs(30), ended).await;
    if life == world.lives.get() && world.server.is_up() {
        start_server(world, 1 + prng.index(2));
    }
}

/// Splits a shard at a drawn slot. It may be refused, be cut off by a later fault, and go on later.
async fn split(world: &World, prng: &mut Prng) {
    let Some(engine) = world.engine.borrow().clone() else { return };
    let slot = prng.below(u64::from(SLOTS)) as u16;
    let clock = world.judge.env().clock;
    let operator = engine.operator();
    let splitting = operator.split_at(RoutingKey::Slot(slot));
    if let Ok(Ok(_)) = timeout(&*clock, SPLIT_MAX, splitting).await {
        world.fault("split");
    }
}

async fn double(world: &World) {
    let Some(engine) = world.engine.borrow().clone() else { return };
    if engine.table().routes().len() > SHARDS_MAX {
        return;
    }
    let clock = world.judge.env().clock;
    let operator = engine.operator();
    if let Ok(Ok(_)) = timeout(&*clock, SPLIT_MAX, operator.reshard_double()).await {
        world.fault("doubling");
    }
}

fn jump(world: &World, prng: &mut Prng) {
    if !world.jumps {
        return;
    }
    world.fault("clock jump");
    let by = match prng.below(3) {
        0 => prng.below(1_000),
        1 => prng.below(60_000),
        _ => prng.below(3_600_000),
    } as i64;
    let sign = if prng.chance(0.5) { 1 } else { -1 };
    world.server.set_wall_offset_ms(sign * by);
}

/// Lets a sync fail. What it was to make durable is gone from memory too, so nothing that depended
/// on it may be acknowledged; the engine stops, and somebody restarts it.
async fn failed_sync(world: &Rc<World>, prng: &mut Prng) {
    world.fault("failed sync");
    let disk = world.server.disk();
    let kind = if prng.chance(0.5) { FaultKind::SyncLoses } else { FaultKind::SyncForgets };
    disk.inject(Fault::new(kind).on(OpKind::Sync));
    let clock = world.judge.env().clock;
    clock.sleep(Duration::from_millis(100 + prng.below(1_500))).await;
    disk.clear_faults();
    world.server.crash_with(crash_mode(world, prng));
    come_back(world, prng).await;
}
