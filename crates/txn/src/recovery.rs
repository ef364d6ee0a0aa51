//! Recovery: finding out, or deciding, what became of a transaction that left an intent.
//!
//! Anybody may do this, at any time, any number of times, whether its coordinator lives or not:
//!
//! ```text
//!  met an intent --> Status at the primary
//!                      |
//!      +---------------+----------------+------------------+
//!   Committed(t)    Aborted         Staged(s)            nothing
//!      |               |          lives: wait,         look at the key again
//!      |               |          then go on          gone: done   there: lives? wait
//!      |               |                |                              |
//!      |               |       Probe every key,            Finish(Aborted) if there is
//!      |               |       fencing what is missing     still no record
//!      |               |                |
//!      |               |       all there, none above s: Finish(Committed(s)) if the record
//!      |               |       any missing or above:    Finish(Aborted)      still says s
//!      +-------+-------+----------------+
//!              |
//!           Resolve: intents become versions, or go
//! ```
//!
//! # What it leans on
//! - **A transaction is committed exactly if its record is staged and every intent is in place, or
//!   the record says so.** The record names all keys, so whoever reads it can find out.
//! - **A record changes only by compare and swap.** Coordinator and recoverers race there, and only
//!   there; who loses reads again.
//! - **A fence makes "missing" final.** Between the probe and the decision a late prewrite could
//!   still place the intent; the fence refuses it.
//! - **No record is not an answer.** It may mean: not staged yet, or long resolved and forgotten.
//!   The key tells them apart: a forgotten transaction has no intents left. In the first case the
//!   `Aborted` record that recovery writes refuses the primary's prewrite when it comes.
//! - **Intents are resolved only after the record is decided in the log.** Hence a probe that finds
//!   a version instead of an intent need not know more: the compare and swap will fail.
//! - **Recovery never forgets a record.** The coordinator, slow but alive, may still come to ask.
//!
//! Deciding the fate of a transaction that lives is safe by the same rules. That is how a reader
//! *pushes* one that takes too long: it commits if all of it is there, else it is aborted.

use std::time::Duration;

use atoll_env::sometimes;
use atoll_mvcc::request::{Fate, Isolation, Key, Obstacle, Outcome, Record, Request, Response};
use atoll_mvcc::{Timestamp, TxnId};

use crate::error::Unavailable;
use crate::mutants;
use crate::pace::{Backoff, Pace};
use crate::shards::{Shards, ask, ask_each};

/// First wait for a transaction that lives, and the longest one.
const WAIT_FIRST: Duration = Duration::from_micros(500);
const WAIT_MOST: Duration = Duration::from_millis(50);
/// How long a transaction without record and heartbeat is given: its first words to the primary may
/// be on their way.
const GRACE: Duration = Duration::from_millis(5);

/// How long to wait for a transaction that is in the way and lives.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long to let it be.
    pub wait: Duration,
    /// What then.
    pub then: WhenAlive,
    /// How long to keep asking shards that do not serve.
    pub limit: Duration,
}

/// What becomes of a transaction that lives and has been waited for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenAlive {
    /// It is left alone.
    Leave,
    /// It is decided as if it were dead.
    Push,
}

/// Why an obstacle is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// Its transaction lives, and patience has ended.
    Alive(TxnId),
    /// Shards did not serve in time.
    Unavailable(Unavailable),
}

impl From<Unavailable> for Unresolved {
    fn from(unavailable: Unavailable) -> Unresolved {
        Unresolved::Unavailable(unavailable)
    }
}

/// What was found out about an obstacle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Its transaction ended like this, and its intents here were resolved.
    Ended(Outcome),
    /// Somebody else has resolved it meanwhile.
    Gone,
}

/// Gets intents out of the way: waits for their transactions, or recovers them, and resolves the
/// intents named. Afterwards the question that met them is to be asked again.
///
/// # Errors
/// A transaction lives and is to be left alone, or shards did not serve in time.
pub async fn resolve<S: Shards>(
    shards: &S,
    pace: &Pace,
    obstacles: &[Obstacle],
    patience: Patience,
) -> Result<Resolved, Unresolved> {
    let mut last = Resolved::Gone;
    for (index, first) in obstacles.iter().enumerate() {
        if obstacles[..index].iter().any(|before| before.txn == first.txn) {
            continue;
        }
        last = outcome_of(shards, pace, first, patience).await?;
        let Resolved::Ended(outcome) = last else { continue };
        let its = obstacles.iter().filter(|obstacle| obstacle.txn == first.txn);
        let mut keys: Vec<Key> = its.map(|obstacle| obstacle.key.clone()).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut backoff = pace.backoff(WAIT_FIRST, WAIT_MOST, patience.limit);
        clear(shards, &mut backoff, false, first.txn, keys, outcome).await?;
    }
    Ok(last)
}

/// Finds out, or decides, how the transaction of one obstacle ends.
async fn outcome_of<S: Shards>(
    shards: &S,
    pace: &Pace,
    obstacle: &Obstacle,
    patience: Patience,
) -> Result<Resolved, Unresolved> {
    let Obstacle { key, txn, primary, min_commit_ts } = obstacle;
    let mut asking = pace.backoff(WAIT_FIRST, WAIT_MOST, patience.limit);
    let mut waiting = pace.backoff(WAIT_FIRST, WAIT_MOST, patience.wait);
    let mut graced = false;
    loop {
        let (record, alive) = status(shards, &mut asking, *txn, primary).await?;
        match record {
            Some(Record::Committed(ts)) => return Ok(Resolved::Ended(Outcome::Committed(ts))),
            Some(Record::Aborted) => return Ok(Resolved::Ended(Outcome::Aborted)),
            Some(Record::Staged { .. }) => {}
            None => {
                let look = || Request::Probe { txn: *txn, keys: vec![key.clone()], fence: None };
                match ask(shards, false, &mut asking, look).await? {
                    Response::Fates(fates) if matches!(fates[..], [Fate::Intent { .. }]) => {}
                    Response::Fates(_) => return Ok(Resolved::Gone),
                    other => return Err(nonsense("Probe", &other).into()),
                }
                if !alive && !graced {
                    graced = true;
                    pace.about(GRACE).await;
                    continue;
                }
            }
        }
        if alive {
            if waiting.pause("").await.is_ok() {
                continue;
            }
            if patience.then == WhenAlive::Leave {
                return Err(Unresolved::Alive(*txn));
            }
        }
        let outcome = recover(shards, &mut asking, *txn, primary, *min_commit_ts).await?;
        return Ok(Resolved::Ended(outcome));
    }
}

/// Decides a transaction by its record, whatever its coordinator does. `stamp` is not below its
/// commit point.
///
/// # Errors
/// Shards did not serve in time; nothing is decided, or somebody else has decided it.
pub(crate) async fn recover<S: Shards>(
    shards: &S,
    backoff: &mut Backoff<'_>,
    txn: TxnId,
    primary: &Key,
    stamp: Timestamp,
) -> Result<Outcome, Unavailable> {
    loop {
        let (record, _) = status(shards, backoff, txn, primary).await?;
        let (expect, outcome, stamp) = match record {
            Some(Record::Committed(ts)) => return Ok(Outcome::Committed(ts)),
            Some(Record::Aborted) => return Ok(Outcome::Aborted),
            None => {
                sometimes!(true, "a transaction without a record is recovered");
                (None, Outcome::Aborted, stamp)
            }
            Some(Record::Staged { commit_ts, isolation, keys }) => {
                let stamp = stamp.max(commit_ts);
                let ready = probe(shards, backoff, txn, keys.to_vec(), stamp).await?;
                let outcome = match ready {
                    Some(highest) if isolation != Isolation::Serializable => {
                        Outcome::Committed(highest.max(commit_ts))
                    }
                    // An intent above the record: its reads were not validated up to there.
                    Some(highest)
                        if highest <= commit_ts || mutants::is("recovery-ignores-pushes") =>
                    {
                        Outcome::Committed(commit_ts)
                    }
                    Some(_) | None => Outcome::Aborted,
                };
                let committed = matches!(outcome, Outcome::Committed(_));
                sometimes!(committed, "a staged transaction is recovered as committed");
                sometimes!(!committed, "a staged transaction is recovered as aborted");
                (Some(commit_ts), outcome, stamp)
            }
        };
        let (primary, keys) = (primary.clone(), Vec::new());
        let finish =
            Request::Finish { txn, primary: primary.clone(), expect, outcome, stamp, keys };
        match shards.send(finish).await {
            Response::Done => {
                if mutants::is("recovery-forgets") {
                    shards.send(Request::Forget { txns: vec![(txn, primary)] }).await;
                }
                return Ok(outcome);
            }
            // It is not what it was, or it is not known whether the record changed: read again.
            Response::Record { .. } => {}
            _ => backoff.pause("the shard of a transaction's record did not serve").await?,
        }
    }
}

/// Asks for every intent of a staged transaction; returns the highest of their timestamps, `None` if
/// one is missing for ever.
async fn probe<S: Shards>(
    shards: &S,
    backoff: &mut Backoff<'_>,
    txn: TxnId,
    keys: Vec<Key>,
    stamp: Timestamp,
) -> Result<Option<Timestamp>, Unavailable> {
    let fence = (!mutants::is("no-fences")).then_some(stamp);
    let answers =
        ask_each(shards, false, backoff, keys, |keys| Request::Probe { txn, keys, fence }).await?;
    let mut highest = Some(Timestamp::ZERO);
    for (_, answer) in answers {
        let Response::Fates(fates) = answer else { return Err(nonsense("Probe", &answer)) };
        for fate in fates {
            highest = match fate {
                Fate::Intent { min_commit_ts } => highest.map(|ts| ts.max(min_commit_ts)),
                // Resolved: the record is decided, and the compare and swap that follows fails.
                Fate::Version { ts } => highest.map(|highest| highest.max(ts)),
                Fate::Fenced | Fate::Missing => None,
            };
        }
    }
    Ok(highest)
}

/// Resolves the intents of a decided transaction on these keys, which ascend.
pub(crate) async fn clear<S: Shards>(
    shards: &S,
    backoff: &mut Backoff<'_>,
    lightly: bool,
    txn: TxnId,
    keys: Vec<Key>,
    outcome: Outcome,
) -> Result<(), Unavailable> {
    let resolve = |keys| Request::Resolve { txn, keys, outcome };
    for (_, answer) in ask_each(shards, lightly, backoff, keys, resolve).await? {
        if answer != Response::Done {
            return Err(nonsense("Resolve", &answer));
        }
    }
    Ok(())
}

/// Asks for a record, and whether its coordinator was heard of lately.
pub(crate) async fn status<S: Shards>(
    shards: &S,
    backoff: &mut Backoff<'_>,
    txn: TxnId,
    primary: &Key,
) -> Result<(Option<Record>, bool), Unavailable> {
    match ask(shards, false, backoff, || Request::Status { txn, primary: primary.clone() }).await? {
        Response::Record { record, alive } => Ok((record, alive)),
        other => Err(nonsense("Status", &other)),
    }
}

/// Says that a shard answered what the question does not allow.
pub(crate) fn nonsense(question: &str, answer: &Response) -> Unavailable {
    debug_assert!(false, "a shard answered {question} with {answer:?}");
    Unavailable(format!("a shard answered {question} with {answer:?}, which is a bug"))
}
