//! The second opinion: Redis's own load generator, whose requests and clock are not ours.
//!
//! It is asked for CSV, of which the last line is the test's. It has no p99.9, and sends a number of
//! requests, not for a time.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::exec;
use super::interrupt::Interrupt;
use super::plan::Case;
use crate::Failure;

/// How long it may take; a server that is gone leaves it waiting.
const PATIENCE: Duration = Duration::from_secs(600);

/// What it found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Operations a second.
    pub ops_per_s: f64,
    /// Latencies in microseconds.
    pub p50_us: f64,
    /// The same.
    pub p99_us: f64,
    /// The same.
    pub max_us: f64,
}

/// Runs a case.
pub fn run(
    program: &Path,
    addr: SocketAddr,
    case: &Case,
    connections: u32,
    requests: u64,
    interrupt: &Interrupt,
) -> Result<Found, Failure> {
    let mut command = exec::command(program, None)?;
    add_arguments(&mut command, addr, case, connections, requests)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn()?;
    let started = Instant::now();
    // What it prints fits into the pipe, so it can be waited for first.
    let waited = loop {
        if let Some(status) = process.try_wait()? {
            break Ok(status);
        }
        if started.elapsed() > PATIENCE {
            break Err("redis-benchmark does not end".into());
        }
        if let Err(interrupted) = interrupt.check() {
            break Err(interrupted);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if waited.is_err() {
        // It may end by itself just now, which is as good.
        let _ = process.kill();
        let _ = process.wait();
    }
    let status = waited?;
    let (mut csv, mut complaint) = (String::new(), String::new());
    if let (Some(out), Some(err)) = (&mut process.stdout, &mut process.stderr) {
        out.read_to_string(&mut csv)?;
        err.read_to_string(&mut complaint)?;
    }
    match last_row(&csv) {
        Some(found) if status.success() => Ok(found),
        _ => {
            let said = if complaint.trim().is_empty() { csv } else { complaint };
            Err(format!("redis-benchmark: {status}: {}", said.trim()).into())
        }
    }
}

fn add_arguments(
    command: &mut Command,
    addr: SocketAddr,
    case: &Case,
    connections: u32,
    requests: u64,
) -> Result<(), Failure> {
    let test = case.workload.redis_benchmark_test().ok_or("redis-benchmark has no such test")?;
    command.args(["-h", &addr.ip().to_string(), "-p", &addr.port().to_string(), "--csv"]);
    command.args(["-t", test, "-n", &requests.to_string(), "-c", &connections.to_string()]);
    command.args(["-P", &case.pipeline.to_string(), "-d", &case.value_size.max(1).to_string()]);
    if case.keyspace > 1 {
        command.args(["-r", &case.keyspace.to_string()]);
    }
    Ok(())
}

/// Reads the last row: test, requests a second, then average, least, p50, p95, p99 and most in
/// milliseconds, all quoted.
fn last_row(csv: &str) -> Option<Found> {
    let line = csv.lines().rev().find(|line| line.starts_with('"'))?;
    let fields: Vec<&str> = line.trim().trim_matches('"').split("\",\"").collect();
    let number = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some(Found {
        ops_per_s: number(1)?,
        p50_us: number(4)? * 1e3,
        p99_us: number(6)? * 1e3,
        max_us: number(7)? * 1e3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_the_test_is_read() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                   \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                   \"MSET (10 keys)\",\"12345.68\",\"0.3\",\"0.1\",\"0.25\",\"0.4\",\"0.5\",\"2.0\"\n";
        let expected = Found { ops_per_s: 12345.68, p50_us: 250.0, p99_us: 500.0, max_us: 2000.0 };
        assert_eq!(last_row(csv), Some(expected));
        assert_eq!(last_row(csv.lines().next().unwrap()), None);
        assert_eq!(last_row("Could not connect\n"), None);
    }
}
