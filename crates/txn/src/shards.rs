//! The shards as a coordinator sees them: who has a key, and a way to ask.
//!
//! How a question travels is not known here: it may be a function call, a ring between two cores or
//! a network. A question names keys of one shard only, so keys are grouped first, by what the router
//! knows at that moment. Its knowledge may be old: then a shard answers [`Response::NotMine`],
//! nothing has changed, and the coordinator groups again. That is why every loop in this crate that
//! talks to shards starts with grouping.
//!
//! Three answers mean "not this time" for every question, and [`ask`] and [`ask_each`] deal with
//! them for questions that may be asked twice: `NotMine` (group again), `Unavailable` (nothing has
//! changed) and `Unknown` (it may have).

use std::future::Future;

use atoll_mvcc::request::{Key, Request, Response, Span};

use crate::error::Unavailable;
use crate::join::join_all;
use crate::pace::Backoff;

/// Names a shard, and its state of splits and moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardRef {
    /// Which.
    pub id: u64,
    /// How often its range has changed.
    pub epoch: u64,
}

/// All shards, behind a router. Cheap to clone.
pub trait Shards: Clone + 'static {
    /// Returns the shard that has `key`, as far as the router knows.
    fn shard_of(&self, key: &[u8]) -> ShardRef;

    /// Cuts a span at the borders of shards: the pieces in key order, together the whole span.
    fn pieces(&self, span: &Span) -> Vec<(ShardRef, Span)>;

    /// Asks the shard that has [`Request::key`]. The answer may take as long as a lock is held. A
    /// caller that no longer waits has not taken its question back.
    fn send(&self, request: Request) -> impl Future<Output = Response>;

    /// Asks as [`Shards::send`] does, but what is told need not survive a power cut.
    fn send_lightly(&self, request: Request) -> impl Future<Output = Response> {
        self.send(request)
    }

    /// Returns whether the shards of all these keys write one log, of which a crash leaves a first
    /// part: if it leaves an entry, it leaves every one that was decided before, on all of them. It has
    /// to stay so as long as anything of a transaction is in that log.
    fn share_log<'k>(&self, _keys: impl Iterator<Item = &'k Key>) -> bool {
        false
    }
}

/// Asks, lightly or not.
pub(crate) async fn tell<S: Shards>(shards: &S, lightly: bool, request: Request) -> Response {
    match lightly {
        true => shards.send_lightly(request).await,
        false => shards.send(request).await,
    }
}

/// Groups keys by shard. Ascending keys stay ascending within their group.
pub(crate) fn by_shard<S: Shards>(shards: &S, keys: Vec<Key>) -> Vec<(ShardRef, Vec<Key>)> {
    let mut groups: Vec<(ShardRef, Vec<Key>)> = Vec::new();
    for key in keys {
        let shard = shards.shard_of(&key);
        // Ascending keys change their shard seldom: the group wanted is the last one.
        match groups.iter_mut().rev().find(|(of, _)| *of == shard) {
            Some((_, group)) => group.push(key),
            None => groups.push((shard, vec![key])),
        }
    }
    groups
}

/// Asks one shard until it answers, `Response::NotMine` included in what is waited out: the router
/// learns. For questions that may be asked twice.
pub(crate) async fn ask<S: Shards>(
    shards: &S,
    lightly: bool,
    backoff: &mut Backoff<'_>,
    request: impl Fn() -> Request,
) -> Result<Response, Unavailable> {
    loop {
        match tell(shards, lightly, request()).await {
            Response::NotMine => backoff.pause("its shard is moving").await?,
            Response::Unavailable(why) => backoff.pause(&why).await?,
            Response::Unknown => backoff.pause("its shard has lost its leader").await?,
            response => return Ok(response),
        }
    }
}

/// Asks all shards of some ascending keys at once, and again those that did not answer; returns the
/// answers with the keys that they are for. For questions that may be asked twice.
pub(crate) async fn ask_each<S: Shards>(
    shards: &S,
    lightly: bool,
    backoff: &mut Backoff<'_>,
    keys: Vec<Key>,
    request: impl Fn(Vec<Key>) -> Request,
) -> Result<Vec<(Vec<Key>, Response)>, Unavailable> {
    let mut answers = Vec::new();
    let mut open = keys;
    loop {
        let groups = by_shard(shards, std::mem::take(&mut open));
        let sent = groups.iter().map(|(_, keys)| tell(shards, lightly, request(keys.clone())));
        let responses = join_all(sent).await;
        let mut why = String::new();
        for ((_, keys), response) in groups.into_iter().zip(responses) {
            match response {
                Response::NotMine | Response::Unknown => open.extend(keys),
                Response::Unavailable(reason) => {
                    open.extend(keys);
                    why = reason;
                }
                response => answers.push((keys, response)),
            }
        }
        if open.is_empty() {
            return Ok(answers);
        }
        open.sort_unstable();
        backoff.pause(if why.is_empty() { "a shard is moving" } else { &why }).await?;
    }
}
