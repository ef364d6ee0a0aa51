//! A network in memory for the simulator, and clients that speak RESP over it.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use atoll_env::Env;
use atoll_env::net::{Arrival, Listener, NetFuture, Network, Stream};
use atoll_env::random::Prng;
use atoll_env::sim::{Node, Sim};
use atoll_env::sync::oneshot;
use atoll_kv::NodeOptions;
use atoll_lsm::driven::Tree;
use atoll_redis::{Config, Durability, Identity};
use atoll_resp::{ReplyDecoder, Value};
use atoll_server::{Engine, Server};

/// Bytes a direction of a stream holds: small, so that writers meet its end.
const CAPACITY: usize = 16 << 10;

/// Links all nodes of a simulation. Reads return as much as the seed says.
#[derive(Clone)]
pub struct LoopNetwork(Arc<Mutex<State>>);

struct State {
    prng: Prng,
    listeners: BTreeMap<SocketAddr, Backlog>,
    next_port: u16,
}

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<(LoopStream, SocketAddr)>,
    acceptor: Option<Waker>,
}

/// One direction of a stream.
#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

pub struct LoopStream {
    network: LoopNetwork,
    incoming: Arc<Mutex<Lane>>,
    outgoing: Arc<Mutex<Lane>>,
}

struct LoopListener {
    network: LoopNetwork,
    addr: SocketAddr,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl LoopNetwork {
    pub fn new(seed: u64) -> LoopNetwork {
        let listeners = BTreeMap::new();
        LoopNetwork(Arc::new(Mutex::new(State {
            prng: Prng::new(seed),
            listeners,
            next_port: 50_000,
        })))
    }

    /// Connects at once, whether or not anybody accepts.
    pub fn open(&self, addr: SocketAddr) -> io::Result<LoopStream> {
        let (there, back) = (Arc::<Mutex<Lane>>::default(), Arc::<Mutex<Lane>>::default());
        let end = |incoming: &Arc<Mutex<Lane>>, outgoing: &Arc<Mutex<Lane>>| LoopStream {
            network: self.clone(),
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
        };
        let mut state = lock(&self.0);
        if !state.listeners.contains_key(&addr) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        state.next_port += 1;
        let peer = SocketAddr::from(([10, 0, 0, 9], state.next_port));
        let backlog = state.listeners.get_mut(&addr);
        let backlog = backlog.ok_or(io::Error::from(io::ErrorKind::ConnectionRefused))?;
        backlog.waiting.push_back((end(&there, &back), peer));
        if let Some(acceptor) = backlog.acceptor.take() {
            acceptor.wake();
        }
        Ok(end(&back, &there))
    }
}

impl Network for LoopNetwork {
    fn listen(&self, addr: SocketAddr) -> NetFuture<'_, Box<dyn Listener>> {
        Box::pin(async move {
            lock(&self.0).listeners.insert(addr, Backlog::default());
            Ok(Box::new(LoopListener { network: self.clone(), addr }) as Box<dyn Listener>)
        })
    }

    fn connect(&self, addr: SocketAddr) -> NetFuture<'_, Box<dyn Stream>> {
        Box::pin(async move { Ok(Box::new(self.open(addr)?) as Box<dyn Stream>) })
    }
}

impl Listener for LoopListener {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn accept(&mut self) -> NetFuture<'_, (Box<dyn Arrival>, SocketAddr)> {
        Box::pin(poll_fn(|cx| {
            let mut state = lock(&self.network.0);
            let Some(backlog) = state.listeners.get_mut(&self.addr) else { return Poll::Pending };
            match backlog.waiting.pop_front() {
                Some((stream, peer)) => {
                    Poll::Ready(Ok((Box::new(stream) as Box<dyn Arrival>, peer)))
                }
                None => {
                    backlog.acceptor = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

impl Arrival for LoopStream {
    fn attach(self: Box<Self>) -> io::Result<Box<dyn Stream>> {
        Ok(self)
    }
}

impl Drop for LoopListener {
    fn drop(&mut self) {
        lock(&self.network.0).listeners.remove(&self.addr);
    }
}

impl Stream for LoopStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut lane = lock(&self.incoming);
        if lane.bytes.is_empty() {
            if lane.closed {
                return Poll::Ready(Ok(0));
            }
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let most = buf.len().min(lane.bytes.len());
        let len = 1 + lock(&self.network.0).prng.next_u64() as usize % most;
        for (slot, byte) in buf.iter_mut().zip(lane.bytes.drain(..len)) {
            *slot = byte;
        }
        lane.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(len))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut lane = lock(&self.outgoing);
        if lane.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = buf.len().min(CAPACITY - lane.bytes.len());
        if len == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        lane.bytes.extend(&buf[..len]);
        lane.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(len))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lane = lock(&self.outgoing);
        lane.closed = true;
        lane.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for LoopStream {
    fn drop(&mut self) {
        for lane in [&self.incoming, &self.outgoing] {
            let mut lane = lock(lane);
            lane.closed = true;
            lane.wake();
        }
    }
}

pub fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7379))
}

/// What stops a server, and what tells that it ended.
pub type Handles = (oneshot::Sender<()>, oneshot::Receiver<()>);

/// Starts a server as [`spawn`] does, from outside the simulation.
pub fn start(sim: &Sim, node: &Node, network: &LoopNetwork, config: Config) -> Handles {
    let starter = sim.node("starter");
    sim.block_on(&starter, async { spawn(node, network, config) }).done()
}

/// The trees of a running server's stores.
pub type Trees = Arc<Mutex<Vec<Tree>>>;

/// Starts a server and shows the trees under it.
pub fn start_open(sim: &Sim, node: &Node, network: &LoopNetwork) -> (Handles, Trees) {
    let trees = Trees::default();
    let starter = sim.node("starter");
    let shown = trees.clone();
    let spawning = async { spawn_showing(node, network, Config::default(), 2, shown) };
    (sim.block_on(&starter, spawning).done(), trees)
}

/// Opens the database of a node and starts a server on it.
pub fn spawn(node: &Node, network: &LoopNetwork, config: Config) -> Handles {
    spawn_showing(node, network, config, 2, Trees::default())
}

/// Starts a server whose shards, two of them, lie in one store and write one log.
pub fn start_on_one_log(sim: &Sim, node: &Node, network: &LoopNetwork, config: Config) -> Handles {
    let starter = sim.node("starter");
    let spawning = async { spawn_showing(node, network, config, 1, Trees::default()) };
    sim.block_on(&starter, spawning).done()
}

fn spawn_showing(
    node: &Node,
    network: &LoopNetwork,
    config: Config,
    stores: u16,
    trees: Trees,
) -> Handles {
    let env = Env { network: Arc::new(network.clone()), ..node.env() };
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let tasks = env.tasks.clone();
    tasks.spawn_local(
        "server",
        Box::pin(async move {
            let mut options = NodeOptions::new(env.clone(), "data");
            options.cores = 1 + (env.random.next_u64() % 2) as usize;
            options.stores = stores;
            options.engine.durability = match config.durability {
                Durability::Synced => atoll_lsm::Durability::Synced,
                Durability::Interval => atoll_lsm::Durability::Interval,
                Durability::Buffered => atoll_lsm::Durability::Buffered,
            };
            options.memory = 16 << 20;
            // Small segments: each is written whole when it is made.
            options.engine.log_segment_size = 256 << 10;
            let run_id = env.random.next_u64();
            let identity =
                Identity { version: "test", process_id: 1, run_id, measure: None, allocator: "" };
            let engine = Engine::start(options, config, identity).await.expect("it opens");
            lock(&trees).extend(engine.trees().into_iter().map(|(_, tree)| tree));
            let server = Server::bind(&engine, address()).await;
            let stop = async {
                let _ = stopped.await;
            };
            server.expect("the address is free").run(stop).await;
            engine.stop().await.expect("it closes");
            let _ = end.send(());
        }),
    );
    (stop, ended)
}

/// A client.
pub struct Client {
    stream: LoopStream,
    decoder: ReplyDecoder,
}

impl Client {
    /// Connects, as soon as the server listens.
    pub async fn connect(env: &Env, network: &LoopNetwork) -> Client {
        loop {
            if let Ok(stream) = network.open(address()) {
                return Client { stream, decoder: ReplyDecoder::new() };
            }
            env.clock.sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// Sends bytes; false if the server is gone.
    pub async fn send(&mut self, mut bytes: &[u8]) -> bool {
        poll_fn(|cx| {
            while !bytes.is_empty() {
                match self.stream.poll_write(cx, bytes) {
                    Poll::Ready(Ok(sent)) => bytes = &bytes[sent..],
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(true)
        })
        .await
    }

    /// Returns the next reply, `None` once the server has closed.
    pub async fn receive(&mut self) -> Option<Value> {
        let mut buf = vec![0; 4096];
        loop {
            if let Some(value) = self.decoder.next_reply().expect("the server speaks RESP") {
                return Some(value);
            }
            let read = poll_fn(|cx| self.stream.poll_read(cx, &mut buf)).await.unwrap_or(0);
            if read == 0 {
                return None;
            }
            self.decoder.feed(&buf[..read]);
        }
    }

    /// Sends one command and returns its reply.
    pub async fn ask(&mut self, args: &[&str]) -> Option<Value> {
        let mut bytes = Vec::new();
        atoll_resp::request(&mut bytes, args);
        if self.send(&bytes).await { self.receive().await } else { None }
    }

    /// Closes the write half: no more requests.
    pub async fn finish(&mut self) {
        let _ = poll_fn(|cx| self.stream.poll_shutdown(cx)).await;
    }
}

pub fn bulk(text: &str) -> Option<Value> {
    Some(Value::Bulk(text.into()))
}

pub fn simple(text: &str) -> Option<Value> {
    Some(Value::Simple(text.into()))
}

pub fn error(text: &str) -> Option<Value> {
    Some(Value::Error(text.into()))
}
