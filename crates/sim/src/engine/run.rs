//! One seed: a server, its clients and the nemesis for a minute, then the verdict.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use atoll_checkers::Recorder;
use atoll_env::random::Prng;
use atoll_env::sim::{Outcome, Sim};
use atoll_env::sync::oneshot;
use atoll_env::{Env, probe};
use atoll_kv::NodeOptions;
use atoll_lsm::{Compression, Durability};
use atoll_redis::{Config, Identity};
use atoll_server::{Engine, Server};

use super::campaign::{SITES, Told};
use super::client::Connection;
use super::load::{Client, FAMILIES};
use super::op::{End, Op};
use super::world::World;
use super::{faults, judge, mirror, ranges};

/// Time that the server has to be well again at the end.
pub const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// Keys read at once at the end.
const READ_AT_ONCE: usize = 50;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// What everything follows from.
    pub seed: u64,
    /// Simulated time under load and faults.
    pub seconds: u64,
    /// Keep a line of text per event.
    pub trace: bool,
}

/// A seed that failed.
#[derive(Clone, Debug, Default)]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// Why.
    pub why: String,
    /// The trace, if it was kept.
    pub lines: Vec<String>,
    /// The faults with their moments.
    pub notes: Vec<String>,
    /// The history, if it was finished.
    pub history: String,
}

/// Runs a seed.
///
/// # Errors
/// A promise was broken, somebody panicked, or the server does not come back.
pub fn run(run: Run) -> Result<Told, Box<Failed>> {
    let sim = Rc::new(Sim::new(run.seed));
    if run.trace {
        sim.keep_trace_lines();
    }
    probe::take();
    let _ = probe::take_facts();
    let mut failed = Box::new(Failed { seed: run.seed, ..Failed::default() });
    let outcome = catch_unwind(AssertUnwindSafe(|| in_world(&sim, run, &mut failed)));
    let failed = move |why: String| {
        failed.why = why;
        failed.lines = sim.take_trace_lines();
        failed
    };
    match outcome {
        Ok(Ok(told)) => Ok(told),
        Ok(Err(why)) => Err(failed(why)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(failed(format!("panic: {}", text.unwrap_or("of unknown kind"))))
        }
    }
}

fn in_world(sim: &Rc<Sim>, run: Run, failed: &mut Failed) -> Result<Told, String> {
    let mut prng = Prng::new(run.seed).fork("run");
    let server = sim.node("server");
    let clients = (0..FAMILIES.len()).map(|n| sim.node(&format!("client{n}"))).collect();
    let durability = match prng.below(10) {
        0 => Durability::Interval,
        1 => Durability::Buffered,
        _ => Durability::Synced,
    };
    let world = Rc::new(World {
        seed: run.seed,
        server,
        clients,
        judge: sim.node("judge"),
        recorder: Recorder::new().into(),
        ranged: Recorder::new().into(),
        universes: Default::default(),
        keys: Default::default(),
        faults: Default::default(),
        notes: Default::default(),
        wrong: Default::default(),
        busy: true.into(),
        clients_left: (FAMILIES.len() + ranges::CLIENTS).into(),
        durability,
        jumps: prng.chance(0.5),
        stop: Default::default(),
        lives: 0.into(),
        serves: false.into(),
        engine: Default::default(),
        last_failure: Default::default(),
    });
    world.remark(format!("{durability:?}, clocks jump: {}", world.jumps));
    let judge = world.judge.clone();
    let play = play(world.clone(), sim.clone(), prng, Duration::from_secs(run.seconds));
    let played = sim.try_block_on(&judge, play);
    failed.notes = world.notes.take();
    match played {
        Ok(Outcome::Done(Ok(()))) => {}
        Ok(Outcome::Done(Err(why))) => return Err(why),
        Ok(Outcome::Crashed) => return Err("the judge is gone; this is a bug".to_owned()),
        Err(deadlock) => return Err(deadlock.to_string()),
    }
    if let Some(what) = world.wrong.borrow_mut().take() {
        return Err(what);
    }
    let confirmed = probe::take_facts()?;
    let recorder = world.recorder.replace(Recorder::new());
    let history = recorder.finish(world.nanos());
    let mut checked = judge::judge(&history, world.jumps).inspect_err(|_| {
        failed.history = history.to_string();
    })?;
    let ranged = world.ranged.replace(Recorder::new()).finish(world.nanos());
    let universes = world.universes.take();
    let of_ranges = judge::ranges(&ranged, &universes).inspect_err(|_| {
        failed.history = ranged.to_string();
    })?;
    checked = checked.and(of_ranges);
    let mut reached = probe::take();
    // The engine's own doings show as operations of the disk.
    for (site, times) in world.server.disk().sites() {
        if let Some(state) = SITES.iter().find(|state| state.ends_with(site)) {
            reached.insert(state, times);
        }
    }
    Ok(Told {
        events: sim.events(),
        faults: world.faults.take(),
        acknowledged: (history.acknowledged() + ranged.acknowledged()) as u64,
        checked: checked.calls as u64,
        confirmed,
        reached,
        trace: sim.trace_hash(),
        simulated_s: run.seconds,
    })
}

/// Everything that happens, up to the reading of what is left.
async fn play(
    world: Rc<World>,
    sim: Rc<Sim>,
    mut prng: Prng,
    time: Duration,
) -> Result<(), String> {
    let env = world.judge.env();
    start_server(&world, 1 + prng.index(2));
    for number in 0..FAMILIES.len() {
        let client = Client::new(world.clone(), number, prng.fork(&format!("client {number}")));
        world.clients[number].env().tasks.spawn_local("client", Box::pin(client.run()));
    }
    for number in 0..ranges::CLIENTS {
        let prng = prng.fork(&format!("ranges {number}"));
        let own = world.clients[number].env();
        let task = ranges::run(world.clone(), own.clone(), number, prng);
        own.tasks.spawn_local("ranges", Box::pin(task));
    }
    let nemesis_ended = {
        let (sender, ended) = oneshot::channel();
        let trouble = faults::trouble(world.clone(), sim.clone(), prng.fork("faults"));
        let task = async move {
            trouble.await;
            let _ = sender.send(());
        };
        env.tasks.spawn_local("nemesis", Box::pin(task));
        ended
    };
    env.clock.sleep(time).await;
    world.busy.set(false);
    let _ = nemesis_ended.await;
    world.server.set_wall_offset_ms(0);
    if !world.wait(RECOVERY_MAX, |world| world.clients_left.get() == 0).await {
        return Err("a client does not end: it waits for a reply that never comes".to_owned());
    }
    if !world.wait(RECOVERY_MAX, |world| world.serves.get()).await {
        let why = world.last_failure.borrow();
        return Err(format!("the server does not serve a minute after the last fault: {why}"));
    }
    // In half of the runs the server comes from a clean stop, else from wherever it was.
    if prng.chance(0.5) {
        let stop = world.stop.borrow_mut().take();
        let _ = stop.map(|stop| stop.send(()));
        if !world.wait(RECOVERY_MAX, |world| !world.serves.get()).await {
            return Err("the server does not stop".to_owned());
        }
        start_server(&world, 1);
        if !world.wait(RECOVERY_MAX, |world| world.serves.get()).await {
            return Err("the server does not serve a minute after a clean stop".to_owned());
        }
    }
    read_everything(&world, &env).await?;
    ranges::read_everything(&world, &env).await?;
    mirror::compare(&world, &mut prng).await
}

/// Reads every key that was used. These reads end the history: they show what was lost.
async fn read_everything(world: &World, env: &Env) -> Result<(), String> {
    use atoll_checkers::linear::{CounterOp, RegisterOp};
    use atoll_checkers::list_append::{Micro, Txn};
    let mut ops = Vec::new();
    {
        let keys = world.keys.borrow();
        ops.extend(keys.registers.iter().map(|key| Op::Register(*key, RegisterOp::Get)));
        ops.extend(keys.counters.iter().map(|key| Op::Counter(*key, CounterOp::Get)));
        let lists = keys.lists.iter().map(|key| Op::Lists(Txn(vec![Micro::Read { key: *key }])));
        ops.extend(lists);
        ops.push(Op::Balances);
    }
    let mut connection = Connection::open(env, world.address())
        .await
        .ok_or("the server does not listen at the end")?;
    let process = world.recorder.borrow_mut().process();
    for ops in ops.chunks(READ_AT_ONCE) {
        read(world, &mut connection, process, ops).await?;
    }
    if connection.ask(&["SELECT", "1"]).await?.is_none() {
        return Err("the connection is lost at the end".to_owned());
    }
    read(world, &mut connection, process, &[Op::Count]).await
}

async fn read(
    world: &World,
    connection: &mut Connection,
    process: atoll_checkers::Process,
    ops: &[Op],
) -> Result<(), String> {
    let mut bytes = Vec::new();
    let mut asked = Vec::new();
    for op in ops {
        let replies = op.encode(&mut bytes);
        let call = world.recorder.borrow_mut().invoke(process, world.nanos(), op.clone());
        asked.push((call, replies));
    }
    if !connection.send(&bytes).await {
        return Err("the connection is lost at the end".to_owned());
    }
    for ((call, count), op) in asked.into_iter().zip(ops) {
        let mut replies = Vec::new();
        for _ in 0..count {
            let reply = connection.receive().await?;
            replies.push(reply.ok_or_else(|| format!("at the end {op} gets no answer"))?);
        }
        match op.decode(&replies)? {
            End::Ok(ret) => world.recorder.borrow_mut().ok(call, world.nanos(), ret),
            _ => return Err(format!("at the end {op} is answered with {replies:?}")),
        }
    }
    Ok(())
}

/// Starts the server of a world. One that cannot open its directory for lack of room or a failing
/// disk tries again, as a service manager would have it; what it says of its data is a failure.
pub fn start_server(world: &Rc<World>, cores: usize) {
    let env = world.server.env();
    let life = world.lives.get() + 1;
    world.lives.set(life);
    world.serves.set(false);
    world.remark(format!("start {life} with {cores} cores"));
    let (stop, mut stopped) = oneshot::channel::<()>();
    *world.stop.borrow_mut() = Some(stop);
    let world = world.clone();
    let tasks = env.tasks.clone();
    tasks.spawn_local(
        "server",
        Box::pin(async move {
            loop {
                match serve(&world, &env, life, cores, &mut stopped).await {
                    Ok(()) => return,
                    Err(failure) if is_passing(&failure) => {
                        *world.last_failure.borrow_mut() = failure.to_string();
                        env.clock.sleep(Duration::from_millis(200)).await;
                    }
                    Err(failure) => {
                        return world.complain(format!("the server does not open: {failure}"));
                    }
                }
            }
        }),
    );
}

/// Returns whether a failure is one of the disk's that may be over soon.
fn is_passing(failure: &atoll_lsm::Error) -> bool {
    use atoll_lsm::Error;
    matches!(failure, Error::Io { .. } | Error::NoSpace(_) | Error::Stopped(_))
}

async fn serve(
    world: &World,
    env: &Env,
    life: u64,
    cores: usize,
    stopped: &mut oneshot::Receiver<()>,
) -> atoll_lsm::Result<()> {
    let options = options(world, env, cores);
    let promised = match world.durability {
        Durability::Synced => atoll_redis::Durability::Synced,
        Durability::Interval => atoll_redis::Durability::Interval,
        Durability::Buffered => atoll_redis::Durability::Buffered,
    };
    let config = Config { durability: promised, ..Config::default() };
    let run_id = env.random.next_u64();
    let identity = Identity { version: "sim", process_id: 1, run_id, measure: None, allocator: "" };
    let engine = Rc::new(Engine::start(options, config, identity).await?);
    let address = world.address();
    let server = Server::bind(&engine, address).await;
    let server = match server {
        Ok(server) => server,
        Err(why) => {
            world.complain(format!("the server does not listen: {why}"));
            return Ok(());
        }
    };
    *world.engine.borrow_mut() = Some(engine.clone());
    world.serves.set(true);
    world.remark("serves");
    server
        .run(async {
            let _ = stopped.await;
        })
        .await;
    // Whoever has it splits a shard, which ends soon.
    world.engine.borrow_mut().take();
    let closed = engine.end().await;
    if world.lives.get() == life {
        world.serves.set(false);
    }
    // Closing may fail for want of room; the next opening replays the log.
    if let Err(failure) = closed {
        *world.last_failure.borrow_mut() = failure.to_string();
    }
    Ok(())
}

/// Draws the options from the seed of the run, the same for every life: small sizes, so that
/// segments end, memtables flush and levels grow within a minute.
fn options(world: &World, env: &Env, cores: usize) -> NodeOptions {
    let mut prng = Prng::new(world.seed).fork("options");
    let mut options = NodeOptions::new(env.clone(), "data");
    options.cores = cores;
    options.stores = 2;
    options.shards = 4;
    options.memory = 16 << 20;
    options.shard_size = (64 << prng.below(4)) << 10;
    options.engine.durability = world.durability;
    options.engine.log_segment_size = (64 << prng.below(3)) << 10;
    options.engine.memtable_size = (32 << prng.below(4)) << 10;
    options.engine.table_size = 64 << 10;
    options.engine.block_size = 1 << 10;
    options.engine.level_base_size = 256 << 10;
    options.engine.level0_tables = 2;
    options.engine.manifest_size = 16 << 10;
    options.engine.compression =
        if prng.chance(0.5) { Compression::Lz4 } else { Compression::None };
    options
}
