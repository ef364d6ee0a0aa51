//! Exact counts: does a count of all keys (`DBSIZE`) equal the number of keys there were at some
//! moment while it was asked for?
//!
//! At each moment a key is there for certain, for certain not, or possibly:
//!
//! ```text
//!   put a     [-----]                         certain from its reply on
//!   del a                [------]             possible while it runs, gone from its reply on
//!   put b        [---- unknown                possible for ever
//!   count          [------------]  -> n       right if at one of these moments
//!                                             certain keys <= n <= possible keys
//! ```
//!
//! Operations on one key that overlap may have happened in either order: after the reply of one,
//! all effects of those that ran beside it are possible. That makes the interval wide only for the
//! keys concerned and only until the next undisturbed operation on them. With one writer per key
//! and no unknown outcomes every count is exact.

use std::fmt;

use atoll_encoding::hash::HashMap;

use crate::history::{History, Outcome};
use crate::verdict::{Checked, Failure, Verdict, Violation};

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes a key be there, whether it was or not.
    Put(u64),
    /// Makes a key be gone.
    Delete(u64),
    /// Makes all keys be gone.
    Clear,
    /// Counts the keys.
    Count,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Put(key) => write!(f, "put {key}"),
            Op::Delete(key) => write!(f, "del {key}"),
            Op::Clear => f.write_str("clear"),
            Op::Count => f.write_str("count"),
        }
    }
}

/// What may be true of a key.
#[derive(Clone, Copy, Debug, Default)]
struct Presence {
    /// May be there, may be gone: by operations that have ended.
    settled: [bool; 2],
    /// Operations under way that remove it and that put it.
    open: [u32; 2],
    /// The last positions at which operations ended that removed it and that put it.
    ended: [Option<u32>; 2],
}

impl Presence {
    fn may_be(&self, there: bool) -> bool {
        self.settled[usize::from(there)] || self.open[usize::from(there)] > 0
    }
}

/// All keys, and how many of them are there possibly and for certain.
struct Keys {
    keys: HashMap<u64, Presence>,
    certain: u64,
    possible: u64,
}

impl Keys {
    fn change(&mut self, key: u64, change: impl FnOnce(&mut Presence)) {
        let presence = self
            .keys
            .entry(key)
            .or_insert_with(|| Presence { settled: [true, false], ..Presence::default() });
        let counts = |p: &Presence| (u64::from(!p.may_be(false)), u64::from(p.may_be(true)));
        let before = counts(presence);
        change(presence);
        let after = counts(presence);
        self.certain = self.certain + after.0 - before.0;
        self.possible = self.possible + after.1 - before.1;
    }

    fn begin(&mut self, key: u64, puts: bool) {
        self.change(key, |presence| presence.open[usize::from(puts)] += 1);
    }

    fn end(&mut self, key: u64, puts: bool, invoked: u32, position: u32) {
        self.change(key, |presence| {
            let own = usize::from(puts);
            presence.open[own] -= 1;
            // What ended while this ran may have happened after it; what is still under way is
            // counted as open.
            presence.settled = presence.ended.map(|ended| ended.is_some_and(|at| at > invoked));
            presence.settled[own] = true;
            presence.ended[own] = Some(position);
        });
    }
}

/// Checks every count of a history that starts without keys.
///
/// # Errors
/// The first count that was right at no moment.
pub fn check(history: &History<Op, u64>) -> Verdict {
    let calls = history.calls();
    let mut universe: Vec<u64> = calls
        .iter()
        .filter_map(|call| match call.op {
            Op::Put(key) | Op::Delete(key) => Some(key),
            Op::Clear | Op::Count => None,
        })
        .collect();
    universe.sort_unstable();
    universe.dedup();

    let mut events: Vec<(u32, usize, bool)> = Vec::with_capacity(2 * calls.len());
    for (at, call) in calls.iter().enumerate() {
        events.push((call.invoked.position, at, true));
        // An unknown outcome stays open.
        if !matches!(call.outcome, Outcome::Info) {
            events.push((call.ended.position, at, false));
        }
    }
    events.sort_unstable_by_key(|(position, at, begins)| (*position, !*begins, *at));

    let mut keys = Keys { keys: HashMap::default(), certain: 0, possible: 0 };
    // Counts under way: the call, whether it was right, and the intervals there were.
    let mut open: Vec<(usize, bool, u64, u64)> = Vec::new();
    let mut checked = Checked::default();
    for (position, at, begins) in events {
        let call = &calls[at];
        let failed = matches!(call.outcome, Outcome::Fail);
        let one: [u64; 1];
        let (touched, puts): (&[u64], bool) = match call.op {
            Op::Put(key) => {
                one = [key];
                (&one, true)
            }
            Op::Delete(key) => {
                one = [key];
                (&one, false)
            }
            Op::Clear => (&universe, false),
            Op::Count => (&[], false),
        };
        // What failed never happened, so it was not possible while it ran either.
        for key in touched.iter().filter(|_| !failed) {
            match begins {
                true => keys.begin(*key, puts),
                false => keys.end(*key, puts, call.invoked.position, position),
            }
        }
        if call.op == Op::Count && begins && call.outcome.ok().is_some() {
            open.push((at, false, u64::MAX, 0));
        }
        for (count, right, low, high) in &mut open {
            let Some(result) = calls[*count].outcome.ok() else { continue };
            *right |= (keys.certain..=keys.possible).contains(result);
            *low = keys.certain.min(*low);
            *high = keys.possible.max(*high);
        }
        if call.op == Op::Count && !begins {
            let Some(place) = open.iter().position(|(count, ..)| *count == at) else { continue };
            let (_, right, low, high) = open.swap_remove(place);
            if !right {
                let result = call.outcome.ok().copied().unwrap_or_default();
                let anomaly = format!("a count of {result} where {low} to {high} keys were there");
                let explanation = format!("  {call}\n");
                return Err(Failure::Violation(Violation {
                    anomaly,
                    explanation,
                    calls: vec![at],
                }));
            }
            checked.calls += 1;
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::Op::{Clear, Count, Delete, Put};
    use super::*;
    use crate::history::Recorder;

    /// Rounds of overlapping operations; a result of `None` is an unknown outcome.
    fn judge(rounds: &[&[(Op, Option<u64>)]]) -> Verdict {
        let mut recorder = Recorder::new();
        for round in rounds {
            let open: Vec<_> = round
                .iter()
                .map(|(op, _)| {
                    let process = recorder.process();
                    recorder.invoke(process, 0, *op)
                })
                .collect();
            for (call, (_, result)) in open.into_iter().zip(*round) {
                match result {
                    Some(result) => recorder.ok(call, 0, *result),
                    None => recorder.info(call, 0),
                }
            }
        }
        check(&recorder.finish(0))
    }

    const DONE: Option<u64> = Some(0);

    #[test]
    fn a_count_after_all_is_quiet_is_exact() {
        let history = |count| {
            judge(&[
                &[(Put(1), DONE), (Put(2), DONE)],
                &[(Put(2), DONE)],
                &[(Put(3), DONE)],
                &[(Delete(1), DONE)],
                &[(Count, Some(count))],
            ])
        };
        assert!(history(2).is_ok());
        assert!(history(1).is_err());
        assert!(history(3).is_err());
    }

    #[test]
    fn a_count_beside_writes_may_see_them_or_not() {
        for count in 0..4 {
            let verdict = judge(&[
                &[(Put(1), DONE)],
                &[(Put(2), DONE), (Count, Some(count)), (Delete(1), DONE)],
            ]);
            assert_eq!(verdict.is_ok(), count < 3, "{count}");
        }
    }

    #[test]
    fn a_count_must_be_right_at_one_moment() {
        // 0 keys before the put is invoked, then 1; the count runs beside both.
        let mut recorder = Recorder::new();
        let [a, b] = [recorder.process(), recorder.process()];
        for result in [0, 1, 2] {
            let mut recorder = recorder.clone();
            let count = recorder.invoke(a, 0, Count);
            for _ in 0..2 {
                let put = recorder.invoke(b, 0, Put(1));
                recorder.ok(put, 0, 0);
                let delete = recorder.invoke(b, 0, Delete(1));
                recorder.ok(delete, 0, 0);
            }
            recorder.ok(count, 0, result);
            assert_eq!(check(&recorder.finish(0)).is_ok(), result < 2);
        }
    }

    #[test]
    fn an_unknown_put_stays_possible() {
        let history =
            |count| judge(&[&[(Put(1), None)], &[(Put(2), DONE)], &[(Count, Some(count))]]);
        assert!(history(1).is_ok() && history(2).is_ok());
        assert!(history(0).is_err() && history(3).is_err());
    }

    #[test]
    fn a_put_and_a_delete_side_by_side_leave_both_possible_until_the_next() {
        let both: &[_] = &[(Put(1), DONE), (Delete(1), DONE)];
        for count in [0, 1] {
            assert!(judge(&[both, &[(Count, Some(count))]]).is_ok());
            assert!(
                judge(&[both, &[(Put(1), DONE)], &[(Count, Some(count))]]).is_ok() == (count == 1)
            );
        }
    }

    #[test]
    fn a_clear_empties_everything() {
        let puts: &[_] = &[(Put(1), DONE), (Put(2), DONE)];
        assert!(judge(&[puts, &[(Clear, DONE)], &[(Count, Some(0))]]).is_ok());
        assert!(judge(&[puts, &[(Clear, DONE)], &[(Count, Some(1))]]).is_err());
    }
}
