//! The disk as a core uses it: io_uring beside helper threads.
//!
//! ```text
//! cargo run --release -p atoll-env --example disk_bench -- DIR [RUNS [LOAD]]
//! ```
//!
//! One core runs tasks that each wait for one transfer at a time: synced writes of a block into a file
//! that was filled before, as the log does them, and random reads of blocks, from the page cache and
//! past it. The back ends take turns; medians and their ratio are shown. LOAD chooses those with it in
//! their names.

#![expect(clippy::unwrap_used, reason = "a measurement that fails has nothing to go on with")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use atoll_env::disk::FileUse;
use atoll_env::os::{Backend, DirectIo, IoOptions, env_with};
use atoll_env::random::Prng;
use atoll_env::sync::oneshot;
use atoll_env::task::LocalBoxFuture;
use atoll_env::{Env, File, IoBuf, IoClass, IoTag, OpenMode, block_on};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 16_384;

/// What the tasks do.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    write: bool,
    direct: DirectIo,
    tasks: u64,
    each: u64,
}

const LOADS: [Load; 7] = [
    Load {
        name: "write and sync, 1 task",
        write: true,
        direct: DirectIo::Off,
        tasks: 1,
        each: 500,
    },
    Load {
        name: "write and sync, 1 task, direct",
        write: true,
        direct: DirectIo::Log,
        tasks: 1,
        each: 500,
    },
    Load {
        name: "read cached, 1 task",
        write: false,
        direct: DirectIo::Off,
        tasks: 1,
        each: 5_000,
    },
    Load {
        name: "read cached, 32 tasks",
        write: false,
        direct: DirectIo::Off,
        tasks: 32,
        each: 500,
    },
    Load {
        name: "read direct, 1 task",
        write: false,
        direct: DirectIo::All,
        tasks: 1,
        each: 1_000,
    },
    Load { name: "read direct, 8 tasks", write: false, direct: DirectIo::All, tasks: 8, each: 500 },
    Load {
        name: "read direct, 64 tasks",
        write: false,
        direct: DirectIo::All,
        tasks: 64,
        each: 100,
    },
];

fn main() {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let runs = args.next().and_then(|runs| runs.to_str()?.parse().ok()).unwrap_or(7);
    let chosen = args.next().and_then(|load| load.into_string().ok()).unwrap_or_default();
    let path = dir.join(format!("disk_bench-{}", std::process::id()));
    fill(&path);
    println!("{:32} {:>12} {:>12} {:>8}", "operations/s", "io_uring", "threads", "ratio");
    for load in LOADS.into_iter().filter(|load| load.name.contains(&chosen)) {
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..runs {
            for (backend, rates) in [Backend::Auto, Backend::Threads].into_iter().zip(&mut rates) {
                let env =
                    env_with(IoOptions { backend, direct: load.direct, ..Default::default() });
                rates.push(measure(&env.unwrap(), &path, load));
            }
        }
        let [ring, threads] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        });
        println!("{:32} {ring:>12.0} {threads:>12.0} {:>8.2}", load.name, ring / threads);
    }
    let env = env_with(IoOptions::default()).unwrap();
    block_on(env.disk.remove(IoTag::new(IoClass::Scrub, "bench"), &path)).unwrap();
}

fn fill(path: &Path) {
    let env = env_with(IoOptions::default()).unwrap();
    let tag = IoTag::new(IoClass::Flush, "bench");
    block_on(async {
        let file = env.disk.open(path, OpenMode::CreateNew).await.unwrap();
        for piece in 0..BLOCKS / 256 {
            let buf = IoBuf::zeroed(256 * BLOCK);
            file.write_at(tag, piece * 256 * BLOCK as u64, buf).await.unwrap();
        }
        file.sync(tag).await.unwrap();
    });
}

/// Returns operations a second.
fn measure(env: &Env, path: &Path, load: Load) -> f64 {
    let (sender, receiver) = mpsc::channel();
    let (path, inside) = (path.to_owned(), env.clone());
    let make = move || {
        Box::pin(async move {
            let usage = if load.write { FileUse::Log } else { FileUse::Table };
            let file = inside.disk.open_for(&path, OpenMode::ReadWrite, usage).await.unwrap();
            let start = inside.clock.now();
            let ends: Vec<_> = (0..load.tasks)
                .map(|task| {
                    let (done, end) = oneshot::channel();
                    let work = work(file.clone(), load, task);
                    let run = async move {
                        work.await;
                        _ = done.send(());
                    };
                    inside.tasks.spawn_local("load", Box::pin(run));
                    end
                })
                .collect();
            for end in ends {
                end.await.unwrap();
            }
            sender.send(inside.clock.now().since(start)).unwrap();
        }) as LocalBoxFuture
    };
    env.tasks.spawn_core(0, "bench", None, Box::new(make)).unwrap();
    let took: Duration = receiver.recv().unwrap();
    (load.tasks * load.each) as f64 / took.as_secs_f64()
}

async fn work(file: Arc<dyn File>, load: Load, task: u64) {
    let (log, read) = (IoTag::new(IoClass::Log, "bench"), IoTag::new(IoClass::Read, "bench"));
    let mut prng = Prng::new(task);
    let mut buf = IoBuf::zeroed(BLOCK);
    for n in 0..load.each {
        buf = if load.write {
            file.write_sync(log, log, n * BLOCK as u64, buf).await.unwrap()
        } else {
            file.read_at(read, prng.below(BLOCKS) * BLOCK as u64, buf).await.unwrap()
        };
    }
}
