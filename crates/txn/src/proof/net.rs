//! A network between clients and shards that delays, reorders and loses.
//!
//! ```text
//!   send --delay--> shard that has the key --> ... --> answer --delay--> back
//!             |
//!             +-- the connection may break: the sender is told Unknown, and the request arrives
//!                 later, perhaps much later, or never; or it was only the answer that was lost,
//!                 perhaps because the leader went down after it was applied
//! ```
//!
//! A request is a task of the shards' node, so it arrives although its sender died meanwhile. Every
//! client routes by a table of its own, which is brought up to date when it was wrong.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sync::oneshot;
use atoll_mvcc::request::{Key, Request, Response, Span};

use super::Weather;
use crate::{ShardRef, Shards};

/// Shards without a network: what is behind it.
pub trait Ground: 'static {
    /// Returns the world of their node.
    fn env(&self) -> &Env;

    /// Returns where chance comes from.
    fn prng(&self) -> &RefCell<Prng>;

    /// Returns what the network is like.
    fn weather(&self) -> Weather;

    /// Returns how often the ranges were changed.
    fn epoch(&self) -> u64;

    /// Returns the ranges of the shards. Together they cover all keys.
    fn ranges(&self) -> Vec<Span>;

    /// Asks a shard, by its place among the ranges.
    fn ask(self: &Rc<Self>, shard: usize, request: Request) -> impl Future<Output = Response>;

    /// Has a shard lose its leader once everything in flight is applied.
    fn lose_leader(self: &Rc<Self>, shard: usize);

    /// Draws a delay of up to about `us`, seldom much more.
    fn draw(&self, us: u64) -> Duration {
        let mut prng = self.prng().borrow_mut();
        let most = if prng.chance(self.weather().tail) { us * 20 } else { us };
        Duration::from_nanos(prng.below(most * 1_000 + 1))
    }

    /// Returns the shard that has a key.
    fn find(&self, key: &[u8]) -> usize {
        let found = self.ranges().iter().position(|span| span.contains(key));
        found.expect("invariant: the ranges cover all keys of a schedule")
    }
}

/// How one client sees the shards.
pub struct Net<G> {
    ground: Rc<G>,
    routes: Rc<RefCell<Routes>>,
}

impl<G> Clone for Net<G> {
    fn clone(&self) -> Net<G> {
        Net { ground: self.ground.clone(), routes: self.routes.clone() }
    }
}

#[derive(Clone, Default)]
struct Routes {
    epoch: u64,
    /// By start of the range.
    shards: BTreeMap<Key, (usize, Key)>,
}

impl Routes {
    fn of(ground: &impl Ground) -> Routes {
        let ranges = ground.ranges().into_iter().enumerate();
        let shards = ranges.map(|(at, span)| (span.start, (at, span.end))).collect();
        Routes { epoch: ground.epoch(), shards }
    }
}

impl<G: Ground> Net<G> {
    /// Returns a new client's view.
    pub fn new(ground: &Rc<G>) -> Net<G> {
        Net { ground: ground.clone(), routes: Rc::new(RefCell::new(Routes::of(&**ground))) }
    }
}

impl<G: Ground> Shards for Net<G> {
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
        let (ground, routes) = (self.ground.clone(), self.routes.clone());
        let Weather { network_us, breaks, late_us, .. } = ground.weather();
        let there = ground.draw(network_us);
        let back = ground.draw(network_us);
        let breaks = ground.prng().borrow_mut().chance(breaks);
        let shard = self.shard_of(request.key()).id as usize;
        let (sender, receiver) = oneshot::channel();
        if breaks && ground.prng().borrow_mut().chance(0.5) {
            ground.env().clock.sleep(there).await;
            let receiver = {
                let at = ground.clone();
                ground.env().tasks.spawn_local(
                    "answer lost",
                    Box::pin(async move {
                        at.ask(shard, request).await;
                        drop(sender.send(Response::Unknown));
                    }),
                );
                receiver
            };
            let response = receiver.await.unwrap_or(Response::Unknown);
            if ground.prng().borrow_mut().chance(0.5) {
                ground.lose_leader(shard);
            }
            return response;
        }
        if breaks {
            let late = {
                let mut prng = ground.prng().borrow_mut();
                (!prng.chance(0.2)).then(|| Duration::from_micros(prng.below(late_us)))
            };
            let at = ground.clone();
            ground.env().tasks.spawn_local(
                "late",
                Box::pin(async move {
                    let Some(late) = late else { return };
                    at.env().clock.sleep(late).await;
                    at.ask(shard, request).await;
                }),
            );
            ground.env().clock.sleep(there + back).await;
            return Response::Unknown;
        }
        let at = ground.clone();
        ground.env().tasks.spawn_local(
            "request",
            Box::pin(async move {
                at.env().clock.sleep(there).await;
                let response = at.ask(shard, request).await;
                at.env().clock.sleep(back).await;
                drop(sender.send(response));
            }),
        );
        let response = receiver.await.unwrap_or(Response::Unknown);
        if response == Response::NotMine {
            *routes.borrow_mut() = Routes::of(&*ground);
        }
        response
    }
}
