//! A seed names one execution, in every process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use atoll_env::disk::IoClass;
use atoll_env::random::Prng;
use atoll_env::sim::{CrashTiming, DiskFaults, DiskOptions, Sim};
use atoll_env::sync::{queue, timeout};
use atoll_env::{Env, IoBuf, IoTag, OpenMode};

const TAG: IoTag = IoTag::new(IoClass::Log, "determinism");
/// In the child process: the seed to run.
const SEED_VARIABLE: &str = "ATOLL_TEST_SEED";

/// Appends to a file of its own and tells the others, from time to time.
async fn worker(env: Env, round: u64, number: u64, done: atoll_env::sync::QueueSender<u64>) {
    let mut prng = Prng::new(env.random.next_u64());
    let path = format!("/file-{round}-{number}");
    let Ok(file) = env.disk.open(Path::new(&path), OpenMode::CreateNew).await else { return };
    for _ in 0..20 {
        env.clock.sleep(Duration::from_micros(prng.below(300))).await;
        let offset = prng.below(10_000);
        _ = file.write_at(TAG, offset, IoBuf::from(&[number as u8; 700][..])).await;
        if prng.chance(0.3) {
            let sync = timeout(&*env.clock, Duration::from_millis(1), file.sync(TAG)).await;
            _ = done.send(u64::from(sync.is_ok()));
        }
    }
}

/// Two nodes with racing tasks, a network, faults, a crash and a restart.
fn run(seed: u64) -> (u64, Vec<String>) {
    let sim = Sim::new(seed);
    sim.keep_trace_lines();
    let (a, b) = (sim.node("a"), sim.node("b"));
    let faults = DiskFaults { short_write: 0.05, sync_error: 0.1, ..DiskFaults::default() };
    a.disk().set_options(DiskOptions { faults, ..DiskOptions::default() });
    a.disk().crash_at(40, CrashTiming::Any);
    let env = b.env();
    let addr = SocketAddr::new(b.ip(), 1);
    sim.block_on(&b, async {
        let mut listener = env.network.listen(addr).await.expect("the port is free");
        let serve = async move {
            let mut streams = Vec::new();
            while let Ok(accepted) = listener.accept().await {
                streams.push(accepted);
            }
        };
        env.tasks.spawn_local("serve", Box::pin(serve));
    })
    .done();
    for round in 0..2 {
        let env = a.env();
        let outcome = sim.block_on(&a, async {
            let (sender, mut receiver) = queue();
            for number in 0..4 {
                let task = worker(env.clone(), round, number, sender.clone());
                env.tasks.spawn("worker", Box::pin(task));
            }
            drop(sender);
            let mut connection = env.network.connect(addr).await.ok();
            while let Some(message) = receiver.recv().await {
                if let Some(stream) = &mut connection {
                    let bytes = [message as u8; 9];
                    _ = std::future::poll_fn(|cx| stream.poll_write(cx, &bytes)).await;
                }
            }
        });
        if outcome.ok().is_none() {
            a.restart();
        }
    }
    (sim.trace_hash(), sim.take_trace_lines())
}

#[test]
fn a_seed_is_the_same_run_in_two_processes() {
    if let Ok(seed) = std::env::var(SEED_VARIABLE) {
        println!("hash={}", run(seed.parse().unwrap()).0);
        return;
    }
    for seed in 0..5 {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_seed_is_the_same_run_in_two_processes", "--nocapture"])
            .env(SEED_VARIABLE, seed.to_string())
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let (hash, lines) = run(seed);
        assert!(lines.len() > 200, "the run is too small to prove anything");
        assert!(stdout.contains(&format!("hash={hash}\n")), "seed {seed}: {hash}, child: {stdout}");
    }
}

#[test]
fn two_runs_of_a_seed_agree_line_by_line_and_seeds_differ() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let ((hash, lines), (again, lines_again)) = (run(seed), run(seed));
        assert_eq!(lines, lines_again);
        assert_eq!(hash, again);
        hashes.insert(hash);
    }
    assert_eq!(hashes.len(), 30);
}
