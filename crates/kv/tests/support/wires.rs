//! Wires between simulated engines: packets take their time, some are lost, links are cut.
//!
//! ```text
//!   engine 1 --- queue (1,2) ---> engine 2       in order, as the connection of two engines is
//!            <-- queue (2,1) ---
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sync::oneshot;
use atoll_env::time::Clock;
use atoll_kv::{Asked, Carrier, Core, Lost, Program};
use atoll_shard::replica::EngineId;
use parking_lot::Mutex;

type Way = (EngineId, EngineId);

/// What travels.
enum Cargo {
    Packet(Vec<u8>),
    Question(u64, Vec<u8>),
    Answer(u64, Vec<u8>),
}

struct State {
    queues: BTreeMap<Way, VecDeque<(u64, Cargo)>>,
    /// Who waits for answers, by the number of the question: from where, to where.
    asked: BTreeMap<u64, (Way, oneshot::Sender<Vec<u8>>)>,
    questions: u64,
    cut: BTreeSet<Way>,
    prng: Prng,
    loss: f64,
    packets: u64,
    lost: u64,
}

/// All wires of a cluster.
#[derive(Clone)]
pub struct Wires {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
}

impl Wires {
    /// Returns wires whose time is that of `clock`.
    pub fn new(seed: u64, clock: Arc<dyn Clock>) -> Wires {
        let state = State {
            queues: BTreeMap::new(),
            asked: BTreeMap::new(),
            questions: 0,
            cut: BTreeSet::new(),
            prng: Prng::new(seed),
            loss: 0.0,
            packets: 0,
            lost: 0,
        };
        Wires { state: Arc::new(Mutex::new(state)), clock }
    }

    /// From now on this share of the packets is lost.
    pub fn set_loss(&self, loss: f64) {
        self.state.lock().loss = loss;
    }

    /// Loses everything that is sent from one engine to another, and what is on the way.
    pub fn cut(&self, from: EngineId, to: EngineId) {
        let mut state = self.state.lock();
        state.cut.insert((from, to));
        state.queues.remove(&(from, to));
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.state.lock().cut.clear();
    }

    /// Forgets what is on the way to and from an engine: it has crashed, and whoever waits for an answer
    /// of it learns that there will be none.
    pub fn forget(&self, engine: EngineId) {
        let elsewhere = |(from, to): &Way| *from != engine && *to != engine;
        let mut state = self.state.lock();
        state.queues.retain(|way, _| elsewhere(way));
        let asked = std::mem::take(&mut state.asked);
        let (waits, lost): (BTreeMap<_, _>, _) =
            asked.into_iter().partition(|(_, (way, _))| elsewhere(way));
        state.asked = waits;
        drop(state);
        drop(lost);
    }

    /// Returns how many packets were sent, and how many of them were lost.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.packets, state.lost)
    }

    /// Hands an engine what has arrived there by now.
    pub fn deliver<P: Program>(&self, engine: EngineId, core: &Core<P>) {
        let now = self.clock.now().0;
        let mut arrived = Vec::new();
        {
            let mut state = self.state.lock();
            for ((from, to), queue) in &mut state.queues {
                while *to == engine && queue.front().is_some_and(|(at, _)| *at <= now) {
                    arrived.extend(queue.pop_front().map(|(_, cargo)| (*from, cargo)));
                }
            }
        }
        for (from, cargo) in arrived {
            match cargo {
                Cargo::Packet(packet) => core.arrived(&packet.into()).expect("a packet"),
                Cargo::Question(number, question) => {
                    let (wires, core) = (self.clone(), core.clone());
                    let tasks = core.env().tasks.clone();
                    // Begun here, so that questions are in the order in which they came.
                    let answer = core.asked(&question);
                    let answer = async move {
                        wires.put((engine, from), Cargo::Answer(number, answer.await));
                    };
                    tasks.spawn_local("answer", Box::pin(answer));
                }
                Cargo::Answer(number, answer) => {
                    let asked = self.state.lock().asked.remove(&number);
                    if let Some((_, asked)) = asked {
                        let _ = asked.send(answer);
                    }
                }
            }
        }
    }

    fn put(&self, way: Way, cargo: Cargo) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.packets += 1;
        if state.cut.contains(&way) || state.prng.chance(state.loss) {
            state.lost += 1;
            return;
        }
        let takes = Duration::from_micros(50 + state.prng.below(400));
        let queue = state.queues.entry(way).or_default();
        let before = queue.back().map_or(0, |(at, _)| *at);
        queue.push_back((now.after(takes).0.max(before), cargo));
    }

    /// Returns an engine's end of the wires.
    pub fn end(&self, engine: EngineId) -> Arc<dyn Carrier> {
        Arc::new(End { engine, wires: self.clone() })
    }
}

struct End {
    engine: EngineId,
    wires: Wires,
}

impl Carrier for End {
    fn send(&self, to: EngineId, packet: Vec<u8>) {
        self.wires.put((self.engine, to), Cargo::Packet(packet));
    }

    fn ask(&self, to: EngineId, question: Vec<u8>) -> Asked {
        let (sender, receiver) = oneshot::channel();
        let number = {
            let mut state = self.wires.state.lock();
            state.questions += 1;
            let number = state.questions;
            state.asked.insert(number, ((self.engine, to), sender));
            number
        };
        self.wires.put((self.engine, to), Cargo::Question(number, question));
        Box::pin(async move { receiver.await.map(Into::into).map_err(|_| Lost::Unknown) })
    }
}
