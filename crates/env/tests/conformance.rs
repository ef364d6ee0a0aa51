//! The simulated disk answers as the real ones do.
//!
//! Random scripts of operations run on all of them, without crashes and faults: blocking calls,
//! threads, rings of cores and of threads, through the page cache and past it. What is written past it
//! is read through it and the other way round, because only whole blocks go past it. Where the machine
//! grants no rings or no direct I/O the test says so, and threads and page cache take their place; contents, lengths,
//! listings and kinds of errors must be equal. What the simulator adds (crashes, faults) is then
//! the only difference between a test and production.

#![expect(clippy::unwrap_used, reason = "a world that cannot be made is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::disk::{DiskStatus, FileUse, IoClass};
use atoll_env::os::{Backend, DirectIo, IoOptions};
use atoll_env::random::Prng;
use atoll_env::sim::Sim;
use atoll_env::task::LocalBoxFuture;
use atoll_env::{Env, File, IoBuf, IoTag, OpenMode, block_on, os};

const TAG: IoTag = IoTag::new(IoClass::Log, "conformance");
const STEPS: usize = 300;
const SCRIPTS: u64 = 12;

/// Paths that meet each other: names in two directories, a file used as a directory, a missing one.
const PATHS: [&str; 10] =
    ["a", "b", "d/a", "d/b", "d", "d/e/a", "a/x", "missing/a", "d/e", "f/g/h"];

/// Draws and runs one script; the protocol tells everything that could be seen.
async fn run_script(env: Env, root: &Path, seed: u64) -> Vec<String> {
    let mut prng = Prng::new(seed);
    let mut files: BTreeMap<u64, Arc<dyn File>> = BTreeMap::new();
    let mut protocol = Vec::new();
    for step in 0..STEPS {
        let path = root.join(PATHS[prng.index(PATHS.len())]);
        let (slot, offset, len) = (prng.below(4), draw_offset(&mut prng), draw_len(&mut prng));
        let file = files.get(&slot).cloned();
        let line = match (prng.below(14), file) {
            (0, _) => show("list", env.disk.list(&path).await),
            (1, _) => show("mkdir", env.disk.create_dir(&path).await),
            (2, _) => {
                let to = root.join(PATHS[prng.index(PATHS.len())]);
                // Directories are not renamed by anybody above, nor by the simulator.
                match env.disk.list(&path).await {
                    Ok(_) => String::new(),
                    Err(_) => show("rename", env.disk.rename(TAG, &path, &to).await),
                }
            }
            (3, _) => show("remove", env.disk.remove(TAG, &path).await),
            (4, _) => show("sync_dir", env.disk.sync_dir(TAG, &path).await),
            (5, _) => {
                let first = env.disk.lock(&path).await;
                let second = env.disk.lock(&path).await;
                format!("lock {:?} {:?}", kind(&first), kind(&second))
            }
            (6, _) | (_, None) => {
                let modes = [OpenMode::Read, OpenMode::ReadWrite, OpenMode::CreateNew];
                let uses = [FileUse::Plain, FileUse::Log, FileUse::Table];
                let (mode, usage) = (modes[prng.index(3)], uses[prng.index(3)]);
                let result = env.disk.open_for(&path, mode, usage).await;
                let line = format!("open {:?}", kind(&result));
                if let Ok(file) = result {
                    files.insert(slot, file);
                }
                line
            }
            (7..=9, Some(file)) => {
                let mut bytes = vec![0; len];
                prng.fill(&mut bytes);
                let buf = IoBuf::from(&bytes[..]);
                let result = match prng.below(2) {
                    0 => file.write_at(TAG, offset, buf).await,
                    _ => file.write_sync(TAG, TAG, offset, buf).await,
                };
                show("write", result.map(|buf| buf.to_vec() == bytes))
            }
            (10, Some(file)) => {
                let result = file.read_at(TAG, offset, IoBuf::zeroed(len)).await;
                show("read", result.map(|buf| buf.to_vec()))
            }
            (11, Some(file)) => show("allocate", file.allocate(TAG, offset).await),
            (12, Some(file)) => show("truncate", file.truncate(TAG, offset).await),
            (_, Some(file)) => show("sync", file.sync(TAG).await),
        };
        protocol.push(format!(
            "{step} {path:?} {slot} {offset}+{len}: {line}",
            path = path.strip_prefix(root)
        ));
        if let Some(file) = files.get(&slot) {
            let len = file.len().await.expect("an open file has a length");
            let content =
                file.read_at(TAG, 0, IoBuf::zeroed(len as usize)).await.expect("it is that long");
            protocol.push(format!("{len} bytes, hash {:x}", xxhash_rust::xxh3::xxh3_64(&content)));
        }
    }
    protocol
}

fn draw_offset(prng: &mut Prng) -> u64 {
    match prng.below(4) {
        0 => 0,
        1 => prng.below(4) * 4096,
        _ => prng.below(20_000),
    }
}

fn draw_len(prng: &mut Prng) -> usize {
    match prng.below(4) {
        0 => 0,
        1 => 4096,
        _ => prng.index(9000),
    }
}

fn kind<T>(result: &io::Result<T>) -> Option<io::ErrorKind> {
    result.as_ref().err().map(io::Error::kind)
}

fn show<T: Debug>(what: &str, result: io::Result<T>) -> String {
    format!("{what} {:?}", result.map_err(|e| e.kind()))
}

/// A real disk, and where its caller runs.
struct World {
    name: &'static str,
    backend: Backend,
    direct: DirectIo,
    on_core: bool,
}

const WORLDS: [World; 7] = [
    World { name: "calls", backend: Backend::Threads, direct: DirectIo::Off, on_core: false },
    World {
        name: "direct calls",
        backend: Backend::Threads,
        direct: DirectIo::All,
        on_core: false,
    },
    World { name: "threads", backend: Backend::Threads, direct: DirectIo::Off, on_core: true },
    World { name: "a core's ring", backend: Backend::Auto, direct: DirectIo::Off, on_core: true },
    World {
        name: "direct, a core's ring",
        backend: Backend::Auto,
        direct: DirectIo::All,
        on_core: true,
    },
    World {
        name: "a thread's ring",
        backend: Backend::Uring,
        direct: DirectIo::Off,
        on_core: false,
    },
    World {
        name: "direct, a thread's ring",
        backend: Backend::Uring,
        direct: DirectIo::All,
        on_core: false,
    },
];

impl World {
    fn env(&self) -> Env {
        let (backend, direct) = (self.backend, self.direct);
        let made = os::env_with(IoOptions { backend, direct, ..IoOptions::default() });
        made.unwrap_or_else(|error| {
            println!("{}: {error}; on threads instead", self.name);
            let backend = Backend::Threads;
            os::env_with(IoOptions { backend, direct, ..IoOptions::default() }).unwrap()
        })
    }

    /// Runs a script on a fresh directory; returns its protocol and what the disk says then.
    fn run(&self, seed: u64) -> (Vec<String>, DiskStatus) {
        let (dir, env) = (tempfile::tempdir().unwrap(), self.env());
        let root = dir.path().to_owned();
        let protocol = if self.on_core {
            let (done, result) = std::sync::mpsc::channel();
            let on_core = env.clone();
            let make = move || {
                Box::pin(async move {
                    done.send(run_script(on_core, &root, seed).await).unwrap();
                }) as LocalBoxFuture
            };
            env.tasks.spawn_core(0, "script", None, Box::new(make)).unwrap();
            result.recv().unwrap()
        } else {
            block_on(run_script(env.clone(), &root, seed))
        };
        (protocol, env.disk.status())
    }
}

fn simulated(seed: u64) -> Vec<String> {
    let sim = Sim::new(seed);
    let node = sim.node("a");
    let env = node.env();
    let root = PathBuf::from("/root");
    sim.block_on(&node, async {
        env.disk.create_dir(&root).await.unwrap();
        run_script(env.clone(), &root, seed).await
    })
    .done()
}

#[test]
fn scripts_see_the_same_on_the_simulated_disk_and_every_real_one() {
    let (mut lines, mut failures) = (0, 0);
    let mut carried = [[0; 4]; WORLDS.len()];
    let mut degraded = BTreeSet::new();
    for seed in 0..SCRIPTS {
        let expected = simulated(seed);
        lines += expected.len();
        failures += expected.iter().filter(|line| line.contains("Err(")).count();
        for (world, carried) in WORLDS.iter().zip(&mut carried) {
            let (seen, status) = world.run(seed);
            for (seen, expected) in seen.iter().zip(&expected) {
                assert_eq!(seen, expected, "script {seed}, {}", world.name);
            }
            assert_eq!(seen.len(), expected.len());
            let now = [
                status.inline_transfers,
                status.thread_transfers,
                status.ring_transfers,
                status.direct_transfers,
            ];
            carried.iter_mut().zip(now).for_each(|(sum, now)| *sum += now);
            degraded.extend(status.degraded);
        }
    }
    assert!(lines > 4_000 && failures > 400, "{lines} lines, {failures} failures");
    for line in &degraded {
        println!("not granted: {line}");
    }
    for (world, [inline, thread, ring, direct]) in WORLDS.iter().zip(carried) {
        let rings =
            world.backend != Backend::Threads && world.env().disk.status().backend == "io_uring";
        let (expected, others) = match (rings, world.on_core) {
            (true, _) => (ring, inline + thread),
            (false, true) => (thread, inline + ring),
            (false, false) => (inline, thread + ring),
        };
        let name = world.name;
        assert!(expected > 1_000 && others == 0, "{name}: {inline} {thread} {ring}");
        let no_direct = world.direct == DirectIo::Off || !degraded.is_empty();
        assert!(no_direct || direct > 500, "{name}: {direct} of {expected} were direct");
    }
}
