//! What is where: the shards of a core with their sizes and loads, and where a shard has its middle.
//!
//! Bytes are those of table files, by the keys at which their indexes are cut
//! ([`atoll_lsm::driven::Tree::survey`]): an estimate that costs no read. Records of all areas count
//! for the shard that their place is in, so versions that are not collected yet and parts of long
//! values count as well.
//!
//! # Splitting by size
//! Every [`PERIOD`] a core looks at its shards and splits what is larger than
//! [`NodeOptions::shard_size`](crate::NodeOptions) in the middle of its *bytes*. A doubling
//! ([`Core::reshard_double`]) splits in the middle of the *slots*, as hashing spreads them evenly, and
//! falls back on the middle of the bytes where there are no slots to halve.

use std::path::Path;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sync::oneshot;
use atoll_lsm::driven::{self, Direction, OpenOptions, Tree};
use atoll_lsm::{Error, Options, Result};
use atoll_mvcc::keys::{PARTS, Range, RoutingKey, TreeKey, is_slotted, place_of};
use atoll_shard::descriptor::ShardId;
use atoll_shard::leader::{LOCAL, Leader};
use atoll_shard::{entry, state};

use crate::core::{Core, Inner};
use crate::identity::{self, store_path};
use crate::node;
use crate::program::Program;

/// Between two looks at the sizes of shards.
pub(crate) const PERIOD: Duration = Duration::from_secs(5);
/// Shards that a node splits itself into at most.
const SHARDS_MAX: usize = 4096;

/// What there is to say about a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardReport {
    /// Its id.
    pub id: u64,
    /// The first place in its range, and the first behind it.
    pub range: (RoutingKey, RoutingKey),
    /// How often its range has changed.
    pub epoch: u64,
    /// The store that has it.
    pub store: usize,
    /// The core that serves it.
    pub core: usize,
    /// Bytes of table files, estimated.
    pub bytes: u64,
    /// Keys that are there, of all keyspaces.
    pub keys: u64,
    /// Commands and requests evaluated since the start.
    pub jobs: u64,
    /// The same per second, in the last seconds.
    pub jobs_per_s: f64,
    /// Index of the last entry applied to the tree.
    pub applied: u64,
    /// Entries that are logged or on their way to it, and not applied.
    pub in_flight: usize,
    /// Whether it has a leader: not while it is split.
    pub serves: bool,
}

/// A place of the tables with the bytes that end there.
struct Weight {
    place: RoutingKey,
    bytes: u64,
}

/// Returns the place of a record, or of the beginning of one.
fn place(tree_key: &[u8]) -> Option<RoutingKey> {
    let key = match TreeKey::decode(tree_key).ok()? {
        TreeKey::Data(key) | TreeKey::Intent(key) | TreeKey::Expiry { key, .. } => key.to_vec(),
        TreeKey::Sub { of, .. } => return of.slot.map(RoutingKey::Slot),
        _ => return None,
    };
    place_of(&key).map(RoutingKey::into_owned)
}

/// Adds where the bytes of a store are.
fn weigh(tree: &Tree, weights: &mut Vec<Weight>) {
    tree.survey(|key, bytes| {
        if let Some(place) = place(key) {
            weights.push(Weight { place, bytes });
        }
    });
}

/// Returns the bytes inside of a range.
fn bytes_in(weights: &[Weight], range: &Range) -> u64 {
    weights.iter().filter(|w| range.contains(w.place.borrowed())).map(|w| w.bytes).sum()
}

/// Returns whether the keys of a keyspace are somebody's: not the shard's own values, nor parts of
/// other values.
fn is_shown(keyspace: u32) -> bool {
    keyspace != LOCAL && !(is_slotted(keyspace) && keyspace & PARTS != 0)
}

/// Reports the shards of a directory that nobody has open, by the start of their ranges: as they
/// were when it was last closed or flushed. What is in the logs since is replayed by the next start.
/// Cores, loads and what is in flight are those of nobody.
///
/// # Errors
/// The directory is none of ours, damaged, or open elsewhere.
pub async fn shards_of_stopped(env: &Env, path: &Path) -> Result<Vec<ShardReport>> {
    let found = identity::read(env, path).await?;
    let found = found.ok_or_else(|| Error::Foreign {
        path: path.to_owned(),
        what: "it is no data directory of a server".to_owned(),
    })?;
    let identity = found.identity;
    let lock = node::lock(env, path).await?;
    let mut reports = Vec::new();
    for store in 0..usize::from(identity.stores) {
        let options = OpenOptions { options: Options::new(env.clone()) };
        let (driver, tree) = driven::open(&store_path(path, store), options).await?;
        let mut weights = Vec::new();
        weigh(&tree, &mut weights);
        for descriptor in node::descriptors(&tree, identity, store).await? {
            let id = descriptor.id.0;
            reports.push(ShardReport {
                id,
                bytes: bytes_in(&weights, &descriptor.range),
                range: (descriptor.range.start, descriptor.range.end),
                epoch: descriptor.epoch,
                store,
                core: 0,
                keys: keys_of(&tree, id).await?,
                jobs: 0,
                jobs_per_s: 0.0,
                applied: driver.applied(id),
                in_flight: 0,
                serves: false,
            });
        }
        driver.close().await?;
    }
    drop(lock);
    reports.sort_by(|a, b| a.range.0.cmp(&b.range.0));
    Ok(reports)
}

/// Returns the keys that a shard has counted.
async fn keys_of(tree: &Tree, shard: u64) -> Result<u64> {
    let (mut start, mut end) = (Vec::new(), Vec::new());
    atoll_mvcc::keys::tree::shard(&mut start, shard, b"");
    atoll_mvcc::keys::tree::shard(&mut end, shard + 1, b"");
    let mut cursor = tree.scan(&start, &end, Direction::Forward);
    let mut keys = 0;
    while let Some(row) = cursor.next().await? {
        let Ok(TreeKey::Shard { what, .. }) = TreeKey::decode(row.key()) else { continue };
        if state::counted(what).is_some_and(is_shown)
            && let Some(value) = row.value().await?
        {
            let count = entry::decode_count(&value).map_err(|e| {
                Error::Stopped(format!("a count of shard {shard} does not decode: {e}"))
            })?;
            keys += count.keys.max(0) as u64;
        }
    }
    Ok(keys)
}

impl<P: Program> Inner<P> {
    /// Returns where the bytes of this core's stores are, by place.
    fn weights(&self) -> Vec<Weight> {
        let mut weights = Vec::new();
        for host in self.stores.borrow().values() {
            weigh(&host.tree, &mut weights);
        }
        weights.sort_by(|a, b| a.place.cmp(&b.place));
        weights
    }

    fn reports(&self) -> Vec<ShardReport> {
        let weights = self.weights();
        let mut reports = Vec::new();
        for (host, group) in self.all_groups() {
            let state = group.state.borrow();
            let range = &state.descriptor.range;
            let keys = |leader: &Leader| {
                let counted = leader.counts().iter().filter(|(keyspace, _)| is_shown(**keyspace));
                counted.map(|(_, count)| count.keys.max(0) as u64).sum()
            };
            reports.push(ShardReport {
                id: group.id.0,
                range: (range.start.clone(), range.end.clone()),
                epoch: state.descriptor.epoch,
                store: host.index,
                core: self.index,
                bytes: bytes_in(&weights, range),
                keys: state.leader.as_ref().map_or(0, keys),
                jobs: state.jobs,
                jobs_per_s: state.jobs_per_s,
                applied: state.applied_index,
                in_flight: state.in_flight.len(),
                serves: state.leader.is_some(),
            });
        }
        reports
    }

    /// Returns the place that halves the bytes of a shard of this core; `None` if they are all at
    /// one place.
    fn middle(&self, shard: ShardId) -> Option<RoutingKey> {
        let (_, group) = self.all_groups().into_iter().find(|(_, group)| group.id == shard)?;
        let range = group.state.borrow().descriptor.range.clone();
        let mut weights = self.weights();
        weights.retain(|w| range.contains(w.place.borrowed()));
        let half = weights.iter().map(|w| w.bytes).sum::<u64>() / 2;
        let mut below = 0;
        let mut after = weights.into_iter().skip_while(|w| {
            below += w.bytes;
            below < half
        });
        // The middle itself belongs to the left half, unless there is nothing else.
        after.find(|w| range.start < w.place && w.place < range.end).map(|w| w.place)
    }

    /// Remembers how busy the shards were since the last call, `seconds` ago.
    pub(crate) fn measure_loads(&self, seconds: f64) {
        for (_, group) in self.all_groups() {
            let mut state = group.state.borrow_mut();
            let jobs = state.jobs - state.jobs_measured;
            state.jobs_measured = state.jobs;
            state.jobs_per_s = jobs as f64 / seconds;
        }
    }
}

impl<P: Program> Core<P> {
    /// Reports all shards of the node, by the start of their ranges.
    ///
    /// # Errors
    /// A sentence: a core has ended.
    pub async fn shards(&self) -> std::result::Result<Vec<ShardReport>, String> {
        let mut receivers = Vec::new();
        for index in 0..self.cores() {
            let (sender, receiver) = oneshot::channel();
            self.on_core(index, move |core| {
                let _ = sender.send(core.0.reports());
            });
            receivers.push(receiver);
        }
        self.flush();
        let mut reports = Vec::new();
        for receiver in receivers {
            reports.extend(receiver.await.map_err(|_| "the engine stops".to_owned())?);
        }
        reports.sort_by(|a, b| a.range.0.cmp(&b.range.0));
        Ok(reports)
    }

    /// Splits every shard at its midpoint, one after the other, while it serves. Returns how many
    /// were split, and why others were not.
    pub async fn reshard_double(&self) -> (usize, Vec<String>) {
        let (mut split, mut refusals) = (0, Vec::new());
        for route in self.table().routes() {
            let shard = route.descriptor.id;
            let at = match route.descriptor.range.midpoint() {
                Some(at) => Some(at),
                None => self.middle(route.core, shard).await,
            };
            match at {
                None => refusals.push(format!("shard {shard} has one place only")),
                Some(at) => match self.split_at(at).await {
                    Ok(_) => split += 1,
                    Err(why) => refusals.push(why),
                },
            }
        }
        (split, refusals)
    }

    /// Returns the middle of the bytes of a shard of any core.
    async fn middle(&self, core: usize, shard: ShardId) -> Option<RoutingKey> {
        let (sender, receiver) = oneshot::channel();
        self.on_core(core, move |core| {
            let _ = sender.send(core.0.middle(shard));
        });
        self.flush();
        receiver.await.ok().flatten()
    }

    /// Splits the shards of this core that have grown too large.
    pub(crate) async fn split_large(&self) {
        let most = self.0.shared.options.shard_size;
        if self.table().routes().len() >= SHARDS_MAX {
            return;
        }
        for report in self.0.reports() {
            if report.bytes > most
                && let Some(at) = self.0.middle(ShardId(report.id))
            {
                // Refused if somebody else splits it: it is looked at again.
                let _ = self.split_at(at).await;
            }
        }
    }
}
