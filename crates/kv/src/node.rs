//! A node: a data directory, its cores, and what all of them share.
//!
//! # Opening
//! ```text
//!   caller's thread    lock the directory, read or make its identity
//!   each core          open its stores; report shards and bound
//!                      -- all have reported: routing table, oracle --
//!   each core          replay what the logs have, lead its shards, serve
//! ```
//!
//! The number of stores is fixed when the directory is made; cores take them in turn, so their
//! number may change from start to start.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use atoll_env::Env;
use atoll_env::mesh::{Port, mesh};
use atoll_env::sync::Notify;
use atoll_lsm::driven::{self, Direction, Driver, OpenOptions, Tree};
use atoll_lsm::{Error, Options, Result};
use atoll_mvcc::keys::{Range, TreeKey, tree};
use atoll_mvcc::record::LaneBound;
use atoll_mvcc::{Epoch, Timestamp};
use atoll_shard::descriptor::{Descriptor, ROOT, ShardId};
use atoll_shard::state;
use atoll_txn::Deadlocks;
use event_listener::Event;
use parking_lot::Mutex;

use crate::care;
use crate::core::{Core, Inner, Message};
use crate::identity::{self, Found, Identity, store_path};
use crate::peers::ClusterOptions;
use crate::program::Program;
use crate::store::{StoreHost, open_group};
use crate::table::{Route, Table};
use crate::time::Timekeeper;

/// Messages that a ring between two cores holds; more wait in the sender's memory.
const RING: usize = 1024;

/// How to open a node.
#[derive(Clone)]
pub struct NodeOptions {
    /// The world to run in.
    pub env: Env,
    /// The data directory.
    pub path: PathBuf,
    /// Cores that serve.
    pub cores: usize,
    /// Stores of a new directory, a power of two.
    pub stores: u16,
    /// Shards of a new directory, a power of two and at least one per store.
    pub shards: u16,
    /// Memory of all stores together, in bytes.
    pub memory: usize,
    /// Options of each store; its memory is set from the sum above.
    pub engine: Options,
    /// Bytes of tables above which a shard is split by itself.
    pub shard_size: u64,
    /// Old versions are kept for so long, for readers that began before.
    pub retention_us: u64,
    /// First processor to pin the cores to, if they are to be pinned.
    pub pin: Option<usize>,
    /// The other engines of the database, if it has some.
    pub cluster: Option<ClusterOptions>,
}

impl NodeOptions {
    /// Returns the defaults for a directory in a world.
    pub fn new(env: Env, path: impl Into<PathBuf>) -> NodeOptions {
        let engine = Options::new(env.clone());
        NodeOptions {
            memory: engine.memory,
            engine,
            env,
            path: path.into(),
            cores: 1,
            stores: 1,
            shards: 4,
            shard_size: 256 << 20,
            retention_us: 5_000_000,
            pin: None,
            cluster: None,
        }
    }
}

/// What all cores share.
pub(crate) struct Shared<P: Program> {
    pub(crate) cores: usize,
    pub(crate) identity: Identity,
    /// The identity of each store, if the directory says it.
    store_ids: Vec<u64>,
    pub(crate) options: NodeOptions,
    pub(crate) deadlocks: Arc<Deadlocks>,
    /// Per core, the oldest moment that it still needs.
    pub(crate) floors: Vec<AtomicU64>,
    /// Keys are removed when their deadline comes.
    pub(crate) reaping: AtomicBool,
    next_shard: AtomicU64,
    assembly: Mutex<Assembly<P>>,
    /// The assembly changed.
    assembled: Event,
    /// Cores whose shards all serve.
    serving: AtomicUsize,
    running: AtomicUsize,
    ended: Notify,
    failure: Mutex<Option<Error>>,
    /// The lock of the directory.
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

/// What the cores report while the node is opened.
struct Assembly<P: Program> {
    routes: Vec<Route>,
    bound: Epoch,
    reported: usize,
    /// The first failure: nobody serves then.
    failed: Option<Error>,
    ports: Vec<Option<Port<Message<P>>>>,
    ready: Option<(Arc<Table>, Arc<Timekeeper>)>,
}

impl<P: Program> Shared<P> {
    /// Draws the id of a new shard: the engine's number and a count of its own, so that two engines that
    /// split at once do not draw the same.
    pub(crate) fn draw_shard(&self) -> ShardId {
        let serial = self.next_shard.fetch_add(1, Ordering::Relaxed) & u64::from(u32::MAX);
        ShardId(self.engine() << 32 | serial)
    }

    /// Makes sure that an id is not drawn again.
    pub(crate) fn note_shard(&self, id: ShardId) {
        if id.0 >> 32 == self.engine() {
            self.next_shard.fetch_max((id.0 & u64::from(u32::MAX)) + 1, Ordering::Relaxed);
        }
    }

    fn engine(&self) -> u64 {
        self.options.cluster.as_ref().map_or(0, |cluster| u64::from(cluster.engine.0))
    }
}

type Main<P> = Arc<dyn Fn(Core<P>) -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync>;

/// A running node. Dropping it does not stop it: see [`Node::wait`].
pub struct Node<P: Program> {
    shared: Arc<Shared<P>>,
}

impl<P: Program> fmt::Debug for Node<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.shared.options.path.display())
    }
}

impl<P: Program> Node<P> {
    /// Opens a directory and starts its cores. `program` makes each core's program, `main` is what
    /// the core does once all its shards serve; when it returns, the core closes its stores.
    ///
    /// # Errors
    /// The directory is locked, foreign, newer or damaged. Errors of stores come out of
    /// [`Node::wait`].
    pub async fn start(
        options: NodeOptions,
        program: impl Fn(usize) -> P + Send + Sync + 'static,
        main: impl Fn(Core<P>) -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync + 'static,
    ) -> Result<Node<P>>
    where
        P: Send,
    {
        let env = options.env.clone();
        let (Found { identity, ids }, lock) = open_directory(&env, &options).await?;
        let cores = options.cores.clamp(1, usize::from(identity.stores));
        let ports = mesh(cores, RING).into_iter().map(Some).collect();
        let shared = Arc::new(Shared {
            cores,
            identity,
            store_ids: ids,
            deadlocks: Deadlocks::new(),
            // Until every core has said what it needs, everything is needed: an intent of one core
            // leans on the record of another's.
            floors: (0..cores).map(|_| AtomicU64::new(0)).collect(),
            reaping: AtomicBool::new(true),
            next_shard: AtomicU64::new(u64::from(identity.shards) + 1),
            assembly: Mutex::new(Assembly {
                routes: Vec::new(),
                bound: Epoch(0),
                reported: 0,
                failed: None,
                ports,
                ready: None,
            }),
            assembled: Event::new(),
            serving: AtomicUsize::new(0),
            running: AtomicUsize::new(cores),
            ended: Notify::new(),
            failure: Mutex::new(None),
            lock: Mutex::new(Some(lock)),
            options,
        });
        let program = Arc::new(program);
        let main: Main<P> = Arc::new(main);
        for index in 0..cores {
            let (of_core, program, main) = (shared.clone(), program.clone(), main.clone());
            let pin = shared.options.pin.map(|first| first + index);
            let make = Box::new(move || -> Pin<Box<dyn Future<Output = ()>>> {
                Box::pin(async move {
                    let result = run_core(index, &of_core, program(index), main).await;
                    if let Err(failure) = result {
                        of_core.failure.lock().get_or_insert(failure);
                    }
                    if of_core.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                        // The directory is another's from now on.
                        drop(of_core.lock.lock().take());
                    }
                    of_core.ended.notify();
                })
            });
            if let Err(source) = env.tasks.spawn_core(index, "core", pin, make) {
                // Those that were started are told instead of waiting for the rest.
                let failure = Error::io("starting a core of", &shared.options.path, source);
                let missing = cores - index;
                {
                    let mut assembly = shared.assembly.lock();
                    assembly.reported += missing;
                    assembly.failed.get_or_insert(failure.clone());
                }
                shared.assembled.notify(usize::MAX);
                shared.running.fetch_sub(missing, Ordering::AcqRel);
                return Err(failure);
            }
        }
        Ok(Node { shared })
    }

    /// Waits until all cores have ended.
    ///
    /// # Errors
    /// Why one of them could not open its stores or close them in order.
    pub async fn wait(&self) -> Result<()> {
        while self.shared.running.load(Ordering::Acquire) > 0 {
            self.shared.ended.notified().await;
        }
        self.shared.ended.notify();
        self.shared.failure.lock().clone().map_or(Ok(()), Err)
    }

    /// Returns the number of cores.
    pub fn cores(&self) -> usize {
        self.shared.cores
    }

    /// Returns what the directory says about itself.
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }
}

/// Takes the lock of a directory.
pub(crate) async fn lock(env: &Env, root: &Path) -> Result<Box<dyn Send + Sync>> {
    let path = root.join("LOCK");
    env.disk.lock(&path).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => Error::Locked(root.to_owned()),
        _ => Error::io("locking", &path, e),
    })
}

/// Locks a directory and reads or makes its identity.
async fn open_directory(env: &Env, options: &NodeOptions) -> Result<(Found, Box<dyn Send + Sync>)> {
    let root = &options.path;
    let context = |e| Error::io("making the directory", root, e);
    env.disk.create_dir(root).await.map_err(context)?;
    // Looked at before the lock file is made: somebody else's directory stays as it is.
    identity::read(env, root).await?;
    let lock = lock(env, root).await?;
    if let Some(found) = identity::read(env, root).await? {
        return Ok((found, lock));
    }
    let identity =
        Identity { id: env.random.next_u64(), stores: options.stores, shards: options.shards };
    must_be_unused(options, identity).await?;
    let mut ids = Vec::new();
    for store in 0..usize::from(identity.stores) {
        let (driver, _) =
            driven::open(&store_path(root, store), store_options(options, identity)).await?;
        ids.push(driver.identity());
        driver.close().await?;
    }
    for above in root.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        const SYNC: atoll_env::IoTag =
            atoll_env::IoTag::new(atoll_env::disk::IoClass::Flush, "create");
        match env.disk.sync_dir(SYNC, above).await {
            // Who may not read a directory did not make it.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => break,
            synced => synced.map_err(|e| Error::io("syncing the directory", above, e))?,
        }
    }
    let found = Found { identity, ids };
    identity::write(env, root, &found).await?;
    Ok((found, lock))
}

/// Refuses a directory without its identity whose stores were used: a making that did not finish left
/// nothing in them.
async fn must_be_unused(options: &NodeOptions, identity: Identity) -> Result<()> {
    let root = &options.path;
    for path in identity::stores_found(&options.env, root).await? {
        let (driver, tree) = driven::open(&path, store_options(options, identity)).await?;
        let used = driver.groups().next().is_some() || tree.stats().table_bytes() > 0;
        driver.close().await?;
        if used {
            let what = "the file ATOLL is missing but there are stores with data: restore it from \
                        a backup";
            return Err(Error::Foreign { path: root.clone(), what: what.to_owned() });
        }
    }
    Ok(())
}

fn store_options(options: &NodeOptions, identity: Identity) -> OpenOptions {
    let memory = (options.memory / usize::from(identity.stores)).max(4 << 20);
    OpenOptions { options: Options { memory, ..options.engine.clone() } }
}

/// One core, from its start to its end.
async fn run_core<P: Program>(
    index: usize,
    shared: &Arc<Shared<P>>,
    program: P,
    main: Main<P>,
) -> Result<()> {
    let env = shared.options.env.clone();
    let opened = open_stores(index, shared).await;
    let stores = report(index, shared, opened).await?;
    let (table, time, port) = {
        let mut assembly = shared.assembly.lock();
        let (table, time) = assembly.ready.clone().expect("reported by the last core");
        (table, time, assembly.ports[index].take().expect("a core takes its port once"))
    };
    let core = Inner::new(index, env, program, time, shared.clone(), table, port);
    core.make_coordinator();
    let mut starting = 0;
    for (at, (driver, tree, groups, bound)) in stores {
        let oracle = read_oracle(&tree).await?;
        let host = Rc::new(StoreHost::new(at, tree, bound, oracle, driver.arena_most()));
        for group in groups.iter().filter(|group| group.is_alone() && group.id != ROOT) {
            // One with replicas elsewhere may be led there, or by nobody for a while: it is not waited for.
            group.state.borrow_mut().awaited = true;
            starting += 1;
        }
        *host.groups.borrow_mut() =
            groups.into_iter().map(|group| (group.id, Rc::new(group))).collect();
        core.stores.borrow_mut().insert(at, host.clone());
        core.open_stores.set(core.open_stores.get() + 1);
        let task = host.clone().run(core.clone(), driver);
        core.spawn("store", task);
        host.start();
    }
    core.starting.set(starting);
    core.spawn("mesh", core.clone().serve_mesh());
    if shared.options.cluster.is_some() {
        core.spawn("ticks", care::tick(Rc::downgrade(&core)));
        core.spawn("time", Inner::keep_time(Rc::downgrade(&core)));
    }
    while core.starting.get() > 0 && core.why_stopped().is_none() {
        core.changed.raised().await;
    }
    // Nobody serves before everybody can: a split that is still to be replayed elsewhere must not
    // meet a new one.
    shared.serving.fetch_add(1, Ordering::AcqRel);
    shared.assembled.notify(usize::MAX);
    loop {
        let changed = shared.assembled.listen();
        if shared.serving.load(Ordering::Acquire) >= shared.cores {
            break;
        }
        changed.await;
    }
    let never_served = core.why_stopped();
    if never_served.is_none() {
        core.spawn("care", care::run(Rc::downgrade(&core)));
        main(Core(core.clone())).await;
    }
    core.stopping.set(true);
    for host in core.stores.borrow().values() {
        host.closing.set(true);
        host.signal.raise();
    }
    while core.open_stores.get() > 0 {
        core.changed.raised().await;
    }
    core.ended.raise();
    let failure = core.close_failure.borrow_mut().take();
    match never_served.or(failure) {
        Some(why) => Err(Error::Stopped(why)),
        None => Ok(()),
    }
}

type OpenedStore<P> = (Driver, Tree, Vec<crate::group::Group<P>>, Epoch);

/// Opens the stores of a core and finds their shards.
async fn open_stores<P: Program>(
    index: usize,
    shared: &Arc<Shared<P>>,
) -> Result<Vec<(usize, OpenedStore<P>)>> {
    let identity = shared.identity;
    let mut stores = Vec::new();
    for store in (index..usize::from(identity.stores)).step_by(shared.cores) {
        let path = store_path(&shared.options.path, store);
        identity::must_exist(&shared.options.env, &path).await?;
        let (mut driver, tree) =
            driven::open(&path, store_options(&shared.options, identity)).await?;
        if shared.store_ids.get(store).is_some_and(|id| *id != driver.identity()) {
            driver.close().await?;
            let what = "this store is not the one that was made here: stores were exchanged, or \
                        copied from elsewhere";
            return Err(Error::corruption(&path.join("ATOLL"), 0, what));
        }
        let descriptors = descriptors(&tree, identity, store).await?;
        let mut groups = Vec::new();
        let mut bound = read_bound(&tree).await?;
        for descriptor in descriptors {
            let (group, logged) = open_group(&mut driver, &tree, descriptor, shared).await?;
            bound = bound.max(logged);
            groups.push(group);
        }
        if store == 0 && shared.options.cluster.is_some() {
            let (root, logged) = open_group(&mut driver, &tree, Descriptor::root(), shared).await?;
            bound = bound.max(logged);
            groups.push(root);
        }
        stores.push((store, (driver, tree, groups, bound)));
    }
    Ok(stores)
}

/// Returns the shards of a store: those it was made with, as they are by now, and those that were
/// split off.
pub(crate) async fn descriptors(
    tree: &Tree,
    identity: Identity,
    store: usize,
) -> Result<Vec<Descriptor>> {
    let mut found = std::collections::BTreeMap::new();
    for (n, range) in Range::divide(identity.shards).into_iter().enumerate() {
        if n % usize::from(identity.stores) == store {
            let id = ShardId(n as u64 + 1);
            found.insert(id, Descriptor { id, range, epoch: 1 });
        }
    }
    let (mut start, mut end) = (Vec::new(), Vec::new());
    tree::shard(&mut start, 0, b"");
    tree::shard(&mut end, u64::MAX, b"");
    let mut cursor = tree.scan(&start, &end, Direction::Forward);
    while let Some(row) = cursor.next().await? {
        if let Ok(TreeKey::Shard { what: state::DESCRIPTOR, .. }) = TreeKey::decode(row.key()) {
            let Some(value) = row.value().await? else { continue };
            let descriptor = Descriptor::decode(&value).map_err(|e| {
                Error::Stopped(format!("the descriptor of a shard does not decode: {e}"))
            })?;
            found.insert(descriptor.id, descriptor);
        }
    }
    Ok(found.into_values().collect())
}

async fn read_bound(tree: &Tree) -> Result<Epoch> {
    let mut name = Vec::new();
    tree::bound(&mut name);
    read_epoch(tree, &name).await
}

/// Reads up to where the root shard, if it is here, has let the oracle give epochs.
async fn read_oracle(tree: &Tree) -> Result<Epoch> {
    let mut name = Vec::new();
    tree::shard(&mut name, ROOT.0, state::ORACLE);
    read_epoch(tree, &name).await
}

async fn read_epoch(tree: &Tree, name: &[u8]) -> Result<Epoch> {
    let Some(bytes) = tree.get(name).await? else { return Ok(Epoch(0)) };
    let bound = LaneBound::decode(&bytes).map_err(|e| {
        Error::Stopped(format!("the bound of a lane, or of the oracle, does not decode: {e}"))
    })?;
    Ok(bound.0)
}

/// Reports what a core has opened, waits for the others, and returns it.
async fn report<P: Program>(
    index: usize,
    shared: &Arc<Shared<P>>,
    opened: Result<Vec<(usize, OpenedStore<P>)>>,
) -> Result<Vec<(usize, OpenedStore<P>)>> {
    {
        let mut assembly = shared.assembly.lock();
        assembly.reported += 1;
        match &opened {
            Ok(stores) => {
                for (store, (_, _, groups, bound)) in stores {
                    assembly.bound = assembly.bound.max(*bound);
                    for group in groups.iter().filter(|group| group.id != ROOT) {
                        let descriptor = group.state.borrow().descriptor.clone();
                        shared.note_shard(descriptor.id);
                        assembly.routes.push(Route { descriptor, store: *store, core: index });
                    }
                }
            }
            Err(failure) => {
                assembly.failed.get_or_insert(failure.clone());
            }
        }
        if assembly.reported == shared.cores && assembly.failed.is_none() {
            let table = Table::new(std::mem::take(&mut assembly.routes));
            match table.check() {
                Ok(()) => {
                    // What a bound allows was not given by that. Who shares an oracle learns of the time
                    // from it before anything is served.
                    let is_shared = shared.options.cluster.is_some();
                    let start = if is_shared { Epoch(0) } else { assembly.bound };
                    let time = Timekeeper::new(is_shared, start);
                    assembly.ready = Some((Arc::new(table), Arc::new(time)));
                }
                Err(what) => {
                    assembly.failed = Some(Error::Stopped(format!(
                        "the shards of the directory do not fit together: {what}"
                    )));
                }
            }
        }
        shared.assembled.notify(usize::MAX);
    }
    let mut opened = Some(opened);
    loop {
        let changed = shared.assembled.listen();
        let failed = {
            let assembly = shared.assembly.lock();
            if assembly.ready.is_some() {
                break;
            }
            assembly.failed.clone().filter(|_| assembly.reported == shared.cores)
        };
        if let Some(failure) = failed {
            // Whoever has opened stores closes them.
            if let Some(Ok(stores)) = opened.take() {
                for (_, (driver, ..)) in stores {
                    driver.close().await?;
                }
            }
            return Err(failure);
        }
        changed.await;
    }
    opened.take().expect("taken only on failure")
}

impl<P: Program> Inner<P> {
    /// Returns why a store of this core has stopped, if one has.
    pub(crate) fn why_stopped(&self) -> Option<String> {
        self.stores.borrow().values().find_map(|host| host.stopped.borrow().clone())
    }

    /// Returns the oldest moment that this core still needs: intents, readers. A shard whose leader
    /// is being made does not know its intents, and may need everything.
    pub(crate) fn floor(self: &Rc<Self>) -> Timestamp {
        let mut floor = self.coordinator().oldest_read().unwrap_or(Timestamp::MAX);
        for (_, group) in self.all_groups() {
            let state = group.state.borrow();
            let Some(leader) = &state.leader else { return Timestamp::default() };
            floor = floor.min(leader.oldest_intent().unwrap_or(Timestamp::MAX));
        }
        floor
    }
}
