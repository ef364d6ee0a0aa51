//! The anomalies by hand, and the search against trying every order.

use super::*;
use crate::history::{Process, Recorder};
use RegisterOp::{Add, CompareAndSet, Delete, Get, GetSet, Set, SetIfAbsent};
use RegisterRet::{Applied, Done, Number, Value};
use atoll_env::random::Prng;
use search::{Found, search};

/// A history drawn with one row per call: process, start, end (negative: unknown), operation,
/// result.
type Row<O, R> = (u32, u32, i32, O, Option<R>);

fn calls<O, R>(rows: &[Row<O, R>]) -> Vec<Seen<'_, O, R>> {
    let mut calls: Vec<Seen<'_, O, R>> = rows
        .iter()
        .map(|(process, invoked, returned, op, result)| Seen {
            op,
            result: result.as_ref(),
            process: *process,
            invoked: *invoked,
            returned: u32::try_from(*returned).unwrap_or(u32::MAX),
        })
        .collect();
    calls.sort_by_key(|call| call.invoked);
    calls
}

fn verdict<M: Model>(rows: &[Row<M::Op, M::Ret>]) -> Verdict
where
    M::Op: fmt::Display,
    M::Ret: fmt::Debug,
{
    let calls = calls(rows);
    let names = Names {
        anomaly: "not linearizable".into(),
        calls: &(0..calls.len()).collect::<Vec<_>>(),
        show: &|at| {
            let call = &calls[at];
            format!("{} {:?} {}", call.invoked, call.result, call.op)
        },
    };
    judge::<M>(&calls, BUDGET, &names)
}

fn register(rows: &[Row<RegisterOp, RegisterRet>]) -> Verdict {
    verdict::<Register>(rows)
}

fn involved(verdict: Verdict) -> Vec<usize> {
    verdict.expect_err("not linearizable").violation().expect("a violation").calls.clone()
}

#[test]
fn a_read_may_see_a_write_that_is_under_way_or_not() {
    for seen in [None, Some(1)] {
        let rows = [(0, 0, 9, Set(1), Some(Done)), (1, 1, 2, Get, Some(Value(seen)))];
        assert!(register(&rows).is_ok());
    }
}

#[test]
fn a_stale_read_is_a_violation_of_three_calls() {
    let rows = [
        (0, 0, 1, Set(1), Some(Done)),
        (0, 2, 3, Set(2), Some(Done)),
        (1, 4, 5, Get, Some(Value(Some(2)))),
        (2, 6, 7, Set(3), Some(Done)),
        (1, 8, 9, Get, Some(Value(Some(1)))),
        (0, 10, 11, Get, Some(Value(Some(3)))),
    ];
    let calls = involved(register(&rows));
    // The first value, one that replaced it, and the late read of the first.
    assert_eq!(calls.len(), 3);
    assert!(calls.contains(&0) && calls.contains(&4), "{calls:?}");
}

#[test]
fn two_reads_under_way_with_a_write_cannot_go_back() {
    let rows = [
        (0, 0, 9, Set(1), Some(Done)),
        (1, 1, 2, Get, Some(Value(Some(1)))),
        (2, 3, 4, Get, Some(Value(None))),
    ];
    assert_eq!(involved(register(&rows)), [0, 1, 2]);
}

#[test]
fn a_lost_acknowledged_write_is_a_violation() {
    let rows = [(0, 0, 1, Set(1), Some(Done)), (1, 2, 3, Get, Some(Value(None)))];
    assert_eq!(involved(register(&rows)), [0, 1]);
}

#[test]
fn an_unknown_write_may_happen_late_or_never_but_only_once() {
    let unknown = (0, 0, -1, Set(1), None);
    let get = |at, value| (1, at, at as i32 + 1, Get, Some(Value(value)));
    assert!(register(&[unknown, get(1, None), get(3, None)]).is_ok());
    assert!(register(&[unknown, get(1, None), get(3, Some(1))]).is_ok());
    assert!(register(&[unknown, get(1, Some(1)), get(3, None)]).is_err());
    let set = (2, 3, 4, Set(2), Some(Done));
    assert!(register(&[unknown, get(1, Some(1)), set, get(5, Some(1))]).is_err());
    assert!(register(&[unknown, get(1, None), set, get(5, Some(1))]).is_ok());
}

#[test]
fn a_value_from_nowhere_is_a_violation() {
    assert_eq!(involved(register(&[(0, 0, 1, Get, Some(Value(Some(9))))])), [0]);
}

#[test]
fn lost_updates_show_in_compare_and_set_and_in_increments() {
    let cas = |p, new| (p, 2, 9, CompareAndSet { expected: Some(1), new }, Some(Applied(true)));
    let set = (0, 0, 1, Set(1), Some(Done));
    assert!(register(&[set, cas(1, 2)]).is_ok());
    assert!(register(&[set, cas(1, 2), cas(2, 3)]).is_err());
    let add = |p, sum| (p, 2, 9, Add(1), Some(Number(sum)));
    assert!(register(&[set, add(1, 2), add(2, 3)]).is_ok());
    assert!(register(&[set, add(1, 2), add(2, 2)]).is_err());
}

#[test]
fn conditional_writes_tell_what_was_not_there() {
    let rows = |deleted, created, swapped| {
        [
            (0, 0, 1, SetIfAbsent(1), Some(Applied(true))),
            (0, 2, 3, SetIfAbsent(2), Some(Applied(created))),
            (0, 4, 5, GetSet(3), Some(Value(swapped))),
            (0, 6, 7, Delete, Some(Applied(deleted))),
            (0, 8, 9, Delete, Some(Applied(false))),
        ]
    };
    assert!(register(&rows(true, false, Some(1))).is_ok());
    assert!(register(&rows(false, false, Some(1))).is_err());
    assert!(register(&rows(true, true, Some(1))).is_err());
    assert!(register(&rows(true, false, Some(2))).is_err());
}

#[test]
fn a_result_that_does_not_fit_its_operation_is_a_violation() {
    assert!(register(&[(0, 0, 1, Get, Some(Done))]).is_err());
}

#[test]
fn commands_of_a_pipeline_happen_in_their_order() {
    let pipeline = |first, second| {
        [
            (0, 0, 8, Set(1), Some(Done)),
            (first, 1, 9, Set(2), Some(Done)),
            (second, 10, 11, Get, Some(Value(Some(1)))),
        ]
    };
    assert!(register(&pipeline(1, 2)).is_ok(), "two connections");
    assert!(register(&pipeline(0, 2)).is_err(), "one connection");
}

#[test]
fn a_duplicate_increment_is_a_violation_of_a_counter() {
    use CounterOp::{Add, Get};
    let rows =
        |read| [(0, 0, 1, Add(1), Some(1)), (1, 2, 3, Add(2), Some(3)), (0, 4, 5, Get, Some(read))];
    assert!(verdict::<Counter>(&rows(3)).is_ok());
    assert!(verdict::<Counter>(&rows(4)).is_err());
    assert!(verdict::<Counter>(&rows(2)).is_err());
}

#[test]
fn eight_hundred_increments_in_flight_are_ordered_by_their_answers() {
    let rows: Vec<_> =
        (0..800).map(|n| (n, n, 10_000, CounterOp::Add(1), Some(800 - i64::from(n)))).collect();
    assert!(verdict::<Counter>(&rows).is_ok());
    let mut twice = rows;
    twice[7].4 = Some(5);
    assert!(verdict::<Counter>(&twice).is_err());
}

#[test]
fn lists_must_be_prefixes_of_each_other_and_hold_what_was_appended_before() {
    use ListOp::{Append, Read};
    use ListRet::{Length, Values};
    let rows = |first: &[u64], second: &[u64]| {
        [
            (0, 0, 1, Append(7), Some(Length(1))),
            (0, 2, 9, Append(8), Some(ListRet::Done)),
            (1, 3, 4, Read, Some(Values(first.to_vec()))),
            (1, 10, 11, Read, Some(Values(second.to_vec()))),
        ]
    };
    let list = |first: &[u64], second: &[u64]| verdict::<List>(&rows(first, second));
    assert!(list(&[7], &[7, 8]).is_ok());
    assert!(list(&[7, 8], &[7, 8]).is_ok());
    assert!(list(&[7, 8], &[8, 7]).is_err(), "another order");
    assert!(list(&[7], &[7]).is_err(), "lost");
    assert!(list(&[7], &[7, 8, 8]).is_err(), "twice");
    assert!(list(&[8], &[8, 7]).is_err(), "against its length");
}

#[test]
fn a_spent_budget_is_a_failure() {
    // Blind writes all at once and a read of none of them.
    let mut rows: Vec<_> = (0..14).map(|n| (n, n, 100, Set(i64::from(n)), Some(Done))).collect();
    rows.push((20, 101, 102, Get, Some(Value(Some(99)))));
    rows.push((21, 0, -1, Set(99), None));
    rows.push((22, 103, 104, Get, Some(Value(Some(98)))));
    let calls = calls(&rows);
    assert!(matches!(search::<Register>(&calls, 10), Ok(Found::OutOfBudget { explored: 11 })));
}

#[test]
fn keys_are_judged_one_by_one() {
    let mut recorder = Recorder::new();
    let process: Process = recorder.process();
    for (key, seen) in [("a", 1), ("b", 2), ("c", 3)] {
        let set = recorder.invoke(process, 0, Keyed { key, op: Set(seen) });
        recorder.ok(set, 0, Done);
        let lost = recorder.invoke(process, 0, Keyed { key, op: Set(100) });
        recorder.fail(lost, 0);
        let get = recorder.invoke(process, 0, Keyed { key, op: Get });
        recorder.ok(get, 0, Value(Some(seen.min(2))));
    }
    let failure = check::<Register, _>(&recorder.finish(0), BUDGET).expect_err("c is wrong");
    let text = failure.to_string();
    assert!(text.starts_with("not linearizable: c\n"), "{text}");
    assert!(text.contains("p0 [16..17] c: get -> 2   <- this reply"), "{text}");
}

/// Tries every order of every choice of unknown calls.
fn brute_force<M: Model>(calls: &[Seen<'_, M::Op, M::Ret>]) -> bool {
    fn extend<M: Model>(
        model: &mut M,
        actions: &[M::Action],
        calls: &[Seen<'_, M::Op, M::Ret>],
        placed: &mut Vec<bool>,
    ) -> bool {
        if calls.iter().zip(&*placed).all(|(call, placed)| *placed || call.result.is_none()) {
            return true;
        }
        for at in 0..calls.len() {
            let may = !placed[at]
                && (0..calls.len()).all(|other| {
                    let [a, b] = [&calls[other], &calls[at]];
                    let first = a.returned < b.invoked || (a.process == b.process && other < at);
                    placed[other] || other == at || a.result.is_none() || !first
                });
            // No readers: the model must not refuse what only a clever search refuses.
            if may && let Some(step) = model.step(&actions[at], &search::Readers::default()) {
                placed[at] = true;
                if extend(model, actions, calls, placed) {
                    return true;
                }
                placed[at] = false;
                model.undo(step.undo);
            }
        }
        false
    }
    let Ok((mut model, actions)) = M::compile(calls) else { return false };
    extend(&mut model, &actions, calls, &mut vec![false; calls.len()])
}

/// Draws small histories with few values and random results, and compares.
fn compare<M: Model>(name: &str, draw: impl Fn(&mut Prng) -> (M::Op, M::Ret))
where
    M::Op: fmt::Display,
    M::Ret: fmt::Debug,
{
    let mut linearizable = 0;
    for seed in 0..10_000 {
        let mut prng = Prng::new(seed);
        let len = 2 + prng.below(6) as u32;
        let mut rows = Vec::new();
        let mut free = [0u32; 4];
        for at in 0..len {
            let process = prng.below(4);
            // Invocations at even positions, replies at odd ones: no two events at once.
            let invoked = free[process as usize].max(at * 10);
            let returned = invoked + 1 + 2 * prng.below(20) as u32;
            let (op, result) = draw(&mut prng);
            if prng.chance(0.2) {
                rows.push((100 + at, invoked, -1, op, None));
            } else {
                free[process as usize] = returned + 1;
                rows.push((process as u32, invoked, returned as i32, op, Some(result)));
            }
        }
        let calls = calls(&rows);
        let ours = matches!(search::<M>(&calls, 1_000_000), Ok(Found::Order { .. }));
        let text = || {
            let line = |c: &Seen<'_, M::Op, M::Ret>| {
                format!(
                    "p{} [{}..{}] {} -> {:?}\n",
                    c.process, c.invoked, c.returned, c.op, c.result
                )
            };
            calls.iter().map(line).collect::<String>()
        };
        assert_eq!(ours, brute_force::<M>(&calls), "{name}, seed {seed}\n{}", text());
        linearizable += u32::from(ours);
    }
    assert!((300..9_700).contains(&linearizable), "{name}: {linearizable} are linearizable");
}

#[test]
fn the_search_of_registers_agrees_with_trying_every_order() {
    compare::<Register>("few values", |prng| {
        let value = prng.below(3) as i64;
        let seen = (value > 0).then_some(value);
        match prng.below(8) {
            0..3 => (Get, Value(seen)),
            3 => (Set(value), Done),
            4 => (Delete, if prng.chance(0.5) { Done } else { Applied(value > 0) }),
            5 => {
                let op = CompareAndSet { expected: seen, new: prng.below(3) as i64 };
                (op, Applied(prng.chance(0.5)))
            }
            6 => (GetSet(prng.below(3) as i64), Value(seen)),
            _ => (SetIfAbsent(value), Applied(prng.chance(0.5))),
        }
    });
    compare::<Register>("unique values", |prng| {
        let value = prng.below(8) as i64;
        if prng.chance(0.5) {
            (Set(value), Done)
        } else {
            (Get, Value((value > 0).then_some(value)))
        }
    });
    compare::<Register>("sums", |prng| {
        let value = prng.below(4) as i64;
        match prng.below(4) {
            0 => (Get, Value((value > 0).then_some(value))),
            1 => (Delete, Done),
            2 => (Set(value), Done),
            _ => (Add(1), Number(value)),
        }
    });
}

#[test]
fn the_search_of_counters_and_lists_agrees_with_trying_every_order() {
    compare::<Counter>("counter", |prng| {
        let result = prng.below(4) as i64;
        let op = if prng.chance(0.5) { CounterOp::Get } else { CounterOp::Add(1) };
        (op, result)
    });
    compare::<List>("list", |prng| {
        let length = prng.below(4) as usize;
        match prng.below(5) {
            0..2 => (ListOp::Append(prng.below(3)), ListRet::Done),
            2 => (ListOp::Append(prng.below(3)), ListRet::Length(length)),
            _ => (ListOp::Read, ListRet::Values((0..3).take(length).collect())),
        }
    });
}
