//! The simulated disk answers as the real one does.
//!
//! Random scripts of operations run on both, without crashes and faults; contents, lengths,
//! listings and kinds of errors must be equal. What the simulator adds (crashes, faults) is then
//! the only difference between a test and production.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::disk::IoClass;
use atoll_env::random::Prng;
use atoll_env::sim::Sim;
use atoll_env::{Env, File, IoBuf, IoTag, OpenMode, block_on, os};

const TAG: IoTag = IoTag::new(IoClass::Log, "conformance");
const STEPS: usize = 300;
const SCRIPTS: u64 = 25;

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
                let result = env.disk.open(&path, modes[prng.index(3)]).await;
                let line = format!("open {:?}", kind(&result));
                if let Ok(file) = result {
                    files.insert(slot, file);
                }
                line
            }
            (7..=9, Some(file)) => {
                let mut bytes = vec![0; len];
                prng.fill(&mut bytes);
                let result = file.write_at(TAG, offset, IoBuf::from(&bytes[..])).await;
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

#[test]
fn scripts_see_the_same_on_the_real_and_the_simulated_disk() {
    let (mut lines, mut failures) = (0, 0);
    for seed in 0..SCRIPTS {
        let dir = tempfile::tempdir().unwrap();
        let real = block_on(run_script(os::env().unwrap(), dir.path(), seed));
        let sim = Sim::new(seed);
        let node = sim.node("a");
        let env = node.env();
        let root = PathBuf::from("/root");
        let simulated = sim
            .block_on(&node, async {
                env.disk.create_dir(&root).await.unwrap();
                run_script(env.clone(), &root, seed).await
            })
            .done();
        for (real, simulated) in real.iter().zip(&simulated) {
            assert_eq!(real, simulated, "script {seed}");
            lines += 1;
            failures += u32::from(real.contains("Err("));
        }
        assert_eq!(real.len(), simulated.len());
    }
    assert!(lines > 8_000 && failures > 800, "{lines} lines, {failures} failures");
}
