//! Keyspaces: named, nested ranges of the one ordered byte space.
//!
//! A keyspace is a 4-byte big-endian id in front of every key, so that creating one costs a
//! record, clearing or dropping one costs a range tombstone, and ten thousand idle ones cost
//! nothing: they share the log, the memtables and the tables. (A tree for each keyspace, the
//! rejected way, lets an idle one pin the shared log and multiplies memtables.)
//!
//! Names and options are records themselves, in the keyspace with id 0: their creation and removal
//! is logged, replayed and atomic like everything else.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use atoll_encoding::{Malformed, Reader, varint};
use atoll_env::block_on;
use parking_lot::RwLock;

use crate::batch::Batch;
use crate::compaction::filter::CompactionFilter;
use crate::database::Inner;
use crate::error::{Error, Result};
use crate::iter::scan::Bounds;
use crate::long::ValueReader;
use crate::merge::{self, MergeOperator};
use crate::options::{
    KEY_LEN_MAX, KEYSPACE_NAME_LEN_MAX, KeyspaceOptions, ValuePlacement, WriteOptions,
};
use crate::range::{Cursor, Range};
use crate::read::Record;
use crate::slice::Slice;
use crate::table::PrefixRule;
use crate::values::ValueRule;

/// The keyspace that names the others.
pub(crate) const CATALOG: u32 = 0;
/// The key in it of the highest id that was ever used, written when a keyspace is dropped: no name
/// is empty.
pub(crate) const LAST_ID: &[u8] = b"";

/// A named range of keys. Cheap to clone; keeps its database open.
#[derive(Clone)]
pub struct Keyspace {
    pub(crate) db: Arc<Inner>,
    pub(crate) about: Arc<About>,
}

/// What is known of a keyspace.
pub(crate) struct About {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) options: KeyspaceOptions,
    pub(crate) dropped: AtomicBool,
    /// What merges, if the options name it and it was registered.
    pub(crate) operator: Option<Arc<dyn MergeOperator>>,
    /// What decides over its values when they are compacted.
    pub(crate) filter: Option<Arc<dyn CompactionFilter>>,
}

impl Keyspace {
    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.about.name
    }

    /// Returns the options it was created with.
    pub fn options(&self) -> KeyspaceOptions {
        self.about.options.clone()
    }

    pub(crate) fn id(&self) -> u32 {
        self.about.id
    }

    /// Returns when a value written now expires by the keyspace's own rule.
    pub(crate) fn default_deadline(&self) -> Option<u64> {
        let ttl = u64::try_from(self.about.options.ttl?.as_millis()).unwrap_or(u64::MAX);
        Some(self.db.store.now().saturating_add(ttl))
    }

    /// Returns when a merge operand written now expires by the keyspace's own rule.
    pub(crate) fn window_deadline(&self) -> Option<u64> {
        let ttl = u64::try_from(self.about.options.ttl?.as_millis()).unwrap_or(u64::MAX);
        Some(merge::window_deadline(self.db.store.now(), ttl))
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.about.dropped.load(Ordering::Acquire) {
            return Err(Error::InvalidInput(format!(
                "keyspace '{}' was dropped: create it again to use it",
                self.about.name
            )));
        }
        Ok(())
    }

    // ---- reads ----

    /// Returns the value of `key`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        block_on(self.get_async(key))
    }

    /// Async twin of [`Keyspace::get`].
    pub async fn get_async(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        Ok(self.record_async(key).await?.map(|record| record.value))
    }

    /// Returns the value of `key` with its deadline.
    pub fn record(&self, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        block_on(self.record_async(key))
    }

    /// Async twin of [`Keyspace::record`].
    pub async fn record_async(&self, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        self.check_alive()?;
        let (view, snapshot) = self.db.store.pin();
        self.db.read(&view, self.id(), key.as_ref(), snapshot).await
    }

    /// Returns the value of `key` for reading piece by piece, which takes little memory however
    /// long it is.
    pub fn reader(&self, key: impl AsRef<[u8]>) -> Result<Option<ValueReader>> {
        block_on(self.reader_async(key))
    }

    /// Async twin of [`Keyspace::reader`].
    pub async fn reader_async(&self, key: impl AsRef<[u8]>) -> Result<Option<ValueReader>> {
        self.check_alive()?;
        let _timer = self.db.begin_read(key.as_ref())?;
        ValueReader::open(self.clone(), key.as_ref()).await
    }

    /// Returns whether `key` has a value.
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        block_on(self.contains_key_async(key))
    }

    /// Async twin of [`Keyspace::contains_key`].
    pub async fn contains_key_async(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.check_alive()?;
        let _timer = self.db.begin_read(key.as_ref())?;
        let (view, snapshot) = self.db.store.pin();
        Ok(self.db.find(&view, self.id(), key.as_ref(), snapshot).await?.is_some())
    }

    /// Returns the values of several keys, all as of one moment, in the order asked.
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        block_on(self.multi_get_async(keys))
    }

    /// Async twin of [`Keyspace::multi_get`].
    pub async fn multi_get_async<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        self.check_alive()?;
        let (view, snapshot) = self.db.store.pin();
        self.db.read_many(&view, self.id(), keys, snapshot).await
    }

    /// Iterates over the keys of `range`, from both ends, as of now.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Range {
        Range::new(self.cursor(range))
    }

    /// Iterates over the keys that begin with `prefix`.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        Range::new(self.prefix_cursor(prefix))
    }

    /// Iterates over all keys.
    pub fn iter(&self) -> Range {
        self.range::<&[u8]>(..)
    }

    /// Async twin of [`Keyspace::range`].
    pub fn cursor<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Cursor {
        let bounds = bounds_of(self.id(), &range);
        Cursor::new(self.clone(), bounds, None, self.db.store.pin_owned())
    }

    /// Async twin of [`Keyspace::prefix`].
    pub fn prefix_cursor(&self, prefix: impl AsRef<[u8]>) -> Cursor {
        let (bounds, filter) = self.prefix_bounds(prefix.as_ref());
        Cursor::new(self.clone(), bounds, filter, self.db.store.pin_owned())
    }

    /// Returns the first key with its value.
    pub fn first_key_value(&self) -> Result<Option<(Vec<u8>, Slice)>> {
        block_on(self.first_key_value_async())
    }

    /// Async twin of [`Keyspace::first_key_value`].
    pub async fn first_key_value_async(&self) -> Result<Option<(Vec<u8>, Slice)>> {
        match self.cursor::<&[u8]>(..).next().await? {
            Some(guard) => guard.into_inner_async().await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns the last key with its value.
    pub fn last_key_value(&self) -> Result<Option<(Vec<u8>, Slice)>> {
        block_on(self.last_key_value_async())
    }

    /// Async twin of [`Keyspace::last_key_value`].
    pub async fn last_key_value_async(&self) -> Result<Option<(Vec<u8>, Slice)>> {
        match self.cursor::<&[u8]>(..).next_back().await? {
            Some(guard) => guard.into_inner_async().await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns the range of a prefix, and the part of it that filters know.
    pub(crate) fn prefix_bounds(&self, prefix: &[u8]) -> (Bounds, Option<(PrefixRule, Vec<u8>)>) {
        let start = user_key(self.id(), prefix);
        let end = successor(&start);
        let known = usize::from(self.about.options.filter_prefix_len);
        let filter = (known > 0 && prefix.len() >= known)
            .then(|| (self.db.keyspaces.prefix_rule(), start[..4 + known].to_vec()));
        (Bounds { start, end }, filter)
    }

    // ---- writes ----

    /// Sets `key` to `value`.
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.insert_with(key, value, WriteOptions::default())
    }

    /// Sets `key` to `value` under `options`.
    pub fn insert_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        block_on(self.insert_async(key, value, options))
    }

    /// Async twin of [`Keyspace::insert_with`].
    pub async fn insert_async(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        self.check_alive()?;
        let mut batch = Batch::new();
        batch.insert(self, key.as_ref(), value.as_ref());
        self.db.write(batch, options).await
    }

    /// Sets `key` to `value` for the time `ttl`.
    pub fn insert_for(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        block_on(self.insert_for_async(key, value, ttl, WriteOptions::default()))
    }

    /// Async twin of [`Keyspace::insert_for`], under `options`.
    pub async fn insert_for_async(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
        options: WriteOptions,
    ) -> Result<()> {
        self.check_alive()?;
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let deadline = self.db.store.now().saturating_add(millis);
        let mut batch = Batch::new();
        batch.insert_expiring(self, key.as_ref(), value.as_ref(), deadline);
        self.db.write(batch, options).await
    }

    /// Removes `key`.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<()> {
        block_on(self.remove_async(key, WriteOptions::default()))
    }

    /// Removes `key` under `options`.
    pub fn remove_with(&self, key: impl AsRef<[u8]>, options: WriteOptions) -> Result<()> {
        block_on(self.remove_async(key, options))
    }

    /// Async twin of [`Keyspace::remove_with`].
    pub async fn remove_async(&self, key: impl AsRef<[u8]>, options: WriteOptions) -> Result<()> {
        self.check_alive()?;
        let mut batch = Batch::new();
        batch.remove(self, key.as_ref());
        self.db.write(batch, options).await
    }

    /// Has the keyspace's merge operator change the value of `key` by `operand`, of at most 1 MiB,
    /// without reading it: see [`MergeOperator`].
    pub fn merge(&self, key: impl AsRef<[u8]>, operand: impl AsRef<[u8]>) -> Result<()> {
        self.merge_with(key, operand, WriteOptions::default())
    }

    /// Merges as [`Keyspace::merge`] does, under `options`.
    pub fn merge_with(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        block_on(self.merge_async(key, operand, options))
    }

    /// Async twin of [`Keyspace::merge_with`].
    pub async fn merge_async(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        self.check_alive()?;
        let mut batch = Batch::new();
        batch.merge(self, key.as_ref(), operand.as_ref());
        self.db.write(batch, options).await
    }

    /// Removes every key of `range`, at a cost independent of their number.
    pub fn remove_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        self.remove_range_with(range, WriteOptions::default())
    }

    /// Removes every key of `range` under `options`.
    pub fn remove_range_with<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        options: WriteOptions,
    ) -> Result<()> {
        block_on(self.remove_range_async(range, options))
    }

    /// Async twin of [`Keyspace::remove_range_with`].
    pub async fn remove_range_async<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        options: WriteOptions,
    ) -> Result<()> {
        self.check_alive()?;
        let mut batch = Batch::new();
        batch.remove_bounds(bounds_of(self.id(), &range));
        self.db.write(batch, options).await
    }

    /// Removes every key, at a cost independent of their number.
    pub fn clear(&self) -> Result<()> {
        block_on(self.clear_async(WriteOptions::default()))
    }

    /// Async twin of [`Keyspace::clear`], under `options`.
    pub async fn clear_async(&self, options: WriteOptions) -> Result<()> {
        self.remove_range_async::<&[u8]>(.., options).await
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyspace({:?}, id {})", self.about.name, self.about.id)
    }
}

/// Returns `key` behind its keyspace's id.
pub(crate) fn user_key(keyspace: u32, key: &[u8]) -> Vec<u8> {
    let mut user_key = Vec::with_capacity(4 + key.len());
    user_key.extend_from_slice(&keyspace.to_be_bytes());
    user_key.extend_from_slice(key);
    user_key
}

/// Returns the smallest byte string that is larger than every one that begins with `prefix`, which
/// is not all ones (keyspace ids stay below `u32::MAX`).
pub(crate) fn successor(prefix: &[u8]) -> Vec<u8> {
    let keep = prefix.iter().rposition(|b| *b != u8::MAX).map_or(0, |at| at + 1);
    let mut next = prefix[..keep].to_vec();
    if let Some(last) = next.last_mut() {
        *last += 1;
    }
    next
}

/// Returns the range of user keys that `range` means in a keyspace.
pub(crate) fn bounds_of<K: AsRef<[u8]>>(keyspace: u32, range: &impl RangeBounds<K>) -> Bounds {
    // The smallest key behind `k` is `k` with a zero byte appended.
    let behind = |key: &[u8]| {
        let mut next = user_key(keyspace, key);
        next.push(0);
        next
    };
    Bounds {
        start: match range.start_bound() {
            Bound::Included(key) => user_key(keyspace, key.as_ref()),
            Bound::Excluded(key) => behind(key.as_ref()),
            Bound::Unbounded => user_key(keyspace, b""),
        },
        end: match range.end_bound() {
            Bound::Included(key) => behind(key.as_ref()),
            Bound::Excluded(key) => user_key(keyspace, key.as_ref()),
            Bound::Unbounded => (keyspace + 1).to_be_bytes().to_vec(),
        },
    }
}

/// The names, in memory.
#[derive(Default)]
pub(crate) struct Keyspaces {
    names: RwLock<Names>,
    operators: Vec<Arc<dyn MergeOperator>>,
    filters: Vec<(String, Arc<dyn CompactionFilter>)>,
}

#[derive(Default)]
struct Names {
    by_name: BTreeMap<String, Arc<About>>,
    /// Filter prefix lengths by id, where there is one.
    prefix_lens: Arc<BTreeMap<u32, u16>>,
    /// Where values stand, by id, where it was said.
    placements: Arc<BTreeMap<u32, ValuePlacement>>,
    /// Those with an operator or a filter, by id: what compactions call.
    callbacks: Callbacks,
    last_id: u32,
}

impl Names {
    fn place(&mut self, id: u32, values: ValuePlacement) {
        Arc::make_mut(&mut self.placements).insert(id, values);
    }
}

/// The keyspaces whose records a compaction shows to code of the user's.
pub(crate) type Callbacks = Arc<BTreeMap<u32, Arc<About>>>;

impl Keyspaces {
    pub(crate) fn new(
        operators: Vec<Arc<dyn MergeOperator>>,
        filters: Vec<(String, Arc<dyn CompactionFilter>)>,
    ) -> Keyspaces {
        Keyspaces { names: RwLock::default(), operators, filters }
    }

    /// Refuses options of a new keyspace that name an operator nobody registered.
    pub(crate) fn check_options(&self, options: &KeyspaceOptions) -> Result<()> {
        match options.merge_operator.as_deref() {
            Some(name) if merge::find(&self.operators, name).is_none() => {
                Err(Error::InvalidInput(format!(
                    "there is no merge operator '{}': register it (Builder::merge_operator) before \
                     a keyspace names it",
                    name.escape_default()
                )))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether compactions may show values to filters.
    pub(crate) fn has_filters(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Returns the keyspaces that compactions call code of.
    pub(crate) fn callbacks(&self) -> Callbacks {
        self.names.read().callbacks.clone()
    }

    /// Takes over what was read since: while a database is opened and nobody has a keyspace of it.
    pub(crate) fn renew(&self, found: Keyspaces) {
        *self.names.write() = found.names.into_inner();
    }

    /// Returns the keyspace of that id, if it has an operator or a filter.
    pub(crate) fn with_id(&self, id: u32) -> Option<Arc<About>> {
        self.names.read().callbacks.get(&id).cloned()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<About>> {
        self.names.read().by_name.get(name).cloned()
    }

    /// Returns the names, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        self.names.read().by_name.keys().cloned().collect()
    }

    /// Returns the keyspaces that go when `name` is dropped: it and those nested in it.
    pub(crate) fn family(&self, name: &str) -> Vec<Arc<About>> {
        let names = self.names.read();
        let nested = format!("{name}/");
        let inside = |n: &String| n == name || n.starts_with(&nested);
        names.by_name.iter().filter(|(n, _)| inside(n)).map(|(_, a)| a.clone()).collect()
    }

    /// Returns the highest id that was ever used.
    pub(crate) fn last_id(&self) -> u32 {
        self.names.read().last_id
    }

    /// Takes ids up to `last` for used.
    pub(crate) fn skip_ids(&self, last: u32) {
        let mut names = self.names.write();
        names.last_id = names.last_id.max(last);
    }

    /// Draws an id that was never used.
    pub(crate) fn draw_id(&self) -> Result<u32> {
        let mut names = self.names.write();
        if names.last_id >= u32::MAX - 2 {
            return Err(Error::InvalidInput("all keyspace ids are used up".to_owned()));
        }
        names.last_id += 1;
        Ok(names.last_id)
    }

    pub(crate) fn add(&self, about: About) -> Arc<About> {
        let mut about = about;
        let operator = about.options.merge_operator.as_deref();
        about.operator = operator.and_then(|name| merge::find(&self.operators, name));
        let filter = self.filters.iter().rev().find(|(name, _)| *name == about.name);
        about.filter = filter.map(|(_, filter)| filter.clone());
        let mut names = self.names.write();
        let about = Arc::new(about);
        if about.options.merge_operator.is_some() || about.filter.is_some() {
            let mut callbacks = (*names.callbacks).clone();
            callbacks.insert(about.id, about.clone());
            names.callbacks = Arc::new(callbacks);
        }
        names.last_id = names.last_id.max(about.id);
        if about.options.filter_prefix_len > 0 {
            let mut lens = (*names.prefix_lens).clone();
            lens.insert(about.id, about.options.filter_prefix_len);
            names.prefix_lens = Arc::new(lens);
        }
        if about.options.values != ValuePlacement::Usual {
            names.place(about.id, about.options.values);
        }
        names.by_name.insert(about.name.clone(), about.clone());
        about
    }

    pub(crate) fn forget(&self, about: &About) {
        about.dropped.store(true, Ordering::Release);
        self.names.write().by_name.remove(&about.name);
    }

    /// Returns which part of a user key goes into prefix filters, for the tables written now.
    pub(crate) fn prefix_rule(&self) -> PrefixRule {
        let lens = self.names.read().prefix_lens.clone();
        // A keyspace's prefix length never changes and its id is never used again, so one rule
        // number stands for all of these functions.
        let prefix_len = move |user_key: &[u8]| {
            let mut id = [0; 4];
            id.copy_from_slice(user_key.get(..4)?);
            let len = 4 + usize::from(*lens.get(&u32::from_be_bytes(id))?);
            (user_key.len() >= len).then_some(len)
        };
        PrefixRule { id: 1, prefix_len: Arc::new(prefix_len) }
    }

    /// Keeps the values of keyspace `id` in tables. The catalog's are: they are needed to open a
    /// database at all, also a damaged one.
    pub(crate) fn keep_inline(&self, id: u32) {
        self.names.write().place(id, ValuePlacement::Inline);
    }

    /// Returns where values go in the tables written now, `usual` if a keyspace says nothing.
    pub(crate) fn value_rule(&self, usual: Option<u32>) -> ValueRule {
        ValueRule { usual, placements: self.names.read().placements.clone() }
    }
}

/// Refuses names that cannot be.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let wrong = |what: &str| {
        Err(Error::InvalidInput(format!("'{}' is no keyspace name: {what}", name.escape_default())))
    };
    if name.is_empty() || name.len() > KEYSPACE_NAME_LEN_MAX {
        return wrong("it must have 1 to 255 bytes");
    }
    if name.split('/').any(str::is_empty) {
        return wrong("the parts between slashes must not be empty");
    }
    if name.chars().any(char::is_control) {
        return wrong("it has a control character");
    }
    Ok(())
}

/// Encodes a catalog record.
pub(crate) fn encode_about(id: u32, options: &KeyspaceOptions) -> Vec<u8> {
    let mut out = vec![1];
    varint::put(&mut out, u64::from(id));
    let ttl = options.ttl.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX).max(1));
    varint::put(&mut out, ttl);
    varint::put(&mut out, u64::from(options.filter_prefix_len));
    match options.values {
        ValuePlacement::Usual => {}
        ValuePlacement::Inline => out.push(INLINE),
        ValuePlacement::Separate { above } => {
            out.push(SEPARATE);
            varint::put(&mut out, u64::from(above));
        }
        ValuePlacement::MergeBack { above, up_to } => {
            out.push(MERGE_BACK);
            varint::put(&mut out, u64::from(above));
            varint::put(&mut out, u64::from(up_to));
        }
    }
    if let Some(name) = &options.merge_operator {
        out.push(MERGE_OPERATOR);
        varint::put_bytes(&mut out, name.as_bytes());
    }
    out
}

// Further options of a catalog record, each behind its tag and present only where it is not usual.
const INLINE: u8 = 1;
const SEPARATE: u8 = 2;
const MERGE_BACK: u8 = 3;
const MERGE_OPERATOR: u8 = 4;

/// Encodes the value of [`LAST_ID`].
pub(crate) fn encode_last_id(id: u32) -> Vec<u8> {
    let mut out = vec![1];
    varint::put(&mut out, u64::from(id));
    out
}

/// Decodes the value of [`LAST_ID`].
pub(crate) fn decode_last_id(value: &[u8]) -> Result<u32, Malformed> {
    let mut r = Reader::new(value);
    let version = r.malformed("keyspace record version 1");
    if r.u8("a version")? != 1 {
        return Err(version);
    }
    let wrong = r.malformed("a keyspace id");
    let id = u32::try_from(r.varint("a keyspace id")?).map_err(|_| wrong)?;
    r.finish("the end of the record")?;
    Ok(id)
}

/// Decodes a catalog record.
pub(crate) fn decode_about(name: &[u8], value: &[u8]) -> Result<About, Malformed> {
    let mut r = Reader::new(value);
    let version = r.malformed("keyspace record version 1");
    if r.u8("a version")? != 1 {
        return Err(version);
    }
    let wrong = r.malformed("a keyspace id");
    let id = u32::try_from(r.varint("a keyspace id")?).map_err(|_| wrong)?;
    let ttl = r.varint("a time to live")?;
    let len = u16::try_from(r.varint("a prefix length")?).map_err(|_| wrong)?;
    let (mut values, mut merge_operator) = (ValuePlacement::Usual, None);
    while !r.is_empty() {
        // What another program knows of a keyspace may decide how its records are read.
        let unknown = r.malformed("a known option");
        let length = |r: &mut Reader<'_>| {
            u32::try_from(r.varint("a length")?).map_err(|_| r.malformed("a length of 32 bits"))
        };
        let placement = match r.u8("an option")? {
            INLINE => ValuePlacement::Inline,
            SEPARATE => ValuePlacement::Separate { above: length(&mut r)? },
            MERGE_BACK => {
                ValuePlacement::MergeBack { above: length(&mut r)?, up_to: length(&mut r)? }
            }
            MERGE_OPERATOR => {
                let name = std::str::from_utf8(r.bytes("the name of a merge operator")?);
                let name = name.map_err(|_| unknown)?.to_owned();
                if merge_operator.replace(name).is_some() {
                    return Err(unknown);
                }
                continue;
            }
            _ => return Err(unknown),
        };
        // One record has one encoding.
        let second = std::mem::replace(&mut values, placement) != ValuePlacement::Usual;
        if second || merge_operator.is_some() {
            return Err(unknown);
        }
    }
    let name = std::str::from_utf8(name).map_err(|_| wrong)?.to_owned();
    let options = KeyspaceOptions {
        ttl: (ttl > 0).then(|| Duration::from_millis(ttl)),
        filter_prefix_len: len,
        values,
        merge_operator,
    };
    let dropped = AtomicBool::new(false);
    Ok(About { id, name, options, dropped, operator: None, filter: None })
}

/// Refuses keys that are too long to be stored, so that a read of one is an error too and not a
/// surprising `None`.
pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    if key.len() > KEY_LEN_MAX {
        return Err(Error::InvalidInput(format!(
            "a key of {} bytes is too long: the limit is {KEY_LEN_MAX}",
            key.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_of_a_prefix_is_behind_all_that_begins_with_it() {
        assert_eq!(successor(b"\0\0\0\x01ab"), b"\0\0\0\x01ac");
        assert_eq!(successor(b"\0\0\0\x01a\xff\xff"), b"\0\0\0\x01b");
        assert_eq!(successor(b"\0\0\0\x01\xff"), b"\0\0\0\x02");
    }

    #[test]
    fn names_nest_by_slashes_and_odd_ones_are_refused() {
        for name in ["a", "users/eu/live", "ä ö"] {
            check_name(name).unwrap();
        }
        for name in ["", "/a", "a/", "a//b", "a\nb", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_catalog_record_round_trips() {
        for values in [
            ValuePlacement::Usual,
            ValuePlacement::Inline,
            ValuePlacement::Separate { above: 0 },
            ValuePlacement::MergeBack { above: 512, up_to: u32::MAX },
        ] {
            for merge_operator in [None, Some("atoll.add".to_owned())] {
                let ttl = Some(Duration::from_millis(1500));
                let options = KeyspaceOptions { ttl, filter_prefix_len: 9, values, merge_operator };
                let record = encode_about(77, &options);
                let about = decode_about(b"users", &record).unwrap();
                assert_eq!((about.id, about.name.as_str(), about.options), (77, "users", options));
                for len in 0..record.len() {
                    // Cut between two options it says less, and nothing else.
                    if let Ok(about) = decode_about(b"users", &record[..len]) {
                        assert_eq!(encode_about(77, &about.options), record[..len]);
                    }
                }
            }
        }
        let plain = encode_about(77, &KeyspaceOptions::default());
        let named = [MERGE_OPERATOR, 1, b'x'];
        let tails: [&[u8]; 8] = [
            &[9],
            &[INLINE, INLINE],
            &[SEPARATE],
            &[MERGE_BACK, 5],
            &[MERGE_OPERATOR, 2, b'x'],
            &[MERGE_OPERATOR, 1, 0xff],
            &[named, named].concat(),
            &[&named[..], &[INLINE]].concat(),
        ];
        for tail in tails {
            assert!(decode_about(b"users", &[&plain[..], tail].concat()).is_err(), "{tail:?}");
        }
        assert!(decode_about(b"users", &[2, 1, 0, 0]).is_err(), "a version of the future");
    }

    #[test]
    fn records_of_earlier_programs_are_read() {
        let old = |bytes: &[u8]| decode_about(b"users", bytes).unwrap().options;
        assert_eq!(old(&[1, 77, 0, 0]), KeyspaceOptions::default());
        let values = ValuePlacement::MergeBack { above: 20, up_to: 100 };
        let expected = KeyspaceOptions { filter_prefix_len: 5, values, ..Default::default() };
        assert_eq!(old(&[1, 77, 0, 5, MERGE_BACK, 20, 100]), expected);
    }
}
