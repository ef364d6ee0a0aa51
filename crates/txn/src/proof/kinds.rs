//! Kinds of schedules, and what a proof does with them.
//!
//! ```text
//!   what was drawn --bend--> a kind in which some things meet often
//!   a rule that is left out  must make a schedule of the kind it names wrong, soon
//! ```
//!
//! The proof of a cluster has its own list of kinds and of rules; the bends that more than one of them
//! uses are here, and so are the runs. The names of its environment variables begin with
//! [`Proof::prefix`]: `_SEED` and `_SEEDS` say which schedules, `_KIND` of which kind, `_MUTANT` without
//! which rule, `_TRACE=1` prints every request.

use atoll_mvcc::request::Isolation;

use super::{Knobs, Report};

/// A way to bend what was drawn.
pub type Bend = fn(&mut Knobs);

/// Seeds within which a missing rule is missed.
pub const SOON: u64 = 100;

/// The kind that is not bent.
const DRAWN: &str = "drawn";

/// How a cluster is tried.
pub struct Proof {
    /// What the names of its environment variables begin with.
    pub prefix: &'static str,
    /// Kinds of schedules in which some things meet often. One is called `drawn`.
    pub kinds: &'static [(&'static str, Bend)],
    /// Runs the schedule of a seed.
    pub run: fn(u64, Bend) -> Result<Report, String>,
    /// Leaves a rule out on this thread, or none.
    pub choose: fn(Option<&'static str>),
}

impl Proof {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(format!("{}_{name}", self.prefix)).ok()
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.variable(name).and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    /// Returns the bend of a kind.
    ///
    /// # Panics
    /// There is none of that name.
    pub fn kind(&self, name: &str) -> Bend {
        let found = self.kinds.iter().find(|(of, _)| *of == name);
        found.unwrap_or_else(|| panic!("no kind of schedules is called {name}")).1
    }

    /// Runs `seeds` schedules as drawn and a share of so many of each other kind. `seen` tells which
    /// counts of the former must not be small, for a proof of nothing is no proof.
    ///
    /// # Panics
    /// Schedules are wrong; they are printed.
    pub fn schedules_are_right(&self, seeds: u64, share: u64, seen: fn(&Report) -> Vec<u64>) {
        let from = self.number("SEED", 0);
        (self.choose)(self.variable("MUTANT").map(|name| &*name.leak()));
        let named = self.variable("KIND");
        let only = named.as_deref().unwrap_or(DRAWN);
        // What was drawn is what most seeds go to; of the other kinds there are a few as well.
        let alone = named.is_some() || from != 0;
        let mut wrong = Vec::new();
        for (kind, bend) in self.kinds {
            if alone && *kind != only {
                continue;
            }
            let count = self.number("SEEDS", seeds) / if *kind == only { 1 } else { share };
            let mut total = Report::default();
            for seed in from..from + count {
                match (self.run)(seed, *bend) {
                    Ok(report) => total.add(&report),
                    Err(what) => wrong.push(format!(
                        "{0}_KIND={kind} {0}_SEED={seed} {0}_SEEDS=1: {what}",
                        self.prefix
                    )),
                }
            }
            println!("{count} schedules, {kind}: {total:?}");
            if *kind == DRAWN && count >= 1_000 && wrong.is_empty() {
                let enough = total.committed > 5 * count;
                assert!(enough && seen(&total).iter().all(|n| *n > count / 1_000), "{total:?}");
            }
        }
        for what in wrong.iter().take(10) {
            println!("{what}");
        }
        assert!(wrong.is_empty(), "{} schedules are wrong", wrong.len());
    }

    /// Leaves each rule out over the kind of schedules it names. Returns the rules that are not missed
    /// within [`SOON`] seeds.
    ///
    /// # Panics
    /// A seed that misses one is wrong with all rules, too.
    pub fn not_missed<'r>(
        &self,
        rules: impl Iterator<Item = (&'static str, &'r str)>,
    ) -> Vec<&'static str> {
        let mut unseen = Vec::new();
        for (rule, of_kind) in rules {
            let bend = self.kind(of_kind);
            (self.choose)(Some(rule));
            let caught = (0..SOON).find_map(|seed| Some((seed, (self.run)(seed, bend).err()?)));
            (self.choose)(None);
            let Some((seed, what)) = caught else {
                unseen.push(rule);
                continue;
            };
            let what = what.split([':', '{']).next().unwrap_or_default();
            println!("{rule}: caught by seed {seed} of {of_kind}: {what}");
            // It is the missing rule that was wrong, not the proof.
            if let Err(what) = (self.run)(seed, bend) {
                panic!("seed {seed} of {of_kind} is wrong with all rules: {what}");
            }
        }
        unseen
    }

    /// Says how many schedules of each kind miss each rule (or only the one of `_MUTANT`), for whoever
    /// changes schedules or adds a rule.
    pub fn count_misses(&self, rules: impl Iterator<Item = &'static str>) {
        let most = self.number("SEEDS", SOON);
        let only = self.variable("MUTANT");
        for rule in rules.filter(|rule| only.as_deref().is_none_or(|only| only == *rule)) {
            (self.choose)(Some(rule));
            let count = |(name, bend): &(&str, Bend)| {
                let missed = (0..most).filter(|seed| (self.run)(*seed, *bend).is_err()).count();
                format!("{name} {missed}")
            };
            let counts: Vec<String> = self.kinds.iter().map(count).collect();
            println!("{rule}: {}", counts.join(", "));
        }
        (self.choose)(None);
    }
}

/// Many clients on few keys, while entries are long under way.
pub fn crowd(knobs: &mut Knobs) {
    knobs.keys = 3;
    knobs.clients = 3;
    knobs.transactions = 3;
    knobs.spread_us = 200;
    knobs.weather.network_us = 20;
    knobs.weather.apply_us = 500;
}

/// A crowd of transactions that travel for long over shards, and others read meanwhile what they
/// write.
pub fn travelling(knobs: &mut Knobs) {
    crowd(knobs);
    knobs.keys = 5;
    knobs.transactions = 8;
    knobs.locks = 0.0;
    knobs.splits = 0;
    knobs.isolations = vec![Isolation::Serializable];
    knobs.weather.network_us = 1_000;
    knobs.weather.apply_us = 3_000;
}

/// The same, among commands that are told what time it is.
pub fn travel(knobs: &mut Knobs) {
    travelling(knobs);
    knobs.fast = 0.6;
    knobs.learns = 400;
}

/// Shards do not learn what time it is: commands have timestamps of the past.
pub fn commands(knobs: &mut Knobs) {
    crowd(knobs);
    knobs.fast = 0.6;
    knobs.learns = 0;
}

/// A crowd that locks, where no lock is lost.
pub fn locks(knobs: &mut Knobs) {
    crowd(knobs);
    knobs.locks = 0.7;
    knobs.leader_changes = 0;
    knobs.splits = 0;
    knobs.deaths = 0;
    knobs.deaths_in_commit = 0.0;
    knobs.weather.breaks = 0.0;
}

/// Requests that come seconds late, when the horizon has passed them.
pub fn late(knobs: &mut Knobs) {
    knobs.collections = 7;
    knobs.steps = 2;
    knobs.spread_us = 10_000;
    knobs.weather.breaks = 0.3;
    knobs.weather.late_us = 8_000_000;
    knobs.leader_changes = 20;
    knobs.changes_within_us = 8_000_000;
}

/// Coordinators that die in their commits; what they sent comes after they were given up.
pub fn dying(knobs: &mut Knobs) {
    crowd(knobs);
    knobs.deaths_in_commit = 0.3;
    knobs.push_us = 0;
    knobs.weather.breaks = 0.3;
    knobs.weather.late_us = 8_000_000;
}

/// Answers and leaders that are lost while entries are long under way.
pub fn lost(knobs: &mut Knobs) {
    crowd(knobs);
    knobs.push_us = 0;
    knobs.leader_changes = 20;
    knobs.changes_within_us = 20_000;
    knobs.weather.breaks = 0.4;
    knobs.weather.late_us = 300;
    knobs.weather.apply_us = 3_000;
}
