//! Three engines on a simulated network: links, handshakes and all.

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_cluster::{Place, Post, PostOptions};
use atoll_env::probe;
use atoll_env::random::Prng;
use atoll_env::sim::{CrashMode, Node as Machine, Sim};
use atoll_env::sync::timeout;
use atoll_env::time::Clock;
use atoll_keyspaces::Mute;
use atoll_kv::{ClusterOptions, Core, Node, NodeOptions};
use atoll_link::{ClusterId, Options};
use atoll_shard::replica::EngineId;
use parking_lot::Mutex;
use support::{ACCOUNTS, TOTAL, audit, fill, transfer};

const ENGINES: usize = 3;

thread_local! {
    /// The first core of each engine that runs.
    static CORES: RefCell<BTreeMap<usize, Core<Mute>>> = const { RefCell::new(BTreeMap::new()) };
}

struct World {
    machines: Vec<Machine>,
    clock: Arc<dyn Clock>,
    lives: RefCell<Vec<u64>>,
    stop: Vec<Arc<Mutex<bool>>>,
    ended: Arc<Mutex<BTreeMap<usize, String>>>,
}

fn number(n: usize) -> EngineId {
    EngineId(n as u32 + 1)
}

impl World {
    fn place(&self, n: usize) -> Place {
        let address = SocketAddr::new(self.machines[n].ip(), 7400);
        Place { id: atoll_link::EngineId(n as u128 + 100), address }
    }

    fn start(&self, n: usize) {
        self.lives.borrow_mut()[n] += 1;
        *self.stop[n].lock() = false;
        self.ended.lock().remove(&n);
        let env = self.machines[n].env();
        let (carrier, post) = Post::new();
        let mut options = NodeOptions::new(env.clone(), "/data/db");
        (options.cores, options.stores, options.shards) = (2, 2, 4);
        options.memory = 16 << 20;
        options.engine.manifest_size = 0;
        options.cluster = Some(ClusterOptions {
            engine: number(n),
            founders: (0..ENGINES).map(number).collect(),
            carrier,
        });
        let Place { id, address } = self.place(n);
        let incarnation = self.lives.borrow()[n];
        let others = (0..ENGINES).filter(|&other| other != n);
        let engines: BTreeMap<_, _> =
            others.map(|other| (number(other), self.place(other))).collect();
        let waiting = Mutex::new(Some((post, engines)));
        let (stop, ended) = (self.stop[n].clone(), self.ended.clone());
        let main = move |core: Core<Mute>| -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
            let (first, stop) = (core.index() == 0, stop.clone());
            let post = if first { waiting.lock().take() } else { None };
            Box::pin(async move {
                if let Some((post, engines)) = post {
                    let link = Options::new(id, ClusterId(7), incarnation, address);
                    post.open(&core, PostOptions { link, engines })
                        .await
                        .expect("an address of its own");
                    CORES.with_borrow_mut(|cores| cores.insert(n, core.clone()));
                }
                while !*stop.lock() {
                    core.env().clock.sleep(Duration::from_millis(1)).await;
                }
            })
        };
        let run = async move {
            let node = Node::start(options, |_| Mute, main).await.expect("a node that opens");
            let result = node.wait().await;
            CORES.with_borrow_mut(|cores| cores.remove(&n));
            ended.lock().insert(n, format!("{result:?}"));
        };
        env.tasks.spawn_local("engine", Box::pin(run));
    }

    fn crash(&self, n: usize) {
        CORES.with_borrow_mut(|cores| cores.remove(&n));
        self.machines[n].crash_with(CrashMode::DropAll);
    }

    fn restart(&self, n: usize) {
        self.machines[n].restart();
        self.start(n);
    }

    async fn stop(&self, n: usize) {
        *self.stop[n].lock() = true;
        while !self.ended.lock().contains_key(&n) {
            self.sleep_ms(1).await;
        }
        assert_eq!(self.ended.lock()[&n], "Ok(())");
    }

    async fn sleep_ms(&self, ms: u64) {
        self.clock.sleep(Duration::from_millis(ms)).await;
    }
}

/// Makes three machines, starts an engine on each, and runs a script beside them.
fn with_engines<T>(seed: u64, script: impl AsyncFnOnce(&Sim, Rc<World>, Prng) -> T) -> T {
    let sim = Sim::new(seed);
    let machines = (0..ENGINES).map(|n| sim.node(&format!("e{}", n + 1))).collect();
    let judge = sim.node("judge");
    let world = Rc::new(World {
        machines,
        clock: judge.env().clock,
        lives: RefCell::new(vec![0; ENGINES]),
        stop: (0..ENGINES).map(|_| Arc::default()).collect(),
        ended: Arc::default(),
    });
    CORES.take();
    let _ = probe::take_facts();
    let output = sim.block_on(&judge, async {
        (0..ENGINES).for_each(|n| world.start(n));
        let output = script(&sim, world.clone(), Prng::new(seed)).await;
        CORES.take();
        output
    });
    if let Err(contradiction) = probe::take_facts() {
        panic!("seed {seed}: replicas differ: {contradiction}");
    }
    output.done()
}

fn core_of(n: usize) -> Option<Core<Mute>> {
    CORES.with_borrow(|cores| cores.get(&n).cloned())
}

/// Runs a step of an engine, for so long.
async fn within<T>(
    world: &World,
    ms: u64,
    step: impl Future<Output = Result<T, atoll_txn::Error>>,
) -> Option<T> {
    timeout(&*world.clock, Duration::from_millis(ms), step).await.ok()?.ok()
}

#[test]
fn a_bank_on_three_engines_survives_crashes_cut_links_and_resets() {
    let mut moved = 0;
    for seed in 0..6 {
        moved += with_engines(seed, async |sim, world, mut prng| {
            let mut filled = None;
            while filled.is_none() {
                world.sleep_ms(50).await;
                let Some(core) = core_of(0) else { continue };
                filled = within(&world, 3_000, fill(&core)).await;
            }
            let mut moved = 0;
            for round in 0..12 {
                let until = world.clock.now().after(Duration::from_millis(300 + prng.below(700)));
                while world.clock.now() < until {
                    let n = prng.index(ENGINES);
                    let Some(core) = core_of(n) else {
                        world.sleep_ms(1).await;
                        continue;
                    };
                    let (from, step) = (prng.below(ACCOUNTS), 1 + prng.below(ACCOUNTS - 1));
                    let moving = transfer(&core, from, (from + step) % ACCOUNTS);
                    moved += u64::from(within(&world, 6_000, moving).await.is_some());
                    if prng.chance(0.3)
                        && let Some(sum) = within(&world, 6_000, audit(&core)).await
                    {
                        assert_eq!(sum, TOTAL, "seed {seed}, round {round}, engine {n}");
                    }
                }
                let n = prng.index(ENGINES);
                let other = (n + 1 + prng.index(ENGINES - 1)) % ENGINES;
                let (a, b) = (&world.machines[n], &world.machines[other]);
                let lasts = 50 + prng.below(1_500);
                match round % 4 {
                    0 => {
                        world.crash(n);
                        world.sleep_ms(lasts).await;
                        world.restart(n);
                    }
                    1 => {
                        sim.cut_link(a, b);
                        world.sleep_ms(lasts).await;
                        sim.heal_link(a, b);
                    }
                    2 => sim.reset_links(a, b),
                    _ => {
                        world.stop(n).await;
                        world.sleep_ms(lasts / 4).await;
                        world.start(n);
                    }
                }
            }
            world.sleep_ms(4_000).await;
            for n in 0..ENGINES {
                let core = core_of(n).expect("all of them run");
                let sum = within(&world, 10_000, audit(&core)).await;
                assert_eq!(sum, Some(TOTAL), "seed {seed}, at the end of engine {n}");
            }
            moved
        });
    }
    assert!(moved > 1_000, "{moved} transfers");
}
