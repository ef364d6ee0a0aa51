//! Links between engines: in the simulator, where a seed decides about delays, cuts and crashes, and
//! once over the machine's own sockets.

#[cfg(test)]
mod bulk;
#[cfg(test)]
mod connecting;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod loopback;
#[cfg(test)]
mod raft;
#[cfg(test)]
mod rpc;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod support;
#[cfg(test)]
#[cfg(feature = "tls")]
mod tls;
