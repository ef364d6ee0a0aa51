//! A running server: in the simulator, and on real sockets and a real disk.

#[cfg(test)]
mod formats;
#[cfg(test)]
mod reclaim;
#[cfg(test)]
mod room;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod support;
#[cfg(test)]
mod surface;
