//! What the limits do to real peers: slow ones, large ones, rude ones, and a stop under way.

#![expect(clippy::unwrap_used, reason = "a test helper fails its test by panicking")]

use std::rc::Rc;
use std::time::Duration;

use atoll_http::{CONNECTIONS_MAX, HEADER_BYTES_MAX, HEADER_TIME_MAX, Health, Pages, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

struct Up;

impl Pages for Up {
    fn metrics(&self) -> String {
        "atoll_up 1\n".to_owned()
    }
    fn health(&self) -> Health {
        Health::Ready
    }
}

/// Runs `test` against a server on a free port and then stops the server.
async fn with_server<F: Future<Output = ()>>(test: impl FnOnce(std::net::SocketAddr) -> F) {
    let local = LocalSet::new();
    local
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let (stop, stopped) = oneshot::channel::<()>();
            let server = tokio::task::spawn_local(serve(listener, Rc::new(Up), None, async move {
                let _ = stopped.await;
            }));
            test(addr).await;
            stop.send(()).unwrap();
            tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
        })
        .await;
}

async fn exchange(addr: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn get_and_head_differ_only_in_the_body() {
    with_server(|addr| async move {
        let head = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let got = exchange(addr, format!("GET /metrics {head}").as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        assert!(got.contains("content-length: 11\r\n"), "{got}");
        assert!(got.ends_with("\r\n\r\natoll_up 1\n"), "{got}");
        let headed = exchange(addr, format!("HEAD /metrics {head}").as_bytes()).await;
        assert!(headed.contains("content-length: 11\r\n"), "{headed}");
        assert!(headed.ends_with("\r\n\r\n"), "{headed}");
    })
    .await;
}

#[tokio::test]
async fn an_oversized_head_is_refused_with_431_and_nonsense_with_400() {
    with_server(|addr| async move {
        let mut large = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ".to_vec();
        large.resize(HEADER_BYTES_MAX + 100, b'a');
        let refused = exchange(addr, &large).await;
        assert!(refused.starts_with("HTTP/1.1 431 "), "{refused}");
        let nonsense = exchange(addr, b"*1\r\n$4\r\nPING\r\n").await;
        assert!(nonsense.starts_with("HTTP/1.1 400 "), "{nonsense}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_finishes_its_head_is_cut_off_and_so_is_an_idle_one() {
    with_server(|addr| async move {
        for sent in ["GET /metrics HT", "", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            tokio::time::timeout(HEADER_TIME_MAX * 3, stream.read_to_end(&mut answer))
                .await
                .unwrap_or_else(|_| panic!("still open after {sent:?}"))
                .unwrap();
        }
    })
    .await;
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the server frees a place when it gets to it")]
async fn one_connection_too_many_is_closed_and_a_freed_place_is_given_again() {
    with_server(|addr| async move {
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            held.push(TcpStream::connect(addr).await.unwrap());
        }
        let head = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert_eq!(exchange(addr, head).await, "");
        held.clear();
        for _ in 0..100 {
            if exchange(addr, head).await.starts_with("HTTP/1.1 200 ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no place became free");
    })
    .await;
}

#[tokio::test]
async fn a_stop_closes_idle_connections() {
    let mut kept = None;
    with_server(|addr| {
        let kept = &mut kept;
        async move {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut first = [0; 15];
            stream.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200 OK");
            *kept = Some(stream);
        }
    })
    .await;
    let mut rest = Vec::new();
    let mut stream = kept.unwrap();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"{\"status\":\"ready\"}\n"));
}
