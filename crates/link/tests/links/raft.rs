//! Messages of consensus: in order, or dropped.

use std::time::Duration;

use atoll_env::sim::{NetOptions, Sim};
use atoll_link::{Class, Dropped};
use bytes::Bytes;

use crate::support::{pair, pair_with, slow};

#[test]
fn messages_arrive_in_their_order_under_delays_and_in_pieces() {
    for seed in 0..10 {
        let sim = Sim::new(seed);
        let (a, b) = pair(&sim);
        sim.set_net_options(slow(0, 30, 0.3));
        sim.block_on(&a.node, async {
            for number in 0..1000 {
                a.send(&b, number).unwrap();
                if number % 7 == 0 {
                    a.env.clock.sleep(Duration::from_millis(1)).await;
                }
            }
        })
        .done();
        sim.advance(Duration::from_secs(30));
        assert_eq!(b.owner.numbers(a.id), (0..1000).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(a.stats(&b, Class::Raft).drops, 0);
    }
}

#[test]
fn the_order_is_kept_over_connections_that_are_lost_and_made_again() {
    let mut lost = 0;
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let (a, b) = pair(&sim);
        sim.set_net_options(slow(0, 20, 0.05));
        sim.block_on(&a.node, async {
            for number in 0..3000 {
                let _ = a.send(&b, number);
                a.env.clock.sleep(Duration::from_millis(1)).await;
                if number % 500 == 250 {
                    sim.reset_links(&a.node, &b.node);
                }
            }
        })
        .done();
        sim.advance(Duration::from_secs(5));
        a.send(&b, 3000).unwrap();
        sim.advance(Duration::from_secs(5));
        let seen = b.owner.numbers(a.id);
        assert!(seen.is_sorted_by(|x, y| x < y), "seed {seed}: {seen:?}");
        assert_eq!(seen.last(), Some(&3000), "seed {seed}: it goes on");
        lost += 3001 - seen.len();
        let connects = a.stats(&b, Class::Raft).connects;
        assert!(connects >= 6, "seed {seed}: {connects} connections");
    }
    assert!(lost > 100, "only {lost} messages were lost: the connections were not cut under them");
}

#[test]
fn a_message_that_was_cut_in_its_middle_never_arrives_and_the_next_one_does() {
    let sim = Sim::new(3);
    let (a, b) = pair(&sim);
    sim.set_net_options(slow(5, 10, 0.0));
    sim.block_on(&a.node, async {
        a.link.send(b.id, [Bytes::from(vec![1; 4 << 20])]).unwrap();
        a.env.clock.sleep(Duration::from_millis(50)).await;
    })
    .done();
    let arrived = b.stats(&a, Class::Raft).bytes_in;
    assert!((10_000..4 << 20).contains(&arrived), "{arrived} bytes of it have arrived");
    sim.reset_links(&a.node, &b.node);
    sim.advance(Duration::from_secs(3));
    assert!(a.is_up(&b) && b.is_up(&a), "they are connected again");
    sim.block_on(&a.node, async { a.send(&b, 7).unwrap() }).done();
    sim.advance(Duration::from_secs(1));
    assert_eq!(b.owner.numbers(a.id), [7]);
    assert_eq!(a.owner.downs(b.id, Class::Raft).len(), 1);
}

#[test]
fn a_full_queue_drops_and_counts_and_holds_no_more() {
    let sim = Sim::new(4);
    let (a, b) = pair_with(&sim, |options| options.raft_queue_bytes = 100_000);
    sim.cut_link(&a.node, &b.node);
    let (sent, dropped) = sim
        .block_on(&a.node, async {
            let (mut sent, mut dropped) = (0, 0);
            for _ in 0..500 {
                match a.link.send(b.id, [Bytes::from(vec![1; 1000])]) {
                    Ok(()) => sent += 1,
                    Err(Dropped::QueueFull) => dropped += 1,
                    Err(other) => panic!("{other}"),
                }
                a.env.clock.sleep(Duration::from_micros(100)).await;
            }
            (sent, dropped)
        })
        .done();
    let stats = a.stats(&b, Class::Raft);
    assert!(dropped > 300, "{sent} sent, {dropped} dropped");
    assert_eq!(stats.drops, dropped);
    assert!(stats.queue_bytes_max <= 100_000, "{stats:?}");
    // Healed before anybody gives up: what was taken arrives.
    sim.heal_link(&a.node, &b.node);
    sim.advance(Duration::from_secs(1));
    assert_eq!(b.owner.raft.borrow().len(), sent);
    assert_eq!(a.stats(&b, Class::Raft).queue_bytes, 0);
}

#[test]
fn without_a_connection_or_beyond_the_longest_message_it_is_said_at_once() {
    let sim = Sim::new(5);
    let (a, b) = pair(&sim);
    let nobody = atoll_link::EngineId(99);
    assert_eq!(a.link.send(nobody, [Bytes::new()]), Err(Dropped::NotConnected));
    let max = Class::Raft.payload_max();
    let parts = [Bytes::from(vec![1; max]), Bytes::from_static(b"x")];
    assert_eq!(a.link.send(b.id, parts), Err(Dropped::TooLong));
    sim.block_on(&a.node, async { a.link.send(b.id, [Bytes::from(vec![1; max])]).unwrap() }).done();
    sim.advance(Duration::from_secs(10));
    assert_eq!(b.owner.raft.borrow()[0].1.len(), max, "the longest one arrives");
    assert_eq!(a.stats(&b, Class::Raft).drops, 1);
}

#[test]
fn the_parts_of_a_message_arrive_as_one() {
    let sim = Sim::new(6);
    let (a, b) = pair(&sim);
    let parts = [b"one ".to_vec(), vec![], vec![b'x'; 70_000], b" two".to_vec()];
    let whole = parts.concat();
    let parts = parts.map(Bytes::from);
    sim.block_on(&a.node, async { a.link.send(b.id, parts).unwrap() }).done();
    sim.advance(Duration::from_secs(1));
    assert_eq!(b.owner.raft.borrow()[..], [(a.id, Bytes::from(whole))]);
}

#[test]
fn messages_pass_while_the_other_classes_are_stuck() {
    let sim = Sim::new(7);
    let (a, b) = pair(&sim);
    b.owner.answering.set(crate::support::Answering::Hold);
    sim.block_on(&a.node, async {
        let deadline = a.env.clock.now().after(Duration::from_secs(60));
        let link = a.link.clone();
        let to = b.id;
        // A stream that nobody reads, and a call that nobody answers, both with much to send.
        a.env.tasks.spawn_local(
            "bulk",
            Box::pin({
                let link = link.clone();
                async move {
                    let mut sender = link.open_stream(to, Bytes::new()).unwrap();
                    while sender.send(Bytes::from(vec![1; 100_000])).await.is_ok() {}
                }
            }),
        );
        a.env.tasks.spawn_local(
            "rpc",
            Box::pin(async move {
                let _ = link.call(to, Bytes::from(vec![1; 6 << 20]), deadline).await;
            }),
        );
        a.env.clock.sleep(Duration::from_secs(1)).await;
        let began = a.env.clock.now();
        a.send(&b, 1).unwrap();
        while b.owner.numbers(a.id).is_empty() {
            a.env.clock.sleep(Duration::from_micros(100)).await;
        }
        let took = a.env.clock.now().since(began);
        assert!(took < Duration::from_millis(5), "it took {took:?}");
    })
    .done();
}

#[test]
fn an_owner_may_use_the_link_while_it_is_told_and_hears_nothing_of_whom_it_forgot() {
    let sim = Sim::new(8);
    let (a, b) = pair(&sim);
    // Everything arrives in one read.
    sim.set_net_options(NetOptions { single_byte: 0.0, ..slow(5, 6, 0.0) });
    let link = b.link.clone();
    *b.owner.on_raft.borrow_mut() = Some(Box::new(move |from| {
        link.send(from, [Bytes::copy_from_slice(&7u32.to_le_bytes())]).unwrap();
        link.forget_peer(from);
        assert_eq!(link.send(from, [Bytes::new()]), Err(Dropped::NotConnected));
    }));
    sim.block_on(&a.node, async { (0..100).for_each(|n| a.send(&b, n).unwrap()) }).done();
    sim.advance(Duration::from_millis(40));
    assert_eq!(b.owner.numbers(a.id), [0], "the other ninety-nine are of no interest any more");
    assert_eq!(b.owner.downs(a.id, Class::Raft), ["this engine forgot the other one"]);
    b.owner.on_raft.take();
}
