//! Peers that break the protocol, on purpose or not: nobody else suffers, and memory stays bounded.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::net::Stream;
use atoll_env::random::Prng;
use atoll_env::sim::{Node, Sim};
use atoll_env::sync::timeout;
use atoll_link::frame::{Decoder, Encoder, Frame, Kind, Lane};
use atoll_link::handshake::{Handshake, Hello, Step};
use atoll_link::{BulkError, Class, Code, EngineId, Options, Role};
use bytes::Bytes;

use crate::support::{Answering, CLUSTER, Engine, key, options};

/// An engine that speaks the protocol by hand.
pub struct Raw {
    stream: Box<dyn Stream>,
    encoder: Encoder,
    decoder: Decoder,
    unread: Vec<u8>,
}

pub async fn write(stream: &mut dyn Stream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| stream.poll_write(cx, bytes)).await?;
        bytes = &bytes[n..];
    }
    Ok(())
}

impl Raw {
    /// Connects as engine 9, with the key.
    async fn connect(env: &Env, to: SocketAddr, class: Class) -> Raw {
        Raw::begin(env, env.network.connect(to).await.unwrap(), class).await
    }

    /// The same on a stream that is there.
    pub async fn begin(env: &Env, mut stream: Box<dyn Stream>, class: Class) -> Raw {
        let nonce = std::array::from_fn(|_| env.random.next_u64() as u8);
        let ours = Hello {
            versions: 1..=1,
            cluster: CLUSTER,
            engine: EngineId(9),
            incarnation: 1,
            boot: 1,
            class,
            has_key: true,
            nonce,
        };
        let mut out = Vec::new();
        let mut handshake = Handshake::dial(ours, key(1), None, &mut out);
        let mut buffer = [0; 1000];
        loop {
            write(&mut *stream, &out).await.unwrap();
            out.clear();
            let n = poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await.unwrap();
            assert_ne!(n, 0, "closed in the handshake");
            match handshake.receive(&buffer[..n], &mut out) {
                Step::More => {}
                Step::Admit(_) => {
                    let Step::Done(proven) = handshake.admit(&mut out) else { panic!("not done") };
                    write(&mut *stream, &out).await.unwrap();
                    let lane = |sender| Lane { class, version: 1, salt: proven.salt, sender };
                    return Raw {
                        stream,
                        encoder: Encoder::new(lane(Role::Dialler)),
                        decoder: Decoder::new(lane(Role::Acceptor)),
                        unread: handshake.into_rest(),
                    };
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn send(&mut self, kind: Kind, stream: u32, payload: Vec<u8>) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        self.encoder.frame(&mut bytes, kind, stream, &[payload.into()]);
        write(&mut *self.stream, &bytes).await
    }

    /// Reads up to a frame of a kind; `None` if the stream ends before.
    async fn find(&mut self, kind: Kind) -> Option<Frame> {
        let mut buffer = [0; 1000];
        loop {
            let unread = std::mem::take(&mut self.unread);
            let mut input = &unread[..];
            while let Some(frame) = self.decoder.next(&mut input).unwrap() {
                if frame.kind == kind {
                    self.unread = input.to_vec();
                    return Some(frame);
                }
            }
            match poll_fn(|cx| self.stream.poll_read(cx, &mut buffer)).await {
                Ok(n @ 1..) => self.unread = buffer[..n].to_vec(),
                _ => return None,
            }
        }
    }

    /// Reads the last words; returns the code and the sentence.
    pub async fn close(&mut self) -> (Code, String) {
        let frame = self.find(Kind::Close).await.expect("it is told why");
        let (code, sentence) = frame.payload.split_first().unwrap();
        (Code::from_byte(*code), String::from_utf8(sentence.to_vec()).unwrap())
    }
}

fn target(sim: &Sim, change: impl Fn(&mut Options)) -> (Engine, Node) {
    let (node, stranger) = (sim.node("engine"), sim.node("stranger"));
    let mut options = options(&node, 1);
    change(&mut options);
    (Engine::start(sim, &node, options), stranger)
}

#[test]
fn a_sender_beyond_its_credit_is_told_and_closed() {
    let sim = Sim::new(1);
    let (engine, node) = target(&sim, |_| {});
    let env = node.env();
    sim.block_on(&node, async {
        let mut raw = Raw::connect(&env, engine.address(), Class::Bulk).await;
        raw.send(Kind::Open, 1, b"h".to_vec()).await.unwrap();
        let grant = raw.find(Kind::Grant).await.unwrap();
        assert_eq!(grant.payload, (1u32 << 20).to_le_bytes()[..]);
        // Chunks of a byte: each costs as much as it takes to hold it.
        let mut sent = 0;
        while sent < 1 << 16 && raw.send(Kind::Chunk, 1, vec![1]).await.is_ok() {
            sent += 1;
        }
        let (code, sentence) = raw.close().await;
        assert_eq!(code, Code::Protocol);
        assert!(sentence.contains("beyond what was granted"), "{sentence}");
        let mut receiver = engine.owner.streams.borrow_mut().pop().unwrap().2;
        assert!(matches!(receiver.next().await, Err(BulkError::Lost(_))));
    })
    .done();
    let refused = engine.owner.refusal(Code::Protocol, false).unwrap();
    assert!(refused.sentence.contains("broke the protocol"), "{refused}");
}

#[test]
fn who_asks_and_does_not_read_is_closed_and_costs_little() {
    for (class, kind, payload) in [
        (Class::Raft, Kind::Ping, vec![]),
        (Class::Rpc, Kind::Request, vec![0xff; 1000]),
        (Class::Bulk, Kind::Open, vec![1; 1000]),
    ] {
        let sim = Sim::new(2);
        let (engine, node) = target(&sim, |_| {});
        engine.owner.answering.set(Answering::Hold);
        let env = node.env();
        sim.block_on(&node, async {
            let mut raw = Raw::connect(&env, engine.address(), class).await;
            let mut sent = 0;
            while raw.send(kind, sent, payload.clone()).await.is_ok() {
                sent += 1;
                assert!(sent < 1_000_000, "{class}: it goes on for ever");
                if sent % 100 == 0
                    && let Some(stats) = engine.link.stats().first()
                {
                    let queued = stats.class(class).queue_bytes_max;
                    assert!(queued < 1 << 20, "{class}: {queued} bytes wait");
                }
            }
        })
        .done();
        sim.advance(Duration::from_secs(1));
        let why = engine.owner.downs(EngineId(9), class);
        assert!(why[0].contains("asks and does not read"), "{class}: {why:?}");
        assert!(engine.owner.held.borrow().len() <= 256);
        assert!(engine.owner.streams.borrow().len() <= 16);
    }
}

#[test]
fn a_peer_that_takes_nothing_is_closed_after_the_silence() {
    let sim = Sim::new(3);
    let (engine, node) = target(&sim, |_| {});
    let env = node.env();
    sim.block_on(&node, async {
        let mut raw = Raw::connect(&env, engine.address(), Class::Raft).await;
        env.clock.sleep(Duration::from_millis(10)).await;
        for _ in 0..20 {
            engine.link.send(EngineId(9), [Bytes::from(vec![1; 100_000])]).unwrap();
        }
        // It talks, so it is not silent, but it never reads.
        let began = env.clock.now();
        let mut n = 0;
        while raw.send(Kind::Message, 0, vec![1]).await.is_ok() {
            env.clock.sleep(Duration::from_millis(100)).await;
            n += 1;
            assert!(n < 100, "it was never closed");
        }
        let took = env.clock.now().since(began);
        assert!(took > Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    })
    .done();
    let why = engine.owner.downs(EngineId(9), Class::Raft);
    assert!(why[0].contains("it has taken nothing for"), "{why:?}");
}

#[test]
fn a_damaged_frame_closes_the_connection_with_its_place() {
    let sim = Sim::new(4);
    let (engine, node) = target(&sim, |_| {});
    let env = node.env();
    sim.block_on(&node, async {
        let mut raw = Raw::connect(&env, engine.address(), Class::Raft).await;
        raw.send(Kind::Message, 0, b"good".to_vec()).await.unwrap();
        let mut bytes = Vec::new();
        raw.encoder.frame(&mut bytes, Kind::Message, 0, &[Bytes::from_static(b"bad")]);
        *bytes.last_mut().unwrap() ^= 1;
        write(&mut *raw.stream, &bytes).await.unwrap();
        let (code, sentence) = raw.close().await;
        assert_eq!(code, Code::Protocol);
        assert!(sentence.contains("the frame at byte 20 does not verify"), "{sentence}");
    })
    .done();
    assert_eq!(engine.owner.raft.borrow()[..], [(EngineId(9), Bytes::from_static(b"good"))]);
}

#[test]
fn requests_under_one_number_at_once_break_the_protocol() {
    let sim = Sim::new(5);
    let (engine, node) = target(&sim, |_| {});
    engine.owner.answering.set(Answering::Hold);
    let env = node.env();
    sim.block_on(&node, async {
        let mut raw = Raw::connect(&env, engine.address(), Class::Rpc).await;
        raw.send(Kind::Request, 1, vec![0xff; 4]).await.unwrap();
        raw.send(Kind::Request, 1, vec![0xff; 4]).await.unwrap();
        let (code, sentence) = raw.close().await;
        assert_eq!(code, Code::Protocol);
        assert!(sentence.contains("a number that is in use"), "{sentence}");
    })
    .done();
    assert!(engine.owner.held.borrow()[0].1.is_cancelled());
}

#[test]
fn an_http_client_is_told_where_it_is_and_nothing_else() {
    let sim = Sim::new(6);
    let (engine, node) = target(&sim, |_| {});
    let env = node.env();
    let answer = sim
        .block_on(&node, async {
            let mut stream = env.network.connect(engine.address()).await.unwrap();
            write(&mut *stream, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let (mut all, mut buffer) = (Vec::new(), [0; 100]);
            while let Ok(n @ 1..) = poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await {
                all.extend_from_slice(&buffer[..n]);
            }
            String::from_utf8(all).unwrap()
        })
        .done();
    let expected = "AtollDB: this is AtollDB's port for its own engines: clients use the ports of \
        --listen and --http\r\n";
    assert_eq!(answer, expected);
    sim.advance(Duration::from_secs(1));
    let refused = engine.owner.refusal(Code::NotAnEngine, false).unwrap();
    assert!(refused.sentence.contains("looks like an HTTP client"), "{refused}");
}

#[test]
fn a_dialler_that_finds_something_else_says_so() {
    let sim = Sim::new(7);
    let (engine, node) = target(&sim, |_| {});
    let (env, serving) = (node.env(), node.env());
    let address = SocketAddr::new(node.ip(), 6379);
    sim.block_on(&node, async {
        let mut listener = env.network.listen(address).await.unwrap();
        env.tasks.spawn_local(
            "redis",
            Box::pin(async move {
                while let Ok((arrival, _)) = listener.accept().await {
                    let mut stream = arrival.attach().unwrap();
                    let _ = write(&mut *stream, b"-ERR unknown command\r\n").await;
                    serving.clock.sleep(Duration::from_millis(100)).await;
                }
            }),
        );
    })
    .done();
    engine.dials(&sim, EngineId(9), address);
    sim.advance(Duration::from_secs(2));
    let refused = engine.owner.refusal(Code::NotAnEngine, false).unwrap();
    assert!(refused.sentence.contains("looks like a Redis server: correct its address"));
}

#[test]
fn an_address_that_closes_at_once_is_told_as_unreachable() {
    let sim = Sim::new(11);
    let (engine, node) = target(&sim, |_| {});
    let env = node.env();
    let address = SocketAddr::new(node.ip(), 1);
    sim.block_on(&node, async {
        let mut listener = env.network.listen(address).await.unwrap();
        let closing = async move { while listener.accept().await.is_ok() {} };
        env.tasks.spawn_local("closes", Box::pin(closing));
    })
    .done();
    engine.dials(&sim, EngineId(9), address);
    sim.advance(Duration::from_secs(10));
    // Each class, and no faster than the wait between tries lets it.
    let told = engine.owner.unreachable.get();
    assert!((15..60).contains(&told), "{told} times");
}

#[test]
fn strangers_who_say_nothing_are_closed_and_keep_nobody_out() {
    let sim = Sim::new(8);
    let (engine, node) = target(&sim, |_| {});
    let env = node.env();
    sim.block_on(&node, async {
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(env.network.connect(engine.address()).await.unwrap());
        }
        env.clock.sleep(Duration::from_millis(100)).await;
        // Somebody else connects meanwhile.
        let other = sim.node("other");
        let (other_env, to) = (other.env(), engine.address());
        let connecting = Raw::connect(&other_env, to, Class::Raft);
        let connected = timeout(&*env.clock, Duration::from_secs(1), connecting).await;
        assert!(connected.is_ok(), "the crowd keeps it out");
        let mut buffer = [0; 2000];
        for (n, stream) in silent.iter_mut().enumerate() {
            let mut told = Vec::new();
            let reading = async {
                while let Ok(n @ 1..) = poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await {
                    told.extend_from_slice(&buffer[..n]);
                }
            };
            let ended = timeout(&*env.clock, Duration::from_secs(7), reading).await;
            assert!(ended.is_ok(), "number {n} is never closed");
            let told = String::from_utf8_lossy(&told).into_owned();
            assert_eq!(told.contains("your handshake took too long"), n < 16, "number {n}: {told}");
        }
    })
    .done();
}

#[test]
fn dripping_bytes_do_not_extend_the_deadline_of_a_handshake() {
    let sim = Sim::new(9);
    let (engine, node) = target(&sim, |_| {});
    let env = node.env();
    sim.block_on(&node, async {
        let mut stream = env.network.connect(engine.address()).await.unwrap();
        let began = env.clock.now();
        for byte in b"AtollLnk\x01\x56\x00".iter().chain(std::iter::repeat(&0)) {
            if write(&mut *stream, &[*byte]).await.is_err() {
                break;
            }
            env.clock.sleep(Duration::from_millis(400)).await;
        }
        let took = env.clock.now().since(began);
        assert!(took < Duration::from_secs(7), "it took {took:?}");
    })
    .done();
}

#[test]
fn too_many_engines_are_told_so() {
    let sim = Sim::new(10);
    let (engine, _) = target(&sim, |options| options.peers_max = 2);
    let others: Vec<Engine> = (2..=4)
        .map(|n| {
            let node = sim.node(&format!("n{n}"));
            let other = Engine::start(&sim, &node, options(&node, n));
            other.knows(&sim, &engine);
            sim.advance(Duration::from_secs(1));
            other
        })
        .collect();
    assert!(others[0].is_up(&engine) && others[1].is_up(&engine));
    assert!(!others[2].link.is_connected(engine.id, Class::Raft));
    let told = others[2].owner.refusal(Code::Busy, true).unwrap();
    assert!(told.sentence.contains("too many engines connected"), "{told}");
}

#[test]
fn good_frames_with_any_content_neither_panic_nor_disturb_others() {
    const KINDS: [(Class, &[Kind]); 3] = [
        (Class::Raft, &[Kind::Ping, Kind::Pong, Kind::Message]),
        (Class::Rpc, &[Kind::Request, Kind::Answer, Kind::Decline, Kind::Cancel, Kind::Pong]),
        (
            Class::Bulk,
            &[
                Kind::Open,
                Kind::Chunk,
                Kind::Finish,
                Kind::Abort,
                Kind::Grant,
                Kind::Stop,
                Kind::Done,
            ],
        ),
    ];
    let mut delivered = [0; 3];
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let (engine, node) = target(&sim, |_| {});
        engine.owner.answering.set([Answering::Echo, Answering::Hold][seed as usize % 2]);
        let other_node = sim.node("other");
        let other = Engine::start(&sim, &other_node, options(&other_node, 2));
        other.knows(&sim, &engine);
        sim.advance(Duration::from_secs(1));
        let env = node.env();
        let mut prng = Prng::new(seed);
        for (class, kinds) in KINDS {
            sim.block_on(&node, async {
                let mut raw = Raw::connect(&env, engine.address(), class).await;
                // Calls and streams of the engine, which the peer may answer as it likes.
                env.clock.sleep(Duration::from_millis(5)).await;
                let _call = (class == Class::Rpc).then(|| {
                    let deadline = env.clock.now().after(Duration::from_secs(60));
                    let link = engine.link.clone();
                    let call = async move {
                        let _ = link.call(EngineId(9), Bytes::from_static(b"?"), deadline).await;
                    };
                    env.tasks.spawn_local("call", Box::pin(call));
                });
                let mut sender = engine.link.open_stream(EngineId(9), Bytes::new());
                let streams = [2, 5, 1000][prng.index(3)];
                for _ in 0..60 {
                    let kind = kinds[prng.index(kinds.len())];
                    // Mostly long enough to be looked into.
                    let least = if prng.chance(0.02) { 0 } else { 4 };
                    let len = match kind {
                        Kind::Ping | Kind::Pong | Kind::Cancel | Kind::Finish | Kind::Done => 0,
                        Kind::Grant => least,
                        _ => least + prng.index(30),
                    };
                    let mut payload = vec![0; len];
                    prng.fill(&mut payload);
                    if raw.send(kind, prng.below(streams) as u32, payload).await.is_err() {
                        break;
                    }
                    if let Ok(sender) = &mut sender {
                        let sending = sender.send(Bytes::from_static(b"chunk"));
                        let _ = timeout(&*env.clock, Duration::from_millis(1), sending).await;
                    }
                    env.clock.sleep(Duration::from_millis(prng.below(2))).await;
                    let leaves = prng.chance(0.1);
                    if leaves && class == Class::Rpc {
                        engine.owner.held.borrow_mut().pop();
                    } else if leaves {
                        engine.owner.streams.borrow_mut().pop();
                    }
                }
            })
            .done();
        }
        sim.advance(Duration::from_secs(1));
        assert!(other.is_up(&engine) && engine.is_up(&other), "seed {seed}");
        assert_eq!(other.stats(&engine, Class::Raft).connects, 1, "seed {seed}");
        delivered[0] += engine.owner.raft.borrow().len();
        delivered[1] += engine.owner.held.borrow().len();
        delivered[2] += engine.owner.streams.borrow().len();
    }
    assert!(delivered.iter().all(|count| *count > 20), "it is stopped too early: {delivered:?}");
}
