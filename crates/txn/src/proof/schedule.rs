//! One schedule: from a seed to a verdict.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sim::{Node, Sim};
use atoll_env::sync::oneshot;
use atoll_mvcc::request::{Isolation, Key, Span};
use atoll_mvcc::{Epoch, Timestamp};

use super::check::check;
use super::journal::{Journal, Kind, Told};
use super::program::Program;
use super::{Cluster, Layout, Weather};
use crate::{
    Coordinator, Deadlocks, LocalOracle, Options, Pace, Patience, ScanOptions, WhenAlive, resolve,
};

/// Coordinators of a schedule.
const COORDINATORS: usize = 3;
/// Everything has ended by then, or never will.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a schedule is like. Drawn anew for each, so that rare things are frequent in some.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Keys there are.
    pub keys: u64,
    /// Where keys are.
    pub layout: Layout,
    /// Transactions of a client, at most.
    pub transactions: u64,
    /// Steps of a transaction, at most.
    pub steps: u64,
    /// Clients of a coordinator.
    pub clients: u64,
    /// Time between transactions.
    pub spread_us: u64,
    /// Isolation levels in use.
    pub isolations: Vec<Isolation>,
    /// Share of commands of the fast lane.
    pub fast: f64,
    /// Share of the rest that read at a moment of the past.
    pub stale: f64,
    /// Share of transactions that lock some keys first.
    pub locks: f64,
    /// Share of single locks among the steps drawn for them.
    pub updates: f64,
    /// Read committed transactions say where their statements begin.
    pub statements: bool,
    /// Leaders lost.
    pub leader_changes: u64,
    /// Time within which they are.
    pub changes_within_us: u64,
    /// Epochs that shards learn of, if there are commands of the fast lane.
    pub learns: u64,
    /// Shards split so often.
    pub splits: u64,
    /// Coordinators that die some time.
    pub deaths: usize,
    /// Share of commits in which the coordinator dies.
    pub deaths_in_commit: f64,
    /// How long a reader waits for a living transaction before it decides its fate.
    pub push_us: u64,
    /// Safepoints moved.
    pub collections: u64,
    /// Keys that a transaction may read one by one.
    pub read_keys_max: usize,
    /// Keys up to which a commit is one round.
    pub staged_keys_max: usize,
    /// Network and disks.
    pub weather: Weather,
}

impl Knobs {
    /// Returns whether nothing is lost on the way and nobody dies.
    pub fn is_calm(&self) -> bool {
        let nobody_dies = self.deaths == 0 && self.deaths_in_commit == 0.0;
        nobody_dies && self.leader_changes == 0 && self.splits == 0 && self.weather.breaks == 0.0
    }

    /// Draws a schedule.
    pub fn draw(prng: &mut Prng) -> Knobs {
        let isolations = match prng.below(10) {
            0..5 => vec![Isolation::Serializable],
            5..7 => vec![Isolation::Snapshot],
            7 => vec![Isolation::ReadCommitted],
            _ => vec![Isolation::Serializable, Isolation::Snapshot, Isolation::ReadCommitted],
        };
        let often = |prng: &mut Prng, most: u64| {
            if prng.chance(0.5) { 0 } else { prng.range(1..most + 1) }
        };
        // Late comers and safepoints are dangerous together.
        let late = prng.chance(0.3);
        Knobs {
            keys: prng.range(3..9),
            layout: Layout::Ordered,
            transactions: prng.range(1..4),
            steps: prng.range(2..6),
            clients: prng.range(1..4),
            spread_us: *prng.choose(&[200, 2_000, 10_000]).unwrap_or(&200),
            isolations,
            fast: *prng.choose(&[0.0, 0.0, 0.3, 0.6]).unwrap_or(&0.0),
            stale: 0.05,
            locks: *prng.choose(&[0.0, 0.1, 0.7]).unwrap_or(&0.0),
            updates: *prng.choose(&[0.0, 1.0]).unwrap_or(&0.0),
            statements: prng.chance(0.5),
            leader_changes: often(prng, 6),
            changes_within_us: 100_000,
            learns: 6,
            splits: often(prng, 2),
            deaths: if prng.chance(0.7) { 0 } else { prng.range(1..COORDINATORS as u64) as usize },
            deaths_in_commit: *prng.choose(&[0.0, 0.0, 0.1, 0.3]).unwrap_or(&0.0),
            push_us: *prng.choose(&[0, 1_000, 1_000_000]).unwrap_or(&1_000_000),
            collections: if late { prng.range(2..8) } else { often(prng, 2) },
            read_keys_max: if prng.chance(0.1) { 1 } else { 4_096 },
            staged_keys_max: if prng.chance(0.1) { 1 } else { 4_096 },
            weather: Weather {
                network_us: *prng.choose(&[20, 200, 1_000]).unwrap_or(&200),
                apply_us: *prng.choose(&[50, 500, 3_000]).unwrap_or(&500),
                tail: *prng.choose(&[0.02, 0.2]).unwrap_or(&0.02),
                breaks: *prng
                    .choose(&[if late { 0.1 } else { 0.0 }, 0.0, 0.02, 0.1])
                    .unwrap_or(&0.0),
                late_us: if late { 8_000_000 } else { 20_000 },
            },
        }
    }
}

/// What a schedule did, to know that it did something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Transactions begun, fast commands included.
    pub begun: u64,
    /// Told that they committed.
    pub committed: u64,
    /// Of these, commands of the fast lane.
    pub fast: u64,
    /// Told that they did not.
    pub aborted: u64,
    /// Left without word by a dead coordinator.
    pub orphaned: u64,
    /// Told that nobody knows.
    pub unknown: u64,
    /// Commits over many shards in one round.
    pub many_shards: u64,
    /// In two rounds.
    pub two_rounds: u64,
    /// On one shard.
    pub one_shard: u64,
    /// Pushed and validated again.
    pub pushed: u64,
    /// Lost answers that were asked for.
    pub settled: u64,
    /// Reads moved to a later moment by a lock.
    pub refreshed: u64,
    /// Circles broken.
    pub deadlocks: u64,
}

impl Report {
    /// Adds another.
    pub fn add(&mut self, other: &Report) {
        self.begun += other.begun;
        self.committed += other.committed;
        self.fast += other.fast;
        self.aborted += other.aborted;
        self.orphaned += other.orphaned;
        self.unknown += other.unknown;
        self.many_shards += other.many_shards;
        self.two_rounds += other.two_rounds;
        self.one_shard += other.one_shard;
        self.pushed += other.pushed;
        self.settled += other.settled;
        self.refreshed += other.refreshed;
        self.deadlocks += other.deadlocks;
    }
}

/// Runs the schedule of a seed against a cluster, which is made inside of the simulation from an
/// environment, an oracle, the keys at which its shards begin, a random stream and the weather. Before
/// that `bend` may change what it is like: some things meet often only where everything else stays out
/// of their way.
///
/// # Errors
/// Something was wrong; the sentence says what.
pub fn run_bent<C: Cluster>(
    seed: u64,
    bend: impl FnOnce(&mut Knobs),
    make: impl FnOnce(&Env, &LocalOracle, &[Key], Prng, Weather) -> C,
) -> Result<Report, String> {
    let sim = Sim::new(seed);
    let ground = sim.node("shards");
    let nodes: Vec<Node> = ["c0", "c1", "c2"].map(|name| sim.node(name)).into();
    let outcome = sim.try_block_on(&ground, async {
        let mut prng = Prng::new(seed).fork("schedule");
        let mut knobs = Knobs::draw(&mut prng);
        knobs.layout = match seed % 8 {
            0..4 => Layout::Ordered,
            4..6 => Layout::Slots,
            _ => Layout::Own,
        };
        bend(&mut knobs);
        if knobs.layout == Layout::Own {
            // The upper half of a split inherits what the first key of the lower one holds.
            knobs.splits = 0;
        }
        let knobs = Rc::new(knobs);
        let env = ground.env();
        let oracle = LocalOracle::new(env.clock.clone());
        // Three shards, wherever their borders fall.
        let mut starts = vec![knobs.layout.key(0)];
        for _ in 0..2 {
            starts.push(knobs.layout.key(prng.range(1..knobs.keys)));
        }
        starts.sort_unstable();
        starts.dedup();
        let cluster = make(&env, &oracle, &starts, prng.fork("cluster"), knobs.weather);
        let stage = Stage {
            cluster,
            oracle,
            env,
            nodes: nodes.clone(),
            journal: Rc::default(),
            deadlocks: Deadlocks::new(),
            knobs,
        };
        stage.play(prng).await
    });
    match outcome {
        Ok(outcome) => outcome.done(),
        Err(deadlock) => Err(deadlock.to_string()),
    }
}

type Coordinators<C> = Vec<(Node, Coordinator<<C as Cluster>::Shards, LocalOracle>)>;

struct Stage<C: Cluster> {
    cluster: C,
    oracle: LocalOracle,
    env: Env,
    nodes: Vec<Node>,
    journal: Rc<Journal>,
    deadlocks: std::sync::Arc<Deadlocks>,
    knobs: Rc<Knobs>,
}

impl<C: Cluster> Stage<C> {
    async fn play(self, mut prng: Prng) -> Result<Report, String> {
        let options = Options {
            read_keys_max: self.knobs.read_keys_max,
            staged_keys_max: self.knobs.staged_keys_max,
            push: Duration::from_micros(self.knobs.push_us),
            ..Options::default()
        };
        let mut coordinators: Coordinators<C> = Vec::new();
        let mut ends = Vec::new();
        for node in &self.nodes {
            let env = node.env();
            let (coordinator, background) = Coordinator::new(
                self.cluster.shards(),
                self.oracle.clone(),
                &env,
                self.deadlocks.clone(),
                options.clone(),
            );
            env.tasks.spawn_local("background", Box::pin(background.run()));
            for _ in 0..self.knobs.clients {
                let program = Program {
                    cluster: self.cluster.clone(),
                    coordinator: coordinator.clone(),
                    oracle: self.oracle.clone(),
                    env: env.clone(),
                    node: node.clone(),
                    journal: self.journal.clone(),
                    knobs: self.knobs.clone(),
                    prng: prng.fork("program"),
                };
                let (ended, end) = oneshot::channel::<()>();
                ends.push(end);
                env.tasks.spawn_local(
                    "program",
                    Box::pin(async move {
                        program.run().await;
                        let _ = ended.send(());
                    }),
                );
            }
            coordinators.push((node.clone(), coordinator));
        }
        let coordinators = Rc::new(coordinators);
        let calm = Rc::new(Cell::new(false));
        self.disturb(&mut prng, &coordinators, &calm);

        let deadline = self.env.clock.now().after(PATIENCE);
        let slow = Rc::new(RefCell::new(ends));
        let all = async {
            let ends = std::mem::take(&mut *slow.borrow_mut());
            for end in ends {
                // An end that is cancelled is the end of its node.
                let _ = end.await;
            }
        };
        let left = deadline.since(self.env.clock.now());
        if atoll_env::sync::timeout(&*self.env.clock, left, all).await.is_err() {
            return Err(format!("programs do not end: {:?}", self.journal.entries()));
        }
        calm.set(true);
        self.sweep().await?;
        self.ask_doubts(&coordinators).await?;
        if coordinators.iter().any(|(_, coordinator)| coordinator.stats().broken.get() > 0) {
            return Err("a record contradicts what was told".into());
        }
        if let Some(wrong) = self.cluster.wrongs().into_iter().next() {
            return Err(wrong);
        }
        check(&self.journal, &self.cluster.history())?;
        Ok(self.report(&coordinators))
    }

    /// Starts what makes life hard.
    fn disturb(&self, prng: &mut Prng, coordinators: &Rc<Coordinators<C>>, calm: &Rc<Cell<bool>>) {
        let knobs = &self.knobs;
        let within = knobs.spread_us * knobs.transactions + 20_000;
        let mut at = |most: u64| {
            let us = if prng.chance(0.6) { within.min(most) } else { most };
            Duration::from_micros(prng.below(us))
        };
        let task = |name, after: Duration, action: Box<dyn FnOnce()>| {
            let (clock, calm) = (self.env.clock.clone(), calm.clone());
            self.env.tasks.spawn_local(
                name,
                Box::pin(async move {
                    clock.sleep(after).await;
                    if !calm.get() {
                        action();
                    }
                }),
            );
        };
        for _ in 0..knobs.leader_changes {
            let cluster = self.cluster.clone();
            task(
                "change leader",
                at(knobs.changes_within_us),
                Box::new(move || cluster.change_leader()),
            );
        }
        for index in 0..knobs.splits {
            let cluster = self.cluster.clone();
            let border = knobs.layout.key((index * 5 + knobs.keys) % knobs.keys);
            task("split", at(50_000), Box::new(move || cluster.split(&border)));
        }
        for node in self.nodes.iter().take(knobs.deaths) {
            let node = node.clone();
            task("die", at(50_000), Box::new(move || node.crash()));
        }
        for _ in 0..if knobs.fast > 0.0 { knobs.learns } else { 0 } {
            let cluster = self.cluster.clone();
            task("learn", at(50_000), Box::new(move || cluster.learn_epoch()));
        }
        for _ in 0..knobs.collections {
            let after = at(8_000_000).max(at(8_000_000));
            let (cluster, oracle, env) =
                (self.cluster.clone(), self.oracle.clone(), self.env.clone());
            let coordinators = coordinators.clone();
            let calm = calm.clone();
            self.env.tasks.spawn_local(
                "collect",
                Box::pin(async move {
                    env.clock.sleep(after).await;
                    if !calm.get() {
                        collect(&cluster, &oracle, &env, &coordinators).await;
                    }
                }),
            );
        }
    }

    /// Lets recovery finish everything that the dead have left behind.
    async fn sweep(&self) -> Result<(), String> {
        // Late requests have arrived by then, and the dead are known to be dead.
        self.env.clock.sleep(Duration::from_secs(12)).await;
        let (coordinator, background) = Coordinator::new(
            self.cluster.shards(),
            self.oracle.clone(),
            &self.env,
            self.deadlocks.clone(),
            Options::default(),
        );
        self.env.tasks.spawn_local("background", Box::pin(background.run()));
        let mut txn = coordinator.begin(Isolation::Snapshot);
        let layout = self.knobs.layout;
        let span = Span { start: layout.key(0), end: layout.key(25) };
        let all = ScanOptions { limit: usize::MAX, reverse: false };
        let rows = txn.scan(span, all).await.map_err(|e| format!("the last scan failed: {e}"))?;
        let _ = txn.commit().await;
        self.env.clock.sleep(Duration::from_secs(1)).await;
        let mut left = self.cluster.intents();
        if !left.is_empty() {
            // Those above the scan's moment: none can be, since the oracle is behind nothing.
            left.truncate(1);
            return Err(format!("an intent stays for ever: {left:?}, {:?}", rows.rows));
        }
        Ok(())
    }

    /// Asks what became of the transactions of which nobody knew.
    async fn ask_doubts(&self, coordinators: &Coordinators<C>) -> Result<(), String> {
        let Some((_, coordinator)) = coordinators.iter().find(|(node, _)| node.is_up()) else {
            return Ok(());
        };
        let history = self.cluster.history();
        for entry in self.journal.entries() {
            let Told::Unknown(doubt) = &entry.told else { continue };
            let Ok(settled) = coordinator.settle(doubt).await else { continue };
            let is_there = entry.writes.iter().any(|(key, value)| {
                value.is_some() && history.get(key).into_iter().flatten().any(|w| w.value == *value)
            });
            // Once the safepoint has passed, the record may be gone.
            if settled.is_some() != is_there && self.knobs.collections == 0 {
                return Err(format!("a doubt was settled wrongly: {doubt:?} {settled:?}"));
            }
        }
        Ok(())
    }

    fn report(&self, coordinators: &Coordinators<C>) -> Report {
        let mut report = Report { deadlocks: self.deadlocks.broken(), ..Report::default() };
        for entry in self.journal.entries() {
            report.begun += 1;
            match entry.told {
                Told::Committed(_) => {
                    report.committed += 1;
                    report.fast += u64::from(entry.kind == Kind::Fast);
                }
                Told::Aborted(_) | Told::GivenUp => report.aborted += 1,
                Told::Nothing => report.orphaned += 1,
                Told::Unknown(_) | Told::Lost => report.unknown += 1,
            }
        }
        for (_, coordinator) in coordinators {
            let stats = coordinator.stats();
            report.many_shards += stats.many_shards.get();
            report.two_rounds += stats.two_rounds.get();
            report.one_shard += stats.one_shard.get();
            report.pushed += stats.pushed.get();
            report.settled += stats.settled.get();
            report.refreshed += stats.refreshed.get();
        }
        report
    }
}

/// Moves the safepoint as far as it may go, resolves what lies below, and drops what is not needed.
async fn collect<C: Cluster>(
    cluster: &C,
    oracle: &LocalOracle,
    env: &Env,
    coordinators: &Coordinators<C>,
) {
    let up = coordinators.iter().filter(|(node, _)| node.is_up());
    let oldest = up.filter_map(|(_, coordinator)| coordinator.oldest_read()).min();
    // Points that were given out a moment ago may not be known as reads yet.
    let known = Timestamp::read_at(Epoch(oracle.last().0.saturating_sub(10_000)));
    let safepoint = oldest.map_or(known, |oldest| oldest.prev().min(known));
    cluster.set_safepoint(safepoint);
    let below = |cluster: &C| {
        let mut intents = cluster.intents();
        intents.retain(|intent| intent.min_commit_ts <= safepoint);
        intents
    };
    let shards = cluster.shards();
    let patience = Patience {
        wait: Duration::from_millis(10),
        then: WhenAlive::Push,
        limit: Duration::from_secs(10),
    };
    loop {
        let intents = below(cluster);
        if intents.is_empty() {
            break;
        }
        if resolve(&shards, &Pace::new(env), &intents, patience).await.is_err() {
            return;
        }
    }
    cluster.collect();
}
