//! Calls: answers, and the three ways in which there is none.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::sim::Sim;
use atoll_env::sync::{Either, select_biased};
use atoll_link::{CallError, Class, Link};
use bytes::Bytes;

use crate::support::{Answering, Engine, options, pair, pair_with, slow};

type Outcome = Result<Bytes, CallError>;

/// Calls in a task of its own; the outcome is written into the list under its number.
fn call_apart(
    a: &Engine,
    b: &Engine,
    request: Bytes,
    ms: u64,
    into: &Rc<RefCell<Vec<(u32, Outcome)>>>,
) {
    let (link, to, into): (Link, _, _) = (a.link.clone(), b.id, into.clone());
    let deadline = a.env.clock.now().after(Duration::from_millis(ms));
    let number = u32::from_le_bytes(request[..4].try_into().unwrap());
    a.env.tasks.spawn_local(
        "call",
        Box::pin(async move {
            let outcome = link.call(to, request, deadline).await;
            into.borrow_mut().push((number, outcome));
        }),
    );
}

fn number(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_le_bytes())
}

#[test]
fn each_of_many_calls_gets_its_own_answer_whatever_the_order() {
    for seed in 0..5 {
        let sim = Sim::new(seed);
        let (a, b) = pair(&sim);
        sim.set_net_options(slow(0, 5, 0.1));
        b.owner.answering.set(Answering::Hold);
        let outcomes = Rc::default();
        sim.block_on(&a.node, async {
            (0..200).for_each(|n| call_apart(&a, &b, number(n), 60_000, &outcomes));
            while b.owner.held.borrow().len() < 200 {
                a.env.clock.sleep(Duration::from_millis(10)).await;
            }
            // Answered backwards.
            while let Some((request, responder)) = b.owner.held.borrow_mut().pop() {
                responder.answer([&b"re:"[..], &request].concat().into());
            }
            while outcomes.borrow().len() < 200 {
                a.env.clock.sleep(Duration::from_millis(10)).await;
            }
        })
        .done();
        for (n, outcome) in outcomes.borrow().iter() {
            let expected: Bytes = [&b"re:"[..], &n.to_le_bytes()].concat().into();
            assert_eq!(*outcome, Ok(expected), "seed {seed}");
        }
    }
}

#[test]
fn both_sides_call_each_other_at_once() {
    let sim = Sim::new(1);
    let (a, b) = pair(&sim);
    let outcomes = Rc::default();
    sim.block_on(&a.node, async {
        for n in 0..50 {
            call_apart(&a, &b, number(n), 5000, &outcomes);
            call_apart(&b, &a, number(n), 5000, &outcomes);
        }
        a.env.clock.sleep(Duration::from_secs(2)).await;
    })
    .done();
    assert_eq!(outcomes.borrow().len(), 100);
    assert!(outcomes.borrow().iter().all(|(n, outcome)| *outcome == Ok(number(*n))));
}

#[test]
fn an_outcome_is_unknown_when_the_connection_is_lost_after_sending() {
    for seed in 0..10 {
        let sim = Sim::new(seed);
        let (a, b) = pair(&sim);
        b.owner.answering.set(Answering::Hold);
        let outcomes = Rc::default();
        sim.block_on(&a.node, async {
            call_apart(&a, &b, number(1), 60_000, &outcomes);
            a.env.clock.sleep(Duration::from_millis(100)).await;
        })
        .done();
        assert_eq!(b.owner.held.borrow().len(), 1, "it was sent");
        sim.reset_links(&a.node, &b.node);
        sim.advance(Duration::from_millis(10));
        assert!(matches!(outcomes.borrow()[..], [(1, Err(CallError::Unknown(_)))]), "seed {seed}");
        assert!(b.owner.held.borrow()[0].1.is_cancelled(), "nobody waits for the answer");
    }
}

#[test]
fn a_request_that_had_not_begun_to_leave_was_not_sent() {
    let sim = Sim::new(2);
    let (a, b) = pair(&sim);
    let outcomes = Rc::default();
    sim.cut_link(&a.node, &b.node);
    sim.block_on(&a.node, async {
        let long = [&1u32.to_le_bytes()[..], &vec![0; 1 << 20]].concat();
        call_apart(&a, &b, long.into(), 60_000, &outcomes);
        a.env.clock.sleep(Duration::from_millis(10)).await;
        // This one waits behind the other, which fills what the network holds.
        call_apart(&a, &b, number(2), 60_000, &outcomes);
        a.env.clock.sleep(Duration::from_millis(10)).await;
    })
    .done();
    sim.reset_links(&a.node, &b.node);
    sim.advance(Duration::from_millis(10));
    let outcomes = outcomes.borrow();
    let of = |n| outcomes.iter().find(|(number, _)| *number == n).map(|(_, outcome)| outcome);
    assert!(matches!(of(1), Some(Err(CallError::Unknown(_)))), "{outcomes:?}");
    assert!(matches!(of(2), Some(Err(CallError::NotSent(_)))), "{outcomes:?}");
}

#[test]
fn a_deadline_that_passes_in_the_queue_means_not_sent_and_leaves_nothing_there() {
    let sim = Sim::new(2);
    let (a, b) = pair(&sim);
    let outcomes = Rc::default();
    sim.cut_link(&a.node, &b.node);
    sim.block_on(&a.node, async {
        let long = [&1u32.to_le_bytes()[..], &vec![0; 1 << 20]].concat();
        call_apart(&a, &b, long.into(), 500, &outcomes);
        a.env.clock.sleep(Duration::from_millis(10)).await;
        call_apart(&a, &b, number(2), 100, &outcomes);
        a.env.clock.sleep(Duration::from_secs(1)).await;
    })
    .done();
    assert!(matches!(
        outcomes.borrow()[..],
        [(2, Err(CallError::NotSent(_))), (1, Err(CallError::Unknown(_)))]
    ));
    sim.heal_link(&a.node, &b.node);
    sim.advance(Duration::from_secs(1));
    let stats = b.stats(&a, Class::Rpc);
    assert!(a.is_up(&b) && stats.connects == 1, "the stream of frames is whole: {stats:?}");
    sim.block_on(&a.node, async {
        let deadline = a.env.clock.now().after(Duration::from_secs(1));
        assert_eq!(a.link.call(b.id, number(3), deadline).await, Ok(number(3)));
    })
    .done();
}

#[test]
fn without_a_connection_or_time_or_room_nothing_is_sent() {
    let sim = Sim::new(3);
    let (a, b) = pair_with(&sim, |options| {
        (options.calls_max, options.call_bytes) = (3, 10_000);
    });
    b.owner.answering.set(Answering::Hold);
    let outcomes = Rc::default();
    sim.block_on(&a.node, async {
        let now = a.env.clock.now();
        let soon = now.after(Duration::from_secs(1));
        let not_sent = |outcome: Outcome| matches!(outcome, Err(CallError::NotSent(_)));
        let nobody = atoll_link::EngineId(99);
        assert!(not_sent(a.link.call(nobody, number(1), soon).await));
        assert!(not_sent(a.link.call(b.id, number(1), now).await));
        let long = Bytes::from(vec![0; Class::Rpc.payload_max()]);
        assert!(not_sent(a.link.call(b.id, long, soon).await));
        assert!(not_sent(a.link.call(b.id, Bytes::from(vec![0; 10_001]), soon).await));
        assert_eq!(a.stats(&b, Class::Rpc).drops, 3);
        (0..3).for_each(|n| call_apart(&a, &b, number(n), 60_000, &outcomes));
        a.env.clock.sleep(Duration::from_millis(100)).await;
        assert!(not_sent(a.link.call(b.id, number(3), soon).await), "three are under way");
        // One that ends makes room.
        b.owner.held.borrow_mut().remove(0).1.answer(Bytes::new());
        a.env.clock.sleep(Duration::from_millis(100)).await;
        b.owner.answering.set(Answering::Echo);
        let deadline = a.env.clock.now().after(Duration::from_secs(1));
        assert_eq!(a.link.call(b.id, number(4), deadline).await, Ok(number(4)));
    })
    .done();
}

#[test]
fn a_callee_with_too_much_to_do_declines_before_it_looks() {
    let sim = Sim::new(4);
    let (node_a, node_b) = (sim.node("a"), sim.node("b"));
    let a = Engine::start(&sim, &node_a, options(&node_a, 1));
    let few = atoll_link::Options { calls_max: 4, ..options(&node_b, 2) };
    let b = Engine::start(&sim, &node_b, few);
    a.knows(&sim, &b);
    sim.advance(Duration::from_secs(1));
    b.owner.answering.set(Answering::Hold);
    let outcomes = Rc::default();
    sim.block_on(&a.node, async {
        (0..20).for_each(|n| call_apart(&a, &b, number(n), 1000, &outcomes));
        a.env.clock.sleep(Duration::from_millis(500)).await;
    })
    .done();
    assert_eq!(b.owner.held.borrow().len(), 4);
    assert_eq!(b.stats(&a, Class::Rpc).declines, 16);
    assert_eq!(outcomes.borrow().len(), 16);
    assert!(outcomes.borrow().iter().all(|(_, o)| matches!(o, Err(CallError::NotSent(_)))));
    // Those that were given up count until the callee has let go of them.
    sim.advance(Duration::from_secs(1));
    assert!(b.owner.held.borrow().iter().all(|(_, responder)| responder.is_cancelled()));
    sim.block_on(&a.node, async {
        let deadline = || a.env.clock.now().after(Duration::from_secs(1));
        let outcome = a.link.call(b.id, number(1), deadline()).await;
        assert!(matches!(outcome, Err(CallError::NotSent(_))), "{outcome:?}");
        b.owner.held.borrow_mut().clear();
        b.owner.answering.set(Answering::Echo);
        assert_eq!(a.link.call(b.id, number(1), deadline()).await, Ok(number(1)));
    })
    .done();
}

#[test]
fn work_that_lost_connections_left_behind_counts_until_it_is_done() {
    let sim = Sim::new(8);
    let (a, b) = pair_with(&sim, |options| options.calls_max = 10);
    b.owner.answering.set(Answering::Hold);
    let outcomes = Rc::default();
    for _ in 0..5 {
        sim.block_on(&a.node, async {
            (0..10).for_each(|n| call_apart(&a, &b, number(n), 60_000, &outcomes));
            a.env.clock.sleep(Duration::from_millis(50)).await;
        })
        .done();
        sim.reset_links(&a.node, &b.node);
        sim.advance(Duration::from_secs(3));
        assert!(a.is_up(&b));
    }
    assert_eq!(b.owner.held.borrow().len(), 10, "not ten for each connection");
    let not_sent = |o: &&(u32, Outcome)| matches!(o.1, Err(CallError::NotSent(_)));
    assert_eq!(outcomes.borrow().iter().filter(not_sent).count(), 40);
}

#[test]
fn what_the_callee_says_reaches_the_caller() {
    let sim = Sim::new(5);
    let (a, b) = pair(&sim);
    sim.block_on(&a.node, async {
        let deadline = || a.env.clock.now().after(Duration::from_secs(1));
        b.owner.answering.set(Answering::Refuse);
        let refused = a.link.call(b.id, number(1), deadline()).await;
        assert_eq!(refused, Err(CallError::Refused("ask the leader, engine 7".to_owned())));
        b.owner.answering.set(Answering::Forget);
        let forgotten = a.link.call(b.id, number(1), deadline()).await;
        assert!(matches!(forgotten, Err(CallError::Unknown(_))), "{forgotten:?}");
        let longest = Bytes::from(vec![7; Class::Rpc.payload_max() - 4]);
        b.owner.answering.set(Answering::Echo);
        assert_eq!(a.link.call(b.id, longest.clone(), deadline()).await, Ok(longest));
    })
    .done();
}

#[test]
fn the_deadline_travels_and_ends_the_call_on_both_sides() {
    for seed in 0..10 {
        let sim = Sim::new(seed);
        let (a, b) = pair(&sim);
        b.owner.answering.set(Answering::Hold);
        sim.block_on(&a.node, async {
            let deadline = a.env.clock.now().after(Duration::from_millis(300));
            let outcome = a.link.call(b.id, number(1), deadline).await;
            assert!(matches!(outcome, Err(CallError::Unknown(_))), "{outcome:?}");
            let late = a.env.clock.now().since(deadline);
            assert!(late < Duration::from_millis(1), "it ended {late:?} after its deadline");
            let held = b.owner.held.borrow_mut().pop();
            let (_, responder) = held.unwrap();
            // Both clocks are the simulation's. What it took on the way is the difference.
            let difference = responder.deadline().0.abs_diff(deadline.0);
            assert!(difference < 3_000_000, "seed {seed}: {difference} ns apart");
            responder.cancelled().await;
            responder.answer(number(1)); // to nobody
        })
        .done();
        sim.advance(Duration::from_secs(1));
        assert!(a.is_up(&b), "seed {seed}");
    }
}

#[test]
fn a_call_that_is_dropped_is_cancelled_at_the_callee() {
    let sim = Sim::new(6);
    let (a, b) = pair(&sim);
    b.owner.answering.set(Answering::Hold);
    sim.block_on(&a.node, async {
        let deadline = a.env.clock.now().after(Duration::from_secs(60));
        let call = a.link.call(b.id, number(1), deadline);
        let pause = a.env.clock.sleep(Duration::from_millis(50));
        assert_eq!(select_biased(call, pause).await, Either::Right(()));
        assert!(!b.owner.held.borrow()[0].1.is_cancelled());
        a.env.clock.sleep(Duration::from_millis(50)).await;
        assert!(b.owner.held.borrow()[0].1.is_cancelled());
        // An answer that crosses the cancellation is nobody's.
        b.owner.answering.set(Answering::Echo);
        for n in 0..300 {
            let call = a.link.call(b.id, number(n), deadline);
            let pause = a.env.clock.sleep(Duration::from_micros(u64::from(n) * 10));
            if let Either::Left(outcome) = select_biased(call, pause).await {
                assert_eq!(outcome, Ok(number(n)));
            }
        }
        a.env.clock.sleep(Duration::from_millis(50)).await;
        let stats = a.stats(&b, Class::Rpc);
        assert_eq!((stats.unread_bytes, stats.queue_bytes, stats.connects), (0, 0, 1));
    })
    .done();
}

#[test]
fn answers_that_cannot_leave_are_bounded_and_their_callers_are_told() {
    let sim = Sim::new(9);
    let (a, b) = pair_with(&sim, |options| options.call_bytes = 1 << 20);
    b.owner.answering.set(Answering::Hold);
    let outcomes = Rc::default();
    sim.block_on(&a.node, async {
        (0..10).for_each(|n| call_apart(&a, &b, number(n), 60_000, &outcomes));
        a.env.clock.sleep(Duration::from_millis(100)).await;
        sim.cut_link(&a.node, &b.node);
        for (_, responder) in b.owner.held.take() {
            responder.answer(Bytes::from(vec![1; 300_000]));
        }
        a.env.clock.sleep(Duration::from_millis(100)).await;
        sim.heal_link(&a.node, &b.node);
        a.env.clock.sleep(Duration::from_secs(2)).await;
    })
    .done();
    let most = b.stats(&a, Class::Rpc).queue_bytes_max;
    assert!(most > 1 << 20 && most <= (2 << 20) + 2000, "{most} bytes waited");
    let outcomes = outcomes.borrow();
    let answered = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
    let unknown = |o: &&(u32, Outcome)| matches!(o.1, Err(CallError::Unknown(_)));
    assert_eq!((answered, outcomes.iter().filter(unknown).count()), (6, 4));
}

#[test]
fn answers_that_nobody_takes_are_bounded() {
    let sim = Sim::new(7);
    let (a, b) = pair_with(&sim, |options| options.call_bytes = 1 << 20);
    b.owner.answering.set(Answering::Hold);
    sim.block_on(&a.node, async {
        // Futures that are polled once and then left alone.
        let deadline = a.env.clock.now().after(Duration::from_secs(60));
        let mut calls: Vec<_> =
            (0..10).map(|n| Box::pin(a.link.call(b.id, number(n), deadline))).collect();
        std::future::poll_fn(|cx| {
            calls.iter_mut().for_each(|call| assert!(call.as_mut().poll(cx).is_pending()));
            std::task::Poll::Ready(())
        })
        .await;
        a.env.clock.sleep(Duration::from_millis(100)).await;
        let held = b.owner.held.take();
        for (_, responder) in held {
            responder.answer(Bytes::from(vec![1; 300_000]));
            a.env.clock.sleep(Duration::from_millis(100)).await;
        }
        let stats = a.stats(&b, Class::Rpc);
        assert!(stats.unread_bytes_max <= 1 << 20, "{stats:?}");
        let (mut answers, mut unknown) = (0, 0);
        for call in calls {
            match call.await {
                Ok(answer) => answers += usize::from(answer.len() == 300_000),
                Err(CallError::Unknown(_)) => unknown += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!((answers, unknown), (3, 7));
        assert_eq!(a.stats(&b, Class::Rpc).unread_bytes, 0);
        // Those that are taken make room for any number of others.
        b.owner.answering.set(Answering::Echo);
        for _ in 0..10 {
            let request = Bytes::from(vec![1; 300_000]);
            assert_eq!(a.link.call(b.id, request.clone(), deadline).await, Ok(request));
        }
    })
    .done();
}
