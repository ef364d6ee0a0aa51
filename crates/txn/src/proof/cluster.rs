//! Reference shards behind a network that delays, reorders and loses.
//!
//! ```text
//!   send --delay--> shard that has the key --> flight --delay--> applied --> answer --delay--> back
//!             |
//!             +-- the connection may break: the sender is told Unknown, and the request arrives
//!                 later, perhaps much later, or never; or it was only the answer that was lost,
//!                 perhaps because the leader went down after it was applied
//! ```
//!
//! A request is a task of the cluster's node, so it arrives although its sender died meanwhile.
//! Every client routes by a table of its own, which is brought up to date when it was wrong.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sync::{Notify, oneshot};
use atoll_mvcc::Timestamp;
use atoll_mvcc::request::{Key, Obstacle, Request, Response, Span, Version};

use super::reference::{Fast, FastAnswer, Shard};
use super::{Cluster, Weather};
use crate::{LocalOracle, ShardRef, Shards};

/// A few reference shards. Clones share them.
#[derive(Clone)]
pub struct ReferenceCluster {
    world: Rc<World>,
}

struct World {
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
#[derive(Clone)]
pub struct ReferenceShards {
    world: Rc<World>,
    routes: Rc<RefCell<Routes>>,
}

#[derive(Clone, Default)]
struct Routes {
    epoch: u64,
    /// By start of the range.
    shards: BTreeMap<Key, (usize, Key)>,
}

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

    /// Draws a delay of up to about `us`, seldom much more.
    fn draw(&self, us: u64) -> Duration {
        let mut prng = self.prng.borrow_mut();
        let most = if prng.chance(self.weather.tail) { us * 20 } else { us };
        Duration::from_nanos(prng.below(most * 1_000 + 1))
    }

    fn find(&self, key: &[u8]) -> usize {
        let shards = self.shards.borrow();
        let found = shards.iter().position(|shard| shard.span.contains(key));
        found.expect("invariant: the ranges cover all keys of a schedule")
    }

    fn change_leader(&self, index: usize, keep: usize) {
        let now = self.env.clock.now();
        self.shards.borrow_mut()[index].change_leader(keep, now);
        self.wake(index);
    }

    fn wake(&self, index: usize) {
        self.proposed.borrow()[index].notify();
    }

    fn routes(&self) -> Routes {
        let shards = self.shards.borrow();
        let route =
            |(at, shard): (usize, &Shard)| (shard.span.start.clone(), (at, shard.span.end.clone()));
        let shards = shards.iter().enumerate().map(route).collect();
        Routes { epoch: self.epoch.get(), shards }
    }

    async fn ask(&self, shard: usize, request: Request) -> Response {
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
}

impl Shards for ReferenceShards {
    fn shard_of(&self, key: &[u8]) -> ShardRef {
        let routes = self.routes.borrow();
        let upto = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        let (_, (at, _)) = (routes.shards.range::<[u8], _>(upto).next_back())
            .expect("invariant: the ranges cover all keys of a schedule");
        ShardRef { id: *at as u64, epoch: routes.epoch }
    }

    fn pieces(&self, span: &Span) -> Vec<(ShardRef, Span)> {
        let routes = self.routes.borrow();
        let piece = |(start, (at, end)): (&Key, &(usize, Key))| {
            let start = start.max(&span.start).clone();
            let end = end.min(&span.end).clone();
            let shard = ShardRef { id: *at as u64, epoch: routes.epoch };
            (start < end).then_some((shard, Span { start, end }))
        };
        routes.shards.iter().filter_map(piece).collect()
    }

    async fn send(&self, request: Request) -> Response {
        let (world, routes) = (self.world.clone(), self.routes.clone());
        let Weather { network_us, breaks, late_us, .. } = world.weather;
        let there = world.draw(network_us);
        let back = world.draw(network_us);
        let breaks = world.prng.borrow_mut().chance(breaks);
        let shard = self.shard_of(request.key()).id as usize;
        let (sender, receiver) = oneshot::channel();
        if breaks && world.prng.borrow_mut().chance(0.5) {
            world.env.clock.sleep(there).await;
            let receiver = {
                let at = world.clone();
                world.env.tasks.spawn_local(
                    "answer lost",
                    Box::pin(async move {
                        at.ask(shard, request).await;
                        drop(sender.send(Response::Unknown));
                    }),
                );
                receiver
            };
            let response = receiver.await.unwrap_or(Response::Unknown);
            if world.prng.borrow_mut().chance(0.5) {
                world.change_leader(shard, usize::MAX);
            }
            return response;
        }
        if breaks {
            let late = {
                let mut prng = world.prng.borrow_mut();
                (!prng.chance(0.2)).then(|| Duration::from_micros(prng.below(late_us)))
            };
            let at = world.clone();
            world.env.tasks.spawn_local(
                "late",
                Box::pin(async move {
                    let Some(late) = late else { return };
                    at.env.clock.sleep(late).await;
                    at.ask(shard, request).await;
                }),
            );
            world.env.clock.sleep(there + back).await;
            return Response::Unknown;
        }
        let at = world.clone();
        world.env.tasks.spawn_local(
            "request",
            Box::pin(async move {
                at.env.clock.sleep(there).await;
                let response = at.ask(shard, request).await;
                at.env.clock.sleep(back).await;
                drop(sender.send(response));
            }),
        );
        let response = receiver.await.unwrap_or(Response::Unknown);
        if response == Response::NotMine {
            *routes.borrow_mut() = world.routes();
        }
        response
    }
}

impl Cluster for ReferenceCluster {
    type Shards = ReferenceShards;

    fn shards(&self) -> ReferenceShards {
        let routes = Rc::new(RefCell::new(self.world.routes()));
        ReferenceShards { world: self.world.clone(), routes }
    }

    async fn fast(&self, fast: Fast) -> FastAnswer {
        let world = self.world.clone();
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

    fn versions(&self) -> BTreeMap<Key, Vec<Version>> {
        let shards = self.world.shards.borrow();
        let all = shards.iter().flat_map(|shard| shard.versions().clone());
        all.collect()
    }
}
