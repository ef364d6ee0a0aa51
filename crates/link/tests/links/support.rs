//! Engines whose owner writes down what he is told.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{NetOptions, Node, Sim};
use atoll_link::{
    Class, ClusterId, ClusterKey, Code, EngineId, Handler, Link, Options, Peer, PeerStats,
    Receiver, Refused, Responder, Stats,
};
use bytes::Bytes;

pub const CLUSTER: ClusterId = ClusterId(0xc1);
pub const PORT: u16 = 7380;

/// What an owner does when something arrives.
pub type Reaction = Box<dyn Fn(EngineId)>;

/// What an owner does with a request.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Answering {
    /// Answers with the request itself.
    #[default]
    Echo,
    /// Keeps the responder.
    Hold,
    /// Drops the responder.
    Forget,
    /// Says no.
    Refuse,
}

/// An owner that writes everything down.
#[derive(Default)]
pub struct Owner {
    pub raft: RefCell<Vec<(EngineId, Bytes)>>,
    pub held: RefCell<Vec<(Bytes, Responder)>>,
    pub streams: RefCell<Vec<(EngineId, Bytes, Receiver)>>,
    pub refused: RefCell<Vec<Refused>>,
    /// What came up and went down, in order.
    pub changes: RefCell<Vec<(EngineId, Class, Option<String>)>>,
    pub unreachable: Cell<usize>,
    pub answering: Cell<Answering>,
    /// What it does with each message of consensus, beside writing it down.
    pub on_raft: RefCell<Option<Reaction>>,
    /// Whether engines without a cluster may connect.
    pub lets_join: Cell<bool>,
}

impl Owner {
    /// Returns the numbers that came from an engine on raft.
    pub fn numbers(&self, from: EngineId) -> Vec<u32> {
        let raft = self.raft.borrow();
        let of = |(sender, message): &(EngineId, Bytes)| {
            (*sender == from).then(|| u32::from_le_bytes(message[..4].try_into().unwrap()))
        };
        raft.iter().filter_map(of).collect()
    }

    /// Returns the first refusal of a kind.
    pub fn refusal(&self, code: Code, by_peer: bool) -> Option<Refused> {
        let refused = self.refused.borrow();
        refused.iter().find(|r| r.code == code && r.by_peer == by_peer).cloned()
    }

    /// Returns why connections of a class to an engine went down.
    pub fn downs(&self, engine: EngineId, class: Class) -> Vec<String> {
        let changes = self.changes.borrow();
        let of = changes.iter().filter(|c| c.0 == engine && c.1 == class);
        of.filter_map(|c| c.2.clone()).collect()
    }
}

impl Handler for Owner {
    fn raft(&self, from: EngineId, message: Bytes) {
        self.raft.borrow_mut().push((from, message));
        if let Some(react) = &*self.on_raft.borrow() {
            react(from);
        }
    }

    fn request(&self, _: EngineId, request: Bytes, responder: Responder) {
        match self.answering.get() {
            Answering::Echo => responder.answer(request),
            Answering::Hold => self.held.borrow_mut().push((request, responder)),
            Answering::Forget => {}
            Answering::Refuse => responder.refuse("ask the leader, engine 7"),
        }
    }

    fn stream(&self, from: EngineId, header: Bytes, receiver: Receiver) {
        self.streams.borrow_mut().push((from, header, receiver));
    }

    fn welcome(&self, peer: &Peer) -> Result<(), String> {
        match peer.cluster == ClusterId::NONE && !self.lets_join.get() {
            true => Err("nobody may join today".to_owned()),
            false => Ok(()),
        }
    }

    fn up(&self, peer: &Peer, class: Class) {
        self.changes.borrow_mut().push((peer.engine, class, None));
    }

    fn down(&self, engine: EngineId, class: Class, why: &str) {
        self.changes.borrow_mut().push((engine, class, Some(why.to_owned())));
    }

    fn refused(&self, refused: &Refused) {
        self.refused.borrow_mut().push(refused.clone());
    }

    fn unreachable(&self, _: EngineId, _: SocketAddr, _: &str) {
        self.unreachable.set(self.unreachable.get() + 1);
    }
}

/// An engine of a simulation.
pub struct Engine {
    pub node: Node,
    pub env: Env,
    pub id: EngineId,
    pub owner: Rc<Owner>,
    pub link: Link,
}

pub fn key(byte: u8) -> Option<ClusterKey> {
    Some(ClusterKey::new(&[byte; 32]).unwrap())
}

/// The options of an engine on a node: id `n`, incarnation 1, a key.
pub fn options(node: &Node, n: u128) -> Options {
    let listen = SocketAddr::new(node.ip(), PORT);
    Options { key: key(1), ..Options::new(EngineId(n), CLUSTER, 1, listen) }
}

impl Engine {
    pub fn start(sim: &Sim, node: &Node, options: Options) -> Engine {
        let (env, owner, id) = (node.env(), Rc::new(Owner::default()), options.engine);
        let opening = Link::open(env.clone(), options, owner.clone());
        let link = sim.block_on(node, opening).done().unwrap();
        Engine { node: node.clone(), env, id, owner, link }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.node.ip(), PORT)
    }

    /// Tells this engine of another one.
    pub fn knows(&self, sim: &Sim, other: &Engine) {
        self.dials(sim, other.id, other.address());
    }

    pub fn dials(&self, sim: &Sim, engine: EngineId, address: SocketAddr) {
        sim.block_on(&self.node, async { self.link.set_peer(engine, address) }).done();
    }

    pub fn send(&self, to: &Engine, number: u32) -> Result<(), atoll_link::Dropped> {
        self.link.send(to.id, [Bytes::copy_from_slice(&number.to_le_bytes())])
    }

    pub fn stats(&self, of: &Engine, class: Class) -> Stats {
        let stats = self.link.stats();
        let of = stats.iter().find(|stats: &&PeerStats| stats.engine == of.id);
        *of.expect("the peer is known").class(class)
    }

    pub fn is_up(&self, to: &Engine) -> bool {
        Class::ALL.iter().all(|class| self.link.is_connected(to.id, *class))
    }
}

/// Two engines that know each other and are connected.
pub fn pair(sim: &Sim) -> (Engine, Engine) {
    pair_with(sim, |_| {})
}

pub fn pair_with(sim: &Sim, change: impl Fn(&mut Options)) -> (Engine, Engine) {
    let start = |n: u128| {
        let node = sim.node(&format!("n{n}"));
        let mut options = options(&node, n);
        change(&mut options);
        Engine::start(sim, &node, options)
    };
    let (a, b) = (start(1), start(2));
    a.knows(sim, &b);
    b.knows(sim, &a);
    sim.advance(Duration::from_secs(1));
    assert!(a.is_up(&b) && b.is_up(&a), "seed {}: they are connected", sim.seed());
    (a, b)
}

/// A network whose bytes take this long, at least and at most, and come in pieces.
pub fn slow(from_ms: u64, to_ms: u64, single_byte: f64) -> NetOptions {
    NetOptions {
        latency: Duration::from_millis(from_ms)..Duration::from_millis(to_ms),
        single_byte,
    }
}
