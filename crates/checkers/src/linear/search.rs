//! The search for an order: Wing and Gong's tree search with Lowe's memory, over any object.
//!
//! A set of calls is linearizable if they can be put into one order that respects real time and in
//! which the sequential object, the [`Model`], gives every call the result it had. The search
//! builds that order from the front. At each point only calls may come next that were invoked
//! before every call that is still missing has returned:
//!
//! ```text
//!     done  |  a [------]                a, b and c may come next;
//!           |    b [---------]           d may not: a returned before it began
//!           |       c [---]
//!           |                d [----]
//! ```
//!
//! # What makes it fast
//! Deciding linearizability is NP-complete, but histories of databases are kind. In this order:
//!
//! 1. *Forced moves.* A call that cannot change anything, may come next and has the right result now
//!    is taken at once: if any order works, one with this call here works. Reads never branch.
//!    (A delete that finds nothing *now* is no such call: later it might be needed.)
//! 2. *Needed states.* Where values are unique, a state that is left does not come back. A write
//!    over a value which calls that are still missing have observed is refused at once, not when
//!    the reader comes up a thousand calls later. The model names observed values by [`Token`]s.
//! 3. *Memory.* A point of the search is the set of calls done and the state. If it was reached
//!    before it failed before. Both are kept as one 128-bit hash, updated per step.
//! 4. *Unknown outcomes* are tried last, only where they change the state, and of equal ones only
//!    the first. Those that cannot explain anything are dropped beforehand ([`Model::matters`]).
//!
//! Two different points with one hash would make the search miss an order and report a violation
//! that is none; with ten million points the chance is 10^-25. It never hides a violation.
//!
//! # Bounded effort
//! A branch point costs one unit of the budget. When it is spent the answer is "unknown".

use std::hash::Hash;

use atoll_encoding::hash::{HashMap, HashSet};

/// A call as the search sees it. Calls that failed are not shown to it.
#[derive(Debug)]
pub struct Seen<'h, O, R> {
    /// What was asked.
    pub op: &'h O,
    /// The result, if the call is known to have happened.
    pub result: Option<&'h R>,
    /// Who asked; calls of one process that overlap happen in their order.
    pub process: u32,
    /// The position of the invocation.
    pub invoked: u32,
    /// The position of the reply, `u32::MAX` without one.
    pub returned: u32,
}

impl<O, R> Clone for Seen<'_, O, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O, R> Copy for Seen<'_, O, R> {}

/// A state, or part of one, that a call can observe and that is left for good once it is left.
pub type Token = u32;

/// How many calls that are not yet in the order have observed a token.
#[derive(Clone, Debug, Default)]
pub struct Readers {
    left: Vec<u32>,
}

impl Readers {
    /// Returns how many calls are missing that observed `token`.
    pub fn left(&self, token: Token) -> u32 {
        self.left.get(token as usize).copied().unwrap_or(0)
    }
}

/// What an action did to a state.
#[derive(Clone, Copy, Debug)]
pub struct Step<U> {
    /// Takes it back.
    pub undo: U,
    /// Whether the state is another one than before.
    pub changed: bool,
}

/// Why some calls cannot be explained by any order at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible {
    /// The calls, as indexes into what was compiled.
    pub calls: Vec<usize>,
    /// The reason.
    pub reason: String,
}

/// A sequential object: what it does to its state, and which results that gives.
///
/// The model owns the current state; the search steps forward and takes steps back.
pub trait Model: Sized {
    /// What clients ask.
    type Op;
    /// What they are told.
    type Ret;
    /// A call made cheap to try: values as numbers, the result built in.
    type Action: Clone + Eq + Hash;
    /// Takes a step back.
    type Undo: Copy;

    /// Translates calls into actions, one each, and makes the object in its first state.
    ///
    /// # Errors
    /// Some results are possible in no order.
    fn compile(
        calls: &[Seen<'_, Self::Op, Self::Ret>],
    ) -> Result<(Self, Vec<Self::Action>), Impossible>;

    /// Calls `visit` with every token that the action's result shows.
    fn observes(&self, action: &Self::Action, visit: &mut dyn FnMut(Token));

    /// Calls `visit` with every token that the action may bring about.
    fn makes(&self, action: &Self::Action, visit: &mut dyn FnMut(Token));

    /// Returns whether an action of unknown outcome can explain anything that was observed.
    fn matters(&self, action: &Self::Action, readers: &Readers) -> bool;

    /// Returns whether an action changes no state that allows its result.
    fn is_pure(&self, action: &Self::Action) -> bool;

    /// Returns whether results depend only on observed tokens, never on what a state is not: then
    /// all calls about some tokens can be left out of an explanation together.
    fn values_are_separate(&self) -> bool;

    /// Carries out the action, unless its result is not the one it had or the state that it leaves
    /// is needed by `readers` (which do not count the action itself).
    fn step(&mut self, action: &Self::Action, readers: &Readers) -> Option<Step<Self::Undo>>;

    /// Takes the last step back.
    fn undo(&mut self, undo: Self::Undo);

    /// Returns a hash of the current state: equal for equal states, well mixed.
    fn fingerprint(&self) -> u128;
}

/// How a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An order exists; these are the calls in it.
    Order {
        /// Indexes of calls.
        order: Vec<usize>,
        /// Branch points visited.
        explored: u64,
    },
    /// No order exists.
    None {
        /// Branch points visited.
        explored: u64,
    },
    /// The budget is spent.
    OutOfBudget {
        /// Branch points visited.
        explored: u64,
    },
}

/// Searches for an order of `calls`, which are sorted by invocation.
///
/// # Errors
/// The model knows of results that no order can give.
pub fn search<M: Model>(
    calls: &[Seen<'_, M::Op, M::Ret>],
    budget: u64,
) -> Result<Found, Impossible> {
    debug_assert!(calls.windows(2).all(|w| w[0].invoked <= w[1].invoked), "calls are sorted");
    let (model, actions) = M::compile(calls)?;
    let plan = Plan::new(&model, calls, &actions);
    Ok(Searcher::new(model, plan, &actions).run(budget))
}

/// Returns for each call whether a search would use it: it has a result, or can explain one.
pub fn relevant<M: Model>(calls: &[Seen<'_, M::Op, M::Ret>]) -> Vec<bool> {
    let mut relevant: Vec<bool> = calls.iter().map(|call| call.result.is_some()).collect();
    if let Ok((model, actions)) = M::compile(calls) {
        for at in Plan::new(&model, calls, &actions).unknown {
            relevant[at as usize] = true;
        }
    }
    relevant
}

/// What does not change during a search.
struct Plan {
    invoked: Vec<u32>,
    /// Not after the reply of any later call of the process.
    deadline: Vec<u32>,
    definite: Vec<bool>,
    pure: Vec<bool>,
    /// A call of the same process that must come first although both overlap.
    before: Vec<Option<u32>>,
    /// Equal numbers for equal actions.
    class: Vec<u32>,
    classes: usize,
    /// Tokens observed by call `i`: `tokens[starts[i]..starts[i + 1]]`; none for unknown outcomes.
    tokens: Vec<Token>,
    starts: Vec<u32>,
    /// Calls with a result, and those without that matter; in the order of invocation.
    known: Vec<u32>,
    unknown: Vec<u32>,
    readers: Readers,
}

impl Plan {
    fn new<M: Model>(model: &M, calls: &[Seen<'_, M::Op, M::Ret>], actions: &[M::Action]) -> Plan {
        let definite: Vec<bool> = calls.iter().map(|call| call.result.is_some()).collect();
        let mut deadline: Vec<u32> = calls.iter().map(|call| call.returned).collect();
        let mut before = vec![None; calls.len()];
        // Replies of a process come in the order of its calls, so a call has happened before any
        // later reply.
        let mut earliest: HashMap<u32, u32> = HashMap::default();
        for (at, call) in calls.iter().enumerate().rev().filter(|(at, _)| definite[*at]) {
            let first = earliest.entry(call.process).or_insert(u32::MAX);
            *first = call.returned.min(*first);
            deadline[at] = *first;
        }
        let mut last: HashMap<u32, u32> = HashMap::default();
        for (at, call) in calls.iter().enumerate() {
            before[at] = last.get(&call.process).copied();
            if definite[at] {
                last.insert(call.process, at as u32);
            }
        }

        let mut readers = Readers::default();
        let mut tokens = Vec::new();
        let mut starts = vec![0];
        for (action, definite) in actions.iter().zip(&definite) {
            if *definite {
                model.observes(action, &mut |token| tokens.push(token));
            }
            starts.push(tokens.len() as u32);
        }
        for token in &tokens {
            let slot = *token as usize;
            if readers.left.len() <= slot {
                readers.left.resize(slot + 1, 0);
            }
            readers.left[slot] += 1;
        }

        let mut numbers: HashMap<&M::Action, u32> = HashMap::default();
        let class = actions.iter().map(|action| {
            let next = numbers.len() as u32;
            *numbers.entry(action).or_insert(next)
        });
        let class = class.collect();
        let classes = numbers.len();
        let indexes = || 0..calls.len() as u32;
        let known = indexes().filter(|at| definite[*at as usize]).collect();
        let matters = |at: &u32| {
            let at = *at as usize;
            !definite[at] && model.matters(&actions[at], &readers)
        };
        let unknown = indexes().filter(matters).collect();
        let invoked = calls.iter().map(|call| call.invoked).collect();
        Plan {
            invoked,
            deadline,
            definite,
            pure: actions.iter().map(|action| model.is_pure(action)).collect(),
            before,
            class,
            classes,
            tokens,
            starts,
            known,
            unknown,
            readers,
        }
    }

    fn tokens(&self, call: usize) -> &[Token] {
        &self.tokens[self.starts[call] as usize..self.starts[call + 1] as usize]
    }
}

/// A doubly linked list of calls in which a removed call remembers its neighbours, so that removals
/// can be taken back in reverse order.
struct Links {
    next: Vec<u32>,
    prev: Vec<u32>,
}

impl Links {
    /// The sentinel has the number `len`.
    fn new(len: usize, members: &[u32]) -> Links {
        let sentinel = len as u32;
        let mut links = Links { next: vec![sentinel; len + 1], prev: vec![sentinel; len + 1] };
        let mut last = sentinel;
        for &at in members {
            links.next[last as usize] = at;
            links.prev[at as usize] = last;
            last = at;
        }
        links.next[last as usize] = sentinel;
        links.prev[len] = last;
        links
    }

    fn first(&self) -> u32 {
        self.next[self.next.len() - 1]
    }

    fn remove(&mut self, at: usize) {
        let (prev, next) = (self.prev[at], self.next[at]);
        self.next[prev as usize] = next;
        self.prev[next as usize] = prev;
    }

    fn put_back(&mut self, at: usize) {
        let (prev, next) = (self.prev[at], self.next[at]);
        self.next[prev as usize] = at as u32;
        self.prev[next as usize] = at as u32;
    }
}

struct Searcher<'a, M: Model> {
    model: M,
    plan: Plan,
    actions: &'a [M::Action],
    links: Links,
    placed: Vec<bool>,
    missing: usize,
    readers: Readers,
    /// Hash of the set of placed calls.
    set: u128,
    /// Placed calls in their order.
    path: Vec<(u32, M::Undo)>,
    branches: Vec<Branch>,
    /// Calls that may come next, of all branches, the last branch's last.
    candidates: Vec<u32>,
    failed: HashSet<Fingerprint>,
    /// By class: the scan that has seen it.
    stamps: Vec<u64>,
    scan: u64,
}

/// A point with more than one way to go on.
struct Branch {
    path_len: usize,
    start: usize,
    next: usize,
}

/// Hashed already.
#[derive(PartialEq, Eq)]
struct Fingerprint(u128);

impl Hash for Fingerprint {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.0 as u64);
    }
}

impl<'a, M: Model> Searcher<'a, M> {
    fn new(model: M, plan: Plan, actions: &'a [M::Action]) -> Searcher<'a, M> {
        let len = actions.len();
        let mut members: Vec<u32> = plan.known.clone();
        members.sort_unstable();
        Searcher {
            links: Links::new(len, &members),
            placed: vec![false; len],
            missing: members.len(),
            readers: plan.readers.clone(),
            set: 0,
            path: Vec::with_capacity(len),
            branches: Vec::new(),
            candidates: Vec::new(),
            failed: HashSet::default(),
            stamps: vec![0; plan.classes],
            scan: 0,
            model,
            plan,
            actions,
        }
    }

    fn run(mut self, budget: u64) -> Found {
        let mut explored = 0;
        loop {
            while self.take_forced() {}
            if self.missing == 0 {
                let order = self.path.iter().map(|(at, _)| *at as usize).collect();
                return Found::Order { order, explored };
            }
            if self.failed.insert(Fingerprint(self.set ^ self.model.fingerprint())) {
                explored += 1;
                if explored > budget {
                    return Found::OutOfBudget { explored };
                }
                self.open_branch();
            }
            if !self.take_next() {
                return Found::None { explored };
            }
        }
    }

    /// Places a call that can be placed without thinking; returns whether there was one.
    fn take_forced(&mut self) -> bool {
        let sentinel = self.actions.len() as u32;
        let mut bound = u32::MAX;
        let mut at = self.links.first();
        while at != sentinel && self.plan.invoked[at as usize] < bound {
            let call = at as usize;
            bound = bound.min(self.plan.deadline[call]);
            if self.plan.pure[call]
                && self.comes_in_turn(call)
                && let Some(step) = self.try_place(call)
            {
                debug_assert!(!step.changed, "a pure action changes nothing");
                self.place(call, step.undo);
                return true;
            }
            at = self.links.next[call];
        }
        false
    }

    /// Opens a branch point with the calls that may come next: those with a result in the order of
    /// their replies, then those without.
    fn open_branch(&mut self) {
        let sentinel = self.actions.len() as u32;
        let start = self.candidates.len();
        let mut bound = u32::MAX;
        let mut at = self.links.first();
        while at != sentinel && self.plan.invoked[at as usize] < bound {
            let call = at as usize;
            bound = bound.min(self.plan.deadline[call]);
            // A pure call that could be placed here was.
            if !self.plan.pure[call] && self.comes_in_turn(call) {
                self.candidates.push(at);
            }
            at = self.links.next[call];
        }
        let deadline = &self.plan.deadline;
        self.candidates[start..].sort_by_key(|at| deadline[*at as usize]);
        self.scan += 1;
        for position in 0..self.plan.unknown.len() {
            let at = self.plan.unknown[position];
            let call = at as usize;
            if self.plan.invoked[call] >= bound {
                break;
            }
            let stamp = &mut self.stamps[self.plan.class[call] as usize];
            if !self.placed[call] && *stamp != self.scan && self.comes_in_turn(call) {
                self.stamps[self.plan.class[call] as usize] = self.scan;
                self.candidates.push(at);
            }
        }
        self.branches.push(Branch { path_len: self.path.len(), start, next: start });
    }

    /// Goes on with the next way of the last branch that has one; returns false if none has.
    fn take_next(&mut self) -> bool {
        while let Some(branch) = self.branches.last_mut() {
            let (path_len, start, next) = (branch.path_len, branch.start, branch.next);
            branch.next += 1;
            self.rewind(path_len);
            let Some(&at) = self.candidates.get(next) else {
                self.candidates.truncate(start);
                self.branches.pop();
                continue;
            };
            let call = at as usize;
            if let Some(step) = self.try_place(call) {
                // An unknown outcome that changes nothing explains nothing.
                if step.changed || self.plan.definite[call] {
                    self.place(call, step.undo);
                    return true;
                }
                self.model.undo(step.undo);
                self.count_readers(call, true);
            }
        }
        false
    }

    fn comes_in_turn(&self, call: usize) -> bool {
        self.plan.before[call].is_none_or(|before| self.placed[before as usize])
    }

    /// Steps the model; the caller either places the call or takes the step back.
    fn try_place(&mut self, call: usize) -> Option<Step<M::Undo>> {
        self.count_readers(call, false);
        let step = self.model.step(&self.actions[call], &self.readers);
        if step.is_none() {
            self.count_readers(call, true);
        }
        step
    }

    fn count_readers(&mut self, call: usize, missing: bool) {
        for &token in self.plan.tokens(call) {
            let left = &mut self.readers.left[token as usize];
            *left = if missing { *left + 1 } else { *left - 1 };
        }
    }

    fn place(&mut self, call: usize, undo: M::Undo) {
        self.path.push((call as u32, undo));
        self.placed[call] = true;
        self.set ^= spread(call as u64);
        if self.plan.definite[call] {
            self.links.remove(call);
            self.missing -= 1;
        }
    }

    fn rewind(&mut self, path_len: usize) {
        while self.path.len() > path_len {
            let Some((at, undo)) = self.path.pop() else { return };
            let call = at as usize;
            self.model.undo(undo);
            self.count_readers(call, true);
            self.placed[call] = false;
            self.set ^= spread(call as u64);
            if self.plan.definite[call] {
                self.links.put_back(call);
                self.missing += 1;
            }
        }
    }
}

/// Spreads a small number over 128 bits, so that XOR of several hashes a set.
pub fn spread(n: u64) -> u128 {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let high = mix(n.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let low = mix(n.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ 0x5851_f42d_4c95_7f2d);
    u128::from(high) << 64 | u128::from(low)
}

/// Spreads a number that stands for a state: another function than [`spread`], so that states and
/// sets do not cancel out.
pub fn spread_state(n: u64) -> u128 {
    spread(n).rotate_left(64)
}
