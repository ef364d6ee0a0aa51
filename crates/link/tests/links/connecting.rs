//! How connections come about, end, and come about again.

use std::time::Duration;

use atoll_env::sim::{NetOptions, Sim};
use atoll_link::{Class, ClusterId, Code, EngineId, Options};

use crate::support::{Engine, key, options, pair, slow};

#[test]
fn three_engines_are_all_connected_by_each_class() {
    for seed in 0..10 {
        let sim = Sim::new(seed);
        let engines: Vec<Engine> = (1..=3)
            .map(|n| {
                let node = sim.node(&format!("n{n}"));
                Engine::start(&sim, &node, options(&node, n))
            })
            .collect();
        for a in &engines {
            engines.iter().filter(|b| b.id != a.id).for_each(|b| a.knows(&sim, b));
        }
        sim.advance(Duration::from_secs(2));
        for a in &engines {
            for (n, b) in engines.iter().enumerate().filter(|(_, b)| b.id != a.id) {
                assert!(a.is_up(b), "seed {seed}: {} to {}", a.id, b.id);
                a.send(b, n as u32).unwrap();
            }
        }
        sim.advance(Duration::from_secs(1));
        for a in &engines {
            for (n, b) in engines.iter().enumerate().filter(|(_, b)| b.id != a.id) {
                assert_eq!(b.owner.numbers(a.id), [n as u32], "seed {seed}");
                let rtt = a.stats(b, Class::Rpc).rtt;
                assert!(rtt.is_none_or(|rtt| rtt < Duration::from_millis(10)), "{rtt:?}");
            }
        }
    }
}

#[test]
fn two_that_dial_each_other_at_once_keep_one_connection_of_each_class() {
    let mut redundant = 0;
    for seed in 0..30 {
        let sim = Sim::new(seed);
        sim.set_net_options(slow(5, 300, 0.01));
        let (node_a, node_b) = (sim.node("a"), sim.node("b"));
        let patient =
            |options: Options| Options { silence: [Duration::from_secs(8); 3], ..options };
        let a = Engine::start(&sim, &node_a, patient(options(&node_a, 1)));
        let b = Engine::start(&sim, &node_b, patient(options(&node_b, 2)));
        a.knows(&sim, &b);
        b.knows(&sim, &a);
        sim.advance(Duration::from_secs(20));
        assert!(a.is_up(&b) && b.is_up(&a), "seed {seed}");
        let connects = |e: &Engine, o: &Engine| Class::ALL.map(|class| e.stats(o, class).connects);
        let before = (connects(&a, &b), connects(&b, &a));
        // What is up is the same connection on both sides: messages pass both ways.
        a.send(&b, 1).unwrap();
        b.send(&a, 2).unwrap();
        sim.advance(Duration::from_secs(20));
        assert_eq!((b.owner.numbers(a.id), a.owner.numbers(b.id)), (vec![1], vec![2]));
        assert_eq!((connects(&a, &b), connects(&b, &a)), before, "seed {seed}: nobody dials");
        for (e, o) in [(&a, &b), (&b, &a)] {
            assert!(e.owner.refused.borrow().is_empty(), "{:?}", e.owner.refused.borrow());
            redundant += Class::ALL.map(|class| e.stats(o, class).redundant).iter().sum::<u64>();
        }
    }
    assert!(redundant > 5, "only {redundant} connections were one too many: nothing is shown");
}

#[test]
fn an_engine_that_is_started_later_is_found() {
    let sim = Sim::new(1);
    let (node_a, node_b) = (sim.node("a"), sim.node("b"));
    let a = Engine::start(&sim, &node_a, options(&node_a, 1));
    a.dials(&sim, EngineId(2), std::net::SocketAddr::new(node_b.ip(), crate::support::PORT));
    sim.advance(Duration::from_secs(30));
    let tries = a.owner.unreachable.get();
    // Three classes, each every one to two seconds once the wait has grown.
    assert!((45..120).contains(&tries), "{tries} tries in 30 seconds");
    let b = Engine::start(&sim, &node_b, options(&node_b, 2));
    sim.advance(Duration::from_millis(2100));
    assert!(a.is_up(&b) && b.is_up(&a), "by one side's knowledge alone");
}

#[test]
fn a_silent_peer_is_noticed_and_comes_back() {
    let sim = Sim::new(2);
    let (a, b) = pair(&sim);
    b.node.pause(Duration::from_secs(20));
    let began = sim.now();
    while a.link.is_connected(b.id, Class::Raft) {
        sim.advance(Duration::from_millis(10));
    }
    let took = sim.now().since(began);
    let (least, most) = (Duration::from_millis(1400), Duration::from_millis(2400));
    assert!(took > least && took < most, "noticed after {took:?}");
    assert!(a.link.is_connected(b.id, Class::Bulk), "bulk is more patient");
    let why = a.owner.downs(b.id, Class::Raft);
    assert!(why[0].contains("nothing was heard of it for 2"), "{why:?}");
    sim.advance(Duration::from_secs(25));
    assert!(a.is_up(&b) && b.is_up(&a));
}

#[test]
fn an_idle_connection_is_kept_and_its_round_trip_measured() {
    let sim = Sim::new(3);
    let (a, b) = pair(&sim);
    sim.set_net_options(NetOptions { single_byte: 0.0, ..slow(5, 6, 0.0) });
    sim.advance(Duration::from_secs(60));
    for class in Class::ALL {
        let stats = a.stats(&b, class);
        assert_eq!(stats.connects, 1, "{class}");
        let rtt = stats.rtt.expect("it was measured");
        assert!(rtt >= Duration::from_millis(10) && rtt < Duration::from_millis(13), "{rtt:?}");
    }
}

#[test]
fn a_cut_link_takes_connections_down_and_a_healed_one_brings_them_back() {
    let sim = Sim::new(4);
    let (a, b) = pair(&sim);
    sim.cut_link(&a.node, &b.node);
    sim.advance(Duration::from_secs(15));
    assert!(Class::ALL.iter().all(|class| !a.link.is_connected(b.id, *class)));
    sim.heal_link(&a.node, &b.node);
    sim.advance(Duration::from_secs(5));
    assert!(a.is_up(&b) && b.is_up(&a));
    for (engine, other) in [(&a, &b), (&b, &a)] {
        let ups = engine.owner.changes.borrow().iter().filter(|c| c.2.is_none()).count();
        let downs = engine.owner.changes.borrow().iter().filter(|c| c.2.is_some()).count();
        assert_eq!(ups, downs + 3, "up and down are told in turn");
        for class in Class::ALL {
            let mut is_up = false;
            for (_, of, why) in engine.owner.changes.borrow().iter().filter(|c| c.1 == class) {
                assert_eq!(is_up, why.is_some(), "{of}: in turn");
                is_up = why.is_none();
            }
            assert!(engine.stats(other, class).connects >= 2);
        }
    }
}

#[test]
fn a_restart_is_a_new_incarnation_and_connects_again() {
    let sim = Sim::new(5);
    let (a, b) = pair(&sim);
    b.node.crash();
    sim.advance(Duration::from_secs(1));
    assert!(!a.link.is_connected(b.id, Class::Raft));
    b.node.restart();
    let again = Options { incarnation: 2, ..options(&b.node, 2) };
    let b = Engine::start(&sim, &b.node, again);
    sim.advance(Duration::from_secs(3));
    assert!(a.is_up(&b) && b.is_up(&a), "{:?}", a.owner.refused.borrow());
}

#[test]
fn a_newer_incarnation_replaces_the_old_one_and_the_old_one_is_told() {
    let sim = Sim::new(6);
    let (a, old) = pair(&sim);
    let node = sim.node("new");
    let new = Engine::start(&sim, &node, Options { incarnation: 2, ..options(&node, 2) });
    new.knows(&sim, &a);
    sim.advance(Duration::from_secs(3));
    assert!(new.is_up(&a));
    assert!(!old.link.is_connected(a.id, Class::Raft), "the old one is out");
    new.send(&a, 7).unwrap();
    sim.advance(Duration::from_secs(1));
    assert_eq!(a.owner.numbers(EngineId(2)), [7]);
    let why = old.owner.downs(a.id, Class::Raft);
    assert!(why[0].contains("incarnation 2 of engine"), "on the connection itself: {why:?}");
    let told = old.owner.refusal(Code::Replaced, true).expect("the old one is told");
    assert!(told.sentence.contains("incarnation 2") && told.sentence.contains("stop this process"));
    let ours = a.owner.refusal(Code::Replaced, false).expect("and the owner of the other side");
    assert!(ours.sentence.contains("was replaced by incarnation 2"), "{ours}");
    // It tries again, and is refused each time.
    let before = old.owner.refused.borrow().len();
    sim.advance(Duration::from_secs(10));
    assert!(old.owner.refused.borrow().len() > before);
    assert!(new.is_up(&a), "and the new one is not disturbed");
    assert_eq!(new.stats(&a, Class::Raft).connects, 1);
}

#[test]
fn a_copied_directory_is_refused_and_the_original_stays() {
    let sim = Sim::new(7);
    let (a, original) = pair(&sim);
    let node = sim.node("copy");
    let copy = Engine::start(&sim, &node, options(&node, 2));
    copy.knows(&sim, &a);
    sim.advance(Duration::from_secs(5));
    assert!(Class::ALL.iter().all(|class| !copy.link.is_connected(a.id, *class)));
    let told = copy.owner.refusal(Code::Copied, true).expect("the copy is told");
    assert!(told.sentence.contains("your data directory is a copy, or the other one is"), "{told}");
    let ours = a.owner.refusal(Code::Copied, false).expect("and the owner of the other side");
    assert!(ours.sentence.contains("one of the two data directories is a copy"), "{ours}");
    assert!(ours.sentence.contains(&original.node.ip().to_string()), "{ours}");
    assert!(original.is_up(&a) && original.stats(&a, Class::Raft).connects == 1);
    // Copies meet each other too.
    copy.dials(&sim, EngineId(3), original.address());
    sim.advance(Duration::from_secs(2));
    assert!(copy.owner.refusal(Code::SameEngine, true).is_some());
    assert!(original.owner.refusal(Code::SameEngine, false).is_some());
}

#[test]
fn both_owners_learn_why_their_engines_do_not_talk() {
    type Change = fn(&mut Options);
    let cases: [(Change, Code, &str, &str); 5] = [
        (|o| o.key = key(2), Code::WrongKey, "your cluster key is not", "does not have this"),
        (|o| o.key = None, Code::KeyOnOneSide, "you have none", "has no cluster key"),
        (|o| o.cluster = ClusterId(0xc2), Code::ForeignCluster, "you belong to", "belongs to"),
        (
            |o| o.versions = 2..=3,
            Code::Version,
            "it speaks version 1 of",
            "it speaks versions 2 to 3 of",
        ),
        (|o| o.cluster = ClusterId::NONE, Code::Unwelcome, "nobody may join", "is not welcome"),
    ];
    for (change, code, theirs, ours) in cases {
        let sim = Sim::new(8);
        let (node_a, node_b) = (sim.node("a"), sim.node("b"));
        let a = Engine::start(&sim, &node_a, options(&node_a, 1));
        let mut other = options(&node_b, 2);
        change(&mut other);
        let b = Engine::start(&sim, &node_b, other);
        b.knows(&sim, &a);
        sim.advance(Duration::from_secs(2));
        let told = b.owner.refusal(code, true).unwrap_or_else(|| panic!("{code:?}: b is told"));
        assert!(told.sentence.contains(theirs), "{code:?}: {told}");
        let said = a.owner.refusal(code, false).unwrap_or_else(|| panic!("{code:?}: a notices"));
        assert!(said.sentence.contains(ours), "{code:?}: {said}");
        assert!(a.owner.changes.borrow().is_empty() && b.owner.changes.borrow().is_empty());
    }
}

#[test]
fn who_is_to_join_connects_if_the_owner_wants_it() {
    let sim = Sim::new(9);
    let (node_a, node_b) = (sim.node("a"), sim.node("b"));
    let a = Engine::start(&sim, &node_a, options(&node_a, 1));
    a.owner.lets_join.set(true);
    let joiner = Options { cluster: ClusterId::NONE, ..options(&node_b, 2) };
    let b = Engine::start(&sim, &node_b, joiner);
    b.knows(&sim, &a);
    sim.advance(Duration::from_secs(2));
    assert!(a.is_up(&b) && b.is_up(&a));
}

#[test]
fn another_engine_than_the_expected_one_is_refused() {
    let sim = Sim::new(10);
    let (node_a, node_b) = (sim.node("a"), sim.node("b"));
    let a = Engine::start(&sim, &node_a, options(&node_a, 1));
    let b = Engine::start(&sim, &node_b, options(&node_b, 2));
    a.dials(&sim, EngineId(3), b.address());
    sim.advance(Duration::from_secs(2));
    assert!(a.owner.refusal(Code::OtherEngine, false).is_some());
    assert!(b.owner.refusal(Code::OtherEngine, true).is_some());
    // Its own address is noticed as such.
    a.dials(&sim, EngineId(4), a.address());
    sim.advance(Duration::from_secs(2));
    let myself = a.owner.refusal(Code::SameEngine, false).expect("it dialled itself");
    assert!(myself.sentence.contains("is this engine itself"), "{myself}");
}

#[test]
fn a_forgotten_peer_is_dialled_no_more_until_it_is_set_again() {
    let sim = Sim::new(11);
    let (node_a, node_b) = (sim.node("a"), sim.node("b"));
    let a = Engine::start(&sim, &node_a, options(&node_a, 1));
    let b = Engine::start(&sim, &node_b, options(&node_b, 2));
    a.knows(&sim, &b);
    sim.advance(Duration::from_secs(1));
    assert!(a.is_up(&b));
    sim.block_on(&a.node, async { a.link.forget_peer(b.id) }).done();
    assert!(!a.link.is_connected(b.id, Class::Raft));
    sim.advance(Duration::from_secs(5));
    assert!(!b.link.is_connected(a.id, Class::Raft));
    assert_eq!(b.owner.downs(a.id, Class::Raft), ["this engine stops"]);
    assert_eq!((a.link.stats().len(), b.link.stats().len()), (0, 0), "nothing is kept of it");
    // Forgotten and set again, before its tasks have noticed.
    sim.block_on(&a.node, async {
        for _ in 0..5 {
            a.link.set_peer(b.id, b.address());
            a.link.forget_peer(b.id);
        }
        a.link.set_peer(b.id, b.address());
    })
    .done();
    sim.advance(Duration::from_secs(3));
    assert!(a.is_up(&b));
    let connects = Class::ALL.map(|class| a.stats(&b, class).connects);
    assert_eq!(connects, [1, 1, 1], "one task dials for each class");
}

#[test]
fn a_closed_link_tells_its_peers_and_frees_its_port() {
    let sim = Sim::new(12);
    let (a, b) = pair(&sim);
    b.link.close();
    sim.advance(Duration::from_secs(1));
    assert_eq!(a.owner.downs(b.id, Class::Raft), ["this engine stops"]);
    assert_eq!(b.owner.downs(a.id, Class::Raft), ["this engine stops"]);
    assert!(a.owner.refused.borrow().is_empty(), "it is nobody's fault");
    let again = Engine::start(&sim, &b.node, Options { incarnation: 2, ..options(&b.node, 2) });
    sim.advance(Duration::from_secs(3));
    assert!(a.is_up(&again));
    // Dropping the last handle closes too.
    drop(again.link);
    sim.advance(Duration::from_secs(1));
    assert!(!a.link.is_connected(b.id, Class::Raft));
}

#[test]
fn a_seed_names_one_execution() {
    let run = |seed| {
        let sim = Sim::new(seed);
        let (a, b) = pair(&sim);
        sim.block_on(&a.node, async {
            for number in 0..100 {
                a.send(&b, number).unwrap();
                a.env.clock.sleep(Duration::from_millis(3)).await;
            }
        })
        .done();
        sim.reset_links(&a.node, &b.node);
        sim.advance(Duration::from_secs(5));
        sim.trace_hash()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
