//! Reading from shards at a moment: keys, many keys at once, ranges piece by piece.
//!
//! A question that meets intents of others is asked again once they are out of the way; nothing of
//! the first answer is used. So a read never decides by itself what an intent means.

use std::ops::Bound;

use atoll_mvcc::request::{Key, Obstacle, Request, Response, Span, Version};
use atoll_mvcc::{Timestamp, TxnId};

use crate::buffer::{WriteBuffer, after};
use crate::coordinator::Core;
use crate::error::Error;
use crate::join::join_all;
use crate::mutants;
use crate::oracle::Oracle;
use crate::recovery::status;
use crate::shards::{Shards, by_shard};

/// Reads a key.
pub(crate) async fn read_one<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    txn: TxnId,
    key: &[u8],
    at: Timestamp,
) -> Result<Option<Version>, Error> {
    let mut backoff = core.backoff(core.options.operation);
    let mut moment = at;
    loop {
        let request = Request::Get { txn: Some(txn), keys: vec![key.to_vec()], at: moment };
        match core.shards.send(request).await {
            Response::Values(mut values) => return Ok(values.pop().flatten()),
            Response::Blocked(obstacles) if mutants::is("missing-is-aborted") => {
                let Obstacle { txn, primary, min_commit_ts, .. } = &obstacles[0];
                if status(&core.shards, &mut backoff, *txn, primary).await?.0.is_none() {
                    // Aborted, so it seems: look past the intent.
                    moment = min_commit_ts.prev();
                } else {
                    core.clear_way(&obstacles).await?;
                }
            }
            answer => core.again(&mut backoff, "Get", answer).await?,
        }
    }
}

/// Reads ascending keys.
pub(crate) async fn read_many<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    txn: TxnId,
    keys: &[Key],
    at: Timestamp,
) -> Result<Vec<Option<Version>>, Error> {
    let mut backoff = core.backoff(core.options.operation);
    let mut found: Vec<Option<Version>> = vec![None; keys.len()];
    let mut open = keys.to_vec();
    while !open.is_empty() {
        let groups = by_shard(&core.shards, std::mem::take(&mut open));
        let get = |keys: &Vec<Key>| Request::Get { txn: Some(txn), keys: keys.clone(), at };
        let answers = join_all(groups.iter().map(|(_, keys)| core.shards.send(get(keys)))).await;
        for ((_, group), answer) in groups.into_iter().zip(answers) {
            match answer {
                Response::Values(values) => {
                    for (key, version) in group.iter().zip(values) {
                        if let Ok(at) = keys.binary_search(key) {
                            found[at] = version;
                        }
                    }
                }
                answer => {
                    core.again(&mut backoff, "Get", answer).await?;
                    open.extend(group);
                }
            }
        }
        open.sort_unstable();
    }
    Ok(found)
}

/// Part of a scan.
pub(crate) struct Piece {
    pub(crate) rows: Vec<(Key, Version)>,
    /// All of this was looked at.
    pub(crate) covered: Span,
    /// What is left of the range.
    pub(crate) rest: Option<Span>,
}

/// Scans the next piece of a range: as far as one shard and the limit go.
pub(crate) async fn scan_piece<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    txn: TxnId,
    span: &Span,
    at: Timestamp,
    limit: usize,
    reverse: bool,
) -> Result<Piece, Error> {
    let mut backoff = core.backoff(core.options.operation);
    loop {
        let pieces = core.shards.pieces(span);
        let next = if reverse { pieces.into_iter().next_back() } else { pieces.into_iter().next() };
        let Some((_, piece)) = next else {
            return Ok(Piece { rows: Vec::new(), covered: span.clone(), rest: None });
        };
        let request = Request::Scan { txn: Some(txn), span: piece.clone(), at, limit, reverse };
        match core.shards.send(request).await {
            Response::Rows { rows, more } => {
                let mut covered = piece;
                match more {
                    Some(last) if reverse => covered.start = last,
                    Some(last) => covered.end = after(&last),
                    None => {}
                }
                let rest = if reverse {
                    Span { start: span.start.clone(), end: covered.start.clone() }
                } else {
                    Span { start: covered.end.clone(), end: span.end.clone() }
                };
                let rest = (rest.start < rest.end).then_some(rest);
                return Ok(Piece { rows, covered, rest });
            }
            answer => core.again(&mut backoff, "Scan", answer).await?,
        }
    }
}

/// Appends stored rows and own writes inside of `covered`, in order.
pub(crate) fn merge(
    rows: &mut Vec<(Key, Vec<u8>)>,
    stored: Vec<(Key, Version)>,
    covered: &Span,
    writes: &WriteBuffer,
    reverse: bool,
) {
    let inside =
        (Bound::Included(covered.start.as_slice()), Bound::Excluded(covered.end.as_slice()));
    let own = writes.values().range::<[u8], _>(inside);
    let own: Vec<_> = if reverse { own.rev().collect() } else { own.collect() };
    let mut own = own.into_iter().peekable();
    let mut stored = stored.into_iter().peekable();
    let comes_first = |a: &Key, b: &Key| if reverse { a > b } else { a < b };
    loop {
        match (own.peek(), stored.peek()) {
            (Some((mine, _)), Some((theirs, _))) if comes_first(theirs, mine) => {}
            (Some((mine, _)), theirs) => {
                let hidden = theirs.is_some_and(|(theirs, _)| theirs == *mine);
                if let Some((key, Some(value))) = own.next() {
                    rows.push((key.clone(), value.clone()));
                }
                if hidden {
                    stored.next();
                }
                continue;
            }
            (None, Some(_)) => {}
            (None, None) => return,
        }
        if let Some((key, Version { value: Some(value), .. })) = stored.next() {
            rows.push((key, value));
        }
    }
}
