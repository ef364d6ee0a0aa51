//! Tests of whole tables: against a model, with every bit flipped, with wrong files, with reads
//! that fail.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use atoll_encoding::hash::hash64;
use atoll_env::disk::{DirEntry, IoClass};
use atoll_env::{Disk, File, IoBuf, IoFuture, IoTag, OpenMode, WallTime, block_on};
use parking_lot::Mutex;

use super::*;
use crate::error::{Error, Result};
use crate::key::{InternalKey, Kind, SEQNO_MAX, Trailer};
use crate::pool::{HeapPool, Pool};
use crate::tombstone::RangeTombstone;

/// A disk with one file per path, whose bytes a test may change.
#[derive(Default)]
struct MemoryDisk {
    files: Mutex<BTreeMap<std::path::PathBuf, Arc<MemoryFile>>>,
}

#[derive(Default)]
struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
    reads: AtomicU64,
    /// Number of the read or write that fails, counted from 1; 0 for none.
    fail_at: AtomicU64,
    operations: AtomicU64,
}

impl MemoryFile {
    fn operation<T>(&self, run: impl FnOnce(&mut Vec<u8>) -> io::Result<T>) -> io::Result<T> {
        if self.operations.fetch_add(1, Relaxed) + 1 == self.fail_at.load(Relaxed) {
            return Err(io::Error::other("injected"));
        }
        run(&mut self.bytes.lock())
    }
}

fn ready<'a, T: Send + 'a>(result: io::Result<T>) -> IoFuture<'a, T> {
    Box::pin(std::future::ready(result))
}

impl Disk for MemoryDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> IoFuture<'a, Arc<dyn File>> {
        let mut files = self.files.lock();
        let file = match (mode, files.get(path)) {
            (OpenMode::CreateNew, Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, None) => {
                Ok(files.entry(path.to_owned()).or_default().clone() as Arc<dyn File>)
            }
            (_, Some(file)) => Ok(file.clone() as Arc<dyn File>),
            (_, None) => Err(io::ErrorKind::NotFound.into()),
        };
        ready(file)
    }
    fn rename<'a>(&'a self, _: IoTag, _: &'a Path, _: &'a Path) -> IoFuture<'a, ()> {
        ready(Err(io::ErrorKind::Unsupported.into()))
    }
    fn remove<'a>(&'a self, _: IoTag, _: &'a Path) -> IoFuture<'a, ()> {
        ready(Err(io::ErrorKind::Unsupported.into()))
    }
    fn create_dir<'a>(&'a self, _: &'a Path) -> IoFuture<'a, ()> {
        ready(Ok(()))
    }
    fn sync_dir<'a>(&'a self, _: IoTag, _: &'a Path) -> IoFuture<'a, ()> {
        ready(Ok(()))
    }
    fn list<'a>(&'a self, _: &'a Path) -> IoFuture<'a, Vec<DirEntry>> {
        ready(Ok(Vec::new()))
    }
    fn lock<'a>(&'a self, _: &'a Path) -> IoFuture<'a, Box<dyn Send + Sync>> {
        ready(Ok(Box::new(()) as Box<dyn Send + Sync>))
    }
}

impl File for MemoryFile {
    fn read_at(&self, _: IoTag, offset: u64, mut buf: IoBuf) -> IoFuture<'_, IoBuf> {
        self.reads.fetch_add(1, Relaxed);
        ready(self.operation(|bytes| {
            let end = offset as usize + buf.len();
            let found = bytes.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(found);
            Ok(buf)
        }))
    }
    fn write_at(&self, _: IoTag, offset: u64, buf: IoBuf) -> IoFuture<'_, IoBuf> {
        ready(self.operation(|bytes| {
            let end = offset as usize + buf.len();
            bytes.resize(end.max(bytes.len()), 0);
            bytes[offset as usize..end].copy_from_slice(&buf);
            Ok(buf)
        }))
    }
    fn sync(&self, _: IoTag) -> IoFuture<'_, ()> {
        ready(self.operation(|_| Ok(())))
    }
    fn allocate(&self, _: IoTag, _: u64) -> IoFuture<'_, ()> {
        ready(Ok(()))
    }
    fn truncate(&self, _: IoTag, len: u64) -> IoFuture<'_, ()> {
        self.bytes.lock().truncate(len as usize);
        ready(Ok(()))
    }
    fn len(&self) -> IoFuture<'_, u64> {
        ready(Ok(self.bytes.lock().len() as u64))
    }
}

/// A seeded generator.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let x = self.0;
        (x >> 33) ^ (x >> 11 & 0xff_ffff)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Records in table order: user key, then newest first.
type Model = BTreeMap<(Vec<u8>, std::cmp::Reverse<u64>), Vec<u8>>;

fn internal(key: &(Vec<u8>, std::cmp::Reverse<u64>)) -> InternalKey<'_> {
    InternalKey::new(&key.0, Trailer(key.1.0))
}

fn owned(key: InternalKey<'_>) -> (Vec<u8>, std::cmp::Reverse<u64>) {
    (key.user_key.to_vec(), std::cmp::Reverse(key.trailer.0))
}

const SALT: u64 = 0x5a17;

struct Written {
    disk: MemoryDisk,
    meta: TableMeta,
}

impl Written {
    fn file(&self) -> Arc<MemoryFile> {
        self.disk.files.lock()[Path::new("t")].clone()
    }
    fn expected(&self) -> Expected {
        Expected { size: self.meta.size, salt: self.meta.salt, base: 0 }
    }
    fn open(&self) -> Result<Arc<Table>> {
        self.open_with(Arc::new(HeapPool::new(8 << 20)))
    }
    fn open_with(&self, pool: Arc<dyn Pool>) -> Result<Arc<Table>> {
        let path = Path::new("t");
        block_on(Table::open(&self.disk, path, self.meta.id, self.expected(), pool))
    }
}

fn write(model: &Model, tombstones: &[RangeTombstone], options: TableOptions) -> Written {
    write_as(7, model, tombstones, options)
}

fn write_as(
    id: u64,
    model: &Model,
    tombstones: &[RangeTombstone],
    options: TableOptions,
) -> Written {
    let disk = MemoryDisk::default();
    let meta = block_on(async {
        let path = Path::new("t");
        let mut writer =
            TableWriter::create(&disk, path, id, SALT, options, IoClass::Flush).await?;
        for (key, value) in model {
            writer.add(internal(key), value)?;
            if writer.is_full() {
                writer.write_out().await?;
            }
        }
        for tombstone in tombstones {
            writer.add_range_tombstone(tombstone)?;
        }
        writer.finish().await
    });
    Written { disk, meta: meta.unwrap() }
}

/// Keys with shared prefixes, several versions of many, values of all kinds.
fn random_model(rng: &mut Rng, records: u64) -> Model {
    let mut model = Model::new();
    let mut user_key = Vec::new();
    while (model.len() as u64) < records {
        if rng.below(3) > 0 || model.is_empty() {
            user_key = random_key(rng);
        }
        let kind = Kind::from_u8(rng.below(5) as u8).unwrap();
        let trailer = Trailer::new(rng.below(1000), kind);
        let len = match rng.below(20) {
            0 => rng.below(3000),
            1 => 8,
            _ => 8 + rng.below(60),
        };
        let mut value = vec![rng.next() as u8; len.max(8) as usize];
        value[..8].copy_from_slice(&rng.below(1 << 41).to_le_bytes());
        model.insert((user_key.clone(), std::cmp::Reverse(trailer.0)), value);
    }
    model
}

fn random_key(rng: &mut Rng) -> Vec<u8> {
    let mut key = format!("{:02}/user:", rng.below(40)).into_bytes();
    for _ in 0..rng.below(6) {
        key.push(b"abc\0\xff"[rng.below(5) as usize]);
    }
    if rng.below(50) == 0 {
        key.extend_from_slice(&[b'k'; 300]);
    }
    key.truncate(rng.below(key.len() as u64 + 40) as usize);
    key
}

fn random_options(rng: &mut Rng) -> TableOptions {
    let pick = |rng: &mut Rng, from: &[usize]| from[rng.below(from.len() as u64) as usize];
    TableOptions {
        block_bytes: pick(rng, &[1, 64, 300, 1000, 4096, 30_000]),
        partition_bytes: pick(rng, &[1, 60, 300, 4096]),
        restart_interval: pick(rng, &[1, 2, 3, 7, 16, 64]),
        codec: [Codec::None, Codec::Lz4, Codec::Zstd(3)][rng.below(3) as usize],
        filter: [Filter::None, Filter::Bloom(5), Filter::Bloom(20), Filter::Fuse]
            [rng.below(4) as usize],
        prefix_rule: (rng.below(2) == 0).then(|| PrefixRule::fixed(3)),
        level: rng.below(7) as u32,
        created: WallTime(rng.below(1 << 41)),
    }
}

fn random_read_options(rng: &mut Rng) -> ReadOptions {
    ReadOptions {
        admit: rng.below(2) == 0,
        readahead_start: [0, 100, 5000, 256 << 10][rng.below(4) as usize],
        readahead_max: [0, 1000, 256 << 10][rng.below(3) as usize],
        class: IoClass::Read,
    }
}

fn get(table: &Table, user_key: &[u8], snapshot: u64) -> Result<Option<Found>> {
    block_on(table.get(user_key, snapshot, hash64(user_key)))
}

#[test]
fn lookups_and_walks_agree_with_a_model_under_random_options() {
    for seed in 0..120 {
        let rng = &mut Rng(seed);
        let records = [1, 2, 17, 400, 1500][rng.below(5) as usize];
        let model = random_model(rng, records);
        let options = random_options(rng);
        let written = write(&model, &[], options.clone());
        // A pool of no size, of a small one, of a large one.
        let pool = Arc::new(HeapPool::new([0, 20_000, 8 << 20][rng.below(3) as usize]));
        let table = written.open_with(pool).unwrap();
        assert_eq!(*table.properties(), written.meta.properties);
        check_lookups(rng, &model, &table);
        for _ in 0..3 {
            check_walks(rng, &model, &table, &options);
        }
        let verified = block_on(table.verify()).unwrap();
        assert_eq!(verified.entries, model.len() as u64, "seed {seed}");
    }
}

fn check_lookups(rng: &mut Rng, model: &Model, table: &Table) {
    let present: Vec<&Vec<u8>> = model.keys().map(|(user_key, _)| user_key).collect();
    for n in 0..300 {
        let user_key = match n % 3 {
            0 => random_key(rng),
            _ => present[rng.below(present.len() as u64) as usize].clone(),
        };
        let snapshot = if n % 5 == 0 { SEQNO_MAX } else { rng.below(1000) };
        let target = (user_key.clone(), std::cmp::Reverse(Trailer::visible_at(snapshot).0));
        let wanted = model.range(target..).next().filter(|(key, _)| key.0 == user_key);
        let found = get(table, &user_key, snapshot).unwrap();
        let found = found.map(|found| (found.trailer, found.value.to_vec()));
        assert_eq!(found, wanted.map(|(key, value)| (Trailer(key.1.0), value.clone())));
        let hash = hash64(&user_key);
        let may = block_on(table.may_contain(&user_key, snapshot, hash)).unwrap();
        assert!(may || wanted.is_none(), "a filter denied a key that is there");
    }
}

fn check_walks(rng: &mut Rng, model: &Model, table: &Arc<Table>, options: &TableOptions) {
    let records: Vec<_> = model.iter().collect();
    let mut iter = TableIter::new(table.clone(), random_read_options(rng));
    assert!(!iter.valid());
    // Index of the record the iterator must be at.
    let mut at: Option<usize> = None;
    for _ in 0..400 {
        match rng.below(12) {
            0 => {
                block_on(iter.first()).unwrap();
                at = Some(0);
            }
            1 => {
                block_on(iter.last()).unwrap();
                at = Some(records.len() - 1);
            }
            2 | 3 => {
                let mut target =
                    owned(internal(records[rng.below(records.len() as u64) as usize].0));
                match rng.below(3) {
                    0 => target.0 = random_key(rng),
                    1 => target.1.0 = rng.below(1000) << 8 | 0xff,
                    _ => {}
                }
                let found = records.partition_point(|(key, _)| **key < target);
                if rng.below(2) == 0 {
                    block_on(iter.seek(internal(&target))).unwrap();
                    at = Some(found).filter(|&n| n < records.len());
                } else {
                    block_on(iter.seek_for_prev(internal(&target))).unwrap();
                    let above = records.partition_point(|(key, _)| **key <= target);
                    at = above.checked_sub(1);
                }
            }
            way => {
                for _ in 0..rng.below(20) {
                    if way % 2 == 0 {
                        block_on(iter.next()).unwrap();
                        at = at.map(|n| n + 1).filter(|&n| n < records.len());
                    } else {
                        block_on(iter.prev()).unwrap();
                        at = at.and_then(|n| n.checked_sub(1));
                    }
                }
            }
        }
        assert_eq!(iter.valid(), at.is_some(), "{options:?}");
        if let Some(at) = at {
            assert_eq!(iter.key(), internal(records[at].0), "{options:?}");
            assert_eq!(iter.value(), &records[at].1[..]);
            assert_eq!(*iter.value_slice(), records[at].1[..]);
        }
    }
}

#[test]
fn lookups_walks_and_writes_may_move_between_threads() {
    fn moves<T: Send>(_: T) {}
    let written = write(&random_model(&mut Rng(8), 10), &[], TableOptions::default());
    let table = written.open().unwrap();
    let mut iter = TableIter::new(table.clone(), ReadOptions::SCAN);
    moves(table.get(b"", SEQNO_MAX, 0));
    moves(table.verify());
    moves(iter.next());
    moves(iter);
    moves(async {
        let options = TableOptions::default();
        let path = Path::new("u");
        let class = IoClass::Flush;
        let mut writer = TableWriter::create(&written.disk, path, 1, 2, options, class).await?;
        writer.write_out().await?;
        writer.finish().await
    });
}

#[test]
fn the_meta_describes_the_file_and_its_bounds_include_range_tombstones() {
    let model = random_model(&mut Rng(5), 500);
    let tombstones = [
        RangeTombstone { start: b"zz".to_vec(), end: b"zzz".to_vec(), seqno: 5000 },
        RangeTombstone { start: b"".to_vec(), end: b"0".to_vec(), seqno: 2 },
        RangeTombstone { start: b"".to_vec(), end: b"a".to_vec(), seqno: 9 },
    ];
    let written = write(&model, &tombstones, TableOptions::default());
    let table = written.open().unwrap();
    let bytes = written.file().bytes.lock().clone();
    assert_eq!(written.meta.size, bytes.len() as u64);
    let p = table.properties();
    assert_eq!((p.entries, p.range_tombstones, p.seqno_max), (500, 3, 5000));
    assert_eq!((&p.smallest[..], &p.largest[..]), (&b""[..], &b"zzz"[..]));
    assert!(p.largest_is_exclusive);
    let [last, old, new] = tombstones;
    assert_eq!(table.range_tombstones(), [new, old, last], "by start, newest first");
    block_on(table.verify()).unwrap();
}

#[test]
fn deadlines_count_for_expiring_and_chunked_values_that_have_one() {
    let mut model = Model::new();
    let mut put = |key: &str, kind: Kind, deadline: u64| {
        let trailer = std::cmp::Reverse(Trailer::new(1, kind).0);
        model.insert((key.into(), trailer), deadline.to_le_bytes().to_vec());
    };
    put("a", Kind::Value, 1);
    put("b", Kind::ExpiringValue, 500);
    put("c", Kind::ChunkedValue, 0);
    put("d", Kind::ChunkedValue, 900);
    put("e", Kind::Chunk, 2);
    put("f", Kind::Tombstone, 3);
    let p = write(&model, &[], TableOptions::default()).meta.properties;
    assert_eq!((p.expiring, p.chunked, p.tombstones), (2, 2, 1));
    assert_eq!(p.deadlines, Some((WallTime(500), WallTime(900))));
}

#[test]
fn a_table_of_range_tombstones_alone_opens_and_answers() {
    let many: Vec<_> = (0..5000u32)
        .map(|n| RangeTombstone {
            start: format!("{n:08}").into_bytes(),
            end: format!("{n:08}x").into_bytes(),
            seqno: n.into(),
        })
        .collect();
    let written = write(&Model::new(), &many, TableOptions::default());
    let table = written.open().unwrap();
    assert_eq!(table.range_tombstones(), many);
    assert!(table.properties().range_tombstone_blocks.len() > 1);
    assert_eq!(get(&table, b"00000001", SEQNO_MAX).unwrap(), None);
    let mut iter = TableIter::new(table.clone(), ReadOptions::SCAN);
    block_on(iter.first()).unwrap();
    assert!(!iter.valid());
    block_on(iter.last()).unwrap();
    assert!(!iter.valid());
    block_on(table.verify()).unwrap();
}

#[test]
fn filters_spare_reads_of_absent_keys_and_prefixes() {
    let mut model = Model::new();
    for n in 0..20_000u64 {
        // Even prefixes only.
        let key = format!("{:04}/{n}", n / 40 * 2).into_bytes();
        model.insert((key, std::cmp::Reverse(Trailer::new(n, Kind::Value).0)), vec![1; 20]);
    }
    let rule = PrefixRule::fixed(5);
    let options = TableOptions { prefix_rule: Some(rule.clone()), ..TableOptions::default() };
    let table = write(&model, &[], options).open().unwrap();
    let (mut passed, mut passed_prefixes) = (0, 0);
    for n in 0..5000u64 {
        let key = format!("{:04}/{n}-", n % 1000).into_bytes();
        passed += u64::from(block_on(table.may_contain(&key, SEQNO_MAX, hash64(&key))).unwrap());
    }
    for n in 0..500u64 {
        let there = format!("{:04}/", n * 2);
        assert!(block_on(table.may_contain_prefix(&rule, there.as_bytes())).unwrap(), "{there}");
        let absent = format!("{:04}/", n * 2 + 1);
        let answer = block_on(table.may_contain_prefix(&rule, absent.as_bytes())).unwrap();
        passed_prefixes += u64::from(answer);
    }
    assert!(passed < 100, "{passed} of 5000 absent keys passed");
    assert!(passed_prefixes < 15, "{passed_prefixes} of 500 absent prefixes passed");
    let other = PrefixRule::fixed(4);
    assert!(
        block_on(table.may_contain_prefix(&other, b"0001")).unwrap(),
        "a filter of another rule denies nothing"
    );
}

#[test]
fn a_prefix_that_spans_partitions_is_found_wherever_it_starts() {
    for seed in 0..30 {
        let rng = &mut Rng(seed);
        let model = random_model(rng, 600);
        let rule = PrefixRule::fixed(4);
        let options = TableOptions {
            block_bytes: 64,
            partition_bytes: 60,
            prefix_rule: Some(rule.clone()),
            ..TableOptions::default()
        };
        let table = write(&model, &[], options).open().unwrap();
        for (user_key, _) in model.keys().filter(|(user_key, _)| user_key.len() >= 4) {
            assert!(block_on(table.may_contain_prefix(&rule, &user_key[..4])).unwrap());
        }
    }
}

/// Everything a table can be asked, as text: an error or all answers.
fn ask_everything(written: &Written, model: &Model) -> Vec<Result<String>> {
    let table = match written.open() {
        Ok(table) => table,
        Err(e) => return vec![Err(e)],
    };
    let mut answers = vec![Ok(format!("{:?}", table.range_tombstones()))];
    for (user_key, _) in model.keys() {
        answers.push(get(&table, user_key, SEQNO_MAX).map(|found| format!("{found:?}")));
    }
    for to in [Seek::First, Seek::Last] {
        let mut iter = TableIter::new(table.clone(), ReadOptions::COMPACTION);
        let mut walked = String::new();
        let mut step = block_on(iter.go_to(to));
        while step.is_ok() && iter.valid() {
            walked += &format!("{:?}{:?}", iter.key(), iter.value());
            step = match to {
                Seek::First => block_on(iter.next()),
                _ => block_on(iter.prev()),
            };
        }
        answers.push(step.map(|()| walked));
    }
    answers.push(block_on(table.verify()).map(|verified| format!("{verified:?}")));
    answers
}

impl TableIter {
    async fn go_to(&mut self, to: Seek<'_>) -> Result<()> {
        match self.position(to) {
            Advance::Done => Ok(()),
            Advance::NeedsBlock => self.load().await,
        }
    }
}

#[test]
fn every_bit_flip_gives_a_named_corruption_or_leaves_the_answer_as_it_was() {
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd(3)] {
        let mut model = Model::new();
        for n in 0..40u64 {
            let key = format!("user:{:03}", n * 7).into_bytes();
            let trailer = std::cmp::Reverse(Trailer::new(n, Kind::Value).0);
            model.insert((key, trailer), format!("value value {n}").into_bytes());
        }
        let tombstones =
            [RangeTombstone { start: b"user:1".to_vec(), end: b"user:2".to_vec(), seqno: 99 }];
        let options = TableOptions {
            block_bytes: 300,
            partition_bytes: 60,
            codec,
            ..TableOptions::default()
        };
        let written = write(&model, &tombstones, options);
        let file = written.file();
        let right = ask_everything(&written, &model);
        let bits = written.meta.size as usize * 8;
        for bit in 0..bits {
            file.bytes.lock()[bit / 8] ^= 1 << (bit % 8);
            let answers = ask_everything(&written, &model);
            let mut errors = 0;
            for (i, answer) in answers.iter().enumerate() {
                match answer {
                    Ok(answer) => assert_eq!(Some(answer), right[i].as_ref().ok(), "bit {bit}"),
                    Err(Error::Corruption { file, offset, .. }) => {
                        errors += 1;
                        assert_eq!(file, Path::new("t"));
                        assert!(*offset as usize <= bit / 8, "bit {bit} blamed on {offset}");
                    }
                    Err(e) => panic!("bit {bit}: {e}"),
                }
            }
            assert!(errors > 0, "bit {bit}: verify must find it");
            file.bytes.lock()[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_swapped_stale_truncated_or_extended_file_is_refused_by_name() {
    let model = random_model(&mut Rng(1), 100);
    let written = write(&model, &[], TableOptions::default());
    let disk = &written.disk;
    let path = Path::new("t");
    let pool: Arc<dyn Pool> = Arc::new(HeapPool::new(0));
    let open = |id: u64, expected: Expected| {
        block_on(Table::open(disk, path, id, expected, pool.clone())).map(drop)
    };
    let expected = written.expected();
    open(7, expected).unwrap();
    let corrupt = |result: Result<()>| {
        assert!(matches!(&result, Err(Error::Corruption { .. })), "{result:?}");
    };
    corrupt(open(8, expected));
    corrupt(open(7, Expected { salt: SALT + 1, ..expected }));
    corrupt(open(7, Expected { size: expected.size + 1, ..expected }));
    let file = written.file();
    let whole = file.bytes.lock().clone();
    for cut in (0..whole.len()).step_by(13) {
        *file.bytes.lock() = whole[..cut].to_vec();
        corrupt(open(7, expected));
        // The manifest of a cut file would have to lie as well.
        corrupt(open(7, Expected { size: cut as u64, ..expected }));
    }
    *file.bytes.lock() = [&whole[..], b"x"].concat();
    corrupt(open(7, expected));
    *file.bytes.lock() = vec![0; whole.len()];
    corrupt(open(7, expected));
    let missing = block_on(Table::open(disk, Path::new("u"), 7, expected, pool.clone()));
    assert!(matches!(missing, Err(Error::Io { .. })));
}

#[test]
fn data_of_another_table_of_the_same_shape_does_not_verify() {
    let model = random_model(&mut Rng(2), 300);
    let options = TableOptions { codec: Codec::None, ..TableOptions::default() };
    let ours = write(&model, &[], options.clone());
    let theirs = write_as(8, &model, &[], options);
    let end = ours.meta.properties.data_bytes as usize;
    let foreign = theirs.file().bytes.lock()[..end].to_vec();
    ours.file().bytes.lock()[..end].copy_from_slice(&foreign);
    let table = ours.open().unwrap();
    let (user_key, _) = model.keys().next().unwrap();
    let found = get(&table, user_key, SEQNO_MAX);
    assert!(matches!(found, Err(Error::Corruption { offset: 0, .. })), "{found:?}");
}

#[test]
fn a_newer_format_is_foreign_not_corrupt() {
    let model = random_model(&mut Rng(3), 10);
    let written = write(&model, &[], TableOptions::default());
    let file = written.file();
    {
        let mut bytes = file.bytes.lock();
        let footer = bytes.len() - footer::FOOTER_LEN;
        bytes[footer + 48] = 9;
        let place = atoll_encoding::checksum::Place { file: 7, salt: SALT, offset: footer as u64 };
        let end = footer + 56;
        let parts = [&bytes[footer..footer + 52], &bytes[end..]];
        let crc = atoll_encoding::checksum::seeded(place, &parts);
        bytes[footer + 52..end].copy_from_slice(&crc.to_le_bytes());
    }
    assert!(matches!(written.open(), Err(Error::Foreign { .. })));
}

#[test]
fn an_iterator_that_met_an_error_stays_there() {
    let model = random_model(&mut Rng(4), 400);
    let options = TableOptions { block_bytes: 300, ..TableOptions::default() };
    let written = write(&model, &[], options);
    let file = written.file();
    for direction in [Direction::Forward, Direction::Backward] {
        for fail_after in 1..30 {
            let table = written.open_with(Arc::new(HeapPool::new(0))).unwrap();
            let options = ReadOptions { readahead_max: 0, ..ReadOptions::SCAN };
            let mut iter = TableIter::new(table, options);
            file.fail_at.store(file.operations.load(Relaxed) + fail_after, Relaxed);
            let mut seen = 0;
            let mut step = match direction {
                Direction::Forward => block_on(iter.first()),
                Direction::Backward => block_on(iter.last()),
            };
            while step.is_ok() && iter.valid() {
                seen += 1;
                step = match direction {
                    Direction::Forward => block_on(iter.next()),
                    Direction::Backward => block_on(iter.prev()),
                };
            }
            assert!(step.is_err() && seen < model.len(), "read {fail_after} fails");
            assert!(!iter.valid());
            assert!(block_on(iter.next()).is_err(), "the error stays");
            assert!(block_on(iter.prev()).is_err());
            assert!(block_on(iter.first()).is_err(), "also for a jump");
            file.fail_at.store(0, Relaxed);
        }
    }
}

#[test]
fn a_writer_whose_write_or_sync_failed_finishes_nothing() {
    let model = random_model(&mut Rng(6), 3000);
    for fail_at in 1.. {
        let disk = MemoryDisk::default();
        let result = block_on(async {
            let options = TableOptions { codec: Codec::None, ..TableOptions::default() };
            let path = Path::new("t");
            let class = IoClass::Flush;
            let mut writer = TableWriter::create(&disk, path, 1, 2, options, class).await?;
            disk.files.lock()[path].fail_at.store(fail_at, Relaxed);
            let mut failed = false;
            for (key, value) in &model {
                writer.add(internal(key), value)?;
                failed |= writer.is_full() && writer.write_out().await.is_err();
            }
            let finished = writer.finish().await;
            assert!(!(failed && finished.is_ok()));
            finished
        });
        if result.is_ok() {
            assert!(fail_at > 3, "there are several operations to fail");
            break;
        }
    }
}

#[test]
fn the_writer_refuses_what_a_table_cannot_hold() {
    let disk = MemoryDisk::default();
    block_on(async {
        let create = |path| {
            let options = TableOptions::default();
            TableWriter::create(&disk, Path::new(path), 1, 2, options, IoClass::Flush)
        };
        let mut writer = create("a").await.unwrap();
        let key = |user_key, seqno, kind| InternalKey::new(user_key, Trailer::new(seqno, kind));
        writer.add(key(b"b", 5, Kind::Value), b"").unwrap();
        for bad in [
            key(b"b", 5, Kind::Value),
            key(b"b", 6, Kind::Value),
            key(b"a", 1, Kind::Value),
            key(b"c", 1, Kind::ExpiringValue),
            InternalKey::new(b"c", Trailer(0xff)),
            key(&[b'c'; KEY_MAX + 1], 1, Kind::Value),
        ] {
            assert!(matches!(writer.add(bad, b"short"), Err(Error::InvalidInput(_))), "{bad:?}");
        }
        let huge = vec![0; VALUE_MAX + 1];
        assert!(writer.add(key(b"c", 1, Kind::Value), &huge).is_err());
        let empty = RangeTombstone { start: b"a".to_vec(), end: b"a".to_vec(), seqno: 1 };
        assert!(writer.add_range_tombstone(&empty).is_err());
        // The longest there is, which a separator must outgrow.
        writer.add(key(&[b'z'; KEY_MAX], 1, Kind::Value), &huge[1..]).unwrap();
        assert_eq!(writer.finish().await.unwrap().properties.entries, 2);
        assert!(create("b").await.unwrap().finish().await.is_err(), "empty");
        assert!(create("b").await.is_err(), "the name is taken");
    });
}

#[test]
fn reading_ahead_turns_many_reads_into_few() {
    let mut model = Model::new();
    for n in 0..20_000u64 {
        let trailer = std::cmp::Reverse(Trailer::new(n, Kind::Value).0);
        model.insert((n.to_be_bytes().to_vec(), trailer), vec![n as u8; 100]);
    }
    let options = TableOptions { codec: Codec::None, ..TableOptions::default() };
    let written = write(&model, &[], options);
    let blocks = written.meta.properties.data_blocks;
    assert!(blocks > 400);
    let reads_of = |options: ReadOptions, backward: bool| {
        let table = written.open_with(Arc::new(HeapPool::new(0))).unwrap();
        let before = written.file().reads.load(Relaxed);
        let mut iter = TableIter::new(table, options);
        block_on(if backward { iter.go_to(Seek::Last) } else { iter.go_to(Seek::First) }).unwrap();
        let mut seen = 0;
        while iter.valid() {
            seen += 1;
            block_on(async { if backward { iter.prev().await } else { iter.next().await } })
                .unwrap();
        }
        assert_eq!(seen, 20_000);
        written.file().reads.load(Relaxed) - before
    };
    let alone = ReadOptions { readahead_max: 0, ..ReadOptions::SCAN };
    for backward in [false, true] {
        assert!(reads_of(alone, backward) > blocks);
        assert!(reads_of(ReadOptions::SCAN, backward) < 40);
        assert!(reads_of(ReadOptions::COMPACTION, backward) < 30);
    }
}

#[test]
fn the_estimated_size_is_near_the_real_one() {
    let model = random_model(&mut Rng(9), 4000);
    let disk = MemoryDisk::default();
    block_on(async {
        let options = TableOptions::default();
        let path = Path::new("t");
        let mut writer =
            TableWriter::create(&disk, path, 1, 2, options, IoClass::Flush).await.unwrap();
        for (key, value) in &model {
            writer.add(internal(key), value).unwrap();
        }
        let estimate = writer.estimated_size();
        let size = writer.finish().await.unwrap().size;
        assert!(estimate.abs_diff(size) < size / 10, "{estimate} for {size}");
    });
}

#[test]
fn random_bytes_never_panic_a_decoder() {
    let rng = &mut Rng(11);
    let mut block = block::BlockBuilder::new(4);
    let model = random_model(rng, 30);
    model.iter().for_each(|(key, value)| block.add(internal(key), value));
    let good = block.finish().to_vec();
    let footer = footer::Footer {
        properties: Handle { offset: 1, len: 2 },
        top_index: Handle { offset: 3, len: 4 },
        table: 5,
        salt: 6,
        size: 700,
    };
    for round in 0..20_000 {
        // Noise, or a good block with some bytes changed and its end cut.
        let bytes = if round % 2 == 0 {
            (0..rng.below(200)).map(|_| rng.next() as u8).collect()
        } else {
            let mut bytes = good.clone();
            for _ in 0..=rng.below(4) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.next() as u8;
            }
            if rng.below(2) == 0 {
                bytes.truncate(rng.below(bytes.len() as u64) as usize);
            }
            bytes
        };
        exercise_block(rng, &bytes);
        let _ = properties::Properties::decode(&bytes);
        let _ = properties::range_tombstones(&bytes);
        let _ = index::TopIndex::decode(&bytes);
        let _ = filter::may_contain(&bytes, rng.next());
        let mut end = footer.encode();
        bytes.iter().zip(&mut end).for_each(|(byte, place)| *place ^= byte);
        let decoded = footer::Footer::decode(&end, 5, 6, 700);
        assert_eq!(decoded.is_ok(), end == footer.encode());
    }
}

/// Searches and walks bytes as a block, in whatever way they allow.
fn exercise_block(rng: &mut Rng, bytes: &[u8]) {
    let user_key = random_key(rng);
    let target = InternalKey::new(&user_key, Trailer::visible_at(rng.below(1000)));
    if let Ok(view) = block::BlockView::new(bytes) {
        let _ = view.find(target);
        for n in 0..view.restarts().min(10) {
            let _ = index::data_block(view, n);
        }
    }
    let mut frame = HeapPool::new(0).frame(bytes.len());
    frame.copy_from_slice(bytes);
    let mut cursor = block::Cursor::default();
    if cursor.enter(frame.into()).is_err() {
        return;
    }
    for backward in [false, true] {
        let start = if backward { cursor.last() } else { cursor.first() };
        let mut going = start.is_ok();
        for _ in 0..1000 {
            if !going || !cursor.valid() {
                break;
            }
            let (block, range) = cursor.value();
            assert!(cursor.key().user_key.len() + block[range].len() <= KEY_MAX + bytes.len());
            going = match backward {
                false => cursor.step() || cursor.next_interval() == Ok(true),
                true => cursor.step_back() || cursor.previous_interval() == Ok(true),
            };
        }
    }
    let _ = cursor.seek(target);
    let _ = cursor.seek_for_prev(target);
}
