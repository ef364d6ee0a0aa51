//! The machine's TCP, by tokio's sockets. Must be used inside a tokio runtime with I/O enabled.
//!
//! Listeners reuse addresses in `TIME_WAIT` (a restarted server binds at once) but never share a
//! port: a second server on one port must fail, not take half of the connections. Nagle's algorithm
//! is off, because every writer above hands over whole replies.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::{Arrival, Listener, NetFuture, Network, Stream};

pub(super) struct OsNetwork;

impl Network for OsNetwork {
    fn listen(&self, addr: SocketAddr) -> NetFuture<'_, Box<dyn Listener>> {
        Box::pin(async move {
            let inner = tokio::net::TcpListener::bind(addr).await?;
            let addr = inner.local_addr()?;
            Ok(Box::new(OsListener { inner, addr }) as Box<dyn Listener>)
        })
    }

    fn connect(&self, addr: SocketAddr) -> NetFuture<'_, Box<dyn Stream>> {
        Box::pin(async move { OsStream::boxed(tokio::net::TcpStream::connect(addr).await?) })
    }
}

struct OsListener {
    inner: tokio::net::TcpListener,
    addr: SocketAddr,
}

impl Listener for OsListener {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn accept(&mut self) -> NetFuture<'_, (Box<dyn Arrival>, SocketAddr)> {
        Box::pin(async move {
            let (stream, peer) = self.inner.accept().await?;
            // Taken out of this core's reactor, to be put into the one that serves it.
            Ok((Box::new(OsArrival(stream.into_std()?)) as Box<dyn Arrival>, peer))
        })
    }
}

struct OsArrival(std::net::TcpStream);

impl Arrival for OsArrival {
    fn attach(self: Box<Self>) -> io::Result<Box<dyn Stream>> {
        OsStream::boxed(tokio::net::TcpStream::from_std(self.0)?)
    }
}

struct OsStream(tokio::net::TcpStream);

impl OsStream {
    fn boxed(stream: tokio::net::TcpStream) -> io::Result<Box<dyn Stream>> {
        stream.set_nodelay(true)?;
        Ok(Box::new(OsStream(stream)))
    }
}

impl Stream for OsStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        match Pin::new(&mut self.0).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(buf.filled().len())),
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
