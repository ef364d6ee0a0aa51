//! What concurrent clients asked and what they were told: the evidence that every checker reads.
//!
//! A client is a *process*: it invokes an operation and later learns how it ended.
//!
//! ```text
//!   position    0    1    2    3    4    5    6    7
//!   p0          [--- set k1 7 -------]         [- get k1 ...   the run ended: info
//!   p1               [- get k1 -> 7 -----]
//!   p2                    [--- set k1 8 ---- connection lost: info, p2 is retired
//! ```
//!
//! | end | meaning |
//! |---|---|
//! | ok | it happened, between invocation and reply, with this result |
//! | fail | it did not happen and never will |
//! | info | nobody knows: it may have happened, may happen at any later time, or never |
//!
//! An operation that ends as info never returns, so its process must not be used again: a further
//! invocation of the same process would claim that the first was over. The client goes on under a
//! new process ([`Recorder::process`]). What is still open when the recorder is finished is info.
//!
//! # Order
//! Every event has a *position*, the order in which it was recorded; that is the real-time order
//! which checkers rely on (`a` came before `b` if `a` ended at a lower position than `b` was
//! invoked at). A simulation of one thread records in the order in which things happen, so
//! positions are exact even where virtual time stands still. The time, in nanoseconds, is for the
//! reader.
//!
//! # Pipelines
//! A process may have several operations under way, as a connection with a pipeline has. They must
//! end in the order in which they were invoked and are then judged to have *happened* in that
//! order, which is what RESP promises for a connection; only an info in front of them has no place.
//!
//! # One recording, many checkers
//! A simulator records one rich history, and each checker has a language of its own. A checker's
//! view is made by [`History::expand`], which turns a call into any number of calls over the same
//! interval: an `MSET` of ten keys is ten sets for the per-key checker, one transaction for the
//! transactional one, and nothing for the bank.

use std::fmt;

/// A logical client: a sequence of operations, retired at its first unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub u32);

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// A point of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The number of the event: the real-time order.
    pub position: u32,
    /// Virtual time in nanoseconds, for the reader only.
    pub nanos: u64,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<R> {
    /// It happened, with this result.
    Ok(R),
    /// It did not happen and never will.
    Fail,
    /// Unknown: it may have happened, may happen at any later time, or never.
    Info,
}

impl<R> Outcome<R> {
    /// Returns the result of an operation that is known to have happened.
    pub fn ok(&self) -> Option<&R> {
        match self {
            Outcome::Ok(result) => Some(result),
            Outcome::Fail | Outcome::Info => None,
        }
    }
}

/// An operation from its invocation to its end.
#[derive(Clone, Debug)]
pub struct Call<O, R> {
    /// Who asked.
    pub process: Process,
    /// What was asked.
    pub op: O,
    /// When.
    pub invoked: Moment,
    /// When the end was learned; after an info the position is that of the report, which bounds
    /// nothing.
    pub ended: Moment,
    /// How it ended.
    pub outcome: Outcome<R>,
}

impl<O, R> Call<O, R> {
    /// Returns the position after which the operation can no longer happen: never, for an info.
    pub fn deadline(&self) -> u32 {
        match self.outcome {
            Outcome::Info => u32::MAX,
            Outcome::Ok(_) | Outcome::Fail => self.ended.position,
        }
    }
}

impl<O: fmt::Display, R: fmt::Display> fmt::Display for Call<O, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (process, from, to) = (self.process, self.invoked.position, self.ended.position);
        match &self.outcome {
            Outcome::Ok(result) => write!(f, "{process} [{from}..{to}] {} -> {result}", self.op),
            Outcome::Fail => write!(f, "{process} [{from}..{to}] {} failed", self.op),
            Outcome::Info => write!(f, "{process} [{from}..  ] {} unknown", self.op),
        }
    }
}

/// A finished recording: calls in the order of invocation.
#[derive(Clone, Debug)]
pub struct History<O, R> {
    calls: Vec<Call<O, R>>,
}

impl<O, R> History<O, R> {
    /// Returns the calls in the order of invocation.
    pub fn calls(&self) -> &[Call<O, R>] {
        &self.calls
    }

    /// Returns how many calls are known to have happened.
    pub fn acknowledged(&self) -> usize {
        self.calls.iter().filter(|c| matches!(c.outcome, Outcome::Ok(_))).count()
    }

    /// Makes a checker's view: every call becomes those that `translate` returns, over the same
    /// interval and of the same process. Calls of one origin are taken to happen in their order.
    pub fn expand<P, S, I>(&self, mut translate: impl FnMut(&Call<O, R>) -> I) -> History<P, S>
    where
        I: IntoIterator<Item = (P, Outcome<S>)>,
    {
        let mut calls = Vec::with_capacity(self.calls.len());
        for call in &self.calls {
            calls.extend(translate(call).into_iter().map(|(op, outcome)| Call {
                process: call.process,
                op,
                invoked: call.invoked,
                ended: call.ended,
                outcome,
            }));
        }
        History { calls }
    }

    /// Returns the calls that `keep` says, over the same positions.
    pub fn select(&self, mut keep: impl FnMut(&Call<O, R>) -> bool) -> History<O, R>
    where
        O: Clone,
        R: Clone,
    {
        History { calls: self.calls.iter().filter(|call| keep(call)).cloned().collect() }
    }
}

/// One line per event, in the order of events: position, seconds, process, kind, operation.
impl<O: fmt::Display, R: fmt::Display> fmt::Display for History<O, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let invocations = self.calls.iter().map(|call| (call.invoked, call, true));
        let ends = self.calls.iter().map(|call| (call.ended, call, false));
        let mut events: Vec<_> = invocations.chain(ends).collect();
        events.sort_by_key(|(moment, ..)| moment.position);
        for (moment, call, begins) in events {
            let seconds = moment.nanos as f64 / 1e9;
            write!(f, "{:>5} {seconds:>10.6} {:<5} ", moment.position, call.process.to_string())?;
            match (begins, &call.outcome) {
                (true, _) => writeln!(f, "invoke {}", call.op)?,
                (false, Outcome::Ok(result)) => writeln!(f, "ok     {} -> {result}", call.op)?,
                (false, Outcome::Fail) => writeln!(f, "fail   {}", call.op)?,
                (false, Outcome::Info) => writeln!(f, "info   {}", call.op)?,
            }
        }
        Ok(())
    }
}

/// A call under way, as [`Recorder::invoke`] named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a call that is never ended is taken for unknown"]
pub struct CallId(usize);

/// Records a history while it happens.
///
/// The methods panic where the harness contradicts itself: a second end, an invocation of a retired
/// process. That is a bug of the harness, and a verdict on its recording would be worth nothing.
#[derive(Clone, Debug)]
pub struct Recorder<O, R> {
    calls: Vec<Open<O, R>>,
    position: u32,
    /// By process.
    retired: Vec<bool>,
}

#[derive(Clone, Debug)]
struct Open<O, R> {
    process: Process,
    op: O,
    invoked: Moment,
    end: Option<(Moment, Outcome<R>)>,
}

impl<O, R> Default for Recorder<O, R> {
    fn default() -> Self {
        Recorder::new()
    }
}

impl<O, R> Recorder<O, R> {
    /// Returns an empty recorder.
    pub fn new() -> Recorder<O, R> {
        Recorder { calls: Vec::new(), position: 0, retired: Vec::new() }
    }

    /// Returns a process that was not used before.
    pub fn process(&mut self) -> Process {
        self.retired.push(false);
        Process(u32::try_from(self.retired.len() - 1).expect("fewer than 2^32 processes"))
    }

    /// Records that `process` asks for `op`.
    ///
    /// # Panics
    /// The process is not of this recorder, or retired.
    pub fn invoke(&mut self, process: Process, nanos: u64, op: O) -> CallId {
        let retired = self.retired.get(process.0 as usize);
        let retired = *retired.unwrap_or_else(|| panic!("{process} is of another recorder"));
        assert!(!retired, "{process} is retired: after an unknown outcome take a new process");
        let invoked = self.moment(nanos);
        self.calls.push(Open { process, op, invoked, end: None });
        CallId(self.calls.len() - 1)
    }

    /// Records that a call happened, with its result.
    pub fn ok(&mut self, call: CallId, nanos: u64, result: R) {
        self.end(call, nanos, Outcome::Ok(result));
    }

    /// Records that a call did not happen and never will.
    pub fn fail(&mut self, call: CallId, nanos: u64) {
        self.end(call, nanos, Outcome::Fail);
    }

    /// Records that the outcome of a call will never be known; its process is retired.
    pub fn info(&mut self, call: CallId, nanos: u64) {
        self.end(call, nanos, Outcome::Info);
    }

    /// Records how a call ended.
    ///
    /// # Panics
    /// It ended before.
    pub fn end(&mut self, call: CallId, nanos: u64, outcome: Outcome<R>) {
        let moment = self.moment(nanos);
        let open = &mut self.calls[call.0];
        assert!(open.end.is_none(), "a call of {} has two ends", open.process);
        if matches!(outcome, Outcome::Info) {
            self.retired[open.process.0 as usize] = true;
        }
        open.end = Some((moment, outcome));
    }

    /// Returns how many calls are under way.
    pub fn open(&self) -> usize {
        self.calls.iter().filter(|call| call.end.is_none()).count()
    }

    /// Ends the recording at `nanos`; calls under way become info.
    pub fn finish(mut self, nanos: u64) -> History<O, R> {
        let last = self.moment(nanos);
        let calls = self.calls.into_iter().map(|open| {
            let (ended, outcome) = open.end.unwrap_or((last, Outcome::Info));
            Call { process: open.process, op: open.op, invoked: open.invoked, ended, outcome }
        });
        History { calls: calls.collect() }
    }

    fn moment(&mut self, nanos: u64) -> Moment {
        let position = self.position;
        self.position = position.checked_add(1).expect("fewer than 2^32 events");
        Moment { position, nanos }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_prints_as_one_line_per_event() {
        let mut recorder = Recorder::new();
        let (a, b) = (recorder.process(), recorder.process());
        let set = recorder.invoke(a, 1_000, "set k1 7");
        let get = recorder.invoke(b, 2_000, "get k1");
        recorder.ok(set, 3_000, "done");
        recorder.info(get, 5_000);
        let lost = recorder.invoke(a, 6_000, "set k1 8");
        recorder.fail(lost, 7_000);
        let history = recorder.finish(9_000);
        let text = "    0   0.000001 p0    invoke set k1 7
    1   0.000002 p1    invoke get k1
    2   0.000003 p0    ok     set k1 7 -> done
    3   0.000005 p1    info   get k1
    4   0.000006 p0    invoke set k1 8
    5   0.000007 p0    fail   set k1 8
";
        assert_eq!(history.to_string(), text);
        assert_eq!(history.calls()[0].to_string(), "p0 [0..2] set k1 7 -> done");
        assert_eq!(history.calls()[1].to_string(), "p1 [1..  ] get k1 unknown");
        assert_eq!(history.acknowledged(), 1);
    }

    #[test]
    #[should_panic(expected = "p0 is retired")]
    fn a_process_of_unknown_outcome_cannot_go_on() {
        let mut recorder: Recorder<&str, &str> = Recorder::new();
        let process = recorder.process();
        let call = recorder.invoke(process, 0, "set");
        recorder.info(call, 1);
        let _ = recorder.invoke(process, 2, "get");
    }

    #[test]
    #[should_panic(expected = "two ends")]
    fn a_call_ends_once() {
        let mut recorder: Recorder<&str, &str> = Recorder::new();
        let process = recorder.process();
        let call = recorder.invoke(process, 0, "set");
        recorder.fail(call, 1);
        recorder.ok(call, 2, "done");
    }

    #[test]
    fn what_is_open_at_the_end_is_unknown_and_never_returns() {
        let mut recorder: Recorder<&str, &str> = Recorder::new();
        let process = recorder.process();
        let _ = recorder.invoke(process, 0, "set");
        assert_eq!(recorder.open(), 1);
        let history = recorder.finish(9);
        assert_eq!(history.calls()[0].outcome, Outcome::Info);
        assert_eq!(history.calls()[0].deadline(), u32::MAX);
    }

    #[test]
    fn a_view_keeps_positions_and_may_multiply_calls() {
        let mut recorder = Recorder::new();
        let process = recorder.process();
        let call = recorder.invoke(process, 0, "mset a b");
        recorder.ok(call, 1, ());
        let history = recorder.finish(2);
        let view: History<String, ()> = history.expand(|call| {
            let keys = call.op.split(' ').skip(1).map(str::to_owned);
            keys.map(|key| (key, call.outcome.clone())).collect::<Vec<_>>()
        });
        assert_eq!(view.calls().len(), 2);
        assert!(view.calls().iter().all(|c| c.ended.position == 1));
        assert!(view.select(|call| call.op == "b").calls().len() == 1);
    }
}
