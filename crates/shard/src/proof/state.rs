//! The applied state of a store, in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use atoll_lsm::driven::{Write, decode};
use atoll_mvcc::keys::{TreeKey, placement, tree};
use atoll_mvcc::record::{Fence, TxnRecord};
use atoll_mvcc::request::{Key, Span};
use atoll_mvcc::{Timestamp, Value};

use crate::descriptor::Descriptor;
use crate::entry::{Payload, decode_count};
use crate::intent::Intent;
use crate::leader::{Base, Count, Found, Loaded, Miss, local_key};
use crate::state::counted;

/// A stored value.
pub(crate) type Stored = Rc<[u8]>;

/// See the module.
#[derive(Default)]
pub(crate) struct Applied {
    /// Ascending.
    versions: BTreeMap<Key, Vec<Found<Stored>>>,
    /// Everything else, by its tree key.
    plain: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Versions that only reads below would find are gone.
    horizon: Timestamp,
    /// When keys were removed whose removal is gone.
    removed: BTreeMap<Key, Timestamp>,
}

/// A version that an entry has added.
pub(crate) struct Added {
    pub(crate) key: Key,
    pub(crate) ts: Timestamp,
    pub(crate) value: Option<Stored>,
}

impl Applied {
    /// Applies an entry; returns its versions.
    pub(crate) fn apply(&mut self, payload: &[u8]) -> Result<Vec<Added>, String> {
        let payload = Payload::decode(payload).map_err(|e| format!("an entry: {e}"))?;
        let mut added = Vec::new();
        for write in decode(payload.writes).map_err(|e| format!("an entry's writes: {e}"))? {
            match write.map_err(|e| format!("an entry's write: {e}"))? {
                Write::Insert { key, value } => {
                    self.plain.insert(key.to_vec(), value.to_vec());
                }
                Write::Remove { key } => {
                    self.plain.remove(key);
                }
                Write::InsertVersion { key, stamp, value } => {
                    added.push(self.add(key, stamp, Some(Rc::from(value)))?);
                }
                Write::RemoveVersion { key, stamp } => added.push(self.add(key, stamp, None)?),
                Write::RemoveRange { start, end } => {
                    let mut name = Vec::new();
                    self.versions.retain(|key, _| {
                        tree::data(&mut name, key);
                        name.as_slice() < start || end <= name.as_slice()
                    });
                }
            }
        }
        Ok(added)
    }

    fn add(&mut self, name: &[u8], stamp: u64, value: Option<Stored>) -> Result<Added, String> {
        let Ok(TreeKey::Data(key)) = TreeKey::decode(name) else {
            return Err(format!("a version of something else than data: {name:?}"));
        };
        let (key, ts) = (key.to_vec(), Timestamp(stamp));
        let last = self.newest_ts(&key);
        if last >= ts {
            return Err(format!("a version of {key:?} at {ts} behind one at {last}"));
        }
        let of_key = self.versions.entry(key.clone()).or_default();
        of_key.push(Found { ts, value: value.clone() });
        Ok(Added { key, ts, value })
    }

    /// Compacts: drops the versions that only reads below the horizon would find, and removals that
    /// hide nothing any more.
    pub(crate) fn collect(&mut self, horizon: Timestamp) {
        let Applied { versions, removed, .. } = self;
        self.horizon = self.horizon.max(horizon);
        versions.retain(|key, of_key| {
            let passed = of_key.iter().take_while(|version| version.ts <= horizon).count();
            of_key.drain(..passed.saturating_sub(1));
            if let Some(Found { ts, value: None }) = of_key.first()
                && *ts <= horizon
            {
                removed.insert(key.clone(), *ts);
                of_key.remove(0);
            }
            !of_key.is_empty()
        });
    }

    /// Returns the moment below which versions are gone.
    pub(crate) fn horizon(&self) -> Timestamp {
        self.horizon
    }

    /// Returns the newest version of a key at or below `at`.
    pub(crate) fn at(&self, key: &[u8], at: Timestamp) -> Option<&Found<Stored>> {
        self.versions.get(key)?.iter().rev().find(|version| version.ts <= at)
    }

    /// Returns the timestamp of a key's newest version, also of one that is gone.
    pub(crate) fn newest_ts(&self, key: &[u8]) -> Timestamp {
        let gone = || self.removed.get(key).copied().unwrap_or_default();
        self.at(key, Timestamp::MAX).map_or_else(gone, |found| found.ts)
    }

    /// Returns the rows of a span at a moment, ascending.
    pub(crate) fn rows(&self, span: &Span, at: Timestamp) -> Vec<(Key, Found<Stored>)> {
        let within = self.versions.range(span.start.clone()..span.end.clone());
        let rows = within.filter_map(|(key, _)| Some((key.clone(), self.at(key, at)?.clone())));
        rows.filter(|(_, found)| found.value.is_some()).collect()
    }

    /// Loads what a leader of a shard starts from.
    pub(crate) fn load(&self, of: &Descriptor, horizon: Timestamp) -> Loaded {
        let mut loaded = Loaded { horizon, ..Loaded::default() };
        for (name, value) in &self.plain {
            let name = TreeKey::decode(name).expect("invariant: entries name tree keys");
            match name {
                TreeKey::Intent(key) if of.contains(key) => {
                    let intent = Intent::decode(value).expect("invariant: an intent decodes");
                    loaded.intents.push((key.to_vec(), intent));
                }
                TreeKey::Record { primary, txn } if of.contains(&primary) => {
                    let record = TxnRecord::decode(value).expect("invariant: a record decodes");
                    let written = Timestamp::read_at(record.written);
                    loaded.records.push((txn, primary, record.state, written));
                }
                TreeKey::Fence { key, txn } if of.contains(&key) => {
                    let fence = Fence::decode(value).expect("invariant: a fence decodes");
                    loaded.fences.push((key, txn, fence.start));
                }
                TreeKey::Shard { shard, what } if shard == of.id.0 => {
                    if let Some(keyspace) = counted(what) {
                        let count = decode_count(value).expect("invariant: a count decodes");
                        loaded.counts.insert(keyspace, count);
                    }
                }
                _ => {}
            }
        }
        let slots = of.range.slots();
        if !slots.is_empty() {
            let own =
                Span { start: local_key(slots.start, b""), end: local_key(slots.start + 1, b"") };
            for (key, found) in self.rows(&own, Timestamp::MAX) {
                let value = found.value.map(|value| value.to_vec()).unwrap_or_default();
                loaded.locals.push((key, value));
            }
        }
        loaded
    }

    /// Returns the stored descriptor of a shard.
    pub(crate) fn descriptor(&self, shard: u64) -> Option<Descriptor> {
        let mut name = Vec::new();
        tree::shard(&mut name, shard, crate::state::DESCRIPTOR);
        Some(Descriptor::decode(self.plain.get(&name)?).expect("invariant: a descriptor decodes"))
    }

    /// Returns how many intents, records and fences there are.
    pub(crate) fn leftovers(&self) -> [usize; 3] {
        let mut sizes = [0; 3];
        for name in self.plain.keys() {
            match TreeKey::decode(name) {
                Ok(TreeKey::Intent(_)) => sizes[0] += 1,
                Ok(TreeKey::Record { .. }) => sizes[1] += 1,
                Ok(TreeKey::Fence { .. }) => sizes[2] += 1,
                _ => {}
            }
        }
        sizes
    }

    /// Counts the keys that `is_mine`, by keyspace; keyspaces without keys are left out.
    pub(crate) fn count(&self, is_mine: impl Fn(&[u8]) -> bool) -> BTreeMap<u32, Count> {
        let mut counts: BTreeMap<u32, Count> = BTreeMap::new();
        for key in self.versions.keys().filter(|key| is_mine(key)) {
            let newest = self.at(key, Timestamp::MAX);
            let Some(value) = newest.and_then(|found| found.value.as_ref()) else { continue };
            let keyspace = placement::keyspace(key).expect("invariant: a key has a keyspace");
            let count = counts.entry(keyspace).or_default();
            count.keys += 1;
            let expires = Value::decode(value).is_ok_and(|value| value.deadline_ms.is_some());
            count.expiring += i64::from(expires);
        }
        counts
    }

    /// Checks that the expiry index says what values say.
    pub(crate) fn check_expiry(&self) -> Result<(), String> {
        let mut index = BTreeSet::new();
        for name in self.plain.keys() {
            if let Ok(TreeKey::Expiry { deadline_ms, key }) = TreeKey::decode(name) {
                index.insert((deadline_ms, key.to_vec()));
            }
        }
        let mut said = BTreeSet::new();
        for key in self.versions.keys() {
            let newest = self.at(key, Timestamp::MAX);
            let Some(value) = newest.and_then(|found| found.value.as_ref()) else { continue };
            if let Ok(Value { deadline_ms: Some(deadline), .. }) = Value::decode(value) {
                said.insert((deadline, key.clone()));
            }
        }
        if index == said { Ok(()) } else { Err(format!("the index has {index:?}, not {said:?}")) }
    }
}

/// The applied state for one evaluation. What `misses` says is not in memory.
pub(crate) struct View<'a, M: FnMut() -> bool> {
    pub(crate) applied: &'a Applied,
    pub(crate) misses: M,
}

impl<M: FnMut() -> bool> Base for View<'_, M> {
    type Value = Stored;

    fn version(&mut self, key: &[u8], at: Timestamp) -> Result<Option<Found<Stored>>, Miss> {
        if (self.misses)() {
            return Err(Miss);
        }
        Ok(self.applied.at(key, at).cloned())
    }

    fn changed(&mut self, span: &Span, after: Timestamp) -> Result<Option<Key>, Miss> {
        if (self.misses)() {
            return Err(Miss);
        }
        let mut within = self.applied.versions.range(span.start.clone()..span.end.clone());
        let is_newer = |of_key: &[Found<Stored>]| of_key.last().is_some_and(|v| v.ts > after);
        Ok(within.find(|(_, of_key)| is_newer(of_key)).map(|(key, _)| key.clone()))
    }
}
