//! Reference shards behind a network.
//!
//! ```text
//!   a client's Net --> shard that has the key --> flight --delay--> applied --> answer
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sync::{Notify, oneshot};
use atoll_mvcc::Timestamp;
use atoll_mvcc::request::{Key, Obstacle, Request, Response, Span, Version};

use super::reference::{Fast, FastAnswer, Shard};
use super::{Cluster, Ground, Moment, Net, Weather, Written};
use crate::LocalOracle;

/// A few reference shards. Clones share them.
#[derive(Clone)]
pub struct ReferenceCluster {
    world: Rc<World>,
}

/// The shards.
pub struct World {
    env: Env,
    oracle: LocalOracle,
    shards: RefCell<Vec<Shard>>,
    /// Wakes the task that applies, by shard.
    proposed: RefCell<Vec<Rc<Notify>>>,
    prng: RefCell<Prng>,
    weather: Weather,
    /// Changed by splits.
    epoch: Cell<u64>,
    /// Every request is printed with its answer.
    traces: bool,
}

/// How one client sees the cluster.
pub type ReferenceShards = Net<World>;

impl ReferenceCluster {
    /// Returns a cluster whose ranges start at `starts`, and starts its tasks.
    pub fn new(
        env: &Env,
        oracle: &LocalOracle,
        starts: &[Key],
        prng: Prng,
        weather: Weather,
    ) -> ReferenceCluster {
        let world = Rc::new(World {
            env: env.clone(),
            oracle: oracle.clone(),
            shards: RefCell::default(),
            proposed: RefCell::default(),
            prng: RefCell::new(prng),
            weather,
            epoch: Cell::new(0),
            traces: std::env::var_os("ATOLL_TXN_TRACE").is_some(),
        });
        for (at, start) in starts.iter().enumerate() {
            let end = starts.get(at + 1).cloned().unwrap_or_else(|| vec![0xff; 8]);
            let span = Span { start: start.clone(), end };
            world.add(Shard::new(span, oracle.clone()));
        }
        let ticking = world.clone();
        env.tasks.spawn_local(
            "tick",
            Box::pin(async move {
                loop {
                    ticking.env.clock.sleep(Duration::from_millis(250)).await;
                    let now = ticking.env.clock.now();
                    ticking.shards.borrow_mut().iter_mut().for_each(|shard| shard.tick(now));
                }
            }),
        );
        ReferenceCluster { world }
    }
}

impl World {
    fn add(self: &Rc<World>, shard: Shard) {
        let index = self.shards.borrow().len();
        self.shards.borrow_mut().push(shard);
        let proposed = Rc::new(Notify::new());
        self.proposed.borrow_mut().push(proposed.clone());
        let world = self.clone();
        self.env.tasks.spawn_local(
            "apply",
            Box::pin(async move {
                loop {
                    proposed.notified().await;
                    while world.shards.borrow()[index].has_flight() {
                        let wait = world.draw(world.weather.apply_us);
                        world.env.clock.sleep(wait).await;
                        let now = world.env.clock.now();
                        world.shards.borrow_mut()[index].apply_one(now);
                    }
                }
            }),
        );
    }

    fn change_leader(&self, index: usize, keep: usize) {
        let now = self.env.clock.now();
        self.shards.borrow_mut()[index].change_leader(keep, now);
        self.wake(index);
    }

    fn wake(&self, index: usize) {
        self.proposed.borrow()[index].notify();
    }
}

impl Ground for World {
    fn env(&self) -> &Env {
        &self.env
    }

    fn prng(&self) -> &RefCell<Prng> {
        &self.prng
    }

    fn weather(&self) -> Weather {
        self.weather
    }

    fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    fn ranges(&self) -> Vec<Span> {
        self.shards.borrow().iter().map(|shard| shard.span.clone()).collect()
    }

    async fn ask(self: &Rc<World>, shard: usize, request: Request) -> Response {
        let (sender, receiver) = oneshot::channel();
        let now = self.env.clock.now();
        let line = self.traces.then(|| format!("{request:?}"));
        self.shards.borrow_mut()[shard].handle(request, sender, now);
        self.wake(shard);
        let response = receiver.await.unwrap_or(Response::Unknown);
        if let Some(line) = line {
            let then = self.env.clock.now().0;
            eprintln!("{} to {then} shard {shard}: {line} --> {response:?}", now.0);
        }
        response
    }

    fn lose_leader(self: &Rc<World>, shard: usize) {
        self.change_leader(shard, usize::MAX);
    }
}

impl Cluster for ReferenceCluster {
    type Shards = ReferenceShards;

    fn shards(&self) -> ReferenceShards {
        Net::new(&self.world)
    }

    fn fast(&self, commands: Vec<Fast>) -> Vec<impl Future<Output = FastAnswer>> {
        commands.into_iter().map(|fast| self.clone().run_fast(fast)).collect()
    }

    fn change_leader(&self) {
        let (at, keep) = {
            let mut prng = self.world.prng.borrow_mut();
            (prng.index(self.world.shards.borrow().len()), prng.index(4))
        };
        self.world.change_leader(at, keep);
    }

    fn split(&self, at: &Key) {
        let world = &self.world;
        let index = world.find(at);
        let now = world.env.clock.now();
        let upper = {
            let mut shards = world.shards.borrow_mut();
            let shard = &mut shards[index];
            if shard.span.start == *at {
                return;
            }
            while shard.has_flight() {
                shard.apply_one(now);
            }
            shard.split(at, now)
        };
        world.epoch.set(world.epoch.get() + 1);
        world.add(upper);
        world.wake(index);
    }

    fn learn_epoch(&self) {
        let world = &self.world;
        let mut prng = world.prng.borrow_mut();
        let mut shards = world.shards.borrow_mut();
        let at = prng.index(shards.len());
        let last = world.oracle.last();
        shards[at].learn(Timestamp::commit_at(last));
    }

    fn set_safepoint(&self, safepoint: Timestamp) {
        for shard in self.world.shards.borrow_mut().iter_mut() {
            shard.set_safepoint(safepoint);
        }
    }

    fn collect(&self) {
        self.world.shards.borrow_mut().iter_mut().for_each(Shard::collect);
    }

    fn intents(&self) -> Vec<Obstacle> {
        self.world.shards.borrow().iter().flat_map(Shard::intents).collect()
    }

    fn history(&self) -> BTreeMap<Key, Vec<Written>> {
        let shards = self.world.shards.borrow();
        let all = shards.iter().flat_map(|shard| shard.versions().clone());
        let written = |version: Version| {
            let Version { ts, value } = version;
            Written { at: Moment::end_of(ts), value }
        };
        all.map(|(key, of_key)| (key, of_key.into_iter().map(written).collect())).collect()
    }
}

impl ReferenceCluster {
    async fn run_fast(self, fast: Fast) -> FastAnswer {
        let world = self.world;
        let us = world.weather.network_us;
        world.env.clock.sleep(world.draw(us)).await;
        let key = fast.reads.first().or_else(|| fast.writes.first().map(|write| &write.key));
        let Some(shard) = key.map(|key| world.find(key)) else { return FastAnswer::NotNow };
        let (sender, receiver) = oneshot::channel();
        let now = world.env.clock.now();
        world.shards.borrow_mut()[shard].fast(fast, sender, now);
        world.wake(shard);
        let answer = receiver.await.unwrap_or(FastAnswer::Unknown);
        world.env.clock.sleep(world.draw(us)).await;
        answer
    }
}
