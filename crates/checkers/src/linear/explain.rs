//! From "no order exists" to the few calls that show it.
//!
//! Every step makes the demand weaker in a way that a right history would survive, and is kept if
//! the remaining calls still have no order:
//!
//! 1. *Cut.* Prefixes of a linearizable history are linearizable, so the shortest prefix without an
//!    order is found by bisection. Its last reply is the one that cannot be explained.
//! 2. *Leave out.* Calls that change nothing are left out; so are all calls about a value together,
//!    those that wrote it and those that saw it.
//! 3. *Doubt.* The outcome of a call is taken for unknown: it may have happened or not, with any
//!    result. If there is still no order, its reply was not part of the problem.
//!
//! What is left is not the smallest set in the mathematical sense, but none of its calls can be
//! doubted on its own. Doubted calls whose values matter are shown with a question mark.
//!
//! The trials have a budget of their own, counted in calls; where it ends the explanation stays
//! longer than it could be.

use std::collections::BTreeMap;
use std::fmt::Write;

use atoll_encoding::hash::HashMap;

use super::search::{Found, Model, Seen, Token, relevant, search};
use crate::verdict::{Checked, Failure, Verdict, Violation};

/// Calls looked at by all trials together: a second or two.
const TRIAL_CALLS: u64 = 3_000_000;
/// Branch points of one trial.
const TRIAL_BUDGET: u64 = 20_000;
/// Lines of an explanation.
const LINES: usize = 40;

/// How calls are shown.
pub struct Names<'a> {
    /// What it is called if there is no order.
    pub anomaly: String,
    /// The index of each call in its history.
    pub calls: &'a [usize],
    /// Describes the call of an index.
    pub show: &'a dyn Fn(usize) -> String,
}

/// Searches for an order and explains why there is none.
///
/// # Errors
/// There is no order, or none was found within the budget.
pub fn judge<M: Model>(
    calls: &[Seen<'_, M::Op, M::Ret>],
    budget: u64,
    names: &Names<'_>,
) -> Verdict {
    match search::<M>(calls, budget) {
        Ok(Found::Order { explored, .. }) => {
            let calls = calls.iter().filter(|call| call.result.is_some()).count();
            Ok(Checked { calls, explored })
        }
        Ok(Found::OutOfBudget { explored }) => Err(Failure::Unknown { explored }),
        Ok(Found::None { .. }) => Err(Failure::Violation(explain::<M>(calls, names))),
        Err(impossible) => {
            let involved = impossible.calls.iter().map(|at| names.calls[*at]).collect::<Vec<_>>();
            let mut explanation = format!("  {}:\n", impossible.reason);
            for at in &involved {
                let _ = writeln!(explanation, "  {}", (names.show)(*at));
            }
            let anomaly = names.anomaly.clone();
            Err(Failure::Violation(Violation { anomaly, explanation, calls: involved }))
        }
    }
}

/// A call of a trial: its index, and whether its reply is believed.
type Kept = (usize, bool);

struct Trials<'a, 'h, M: Model> {
    calls: &'a [Seen<'h, M::Op, M::Ret>],
    left: u64,
}

impl<M: Model> Trials<'_, '_, M> {
    /// Returns whether it is certain that `kept` has no order either.
    fn still_fails(&mut self, kept: &[Kept]) -> bool {
        let price = kept.len() as u64 + 1;
        if self.left < price {
            return false;
        }
        self.left -= price;
        match search::<M>(&believed::<M>(self.calls, kept), TRIAL_BUDGET) {
            Ok(Found::None { explored }) => {
                self.left = self.left.saturating_sub(explored);
                true
            }
            Ok(Found::Order { explored, .. } | Found::OutOfBudget { explored }) => {
                self.left = self.left.saturating_sub(explored * 4);
                false
            }
            Err(_) => true,
        }
    }

    fn cut(&self, position: u32) -> Vec<Kept> {
        let calls = self.calls.iter().enumerate();
        let begun = calls.filter(|(_, call)| call.invoked <= position);
        begun.map(|(at, call)| (at, call.result.is_some() && call.returned <= position)).collect()
    }
}

/// Returns the kept calls, without the replies that are not believed.
fn believed<'h, M: Model>(
    calls: &[Seen<'h, M::Op, M::Ret>],
    kept: &[Kept],
) -> Vec<Seen<'h, M::Op, M::Ret>> {
    let doubt = |call| Seen { result: None, returned: u32::MAX, ..call };
    let kept = kept.iter().map(|(at, believed)| (calls[*at], *believed));
    kept.map(|(call, believed)| if believed { call } else { doubt(call) }).collect()
}

fn explain<M: Model>(calls: &[Seen<'_, M::Op, M::Ret>], names: &Names<'_>) -> Violation {
    let mut trials: Trials<'_, '_, M> = Trials { calls, left: TRIAL_CALLS };
    let mut kept: Vec<Kept> =
        calls.iter().enumerate().map(|(at, call)| (at, call.result.is_some())).collect();

    let last = shortest_prefix(&mut trials);
    if let Some(position) = last {
        kept = trials.cut(position);
    }

    let drop_all = |kept: &[Kept], out: &[usize]| -> Vec<Kept> {
        kept.iter().filter(|(at, _)| out.binary_search(at).is_err()).copied().collect()
    };
    for groups in [families::<M>(calls, &kept), pure::<M>(calls, &kept)] {
        reduce(&mut trials, &mut kept, &groups, &drop_all);
    }
    let doubt = |kept: &[Kept], out: &[usize]| -> Vec<Kept> {
        let doubted = |(at, believed): &Kept| (*at, *believed && out.binary_search(at).is_err());
        kept.iter().map(doubted).collect()
    };
    let believed: Vec<Vec<usize>> =
        kept.iter().filter(|(_, believed)| *believed).map(|(at, _)| vec![*at]).collect();
    reduce(&mut trials, &mut kept, &believed, &doubt);

    describe::<M>(calls, &kept, last, names)
}

/// Returns the position of the reply that ends the shortest prefix without an order, given that
/// the whole has none.
fn shortest_prefix<M: Model>(trials: &mut Trials<'_, '_, M>) -> Option<u32> {
    let with_reply = trials.calls.iter().filter(|call| call.result.is_some());
    let mut replies: Vec<u32> = with_reply.map(|call| call.returned).collect();
    replies.sort_unstable();
    // `high` replies have no order; of `low` replies that is not known.
    let (mut low, mut high) = (0, replies.len());
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let shorter = trials.cut(replies[middle - 1]);
        if trials.still_fails(&shorter) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high.checked_sub(1).map(|last| replies[last])
}

/// Returns the position of the reply that ends the shortest prefix without an order, as far as
/// bounded trials can tell, of calls that have none.
pub fn first_contradiction<M: Model>(calls: &[Seen<'_, M::Op, M::Ret>]) -> Option<u32> {
    shortest_prefix::<M>(&mut Trials { calls, left: TRIAL_CALLS })
}

/// Weakens the calls of a sorted list of indexes.
type Change<'a> = &'a dyn Fn(&[Kept], &[usize]) -> Vec<Kept>;

/// Applies `change` to as many `groups` as possible: first to many at once, then to fewer.
fn reduce<M: Model>(
    trials: &mut Trials<'_, '_, M>,
    kept: &mut Vec<Kept>,
    groups: &[Vec<usize>],
    change: Change<'_>,
) {
    let mut open: Vec<&Vec<usize>> = groups.iter().collect();
    let mut size = open.len();
    while size > 0 {
        let mut still_open = Vec::new();
        for chunk in open.chunks(size) {
            let mut out: Vec<usize> =
                chunk.iter().flat_map(|group| group.iter().copied()).collect();
            out.sort_unstable();
            let fewer = change(kept, &out);
            if trials.still_fails(&fewer) {
                *kept = fewer;
            } else {
                still_open.extend_from_slice(chunk);
            }
        }
        open = still_open;
        size = if size == 1 { 0 } else { size.div_ceil(2).min(open.len()) };
    }
}

/// Returns the calls that can only go together: connected by the values they make and see.
fn families<M: Model>(calls: &[Seen<'_, M::Op, M::Ret>], kept: &[Kept]) -> Vec<Vec<usize>> {
    let Ok((model, actions)) = M::compile(calls) else { return Vec::new() };
    if !model.values_are_separate() {
        return Vec::new();
    }
    let mut parent: Vec<usize> = (0..calls.len()).collect();
    fn root(parent: &mut [usize], mut at: usize) -> usize {
        while parent[at] != at {
            parent[at] = parent[parent[at]];
            at = parent[at];
        }
        at
    }
    let mut owner: HashMap<Token, usize> = HashMap::default();
    let mut tokens = Vec::new();
    for (at, _) in kept {
        tokens.clear();
        // What a call without result saw is not known.
        if calls[*at].result.is_some() {
            model.observes(&actions[*at], &mut |token| tokens.push(token));
        }
        model.makes(&actions[*at], &mut |token| tokens.push(token));
        for token in &tokens {
            let first = *owner.entry(*token).or_insert(*at);
            let (a, b) = (root(&mut parent, first), root(&mut parent, *at));
            parent[a] = b;
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, _) in kept {
        let root = root(&mut parent, *at);
        groups.entry(root).or_default().push(*at);
    }
    groups.into_values().collect()
}

/// Returns the calls that change nothing, each on its own.
fn pure<M: Model>(calls: &[Seen<'_, M::Op, M::Ret>], kept: &[Kept]) -> Vec<Vec<usize>> {
    let Ok((model, actions)) = M::compile(calls) else { return Vec::new() };
    let pure = kept.iter().filter(|(at, _)| model.is_pure(&actions[*at]));
    pure.map(|(at, _)| vec![*at]).collect()
}

fn describe<M: Model>(
    calls: &[Seen<'_, M::Op, M::Ret>],
    kept: &[Kept],
    last: Option<u32>,
    names: &Names<'_>,
) -> Violation {
    // Of the doubted calls, those that a search would try are part of the story.
    let relevant = relevant::<M>(&believed::<M>(calls, kept));
    let shown: Vec<&Kept> =
        kept.iter().zip(relevant).filter(|(_, relevant)| *relevant).map(|(kept, _)| kept).collect();
    let mut explanation = String::from("  no order of these calls gives all of their results:\n");
    for (at, believed) in shown.iter().take(LINES) {
        let mark = if *believed { ' ' } else { '?' };
        let end =
            if *believed && Some(calls[*at].returned) == last { "   <- this reply" } else { "" };
        let _ = writeln!(explanation, "  {mark} {}{end}", (names.show)(names.calls[*at]));
    }
    if shown.len() > LINES {
        let _ = writeln!(explanation, "    and {} more", shown.len() - LINES);
    }
    if shown.iter().any(|(_, believed)| !believed) {
        explanation.push_str("  (those with a question mark may have happened or not)\n");
    }
    let calls = shown.iter().map(|(at, _)| names.calls[*at]).collect();
    Violation { anomaly: names.anomaly.clone(), explanation, calls }
}
