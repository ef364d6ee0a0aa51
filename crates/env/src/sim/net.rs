//! The simulated network: down.

use std::net::SocketAddr;

use rustix::io::Errno;

use crate::net::{Listener, NetFuture, Network, Stream};

pub(super) struct SimNetwork;

impl Network for SimNetwork {
    fn listen(&self, _addr: SocketAddr) -> NetFuture<'_, Box<dyn Listener>> {
        Box::pin(async { Err(Errno::NETDOWN.into()) })
    }

    fn connect(&self, _addr: SocketAddr) -> NetFuture<'_, Box<dyn Stream>> {
        Box::pin(async { Err(Errno::NETDOWN.into()) })
    }
}
