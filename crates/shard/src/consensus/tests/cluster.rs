//! Groups of several replicas in one thread: messages are lost, repeated and reordered, disks are
//! slow, replicas crash and come back with what was durable, members change, and a seed decides
//! all of it. Then everything is healed, and the replicas must agree.
//!
//! What is checked on the way:
//! - what is applied at an index is the same everywhere, for ever, and so are the members;
//! - one leader per term;
//! - what a message promises is durable when it leaves;
//! - after healing a leader is found, and every member catches up with all that was ever applied.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::Mutant;
use crate::consensus::*;

/// SplitMix64.
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        if items.is_empty() { None } else { Some(items[self.below(items.len())]) }
    }
}

/// The replicated state: what was applied, as a hash, and the members.
#[derive(Clone, Debug, Default, PartialEq)]
struct Machine {
    applied: u64,
    term: u64,
    hash: u64,
    members: Members,
}

/// What survives a crash.
#[derive(Clone, Default)]
struct Disk {
    state: GroupState,
    first: u64,
    log: BTreeMap<u64, (u64, Vec<u8>)>,
    /// Terms of the whole history, for the entry before the first.
    terms: BTreeMap<u64, u64>,
    machine: Machine,
}

impl Disk {
    fn last(&self) -> u64 {
        self.log.last_key_value().map_or(self.first - 1, |(&index, _)| index)
    }

    fn write(&mut self, batch: &Batch) {
        if let Some(machine) = &batch.install {
            self.log.clear();
            self.terms = BTreeMap::from([(machine.applied, machine.term)]);
            self.first = machine.applied + 1;
            self.machine = machine.clone();
        }
        for entry in &batch.entries {
            self.log.split_off(&entry.index());
            self.terms.split_off(&entry.index());
            self.log.insert(entry.index(), (entry.term(), entry.log_parts().concat()));
            self.terms.insert(entry.index(), entry.term());
        }
        self.state = batch.state.unwrap_or(self.state);
    }

    fn entry(&self, index: u64) -> Entry {
        let (term, bytes) = &self.log[&index];
        Entry::decode(index, *term, Bytes::from(bytes.clone())).unwrap()
    }

    fn stored(&self) -> Stored {
        let applied = self.machine.applied;
        let mut terms: Vec<(u64, u64)> = Vec::new();
        if self.first == 1 {
            terms.push((0, 0));
        }
        for (&index, &term) in self.terms.range(self.first - 1..=applied) {
            if terms.last().is_none_or(|&(_, last)| last != term) {
                terms.push((index, term));
            }
        }
        Stored {
            state: self.state,
            members: self.machine.members.clone(),
            applied,
            first: self.first,
            terms,
            entries: (applied + 1..=self.last()).map(|index| self.entry(index)).collect(),
        }
    }
}

/// A batch on its way to the disk.
struct Batch {
    number: u64,
    install: Option<Machine>,
    entries: Vec<Entry>,
    state: Option<GroupState>,
}

struct Replica {
    node: Option<Consensus>,
    disk: Disk,
    batches: VecDeque<Batch>,
    machine: Machine,
    to_apply: VecDeque<Entry>,
    starts: u64,
}

/// How hard the world is.
#[derive(Clone, Copy, Debug)]
struct Weather {
    steps: usize,
    loss: u64,
    repeat: u64,
    crashes: u64,
    /// Of a hundred steps, those that are a call to elect and a crash with a quick return.
    strife: u64,
    changes: bool,
    check_promises: bool,
    settle_ticks: u64,
    mutant: Mutant,
}

const ROUGH: Weather = Weather {
    steps: 3000,
    loss: 10,
    repeat: 10,
    crashes: 2,
    strife: 0,
    changes: true,
    check_promises: true,
    settle_ticks: 3,
    mutant: Mutant::None,
};

struct World {
    random: Random,
    weather: Weather,
    replicas: BTreeMap<u64, Replica>,
    network: Vec<Message>,
    cut: BTreeSet<(u64, u64)>,
    /// The truth: what the first replica that applied an index made of it.
    history: BTreeMap<u64, (u64, Bytes, Machine)>,
    leaders: BTreeMap<u64, u64>,
    proposals: u64,
    next_replica: u64,
    reads: BTreeMap<(u64, u64, ReadId), u64>,
    trace: Vec<String>,
    counts: Counts,
}

/// That the interesting things happened at all.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    leaders: u64,
    applied: u64,
    changes: u64,
    installed: u64,
    fetched: u64,
    transfers: u64,
    reads: u64,
    restarts: u64,
    /// Leaders whose group had one voter.
    alone: u64,
}

type Checked = Result<(), String>;

fn require(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

impl World {
    fn new(seed: u64, weather: Weather) -> Result<World, String> {
        let mut world = World {
            random: Random(seed),
            weather,
            replicas: BTreeMap::new(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            history: BTreeMap::new(),
            leaders: BTreeMap::new(),
            proposals: 0,
            next_replica: 4,
            reads: BTreeMap::new(),
            trace: Vec::new(),
            counts: Counts::default(),
        };
        for id in 1..=3 {
            let members = Members::of_voters([1, 2, 3]);
            world.add(id, members)?;
        }
        Ok(world)
    }

    fn add(&mut self, id: u64, members: Members) -> Checked {
        let machine = Machine { members, ..Machine::default() };
        let disk = Disk { first: 1, machine: machine.clone(), ..Disk::default() };
        let replica = Replica {
            node: None,
            disk,
            batches: VecDeque::new(),
            machine,
            to_apply: VecDeque::new(),
            starts: 0,
        };
        self.replicas.insert(id, replica);
        self.start(id)
    }

    fn start(&mut self, id: u64) -> Checked {
        let weather = self.weather;
        let replica = self.replicas.get_mut(&id).unwrap();
        replica.starts += 1;
        let config = Config {
            incarnation: replica.starts,
            rank: id as u32 - 1,
            settle_ticks: weather.settle_ticks,
            election_ticks: 6,
            heartbeat_ticks: 1,
            message_bytes_max: 300,
            inflight_messages_max: 8,
            uncommitted_bytes_max: 2000,
            committed_bytes_max: 400,
            unapplied_bytes_max: 4000,
            cache_bytes: 1200,
            promote_lag: 10,
            ..Config::new(9, id)
        };
        let mut node = Consensus::restore(config, replica.disk.stored())
            .map_err(|error| format!("replica {id} does not start: {error}"))?;
        node.mutant = weather.mutant;
        replica.machine = replica.disk.machine.clone();
        replica.node = Some(node);
        replica.batches.clear();
        replica.to_apply.clear();
        self.take(id)
    }

    fn crash(&mut self, id: u64) {
        let replica = self.replicas.get_mut(&id).unwrap();
        replica.node = None;
        // What was on its way may have reached the disk: some first part of it.
        for _ in 0..self.random.below(replica.batches.len() + 1) {
            let batch = replica.batches.pop_front().unwrap();
            replica.disk.write(&batch);
        }
        if let Some(mut torn) = replica.batches.pop_front()
            && self.random.chance(50)
        {
            torn.entries.truncate(self.random.below(torn.entries.len() + 1));
            replica.disk.write(&torn);
        }
        replica.batches.clear();
        self.trace.push(format!("{id} crashes"));
    }

    /// Takes all effects of a replica.
    fn take(&mut self, id: u64) -> Checked {
        loop {
            let replica = self.replicas.get_mut(&id).unwrap();
            let Some(node) = replica.node.as_mut() else { return Ok(()) };
            let Some(effects) = node.ready() else { break };
            self.trace.push(format!("{id} {effects:?}"));
            if let Some(now) = effects.leadership
                && now.role == Role::Leader
            {
                let before = *self.leaders.entry(now.term).or_insert(id);
                require(before == id, || format!("{before} and {id} lead term {}", now.term))?;
                self.counts.leaders += 1;
                self.counts.alone += u64::from(node.members().voters.len() == 1);
            }
            let install = match &effects.install {
                None => None,
                Some(meta) => {
                    replica.to_apply.clear();
                    let truth = self.history.get(&meta.index).map(|(.., machine)| machine);
                    let truth = truth.ok_or("a snapshot of what nobody applied")?;
                    require(truth.term == meta.term && truth.members == meta.members, || {
                        format!("a snapshot {meta:?} of {truth:?}")
                    })?;
                    Some(truth.clone())
                }
            };
            let batch = Batch {
                number: effects.number,
                install,
                entries: effects.entries,
                state: effects.state,
            };
            let stores = batch.install.is_some() || batch.state.is_some();
            let stores = stores || !batch.entries.is_empty();
            require(stores == effects.must_sync, || "must_sync is wrong".to_string())?;
            if stores {
                replica.batches.push_back(batch);
            }
            replica.to_apply.extend(effects.committed);
            for read in effects.reads {
                let floor = self.reads.remove(&(id, replica.starts, read.id));
                require(floor.is_none_or(|floor| read.index >= floor), || {
                    format!("a read at {} began when {floor:?} was committed", read.index)
                })?;
                self.counts.reads += 1;
            }
            let snapshot = SnapshotMeta {
                index: replica.machine.applied,
                term: replica.machine.term,
                members: replica.machine.members.clone(),
            };
            for to in effects.snapshots_wanted {
                let _ = node.offer_snapshot(to, &snapshot);
            }
            for message in &effects.messages {
                if self.weather.check_promises {
                    promised(message, &replica.disk)?;
                }
            }
            for message in effects.messages {
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                let decoded = Message::decode(&bytes.into()).map_err(|error| error.to_string())?;
                require(decoded == message, || format!("{decoded:?} was {message:?}"))?;
                self.network.push(decoded);
            }
        }
        // Entries that left the cache.
        let replica = self.replicas.get_mut(&id).unwrap();
        let node = replica.node.as_mut().unwrap();
        let mut fetched = false;
        while let Some(range) = node.wanted() {
            let there = replica.disk.first <= range.start && range.end <= replica.disk.last() + 1;
            let entries = if there && !self.random.chance(20) {
                range.clone().map(|index| replica.disk.entry(index)).collect()
            } else {
                Vec::new()
            };
            self.counts.fetched += entries.len() as u64;
            node.fetched(range, entries);
            fetched = true;
        }
        if fetched { self.take(id) } else { Ok(()) }
    }

    fn persist(&mut self, id: u64, most: usize) -> Checked {
        let replica = self.replicas.get_mut(&id).unwrap();
        let Some(node) = replica.node.as_mut() else { return Ok(()) };
        let mut number = None;
        for _ in 0..most.min(replica.batches.len()) {
            let batch = replica.batches.pop_front().unwrap();
            replica.disk.write(&batch);
            if let Some(machine) = batch.install {
                self.counts.installed += 1;
                replica.machine = machine;
            }
            number = Some(batch.number);
        }
        if let Some(number) = number {
            node.persisted(number);
            self.trace.push(format!("{id} persisted {number}"));
        }
        self.take(id)
    }

    fn apply(&mut self, id: u64, most: usize) -> Checked {
        for _ in 0..most {
            let replica = self.replicas.get_mut(&id).unwrap();
            let Some(node) = replica.node.as_mut() else { return Ok(()) };
            let Some(entry) = replica.to_apply.pop_front() else { break };
            let index = entry.index();
            let machine = &mut replica.machine;
            require(index == machine.applied + 1, || {
                format!("{id} is to apply {index} after {}", machine.applied)
            })?;
            if entry.kind() == EntryKind::Change {
                machine.members = node.apply_change(&entry).map_err(|error| error.to_string())?;
                self.counts.changes += 1;
            }
            let mut bytes = machine.hash.to_le_bytes().to_vec();
            bytes.extend(entry.log_parts().concat());
            machine.hash = hash64(&bytes);
            (machine.applied, machine.term) = (index, entry.term());
            node.applied(index);
            let fact = (entry.term(), entry.payload().clone(), machine.clone());
            let truth = self.history.entry(index).or_insert_with(|| fact.clone());
            require(*truth == fact, || format!("{id} applied {fact:?} where {truth:?} is true"))?;
            self.counts.applied += 1;
            let learners = machine.members.learners.clone();
            for learner in learners {
                if !self.replicas.contains_key(&learner) {
                    self.add(learner, Members::default())?;
                }
            }
        }
        self.take(id)
    }

    fn deliver(&mut self, at: usize) -> Checked {
        let message = self.network.remove(at);
        if self.random.chance(self.weather.repeat) {
            self.network.push(message.clone());
        }
        let (from, to) = (message.from(), message.to());
        let lost = self.random.chance(self.weather.loss) || self.cut.contains(&(from, to));
        let snapshot = message.kind() == MessageKind::Snapshot;
        let arrived = match self.replicas.get_mut(&to).and_then(|r| r.node.as_mut()) {
            Some(node) if !lost => {
                self.trace.push(format!("{to} gets {message:?}"));
                match node.step(message) {
                    Ok(()) => true,
                    Err(Dropped::LostEntries) => return Err(format!("{to} lost entries")),
                    Err(Dropped::Nonsense(what)) => return Err(format!("{to}: {what}")),
                    Err(_) => false,
                }
            }
            _ => false,
        };
        if let Some(sender) = self.replicas.get_mut(&from).and_then(|r| r.node.as_mut()) {
            if snapshot {
                sender.report_snapshot(to, arrived);
            } else if !arrived && self.random.chance(30) {
                sender.report_unreachable(to);
            }
            self.take(from)?;
        }
        if arrived { self.take(to) } else { Ok(()) }
    }

    fn running(&self) -> Vec<u64> {
        let running = self.replicas.iter().filter(|(_, replica)| replica.node.is_some());
        running.map(|(&id, _)| id).collect()
    }

    fn leader(&self) -> Option<u64> {
        let node = |id: &u64| self.replicas[id].node.as_ref().unwrap();
        let leaders = self.running().into_iter().filter(|id| node(id).is_leader());
        leaders.max_by_key(|id| node(id).term())
    }

    fn node(&mut self, id: u64) -> &mut Consensus {
        self.replicas.get_mut(&id).unwrap().node.as_mut().unwrap()
    }

    fn change(&mut self, id: u64) -> Checked {
        let members = self.node(id).members().clone();
        let mut changes = Vec::new();
        let spare = self.next_replica;
        let (learns, votes) = (members.learners.clone(), members.voters.clone());
        if learns.len() < 3 && self.random.chance(30) {
            changes.push(Change::AddLearner(spare));
        }
        // Often against a rule, which the leader knows.
        let each = 20 + self.random.below(60) as u64;
        for learner in learns {
            if self.random.chance(each) {
                let stays = votes.len() < 5 && self.random.chance(80);
                let change = if stays { Change::Promote } else { Change::Remove };
                changes.push(change(learner));
            }
        }
        for voter in votes {
            if self.random.chance(each / 2) {
                changes.push(Change::Demote(voter));
            }
        }
        if self.node(id).propose_change(&changes).is_ok() {
            self.trace.push(format!("{id} proposes {changes:?}"));
            if changes.contains(&Change::AddLearner(spare)) {
                self.next_replica += 1;
            }
        }
        self.take(id)
    }

    fn step(&mut self) -> Checked {
        let running = self.running();
        let some = self.random.pick(&running);
        let dice = self.random.below(1000);
        let Some(id) = some else {
            let id = *self.replicas.keys().next().unwrap();
            return self.start(id);
        };
        if self.random.chance(self.weather.strife) {
            if self.random.chance(50) {
                self.crash(id);
                return self.start(id);
            }
            self.node(id).campaign();
            return self.take(id);
        }
        match dice {
            0..450 if !self.network.is_empty() => {
                // Mostly the oldest ones, so that the network makes way at all.
                let reach = if self.random.chance(80) { 4 } else { self.network.len() };
                let at = self.random.below(reach.min(self.network.len()));
                self.deliver(at)
            }
            450..600 => {
                self.node(id).tick();
                self.take(id)
            }
            600..700 => {
                self.proposals += 1;
                let payload = format!("{} from {id}", self.proposals);
                if self.random.chance(70) {
                    let Some(leader) = self.leader() else { return Ok(()) };
                    let _ = self.node(leader).propose(payload.into());
                    self.take(leader)
                } else {
                    let _ = self.node(id).propose(payload.into());
                    self.take(id)
                }
            }
            700..820 => {
                let most = 1 + self.random.below(3);
                self.persist(id, most)
            }
            820..920 => {
                let most = 1 + self.random.below(5);
                self.apply(id, most)
            }
            920..930 => {
                let replica = self.replicas.get_mut(&id).unwrap();
                replica.disk.machine = replica.machine.clone();
                Ok(())
            }
            930..936 => {
                let keep = self.random.below(20) as u64;
                let replica = self.replicas.get_mut(&id).unwrap();
                let first = (replica.disk.machine.applied + 1).saturating_sub(keep).max(1);
                if first > replica.disk.first {
                    replica.disk.first = first;
                    replica.disk.log = replica.disk.log.split_off(&first);
                    replica.disk.terms = replica.disk.terms.split_off(&(first - 1));
                    self.node(id).released(first);
                }
                Ok(())
            }
            936..942 => {
                self.node(id).campaign();
                self.take(id)
            }
            942..950 => {
                let Some(leader) = self.leader() else { return Ok(()) };
                if self.node(leader).transfer(id).is_ok() {
                    self.counts.transfers += 1;
                }
                self.take(leader)
            }
            950..965 if self.weather.changes => {
                let Some(leader) = self.leader() else { return Ok(()) };
                self.change(leader)
            }
            965..975 => {
                let floor = self.history.keys().next_back().copied().unwrap_or(0);
                let starts = self.replicas[&id].starts;
                if let Ok(read) = self.node(id).read_index() {
                    self.reads.insert((id, starts, read), floor);
                }
                self.take(id)
            }
            975..985 => {
                self.cut.clear();
                if self.random.chance(50) {
                    let ids: Vec<u64> = self.replicas.keys().copied().collect();
                    let alone = self.random.pick(&ids).unwrap();
                    let both = self.random.chance(70);
                    for other in ids {
                        self.cut.insert((alone, other));
                        if both {
                            self.cut.insert((other, alone));
                        }
                    }
                }
                Ok(())
            }
            985..1000 => {
                let down: Vec<u64> = self.replicas.keys().copied().collect();
                let down: Vec<u64> = down.into_iter().filter(|id| !running.contains(id)).collect();
                if let Some(id) = self.random.pick(&down) {
                    self.counts.restarts += 1;
                    self.start(id)?;
                }
                if self.random.chance(self.weather.crashes * 20) {
                    self.crash(id);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Ends all trouble, and waits until every member has all that anybody applied.
    fn heal(&mut self) -> Checked {
        self.cut.clear();
        (self.weather.loss, self.weather.repeat) = (0, 0);
        let down: Vec<u64> = self.replicas.keys().copied().collect();
        for id in down {
            if self.replicas[&id].node.is_none() {
                self.start(id)?;
            }
        }
        for round in 0.. {
            let goal = self.history.keys().next_back().copied().unwrap_or(0);
            if let Some(leader) = self.leader() {
                let status = self.node(leader).status();
                let members = status.members;
                let done = |id: &u64| self.replicas[id].machine.applied == status.last;
                let all: Vec<u64> =
                    members.voters.iter().chain(&members.learners).copied().collect();
                if status.commit == status.last
                    && status.commit >= goal
                    && !members.is_joint()
                    && all.iter().all(done)
                {
                    let truth = &self.history[&status.last].2;
                    for id in all {
                        let machine = &self.replicas[&id].machine;
                        require(machine == truth, || format!("{id} ends with {machine:?}"))?;
                    }
                    return Ok(());
                }
            }
            let state = || {
                let of = |r: &Replica| r.node.as_ref().map(|node| node.status());
                self.replicas.values().map(of).map(|s| format!("\n{s:?}")).collect::<String>()
            };
            require(round < 400, || format!("no agreement after 400 quiet rounds: {}", state()))?;
            for id in self.running() {
                self.persist(id, usize::MAX)?;
                self.apply(id, usize::MAX)?;
            }
            for _ in 0..self.network.len().min(2000) {
                self.deliver(0)?;
            }
            for id in self.running() {
                self.node(id).tick();
                self.take(id)?;
            }
        }
        Ok(())
    }
}

/// Whether what `message` promises is on the sender's disk. A later batch may have gone beyond it.
fn promised(message: &Message, disk: &Disk) -> Checked {
    let kept = match message.kind() {
        _ if disk.state.term > message.term() => true,
        MessageKind::Vote if !message.is_refusal() => {
            disk.state.term == message.term() && disk.state.vote == message.to()
        }
        MessageKind::AskVote => {
            disk.state.term == message.term() && disk.state.vote == message.from()
        }
        MessageKind::AppendReply if !message.is_refusal() => {
            disk.state.term == message.term() && disk.last() >= message.index()
        }
        // About a term that nobody is in yet.
        MessageKind::AskPreVote | MessageKind::PreVote => true,
        _ => disk.state.term >= message.term(),
    };
    require(kept, || format!("{message:?} left before it was durable: {:?}", disk.state))
}

/// Runs one seed; returns what was wrong.
fn run(seed: u64, weather: Weather) -> Result<Counts, String> {
    let mut last = Vec::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, weather)?;
        let mut run = || {
            for _ in 0..weather.steps {
                world.step()?;
            }
            world.heal()
        };
        let outcome = run();
        let from = world.trace.len().saturating_sub(200);
        last = world.trace.split_off(from);
        outcome.map(|()| world.counts)
    }));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("panic: {}", text.unwrap_or_else(|| "without words".into())))
    });
    if outcome.is_err() && std::env::var_os("ATOLL_CONSENSUS_TRACE").is_some() {
        println!("{}", last.join("\n"));
    }
    outcome
}

pub(super) fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("ATOLL_CONSENSUS_SEED").unwrap_or(0);
    first..first + number("ATOLL_CONSENSUS_SEEDS").unwrap_or(default)
}

fn survey(weather: Weather, default: u64) -> Counts {
    let mut sum = Counts::default();
    for seed in seeds(default) {
        let counts = match run(seed, weather) {
            Ok(counts) => counts,
            Err(what) => panic!("ATOLL_CONSENSUS_SEED={seed} ATOLL_CONSENSUS_SEEDS=1: {what}"),
        };
        sum.leaders += counts.leaders;
        sum.applied += counts.applied;
        sum.changes += counts.changes;
        sum.installed += counts.installed;
        sum.fetched += counts.fetched;
        sum.transfers += counts.transfers;
        sum.reads += counts.reads;
        sum.restarts += counts.restarts;
        sum.alone += counts.alone;
    }
    println!("{sum:?}");
    sum
}

#[test]
fn replicas_agree_through_loss_crashes_and_changes_of_members() {
    let sum = survey(ROUGH, 150);
    let Counts { leaders, applied, changes, installed, fetched, transfers, .. } = sum;
    let Counts { reads, restarts, alone, .. } = sum;
    for (what, count) in [
        ("leaders", leaders),
        ("applied", applied),
        ("changes", changes),
        ("installed", installed),
        ("fetched", fetched),
        ("transfers", transfers),
        ("reads", reads),
        ("restarts", restarts),
        ("alone", alone),
    ] {
        assert!(count > 15, "{what} hardly happened: {sum:?}");
    }
}

#[test]
fn three_replicas_agree_in_fair_weather() {
    survey(Weather { loss: 0, repeat: 0, crashes: 0, changes: false, ..ROUGH }, 30);
}

#[test]
fn three_voters_that_crash_all_the_time_agree() {
    survey(Weather { crashes: 5, changes: false, settle_ticks: 0, ..ROUGH }, 100);
}

#[test]
fn a_seed_names_one_execution() {
    let trace = |seed| {
        let mut world = World::new(seed, ROUGH).unwrap();
        for _ in 0..ROUGH.steps {
            world.step().unwrap();
        }
        hash64(world.trace.join("\n").as_bytes())
    };
    for seed in 0..5 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}

/// Harsh enough for a broken rule to do damage, and without looking at the promises themselves.
const HARSH: Weather = Weather {
    crashes: 5,
    strife: 5,
    changes: false,
    check_promises: false,
    settle_ticks: 0,
    steps: 3000,
    ..ROUGH
};

fn damage_of(mutant: Mutant) -> BTreeMap<u64, String> {
    let run = |seed| run(seed, Weather { mutant, ..HARSH }).err().map(|what| (seed, what));
    seeds(120).filter_map(run).collect()
}

#[test]
fn votes_that_leave_before_they_are_durable_are_noticed() {
    let damage = damage_of(Mutant::EarlyVotes);
    println!("{damage:#?}");
    assert!(damage.values().any(|what| what.contains("lead term")), "{damage:?}");
}

#[test]
fn appends_confirmed_before_they_are_durable_are_noticed() {
    let damage = damage_of(Mutant::EarlyConfirmations);
    println!("{damage:#?}");
    assert!(!damage.is_empty());
}

#[test]
fn a_broken_promise_is_noticed_when_it_is_made() {
    for mutant in [Mutant::EarlyVotes, Mutant::EarlyConfirmations] {
        let what = run(1, Weather { mutant, ..ROUGH }).expect_err("a broken promise");
        assert!(what.contains("left before it was durable"), "{what}");
    }
}
