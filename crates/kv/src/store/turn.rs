//! Turns: what the shards of a store have decided is logged, made durable, applied and answered.
//!
//! ```text
//!   messages of other engines --> stepped
//!   closed entries            --> proposed      one reservation for all
//!   effects of consensus      --> messages go out, one batch of the lane, one sync
//!   committed                 --> applied, answered
//! ```
//!
//! A shard that votes alone commits by its own sync, so its entries are applied in the turn that logged
//! them. With other voters the turn ends after the sync, and a later one, begun by their answers, applies.
//! Only turns change the state of consensus: what arrives, and the ticks of the clock, wait for one.

use std::rc::Rc;

use atoll_env::sometimes;
use atoll_env::sync::select_biased;
use atoll_env::task;
use atoll_lsm::driven::Driver;
use atoll_lsm::log::{EntryId, GroupState};
use atoll_lsm::{Durability, Error};
use atoll_mvcc::Timestamp;
use atoll_mvcc::request::Response;
use atoll_shard::consensus::{self, EntryKind, Refused, ShardConsensus};
use atoll_shard::descriptor::{Descriptor, ROOT, ShardId};
use atoll_shard::edge::EntrySeq;
use atoll_shard::entry::{Closed, Payload};
use atoll_shard::leader::Leader;

use super::replication::Taken;
use super::restore::{load, members_record};
use super::{StoreHost, refuse, refuse_unseen};
use crate::core::Inner;
use crate::group::{Answer, Group, InFlight, Logged, Waiter};
use crate::program::{Failure, Program};

impl<P: Program> StoreHost<P> {
    /// Takes turns until the store is closed.
    pub(crate) async fn run(self: Rc<Self>, core: Rc<Inner<P>>, mut driver: Driver) {
        let chores = driver.chores_due();
        loop {
            select_biased(self.signal.raised(), chores.notified()).await;
            let done = self.turn(&core, &mut driver).await;
            if let Err(failure) = done {
                if self.stopped.borrow().is_none() {
                    core.program.turn_failed();
                }
                self.stop(&core, &failure);
            }
            if self.closing.get() && self.is_settled(&core) {
                break;
            }
        }
        // Closing takes a while, and other cores may still send: they are told, not forgotten.
        self.end(&core, "the engine stops");
        let closed = driver.close().await;
        core.store_closed(self.index, closed);
    }

    /// Returns whether there is nothing that closing would cut off.
    fn is_settled(&self, core: &Inner<P>) -> bool {
        if self.stopped.borrow().is_some() {
            return true;
        }
        let groups = self.groups.borrow();
        groups.values().all(|group| {
            let state = group.state.borrow();
            let decided =
                state.in_flight.is_empty() && state.late.is_empty() && !state.has_entries();
            match group.is_alone() {
                true => decided,
                // With others it need not come to an end.
                false => self.is_given_away(core, group) || self.is_past_grace(core),
            }
        })
    }

    /// Ends the service of the store.
    fn stop(self: &Rc<Self>, core: &Rc<Inner<P>>, failure: &Error) {
        self.end(core, &failure.to_string());
    }

    /// Refuses everything from now on, and whoever waits.
    fn end(self: &Rc<Self>, core: &Rc<Inner<P>>, why: &str) {
        self.stopped.borrow_mut().get_or_insert_with(|| why.to_owned());
        // A core that waits for its shards to serve learns that they never will.
        core.changed.raise();
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, job) in waiting {
            core.deliver(job.reply_to, refuse_unseen(core, &job, why));
        }
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        for group in groups {
            let (waiters, late, splitting, orphans) = {
                let mut state = group.state.borrow_mut();
                let late = std::mem::take(&mut state.late);
                let orphans = std::mem::take(&mut state.orphans);
                (state.take_all(), late, state.splitting.take(), orphans)
            };
            for job in orphans.into_iter().flat_map(|orphan| orphan.waiting) {
                let answer = refuse(core, &job.0, &Failure::Unknown);
                core.deliver(job.0.reply_to, answer);
            }
            if let Some(splitting) = splitting {
                let _ = splitting.done.send(Err(why.to_owned()));
            }
            for (job, _) in late {
                let answer = refuse(core, &job, &Failure::Unknown);
                core.deliver(job.reply_to, answer);
            }
            for waiter in waiters {
                let (job, answer) = match waiter {
                    Waiter::Answered { job, .. } => {
                        let answer = refuse(core, &job, &Failure::Unknown);
                        (job, answer)
                    }
                    Waiter::Again(job) => {
                        let answer = refuse_unseen(core, &job, why);
                        (job, answer)
                    }
                };
                core.deliver(job.reply_to, answer);
            }
        }
    }

    /// One turn.
    async fn turn(self: &Rc<Self>, core: &Rc<Inner<P>>, driver: &mut Driver) -> Result<(), Error> {
        driver.chores().await?;
        if self.ticked.take() {
            self.tick(core);
        }
        loop {
            let taken = self.take_in(core, driver).await?;
            self.wake_lease_waiters(core);
            let mut dirty = std::mem::take(&mut *self.dirty.borrow_mut());
            if dirty.is_empty() {
                if self.inbox.borrow().is_empty() {
                    return Ok(());
                }
                continue;
            }
            dirty.sort_unstable();
            let first = dirty.partition_point(|id| *id < self.next.get());
            dirty.rotate_left(first);
            let groups: Vec<Rc<Group<P>>> =
                dirty.into_iter().filter_map(|id| self.group(id)).collect();
            for group in groups.iter().filter(|_| core.time.is_shared()) {
                self.begin_leadership(core, group).await?;
            }
            let started = core.env.clock.now();
            let proposed = self.propose(core, driver, &groups, taken).await?;
            self.persist_and_apply(core, driver, &groups).await?;
            if proposed > 0 {
                core.program.turn_logged(core.env.clock.now().since(started));
            }
        }
    }

    /// Closes the open entries and proposes them, as many as there is room for in one turn; returns
    /// how many.
    async fn propose(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
        groups: &[Rc<Group<P>>],
        taken: Taken,
    ) -> Result<usize, Error> {
        let mut arena = 0;
        let mut lens = taken.lens;
        let before = taken.arena + self.promised.get();
        // New leaders append entries without a payload.
        lens.extend(groups.iter().filter(|group| !group.is_alone()).map(|_| 64));
        let mut entries: Vec<(Rc<Group<P>>, Closed)> = Vec::new();
        let bound_before = *self.bound.borrow();
        let mut full = None;
        for group in groups {
            let mut state = group.state.borrow_mut();
            state.listed = false;
            if !group.consensus.borrow().is_leader() {
                // What was decided and not proposed ends with the leadership, in a moment.
                continue;
            }
            let splits = state.splitting.as_ref().is_some_and(|splitting| splitting.begun);
            if !splits {
                state.close_open(core);
            }
            if state.closed.is_empty()
                && state.splitting.is_some()
                && (splits || state.leader.as_ref().is_some_and(Leader::is_settled))
            {
                let split = self.close_split(core, group, &mut state);
                state.closed.extend(split);
            }
            while let Some(mut closed) = state.closed.pop_front() {
                // One that is larger than that is tried alone.
                if !entries.is_empty() && arena + closed.writes.arena_bytes() > self.room {
                    sometimes!(true, "a turn is full");
                    state.closed.push_front(closed);
                    full.get_or_insert(group.id);
                    self.list(group, &mut state);
                    break;
                }
                // An entry of intents and records has no stamp of its own, but moments of transactions.
                // All of them were given by the oracle before now.
                let given = Timestamp::read_at(core.time.known()).max(closed.stamp);
                // Whoever shares its oracle has the bound in the root shard.
                let lane = self.bound.borrow().bound_for(given);
                if let Some(bound) = lane.filter(|_| !core.time.is_shared()) {
                    closed.set_bound(bound);
                }
                if let Some(bound) = closed.bound().filter(|_| group.id != ROOT) {
                    self.bound.borrow_mut().set(bound);
                }
                arena += closed.writes.arena_bytes();
                lens.push(closed.writes.bytes().len() + 64);
                entries.push((group.clone(), closed));
            }
        }
        self.next.set(full.unwrap_or(ShardId(0)));
        if entries.is_empty() {
            return Ok(0);
        }
        if let Err(refusal) = driver.reserve(arena + before, &lens).await {
            // None of these entries records the bound that was meant for it.
            *self.bound.borrow_mut() = bound_before;
            if before > 0 && matches!(refusal, Error::InvalidInput(_)) {
                sometimes!(true, "entries wait until others are applied");
                // Not for what they are: there is no room beside what is in the log and not applied.
                for (group, closed) in entries.into_iter().rev() {
                    group.state.borrow_mut().closed.push_front(closed);
                }
                return Ok(0);
            }
            self.refuse_turn(core, entries, refusal).await?;
            return Ok(0);
        }
        let mut count = 0;
        let mut entries = entries.into_iter();
        while let Some((group, closed)) = entries.next() {
            let proposed = group.consensus.borrow_mut().propose(closed.payload().into());
            let mut state = group.state.borrow_mut();
            match proposed {
                Ok(at) => {
                    state.in_flight.push_back(InFlight {
                        index: at.index,
                        term: at.term,
                        seq: closed.seq,
                        stamp: closed.stamp,
                    });
                    count += 1;
                }
                Err(Refused::TooMuch | Refused::Transferring { .. }) => {
                    sometimes!(true, "consensus does not take an entry now");
                    drop(state);
                    // This one and those behind it, which may lean on the bound that it records, are
                    // proposed later: when something is committed, or the leadership is decided.
                    *self.bound.borrow_mut() = bound_before;
                    let rest: Vec<_> = std::iter::once((group, closed)).chain(entries).collect();
                    for (group, closed) in rest.into_iter().rev() {
                        group.state.borrow_mut().closed.push_front(closed);
                    }
                    break;
                }
                Err(why) => {
                    // It leads, and nobody else steps it: this is a bug; nothing was appended.
                    return Err(Error::Stopped(format!("shard {}: {why}", group.id)));
                }
            }
        }
        Ok(count)
    }

    /// Refuses what a turn would have logged: nothing of it has happened.
    async fn refuse_turn(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        entries: Vec<(Rc<Group<P>>, Closed)>,
        refusal: Error,
    ) -> Result<(), Error> {
        if matches!(refusal, Error::Stopped(_)) {
            return Err(refusal);
        }
        sometimes!(true, "a turn is refused for lack of room");
        let oversized = match (&refusal, &entries[..]) {
            (Error::InvalidInput(_), [(_, closed)]) => Some(closed.seq),
            _ => None,
        };
        if oversized.is_none() {
            core.program.turn_failed();
        }
        let mut groups: Vec<Rc<Group<P>>> = entries.into_iter().map(|(group, _)| group).collect();
        groups.dedup_by_key(|group| group.id);
        for group in groups {
            if group.id == ROOT {
                // Nobody waits for a bound; another one is asked for.
                group.state.borrow_mut().closed.clear();
                continue;
            }
            if !group.state.borrow().in_flight.is_empty() {
                // What is in flight is not known yet: the leader is made anew when it is.
                self.suspend(core, &group, Some(&refusal.to_string()));
                continue;
            }
            let (mut again, mut refused) = (Vec::new(), Vec::new());
            {
                let unavailable = Failure::Unavailable(refusal.to_string());
                let mut state = group.state.borrow_mut();
                state.frozen = true;
                if let Some(seq) = oversized {
                    sometimes!(true, "an entry is too large");
                    let taken = state.take_oversized(seq);
                    again = taken.again;
                    let too_large = Failure::TooLarge(refusal.to_string());
                    refused.extend(taken.refused.into_iter().map(|job| (job, too_large.clone())));
                    refused.extend(taken.stuck.into_iter().map(|job| (job, unavailable.clone())));
                } else {
                    refused.extend(state.take_all().into_iter().map(|waiter| match waiter {
                        Waiter::Answered { job, .. } | Waiter::Again(job) => {
                            (*job, unavailable.clone())
                        }
                    }));
                }
            }
            let (descriptor, seq) = {
                let state = group.state.borrow();
                let seq = state.leader.as_ref().map_or(1, Leader::open_entry);
                (state.descriptor.clone(), seq)
            };
            let low_water = core.try_epoch().map(Timestamp::read_at);
            let Some(low_water) = low_water else {
                group.state.borrow_mut().next_seq = seq;
                self.withdraw(core, &group, again, refused, &refusal);
                continue;
            };
            let mut leader = match self.lead(core, descriptor, low_water).await {
                Ok(leader) => leader,
                Err(failure) => {
                    // The store stops. These are in none of its lists.
                    let why = Failure::Unavailable(failure.to_string());
                    for job in again.into_iter().chain(refused.into_iter().map(|(job, _)| job)) {
                        core.deliver(job.reply_to, refuse(core, &job, &why));
                    }
                    return Err(failure);
                }
            };
            leader.resume_at(seq);
            let splitting = {
                let mut state = group.state.borrow_mut();
                state.leader = Some(leader);
                state.unlocks = 0;
                state.frozen = false;
                state.sync_to = state.synced;
                // In front of those that came meanwhile.
                again.extend(state.queue.drain(..));
                state.queue = again.into();
                // A split that was to follow is refused as well. Left for later it would be carried
                // out while commands are evaluated behind its entry: the halves start anew from the
                // applied state, without what those decided, and the entry that comes next under
                // their number would tell them that it was done.
                state.splitting.take()
            };
            if let Some(splitting) = splitting {
                let _ = splitting.done.send(Err(refusal.to_string()));
            }
            for (job, failure) in refused {
                core.deliver(job.reply_to, refuse(core, &job, &failure));
            }
            self.drain_queue(core, &group);
        }
        Ok(())
    }

    /// Logs what the groups have, makes it durable, and applies what is committed by it.
    async fn persist_and_apply(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
        groups: &[Rc<Group<P>>],
    ) -> Result<(), Error> {
        let mut more: Vec<Rc<Group<P>>> = groups.to_vec();
        while !more.is_empty() {
            let mut batches: Vec<(Rc<Group<P>>, u64)> = Vec::new();
            let mut committed: Vec<(Rc<Group<P>>, Vec<consensus::Entry>)> = Vec::new();
            let mut sync = false;
            for group in &more {
                loop {
                    let Some(effects) = group.consensus.borrow_mut().ready() else { break };
                    if let Some(leadership) = effects.leadership {
                        self.leadership(core, group, leadership);
                    }
                    if effects.install.is_some() {
                        return Err(Error::Stopped(format!(
                            "shard {}: a snapshot came that nobody let in; this is a bug",
                            group.id
                        )));
                    }
                    // The state first: then whatever part of the batch a crash leaves is one that
                    // can be started from.
                    if let Some(consensus::GroupState { term, vote, commit }) = effects.state {
                        driver.set_state(group.id.0, GroupState { term, vote, commit })?;
                        // A term or a vote is a promise. Forgotten in a power cut, the next life would
                        // lead the same term with other entries. Even one that elected itself and
                        // serves without syncs syncs this.
                        sync = true;
                    }
                    for entry in &effects.entries {
                        self.log(driver, group, entry)?;
                    }
                    if effects.must_sync {
                        batches.push((group.clone(), effects.number));
                        // Between replicas a log is durable or does not count, whatever clients ask for.
                        sync |= !group.is_alone();
                    }
                    if !effects.committed.is_empty() {
                        committed.push((group.clone(), effects.committed));
                    }
                    self.post(core, group, effects.messages);
                }
                sync |= group.state.borrow().wants_sync();
            }
            // A leader's entries travel while its own disk works.
            self.send_off(core);
            if !batches.is_empty() && !sync {
                task::inline(driver.write()).await?;
            }
            // A sync writes what is staged in the same step.
            if sync {
                self.sync(core, driver, &more).await?;
            }
            for (group, entries) in committed {
                self.apply(core, driver, &group, entries).await?;
            }
            let served = std::mem::take(&mut more);
            for (group, number) in batches {
                group.consensus.borrow_mut().persisted(number);
                more.push(group);
            }
            for group in served {
                if group.is_alone() {
                    continue;
                }
                self.hold(driver, &group)?;
                if self.fetch(driver, &group).await? {
                    more.push(group);
                }
            }
        }
        Ok(())
    }

    /// Stages an entry of a shard's log.
    fn log(
        &self,
        driver: &mut Driver,
        group: &Group<P>,
        entry: &consensus::Entry,
    ) -> Result<(), Error> {
        let (index, term) = (entry.index(), entry.term());
        let id = EntryId { group: group.id.0, index, term };
        let position = driver.append(id, &entry.log_parts())?;
        let arena = if group.is_alone() { 0 } else { arena_of(entry) };
        let mut state = group.state.borrow_mut();
        // What was at and behind it is overwritten.
        let gone: usize = state.positions.split_off(&index).values().map(|l| l.arena).sum();
        state.positions.insert(index, Logged { position, arena });
        self.promised.set(self.promised.get() + arena - gone.min(self.promised.get() + arena));
        Ok(())
    }

    /// Makes durable what is written. What is evaluated meanwhile belongs to the next turn, and so
    /// does its wish for a sync: both are told apart by the number of the entry.
    async fn sync(
        &self,
        core: &Inner<P>,
        driver: &mut Driver,
        groups: &[Rc<Group<P>>],
    ) -> Result<(), Error> {
        let mut late = Vec::new();
        let mut covered = Vec::with_capacity(groups.len());
        for group in groups {
            let mut state = group.state.borrow_mut();
            late.append(&mut state.late);
            covered.push(state.in_flight.back().map_or(state.synced, |entry| entry.seq));
        }
        let synced = driver.sync().await;
        for (group, seq) in groups.iter().zip(covered) {
            let mut state = group.state.borrow_mut();
            if synced.is_ok() {
                state.synced = state.synced.max(seq);
            }
        }
        for (job, answer) in late {
            let answer = match &synced {
                Ok(_) => answer,
                Err(_) => refuse(core, &job, &Failure::Unknown),
            };
            core.deliver(job.reply_to, answer);
        }
        synced.map(|_| ())
    }

    /// Applies committed entries and answers whoever waited for them.
    async fn apply(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
        group: &Rc<Group<P>>,
        entries: Vec<consensus::Entry>,
    ) -> Result<(), Error> {
        for entry in entries {
            let (index, term) = (entry.index(), entry.term());
            let logged = group.state.borrow_mut().positions.remove(&index);
            let Logged { position, arena } = logged.ok_or_else(|| {
                Error::Stopped(format!("shard {}: entry {index} is not in the log", group.id))
            })?;
            self.promised.set(self.promised.get().saturating_sub(arena));
            let malformed = |e: atoll_encoding::Malformed| {
                Error::Stopped(format!("shard {}: entry {index} does not decode: {e}", group.id))
            };
            atoll_env::always_same!(
                "applied entry",
                [group.id.0, index, term],
                atoll_encoding::hash::hash64(entry.payload())
            );
            let mut split = None;
            match entry.kind() {
                EntryKind::Normal => {
                    let payload = Payload::decode(entry.payload()).map_err(malformed)?;
                    driver.apply(group.id.0, index, position, payload.writes).await?;
                    split = payload.split;
                    if let Some(bound) = payload.bound.filter(|_| group.id == ROOT) {
                        self.oracle.set(bound.max(self.oracle.get()));
                    }
                }
                EntryKind::Empty => {
                    driver.apply(group.id.0, index, position, &[]).await?;
                }
                EntryKind::Change => {
                    let members = group
                        .consensus
                        .borrow_mut()
                        .apply_change(&entry)
                        .map_err(|e| Error::Stopped(format!("shard {}: {e}", group.id)))?;
                    let writes = members_record(group.id, &members);
                    driver.apply(group.id.0, index, position, writes.bytes()).await?;
                    self.members_changed(group, &members);
                }
            }
            group.consensus.borrow_mut().applied(index);
            let was_ours = {
                let mut state = group.state.borrow_mut();
                state.applied_index = index;
                state.applied_entries += 1;
                let is_ours = |e: &&InFlight| e.index == index && e.term == term;
                let ours = state.in_flight.front().filter(is_ours).is_some();
                if ours { state.in_flight.pop_front() } else { None }
            };
            if let Some(split) = split {
                self.carry_out_split(core, driver, group, split).await?;
            }
            if let Some(ours) = was_ours {
                self.answer(core, group, ours.seq, ours.stamp);
            }
            self.answer_orphans(core, group, index, term);
            let is_leader = group.consensus.borrow().is_leader();
            let of_this_term = term == group.consensus.borrow().term();
            let may_lead = {
                let state = group.state.borrow();
                state.leader.is_none() && index >= state.resume_after
            };
            if is_leader && of_this_term && may_lead {
                // An entry of the own term is applied, and so is everything that was proposed: before
                // it there is nothing undecided.
                if group.id == ROOT {
                    self.hold_oracle(core, group);
                } else if let Some(epoch) = core.try_epoch() {
                    self.serve(core, group, Timestamp::read_at(epoch)).await?;
                } else {
                    self.ask_low_water(core, group);
                }
            }
        }
        Ok(())
    }

    /// Makes the leader of a shard, to which nothing undecided is left, and serves.
    pub(super) async fn serve(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        low_water: Timestamp,
    ) -> Result<(), Error> {
        let descriptor = group.state.borrow().descriptor.clone();
        let mut leader = self.lead(core, descriptor, low_water).await?;
        let awaited = {
            let mut state = group.state.borrow_mut();
            leader.resume_at(state.next_seq);
            state.leader = Some(leader);
            std::mem::take(&mut state.awaited)
        };
        self.drain_queue(core, group);
        if awaited {
            core.shard_ready();
        }
        Ok(())
    }

    /// Makes the leader of a shard from its applied state.
    pub(super) async fn lead(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        descriptor: Descriptor,
        low_water: Timestamp,
    ) -> Result<Leader, Error> {
        let loaded = load(&self.tree, &descriptor).await?;
        Ok(Leader::new(descriptor, loaded, low_water, core.monotonic_ms()))
    }

    /// Answers everybody who waited for entries up to `seq`.
    fn answer(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        seq: EntrySeq,
        stamp: Timestamp,
    ) {
        let waiters = {
            let mut state = group.state.borrow_mut();
            let Some(leader) = &mut state.leader else { return };
            leader.applied(seq, stamp);
            state.waiters.remove(&seq).unwrap_or_default()
        };
        for waiter in waiters {
            match waiter {
                Waiter::Answered { job, mut answer } => {
                    if let Answer::Response(Response::Committed(ts)) = &mut answer {
                        *ts = stamp;
                    }
                    if let Some(lane) = job.lane {
                        let mut state = group.state.borrow_mut();
                        if state.unanswered.get(&lane) == Some(&seq) {
                            state.unanswered.remove(&lane);
                        }
                    }
                    let mut state = group.state.borrow_mut();
                    if job.durability == Durability::Synced && state.synced < seq {
                        sometimes!(true, "an answer comes too late for its turn's sync");
                        state.late.push((*job, answer));
                        self.list(group, &mut state);
                        continue;
                    }
                    drop(state);
                    core.deliver(job.reply_to, answer);
                }
                Waiter::Again(job) => self.again(core, group, *job),
            }
        }
        self.wake_lock_waiters(core, group);
        let mut state = group.state.borrow_mut();
        if state.splitting.is_some() {
            // It waits for a moment without entries in flight: this may be it.
            self.list(group, &mut state);
        }
    }
}

/// Returns the memtable room that an entry takes, at the most; what does not decode takes none, and is told
/// of when it is applied.
pub(super) fn arena_of(entry: &consensus::Entry) -> usize {
    if entry.kind() != EntryKind::Normal {
        return 0;
    }
    let payload = Payload::decode(entry.payload()).ok();
    payload.and_then(|p| atoll_lsm::driven::arena_bytes(p.writes).ok()).unwrap_or(0)
}
