//! One measurement of one server.
//!
//! ```text
//!   settle -> load what is read -> settle -> connect -> | CPU, load, CPU, RSS | -> figures
//! ```
//!
//! All servers of a durability live side by side and are measured one at a time. What a measurement
//! leaves to do (a flush, a compaction, a rewrite of the log) must not be paid by the next server's:
//! a measurement begins when no server uses its processor any more, or after a few seconds.

use std::rc::Rc;
use std::time::{Duration, Instant};

use atoll_resp::Value;

use super::encode::{self, Keys};
use super::interrupt::Interrupt;
use super::load::{Extent, Load, Outcome, Session, Writers};
use super::plan::{Case, Settings, Workload};
use super::report::{LoadFigures, Sample};
use super::subject::{Server, Spec};
use super::zipf::Zipf;
use crate::Failure;
use crate::cgroup::MemoryCgroup;

/// How long leftover work is waited for.
const SETTLE: Duration = Duration::from_secs(5);

/// Bytes that a connection sends at a time while it loads data.
const LOAD_BATCH: u64 = 64 << 10;

/// Connections of the writers in `get-under-writes`: enough for the rate when a sync takes 20 ms.
const WRITERS: usize = 50;

const MIB: f64 = (1 << 20) as f64;

/// A server, and what is known of its data.
pub struct Subject {
    /// How it is started, now and after it has died.
    pub spec: Spec,
    server: Option<Server>,
    /// The key spaces that are loaded, with values of this size.
    loaded: Vec<u64>,
    loaded_size: u64,
}

/// What all measurements need.
pub struct Context<'a> {
    /// The flags.
    pub settings: &'a Settings,
    /// Where servers make their directories.
    pub root: &'a std::path::Path,
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
}

impl Subject {
    /// Returns a server that is not started yet.
    pub fn new(spec: Spec) -> Subject {
        Subject { spec, server: None, loaded: Vec::new(), loaded_size: 0 }
    }

    /// Returns the running server; starts it if there is none, on an empty directory.
    pub fn running(
        &mut self,
        context: &Context<'_>,
        group: Option<MemoryCgroup>,
    ) -> Result<&mut Server, Failure> {
        if !self.server.as_mut().is_some_and(Server::is_alive) {
            self.server = None;
            self.loaded.clear();
            let server = Server::start(&self.spec, context.root, group, context.interrupt)?;
            return Ok(self.server.insert(server));
        }
        self.server.as_mut().ok_or_else(|| "the server is not running".into())
    }

    /// Returns what became of a server that has ended by itself.
    pub fn end(&mut self) -> Option<String> {
        let server = self.server.as_mut()?;
        if server.ran_out_of_memory() {
            return Some("it needed more memory than the limit".into());
        }
        (!server.is_alive()).then(|| server.last_words("ended"))
    }

    /// Sets all keys of a key space, unless that was done already.
    pub fn load(
        &mut self,
        context: &Context<'_>,
        keyspace: u64,
        value_size: u64,
    ) -> Result<(), Failure> {
        if self.loaded_size != value_size {
            self.loaded.clear();
            self.loaded_size = value_size;
        }
        if self.loaded.contains(&keyspace) {
            return Ok(());
        }
        let server = self.running(context, None)?;
        fill(server, keyspace, value_size, context.interrupt)
            .map_err(|e| format!("while loading: {e}"))?;
        self.loaded.push(keyspace);
        Ok(())
    }
}

/// Waits until no server is busy with what earlier measurements left.
pub fn settle(subjects: &[Subject], context: &Context<'_>) -> Result<(), Failure> {
    const STEP: Duration = Duration::from_millis(100);
    let used = || -> f64 {
        let servers = subjects.iter().filter_map(|subject| subject.server.as_ref());
        // One that has ended is not busy.
        servers.filter_map(|server| server.cpu_s().ok()).sum()
    };
    let started = Instant::now();
    let mut before = used();
    while started.elapsed() < SETTLE {
        pause(STEP, context.interrupt)?;
        let now = used();
        // A tenth of a processor is what the kernel's count can tell from nothing.
        if now - before <= STEP.as_secs_f64() / 10.0 + 0.001 {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Measures a load of our own generator on a server whose data is loaded.
pub fn load(
    server: &Server,
    case: &Case,
    context: &Context<'_>,
    seed: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Sample, Failure> {
    let settings = context.settings;
    let kind = case.workload.kind().ok_or("this workload is no load")?;
    let keys = match case.workload {
        Workload::Mix => Keys::Zipf(Rc::new(Zipf::new(case.keyspace))),
        _ if case.keyspace == 1 => Keys::One,
        _ => Keys::Uniform(case.keyspace),
    };
    let under_writes = case.workload == Workload::GetUnderWrites;
    let writers = under_writes.then(|| Writers {
        connections: WRITERS,
        rate: settings.write_rate,
        keys: keys.clone(),
    });
    let load = Load {
        kind,
        keys,
        value_size: case.value_size as usize,
        pipeline: case.pipeline,
        connections: settings.connections as usize,
        extent: settings.extent,
        writers,
        seed,
    };
    let session = Session::connect(server.addr, &load)?;
    let before = server.cpu_s()?;
    let outcome = session.run(context.interrupt, progress)?;
    let cpu_s = server.cpu_s()? - before;
    let rss_mib = server.resident()? as f64 / MIB;
    Ok(figures(&outcome, cpu_s, rss_mib)?.into())
}

/// Turns what was seen into figures, unless the server has not done its work.
pub fn figures(outcome: &Outcome, cpu_s: f64, rss_mib: f64) -> Result<LoadFigures, Failure> {
    if let Some(error) = &outcome.first_error {
        let errors = outcome.errors;
        return Err(format!("{errors} replies were errors, the first: {error}").into());
    }
    if outcome.nulls > 0 {
        let (nulls, all) = (outcome.nulls, outcome.operations);
        return Err(format!("{nulls} of {all} keys were not there").into());
    }
    if outcome.operations == 0 {
        return Err("no operation was answered in time".into());
    }
    let us = |nanos: u64| nanos as f64 / 1e3;
    let (operations, latency) = (outcome.operations as f64, &outcome.latency);
    let writes = &outcome.write_latency;
    Ok(LoadFigures {
        ops_per_s: operations / outcome.seconds,
        p50_us: us(latency.value_at_quantile(0.5)),
        p99_us: us(latency.value_at_quantile(0.99)),
        p999_us: Some(us(latency.value_at_quantile(0.999))),
        max_us: us(latency.max()),
        cpu_us_per_op: cpu_us_per_op(cpu_s, operations),
        rss_mib,
        generator_busy: Some(outcome.client_cpu_s / outcome.seconds),
        writes_per_s: (!writes.is_empty()).then(|| writes.len() as f64 / outcome.seconds),
        write_p99_us: (!writes.is_empty()).then(|| us(writes.value_at_quantile(0.99))),
    })
}

/// Divides a server's processor time among operations, unless it is too little for the kernel's count
/// of hundredths of a second to say anything.
pub fn cpu_us_per_op(cpu_s: f64, operations: f64) -> Option<f64> {
    const LEAST: f64 = 0.095;
    (cpu_s > LEAST).then(|| cpu_s * 1e6 / operations)
}

/// Measures a server that was just started and that nobody asks for anything.
pub fn idle(spec: &Spec, context: &Context<'_>) -> Result<Sample, Failure> {
    let started = Instant::now();
    let server = Server::start(spec, context.root, None, context.interrupt)?;
    let start_ms = started.elapsed().as_secs_f64() * 1e3;
    // What a start leaves to be done is not idleness.
    pause(Duration::from_secs(1), context.interrupt)?;
    let before = server.cpu_s()?;
    let window = Instant::now();
    // Three seconds have 300 of the ticks in which the kernel counts: 0.3 % of a processor.
    pause(Duration::from_secs(3), context.interrupt)?;
    let cpu_s = server.cpu_s()? - before;
    let cpu_percent = 100.0 * cpu_s / window.elapsed().as_secs_f64();
    Ok(vec![Some(start_ms), Some(cpu_percent), Some(server.resident()? as f64 / MIB)])
}

/// Measures the first reply of a server that has data, after it was killed and after a stop.
pub fn restart(spec: &Spec, case: &Case, context: &Context<'_>) -> Result<Sample, Failure> {
    let interrupt = context.interrupt;
    let mut server = Server::start(spec, context.root, None, interrupt)?;
    fill(&server, case.keyspace, case.value_size, interrupt)
        .map_err(|e| format!("while loading: {e}"))?;
    server.kill();
    let after_kill = first_reply(&mut server, case, interrupt)?;
    let stopping = Instant::now();
    server.stop(interrupt)?;
    let stop = stopping.elapsed();
    let after_stop = first_reply(&mut server, case, interrupt)?;
    let ms = |time: Duration| Some(time.as_secs_f64() * 1e3);
    Ok(vec![ms(after_kill), ms(after_stop), ms(stop)])
}

/// Starts a server, returns the time to the first value it gives, and checks that nothing is lost.
fn first_reply(
    server: &mut Server,
    case: &Case,
    interrupt: &Interrupt,
) -> Result<Duration, Failure> {
    let last = encode::key_name(case.keyspace.saturating_sub(1));
    let started = Instant::now();
    server.begin()?;
    let reply = server.first_reply(&["GET", &last], interrupt)?;
    let time = started.elapsed();
    if !matches!(&reply, Value::Bulk(value) if value.len() as u64 == case.value_size) {
        return Err(format!("the last key that was written is not there but {reply:?}").into());
    }
    match server.ask(&["DBSIZE"])? {
        Value::Int(keys) if u64::try_from(keys) == Ok(case.keyspace) => Ok(time),
        other => Err(format!("of {} keys there are {other:?}", case.keyspace).into()),
    }
}

/// Sets each key of a key space once.
fn fill(
    server: &Server,
    keyspace: u64,
    value_size: u64,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let load = Load {
        kind: encode::Kind::Set,
        keys: if keyspace == 1 { Keys::One } else { Keys::InTurn(Rc::default()) },
        value_size: value_size as usize,
        pipeline: (LOAD_BATCH / value_size.max(1)).clamp(1, 256),
        connections: 16,
        extent: Extent::Operations(keyspace),
        writers: None,
        seed: 0,
    };
    let outcome = Session::connect(server.addr, &load)?.run(interrupt, &mut |_| {})?;
    match outcome.first_error {
        Some(error) => Err(format!("{} writes were refused: {error}", outcome.errors).into()),
        None => Ok(()),
    }
}

/// Sleeps, unless it is interrupted.
pub fn pause(time: Duration, interrupt: &Interrupt) -> Result<(), Failure> {
    let until = Instant::now() + time;
    loop {
        interrupt.check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::tests::{fake, polite};
    use super::super::plan::Tool;
    use super::super::report::{self, Row};
    use super::super::subject::{Durability, Which};
    use super::*;

    const CASE: Case = Case {
        workload: Workload::Mix,
        durability: Durability::Synced,
        tool: Tool::Own,
        keyspace: 100,
        value_size: 64,
        pipeline: 4,
    };

    fn outcome(addr: std::net::SocketAddr) -> Outcome {
        let load = Load {
            kind: encode::Kind::Mix,
            keys: Keys::Zipf(Rc::new(Zipf::new(CASE.keyspace))),
            value_size: 64,
            pipeline: CASE.pipeline,
            connections: 5,
            extent: Extent::Operations(500),
            writers: None,
            seed: 1,
        };
        let session = Session::connect(addr, &load).unwrap();
        session.run(&Interrupt::default(), &mut |_| {}).unwrap()
    }

    #[test]
    fn a_load_becomes_a_row() {
        let outcome = outcome(fake(7, polite).0);
        let figures = figures(&outcome, 0.5, 10.0).unwrap();
        assert_eq!(figures.cpu_us_per_op, Some(1000.0));
        assert_eq!(cpu_us_per_op(0.05, 500.0), None, "five ticks of the clock are no measure");
        assert!(figures.ops_per_s > 0.0 && figures.p50_us <= figures.max_us);
        let sample = report::median(&[Ok(figures.into())]);
        let row =
            Row { case: &CASE, which: Which::Redis, outcome: &sample, redis: None, remark: None };
        assert!(row.to_table().contains("1000.00         10"), "{}", row.to_table());
    }

    #[test]
    fn a_server_that_refuses_or_forgets_fails_the_row() {
        let refusing = fake(7, |_, reply| reply.error(b"OOM no memory"));
        let reason = figures(&outcome(refusing.0), 0.0, 0.0).unwrap_err().to_string();
        assert_eq!(reason, "500 replies were errors, the first: OOM no memory");
        let forgetting = fake(7, |request, reply| match request.get(0).unwrap() {
            b"GET" => reply.null(),
            _ => reply.ok(),
        });
        let reason = figures(&outcome(forgetting.0), 0.0, 0.0).unwrap_err().to_string();
        assert!(reason.ends_with("of 500 keys were not there"), "{reason}");
    }

    #[test]
    fn a_pause_ends_with_an_interrupt() {
        assert!(pause(Duration::from_secs(1000), &Interrupt::raised()).is_err());
        assert!(pause(Duration::ZERO, &Interrupt::default()).is_ok());
    }
}
