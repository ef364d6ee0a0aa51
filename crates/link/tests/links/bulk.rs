//! Bulk streams: as fast as the reader, never faster, and an end that both know.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::sim::Sim;
use atoll_env::sync::{Either, select_biased, timeout};
use atoll_link::bulk::CHUNK_COST;
use atoll_link::{BulkError, Class, Receiver};
use bytes::Bytes;

use crate::support::{Engine, pair, pair_with, slow};

const WINDOW: usize = 512 << 10;

async fn arrived(engine: &Engine) -> Receiver {
    loop {
        let next = engine.owner.streams.borrow_mut().pop();
        match next {
            Some((_, header, receiver)) => {
                assert_eq!(header, "the header");
                return receiver;
            }
            None => engine.env.clock.sleep(Duration::from_millis(1)).await,
        }
    }
}

fn header() -> Bytes {
    Bytes::from_static(b"the header")
}

#[test]
fn a_slow_reader_slows_its_sender_and_neither_holds_more_than_the_window() {
    for seed in 0..5 {
        let sim = Sim::new(seed);
        let (a, b) = pair_with(&sim, |options| options.window = WINDOW);
        sim.set_net_options(slow(0, 3, 0.01));
        let (link, to) = (a.link.clone(), b.id);
        let took = sim
            .block_on(&a.node, async {
                let began = a.env.clock.now();
                a.env.tasks.spawn_local(
                    "sender",
                    Box::pin(async move {
                        let mut sender = link.open_stream(to, header()).unwrap();
                        for n in 0..100u8 {
                            let chunk = Bytes::from(vec![n; 1 + usize::from(n) * 1000]);
                            sender.send(chunk).await.unwrap();
                        }
                        sender.finish().await.unwrap();
                    }),
                );
                let mut receiver = arrived(&b).await;
                for n in 0..100u8 {
                    let chunk = receiver.next().await.unwrap().unwrap();
                    assert_eq!(chunk, vec![n; 1 + usize::from(n) * 1000], "seed {seed}");
                    a.env.clock.sleep(Duration::from_millis(20)).await;
                }
                assert_eq!(receiver.next().await, Ok(None));
                assert_eq!(receiver.next().await, Ok(None), "and it stays the end");
                a.env.clock.now().since(began)
            })
            .done();
        assert!(took >= Duration::from_secs(2), "seed {seed}: the reader decides: {took:?}");
        let (sent, unread) = (a.stats(&b, Class::Bulk), b.stats(&a, Class::Bulk));
        let most = unread.unread_bytes_max;
        assert!(most <= WINDOW as u64, "seed {seed}: {most} bytes were unread");
        assert!(most > WINDOW as u64 / 2, "seed {seed}: the window was used: {most}");
        assert!(sent.queue_bytes_max < WINDOW as u64 + 10_000, "seed {seed}: {sent:?}");
        assert_eq!(unread.unread_bytes, 0);
    }
}

#[test]
fn finishing_waits_for_the_reader_to_take_the_last_chunk() {
    let sim = Sim::new(1);
    let (a, b) = pair(&sim);
    sim.block_on(&a.node, async {
        let mut sender = a.link.open_stream(b.id, header()).unwrap();
        sender.send(Bytes::from_static(b"last")).await.unwrap();
        let mut finish = Box::pin(sender.finish());
        let pause = || a.env.clock.sleep(Duration::from_secs(1));
        assert_eq!(select_biased(&mut finish, pause()).await, Either::Right(()));
        let mut receiver = arrived(&b).await;
        assert_eq!(receiver.next().await, Ok(Some(Bytes::from_static(b"last"))));
        assert_eq!(select_biased(&mut finish, pause()).await, Either::Right(()));
        assert_eq!(receiver.next().await, Ok(None));
        assert_eq!(select_biased(&mut finish, pause()).await, Either::Left(Ok(())));
    })
    .done();
}

#[test]
fn streams_share_a_connection_and_one_that_is_stuck_stops_no_other() {
    let sim = Sim::new(2);
    let (a, b) = pair_with(&sim, |options| options.window = WINDOW);
    sim.block_on(&a.node, async {
        let mut stuck = a.link.open_stream(b.id, header()).unwrap();
        let _unread = arrived(&b).await;
        let mut sent = 0;
        let chunk = Bytes::from(vec![1; 50_000]);
        loop {
            let pause = a.env.clock.sleep(Duration::from_millis(200));
            match select_biased(stuck.send(chunk.clone()), pause).await {
                Either::Left(outcome) => outcome.unwrap(),
                Either::Right(()) => break,
            }
            sent += 1;
        }
        assert_eq!(sent, WINDOW / (50_000 + CHUNK_COST), "as much as the window takes");
        let mut sender = a.link.open_stream(b.id, header()).unwrap();
        let mut receiver = arrived(&b).await;
        for n in 0..200u32 {
            sender.send(Bytes::copy_from_slice(&n.to_le_bytes())).await.unwrap();
            assert_eq!(receiver.next().await.unwrap().unwrap(), n.to_le_bytes()[..]);
        }
    })
    .done();
}

#[test]
fn either_side_may_give_up_with_a_sentence() {
    let sim = Sim::new(3);
    let (a, b) = pair(&sim);
    sim.block_on(&a.node, async {
        let pause = || a.env.clock.sleep(Duration::from_millis(100));
        let mut sender = a.link.open_stream(b.id, header()).unwrap();
        let mut receiver = arrived(&b).await;
        sender.send(Bytes::from_static(b"one")).await.unwrap();
        sender.abort("the snapshot was replaced");
        pause().await;
        let gone = Err(BulkError::Aborted("the snapshot was replaced".to_owned()));
        assert_eq!(receiver.next().await, gone);
        drop(receiver);

        let mut sender = a.link.open_stream(b.id, header()).unwrap();
        let receiver = arrived(&b).await;
        sender.send(Bytes::from_static(b"one")).await.unwrap();
        receiver.stop("the disk is full");
        pause().await;
        let stopped = Err(BulkError::Stopped("the disk is full".to_owned()));
        assert_eq!(sender.send(Bytes::from_static(b"two")).await, stopped);
        assert_eq!(sender.finish().await, stopped);

        // Ends that are dropped say so by themselves.
        let sender = a.link.open_stream(b.id, header()).unwrap();
        let mut receiver = arrived(&b).await;
        drop(sender);
        assert!(matches!(receiver.next().await, Err(BulkError::Aborted(_))));
        let mut sender = a.link.open_stream(b.id, header()).unwrap();
        drop(arrived(&b).await);
        pause().await;
        let outcome = sender.send(Bytes::from_static(b"two")).await;
        assert!(matches!(outcome, Err(BulkError::Stopped(_))), "{outcome:?}");
    })
    .done();
    sim.advance(Duration::from_secs(1));
    let (sent, unread) = (a.stats(&b, Class::Bulk), b.stats(&a, Class::Bulk));
    assert_eq!((sent.connects, unread.unread_bytes, sent.queue_bytes), (1, 0, 0));
}

#[test]
fn a_lost_connection_ends_both_ends() {
    let sim = Sim::new(4);
    let (a, b) = pair(&sim);
    sim.block_on(&a.node, async {
        let mut sender = a.link.open_stream(b.id, header()).unwrap();
        sender.send(Bytes::from_static(b"one")).await.unwrap();
        let mut receiver = arrived(&b).await;
        sim.reset_links(&a.node, &b.node);
        a.env.clock.sleep(Duration::from_millis(10)).await;
        assert!(matches!(receiver.next().await, Err(BulkError::Lost(_))));
        let outcome = sender.send(Bytes::from_static(b"two")).await;
        assert!(matches!(outcome, Err(BulkError::Lost(_))), "{outcome:?}");
        assert!(matches!(sender.finish().await, Err(BulkError::Lost(_))));
        let outcome = a.link.open_stream(b.id, header());
        assert!(matches!(outcome, Err(BulkError::NotSent(_))));
    })
    .done();
}

#[test]
fn streams_and_chunks_have_limits_that_are_said() {
    let sim = Sim::new(5);
    let (a, b) = pair_with(&sim, |options| options.streams_max = 3);
    sim.block_on(&a.node, async {
        let mut open: Vec<_> =
            (0..3).map(|_| a.link.open_stream(b.id, header()).unwrap()).collect();
        let one_more = a.link.open_stream(b.id, header());
        assert!(matches!(one_more, Err(BulkError::NotSent(_))), "{one_more:?}");
        let max = Class::Bulk.payload_max();
        let long = Bytes::from(vec![1; max + 1]);
        assert_eq!(open[0].send(long.clone()).await, Err(BulkError::TooLong(max)));
        open[0].send(long.slice(1..)).await.unwrap();
        open[0].send(Bytes::new()).await.unwrap();
        open.pop();
        assert!(matches!(a.link.open_stream(b.id, long), Err(BulkError::TooLong(_))));
        a.link.open_stream(b.id, header()).unwrap();
        a.env.clock.sleep(Duration::from_secs(1)).await;
    })
    .done();
    assert_eq!(b.stats(&a, Class::Bulk).unread_bytes_max, Class::Bulk.payload_max() as u64);
}

#[test]
fn a_chunk_whose_sending_was_given_up_is_not_sent_and_costs_nothing() {
    let sim = Sim::new(6);
    let (a, b) = pair_with(&sim, |options| options.window = WINDOW);
    sim.block_on(&a.node, async {
        let mut sender = a.link.open_stream(b.id, header()).unwrap();
        let mut receiver = arrived(&b).await;
        let chunk = Bytes::from(vec![1; 200_000]);
        let mut sent = 0;
        for _ in 0..10 {
            let pause = a.env.clock.sleep(Duration::from_millis(20));
            if let Either::Left(outcome) = select_biased(sender.send(chunk.clone()), pause).await {
                outcome.unwrap();
                sent += 1;
            }
        }
        assert_eq!(sent, 2, "the window takes two");
        for _ in 0..2 {
            assert_eq!(receiver.next().await.unwrap().unwrap().len(), 200_000);
        }
        // All of the window is there again.
        for _ in 0..2 {
            sender.send(chunk.clone()).await.unwrap();
        }
    })
    .done();
}

#[test]
fn many_senders_share_the_room_of_a_connection_and_all_go_on() {
    let sim = Sim::new(7);
    let (a, b) = pair(&sim);
    sim.block_on(&a.node, async {
        let done = Rc::new(Cell::new(0));
        for _ in 0..8 {
            // All of it is within the first window: no further grant wakes a sender.
            let mut sender = a.link.open_stream(b.id, header()).unwrap();
            let done = done.clone();
            let sending = async move {
                for _ in 0..8 {
                    sender.send(Bytes::from(vec![1; 100_000])).await.unwrap();
                }
                done.set(done.get() + 1);
                let _ = sender.finish().await;
            };
            a.env.tasks.spawn_local("sender", Box::pin(sending));
        }
        a.env.clock.sleep(Duration::from_secs(5)).await;
        assert_eq!(done.get(), 8);
        let most = a.stats(&b, Class::Bulk).queue_bytes_max;
        assert!(most < (1 << 20) + 200_000, "{most} bytes waited");
        assert_eq!(b.stats(&a, Class::Bulk).unread_bytes, 8 * 800_000);
    })
    .done();
}

#[test]
fn room_that_a_stream_gives_back_is_there_for_the_others() {
    let sim = Sim::new(8);
    let (a, b) = pair(&sim);
    sim.block_on(&a.node, async {
        let mut open: Vec<_> =
            (0..3).map(|_| a.link.open_stream(b.id, header()).unwrap()).collect();
        a.env.clock.sleep(Duration::from_millis(100)).await; // all are granted a window
        sim.cut_link(&a.node, &b.node);
        let mut last = open.pop().unwrap();
        let chunk = Bytes::from(vec![1; 200_000]);
        for sender in &mut open {
            for _ in 0..4 {
                let pause = a.env.clock.sleep(Duration::from_millis(10));
                let _ = select_biased(sender.send(chunk.clone()), pause).await;
            }
        }
        // In a task of its own, which is polled only if something wakes it.
        let done = Rc::new(Cell::new(false));
        let is_done = done.clone();
        let sending = async move {
            last.send(chunk).await.unwrap();
            is_done.set(true);
        };
        a.env.tasks.spawn_local("sender", Box::pin(sending));
        a.env.clock.sleep(Duration::from_millis(10)).await;
        assert!(!done.get());
        drop(open);
        a.env.clock.sleep(Duration::from_millis(10)).await;
        assert!(done.get());
    })
    .done();
}

#[test]
fn a_reader_that_has_caught_up_grants_the_whole_window_again() {
    let sim = Sim::new(9);
    let longest = Class::Bulk.payload_max();
    let (a, b) = pair_with(&sim, |options| options.window = longest + CHUNK_COST);
    sim.block_on(&a.node, async {
        let mut sender = a.link.open_stream(b.id, header()).unwrap();
        let mut receiver = arrived(&b).await;
        for len in [10, longest, 1, longest] {
            let sending = sender.send(Bytes::from(vec![1; len]));
            let sent = timeout(&*a.env.clock, Duration::from_secs(1), sending).await;
            assert_eq!(sent, Ok(Ok(())), "{len} bytes");
            assert_eq!(receiver.next().await.unwrap().unwrap().len(), len);
        }
    })
    .done();
}
