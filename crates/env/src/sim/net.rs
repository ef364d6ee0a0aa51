//! The simulated network: byte streams between nodes, late, in pieces, and sometimes cut.
//!
//! ```text
//!   poll_write --> in flight (due at a drawn time, in order) --> arrived --> poll_read
//!                  waits while the link is cut                  handed out in drawn pieces
//! ```
//!
//! A stream is two pipes. A pipe keeps the order and loses nothing, as TCP does; what varies is when
//! bytes arrive and how they are cut, by writes that take a prefix and reads that return one. A
//! crash or [`Sim::reset_links`](crate::sim::Sim::reset_links) resets streams; a cut link stalls
//! them until it is healed, and connecting over it times out.
//!
//! Node `n` has the address `10.0.0.0 + n + 1`; loopback addresses mean the node itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use crate::net::{Arrival, Listener, NetFuture, Network, Stream};
use crate::random::Prng;
use crate::sim::executor::{Action, Handle, NodeId, Shared};
use crate::sync::oneshot;
use crate::time::Instant;

/// Bytes a pipe holds before its writer waits.
const WINDOW: usize = 64 * 1024;
/// How long connecting waits for a node that does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The first port given to those who ask for any.
const FIRST_FREE_PORT: u16 = 49_152;

/// How the simulated network behaves.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Time from a write to its arrival.
    pub latency: Range<Duration>,
    /// Chance that a write or read moves a single byte, 0 to 1; else it moves a drawn part or all.
    pub single_byte: f64,
}

impl Default for NetOptions {
    fn default() -> NetOptions {
        let latency = Duration::from_micros(50)..Duration::from_millis(1);
        NetOptions { latency, single_byte: 0.05 }
    }
}

type PipeId = u64;
/// A listener's place: a port of a node.
type Port = (NodeId, u16);

/// All connections of a simulation.
pub(super) struct Wires {
    pub(super) options: NetOptions,
    prng: Prng,
    listeners: BTreeMap<Port, ListenerState>,
    pipes: BTreeMap<PipeId, Pipe>,
    /// Pairs of nodes, the smaller first.
    cut: BTreeSet<(NodeId, NodeId)>,
    next_pipe: PipeId,
    next_port: u16,
}

#[derive(Default)]
struct ListenerState {
    backlog: VecDeque<(SimStream, SocketAddr)>,
    waker: Option<Waker>,
}

/// One direction of a stream.
struct Pipe {
    from: NodeId,
    to: NodeId,
    /// Due times never decrease. `None` is the end of the stream.
    in_flight: VecDeque<(Instant, Option<Vec<u8>>)>,
    arrived: VecDeque<u8>,
    /// Bytes in flight and arrived.
    held: usize,
    ended: bool,
    reset: bool,
    reader_gone: bool,
    writer_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn new(from: NodeId, to: NodeId) -> Pipe {
        Pipe {
            from,
            to,
            in_flight: VecDeque::new(),
            arrived: VecDeque::new(),
            held: 0,
            ended: false,
            reset: false,
            reader_gone: false,
            writer_gone: false,
            reader: None,
            writer: None,
        }
    }

    fn wakers(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.reader.take().into_iter().chain(self.writer.take())
    }

    /// Lets everything due arrive.
    fn deliver(&mut self, now: Instant) {
        while self.in_flight.front().is_some_and(|(due, _)| *due <= now) {
            match self.in_flight.pop_front() {
                Some((_, Some(bytes))) => self.arrived.extend(bytes),
                _ => self.ended = true,
            }
        }
    }
}

impl Wires {
    pub(super) fn new(prng: Prng) -> Wires {
        Wires {
            options: NetOptions::default(),
            prng,
            listeners: BTreeMap::new(),
            pipes: BTreeMap::new(),
            cut: BTreeSet::new(),
            next_pipe: 0,
            next_port: FIRST_FREE_PORT,
        }
    }

    /// Resets the streams of a node and closes its listeners.
    pub(super) fn crash(shared: &Shared, node: NodeId) {
        Wires::reset(shared, |pipe| pipe.from == node || pipe.to == node);
        // The node's own ends are dead and will not say so themselves.
        shared.wires.lock().pipes.retain(|_, pipe| {
            pipe.writer_gone |= pipe.from == node;
            pipe.reader_gone |= pipe.to == node;
            !(pipe.writer_gone && pipe.reader_gone)
        });
        let closed: Vec<_> = {
            let mut wires = shared.wires.lock();
            let ports: Vec<Port> =
                wires.listeners.range((node, 0)..=(node, u16::MAX)).map(|l| *l.0).collect();
            ports.iter().filter_map(|port| wires.listeners.remove(port)).collect()
        };
        drop(closed);
    }

    /// Drops everything at the end of a simulation.
    pub(super) fn close(shared: &Shared) {
        let mut wires = shared.wires.lock();
        let left = (std::mem::take(&mut wires.listeners), std::mem::take(&mut wires.pipes));
        drop(wires);
        drop(left);
    }

    /// Resets the streams between two nodes.
    pub(super) fn reset_between(shared: &Shared, a: NodeId, b: NodeId) {
        Wires::reset(shared, |pipe| link(pipe.from, pipe.to) == link(a, b));
    }

    fn reset(shared: &Shared, hit: impl Fn(&Pipe) -> bool) {
        let mut wakers = Vec::new();
        for pipe in shared.wires.lock().pipes.values_mut().filter(|pipe| hit(pipe)) {
            pipe.reset = true;
            wakers.extend(pipe.wakers());
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Stalls everything between two nodes.
    pub(super) fn cut(&mut self, a: NodeId, b: NodeId) {
        self.cut.insert(link(a, b));
    }

    /// Lets everything between two nodes flow again.
    pub(super) fn heal(shared: &Shared, a: NodeId, b: NodeId) {
        let now = shared.now();
        let mut wakers = Vec::new();
        {
            let mut wires = shared.wires.lock();
            wires.cut.remove(&link(a, b));
            for pipe in wires.pipes.values_mut().filter(|p| link(p.from, p.to) == link(a, b)) {
                pipe.deliver(now);
                wakers.extend(pipe.wakers());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        self.cut.contains(&link(a, b))
    }

    fn draw_latency(&mut self) -> Duration {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let range = nanos(self.options.latency.start)..nanos(self.options.latency.end);
        Duration::from_nanos(self.prng.range(range))
    }

    /// Draws how many of `len` bytes move at once.
    fn draw_part(&mut self, len: usize) -> usize {
        if len > 1 && self.prng.chance(self.options.single_byte) {
            1
        } else if self.prng.chance(0.3) {
            len.min(1 + self.prng.index(len.max(1)))
        } else {
            len
        }
    }

    fn free_port(&mut self, node: NodeId) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_FREE_PORT);
            if !self.listeners.contains_key(&(node, port)) {
                return port;
            }
        }
    }

    fn add_pipe(&mut self, from: NodeId, to: NodeId) -> PipeId {
        self.next_pipe += 1;
        self.pipes.insert(self.next_pipe, Pipe::new(from, to));
        self.next_pipe
    }
}

fn link(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

/// Returns the address of a node.
pub(super) fn ip(node: NodeId) -> IpAddr {
    let number = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + 1 + u32::try_from(node).unwrap_or(0);
    Ipv4Addr::from(number).into()
}

/// A node's network in one of its epochs.
pub(super) struct SimNetwork {
    handle: Handle,
}

impl SimNetwork {
    pub(super) fn new(handle: Handle) -> SimNetwork {
        SimNetwork { handle }
    }

    /// The node that an address means here.
    fn node_of(&self, addr: IpAddr) -> Option<NodeId> {
        if addr.is_loopback() || addr.is_unspecified() {
            return Some(self.handle.node);
        }
        let nodes = self.handle.shared.state.lock().nodes.len();
        (0..nodes).find(|node| ip(*node) == addr)
    }

    /// Brings a connection to its listener, if there is one.
    fn arrive(handle: &Handle, to: Port) -> io::Result<SimStream> {
        let node = {
            let state = handle.shared.state.lock();
            Handle { shared: handle.shared.clone(), node: to.0, epoch: state.nodes[to.0].epoch }
        };
        let mut wires = handle.shared.wires.lock();
        if !wires.listeners.contains_key(&to) {
            return Err(Errno::CONNREFUSED.into());
        }
        let (up, down) = (wires.add_pipe(handle.node, to.0), wires.add_pipe(to.0, handle.node));
        let port = wires.free_port(handle.node);
        let client = SimStream { handle: handle.clone(), read: down, write: up, ended: false };
        let server = SimStream { handle: node, read: up, write: down, ended: false };
        let listener = wires.listeners.get_mut(&to).expect("invariant: it was just there");
        listener.backlog.push_back((server, SocketAddr::new(ip(handle.node), port)));
        let waker = listener.waker.take();
        drop(wires);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(client)
    }
}

impl Network for SimNetwork {
    fn listen(&self, addr: SocketAddr) -> NetFuture<'_, Box<dyn Listener>> {
        Box::pin(async move {
            alive(&self.handle).await;
            if self.node_of(addr.ip()) != Some(self.handle.node) {
                return Err(Errno::ADDRNOTAVAIL.into());
            }
            let node = self.handle.node;
            let mut wires = self.handle.shared.wires.lock();
            let port = if addr.port() == 0 { wires.free_port(node) } else { addr.port() };
            if wires.listeners.contains_key(&(node, port)) {
                return Err(Errno::ADDRINUSE.into());
            }
            wires.listeners.insert((node, port), ListenerState::default());
            let addr = SocketAddr::new(addr.ip(), port);
            Ok(Box::new(SimListener { handle: self.handle.clone(), addr }) as Box<dyn Listener>)
        })
    }

    fn connect(&self, addr: SocketAddr) -> NetFuture<'_, Box<dyn Stream>> {
        Box::pin(async move {
            alive(&self.handle).await;
            let node = self.node_of(addr.ip()).ok_or(Errno::HOSTUNREACH)?;
            let is_up = self.handle.shared.state.lock().nodes[node].up;
            let (reachable, latency) = {
                let mut wires = self.handle.shared.wires.lock();
                (is_up && !wires.is_cut(self.handle.node, node), wires.draw_latency())
            };
            let (sender, receiver) = oneshot::channel();
            let handle = self.handle.clone();
            let (delay, action): (_, Box<dyn FnOnce() + Send>) = if reachable {
                // A caller who has gone leaves a stream that is closed at once.
                let to = (node, addr.port());
                (latency, Box::new(move || _ = sender.send(SimNetwork::arrive(&handle, to))))
            } else {
                let timed_out = Err(Errno::TIMEDOUT.into());
                (CONNECT_TIMEOUT, Box::new(move || _ = sender.send(timed_out)))
            };
            let at = self.handle.shared.now().after(delay);
            self.handle.schedule(at, Action::Call(action));
            match receiver.await {
                Ok(result) => result.map(|stream| Box::new(stream) as Box<dyn Stream>),
                Err(oneshot::Canceled) => std::future::pending().await,
            }
        })
    }
}

/// Goes on only on a living node.
async fn alive(handle: &Handle) {
    if !handle.is_alive() {
        std::future::pending::<()>().await;
    }
}

struct SimListener {
    handle: Handle,
    addr: SocketAddr,
}

impl Listener for SimListener {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn accept(&mut self) -> NetFuture<'_, (Box<dyn Arrival>, SocketAddr)> {
        let port = (self.handle.node, self.addr.port());
        Box::pin(poll_fn(move |cx| {
            if !self.handle.is_alive() {
                return Poll::Pending;
            }
            let _replaced; // dropped after the lock is released, as everywhere below
            let mut wires = self.handle.shared.wires.lock();
            let Some(listener) = wires.listeners.get_mut(&port) else { return Poll::Pending };
            match listener.backlog.pop_front() {
                Some((stream, peer)) => {
                    Poll::Ready(Ok((Box::new(stream) as Box<dyn Arrival>, peer)))
                }
                None => {
                    _replaced = listener.waker.replace(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        if self.handle.is_alive() {
            let port = (self.handle.node, self.addr.port());
            let closed = self.handle.shared.wires.lock().listeners.remove(&port);
            drop(closed); // with the streams nobody accepted
        }
    }
}

impl Arrival for SimStream {
    fn attach(self: Box<Self>) -> io::Result<Box<dyn Stream>> {
        Ok(self)
    }
}

struct SimStream {
    handle: Handle,
    read: PipeId,
    write: PipeId,
    /// The write half was shut down.
    ended: bool,
}

impl SimStream {
    /// Sends bytes, or the end, on their way.
    fn send(&self, bytes: Option<Vec<u8>>) {
        let (shared, id) = (self.handle.shared.clone(), self.write);
        let sent = bytes.as_deref().unwrap_or_default();
        let len = sent.len();
        let numbers = [id, len as u64, xxh3_64(sent)];
        self.handle.record("send", &numbers, || format!("pipe {id}, {len} bytes"));
        let now = shared.now();
        let (due, to) = {
            let mut wires = shared.wires.lock();
            let latency = wires.draw_latency();
            let Some(pipe) = wires.pipes.get_mut(&id) else { return };
            let earliest = pipe.in_flight.back().map_or(now, |(due, _)| *due);
            let due = earliest.max(now.after(latency));
            pipe.held += bytes.as_ref().map_or(0, Vec::len);
            pipe.in_flight.push_back((due, bytes));
            (due, pipe.to)
        };
        // On the receiver's account: bytes in flight outlive their sender's crash no more than the
        // reset lets them, but a receiver's crash ends their way.
        let epoch = shared.state.lock().nodes[to].epoch;
        let receiver = Handle { shared, node: to, epoch };
        let arrival = receiver.clone();
        receiver.schedule(due, Action::Call(Box::new(move || SimStream::arrive(&arrival, id))));
    }

    /// Lets what is due on a pipe arrive, unless the link is cut.
    fn arrive(receiver: &Handle, id: PipeId) {
        let now = receiver.shared.now();
        let (waker, len) = {
            let mut wires = receiver.shared.wires.lock();
            let Some((from, to)) = wires.pipes.get(&id).map(|pipe| (pipe.from, pipe.to)) else {
                return;
            };
            if wires.is_cut(from, to) {
                return;
            }
            let Some(pipe) = wires.pipes.get_mut(&id) else { return };
            pipe.deliver(now);
            (pipe.reader.take(), pipe.arrived.len())
        };
        receiver.record("arrive", &[id, len as u64], || format!("pipe {id}, {len} bytes wait"));
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Stream for SimStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.handle.is_alive() {
            return Poll::Pending;
        }
        let _replaced;
        let mut guard = self.handle.shared.wires.lock();
        let wires = &mut *guard;
        let Some(pipe) = wires.pipes.get(&self.read) else {
            return Poll::Ready(Err(Errno::CONNRESET.into()));
        };
        let waiting = pipe.arrived.len();
        if pipe.reset {
            return Poll::Ready(Err(Errno::CONNRESET.into()));
        }
        if buf.is_empty() || (waiting == 0 && pipe.ended) {
            return Poll::Ready(Ok(0));
        }
        let part = if waiting == 0 { 0 } else { wires.draw_part(waiting.min(buf.len())) };
        let Some(pipe) = wires.pipes.get_mut(&self.read) else {
            return Poll::Ready(Err(Errno::CONNRESET.into()));
        };
        if part == 0 {
            _replaced = pipe.reader.replace(cx.waker().clone());
            return Poll::Pending;
        }
        for (slot, byte) in buf.iter_mut().zip(pipe.arrived.drain(..part)) {
            *slot = byte;
        }
        pipe.held -= part;
        let writer = pipe.writer.take();
        drop(guard);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(Ok(part))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.handle.is_alive() {
            return Poll::Pending;
        }
        let _replaced;
        let part = {
            let mut guard = self.handle.shared.wires.lock();
            let wires = &mut *guard;
            let Some(pipe) = wires.pipes.get_mut(&self.write) else {
                return Poll::Ready(Err(Errno::CONNRESET.into()));
            };
            if pipe.reset {
                return Poll::Ready(Err(Errno::CONNRESET.into()));
            }
            if self.ended || pipe.reader_gone {
                return Poll::Ready(Err(Errno::PIPE.into()));
            }
            let room = WINDOW.saturating_sub(pipe.held);
            if room == 0 {
                _replaced = pipe.writer.replace(cx.waker().clone());
                return Poll::Pending;
            }
            wires.draw_part(room.min(buf.len()))
        };
        if part > 0 {
            self.send(Some(buf[..part].to_vec()));
        }
        Poll::Ready(Ok(part))
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.handle.is_alive() {
            return Poll::Pending;
        }
        if !self.ended {
            self.ended = true;
            self.send(None);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if !self.handle.is_alive() {
            return;
        }
        if !self.ended {
            self.send(None);
        }
        let mut finished = [None, None];
        let mut wires = self.handle.shared.wires.lock();
        if let Some(pipe) = wires.pipes.get_mut(&self.write) {
            pipe.writer_gone = true;
            if pipe.reader_gone {
                finished[0] = wires.pipes.remove(&self.write);
            }
        }
        let mut writer = None;
        if let Some(pipe) = wires.pipes.get_mut(&self.read) {
            pipe.reader_gone = true;
            writer = pipe.writer.take();
            if pipe.writer_gone {
                finished[1] = wires.pipes.remove(&self.read);
            }
        }
        drop(wires);
        drop(finished); // with wakers
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
