//! The simulated network between two nodes.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::net::{Listener, Stream};
use crate::random::Prng;
use crate::sim::{NetOptions, Node, Outcome, Sim};
use crate::sync::timeout;

async fn send(stream: &mut Box<dyn Stream>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| stream.poll_write(cx, bytes)).await?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// Reads up to the end of the stream.
async fn receive(stream: &mut Box<dyn Stream>) -> io::Result<(Vec<u8>, usize)> {
    let (mut all, mut reads) = (Vec::new(), 0);
    let mut buf = [0; 1000];
    loop {
        match poll_fn(|cx| stream.poll_read(cx, &mut buf)).await? {
            0 => return Ok((all, reads)),
            n => all.extend_from_slice(&buf[..n]),
        }
        reads += 1;
    }
}

/// A server node that sends back what it gets, and a client node.
fn echo(seed: u64) -> (Sim, Node, Node, SocketAddr) {
    let sim = Sim::new(seed);
    let (server, client) = (sim.node("server"), sim.node("client"));
    let addr = SocketAddr::new(server.ip(), 7000);
    let env = server.env();
    let listening = async {
        let mut listener = env.network.listen(addr).await.unwrap();
        env.tasks.spawn_local("echo", Box::pin(async move { serve(&mut *listener).await }));
    };
    sim.block_on(&server, listening).done();
    (sim, server, client, addr)
}

async fn serve(listener: &mut dyn Listener) {
    loop {
        let (arrival, _) = listener.accept().await.unwrap();
        let mut stream = arrival.attach().unwrap();
        let mut buf = [0; 100];
        while let Ok(n @ 1..) = poll_fn(|cx| stream.poll_read(cx, &mut buf)).await {
            if send(&mut stream, &buf[..n]).await.is_err() {
                break;
            }
        }
    }
}

#[test]
fn bytes_arrive_in_order_whole_and_in_pieces() {
    let (sim, _server, client, addr) = echo(1);
    sim.set_net_options(NetOptions { single_byte: 0.3, ..NetOptions::default() });
    let mut message = vec![0; 5000];
    Prng::new(1).fill(&mut message);
    let env = client.env();
    let (echoed, reads) = sim
        .block_on(&client, async {
            let mut stream = env.network.connect(addr).await.unwrap();
            send(&mut stream, &message).await.unwrap();
            poll_fn(|cx| stream.poll_shutdown(cx)).await.unwrap();
            receive(&mut stream).await.unwrap()
        })
        .done();
    assert!(echoed == message && reads > 10, "{} bytes in {reads} reads", echoed.len());
}

#[test]
fn a_crash_resets_streams_and_frees_the_port() {
    let (sim, server, client, addr) = echo(2);
    let env = client.env();
    let killer = server.clone();
    let result = sim
        .block_on(&client, async {
            let mut stream = env.network.connect(addr).await.unwrap();
            send(&mut stream, b"hello").await.unwrap();
            killer.crash();
            receive(&mut stream).await
        })
        .done();
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let down = sim.block_on(&client, async { env.network.connect(addr).await.err() }).done();
    assert_eq!(down.unwrap().kind(), io::ErrorKind::TimedOut);
    server.restart();
    let refused = sim.block_on(&client, async { env.network.connect(addr).await.err() }).done();
    assert_eq!(refused.unwrap().kind(), io::ErrorKind::ConnectionRefused);
    let env = server.env();
    let listening = async {
        let first = env.network.listen(addr).await;
        let second = env.network.listen(addr).await;
        (first.is_ok(), second.err().map(|e| e.kind()))
    };
    let outcome = sim.block_on(&server, listening);
    assert_eq!(outcome, Outcome::Done((true, Some(io::ErrorKind::AddrInUse))));
}

#[test]
fn a_cut_link_stalls_and_a_healed_one_delivers() {
    let (sim, server, client, addr) = echo(3);
    let env = client.env();
    let result = sim
        .block_on(&client, async {
            let mut stream = env.network.connect(addr).await.unwrap();
            sim.cut_link(&server, &client);
            send(&mut stream, b"hello").await.unwrap();
            poll_fn(|cx| stream.poll_shutdown(cx)).await.unwrap();
            let minute = Duration::from_secs(60);
            let stalled = timeout(&*env.clock, minute, receive(&mut stream)).await.is_err();
            sim.heal_link(&server, &client);
            (stalled, receive(&mut stream).await.unwrap().0)
        })
        .done();
    assert_eq!(result, (true, b"hello".to_vec()));
    let reset = sim
        .block_on(&client, async {
            let mut stream = env.network.connect(addr).await.unwrap();
            sim.reset_links(&server, &client);
            send(&mut stream, b"hello").await.unwrap_err().kind()
        })
        .done();
    assert_eq!(reset, io::ErrorKind::ConnectionReset);
}

#[test]
fn a_writer_waits_for_a_reader_that_does_not_read() {
    let sim = Sim::new(4);
    let node = sim.node("a");
    let env = node.env();
    let sent = sim
        .block_on(&node, async {
            let addr = "127.0.0.1:0".parse().unwrap();
            let mut listener = env.network.listen(addr).await.unwrap();
            let mut client = env.network.connect(listener.local_addr()).await.unwrap();
            let (arrival, peer) = listener.accept().await.unwrap();
            let server = arrival.attach().unwrap();
            assert_eq!(peer.ip(), node.ip());
            let flood = async {
                let mut sent = 0;
                loop {
                    let write = poll_fn(|cx| client.poll_write(cx, &[0; 1000]));
                    match timeout(&*env.clock, Duration::from_secs(1), write).await {
                        Ok(n) => sent += n.unwrap(),
                        Err(_) => return sent,
                    }
                }
            };
            let sent = flood.await;
            drop(server);
            let gone = send(&mut client, b"x").await.unwrap_err();
            assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
            sent
        })
        .done();
    assert_eq!(sent, 64 * 1024);
}
