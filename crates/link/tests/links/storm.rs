//! Three engines under everything that a network and machines do, and what has to hold whatever happens.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::{Node, Sim};
use atoll_link::{
    CallError, Class, EngineId, Handler, Link, Options, Peer, Receiver, Refused, Responder,
};
use bytes::Bytes;

use crate::support::{PORT, options, slow};

/// What all owners saw, kept outside of them: engines crash.
#[derive(Default)]
struct Seen {
    /// Messages of raft by sender's life and receiver's life, in order.
    raft: BTreeMap<(u32, u32), Vec<u32>>,
    /// Requests that a handler looked at.
    requests: BTreeSet<u32>,
    /// Streams whose end was taken, and how many bytes came before.
    streams: BTreeMap<u32, usize>,
    refused: Vec<Refused>,
    outcomes: Vec<(u32, Result<Bytes, CallError>)>,
    finished: Vec<u32>,
}

struct Owner {
    env: atoll_env::Env,
    life: u32,
    seen: Rc<RefCell<Seen>>,
    prng: RefCell<Prng>,
    up: RefCell<BTreeSet<(EngineId, Class)>>,
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().unwrap())
}

impl Handler for Owner {
    fn raft(&self, from: EngineId, message: Bytes) {
        assert!(self.up.borrow().contains(&(from, Class::Raft)), "told before what arrives");
        let lives = (number(&message[4..]), self.life);
        self.seen.borrow_mut().raft.entry(lives).or_default().push(number(&message));
    }

    fn request(&self, _: EngineId, request: Bytes, responder: Responder) {
        self.seen.borrow_mut().requests.insert(number(&request));
        let mut prng = self.prng.borrow_mut();
        let pause = self.env.clock.sleep(Duration::from_millis(prng.below(300)));
        let fate = prng.below(10);
        let work = async move {
            pause.await;
            match fate {
                0 => drop(responder),
                1 => responder.refuse("no"),
                _ => responder.answer(request),
            }
        };
        self.env.tasks.spawn_local("work", Box::pin(work));
    }

    fn stream(&self, _: EngineId, header: Bytes, mut receiver: Receiver) {
        let seen = self.seen.clone();
        let slow = self.prng.borrow_mut().below(20);
        let clock = self.env.clock.clone();
        let read = async move {
            let mut bytes = 0;
            while let Ok(next) = receiver.next().await {
                let Some(chunk) = next else {
                    seen.borrow_mut().streams.insert(number(&header), bytes);
                    return;
                };
                assert!(chunk.iter().all(|byte| *byte == header[0]), "a chunk of another stream");
                bytes += chunk.len();
                clock.sleep(Duration::from_millis(slow)).await;
            }
        };
        self.env.tasks.spawn_local("read", Box::pin(read));
    }

    fn up(&self, peer: &Peer, class: Class) {
        assert!(self.up.borrow_mut().insert((peer.engine, class)), "up twice");
    }

    fn down(&self, engine: EngineId, class: Class, _: &str) {
        assert!(self.up.borrow_mut().remove(&(engine, class)), "down and was not up");
    }

    fn refused(&self, refused: &Refused) {
        self.seen.borrow_mut().refused.push(refused.clone());
    }
}

struct Engine {
    node: Node,
    env: atoll_env::Env,
    id: EngineId,
    life: u32,
    link: Link,
}

const CHUNKS: usize = 20;
const CHUNK: usize = 40_000;

/// Adds what an engine's options need beside the ordinary.
type Equip<'a> = &'a dyn Fn(&atoll_env::Env, u128, Options) -> Options;

fn start(
    sim: &Sim,
    node: &Node,
    n: u128,
    incarnation: u64,
    life: u32,
    seen: &Rc<RefCell<Seen>>,
    equip: Equip<'_>,
) -> Engine {
    let env = node.env();
    let owner = Rc::new(Owner {
        env: env.clone(),
        life,
        seen: seen.clone(),
        prng: RefCell::new(Prng::new(u64::from(life))),
        up: RefCell::default(),
    });
    let options = equip(&env, n, Options { incarnation, ..options(node, n) });
    let opening = Link::open(env.clone(), options, owner);
    let link = sim.block_on(node, opening).done().unwrap();
    Engine { node: node.clone(), env, id: EngineId(n), life, link }
}

#[test]
fn whatever_happens_the_order_holds_and_outcomes_are_true() {
    let counts = storm(0..60, &|_, _, options| options);
    assert!(counts[0] > 200 && counts[1..].iter().all(|count| *count > 50), "{counts:?}");
}

/// Not repeated by a seed: TLS draws its keys elsewhere.
#[cfg(feature = "tls")]
#[test]
fn the_same_holds_with_tls() {
    let authority = crate::tls::Authority::new();
    let counts = storm(150..165, &|env, n, options| authority.equip(env, n, options));
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
}

/// Returns how many calls were answered, not sent and of unknown outcome, and how many streams finished.
fn storm(seeds: std::ops::Range<u64>, equip: Equip<'_>) -> [usize; 4] {
    let (mut answered, mut not_sent, mut unknown, mut streams) = (0, 0, 0, 0);
    for seed in seeds {
        let sim = Sim::new(seed);
        let mut prng = Prng::new(seed);
        let seen: Rc<RefCell<Seen>> = Rc::default();
        sim.set_net_options(slow(0, 1 + prng.below(30), 0.02));
        let nodes: Vec<Node> = (1..=3).map(|n| sim.node(&format!("n{n}"))).collect();
        let mut lives = 0;
        let mut incarnations = [1u64; 3];
        let mut engines: Vec<Engine> = Vec::new();
        let know = |engines: &[Engine], of: usize| {
            for other in 0..3 {
                if other != of {
                    let address = std::net::SocketAddr::new(nodes[other].ip(), PORT);
                    let link = &engines[of].link;
                    let setting = async { link.set_peer(EngineId(other as u128 + 1), address) };
                    sim.block_on(&nodes[of], setting).done();
                }
            }
        };
        for (n, node) in nodes.iter().enumerate() {
            lives += 1;
            engines.push(start(&sim, node, n as u128 + 1, 1, lives, &seen, equip));
        }
        (0..3).for_each(|of| know(&engines, of));
        let mut next = 0u32;
        let mut cut = BTreeSet::new();
        for _ in 0..150 {
            let (from, to) = (prng.index(3), prng.index(3));
            if from == to {
                continue;
            }
            let (a, to_id) = (&engines[from], engines[to].id);
            next += 1;
            let tag = [next.to_le_bytes(), a.life.to_le_bytes()].concat();
            match prng.below(20) {
                0 => sim.reset_links(&nodes[from], &nodes[to]),
                1 => {
                    sim.cut_link(&nodes[from], &nodes[to]);
                    cut.insert((from, to));
                }
                2 | 3 => {
                    if let Some((x, y)) = cut.pop_first() {
                        sim.heal_link(&nodes[x], &nodes[y]);
                    }
                }
                4 => nodes[from].pause(Duration::from_millis(prng.below(4000))),
                5 => {
                    nodes[from].crash();
                    nodes[from].restart();
                    lives += 1;
                    incarnations[from] += 1;
                    let n = from as u128 + 1;
                    engines[from] =
                        start(&sim, &nodes[from], n, incarnations[from], lives, &seen, equip);
                    know(&engines, from);
                }
                6..10 => {
                    let (link, seen) = (a.link.clone(), seen.clone());
                    let ms = prng.below(3000);
                    let deadline = a.env.clock.now().after(Duration::from_millis(ms));
                    let len = [0, 100, 200_000][prng.index(3)];
                    let request = Bytes::from([&tag[..], &vec![1; len]].concat());
                    let call = async move {
                        let outcome = link.call(to_id, request, deadline).await;
                        let late = outcome.as_ref().map(|answer| answer.slice(..4));
                        let outcome = late.map_err(Clone::clone);
                        seen.borrow_mut().outcomes.push((next, outcome));
                    };
                    let env = a.env.clone();
                    let spawning = async { env.tasks.spawn_local("call", Box::pin(call)) };
                    sim.block_on(&nodes[from], spawning).done();
                }
                10 | 11 => {
                    let (link, seen) = (a.link.clone(), seen.clone());
                    let stream = async move {
                        let header = Bytes::copy_from_slice(&next.to_le_bytes());
                        let byte = header[0];
                        let Ok(mut sender) = link.open_stream(to_id, header) else { return };
                        for _ in 0..CHUNKS {
                            if sender.send(Bytes::from(vec![byte; CHUNK])).await.is_err() {
                                return;
                            }
                        }
                        if sender.finish().await.is_ok() {
                            seen.borrow_mut().finished.push(next);
                        }
                    };
                    let env = a.env.clone();
                    let spawning = async { env.tasks.spawn_local("stream", Box::pin(stream)) };
                    sim.block_on(&nodes[from], spawning).done();
                }
                _ => {
                    for _ in 0..prng.below(30) {
                        next += 1;
                        let tag = [next.to_le_bytes(), a.life.to_le_bytes()].concat();
                        let len = if prng.chance(0.1) { 50_000 } else { 10 };
                        let _ = a.link.send(to_id, [tag.into(), Bytes::from(vec![0; len])]);
                    }
                }
            }
            sim.advance(Duration::from_millis(prng.below(150)));
        }
        // Everything heals.
        for (x, y) in cut {
            sim.heal_link(&nodes[x], &nodes[y]);
        }
        sim.advance(Duration::from_secs(25));
        for a in &engines {
            for b in engines.iter().filter(|b| b.id != a.id) {
                for class in Class::ALL {
                    let is_up = a.link.is_connected(b.id, class);
                    assert!(is_up, "seed {seed}: {} to {} by {class}", a.id, b.id);
                }
            }
            assert!(a.node.is_up());
            for stats in a.link.stats() {
                for class in Class::ALL {
                    let of = stats.class(class);
                    assert_eq!((of.queue_bytes, of.unread_bytes), (0, 0), "seed {seed}: {of:?}");
                }
            }
        }
        let seen = seen.borrow();
        for ((from, to), numbers) in &seen.raft {
            let is_sorted = numbers.is_sorted_by(|x, y| x < y);
            assert!(is_sorted, "seed {seed}: from life {from} to {to}: {numbers:?}");
        }
        for (n, outcome) in &seen.outcomes {
            match outcome {
                Ok(answer) => {
                    assert_eq!(number(answer), *n, "seed {seed}: somebody else's answer");
                    assert!(seen.requests.contains(n));
                    answered += 1;
                }
                Err(CallError::Refused(_)) => assert!(seen.requests.contains(n)),
                Err(CallError::NotSent(why)) => {
                    assert!(!seen.requests.contains(n), "seed {seed}: {n} was seen: {why}");
                    not_sent += 1;
                }
                Err(CallError::Unknown(_)) => unknown += 1,
            }
        }
        for n in &seen.finished {
            assert_eq!(seen.streams.get(n), Some(&(CHUNKS * CHUNK)), "seed {seed}: stream {n}");
            streams += 1;
        }
        // Nobody was at fault, whatever they went through.
        assert!(seen.refused.iter().all(is_weather), "seed {seed}: {:?}", seen.refused);
    }
    [answered, not_sent, unknown, streams]
}

/// Whether a refusal is what happens when machines restart and stop for a while.
fn is_weather(refused: &Refused) -> bool {
    use atoll_link::Code;
    matches!(refused.code, Code::Replaced | Code::Silent)
}
