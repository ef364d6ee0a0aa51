//! Listeners and byte streams, polled, so that a connection costs no allocation per read.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A network operation under way.
pub type NetFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + 'a>>;

/// A network as one node sees it.
pub trait Network: Send + Sync {
    /// Binds a listener. Port 0 picks a free one. `AddrInUse` if the port is taken.
    fn listen(&self, addr: SocketAddr) -> NetFuture<'_, Box<dyn Listener>>;
    /// Connects to a listener.
    fn connect(&self, addr: SocketAddr) -> NetFuture<'_, Box<dyn Stream>>;
}

/// Accepts connections.
pub trait Listener {
    /// Returns the bound address.
    fn local_addr(&self) -> SocketAddr;
    /// Waits for the next connection.
    fn accept(&mut self) -> NetFuture<'_, (Box<dyn Arrival>, SocketAddr)>;
}

/// A connection that was accepted and belongs to no core yet: it may travel to the one that is to
/// serve it.
pub trait Arrival: Send {
    /// Makes it a stream of the calling core.
    fn attach(self: Box<Self>) -> io::Result<Box<dyn Stream>>;
}

/// A two-way byte stream.
pub trait Stream {
    /// Reads into `buf`; `Ok(0)` is the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Writes a prefix of `buf`.
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>>;
    /// Closes the write half.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}
