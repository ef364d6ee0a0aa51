//! A tiny database in memory with clients that interleave, and ways to break it.
//!
//! An operation takes effect as a whole at one moment between invocation and reply, so histories
//! are strictly serializable. Some fail (no effect), some end unknown (effect now, later or never).
//! A [`Mutant`] does a share of the operations wrong, each as a real database would.

use std::collections::BTreeMap;
use std::fmt;

use atoll_checkers::history::{CallId, History, Process, Recorder};
use atoll_env::random::Prng;

/// All keys with their values: a list, or a register of one value.
pub type State = BTreeMap<u64, Vec<u64>>;

/// What clients do.
pub trait Workload {
    type Op: Clone + fmt::Display;
    type Ret: Clone + fmt::Display;
    /// Draws an operation; `unique` is a number that no other has.
    fn draw(&self, prng: &mut Prng, unique: u64) -> Self::Op;
    /// Carries it out.
    fn apply(&self, state: &mut State, op: &Self::Op) -> Self::Ret;
    /// The keys that it may read and that it may write.
    fn keys(&self, op: &Self::Op) -> (Vec<u64>, Vec<u64>);
    /// The state in the beginning.
    fn start(&self) -> State {
        State::new()
    }
}

/// A way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A reader sees a state from before its invocation.
    StaleRead,
    /// What is written is computed from an old state and overwrites what happened since.
    LostUpdate,
    /// Reads come from a snapshot of the invocation; only written keys are validated.
    WriteSkew,
    /// As write skew, but keys that were there are validated, only gaps are not.
    Phantom,
    /// A reader sees some keys of the invocation and some of now.
    TornRead,
    /// An operation fails after others could see it.
    DirtyRead,
    /// An acknowledged operation has no effect.
    LostAck,
    /// An operation happens again, later.
    DuplicateApply,
}

impl Mutant {
    pub const ALL: [Mutant; 8] = [
        Mutant::StaleRead,
        Mutant::LostUpdate,
        Mutant::WriteSkew,
        Mutant::Phantom,
        Mutant::TornRead,
        Mutant::DirtyRead,
        Mutant::LostAck,
        Mutant::DuplicateApply,
    ];
}

/// The size of a run.
#[derive(Clone, Copy)]
pub struct Size {
    pub clients: usize,
    pub calls: usize,
    pub info: f64,
    pub fail: f64,
}

/// A client between two of its steps.
enum Client<O, R> {
    Idle,
    /// Invoked when there were so many states.
    Asked(CallId, O, usize),
    /// Executed: to be answered; how to roll back, if it is going to fail.
    Done(CallId, Answer<R>, Option<State>),
}

enum Answer<R> {
    Ok(R),
    Fail,
    Info,
}

type Clients<W> = Vec<(Process, Client<<W as Workload>::Op, <W as Workload>::Ret>)>;

struct World<'w, W: Workload> {
    workload: &'w W,
    mutant: Option<Mutant>,
    prng: Prng,
    /// All states there were; the last is now.
    states: Vec<State>,
    late: Vec<W::Op>,
}

/// Runs the clients of a seed; returns what they saw and the last state.
pub fn run<W: Workload>(
    workload: &W,
    mutant: Option<Mutant>,
    size: Size,
    seed: u64,
) -> (History<W::Op, W::Ret>, State) {
    let mut world = World {
        workload,
        mutant,
        prng: Prng::new(seed),
        states: vec![workload.start()],
        late: Vec::new(),
    };
    let mut recorder = Recorder::new();
    let mut clients: Clients<W> =
        (0..size.clients).map(|_| (recorder.process(), Client::Idle)).collect();
    let (mut invoked, mut now) = (0, 0);
    while invoked < size.calls || recorder.open() > 0 {
        now += 1 + world.prng.below(1000);
        if world.prng.chance(0.02)
            && let Some(op) = world.late.pop()
        {
            world.execute(&op);
        }
        let place = world.prng.index(clients.len());
        let (process, client) = &mut clients[place];
        match std::mem::replace(client, Client::Idle) {
            Client::Idle => {
                if invoked < size.calls {
                    invoked += 1;
                    let op = workload.draw(&mut world.prng, invoked as u64);
                    let call = recorder.invoke(*process, now, op.clone());
                    *client = Client::Asked(call, op, world.states.len() - 1);
                }
            }
            Client::Asked(call, op, begun) => {
                let (answer, undo) = if world.prng.chance(size.info) {
                    match world.prng.below(3) {
                        0 => {
                            world.execute(&op);
                        }
                        1 => world.late.push(op),
                        _ => {}
                    }
                    (Answer::Info, None)
                } else if world.prng.chance(size.fail) {
                    let dirty = mutant == Some(Mutant::DirtyRead);
                    (Answer::Fail, dirty.then(|| world.execute_dirty(&op)))
                } else {
                    (Answer::Ok(world.answer(&op, begun)), None)
                };
                *client = Client::Done(call, answer, undo);
            }
            Client::Done(call, answer, undo) => {
                if let Some(before) = undo {
                    world.roll_back(&before);
                }
                match answer {
                    Answer::Ok(ret) => recorder.ok(call, now, ret),
                    Answer::Fail => recorder.fail(call, now),
                    Answer::Info => {
                        recorder.info(call, now);
                        *process = recorder.process();
                    }
                }
            }
        }
    }
    let last = world.states.pop().expect("there is a last state");
    (recorder.finish(now), last)
}

impl<W: Workload> World<'_, W> {
    fn now(&self) -> &State {
        self.states.last().expect("there is a state")
    }

    fn execute(&mut self, op: &W::Op) -> W::Ret {
        let mut state = self.now().clone();
        let ret = self.workload.apply(&mut state, op);
        self.states.push(state);
        ret
    }

    /// Answers rightly, or wrongly for a share of the operations to which the mutant applies.
    fn answer(&mut self, op: &W::Op, begun: usize) -> W::Ret {
        let wrong = self.prng.chance(0.3);
        let Some(mutant) = self.mutant.filter(|_| wrong) else { return self.execute(op) };
        let (reads, writes) = self.workload.keys(op);
        let old = |prng: &mut Prng| begun.saturating_sub(1 + prng.index(6));
        match mutant {
            Mutant::StaleRead if writes.is_empty() => {
                let mut state = self.states[old(&mut self.prng)].clone();
                self.workload.apply(&mut state, op)
            }
            Mutant::LostUpdate if !writes.is_empty() => {
                let mut stale = self.states[old(&mut self.prng)].clone();
                let ret = self.workload.apply(&mut stale, op);
                let mut state = self.now().clone();
                for key in writes {
                    copy(&stale, &mut state, key);
                }
                self.states.push(state);
                ret
            }
            Mutant::WriteSkew | Mutant::Phantom if !writes.is_empty() => {
                let snapshot = &self.states[begun];
                let same = |key: &u64| snapshot.get(key) == self.now().get(key);
                let guarded = reads.iter().filter(|key| snapshot.contains_key(key));
                let guarded = mutant == Mutant::WriteSkew || guarded.copied().all(|k| same(&k));
                if !guarded || !writes.iter().all(same) {
                    return self.execute(op);
                }
                let ret = self.workload.apply(&mut snapshot.clone(), op);
                self.execute(op);
                ret
            }
            Mutant::TornRead if writes.is_empty() => {
                let mut state = self.now().clone();
                for key in reads.iter().filter(|key| **key % 2 == 1) {
                    copy(&self.states[begun], &mut state, *key);
                }
                self.workload.apply(&mut state, op)
            }
            Mutant::LostAck if !writes.is_empty() => {
                let mut state = self.now().clone();
                self.workload.apply(&mut state, op)
            }
            Mutant::DuplicateApply if !writes.is_empty() => {
                self.late.push(op.clone());
                self.execute(op)
            }
            _ => self.execute(op),
        }
    }

    /// Carries out what will fail; returns what its keys were before.
    fn execute_dirty(&mut self, op: &W::Op) -> State {
        let mut before = State::new();
        for key in self.workload.keys(op).1 {
            before.insert(key, self.now().get(&key).cloned().unwrap_or_default());
        }
        self.execute(op);
        before
    }

    fn roll_back(&mut self, before: &State) {
        let mut state = self.now().clone();
        for (key, values) in before {
            if values.is_empty() {
                state.remove(key);
            } else {
                state.insert(*key, values.clone());
            }
        }
        self.states.push(state);
    }
}

fn copy(from: &State, to: &mut State, key: u64) {
    match from.get(&key) {
        Some(values) => to.insert(key, values.clone()),
        None => to.remove(&key),
    };
}
