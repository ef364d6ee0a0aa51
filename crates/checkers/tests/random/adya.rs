//! Two judges, one verdict: ours and that of the crate `adya`, at every level, on right and on
//! broken histories.

use atoll_checkers::history::{History, Outcome};
use atoll_checkers::list_append::{self, Kind, Level, Reads, Txn};
use atoll_checkers::second_opinion;
use atoll_env::random::Prng;

use crate::SMALL;
use crate::toy::{Mutant, run};
use crate::workloads::Appends;

/// Compares the verdicts on a history at all levels; returns those that reject it.
fn compare(history: &History<Txn, Reads>, name: &str) -> Vec<Level> {
    let report = list_append::analyze(history).expect("well formed");
    let mut rejected = Vec::new();
    for level in Level::ALL {
        let ours = report.at(level);
        let theirs = second_opinion::judge(history, level);
        let disagree = || {
            let (ours, theirs) = (ours.as_ref().err(), theirs.as_ref().err());
            let text = |failure: Option<&atoll_checkers::Failure>| {
                failure.map_or("right".to_owned(), ToString::to_string)
            };
            format!(
                "{name}, {level:?}\n--- ours\n{}\n--- theirs\n{}\n{history}",
                text(ours),
                text(theirs)
            )
        };
        assert_eq!(ours.is_ok(), theirs.is_ok(), "{}", disagree());
        if ours.is_err() {
            rejected.push(level);
        }
    }
    rejected
}

#[test]
fn both_accept_what_a_right_database_does() {
    for seed in 1000..1050 {
        let (history, _) = run(&Appends, None, SMALL, seed);
        assert_eq!(compare(&history, &format!("seed {seed}")), []);
    }
}

#[test]
fn both_reject_the_same_levels_of_what_a_broken_database_does() {
    for mutant in Mutant::ALL {
        let mut rejected = 0;
        for seed in 2000..2020 {
            let (history, _) = run(&Appends, Some(mutant), SMALL, seed);
            let levels = compare(&history, &format!("{mutant:?}, seed {seed}"));
            rejected += usize::from(!levels.is_empty());
        }
        // Lists never go, so there are hardly any gaps for phantoms.
        assert!(rejected > 0 || mutant == Mutant::Phantom, "{mutant:?} broke nothing");
    }
}

/// Changes one read of a history at random: lists are cut, grown by what others saw, reordered, or
/// get an element twice.
fn tamper(history: &History<Txn, Reads>, prng: &mut Prng) -> History<Txn, Reads> {
    let reads: Vec<usize> = (0..history.calls().len())
        .filter(|at| {
            let reads = history.calls()[*at].outcome.ok();
            reads.is_some_and(|reads| reads.0.iter().any(|list| list.len() > 1))
        })
        .collect();
    let Some(chosen) = prng.choose(&reads).copied() else { return history.clone() };
    let mut at = 0;
    history.expand(|call| {
        let mut outcome = call.outcome.clone();
        if at == chosen
            && let Outcome::Ok(reads) = &mut outcome
            && let Some(list) = reads.0.iter_mut().find(|list| list.len() > 1)
        {
            let place = prng.index(list.len());
            match prng.below(4) {
                0 => list.truncate(place),
                1 => list.swap(0, place),
                2 => {
                    list.remove(place);
                }
                _ => list.push(list[place]),
            }
        }
        at += 1;
        [(call.op.clone(), outcome)]
    })
}

#[test]
fn both_reject_the_same_levels_of_histories_that_were_tampered_with() {
    let mut kinds: Vec<Kind> = Vec::new();
    for seed in 0..150 {
        let (history, _) = run(&Appends, None, SMALL, seed);
        let tampered = tamper(&history, &mut Prng::new(seed));
        compare(&tampered, &format!("seed {seed}"));
        kinds.extend(list_append::analyze(&tampered).expect("well formed").kinds());
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert!(kinds.len() > 8, "{kinds:?}");
}
