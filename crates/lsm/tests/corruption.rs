//! A disk that lies: what is stored is changed behind the engine's back.
//!
//! Every kind of file gets flipped bits, is cut short, deleted, exchanged with another and put back
//! from an earlier time. Then opening or reading gives an error that names the file, or the answer
//! is not affected. Never a wrong answer, never a panic.
//!
//! Some damage cannot be noticed from inside a directory, because what is left is a state that the
//! directory was in, or could have been in after a power cut. The tests name each such case; they
//! are listed in docs/formats/directory.md.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "this file makes no copies")]
mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sim::{CrashMode, CrashTiming, DiskSnapshot, Fault, FaultKind, Node, OpKind, Sim};
use atoll_lsm::log::{self, FrameHeader};
use atoll_lsm::{
    Database, Error, Keyspace, KeyspaceOptions, Options, RepairOptions, WriteOptions, repair_async,
    verify_async,
};
use support::{Model, dir, open, run};

const SYNCED: WriteOptions = WriteOptions { durability: None };

/// A closed database on a simulated disk, and what is in it.
struct Fixture {
    sim: Sim,
    node: Node,
    sound: DiskSnapshot,
    model: Model,
}

fn key(n: u32) -> Vec<u8> {
    format!("key {n:03}").into_bytes()
}

/// Bytes that do not compress.
fn value(seed: u32) -> Vec<u8> {
    let mut prng = Prng::new(u64::from(seed));
    (0..300).map(|_| prng.below(256) as u8).collect()
}

async fn put(ks: &Keyspace, model: &mut Model, n: u32, seed: u32) {
    let value = value(seed);
    ks.insert_async(key(n), &value, SYNCED).await.unwrap();
    model.wrote(&key(n), Some(value), true);
}

/// Tables in several levels, and entries that are in the log only.
async fn build(env: &Env, model: &mut Model) -> Database {
    let (db, ks) = open(env).await.unwrap();
    for n in 0..90 {
        put(&ks, model, n * 7 % 90, n).await;
    }
    db.compact_async().await.unwrap();
    for n in 0..30 {
        put(&ks, model, n * 11 % 90, n + 100).await;
    }
    let (start, end) = (key(40), key(50));
    ks.remove_range_async(&start[..]..&end[..], SYNCED).await.unwrap();
    model.removed(&start, &end, true);
    db.flush_async().await.unwrap();
    for n in 0..12 {
        put(&ks, model, n * 5, n + 200).await;
    }
    db
}

impl Fixture {
    fn new() -> Fixture {
        let sim = Sim::new(11);
        let node = sim.node("a");
        let mut model = Model::default();
        run(&sim, &node, "build", async { drop(build(&node.env(), &mut model).await) });
        node.crash_with(CrashMode::DropAll);
        node.restart();
        let sound = node.disk().snapshot();
        Fixture { sim, node, sound, model }
    }

    /// Puts the sound files back.
    fn heal(&self) {
        self.node.crash();
        self.node.restart();
        self.node.disk().restore(&self.sound);
    }

    /// Opens the changed database and reads everything. Returns the first error, if there is one.
    fn read(&self, what: &str) -> Option<Error> {
        let env = self.node.env();
        run(&self.sim, &self.node, what, async {
            let (_db, ks) = match open(&env).await {
                Ok(opened) => opened,
                Err(e) => return Some(e),
            };
            let mut first = None;
            for key in self.model.keys() {
                match ks.get_async(key).await {
                    Ok(found) => assert!(
                        self.model.allows(key, found.as_deref()),
                        "{what}: a wrong answer for '{}'",
                        String::from_utf8_lossy(key)
                    ),
                    Err(e) => first = first.or(Some(e)),
                }
            }
            let mut scanned = BTreeMap::new();
            let mut cursor = ks.cursor::<&[u8]>(..);
            let complete = loop {
                match cursor.next().await {
                    Ok(None) => break true,
                    Ok(Some(guard)) => match guard.value_async().await {
                        Ok(value) => drop(scanned.insert(guard.key().to_vec(), value.to_vec())),
                        Err(e) => first = first.or(Some(e)),
                    },
                    Err(e) => {
                        first = first.or(Some(e));
                        break false;
                    }
                }
            };
            for (key, value) in &scanned {
                assert!(self.model.allows(key, Some(value)), "{what}: a scan is wrong");
            }
            if complete && first.is_none() {
                let missing = |k: &&[u8]| !scanned.contains_key(*k) && !self.model.allows(k, None);
                assert_eq!(self.model.keys().find(missing), None, "{what}: a scan left it out");
            }
            first
        })
    }

    /// Applies `change` to the sound files and returns the error that it leads to, if it does.
    fn after(&self, what: &str, change: impl FnOnce()) -> Option<Error> {
        self.heal();
        change();
        let error = self.read(what);
        if let Some(e) = &error {
            let named = matches!(e, Error::Corruption { .. } | Error::Foreign { .. });
            assert!(named, "{what}: it is about stored bytes, but says: {e}");
        }
        error
    }

    /// Expects an error that names `file`.
    fn refuses(&self, what: &str, file: &str, change: impl FnOnce()) {
        match self.after(what, change) {
            Some(Error::Corruption { file: named, .. } | Error::Foreign { path: named, .. }) => {
                let named = named.to_string_lossy().into_owned();
                assert!(named.contains(file), "{what}: {named} is named instead of {file}");
            }
            other => panic!("{what}: not noticed ({other:?})"),
        }
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.heal();
        files(&self.node)
    }

    fn named(&self, part: &str) -> Vec<String> {
        let files = self.files().into_keys();
        files.filter(|f| f.contains(part)).collect()
    }

    /// Returns the file, offset and length of the frames of the log, without padding.
    fn frames(&self) -> Vec<(String, u64, u64)> {
        self.heal();
        let env = self.node.env();
        let identity = self.node.disk().read_file(path("ATOLL")).unwrap();
        let identity = String::from_utf8(identity).unwrap();
        let lane = u64::from_str_radix(identity.split(' ').nth(2).unwrap(), 16).unwrap();
        let mut frames = Vec::new();
        let visit = |file: &std::path::Path, frame: &FrameHeader, payload: &[u8]| {
            let file = file.to_string_lossy().into_owned();
            frames.push((file, frame.position, 64 + payload.len() as u64));
        };
        let summary = run(&self.sim, &self.node, "frames", async {
            log::verify(&env, &path("log"), lane, visit).await
        });
        assert_eq!(summary.unwrap().frames, frames.len() as u64);
        for (file, position, _) in &mut frames {
            let header = self.node.disk().read_file(&*file).unwrap();
            *position -= u64::from_le_bytes(header[32..40].try_into().unwrap());
        }
        frames
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        self.node.disk().write_file(file, bytes).unwrap();
    }
}

/// Copies of `node`'s files by path.
fn files(node: &Node) -> BTreeMap<String, Vec<u8>> {
    let disk = node.disk();
    disk.files().into_iter().filter_map(|f| Some((f.clone(), disk.read_file(&f)?))).collect()
}

/// The path of a file of the database.
fn path(name: &str) -> PathBuf {
    dir().join(name)
}

fn name(file: &str) -> &str {
    file.rsplit('/').next().unwrap()
}

#[test]
fn a_flipped_bit_in_any_file_is_an_error() {
    let fixture = Fixture::new();
    let mut prng = Prng::new(5);
    for (file, bytes) in fixture.files() {
        if name(&file) == "LOCK" {
            continue;
        }
        if file.contains(".spare") {
            continue;
        }
        // Small files bit by bit, larger ones at sampled places; of a log segment its header.
        let bits = if file.contains(".log") { 640 } else { bytes.len() as u64 * 8 };
        let places: Vec<u64> = match bits {
            0..=2000 => (0..bits).collect(),
            _ => (0..400).map(|_| prng.below(bits)).collect(),
        };
        for bit in places {
            let what = format!("bit {bit} of {file}");
            let error = fixture.after(&what, || {
                assert!(fixture.node.disk().corrupt(&file, bit / 8, (bit % 8) as u32));
            });
            // The manifest may end with a move of a table: without it the contents are the same.
            let harmless = file.contains("manifest-") && bit / 8 + 24 >= bytes.len() as u64;
            assert!(error.is_some() || harmless, "{what} was not noticed");
        }
    }
}

#[test]
fn a_flipped_bit_in_any_frame_of_the_log_but_the_last_is_an_error() {
    let fixture = Fixture::new();
    let mut frames = fixture.frames();
    assert!(frames.len() > 12);
    let last = frames.pop().unwrap();
    for (file, offset, len) in &frames {
        for at in (0..*len).step_by(13).chain([len - 1]) {
            let what = format!("offset {} of {file}", offset + at);
            // The place where the frame before it ends is named, which may be in another segment.
            fixture.refuses(&what, "/data/db/log/", || {
                assert!(fixture.node.disk().corrupt(file, offset + at, (at % 8) as u32));
            });
        }
    }
    // A last frame that is damaged looks like one that a power cut tore: it does not count.
    let before = value(105);
    let mut fixture = fixture;
    fixture.model.wrote(&key(55), Some(before), false);
    let (file, offset, len) = &last;
    for at in 0..*len {
        let error = fixture.after("the last frame", || {
            assert!(fixture.node.disk().corrupt(file, offset + at, (at % 8) as u32));
        });
        assert!(error.is_none(), "{error:?}");
    }
}

#[test]
fn a_file_that_was_cut_short_is_noticed() {
    let fixture = Fixture::new();
    for (file, bytes) in fixture.files() {
        if bytes.is_empty() || file.contains(".spare") {
            continue;
        }
        for part in 0..4 {
            let len = bytes.len() * part / 4;
            let what = format!("{file} cut to {len}");
            // A manifest that ends at an edit's boundary was there once: the log tells.
            fixture.refuses(&what, "/data/db", || fixture.write(&file, &bytes[..len]));
        }
    }
}

#[test]
fn a_manifest_that_lost_edits_is_noticed_unless_they_only_moved_tables() {
    let fixture = Fixture::new();
    let manifest = fixture.named("manifest-").pop().unwrap();
    let bytes = fixture.files()[&manifest].clone();
    for len in (0..bytes.len()).rev() {
        let what = format!("{manifest} cut to {len}");
        let error = fixture.after(&what, || fixture.write(&manifest, &bytes[..len]));
        let harmless = len + 24 >= bytes.len();
        assert!(error.is_some() || harmless, "{what} was not noticed");
    }
}

#[test]
fn a_deleted_file_is_noticed() {
    let fixture = Fixture::new();
    // Without the newest segment the log ends where the one before it ends: as if nothing had been
    // written since.
    let newest = fixture.frames().pop().unwrap().0;
    for (file, bytes) in fixture.files() {
        if name(&file) == "LOCK"
            || file.contains(".spare")
            || file >= newest && file.contains(".log")
        {
            continue;
        }
        assert!(!bytes.is_empty());
        fixture.refuses(&format!("{file} deleted"), "/data/db", || {
            fixture.node.disk().remove_file(&file).unwrap();
        });
    }
    for part in ["/log/", "/tables/", "manifest-"] {
        let names = fixture.named(part);
        fixture.refuses(&format!("all of {part} deleted"), "/data/db", || {
            names.iter().for_each(|f| fixture.node.disk().remove_file(f).unwrap());
        });
    }
}

#[test]
fn a_directory_that_lost_its_identity_is_not_made_anew_over_what_is_in_its_log() {
    // All of it is in the log; no table tells that the directory was ever used.
    for segment in [16 << 10, 32 << 10] {
        for writes in [1, 60] {
            let sim = Sim::new(12);
            let node = sim.node("a");
            let small = || Options { log_segment_size: segment, ..support::options(node.env()) };
            let what = format!("{writes} writes in segments of {segment}");
            run(&sim, &node, &what, async {
                let db = Database::builder(dir()).options(small()).open_async().await.unwrap();
                let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
                for n in 0..writes {
                    ks.insert_async(key(n), [7; 50], SYNCED).await.unwrap();
                }
            });
            node.crash_with(CrashMode::DropAll);
            node.restart();
            let disk = node.disk();
            assert!(disk.files().iter().all(|file| !file.ends_with(".sst")), "{what}");
            let identity = disk.read_file("/data/db/ATOLL").unwrap();
            disk.remove_file("/data/db/ATOLL").unwrap();
            let before = files(&node);
            let env = node.env();
            run(&sim, &node, &what, async {
                let all = RepairOptions {
                    cut_log: true,
                    drop_corrupt_tables: true,
                    drop_lost_values: true,
                };
                let refusals = [
                    Database::builder(dir()).options(small()).open_async().await.err(),
                    verify_async(&env, &dir(), &mut |_| {}).await.err(),
                    repair_async(&env, &dir(), all, &mut |_| {}).await.err(),
                ];
                for refusal in refusals.map(Option::unwrap) {
                    assert!(matches!(refusal, Error::Foreign { .. }), "{what}: {refusal}");
                    assert!(refusal.to_string().contains("ATOLL is missing"), "{refusal}");
                }
            });
            assert_eq!(files(&node), before, "{what}: it is left as it was");
            disk.write_file("/data/db/ATOLL", &identity).unwrap();
            run(&sim, &node, &what, async {
                let db = Database::builder(dir()).options(small()).open_async().await.unwrap();
                let ks = db.find_keyspace("k").unwrap();
                let last = ks.get_async(key(writes - 1)).await.unwrap();
                assert_eq!(last.as_deref(), Some(&[7; 50][..]), "{what}");
            });
        }
    }
}

#[test]
fn a_directory_whose_tables_cannot_be_listed_is_not_taken_for_an_unfinished_one() {
    let fixture = Fixture::new();
    let disk = fixture.node.disk();
    disk.remove_file("/data/db/ATOLL").unwrap();
    let before = files(&fixture.node);
    for part in ["tables", "log"] {
        // Without tables the log is what is looked at next.
        if part == "log" {
            let tables = disk.files().into_iter().filter(|file| file.ends_with(".sst"));
            tables.for_each(|file| disk.remove_file(file).unwrap());
        }
        disk.inject(Fault::new(FaultKind::Error).on(OpKind::List).path(part));
        let refusal = run(&fixture.sim, &fixture.node, part, open(&fixture.node.env())).err();
        assert!(matches!(refusal, Some(Error::Io { .. })), "{part}: {refusal:?}");
        let left = files(&fixture.node);
        assert!(before.iter().filter(|(f, _)| !f.ends_with(".sst")).all(|(f, b)| left[f] == *b));
        disk.clear_faults();
    }
}

#[test]
fn two_files_of_one_kind_that_were_exchanged_are_noticed() {
    let fixture = Fixture::new();
    for part in [".sst", ".log"] {
        let names = fixture.named(part);
        assert!(names.len() >= 2, "{part}: {names:?}");
        for (at, a) in names.iter().enumerate() {
            for b in &names[at + 1..] {
                let files = fixture.files();
                fixture.refuses(&format!("{a} and {b} exchanged"), part, || {
                    fixture.write(a, &files[b]);
                    fixture.write(b, &files[a]);
                });
            }
        }
    }
}

#[test]
fn a_table_of_another_database_is_noticed() {
    let fixture = Fixture::new();
    let other = Sim::new(99);
    let node = other.node("b");
    let mut model = Model::default();
    run(&other, &node, "another", async { drop(build(&node.env(), &mut model).await) });
    let theirs = files(&node);
    for file in fixture.named(".sst").iter().chain(&fixture.named(".log")) {
        let Some(bytes) = theirs.get(file) else { continue };
        fixture.refuses(&format!("{file} of another"), name(file), || fixture.write(file, bytes));
    }
}

#[test]
fn a_part_that_is_older_than_the_rest_is_noticed() {
    let sim = Sim::new(23);
    let node = sim.node("a");
    let mut model = Model::default();
    let mut before = BTreeMap::new();
    run(&sim, &node, "build", async {
        let db = build(&node.env(), &mut model).await;
        before = files(&node);
        let ks = db.find_keyspace("k").unwrap();
        for n in 0..200 {
            put(&ks, &mut model, n * 13 % 90, n + 300).await;
        }
        db.compact_async().await.unwrap();
        put(&ks, &mut model, 1, 999).await;
    });
    node.crash_with(CrashMode::DropAll);
    node.restart();
    let sound = node.disk().snapshot();
    let fixture = Fixture { sim, node, sound, model };
    assert!(fixture.read("unchanged").is_none());
    let put_back = |part: &[&str]| {
        for (file, bytes) in before.iter().filter(|(f, _)| part.iter().any(|p| f.contains(p))) {
            fixture.write(file, bytes);
        }
    };
    let drop_newer = |part: &str| {
        for file in files(&fixture.node).keys().filter(|f| f.contains(part)) {
            if !before.contains_key(file) {
                fixture.node.disk().remove_file(file).unwrap();
            }
        }
    };
    fixture.refuses("an older manifest", "/data/db", || put_back(&["CURRENT", "manifest-"]));
    fixture.refuses("an older manifest and its tables", "/data/db", || {
        put_back(&["CURRENT", "manifest-", ".sst"]);
    });
    fixture.refuses("an older log", "/data/db/log", || {
        drop_newer("/log/");
        put_back(&["/log/"]);
    });
    // What is as it was then as a whole is a sound copy, and older. Only its owner can know.
    fixture.heal();
    for part in ["/log/", "/tables/", "manifest-"] {
        drop_newer(part);
    }
    put_back(&["/data/db"]);
    let env = fixture.node.env();
    let report =
        run(&fixture.sim, &fixture.node, "a copy", verify_async(&env, &dir(), &mut |_| {}));
    assert!(report.unwrap().is_sound());
}

#[test]
fn verification_finds_everything_and_changes_nothing() {
    let fixture = Fixture::new();
    let env = |f: &Fixture| f.node.env();
    let verify = |what: &str| {
        let env = env(&fixture);
        let report = run(&fixture.sim, &fixture.node, what, async {
            verify_async(&env, &dir(), &mut |_| {}).await
        });
        report.unwrap()
    };
    fixture.heal();
    let before = files(&fixture.node);
    let sound = verify("sound");
    assert!(sound.is_sound(), "{:?}", sound.problems);
    assert!(sound.tables >= 3 && sound.records > 90 && sound.log_entries >= 12, "{sound}");
    let tables = fixture.named(".sst");
    let log = fixture.named(".log").pop().unwrap();
    fixture.heal();
    for file in &tables {
        assert!(fixture.node.disk().corrupt(file, 30, 1));
    }
    assert!(fixture.node.disk().corrupt(&log, 20, 1));
    let damaged = files(&fixture.node);
    let report = verify("damaged");
    assert_eq!(report.problems.len(), tables.len() + 1, "{:?}", report.problems);
    for file in tables.iter().chain([&log]) {
        assert!(report.problems.iter().any(|e| e.to_string().contains(name(file))), "{file}");
    }
    assert_eq!(files(&fixture.node), damaged, "nothing was changed");
    fixture.heal();
    assert_eq!(files(&fixture.node), before);
}

#[test]
fn a_corrupt_block_costs_the_reads_of_its_table_and_nothing_else() {
    let fixture = Fixture::new();
    let files = fixture.files();
    let mut tables = 0;
    for (table, whole) in files.iter().filter(|(f, _)| f.contains(".sst")) {
        tables += u32::from(one_corrupt_block(&fixture, table, whole));
    }
    assert!(tables >= 3, "{tables} tables");
}

/// Corrupts one block of `table` and follows the database from there. Returns false if no read
/// needs that block.
fn one_corrupt_block(fixture: &Fixture, table: &String, whole: &[u8]) -> bool {
    fixture.heal();
    assert!(fixture.node.disk().corrupt(table, whole.len() as u64 / 3, 2));
    let (sim, node) = (&fixture.sim, &fixture.node);
    let mut model = fixture.model.clone();
    let refused = run(sim, node, "serve", async {
        let (db, ks) = open(&node.env()).await.unwrap();
        let mut refused = Vec::new();
        let mut served = 0;
        for key in model.keys() {
            match ks.get_async(key).await {
                Ok(found) => {
                    assert!(model.allows(key, found.as_deref()));
                    served += 1;
                }
                Err(Error::Corruption { file, .. }) => {
                    assert_eq!(file.to_string_lossy(), *table);
                    refused.push(key.to_vec());
                }
                Err(e) => panic!("{e}"),
            }
        }
        if refused.is_empty() {
            return refused;
        }
        assert!(served > 10, "{} refused", refused.len());
        assert_eq!(db.stats().quarantined, 1);
        let mut cursor = ks.cursor::<&[u8]>(..);
        let scan = loop {
            match cursor.next().await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(e) => break Some(e),
            }
        };
        assert!(scan.is_some_and(|e| e.is_corruption()), "a scan does not leave it out");
        // Writes go on, and compaction around the table.
        for n in 0..200 {
            put(&ks, &mut model, 60 + n % 30, n + 500).await;
        }
        db.flush_async().await.unwrap();
        let compacted = db.compact_async().await.unwrap_err();
        assert!(compacted.is_corruption(), "{compacted}");
        for n in 60..90 {
            let found = ks.get_async(key(n)).await.unwrap();
            assert!(model.allows(&key(n), found.as_deref()));
        }
        db.close_async().await.unwrap();
        refused
    });
    if refused.is_empty() {
        return false;
    }
    // It survives a restart, even where the bad block is not touched.
    run(sim, node, "again", async {
        let (db, ks) = open(&node.env()).await.unwrap();
        assert_eq!(db.stats().quarantined, 1);
        for key in refused.iter().filter(|k| **k < key(60)) {
            assert!(ks.get_async(key).await.unwrap_err().is_corruption());
        }
        drop(ks);
        db.close_async().await.unwrap();
    });
    let repair = |options| {
        let env = node.env();
        run(sim, node, "repair", async { repair_async(&env, &dir(), options, &mut |_| {}).await })
    };
    let careful = RepairOptions::default();
    let report = repair(careful).unwrap();
    assert_eq!((report.remaining.len(), report.released.len()), (1, 0));
    let damaged = node.disk().snapshot();

    // The file is restored.
    fixture.write(table, whole);
    let report = repair(careful).unwrap();
    assert_eq!((report.remaining.len(), report.released.len()), (0, 1));
    run(sim, node, "restored", async {
        let (db, ks) = open(&node.env()).await.unwrap();
        assert_eq!(db.stats().quarantined, 0);
        model.check(&ks).await.unwrap();
        db.compact_async().await.unwrap();
        model.check(&ks).await.unwrap();
    });

    // There is no copy of the file: the database goes on without it.
    node.crash();
    node.restart();
    node.disk().restore(&damaged);
    let report = repair(RepairOptions { drop_corrupt_tables: true, ..careful }).unwrap();
    assert_eq!(report.dropped.len(), 1);
    let dropped = &report.dropped[0];
    let kept = dropped.kept.as_ref().unwrap();
    assert!(kept.to_string_lossy().ends_with(".sst.corrupt"));
    assert!(node.disk().read_file(kept).is_some());
    let inside = |key: &[u8]| {
        let key = [&1u32.to_be_bytes()[..], key].concat();
        dropped.smallest <= key && key <= dropped.largest
    };
    assert!(refused.iter().all(|key| inside(key)));
    assert!(!model.keys().all(inside), "it is one table of several");
    let report = repair(RepairOptions { drop_corrupt_tables: true, ..careful }).unwrap();
    assert!(report.dropped.is_empty(), "once is enough");
    run(sim, node, "without", async {
        let (db, ks) = open(&node.env()).await.unwrap();
        for key in model.keys() {
            let found = ks.get_async(key).await.unwrap();
            // In its range, older values and what was removed may be back.
            assert!(model.allows(key, found.as_deref()) || inside(key));
        }
        db.compact_async().await.unwrap();
    });
    assert!(node.disk().read_file(kept).is_some(), "it is kept");
    true
}

#[test]
fn a_log_that_was_cut_goes_on_and_a_running_database_is_not_repaired() {
    let fixture = Fixture::new();
    let (sim, node) = (&fixture.sim, &fixture.node);
    let logs = fixture.named(".log");
    let frames = fixture.frames();
    let (file, offset, _) = &frames[frames.len() - 4];
    type Damage<'a> = Box<dyn Fn() + 'a>;
    let damage: [(&str, Damage<'_>); 4] = [
        ("a bad frame", Box::new(|| assert!(node.disk().corrupt(file, *offset, 1)))),
        ("no first segment", Box::new(|| node.disk().remove_file(&logs[0]).unwrap())),
        ("a bad header", Box::new(|| assert!(node.disk().corrupt(&logs[0], 40, 1)))),
        ("no log", Box::new(|| logs.iter().for_each(|f| node.disk().remove_file(f).unwrap()))),
    ];
    for (what, damage) in damage {
        fixture.heal();
        damage();
        assert!(fixture.read(what).is_some_and(|e| e.is_corruption()), "{what}");
        let env = node.env();
        let options = RepairOptions { cut_log: true, ..RepairOptions::default() };
        let mut seen = 0;
        let cut = run(sim, node, what, async {
            repair_async(&env, &dir(), options, &mut |_| seen += 1).await.unwrap().cut.unwrap()
        });
        assert!(seen > 0);
        assert!(cut.problem.is_some_and(|e| e.is_corruption()), "{what}");
        run(sim, node, what, async {
            let again = repair_async(&env, &dir(), options, &mut |_| {}).await.unwrap();
            assert!(again.cut.unwrap().problem.is_none(), "{what}: once is enough");
            let (db, ks) = open(&env).await.unwrap();
            let running = repair_async(&env, &dir(), options, &mut |_| {}).await;
            assert!(matches!(running, Err(Error::Locked(_))));
            assert!(matches!(verify_async(&env, &dir(), &mut |_| {}).await, Err(Error::Locked(_))));
            // New values win over those in tables: their numbers are higher.
            for n in 0..90 {
                ks.insert_async(key(n), b"new", SYNCED).await.unwrap();
            }
            db.compact_async().await.unwrap();
            for n in 0..90 {
                let found = ks.get_async(key(n)).await.unwrap();
                assert_eq!(found.as_deref(), Some(&b"new"[..]), "{what}");
            }
            drop(ks);
            db.close_async().await.unwrap();
            let report = verify_async(&env, &dir(), &mut |_| {}).await.unwrap();
            assert!(report.is_sound(), "{what}: {:?}", report.problems);
        });
    }
}

#[test]
fn a_repair_that_a_power_cut_interrupts_is_run_again() {
    let fixture = Fixture::new();
    let (sim, node) = (&fixture.sim, &fixture.node);
    let table = fixture.named(".sst").pop().unwrap();
    let frames = fixture.frames();
    let (log, offset, _) = &frames[frames.len() - 4];
    let options =
        RepairOptions { cut_log: true, drop_corrupt_tables: true, drop_lost_values: true };
    let mut points = 0;
    for point in 0.. {
        fixture.heal();
        assert!(node.disk().corrupt(&table, 50, 1) && node.disk().corrupt(log, *offset, 1));
        let env = node.env();
        node.disk().crash_at(node.disk().mutations() + point, CrashTiming::Any);
        let repaired = sim.block_on(node, repair_async(&env, &dir(), options, &mut |_| {}));
        if let Some(repaired) = repaired.ok() {
            assert!(repaired.is_ok() && node.disk().cancel_crash());
            break;
        }
        points += 1;
        node.restart();
        let env = node.env();
        let what = format!("interrupted at {point}");
        run(sim, node, &what, async {
            let repaired = repair_async(&env, &dir(), options, &mut |_| {}).await;
            repaired.unwrap_or_else(|e| panic!("{what}: {e}"));
            let report = verify_async(&env, &dir(), &mut |_| {}).await.unwrap();
            assert!(report.is_sound(), "{what}: {:?}", report.problems);
            let (db, ks) = open(&env).await.unwrap_or_else(|e| panic!("{what}: {e}"));
            ks.insert_async("a", "b", SYNCED).await.unwrap();
            db.compact_async().await.unwrap();
        });
        let corrupt = files(node).into_keys().filter(|f| f.contains(".sst.corrupt")).count();
        assert_eq!(corrupt, 1, "{what}: the file is kept");
    }
    assert!(points > 10, "{points} points");
}

#[test]
fn verify_and_repair_leave_other_directories_alone() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    node.disk().write_file("/data/db/letter.txt", b"dear").unwrap();
    let before = files(&node);
    let env = node.env();
    run(&sim, &node, "foreign", async {
        let verified = verify_async(&env, &dir(), &mut |_| {}).await;
        assert!(matches!(verified, Err(Error::Foreign { .. })));
        let all =
            RepairOptions { cut_log: true, drop_corrupt_tables: true, drop_lost_values: true };
        let repaired = repair_async(&env, &dir(), all, &mut |_| {}).await;
        assert!(matches!(repaired, Err(Error::Foreign { .. })));
        let missing = verify_async(&env, &path("nowhere"), &mut |_| {}).await;
        assert!(matches!(missing, Err(Error::Io { .. })));
    });
    assert_eq!(files(&node), before);
}
