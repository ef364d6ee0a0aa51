//! TLS between engines: the same as without it, for those who have a certificate of their own.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use atoll_env::net::Stream;
use atoll_env::sim::{Node, Sim};
use atoll_link::tls::{Certificates, names};
use atoll_link::{Class, ClusterId, Code, EngineId, Options, Role};
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::hostile::{Raw, write};
use crate::support::{CLUSTER, Engine, options, slow};

/// Makes certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Returns a certificate with some names and its key, as PEM.
    fn sign(&self, names: &[String], until: i32) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = date_time_ymd(until, 1, 1);
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }

    fn certificates(
        &self,
        env: &atoll_env::Env,
        n: u128,
        until: i32,
    ) -> Result<Certificates, String> {
        let [certificate, key] = self.sign(&names(CLUSTER, EngineId(n)), until);
        Certificates::new(
            env.clock.clone(),
            CLUSTER,
            EngineId(n),
            self.pem.as_bytes(),
            certificate.as_bytes(),
            key.as_bytes(),
        )
    }

    /// Puts TLS, with a certificate of engine `n`, into the options.
    pub fn equip(&self, env: &atoll_env::Env, n: u128, options: Options) -> Options {
        let certificates = self.certificates(env, n, 4000).unwrap();
        Options { wrap: Some(certificates.wrap()), ..options }
    }
}

/// Two engines, the second of which is told of the first.
fn meet(sim: &Sim, change: impl Fn(&Node, u128, Options) -> Options) -> (Engine, Engine) {
    let start = |n: u128| {
        let node = sim.node(&format!("n{n}"));
        let options = change(&node, n, options(&node, n));
        Engine::start(sim, &node, options)
    };
    let (a, b) = (start(1), start(2));
    b.knows(sim, &a);
    sim.advance(Duration::from_secs(3));
    (a, b)
}

#[test]
fn engines_with_certificates_of_one_authority_talk_however_the_stream_is_cut() {
    for seed in 0..5 {
        let sim = Sim::new(seed);
        sim.set_net_options(slow(0, 5, 0.2));
        let authority = Authority::new();
        let (a, b) = meet(&sim, |node, n, options| authority.equip(&node.env(), n, options));
        assert!(a.is_up(&b) && b.is_up(&a), "{:?}", a.owner.refused.borrow());
        sim.block_on(&a.node, async {
            (0..500).for_each(|n| a.send(&b, n).unwrap());
            let deadline = a.env.clock.now().after(Duration::from_secs(20));
            let long = Bytes::from(vec![7; 300_000]);
            assert_eq!(a.link.call(b.id, long.clone(), deadline).await, Ok(long));
        })
        .done();
        sim.advance(Duration::from_secs(3));
        assert_eq!(b.owner.numbers(a.id), (0..500).collect::<Vec<_>>());
        // The end is told through it, too.
        b.link.close();
        sim.advance(Duration::from_secs(1));
        assert_eq!(a.owner.downs(b.id, Class::Raft), ["this engine stops"], "seed {seed}");
    }
}

#[test]
fn nothing_of_what_is_sent_can_be_read_on_the_wire() {
    // The other end is the wire: it shows what the dialler says first, and that is all it gets.
    let sim = Sim::new(1);
    let (node, wire) = (sim.node("engine"), sim.node("wire"));
    let authority = Authority::new();
    let engine = Engine::start(&sim, &node, authority.equip(&node.env(), 1, options(&node, 1)));
    let address = std::net::SocketAddr::new(wire.ip(), 1);
    let env = wire.env();
    let listening = async { env.network.listen(address).await.unwrap() };
    let mut listener = sim.block_on(&wire, listening).done();
    engine.dials(&sim, EngineId(2), address);
    let said = sim
        .block_on(&wire, async {
            let (arrival, _) = listener.accept().await.unwrap();
            let mut stream = arrival.attach().unwrap();
            let (mut all, mut buffer) = (Vec::new(), [0; 1000]);
            let reading = async {
                while let Ok(n @ 1..) =
                    std::future::poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await
                {
                    all.extend_from_slice(&buffer[..n]);
                }
            };
            let _ = atoll_env::sync::timeout(&*env.clock, Duration::from_secs(1), reading).await;
            all
        })
        .done();
    assert_eq!(said[..2], [0x16, 3], "a TLS client");
    assert!(!said.windows(8).any(|bytes| bytes == b"AtollLnk"), "the hello of the link waits");
}

#[test]
fn a_certificate_of_another_authority_is_refused_and_both_owners_learn_it() {
    let sim = Sim::new(2);
    let authorities = [Authority::new(), Authority::new()];
    let (a, b) =
        meet(&sim, |node, n, options| authorities[n as usize - 1].equip(&node.env(), n, options));
    assert!(!a.link.is_connected(b.id, Class::Raft));
    for engine in [&a, &b] {
        let refused = engine.owner.refusal(Code::Certificate, false).expect("it is told");
        assert!(refused.sentence.contains("by atoll cert"), "{refused}");
    }
}

#[test]
fn the_certificate_says_which_engine_it_is_whatever_the_hello_says() {
    let sim = Sim::new(3);
    let authority = Authority::new();
    // Engine 2 has the cluster key and the certificate of engine 7.
    let (a, b) = meet(&sim, |node, n, options| {
        authority.equip(&node.env(), if n == 2 { 7 } else { n }, options)
    });
    assert!(!a.link.is_connected(b.id, Class::Raft));
    let ours = a.owner.refusal(Code::Certificate, false).expect("a notices");
    let name = &names(CLUSTER, EngineId(2))[1];
    assert!(ours.sentence.contains(&format!("it does not have the name {name}")), "{ours}");
    let told = b.owner.refusal(Code::Certificate, true).expect("b is told");
    assert!(told.sentence.contains("your certificate does not fit"), "{told}");
}

#[test]
fn a_certificate_that_has_ended_is_refused_by_the_clock_of_the_environment() {
    let sim = Sim::new(4);
    let authority = Authority::new();
    let (a, b) = meet(&sim, |node, n, options| {
        let until = if n == 2 { 1990 } else { 4000 };
        let certificates = authority.certificates(&node.env(), n, until).unwrap();
        Options { wrap: Some(certificates.wrap()), ..options }
    });
    assert!(!a.link.is_connected(b.id, Class::Raft));
    let refused = a.owner.refusal(Code::Certificate, false).expect("a notices");
    assert!(refused.sentence.contains("expired"), "{refused}");
}

#[test]
fn one_side_without_tls_is_named_as_what_it_is() {
    for with_tls in [1, 2] {
        let sim = Sim::new(5);
        let authority = Authority::new();
        let (a, b) = meet(&sim, |node, n, options| match n == with_tls {
            true => authority.equip(&node.env(), n, options),
            false => options,
        });
        assert!(!a.link.is_connected(b.id, Class::Raft));
        if with_tls == 2 {
            let refused = a.owner.refusal(Code::NotAnEngine, false).expect("a notices");
            assert!(refused.sentence.contains("a TLS client, where this side speaks plain text"));
            assert!(b.owner.refusal(Code::Certificate, false).is_some());
        } else {
            let refused = a.owner.refusal(Code::Certificate, false).expect("a notices");
            assert!(refused.sentence.contains("TLS with"), "{refused}");
            let refused = b.owner.refusal(Code::NotAnEngine, false).expect("b notices");
            assert!(refused.sentence.contains("a TLS server"), "{refused}");
        }
    }
}

#[test]
fn a_joiner_shows_the_certificate_that_was_made_for_it() {
    let sim = Sim::new(6);
    let authority = Authority::new();
    let (node_a, node_b) = (sim.node("a"), sim.node("b"));
    let a = Engine::start(&sim, &node_a, authority.equip(&node_a.env(), 1, options(&node_a, 1)));
    a.owner.lets_join.set(true);
    let joiner = Options { cluster: ClusterId::NONE, ..options(&node_b, 2) };
    let b = Engine::start(&sim, &node_b, authority.equip(&node_b.env(), 2, joiner));
    b.knows(&sim, &a);
    sim.advance(Duration::from_secs(2));
    assert!(a.is_up(&b) && b.is_up(&a), "{:?}", a.owner.refused.borrow());
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let sim = Sim::new(7);
    let env = sim.node("a").env();
    let authority = Authority::new();
    let [certificate, key] = authority.sign(&names(CLUSTER, EngineId(1)), 4000);
    let [_, other_key] = authority.sign(&names(CLUSTER, EngineId(1)), 4000);
    let new = |engine, roots: &str, certificate: &str, key: &str| {
        let (roots, certificate, key) = (roots.as_bytes(), certificate.as_bytes(), key.as_bytes());
        let new = Certificates::new(
            env.clock.clone(),
            CLUSTER,
            EngineId(engine),
            roots,
            certificate,
            key,
        );
        new.err()
    };
    assert_eq!(new(1, &authority.pem, &certificate, &key), None);
    for (error, words) in [
        (new(2, &authority.pem, &certificate, &key), "is not this engine's"),
        (new(1, "", &certificate, &key), "the authority's file has no certificate"),
        (new(1, &authority.pem, "", &key), "the certificate's file has no certificate"),
        (new(1, &authority.pem, &certificate, ""), "the certificate's key cannot be read"),
        (new(1, &authority.pem, &certificate, &other_key), "the certificate cannot be used"),
    ] {
        let error = error.expect(words);
        assert!(error.contains(words) && error.contains("atoll cert"), "{error}");
    }
}

/// A stream of which somebody keeps another end, to write past TLS.
#[derive(Clone)]
struct Tapped(Rc<RefCell<Box<dyn Stream>>>);

impl Stream for Tapped {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, buf)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_shutdown(cx)
    }
}

#[test]
fn nonsense_after_the_last_word_of_tls_is_thrown_away_and_before_it_ends_the_connection() {
    for is_closed_first in [true, false] {
        let sim = Sim::new(8);
        let (node, stranger) = (sim.node("engine"), sim.node("stranger"));
        let authority = Authority::new();
        let engine = Engine::start(&sim, &node, authority.equip(&node.env(), 1, options(&node, 1)));
        let env = stranger.env();
        let wrap = authority.certificates(&env, 9, 4000).unwrap().wrap();
        sim.block_on(&stranger, async {
            let below = env.network.connect(engine.address()).await.unwrap();
            let mut tap = Tapped(Rc::new(RefCell::new(below)));
            let wrapped = wrap(Box::new(tap.clone()), Role::Dialler);
            let mut raw = Raw::begin(&env, wrapped.stream, Class::Raft).await;
            env.clock.sleep(Duration::from_millis(50)).await;
            assert!(engine.link.is_connected(EngineId(9), Class::Raft));
            if is_closed_first {
                engine.link.close();
                assert_eq!(raw.close().await.0, Code::Leaving);
            }
            // A record of TLS that cannot be decrypted, and what is none.
            let record = [&[0x17, 3, 3, 0, 20][..], &[7; 20]].concat();
            let _ = write(&mut tap, &record).await;
            let _ = write(&mut tap, b"GET / HTTP/1.1").await;
            env.clock.sleep(Duration::from_secs(1)).await;
        })
        .done();
        let why = engine.owner.downs(EngineId(9), Class::Raft);
        let words = if is_closed_first { "this engine stops" } else { "reading from it failed" };
        assert!(why[0].contains(words), "{why:?}");
    }
}
