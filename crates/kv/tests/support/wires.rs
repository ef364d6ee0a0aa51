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
use atoll_env::time::Clock;
use atoll_kv::Carrier;
use atoll_shard::replica::EngineId;
use parking_lot::Mutex;

type Way = (EngineId, EngineId);

struct State {
    queues: BTreeMap<Way, VecDeque<(u64, Vec<u8>)>>,
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

    /// Forgets what is on the way to and from an engine: it has crashed.
    pub fn forget(&self, engine: EngineId) {
        self.state.lock().queues.retain(|(from, to), _| *from != engine && *to != engine);
    }

    /// Returns how many packets were sent, and how many of them were lost.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.packets, state.lost)
    }

    /// Takes what has arrived at an engine by now.
    pub fn arrivals(&self, engine: EngineId) -> Vec<Vec<u8>> {
        let now = self.clock.now().0;
        let mut state = self.state.lock();
        let mut arrived = Vec::new();
        for ((_, to), queue) in &mut state.queues {
            while *to == engine && queue.front().is_some_and(|(at, _)| *at <= now) {
                arrived.extend(queue.pop_front().map(|(_, packet)| packet));
            }
        }
        arrived
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
        let now = self.wires.clock.now();
        let mut state = self.wires.state.lock();
        let state = &mut *state;
        state.packets += 1;
        let way = (self.engine, to);
        if state.cut.contains(&way) || state.prng.chance(state.loss) {
            state.lost += 1;
            return;
        }
        let takes = Duration::from_micros(50 + state.prng.below(400));
        let queue = state.queues.entry(way).or_default();
        let before = queue.back().map_or(0, |(at, _)| *at);
        queue.push_back((now.after(takes).0.max(before), packet));
    }
}
