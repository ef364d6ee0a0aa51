//! What a transaction's handle and the background share: is it alive, what does it hold?
//!
//! The handle is owned by a session that may forget it, die, or sit there for hours. What has to be
//! given back in any case, locks and a staged record, is therefore written down here *before* it is
//! asked for, so that whoever finds the handle gone knows what there may be.

use std::collections::BTreeSet;
use std::sync::Arc;

use atoll_env::{Clock, Instant};
use atoll_mvcc::request::Key;
use atoll_mvcc::{Timestamp, TxnId};
use parking_lot::Mutex;

use crate::error::Abort;

/// The shared half of a transaction.
pub(crate) struct Life {
    pub(crate) txn: TxnId,
    state: Mutex<State>,
}

struct State {
    /// An operation is going on.
    busy: bool,
    /// When the last one ended.
    last_used: Instant,
    /// The moment it reads at, once chosen: the safepoint stays below.
    read_ts: Option<Timestamp>,
    /// Keys that it has, or has asked for, a lock on.
    locks: BTreeSet<Key>,
    /// Where its record is, once something was staged.
    primary: Option<Key>,
    /// Why the background has ended it.
    ended: Option<Abort>,
}

impl Life {
    pub(crate) fn new(txn: TxnId, now: Instant) -> Arc<Life> {
        let state = State {
            busy: false,
            last_used: now,
            read_ts: None,
            locks: BTreeSet::new(),
            primary: None,
            ended: None,
        };
        Arc::new(Life { txn, state: Mutex::new(state) })
    }

    /// Begins an operation: until the guard is dropped the transaction is not idle.
    ///
    /// # Errors
    /// It was ended for idleness before.
    pub(crate) fn enter(self: &Arc<Life>, clock: &Arc<dyn Clock>) -> Result<Busy, Abort> {
        let mut state = self.state.lock();
        if let Some(why) = &state.ended {
            return Err(why.clone());
        }
        state.busy = true;
        Ok(Busy { life: self.clone(), clock: clock.clone() })
    }

    /// Ends the transaction if it did nothing since `deadline`; returns whether it was ended now.
    pub(crate) fn end_if_idle_since(&self, deadline: Instant, why: impl Fn() -> Abort) -> bool {
        let mut state = self.state.lock();
        let idle = !state.busy && state.last_used <= deadline && state.ended.is_none();
        if idle && state.primary.is_none() {
            state.ended = Some(why());
            state.read_ts = None;
            return true;
        }
        false
    }

    pub(crate) fn set_read_ts(&self, ts: Timestamp) {
        self.state.lock().read_ts = Some(ts);
    }

    pub(crate) fn read_ts(&self) -> Option<Timestamp> {
        self.state.lock().read_ts
    }

    pub(crate) fn add_locks(&self, keys: &[Key]) {
        self.state.lock().locks.extend(keys.iter().cloned());
    }

    pub(crate) fn remove_locks(&self, keys: &[Key]) {
        let mut state = self.state.lock();
        for key in keys {
            state.locks.remove(key);
        }
    }

    /// Takes the locks away, ascending, to be given back.
    pub(crate) fn take_locks(&self) -> Vec<Key> {
        std::mem::take(&mut self.state.lock().locks).into_iter().collect()
    }

    /// Returns whether it holds, or may hold, a lock.
    pub(crate) fn has_locks(&self) -> bool {
        !self.state.lock().locks.is_empty()
    }

    /// A commit begins: until it is cleaned up the safepoint stays below it, so that its record can
    /// be asked for.
    pub(crate) fn commit(&self, commit_ts: Timestamp) {
        let mut state = self.state.lock();
        state.read_ts = Some(state.read_ts.map_or(commit_ts, |ts| ts.min(commit_ts)).prev());
    }

    /// Something is about to be staged, with the record here.
    pub(crate) fn stage(&self, primary: &Key) {
        self.state.lock().primary = Some(primary.clone());
    }

    /// Returns the keys at which shards wait to hear of it: its locks and its record.
    pub(crate) fn anchors(&self) -> Vec<Key> {
        let state = self.state.lock();
        let mut keys: Vec<Key> = state.locks.iter().cloned().collect();
        if let Some(primary) = &state.primary
            && let Err(at) = keys.binary_search(primary)
        {
            keys.insert(at, primary.clone());
        }
        keys
    }
}

/// An operation of a transaction is going on.
pub(crate) struct Busy {
    life: Arc<Life>,
    clock: Arc<dyn Clock>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.life.state.lock();
        state.busy = false;
        state.last_used = self.clock.now();
    }
}
