//! Sessions and staleness: what a client has seen it keeps seeing, also when reads are answered by
//! followers, caches or a connection made anew.
//!
//! Each key has one writer, which writes rising *versions*; so the order of a key's values is known
//! without any inference, and each promise is a comparison of numbers:
//!
//! | promise | a read of a session returns at least |
//! |---|---|
//! | monotonic reads | what any earlier read of the session returned |
//! | read your writes | what the session wrote before and had acknowledged |
//! | bounded staleness | what was acknowledged to anybody longer than the bound ago |
//! | (always) | nothing that was not yet written, nothing of a write that failed |
//!
//! A session is more than a process: it goes on under a new process after an unknown outcome or a
//! reconnection. Within a process operations may overlap (a pipeline) and count in their order;
//! between processes of a session those count that had ended before.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{Call, History, Outcome};
use crate::verdict::{Checked, Failure, Verdict, Violation};

/// What a session asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// The session.
    pub session: u64,
    /// The key.
    pub key: u64,
    /// Writes this version, or reads.
    pub write: Option<u64>,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.write {
            Some(version) => write!(f, "s{} write {} v{version}", self.session, self.key),
            None => write!(f, "s{} read {}", self.session, self.key),
        }
    }
}

/// What is promised beyond values that really exist.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// Sessions do not go back.
    pub monotonic_reads: bool,
    /// Sessions see their own writes.
    pub read_your_writes: bool,
    /// How old a read may be, in nanoseconds; `Some(0)` allows no staleness at all.
    pub staleness_nanos: Option<u64>,
}

/// A version, and by which call it was reached.
#[derive(Clone, Copy)]
struct Seen {
    version: u64,
    call: usize,
}

/// The highest versions that were read and written.
#[derive(Clone, Copy, Default)]
struct Floor {
    read: Option<Seen>,
    written: Option<Seen>,
}

impl Floor {
    fn raise(&mut self, write: bool, seen: Seen) {
        let floor = if write { &mut self.written } else { &mut self.read };
        if floor.is_none_or(|floor| floor.version < seen.version) {
            *floor = Some(seen);
        }
    }
}

/// Checks every read of a history. A read answers a version, 0 for none; a write's answer counts
/// for nothing.
///
/// # Errors
/// The first read that breaks a promise; [`Failure::Malformed`] if the versions of a key do not
/// rise in the order of their invocations.
pub fn check(history: &History<Op, u64>, promise: Promise) -> Verdict {
    let calls = history.calls();
    let mut writes: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, call) in calls.iter().enumerate() {
        let Some(version) = call.op.write else { continue };
        let of_key = writes.entry(call.op.key).or_default();
        let last = of_key.last().and_then(|last| calls[*last].op.write).unwrap_or(0);
        if version <= last {
            let reason = format!("key {} gets version {version} after {last}", call.op.key);
            return Err(Failure::Malformed(reason));
        }
        of_key.push(at);
    }

    let mut events: Vec<(u32, usize, bool)> = Vec::with_capacity(2 * calls.len());
    for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.outcome.ok().is_some()) {
        events.push((call.invoked.position, at, true));
        events.push((call.ended.position, at, false));
    }
    events.sort_unstable_by_key(|(position, at, begins)| (*position, !*begins, *at));

    let mut checked = Checked::default();
    // What had ended, by session and key; what was invoked, by process and key.
    let mut sessions: BTreeMap<(u64, u64), Floor> = BTreeMap::new();
    let mut processes: BTreeMap<(u32, u64), Floor> = BTreeMap::new();
    for (_, at, begins) in events {
        let call = &calls[at];
        let Some(answer) = call.outcome.ok() else { continue };
        let seen = Seen { version: call.op.write.unwrap_or(*answer), call: at };
        let session = sessions.entry((call.op.session, call.op.key)).or_default();
        if !begins {
            session.raise(call.op.write.is_some(), seen);
            continue;
        }
        let process = processes.entry((call.process.0, call.op.key)).or_default();
        if call.op.write.is_none() {
            let of_key = writes.get(&call.op.key).map_or(&[][..], Vec::as_slice);
            exists(calls, at, seen.version, of_key)?;
            for floor in [&*session, &*process] {
                let below = |floor: Option<Seen>| floor.filter(|f| f.version > seen.version);
                if let Some(floor) = below(floor.read).filter(|_| promise.monotonic_reads) {
                    return broken(calls, "a session read backwards", &[floor.call, at]);
                }
                if let Some(floor) = below(floor.written).filter(|_| promise.read_your_writes) {
                    let anomaly = "a session did not read its own write";
                    return broken(calls, anomaly, &[floor.call, at]);
                }
            }
            if let Some(bound) = promise.staleness_nanos {
                fresh(calls, at, seen.version, of_key, bound)?;
            }
            checked.calls += 1;
        }
        process.raise(call.op.write.is_some(), seen);
    }
    Ok(checked)
}

/// A version that is read was written by somebody who had begun and did not fail.
fn exists(
    calls: &[Call<Op, u64>],
    at: usize,
    version: u64,
    of_key: &[usize],
) -> Result<(), Failure> {
    if version == 0 {
        return Ok(());
    }
    let written = of_key.binary_search_by_key(&Some(version), |write| calls[*write].op.write);
    let Ok(place) = written else { return broken(calls, "a version that nobody wrote", &[at]) };
    let write = of_key[place];
    if calls[write].invoked.position > calls[at].ended.position {
        return broken(calls, "a version of the future", &[write, at]);
    }
    if matches!(calls[write].outcome, Outcome::Fail) {
        return broken(calls, "a version of a write that failed", &[write, at]);
    }
    Ok(())
}

/// A read returns at least what was acknowledged before the bound.
fn fresh(
    calls: &[Call<Op, u64>],
    at: usize,
    version: u64,
    of_key: &[usize],
    bound: u64,
) -> Result<(), Failure> {
    let read = &calls[at];
    let newer = of_key.iter().rev().take_while(|write| calls[**write].op.write > Some(version));
    for write in newer {
        let call = &calls[*write];
        let acknowledged = matches!(call.outcome, Outcome::Ok(_))
            && call.ended.position < read.invoked.position
            && call.ended.nanos.saturating_add(bound) <= read.invoked.nanos;
        if acknowledged {
            return broken(calls, "a read older than the bound", &[*write, at]);
        }
    }
    Ok(())
}

fn broken<T>(calls: &[Call<Op, u64>], anomaly: &str, involved: &[usize]) -> Result<T, Failure> {
    let lines: String = involved.iter().map(|at| format!("  {}\n", calls[*at])).collect();
    let calls = involved.to_vec();
    Err(Failure::Violation(Violation { anomaly: anomaly.into(), explanation: lines, calls }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Process, Recorder};

    const ALL: Promise =
        Promise { monotonic_reads: true, read_your_writes: true, staleness_nanos: None };

    struct Story {
        recorder: Recorder<Op, u64>,
        processes: Vec<Process>,
        now: u64,
    }

    impl Story {
        fn new() -> Story {
            let mut recorder = Recorder::new();
            let processes = (0..4).map(|_| recorder.process()).collect();
            Story { recorder, processes, now: 0 }
        }

        fn write(mut self, process: usize, session: u64, version: u64) -> Story {
            self.now += 1;
            let op = Op { session, key: 1, write: Some(version) };
            let call = self.recorder.invoke(self.processes[process], self.now, op);
            self.recorder.ok(call, self.now, 0);
            self
        }

        fn read(mut self, process: usize, session: u64, version: u64) -> Story {
            self.now += 1;
            let op = Op { session, key: 1, write: None };
            let call = self.recorder.invoke(self.processes[process], self.now, op);
            self.recorder.ok(call, self.now, version);
            self
        }

        fn anomaly(self, promise: Promise) -> Option<String> {
            let failure = check(&self.recorder.finish(self.now), promise).err()?;
            Some(failure.violation().expect("a violation").anomaly.clone())
        }
    }

    #[test]
    fn a_session_that_reads_backwards_is_caught_across_processes() {
        let story = || Story::new().write(0, 1, 5).write(0, 1, 6).read(1, 2, 6).read(2, 2, 5);
        assert_eq!(story().anomaly(ALL).as_deref(), Some("a session read backwards"));
        assert_eq!(story().anomaly(Promise { monotonic_reads: false, ..ALL }), None);
        let two_sessions = Story::new().write(0, 1, 5).read(1, 2, 5).read(2, 3, 0);
        assert_eq!(two_sessions.anomaly(ALL), None);
    }

    #[test]
    fn a_session_that_misses_its_own_write_is_caught() {
        let story = || Story::new().write(0, 1, 5).read(1, 1, 0);
        assert_eq!(story().anomaly(ALL).as_deref(), Some("a session did not read its own write"));
        assert_eq!(story().anomaly(Promise { read_your_writes: false, ..ALL }), None);
    }

    #[test]
    fn a_pipeline_counts_in_its_order() {
        let mut recorder = Recorder::new();
        let process = recorder.process();
        let write = recorder.invoke(process, 0, Op { session: 1, key: 1, write: Some(1) });
        let read = recorder.invoke(process, 0, Op { session: 1, key: 1, write: None });
        recorder.ok(write, 0, 0);
        recorder.ok(read, 0, 0);
        assert!(check(&recorder.finish(0), ALL).is_err());
    }

    #[test]
    fn staleness_is_bounded_by_acknowledgements() {
        let story = || Story::new().write(0, 1, 5).write(0, 1, 6).read(1, 2, 5);
        let bound = |nanos| Promise { staleness_nanos: Some(nanos), ..ALL };
        assert_eq!(story().anomaly(bound(1)).as_deref(), Some("a read older than the bound"));
        assert_eq!(story().anomaly(bound(2)), None);
    }

    #[test]
    fn versions_that_nobody_wrote_and_of_the_future_are_caught() {
        let nobody = Story::new().write(0, 1, 5).read(1, 2, 4);
        assert_eq!(nobody.anomaly(ALL).as_deref(), Some("a version that nobody wrote"));
        let future = Story::new().read(1, 2, 5).write(0, 1, 5);
        assert_eq!(future.anomaly(ALL).as_deref(), Some("a version of the future"));
    }

    #[test]
    fn versions_that_fall_are_the_recorders_mistake() {
        let story = Story::new().write(0, 1, 5).write(0, 1, 5);
        let failure = check(&story.recorder.finish(0), ALL).expect_err("malformed");
        assert!(matches!(failure, Failure::Malformed(_)));
    }
}
