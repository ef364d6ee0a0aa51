//! Starting and stopping: the engine, and the door to it.
//!
//! ```text
//!   Engine::start   a node of kv: one thread per core, each with a floor for its connections
//!   Server::bind    the listener, on the caller's thread: it accepts, and hands each connection
//!                   to the core with the fewest
//! ```

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use atoll_env::net::{Arrival, Listener};
use atoll_env::sync::{Either, QueueReceiver, QueueSender, oneshot, queue, select_biased};
use atoll_env::{Env, task};
use atoll_keyspaces::{Client, Hall};
use atoll_kv::{Core, Node, NodeOptions, Table};
use atoll_lsm::driven::Tree;
use atoll_objects::{ObjectProgram, dead, whole};
use atoll_redis::task::{Answer, Question};
use atoll_redis::{Config, Front, Identity, Shared};
use event_listener::Event;
use parking_lot::Mutex;

use crate::backend::ShardBackend;
use crate::core::{Desk, Floor};
use crate::orders::{Operator, Orders};

/// Pause after a failed accept (no file descriptors left), so that it does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How often times are enforced.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks for dropped keyspaces.
const RECLAIM_TICKS: u64 = 10;
/// Time that a stop gives clients to take their last replies.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);
/// Time that a stop gives clients to close their side once the last reply is sent: enough for it
/// to arrive. Pools keep idle connections open for ever, so it is not the time above.
const STOP_LINGER: Duration = Duration::from_millis(500);

/// Why a server could not start.
#[derive(Debug)]
pub enum ServerError {
    /// The address could not be listened on.
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerError::Listen { addr, source } = self;
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "{addr} is in use by another process; stop it or choose another address")
            }
            io::ErrorKind::PermissionDenied => {
                write!(f, "{addr} is not ours to listen on; choose a port of 1024 or above")
            }
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "{addr} is no address of this machine; choose one that is")
            }
            _ => write!(f, "cannot listen on {addr}: {source}; choose another address"),
        }
    }
}

impl std::error::Error for ServerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let ServerError::Listen { source, .. } = self;
        Some(source)
    }
}

/// What comes to a core's floor from elsewhere.
pub(crate) enum Visit {
    /// A connection to be served.
    Guest(Box<dyn Arrival>, SocketAddr),
    /// A question about the core's clients, and where the answer is waited for.
    Question(Question, oneshot::Sender<Answer>),
}

/// What the cores and the door share.
pub(crate) struct House {
    pub(crate) shared: Arc<Shared>,
    identity: Identity,
    local: Mutex<Option<SocketAddr>>,
    /// What is wanted of the shards from outside.
    orders: Arc<Orders>,
    /// Where clients of keyspaces by name arrive.
    hall: Hall,
    /// Per core, the way to its floor and how many connections it has.
    pub(crate) floors: Vec<(QueueSender<Visit>, AtomicUsize)>,
    inboxes: Mutex<Vec<Option<QueueReceiver<Visit>>>>,
    /// Cores that serve.
    ready: AtomicUsize,
    stopping: AtomicBool,
    /// Something above changed.
    changed: Event,
    trees: Mutex<Vec<(usize, Tree)>>,
    table: Mutex<Arc<Table>>,
}

/// A data directory that is served.
pub struct Engine {
    env: Env,
    node: Node<ObjectProgram>,
    house: Arc<House>,
}

impl Engine {
    /// Opens a directory and starts its cores; returns when all of them serve.
    ///
    /// # Errors
    /// The engine's: the directory is locked, foreign, newer or damaged.
    pub async fn start(
        options: NodeOptions,
        config: Config,
        identity: Identity,
    ) -> atoll_lsm::Result<Engine> {
        let env = options.env.clone();
        let cores = options.cores.max(1);
        let (mut floors, mut inboxes) = (Vec::new(), Vec::new());
        for _ in 0..cores {
            let (sender, receiver) = queue();
            floors.push((sender, AtomicUsize::new(0)));
            inboxes.push(Some(receiver));
        }
        let house = Arc::new(House {
            shared: Shared::new(config, identity.run_id, cores),
            identity,
            local: Mutex::new(None),
            orders: Arc::new(Orders::new()),
            hall: Hall::new(),
            floors,
            inboxes: Mutex::new(inboxes),
            ready: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            changed: Event::new(),
            trees: Mutex::default(),
            table: Mutex::default(),
        });
        let (shared, rooms) = (house.shared.clone(), house.clone());

        let node = Node::start(
            options,
            move |core| ObjectProgram::new(shared.stats(core)),
            move |core| Box::pin(serve(core, rooms.clone())),
        )
        .await?;
        let disk = env.disk.clone();
        house.shared.ask_disk(Box::new(move || disk.status()));
        let rooms = Arc::downgrade(&house);
        let ask = move || rooms.upgrade().map(|house| about_pools(&house.trees.lock()));
        house.shared.ask_memory(Box::new(move || ask().unwrap_or_default()));
        let engine = Engine { env, node, house };
        {
            let mut ended = pin!(engine.node.wait());
            loop {
                let changed = engine.house.changed.listen();
                if engine.house.ready.load(Ordering::Acquire) >= engine.node.cores() {
                    break;
                }
                if let Either::Left(ended) = select_biased(ended.as_mut(), changed).await {
                    ended?;
                    break;
                }
            }
        }
        Ok(engine)
    }

    /// Returns what the cores share, to be asked from anywhere for what they have counted.
    pub fn shared(&self) -> Arc<Shared> {
        self.house.shared.clone()
    }

    /// Returns a client of keyspaces by name, for any thread.
    pub fn client(&self) -> Client {
        self.house.hall.client()
    }

    /// Returns a handle on the shards, for operators.
    pub fn operator(&self) -> Operator {
        Operator(self.house.orders.clone())
    }

    /// Returns the trees of all stores, to be asked for what they hold.
    pub fn trees(&self) -> Vec<(usize, Tree)> {
        let mut trees = self.house.trees.lock().clone();
        trees.sort_by_key(|(store, _)| *store);
        trees
    }

    /// Returns the routing table as it was last seen.
    pub fn table(&self) -> Arc<Table> {
        self.house.table.lock().clone()
    }

    /// Lets the cores end: requests that have arrived are executed, their replies sent, the stores
    /// closed. Returns when that is done.
    ///
    /// # Errors
    /// A store could not be closed in order.
    pub async fn stop(self) -> atoll_lsm::Result<()> {
        self.end().await
    }

    /// As [`Engine::stop`], where others have the engine too.
    ///
    /// # Errors
    /// As above.
    pub async fn end(&self) -> atoll_lsm::Result<()> {
        self.house.stopping.store(true, Ordering::Release);
        self.house.changed.notify(usize::MAX);
        self.node.wait().await
    }
}

/// A door that is open: connections are accepted once it runs.
pub struct Server {
    env: Env,
    listener: Box<dyn Listener>,
    house: Arc<House>,
    cores: usize,
}

impl Server {
    /// Listens on `addr`. The configuration's `bind` and `port` become what was bound.
    ///
    /// # Errors
    /// The address is in use, or not ours.
    pub async fn bind(engine: &Engine, addr: SocketAddr) -> Result<Server, ServerError> {
        let env = engine.env.clone();
        let listener = env.network.listen(addr).await;
        let listener = listener.map_err(|source| ServerError::Listen { addr, source })?;
        let local = listener.local_addr();
        engine.house.shared.configure(|config| {
            config.bind = local.ip().to_string();
            config.port = local.port();
        });
        *engine.house.local.lock() = Some(local);
        let cores = engine.node.cores();
        Ok(Server { env, listener, house: engine.house.clone(), cores })
    }

    /// Returns the address that clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Accepts connections until `stop` completes.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        loop {
            match select_biased(stop.as_mut(), self.listener.accept()).await {
                Either::Left(()) => return,
                Either::Right(Ok(guest)) => self.seat(guest),
                Either::Right(Err(_)) => self.env.clock.sleep(ACCEPT_RETRY).await,
            }
        }
    }

    /// Hands a connection to the core with the fewest.
    fn seat(&self, (arrival, peer): (Box<dyn Arrival>, SocketAddr)) {
        let floors = &self.house.floors[..self.cores];
        let fewest = floors.iter().min_by_key(|(_, guests)| guests.load(Ordering::Relaxed));
        if let Some((floor, guests)) = fewest {
            guests.fetch_add(1, Ordering::Relaxed);
            // A core that is gone has closed its door; so is the connection then.
            let _ = floor.send(Visit::Guest(arrival, peer));
        }
    }
}

/// Says what the block caches are made of.
fn about_pools(trees: &[(usize, Tree)]) -> Vec<(&'static str, String)> {
    let mut sum = atoll_lsm::Stats::default();
    trees.iter().for_each(|(_, tree)| sum.add(&tree.stats()));
    let (pool, cache) = (sum.pool, sum.cache);
    vec![
        ("pool_strategy", pool.strategy.into()),
        ("pool_huge_pages", pool.huge_pages.to_string()),
        ("pool_locked", pool.lock.to_string()),
        ("pool_registered", pool.registered.to_string()),
        ("pool_capacity", cache.capacity.to_string()),
        ("pool_bytes", cache.bytes.to_string()),
        ("pool_region_bytes", cache.region_bytes.to_string()),
        ("pool_heap_bytes", cache.heap_bytes.to_string()),
        ("pool_blocks", cache.blocks.to_string()),
        ("pool_strayed_blocks", cache.strayed.to_string()),
    ]
}

/// What a core does once its shards serve, to the end.
async fn serve(core: Core<ObjectProgram>, house: Arc<House>) {
    let env = core.env().clone();
    let index = core.index();
    let desk = Rc::new(Desk::new());
    house.trees.lock().extend(core.trees());
    *house.table.lock() = core.table();
    let inbox = house.inboxes.lock().get_mut(index).and_then(Option::take);
    if let Some(inbox) = inbox {
        env.tasks.spawn_local("arrivals", Box::pin(receive(inbox, desk.clone())));
    }
    env.tasks.spawn_local("tick", Box::pin(tick(env.clone(), Rc::downgrade(&desk))));
    let replies = signal_replies(core.clone(), desk.clone());
    env.tasks.spawn_local("replies", Box::pin(replies));
    let parts = reclaim_parts(core.clone(), house.clone());
    env.tasks.spawn_local("reclaim parts", Box::pin(parts));
    if index == 0 {
        house.orders.serve(&core);
        env.tasks.spawn_local("reclaim", Box::pin(reclaim(core.clone(), house.clone())));
    }

    let door = house.hall.open(&core);
    let backend = ShardBackend::new(core.clone(), desk.signal.clone(), house.clone());
    let clock = env.clock.clone();
    let (shared, identity) = (house.shared.clone(), house.identity.clone());
    let mut front = Front::new(backend, clock, shared, index, identity);
    front.number_clients(index as u64 + 1, core.cores() as u64);
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut floor = Floor::new(env.clone(), desk.clone(), front, local);
    house.ready.fetch_add(1, Ordering::AcqRel);
    house.changed.notify(usize::MAX);

    let stopped = stopped(&house);
    let mut stop = pin!(stopped);
    loop {
        if let Some(local) = *house.local.lock() {
            floor.set_local(local);
        }
        let more = floor.work();
        core.flush();
        house.floors[index].1.store(floor.len(), Ordering::Relaxed);
        if more {
            // Connection tasks send replies and read requests before the next turn. A stop is
            // looked for here too: a server that never rests must still end.
            let rest = task::yield_now();
            if let Either::Left(()) = select_biased(stop.as_mut(), rest).await {
                break;
            }
        } else {
            let wait = desk.signal.raised();
            if let Either::Left(()) = select_biased(stop.as_mut(), wait).await {
                break;
            }
        }
    }
    let deadline = env.clock.now().after(STOP_TIME_MAX);
    while (floor.work() || floor.owes()) && env.clock.now() < deadline {
        core.flush();
        let wait = desk.signal.raised();
        select_biased(wait, env.clock.sleep(Duration::from_millis(1))).await;
    }
    floor.close_all();
    while !floor.is_told() && env.clock.now() < deadline {
        // The tick raises the signal too, so the deadline is seen.
        desk.signal.raised().await;
        floor.work();
        core.flush();
    }
    let mut linger = pin!(env.clock.sleep(STOP_LINGER));
    while !floor.is_empty() {
        let wait = desk.signal.raised();
        if let Either::Left(()) = select_biased(linger.as_mut(), wait).await {
            break;
        }
        floor.work();
    }
    door.close().await;
}

/// Waits for the stop.
async fn stopped(house: &House) {
    loop {
        let changed = house.changed.listen();
        if house.stopping.load(Ordering::Acquire) {
            return;
        }
        changed.await;
    }
}

/// Puts what has come from elsewhere onto the desk.
async fn receive(mut inbox: QueueReceiver<Visit>, desk: Rc<Desk>) {
    while let Some(visit) = inbox.recv().await {
        desk.visits.borrow_mut().push(visit);
        desk.signal.raise();
    }
}

/// Lets the floor look when shards have answered.
async fn signal_replies(core: Core<ObjectProgram>, desk: Rc<Desk>) {
    loop {
        core.replied().await;
        desk.signal.raise();
    }
}

/// Tells the floor each second that a second has passed, for as long as there is one.
async fn tick(env: Env, desk: std::rc::Weak<Desk>) {
    loop {
        env.clock.sleep(TICK).await;
        let Some(desk) = desk.upgrade() else { return };
        desk.tick.set(true);
        desk.signal.raise();
    }
}

/// Gives back the space of flushed databases, and keeps what is shown of the shards true.
async fn reclaim(core: Core<ObjectProgram>, house: Arc<House>) {
    let mut ticks = 0u64;
    while !house.stopping.load(Ordering::Acquire) {
        core.env().clock.sleep(TICK).await;
        *house.table.lock() = core.table();
        house.shared.sample(core.env().clock.now());
        ticks += 1;
        if ticks.is_multiple_of(RECLAIM_TICKS) {
            // What fails now is tried again the next time.
            let _ = whole::reclaim(&core).await;
        }
    }
}

/// Gives back the space of long strings that were deleted or overwritten, on this core.
async fn reclaim_parts(core: Core<ObjectProgram>, house: Arc<House>) {
    while !house.stopping.load(Ordering::Acquire) {
        core.env().clock.sleep(TICK).await;
        // What fails now is tried again the next time.
        let _ = dead::reclaim(&core).await;
    }
}
