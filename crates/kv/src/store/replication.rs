//! Shards with replicas on other engines: messages, ticks, leases, and the end of a leadership.
//!
//! ```text
//!   a packet of another engine --> inbox --> stepped by the next turn --> effects
//!   a tick of the clock        --> flag  --> ticked by the next turn  --> effects
//!                                                       messages --> outbox --> one packet per engine
//! ```
//!
//! # The end of a leadership
//! What was decided and not proposed has not happened: whoever waits for it is refused and may ask again.
//! What was proposed may still be committed by the next leader, so whoever waits for that waits on, as an
//! *orphan*, until the place of the entry in the log is applied: with this entry, and he has his answer, or
//! with another one, and it did not happen. If neither comes to pass for a while he is told that the
//! outcome is not known.
//!
//! The same path is taken when a leader cannot go on for lack of room while entries are in flight: it is
//! made anew from the applied state once they are applied.
//!
//! # Reads
//! A leader answers from its own state only under its lease ([`atoll_shard::lease`]), which is looked at
//! before the evaluation, so that nobody is evaluated in vain, and again after it, because only that
//! proves anything. Who finds none waits for it: it comes back with the next heartbeat, or a leader
//! elsewhere.

use std::rc::Rc;
use std::time::Duration;

use atoll_env::sometimes;
use atoll_lsm::Error;
use atoll_lsm::driven::Driver;
use atoll_mvcc::Timestamp;
use atoll_mvcc::request::Response;
use atoll_shard::consensus::{
    self, Leadership, Members, Message, MessageKind, Role, ShardConsensus,
};
use atoll_shard::descriptor::ROOT;
use atoll_shard::entry::Closed;
use atoll_shard::envelope::Envelope;
use atoll_shard::mutants;
use atoll_shard::replica::{self, engine_of};

use super::turn::arena_of;
use super::{StoreHost, refuse};
use crate::core::Inner;
use crate::group::{Answer, Group, Job, Orphan, State, Waiter};
use crate::program::{Failure, Program};

/// What may wait for the next turn; what comes on top of it is dropped, as the network might have done.
const INBOX_BYTES: usize = 64 << 20;
/// A packet with more bytes than this is sent at once.
const PACKET_BYTES: usize = 256 << 10;
/// Bytes of a log that are read for a follower at once.
const FETCH_BYTES: u64 = 1 << 20;
/// Requests wait for a leader to be found for so long; then, and as long as there is none, they are refused.
const LEADERLESS_MS: u64 = 2_000;
/// Whoever waits for an entry of an earlier leadership is told after so long that the outcome is not known.
const ORPHAN_MS: u64 = 5_000;
/// How long an engine that stops tries to give its leaderships away.
const GRACE: Duration = Duration::from_secs(1);

/// What was taken in and is not staged.
#[derive(Default)]
pub(super) struct Taken {
    /// Memtable room of its entries.
    pub(super) arena: usize,
    /// Lengths of their payloads.
    pub(super) lens: Vec<usize>,
}

impl<P: Program> StoreHost<P> {
    // ---- what arrives ----

    /// Takes in what a replica elsewhere says. It is stepped by the next turn.
    pub(crate) fn arrived(&self, envelope: Envelope) {
        let bytes = self.inbox_bytes.get() + envelope.message.weight();
        if bytes > INBOX_BYTES {
            sometimes!(true, "messages of other engines are dropped: too many wait");
            return;
        }
        self.inbox_bytes.set(bytes);
        self.inbox.borrow_mut().push_back(envelope);
        self.signal.raise();
    }

    /// Steps what has arrived, as far as there is room for what it brings in this turn. Returns what that
    /// takes of the log and of memory: it is staged later, so whoever reserves before that counts it in.
    pub(super) async fn take_in(
        &self,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
    ) -> Result<Taken, Error> {
        let (mut arrived, mut arena, mut lens) = (Vec::new(), 0, Vec::new());
        loop {
            // Not as the condition of a loop: the inbox would stay borrowed in it.
            let next = self.inbox.borrow_mut().pop_front();
            let Some(envelope) = next else { break };
            let brings: usize = envelope.message.entries().map(|e| arena_of(&e)).sum();
            if !arrived.is_empty() && arena + brings > self.room {
                self.inbox.borrow_mut().push_front(envelope);
                break;
            }
            let bytes = self.inbox_bytes.get();
            self.inbox_bytes.set(bytes.saturating_sub(envelope.message.weight()));
            arena += brings;
            lens.extend(envelope.message.entries().map(|e| e.payload().len() + 64));
            arrived.push(envelope);
        }
        if arrived.is_empty() {
            return Ok(Taken::default());
        }
        let full = match lens.is_empty() {
            true => false,
            false => match driver.reserve(arena + self.promised.get(), &lens).await {
                Ok(()) => false,
                Err(failure @ Error::Stopped(_)) => return Err(failure),
                // Nothing is taken in that brings entries; their leader sends them again.
                Err(_) => true,
            },
        };
        sometimes!(full, "a follower has no room for entries");
        for envelope in arrived {
            if full && envelope.message.entries().len() > 0 {
                continue;
            }
            self.step(core, envelope);
        }
        Ok(if full { Taken::default() } else { Taken { arena, lens } })
    }

    fn step(&self, core: &Rc<Inner<P>>, envelope: Envelope) {
        let Envelope { shard, sent, keep, message } = envelope;
        // It may be split off here in a moment. Whatever is dropped is said again.
        let Some(group) = self.group(shard) else { return };
        let (from, term, kind) = (message.from(), message.term(), message.kind());
        if kind == MessageKind::Snapshot {
            sometimes!(true, "a snapshot is offered");
            return;
        }
        let mut state = group.state.borrow_mut();
        let mut consensus = group.consensus.borrow_mut();
        let stepped = consensus.step(message);
        if stepped.is_ok() && consensus.term() == term {
            match kind {
                MessageKind::Append | MessageKind::Heartbeat
                    if consensus.leader() == Some(from) =>
                {
                    state.heard.note(term, from, sent);
                    state.keep = keep;
                }
                MessageKind::AppendReply | MessageKind::HeartbeatReply
                    if consensus.is_leader() && state.led_term == term && !state.giving =>
                {
                    state.lease.confirm(from, sent, consensus.members(), group.replica);
                }
                _ => {}
            }
        }
        drop(consensus);
        self.list(&group, &mut state);
        if shard == ROOT {
            drop(state);
            self.tend_oracle(core, &group);
            return;
        }
        let holds = !state.for_lease.is_empty() && state.lease.holds(core.now_us());
        let waiting = if holds { std::mem::take(&mut state.for_lease) } else { Vec::new() };
        drop(state);
        self.waiting.borrow_mut().extend(waiting.into_iter().map(|job| (group.clone(), job)));
    }

    // ---- what is sent ----

    /// Puts messages of a shard's replica into the packets for their engines.
    pub(super) fn post(&self, core: &Inner<P>, group: &Group<P>, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let now = core.now_us();
        let mut state = group.state.borrow_mut();
        let needed = group.consensus.borrow().lowest_match() + 1;
        for message in messages {
            let (sent, keep) = match message.kind() {
                MessageKind::Append | MessageKind::Heartbeat => (state.lease.sends(now), needed),
                MessageKind::AppendReply | MessageKind::HeartbeatReply => {
                    (state.heard.confirms(message.term(), message.to()), 0)
                }
                _ => (0, 0),
            };
            let to = engine_of(message.to());
            let mut outbox = self.outbox.borrow_mut();
            let packet = outbox.entry(to).or_default();
            packet.push(&Envelope { shard: group.id, sent, keep, message });
            if packet.len() > PACKET_BYTES {
                core.carry(to, packet.take());
            }
        }
    }

    /// Sends the packets.
    pub(super) fn send_off(&self, core: &Inner<P>) {
        for (to, packet) in self.outbox.borrow_mut().iter_mut() {
            if !packet.is_empty() {
                core.carry(*to, packet.take());
            }
        }
    }

    /// Keeps in the log what a replica of the shard may still ask for.
    pub(super) fn hold(&self, driver: &mut Driver, group: &Group<P>) -> Result<(), Error> {
        let consensus = group.consensus.borrow();
        let keep = match consensus.is_leader() {
            true => consensus.lowest_match() + 1,
            false => group.state.borrow().keep,
        };
        // Nobody has said anything yet: everything is kept that is there.
        if keep > 0 { driver.hold(group.id.0, keep) } else { Ok(()) }
    }

    /// Reads the entries that followers lack and memory does not have; returns whether there were any.
    pub(super) async fn fetch(&self, driver: &mut Driver, group: &Group<P>) -> Result<bool, Error> {
        let id = group.id.0;
        let first = driver.group(id).map_or(1, |summary| summary.first);
        let mut any = false;
        loop {
            let range = {
                let mut consensus = group.consensus.borrow_mut();
                // What the log has let go of can only be had as a snapshot.
                consensus.released(first.min(group.state.borrow().applied_index + 1));
                consensus.wanted()
            };
            let Some(range) = range else { return Ok(any) };
            sometimes!(true, "a follower is served from the log");
            let mut entries = Vec::new();
            if range.start >= first {
                for entry in driver.entries_up_to(id, range.clone(), FETCH_BYTES).await? {
                    let (index, term) = (entry.id.index, entry.id.term);
                    let decoded = consensus::Entry::decode(index, term, entry.payload);
                    entries.push(decoded.map_err(|e| {
                        Error::Stopped(format!("shard {id}: entry {index} does not decode: {e}"))
                    })?);
                }
            }
            any |= !entries.is_empty();
            group.consensus.borrow_mut().fetched(range, entries);
        }
    }

    // ---- time ----

    /// Lets a tick pass for every shard that has replicas elsewhere. Turns that take longer than a tick
    /// lose some: a clock that is slow here makes this replica patient, one that catches up would make it
    /// break the promises that leases rest on.
    pub(super) fn tick(self: &Rc<Self>, core: &Rc<Inner<P>>) {
        let now_ms = core.monotonic_ms();
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        for group in groups.iter().filter(|group| group.id == ROOT && group.is_alone()) {
            self.tend_oracle(core, group);
            self.extend_oracle(core, group);
        }
        for group in groups.iter().filter(|group| !group.is_alone()) {
            let (role, leader) = {
                let mut consensus = group.consensus.borrow_mut();
                consensus.tick();
                (consensus.is_leader(), consensus.leader())
            };
            let mut refused = Vec::new();
            {
                let mut state = group.state.borrow_mut();
                self.list(group, &mut state);
                if role && state.giving && group.consensus.borrow().transferring_to().is_none() {
                    // Nobody took it: the lease is earned again.
                    state.giving = false;
                    state.lease.begin(core.now_us());
                }
                // One that leads and finds no oracle to begin with serves nobody either.
                let serves = leader.is_some() && (!role || state.leader.is_some());
                if serves || group.id == ROOT {
                    state.leaderless_since = None;
                } else {
                    let since = *state.leaderless_since.get_or_insert(now_ms);
                    if now_ms.saturating_sub(since) > LEADERLESS_MS {
                        refused.extend(state.queue.drain(..));
                    }
                }
                while let Some(orphan) = state.orphans.front()
                    && now_ms.saturating_sub(orphan.since_ms) > ORPHAN_MS
                {
                    sometimes!(true, "an entry of an earlier leadership stays unknown");
                    let orphan = state.orphans.pop_front();
                    let waiting = orphan.into_iter().flat_map(|orphan| orphan.waiting);
                    for (job, _) in waiting {
                        core.deliver(job.reply_to, refuse(core, &job, &Failure::Unknown));
                    }
                }
            }
            for job in refused {
                let why = Failure::Unavailable(self.why_leaderless(group));
                core.deliver(job.reply_to, refuse(core, &job, &why));
            }
            if group.id == ROOT {
                self.tend_oracle(core, group);
                self.extend_oracle(core, group);
            }
        }
        if self.closing.get() {
            self.give_away(core, &groups);
        }
    }

    pub(super) fn why_leaderless(&self, group: &Group<P>) -> String {
        let consensus = group.consensus.borrow();
        if consensus.is_leader() {
            return format!(
                "shard {} is led here, and cannot begin: no engine gives timestamps, because the root \
                 shard has no leader that a majority of its replicas can be reached from",
                group.id
            );
        }
        let voters = &consensus.members().voters;
        let heard = voters.iter().filter(|&&v| v == group.replica || consensus.hears(v)).count();
        format!(
            "shard {} has no leader: of its {} replicas that vote {heard} can be reached from here, \
             and it needs {}",
            group.id,
            voters.len(),
            voters.len() / 2 + 1
        )
    }

    // ---- leadership ----

    /// Hears that another replica leads, or this one.
    pub(super) fn leadership(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        now: Leadership,
    ) {
        let led = group.state.borrow().led_term;
        let leads = now.role == Role::Leader;
        if led != 0 && (!leads || now.term != led) {
            sometimes!(true, "a leadership ends");
            self.suspend(core, group, None);
        }
        {
            let mut state = group.state.borrow_mut();
            state.giving = false;
            state.led_term = if leads { now.term } else { 0 };
            if leads {
                state.resume_after = 0;
                state.lease.begin(core.now_us());
                state.lease.measure(group.consensus.borrow().members(), group.replica);
            } else {
                state.lease.end();
            }
        }
        if group.id == ROOT {
            self.tend_oracle(core, group);
        } else if leads {
            // What is out goes on here, or is given up.
            self.tend_all_away(core, group);
        } else if now.leader.is_some() {
            self.drain_away(core, group);
        }
    }

    /// Returns why a shard cannot be served by anybody, once it has had no leader for some time.
    pub(super) fn leaderless(&self, core: &Inner<P>, group: &Group<P>) -> Option<String> {
        let since = group.state.borrow().leaderless_since?;
        let long = core.monotonic_ms().saturating_sub(since) > LEADERLESS_MS;
        long.then(|| self.why_leaderless(group))
    }

    /// Draws the timestamp that a new leader needs from an oracle elsewhere: after the last entry of an
    /// earlier one is applied, and after its lease.
    pub(super) fn ask_low_water(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>) {
        let term = group.consensus.borrow().term();
        let (host, core, group) = (self.clone(), core.clone(), group.clone());
        let inner = core.clone();
        core.spawn("low water", async move {
            loop {
                let drawn = inner.epoch().await;
                let is_over = inner.stopping.get()
                    || !group.consensus.borrow().is_leader()
                    || group.consensus.borrow().term() != term;
                if is_over {
                    return;
                }
                if let Ok(epoch) = drawn {
                    let mut state = group.state.borrow_mut();
                    state.low_water = Some((term, Timestamp::read_at(epoch)));
                    host.list(&group, &mut state);
                    return;
                }
                sometimes!(true, "a new leader finds no oracle");
            }
        });
    }

    /// Begins to serve a shard if the timestamp is there that was needed for it.
    pub(super) async fn begin_leadership(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
    ) -> Result<(), Error> {
        let Some((term, low_water)) = group.state.borrow_mut().low_water.take() else {
            return Ok(());
        };
        let leads = {
            let (consensus, state) = (group.consensus.borrow(), group.state.borrow());
            consensus.is_leader()
                && consensus.term() == term
                && state.leader.is_none()
                && state.applied_index >= state.resume_after
        };
        if leads {
            sometimes!(true, "a leader begins with a timestamp from elsewhere");
            self.serve(core, group, low_water).await?;
        }
        Ok(())
    }

    /// Refuses what a turn had no room for, when the leader cannot be made anew at once.
    pub(super) fn withdraw(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        again: Vec<Job<P>>,
        refused: Vec<(Job<P>, Failure)>,
        refusal: &Error,
    ) {
        let why = Failure::Unavailable(refusal.to_string());
        let again = again.into_iter().map(|job| (job, why.clone()));
        for (job, failure) in refused.into_iter().chain(again) {
            core.deliver(job.reply_to, refuse(core, &job, &failure));
        }
        self.suspend(core, group, Some(&refusal.to_string()));
        self.ask_low_water(core, group);
    }

    // ---- the oracle ----

    /// Takes the oracle over: everything that an earlier leader of the root shard has logged is applied.
    pub(super) fn hold_oracle(&self, core: &Inner<P>, group: &Group<P>) {
        let bound = self.oracle.get();
        let mut state = group.state.borrow_mut();
        if state.holds_since != state.led_term {
            sometimes!(true, "an engine takes the oracle over");
            // It gives out nothing that somebody may have given out before.
            if !mutants::is("oracle-starts-anywhere") {
                core.time.learn(bound);
            }
            state.holds_since = state.led_term;
        }
        let until = if state.giving { 0 } else { state.lease.until() };
        core.time.reign(bound, until);
    }

    /// Keeps what the engine may give out in step with the root shard.
    fn tend_oracle(&self, core: &Inner<P>, group: &Group<P>) {
        let engine = group.consensus.borrow().leader().map(engine_of);
        core.time.set_holder(engine);
        let holds = {
            let state = group.state.borrow();
            state.led_term != 0 && state.holds_since == state.led_term
        };
        if holds { self.hold_oracle(core, group) } else { core.time.abdicate() }
    }

    /// Asks for a further bound if the oracle needs one.
    fn extend_oracle(&self, core: &Inner<P>, group: &Group<P>) {
        let mut state = group.state.borrow_mut();
        let idle = state.closed.is_empty() && state.in_flight.is_empty() && !state.giving;
        if idle
            && state.led_term != 0
            && state.holds_since == state.led_term
            && let Some(bound) = core.time.next_bound(core.wall_epoch(), self.oracle.get())
        {
            state.closed.push_back(Closed::of_oracle(ROOT, bound));
            self.list(group, &mut state);
        }
    }

    /// Gives the leader of a shard up: what it has decided and not proposed has not happened. Whoever waits
    /// for that is refused, or tried again wherever the shard is led next if there is no reason.
    pub(super) fn suspend(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        why: Option<&str>,
    ) {
        let now_ms = core.monotonic_ms();
        let (waiters, splitting) = {
            let mut state = group.state.borrow_mut();
            let state = &mut *state;
            if let Some(leader) = state.leader.take() {
                state.next_seq = leader.open_entry();
            }
            state.frozen = false;
            state.unlocks = 0;
            state.low_water = None;
            state.resume_after = state.in_flight.back().map_or(0, |entry| entry.index);
            for entry in std::mem::take(&mut state.in_flight) {
                let waiters = state.waiters.remove(&entry.seq).unwrap_or_default();
                let mut waiting = Vec::new();
                for waiter in waiters {
                    match waiter {
                        Waiter::Answered { job, answer } => waiting.push((*job, answer)),
                        again => state.waiters.entry(0).or_default().push(again),
                    }
                }
                state.orphans.push_back(Orphan { entry, waiting, since_ms: now_ms });
            }
            let waiters = state.take_all();
            state.sync_to = state.synced;
            (waiters, state.splitting.take())
        };
        if let Some(splitting) = splitting {
            let why = why.map_or_else(|| lost_leader(group), str::to_owned);
            let _ = splitting.done.send(Err(why));
        }
        // In an order that keeps that of their lanes: who has an answer was evaluated before those behind.
        let (mut jobs, mut behind) = (Vec::new(), Vec::new());
        for waiter in waiters {
            match waiter {
                Waiter::Answered { job, .. } => jobs.push(*job),
                Waiter::Again(job) => behind.push(*job),
            }
        }
        jobs.sort_by_key(|job| job.attempt);
        for job in jobs.into_iter().chain(behind) {
            match why {
                _ if job.only_under.is_some() => core.deliver(job.reply_to, Answer::Moved),
                Some(why) => {
                    let failure = Failure::Unavailable(why.to_owned());
                    core.deliver(job.reply_to, refuse(core, &job, &failure));
                }
                None => group.state.borrow_mut().queue.push_back(job),
            }
        }
    }

    /// Answers whoever waited for an entry of an earlier leadership, now that its place is decided.
    pub(super) fn answer_orphans(&self, core: &Inner<P>, group: &Group<P>, index: u64, term: u64) {
        loop {
            let orphan = {
                let mut state = group.state.borrow_mut();
                match state.orphans.front() {
                    // Of an older term, too: nothing of that can be applied any more.
                    Some(orphan) if orphan.entry.index <= index || orphan.entry.term < term => {
                        state.orphans.pop_front()
                    }
                    _ => None,
                }
            };
            let Some(orphan) = orphan else { return };
            let happened = orphan.entry.index == index && orphan.entry.term == term;
            for (job, mut answer) in orphan.waiting {
                if happened {
                    sometimes!(true, "an entry outlives its leadership");
                    if let Answer::Response(Response::Committed(ts)) = &mut answer {
                        *ts = orphan.entry.stamp;
                    }
                } else {
                    sometimes!(true, "an entry is overwritten by another leader's");
                    answer = match job.only_under {
                        Some(_) => Answer::Moved,
                        None => refuse(core, &job, &Failure::Unavailable(lost_leader(group))),
                    };
                }
                core.deliver(job.reply_to, answer);
            }
        }
    }

    /// Takes note of a change of a shard's replicas.
    pub(super) fn members_changed(&self, group: &Group<P>, members: &Members) {
        let mut state = group.state.borrow_mut();
        state.founded = false;
        state.lease.measure(members, group.replica);
        let rank = replica::rank(&members.voters, group.replica, group.id.0);
        group.consensus.borrow_mut().set_rank(rank);
    }

    // ---- leases ----

    /// Returns whether the leader may answer a read.
    pub(super) fn may_answer(&self, core: &Inner<P>, group: &Group<P>, state: &State<P>) -> bool {
        group.is_alone() || state.lease.holds(core.now_us())
    }

    /// Has a job wait for the lease, and those of its lane behind it.
    pub(super) fn await_lease(&self, state: &mut State<P>, job: Job<P>) {
        sometimes!(true, "a read waits for the lease");
        if let Some(lane) = job.lane {
            state.stalled.entry(lane).or_default();
        }
        state.for_lease.push(job);
    }

    /// Tries jobs again that waited for a lease that is there.
    pub(super) fn wake_lease_waiters(self: &Rc<Self>, core: &Rc<Inner<P>>) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (group, job) in waiting {
            self.again(core, &group, job);
        }
    }

    // ---- the end ----

    /// Gives the leaderships of shards to others before the store closes.
    fn give_away(&self, core: &Inner<P>, groups: &[Rc<Group<P>>]) {
        if self.grace_until.get().is_none() {
            self.grace_until.set(Some(core.env.clock.now().after(GRACE)));
        }
        for group in groups.iter().filter(|group| !group.is_alone()) {
            let mut state = group.state.borrow_mut();
            let mut consensus = group.consensus.borrow_mut();
            if !consensus.is_leader() || consensus.transferring_to().is_some() {
                continue;
            }
            let status = consensus.status();
            let (me, shard) = (group.replica, group.id.0);
            let voters = &status.members.voters;
            let fit = |f: &&consensus::Follower| f.heard && voters.contains(&f.replica);
            // Of those that are nearest to the end of the log the next in line.
            let next = status.followers.iter().filter(fit).max_by_key(|f| {
                (f.matched, std::cmp::Reverse(replica::rank(voters, f.replica, shard)))
            });
            let Some(next) = next.map(|f| f.replica).filter(|&to| to != me) else { continue };
            sometimes!(true, "a leadership is given away");
            // First the lease: the next leader does not wait for its end.
            state.lease.end();
            state.giving = true;
            if group.id == ROOT {
                core.time.abdicate();
            }
            let _ = consensus.transfer(next);
        }
    }

    /// Returns whether a shard is led elsewhere by now, or by nobody that this engine could wait for.
    pub(super) fn is_given_away(&self, _core: &Inner<P>, group: &Group<P>) -> bool {
        !group.consensus.borrow().is_leader()
    }

    /// Returns whether the time is over in which leaderships are given away.
    pub(super) fn is_past_grace(&self, core: &Inner<P>) -> bool {
        self.grace_until.get().is_some_and(|until| core.env.clock.now() >= until)
    }
}

fn lost_leader<P: Program>(group: &Group<P>) -> String {
    format!("shard {} has lost its leader before the write was kept; try again", group.id)
}
