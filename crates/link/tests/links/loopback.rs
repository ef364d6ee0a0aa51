//! The same over the machine's own sockets.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use atoll_env::os;
use atoll_link::{Class, Code, EngineId, Link, Options};
use bytes::Bytes;

use crate::support::{CLUSTER, Owner, key};

/// Runs a story on a core with an event loop.
fn on_a_core<F: Future<Output = ()> + 'static>(
    story: impl FnOnce(atoll_env::Env) -> F + Send + 'static,
) {
    let env = os::env().unwrap();
    let (done, waits) = mpsc::channel();
    let inner = env.clone();
    let main = move || {
        Box::pin(async move {
            story(inner).await;
            done.send(()).unwrap();
        }) as atoll_env::task::LocalBoxFuture
    };
    env.tasks.spawn_core(0, "links", None, Box::new(main)).unwrap();
    waits.recv_timeout(Duration::from_secs(30)).expect("the story ends");
}

async fn open(env: &atoll_env::Env, n: u128, key_byte: u8) -> (Link, Rc<Owner>) {
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let options = Options::new(EngineId(n), CLUSTER, 1, listen);
    let owner = Rc::new(Owner::default());
    let options = Options { key: key(key_byte), ..options };
    (Link::open(env.clone(), options, owner.clone()).await.unwrap(), owner)
}

async fn until(env: &atoll_env::Env, what: &str, mut look: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if look() {
            return;
        }
        env.clock.sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}

#[test]
fn two_engines_talk_over_loopback() {
    on_a_core(|env| async move {
        let (a, a_owner) = open(&env, 1, 1).await;
        let (b, b_owner) = open(&env, 2, 1).await;
        a.set_peer(EngineId(2), b.address());
        b.set_peer(EngineId(1), a.address());
        let up = |link: &Link, to| Class::ALL.iter().all(|class| link.is_connected(to, *class));
        until(&env, "both are up", || up(&a, EngineId(2)) && up(&b, EngineId(1))).await;

        // Raft: a turn's messages leave in one write.
        let before = a.stats()[0].class(Class::Raft).writes;
        for n in 0..100u32 {
            a.send(EngineId(2), [Bytes::copy_from_slice(&n.to_le_bytes())]).unwrap();
        }
        until(&env, "a hundred messages", || b_owner.raft.borrow().len() == 100).await;
        assert_eq!(b_owner.numbers(EngineId(1)), (0..100).collect::<Vec<_>>());
        let writes = a.stats()[0].class(Class::Raft).writes - before;
        assert!(writes <= 10, "{writes} writes for one turn, and perhaps pings");

        // What a message makes another task send leaves with it.
        let before = a.stats()[0].class(Class::Raft).writes;
        for round in 1..=20 {
            let (told, mut hears) = atoll_env::sync::queue();
            let other = a.clone();
            env.tasks.spawn_local(
                "second",
                Box::pin(async move {
                    hears.recv().await.unwrap();
                    other.send(EngineId(2), [Bytes::from_static(b"next")]).unwrap();
                }),
            );
            atoll_env::task::yield_now().await; // it waits
            a.send(EngineId(2), [Bytes::from_static(b"first")]).unwrap();
            told.send(()).unwrap();
            let all = 100 + 2 * round;
            until(&env, "both messages", || b_owner.raft.borrow().len() == all).await;
        }
        let writes = a.stats()[0].class(Class::Raft).writes - before;
        assert!(writes <= 30, "{writes} writes for twenty turns, and perhaps pings");

        // Rpc: answers, long ones too.
        let long = Bytes::from(vec![7; 3 << 20]);
        let deadline = env.clock.now().after(Duration::from_secs(10));
        assert_eq!(a.call(EngineId(2), long.clone(), deadline).await, Ok(long));

        // Bulk: 16 MiB through a window of one.
        let mut sender = b.open_stream(EngineId(1), Bytes::from_static(b"h")).unwrap();
        until(&env, "the stream arrives", || !a_owner.streams.borrow().is_empty()).await;
        let (_, _, mut receiver) = a_owner.streams.borrow_mut().pop().unwrap();
        let (told, mut tells) = atoll_env::sync::queue();
        env.tasks.spawn_local(
            "reader",
            Box::pin(async move {
                let mut bytes = 0;
                while let Some(chunk) = receiver.next().await.unwrap() {
                    bytes += chunk.len();
                }
                told.send(bytes).unwrap();
            }),
        );
        for _ in 0..256 {
            sender.send(Bytes::from(vec![1; 64 << 10])).await.unwrap();
        }
        sender.finish().await.unwrap();
        assert_eq!(tells.recv().await, Some(16 << 20));
        let unread = a.stats()[0].class(Class::Bulk).unread_bytes_max;
        assert!(unread <= 1 << 20, "{unread}");

        // The end is told.
        b.close();
        until(&env, "a hears of it", || !a_owner.downs(EngineId(2), Class::Raft).is_empty()).await;
        assert_eq!(a_owner.downs(EngineId(2), Class::Raft), ["this engine stops"]);
        a.close();
        env.clock.sleep(Duration::from_millis(50)).await;
    });
}

#[test]
fn a_wrong_key_is_told_over_loopback_before_the_connection_closes() {
    on_a_core(|env| async move {
        let (a, a_owner) = open(&env, 1, 1).await;
        let (b, b_owner) = open(&env, 2, 2).await;
        a.set_peer(EngineId(2), b.address());
        let told = || a_owner.refusal(Code::WrongKey, true).is_some();
        until(&env, "the dialler is told", told).await;
        assert!(b_owner.refusal(Code::WrongKey, false).is_some());
        assert!(!a.is_connected(EngineId(2), Class::Raft));
    });
}

#[cfg(feature = "tls")]
#[test]
fn two_engines_talk_over_loopback_with_tls() {
    on_a_core(|env| async move {
        let authority = crate::tls::Authority::new();
        let mut links = Vec::new();
        for n in [1, 2] {
            let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let options = Options::new(EngineId(n), CLUSTER, 1, listen);
            let options = authority.equip(&env, n, Options { key: key(1), ..options });
            let owner = Rc::new(Owner::default());
            let link = Link::open(env.clone(), options, owner.clone()).await.unwrap();
            links.push((link, owner));
        }
        let [(a, _), (b, b_owner)] = &links[..] else { panic!("two") };
        a.set_peer(EngineId(2), b.address());
        let up = || Class::ALL.iter().all(|class| a.is_connected(EngineId(2), *class));
        until(&env, "both are up", up).await;
        let long = Bytes::from(vec![7; 5 << 20]);
        let deadline = env.clock.now().after(Duration::from_secs(20));
        assert_eq!(a.call(EngineId(2), long.clone(), deadline).await, Ok(long));
        let mut sender = a.open_stream(EngineId(2), Bytes::new()).unwrap();
        until(&env, "the stream arrives", || !b_owner.streams.borrow().is_empty()).await;
        let (_, _, mut receiver) = b_owner.streams.borrow_mut().pop().unwrap();
        env.tasks.spawn_local(
            "reader",
            Box::pin(async move { while receiver.next().await.unwrap().is_some() {} }),
        );
        for _ in 0..100 {
            sender.send(Bytes::from(vec![1; 100_000])).await.unwrap();
        }
        sender.finish().await.unwrap();
    });
}
