//! The load generator: closed-loop clients against any server that speaks RESP.
//!
//! ```text
//!   client 1   [ pipeline of requests ] --> server --> [ replies ]   and again
//!   client 2        [ pipeline ]        -->        -->    [ replies ]
//!   ...        all on one thread, one connection each
//! ```
//!
//! Each client sends `pipeline` requests in one write and sends the next ones when all replies are
//! there; the latency of a request is the time from that write to the last reply of its pipeline.
//! A closed loop measures how fast a server can answer, not how long it keeps an outsider waiting
//! who does not slow down with it: a stall of a second shows as one slow pipeline per client.
//!
//! Keys and values are those of a seed, equal from run to run. One thread is enough to keep one
//! core of a server busy, and leaves the other cores to what is measured; without `--keyspace` all
//! requests name one key, which flatters every server, so the table says so.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_resp::Value;
use clap::Args;
use hdrhistogram::Histogram;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

use crate::cli::ServerArgs;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::value::{Count, Size};

/// Longest latency that is told apart, in nanoseconds; a longer one counts as this.
const LATENCY_MAX_NS: u64 = 100_000_000_000;

/// What to measure.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Connections, each waiting for its replies before it sends again
    #[arg(long, short, value_name = "N", default_value = "50")]
    clients: Count,
    /// Requests that a connection sends at a time
    #[arg(long, short = 'P', value_name = "N", default_value = "1")]
    pipeline: Count,
    /// Requests per test
    #[arg(long, short = 'n', value_name = "N", default_value = "100000")]
    requests: Count,
    /// Bytes per value; half of them are incompressible
    #[arg(long, short = 'd', value_name = "SIZE", default_value = "64")]
    value_size: Size,
    /// Draw keys from this many, uniformly; without it every request names the same key
    #[arg(long, short = 'r', value_name = "N")]
    keyspace: Option<Count>,
    /// What to send: set, get, incr, separated by commas
    #[arg(long, short, value_name = "LIST", value_delimiter = ',', default_value = "set,get")]
    tests: Vec<Test>,
    /// Names the sequence of keys and values
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
}

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Set,
    Get,
    Incr,
}

impl FromStr for Test {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Test, String> {
        match text {
            "set" => Ok(Test::Set),
            "get" => Ok(Test::Get),
            "incr" => Ok(Test::Incr),
            _ => Err("expected set, get or incr".to_owned()),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Test::Set => "set",
            Test::Get => "get",
            Test::Incr => "incr",
        })
    }
}

/// Runs the tests one after the other and prints a row for each.
pub(crate) async fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<()> {
    let keys = match args.keyspace {
        Some(keys) => format!("{keys} keys"),
        None => "one key".to_owned(),
    };
    writeln!(
        out,
        "{} clients, pipeline {}, values of {}, {keys}\n\
         test   requests  seconds     ops/s    p50 ms    p99 ms  p99.9 ms    max ms",
        args.clients, args.pipeline, args.value_size
    )
    .and_then(|()| out.flush())
    .map_err(Failure::output)?;
    for &test in &args.tests {
        let load = measure(args, test).await?;
        let rows = load.rows(test, args.keyspace.is_some());
        out.write_all(rows.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)?;
        if let Some(error) = load.first_error.take() {
            return Err(Failure::new(format!(
                "{} of {} requests were refused, the first with: {error}; the figures above are \
                 not those of a server that does its work",
                load.errors.get(),
                load.done.get()
            )));
        }
    }
    Ok(())
}

/// Sends one test's requests from all clients.
async fn measure(args: &BenchArgs, test: Test) -> Result<Rc<Load>> {
    let mut seeds = Prng::new(args.seed);
    let value = value(&mut seeds.fork("value"), args.value_size);
    // Connecting is not part of what is measured.
    let mut clients = Vec::new();
    for i in 0..args.clients.0 {
        let client = Client::connect(args.server.resp.0, args.server.password.as_deref())
            .await
            .map_err(|e| Failure::new(format!("client {} of {}: {e}", i + 1, args.clients)))?;
        let keys = Keys { test, keyspace: args.keyspace, prng: seeds.fork("keys") };
        clients.push((client, keys));
    }
    let load = Rc::new(Load::new(args.requests.0));
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut running = JoinSet::new();
            for (client, keys) in clients {
                let (load, value, pipeline) = (Rc::clone(&load), value.clone(), args.pipeline.0);
                running.spawn_local(one_client(client, keys, value, pipeline, load));
            }
            let mut second = tokio::time::interval(Duration::from_secs(1));
            second.tick().await;
            let mut line = LiveLine::new(test);
            loop {
                tokio::select! {
                    ended = running.join_next() => match ended {
                        // The first client that fails ends the test for all.
                        Some(Ok(result)) => result?,
                        Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                        None => break,
                    },
                    _ = second.tick() => line.show(&load),
                }
            }
            load.seconds.set(load.started.elapsed().as_secs_f64());
            line.clear();
            Ok(())
        })
        .await?;
    Ok(load)
}

async fn one_client(
    mut client: Client,
    mut keys: Keys,
    value: Rc<[u8]>,
    pipeline: u64,
    load: Rc<Load>,
) -> Result<()> {
    let mut requests = Vec::new();
    loop {
        let count = load.take(pipeline);
        if count == 0 {
            return Ok(());
        }
        requests.clear();
        for _ in 0..count {
            keys.request(&value, &mut requests);
        }
        let sent = Instant::now();
        client.exchange(&requests, count, |reply| load.note(reply)).await?;
        load.record(count, sent.elapsed());
    }
}

/// Makes the requests of one client.
struct Keys {
    test: Test,
    keyspace: Option<Count>,
    prng: Prng,
}

impl Keys {
    fn request(&mut self, value: &[u8], out: &mut Vec<u8>) {
        let number = match self.keyspace {
            Some(Count(keys)) => self.prng.below(keys),
            None => 0,
        };
        // Strings and counters have different names: INCR refuses a value that is no number.
        match self.test {
            Test::Set => {
                let key = format!("key:{number:012}");
                atoll_resp::request(out, &[b"SET", key.as_bytes(), value]);
            }
            Test::Get => atoll_resp::request(out, &["GET", &format!("key:{number:012}")]),
            Test::Incr => atoll_resp::request(out, &["INCR", &format!("counter:{number:012}")]),
        }
    }
}

/// Returns a value whose first half is random and whose second half is not.
fn value(prng: &mut Prng, size: Size) -> Rc<[u8]> {
    (0..size.0).map(|i| if i < size.0 / 2 { prng.next_u64() as u8 } else { b'.' }).collect()
}

/// A test under way, shared by its clients.
struct Load {
    started: Instant,
    /// Requests not yet given to a client.
    left: Cell<u64>,
    requests: u64,
    done: Cell<u64>,
    /// Null replies: GETs of keys that do not exist.
    missing: Cell<u64>,
    errors: Cell<u64>,
    first_error: Cell<Option<String>>,
    /// Latencies in nanoseconds.
    latency: RefCell<Histogram<u64>>,
    /// Latencies since the last live line.
    recent: RefCell<Histogram<u64>>,
    seconds: Cell<f64>,
}

impl Load {
    fn new(requests: u64) -> Load {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
                .expect("the bounds of the histogram are constants in the range it documents")
        };
        Load {
            started: Instant::now(),
            left: Cell::new(requests),
            requests,
            done: Cell::new(0),
            missing: Cell::new(0),
            errors: Cell::new(0),
            first_error: Cell::new(None),
            latency: RefCell::new(histogram()),
            recent: RefCell::new(histogram()),
            seconds: Cell::new(0.0),
        }
    }

    /// Takes up to `count` of the requests that are left.
    fn take(&self, count: u64) -> u64 {
        let taken = count.min(self.left.get());
        self.left.set(self.left.get() - taken);
        taken
    }

    fn note(&self, reply: Value) {
        match reply {
            Value::Null => self.missing.set(self.missing.get() + 1),
            Value::Error(text) => {
                let first = self.first_error.take();
                self.first_error
                    .set(first.or_else(|| Some(String::from_utf8_lossy(&text).into_owned())));
                self.errors.set(self.errors.get() + 1);
            }
            _ => {}
        }
    }

    fn record(&self, count: u64, latency: Duration) {
        self.done.set(self.done.get() + count);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        for histogram in [&self.latency, &self.recent] {
            histogram.borrow_mut().saturating_record_n(nanos, count);
        }
    }

    fn rows(&self, test: Test, keyspace: bool) -> String {
        let latency = self.latency.borrow();
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let mut rows = format!(
            "{test:<5} {:>9} {:>8.2} {:>9.0} {:>9.3} {:>9.3} {:>9.3} {:>9.3}\n",
            self.done.get(),
            self.seconds.get(),
            self.done.get() as f64 / self.seconds.get().max(1e-9),
            ms(latency.value_at_quantile(0.5)),
            ms(latency.value_at_quantile(0.99)),
            ms(latency.value_at_quantile(0.999)),
            ms(latency.max()),
        );
        if self.missing.get() > 0 {
            let (missing, done) = (self.missing.get(), self.done.get());
            let which = if keyspace { "set test with this --keyspace" } else { "set test" };
            rows.push_str(&format!(
                "      {missing} of {done} keys did not exist; run the {which} first\n"
            ));
        }
        rows
    }
}

/// The line on standard error that shows each second how the test goes: rewritten in place on a
/// terminal, a line per second elsewhere.
struct LiveLine {
    test: Test,
    done: u64,
    in_place: bool,
}

impl LiveLine {
    fn new(test: Test) -> LiveLine {
        LiveLine { test, done: 0, in_place: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, load: &Load) {
        let done = load.done.get();
        let p99 = load.recent.replace_with(|recent| {
            let mut empty = recent.clone();
            empty.reset();
            empty
        });
        let text = format!(
            "{:<5} {:>3} %  {:>9} ops/s  p99 {:>9.3} ms",
            self.test,
            done * 100 / load.requests,
            done - self.done,
            p99.value_at_quantile(0.99) as f64 / 1e6
        );
        self.done = done;
        let (start, end) = if self.in_place { ("\r\x1b[K", "") } else { ("", "\n") };
        // Progress nobody can see is no reason to stop measuring.
        let _ = write!(std::io::stderr(), "{start}{text}{end}");
    }

    fn clear(&self) {
        if self.in_place {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_seed_within_the_keyspace() {
        let make = |seed| {
            let mut keys =
                Keys { test: Test::Get, keyspace: Some(Count(3)), prng: Prng::new(seed) };
            let mut out = Vec::new();
            (0..100).for_each(|_| keys.request(b"", &mut out));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
        for key in 0..3 {
            assert!(make(7).contains(&format!("$16\r\nkey:{key:012}\r\n")));
        }
        assert!(!make(7).contains("key:000000000003"));
    }

    #[test]
    fn exactly_the_requests_asked_for_are_given_out() {
        let load = Load::new(10);
        assert_eq!([load.take(4), load.take(4), load.take(4), load.take(4)], [4, 4, 2, 0]);
    }

    #[test]
    fn a_row_shows_rate_latencies_and_missing_keys() {
        let load = Load::new(4);
        load.record(3, Duration::from_millis(1));
        load.record(1, Duration::from_millis(250));
        load.note(Value::Null);
        load.seconds.set(2.0);
        let rows = load.rows(Test::Get, false);
        let columns: Vec<&str> = rows.split_whitespace().take(5).collect();
        assert_eq!(columns[..4], ["get", "4", "2.00", "2"]);
        let p50: f64 = columns[4].parse().unwrap();
        assert!((p50 - 1.0).abs() < 0.01, "{rows}");
        assert!(rows.contains("1 of 4 keys did not exist; run the set test first"), "{rows}");
    }
}
