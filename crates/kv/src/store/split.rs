//! Splits: a shard becomes two, by an entry of its log.
//!
//! Nothing is under way at that moment: what was evaluated is logged first, what comes waits. The halves
//! have the same replicas and share the files; only descriptors change, and what is in memory is divided.

use std::collections::VecDeque;
use std::rc::Rc;

use atoll_env::sync::oneshot;
use atoll_lsm::Error;
use atoll_lsm::driven::Driver;
use atoll_mvcc::Timestamp;
use atoll_mvcc::keys::RoutingKey;
use atoll_mvcc::request::Obstacle;
use atoll_shard::descriptor::ShardId;
use atoll_shard::entry::{Closed, Split};
use atoll_shard::leader::Leader;

use super::StoreHost;
use super::restore::{open_group, put_members};
use crate::core::Inner;
use crate::group::{Answer, Elder, Group, Job, Splitting, State};
use crate::program::Program;

impl<P: Program> StoreHost<P> {
    /// Asks for a split of a shard at a place. What is returned completes when it is done.
    ///
    /// # Errors
    /// Transactions have intents on the shard's own values: they have to end first.
    pub(crate) fn split(
        self: &Rc<Self>,
        group: &Rc<Group<P>>,
        at: RoutingKey,
        id: ShardId,
    ) -> Result<oneshot::Receiver<Result<(), String>>, Vec<Obstacle>> {
        let (done, receiver) = oneshot::channel();
        let mut state = group.state.borrow_mut();
        let obstacles = state.leader.as_ref().map(Leader::local_obstacles).unwrap_or_default();
        if !obstacles.is_empty() {
            return Err(obstacles);
        }
        let halves = state.descriptor.split(at.clone(), id);
        let refusal = match &halves {
            _ if self.stopped.borrow().is_some() => self.stopped.borrow().clone(),
            _ if state.splitting.is_some() => Some(format!("shard {} is being split", group.id)),
            _ if !group.is_alone() && state.leader.is_none() => {
                Some(format!("shard {} is led by another engine: split it there", group.id))
            }
            _ if group.consensus.borrow().members().is_joint() => {
                Some(format!("the replicas of shard {} are changing: try again later", group.id))
            }
            None => Some(format!("{at} does not divide shard {}", state.descriptor)),
            Some(_) => None,
        };
        match (refusal, halves) {
            (None, Some((left, right))) => {
                // What is evaluated already is logged first; the rest waits for a moment.
                state.frozen = true;
                state.splitting =
                    Some(Splitting { split: Split { left, right }, begun: false, done });
                self.list(group, &mut state);
            }
            (refusal, _) => {
                let _ = done.send(Err(refusal.unwrap_or_default()));
            }
        }
        Ok(receiver)
    }

    /// Makes the entry that splits a shard on which nothing is under way; `None` if it cannot be closed yet.
    pub(super) fn close_split(
        &self,
        core: &Rc<Inner<P>>,
        group: &Group<P>,
        state: &mut State<P>,
    ) -> Option<Closed> {
        let (splitting, leader) = (state.splitting.as_mut()?, state.leader.as_mut()?);
        let split = splitting.split.clone();
        let right = split.right.id;
        if !std::mem::replace(&mut splitting.begun, true) {
            leader.begin_split(&split);
        }
        let mut closed = leader.try_close(|above| core.spare_epoch(above))?;
        closed.split = Some(split);
        if !state.founded {
            // The new shard has the replicas that this one has by now.
            put_members(&mut closed.writes, right, group.consensus.borrow().members());
        }
        state.sync_to = state.sync_to.max(closed.seq);
        Some(closed)
    }

    /// Divides what is in memory after the entry was applied.
    pub(super) async fn carry_out_split(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
        group: &Rc<Group<P>>,
        split: Split,
    ) -> Result<(), Error> {
        let Split { left, right } = split;
        if let Some(there) = self.group(right.id)
            && there.state.borrow().descriptor.range.start != right.range.start
        {
            return Err(Error::Stopped(format!(
                "shard {} is split off twice, at {} and at {}: stop the engines and report this",
                right.id,
                there.state.borrow().descriptor.range.start,
                right.range.start
            )));
        }
        if self.group(right.id).is_none() {
            let (child, _) = open_group(driver, &self.tree, right.clone(), &core.shared).await?;
            if group.state.borrow().awaited {
                // Found in the log of an earlier process: one more that has to lead before the core
                // serves.
                child.state.borrow_mut().awaited = true;
                core.starting.set(core.starting.get() + 1);
            }
            self.groups.borrow_mut().insert(right.id, Rc::new(child));
        }
        let mut moved: VecDeque<Job<P>> = VecDeque::new();
        let splitting = {
            let mut state = group.state.borrow_mut();
            state.descriptor = left.clone();
            // Before anybody can send it more: what came first goes first.
            if let Some(child) = self.group(right.id) {
                let lanes = state.stalled_lanes();
                let queue = std::mem::take(&mut state.queue);
                let (mine, mut theirs): (VecDeque<_>, VecDeque<_>) =
                    queue.into_iter().partition(|job| self.is_mine(core, &state, job));
                state.queue = mine;
                // Those of other engines were for this shard and nobody else: they come back at once.
                let (far, near) = theirs.drain(..).partition(|job| job.only_under.is_some());
                (moved, theirs) = (far, near);
                let mut child = child.state.borrow_mut();
                child.queue = theirs;
                if !lanes.is_empty() {
                    child.elder = Some(Elder { group: group.clone(), lanes });
                }
            }
            state.splitting.take()
        };
        core.split_done(self.index, &left, &right);
        for job in moved {
            core.deliver(job.reply_to, Answer::Moved);
        }
        // The halves start anew from the applied state; nothing was under way. (While the log of an
        // earlier process is replayed there is no leader yet.)
        let before = group.state.borrow_mut().leader.take();
        if let Some(before) = before {
            let seq = before.open_entry();
            match core.try_epoch().map(Timestamp::read_at) {
                Some(low_water) => {
                    let mut leader = self.lead(core, left, low_water).await?;
                    leader.resume_at(seq);
                    group.state.borrow_mut().leader = Some(leader);
                }
                None => {
                    group.state.borrow_mut().next_seq = seq;
                    self.ask_low_water(core, group);
                }
            }
            let mut state = group.state.borrow_mut();
            state.frozen = false;
            // Locks ended with the leader that had them: whoever waits for one asks again.
            let waiting = std::mem::take(&mut state.for_locks);
            state.unlocks = 0;
            drop(state);
            for job in waiting {
                self.again(core, group, job);
            }
        }
        if let Some(child) = self.group(right.id) {
            self.list(&child, &mut child.state.borrow_mut());
        }
        if let Some(splitting) = splitting {
            let _ = splitting.done.send(Ok(()));
        }
        self.drain_queue(core, group);
        Ok(())
    }
}
