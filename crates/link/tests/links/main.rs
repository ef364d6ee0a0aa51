//! Links between engines: in the simulator, where a seed decides about delays, cuts and crashes, and
//! once over the machine's own sockets.

mod bulk;
mod connecting;
mod hostile;
mod loopback;
mod raft;
mod rpc;
mod support;
