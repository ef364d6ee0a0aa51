//! RocksDB, tuned as its wiki advises ("Setup Options and Basic Tuning", "Write Buffer Manager",
//! "BlobDB"), with and without blob files.
//!
//! | setting                       | value                   | why                                                       |
//! |-------------------------------|-------------------------|-----------------------------------------------------------|
//! | block cache                   | all of the budget       | index and filters are in it, memtables are charged to it  |
//! | write buffer manager          | half of the budget      | "a single limit" for memtables and cache                  |
//! | `write_buffer_size`           | a sixth, at most 64 MiB | one active, one in flush, one to come; 64 MiB is default  |
//! | `max_bytes_for_level_base`    | four write buffers      | "the size of level 1 close to the size of level 0"        |
//! | `target_file_size_base`       | a write buffer          | a tenth of a small level 1 would be a lot of files        |
//! | `compression`                 | LZ4, zstd at the bottom | as advised                                                |
//! | filters                       | Bloom, 10 bits          | as advised, in the cache, pinned for level 0              |
//! | `block_size`                  | 4 KiB, the default      | records are small and read singly; the advice of 16 KiB is for less memory in indexes |
//! | `max_background_jobs`         | processors, at least 2  | "the number of cores"                                     |
//! | `bytes_per_sync`              | 1 MiB                   | as advised                                                |
//! | `recycle_log_file_num`        | 4                       | a sync of a log that does not grow writes no metadata     |
//! | blobs: `min_blob_size`        | 512                     | our own threshold                                         |
//! | blobs: collection             | on, at the defaults     | as advised for data that is overwritten                   |
//!
//! The key order is that of bytes, level compaction with dynamic sizes is the default. A write is in the
//! log, and the log in the kernel, before `put` returns; synced ones set `sync`. For a log that is to
//! stay unflushed, write buffers are as large as it takes.

use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, CompactOptions, DBCompressionType,
    DBWithThreadMode, MultiThreaded, Options, SnapshotWithThreadMode, WriteBatch,
    WriteBufferManager, WriteOptions,
};

use super::{Config, Direction, Engine, Frozen};
use crate::Failure;
use crate::data::KEY_LEN;

type Database = DBWithThreadMode<MultiThreaded>;

/// Records of a batch when many are loaded.
const LOAD_BATCH: usize = 1000;

/// From this length on values go to blob files.
const BLOB_LEN_MIN: u64 = 512;

pub(super) fn open(config: &Config, blobs: bool) -> Result<Box<dyn Engine>, Failure> {
    let mut write = WriteOptions::default();
    write.set_sync(config.synced);
    let options = options(config, blobs)?;
    // A keyspace beside this one is a column family, which later openings have to name.
    let families = Database::list_cf(&options, &config.dir).unwrap_or_default();
    let database = match families.is_empty() {
        true => Database::open(&options, &config.dir)?,
        false => Database::open_cf(&options, &config.dir, families)?,
    };
    Ok(Box::new(Rocks { database, write, options }))
}

fn options(config: &Config, blobs: bool) -> Result<Options, Failure> {
    let budget = usize::try_from(config.memory)?;
    let half = budget / 2;
    let mut buffer = (half / 3).min(64 << 20);
    let cache = Cache::new_lru_cache(budget);

    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_max_bytes_for_level_base(buffer as u64 * 4);
    options.set_target_file_size_base(buffer as u64);
    if let Some(bytes) = config.unflushed {
        buffer = usize::try_from(bytes * 2)?;
        options.set_max_total_wal_size(bytes * 4);
    } else {
        let manager =
            WriteBufferManager::new_write_buffer_manager_with_cache(half, false, cache.clone());
        options.set_write_buffer_manager(&manager);
    }
    options.set_write_buffer_size(buffer);
    options.set_max_write_buffer_number(3);
    let processors = std::thread::available_parallelism()?.get();
    options.set_max_background_jobs(i32::try_from(processors)?.max(2));
    options.set_bytes_per_sync(1 << 20);
    options.set_recycle_log_file_num(4);
    if blobs {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_LEN_MIN);
        options.set_blob_compression_type(DBCompressionType::Lz4);
        options.set_enable_blob_gc(true);
        options.set_blob_cache(&cache);
    }
    Ok(options)
}

struct Rocks {
    database: Database,
    write: WriteOptions,
    options: Options,
}

impl Engine for Rocks {
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        Ok(self.database.put_opt(key, value, &self.write)?)
    }

    fn load(
        &self,
        records: &mut dyn Iterator<Item = ([u8; KEY_LEN], Vec<u8>)>,
    ) -> Result<(), Failure> {
        let mut records = records.peekable();
        while records.peek().is_some() {
            let mut batch = WriteBatch::default();
            for (key, value) in records.by_ref().take(LOAD_BATCH) {
                batch.put(key, value);
            }
            self.database.write_opt(batch, &self.write)?;
        }
        Ok(())
    }

    fn insert_beside(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        if self.database.cf_handle("beside").is_none() {
            self.database.create_cf("beside", &self.options)?;
        }
        let family = self.database.cf_handle("beside").ok_or("the column family is gone")?;
        Ok(self.database.put_cf_opt(&family, key, value, &self.write)?)
    }

    fn remove(&self, key: &[u8]) -> Result<(), Failure> {
        Ok(self.database.delete_opt(key, &self.write)?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure> {
        Ok(self.database.get_pinned(key)?.map(|value| value.len()))
    }

    fn multi_get(&self, keys: &[[u8; KEY_LEN]]) -> Result<usize, Failure> {
        let family = self.database.cf_handle("default").ok_or("there is no column family")?;
        let values = self.database.batched_multi_get_cf(&family, keys, false);
        values.into_iter().try_fold(0, |found, value| Ok(found + usize::from(value?.is_some())))
    }

    fn scan(&self, key: &[u8], direction: Direction, count: usize) -> Result<usize, Failure> {
        let mut records = self.database.raw_iterator();
        match direction {
            Direction::Forward => records.seek(key),
            Direction::Reverse => records.seek_for_prev(key),
        }
        for met in 0..count {
            let Some(record) = records.item() else {
                records.status()?;
                return Ok(met);
            };
            std::hint::black_box(record);
            match direction {
                Direction::Forward => records.next(),
                Direction::Reverse => records.prev(),
            }
        }
        Ok(count)
    }

    fn snapshot(&self) -> Result<Box<dyn Frozen + '_>, Failure> {
        Ok(Box::new(self.database.snapshot()))
    }

    fn compact(&self) -> Result<(), Failure> {
        let mut all = CompactOptions::default();
        // Tables that are at the bottom already are merged too, as the other engines do.
        all.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        self.database.compact_range_opt(None::<&[u8]>, None::<&[u8]>, &all);
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.database.cancel_all_background_work(true);
        Ok(())
    }
}

impl Frozen for SnapshotWithThreadMode<'_, Database> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(SnapshotWithThreadMode::get(self, key)?)
    }
}
